# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters of doctor.yml: what others reach on a host, what each host tries, and what all of them said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import doctor_ways


def doctor_services(
    host: str,
    groups: Mapping[str, Sequence[str]],
    orchestrator: str = "slurm",
    directories: Iterable[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return what others reach on a host: ``service``, ``port``, ``unit``, ``program``."""
    return doctor_ways.services(host, groups, orchestrator, directories)


def doctor_peers(
    hostvars: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    orchestrator: str = "slurm",
    directories: Iterable[Mapping[str, Any]] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Return the peers that each host tries; what the hosts said of themselves is their variable ``_look``."""
    looks: dict[str, Mapping[str, Any]] = {}
    addresses = {}
    for host in doctor_ways.members(groups):
        variables = hostvars[host]
        look = (variables.get("_look") or {}).get("doctor")
        if look:
            looks[host] = look
            address = variables.get("lab_address") or look["facts"]["addresses"]["default_ipv4"]
            addresses[host] = str(address or "")
    return doctor_ways.peers(groups, orchestrator, directories, addresses, looks)


def doctor_document(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by host ``look`` and ``ways``, None for what it did not say, and its ``problem`` in Ansible's words."""
    found = {}
    for host in hosts:
        results = [hostvars[host].get(name) or {} for name in ("_look", "_ways")]
        problem = next((one for one in results if one.get("failed") or one.get("unreachable")), {})
        words = [str(problem.get(key) or "").strip() for key in ("msg", "module_stderr", "stderr", "module_stdout")]
        found[host] = {
            "look": results[0].get("doctor"),
            "ways": results[1].get("doctor"),
            "unreachable": bool(problem.get("unreachable")),
            "problem": "\n".join(word for word in words if word)[:2000],
        }
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "doctor_services": doctor_services,
            "doctor_peers": doctor_peers,
            "doctor_document": doctor_document,
        }
