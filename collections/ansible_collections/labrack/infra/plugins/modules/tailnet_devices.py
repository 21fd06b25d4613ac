# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Take a tailnet away from the devices of people who leave."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tailnet_devices
short_description: Let the devices of people expire
version_added: 0.1.0
description:
  - Lets the keys of all devices expire that belong to these people, so that each must log in again to come back. With
    headscale their pre-auth keys expire too, by which a device would come back.
  - A machine with a tag belongs to nobody and is left alone.
  - Run it on the controller for Tailscale's service, and on the control server for headscale.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
  - labrack.infra.tailscale_api
options:
  server:
    description:
      - The control server.
    type: str
    choices: [tailscale, headscale]
    default: tailscale
  logins:
    description:
      - The people's logins, as in the policy.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Ada left
  labrack.infra.tailnet_devices:
    logins: [ada@lab.example]
    oauth_client_id: "{{ tailnet_policy_oauth_client_id }}"
    oauth_client_secret: "{{ tailnet_policy_oauth_client_secret }}"
  delegate_to: localhost
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Changes that O(max_disruption) does not cover.
  returned: success
  type: list
  elements: dict
devices:
  description: Names of the people's devices.
  returned: success
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import headscale, tailnet_devices
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.headscale import HeadscaleError
from ansible_collections.labrack.infra.plugins.module_utils.tailnet_devices import Device
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_api import OPTIONS, Api, ApiError

ARGUMENT_SPEC: dict[str, Any] = {
    "server": {"type": "str", "choices": ["tailscale", "headscale"], "default": "tailscale"},
    "logins": {"type": "list", "elements": "str", "required": True},
    **OPTIONS,
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    logins = module.params["logins"]
    try:
        api = Api.of(module.params, "devices:core") if module.params["server"] == "tailscale" else None

        def look() -> tuple[list[Device], list[dict[str, Any]]]:
            if api is not None:
                return tailnet_devices.of_people(tailnet_devices.of_api(api.devices()), logins), []
            return tailnet_devices.of_people(tailnet_devices.of_headscale(headscale.nodes()), logins), headscale.keys()

        def plan(seen: tuple[list[Device], list[dict[str, Any]]]) -> list[Change]:
            devices, keys = seen
            return [*tailnet_devices.plan_keys(keys, logins), *tailnet_devices.plan_expiry(devices)]

        def apply(changes: list[Change]) -> None:
            expire = api.expire if api is not None else headscale.expire
            for change in changes:
                verb, number = change.step
                (headscale.expire_key if verb == "key" else expire)(number)

        converge(
            module,
            look,
            plan,
            apply,
            lambda seen: {"devices": sorted(device.name for device in seen[0])},
        )
    except (ApiError, HeadscaleError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
