# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Look at k3s on this node, and take away what it leaves behind. Standard library only, no Ansible import."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Collection, Iterator

from ansible_collections.labrack.infra.plugins.module_utils import k3s_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils.k3s_plan import K3sError, Observed
from ansible_collections.labrack.infra.plugins.module_utils.node_io import observe_file, read_text, remove_file, run
from ansible_collections.labrack.infra.plugins.module_utils.systemd import observe_services

#: Where k3s looks for NVIDIA's runtime (pkg/agent/containerd/runtimes.go), before the service's PATH.
TOOLKIT_FOLDERS = ("/usr/local/nvidia/toolkit", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin")
RUNTIME = "nvidia-container-runtime"
#: Without our record, these are signs of a k3s of somebody else's.
SIGNS = (
    planner.BINARY,
    planner.unit_path("k3s"),
    planner.unit_path("k3s-agent"),
    planner.CONFIG,
    f"{planner.DATA}/server/db",
    f"{planner.DATA}/agent/client-kubelet.crt",
)
INTERFACES = ("cni0", "flannel.1", "flannel-v6.1", "flannel-wg", "flannel-wg-v6", "kube-ipvs0")
MOUNTS = ("/run/k3s", "/var/lib/kubelet/pods", "/var/lib/kubelet/plugins", "/run/netns/cni-")
OTHER_KUBELETS = ("kubelet", "rke2-server", "rke2-agent")
#: What k3s puts into its manifests by itself.
OWN_MANIFESTS = re.compile(
    r"(ccm|coredns|local-storage|metrics-server|rolebindings|runtimes|traefik|gateway-api-crd|labrack-.*)"
    r"(\.yaml|\.yaml\.skip|/.*)?"
)
SNAPSHOTS_KEPT = 3


def observe(server: bool) -> Observed:
    """Read all of a node that k3s is about."""
    unit = planner.unit_of(server)
    record = read_record()
    ours = record is not None
    paths = [
        *(planner.CONFIG, planner.KUBELET, planner.KUBECONFIG, planner.MADE_TOKEN, planner.PROFILE),
        *(planner.TOKEN, planner.AGENT_TOKEN, planner.JOIN_TOKEN, planner.JOIN),
        *(place(name) for name in ("k3s", "k3s-agent") for place in (planner.unit_path, planner.env_path)),
        *glob.glob(f"{planner.READERS}/*.yaml"),
        *glob.glob(f"{planner.MANIFESTS}/labrack-*.yaml"),
    ]
    record = record or {}
    if not server and record.get("role") == "server":
        unit = "k3s"
    service = observe_services([unit])[unit]
    pid = main_pid(unit) if service.installed else 0
    return Observed(
        ours=ours,
        role=str(record.get("role", "")),
        foreign=() if ours else tuple(path for path in SIGNS if os.path.lexists(path)),
        files={path: observe_file(path) for path in paths},
        written={path: os.stat(path).st_mtime for path in paths if os.path.exists(path)},
        version=program_version(planner.BINARY) if os.path.exists(planner.BINARY) else "",
        running=program_version(f"/proc/{pid}/exe") if pid else "",
        ran=str(record.get("ran", "")),
        images=str(record.get("images", "")) if image_file() else "",
        links={path: look_link(path) for path in planner.LINKS},
        service=service,
        database=database(),
        toolkit=next((f"{one}/{RUNTIME}" for one in TOOLKIT_FOLDERS if os.access(f"{one}/{RUNTIME}", os.X_OK)), ""),
        runtimes=read_runtimes(read_text(planner.CONTAINERD)),
        addresses=read_addresses(run(["ip", "-json", "address"]).out),
        ports={} if pid else listeners(planner.PORTS[True]),
        shims=len(list(shims())),
        networks=tuple(name for name in INTERFACES if os.path.exists(f"/sys/class/net/{name}")),
        trees=tuple(path for path in planner.TREES if os.path.isdir(path)),
        kubelet_of_others=any(state.installed for state in observe_services(list(OTHER_KUBELETS)).values()),
    )


def read_record() -> dict[str, str] | None:
    """Return what labrack keeps of this node's k3s, None where it has installed none (K3sError for a damaged file)."""
    text = read_text(planner.RECORD)
    if text is None:
        return None
    try:
        return {str(key): str(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError):
        raise K3sError(f"{planner.RECORD} is damaged. Mend: write {{}} into it, or get it from a backup") from None


def program_version(program: str) -> str:
    """Return the version that a program tells, "unknown" for none."""
    return planner.read_version(run([program, "--version"], timeout=60).out) or "unknown"


def main_pid(unit: str) -> int:
    """Return the number of a service's main process, 0 for none."""
    done = run(["systemctl", "show", "--property=MainPID", "--value", f"{unit}.service"])
    return int(done.out) if done.out.strip().isdigit() else 0


def look_link(path: str) -> str:
    """Return "k3s" for a link to it, "other" where that program is another's, here or elsewhere on the PATH."""
    if os.path.islink(path) and os.path.basename(os.readlink(path)) == "k3s":
        return "k3s"
    elsewhere = shutil.which(os.path.basename(path), path="/usr/sbin:/usr/bin:/sbin:/bin")
    return "other" if os.path.lexists(path) or elsewhere else ""


def image_file() -> str:
    """Return the path of the images that came with a release, "" for none."""
    return next(iter(glob.glob(f"{planner.IMAGES}/k3s-airgap-images-*.tar.zst")), "")


def database() -> str:
    """Return the kind of the server's database, "" for none here."""
    if os.path.isdir(f"{planner.DATA}/server/db/etcd"):
        return "etcd"
    return "sqlite" if os.path.exists(planner.SQLITE) else ""


def read_runtimes(text: str | None) -> frozenset[str] | None:
    """Return the runtimes in containerd's configuration, None without one."""
    if text is None:
        return None
    return frozenset(re.findall(r"""\.runtimes\.['"]?([\w-]+)['"]?\]""", text))


def read_addresses(text: str) -> dict[str, str]:
    """Return each address of this node with its interface, loopback left out, from ``ip -json address``."""
    try:
        links = json.loads(text or "[]")
    except ValueError:
        return {}
    return {
        str(one["local"]): str(link["ifname"])
        for link in links
        for one in link.get("addr_info", ())
        if "local" in one and one.get("scope") != "host" and link["ifname"] not in INTERFACES
    }


def listeners(ports: Collection[int]) -> dict[int, str]:
    """Return which of these TCP ports something listens on, with its name where that is to be had."""
    found: dict[int, str] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (read_text(table) or "").splitlines()[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == "0A" and port in ports:
                found[port] = _owner(fields[9]) or "another program"
    return found


def _owner(inode: str) -> str:
    for path in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(path) == f"socket:[{inode}]":
                return (read_text(f"/proc/{path.split('/')[2]}/comm") or "").strip()
    return ""


def shims() -> Iterator[int]:
    """Yield the processes that hold pods: containerd's shims, out of k3s' own directory."""
    place = re.compile(rf"{planner.DATA}/data/[^/]+/bin/containerd-shim[\w-]*( \(deleted\))?")
    for path in glob.iglob("/proc/[0-9]*/exe"):
        with contextlib.suppress(OSError):
            if place.fullmatch(os.readlink(path)):
                yield int(path.split("/")[2])


# --- copies ----------------------------------------------------------------------------------------------------------


def snapshot(version: str) -> None:
    """Copy the database while the server runs (K3sError); the newest few copies are kept."""
    os.makedirs(planner.SNAPSHOTS, mode=0o700, exist_ok=True)
    if database() == "etcd":
        name = "labrack-" + version.replace("+", "-")
        done = run([planner.BINARY, "etcd-snapshot", "save", "--name", name, "--dir", planner.SNAPSHOTS], timeout=600)
        if done.rc:
            raise K3sError(
                f"etcd can't be copied, so nothing was upgraded: {' '.join((done.err or done.out).split()[-30:])}. "
                "Mend: the server must run for that; see journalctl -u k3s"
            )
    else:
        copy_sqlite(planner.SQLITE, f"{planner.SNAPSHOTS}/state-{version}.db")
    copies = sorted((f"{planner.SNAPSHOTS}/{name}" for name in os.listdir(planner.SNAPSHOTS)), key=os.path.getmtime)
    for path in copies[:-SNAPSHOTS_KEPT]:
        remove_file(path)


def copy_sqlite(source: str, target: str) -> None:
    """Copy a database in use, by SQLite's own backup, whole or not at all (K3sError)."""
    draft = f"{target}.new"
    remove_file(draft)
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with contextlib.ExitStack() as stack:
            now = sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)
            copy = sqlite3.connect(draft)
            stack.callback(now.close)
            stack.callback(copy.close)
            now.backup(copy)
            (said,) = copy.execute("PRAGMA quick_check").fetchone()
        if said != "ok":
            raise K3sError(f"the copy of {source} is damaged ({said}), so nothing was upgraded. Mend: look at the disk")
        os.rename(draft, target)
    except (sqlite3.Error, OSError) as error:
        raise K3sError(
            f"{source} can't be copied, so nothing was upgraded: {error}. Mend: make room, or mend it"
        ) from None
    finally:
        remove_file(draft)


# --- taking away -----------------------------------------------------------------------------------------------------


def end_pods() -> None:
    """End all pods, their mounts, their network and its rules. Nothing of a tailnet is touched."""
    doomed = set(shims())
    parents = dict(_parents())
    while more := {pid for pid, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(True for _pid in shims()) and time.monotonic() < deadline:
        time.sleep(0.1)
    points = [line.split()[4] for line in (read_text("/proc/self/mountinfo") or "").splitlines()]
    for point in sorted((point for point in points if point.startswith(MOUNTS)), reverse=True):
        run(["umount", "--force", "--lazy", point])
    for path in glob.glob("/run/netns/cni-*"):
        run(["ip", "netns", "delete", os.path.basename(path)])
    bridged = [os.path.basename(path) for path in glob.glob("/sys/class/net/cni0/brif/*")]
    for name in (*bridged, *INTERFACES):
        if os.path.exists(f"/sys/class/net/{name}"):
            run(["ip", "link", "delete", name])
    for program in ("iptables", "ip6tables"):
        _clear_rules(program)


def _parents() -> Iterator[tuple[int, int]]:
    for path in glob.iglob("/proc/[0-9]*/stat"):
        fields = (read_text(path) or "").rpartition(")")[2].split()
        if fields:
            yield int(path.split("/")[2]), int(fields[1])


def own_rules(saved: str) -> bool:
    """Return whether rules as iptables-save prints them have any of k3s'."""
    return any(map(_is_own_rule, saved.splitlines()))


def _is_own_rule(line: str) -> bool:
    return "KUBE-" in line or "CNI-" in line or "flannel" in line.lower()


def _clear_rules(program: str) -> None:
    saved = run([f"{program}-save"])
    if saved.rc == 0 and own_rules(saved.out):
        rest = "".join(f"{line}\n" for line in saved.out.splitlines() if not _is_own_rule(line))
        run([f"{program}-restore"], stdin=rest)


def is_others(path: str) -> bool:
    """Return whether a file in k3s' directories is somebody else's: images, manifests, and data of volumes."""
    for folder in (planner.IMAGES, planner.MANIFESTS, f"{planner.DATA}/storage"):
        if path.startswith(f"{folder}/"):
            name = path[len(folder) + 1 :]
            if folder == planner.IMAGES:
                return not re.fullmatch(r"(k3s-airgap-images-.*|\.cache\.json)", name)
            return folder != planner.MANIFESTS or not OWN_MANIFESTS.fullmatch(name)
    return False


def remove_tree(top: str) -> None:
    """Remove a directory with all that is k3s' in it; no mount is entered, no link followed, what is others' stays."""
    for entry in list(os.scandir(top)):
        if entry.is_dir(follow_symlinks=False):
            if not os.path.ismount(entry.path):
                remove_tree(entry.path)
        elif not is_others(entry.path):
            os.unlink(entry.path)
    with contextlib.suppress(OSError):
        os.rmdir(top)
