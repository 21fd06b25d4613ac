# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find the files of a user on the file systems of this machine: each file once, no link followed, no server asked.

Standard library only, no Ansible import.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside

MOUNTS = "/proc/self/mountinfo"
#: The file systems whose files have owners and lie on this machine; a container's / is an overlay.
LOCAL = re.compile(r"ext[234]|xfs|btrfs|zfs|f2fs|bcachefs|jfs|tmpfs|ramfs")
#: What containers and virtual machines have here: a number there is not the user who has it outside.
EXCLUDED = (
    *("/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/rancher"),
    *("/var/lib/machines", "/var/lib/lxc", "/var/lib/lxd", "/var/lib/incus", "/run/containerd", "/run/docker"),
)


@dataclass(frozen=True)
class Mount:
    """A line of proc_pid_mountinfo(5): what of a file system is mounted where."""

    point: str
    device: str
    subtree: str
    fstype: str
    read_only: bool


@dataclass(frozen=True)
class Entry:
    """A file, link or directory: ``name`` in the open directory ``dir_fd``, which stays open until the next one."""

    path: str
    dir_fd: int
    name: str
    info: os.stat_result


def read_mounts(mountinfo: str) -> dict[str, Mount]:
    """Return the topmost mount of each mount point, by mount point."""
    mounts: dict[str, Mount] = {}
    for line in mountinfo.splitlines():
        before, _dash, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) >= 6 and len(tail) >= 3:
            options = {*fields[5].split(","), *tail[2].split(",")}
            point = _unescape(fields[4])
            mounts.pop(point, None)
            mounts[point] = Mount(point, fields[2], _unescape(fields[3]), tail[0], "ro" in options)
    return mounts


def roots(mounts: dict[str, Mount], skip: Iterable[str] = (), also: Iterable[str] = ()) -> list[str]:
    """Return the mount points to walk so that each local file is met once.

    A part of a file system that is mounted once more is left out where the walk comes by it anyway. Nothing in
    ``skip`` is walked; a mount point in ``also`` is walked whatever its file system.
    """
    left_out = (*EXCLUDED, *skip)
    wanted = [
        mount
        for mount in mounts.values()
        if (mount.point in also or mount.point == "/" or LOCAL.fullmatch(mount.fstype))
        and not mount.read_only
        and not any(inside(mount.point, path) for path in left_out)
    ]
    found: list[Mount] = []
    # the largest part first, so that what it covers is left out
    for mount in sorted(wanted, key=lambda mount: (len(mount.subtree.rstrip("/")), len(mount.point), mount.point)):
        if not any(_covers(whole, mount, mounts) for whole in found):
            found.append(mount)
    return sorted(mount.point for mount in found)


def _covers(whole: Mount, part: Mount, mounts: dict[str, Mount]) -> bool:
    """Return whether walking ``whole`` comes by all of ``part``: the same files, which no other mount hides there."""
    if whole.device != part.device or not inside(part.subtree, whole.subtree):
        return False
    there = os.path.normpath(f"{whole.point}/{part.subtree[len(whole.subtree.rstrip('/')) :]}")
    return not any(inside(there, point) and inside(point, whole.point) and point != whole.point for point in mounts)


def walk(root: str, prune: Collection[str]) -> Iterator[Entry]:
    """Yield a directory and all that is in it, depth first; what is in ``prune`` is neither yielded nor entered.

    What vanishes meanwhile is passed over. Raises OSError for a directory that can't be read.
    """
    # each folder on the way down stays open, and people make them as deep as they like
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    stack = [(descriptor, root.rstrip("/"), os.scandir(descriptor))]
    try:
        yield Entry(root, descriptor, ".", os.fstat(descriptor))
        while stack:
            descriptor, folder, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                entries.close()
                os.close(descriptor)
                stack.pop()
                continue
            path = f"{folder}/{entry.name}"
            if path in prune:
                continue
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield Entry(path, descriptor, entry.name, info)
            if stat.S_ISDIR(info.st_mode):
                with contextlib.suppress(FileNotFoundError):
                    inner = os.open(entry.name, flags, dir_fd=descriptor)
                    stack.append((inner, path, os.scandir(inner)))
    finally:
        for descriptor, _folder, entries in stack:
            entries.close()
            os.close(descriptor)


def local_files(mountinfo: str, skip: Iterable[str] = (), also: Iterable[str] = ()) -> Iterator[Entry]:
    """Yield every local file once, see :func:`roots`; a hard link of a file that came already is left out."""
    mounts = read_mounts(mountinfo)
    prune = {*mounts, *EXCLUDED, *skip}
    seen: set[tuple[int, int]] = set()
    for root in roots(mounts, skip, also):
        if not os.path.isdir(root):
            continue
        for entry in walk(root, prune - {root}):
            if entry.info.st_nlink > 1 and not stat.S_ISDIR(entry.info.st_mode):
                key = (entry.info.st_dev, entry.info.st_ino)
                if key in seen:
                    continue
                seen.add(key)
            yield entry


def left_files(
    uid: int, mountinfo: str, skip: Iterable[str] = (), most: int = 50, seconds: float = 20.0
) -> tuple[list[str], int, bool]:
    """Return paths of a user's local files, how many more there are, and whether the search came to its end.

    Nothing in ``skip`` is looked at. A directory of theirs stands for all that is in it.
    """
    deadline = time.monotonic() + seconds
    found: list[str] = []
    more = 0
    within = ""
    try:
        for entry in local_files(mountinfo, skip):
            if time.monotonic() > deadline:
                return found, more, False
            if entry.info.st_uid != uid or (within and entry.path.startswith(within)):
                continue
            if stat.S_ISDIR(entry.info.st_mode):
                within = f"{entry.path}/"
            if len(found) < most:
                found.append(entry.path)
            else:
                more += 1
    except OSError:
        return found, more, False
    return found, more, True


def mounts_below(folder: str, mountinfo: str) -> list[str]:
    """Return the mount points at and in a folder."""
    return sorted(point for point in read_mounts(mountinfo) if inside(point, folder))


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text)
