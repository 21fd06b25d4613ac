# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host keys of machines: asked for by ssh-keyscan, shown as fingerprints, pinned in a file of the inventory."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from .shell import UserError

#: The file in the inventory's folder; Ansible reads no .txt there as an inventory.
FILE = "known_hosts.txt"
#: Seconds for a machine to answer.
PATIENCE = 8
#: What ssh is told, so that these keys hold and no others.
SSH_ARGUMENTS = (
    "-o 'UserKnownHostsFile=\"{{ inventory_dir }}/" + FILE + "\"' -o GlobalKnownHostsFile=/dev/null "
    "-o StrictHostKeyChecking=yes"
)
#: Where a machine says itself which its key is.
ON_THE_MACHINE = "for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done"


@dataclass(frozen=True)
class Address:
    """Where ssh reaches a machine."""

    host: str
    port: int = 22

    @property
    def pattern(self) -> str:
        """What a line of a known_hosts file begins with."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


@dataclass(frozen=True)
class HostKey:
    """A host key, without the machine's name: its type and the key itself, in base64."""

    kind: str
    key: str

    @property
    def fingerprint(self) -> str:
        """The fingerprint as ssh shows it."""
        digest = hashlib.sha256(base64.b64decode(self.key)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def address(text: str) -> Address:
    """Read HOST, HOST:PORT or [HOST]:PORT; UserError for anything else."""
    host, _, port = text.rpartition(":") if text.count(":") == 1 or "]:" in text else (text, "", "22")
    host = host.strip("[]")
    if not host or any(character.isspace() or character in "'\"@/\\" for character in host) or host.startswith("-"):
        raise UserError(f"{text}: not an address. Write it as 192.0.2.10, node1.example.org or node1.example.org:2222.")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"{text}: {port} is no port.")
    return Address(host, int(port))


def scan(where: Address) -> list[HostKey]:
    """Ask a machine for its host keys, ed25519 first; UserError where it does not answer."""
    command = ["ssh-keyscan", "-T", str(PATIENCE), "-p", str(where.port), "--", where.host]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=4 * PATIENCE)
    except FileNotFoundError:
        raise UserError("There is no ssh-keyscan here. Install OpenSSH's client.") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{where.host} does not answer ssh on port {where.port}.") from None
    lines = [line.split() for line in done.stdout.splitlines() if line and not line.startswith("#")]
    keys = {HostKey(words[1], words[2]) for words in lines if len(words) == 3}
    if not keys:
        said = [line for line in done.stderr.splitlines() if line and not line.startswith("#")]
        why = f" ({said[-1].strip()})" if said else ""
        raise UserError(
            f"{where.host} does not answer ssh on port {where.port}{why}. See that it is on and runs sshd, "
            "or mend the address."
        )
    return sorted(keys, key=lambda key: (key.kind != "ssh-ed25519", key.kind))


def chosen(name: str, keys: Sequence[HostKey], fingerprints: Collection[str]) -> list[HostKey]:
    """Return those keys of a machine that have one of the fingerprints; UserError where none has."""
    found = [key for key in keys if key.fingerprint in fingerprints]
    if not found:
        seen = ", ".join(key.fingerprint for key in keys)
        raise UserError(
            f"{name} has none of the host keys that were given. It has {seen}. If one of them is its own, which "
            f"`{ON_THE_MACHINE}` on the machine tells, give that; if none is, somebody stands in between."
        )
    return found


def text(pinned: Mapping[Address, Sequence[HostKey]]) -> str:
    """Return lines of a known_hosts file."""
    return "".join(f"{where.pattern} {key.kind} {key.key}\n" for where, keys in pinned.items() for key in keys)
