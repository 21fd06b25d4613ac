# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for the circuits that feed the lab, and for its cooling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, duplicates, shown


def check_power(inventory: Inventory, variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in a host's ``lab_circuits``, ``lab_base_watts`` and ``lab_cooling_watts``."""
    for key in ("lab_base_watts", "lab_cooling_watts"):
        if (variables.get(key) or 0) < 0:
            yield Finding((key,), shown(variables[key]), "less than 0", "write watts, or leave it out")
    entries = variables.get("lab_circuits") or ()
    for place, entry in enumerate(entries):
        for key, example in (("volts", "120 or 230"), ("amps", "15, 16 or 20, as on its breaker")):
            if not entry[key] > 0:
                yield Finding(("lab_circuits", place, key), shown(entry[key]), "not above 0", f"write {example}")
        for where, node in enumerate(entry.get("nodes") or ()):
            if node not in inventory.hosts:
                mend = "name a host of the inventory, or take it out"
                yield Finding(("lab_circuits", place, "nodes", where), shown(node), "no host of that name", mend)
    for place, first in duplicates(entry["name"] for entry in entries):
        path = ("lab_circuits", place, "name")
        yield Finding(
            path, shown(entries[place]["name"]), f"also the name of lab_circuits[{first}]", "keep one of them"
        )
