# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack demo``: try it without hardware."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .. import shell
from ..testnode.image import SYSTEMS

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="demo")


@app.callback()
def demo_root() -> None:
    """Try it without hardware: a closet, or a machine under a desk, in containers, with stand-in GPUs."""


class Tier(StrEnum):
    """What the demo makes, see :data:`..demo.TIERS`."""

    closet = "closet"
    under_desk = "under_desk"


def _known_system(system: str) -> str:
    if system not in SYSTEMS:
        raise typer.BadParameter(f"{system!r} is none of {', '.join(SYSTEMS)}")
    return system


@app.command("up")
def demo_up(
    system: Annotated[
        str,
        typer.Option(metavar="SYSTEM", callback=_known_system, help=f"The nodes' system: {', '.join(SYSTEMS)}."),
    ] = "debian13",
    script: Annotated[bool, typer.Option(help="Let two researchers share the GPUs, as a check.")] = True,
    tailnet: Annotated[
        bool, typer.Option("--tailnet", help="Give the lab a tailnet with its own headscale; in a checkout, with Go.")
    ] = False,
    tier: Annotated[
        Tier,
        typer.Option(help="A closet of a head and two workers with Slurm, or a machine under a desk with SkyPilot."),
    ] = Tier.closet,
    bare: Annotated[
        bool, typer.Option("--bare", help="Start the machines and nothing else, and write machines.yml for `init`.")
    ] = False,
) -> None:
    """Start the demo's lab, configure it over ssh with its tier's playbook, and let two researchers share its GPUs.

    Where no Docker engine runs, the distribution's is installed (Debian and Ubuntu, as root). With the lab there
    already, configure it again and play the script again. A tailnet, once there, stays.
    """
    from .. import demo
    from ..progress import Progress

    with shell.errors("The lab stays as it is: `labrack demo up` goes on, `labrack demo down` ends it."):
        if bare:
            demo.bare(system, Progress(shell.console()), Path("machines.yml"))
            return
        demo.up(system, script, Progress(shell.console()), tailnet, tier.value)


@app.command("status")
def demo_status(
    as_json: shell.JsonOption = False,
) -> None:
    """Show the demo as `labrack status -i` shows a lab."""
    from .. import demo, status

    with shell.errors():
        seen = demo.read_status()
        if as_json:
            typer.echo(json.dumps(seen.to_json(), indent=2))
        else:
            shell.console().print(status.render(seen))


@app.command("down")
def demo_down() -> None:
    """End the demo: remove its containers, network, keys and log. Images stay, for the next time."""
    from .. import demo
    from ..progress import Progress

    with shell.errors():
        demo.down(Progress(shell.console()))
