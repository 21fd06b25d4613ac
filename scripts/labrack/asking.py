# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask on the terminal; where there is none, say which option was to be given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from .shell import UserError


def terminal() -> bool:
    """Return whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def yes(question: str, option: str, default: bool = False) -> bool:
    """Ask for a yes or no; UserError that names the option where there is no terminal."""
    return bool(_ask("confirm", question, option, default=default))


def text(question: str, option: str, default: str = "", problem: Callable[[str], str] = lambda _: "") -> str:
    """Ask for a line; ``problem`` says what is wrong with one, "" for nothing."""
    return str(_ask("text", question, option, default=default, validate=lambda line: problem(line) or True)).strip()


def one(question: str, option: str, choices: Sequence[tuple[str, str]], default: str) -> str:
    """Ask for one of some (value, words)."""
    from questionary import Choice

    entries = [Choice(words, value=value) for value, words in choices]
    return str(_ask("select", question, option, choices=entries, default=default))


def some(question: str, option: str, choices: Sequence[tuple[str, str]]) -> list[str]:
    """Ask for any of some (value, words)."""
    from questionary import Choice

    entries = [Choice(words, value=value) for value, words in choices]
    return list(_ask("checkbox", question, option, choices=entries))


def _ask(kind: str, question: str, option: str, **arguments: Any) -> Any:
    if not terminal():
        raise UserError(f"{question} There is no terminal to ask on: give {option}.")
    import questionary

    # KeyboardInterrupt goes through
    return getattr(questionary, kind)(question, **arguments).unsafe_ask()
