# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Model, IOMMU, network cards and disks of a machine, from fake trees."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import hardware_observe


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


SPARK = """\
DGX_NAME="DGX Spark"
DGX_PRETTY_NAME="NVIDIA DGX Spark"
DGX_SWBUILD_DATE="2025-09-10-13-50-03"
DGX_SWBUILD_VERSION="7.2.3"
DGX_SERIAL_NUMBER="XXXXXXXXXXXX"
"""
UPDATE = '\nDGX_OTA_VERSION="{}"\nDGX_OTA_DATE="Wed Nov 19 05:05:30 PM CET 2025"\n'


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (SPARK, "7.2.3"),
        (SPARK + UPDATE.format("7.3.1") + UPDATE.format("7.5.0"), "7.5.0"),
        ("DGX_NAME=unknown\n", "unknown"),
        (None, None),
    ],
)
def test_the_version_of_dgx_os(tmp_path: Path, text: str | None, version: str | None) -> None:
    if text is not None:
        write(tmp_path, {"etc/dgx-release": text})
    assert hardware_observe.dgx_os(tmp_path) == version


@pytest.mark.parametrize(
    ("files", "model"),
    [
        ({"sys/class/dmi/id/product_name": "NVIDIA_DGX_Spark\n"}, "NVIDIA_DGX_Spark"),
        ({"proc/device-tree/model": "NVIDIA Jetson AGX Orin\0"}, "NVIDIA Jetson AGX Orin"),
        ({"sys/class/dmi/id/product_name": "\n", "proc/device-tree/model": "Board\0"}, "Board"),
        ({}, ""),
    ],
)
def test_the_model(tmp_path: Path, files: dict[str, str], model: str) -> None:
    assert hardware_observe.model(write(tmp_path, files)) == model


def test_an_iommu_has_groups(tmp_path: Path) -> None:
    assert not hardware_observe.iommu(tmp_path)
    (tmp_path / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    assert hardware_observe.iommu(tmp_path)


def nic(root: Path, name: str, speed: str, state: str, driver: str = "", physical: bool = True) -> None:
    folder = f"sys/class/net/{name}"
    write(root, {f"{folder}/mtu": "9000\n", f"{folder}/speed": speed, f"{folder}/operstate": state + "\n"})
    if physical:
        (root / folder / "device").mkdir()
    if driver:
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True)
        (root / folder / "device/driver").symlink_to(root / "sys/bus/pci/drivers" / driver)


def test_network_cards(tmp_path: Path) -> None:
    nic(tmp_path, "enp1s0f0np0", "200000\n", "up", "mlx5_core")
    nic(tmp_path, "eno1", "-1\n", "down", "ixgbe")
    nic(tmp_path, "eth0", "", "up")
    nic(tmp_path, "docker0", "-1\n", "up", physical=False)
    nic(tmp_path, "enp1s0f0v0", "200000\n", "up")
    (tmp_path / "sys/class/net/enp1s0f0v0/device/physfn").mkdir()
    write(tmp_path, {"sys/class/net/bonding_masters": "\n"})
    assert hardware_observe.nics(tmp_path) == [
        {"name": "eno1", "speed_mbit": None, "mtu": 9000, "driver": "ixgbe", "up": False},
        {"name": "enp1s0f0np0", "speed_mbit": 200000, "mtu": 9000, "driver": "mlx5_core", "up": True},
        {"name": "eth0", "speed_mbit": None, "mtu": 9000, "driver": "", "up": True},
    ]


def test_rdma_devices(tmp_path: Path) -> None:
    assert hardware_observe.rdma(tmp_path) == []
    for name in ("mlx5_1", "mlx5_0"):
        (tmp_path / "sys/class/infiniband" / name).mkdir(parents=True)
    assert hardware_observe.rdma(tmp_path) == ["mlx5_0", "mlx5_1"]


def mount(number: str, subtree: str, point: str, fstype: str, device: str = "/dev/x") -> str:
    return f"30 1 {number} {subtree} {point} rw,relatime shared:1 - {fstype} {device} rw\n"


MACHINE = [
    mount("0:21", "/", "/proc", "proc"),
    mount("254:0", "/", "/", "ext4", "/dev/nvme0n1p2"),
    mount("254:1", "/", "/boot/efi", "vfat", "/dev/nvme0n1p1"),
    mount("0:50", "/", "/data", "nfs4", "head:/data"),
    # on the way to these two lies the server
    mount("0:51", "/", "/data/scratch", "xfs"),
    mount("0:52", "/", "/net", "autofs", "/etc/auto.net"),
    mount("254:0", "/var/lib/kubelet/x", "/var/lib/kubelet/y", "ext4", "/dev/nvme0n1p2"),
    mount("7:1", "/", "/snap/core/1", "squashfs", "/dev/loop1"),
    mount("0:60", "/", "/var/lib/docker/overlay2/z/merged", "overlay", "overlay"),
    mount("0:61", "/@", "/scratch", "btrfs", "/dev/sdb"),
    mount("0:61", "/@home", "/home\\040of\\040all", "btrfs", "/dev/sdb"),
    mount("0:61", "/", "/pool", "btrfs", "/dev/sdb"),
    mount("0:62", "/", "/tank", "zfs", "tank"),
    mount("0:62", "/", "/srv/tank", "zfs", "tank"),
]
CONTAINER = [
    mount("0:70", "/", "/", "overlay", "overlay"),
    mount("254:0", "/var/lib/docker/c/hosts", "/etc/hosts", "ext4", "/dev/vda"),
    mount("254:0", "/var/lib/docker/volumes/v/_data", "/data", "ext4", "/dev/vda"),
]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (
            MACHINE,
            [
                ("/", "/dev/nvme0n1p2", "ext4"),
                ("/boot/efi", "/dev/nvme0n1p1", "vfat"),
                ("/scratch", "/dev/sdb", "btrfs"),
                ("/home of all", "/dev/sdb", "btrfs"),
                ("/pool", "/dev/sdb", "btrfs"),
                ("/tank", "tank", "zfs"),
            ],
        ),
        (CONTAINER, [("/", "overlay", "overlay"), ("/data", "/dev/vda", "ext4")]),
        # a server's file system over a disk's
        ([mount("1:1", "/", "/data", "xfs"), mount("0:9", "/", "/data", "nfs", "head:/data")], []),
        ([], []),
    ],
)
def test_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], wanted: list[tuple[str, str, str]]
) -> None:
    write(tmp_path, {"proc/self/mountinfo": "".join(lines), "etc/hosts": ""})
    for line in lines:
        if "hosts" not in line:
            (tmp_path / line.split()[4].lstrip("/").replace("\\040", " ")).mkdir(parents=True, exist_ok=True)
    asked = []

    def statvfs(path: Path) -> SimpleNamespace:
        asked.append(str(path.relative_to(tmp_path)))
        return SimpleNamespace(f_blocks=4 << 20, f_frsize=4096, f_bavail=1 << 20)

    monkeypatch.setattr(hardware_observe.os, "statvfs", statvfs)
    disks = hardware_observe.disks(tmp_path)
    assert [(disk["mount"], disk["device"], disk["fstype"]) for disk in disks] == wanted
    assert {(disk["size_mib"], disk["free_mib"]) for disk in disks} <= {(16384, 4096)}
    # what is on a server was not asked
    assert not [path for path in asked if path.startswith(("data/", "net"))]


def test_a_disk_that_can_not_be_read_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/mountinfo": mount("1:1", "/", "/gone", "xfs")})
    assert hardware_observe.disks(tmp_path) == []


@given(st.text())
def test_no_list_of_mounts_raises(text: str) -> None:
    hardware_observe.read_mounts(text)
