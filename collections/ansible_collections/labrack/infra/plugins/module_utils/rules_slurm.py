# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for Slurm: cluster, accounts, QOS and partitions, and how they name each other."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, duplicates, shown

#: slurm.conf(5), ClusterName: lower case; the accounting's table names hold it.
CLUSTER_NAME = re.compile(r"[a-z0-9_]{1,40}")
#: Accounts and QOS are lower case in the accounting database.
DATABASE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")
PARTITION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
#: A host name that needs no quoting in slurm.conf, sinfo's node lists and DNS.
NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
#: sbatch(1), --time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
TIME = re.compile(r"(?:(?P<days>\d+)-(?P<long>\d+(?::\d+){0,2})|(?P<short>\d+(?::\d+){0,2}))")
UNLIMITED = ("UNLIMITED", "INFINITE")
TIME_MEND = 'write it as "8:00:00" (hours:minutes:seconds) or "7-00:00:00" (with days), in quotes'


def seconds(text: str) -> float | None:
    """Return a Slurm time limit in seconds, infinity for none, None for a text that Slurm does not take."""
    if text.upper() in UNLIMITED:
        return float("inf")
    found = TIME.fullmatch(text)
    if not found:
        return None
    parts = [int(part) for part in (found["long"] or found["short"]).split(":")]
    units = (3600, 60, 1) if found["days"] or len(parts) == 3 else (60, 1)
    return int(found["days"] or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units))


def check_slurm(inventory: Inventory, variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in the lab's Slurm variables; what is missing is not looked at."""
    name = variables.get("slurm_cluster_name")
    if name is not None and not CLUSTER_NAME.fullmatch(name):
        mend = "use up to 40 lower-case letters, digits and _"
        yield Finding(("slurm_cluster_name",), shown(name), "not a cluster name that Slurm takes", mend)
    yield from _check_accounts(variables)
    yield from _check_qos(variables)
    yield from _check_partitions(inventory, variables)


def check_slurm_node(host: str, variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with one node's name and Slurm variables."""
    if not NODE_NAME.fullmatch(host):
        mend = "use a short host name of letters, digits and -; the address goes to ansible_host"
        yield Finding(("host", host), "", "not a node name that Slurm takes", mend, (host,))
    for key in ("slurm_memory_reserve_mib", "slurm_gpu_count", "slurm_max_gpus_per_user"):
        if (variables.get(key) or 0) < 0:
            yield Finding((key,), shown(variables[key]), "less than 0", "use 0 or more, or leave it out", (host,))


def _check_accounts(variables: Mapping[str, Any]) -> Iterator[Finding]:
    accounts = variables.get("slurm_accounts")
    if accounts is None:
        return
    yield from _check_names("slurm_accounts", accounts, DATABASE_NAME)
    parents = {account["name"]: account.get("parent") for account in accounts}
    for place, account in enumerate(accounts):
        parent = account.get("parent")
        path = ("slurm_accounts", place, "parent")
        if parent not in (None, "root", *parents):
            yield Finding(path, shown(parent), "no such account", "add it to slurm_accounts, or name one that is there")
        elif account["name"] in _ancestors(account["name"], parents):
            problem = f"{account['name']} would be above itself"
            yield Finding(path, shown(parent), problem, "give one account of the circle another parent, or none")
        yield from _check_known(variables, "slurm_qos", ("slurm_accounts", place, "qos"), account.get("qos"))
    default = variables.get("slurm_default_account")
    yield from _check_known(variables, "slurm_accounts", ("slurm_default_account",), default)
    for place, user in enumerate(variables.get("lab_users") or ()):
        yield from _check_known(variables, "slurm_accounts", ("lab_users", place, "account"), user.get("account"))


def _ancestors(name: str, parents: Mapping[str, str | None]) -> set[str]:
    found: set[str] = set()
    above = parents.get(name)
    while above and above not in found:
        found.add(above)
        above = parents.get(above)
    return found


def _check_qos(variables: Mapping[str, Any]) -> Iterator[Finding]:
    every = variables.get("slurm_qos")
    if every is None:
        return
    yield from _check_names("slurm_qos", every, DATABASE_NAME)
    for place, qos in enumerate(every):
        path = ("slurm_qos", place)
        yield from _check_known(variables, "slurm_qos", (*path, "preempt"), qos.get("preempt"))
        if qos["name"] in (qos.get("preempt") or ()):
            mend = "take it out of its own list"
            yield Finding((*path, "preempt"), shown(qos["name"]), "it would preempt itself", mend)
        if qos.get("max_wall") is not None and seconds(qos["max_wall"]) is None:
            yield Finding((*path, "max_wall"), shown(qos["max_wall"]), "not a time limit", TIME_MEND)
        for key in ("max_gpus_per_user", "max_jobs_per_user", "max_submit_per_user", "priority", "grace_time"):
            if (qos.get(key) or 0) < 0:
                yield Finding((*path, key), shown(qos[key]), "less than 0", "use 0 or more, or leave it out")
    yield from _check_known(variables, "slurm_qos", ("slurm_default_qos",), variables.get("slurm_default_qos"))


def _check_partitions(inventory: Inventory, variables: Mapping[str, Any]) -> Iterator[Finding]:
    partitions = variables.get("slurm_partitions")
    if partitions is None:
        return
    if not partitions:
        yield Finding(("slurm_partitions",), "[]", "no queue to send a job to", "name one, or leave the key out")
    yield from _check_names("slurm_partitions", partitions, PARTITION_NAME)
    workers = inventory.members("slurm_worker")
    defaults = [place for place, partition in enumerate(partitions) if partition.get("default")]
    for place in defaults[1:]:
        problem = f"{partitions[defaults[0]]['name']} is the default partition already"
        yield Finding(("slurm_partitions", place, "default"), "true", problem, "keep default: true on one of them")
    for place, partition in enumerate(partitions):
        path = ("slurm_partitions", place)
        nodes = partition.get("nodes")
        if nodes == []:
            mend = "name workers, or leave nodes out for all of them"
            yield Finding((*path, "nodes"), "[]", f"partition {partition['name']} has no nodes", mend)
        for where, node in enumerate(nodes or ()):
            if node not in workers:
                mend = "name a host of the group slurm_worker, or leave nodes out for all of them"
                yield Finding((*path, "nodes", where), shown(node), "no worker of that name", mend)
        limits = {key: seconds(partition[key]) for key in ("default_time", "max_time")}
        for key in [key for key, limit in limits.items() if limit is None]:
            yield Finding((*path, key), shown(partition[key]), "not a time limit", TIME_MEND)
        if None not in limits.values() and (limits["default_time"] or 0) > (limits["max_time"] or 0):
            problem = f"more than max_time, {partition['max_time']}"
            value = shown(partition["default_time"])
            yield Finding((*path, "default_time"), value, problem, "make it max_time or less")
        yield from _check_known(variables, "slurm_qos", (*path, "qos"), partition.get("qos"))
        allowed = partition.get("allow_accounts")
        yield from _check_known(variables, "slurm_accounts", (*path, "allow_accounts"), allowed)


def _check_names(kind: str, entries: Sequence[Mapping[str, Any]], pattern: re.Pattern[str]) -> Iterator[Finding]:
    for place, entry in enumerate(entries):
        if not pattern.fullmatch(entry["name"]) or entry["name"] == "DEFAULT":
            letters = "letters" if pattern is PARTITION_NAME else "lower-case letters"
            mend = f"use up to 40 {letters}, digits, _ and -"
            yield Finding((kind, place, "name"), shown(entry["name"]), "not a name that Slurm takes", mend)
    for place, first in duplicates(entry["name"] for entry in entries):
        problem = f"also the name of {kind}[{first}]"
        yield Finding((kind, place, "name"), shown(entries[place]["name"]), problem, "keep one of them")


def _check_known(
    variables: Mapping[str, Any], kind: str, path: tuple[str | int, ...], names: str | Collection[str] | None
) -> Iterator[Finding]:
    """Yield a finding for each name that ``kind`` (``slurm_accounts`` or ``slurm_qos``) does not hold."""
    entries = variables.get(kind)
    if entries is None or names is None:
        return
    known = {entry["name"] for entry in entries}
    if kind == "slurm_qos":
        known.add("normal")  # Slurm makes it by itself
    what = "account" if kind == "slurm_accounts" else "QOS"
    listed = not isinstance(names, str)
    for where, name in enumerate([names] if isinstance(names, str) else names):
        if name not in known:
            mend = f"add it to {kind}, or name one of {', '.join(sorted(known))}"
            yield Finding((*path, where) if listed else path, shown(name), f"no such {what}", mend)
