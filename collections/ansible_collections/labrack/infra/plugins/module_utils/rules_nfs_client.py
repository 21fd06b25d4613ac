# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for hosts that mount the lab's shared directories, and for their scratch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import nfs_client_plan, storage_layout
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, shown
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside

PATH = re.compile(r"(/[A-Za-z0-9_.@+-]+)+")
#: Folders that the system needs as they are, with what is in them; and those that are its own, but may hold others.
SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr")
SYSTEM_TOPS = ("/home", "/media", "/mnt", "/opt", "/srv", "/tmp", "/var", "/var/tmp")  # noqa: S108
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
        yield from _check_options(place, entry)
    yield from _check_scratch(scratch)
    nconnect, days = variables.get("nfs_client_nconnect"), variables.get("nfs_client_scratch_days")
    if nconnect is not None and not 1 <= nconnect <= NCONNECT_MOST:
        mend = f"write a number from 1 to {NCONNECT_MOST}"
        yield Finding(("nfs_client_nconnect",), shown(nconnect), "not a number of connections that NFS takes", mend)
    if days is not None and days < 0:
        yield Finding(("nfs_client_scratch_days",), shown(days), "not an age", "write a number of days, or 0 for never")
    directories = storage_layout.read(entries, inventory.members(storage_layout.GROUP))
    for share, path in nfs_client_plan.hides(directories, host):
        problem = f"{host} would mount it from {share.server} over {path}, which it serves itself"
        where = ("lab_directories", directories.index(share), "path")
        yield Finding(where, share.path, problem, "give one of them another path")
    for place, directory in enumerate(directories):
        if scratch and (inside(scratch, directory.path) or inside(directory.path, scratch)):
            problem = f"it and lab_directories[{place}] ({directory.path}) lie in one another"
            mend = "give it a path of its own; scratch is on each host's own disk"
            yield Finding(("lab_scratch",), shown(scratch), problem, mend)


def _check_scratch(path: str) -> Iterator[Finding]:
    if path and (not PATH.fullmatch(path) or {".", ".."} & set(path.split("/"))):
        mend = "write it as /scratch, from / on, with letters, digits and . _ - + @ alone"
        yield Finding(("lab_scratch",), shown(path), "not an absolute path", mend)
    elif path in SYSTEM_TOPS or any(inside(path, system) for system in SYSTEM):
        mend = "take a folder of its own, such as /scratch"
        yield Finding(("lab_scratch",), shown(path), "a folder of the system, whose files would go", mend)


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
