# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan the host that has the lab's directories: folders, bind mounts, project directories, quotas, exports, NFSv4.2.

Pure. Data are never touched: undoing takes exports, units, configuration and limits away. A folder whose disk is not
mounted is left out of everything, so that an empty mount point is neither filled nor served.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.labrack.infra.plugins.module_utils import managed, posix_acl, quota_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import COUNTED, ENFORCED, Limit, Quotas
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import (
    Directory,
    covering,
    inside,
    on_server,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceState,
    note_unit,
    plan_service,
    unit_of_path,
)

EXPORTS = "/etc/exports.d/labrack.exports"
CONF = "/etc/nfs.conf.d/labrack.conf"
RECORD = "/var/lib/labrack/nfs_server.json"
UNITS = "/etc/systemd/system"
#: In place of the file of the same name that nfs-utils' generator makes at boot (systemd/nfs-server-generator.c): by
#: that, one disk that is missing would keep the server from serving the others.
ORDER = f"{UNITS}/nfs-server.service.d/order-with-mounts.conf"
HEADER = "# Written by labrack (role nfs_server).\n"
SERVER = "nfs-server"
#: What NFSv4.2 has no use for; nfs-common's dependencies bring and start it.
RPC_UNITS = ("rpcbind.socket", "rpcbind.service", "rpc-statd.service")
#: What the kernel says it serves, in /proc/fs/nfsd/versions, once the configuration has been read.
SERVED = frozenset(("-3", "+4", "-4.0", "-4.1", "+4.2"))

Exports = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Filesystem:
    """A mounted file system: where, its device (``number`` as ``8:1``), type, and its quotas where they were read."""

    mount: str
    device: str
    fstype: str
    number: str = ""
    quotas: Quotas = field(default_factory=Quotas)


@dataclass(frozen=True)
class Folder:
    """A directory: its mode ("0755"), numbers of owner and group, default ACL (None: not possible), project number."""

    mode: str = "0755"
    uid: int = 0
    gid: int = 0
    acl: posix_acl.Acl | None = field(default_factory=dict)
    project: int = 0

    def rights(self) -> str:
        """Return mode and numbers as ``2770 0:3001``."""
        return f"{self.mode} {self.uid}:{self.gid}"


@dataclass(frozen=True)
class Project:
    """A directory that a group shares; ``path`` is where people find it."""

    path: str
    gid: int
    mode: str = "2770"
    limit: Limit = field(default_factory=Limit)


@dataclass(frozen=True)
class UserQuotas:
    """Everybody's limit, by user number, on the file system of the shared directory ``path``."""

    path: str
    limits: Mapping[int, Limit] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What the role made on this host: units by their mount point, masked and enabled units, packages, limits.

    ``limits``: file system → kind → numbers.
    """

    mounts: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    limits: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    enabled: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str | None) -> Record:
        """Return the record in a file's text; an empty one for no file. ValueError for a damaged one."""
        found = json.loads(text) if text else {}
        limits = {
            mount: {kind: tuple(numbers) for kind, numbers in kinds.items()}
            for mount, kinds in found.get("limits", {}).items()
        }
        keys = ("mounts", "masked", "packages", "enabled")
        mounts, masked, packages, enabled = (tuple(found.get(key, ())) for key in keys)
        return cls(mounts, masked, packages, limits, enabled)

    def file(self) -> FileState | None:
        """Return the file that holds the record, or None when there is nothing to remember."""
        limits = {
            mount: {kind: sorted(numbers) for kind, numbers in kinds.items() if numbers}
            for mount, kinds in self.limits.items()
        }
        limits = {mount: kinds for mount, kinds in limits.items() if kinds}
        content = {
            "mounts": sorted(self.mounts),
            "masked": sorted(self.masked),
            "packages": sorted(self.packages),
            "limits": limits,
            "enabled": sorted(self.enabled),
        }
        return FileState(json.dumps(content, indent=2, sort_keys=True) + "\n") if any(content.values()) else None


@dataclass(frozen=True)
class Wanted:
    """What this host should be. ``present`` False: nothing of ours.

    ``directories`` are all of the lab. ``clients``: addresses or subnets that may mount what is here; none: no NFS.
    ``leaving``: addresses of nodes that are being taken out, whose jobs have ended.
    ``uids`` and ``gids``: the lab's numbers by name, which the host may not know yet. ``people``: the other way round.
    ``packages``: the server's; ``installed``: those that the role just added. ``grace``: seconds. ``unsaid``: (path,
    "mode"|"owner"|"group") of directories that keep theirs if they are there.
    """

    host: str
    present: bool = True
    directories: tuple[Directory, ...] = ()
    projects: tuple[Project, ...] = ()
    clients: tuple[str, ...] = ()
    leaving: frozenset[str] = frozenset()
    threads: int = 8
    grace: int = 60
    quotas: tuple[UserQuotas, ...] = ()
    uids: Mapping[str, int] = field(default_factory=dict)
    gids: Mapping[str, int] = field(default_factory=dict)
    installed: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    unsaid: frozenset[tuple[str, str]] = frozenset()

    @property
    def people(self) -> Mapping[int, str]:
        """The lab's names of users by number."""
        return {number: name for name, number in self.uids.items()}

    @property
    def own(self) -> tuple[Directory, ...]:
        """The directories that this host has, those that others mount for it left out."""
        return tuple(one for one in self.directories if one.local_to(self.host) and not one.provided)

    @property
    def serving(self) -> bool:
        """Whether this host serves anything by NFS."""
        return self.present and bool(self.clients) and any(one.server == self.host for one in self.own)


@dataclass(frozen=True)
class Observed:
    """The host as it is.

    ``filesystems``: mounted ones by mount point. ``fstab``: device by mount point. ``folders``: the directories at
    sources, paths and projects that exist, ``obstacles``: what is there in their place. ``entries``: the
    names in a path that something is to be mounted over. ``same``: paths that show their source already. ``nfsd``:
    whether the kernel can serve NFS. ``exported``: (source, client) that it exports. ``versions``: what it serves.
    ``masked``: units that can't be started. ``login_home``: the home of whom this run logs in as, if it is in a mount's
    way and its source has no such home. ``rpc_users``: why rpcbind must stay. ``foreign_exports``: sources in others'
    exports.
    """

    filesystems: Mapping[str, Filesystem] = field(default_factory=dict)
    fstab: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Folder] = field(default_factory=dict)
    obstacles: frozenset[str] = frozenset()
    entries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    same: frozenset[str] = frozenset()
    files: Mapping[str, FileState | None] = field(default_factory=dict)
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    nfsd: bool = True
    kernel: str = ""
    exported: frozenset[tuple[str, str]] = frozenset()
    versions: frozenset[str] = frozenset()
    masked: frozenset[str] = frozenset()
    login_home: str = ""
    rpc_users: tuple[str, ...] = ()
    foreign_exports: tuple[str, ...] = ()

    @property
    def record(self) -> Record:
        """What the role made here before."""
        file = self.files.get(RECORD)
        return Record.read(file.text if file else None)

    def filesystem_of(self, path: str) -> Filesystem:
        """Return the mounted file system that a path lies on."""
        around = [one for one in self.filesystems.values() if inside(path, one.mount)]
        return max(around, key=lambda one: len(one.mount), default=Filesystem("/", "", ""))


# --- names and texts -------------------------------------------------------------------------------------------------


def unit_path(path: str) -> str:
    """Return the file of the unit of a mount point."""
    return f"{UNITS}/{unit_of_path(path, 'mount')}"


def unit_text(directory: Directory, guard: str) -> str:
    """Return the unit that shows a source at its path; ``guard`` is a mount point without which it does not."""
    condition = f"ConditionPathIsMountPoint={guard}\n" if guard else ""
    return (
        f"{HEADER}[Unit]\nDescription={directory.path}, which is {directory.source}\n{condition}\n"
        f"[Mount]\nWhat={directory.source}\nWhere={directory.path}\nType=none\nOptions=bind\n\n"
        # wanted, not required: a boot without the disk ends in a login prompt and not in the emergency shell
        "[Install]\nWantedBy=local-fs.target\n"
    )


def conf_text(threads: int, grace: int) -> str:
    """Return the NFS server's configuration (nfs.conf(5)): version 4.2 alone, groups looked up here."""
    return (
        f"{HEADER}[nfsd]\nthreads={threads}\nvers2=n\nvers3=n\nvers4=y\nvers4.0=n\nvers4.1=n\nvers4.2=y\n"
        f"lease-time={grace}\ngrace-time={grace}\n\n[mountd]\nmanage-gids=y\n"
    )


def order_text(mounts: Iterable[str]) -> str:
    """Return what makes the NFS server start after these mounts, and without those that fail."""
    units = "".join(
        f"Wants={name}\nAfter={name}\n" for name in (unit_of_path(mount, "mount") for mount in sorted(set(mounts)))
    )
    return f"{HEADER}[Unit]\n{units}"


def default_threads(cores: int) -> int:
    """Return how many threads serve on a machine with so many cores: 8 to 64, as most of them wait for the disk."""
    return min(max(8, 4 * cores), 64)


def exports_text(exports: Exports) -> str:
    """Return exports(5): a line for each source, its clients in order."""
    lines = []
    for source, clients in sorted(exports.items()):
        if clients:
            lines.append(f"{source} " + " ".join(f"{name}({options})" for name, options in sorted(clients.items())))
    return HEADER + "".join(f"{line}\n" for line in lines) if lines else ""


def read_exports(text: str) -> dict[str, dict[str, str]]:
    """Return what :func:`exports_text` wrote; what is not in its form is left out."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        source, *clients = line.split()[:1] + line.split()[1:] if not line.startswith("#") else [""]
        for client in clients:
            name, bracket, options = client.rstrip(")").partition("(")
            if bracket and source:
                found.setdefault(source, {})[name] = options
    return found


def options_for(directory: Directory, guard: str) -> str:
    """Return the export options of a directory; ``guard`` must be a mount point whenever it is exported."""
    access = "ro" if directory.read_only else "rw"
    return f"{access},sync,root_squash,no_subtree_check" + (f",mountpoint={guard}" if guard else "")


# --- what can't be ---------------------------------------------------------------------------------------------------


def guard_of(directory: Directory, fstab: Mapping[str, str]) -> str:
    """Return the mount point without which a directory is not there: the named one, else fstab's; empty for /."""
    if directory.filesystem:
        return directory.filesystem if directory.filesystem != "/" else ""
    above = [mount for mount in fstab if mount != "/" and inside(directory.source, mount)]
    return max(above, key=len, default="")


def unmounted(state: Observed, wanted: Wanted) -> dict[str, str]:
    """Return why directories of this host are left out, by path: their disk is not mounted. Each with its mend."""
    found = {}
    for one in wanted.own if wanted.present else ():
        guard = guard_of(one, state.fstab)
        if guard and guard not in state.filesystems:
            device = state.fstab.get(guard)
            disk = f", which /etc/fstab says is {device}," if device else ""
            mend = f"`mount {guard}`" if device else f"mount the disk there, and put it into /etc/fstab ({guard})"
            found[one.path] = (
                f"{guard}{disk} is not mounted on {wanted.host}: nothing was made in the empty directory, and "
                f"{one.path} is not served. Mend: {mend}, and look at `journalctl -b` if that fails"
            )
    return found


def refusals(state: Observed, wanted: Wanted) -> list[str]:
    """Return every reason not to touch the host at all, each with its mend; empty when all is well."""
    if not wanted.present:
        return []
    found = []
    if wanted.serving and not state.nfsd:
        found.append(
            f"the kernel {state.kernel} of {wanted.host} has no NFS server (no module nfsd). Mend: run a kernel that "
            "has it, such as linux-image-amd64; in a container the host's kernel counts; or put another machine into "
            "the group nfs_server"
        )
    out = unmounted(state, wanted)
    for one in wanted.own:
        if one.path in out:
            continue
        found += [
            f"{path} is there and is no directory. Mend: move it away"
            for path in dict.fromkeys((one.source, one.path))
            if path in state.obstacles
        ]
        names = state.entries.get(one.path, ())
        if _bound(one, state) and one.path not in state.same:
            if one.path in state.filesystems and one.path not in state.record.mounts:
                what = state.filesystems[one.path].device
                found.append(
                    f"{what} is mounted at {one.path}, where {one.source} belongs. Mend: umount it, and take it out "
                    "of /etc/fstab; or leave source out, so that it is served as it is"
                )
            elif state.login_home and inside(state.login_home, one.path) and one.path not in state.filesystems:
                there = one.source.rstrip("/") + state.login_home[len(one.path.rstrip("/")) :]
                found.append(
                    f"{state.login_home} is the home of whom this run logs in as, and {one.source} would hide it with "
                    f"its keys. Mend: copy it to {there} first"
                )
            elif names and not one.over and one.path not in state.filesystems:
                listed = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
                found.append(
                    f"{one.path} is not empty ({listed}), and {one.source} would hide it. Mend: move what it has to "
                    f"{one.source}, or set over: true"
                )
    found += _quota_refusals(state, wanted, out)
    for project in _projects(wanted, out):
        source = on_server(wanted.directories, project.path)
        if source in state.obstacles:
            found.append(f"{source} is there and is no directory, or a link to one. Mend: move it away")
        folder = state.folders.get(source)
        if folder is not None and folder.acl is None:
            found.append(
                f"{project.path} lies on a file system without ACLs, so that a group can't share it. Mend: have it on "
                "XFS or ext4"
            )
    return found


def _quota_refusals(state: Observed, wanted: Wanted, out: Mapping[str, str]) -> list[str]:
    needs: dict[tuple[str, str], str] = {}
    people: dict[str, str] = {}
    found = []
    for quota in _user_quotas(wanted, out):
        mount = _filesystem(state, wanted, quota.path).mount
        other = people.setdefault(mount, quota.path)
        if other != quota.path:
            found.append(
                f"nfs_server_user_quotas limits people at {other} and at {quota.path}, which are one file system "
                f"({mount}), and a quota counts all of it. Mend: keep one of the two"
            )
        needs.setdefault((mount, "user"), quota.path)
    for project in _projects(wanted, out):
        if project.limit != Limit():
            needs.setdefault((_filesystem(state, wanted, project.path).mount, "project"), project.path)
    for (mount, kind), path in needs.items():
        one = state.filesystems.get(mount, Filesystem(mount, "", ""))
        if one.quotas.state.get(kind) != ENFORCED:
            counted = one.quotas.state.get(kind) == COUNTED
            mend = quota_plan.mend(one.fstype, one.device, mount, kind, counted)
            found.append(
                f"{path} is to have {kind} quotas, and {mount} ({one.fstype or 'unknown'}) was mounted without them. "
                f"Mend: {mend}"
            )
    return found


# --- what is of interest here ----------------------------------------------------------------------------------------


def _bound(directory: Directory, state: Observed) -> bool:
    """Whether the role mounts the source at the path; one that fstab mounts is left to it."""
    return directory.source != directory.path and directory.path not in state.fstab


def _projects(wanted: Wanted, out: Mapping[str, str]) -> list[Project]:
    """The project directories that this host makes."""
    found = []
    for project in wanted.projects:
        directory = covering(wanted.directories, project.path)
        if directory is not None and directory.local_to(wanted.host) and directory.path not in out:
            found.append(project)
    return sorted(found, key=lambda project: project.path)


def _user_quotas(wanted: Wanted, out: Mapping[str, str]) -> list[UserQuotas]:
    paths = {one.path for one in wanted.own} - set(out)
    return [quota for quota in wanted.quotas if quota.path in paths]


def _filesystem(state: Observed, wanted: Wanted, path: str) -> Filesystem:
    return state.filesystem_of(on_server(wanted.directories, path))


def sources(wanted: Wanted) -> list[str]:
    """Return every directory that the host is to have: sources, paths, projects at their source."""
    own = [path for one in wanted.own for path in (one.source, one.path)]
    shared = [on_server(wanted.directories, project.path) for project in _projects(wanted, {})]
    return list(dict.fromkeys([*own, *shared]))


# --- the plan --------------------------------------------------------------------------------------------------------


def plan(state: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied, for a host without :func:`refusals`."""
    out = unmounted(state, wanted)
    folders = _plan_folders(state, wanted, out)
    binds = _plan_binds(state, wanted, out)
    projects, numbers = _plan_projects(state, wanted, out)
    limits, remembered = _plan_limits(state, wanted, out, numbers)
    configuration, masks = _plan_configuration(state, wanted), _plan_masks(state, wanted)
    unmasked = [change for change in masks if change.step[0] == "unmask"]
    masked = [change for change in masks if change.step[0] == "mask"]
    exports = _plan_exports(state, wanted, out)
    disabled = _plan_disabled(state, wanted)
    final = wanted_record(state, wanted, out, remembered)
    # a mount that waits for consent to be taken away is still ours
    waiting = {path for path in state.record.mounts if path in state.filesystems}
    kept = {*final.enabled, *(state.record.enabled if any(one.disruption == "drain" for one in disabled) else ())}
    first = replace(final, mounts=tuple(sorted({*final.mounts, *waiting})), enabled=tuple(sorted(kept)))
    record = _plan_record(state.files.get(RECORD), first, "none")
    last = _plan_record(first.file(), final, "drain")
    if wanted.present:
        # remembered before it is made, so that half a run can be undone too; rpcbind goes once the server has taken
        # its leave of it, which would wait for a minute otherwise
        return [
            *record,
            *folders,
            *binds,
            *projects,
            *limits,
            *unmasked,
            *configuration,
            *disabled,
            *exports,
            *masked,
            *last,
        ]
    return [*exports, *unmasked, *configuration, *disabled, *binds, *limits, *record, *last]


def _plan_record(before: FileState | None, record: Record, disruption: str) -> list[Change]:
    file = record.file()
    step = ("write", RECORD, file.text) if file else ("remove", RECORD)
    return [replace(change, step=step) for change in plan_file(RECORD, before, file, disruption)]


def wanted_record(
    state: Observed, wanted: Wanted, out: Mapping[str, str], limits: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Record:
    """Return what there is to remember once all of the plan is applied."""
    before = state.record
    if not wanted.present:
        return Record(limits=limits)
    mounts = {one.path for one in wanted.own if _bound(one, state)} | ({*before.mounts} & set(out))
    masked = {*before.masked, *(unit for unit in _unwelcome(state, wanted) if unit not in state.masked)}
    service = state.services.get(SERVER, ServiceState())
    enabled = {*before.enabled, *((SERVER,) if service.installed and not service.enabled else ())}
    return Record(
        tuple(sorted(mounts)),
        tuple(sorted(masked if wanted.serving else ())),
        tuple(sorted({*before.packages, *wanted.installed})),
        limits,
        tuple(sorted(enabled if wanted.serving else ())),
    )


def _plan_folders(state: Observed, wanted: Wanted, out: Mapping[str, str]) -> list[Change]:
    changes = []
    for one in sorted(wanted.own, key=lambda one: one.source) if wanted.present else ():
        if one.path not in out:
            mode, uid, gid = one.mode, wanted.uids.get(one.owner, 0), wanted.gids.get(one.group, 0)
            found = state.folders.get(one.source)
            if found is not None:
                mode = found.mode if (one.path, "mode") in wanted.unsaid else mode
                uid = found.uid if (one.path, "owner") in wanted.unsaid else uid
                gid = found.gid if (one.path, "group") in wanted.unsaid else gid
            changes += _plan_folder(state, one.source, mode, uid, gid)
    return changes


def _plan_folder(state: Observed, path: str, mode: str, uid: int, gid: int) -> list[Change]:
    found = state.folders.get(path)
    managed.note("directory", path)
    mode = f"{int(mode, 8):04o}"
    after = f"{mode} {uid}:{gid}"
    step = ("folder", path, mode, str(uid), str(gid))
    if found is None:
        return [Change(f"directory {path}", f"created {after}", after=after, step=step)]
    if found.rights() != after:
        return [Change(f"directory {path}", f"{found.rights()} → {after}", "none", found.rights(), after, step)]
    return []


def _plan_binds(state: Observed, wanted: Wanted, out: Mapping[str, str]) -> list[Change]:
    """Plan the mounts of sources at their paths: all files first, so that systemd reads them once."""
    files: list[Change] = []
    enables: list[Change] = []
    changes: list[Change] = []
    bound = {one.path: one for one in wanted.own if _bound(one, state)} if wanted.present else {}
    for path, one in sorted(bound.items()):
        if path in out:
            continue
        unit, file = unit_of_path(path, "mount"), unit_path(path)
        text = unit_text(one, guard_of(one, state.fstab))
        managed.note("mount", path)
        note_unit(unit, state.services.get(unit, ServiceState()))
        files += [
            replace(change, step=("write", file, text))
            for change in plan_file(file, state.files.get(file), FileState(text))
        ]
        if not state.services.get(unit, ServiceState()).enabled:
            enables.append(Change(f"unit {unit}", "enabled at boot", step=("enable", unit)))
        if path not in state.same and path in state.filesystems:
            # another source than before, under people's feet
            summary = f"shows {one.source} in place of what it has"
            changes.append(Change(f"mount {path}", summary, "drain", step=("restart", unit)))
        elif path not in state.same:
            changes.append(Change(f"mount {path}", f"shows {one.source}", step=("start", unit)))
    changes = files + enables + changes
    for path in sorted(set(state.record.mounts) - set(bound) - set(out)):
        mounted = path in state.filesystems
        unit = unit_of_path(path, "mount")
        if mounted:
            changes.append(Change(f"mount {path}", "unmounted, its source stays", "drain", step=("stop", unit)))
        changes += [
            replace(change, disruption="drain" if mounted else "none")
            for change in plan_file(unit_path(path), state.files.get(unit_path(path)), None)
        ]
    return changes


def _plan_projects(
    state: Observed, wanted: Wanted, out: Mapping[str, str]
) -> tuple[list[Change], dict[str, dict[int, Project]]]:
    """Plan the projects' directories; also return which project each number belongs to, by file system."""
    changes: list[Change] = []
    numbers: dict[str, dict[int, Project]] = {}
    taken: dict[str, set[int]] = {}
    projects = _projects(wanted, out) if wanted.present else []
    for project in projects:
        source = on_server(wanted.directories, project.path)
        one = state.filesystem_of(source)
        folder = state.folders.get(source)
        used = taken.setdefault(one.mount, {*one.quotas.usage.get("project", {}), *_ours(state, one.mount, "project")})
        used.update(other.project for other in state.folders.values())
        if project.limit != Limit() and folder is not None and folder.project:
            numbers.setdefault(one.mount, {}).setdefault(folder.project, project)
    for project in projects:
        source = on_server(wanted.directories, project.path)
        folder = state.folders.get(source)
        changes += _plan_folder(state, source, project.mode, folder.uid if folder else 0, project.gid)
        acl = posix_acl.for_group(int(project.mode, 8), (folder.acl if folder else None) or {})
        before = (folder.acl if folder else None) or {}
        if acl != before:
            step = ("acl", source, project.mode)
            shown = posix_acl.words(before), posix_acl.words(acl)
            changes.append(Change(f"default ACL of {source}", f"{shown[0]} → {shown[1]}", "none", *shown, step))
        mount = state.filesystem_of(source).mount
        if project.limit != Limit() and project not in numbers.get(mount, {}).values():
            number = next(iter(quota_plan.free_projects(taken[mount])))
            taken[mount].add(number)
            numbers.setdefault(mount, {})[number] = project
            summary = f"counted as project {number}, with all in it"
            changes.append(Change(f"directory {source}", summary, step=("mark", source, str(number))))
    return changes, numbers


def _plan_limits(
    state: Observed, wanted: Wanted, out: Mapping[str, str], numbers: Mapping[str, Mapping[int, Project]]
) -> tuple[list[Change], dict[str, dict[str, tuple[int, ...]]]]:
    """Plan all limits; also return those to remember: the wanted ones, and those that can't be taken back now."""
    limits: dict[tuple[str, str], dict[int, Limit]] = {}
    names: dict[str, dict[int, str]] = {"user": dict(wanted.people), "project": {}}
    for quota in _user_quotas(wanted, out) if wanted.present else ():
        limits[_filesystem(state, wanted, quota.path).mount, "user"] = dict(quota.limits)
    for mount, projects in numbers.items():
        limits[mount, "project"] = {number: project.limit for number, project in projects.items()}
        names["project"].update({number: project.path for number, project in projects.items()})
    ours = {(mount, kind) for mount, kinds in state.record.limits.items() for kind in kinds}
    changes: list[Change] = []
    remembered: dict[str, dict[str, tuple[int, ...]]] = {}
    for mount, kind in sorted({*limits, *ours}):
        before = _ours(state, mount, kind)
        wished = limits.get((mount, kind), {})
        keep = {number for number, limit in wished.items() if limit != Limit()}
        filesystem = state.filesystems.get(mount)
        if filesystem is None or filesystem.quotas.state.get(kind) != ENFORCED:
            keep |= before if filesystem is None else set()
        else:
            seen = filesystem.quotas.usage.get(kind, {})
            changes += quota_plan.plan_limits(mount, kind, seen, wished, before, names[kind])
        if keep:
            remembered.setdefault(mount, {})[kind] = tuple(sorted(keep))
    return changes, remembered


def _ours(state: Observed, mount: str, kind: str) -> set[int]:
    return set(state.record.limits.get(mount, {}).get(kind, ()))


# --- NFS -------------------------------------------------------------------------------------------------------------


def wanted_exports(state: Observed, wanted: Wanted, out: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return what is to be exported; the lines of a source whose disk is not mounted stay, and serve nothing."""
    if not wanted.serving:
        return {}
    there = _exports_file(state)
    found = {}
    for one in wanted.own:
        if one.server != wanted.host:
            continue
        if one.path not in out:
            options = options_for(one, guard_of(one, state.fstab))
            found[one.source] = dict.fromkeys(wanted.clients, options)
        elif one.source in there:
            found[one.source] = there[one.source]
    return found


def _exports_file(state: Observed) -> dict[str, dict[str, str]]:
    file = state.files.get(EXPORTS)
    return read_exports(file.text) if file else {}


def _plan_exports(state: Observed, wanted: Wanted, out: Mapping[str, str]) -> list[Change]:
    """Plan the exports: what is added is read at once, what would be taken from a client may end its jobs.

    Steps: ``("exportfs", *sources)``, of which those sources are not there, as their disk is not mounted.
    """
    absent = tuple(one.source for one in wanted.own if one.path in out)
    there, wished = _exports_file(state), wanted_exports(state, wanted, out)
    changes: list[Change] = []
    # a node that is taken out was emptied first
    lost = [one for one in _lost(there, wished) if one[1] not in wanted.leaving]
    more = _union(there, wished, lost) if lost else wished
    file = state.files.get(EXPORTS)
    running = state.services.get(SERVER, ServiceState()).active
    changes += _write_exports(file, more, "reload")
    if wanted.serving:
        managed.note_packages(wanted.packages)
        service = _plan_server(state, wanted)
        missing = {
            (source, client)
            for source, clients in wished.items()
            for client in clients
            if not any(one.source == source and one.path in out for one in wanted.own)
        } - state.exported
        # a start reads them by itself
        starts = any(change.step[0] == "restart" for change in service)
        changes += service
        if running and not starts and (changes or missing):
            changes.append(Change("exports", "read anew", "reload", step=("exportfs", *absent)))
    if lost:
        words = ", ".join(f"{source} from {client}" for source, client in lost)
        text = exports_text(wished)
        summary = f"takes away {words}; jobs that use it there fail"
        before = exports_text(more)
        step = ("write", EXPORTS, text) if text else ("remove", EXPORTS)
        changes.append(Change(f"file {EXPORTS}", summary, "drain", before, text, step))
        if running:
            changes.append(Change("exports", "read anew", "drain", step=("exportfs", *absent)))
    return changes


def _write_exports(file: FileState | None, exports: Exports, disruption: str) -> list[Change]:
    text = exports_text(exports)
    changes = plan_file(EXPORTS, file, FileState(text) if text else None, disruption)
    return [replace(one, step=("write", EXPORTS, text) if text else ("remove", EXPORTS)) for one in changes]


def _lost(there: Exports, wished: Exports) -> list[tuple[str, str]]:
    """What clients would lose: a source, or the right to write to it."""
    return sorted(
        (source, client)
        for source, clients in there.items()
        for client, options in clients.items()
        if client not in wished.get(source, {})
        or (options.startswith("rw") and wished[source][client].startswith("ro"))
    )


def _union(there: Exports, wished: Exports, lost: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    made = {source: dict(clients) for source, clients in wished.items()}
    for source, client in lost:
        made.setdefault(source, {})[client] = there[source][client]
    return made


def _plan_configuration(state: Observed, wanted: Wanted) -> list[Change]:
    text = conf_text(wanted.threads, wanted.grace) if wanted.serving else ""
    # it goes with what it configures
    disruption = "restart" if text or not _exports_file(state) else "drain"
    changes = plan_file(CONF, state.files.get(CONF), FileState(text) if text else None, disruption)
    changes = [replace(one, step=("write", CONF, text) if text else ("remove", CONF)) for one in changes]
    guards = [guard_of(one, state.fstab) for one in wanted.own if wanted.serving and one.server == wanted.host]
    order = order_text(filter(None, guards)) if wanted.serving else ""
    changes += [
        replace(one, step=("write", ORDER, order) if order else ("remove", ORDER))
        for one in plan_file(ORDER, state.files.get(ORDER), FileState(order) if order else None)
    ]
    if (
        disruption in {change.disruption for change in changes}
        and not text
        and state.services.get(SERVER, ServiceState()).active
    ):
        # by its defaults it would serve NFSv3 too, for which it needs the rpcbind that is unmasked before
        verb, words = (
            ("restart", "restarted: its configuration changed") if state.foreign_exports else ("stop", "stopped")
        )
        changes.append(Change(f"service {SERVER}", words, disruption, step=(verb, SERVER)))
    return changes


def _plan_disabled(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan that a server which the role enabled, and which serves nothing any more, does not start at boot."""
    enabled = state.services.get(SERVER, ServiceState()).enabled and SERVER in state.record.enabled
    if wanted.serving or not enabled or state.foreign_exports:
        return []
    # it goes with what it serves
    disruption = "drain" if _exports_file(state) else "none"
    return [Change(f"service {SERVER}", "not started at boot any more", disruption, step=("disable", SERVER))]


def _plan_server(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan that the server runs with our configuration. Clients wait while it restarts, and go on."""
    why = ""
    if any(change.subject == f"file {CONF}" for change in _plan_configuration(state, wanted)):
        why = "its configuration changed"
    elif state.versions and SERVED - state.versions:
        why = f"it serves {' '.join(sorted(state.versions))}"
    return plan_service(SERVER, state.services.get(SERVER, ServiceState()), why)


def _unwelcome(state: Observed, wanted: Wanted) -> tuple[str, ...]:
    return RPC_UNITS if wanted.serving and not state.rpc_users else ()


def _plan_masks(state: Observed, wanted: Wanted) -> list[Change]:
    changes = []
    for unit in RPC_UNITS:
        if unit in _unwelcome(state, wanted):
            if unit in state.masked:
                managed.note("unit", unit, masked=True)
            if unit not in state.masked:
                changes.append(Change(f"unit {unit}", "stopped and masked, NFSv4.2 needs none", step=("mask", unit)))
        elif unit in state.record.masked and unit in state.masked and not wanted.serving:
            changes.append(Change(f"unit {unit}", "may be started again", step=("unmask", unit)))
    return changes


def removable(state: Observed, wanted: Wanted, pending: Sequence[Change]) -> tuple[str, ...]:
    """Return the packages that the role installed and that nothing needs any more, with nothing ``pending``."""
    return () if wanted.present or pending else state.record.packages


def warnings(state: Observed, wanted: Wanted) -> list[str]:
    """Return what an admin should know and nothing is done about."""
    found = []
    if wanted.serving and state.foreign_exports:
        names = ", ".join(state.foreign_exports)
        found.append(f"{wanted.host} also exports {names}, by files of others: from now on over NFSv4.2 alone")
    if wanted.serving and state.rpc_users:
        found.append(f"rpcbind stays on {wanted.host}: {'; '.join(state.rpc_users)}")
    return found


def addresses(entries: Iterable[Mapping[str, str]], host: str, leaving: Sequence[str], subnet: str) -> tuple[str, ...]:
    """Return who may mount: the subnet if there is one, else the addresses of the other nodes, those that leave out."""
    if subnet:
        return (subnet,)
    names = {host, *leaving}
    return tuple(sorted({str(one["address"]) for one in entries if one["name"] not in names and one.get("address")}))
