# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Put a home into an archive, hold the archive against it, and only then take the home away.

The archive is GNU tar's, with numeric owners, ACLs and extended attributes: ``tar --extract --numeric-owner --acls
--xattrs -f ada-2001-20270331T120000Z.tar -C /home`` brings the home back. Standard library only, no Ansible import.
"""

from __future__ import annotations

import os
import stat
import tarfile
import time

from ansible_collections.labrack.infra.plugins.module_utils.node_io import run

#: Seconds for one pass over a home; the largest take hours.
PATIENCE = 24 * 3600.0
#: What keeps an archive that is not complete apart from those that are.
PARTIAL = ".partial"
#: What has to stay free beside the archive.
RESERVE = 64 << 20


class ArchiveError(RuntimeError):
    """A home that can't be archived, or an archive that differs from it; nothing was taken away."""


def archive(home: str, folder: str, name: str, uid: int) -> str:
    """Return the path of a new archive of a home, complete and compared with it (ArchiveError, OSError).

    It lies in ``folder``, which is made, root's alone, as the archive is. What a broken run left there is replaced.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    there = os.stat(folder)
    if there.st_mode & 0o022 or there.st_uid != os.geteuid():
        raise ArchiveError(
            f"others than root may write in {folder}, and could put links in an archive's place. Mend: give it to "
            "root, mode 0700, or set lab_users_archive to another folder."
        )
    wanted, size = listing(home)
    free = os.statvfs(folder)
    if size + RESERVE > free.f_bavail * free.f_frsize:
        raise ArchiveError(
            f"{folder} has {free.f_bavail * free.f_frsize >> 20} MiB left, {home} takes {size >> 20}. Mend: make room "
            "there, or set lab_users_archive to a larger disk."
        )
    draft = f"{folder}/{name}-{uid}{PARTIAL}"
    options = ("--numeric-owner", "--acls", "--xattrs", "--file", draft, "--directory", os.path.dirname(home))
    if os.path.lexists(draft):
        os.unlink(draft)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    _tar("--create", "--sparse", "--one-file-system", "--format=posix", *options, "--", os.path.basename(home))
    missing = sorted(set(wanted) - set(members(draft)))
    if missing:
        raise ArchiveError(f"{missing[0]} and {len(missing) - 1} more are not in {draft} as they are in {home}")
    _tar("--compare", *options)
    with open(draft, "rb") as stream:
        os.fsync(stream.fileno())
    final = f"{folder}/{name}-{uid}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar"
    if os.path.lexists(final):
        raise ArchiveError(f"{final} is there already. Mend: run again.")
    os.rename(draft, final)
    return final


def listing(home: str) -> tuple[list[tuple[str, str, int]], int]:
    """Return what an archive of a home must hold, as (name, kind, size), and the bytes that it takes.

    Sockets are left out, which tar does not store.
    """
    top = os.path.dirname(home)
    found = []
    taken = 0
    # a list of its own in place of os.walk, which calls itself and gives up in a home that is deep
    left = [home]
    while left:
        path = left.pop()
        info = os.lstat(path)
        kind = _kind(info.st_mode)
        if kind:
            taken += 1536 + (min(info.st_size, info.st_blocks * 512) if kind == "file" else 0)
            found.append((os.path.relpath(path, top), kind, info.st_size if kind == "file" else 0))
        if kind == "directory":
            left += [os.path.join(path, name) for name in os.listdir(path)]
    return found, taken


def members(path: str) -> list[tuple[str, str, int]]:
    """Return what is in an archive, as :func:`listing` has it; a second name of a file has the size of the first."""
    found = []
    sizes: dict[str, int] = {}
    with tarfile.open(path, "r:") as stream:
        for member in stream:
            if member.isreg() or member.islnk():
                size = sizes.get(member.linkname, 0) if member.islnk() else member.size
                sizes[member.name] = size
                found.append((member.name, "file", size))
            else:
                kind = "directory" if member.isdir() else "link" if member.issym() else "other"
                found.append((member.name, kind, 0))
    return found


def remove(home: str) -> None:
    """Take a home away, no link followed (OSError)."""
    done = run(["rm", "--recursive", "--force", "--one-file-system", "--", home], timeout=PATIENCE)
    if done.rc:
        raise OSError(f"{home} is in its archive and could not be removed: {done.err.strip()[:500]}. Mend: remove it")


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return ""
    if stat.S_ISREG(mode):
        return "file"
    return "directory" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "other"


def _tar(*arguments: str) -> None:
    done = run(["tar", *arguments], timeout=PATIENCE)
    if done.rc:
        raise ArchiveError(f"tar {arguments[0]} of the home failed: {(done.err or done.out).strip()[:500]}")
