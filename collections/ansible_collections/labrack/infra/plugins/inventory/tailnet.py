# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The machines of a tailnet as an inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: tailnet
short_description: The machines of a tailnet, in groups by their tags
version_added: 0.1.0
description:
  - Takes the machines that have a tag from a tailnet, as this machine's C(tailscale status --json), Tailscale's API or
    headscale tell of them. People's own devices have no tag and are left out.
  - The inventory file's name ends in C(tailnet.yml) or C(tailnet.yaml).
  - Every host has C(tailnet_name), its MagicDNS name; C(tailnet_addresses), C(tailnet_ipv4), C(tailnet_ipv6);
    C(tailnet_tags); C(tailnet_id), C(tailnet_os), C(tailnet_user), C(tailnet_online), C(tailnet_expired),
    C(tailnet_last_seen), C(tailnet_routes). C(ansible_host) is its IPv4 address in the tailnet unless O(compose) says
    otherwise.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - constructed
  - inventory_cache
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [labrack.infra.tailnet]
  source:
    description:
      - Who is asked. V(status) is the client on this machine, which sees only what the policy lets it reach.
    type: str
    choices: [status, api, headscale]
    default: status
  command:
    description:
      - The command that V(source=status) or V(source=headscale) runs, such as through ssh to the control server. By
        default C(tailscale status --json) or C(headscale nodes list --output json).
    type: list
    elements: str
  timeout:
    description: Seconds that the command may take.
    type: int
    default: 20
  base_domain:
    description: headscale's C(dns.base_domain), without which its nodes have no MagicDNS name here.
    type: str
    default: ""
  tag_groups:
    description:
      - Groups by tag, without its C(tag:); one name or a list. A tag that is not here gives the group C(tag_NAME).
    type: dict
    default:
      lab-head: lab_head
      lab-worker: lab_workers
      lab-interactive: lab_interactive
  offline_group:
    description: The group of machines that are offline or whose key expired; they are in their other groups as well.
    type: str
    default: tailnet_offline
  untagged:
    description: Whether people's own devices are hosts as well, in the group C(tailnet_untagged).
    type: bool
    default: false
  external:
    description: Whether machines that others share into the tailnet are hosts as well.
    type: bool
    default: false
  tailnet:
    description: The tailnet's name in the API; V(-) is that of the key.
    type: str
    default: "-"
  api_url:
    description: Where the API is.
    type: str
    default: https://api.tailscale.com
  api_key:
    description: An API access token. May be a template, such as of a lookup.
    type: str
    env:
      - name: TS_API_KEY
  oauth_client_id:
    description: The id of an OAuth client with the scope C(devices:core:read).
    type: str
    env:
      - name: TS_OAUTH_ID
  oauth_client_secret:
    description: Its secret. May be a template, such as of a lookup.
    type: str
    env:
      - name: TS_OAUTH_SECRET
"""

EXAMPLES = r"""
# lab.tailnet.yml: what this machine's client sees
plugin: labrack.infra.tailnet
keyed_groups:
  - {prefix: os, key: tailnet_os}
compose:
  ansible_host: tailnet_name
---
# cloud.tailnet.yml: everything, by the API, asked at most every five minutes
plugin: labrack.infra.tailnet
source: api
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/labrack
cache_timeout: 300
tag_groups:
  lab-worker: [lab_workers, slurm_worker]
groups:
  needs_login: tailnet_expired
"""

import json
from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

from ansible_collections.labrack.infra.plugins.module_utils import tailnet_devices
from ansible_collections.labrack.infra.plugins.module_utils.node_io import run
from ansible_collections.labrack.infra.plugins.module_utils.tailnet_devices import Device
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_api import OPTIONS, Api, ApiError

COMMANDS = {
    "status": ["tailscale", "status", "--json"],
    "headscale": ["headscale", "nodes", "list", "--output", "json"],
}
#: Options that may be templates, so that a secret need not stand in the file.
TEMPLATES = ("api_key", "oauth_client_id", "oauth_client_secret")


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Ansible's entry to the plugin."""

    NAME = "labrack.infra.tailnet"

    def verify_file(self, path: str) -> bool:
        """Return whether a file is one for this plugin, by the end of its name."""
        return bool(super().verify_file(path)) and path.endswith(("tailnet.yml", "tailnet.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the tailnet's machines (AnsibleParserError when nobody tells of them)."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        self.load_cache_plugin()
        place = self.get_cache_key(path)
        wanted = self.get_option("cache")
        devices: list[dict[str, Any]] | None = None
        if wanted and cache:
            try:
                devices = self._cache[place]
            except KeyError:
                devices = None
        if devices is None:
            try:
                devices = [asdict(device) for device in self._ask()]
            except (ApiError, ValueError) as error:
                raise AnsibleParserError(f"{path}: {error}") from None
            if wanted:
                self._cache[place] = devices
        for device in devices:
            self._add(inventory, Device.read(device))

    def _ask(self) -> list[Device]:
        source = self.get_option("source")
        if source == "api":
            given = {name: self.get_option(name) for name in OPTIONS}
            for name in TEMPLATES:
                if given[name]:
                    given[name] = self.templar.template(given[name])
            return tailnet_devices.of_api(Api.of(given, "devices:core:read").devices())
        argv = [str(word) for word in self.get_option("command") or COMMANDS[source]]
        done = run(argv, timeout=float(self.get_option("timeout")))
        if done.rc:
            raise ValueError(f"{' '.join(argv)} failed: {(done.err or done.out).strip()}")
        try:
            document = json.loads(done.out)
        except ValueError as error:
            raise ValueError(f"{' '.join(argv)} gave no JSON: {error}") from None
        if source == "headscale":
            return tailnet_devices.of_headscale(document or [], self.get_option("base_domain"))
        return tailnet_devices.of_status(document)

    def _add(self, inventory: Any, device: Device) -> None:
        if device.external and not self.get_option("external"):
            return
        if not device.tags and not self.get_option("untagged"):
            return
        host = inventory.add_host(device.name)
        variables = host_variables(device)
        for name, value in variables.items():
            inventory.set_variable(host, name, value)
        for group in self._groups(device):
            inventory.add_host(host, group=inventory.add_group(group))
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, host, strict=strict)

    def _groups(self, device: Device) -> list[str]:
        mapping = self.get_option("tag_groups")
        found: list[str] = [] if device.tags else ["tailnet_untagged"]
        for tag in device.tags:
            name = tag.partition(":")[2]
            groups = mapping.get(name, self._sanitize_group_name(f"tag_{name}"))
            found += [groups] if isinstance(groups, str) else groups
        if not device.online or device.expired:
            found.append(self.get_option("offline_group"))
        return found


def host_variables(device: Device) -> dict[str, Any]:
    """Return the variables of a device's host."""
    first = {
        kind: next((a for a in device.addresses if (":" in a) == (kind == "ipv6")), "") for kind in ("ipv4", "ipv6")
    }
    variables: dict[str, Any] = {
        "tailnet_id": device.id,
        "tailnet_name": device.dns_name,
        "tailnet_addresses": list(device.addresses),
        "tailnet_ipv4": first["ipv4"],
        "tailnet_ipv6": first["ipv6"],
        "tailnet_tags": list(device.tags),
        "tailnet_user": device.logins[0] if device.logins else "",
        "tailnet_os": device.system,
        "tailnet_online": device.online,
        "tailnet_expired": device.expired,
        "tailnet_last_seen": device.last_seen,
        "tailnet_routes": list(device.routes),
    }
    if device.addresses:
        variables["ansible_host"] = first["ipv4"] or first["ipv6"]
    return variables
