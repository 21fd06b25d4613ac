# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run a playbook through ansible-runner, and tell what goes on in plain words.

Nothing of a run stays on disk but its log, which is what ansible-playbook itself would have printed: ansible-runner's
artifacts, which name the environment and hold every task's result, live in a private directory until the run ends.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import shutil
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

from ansible_collections.labrack.infra.plugins.plugin_utils.run_record import STEERING, Watch, pending_of, task_line

from .progress import Step
from .shell import UserError, home

#: Events that end a task on a host, with the word for how it ended.
_ENDINGS = {
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
}
#: Actions that do nothing on a node, and are not shown.
_STEERING = ("assert", "include_tasks", "include_role", "set_fact", "validate_argument_spec")
#: What ansible-playbook asks for on a terminal: its options, and the prompt that they make.
_PROMPTS = (
    (("-k", "--ask-pass", "--connection-password"), "SSH password", r"^SSH password:\s*?$"),
    (("-K", "--ask-become-pass"), "BECOME password", r"^BECOME password.*:\s*?$"),
    (("-J", "--ask-vault-pass", "--ask-vault-password"), "Vault password", r"^Vault password.*:\s*?$"),
)


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
class TaskResult:
    """How a task ended on a host; one that was skipped or does nothing on a node has none.

    ``role`` is without the collection, "" outside of roles. ``ending`` is ok, changed, failed, unreachable, or done
    where no_log hides whether it changed anything. ``changes`` and ``pending`` are what a labrack module says, each
    with subject, summary and disruption; ``diff`` has texts ``header``, ``before`` and ``after``; ``drains`` names the
    nodes whose jobs would have to end first; ``warnings`` are those of the module but for what is pending. ``seconds``
    is how long it took on this host.
    """

    host: str
    role: str
    task: str
    action: str
    ending: str
    changes: tuple[Mapping[str, str], ...] = ()
    pending: tuple[Mapping[str, str], ...] = ()
    diff: tuple[Mapping[str, str], ...] = ()
    drains: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a playbook did."""

    #: Changed tasks of each host.
    changed: Mapping[str, int]
    #: Tasks that ran on each host.
    ran: Mapping[str, int]
    tasks: tuple[TaskResult, ...] = ()
    #: Empty but for a run that tolerates failures.
    failures: tuple[Failure, ...] = ()
    #: Hosts that did not answer.
    unreachable: tuple[str, ...] = ()
    #: Seconds of each role, in the order of the first task.
    roles: Mapping[str, float] = field(default_factory=dict)


def command(
    playbook: str,
    inventory: Sequence[Path],
    tags: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    *,
    check: bool = False,
    diff: bool = False,
    limit: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> list[str]:
    """Return the command line of :func:`run_playbook`, as one would type it where ansible.cfg is found."""
    options = _options(tags, variables, check, diff, limit, arguments)
    sources = [word for path in inventory for word in ("-i", str(path))]
    return ["ansible-playbook", *options, *sources, playbook]


def printed(argv: Sequence[str]) -> str:
    """Return a line for a shell that runs :func:`command`'s words as labrack would, from any directory."""
    own = Path(sys.executable).with_name(argv[0])
    program = str(own) if own.exists() and shutil.which(argv[0]) != str(own) else argv[0]
    config = [] if Path.cwd() == home() else [f"ANSIBLE_CONFIG={shlex.quote(str(home() / 'ansible.cfg'))}"]
    return " ".join([*config, shlex.join([program, *argv[1:]])])


def _options(
    tags: Sequence[str],
    variables: Mapping[str, str] | None,
    check: bool,
    diff: bool,
    limit: Sequence[str],
    arguments: Sequence[str],
) -> list[str]:
    found = [option for option, wanted in (("--check", check), ("--diff", diff)) if wanted]
    found += ["--tags", ",".join(tags)] if tags else []
    found += ["--limit", ",".join(limit)] if limit else []
    # as JSON, since key=value is split at blanks
    found += ["-e", json.dumps(dict(variables))] if variables else []
    return [*found, *arguments]


def answers(arguments: Sequence[str]) -> dict[str, str]:
    """Ask for the passwords that ``--ask-vault-pass`` and the like in ``arguments`` mean, once for several runs.

    Returns the answer to each prompt, for :func:`run_playbook`. UserError where one would have to be asked and there is
    no terminal.
    """
    found: dict[str, str] = {}
    for options, words, prompt in _PROMPTS:
        asked = [one for one in arguments if one in options]
        if asked and not sys.stdin.isatty():
            raise UserError(
                f"{asked[0]} asks for a password, and there is no terminal to ask on. Name a file with "
                "--vault-password-file, --become-password-file or --connection-password-file instead."
            )
        if asked:
            found[prompt] = getpass.getpass(f"{words}: ")
    return found


def run_playbook(
    playbook: str,
    inventory: Sequence[Path],
    log: Path,
    step: Step,
    tags: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    *,
    check: bool = False,
    diff: bool = False,
    limit: Sequence[str] = (),
    arguments: Sequence[str] = (),
    tolerate: bool = False,
    answers: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a playbook, named by its FQCN or path, with the project's own ansible.cfg; show its progress in ``step``.

    ``tags`` are those to run, all if there are none; ``limit`` patterns of hosts. ``variables`` are extra ones, and no
    secrets, as they are on the command line. ``arguments`` are further ones of ansible-playbook, ``answers`` those of
    :func:`answers`. ``log`` is written anew. Raises :class:`RunError` when a task or the playbook fails, and
    KeyboardInterrupt, after ansible-playbook has ended, when the user stops it. With ``tolerate`` the failures of
    tasks stand in the outcome; a playbook that ran no task at all still raises.
    """
    environment = {
        "ANSIBLE_CONFIG": str(home() / "ansible.cfg"),
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
            # where it runs: files among the arguments are named from here
            project_dir=str(Path.cwd()),
            playbook=playbook,
            inventory=[str(path) for path in inventory],
            cmdline=shlex.join(_options(tags, variables, check, diff, limit, arguments)) or None,
            passwords=dict(answers or {}),
            envvars=environment,
            event_handler=events,
            cancel_callback=interrupted.is_set,
            quiet=True,
            suppress_env_files=True,
        )
    if interrupted.is_set():
        raise KeyboardInterrupt
    if runner.rc != 0:
        failures = events.failures or [_unexplained(playbook, log)]
        if not (tolerate and events.failures):
            raise RunError(failures, log)
    return events.outcome()


@dataclass
class Events:
    """Takes ansible-runner's events: keeps the log, shows progress, and remembers what failed and changed."""

    step: Step
    log: TextIO
    failures: list[Failure] = field(default_factory=list)
    changed: dict[str, int] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    tasks: list[TaskResult] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    _watch: Watch = field(default_factory=Watch)
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
            self._watch.start(data.get("role") or "", self._task, self._started)
            self._steering = data.get("task_action", "").rpartition(".")[2] in _STEERING
            if not self._steering:
                self.step.doing(self._task)
        elif kind == "runner_on_start" and not self._steering:
            self.step.node(data["host"], data["task"], self.ran.get(data["host"], 0))
        elif kind in _ENDINGS:
            self._end(_ENDINGS[kind], data)
        elif kind == "playbook_on_stats":
            self._finish_task()
            self._watch.stop(time.monotonic())
            self.changed = {host: data.get("changed", {}).get(host, 0) for host in data.get("processed", {})}
        return False

    def outcome(self) -> Outcome:
        """Return what was seen."""
        return Outcome(
            self.changed,
            self.ran,
            tuple(self.tasks),
            tuple(self.failures),
            tuple(dict.fromkeys(self.unreachable)),
            self._watch.roles,
        )

    def _end(self, ending: str, data: Mapping[str, Any]) -> None:
        host, result = data["host"], data.get("res", {})
        if ending in ("failed", "unreachable") and not data.get("ignore_errors"):
            self.failures.append(Failure(host, data["task"], message(result)))
            if ending == "unreachable":
                self.unreachable.append(host)
        if self._steering:
            return
        if ending == "ok":
            # a task with no_log does not say whether it changed anything
            ending = "done" if "censored" in result else "changed" if result.get("changed") else "ok"
        self._ended[host] = ending
        if ending != "skipped":
            self.ran[host] = self.ran.get(host, 0) + 1
            if data.get("task_action", "").rpartition(".")[2] not in STEERING:
                self.tasks.append(_task_result(data, ending))
        self.step.node(host, "", self.ran.get(host, 0))

    def _finish_task(self) -> None:
        """Tell how the current task ended, unless it was skipped everywhere."""
        line = task_line(self._task, self._ended)
        self._ended = {}
        if line:
            self.step.finished(line, time.monotonic() - self._started)


def _task_result(data: Mapping[str, Any], ending: str) -> TaskResult:
    result = data.get("res", {})
    changes = result.get("changes")
    drains = result.get("drain")
    return TaskResult(
        data["host"],
        (data.get("role") or "").rpartition(".")[2],
        data["task"],
        data.get("task_action", ""),
        ending,
        tuple(one for one in changes if isinstance(one, dict) and "subject" in one)
        if isinstance(changes, list)
        else (),
        tuple(pending_of(result)),
        tuple(_diffs(result)),
        tuple(map(str, drains)) if isinstance(drains, list) else (),
        tuple(one for one in map(str, result.get("warnings") or ()) if not one.startswith("pending until ")),
        float(data.get("duration") or 0.0),
    )


def _diffs(result: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    """Yield the differences in a result, of its items too, which a module gives as one or a list."""
    for item in result.get("results") or ():
        if isinstance(item, dict):
            yield from _diffs(item)
    found = result.get("diff")
    for one in found if isinstance(found, list) else [found]:
        if not isinstance(one, dict):
            continue
        if "prepared" in one:
            yield {"header": "", "before": "", "after": str(one["prepared"])}
        elif one.get("before", "") != one.get("after", ""):
            texts = {key: one[key] if isinstance(one.get(key), str) else _json(one.get(key)) for key in _SIDES}
            yield {"header": str(one.get("before_header") or one.get("after_header") or ""), **texts}


_SIDES = ("before", "after")


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, indent=2, sort_keys=True)


def message(result: Mapping[str, Any]) -> str:
    """What a failed task's result says: its message, those of its failed items, and the end of its error output."""
    failed_items = [item for item in result.get("results", []) if item.get("failed")]
    if failed_items:
        return "\n".join(dict.fromkeys(message(item) for item in failed_items))
    parts = [str(result.get("msg") or result.get("censored") or "no message")]
    errors = str(result.get("module_stderr") or result.get("stderr") or "").strip()
    parts += errors.splitlines()[-5:]
    return "\n".join(parts).strip()


#: What a cause means for who reads it; the first that fits counts.
_ADVICE = (
    (
        r"Missing sudo password|sudo: a password is required|Incorrect sudo password",
        "sudo on {host} wants a password: give it with `-- --ask-become-pass`, or let the user of ansible_user use "
        "sudo without one.",
    ),
    (
        r"no vault secrets found|vault password|Decryption failed",
        "the inventory has vaulted values: give the password with `-- --ask-vault-pass`, or its file with "
        "`-- --vault-password-file FILE` or in $ANSIBLE_VAULT_PASSWORD_FILE.",
    ),
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{host} shows another ssh key than the known one. If it was installed anew, look at its fingerprint there "
        "(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), forget the old one with ssh-keygen -R, and connect once.",
    ),
    (
        r"Permission denied",
        "ssh to {host} is refused: see that the user of ansible_user is there and has your key in authorized_keys.",
    ),
    (
        r"Could not resolve hostname",
        "nothing knows the address of {host}: write it into the inventory as ansible_host.",
    ),
    (
        r"[Nn]o space left",
        "a disk of {host} is full: make room there, then run it again.",
    ),
    (
        r"Could not get lock|is another process using it|dpkg frontend lock",
        "another program installs packages on {host}: wait until it has ended, then run it again.",
    ),
)


def advice(cause: str, host: str, unreachable: bool = False) -> str:
    """Return what to do next about a failure on a host, in a sentence or two."""
    for pattern, words in _ADVICE:
        if re.search(pattern, cause):
            return words.format(host=host)
    if unreachable:
        return f"see that {host} is on and that ssh reaches it. It gets its changes in the next run after that."
    return "mend the cause, then run it again: what was done stays, and the rest is made up for."


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
