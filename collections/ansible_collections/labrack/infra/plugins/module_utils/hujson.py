# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""HuJSON, JSON with comments and trailing commas, as Tailscale and headscale take it for a policy.

Pure. The format is that of https://github.com/tailscale/hujson. Comments are passed over when a text is read; what is
written has those that the writer gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

WIDTH = 100
_INDENT = "  "
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/|,(?=(?:\s|//[^\n]*|/\*.*?\*/)*[\]}])', re.DOTALL)


def loads(text: str) -> Any:
    """Return the value in a HuJSON text; ValueError with line and column, also for a key that is there twice."""
    try:
        return json.loads(_TOKEN.sub(_blank, text), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None


def _blank(token: re.Match[str]) -> str:
    """Return a string as it is, and spaces for what plain JSON does not have, so that every position stays."""
    found = token.group()
    return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _value in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return value


def dumps(value: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """Return a mapping as HuJSON, in its own order, two spaces deep; ``comments`` stand above keys of the top level."""
    lines = ["{"]
    for name, inner in value.items():
        said = (comments or {}).get(name)
        lines += [f"{_INDENT}// {line}" for line in said.splitlines()] if said else []
        lines.append(f"{_INDENT}{_text(name)}: {_dump(inner, 1)},")
    return "\n".join([*lines, "}"]) + "\n"


def _dump(value: Any, depth: int) -> str:
    """Return a value, on one line where it is short or holds nothing that holds more; ``depth`` is its own indent."""
    flat = _flat(value)
    nested = isinstance(value, (dict, list)) and any(isinstance(inner, (dict, list)) for inner in _inner(value))
    # a rule is read as one line, a list of rules is not
    rule = isinstance(value, dict) and depth > 1
    if not isinstance(value, (dict, list)) or not value or (len(flat) <= WIDTH and (rule or not nested)):
        return flat
    pad = _INDENT * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{pad}{_text(name)}: {_dump(inner, depth + 1)}," for name, inner in value.items()]
        return "\n".join(["{", *lines, _INDENT * depth + "}"])
    return "\n".join(["[", *(f"{pad}{_dump(inner, depth + 1)}," for inner in value), _INDENT * depth + "]"])


def _inner(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def _flat(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
