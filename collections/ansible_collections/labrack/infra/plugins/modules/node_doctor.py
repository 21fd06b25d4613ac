# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module ``labrack.infra.node_doctor``: what ``labrack doctor`` wants to know of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_doctor
short_description: Read what could go wrong on a node
version_added: 0.1.0
description:
  - Reads a node for C(labrack doctor), in two calls. The first looks at the node itself, the second at its ways to
    other nodes.
  - Nothing is changed. Where a daemon of the lab is not there yet, the first call leaves a process that listens on its
    port, so that others can try the way; a third call ends it, and without that it ends by itself.
options:
  stage:
    description:
      - V(look) reads the node and begins to listen, V(ways) tries the ways to O(peers), V(close) ends O(listener).
    type: str
    choices: [look, ways, close]
    default: look
  sent:
    description: The controller's time at the call, in seconds since 1970, which is given back.
    type: float
    default: 0
  paths:
    description: Paths of directories that the lab shares, or where each node has its scratch.
    type: list
    elements: str
    default: []
  services:
    description: What other nodes reach on this one.
    type: list
    elements: dict
    default: []
    suboptions:
      service:
        description: Its name.
        type: str
        required: true
      port:
        description: Its TCP port. That of C(ssh) is the one of this connection.
        type: int
        required: true
      unit:
        description: The name of its systemd service.
        type: str
        default: ""
      program:
        description: The name of its program.
        type: str
        default: ""
  seconds:
    description: How long a process listens at most where a service isn't there yet.
    type: float
    default: 60
  peers:
    description: The nodes to which the ways are tried.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name in the inventory.
        type: str
        required: true
      address:
        description: Its address in the lab.
        type: str
        required: true
      ports:
        description: Its ports, each with C(service) and C(port).
        type: list
        elements: dict
        default: []
  listener:
    description: What V(look) returned as C(listener).
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
- name: Read the node
  labrack.infra.node_doctor:
    sent: "{{ now().timestamp() }}"
    services:
      - {service: slurmd, port: 6818, unit: slurmd, program: slurmd}
  register: _doctor

- name: Try the way to the head
  labrack.infra.node_doctor:
    stage: ways
    peers:
      - {name: head, address: 10.0.0.1, ports: [{service: slurmctld, port: 6817}]}

- name: End what listens for a while
  labrack.infra.node_doctor:
    stage: close
    listener: "{{ _doctor.doctor.listener }}"
"""

RETURN = r"""
doctor:
  description:
    - For V(look) the C(facts) of M(labrack.infra.node_facts), with C(cpu_watts), the power limit of the processors
      where the kernel tells; C(started) and C(ended), the node's time in seconds since 1970, and C(sent); C(space) of
      file systems; C(sources) of packages with their C(problem), null where there is no apt; C(services), and the
      C(listener).
    - For V(ways) the C(ways), C(started) and C(sent).
  returned: always
  type: dict
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import doctor_observe
from ansible_collections.labrack.infra.plugins.module_utils.node_observe import observe_node

ARGUMENT_SPEC: dict[str, Any] = {
    "stage": {"type": "str", "choices": ["look", "ways", "close"], "default": "look"},
    "sent": {"type": "float", "default": 0},
    "paths": {"type": "list", "elements": "str", "default": []},
    "services": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "service": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "unit": {"type": "str", "default": ""},
            "program": {"type": "str", "default": ""},
        },
    },
    "seconds": {"type": "float", "default": 60},
    "peers": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "ports": {"type": "list", "elements": "dict", "default": []},
        },
    },
    "listener": {"type": "dict", "default": {}},
}


def look(params: dict[str, Any]) -> dict[str, Any]:
    """Return what the node is, and begin to listen where a service is not there yet."""
    services = doctor_observe.services(params["services"])
    # the port of sshd is that of this connection, so somebody listens there
    missing = [one["port"] for one in services if not one["addresses"] and one["service"] != "ssh"]
    return {
        "facts": {**observe_node(paths=params["paths"]), "cpu_watts": doctor_observe.cpu_watts()},
        "space": doctor_observe.space(),
        "sources": doctor_observe.sources(),
        "services": services,
        # last, so that it listens as long as it was asked to
        "listener": doctor_observe.listen(missing, params["seconds"]),
    }


def main() -> None:
    """Run the module."""
    started = time.time()
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    found: dict[str, Any] = {}
    if params["stage"] == "look":
        found = look(params)
    elif params["stage"] == "ways":
        found = {"ways": doctor_observe.ways(params["peers"])}
    else:
        doctor_observe.close(params["listener"])
    module.exit_json(changed=False, doctor={**found, "sent": params["sent"], "started": started, "ended": time.time()})


if __name__ == "__main__":
    main()
