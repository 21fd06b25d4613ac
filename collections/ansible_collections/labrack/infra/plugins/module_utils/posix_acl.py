# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""ACLs where the kernel keeps them: what new files in a directory get, and whose numbers are in them. See acl(5).

The notation is that of the kernel's extended attributes (``include/uapi/linux/posix_acl_xattr.h``), so no tool is
needed. Standard library only, no Ansible import.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from typing import Callable, Optional

DEFAULT = "system.posix_acl_default"
#: The attribute of what a file allows, and of what a directory hands down.
ATTRIBUTES = ("system.posix_acl_access", DEFAULT)
VERSION = 2
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
LETTERS = {USER_OBJ: "u", USER: "u", GROUP_OBJ: "g", GROUP: "g", MASK: "m", OTHER: "o"}
#: What an entry without a name has for one.
NOBODY = 0xFFFFFFFF
_HEAD, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")

#: An ACL: permissions (0 to 7) by tag and number.
Acl = Mapping["tuple[int, int]", int]
Renumber = Callable[[int], Optional[int]]


def for_group(mode: int, there: Acl) -> Acl:
    """Return the default ACL by which a group shares a directory of this mode; further entries that are there stay."""
    acl = {**there, (USER_OBJ, NOBODY): 7, (GROUP_OBJ, NOBODY): 7, (OTHER, NOBODY): mode & 7}
    if any(tag in (USER, GROUP) for tag, _number in acl):
        acl[MASK, NOBODY] = 7
    return acl


def words(acl: Acl) -> str:
    """Return an ACL as getfacl prints it, ``u::rwx,g::rwx,o::---``; ``none`` for none."""
    entries = []
    for (tag, number), bits in sorted(acl.items()):
        letters = "".join(letter if bits & bit else "-" for letter, bit in zip("rwx", (4, 2, 1)))
        entries.append(f"{LETTERS[tag]}:{'' if number == NOBODY else number}:{letters}")
    return ",".join(entries) or "none"


def pack(acl: Acl) -> bytes:
    """Return an ACL in the kernel's notation."""
    entries = b"".join(_ENTRY.pack(tag, bits, number) for (tag, number), bits in sorted(acl.items()))
    return _HEAD.pack(VERSION) + entries


def unpack(block: bytes) -> Acl:
    """Return the ACL in the kernel's notation; ValueError for another version of it."""
    if _HEAD.unpack_from(block)[0] != VERSION:
        raise ValueError("an ACL of an unknown version")
    return {(tag, number): bits for tag, bits, number in _ENTRY.iter_unpack(block[_HEAD.size :])}


def renumbered(block: bytes, user: Renumber, group: Renumber) -> bytes | None:
    """Return an ACL in the kernel's notation with other numbers, None where none of its entries has one that changes.

    ``user`` and ``group`` return the number that takes the place of another, None for none. Of two entries that come
    to have one number the union of what they allow is kept.
    """
    if len(block) < _HEAD.size or _HEAD.unpack_from(block)[0] != VERSION:
        return None
    entries: dict[tuple[int, int], int] = {}
    changed = False
    for (tag, number), allowed in unpack(block).items():
        other = user(number) if tag == USER else group(number) if tag == GROUP else None
        changed = changed or other is not None
        key = (tag, number if other is None else other)
        entries[key] = entries.get(key, 0) | allowed
    return pack(entries) if changed else None


def read(path: str) -> Acl | None:
    """Return the default ACL of a directory, empty for none; None where the file system has no ACLs. OSError."""
    try:
        return unpack(os.getxattr(path, DEFAULT))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return {}
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise


def write(path: str, acl: Acl) -> None:
    """Give a directory this default ACL (OSError)."""
    os.setxattr(path, DEFAULT, pack(acl))
