# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The client of the shared directories, as far as a node shows it whose kernel has no NFS: units, refusals, scratch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import nfs_client_plan, systemd
from labrack.testnode import node
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import KEEP, LAB, SYSTEM, snapshot
from tests.nodes.harness import INVENTORIES, ROOT, Closet, Run, bring_up

NAME = f"{LAB}-client"
PLAYBOOK = "labrack.infra.under_desk"
TAGS = ("--tags", "nfs_client")
TASK = "Converge the mounts of the shared directories, and scratch"
HOSTS = ("head", "node1")


@dataclass(frozen=True)
class Story:
    """The lab before the first run, and what the first runs said."""

    lab: Closet
    before: dict[str, tuple[str, str]]
    predicted: Run
    made: Run
    again: Run


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    state = ROOT / ".cache/labs" / NAME
    node.down(NAME, state, print)
    shutil.rmtree(state, ignore_errors=True)
    nodes = [NodeSpec(name, SYSTEM, volumes=(("data", "/data"),)) for name in HOSTS]
    lab = bring_up(NAME, nodes, INVENTORIES / "storage_client", state)
    before = {host: snapshot(lab, host) for host in HOSTS}
    predicted = lab.play(PLAYBOOK, *TAGS, "--check", "--diff")
    made = lab.play(PLAYBOOK, *TAGS, "--diff")
    yield Story(lab, before, predicted, made, lab.play(PLAYBOOK, *TAGS))
    if not KEEP:
        node.down(NAME, state, print)
        shutil.rmtree(state, ignore_errors=True)


@pytest.fixture
def lab(story: Story) -> Closet:
    return story.lab


def test_check_predicts_and_the_second_run_changes_nothing(story: Story) -> None:
    for host in HOSTS:
        assert story.predicted.task(host, TASK).subjects == story.made.task(host, TASK).subjects
        assert story.made.task(host, TASK).subjects == ["directory /scratch", f"file {nfs_client_plan.TMPFILES}"]
        assert (story.made.changed[host], story.again.changed[host]) == (1, 0)
        assert story.again.task(host, TASK).result["notes"] == []


def test_nodes_share_their_volume(lab: Closet) -> None:
    lab.root("head", "echo 17 >/data/answer")
    assert lab.root("node1", "cat /data/answer") == "17\n"


def test_systemd_takes_the_units(lab: Closet) -> None:
    directories = [
        {"path": "/home", "source": "/srv/lab/home"},
        {"path": "/data-sets", "read_only": True, "options": ["rsize=65536"]},
        {"path": "/srv/a b/50%"},
    ]
    params: dict[str, Any] = {
        "state": "present",
        "name": "node1",
        "directories": directories,
        "servers": ["head"],
        "nodes": [{"name": "head", "address": "100.64.0.1", "link_mbit": None}],
        "nconnect": 4,
        "scratch": "",
        "scratch_days": 30,
        "installed": [],
        "packages": [],
    }
    wanted = nfs_client_plan.read_wanted(params, (6, 1))
    files = {}
    for path, share in wanted.shares.items():
        for kind in ("mount", "automount"):
            assert lab.root("node1", f"systemd-escape --path --suffix={kind} '{path}'").strip() == systemd.unit_of_path(
                path, kind
            )
        files[systemd.unit_of_path(path, "mount")] = nfs_client_plan.mount_text(share)
        files[systemd.unit_of_path(path, "automount")] = nfs_client_plan.automount_text(share, made=True)
    for name, text in files.items():
        node.exec(lab.lab.node("node1"), ["sh", "-c", f"mkdir -p /run/verify && cat >'/run/verify/{name}'"], text)
    lab.root("node1", "ln -sf /bin/true /run/verify/mount.nfs4")
    assert lab.root("node1", "cd /run/verify && systemd-analyze verify --man=no ./*mount 2>&1") == ""
    # it can tell
    lab.root(
        "node1", "cd /run/verify && mkdir wrong && sed s/Where=.home/Where=.elsewhere/ home.mount >wrong/home.mount"
    )
    assert "Where=" in lab.root("node1", "cd /run/verify/wrong && systemd-analyze verify --man=no ./*mount 2>&1", False)


def test_nothing_is_hidden_and_nothing_changes(lab: Closet) -> None:
    lab.root("node1", "mkdir -p /home/guest")
    directories = [{"path": "/home", "source": "/srv/lab/home"}, {"path": "/data"}]
    run = lab.play(PLAYBOOK, ok=False, lab_directories=directories)
    assert run.rc != 0 and set(run.changed.values()) == {0}
    assert "its kernel can't mount NFS (no module nfsv4)" in run.messages
    assert "lab_directories[0].path = /home (node1): it is not empty, and the mount would hide guest." in run.messages
    assert "lab_directories[1].path = /data (node1): " in run.messages and " is mounted there." in run.messages


def test_a_kernel_without_nfs_is_told_by_the_role_too(lab: Closet) -> None:
    lab.root("node1", "rm -rf /home/guest")
    directories = [{"path": "/checkpoints"}]
    run = lab.play(str(ROOT / "tests/nodes/nfs_client.yml"), ok=False, lab_directories=directories)
    assert "this kernel can't mount NFS: it has no module nfsv4" in str(run.task("node1", TASK).result["msg"])
    assert run.task("head", TASK).ending == "ok"
    assert lab.root("node1", "ls /etc/systemd/system/*.automount /checkpoints", check=False) == ""


def test_scratch_is_cleaned_by_age_and_nothing_beyond_it(lab: Closet) -> None:
    assert lab.root("node1", "stat -c '%a %U:%G' /scratch") == "1777 root:root\n"
    lab.root(
        "node1",
        "mkdir -p /scratch/old/deep /scratch/kept /scratch/disk /srv/precious && mount -t tmpfs none /scratch/disk && "
        "touch /scratch/old/deep/a /scratch/old/b /scratch/disk/c /srv/precious/d /scratch/read && "
        "ln -s /srv/precious /scratch/link && ln -s /srv/precious /scratch/kept/link && sleep 3 && "
        # a file's own times can be set, its inode's can't; so the rule runs with another age
        "touch -d '+1 day' /scratch/kept/new && touch -a -d '+1 day' /scratch/read && "
        f"grep -q ' 30d$' {nfs_client_plan.TMPFILES} && "
        f"sed 's/ 30d$/ 2s/' {nfs_client_plan.TMPFILES} >/run/scratch.conf && "
        "systemd-tmpfiles --clean /run/scratch.conf",
    )
    left = lab.root("node1", "find /scratch /srv/precious -mindepth 1 | sort").split()
    assert left == [
        "/scratch/disk",
        "/scratch/disk/c",
        "/scratch/kept",
        "/scratch/kept/new",
        "/scratch/read",
        "/srv/precious/d",
    ]
    lab.root("node1", "umount /scratch/disk")


def test_undo_keeps_what_somebody_has_left(story: Story, lab: Closet) -> None:
    run = lab.play(PLAYBOOK, *TAGS, nfs_client_state="absent")
    assert run.changed == {"head": 1, "node1": 1}
    for host in HOSTS:
        assert snapshot(lab, host) == story.before[host]
    assert lab.root("head", "ls -d /scratch", check=False) == ""
    assert lab.root("node1", "ls /scratch").split() == ["disk", "kept", "read"]
    again = lab.play(PLAYBOOK, *TAGS, nfs_client_state="absent")
    assert set(again.changed.values()) == {0}
