# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judging a host by its facts: driver, cards, held packages, Docker's way to the GPUs, what runs the jobs, the golden
rule. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import golden_rule
from ansible_collections.labrack.infra.plugins.module_utils.slurm_proof import Check

#: The playbook that mends a host, as it is called in the mends.
RUN = "run the lab's playbook (closet.yml or under_desk.yml)"


def judge_host(
    node: str,
    facts: Mapping[str, Any],
    orchestrator: str,
    strict: bool,
    loose: Sequence[str] | None = None,
    cdi_specs: Sequence[str] = (),
    skypilot: Mapping[str, Any] | None = None,
    kubernetes: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of a host; ``facts`` are those of ``node_facts``.

    ``loose`` are packages of the driver that are not held, None where that isn't looked at; ``cdi_specs`` the files
    that name NVIDIA's devices for containers. What breaks the golden rule is a warning, and a failure where ``strict``.
    ``skypilot`` is the answer of its server's ``/api/health``, or ``error`` with why there is none; ``kubernetes`` what
    k3s says of its nodes by name, "Ready" or why not, or why it says nothing by "". Each is None where there is none.
    """
    checks = _judge_driver(node, facts, loose)
    if facts["runtime"]["toolkit"] and facts["gpus"]:
        checks.append(_judge_containers(node, facts, cdi_specs))
    if kubernetes is not None:
        ill = [f"{name}: {why}" if name else why for name, why in kubernetes.items() if why != "Ready"]
        seen = "; ".join(ill) or f"{len(kubernetes)} Ready"
        mend = "journalctl -u k3s on this host, -u k3s-agent on the one that is named"
        checks.append(_check("k3s", node, "all nodes Ready", seen, not ill, mend))
    if skypilot is not None:
        checks.append(_judge_skypilot(node, skypilot))
    found = golden_rule.findings(facts, orchestrator)
    if not found:
        checks.append(Check("golden rule", node, True, "kept", "kept"))
    for one in found:
        checks.append(
            Check("golden rule", node, False if strict else None, f"no {one['name']}", one["seen"], one["mend"])
        )
    return checks


def _judge_driver(node: str, facts: Mapping[str, Any], loose: Sequence[str] | None) -> list[Check]:
    nvidia = facts["nvidia"]
    if nvidia["state"] == "absent":
        return []
    log = "journalctl -k --grep 'NVRM|Xid'"
    checks = [
        _check(
            "driver",
            node,
            "ok",
            nvidia["state"] + (f": {nvidia['message']}" if nvidia.get("message") else ""),
            nvidia["state"] == "ok",
            f"{RUN}; what the kernel says: {log}",
        ),
        _check(
            "driver parts",
            node,
            "module and library agree",
            nvidia.get("reason") or "module and library agree",
            not nvidia.get("mismatch") and not nvidia.get("reboot_needed"),
            f"restart the machine when it has no job, or {RUN} with -e lab_max_disruption=reboot",
        ),
    ]
    if nvidia["state"] in ("ok", "lost"):
        checks.append(_judge_cards(node, facts, log))
    if loose is not None and nvidia.get("packages"):
        seen = f"not held: {golden_rule.some(loose)}" if loose else "held"
        mend = f"{RUN}, whose role nvidia_driver holds them"
        checks.append(_check("driver packages", node, "held", seen, not loose, mend))
    return checks


def _judge_cards(node: str, facts: Mapping[str, Any], log: str) -> Check:
    lost = [str(card["pci"]) for card in facts["nvidia"].get("lost") or []]
    faults = {str(card["pci"] or card["index"]): why for card in facts["gpus"] for why in _faults(card)}
    total = len(facts["gpus"]) + len(lost)
    words = [f"{pci}: fell off the bus" for pci in lost] + [f"{card}: {why}" for card, why in faults.items()]
    seen = f"{total - len(words)} of {total} usable" + (f" ({'; '.join(words)})" if words else "")
    mend = f"see {log}; a restart brings most cards back, one that stays away needs a look at power and seating"
    return _check("cards", node, f"{total} of {total} usable", seen, not words, mend)


def _faults(card: Mapping[str, Any]) -> list[str]:
    """Why a card that answers can't be used: no UUID, or a row of memory that found no spare one."""
    faults = [] if card.get("uuid") else ["does not answer"]
    if (card.get("retired_pages") or {}).get("failure"):
        faults.append("memory has no spare rows left")
    return faults


def _judge_containers(node: str, facts: Mapping[str, Any], cdi_specs: Sequence[str]) -> Check:
    """With CDI the way is a spec, without it NVIDIA's runtime in Docker's configuration."""
    ways = [f"CDI spec {path}" for path in cdi_specs]
    ways += ["runtime nvidia"] if "nvidia" in facts["runtime"]["docker"]["runtimes"] else []
    wanted = "a CDI spec or the runtime nvidia"
    mend = "systemctl restart nvidia-cdi-refresh.service, or run under_desk.yml"
    return _check("GPUs in containers", node, wanted, ", ".join(ways) or "neither", bool(ways), mend)


def _judge_skypilot(node: str, health: Mapping[str, Any]) -> Check:
    """A server that has another version on its disk than it runs was not restarted after an upgrade."""
    runs, lies = health.get("version"), health.get("version_on_disk")
    seen = str(health.get("error") or health.get("status"))
    stale = runs != lies
    if stale:
        seen += f", runs {runs}, {lies} is installed"
    ok = health.get("status") == "healthy" and not stale
    return _check("SkyPilot", node, "healthy", seen, ok, f"journalctl -u skypilot; {RUN} with --tags skypilot")


def _check(name: str, node: str, wanted: str, seen: str, ok: bool, mend: str) -> Check:
    return Check(name, node, ok, wanted, seen, "" if ok else mend)
