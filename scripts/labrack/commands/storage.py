# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack storage``: who uses what."""

from __future__ import annotations

import json

import typer

from .. import shell


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("storage")(show_storage)


def show_storage(
    inventory: shell.InventoryOption = None,
    as_json: shell.JsonOption = False,
) -> None:
    """Show the lab's directories, and who uses what of them: people and projects, with their quotas."""
    from .. import lab, storage
    from ..progress import Progress

    # what goes on is told beside the answer
    progress = Progress(shell.console(stderr=True))
    with shell.errors():
        paths = lab.inventory(inventory)
        with progress.step("Storage") as step:
            reports = storage.read(paths, lab.state_dir(paths) / "storage.log", step)
            step.summary = ", ".join(report["host"] for report in reports)
        if as_json:
            typer.echo(json.dumps(reports, indent=2))
        else:
            shell.console().print(storage.render(reports))
