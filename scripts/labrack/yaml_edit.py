# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Edit a YAML text in place: what is not edited keeps every byte, comments and quotes with it.

ruamel.yaml says where each thing stands, and writes what is new in the style around it. It does not write the whole
document anew, which would move comments and line breaks. Each edit is proved: the new text, read as Ansible reads it,
is the old one with that edit and nothing else.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from .shell import UserError

#: Leads to a value: keys of mappings, places in lists.
Where = tuple[str | int, ...]
#: Where an alias ends.
_ALIAS = re.compile(r"\*[^\s,\]}]+")
_COMMENT = re.compile(r"( *)#")


class Loader(yaml.SafeLoader):
    """Reads what Ansible reads; a value with a tag of its own, such as a vaulted one, stays as it is written."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: (suffix, node.value))


def load(text: str) -> Any:
    """Return the data of a YAML text; UserError where it can't be read."""
    try:
        return yaml.load(text, Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"This is no YAML: {error}") from None


class Document:
    """A YAML text with edits; ``text`` is what it has become."""

    def __init__(self, text: str, name: str = "the file") -> None:
        self.text = text
        self.name = name
        self._newline = "\r\n" if "\r\n" in text else "\n"

    def get(self, where: Where) -> Any:
        """Return the value at a place, None where there is none."""
        value = load(self.text)
        for part in where:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def set(self, where: Where, value: Any) -> None:
        """Set a key of a mapping that is there, which ``where`` without its last part leads to."""
        *path, key = where
        new = load(self.text) or {}
        inner = self._inner(new, path, {})
        if not isinstance(inner, dict):
            self._by_hand()
        inner[key] = value
        node, _flow = self._find(path)
        found = next((pair for pair in self._pairs(node) if pair[0].value == key), None)
        if found is None:
            self._prove(self._add(path, self._dump({key: value}), self._flow_dump({key: value})[1:-1]), new)
        elif isinstance(value, (Mapping, list)) and value:
            self._prove(self._expand(*found, value, len(path) == 0 or not _flows(node)), new)
        else:
            self._prove(self._replace(*found, self._flow_dump(value)), new)

    def append(self, where: Where, value: Any) -> None:
        """Add an entry at the end of the list at a place; where there is no such key, or nothing in it, it is made."""
        old = self.get(where)
        if not old:
            if old not in (None, []):
                self._by_hand()
            self.set(where, [value])
            return
        new = load(self.text)
        entries = self._inner(new, where, [])
        if not isinstance(entries, list):
            self._by_hand()
        entries.append(value)
        self._prove(self._add(where, self._dump([value]), self._flow_dump(value)), new)

    def remove(self, where: Where) -> None:
        """Take a key out of a mapping, with what is below it and the comments in it."""
        *path, key = where
        new = load(self.text)
        inner = self._inner(new, path, {})
        del inner[key]
        if not inner and path:
            self._inner(new, path[:-1], {})[path[-1]] = inner
        node, _flow = self._find(path)
        pairs = self._pairs(node)
        place = next(place for place, pair in enumerate(pairs) if pair[0].value == key)
        start, end = pairs[place][0].start_mark.index, self._end(*reversed(pairs[place]))
        if _flows(node):
            if place:
                start = self._end(*reversed(pairs[place - 1]))
            elif len(pairs) > 1:
                end = pairs[1][0].start_mark.index
            self._prove(self.text[:start] + self.text[end:], new)
            return
        first = self.text.rfind("\n", 0, start) + 1
        if self.text[first:start].strip():
            self._by_hand()
        # comments that stand deeper than the key are its own
        last = self._after_comments(self._line_end(end), start - first + 1)
        self._prove(self.text[:first] + self.text[last:], new)

    def _find(self, path: Sequence[str | int]) -> tuple[Any, bool]:
        """Return the node at a place, and whether it stands in a flow collection."""
        try:
            node = YAML().compose(self.text)
        except YAMLError as error:
            raise UserError(f"{self.name} can't be read: {error}") from None
        flow = False
        for part in path:
            flow = flow or _flows(node)
            if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                continue
            inner = [value for key, value in self._pairs(node) if key.value == part]
            if not inner:
                self._by_hand()
            node = inner[-1]
        return node, flow

    def _pairs(self, node: Node | None) -> list[tuple[Any, Any]]:
        return list(node.value) if isinstance(node, MappingNode) else []

    def _inner(self, data: Any, path: Sequence[str | int], empty: Any) -> Any:
        """Return the container at a place of loaded data; one that is null becomes ``empty``."""
        for place, part in enumerate(path):
            try:
                inner = data[part]
            except (KeyError, IndexError, TypeError):
                self._by_hand()
            if inner is None and place == len(path) - 1:
                inner = data[part] = empty
            data = inner
        if not isinstance(data, (dict, list)):
            self._by_hand()
        return data

    def _add(self, path: Sequence[str | int], block: str, flow: str) -> str:
        """Return the text with something more at the end of the collection at a place."""
        node, in_flow = self._find(path)
        if not path and not isinstance(node, (MappingNode, SequenceNode)):
            # nothing but comments
            return self._joined(self.text, block, len(self.text))
        if not node.value:
            return self._fill(path, block)
        end = self._end(node)
        if in_flow or _flows(node):
            last = self._last(node)
            return f"{self.text[:last]}, {flow}{self.text[last:]}"
        column = node.start_mark.column
        parent = self._column(path[:-1]) if path else -1
        if not path:
            return self._joined(self.text, block, len(self.text))
        at = self._after_comments(self._line_end(end), column if column > parent else column + 1)
        return self._joined(self.text, textwrap.indent(block, " " * column), at)

    def _fill(self, path: Sequence[str | int], block: str) -> str:
        """Return the text with something in a collection that is null or empty."""
        node, flow = self._find(path[:-1])
        key, value = next(pair for pair in self._pairs(node) if pair[0].value == path[-1])
        if flow or _flows(node):
            self._by_hand()
        return self._below(key, value, textwrap.indent(block, "  "), key.start_mark.column)

    def _expand(self, key: Any, value: Any, new: Any, block: bool) -> str:
        """Return the text with a collection in place of a value that is null or empty."""
        if self.text[self._start(key, value) : self._end(value, key)].strip() not in ("", "[]", "{}", "~", "null"):
            self._by_hand()
        if not block:
            return self._replace(key, value, self._flow_dump(new))
        return self._below(key, value, self._dump(new, nested=True), key.start_mark.column)

    def _below(self, key: Any, value: Any, block: str, column: int) -> str:
        start, end = self._start(key, value), self._end(value, key)
        line = self._line_end(end)
        text = self.text[:start].rstrip(" ") + self.text[end:line]
        return self._joined(text + self.text[line:], textwrap.indent(block, " " * column), len(text))

    def _replace(self, key: Any, value: Any, new: str) -> str:
        start, end = self._start(key, value), self._end(value, key)
        if isinstance(value, ScalarNode) and "\n" not in self.text[start:end]:
            return self.text[:start] + ("" if self.text[start - 1].isspace() else " ") + new + self.text[end:]
        self._by_hand()

    def _joined(self, text: str, block: str, at: int) -> str:
        """Return a text with whole lines put in where a line begins or the text ends."""
        before = text[:at]
        if before and not before.endswith("\n"):
            before += self._newline
        return before + block.replace("\n", self._newline) + text[at:]

    def _start(self, key: Any, value: Any) -> int:
        """Return where a key's value begins, right behind the colon where there is none."""
        colon = self.text.index(":", key.end_mark.index) + 1
        if isinstance(value, ScalarNode) and value.start_mark.index == value.end_mark.index:
            return colon
        return int(max(value.start_mark.index, colon))

    def _end(self, node: Any, key: Any = None, after: int = 0) -> int:
        """Return where a node's content ends, comments and blank lines behind it left out."""
        after = key.end_mark.index if key is not None else after
        if node.start_mark.index < after:
            alias = _ALIAS.search(self.text, after)
            return alias.end() if alias else after
        if isinstance(node, ScalarNode):
            if node.start_mark.index == node.end_mark.index:
                return self.text.index(":", after) + 1 if key is not None else node.end_mark.index
            if node.style in ("|", ">"):
                return len(self.text[: node.end_mark.index].rstrip())
            return int(node.end_mark.index)
        if _flows(node) or not node.value:
            return int(node.end_mark.index)
        return self._last(node)

    def _last(self, node: Any) -> int:
        """Return where the last thing in a collection that has something ends."""
        if isinstance(node, MappingNode):
            key, value = node.value[-1]
            return self._end(value, key)
        after = self._end(node.value[-2], after=node.start_mark.index) if len(node.value) > 1 else 0
        return self._end(node.value[-1], after=after)

    def _line_end(self, at: int) -> int:
        """Return where the line after a place begins."""
        found = self.text.find("\n", at)
        return len(self.text) if found < 0 else found + 1

    def _after_comments(self, at: int, column: int) -> int:
        """Return where the lines end that follow and are comments from a column on."""
        while (found := _COMMENT.match(self.text, at)) and len(found[1]) >= column:
            at = self._line_end(found.end())
        return at

    def _column(self, path: Sequence[str | int]) -> int:
        """Return the column of the keys of the collection at a place."""
        node, _flow = self._find(path)
        return int(node.start_mark.column)

    def _offset(self) -> int:
        """Return by how much lists are set in below their keys in this text."""
        found = re.search(r"^( *)[\w.-]+:[ \t]*(?:#.*)?\r?\n(?: *#.*\r?\n|[ \t]*\r?\n)*( *)- ", self.text, re.MULTILINE)
        return 0 if found and len(found[1]) == len(found[2]) else 2

    def _dump(self, value: Any, nested: bool = False) -> str:
        """Return the lines of a collection, from column 0; ``nested`` as they stand below a key at column 0."""
        offset = self._offset()
        emitter = YAML()
        emitter.width = 2**20
        emitter.indent(mapping=2, sequence=offset + 2, offset=offset)
        out = io.StringIO()
        emitter.dump(_styled(value), out)
        lines = textwrap.dedent(out.getvalue())
        if not nested:
            return lines
        return textwrap.indent(lines, " " * (2 if isinstance(value, Mapping) else offset))

    def _flow_dump(self, value: Any) -> str:
        """Return a value on one line."""
        emitter = YAML()
        emitter.width = 2**20
        out = io.StringIO()
        emitter.dump(_flow(value), out)
        return out.getvalue().removesuffix("...\n").strip()

    def _prove(self, text: str, wanted: Any) -> None:
        """Take a new text if it says what is wanted; UserError otherwise, and the old one stays."""
        try:
            said = load(text)
        except UserError:
            said = None
        if said != wanted and _bare(said) != _bare(wanted):
            self._by_hand()
        self.text = text

    def _by_hand(self) -> NoReturn:
        raise UserError(f"{self.name} is written in a way that labrack does not edit. Edit it by hand.")


def _flows(node: Any) -> bool:
    return isinstance(node, (MappingNode, SequenceNode)) and bool(node.flow_style)


def _bare(data: Any) -> Any:
    """Return data with empty collections as null, which Ansible takes alike, and nothing shared."""
    if isinstance(data, dict):
        return {key: _bare(value) for key, value in data.items()} or None
    if isinstance(data, list):
        return [_bare(value) for value in data] or None
    return data


def _scalar(value: Any) -> Any:
    """Return a text in quotes where YAML 1.1, which Ansible reads, takes it for something else."""
    if not isinstance(value, str):
        return value
    try:
        plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else DoubleQuotedScalarString(value)


def _styled(value: Any) -> Any:
    """Return a value as ruamel.yaml writes it in blocks, short lists of short words on one line."""
    if isinstance(value, Mapping):
        return CommentedMap((key, _styled(inner)) for key, inner in value.items())
    if isinstance(value, list):
        short = value and all(isinstance(one, str) and " " not in one for one in value)
        return _flow(value) if short else CommentedSeq(_styled(inner) for inner in value)
    return _scalar(value)


def _flow(value: Any) -> Any:
    """Return a value as ruamel.yaml writes it on one line."""
    if isinstance(value, Mapping):
        mapping = CommentedMap((key, _flow(inner)) for key, inner in value.items())
        mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        entries = CommentedSeq(_flow(inner) for inner in value)
        entries.fa.set_flow_style()
        return entries
    return _scalar(value)
