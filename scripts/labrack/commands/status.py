# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack status``: the lab on one screen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .. import shell

#: Seconds between two looks, where nobody says.
SECONDS = "10"


class _Command(TyperCommand):
    """Lets ``--watch`` stand without its seconds, which typer has no way to say."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[str] = []
        for place, word in enumerate(args):
            given.append(word)
            if word == "--watch" and not re.fullmatch(r"[\d.]+", "".join(args[place + 1 : place + 2])):
                given.append(SECONDS)
        return super().parse_args(ctx, given)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status", cls=_Command)(show_status)


def show_status(
    inventory: shell.InventoryOption = None,
    as_json: shell.JsonOption = False,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch", metavar="[SECONDS]", min=1, help=f"Look again and again, every {SECONDS} seconds unless told."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", dir_okay=False, help="Write a web page that needs nothing else."),
    ] = None,
) -> None:
    """Show the lab on one screen: nodes, GPUs, jobs, storage, and what somebody should look at.

    A node that gives no answer is shown as such, and is no error. Changes nothing. `--watch 30 --html FILE` keeps a
    page fresh, which loads itself again.
    """
    from .. import lab, status

    with shell.errors():
        found = lab.load(lab.inventory(inventory))
        status.show(found, shell.console(), shell.console(stderr=True), as_json=as_json, watch=watch, html=html)
