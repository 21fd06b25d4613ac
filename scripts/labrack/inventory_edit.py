# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Edits of a lab's inventory: people and nodes. The rules for inventories check an edit before it is written."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import lab_check
from ansible_collections.labrack.infra.plugins.plugin_utils import inventory_read, inventory_source

from . import lab
from .shell import UserError
from .yaml_edit import Document, Where, load

USERS = "lab_users"
#: Where variables of the whole lab lie, the first that is there; the first is made where none is.
LAB_FILES = ("group_vars/all/lab.yml", "group_vars/all.yml", "group_vars/all/main.yml", "group_vars/all/all.yml")


@dataclass(frozen=True)
class Edit:
    """A file with other content; one that is not there yet has none before."""

    file: Path
    before: str
    after: str

    def diff(self) -> str:
        """Return it as a unified diff, empty where nothing changes."""
        name = os.path.relpath(self.file)
        name = str(self.file) if name.startswith("..") else name
        before, after = (text.splitlines(keepends=True) for text in (self.before, self.after))
        lines = difflib.unified_diff(before, after, name, name)
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def add_user(inventory: Sequence[Path], entry: Mapping[str, Any]) -> Edit:
    """Add an entry to ``lab_users``; UserError where there is one of that name."""
    there = next((user for user in _users(inventory) if user.get("name") == entry["name"]), None)
    if there is not None:
        state = there.get("state", "present")
        mend = "To open the account again, take its state out" if state != "present" else "Edit its entry"
        raise UserError(f"{USERS} has {entry['name']} already ({state}). {mend}: {_users_file(inventory)}")
    return _edited(_users_file(inventory), lambda document: document.append((USERS,), dict(entry)))


def change_user(inventory: Sequence[Path], name: str, values: Mapping[str, Any]) -> Edit:
    """Set keys of somebody's entry in ``lab_users``; UserError where there is none."""
    users = _users(inventory)
    place = next((place for place, user in enumerate(users) if user.get("name") == name), None)
    if place is None:
        names = ", ".join(str(user.get("name")) for user in users) or "nobody"
        raise UserError(f"{name} is not in {USERS}; it has {names}.")

    def change(document: Document) -> None:
        for key, value in values.items():
            document.set((USERS, place, key), value)

    return _edited(_users_file(inventory), change)


def user(inventory: Sequence[Path], name: str) -> Mapping[str, Any]:
    """Return somebody's entry in ``lab_users``, empty where there is none."""
    return next((one for one in _users(inventory) if one.get("name") == name), {})


def add_node(inventory: Sequence[Path], name: str, variables: Mapping[str, Any], groups: Sequence[str]) -> list[Edit]:
    """Add a host to groups, its variables to the first; groups that have it stay. UserError for an unknown group."""
    documents = _documents(inventory)
    known = {group for document in documents.values() for group, _path in _groups(load(document.text))}
    for place, group in enumerate(groups):
        found = [
            (document, path)
            for document in documents.values()
            for one, path in _groups(load(document.text))
            if one == group
        ]
        if not found:
            names = ", ".join(sorted(known)) or "none"
            raise UserError(f"No group {group} in the inventory's YAML files; there are: {names}.")
        if any(name in (document.get((*path, "hosts")) or {}) for document, path in found):
            continue
        # the place where hosts of the group stand already
        document, path = next((one for one in found if one[0].get((*one[1], "hosts"))), found[0])
        host = {name: dict(variables) if place == 0 and variables else None}
        if document.get(path) is None:
            document.set(path, {"hosts": host})
        elif document.get((*path, "hosts")) is None and "hosts" not in document.get(path):
            document.set((*path, "hosts"), host)
        else:
            document.set((*path, "hosts", name), host[name])
    return _changed(documents)


def remove_node(inventory: Sequence[Path], name: str) -> list[Edit]:
    """Take a host out of all groups; UserError where it stands in a file that is no YAML."""
    documents = _documents(inventory)
    for document in documents.values():
        for _group, path in list(_groups(load(document.text))):
            if name in (document.get((*path, "hosts")) or {}):
                document.remove((*path, "hosts", name))
    edits = _changed(documents)
    left = [one for one in _definitions(inventory) if one.name == "host" and one.scope == name]
    files = {edit.file for edit in edits}
    by_hand = sorted({str(one.file) for one in left if one.file not in files})
    if by_hand:
        raise UserError(f"{name} stands in {', '.join(by_hand)}, which labrack does not edit. Take it out by hand.")
    return edits


def check(inventory: Sequence[Path], edits: Sequence[Edit]) -> lab.Lab:
    """Return the lab as it would be; UserError with what an edit would break, looked at in a copy of the inventory."""
    lab.use_configuration(inventory)
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        copies, names = _copy(inventory, edits, Path(folder))
        after, found = problems(copies)
        found = [_named(line, names) for line in found]
    if found:
        # what was wrong before is no reason to refuse
        before = {_words(line) for line in problems(inventory)[1]}
        new = [line for line in found if _words(line) not in before]
        if new:
            raise UserError("\n".join(["The inventory would not be right; it stays as it was:", *new]))
    return after


def problems(inventory: Sequence[Path]) -> tuple[lab.Lab, list[str]]:
    """Return the lab, and what the rules find in its inventory without asking a node, as lines."""
    found = lab.load(inventory)
    known = _definitions(inventory)
    checked, findings = inventory_read.read_inventory(
        found.hosts,
        {name: list(hosts) for name, hosts in found.groups.items()},
        known,
        inventory_read.role_options(inventory_read.ROLES),
    )
    return found, inventory_read.lines([*findings, *lab_check.check_inventory(checked)], checked, known)


def write(edits: Sequence[Edit]) -> None:
    """Write the edits, each file in one go; UserError where one has changed since it was read."""
    for edit in edits:
        if edit.before == edit.after:
            continue
        if (_read(edit.file) if edit.file.exists() else "") != edit.before:
            raise UserError(f"{edit.file} has changed meanwhile; nothing was written to it. Try again.")
        try:
            replace(edit.file, edit.after)
        except OSError as error:
            raise UserError(f"{edit.file} can't be written: {error.strerror}. It is as it was.") from None


def replace(file: Path, text: str, mode: int = 0o644) -> None:
    """Put a text in place of a file in one go, with the mode that the file has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    target = file.resolve()
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as out:
            out.write(text)
        Path(name).chmod(target.stat().st_mode & 0o777 if target.exists() else mode)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _users_file(inventory: Sequence[Path]) -> Path:
    """Return the file of ``lab_users``, or that where it would belong."""
    found = [one for one in _definitions(inventory) if one.name == USERS]
    if len({one.file for one in found}) > 1:
        places = ", ".join(f"{one.file}:{one.line}" for one in found)
        raise UserError(f"{USERS} is set at more than one place, so labrack can't know which to edit: {places}")
    if found and found[0].inline:
        mend = f"Move it to {LAB_FILES[0]}"
        raise UserError(f"{USERS} stands in {found[0].file}:{found[0].line}, among the hosts. {mend}.")
    if found:
        return found[0].file
    folder = inventory[0] if inventory[0].is_dir() else inventory[0].parent
    return next((folder / name for name in LAB_FILES if (folder / name).exists()), folder / LAB_FILES[0])


def _users(inventory: Sequence[Path]) -> list[dict[str, Any]]:
    file = _users_file(inventory)
    users = Document(_read(file), str(file)).get((USERS,)) if file.exists() else None
    if users is not None and not isinstance(users, list):
        raise UserError(f"{file}: {USERS} is no list of people but an expression. Edit what it names by hand.")
    return [one for one in users or [] if isinstance(one, dict)]


def _edited(file: Path, change: Any) -> Edit:
    before = _read(file) if file.exists() else ""
    document = Document(before or "---\n", str(file))
    change(document)
    return Edit(file, before, document.text)


def _changed(documents: Mapping[Path, Document]) -> list[Edit]:
    edits = [Edit(file, _read(file), document.text) for file, document in documents.items()]
    return [edit for edit in edits if edit.before != edit.after]


def _read(file: Path) -> str:
    try:
        # line ends are kept
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read: {error}") from None


def _definitions(inventory: Sequence[Path]) -> list[inventory_source.Definition]:
    return inventory_source.definitions([str(path) for path in inventory])


def _documents(inventory: Sequence[Path]) -> dict[Path, Document]:
    """Return the YAML files with groups and hosts; those that a program wrote as JSON are left alone."""
    found = {}
    for source in inventory:
        for file in sorted(source.iterdir()) if source.is_dir() else [source]:
            if file.is_file() and file.suffix in (".yml", ".yaml") and not inventory_source.IGNORED.search(file.name):
                found[file] = Document(_read(file), str(file))
    return found


def _groups(data: Any, path: Where = ()) -> Iterator[tuple[str, Where]]:
    """Yield the name of every group of an inventory file, and the way to it."""
    for name, group in data.items() if isinstance(data, dict) else ():
        # the file of an inventory plugin has values where groups would be
        if group is None or isinstance(group, dict):
            yield str(name), (*path, name)
            children = (group or {}).get("children")
            yield from _groups(children, (*path, name, "children"))


def _copy(inventory: Sequence[Path], edits: Sequence[Edit], folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Copy an inventory with the edits made; return the copies, and the originals' names by those of the copies."""
    copies, names = [], {}
    for number, source in enumerate(inventory):
        root, into = (source if source.is_dir() else source.parent), folder / str(number)
        if source.is_dir():
            shutil.copytree(source, into, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        else:
            into.mkdir()
            shutil.copy(source, into)
            for kind in ("group_vars", "host_vars"):
                if (root / kind).is_dir():
                    shutil.copytree(root / kind, into / kind)
        copies.append(into if source.is_dir() else into / source.name)
        names[str(into)] = str(root)
        for edit in edits:
            if edit.file.is_relative_to(root):
                replace(into / edit.file.relative_to(root), edit.after)
    return copies, names


def _named(line: str, names: Mapping[str, str]) -> str:
    for copy, original in names.items():
        near = os.path.relpath(original)
        line = line.replace(copy, original if near.startswith("..") else near)
    return line


def _words(line: str) -> str:
    """Return a finding without its place, which an edit above it moves."""
    return line.partition("  ")[2] or line
