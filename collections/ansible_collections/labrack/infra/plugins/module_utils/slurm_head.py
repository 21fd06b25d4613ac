# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What makes a host Slurm's controller. Pure planner, no Ansible import.

A restart of slurmctld ends no job: slurmstepd holds the jobs, and slurmctld reads them back from its state directory
(slurmctld(8)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, rank
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import ConfPlan, render
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service

CONFIG_FILES = tuple(f"/etc/slurm/{name}" for name in ("slurm.conf", "gres.conf", "cgroup.conf"))
#: What was begun and not finished, "restart" or "reconfigure", so that the next run takes up an interrupted one.
JOURNAL = "/var/lib/labrack/slurmctld.todo"


@dataclass(frozen=True)
class HeadState:
    """What was read on the host: the configuration files by path, slurmctld, and the journal's word."""

    files: Mapping[str, FileState | None]
    service: ServiceState
    journal: str = ""

    @property
    def texts(self) -> dict[str, str]:
        """The configuration files' texts by their base name."""
        return {path.rpartition("/")[2]: state.text for path, state in self.files.items() if state is not None}


def plan_head(state: HeadState, settled: ConfPlan, packages: Sequence[str] = ()) -> list[Change]:
    """Plan the files and what slurmctld has to do to take them: nothing, reconfigure, or a restart.

    ``packages`` are those that the role installs.
    """
    managed.note_packages(packages)
    disruption = max((difference.disruption for difference in settled.done), key=rank, default="none")
    # the class of a drained change is spent by the drain: what is left to do is a restart
    disruption = "restart" if rank(disruption) > rank("restart") else disruption
    changes: list[Change] = []
    for path, text in zip(CONFIG_FILES, render(settled.conf).values()):
        changes += plan_file(path, state.files.get(path), FileState(text), disruption)
    why = "; ".join(f"{d.subject}: {d.summary}" for d in settled.done)
    if disruption == "restart" or state.journal == "restart":
        return changes + plan_service("slurmctld", state.service, why or "an earlier run was interrupted")
    changes += plan_service("slurmctld", state.service)
    if state.service.active and (disruption == "reload" or state.journal == "reconfigure"):
        summary = f"reconfigured: {why or 'an earlier run was interrupted'}"
        changes.append(Change("service slurmctld", summary, "reload", step=("reconfigure", "slurmctld")))
    return changes
