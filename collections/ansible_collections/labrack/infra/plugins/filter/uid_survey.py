# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filters uid_survey, uid_report and moved_number: what uid_migrate.yml makes of the lab."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml

from ansible_collections.labrack.infra.plugins.module_utils import migrate_plan, uid_registry, users_plan
from ansible_collections.labrack.infra.plugins.module_utils.migrate_plan import Wanted


def uid_survey(
    hosts: Iterable[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    user: str,
    uid: int,
    people: Sequence[Mapping[str, Any]] = (),
    groups: Sequence[Mapping[str, Any]] = (),
    gid: int | None = None,
    registry: str = "",
) -> dict[str, Any]:
    """Return what all hosts have of a user who is to get ``uid``, the new number of the own group, and ``refusals``.

    ``people`` and ``groups`` are ``lab_users`` and ``lab_groups``, ``registry`` is the text of the file of numbers.
    """
    uid = int(uid)
    facts = {}
    for host in hosts:
        node = (hostvars[host].get("ansible_facts") or {}).get("labrack_node")
        if node:
            facts[host] = node
    named = {group["name"]: group["gid"] for group in groups}
    entry = next((one for one in people if one["name"] == user), {"name": user})
    own = int(gid) if gid else users_plan.own_gid({**entry, "uid": uid}, named)
    seen = migrate_plan.survey(facts, Wanted(user, uid, own))
    refusals = [
        f"{host} was not read, and the number may be taken there. Mend: run when all nodes answer, without --limit."
        for host in hosts
        if host not in facts
    ]
    if not seen.uids and not seen.done:
        refusals.append(f"no node has a user {user}. Mend: name one that is there.")
    for other in people:
        if other["name"] != user and other.get("uid") == uid:
            refusals.append(f"uid {uid} belongs to {other['name']} in lab_users. Mend: choose another.")
    for group in groups:
        if group["gid"] == own:
            refusals.append(
                f"gid {own} belongs to group {group['name']} in lab_groups. Mend: say another with -e gid=."
            )
    owner = uid_registry.holder(uid_registry.read(yaml.safe_load(registry or "")), uid)
    if owner not in ("", user):
        refusals.append(f"the lab gave uid {uid} to {owner}. Mend: choose another.")
    return {
        "uids": list(seen.uids),
        "gids": list(seen.gids),
        "others": {str(number): words for number, words in seen.others.items()},
        "other_groups": {str(number): words for number, words in seen.other_groups.items()},
        "done": list(seen.done),
        "gid": own,
        "refusals": refusals,
    }


def uid_report(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """Return a line for each host and top directory: how many files and bytes the result ``name`` has there."""
    lines = []
    for host in hosts:
        result = hostvars[host].get(name) or {}
        for top, count in sorted((result.get("files") or {}).items()):
            lines.append(f"{host} {top}: {count['files']} files, {count['bytes']} bytes")
        if result.get("unclear"):
            lines.append(f"{host}: {result['unclear']} files in shared directories may be somebody else's, and stay")
    return lines or ["no files"]


def moved_number(registry: str, user: str, uid: int) -> str:
    """Return the text of the file of numbers after a user got another one; as it is when the user is not in it."""
    given = uid_registry.read(yaml.safe_load(registry or ""))
    moved = uid_registry.moved(given, user, int(uid))
    return registry if moved == given else uid_registry.text(moved)


class FilterModule:
    """Ansible's entry to the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"uid_survey": uid_survey, "uid_report": uid_report, "moved_number": moved_number}
