"""Judging a host by its facts, and the one document of hosts and Slurm."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from ansible_collections.labrack.infra.plugins.filter.proof import proof
from ansible_collections.labrack.infra.plugins.module_utils.host_proof import judge_host
from ansible_collections.labrack.infra.plugins.module_utils.slurm_proof import Check

CARD = {"index": 0, "pci": "0000:01:00.0", "uuid": "GPU-1", "retired_pages": None}
NVIDIA: dict[str, Any] = {
    "state": "ok",
    "message": "",
    "mismatch": False,
    "reboot_needed": False,
    "reason": "",
    "lost": [],
    "packages": {"nvidia-driver-580-open": "580.95.05"},
}
FACTS: dict[str, Any] = {
    "gpus": [CARD, {**CARD, "index": 1, "pci": "0000:02:00.0"}],
    "nvidia": NVIDIA,
    "runtime": {"toolkit": "1.20.0-1", "docker": {"runtimes": []}},
    "system_python": {"interpreter": "/usr/bin/python3", "externally_managed": True, "packages": [], "others": []},
    "cuda": [],
    "conflicts": [],
}
SPEC = ("/var/run/cdi/nvidia.yaml",)


def judge(facts: dict[str, Any], **options: Any) -> list[Check]:
    keywords = {"orchestrator": "slurm", "strict": False, "loose": [], "cdi_specs": SPEC, **options}
    return judge_host("desk", facts, **keywords)


def nvidia(**changes: object) -> dict[str, Any]:
    return {**FACTS, "nvidia": {**NVIDIA, **changes}}


def failed(checks: list[Check]) -> list[str]:
    assert all(bool(check.mend) is (check.ok is not True) for check in checks)
    return [check.name for check in checks if check.ok is False]


def test_a_sound_host() -> None:
    checks = judge(FACTS)
    assert failed(checks) == []
    assert [check.name for check in checks] == [
        "driver",
        "driver parts",
        "cards",
        "driver packages",
        "GPUs in containers",
        "golden rule",
    ]


@pytest.mark.parametrize(
    ("facts", "options", "names"),
    [
        (nvidia(state="no_driver", message="not found"), {}, ["driver"]),
        (nvidia(state="mismatch", mismatch=True, reboot_needed=True, reason="differ"), {}, ["driver", "driver parts"]),
        (nvidia(reboot_needed=True, reason="another on disk"), {}, ["driver parts"]),
        (nvidia(state="lost", lost=[{"pci": "0000:03:00.0", "xids": [79]}]), {}, ["driver", "cards"]),
        ({**FACTS, "gpus": [{**CARD, "retired_pages": {"count": 9, "failure": True}}]}, {}, ["cards"]),
        ({**FACTS, "gpus": [{**CARD, "retired_pages": {"count": 9, "failure": None}}]}, {}, []),
        ({**FACTS, "gpus": [{**CARD, "uuid": None}]}, {}, ["cards"]),
        (FACTS, {"loose": ["nvidia-driver-580-open"]}, ["driver packages"]),
        (FACTS, {"loose": None}, []),
        (FACTS, {"cdi_specs": []}, ["GPUs in containers"]),
        ({**FACTS, "runtime": {"toolkit": "1", "docker": {"runtimes": ["nvidia"]}}}, {"cdi_specs": []}, []),
        ({**FACTS, "runtime": {"toolkit": None, "docker": {"runtimes": []}}}, {"cdi_specs": []}, []),
    ],
)
def test_what_is_off(facts: dict[str, Any], options: dict[str, Any], names: list[str]) -> None:
    assert failed(judge(facts, **options)) == names


def test_a_lost_card_is_counted_and_named() -> None:
    checks = judge(nvidia(state="lost", lost=[{"pci": "0000:03:00.0", "xids": [79]}]))
    (cards,) = [check for check in checks if check.name == "cards"]
    assert (cards.wanted, cards.seen) == ("3 of 3 usable", "2 of 3 usable (0000:03:00.0: fell off the bus)")


def test_a_host_without_cards_has_its_golden_rule() -> None:
    checks = judge({**FACTS, "gpus": [], "nvidia": {**NVIDIA, "state": "absent"}})
    assert [(check.name, check.ok) for check in checks] == [("golden rule", True)]


def test_the_golden_rule_warns_and_fails_only_where_strict() -> None:
    facts = {**FACTS, "cuda": ["/usr/local/cuda-12"]}
    assert [check.ok for check in judge(facts) if check.name == "golden rule"] == [None]
    assert failed(judge(facts)) == []
    assert failed(judge(facts, strict=True)) == ["golden rule"]


GOOD = {"checks": [asdict(Check("driver", "head", True, "ok", "ok"))]}
SLURM = {"report": {"checks": [asdict(Check("job", "node1", False, "ran", "down", "look"))]}}


def test_one_document_of_hosts_and_slurm() -> None:
    found = proof(["head"], {"head": {"_host": GOOD}}, "_host", SLURM)
    assert [check["name"] for check in found["report"]["checks"]] == ["driver", "job"]
    assert found["report"]["ok"] is False and found["table"][1].startswith("head")
    assert proof(["head"], {"head": {"_host": GOOD}}, "_host", {"skipped": True})["report"]["ok"] is True


@pytest.mark.parametrize(
    "result", [{"unreachable": True, "msg": "Failed to connect\nby ssh"}, {"failed": True, "msg": "boom"}, {}]
)
def test_a_host_without_checks_is_a_failure(result: dict[str, Any]) -> None:
    found = proof(["head", "node1"], {"head": {"_host": GOOD}, "node1": {"_host": result}}, "_host", {"skipped": True})
    (failure,) = found["report"]["failures"]
    assert (failure["node"], failure["name"]) == ("node1", "answer") and failure["mend"]
    assert "\n" not in failure["seen"]


def test_a_controller_that_does_not_answer_is_a_failure() -> None:
    silent = {"failed": True, "msg": "slurmctld does not answer"}
    (failure,) = proof(["head"], {"head": {"_host": GOOD}}, "_host", silent)["report"]["failures"]
    assert (failure["node"], failure["seen"]) == ("slurm", "slurmctld does not answer")


@pytest.mark.parametrize(
    ("skypilot", "seen"),
    [
        ({"status": "healthy", "version": "0.14.1", "version_on_disk": "0.14.1"}, ""),
        ({"status": "healthy", "version": "0.13.0", "version_on_disk": "0.14.1"}, "runs 0.13.0, 0.14.1 is installed"),
        ({"status": "needs_auth", "version": "0.14.1", "version_on_disk": "0.14.1"}, "needs_auth"),
        ({"error": "no answer: refused"}, "no answer: refused"),
    ],
)
def test_a_skypilot_server_is_healthy_and_of_the_version_that_is_installed(skypilot: dict[str, str], seen: str) -> None:
    (check,) = [one for one in judge(FACTS, skypilot=skypilot) if one.name == "SkyPilot"]
    assert check.ok is (not seen) and seen in check.seen


def test_nodes_of_k3s_are_ready() -> None:
    assert failed(judge(FACTS, kubernetes={"desk": "Ready", "node1": "Ready"})) == []
    checks = judge(FACTS, kubernetes={"desk": "Ready", "node1": "Kubelet stopped posting node status."})
    assert failed(checks) == ["k3s"] and "node1: Kubelet stopped" in "".join(check.seen for check in checks)
    assert failed(judge(FACTS, kubernetes={"": "no answer"})) == ["k3s"]
