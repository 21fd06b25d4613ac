# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who listens on which TCP port, by ``/proc/net``. Standard library only, no Ansible import."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import NamedTuple

from ansible_collections.labrack.infra.plugins.module_utils.node_io import owner_name, read_text

#: State of a listening socket in /proc/net/tcp (include/net/tcp_states.h).
_LISTEN = "0A"


class Listener(NamedTuple):
    """An address that is listened on, "0.0.0.0" and "::" for all of them, and the number of the user who does."""

    address: str
    uid: int


def listening(root: Path = Path("/")) -> dict[int, list[Listener]]:
    """Return the TCP ports that somebody listens on."""
    found: dict[int, list[Listener]] = {}
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in (read_text(root / "proc/net" / name) or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 7 and fields[3] == _LISTEN:
                address, _colon, port = fields[1].partition(":")
                found.setdefault(int(port, 16), []).append(Listener(_address(address, family), int(fields[7])))
    return found


def owners(root: Path = Path("/")) -> dict[int, str]:
    """Return the ports with the name of a user who listens there."""
    return {port: owner_name(sockets[-1].uid) for port, sockets in listening(root).items()}


def _address(text: str, family: socket.AddressFamily) -> str:
    """An address of /proc/net/tcp: words of 32 bits, each in the machine's byte order."""
    words = [int(text[place : place + 8], 16) for place in range(0, len(text), 8)]
    return socket.inet_ntop(family, b"".join(word.to_bytes(4, sys.byteorder) for word in words))
