# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""SkyPilot's admin policy of the lab: ``admin_policy: labrack_skypilot.policy.Autostop`` in the server's config.yaml.

Written for SkyPilot 0.14.1 (sky/admin_policy.py). What it decides is in :mod:`.limits`.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import sky
from sky import global_user_state

from labrack_skypilot import limits, plugin

#: Names another file with the settings, for tests.
SETTINGS_VARIABLE = "LABRACK_SKYPILOT_POLICY"


class Autostop(sky.AdminPolicy):  # type: ignore[misc]
    """Ends every launch when it has been idle, and keeps its pods to the directories that the inventory names."""

    @classmethod
    def validate_and_mutate(cls, user_request: sky.UserRequest) -> sky.MutatedUserRequest:
        """Return the request within the lab's limits; limits.Refused, with the mend, for one that can't be."""
        settings = limits.load(os.environ.get(SETTINGS_VARIABLE, limits.SETTINGS))
        request = str(user_request.request_name.value)
        user = str(user_request.user.name or "") if user_request.user else ""
        task = user_request.task
        if request not in limits.CONTROLLERS:
            for problem in limits.volume_problems(
                task.volumes or {}, _host_paths(task), limits.paths_of(settings, user)
            ):
                raise limits.Refused(problem)
        resources = [
            _limited(settings, request, user, one, user_request.skypilot_config) for one in list(task.resources)
        ]
        task.set_resources(type(task.resources)(resources))
        return sky.MutatedUserRequest(task, user_request.skypilot_config)


def _limited(settings: limits.Limits, request: str, user: str, resources: Any, config: Any) -> Any:
    """Return one of a task's alternatives within the limits."""
    stop = resources.autostop_config
    launch = limits.Launch(
        request,
        user,
        str(resources.cloud or "").lower(),
        None if stop is None else stop.to_yaml_config(),
        dict(resources.cluster_config_overrides or {}),
    )
    outcome = limits.decide(settings, launch, config, trusted=plugin.locked())
    changed = resources.copy(autostop=outcome.autostop)
    # copy() would lay it over what is there, and add to lists what they have
    changed._cluster_config_overrides = copy.deepcopy(dict(outcome.overrides)) or None
    return changed


def _host_paths(task: Any) -> dict[str, str]:
    """Return the directory of the machine behind each of a task's volumes that is one."""
    found = {}
    for volume in (task.volumes or {}).values():
        name = volume.get("name") if isinstance(volume, dict) else volume
        record = global_user_state.get_volume_by_name(name) if isinstance(name, str) else None
        handle = record.get("handle") if record else None
        path = (getattr(handle, "config", None) or {}).get("host_path") if handle else None
        if path:
            found[str(name)] = str(path)
    return found
