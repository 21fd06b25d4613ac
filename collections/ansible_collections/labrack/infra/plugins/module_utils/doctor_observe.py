# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ``labrack doctor`` wants to know of a node beside its facts: space, package sources, ports, names, packets.

Standard library only, never raises, changes nothing. The one thing that it leaves for a while is a process that listens
on ports where a daemon of the lab will be, so that others can try the way; it ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import (
    apt_source,
    mount_observe,
    nfs_client_plan,
    path_mtu,
    sockets_observe,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text, run
from ansible_collections.labrack.infra.plugins.module_utils.nvidia_observe import Runner

ROOT = Path("/")
#: Where a full disk stops the system or a run.
PLACES = ("/", "/boot", "/tmp", "/var", "/var/lib", "/var/log", "/var/tmp")  # noqa: S108
#: Fetches a file as apt would: its proxies, credentials, certificates.
APT_HELPER = "/usr/lib/apt/apt-helper"
#: Those whose index is at the address that the source names.
ASKED_SCHEMES = ("http", "https", "ftp", "file", "copy")
#: Seconds for an answer of a source, of a name server, and of a port.
SOURCE_PATIENCE, NAME_PATIENCE, PORT_PATIENCE = 10, 6.0, 3.0
#: How many are asked at a time.
ASKED_AT_ONCE = 32
PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SSH_PORT = 22
_CREDENTIALS = re.compile(r"(://)[^/@\s]+@")


def cpu_watts(root: Path = ROOT) -> float | None:
    """Return the long-term power limit of all processors in watts, None where the kernel does not tell.

    Intel's RAPL; AMD's has counters and no limits (Linux Documentation/power/powercap/powercap.rst).
    """
    found = 0
    for zone in (root / "sys/class/powercap").glob("intel-rapl:*"):
        if (read_text(zone / "name") or "").startswith("package"):
            text = (read_text(zone / "constraint_0_power_limit_uw") or "").strip()
            found += int(text) if text.isdigit() else 0
    return found / 1e6 or None


def space(paths: Iterable[str] = PLACES, root: Path = ROOT) -> list[dict[str, Any]]:
    """Return the file systems that these paths lie on, each once: ``mount``, ``size_mib``, ``free_mib``, ``inodes``.

    ``inodes`` is the part of them that is free in percent, None where the file system has no fixed number. Those of a
    server are left out, as the answer could take for ever.
    """
    found: dict[str, dict[str, Any]] = {}
    for path, place in mount_observe.read_places(paths, root).items():
        if place["remote"] or place["point"] in found:
            continue
        if place["fstype"] == "autofs" or (place["kind"] != "directory" and not place["fstype"]):
            continue
        try:
            size = os.statvfs(root / path.lstrip("/"))
        except OSError:
            continue
        if size.f_blocks:
            found[place["point"]] = {
                "mount": place["point"],
                "size_mib": size.f_blocks * size.f_frsize // 2**20,
                "free_mib": size.f_bavail * size.f_frsize // 2**20,
                "inodes": round(100 * size.f_favail / size.f_files, 1) if size.f_files else None,
            }
    return list(found.values())


def sources(root: Path = ROOT, runner: Runner = run) -> list[dict[str, Any]] | None:
    """Ask each package source of apt for its index' signature, as apt would, and keep nothing.

    Returns ``uri``, ``suite`` and ``problem`` ("" where it answers) of each, None on a system without apt.
    """
    if not (root / APT_HELPER.lstrip("/")).exists():
        return None
    architecture = runner(["dpkg", "--print-architecture"]).out.strip()
    files = [root / "etc/apt/sources.list", *sorted((root / "etc/apt/sources.list.d").glob("*"))]
    wanted: dict[tuple[str, str], None] = {}
    for file in files:
        if file.suffix in (".list", ".sources"):
            for entry in apt_source.read_entries(str(file), read_text(file) or "", architecture):
                if entry.uri.partition(":")[0] in ASKED_SCHEMES:
                    wanted[entry.uri, entry.suite] = None
    # apt drops to a user of its own, who must get in
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            asked = [
                pool.submit(_ask_source, uri, suite, f"{folder}/{number}", runner)
                for number, (uri, suite) in enumerate(wanted)
            ]
            return [one.result() for one in asked]


def _ask_source(uri: str, suite: str, target: str, runner: Runner) -> dict[str, Any]:
    flat = suite.endswith("/")
    index = f"{uri}{suite.lstrip('/')}" if flat else f"{uri}dists/{suite}/"
    options = [f"Acquire::{kind}::Timeout={SOURCE_PATIENCE}" for kind in ("http", "https")]
    options += ["Acquire::Retries=0", "APT::Sandbox::User=root"]
    argv = [APT_HELPER, *(word for option in options for word in ("-o", option)), "download-file", f"{index}InRelease"]
    done = runner([*argv, target])
    if done.rc:
        # a flat repository may have the two files instead of the one
        done = runner([*argv[:-1], f"{index}Release", target])
    words = [line[2:].strip() for line in done.err.splitlines() if line.startswith("E:")]
    problem = (words or done.err.strip().splitlines()[-1:] or [f"status {done.rc}"])[0] if done.rc else ""
    return {"uri": without_credentials(uri), "suite": suite, "problem": without_credentials(problem)[:300]}


def without_credentials(text: str) -> str:
    """Return a text in which no address has a user's name and password any more."""
    return _CREDENTIALS.sub(r"\1", text)


def ssh_port(root: Path = ROOT, environ: Mapping[str, str] = os.environ) -> int:
    """Return the port of this node's sshd: that of the connection above this process, else 22."""
    text = environ.get("SSH_CONNECTION", "")
    number = os.getpid()
    # sudo takes the variable away; a process above it still has it
    for _generation in range(16):
        if text or number <= 1:
            break
        for line in (read_text(root / f"proc/{number}/environ") or "").split("\0"):
            if line.startswith("SSH_CONNECTION="):
                text = line.partition("=")[2]
        stat = (read_text(root / f"proc/{number}/stat") or "").rpartition(")")[2].split()
        number = int(stat[1]) if len(stat) > 1 else 0
    port = text.split()[-1:]
    return int(port[0]) if port and port[0].isdigit() else SSH_PORT


def services(wanted: Iterable[Mapping[str, Any]], root: Path = ROOT, runner: Runner = run) -> list[dict[str, Any]]:
    """Return how the services are that this node has: ``service``, ``port``, ``addresses`` that are listened on.

    ``installed``: its program is there; ``stopped``: its unit is enabled and has been started before, and is not
    active, in the ``state`` that systemd names.
    """
    open_ports = {port: [one.address for one in found] for port, found in sockets_observe.listening(root).items()}
    found = []
    for one in wanted:
        port = ssh_port(root) if one["service"] == "ssh" else int(one["port"])
        unit = str(one.get("unit") or "")
        state: dict[str, str] = {}
        if unit and port not in open_ports:
            shown = runner(
                [
                    "systemctl",
                    "show",
                    "--property=ActiveState,SubState,UnitFileState,ConditionResult",
                    f"{unit}.service",
                ]
            )
            state = dict(line.split("=", 1) for line in shown.out.splitlines() if "=" in line)
        found.append(
            {
                "service": str(one["service"]),
                "port": port,
                "addresses": open_ports.get(port, []),
                "installed": bool(shutil.which(str(one.get("program") or "sshd"), path=PROGRAMS)),
                "stopped": state.get("UnitFileState", "").startswith("enabled")
                and state.get("ConditionResult") == "yes"
                and state.get("ActiveState") not in ("active", "activating", "reloading"),
                "state": state.get("ActiveState", ""),
            }
        )
    return found


def listen(ports: Sequence[int], seconds: float) -> dict[str, Any]:
    """Listen on these ports for at most so long, in a process that lives on; whoever connects is let go at once.

    Returns the ``ports`` that it got, its ``pid``, and when it ``started`` as /proc has it, for :func:`close`; pid 0
    for no port.
    """
    sockets = []
    for port in ports:
        with contextlib.suppress(OSError):
            sockets.append(_listener(port))
    if not sockets:
        return {"ports": [], "pid": 0, "started": ""}
    got = [one.getsockname()[1] for one in sockets]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            grandchild = os.fork()
            if grandchild:
                os.write(writer, str(grandchild).encode())
                os._exit(0)
            _detach({one.fileno() for one in sockets})
            _serve(sockets, seconds)
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    pid = int(os.read(reader, 32) or b"0")
    os.close(reader)
    for one in sockets:
        one.close()
    return {"ports": got, "pid": pid, "started": _started(pid)}


def _listener(port: int) -> socket.socket:
    """A socket that listens on all addresses of this node, of both families where it has both."""
    try:
        found = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("", port))
        found.listen(128)
    except OSError:
        found.close()
        raise
    return found


def _detach(keep: set[int]) -> None:
    """Let go of everything that the one who waits for this process' end would wait for."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _serve(sockets: Sequence[socket.socket], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as ready:
        for one in sockets:
            one.setblocking(False)
            ready.register(one, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _events in ready.select(left):
                with contextlib.suppress(OSError):
                    key.fileobj.accept()[0].close()  # type: ignore[union-attr]


def close(listener: Mapping[str, Any]) -> None:
    """End a process of :func:`listen`; nothing where it has ended, whoever has its number now."""
    pid = int(listener.get("pid") or 0)
    if pid and _started(pid) == listener.get("started"):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; "" for none."""
    fields = (read_text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def ways(peers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Try the ways to other nodes, all at a time.

    A peer has a ``name``, an ``address``, and ``ports``, each with ``service`` and ``port``. Returned for each are
    ``ports`` with ``problem`` ("" for open), the ``addresses`` that its name has here, the ``names`` that its address
    has, this node's ``device`` on the way with its ``mtu``, and the biggest packet in bytes that ``passes`` (0 for a
    peer that answers to no ping, None where that can't be tried).
    """
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(_way, peers))


def _way(peer: Mapping[str, Any]) -> dict[str, Any]:
    address = str(peer["address"])
    device, mtu = _device(address)
    passes = None
    if mtu and shutil.which("ping"):
        passes = path_mtu.biggest(address, nfs_client_plan.packets(mtu))
    return {
        "name": str(peer["name"]),
        "address": address,
        "ports": [{**one, "problem": connect(address, int(one["port"]))} for one in peer["ports"]],
        "addresses": addresses_of(str(peer["name"])),
        "names": names_of(address),
        "device": device,
        "mtu": mtu,
        "passes": passes,
    }


def connect(address: str, port: int, seconds: float = PORT_PATIENCE) -> str:
    """Return why a port can't be connected to: "refused", "no answer" or the kernel's words; "" when it can."""
    try:
        socket.create_connection((address, port), timeout=seconds).close()
    except socket.timeout:
        return "no answer"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def addresses_of(name: str, runner: Runner = run) -> list[str]:
    """Return the addresses that this node finds for a name, [] for none."""
    lines = [
        line.split() for line in runner(["timeout", str(NAME_PATIENCE), "getent", "ahosts", name]).out.splitlines()
    ]
    return list(dict.fromkeys(words[0].partition("%")[0] for words in lines if words))


def names_of(address: str, runner: Runner = run) -> list[str]:
    """Return the names that this node finds for an address, [] for none."""
    lines = runner(["timeout", str(NAME_PATIENCE), "getent", "hosts", address]).out.splitlines()
    return list(dict.fromkeys(word for line in lines for word in line.split()[1:]))


def _device(address: str, runner: Runner = run) -> tuple[str, int]:
    """This node's device towards an address, and its MTU."""
    found = re.search(r"\bdev (\S+)", runner(["ip", "-o", "route", "get", address]).out)
    device = found.group(1) if found else ""
    text = (read_text(f"/sys/class/net/{device}/mtu") or "").strip() if device else ""
    return device, int(text) if text.isdigit() else 0
