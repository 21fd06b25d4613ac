# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab's status as a web page in one file: no script, nothing fetched, light and dark, for a phone and a wall.

Numbers for its pictures are worked out here; the template draws them, and escapes every text.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ansible_collections.labrack.infra.plugins.module_utils import quota_plan

from . import status as lab_status
from .status import Card, Circuit, Node, Status

TEMPLATE = "status.html.j2"
#: Upper ends of the steps of temperature, in °C; what is hotter has the last colour.
STEPS = (35, 50, 60, 70, 80)
#: Machines beside each other in the pictures of the network, on a screen and on a phone.
COLUMNS = {"wide": 6, "narrow": 2}
BOX_WIDTH, BOX_HEIGHT, GAP, DROP, MARGIN = 156, 78, 12, 30, 18
#: Squares for cards that a box has room for.
MOST_SQUARES = 10
#: Rows of people and projects, those with the least room left.
MOST_QUOTAS = 12


@dataclass(frozen=True)
class Line:
    """A line of the picture, with its class."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str


@dataclass(frozen=True)
class Box:
    """A machine in the picture, with its upper left corner; ``link`` is the speed in words, or ""."""

    x: float
    y: float
    node: Node
    name: str
    roles: tuple[str, ...]
    link: str
    squares: tuple[tuple[float, Card], ...]
    more: int


@dataclass(frozen=True)
class Topology:
    """The picture of the network."""

    width: int
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    tailnet: bool


@dataclass(frozen=True)
class Bar:
    """A bar with parts from left to right, each with ``x``, ``width``, class and text; all in percent of the whole."""

    label: str
    detail: str
    text: str
    parts: tuple[tuple[float, float, str, str], ...]
    #: Where a limit is marked; None for none.
    mark: float | None = None
    bad: bool = False


def render(status: Status, again: float | None = None) -> str:
    """Return the page; with ``again`` it loads itself anew after so many seconds."""
    return _template().render(
        status=status,
        summary=lab_status.summary(status),
        again=None if again is None else max(1, round(again)),
        topologies={kind: topology(status, columns) for kind, columns in COLUMNS.items()},
        box_size=(BOX_WIDTH, BOX_HEIGHT),
        circuits=[circuit_bar(circuit) for circuit in status.circuits],
        directories=list(directory_bars(status.storage)),
        quotas=list(quota_bars(status.storage))[:MOST_QUOTAS],
        facts=list(lab_status.runs_facts(status)),
        steps=STEPS,
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(heat=heat, moment=lab_status.moment, size=size, duration=duration, watts=watts)
    return environment.get_template(TEMPLATE)


def heat(card: Card) -> str:
    """Return the class of a card's colour: ``t0`` (cool) to ``t5`` (hot), ``tx`` for one that does not tell."""
    if card.temperature_c is None:
        return "tx"
    if card.hot:
        return f"t{len(STEPS)}"
    return f"t{sum(card.temperature_c >= step for step in STEPS)}"


def size(mib: int | None) -> str:
    """Return MiB in words, ``-`` for None."""
    return "-" if mib is None else "0" if not mib else quota_plan.words(mib * 1024)


def watts(number: float | None) -> str:
    """Return watts in words, ``-`` for None."""
    return "-" if number is None else f"{number:.0f} W"


def duration(seconds: int | None) -> str:
    """Return how long something has been there, in its largest unit; ``-`` for None."""
    if seconds is None:
        return "-"
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            return lab_status.count(seconds // length, unit)
    return "now"


def speed(mbit: int | None) -> str:
    """Return a link's speed in words: ``10G``, ``100M``, "" for None."""
    if not mbit:
        return ""
    return f"{mbit / 1000:g}G" if mbit >= 1000 else f"{mbit}M"


def topology(status: Status, columns: int) -> Topology:
    """Lay out the machines in rows under the network's lines: the lab's servers first, then those that only work."""
    servers = [node for node in status.nodes if set(node.roles) - {"worker"}]
    workers = [node for node in status.nodes if node not in servers]
    rows = [group[start : start + columns] for group in (servers, workers) for start in range(0, len(group), columns)]
    width = MARGIN + max(map(len, rows), default=1) * (BOX_WIDTH + GAP) + 10
    online = {machine.name: machine.online for machine in status.tailnet}
    boxes: list[Box] = []
    lines: list[Line] = []
    top, height = 26.0, 26.0
    bus, tail = [], []
    for row in rows:
        bus.append(top)
        ends = []
        below = top + DROP + BOX_HEIGHT
        for place, node in enumerate(row):
            x = MARGIN + place * (BOX_WIDTH + GAP)
            centre = x + BOX_WIDTH / 2
            kind = "none" if node.error else _thickness(node)
            lines.append(Line(centre, top, centre, top + DROP, f"link {kind}"))
            ends.append(centre)
            if node.name in online:
                lines.append(Line(centre, below, centre, below + 12, f"tail {'on' if online[node.name] else 'off'}"))
                tail.append((centre, below + 12))
            boxes.append(_box(node, x, top + DROP))
        lines.append(Line(6.0, top, ends[-1], top, "link bus"))
        joined = [x for x, y in tail if y == below + 12]
        if joined:
            lines.append(Line(min(joined), below + 12, width - 6.0, below + 12, "tail on"))
        top, height = below + (34 if joined else 22), below + (16 if joined else 4)
    if len(bus) > 1:
        lines.append(Line(6.0, bus[0], 6.0, bus[-1], "link bus"))
    if tail:
        lines.append(Line(width - 6.0, 20, width - 6.0, tail[-1][1], "tail on"))
    return Topology(width, height, tuple(boxes), tuple(lines), bool(tail))


def _thickness(node: Node) -> str:
    mbit = node.link.speed_mbit if node.link else None
    return "unknown" if not mbit else "slow" if mbit < 1000 else "fast" if mbit >= 10000 else "usual"


def _box(node: Node, x: float, y: float) -> Box:
    squares = tuple((x + 10 + 13 * place, card) for place, card in enumerate(node.cards[:MOST_SQUARES]))
    link = speed(node.link.speed_mbit if node.link else None)
    more = len(node.cards) - len(squares)
    return Box(x, y, node, _short(node.name, 14), _lines(", ".join(node.roles)), link, squares, more)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _lines(text: str) -> tuple[str, ...]:
    found = textwrap.wrap(text, 24)
    return (*found[:1], _short(" ".join(found[1:]), 24)) if found[1:] else tuple(found)


def circuit_bar(circuit: Circuit) -> Bar:
    """Return a circuit as a bar: what each machine draws now, what they all may draw, and what is safe."""
    whole = max(circuit.breaker_w, circuit.most_w, circuit.draw_w, 1.0)
    kind = "over" if circuit.most_w > circuit.usable_w else "most"
    parts = [(0.0, _part(circuit.most_w, whole), kind, f"at most {circuit.most_w:.0f} W")]
    x = 0.0
    for number, load in enumerate(circuit.loads):
        if load.draw_w is not None:
            width = _part(load.draw_w, whole)
            parts.append((x, width, f"draw{number % 2}", f"{load.node}: {load.draw_w:.0f} W"))
            x += width
    silent = [load.node for load in circuit.loads if load.draw_w is None]
    words = f"{circuit.draw_w:.0f} W now, at most {circuit.most_w:.0f} W; {circuit.usable_w:.0f} W are safe"
    words += f"; without {', '.join(silent)}" if silent else ""
    bad = circuit.most_w > circuit.usable_w
    nodes = ", ".join(load.node for load in circuit.loads)
    return Bar(circuit.name, nodes, words, tuple(parts), _part(circuit.usable_w, whole), bad)


def directory_bars(reports: Iterable[Mapping[str, Any]]) -> Iterable[Bar]:
    """Yield each directory as a bar of what is used."""
    for report in reports:
        for row in report["directories"]:
            if not row["mounted"]:
                yield Bar(row["path"], report["host"], f"{row['filesystem']} is not mounted", (), bad=True)
                continue
            used = row["size"] - row["free"]
            full = lab_status.percent(used, row["size"])
            bad = full >= lab_status.NEARLY_FULL
            words = f"{full} % of {quota_plan.words(row['size'])} used, {quota_plan.words(row['free'])} free"
            part = (0.0, _part(used, row["size"]), "over" if bad else "used", words)
            yield Bar(row["path"], report["host"], words, (part,), bad=bad)


def quota_bars(reports: Iterable[Mapping[str, Any]]) -> Iterable[Bar]:
    """Return people and projects that have a limit as bars, those with the least room left first."""
    rows = [(report["host"], row) for report in reports for row in [*report["users"], *report["projects"]]]
    limited = [(host, row) for host, row in rows if row["used"] is not None and (row["hard"] or row["soft"])]
    for host, row in sorted(limited, key=lambda one: -one[1]["used"] / (one[1]["hard"] or one[1]["soft"])):
        whole = row["hard"] or row["soft"]
        over = row["over_since"] is not None or row["used"] >= whole
        used = quota_plan.words(row["used"]) if row["used"] else "0"
        words = f"{used} of {quota_plan.words(whole)}"
        part = (0.0, _part(row["used"], whole), "over" if over else "used", words)
        where = ", ".join(row["directories"]) if "directories" in row else host
        mark = _part(row["soft"], whole) if row["soft"] and row["soft"] < whole else None
        yield Bar(row.get("name") or row["path"], where, words, (part,), mark, over)


def _part(part: float, whole: float) -> float:
    return round(min(100.0, max(0.0, 100 * part / whole)), 2) if whole else 0.0
