# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One server and two clients with kernels of their own: the same files everywhere, through quotas, outages and moves.

The server has two disks. That of ``/archive`` fails, is replaced and is given up; all else is on the other one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from labrack.testnode import vm
from labrack.testnode.node import NodeSpec
from tests.nodes.harness import Closet, Run, until
from tests.vm.conftest import INVENTORIES, Maker

LAB = INVENTORIES / "storage/group_vars/all/lab.yml"
#: Seconds for what an emulated processor does on a busy machine.
PATIENCE = 300.0
#: What is run again once the nodes are alike.
TAGS = ("--tags", "nfs_server,lab_users,nfs_client")
SERVER, CLIENT = (
    "Converge directories, quotas and exports",
    "Converge the mounts of the shared directories, and scratch",
)
CLIENTS = ("node1", "node2")
PATHS = ("/archive", "/checkpoints", "/data", "/home")
#: Makes the server's file systems; what lies below a mount point must never be served.
DISKS = """\
set -e
mkdir -p /srv/lab /srv/other/archive
touch /srv/other/archive/beneath
mkfs.xfs -q /dev/vdb
mkfs.ext4 -q /dev/vdc
echo '/dev/vdb /srv/lab xfs nofail,usrquota,prjquota 0 0' >>/etc/fstab
echo '/dev/vdc /srv/other ext4 nofail,x-systemd.device-timeout=5s 0 0' >>/etc/fstab
systemctl daemon-reload
mount /srv/lab
mount /srv/other
"""
#: Files that the roles may bring, with what they are; empty directories of the distribution's are no matter.
FILES = (
    "find /etc/exports* /etc/nfs* /etc/systemd /etc/tmpfiles.d /var/lib/labrack ! \\( -type d -empty \\) "
    "-printf '%p %y %l\\n' | sort"
)


@dataclass(frozen=True)
class Story:
    """The lab after its first runs, with the snapshots ``bare`` and ``converged``; a host's files before."""

    lab: Closet
    files: dict[str, str]
    made: Run
    again: Run


@pytest.fixture(scope="module")
def story(make_lab: Maker) -> Story:
    lab = make_lab("storage", (NodeSpec("head", disks=(2, 1)), NodeSpec("node1"), NodeSpec("node2")))
    lab.root("head", "grep -q /srv/lab /etc/fstab || sh -c " + shlex.quote(DISKS))
    # a directory alone is what the first role leaves behind
    files = {member.name: lab.root(member.name, "mkdir -p /var/lib/labrack; " + FILES) for member in lab.lab.nodes}
    vm.snapshot(lab.lab, "bare")
    made = lab.play()
    again = lab.play(*("labrack.infra.closet", *TAGS))
    vm.snapshot(lab.lab, "converged")
    return Story(lab, files, made, again)


@pytest.fixture
def closet(story: Story) -> Closet:
    """The lab as it was after its first runs."""
    vm.restore(story.lab.lab, "converged")
    return story.lab


def user(closet: Closet, target: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command on ``user@host`` by ssh, with patience."""
    return closet.ssh.run(target, command, timeout=PATIENCE)


def mounted(closet: Closet, host: str) -> dict[str, str]:
    """What NFS has mounted on a host, with its type and options, by mount point."""
    lines = [line.split() for line in closet.root(host, "cat /proc/mounts").splitlines()]
    return {path: f"{kind} {options}" for _what, path, kind, options, *_ in lines if kind.startswith("nfs")}


def write(mib: int, file: str) -> str:
    """A shell command that writes so many MiB and fails when they don't reach the server's disk."""
    return f"dd if=/dev/zero of={file} bs=1M count={mib} conv=fsync"


@pytest.mark.core
def test_second_run_changes_nothing(story: Story) -> None:
    assert all(story.made.changed.values())
    assert story.again.changed == dict.fromkeys(("head", *CLIENTS), 0), story.again.output[-4000:]
    for host in CLIENTS:
        assert story.again.task(host, CLIENT).result["directories"] == dict.fromkeys(PATHS, "mounted")


@pytest.mark.core
def test_nothing_older_than_nfs_4_2_is_served(closet: Closet) -> None:
    assert closet.root("head", "cat /proc/fs/nfsd/versions").split() == ["-3", "+4", "-4.0", "-4.1", "+4.2"]
    for host in ("head", *CLIENTS):
        assert not re.search(r":111\b", closet.root(host, "ss --listening --numeric --tcp --udp"))
    assert "mountd" not in closet.root("head", "ss --listening --processes --tcp --udp")
    for host in CLIENTS:
        found = mounted(closet, host)
        assert sorted(found) == [*PATHS]
        assert all("vers=4.2" in options and "hard" in options for options in found.values())
    old = "mkdir -p /mnt/old; mount -t nfs -o vers=4.1,retry=0 head:/srv/lab/home /mnt/old 2>&1"
    assert "Protocol not supported" in closet.root("node1", old, check=False)


def test_check_predicts_the_first_run(story: Story) -> None:
    vm.restore(story.lab.lab, "bare")
    predicted = story.lab.play("labrack.infra.closet", *TAGS, "--check")
    assert predicted.task("head", SERVER).subjects == story.made.task("head", SERVER).subjects != []
    for host in CLIENTS:
        assert predicted.task(host, CLIENT).subjects == story.made.task(host, CLIENT).subjects != []


@pytest.mark.core
def test_same_file_with_the_same_owner_on_every_node(closet: Closet) -> None:
    assert user(closet, "ada@node1", "echo 17 >answer && chmod 600 answer").returncode == 0
    assert user(closet, "ada@node2", "cat answer && stat -c '%U:%G %a' answer").stdout == "17\nada:ada 600\n"
    assert user(closet, "ben@node2", f"cat ~ada/answer || {write(1, '~ada/x')}").returncode != 0
    assert closet.root("head", "stat -c %u:%g /home/ada/answer /srv/lab/home/ada") == "2001:2001\n2001:2001\n"
    # a group's directory hands its group down
    assert user(closet, "ada@node1", "umask 077; echo 18 >/checkpoints/vision/shared").returncode == 0
    assert user(closet, "ben@node2", "echo 19 >>/checkpoints/vision/shared").returncode == 0


@pytest.mark.core
def test_root_on_a_client_is_nobody_on_the_server(closet: Closet) -> None:
    for path in ("/home/x", "/home/ada/x", "/checkpoints/x", "/data/x"):
        closet.root("node1", f"if touch {path}; then exit 1; fi")
    closet.root("node1", "if cat /home/ada/.ssh/authorized_keys; then exit 1; fi")
    closet.root("node1", "touch /archive/x")
    assert closet.root("head", "stat -c %U /archive/x") == "nobody\n"
    # nor may anybody write where it is read-only
    assert "Read-only file system" in user(closet, "ada@node1", "touch /data/x").stderr


@pytest.mark.core
def test_quota_stops_one_and_nobody_else(closet: Closet) -> None:
    done = user(closet, "ada@node1", write(60, "big"))
    assert done.returncode != 0 and "Disk quota exceeded" in done.stderr
    assert user(closet, "ben@node1", write(30, "big")).returncode == 0
    # ada has no byte left, ben has some
    assert "Disk quota exceeded" in user(closet, "ada@node2", write(1, "more")).stderr
    assert user(closet, "ben@node2", write(1, "more")).returncode == 0


def test_projects_quota_stops_it_and_nothing_else(closet: Closet) -> None:
    # what XFS says of a directory's quota
    done = user(closet, "ben@node1", write(30, "/checkpoints/vision/big"))
    assert done.returncode != 0 and "No space left on device" in done.stderr
    assert user(closet, "ben@node1", write(30, "big")).returncode == 0


@pytest.mark.core
def test_write_outlives_the_servers_power(closet: Closet) -> None:
    head = closet.lab.node("head")
    writer = (
        "for n in $(seq 40); do head -c 1048576 /dev/urandom; sleep 0.1; done | tee /scratch/copy | "
        "dd of=/home/ben/long bs=256k conv=fsync 2>/scratch/said; echo $? >/scratch/ended"
    )
    closet.root("node1", f"systemd-run --quiet --uid=ben bash -c {shlex.quote(writer)}")
    size = "stat -c %s /scratch/copy || echo 0"
    until("it writes", lambda: int(closet.root("node1", size)), lambda seen: seen > 4 << 20, PATIENCE)
    vm.power_off(head)
    assert closet.root("node1", "ls /scratch").split() == ["copy", "said"]
    vm.power_on(head)
    ended = "cat /scratch/ended || true"
    assert until("the write ends", lambda: closet.root("node1", ended), bool, PATIENCE) == "0\n"
    sums = {
        closet.root("node1", "sha256sum </scratch/copy"),
        closet.root("head", "sha256sum </home/ben/long"),
        user(closet, "ben@node2", "sha256sum <long").stdout,
    }
    assert len(sums) == 1, sums


@dataclass(frozen=True)
class Outage:
    """A client that has booted without the server, which came back then without the disk of ``/archive``."""

    closet: Closet
    #: What the client said of itself, and how an access ended, while the server was away.
    state: str
    access: str


@pytest.fixture(scope="module")
def outage(story: Story) -> Outage:
    lab = story.lab
    vm.restore(lab.lab, "converged")
    head, client = lab.lab.node("head"), lab.lab.node("node1")
    lab.root("head", "sed -i 's:^/dev/vdc :/dev/vdz :' /etc/fstab; sync")
    vm.power_off(head)
    vm.power_off(client)
    vm.power_on(client)
    state = lab.root("node1", "systemctl is-system-running")
    access = lab.root("node1", "timeout 5 ls /home; echo $?")
    vm.power_on(head)
    return Outage(lab, state, access)


@pytest.mark.core
def test_client_boots_without_the_server(outage: Outage) -> None:
    assert (outage.state, outage.access) == ("running\n", "124\n")
    done = user(outage.closet, "ada@node1", "cd /checkpoints/vision && touch here ~/there && ls ~")
    assert done.stdout == "there\n", done.stderr


@pytest.mark.core
def test_disk_that_is_not_mounted_is_not_served(outage: Outage) -> None:
    closet = outage.closet
    closet.root("head", "if mountpoint /srv/other; then exit 1; fi")
    # one that has it mounted waits, one that hasn't is refused
    assert user(closet, "ada@node1", "ls /archive").returncode != 0
    closet.root("node2", "if timeout 5 touch /archive/lost; then exit 1; fi")
    run = closet.play("labrack.infra.closet", *TAGS, "--limit", "head", ok=False)
    assert "/srv/other, which /etc/fstab says is /dev/vdz, is not mounted on head: nothing was made" in run.messages
    assert run.task("head", SERVER).subjects == []
    assert closet.root("head", "find /srv/other -type f") == "/srv/other/archive/beneath\n"
    assert closet.root("head", "ls /archive") == ""
    for host in CLIENTS:
        assert user(closet, f"ada@{host}", "ls ~").stdout == "there\n"


def test_disk_that_comes_back_is_served(outage: Outage) -> None:
    closet = outage.closet
    closet.root("head", "sed -i 's:^/dev/vdz :/dev/vdc :' /etc/fstab; systemctl daemon-reload; mount /srv/other")
    closet.play("labrack.infra.closet", *TAGS, "--limit", "head")
    for host in CLIENTS:
        done = user(closet, f"ada@{host}", f"echo {host} >/archive/{host} && ls /archive")
        assert host in done.stdout.split() and "beneath" not in done.stdout, done.stderr


def test_stale_handle_is_repaired_in_one_run(closet: Closet) -> None:
    closet.root("node1", "systemd-run --quiet --working-directory=/archive sleep 9999")
    closet.root(
        "head",
        "systemctl stop nfs-server && umount /archive /srv/other && mkfs.ext4 -q -F /dev/vdc && mount /srv/other && "
        "mkdir -m 1777 /srv/other/archive && touch /srv/other/archive/new && systemctl start nfs-server",
    )
    until(
        "the handle is stale",
        lambda: closet.root("node1", "timeout 10 ls /archive 2>&1 || true"),
        lambda seen: "Stale file handle" in seen,
        PATIENCE,
    )
    run = closet.play("labrack.infra.closet", *TAGS)
    for host in CLIENTS:
        assert run.task(host, CLIENT).subjects == ["mount /archive"], run.task(host, CLIENT).result
        assert run.task(host, CLIENT).result["directories"] == dict.fromkeys(PATHS, "mounted")
        assert user(closet, f"ada@{host}", "ls /archive").stdout == "new\n"


def test_server_at_another_address_is_found_in_one_run(closet: Closet) -> None:
    assert user(closet, "ada@node1", "echo 19 >answer").returncode == 0
    old = closet.lab.node("head").address
    new = old.rpartition(".")[0] + ".77"
    way = "gateway=$(ip -4 route show default dev eth1 | sed 's/.*via \\([^ ]*\\).*/\\1/')"
    closet.root(
        "head",
        f"{way}; ip address del {old}/24 dev eth1; ip address add {new}/24 dev eth1; "
        "ip route replace default via $gateway dev eth1",
    )
    # one who is at work there waits for a server that is gone, and goes on
    work = "for n in $(seq 300); do date >>work || exit; sleep 1; done"
    closet.root(
        "node1", f"systemd-run --quiet --uid=ada --working-directory=/home/ada --unit=work bash -c {shlex.quote(work)}"
    )
    closet.root("node1", "ip neigh flush all")
    run = closet.play("labrack.infra.closet", "--tags", f"baseline,{TAGS[1]}")
    for host in CLIENTS:
        assert run.task(host, CLIENT).subjects == [f"mount {path}" for path in PATHS], run.task(host, CLIENT).result
        assert run.task(host, CLIENT).result["directories"] == dict.fromkeys(PATHS, "mounted")
        transports = closet.root(host, "cat /sys/kernel/sunrpc/xprt-switches/*/*/dstaddr")
        assert set(transports.split()) == {new}
        done = user(closet, f"ada@{host}", "cat answer")
        assert done.stdout == "19\n", done.stderr
    lines = "wc -l </home/ada/work"
    before = int(closet.root("head", lines))
    until("who was at work goes on", lambda: int(closet.root("head", lines)), lambda now: now > before, PATIENCE)
    assert closet.root("node1", "systemctl is-active work") == "active\n"
    assert set(closet.play("labrack.infra.closet", "--tags", f"baseline,{TAGS[1]}").changed.values()) == {0}


def test_directory_that_left_is_gone_and_its_files_stay(closet: Closet) -> None:
    assert user(closet, "ada@node1", "echo 17 >/archive/answer").returncode == 0
    left = [one for one in yaml.safe_load(LAB.read_text())["lab_directories"] if one["path"] != "/archive"]
    variables: dict[str, Any] = {"lab_directories": left, "lab_max_disruption": "drain"}
    run = closet.play("labrack.infra.closet", *TAGS, **variables)
    for host in CLIENTS:
        assert sorted(mounted(closet, host)) == [path for path in PATHS if path != "/archive"]
        assert closet.root(host, "ls -d /archive /etc/systemd/system/*archive*", check=False) == ""
        assert {subject for subject in run.task(host, CLIENT).subjects if "archive" not in subject} == set()
    assert "archive" not in closet.root("head", "exportfs -v; ls /etc/systemd/system")
    assert closet.root("head", "cat /srv/other/archive/answer") == "17\n"


def test_undo_leaves_the_nodes_clean_and_the_files_where_they_are(story: Story, closet: Closet) -> None:
    assert user(closet, "ada@node1", "echo 18 >answer").returncode == 0
    tags = ("--tags", "nfs_server,nfs_client")
    variables: dict[str, Any] = {
        "nfs_server_state": "absent",
        "nfs_client_state": "absent",
        "lab_max_disruption": "drain",
    }
    closet.play("labrack.infra.closet", *tags, **variables)
    for member in closet.lab.nodes:
        lines = closet.root(member.name, FILES).splitlines()
        # what the other roles keep there
        others = r"/var/lib/labrack(/managed)?( d|/baseline\.json|/(lab_)?users\.json)|chrony"
        after = [line for line in lines if not re.search(others, line)]
        assert after == story.files[member.name].splitlines()
        mounts = (
            r"grep -E ' /[^ ]+ nfs4 | /(home|data|checkpoints|scratch|archive)[^ ]* autofs |/srv/.* /(home|archive) '"
        )
        assert closet.root(member.name, f"{mounts} /proc/mounts", False) == ""
    assert closet.root("head", "systemctl is-active nfs-server", check=False) == "inactive\n"
    assert closet.root("head", "cat /srv/lab/home/ada/answer") == "18\n"
    assert (
        closet.root("head", "repquota --user --raw-grace /srv/lab | grep -c '^ada .* 0 *49152 '", check=False) == "0\n"
    )
