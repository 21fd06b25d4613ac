# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack gitops``: a repository that is applied by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import shell

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
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
