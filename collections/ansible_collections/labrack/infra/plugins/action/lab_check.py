# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The action of ``labrack.infra.lab_check``: look at the whole inventory before any node is touched."""

from __future__ import annotations

from datetime import date
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.labrack.infra.plugins.module_utils import lab_check
from ansible_collections.labrack.infra.plugins.module_utils.rules_users import expiry_words
from ansible_collections.labrack.infra.plugins.plugin_utils import inventory_source
from ansible_collections.labrack.infra.plugins.plugin_utils.inventory_read import (
    ROLES,
    lines,
    number_people,
    people,
    read_inventory,
    registry_path,
    role_options,
)

STAGES = ("inventory", "facts")


class ActionModule(ActionBase):
    """Runs on the controller only; no host is contacted."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``failed`` with all findings as one text in ``msg``, or the number of hosts that were looked at."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _spec, args = self.validate_argument_spec({"stage": {"type": "str", "choices": STAGES, "default": "inventory"}})
        variables = task_vars or {}
        known = inventory_source.definitions(
            variables.get("ansible_inventory_sources") or (), variables.get("playbook_dir", "")
        )
        inventory, findings = read_inventory(variables["hostvars"], variables["groups"], known, role_options(ROLES))
        result["changed"] = False
        if args["stage"] == "facts":
            inventory, findings, result["people"] = number_people(inventory, registry_path(inventory, variables))
            findings += lab_check.check_facts(inventory)
        else:
            findings += lab_check.check_inventory(inventory)
            result["warnings"] = expiry_words(people(inventory), date.today())
        if findings:
            count = f"{len(findings)} thing{'s' if len(findings) > 1 else ''}"
            result["failed"] = True
            result["msg"] = "\n".join(
                [f"The inventory has {count} to mend; no node was changed:", *lines(findings, inventory, known)]
            )
        else:
            result["msg"] = f"{len(inventory.hosts)} hosts, nothing to mend"
        return result
