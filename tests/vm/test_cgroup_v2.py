# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Under cgroup v2 a job gets what it asked for, can't touch the rest, and doesn't hurt its neighbour."""

from __future__ import annotations

import re

import pytest

from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import NodeSpec
from tests.nodes.harness import TOUCH, Closet, opened, refused
from tests.vm.conftest import Maker

#: Seconds for a job that has an emulated processor.
PATIENCE = 120


@pytest.fixture(scope="module")
def converged(make_lab: Maker) -> Closet:
    """A head and a worker with two cards and room for two jobs, after the closet's playbook."""
    worker = NodeSpec("node1", gpus=(GpuSpec(),) * 2, memory_mib=1536, cpus=2)
    closet = make_lab("cgroup", (NodeSpec("head"), worker))
    closet.play()
    return closet


@pytest.fixture
def closet(converged: Closet) -> Closet:
    converged.settle()
    return converged


def test_limits_are_those_of_cgroup_v2(closet: Closet) -> None:
    assert closet.root("node1", "stat --file-system --format=%T /sys/fs/cgroup").strip() == "cgroup2fs"
    text = closet.root("head", "cat /etc/slurm/cgroup.conf")
    for line in ("CgroupPlugin=cgroup/v2", "ConstrainDevices=yes", "ConstrainRAMSpace=yes", "ConstrainCores=yes"):
        assert line in text


def test_job_without_a_gpu_opens_none(closet: Closet) -> None:
    done = closet.srun("ada", "", TOUCH, PATIENCE)
    assert opened(done.stdout) == [], done.stderr
    assert refused(done.stdout) == ["/dev/nvidia0", "/dev/nvidia1"]


@pytest.mark.core
def test_job_opens_just_the_gpu_that_it_got(closet: Closet) -> None:
    done = closet.srun("ada", "--gres=gpu:1", TOUCH, PATIENCE)
    assert len(opened(done.stdout)) == len(refused(done.stdout)) == 1, done.stdout + done.stderr
    done = closet.srun("ada", "--gres=gpu:2", TOUCH, PATIENCE)
    assert opened(done.stdout) == ["/dev/nvidia0", "/dev/nvidia1"]


def test_job_sees_the_cores_that_it_asked_for(closet: Closet) -> None:
    for cores in (1, 2):
        assert closet.srun("ada", f"--cpus-per-task={cores}", "nproc", PATIENCE).stdout == f"{cores}\n"


@pytest.mark.core
def test_memory_hog_dies_alone(closet: Closet) -> None:
    neighbour = closet.start("ben", "--mem=64M", "sleep 900 & echo $!; wait")
    pid = closet.root(
        "node1", f"until [ -s /tmp/job-{neighbour}.out ]; do sleep 0.1; done; cat /tmp/job-{neighbour}.out"
    )
    hog = "python3 -c 'data = bytearray(300 << 20); print(len(data))'"
    done = closet.srun("ada", "--mem=100M", hog, PATIENCE)
    assert done.returncode != 0 and "314572800" not in done.stdout
    assert re.search("oom|out of memory", done.stderr, re.IGNORECASE), done.stderr
    assert closet.srun("ada", "--mem=500M", hog, PATIENCE).stdout == "314572800\n"
    assert closet.job(neighbour)["JobState"] == "RUNNING"
    assert closet.root("node1", f"cat /proc/{pid.strip()}/comm") == "sleep\n"
