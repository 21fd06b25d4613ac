# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests of ``labrack gitops`` apply, in the place of a lab: each host is a file with the setting as its text.

As a program, ``python -m tests.unit.gitops_world FOLDER CONFIG`` does one run through the command's entry point.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import rank
from labrack import lease, planning
from labrack.lab import Lab
from labrack.planning import Applied, HostResult, Item, NodePlan, Plan, TaskPlan

CANARY = "canary-7Tq2Lx9vRw4Z"


#: Variables of an inventory that doctor refuses.
BROKEN = {"lab_users": "[{name: ada, uid: 2001}, {name: ben, uid: 2001}]"}


@dataclass
class World:
    """The hosts, as files of ``folder``, and how they behave."""

    folder: Path
    down: set[str] = field(default_factory=set)
    failing: Mapping[str, str] = field(default_factory=dict)
    #: Who else holds the lease, in the words of the module.
    taken: str = ""
    #: Seconds that each host takes.
    pause: float = 0.0
    applies: int = 0

    def inventory(self, setting: str, **more: Any) -> dict[str, str]:
        """Return the files of an inventory that wants a setting."""
        variables = "".join(f"{name}: {value}\n" for name, value in more.items())
        return {
            "inventory/hosts.yml": "lab_head: {hosts: {head: {}}}\nlab_workers: {hosts: {node1: {}}}\n",
            "inventory/group_vars/all.yml": f'setting: "{setting}"\nlab_orchestrator: none\n{variables}',
        }

    def texts(self) -> dict[str, str]:
        """Return what each host is set to."""
        return {path.name: path.read_text() for path in sorted(self.folder.iterdir())}

    @contextmanager
    def held(self, lab: Lab, *_: Any, **__: Any) -> Iterator[lease.Reached]:
        """Stand in for :func:`labrack.lease.held`."""
        if self.taken:
            raise lease.Taken(self.taken)
        up = tuple(host for host in lab.members if host not in self.down)
        yield lease.Reached(up, {host: "no route" for host in lab.members if host in self.down})

    def _off(self, lab: Lab, host: str) -> list[Item]:
        wanted, file = str(lab.hosts[host]["setting"]), self.folder / host
        if file.exists() and file.read_text() == wanted:
            return []
        return [Item(f"file {file}", "content changed", str(lab.hosts[host].get("disruption", "none")))]

    def make(self, lab: Lab, *_: Any, consent: str, **__: Any) -> Plan:
        """Stand in for :func:`labrack.planning.make`."""
        nodes = {}
        for host in lab.members:
            if host in self.down:
                nodes[host] = NodePlan((), "no route", True)
                continue
            off = self._off(lab, host)
            now = tuple(item for item in off if rank(item.disruption) <= rank(consent))
            later = tuple(item for item in off if item not in now)
            nodes[host] = NodePlan((TaskPlan("thing", "Set it", now, later),) if off else ())
        return Plan("", (), "", (), (), (), consent, "", "", nodes)

    def apply(self, lab: Lab, *_: Any, consent: str, limit: Sequence[str] = (), **__: Any) -> Applied:
        """Stand in for :func:`labrack.planning.apply`."""
        self.applies += 1
        hosts = {}
        for host in lab.members:
            if f"!{host}" in limit:
                continue
            time.sleep(self.pause)
            if host in self.failing:
                hosts[host] = HostResult(failed="Set it", cause=self.failing[host])
                continue
            off = self._off(lab, host)
            later = tuple(item for item in off if rank(item.disruption) > rank(consent))
            if off and not later:
                (self.folder / host).write_text(str(lab.hosts[host]["setting"]))
            hosts[host] = HostResult(len(off) - len(later), tuple(off), later)
        return Applied((), hosts)


def main() -> None:
    """Do one run."""
    folder, config = sys.argv[1:]
    world = World(Path(folder), pause=0.2)
    planning.make = world.make  # type: ignore[assignment]
    planning.apply = world.apply  # type: ignore[assignment]
    lease.held = world.held  # type: ignore[assignment]
    from labrack.cli import app

    sys.argv = ["labrack", "gitops", "run", "--config", config]
    app()


if __name__ == "__main__":
    main()
