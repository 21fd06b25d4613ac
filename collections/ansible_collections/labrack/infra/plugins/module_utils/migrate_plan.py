# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan how a user gets another number on a node: account, own group, and the files that have the old numbers.

Pure. The files go first and the account after them: as long as the account has the old number, it tells a run that
was interrupted what is left. What is under way is also kept in a file on the node, since another node's old number is
forgotten once that node is done. A number of a file changes only when it is the user's: where the old number is also
somebody else's on another node, files in shared directories stay as they are outside the user's home.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import (
    FIRST_NUMBER,
    LAST_NUMBER,
    SUBID_FILES,
    SubidRange,
    User,
    wanted_range,
)

FOLDER = "/var/lib/labrack/uid_migrate"


@dataclass(frozen=True)
class Span:
    """Numbers that become others, ``count`` from ``first`` on: the first becomes ``to``, the second ``to`` + 1, …

    ``within``: only for files in these directories, if there are any. ``outside``: not for files in these.
    """

    first: int
    to: int
    count: int = 1
    within: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    def renumber(self, number: int, path: str) -> int | None:
        """Return what becomes of a number of the file at ``path``, None where it stays."""
        if not self.first <= number < self.first + self.count:
            return None
        if self.within and not any(inside(path, folder) for folder in self.within):
            return None
        if any(inside(path, folder) for folder in self.outside):
            return None
        return self.to + number - self.first


def renumber(spans: Iterable[Span], number: int, path: str) -> int | None:
    """Return what becomes of a number of the file at ``path``, None where it stays."""
    for span in spans:
        other = span.renumber(number, path)
        if other is not None:
            return other
    return None


@dataclass(frozen=True)
class Wanted:
    """What the user shall have; ``gid`` None leaves the own group where it is."""

    name: str
    uid: int
    gid: int | None = None


@dataclass(frozen=True)
class Survey:
    """What the lab as a whole knows: the numbers that the user has on any node, and who else has which number where.

    ``uids`` and ``gids`` (of the own group) do not hold the new ones. ``others`` maps a UID, ``other_groups`` a GID to
    words such as "bob on node1", also those that the user has on no node any more: a run may have been interrupted.
    """

    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    others: Mapping[int, str] = field(default_factory=dict)
    other_groups: Mapping[int, str] = field(default_factory=dict)
    #: hosts on which the user has the new number already
    done: tuple[str, ...] = ()


def survey(facts: Mapping[str, Mapping[str, Any]], wanted: Wanted) -> Survey:
    """Return what the ``labrack_node`` facts of all hosts say about a user's numbers."""
    uids: dict[int, None] = {}
    gids: dict[int, None] = {}
    others: dict[int, list[str]] = {}
    groups: dict[int, list[str]] = {}
    done = []
    for host, node in facts.items():
        for user in node["users"]:
            if user["name"] != wanted.name:
                others.setdefault(user["uid"], []).append(f"{user['name']} on {host}")
            elif user["uid"] == wanted.uid:
                done.append(host)
            else:
                uids[user["uid"]] = None
        for group in node["groups"]:
            if group["name"] != wanted.name:
                groups.setdefault(group["gid"], []).append(f"{group['name']} on {host}")
            elif group["gid"] != wanted.gid:
                gids[group["gid"]] = None
    return Survey(
        tuple(uids),
        tuple(gids) if wanted.gid is not None else (),
        {number: ", ".join(names) for number, names in others.items() if number >= FIRST_NUMBER},
        {number: ", ".join(names) for number, names in groups.items() if number >= FIRST_NUMBER},
        tuple(done),
    )


@dataclass(frozen=True)
class Record:
    """What is under way on a node: the new numbers, the old ones of any node, and those that are theirs here."""

    uid: int
    gid: int | None
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    here_uids: tuple[int, ...] = ()
    here_gids: tuple[int, ...] = ()
    #: starts of the ranges for containers that move along, by file
    ranges: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, file: FileState | None) -> Record | None:
        """Return the record in a file, None for no file (ValueError, KeyError, TypeError for a damaged one)."""
        if file is None:
            return None
        found = json.loads(file.text)
        ranges = {str(name): int(start) for name, start in found["ranges"].items()}
        uids, gids, here_uids, here_gids = (tuple(found[key]) for key in ("uids", "gids", "here_uids", "here_gids"))
        return cls(found["uid"], found["gid"], uids, gids, here_uids, here_gids, ranges)

    def file(self) -> FileState:
        """Return the record as a file."""
        content = {
            "uid": self.uid,
            "gid": self.gid,
            "uids": list(self.uids),
            "gids": list(self.gids),
            "here_uids": list(self.here_uids),
            "here_gids": list(self.here_gids),
            "ranges": dict(self.ranges),
        }
        return FileState(json.dumps(content, indent=2, sort_keys=True) + "\n", "0600")


@dataclass(frozen=True)
class Count:
    """Files and the bytes that they hold."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Node:
    """What a node has of the user.

    ``uid``, ``gid`` (of the own group) and ``home`` are None where there is none. ``holders``: who has the new UID,
    ``group_holders``: the new GID. ``files``: those that would change, by top directory; ``stray``: a file that has
    a new number though nobody here has it, empty for none. ``unclear``: files that are the user's or another's.
    """

    uid: int | None = None
    gid: int | None = None
    home: str | None = None
    holders: tuple[str, ...] = ()
    group_holders: tuple[str, ...] = ()
    processes: int = 0
    jobs: str = ""
    ranges: Mapping[str, tuple[SubidRange, ...]] = field(default_factory=dict)
    record: FileState | None = None
    files: Mapping[str, Count] = field(default_factory=dict)
    stray: str = ""
    unclear: int = 0


@dataclass(frozen=True)
class Places:
    """Where a node has shared directories: ``shared`` are the folders that hold them here, ``home`` the user's there.

    ``skip`` are mount points that another host walks, ``also`` those of other file systems that this one walks.
    """

    shared: tuple[str, ...] = ()
    home: str = ""
    skip: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


def begun(node: Node, wanted: Wanted, seen: Survey) -> Record:
    """Return what there is to do on a node, from what is there, what was under way, and what other nodes have."""
    before = Record.read(node.record)
    uids, gids = dict.fromkeys(seen.uids), dict.fromkeys(seen.gids)
    here_uids = dict.fromkeys(one for one in seen.uids if one == node.uid)
    here_gids = dict.fromkeys(one for one in seen.gids if one == node.gid)
    ranges: dict[str, int] = {}
    if before is not None and before.uid == wanted.uid:
        uids.update(dict.fromkeys(before.uids))
        gids.update(dict.fromkeys(before.gids))
        here_uids.update(dict.fromkeys(before.here_uids))
        here_gids.update(dict.fromkeys(before.here_gids))
        ranges.update(before.ranges)
    for file, there in node.ranges.items():
        derived = [one for one in there for old in uids if one == _range(wanted.name, old)]
        if len(there) == 1 and derived:
            ranges[file] = derived[0].start
    return Record(wanted.uid, wanted.gid, tuple(uids), tuple(gids), tuple(here_uids), tuple(here_gids), ranges)


def _range(name: str, uid: int) -> SubidRange:
    return wanted_range(User(name, uid, uid, name))


def spans(node: Node, wanted: Wanted, seen: Survey, places: Places) -> tuple[list[Span], list[Span]]:
    """Return what becomes of the UIDs and of the GIDs of files on a node."""
    record = begun(node, wanted, seen)
    users = [
        one
        for old in record.uids
        for one in _spans(old, wanted.uid, old in record.here_uids, old in seen.others, places)
    ]
    groups: list[Span] = []
    if wanted.gid is not None:
        groups = [
            one
            for old in record.gids
            for one in _spans(old, wanted.gid, old in record.here_gids, old in seen.other_groups, places)
        ]
    target = _range(wanted.name, wanted.uid)
    for file, start in record.ranges.items():
        (users if file == SUBID_FILES[0] else groups).append(Span(start, target.start, target.count))
    return users, groups


def _spans(old: int, to: int, here: bool, contested: bool, places: Places) -> list[Span]:
    """``here``: the old number is the user's on this node; ``contested``: it is somebody else's on some node."""
    found = []
    if here:
        found.append(Span(old, to, outside=places.shared if contested else ()))
    if places.shared and (contested or not here):
        # what came from other nodes lies in shared directories; if it may be another's, only the home is sure
        within = (places.home,) if contested and places.home else () if contested else places.shared
        if within:
            found.append(Span(old, to, within=within))
    return found


def refusals(node: Node, wanted: Wanted, seen: Survey, host: str) -> list[str]:
    """Return every reason not to begin on a node called ``host``, each with its mend."""
    found = []
    before = Record.read(node.record)
    if not FIRST_NUMBER <= wanted.uid <= LAST_NUMBER:
        found.append(f"uid {wanted.uid} is none for people. Mend: choose one from {FIRST_NUMBER} to {LAST_NUMBER}.")
    if node.uid is not None and node.uid < FIRST_NUMBER:
        found.append(f"{wanted.name} is an account of the system on {host}. Mend: leave it.")
    if node.holders:
        found.append(f"uid {wanted.uid} belongs to {node.holders[0]} on {host}. Mend: choose another.")
    if wanted.gid is not None and node.group_holders:
        found.append(f"gid {wanted.gid} belongs to group {node.group_holders[0]} on {host}. Mend: say another gid.")
    if before is not None and before.uid != wanted.uid:
        mend = f"finish it with -e uid={before.uid} first"
        found.append(f"on {host} a move of {wanted.name} to uid {before.uid} is under way. Mend: {mend}.")
    elif node.stray and before is None and not seen.done:
        mend = "choose another number, or give that file to its owner first"
        found.append(f"{node.stray} on {host} has the new number already, of somebody who left. Mend: {mend}.")
    if node.processes:
        mend = "end them, or wait"
        found.append(f"{wanted.name} has {node.processes} processes on {host}. Mend: {mend}.")
    if node.jobs:
        found.append(f"{node.jobs}. Mend: wait for them, or scancel --user {wanted.name}.")
    return found


def plan(node: Node, wanted: Wanted, seen: Survey, phase: str = "all") -> list[Change]:
    """Return what is off, in the order in which it can be applied, for a node without :func:`refusals`.

    With the ``phase`` move the record stays, and finish only takes it away. Who holds shared files keeps it until all
    nodes are done: on a server where the user has no account nothing else tells the new number from a stranger's.
    Steps: ``("begin",)``, ``("files", top)``, ``("run", *argv)``, ``("end",)``.
    """
    path = record_path(wanted.name)
    end = Change(f"file {path}", "removed at the end", step=("end",))
    if phase == "finish":
        return [end] if node.record is not None else []
    record = begun(node, wanted, seen)
    changes = []
    subject = f"user {wanted.name}"
    for top, count in sorted(node.files.items()):
        summary = f"{count.files} file{'' if count.files == 1 else 's'}, {count.bytes} bytes, to uid {wanted.uid}"
        changes.append(Change(f"files in {top}", summary, step=("files", top)))
    if wanted.gid is not None and node.gid is not None and node.gid != wanted.gid:
        argv = ("groupmod", "--gid", str(wanted.gid), wanted.name)
        changes.append(Change(f"group {wanted.name}", f"gid {node.gid} → {wanted.gid}", step=("run", *argv)))
    if node.uid is not None and node.uid != wanted.uid:
        argv = ("usermod", "--uid", str(wanted.uid), wanted.name)
        changes.append(Change(subject, f"uid {node.uid} → {wanted.uid}", step=("run", *argv)))
    target = _range(wanted.name, wanted.uid)
    for file, start in sorted(record.ranges.items()):
        there = node.ranges.get(file, ())
        option = file.rpartition("/")[2]
        if any(one.start == start for one in there):
            last = start + target.count - 1
            argv = ("usermod", f"--del-{option}s", f"{start}-{last}", wanted.name)
            changes.append(Change(f"file {file}", f"numbers from {start} on taken away", step=("run", *argv)))
        if target not in there:
            numbers = f"{target.start}-{target.start + target.count - 1}"
            argv = ("usermod", f"--add-{option}s", numbers, wanted.name)
            changes.append(Change(f"file {file}", f"numbers from {target.start} on added", step=("run", *argv)))
    if phase == "all" and (changes or node.record is not None):
        changes.append(end)
    if changes and node.record is None:
        changes.insert(0, Change(f"file {path}", "created, what is under way", step=("begin",)))
    return changes


def record_path(name: str) -> str:
    """Return the file that keeps what is under way for a user on a node."""
    return f"{FOLDER}/{name}.json"


def top_of(path: str) -> str:
    """Return the directory of / in which a path lies."""
    return "/" + path.strip("/").partition("/")[0]


def unclear(number: int, seen: Survey, record: Record, moved: int | None, shared: Collection[str], path: str) -> bool:
    """Return whether a file of this UID may be the user's, but may as well be another's, and stays."""
    return (
        moved is None
        and number in record.uids
        and number in seen.others
        and any(inside(path, folder) for folder in shared)
    )
