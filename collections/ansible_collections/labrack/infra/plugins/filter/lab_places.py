# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters lab_places, busy_elsewhere and launch_keys: what the lab as a whole says about a host's people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import storage_layout


def lab_places(
    entries: Iterable[Mapping[str, Any]], host: str, groups: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Return the shared directories as the module lab_users takes them: where each is, and whether the host fills it.

    One that something else mounts everywhere, and that no server has, is filled by the first host of the lab.
    """
    lab = [*groups.get("lab_head", ()), *groups.get("lab_workers", ())]
    found = []
    for one in storage_layout.read(entries, list(groups.get(storage_layout.GROUP, ()))):
        if one.provided and not one.server and lab:
            one = replace(one, server=lab[0])
        makes = one.local_to(host)
        source = one.path if one.provided else one.source
        found.append(
            {
                "path": one.path,
                "source": source,
                "makes": makes,
                "provided": one.provided,
                "shared": bool(one.server),
            }
        )
    return found


def busy_elsewhere(
    registry: Iterable[Mapping[str, Any]],
    host: str,
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[str]]:
    """Return why those who shall be absent can't go yet, as far as it lies on other hosts: processes, or no answer."""
    absent = [user for user in registry if user.get("state") == "absent"]
    found: dict[str, list[str]] = {}
    others = dict.fromkeys([*groups.get("lab_head", ()), *groups.get("lab_workers", ())]) if absent else {}
    for other in others:
        if other == host:
            continue
        node = (hostvars[other].get("ansible_facts") or {}).get("labrack_node")
        for user in absent:
            count = node["processes"].get(str(user["uid"]), 0) if node else 0
            if node is None:
                found.setdefault(user["name"], []).append(f"{other} was not read in this run")
            elif count:
                words = f"{count} process{'es' if count > 1 else ''} on {other}"
                found.setdefault(user["name"], []).append(words)
    return found


def launch_keys(groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return by user name the keys that SkyPilot's servers put into their users' files; those not read have none.

    The servers are those of the playbooks: the group ``skypilot``, or the head where that is empty. No other host is
    believed.
    """
    found: dict[str, list[str]] = {}
    for host in groups.get("skypilot") or groups.get("lab_head") or ():
        node = (hostvars[host].get("ansible_facts") or {}).get("labrack_node") or {}
        for name, keys in node.get("launch_keys", {}).items():
            found.setdefault(name, []).extend(keys)
    return found


class FilterModule:
    """Ansible's entry to the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"lab_places": lab_places, "busy_elsewhere": busy_elsewhere, "launch_keys": launch_keys}
