# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for the SkyPilot server: one host, roles, hashes, machines, ports, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import skypilot_config as config
from ansible_collections.labrack.infra.plugins.module_utils import skypilot_plan
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, shown

GROUP = "skypilot"
NAMES = (
    *("users", "infra", "ssh_pools_accept", "port", "tls_cert", "tls_key", "memory_max", "mounts"),
    *("state", "settings"),
)


def servers(inventory: Inventory) -> list[str]:
    """Return the hosts that are the lab's server: of the group ``skypilot``, or the head where that is empty."""
    members = list(inventory.members(GROUP))
    if members:
        return members
    return [
        host for host in inventory.members("lab_head") if inventory.hosts[host].get("lab_orchestrator") == "skypilot"
    ]


def check_skypilot(inventory: Inventory) -> Iterator[Finding]:
    """Yield what is wrong in the variables of the server, without asking it."""
    hosts = servers(inventory)
    if len(hosts) > 1:
        problem, mend = "more than one host is in it, and a lab has one server", "keep one"
        yield Finding(("group", GROUP), ", ".join(hosts), problem, mend)
    for host in hosts:
        variables = inventory.hosts[host]
        if variables.get("skypilot_state", "present") != "present":
            continue
        for one in skypilot_plan.problems(parameters(variables)):
            value = shown(one.value) if one.value else ""
            yield Finding((one.key, *one.path), value, one.what, one.mend, (host,))


def check_skypilot_facts(host: str, inventory: Inventory) -> Iterator[Finding]:
    """Yield what keeps a node from being the server."""
    if host not in servers(inventory) or inventory.hosts[host].get("skypilot_state", "present") != "present":
        return
    memory = inventory.facts[host].get("memory_mib") or 0
    if 0 < memory < config.LEAST_MEMORY_MIB:
        problem = f"it has {memory} MiB of memory, too little for the server"
        mend = f"put the server on a host with {config.LEAST_MEMORY_MIB} MiB or more"
        yield Finding(("host", host), "", problem, mend)
    yield from _check_port(inventory.hosts[host], inventory.facts[host])
    yield from _check_contexts(inventory.hosts[host], inventory.facts[host])
    yield from _check_schedulers(host, inventory)


def _check_port(variables: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a program of somebody else's in the server's place; what is root's may be the server's own."""
    port = parameters(variables)["port"]
    who = (facts.get("listeners") or {}).get(str(port), "")
    if who and who not in ("root", config.USER, config.PROXY_USER):
        problem = f"port {port} is taken by a program of {who}"
        yield Finding(("skypilot_port",), str(port), problem, "set it to another; ss -ltnp shows the program")


def _check_contexts(variables: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield kubeconfigs and contexts that aren't on the server, unless this run is to bring k3s up."""
    seen = facts.get("kubeconfigs") or {}
    own = variables.get("lab_orchestrator") == "skypilot" and variables.get("k3s_state", "present") == "present"
    for place, entry in enumerate((variables.get("skypilot_infra") or {}).get("kubernetes") or ()):
        path, wanted = config.kubeconfig_of(entry), config.context_of(entry)
        where = ("skypilot_infra", "kubernetes", place)
        if path not in seen or (path == config.K3S_KUBECONFIG and own and seen[path] is None):
            continue
        known = seen[path]
        if known is None:
            mend = "bring Kubernetes up first, or correct the path"
            yield Finding((*where, "kubeconfig"), shown(path), "there is no such file on the host", mend)
        elif wanted not in known:
            problem = f"{path} has only {', '.join(known) or 'none'}"
            yield Finding((*where, "context"), shown(wanted), problem, "name one of these")


def _check_schedulers(server: str, inventory: Inventory) -> Iterator[Finding]:
    """Yield the lab's own Kubernetes beside its own Slurm where both give out the same GPUs."""
    infra = inventory.hosts[server].get("skypilot_infra") or {}
    contexts = infra.get("kubernetes") or ()
    clusters = [place for place, one in enumerate(contexts) if config.kubeconfig_of(one) == config.K3S_KUBECONFIG]
    slurm = [one for one in infra.get("slurm") or () if not one.get("host")]
    if not clusters or not slurm:
        return
    for host, facts in inventory.facts.items():
        # where k3s is the lab's own, its rules tell of it
        own = inventory.hosts[host].get("lab_orchestrator") == "skypilot"
        runs = {one["what"] for one in facts.get("conflicts") or ()}
        worker = "slurmd" in runs or host in inventory.members("slurm_worker")
        if facts["gpus"] and worker and runs & {"k3s", "k3s-agent"} and not own:
            other = shown(slurm[0].get("name"))
            problem = f"this k3s and Slurm ({other}) both give out the GPUs of {host}, so that two jobs get one card"
            unit = sorted(runs & {"k3s", "k3s-agent"})[0]
            mend = f"take this entry or the one in slurm out, and on {host}, as root: systemctl disable --now {unit}"
            path = ("skypilot_infra", "kubernetes", clusters[0])
            yield Finding(path, shown(contexts[clusters[0]].get("name")), problem, mend)


def parameters(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the role's variables as the module's parameters, those that the problems are about."""
    empty: dict[str, Any] = {"port": 46443, "memory_max": "6G"}
    found = {name: variables.get(f"skypilot_{name}", empty.get(name)) for name in NAMES}
    found["policy"] = variables.get("skypilot_admin_policy")
    return {**found, "lab_users": variables.get("lab_users") or []}
