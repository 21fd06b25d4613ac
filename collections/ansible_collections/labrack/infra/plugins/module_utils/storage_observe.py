# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What file systems and directories are on a host, with their quotas, and the report of it all.

Standard library only, no Ansible import.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import (
    disk_quota,
    hardware_observe,
    posix_acl,
    storage_layout,
    storage_report,
)
from ansible_collections.labrack.infra.plugins.module_utils.nfs_plan import Filesystem, Folder
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text
from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import Quotas


def filesystems() -> dict[str, Filesystem]:
    """Return the mounted file systems by mount point, without their quotas; what only waits to be mounted is none."""
    mounts = hardware_observe.read_mounts(read_text("/proc/self/mountinfo") or "")
    return {
        point: Filesystem(point, one["device"], one["fstype"], one["number"])
        for point, one in mounts.items()
        if one["fstype"] != "autofs"
    }


def fstab() -> dict[str, str]:
    """Return the device of each mount point in /etc/fstab."""
    return {point: device for point, device, _type in hardware_observe.read_fstab(read_text("/etc/fstab") or "")}


def quotas(filesystem: Filesystem) -> Quotas:
    """Return the quotas of a mounted file system, all off where it has no device of its own (OSError: not root)."""
    return disk_quota.observe(device_of(filesystem))


def device_of(filesystem: Filesystem) -> str:
    """Return the block device of a file system; the name in mountinfo may be one that isn't there (/dev/root)."""
    by_number = f"/dev/block/{filesystem.number}"
    return by_number if os.path.exists(by_number) else filesystem.device


@contextlib.contextmanager
def opened(path: str, top: str, make: bool = False) -> Iterator[str]:
    """Give a path to a directory that stays the same one whatever is renamed meanwhile (OSError for none).

    ``top`` is where it lies or itself. Below that people may write, so no link is followed there. ``make``: what is
    missing below is made, the directory itself for root alone.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    handle = os.open(top, flags)
    try:
        names = [name for name in path[len(top.rstrip("/")) :].split("/") if name]
        for place, name in enumerate(names, 1):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700 if place == len(names) else 0o755, dir_fd=handle)
            inner = os.open(name, flags | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        # the dot, as whoever opens this without following links would stop at the descriptor's own
        yield f"/proc/self/fd/{handle}/."
    finally:
        os.close(handle)


def folder(path: str, top: str = "") -> Folder | None:
    """Return a directory as it is, None where none is; see :func:`opened` for ``top``, itself if empty (OSError)."""
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(opened(path, top or path))
        except OSError:
            return None
        info = os.stat(place)
        mode = f"{info.st_mode & 0o7777:04o}"
        return Folder(mode, info.st_uid, info.st_gid, posix_acl.read(place), disk_quota.project_of(place))


def report(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of :func:`.storage_report.report` for this host (OSError: not root).

    ``params`` are those of the module ``storage_report``.
    """
    directories = storage_layout.read(params["directories"], params["servers"])
    projects = [str(one["path"]) for one in params["projects"]]
    found = filesystems()
    sources = [one.source for one in storage_report.own(directories, params["host"])]
    shared = [storage_layout.on_server(directories, path) for path in projects]
    sizes = {}
    for mount in {_mount(found, path) for path in (*sources, *shared)} & set(found):
        found[mount] = replace(found[mount], quotas=quotas(found[mount]))
        space = os.statvfs(mount)
        sizes[mount] = space.f_blocks * space.f_frsize // 1024, space.f_bavail * space.f_frsize // 1024
    names = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}
    names.update({int(number): name for name, number in params["uids"].items()})
    folders = {path: there for path in shared if (there := folder(path)) is not None}
    return storage_report.report(params["host"], directories, projects, found, fstab(), sizes, folders, names)


def _mount(found: Mapping[str, Filesystem], path: str) -> str:
    return max((point for point in found if storage_layout.inside(path, point)), key=len, default="/")
