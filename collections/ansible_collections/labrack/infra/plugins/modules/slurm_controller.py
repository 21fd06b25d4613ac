# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge a host as Slurm controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_controller
short_description: Converge a host as Slurm controller
version_added: 0.1.0
description:
  - Renders slurm.conf, gres.conf and cgroup.conf from the workers' facts, and applies each difference with the least
    that it takes, from nothing over C(scontrol reconfigure) and a restart of slurmctld to a drain of the nodes.
  - A difference that could end a job is made only when its nodes are named in O(drained); until then the running value
    stays and RV(pending) and RV(drain) tell.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  cluster_name:
    description: Slurm's ClusterName.
    type: str
    required: true
  controller:
    description: The controller's name.
    type: str
    required: true
  controller_address:
    description: The controller's address in the lab's network.
    type: str
    default: ""
  database:
    description: The name of the host that runs slurmdbd; none without accounting.
    type: str
  workers:
    description: The workers, as the filter P(labrack.infra.slurm_workers#filter) returns them.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The worker's name.
        type: str
        required: true
      address:
        description: Its address in the lab's network.
        type: str
        default: ""
      facts:
        description: Its C(labrack_node) facts; none when it was not reached, then its running definition stays.
        type: dict
  partitions:
    description: The partitions, as in the role's variable C(slurm_partitions).
    type: list
    elements: dict
    default: []
  memory_reserve_mib:
    description: Memory that jobs never get, in MiB; 5 % by default, at least 1024 and at most 16384.
    type: int
  health_interval:
    description: Seconds between two health checks of a worker.
    type: int
    default: 60
  extra:
    description: Settings of slurm.conf that are added or overridden.
    type: dict
    default: {}
  version:
    description: Slurm's version where it is not installed yet; by default the one of the distribution.
    type: str
  packages:
    description: Packages that the caller has seen to be there, so that C(labrack drift) misses them later.
    type: list
    elements: str
    default: []
  drained:
    description: Workers that have been emptied, so that changes that would end their jobs are made now.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Converge the controller
  labrack.infra.slurm_controller:
    cluster_name: closet
    controller: head
    database: head
    workers: "{{ groups['slurm_worker'] | labrack.infra.slurm_workers(hostvars) }}"
    partitions:
      - {name: gpu, default: true, default_time: "08:00:00", max_time: 7-00:00:00}
"""

RETURN = r"""
changes:
  description: What was or would be changed.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption) or for a drain.
  type: list
  elements: dict
  returned: always
drain:
  description:
    - The workers to empty before the pending changes that O(max_disruption) consents to can be made; in check mode,
      which predicts with them empty, those that would be.
  type: list
  elements: str
  returned: always
config:
  description: The texts of slurm.conf, gres.conf and cgroup.conf as they are now (or would be, in check mode).
  type: dict
  returned: always
version:
  description: Slurm's version on this host, or the expected one.
  type: str
  returned: always
weaker:
  description: Why jobs are held less tightly than Slurm can, a line per reason.
  type: list
  elements: str
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import slurm_conf, slurm_head
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge, rank
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    FileState,
    observe_file,
    read_text,
    remove_file,
    run,
    write_file,
)
from ansible_collections.labrack.infra.plugins.module_utils.slurm_head import HeadState
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    act,
    observe_services,
    wait_for,
)


class Head:
    """The host: reads it and changes it; what to change is :func:`slurm_head.plan_head`'s to say."""

    def __init__(self, params: dict[str, Any], check_mode: bool) -> None:
        self.params = params
        # what would be emptied with this consent counts as empty in a prediction
        self.all_empty = check_mode and rank(params["max_disruption"]) >= rank("drain")
        self.version = installed_version() or params["version"] or distribution_version()
        self.reached = [worker for worker in params["workers"] if worker["facts"]]
        self.cgroups = slurm_conf.plan_cgroups(self.version, [worker["facts"] for worker in self.reached])

    def observe(self) -> HeadState:
        """Read files, service and journal."""
        files = {path: observe_file(path) for path in slurm_head.CONFIG_FILES}
        journal = (read_text(slurm_head.JOURNAL) or "").strip()
        return HeadState(files, observe_services(["slurmctld"])["slurmctld"], journal)

    def conf_plan(self, state: HeadState) -> slurm_conf.ConfPlan:
        """Plan the configuration; a worker that this run has not reached keeps its running definition."""
        params = self.params
        running = slurm_conf.parse(state.texts)
        known = {
            worker["name"]: (running.nodes[worker["name"]], running.gres.get(worker["name"], ()))
            for worker in params["workers"]
            if not worker["facts"] and worker["name"] in running.nodes
        }
        wish = slurm_conf.build(
            self.version,
            [slurm_conf.worker_from_facts(w["name"], w["address"], w["facts"]) for w in self.reached],
            self.cgroups if self.reached else running_cgroups(running),
            cluster_name=params["cluster_name"],
            controller=params["controller"],
            controller_address=params["controller_address"],
            database=params["database"],
            partitions=params["partitions"],
            memory_reserve_mib=params["memory_reserve_mib"],
            health_interval=params["health_interval"],
            known=known,
            extra=params["extra"],
        )
        drained = tuple(running.nodes) if self.all_empty else params["drained"]
        return slurm_conf.plan(running, wish, self.version, params["max_disruption"], drained)

    def plan(self, state: HeadState) -> list[Change]:
        """Return what is off."""
        return slurm_head.plan_head(state, self.conf_plan(state), self.params["packages"])

    def extra(self, state: HeadState) -> dict[str, Any]:
        """Return what the role and the reader want to know beside the changes."""
        settled = self.conf_plan(state)
        limit = rank(self.params["max_disruption"])
        held_back = [d for d in settled.pending if rank(d.disruption) > limit]
        ready = [d for d in settled.pending if d not in held_back]
        if self.all_empty:
            ready += [d for d in settled.done if rank(d.disruption) >= rank("drain")]
        return {
            "pending": [{"subject": d.subject, "summary": d.summary, "disruption": d.disruption} for d in held_back],
            "drain": sorted({node for d in ready for node in d.nodes}),
            "config": slurm_conf.render(settled.conf),
            "version": self.version,
            "weaker": list(self.cgroups.reasons),
        }

    def apply(self, changes: list[Change]) -> None:
        """Make the changes; put the old configuration back when slurmctld does not take the new one."""
        before = self.observe()
        texts = slurm_conf.render(self.conf_plan(before).conf)
        todo = next((change.step[0] for change in changes if change.step[0] in ("restart", "reconfigure")), "")
        if todo:
            write_file(slurm_head.JOURNAL, FileState(todo))
        for change in changes:
            verb, name = change.step
            if verb == "write":
                write_file(name, FileState(texts[name.rpartition("/")[2]]))
            elif verb == "enable":
                act(verb, name)
            else:
                self._take(verb, before)
        remove_file(slurm_head.JOURNAL)

    def _take(self, verb: str, before: HeadState) -> None:
        try:
            if self.params["database"]:
                announce_qos(sorted({str(p["qos"]) for p in self.params["partitions"] if p.get("qos")}))
            if verb == "reconfigure":
                reconfigure()
            else:
                act("restart", "slurmctld")
                if slurm_conf.reconfigures(self.version):
                    # a restart alone leaves the workers with the configuration that they have fetched
                    wait_for(["scontrol", "ping"], "is UP", "slurmctld")
                    reconfigure()
            wait_for(["scontrol", "ping"], "is UP", "slurmctld")
        except ServiceError as error:
            if not before.service.active:
                raise
            for path, state in before.files.items():
                if state is not None:
                    write_file(path, state)
            remove_file(slurm_head.JOURNAL)
            act("restart", "slurmctld")
            raise ServiceError(f"{error}; the previous configuration is back in place and slurmctld runs") from None


def running_cgroups(running: slurm_conf.SlurmConf) -> slurm_conf.CgroupPlan:
    """Return the cgroup settings that are running, for a run that reached no worker."""
    return slurm_conf.CgroupPlan(
        running.cgroup.get("CgroupPlugin"),
        running.settings.get("ProctrackType", "proctrack/cgroup"),
        running.settings.get("TaskPlugin", "task/cgroup"),
        tuple(what for what in ("Cores", "RAMSpace", "Devices") if running.cgroup.get(f"Constrain{what}") == "yes"),
        jobacct=running.settings.get("JobAcctGatherType", "jobacct_gather/linux"),
    )


def installed_version() -> str | None:
    """Return the installed package's version of Slurm, None when there is none."""
    done = run(["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", "slurmctld"])
    status, _space, version = done.out.partition(" ")
    return version if done.rc == 0 and status == "installed" else None


def distribution_version() -> str:
    """Return the version that this host's distribution has; SlurmConfError for one that is not known."""
    release = dict(
        line.split("=", 1) for line in (read_text("/etc/os-release") or "").replace('"', "").splitlines() if "=" in line
    )
    key = (release.get("ID", ""), release.get("VERSION_ID", ""))
    if key not in slurm_conf.DISTRIBUTION_VERSIONS:
        known = ", ".join(" ".join(pair) for pair in slurm_conf.DISTRIBUTION_VERSIONS)
        raise slurm_conf.SlurmConfError(f"{' '.join(key)}: labrack knows Slurm's packages of {known} only")
    return slurm_conf.DISTRIBUTION_VERSIONS[key]


def announce_qos(names: list[str]) -> None:
    """Make bare QOS that partitions name: slurmctld refuses to start with one that the database doesn't know.

    Their limits follow by the module slurm_accounting, which needs a slurmctld that has registered its GPUs.
    """
    if not names:
        return
    show = ["sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=name"]
    words = run(show).err
    if "Unable to process configuration file" in words:
        raise ServiceError(f"slurm.conf is refused: {words.strip()}")
    wait_for(show, "", "slurmdbd")
    missing = set(names) - set(run(show).out.split())
    if missing:
        done = run(["sacctmgr", "--immediate", "add", "qos", ",".join(sorted(missing))])
        if done.rc:
            raise ServiceError(f"sacctmgr add qos {', '.join(sorted(missing))}: {done.err.strip() or done.out.strip()}")


def reconfigure() -> None:
    """Make slurmctld and all slurmd read their configuration again; ServiceError when slurmctld refuses."""
    done = run(["scontrol", "reconfigure"], timeout=90)
    if done.rc:
        raise ServiceError(f"scontrol reconfigure: {done.err.strip() or done.out.strip()}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "cluster_name": {"type": "str", "required": True},
            "controller": {"type": "str", "required": True},
            "controller_address": {"type": "str", "default": ""},
            "database": {"type": "str"},
            "workers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "default": ""},
                    "facts": {"type": "dict"},
                },
            },
            "partitions": {"type": "list", "elements": "dict", "default": []},
            "memory_reserve_mib": {"type": "int"},
            "health_interval": {"type": "int", "default": 60},
            "extra": {"type": "dict", "default": {}},
            "version": {"type": "str"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "drained": {"type": "list", "elements": "str", "default": []},
            "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
        },
        supports_check_mode=True,
    )
    try:
        head = Head(module.params, module.check_mode)
        for reason in head.cgroups.reasons:
            module.warn(reason)
        converge(module, head.observe, head.plan, head.apply, head.extra, ledger="slurm_controller")
    except (slurm_conf.SlurmConfError, ServiceError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
