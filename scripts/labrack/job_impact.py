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

from .progress import Step
from .run import run_playbook
from .status import new_table

PLAYBOOK = "labrack.infra.job_impact"
#: Classes of change that need nodes without jobs.
DISRUPTIVE = ("drain", "reboot")


@dataclass(frozen=True)
class Job:
    """A job on nodes. ``ends``: seconds since 1970 when its time limit ends it at the latest, None for no limit."""

    id: str
    user: str
    account: str
    state: str
    gpus: int
    ends: int | None
    nodes: str
    name: str


@dataclass(frozen=True)
class Waiting:
    """A change that waits for consent since a run, and would interrupt jobs on a node."""

    node: str
    subject: str
    summary: str
    disruption: str
    since: str


def read(inventory: Sequence[Path], nodes: Sequence[str], log: Path, step: Step) -> list[Job]:
    """Return the jobs on these nodes, on all where none is named; :class:`.run.RunError` where Slurm does not say."""
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        file = Path(folder) / "jobs"
        variables = {"job_impact_file": str(file)} | ({"node": ",".join(nodes)} if nodes else {})
        run_playbook(PLAYBOOK, inventory, log, step, variables=variables)
        return parse(file.read_text(encoding="utf-8"))


def parse(text: str) -> list[Job]:
    """Return the jobs in the playbook's output of squeue, those that end last first."""
    jobs = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 7)]
        if len(fields) < 8:
            continue
        number, user, account, state, tres, ends, nodes, name = fields
        gpus = re.search(r"gres/gpu=(\d+)", tres)
        end = int(ends) if ends.isdigit() else None
        jobs.append(
            Job(number, user, account, state.lower(), int(gpus[1]) if gpus else 0, end, nodes, name.rstrip("| "))
        )
    return sorted(jobs, key=lambda job: (job.ends is not None, -(job.ends or 0)))


def waiting(state: Path, nodes: Sequence[str]) -> list[Waiting]:
    """Return what each node's last run left for want of consent, as far as it would interrupt jobs."""
    last: dict[str, list[Waiting]] = {}
    for run in history(state):
        for node, host in run.get("hosts", {}).items():
            if not host.get("unreachable"):
                last[node] = [
                    Waiting(node, one["subject"], one["summary"], one["disruption"], run["ended"])
                    for one in host.get("pending", ())
                    if one["disruption"] in DISRUPTIVE
                ]
    return [one for node, found in sorted(last.items()) if not nodes or node in nodes for one in found]


def history(state: Path) -> list[Mapping[str, Any]]:
    """Return the runs that the callback ``labrack.infra.record`` noted for a lab, newest last."""
    try:
        lines = (state / "history.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def render(jobs: Sequence[Job], pending: Sequence[Waiting], now: float | None = None) -> RenderableType:
    """Return the tables: jobs with whose they are and until when, then what waits for consent."""
    now = time.time() if now is None else now
    parts: list[RenderableType] = []
    if jobs:
        rows = new_table("JOB", "NAME", "USER", "ACCOUNT", "STATE", "GPUS", "ENDS BY", "NODES", right=("GPUS",))
        for job in jobs:
            fields = (job.id, job.name, job.user, job.account, job.state, str(job.gpus), _ends(job, now), job.nodes)
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
