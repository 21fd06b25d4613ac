# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a lab is at one moment: read by the playbook ``labrack.infra.status``, put together here, shown as one screen.

:mod:`.page` makes a web page of the same. All that people have chosen (names of jobs, nodes, files) is cleaned of
control characters on its way in, and is never markup on its way out.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from ansible_collections.labrack.infra.plugins.module_utils import (
    power_plan,
    quota_plan,
    slurm_view,
    status_observe,
)

from . import history
from .shell import UserError

if TYPE_CHECKING:
    from .lab import Lab
    from .progress import Step

PLAYBOOK = "labrack.infra.status"
#: Runs a command line as root on a host and returns what it printed; raises for a host that can't be reached.
Remote = Callable[[str, str], str]

#: What a host is, by group, and the word for it.
ROLES: Mapping[str, str] = {
    "lab_head": "head",
    "lab_workers": "worker",
    "nfs_server": "files",
    "slurm_controller": "slurm",
    "slurm_database": "accounting",
    "slurm_login": "login",
    "headscale": "headscale",
    "lab_backup": "backup",
}
#: Playbooks that change nothing, whose runs are no news.
_LOOKING = frozenset(("status", "storage_report", "drift", "verify", "preflight", "doctor"))
#: How GitOps' last run may have ended without being anything to look at.
_GITOPS_FINE = ("", "never", "in_sync", "applied", "pending", "busy", "waiting")
#: Degrees below the card's own limit, or where it does not tell, from which it is hot.
NEAR_SLOWDOWN, HOT = 5, 88
#: Percent of a file system from which it is nearly full.
NEARLY_FULL = 90
#: Rows of the screen; --json has all.
MOST_JOBS, MOST_FINDINGS = 20, 12
#: How old what is known of drift may be while a screen is watched.
DRIFT_SECONDS = 300.0
#: Columns from which there is room for a figure of each card.
WIDE = 100


@dataclass(frozen=True)
class Card:
    """A GPU. ``None``: it does not tell. ``taken``: a job or a process has it, of ``users``; ``jobs`` are its ids."""

    index: int
    name: str
    type: str
    memory_mib: int | None
    memory_used_mib: int | None
    use_percent: int | None
    temperature_c: int | None
    temperature_slowdown_c: int | None
    power_draw_w: float | None
    power_limit_w: float | None
    mig: bool
    taken: bool
    users: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()

    @property
    def hot(self) -> bool:
        """Whether it is about to slow down."""
        limit = self.temperature_slowdown_c
        return self.temperature_c is not None and self.temperature_c >= (limit - NEAR_SLOWDOWN if limit else HOT)


@dataclass(frozen=True)
class Link:
    """The interface in the lab's network; ``None``: the driver does not tell."""

    name: str
    address: str
    speed_mbit: int | None
    mtu: int | None


@dataclass(frozen=True)
class Node:
    """A machine of the lab; what is told of one that gives no answer (``error``) is what others say of it."""

    name: str
    roles: tuple[str, ...]
    #: Slurm's state, else "up" or "no answer".
    state: str
    #: Why Slurm gives it no jobs, or "".
    reason: str = ""
    error: str = ""
    os: str = ""
    model: str = ""
    kernel: str = ""
    driver: str = ""
    load: float | None = None
    cpus: int | None = None
    memory_mib: int | None = None
    memory_free_mib: int | None = None
    uptime_s: int | None = None
    link: Link | None = None
    cards: tuple[Card, ...] = ()
    #: Why it waits for a restart.
    reboot: tuple[str, ...] = ()

    @property
    def troubled(self) -> bool:
        """Whether it can't do its work."""
        return bool(self.error) or _troubled(self.state)


@dataclass(frozen=True)
class Process:
    """A program on a card, where no scheduler tells whose it is."""

    node: str
    card: int
    user: str
    name: str
    memory_mib: int | None


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
class Load:
    """What one machine draws, and at most draws, of a circuit; ``None`` for one that gives no answer."""

    node: str
    draw_w: float | None
    most_w: float | None


@dataclass(frozen=True)
class Circuit:
    """A circuit of ``lab_circuits``: what its breaker lets through, and for hours; its machines."""

    name: str
    breaker_w: float
    usable_w: float
    loads: tuple[Load, ...]

    @property
    def draw_w(self) -> float:
        """What the machines that answer draw."""
        return sum(load.draw_w or 0 for load in self.loads)

    @property
    def most_w(self) -> float:
        """What the machines that answer draw at most."""
        return sum(load.most_w or 0 for load in self.loads)


@dataclass(frozen=True)
class Pending:
    """A change that waits for consent."""

    node: str
    subject: str
    summary: str
    disruption: str


@dataclass(frozen=True)
class LastRun:
    """The last run that could change something."""

    time: str
    playbook: str
    by: str
    commit: str
    ok: bool
    changed: int
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Gitops:
    """The last run of GitOps."""

    time: str
    commit: str
    result: str
    message: str


@dataclass(frozen=True)
class Drift:
    """What is not as the last apply left it: ``items`` are (node, what), of ``checked`` things."""

    checked: int
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Finding:
    """What somebody should look at: ``level`` bad, warn or note."""

    level: str
    node: str
    text: str


@dataclass(frozen=True)
class Status:
    """A lab at one moment; its JSON is ``labrack status --json``."""

    lab: str
    #: ISO 8601 in UTC.
    time: str
    nodes: tuple[Node, ...]
    #: Slurm's queue. Without Slurm ``processes`` tells who uses the cards.
    jobs: tuple[slurm_view.Job, ...] = ()
    slurm: bool = False
    #: Why Slurm says nothing, or "".
    slurm_error: str = ""
    processes: tuple[Process, ...] = ()
    #: RETURN of the module ``storage_report``, of each host that has directories.
    storage: tuple[Mapping[str, Any], ...] = ()
    #: The machines of the tailnet that the head is in; people's own devices are none.
    tailnet: tuple[Machine, ...] = ()
    circuits: tuple[Circuit, ...] = ()
    #: None: not looked at.
    drift: Drift | None = None
    pending: tuple[Pending, ...] = ()
    last_run: LastRun | None = None
    gitops: Gitops | None = None
    findings: tuple[Finding, ...] = field(default=())
    schema: int = 1

    @property
    def cards(self) -> tuple[Card, ...]:
        """The cards of all nodes."""
        return tuple(card for node in self.nodes for card in node.cards)

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return asdict(self)


@dataclass(frozen=True)
class Cluster:
    """What Slurm and the tailnet say, and nothing else."""

    nodes: tuple[slurm_view.Node, ...]
    jobs: tuple[slurm_view.Job, ...]
    tailnet: tuple[Machine, ...]


def look(head: str, remote: Remote) -> Cluster:
    """Ask one host alone, which takes no playbook, for what changes from one moment to the next."""
    mark = "end"
    queue = " ".join(f"'{word}'" for word in slurm_view.jobs_command(mark))
    return Cluster(
        slurm_view.parse_nodes(remote(head, " ".join(slurm_view.NODES_COMMAND))),
        slurm_view.parse_jobs(clean(remote(head, queue)), mark),
        _machines(status_observe.machines(remote(head, "tailscale status --json 2>/dev/null || true"))),
    )


def read(lab: Lab, log: Path, step: Step, drift: Drift | None = None) -> Status:
    """Look at all hosts of a lab; those that give no answer are part of it. :class:`.run.RunError` for a wrong lab.

    ``drift`` is what is known of it; else it is looked at as well.
    """
    from .run import run_playbook

    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        file = Path(folder) / "status.json"
        run_playbook(PLAYBOOK, lab.inventory, log, step, variables={"status_file": str(file)})
        answers = json.loads(file.read_text(encoding="utf-8"))
    return assemble(
        lab,
        answers,
        # without the digest of its inventory's path
        lab.state.name.rpartition("-")[0],
        runs=[asdict(run) for run in history.read(lab.state)],
        drift=drift or read_drift(lab, log.with_name("drift.log"), step),
    )


def show(
    lab: Lab, console: Console, told: Console, *, as_json: bool, watch: float | None = None, html: Path | None = None
) -> None:
    """Look and show, once or every ``watch`` seconds until somebody stops it: tables, one JSON document, or a page.

    ``console`` gets the answer, ``told`` what goes on. On a terminal a watched screen stays in its place.
    """
    from rich.live import Live

    from .progress import Progress, Step

    log = lab.state / "status.log"
    if watch is None:
        with Progress(told).step("Status") as step:
            seen = read(lab, log, step)
            step.summary = summary(seen)
        _answer(seen, console, as_json, html)
        return
    live = console.is_terminal and not as_json and html is None
    # a step that nobody sees says nothing
    silent = Step("Status", told, live=True)
    drift, looked = None, 0.0
    with Live(console=console, auto_refresh=False, transient=False) if live else nullcontext() as screen:
        while True:
            if time.monotonic() - looked > DRIFT_SECONDS:
                drift, looked = None, time.monotonic()
            seen = read(lab, log, silent, drift)
            drift = seen.drift
            if screen is not None:
                screen.update(render(seen), refresh=True)
            else:
                _answer(seen, console, as_json, html, watch)
            time.sleep(watch)


def _answer(seen: Status, console: Console, as_json: bool, html: Path | None, again: float | None = None) -> None:
    if html is not None:
        from . import page

        write(html, page.render(seen, again))
    if as_json:
        # one line for each look
        text = json.dumps(seen.to_json(), indent=2 if again is None else None)
        console.print(text, markup=False, soft_wrap=True)
    elif html is None:
        console.print(render(seen))
        if again is not None:
            console.print()


def write(path: Path, text: str) -> None:
    """Write a file whole, with the mode that new files get: who reads it meanwhile sees the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"The page can't be written: {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_drift(lab: Lab, log: Path, step: Step) -> Drift | None:
    """Return what is not as the last apply left it, None where that can't be looked at."""
    # it takes a while to load
    from . import drift

    # a node that gives no answer is told of already
    reports = [report for report in clean(list(drift.read(lab, log, step))) if report.get("applied")]
    if not reports:
        return None
    return Drift(
        sum(sum(report["checked"].values()) for report in reports),
        tuple(
            (report["host"], f"{item['kind']} {item['name']}: {item['what']}{f' ({words})' if words else ''}")
            for report in reports
            for item in report["items"]
            for words in (" ".join(filter(None, (item.get("who"), item.get("when")))),)
        ),
    )


def clean(told: Any) -> Any:
    """Return a document with every character in its texts that would steer a terminal or turn a line shown as ``�``.

    Blanks stay as one blank, line ends too.
    """
    if isinstance(told, str):
        return "".join(
            " " if char in "\n\t\r" else "�" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char
            for char in told
        )
    if isinstance(told, Mapping):
        return {clean(key): clean(value) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return type(told)(clean(value) for value in told)
    return told


def assemble(
    lab: Lab,
    answers: Mapping[str, Mapping[str, Any]],
    name: str,
    *,
    runs: Sequence[Mapping[str, Any]] = (),
    drift: Drift | None = None,
    now: datetime | None = None,
) -> Status:
    """Put together what the hosts answered (results of the module ``lab_status`` by host) and what is known. Pure.

    ``runs`` are lines of the history, the newest last.
    """
    answers, runs = clean(dict(answers)), clean(list(runs))
    lab = replace(lab, hosts={clean(host): told for host, told in lab.hosts.items()}, groups=clean(dict(lab.groups)))
    hosts = [host for host in lab.members or answers if host in answers]
    told = {host: answers[host]["status"] for host in hosts if "status" in answers[host]}
    slurm = next((one["slurm"] for one in told.values() if one.get("slurm")), None)
    view = {node["name"]: node for node in (slurm or {}).get("nodes", ())}
    jobs = tuple(_job(job) for job in (slurm or {}).get("jobs", ()))
    names = {
        host: str(lab.hosts.get(host, {}).get("slurm_node_name") or host) for host in hosts
    }  # a node's name in Slurm is the host's unless the inventory says otherwise
    nodes = tuple(
        _node(lab, host, answers[host], view.get(names[host]), names[host], jobs, slurm is not None) for host in hosts
    )
    asked = bool(lab.groups.get("slurm_controller"))
    found = next((one["gitops"] for one in told.values() if one.get("gitops")), None)
    problems: list[Finding] = []
    circuits: tuple[Circuit, ...] = ()
    try:
        circuits = _circuits(lab, nodes, told)
    except ValueError as error:
        problems.append(Finding("warn", "", str(error)))
    status = Status(
        lab=name,
        time=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        nodes=nodes,
        jobs=jobs,
        slurm=asked,
        slurm_error=(slurm["error"] if slurm else "the controller gives no answer") if asked else "",
        processes=() if asked else tuple(_processes(told)),
        storage=tuple(one["storage"] for one in told.values() if one.get("storage") and one["storage"]["directories"]),
        tailnet=_machines(next((one["tailnet"] for one in told.values() if one.get("tailnet")), [])),
        circuits=circuits,
        drift=drift,
        pending=tuple(_pending(runs, hosts)),
        last_run=_last_run(runs),
        gitops=Gitops(*(str(found.get(key) or "") for key in status_observe.GITOPS_KEYS))
        if isinstance(found, Mapping)
        else None,
    )
    return replace(status, findings=(*_findings(status, told), *problems))


def _job(job: Mapping[str, Any]) -> slurm_view.Job:
    cards = {node: tuple(numbers) for node, numbers in job["cards"].items()}
    return slurm_view.Job(**{**job, "cards": cards})


def _machines(found: Iterable[Mapping[str, Any]]) -> tuple[Machine, ...]:
    return tuple(
        Machine(one["name"], one["dns_name"], one["address"], bool(one["online"])) for one in clean(list(found))
    )


def _node(
    lab: Lab,
    host: str,
    answer: Mapping[str, Any],
    seen: Mapping[str, Any] | None,
    name: str,
    jobs: Sequence[slurm_view.Job],
    scheduled: bool,
) -> Node:
    roles = tuple(word for group, word in ROLES.items() if host in lab.groups.get(group, ()))
    state, reason = (seen["state"], seen["reason"]) if seen else ("up", "")
    told = answer.get("status")
    if told is None:
        words = str(answer.get("msg") or "").strip() or "no answer"
        silent = "no answer" if answer.get("unreachable") else "not read"
        return Node(host, roles, silent, reason, error=words)
    own = [(job, job.cards[name]) for job in jobs if name in job.cards]
    taken = set(seen["cards"]) if seen else set()
    by_slurm = scheduled and seen is not None
    return Node(
        name=host,
        roles=roles,
        state=state,
        reason=reason,
        driver=told["nvidia"]["driver"] or "",
        link=Link(**told["link"]) if told["link"] else None,
        cards=tuple(_card(card, own, taken, by_slurm) for card in told["gpus"]),
        reboot=tuple(told["reboot"]),
        **{
            key: told[key]
            for key in ("os", "model", "kernel", "load", "cpus", "memory_mib", "memory_free_mib", "uptime_s")
        },
    )


def _card(
    card: Mapping[str, Any], own: Sequence[tuple[slurm_view.Job, tuple[int, ...]]], taken: set[int], by_slurm: bool
) -> Card:
    number = card["index"]
    mine = [job for job, numbers in own if number in numbers]
    users = [job.user for job in mine] or [process["user"] for process in card["processes"] if process["user"]]
    figures = ("memory_mib", "memory_used_mib", "use_percent", "temperature_c", "temperature_slowdown_c")
    return Card(
        index=number,
        name=card["name"],
        type=card["type"] or card["name"],
        mig=card["mig"],
        taken=number in taken if by_slurm else bool(card["processes"]),
        users=tuple(dict.fromkeys(users)),
        jobs=tuple(job.id for job in mine),
        **{key: card[key] for key in (*figures, "power_draw_w", "power_limit_w")},
    )


def _processes(told: Mapping[str, Mapping[str, Any]]) -> Iterable[Process]:
    for host, one in told.items():
        for card in one["gpus"]:
            for process in card["processes"]:
                yield Process(host, card["index"], process["user"], process["name"], process["memory_mib"])


def _circuits(lab: Lab, nodes: Sequence[Node], told: Mapping[str, Mapping[str, Any]]) -> tuple[Circuit, ...]:
    """The circuits that the inventory declares: what their machines may draw, and draw by what their cards say.

    What processors draw nobody measures: they are counted by their load. ValueError for a list that is none.
    """
    entries: Any = next((one["lab_circuits"] for one in lab.hosts.values() if one.get("lab_circuits")), [])
    try:
        feeding = power_plan.circuits(clean(entries))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("lab_circuits can't be read: `labrack doctor --offline` tells why") from None
    shares = power_plan.shares(feeding)
    by_name = {node.name: node for node in nodes}

    def load(host: str) -> Load:
        if host not in told:
            return Load(host, None, None)
        node = by_name[host]
        cards = [{"slurm_type": card.type, "power_limit_w": card.power_limit_w} for card in node.cards]
        most = power_plan.load(host, lab.hosts.get(host, {}), {"gpus": cards, "cpu": told[host]["cpu"]})
        busy = min(1.0, (node.load or 0) / (node.cpus or 1))
        draw = most.base + most.cpu * busy + sum(card.power_draw_w or 0 for card in node.cards)
        return Load(host, round(draw / shares[host], 1), round(most.watts / shares[host], 1))

    return tuple(Circuit(one.name, one.capacity, one.usable, tuple(map(load, one.nodes))) for one in feeding)


def _pending(runs: Sequence[Mapping[str, Any]], hosts: Iterable[str]) -> Iterable[Pending]:
    """What each host's newest whole run left for consent."""
    for host in hosts:
        whole = (run for run in reversed(runs) if not run.get("tags") and host in (run.get("hosts") or {}))
        last = next((run for run in whole if _word(run) not in _LOOKING), None)
        for one in (last["hosts"][host].get("pending") or []) if last else []:
            yield Pending(host, *(str(one.get(key) or "") for key in ("subject", "summary", "disruption")))


def _word(run: Mapping[str, Any]) -> str:
    """The last word of a playbook's name: ``closet`` of labrack.infra.closet and of ./closet.yml."""
    return re.split(r"[/.]", re.sub(r"\.ya?ml$", "", str(run.get("playbook") or "")))[-1]


def _last_run(runs: Sequence[Mapping[str, Any]]) -> LastRun | None:
    run = next((run for run in reversed(runs) if not run.get("check") and _word(run) not in _LOOKING), None)
    if run is None:
        return None
    hosts: Mapping[str, Mapping[str, Any]] = run.get("hosts") or {}
    failed = tuple(host for host, one in hosts.items() if one.get("failed") or one.get("unreachable"))
    return LastRun(
        time=str(run.get("ended") or run.get("started") or ""),
        playbook=_word(run),
        by=str(run.get("by") or ""),
        commit=str(run.get("commit") or ""),
        ok=run.get("rc") == 0,
        changed=sum(int(one.get("changed") or 0) for one in hosts.values()),
        failed=failed,
    )


def _findings(status: Status, told: Mapping[str, Mapping[str, Any]]) -> Iterable[Finding]:
    """What somebody should look at, the worst first."""
    found: list[Finding] = []

    def tell(level: str, node: str, text: str) -> None:
        found.append(Finding(level, node, text))

    if status.slurm_error:
        tell("bad", "", f"Slurm says nothing: {status.slurm_error}")
    for node in status.nodes:
        if node.error:
            tell("bad", node.name, f"{node.state}: {node.error}")
            continue
        nvidia = told[node.name]["nvidia"]
        if nvidia["state"] not in ("ok", "absent"):
            tell("bad", node.name, f"the GPU driver does not work: {nvidia['message'] or nvidia['state']}")
        if _troubled(node.state):
            tell("bad", node.name, f"{node.state}{f': {node.reason}' if node.reason else ''}")
        for card in node.cards:
            if card.hot:
                tell("bad", node.name, f"GPU {card.index} has {card.temperature_c} °C")
        for reason in node.reboot:
            tell("warn", node.name, f"waits for a restart: {reason}")
        for disk in told[node.name]["disks"]:
            used = 100 - 100 * disk["free_mib"] // disk["size_mib"] if disk["size_mib"] else 0
            if used >= NEARLY_FULL:
                tell("warn", node.name, f"{disk['mount']} is {used} % full")
    for report in status.storage:
        for row in report["directories"]:
            if not row["mounted"]:
                tell("bad", report["host"], f"{row['path']}: {row['filesystem']} is not mounted")
            elif (full := percent(row["size"] - row["free"], row["size"])) >= NEARLY_FULL:
                tell("warn", report["host"], f"{row['path']} is {full} % full")
        for row in [*report["users"], *report["projects"]]:
            who = row.get("name") or row["path"]
            if row["hard"] and row["used"] and row["used"] >= row["hard"]:
                tell(
                    "warn",
                    report["host"],
                    f"{who} has all of the {quota_plan.words(row['hard'])} that the quota allows",
                )
            elif row["over_since"] is not None:
                tell("note", report["host"], f"{who} is over the quota of {quota_plan.words(row['soft'])}")
    for circuit in status.circuits:
        if circuit.draw_w > circuit.usable_w:
            tell("bad", "", f"circuit {circuit.name} carries {circuit.draw_w:.0f} W of {circuit.usable_w:.0f} W")
        elif circuit.most_w > circuit.usable_w:
            words = f"may have to carry {circuit.most_w:.0f} W, {circuit.usable_w:.0f} W are safe"
            tell("warn", "", f"circuit {circuit.name} {words}")
    for machine in status.tailnet:
        if not machine.online and machine.name in {node.name for node in status.nodes if not node.error}:
            tell("warn", machine.name, "is offline in the tailnet")
    if status.last_run and not status.last_run.ok:
        at = f" on {', '.join(status.last_run.failed)}" if status.last_run.failed else ""
        tell("bad", "", f"the last run of {status.last_run.playbook} failed{at}")
    if status.gitops and status.gitops.result not in _GITOPS_FINE:
        tell("bad", "", f"GitOps: {status.gitops.result}: {status.gitops.message}".rstrip(": "))
    for one in status.pending:
        tell("warn", one.node, f"waits for consent ({one.disruption}): {one.subject}: {one.summary}")
    for name, what in status.drift.items if status.drift else ():
        tell("warn", name, f"changed since the last apply: {what}")
    return sorted(found, key=lambda one: ("bad", "warn", "note").index(one.level))


def _troubled(state: str) -> bool:
    return bool(re.search("down|drain|fail|not_responding|invalid|no answer|not read", state))


# --- the screen ---


@dataclass(frozen=True)
class Screen:
    """A status as one screen of text, as wide as there is room."""

    status: Status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it."""
        wide = options.max_width >= WIDE
        parts: list[RenderableType] = [*_headline(self.status), Text(), _nodes_table(self.status.nodes, wide)]
        if self.status.slurm and not self.status.slurm_error:
            parts += [Text(), _jobs_table(self.status.jobs)]
        elif not self.status.slurm:
            parts += [Text(), _processes_table(self.status)]
        for table in (_storage_table(self.status), _circuits_table(self.status), _tailnet_table(self.status.tailnet)):
            if table is not None:
                parts += [Text(), table]
        parts += [Text(), *_findings_lines(self.status.findings), *_runs_lines(self.status)]
        yield from parts


def render(status: Status) -> RenderableType:
    """Return the screen."""
    return Screen(status)


def new_table(*columns: str, right: Sequence[str]) -> Table:
    """Return an empty table in the manner of the command; the columns ``right`` are aligned there."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def summary(status: Status) -> str:
    """Return the lab in one line."""
    up = sum(not node.error for node in status.nodes)
    words = [
        count(len(status.nodes), "node") if up == len(status.nodes) else f"{up} of {len(status.nodes)} nodes answer"
    ]
    if status.cards:
        words.append(f"{sum(card.taken for card in status.cards)} of {count(len(status.cards), 'GPU')} in use")
    if status.slurm and not status.slurm_error:
        running = sum(job.state == "running" for job in status.jobs)
        words.append(f"{count(running, 'job')} running, {len(status.jobs) - running} waiting")
    return ", ".join(words)


def count(number: int, thing: str) -> str:
    """Return a number of things in words."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def moment(text: str) -> str:
    """Return an ISO 8601 time as a person reads it, in UTC; anything else as it is."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text


def _headline(status: Status) -> tuple[Text, Text]:
    return Text.assemble((status.lab, "bold"), "  ", (moment(status.time), "dim")), Text(summary(status))


def _nodes_table(nodes: Sequence[Node], wide: bool) -> Table:
    columns = ("NODE", "ROLE", "STATE", "GPU", "USED", *(("BUSY %",) if wide else ()), "°C", "WATTS")
    table = new_table(*columns, right=("USED", "BUSY %", "°C", "WATTS"))
    for node in nodes:
        name = (Text(node.name), Text(", ".join(node.roles)), _state(node.state))
        if not node.cards:
            table.add_row(*name, "-", *[""] * (len(columns) - 4))
        kinds = dict.fromkeys(card.type for card in node.cards)
        for number, kind in enumerate(kinds):
            cards = [card for card in node.cards if card.type == kind]
            table.add_row(*(name if not number else ("", "", "")), Text(kind), *_card_figures(cards, wide))
    return table


def _card_figures(cards: Sequence[Card], wide: bool) -> Iterable[RenderableType]:
    used = sum(card.taken for card in cards)
    yield Text(f"{used}/{len(cards)}", "green" if used else "")
    temperatures = [card.temperature_c for card in cards]
    style = "red" if any(card.hot for card in cards) else ""
    if wide:
        yield " ".join("-" if card.use_percent is None else str(card.use_percent) for card in cards)
        yield Text(" ".join("-" if degrees is None else str(degrees) for degrees in temperatures), style)
    else:
        yield Text(str(max((degrees for degrees in temperatures if degrees is not None), default="-")), style)
    draw = [card.power_draw_w for card in cards if card.power_draw_w is not None]
    limit = [card.power_limit_w for card in cards if card.power_limit_w is not None]
    yield f"{sum(draw):.0f}/{sum(limit):.0f}" if draw and limit else "-"


def _jobs_table(jobs: Sequence[slurm_view.Job]) -> RenderableType:
    if not jobs:
        return Text("No job is running or waiting.")
    table = new_table("JOB", "USER", "NAME", "STATE", "GPUS", "TIME", "NODE OR REASON", right=("JOB", "GPUS", "TIME"))
    table.columns[2].max_width = 30
    for column in (1, 2, 6):
        table.columns[column].no_wrap, table.columns[column].overflow = True, "ellipsis"
    for job in sorted(jobs, key=lambda job: job.state != "running")[:MOST_JOBS]:
        texts = (Text(job.id), Text(job.user), Text(job.name), _state(job.state))
        table.add_row(*texts, str(job.gpus), job.time, Text(job.where))
    if jobs[MOST_JOBS:]:
        table.add_row("", "", Text(f"… and {len(jobs) - MOST_JOBS} more", "dim"))
    return table


def _processes_table(status: Status) -> RenderableType:
    if not status.processes:
        return Text("No program uses a GPU." if status.cards else "No node has a GPU that can be asked.")
    table = new_table("NODE", "GPU", "USER", "PROGRAM", "MEMORY", right=("GPU", "MEMORY"))
    for one in status.processes[:MOST_JOBS]:
        memory = "-" if one.memory_mib is None else quota_plan.words(one.memory_mib * 1024)
        table.add_row(Text(one.node), str(one.card), Text(one.user or "?"), Text(one.name), memory)
    return table


def _storage_table(status: Status) -> Table | None:
    rows = [(report["host"], row) for report in status.storage for row in report["directories"]]
    if not rows:
        return None
    table = new_table("DIRECTORY", "ON", "SIZE", "FREE", "FULL", "QUOTAS", right=("SIZE", "FREE", "FULL"))
    for host, row in rows:
        where = (Text(row["path"]), Text(host))
        if not row["mounted"]:
            table.add_row(*where, "-", "-", "-", Text(f"{row['filesystem']} is not mounted", "red"))
            continue
        kinds = [kind for kind in ("user", "project") if row[f"{kind}_quotas"] == quota_plan.ENFORCED]
        full = percent(row["size"] - row["free"], row["size"])
        sizes = quota_plan.words(row["size"]), quota_plan.words(row["free"])
        table.add_row(*where, *sizes, Text(f"{full} %", "red" if full >= NEARLY_FULL else ""), ", ".join(kinds) or "-")
    return table


def percent(part: float, whole: float) -> int:
    """Return a part of a whole in percent, 0 of nothing."""
    return round(100 * part / whole) if whole else 0


def _circuits_table(status: Status) -> Table | None:
    if not status.circuits:
        return None
    table = new_table("CIRCUIT", "NOW", "AT MOST", "SAFE", "NODES", right=("NOW", "AT MOST", "SAFE"))
    for one in status.circuits:
        style = "red" if one.draw_w > one.usable_w else "yellow" if one.most_w > one.usable_w else ""
        watts = (f"{one.draw_w:.0f} W", Text(f"{one.most_w:.0f} W", style), f"{one.usable_w:.0f} W")
        nodes = (f"{load.node} (no answer)" if load.draw_w is None else load.node for load in one.loads)
        table.add_row(Text(one.name), *watts, Text(", ".join(nodes)))
    return table


def _tailnet_table(machines: Sequence[Machine]) -> Table | None:
    if not machines:
        return None
    table = new_table("IN THE TAILNET", "ADDRESS", "STATE", right=())
    for machine in machines:
        state = Text("online", "green") if machine.online else Text("offline", "red")
        table.add_row(Text(machine.dns_name), machine.address, state)
    return table


def _findings_lines(findings: Sequence[Finding]) -> Iterable[RenderableType]:
    if not findings:
        yield Text("Nothing needs looking at.", "green")
        return
    styles = {"bad": "red", "warn": "yellow", "note": ""}
    lines = Table.grid(padding=(0, 1))
    for one in findings[:MOST_FINDINGS]:
        node = f"{one.node}: " if one.node else ""
        lines.add_row(Text("!", styles[one.level]), Text.assemble((node, "bold"), one.text))
    if findings[MOST_FINDINGS:]:
        lines.add_row("", Text(f"… and {len(findings) - MOST_FINDINGS} more", "dim"))
    yield lines


def runs_facts(status: Status) -> Iterable[tuple[str, str]]:
    """Yield what is known of drift and of the last runs, as names and texts."""
    if status.drift is not None:
        off = f"{count(len(status.drift.items), 'thing')} changed" if status.drift.items else "none"
        yield "Drift", f"{off}, of {status.drift.checked} looked at"
    if status.last_run is not None:
        run = status.last_run
        words = [run.playbook, "ok" if run.ok else "failed", f"{run.changed} changed"]
        words += [f"by {run.by}"] if run.by else []
        words += [f"commit {_short(run.commit)}"] if run.commit else []
        yield "Last run", f"{moment(run.time)}: {', '.join(words)}"
    if status.gitops is not None:
        one = status.gitops
        words = [one.result.replace("_", " "), one.message, f"commit {_short(one.commit)}" if one.commit else ""]
        yield "GitOps", f"{moment(one.time)}: {', '.join(word for word in words if word)}"


def _short(commit: str) -> str:
    return re.sub(r"^([0-9a-f]{10})[0-9a-f]{30}", r"\1", commit)


def _runs_lines(status: Status) -> Iterable[Text]:
    for name, text in runs_facts(status):
        yield Text.assemble((f"{name}: ", "bold"), text)


def _state(state: str) -> Text:
    if _troubled(state):
        return Text(state, "red")
    return Text(state, {"pending": "yellow", "running": "green", "idle": "green"}.get(state, ""))
