# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The commands and files that stand in the pages of docs/, as a reader takes them from there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parents[1] / "docs"
#: Programs whose commands also stand in the text, between backquotes.
PROGRAMS = ("ansible-playbook", "labrack", "sky")


def blocks(page: str, language: str) -> list[str]:
    """The page's code blocks in a language, without the indent that they have in a list."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def commands(page: str) -> list[str]:
    """The lines of the page's shell blocks in their order, those that go on joined."""
    return [line for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]


def calls(page: str) -> list[str]:
    """Every call of one of :data:`PROGRAMS`, in blocks and in the text, without comments."""
    text = (DOCS / page).read_text(encoding="utf-8")
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    lines = [line.partition(" #")[0] for line in commands(page)]
    parts = [part.strip() for line in (*lines, *spans) for part in line.split(";")]
    # a program of an environment is that program
    named = [f"{Path(first).name} {rest}" for first, blank, rest in (part.partition(" ") for part in parts) if blank]
    return [call for call in named if call.startswith(tuple(f"{program} " for program in PROGRAMS))]


def documents(page: str) -> list[Any]:
    """What the page's YAML blocks hold."""
    return [yaml.safe_load(block) for block in blocks(page, "yaml")]
