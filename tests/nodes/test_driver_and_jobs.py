"""A driver changes under a Slurm cluster: the running job ends in its own time, the node comes back by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import SYSTEM
from tests.nodes.gpu_lab import DESK, GpuLab, gpu_lab
from tests.nodes.harness import Closet, Run, until

OLD, LATER = "570.195.03", "580.178.04"

pytestmark = pytest.mark.skipif(SYSTEM.startswith("ubuntu"), reason="the mirror has no packages for Ubuntu")


@pytest.fixture(scope="module")
def lab() -> Iterator[GpuLab]:
    with gpu_lab("jobs", "gpu_closet", NodeSpec("head", SYSTEM)) as lab:
        lab.closet.play("labrack.infra.closet", nvidia_driver_branch="570")
        yield lab


@pytest.fixture(scope="module")
def closet(lab: GpuLab) -> Closet:
    return lab.closet


def test_slurm_gets_the_cards_whose_driver_came_in_the_same_run(closet: Closet) -> None:
    assert closet.node(DESK)["Gres"].startswith("gpu:rtx_a6000:2")


def test_without_consent_the_job_runs_on_and_the_change_is_pending(lab: GpuLab, closet: Closet) -> None:
    job = closet.start("ada", "--gres=gpu:1")
    seen = closet.play("labrack.infra.closet", nvidia_driver_branch="580")
    assert "pending until you consent to 'reboot'" in seen.output
    assert closet.job(job)["JobState"] == "RUNNING"
    assert "DRAIN" not in closet.node(DESK)["State"]
    assert lab.loaded() == OLD
    closet.root("head", f"scancel {job}")


def test_with_consent_the_node_waits_for_its_job_and_comes_back(lab: GpuLab, closet: Closet) -> None:
    closet.settle()
    job = closet.start("ada", "--gres=gpu:1")
    runs: list[Run] = []

    def change() -> None:
        consent = {"nvidia_driver_branch": "580", "lab_max_disruption": "reboot"}
        runs.append(closet.play("labrack.infra.closet", ok=False, **consent))

    thread = threading.Thread(target=change)
    thread.start()
    drained = closet.await_node(DESK, lambda state: "DRAIN" in state, "is draining")
    assert drained["Reason"].startswith("labrack: another driver")
    assert closet.job(job)["JobState"] == "RUNNING"
    assert (lab.driver(), lab.loaded()) == (OLD, OLD)
    closet.root("head", f"scancel {job}")
    thread.join(300)
    assert runs and runs[0].rc == 0, runs[0].output[-4000:] if runs else "the run did not end"
    assert (lab.driver(), lab.loaded()) == (LATER, LATER)
    until("the node takes jobs again", lambda: closet.node(DESK)["State"], lambda state: state == "IDLE")
    done = closet.srun("ada", "--gres=gpu:1", "nvidia-smi -L")
    assert done.stdout.count("NVIDIA RTX A6000") == 1, done.stderr


def test_drain_of_an_admin_is_not_lifted(lab: GpuLab, closet: Closet) -> None:
    closet.root("head", f"scontrol update nodename={DESK} state=drain reason='fan is loud'")
    consent = {"nvidia_driver_branch": "590", "lab_max_disruption": "reboot"}
    closet.play("labrack.infra.closet", **consent)
    assert lab.loaded().startswith("590.")
    node = closet.node(DESK)
    assert "DRAIN" in node["State"] and node["Reason"].startswith("fan is loud")
