# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""OpenPGP certificates without gpg: ASCII armour off and on, and the fingerprints of the keys in a file.

Formats: RFC 9580 (https://www.rfc-editor.org/rfc/rfc9580), which replaces RFC 4880. Standard library only, pure.
Nothing here checks a signature: that is apt's work, with the key whose fingerprint was checked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import textwrap
from collections.abc import Iterator

PUBLIC_KEY = 6
SECRET_KEY = 5

_BLOCK = re.compile(
    r"^-----BEGIN PGP (?P<kind>[A-Z ,/0-9]+)-----[ \t]*\n(?P<headers>(?:[^\n:]+: [^\n]*\n)*)[ \t]*\n"
    r"(?P<body>.*?)^-----END PGP (?P=kind)-----",
    re.MULTILINE | re.DOTALL,
)


class OpenpgpError(ValueError):
    """What was read is not an OpenPGP certificate, or a damaged one; the message says what is off."""


def dearmor(data: bytes) -> bytes:
    """Return the packets of a certificate, armoured (one block or several) or binary; OpenpgpError otherwise."""
    if data[:1] and data[0] & 0x80:
        return data
    text = data.decode("ascii", "replace").replace("\r\n", "\n")
    blocks = list(_BLOCK.finditer(text))
    if not blocks:
        raise OpenpgpError("no OpenPGP block in it")
    packets = b""
    for block in blocks:
        if block["kind"] != "PUBLIC KEY BLOCK":
            raise OpenpgpError(f"it holds a {block['kind']}, not a PUBLIC KEY BLOCK")
        packets += _decode(block["body"])
    return packets


def armor(packets: bytes) -> str:
    """Return packets as one armoured block, which apt reads from a file whose name ends in ``.asc``."""
    lines = textwrap.wrap(base64.b64encode(packets).decode("ascii"), 64)
    check = base64.b64encode(_crc24(packets).to_bytes(3, "big")).decode("ascii")
    body = "\n".join([*lines, f"={check}"])
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{body}\n-----END PGP PUBLIC KEY BLOCK-----\n"


def fingerprints(data: bytes) -> list[str]:
    """Return the fingerprints of the primary keys in a file, armoured or binary, as upper-case hex, in order.

    40 digits for version 4 keys, 64 for version 6. OpenpgpError when there is none, for a secret key, and for a file
    that is cut off.
    """
    found = []
    for tag, body in _packets(dearmor(data)):
        if tag == SECRET_KEY:
            raise OpenpgpError("it holds a secret key")
        if tag == PUBLIC_KEY:
            found.append(_fingerprint(body))
    if not found:
        raise OpenpgpError("no public key in it")
    return found


def normal(fingerprint: str) -> str:
    """Return a fingerprint as :func:`fingerprints` writes it; OpenpgpError for a text that is none."""
    text = re.sub(r"[\s:]", "", fingerprint).upper()
    text = text[2:] if text.startswith("0X") else text
    if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", text):
        raise OpenpgpError(f"{fingerprint!r} is not a fingerprint, which has 40 or 64 hexadecimal digits")
    return text


def _decode(body: str) -> bytes:
    lines = body.split()
    wanted = lines.pop()[1:] if lines and re.fullmatch(r"=[A-Za-z0-9+/]{4}", lines[-1]) else None
    try:
        packets = base64.b64decode("".join(lines), validate=True)
    except binascii.Error as error:
        raise OpenpgpError(f"its armour is damaged: {error}") from None
    if wanted and base64.b64decode(wanted) != _crc24(packets).to_bytes(3, "big"):
        raise OpenpgpError("its armour's checksum is wrong")
    return packets


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and body of each packet (RFC 9580, section 4.2)."""
    place = 0
    while place < len(data):
        first = data[place]
        if not first & 0x80:
            raise OpenpgpError("not an OpenPGP packet")
        if first & 0x40:
            tag = first & 0x3F
            place, size = _new_length(data, place + 1)
        else:
            tag = first >> 2 & 0x0F
            width = (1, 2, 4, 0)[first & 3]
            if not width:
                raise OpenpgpError("a packet of unknown length")
            size = int.from_bytes(data[place + 1 : place + 1 + width], "big")
            place += 1 + width
        if place + size > len(data):
            raise OpenpgpError("it is cut off")
        yield tag, data[place : place + size]
        place += size


def _new_length(data: bytes, place: int) -> tuple[int, int]:
    """Return where a packet's body begins, and its length."""
    head = data[place : place + 5]
    if not head:
        raise OpenpgpError("it is cut off")
    if head[0] < 192:
        return place + 1, head[0]
    if head[0] < 224 and len(head) > 1:
        return place + 2, ((head[0] - 192) << 8) + head[1] + 192
    if head[0] == 255 and len(head) == 5:
        return place + 5, int.from_bytes(head[1:], "big")
    raise OpenpgpError("a packet of unknown length")


def _fingerprint(body: bytes) -> str:
    """The fingerprint of a public key packet (RFC 9580, section 5.5.4)."""
    version = body[0] if body else 0
    if version == 4:
        framed = b"\x99" + len(body).to_bytes(2, "big") + body
        return hashlib.sha1(framed, usedforsecurity=False).hexdigest().upper()
    if version == 6:
        return hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    raise OpenpgpError(f"a key of version {version}, not 4 or 6")


def _crc24(data: bytes) -> int:
    """The checksum of armour (RFC 9580, section 6.1.1)."""
    crc = 0xB704CE
    for octet in data:
        crc ^= octet << 16
        for _bit in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc
