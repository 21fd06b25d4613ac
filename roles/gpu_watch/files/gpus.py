#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is free of this machine's GPUs, who has what, who waits: ``labrack-gpus``, installed by the role gpu_watch.

``labrack-gpus sample`` is for its timer: it notes temperature, power and what slows a card down, says once when one
is hot, and writes what everybody reads at login. Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SETTINGS = Path("/etc/labrack/gpu_watch.json")
WEBHOOK = Path("/etc/labrack/gpu_watch_webhook")
#: Samples, metrics and episodes; what logins and ``labrack-gpus`` read.
FOLDER = Path("/var/lib/labrack/gpu-watch")
RUN = Path("/run/labrack/gpus")
K3S_CONFIG = "/etc/rancher/k3s/k3s.yaml"
#: Seconds for which a look counts as one of now.
FRESH = 150.0
#: What can slow a card down, in the order of its bits in a sample.
THROTTLE = ("sw_power_cap", "hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
HEAT = frozenset({"hw_thermal_slowdown", "sw_thermal_slowdown"})
#: Degrees for which a card has to be below the threshold again until its episode is over.
COOLED = 5
BTU_PER_WATT = 3.412142
#: A sample: time, temperature, slowdown's, draw and limit in watts, use in percent, memory in MiB, bits of THROTTLE.
SAMPLE = struct.Struct("<dhhffBIB")
MINUTE = 60
SMI = ("nvidia-smi", "-q", "-x")
QUEUE = ("squeue", "--noheader", "--format=%i|%T|%u|%b|%D|%V|%r|%N")


@dataclass(frozen=True)
class Settings:
    """The role's variables; times in minutes, ``heat_watts`` 0 for no bound."""

    below_slowdown: int = 5
    hot: int = 90
    sustain: int = 3
    calm: int = 10
    heat_watts: int = 0
    keep_days: int = 7
    mail: str = ""
    motd: bool = True

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Return the settings of a file; the defaults where it is not there or damaged."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{key: value for key, value in document.items() if key in cls.__dataclass_fields__})
        except (OSError, ValueError, TypeError, AttributeError):
            return cls()


@dataclass(frozen=True)
class Card:
    """A card; None where it tells nothing. ``processes`` are (PID, program, MiB)."""

    index: int
    uuid: str
    name: str
    temperature: int | None = None
    slowdown: int | None = None
    draw: float | None = None
    limit: float | None = None
    use: int | None = None
    memory: int | None = None
    total: int | None = None
    throttle: tuple[str, ...] = ()
    processes: tuple[tuple[int, str, int], ...] = ()


@dataclass(frozen=True)
class Holder:
    """Who has a card: the Unix user, the program, and the job or pod that it is part of, "" for none."""

    user: str
    program: str = ""
    work: str = ""


@dataclass(frozen=True)
class Waiting:
    """Who waits for how many cards, where, since when (Unix time, 0 unknown), and why."""

    user: str
    gpus: int
    where: str
    since: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Place:
    """A node of Slurm or Kubernetes with cards: how many it has, how many are given out."""

    kind: str
    name: str
    total: int
    used: int


@dataclass(frozen=True)
class View:
    """All that is shown. ``holders`` by card index; ``problem`` says why there are no cards; ``hot`` what is wrong."""

    time: float
    host: str
    cards: tuple[Card, ...] = ()
    holders: Mapping[int, tuple[Holder, ...]] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()
    places: tuple[Place, ...] = ()
    problem: str = ""
    hot: tuple[str, ...] = ()


# --- the cards -------------------------------------------------------------------------------------------------------


def run(argv: Sequence[str], timeout: float = 20.0) -> tuple[int, str]:
    """Run a command without a shell: exit status and output; 127 for one that is not there, 124 for no answer."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return 127, ""
    except (OSError, subprocess.TimeoutExpired):
        return 124, ""
    return done.returncode, done.stdout or done.stderr


def parse_cards(text: str) -> list[Card]:
    """Return the cards of ``nvidia-smi -q -x``, of any driver since R450; a lost card is not among them."""
    found = []
    # with a lost card the driver prints lines before the document, and one card may be damaged
    for index, block in enumerate(re.findall(r"<gpu id=.*?</gpu>", text, re.DOTALL)):
        try:
            gpu = ElementTree.fromstring(block)  # noqa: S314  (the driver's own words)
        except ElementTree.ParseError:
            continue
        found.append(_card(index, gpu))
    return found


def _card(index: int, gpu: ElementTree.Element) -> Card:
    power = "gpu_power_readings" if gpu.find("gpu_power_readings") is not None else "power_readings"
    now = _number(gpu, "temperature/gpu_temp")
    slow = _number(gpu, "temperature/gpu_temp_slow_threshold")
    margin, slow_margin = (
        _number(gpu, f"temperature/{name}") for name in ("gpu_temp_tlimit", "gpu_temp_slow_tlimit_threshold")
    )
    if slow is None and None not in (now, margin, slow_margin):
        # cards since Hopper and Ada tell how far it is to their limit
        slow = (now or 0) + (margin or 0) - (slow_margin or 0)
    groups = (("clocks_event_reasons", "clocks_event_reason"), ("clocks_throttle_reasons", "clocks_throttle_reason"))
    throttle = tuple(
        name
        for name in THROTTLE
        if any((gpu.findtext(f"{group}/{prefix}_{name}") or "").strip() == "Active" for group, prefix in groups)
    )
    processes = {
        (_number(one, "pid") or 0, (one.findtext("process_name") or "").split(" ")[0], _number(one, "used_memory") or 0)
        for one in gpu.findall("processes/process_info")
    }
    draws = [_watts(gpu, f"{power}/{name}") for name in ("power_draw", "average_power_draw", "instant_power_draw")]
    limits = [_watts(gpu, f"{power}/{name}") for name in ("current_power_limit", "power_limit")]
    return Card(
        index,
        (gpu.findtext("uuid") or "").strip(),
        (gpu.findtext("product_name") or "GPU").strip(),
        now,
        slow,
        next((one for one in draws if one is not None), None),
        next((one for one in limits if one is not None), None),
        _number(gpu, "utilization/gpu_util"),
        _number(gpu, "fb_memory_usage/used"),
        _number(gpu, "fb_memory_usage/total"),
        throttle,
        tuple(sorted(processes)),
    )


def _number(gpu: ElementTree.Element, path: str) -> int | None:
    found = re.match(r"-?\d+", (gpu.findtext(path) or "").strip())
    return int(found.group()) if found else None


def _watts(gpu: ElementTree.Element, path: str) -> float | None:
    found = re.match(r"\d+(\.\d+)?", (gpu.findtext(path) or "").strip())
    return float(found.group()) if found else None


# --- who has them ----------------------------------------------------------------------------------------------------


def work_of(cgroup: str, pods: Mapping[str, str]) -> str:
    """Return what a process is part of by its cgroup's path: a Slurm job, a pod, a container, "" for none.

    ``pods`` has the pods' names by UID.
    """
    job = re.search(r"/job_(\d+)(/|$)", cgroup, re.MULTILINE)
    if job:
        return f"Slurm job {job.group(1)}"
    # kubepods-burstable-pod0f1e_….slice, or pod0f1e-…
    pod = re.search(r"kubepods.*?pod([0-9a-f]{8}[-_][0-9a-f_-]{27})", cgroup)
    if pod:
        return f"pod {pods.get(pod.group(1).replace('_', '-'), 'of Kubernetes')}"
    return "container" if re.search(r"docker[-/][0-9a-f]{12}|libpod-|nerdctl", cgroup) else ""


def holders_of(card: Card, pods: Mapping[str, str], users: Mapping[str, str], proc: Path) -> tuple[Holder, ...]:
    """Return who computes on a card. ``users`` has whom a pod is of, by its name."""
    found = []
    for pid, program, _memory in card.processes:
        try:
            uid = (proc / str(pid)).stat().st_uid
            cgroup = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        work = work_of(cgroup, pods)
        user = users.get(work.partition(" ")[2]) if work.startswith("pod ") else None
        found.append(Holder(user or _user(uid), os.path.basename(program), work))
    return tuple(dict.fromkeys(found))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def gpus_of(text: str) -> int:
    """Return how many cards a Slurm resource names: gres/gpu:a100:2, gpu:a100:2(S:0-1), gres:gpu:1; 0 for none."""
    total = 0
    for word in re.split(r",(?![^(]*\))", text):
        found = re.match(r"(?:gres[/:])?gpu(?::[^:(=]*[^:(=\d][^:(=]*)?(?:[:=](\d+))?(?:\(|$)", word.strip())
        if found:
            total += int(found.group(1) or 1)
    return total


def parse_queue(text: str) -> list[Waiting]:
    """Return who waits in Slurm's queue for cards, by :data:`QUEUE`, in its order."""
    found = []
    for line in text.splitlines():
        words = line.strip().split("|")
        if len(words) != 8 or words[1] != "PENDING":
            continue
        count = gpus_of(words[3]) * (int(words[4]) if words[4].isdigit() else 1)
        if count:
            found.append(Waiting(words[2], count, f"Slurm job {words[0]}", _when(words[5]), words[6]))
    return found


def _when(text: str) -> float:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return 0.0


def parse_nodes(text: str) -> list[Place]:
    """Return Slurm's nodes with cards, of ``scontrol --oneliner --detail show node``."""
    found = {}
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        total = gpus_of(values.get("Gres", ""))
        if total and values.get("NodeName"):
            found[values["NodeName"]] = Place("Slurm", values["NodeName"], total, gpus_of(values.get("GresUsed", "")))
    return list(found.values())


def slurm_holders(text: str, host: str) -> dict[int, Holder]:
    """Return who has this host's cards by Slurm, by card index, of ``scontrol --oneliner --detail show job``."""
    found = {}
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        if values.get("JobState") != "RUNNING":
            continue
        user = values.get("UserId", "").partition("(")[0]
        for nodes, gres in re.findall(r"\bNodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*)", line):
            if host in nodes.split(","):
                for numbers in re.findall(r"gpu:[^(]*\(IDX:([\d,-]+)\)", gres):
                    for index in unfold(numbers):
                        found[index] = Holder(user, "", f"Slurm job {values.get('JobId', '')}")
    return found


def unfold(text: str) -> Iterator[int]:
    """Yield the numbers of a list as Slurm writes it, 0-1,3."""
    for piece in text.split(","):
        low, _dash, high = piece.partition("-")
        yield from range(int(low), int(high or low) + 1)


def parse_pods(document: Any) -> tuple[dict[str, str], dict[str, str], list[Waiting], dict[str, int]]:
    """Return pods' names by UID, users by name, who waits, and cards given out by node, of ``get pods -A -o json``."""
    names: dict[str, str] = {}
    users: dict[str, str] = {}
    waiting: list[Waiting] = []
    used: dict[str, int] = {}
    for item in document.get("items") or []:
        meta, spec, status = (item.get(key) or {} for key in ("metadata", "spec", "status"))
        labels = {**(meta.get("labels") or {}), **(meta.get("annotations") or {})}
        name = str(meta.get("name", ""))
        names[str(meta.get("uid", ""))] = name
        user = str(labels.get("skypilot-user") or meta.get("namespace", ""))
        users[name] = user
        gpus = 0
        for container in spec.get("containers") or []:
            limits = (container.get("resources") or {}).get("limits") or {}
            gpus += sum(int(count) for key, count in limits.items() if str(key).startswith("nvidia.com/"))
        if not gpus or status.get("phase") not in ("Pending", "Running"):
            continue
        if spec.get("nodeName"):
            used[spec["nodeName"]] = used.get(spec["nodeName"], 0) + gpus
        else:
            since = str(meta.get("creationTimestamp", ""))
            try:
                start = float(_utc(since))
            except ValueError:
                start = 0.0
            waiting.append(Waiting(user, gpus, f"pod {name}", start, ""))
    return names, users, waiting, used


def _utc(text: str) -> float:
    import calendar

    return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))


def parse_kube_nodes(document: Any, used: Mapping[str, int]) -> list[Place]:
    """Return Kubernetes' nodes with cards, of ``get nodes -o json``."""
    found = []
    for item in document.get("items") or []:
        name = str((item.get("metadata") or {}).get("name", ""))
        there = (item.get("status") or {}).get("allocatable") or {}
        total = sum(int(count) for key, count in there.items() if str(key).startswith("nvidia.com/"))
        if total:
            found.append(Place("Kubernetes", name, total, used.get(name, 0)))
    return found


def kubectl() -> list[str]:
    """Return the words before a question to this machine's Kubernetes, none where it has none that we may ask."""
    if not os.access(K3S_CONFIG, os.R_OK):
        return []
    program = shutil.which("k3s")
    return [program, "kubectl", "--kubeconfig", K3S_CONFIG, "--request-timeout=5s"] if program else []


def look(now: float, proc: Path = Path("/proc")) -> View:
    """Look at cards, Slurm and Kubernetes. Root sees all; others see what the system lets them."""
    host = socket.gethostname().split(".")[0]
    rc, out = run(SMI)
    cards = parse_cards(out)
    problem = ""
    if not cards and rc == 127:
        problem = "no NVIDIA driver here"
    elif not cards:
        problem = next((line.strip() for line in out.splitlines() if line.strip()), f"nvidia-smi ended with {rc}")
    names: dict[str, str] = {}
    users: dict[str, str] = {}
    waiting: list[Waiting] = []
    places: list[Place] = []
    by_slurm: dict[int, Holder] = {}
    rc, out = run(QUEUE) if shutil.which("squeue") else (127, "")
    if rc == 0:
        waiting += parse_queue(out)
        rc, out = run(("scontrol", "--oneliner", "--detail", "show", "node"))
        places += parse_nodes(out) if rc == 0 else []
        rc, out = run(("scontrol", "--oneliner", "--detail", "show", "job"))
        by_slurm = slurm_holders(out, host) if rc == 0 else {}
    before = kubectl()
    if before:
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            names, users, more, used = parse_pods(json.loads(run([*before, "get", "pods", "-A", "-o", "json"])[1]))
            waiting += more
            places += parse_kube_nodes(json.loads(run([*before, "get", "nodes", "-o", "json"])[1]), used)
    holders = {}
    for card in cards:
        found = holders_of(card, names, users, proc)
        held = by_slurm.get(card.index)
        if held and not any(one.work == held.work for one in found):
            # it was given out, and nothing computes on it
            found = (*found, held)
        if found:
            holders[card.index] = found
    return View(now, host, tuple(cards), holders, tuple(waiting), tuple(places), problem)


# --- words -----------------------------------------------------------------------------------------------------------


def free(view: View) -> int:
    """Return how many of this host's cards are free: nobody computes on them and nobody was given them.

    Of Kubernetes' and Slurm's own counts the lower one holds, as a pod's card can't be told until it computes.
    """
    idle = sum(card.index not in view.holders for card in view.cards)
    left = [place.total - place.used for place in view.places if place.name.split(".")[0] == view.host]
    return max(0, min([idle, *left]))


def have(view: View) -> dict[str, int]:
    """Return how many cards each user has here, most first."""
    counts: dict[str, int] = {}
    for found in view.holders.values():
        for user in dict.fromkeys(one.user for one in found):
            counts[user] = counts.get(user, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def motd(view: View) -> str:
    """Return what is shown at login: a line, and one more for each thing that is wrong."""
    lines = [f"labrack: {words}" for words in view.hot]
    if view.cards:
        parts = [f"{free(view)} of {len(view.cards)} free"]
        if view.holders:
            parts.append(", ".join(f"{user} has {count}" for user, count in list(have(view).items())[:5]))
        if view.waiting:
            parts.append(f"{len(view.waiting)} wait" if len(view.waiting) > 1 else "1 waits")
        lines.insert(0, f"GPUs: {'; '.join(parts)} (labrack-gpus tells more)")
    return "".join(f"{line}\n" for line in lines)


def table(view: View) -> str:
    """Return the view as text for people."""
    at = time.strftime("%H:%M:%S", time.localtime(view.time))
    if view.cards:
        lines = [f"{view.host} at {at}: {free(view)} of {len(view.cards)} GPUs free"]
    else:
        lines = [f"{view.host} at {at}: {view.problem or 'no GPUs'}"]
    rows = [("GPU", "card", "temp", "power", "use", "memory", "who")]
    for card in view.cards:
        who = ", ".join(
            f"{one.user} ({', '.join(word for word in (one.work, one.program) if word)})"
            for one in view.holders.get(card.index, ())
        )
        power = "-" if card.draw is None else f"{card.draw:.0f}"
        power += "" if card.limit is None else f" of {card.limit:.0f} W"
        memory = "-" if None in (card.memory, card.total) else f"{_gib(card.memory)} of {_gib(card.total)} GiB"
        temp = "-" if card.temperature is None else f"{card.temperature} °C"
        use = "-" if card.use is None else f"{card.use} %"
        rows.append((str(card.index), card.name.replace("NVIDIA ", ""), temp, power, use, memory, who or "free"))
    if view.cards:
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
        lines += ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]) for row in rows]
    lines += [f"! {words}" for words in view.hot]
    others = [place for place in view.places if place.name.split(".")[0] != view.host]
    for kind in dict.fromkeys(place.kind for place in others):
        counts = [f"{one.name} {one.total - one.used} of {one.total} free" for one in others if one.kind == kind]
        lines.append(f"{kind}: {', '.join(counts)}")
    for one in view.waiting:
        since = f" since {time.strftime('%a %H:%M', time.localtime(one.since))}" if one.since else ""
        cards = "1 GPU" if one.gpus == 1 else f"{one.gpus} GPUs"
        lines.append(
            f"waiting: {one.user} for {cards}{since} ({', '.join(word for word in (one.where, one.why) if word)})"
        )
    if not view.waiting and (view.cards or view.places):
        lines.append("Nobody waits.")
    return "\n".join(lines) + "\n"


def _gib(mib: int | None) -> str:
    return f"{(mib or 0) / 1024:.0f}"


def document(view: View) -> dict[str, Any]:
    """Return the view as JSON's document."""
    found = asdict(view)
    found["holders"] = {str(index): [asdict(one) for one in found_] for index, found_ in view.holders.items()}
    found["free"] = free(view)
    return {"schema": 1, **found}


def from_document(found: Mapping[str, Any]) -> View:
    """Return the view of a document; ValueError for something else."""
    try:
        cards = tuple(
            Card(**{**one, "throttle": tuple(one["throttle"]), "processes": tuple(map(tuple, one["processes"]))})
            for one in found["cards"]
        )
        return View(
            found["time"],
            found["host"],
            cards,
            {int(index): tuple(Holder(**one) for one in some) for index, some in found["holders"].items()},
            tuple(Waiting(**one) for one in found["waiting"]),
            tuple(Place(**one) for one in found["places"]),
            found["problem"],
            tuple(found["hot"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no view: {error!r}") from None


# --- heat ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Episode:
    """Something that is wrong for a while: since when, when it was seen last, how often in a row, and whether told."""

    since: float
    last: float
    seen: int = 1
    told: bool = False
    words: str = ""


def wrongs(cards: Sequence[Card], settings: Settings) -> dict[str, str]:
    """Return what is wrong with the cards now, in words with the mend, by a key that stays the same meanwhile."""
    found = {}
    for card in cards:
        name = f"GPU {card.index} ({card.name.replace('NVIDIA ', '')})"
        limit = threshold(card, settings)
        key = card.uuid or str(card.index)
        if card.temperature is not None and card.temperature >= limit:
            slow = f", and slows down at {card.slowdown} °C" if card.slowdown else ""
            found[f"hot {key}"] = f"{name} has {card.temperature} °C{slow}. Mend: {COOL}"
        elif HEAT & set(card.throttle):
            found[f"hot {key}"] = f"{name} is slowed down by its heat at {card.temperature} °C. Mend: {COOL}"
        if "hw_power_brake_slowdown" in card.throttle:
            found[f"power {key}"] = (
                f"{name} is slowed down by its power supply. Mend: see the supplies and their cables"
            )
        elif card.throttle == ("hw_slowdown",):
            found[f"power {key}"] = f"{name} is slowed down by the hardware. Mend: see nvidia-smi -q -d PERFORMANCE"
    watts = sum(card.draw or 0.0 for card in cards)
    if settings.heat_watts and watts > settings.heat_watts:
        found["room"] = (
            f"the cards give {watts / 1000:.1f} kW of heat ({watts * BTU_PER_WATT:,.0f} BTU/h), and the room's cooling "
            f"takes {settings.heat_watts / 1000:.1f} kW. Mend: lower power limits (nvidia-smi -pl), or cool the room"
        )
    return found


#: The guide's words for a machine under a desk.
COOL = "keep a metre clear behind its fans and nothing before its intake, clean its filters, or lower nvidia-smi -pl"


def threshold(card: Card, settings: Settings) -> int:
    """Return from which temperature on a card is hot, in °C."""
    return card.slowdown - settings.below_slowdown if card.slowdown else settings.hot


def still(key: str, cards: Sequence[Card], settings: Settings) -> bool:
    """Return whether a hot card is not cool enough yet to call it over."""
    return any(
        key == f"hot {card.uuid or card.index}"
        and card.temperature is not None
        and card.temperature > threshold(card, settings) - COOLED
        for card in cards
    )


def episodes(
    before: Mapping[str, Episode], found: Mapping[str, str], cards: Sequence[Card], settings: Settings, now: float
) -> dict[str, Episode]:
    """Return the episodes after a sample: each is told once, and over when it was calm for a while. Pure.

    One that is to be told now has ``seen`` of :attr:`Settings.sustain` or more, and not ``told``.
    """
    after = {}
    for key, words in found.items():
        one = before.get(key)
        after[key] = (
            replace(one, last=now, seen=one.seen + 1, words=words) if one else Episode(now, now, 1, False, words)
        )
    for key, one in before.items():
        if key in after:
            continue
        if still(key, cards, settings):
            after[key] = replace(one, last=now)
        elif one.told and 0 <= now - one.last < settings.calm * MINUTE:
            after[key] = one
    return after


def due(one: Episode, settings: Settings) -> bool:
    """Return whether an episode is to be told."""
    return not one.told and one.seen >= settings.sustain


# --- samples and metrics ---------------------------------------------------------------------------------------------


def ring_path(folder: Path, card: Card) -> Path:
    """Return the file of a card's samples."""
    return folder / f"{re.sub(r'[^A-Za-z0-9-]', '', card.uuid) or card.index}.ring"


def note_sample(folder: Path, card: Card, settings: Settings, now: float) -> None:
    """Write a sample to its place in the card's ring, which is that of its minute: the file never grows beyond.

    Of several looks within a minute the most heat and power stay, and all that slowed the card down.
    """
    slots = settings.keep_days * 24 * 60
    bits = sum(1 << place for place, name in enumerate(THROTTLE) if name in card.throttle)
    temperature = _fits(card.temperature, -1, 32767)
    draw = -1.0 if card.draw is None else card.draw
    path = ring_path(folder, card)
    with open(path, "r+b" if path.exists() else "w+b") as ring:
        ring.truncate(slots * SAMPLE.size)
        place = int(now // MINUTE) % slots * SAMPLE.size
        ring.seek(place)
        before = SAMPLE.unpack(ring.read(SAMPLE.size))
        if before[0] // MINUTE == now // MINUTE:
            temperature, draw, bits = max(temperature, before[1]), max(draw, before[3]), bits | before[7]
        record = SAMPLE.pack(
            now,
            temperature,
            _fits(card.slowdown, -1, 32767),
            draw,
            -1.0 if card.limit is None else card.limit,
            255 if card.use is None else _fits(card.use, 0, 254),
            _fits(card.memory, 0, 2**32 - 1),
            bits,
        )
        ring.seek(place)
        ring.write(record)


def _fits(value: int | None, least: int, most: int) -> int:
    return min(max(value if value is not None else least, least), most)


def samples(path: Path, since: float, until: float) -> list[tuple[Any, ...]]:
    """Return a ring's samples of a time, oldest first; none for no file."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    found = [SAMPLE.unpack_from(data, at) for at in range(0, len(data) - SAMPLE.size + 1, SAMPLE.size)]
    # a place that was never written has no time
    return sorted(one for one in found if one[0] and since <= one[0] <= until)


def history(folder: Path, cards: Sequence[Card], hours: float, now: float) -> str:
    """Return what the cards did for some hours, as text: the hottest, the most power, and minutes slowed down."""
    lines = [f"the last {hours:g} hours"]
    for card in cards:
        seen = samples(ring_path(folder, card), now - hours * 3600, now)
        if not seen:
            lines.append(f"GPU {card.index}: no samples")
            continue
        hottest, power = max(one[1] for one in seen), max(one[3] for one in seen)
        used = [one[5] for one in seen if one[5] != 255]
        slowed = sum(bool(one[7] & ~1) for one in seen)
        busy = f"{sum(used) / len(used):.0f} % used" if used else "use unknown"
        slow = f"slowed down in {slowed} of {len(seen)} minutes"
        lines.append(f"GPU {card.index}: up to {hottest} °C and {power:.0f} W, {busy}, {slow}")
    return "\n".join(lines) + "\n"


def metrics(view: View, found: Mapping[str, Episode]) -> str:
    """Return the textfile for node_exporter's collector."""
    lines: list[str] = []

    def metric(name: str, words: str, values: Sequence[tuple[str, float | None]]) -> None:
        full = f"labrack_gpu_{name}"
        lines.extend([f"# HELP {full} {words}", f"# TYPE {full} gauge"])
        lines.extend(f"{full}{labels} {value:.15g}" for labels, value in values if value is not None)

    def each(read: Any, extra: str = "") -> list[tuple[str, float | None]]:
        return [(f'{{gpu="{card.index}",uuid="{card.uuid}"{extra}}}', read(card)) for card in view.cards]

    metric("temperature_celsius", "Temperature of the card.", each(lambda card: card.temperature))
    metric("slowdown_celsius", "Temperature at which it slows down.", each(lambda card: card.slowdown))
    metric("power_draw_watts", "Power that it takes.", each(lambda card: card.draw))
    metric("power_limit_watts", "Power that it may take.", each(lambda card: card.limit))
    metric("utilization_ratio", "Part of the time in which it computes.", each(_ratio))
    metric(
        "memory_used_bytes", "Memory in use.", each(lambda card: None if card.memory is None else card.memory * 2.0**20)
    )
    throttled = []
    for reason in THROTTLE:
        throttled += each(lambda card, reason=reason: float(reason in card.throttle), f',reason="{reason}"')
    metric("throttled", "Whether this slows it down.", throttled)
    metric("in_use", "Whether somebody has it.", each(lambda card: float(card.index in view.holders)))
    metric("waiting", "Who waits for cards.", [("", float(len(view.waiting)))])
    metric("warnings", "Warnings of heat and power that hold.", [("", float(sum(one.told for one in found.values())))])
    metric("watch_last_run_timestamp_seconds", "When the cards were looked at last.", [("", view.time)])
    return "\n".join(lines) + "\n"


def _ratio(card: Card) -> float | None:
    return None if card.use is None else card.use / 100.0


# --- telling ---------------------------------------------------------------------------------------------------------


def tell(host: str, words: str, settings: Settings, webhook: Path) -> None:
    """Say it in the log, by mail and by webhook. The webhook's address is a secret and in no message."""
    print(f"labrack: {words}")
    if settings.mail:
        mail = EmailMessage()
        mail["To"], mail["Subject"] = settings.mail, f"labrack on {host}: {words.split('. Mend:')[0]}"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(words + "\n")
        program = shutil.which("sendmail") or "/usr/sbin/sendmail"
        try:
            done = subprocess.run(
                [program, "-t", "-i"], input=mail.as_bytes(), capture_output=True, timeout=60, check=False
            )
            if done.returncode:
                print(f"labrack: no mail to {settings.mail}: sendmail ended with {done.returncode}", file=sys.stderr)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"labrack: no mail to {settings.mail}: {type(error).__name__}", file=sys.stderr)
    try:
        address = webhook.read_text(encoding="utf-8").strip()
    except OSError:
        return
    body = json.dumps({"text": f"{host}: {words}", "host": host}).encode()
    try:
        if not address.startswith(("http://", "https://")):
            raise ValueError
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=20):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        print(f"labrack: the webhook was not told: it answers {error.code}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"labrack: the webhook was not told: {type(error).__name__}", file=sys.stderr)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whole, by rename."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=".labrack-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(draft, mode)
        os.rename(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def read_episodes(path: Path) -> dict[str, Episode]:
    """Return the episodes that go on; none for no file or a damaged one."""
    try:
        return {str(key): Episode(**one) for key, one in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def sample(now: float, folder: Path = FOLDER, shown: Path = RUN, settings: Settings | None = None) -> View:
    """Look once, note the sample, tell what is wrong for long enough, and write what everybody reads."""
    settings = settings or Settings.load(SETTINGS)
    view = look(now)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    for card in view.cards:
        note_sample(folder, card, settings, now)
    state = folder / "episodes.json"
    found = episodes(read_episodes(state), wrongs(view.cards, settings), view.cards, settings, now)
    new = [key for key, one in found.items() if due(one, settings)]
    found.update({key: replace(found[key], told=True) for key in new})
    # noted before it is told: an episode is told once, even if telling takes the machine down
    write(state, json.dumps({key: asdict(one) for key, one in found.items()}, indent=1) + "\n")
    view = replace(view, hot=tuple(one.words for one in found.values() if one.told))
    write(folder / "labrack_gpu.prom", metrics(view, found))
    write(shown / "view.json", json.dumps(document(view)) + "\n")
    write(shown / "motd", motd(view) if settings.motd else "")
    for key in new:
        tell(view.host, found[key].words, settings, WEBHOOK)
    return view


def last(now: float, shown: Path = RUN) -> View | None:
    """Return the timer's last view, None where it is not one of now."""
    try:
        view = from_document(json.loads((shown / "view.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return view if 0 <= now - view.time < FRESH else None


def main(arguments: Sequence[str]) -> int:
    """Show, or take a sample; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="labrack-gpus", description="What is free of the GPUs, who has what, who waits."
    )
    parser.add_argument("what", nargs="?", choices=["show", "sample"], default="show", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="as a JSON document")
    parser.add_argument("--history", type=float, metavar="HOURS", help="heat and power of the last hours")
    options = parser.parse_args(arguments)
    now = time.time()
    if options.what == "sample":
        sample(now)
        return 0
    view = last(now) or look(now)
    if options.json:
        print(json.dumps(document(view), indent=1))
    elif options.history:
        print(history(FOLDER, view.cards, options.history, now), end="")
    else:
        print(table(view), end="")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:
        sys.exit(0)
