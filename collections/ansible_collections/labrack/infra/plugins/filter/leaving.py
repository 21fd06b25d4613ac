# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters with_locked, tailnet_logins and without_members: what offboard.yml makes of the inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.tailnet_policy import Lab


def with_locked(registry: Iterable[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the registry of people with one of them locked; one who is absent is so already."""
    return [
        {**user, "state": "locked", "sudo": False}
        if user["name"] == name and user.get("state") != "absent"
        else {**user}
        for user in registry
    ]


def tailnet_logins(
    groups: Iterable[Mapping[str, Any]], name: str, accounts: Mapping[str, str] | None = None
) -> list[str]:
    """Return the logins, in a policy's groups or ``accounts``, whose account on the machines has this name."""
    accounts = accounts or {}
    lab = Lab.read({"groups": list(groups), "accounts": accounts})
    known = {login for members in lab.groups.values() for login in members} | set(accounts)
    return sorted(login for login in known if lab.account(login) == name)


def without_members(groups: Iterable[Mapping[str, Any]], logins: Iterable[str]) -> list[dict[str, Any]]:
    """Return a policy's groups without these logins."""
    gone = set(logins)
    return [{**group, "members": [one for one in group.get("members") or () if one not in gone]} for group in groups]


class FilterModule:
    """Ansible's entry to the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"with_locked": with_locked, "tailnet_logins": tailnet_logins, "without_members": without_members}
