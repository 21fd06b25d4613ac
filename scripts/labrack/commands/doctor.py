# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack doctor``: what can be known before a change."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .. import shell


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("doctor")(check_lab)


def check_lab(
    inventory: shell.InventoryOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no node: the inventory alone, by all rules, in a moment.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="List what is well, too.")] = False,
    as_json: shell.JsonOption = False,
) -> None:
    """Tell what could go wrong, before anything is changed; each finding says what to do.

    Looks at the **inventory** (the variables of all roles, and the rules that span hosts), at the **nodes** (ssh, sudo,
    Python, clocks, names, disks, package sources, GPUs, people's numbers), at the **network** between them (links,
    packets, names, the ports that daemons need, really tried), and at **power and cooling** against `lab_circuits` and
    `lab_cooling_watts`. Nothing is changed; a node that does not answer is a finding.

    Exit status: 0 nothing to mend, 2 warnings, 1 errors, which a run would stop at or suffer from.
    """
    from .. import doctor, lab

    with shell.errors():
        the_lab = lab.load(lab.inventory(inventory))
        if offline:
            findings = doctor.run(the_lab, the_lab.state / "doctor.log", offline=True)
        else:
            from ..progress import Progress

            # what goes on is told beside the answer
            with Progress(shell.console(stderr=True)).step("Doctor") as step:
                findings = doctor.run(the_lab, the_lab.state / "doctor.log", step)
                step.summary = ", ".join(the_lab.members)
        if as_json:
            typer.echo(json.dumps(doctor.as_json(findings, everything), indent=2))
        else:
            doctor.show(shell.console(), findings, everything)
        if doctor.status(findings):
            raise typer.Exit(doctor.status(findings))
