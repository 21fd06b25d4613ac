# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module ``labrack.infra.lab_status``: how a host is right now, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_status
short_description: Read how a host is right now
version_added: 0.1.0
description:
  - Reads cards, load, link, storage and what waits for a restart; on the controller also what Slurm says of nodes and
    queue, on the head also who is in the tailnet. What the host is tells M(labrack.infra.node_facts).
  - Nothing is changed, and what can't be read is a fact and never a failure.
options:
  host:
    description: The name of this host in the inventory.
    type: str
    required: true
  address:
    description: The host's address in the lab's network; empty for the one of its default route.
    type: str
    default: ""
  slurm:
    description: Whether to ask Slurm.
    type: bool
    default: false
  tailnet:
    description: Whether to tell of the machines in the tailnet that this host is in.
    type: bool
    default: false
  servers:
    description: The hosts that serve the directories, in order.
    type: list
    elements: str
    default: []
  directories:
    description: The lab's directories, C(lab_directories).
    type: list
    elements: dict
    default: []
  projects:
    description: Directories that groups share, C(lab_projects).
    type: list
    elements: dict
    default: []
  uids:
    description: The lab's user numbers by name; other names are the host's.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Only reads, in check mode as well.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  platform:
    description: The systems that the module runs on.
    support: full
    platforms: linux
author:
  - labrack contributors (@labrack)
"""

EXAMPLES = r"""
- name: Look at the host
  labrack.infra.lab_status:
    host: desk
"""

RETURN = r"""
status:
  description: How the host is.
  returned: success
  type: dict
  contains:
    host:
      description: The host's name in the inventory.
      returned: always
      type: str
    os:
      description: The system's name and version.
      returned: always
      type: str
    model:
      description: The machine's product name, empty where the firmware does not tell.
      returned: always
      type: str
    kernel:
      description: The running kernel's release.
      returned: always
      type: str
    cpu:
      description: C(sockets) and C(cores_per_socket).
      returned: always
      type: dict
    load:
      description: The load average of one minute, null where it can't be read, as the four below.
      returned: always
      type: float
    cpus:
      description: The number of processors.
      returned: always
      type: int
    memory_mib:
      description: The memory in MiB.
      returned: always
      type: int
    memory_free_mib:
      description: What of it programs can still get.
      returned: always
      type: int
    uptime_s:
      description: Seconds since the start.
      returned: always
      type: int
    link:
      description:
        - C(name), C(address), C(speed_mbit) and C(mtu) of the interface in the lab's network; null where no interface
          has the address.
      returned: always
      type: dict
    gpus:
      description:
        - The cards, each with C(index), C(name), C(type) (that in Slurm), C(mig), C(memory_mib), C(memory_used_mib),
          C(use_percent), C(temperature_c), C(temperature_slowdown_c), C(power_draw_w), C(power_limit_w) and
          C(processes), each with C(pid), C(name), C(memory_mib) and C(user). What the card does not tell is null.
      returned: always
      type: list
      elements: dict
    nvidia:
      description: C(state), C(driver) and C(message) as M(labrack.infra.node_facts) has them.
      returned: always
      type: dict
    reboot:
      description: Why the host waits for a restart, one reason each.
      returned: always
      type: list
      elements: str
    disks:
      description: The mounted local file systems, each with C(mount), C(size_mib) and C(free_mib).
      returned: always
      type: list
      elements: dict
    storage:
      description: What M(labrack.infra.storage_report) returns; null where it can't be read.
      returned: always
      type: dict
    tailnet:
      description:
        - The lab's machines in the tailnet, each with C(name), C(dns_name), C(address) and C(online); people's own
          devices are none.
      returned: always
      type: list
      elements: dict
    gitops:
      description: C(time), C(commit), C(result) and C(message) of GitOps' last run on this host; null without one.
      returned: always
      type: dict
    slurm:
      description:
        - What Slurm says, null where it isn't asked; C(error) is why it says nothing.
        - C(nodes) have C(name), C(state), C(reason), C(gpus) (C(type), C(used), C(total)) and C(cards), the numbers of
          the GPUs that jobs have.
        - C(jobs) have C(id), C(name), C(user), C(state), C(gpus), C(time), C(where) (nodes, or why it waits) and
          C(cards), the numbers of its GPUs by node.
      returned: always
      type: dict
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import slurm_view, status_observe, storage_observe

LISTS = {"type": "list", "elements": "dict", "default": []}
ARGUMENT_SPEC: dict[str, Any] = {
    "host": {"type": "str", "required": True},
    "address": {"type": "str", "default": ""},
    "slurm": {"type": "bool", "default": False},
    "tailnet": {"type": "bool", "default": False},
    "servers": {"type": "list", "elements": "str", "default": []},
    "directories": LISTS,
    "projects": LISTS,
    "uids": {"type": "dict", "default": {}},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    try:
        storage: dict[str, Any] | None = storage_observe.report(params)
    except OSError:
        # quotas are root's to read
        storage = None
    module.exit_json(
        changed=False,
        status={
            "host": params["host"],
            **status_observe.observe(params["address"], params["tailnet"]),
            "storage": storage,
            "slurm": asdict(slurm_view.read()) if params["slurm"] else None,
        },
    )


if __name__ == "__main__":
    main()
