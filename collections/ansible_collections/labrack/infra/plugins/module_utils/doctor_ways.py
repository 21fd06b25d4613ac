# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which of the lab's nodes must reach which port of which other. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import nfs_client_plan, storage_layout

#: How many other workers each worker tries; all of them would be the square of their number.
NEIGHBOURS = 4


@dataclass(frozen=True)
class Service:
    """What listens on a TCP port: its systemd ``unit`` and its ``program``, and ``why`` others have to reach it."""

    port: int
    unit: str
    program: str
    why: str


SERVICES: Mapping[str, Service] = {
    "ssh": Service(22, "", "", "people go from the head to their jobs by ssh, and files are copied so"),
    "slurmctld": Service(6817, "slurmctld", "slurmctld", "without it a node takes no jobs, and nobody can submit any"),
    "slurmd": Service(6818, "slurmd", "slurmd", "jobs are started through it, by the controller and by other workers"),
    "slurmdbd": Service(6819, "slurmdbd", "slurmdbd", "accounting and fair share are kept there"),
    "nfs": Service(2049, "nfs-server", "rpc.nfsd", "the shared directories come from there"),
}


@dataclass(frozen=True)
class Way:
    """A service on ``target`` that ``source`` has to reach."""

    source: str
    target: str
    service: str


def ways(groups: Mapping[str, Sequence[str]], orchestrator: str, directories: Iterable[Mapping[str, Any]]) -> list[Way]:
    """Return all ways, each once; the groups are those of the inventory, the directories its ``lab_directories``."""
    found = dict.fromkeys(way for way in _ways(groups, orchestrator, directories) if way.source != way.target)
    return list(found)


def _ways(
    groups: Mapping[str, Sequence[str]], orchestrator: str, directories: Iterable[Mapping[str, Any]]
) -> Iterator[Way]:
    lab = members(groups)
    for head in groups.get("lab_head", ()):
        for host in lab:
            yield Way(head, host, "ssh")
            yield Way(host, head, "ssh")
    if orchestrator == "slurm":
        controllers, databases = groups.get("slurm_controller", ()), groups.get("slurm_database", ())
        workers, logins = groups.get("slurm_worker", ()), groups.get("slurm_login", ())
        for host in (*workers, *logins, *databases):
            yield from (Way(host, controller, "slurmctld") for controller in controllers)
        for host in (*controllers, *logins):
            yield from (Way(host, database, "slurmdbd") for database in databases)
            yield from (Way(host, worker, "slurmd") for worker in workers)
        for place, worker in enumerate(workers):
            for step in range(1, min(NEIGHBOURS, len(workers) - 1) + 1):
                yield Way(worker, workers[(place + step) % len(workers)], "slurmd")
    layout = storage_layout.read(directories, groups.get(storage_layout.GROUP, ()))
    for host in lab:
        yield from (Way(host, share.server, "nfs") for share in nfs_client_plan.shares(layout, host))


def members(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the hosts of the lab."""
    return list(dict.fromkeys([*groups.get("lab_head", ()), *groups.get("lab_workers", ())]))


def services(
    host: str, groups: Mapping[str, Sequence[str]], orchestrator: str, directories: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what others reach on a host, as the module ``node_doctor`` takes it."""
    wanted = dict.fromkeys(way.service for way in ways(groups, orchestrator, directories) if way.target == host)
    return [
        {"service": name, "port": SERVICES[name].port, "unit": SERVICES[name].unit, "program": SERVICES[name].program}
        for name in wanted
    ]


def peers(
    groups: Mapping[str, Sequence[str]],
    orchestrator: str,
    directories: Iterable[Mapping[str, Any]],
    addresses: Mapping[str, str],
    looks: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """Return for each host what it tries, as the module ``node_doctor`` takes it.

    ``addresses`` are those of the hosts in the lab, ``looks`` what they said of themselves. A host that said nothing,
    or has no address, is nobody's peer.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for way in ways(groups, orchestrator, directories):
        address, look = addresses.get(way.target), looks.get(way.target)
        if not address or look is None:
            continue
        ports = {one["service"]: one["port"] for one in look["services"]}
        peer = {"name": way.target, "address": address, "ports": []}
        port = {"service": way.service, "port": ports.get(way.service, SERVICES[way.service].port)}
        found.setdefault(way.source, {}).setdefault(way.target, peer)["ports"].append(port)
    return {host: list(those.values()) for host, those in found.items()}
