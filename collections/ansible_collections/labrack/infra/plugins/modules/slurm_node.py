# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge a host as Slurm worker or login node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_node
short_description: Converge a host as Slurm worker or login node
version_added: 0.1.0
description:
  - A worker gets slurmd, which fetches its configuration from the controller, the job scripts, the health check, and
    the rule that a login needs a job on it.
  - A login node without slurmd gets slurm.conf.
  - slurmd is restarted only when its own options change. No job ends by that.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  worker:
    description: Whether the host runs jobs.
    type: bool
    default: true
  conf_server:
    description: Where slurmd fetches its configuration, as C(host:port); empty where it reads /etc/slurm.
    type: str
    default: ""
  node_name:
    description: The node's name in Slurm where it is not the host's own name.
    type: str
    default: ""
  devices:
    description: Device files of the GPUs that slurmd waits for at boot.
    type: list
    elements: str
    default: []
  scripts:
    description: Texts of the scripts V(prolog), V(epilog) and V(health) by name.
    type: dict
    default: {}
  restrict_ssh:
    description: Whether a login needs a job on the host.
    type: bool
    default: true
  exempt:
    description: Users who may log in without a job, beside root.
    type: list
    elements: str
    default: []
  config:
    description: The text of the controller's slurm.conf. A login node without slurmd gets it as a file.
    type: str
  refetch:
    description: Whether slurmd has to be restarted to fetch another configuration, as before Slurm 23.11.
    type: bool
    default: false
  packages:
    description: Packages that the caller has seen to be there, so that C(labrack drift) misses them later.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Converge a worker
  labrack.infra.slurm_node:
    conf_server: head:6817
    devices: [/dev/nvidia0, /dev/nvidia1]
    exempt: [admin]
"""

RETURN = r"""
changes:
  description: What was or would be changed.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption).
  type: list
  elements: dict
  returned: always
"""

import os
import socket
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import slurm_node
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import observe_file, write_file
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import SCRIPT_DIRECTORY
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    act,
    daemon_reload,
    observe_services,
    wait_for,
)

FILES = [
    slurm_node.SLURM_CONF,
    slurm_node.FETCHED_CONF,
    slurm_node.ENVIRONMENT,
    slurm_node.DROP_IN,
    slurm_node.ACCESS,
    slurm_node.PAM_SSHD,
    slurm_node.PAM_SESSION,
    *[f"{SCRIPT_DIRECTORY}/{name}" for name in slurm_node.SCRIPTS],
]


def observe() -> slurm_node.NodeState:
    """Read the host."""
    written = {path: os.stat(path).st_mtime for path in FILES if os.path.exists(path)}
    return slurm_node.NodeState({path: observe_file(path) for path in FILES}, observe_services(["slurmd"]), written)


def await_controller(server: str, seconds: float = 30.0) -> None:
    """Wait until ``host:port`` takes connections; ServiceError after ``seconds``. slurmd itself would wait longer."""
    if not server:
        return
    host, _colon, port = server.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"slurmctld on {server} can't be reached: {error}; mend the controller or the network first"
                ) from None
            time.sleep(1)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "worker": {"type": "bool", "default": True},
            "conf_server": {"type": "str", "default": ""},
            "node_name": {"type": "str", "default": ""},
            "devices": {"type": "list", "elements": "str", "default": []},
            "scripts": {"type": "dict", "default": {}},
            "restrict_ssh": {"type": "bool", "default": True},
            "exempt": {"type": "list", "elements": "str", "default": []},
            "config": {"type": "str"},
            "refetch": {"type": "bool", "default": False},
            "packages": {"type": "list", "elements": "str", "default": []},
            "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
        },
        supports_check_mode=True,
    )
    wish = slurm_node.NodeWish(
        worker=module.params["worker"],
        conf_server=module.params["conf_server"],
        node_name=module.params["node_name"],
        devices=tuple(module.params["devices"]),
        scripts=module.params["scripts"],
        restrict_ssh=module.params["restrict_ssh"],
        exempt=tuple(module.params["exempt"]),
        config=module.params["config"],
        refetch=module.params["refetch"],
        packages=tuple(module.params["packages"]),
    )

    def apply(changes: list[Change]) -> None:
        files = slurm_node.wanted_files(observe(), wish)
        for change in changes:
            verb, name = change.step
            if verb == "write":
                write_file(name, files[name])
                if name == slurm_node.DROP_IN:
                    daemon_reload()
            else:
                await_controller(wish.conf_server)
                act(verb, name)
                if verb == "restart":
                    wait_for(["ss", "--no-header", "--listening", "--numeric", "--tcp"], ":6818", name)

    try:
        converge(module, observe, lambda state: slurm_node.plan_node(state, wish), apply, ledger="slurm_node")
    except ServiceError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
