# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the commands that edit the inventory share: show the edit and ask, write it, run playbooks for it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.text import Text

from . import asking, inventory_edit, lab, shell
from .inventory_edit import Edit
from .lab import Lab
from .progress import Progress
from .run import Outcome, run_playbook

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


@dataclass(frozen=True)
class Play:
    """A playbook to run, with its tags and extra variables, and the name of the step."""

    step: str
    playbook: str
    tags: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def command(self, inventory: Sequence[Path]) -> str:
        """The command line that does the same."""
        words = ["ansible-playbook", self.playbook]
        for path in inventory:
            words += ["-i", lab_path(path)]
        if self.tags:
            words += ["--tags", ",".join(self.tags)]
        for name, value in self.variables.items():
            # what has blanks in it would be taken apart
            words += ["-e", json.dumps({name: value}) if any(map(str.isspace, value)) else f"{name}={value}"]
        return shlex.join(words)


def lab_path(path: Path) -> str:
    """Return a path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def show(edits: Sequence[Edit]) -> None:
    """Print the edits beside the answer."""
    console = shell.console(stderr=True)
    for edit in edits:
        for line in edit.diff().splitlines():
            console.print(Text(line, _STYLES.get(line[:1], "")), soft_wrap=True)


def agreed(inventory: Sequence[Path], edits: Sequence[Edit], yes: bool) -> Lab | None:
    """Show the edits, check them and ask for consent; return the lab as it will be, None for a no."""
    edits = [edit for edit in edits if edit.diff()]
    if not edits:
        return lab.load(inventory)
    after = inventory_edit.check(inventory, edits)
    show(edits)
    if yes or asking.yes("Write this?", "--yes", default=True):
        return after
    shell.console(stderr=True).print("Nothing was changed.")
    return None


def run(inventory: Sequence[Path], plays: Sequence[Play]) -> list[Outcome]:
    """Run playbooks one after the other; :class:`.run.RunError` where one fails."""
    progress = Progress(shell.console(stderr=True))
    outcomes = []
    for play in plays:
        with progress.step(play.step) as step:
            log = lab.state_dir(inventory) / f"{play.playbook.rpartition('.')[2]}.log"
            outcome = run_playbook(play.playbook, inventory, log, step, play.tags, play.variables)
            changed = sum(outcome.changed.values())
            step.summary = f"{sum(outcome.ran.values())} tasks on {len(outcome.ran)} nodes, {changed} changed"
            outcomes.append(outcome)
    return outcomes


def people_plays(after: Lab, words: str) -> Play:
    """Return what makes the lab's people as the inventory has them: the tier's playbook, with the roles that have them.

    Quotas are the NFS server's, accounts for jobs Slurm's.
    """
    variables = next(iter(after.hosts.values()), {})
    tags = ["nfs_server"] if variables.get("nfs_server_user_quotas") else []
    tags += ["lab_users", *(["slurm"] if after.groups.get("slurm_controller") else [])]
    return Play(words, after.playbook, tuple(tags))
