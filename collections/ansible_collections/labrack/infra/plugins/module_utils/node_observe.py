# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a node is: system, processors, memory, control groups, accounts, addresses, packages, clock.

Read-only and standard library only. Every function that reads files takes the ``root`` under which they lie and every
function that runs a command takes the ``runner``, so that tests need no machine. What can't be read is None, "" or [];
nothing raises.
"""

from __future__ import annotations

import grp
import json
import os
import platform
import pwd
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ansible_collections.labrack.infra.plugins.module_utils import (
    hardware_observe,
    kubeconfig,
    mount_observe,
    skypilot_keys,
    sockets_observe,
)
from ansible_collections.labrack.infra.plugins.module_utils.driver_observe import (
    DRIVER_PACKAGES,
    observe_driver,
    observe_kernels,
    secure_boot,
)
from ansible_collections.labrack.infra.plugins.module_utils.gpu_details import gpu_details, kernel_log, kernel_xids
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text, run
from ansible_collections.labrack.infra.plugins.module_utils.nvidia_observe import SMI, Runner, observe_nvidia, run_smi
from ansible_collections.labrack.infra.plugins.module_utils.python_observe import (
    CUDA_PACKAGES,
    observe_cuda,
    observe_python,
)
from ansible_collections.labrack.infra.plugins.module_utils.runtime_observe import (
    RUNTIME_PACKAGES,
    observe_conflicts,
    observe_runtime,
)
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import (
    FIRST_NUMBER,
    LAST_NUMBER,
    SUBID_FILES,
    read_subids,
)

ROOT = Path("/")

#: The containers that systemd-detect-virt(1) knows.
CONTAINERS = frozenset(
    ("container-other", "docker", "lxc", "lxc-libvirt", "openvz", "podman", "pouch", "proot", "rkt", "systemd-nspawn")
)

#: The cgroup v1 controllers that slurmd can use, and those without which a job is not confined (v1: freezer as well).
V1_CONTROLLERS = ("cpuset", "memory", "devices", "freezer", "cpu", "cpuacct")
CONFINING = ("cpuset", "memory", "devices")

#: Time services by the name of their process (the kernel keeps 15 characters).
TIME_SERVICES = {"chronyd": "chrony", "systemd-timesyn": "systemd-timesyncd", "ntpd": "ntp"}


class Cpu(TypedDict):
    """Processors as ``slurmd -C`` counts them; ``cpus`` is sockets × cores_per_socket × threads_per_core."""

    cpus: int
    boards: int
    sockets: int
    cores_per_socket: int
    threads_per_core: int


class Cgroup(TypedDict):
    """Control groups: ``mode`` v2, v1, hybrid or none, the usable writable ``controllers``, the ``reason`` for less."""

    mode: str
    controllers: list[str]
    writable: bool
    reason: str


def observe_node(
    packages: Sequence[str] = (),
    root: Path = ROOT,
    runner: Runner = run,
    smi_runner: Runner = run_smi,
    environ: Mapping[str, str] = os.environ,
    paths: Sequence[str] = (),
    kubeconfigs: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the facts of the module ``node_facts`` (its RETURN block has the schema)."""
    system = os_release(root)
    container, virt = virtualization(root, runner)
    kernel = _line(root / "proc/sys/kernel/osrelease")
    # one question to the package database for all that want to know
    installed = installed_packages(
        [*packages, *RUNTIME_PACKAGES, *DRIVER_PACKAGES, *CUDA_PACKAGES], system["family"], runner
    )
    smi = smi_runner(SMI)
    gpus, nvidia = observe_nvidia(root, lambda _argv: smi)
    xids = kernel_xids(kernel_log(root)) if nvidia["state"] != "absent" else {}
    details = gpu_details(gpus, smi.out, xids, root, smi_runner)
    kernels, flavour = observe_kernels(root, kernel, runner)
    return {
        "hostname": _line(root / "proc/sys/kernel/hostname"),
        "machine_id": _line(root / "etc/machine-id"),
        "os": system,
        "dgx_os": hardware_observe.dgx_os(root),
        "model": hardware_observe.model(root),
        "kernel": kernel,
        "kernels": kernels,
        "secure_boot": secure_boot(root),
        "arch": platform.machine(),
        "container": container,
        "virt": virt,
        "python": platform.python_version(),
        "connection_user": connection_user(environ),
        "connection_home": connection_home(environ),
        "cpu": cpu_topology(root),
        "memory_mib": memory_mib(root),
        "addresses": addresses(runner),
        "iommu": hardware_observe.iommu(root),
        "nics": hardware_observe.nics(root),
        "rdma": hardware_observe.rdma(root),
        "disks": hardware_observe.disks(root),
        "fstab": hardware_observe.fstab(root),
        "places": mount_observe.read_places(paths, root),
        "nfs": mount_observe.kernel_has_nfs(root, runner) if paths else None,
        "gpus": [{**gpu, **more} for gpu, more in zip(gpus, details)],
        "nvidia": observe_driver(root, nvidia, gpus, smi.out, installed, kernels, flavour, xids),
        "runtime": observe_runtime(root, installed),
        "conflicts": observe_conflicts(root),
        "system_python": observe_python(root),
        "cuda": observe_cuda(root, installed),
        "cgroup": control_groups(root),
        "users": users(),
        "groups": groups(),
        "subids": subids(root),
        "listeners": {str(port): name for port, name in sorted(sockets_observe.owners(root).items())},
        "kubeconfigs": kubeconfig.contexts(kubeconfigs, root),
        "launch_keys": skypilot_keys.launch_keys(root),
        "processes": processes(root),
        "packages": {name: installed[name] for name in packages if name in installed},
        "time_sync": time_sync(root),
    }


def os_release(root: Path = ROOT) -> dict[str, str]:
    """Return id, version, codename, family ("debian", "redhat" or the id) and pretty name from os-release(5)."""
    text = read_text(root / "etc/os-release") or read_text(root / "usr/lib/os-release") or ""
    fields = {key: value.strip("\"' ") for key, _equal, value in (line.partition("=") for line in text.splitlines())}
    name = fields.get("ID", "")
    kin = {name, *fields.get("ID_LIKE", "").split()}
    family = "debian" if kin & {"debian", "ubuntu"} else "redhat" if kin & {"rhel", "fedora", "centos"} else name
    return {
        "id": name,
        "version": fields.get("VERSION_ID", ""),
        "codename": fields.get("VERSION_CODENAME", ""),
        "family": family,
        "pretty": fields.get("PRETTY_NAME", ""),
    }


def virtualization(root: Path = ROOT, runner: Runner = run) -> tuple[bool, str]:
    """Return whether this is a container, and its kind or the virtual machine's as systemd-detect-virt(1) names it."""
    kind = _line(root / "run/systemd/container")
    if not kind and (root / ".dockerenv").exists():
        kind = "docker"
    if not kind and (root / "run/.containerenv").exists():
        kind = "podman"
    if kind:
        return True, kind
    kind = runner(["systemd-detect-virt"]).out.strip() or "none"
    return kind in CONTAINERS, kind


def connection_user(environ: Mapping[str, str] = os.environ) -> str:
    """Return the user who logged in: the one behind sudo, else the one the process runs as."""
    behind = environ.get("SUDO_USER")
    if behind:
        return behind
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def connection_home(environ: Mapping[str, str] = os.environ) -> str:
    """Return the home of the user who logged in, "" for a user that the name service does not know."""
    try:
        return pwd.getpwnam(connection_user(environ)).pw_dir
    except KeyError:
        return ""


def cpu_topology(root: Path = ROOT) -> Cpu:
    """Count sockets, cores and threads as ``slurmd -C`` does (slurm ``src/slurmd/common/xcpuinfo.c``, hwloc).

    That is the whole machine, whatever the affinity or the cpuset of the process: slurmd asks hwloc for
    HWLOC_TOPOLOGY_FLAG_WHOLE_SYSTEM. Sockets and cores are told apart by their sibling lists, as arm64 has ids of -1.

    Where the numbers don't divide (Intel's P and E cores) slurmd divides all the same and drops the rest, and so does
    this: 8 P cores with two threads and 8 E cores are 16 cores with one. Newer slurmd (24.11, not 22.05) hides the
    E cores, and logs that these numbers differ from the hardware, unless slurm.conf has
    ``SlurmdParameters=allow_ecores``.
    """
    folder = root / "sys/devices/system/cpu"
    online = _cpu_list(_line(folder / "online")) or set(range(os.cpu_count() or 1))
    sockets, cores = set(), set()
    for cpu in online:
        topology = folder / f"cpu{cpu}/topology"
        sockets.add(_line(topology / "package_cpus_list") or _line(topology / "core_siblings_list"))
        cores.add(_line(topology / "core_cpus_list") or _line(topology / "thread_siblings_list") or str(cpu))
    cores_per_socket = max(len(cores) // len(sockets), 1)
    threads_per_core = len(online) // len(cores)
    return Cpu(
        cpus=len(sockets) * cores_per_socket * threads_per_core,
        boards=1,
        sockets=len(sockets),
        cores_per_socket=cores_per_socket,
        threads_per_core=threads_per_core,
    )


def memory_mib(root: Path = ROOT) -> int:
    """Return the machine's memory in MiB, rounded down like ``slurmd -C`` (which ignores a cgroup's limit), or 0."""
    found = re.search(r"^MemTotal:\s*([0-9]+) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found.group(1)) // 1024 if found else 0


def addresses(runner: Runner = run) -> dict[str, Any]:
    """Return ``default_ipv4`` (the address towards the default route, or None) and ``ipv4`` (all but loopback)."""
    by_device: dict[str, list[str]] = {}
    for device in _json(runner(["ip", "-j", "-4", "address", "show"]).out):
        found = [str(info["local"]) for info in device.get("addr_info", []) if info.get("scope") != "host"]
        by_device.setdefault(str(device.get("ifname")), []).extend(found)
    routes = _json(runner(["ip", "-j", "-4", "route", "show", "default"]).out)
    default = None
    for route in sorted(routes, key=lambda route: int(route.get("metric", 0)))[:1]:
        default = route.get("prefsrc") or next(iter(by_device.get(str(route.get("dev")), [])), None)
    return {"default_ipv4": default, "ipv4": [address for found in by_device.values() for address in found]}


def control_groups(root: Path = ROOT) -> Cgroup:
    """Tell which control groups a Slurm daemon can use, from the mounts that this process sees.

    Slurm takes cgroup v1 on a hybrid system. Under v2 there is no controller file for devices: they are confined by
    eBPF, which needs Linux 4.15.
    """
    mounts = _cgroup_mounts(root)
    if mounts.get("/sys/fs/cgroup", ("", set()))[0] == "cgroup2":
        mode = "v2"
        options = mounts["/sys/fs/cgroup"][1]
        present = set(_line(root / "sys/fs/cgroup/cgroup.controllers").split())
        if _kernel_at_least(root, (4, 15)):
            present.add("devices")
        writable = present if "ro" not in options else set()
    else:
        v1 = [options for kind, options in mounts.values() if kind == "cgroup"]
        unified = any(kind == "cgroup2" for kind, _options in mounts.values())
        present = {name for options in v1 for name in options if name in V1_CONTROLLERS}
        mode = ("hybrid" if unified else "v1") if present else "none"
        writable = {name for options in v1 if "ro" not in options for name in options if name in V1_CONTROLLERS}
    return Cgroup(
        mode=mode,
        controllers=sorted(writable),
        writable=bool(present) and writable == present,
        reason=_cgroup_reason(mode, present, writable),
    )


def users() -> list[dict[str, Any]]:
    """Return every user that the name service lists (files, and LDAP where it enumerates), by UID."""
    found = {entry.pw_name: entry for entry in reversed(pwd.getpwall())}
    return [
        {"name": entry.pw_name, "uid": entry.pw_uid, "gid": entry.pw_gid}
        for entry in sorted(found.values(), key=lambda entry: (entry.pw_uid, entry.pw_name))
    ]


def groups() -> list[dict[str, Any]]:
    """Return every group that the name service lists, by GID."""
    found = {entry.gr_name: entry for entry in reversed(grp.getgrall())}
    return [
        {"name": entry.gr_name, "gid": entry.gr_gid}
        for entry in sorted(found.values(), key=lambda entry: (entry.gr_gid, entry.gr_name))
    ]


def subids(root: Path = ROOT) -> list[dict[str, Any]]:
    """Return the ranges of subuid(5) and subgid(5), each with its ``file``, ``owner``, ``start`` and ``count``."""
    return [
        {"file": file, "owner": one.owner, "start": one.start, "count": one.count}
        for file in SUBID_FILES
        for one in read_subids(read_text(root / file.lstrip("/")) or "")
    ]


def processes(root: Path = ROOT) -> dict[str, int]:
    """Return how many processes each person has, by real UID as text; those of the system are not counted."""
    found: dict[str, int] = {}
    for path in (root / "proc").glob("[0-9]*/status"):
        uid = re.search(r"^Uid:\s*(\d+)", read_text(path) or "", re.MULTILINE)
        if uid and FIRST_NUMBER <= int(uid[1]) <= LAST_NUMBER:
            found[uid[1]] = found.get(uid[1], 0) + 1
    return found


def installed_packages(names: Sequence[str], family: str, runner: Runner = run) -> dict[str, str]:
    """Return the versions of the installed packages, from dpkg or (family "redhat") rpm; a name may hold ``*``."""
    if not names:
        return {}
    if family == "redhat":
        query = ["rpm", "-qa", "--queryformat", "%{NAME}\\t%{EVR}\\tinstalled\\n", *names]
    else:
        query = ["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\t${db:Status-Status}\\n", *names]
    found = {}
    for line in runner(query).out.splitlines():
        fields = line.split("\t")
        if len(fields) == 3 and fields[2] == "installed":
            found[fields[0]] = fields[1]
    return found


def time_sync(root: Path = ROOT) -> dict[str, Any]:
    """Return the running time ``service`` (chrony, systemd-timesyncd, ntp or None) and whether it is ``synchronized``.

    Only systemd-timesyncd leaves that in a file; for the others it is None.
    """
    running = {_line(path) for path in (root / "proc").glob("[0-9]*/comm")}
    service = next((unit for process, unit in TIME_SERVICES.items() if process in running), None)
    synchronized = None
    if service == "systemd-timesyncd":
        synchronized = (root / "run/systemd/timesync/synchronized").exists()
    return {"synchronized": synchronized, "service": service}


def _line(path: Path) -> str:
    return (read_text(path) or "").strip()


def _json(text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _cpu_list(text: str) -> set[int]:
    """The CPUs of a kernel list such as "0-3,8"."""
    cpus: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _cgroup_mounts(root: Path) -> dict[str, tuple[str, set[str]]]:
    """Mount point → (file system, options of mount and superblock), the topmost mount of each point."""
    mounts = {}
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _dash, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) >= 6 and len(tail) >= 3 and tail[0] in ("cgroup", "cgroup2"):
            mounts[fields[4]] = (tail[0], {*fields[5].split(","), *tail[2].split(",")})
    return mounts


def _kernel_at_least(root: Path, wanted: tuple[int, int]) -> bool:
    found = re.match(r"(\d+)\.(\d+)", _line(root / "proc/sys/kernel/osrelease"))
    return found is not None and (int(found.group(1)), int(found.group(2))) >= wanted


def _cgroup_reason(mode: str, present: set[str], writable: set[str]) -> str:
    if mode == "none":
        return "no cgroup controllers are mounted"
    needed = CONFINING if mode == "v2" else (*CONFINING, "freezer")
    missing = [name for name in needed if name not in present]
    if missing:
        hint = "; boot with cgroup_enable=memory" if "memory" in missing else ""
        return f"cgroup controllers not enabled: {', '.join(missing)}{hint}"
    if writable != present:
        return f"cgroup mount is read-only: {', '.join(sorted(present - writable))}"
    return ""
