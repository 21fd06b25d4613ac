# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One job, with a step and a GPU, runs through everything that is done to the lab, and ends well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.nodes.harness import Closet

HOSTS = ("head", "node1", "node2")
WORKERS = ("node1", "node2")
UNITS = {"head": ("slurmctld", "slurmdbd", "mariadb", "munge"), **dict.fromkeys(WORKERS, ("slurmd", "munge"))}
FINISH = "/tmp/finish"
JOURNAL = "/var/lib/labrack/slurmctld.todo"


@dataclass(frozen=True)
class Job:
    """A job on each worker: its id, and the process of its step."""

    ids: dict[str, str]
    pids: dict[str, str]
    starts: dict[str, str]


def invocations(closet: Closet) -> dict[str, str]:
    return {f"{unit} on {host}": closet.invocation(host, unit) for host, units in UNITS.items() for unit in units}


def restarted(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [unit for unit in before if before[unit] != after[unit]]


@pytest.fixture(scope="module")
def job(converged: Closet) -> Iterator[Job]:
    for worker in WORKERS:
        converged.root(worker, f"rm -f {FINISH}")
    step = f"srun bash -c 'echo $$; until [ -e {FINISH} ]; do sleep 1; done'"
    ids = {worker: converged.start("ada", f"--nodelist={worker} --gres=gpu:1", step) for worker in WORKERS}
    pids = {
        worker: converged.root(worker, f"until [ -s /tmp/job-{job}.out ]; do sleep 0.1; done; cat /tmp/job-{job}.out")
        for worker, job in ids.items()
    }
    yield Job(ids, pids, {worker: converged.job(job)["StartTime"] for worker, job in ids.items()})
    converged.settle()


@pytest.fixture
def lab(converged: Closet, job: Job) -> Iterator[Closet]:
    """The converged lab; the job must run as before after each test."""
    yield converged
    for worker in WORKERS:
        seen = converged.job(job.ids[worker])
        assert (seen["JobState"], seen["StartTime"], seen["Restarts"]) == ("RUNNING", job.starts[worker], "0")
        assert converged.root(worker, f"cat /proc/{job.pids[worker].strip()}/comm") == "bash\n"


def test_reapply_restarts_nothing(lab: Closet) -> None:
    before = invocations(lab)
    assert set(lab.play().changed.values()) == {0}
    assert restarted(before, invocations(lab)) == []


def test_config_change_restarts_nothing(lab: Closet) -> None:
    before = invocations(lab)
    partitions = [{"name": "gpu", "default": True, "default_time": "02:00:00", "max_time": "6-00:00:00"}]
    partitions += [{"name": "interactive", "default_time": "01:00:00", "max_time": "04:00:00", "qos": "interactive"}]
    run = lab.play(slurm_partitions=partitions, slurm_health_interval=7)
    assert run.task("head", "Converge the controller").subjects
    assert "MaxTime=6-00:00:00" in lab.root("head", "scontrol --oneliner show partition gpu")
    for worker in WORKERS:
        assert "HealthCheckInterval=7\n" in lab.root(worker, "cat /run/slurm/conf/slurm.conf")
    assert restarted(before, invocations(lab)) == []


def test_drift_of_slurmds_options_restarts_that_slurmd(lab: Closet) -> None:
    before = invocations(lab)
    lab.root("node1", "echo '# by hand' >>/etc/labrack/slurmd.env")
    run = lab.play()
    assert run.task("node1", "Converge workers and login hosts").subjects == [
        "file /etc/labrack/slurmd.env",
        "service slurmd",
    ]
    assert "# by hand" not in lab.root("node1", "cat /etc/labrack/slurmd.env")
    assert restarted(before, invocations(lab)) == ["slurmd on node1"]
    for worker in WORKERS:
        assert "HealthCheckInterval=5\n" in lab.root(worker, "cat /run/slurm/conf/slurm.conf")


def test_interrupted_run_is_taken_up(lab: Closet) -> None:
    # a run that ended between writing slurm.conf and telling slurmctld has left its journal
    before = invocations(lab)
    lab.root("head", f"echo restart >{JOURNAL}")
    assert lab.play().task("head", "Converge the controller").changed
    assert restarted(before, invocations(lab)) == ["slurmctld on head"]
    assert not lab.root("head", f"ls {JOURNAL}", check=False)


def test_munge_key_is_rotated(lab: Closet) -> None:
    keys = {host: lab.root(host, "sha256sum </etc/munge/munge.key") for host in HOSTS}
    run = lab.play("labrack.infra.slurm_rotate_munge", "-vvv", "--diff")
    key = lab.root("head", "base64 --wrap=0 /etc/munge/munge.key").strip()
    assert key[64:96] not in run.output
    after = {host: lab.root(host, "sha256sum </etc/munge/munge.key") for host in HOSTS}
    assert len(set(keys.values())) == len(set(after.values())) == 1 and keys != after
    for host in HOSTS:
        assert not lab.root(host, "ls /etc/munge/munge.key.next", check=False)
    for worker in WORKERS:
        assert lab.srun("ben", f"--nodelist={worker}", "hostname").stdout == f"{worker}\n"


def test_job_ends_well(converged: Closet, job: Job) -> None:
    for worker in WORKERS:
        converged.root(worker, f"touch {FINISH}")
        converged.await_state(job.ids[worker], "COMPLETED")
        sacct = f"sacct --noheader --parsable2 --jobs={job.ids[worker]} --format=JobID,State,ExitCode"
        steps = converged.root("head", sacct).split()
        assert len(steps) == 4 and all(step.endswith("|COMPLETED|0:0") for step in steps), steps
