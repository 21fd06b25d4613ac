# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack node``, ``labrack user``, ``labrack job-impact``: front ends of the playbooks that edit the inventory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import shell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..front_end import Play
    from ..inventory_edit import Edit
    from ..lab import Lab

Name = Annotated[str, typer.Argument(help="A machine's name in the inventory.", show_default=False)]
Person = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; the edit is shown all the same.")]
NoRun = Annotated[bool, typer.Option("--no-run", help="Edit the inventory, and leave the nodes to the next run.")]
Command = Annotated[bool, typer.Option("--print-command", help="Print the ansible-playbook lines, and do nothing.")]

node_commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
user_commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(node_commands, name="node", help="Let a node join or leave, or take no jobs for a while.")
    app.add_typer(user_commands, name="user", help="Add somebody, lock an account, or remove it.")
    app.command("job-impact")(job_impact)


@node_commands.command("join")
def node_join(
    name: Name,
    address: Annotated[
        str,
        typer.Option("--address", metavar="HOST[:PORT]", help="Where ssh reaches it, unless it is listed."),
    ] = "",
    group: Annotated[list[str] | None, typer.Option("--group", help="Groups for it. Else lab_workers.")] = None,
    fingerprint: Annotated[
        list[str] | None,
        typer.Option("--fingerprint", metavar="SHA256:…", help="Its host key's, instead of a look at what it shows."),
    ] = None,
    accept_host_key: Annotated[
        bool, typer.Option("--accept-host-key", help="Pin whatever host key it shows now.")
    ] = False,
    inventory: shell.InventoryOption = None,
    yes: Yes = False,
    no_run: NoRun = False,
    print_command: Command = False,
) -> None:
    """Add a worker to the inventory and make it one: the others keep their jobs and daemons."""
    with shell.errors("The node may be half made; the same command goes on with it."):
        from .. import front_end, inventory_edit, lab, node_edit

        paths = lab.inventory(inventory)
        play = front_end.Play(f"Join {name}", "labrack.infra.node_join", variables={"node": name})
        if print_command:
            _print([play], paths)
            return
        edits = node_edit.join(paths, name, address, group or ["lab_workers"], fingerprint or (), accept_host_key)
        after = front_end.agreed(paths, edits, yes)
        if after is None:
            raise typer.Exit(shell.FAILED)
        inventory_edit.write(edits)
        if no_run:
            return
        node_edit.see_worker(after, name)
        front_end.run(paths, [play])
        typer.echo(f"{name} is in the lab.")


@node_commands.command("leave")
def node_leave(
    name: Name,
    inventory: shell.InventoryOption = None,
    yes: Yes = False,
    no_run: NoRun = False,
    print_command: Command = False,
) -> None:
    """Take a worker out after its jobs have ended, then out of the inventory. Its accounting stays."""
    with shell.errors("The inventory still has the node; the same command goes on."):
        from .. import front_end, inventory_edit, lab, node_edit

        paths = lab.inventory(inventory)
        play = front_end.Play(f"Leave {name}", "labrack.infra.node_leave", variables={"node": name})
        if print_command:
            _print([play], paths)
            return
        edits = node_edit.leave(paths, name)
        if front_end.agreed(paths, edits, yes) is None:
            raise typer.Exit(shell.FAILED)
        if not no_run:
            front_end.run(paths, [play])
        inventory_edit.write(edits)
        typer.echo(f"{name} is out of the {'inventory' if no_run else 'lab and its inventory'}.")
        for line in node_edit.left(paths, name):
            typer.echo(line)


@node_commands.command("drain")
def node_drain(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Workers.", show_default=False)],
    reason: Annotated[str, typer.Option("--reason", help="Why, in a few words; everybody sees it in sinfo.")] = "",
    wait: Annotated[int, typer.Option("--wait", metavar="SECONDS", min=0, help="Wait for the jobs to end.")] = 0,
    inventory: shell.InventoryOption = None,
    print_command: Command = False,
) -> None:
    """Let workers take no new jobs; those that run go on. No run of labrack takes this drain back."""
    variables = {"node": ",".join(names), **({"node_reason": reason} if reason else {})}
    _drain(inventory, {**variables, **({"node_timeout": str(wait)} if wait else {})}, print_command)


@node_commands.command("resume")
def node_resume(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Workers.", show_default=False)],
    inventory: shell.InventoryOption = None,
    print_command: Command = False,
) -> None:
    """Let workers take jobs again that labrack drained. What was drained by hand or for a fault stays drained."""
    _drain(inventory, {"node": ",".join(names), "node_state": "resumed"}, print_command)


@user_commands.command("add")
def user_add(
    name: Person,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="FILE|LINE", help="A public ssh key: its file, or the line itself."),
    ] = None,
    uid: Annotated[int | None, typer.Option("--uid", help="Else a free one is chosen and kept.")] = None,
    groups: Annotated[str, typer.Option("--groups", metavar="A,B", help="Names in lab_groups.")] = "",
    account: Annotated[str, typer.Option("--account", help="Whose share of the GPUs the jobs use, in Slurm.")] = "",
    comment: Annotated[str, typer.Option("--comment", help="The full name.")] = "",
    sudo: Annotated[bool, typer.Option("--sudo", help="May become root on all machines.")] = False,
    inventory: shell.InventoryOption = None,
    yes: Yes = False,
    no_run: NoRun = False,
    print_command: Command = False,
) -> None:
    """Add somebody: the same number, groups and keys on every node, and the right to run jobs."""
    with shell.errors("The inventory may have the entry; `labrack apply --tags lab_users,slurm` makes the account."):
        from .. import front_end, inventory_edit, lab, user_edit

        paths = lab.inventory(inventory)
        names = [one for one in groups.split(",") if one]
        entry = user_edit.entry(name, uid, names, account, comment, sudo, user_edit.keys(key or ()))
        edit = inventory_edit.add_user(paths, entry)
        _user([edit], paths, yes, no_run, print_command, lambda after: [front_end.people_plays(after, f"Add {name}")])


@user_commands.command("lock")
def user_lock(
    name: Person,
    inventory: shell.InventoryOption = None,
    yes: Yes = False,
    no_run: NoRun = False,
    print_command: Command = False,
) -> None:
    """Let nothing open an account any more, here and in the tailnet. Files stay, jobs as the inventory says."""
    with shell.errors("Some nodes may still let the account in; the same command goes on."):
        from .. import front_end, inventory_edit, lab, user_edit

        paths = lab.inventory(inventory)
        edit = inventory_edit.change_user(paths, name, user_edit.left(paths, name, "locked"))
        play = front_end.Play(f"Lock {name}", "labrack.infra.offboard", variables={"user": name})
        _user([edit], paths, yes, no_run, print_command, lambda _after: [play])


@user_commands.command("remove")
def user_remove(
    name: Person,
    inventory: shell.InventoryOption = None,
    yes: Yes = False,
    no_run: NoRun = False,
    print_command: Command = False,
) -> None:
    """Lock an account, keep its home as an archive and remove both, once nothing of it runs any more.

    The entry stays in the inventory, so that nobody else gets the number. `lab_users_archive` says where homes go.
    """
    with shell.errors("The same command goes on."):
        from .. import front_end, inventory_edit, lab, user_edit

        paths = lab.inventory(inventory)
        edit = inventory_edit.change_user(paths, name, user_edit.left(paths, name, "absent"))
        lock = front_end.Play(f"Lock {name}", "labrack.infra.offboard", variables={"user": name})
        # who is locked already is so in the tailnet too
        first = [lock] if inventory_edit.user(paths, name).get("state", "present") == "present" else []

        def plays(after: Lab) -> list[Play]:
            return [*first, front_end.people_plays(after, f"Remove {name}")]

        _user([edit], paths, yes, no_run, print_command, plays)


def job_impact(
    nodes: Annotated[list[str] | None, typer.Argument(metavar="[NODE]…", help="Else all workers.")] = None,
    inventory: shell.InventoryOption = None,
    as_json: shell.JsonOption = False,
) -> None:
    """Show which jobs a drain or a reboot of nodes would hit, whose they are, and until when they may run.

    Also what earlier runs left for want of consent. Exit status 2 when there are jobs, 0 when there are none.
    """
    from .. import job_impact as impact
    from .. import lab, node_edit
    from ..progress import Progress

    progress = Progress(shell.console(stderr=True))
    with shell.errors():
        paths = lab.inventory(inventory)
        node_edit.see_workers(lab.load(paths), nodes or ())
        state = lab.state_dir(paths)
        with progress.step("Jobs") as step:
            jobs = impact.read(paths, nodes or (), state / "job_impact.log", step)
            step.summary = f"{len(jobs)} on {', '.join(nodes or ['all workers'])}"
        pending = impact.waiting(state, nodes or ())
        if as_json:
            typer.echo(json.dumps(impact.document(jobs, pending), indent=2))
        else:
            shell.console().print(impact.render(jobs, pending))
    raise typer.Exit(shell.CHANGES if jobs else shell.OK)


def _user(
    edits: Sequence[Edit], paths: Sequence[Path], yes: bool, no_run: bool, print_command: bool, plays: Any
) -> None:
    """Carry out an edit of the people."""
    from .. import front_end, inventory_edit

    if print_command:
        front_end.show(edits)
        _print(plays(inventory_edit.check(paths, edits)), paths)
        return
    after = front_end.agreed(paths, edits, yes)
    if after is None:
        raise typer.Exit(shell.FAILED)
    inventory_edit.write(edits)
    if not no_run:
        front_end.run(paths, plays(after))


def _drain(inventory: list[Path] | None, variables: dict[str, str], print_command: bool) -> None:
    """Drain or resume nodes and say what became of each."""
    with shell.errors("Ask `sinfo -R` what is drained."):
        from .. import front_end, lab, node_edit

        paths = lab.inventory(inventory)
        play = front_end.Play("Nodes", "labrack.infra.node_drain", variables=variables)
        if print_command:
            _print([play], paths)
            return
        node_edit.see_workers(lab.load(paths), variables["node"].split(","))
        lines, done = node_edit.drain(paths, play)
        for line in lines:
            typer.echo(line)
        if not done:
            raise typer.Exit(shell.FAILED)


def _print(plays: Sequence[Play], paths: Sequence[Path]) -> None:
    for play in plays:
        typer.echo(play.command(paths))
