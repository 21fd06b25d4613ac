# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people have running on a node and in Slurm, and the commands that change accounts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text, run

#: Slurm's states of jobs that run or will.
OPEN_JOBS = "--states=PENDING,RUNNING,SUSPENDED"


class CommandError(RuntimeError):
    """A command that failed; the message holds it and what it said."""


def execute(argv: list[str], stdin: str | None = None) -> None:
    """Run a command (CommandError when it fails)."""
    done = run(argv, stdin)
    if done.rc:
        raise CommandError(f"{' '.join(argv)} failed: {(done.err or done.out).strip()}")


def processes_of(uids: set[int]) -> dict[int, int]:
    """Return how many processes each of these users has here, by real or effective UID."""
    found: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        text = read_text(status) or ""
        numbers = next((line.split()[1:3] for line in text.splitlines() if line.startswith("Uid:")), [])
        for uid in {int(number) for number in numbers} & uids:
            found[uid] = found.get(uid, 0) + 1
    return found


def jobs_of(names: Iterable[str]) -> dict[str, int] | str:
    """Return how many jobs these users have in Slurm, none where it is not installed; a sentence when it is silent."""
    names = sorted(names)
    if not names:
        return {}
    done = run(["squeue", "--noheader", OPEN_JOBS, f"--user={','.join(names)}", "--format=%u"], timeout=30.0)
    if done.rc == 127:
        return {}
    if done.rc:
        return f"Slurm does not say whether they have jobs ({(done.err or done.out).strip()[:200]})"
    owners = done.out.split()
    return {name: owners.count(name) for name in names if name in owners}
