# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for k3s: version, addresses, names, quotas, ways to give out GPUs, and one scheduler for each GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import k3s_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils.finding import (
    HIDDEN,
    Finding,
    Inventory,
    duplicates,
    shown,
)
from ansible_collections.labrack.infra.plugins.module_utils.rules_gpu import URL

#: The oldest version whose kubelet takes a drop-in without being told of it (k3s 1.32), and what is still supported.
OLDEST = (1, 33)
#: The versions of Kubernetes that the operator of the default chart supports (v26.7, platform-support).
OPERATOR = ((1, 33), (1, 36))
MEMORY = re.compile(r"[1-9]\d*(Ki|Mi|Gi|Ti)")
#: Namespaces in which a quota would stop the cluster's own pods.
SYSTEM_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease", "gpu-operator")
#: MiB below which a server with its pods runs out of memory.
SERVER_MEMORY = 1800
OWN_DAEMONS = ("k3s", "k3s-agent", "snap docker")


def check_k3s(host: str, variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in the variables of a host of a cluster, without asking it."""
    if variables.get("k3s_state", "present") != "present":
        return
    if not planner.NAME.fullmatch(host):
        problem = "no name for a node of Kubernetes, which takes small letters, digits and -"
        yield Finding(("host", host), "", problem, "give it another name in the inventory")
    version = str(variables.get("k3s_version", ""))
    numbers = planner.numbers(version)
    if not numbers:
        yield Finding(("k3s_version",), shown(version), "not a version of k3s", "write it as v1.36.3+k3s1")
    elif numbers[:2] < OLDEST:
        problem, mend = "too old for this role", f"use v{OLDEST[0]}.{OLDEST[1]} or newer"
        yield Finding(("k3s_version",), shown(version), problem, mend)
    for name in ("k3s_artifact_url", "k3s_gpu_operator_repo_url"):
        value = variables.get(name)
        if value and not URL.fullmatch(value):
            problem, mend = "not a http or https address", "write it as https://mirror.lab/path"
            yield Finding((name,), shown(value), problem, mend)
    for machine, digest in (variables.get("k3s_artifact_sha256") or {}).items():
        if machine not in ("amd64", "arm64"):
            yield Finding(("k3s_artifact_sha256", str(machine)), "", "no such architecture", "use amd64 or arm64")
        elif not re.fullmatch(r"[0-9a-fA-F]{64}", str(digest)):
            mend = "take it from the release's sha256sum-amd64.txt; it has 64 hexadecimal digits"
            yield Finding(("k3s_artifact_sha256", str(machine)), shown(digest), "not a SHA-256", mend)
    for place, name in enumerate(variables.get("k3s_disable") or ()):
        if name not in planner.PACKAGED:
            problem = "no component that can be left out"
            if name == "runtimes":
                problem += ", as pods get GPUs by it"
            mend = f"use some of {', '.join(planner.PACKAGED)}"
            yield Finding(("k3s_disable", place), shown(name), problem, mend)
    yield from _check_settings(variables)
    yield from _check_gpus(variables, numbers)
    yield from _check_namespaces(variables)
    yield from _check_readers(variables)


def _check_settings(variables: Mapping[str, Any]) -> Iterator[Finding]:
    for key in variables.get("k3s_settings") or {}:
        # "key+" adds to a list (docs.k3s.io, configuration file)
        if str(key).rstrip("+") in planner.OWN_KEYS:
            problem, mend = "this role sets that key itself", "use the role's variable for it, or take it out"
            yield Finding(("k3s_settings", str(key)), HIDDEN, problem, mend)
        elif not re.fullmatch(r"[a-z][a-z0-9-]*\+?", str(key)):
            mend = "write it as k3s' flag without its dashes"
            yield Finding(("k3s_settings", str(key)), "", "no key of config.yaml", mend)
    for name in variables.get("k3s_environment") or {}:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            mend = "use letters, digits and _"
            yield Finding(("k3s_environment", str(name)), "", "no name of an environment variable", mend)
        elif str(name) in ("K3S_TOKEN", "K3S_URL", "K3S_AGENT_TOKEN", "K3S_DATA_DIR", "K3S_CONFIG_FILE"):
            problem, mend = "this role sets that itself, in config.yaml", "take it out"
            yield Finding(("k3s_environment", str(name)), HIDDEN, problem, mend)


def _check_gpus(variables: Mapping[str, Any], numbers: tuple[int, ...]) -> Iterator[Finding]:
    way = variables.get("k3s_device_plugin")
    replicas = variables.get("k3s_gpu_replicas", 1)
    if replicas < 1:
        yield Finding(("k3s_gpu_replicas",), shown(replicas), "less than one share", "write 1 for a whole GPU")
    if way == "none":
        for key, default in (("k3s_gpu_replicas", 1), ("k3s_mig_strategy", "none")):
            if variables.get(key, default) != default:
                problem = "without a device plugin nobody gives out GPUs"
                mend = f"set k3s_device_plugin to manifest, or take {key} out"
                yield Finding((key,), shown(variables[key]), problem, mend)
    low, high = OPERATOR
    if way == "gpu_operator" and numbers and not low <= numbers[:2] <= high:
        known = f"v{low[0]}.{low[1]} to v{high[0]}.{high[1]}"
        problem = f"the GPU operator supports {known}, and k3s_version is {variables.get('k3s_version')}"
        yield Finding(("k3s_device_plugin",), shown(way), problem, "use manifest, or such a version of k3s")


def _check_namespaces(variables: Mapping[str, Any]) -> Iterator[Finding]:
    wishes = variables.get("k3s_namespaces") or ()
    for place, first in duplicates(wish["name"] for wish in wishes):
        problem = f"also the name of k3s_namespaces[{first}]"
        yield Finding(("k3s_namespaces", place, "name"), shown(wishes[place]["name"]), problem, "keep one of them")
    for place, wish in enumerate(wishes):
        name = wish["name"]
        if not planner.NAME.fullmatch(name):
            mend = "use small letters, digits and -"
            yield Finding(("k3s_namespaces", place, "name"), shown(name), "no name for a namespace", mend)
        elif name in SYSTEM_NAMESPACES or name.startswith("kube-"):
            problem, mend = "the cluster's own, which a quota would stop", "use another name"
            yield Finding(("k3s_namespaces", place, "name"), shown(name), problem, mend)
        if wish.get("gpus") is not None and wish["gpus"] < 0:
            mend = "write 0 for no GPU, or leave it out for no limit"
            yield Finding(("k3s_namespaces", place, "gpus"), shown(wish["gpus"]), "less than none", mend)
        if wish.get("cpus") is not None and wish["cpus"] < 1:
            mend = "write 1 or more, or leave it out for no limit"
            yield Finding(("k3s_namespaces", place, "cpus"), shown(wish["cpus"]), "too few for any pod", mend)
        if wish.get("memory") and not MEMORY.fullmatch(wish["memory"]):
            mend = "write it as 64Gi"
            yield Finding(("k3s_namespaces", place, "memory"), shown(wish["memory"]), "not an amount of memory", mend)


def _check_readers(variables: Mapping[str, Any]) -> Iterator[Finding]:
    people = {user["name"]: user.get("state", "present") for user in variables.get("lab_users") or ()}
    for place, name in enumerate(variables.get("k3s_kubeconfig_readers") or ()):
        path = ("k3s_kubeconfig_readers", place)
        if not re.fullmatch(r"[a-z_][a-z0-9_-]*", name):
            yield Finding(path, shown(name), "no name of a user", "name one of lab_users")
        elif people.get(name, "present") != "present":
            problem = f"{name} is {people[name]} in lab_users, and would keep the way into the cluster"
            yield Finding(path, shown(name), problem, "take it out")


def check_k3s_facts(host: str, variables: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong between the variables of a host of a cluster and what it is."""
    if variables.get("k3s_state", "present") != "present":
        return
    people = {user["name"] for user in variables.get("lab_users") or ()} | {user["name"] for user in facts["users"]}
    for place, name in enumerate(variables.get("k3s_kubeconfig_readers") or ()):
        if name not in people:
            problem, mend = "no user of that name in lab_users or on the node", "add it to lab_users, or take it out"
            yield Finding(("k3s_kubeconfig_readers", place), shown(name), problem, mend)
    address = variables.get("k3s_node_ip")
    if address and address not in facts["addresses"]["ipv4"]:
        have = ", ".join(facts["addresses"]["ipv4"])
        mend = "write the one by which the other nodes reach it"
        yield Finding(("k3s_node_ip",), shown(address), f"no address of {host}, which has {have}", mend)
    if facts["memory_mib"] < SERVER_MEMORY:
        problem = f"{facts['memory_mib']} MiB of memory are too little for k3s with its own pods"
        yield Finding(("host", host), "", problem, "give it 2 GiB or more")
    if variables.get("k3s_device_plugin") == "none" or not facts["gpus"]:
        return
    others = [one["what"] for one in facts.get("conflicts") or () if one["what"] not in OWN_DAEMONS]
    if others:
        problem = f"{', '.join(others)} gives out the same GPUs as k3s, so that two jobs get one card"
        mend = f"as root: systemctl disable --now {' '.join(others)}; or set k3s_device_plugin to none"
        yield Finding(("host", host), "", problem, mend)
    cards = [(gpu["name"], gpu.get("memory_mib") or 0) for gpu in facts["gpus"] if gpu.get("name")]
    kinds = sorted({planner.accelerator(*card) for card in cards})
    if len(kinds) > 1:
        problem = (
            f"it has GPUs of two kinds ({', '.join(kinds)}), and Kubernetes counts them as one, so that a job gets any"
        )
        mend = "set lab_orchestrator to slurm, which tells them apart; or k3s_device_plugin to none"
        yield Finding(("host", host), "", problem, mend)
    if variables.get("k3s_mig_strategy") == "none" and any(gpu.get("mig") for gpu in facts["gpus"]):
        problem = "a card is in MIG mode, and its instances would be given to nobody"
        yield Finding(("k3s_mig_strategy",), "none", problem, "use single, or switch MIG off: nvidia-smi -mig 0")


def check_schedulers(host: str, inventory: Inventory) -> Iterator[Finding]:
    """Yield what would give out the GPUs of a host of a cluster a second time: Slurm, by the inventory."""
    variables, facts = inventory.hosts[host], inventory.facts[host]
    if variables.get("k3s_state", "present") != "present" or variables.get("k3s_device_plugin") == "none":
        return
    if facts["gpus"] and host in inventory.members("slurm_worker"):
        problem = "k3s gives out its GPUs, and in this group Slurm would too, so that two jobs get one card"
        mend = f"take {host} out of slurm_worker, or set its k3s_device_plugin to none, or lab_orchestrator to slurm"
        yield Finding(("group", "slurm_worker"), host, problem, mend)
