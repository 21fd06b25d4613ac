# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Look at what is managed on this node, and keep its ledgers. Standard library only, no Ansible import.

A ledger is ``/var/lib/labrack/managed/MODULE.json``, for root alone; its time is that of the last run of the module.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.managed import Managed
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    FileState,
    group_name,
    owner_name,
    read_text,
    remove_empty,
    remove_file,
    write_file,
)

FOLDER = "/var/lib/labrack/managed"
MOUNTS = "/proc/self/mounts"
SHADOW = "/etc/shadow"
#: Files beyond this many bytes are known by size, inode and time.
MOST = 8 << 20
#: What can be looked at without starting a program.
CHEAP = frozenset({"file", "directory", "mount", "user", "group", "sysctl"})

Attributes = Optional[dict[str, Any]]


# --- ledgers ---------------------------------------------------------------------------------------------------------


def record(name: str, noted: Managed, folder: str = FOLDER) -> None:
    """Write the ledger of a module that has run, as the node is now; without anything managed there is none (OSError).

    It is written only when it differs. What was noted and is not there is left out.
    """
    there = look({key: value for key, value in noted.items() if key[0] in CHEAP})
    items: Managed = {}
    for key, attributes in noted.items():
        if key[0] not in CHEAP:
            items[key] = attributes
        elif key in there:
            how = {name: attributes[name] for name in managed.HOW if name in attributes}
            items[key] = dict(there[key], **how)
    if not items:
        forget([name], folder)
        return
    path, text = f"{folder}/{name}.json", managed.render(items)
    if read_text(path) == text:
        os.utime(path)
        return
    if not os.path.isdir(folder):
        os.makedirs(os.path.dirname(folder), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
    write_file(path, FileState(text, "0600", owner_name(os.geteuid()), group_name(os.getegid())), flush=False)


def forget(names: Sequence[str], folder: str = FOLDER) -> None:
    """Remove the ledgers of modules that manage nothing here any more (OSError)."""
    for name in names:
        remove_file(f"{folder}/{name}.json")
    remove_empty(folder)


def holds_only(name: str, folder: str = FOLDER) -> bool:
    """Return whether a module's ledger is the only one, so that nothing is left once it goes."""
    with contextlib.suppress(OSError):
        return set(os.listdir(folder)) <= {f"{name}.json"}
    return True


def ledgers(folder: str = FOLDER) -> tuple[dict[str, float], Managed]:
    """Return when each module last ran here (Unix time, the oldest first), and all that they manage.

    Raises OSError, and ValueError with the path of a damaged ledger.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(Path(folder).glob("*.json")):
            try:
                found.append((path.stat().st_mtime, path.stem, managed.parse(path.read_text(encoding="utf-8"))))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    found.sort(key=lambda one: one[0])
    return {name: when for when, name, _items in found}, managed.merge([items for _when, _name, items in found])


# --- the node --------------------------------------------------------------------------------------------------------


def look(items: Managed) -> Managed:
    """Return what this node has of these things of :data:`CHEAP` kinds; what is not there is left out."""
    kinds = {kind for kind, _name in items}
    people = _People({name for kind, name in items if kind == "user"}) if kinds & {"user", "group"} else None
    mounts = read_mounts(read_text(MOUNTS) or "") if "mount" in kinds else {}
    found: Managed = {}
    for (kind, name), attributes in items.items():
        seen: Attributes = None
        if kind in ("file", "directory"):
            seen = look_path(name, attributes)
        elif kind == "mount":
            seen = mounts.get(name)
        elif kind == "user" and people:
            seen = people.user(name, attributes.get("among", ()))
        elif kind == "group" and people:
            seen = people.group(name, attributes.get("among"))
        elif kind == "sysctl":
            text = read_text("/proc/sys/" + name.replace(".", "/"))
            seen = None if text is None else {"value": " ".join(text.split())}
        if seen is not None:
            found[kind, name] = seen
    return found


def look_path(path: str, attributes: Mapping[str, Any]) -> Attributes:
    """Return a file's or directory's type, mode, owner, group and content, in the way that ``how`` asks for.

    None where there is none. Nothing else than a file is opened, or waited for.
    """
    try:
        info = os.stat(path)
        kind = "directory" if stat.S_ISDIR(info.st_mode) else "file" if stat.S_ISREG(info.st_mode) else "special file"
        found: dict[str, Any] = {
            "type": kind,
            "mode": f"{stat.S_IMODE(info.st_mode):04o}",
            "owner": owner_name(info.st_uid),
            "group": group_name(info.st_gid),
        }
        if kind != "file":
            return found
        how = attributes.get("how")
        if how is None and "sha256" not in attributes:
            # what others may not read may be a secret, and one that can be guessed from its digest
            closed = not info.st_mode & (stat.S_IRGRP | stat.S_IROTH)
            how = managed.STAT if closed or info.st_size > MOST else managed.TEXT
        if how == managed.STAT or "stat" in attributes:
            return {**found, "stat": [info.st_size, info.st_mtime_ns, info.st_ino]}
        content = _read(path, MOST)
    except OSError:
        return None
    if how == managed.LINES:
        there = {managed.digest(line) for line in content.decode("utf-8", "replace").splitlines()}
        return {**found, "lines": sorted(there & set(attributes["lines"]))}
    if attributes.get("without"):
        lines = content.decode("utf-8", "surrogateescape").splitlines(keepends=True)
        kept = [line for line in lines if managed.digest(line.rstrip("\n")) not in attributes["without"]]
        content = "".join(kept).encode("utf-8", "surrogateescape")
    return {**found, "sha256": hashlib.sha256(content).hexdigest()}


def _read(path: str, most: int) -> bytes:
    # what was put in its place meanwhile may be a pipe that nobody writes to
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as stream:
        return stream.read(most + 1) if stat.S_ISREG(os.fstat(handle).st_mode) else b""


def read_mounts(text: str) -> dict[str, dict[str, Any]]:
    """Return type and read-only of the lowest mount at each place of proc_mounts(5): an automount, and not its turn."""
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 3:
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), fields[1])
            found.setdefault(place, {"filesystem": fields[2], "read_only": "ro" in fields[3].split(",")})
    return found


class _People:
    """Users and groups, each file read once; a directory service is asked for those who are in none."""

    def __init__(self, names: set[str]) -> None:
        self.users = {entry.pw_name: entry for entry in pwd.getpwall()}
        self.teams = {entry.gr_name: entry for entry in grp.getgrall()}
        for name in names - set(self.users):
            with contextlib.suppress(KeyError):
                self.users[name] = pwd.getpwnam(name)
        lines = (line.split(":") for line in (read_text(SHADOW) or "").splitlines())
        self.shadow = {fields[0]: fields for fields in lines if len(fields) > 7}

    def user(self, name: str, among: Sequence[str]) -> Attributes:
        """Return a user's attributes, and those of the groups ``among`` that have the user; None for nobody."""
        entry = self.users.get(name)
        if entry is None:
            return None
        found = {
            "uid": entry.pw_uid,
            "gid": entry.pw_gid,
            "home": entry.pw_dir,
            "shell": entry.pw_shell,
            "comment": entry.pw_gecos,
            "groups": [one for one in sorted(among) if one in self.teams and name in self.teams[one].gr_mem],
        }
        fields = self.shadow.get(name)
        if fields:
            found.update(locked=fields[1].startswith("!"), expires=fields[7])
        return found

    def group(self, name: str, among: Sequence[str] | None) -> Attributes:
        """Return a group's number, and those ``among`` that are in it where that is asked; None for no group."""
        entry = self.teams.get(name)
        if entry is None:
            return None
        members = {} if among is None else {"members": sorted(set(among) & set(entry.gr_mem))}
        return {"gid": entry.gr_gid, **members}
