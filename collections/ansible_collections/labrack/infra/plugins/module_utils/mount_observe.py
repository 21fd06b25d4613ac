# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What lies in the places where the lab's directories go, who uses a mount, and whether its server answers.

Read-only, standard library only, never raises. Nothing here waits for a server that doesn't answer, or wakes an
automount: names of mounts and links of /proc are read, and what has to ask a server is a process with a deadline.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypedDict

from ansible_collections.labrack.infra.plugins.module_utils.hardware_observe import (
    NETWORK_FILESYSTEMS,
    Mount,
    read_mounts,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text, run
from ansible_collections.labrack.infra.plugins.module_utils.nvidia_observe import Runner
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside

ROOT = Path("/")
#: Asks the file system itself, which no cache of attributes can answer; wakes an automount.
PROBE = ("stat", "--file-system", "--format=%T")
#: What :func:`answers` says of a stale handle and of a server that does not answer in time.
STALE, SILENT = "stale", "silent"
#: How many names of a directory are told; one more is read.
TOLD = 5


class Place(TypedDict):
    """A path as it is: ``kind`` is directory, missing, other (a file or a link) or unknown (below a server's mount).

    ``fstype`` and ``device`` are those of what is mounted on it, empty for nothing; ``point`` is where the file system
    is mounted that it lies on, and ``remote`` whether that is a server's. ``entries`` are the first names in it, none
    where something is mounted on it.
    """

    kind: str
    fstype: str
    device: str
    point: str
    remote: bool
    entries: list[str]


def read_places(paths: Iterable[str], root: Path = ROOT) -> dict[str, Place]:
    """Return what is at each path."""
    mounts = read_mounts(read_text(root / "proc/self/mountinfo") or "")
    return {path: _place(path, mounts, root) for path in paths}


def _place(path: str, mounts: Mapping[str, Mount], root: Path) -> Place:
    mount = mounts.get(path)
    point = max((one for one in mounts if inside(path, one)), key=len, default="/")
    remote = point in mounts and bool(NETWORK_FILESYSTEMS.fullmatch(mounts[point]["fstype"]))
    kind = "directory"
    entries: list[str] = []
    if mount is None:
        kind, entries = ("unknown", []) if remote else _look(root / path.lstrip("/"))
    return Place(
        kind=kind,
        fstype=mount["fstype"] if mount else "",
        device=mount["device"] if mount else "",
        point=point,
        remote=remote,
        entries=entries,
    )


def _look(path: Path) -> tuple[str, list[str]]:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        return "other", []
    try:
        with os.scandir(path) as entries:
            return "directory", sorted(entry.name for entry in islice(entries, TOLD + 1))
    except OSError:
        return ("directory" if path.exists() else "missing"), []


def kernel_has_nfs(root: Path = ROOT, runner: Runner = run) -> bool:
    """Return whether the kernel can mount NFSv4: it does already, or has the module, on disk or built in."""
    if re.search(r"\tnfs4$", read_text(root / "proc/filesystems") or "", re.MULTILINE):
        return True
    return runner(["modprobe", "--dry-run", "--quiet", "nfsv4"]).rc == 0


def kernel_version(root: Path = ROOT) -> tuple[int, int]:
    """Return the first two numbers of the running kernel, (0, 0) if unknown."""
    found = re.match(r"(\d+)\.(\d+)", read_text(root / "proc/sys/kernel/osrelease") or "")
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def answers(paths: Sequence[str], seconds: float = 5.0, probe: Sequence[str] = PROBE) -> dict[str, str]:
    """Return by path what its file system answers: "" for all well, :data:`STALE`, :data:`SILENT`, or its words.

    All paths are asked at the same time. A process that can't even be killed is left behind.
    """
    asked = {path: _ask([*probe, path]) for path in paths}
    deadline = time.monotonic() + seconds
    found = {}
    for path, process in asked.items():
        try:
            # one that has ended while another was waited for needs a moment to be read
            left = max(deadline - time.monotonic(), 0.0) if process.poll() is None else 1.0
            _out, words = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            process.kill()
            found[path] = SILENT
            continue
        if process.returncode == 0:
            found[path] = ""
        else:
            found[path] = STALE if "Stale file handle" in words else words.strip().rpartition(": ")[2] or "no answer"
    return found


def transports(root: Path = ROOT) -> dict[str, str]:
    """Return the server's address of each of the kernel's NFS connections, by the file in which it can be changed.

    An older kernel has no such files (net/sunrpc/sysfs.c, rpc_sysfs_xprt_dstaddr_store).
    """
    files = (root / "sys/kernel/sunrpc/xprt-switches").glob("*/xprt-*-tcp/dstaddr")
    return {str(file): (read_text(file) or "").strip() for file in sorted(files)}


def _ask(argv: Sequence[str]) -> subprocess.Popen[str]:
    environment = dict(os.environ, LC_ALL="C")
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        # out of reach of signals to this process' group, and out of its wait at the end
        start_new_session=True,
    )


def in_use(points: Mapping[str, str], root: Path = ROOT) -> set[str]:
    """Return the mount points that a process works in, has a file open on, or sees in a namespace of its own.

    ``points`` has the number of the file system ("0:45") by mount point. A namespace that follows this one, such as
    that of a service with a /tmp of its own, does not count: what is unmounted here is unmounted there.
    """
    found = {
        point
        for point in points
        for other in read_mounts(read_text(root / "proc/self/mountinfo") or "")
        if other != point and inside(other, point)
    }
    own = _link(root / "proc/self/ns/mnt")
    namespaces = {own}
    for process in (root / "proc").glob("[0-9]*"):
        left = [point for point in points if point not in found]
        if not left:
            break
        files = _links(process)
        maps = read_text(process / "maps") or ""
        found.update(point for point in left if any(inside(file, point) for file in files) or f" {point}/" in maps)
        namespace = _link(process / "ns/mnt")
        if namespace and namespace not in namespaces:
            namespaces.add(namespace)
            kept = _kept_mounts(read_text(process / "mountinfo") or "")
            found.update(point for point in left if points[point] in kept)
    return found


def _links(process: Path) -> set[str]:
    """Where a process is and what it has open; links are read, not followed."""
    links = {_link(process / name) for name in ("cwd", "root", "exe")}
    with contextlib.suppress(OSError):
        links.update(_link(process / "fd" / name) for name in os.listdir(process / "fd"))
    return {link for link in links if link}


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _kept_mounts(text: str) -> set[str]:
    """Numbers of the file systems in a namespace that stay there when they are unmounted elsewhere."""
    kept = set()
    for line in text.splitlines():
        fields = line.partition(" - ")[0].split()
        if len(fields) >= 6 and not any(field.startswith("master:") for field in fields[6:]):
            kept.add(fields[2])
    return kept
