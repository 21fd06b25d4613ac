# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter slurm_users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def slurm_users(registry: Iterable[Mapping[str, Any]], default_account: str) -> list[dict[str, str]]:
    """Return the registry's users as the module slurm_accounting takes them; one without an account gets the default.

    A user who is not ``present`` is locked: what they ran stays in the accounting, new jobs are refused.
    """
    return [
        {
            "name": user["name"],
            "account": user.get("account") or default_account,
            "state": "present" if user.get("state", "present") == "present" else "locked",
        }
        for user in registry
    ]


class FilterModule:
    """Ansible's entry to the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"slurm_users": slurm_users}
