# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Wrong directories, projects and quotas are refused with key, value and mend; right ones are not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import lab_check, rules_storage
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from tests.unit.test_lab_check import CHILDREN, FACTS, Edit, check, write

STORAGE: list[Edit] = [
    Edit(f"{CHILDREN}/nfs_server", {"hosts": {"head": {}}}),
    Edit(
        "lab_directories",
        [
            {"path": "/home", "source": "/srv/lab/home", "filesystem": "/srv/lab"},
            {"path": "/data", "source": "/srv/lab/data", "group": "vision", "mode": "2775", "read_only": True},
            {"path": "/checkpoints", "source": "/srv/lab/checkpoints", "server": "head"},
            {"path": "/nas", "provided": True},
        ],
    ),
    Edit("lab_projects", [{"path": "/checkpoints/vision", "group": "vision", "quota_soft": "8G", "quota_hard": "10G"}]),
    Edit("nfs_server_user_quotas", [{"path": "/home", "soft": "50G", "hard": "60G", "users": [{"name": "ada"}]}]),
    Edit("nfs_server_subnet", "10.0.0.0/24"),
]
DIRECTORIES, PROJECTS, QUOTAS = "lab_directories", "lab_projects", "nfs_server_user_quotas"

#: what is wrong, and key, value and mend of the one finding
CASES: dict[str, tuple[list[Edit], str, str, str]] = {
    "relative path": (
        [Edit(f"{DIRECTORIES}/0/path", "home"), Edit(QUOTAS, [])],
        f"{DIRECTORIES}[0].path",
        "home",
        "write it from / on",
    ),
    "path with dots": (
        [Edit(f"{DIRECTORIES}/1/source", "/srv/../etc")],
        f"{DIRECTORIES}[1].source",
        "/srv/../etc",
        "without ..",
    ),
    "path with a blank": ([Edit(f"{DIRECTORIES}/1/path", "/my data")], f"{DIRECTORIES}[1].path", "/my data", "letters"),
    "path twice": ([Edit(f"{DIRECTORIES}/1/path", "/home")], f"{DIRECTORIES}[1].path", "/home", "keep one of them"),
    "path in another's": (
        [Edit(f"{DIRECTORIES}/1/path", "/home/data")],
        f"{DIRECTORIES}[1].path",
        "/home/data",
        "share the upper one alone",
    ),
    "source in another's": (
        [Edit(f"{DIRECTORIES}/1/source", "/srv/lab/home/data")],
        f"{DIRECTORIES}[1].source",
        "/srv/lab/home/data",
        "a folder of its own, side by side",
    ),
    "source twice": (
        [Edit(f"{DIRECTORIES}/1/source", "/srv/lab/home")],
        f"{DIRECTORIES}[1].source",
        "/srv/lab/home",
        "a folder of its own",
    ),
    "path that hides a source": (
        [Edit(f"{DIRECTORIES}/1", {"path": "/srv/lab", "source": "/disk2/x"})],
        f"{DIRECTORIES}[1].path",
        "/srv/lab",
        "move one of the two",
    ),
    "source in its own path": (
        [Edit(f"{DIRECTORIES}/0/source", "/home/lab"), Edit(f"{DIRECTORIES}/0/filesystem", None)],
        f"{DIRECTORIES}[0].source",
        "/home/lab",
        "take a source beside it",
    ),
    "source of the system": ([Edit(f"{DIRECTORIES}/1/source", "/usr/local")], "source", "/usr/local", "of its own"),
    "everything": ([Edit(f"{DIRECTORIES}/1/source", "/var")], f"{DIRECTORIES}[1].source", "/var", "of its own"),
    "path of the system": ([Edit(f"{DIRECTORIES}/1/path", "/etc")], f"{DIRECTORIES}[1].path", "/etc", "another path"),
    "disk elsewhere": (
        [Edit(f"{DIRECTORIES}/0/filesystem", "/srv/la")],
        f"{DIRECTORIES}[0].filesystem",
        "/srv/la",
        "the mount point of the disk",
    ),
    "server that is none": (
        [Edit(f"{DIRECTORIES}/2/server", "worker1")],
        f"{DIRECTORIES}[2].server",
        "worker1",
        "put worker1 into the group nfs_server",
    ),
    "server outside the lab": (
        [Edit(f"{CHILDREN}/nfs_server/hosts/nas", {})],
        "group nfs_server",
        "nas",
        "put nas into one of them",
    ),
    "source of what is provided": (
        [Edit(f"{DIRECTORIES}/3/source", "/srv/nas")],
        f"{DIRECTORIES}[3].source",
        "/srv/nas",
        "leave it out",
    ),
    "no mode": ([Edit(f"{DIRECTORIES}/1/mode", "rwx")], f"{DIRECTORIES}[1].mode", "rwx", 'write it as "0755"'),
    "project nowhere": (
        [Edit(f"{PROJECTS}/0/path", "/results/vision")],
        f"{PROJECTS}[0].path",
        "/results/vision",
        "below one of lab_directories",
    ),
    "project that is a directory": (
        [Edit(f"{PROJECTS}/0/path", "/checkpoints")],
        f"{PROJECTS}[0].path",
        "/checkpoints",
        "below one of lab_directories",
    ),
    "project of nobody": ([Edit(f"{PROJECTS}/0/group", "vison")], f"{PROJECTS}[0].group", "vison", "add vison to"),
    "project twice": (
        [Edit(f"{PROJECTS}/+", {"path": "/checkpoints/vision", "group": "vision"})],
        f"{PROJECTS}[1].path",
        "/checkpoints/vision",
        "keep one of them",
    ),
    "project in a project": (
        [Edit(f"{PROJECTS}/+", {"path": "/checkpoints/vision/a", "group": "vision"})],
        f"{PROJECTS}[1].path",
        "/checkpoints/vision/a",
        "side by side",
    ),
    "quota of what is provided": (
        [Edit(f"{PROJECTS}/0/path", "/nas/vision")],
        f"{PROJECTS}[0].path",
        "/nas/vision",
        "take the quota out",
    ),
    "bad size": ([Edit(f"{PROJECTS}/0/quota_soft", "8 x")], f"{PROJECTS}[0].quota_soft", "8 x", "write it as 50G"),
    "soft over hard": ([Edit(f"{PROJECTS}/0/quota_soft", "1T")], f"{PROJECTS}[0].quota_soft", "1T", "less than"),
    "people's soft over hard": ([Edit(f"{QUOTAS}/0/soft", "61G")], f"{QUOTAS}[0].soft", "61G", "less than hard"),
    "quota of an unknown path": (
        [Edit(f"{QUOTAS}/0/path", "/hme")],
        f"{QUOTAS}[0].path",
        "/hme",
        "use one of /home, /data, /checkpoints, /nas",
    ),
    "quota of nobody": (
        [Edit(f"{QUOTAS}/0/users/0/name", "eve")],
        f"{QUOTAS}[0].users[0].name",
        "eve",
        "add the user to lab_users",
    ),
    "quotas twice": (
        [Edit(f"{QUOTAS}/+", {"path": "/home", "hard": "1G"})],
        f"{QUOTAS}[1].path",
        "/home",
        "keep one of them",
    ),
    "no subnet": ([Edit("nfs_server_subnet", "10.0.0.1")], "nfs_server_subnet", "10.0.0.1", "write it as 10.0.0.0/24"),
    "everybody's subnet": ([Edit("nfs_server_subnet", "0.0.0.0/0")], "nfs_server_subnet", "0.0.0.0/0", "own network"),
    "a client outside the subnet": (
        [Edit(f"{CHILDREN}/lab_workers/hosts/worker1/lab_address", "10.1.0.2")],
        "lab_address",
        "10.1.0.2",
        "widen nfs_server_subnet",
    ),
    "no grace": ([Edit("nfs_server_grace", 1)], "nfs_server_grace", "1", "write 60"),
    "threads without end": ([Edit("nfs_server_threads", 99999)], "nfs_server_threads", "99999", "write 0"),
    "different directories on a host": (
        [Edit(f"{CHILDREN}/lab_workers/hosts/worker1/lab_projects", [])],
        "lab_projects",
        "",
        "set it once, in group_vars/all",
    ),
}


def fresh(*edits: Edit) -> list[Edit]:
    """The right storage with these edits; the values are copied, as edits change them."""
    return [*(Edit("/".join(str(part) for part in one.path), copy.deepcopy(one.value)) for one in STORAGE), *edits]


def test_the_right_storage_has_no_finding(tmp_path: Path) -> None:
    assert check(write(tmp_path, *fresh())) == []


@pytest.mark.parametrize("case", CASES)
def test_wrong_storage_is_refused(case: str, tmp_path: Path) -> None:
    edits, key, value, mend = CASES[case]
    found = check(write(tmp_path, *fresh(*edits)))
    assert len(found) == 1, found
    assert f"{key}{f' = {value}' if value else ''}" in found[0] and mend in found[0].partition("Mend: ")[2]


HEAD_FACTS: dict[str, Any] = {
    **FACTS,
    "addresses": {"default_ipv4": "10.0.0.1", "ipv4": ["10.0.0.1"]},
    "disks": [
        {"mount": "/", "device": "/dev/sda1", "fstype": "ext4", "quotas": []},
        {"mount": "/srv/lab", "device": "/dev/sdb1", "fstype": "xfs", "quotas": ["user", "project"]},
    ],
    "fstab": [
        {"mount": "/", "device": "UUID=1", "fstype": "ext4", "mounted": True},
        {"mount": "/srv/lab", "device": "UUID=2", "fstype": "xfs", "mounted": True},
    ],
}


def with_facts(host: str, *edits: Edit) -> list[str]:
    """The findings about a host that is as in HEAD_FACTS but for these edits."""
    lab: dict[str, Any] = {}
    for edit in fresh():
        if edit.path[0] != "all":
            lab[str(edit.path[0])] = edit.value
    facts = copy.deepcopy(HEAD_FACTS)
    for edit in edits:
        edit({}, facts)
    groups = {"lab_head": ["head"], "lab_workers": ["worker1"], "nfs_server": ["head"]}
    inventory = Inventory({"head": lab, "worker1": lab}, groups, {host: facts})
    return [one.line() for one in rules_storage.check_storage_facts(host, inventory)]


def test_right_facts_have_no_finding() -> None:
    assert with_facts("head") == with_facts("worker1") == []


def test_a_disk_that_is_not_mounted_is_left_to_the_role() -> None:
    """It has no quotas either, and what else there is to do is done."""
    assert with_facts("head", Edit("disks/1", None), Edit("fstab/1/mounted", False)) == []


def test_a_filesystem_without_quotas_is_named_with_the_mend() -> None:
    found = with_facts("head", Edit("disks/1/quotas", ["user"]))
    assert len(found) == 1 and "/checkpoints/vision" in found[0] and "add prjquota" in found[0]
    found = with_facts("head", Edit("disks/1/quotas", []), Edit("disks/1/fstype", "ext4"))
    assert len(found) == 2 and all("tune2fs -O quota" in one for one in found)


def test_a_node_whose_own_address_is_outside() -> None:
    (line,) = with_facts("worker1", Edit("addresses/default_ipv4", "192.168.7.2"))
    assert line.startswith("host worker1: 192.168.7.2 of worker1 is not in nfs_server_subnet 10.0.0.0/24")
    assert with_facts("head", Edit("addresses/default_ipv4", "192.168.7.2")) == []


JUNK = st.one_of(st.none(), st.text(max_size=6), st.sampled_from(["/", "/a", "/a/b", "/srv/x", "10G", "0755"]))
ENTRY = st.fixed_dictionaries(
    {"path": st.text(max_size=8), "group": st.sampled_from(["vision", "x"])},
    optional=dict.fromkeys(
        ["source", "server", "mode", "filesystem", "quota_soft", "quota_hard", "soft", "hard"], JUNK
    ),
)


@given(st.lists(ENTRY, max_size=3), st.lists(ENTRY, max_size=3), st.lists(ENTRY, max_size=2), st.text(max_size=12))
def test_no_inventory_raises(
    directories: list[dict[str, Any]], projects: list[dict[str, Any]], quotas: list[dict[str, Any]], subnet: str
) -> None:
    variables = {
        "lab_directories": directories,
        "lab_projects": projects,
        "nfs_server_user_quotas": quotas,
        "nfs_server_subnet": subnet,
        "lab_groups": [],
    }
    inventory = Inventory({"head": variables}, {"nfs_server": ["head"], "lab_head": ["head"]}, {"head": HEAD_FACTS})
    for finding in (*rules_storage.check_storage(inventory, variables), *rules_storage.check_storage_hosts(inventory)):
        assert finding.problem and finding.mend
    list(rules_storage.check_storage_facts("head", inventory))


def test_the_stages_ask_these_rules() -> None:
    variables: dict[str, Any] = {"lab_directories": [{"path": "home"}], "lab_orchestrator": "none"}
    inventory = Inventory({"head": variables}, {"lab_head": ["head"]})
    assert any(one.key == "lab_directories[0].path" for one in lab_check.check_inventory(inventory))
