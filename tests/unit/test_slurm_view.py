# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is read from Slurm's commands; the outputs are those of Slurm 22.05.8 and 24.11.5."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import slurm_view
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done
from ansible_collections.labrack.infra.plugins.module_utils.slurm_view import Gpus, Job, Node

NODES_22_05 = """\
NodeName=node1 Arch=x86_64 CoresPerSocket=2  CPUAlloc=0 CPUTot=2 AvailableFeatures=(null) Gres=gpu:rtx_a6000:2 \
GresDrain=N/A GresUsed=gpu:rtx_a6000:0(IDX:N/A) NodeAddr=172.28.0.4 NodeHostName=node1 Version=22.05.8 \
OS=Linux 6.1.0 #1 SMP PREEMPT_DYNAMIC  RealMemory=22900 State=IDLE Partitions=gpu,interactive \
CfgTRES=cpu=2,mem=22900M,billing=2,gres/gpu=2 AllocTRES= CapWatts=n/a ExtSensorsTemp=n/s
"""
NODES_24_11 = """\
NodeName=node1 Arch=x86_64 CPUAlloc=2 Gres=gpu:a100_80gb:2(S:0-1) GresDrain=N/A GresUsed=gpu:a100_80gb:2(IDX:0-1) \
NodeAddr=192.168.0.2 NodeHostName=node1 Version=24.11.5 State=ALLOCATED AllocTRES=cpu=2,mem=22900M,gres/gpu=2 \
CurrentWatts=0 AveWatts=0
NodeName=node2 Arch=x86_64 CPUAlloc=1 Gres=gpu:rtx_4090:1,gpu:rtx_a6000:1 GresDrain=N/A \
GresUsed=gpu:rtx_4090:0(IDX:N/A),gpu:rtx_a6000:1(IDX:1) NodeHostName=node2 Version=24.11.5 State=MIXED+DRAIN \
AveWatts=0 Reason=GPU 1 fell off the bus [root@2026-11-22T01:38:44]
NodeName=cpu1 Arch=x86_64 Gres=(null) GresUsed=gpu:0 NodeHostName=cpu1 State=DOWN*+NOT_RESPONDING AveWatts=0
"""
MARK = "5eed"
JOBS = """\
5       |ada     |PENDING |cpu=1,mem=11450M,node=1,billing=1,gres/gpu=2 |0:00    |(Resources)    |big     |5eed
3       |ada     |RUNNING |cpu=1,mem=11450M,node=1,billing=1,gres/gpu=1 |1-02:04 |node[1-2]      |a|b [red] |5eed
4_[1-8] |ben     |PENDING |cpu=1,mem=11450M,node=1,billing=1            |0:00    |(Priority, held) |arr |5eed
"""
JOB_CARDS = """\
JobId=3 JobName=train
   UserId=ada(2001) GroupId=ada(2001) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   NumNodes=2 NumCPUs=2 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   JOB_GRES=gpu:a100_80gb:3
     Nodes=node1 CPU_IDs=0 Mem=11450 GRES=gpu:a100_80gb:2(IDX:0-1)
     Nodes=node[2-3] CPU_IDs=0 Mem=11450 GRES=gpu:a100_80gb:1(IDX:3)
   MinCPUsNode=1 MinMemoryCPU=11450M MinTmpDiskNode=0

JobId=9 ArrayJobId=4 ArrayTaskId=1 JobName=arr
     Nodes=node1 CPU_IDs=1 Mem=11450 GRES=

JobId=5 JobName=big
   JobState=PENDING Reason=Resources Dependency=(null)
"""


def test_nodes_of_22_05() -> None:
    assert slurm_view.parse_nodes(NODES_22_05) == (Node("node1", "idle", "", (Gpus("rtx_a6000", 0, 2),)),)


def test_nodes_of_24_11() -> None:
    two = (Gpus("rtx_4090", 0, 1), Gpus("rtx_a6000", 1, 1))
    assert slurm_view.parse_nodes(NODES_24_11) == (
        Node("node1", "allocated", "", (Gpus("a100_80gb", 2, 2),), (0, 1)),
        Node("node2", "mixed+drain", "GPU 1 fell off the bus", two, (1,)),
        Node("cpu1", "down*+not_responding", "", ()),
    )


@pytest.mark.parametrize("text", ["", "No nodes in the system\n"])
def test_no_nodes(text: str) -> None:
    assert slurm_view.parse_nodes(text) == ()


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("(null)", {}),
        ("gpu:2", {"gpu": 2}),
        ("gpu:h100_80gb:8(S:0,1),shard:16", {"h100_80gb": 8}),
        ("gpu:rtx_4090:1(IDX:0),gpu:rtx_4090:1(IDX:1)", {"rtx_4090": 2}),
    ],
)
def test_gres(text: str, counts: dict[str, int]) -> None:
    assert slurm_view.parse_gres(text) == counts


def test_jobs() -> None:
    assert slurm_view.parse_jobs(JOBS, MARK) == (
        Job("5", "big", "ada", "pending", 2, "0:00", "Resources"),
        Job("3", "a|b [red]", "ada", "running", 1, "1-02:04", "node[1-2]"),
        Job("4_[1-8]", "arr", "ben", "pending", 0, "0:00", "Priority, held"),
    )


def test_a_name_with_line_ends_is_no_second_job() -> None:
    name = "x|\n99 |root |RUNNING |gres/gpu=8 |0:01 |node1 |y"
    (job,) = slurm_view.parse_jobs(f"5 |ada |RUNNING |gres/gpu=1 |0:01 |node1 |{name} |{MARK}\n", MARK)
    assert (job.id, job.user, job.gpus) == ("5", "ada", 1)


def test_the_mark_is_new_each_time_and_ends_each_job() -> None:
    asked: list[list[str]] = []

    def runner(argv: list[str], timeout: float) -> Done:
        asked.append(argv)
        return Done(0, "", "")

    assert slurm_view.read(runner) == slurm_view.read(runner) == slurm_view.View()
    queues = [argv[-1] for argv in asked if argv[0] == "squeue"]
    assert len(set(queues)) == 2 and all(len(queue.rpartition("|")[2]) == 16 for queue in queues)


def test_cards_of_jobs() -> None:
    cards = slurm_view.parse_job_cards(JOB_CARDS)
    assert cards == {"3": {"node1": (0, 1), "node2": (3,), "node3": (3,)}}
    job = Job("3", "train", "ada", "running", 4, "0:01", "node[1-3]")
    other = Job("5", "big", "ada", "pending", 2, "0:00", "Resources")
    assert slurm_view.with_cards([job, other], cards) == (
        Job("3", "train", "ada", "running", 4, "0:01", "node[1-3]", cards["3"]),
        other,
    )


def test_a_job_has_no_more_cards_than_slurm_counts() -> None:
    """Its owner can write such a line into a comment."""
    job = Job("3", "train", "ada", "running", 1, "0:01", "node1")
    assert slurm_view.with_cards([job], {"3": {"node1": (0, 1)}}) == (job,)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("desk", ["desk"]),
        ("node[1-2,07],desk", ["node1", "node2", "node07", "desk"]),
        ("node[08-10]", ["node08", "node09", "node10"]),
        ("", []),
    ],
)
def test_host_lists(text: str, names: list[str]) -> None:
    assert slurm_view.expand(text) == names


@given(st.text(alphabet="node[]0123456789-,|=:()IDXgpu \n", max_size=120))
def test_no_text_breaks_a_reader(text: str) -> None:
    slurm_view.parse_nodes(text)
    slurm_view.parse_jobs(text, MARK)
    slurm_view.parse_job_cards(text)
    assert len(slurm_view.expand(text)) <= 5000


def test_a_controller_that_is_down_is_an_error_in_words() -> None:
    words = "slurm_load_node error: Unable to contact slurm controller (connect failure)"

    def runner(argv: list[str], **_: Any) -> Done:
        return Done(1, "", f"\n{words}\n")

    assert slurm_view.read(runner) == slurm_view.View(error=words)
