# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``labrack``: its commands are in :mod:`.commands`, what they do in the other modules."""

from __future__ import annotations

from typing import Annotated

import typer

from . import __version__, shell
from .commands import demo, doctor, drift, edit, gitops, init, plan, status, storage

# 2 is an answer of some commands
typer.BadParameter.__mro__[1].exit_code = shell.USAGE  # type: ignore[attr-defined]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit status: 0 done, 1 failed, 2 changes or findings, 64 wrong usage, 75 another run goes on, "
    "77 not allowed, 130 interrupted.",
)
for _commands in (init, doctor, plan, status, storage, drift, edit, gitops, demo):
    _commands.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"labrack {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn a small lab's GPU machines into one shared cluster, and keep them that way."""
