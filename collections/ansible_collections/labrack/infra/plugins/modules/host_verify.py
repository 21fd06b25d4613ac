# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prove a host: driver, cards, held packages, containers' way to the GPUs, golden rule."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_verify
short_description: Prove that a host is what the lab needs
version_added: 0.1.0
description:
  - Reads the node as M(labrack.infra.node_facts) does and judges it. The driver works, its parts agree, all cards are
    usable, its packages are held, containers can get GPUs where NVIDIA's toolkit is.
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

import re
from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import driver_apt
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import is_family
from ansible_collections.labrack.infra.plugins.module_utils.host_proof import judge_host
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text
from ansible_collections.labrack.infra.plugins.module_utils.node_observe import observe_node

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
    checks = judge_host(params["name"], facts, params["orchestrator"], params["strict"], loose, cdi_specs())
    module.exit_json(changed=False, checks=[asdict(check) for check in checks])


if __name__ == "__main__":
    main()
