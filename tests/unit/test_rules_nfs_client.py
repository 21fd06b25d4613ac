# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Inventories whose shared directories a host can't mount are refused before anything changes."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import lab_check
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from ansible_collections.labrack.infra.plugins.module_utils.mount_observe import Place
from ansible_collections.labrack.infra.plugins.module_utils.rules_nfs_client import (
    check_nfs_client,
    check_nfs_client_facts,
)

GROUPS = {"lab_head": ["head"], "lab_workers": ["node1"], "nfs_server": ["head"]}
HOME = {"path": "/home", "source": "/srv/lab/home"}


def lab(facts: dict[str, Any] | None = None, **variables: Any) -> Inventory:
    values = {"lab_directories": [HOME], "lab_scratch": "/scratch", "nfs_client_state": "present", **variables}
    return Inventory({"head": values, "node1": values}, GROUPS, {"node1": facts} if facts else {})


def lines(inventory: Inventory, host: str = "node1") -> list[str]:
    return [finding.line() for finding in check_nfs_client(host, inventory)]


def fact_lines(facts: dict[str, Any], **variables: Any) -> list[str]:
    return [finding.line() for finding in check_nfs_client_facts("node1", lab(facts, **variables))]


def test_a_right_inventory() -> None:
    assert lines(lab()) == lines(lab(), "head") == []
    assert lines(lab(lab_directories=[], lab_scratch="")) == []
    options = ["rsize=65536", "nconnect=8", "noatime"]
    assert lines(lab(lab_directories=[{**HOME, "options": options}])) == []
    assert lines(lab(lab_directories=[{**HOME, "options": ["soft"], "read_only": True}])) == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"lab_directories": [{**HOME, "options": ["vers=3"]}]},
            "lab_directories[0].options[0] = vers=3: this role sets it. Mend: take it out; NFSv4.2 is",
        ),
        ({"lab_directories": [{**HOME, "options": ["ro"]}]}, "write read_only: true or false"),
        ({"lab_directories": [{**HOME, "options": ["nofail"]}]}, "take it out; it is always given"),
        ({"lab_directories": [{**HOME, "options": ["soft"]}]}, "a write that fails while the server is away"),
        ({"lab_directories": [{**HOME, "options": ["rsize=1, wsize=1"]}]}, "not one mount option"),
        ({"lab_directories": [{**HOME, "options": [""]}]}, "not one mount option"),
        ({"lab_directories": [{**HOME, "options": ["x-systemd.idle-timeout=60"]}]}, "in /etc/fstab only"),
        ({"lab_scratch": "scratch"}, "lab_scratch = scratch: not an absolute path"),
        ({"lab_scratch": "/scratch/../etc"}, "not an absolute path"),
        ({"lab_scratch": "/var/tmp"}, "a folder of the system, whose files would go"),
        ({"lab_scratch": "/usr/local/scratch"}, "a folder of the system"),
        ({"lab_scratch": "/home/scratch"}, "lab_directories[0] (/home) lie in one another"),
        ({"lab_directories": [{"path": "/scratch/sets"}]}, "lab_directories[0] (/scratch/sets) lie in one another"),
        ({"nfs_client_nconnect": 17}, "nfs_client_nconnect = 17: not a number of connections"),
        ({"nfs_client_nconnect": 0}, "from 1 to 16"),
        ({"nfs_client_scratch_days": -1}, "nfs_client_scratch_days = -1: not an age"),
    ],
)
def test_a_wrong_inventory_is_refused(variables: dict[str, Any], words: str) -> None:
    (line,) = lines(lab(**variables))
    assert words in line


def test_a_mount_over_what_the_host_serves_is_refused() -> None:
    served = [{"path": "/data", "source": "/srv/sets"}, {"path": "/srv", "server": "node1"}]
    (line,) = lines(lab(lab_directories=served), "head")
    assert "lab_directories[1].path = /srv: head would mount it from node1 over /srv/sets" in line
    assert lines(lab(lab_directories=served), "node1") == []


# --- with the facts ---


def facts(**changes: Any) -> dict[str, Any]:
    seen = Place(kind="directory", fstype="", device="", point="/", remote=False, entries=[])
    place = {**seen, **{key: changes.pop(key) for key in list(changes) if key in seen}}
    told = {"nfs": True, "fstab": [], "places": {"/home": place}, "connection_user": "root", "connection_home": "/root"}
    return {**told, **changes}


def test_a_host_that_can() -> None:
    assert fact_lines(facts()) == []
    assert fact_lines(facts(kind="missing")) == []
    assert fact_lines(facts(fstype="autofs", device="systemd-1")) == []
    assert fact_lines(facts(fstype="nfs4", device="head:/srv/lab/home")) == []
    assert fact_lines(facts(nfs=False, entries=["ada"]), nfs_client_state="absent") == []
    assert fact_lines(facts(nfs=False, entries=["ada"]), lab_directories=[]) == []
    assert fact_lines(facts(entries=["ada"]), lab_directories=[{**HOME, "over": True}]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nfs": False}, "host node1: its kernel can't mount NFS (no module nfsv4). Mend: install the kernel's"),
        ({"entries": ["ada", "ben"]}, "/home: it is not empty, and the mount would hide ada, ben. Mend: move them"),
        ({"fstype": "ext4", "device": "/dev/sdb1"}, "/dev/sdb1 (ext4) is mounted there"),
        ({"fstab": [{"mount": "/home", "device": "head:/x", "fstype": "nfs", "mounted": True}]}, "/etc/fstab mounts"),
        (
            {"connection_user": "admin", "connection_home": "/home/admin"},
            "the playbook logs in as admin, whose home /home/admin the mount would hide. Mend: log in as a user whose "
            "home is elsewhere, or move it as root (usermod --move-home --home /var/lib/admin admin)",
        ),
    ],
)
def test_what_keeps_a_host_from_it(changes: dict[str, Any], words: str) -> None:
    (line,) = fact_lines(facts(**changes))
    assert words in line


def test_over_does_not_hide_the_home_of_who_logs_in() -> None:
    found = fact_lines(facts(connection_home="/home/admin"), lab_directories=[{**HOME, "over": True}])
    assert "whose home /home/admin" in found[0]


def test_what_is_provided_has_to_be_there_and_needs_no_kernel() -> None:
    provided = [{"path": "/home", "provided": True}]
    assert fact_lines(facts(nfs=False, entries=["ada"]), lab_directories=provided) == []
    (line,) = fact_lines(facts(kind="missing"), lab_directories=provided)
    assert "it is to be provided, and is not there" in line


def test_the_rules_are_asked() -> None:
    wrong = lab(facts(nfs=False), lab_scratch="/etc/scratch", lab_orchestrator="none")
    assert any(finding.path == ("lab_scratch",) for finding in lab_check.check_inventory(wrong))
    more = {"users": [], "groups": [], "os": {"id": "debian", "version": "13"}, "gpus": [], "nvidia": {}}
    inventory = lab({**facts(nfs=False), **more}, lab_orchestrator="none")
    assert any("can't mount NFS" in finding.problem for finding in lab_check.check_facts(inventory))


def test_directories_are_the_same_on_every_host() -> None:
    inventory = lab(lab_orchestrator="none")
    hosts = {**inventory.hosts, "node1": {**inventory.hosts["node1"], "lab_directories": []}}
    found = lab_check.check_inventory(Inventory(hosts, GROUPS))
    assert any(finding.path == ("lab_directories",) for finding in found)
