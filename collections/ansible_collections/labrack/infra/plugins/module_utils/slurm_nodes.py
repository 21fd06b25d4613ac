# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Slurm's nodes as scontrol shows them, and the plan to drain or resume some. Pure, no Ansible import."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ansible_collections.labrack.infra.plugins.module_utils.change import Change

#: What a drain by labrack carries in its reason; only such a drain is ever taken back.
TAG = "labrack:"
#: What one carries that an admin asked for; no run takes it back, only an admin does.
ADMIN_TAG = "labrack-admin:"


@dataclass(frozen=True)
class SlurmNode:
    """A node: its state words ("IDLE", "DRAIN"), its reason, and how many CPUs jobs hold on it."""

    name: str
    state: frozenset[str]
    reason: str
    cpus_held: int

    @property
    def drained(self) -> bool:
        """Whether no new job can start on it."""
        return "DRAIN" in self.state

    @property
    def empty(self) -> bool:
        """Whether no job holds anything on it."""
        return self.cpus_held == 0 and not self.state & {"ALLOCATED", "MIXED", "COMPLETING"}


def parse_nodes(text: str) -> dict[str, SlurmNode]:
    """Read ``scontrol --oneliner show node`` (scontrol(1)); the reason ends before its "[user@time]"."""
    nodes = {}
    for line in text.splitlines():
        name = re.search(r"NodeName=(\S+)", line)
        state = re.search(r"\bState=(\S+)", line)
        if not name or not state:
            continue
        held = re.search(r"\bCPUAlloc=(\d+)", line)
        reason = re.search(r"\bReason=(.*?)(?: \[[^\[\]\s]+@[^\[\]]+\].*)?$", line.strip())
        nodes[name.group(1)] = SlurmNode(
            name.group(1),
            frozenset(re.findall(r"[A-Z_]+", state.group(1)) + (["NOT_RESPONDING"] if "*" in state.group(1) else [])),
            reason.group(1) if reason else "",
            int(held.group(1)) if held else 0,
        )
    return nodes


def plan_drain(nodes: Mapping[str, SlurmNode], wanted: Iterable[str], reason: str, tag: str = TAG) -> list[Change]:
    """Plan that the wanted nodes take no new jobs; one that somebody else drained stays as it is.

    An admin's drain also takes over one of a run that was left, so that no later run takes it back.
    """
    changes = []
    for name in wanted:
        node = nodes.get(name)
        if node is not None and (not node.drained or (tag == ADMIN_TAG and node.reason.startswith(TAG))):
            step = ("update", f"nodename={name}", "state=drain", f"reason={tag} {reason}")
            changes.append(Change(f"node {name}", f"drained: {tag} {reason}", step=step))
    return changes


def plan_resume(nodes: Mapping[str, SlurmNode], wanted: Iterable[str], tags: tuple[str, ...] = (TAG,)) -> list[Change]:
    """Plan that the wanted nodes take jobs again, as far as their drain carries one of the tags."""
    changes = []
    for name in wanted:
        node = nodes.get(name)
        if node is not None and node.drained and node.reason.startswith(tags):
            step = ("update", f"nodename={name}", "state=resume")
            changes.append(Change(f"node {name}", f"resumed after: {node.reason}", step=step))
    return changes
