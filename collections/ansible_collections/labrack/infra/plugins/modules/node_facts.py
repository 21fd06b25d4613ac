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
  - What needs root to be read (kernel log, running containers) is left out for other users.
options:
  packages:
    description: Names of packages; those that are installed are returned with their version.
    type: list
    elements: str
    default: []
  paths:
    description: Paths of directories that the lab shares, or where each node has its scratch.
    type: list
    elements: str
    default: []
  kubeconfigs:
    description: Paths of kubeconfigs whose contexts are wanted.
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
        dgx_os:
          description: The version of DGX OS, null on any other system.
          returned: always
          type: str
        model:
          description: The machine's product name, empty where the firmware does not tell.
          returned: always
          type: str
        kernel:
          description: The kernel's release.
          returned: always
          type: str
        kernels:
          description:
            - The installed kernels, oldest first, each with C(release), C(running), C(headers) (those to build modules
              against are there) and C(nvidia), the version of its C(nvidia) module or null.
          returned: always
          type: list
          elements: dict
        secure_boot:
          description:
            - C(state) is C(enabled), C(disabled), C(unsupported) (no UEFI) or null where it can't be told, as in a
              container.
            - C(mok) says that a key with which modules can be signed lies on the disk, not that the firmware trusts it,
              which C(mokutil --test-key) tells.
          returned: always
          type: dict
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
        connection_home:
          description: That user's home, empty where the name service does not know the user.
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
        iommu:
          description: Whether an IOMMU is in use.
          returned: always
          type: bool
        nics:
          description:
            - The network cards, each with C(name), C(speed_mbit) (null without a link, and where the driver does not
              tell), C(mtu), C(driver) and C(up). Bridges and other virtual ones are left out.
          returned: always
          type: list
          elements: dict
        rdma:
          description: The names of the InfiniBand and RoCE devices.
          returned: always
          type: list
          elements: str
        disks:
          description:
            - The mounted local file systems, each with C(mount), C(device), C(fstype), C(size_mib), C(free_mib) and
              C(quotas), those of C(user) and C(project) that it was mounted with.
            - File systems of a server are never asked, as the answer could take for ever.
          returned: always
          type: list
          elements: dict
        fstab:
          description:
            - The file systems of C(/etc/fstab), each with C(mount), C(device), C(fstype) and whether it is C(mounted).
          returned: always
          type: list
          elements: dict
        places:
          description:
            - What is at each of O(paths), by path.
            - C(kind) is C(directory), C(missing), C(other) (a file or a link) or C(unknown) (below a server's mount).
              C(fstype) and C(device) are those of what is mounted on it, empty for nothing. C(point) is where the file
              system is mounted that it lies on, and C(remote) whether that is a server's.
            - C(entries) are the first few names in it, none where something is mounted on it.
          returned: always
          type: dict
        nfs:
          description: Whether the kernel can mount NFSv4; null without O(paths).
          returned: always
          type: bool
        gpus:
          description:
            - The cards, each with C(index), C(minor), C(uuid), C(name), C(memory_mib), C(pci), C(device), C(mig) and
              C(slurm_type), the type to name in Slurm.
            - C(memory_mib) is null where the card shares the machine's memory, C(slurm_type) where no driver names it.
            - C(pci_id) is like C(10de:2230), C(generation) one of C(kepler), C(maxwell), C(pascal), C(volta),
              C(turing), C(ampere), C(ada), C(hopper) and C(blackwell); null for a card that is on no PCI bus, and
              C(generation) for one that is newer than this table.
            - C(power_limit_w), C(power_default_w), C(power_max_w), C(power_draw_w), C(temperature_c) and
              C(temperature_slowdown_c) are null where the card does not tell. Of a card that only tells how far it is
              from slowing down, C(temperature_slowdown_c) is that distance above C(temperature_c).
            - C(throttle) is what slows the card down now, of C(sw_power_cap) (its power limit), C(hw_slowdown),
              C(hw_thermal_slowdown), C(hw_power_brake_slowdown) (its power supply) and C(sw_thermal_slowdown).
            - C(ecc) is null where there is none, else C(enabled) and the errors since the driver was loaded,
              C(corrected) and C(uncorrected), null while it is off.
            - C(retired_pages) is null where the card does not tell, else C(count) of the pages (until Turing) or rows
              (since Ampere) taken out of use, C(pending) when a reset would take more, and C(failure) when a row found
              no spare one; C(failure) is null for pages.
            - C(mig_instances) have C(name) (C(3g.20gb)), C(uuid) and C(memory_mib).
            - C(xids) are the last 100 errors of the card in the kernel log, in order.
            - C(processes) have C(pid), C(name) (the program alone, without arguments) and C(memory_mib).
          returned: always
          type: list
          elements: dict
        nvidia:
          description:
            - C(state) of the driver, its C(driver) version or null, and the C(message) of C(nvidia-smi).
            - The states are C(ok), C(absent) (no card), C(no_driver), C(mismatch) (library and kernel module differ),
              C(lost) (a card is unreachable; the others are listed) and C(error).
            - C(module) and C(flavour) (C(open), C(proprietary)) of the loaded kernel module, C(library) the version of
              the library that programs load, C(module_on_disk) and C(flavour_on_disk) of the running kernel's module;
              null for what is not there.
            - C(packages) of the driver, with versions.
            - C(mismatch) when loaded module and library differ; C(reboot_needed) when the loaded module is not the one
              that was installed, or nouveau is in its place; C(reason) says why, and is empty otherwise.
            - C(lost) are the unreachable cards, each with C(pci) and C(xids).
            - C(nvswitch) when there is one on the PCI bus, which those for Blackwell are not. C(nvlink) when the cards
              are joined through NVSwitches, false for a single card, null where it can't be told.
            - C(fabric_manager) has the C(version) of its package or null, and whether it is C(active).
            - C(nouveau) when that driver is loaded; C(persistence) when the driver stays loaded for all cards.
          returned: always
          type: dict
        runtime:
          description:
            - C(docker) has C(version), C(package) (C(docker-ce), C(docker.io) or C(snap)), C(active), C(live_restore)
              and C(runtimes) as C(daemon.json) has them, and C(containers), the number of running ones.
            - C(live_restore) is null without Docker and where that file is no JSON; C(containers) is null where Docker
              was never started.
            - C(containerd), C(toolkit) (NVIDIA's) and C(podman) are versions of packages, or null.
          returned: always
          type: dict
        conflicts:
          description:
            - What else hands out GPUs or has a Docker of its own, each with C(what) and C(why) (orchestrators that run
              or are enabled, snap's Docker). The lab's own orchestrator is listed as well.
          returned: always
          type: list
          elements: dict
        system_python:
          description:
            - The Python of the distribution, with C(interpreter) and C(version), null without one,
              C(externally_managed) (its marker keeps installers out) and C(pip), the version of its packaged pip.
            - C(packages) are the names of the distributions in it that no package of the system brought.
            - C(others) are Pythons beside it in folders that all users share, each with C(path) and C(what)
              (C(conda), C(pyenv), C(python)). Homes and file systems of a server are never looked at.
          returned: always
          type: dict
        cuda:
          description: CUDA toolkits on the host, as folders under C(/usr/local) and names of packages.
          returned: always
          type: list
          elements: str
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
        subids:
          description:
            - The ranges of numbers for rootless containers, each with C(file) (C(/etc/subuid) or C(/etc/subgid)),
              C(owner), C(start) and C(count).
          returned: always
          type: list
          elements: dict
        listeners:
          description: The TCP ports on which somebody listens, as text, each with the name of a user who does.
          returned: always
          type: dict
        kubeconfigs:
          description:
            - The names of the contexts in each of O(kubeconfigs), null where there is no such file. One that can't be
              read is left out.
          returned: always
          type: dict
        launch_keys:
          description:
            - The public keys with which SkyPilot's server on this host reaches the jobs that it launches, as lists by
              user name. Empty without one, and for users who aren't root.
          returned: always
          type: dict
        processes:
          description: How many processes each user has, by UID as text, for UIDs from 1000 to 60000.
          returned: always
          type: dict
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
        argument_spec={
            "packages": {"type": "list", "elements": "str", "default": []},
            "paths": {"type": "list", "elements": "str", "default": []},
            "kubeconfigs": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    node = observe_node(params["packages"], paths=params["paths"], kubeconfigs=params["kubeconfigs"])
    module.exit_json(changed=False, ansible_facts={"labrack_node": node})


if __name__ == "__main__":
    main()
