# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A broken card drains its node with a reason; mended, it comes back; what somebody else drained is left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labrack.testnode import gpus, node
from tests.nodes.harness import Closet

HEALTH = "/usr/local/lib/labrack/slurm/health"


@pytest.fixture
def sound(closet: Closet) -> Iterator[Closet]:
    """The closet, with node1's cards mended after the test."""
    yield closet
    mend(closet)
    closet.root("node1", HEALTH)


def lose(closet: Closet) -> None:
    node.set_gpus(closet.lab.node("node1"), lambda document: gpus.lose(document, 0))


def mend(closet: Closet) -> None:
    node.set_gpus(closet.lab.node("node1"), lambda document: gpus.mend(document, 0))


def test_lost_card_drains_its_node_until_it_is_mended(sound: Closet) -> None:
    # slurmd runs the check by itself, every slurm_health_interval
    lose(sound)
    seen = sound.await_node("node1", lambda state: "DRAIN" in state, "drained by its health check")
    assert "labrack-health: " in seen["Reason"] and "0000:07:00.0" in seen["Reason"].lower()
    assert "DRAIN" not in sound.node("node2")["State"]
    waiting = sound.submit("ada", "--nodelist=node1", "true")
    mend(sound)
    sound.await_node("node1", lambda state: "DRAIN" not in state, "resumed by its health check")
    sound.await_state(waiting, "COMPLETED")


def test_running_job_outlives_the_drain(sound: Closet) -> None:
    job = sound.start("ada", "--nodelist=node1 --gres=gpu:1")
    lose(sound)
    sound.root("node1", HEALTH)
    assert "DRAIN" in sound.node("node1")["State"]
    assert sound.job(job)["JobState"] == "RUNNING"


def test_fatal_xid_alone_drains(sound: Closet) -> None:
    node.set_gpus(sound.lab.node("node1"), lambda document: document["gpus"][0]["xids"].append(48))
    sound.root("node1", HEALTH)
    seen = sound.node("node1")
    assert "DRAIN" in seen["State"] and "Xid 48" in seen["Reason"]


def test_harmless_xid_does_not_drain(sound: Closet) -> None:
    node.set_gpus(sound.lab.node("node1"), lambda document: document["gpus"][0]["xids"].append(31))
    sound.root("node1", HEALTH)
    assert "DRAIN" not in sound.node("node1")["State"]


def test_drain_of_an_admin_stays(sound: Closet) -> None:
    sound.root("head", "scontrol update nodename=node1 state=drain reason='new fan'")
    try:
        for change in (lose, mend):
            change(sound)
            sound.root("node1", HEALTH)
            seen = sound.node("node1")
            assert "DRAIN" in seen["State"] and seen["Reason"].startswith("new fan")
    finally:
        sound.root("head", "scontrol update nodename=node1 state=resume")
