# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find a Docker engine; as root on Debian or Ubuntu install and start the distribution's where there is none."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .docker import LabError, Say, last_lines, one_at_a_time

#: Where an engine that was started by hand writes.
DOCKERD_LOG = Path("/var/log/labrack-dockerd.log")
#: Seconds until a started engine must answer.
START_TIMEOUT = 60.0


class EngineError(LabError):
    """No Docker engine can be used; the message says what is missing and the command that mends it."""


@dataclass(frozen=True)
class Host:
    """What the decision needs to know about this machine, while no engine answers."""

    root: bool
    #: ``ID`` and ``ID_LIKE`` of os-release.
    distributions: tuple[str, ...]
    #: ``docker`` is on ``PATH``.
    client: bool
    #: ``dockerd`` is on ``PATH``.
    engine: bool
    #: A dockerd process runs.
    running: bool
    #: systemd is the init system.
    systemd: bool
    #: What the client said, or "" without one.
    error: str = ""
    #: ``DOCKER_HOST``, or "".
    docker_host: str = ""


@dataclass(frozen=True)
class Plan:
    """What makes an engine answer."""

    #: Install the packages first.
    install: bool
    #: Start it with systemctl, not by hand.
    systemd: bool


def decide(host: Host) -> Plan:
    """Plan how to get an engine on a host where none answers.

    Raises :class:`EngineError` where nothing can, or nothing should, be done without the user.
    """
    if host.docker_host:
        raise EngineError(
            f"No Docker engine answers at DOCKER_HOST={host.docker_host}: {host.error}. "
            "Mend that address, or run `unset DOCKER_HOST` to use this machine's own engine."
        )
    if "permission denied" in host.error.lower():
        raise EngineError(
            "This user may not talk to the Docker engine. Run `sudo usermod -aG docker $USER`, then log in again."
        )
    if host.running:
        raise EngineError(
            f"A Docker engine runs but does not answer: {host.error}. Look at `sudo journalctl -u docker -n 50`, "
            "then run `sudo systemctl restart docker`."
        )
    if not set(host.distributions) & {"debian", "ubuntu"}:
        raise EngineError(
            "No Docker engine answers, and it can be installed for you on Debian and Ubuntu only. "
            "Install Docker Engine from https://docs.docker.com/engine/install/ and start it."
        )
    installed = host.client and host.engine
    if not host.root:
        mend = (
            "sudo systemctl enable --now docker"
            if installed
            else "sudo apt-get install docker.io && sudo usermod -aG docker $USER"
        )
        what = "does not run" if installed else "is not installed"
        raise EngineError(f"The Docker engine {what}. Run `{mend}`, then log in again; or run this command as root.")
    return Plan(install=not installed, systemd=host.systemd)


def answers() -> str | None:
    """None when a Docker engine answers, else what the client said ("" without a client)."""
    if shutil.which("docker") is None:
        return ""
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        return "no answer within 20 s"
    return None if done.returncode == 0 else last_lines(done.stderr, 1)


def os_release() -> dict[str, str]:
    """os-release as a mapping; empty on a system that has none."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def observe(error: str) -> Host:
    """Read this machine; ``error`` is what :func:`answers` gave."""
    release = os_release()
    return Host(
        root=os.geteuid() == 0,
        distributions=(release.get("ID", ""), *release.get("ID_LIKE", "").split()),
        client=shutil.which("docker") is not None,
        engine=shutil.which("dockerd") is not None,
        running=_dockerd_runs(),
        systemd=Path("/run/systemd/system").is_dir(),
        error=error,
        docker_host=os.environ.get("DOCKER_HOST", ""),
    )


def ensure_engine(say: Say, log: Path = DOCKERD_LOG) -> None:
    """Return when a Docker engine answers.

    Installs and starts the distribution's where that is possible; ``log`` takes the output of an engine that is
    started without systemd. Raises :class:`EngineError` otherwise. An engine is never started beside a running one:
    the second would take the first one's bridge away.
    """
    if answers() is None:
        return
    with one_at_a_time("engine"):
        error = answers()
        if error is None:
            return
        plan = decide(observe(error))
        if plan.install:
            say("No Docker engine here: installing the distribution's (docker.io)")
            _install()
        if not _dockerd_runs():
            say("Starting the Docker engine")
            _start(plan.systemd, log)
        _await(log)


def apt_install(*packages: str) -> None:
    """Install Debian packages without their recommendations; the package lists are read again first.

    Raises :class:`LabError` with apt's last lines.
    """
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", *command], env=env, capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"apt-get {command[0]} failed: {last_lines(done.stderr or done.stdout)}")


def _install() -> None:
    apt_install("docker.io", "iptables")
    # Debian 13 and later ship the client in a package of its own, which docker.io only recommends.
    if shutil.which("docker") is None:
        apt_install("docker-cli")


def _dockerd_runs() -> bool:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == "dockerd":
                return True
        except OSError:
            continue
    return False


def _start(systemd: bool, log: Path) -> None:
    if systemd:
        done = subprocess.run(["systemctl", "enable", "--now", "docker"], capture_output=True, text=True)
        if done.returncode != 0:
            raise EngineError(f"systemctl could not start docker: {last_lines(done.stderr)}")
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        subprocess.Popen(
            ["dockerd"], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _await(log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while (error := answers()) is not None:
        if time.monotonic() > deadline:
            tail = last_lines(log.read_text(errors="replace")) if log.exists() else "`journalctl -u docker -n 50`"
            raise EngineError(f"The Docker engine was started but does not answer ({error}). Its log ends:\n{tail}")
        time.sleep(0.5)
