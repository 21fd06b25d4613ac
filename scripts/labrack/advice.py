# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which tier and which orchestrator suit a team, with the reasons. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ansible_collections.labrack.infra.plugins.module_utils.lab_check import BUILT

#: What a team may want, with the words to ask for it.
NEEDS: Mapping[str, str] = {
    "fair_share": "fair shares and limits for everybody; we know Slurm",
    "cloud": "the same job here and in a cloud",
    "services": "services that stay up beside the jobs, such as a model server",
    "growth": "more than ten machines before long",
    "no_kubernetes": "jobs in containers, but no Kubernetes to look after",
}
#: Orchestrators by the value of ``lab_orchestrator``, as people call them.
NAMES: Mapping[str, str] = {
    "slurm": "Slurm",
    "skypilot": "SkyPilot on k3s",
    "skypilot_ssh": "SkyPilot over ssh",
    "rke2": "SkyPilot on Kubernetes (RKE2, Rancher)",
    "dstack": "dstack",
    "none": "none: the machines are made ready, and people share them by hand",
}
#: Machines up to which a closet stays easy to look after without Kubernetes.
CLOSET = 5


@dataclass(frozen=True)
class Advice:
    """What suits a team.

    ``orchestrator`` is a key of :data:`NAMES`, ``written`` the one that the inventory gets today: the same where
    labrack builds it, else the nearest that it builds. ``reasons`` are sentences, for the tier first.
    """

    tier: str
    orchestrator: str
    written: str
    reasons: tuple[str, ...]


def advise(machines: int, needs: Collection[str] = ()) -> Advice:
    """Return what suits a team with so many machines and these :data:`NEEDS`."""
    if machines == 1:
        tier, tier_reason = "under_desk", "One machine is a shared workstation: nothing has to span machines."
    else:
        tier = "closet"
        tier_reason = f"{machines} machines are a cluster: people should see a pool of GPUs, not a list of addresses."
        if machines > CLOSET:
            tier_reason += f" A closet is meant for 2 to {CLOSET}; more of them want more care."
    orchestrator, reasons = _one_machine(needs) if machines == 1 else _several(needs, machines)
    reasons = [tier_reason, *reasons]
    written = orchestrator
    if orchestrator not in BUILT:
        written = "slurm"
        reasons.append(
            f"labrack does not build {NAMES[orchestrator]} yet. What it builds today is Slurm, which queues jobs and "
            "shares the GPUs fairly, and SkyPilot on k3s; with none it makes the machines ready and no more."
        )
    return Advice(tier, orchestrator, written, tuple(reasons))


def _one_machine(needs: Collection[str]) -> tuple[str, list[str]]:
    reasons = [
        "SkyPilot on k3s queues jobs when the GPUs are taken, and the same command runs a job in a cloud later.",
    ]
    if "fair_share" in needs:
        reasons.append("Slurm works on one machine too, but costs more to look after than it brings there.")
    if "no_kubernetes" in needs:
        reasons.append("Its k3s needs little care; labrack looks after it.")
    return "skypilot", reasons


def _several(needs: Collection[str], machines: int) -> tuple[str, list[str]]:
    if "fair_share" in needs:
        reasons = ["Slurm is the one with strict fair shares, and the most stable on machines that are always on."]
        if "cloud" in needs:
            reasons.append("It does not start machines in a cloud; SkyPilot would.")
        if {"services", "growth"} & set(needs):
            reasons.append("For services that stay up, or far more machines, Kubernetes would be the better ground.")
        return "slurm", reasons
    if {"services", "growth"} & set(needs):
        why = "services beside the jobs" if "services" in needs else "more than ten machines"
        reasons = [f"For {why}, Kubernetes is the ground to build on; RKE2 with Rancher takes the pain out of it."]
        if "no_kubernetes" in needs:
            reasons.append("Without Kubernetes, dstack would be the nearest.")
        return "rke2", reasons
    if "no_kubernetes" in needs:
        return "dstack", ["dstack queues containers over Docker and ssh, without Kubernetes underneath."]
    reasons = [
        "SkyPilot runs jobs here and in a cloud through one interface; over ssh it needs nothing more on the machines.",
        "It has no fair shares, and copes less well with machines that fail: good to begin with, Kubernetes in the "
        "long run.",
    ]
    if machines > CLOSET:
        reasons.append(f"Beyond {CLOSET} machines, Kubernetes or Slurm hold up better.")
    return "skypilot_ssh", reasons
