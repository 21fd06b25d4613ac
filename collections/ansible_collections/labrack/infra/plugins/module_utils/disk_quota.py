# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Disk quotas and project numbers, by the kernel's own interface: one way for XFS and ext4, and no package.

Standard library only. Calls and structures are those of quotactl(2), ``include/uapi/linux/quota.h``,
``dqblk_xfs.h`` and ``fs.h``; ``Q_GETNEXTQUOTA`` came with Linux 4.6. A thousand limits take a thousand system calls.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct

from ansible_collections.labrack.infra.plugins.module_utils import owned_files
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text
from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import (
    COUNTED,
    ENFORCED,
    OFF,
    Limit,
    Quotas,
    Usage,
)

TYPES = {"user": 0, "project": 2}
Q_GETINFO, Q_SETQUOTA, Q_GETNEXTQUOTA, Q_XGETQSTAT = 0x800005, 0x800008, 0x800009, 0x5805
#: FS_QUOTA_UDQ_ACCT and _ENFD, FS_QUOTA_PDQ_ACCT and _ENFD.
FLAGS = {"user": (1, 2), "project": (16, 32)}
#: struct if_nextdqblk: limits (hard, soft, KiB) and use (bytes) of space, the same of files, times, valid, number.
DQBLK = struct.Struct("=QQQQQQQQII")
QIF_BLIMITS = 1
#: struct fsxattr: flags, extent size, extents, project, extent size of copies, padding.
FSXATTR = struct.Struct("=IIIII8x")
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200
LAST_NUMBER = 2**32 - 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def observe(device: str) -> Quotas:
    """Return the quotas of a mounted file system by its block device; all off where it has none. OSError: not root."""
    flags = 0
    buffer = ctypes.create_string_buffer(256)
    try:
        _quotactl(Q_XGETQSTAT, "user", device, 0, buffer)
        (flags,) = struct.unpack_from("=H", buffer, 2)
    except OSError as error:
        # no quotas, a file system without any (tmpfs), a device that is none (overlay)
        if error.errno not in (errno.ENOSYS, errno.ESRCH, errno.EINVAL, errno.ENOTBLK, errno.ENOENT, errno.ENODEV):
            raise
    state = {}
    for kind, (counted, enforced) in FLAGS.items():
        state[kind] = ENFORCED if flags & enforced else COUNTED if flags & counted else OFF
    on = [kind for kind, value in state.items() if value != OFF]
    return Quotas(state, {kind: _usage(device, kind) for kind in on}, {kind: _grace(device, kind) for kind in on})


def set_limit(device: str, kind: str, number: int, limit: Limit) -> None:
    """Set the limit of a user or project (OSError). 0 is refused: on XFS its limit is everybody's default."""
    if number <= 0:
        raise ValueError(f"no limit is set for {kind} {number}")
    block = DQBLK.pack(limit.hard, limit.soft, 0, 0, 0, 0, 0, 0, QIF_BLIMITS, 0)
    _quotactl(Q_SETQUOTA, kind, device, number, ctypes.create_string_buffer(block, len(block)))


def project_of(path: str) -> int:
    """Return the project number that a directory has and hands down, 0 for none."""
    try:
        flags, _size, _extents, project, _copies = FSXATTR.unpack(_xattr(path, FS_IOC_FSGETXATTR, bytes(28)))
    except OSError:
        return 0
    return project if flags & FS_XFLAG_PROJINHERIT else 0


def mark(path: str, number: int) -> None:
    """Give a directory and all in it a project number (OSError); the directory itself last, so that half is nothing.

    Links and special files are left out, as xfs_quota does, and so is what is mounted below.
    """
    real = os.path.realpath(path)
    points = owned_files.mounts_below(real, read_text(owned_files.MOUNTS) or "")
    for entry in owned_files.walk(path, {path + point[len(real) :] for point in points if point != real}):
        folder = stat.S_ISDIR(entry.info.st_mode)
        if entry.name != "." and (folder or stat.S_ISREG(entry.info.st_mode)):
            # by its open folder, in whose place no link can be put
            _mark(f"/proc/self/fd/{entry.dir_fd}/{entry.name}", number, folder)
    _mark(path, number, True)


def _mark(path: str, number: int, folder: bool) -> None:
    try:
        flags, size, extents, project, copies = FSXATTR.unpack(_xattr(path, FS_IOC_FSGETXATTR, bytes(28)))
        wanted = flags | (FS_XFLAG_PROJINHERIT if folder else 0)
        if (flags, project) != (wanted, number):
            _xattr(path, FS_IOC_FSSETXATTR, FSXATTR.pack(wanted, size, extents, number, copies))
    except FileNotFoundError:
        # somebody works in there
        pass


def _xattr(path: str, request: int, block: bytes) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(handle, request, block)
    finally:
        os.close(handle)


def _usage(device: str, kind: str) -> dict[int, Usage]:
    found = {}
    number = 0
    while number <= LAST_NUMBER:
        buffer = ctypes.create_string_buffer(DQBLK.size)
        try:
            _quotactl(Q_GETNEXTQUOTA, kind, device, number, buffer)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.ENOENT):
                break
            raise
        hard, soft, used, _ihard, _isoft, _files, ends, _iends, _valid, number = DQBLK.unpack(buffer.raw)
        found[number] = Usage(-(-used // 1024), Limit(soft, hard), ends)
        number += 1
    return found


def _grace(device: str, kind: str) -> int:
    buffer = ctypes.create_string_buffer(24)
    _quotactl(Q_GETINFO, kind, device, 0, buffer)
    return int(struct.unpack_from("=Q", buffer)[0])


def _quotactl(command: int, kind: str, device: str, number: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    request = ctypes.c_int((command << 8) | TYPES[kind])
    if _LIBC.quotactl(request, os.fsencode(device), ctypes.c_int(number), buffer):
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, os.strerror(number_of_error), device)
