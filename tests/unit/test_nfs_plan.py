# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The host that has the lab's directories: exports, units, folders, projects, quotas, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import nfs_plan, posix_acl, quota_plan, storage_layout
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, consent
from ansible_collections.labrack.infra.plugins.module_utils.nfs_plan import (
    CONF,
    EXPORTS,
    RECORD,
    SERVER,
    Filesystem,
    Folder,
    Observed,
    Project,
    Record,
    UserQuotas,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import (
    COUNTED,
    ENFORCED,
    OFF,
    Limit,
    Quotas,
    Usage,
)
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import Directory, inside
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, unit_of_path
from ansible_collections.labrack.infra.plugins.modules import nfs_server as module

ROOT_DISK = Filesystem("/", "/dev/sda1", "ext4", "8:1", Quotas({"user": OFF, "project": OFF}))
DISK = Filesystem("/srv/lab", "/dev/sdb1", "xfs", "8:17", Quotas({"user": ENFORCED, "project": ENFORCED}))
HOME = Directory("/home", "/srv/lab/home", "head")
DATA = Directory("/data", "/srv/lab/data", "head", "2775", group="curators", read_only=True)
CHECKPOINTS = Directory("/checkpoints", "/srv/lab/checkpoints", "head")
VISION = Project("/checkpoints/vision", 3001, "2770", Limit(800 * 2**20, 2**30))
FSTAB = {"/": "UUID=1", "/srv/lab": "UUID=2"}
BARE = Observed({"/": ROOT_DISK, "/srv/lab": DISK}, FSTAB, {"/home": Folder()})
LAB = Wanted(
    host="head",
    directories=(HOME, DATA, CHECKPOINTS),
    projects=(VISION,),
    clients=("10.0.0.2", "10.0.0.3"),
    quotas=(UserQuotas("/home", {2001: Limit(50 * 2**20, 60 * 2**20), 2002: Limit(50 * 2**20, 60 * 2**20)}),),
    uids={"root": 0, "ada": 2001, "ben": 2002},
    gids={"root": 0, "curators": 3002},
)
UP = ServiceState(installed=True, active=True, enabled=True)


def apply(state: Observed, changes: Iterable[Change]) -> Observed:
    """A host on which these changes were made, as the module makes them."""
    for change in changes:
        verb, *rest = change.step
        files, folders = dict(state.files), dict(state.folders)
        filesystems, services, same = dict(state.filesystems), dict(state.services), set(state.same)
        if verb == "folder":
            old = folders.get(rest[0], Folder())
            folders[rest[0]] = replace(old, mode=rest[1], uid=int(rest[2]), gid=int(rest[3]))
        elif verb == "acl":
            old = folders[rest[0]]
            folders[rest[0]] = replace(old, acl=posix_acl.for_group(int(rest[1], 8), old.acl or {}))
        elif verb == "mark":
            folders[rest[0]] = replace(folders[rest[0]], project=int(rest[1]))
        elif verb == "limit":
            mount, kind, number, soft, hard = rest
            quotas = filesystems[mount].quotas
            assert quotas.state[kind] == ENFORCED and int(number) > 0
            usage = dict(quotas.usage.get(kind, {}))
            usage[int(number)] = replace(usage.get(int(number), Usage()), limit=Limit(int(soft), int(hard)))
            filesystems[mount] = replace(
                filesystems[mount], quotas=replace(quotas, usage={**quotas.usage, kind: usage})
            )
        elif verb == "write":
            files[rest[0]] = FileState(rest[1])
        elif verb == "remove":
            files[rest[0]] = None
        elif verb in ("start", "stop", "restart", "enable") and rest[0].endswith(".mount"):
            unit = files[f"{nfs_plan.UNITS}/{rest[0]}"]
            assert unit is not None
            values = dict(line.split("=", 1) for line in unit.text.splitlines() if "=" in line)
            services[rest[0]] = replace(services.get(rest[0], ServiceState()), enabled=True, installed=True)
            where = values["Where"]
            if verb == "stop":
                del filesystems[where]
                same.discard(where)
            elif verb in ("start", "restart"):
                assert values["What"] in folders
                filesystems[where] = replace(DISK, mount=where)
                same.add(where)
        elif verb == "stop":
            services[rest[0]] = replace(services[rest[0]], active=False)
        elif verb == "disable":
            services[rest[0]] = replace(services[rest[0]], enabled=False)
        elif verb in ("restart", "enable"):
            if verb == "restart" and not files.get(CONF):
                assert not state.masked & {"rpcbind.socket"}, "NFSv3 would not start"
            before = services.get(rest[0], ServiceState())
            # a package enables its service when it is installed
            services[rest[0]] = replace(UP, enabled=verb == "enable" or before.enabled or not before.installed)
            state = replace(state, versions=nfs_plan.SERVED, exported=exported(files))
        elif verb == "exportfs":
            state = replace(state, exported=exported(files))
        elif verb == "mask":
            state = replace(state, masked=state.masked | {rest[0]})
        elif verb == "unmask":
            state = replace(state, masked=state.masked - {rest[0]})
        else:
            raise AssertionError(verb)
        state = replace(
            state, files=files, folders=folders, filesystems=filesystems, services=services, same=frozenset(same)
        )
    return state


def exported(files: dict[str, FileState | None]) -> frozenset[tuple[str, str]]:
    file = files.get(EXPORTS)
    found = nfs_plan.read_exports(file.text) if file else {}
    return frozenset((source, client) for source, clients in found.items() for client in clients)


def made(state: Observed = BARE, wanted: Wanted = LAB, consented: str = "reboot") -> Observed:
    """A host after a run; the run is known to have converged."""
    assert nfs_plan.refusals(state, wanted) == []
    now, _pending = consent(nfs_plan.plan(state, wanted), consented)
    after = apply(state, now)
    left, _pending = consent(nfs_plan.plan(after, wanted), consented)
    assert [f"{change.subject}: {change.summary}" for change in left] == []
    return after


def text(state: Observed, path: str) -> str:
    file = state.files.get(path)
    return file.text if file else ""


def summaries(changes: Iterable[Change]) -> list[str]:
    return [f"{change.subject}: {change.summary} ({change.disruption})" for change in changes]


# --- exports and configuration ---


def test_exports_of_a_lab() -> None:
    options = "sync,root_squash,no_subtree_check,mountpoint=/srv/lab"
    assert text(made(), EXPORTS).splitlines()[1:] == [
        f"/srv/lab/checkpoints 10.0.0.2(rw,{options}) 10.0.0.3(rw,{options})",
        f"/srv/lab/data 10.0.0.2(ro,{options}) 10.0.0.3(ro,{options})",
        f"/srv/lab/home 10.0.0.2(rw,{options}) 10.0.0.3(rw,{options})",
    ]


def test_configuration_serves_one_version_alone() -> None:
    lines = text(made(), CONF).splitlines()
    assert {"vers2=n", "vers3=n", "vers4.0=n", "vers4.1=n", "vers4.2=y", "lease-time=60", "grace-time=60"} <= set(lines)
    assert [nfs_plan.default_threads(cores) for cores in (1, 4, 64)] == [8, 16, 64]


def test_one_missing_disk_keeps_no_server_from_starting() -> None:
    lines = text(made(), nfs_plan.ORDER).splitlines()
    assert lines[1:] == ["[Unit]", "Wants=srv-lab.mount", "After=srv-lab.mount"]


def test_what_is_added_is_reloaded_and_what_is_taken_waits() -> None:
    state = made()
    more = replace(LAB, clients=("10.0.0.2", "10.0.0.3", "10.0.0.4"))
    assert {change.disruption for change in nfs_plan.plan(state, more)} == {"reload"}
    less = replace(LAB, clients=("10.0.0.2", "10.0.0.9"))
    now, pending = consent(nfs_plan.plan(state, less), "restart")
    assert [change.step[0] for change in now] == ["write", "exportfs"]
    assert "takes away /srv/lab/checkpoints from 10.0.0.3" in pending[0].summary
    between = made(state, less, "restart")
    assert "10.0.0.3(" in text(between, EXPORTS) and "10.0.0.9(" in text(between, EXPORTS)
    assert "10.0.0.3(" not in text(made(between, less), EXPORTS)


def test_a_directory_that_becomes_read_only_waits_too() -> None:
    state = made()
    changes = nfs_plan.plan(state, replace(LAB, directories=(replace(HOME, read_only=True), DATA, CHECKPOINTS)))
    assert {change.disruption for change in changes} == {"drain"}


def test_an_export_that_was_lost_is_read_anew() -> None:
    state = replace(made(), exported=frozenset())
    assert [change.step for change in nfs_plan.plan(state, LAB)] == [("exportfs",)]


def test_a_server_that_serves_other_versions_is_restarted() -> None:
    state = replace(made(), versions=frozenset(("+3", "+4", "+4.1", "+4.2")))
    (change,) = nfs_plan.plan(state, LAB)
    assert (change.step, change.disruption) == (("restart", SERVER), "restart")


def test_rpcbind_goes_unless_somebody_needs_it() -> None:
    assert made().masked == set(nfs_plan.RPC_UNITS)
    busy = made(replace(BARE, rpc_users=("/mnt/old is mounted by NFSv3",)))
    assert busy.masked == frozenset()
    assert "NFSv3" in nfs_plan.warnings(busy, LAB)[0]


def test_without_clients_there_are_directories_and_quotas_and_no_nfs() -> None:
    state = made(wanted=replace(LAB, clients=()))
    assert state.folders["/srv/lab/data"].rights() == "2775 0:3002"
    assert state.filesystems["/srv/lab"].quotas.usage["user"][2001].limit.hard == 60 * 2**20
    assert not text(state, EXPORTS) and not text(state, CONF) and not state.masked and SERVER not in state.services


def test_a_kernel_without_nfsd_is_named_before_anything_is_done() -> None:
    (reason,) = nfs_plan.refusals(replace(BARE, nfsd=False, kernel="6.1-x"), LAB)
    assert "6.1-x of head has no NFS server" in reason
    assert nfs_plan.refusals(replace(BARE, nfsd=False), replace(LAB, clients=())) == []


# --- disks that are not there ---


def test_a_disk_that_is_not_mounted_is_not_filled_and_not_served() -> None:
    state = replace(BARE, filesystems={"/": ROOT_DISK})
    assert nfs_plan.refusals(state, replace(LAB, directories=(HOME,), projects=(), quotas=())) == []
    local = Directory("/scratch2", "/scratch2", "head")
    wanted = replace(LAB, directories=(HOME, local), projects=(), quotas=LAB.quotas)
    after = made(state, wanted)
    assert [path for path in after.folders if path.startswith("/srv")] == []
    assert "/srv/lab/home" not in text(after, EXPORTS) and "/scratch2 10.0.0.2" in text(after, EXPORTS)
    (words,) = nfs_plan.unmounted(after, wanted).values()
    assert "/srv/lab, which /etc/fstab says is UUID=2, is not mounted on head" in words and "`mount /srv/lab`" in words
    assert "/home" in nfs_plan.unmounted(after, wanted)


def test_a_disk_that_went_away_keeps_its_exports_line_its_unit_and_its_limits() -> None:
    state = made()
    gone = replace(state, filesystems={"/": ROOT_DISK}, same=frozenset(), exported=frozenset())
    assert summaries(nfs_plan.plan(gone, LAB)) == []
    assert "ConditionPathIsMountPoint=/srv/lab" in text(gone, nfs_plan.unit_path("/home"))


def test_a_named_filesystem_counts_without_fstab() -> None:
    named = replace(HOME, filesystem="/srv/lab")
    assert nfs_plan.guard_of(named, {}) == "/srv/lab"
    assert nfs_plan.guard_of(replace(HOME, filesystem="/"), FSTAB) == ""
    assert nfs_plan.guard_of(HOME, {"/": "a", "/srv": "b", "/srv/lab": "c", "/srv/la": "d"}) == "/srv/lab"


# --- bind mounts ---


def test_a_path_that_is_not_empty_is_not_hidden() -> None:
    state = replace(BARE, entries={"/home": ("ada", "ben")})
    (reason,) = nfs_plan.refusals(state, LAB)
    assert "/home is not empty (ada, ben)" in reason and "over: true" in reason
    assert nfs_plan.refusals(state, replace(LAB, directories=(replace(HOME, over=True), DATA, CHECKPOINTS))) == []


def test_the_home_of_the_login_is_never_hidden() -> None:
    state = replace(BARE, entries={"/home": ("admin",)}, login_home="/home/admin")
    (reason,) = nfs_plan.refusals(state, replace(LAB, directories=(replace(HOME, over=True), DATA, CHECKPOINTS)))
    assert "copy it to /srv/lab/home/admin first" in reason


def test_a_directory_that_is_there_keeps_what_nothing_is_said_of() -> None:
    there = replace(BARE, folders={**BARE.folders, "/srv/lab/data": Folder("0700", 7, 8)})
    unsaid = frozenset((("/data", "mode"), ("/data", "owner")))
    assert made(there, replace(LAB, unsaid=unsaid)).folders["/srv/lab/data"].rights() == "0700 7:3002"
    assert made(wanted=replace(LAB, unsaid=unsaid)).folders["/srv/lab/data"].rights() == "2775 0:3002"


def test_something_else_at_the_path_is_refused_and_an_fstab_line_is_left_alone() -> None:
    other = replace(BARE, filesystems={**BARE.filesystems, "/home": replace(DISK, mount="/home", device="/dev/sdc1")})
    assert "/dev/sdc1 is mounted at /home" in nfs_plan.refusals(other, LAB)[0]
    theirs = replace(other, fstab={**FSTAB, "/home": "/srv/lab/home"})
    assert text(made(theirs), nfs_plan.unit_path("/home")) == ""


def test_another_source_under_a_mount_waits() -> None:
    state = made()
    moved = replace(LAB, directories=(replace(HOME, source="/srv/lab/people"), DATA, CHECKPOINTS))
    state = replace(state, same=state.same - {"/home"})
    pending = consent(nfs_plan.plan(state, moved), "restart")[1]
    assert "mount /home: shows /srv/lab/people in place of what it has (drain)" in summaries(pending)


PATH_LETTERS = st.text(st.characters(codec="utf-8", exclude_characters="/\0\n", exclude_categories=("Cs",)), min_size=1)


@given(st.lists(PATH_LETTERS, min_size=1, max_size=4))
def test_a_units_name_stands_for_one_path(parts: list[str]) -> None:
    name = unit_of_path("/" + "/".join(parts), "mount").removesuffix(".mount")
    assert not name.startswith(".") and "/" not in name
    plain = [bytes(part.encode()) for part in parts]
    decoded = [one.encode().decode("unicode_escape").encode("latin-1") for one in name.split("-")]
    assert decoded == plain


# --- projects and quotas ---


def test_a_project_gets_its_group_acl_number_and_limit() -> None:
    state = made()
    folder = state.folders["/srv/lab/checkpoints/vision"]
    assert (folder.rights(), folder.project) == ("2770 0:3001", quota_plan.FIRST_PROJECT)
    assert posix_acl.words(folder.acl or {}) == "u::rwx,g::rwx,o::---"
    assert state.filesystems["/srv/lab"].quotas.usage["project"][folder.project].limit == VISION.limit


def test_a_number_that_others_use_is_not_taken() -> None:
    docker = replace(DISK, quotas=replace(DISK.quotas, usage={"project": {quota_plan.FIRST_PROJECT: Usage(5)}}))
    state = made(replace(BARE, filesystems={"/": ROOT_DISK, "/srv/lab": docker}))
    assert state.folders["/srv/lab/checkpoints/vision"].project == quota_plan.FIRST_PROJECT + 1


def test_further_entries_of_an_acl_stay() -> None:
    state = made()
    path = "/srv/lab/checkpoints/vision"
    folder = state.folders[path]
    named = {**(folder.acl or {}), (posix_acl.USER, 2002): 5, (posix_acl.MASK, posix_acl.NOBODY): 7}
    state = replace(state, folders={**state.folders, path: replace(folder, acl=named)})
    assert nfs_plan.plan(state, LAB) == []
    assert posix_acl.unpack(posix_acl.pack(named)) == named


def test_a_limit_that_left_the_inventory_goes_back_and_one_by_hand_stays() -> None:
    state = made()
    usage = {**state.filesystems["/srv/lab"].quotas.usage["user"], 5000: Usage(1, Limit(7, 7))}
    disk = state.filesystems["/srv/lab"]
    disk = replace(disk, quotas=replace(disk.quotas, usage={**disk.quotas.usage, "user": usage}))
    state = replace(state, filesystems={**state.filesystems, "/srv/lab": disk})
    after = made(state, replace(LAB, quotas=(UserQuotas("/home", {2001: Limit(0, 5)}),), projects=()))
    seen = after.filesystems["/srv/lab"].quotas.usage["user"]
    assert (seen[2001].limit, seen[2002].limit, seen[5000].limit) == (Limit(0, 5), Limit(), Limit(7, 7))
    assert after.filesystems["/srv/lab"].quotas.usage["project"][quota_plan.FIRST_PROJECT].limit == Limit()
    assert json.loads(text(after, RECORD))["limits"] == {"/srv/lab": {"user": [2001]}}


def test_a_limit_below_what_somebody_has_waits() -> None:
    state = made()
    disk = state.filesystems["/srv/lab"]
    usage = {2001: Usage(40 * 2**20, Limit(50 * 2**20, 60 * 2**20)), 2002: Usage()}
    disk = replace(disk, quotas=replace(disk.quotas, usage={"user": usage}))
    state = replace(state, filesystems={**state.filesystems, "/srv/lab": disk})
    tight = replace(LAB, projects=(), quotas=(UserQuotas("/home", dict.fromkeys((2001, 2002), Limit(0, 30 * 2**20))),))
    now, pending = consent(nfs_plan.plan(state, tight), "restart")
    assert summaries(pending) == ["quota of user ada on /srv/lab: 50G/60G → none/30G, and has 40G already (drain)"]
    assert "quota of user ben on /srv/lab: none/none → none/30G (none)" in summaries(now)


@pytest.mark.parametrize(
    ("fstype", "mount", "state_of_it", "mend"),
    [
        ("xfs", "/srv/lab", OFF, "add usrquota to the options of /srv/lab in /etc/fstab"),
        ("xfs", "/", OFF, "rootflags=usrquota"),
        ("ext4", "/srv/lab", OFF, "tune2fs -O quota -Q usrquota /dev/sdb1"),
        ("ext4", "/srv/lab", COUNTED, "run `mount -o remount /srv/lab`"),
        ("btrfs", "/srv/lab", OFF, "have /srv/lab on XFS or ext4"),
    ],
)
def test_a_filesystem_without_quotas_is_refused_with_the_mend(
    fstype: str, mount: str, state_of_it: str, mend: str
) -> None:
    disk = replace(DISK, mount=mount, fstype=fstype, quotas=Quotas({"user": state_of_it, "project": OFF}))
    state = replace(BARE, filesystems={"/": ROOT_DISK, mount: disk}, fstab={})
    reasons = nfs_plan.refusals(state, replace(LAB, projects=()))
    assert len(reasons) == 1 and mend in reasons[0] and "mounted without them" in reasons[0]


def test_two_limits_on_one_filesystem_are_refused() -> None:
    wanted = replace(LAB, quotas=(*LAB.quotas, UserQuotas("/data", {2001: Limit(1, 1)})))
    assert "which are one file system (/srv/lab)" in nfs_plan.refusals(BARE, wanted)[0]


@pytest.mark.parametrize(
    ("written", "size", "shown"),
    [("50G", 50 * 2**20, "50G"), ("1.5T", 3 * 2**29, "1.5T"), ("0", 0, "none"), ("800 GiB", 800 * 2**20, "800G")],
)
def test_sizes(written: str, size: int, shown: str) -> None:
    assert (quota_plan.kib(written), quota_plan.words(size)) == (size, shown)


@pytest.mark.parametrize("wrong", ["", "50", "-1G", "50X", "G", "1e3G"])
def test_what_is_no_size(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        quota_plan.kib(wrong)


# --- undo ---


@pytest.mark.parametrize("others", [(), ("/srv/others",)])
def test_undo_leaves_nothing_but_data(others: tuple[str, ...]) -> None:
    state = replace(made(), foreign_exports=others)
    gone = replace(LAB, present=False)
    assert {change.disruption for change in nfs_plan.plan(state, gone)} >= {"drain"}
    between = made(state, gone, "restart")
    assert text(between, EXPORTS) and "/home" in Record.read(text(between, RECORD)).mounts
    assert nfs_plan.removable(state, gone, consent(nfs_plan.plan(state, gone), "restart")[1]) == ()
    for before in (state, between):
        after = made(before, gone)
        assert {path for path, file in after.files.items() if file} == set()
        assert after.masked == frozenset() and set(after.filesystems) == {"/", "/srv/lab"}
        assert after.services[SERVER].active == bool(others), "who else exports goes on"
        limits = after.filesystems["/srv/lab"].quotas.usage
        assert {usage.limit for kind in limits.values() for usage in kind.values()} == {Limit()}
        assert after.folders == state.folders


@pytest.mark.parametrize("enabled", [True, False])
def test_undo_gives_the_service_back_as_it_was(enabled: bool) -> None:
    found = ServiceState(installed=True, active=False, enabled=enabled)
    state = made(replace(BARE, services={SERVER: found}))
    assert state.services[SERVER] == UP
    gone = replace(LAB, present=False)
    between = made(state, gone, "restart")
    assert between.services[SERVER] == UP and (SERVER in Record.read(text(between, RECORD)).enabled) != enabled
    for before in (state, between):
        after = made(before, gone)
        assert after.services[SERVER] == found and not text(after, RECORD)


def test_packages_go_only_if_they_were_ours_and_nothing_waits() -> None:
    state = made(wanted=replace(LAB, installed=("nfs-kernel-server",)))
    assert nfs_plan.removable(state, LAB, []) == ()
    assert nfs_plan.removable(state, replace(LAB, present=False), []) == ("nfs-kernel-server",)


def test_a_damaged_record_is_an_error() -> None:
    with pytest.raises(ValueError):
        nfs_plan.plan(replace(BARE, files={RECORD: FileState("{")}), LAB)


# --- any lab ---

NAMES = ("home", "data", "checkpoints", "models")
HOSTS = ("head", "node1", "node2")


@st.composite
def labs(draw: st.DrawFn) -> Wanted:
    """A lab that the rules would let through, as one of its hosts sees it."""
    servers = draw(st.sampled_from([(), ("head",), ("head", "node1")]))
    entries = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        entry: dict[str, Any] = {"path": f"/{name}", "mode": draw(st.sampled_from(["0755", "2775"]))}
        if draw(st.booleans()):
            entry["source"] = f"/srv/lab/{name}"
        if servers and draw(st.booleans()):
            entry["server"] = draw(st.sampled_from(servers))
        entry["read_only"] = draw(st.booleans())
        entry["provided"] = "source" not in entry and draw(st.integers(0, 4)) == 0
        entries.append(entry)
    directories = storage_layout.read(entries, servers)
    sizes = st.sampled_from([0, 2**20, 2**30])
    projects = tuple(
        Project(f"{one.path}/{name}", gid, limit=Limit(0, 0 if one.provided or "/srv" not in one.source else size))
        for one in directories
        for name, gid, size in draw(
            st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([3001, 3002]), sizes), unique_by=lambda it: it[0])
        )
    )
    host = draw(st.sampled_from(HOSTS))
    served = [one for one in directories if one.source.startswith("/srv") and one.local_to(host)]
    people = st.dictionaries(st.sampled_from([2001, 2002, 2003]), st.builds(Limit, st.just(0), sizes))
    quotas = (UserQuotas(served[0].path, draw(people)),) if served and draw(st.booleans()) else ()
    entries = [{"name": name, "address": f"10.0.0.{place}"} for place, name in enumerate(HOSTS)]
    leaving = draw(st.sampled_from([(), ("node2",)]))
    subnet = draw(st.sampled_from(["", "", "10.0.0.0/24"]))
    clients = nfs_plan.addresses(entries, host, leaving, subnet) if host in servers else ()
    return Wanted(
        host=host,
        directories=directories,
        projects=projects,
        clients=clients,
        quotas=quotas,
        present=draw(st.integers(0, 5)) > 0,
        uids={"root": 0, "ada": 2001},
        gids={"root": 0},
    )


@given(st.lists(labs(), min_size=1, max_size=3), st.booleans())
def test_any_lab_after_any_other(several: list[Wanted], mounted: bool) -> None:
    state = BARE if mounted else replace(BARE, filesystems={"/": ROOT_DISK})
    host = several[0].host
    for wanted in (replace(one, host=host) for one in several):
        state = made(state, wanted)
        out = nfs_plan.unmounted(state, wanted)
        lines = text(state, EXPORTS).splitlines()[1:]
        sources = [line.split()[0] for line in lines]
        assert len(sources) == len(set(sources)) and "*" not in text(state, EXPORTS)
        served = {one.source for one in wanted.own if one.server == host and one.path not in out}
        assert set(sources) == (served if wanted.serving else set())
        for line in lines:
            assert [client.partition("(")[0] for client in line.split()[1:]] == sorted(wanted.clients)
            assert "root_squash" in line and "no_root_squash" not in line
        if not mounted:
            assert not [path for path in state.folders if inside(path, "/srv/lab")]
    last = made(state, replace(several[-1], host=host, present=False))
    assert {path for path, file in last.files.items() if file} <= ({RECORD} if not mounted else set())
    assert last.folders == state.folders


@given(
    st.dictionaries(
        st.integers(1000, 1020), st.builds(Usage, st.integers(0, 99), st.builds(Limit, *[st.integers(0, 99)] * 2))
    ),
    st.dictionaries(st.integers(1000, 1020), st.builds(Limit, *[st.integers(0, 99)] * 2)),
    st.sets(st.integers(1000, 1020)),
)
def test_limits_are_reconciled(seen: dict[int, Usage], wanted: dict[int, Limit], ours: set[int]) -> None:
    changes = quota_plan.plan_limits("/x", "user", seen, wanted, ours, {})
    after = dict(seen)
    for change in changes:
        _verb, _mount, _kind, number, soft, hard = change.step
        after[int(number)] = replace(after.get(int(number), Usage()), limit=Limit(int(soft), int(hard)))
    assert quota_plan.plan_limits("/x", "user", after, wanted, ours, {}) == []
    for number, usage in after.items():
        expected = wanted.get(number, Limit() if number in ours else seen.get(number, Usage()).limit)
        assert usage.limit == expected


# --- what the module reads ---


def test_clients_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(name: str) -> str:
        if name != "node1":
            raise OSError(f"no {name}")
        return "10.0.0.3"

    monkeypatch.setattr(module.socket, "gethostbyname", resolve)
    nodes = [
        {"name": "n", "address": "10.0.0.2"},
        {"name": "node1", "address": None},
        {"name": "x", "address": "FE80::2"},
    ]
    nodes.append({"name": "gone", "address": None})
    assert [one["address"] for one in module._resolved(nodes)] == ["10.0.0.2", "10.0.0.3", "fe80::2"]


def test_addresses_of_clients() -> None:
    entries = [{"name": "head", "address": "10.0.0.1"}, {"name": "a", "address": "10.0.0.2"}, {"name": "b"}]
    assert nfs_plan.addresses(entries, "head", (), "") == ("10.0.0.2",)
    assert nfs_plan.addresses(entries, "head", ("a",), "") == ()
    assert nfs_plan.addresses(entries, "head", (), "10.0.0.0/24") == ("10.0.0.0/24",)


def parameters(**changes: Any) -> dict[str, Any]:
    """What the module gets unless told otherwise."""
    return {**{name: option.get("default", "") for name, option in module.ARGUMENT_SPEC.items()}, **changes}


def test_owners_may_be_people_who_come_later() -> None:
    directory = {"path": "/data", "owner": "no-such-ada", "group": "no-such-vision"}
    numbers: dict[str, Any] = {"uids": {"no-such-ada": 2001}, "gids": {"no-such-vision": 3001}}
    project = {"path": "/data/v", "group": "no-such-vision", "mode": "2770", "quota_soft": None, "quota_hard": None}
    wanted = module.read_wanted(parameters(host="head", directories=[directory], projects=[project], **numbers))
    assert made(Observed(), wanted).folders["/data"].rights() == "0755 2001:3001"
    assert wanted.projects[0].gid == 3001
    with pytest.raises(module.StorageError, match="/data has the group no-such-vision, which is nobody here"):
        module.read_wanted(parameters(host="head", directories=[directory], uids=numbers["uids"]))


def test_a_thousand_people_are_one_plan() -> None:
    params = parameters()
    quota = {"path": "/home", "soft": "50G", "hard": "60G", "users": [{"name": "u7", "soft": None, "hard": "1T"}]}
    directory = {"path": "/home", "source": "/srv/lab/home"}
    params.update(host="head", servers=["head"], directories=[directory], user_quotas=[quota])
    params.update(uids={f"u{number}": 2000 + number for number in range(1000)}, state="present")
    wanted = module.read_wanted(params)
    assert wanted.quotas[0].limits[2007] == Limit(0, 2**30)
    changes = nfs_plan.plan(BARE, wanted)
    assert len([change for change in changes if change.step[0] == "limit"]) == 1000


def test_exportfs_may_miss_what_is_known_to_be_missing() -> None:
    errors = "exportfs: Failed to stat /srv/lab/home: No such file or directory\nexportfs: /a: no such export\n"
    assert module.unexplained(errors, ["/srv/lab/home"]) == ["exportfs: /a: no such export"]
    assert module.unexplained(errors, ["/srv/lab/home", "/a"]) == []


def test_etab_and_foreign_exports(tmp_path: Any) -> None:
    etab = "/srv/lab/home\t10.0.0.2(rw,sync,wdelay)\n/srv/lab/home\t10.0.0.0/24(ro)\n"
    assert module.read_etab(etab) == {("/srv/lab/home", "10.0.0.2"), ("/srv/lab/home", "10.0.0.0/24")}
    (tmp_path / "etc/exports.d").mkdir(parents=True)
    (tmp_path / "etc/exports").write_text("# nothing\n\n/old *(rw)\n")
    (tmp_path / "etc/exports.d/labrack.exports").write_text("/srv/lab 10.0.0.2(rw)\n")
    assert module.foreign_exports(tmp_path) == ("/old",)


@pytest.mark.parametrize(
    ("files", "there"),
    [
        ({"proc/filesystems": "nodev\tnfsd\n\text4\n"}, True),
        ({"lib/modules/6.1/kernel/fs/nfsd/nfsd.ko.xz": ""}, True),
        ({"lib/modules/6.1/modules.builtin": "kernel/fs/nfsd/nfsd.ko\n"}, True),
        ({"proc/filesystems": "nodev\tnfs\n", "lib/modules/6.1/modules.builtin": "kernel/fs/nfs/nfs.ko\n"}, False),
        ({}, False),
    ],
)
def test_kernels_that_can_serve(tmp_path: Any, files: dict[str, str], there: bool) -> None:
    for name, content in {"proc/sys/kernel/osrelease": "6.1\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert module.has_nfsd(tmp_path) is there


def test_what_is_in_a_projects_place_is_named() -> None:
    state = replace(BARE, obstacles=frozenset({"/srv/lab/checkpoints/vision"}))
    assert nfs_plan.refusals(state, LAB) == [
        "/srv/lab/checkpoints/vision is there and is no directory, or a link to one. Mend: move it away"
    ]


def test_a_node_that_leaves_is_served_no_more_without_further_consent() -> None:
    """Its jobs have ended before; what others would lose with it still waits."""
    state = apply(BARE, nfs_plan.plan(BARE, LAB))
    gone = replace(LAB, clients=("10.0.0.2",))
    assert {change.disruption for change in nfs_plan.plan(state, gone)} == {"drain"}
    leaving = replace(gone, leaving=frozenset({"10.0.0.3"}))
    changes = nfs_plan.plan(state, leaving)
    assert {change.disruption for change in changes} == {"reload"}
    assert nfs_plan.plan(apply(state, changes), leaving) == []
    _now, pending = consent(nfs_plan.plan(state, replace(leaving, clients=())), "restart")
    assert any("10.0.0.2" in change.summary and "10.0.0.3" not in change.summary for change in pending)
