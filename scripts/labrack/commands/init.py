# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack init``: an inventory from a few answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import shell


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("init")(make_lab)


def make_lab(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The lab's folder; it is made.")] = Path("."),
    name: Annotated[str, typer.Option("--name", help="What the lab is called. Else as the folder.")] = "",
    machine: Annotated[
        list[str] | None,
        typer.Option(
            "--machine", "-m", metavar="NAME=HOST[:PORT]", help="A machine; NAME=local is the one this runs on."
        ),
    ] = None,
    user: Annotated[str, typer.Option("--user", help="Who logs in there, and may use sudo.")] = "",
    private_key: Annotated[
        str, typer.Option("--private-key", metavar="FILE", help="The key for it, if not yours.")
    ] = "",
    need: Annotated[
        list[str] | None,
        typer.Option("--need", help="What matters to the team: fair_share, cloud, services, growth, no_kubernetes."),
    ] = None,
    head: Annotated[str, typer.Option("--head", help="The machine people log in to. Else the weakest.")] = "",
    worker: Annotated[
        list[str] | None, typer.Option("--worker", help="A machine that runs jobs. Else those with GPUs.")
    ] = None,
    orchestrator: Annotated[
        str, typer.Option("--orchestrator", help="slurm, skypilot or none. Else what is recommended.")
    ] = "",
    share: Annotated[
        bool | None, typer.Option("--share/--no-share", help="Share /data and /checkpoints from the head. It is done.")
    ] = None,
    fingerprint: Annotated[
        list[str] | None,
        typer.Option("--fingerprint", metavar="SHA256:…", help="A host key's; each machine must have one of them."),
    ] = None,
    accept_host_keys: Annotated[
        bool, typer.Option("--accept-host-keys", help="Pin whatever host keys the machines show now.")
    ] = False,
    vault_password_file: Annotated[
        str, typer.Option("--vault-password-file", metavar="FILE", help="Else ~/.config/labrack/NAME.vault.")
    ] = "",
    answers: Annotated[
        Path | None, typer.Option("--answers", metavar="FILE", help="A YAML file with answers; options go before it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
) -> None:
    """Make a lab's folder from a few questions: inventory, vault, pinned host keys.

    Looks at the machines by ssh, changes nothing on them, and says which orchestrator suits your team and why.
    Without a terminal, options and the answers file say everything: at least machines, user and host keys.
    """
    with shell.errors("Nothing was changed."):
        from .. import init
        from ..progress import Progress

        given: dict[str, Any] = init.answers(answers) if answers else {}
        if machine:
            given["machines"] = dict(word.partition("=")[::2] for word in machine)
            if len(given["machines"]) < len(machine):
                raise shell.UserError("--machine: two of them have the same name.")
        told = {
            "name": name,
            "user": user,
            "private_key": private_key,
            "needs": need,
            "head": head,
            "workers": worker,
            "orchestrator": orchestrator,
            "share": share,
            "fingerprints": fingerprint,
            "accept_host_keys": accept_host_keys,
            "vault_password_file": vault_password_file,
        }
        given |= {key: value for key, value in told.items() if value or (key == "share" and value is not None)}
        _made, files = init.make(folder, given, force, Progress(shell.console(stderr=True)))
        for file in files:
            typer.echo(f"wrote {file}")
        typer.echo(
            f"Next, in {folder}: labrack doctor, then labrack plan. To add people: labrack user add NAME --key FILE"
        )
