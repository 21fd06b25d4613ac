# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command ``labrack``: arguments, messages and exit statuses. What it does is in the other modules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from . import __version__, demo, status, storage
from .progress import Progress
from .run import RunError
from .testnode.docker import LabError
from .testnode.image import SYSTEMS

FAILED, INTERRUPTED = 1, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
)
demo_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(demo_app, name="demo")


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


@demo_app.callback()
def demo_root() -> None:
    """Try it without hardware: a head and two workers in containers, with stand-in GPUs and a real Slurm."""


def _known_system(system: str) -> str:
    if system not in SYSTEMS:
        raise typer.BadParameter(f"{system!r} is none of {', '.join(SYSTEMS)}")
    return system


@demo_app.command("up")
def demo_up(
    system: Annotated[
        str,
        typer.Option(metavar="SYSTEM", callback=_known_system, help=f"The nodes' system: {', '.join(SYSTEMS)}."),
    ] = "debian13",
    script: Annotated[bool, typer.Option(help="Let two researchers share the GPUs, as a check.")] = True,
    tailnet: Annotated[
        bool, typer.Option("--tailnet", help="Give the lab a tailnet with its own headscale; in a checkout, with Go.")
    ] = False,
) -> None:
    """Start the demo's lab, configure it with closet.yml over ssh, and let two researchers share its GPUs.

    Where no Docker engine runs, the distribution's is installed (Debian and Ubuntu, as root). With the lab there
    already, configure it again and play the script again. A tailnet, once there, stays.
    """
    progress = Progress(Console(highlight=False))
    with _errors(progress.console, "The lab stays as it is: `labrack demo up` goes on, `labrack demo down` ends it."):
        demo.up(system, script, progress, tailnet)


@demo_app.command("status")
def demo_status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Show the demo's nodes, GPUs and queue."""
    console = Console(highlight=False)
    with _errors(console):
        seen = demo.read_status()
        if as_json:
            typer.echo(json.dumps(asdict(seen), indent=2))
        else:
            console.print(status.render(seen))


@demo_app.command("down")
def demo_down() -> None:
    """End the demo: remove its containers, network, keys and log. Images stay, for the next time."""
    console = Console(highlight=False)
    with _errors(console):
        demo.down(Progress(console))


@app.command("storage")
def show_storage(
    inventory: Annotated[
        list[Path], typer.Option("-i", "--inventory", exists=True, help="The lab's inventory; more than one may be.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Show the lab's directories, and who uses what of them: people and projects, with their quotas."""
    console = Console(highlight=False)
    # what goes on is told beside the answer
    progress = Progress(Console(stderr=True, highlight=False))
    with _errors(progress.console):
        log = demo.state_dir().parent / "storage.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with progress.step("Storage") as step:
            reports = storage.read([path.resolve() for path in inventory], log, step)
            step.summary = ", ".join(report["host"] for report in reports)
        if as_json:
            typer.echo(json.dumps(reports, indent=2))
        else:
            console.print(storage.render(reports))


@contextmanager
def _errors(console: Console, interrupted: str = "") -> Iterator[None]:
    """Turn an error into one readable block and exit status 1; an interrupt into a line and exit status 130."""
    try:
        yield
    except RunError as error:
        for failure in error.failures:
            heading = Text.assemble((failure.node, "bold red"), ": ", (failure.task, "bold"))
            _block(heading, failure.message)
        _block(Text("The whole log"), str(error.log))
        raise typer.Exit(FAILED) from None
    except LabError as error:
        _block(Text("Failed", "bold red"), str(error))
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        console.print(Text(f"Interrupted. {interrupted}".rstrip()), soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def _block(heading: Text, text: str) -> None:
    console = Console(stderr=True, highlight=False)
    console.print(heading, soft_wrap=True)
    for line in text.splitlines():
        console.print(Text(f"  {line}"), soft_wrap=True)
