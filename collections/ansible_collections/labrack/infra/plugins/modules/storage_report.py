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

import os
import pwd
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import storage_layout, storage_observe, storage_report
from ansible_collections.labrack.infra.plugins.module_utils.nfs_plan import Filesystem

LISTS = {"type": "list", "elements": "dict", "default": []}
ARGUMENT_SPEC: dict[str, Any] = {
    "host": {"type": "str", "required": True},
    "servers": {"type": "list", "elements": "str", "default": []},
    "directories": LISTS,
    "projects": LISTS,
    "uids": {"type": "dict", "default": {}},
}


def read(params: dict[str, Any]) -> dict[str, Any]:
    """Return the document of :func:`storage_report.report` for this host (OSError)."""
    directories = storage_layout.read(params["directories"], params["servers"])
    projects = [str(one["path"]) for one in params["projects"]]
    filesystems = storage_observe.filesystems()
    sources = [one.source for one in storage_report.own(directories, params["host"])]
    shared = [storage_layout.on_server(directories, path) for path in projects]
    sizes = {}
    for mount in {_mount(filesystems, path) for path in (*sources, *shared)} & set(filesystems):
        filesystems[mount] = replace(filesystems[mount], quotas=storage_observe.quotas(filesystems[mount]))
        space = os.statvfs(mount)
        sizes[mount] = space.f_blocks * space.f_frsize // 1024, space.f_bavail * space.f_frsize // 1024
    names = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}
    names.update({int(number): name for name, number in params["uids"].items()})
    folders = {path: found for path in shared if (found := storage_observe.folder(path)) is not None}
    return storage_report.report(
        params["host"], directories, projects, filesystems, storage_observe.fstab(), sizes, folders, names
    )


def _mount(filesystems: dict[str, Filesystem], path: str) -> str:
    return max((point for point in filesystems if storage_layout.inside(path, point)), key=len, default="/")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        module.exit_json(changed=False, storage=read(module.params))
    except OSError as error:
        module.fail_json(msg=f"the quotas can't be read: {error}. Mend: run it as root")


if __name__ == "__main__":
    main()
