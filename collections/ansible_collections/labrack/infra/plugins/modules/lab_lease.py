# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Take or give back the lease by which two controllers do not change a lab at a time."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_lease
short_description: Take or give back the lease of a lab
version_added: 0.1.0
description:
  - On the head, a file in C(/run) says who changes the lab now. It fails where somebody else holds it, and says who.
  - A lease ends by itself. In check mode none is taken.
author:
  - labrack contributors (@labrack)
options:
  state:
    description: V(held) takes the lease, or takes it on; V(released) gives it back where it is the owner's.
    type: str
    choices: [held, released]
    default: held
  owner:
    description: What is unique to this controller; its own lease never keeps it out.
    type: str
    required: true
  who:
    description: Who that is, for others to read.
    type: str
    default: ""
  what:
    description: What for.
    type: str
    default: a run
  seconds:
    description: After how many seconds it ends by itself.
    type: int
    default: 3600
  path:
    description: The file.
    type: path
    default: /run/labrack/lease.json
attributes:
  check_mode:
    description: Says who holds it, and takes nothing.
    support: full
  diff_mode:
    description: Who changes the lab is no change of it.
    support: none
  platform:
    description: The systems that the module runs on.
    support: full
    platforms: linux
"""

EXAMPLES = r"""
- name: Take the lease
  labrack.infra.lab_lease:
    owner: 3f2a9c
    who: ada@laptop
    what: labrack apply
"""

RETURN = r"""
lease:
  description: The lease that was taken, empty where there is none.
  type: dict
  returned: always
"""

import fcntl
import os
import time
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils.lease import PATH, Lease, holder
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    FileState,
    group_name,
    owner_name,
    read_text,
    remove_file,
    write_file,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
    "owner": {"type": "str", "required": True},
    "who": {"type": "str", "default": ""},
    "what": {"type": "str", "default": "a run"},
    "seconds": {"type": "int", "default": 3600},
    "path": {"type": "path", "default": PATH},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    path = module.params["path"]
    folder = os.path.dirname(path)
    if not module.check_mode:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    elif not os.path.isdir(folder):
        module.exit_json(changed=False, lease={})
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # of two that come at once, one looks first
        fcntl.flock(lock, fcntl.LOCK_EX)
        lease, other = settle(module.params, module.check_mode)
    finally:
        os.close(lock)
    if other:
        module.fail_json(msg=other, lease=lease)
    # who changes the lab is no change of it
    module.exit_json(changed=False, lease=lease)


def settle(wanted: dict[str, Any], check_mode: bool) -> tuple[dict[str, Any], str]:
    """Take or give back the lease; return it, and words about another holder."""
    now, path = time.time(), wanted["path"]
    found = Lease.read(read_text(path))
    if wanted["state"] == "released":
        if found is not None and found.owner == wanted["owner"] and not check_mode:
            remove_file(path)
        return {}, ""
    other = holder(found, wanted["owner"], now)
    if other is not None:
        return asdict(other), other.words(now, path)
    who = wanted["who"] or wanted["owner"]
    lease = Lease(wanted["owner"], who, wanted["what"], now, now + max(1, wanted["seconds"]))
    if not check_mode:
        write_file(path, FileState(lease.text(), "0644", owner_name(os.getuid()), group_name(os.getgid())), flush=False)
    return asdict(lease), ""


if __name__ == "__main__":
    main()
