# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which container runtimes a node has, how Docker is set up, and which other daemons would hand out its GPUs.

Read-only, standard library only, runs no command, never raises: an asked daemon could hang, files can't.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text
from ansible_collections.labrack.infra.plugins.module_utils.systemd import is_active

#: The packages that have a runtime, the first installed of a kind counts.
DOCKER_PACKAGES = ("docker-ce", "docker.io")
CONTAINERD_PACKAGES = ("containerd.io", "containerd")
TOOLKIT_PACKAGE = "nvidia-container-toolkit"
RUNTIME_PACKAGES = (*DOCKER_PACKAGES, *CONTAINERD_PACKAGES, TOOLKIT_PACKAGE, "podman")

DAEMON_JSON = "etc/docker/daemon.json"
SNAP_DAEMON_JSON = "var/snap/docker/current/config/daemon.json"
PID_FILES = ("run/docker.pid", "run/snap.docker/docker.pid")
#: Where containerd keeps a directory for each running container of Docker's: its own daemon's, one that dockerd starts.
TASKS = (
    "run/containerd/io.containerd.runtime.v2.task/moby",
    "run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby",
)

#: Units that hand out a node's GPUs by themselves, and what they are.
SCHEDULERS = {
    "dstack-shim": "dstack runs jobs in Docker and gives them GPUs",
    "k3s": "Kubernetes gives GPUs to pods",
    "k3s-agent": "Kubernetes gives GPUs to pods",
    "kubelet": "Kubernetes gives GPUs to pods",
    "nomad": "Nomad gives GPUs to its tasks",
    "rke2-agent": "Kubernetes gives GPUs to pods",
    "rke2-server": "Kubernetes gives GPUs to pods",
    "slurmd": "Slurm gives GPUs to jobs",
}
#: An enabled unit is linked from one of these.
_WANTS = ("etc/systemd/system/*.wants", "etc/systemd/system/*.requires")


def observe_runtime(root: Path, installed: Mapping[str, str]) -> dict[str, Any]:
    """Return Docker, containerd, NVIDIA's container toolkit and podman; ``installed`` are packages with versions."""
    return {
        "docker": docker(root, installed),
        "containerd": _first(installed, *CONTAINERD_PACKAGES)[1],
        "toolkit": installed.get(TOOLKIT_PACKAGE),
        "podman": installed.get("podman"),
    }


def docker(root: Path, installed: Mapping[str, str]) -> dict[str, Any]:
    """Return Docker's package and version, whether it runs, what daemon.json asks for, and the running containers.

    ``live_restore`` and ``runtimes`` are those of the file: a daemon that was not reloaded since may differ. They are
    None and [] for a file that is no JSON object. ``containers`` is None where Docker was never started.
    """
    package, version = _first(installed, *DOCKER_PACKAGES)
    config_file = root / DAEMON_JSON
    if package is None and snap_docker(root):
        package = "snap"
        found = re.search(
            r"^version: *['\"]?([^'\"\s]+)", read_text(root / "snap/docker/current/meta/snap.yaml") or "", re.M
        )
        version = found.group(1) if found else None
        config_file = root / SNAP_DAEMON_JSON
    config = _json_object(read_text(config_file))
    runtimes = config.get("runtimes") if config else None
    return {
        "version": version,
        "package": package,
        "active": any(_is_dockerd(root, read_text(root / name)) for name in PID_FILES),
        "live_restore": None if config is None or package is None else config.get("live-restore") is True,
        "runtimes": sorted(runtimes) if isinstance(runtimes, dict) else [],
        "containers": _containers(root),
    }


def observe_conflicts(root: Path = Path("/")) -> list[dict[str, str]]:
    """Return ``what`` is there that could fight over GPUs or configuration, and ``why``, by name.

    A lab's own orchestrator is among them: which one is meant to be there is the reader's to know. A unit counts when
    it runs or is enabled.
    """
    found = []
    if snap_docker(root):
        found.append({"what": "snap docker", "why": "confined: it can't use NVIDIA's container toolkit as installed"})
    for unit, why in sorted(SCHEDULERS.items()):
        states = []
        if any(path for wants in _WANTS for path in root.glob(f"{wants}/{unit}.service")):
            states.append("enabled")
        if is_active(unit, root):
            states.append("running")
        if states:
            found.append({"what": unit, "why": f"{why} ({unit}.service is {' and '.join(states)})"})
    return found


def snap_docker(root: Path = Path("/")) -> bool:
    """Return whether snap's Docker is installed."""
    return (root / "snap/docker/current").is_dir()


def _first(installed: Mapping[str, str], *names: str) -> tuple[str | None, str | None]:
    return next(((name, installed[name]) for name in names if name in installed), (None, None))


def _json_object(text: str | None) -> dict[str, Any] | None:
    """The object in a file; {} for one that is missing or empty, which Docker takes for no settings."""
    if text is None or not text.strip():
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_dockerd(root: Path, pid: str | None) -> bool:
    pid = (pid or "").strip()
    # the file stays behind after a crash, and its number may be another process by now
    return pid.isdigit() and (read_text(root / "proc" / pid / "comm") or "").strip() == "dockerd"


def _containers(root: Path) -> int | None:
    """The number of running containers; None where neither place is there or may be read."""
    found = None
    for name in TASKS:
        try:
            found = (found or 0) + sum(1 for _path in (root / name).iterdir())
        except OSError:
            continue
    return found
