# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Merging settings of ours into Docker's ``daemon.json``, which is not ours, and taking them back.

Pure. What was set is kept as marks: undoing gives back what was there before, and leaves alone what somebody has
changed since. The file's keys: https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: Lists of ``option=value``, in which one option is ours; everything else we set is in objects.
LISTS = frozenset(("exec-opts",))

#: Stands for "no such key"; never in a file.
MISSING: Any = object()

Data = dict[str, Any]


class DaemonJsonError(ValueError):
    """A ``daemon.json`` that can't be merged into; the message says where and why."""


@dataclass(frozen=True)
class Setting:
    """One value at a path, such as ``("features", "cdi")``. In a list the last step is the option's name.

    Without ``force`` a value that somebody else has put there stays.
    """

    path: tuple[str, ...]
    value: Any
    force: bool = True


@dataclass(frozen=True)
class Mark:
    """What we set at a path, and what was there before (:data:`MISSING` for nothing)."""

    path: tuple[str, ...]
    value: Any
    before: Any = MISSING

    @classmethod
    def read(cls, found: dict[str, Any]) -> Mark:
        """Return the mark of what :meth:`written` returned."""
        return cls(tuple(found["path"]), found["value"], found.get("before", MISSING))

    def written(self) -> dict[str, Any]:
        """Return the mark as what JSON can hold."""
        found = {"path": list(self.path), "value": self.value}
        return found if self.before is MISSING else {**found, "before": self.before}


def parse(text: str, name: str = "daemon.json") -> Data:
    """Return a file's content; DaemonJsonError with line and column for what is no JSON object. An empty file is {}."""
    if not text.strip():
        return {}
    if "\ufffd" in text:
        raise DaemonJsonError(f"{name} is not valid UTF-8")
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        json.dumps(found, allow_nan=False)
    except json.JSONDecodeError as error:
        raise DaemonJsonError(f"{name}, line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DaemonJsonError(f"{name}: {error}") from None
    if not isinstance(found, dict):
        raise DaemonJsonError(f"{name} holds {_kind(found)} and not an object, which begins with {{")
    return found


def _once(pairs: list[tuple[str, Any]]) -> Data:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json.dumps(twice)} is in one object twice, and one of the two would be lost")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON value")


def dump(data: Data, like: str = "") -> str:
    """Return data as text, indented as ``like`` is; ``like`` itself where it says the same already."""
    if like.strip() and same(parse(like), data, ordered=True):
        return like
    body = like.strip()
    indented = re.search(r'^([ \t]+)"', body, re.MULTILINE)
    if indented:
        indent: str | int | None = indented.group(1)
    else:
        indent = None if body.strip("{} \t") and "\n" not in body else 4
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(data, indent=indent)
    return text if body and not like.endswith("\n") else text + "\n"


def same(one: Any, other: Any, ordered: bool = False) -> bool:
    """Return whether two values are the same in JSON, where true is not 1."""
    return json.dumps(one, sort_keys=not ordered) == json.dumps(other, sort_keys=not ordered)


def merge(data: Data, settings: Sequence[Setting], marks: Sequence[Mark] = ()) -> tuple[Data, list[Mark]]:
    """Return data with the settings made, and what to remember of it.

    ``marks`` are those of the last time: what is no longer a setting is taken back. DaemonJsonError where a setting
    belongs into what is neither an object nor a list.
    """
    data = copy.deepcopy(data)
    needed = {setting.path[:depth] for setting in settings for depth in range(1, len(setting.path) + 1)}
    data = take_back(data, [mark for mark in marks if mark.path not in needed])
    kept = {mark.path: mark for mark in marks if mark.path in needed}
    for setting in settings:
        for depth in range(1, len(setting.path)):
            path = setting.path[:depth]
            wanted: Any = [] if path[-1] in LISTS else {}
            found = _get(data, path)
            if found is MISSING or found is None:
                kept.pop(path, None)
                _set(data, path, wanted)
                kept[path] = Mark(path, wanted, found)
            elif not isinstance(found, type(wanted)):
                raise DaemonJsonError(f"{'.'.join(path)} is {_kind(found)}, and dockerd wants {_kind(wanted)} there")
        mark = _make(data, setting, kept.pop(setting.path, None))
        if mark is not None:
            kept[setting.path] = mark
    return data, [kept[path] for path in sorted(kept)]


def _make(data: Data, setting: Setting, mark: Mark | None) -> Mark | None:
    """Make one setting in place, and return its mark, None for what is not ours."""
    found = _get(data, setting.path)
    ours = mark is not None and found is not MISSING and same(found, mark.value)
    if found is not MISSING and same(found, setting.value):
        return mark if ours else None
    if found is not MISSING and not ours and not setting.force:
        return None
    _set(data, setting.path, setting.value)
    return replace(mark, value=setting.value) if ours and mark else Mark(setting.path, setting.value, found)


def take_back(data: Data, marks: Iterable[Mark]) -> Data:
    """Return data as it was before the marked settings, except where somebody has changed them since."""
    data = copy.deepcopy(data)
    # longer paths go before the objects in which they are
    for mark in sorted(marks, key=lambda mark: -len(mark.path)):
        found = _get(data, mark.path)
        if found is not MISSING and same(found, mark.value):
            _set(data, mark.path, mark.before)
    return data


def _get(data: Any, path: Sequence[str]) -> Any:
    for step in path:
        if isinstance(data, dict):
            data = data.get(step, MISSING)
        elif isinstance(data, list):
            data = next((entry for entry in data if _option(entry) == step), MISSING)
        else:
            return MISSING
    return data


def _set(data: Any, path: Sequence[str], value: Any) -> None:
    """Set a value, or remove it when it is MISSING, in an object or a list that is there."""
    parent, last = _get(data, path[:-1]), path[-1]
    value = copy.deepcopy(value) if value is not MISSING else value
    if isinstance(parent, dict):
        if value is MISSING:
            parent.pop(last, None)
        else:
            parent[last] = value
    elif isinstance(parent, list):
        place = next((index for index, entry in enumerate(parent) if _option(entry) == last), len(parent))
        parent[place : place + 1] = [] if value is MISSING else [value]


def _option(entry: Any) -> str:
    return entry.partition("=")[0].strip() if isinstance(entry, str) else ""


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
