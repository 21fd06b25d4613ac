"""Nodes as scontrol shows them, and draining and resuming them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done
from ansible_collections.labrack.infra.plugins.module_utils.slurm_nodes import (
    ADMIN_TAG,
    TAG,
    SlurmNode,
    parse_nodes,
    plan_drain,
    plan_resume,
)
from ansible_collections.labrack.infra.plugins.modules import slurm_drain

LINE = (
    "NodeName={name} Arch=x86_64 CoresPerSocket=8 CPUAlloc={held} CPUEfctv=16 CPUTot=16 CPULoad=0.31 "
    "AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:rtx_4090:2 NodeAddr=10.0.0.1 NodeHostName={name} "
    "Version=24.11.5 OS=Linux 6.12.43+deb13-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.12.43-1 (2026-08-27) "
    "RealMemory=60800 AllocMem=0 FreeMem=5312 Sockets=1 Boards=1 State={state} ThreadsPerCore=2 TmpDisk=0 Weight=1 "
    "Owner=N/A MCS_label=N/A Partitions=gpu,interactive BootTime=2026-11-22T00:30:12 LastBusyTime=2026-11-22T01:31:02 "
    "CfgTRES=cpu=16,mem=60800M,billing=16,gres/gpu=2 AllocTRES= CurrentWatts=0 AveWatts=0 {tail}\n"
)


def line(name: str = "node1", state: str = "IDLE", held: int = 0, tail: str = "") -> str:
    return LINE.format(name=name, state=state, held=held, tail=tail)


STAMP = "[root@2026-11-22T01:31:30]"


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("", ""),
        (f"Reason=labrack: configuration change {STAMP}", "labrack: configuration change"),
        (f"Reason=new fan [slot 3] {STAMP} Comment=lent until May", "new fan [slot 3]"),
        (f"Reason=labrack: x {STAMP} Extra=a=b ReservationName=may", "labrack: x"),
        ("Reason=Not responding [slurm@Tomorr 01:31]", "Not responding"),
        ("Reason=without a stamp", "without a stamp"),
        ("Comment=no Reason given", ""),
    ],
)
def test_the_reason(tail: str, reason: str) -> None:
    assert parse_nodes(line(tail=tail))["node1"].reason == reason


@pytest.mark.parametrize(
    ("state", "held", "drained", "empty"),
    [
        ("IDLE", 0, False, True),
        ("IDLE+DRAIN", 0, True, True),
        ("MIXED+DRAIN", 4, True, False),
        ("ALLOCATED", 16, False, False),
        ("IDLE+COMPLETING+DRAIN", 0, True, False),
        ("DOWN*+DRAIN", 0, True, True),
        ("IDLE+DRAIN+NOT_RESPONDING", 0, True, True),
        ("IDLE+DRAIN", 2, True, False),
    ],
)
def test_states(state: str, held: int, drained: bool, empty: bool) -> None:
    node = parse_nodes(line(state=state, held=held))["node1"]
    assert (node.drained, node.empty) == (drained, empty)


def test_a_silent_node_is_known_by_its_star() -> None:
    assert parse_nodes(line(state="IDLE*"))["node1"].state == {"IDLE", "NOT_RESPONDING"}


def test_other_output_is_no_node() -> None:
    assert parse_nodes("No nodes in the system\n\nslurm_load_node error\n") == {}


NODES = parse_nodes(
    line("free")
    + line("ours", "IDLE+DRAIN", tail=f"Reason=labrack: configuration change {STAMP}")
    + line("admins", "MIXED+DRAIN", 4, f"Reason=labrack is great, but a fan broke {STAMP}")
    + line("ill", "IDLE+DRAIN", tail=f"Reason=labrack-health: GPU 0000:07:00 Xid 79 {STAMP}")
    + line("back", tail=f"Reason=labrack: configuration change {STAMP}")
)
EVERY = [*NODES, "unknown"]


def test_only_a_node_in_service_is_drained() -> None:
    steps = [change.step for change in plan_drain(NODES, EVERY, "maintenance")]
    assert steps == [
        ("update", f"nodename={name}", "state=drain", "reason=labrack: maintenance") for name in ("free", "back")
    ]


def test_only_an_own_drain_is_taken_back() -> None:
    (change,) = plan_resume(NODES, EVERY)
    assert change.step == ("update", "nodename=ours", "state=resume")


def test_drain_and_resume_give_the_node_back() -> None:
    (change,) = plan_drain(NODES, ["free"], "maintenance")
    reason = change.step[-1].partition("=")[2]
    drained = {"free": SlurmNode("free", frozenset({"IDLE", "DRAIN"}), reason, 0)}
    assert plan_drain(drained, ["free"], "maintenance") == []
    assert len(plan_resume(drained, ["free"])) == 1
    assert plan_resume({"free": NODES["free"]}, ["free"]) == []


# --- a node that has not registered yet ---

OURS = line("node1", "IDLE+DRAIN+INVALID_REG", tail=f"Reason=labrack: configuration change {STAMP}")


def resume(monkeypatch: pytest.MonkeyPatch, refusals: int, becomes: str = "") -> tuple[dict[str, Any], int]:
    """Resume node1, which slurmctld refuses so often, and which may become free in another way; and how often asked."""
    asked = 0
    result: dict[str, Any] = {}

    def run(argv: list[str]) -> Done:
        nonlocal asked
        if argv[1] == "--oneliner":
            resumed = asked > refusals
            return Done(0, line("node1") if resumed or (asked and becomes == "free") else OURS, "")
        asked += 1
        return (
            Done(1, "", "slurm_update error: Invalid node state specified\n") if asked <= refusals else Done(0, "", "")
        )

    def finish(_module: Any, **found: Any) -> None:
        result.update(found)
        raise SystemExit

    monkeypatch.setattr(slurm_drain, "run", run)
    monkeypatch.setattr(slurm_drain.time, "monotonic", lambda: float(asked))
    monkeypatch.setattr(slurm_drain.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(slurm_drain.AnsibleModule, "exit_json", finish)
    monkeypatch.setattr(slurm_drain.AnsibleModule, "fail_json", lambda it, msg, **more: finish(it, failed=msg, **more))
    with patch_module_args({"nodes": ["node1"], "state": "resumed"}), pytest.raises(SystemExit):
        slurm_drain.main()
    return result, asked


def test_a_node_is_resumed_once_it_has_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = resume(monkeypatch, refusals=3)
    assert result["changed"] and "failed" not in result and asked == 4


def test_a_node_that_somebody_else_resumed_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = resume(monkeypatch, refusals=3, becomes="free")
    assert "failed" not in result and asked == 1


def test_a_node_that_never_registers_is_an_error_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = resume(monkeypatch, refusals=10**6)
    assert "Invalid node state" in result["failed"] and "journalctl -u slurmd" in result["failed"]
    assert asked > slurm_drain.REGISTRATION_S


def admin_drained() -> dict[str, SlurmNode]:
    return parse_nodes(
        line("free")
        + line("admins", "IDLE+DRAIN", tail=f"Reason=labrack-admin: new fan {STAMP}")
        + line("ours", "IDLE+DRAIN", tail=f"Reason=labrack: configuration change {STAMP}")
        + line("hand", "IDLE+DRAIN", tail=f"Reason=smells burnt {STAMP}")
    )


def test_no_run_takes_an_admins_drain_back() -> None:
    nodes = admin_drained()
    assert [change.subject for change in plan_resume(nodes, nodes)] == ["node ours"]
    both = plan_resume(nodes, nodes, (TAG, ADMIN_TAG))
    assert [change.subject for change in both] == ["node admins", "node ours"]


def test_an_admins_drain_takes_over_what_a_run_left() -> None:
    nodes = admin_drained()
    steps = [change.step for change in plan_drain(nodes, nodes, "new fan", ADMIN_TAG)]
    assert [step[1] for step in steps] == ["nodename=free", "nodename=ours"]
    assert {step[3] for step in steps} == {"reason=labrack-admin: new fan"}


def test_an_admin_waits_for_no_jobs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[list[str]] = []

    def run(argv: list[str]) -> Done:
        asked.append(argv)
        if argv[0] == "squeue":
            return Done(0, "7 of ada on node1 ends 2026-11-27T02:00:00\n", "")
        drained = any("state=drain" in words for words in asked)
        tail = f"Reason=labrack-admin: x {STAMP}" if drained else ""
        return Done(0, line("node1", "MIXED+DRAIN" if drained else "MIXED", 4, tail), "")

    monkeypatch.setattr(slurm_drain, "run", run)
    arguments = {"nodes": ["node1"], "reason": "x", "timeout": 0, "by_admin": True}
    with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
        slurm_drain.main()
    result = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and result["changed"]
    assert result["jobs"] == ["7 of ada on node1 ends 2026-11-27T02:00:00"]
    assert result["nodes"] == {"node1": {"drained": True, "reason": "labrack-admin: x"}}
