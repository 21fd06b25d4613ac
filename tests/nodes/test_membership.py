# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A worker leaves and joins while jobs run; nobody else's daemons notice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nodes.harness import Closet
from tests.nodes.test_accounting import sacct


@pytest.fixture(scope="module")
def stayer(converged: Closet) -> Iterator[str]:
    """A job on node1 that runs all the time."""
    yield converged.start("ben", "--nodelist=node1 --gres=gpu:1")
    converged.settle()


def test_node_leaves_after_its_job(converged: Closet, stayer: str) -> None:
    untouched = {unit: converged.invocation("node1", unit) for unit in ("slurmd", "munge")}
    leaver = converged.start("ada", "--nodelist=node2 --gres=gpu:1", "sleep 20")
    converged.play("labrack.infra.node_leave", node="node2")
    assert sacct(converged, leaver).startswith("ada|lab|COMPLETED|")
    assert converged.root("head", "sinfo --noheader --Node --format=%N").split() == ["node1"] * 2
    for host in ("head", "node1"):
        assert "node2" not in converged.root(host, "cat /etc/hosts")
    assert "node2" not in converged.root("head", "cat /etc/slurm/slurm.conf /etc/slurm/gres.conf")
    assert converged.root("node2", "systemctl is-active slurmd", check=False) != "active\n"
    assert "node1" in converged.root("head", "cat /etc/slurm/slurm.conf")
    assert {unit: converged.invocation("node1", unit) for unit in ("slurmd", "munge")} == untouched
    assert converged.job(stayer)["JobState"] == "RUNNING"


def test_node_joins(converged: Closet, stayer: str) -> None:
    untouched = {unit: converged.invocation("node1", unit) for unit in ("slurmd", "munge")}
    converged.play("labrack.infra.node_join", node="node2")
    converged.await_node("node2", lambda state: state == "IDLE", "is in service")
    assert converged.srun("ada", "--nodelist=node2 --gres=gpu:1", "hostname").stdout == "node2\n"
    for host in ("head", "node1"):
        assert "node2" in converged.root(host, "cat /etc/hosts")
    assert {unit: converged.invocation("node1", unit) for unit in ("slurmd", "munge")} == untouched
    assert converged.job(stayer)["JobState"] == "RUNNING"
    assert set(converged.play().changed.values()) == {0}
