# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run would change, and runs that change just that: the tier's playbook in check mode, and without it."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_collections.labrack.infra.plugins.plugin_utils as _plugin_utils
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, rank
from ansible_collections.labrack.infra.plugins.plugin_utils.run_record import commit_of, timestamp

from .lab import Lab
from .progress import Step
from .run import Failure, Outcome, RunError, TaskResult, run_playbook
from .shell import CHANGES, FAILED, OK, BusyError, UsageError, UserError

SCHEMA = 1
CONSENT = "lab_max_disruption"
#: What the consent is where the inventory says nothing.
DEFAULT_CONSENT = "restart"
#: The disruption of what Ansible's own modules do; all others disrupt nothing.
_STOCK = {"reboot": "reboot", "systemd_service": "restart", "systemd": "restart", "service": "restart"}
#: Roles whose disruptive changes end jobs on other nodes than their own.
_EVERYWHERE = frozenset(("nfs_server",))


@dataclass(frozen=True)
class Item:
    """One thing that would change: what, how, and its disruption class."""

    subject: str
    summary: str
    disruption: str


@dataclass(frozen=True)
class TaskPlan:
    """What one task would change on a node, what waits for consent, and the differences (header, before, after).

    ``hidden``: it has no_log, and may be the one that would change something.
    """

    role: str
    task: str
    items: tuple[Item, ...] = ()
    pending: tuple[Item, ...] = ()
    diff: tuple[Mapping[str, str], ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class NodePlan:
    """What would happen on a node, and what its modules warn of; ``failed`` says why nobody knows."""

    tasks: tuple[TaskPlan, ...] = ()
    failed: str = ""
    unreachable: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def items(self) -> list[Item]:
        """All changes."""
        return [item for task in self.tasks for item in task.items]

    @property
    def pending(self) -> list[Item]:
        """All that waits for consent, each once."""
        return list(dict.fromkeys(item for task in self.tasks for item in task.pending))


@dataclass(frozen=True)
class Job:
    """A job that a change of class drain or reboot affects."""

    node: str
    id: str
    user: str
    name: str
    state: str


@dataclass(frozen=True)
class Plan:
    """What an apply would do, as ``labrack plan`` shows and saves it.

    ``made`` is ISO 8601 in UTC, ``consent`` the disruption class that was given beside the inventory, "" for none.
    ``commit`` is the inventory's; ``digest`` covers its files and the collection's. ``jobs_unknown`` says why the jobs
    could not be read, "" where they were or nothing disruptive is planned.
    """

    made: str
    inventory: tuple[str, ...]
    playbook: str
    tags: tuple[str, ...]
    limit: tuple[str, ...]
    arguments: tuple[str, ...]
    consent: str
    commit: str
    digest: str
    nodes: Mapping[str, NodePlan]
    jobs: tuple[Job, ...] = ()
    jobs_unknown: str = ""

    @property
    def changes(self) -> int:
        """How many things would change."""
        return sum(len(node.items) for node in self.nodes.values())

    @property
    def pending(self) -> int:
        """How many things wait for consent."""
        return sum(len(node.pending) for node in self.nodes.values())

    def status(self) -> int:
        """Return the exit status: 0 nothing to do, 2 changes or things that wait for consent, 1 something failed."""
        if any(node.failed for node in self.nodes.values()):
            return FAILED
        return CHANGES if self.changes or self.pending else OK

    def text(self) -> str:
        """Return the plan as a JSON document; :func:`read` takes it back."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class HostResult:
    """What a run did to a host; ``failed`` is the task and ``cause`` its words where it failed."""

    changed: int = 0
    items: tuple[Item, ...] = ()
    pending: tuple[Item, ...] = ()
    failed: str = ""
    cause: str = ""
    unreachable: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Applied:
    """What a run did: by host, the seconds of each role, and the file with all that ansible-playbook printed."""

    inventory: tuple[str, ...]
    hosts: Mapping[str, HostResult]
    roles: Mapping[str, float] = field(default_factory=dict)
    log: str = ""

    def status(self) -> int:
        """Return the exit status: 0 done, though things may wait for consent, 1 where a host failed."""
        return FAILED if any(host.failed for host in self.hosts.values()) else OK

    def text(self) -> str:
        """Return it as a JSON document."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False) + "\n"


class Moved(UserError):
    """A saved plan that does not hold any more."""


def variables(consent: str) -> dict[str, str]:
    """Return the extra variables of a run with a consent, "" for the inventory's; UserError for an unknown class."""
    if not consent:
        return {}
    if consent not in DISRUPTIONS:
        raise UsageError(f"--consent {consent}: no such class; one of {', '.join(DISRUPTIONS)}.")
    return {CONSENT: consent}


def make(
    lab: Lab,
    log: Path,
    step: Step,
    *,
    consent: str = "",
    tags: Sequence[str] = (),
    limit: Sequence[str] = (),
    arguments: Sequence[str] = (),
    answers: Mapping[str, str] | None = None,
) -> Plan:
    """Return what the tier's playbook would change. Nothing is changed.

    ``consent`` is a disruption class that goes beyond, or below, the inventory's; the rest is as in
    :func:`.run.run_playbook`. Hosts that fail stand in the plan; :class:`.run.RunError` where the playbook does not
    start at all.
    """
    before = digest(lab.inventory, arguments)
    outcome = run_playbook(
        lab.playbook,
        lab.inventory,
        log,
        step,
        tags,
        variables(consent),
        check=True,
        diff=True,
        limit=limit,
        arguments=arguments,
        tolerate=True,
        answers=answers,
    )
    nodes = _nodes(outcome)
    folder = lab.inventory[0] if lab.inventory[0].is_dir() else lab.inventory[0].parent
    jobs, unknown = _jobs(lab, outcome, log, step, arguments, answers)
    return Plan(
        timestamp(time.time()),
        tuple(map(str, lab.inventory)),
        lab.playbook,
        tuple(tags),
        tuple(limit),
        tuple(arguments),
        consent,
        commit_of(folder),
        before,
        nodes,
        jobs,
        unknown,
    )


def apply(
    lab: Lab,
    log: Path,
    step: Step,
    *,
    plan: Plan | None = None,
    consent: str = "",
    tags: Sequence[str] = (),
    limit: Sequence[str] = (),
    arguments: Sequence[str] = (),
    answers: Mapping[str, str] | None = None,
) -> Applied:
    """Run the tier's playbook and return what it did; hosts that fail stand in it.

    With ``plan`` that one is made again first, with its own tags, limit, arguments and consent, and :class:`Moved` is
    raised, before anything is changed, where files or nodes are not what they were.
    """
    if plan is not None:
        consent, tags, limit, arguments = plan.consent, plan.tags, plan.limit, plan.arguments
        if tuple(map(str, lab.inventory)) != plan.inventory:
            raise Moved(f"The plan is for the inventory {', '.join(plan.inventory)}.")
        if digest(lab.inventory, arguments) != plan.digest:
            raise Moved(
                f"The plan of {plan.made} does not hold any more: the inventory or labrack itself has changed since. "
                "Make a new one with `labrack plan -o FILE`."
            )
        step.say("See that the plan still holds")
        now = make(lab, log, step, consent=consent, tags=tags, limit=limit, arguments=arguments, answers=answers)
        if moved := differences(plan, now):
            raise Moved(
                f"The plan of {plan.made} does not hold any more, nothing was changed:\n"
                + "\n".join(moved)
                + "\nMake a new one with `labrack plan -o FILE`."
            )
        step.say("It holds; apply it")
    outcome = run_playbook(
        lab.playbook,
        lab.inventory,
        log,
        step,
        tags,
        variables(consent),
        limit=limit,
        arguments=arguments,
        tolerate=True,
        answers=answers,
    )
    return _applied(lab, outcome, log)


@contextmanager
def lock(state: Path) -> Iterator[None]:
    """Keep other runs of labrack that change this lab away while the block runs; BusyError where one goes on."""
    with open(os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = stream.read().strip() or "another process"
            raise BusyError(f"Another run changes this lab: {who}. Try again when it has ended.") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()}, since {timestamp(time.time())}\n")
        stream.flush()
        yield


def read(file: Path) -> Plan:
    """Return the plan in a file that ``labrack plan -o`` wrote; UserError where it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The plan {file} can't be read: {error.strerror}.") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
        raise UserError(f"{file} holds no plan of this version of labrack; make one with `labrack plan -o {file}`.")
    try:
        nodes = {host: _node_of(node) for host, node in found.pop("nodes").items()}
        jobs = tuple(Job(**job) for job in found.pop("jobs"))
        lists: dict[str, Any] = {key: tuple(found.pop(key)) for key in ("inventory", "tags", "limit", "arguments")}
        return Plan(nodes=nodes, jobs=jobs, **lists, **found)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"The plan {file} is damaged; make a new one with `labrack plan -o {file}`.") from None


def write(plan: Plan, file: Path) -> None:
    """Save a plan, readable by its owner alone, as it holds the texts of files; UserError where that can't be."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=".labrack-", dir=file.absolute().parent)
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(plan.text())
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"The plan can't be written to {file}: {error.strerror}.") from None


def differences(saved: Plan, now: Plan) -> list[str]:
    """Return in what two plans differ, a line per host and thing; none where they change the same."""
    found = []
    for host in sorted({*saved.nodes, *now.nodes}):
        before, after = saved.nodes.get(host, NodePlan()), now.nodes.get(host, NodePlan())
        if before.failed != after.failed and (before.failed or after.failed):
            found.append(f"  {host}: {after.failed or 'answers now'}")
            continue
        was, is_now = {*_lines(before)}, {*_lines(after)}
        # one line for a thing whose text alone differs
        names = dict.fromkeys(subject for subject, _text in [*_lines(before), *_lines(after)])
        for subject in names:
            old, new = ({text for one, text in seen if one == subject} for seen in (was, is_now))
            if old != new:
                how = "is no longer off" if not new else "is off now" if not old else "is off in another way now"
                found.append(f"  {host}: {subject} {how}")
    return found


def _lines(node: NodePlan) -> Iterator[tuple[str, str]]:
    """Yield the things that would change on a node, each with all that is known of it as one text."""
    for task in node.tasks:
        place = f"{task.role}/{task.task}"
        for item in task.items:
            texts = [dict(one) for one in task.diff if one.get("header") in (item.subject, "")]
            yield item.subject, json.dumps([place, item.summary, item.disruption, texts], sort_keys=True)
        for item in task.pending:
            yield item.subject, json.dumps([place, item.summary, item.disruption, "pending"])


def digest(inventory: Sequence[Path], arguments: Sequence[str] = ()) -> str:
    """Return the SHA-256 of all that a run reads on this side: inventory, files of variables, the collection.

    Of an inventory that is a file, group_vars and host_vars beside it count too. What git or an editor keeps among
    them does not.
    """
    collection = Path(next(iter(_plugin_utils.__path__))).resolve().parents[1]
    sources: list[Path] = []
    for path in inventory:
        sources += [path] if path.is_dir() else [path, path.parent / "group_vars", path.parent / "host_vars"]
    sources += [Path(word.lstrip("@")) for word in arguments if word.startswith("@")]
    sources += [collection / name for name in ("playbooks", "plugins", "roles")]
    total = hashlib.sha256()
    for source in sources:
        for file in _files(source):
            total.update(os.fsencode(file.relative_to(source)) + b"\0")
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _files(source: Path) -> Iterable[Path]:
    if source.is_file():
        return [source]
    return sorted(
        file
        for file in source.rglob("*")
        if file.is_file()
        and file.suffix not in (".pyc", ".swp", ".retry")
        and not {".git", "__pycache__"} & {*file.relative_to(source).parts}
    )


def _nodes(outcome: Outcome) -> dict[str, NodePlan]:
    nodes = {}
    failed = _first_failures(outcome)
    for host in sorted({*outcome.changed, *outcome.ran, *failed} - {"localhost"}):
        tasks = [task for task in outcome.tasks if task.host == host]
        visible = sum(task.ending == "changed" for task in tasks)
        hidden = outcome.changed.get(host, 0) - visible
        plans = [_task_plan(task, hidden > 0) for task in tasks]
        failure = failed.get(host)
        nodes[host] = NodePlan(
            tuple(plan for plan in plans if plan.items or plan.pending),
            f"{failure.task}: {failure.message}" if failure else "",
            host in outcome.unreachable,
            tuple(dict.fromkeys(words for task in tasks for words in task.warnings)),
        )
    return nodes


def _first_failures(outcome: Outcome) -> dict[str, Failure]:
    return {failure.node: failure for failure in reversed(outcome.failures)}


def _task_plan(task: TaskResult, hidden: bool) -> TaskPlan:
    """What a task would change; where some task of its host that hides its result would, it is counted for each."""
    pending = tuple(_item(one) for one in task.pending)
    diff = tuple(dict(one) for one in task.diff)
    if task.ending == "done" and hidden:
        return TaskPlan(
            task.role, task.task, (Item(task.task, "not shown, as it holds a secret", "none"),), hidden=True
        )
    if task.ending != "changed":
        return TaskPlan(task.role, task.task, pending=pending)
    items = tuple(_item(one) for one in task.changes)
    if not items:
        stock = _STOCK.get(task.action.rpartition(".")[2], "none")
        items = (Item(task.task, "changed", stock),)
    return TaskPlan(task.role, task.task, items, pending, diff)


def _item(found: Mapping[str, str]) -> Item:
    disruption = found.get("disruption", "none")
    return Item(found["subject"], found.get("summary", ""), disruption if disruption in DISRUPTIONS else "none")


def affected(lab: Lab, outcome: Outcome) -> list[str]:
    """Return the nodes whose running jobs a change of class drain or more would end or wait for, as planned."""
    found: dict[str, None] = {}
    workers = lab.groups.get("slurm_worker", ())
    for task in outcome.tasks:
        found.update(dict.fromkeys(task.drains))
        for item in (*task.changes, *task.pending):
            if rank(_item(item).disruption) < rank("drain"):
                continue
            named = re.fullmatch(r"node (\S+)", item["subject"])
            if named:
                found[named[1]] = None
            elif task.role in _EVERYWHERE or task.action.endswith("slurm_controller"):
                found.update(dict.fromkeys(workers))
            else:
                found[task.host] = None
    return [node for node in found if node in workers]


def _jobs(
    lab: Lab,
    outcome: Outcome,
    log: Path,
    step: Step,
    arguments: Sequence[str],
    answers: Mapping[str, str] | None,
) -> tuple[tuple[Job, ...], str]:
    nodes = affected(lab, outcome)
    if not nodes:
        return (), ""
    # it draws tables, which a run without such changes needs not load
    from . import job_impact

    where = connection_arguments(arguments)
    try:
        found = job_impact.read(lab.inventory, nodes, log.with_name("jobs.log"), step, where, answers)
    except RunError as error:
        return (), f"Slurm could not be asked: {error}"
    by_node = [Job(node, job.id, job.user, job.name, job.state) for node in nodes for job in found if node in job.nodes]
    return tuple(by_node), ""


#: Options of ansible-playbook that say how machines and secrets are reached, not what is done.
_TAKES_A_VALUE = (
    *("-e", "--extra-vars", "-u", "--user", "--private-key", "--key-file", "-c", "--connection", "-T", "--timeout"),
    *("--vault-id", "--vault-password-file", "--vault-pass-file", "--become-user", "--become-method"),
    *("--become-password-file", "--become-pass-file", "--connection-password-file", "--conn-pass-file"),
    *("--ssh-common-args", "--ssh-extra-args"),
)
_TAKES_NONE = (
    *("-b", "--become", "-k", "--ask-pass", "--connection-password", "-K", "--ask-become-pass"),
    *("-J", "--ask-vault-password", "--ask-vault-pass"),
)


def connection_arguments(arguments: Sequence[str]) -> list[str]:
    """Return of ansible-playbook's arguments those that another playbook needs to reach the same machines.

    What names tasks, such as --start-at-task, stays behind.
    """
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in _TAKES_A_VALUE:
            kept += [word, next(words, "")]
        elif word in _TAKES_NONE or word.partition("=")[0] in _TAKES_A_VALUE:
            kept.append(word)
    return kept


def _applied(lab: Lab, outcome: Outcome, log: Path) -> Applied:
    failed = _first_failures(outcome)
    hosts = {}
    for host in sorted({*outcome.changed, *outcome.ran, *failed} - {"localhost"}):
        tasks = [task for task in outcome.tasks if task.host == host]
        plans = [_task_plan(task, hidden=False) for task in tasks]
        items = tuple(item for plan in plans for item in plan.items)
        pending = dict.fromkeys(item for plan in plans for item in plan.pending)
        failure = failed.get(host)
        hosts[host] = HostResult(
            outcome.changed.get(host, 0),
            items,
            tuple(pending),
            failure.task if failure else "",
            failure.message if failure else "",
            host in outcome.unreachable,
            tuple(dict.fromkeys(words for task in tasks for words in task.warnings)),
        )
    return Applied(tuple(map(str, lab.inventory)), hosts, outcome.roles, str(log))


def _node_of(found: Mapping[str, Any]) -> NodePlan:
    tasks = [
        TaskPlan(
            task["role"],
            task["task"],
            tuple(Item(**item) for item in task["items"]),
            tuple(Item(**item) for item in task["pending"]),
            tuple({key: str(text) for key, text in one.items()} for one in task["diff"]),
            bool(task["hidden"]),
        )
        for task in found["tasks"]
    ]
    return NodePlan(tuple(tasks), str(found["failed"]), bool(found["unreachable"]), tuple(map(str, found["warnings"])))
