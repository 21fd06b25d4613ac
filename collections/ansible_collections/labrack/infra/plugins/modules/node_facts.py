# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module ``labrack.infra.node_facts``: all that the other modules and the planners know of a node, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_facts
short_description: Read what a node is
version_added: 0.1.0
description:
  - Reads a node in one call and returns it as the fact C(labrack_node).
  - Processors and memory are counted as C(slurmd -C) counts them.
  - A broken GPU or driver is a fact and never a failure.
options:
  packages:
    description: Names of packages; those that are installed are returned with their version.
    type: list
    elements: str
    default: []
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
- name: Read the node
  labrack.infra.node_facts:
    packages: [slurmd, slurmctld]

- name: Show its GPUs
  ansible.builtin.debug:
    msg: "{{ labrack_node.gpus | map(attribute='slurm_type') | list }}"
"""

RETURN = r"""
ansible_facts:
  description: The facts that are set.
  returned: always
  type: dict
  contains:
    labrack_node:
      description: The node.
      returned: always
      type: dict
      contains:
        hostname:
          description: The kernel's host name.
          returned: always
          type: str
        machine_id:
          description: The content of C(/etc/machine-id).
          returned: always
          type: str
        os:
          description: C(id), C(version), C(codename), C(family) (C(debian), C(redhat) or the id) and C(pretty) name.
          returned: always
          type: dict
        kernel:
          description: The kernel's release.
          returned: always
          type: str
        arch:
          description: The machine's architecture, as C(uname -m) prints it.
          returned: always
          type: str
        container:
          description: Whether the node is a container.
          returned: always
          type: bool
        virt:
          description: The kind of container or virtual machine, C(none) on bare metal.
          returned: always
          type: str
        python:
          description: The version of the Python that runs modules.
          returned: always
          type: str
        connection_user:
          description: The user who logged in, behind sudo.
          returned: always
          type: str
        cpu:
          description: C(cpus), C(boards), C(sockets), C(cores_per_socket) and C(threads_per_core).
          returned: always
          type: dict
        memory_mib:
          description: The machine's memory in MiB, rounded down.
          returned: always
          type: int
        addresses:
          description: C(default_ipv4), the address towards the default route or null, and C(ipv4), all but loopback.
          returned: always
          type: dict
        gpus:
          description:
            - The cards, each with C(index), C(minor), C(uuid), C(name), C(memory_mib), C(pci), C(device), C(mig) and
              C(slurm_type), the type to name in Slurm.
            - C(memory_mib) is null where the card shares the machine's memory, C(slurm_type) where no driver names it.
          returned: always
          type: list
          elements: dict
        nvidia:
          description:
            - C(state) of the driver, its C(driver) version or null, and the C(message) of C(nvidia-smi).
            - The states are C(ok), C(absent) (no card), C(no_driver), C(mismatch) (library and kernel module differ),
              C(lost) (a card is unreachable; the others are listed) and C(error).
          returned: always
          type: dict
        cgroup:
          description:
            - C(mode) (C(v2), C(v1), C(hybrid) or C(none)), the C(controllers) that a daemon can use, whether all are
              C(writable), and the C(reason) for less, empty where nothing is missing.
          returned: always
          type: dict
        users:
          description: All users, each with C(name), C(uid) and C(gid).
          returned: always
          type: list
          elements: dict
        groups:
          description: All groups, each with C(name) and C(gid).
          returned: always
          type: list
          elements: dict
        packages:
          description: The versions of the installed ones of O(packages), by name.
          returned: always
          type: dict
        time_sync:
          description: The running time C(service) or null, and whether it is C(synchronized), null where unknown.
          returned: always
          type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils.node_observe import observe_node


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"packages": {"type": "list", "elements": "str", "default": []}},
        supports_check_mode=True,
    )
    module.exit_json(changed=False, ansible_facts={"labrack_node": observe_node(module.params["packages"])})


if __name__ == "__main__":
    main()
