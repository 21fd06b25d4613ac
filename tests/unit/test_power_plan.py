# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Power against circuits and heat against cooling: the guide's figures, and what holds for every lab."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import power_plan
from ansible_collections.labrack.infra.plugins.module_utils.power_plan import Budget, Circuit, Load

watts = st.integers(30, 1000).map(float)
names = st.sampled_from([f"node{number}" for number in range(8)])


@st.composite
def labs(draw: st.DrawFn) -> tuple[list[Load], list[Circuit]]:
    nodes = draw(st.lists(names, min_size=1, max_size=8, unique=True))
    loads = [
        Load(
            name,
            tuple(
                (draw(st.sampled_from(["rtx_4090", "a100", ""])), draw(watts)) for _ in range(draw(st.integers(0, 8)))
            ),
            draw(st.integers(0, 800).map(float)),
            draw(st.integers(0, 600).map(float)),
        )
        for name in nodes
    ]
    circuits = [
        Circuit(
            f"c{number}",
            draw(st.sampled_from([110.0, 120.0, 208.0, 230.0, 240.0])),
            draw(st.sampled_from([10.0, 16.0, 20.0, 32.0])),
            tuple(draw(st.lists(st.sampled_from([*nodes, "somebody-else"]), max_size=8, unique=True))),
        )
        for number in range(draw(st.integers(0, 4)))
    ]
    return loads, circuits


def eight(name: str) -> Load:
    return power_plan.load(name, {"slurm_gpu_count": 8})


def test_a_machine_with_eight_cards_pulls_the_guides_three_kilowatts() -> None:
    assert eight("node1").watts == pytest.approx(3000, rel=0.05)


def test_five_of_them_melt_an_office_circuit() -> None:
    loads = [eight(f"node{number}") for number in range(1, 6)]
    office = Circuit("office", 120, 20, tuple(one.name for one in loads))
    (feed,) = power_plan.budget(loads, [office]).feeds
    assert feed.over and not feed.moves and not feed.limits
    # nor does one of them fit, even for a moment
    (feed,) = power_plan.budget(loads[:1], [replace(office, nodes=("node1",))]).feeds
    assert feed.over


def test_heat_in_the_units_of_who_sells_cooling() -> None:
    assert power_plan.btu_per_hour(1000) == pytest.approx(3412, abs=1)
    assert power_plan.tons(3517) == pytest.approx(1, abs=0.001)
    assert power_plan.heat_words(3000) == "3.0 kW = 10,200 BTU/h = 0.9 tons of cooling"


def test_two_high_end_machines_want_a_ton() -> None:
    found = power_plan.budget([eight("node1"), eight("node2"), Load("head")])
    assert power_plan.tons(found.by_guide) == pytest.approx(1)
    # their heat is more than that
    assert found.cooling_wanted == found.watts > found.by_guide


def test_a_circuit_may_carry_four_fifths_for_hours() -> None:
    circuit = Circuit("a", 230, 16, ("node1",))
    assert circuit.capacity == 3680 and circuit.usable == pytest.approx(2944)
    tight = power_plan.budget([Load("node1", (("a100", 2600.0),), 200, 200)], [circuit]).feeds[0]
    assert tight.tight and not tight.over


def test_the_smallest_machine_that_is_enough_moves_to_the_fullest_circuit_with_room() -> None:
    loads = [Load("big", (), 2000, 0), Load("small", (), 700, 0), Load("tiny", (), 300, 0), Load("other", (), 900, 0)]
    circuits = [
        Circuit("a", 230, 16, ("big", "small", "tiny")),
        Circuit("b", 230, 16, ("other",)),
        Circuit("c", 230, 16),
    ]
    (feed, _b, _c) = power_plan.budget(loads, circuits).feeds
    assert feed.moves == (power_plan.Move("tiny", "a", "b"),)


def test_a_power_limit_that_fits() -> None:
    loads = [Load("node1", (("rtx_4090", 450.0),) * 4, 300, 300)]
    (feed,) = power_plan.budget(loads, [Circuit("a", 120, 20, ("node1",))]).feeds
    # 1920 W for hours, of which 600 W are not the cards'
    assert feed.limits == {"node1": {"rtx_4090": 330}} and not feed.moves


def test_cards_are_not_strangled() -> None:
    loads = [Load("node1", (("rtx_4090", 450.0),) * 8, 300, 300)]
    (feed,) = power_plan.budget(loads, [Circuit("a", 120, 20, ("node1",))]).feeds
    assert feed.over and feed.limits == {}


def test_a_machine_by_its_facts() -> None:
    facts = {
        "gpus": [
            {"slurm_type": "rtx_4090", "power_limit_w": 450.0},
            {"slurm_type": "rtx_4090", "power_limit_w": None, "power_default_w": None},
        ],
        "cpu": {"sockets": 2, "cores_per_socket": 16},
        "cpu_watts": 250.0,
    }
    found = power_plan.load("node1", {"lab_base_watts": 0}, facts)
    assert found == Load("node1", (("rtx_4090", 450.0), ("rtx_4090", 300.0)), 250.0, 0.0, ("cards",))
    limited = power_plan.load("node1", {"nvidia_driver_power_limits": {"rtx_4090": 350}}, {**facts, "cpu_watts": None})
    assert limited.cards == (("rtx_4090", 350.0),) * 2 and limited.cpu == 2 * (45 + 6 * 16)
    assert limited.estimated == ("cards", "processors") and limited.base == power_plan.BASE_WATTS


def test_a_machine_by_the_inventory() -> None:
    assert power_plan.load("a", {"slurm_gpu_count": 2}).cards == (("", 300.0),) * 2
    assert power_plan.load("a", {"slurm_gpu_count": 2, "nvidia_driver_power_limits": {"l40": 200}}).card_watts == 400
    assert power_plan.load("a", {}).cards == () and "cards" in power_plan.load("a", {}).estimated


def budget_of(lab: tuple[list[Load], list[Circuit]]) -> Budget:
    return power_plan.budget(*lab)


@given(labs())
def test_no_watt_is_lost_or_made(lab: tuple[list[Load], list[Circuit]]) -> None:
    loads, circuits = lab
    found = budget_of(lab)
    loose = sum(one.watts for one in loads if one.name in found.loose)
    if circuits:
        assert sum(feed.watts for feed in found.feeds) + loose == pytest.approx(found.watts)
    assert found.watts == pytest.approx(sum(one.watts for one in loads))
    assert power_plan.btu_per_hour(found.watts) == pytest.approx(power_plan.tons(found.watts) * 12000)


@given(labs())
def test_moves_are_enough_and_overload_no_other(lab: tuple[list[Load], list[Circuit]]) -> None:
    loads, circuits = lab
    before = {feed.circuit.name: feed for feed in budget_of(lab).feeds}
    for name, feed in before.items():
        assert feed.tight or not (feed.moves or feed.limits)
        if not feed.moves:
            continue
        nodes = {one.name: list(one.nodes) for one in circuits}
        for move in feed.moves:
            assert move.source == name
            nodes[name].remove(move.node)
            nodes[move.target].append(move.node)
        after = power_plan.budget(loads, [replace(one, nodes=tuple(nodes[one.name])) for one in circuits]).feeds
        for one in after:
            # who was over before stays so, unless it is the one that is helped
            assert one.watts <= one.circuit.usable + 1e-6 or (
                one.circuit.name != name and before[one.circuit.name].tight
            )


@given(labs())
def test_limits_are_enough(lab: tuple[list[Load], list[Circuit]]) -> None:
    loads, circuits = lab
    for feed in budget_of(lab).feeds:
        if not feed.limits:
            continue
        limited = []
        for one in loads:
            limits = feed.limits.get(one.name, {})
            cards = tuple((kind, min(now, float(limits.get(kind, now)))) for kind, now in one.cards)
            assert all(0 < new <= old for (_, new), (_, old) in zip(cards, one.cards, strict=True))
            limited.append(replace(one, cards=cards))
        after = next(one for one in power_plan.budget(limited, circuits).feeds if one.circuit == feed.circuit)
        assert after.watts <= after.circuit.usable + 1e-6


@given(st.lists(st.lists(watts, min_size=1, max_size=8), min_size=1, max_size=4), st.floats(0.4, 1.1))
def test_limits_fit_whatever_a_circuit_has_left(machines: list[list[float]], part: float) -> None:
    loads = [Load(f"n{number}", tuple(("x", one) for one in cards), 100, 200) for number, cards in enumerate(machines)]
    rest, cards = (sum(getattr(one, name) for one in loads) for name in ("rest", "card_watts"))
    # a circuit that has for the cards this part of what they want
    amps = (rest + part * cards) / power_plan.CONTINUOUS / 230
    (feed,) = power_plan.budget(loads, [Circuit("c", 230, amps, tuple(one.name for one in loads))]).feeds
    if not power_plan.LEAST_LIMIT <= part < 1:
        assert not feed.limits or part == pytest.approx(1) or part == pytest.approx(power_plan.LEAST_LIMIT)
        return
    if feed.limits:
        least = sum(feed.limits[one.name]["x"] * len(one.cards) + one.rest for one in loads)
        assert least <= feed.circuit.usable + 1e-6
    assert feed.limits or part == pytest.approx(power_plan.LEAST_LIMIT)


@given(labs(), watts)
def test_more_load_never_makes_a_circuit_lighter(lab: tuple[list[Load], list[Circuit]], more: float) -> None:
    loads, circuits = lab
    heavier = [replace(one, cpu=one.cpu + more) for one in loads]
    before, after = power_plan.budget(loads, circuits), power_plan.budget(heavier, circuits)
    assert all(new.watts >= old.watts for new, old in zip(after.feeds, before.feeds, strict=True))
    assert after.cooling_wanted >= before.cooling_wanted
