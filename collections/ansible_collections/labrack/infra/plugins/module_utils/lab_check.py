# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All rules for an inventory, in two stages: from the inventory alone, and with the facts of the nodes.

Pure. Nothing here raises: what is of a wrong type has been found and left out before (``plugin_utils/spec_check.py``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.finding import HIDDEN, Finding, Inventory, merged, shown
from ansible_collections.labrack.infra.plugins.module_utils.rules_backup import check_backup
from ansible_collections.labrack.infra.plugins.module_utils.rules_gpu import check_gpu_facts, check_gpu_variables
from ansible_collections.labrack.infra.plugins.module_utils.rules_headscale import check_headscale
from ansible_collections.labrack.infra.plugins.module_utils.rules_host import check_host_facts, check_host_variables
from ansible_collections.labrack.infra.plugins.module_utils.rules_k3s import (
    check_k3s,
    check_k3s_facts,
    check_schedulers,
)
from ansible_collections.labrack.infra.plugins.module_utils.rules_nfs_client import (
    check_nfs_client,
    check_nfs_client_facts,
)
from ansible_collections.labrack.infra.plugins.module_utils.rules_power import check_power
from ansible_collections.labrack.infra.plugins.module_utils.rules_skypilot import check_skypilot, check_skypilot_facts
from ansible_collections.labrack.infra.plugins.module_utils.rules_slurm import check_slurm, check_slurm_node
from ansible_collections.labrack.infra.plugins.module_utils.rules_storage import (
    check_storage,
    check_storage_facts,
    check_storage_hosts,
)
from ansible_collections.labrack.infra.plugins.module_utils.rules_tailnet import (
    check_tailnet,
    check_tailnet_facts,
    check_tailnet_hosts,
)
from ansible_collections.labrack.infra.plugins.module_utils.rules_users import check_registry, number_key
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import (
    LEFT,
    Registry,
    SubidRange,
    clashes,
    subid_clashes,
)

#: Orchestrators that can be built already; none prepares the machines and runs no jobs.
BUILT = ("slurm", "skypilot", "none")
#: The systems whose packages the slurm role knows.
SYSTEMS = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04", "26.04")}
SLURM_GROUPS = ("slurm_controller", "slurm_database", "slurm_worker", "slurm_login")
#: Variables that describe the lab, so that one value must hold on every host.
LAB_WIDE = (
    "lab_circuits",
    "lab_cooling_watts",
    "lab_directories",
    "lab_orchestrator",
    "lab_tailnet",
    "lab_users",
    "lab_groups",
    "lab_projects",
    "nfs_server_user_quotas",
    "lab_users_archive",
    "lab_users_locked_jobs",
    "lab_users_registry",
    "lab_users_subids",
    "k3s_version",
    "slurm_cluster_name",
    "slurm_partitions",
    "slurm_accounts",
    "slurm_qos",
    "slurm_default_account",
    "slurm_default_qos",
    "tailscale_login_server",
)
SECRET_NAME = re.compile(
    r"(^|_)(password|passwd|passphrase|pass|secret|token|psk|(api|auth|munge|private|access)_?key)s?$"
)
PLACEHOLDER = re.compile(
    r"(change[-_ ]?(me|this|it)\b.*|pass(word|wd)?\d*|secret\d*|token|example([-_ ]?(key|password|token|secret))?"
    r"|(your|my|some)[-_ ]\w.*|replace[-_ ]?me.*|to-?do\b.*|fix-?me\b.*|x{3,}|\.{3}|<.*>|\*+|1234\d*|admin|test)[!.]*",
    re.IGNORECASE,
)

#: The networks that RFC 5737 sets aside for documentation.
EXAMPLE_ADDRESSES = ("192.0.2.", "198.51.100.", "203.0.113.")


def check_inventory(inventory: Inventory) -> list[Finding]:
    """Return what is wrong in an inventory, as far as it can be told without asking a node."""
    findings = list(_check_groups(inventory))
    findings += _check_addresses(inventory)
    findings += _check_same_everywhere(inventory)
    findings += check_headscale(inventory)
    findings += check_skypilot(inventory)
    findings += check_backup(inventory)
    findings += check_tailnet_hosts(inventory)
    findings += check_storage_hosts(inventory)
    for host, variables in inventory.hosts.items():
        findings += [_on(host, finding) for finding in check_registry(variables)]
        findings += [_on(host, finding) for finding in _check_connection_user(variables)]
        findings += [_on(host, finding) for finding in check_gpu_variables(variables)]
        findings += [_on(host, finding) for finding in check_host_variables(variables)]
        findings += [_on(host, finding) for finding in check_tailnet(variables)]
        findings += [_on(host, finding) for finding in check_power(inventory, variables)]
        findings += [_on(host, finding) for finding in check_storage(inventory, variables)]
        findings += [_on(host, finding) for finding in check_nfs_client(host, inventory)]
        for name, value in variables.items():
            findings += [_on(host, finding) for finding in _check_placeholders((name,), name, value)]
        if _orchestrator(variables) == "skypilot":
            findings += [_on(host, finding) for finding in check_k3s(host, variables)]
        if _orchestrator(variables) == "slurm":
            findings += [_on(host, finding) for finding in check_slurm(inventory, variables)]
            if any(host in inventory.members(group) for group in SLURM_GROUPS):
                findings += check_slurm_node(host, variables)
    return merged(findings)


def check_facts(inventory: Inventory) -> list[Finding]:
    """Return what is wrong between an inventory and what its nodes are; nodes without facts are not looked at."""
    findings: list[Finding] = []
    known_users = {user["name"] for facts in inventory.facts.values() for user in facts["users"]}
    for host, facts in inventory.facts.items():
        variables = inventory.hosts[host]
        findings += [_on(host, finding) for finding in _check_numbers(host, variables, facts)]
        findings += [_on(host, finding) for finding in check_gpu_facts(host, variables, facts)]
        findings += [_on(host, finding) for finding in check_host_facts(host, variables, facts)]
        findings += [_on(host, finding) for finding in check_tailnet_facts(host, inventory)]
        findings += [_on(host, finding) for finding in check_storage_facts(host, inventory)]
        findings += [_on(host, finding) for finding in check_nfs_client_facts(host, inventory)]
        if _orchestrator(variables) == "skypilot":
            findings += [_on(host, finding) for finding in check_k3s_facts(host, variables, facts)]
            findings += [_on(host, finding) for finding in check_schedulers(host, inventory)]
        findings += [_on(host, finding) for finding in check_skypilot_facts(host, inventory)]
        if _orchestrator(variables) != "slurm":
            continue
        findings += [_on(host, finding) for finding in _check_system(host, facts)]
        if host in inventory.members("slurm_worker"):
            findings += [_on(host, finding) for finding in _check_worker(variables, facts)]
        people = known_users | {user["name"] for user in variables.get("lab_users") or ()}
        for place, name in enumerate(variables.get("slurm_ssh_exempt") or ()):
            if name not in people:
                problem, mend = (
                    "no user of that name in lab_users or on a node",
                    "add it to lab_users, or take it out",
                )
                findings.append(Finding(("slurm_ssh_exempt", place), shown(name), problem, mend, (host,)))
    return merged(findings)


def check_names(names: Iterable[str], known: Collection[str], prefixes: Collection[str]) -> list[Finding]:
    """Return a finding for every variable that has one of our prefixes and that no role knows."""
    findings = []
    for name in names:
        if name.startswith(tuple(prefixes)) and name not in known:
            close = difflib.get_close_matches(name, known, 1, cutoff=0.8)
            mend = f"write {close[0]}" if close else "take it out, or look for its name in the role's table"
            findings.append(Finding((name,), "", "no role knows this variable", mend))
    return findings


def is_secret(name: str) -> bool:
    """Return whether a variable of this name holds a secret."""
    return bool(SECRET_NAME.search(name.lower()))


def _on(host: str, finding: Finding) -> Finding:
    return Finding(finding.path, finding.value, finding.problem, finding.mend, (host,))


def _orchestrator(variables: Mapping[str, Any]) -> str:
    return str(variables.get("lab_orchestrator", BUILT[0]))


def _check_groups(inventory: Inventory) -> Iterator[Finding]:
    wanted = {_orchestrator(variables) for variables in inventory.hosts.values()}
    for name in sorted(wanted - set(BUILT)):
        hosts = tuple(host for host, variables in inventory.hosts.items() if _orchestrator(variables) == name)
        mend = f"use {' or '.join(BUILT)}"
        yield Finding(("lab_orchestrator",), shown(name), "this orchestrator is not built yet", mend, hosts)
    yield from _one_host(inventory, "lab_head", "the machine that people log in to")
    if "slurm" in wanted:
        yield from _one_host(inventory, "slurm_controller", "the machine that runs slurmctld")
        if not inventory.members("slurm_worker"):
            mend = "put the machines that run jobs into it; the head may be one of them"
            yield Finding(("group", "slurm_worker"), "", "no host is in it, so no job can run", mend)
        databases = inventory.members("slurm_database")
        if len(databases) > 1:
            mend = "keep one of them"
            yield Finding(("group", "slurm_database"), ", ".join(databases), "there is one accounting database", mend)
        lab = {*inventory.members("lab_head"), *inventory.members("lab_workers")}
        for group in SLURM_GROUPS:
            for host in inventory.members(group):
                if host not in lab:
                    problem, mend = "it is in neither lab_head nor lab_workers", f"put {host} into one of them"
                    yield Finding(("group", group), host, problem, mend, (host,))


def _one_host(inventory: Inventory, group: str, what: str) -> Iterator[Finding]:
    hosts = inventory.members(group)
    if not hosts:
        yield Finding(("group", group), "", "no host is in it", f"put {what} into it")
    elif len(hosts) > 1:
        yield Finding(("group", group), ", ".join(hosts), "more than one host is in it", f"keep one, {what}")


def _check_addresses(inventory: Inventory) -> Iterator[Finding]:
    for key in ("ansible_host", "lab_address"):
        first: dict[tuple[str, str], str] = {}
        for host, variables in inventory.hosts.items():
            address = variables.get(key)
            if not address or variables.get("ansible_connection") == "local":
                continue
            if any(str(address).startswith(prefix) for prefix in EXAMPLE_ADDRESSES):
                yield Finding((key,), shown(address), "an example's address", "put the machine's own there", (host,))
                continue
            port = str(variables.get("ansible_port", 22)) if key == "ansible_host" else ""
            other = first.setdefault((str(address), port), host)
            if other != host:
                problem, mend = f"also the address of {other}", f"keep one of {other} and {host}, or mend the address"
                yield Finding((key,), shown(address), problem, mend, (host,))


def _check_same_everywhere(inventory: Inventory) -> Iterator[Finding]:
    for key in LAB_WIDE:
        values = {host: variables[key] for host, variables in inventory.hosts.items() if key in variables}
        first = next(iter(values), "")
        others = tuple(host for host, value in values.items() if value != values[first])
        if others:
            problem = f"not the same as on {first}, and it must be one for the whole lab"
            yield Finding((key,), "", problem, "set it once, in group_vars/all", others)


def _check_connection_user(variables: Mapping[str, Any]) -> Iterator[Finding]:
    for place, user in enumerate(variables.get("lab_users") or ()):
        if user["name"] == variables.get("ansible_user") and user.get("state") in LEFT:
            problem, mend = "the playbook logs in as this user, and would lock itself out", "log in as somebody else"
            yield Finding(("lab_users", place, "state"), user["state"], problem, mend)
        elif (
            user["name"] == variables.get("ansible_user")
            and not user.get("keys")
            and variables.get("lab_users_keys_exclusive", True)
        ):
            problem = "the playbook logs in as this user, and would take away all of the user's keys"
            mend = "list the keys, or set lab_users_keys_exclusive to false"
            yield Finding(("lab_users", place, "keys"), "[]", problem, mend)


def _check_placeholders(path: tuple[str | int, ...], name: str, value: object) -> Iterator[Finding]:
    """Yield a finding for every secret, at any depth, that is still an example's; ``name`` is the nearest key's."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _check_placeholders((*path, str(key)), str(key), inner)
    elif isinstance(value, (list, tuple)):
        for place, inner in enumerate(value):
            yield from _check_placeholders((*path, place), name, inner)
    elif isinstance(value, str) and is_secret(name) and PLACEHOLDER.fullmatch(value.strip()):
        mend = "make a secret, such as with `openssl rand -base64 24`, and keep it with ansible-vault"
        yield Finding(path, HIDDEN, "a placeholder, which everybody knows", mend)


def _check_numbers(host: str, variables: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    users, groups = variables.get("lab_users"), variables.get("lab_groups")
    if users is None or groups is None:
        return
    # who got no number has a finding of its own
    places_of = {user["name"]: place for place, user in enumerate(users)}
    users = [user for user in users if user.get("uid")]
    uids = {user["name"]: user["uid"] for user in facts["users"]}
    gids = {group["name"]: group["gid"] for group in facts["groups"]}
    places: dict[tuple[str, str], tuple[str | int, ...]] = {}
    for user in users:
        place = places_of[user["name"]]
        places["uid", user["name"]] = ("lab_users", place, "uid")
        places["gid", user["name"]] = ("lab_users", place, number_key(user))
    places.update({("gid", group["name"]): ("lab_groups", place, "gid") for place, group in enumerate(groups)})
    told: set[tuple[str | int, ...]] = set()
    registry = Registry.read(users, groups)
    wrong = clashes(registry, uids, gids, host)
    if variables.get("lab_users_subids", True):
        ranges: dict[str, list[SubidRange]] = {}
        for one in facts["subids"]:
            ranges.setdefault(one["file"], []).append(SubidRange(one["owner"], one["start"], one["count"]))
        wrong += subid_clashes(registry, ranges, host)
    for clash in wrong:
        # a user's own group has the same number as the user, which is told once
        path = places[clash.key, clash.name]
        if path not in told:
            told.add(path)
            yield Finding(path, shown(clash.value), clash.problem, clash.mend)


def _check_system(host: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    system = facts["os"]
    if str(system["version"]) not in SYSTEMS.get(system["id"], ()):
        names = ", ".join(f"{name.capitalize()} {'/'.join(versions)}" for name, versions in SYSTEMS.items())
        problem = f"it runs {system.get('pretty') or system['id']}, whose Slurm packages are not known here"
        yield Finding(("host", host), "", problem, f"install one of {names}, or take the host out")


def _check_worker(variables: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    declared, found = variables.get("slurm_gpu_count"), len(facts["gpus"])
    if declared is not None and declared > found:
        message = facts["nvidia"].get("message")
        problem = f"the node has {found}" + (f" ({message})" if message else "")
        mend = f"look at nvidia-smi on the node, or set it to {found}"
        yield Finding(("slurm_gpu_count",), shown(declared), problem, mend)
    reserve = variables.get("slurm_memory_reserve_mib")
    if reserve is not None and reserve >= facts["memory_mib"]:
        problem = f"the node has {facts['memory_mib']} MiB, so nothing would be left for jobs"
        yield Finding(("slurm_memory_reserve_mib",), shown(reserve), problem, "reserve less, or leave it out")
