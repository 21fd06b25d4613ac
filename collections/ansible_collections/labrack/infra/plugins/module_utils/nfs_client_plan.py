# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan how a host reaches the lab's shared directories, by units that mount them at first use; and its scratch.

Pure. A directory is mounted by an automount unit and never at boot, so that a boot does not wait for a server. The
units that are ours say so in their first line, so that those of directories that are no longer shared are found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import managed, storage_layout
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, rank
from ansible_collections.labrack.infra.plugins.module_utils.hardware_observe import Mount
from ansible_collections.labrack.infra.plugins.module_utils.mount_observe import SILENT, STALE, TOLD, Place
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import Directory, inside
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit, unit_of_path
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_plan import TUNNEL_MTU, in_tailnet

UNITS = "/etc/systemd/system"
TMPFILES = "/etc/tmpfiles.d/labrack-scratch.conf"
RECORD = "/var/lib/labrack/nfs_client.json"
#: The first line of what this role writes.
HEADER = "# Written by labrack.infra.nfs_client; changes are lost at its next run."
#: Says that the directory was missing before; systemd skips sections of this name (systemd.syntax(7)).
MADE = "[X-labrack]\nDirectory=made\n"
SCRATCH_MODE = "1777 root:root"
MADE_SCRATCH = "# The directory was made with this file.\n"
#: Nobody needs a set-user-ID file or a device among data, and root in a container could leave one there.
OPTIONS = ("vers=4.2", "hard", "nofail", "_netdev", "nosuid", "nodev")
#: The kernel that first knew several connections to one server (nfs(5), nconnect).
NCONNECT_SINCE = (5, 3)
#: Seconds for a mount, after which whoever waits gets an error; the next access tries again.
MOUNT_TIMEOUT = 90
#: Answers to programs' calls for ports, which NFSv4 has no use for. Debian's packages of the client start it.
PORTMAPPER = ("rpcbind.socket", "rpcbind.service")
#: What the guide asks for between head and workers, in Mbit/s.
GUIDE_MBIT = 10000
#: The guide's example of a data set, in Mbit.
DATA_SET_GB, DATA_SET_MBIT = 100, 100 * 8000
#: Packets that networks are made for, in bytes: jumbo frames, Ethernet, common tunnels, and the smallest of all.
PACKETS = (9000, 1500, 1450, 1400, TUNNEL_MTU, 576)


class ClientError(RuntimeError):
    """A host on which the directories can't be mounted; the message says which, why, and the mend."""


@dataclass(frozen=True)
class Server:
    """A host that shares directories: its address in the lab, and its fastest link in Mbit/s where known."""

    name: str
    address: str = ""
    link_mbit: int | None = None

    @property
    def overlay(self) -> bool:
        """Return whether it is reached through the tailnet."""
        return in_tailnet(self.address)


@dataclass(frozen=True)
class Share:
    """A directory of a server that this host mounts."""

    directory: Directory
    server: Server
    options: tuple[str, ...]

    @property
    def what(self) -> str:
        """Return server and folder as mount(8) takes them."""
        name = f"[{self.server.name}]" if ":" in self.server.name else self.server.name
        return f"{name}:{self.directory.source}"


@dataclass(frozen=True)
class Wanted:
    """A host as it should be; ``packages`` are those of NFS, ``installed`` what the role has just added."""

    present: bool = True
    shares: Mapping[str, Share] = field(default_factory=dict)
    provided: tuple[str, ...] = ()
    scratch: str = ""
    scratch_days: int = 30
    installed: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observed:
    """A host as it is.

    ``units`` are the unit files of the wanted directories and all of ours, by path; ``services`` the automount units
    and :data:`PORTMAPPER`; ``mounts`` the topmost mount of each mount point; ``answers`` what the mounted directories'
    servers say (``mount_observe.answers``); ``busy`` the mounted directories that somebody uses; ``places`` what is
    where directories and scratch belong; ``scratch_mode`` the mode and owner of scratch, like :data:`SCRATCH_MODE`;
    ``transports`` the addresses of the kernel's connections to servers, as far as they can be changed.
    """

    nfs: bool = True
    units: Mapping[str, FileState] = field(default_factory=dict)
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    mounts: Mapping[str, Mount] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    places: Mapping[str, Place] = field(default_factory=dict)
    fstab: frozenset[str] = frozenset()
    scratch_mode: str = ""
    tmpfiles: FileState | None = None
    record: FileState | None = None
    transports: frozenset[str] = frozenset()


# --- what is wanted ---


def shares(directories: Sequence[Directory], host: str) -> list[Directory]:
    """Return the directories that a host mounts from others, by path."""
    return sorted((one for one in directories if not one.provided and not one.local_to(host)), key=lambda one: one.path)


def hides(directories: Sequence[Directory], host: str) -> Iterator[tuple[Directory, str]]:
    """Yield the directories whose mount would hide something that the host itself serves, with its path."""
    own = [one for one in directories if not one.provided and one.local_to(host)]
    for share in shares(directories, host):
        for one in own:
            for path in (one.source, one.path):
                if inside(path, share.path):
                    yield share, path
                    break


def read_wanted(params: Mapping[str, Any], kernel: tuple[int, int]) -> Wanted:
    """Return the state that the module's parameters ask for; ClientError where a mount would hide what is served.

    ``kernel`` is the running one's version, which decides on ``nconnect``.
    """
    if params["state"] == "absent":
        return Wanted(present=False)
    directories = storage_layout.read(params["directories"], params["servers"])
    host = params["name"]
    for share, path in hides(directories, host):
        raise ClientError(
            f"{share.path} of {share.server} would be mounted over {path}, which {host} serves itself. Nothing was "
            "changed. Mend: give one of them another path in lab_directories"
        )
    nodes = {node["name"]: Server(node["name"], node["address"] or "", node["link_mbit"]) for node in params["nodes"]}
    nconnect = params["nconnect"] if kernel >= NCONNECT_SINCE else 1
    return Wanted(
        shares={
            one.path: Share(one, nodes.get(one.server, Server(one.server)), mount_options(one, nconnect))
            for one in shares(directories, host)
        },
        provided=tuple(sorted(one.path for one in directories if one.provided)),
        scratch=params["scratch"],
        scratch_days=params["scratch_days"],
        packages=tuple(params["packages"]),
        installed=tuple(params["installed"]),
    )


def option_key(option: str) -> str:
    """Return what a mount option is about, so that a later one takes the place of an earlier one."""
    name = option.partition("=")[0]
    same = {"soft": "hard", "softerr": "hard", "nfsvers": "vers", "minorversion": "vers", "rw": "ro"}
    return {**same, "suid": "nosuid", "dev": "nodev"}.get(name, name)


def mount_options(directory: Directory, nconnect: int) -> tuple[str, ...]:
    """Return the options of a mount; the directory's own ones win."""
    options = [*OPTIONS, *([f"nconnect={nconnect}"] if nconnect > 1 else []), *(["ro"] if directory.read_only else [])]
    return tuple({option_key(option): option for option in (*options, *directory.options)}.values())


def mount_file(path: str) -> str:
    """Return the file of the unit that mounts a directory."""
    return f"{UNITS}/{unit_of_path(path, 'mount')}"


def automount_file(path: str) -> str:
    """Return the file of the unit that mounts a directory at its first use."""
    return f"{UNITS}/{automount_unit(path)}"


def automount_unit(path: str) -> str:
    """Return the name of the unit that mounts a directory at its first use."""
    return unit_of_path(path, "automount")


def _literal(text: str) -> str:
    # systemd would replace %h and the like
    return text.replace("%", "%%")


def mount_text(share: Share) -> str:
    """Return the unit that mounts a directory."""
    path = share.directory.path
    overlay = "After=tailscaled.service\nWants=tailscaled.service\n" if share.server.overlay else ""
    return (
        f"{HEADER}\n[Unit]\nDescription={_literal(f'{path} of {share.server.name}')}\n"
        # systemd gives an automount up for good after five failures in ten seconds
        f"StartLimitIntervalSec=0\n{overlay}\n"
        f"[Mount]\nWhat={_literal(share.what)}\nWhere={_literal(path)}\nType=nfs4\n"
        f"Options={_literal(','.join(share.options))}\nTimeoutSec={MOUNT_TIMEOUT}\n"
    )


def automount_text(share: Share, made: bool) -> str:
    """Return the unit that mounts a directory at its first use; ``made``: its directory was not there before."""
    path = share.directory.path
    return (
        f"{HEADER}\n[Unit]\nDescription={_literal(f'{path} of {share.server.name}, at first use')}\n\n"
        f"[Automount]\nWhere={_literal(path)}\n\n[Install]\nWantedBy=multi-user.target\n"
        + (f"\n{MADE}" if made else "")
    )


def wanted_units(observed: Observed, share: Share) -> dict[str, FileState]:
    """Return the unit files of a directory by path, with the mark of one that was made once and for all."""
    path = share.directory.path
    there = observed.units.get(automount_file(path))
    place = observed.places.get(path)
    made = there.text.endswith(MADE) if there else place is not None and place["kind"] == "missing"
    return {
        mount_file(path): FileState(mount_text(share)),
        automount_file(path): FileState(automount_text(share, made)),
    }


def ours(units: Mapping[str, FileState]) -> set[str]:
    """Return the directories whose unit files are ours, by what their automount units say."""
    found: set[str] = set()
    for file in units.values():
        lines = file.text.splitlines()
        if lines and lines[0] == HEADER:
            found.update(line[len("Where=") :].replace("%%", "%") for line in lines if line.startswith("Where="))
    return found


# --- what is in the way ---


def obstacle(place: Place, over: bool, own: bool = False) -> tuple[str, str]:
    """Return what keeps a directory from being mounted at a place, and the mend; two empty texts for nothing.

    ``over``: the mount may hide what lies there. ``own``: what is mounted there is known to be ours or by systemd.
    """
    if place["fstype"] and not own and not place["fstype"].startswith("nfs"):
        return (
            f"{place['device']} ({place['fstype']}) is mounted there",
            "unmount it and take it out of /etc/fstab, or say provided: true if it is to stay",
        )
    if place["kind"] == "other":
        return "what is there is no directory", "move it away"
    if place["kind"] == "unknown":
        return "it lies in a directory of another server", "give it a path on this host's own disk"
    if place["entries"] and not over:
        more = " and more" if len(place["entries"]) > TOLD else ""
        return (
            f"it is not empty, and the mount would hide {', '.join(place['entries'][:TOLD])}{more}",
            "move them to the server, or say over: true to hide them",
        )
    return "", ""


def armed(place: Place) -> bool:
    """Return whether an automount unit of systemd waits at a place."""
    return place["fstype"] == "autofs" and place["device"] == "systemd-1"


def refusals(observed: Observed, wanted: Wanted) -> list[str]:
    """Return why the wanted directories can't be mounted on this host, a sentence each with its mend."""
    found = []
    if wanted.shares and not observed.nfs:
        found.append(
            "this kernel can't mount NFS: it has no module nfsv4, as a container of a host without it. Mend: install "
            "the kernel's modules, or provide the directories otherwise and say provided: true"
        )
    for path, share in sorted(wanted.shares.items()):
        place = observed.places[path]
        for file in (mount_file(path), automount_file(path)):
            there = observed.units.get(file)
            if there and not there.text.startswith(HEADER):
                found.append(f"{path}: {file} is not labrack's. Mend: remove it, or say provided: true")
        if path in observed.fstab:
            found.append(
                f"{path}: /etc/fstab mounts something there. Mend: take it out, or say provided: true if it is to stay"
            )
        problem, mend = obstacle(place, share.directory.over, armed(place))
        if problem:
            found.append(f"{path}: {problem}. Mend: {mend}")
    scratch = observed.places.get(wanted.scratch) if wanted.scratch else None
    if scratch and (scratch["kind"] == "other" or scratch["remote"]):
        what = "on a server" if scratch["remote"] else "no directory"
        found.append(f"{wanted.scratch}: it is {what}. Mend: give lab_scratch a path on this host's own disk")
    return found


# --- the plan ---


def plan(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied; ClientError where it can't be at all."""
    refused = refusals(observed, wanted)
    if refused:
        raise ClientError("; ".join(["nothing was changed by nfs_client", *refused]))
    changes: list[Change] = []
    if wanted.shares:
        managed.note_packages(wanted.packages)
    changes += plan_file(RECORD, observed.record, wanted_record(observed, wanted))
    for path in sorted(ours(observed.units) - set(wanted.shares), reverse=True):
        changes += _leave(observed, path)
    steps = [_share(observed, share) for _path, share in sorted(wanted.shares.items())]
    # files first, so that systemd reads them once
    changes += [change for early, _late in steps for change in early]
    changes += [change for _early, late in steps for change in late]
    changes += _portmapper(observed, wanted)
    return changes + _scratch(observed, wanted)


def off(observed: Observed, share: Share) -> str:
    """Return why a mounted directory has to be mounted anew, or its server asked elsewhere; empty for no reason."""
    reason = _unlike(observed, share)
    address = moved(observed, share)
    if not reason and address:
        return f"{share.server.name} was {address}, which does not answer, and is {share.server.address}"
    return reason


def moved(observed: Observed, share: Share) -> str:
    """Return the address that the server of a mounted directory had, if it no longer answers there, else ""."""
    mount = observed.mounts[share.directory.path]
    addresses = [option[len("addr=") :] for option in mount["options"] if option.startswith("addr=")]
    silent = observed.answers.get(share.directory.path, "") == SILENT
    there = share.server.address
    if not (silent and addresses and there and there not in addresses):
        return ""
    # a mount keeps the address that it was made with: one that was led away is just not answered at the moment
    led_away = there in observed.transports and addresses[0] not in observed.transports
    return "" if led_away else addresses[0]


def _unlike(observed: Observed, share: Share) -> str:
    """Return in what a mount is not as it should be, its server's address left out."""
    path = share.directory.path
    mount = observed.mounts[path]
    if observed.answers.get(path, "") == STALE:
        return "its handle is stale"
    if mount["device"] != share.what:
        return f"{mount['device']} is mounted"
    if ("ro" in mount["options"]) != share.directory.read_only:
        return "it is to be read-only" if share.directory.read_only else "it is read-only"
    there = observed.units.get(mount_file(path))
    if there is None or there.text != mount_text(share):
        return "with other options"
    state = observed.services.get(automount_unit(path), ServiceState())
    return "" if state.active else "not by its automount unit"


def _is_mounted(observed: Observed, path: str) -> bool:
    return path in observed.mounts and observed.mounts[path]["fstype"].startswith("nfs")


def _broken(observed: Observed, path: str, what: str) -> bool:
    """Whether nobody can get on with a mount: stale, or moved away from a server that does not answer."""
    answer = observed.answers.get(path, "")
    return answer == STALE or (answer == SILENT and bool(what))


def _share(observed: Observed, share: Share) -> tuple[list[Change], list[Change]]:
    """Return what can be made for a directory at first, and what comes after that.

    What is mounted gets its files with its turn: where it can't be unmounted, they have to be the old ones.
    """
    path = share.directory.path
    unit = automount_unit(path)
    state = observed.services.get(unit, ServiceState())
    managed.note("mount", path)
    note_unit(unit, state)
    reason = off(observed, share) if _is_mounted(observed, path) else ""
    broken = _broken(observed, path, reason)
    address = moved(observed, share) if reason else ""
    led = address in observed.transports
    if led:
        # who works there goes on; mounted anew beside them it would hang, as the kernel finds that it is one server
        reason = _unlike(observed, share)
    disruption = "none" if not reason else "drain" if path in observed.busy and not broken else "restart"
    files = []
    if observed.places[path]["kind"] == "missing":
        files.append(Change(f"directory {path}", "created", step=("mkdir", path)))
    for file, text in wanted_units(observed, share).items():
        files += plan_file(file, observed.units.get(file), text, disruption)
    changes = []
    if led:
        words = f"asks {share.server.name} at {share.server.address}, as it does not answer at {address}"
        changes.append(Change(f"mount {path}", words, "restart", address, share.server.address, ("redirect", path)))
    if reason:
        users = ", by whom it is used" if path in observed.busy else ""
        verb = "detach" if broken or path in observed.busy else "unmount"
        words = f"mounted anew: {reason}{users}"
        changes.append(Change(f"mount {path}", words, disruption, _line(observed, path), share.what, (verb, path)))
    if not state.enabled:
        changes.append(Change(f"automount {path}", "enabled at boot", disruption, step=("enable", unit)))
    if not state.active:
        start = max(disruption, "restart", key=rank)
        changes.append(Change(f"automount {path}", "waits for its first use", start, step=("start", unit)))
    return ([], files + changes) if reason else (files, changes)


def _line(observed: Observed, path: str) -> str:
    mount = observed.mounts[path]
    return f"{mount['device']} {','.join(mount['options'])}"


def _leave(observed: Observed, path: str) -> list[Change]:
    """Take a directory away that is no longer shared."""
    unit = automount_unit(path)
    files = [file for file in (automount_file(path), mount_file(path)) if file in observed.units]
    state = observed.services.get(unit, ServiceState())
    mounted = _is_mounted(observed, path)
    broken = observed.answers.get(path, "") in (STALE, SILENT)
    busy = mounted and path in observed.busy
    disruption = "drain" if busy and not broken else "restart" if mounted or state.active else "none"
    changes = []
    if mounted:
        verb = "detach" if broken or busy else "unmount"
        words = "unmounted; somebody uses it" if busy else "unmounted"
        changes.append(Change(f"mount {path}", words, disruption, _line(observed, path), step=(verb, path)))
    if state.active or state.enabled:
        changes.append(Change(f"automount {path}", "stopped", disruption, step=("disable", unit)))
    for file in files:
        changes += plan_file(file, observed.units[file], None, disruption)
    automount = observed.units.get(automount_file(path))
    if automount and automount.text.endswith(MADE):
        # its last file is gone by then; what somebody has put there stays
        changes.append(Change(f"directory {path}", "removed, if empty", disruption, step=("rmdir", path)))
    return changes


def _portmapper(observed: Observed, wanted: Wanted) -> list[Change]:
    """Switch the port mapper off where the role's own packages brought it, and no older NFS needs it."""
    if not wanted.shares or "rpcbind" not in _packages(observed, wanted):
        return []
    if any(mount["fstype"] == "nfs" and "vers=3" in mount["options"] for mount in observed.mounts.values()):
        return []
    states = {unit: observed.services.get(unit, ServiceState()) for unit in PORTMAPPER}
    return [
        Change(f"service {unit}", "off; NFSv4 asks nobody for a port", "restart", step=("disable", unit))
        for unit, state in states.items()
        # the service has no switch of its own once its socket is off
        if state.active or (state.enabled and unit == PORTMAPPER[0])
    ]


def _packages(observed: Observed, wanted: Wanted) -> set[str]:
    before = json.loads(observed.record.text).get("packages", ()) if observed.record else ()
    return {*before, *wanted.installed}


def wanted_record(observed: Observed, wanted: Wanted) -> FileState | None:
    """Return the file that remembers which packages the role installed (ValueError for a damaged one)."""
    packages = sorted(_packages(observed, wanted))
    if not wanted.present or not packages:
        return None
    return FileState(json.dumps({"packages": packages}, indent=2, sort_keys=True) + "\n")


# --- scratch ---


def tmpfiles_text(path: str, days: int, made: bool) -> str:
    """Return the rule of tmpfiles.d(5) for scratch: its mode, and the age at which files go.

    systemd-tmpfiles looks at the newest of a file's times (read, written, changed), leaves directories in which
    something is, follows no link and enters no other file system.
    """
    age = f"{days}d" if days else "-"
    what = f"What nobody has read or written for {days} days goes." if days else "Nothing is cleaned."
    return f"{HEADER}\n# {what}\n{MADE_SCRATCH if made else ''}d {_literal(path)} 1777 root root {age}\n"


def scratch_of(file: FileState | None) -> tuple[str, bool]:
    """Return the path that a rule of ours cleans, and whether it was made with it; "" for none."""
    for line in file.text.splitlines() if file else ():
        if line.startswith("d "):
            return line.split()[1].replace("%%", "%"), MADE_SCRATCH in (file.text if file else "")
    return "", False


def wanted_tmpfiles(observed: Observed, wanted: Wanted) -> FileState | None:
    """Return the file of the rule for scratch, None for no scratch."""
    if not wanted.scratch:
        return None
    before, made = scratch_of(observed.tmpfiles)
    missing = observed.places[wanted.scratch]["kind"] == "missing"
    return FileState(tmpfiles_text(wanted.scratch, wanted.scratch_days, made if before == wanted.scratch else missing))


def _scratch(observed: Observed, wanted: Wanted) -> list[Change]:
    before, made = scratch_of(observed.tmpfiles)
    changes = []
    if wanted.scratch:
        managed.note("directory", wanted.scratch)
    if wanted.scratch and observed.scratch_mode != SCRATCH_MODE:
        words = f"{observed.scratch_mode} → {SCRATCH_MODE}" if observed.scratch_mode else f"created {SCRATCH_MODE}"
        changes.append(Change(f"directory {wanted.scratch}", words, step=("scratch", wanted.scratch)))
    changes += plan_file(TMPFILES, observed.tmpfiles, wanted_tmpfiles(observed, wanted))
    if made and before != wanted.scratch:
        changes.append(Change(f"directory {before}", "removed, if empty", step=("rmdir", before)))
    return changes


# --- what is told ---


@dataclass(frozen=True)
class Way:
    """The way to a server: this host's network device with its speed and MTU, the biggest packet that comes through.

    Bytes and Mbit/s; None for what the device does not tell, 0 for a server that answers to no ping.
    """

    device: str = ""
    speed_mbit: int | None = None
    mtu: int = 0
    passes: int = 0


def packets(mtu: int) -> tuple[int, ...]:
    """Return the sizes of packets to try on a way with this MTU, the biggest first."""
    return (mtu, *(size for size in PACKETS if size < mtu))


def notes(
    observed: Observed, wanted: Wanted, ways: Mapping[str, Way] | None = None, states: Mapping[str, str] | None = None
) -> list[str]:
    """Return what an admin should know and no run can change; ``states`` are those of the directories, as returned."""
    found = []
    for path, state in sorted((states or {}).items()):
        server = wanted.shares[path].server.name if path in wanted.shares else ""
        if state == SILENT:
            found.append(f"{path}: {server} does not answer; whoever opens it waits. Mend: look at {server}")
        elif state.startswith("failed"):
            found.append(f"{path}: {server} can't be mounted from ({state.partition(': ')[2]}). Mend: {_look(path)}")
    for path in wanted.provided:
        place = observed.places[path]
        if place["kind"] == "missing":
            found.append(f"{path}: it is to be provided, and is not there. Mend: mount it, or take out provided: true")
        elif place["kind"] == "directory" and place["point"] == "/":
            found.append(f"{path}: it is to be provided, and nothing is mounted there. Mend: mount it")
    servers = {share.server.name: share.server for share in wanted.shares.values()}
    for name, way in sorted((ways or {}).items()):
        found += _network(servers[name], way)
    return found


def _look(path: str) -> str:
    return f"look at journalctl -u '{unit_of_path(path, 'mount')}' here, and at exportfs -v on the server"


def _network(server: Server, way: Way) -> Iterator[str]:
    if server.overlay:
        yield (
            f"NFS from {server.name} goes through the tailnet ({server.address}): packets of {TUNNEL_MTU} bytes, each "
            "encrypted, and none while the tailnet is down. Mend: where the machines share a network, give each its "
            "address there as lab_address"
        )
    else:
        links = ((way.speed_mbit, way.device), (server.link_mbit, server.name))
        slowest, where = min(((mbit, name) for mbit, name in links if mbit), default=(GUIDE_MBIT, ""))
        if slowest < GUIDE_MBIT:
            yield (
                f"the network to {server.name} carries {slowest} Mbit/s ({where}), and {GUIDE_MBIT} are wanted: to "
                f"read {DATA_SET_GB} GB takes at least {_minutes(DATA_SET_MBIT / slowest)} in place of "
                f"{_minutes(DATA_SET_MBIT / GUIDE_MBIT)}. Mend: a 10 GbE switch and cards, or copy data to local disks"
            )
    if 0 < way.passes < way.mtu:
        yield (
            f"packets of {way.mtu} bytes ({way.device}) are lost on the way to {server.name}; {way.passes} come "
            f"through, and NFS hangs on bigger ones. Mend: set the MTU of {way.device} to {way.passes}, or that of "
            f"every switch and host between to {way.mtu}"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
