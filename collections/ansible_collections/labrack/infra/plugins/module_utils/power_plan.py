# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the lab's machines draw against the circuits that feed them, and the heat against what cools the room. Pure.

A machine is counted as if all of it worked at once: every card at its power limit, the processors at theirs, and a
base for the rest. A circuit may carry 80 % of its breaker for longer than three hours (NEC 210.20(A)), and training
runs longer than that. All of it becomes heat: 1 W is 3.412 BTU/h, a ton of cooling takes 12 000 BTU/h away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Part of a breaker's rating that it may carry for hours.
CONTINUOUS = 0.8
BTU_PER_WATT = 3.412142
BTU_PER_TON = 12000.0
WATTS_PER_TON = BTU_PER_TON / BTU_PER_WATT
#: What a machine draws beside its cards and processors: board, memory, disks, fans, and what its power supply loses.
BASE_WATTS = 300
#: A card whose limit nobody knows: eight of these, processors and base are the 3 kW of a common 8-GPU machine.
CARD_WATTS = 300.0
#: Processors whose limit nobody knows, by cores: 45 W and 6 W for each core, 350 W at most for one socket.
SOCKET_WATTS, CORE_WATTS, SOCKET_MOST = 45.0, 6.0, 350.0
#: Two sockets of this, where not even the cores are known.
CPU_WATTS = 200.0
#: No card is asked to take less than this part of what it takes now; most refuse less than half of their default.
LEAST_LIMIT = 0.5
#: Steps of the power limits that are suggested, in watts.
STEP = 5
#: From so many cards on, a machine is a "high-end GPU node", of which two need a ton of cooling.
HIGH_END_CARDS = 4
NODES_PER_TON = 2


@dataclass(frozen=True)
class Load:
    """What one machine draws in watts at most; ``estimated`` names the parts that were not read from it.

    ``cards`` are the power limits of its cards, each with the type that an inventory names it by, "" if unknown.
    """

    name: str
    cards: tuple[tuple[str, float], ...] = ()
    cpu: float = CPU_WATTS
    base: float = BASE_WATTS
    estimated: tuple[str, ...] = ()

    @property
    def card_watts(self) -> float:
        """Return what its cards draw."""
        return sum(watts for _kind, watts in self.cards)

    @property
    def rest(self) -> float:
        """Return what it draws beside its cards."""
        return self.cpu + self.base

    @property
    def watts(self) -> float:
        """Return what all of it draws."""
        return self.card_watts + self.rest


@dataclass(frozen=True)
class Circuit:
    """A circuit of the inventory's ``lab_circuits``; a machine on several shares its load among them."""

    name: str
    volts: float
    amps: float
    nodes: tuple[str, ...] = ()

    @property
    def capacity(self) -> float:
        """Return the watts at which its breaker trips."""
        return self.volts * self.amps

    @property
    def usable(self) -> float:
        """Return the watts that it may carry for hours."""
        return self.capacity * CONTINUOUS


@dataclass(frozen=True)
class Move:
    """A machine to plug in elsewhere."""

    node: str
    source: str
    target: str


@dataclass(frozen=True)
class Feed:
    """A circuit with its load in watts, and what would bring that down to what it may carry, as far as anything does.

    ``moves`` are enough by themselves, and so are ``limits``: the power limit of a card in watts, by machine and type.
    """

    circuit: Circuit
    watts: float
    moves: tuple[Move, ...] = ()
    limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Return whether its breaker would trip."""
        return self.watts > self.circuit.capacity

    @property
    def tight(self) -> bool:
        """Return whether it carries more than it may for hours."""
        return self.watts > self.circuit.usable


@dataclass(frozen=True)
class Budget:
    """Power and heat of a lab. ``loose``: machines on no circuit. ``cooling`` is what is declared, in watts, or None.

    ``by_guide`` is what the rule of thumb wants, a ton for two high-end GPU machines, in watts.
    """

    loads: tuple[Load, ...]
    feeds: tuple[Feed, ...] = ()
    loose: tuple[str, ...] = ()
    cooling: float | None = None
    by_guide: float = 0.0

    @property
    def watts(self) -> float:
        """Return what all machines draw, which is the heat that they give."""
        return sum(load.watts for load in self.loads)

    @property
    def cooling_wanted(self) -> float:
        """Return the watts of cooling that the lab needs: all of its heat, and no less than the rule of thumb."""
        return max(self.watts, self.by_guide)


def btu_per_hour(watts: float) -> float:
    """Return heat in BTU/h."""
    return watts * BTU_PER_WATT


def tons(watts: float) -> float:
    """Return heat in tons of cooling."""
    return watts / WATTS_PER_TON


def heat_words(watts: float) -> str:
    """Return heat as a reader knows it, "3.0 kW = 10,200 BTU/h = 0.9 tons"."""
    return f"{kilowatts(watts)} = {round(btu_per_hour(watts), -2):,.0f} BTU/h = {tons(watts):.1f} tons of cooling"


def kilowatts(watts: float) -> str:
    """Return watts in words."""
    return f"{watts / 1000:.1f} kW" if watts >= 1000 else f"{watts:.0f} W"


def circuits(entries: Iterable[Mapping[str, Any]]) -> tuple[Circuit, ...]:
    """Return the circuits of the checked variable ``lab_circuits``."""
    return tuple(
        Circuit(str(one["name"]), float(one["volts"]), float(one["amps"]), tuple(dict.fromkeys(one.get("nodes") or ())))
        for one in entries
    )


def load(name: str, variables: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Load:
    """Return what a machine draws by its facts (``node_facts``, with ``cpu_watts`` where known), else by the inventory.

    From the inventory alone the cards are those of ``slurm_gpu_count`` at the limit of ``nvidia_driver_power_limits``.
    A limit that is wanted and lower than the one that a card has now counts as made.
    """
    limits = variables.get("nvidia_driver_power_limits") or {}
    base = variables.get("lab_base_watts")
    estimated = []
    cards: list[tuple[str, float]] = []
    if facts is None:
        # one limit is that of the cards, whatever they are
        wanted = _limit(limits, next(iter(limits), "")) if len(limits) == 1 else _limit(limits, "")
        cards = [("", float(wanted or CARD_WATTS))] * int(variables.get("slurm_gpu_count") or 0)
        estimated += ["cards", "processors"]
        cpu = CPU_WATTS
    else:
        for card in facts.get("gpus") or ():
            kind = str(card.get("slurm_type") or "")
            now = card.get("power_limit_w") or card.get("power_default_w")
            if not now:
                estimated.append("cards")
            wanted = _limit(limits, kind)
            cards.append((kind, min(float(now or wanted or CARD_WATTS), float(wanted or math.inf))))
        cpu = float(facts.get("cpu_watts") or 0)
        if not cpu:
            estimated.append("processors")
            cpu = cpu_watts(facts.get("cpu") or {})
    return Load(
        name,
        tuple(cards),
        cpu,
        float(BASE_WATTS if base is None else base),
        tuple(dict.fromkeys(estimated)),
    )


def _limit(limits: Mapping[str, Any], kind: str) -> int | None:
    found = limits.get(kind, limits.get("all"))
    return found if isinstance(found, int) and found > 0 else None


def cpu_watts(cpu: Mapping[str, Any]) -> float:
    """Return what processors draw at most, by their sockets and cores."""
    sockets, cores = int(cpu.get("sockets") or 0), int(cpu.get("cores_per_socket") or 0)
    return sockets * min(SOCKET_MOST, SOCKET_WATTS + CORE_WATTS * cores) if sockets and cores else CPU_WATTS


def budget(loads: Sequence[Load], feeding: Sequence[Circuit] = (), cooling: float | None = None) -> Budget:
    """Return power against circuits and heat against cooling; ``cooling`` in watts, None where it isn't declared."""
    by_name = {one.name: one for one in loads}
    carried = _carried(by_name, feeding)
    feeds = [
        Feed(
            one,
            carried[one.name],
            moves(by_name, feeding, one.name),
            limits_to_fit(by_name, feeding, one.name),
        )
        if carried[one.name] > one.usable
        else Feed(one, carried[one.name])
        for one in feeding
    ]
    fed = {name for one in feeding for name in one.nodes}
    high_end = sum(len(one.cards) >= HIGH_END_CARDS for one in loads)
    return Budget(
        tuple(loads),
        tuple(feeds),
        tuple(one.name for one in loads if one.name not in fed) if feeding else (),
        cooling,
        high_end / NODES_PER_TON * WATTS_PER_TON,
    )


def shares(feeding: Iterable[Circuit]) -> dict[str, int]:
    """Return on how many circuits each machine is."""
    found: dict[str, int] = {}
    for circuit in feeding:
        for name in circuit.nodes:
            found[name] = found.get(name, 0) + 1
    return found


def _carried(loads: Mapping[str, Load], feeding: Sequence[Circuit]) -> dict[str, float]:
    parts = shares(feeding)
    return {one.name: sum(loads[name].watts / parts[name] for name in one.nodes if name in loads) for one in feeding}


def moves(loads: Mapping[str, Load], feeding: Sequence[Circuit], source: str) -> tuple[Move, ...]:
    """Return machines to take from a circuit so that it carries what it may, and their new circuits do too.

    As few as possible: the smallest machine whose going is enough, else the biggest that fits elsewhere, and again.
    None at all where that is not enough. A machine that is on several circuits stays.
    """
    carried = _carried(loads, feeding)
    room = {one.name: one.usable - carried[one.name] for one in feeding if one.name != source}
    circuit = next(one for one in feeding if one.name == source)
    parts = shares(feeding)
    movable = sorted((loads[name] for name in circuit.nodes if name in loads and parts[name] == 1), key=_weight)
    excess = carried[source] - circuit.usable
    found = []
    while excess > 0:
        fitting = [one for one in movable if any(one.watts <= left for left in room.values())]
        if not fitting:
            return ()
        chosen = next((one for one in fitting if one.watts >= excess), fitting[-1])
        # the fullest circuit that has room for it keeps the others free for bigger ones
        target = min((name for name in room if chosen.watts <= room[name]), key=lambda name: (room[name], name))
        room[target] -= chosen.watts
        excess -= chosen.watts
        movable.remove(chosen)
        found.append(Move(chosen.name, source, target))
    return tuple(found)


def _weight(one: Load) -> tuple[float, str]:
    return one.watts, one.name


def limits_to_fit(loads: Mapping[str, Load], feeding: Sequence[Circuit], name: str) -> dict[str, dict[str, int]]:
    """Return power limits in watts for the cards on a circuit, by machine and type, with which it carries what it may.

    All cards give the same part of theirs. Empty where the cards would get less than :data:`LEAST_LIMIT` of what they
    have, or where there are none.
    """
    parts = shares(feeding)
    circuit = next(one for one in feeding if one.name == name)
    here = [loads[node] for node in circuit.nodes if node in loads]
    rest = sum(one.rest / parts[one.name] for one in here)
    cards = sum(one.card_watts / parts[one.name] for one in here)
    scale = (circuit.usable - rest) / cards if cards else 0.0
    if not LEAST_LIMIT <= scale < 1.0:
        return {}
    found: dict[str, dict[str, int]] = {}
    for one in here:
        for kind, watts in one.cards:
            limit = int(watts * scale) // STEP * STEP
            mine = found.setdefault(one.name, {})
            mine[kind] = min(mine.get(kind, limit), limit)
    return found
