# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack plan`` and ``labrack apply``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .. import shell

if TYPE_CHECKING:
    from ..lab import Lab
    from ..planning import Plan

EPILOG = "What stands after `--` goes to ansible-playbook as it is, such as `-- --ask-vault-pass -v`."
#: Where a command's context keeps it.
ARGUMENTS = "labrack.arguments"


class PassThrough(TyperCommand):
    """A command that keeps what stands after ``--`` for another one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the words before ``--`` for this command."""
        place = args.index("--") if "--" in args else len(args)
        ctx.meta[ARGUMENTS] = args[place + 1 :]
        return super().parse_args(ctx, args[:place])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name what may follow."""
        return [*super().collect_usage_pieces(ctx), "[-- ARGUMENTS]"]


LimitOption = Annotated[
    list[str] | None, typer.Option("--limit", "-l", help="Only these hosts or groups, as Ansible's --limit.")
]
TagsOption = Annotated[list[str] | None, typer.Option("--tags", "-t", help="Only these roles, such as `slurm`.")]
ConsentOption = Annotated[
    str,
    typer.Option(
        "--consent",
        metavar="CLASS",
        help="The most that may be disrupted in this run, whatever the inventory says: none, reload, restart, drain "
        "(nodes are emptied first), reboot.",
    ),
]
PrintOption = Annotated[
    bool, typer.Option("--print-command", help="Print the line of ansible-playbook that does it, and do nothing.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("plan", cls=PassThrough, epilog=EPILOG)(show_plan)
    app.command("apply", cls=PassThrough, epilog=EPILOG)(apply_plan)


def show_plan(
    ctx: typer.Context,
    inventory: shell.InventoryOption = None,
    limit: LimitOption = None,
    tags: TagsOption = None,
    consent: ConsentOption = "",
    save: Annotated[
        Path | None, typer.Option("--save", "-o", metavar="FILE", help="Save the plan, for `labrack apply FILE`.")
    ] = None,
    diffs: Annotated[bool, typer.Option("--diff", help="Show the texts that would change as well.")] = False,
    print_command: PrintOption = False,
    as_json: shell.JsonOption = False,
) -> None:
    """Show what `labrack apply` would change, and change nothing.

    For each node, by role, with the disruption class of each change (none, reload, restart, drain, reboot); what waits
    for your consent; and whose jobs that affects. Exit status: 0 nothing to do, 2 changes, 1 something failed.
    """
    from .. import lab, plan_view, planning

    with shell.errors("Nothing was changed."):
        found = lab.load(lab.inventory(inventory))
        given = _given(ctx, consent, tags, limit)
        if print_command:
            typer.echo(_command(found, given, check=True))
            return
        plan = _make(found, _asked(given))
        if save:
            planning.write(plan, save)
        if as_json:
            typer.echo(plan.text(), nl=False)
        else:
            shell.console().print(plan_view.plan_screen(plan, diffs), soft_wrap=True)
        if save and not as_json:
            shell.console().print(f"Saved; to apply just that: labrack apply {save}", markup=False, soft_wrap=True)
        raise typer.Exit(plan.status())


def apply_plan(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A plan that `labrack plan -o FILE` saved.")
    ] = None,
    inventory: shell.InventoryOption = None,
    limit: LimitOption = None,
    tags: TagsOption = None,
    consent: ConsentOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't show the plan first, and don't ask.")] = False,
    print_command: PrintOption = False,
    as_json: shell.JsonOption = False,
) -> None:
    """Make the lab as the inventory says: show the plan, ask, apply it, and sum up.

    With FILE just that plan is applied, or nothing where nodes, inventory or labrack are not what they were. What ends
    jobs waits for consent. A node that fails doesn't hold the others, but for the head. Exit status: 0 done, though
    things may be pending, 1 failed on a node.
    """
    from .. import lab, lease, plan_view, planning
    from ..progress import Progress

    progress = Progress(shell.console(stderr=True))
    with shell.errors("What was done stays; `labrack apply` goes on from there."):
        saved = planning.read(file) if file else None
        given = _given(ctx, consent, tags, limit)
        if saved:
            if any(given.values()):
                raise shell.UsageError(
                    "A saved plan has its own --limit, --tags, --consent and arguments: leave them out."
                )
            given = {key: getattr(saved, key) for key in given}
            inventory = inventory or [Path(one) for one in saved.inventory]
        found = lab.load(lab.inventory(inventory))
        if print_command:
            typer.echo(_command(found, given, check=False))
            return
        if not yes and not sys.stdin.isatty():
            raise shell.UsageError(
                "There is no terminal to ask on. Look at `labrack plan` first, then give --yes to apply it."
            )
        given = _asked(given)
        with planning.lock(found.state):
            if not yes and not _agreed(saved or _make(found, given)):
                return
            to_reach = {"arguments": planning.connection_arguments(given["arguments"]), "answers": given["answers"]}
            holding = lease.held(found, found.state / "lease.log", progress, "labrack apply", **to_reach)
            with holding, progress.step("Apply") as step:
                applied = planning.apply(found, found.state / "apply.log", step, plan=saved, **given)
                step.summary = ", ".join(applied.hosts)
        if as_json:
            typer.echo(applied.text(), nl=False)
        else:
            shell.console().print(plan_view.applied_screen(applied, given["tags"], given["limit"]), soft_wrap=True)
        raise typer.Exit(applied.status())


def _given(ctx: typer.Context, consent: str, tags: list[str] | None, limit: list[str] | None) -> dict[str, Any]:
    """Return the keyword arguments of :mod:`.planning` that stand on the command line."""
    return {"consent": consent, "tags": tags or (), "limit": limit or (), "arguments": ctx.meta[ARGUMENTS]}


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    """Return them with the passwords that they ask for."""
    from .. import run

    return {**given, "answers": run.answers(given["arguments"])}


def _command(lab: Lab, given: dict[str, Any], check: bool) -> str:
    from .. import planning, run

    extra = planning.variables(given["consent"])
    options = {"check": check, "diff": check, "limit": given["limit"], "arguments": given["arguments"]}
    return run.printed(run.command(lab.playbook, lab.inventory, given["tags"], extra, **options))


def _make(lab: Lab, given: dict[str, Any]) -> Plan:
    from .. import planning
    from ..progress import Progress

    with Progress(shell.console(stderr=True)).step("Plan") as step:
        plan = planning.make(lab, lab.state / "plan.log", step, **given)
        step.summary = ", ".join(plan.nodes)
    return plan


def _agreed(plan: Plan) -> bool:
    """Show the plan, beside the answer of this command, and ask; an Exit where there is nothing to ask."""
    from .. import plan_view

    shell.console(stderr=True).print(plan_view.plan_screen(plan), soft_wrap=True)
    if not plan.changes:
        raise typer.Exit(shell.FAILED if plan.status() == shell.FAILED else shell.OK)
    return typer.confirm("Apply it?", err=True)
