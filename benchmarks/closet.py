# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a closet costs: ``python -m benchmarks.closet [--galaxy-role DIRECTORY]``, from the root of a checkout.

Starts a head and two workers, and measures the first run, the second and check mode: seconds, CPU seconds and module
tasks of each host; then the rendering of Slurm's configuration for large clusters. With a copy of
https://github.com/galaxyproject/ansible-slurm it runs that role on the same nodes, in turns with labrack: only runs
that change nothing are compared, galaxyproject.slurm's without a database.

Prints Markdown, and writes the figures as JSON.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import slurm_conf
from benchmarks import common
from labrack.testnode import node
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import A100, RTX_4090, RTX_A6000
from tests.nodes.harness import INVENTORIES, ROOT, Closet, Run, bring_up

LAB = "labrack-bench"
HOSTS = ("head", "node1", "node2")
#: What galaxyproject.slurm is told, to describe the same cluster beside labrack's own.
GALAXY_PLAY = """
- name: Prepare
  hosts: all
  gather_facts: false
  tasks:
    - name: Make a directory for its configuration, so that labrack's stays
      ansible.builtin.file: {path: /etc/slurm-galaxy, state: directory, mode: "0755"}
  tags: prepare
- name: Slurm
  hosts: all
  gather_facts: true
  roles: [galaxyproject.slurm]
  vars:
    slurm_config_dir: /etc/slurm-galaxy
    slurm_roles: "{{ ['controller'] if inventory_hostname == 'head' else ['exec'] }}"
    slurm_munge_key: munge.key
    slurm_config: {SlurmctldHost: head, GresTypes: gpu, SelectType: select/cons_tres}
    slurm_nodes:
      - {name: node1, CPUs: 2, Gres: "gpu:2", State: UNKNOWN}
      - {name: node2, CPUs: 2, Gres: "gpu:4", State: UNKNOWN}
    slurm_gres_config:
      - {NodeName: node1, Name: gpu, File: "/dev/nvidia[0-1]"}
      - {NodeName: node2, Name: gpu, File: "/dev/nvidia[0-3]"}
    slurm_partitions: [{name: gpu, Default: true, Nodes: ALL, State: UP}]
"""


def measured(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Call ``run``; return its result, with the wall and the CPU seconds of the programs that it started."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = run()
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result, {"wall_s": round(wall, 2), "controller_cpu_s": round(cpu, 2)}


def node_cpu(closet: Closet) -> float:
    """CPU seconds that all nodes have used so far."""
    v1, v2 = "/sys/fs/cgroup/cpuacct/cpuacct.usage", "/sys/fs/cgroup/cpu.stat"
    command = f"cat {v1} 2>/dev/null || awk '/usage_usec/ {{print $2 * 1000}}' {v2}"
    return sum(int(closet.root(one.name, command)) for one in closet.lab.nodes) / 1e9


def costs(closet: Closet, *arguments: str, playbook: str = "labrack.infra.closet") -> dict[str, Any]:
    """Run a playbook; return its seconds, and the module tasks and changes of each host."""
    run: Run
    used = node_cpu(closet)
    run, seconds = measured(lambda: closet.play(playbook, *arguments))
    hosts = [one.name for one in closet.lab.nodes]
    tasks = {host: sum(task.ending != "skipped" for task in run.modules(host)) for host in hosts}
    seconds["nodes_cpu_s"] = round(node_cpu(closet) - used, 2)
    return {**seconds, "module_tasks": tasks, "changed": dict(run.changed)}


def quiet(closet: Closet, playbook: str, *arguments: str, **environment: str) -> dict[str, float]:
    """Run a playbook that must change nothing, as a user does; return its seconds."""
    sources = [word for source in closet.inventory for word in ("-i", str(source))]
    command = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, *sources, *arguments]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **environment}
    used = node_cpu(closet)
    done, seconds = measured(lambda: subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True))
    if done.returncode != 0 or done.stdout.count("changed=0 ") != len(HOSTS):
        raise SystemExit(f"{playbook} failed or changed something:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return {**seconds, "nodes_cpu_s": round(node_cpu(closet) - used, 2)}


def compare(closet: Closet, role: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Run labrack and galaxyproject.slurm in turns, both with nothing to do; return the seconds of each run."""
    with tempfile.TemporaryDirectory(prefix="labrack-bench-") as folder:
        (Path(folder) / "galaxyproject.slurm").symlink_to(role.resolve())
        playbook, key = Path(folder) / "galaxy.yml", Path(folder) / "munge.key"
        playbook.write_text(GALAXY_PLAY)
        key.touch(mode=0o600)
        command = ["docker", "exec", closet.lab.node("head").container, "cat", "/etc/munge/munge.key"]
        key.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
        # the role reads facts as variables of their own
        env = {"ANSIBLE_ROLES_PATH": folder, "ANSIBLE_INJECT_FACT_VARS": "true"}
        first = [str(Path(sys.executable).parent / "ansible-playbook"), str(playbook)]
        first += [word for source in closet.inventory for word in ("-i", str(source))]
        settings = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **env}
        done = subprocess.run(first, env=settings, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"galaxyproject.slurm failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        closet.play()
        result: dict[str, list[dict[str, float]]] = {"labrack": [], "galaxyproject.slurm": []}
        for _ in range(rounds):
            result["labrack"].append(quiet(closet, "labrack.infra.closet"))
            result["galaxyproject.slurm"].append(quiet(closet, str(playbook), "--skip-tags", "prepare", **env))
    return result


def rendering(workers: int) -> float:
    """Seconds to plan and render the configuration of that many workers, and to find that nothing differs."""
    facts = {
        "cpu": {"cpus": 64, "sockets": 2, "cores_per_socket": 16, "threads_per_core": 2},
        "memory_mib": 515000,
        "gpus": [{"slurm_type": "h100_80gb_hbm3", "device": f"/dev/nvidia{minor}"} for minor in range(8)],
        "cgroup": {"mode": "v2", "controllers": ["cpuset", "memory", "devices"]},
    }
    nodes = [{**facts, "hostname": f"node{number}"} for number in range(1, workers + 1)]
    started = time.monotonic()
    wish = slurm_conf.build(
        "24.11",
        [slurm_conf.worker_from_facts(str(one["hostname"]), "", one) for one in nodes],
        slurm_conf.plan_cgroups("24.11", nodes),
        cluster_name="large",
        controller="head",
        controller_address="10.0.0.1",
        database="head",
        partitions=[{"name": "gpu", "default": True, "default_time": "60", "max_time": "60"}],
    )
    texts = slurm_conf.render(slurm_conf.plan(slurm_conf.SlurmConf(), wish, "24.11").conf)
    settled = slurm_conf.plan(slurm_conf.parse(texts), wish, "24.11")
    if settled.done or settled.pending:
        raise SystemExit(f"{workers} workers: what was rendered reads as something else")
    return round(time.monotonic() - started, 3)


def markdown(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"{figures['machine']}", ""]
    lines += ["| run | seconds | CPU s, controller | CPU s, nodes | module tasks (head, worker, worker) | changed |"]
    lines += ["|---|---:|---:|---:|---|---|"]
    for name, cost in figures["runs"].items():
        tasks, changed = (", ".join(str(cost[key][host]) for host in HOSTS) for key in ("module_tasks", "changed"))
        values = f"{cost['wall_s']} | {cost['controller_cpu_s']} | {cost['nodes_cpu_s']} | {tasks} | {changed}"
        lines.append(f"| {name} | {values} |")
    lines += ["", "| workers | seconds to plan and render |", "|---:|---:|"]
    lines += [f"| {workers} | {seconds} |" for workers, seconds in figures["rendering_s"].items()]
    if "no_op" in figures:
        keys = ("wall_s", "controller_cpu_s", "nodes_cpu_s")
        lines += [
            "",
            "| nothing to do, in turns | seconds | CPU s, controller | CPU s, nodes |",
            "|---|---:|---:|---:|",
        ]
        for name, runs in figures["no_op"].items():
            middles = (f"{statistics.median(run[key] for run in runs):.1f}" for key in keys)
            lines.append(f"| {name}, median of {len(runs)} | {' | '.join(middles)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = common.parser("closet", __doc__, LAB)
    parser.add_argument("--galaxy-role", type=Path, help="directory with galaxyproject.slurm, to compare with")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each in the comparison")
    options = parser.parse_args()
    state = ROOT / ".cache/labs" / options.lab
    nodes = (
        NodeSpec("head", options.system),
        NodeSpec("node1", options.system, (A100, A100)),
        NodeSpec("node2", options.system, (RTX_4090, RTX_4090, RTX_A6000, RTX_A6000)),
    )
    figures: dict[str, Any] = {"machine": common.machine(options)}
    node.down(options.lab, state, print)
    try:
        closet = bring_up(options.lab, nodes, INVENTORIES / "closet", state)
        figures["runs"] = {
            "first": costs(closet),
            "second": costs(closet),
            "check": costs(closet, "--check", "--diff"),
        }
        figures["rendering_s"] = {workers: rendering(workers) for workers in (5, 50, 1000)}
        if options.galaxy_role:
            figures["no_op"] = compare(closet, options.galaxy_role, options.rounds)
    finally:
        node.down(options.lab, state, print)
    common.record(options, figures, markdown(figures))


if __name__ == "__main__":
    main()
