# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An inventory as the rules want it: its variables checked against the roles' options, its people with numbers.

On the controller only: in a run by the action ``lab_check``, and in the process of the command ``labrack``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError

from ansible_collections.labrack.infra.plugins.module_utils import lab_check, uid_registry
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, merged
from ansible_collections.labrack.infra.plugins.module_utils.rules_tailnet import POLICY
from ansible_collections.labrack.infra.plugins.plugin_utils import inventory_source
from ansible_collections.labrack.infra.plugins.plugin_utils.spec_check import check_variables

ROLES = Path(__file__).resolve().parents[2] / "roles"
#: What the rules want to know of Ansible's own variables.
CONNECTION = ("ansible_host", "ansible_port", "ansible_user", "ansible_connection")
#: Not read by Ansible when it lies in the directory of an inventory, as it would read a .yml file.
REGISTRY = "lab_uids.txt"


def people(inventory: Inventory) -> list[dict[str, Any]]:
    """Return the lab's ``lab_users``, which are the same on every host."""
    return next((list(one["lab_users"]) for one in inventory.hosts.values() if one.get("lab_users")), [])


def registry_path(inventory: Inventory, variables: Mapping[str, Any]) -> Path | None:
    """Return where the numbers of the lab's people are kept; None where the inventory has no directory."""
    named = next((one["lab_users_registry"] for one in inventory.hosts.values() if one.get("lab_users_registry")), None)
    folder = variables.get("inventory_dir")
    if named:
        return Path(folder or ".", Path(named).expanduser())
    return Path(folder, REGISTRY) if folder else None


def number_people(inventory: Inventory, path: Path | None) -> tuple[Inventory, list[Finding], dict[str, Any]]:
    """Give a number to everybody in ``lab_users`` who has none; nothing is written.

    Returns the inventory with the numbers, what is wrong, and for the playbook: ``users`` where any entry was without
    a number, ``registry`` (path) and ``text`` where that file has to be written.
    """
    users = people(inventory)
    lab = dict.fromkeys([*inventory.members("lab_head"), *inventory.members("lab_workers")])
    key = ("lab_users_registry",)
    try:
        before = path.read_text(encoding="utf-8") if path and path.exists() else ""
        given = uid_registry.read(yaml.safe_load(before))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = f"can't be read: {str(error).splitlines()[0].rstrip('.')}"
        return inventory, [Finding(key, str(path), problem, "mend the file, or get it back from its history")], {}
    if path is None and not all(user.get("uid") for user in users):
        mend = "say where, such as ~/lab_uids.txt"
        return inventory, [Finding(key, "", "no place to keep the numbers of those without a uid", mend)], {}
    variables: Mapping[str, Any] = next((inventory.hosts[host] for host in lab if host in inventory.hosts), {})
    subids = bool(variables.get("lab_users_subids", True))
    filled = uid_registry.fill(users, variables.get("lab_groups") or (), given, inventory.facts, lab, subids)
    everybody = {host: {**one, "lab_users": list(filled.users)} for host, one in inventory.hosts.items()}
    told: dict[str, Any] = {}
    if not all(user.get("uid") for user in users):
        told["users"] = [dict(user) for user in filled.users]
    if filled.given != given:
        told |= {"registry": str(path), "text": uid_registry.text(filled.given)}
    return replace(inventory, hosts=everybody), list(filled.findings), told


def role_options(roles: Path) -> dict[str, dict[str, Any]]:
    """Return the options of every role of the collection, from its ``meta/argument_specs.yml``, by role."""
    found = {}
    for file in sorted(roles.glob("*/meta/argument_specs.yml")):
        # it is the safe loader
        spec = yaml.load(file.read_text(encoding="utf-8"), Loader=inventory_source.FAST)  # noqa: S506
        found[file.parents[1].name] = spec["argument_specs"]["main"]["options"]
    return found


def read_inventory(
    hostvars: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, list[str]],
    known: list[inventory_source.Definition],
    roles: Mapping[str, Mapping[str, Any]],
) -> tuple[Inventory, list[Finding]]:
    """Return the inventory as the rules see it, and what is wrong with single variables."""
    options = {name: option for spec in roles.values() for name, option in spec.items()}
    set_names = {one.name for one in known} - {"group", "host"}
    secrets = {name for name in set_names if lab_check.is_secret(name)}
    findings = lab_check.check_names(sorted(set_names), options, ["lab_", *(f"{role}_" for role in roles)])
    hosts: dict[str, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    for host in groups["all"]:
        values: dict[str, Any] = {}
        of_host = hostvars[host]
        for name in sorted({*options, *CONNECTION, *POLICY, *secrets}):
            try:
                if name in of_host:
                    values[name] = plain(of_host[name])
            except AnsibleError as error:
                problem = f"can't be worked out: {str(error).splitlines()[0].rstrip('.')}"
                findings.append(Finding((name,), "", problem, "mend the expression", (host,)))
        clean, wrong = check_variables(options, values)
        others = {name: value for name, value in values.items() if name not in options}
        hosts[host] = {**clean, **others}
        findings += [Finding(one.path, one.value, one.problem, one.mend, (host,)) for one in wrong]
        node = of_host.get("ansible_facts", {}).get("labrack_node")
        if node:
            facts[host] = plain(node)
    return Inventory(hosts, {name: list(members) for name, members in groups.items()}, facts), merged(findings)


def plain(value: Any) -> Any:
    """Return a value of Ansible, templated as it is reached, as plain dictionaries, lists and scalars."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, str) else value


def lines(findings: list[Finding], inventory: Inventory, known: list[inventory_source.Definition]) -> list[str]:
    """Return the findings as lines, each with the place where its value is set."""
    found = []
    for finding in findings:
        host = finding.hosts[0] if finding.hosts else ""
        member = [group for group, hosts in inventory.groups.items() if host in hosts]
        where = inventory_source.place(known, finding.path, host, member)
        found.append(finding.line(where, everywhere=len(finding.hosts) == len(inventory.hosts)))
    return found
