# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read and rewrite POSIX ACLs where the kernel keeps them, in extended attributes: no tool is needed.

The layout is that of Linux' ``include/uapi/linux/posix_acl_xattr.h``: a version, then entries of tag, permissions, id.
"""

from __future__ import annotations

import struct
from typing import Callable, Optional

#: The attribute of what a file allows, and of what a directory hands down.
ATTRIBUTES = ("system.posix_acl_access", "system.posix_acl_default")
VERSION = 2
#: Tags of entries for a user and for a group by number; from posix_acl.h.
USER, GROUP = 0x02, 0x08
_HEADER, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")

Renumber = Callable[[int], Optional[int]]


def renumbered(acl: bytes, user: Renumber, group: Renumber) -> bytes | None:
    """Return an ACL with other numbers, None where none of its entries has one that changes.

    ``user`` and ``group`` return the number that takes the place of another, None for none. Of two entries that come
    to have one number the union of what they allow is kept.
    """
    if len(acl) < _HEADER.size or _HEADER.unpack_from(acl)[0] != VERSION:
        return None
    entries: dict[tuple[int, int], int] = {}
    changed = False
    for tag, allowed, number in _ENTRY.iter_unpack(acl[_HEADER.size :]):
        other = user(number) if tag == USER else group(number) if tag == GROUP else None
        changed = changed or other is not None
        key = (tag, number if other is None else other)
        entries[key] = entries.get(key, 0) | allowed
    if not changed:
        return None
    # the kernel wants them by tag
    return _HEADER.pack(VERSION) + b"".join(
        _ENTRY.pack(tag, allowed, number) for (tag, number), allowed in sorted(entries.items())
    )
