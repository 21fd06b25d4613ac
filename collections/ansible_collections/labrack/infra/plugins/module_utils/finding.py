# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is wrong in an inventory, and the plain picture of an inventory that the rules look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

#: Stands for a value that must not be shown.
HIDDEN = "(not shown)"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, and the mend; both texts are sentences without their full stop.

    ``path`` leads to the value, ``("lab_users", 1, "uid")``, or is ``("group"|"host", name)``.
    ``value`` is the text to show, empty for none. ``hosts`` are those that have it; none: the lab as a whole.
    """

    path: tuple[str | int, ...]
    value: str
    problem: str
    mend: str
    hosts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return the path as one writes it, ``lab_users[1].uid``."""
        if self.path[0] in ("group", "host"):
            return f"{self.path[0]} {self.path[1]}"
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")

    def line(self, place: str = "", everywhere: bool = True) -> str:
        """Return it as one line; ``place`` is ``file:line`` where known, the hosts are named unless ``everywhere``."""
        value = f" = {self.value}" if self.value else ""
        hosts = "" if everywhere or not self.hosts else f" ({', '.join(self.hosts)})"
        return f"{place + '  ' if place else ''}{self.key}{value}{hosts}: {self.problem}. Mend: {self.mend}."


@dataclass(frozen=True)
class Inventory:
    """An inventory as the rules see it.

    ``hosts``: checked variables by host, defaults included; a variable that is of a wrong type is left out.
    ``groups``: the hosts of each group, children included. ``facts``: ``labrack_node`` by host, where known.
    """

    hosts: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, Sequence[str]]
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def members(self, group: str) -> list[str]:
        """Return the hosts of a group in order, none for a group that is not there."""
        return list(self.groups.get(group, ()))


def shown(value: object) -> str:
    """Return a value as text for a message, cut to a readable length."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def duplicates(values: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    """Yield (place, place of the first equal one) for every value that came before; None counts as no value."""
    first: dict[Hashable, int] = {}
    for place, value in enumerate(values):
        if value is not None and first.setdefault(value, place) != place:
            yield place, first[value]


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with equal ones of several hosts as one, in order."""
    hosts: dict[Finding, list[str]] = {}
    for finding in findings:
        hosts.setdefault(replace(finding, hosts=()), []).extend(finding.hosts)
    return [replace(finding, hosts=tuple(Counter(names))) for finding, names in hosts.items()]
