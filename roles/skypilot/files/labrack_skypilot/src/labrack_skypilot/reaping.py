# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is forgotten on the lab's GPUs, whom to warn of it, and what to end. Pure: no clock, no SkyPilot, no command.

A *thing* is a cluster of SkyPilot, or a pod or a Slurm job that SkyPilot does not know. What is wrong with it is a
*reason*. Hours are counted while the reaper looks: what it did not see while it or the machine was off adds nothing,
and neither does a clock that jumps. What can't be told now, as when a pod does not answer, adds nothing either, and
ends nothing.

Nothing is ended without a warning to its owner that is older than the grace and that somebody took (``delivered``), and
nothing whose cards do anything.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: Reasons, in the order in which they are looked for.
NO_AUTOSTOP, STUCK, UNKNOWN, IDLE = "no autostop", "stuck", "unknown to SkyPilot", "idle"
#: SkyPilot's own machines for jobs and services (sky/utils/controller_utils.py).
CONTROLLER = re.compile(r"sky-(jobs|serve)-controller(-.*)?")
#: What a run of the reaper may add to a count, in runs: one that was late or off adds no more.
LATE = 3
HISTORY_SECONDS = 35 * 86400


@dataclass(frozen=True)
class Settings:
    """The inventory's settings. Hours: how long something is watched before its owner is warned, then the grace.

    ``idle_minutes`` is the autostop that a cluster without one gets. ``busy_percent``: a card that does no more than
    that is idle. ``spare`` has patterns of names of users and clusters that are only reported. ``every_minutes`` is the
    timer's.
    """

    dry_run: bool = True
    grace_hours: float = 4.0
    no_autostop_hours: float = 1.0
    stuck_hours: float = 2.0
    unknown_hours: float = 1.0
    idle_hours: float = 8.0
    idle_minutes: int = 60
    busy_percent: int = 0
    spare: tuple[str, ...] = ()
    every_minutes: int = 10

    def hours(self, reason: str) -> float:
        """Return how long something is watched for a reason before its owner is warned."""
        return {
            NO_AUTOSTOP: self.no_autostop_hours,
            STUCK: self.stuck_hours,
            UNKNOWN: self.unknown_hours,
            IDLE: self.idle_hours,
        }[reason]


@dataclass(frozen=True)
class Cluster:
    """A cluster as the server knows it (StatusResponse of SkyPilot 0.14.1); ``number`` is the one of its creation.

    ``status`` is INIT, UP, STOPPED…; ``autostop`` minutes, -1 for none; ``managed``: of a managed job or a service.
    """

    name: str
    number: str
    on_cloud: str
    user: str
    user_hash: str
    status: str
    autostop: int = -1
    managed: bool = False
    init_kind: str = ""


@dataclass(frozen=True)
class Part:
    """A pod or a Slurm job of SkyPilot's. ``kind`` is pod or job, ``place`` the context or the Slurm cluster.

    ``number`` is the pod's UID, or when the job was submitted. ``state`` is waiting, running or ended; ``cluster`` the
    name of its cluster there. ``namespace`` is a pod's.
    """

    kind: str
    place: str
    name: str
    number: str
    cluster: str
    user: str
    state: str
    gpus: int = 0
    namespace: str = ""

    @property
    def key(self) -> str:
        """Return what tells it from every other, earlier ones of its name too."""
        return "/".join((self.kind, self.place, self.namespace, self.name, self.number))


@dataclass(frozen=True)
class Observed:
    """What a run saw. ``clusters`` is None where the server did not tell, and then nothing is unknown to it.

    ``busy`` is the most that a part's cards did, in percent, None or missing where it can't be told. ``hashes`` are
    those of the server's users, by which its own parts are told from another server's. Unless it is ``complete``, a
    place did not tell what runs there.
    """

    now: float
    clusters: tuple[Cluster, ...] | None = ()
    parts: tuple[Part, ...] = ()
    busy: Mapping[str, float | None] = field(default_factory=dict)
    hashes: frozenset[str] = frozenset()
    complete: bool = True


@dataclass(frozen=True)
class Finding:
    """A thing and what is wrong with it. ``verb`` is how it would be ended, "" for what is only reported.

    ``cluster`` is its cluster's name there, "" for a part alone. ``certain``: it is so now, and not only as far as can
    be told.
    """

    key: str
    reason: str
    name: str
    owner: str
    what: str
    verb: str = ""
    target: tuple[str, ...] = ()
    certain: bool = True
    cluster: str = ""


@dataclass(frozen=True)
class Watch:
    """What is remembered of a finding: seconds for which it was seen, and seen since its owner was warned.

    ``warned`` is when that was, in Unix time, 0 for not yet. The rest is the finding's.
    """

    owner: str
    name: str
    what: str
    verb: str = ""
    held: float = 0.0
    warned: float = 0.0
    since: float = 0.0


@dataclass(frozen=True)
class Memory:
    """What the reaper remembers between runs: when the last one was, watches by thing and reason, what it did."""

    time: float = 0.0
    watches: Mapping[str, Watch] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    reported: float = 0.0

    @classmethod
    def read(cls, document: Any) -> Memory:
        """Return the memory of a state file's document; ValueError for something else."""
        try:
            watches = {str(key): Watch(**value) for key, value in document["watches"].items()}
            return cls(float(document["time"]), watches, tuple(document["history"]), float(document["reported"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no state of the reaper: {error!r}") from None

    def document(self) -> dict[str, Any]:
        """Return the document of the state file."""
        watches = {key: asdict(watch) for key, watch in sorted(self.watches.items())}
        return {"time": self.time, "watches": watches, "history": list(self.history), "reported": self.reported}


@dataclass(frozen=True)
class Action:
    """What to do: ``kind`` is warn, end or report. An end has a verb: autostop, down, delete_pod or scancel."""

    kind: str
    finding: Finding
    text: str

    @property
    def watch(self) -> str:
        """Return the key of the watch that it is about."""
        return watch_key(self.finding)


def watch_key(finding: Finding) -> str:
    """Return the key of a finding's watch."""
    return f"{finding.key} {finding.reason}"


def plan(observed: Observed, memory: Memory, settings: Settings) -> tuple[list[Action], Memory]:
    """Return what to do, and the memory with what was seen. A dry run's actions are all reports.

    A warning counts once it is marked by :func:`delivered`, an end by :func:`ended`.
    """
    step = observed.now - memory.time if memory.time else 0.0
    step = min(max(step, 0.0), settings.every_minutes * 60.0 * LATE)
    actions: list[Action] = []
    watches: dict[str, Watch] = {}
    found = list(findings(observed, settings))
    down = set()
    for finding in found:
        key = watch_key(finding)
        before = memory.watches.get(key)
        if before is None and not finding.certain:
            continue
        watch = before or Watch(finding.owner, finding.name, finding.what, finding.verb)
        # the first look only starts the count
        passed = step if before is not None and finding.certain else 0.0
        watch = replace(
            watch,
            owner=finding.owner,
            what=finding.what,
            verb=finding.verb,
            held=watch.held + passed,
            since=watch.since + passed if watch.warned else 0.0,
        )
        watches[key] = watch
        action = _decide(finding, watch, observed.now, settings)
        if action and action.kind == "end" and action.finding.verb == "down":
            down.add(finding.key)
        if action:
            actions.append(action)
    # who is ended needs no autostop
    actions = [one for one in actions if not (one.finding.verb == "autostop" and one.finding.key in down)]
    if settings.dry_run:
        actions = [replace(one, kind="report", text=f"would {one.kind}: {one.text}") for one in actions]
    history = tuple(one for one in memory.history if observed.now - one.get("time", 0.0) < HISTORY_SECONDS)
    return actions, Memory(observed.now, watches, history, memory.reported)


def _decide(finding: Finding, watch: Watch, now: float, settings: Settings) -> Action | None:
    if watch.held < settings.hours(finding.reason) * 3600:
        return None
    if not finding.verb or spared(finding, settings):
        return Action("report", finding, f"{finding.name} of {finding.owner}: {finding.what}")
    if not watch.warned:
        return Action("warn", finding, warning(finding, settings))
    grace = settings.grace_hours * 3600
    # by the clock as well as by what was seen, as either may be wrong
    if finding.certain and watch.since >= grace and now - watch.warned >= grace:
        return Action("end", finding, _END_WORDS[finding.verb].format(name=finding.name, minutes=settings.idle_minutes))
    return None


def spared(finding: Finding, settings: Settings) -> bool:
    """Return whether the inventory wants this left alone."""
    return any(fnmatch.fnmatchcase(name, one) for one in settings.spare for name in (finding.owner, finding.name))


_END_WORDS = {
    "autostop": "{name} ends by itself after {minutes} idle minutes from now on",
    "down": "{name} was ended",
    "delete_pod": "the pod {name} was deleted",
    "scancel": "the Slurm job {name} was cancelled",
}
_MENDS = {
    NO_AUTOSTOP: "give it one: sky autostop {name} -i {minutes} --down",
    STUCK: "look at it (sky status {name}), start it again (sky launch) or end it: sky down {name}",
    UNKNOWN: "save what you need of it, and end it",
    IDLE: "use its cards, or end it: sky down {name}",
}


def warning(finding: Finding, settings: Settings) -> str:
    """Return what its owner is told, with what happens otherwise and the mend."""
    mend = _MENDS[finding.reason].format(name=finding.name, minutes=settings.idle_minutes)
    then = (
        f"it gets an autostop of {settings.idle_minutes} idle minutes" if finding.verb == "autostop" else "it is ended"
    )
    return f"{finding.name}: {finding.what}. In {settings.grace_hours:g} hours {then}. Mend: {mend}"


def delivered(memory: Memory, action: Action, now: float) -> Memory:
    """Return the memory once a warning has been taken by somebody."""
    watch = memory.watches[action.watch]
    watches = {**memory.watches, action.watch: replace(watch, warned=now, since=0.0)}
    return replace(memory, watches=watches, history=(*memory.history, _entry(action, now, "warned")))


def ended(memory: Memory, action: Action, now: float, problem: str = "") -> Memory:
    """Return the memory once something was ended, or could not be for a reason; then it is tried again."""
    watches = dict(memory.watches)
    if not problem:
        watches.pop(action.watch, None)
    entry = _entry(action, now, "failed" if problem else "ended")
    if problem:
        entry["problem"] = problem
    # what fails at every run is one entry
    same = {**entry, "time": 0.0}
    history = tuple(one for one in memory.history if {**one, "time": 0.0} != same)
    return replace(memory, watches=watches, history=(*history, entry))


def _entry(action: Action, now: float, what: str) -> dict[str, Any]:
    finding = action.finding
    return {
        "time": now,
        "did": what,
        "name": finding.name,
        "owner": finding.owner,
        "reason": finding.reason,
        "what": finding.what,
        "verb": finding.verb,
    }


# --- what is wrong ---------------------------------------------------------------------------------------------------


def findings(observed: Observed, settings: Settings) -> Iterator[Finding]:
    """Yield what is wrong now, and what may be."""
    if observed.clusters is None:
        return
    parts: dict[str, list[Part]] = {}
    for part in observed.parts:
        parts.setdefault(part.cluster, []).append(part)
    known = {cluster.on_cloud for cluster in observed.clusters}
    for cluster in observed.clusters:
        if not CONTROLLER.fullmatch(cluster.name):
            yield from _of_cluster(cluster, parts.get(cluster.on_cloud, []), observed, settings)
    hashes = observed.hashes | {cluster.user_hash for cluster in observed.clusters if cluster.user_hash}
    for part in observed.parts:
        if part.cluster not in known and part.state == "running" and not CONTROLLER.fullmatch(part.cluster):
            yield from _unknown(part, hashes, observed, settings)


def _of_cluster(cluster: Cluster, parts: list[Part], observed: Observed, settings: Settings) -> Iterator[Finding]:
    key = f"cluster/{cluster.name}/{cluster.number}"

    def finding(reason: str, what: str, verb: str, certain: bool = True) -> Finding:
        # SkyPilot would start a managed one anew, so its owner has to end the job
        verb = "" if cluster.managed else verb
        return Finding(key, reason, cluster.name, cluster.user, what, verb, (cluster.name,), certain, cluster.on_cloud)

    working = work(parts, observed.busy, settings)
    if cluster.status == "UP" and cluster.autostop < 0 and not cluster.managed:
        yield finding(NO_AUTOSTOP, "it has no autostop, so it would hold its cards for ever", "autostop")
    # who waits for a card holds none
    waits = any(part.state == "waiting" for part in parts)
    if cluster.status == "INIT" and not waits and working is not True:
        kind = "does not get well" if cluster.init_kind == "unhealthy" else "does not come up"
        yield finding(STUCK, f"it {kind}", "down", working is False and observed.complete)
    if cluster.status == "UP" and any(part.gpus for part in parts) and working is not True:
        cards = sum(part.gpus for part in parts)
        yield finding(
            IDLE,
            "its card does nothing" if cards == 1 else f"its {cards} cards do nothing",
            "down",
            working is False and observed.complete,
        )


def parts_of(finding: Finding, observed: Observed) -> list[Part]:
    """Return the pods and jobs that a finding is about."""
    if finding.cluster:
        return [part for part in observed.parts if part.cluster == finding.cluster]
    return [part for part in observed.parts if part.key == finding.key]


def work(parts: Iterable[Part], busy: Mapping[str, float | None], settings: Settings) -> bool | None:
    """Return whether the cards of these parts do anything, None where that can't be told of one of them.

    ``busy`` is that of :class:`Observed`.
    """
    seen = [busy.get(part.key) for part in parts if part.gpus and part.state == "running"]
    if any(percent is not None and percent > settings.busy_percent for percent in seen):
        return True
    return None if None in seen else False


def _unknown(part: Part, hashes: frozenset[str], observed: Observed, settings: Settings) -> Iterator[Finding]:
    kind = "pod" if part.kind == "pod" else "Slurm job"
    what = f"the {kind} {part.name} on {part.place} belongs to no cluster that SkyPilot knows"
    working = work([part], observed.busy, settings)
    ours = any(part.cluster.endswith(f"-{one}") for one in hashes)
    verb = "delete_pod" if part.kind == "pod" else "scancel"
    target = (part.place, part.namespace, part.name) if part.kind == "pod" else (part.place, part.user, part.name)
    if not ours or working is True:
        # another server's, or somebody's who still computes: for the report alone
        verb = ""
    yield Finding(part.key, UNKNOWN, part.name, part.user, what, verb, target, working is not None)


# --- for people ------------------------------------------------------------------------------------------------------


def messages(memory: Memory, now: float, settings: Settings) -> dict[str, str]:
    """Return what each owner reads at login: warnings that hold, and what was ended in the last two days."""
    lines: dict[str, list[str]] = {}
    for watch in memory.watches.values():
        if watch.warned:
            left = max(0.0, settings.grace_hours * 3600 - watch.since) / 3600
            then = "gets an autostop" if watch.verb == "autostop" else "is ended"
            text = f"{watch.name}: {watch.what}; it {then} in {left:.1f} hours"
            lines.setdefault(watch.owner, []).append(text)
    for entry in memory.history:
        if entry["did"] == "ended" and now - entry["time"] < 2 * 86400:
            text = f"{entry['name']} was ended: {entry['what']}"
            if entry["verb"] == "autostop":
                text = f"{entry['name']} was given an autostop: {entry['what']}"
            lines.setdefault(entry["owner"], []).append(text)
    return {owner: "".join(f"labrack: {line}\n" for line in found) for owner, found in lines.items()}


def report(memory: Memory, actions: Iterable[Action], observed: Observed, settings: Settings) -> dict[str, Any]:
    """Return the weekly report as a document: what was done since the last one, and what is to be looked at now."""
    since = memory.reported or observed.now - 7 * 86400
    return {
        "schema": 1,
        "from": since,
        "to": observed.now,
        "dry_run": settings.dry_run,
        "clusters": None if observed.clusters is None else len(observed.clusters),
        "parts": len(observed.parts),
        "done": [dict(entry) for entry in memory.history if entry["time"] >= since],
        "now": [
            {
                "name": one.finding.name,
                "owner": one.finding.owner,
                "reason": one.finding.reason,
                "text": one.text,
            }
            for one in actions
        ],
        "watched": [
            {"name": one.name, "owner": one.owner, "what": one.what, "hours": round(one.held / 3600, 1)}
            for one in memory.watches.values()
        ],
    }


def report_text(document: Mapping[str, Any], day: str) -> str:
    """Return the report as Markdown; ``day`` is the date in its title."""
    lines = [f"# GPUs that nobody uses: {day}", ""]
    if document["dry_run"]:
        lines += ["This was a dry run: nobody was warned and nothing was ended.", ""]
    for title, key in (("Done", "done"), ("To look at", "now"), ("Watched", "watched")):
        lines.append(f"## {title}")
        lines.append("")
        for one in document[key]:
            if key == "done":
                tail = f", which failed: {one['problem']}" if one.get("problem") else ""
                lines.append(f"- {one['did']}: {one['name']} of {one['owner']} ({one['reason']}): {one['what']}{tail}")
            elif key == "now":
                lines.append(f"- {one['owner']}: {one['text']}")
            else:
                lines.append(f"- {one['name']} of {one['owner']}: {one['what']}, seen for {one['hours']} hours")
        if not document[key]:
            lines.append("Nothing.")
        lines.append("")
    return "\n".join(lines)
