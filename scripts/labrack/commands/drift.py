# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack drift``: what is no longer as the last run left it."""

from __future__ import annotations

import json

import typer

from .. import shell


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("drift")(show_drift)


def show_drift(
    inventory: shell.InventoryOption = None,
    as_json: shell.JsonOption = False,
) -> None:
    """Show what was changed on the nodes since the last apply, by hand or by something else; nothing is mended.

    Ends with 0 where all is as it was left, with 2 where something differs, with 1 where a node could not tell.
    """
    from .. import drift, lab
    from ..progress import Progress

    # what goes on is told beside the answer
    progress = Progress(shell.console(stderr=True))
    with shell.errors():
        found = lab.load(lab.inventory(inventory))
        with progress.step("Drift") as step:
            reports = drift.read(found, found.state / "drift.log", step)
            step.summary = ", ".join(report["host"] for report in reports)
        if as_json:
            typer.echo(json.dumps(reports, indent=2))
        else:
            shell.console().print(drift.render(reports))
    raise typer.Exit(drift.status(reports))
