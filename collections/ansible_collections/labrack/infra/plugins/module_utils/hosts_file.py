# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The text of ``/etc/hosts``: one block with an entry for every node, and no node's name on a loopback address.

Pure functions over text. Debian's installer writes ``127.0.1.1 <name>``, so that daemons of that node would tell the
others to reach them on loopback. Such a line is put behind :data:`MOVED`, from where it can be restored to the letter,
and its names move to the node's entry (``hostname --fqdn`` keeps its answer).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BEGIN = "# BEGIN labrack nodes"
END = "# END labrack nodes"
MOVED = "# labrack moved: "


@dataclass(frozen=True)
class Host:
    """A node: its name, its address (None when not known in this run: an existing entry is kept), further names."""

    name: str
    address: str | None
    aliases: tuple[str, ...] = ()


def block(text: str) -> list[str]:
    """Return the lines of our block in a file's text, with those around it; empty without one."""
    lines = text.splitlines()
    return lines[lines.index(BEGIN) : lines.index(END) + 1] if BEGIN in lines and END in lines else []


def render(text: str, hosts: Iterable[Host]) -> str:
    """Return the file's text with a block of exactly these hosts, sorted by name.

    No hosts: no block, and every moved line is back as it was. Everything else in the file stays to the letter.
    """
    outside, place, old = _take_apart(text)
    entries: list[tuple[Host, str, list[str]]] = []
    for host in sorted(hosts, key=lambda host: host.name):
        if host.address is not None:
            entries.append((host, host.address, [host.name, *host.aliases]))
        elif host.name in old:
            address, names = old[host.name]
            entries.append((host, address, names))
    owners = {name: host.name for host, _address, names in entries for name in names}

    moved: dict[str, list[str]] = {}
    for number, line in enumerate(outside):
        address, names = _fields(line)
        theirs = [name for name in names if _owner(name, owners)] if _loopback(address) else []
        if theirs:
            rest = [name for name in names if name not in theirs]
            outside[number] = (" ".join([address, *rest]) + " " if rest else "") + MOVED + line
            for name in theirs:
                moved.setdefault(_owner(name, owners), []).append(name)
    if entries:
        block = [
            f"{address}\t{' '.join(dict.fromkeys([*moved.get(host.name, []), *names]))}"
            for host, address, names in entries
        ]
        outside[place:place] = [BEGIN, *block, END]
    return "".join(line + "\n" for line in outside)


def conflicts(text: str, hosts: Iterable[Host], block: bool = True) -> list[str]:
    """Return a line for every node whose name the file, outside our block, gives another address first.

    Loopback lines count only without a block (names from DNS): with one, :func:`render` mends them.
    """
    wanted = {name: host.address for host in hosts if host.address for name in (host.name, *host.aliases)}
    found: dict[str, str] = {}
    for line in _take_apart(text)[0]:
        address, names = _fields(line)
        if block and _loopback(address):
            continue
        for name in names:
            found.setdefault(name, address)
    return [
        f"/etc/hosts gives {name} the address {address}, the lab says {wanted[name]}. Mend: take it off that line."
        for name, address in sorted(found.items())
        if name in wanted and address != wanted[name] and (":" in address) == (":" in str(wanted[name]))
    ]


def _take_apart(text: str) -> tuple[list[str], int, dict[str, tuple[str, list[str]]]]:
    """Return the lines outside the block with moved ones restored, the block's place, and its entries by any name."""
    lines = text.splitlines()
    closed = BEGIN in lines and END in lines[lines.index(BEGIN) :]
    outside: list[str] = []
    entries: dict[str, tuple[str, list[str]]] = {}
    place: int | None = None
    inside = False
    for line in lines:
        if line == BEGIN:
            place = len(outside) if place is None else place
            inside = closed
        elif line == END:
            inside = False
        elif inside:
            address, names = _fields(line)
            entries.update(dict.fromkeys(names, (address, names)))
        else:
            outside.append(line.partition(MOVED)[2] if MOVED in line else line)
    return outside, len(outside) if place is None else place, entries


def _fields(line: str) -> tuple[str, list[str]]:
    address, *names = line.partition("#")[0].split() or [""]
    return address, names


def _loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


def _owner(name: str, owners: dict[str, str]) -> str:
    """Return the node that a name, or the first label of a long name, belongs to; empty for none."""
    return owners.get(name) or owners.get(name.partition(".")[0], "")
