# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which jobs a drain or a reboot of nodes would hit, read by the playbook ``labrack.infra.job_impact``."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from . import history
from .progress import Step
from .run import run_playbook
from .status import new_table

PLAYBOOK = "labrack.infra.job_impact"
#: Classes of change that need nodes without jobs.
DISRUPTIVE = ("drain", "reboot")


@dataclass(frozen=True)
class Job:
    """A job, and on which of the nodes that were asked for it runs.

    ``ends``: seconds since 1970 when its time limit ends it at the latest, None for no limit.
    """

    id: str
    user: str
    account: str
    state: str
    gpus: int
    ends: int | None
    nodes: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Waiting:
    """A change that waits for consent since a run, and would interrupt jobs on a node."""

    node: str
    subject: str
    summary: str
    disruption: str
    since: str


def read(
    inventory: Sequence[Path],
    nodes: Sequence[str],
    log: Path,
    step: Step,
    arguments: Sequence[str] = (),
    answers: Mapping[str, str] | None = None,
) -> list[Job]:
    """Return the jobs on these nodes, on all workers where none is named.

    The rest is as in :func:`.run.run_playbook`; :class:`.run.RunError` where Slurm does not say.
    """
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        file = Path(folder) / "jobs"
        variables = {"job_impact_file": str(file)} | ({"node": ",".join(nodes)} if nodes else {})
        run_playbook(PLAYBOOK, inventory, log, step, variables=variables, arguments=arguments, answers=answers)
        return parse(json.loads(file.read_text(encoding="utf-8")))


def parse(document: Mapping[str, Sequence[str]]) -> list[Job]:
    """Return the jobs in squeue's lines for each node, those that end last first."""
    jobs: dict[str, Job] = {}
    for node, lines in document.items():
        for line in lines:
            fields = [field.strip() for field in line.split("|", 6)]
            if len(fields) < 7:
                continue
            number, user, account, state, tres, ends, name = fields
            before = jobs[number].nodes if number in jobs else ()
            gpus = re.search(r"gres/gpu=(\d+)", tres)
            end = int(ends) if ends.isdigit() else None
            count = int(gpus[1]) if gpus else 0
            nodes = (*before, node)
            jobs[number] = Job(number, user, account, state.lower(), count, end, nodes, name.rstrip("| "))
    return sorted(jobs.values(), key=lambda job: (job.ends is not None, -(job.ends or 0)))


def waiting(state: Path, nodes: Sequence[str]) -> list[Waiting]:
    """Return what each node's last run left for want of consent, as far as it would interrupt jobs."""
    last: dict[str, list[Waiting]] = {}
    for run in history.read(state):
        for node, host in run.hosts.items():
            if not host.get("unreachable"):
                last[node] = [
                    Waiting(node, one["subject"], one["summary"], one["disruption"], run.ended)
                    for one in host.get("pending", ())
                    if one["disruption"] in DISRUPTIVE
                ]
    return [one for node, found in sorted(last.items()) if not nodes or node in nodes for one in found]


def render(jobs: Sequence[Job], pending: Sequence[Waiting], now: float | None = None) -> RenderableType:
    """Return the tables: jobs with whose they are and until when, then what waits for consent."""
    now = time.time() if now is None else now
    parts: list[RenderableType] = []
    if jobs:
        rows = new_table("JOB", "NAME", "USER", "ACCOUNT", "STATE", "GPUS", "ENDS BY", "NODES", right=("GPUS",))
        for job in jobs:
            fields = (
                job.id,
                job.name,
                job.user,
                job.account,
                job.state,
                str(job.gpus),
                _ends(job, now),
                ", ".join(job.nodes),
            )
            rows.add_row(*map(Text, fields))
        parts.append(rows)
    else:
        parts.append(Text("No job runs there."))
    if pending:
        rows = new_table("NODE", "WAITS FOR CONSENT", "TO", "SINCE", right=())
        for one in pending:
            rows.add_row(Text(one.node), Text(f"{one.subject}: {one.summary}"), Text(one.disruption), Text(one.since))
        parts += [Text(), rows]
    if jobs:
        end = _ends(jobs[0], now)
        words = f"The last of them ends by {end}." if jobs[0].ends is not None else "Not all of them have a time limit."
        parts += [Text(), Text(f"A drain lets them end; a reboot would end them. {words}")]
    return Group(*parts)


def document(jobs: Sequence[Job], pending: Sequence[Waiting]) -> dict[str, Any]:
    """Return what :func:`render` shows as data."""
    return {"jobs": [asdict(job) for job in jobs], "pending": [asdict(one) for one in pending]}


def _ends(job: Job, now: float) -> str:
    if job.ends is None:
        return "no limit"
    left = max(int(job.ends - now), 0)
    days, minutes = left // 86400, left % 86400 // 60
    day = f"{days} days " if days > 1 else "1 day " if days else ""
    return f"{time.strftime('%d %b %H:%M', time.localtime(job.ends))} (in {day}{minutes // 60}:{minutes % 60:02d} h)"
