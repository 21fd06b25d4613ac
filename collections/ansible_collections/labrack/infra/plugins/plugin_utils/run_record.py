# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the callbacks keep of a run: how long roles and tasks took, what hosts changed, and the file with all runs.

Runs on the controller only. No Ansible import, so that :mod:`labrack.history` and tests can use it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SCHEMA = 1
#: In the state directory of a lab.
FILE = "history.jsonl"
#: A longer file loses its older half.
MOST_BYTES = 8 * 1024 * 1024
#: Characters of a failure's message that are kept.
MOST_WORDS = 1000
#: Actions that do nothing on a node.
STEERING = frozenset(("assert", "debug", "include_role", "include_tasks", "lab_check", "set_fact"))


def state_home() -> Path:
    """Return the directory of labrack's own files about labs: ``~/.local/state/labrack`` unless XDG says otherwise."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "labrack"


def lab_folder(inventory: Sequence[Path]) -> Path:
    """Return where labrack keeps what it knows of the lab with this inventory (absolute paths). It is not made."""
    name = inventory[0].stem if inventory[0].is_file() or inventory[0].name != "inventory" else inventory[0].parent.name
    digest = hashlib.sha256(os.fsencode("\0".join(map(str, inventory)))).hexdigest()[:8]
    return state_home() / f"{name}-{digest}"


def commit_of(folder: Path) -> str:
    """Return the commit that is checked out in a folder, with ``-dirty`` where files differ from it; "" without one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def timestamp(moment: float) -> str:
    """Return seconds of the epoch as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(int(moment), timezone.utc).isoformat().replace("+00:00", "Z")


class Watch:
    """Adds up how long tasks took, from a task's start to the next one's; times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        #: Seconds of each role, in the order of the first task.
        self.roles: dict[str, float] = {}
        #: Seconds of each task, by role ("" outside roles) and name.
        self.tasks: dict[tuple[str, str], float] = {}
        self._now: tuple[str, str] | None = None
        self._since = 0.0

    def start(self, role: str, task: str, now: float) -> None:
        """Note that a task begins, and with it ends the one before."""
        self.stop(now)
        self._now, self._since = (role.rpartition(".")[2], task), now

    def stop(self, now: float) -> None:
        """Note that the task ends."""
        if self._now is None:
            return
        role, _task = self._now
        taken = now - self._since
        self.tasks[self._now] = self.tasks.get(self._now, 0.0) + taken
        if role:
            self.roles[role] = self.roles.get(role, 0.0) + taken
        self._now = None


def pending_of(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what a module's result says to wait for consent; none in that of any other module."""
    found = result.get("pending")
    keys = ("subject", "summary", "disruption")
    if not isinstance(found, list):
        return []
    return [{key: str(one[key]) for key in keys} for one in found if isinstance(one, Mapping) and {*keys} <= {*one}]


class Hosts:
    """What a run did to each host, as it stands in the history."""

    def __init__(self) -> None:
        self.hosts: dict[str, dict[str, Any]] = {}

    def of(self, host: str) -> dict[str, Any]:
        """Return a host's part."""
        return self.hosts.setdefault(host, {"changed": 0, "pending": [], "failed": "", "unreachable": False})

    def took(self, host: str, result: Mapping[str, Any]) -> None:
        """Note what a task that ended well left pending."""
        pending = self.of(host)["pending"]
        pending += [one for one in pending_of(result) if one not in pending]

    def failed(self, host: str, task: str, message: str, unreachable: bool = False) -> None:
        """Note why a host is out of the run; the first reason stays."""
        entry = self.of(host)
        entry["failed"] = entry["failed"] or f"{task}: {message}"[:MOST_WORDS]
        entry["unreachable"] = entry["unreachable"] or unreachable

    def failed_result(self, result: Any, unreachable: bool = False) -> None:
        """Note why a host is out of the run, from what Ansible gives to a callback; nothing that no_log hides."""
        words = result.result.get("msg") or result.result.get("censored") or "no message"
        self.failed(result.host.get_name(), task_name(result.task), str(words), unreachable)


def role_of(task: Any) -> str:
    """Return the name of the role of one of Ansible's tasks, "" outside of roles."""
    return task._role.get_name() if task._role else ""


def task_name(task: Any) -> str:
    """Return the name of one of Ansible's tasks, without that of its role."""
    return str(task.name or task.action)


def task_line(task: str, ended: Mapping[str, str]) -> str:
    """Return how a task ended on the hosts, "" where it was skipped on all."""
    by_ending: dict[str, list[str]] = {}
    for host, ending in sorted(ended.items()):
        if ending != "skipped":
            by_ending.setdefault(ending, []).append(host)
    endings = "; ".join(f"{ending} on {', '.join(hosts)}" for ending, hosts in sorted(by_ending.items()))
    return f"{task}: {endings}" if endings else ""


def host_lines(host: str, entry: Mapping[str, Any]) -> list[str]:
    """Return what a run did to a host, from its part of the history."""
    changed = entry["changed"]
    lines = [f"{host}: {changed} task{'' if changed == 1 else 's'} changed" if changed else f"{host}: unchanged"]
    if entry["failed"]:
        lines = [f"{host}: {'does not answer' if entry['unreachable'] else 'failed'}"]
        lines += [f"    {line}" for line in entry["failed"].splitlines()]
    lines += [f"    pending '{one['disruption']}': {one['subject']}: {one['summary']}" for one in entry["pending"]]
    return lines


def timing_lines(watch: Watch, most: int) -> list[str]:
    """Return the seconds of each role, and of as many of the longest tasks, as lines."""
    roles = [f"{seconds:8.1f} s  {role}" for role, seconds in watch.roles.items()]
    longest = sorted(watch.tasks.items(), key=lambda one: -one[1])[:most]
    tasks = [f"{seconds:8.1f} s  {f'{role}: ' if role else ''}{task}" for (role, task), seconds in longest]
    return ["Roles", *roles, "Longest tasks", *tasks] if roles else ["Longest tasks", *tasks]


def append(file: Path, run: Mapping[str, Any]) -> None:
    """Add a run to the history, which is readable by its owner alone; OSError where that can't be."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = json.dumps(run, sort_keys=True) + "\n"
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(handle, "r+", encoding="utf-8") as stream:
        # two runs may end at one moment
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            # what a killed run left of its line
            line = f"\n{line}"
        if size > MOST_BYTES:
            stream.seek(0)
            lines = stream.readlines()
            os.ftruncate(handle, 0)
            line = "".join(lines[len(lines) // 2 :]) + line.lstrip("\n")
        stream.write(line)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the runs in a history, the newest last; without damaged lines, and none where there is no file."""
    try:
        lines: Iterable[str] = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    runs = []
    for line in lines:
        try:
            run = json.loads(line)
        except ValueError:
            continue
        if isinstance(run, dict) and run.get("schema") == SCHEMA:
            runs.append(run)
    return runs
