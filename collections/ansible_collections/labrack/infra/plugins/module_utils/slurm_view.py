# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Slurm's nodes and queue as a reader wants them, from the texts of its own commands (22.05 and later).

Standard library only, no Ansible import; only :func:`read` runs anything. JSON is not asked for: before 23.02 neither
command knows it for all of this.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Callable

from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, run

_FIELDS = ("JobArrayID", "UserName", "State", "tres-alloc", "TimeUsed", "ReasonList", "Name")
_SEPARATOR = "|"
NODES_COMMAND = ("scontrol", "-o", "-d", "show", "nodes")
#: Which cards each job has; squeue doesn't tell.
CARDS_COMMAND = ("scontrol", "-d", "show", "jobs")
#: Seconds; a controller that is down lets its clients try for long.
TIMEOUT = 20.0
#: More names than any closet has: a list that somebody wrote to fill memory ends here.
_MOST_NAMES = 4096


@dataclass(frozen=True)
class Gpus:
    """The GPUs of one type in a node, and how many of them jobs have."""

    type: str
    used: int
    total: int


@dataclass(frozen=True)
class Node:
    """A worker, as Slurm sees it; ``cards`` are the numbers of the GPUs that jobs have."""

    name: str
    #: Slurm's state in lower case, flags after a plus sign: "mixed", "idle+drain".
    state: str
    #: Why it takes no jobs, or "".
    reason: str
    gpus: tuple[Gpus, ...]
    cards: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job in the queue."""

    id: str
    name: str
    user: str
    #: Slurm's state in lower case.
    state: str
    gpus: int
    #: How long it has been running.
    time: str
    #: The nodes of a running job, or why another one waits.
    where: str
    #: The numbers of its GPUs, by node.
    cards: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """What Slurm says; ``error`` is why it says nothing, or ""."""

    nodes: tuple[Node, ...] = ()
    jobs: tuple[Job, ...] = ()
    error: str = ""


def jobs_command(mark: str) -> tuple[str, ...]:
    """Return the command for the queue; ``mark`` ends each job, as a job's name may hold anything, line ends too."""
    columns = [f"{name}:200{_SEPARATOR}" for name in _FIELDS]
    return ("squeue", "-h", "-a", "-O", f"{','.join(columns)}{mark}")


def read(runner: Callable[..., Done] = run) -> View:
    """Ask the Slurm of this machine. It never raises: what went wrong is the view's error."""
    mark = secrets.token_hex(8)
    texts = []
    for argv in (NODES_COMMAND, jobs_command(mark), CARDS_COMMAND):
        done = runner(list(argv), timeout=TIMEOUT)
        if done.rc:
            said = (done.err.strip() or done.out.strip() or f"{argv[0]} ended with {done.rc}").splitlines()
            return View(error=said[-1])
        texts.append(done.out)
    return View(parse_nodes(texts[0]), with_cards(parse_jobs(texts[1], mark), parse_job_cards(texts[2])))


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Return the nodes in the output of :data:`NODES_COMMAND`."""
    nodes = []
    for line in text.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        if "NodeName" not in fields:
            continue
        # a reason has blanks in it, and ends with who gave it and when
        reason = re.search(r"\bReason=(.*?) \[\S+@\S+\]", line)
        used = parse_gres(fields.get("GresUsed", ""))
        gpus = tuple(Gpus(kind, used.get(kind, 0), count) for kind, count in parse_gres(fields.get("Gres", "")).items())
        state = fields.get("State", "unknown").lower()
        cards = tuple(sorted(parse_cards(fields.get("GresUsed", ""))))
        nodes.append(Node(fields["NodeName"], state, reason[1] if reason else "", gpus, cards))
    return tuple(nodes)


def parse_gres(text: str) -> dict[str, int]:
    """Return GPUs by type of Slurm's notation, as in ``gpu:rtx_4090:1(IDX:0),gpu:rtx_a6000:2(S:0-1)``."""
    counts: dict[str, int] = defaultdict(int)
    for kind, count in re.findall(r"\bgpu:(?:([^:,()]+):)?(\d+)", text):
        counts[kind or "gpu"] += int(count)
    return dict(counts)


def parse_cards(text: str) -> set[int]:
    """Return the numbers of GPUs of the same notation, which count all GPUs of a node through, whatever their type."""
    found: set[int] = set()
    for numbers in re.findall(r"\bgpu:[^,()]*\(IDX:([\d,-]+)\)", text):
        found.update(_numbers(numbers))
    return found


def parse_jobs(text: str, mark: str) -> tuple[Job, ...]:
    """Return the jobs in the output of :func:`jobs_command`, in its order."""
    jobs = []
    for record in text.split(f"{_SEPARATOR}{mark}"):
        # the job's name comes last, as it may hold a separator
        values = [value.strip() for value in record.split(_SEPARATOR, len(_FIELDS) - 1)]
        if len(values) != len(_FIELDS):
            continue
        job, user, state, tres, time, where, name = values
        gpus = re.search(r"\bgres/gpu=(\d+)", tres)
        jobs.append(Job(job, name, user, state.lower(), int(gpus[1]) if gpus else 0, time, where.strip("()")))
    return tuple(jobs)


def parse_job_cards(text: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the numbers of each job's GPUs by job and node, from the output of :data:`CARDS_COMMAND`."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for block in re.split(r"\n\s*\n", text):
        number = re.match(r"\s*JobId=(\d+)", block)
        if not number:
            continue
        task = re.search(r"^\s*JobId=\d+ ArrayJobId=(\d+) ArrayTaskId=(\d+) ", block)
        job = f"{task[1]}_{task[2]}" if task else number[1]
        for nodes, gres in re.findall(r"^\s+Nodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*)", block, re.MULTILINE):
            cards = tuple(sorted(parse_cards(gres)))
            for node in expand(nodes) if cards else ():
                found.setdefault(job, {})[node] = cards
    return found


def with_cards(jobs: Iterable[Job], cards: Mapping[str, Mapping[str, tuple[int, ...]]]) -> tuple[Job, ...]:
    """Return the jobs with their GPUs. A job that would have more than Slurm counts for it gets none.

    The text that names them has words in it that the job's owner chose.
    """
    found = []
    for job in jobs:
        own = cards.get(job.id, {})
        fits = sum(map(len, own.values())) <= job.gpus
        found.append(replace(job, cards=dict(own)) if own and fits else job)
    return tuple(found)


def expand(text: str) -> list[str]:
    """Return the names of a host list such as ``node[1-2,07],desk``; at most some thousands."""
    names: list[str] = []
    for part in re.findall(r"[^,\[\]]+(?:\[[^\]]*\][^,\[\]]*)?", text):
        found = re.fullmatch(r"([^\[]*)\[([^\]]*)\]([^\[]*)", part)
        if not found:
            names.append(part)
            continue
        for span in found[2].split(","):
            first, _dash, last = span.partition("-")
            if first.isdigit() and (last or first).isdigit():
                numbers = range(int(first), min(int(last or first), int(first) + _MOST_NAMES) + 1)
                names += [f"{found[1]}{number:0{len(first)}d}{found[3]}" for number in numbers]
    return names[:_MOST_NAMES]


def _numbers(text: str) -> set[int]:
    found: set[int] = set()
    for first, last in re.findall(r"(\d{1,4})(?:-(\d{1,4}))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return found
