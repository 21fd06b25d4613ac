# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What could end a job waits for consent; with it, nodes are emptied first, and no others are resumed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.nodes.harness import Closet

RESERVE = 4000


@contextmanager
def states_of_nodes(closet: Closet) -> Iterator[set[str]]:
    """All states of all nodes while the block runs."""
    seen: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            seen.update(closet.root("head", "sinfo --noheader --Node --format=%T", check=False).split())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def test_without_consent_it_is_pending(closet: Closet) -> None:
    job = closet.start("ada", "--nodelist=node1")
    memory = closet.node("node1")["RealMemory"]
    run = closet.play(slurm_memory_reserve_mib=RESERVE)
    result = run.task("head", "Converge the controller").result
    assert {item["subject"] for item in result["pending"]} >= {"node node1", "node node2"}
    assert any("run the same command with -e lab_max_disruption=drain" in words for words in result["warnings"])
    assert set(run.changed.values()) == {0}
    assert closet.node("node1")["RealMemory"] == memory
    assert closet.job(job)["JobState"] == "RUNNING"


def test_with_consent_nodes_are_emptied_changed_and_resumed(closet: Closet) -> None:
    memory = int(closet.node("node1")["RealMemory"])
    closet.root("head", "scontrol update nodename=node2 state=drain reason='new fan'")
    job = closet.start("ada", "--nodelist=node1", "sleep 25")
    try:
        with states_of_nodes(closet) as seen:
            closet.play(slurm_memory_reserve_mib=RESERVE, lab_max_disruption="drain")
        assert closet.job(job)["JobState"] == "COMPLETED"
        assert int(closet.node("node1")["RealMemory"]) < memory
        closet.await_node("node1", lambda state: state == "IDLE", "takes jobs again")
        admins = closet.node("node2")
        assert "DRAIN" in admins["State"] and admins["Reason"].startswith("new fan")
        assert int(admins["RealMemory"]) < memory
        assert {"draining", "drained"} & seen and not [state for state in seen if "inval" in state], seen
        assert closet.srun("ada", "--nodelist=node1", "hostname").stdout == "node1\n"
    finally:
        closet.root("head", "scontrol update nodename=node2 state=resume")
        closet.play(lab_max_disruption="drain")
    assert int(closet.node("node1")["RealMemory"]) == memory
