"""The controller's files and what slurmctld has to do to take them."""

from __future__ import annotations

import pytest

from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import (
    ConfPlan,
    Difference,
    Gpu,
    SlurmConf,
    parse,
    render,
)
from ansible_collections.labrack.infra.plugins.module_utils.slurm_head import CONFIG_FILES, HeadState, plan_head
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState

CONF = SlurmConf(
    {"ClusterName": "closet"},
    {"node1": {"CPUs": "8", "RealMemory": "8000", "Gres": "gpu:h100:1"}},
    {"gpu": {"Nodes": "node1"}},
    {"node1": (Gpu("h100", "/dev/nvidia0"),)},
    {"ConstrainDevices": "yes"},
)
OTHER = SlurmConf({"ClusterName": "closet", "TreeWidth": "16"}, CONF.nodes, CONF.partitions, CONF.gres, CONF.cgroup)
UP = ServiceState(installed=True, active=True, enabled=True, since=1000.0)
DOWN = ServiceState(installed=True, active=False, enabled=True)
WRITES = [("write", path) for path in CONFIG_FILES]
WRITE_CONF = [("write", "/etc/slurm/slurm.conf")]


def state(conf: SlurmConf | None = CONF, service: ServiceState = UP, journal: str = "") -> HeadState:
    texts = {} if conf is None else render(conf)
    files = {path: FileState(texts[path.rpartition("/")[2]]) if texts else None for path in CONFIG_FILES}
    return HeadState(files, service, journal)


def done(*disruptions: str) -> tuple[Difference, ...]:
    return tuple(Difference("setting TreeWidth", "unset → 16", disruption) for disruption in disruptions)


@pytest.mark.parametrize(
    ("found", "settled", "steps"),
    [
        (state(), ConfPlan(CONF), []),
        (state(), ConfPlan(CONF, pending=done("drain")), []),
        (state(), ConfPlan(OTHER, done("reload")), [*WRITE_CONF, ("reconfigure", "slurmctld")]),
        (state(), ConfPlan(OTHER, done("reload", "restart")), [*WRITE_CONF, ("restart", "slurmctld")]),
        (state(), ConfPlan(OTHER, done("drain")), [*WRITE_CONF, ("restart", "slurmctld")]),
        (state(None, DOWN), ConfPlan(CONF, done("restart")), [*WRITES, ("restart", "slurmctld")]),
        (state(service=DOWN), ConfPlan(CONF), [("restart", "slurmctld")]),
        (state(service=DOWN), ConfPlan(OTHER, done("reload")), [*WRITE_CONF, ("restart", "slurmctld")]),
        (state(journal="restart"), ConfPlan(CONF), [("restart", "slurmctld")]),
        (state(journal="reconfigure"), ConfPlan(CONF), [("reconfigure", "slurmctld")]),
        (state(journal="restart"), ConfPlan(OTHER, done("reload")), [*WRITE_CONF, ("restart", "slurmctld")]),
        (state(service=DOWN, journal="reconfigure"), ConfPlan(CONF), [("restart", "slurmctld")]),
        (
            state(None, ServiceState()),
            ConfPlan(CONF, done("restart")),
            [*WRITES, ("restart", "slurmctld")],
        ),
        (
            state(service=ServiceState(True, True, False, 1000.0)),
            ConfPlan(CONF),
            [("enable", "slurmctld")],
        ),
    ],
)
def test_files_first_then_the_least_that_slurmctld_needs(
    found: HeadState, settled: ConfPlan, steps: list[tuple[str, str]]
) -> None:
    assert [change.step for change in plan_head(found, settled)] == steps


@pytest.mark.parametrize(
    ("disruption", "expected"), [("reload", "reload"), ("restart", "restart"), ("drain", "restart")]
)
def test_what_a_drain_has_paid_for_is_a_restart(disruption: str, expected: str) -> None:
    changes = plan_head(state(), ConfPlan(OTHER, done(disruption)))
    assert {change.disruption for change in changes} == {expected}


def test_the_reason_is_told() -> None:
    (_file, service) = plan_head(state(), ConfPlan(OTHER, done("restart")))
    assert service.summary == "restarted: setting TreeWidth: unset → 16"
    (interrupted,) = plan_head(state(journal="restart"), ConfPlan(CONF))
    assert interrupted.summary == "restarted: an earlier run was interrupted"


def test_a_file_that_says_the_same_in_other_words_disturbs_nobody() -> None:
    found = state()
    path = CONFIG_FILES[0]
    touched = {**found.files, path: FileState(render(CONF)["slurm.conf"] + "# a remark\n", "0600")}
    (change,) = plan_head(HeadState(touched, UP), ConfPlan(CONF))
    assert (change.step, change.disruption) == (("write", path), "none")


def test_the_state_gives_its_texts_back() -> None:
    assert parse(state().texts) == CONF
    assert state(None).texts == {}
