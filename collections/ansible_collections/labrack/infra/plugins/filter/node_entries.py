# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter ``node_entries``: name, address and aliases of every node of the lab."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def node_entries(
    hostvars: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return ``{name, address, aliases}`` for every host in ``lab_head`` or ``lab_workers``, sorted by name.

    The address is the inventory's ``lab_address``, else the default IPv4 address among the facts of ``node_facts``;
    the key is left out when neither is known. The alias is the host name that the node gives itself, where it differs.
    """
    entries = []
    for name in sorted({*groups.get("lab_head", ()), *groups.get("lab_workers", ())}):
        facts = hostvars[name].get("ansible_facts", {}).get("labrack_node", {})
        address = hostvars[name].get("lab_address") or facts.get("addresses", {}).get("default_ipv4")
        hostname = facts.get("hostname", name)
        entry: dict[str, Any] = {"name": name, "aliases": [] if hostname == name else [hostname]}
        entries.append({**entry, "address": address} if address else entry)
    return entries


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"node_entries": node_entries}
