# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module ``labrack.infra.nfs_server``: the lab's directories on the host that has them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nfs_server
short_description: Have and serve the lab's directories
version_added: 0.1.0
description:
  - Folders, bind mounts, project directories, quotas and NFSv4.2 exports of a host, see the role
    P(labrack.infra.nfs_server#role). A host that serves nobody gets the directories and quotas alone.
  - What can't be is refused before anything is changed. A directory whose disk is not mounted is left out, and named
    when the rest is done.
  - Quotas are read and set by quotactl(2), a thousand of them in one call of this module.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) takes exports, units, configuration and limits away, never data.
    type: str
    choices: [present, absent]
    default: present
  host:
    description: The name of this host in the inventory.
    type: str
    required: true
  servers:
    description: The hosts that serve, in order.
    type: list
    elements: str
    default: []
  directories:
    description: The lab's directories, C(lab_directories).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where people find it.
        type: str
        required: true
      source:
        description: The folder that holds it.
        type: str
      server:
        description: The host that has it.
        type: str
      mode:
        description: Mode of the folder; 0755 for a new one, unless set, and as it is for one that is there.
        type: str
      owner:
        description: Owner of the folder; root for a new one, unless set, and as it is for one that is there.
        type: str
      group:
        description: Group of the folder; root for a new one, unless set, and as it is for one that is there.
        type: str
      read_only:
        description: Whether others can only read.
        type: bool
        default: false
      provided:
        description: Whether something else mounts it.
        type: bool
        default: false
      filesystem:
        description: The mount point without which it is not there.
        type: str
      over:
        description: Whether a mount may hide what lies at the path.
        type: bool
        default: false
      options:
        description: More mount options of the others.
        type: list
        elements: str
        default: []
  projects:
    description: Directories that groups share, C(lab_projects).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where people find it.
        type: str
        required: true
      group:
        description: The group that shares it.
        type: str
        required: true
      mode:
        description: Mode of the folder.
        type: str
        default: "2770"
      quota_soft:
        description: The most that it may hold for a week.
        type: str
      quota_hard:
        description: The most that it may ever hold.
        type: str
  clients:
    description: The lab's nodes.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      address:
        description: Its address; one that is not given is looked up on this host.
        type: str
      aliases:
        description: Its other names.
        type: list
        elements: str
        default: []
  leaving:
    description: Nodes that are on their way out of the lab.
    type: list
    elements: str
    default: []
  subnet:
    description: A subnet to serve in place of single nodes.
    type: str
    default: ""
  threads:
    description: How many threads serve; 0 as many as fit the processors.
    type: int
    default: 0
  grace:
    description: Seconds that clients have to come back after a restart of the server.
    type: int
    default: 60
  user_quotas:
    description: Limits for people, C(nfs_server_user_quotas).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The directory whose file system counts.
        type: str
        required: true
      soft:
        description: The most that anybody may have for a week.
        type: str
      hard:
        description: The most that anybody may ever have.
        type: str
      users:
        description: Other limits for some.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: Whose.
            type: str
            required: true
          soft:
            description: The most for a week.
            type: str
          hard:
            description: The most ever.
            type: str
  uids:
    description: The lab's user numbers by name.
    type: dict
    default: {}
  gids:
    description: The lab's group numbers by name.
    type: dict
    default: {}
  packages:
    description: Packages that the caller has seen to be there, so that C(labrack drift) misses them later.
    type: list
    elements: str
    default: []
  installed:
    description: Packages that were just installed for this.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Serve homes to two nodes
  labrack.infra.nfs_server:
    host: head
    servers: [head]
    directories:
      - {path: /home, source: /srv/lab/home, filesystem: /srv/lab}
    clients:
      - {name: node1, address: 10.0.0.11}
      - {name: node2, address: 10.0.0.12}
    user_quotas:
      - {path: /home, soft: 50G, hard: 60G}
    uids: {ada: 2001}
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Changes that O(max_disruption) does not cover.
  returned: success
  type: list
  elements: dict
packages:
  description: Packages that were installed for this and that nothing needs any more.
  returned: success
  type: list
  elements: str
"""

import grp
import ipaddress
import os
import pwd
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import (
    disk_quota,
    nfs_plan,
    node_io,
    posix_acl,
    quota_plan,
    storage_layout,
    storage_observe,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, consent, converge
from ansible_collections.labrack.infra.plugins.module_utils.nfs_plan import Filesystem, Observed, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import Limit
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    act,
    daemon_reload,
    observe_services,
    unit_of_path,
)

SIZE = {"type": "str"}
NAME = {"type": "str", "required": True}
ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "host": NAME,
    "servers": {"type": "list", "elements": "str", "default": []},
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": NAME,
            "source": {"type": "str"},
            "server": {"type": "str"},
            "mode": {"type": "str"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "read_only": {"type": "bool", "default": False},
            "provided": {"type": "bool", "default": False},
            "filesystem": {"type": "str"},
            "over": {"type": "bool", "default": False},
            "options": {"type": "list", "elements": "str", "default": []},
        },
    },
    "projects": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": NAME,
            "group": NAME,
            "mode": {"type": "str", "default": "2770"},
            "quota_soft": SIZE,
            "quota_hard": SIZE,
        },
    },
    "clients": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": NAME,
            "address": {"type": "str"},
            "aliases": {"type": "list", "elements": "str", "default": []},
        },
    },
    "leaving": {"type": "list", "elements": "str", "default": []},
    "subnet": {"type": "str", "default": ""},
    "threads": {"type": "int", "default": 0},
    "grace": {"type": "int", "default": 60},
    "user_quotas": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": NAME,
            "soft": SIZE,
            "hard": SIZE,
            "users": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": NAME, "soft": SIZE, "hard": SIZE},
            },
        },
    },
    "uids": {"type": "dict", "default": {}},
    "gids": {"type": "dict", "default": {}},
    "packages": {"type": "list", "elements": "str", "default": []},
    "installed": {"type": "list", "elements": "str", "default": []},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}
#: What of rpcinfo's programs NFS itself registers: portmapper, nfs, mountd, nlockmgr, status, nfs_acl.
OWN_PROGRAMS = frozenset(("100000", "100003", "100005", "100021", "100024", "100227"))


OWN_FILES = (nfs_plan.EXPORTS, nfs_plan.CONF, nfs_plan.ORDER, nfs_plan.RECORD)


class StorageError(RuntimeError):
    """What can't be done here; the message says why and has the mend."""


# --- what is wanted --------------------------------------------------------------------------------------------------


def read_wanted(params: Mapping[str, Any]) -> Wanted:
    """Return what the parameters ask for; StorageError for names without a number, ValueError for a bad size."""
    uids = {name: int(number) for name, number in params["uids"].items()}
    gids = {name: int(number) for name, number in params["gids"].items()}
    directories = storage_layout.read(params["directories"], params["servers"])
    host = params["host"]
    for one in directories:
        if one.local_to(host) and not one.provided:
            # the lab's own people and groups may come later in this run
            if one.owner not in uids:
                uids[one.owner] = _number(one.owner, "owner", one.path)
            if one.group not in gids:
                gids[one.group] = _number(one.group, "group", one.path)
    projects = tuple(
        nfs_plan.Project(
            one["path"],
            gids[one["group"]] if one["group"] in gids else _number(one["group"], "group", one["path"]),
            one["mode"],
            quota_plan.limit(one["quota_soft"] or "", one["quota_hard"] or ""),
        )
        for one in params["projects"]
    )
    clients: tuple[str, ...] = ()
    leaving: frozenset[str] = frozenset()
    if host in params["servers"] or any(one.server == host for one in directories):
        entries = params["clients"] if params["subnet"] else list(_resolved(params["clients"]))
        leaving = frozenset(str(one["address"]) for one in entries if one["name"] in params["leaving"])
        clients = nfs_plan.addresses(entries, host, params["leaving"], params["subnet"])
    return Wanted(
        host=host,
        present=params["state"] == "present",
        directories=directories,
        projects=projects,
        clients=clients,
        leaving=leaving,
        threads=params["threads"] or nfs_plan.default_threads(os.cpu_count() or 1),
        grace=params["grace"],
        quotas=tuple(_user_quotas(one, params["uids"]) for one in params["user_quotas"]),
        uids=uids,
        gids=gids,
        packages=tuple(params["packages"]),
        installed=tuple(params["installed"]),
        unsaid=frozenset(
            (one["path"], key)
            for one in params["directories"]
            for key in ("mode", "owner", "group")
            if not one.get(key)
        ),
    )


def _user_quotas(entry: Mapping[str, Any], uids: Mapping[str, Any]) -> nfs_plan.UserQuotas:
    everybody = quota_plan.limit(entry["soft"] or "", entry["hard"] or "")
    limits = {int(uid): everybody for uid in uids.values()}
    for user in entry["users"]:
        if user["name"] in uids:
            limits[int(uids[user["name"]])] = quota_plan.limit(user["soft"] or "", user["hard"] or "")
    return nfs_plan.UserQuotas(entry["path"], limits)


def _number(name: str, kind: str, path: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid if kind == "owner" else grp.getgrnam(name).gr_gid
    except KeyError:
        registry = "lab_users" if kind == "owner" else "lab_groups"
        raise StorageError(f"{path} has the {kind} {name}, which is nobody here. Mend: add it to {registry}") from None


def _resolved(entries: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Give every node an address in numbers: what this host makes of the names of those that said nothing else."""
    for entry in entries:
        address = entry["address"] or entry["name"]
        try:
            yield {**entry, "address": str(ipaddress.ip_address(address))}
        except ValueError:
            with suppress(OSError):
                yield {**entry, "address": socket.gethostbyname(address)}


# --- what is there ---------------------------------------------------------------------------------------------------


def observe(wanted: Wanted, limited: bool) -> Observed:
    """Read the host; quotas only where ``limited`` or a record says that there is something to reconcile."""
    filesystems = storage_observe.filesystems()
    paths = nfs_plan.sources(wanted)
    seen = {path: storage_observe.folder(path, top_of(path, wanted)) for path in paths}
    folders = {path: found for path, found in seen.items() if found is not None}
    bound = [one for one in wanted.own if one.source != one.path]
    files = {path: node_io.observe_file(path) for path in OWN_FILES}
    record_file = files[nfs_plan.RECORD]
    record = nfs_plan.Record.read(record_file.text if record_file else None)
    units = sorted({*(one.path for one in bound), *record.mounts})
    files.update({nfs_plan.unit_path(path): node_io.observe_file(nfs_plan.unit_path(path)) for path in units})
    names = [unit_of_path(path, "mount") for path in units]
    if wanted.serving or files[nfs_plan.CONF] or files[nfs_plan.EXPORTS]:
        names.append(nfs_plan.SERVER)
    state = Observed(
        filesystems=filesystems,
        fstab=storage_observe.fstab(),
        folders=folders,
        obstacles=frozenset(path for path in paths if path not in folders and os.path.lexists(path)),
        entries={one.path: tuple(sorted(os.listdir(one.path))) for one in bound if one.path in folders},
        same=frozenset(one.path for one in bound if _same(one.source, one.path)),
        files=files,
        services=observe_services(names),
        nfsd=has_nfsd(),
        kernel=os.uname().release,
        exported=read_etab(node_io.read_text("/var/lib/nfs/etab") or ""),
        versions=frozenset((node_io.read_text("/proc/fs/nfsd/versions") or "").split()),
        login_home=_login_home(bound),
        masked=frozenset(unit for unit in nfs_plan.RPC_UNITS if _is_masked(unit)),
        rpc_users=rpc_users(filesystems.values()) if wanted.serving else (),
        foreign_exports=foreign_exports(),
    )
    with_quotas = {*record.limits}
    if limited:
        with_quotas |= {state.filesystem_of(path).mount for path in paths}
    for mount in with_quotas & set(filesystems):
        filesystems[mount] = replace(filesystems[mount], quotas=storage_observe.quotas(filesystems[mount]))
    return state


def top_of(path: str, wanted: Wanted) -> str:
    """Return the lab's directory in which a project's lies, where people may put links; a path in none is its own."""
    around = [one.source for one in wanted.own if storage_layout.inside(path, one.source)]
    return max(around, key=len, default=path)


def has_nfsd(root: Path = Path("/")) -> bool:
    """Return whether the running kernel can serve NFS: loaded, built in, or as a module on the disk."""
    if "nfsd" in (node_io.read_text(root / "proc/filesystems") or "").split():
        return True
    modules = root / "lib/modules" / (node_io.read_text(root / "proc/sys/kernel/osrelease") or "").strip()
    if any((modules / "kernel/fs/nfsd").glob("nfsd.ko*")):
        return True
    return "/nfsd.ko" in (node_io.read_text(modules / "modules.builtin") or "")


def read_etab(text: str) -> frozenset[tuple[str, str]]:
    """Return (source, client) of what is exported, from /var/lib/nfs/etab, which exportfs(8) keeps."""
    found = set()
    for line in text.splitlines():
        source, _tab, client = line.partition("\t")
        if client:
            found.add((source, client.partition("(")[0]))
    return frozenset(found)


def rpc_users(mounted: Iterable[Filesystem]) -> tuple[str, ...]:
    """Return why rpcbind is needed on this host: mounts by NFSv3, other programs that are registered with it."""
    found = [f"{one.mount} is mounted by NFSv3" for one in mounted if one.fstype == "nfs"]
    programs: dict[str, str] = {}
    for line in node_io.run(["rpcinfo", "-p"], timeout=10).out.splitlines()[1:]:
        fields = line.split()
        if fields and fields[0].isdigit() and fields[0] not in OWN_PROGRAMS:
            programs[fields[0]] = fields[4] if len(fields) > 4 else f"program {fields[0]}"
    return tuple(found + [f"{name} is registered with it" for name in programs.values()])


def foreign_exports(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the sources in exports(5) that others wrote."""
    files = [root / "etc/exports", *sorted((root / "etc/exports.d").glob("*.exports"))]
    lines = [
        line
        for file in files
        if file != root / nfs_plan.EXPORTS.lstrip("/")
        for line in (node_io.read_text(file) or "").splitlines()
    ]
    return tuple(line.split()[0] for line in lines if line.strip() and not re.match(r"\s*#", line))


def _login_home(bound: Iterable[storage_layout.Directory]) -> str:
    """The home of whom this run logs in as, if what would be mounted over it has none in its place."""
    try:
        home = pwd.getpwnam(os.environ.get("SUDO_USER", "")).pw_dir if os.environ.get("SUDO_USER") else ""
    except KeyError:
        home = ""
    for one in bound:
        if home and storage_layout.inside(home, one.path) and os.path.isdir(home):
            return "" if os.path.isdir(storage_layout.on_server([one], home)) else home
    return ""


def _same(source: str, path: str) -> bool:
    try:
        return os.path.samefile(source, path)
    except OSError:
        return False


def _is_masked(unit: str) -> bool:
    try:
        return os.readlink(f"{nfs_plan.UNITS}/{unit}") == os.devnull
    except OSError:
        return False


# --- making it so ----------------------------------------------------------------------------------------------------


def apply(changes: list[Change], state: Observed, wanted: Wanted) -> None:
    """Make the changes (OSError, ServiceError or StorageError when the host refuses)."""
    # systemd reads all of its files each time, which takes it a while
    unread = False
    for change in changes:
        verb, *rest = change.step
        if verb in ("start", "restart") and unread:
            daemon_reload()
            unread = False
        if verb == "folder":
            make_folder(rest[0], top_of(rest[0], wanted), *rest[1:])
        elif verb == "acl":
            with storage_observe.opened(rest[0], top_of(rest[0], wanted)) as place:
                posix_acl.write(place, posix_acl.for_group(int(rest[1], 8), posix_acl.read(place) or {}))
        elif verb == "mark":
            with storage_observe.opened(rest[0], top_of(rest[0], wanted)) as place:
                disk_quota.mark(place, int(rest[1]))
        elif verb == "limit":
            mount, kind, number, soft, hard = rest
            limit = Limit(int(soft), int(hard))
            disk_quota.set_limit(storage_observe.device_of(state.filesystems[mount]), kind, int(number), limit)
        elif verb == "write":
            node_io.write_file(rest[0], node_io.FileState(rest[1]))
        elif verb == "remove":
            if rest[0].endswith(".mount"):
                expect(["systemctl", "--no-reload", "disable", os.path.basename(rest[0])])
            node_io.remove_file(rest[0])
            if rest[0] == nfs_plan.ORDER:
                node_io.remove_empty(os.path.dirname(rest[0]))
        elif verb == "mask":
            expect(["systemctl", "stop", rest[0]])
            expect(["systemctl", "--no-reload", "mask", rest[0]])
        elif verb in ("enable", "disable", "unmask"):
            expect(["systemctl", "--no-reload", verb, rest[0]])
        elif verb == "exportfs":
            export(rest)
        else:
            act(verb, rest[0])
        touched = verb in ("write", "remove") and rest[0].startswith(nfs_plan.UNITS)
        unread = unread or touched or verb in ("mask", "enable", "disable", "unmask")
    if unread:
        daemon_reload()


def expect(argv: list[str]) -> None:
    """Run a command (StorageError when it fails)."""
    done = node_io.run(argv)
    if done.rc:
        raise StorageError(f"{' '.join(argv)} failed: {(done.err or done.out).strip()}")


def export(absent: list[str]) -> None:
    """Read exports(5) anew (StorageError when that fails for another source than those that are not there)."""
    done = node_io.run(["exportfs", "-ra"])
    wrong = unexplained(done.err, absent) if done.rc else []
    if wrong or (done.rc and not absent):
        raise StorageError(f"exportfs -ra failed: {'; '.join(wrong) or done.err.strip()}")


def unexplained(errors: str, absent: list[str]) -> list[str]:
    """Return the lines of exportfs's errors that are about none of these sources."""
    return [line for line in errors.splitlines() if not any(f" {source}:" in line for source in absent)]


def make_folder(path: str, top: str, mode: str, uid: str, gid: str) -> None:
    """Make a directory, those above it as usual, or give the one that is there this mode and owner (OSError)."""
    if path == top and not os.path.isdir(path):
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.mkdir(path, 0o700)
    with storage_observe.opened(path, top, make=True) as place:
        os.chown(place, int(uid), int(gid))
        os.chmod(place, int(mode, 8))


class Converging:
    """The module as :func:`change.converge` knows it, which fails at its end for what was left out."""

    def __init__(self, module: AnsibleModule, left_out: list[str]) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.check_mode: bool = module.check_mode
        self.left_out = left_out

    def warn(self, warning: str) -> None:
        """Show a warning."""
        self.module.warn(warning)

    def exit_json(self, **result: Any) -> NoReturn:
        """End the module, by a failure where something was left out."""
        if self.left_out:
            self.fail_json(msg="; ".join(self.left_out), **result)
        self.module.exit_json(**result)
        raise AssertionError

    def fail_json(self, msg: str, **result: Any) -> NoReturn:
        """End the module with a failure."""
        self.module.fail_json(msg=msg, **result)
        raise AssertionError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    limited = bool(params["user_quotas"] or any(one["quota_soft"] or one["quota_hard"] for one in params["projects"]))
    converging = Converging(module, [])
    seen: list[Observed] = []
    packages: list[str] = []

    def look() -> Observed:
        state = observe(wanted, limited)
        if not seen:
            reasons = nfs_plan.refusals(state, wanted)
            if reasons:
                module.fail_json(msg="nothing was changed here: " + "; ".join(reasons))
            _now, pending = consent(nfs_plan.plan(state, wanted), params["max_disruption"])
            packages.extend(nfs_plan.removable(state, wanted, pending))
            converging.left_out.extend(nfs_plan.unmounted(state, wanted).values())
            for words in nfs_plan.warnings(state, wanted):
                module.warn(words)
        seen.append(state)
        return state

    try:
        wanted = read_wanted(params)
    except (ValueError, StorageError) as error:
        module.fail_json(msg=f"nothing was changed here: {error}")
    try:
        converge(
            converging,
            look,
            lambda state: nfs_plan.plan(state, wanted),
            lambda changes: apply(changes, seen[-1], wanted),
            lambda _state: {"packages": packages},
            drains=False,
            ledger="nfs_server",
        )
    except ValueError as error:
        module.fail_json(msg=f"{nfs_plan.RECORD} is damaged ({error}). Mend: remove it and run again.")
    except (OSError, ServiceError, StorageError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
