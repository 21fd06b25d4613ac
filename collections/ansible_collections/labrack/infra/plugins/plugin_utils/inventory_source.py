# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where in an inventory's files a variable is set, by file and line. On the controller only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

#: The safe loader, in C where PyYAML has it.
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: Files that Ansible does not read as an inventory or as variables.
IGNORED = re.compile(r"(^\.|~$|\.(orig|bak|retry|cfg|pyc|pyo|swp|rpm|md|txt|rst)$)")
INI_VARIABLE = re.compile(r"(?:^|\s)([A-Za-z_]\w*)\s*=")


@dataclass(frozen=True)
class Definition:
    """A variable set in a file: ``scope`` is a host's or a group's name; ``node`` is its YAML value, None in INI.

    A host or group itself has the name ``host`` or ``group``. ``inline``: in the inventory file, not in a
    ``group_vars`` or ``host_vars`` file, which go before it.
    """

    name: str
    scope: str
    file: Path
    line: int
    node: yaml.Node | None = None
    inline: bool = True


def definitions(sources: Iterable[str], playbook_dir: str = "") -> list[Definition]:
    """Return every variable set in the files of these inventory sources and in ``group_vars`` and ``host_vars``.

    Files that can't be read as YAML or INI, or that are encrypted as a whole, are passed over: Ansible speaks of them.
    """
    found: list[Definition] = []
    folders: dict[Path, None] = {}
    for source in map(Path, sources):
        folder = source if source.is_dir() else source.parent
        folders[folder] = None
        files = [path for path in sorted(source.iterdir()) if path.is_file()] if source.is_dir() else [source]
        for file in files:
            if file.is_file() and not IGNORED.search(file.name):
                found += _inventory_file(file)
    if playbook_dir:
        folders[Path(playbook_dir)] = None
    for folder in folders:
        for kind in ("group_vars", "host_vars"):
            for file in sorted((folder / kind).rglob("*")):
                if file.is_file() and not IGNORED.search(file.name):
                    scope = file.relative_to(folder / kind).parts[0]
                    scope = scope if (folder / kind / scope).is_dir() else Path(scope).stem
                    found += _mapping(_compose(file), scope, file, inline=False)
    return found


def place(known: Iterable[Definition], path: tuple[str | int, ...], host: str = "", groups: Iterable[str] = ()) -> str:
    """Return ``file:line`` of the value that ``path`` leads to for a host in ``groups``, empty when it is not found.

    The order is Ansible's: a host's own value, then its groups', that of ``all``, at last the inventory file's groups.
    Without a host, any will do.
    """
    if path[0] in ("group", "host"):
        named = [one for one in known if one.name == path[0]]
        exact = [f"{_shown(one.file)}:{one.line}" for one in named if one.scope == path[1]]
        return exact[0] if exact else _shown(named[0].file) if named else ""
    mine = {*groups, "all", host}
    candidates = [one for one in known if one.name == path[0] and (not host or one.scope in mine)]
    for one in sorted(candidates, key=lambda one: (one.scope != host, one.inline, one.scope == "all")):
        return f"{_shown(one.file)}:{_descend(one, path[1:])}"
    return ""


def _shown(file: Path) -> str:
    """Return a path as one would write it from here: relative below the working directory, else absolute."""
    near = os.path.relpath(file)
    return str(file.absolute()) if near.startswith("..") else near


def _descend(definition: Definition, path: tuple[str | int, ...]) -> int:
    """Return the line of the deepest part of ``path`` that is there."""
    node, line = definition.node, definition.line
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == part]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _compose(file: Path) -> yaml.Node | None:
    try:
        return yaml.compose(file.read_text(encoding="utf-8"), Loader=FAST)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _mapping(node: yaml.Node | None, scope: str, file: Path, inline: bool = True) -> Iterator[Definition]:
    for key, value in _pairs(node):
        yield Definition(key.value, scope, file, key.start_mark.line + 1, value, inline)


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _inventory_file(file: Path) -> Iterator[Definition]:
    node = _compose(file)
    if isinstance(node, yaml.MappingNode):
        for name, group in _pairs(node):
            yield from _group(name, group, file)
    else:
        yield from _ini(file)


def _group(name: yaml.Node, node: yaml.Node, file: Path) -> Iterator[Definition]:
    yield Definition("group", name.value, file, name.start_mark.line + 1, node)
    for key, value in _pairs(node):
        if key.value == "vars":
            yield from _mapping(value, name.value, file)
        elif key.value == "hosts":
            for host, variables in _pairs(value):
                yield Definition("host", host.value, file, host.start_mark.line + 1, variables)
                yield from _mapping(variables, host.value, file)
        elif key.value == "children":
            for child, inner in _pairs(value):
                yield from _group(child, inner, file)


def _ini(file: Path) -> Iterator[Definition]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    section, kind = "ungrouped", ""
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        header = re.fullmatch(r"\[([^:\]]+):?(\w*)\]", text)
        if header:
            section, kind = header.groups()
            yield Definition("group", section, file, number)
        elif kind in ("", "vars") and text:
            scope = section if kind == "vars" else text.split()[0]
            if not kind:
                yield Definition("host", scope, file, number)
            for name in INI_VARIABLE.findall(text):
                yield Definition(name, scope, file, number)
