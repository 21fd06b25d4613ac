# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab of virtual machines is what the other files of this directory take it for."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labrack.testnode import gpus, node, vm
from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import NodeSpec
from tests.nodes.harness import ROOT, Closet, until
from tests.vm.conftest import Maker

#: Tries a TCP connection to argv[1]:argv[2] and says how it ended.
CONNECT = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
except OSError as error:
    print(error)
else:
    print("connected")
"""


@pytest.fixture(scope="module")
def lab(make_lab: Maker) -> Closet:
    return make_lab("bare", (NodeSpec("head", disks=(2,)), NodeSpec("node1", gpus=(GpuSpec(),) * 2), NodeSpec("node2")))


def connect(lab: Closet, host: str, address: str, port: int) -> str:
    return lab.root(host, f"python3 -c {shlex.quote(CONNECT)} {address} {port}").strip()


def test_ansible_reaches_all_by_the_inventory(lab: Closet) -> None:
    inventories = [argument for path in lab.inventory for argument in ("-i", str(path))]
    ansible = [str(Path(sys.executable).with_name("ansible")), *inventories, "all", "-m", "ansible.builtin.ping"]
    done = subprocess.run(ansible, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ping: pong") == 3


def test_nodes_reach_each_other(lab: Closet) -> None:
    for member in lab.lab.nodes:
        assert lab.root(member.name, "hostname").strip() == member.name
        for other in lab.lab.nodes:
            lab.root(member.name, f"ping -q -c 1 -w 20 {other.address}")
    assert "via 10.77.0.1 dev eth1" in lab.root("head", "ip route show default")


def test_no_packet_leaves_by_the_way_in(lab: Closet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        # 10.0.2.2 is the host's loopback interface, as QEMU has it for guests that aren't restricted
        assert connect(lab, "node2", "10.0.2.2", port) != "connected"
        lab.root("node2", "ip route add 192.0.2.0/24 via 10.0.2.2")
        assert connect(lab, "node2", "192.0.2.1", port) != "connected"
        lab.root("node2", "ip route delete 192.0.2.0/24")
    # the same script does connect where it may
    assert connect(lab, "node2", lab.lab.node("head").address, 22) == "connected"


def test_kernel_is_its_own(lab: Closet) -> None:
    assert lab.root("head", "stat --file-system --format=%T /sys/fs/cgroup").strip() == "cgroup2fs"
    lab.root("head", "modprobe nfsd")
    assert "nfsd" in lab.root("head", "cat /proc/filesystems")


def test_stand_in_cards(lab: Closet) -> None:
    assert lab.root("node1", "nvidia-smi -L").count("GPU ") == 2
    opening = "python3 -c 'open(\"/dev/nvidia1\")' 2>&1 | tail -n 1"
    assert "No such device or address" in lab.root("node1", opening)
    member = lab.lab.node("node1")
    node.set_gpus(member, lambda document: gpus.lose(document, 0))
    assert "Xid" in lab.root("node1", "cat /run/labrack-testnode/kmsg")
    node.set_gpus(member, lambda document: gpus.mend(document, 0))


def test_return_to_a_snapshot(lab: Closet) -> None:
    vm.snapshot(lab.lab, "clean")
    lab.root("node1", "touch /root/after")
    lab.root("node2", "touch /root/after")
    vm.restore(lab.lab, "clean")
    for host in ("node1", "node2"):
        assert lab.root(host, "ls /root/after", check=False) == ""
        assert abs(float(lab.root(host, "date +%s.%N")) - time.time()) < 30
    assert lab.user("root@node1", "true").returncode == 0
    assert connect(lab, "node1", lab.lab.node("node2").address, 22) == "connected"


def test_reboot_keeps_address_and_disks(lab: Closet) -> None:
    head = lab.lab.node("head")
    size = json.loads(lab.root("head", "lsblk --json --bytes --nodeps /dev/disk/by-id/virtio-disk1"))
    assert size["blockdevices"][0]["size"] == 2 * 1024**3
    lab.root("head", "mkfs.xfs -q /dev/vdb && mount /dev/vdb /mnt && echo kept >/mnt/file && touch /run/volatile")
    vm.reboot(head)
    assert lab.root("head", "ls /run/volatile", check=False) == ""
    assert head.address in lab.root("head", "ip -4 -o address show eth1")
    assert lab.root("head", "mount /dev/vdb /mnt && cat /mnt/file") == "kept\n"
    assert lab.user("root@head", "hostname").stdout == "head\n"


def test_power(lab: Closet) -> None:
    member = lab.lab.node("node2")
    lab.root("node2", "echo kept >/root/synced && sync && echo lost >/root/in-memory")
    vm.power_off(member)
    assert lab.user("root@node2", "true").returncode == 255
    assert connect(lab, "node1", member.address, 22) != "connected"
    vm.power_on(member)
    assert lab.root("node2", "cat /root/synced") == "kept\n"
    assert lab.root("node2", "cat /root/in-memory", check=False) == ""
    until("ssh answers", lambda: lab.user("root@node2", "hostname").stdout, lambda seen: seen == "node2\n")
