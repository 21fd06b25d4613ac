# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read a kubeconfig. Standard library only, so that a node can; only its contexts' names leave the node."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text


def contexts(paths: Sequence[str], root: Path = Path("/")) -> dict[str, list[str] | None]:
    """Return the contexts in each file by name, None where there is no file; one that can't be read is left out."""
    found: dict[str, list[str] | None] = {}
    for path in paths:
        text = read_text(root / path.lstrip("/"))
        if text is None:
            found[path] = None
            continue
        try:
            found[path] = sorted(str(entry["name"]) for entry in read_block_yaml(text)["contexts"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def read_block_yaml(text: str) -> Any:
    """Return what a file holds that is JSON, or YAML as client-go writes it: blocks of scalars; ValueError else."""
    stripped = text.lstrip()
    if stripped.startswith("{"):
        return json.loads(stripped)
    lines = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#") and line.strip() != "---":
            lines.append((len(line) - len(line.lstrip(" ")), line.strip()))
    value, rest = _block(lines, 0)
    if rest != len(lines):
        raise ValueError(f"can't be read from {lines[rest][1][:40]!r} on")
    return value


def _block(lines: list[tuple[int, str]], at: int) -> tuple[Any, int]:
    if at >= len(lines):
        return {}, at
    indent = lines[at][0]
    if lines[at][1].startswith("- ") or lines[at][1] == "-":
        items = []
        while at < len(lines) and lines[at][0] == indent and lines[at][1].startswith("-"):
            inner = lines[at][1][1:].lstrip()
            if inner.startswith("- ") or inner == "-":
                raise ValueError(f"a form that is not read: {lines[at][1][:40]!r}")
            # what follows the dash is the first line of a block of its own, one step in
            lines[at] = (indent + 2, inner)
            if re.match(r"""[^\s"'\[{][^:]*:(\s|$)""", inner):
                item, at = _block(lines, at)
            else:
                item, at = _scalar(inner), at + 1
            items.append(item)
        return items, at
    found: dict[str, Any] = {}
    while at < len(lines) and lines[at][0] == indent and not lines[at][1].startswith("- "):
        key, colon, rest = lines[at][1].partition(":")
        if not colon or (rest and not rest.startswith(" ")):
            raise ValueError(f"no key and value: {lines[at][1][:40]!r}")
        at += 1
        if rest.strip():
            found[str(_scalar(key))] = _scalar(rest.strip())
        elif at < len(lines) and (lines[at][0] > indent or (lines[at][0] == indent and lines[at][1].startswith("- "))):
            found[str(_scalar(key))], at = _block(lines, at)
        else:
            found[str(_scalar(key))] = None
    return found, at


def _scalar(text: str) -> Any:
    if text in ("{}", "[]"):
        return json.loads(text)
    if text.startswith('"'):
        return json.loads(text)
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    if text[:1] in "[{|>&*!%@`":
        raise ValueError(f"a form that is not read: {text[:40]!r}")
    return {"true": True, "false": False, "null": None, "~": None}.get(text, text)
