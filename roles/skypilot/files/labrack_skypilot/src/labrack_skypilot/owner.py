# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give what pods wrote into people's folders to these people: ``python -m labrack_skypilot.owner``.

A pod's user is root, or number 1000, whoever launched it (see :mod:`.limits`), so files of theirs belong to somebody
else outside. In a folder that is one user's, what belongs to those numbers is given to that user. Such a folder is a
mount with ``{user}`` in its path, or one with a user's name, and theirs already, in a mount that pods may write to.

Root in a pod can do anything to a folder that it sees, so nothing is done by a name that could change meanwhile, and no
link is followed from a user's folder on. Links stay as they are, and so do devices, and files with other names, which
may be in another's folder; these lose what would make their runner somebody else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labrack_skypilot import limits

#: Who a pod's user is: root, or the user of SkyPilot's images.
POD_UIDS = frozenset({0, 1000})
#: A new folder's: its group writes there, which pods are in, and its files have that group.
MODE = 0o2770


#: Decides whether somebody may give another's file a name of their own (proc_sys_fs(5)).
HARD_LINKS = "/proc/sys/fs/protected_hardlinks"


@dataclass(frozen=True)
class Folder:
    """A user's folder, by its ``path`` below the lab's folder ``base``. ``made``: it is made where it is missing."""

    base: str
    path: str
    uid: int
    gid: int
    made: bool = False


def folders(settings: limits.Limits) -> list[Folder]:
    """Return the folders of all users, each once."""
    found: dict[str, Folder] = {}
    for name, (uid, gid) in sorted(settings.uids.items()):
        unix = limits.unix_name(settings, name)
        if not unix or "/" in unix or unix in (".", ".."):
            continue
        for mount in settings.mounts:
            if mount.read_only:
                continue
            own = "{user}" in mount.path
            # what comes before is the admin's, and may have links
            above = mount.path.partition("{user}")[0] if own else f"{mount.path}/"
            base = above.rpartition("/")[0] or "/"
            path = mount.path.replace("{user}", unix) if own else f"{mount.path}/{unix}"
            found.setdefault(path, Folder(base, path[len(base) :].strip("/"), uid, gid, own))
    return list(found.values())


def give(folder: Folder, pod_uids: frozenset[int] = POD_UIDS) -> int:
    """Give what is in a folder to its user; return how much was given. OSError for a folder that can't be read."""
    try:
        top = _open(folder)
    except FileNotFoundError:
        return 0
    except OSError as error:
        # a link in its place, say
        print(f"labrack: {folder.base}/{folder.path}: {error.strerror}", file=sys.stderr)
        return 0
    try:
        info = os.fstat(top)
        if info.st_uid != folder.uid:
            # not theirs: a folder that happens to have their name
            return 0
        return sum(_give(top, name, folder, info.st_dev, pod_uids) for name in os.listdir(top))
    finally:
        os.close(top)


def _open(folder: Folder) -> int:
    """Open a user's folder, made where it shall be; FileNotFoundError where it is missing, OSError for a link."""
    handle = os.open(folder.base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in folder.path.split("/"):
        try:
            made = False
            with contextlib.suppress(FileExistsError):
                if folder.made:
                    os.mkdir(name, 0o700, dir_fd=handle)
                    made = True
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
        # whoever may rename could have put another in its place
        if made and os.fstat(handle).st_uid == os.geteuid() and not os.listdir(handle):
            os.fchown(handle, folder.uid, folder.gid)
            os.fchmod(handle, MODE)
    return handle


def _give(parent: int, name: str, folder: Folder, device: int, pod_uids: frozenset[int]) -> int:
    """Give one entry of an open directory, and what is in it."""
    try:
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return 0
    try:
        info = os.fstat(handle)
        if info.st_dev != device:
            # another file system that is mounted there
            return 0
        kind = stat.S_IFMT(info.st_mode)
        theirs = info.st_uid in pod_uids and info.st_uid != folder.uid
        given = 0
        if theirs and (kind == stat.S_IFDIR or (kind == stat.S_IFREG and info.st_nlink == 1)):
            # of what was looked at, whatever has the name by now; it takes away set-user-ID as well
            os.chown(f"/proc/self/fd/{handle}", folder.uid, folder.gid)
            given = 1
        elif kind == stat.S_IFREG and _lends(handle, info.st_mode):
            # its other name may be anywhere, so it stays its owner's; a change that changes nobody takes that away
            os.chown(f"/proc/self/fd/{handle}", -1, -1)
        if kind != stat.S_IFDIR:
            return given
        inner = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return 0
    finally:
        os.close(handle)
    try:
        return given + sum(_give(inner, entry, folder, device, pod_uids) for entry in _names(inner))
    finally:
        os.close(inner)


def _lends(handle: int, mode: int) -> bool:
    """Return whether a file makes who runs it somebody else, or gives them privileges."""
    if mode & stat.S_ISUID or mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP:
        return True
    with contextlib.suppress(OSError):
        return bool(os.getxattr(f"/proc/self/fd/{handle}", "security.capability"))
    return False


def _names(directory: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from os.listdir(directory)


def main(arguments: Sequence[str]) -> int:
    """Give away what is in all users' folders; return the exit status."""
    parser = argparse.ArgumentParser(prog="labrack-skypilot-owner", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--settings", default=limits.SETTINGS, help="the policy's settings, a JSON document")
    parser.add_argument("--hard-links", default=HARD_LINKS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    # a folder for each step down stays open
    sys.setrecursionlimit(5000)
    try:
        if Path(options.hard_links).read_text(encoding="ascii").strip() == "0":
            # /etc/shadow, named by somebody, would be theirs once root's own is a new file
            raise limits.Refused("fs.protected_hardlinks is 0: people could be given others' files. Mend: set it to 1")
        for folder in folders(limits.load(options.settings)):
            given = give(folder)
            if given:
                print(f"{folder.base}/{folder.path}: {given} files and directories of pods given to {folder.uid}")
    except (limits.Refused, OSError) as error:
        print(f"labrack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
