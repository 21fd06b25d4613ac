# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for hosts that mount the lab's shared directories, and for their scratch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import nfs_client_plan, storage_layout
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, shown
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import Directory, inside

#: What a unit, an export and a rule of tmpfiles.d all take without quotes.
PATH = re.compile(r"(/[\w.@:+=-]+)+", re.ASCII)
#: What the system itself needs to find as it is.
SYSTEM_PATHS = frozenset(
    (
        *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run", "/sbin"),
        *("/sys", "/tmp", "/usr", "/var", "/var/cache", "/var/lib", "/var/log", "/var/run", "/var/spool", "/var/tmp"),  # noqa: S108
    )
)
#: Mount options that are the role's own, with what to write in their place.
OWN_OPTIONS = {
    "vers": "take it out; NFSv4.2 is the only version that is served",
    "ro": "take it out, and write read_only: true or false",
    "nofail": "take it out; it is always given",
    "_netdev": "take it out; it is always given",
    "bg": "take it out; a mount is tried again at the next access",
    "fg": "take it out; a mount is tried again at the next access",
    "noauto": "take it out; nothing is mounted before its first use",
    "auto": "take it out; nothing is mounted before its first use",
}
NCONNECT_MOST = 16


def check_nfs_client(host: str, inventory: Inventory) -> Iterator[Finding]:
    """Yield what is wrong with a host's shared directories and scratch, without asking the host."""
    variables = inventory.hosts[host]
    entries = variables.get("lab_directories") or ()
    scratch = variables.get("lab_scratch") or ""
    for place, entry in enumerate(entries):
        yield from _check_path(("lab_directories", place, "path"), entry["path"])
        yield from _check_options(place, entry)
    if scratch:
        yield from _check_path(("lab_scratch",), scratch)
    nconnect, days = variables.get("nfs_client_nconnect"), variables.get("nfs_client_scratch_days")
    if nconnect is not None and not 1 <= nconnect <= NCONNECT_MOST:
        mend = f"write a number from 1 to {NCONNECT_MOST}"
        yield Finding(("nfs_client_nconnect",), shown(nconnect), "not a number of connections that NFS takes", mend)
    if days is not None and days < 0:
        yield Finding(("nfs_client_scratch_days",), shown(days), "not an age", "write a number of days, or 0 for never")
    directories = storage_layout.read(entries, inventory.members(storage_layout.GROUP))
    yield from _check_nesting(host, directories)
    for place, directory in enumerate(directories):
        if scratch and (inside(scratch, directory.path) or inside(directory.path, scratch)):
            problem = f"it and lab_directories[{place}] ({directory.path}) lie in one another"
            mend = "give it a path of its own; scratch is on each host's own disk"
            yield Finding(("lab_scratch",), shown(scratch), problem, mend)


def _check_path(path: tuple[str | int, ...], value: str) -> Iterator[Finding]:
    if not PATH.fullmatch(value) or {".", ".."} & set(value.split("/")):
        mend = "write it as /data, of letters, digits and _ . - @ : + ="
        yield Finding(path, shown(value), "not an absolute path that every system takes", mend)
    elif value in SYSTEM_PATHS or inside(value, "/proc") or inside(value, "/sys") or inside(value, "/dev"):
        mend = "choose a directory of its own, such as /data"
        yield Finding(path, shown(value), "the system itself needs what is there", mend)


def _check_options(place: int, entry: Mapping[str, Any]) -> Iterator[Finding]:
    for number, option in enumerate(entry.get("options") or ()):
        path = ("lab_directories", place, "options", number)
        key = nfs_client_plan.option_key(option)
        if not option or re.search(r"[\s,\"'\\]", option):
            yield Finding(path, shown(option), "not one mount option", "write each as an entry of its own")
        elif key in OWN_OPTIONS:
            yield Finding(path, shown(option), "this role sets it", OWN_OPTIONS[key])
        elif option in ("soft", "softerr") and not entry.get("read_only"):
            problem = "a write that fails while the server is away would be lost without a word"
            yield Finding(path, shown(option), problem, "take it out, or say read_only: true")
        elif option.startswith("x-"):
            problem = "systemd reads such options in /etc/fstab only"
            yield Finding(path, shown(option), problem, "take it out")


def _check_nesting(host: str, directories: Sequence[Directory]) -> Iterator[Finding]:
    """A mount in a mount would have a boot wait for the outer one's server."""
    places = {id(one): place for place, one in enumerate(directories)}
    shares = nfs_client_plan.shares(directories, host)
    for share in shares:
        for other in shares:
            if other is share or not inside(share.path, other.path):
                continue
            if other.path == share.path and places[id(other)] > places[id(share)]:
                continue
            problem = f"it lies in {other.path}, which is mounted too, and would have a boot wait for {other.server}"
            mend = f"share it beside {other.path}, or as a folder of it"
            if other.path == share.path:
                problem, mend = f"also the path of lab_directories[{places[id(other)]}]", "keep one of them"
            yield Finding(("lab_directories", places[id(share)], "path"), share.path, problem, mend)
    for share, path in nfs_client_plan.hides(directories, host):
        problem = f"{host} would mount it from {share.server} over {path}, which it serves itself"
        yield Finding(("lab_directories", places[id(share)], "path"), share.path, problem, "give one another path")


def check_nfs_client_facts(host: str, inventory: Inventory) -> Iterator[Finding]:
    """Yield what keeps a host from mounting the shared directories, as it is now."""
    variables, facts = inventory.hosts[host], inventory.facts[host]
    entries = variables.get("lab_directories") or ()
    if variables.get("nfs_client_state", "present") != "present" or not entries:
        return
    directories = storage_layout.read(entries, inventory.members(storage_layout.GROUP))
    shares = nfs_client_plan.shares(directories, host)
    if shares and facts.get("nfs") is False:
        mend = "install the kernel's modules, or provide the directories otherwise and say provided: true"
        yield Finding(("host", host), "", "its kernel can't mount NFS (no module nfsv4)", mend)
    tables = {entry["mount"] for entry in facts.get("fstab") or ()}
    for place, directory in enumerate(directories):
        seen = (facts.get("places") or {}).get(directory.path)
        path = ("lab_directories", place, "path")
        if directory.provided and seen and seen["kind"] == "missing":
            mend = "mount it there, or take out provided: true"
            yield Finding(path, directory.path, "it is to be provided, and is not there", mend)
        if directory not in shares:
            continue
        home = facts.get("connection_home") or ""
        if home and inside(home, directory.path):
            user = facts.get("connection_user")
            problem = f"the playbook logs in as {user}, whose home {home} the mount would hide"
            move = f"usermod --move-home --home /var/lib/{user} {user}"
            mend = f"log in as a user whose home is elsewhere, or move it as root ({move})"
            yield Finding(path, directory.path, problem, mend)
        elif directory.path in tables:
            mend = "take it out there, or say provided: true if it is to stay"
            yield Finding(path, directory.path, "/etc/fstab mounts something there", mend)
        elif seen:
            problem, mend = nfs_client_plan.obstacle(seen, directory.over, nfs_client_plan.armed(seen))
            if problem:
                yield Finding(path, directory.path, problem, mend)
