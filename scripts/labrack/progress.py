# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show the steps of a long command: live lines on a terminal, one plain line per finished thing elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

#: Columns of a step's or a node's name.
NAME_WIDTH = 10


@dataclass
class Row:
    """What one node does now."""

    text: str
    #: Tasks that it has finished.
    done: int
    since: float


@dataclass
class Step:
    """One step while it runs. Its methods may be called from any thread."""

    name: str
    console: Console
    live: bool
    started: float = field(default_factory=time.monotonic)
    #: What the line of the finished step says.
    summary: str = ""
    _text: str = ""
    _rows: dict[str, Row] = field(default_factory=dict)
    _spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="cyan"))

    def doing(self, text: str) -> None:
        """Set the step's live line: what goes on now. Shown on a terminal only."""
        self._text = text

    def say(self, text: str) -> None:
        """Tell what goes on now: the live line on a terminal, a line of its own elsewhere."""
        self.doing(text)
        if not self.live:
            self.console.print(f"  {text}", style="dim", highlight=False, markup=False, soft_wrap=True)

    def node(self, name: str, text: str, done: int) -> None:
        """Set a node's live line: what it does now, and how many tasks it has done. Shown on a terminal only."""
        row = self._rows.get(name)
        since = row.since if row and row.text == text else time.monotonic()
        self._rows[name] = Row(text, done, since)

    def finished(self, text: str, seconds: float) -> None:
        """Tell that a part of the step is done. Shown where nothing is live."""
        if not self.live:
            self.say(f"{text} ({seconds:.1f} s)")

    @property
    def seconds(self) -> float:
        """How long the step has been running."""
        return time.monotonic() - self.started

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the step's line and a line for each node."""
        now = time.monotonic()
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(width=NAME_WIDTH, no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True, min_width=6)
        table.add_row(self._spinner, Text(self.name, "bold"), Text(self._text), "", f"{self.seconds:.0f} s")
        for name, row in sorted(self._rows.items()):
            seconds = f"{now - row.since:.0f} s" if row.text else ""
            table.add_row("", Text(f"  {name}", "cyan"), Text(row.text), Text(f"{row.done} done", "dim"), seconds)
        yield table


class Progress:
    """The steps of one command, on one console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        #: Name and seconds of every finished step, in order.
        self.seconds: list[tuple[str, float]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Show a step while the block runs; afterwards one line with its summary and its seconds stays.

        An error in the block goes through, after a line that says which step it was.
        """
        live = self.console.is_terminal
        step = Step(name, self.console, live)
        if not live:
            self.console.print(f"{name} ...", highlight=False)
        try:
            with Live(step, console=self.console, refresh_per_second=8, transient=True) if live else nullcontext():
                yield step
        except BaseException:
            self._line("✗", "red", name, "not finished", step.seconds)
            raise
        self._line("✓", "green", name, step.summary, step.seconds)
        self.seconds.append((name, step.seconds))

    def _line(self, mark: str, style: str, name: str, summary: str, seconds: float) -> None:
        line = Text.assemble(
            (mark, style), " ", (f"{name:<{NAME_WIDTH}} ", "bold"), summary, (f"  {seconds:.1f} s", "dim")
        )
        self.console.print(line, soft_wrap=True)
