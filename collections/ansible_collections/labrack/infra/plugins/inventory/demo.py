# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The inventory of the demo that runs: its nodes, their groups, and how ssh reaches them."""

from __future__ import annotations

DOCUMENTATION = r"""
name: demo
short_description: The nodes of the demo that runs
version_added: 0.1.0
description:
  - C(labrack demo up) keeps hosts, groups and variables of the demo's nodes in its state directory. This plugin reads
    them, so that C(ansible-playbook closet.yml -i inventories/demo) works as with an inventory of machines.
author:
  - labrack contributors (@labrack)
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [labrack.infra.demo]
  state:
    description:
      - Directories in which the demo's state may be, in order; a relative one starts from the inventory file.
    type: list
    elements: str
    default: [../../.labrack/demo, ~/.local/state/labrack/demo]
"""

EXAMPLES = r"""
- plugin: labrack.infra.demo
"""

import json
import os
from typing import Any

from ansible.plugins.inventory import BaseInventoryPlugin

#: The file that labrack demo up writes; see :mod:`labrack.demo`.
FILE = "hosts.json"


class InventoryModule(BaseInventoryPlugin):
    """Ansible's entry to the plugin."""

    NAME = "labrack.infra.demo"

    def verify_file(self, path: str) -> bool:
        """Return whether a file is one for this plugin: ``demo.yml``."""
        return bool(super().verify_file(path)) and os.path.basename(path) == "demo.yml"

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the demo's hosts, groups and variables; none, and a warning, where no demo runs."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        folder = os.path.dirname(os.path.abspath(path))
        state = os.environ.get("XDG_STATE_HOME")
        places = [os.path.join(state, "labrack/demo")] if state else []
        places += [os.path.join(folder, os.path.expanduser(place)) for place in self.get_option("state")]
        found = [os.path.join(place, FILE) for place in places if os.path.exists(os.path.join(place, FILE))]
        if not found:
            self.display.warning("The demo is not up, so it has no hosts. Start it with `labrack demo up`.")
            return
        with open(found[0], encoding="utf-8") as stream:
            self._add(json.load(stream)["all"], inventory)

    def _add(self, document: dict[str, Any], inventory: Any) -> None:
        for host, variables in document["hosts"].items():
            inventory.add_host(host)
            for name, value in variables.items():
                inventory.set_variable(host, name, value)
        for name, value in document.get("vars", {}).items():
            inventory.set_variable("all", name, value)
        for group, members in document.get("children", {}).items():
            inventory.add_group(group)
            for host in members["hosts"]:
                inventory.add_host(host, group)
