"""The way to the wanted driver: what is planned on an empty, a foreign, a drifted and a converged node, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import driver_plan, managed
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Source, SourceState, render_source
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import Choice, is_family
from ansible_collections.labrack.infra.plugins.module_utils.driver_plan import (
    Card,
    Observed,
    Package,
    Record,
    Wanted,
    plan,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState

NAMES = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms")
OPEN_580 = Choice("nvidia", "580")
RUNS = ServiceState(installed=True, active=True, enabled=True)
CARD = Card("GPU-1", "rtx_a6000", 300.0)


def wanted(choice: Choice = OPEN_580, **more: object) -> Wanted:
    files = {driver_plan.UNATTENDED: driver_plan.unattended_upgrades()}
    pins = driver_plan.preferences(choice)
    if pins:
        files[driver_plan.PREFERENCES] = pins
    base = Wanted(choice=choice, names=() if choice.source == "keep" else NAMES, files=files)
    return replace(base, **more)  # type: ignore[arg-type]


def packages(version: str, held: bool = True, state: str = "installed") -> dict[str, Package]:
    names = (*NAMES, "libnvidia-ml1", "nvidia-persistenced")
    return {name: Package(f"{version}-1", state, held) for name in names}


def converged(goal: Wanted, version: str = "580.178.04", **more: object) -> Observed:
    base = Observed(
        packages=packages(version),
        files={**goal.files, driver_plan.MODPROBE: FileState(driver_plan.MODPROBE_TEXT), driver_plan.POWER_UNIT: None},
        services={driver_plan.PERSISTENCE: RUNS},
        loaded=version,
        on_disk=version,
        library=version,
        cards=(CARD,),
    )
    return replace(base, **more)  # type: ignore[arg-type]


def steps(changes: list[Change]) -> list[str]:
    return [change.step[0] for change in changes]


def test_nothing_to_do_on_a_converged_node() -> None:
    assert plan(converged(wanted()), wanted()) == []


def test_empty_node_gets_all_of_it_without_a_restart_of_the_machine() -> None:
    changes = plan(Observed(), wanted())
    assert steps(changes) == ["write", "write", "driver", "write", "initramfs", "load", "enable", "restart"]
    assert max(change.disruption for change in changes) == "restart"
    (driver,) = [change for change in changes if change.step == ("driver",)]
    assert driver.summary == "installed: branch 580, open modules, from NVIDIA's repository"


def test_where_nouveau_runs_the_driver_comes_and_the_restart_waits() -> None:
    changes = plan(Observed(nouveau=True), wanted())
    assert ("reboot",) in [change.step for change in changes if change.disruption == "reboot"]
    assert "load" not in steps(changes)


@pytest.mark.parametrize("choice", [Choice("nvidia", "590"), Choice("nvidia", "580", "580.105.08")])
def test_another_driver_than_the_loaded_one_is_for_an_empty_node(choice: Choice) -> None:
    changes = plan(converged(wanted(choice)), wanted(choice))
    assert [change.step for change in changes] == [("driver",), ("reboot",)]
    assert {change.disruption for change in changes} == {"reboot"}


def test_exact_version_that_is_there_is_enough() -> None:
    choice = Choice("nvidia", "580", "580.178.04")
    assert plan(converged(wanted(choice)), wanted(choice)) == []


def test_driver_that_somebody_upgraded_waits_for_a_restart() -> None:
    changes = plan(converged(wanted(), loaded="580.105.08"), wanted())
    assert [(change.step, change.disruption) for change in changes] == [(("reboot",), "reboot")]
    assert changes[0].summary.startswith("580.105.08 runs, 580.178.04 is installed")


def test_hold_that_somebody_lifted_is_set_again() -> None:
    (change,) = plan(converged(wanted(), packages=packages("580.178.04", held=False)), wanted())
    assert change.step == ("hold", *sorted(packages("1")))


@pytest.mark.parametrize("held", [True, False])
def test_drift_is_told_of_holds_and_held_versions(held: bool) -> None:
    with managed.collected() as noted:
        plan(converged(wanted(), packages=packages("580.178.04", held)), wanted())
    left = {"held": True, "version": "580.178.04-1"} if held else {}
    assert {name: noted["package", name] for name in packages("1")} == dict.fromkeys(packages("1"), left)
    assert noted["unit", f"{driver_plan.PERSISTENCE}.service"] == {"active": True, "enabled": True}
    assert ("file", driver_plan.POWER_UNIT) not in noted


def test_with_signed_modules_the_kernels_metapackages_are_held_too() -> None:
    there = {
        **packages("580.178.04", held=False),
        "linux-modules-nvidia-580-server-open-generic": Package("6.8.0-45.45"),
        "linux-image-generic": Package("6.8.0-45.45"),
        "linux-generic": Package("6.8.0-45.45"),
    }
    held = driver_plan.to_hold(Observed(packages=there), wanted())
    assert {"linux-image-generic", "linux-generic"} <= set(held)
    assert not {"linux-image-generic"} & set(driver_plan.to_hold(Observed(packages=packages("1")), wanted()))


def test_half_configured_packages_are_repaired_first() -> None:
    changes = plan(converged(wanted(), packages=packages("580.178.04", state="half-configured")), wanted())
    assert steps(changes)[0] == "repair"


def test_kept_driver_is_held_and_nothing_else() -> None:
    goal = wanted(Choice("keep", "550", "550.163.01"))
    there = converged(goal, "550.163.01", packages=packages("550.163.01", held=False))
    assert steps(plan(there, goal)) == ["hold"]


def test_fabric_manager_of_another_version_counts_as_missing() -> None:
    goal = wanted(replace(OPEN_580, fabric_manager=True))
    assert "driver" in steps(plan(converged(goal), goal))
    other = {**packages("580.178.04"), "nvidia-fabricmanager": Package("580.105.08-1")}
    assert "driver" in steps(plan(converged(goal, packages=other), goal))
    same = {**packages("580.178.04"), "nvidia-fabricmanager": Package("580.178.04-1", held=True)}
    assert plan(converged(goal, packages=same), goal) == []


def test_source_is_planned_before_the_packages() -> None:
    source = Source("labrack-nvidia", "http://mirror/debian13/x86_64/", "http://mirror/key", ("A" * 40,))
    changes = plan(Observed(), wanted(source=source))
    assert [change.step for change in changes[:2]] == [("key", source.keyring), ("write", source.path)]
    state = SourceState(source=FileState(render_source(source)), key=FileState("damaged"))
    assert plan(converged(wanted(), source=state), wanted(source=source))[0].step == ("key", source.keyring)


def test_machine_without_cards_is_left_alone() -> None:
    goal = Wanted(has_gpus=False, persistence=False)
    assert plan(Observed(), goal) == []


def test_rollback_goes_to_the_packages_of_the_driver_before() -> None:
    goal = wanted(Choice("nvidia", "570", "570.195.03"), back=dict.fromkeys(NAMES, "570.195.03-1"))
    changes = plan(converged(goal), goal)
    assert [change.step for change in changes] == [("rollback",), ("reboot",)]
    assert changes[0].summary == "580.178.04 → 570.195.03, the one before"
    assert plan(converged(goal, "570.195.03"), goal) == []


def test_power_limits_are_set_now_and_at_each_boot() -> None:
    goal = wanted(power={"all": 300, "rtx_a6000": 250})
    changes = plan(converged(goal), goal)
    assert steps(changes) == ["write", "enable", "restart"]
    assert changes[-1].summary == "300 → 250 W"
    unit = driver_plan.power_unit([("GPU-1", 250)])
    assert "ExecStart=/usr/bin/nvidia-smi -i GPU-1 -pl 250\n" in unit.text
    files = {**converged(goal).files, driver_plan.POWER_UNIT: unit}
    services = {driver_plan.PERSISTENCE: RUNS, driver_plan.POWER: RUNS}
    set_now = converged(goal, files=files, services=services, cards=(replace(CARD, limit_w=250.0),))
    assert plan(set_now, goal) == []
    assert steps(plan(replace(set_now, cards=(CARD,)), goal)) == ["restart"]
    assert steps(plan(set_now, wanted())) == ["disable", "remove"]


def test_undo_takes_back_what_was_brought_held_and_written() -> None:
    goal = wanted()
    record = Record(brought=NAMES, held=NAMES)
    changes = plan(converged(goal, record=record), Wanted(present=False))
    assert steps(changes) == ["unhold", "purge", "remove", "remove", "remove", "initramfs"]
    assert {change.disruption for change in changes} == {"none", "restart"}
    busy = plan(converged(goal, record=record, in_use=True), Wanted(present=False))
    assert [change.disruption for change in busy if change.step[0] == "purge"] == ["drain"]
    foreign = plan(converged(goal, files={}), Wanted(present=False))
    assert foreign == []


def test_pins_keep_every_package_of_the_driver_in_its_branch() -> None:
    pins = driver_plan.preferences(OPEN_580)
    assert pins
    assert "Pin: version /^([0-9]+:)?580[.+~-]/\n" in pins.text
    assert "Pin-Priority: 1001\n" in pins.text
    assert driver_plan.preferences(Choice("keep")) is None


def test_record_reads_back() -> None:
    record = Record(("b", "a"), ("c",), {"a": "1"}, {"a": "0"})
    again = Record.read(record.file().text)
    assert again == replace(record, brought=("a", "b"))
    with pytest.raises(ValueError):
        Record.read("{")


# A small machine that does what the steps say, so that a plan can be held against what comes of it.

versions = st.sampled_from(["570.195.03", "580.105.08", "580.178.04", "590.48.01"])
choices = st.one_of(
    st.builds(Choice, st.just("nvidia"), st.sampled_from(["570", "580", "590"])),
    versions.map(lambda version: Choice("nvidia", version[:3], version)),
    st.just(Choice("keep")),
)
nodes = st.builds(
    Observed,
    packages=st.one_of(st.just({}), st.builds(packages, versions, st.booleans())),
    files=st.fixed_dictionaries({driver_plan.MODPROBE: st.sampled_from([None, FileState("other\n")])}),
    services=st.fixed_dictionaries({driver_plan.PERSISTENCE: st.builds(ServiceState, st.just(True), st.booleans())}),
    loaded=st.one_of(st.none(), versions),
    on_disk=st.one_of(st.none(), versions),
    library=st.one_of(st.none(), versions),
    nouveau=st.booleans(),
    cards=st.just((CARD,)),
)
goals = st.builds(
    lambda choice, hold, limit: wanted(choice, hold=hold, power={"all": limit} if limit else {}),
    choices,
    st.booleans(),
    st.sampled_from([0, 250]),
)


def make(seen: Observed, goal: Wanted, changes: list[Change]) -> Observed:
    there, files, services = dict(seen.packages), dict(seen.files), dict(seen.services)
    loaded, on_disk, library, cards, nouveau = seen.loaded, seen.on_disk, seen.library, seen.cards, seen.nouveau
    wanted_files = {
        **goal.files,
        driver_plan.MODPROBE: FileState(driver_plan.MODPROBE_TEXT),
        driver_plan.POWER_UNIT: driver_plan.power_unit(driver_plan.limits_of(cards, goal.power)),
    }
    newest = {"570": "570.195.03", "580": "580.178.04", "590": "590.48.01"}
    for change in changes:
        verb, *words = change.step
        if verb == "write":
            files[words[0]] = wanted_files[words[0]]
        elif verb == "remove":
            files[words[0]] = None
        elif verb == "driver":
            version = goal.choice.version or newest[goal.choice.branch]
            there = packages(version, held=goal.hold)
            on_disk = library = version
        elif verb == "hold":
            there = {name: replace(one, held=True) if name in words else one for name, one in there.items()}
        elif verb == "load":
            loaded = on_disk
        elif verb == "reboot":
            loaded, nouveau = on_disk or library, False
            on_disk = library = loaded
        elif verb in ("restart", "enable"):
            services[words[0]] = RUNS
            if words[0] == driver_plan.POWER:
                cards = tuple(replace(card, limit_w=250.0) for card in cards)
    return replace(
        seen,
        packages=there,
        files=files,
        services=services,
        loaded=loaded,
        on_disk=on_disk,
        library=library,
        nouveau=nouveau,
        cards=cards,
    )


@given(nodes, goals)
def test_the_plan_leads_to_where_nothing_is_left_to_do(seen: Observed, goal: Wanted) -> None:
    after = make(seen, goal, plan(seen, goal))
    after = make(after, goal, plan(after, goal))
    assert plan(after, goal) == []


@given(nodes, goals)
def test_without_a_restart_a_loaded_driver_is_never_touched(seen: Observed, goal: Wanted) -> None:
    harmless = [change for change in plan(seen, goal) if change.disruption != "reboot"]
    if seen.loaded:
        assert not {"driver", "rollback", "load", "purge"} & set(steps(harmless))


@given(nodes, goals)
def test_packages_of_others_are_never_held(seen: Observed, goal: Wanted) -> None:
    more = replace(seen, packages={**seen.packages, "nvidia-container-toolkit": Package("1.20.0-1")})
    held = {name for change in plan(more, goal) if change.step[0] == "hold" for name in change.step[1:]}
    assert all(map(is_family, held))
