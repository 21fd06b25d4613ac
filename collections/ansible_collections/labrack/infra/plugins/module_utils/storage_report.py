# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who uses what of the lab's storage: one document for a host, from what was read there. Pure; sizes are KiB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.nfs_plan import Filesystem, Folder, guard_of
from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import OFF, Usage
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import Directory, covering, inside, on_server

#: Below are the accounts of the system; the other is nobody, whom root of a client becomes.
FIRST_PERSON, NOBODY = 1000, 65534


def own(directories: Iterable[Directory], host: str) -> list[Directory]:
    """Return the directories that a host has itself."""
    return [one for one in directories if one.local_to(host) and not one.provided]


def report(
    host: str,
    directories: Iterable[Directory],
    projects: Iterable[str],
    filesystems: Mapping[str, Filesystem],
    fstab: Mapping[str, str],
    sizes: Mapping[str, tuple[int, int]],
    folders: Mapping[str, Folder],
    names: Mapping[int, str],
) -> dict[str, Any]:
    """Return the document: ``host``, and lists of dicts under ``directories``, ``users`` and ``projects``.

    ``projects`` are paths; ``sizes`` has size and free space by mount point, ``folders`` the projects' directories by
    their source, ``names`` the users'. A file system that several directories share has its users once.
    """
    directories = list(directories)
    shared: dict[str, list[str]] = {}
    rows = []
    for one in own(directories, host):
        guard = guard_of(one, fstab)
        mounted = not guard or guard in filesystems
        around = [other for other in filesystems.values() if inside(one.source, other.mount)]
        filesystem = max(around, key=lambda other: len(other.mount), default=Filesystem("/", "", ""))
        size, free = sizes.get(filesystem.mount, (0, 0)) if mounted else (0, 0)
        if mounted:
            shared.setdefault(filesystem.mount, []).append(one.path)
        rows.append(
            {
                "path": one.path,
                "source": one.source,
                "filesystem": filesystem.mount if mounted else guard,
                "mounted": mounted,
                "size": size,
                "free": free,
                "user_quotas": filesystem.quotas.state.get("user", OFF) if mounted else OFF,
                "project_quotas": filesystem.quotas.state.get("project", OFF) if mounted else OFF,
            }
        )
    people = []
    for mount, paths in shared.items():
        quotas = filesystems[mount].quotas if mount in filesystems else Filesystem(mount, "", "").quotas
        for number, usage in sorted(quotas.usage.get("user", {}).items()):
            if number >= FIRST_PERSON and number != NOBODY and (usage.used or usage.limit.soft or usage.limit.hard):
                who = {"name": names.get(number, str(number)), "uid": number, "filesystem": mount, "directories": paths}
                people.append({**who, **_figures(usage, quotas.grace.get("user", 0))})
    groups = []
    for path in projects:
        directory = covering(directories, path)
        source = on_server(directories, path)
        folder = folders.get(source)
        if directory is None or directory not in own(directories, host) or folder is None:
            continue
        around = [other for other in filesystems.values() if inside(source, other.mount)]
        filesystem = max(around, key=lambda other: len(other.mount), default=Filesystem("/", "", ""))
        seen = filesystem.quotas.usage.get("project", {}).get(folder.project) if folder.project else None
        grace = filesystem.quotas.grace.get("project", 0)
        groups.append({"path": path, "project": folder.project or None, **_figures(seen, grace)})
    return {"host": host, "directories": rows, "users": people, "projects": groups}


def _figures(usage: Usage | None, grace: int) -> dict[str, Any]:
    """What is used and allowed, and since when (Unix time) the soft limit is exceeded; None where nobody counts."""
    if usage is None:
        return {"used": None, "soft": None, "hard": None, "over_since": None}
    since = usage.ends - grace if usage.ends else None
    return {"used": usage.used, "soft": usage.limit.soft, "hard": usage.limit.hard, "over_since": since}
