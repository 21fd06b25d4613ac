# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Drain Slurm nodes and wait for their jobs, or resume those that labrack drained."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_drain
short_description: Drain Slurm nodes and wait for their jobs, or resume those that labrack drained
version_added: 0.1.0
description:
  - Run it on the controller.
  - A drain carries labrack's tag in its reason. Only a node with that tag is ever resumed; one that was drained by hand
    or by the health check stays drained.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  nodes:
    description: Names of nodes. A name that Slurm doesn't know counts as drained.
    type: list
    elements: str
    required: true
  state:
    description: V(drained) waits until no job is left on the nodes; V(resumed) lets them take jobs again.
    type: str
    choices: [drained, resumed]
    default: drained
  reason:
    description: Why, in a few words.
    type: str
    default: maintenance
  timeout:
    description:
      - Seconds to wait for the jobs to end. The nodes stay draining when it runs out.
      - With O(by_admin), V(0) waits for nothing, and the jobs that are left are no failure.
    type: int
    default: 3600
  by_admin:
    description:
      - Whether an admin asks, and no change of the node. The drain then has a tag of its own, so that no run takes
        it back. An admin resumes what a run left drained as well.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Empty a node
  labrack.infra.slurm_drain:
    nodes: [node2]
    reason: new driver
  delegate_to: head
"""

RETURN = r"""
drained:
  description: The nodes that this call drained, or that labrack had drained before.
  type: list
  elements: str
  returned: always
jobs:
  description: The jobs that are left on nodes that drain, in words, when nothing was waited for.
  type: list
  elements: str
  returned: always
nodes:
  description: Of each node that Slurm knows, whether it is C(drained) afterwards, and the C(reason).
  type: dict
  returned: always
changes:
  description: What was or would be changed.
  type: list
  elements: dict
  returned: always
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import run
from ansible_collections.labrack.infra.plugins.module_utils.slurm_nodes import (
    ADMIN_TAG,
    TAG,
    SlurmNode,
    parse_nodes,
    plan_drain,
    plan_resume,
)

#: How long a node that was just reconfigured may take to register; slurmd does it within a second or two.
REGISTRATION_S = 60


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "resumed"], "default": "drained"},
            "reason": {"type": "str", "default": "maintenance"},
            "timeout": {"type": "int", "default": 3600},
            "by_admin": {"type": "bool", "default": False},
            "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
        },
        supports_check_mode=True,
    )
    wanted = module.params["nodes"]
    draining = module.params["state"] == "drained"
    by_admin = module.params["by_admin"]

    def observe() -> dict[str, SlurmNode]:
        done = run(["scontrol", "--oneliner", "show", "node"])
        if done.rc and "No nodes" not in done.out + done.err:
            module.fail_json(msg=f"slurmctld does not answer: {done.err.strip()}; see journalctl -u slurmctld")
        return parse_nodes(done.out)

    def plan(nodes: dict[str, SlurmNode]) -> list[Change]:
        if draining:
            return plan_drain(nodes, wanted, module.params["reason"], ADMIN_TAG if by_admin else TAG)
        return plan_resume(nodes, wanted, (TAG, ADMIN_TAG) if by_admin else (TAG,))

    def apply(changes: list[Change]) -> None:
        deadline = time.monotonic() + REGISTRATION_S
        for change in changes:
            while (done := run(["scontrol", *change.step])).rc:
                words = done.err.strip() or done.out.strip()
                if "Invalid node state" not in words:
                    module.fail_json(msg=f"{change.subject}: {words}")
                # a node is not taken back before it has registered with the configuration that it now has
                if time.monotonic() > deadline:
                    module.fail_json(
                        msg=f"{change.subject}: {words}; it has not registered with its new configuration within "
                        f"{REGISTRATION_S} s. See journalctl -u slurmd on it, then run this again"
                    )
                time.sleep(1)
                if change not in plan(observe()):
                    break

    def extra(nodes: dict[str, SlurmNode]) -> dict[str, object]:
        left: list[str] = []
        if draining and by_admin and not module.params["timeout"]:
            busy = [name for name in wanted if name in nodes and not nodes[name].empty]
            left = jobs(busy) if busy else []
        elif draining and not module.check_mode:
            nodes = wait(nodes)
        tags = (TAG, ADMIN_TAG) if by_admin else (TAG,)
        return {
            "jobs": left,
            "drained": [name for name in wanted if name in nodes and nodes[name].reason.startswith(tags)],
            "nodes": {
                name: {"drained": nodes[name].drained, "reason": nodes[name].reason} for name in wanted if name in nodes
            },
        }

    def jobs(names: list[str]) -> list[str]:
        done = run(["squeue", "--noheader", f"--nodelist={','.join(names)}", "--format=%i of %u on %N ends %e"])
        return done.out.strip().splitlines()

    def wait(nodes: dict[str, SlurmNode]) -> dict[str, SlurmNode]:
        deadline = time.monotonic() + module.params["timeout"]
        while True:
            busy = [name for name in wanted if name in nodes and not nodes[name].empty]
            if not busy:
                return nodes
            if time.monotonic() > deadline:
                module.fail_json(
                    msg=f"{', '.join(busy)}: jobs still run after {module.params['timeout']} s; the nodes stay "
                    "draining, nothing else was changed. Run it again later, or give them back with "
                    f"scontrol update nodename={','.join(busy)} state=resume",
                    jobs=jobs(busy),
                )
            time.sleep(2)
            nodes = observe()

    converge(module, observe, plan, apply, extra)


if __name__ == "__main__":
    main()
