# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give a node its hosts entries, directories and running time service, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: baseline
short_description: Hosts entries, directories and time service of a node
version_added: 0.1.0
author:
  - labrack contributors (@labrack)
description:
  - Keeps one block in C(/etc/hosts) with an entry for every node, and moves node names off loopback addresses,
    where Debian's installer puts them.
  - Makes directories and remembers, in C(/var/lib/labrack/baseline.json), which of them it made.
  - Enables and starts the time service it is given.
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description:
      - V(absent) removes what the module made and nothing else; the other options are then ignored.
    type: str
    choices: [present, absent]
    default: present
  hosts:
    description:
      - Every node of the lab.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - The node's name.
        type: str
        required: true
      address:
        description:
          - Its address. Left out where it is not known in this run, an entry that is already there is kept.
        type: str
      aliases:
        description:
          - Further names of the node.
        type: list
        elements: str
        default: []
  hosts_source:
    description:
      - V(file) keeps the block, V(dns) leaves names to DNS and warns where the file says something else.
    type: str
    choices: [file, dns]
    default: file
  directories:
    description:
      - Directories that shall exist.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Absolute path; the directory above it must be there or be in the list too.
        type: path
        required: true
      mode:
        description:
          - Mode in octal digits.
        type: str
        default: "0755"
      owner:
        description:
          - User name.
        type: str
        default: root
      group:
        description:
          - Group name.
        type: str
        default: root
  time_service:
    description:
      - Systemd unit that shall run and start at boot; nothing when empty.
    type: str
    default: ""
  installed:
    description:
      - Packages that the caller has just installed, to be remembered for O(state=absent).
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Converge a node of two
  labrack.infra.baseline:
    hosts:
      - {name: head, address: 10.0.0.1}
      - {name: worker1, address: 10.0.0.2, aliases: [w1]}
    directories:
      - {path: /var/lib/labrack}
    time_service: chrony
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Changes that O(max_disruption) does not cover.
  returned: success
  type: list
  elements: dict
conflicts:
  description: Nodes whose name C(/etc/hosts) gives another address outside the block; also shown as warnings.
  returned: success
  type: list
  elements: str
packages:
  description: Packages that were installed by the caller of this module and nobody needs any more.
  returned: success
  type: list
  elements: str
"""

import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import baseline_plan, hosts_file, node_io
from ansible_collections.labrack.infra.plugins.module_utils.baseline_plan import (
    Directory,
    Observed,
    Record,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    ServiceState,
    act,
    observe_services,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "hosts": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "address": {"type": "str"},
            "aliases": {"type": "list", "elements": "str", "default": []},
        },
    },
    "hosts_source": {"type": "str", "choices": ["file", "dns"], "default": "file"},
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "mode": {"type": "str", "default": "0755"},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
        },
    },
    "time_service": {"type": "str", "default": ""},
    "installed": {"type": "list", "elements": "str", "default": []},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


def read_nodes(params: dict[str, Any]) -> tuple[hosts_file.Host, ...]:
    """Return the nodes named in the module's parameters."""
    return tuple(hosts_file.Host(host["name"], host["address"], tuple(host["aliases"])) for host in params["hosts"])


def read_wanted(params: dict[str, Any]) -> Wanted:
    """Return the state that the module's parameters ask for."""
    if params["state"] == "absent":
        return Wanted(present=False)
    return Wanted(
        hosts=read_nodes(params) if params["hosts_source"] == "file" else (),
        directories={
            one["path"]: Directory(one["mode"].zfill(4), one["owner"], one["group"]) for one in params["directories"]
        },
        time_service=params["time_service"],
        installed=tuple(params["installed"]),
    )


def observe(wanted: Wanted) -> Observed:
    """Read the node (ValueError for a damaged record)."""
    record = node_io.observe_file(baseline_plan.RECORD)
    paths = {*wanted.directories, *Record.read(record.text if record else None).directories}
    there = sorted(path for path in paths if os.path.isdir(path))
    unit = wanted.time_service
    return Observed(
        hosts=node_io.observe_file(baseline_plan.HOSTS),
        directories={path: _directory(path) for path in there},
        entries={path: frozenset(os.listdir(path)) for path in there if path not in wanted.directories},
        time_service=observe_services([unit])[unit] if unit else ServiceState(),
        record=record,
    )


def _directory(path: str) -> Directory:
    info = os.stat(path)
    mode = f"{info.st_mode & 0o7777:04o}"
    return Directory(mode, node_io.owner_name(info.st_uid), node_io.group_name(info.st_gid))


def apply(changes: list[Change], observed: Observed, wanted: Wanted) -> None:
    """Make the changes (OSError, LookupError for an unknown owner, or ServiceError when the node refuses)."""
    record = baseline_plan.wanted_record(observed, wanted).file()
    files = {baseline_plan.HOSTS: baseline_plan.wanted_hosts_file(observed, wanted), baseline_plan.RECORD: record}
    for change in changes:
        verb, target = change.step
        if verb == "mkdir":
            os.mkdir(target)
        if verb in ("mkdir", "chmod"):
            directory = wanted.directories[target]
            shutil.chown(target, directory.owner, directory.group)
            os.chmod(target, int(directory.mode, 8))
        elif verb == "rmdir":
            os.rmdir(target)
        elif verb == "remove":
            node_io.remove_file(target)
        elif verb == "write":
            content = files[target]
            if content is not None:
                node_io.write_file(target, content)
        else:
            act(verb, target)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    wanted = read_wanted(module.params)
    seen = Observed()
    unneeded: list[str] = []

    def look() -> Observed:
        nonlocal seen
        seen = observe(wanted)
        if not wanted.present and seen.record:
            unneeded.extend(Record.read(seen.record.text).packages)
        return seen

    def extra(state: Observed) -> dict[str, Any]:
        text = state.hosts.text if state.hosts else ""
        block = module.params["hosts_source"] == "file"
        found = hosts_file.conflicts(text, read_nodes(module.params), block) if wanted.present else []
        for line in found:
            module.warn(line)
        return {"conflicts": found, "packages": unneeded}

    try:
        converge(
            module,
            look,
            lambda state: baseline_plan.plan(state, wanted),
            lambda changes: apply(changes, seen, wanted),
            extra,
        )
    except ValueError as error:
        module.fail_json(msg=f"{baseline_plan.RECORD} is damaged ({error}). Mend: remove it and run again.")
    except (OSError, LookupError, ServiceError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
