# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lab's directories on machines that have them: modes, ACLs, mounts, refusals, the way back."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from testinfra.host import Host

from tests.testinfra.conftest import BIN

HOSTS = ("head", "node1")
#: head in the group that serves, and what else a run is asked for.
SERVER: dict[str, Any] = {"host": "head", "servers": ["head"], "clients": [{"name": "node1", "address": "10.0.0.2"}]}


@pytest.fixture(params=HOSTS)
def machine(nodes: Any, request: pytest.FixtureRequest) -> Host:
    found: Host = nodes[request.param]
    return found


def call(nodes: Any, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """Call the module on the head as a play would, and return its result."""
    sources = [word for source in nodes.sources for word in ("-i", source)]
    argv = [str(BIN / "ansible"), "head", *sources, "-o", "-m", "labrack.infra.nfs_server", "-a", json.dumps(arguments)]
    done = subprocess.run([*argv, *(["--check"] if check else [])], capture_output=True, text=True, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout.partition("=>")[2])
    return {"failed": "FAILED!" in done.stdout, **found}


@pytest.mark.parametrize(
    ("path", "mode", "group"),
    [("/srv/lab/home", "0o755", "root"), ("/data", "0o2775", "vision"), ("/checkpoints/vision", "0o2770", "vision")],
)
def test_directories(machine: Host, path: str, mode: str, group: str) -> None:
    directory = machine.file(path)
    assert (directory.is_directory, directory.user, directory.group, oct(directory.mode)) == (True, "root", group, mode)


@pytest.mark.parametrize(
    ("unit", "path", "source"),
    [("home", "/home", "/srv/lab/home"), ("checkpoints", "/checkpoints", "/srv/lab/check-points")],
)
def test_sources_are_seen_at_their_paths(machine: Host, unit: str, path: str, source: str) -> None:
    assert machine.check_output(f"stat -c %i {path}") == machine.check_output(f"stat -c %i {source}")
    assert machine.check_output(f"systemctl is-enabled {unit}.mount") == "enabled"
    assert machine.run(f"systemd-analyze verify /etc/systemd/system/{unit}.mount").rc == 0
    assert machine.check_output(f"systemctl show --property=Before {unit}.mount").find("local-fs.target") > 0


def test_homes_are_made_on_the_disk_that_has_them(machine: Host) -> None:
    assert machine.file("/srv/lab/home/ada").user == "ada"
    assert machine.file("/home/ada").exists


def test_a_group_shares_its_project_whatever_the_umask(nodes: Any, machine: Host) -> None:
    name = machine.check_output("hostname")
    assert (
        nodes.login(
            "ada", name, "umask 077; mkdir /checkpoints/vision/run; echo 1 > /checkpoints/vision/run/a"
        ).returncode
        == 0
    )
    assert (
        nodes.login("ben", name, "echo 2 >> /checkpoints/vision/run/a && rm /checkpoints/vision/run/a").returncode == 0
    )
    assert nodes.login("cyd", name, "ls /checkpoints/vision").returncode != 0
    assert machine.file("/checkpoints/vision/run").group == "vision"
    machine.check_output("rmdir /checkpoints/vision/run")


def test_nobody_serves_without_clients(machine: Host) -> None:
    assert not machine.package("nfs-kernel-server").is_installed
    assert not machine.file("/etc/exports.d").exists


def test_a_server_is_predicted_or_its_kernel_named(nodes: Any) -> None:
    found = call(nodes, check=True, **SERVER, directories=[{"path": "/data", "mode": "2775"}])
    kernel_serves = nodes["head"].run("grep -qw nfsd /proc/filesystems || modprobe -n -q nfsd").rc == 0
    if not kernel_serves:
        # such as a node in a container
        assert found["failed"] and "has no NFS server (no module nfsd)" in found["msg"], found
    else:
        assert "file /etc/exports.d/labrack.exports" in [change["subject"] for change in found["changes"]], found
    assert not nodes["head"].file("/etc/exports.d/labrack.exports").exists


def test_a_disk_that_is_not_mounted_is_not_filled(nodes: Any) -> None:
    head = nodes["head"]
    head.check_output("mkdir -p /srv/disk")
    missing = {"path": "/results", "source": "/srv/disk/results", "filesystem": "/srv/disk"}
    found = call(nodes, host="head", directories=[missing, {"path": "/models"}])
    assert found["failed"] and "/srv/disk is not mounted on head" in found["msg"], found
    assert head.file("/models").is_directory and not head.file("/srv/disk/results").exists
    assert not head.file("/results").exists
    head.check_output("mount -t tmpfs labrack /srv/disk")
    found = call(nodes, host="head", directories=[missing, {"path": "/models"}])
    assert not found.get("failed") and head.file("/results").is_directory, found
    assert "ConditionPathIsMountPoint=/srv/disk" in head.file("/etc/systemd/system/results.mount").content_string


def test_what_can_not_be_is_refused_before_anything_changes(nodes: Any) -> None:
    head = nodes["head"]
    head.check_output("mkdir -p /full && touch /full/file")
    new = {"path": "/new"}
    for entry, words in (
        ({"path": "/full", "source": "/srv/full"}, "/full is not empty (file), and /srv/full would hide it"),
        ({"path": "/etc/hostname"}, "/etc/hostname is there and is no directory"),
    ):
        found = call(nodes, host="head", directories=[new, entry])
        assert found["failed"] and words in found["msg"], found
    quota = [{"path": "/new", "hard": "1G"}]
    found = call(nodes, host="head", directories=[new], user_quotas=quota, uids={"ada": 2001})
    assert found["failed"] and "was mounted without them" in found["msg"], found
    assert not head.file("/new").exists


def test_check_mode_predicts_nothing_and_the_way_back_keeps_the_data(nodes: Any) -> None:
    # what the tests before have added leaves the inventory's directories as they are, and waits for consent
    done = nodes.playbook("labrack.infra.closet", "--check", "--diff", "--limit", "node1")
    assert done.returncode == 0 and "changed=0" in done.stdout, done.stdout[-4000:]
    pending = [change["subject"] for change in call(nodes, check=True, host="head", state="absent")["pending"]]
    assert {"mount /home", "mount /checkpoints", "mount /results"} <= set(pending), pending
    undo = ("--tags", "nfs_server", "-e", "nfs_server_state=absent", "-e", "lab_max_disruption=drain")
    done = nodes.playbook("labrack.infra.closet", *undo)
    assert done.returncode == 0, done.stdout[-4000:]
    for name in HOSTS:
        host = nodes[name]
        assert host.file("/srv/lab/home/ada").exists and not host.file("/home/ada").exists
        assert not host.file("/etc/systemd/system/home.mount").exists
        assert not host.file("/var/lib/labrack/nfs_server.json").exists
