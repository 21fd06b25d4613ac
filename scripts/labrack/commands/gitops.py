# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack gitops``: a repository that is applied by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import shell
from .plan import ARGUMENTS, EPILOG, PassThrough

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
ConfigOption = Annotated[
    Path,
    typer.Option("--config", envvar="LABRACK_GITOPS_CONFIG", help="The configuration, see docs/GITOPS.md."),
]
_CONFIG = Path("/etc/labrack/gitops.toml")


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app, name="gitops")


@app.callback()
def gitops_root() -> None:
    """Keep the lab as a git repository says, by signed commits alone."""


@app.command("run")
def gitops_run(
    config: ConfigOption = _CONFIG,
    accept: Annotated[
        str,
        typer.Option(metavar="COMMIT", help="Take this signed commit, by its full id, after a rewritten history."),
    ] = "",
    as_json: shell.JsonOption = False,
) -> None:
    """Do one reconcile: fetch, verify, doctor, plan, apply up to the consented disruption, report.

    Exit status: 0 done, though changes may be pending; 1 failed, or the commit is refused and the old state stays;
    75 another run goes on, or the next try is not due; 77 a commit that nobody trusted has signed, or a rewritten
    history.
    """
    from .. import gitops, gitops_config
    from ..progress import Progress

    with shell.errors("Nothing is half done: the next run goes on from here."):
        report = gitops.run(gitops_config.load(config), Progress(shell.console(stderr=True)), accept)
        if as_json:
            typer.echo(json.dumps(gitops.document(report), indent=2))
        elif report.rc == shell.OK:
            typer.echo(f"{report.result.replace('_', ' ')}, commit {report.commit[:12]}: {report.message}")
        if report.rc != shell.OK:
            shell.block(gitops.HEADINGS[report.result], report.message)
            raise typer.Exit(report.rc)


@app.command("status")
def gitops_status(config: ConfigOption = _CONFIG, as_json: shell.JsonOption = False) -> None:
    """Show how the last run ended, which commit is in force where, and what waits.

    Exit status: 0 all is well, 1 the last run failed, 2 changes are pending or nodes are behind.
    """
    from .. import gitops, gitops_config

    with shell.errors():
        seen = gitops.status(gitops_config.load(config))
        if as_json:
            typer.echo(json.dumps(gitops.document(seen), indent=2))
        else:
            shell.console().print(gitops.render(seen), soft_wrap=True)
        raise typer.Exit(seen.rc)


@app.command("install", cls=PassThrough, epilog=EPILOG)
def gitops_install(
    ctx: typer.Context,
    repo: Annotated[str, typer.Option("--repo", metavar="URL", help="The repository, git@git.example.org:lab.git.")],
    allowed_signers: Annotated[
        Path, typer.Option(metavar="FILE", help="Who may sign, as in ssh-keygen(1). The list lies on the head.")
    ],
    inventory: shell.InventoryOption = None,
    branch: Annotated[str, typer.Option(help="The branch that is applied.")] = "main",
    path: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="The inventory's place in the repository. [inventory]")
    ] = None,
    schedule: Annotated[str, typer.Option(help="When, in systemd's words, systemd.time(7).")] = "*:0/15",
    max_disruption: Annotated[str, typer.Option(help="none, reload, restart, drain or reboot: at most, always.")] = (
        "restart"
    ),
    window: Annotated[
        list[str] | None, typer.Option(metavar="WINDOW", help='When more may be done, "Sat 02:00-06:00".')
    ] = None,
    window_disruption: Annotated[str, typer.Option(help="What may be done then at most.")] = "reboot",
    vault_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The password of the repository's vaulted values.")
    ] = None,
    webhook_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the address that is told of failures and changes.")
    ] = None,
    mail: Annotated[str, typer.Option(metavar="ADDRESS", help="Who is told by mail.")] = "",
    known_hosts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The git server's lines for known_hosts.")
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="labrack's wheel; else the labrack that runs is packed.")
    ] = None,
    index_url: Annotated[str, typer.Option(metavar="URL", help="Where the head gets Python packages.")] = (
        "https://pypi.org/simple"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
) -> None:
    """Let the head keep the lab as a repository says: a systemd timer, a hardened service, its own user and key.

    The public half of the key is printed: the git server has to let it read. The same is done by `ansible-playbook
    labrack.infra.gitops`, with the variables of the role. `labrack gitops uninstall` undoes it.
    """
    from .. import gitops_install as installer

    with shell.errors("Run it again to finish."):
        secrets = {
            "gitops_vault_password": installer.read_secret(vault_password_file, "--vault-password-file"),
            "gitops_webhook": installer.read_secret(webhook_file, "--webhook-file"),
        }
        variables: dict[str, Any] = {
            "gitops_repository": repo,
            "gitops_branch": branch,
            "gitops_inventory": path or ["inventory"],
            "gitops_allowed_signers": installer.read_text(allowed_signers, "--allowed-signers"),
            "gitops_schedule": schedule,
            "gitops_max_disruption": max_disruption,
            "gitops_windows": window or [],
            "gitops_window_disruption": window_disruption,
            "gitops_mail": mail,
            "gitops_known_hosts": installer.read_text(known_hosts, "--known-hosts") if known_hosts else "",
            "gitops_wheel": str(wheel.resolve()) if wheel else "",
            "gitops_index_url": index_url,
            **{name: text for name, text in secrets.items() if text is not None},
        }
        key = _install(ctx, inventory, variables, dry_run)
        if key:
            typer.echo(f"Let this key read {repo}, and nothing else:\n{key}")


@app.command("uninstall", cls=PassThrough, epilog=EPILOG)
def gitops_uninstall(
    ctx: typer.Context,
    inventory: shell.InventoryOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and change nothing.")] = False,
) -> None:
    """Take it off the head: timer, service, user, key, labrack itself, and what the runs have written down."""
    with shell.errors("Run it again to finish."):
        _install(ctx, inventory, {"gitops_state": "absent"}, dry_run)
        if not dry_run:
            typer.echo("The deploy key is gone; take it off the git server as well.")


def _install(ctx: typer.Context, inventory: list[Path] | None, variables: dict[str, Any], check: bool) -> str:
    """Run the playbook and return the public key; in check mode its log is shown."""
    from .. import gitops_install as installer
    from .. import lab, run
    from ..progress import Progress

    found = lab.load(lab.inventory(inventory))
    arguments = ctx.meta[ARGUMENTS]
    progress = Progress(shell.console(stderr=True))
    installer.check(variables)
    answers = run.answers(arguments)
    key = installer.install(found, variables, progress, check=check, arguments=arguments, answers=answers)
    if check:
        typer.echo((found.state / "gitops.log").read_text(encoding="utf-8"), nl=False)
    return key
