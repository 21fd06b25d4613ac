# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run a playbook through ansible-runner, and tell what goes on in plain words.

Nothing of a run stays on disk but its log, which is what ansible-playbook itself would have printed: ansible-runner's
artifacts, which name the environment and hold every task's result, live in a private directory until the run ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import ansible_runner

from .lab import configuration
from .progress import Step
from .shell import home

#: Events that end a task on a host, with the word for how it ended.
_ENDINGS = {
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
}
#: Actions that do nothing on a node, and are not shown.
_STEERING = ("include_tasks", "include_role", "set_fact", "validate_argument_spec")


@dataclass(frozen=True)
class Failure:
    """A task that failed on a node."""

    node: str
    task: str
    message: str


class RunError(RuntimeError):
    """A playbook failed: what failed where, and the file that has the whole log."""

    def __init__(self, failures: Sequence[Failure], log: Path) -> None:
        self.failures = tuple(failures)
        self.log = log
        super().__init__("; ".join(f"{failure.node}: {failure.message}" for failure in failures))


@dataclass(frozen=True)
class Outcome:
    """What a playbook that succeeded did."""

    #: Changed tasks of each host.
    changed: Mapping[str, int]
    #: Tasks that ran on each host.
    ran: Mapping[str, int]


def run_playbook(
    playbook: str,
    inventory: Sequence[Path],
    log: Path,
    step: Step,
    tags: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a playbook, named by its FQCN or path, with the project's own ansible.cfg; show its progress in ``step``.

    ``tags`` are those to run, all if there are none. ``variables`` are extra ones, and no secrets, as they are on the
    command line. ``log`` is written anew. Raises :class:`RunError` when a task or the playbook fails, and
    KeyboardInterrupt, after ansible-playbook has ended, when the user stops it.
    """
    environment = {
        "ANSIBLE_CONFIG": str(configuration(inventory)),
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_NOCOLOR": "1",
        # ansible-runner switches it off where nobody says otherwise
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    with (
        tempfile.TemporaryDirectory(prefix="labrack-") as private,
        open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as output,
        _interrupt() as interrupted,
    ):
        # it looks for an interrupt as often as this, in seconds; its default is 5
        settings = Path(private) / "env/settings"
        settings.parent.mkdir()
        settings.write_text(json.dumps({"pexpect_timeout": 0.5}), encoding="utf-8")
        events = Events(step, output)
        runner = ansible_runner.run(
            private_data_dir=private,
            project_dir=str(home()),
            playbook=playbook,
            inventory=[str(path) for path in inventory],
            extravars=dict(variables or {}),
            tags=",".join(tags),
            envvars=environment,
            event_handler=events,
            cancel_callback=interrupted.is_set,
            quiet=True,
            suppress_env_files=True,
        )
    if interrupted.is_set():
        raise KeyboardInterrupt
    if runner.rc != 0:
        raise RunError(events.failures or [_unexplained(playbook, log)], log)
    return Outcome(events.changed, events.ran)


@dataclass
class Events:
    """Takes ansible-runner's events: keeps the log, shows progress, and remembers what failed and changed."""

    step: Step
    log: TextIO
    failures: list[Failure] = field(default_factory=list)
    changed: dict[str, int] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    _task: str = ""
    _steering: bool = False
    _started: float = 0.0
    #: How the current task ended on each host: as in :data:`_ENDINGS`, "changed" or "done".
    _ended: dict[str, str] = field(default_factory=dict)

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """Take one event. Returns False, by which ansible-runner does not store it."""
        if event.get("stdout"):
            self.log.write(f"{event['stdout']}\n")
            self.log.flush()
        kind, data = event["event"], event.get("event_data", {})
        if kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self._finish_task()
            self._task, self._started = data["task"], time.monotonic()
            self._steering = data.get("task_action", "").rpartition(".")[2] in _STEERING
            if not self._steering:
                self.step.doing(self._task)
        elif kind == "runner_on_start" and not self._steering:
            self.step.node(data["host"], data["task"], self.ran.get(data["host"], 0))
        elif kind in _ENDINGS:
            self._end(_ENDINGS[kind], data)
        elif kind == "playbook_on_stats":
            self._finish_task()
            self.changed = {host: data.get("changed", {}).get(host, 0) for host in data.get("processed", {})}
        return False

    def _end(self, ending: str, data: Mapping[str, Any]) -> None:
        host, result = data["host"], data.get("res", {})
        if ending in ("failed", "unreachable") and not data.get("ignore_errors"):
            self.failures.append(Failure(host, data["task"], message(result)))
        if self._steering:
            return
        if ending == "ok":
            # a task with no_log does not say whether it changed anything
            ending = "done" if "censored" in result else "changed" if result.get("changed") else "ok"
        self._ended[host] = ending
        if ending != "skipped":
            self.ran[host] = self.ran.get(host, 0) + 1
        self.step.node(host, "", self.ran.get(host, 0))

    def _finish_task(self) -> None:
        """Tell how the current task ended, unless it was skipped everywhere."""
        by_ending: dict[str, list[str]] = {}
        for host, ending in sorted(self._ended.items()):
            by_ending.setdefault(ending, []).append(host)
        self._ended = {}
        by_ending.pop("skipped", None)
        if by_ending:
            endings = "; ".join(f"{ending} on {', '.join(hosts)}" for ending, hosts in sorted(by_ending.items()))
            self.step.finished(f"{self._task}: {endings}", time.monotonic() - self._started)


def message(result: Mapping[str, Any]) -> str:
    """What a failed task's result says: its message, those of its failed items, and the end of its error output."""
    failed_items = [item for item in result.get("results", []) if item.get("failed")]
    if failed_items:
        return "\n".join(dict.fromkeys(message(item) for item in failed_items))
    parts = [str(result.get("msg") or result.get("censored") or "no message")]
    errors = str(result.get("module_stderr") or result.get("stderr") or "").strip()
    parts += errors.splitlines()[-5:]
    return "\n".join(parts).strip()


def _unexplained(playbook: str, log: Path) -> Failure:
    """The failure of a run that ended before any task did: the last lines that ansible-playbook printed."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return Failure("this machine", f"Read the playbook {playbook}", "\n".join(lines[-8:]) or "ansible-playbook failed")


@contextmanager
def _interrupt() -> Iterator[threading.Event]:
    """Turn an interrupt (Ctrl-C) or SIGTERM into an event while the block runs."""
    event = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: event.set()) for number in signals]
    try:
        yield event
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
