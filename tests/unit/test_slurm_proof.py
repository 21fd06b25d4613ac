"""Judging what a job sees against what it asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from ansible_collections.labrack.infra.plugins.module_utils.slurm_nodes import SlurmNode
from ansible_collections.labrack.infra.plugins.module_utils.slurm_proof import (
    PROBE,
    Asked,
    Check,
    document,
    judge_job,
    judge_node,
    judge_start,
    table,
)

ASKED = Asked(cpus=4, memory_mib=2048, gpus=1)
SEEN: dict[str, Any] = {
    "node": "node1",
    "uid": 2001,
    "cpus": 4,
    "memory_mib": 2048,
    "devices": ["/dev/nvidia0"],
    "denied": ["/dev/nvidia1"],
    "visible": ["0"],
}
ALL = ("Cores", "RAMSpace", "Devices")


def failed(seen: dict[str, Any], constrained: tuple[str, ...] = ALL) -> list[str]:
    checks = judge_job("node1", ASKED, {**SEEN, **seen}, constrained)
    assert all(check.mend for check in checks if not check.ok)
    return [check.name for check in checks if not check.ok]


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        ({}, []),
        ({"visible": []}, ["CUDA_VISIBLE_DEVICES"]),
        ({"devices": ["/dev/nvidia0", "/dev/nvidia1"], "denied": []}, ["GPU device files"]),
        ({"devices": [], "denied": ["/dev/nvidia0", "/dev/nvidia1"]}, ["GPU device files"]),
        ({"cpus": 16}, ["CPUs"]),
        ({"memory_mib": None}, ["memory"]),
        ({"memory_mib": 4096}, ["memory"]),
    ],
)
def test_what_a_job_sees(seen: dict[str, Any], names: list[str]) -> None:
    assert failed(seen) == names


def test_a_limit_that_is_not_promised_is_not_looked_for() -> None:
    loose = {"cpus": 16, "memory_mib": None, "devices": ["/dev/nvidia0", "/dev/nvidia1"]}
    assert failed(loose, ()) == []
    assert failed({**loose, "visible": ["0", "1"]}, ()) == ["CUDA_VISIBLE_DEVICES"]


def test_the_probe_speaks_as_the_judge_listens() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,2"}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    check, seen = judge_start("node1", 0, "module load cuda\n" + done.stdout, "")
    assert check.ok is True
    assert seen is not None
    assert set(seen) == set(SEEN)
    assert (seen["visible"], seen["uid"], seen["cpus"]) == (["0", "2"], os.getuid(), len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("rc", "output", "error", "ok", "words"),
    [
        (0, json.dumps(SEEN) + "\n", "", True, "ran"),
        (0, "", "", False, "printed nothing"),
        (0, "hello\n", "", False, "printed nothing"),
        (
            1,
            "",
            "srun: error: Unable to allocate resources: Requested nodes are busy\n",
            None,
            "busy: srun: error: Unable to allocate resources: Requested nodes are busy",
        ),
        (124, "", "", None, "busy: no answer"),
        (
            1,
            "",
            "srun: error: Unable to allocate resources: Invalid account or account/partition combination specified\n",
            False,
            "srun: error: Unable to allocate resources: Invalid account or account/partition combination specified",
        ),
        (
            1,
            "",
            "warning\nslurmstepd: error: execve(): python3: No such file\n",
            False,
            "slurmstepd: error: execve(): python3: No such file",
        ),
    ],
)
def test_whether_the_job_ran(rc: int, output: str, error: str, ok: bool | None, words: str) -> None:
    check, seen = judge_start("node1", rc, output, error)
    assert (check.ok, check.seen) == (ok, words)
    assert (seen == SEEN) is (ok is True)
    assert bool(check.mend) is (ok is False)


@pytest.mark.parametrize(
    ("state", "ok"),
    [
        ({"IDLE"}, True),
        ({"MIXED", "COMPLETING"}, True),
        ({"IDLE", "DRAIN"}, False),
        ({"DOWN", "NOT_RESPONDING"}, False),
        ({"IDLE", "INVALID_REG"}, False),
    ],
)
def test_the_state_of_a_node(state: set[str], ok: bool) -> None:
    check = judge_node("node1", SlurmNode("node1", frozenset(state), "GPU lost", 0))
    assert check.ok is ok
    assert ("GPU lost" in check.seen) is not ok
    assert bool(check.mend) is not ok


def test_a_node_that_slurm_does_not_know() -> None:
    assert judge_node("node1", None).ok is False


GOOD = Check("job", "node1", True, "ran", "ran")
SKIPPED = Check("job", "node2", None, "ran", "busy")
WARNED = Check("golden rule", "node2", None, "no CUDA on the host", "/usr/local/cuda-12", "remove it")
BAD = Check("memory", "node10", False, "2048 MiB", "no limit", "see cgroup.conf")


def test_the_document() -> None:
    found = json.loads(json.dumps(document([GOOD, SKIPPED, BAD])))
    assert found["ok"] is False
    assert [check["name"] for check in found["checks"]] == ["job", "job", "memory"]
    assert found["failures"] == [found["checks"][2]]
    assert document([GOOD, SKIPPED])["ok"] is True
    warned = document([GOOD, SKIPPED, WARNED])
    assert (warned["ok"], warned["failures"]) == (True, [])
    assert [check["name"] for check in warned["warnings"]] == ["golden rule"]


def test_the_table() -> None:
    assert table([GOOD, SKIPPED, BAD]) == [
        "node    check   result   wanted    seen",
        "node1   job     ok       ran       ran",
        "node2   job     skipped  ran       busy",
        "node10  memory  FAILED   2048 MiB  no limit",
        "mend node10: see cgroup.conf",
    ]
    assert " warning  " in table([WARNED])[1] and table([WARNED])[2] == "mend node2: remove it"
