# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter slurm_workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

NEEDED = ("hostname", "cpu", "memory_mib", "gpus", "cgroup")


def slurm_workers(names: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each host's name, address and the part of its ``labrack_node`` facts that Slurm's configuration needs.

    ``facts`` is None for a host that this run has not reached. The address is the inventory's ``lab_address``, else
    the host's default IPv4 address, else "".
    """
    workers = []
    for name in names:
        variables = hostvars[name]
        facts = (variables.get("ansible_facts") or {}).get("labrack_node")
        address = variables.get("lab_address") or ((facts or {}).get("addresses") or {}).get("default_ipv4") or ""
        workers.append(
            {"name": name, "address": address, "facts": {key: facts[key] for key in NEEDED} if facts else None}
        )
    return workers


class FilterModule:
    """Ansible's entry to the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"slurm_workers": slurm_workers}
