# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prove a host: driver, cards, held packages, containers' way to the GPUs, k3s, SkyPilot, golden rule."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_verify
short_description: Prove that a host is what the lab needs
version_added: 0.1.0
description:
  - Reads the node as M(labrack.infra.node_facts) does and judges it. The driver works, its parts agree, all cards are
    usable, its packages are held, containers can get GPUs where NVIDIA's toolkit is. k3s' nodes are ready and the
    SkyPilot server is healthy, on the host that has them.
  - What breaks the golden rule (driver, container runtime and orchestrator, nothing else) is a warning.
  - Nothing is changed.
author:
  - labrack contributors (@labrack)
options:
  name:
    description: The node's name in the report.
    type: str
    required: true
  orchestrator:
    description: The lab's own orchestrator, whose daemons break nothing.
    type: str
    default: none
  held:
    description: Whether the driver's packages shall be held. Looked at on Debian and Ubuntu.
    type: bool
    default: true
  strict:
    description: Whether what breaks the golden rule is a failure.
    type: bool
    default: false
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
"""

EXAMPLES = r"""
- name: Prove the host
  labrack.infra.host_verify:
    name: desk
"""

RETURN = r"""
checks:
  description:
    - What was looked at, each with C(name), C(node), C(ok) (null for a warning), C(wanted), C(seen) and C(mend).
  type: list
  elements: dict
  returned: always
"""

import json
import re
import subprocess
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import driver_apt, k3s_plan
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import is_family
from ansible_collections.labrack.infra.plugins.module_utils.host_proof import judge_host
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text
from ansible_collections.labrack.infra.plugins.module_utils.node_observe import observe_node
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_config import PORT
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_units import SERVER_UNIT

#: Where container engines look for CDI specs (CNCF container-device-interface, "Specification files").
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")


def loose_packages() -> list[str]:
    """Return the driver's packages that dpkg does not hold."""
    found = driver_apt.observe()
    return sorted(name for name, one in found.items() if is_family(name) and one.state == "installed" and not one.held)


def cdi_specs() -> list[str]:
    """Return the CDI specs that name NVIDIA's GPUs."""
    files = [
        path for folder in CDI_FOLDERS for path in sorted(Path(folder).glob("*")) if path.suffix in (".yaml", ".json")
    ]
    return [str(path) for path in files if re.search(r"nvidia\.com/gpu\b", read_text(path) or "")]


def skypilot_health() -> dict[str, Any] | None:
    """Return what the SkyPilot server of this host says of itself, ``error`` where it says nothing; None without one.

    GET /api/health (sky/server/server.py) needs no login, and root may reach the port.
    """
    if not Path(SERVER_UNIT).exists():
        return None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/health", timeout=10) as answer:
            health: dict[str, Any] = json.load(answer)
            return health
    except (OSError, ValueError) as error:
        return {"error": f"no answer: {error}"}


def kubernetes_nodes() -> dict[str, str] | None:
    """Return k3s' nodes by name, "Ready" or why not; why it says nothing by ""; None where it is no server."""
    if not Path(k3s_plan.unit_path("k3s")).exists():
        return None
    command = [k3s_plan.BINARY, "kubectl", "get", "nodes", "--output=json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"": str(error)}
    if done.returncode != 0:
        return {"": done.stderr.strip()[-200:] or "no answer"}
    found = {}
    for node in json.loads(done.stdout)["items"]:
        ready = [one for one in node["status"].get("conditions", ()) if one["type"] == "Ready"]
        well = bool(ready) and ready[0]["status"] == "True"
        found[node["metadata"]["name"]] = "Ready" if well else (ready[0].get("message") if ready else "") or "NotReady"
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "orchestrator": {"type": "str", "default": "none"},
            "held": {"type": "bool", "default": True},
            "strict": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    facts = observe_node()
    loose = loose_packages() if params["held"] and facts["os"]["family"] == "debian" else None
    services = (skypilot_health(), kubernetes_nodes())
    checks = judge_host(params["name"], facts, params["orchestrator"], params["strict"], loose, cdi_specs(), *services)
    module.exit_json(changed=False, checks=[asdict(check) for check in checks])


if __name__ == "__main__":
    main()
