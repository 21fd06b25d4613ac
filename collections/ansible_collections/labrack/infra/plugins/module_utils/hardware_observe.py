# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a machine is made of besides processors and GPUs: model, IOMMU, network cards, disks.

Read-only, standard library only, runs no command, never raises.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypedDict

from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text

#: File systems that keep data on a disk of this machine. statvfs(2) of any other could wait for a dead server.
DISK_FILESYSTEMS = frozenset(
    ("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3", "reiserfs", "vfat", "xfs", "zfs")
)
#: Those that ask a server.
NETWORK_FILESYSTEMS = re.compile(
    r"nfs4?|cifs|smb3?|ceph|9p|afs|autofs|beegfs\w*|glusterfs|gpfs|lustre|ocfs2|gfs2|fuse\..*|virtiofs"
)


#: How a mounted file system says that quotas of a kind are enforced (xfs(5), ext4(5)).
QUOTA_OPTIONS = {
    "user": frozenset(("usrquota", "uquota", "quota")),
    "project": frozenset(("prjquota", "pquota")),
}


class Nic(TypedDict):
    """A network card: ``speed_mbit`` is None where there is no link or the driver doesn't tell."""

    name: str
    speed_mbit: int | None
    mtu: int
    driver: str
    up: bool


class Disk(TypedDict):
    """A mounted local file system, with its size and what users can still write, in MiB."""

    mount: str
    device: str
    fstype: str
    size_mib: int
    free_mib: int
    quotas: list[str]


class Mount(TypedDict):
    """A mount: the file system's ``number`` (``8:1``) and what of it is seen (``subtree``), its device and type.

    ``options`` are those of the mount and of the file system, sorted.
    """

    number: str
    subtree: str
    device: str
    fstype: str
    options: tuple[str, ...]


class FstabEntry(TypedDict):
    """A file system of /etc/fstab that has a place in the tree, and whether it is mounted there."""

    mount: str
    device: str
    fstype: str
    mounted: bool


def dgx_os(root: Path = Path("/")) -> str | None:
    """Return the version of DGX OS, of the last update or else of the image; None on another system.

    ``DGX_OTA_VERSION`` appears in /etc/dgx-release with the first update
    (https://docs.nvidia.com/dgx/dgx-os-6-user-guide/release_guidance.html).
    """
    text = read_text(root / "etc/dgx-release")
    if text is None:
        return None
    for key in ("DGX_OTA_VERSION", "DGX_SWBUILD_VERSION"):
        found: list[str] = re.findall(rf'^{key}="?([^"\s]+)', text, re.MULTILINE)
        if found:
            return found[-1]
    return "unknown"


def model(root: Path = Path("/")) -> str:
    """Return the machine's product name (DMI), or the device tree's model; "" where neither is there."""
    for name in ("sys/class/dmi/id/product_name", "proc/device-tree/model"):
        text = (read_text(root / name) or "").strip("\0 \n")
        if text:
            return text
    return ""


def iommu(root: Path = Path("/")) -> bool:
    """Return whether an IOMMU is in use: it puts devices into groups."""
    return any((root / "sys/kernel/iommu_groups").glob("*"))


def nics(root: Path = Path("/")) -> list[Nic]:
    """Return the network cards by name.

    What the kernel makes by itself (bridges, veth) has no device behind it; a card's virtual functions have the card.
    """
    found = []
    for path in sorted((root / "sys/class/net").glob("*")):
        if not (path / "device").exists() or (path / "device/physfn").exists():
            continue
        speed = _number(path / "speed")
        found.append(
            Nic(
                name=path.name,
                # -1: no link
                speed_mbit=speed if speed > 0 else None,
                mtu=max(_number(path / "mtu"), 0),
                driver=os.path.basename(os.path.realpath(path / "device/driver"))
                if (path / "device/driver").exists()
                else "",
                up=(read_text(path / "operstate") or "").strip() == "up",
            )
        )
    return found


def rdma(root: Path = Path("/")) -> list[str]:
    """Return the names of the RDMA devices (InfiniBand and RoCE)."""
    return sorted(path.name for path in (root / "sys/class/infiniband").glob("*"))


def disks(root: Path = Path("/")) -> list[Disk]:
    """Return the mounted local file systems, in the order of their mounts, and / always.

    A directory of a file system that is mounted once more elsewhere is left out (containers' volumes), as is anything
    below a network file system, the way to which could hang.
    """
    mounts = read_mounts(read_text(root / "proc/self/mountinfo") or "")
    remote = tuple(f"{point}/" for point, mount in mounts.items() if NETWORK_FILESYSTEMS.fullmatch(mount["fstype"]))
    whole = {mount["number"] for mount in mounts.values() if mount["subtree"] == "/"}
    found = []
    seen = set()
    for point, mount in mounts.items():
        key = (mount["number"], mount["subtree"])
        again = key in seen or (mount["number"] in whole and mount["subtree"] != "/" and mount["fstype"] != "btrfs")
        # a container's root is an overlay
        if (mount["fstype"] not in DISK_FILESYSTEMS and point != "/") or point.startswith(remote) or again:
            continue
        path = root / point.lstrip("/")
        try:
            # single files are mounted into containers
            size = os.statvfs(path) if path.is_dir() else None
        except OSError:
            size = None
        if size is not None and size.f_blocks:
            seen.add(key)
            found.append(
                Disk(
                    mount=point,
                    device=mount["device"],
                    fstype=mount["fstype"],
                    size_mib=size.f_blocks * size.f_frsize // 2**20,
                    free_mib=size.f_bavail * size.f_frsize // 2**20,
                    quotas=[kind for kind, names in QUOTA_OPTIONS.items() if names & set(mount["options"])],
                )
            )
    return found


def fstab(root: Path = Path("/")) -> list[FstabEntry]:
    """Return the file systems of fstab(5), in order; swap and others without a place in the tree are left out."""
    mounts = read_mounts(read_text(root / "proc/self/mountinfo") or "")
    found = []
    for point, device, fstype in read_fstab(read_text(root / "etc/fstab") or ""):
        mounted = point in mounts and mounts[point]["fstype"] != "autofs"
        found.append(FstabEntry(mount=point, device=device, fstype=fstype, mounted=mounted))
    return found


def read_fstab(text: str) -> list[tuple[str, str, str]]:
    """Return mount point, device and type of every entry of fstab(5) that has a place in the tree."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[1].startswith("/") and not fields[0].startswith("#"):
            found.append((_unescape(fields[1]).rstrip("/") or "/", _unescape(fields[0]), fields[2]))
    return found


def read_mounts(text: str) -> dict[str, Mount]:
    """Return the topmost mount of each mount point, from the text of proc_pid_mountinfo(5)."""
    mounts: dict[str, Mount] = {}
    for line in text.splitlines():
        before, _dash, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) >= 6 and len(tail) >= 2:
            point = _unescape(fields[4])
            options = {*fields[5].split(","), *(tail[2].split(",") if len(tail) > 2 else ())}
            mounts[point] = Mount(
                number=fields[2],
                subtree=_unescape(fields[3]),
                device=_unescape(tail[1]),
                fstype=tail[0],
                options=tuple(sorted(options)),
            )
    return mounts


def _unescape(text: str) -> str:
    """A field of mountinfo, in which blanks and backslashes are written in octal."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), text)


def _number(path: Path) -> int:
    text = (read_text(path) or "").strip()
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else -1
