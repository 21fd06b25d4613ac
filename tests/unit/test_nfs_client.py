# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The client's side of the shared directories: units, what is in the way, mounts that change, scratch, the network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.filter.nfs_servers import nfs_servers
from ansible_collections.labrack.infra.plugins.module_utils import (
    mount_observe,
    nfs_client_plan,
    path_mtu,
    storage_layout,
    systemd,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, consent
from ansible_collections.labrack.infra.plugins.module_utils.hardware_observe import Mount
from ansible_collections.labrack.infra.plugins.module_utils.mount_observe import SILENT, STALE, Place
from ansible_collections.labrack.infra.plugins.module_utils.nfs_client_plan import (
    ClientError,
    Observed,
    Wanted,
    Way,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, FileState
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState
from ansible_collections.labrack.infra.plugins.modules import nfs_client

KERNEL = (6, 1)
ARMED = ServiceState(installed=True, active=True, enabled=True)
HOME = {"path": "/home", "source": "/srv/lab/home"}
DATA = {"path": "/data", "read_only": True}


def wanted(
    *directories: Mapping[str, Any], host: str = "node1", kernel: tuple[int, int] = KERNEL, **others: Any
) -> Wanted:
    """What the module wants on a host of a lab whose server is the head."""
    params: dict[str, Any] = {
        "state": "present",
        "name": host,
        "directories": [dict(directory) for directory in directories],
        "servers": ["head"],
        "nodes": [{"name": "head", "address": "10.0.0.1", "link_mbit": None}],
        "nconnect": 4,
        "scratch": "",
        "scratch_days": 30,
        "packages": [],
        "installed": [],
    }
    return nfs_client_plan.read_wanted({**params, **others}, kernel)


def place(kind: str = "directory", fstype: str = "", device: str = "", entries: tuple[str, ...] = ()) -> Place:
    remote = fstype.startswith("nfs") or kind == "unknown"
    return Place(kind=kind, fstype=fstype, device=device, point="/", remote=remote, entries=list(entries))


def nfs(device: str, *options: str, number: str = "0:45") -> Mount:
    told = tuple(sorted({"rw", "addr=10.0.0.1", *options} - ({"rw"} if "ro" in options else set())))
    return Mount(number=number, subtree="/", device=device, fstype="nfs4", options=told)


def mounted(wish: Wanted, **changes: Any) -> Observed:
    """A host on which all is as wanted, and mounted."""
    node = converged(wish, Observed(places={path: place() for path in wish.shares}))
    mounts = {
        path: nfs(share.what, *(["ro"] if share.directory.read_only else [])) for path, share in wish.shares.items()
    }
    places = {path: place(fstype="nfs4", device=share.what) for path, share in wish.shares.items()}
    return replace(node, mounts=mounts, places={**node.places, **places}, **changes)


def apply(node: Observed, wish: Wanted, changes: list[Change]) -> Observed:
    """Make the changes on a simulated host, as systemd would."""
    units, services = dict(node.units), dict(node.services)
    mounts, places, busy = dict(node.mounts), dict(node.places), set(node.busy)
    tmpfiles, record, mode = node.tmpfiles, node.record, node.scratch_mode
    texts: dict[str, FileState] = {}
    for share in wish.shares.values():
        texts.update(nfs_client_plan.wanted_units(node, share))
    of_unit = {nfs_client_plan.automount_unit(path): path for path in [*places, *nfs_client_plan.ours(units)]}
    for change in changes:
        verb, target = change.step
        if verb == "mkdir":
            assert places[target]["kind"] == "missing"
            places[target] = place()
        elif verb == "write" and target in texts:
            units[target] = texts[target]
        elif verb == "write" and target == nfs_client_plan.TMPFILES:
            tmpfiles = nfs_client_plan.wanted_tmpfiles(node, wish)
        elif verb == "write":
            record = nfs_client_plan.wanted_record(node, wish)
        elif verb == "remove" and target in units:
            del units[target]
        elif verb == "remove" and target == nfs_client_plan.TMPFILES:
            tmpfiles = None
        elif verb == "remove":
            record = None
        elif verb == "scratch":
            mode = nfs_client_plan.SCRATCH_MODE
            places[target] = place()
        elif verb in ("unmount", "detach"):
            assert verb == "detach" or (target not in busy and node.answers.get(target, "") not in (STALE, SILENT))
            del mounts[target]
            busy.discard(target)
            places[target] = place()
        elif verb == "redirect":
            assert node.answers[target] == SILENT and node.transports
            node = replace(node, answers={**node.answers, target: ""})
        elif verb == "start":
            path = of_unit[target]
            assert path not in mounts, "systemd refuses an automount unit over a mount point"
            assert {nfs_client_plan.mount_file(path), nfs_client_plan.automount_file(path)} <= units.keys()
            services[target] = replace(services.get(target, ServiceState()), active=True, installed=True)
        elif verb == "enable":
            services[target] = replace(services.get(target, ServiceState()), enabled=True, installed=True)
        elif verb == "disable":
            services[target] = ServiceState()
        else:
            assert verb == "rmdir"
    for unit, path in of_unit.items():
        if path in places and path not in mounts:
            armed = services.get(unit, ServiceState()).active
            places[path] = place("directory" if armed else places[path]["kind"], *(("autofs", "systemd-1") * armed))
    answers = {path: answer for path, answer in node.answers.items() if path in mounts}
    return replace(
        node,
        units=units,
        services=services,
        mounts=mounts,
        places=places,
        busy=frozenset(busy),
        answers=answers,
        tmpfiles=tmpfiles,
        record=record,
        scratch_mode=mode,
    )


def converged(wish: Wanted, node: Observed) -> Observed:
    return apply(node, wish, nfs_client_plan.plan(node, wish))


def steps(changes: list[Change]) -> list[tuple[str, ...]]:
    return [change.step for change in changes]


# --- units ---


def test_units_of_a_directory() -> None:
    share = wanted(HOME).shares["/home"]
    assert nfs_client_plan.mount_file("/home") == "/etc/systemd/system/home.mount"
    assert nfs_client_plan.mount_text(share) == (
        f"{nfs_client_plan.HEADER}\n"
        "[Unit]\nDescription=/home of head\nStartLimitIntervalSec=0\n\n"
        "[Mount]\nWhat=head:/srv/lab/home\nWhere=/home\nType=nfs4\n"
        "Options=vers=4.2,hard,nofail,_netdev,nosuid,nodev,nconnect=4\nTimeoutSec=90\n"
    )
    assert nfs_client_plan.automount_text(share, made=True) == (
        f"{nfs_client_plan.HEADER}\n"
        "[Unit]\nDescription=/home of head, at first use\n\n[Automount]\nWhere=/home\n\n"
        "[Install]\nWantedBy=multi-user.target\n\n[X-labrack]\nDirectory=made\n"
    )


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/home", "home.mount"),
        ("/data/sets", "data-sets.mount"),
        ("/data-sets", r"data\x2dsets.mount"),
        ("/.hidden/.x", r"\x2ehidden-.x.mount"),
        ("/srv/é v@1", r"srv-\xc3\xa9\x20v\x401.mount"),
        ("/", "-.mount"),
    ],
)
def test_unit_names_are_those_of_systemd_escape(path: str, unit: str) -> None:
    assert systemd.unit_of_path(path, "mount") == unit


@pytest.mark.parametrize(
    ("directory", "kernel", "options"),
    [
        (DATA, (5, 3), "vers=4.2,hard,nofail,_netdev,nosuid,nodev,nconnect=4,ro"),
        (DATA, (5, 2), "vers=4.2,hard,nofail,_netdev,nosuid,nodev,ro"),
        (
            {**DATA, "options": ["nconnect=8", "soft"]},
            (6, 1),
            "vers=4.2,soft,nofail,_netdev,nosuid,nodev,nconnect=8,ro",
        ),
        ({**HOME, "options": ["suid"]}, (6, 1), "vers=4.2,hard,nofail,_netdev,suid,nodev,nconnect=4"),
        (
            {**HOME, "options": ["rsize=65536"]},
            (6, 1),
            "vers=4.2,hard,nofail,_netdev,nosuid,nodev,nconnect=4,rsize=65536",
        ),
    ],
)
def test_options(directory: Mapping[str, Any], kernel: tuple[int, int], options: str) -> None:
    (share,) = wanted(directory, kernel=kernel).shares.values()
    assert ",".join(share.options) == options


@pytest.mark.parametrize(
    ("address", "ordered"), [("100.101.2.3", True), ("fd7a:115c:a1e0::1", True), ("10.1.2.3", False)]
)
def test_a_mount_over_the_tailnet_comes_after_it(address: str, ordered: bool) -> None:
    nodes = [{"name": "head", "address": address, "link_mbit": None}]
    text = nfs_client_plan.mount_text(wanted(HOME, nodes=nodes).shares["/home"])
    assert ("After=tailscaled.service\nWants=tailscaled.service\n" in text) is ordered
    # nothing of a boot may wait for it
    assert "tailscaled" not in nfs_client_plan.automount_text(wanted(HOME, nodes=nodes).shares["/home"], made=False)


# --- the plan, on a simulated host ---

NAMES = ("/home", "/data", "/data-sets", "/checkpoints", "/srv/é v", "/50%", "/a/b")
PATHS = st.sampled_from(NAMES)
DIRECTORIES = st.lists(
    st.fixed_dictionaries(
        {"path": PATHS},
        optional={
            "source": st.sampled_from(["/srv/one", "/srv/two", "/data", "/home/x"]),
            "server": st.sampled_from(["head", "node1", "node2"]),
            "read_only": st.booleans(),
            "provided": st.booleans(),
            "over": st.booleans(),
        },
    ),
    max_size=4,
    unique_by=lambda directory: directory["path"],
)
SCRATCH = st.sampled_from(["", "/scratch", "/local"])


@st.composite
def nodes(draw: st.DrawFn) -> Observed:
    """A host that a run for another inventory has left, with what may have happened to it since."""
    before = wanted(*draw(DIRECTORIES.filter(_possible)), scratch=draw(SCRATCH))
    bare = Observed(
        places={
            path: place(draw(st.sampled_from(["missing", "directory"])))
            for path in [
                "/home",
                "/data",
                "/data-sets",
                "/checkpoints",
                "/srv/é v",
                "/50%",
                "/a/b",
                "/scratch",
                "/local",
            ]
        }
    )
    node = converged(before, bare)
    mounts = {
        path: nfs(draw(st.sampled_from([share.what, "old:/x"])), *draw(st.sampled_from([(), ("ro",)])))
        for path, share in before.shares.items()
        if draw(st.booleans())
    }
    services = {
        unit: draw(st.sampled_from([state, state, ServiceState(installed=True)]))
        for unit, state in node.services.items()
    }
    places = {**node.places}
    for path in before.shares:
        if path in mounts:
            places[path] = place(fstype="nfs4", device=mounts[path]["device"])
        elif not services[nfs_client_plan.automount_unit(path)].active:
            places[path] = place()
    return replace(
        node,
        mounts=mounts,
        services=services,
        places=places,
        busy=frozenset(path for path in mounts if draw(st.booleans())),
        answers={path: draw(st.sampled_from(["", "", STALE, SILENT, "Permission denied"])) for path in mounts},
    )


def _possible(directories: list[dict[str, Any]]) -> bool:
    return not list(nfs_client_plan.hides(storage_layout.read(directories, ["head"]), "node1"))


@given(nodes(), DIRECTORIES.filter(_possible), SCRATCH)
def test_a_plan_leads_to_what_is_wanted_and_the_next_is_empty(
    node: Observed, directories: list[dict[str, Any]], scratch: str
) -> None:
    wish = wanted(*directories, scratch=scratch)
    after = converged(wish, node)
    assert nfs_client_plan.plan(after, wish) == []
    assert nfs_client_plan.ours(after.units) == set(wish.shares)
    for path, share in wish.shares.items():
        assert after.services[nfs_client_plan.automount_unit(path)].active
        assert path not in after.mounts or after.mounts[path]["device"] == share.what


@given(nodes(), DIRECTORIES.filter(_possible), SCRATCH, st.sampled_from(["none", "restart"]))
def test_consent_to_less_leads_to_nothing_but_what_waits(
    node: Observed, directories: list[dict[str, Any]], scratch: str, allowed: str
) -> None:
    wish = wanted(*directories, scratch=scratch)
    now, pending = consent(nfs_client_plan.plan(node, wish), allowed)
    after = apply(node, wish, now)
    left, still = consent(nfs_client_plan.plan(after, wish), allowed)
    assert left == []
    assert [change.subject for change in still] == [change.subject for change in pending]
    for path in node.busy & set(node.mounts):
        assert path in after.mounts or node.answers[path] in (STALE, SILENT)


@given(nodes(), DIRECTORIES.filter(_possible))
def test_what_is_right_is_left_alone(node: Observed, directories: list[dict[str, Any]]) -> None:
    wish = wanted(*directories)
    for change in nfs_client_plan.plan(node, wish):
        verb, path = change.step
        if verb in ("unmount", "detach"):
            assert path not in wish.shares or nfs_client_plan.off(node, wish.shares[path])


@given(nodes())
def test_undo_leaves_nothing_of_ours(node: Observed) -> None:
    after = converged(Wanted(present=False), node)
    assert (after.units, after.tmpfiles, after.record) == ({}, None, None)
    assert nfs_client_plan.plan(after, Wanted(present=False)) == []


@given(DIRECTORIES, st.sampled_from(["head", "node1", "node2", "node3"]))
def test_no_mount_over_what_the_host_serves(directories: list[dict[str, Any]], host: str) -> None:
    layout = storage_layout.read(directories, ["head"])
    own = [one for one in layout if one.local_to(host) and not one.provided]
    try:
        wish = wanted(*directories, host=host)
    except ClientError as error:
        assert host in str(error)
        return
    for share in wish.shares.values():
        for one in own:
            assert not storage_layout.inside(one.source, share.directory.path)
            assert not storage_layout.inside(one.path, share.directory.path)


def test_first_run_writes_arms_and_enables() -> None:
    wish = wanted(HOME)
    node = Observed(places={"/home": place("missing")})
    assert steps(nfs_client_plan.plan(node, wish)) == [
        ("mkdir", "/home"),
        ("write", "/etc/systemd/system/home.mount"),
        ("write", "/etc/systemd/system/home.automount"),
        ("enable", "home.automount"),
        ("start", "home.automount"),
    ]


def test_systemd_reads_new_files_once_and_those_of_a_mount_with_its_turn() -> None:
    node = mounted(wanted(HOME), busy=frozenset())
    node = replace(node, places={**node.places, "/data": place("missing")})
    found = steps(nfs_client_plan.plan(node, wanted({**HOME, "options": ["rsize=65536"]}, DATA)))
    assert [step[0] for step in found] == ["mkdir", "write", "write", "enable", "start", "write", "unmount"]
    found = steps(nfs_client_plan.plan(Observed(places=node.places), wanted(HOME, DATA)))
    assert [step[0] for step in found] == ["mkdir", *["write"] * 4, *["enable", "start"] * 2]


def test_other_options_wait_while_somebody_uses_the_directory() -> None:
    node = mounted(wanted(HOME), busy=frozenset({"/home"}))
    wish = wanted({**HOME, "options": ["rsize=65536"]})
    changes = nfs_client_plan.plan(node, wish)
    assert {change.disruption for change in changes} == {"drain"}
    assert steps(changes) == [("write", "/etc/systemd/system/home.mount"), ("detach", "/home")]
    free = nfs_client_plan.plan(replace(node, busy=frozenset()), wish)
    assert {change.disruption for change in free} == {"restart"}
    assert steps(free)[-1] == ("unmount", "/home")


@pytest.mark.parametrize("busy", [frozenset[str](), frozenset({"/home"})])
def test_a_stale_handle_is_repaired_in_one_run(busy: frozenset[str]) -> None:
    wish = wanted(HOME)
    node = mounted(wish, busy=busy, answers={"/home": STALE})
    (change,) = nfs_client_plan.plan(node, wish)
    assert (change.step, change.disruption) == (("detach", "/home"), "restart")
    assert nfs_client_plan.plan(converged(wish, node), wish) == []


def test_a_server_that_moved_is_followed_once_the_old_one_is_silent() -> None:
    node = mounted(wanted(HOME), busy=frozenset({"/home"}), answers={"/home": SILENT})
    moved = wanted(HOME, nodes=[{"name": "head", "address": "10.0.0.99", "link_mbit": None}])
    (change,) = nfs_client_plan.plan(node, moved)
    assert (change.step, change.disruption) == (("detach", "/home"), "restart")
    assert "10.0.0.1" in change.summary and "10.0.0.99" in change.summary
    # it may have several addresses
    assert nfs_client_plan.plan(replace(node, answers={"/home": ""}), moved) == []
    other = wanted({**HOME, "server": "node2"})
    assert {change.disruption for change in nfs_client_plan.plan(node, other)} == {"restart"}
    assert {change.disruption for change in nfs_client_plan.plan(replace(node, answers={}), other)} == {"drain"}


def test_the_kernels_connections_are_led_to_a_server_that_moved() -> None:
    node = mounted(wanted(HOME), busy=frozenset({"/home"}), answers={"/home": SILENT})
    node = replace(node, transports=frozenset({"10.0.0.1", "10.0.0.5"}))
    moved = wanted(HOME, nodes=[{"name": "head", "address": "10.0.0.99", "link_mbit": None}])
    (change,) = nfs_client_plan.plan(node, moved)
    assert (change.step, change.disruption) == (("redirect", "/home"), "restart")
    assert "10.0.0.1" in change.summary and "10.0.0.99" in change.summary
    assert nfs_client_plan.plan(converged(moved, node), moved) == []
    # other options need a mount anew, which would hang while somebody waits for the old address
    other = replace(moved, shares={"/home": replace(moved.shares["/home"], options=("soft",))})
    steps = [change.step for change in nfs_client_plan.plan(node, other) if change.step[1] == "/home"]
    assert steps == [("redirect", "/home"), ("detach", "/home")]
    # nothing of ours leads to where the server was
    elsewhere = replace(node, transports=frozenset({"10.0.0.5"}))
    assert nfs_client_plan.plan(elsewhere, moved)[0].step == ("detach", "/home")


def test_a_server_that_was_followed_is_waited_for_when_it_is_away() -> None:
    node = mounted(wanted(HOME), busy=frozenset({"/home"}), answers={"/home": SILENT})
    moved = wanted(HOME, nodes=[{"name": "head", "address": "10.0.0.99", "link_mbit": None}])
    assert nfs_client_plan.plan(replace(node, transports=frozenset({"10.0.0.99"})), moved) == []
    # only some of the connections were led away
    both = replace(node, transports=frozenset({"10.0.0.1", "10.0.0.99"}))
    assert [change.step for change in nfs_client_plan.plan(both, moved)] == [("redirect", "/home")]


def test_transports_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    assert mount_observe.transports(tmp_path) == {}
    for name, address in (("xprt-0-tcp", "10.0.0.1"), ("xprt-1-local", "/run/rpcbind.sock")):
        folder = tmp_path / "sys/kernel/sunrpc/xprt-switches/switch-0" / name
        folder.mkdir(parents=True)
        (folder / "dstaddr").write_text(f"{address}\n")
    assert list(mount_observe.transports(tmp_path).values()) == ["10.0.0.1"]


def test_a_server_that_is_away_is_waited_for() -> None:
    wish = wanted(HOME)
    node = mounted(wish, busy=frozenset({"/home"}), answers={"/home": SILENT})
    assert nfs_client_plan.plan(node, wish) == []
    (note,) = nfs_client_plan.notes(node, wish, {}, {"/home": SILENT})
    assert "head does not answer" in note


def test_a_directory_that_left_the_inventory() -> None:
    node = mounted(wanted(HOME, DATA), busy=frozenset({"/data"}))
    wish = wanted()
    changes = nfs_client_plan.plan(node, wish)
    assert {change.subject: change.disruption for change in changes if change.step[0] != "remove"} == {
        "mount /home": "restart",
        "automount /home": "restart",
        "mount /data": "drain",
        "automount /data": "drain",
    }
    gone = converged(wish, node)
    assert gone.units == {} and gone.mounts == {}


def test_directory_that_was_made_goes_again_and_one_that_was_there_stays() -> None:
    wish = wanted(HOME, DATA, scratch="/scratch")
    bare = Observed(places={"/home": place("missing"), "/data": place(), "/scratch": place("missing")})
    node = converged(wish, bare)
    removed = [step for step in steps(nfs_client_plan.plan(node, Wanted(present=False))) if step[0] == "rmdir"]
    assert removed == [("rmdir", "/home"), ("rmdir", "/scratch")]


# --- what is in the way ---


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (place(entries=("ada", "ben")), ("/home: it is not empty", "hide ada, ben.", "over: true")),
        (place(entries=tuple("abcdef")), ("hide a, b, c, d, e and more",)),
        (place(fstype="ext4", device="/dev/sdb1"), ("/dev/sdb1 (ext4) is mounted there", "provided: true")),
        (place(fstype="autofs", device="/etc/auto.home"), ("/etc/auto.home (autofs) is mounted there",)),
        (place("other"), ("no directory",)),
        (place("unknown"), ("another server",)),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_changes(seen: Place, words: tuple[str, ...]) -> None:
    with pytest.raises(ClientError) as caught:
        nfs_client_plan.plan(Observed(places={"/home": seen}), wanted(HOME))
    assert str(caught.value).startswith("nothing was changed by nfs_client; /home: ")
    assert [word for word in words if word not in str(caught.value)] == []


def test_over_hides_what_lies_there() -> None:
    node = Observed(places={"/home": place(entries=("ada",))})
    assert nfs_client_plan.plan(node, wanted({**HOME, "over": True}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nfs": False}, "this kernel can't mount NFS: it has no module nfsv4"),
        ({"fstab": frozenset({"/home"})}, "/home: /etc/fstab mounts something there"),
        ({"units": {"/etc/systemd/system/home.mount": FileState("[Mount]\n")}}, "home.mount is not labrack's"),
    ],
)
def test_what_else_keeps_a_directory_from_being_mounted(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ClientError, match=words):
        nfs_client_plan.plan(Observed(places={"/home": place()}, **changes), wanted(HOME))


def test_a_kernel_without_nfs_is_enough_for_what_is_provided_and_for_the_server() -> None:
    node = Observed(nfs=False, places={"/home": place(fstype="ext4", device="/dev/vdb")})
    assert nfs_client_plan.plan(node, wanted({"path": "/home", "provided": True})) == []
    assert nfs_client_plan.plan(node, wanted(HOME, host="head")) == []


def test_scratch_is_on_the_hosts_own_disk() -> None:
    for seen in (place("other"), place(fstype="nfs4", device="head:/scratch")):
        with pytest.raises(ClientError, match="lab_scratch"):
            nfs_client_plan.plan(Observed(places={"/scratch": seen}), wanted(scratch="/scratch"))


def test_scratch_has_a_rule_by_age() -> None:
    node = Observed(places={"/scratch": place()}, scratch_mode="0755 root:root")
    wish = wanted(scratch="/scratch", scratch_days=14)
    after = converged(wish, node)
    assert after.tmpfiles is not None and after.scratch_mode == "1777 root:root"
    assert after.tmpfiles.text.endswith("\nd /scratch 1777 root root 14d\n")
    never = nfs_client_plan.tmpfiles_text("/scratch", 0, made=False)
    assert never.endswith("\nd /scratch 1777 root root -\n")


# --- the port mapper ---


def test_port_mapper_goes_where_our_package_brought_it() -> None:
    services = {"rpcbind.socket": ARMED, "rpcbind.service": ServiceState(installed=True, active=True)}
    node = replace(mounted(wanted(HOME)), services={**mounted(wanted(HOME)).services, **services})
    assert nfs_client_plan.plan(node, wanted(HOME)) == []
    changes = nfs_client_plan.plan(node, wanted(HOME, installed=["nfs-common", "rpcbind"]))
    assert steps(changes)[1:] == [("disable", "rpcbind.socket"), ("disable", "rpcbind.service")]
    old = Mount(number="0:9", subtree="/", device="nas:/x", fstype="nfs", options=("vers=3",))
    older = replace(node, mounts={**node.mounts, "/mnt": old})
    assert len(nfs_client_plan.plan(older, wanted(HOME, installed=["nfs-common", "rpcbind"]))) == 1


# --- what is told ---


@pytest.mark.parametrize(
    ("way", "server", "words"),
    [
        (Way("eth0", 10000, 1500, 1500), None, None),
        (Way("eth0", None, 1500, 1500), None, None),
        (Way("eth0", 10000, 9000, 0), None, None),
        (Way("eth0", 1000, 1500, 1500), None, "carries 1000 Mbit/s (eth0), and 10000 are wanted: to read 100 GB takes"),
        (Way("eth0", 25000, 1500, 1500), 2500, "carries 2500 Mbit/s (head)"),
        (Way("eth0", 10000, 9000, 1500), None, "packets of 9000 bytes (eth0) are lost on the way to head; 1500 come"),
    ],
)
def test_what_the_network_can_carry(way: Way, server: int | None, words: str | None) -> None:
    wish = wanted(HOME, nodes=[{"name": "head", "address": "10.0.0.1", "link_mbit": server}])
    told = nfs_client_plan.notes(mounted(wish), wish, {"head": way})
    assert (words is None and told == []) or (words is not None and len(told) == 1 and words in told[0])


def test_a_slow_link_is_told_in_minutes() -> None:
    (told,) = nfs_client_plan.notes(mounted(wanted(HOME)), wanted(HOME), {"head": Way("eth0", 1000, 1500, 1500)})
    assert "at least 13 min in place of 80 s" in told


def test_nfs_over_the_tailnet_is_told() -> None:
    wish = wanted(HOME, nodes=[{"name": "head", "address": "100.64.0.1", "link_mbit": 1000}])
    (told,) = nfs_client_plan.notes(mounted(wish), wish, {"head": Way("tailscale0", None, 1280, 1280)})
    assert "100.64.0.1" in told and "1280 bytes" in told and "lab_address" in told


def test_what_is_to_be_provided_and_is_not_is_told() -> None:
    wish = wanted({"path": "/data", "provided": True})
    (told,) = nfs_client_plan.notes(Observed(places={"/data": place()}), wish)
    assert "nothing is mounted there" in told
    there = Place(kind="directory", fstype="", device="", point="/nas", remote=True, entries=[])
    assert nfs_client_plan.notes(Observed(places={"/data": there}), wish) == []


def test_packets_are_tried_from_the_devices_own_down(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def passes(size: int, _peer: str) -> bool:
        asked.append(size)
        return size <= 1500

    monkeypatch.setattr(path_mtu, "passes", passes)
    assert path_mtu.biggest("10.0.0.1", nfs_client_plan.packets(9000)) == 1500
    assert asked == [9000, 576, 1500]
    monkeypatch.setattr(path_mtu, "passes", lambda _size, _peer: False)
    assert path_mtu.biggest("10.0.0.1", nfs_client_plan.packets(1500)) == 0


@pytest.mark.parametrize(("peer", "payload"), [("10.0.0.1", "1472"), ("fd00::1", "1452")])
def test_ping_is_told_the_payload(monkeypatch: pytest.MonkeyPatch, peer: str, payload: str) -> None:
    asked: list[list[str]] = []

    def run(argv: list[str], **_others: Any) -> Done:
        asked.append(argv)
        return Done(0, "", "")

    monkeypatch.setattr(path_mtu.node_io, "run", run)
    assert path_mtu.passes(1500, peer)
    assert asked[0][asked[0].index("-s") + 1] == payload


def test_servers_of_a_host_with_their_links() -> None:
    facts = {
        "addresses": {"default_ipv4": "10.0.0.1"},
        "nics": [
            {"name": "a", "speed_mbit": 1000, "up": True},
            {"name": "b", "speed_mbit": 25000, "up": True},
            {"name": "c", "speed_mbit": 100000, "up": False},
        ],
    }
    hostvars: dict[str, dict[str, Any]] = {"head": {"ansible_facts": {"labrack_node": facts}}, "node1": {}}
    assert nfs_servers([HOME], ["head"], "node1", hostvars) == [
        {"name": "head", "address": "10.0.0.1", "link_mbit": 25000}
    ]
    assert nfs_servers([HOME], ["head"], "head", hostvars) == []
    assert nfs_servers([HOME], [], "node1", hostvars) == []
    hostvars["head"] = {"lab_address": "100.64.0.1"}
    assert nfs_servers([HOME], ["head"], "node1", hostvars)[0]["address"] == "100.64.0.1"


# --- what is read ---


def mountinfo(root: Path, text: str, pid: str = "self") -> Path:
    folder = root / "proc" / pid
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mountinfo").write_text(text)
    return folder


TREE = (
    "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "30 21 0:40 / /home rw,relatime shared:2 - autofs systemd-1 rw,fd=40\n"
    "31 30 0:45 / /home rw,relatime shared:3 - nfs4 head:/srv/lab/home rw,vers=4.2,addr=10.0.0.1\n"
    "32 21 0:41 / /data rw,relatime shared:4 - autofs systemd-1 rw,fd=41\n"
)


def test_places(tmp_path: Path) -> None:
    mountinfo(tmp_path, TREE)
    for name in ("ada", "ben", "c", "d", "e", "f", "g"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("checkpoints")
    paths = ["/home", "/home/ada", "/data", "/checkpoints", "/link", "/none"]
    found = mount_observe.read_places(paths, tmp_path)
    assert {path: one["kind"] for path, one in found.items()} == {
        "/home": "directory",
        "/home/ada": "unknown",
        "/data": "directory",
        "/checkpoints": "directory",
        "/link": "other",
        "/none": "missing",
    }
    assert (found["/home"]["fstype"], found["/home"]["device"]) == ("nfs4", "head:/srv/lab/home")
    assert nfs_client_plan.armed(found["/data"]) and not nfs_client_plan.armed(found["/home"])
    assert len(found["/checkpoints"]["entries"]) == mount_observe.TOLD + 1
    assert found["/checkpoints"]["point"] == "/" and found["/home/ada"]["remote"]


@pytest.mark.parametrize(
    ("filesystems", "rc", "has"), [("nodev\tnfs4\n", 1, True), ("nodev\tnfs\n", 0, True), ("\text4\n", 1, False)]
)
def test_kernel_with_and_without_nfs(tmp_path: Path, filesystems: str, rc: int, has: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/filesystems").write_text(filesystems)
    assert mount_observe.kernel_has_nfs(tmp_path, lambda _argv: Done(rc, "", "")) is has


def test_a_server_that_hangs_does_not_hang_the_module() -> None:
    began = time.monotonic()
    found = mount_observe.answers(["a", "b"], 1.0, ["sh", "-c", "[ $0 = b ] || exec sleep 60"])
    assert found == {"a": SILENT, "b": ""}
    assert time.monotonic() - began < 30


def test_what_a_server_says() -> None:
    script = "echo \"stat: cannot read file system information for '$0': $0\" >&2; exit 1"
    found = mount_observe.answers(["Stale file handle", "Permission denied"], 30.0, ["sh", "-c", script])
    assert found == {"Stale file handle": STALE, "Permission denied": "Permission denied"}


def test_real_file_systems_answer() -> None:
    assert mount_observe.answers(["/"], 30.0) == {"/": ""}
    assert mount_observe.answers(["/nowhere"], 30.0) == {"/nowhere": "No such file or directory"}


def process(root: Path, pid: str, namespace: str = "mnt:[1]", **links: str) -> Path:
    folder = root / "proc" / pid
    (folder / "fd").mkdir(parents=True, exist_ok=True)
    (folder / "ns").mkdir(exist_ok=True)
    (folder / "ns/mnt").symlink_to(namespace)
    for name, target in links.items():
        (folder / name.replace("fd", "fd/")).symlink_to(target)
    return folder


@pytest.mark.parametrize(
    ("links", "used"),
    [
        ({"cwd": "/home/ada"}, True),
        ({"cwd": "/home"}, True),
        ({"fd7": "/home/ada/model.pt"}, True),
        ({"exe": "/home/ada/.venv/bin/python"}, True),
        ({"cwd": "/", "fd7": "/homes/x"}, False),
    ],
)
def test_who_uses_a_mount(tmp_path: Path, links: dict[str, str], used: bool) -> None:
    mountinfo(tmp_path, TREE)
    process(tmp_path, "self")
    process(tmp_path, "7", **links)
    assert mount_observe.in_use({"/home": "0:45"}, tmp_path) == ({"/home"} if used else set())


def test_a_library_in_memory_is_use(tmp_path: Path) -> None:
    mountinfo(tmp_path, TREE)
    process(tmp_path, "self")
    folder = process(tmp_path, "7")
    (folder / "maps").write_text("7f00-7f01 r-xp 00000000 00:2d 77 /home/ada/lib.so\n")
    assert mount_observe.in_use({"/home": "0:45"}, tmp_path) == {"/home"}


@pytest.mark.parametrize(("tag", "used"), [("", True), ("shared:9 ", True), ("master:3 ", False)])
def test_a_container_keeps_a_mount_and_a_service_does_not(tmp_path: Path, tag: str, used: bool) -> None:
    mountinfo(tmp_path, TREE)
    process(tmp_path, "self")
    process(tmp_path, "7", "mnt:[2]", cwd="/")
    mountinfo(tmp_path, f"90 80 0:45 / /mnt/home rw,relatime {tag}- nfs4 head:/srv/lab/home rw\n", "7")
    assert mount_observe.in_use({"/home": "0:45"}, tmp_path) == ({"/home"} if used else set())


def test_another_mount_below_is_use(tmp_path: Path) -> None:
    mountinfo(tmp_path, TREE + "40 31 0:50 / /home/ada/x rw - fuse.sshfs y rw\n")
    process(tmp_path, "self")
    assert mount_observe.in_use({"/home": "0:45"}, tmp_path) == {"/home"}


def test_this_process_uses_what_it_has_open(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w"):
        assert mount_observe.in_use({str(tmp_path): "0:0"}) == {str(tmp_path)}
    assert mount_observe.in_use({str(tmp_path / "none"): "0:0"}) == set()


# --- how it is made ---


def test_a_mount_that_can_not_be_unmounted_keeps_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nfs_client_plan, "UNITS", str(tmp_path))
    monkeypatch.setattr(nfs_client.systemd, "daemon_reload", lambda: None)
    monkeypatch.setattr(nfs_client.node_io, "run", lambda *_a, **_k: Done(32, "", "umount: /home: target is busy."))
    monkeypatch.setattr(nfs_client.node_io, "write_file", lambda path, state: Path(path).write_text(state.text))
    wish = wanted({**HOME, "options": ["rsize=65536"]})
    host = nfs_client.Host(wish)
    host.seen = mounted(wanted(HOME))
    old = dict(host.seen.units)
    with pytest.raises(systemd.ServiceError, match="target is busy"):
        host.apply(nfs_client_plan.plan(host.seen, wish))
    assert {path: Path(path).read_text() for path in old} == {path: state.text for path, state in old.items()}
