# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module ``labrack.infra.storage_report``: who uses what of the lab's directories on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: storage_report
short_description: Read who uses what of the lab's storage
version_added: 0.1.0
description:
  - Reads size and free space of the lab's directories that a host has, and what people and projects use of them, as
    the file systems' quotas count it. Without quotas nobody counts, and only sizes are told.
options:
  host:
    description: The name of this host in the inventory.
    type: str
    required: true
  servers:
    description: The hosts that serve, in order.
    type: list
    elements: str
    default: []
  directories:
    description: The lab's directories, C(lab_directories).
    type: list
    elements: dict
    default: []
  projects:
    description: Directories that groups share, C(lab_projects).
    type: list
    elements: dict
    default: []
  uids:
    description: The lab's user numbers by name; other names are the host's.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Only reads, in check mode as well.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  platform:
    description: The systems that the module runs on.
    support: full
    platforms: linux
author:
  - labrack contributors (@labrack)
"""

EXAMPLES = r"""
- name: Read who uses what
  labrack.infra.storage_report:
    host: head
    servers: [head]
    directories:
      - {path: /home, source: /srv/lab/home}
"""

RETURN = r"""
storage:
  description: The C(host), and its C(directories), C(users) and C(projects); sizes are KiB, times Unix time.
  returned: success
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import storage_observe

LISTS = {"type": "list", "elements": "dict", "default": []}
ARGUMENT_SPEC: dict[str, Any] = {
    "host": {"type": "str", "required": True},
    "servers": {"type": "list", "elements": "str", "default": []},
    "directories": LISTS,
    "projects": LISTS,
    "uids": {"type": "dict", "default": {}},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        module.exit_json(changed=False, storage=storage_observe.report(module.params))
    except OSError as error:
        module.fail_json(msg=f"the quotas can't be read: {error}. Mend: run it as root")


if __name__ == "__main__":
    main()
