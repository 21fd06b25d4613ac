# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a cluster's nodes, GPUs and queue do, read from Slurm's own commands (22.05 and later) and from nvidia-smi."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ansible_collections.labrack.infra.plugins.module_utils import tailnet_devices
from ansible_collections.labrack.infra.plugins.module_utils.gpu_names import slurm_type

#: Runs a command line as root on a host and returns what it printed; raises for a host that can't be reached.
Remote = Callable[[str, str], str]

_FIELDS = ("JobArrayID", "UserName", "State", "tres-alloc", "TimeUsed", "ReasonList", "Name")
_SEPARATOR = "|"
#: What is asked of the host that has Slurm's client commands. Both know no JSON before 23.02.
NODES_COMMAND = "scontrol -o -d show nodes"
JOBS_COMMAND = "squeue -h -a -O '" + ",".join(f"{name}:200{_SEPARATOR}" for name in _FIELDS) + "'"
#: What is asked of each node; a driver that fails says so in the output, which then has no temperature.
CARDS_COMMAND = "nvidia-smi --query-gpu=name,temperature.gpu --format=csv,noheader,nounits || true"
#: What is asked of the head, which need not be in a tailnet, nor have the command.
TAILNET_COMMAND = "tailscale status --json 2>/dev/null || true"


@dataclass(frozen=True)
class Gpus:
    """The GPUs of one type in a node."""

    type: str
    used: int
    total: int
    #: Of each card that answers, in nvidia-smi's order.
    temperatures_c: tuple[int, ...] = ()


@dataclass(frozen=True)
class Node:
    """A worker, as Slurm sees it."""

    name: str
    #: Slurm's state in lower case, flags after a plus sign: "mixed", "idle+drain".
    state: str
    #: Why it takes no jobs, or "".
    reason: str
    gpus: tuple[Gpus, ...]


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


@dataclass(frozen=True)
class Machine:
    """A machine in the tailnet, as the head sees it."""

    #: The first label of its MagicDNS name, and the whole.
    name: str
    dns_name: str
    #: Its address in the tailnet, IPv4 where it has one.
    address: str
    online: bool


@dataclass(frozen=True)
class Status:
    """A cluster at one moment."""

    nodes: tuple[Node, ...]
    jobs: tuple[Job, ...]
    #: The machines of the tailnet that the head is in; people's own devices are none.
    tailnet: tuple[Machine, ...] = ()


def read(head: str, remote: Remote) -> Status:
    """Read a cluster through the host ``head``; a worker that can't be reached has no temperatures."""

    def cards(node: Node) -> Node:
        try:
            return with_temperatures(node, parse_cards(remote(node.name, CARDS_COMMAND)))
        except RuntimeError:
            return node

    with ThreadPoolExecutor(max_workers=16) as pool:
        jobs = pool.submit(remote, head, JOBS_COMMAND)
        machines = pool.submit(remote, head, TAILNET_COMMAND)
        nodes = pool.map(cards, parse_nodes(remote(head, NODES_COMMAND)))
        return Status(tuple(nodes), parse_jobs(jobs.result()), parse_tailnet(machines.result()))


def parse_nodes(text: str) -> tuple[Node, ...]:
    """The nodes in the output of :data:`NODES_COMMAND`."""
    nodes = []
    for line in text.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        if "NodeName" not in fields:
            continue
        # a reason has blanks in it, and ends with who gave it and when
        reason = re.search(r"\bReason=(.*?) \[\S+@\S+\]", line)
        used = parse_gres(fields.get("GresUsed", ""))
        gpus = tuple(Gpus(kind, used.get(kind, 0), count) for kind, count in parse_gres(fields.get("Gres", "")).items())
        nodes.append(Node(fields["NodeName"], fields["State"].lower(), reason[1] if reason else "", gpus))
    return tuple(nodes)


def parse_gres(text: str) -> dict[str, int]:
    """GPUs by type in Slurm's GRES notation, as in ``gpu:rtx_4090:1(IDX:0),gpu:rtx_a6000:2(S:0-1)``."""
    counts: dict[str, int] = defaultdict(int)
    for kind, count in re.findall(r"\bgpu:(?:([^:,()]+):)?(\d+)", text):
        counts[kind or "gpu"] += int(count)
    return dict(counts)


def parse_cards(text: str) -> dict[str, tuple[int, ...]]:
    """Temperatures by GRES type in the output of :data:`CARDS_COMMAND`; lines that are no card's are left out."""
    cards: dict[str, tuple[int, ...]] = {}
    for name, temperature in re.findall(r"^(.+), (\d+)$", text, re.MULTILINE):
        kind = slurm_type(name)
        cards[kind] = (*cards.get(kind, ()), int(temperature))
    return cards


def parse_jobs(text: str) -> tuple[Job, ...]:
    """The jobs in the output of :data:`JOBS_COMMAND`, in its order."""
    jobs = []
    for line in text.splitlines():
        # the job's name comes last, as it may hold a separator
        values = [value.strip() for value in line.split(_SEPARATOR, len(_FIELDS) - 1)]
        if len(values) != len(_FIELDS):
            continue
        job, user, state, tres, time, where, name = values
        gpus = re.search(r"\bgres/gpu=(\d+)", tres)
        name = name.removesuffix(_SEPARATOR).strip()
        jobs.append(Job(job, name, user, state.lower(), int(gpus[1]) if gpus else 0, time, where.strip("()")))
    return tuple(jobs)


def parse_tailnet(text: str) -> tuple[Machine, ...]:
    """The machines with a tag in the output of :data:`TAILNET_COMMAND`, by name; none where it isn't logged in."""
    try:
        devices = tailnet_devices.of_status(json.loads(text or "{}"))
    except ValueError:
        return ()
    machines = (one for one in devices if one.tags and one.addresses and not one.external)
    return tuple(
        Machine(one.name, one.dns_name, one.addresses[0], one.online)
        for one in sorted(machines, key=lambda one: one.name)
    )


def with_temperatures(node: Node, cards: Mapping[str, tuple[int, ...]]) -> Node:
    """The node with the temperatures of its cards."""
    return replace(node, gpus=tuple(replace(gpus, temperatures_c=cards.get(gpus.type, ())) for gpus in node.gpus))


def render(status: Status) -> RenderableType:
    """The cluster as tables: nodes with their GPUs, the queue, and the tailnet where there is one."""
    return Group(_nodes_table(status.nodes), _jobs_table(status.jobs), *_tailnet_table(status.tailnet))


def new_table(*columns: str, right: Sequence[str]) -> Table:
    """Return an empty table in the manner of the command; the columns ``right`` are aligned there."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _nodes_table(nodes: Sequence[Node]) -> Table:
    table = new_table("NODE", "STATE", "GPU", "USED", "TEMPERATURE", "REASON", right=("USED",))
    for node in nodes:
        for number, gpus in enumerate(node.gpus or (Gpus("-", 0, 0),)):
            temperatures = " ".join(f"{temperature} °C" for temperature in gpus.temperatures_c) or "-"
            cards = (Text(gpus.type), f"{gpus.used}/{gpus.total}", temperatures)
            if number:
                table.add_row("", "", *cards)
            else:
                table.add_row(Text(node.name), _state(node.state), *cards, Text(node.reason))
    return table


def _jobs_table(jobs: Sequence[Job]) -> RenderableType:
    if not jobs:
        return Text("\nNo job is running or waiting.")
    table = new_table("JOB", "USER", "NAME", "STATE", "GPUS", "TIME", "NODE OR REASON", right=("JOB", "GPUS", "TIME"))
    for job in jobs:
        texts = (Text(job.id), Text(job.user), Text(job.name), _state(job.state))
        table.add_row(*texts, str(job.gpus), job.time, Text(job.where))
    return Group(Text(), table)


def _tailnet_table(machines: Sequence[Machine]) -> tuple[RenderableType, ...]:
    if not machines:
        return ()
    table = new_table("IN THE TAILNET", "ADDRESS", "STATE", right=())
    for machine in machines:
        state = Text("online", "green") if machine.online else Text("offline", "red")
        table.add_row(Text(machine.dns_name), machine.address, state)
    return Text(), table


def _state(state: str) -> Text:
    if re.search("down|drain|fail|not_responding|invalid", state):
        return Text(state, "red")
    return Text(state, {"pending": "yellow", "running": "green", "idle": "green"}.get(state, ""))
