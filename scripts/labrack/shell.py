# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every command shares: exit statuses, messages of errors, and the options that name a lab.

Nothing heavy is imported here, as every start of the command pays for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: Exit statuses. ``CHANGES``: what was asked about is not as the inventory says, or has findings; ``USAGE`` is EX_USAGE
#: of sysexits.h, as 2 says something; ``BUSY`` is EX_TEMPFAIL, for another run that goes on; ``DENIED`` EX_NOPERM.
OK, FAILED, CHANGES, USAGE, BUSY, DENIED, INTERRUPTED = 0, 1, 2, 64, 75, 77, 130
#: Names the inventory where no option does.
INVENTORY_VARIABLE = "LABRACK_INVENTORY"

#: The option ``-i``; :func:`.lab.inventory` makes paths of it.
InventoryOption = Annotated[
    list[Path] | None,
    typer.Option(
        "-i",
        "--inventory",
        envvar=INVENTORY_VARIABLE,
        help="The lab's inventory; more than one may be. Else the folder `inventory` here.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


class UserError(RuntimeError):
    """What a user has to mend: the message says what is wrong, where, and how."""

    #: How the command ends.
    status = FAILED


class UsageError(UserError):
    """A command that can't be meant as it is given."""

    status = USAGE


class BusyError(UserError):
    """Another run goes on."""

    status = BUSY


def console(stderr: bool = False) -> Console:
    """Return the console for answers, or for what is told beside them; plain text where it is no terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def errors(interrupted: str = "") -> Iterator[None]:
    """Turn an error into one readable block and its exit status; an interrupt into a line and 130."""
    try:
        yield
    except KeyboardInterrupt:
        console(stderr=True).print(f"Interrupted. {interrupted}".rstrip(), markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except UserError as error:
        block("Failed", str(error))
        raise typer.Exit(error.status) from None
    except RuntimeError as error:
        from .run import RunError
        from .testnode.docker import LabError

        if isinstance(error, RunError):
            failed_run(error)
        elif isinstance(error, LabError):
            block("Failed", str(error))
        else:
            raise
        raise typer.Exit(FAILED) from None


def failed_run(error: RuntimeError) -> None:
    """Print what failed where in a :class:`.run.RunError`, and the file that has the whole log."""
    from rich.text import Text

    from .run import RunError

    assert isinstance(error, RunError)
    for failure in error.failures:
        block(Text.assemble((failure.node, "bold red"), ": ", (failure.task, "bold")), failure.message)
    block(Text("The whole log"), str(error.log))


def block(heading: str | Text, text: str) -> None:
    """Print a heading and indented lines to standard error; a heading that is a plain text is an error's."""
    from rich.text import Text

    shown = console(stderr=True)
    shown.print(Text(heading, "bold red") if isinstance(heading, str) else heading, soft_wrap=True)
    for line in text.splitlines():
        shown.print(Text(f"  {line}"), soft_wrap=True)


def home() -> Path:
    """Return the directory of ansible.cfg and inventories/: the checkout, or the installed package."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "ansible.cfg").is_file() else Path(__file__).resolve().parent


def state_home() -> Path:
    """Return the directory of labrack's own files about labs: ``~/.local/state/labrack`` unless XDG says otherwise."""
    from ansible_collections.labrack.infra.plugins.plugin_utils import run_record

    return run_record.state_home()
