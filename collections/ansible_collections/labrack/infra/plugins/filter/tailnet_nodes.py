# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter tailnet_nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def tailnet_nodes(names: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each host that has tags in the tailnet, as the module tailnet_policy takes it."""
    found = []
    for name in names:
        variables = hostvars[name]
        if variables.get("tailscale_tags"):
            found.append(
                {
                    "name": name,
                    "tags": list(variables["tailscale_tags"]),
                    "routes": list(variables.get("tailscale_advertise_routes") or ()),
                    "exit_node": bool(variables.get("tailscale_advertise_exit_node")),
                }
            )
    return found


class FilterModule:
    """Ansible's entry to the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"tailnet_nodes": tailnet_nodes}
