# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs that go wrong or see only a part of the lab leave the rest of it alone."""

from __future__ import annotations

from labrack.testnode.docker import docker
from tests.nodes.harness import Closet, until

DRIFT = "echo '# by hand' >>/usr/local/lib/labrack/slurm/health"


def test_setting_that_slurm_refuses_is_taken_back(closet: Closet) -> None:
    job = closet.start("ada", "--nodelist=node1")
    before = closet.root("head", "cat /etc/slurm/slurm.conf")
    run = closet.play(ok=False, slurm_extra_settings={"NoSuchKey": 1})
    assert run.rc != 0
    assert "the previous configuration is back in place and slurmctld runs" in run.messages
    assert "NoSuchKey" in run.messages
    assert closet.root("head", "cat /etc/slurm/slurm.conf") == before
    until("slurmctld answers", lambda: closet.root("head", "scontrol ping"), lambda seen: "is UP" in seen)
    assert closet.job(job)["JobState"] == "RUNNING"
    assert closet.srun("ben", "--nodelist=node2", "hostname").stdout == "node2\n"
    assert set(closet.play().changed.values()) == {0}


def test_worker_that_is_down_keeps_its_definition(closet: Closet) -> None:
    (line,) = [row for row in closet.root("head", "cat /etc/slurm/slurm.conf").splitlines() if "NodeName=node2" in row]
    container = closet.lab.node("node2").container
    docker("stop", "--time=5", container)
    try:
        run = closet.play(ok=False, slurm_health_interval=6)
    finally:
        docker("start", container)
    assert run.unreachable == ("node2",)
    assert run.rc == 4 and "failed=0" in run.output
    conf = closet.root("head", "cat /etc/slurm/slurm.conf")
    assert line in conf and "HealthCheckInterval=6" in conf
    assert closet.srun("ada", "--nodelist=node1", "hostname").stdout == "node1\n"
    # it boots into service by itself
    closet.await_node("node2", lambda state: state == "IDLE", "is back")
    assert closet.play().changed["node2"] == 0


def test_limit_touches_one_worker(closet: Closet) -> None:
    for worker in ("node1", "node2"):
        closet.root(worker, DRIFT)
    run = closet.play("labrack.infra.closet", "--limit", "node1")
    assert dict(run.changed) == {"node1": 1}
    assert "# by hand" in closet.root("node2", "cat /usr/local/lib/labrack/slurm/health")
    assert dict(closet.play("labrack.infra.closet", "--limit", "node2").changed) == {"node2": 1}


def test_tags_choose_a_role(closet: Closet) -> None:
    run = closet.play("labrack.infra.closet", "--tags", "slurm")
    actions = {task.action for task in run.tasks}
    assert "slurm_node" in actions and not actions & {"baseline", "lab_users"}
    assert set(run.changed.values()) == {0}


def test_check_and_diff_show_and_do_nothing(closet: Closet) -> None:
    closet.root("node1", DRIFT)
    run = closet.play("labrack.infra.closet", "--check", "--diff")
    assert dict(run.changed) == {"head": 0, "node1": 1, "node2": 0}
    assert "-# by hand" in run.output
    assert "# by hand" in closet.root("node1", "cat /usr/local/lib/labrack/slurm/health")
    assert dict(closet.play().changed) == {"head": 0, "node1": 1, "node2": 0}
