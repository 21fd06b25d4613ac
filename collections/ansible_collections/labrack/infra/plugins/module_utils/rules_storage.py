# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for the directories that the lab shares: paths, servers, subnets, projects, quotas; disks and their quotas."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import nfs_plan, quota_plan, storage_layout
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, duplicates, shown
from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import Limit
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import GROUP, Directory, inside

PATH = re.compile(r"(/[A-Za-z0-9_.@+-]+)+")
#: Folders that are the system's own, with all in them.
SYSTEM = tuple(
    f"/{name}"
    for name in ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "tmp", "usr")
)
#: Those in which a folder may be the lab's.
SYSTEM_TOPS = (
    "/",
    *(f"/{name}" for name in ("media", "mnt", "opt", "srv", "var", "var/lib", "var/log", "var/tmp")),
)


def check_storage(inventory: Inventory, variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with the lab's directories as these variables of a host have them."""
    entries = variables.get("lab_directories") or ()
    servers = inventory.members(GROUP)
    bad = set()
    for place, entry in enumerate(entries):
        for finding in _check_directory(inventory, place, entry):
            bad.add(place)
            yield finding
    yield from _check_overlaps(entries, bad)
    directories = storage_layout.read([one for place, one in enumerate(entries) if place not in bad], servers)
    yield from _check_projects(variables, directories, complete=not bad)
    yield from _check_user_quotas(variables, directories, complete=not bad)
    yield from _check_subnet(variables)
    grace, threads = variables.get("nfs_server_grace"), variables.get("nfs_server_threads")
    # nfsd takes 10 to 3600 seconds
    if grace is not None and not 10 <= grace <= 3600:
        yield Finding(("nfs_server_grace",), shown(grace), "not 10 to 3600 seconds", "write 60, or leave it out")
    if threads is not None and not 0 <= threads <= 1024:
        yield Finding(("nfs_server_threads",), shown(threads), "not 0 to 1024", "write 0, or leave it out")


def check_storage_hosts(inventory: Inventory) -> Iterator[Finding]:
    """Yield what is wrong with where servers and clients are."""
    lab = {*inventory.members("lab_head"), *inventory.members("lab_workers")}
    for host in inventory.members(GROUP):
        if host not in lab:
            mend = f"put {host} into one of them, or take it out of {GROUP}"
            yield Finding(("group", GROUP), host, "it is in neither lab_head nor lab_workers", mend, (host,))
    for host in sorted(lab):
        address = inventory.hosts[host].get("lab_address")
        if address:
            yield from _outside(inventory, host, str(address), "lab_address")


def check_storage_facts(host: str, inventory: Inventory) -> Iterator[Finding]:
    """Yield what keeps a node from having or reaching the lab's directories, by what it is."""
    variables, facts = inventory.hosts[host], inventory.facts[host]
    if variables.get("nfs_server_state", "present") != "present":
        return
    lab = {*inventory.members("lab_head"), *inventory.members("lab_workers")}
    address = (facts.get("addresses") or {}).get("default_ipv4")
    if host in lab and address and not variables.get("lab_address"):
        yield from _outside(inventory, host, str(address), "")
    entries = variables.get("lab_directories") or ()
    servers = inventory.members(GROUP)
    directories = storage_layout.read(entries, servers)
    fstab = {one["mount"]: one for one in facts.get("fstab") or ()}
    disks = {one["mount"]: one for one in facts.get("disks") or ()}
    mounted = {*disks, *(mount for mount, one in fstab.items() if one["mounted"])}
    missing = set()
    for one in directories:
        if one.provided or not one.local_to(host):
            continue
        guard = nfs_plan.guard_of(one, {mount: entry["device"] for mount, entry in fstab.items()})
        if guard and guard not in mounted and (guard in fstab or one.filesystem):
            # the role leaves it out and fails at its end: one dead disk must not keep somebody from being locked
            missing.add(one.path)
    if host in servers or not servers:
        yield from _check_quota_facts(host, variables, directories, disks, missing)


def _check_directory(inventory: Inventory, place: int, entry: Mapping[str, Any]) -> Iterator[Finding]:
    where = ("lab_directories", place)
    for key in ("path", "source", "filesystem"):
        if entry.get(key) and not _is_path(entry[key], key == "filesystem"):
            mend = "write it from / on, with letters, digits and . _ - + @ alone, without .. and a / at its end"
            yield Finding((*where, key), shown(entry[key]), "not an absolute path that can be served", mend)
    source = entry.get("source") or entry.get("path")
    key = "source" if entry.get("source") else "path"
    for name, folder in dict.fromkeys(((key, source), ("path", entry.get("path")))):
        if folder in SYSTEM_TOPS or any(inside(str(folder), system) for system in SYSTEM):
            mend = "take a folder of its own, such as /srv/lab/home" if name == "source" else "take another path"
            yield Finding((*where, name), shown(folder), "a folder of the system", mend)
            break
    if entry.get("filesystem") and _is_path(entry["filesystem"], True) and not inside(str(source), entry["filesystem"]):
        mend = "name the mount point of the disk that holds it"
        yield Finding((*where, "filesystem"), shown(entry["filesystem"]), f"{source} does not lie in it", mend)
    server, servers = entry.get("server"), inventory.members(GROUP)
    if server and server not in servers:
        mend = f"put {server} into the group {GROUP}, or leave it out for the first host there"
        yield Finding((*where, "server"), shown(server), f"no host of the group {GROUP}", mend)
    if entry.get("provided") and entry.get("source") and entry["source"] != entry["path"]:
        yield Finding((*where, "source"), shown(entry["source"]), "what is provided has no source here", "leave it out")
    yield from _check_mode(where, entry.get("mode"))


def _check_mode(where: tuple[str | int, ...], mode: Any) -> Iterator[Finding]:
    if mode is not None and not re.fullmatch(r"[0-7]{3,4}", str(mode)):
        yield Finding((*where, "mode"), shown(mode), "not a mode", 'write it as "0755"')


def _is_path(path: str, root: bool = False) -> bool:
    if path == "/":
        return root
    return bool(PATH.fullmatch(path)) and not {".", ".."} & set(path.split("/"))


def _check_overlaps(entries: Sequence[Mapping[str, Any]], bad: set[int]) -> Iterator[Finding]:
    for place, first in duplicates(entry["path"] for entry in entries):
        mend = "keep one of them"
        problem = f"also the path of lab_directories[{first}]"
        yield Finding(("lab_directories", place, "path"), shown(entries[place]["path"]), problem, mend)
    good = [(place, entry) for place, entry in enumerate(entries) if place not in bad]
    for place, entry in good:
        for other_place, other in good:
            if other_place == place:
                continue
            path, beyond = entry["path"], other["path"]
            if path != beyond and inside(path, beyond):
                problem = f"inside {beyond} of lab_directories[{other_place}]"
                mend = "share the upper one alone; lab_projects makes directories in it"
                yield Finding(("lab_directories", place, "path"), shown(path), problem, mend)
            source, around = entry.get("source") or path, other.get("source") or beyond
            same_host = (entry.get("server") or "") == (other.get("server") or "")
            provided = entry.get("provided") or other.get("provided")
            nested = inside(source, around) and (source != around or place > other_place)
            if nested and same_host and not provided and path != beyond and not inside(path, beyond):
                problem = f"in {around}, which lab_directories[{other_place}] has for {beyond}"
                key = "source" if entry.get("source") else "path"
                mend = "give every directory a folder of its own, side by side"
                yield Finding(("lab_directories", place, key), shown(source), problem, mend)
            if place != other_place and same_host and not provided and path != source and inside(around, path):
                problem = f"it would hide {around}, which is served as {beyond}"
                yield Finding(("lab_directories", place, "path"), shown(path), problem, "move one of the two")
    for place, entry in good:
        path, source = entry["path"], entry.get("source") or entry["path"]
        if path != source and (inside(path, source) or inside(source, path)):
            problem, mend = f"{path} and {source} lie in each other", "take a source beside it, such as /srv/lab"
            yield Finding(("lab_directories", place, "source"), shown(source), problem, mend)


def _check_projects(
    variables: Mapping[str, Any], directories: Sequence[Directory], complete: bool
) -> Iterator[Finding]:
    projects = variables.get("lab_projects") or ()
    groups = variables.get("lab_groups")
    for place, project in enumerate(projects):
        where = ("lab_projects", place)
        path = project["path"]
        if not _is_path(path):
            mend = "write it from / on, with letters, digits and . _ - + @ alone"
            yield Finding((*where, "path"), shown(path), "not an absolute path that can be served", mend)
        elif complete and not any(inside(path, one.path) and path != one.path for one in directories):
            mend = "put it below one of lab_directories, such as /checkpoints/NAME"
            yield Finding((*where, "path"), shown(path), "outside every directory of lab_directories", mend)
        if groups is not None and project["group"] not in {group["name"] for group in groups}:
            mend = f"add {project['group']} to lab_groups, with a gid"
            yield Finding((*where, "group"), shown(project["group"]), "not in lab_groups", mend)
        yield from _check_mode(where, project.get("mode"))
        yield from _check_limit(where, project, "quota_soft", "quota_hard")
        directory = storage_layout.covering(directories, path)
        if directory is not None and directory.provided and (project.get("quota_soft") or project.get("quota_hard")):
            problem = f"{directory.path} is provided by something else, which has its own quotas"
            yield Finding((*where, "path"), shown(path), problem, "take the quota out")
    for place, first in duplicates(project["path"] for project in projects):
        problem = f"also the path of lab_projects[{first}]"
        yield Finding(("lab_projects", place, "path"), shown(projects[place]["path"]), problem, "keep one of them")
    for place, project in enumerate(projects):
        for other in projects:
            if other["path"] != project["path"] and inside(project["path"], other["path"]):
                problem = f"inside {other['path']}, and a file counts for one project"
                mend = "put the projects side by side"
                yield Finding(("lab_projects", place, "path"), shown(project["path"]), problem, mend)


def _check_user_quotas(
    variables: Mapping[str, Any], directories: Sequence[Directory], complete: bool
) -> Iterator[Finding]:
    quotas = variables.get("nfs_server_user_quotas") or ()
    users = variables.get("lab_users")
    for place, quota in enumerate(quotas):
        where: tuple[str | int, ...] = ("nfs_server_user_quotas", place)
        directory = next((one for one in directories if one.path == quota["path"]), None)
        if directory is None and complete:
            mend = f"use one of {', '.join(one.path for one in directories) or 'lab_directories'}"
            yield Finding((*where, "path"), shown(quota["path"]), "no path of lab_directories", mend)
        elif directory is not None and directory.provided:
            problem = "something else provides it, which has its own quotas"
            yield Finding((*where, "path"), shown(quota["path"]), problem, "take the entry out")
        yield from _check_limit(where, quota, "soft", "hard")
        for number, user in enumerate(quota.get("users") or ()):
            if users is not None and user["name"] not in {one["name"] for one in users}:
                mend = "add the user to lab_users, or take the entry out"
                yield Finding((*where, "users", number, "name"), shown(user["name"]), "not in lab_users", mend)
            yield from _check_limit((*where, "users", number), user, "soft", "hard")
    for place, first in duplicates(quota["path"] for quota in quotas):
        problem = f"also the path of nfs_server_user_quotas[{first}]"
        yield Finding(
            ("nfs_server_user_quotas", place, "path"), shown(quotas[place]["path"]), problem, "keep one of them"
        )


def _check_limit(where: tuple[str | int, ...], entry: Mapping[str, Any], soft: str, hard: str) -> Iterator[Finding]:
    sizes = {}
    for key in (soft, hard):
        try:
            sizes[key] = quota_plan.kib(entry.get(key) or "0")
        except ValueError:
            yield Finding((*where, key), shown(entry[key]), "not a size", "write it as 50G or 1.5T, or 0 for no limit")
    if len(sizes) == 2 and sizes[hard] and sizes[soft] > sizes[hard]:
        problem = f"more than {hard}, {entry[hard]}"
        yield Finding((*where, soft), shown(entry[soft]), problem, f"make it less than {hard}, or leave it out")


def _check_subnet(variables: Mapping[str, Any]) -> Iterator[Finding]:
    subnet = variables.get("nfs_server_subnet")
    if subnet:
        network = _network(subnet)
        if network is None:
            mend = "write it as 10.0.0.0/24"
            yield Finding(("nfs_server_subnet",), shown(subnet), "not a subnet", mend)
        elif network.prefixlen == 0:
            problem, mend = (
                "everybody's address, and homes are not for everybody",
                "write your own network, 10.0.0.0/24",
            )
            yield Finding(("nfs_server_subnet",), shown(subnet), problem, mend)


def _network(subnet: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(subnet) if "/" in subnet else None
    except ValueError:
        return None


def _outside(inventory: Inventory, host: str, address: str, key: str) -> Iterator[Finding]:
    """Yield a node whose address the servers would turn away."""
    if host in inventory.members(GROUP):
        return
    for server in inventory.members(GROUP)[:1]:
        variables = inventory.hosts.get(server, {})
        network = _network(str(variables.get("nfs_server_subnet") or ""))
        try:
            known = ipaddress.ip_address(address)
        except ValueError:
            continue
        if network is not None and network.prefixlen and variables.get("lab_directories") and known not in network:
            problem = f"{address} of {host} is not in nfs_server_subnet {network}, so {server} would turn it away"
            mend = f"widen nfs_server_subnet, or set lab_address to an address of {host} in it"
            path = (key,) if key else ("host", host)
            yield Finding(path, shown(address) if key else "", problem, mend, (host,))


def _check_quota_facts(
    host: str,
    variables: Mapping[str, Any],
    directories: Sequence[Directory],
    disks: Mapping[str, Mapping[str, Any]],
    missing: set[str],
) -> Iterator[Finding]:
    needs: list[tuple[tuple[str | int, ...], str, str]] = []
    for place, quota in enumerate(variables.get("nfs_server_user_quotas") or ()):
        needs.append((("nfs_server_user_quotas", place, "path"), quota["path"], "user"))
    for place, project in enumerate(variables.get("lab_projects") or ()):
        limit = Limit(*(_size(project.get(key)) for key in ("quota_soft", "quota_hard")))
        if limit != Limit():
            needs.append((("lab_projects", place, "path"), project["path"], "project"))
    for where, path, kind in needs:
        directory = storage_layout.covering(directories, path)
        if directory is None or directory.provided or not directory.local_to(host) or directory.path in missing:
            continue
        source = storage_layout.on_server(directories, path)
        mount = max((point for point in disks if inside(source, point)), key=len, default="")
        disk = disks.get(mount, {})
        if disk and kind not in (disk.get("quotas") or ()):
            problem = f"it is to have {kind} quotas, and {mount} ({disk['fstype']}) of {host} is mounted without them"
            mend = quota_plan.mend(disk["fstype"], disk["device"], mount, kind)
            yield Finding(where, shown(path), problem, mend)


def _size(text: Any) -> int:
    try:
        return quota_plan.kib(text or "0")
    except ValueError:
        return 0
