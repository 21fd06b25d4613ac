# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is read from Slurm's commands and nvidia-smi; the outputs are those of Slurm 22.05.8 and 24.11.5."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from labrack import status
from labrack.status import Gpus, Job, Node

FIXTURES = Path(__file__).parent / "fixtures/tailnet"
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
JOBS = """\
5       |ada     |PENDING |cpu=1,mem=11450M,node=1,billing=1,gres/gpu=2 |0:00    |(Resources)    |big     |
3       |ada     |RUNNING |cpu=1,mem=11450M,node=1,billing=1,gres/gpu=1 |1-02:04 |node[1-2]      |a|b [red] |
4_[1-8] |ben     |PENDING |cpu=1,mem=11450M,node=1,billing=1            |0:00    |(Priority, held) |arr |
"""


def test_nodes_of_22_05() -> None:
    assert status.parse_nodes(NODES_22_05) == (Node("node1", "idle", "", (Gpus("rtx_a6000", 0, 2),)),)


def test_nodes_of_24_11() -> None:
    assert status.parse_nodes(NODES_24_11) == (
        Node("node1", "allocated", "", (Gpus("a100_80gb", 2, 2),)),
        Node("node2", "mixed+drain", "GPU 1 fell off the bus", (Gpus("rtx_4090", 0, 1), Gpus("rtx_a6000", 1, 1))),
        Node("cpu1", "down*+not_responding", "", ()),
    )


@pytest.mark.parametrize("text", ["", "No nodes in the system\n"])
def test_no_nodes(text: str) -> None:
    assert status.parse_nodes(text) == ()


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
    assert status.parse_gres(text) == counts


def test_jobs() -> None:
    assert status.parse_jobs(JOBS) == (
        Job("5", "big", "ada", "pending", 2, "0:00", "Resources"),
        Job("3", "a|b [red]", "ada", "running", 1, "1-02:04", "node[1-2]"),
        Job("4_[1-8]", "arr", "ben", "pending", 0, "0:00", "Priority, held"),
    )


def test_temperatures_go_to_the_cards_of_their_type() -> None:
    text = "NVIDIA GeForce RTX 4090, 41\nNVIDIA RTX A6000, 52\nNVIDIA GeForce RTX 4090, 43\n"
    node = Node("node2", "idle", "", (Gpus("rtx_4090", 0, 2), Gpus("rtx_a6000", 0, 1)))
    seen = status.with_temperatures(node, status.parse_cards(text))
    assert [gpus.temperatures_c for gpus in seen.gpus] == [(41, 43), (52,)]


@pytest.mark.parametrize(
    "text",
    [
        "NVIDIA RTX A6000, [Unknown Error]\n",
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n",
        "",
    ],
)
def test_card_without_temperature(text: str) -> None:
    assert status.parse_cards(text) == {}


def remote(host: str, command: str) -> str:
    """A cluster whose node2 can't be reached."""
    if host == "node2":
        raise RuntimeError("no route to host")
    answers = {
        status.NODES_COMMAND: NODES_24_11,
        status.JOBS_COMMAND: JOBS,
        status.CARDS_COMMAND: "NVIDIA A100-SXM4-80GB, 31\nNVIDIA A100-SXM4-80GB, 32\n" if host == "node1" else "",
        status.TAILNET_COMMAND: (FIXTURES / "status_1.102.3.json").read_text(encoding="utf-8"),
    }
    return answers[command]


def printed(seen: status.Status) -> str:
    """The tables as text."""
    output = io.StringIO()
    Console(file=output, width=120).print(status.render(seen))
    return output.getvalue()


def test_read_and_render() -> None:
    lines = [" ".join(line.split()) for line in printed(status.read("head", remote)).splitlines()]
    assert "node1 allocated a100_80gb 2/2 31 °C 32 °C" in lines
    assert "node2 mixed+drain rtx_4090 0/1 - GPU 1 fell off the bus" in lines
    assert "rtx_a6000 1/1 -" in lines
    assert "cpu1 down*+not_responding - 0/0 -" in lines
    assert "3 ada a|b [red] running 1 1-02:04 node[1-2]" in lines
    assert "thead.tailnet.test 100.64.0.9 online" in lines
    assert not [line for line in lines if line.startswith("adalap")], "people's own devices are none of the lab's"


@pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"BackendState": "NeedsLogin"}'])
def test_head_without_a_tailnet(text: str) -> None:
    assert status.parse_tailnet(text) == ()
    assert "TAILNET" not in printed(status.Status((), (), ()))


def test_render_of_an_empty_queue() -> None:
    assert "No job is running or waiting." in printed(status.Status((), ()))
