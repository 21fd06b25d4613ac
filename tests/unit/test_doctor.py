# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The doctor: what it makes of what nodes say, of their ways to each other, and of an inventory; and its screen."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from ansible_collections.labrack.infra.plugins.module_utils import (
    doctor_judge,
    doctor_observe,
    doctor_ways,
    sockets_observe,
)
from ansible_collections.labrack.infra.plugins.module_utils.doctor_judge import ERROR, NOTE, OK, WARNING, Finding
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done
from labrack import cli, doctor, lab

ROOT = Path(__file__).parents[2]
GROUPS = {
    "lab_head": ["head"],
    "lab_workers": ["node1", "node2"],
    "slurm_controller": ["head"],
    "slurm_database": ["head"],
    "slurm_login": ["head"],
    "slurm_worker": ["node1", "node2"],
}
HOSTS = ("head", "node1", "node2")
ADDRESSES = {host: f"10.0.0.{number}" for number, host in enumerate(HOSTS, 1)}
NOW = 1_800_000_000.0
Document = dict[str, dict[str, Any]]


def by_path(path: str) -> Any:
    """Load a Python file of the repository."""
    spec = importlib.util.spec_from_file_location("loaded", ROOT / path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules["loaded"] = found
    spec.loader.exec_module(found)
    return found


def card(index: int, **more: Any) -> dict[str, Any]:
    return {
        "index": index,
        "name": "NVIDIA RTX A6000",
        "uuid": f"GPU-{index}",
        "pci": f"0000:0{index}:00.0",
        "slurm_type": "rtx_a6000",
        "power_limit_w": 300.0,
        "temperature_c": 40,
        "temperature_slowdown_c": 95,
        "throttle": [],
        "ecc": {"enabled": True, "corrected": 3, "uncorrected": 0},
        "retired_pages": {"count": 0, "pending": False, "failure": False},
        "xids": [],
        **more,
    }


def look(host: str) -> dict[str, Any]:
    """What a node that is well says of itself."""
    gpus = [] if host == "head" else [card(0), card(1)]
    facts = {
        "hostname": host,
        "machine_id": f"{host:0>32}",
        "os": {"id": "debian", "version": "13", "family": "debian", "pretty": "Debian GNU/Linux 13"},
        "kernel": "6.12.0-1-amd64",
        "python": "3.13.5",
        "container": False,
        "time_sync": {"service": "chrony", "synchronized": None},
        "addresses": {"default_ipv4": ADDRESSES[host], "ipv4": [ADDRESSES[host]]},
        "nics": [{"name": "eth0", "speed_mbit": 10000, "mtu": 1500, "driver": "ixgbe", "up": True}],
        "users": [{"name": "root", "uid": 0, "gid": 0}, {"name": "slurm", "uid": 64030, "gid": 64030}],
        "groups": [],
        "subids": [],
        "gpus": gpus,
        "nvidia": {"state": "ok" if gpus else "absent", "message": "", "packages": {}, "lost": [], "reason": ""},
        "runtime": {"toolkit": None, "docker": {"runtimes": [], "containers": 0}},
        "conflicts": [],
        "system_python": {"packages": [], "others": [], "externally_managed": True, "interpreter": "", "pip": None},
        "cuda": [],
        "cpu": {"sockets": 1, "cores_per_socket": 16},
        "cpu_watts": None,
        "memory_mib": 64000,
        "cgroup": {"mode": "v2", "controllers": [], "writable": True, "reason": ""},
        "arch": "x86_64",
        "secure_boot": {"state": None, "mok": False},
        "nfs": True,
        "fstab": [],
        "places": {},
        "connection_user": "admin",
        "connection_home": "/home/admin",
    }
    return {
        "facts": facts,
        "sent": NOW,
        "started": NOW + 0.5,
        "ended": NOW + 1.5,
        "space": [{"mount": "/", "size_mib": 500_000, "free_mib": 300_000, "inodes": 90.0}],
        "sources": [{"uri": "http://deb.debian.org/debian/", "suite": "trixie", "problem": ""}],
        "services": [
            {**one, "addresses": ["0.0.0.0"], "installed": True, "stopped": False, "state": ""}
            for one in doctor_ways.services(host, GROUPS, "slurm", [])
        ],
        "listener": {"ports": [], "pid": 0, "started": ""},
    }


def well() -> Document:
    """The document of a lab in which all is well."""
    looks = {host: look(host) for host in HOSTS}
    peers = doctor_ways.peers(GROUPS, "slurm", [], ADDRESSES, looks)
    found: Document = {}
    for host in HOSTS:
        ways = [
            {
                **peer,
                "ports": [{**port, "problem": ""} for port in peer["ports"]],
                "addresses": [peer["address"]],
                "names": [peer["name"]],
                "device": "eth0",
                "mtu": 1500,
                "passes": 1500,
            }
            for peer in peers[host]
        ]
        found[host] = {
            "look": looks[host],
            "ways": {"ways": ways, "sent": NOW + 2, "started": NOW + 2.3, "ended": NOW + 3},
            "unreachable": False,
            "problem": "",
        }
    return found


def inventory(**variables: Any) -> Inventory:
    return Inventory({host: {"ansible_user": "admin", **variables} for host in HOSTS}, GROUPS)


def judged(document: Document, **variables: Any) -> list[Finding]:
    return doctor_judge.judge(json.loads(json.dumps(document)), inventory(**variables))


def wrong(document: Document, **variables: Any) -> list[Finding]:
    return [one for one in judged(document, **variables) if one.severity != OK]


def way(document: Document, source: str, target: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in document[source]["ways"]["ways"] if one["name"] == target)
    return found


def test_nothing_is_found_in_a_lab_that_is_well() -> None:
    assert wrong(well()) == []
    assert len(judged(well())) > 40
    assert {one.host for one in judged(well())} == {"", *HOSTS}


Break = Callable[[Document], object]


def facts(document: Document, host: str) -> dict[str, Any]:
    found: dict[str, Any] = document[host]["look"]["facts"]
    return found


def shift(document: Document, host: str, seconds: float) -> None:
    for part in ("look", "ways"):
        for key in ("started", "ended"):
            document[host][part][key] += seconds


def unreached(words: str, unreachable: bool = True) -> Break:
    return lambda document: document.update(
        node2={"look": None, "ways": None, "unreachable": unreachable, "problem": words}
    )


def say(host: str, part: str, value: Any) -> Break:
    return lambda document: document[host]["look"].update({part: value})


def fact(host: str, name: str, value: Any) -> Break:
    return lambda document: facts(document, host).update({name: value})


def gpu(**more: Any) -> Break:
    return lambda document: facts(document, "node1")["gpus"][0].update(more)


def service(host: str, name: str, **more: Any) -> Break:
    def change(document: Document) -> None:
        next(one for one in document[host]["look"]["services"] if one["service"] == name).update(more)

    return change


def port(source: str, target: str, name: str, problem: str) -> Break:
    def change(document: Document) -> None:
        next(one for one in way(document, source, target)["ports"] if one["service"] == name)["problem"] = problem

    return change


def on_way(source: str, target: str, **more: Any) -> Break:
    return lambda document: way(document, source, target).update(more)


def together(*changes: Break) -> Break:
    return lambda document: [change(document) for change in changes]


def space(mount: str, size: int, free: int, inodes: float | None = 90.0) -> Break:
    return say("node1", "space", [{"mount": mount, "size_mib": size, "free_mib": free, "inodes": inodes}])


SILENT = {"uri": "http://mirror.lab/debian/", "suite": "trixie", "problem": "Could not connect to mirror.lab:80"}
ANSWERS = {"uri": "http://deb.debian.org/debian/", "suite": "trixie", "problem": ""}
USERS = [{"name": "ada", "uid": 2001, "gid": 2001}]

#: What is broken, and how it is found: host, check, severity, words in the text, words in the mend.
BREAKAGES: Mapping[str, tuple[Break, tuple[str, str, str, str, str]]] = {
    "off": (
        unreached("ssh: connect to host 10.0.0.3 port 22: Connection timed out"),
        ("node2", "ssh", ERROR, "timed out", "ping node2"),
    ),
    "no sshd": (
        unreached("ssh: connect to host 10.0.0.3 port 22: Connection refused"),
        ("node2", "ssh", ERROR, "refused", "start sshd"),
    ),
    "another host key": (
        unreached("@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed."),
        ("node2", "ssh", ERROR, "verification failed", "fingerprint"),
    ),
    "no key": (
        unreached("admin@10.0.0.3: Permission denied (publickey)."),
        ("node2", "ssh", ERROR, "Permission denied", "ssh-copy-id"),
    ),
    "no sudo": (unreached("Missing sudo password", False), ("node2", "sudo", ERROR, "sudo", "group sudo")),
    "not a sudoer": (
        unreached("Task failed: admin is not in the sudoers file.", False),
        ("node2", "sudo", ERROR, "sudoers", "let admin use sudo"),
    ),
    "no Python": (
        unreached("/bin/sh: 1: /usr/bin/python3: not found\nsudo: /usr/bin/python3: command not found", False),
        ("node2", "python", ERROR, "not found", "apt install python3"),
    ),
    "old Python": (
        unreached("ansible-core requires a minimum of Python version 3.9. Current version: 3.6.8", False),
        ("node2", "python", ERROR, "3.6.8", "Python 3.9"),
    ),
    "a strange answer": (unreached("bananas"), ("node2", "ssh", ERROR, "bananas", "ansible -m ping")),
    "an old Python that runs": (fact("node1", "python", "3.8.10"), ("node1", "python", ERROR, "3.8.10", "3.9")),
    "ways not tried": (
        lambda document: document["node1"].update(ways=None, problem="it broke"),
        ("node1", "ports", WARNING, "it broke", "again"),
    ),
    "one name for two": (
        fact("node2", "hostname", "node1"),
        ("node2", "hostname", ERROR, "node1 and node2", "set-hostname node2"),
    ),
    "no name": (
        fact("node2", "hostname", "localhost"),
        ("node2", "hostname", WARNING, "localhost", "set-hostname node2"),
    ),
    "one machine-id for two": (
        fact("node2", "machine_id", f"{'node1':0>32}"),
        ("node2", "machine-id", ERROR, "node1 and node2", "machine-id-setup"),
    ),
    "no machine-id": (
        fact("node2", "machine_id", ""),
        ("node2", "machine-id", WARNING, "no machine-id", "machine-id-setup"),
    ),
    "another system": (
        fact("node2", "os", {"id": "arch", "family": "arch", "pretty": "Arch Linux"}),
        ("node2", "version", ERROR, "Arch Linux", "install one of these"),
    ),
    "an old kernel": (fact("node2", "kernel", "4.15.0-20-generic"), ("node2", "version", WARNING, "4.15", "update")),
    "a clock ahead": (
        lambda document: shift(document, "node2", 60),
        ("node2", "clock", WARNING, "60 s ahead", "chronyc"),
    ),
    "a clock behind": (
        lambda document: shift(document, "node2", -9000),
        ("node2", "clock", ERROR, "2 h behind", "chronyc"),
    ),
    "this machine's clock": (
        lambda document: [shift(document, host, 3600) for host in HOSTS],
        ("", "clock", WARNING, "this machine is off by 60 min", "on this machine"),
    ),
    "nobody keeps the clock": (
        fact("node2", "time_sync", {"service": None, "synchronized": None}),
        ("node2", "clock", NOTE, "nobody keeps its clock yet", "installs chrony"),
    ),
    "a time server that is silent": (
        fact("node2", "time_sync", {"service": "systemd-timesyncd", "synchronized": False}),
        ("node2", "clock", WARNING, "no answer", "UDP 123"),
    ),
    "a full disk": (space("/", 20_000, 100), ("node1", "disk", ERROR, "/ is full: 100 MiB", "du -xh")),
    "a disk that fills up": (space("/var", 50_000, 1500), ("node1", "disk", WARNING, "/var is nearly full", "du -xh")),
    "a small disk that is full": (space("/tmp", 16, 0), ("node1", "disk", ERROR, "/tmp is full", "du -xh")),
    "no inodes": (space("/", 50_000, 30_000, 0.5), ("node1", "disk", WARNING, "inodes", "du -x --inodes")),
    "one source is silent": (
        say("node1", "sources", [ANSWERS, SILENT]),
        ("node1", "packages", WARNING, "mirror.lab", "take it out"),
    ),
    "all sources are silent": (say("node1", "sources", [SILENT]), ("node1", "packages", ERROR, "mirror.lab", "proxy")),
    "no source": (say("node1", "sources", []), ("node1", "packages", ERROR, "no source", "sources.list.d")),
    "a daemon that stopped": (
        service("head", "slurmctld", addresses=[], stopped=True, state="failed"),
        ("head", "ports", ERROR, "6817: its service is failed", "systemctl start slurmctld"),
    ),
    "a daemon that others can't see": (
        service("node2", "slurmd", addresses=["127.0.0.1"]),
        ("node2", "ports", ERROR, "127.0.0.1 alone", "6818"),
    ),
    "a firewall that drops": (
        port("head", "node2", "slurmd", "no answer"),
        ("node2", "ports", ERROR, "6818 (slurmd) can't be reached from head: no answer", "TCP 6818"),
    ),
    "a firewall that rejects": (
        port("node2", "head", "ssh", "refused"),
        ("head", "ports", WARNING, "from node2: refused", "TCP 22"),
    ),
    "no way": (
        port("node1", "head", "slurmctld", "no route to host"),
        ("head", "ports", ERROR, "no route", "ip route get"),
    ),
    "no driver yet": (
        together(
            fact("node1", "nvidia", {"state": "no_driver", "message": "", "packages": {}}),
            lambda document: [one.update(uuid=None) for one in facts(document, "node1")["gpus"]],
        ),
        ("node1", "gpu", NOTE, "2 cards and no driver yet", "the next run installs"),
    ),
    "a driver of two versions": (
        fact(
            "node1",
            "nvidia",
            {"state": "ok", "mismatch": True, "reason": "module 570, library 580", "packages": {}, "lost": []},
        ),
        ("node1", "gpu", WARNING, "module 570", "restart"),
    ),
    "a lost card": (
        fact(
            "node1",
            "nvidia",
            {"state": "lost", "message": "GPU is lost", "lost": [{"pci": "0000:09:00.0"}], "reason": ""},
        ),
        ("node1", "gpu", ERROR, "fell off the bus", "journalctl"),
    ),
    "a hot card": (gpu(temperature_c=93), ("node1", "gpu", WARNING, "93 °C, and slows down at 95 °C", "fans")),
    "a hot card that tells no limit": (
        gpu(temperature_c=93, temperature_slowdown_c=None),
        ("node1", "gpu", WARNING, "93 °C", "fans"),
    ),
    "a card slowed by heat": (
        gpu(throttle=["hw_slowdown", "hw_thermal_slowdown"]),
        ("node1", "gpu", WARNING, "by its heat", "nvidia_driver_power_limits"),
    ),
    "a card slowed by its supply": (
        gpu(throttle=["hw_power_brake_slowdown"]),
        ("node1", "gpu", WARNING, "power supply", "cables"),
    ),
    "a card slowed by something": (
        gpu(throttle=["hw_slowdown"]),
        ("node1", "gpu", WARNING, "slowed down by the hardware", "PERFORMANCE"),
    ),
    "memory errors": (
        gpu(ecc={"enabled": True, "corrected": 0, "uncorrected": 2}),
        ("node1", "gpu", WARNING, "2 memory errors", "reset"),
    ),
    "memory to take out of use": (
        gpu(retired_pages={"count": 1, "pending": True, "failure": False}),
        ("node1", "gpu", WARNING, "waits for a reset", "restart"),
    ),
    "a fatal Xid": (gpu(xids=[31, 79]), ("node1", "gpu", WARNING, "Xid 79", "reset the card")),
    "a slow link": (
        lambda document: facts(document, "node1")["nics"][0].update(speed_mbit=100),
        ("node1", "network", WARNING, "100 Mbit/s", "cable"),
    ),
    "a common link": (
        lambda document: facts(document, "node1")["nics"][0].update(speed_mbit=1000),
        ("node1", "network", NOTE, "1000 Mbit/s", "10 GbE"),
    ),
    "big packets that are lost": (
        on_way("node1", "head", mtu=9000, passes=1500),
        ("head", "packets", ERROR, "9000 bytes from node1", "MTU of eth0 on node1 to 1500"),
    ),
    "no ping": (on_way("node1", "head", passes=0), ("head", "packets", NOTE, "no ping from node1", "ICMP")),
    "no name yet": (
        on_way("node1", "node2", addresses=[], names=[]),
        ("node2", "names", NOTE, "node1 finds no address", "/etc/hosts"),
    ),
    "a name that is another's": (
        on_way("node1", "node2", addresses=["10.9.9.9"]),
        ("node2", "names", ERROR, "10.9.9.9 on node1", "/etc/hosts"),
    ),
    "an address that is another's": (
        on_way("node1", "node2", names=["printer.lan"]),
        ("node2", "names", WARNING, "printer.lan", "mend the entry"),
    ),
    "a person with two numbers": (
        together(
            lambda document: facts(document, "node1")["users"].append({"name": "ada", "uid": 1001, "gid": 1001}),
            lambda document: facts(document, "node2")["users"].append({"name": "ada", "uid": 1002, "gid": 1002}),
        ),
        ("", "people", WARNING, "1001 on node1; 1002 on node2", "uid_migrate -e user=ada"),
    ),
    "a number of two people": (
        together(
            lambda document: facts(document, "node1")["users"].append({"name": "ada", "uid": 1001, "gid": 1001}),
            lambda document: facts(document, "node2")["users"].append({"name": "bob", "uid": 1001, "gid": 1001}),
        ),
        ("", "people", WARNING, "UID 1001 has several people: ada on node1; bob on node2", "uid_migrate"),
    ),
    "Slurm's own numbers": (
        lambda document: facts(document, "node2")["users"][1].update(uid=977),
        ("", "people", ERROR, "slurm has several UIDs", "usermod -u 64030 slurm"),
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_breakage_is_found_alone_and_with_its_mend(name: str) -> None:
    change, (host, check, severity, what, mend) = BREAKAGES[name]
    document = well()
    change(document)
    found = wrong(document)
    (one,) = [one for one in found if one.check == check]
    assert (one.host, one.severity) == (host, severity), one
    assert what in one.what and mend in one.mend, one
    assert found == [one]
    assert one.why or severity == NOTE or name == "ways not tried"


@given(st.lists(st.sampled_from(sorted(BREAKAGES)), max_size=4, unique=True), st.randoms())
def test_findings_are_whole_whatever_is_broken(names: list[str], order: Any) -> None:
    document = well()
    for name in names:
        try:
            BREAKAGES[name][0](document)
        except (TypeError, KeyError, StopIteration):
            # what an earlier one took away can't be broken
            continue
    entries = list(document.items())
    order.shuffle(entries)
    for one in judged(dict(entries)):
        assert one.severity in doctor_judge.SEVERITIES and one.what and one.check
        assert bool(one.mend) == (one.severity != OK), one
        assert not one.what.endswith(".") and not one.mend.endswith("."), one


def test_nothing_is_said_of_ways_to_nodes_that_are_down() -> None:
    document = well()
    unreached("Connection timed out")(document)
    for source in ("head", "node1"):
        for one in way(document, source, "node2")["ports"]:
            one["problem"] = "no answer"
        way(document, source, "node2").update(addresses=[], passes=0)
    assert [one.check for one in wrong(document)] == ["ssh"]


def test_a_way_is_judged_where_somebody_listens_for_the_daemon() -> None:
    document = well()
    service("head", "slurmctld", addresses=[], installed=False)(document)
    port("node1", "head", "slurmctld", "refused")(document)
    # nobody listened: nothing can be told
    assert wrong(document) == []
    document["head"]["look"]["listener"]["ports"] = [6817]
    (one,) = wrong(document)
    assert one.host == "head" and "refused" in one.what


def test_many_who_suffer_from_one_thing_are_one_finding() -> None:
    document = well()
    for source in ("node1", "node2"):
        port(source, "head", "slurmctld", "no answer")(document)
    (one,) = wrong(document)
    assert "from node1, node2: no answer" in one.what


def test_names_are_an_error_where_a_name_server_has_to_know_them() -> None:
    document = well()
    on_way("node1", "node2", addresses=[], names=[])(document)
    (one,) = wrong(document, baseline_hosts_source="dns")
    assert one.severity == ERROR and "name server" in one.mend


def test_two_nodes_apart_though_each_may_be_right() -> None:
    document = well()
    shift(document, "node1", 4.6)
    shift(document, "node2", -5.1)
    (one,) = wrong(document)
    assert (one.host, one.check) == ("node1", "clock") and "ahead of that of node2" in one.what


@given(st.floats(-1e5, 1e5), st.floats(0, 30), st.floats(0, 30), st.floats(0, 30))
def test_a_clock_is_never_blamed_for_a_slow_answer(skew: float, before: float, during: float, after: float) -> None:
    start = NOW + before + skew
    found = doctor_judge.offset(
        {
            "look": {"sent": NOW, "started": start, "ended": start + during},
            "ways": {"sent": NOW + before + during + after, "started": start + during + after + 1},
        }
    )
    assert found is not None and found.low - 1e-3 <= skew <= found.high + 1e-3
    assert abs(found.off) <= abs(skew) + 1e-3


def test_xids_are_those_of_the_health_check() -> None:
    health = by_path("roles/slurm/files/health.py")
    assert health.FATAL_XIDS == doctor_judge.FATAL_XIDS


def test_a_card_that_was_reset_is_well_again() -> None:
    document = well()
    gpu(xids=[79, 154])(document)
    assert wrong(document) == []


# --- ways ---


def test_ways_of_a_closet() -> None:
    ways = {(way.source, way.target, way.service) for way in doctor_ways.ways(GROUPS, "slurm", [])}
    assert {("node1", "head", "slurmctld"), ("head", "node1", "slurmd"), ("node1", "node2", "slurmd")} <= ways
    # the database is on the controller, and nobody serves files
    assert not {service for _source, _target, service in ways} & {"slurmdbd", "nfs"}
    apart = {**GROUPS, "slurm_database": ["node2"], "nfs_server": ["node1"]}
    ways = {(way.source, way.target, way.service) for way in doctor_ways.ways(apart, "slurm", [{"path": "/home"}])}
    assert {("head", "node2", "slurmdbd"), ("head", "node1", "nfs"), ("node2", "node1", "nfs")} <= ways
    assert ("node1", "node1", "nfs") not in ways
    assert {way.service for way in doctor_ways.ways(GROUPS, "none", [])} == {"ssh"}


@given(st.integers(0, 60))
def test_ways_grow_with_the_nodes_and_not_with_their_square(workers: int) -> None:
    names = [f"n{number}" for number in range(workers)]
    groups = {"lab_head": ["head"], "lab_workers": names, "slurm_controller": ["head"], "slurm_worker": names}
    ways = doctor_ways.ways(groups, "slurm", [])
    assert len(ways) <= (4 + doctor_ways.NEIGHBOURS) * workers
    assert len(set(ways)) == len(ways) and all(way.source != way.target for way in ways)


def test_what_was_not_said_is_nobodys_peer() -> None:
    hostvars = {host: {"_look": {"doctor": look(host)}} for host in HOSTS}
    hostvars["node2"] = {"_look": {"unreachable": True, "msg": "timed out"}}
    hostvars["head"]["lab_address"] = "192.168.7.1"
    # by its path: its package must first be met by Ansible's own loader, which other tests use
    filters = by_path("collections/ansible_collections/labrack/infra/plugins/filter/doctor_services.py")
    found = filters.doctor_peers(hostvars, GROUPS)
    assert [one["name"] for one in found["head"]] == ["node1"]
    (head,) = found["node1"]
    assert head["address"] == "192.168.7.1" and {one["port"] for one in head["ports"]} == {22, 6817}
    document = filters.doctor_document(HOSTS, hostvars)
    assert document["node2"] == {"look": None, "ways": None, "unreachable": True, "problem": "timed out"}


# --- the node's side ---


def tcp(*rows: str) -> str:
    return "\n".join(["  sl  local_address rem_address   st", *rows]) + "\n"


def test_who_listens(tmp_path: Path) -> None:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/tcp").write_text(
        tcp(
            "   0: 0100007F:1AA1 00000000:0000 0A - - - 0",
            "   1: 00000000:0016 00000000:0000 0A - - - 0",
            "   2: 0100007F:0016 X 01 - - - 0",
        )
    )
    (tmp_path / "proc/net/tcp6").write_text(tcp("   0: 00000000000000000000000001000000:1AA1 X 0A - - - 1"))
    assert sockets_observe.listening(tmp_path) == {6817: [("127.0.0.1", 0), ("::1", 1)], 22: [("0.0.0.0", 0)]}
    assert sockets_observe.owners(tmp_path) == {6817: "daemon", 22: "root"}


def test_a_service_that_stopped_is_told_from_one_that_never_ran(tmp_path: Path) -> None:
    answers = {"ActiveState": "inactive", "UnitFileState": "enabled", "ConditionResult": "yes"}

    def systemctl(_argv: list[str]) -> Done:
        return Done(0, "".join(f"{key}={value}\n" for key, value in answers.items()), "")

    wanted = [{"service": "slurmctld", "port": 6817, "unit": "slurmctld", "program": "no-such-program"}]
    (one,) = doctor_observe.services(wanted, tmp_path, systemctl)
    assert one["stopped"] and one["state"] == "inactive" and not one["installed"] and one["addresses"] == []
    for key, value in (("ConditionResult", "no"), ("UnitFileState", "disabled"), ("ActiveState", "activating")):
        before = answers[key]
        answers[key] = value
        assert not doctor_observe.services(wanted, tmp_path, systemctl)[0]["stopped"]
        answers[key] = before


def test_the_port_of_this_connection(tmp_path: Path) -> None:
    assert doctor_observe.ssh_port(tmp_path, {"SSH_CONNECTION": "10.0.0.9 51234 10.0.0.1 2222"}) == 2222
    assert doctor_observe.ssh_port(tmp_path, {}) == 22
    own = tmp_path / f"proc/{os.getpid()}"
    own.mkdir(parents=True)
    (own / "environ").write_text("A=b\0SSH_CONNECTION=10.0.0.9 51234 10.0.0.1 2200\0")
    (own / "stat").write_text(f"{os.getpid()} (python3) S 1 1 1")
    assert doctor_observe.ssh_port(tmp_path, {}) == 2200


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def gone(port: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if doctor_observe.connect("127.0.0.1", port) == "refused":
            return True
        time.sleep(0.05)
    return False


def test_a_port_is_listened_on_until_it_is_closed() -> None:
    port = free_port()
    assert doctor_observe.connect("127.0.0.1", port) == "refused"
    listener = doctor_observe.listen([port], 60)
    try:
        assert listener["ports"] == [port] and listener["pid"]
        assert [doctor_observe.connect("127.0.0.1", port) for _try in range(3)] == [""] * 3
        # a number that somebody else has now is left alone
        doctor_observe.close({**listener, "started": "1"})
        assert doctor_observe.connect("127.0.0.1", port) == ""
    finally:
        doctor_observe.close(listener)
    assert gone(port)
    doctor_observe.close(listener)


def test_a_listener_ends_by_itself() -> None:
    port = free_port()
    doctor_observe.listen([port], 0.2)
    assert gone(port)


def test_a_port_that_is_taken_is_not_listened_on() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        assert doctor_observe.listen([taken.getsockname()[1]], 5) == {"ports": [], "pid": 0, "started": ""}


def test_sources_are_asked_as_apt_would_and_show_no_password(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/apt").mkdir(parents=True)
    (tmp_path / "usr/lib/apt/apt-helper").touch()
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list").write_text("deb http://deb.debian.org/debian trixie main\n")
    (folder / "a.sources").write_text(
        "Types: deb\nURIs: https://bot:s3cret@mirror.lab/cuda\nSuites: /\n\n"
        "Types: deb\nURIs: http://off.lab/x\nSuites: y\nComponents: z\nEnabled: no\n"
    )
    (folder / "old.list.save").write_text("deb http://old.lab/debian sid main\n")
    asked = []

    def run(argv: list[str]) -> Done:
        if argv[0] == "dpkg":
            return Done(0, "amd64\n", "")
        asked.append(argv[-2])
        words = "E: Failed to fetch https://bot:s3cret@mirror.lab/cuda/InRelease  401  Unauthorized"
        return Done(100, "", words) if "mirror.lab" in argv[-2] else Done(0, "", "")

    found = doctor_observe.sources(tmp_path, run)
    assert found is not None and "s3cret" not in json.dumps(found)
    assert {one["uri"]: bool(one["problem"]) for one in found} == {
        "http://deb.debian.org/debian/": False,
        "https://mirror.lab/cuda/": True,
    }
    assert "http://deb.debian.org/debian/dists/trixie/InRelease" in asked
    assert "https://bot:s3cret@mirror.lab/cuda/Release" in asked
    assert doctor_observe.sources(tmp_path / "nowhere", run) is None


def test_space_of_what_is_there() -> None:
    found = doctor_observe.space(["/", "/no-such-folder"])
    assert [one["mount"] for one in found] == ["/"] and found[0]["size_mib"] > found[0]["free_mib"] > 0


def test_the_power_limit_of_processors(tmp_path: Path) -> None:
    assert doctor_observe.cpu_watts(tmp_path) is None
    for number, (name, limit) in enumerate([("package-0", "125000000"), ("package-1", "125000000"), ("dram", "9")]):
        zone = tmp_path / f"sys/class/powercap/intel-rapl:{number}"
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "constraint_0_power_limit_uw").write_text(f"{limit}\n")
    assert doctor_observe.cpu_watts(tmp_path) == 250


# --- the command ---


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a state directory of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, **variables: Any) -> Path:
    """An inventory in which nothing is to mend, and more variables of all."""
    (folder / "inventory/group_vars").mkdir(parents=True)
    hosts = {host: {"ansible_host": address} for host, address in ADDRESSES.items()}
    document: dict[str, Any] = {"all": {"hosts": hosts}}
    for group, members in GROUPS.items():
        document[group] = {"hosts": dict.fromkeys(members)}
    (folder / "inventory/hosts.yml").write_text(yaml.safe_dump(document))
    values = {"lab_groups": [], "lab_users": [], **variables}
    (folder / "inventory/group_vars/all.yml").write_text(yaml.safe_dump(values))
    return folder / "inventory"


def command(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["doctor", *arguments], prog_name="labrack", terminal_width=120)


def test_an_inventory_without_a_fault(home: Path) -> None:
    write(home)
    done = command("--offline")
    assert done.exit_code == 0, done.output
    assert "0 errors, 0 warnings, 2 notes" in done.stdout and "✓" not in done.stdout
    assert "✓ inventory  3 hosts keep to all rules" in command("--offline", "--all").stdout


def test_a_fault_is_an_error_with_its_place(home: Path) -> None:
    write(home, lab_users=[{"name": "ada", "uid": 12}], lab_circits=[])
    done = command("--offline")
    assert done.exit_code == 1
    assert re.search(r"all\.yml:5  lab_users\[0\]\.uid = 12: in the range of the system's own", done.stdout), (
        done.stdout
    )
    assert "Mend: choose one from 1000 to 60000" in done.stdout
    assert "lab_circits: no role knows this variable" in done.stdout and "Mend: write lab_circuits" in done.stdout


def test_power_alone_is_a_warning(home: Path) -> None:
    circuits = [{"name": "wall", "volts": 230, "amps": 16, "nodes": ["head", "node1"]}]
    write(home, lab_circuits=circuits, lab_cooling_watts=20000, slurm_gpu_count=6, lab_base_watts=0)
    done = command("--offline", "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["counts"]["error"] == 1 and set(document["findings"][0]) == {
        "host", "check", "severity", "what", "why", "mend",
    }  # fmt: skip
    texts = {one["check"]: one for one in document["findings"] if one["host"] == ""}
    assert (
        "circuit wall carries 4.0 kW, and may carry 2.9 kW for hours (80 % of 230 V × 16 A)" in texts["power"]["what"]
    )
    assert "nvidia_driver_power_limits" in texts["power"]["mend"]
    (loose,) = [one for one in document["findings"] if one["host"] == "node2"]
    assert "no circuit" in loose["what"] and "add node2" in loose["mend"]


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"lab_circuits": [{"name": "a", "volts": 230, "amps": 0}]}, "write 15, 16 or 20"),
        ({"lab_circuits": [{"name": "a", "volts": 230, "amps": 16, "nodes": ["nod1"]}]}, "no host of that name"),
        (
            {"lab_circuits": [{"name": "a", "volts": 1, "amps": 1}] * 2},
            "also the name",
        ),
        ({"lab_circuits": [{"name": "a", "amps": 16}]}, "lab_circuits[0].volts: missing"),
        ({"lab_cooling_watts": -1}, "less than 0"),
        ({"lab_base_watts": "many"}, "not a whole number"),
    ],
)
def test_wrong_circuits_are_the_inventorys_faults(home: Path, variables: dict[str, Any], wanted: str) -> None:
    write(home, **variables)
    done = command("--offline")
    assert done.exit_code == 1 and wanted in done.stdout, done.output


def test_too_little_cooling(home: Path) -> None:
    write(home, lab_cooling_watts=500)
    done = command("--offline")
    assert done.exit_code == 1 and re.search(r"cooling  the nodes give .* declared are 500 W", done.stdout)
    assert "tons)" in done.stdout


def test_what_is_vaulted_is_neither_judged_nor_shown(home: Path) -> None:
    write(home)
    text = "lab_backup_password: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3030\n"
    (home / "inventory/group_vars/lab_head.yml").write_text(text)
    done = command("--offline")
    assert done.exit_code == 0, done.output
    assert "lab_backup_password: vaulted, and not looked at without the password" in done.stdout


def test_a_secret_is_never_shown(home: Path) -> None:
    write(home, lab_backup_password="changeme-canary", slurm_database_password=["canary"])
    for arguments in (["--offline"], ["--offline", "--json", "--all"]):
        assert "canary" not in command(*arguments).output


def test_an_expression_that_leads_nowhere(home: Path) -> None:
    write(home, lab_scratch="{{ nowhere }}")
    done = command("--offline")
    assert done.exit_code == 1 and "lab_scratch: can't be worked out" in done.stdout
    assert "Mend: mend the expression" in done.stdout


def test_no_inventory_is_no_traceback(home: Path) -> None:
    done = command("--offline")
    assert done.exit_code == 1 and done.stderr.startswith("Failed\n  No inventory")


def test_nodes_and_inventory_in_one_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, lab_users=[{"name": "ada", "uid": 2001}])
    document = well()
    facts(document, "node1")["users"].append({"name": "ada", "uid": 1001, "gid": 1001})
    unreached("Connection refused")(document)
    monkeypatch.setattr(doctor, "ask", lambda *_: document)
    done = command()
    assert done.exit_code == 1
    blocks = dict(re.findall(r"^(\S.*)\n((?:  .*\n)+)", done.stdout, re.MULTILINE))
    assert "ssh does not get in: Connection refused" in blocks["node2"]
    assert "lab_users[0].uid = 2001" in blocks["node1"]
    # cards of node1 were read, and those of node2 are not known
    assert "node1 1." in blocks["The lab"]


def test_a_lab_is_loaded_once_and_judged_alike(home: Path) -> None:
    the_lab = lab.load([write(home)])
    first = doctor.run(the_lab, home / "log", offline=True)
    assert first == doctor.run(copy.copy(the_lab), home / "log", offline=True)
    assert doctor.status(first) == 0
    assert doctor.status([Finding("", "x", WARNING, "y")]) == 2
    assert doctor.status([Finding("", "x", WARNING, "y"), Finding("", "x", ERROR, "y")]) == 1
    assert doctor.status([Finding("", "x", NOTE, "y")]) == 0


SHOWN = [
    Finding("", "inventory", OK, "3 hosts keep to all rules"),
    Finding("", "power", NOTE, "no circuits are declared", "", "name them in lab_circuits"),
    Finding("node1", "disk", WARNING, "/var is nearly full", "a log will fill it", "see what fills it: du -xh /var"),
    Finding("node1", "sudo", ERROR, "sudo does not let in [admin]", "a run leaves it as it is", "use the group sudo"),
]
SCREEN = """\
The lab
  · power  no circuits are declared
    Mend: name them in lab_circuits

node1
  ✗ sudo  sudo does not let in [admin]
    Why: a run leaves it as it is
    Mend: use the group sudo
  ! disk  /var is nearly full
    Why: a log will fill it
    Mend: see what fills it: du -xh /var

1 error, 1 warning, 1 note, 1 well
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_screen(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=terminal, color_system=None, highlight=False)
    doctor.show(console, SHOWN)
    assert "\n".join(map(str.rstrip, console.file.getvalue().split("\n"))) == SCREEN  # type: ignore[attr-defined]


def test_lines_for_a_program_are_not_folded() -> None:
    console = Console(file=io.StringIO(), width=20, color_system=None, highlight=False)
    doctor.show(console, SHOWN)
    assert console.file.getvalue() == SCREEN  # type: ignore[attr-defined]
