# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter nfs_servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import nfs_client_plan, storage_layout


def nfs_servers(
    directories: Iterable[Mapping[str, Any]],
    exporters: Sequence[str],
    host: str,
    hostvars: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return name, address and link speed of the hosts from which a host mounts shared directories, by name.

    The address is the inventory's ``lab_address``, else the host's default IPv4 address, else "". The speed in Mbit/s
    is that of its fastest network card with a link, None where it is not known.
    """
    found = []
    layout = storage_layout.read(directories, exporters)
    for name in sorted({share.server for share in nfs_client_plan.shares(layout, host)}):
        variables = hostvars[name]
        facts = (variables.get("ansible_facts") or {}).get("labrack_node") or {}
        address = variables.get("lab_address") or (facts.get("addresses") or {}).get("default_ipv4") or ""
        speeds = [nic["speed_mbit"] for nic in facts.get("nics") or () if nic["up"] and nic["speed_mbit"]]
        found.append({"name": name, "address": str(address), "link_mbit": max(speeds, default=None)})
    return found


class FilterModule:
    """Ansible's entry to the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"nfs_servers": nfs_servers}
