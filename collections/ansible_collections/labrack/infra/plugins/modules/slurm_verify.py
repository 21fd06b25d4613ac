# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prove a Slurm cluster by a job on each worker."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_verify
short_description: Prove a Slurm cluster by a job on each worker
version_added: 0.1.0
description:
  - Run it on the controller. It runs a small job on each worker, and one with a GPU anywhere, and compares what the
    job can use with what it asked for.
  - A worker that is busy is skipped, not failed. Nothing is changed.
author:
  - labrack contributors (@labrack)
options:
  workers:
    description: Names of the workers.
    type: list
    elements: str
    required: true
  patience:
    description: Seconds that a job may wait for a free place.
    type: int
    default: 20
attributes:
  check_mode:
    description: Runs the same jobs, since it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  platform:
    description: The systems that the module runs on.
    support: full
    platforms: linux
"""

EXAMPLES = r"""
- name: Prove the cluster
  labrack.infra.slurm_verify:
    workers: [node1, node2]
"""

RETURN = r"""
report:
  description: The document, with C(ok), C(checks) and C(failures); each failure has a C(mend).
  type: dict
  returned: always
table:
  description: The same for a reader, a line each.
  type: list
  elements: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, read_text, run
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import parse
from ansible_collections.labrack.infra.plugins.module_utils.slurm_nodes import parse_nodes
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


def srun(asked: Asked, patience: int, node: str | None) -> Done:
    """Run the probe as a job, on a node or anywhere."""
    argv = ["srun", "--ntasks=1", f"--cpus-per-task={asked.cpus}", f"--mem={asked.memory_mib}M", "--time=2"]
    argv += [f"--immediate={patience}", "--job-name=labrack-verify", "--chdir=/"]
    argv += [f"--gres=gpu:{asked.gpus}"] if asked.gpus else []
    argv += [f"--nodelist={node}"] if node else []
    return run([*argv, "python3", "-c", PROBE], timeout=patience + 60.0)


def prove(where: str, asked: Asked, patience: int, constrained: list[str], node: str | None) -> list[Check]:
    """Run a job and return the checks of it; ``where`` is what the reader calls the place."""
    done = srun(asked, patience, node)
    started, seen = judge_start(where, done.rc, done.out, done.err)
    return [started] + (judge_job(where, asked, seen, constrained) if seen else [])


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "workers": {"type": "list", "elements": "str", "required": True},
            "patience": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    patience = module.params["patience"]
    shown = run(["scontrol", "--oneliner", "show", "node"])
    if shown.rc:
        module.fail_json(msg=f"slurmctld does not answer: {shown.err.strip()}; see journalctl -u slurmctld")
    files = {name: read_text(f"/etc/slurm/{name}") or "" for name in ("slurm.conf", "gres.conf", "cgroup.conf")}
    conf = parse(files)
    constrained = [what for what in ("Cores", "RAMSpace", "Devices") if conf.cgroup.get(f"Constrain{what}") == "yes"]
    nodes = parse_nodes(shown.out)
    checks: list[Check] = []
    for name in module.params["workers"]:
        state = judge_node(name, nodes.get(name))
        checks.append(state)
        if state.ok:
            asked = Asked(cpus=1, memory_mib=128, gpus=1 if conf.gres.get(name) else 0)
            checks += prove(name, asked, patience, constrained, name)
    if conf.gres:
        checks += prove("any", Asked(cpus=1, memory_mib=128, gpus=1), patience, constrained, None)
    module.exit_json(changed=False, report=document(checks), table=table(checks))


if __name__ == "__main__":
    main()
