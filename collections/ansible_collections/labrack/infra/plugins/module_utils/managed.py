# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What labrack manages on a node: planners note it while they plan, and later it is compared with the node.

Pure. A *ledger* is the text of what one module manages. Something managed has a kind (one of :data:`KINDS`), a name,
and attributes as the last run left them, in the form of ``managed_observe.look``. Three of them say how it is looked
at: ``how`` a file is, see :data:`STAT`, ``without`` which of its lines, and ``among`` which groups of a user, or which
users of a group.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

KINDS = ("file", "directory", "package", "unit", "mount", "user", "group", "sysctl", "preference")
#: Of a file with secrets, or a big one, size, inode and time are remembered, and nothing of what is in it.
STAT = "stat"
#: Of any other a digest is, whoever may read it.
TEXT = "text"
#: Of a file that others write to as well, only these lines count.
LINES = "lines"
#: What says how something is looked at.
HOW = frozenset({"how", "without", "among"})
SCHEMA = 1

#: Attributes by kind and name.
Managed = dict[tuple[str, str], dict[str, Any]]

_collector: ContextVar[Managed | None] = ContextVar("labrack_managed", default=None)


@dataclass(frozen=True)
class Drift:
    """Something that is not as the last run left it: ``what`` in words, and the attributes that differ.

    No attributes say that it is not there at all.
    """

    kind: str
    name: str
    what: str
    attributes: tuple[str, ...] = ()


@contextmanager
def collected() -> Iterator[Managed]:
    """Collect what is noted while the block runs; nested blocks have their own."""
    noted: Managed = {}
    token = _collector.set(noted)
    try:
        yield noted
    finally:
        _collector.reset(token)


def note(kind: str, name: str, **attributes: Any) -> None:
    """Note that the node shall have this, or nothing where nobody collects; what is noted last counts.

    Attributes of files, directories, mounts, users, groups and kernel settings are read from the node afterwards.
    Others are those that the node has, as a change that waits for consent is no drift.
    """
    noted = _collector.get()
    if noted is not None:
        noted[kind, name] = attributes


def note_lines(path: str, lines: Sequence[str]) -> None:
    """Note a file of which only some lines are managed; a line counts wherever it stands."""
    note("file", path, how=LINES, lines=sorted({digest(line) for line in lines if line}))


def note_packages(names: Sequence[str]) -> None:
    """Note packages that shall be there, in whatever version."""
    for name in names:
        note("package", name)


def digest(line: str) -> str:
    """Return the digest by which a line is known."""
    return hashlib.sha256(line.encode()).hexdigest()[:16]


def render(managed: Managed) -> str:
    """Return the ledger's text, the same for the same things."""
    items = [{"kind": kind, "name": name, **managed[kind, name]} for kind, name in sorted(managed)]
    return json.dumps({"schema": SCHEMA, "items": items}, indent=1, sort_keys=True) + "\n"


def parse(text: str) -> Managed:
    """Return what a ledger's text holds (ValueError for a damaged one)."""
    try:
        document = json.loads(text)
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']}")
        return {(item.pop("kind"), item.pop("name")): item for item in document["items"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no ledger: {error!r}") from None


def merge(ledgers: Sequence[Managed]) -> Managed:
    """Return what several modules manage; of what two of them do, the later one's attributes count."""
    found: Managed = {}
    for ledger in ledgers:
        for key, attributes in ledger.items():
            before = found.get(key, {})
            # a file that is looked at in another way has none of the other's attributes
            found[key] = {**before, **attributes} if before.get("how") == attributes.get("how") else dict(attributes)
    return found


def compare(managed: Managed, seen: Managed) -> list[Drift]:
    """Return what differs, in the order of the names; an attribute that was not looked at is passed over."""
    found = []
    for kind, name in sorted(managed, key=lambda key: (KINDS.index(key[0]), key[1])):
        there = seen.get((kind, name))
        if there is None:
            found.append(Drift(kind, name, _GONE.get(kind, "removed")))
            continue
        wanted = managed[kind, name]
        keys = [key for key in wanted if key not in HOW and key in there and there[key] != wanted[key]]
        if "type" in keys:
            keys = ["type"]
        if keys:
            words = dict.fromkeys(_words(key, wanted[key], there) for key in keys)
            found.append(Drift(kind, name, "; ".join(words), tuple(keys)))
    return found


def counts(managed: Managed) -> dict[str, int]:
    """Return how many of each kind there are, in the order of :data:`KINDS`."""
    kinds = [kind for kind, _name in managed]
    return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


_GONE = {"unit": "not installed any more", "mount": "not mounted", "sysctl": "not known to the kernel any more"}


def _words(key: str, wanted: Any, there: Mapping[str, Any]) -> str:
    found = there[key]
    if key == "sha256":
        return "content changed"
    if key == "stat":
        return "written anew"
    if key == "type":
        return f"is no {wanted} any more but a {found}"
    if key == "lines":
        return f"{len(set(wanted) - set(found))} of labrack's {len(wanted)} lines changed or removed"
    if key == "active":
        return f"stopped ({there['state']})" if wanted else "started"
    if key == "enabled":
        return "masked" if there.get("masked") else f"not started at boot any more ({there.get('file') or 'disabled'})"
    if key == "masked":
        return "not masked any more"
    if key == "held":
        return "hold lifted"
    if key == "locked":
        return "unlocked" if wanted else "locked"
    if key in ("groups", "members"):
        less, more = ("left group", "joined group") if key == "groups" else ("without", "with")
        left, joined = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        return ", ".join([*(f"{less} {name}" for name in left), *(f"{more} {name}" for name in joined)])
    if isinstance(wanted, bool):
        wanted, found = ("yes" if value else "no" for value in (wanted, found))
    return f"{key.replace('_', ' ')} {wanted or 'none'} → {found if found not in ('', None) else 'none'}"
