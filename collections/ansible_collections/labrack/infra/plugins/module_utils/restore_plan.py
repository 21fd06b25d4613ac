# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a restore would do: which snapshot of each set, which files, and what must not be overwritten unasked.

Pure planner, no Ansible import. In homes and checkpoints a file that is newer than the backup's stays, unless asked
otherwise; keys, accounting and headscale of a lab that is in use are replaced only when asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.backup_plan import SETS, BackupError
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.slurm_database import DATABASE, DRAFT
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside

#: Sets that are people's files, restored one by one.
FILE_SETS = ("homes", "checkpoints")
#: Keys, which are put in place; other files of the set only where there is none, since the slurm role writes them.
KEY = re.compile(r"(/etc/munge/munge\.key|/etc/ssh/ssh_host_\w+_key(\.pub)?|/.*\.key|/.*/jwt_hs256[\w.]*)")
#: What picks a database in a dump; in its other lines mariadb-dump begins no word so, as it escapes ends of lines.
PICKS_DATABASE = re.compile(rb"\s*(/\*!\d*\s*)?(USE|(CREATE|DROP|ALTER)\s+(DATABASE|SCHEMA))\b", re.IGNORECASE)
DATABASE_MISSING = "there is no accounting database on this host. Mend: run closet.yml first, which makes it"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a set; ``time`` is in UTC, ``paths`` are the folders and files that it was made of."""

    name: str
    number: str
    time: datetime
    paths: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as ``1a2b3c4d of 2026-11-20 02:30 UTC``."""
        return f"{self.number[:8]} of {self.time:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Entry:
    """A file, folder or link of a snapshot or of the host; ``changed`` in nanoseconds of Unix time."""

    path: str
    kind: str
    size: int = 0
    changed: int = 0


def nanoseconds(text: str) -> int:
    """Return a time of RFC 3339, as restic writes it with up to nine decimals, in nanoseconds of Unix time."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", text)
    if not match:
        raise BackupError(f"restic told a time that can't be read: {text}")
    zone = "+00:00" if match.group(3) == "Z" else match.group(3)
    whole = datetime.fromisoformat(match.group(1) + zone)
    return int(whole.timestamp()) * 10**9 + int((match.group(2) or "0").ljust(9, "0"))


def read_snapshots(text: str) -> list[Snapshot]:
    """Return the snapshots in what ``restic snapshots --json`` prints, the oldest first, one for each set's tag."""
    found = []
    for one in json.loads(text or "null") or []:
        moment = datetime.fromtimestamp(nanoseconds(one["time"]) / 10**9, timezone.utc)
        for name in SETS:
            if name in (one.get("tags") or ()):
                found.append(Snapshot(name, one["id"], moment, tuple(one.get("paths") or ())))
    return sorted(found, key=lambda snapshot: snapshot.time)


def read_entries(lines: Iterable[str]) -> Iterator[Entry]:
    """Yield the entries in the lines that ``restic ls --json`` prints; the first line is about the snapshot."""
    for line in lines:
        one = json.loads(line) if line.startswith("{") else {}
        if "node" in (one.get("struct_type"), one.get("message_type")):
            yield Entry(one["path"], one["type"], int(one.get("size") or 0), nanoseconds(one["mtime"]))


def choose(snapshots: Iterable[Snapshot], names: Iterable[str], which: str, all_sets: bool) -> dict[str, Snapshot]:
    """Return the snapshot of each set: the ``latest``, that of a number, or the last one until a day (2026-11-20).

    BackupError where one that was asked for by name is not there, or for a ``which`` that is none of these.
    """
    known = list(snapshots)
    day = re.fullmatch(r"\d{4}-\d\d-\d\d", which)
    if which != "latest" and not day and not re.fullmatch(r"[0-9a-f]{8,64}", which):
        raise BackupError(f"snapshot is {which}. Mend: write latest, a day as 2026-11-20, or a snapshot's number")
    chosen: dict[str, Snapshot] = {}
    for one in known:
        if which == "latest" or (day and f"{one.time:%Y-%m-%d}" <= which) or one.number.startswith(which):
            chosen[one.name] = one
    wanted = list(names)
    missing = [name for name in wanted if name not in chosen]
    if missing and (not all_sets or len(missing) == len(wanted)):
        there = ", ".join(sorted({one.name for one in known})) or "nothing"
        raise BackupError(f"no backup of {', '.join(missing)} for snapshot {which}; the repository has {there}")
    return {name: chosen[name] for name in SETS if name in wanted and name in chosen}


@dataclass(frozen=True)
class Compared:
    """A snapshot's files against the host's: paths that are missing, older or newer there, or in each other's way."""

    missing: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    files: int = 0
    size: int = 0

    def chosen(self, overwrite: bool) -> frozenset[str]:
        """Return the paths that a restore puts in place."""
        return frozenset((*self.missing, *self.older, *(self.newer if overwrite else ())))


def compare(entries: Iterable[Entry], found: Mapping[str, Entry]) -> Compared:
    """Compare a snapshot's entries with what the host has at their paths.

    Two files are the same when size and time agree, two links or folders when both are. Folders count as missing
    too, as an empty one is restored; they don't count as files.
    """
    lists: dict[str, list[str]] = {"missing": [], "older": [], "newer": [], "blocked": []}
    files = size = 0
    blocked: set[str] = set()
    for entry in entries:
        files += entry.kind != "dir"
        size += entry.size
        there = found.get(entry.path)
        turned = there is not None and (there.kind == "dir") != (entry.kind == "dir")
        if turned or entry.path.rpartition("/")[0] in blocked:
            # what is below a file can't be there either
            lists["blocked"].append(entry.path)
            blocked.add(entry.path)
        elif there is None:
            lists["missing"].append(entry.path)
        elif there.kind == entry.kind and (
            entry.kind != "file" or (there.size, there.changed) == (entry.size, entry.changed)
        ):
            continue
        else:
            lists["older" if there.changed < entry.changed else "newer"].append(entry.path)
    return Compared(**{name: tuple(paths) for name, paths in lists.items()}, files=files, size=size)


@dataclass(frozen=True)
class Accounts:
    """Accounts of a host or a backup: UIDs by user, GIDs by group, who has a password that works."""

    users: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    passwords: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Observed:
    """The host. ``compared``: the file sets by name. ``keys``: paths that differ, each with whether it is missing.

    ``jobs``: how many the accounting knows, None for no database. ``nodes``: how many headscale has, None without it.
    ``accounts`` and ``saved``: the host's and the backup's. ``target``: what is in the target's folder.
    """

    compared: Mapping[str, Compared] = field(default_factory=dict)
    keys: Mapping[str, bool] = field(default_factory=dict)
    jobs: int | None = None
    nodes: int | None = None
    accounts: Accounts = field(default_factory=Accounts)
    saved: Accounts = field(default_factory=Accounts)
    target: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is asked for: the snapshot of each set, a folder of its own (empty: in place), consent to overwrite."""

    snapshots: Mapping[str, Snapshot]
    target: str = ""
    overwrite: bool = False


def clashes(saved: Accounts, there: Accounts) -> list[str]:
    """Return the names and numbers of a backup that the host has in another way."""
    found = []
    for kind, ours, theirs in (("user", saved.users, there.users), ("group", saved.groups, there.groups)):
        holders = {number: name for name, number in theirs.items()}
        for name, number in sorted(ours.items()):
            if theirs.get(name, number) != number:
                found.append(f"{kind} {name} was {number} and is {theirs[name]} here")
            elif holders.get(number, name) != name:
                found.append(f"{kind} {name} was {number}, which {holders[number]} is here")
    return found


def refusals(observed: Observed, wanted: Wanted) -> list[str]:
    """Return what forbids the restore, all of it, as sentences without their full stop."""
    if wanted.target:
        if observed.target and not wanted.overwrite:
            return [f"{wanted.target} is not empty; name a folder that is, or add -e overwrite=true"]
        return []
    found = []
    ask = "it stays unless you add -e overwrite=true"
    replaced = sorted(path for path, missing in observed.keys.items() if not missing and KEY.fullmatch(path))
    if "cluster_keys" in wanted.snapshots and replaced and observed.jobs != 0 and not wanted.overwrite:
        found.append(f"cluster_keys: the cluster is in use and {', '.join(replaced)} would be replaced; {ask}")
    if "slurm_database" in wanted.snapshots:
        if observed.jobs is None:
            found.append(f"slurm_database: {DATABASE_MISSING}")
        elif observed.jobs and not wanted.overwrite:
            found.append(f"slurm_database: the accounting here has {observed.jobs} jobs; {ask}")
    if "headscale" in wanted.snapshots:
        if observed.nodes is None:
            found.append("headscale: it is not on this host. Mend: run closet.yml first, which installs it")
        elif observed.nodes and not wanted.overwrite:
            found.append(f"headscale: {observed.nodes} nodes are in the one that runs here; {ask}")
    if "registry" in wanted.snapshots:
        found += [f"registry: {clash}" for clash in clashes(observed.saved, observed.accounts)]
    return found


def plan(observed: Observed, wanted: Wanted, sizes: Mapping[str, tuple[int, int]]) -> list[Change]:
    """Return the restore as changes, a set each, in the order in which they are made; ``sizes``: files and bytes.

    BackupError names everything that forbids it.
    """
    found = refusals(observed, wanted)
    if found:
        raise BackupError("nothing was restored: " + "; ".join(found))
    changes = []
    for name, snapshot in wanted.snapshots.items():
        words = _words(name, observed, wanted, *sizes[name])
        if words:
            step = ("target" if wanted.target else "place", name)
            disruption = "restart" if name in ("cluster_keys", "slurm_database", "headscale") else "none"
            if wanted.target:
                disruption = "none"
            changes.append(Change(name, f"{words} (snapshot {snapshot})", disruption, step=step))
    return changes


def _words(name: str, observed: Observed, wanted: Wanted, files: int, size: int) -> str:
    """Return in a line what is restored of a set, empty for nothing."""
    whole = f"{files} file{'' if files == 1 else 's'}, {size} bytes"
    if wanted.target:
        return f"{whole} to {wanted.target}"
    if name in FILE_SETS:
        one = observed.compared[name]
        if not one.chosen(wanted.overwrite):
            return ""
        counts = {"missing": one.missing, "older here": one.older, "newer here": one.newer if wanted.overwrite else ()}
        parts = [f"{len(paths)} {what}" for what, paths in counts.items() if paths]
        kept = len(one.blocked) + (0 if wanted.overwrite else len(one.newer))
        return f"{whole}: {', '.join(parts)}" + (f"; {kept} that are newer or in the way stay" if kept else "")
    if name == "cluster_keys":
        paths = keys_to_place(observed.keys)
        return f"{', '.join(paths)}" if paths else ""
    if name == "registry":
        users, groups, passwords = accounts_to_make(observed.saved, observed.accounts)
        parts = [
            f"{what} {', '.join(names)}"
            for what, names in (("groups", groups), ("users", users), ("passwords of", passwords))
            if names
        ]
        return "; ".join(parts)
    return whole


def keys_to_place(keys: Mapping[str, bool]) -> list[str]:
    """Return the paths of the set ``cluster_keys`` that are put in place: keys that differ, other files if missing."""
    return sorted(path for path, missing in keys.items() if missing or KEY.fullmatch(path))


def accounts_to_make(saved: Accounts, there: Accounts) -> tuple[list[str], list[str], list[str]]:
    """Return the users and groups that the host lacks, and the users who get the password that they had."""
    users = sorted(set(saved.users) - set(there.users))
    groups = sorted(set(saved.groups) - set(there.groups))
    return users, groups, sorted(saved.passwords - there.passwords)


def wanted_folder(path: str, user: str, homes: Iterable[str]) -> list[str]:
    """Return the folders or files to which a restore is narrowed, none for no narrowing; BackupError for bad words."""
    if path and user:
        raise BackupError("path and user exclude each other. Mend: leave one out")
    if user and not re.fullmatch(r"[a-z_][a-z0-9_-]*", user):
        raise BackupError(f"user is {user}, which is no user's name")
    if path and (not path.startswith("/") or "/../" in f"{path}/"):
        raise BackupError(f"path is {path}. Mend: write an absolute path, such as /home/ada/thesis")
    return [f"{home.rstrip('/')}/{user}" for home in homes] if user else [path.rstrip("/")] if path else []


def narrowed(entries: Iterable[Entry], folders: list[str]) -> Iterator[Entry]:
    """Yield the entries that are one of these folders or lie in one; all of them for no folders."""
    for entry in entries:
        if not folders or any(inside(entry.path, folder) for folder in folders):
            yield entry


def include(path: str) -> str:
    """Return restic's pattern for a path alone (Go's filepath.Match)."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)


def shown_kept(compared: Mapping[str, Compared], overwrite: bool, most: int = 20) -> dict[str, Any]:
    """Return the files that stay as they are, a few of them by name, for the report."""
    kept = [path for one in compared.values() for path in (*one.blocked, *(() if overwrite else one.newer))]
    return {"count": len(kept), "paths": kept[:most]}


def picks_database(lines: Iterable[bytes]) -> bool:
    """Return whether a dump says itself into which database it goes, as ``mariadb-dump --databases`` makes it."""
    return any(PICKS_DATABASE.match(line) for line in lines)


def refusal(text: str) -> str:
    """Return why MariaDB refused a statement, from its client's words; the statement before it has people's data."""
    found = [line.strip() for line in text.splitlines() if re.match("ERROR |mariadb:|mysql:", line)]
    return found[0] if found else "mariadb was ended"


def swap_statements(tables: Iterable[str]) -> str:
    """Return the SQL that puts the draft's tables in place of the accounting; they are renamed, and not copied."""
    moves = ", ".join(f"{DRAFT}.`{table}` TO {DATABASE}.`{table}`" for table in tables)
    anew = f"DROP DATABASE {DATABASE}; CREATE DATABASE {DATABASE}"
    return f"{anew}; RENAME TABLE {moves}; DROP DATABASE {DRAFT};"
