# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Observing, planning and running systemd services. Standard library only, no Ansible import."""

from __future__ import annotations

import os
import re
import string
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, remove_file, run, write_file

#: Where units of ours are.
UNITS = "/etc/systemd/system/"
#: What systemd takes into a unit's name as it is.
_PLAIN = frozenset(string.ascii_letters + string.digits + ":_.")
#: systemd.exec(5): a service that needs no privilege, no device and nobody's home, and writes nowhere.
_SANDBOX: Mapping[str, str] = {
    "NoNewPrivileges": "true",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ReadWritePaths": "",
    "ProtectHome": "true",
    "PrivateTmp": "true",
    "PrivateDevices": "true",
    "ProtectKernelModules": "true",
    "ProtectKernelTunables": "true",
    "ProtectKernelLogs": "true",
    "ProtectControlGroups": "true",
    "ProtectClock": "true",
    "ProtectHostname": "true",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces": "true",
    "RestrictRealtime": "true",
    "RestrictSUIDSGID": "true",
    "LockPersonality": "true",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service",
}


@dataclass(frozen=True)
class ServiceState:
    """A unit as it is: installed, active, enabled, and since when its main process runs (Unix time, 0 for none)."""

    installed: bool = False
    active: bool = False
    enabled: bool = False
    since: float = 0.0


class ServiceError(RuntimeError):
    """A service that did not do as it was told; the message holds systemd's words and the log's last lines."""


def observe_services(units: list[str]) -> dict[str, ServiceState]:
    """Return the state of each unit by name, by one call of ``systemctl show``; a name without suffix is a service."""
    if not units:
        return {}
    properties = "--property=Id,LoadState,ActiveState,UnitFileState,MainPID"
    done = run(["systemctl", "show", properties, *[full_name(unit) for unit in units]])
    states = {unit: ServiceState() for unit in units}
    for unit, block in zip(units, done.out.strip().split("\n\n")):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        states[unit] = ServiceState(
            installed=values.get("LoadState") in ("loaded", "masked"),
            active=values.get("ActiveState") in ("active", "reloading"),
            enabled=values.get("UnitFileState") in ("enabled", "enabled-runtime", "static", "generated"),
            since=_started(values.get("MainPID", "0")),
        )
    return states


def is_active(unit: str, root: Path = Path("/")) -> bool:
    """Return whether a service runs, without asking systemd: it keeps a link for each unit that is started."""
    return (root / f"run/systemd/units/invocation:{unit}.service").is_symlink()


def full_name(unit: str) -> str:
    """Return a unit's name with its suffix."""
    return unit if "." in unit else f"{unit}.service"


def sandbox(**other: str | None) -> str:
    """Return the lines by which a service of ours is kept in; ``other`` gives its own values, None leaves one out."""
    lines = {**_SANDBOX, **other}
    return "".join(f"{key}={value}\n" for key, value in lines.items() if value is not None)


def quoted(path: str) -> str:
    """Return a path as a unit file takes it (systemd.unit(5), Specifiers; systemd.syntax(7), Quoting)."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if re.search(r"\s", text) else text


def unit_of_path(path: str, kind: str) -> str:
    """Return the name of the unit of a path, as ``systemd-escape --path --suffix=KIND`` prints it (systemd.unit(5))."""
    parts = [part for part in path.split("/") if part]
    name = "-".join(_escaped(part, first=place == 0) for place, part in enumerate(parts))
    return f"{name or '-'}.{kind}"


def _escaped(part: str, first: bool) -> str:
    escaped = "".join(chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in part.encode())
    return f"\\x2e{escaped[1:]}" if first and escaped.startswith(".") else escaped


def _started(pid: str) -> float:
    try:
        return os.stat(f"/proc/{int(pid)}").st_mtime if int(pid) else 0.0
    except (OSError, ValueError):
        return 0.0


def plan_service(unit: str, state: ServiceState, why_restart: str = "") -> list[Change]:
    """Plan that a unit is enabled and runs; ``why_restart`` asks for a restart of one that runs already.

    A unit whose package is not there yet will come enabled, as the policy of Debian and Ubuntu has it.
    """
    note_unit(unit, state)
    changes = []
    if state.installed and not state.enabled:
        changes.append(Change(f"service {unit}", "enabled at boot", step=("enable", unit)))
    if not state.active:
        changes.append(Change(f"service {unit}", "started", "restart", step=("restart", unit)))
    elif why_restart:
        changes.append(Change(f"service {unit}", f"restarted: {why_restart}", "restart", step=("restart", unit)))
    return changes


def note_unit(unit: str, state: ServiceState, runs: bool = True) -> None:
    """Note that a unit is managed which ``runs``, or is at least enabled, as far as it is so by now."""
    found = {"enabled": state.enabled, "active": state.active and runs}
    if state.installed and any(found.values()):
        managed.note("unit", full_name(unit), **{key: True for key, value in found.items() if value})


def act(verb: str, unit: str) -> None:
    """Run ``systemctl VERB UNIT``; ServiceError with the last log lines when it fails."""
    if verb in ("start", "restart"):
        # a unit that failed often has used up its start limit
        run(["systemctl", "reset-failed", full_name(unit)])
    if verb == "enable":
        # one that somebody has masked can't be enabled
        run(["systemctl", "unmask", full_name(unit)])
    done = run(["systemctl", verb, full_name(unit)])
    if done.rc:
        log = run(["journalctl", "--no-pager", "--lines=8", "--output=cat", f"--unit={full_name(unit)}"])
        raise ServiceError(f"systemctl {verb} {unit} failed: {done.err.strip()}; its log ends: {log.out.strip()}")


def daemon_reload() -> None:
    """Make systemd read changed unit files."""
    run(["systemctl", "daemon-reload"])


def wait_for(argv: list[str], text: str, name: str, seconds: float = 60.0) -> None:
    """Wait until a command succeeds and prints ``text``; ServiceError with its last words after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        done = run(argv, timeout=20)
        if done.rc == 0 and text in done.out:
            return
        if time.monotonic() > deadline:
            words = done.err.strip() or done.out.strip()
            raise ServiceError(
                f"{name} does not answer {seconds:g} s after its start: {words}; see journalctl -u {name}"
            )
        time.sleep(0.5)


def apply_steps(
    changes: Iterable[Change], files: Mapping[str, FileState | None], others: Mapping[str, Callable[..., None]]
) -> None:
    """Make changes in order: steps to write and remove ``files`` by path, those of ``others``, and systemctl's verbs.

    Changed units are read before systemd is told of any. With a timer that is disabled ends what it has started, which
    would write once more what is taken away after it.
    """
    unread = False
    for change in changes:
        verb, *words = change.step
        if verb in others:
            others[verb](*words)
        elif verb == "write":
            file = files[words[0]]
            if file is not None:
                write_file(words[0], file)
        elif verb == "remove":
            remove_file(words[0])
        else:
            if unread:
                daemon_reload()
                unread = False
            if verb == "disable":
                act("stop", *words)
                service = words[0].replace(".timer", ".service")
                if observe_services([service])[service].installed:
                    act("stop", service)
            act(verb, *words)
        unread |= verb in ("write", "remove") and words[0].startswith(UNITS)
    if unread:
        daemon_reload()
