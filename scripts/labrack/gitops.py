# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One reconcile of a lab with its repository: fetch, verify, doctor, plan, apply, report.

The files that are applied are switched only after the commit was proved and nothing speaks against its inventory.
Every step may be killed at any moment: what a run goes by is written whole or not at all, and the next run starts from
there.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.labrack.infra.plugins.module_utils import maintenance_window
from ansible_collections.labrack.infra.plugins.module_utils.change import rank
from ansible_collections.labrack.infra.plugins.module_utils.doctor_judge import ERROR

from . import shell
from .gitops_config import Config
from .gitops_repository import KEPT, Denied, Repository
from .lab import Lab
from .progress import Progress, Step
from .shell import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

#: How a run ended, with the exit status.
RESULTS: Mapping[str, int] = {
    "in_sync": shell.OK,
    "applied": shell.OK,
    "pending": shell.OK,
    "failed": shell.FAILED,
    "broken": shell.FAILED,
    "denied": shell.DENIED,
    "busy": shell.BUSY,
    "waiting": shell.BUSY,
}
#: Those that count as success of the loop.
GOOD = ("in_sync", "applied", "pending")
#: Lines of the history, of which as many are kept at least.
HISTORY_LINES = 2000


@dataclass
class Failing:
    """Failures since the last success: how many, of what, and when the next try is due (Unix times)."""

    count: int = 0
    result: str = ""
    message: str = ""
    commit: str = ""
    since: float = 0.0
    until: float = 0.0


@dataclass
class State:
    """What is remembered from run to run.

    ``commit`` is the one whose files are laid out, ``seen`` the newest that was proved, ``hosts`` the commit that was
    last applied to each host, ``down`` the hosts that did not answer.
    """

    commit: str = ""
    seen: str = ""
    hosts: dict[str, str] = field(default_factory=dict)
    down: list[str] = field(default_factory=list)
    pending: int = 0
    last_run: float = 0.0
    last_success: float = 0.0
    failing: Failing = field(default_factory=Failing)
    #: The result and commit that people were last told of.
    told: list[str] = field(default_factory=list)

    @property
    def behind(self) -> list[str]:
        """Hosts that have not had the commit that is laid out."""
        return sorted(host for host, commit in self.hosts.items() if commit != self.commit)


@dataclass
class Report:
    """What one run did; the keys of a line of the history."""

    time: str = ""
    result: str = "failed"
    rc: int = shell.FAILED
    commit: str = ""
    message: str = ""
    signers: list[str] = field(default_factory=list)
    changed: int = 0
    #: Changes on hosts that had the commit already.
    drift: int = 0
    pending: int = 0
    down: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    plan_seconds: float = 0.0
    apply_seconds: float = 0.0


class Stop(RuntimeError):
    """Ends a run with a result of :data:`RESULTS` and words for it."""

    def __init__(self, result: str, message: str) -> None:
        self.result = result
        super().__init__(message)


def run(config: Config, progress: Progress, accept: str = "", now: float | None = None) -> Report:
    """Do one reconcile and report it; UserError where not even that can be done.

    ``accept`` is a full commit id that is taken though it does not follow the last one; it must be signed like others.
    """
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with _lock(config.state / "lock") as lock:
            return _Run(config, progress, lock, accept, time.time() if now is None else now).go()
    except Stop as stop:
        return Report(result=stop.result, rc=RESULTS[stop.result], message=str(stop))


@contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Hold the controller's lock, as long as this process and git's live; :class:`Stop` where another has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise Stop("busy", f"Another run goes on here: {who or 'it does not say who'}. Try again later.") from None
        os.ftruncate(handle, 0)
        started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        os.pwrite(handle, f"process {os.getpid()} of {getpass.getuser()}, since {started}\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)


class _Run:
    """One run, under the lock."""

    def __init__(self, config: Config, progress: Progress, lock: int, accept: str, now: float) -> None:
        self.config, self.progress, self.accept, self.now = config, progress, accept, now
        self.state = read_state(config.state)
        self.report = Report(time=datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"))
        folder = config.state / "repository.git"
        self.repository = Repository(config.repository, config.branch, folder, config.allowed_signers, lock)
        self.log = config.state / "log"
        self.log.mkdir(mode=0o700, exist_ok=True)
        _sweep(config.state)

    def go(self) -> Report:
        _prepare_environment(self.config)
        try:
            self._reconcile()
        except Stop as stop:
            self.report.result, self.report.message = stop.result, str(stop)
        except Denied as error:
            self.report.result, self.report.message = "denied", str(error)
        except UserError as error:
            self.report.result, self.report.message = "failed", str(error)
        except RuntimeError as error:
            from .run import RunError

            if not isinstance(error, RunError):
                raise
            words = [f"{failure.node}: {failure.task}: {failure.message}" for failure in error.failures]
            self.report.result, self.report.message = "failed", "\n".join([*words, f"The whole log: {error.log}"])
        self._finish()
        return self.report

    def _reconcile(self) -> None:
        with self.progress.step("Fetch") as step:
            new = self.repository.fetch()
            step.summary = f"{new[:12]} {self.repository.subject(new)}"
        self._take(new)
        self._wait_for_retry(new)
        if new != self.state.commit:
            self._switch(new)
        applied = self.config.state / "applied"
        # also where it is there already: somebody may have changed the files, or a run was killed
        self.repository.lay_out(self.state.commit, applied)
        self.report.commit = self.state.commit
        lab = _load([applied / path for path in self.config.inventory])
        self._converge(lab)

    def _take(self, new: str) -> None:
        """Prove what is new, and remember it."""
        self.report.commit = new
        last = self.state.seen or None
        if self.accept and self.accept == new:
            last = None
        elif self.accept:
            raise Stop(
                "failed", f"--accept {self.accept}: the branch {self.config.branch} is at {new}. Nothing was done."
            )
        with self.progress.step("Verify") as step:
            self.report.signers = self.repository.verify(new, last)
            signed = ", ".join(self.report.signers)
            step.summary = f"signed by {signed}" if signed else "nothing new"
        if self.state.seen != new:
            self.state.seen = new
            write_state(self.config.state, self.state)

    def _wait_for_retry(self, new: str) -> None:
        failing = self.state.failing
        if failing.count and failing.commit == new and self.now < failing.until and not self.accept:
            when = datetime.fromtimestamp(failing.until, UTC).strftime("%Y-%m-%d %H:%M UTC")
            raise Stop(
                "waiting",
                f"{failing.count} runs of this commit failed, the next try is not before {when} or a new commit. The "
                f"last: {failing.message}",
            )

    def _switch(self, new: str) -> None:
        """Lay out a new commit, once nothing speaks against its inventory."""
        candidate = self.config.state / "candidate"
        self.repository.lay_out(new, candidate)
        kept = [path.relative_to(candidate) for path in candidate.rglob(KEPT)]
        for path in kept:
            (candidate / path).unlink()
        applied = self.config.state / "applied"
        for number_file in applied.rglob(KEPT) if applied.exists() else ():
            place = candidate / number_file.relative_to(applied)
            if place.parent.is_dir():
                shutil.copyfile(number_file, place)
        old = f"{self.state.commit[:12]} stays in force" if self.state.commit else "nothing is in force yet"
        paths = [candidate / path for path in self.config.inventory]
        with self.progress.step("Doctor") as step:
            try:
                errors = _offline_errors(_load(paths), self.log / "doctor.log", step)
            except UserError as error:
                errors = [str(error)]
            if errors:
                words = "\n".join(errors)
                # a path is told from where this runs, where that is shorter
                for prefix in (str(candidate), os.path.relpath(candidate)):
                    words = words.replace(f"{prefix}/", "")
                raise Stop("broken", f"Commit {new[:12]} is refused, and {old}:\n{words}")
            step.summary = "nothing speaks against it"
        self.state.commit = new
        write_state(self.config.state, self.state)

    def _converge(self, lab: Lab) -> None:
        """Plan and apply on the hosts that answer."""
        from . import lease, planning

        state, report = self.state, self.report
        state.hosts = {host: state.hosts.get(host, "") for host in lab.members}
        try:
            holding = lease.held(lab, self.log / "reach.log", self.progress, f"gitops, commit {state.commit[:12]}")
            with holding as reached:
                state.down = report.down = sorted(reached.down)
                for head in lab.groups.get("lab_head", ()):
                    if head in reached.down:
                        raise Stop("failed", f"The head {head} does not answer: {reached.down[head]}")
                consent = self._consent()
                started = time.monotonic()
                with self.progress.step("Plan") as step:
                    plan = planning.make(lab, self.log / "plan.log", step, consent=consent)
                    step.summary = f"{plan.changes} changes, {plan.pending} pending"
                report.plan_seconds = round(time.monotonic() - started, 1)
                failed = {host: node.failed for host, node in plan.nodes.items() if node.failed}
                state.down = report.down = sorted({*report.down, *_unreachable(plan.nodes)})
                report.pending = plan.pending
                report.drift = sum(
                    len(node.items) for host, node in plan.nodes.items() if state.hosts.get(host) == state.commit
                )
                if {*failed} & {*lab.groups.get("lab_head", ())}:
                    raise Stop("failed", _by_host("The plan failed, nothing was changed.", failed))
                if plan.changes:
                    # who fails in check mode is left alone
                    limit = ("all", *(f"!{host}" for host in failed)) if failed else ()
                    started = time.monotonic()
                    with self.progress.step("Apply") as step:
                        done = planning.apply(lab, self.log / "apply.log", step, consent=consent, limit=limit)
                        report.changed = sum(host.changed for host in done.hosts.values())
                        step.summary = f"{report.changed} tasks changed something"
                    report.apply_seconds = round(time.monotonic() - started, 1)
                    report.pending = sum(len(host.pending) for host in done.hosts.values())
                    state.down = report.down = sorted({*report.down, *_unreachable(done.hosts)})
                    failed |= {host: f"{one.failed}: {one.cause}" for host, one in done.hosts.items() if one.failed}
        except lease.Taken as error:
            raise Stop("busy", str(error)) from None
        state.hosts |= {host: state.commit for host in lab.members if host not in failed and host not in report.down}
        state.pending = report.pending
        broken = {host: words for host, words in failed.items() if host not in report.down}
        if broken:
            raise Stop("failed", _by_host("These nodes failed, the others are done.", broken))
        report.result = "applied" if report.changed else "pending" if report.pending else "in_sync"
        report.message = self._words()

    def _consent(self) -> str:
        """The disruption that this moment allows."""
        here = datetime.fromtimestamp(self.now)
        return (
            max(self.config.max_disruption, self.config.window_disruption, key=rank)
            if maintenance_window.is_open(self.config.windows, here)
            else self.config.max_disruption
        )

    def _words(self) -> str:
        report = self.report
        parts = [f"{report.changed} changes applied" if report.changed else "nothing to change"]
        if report.pending:
            opens = maintenance_window.opens(self.config.windows, datetime.fromtimestamp(self.now))
            when = f", window opens {opens:%a %Y-%m-%d %H:%M}" if opens else ""
            parts.append(f"{report.pending} pending{when}")
        if report.down:
            parts.append(f"down: {', '.join(report.down)}")
        return "; ".join(parts)

    def _finish(self) -> None:
        """Write down how it went, and tell people where that is news."""
        state, report = self.state, self.report
        report.rc = RESULTS[report.result]
        report.behind = state.behind
        state.last_run = self.now
        waits = report.result in ("waiting", "busy")
        if report.result in GOOD:
            state.last_success = self.now
            state.failing = Failing()
        elif not waits:
            before = state.failing
            again = (before.result, before.commit) == (report.result, report.commit)
            count = before.count + 1 if again else 1
            pause = min(self.config.retry * 2 ** min(count - 1, 30), self.config.retry_most)
            since = before.since if again else self.now
            state.failing = Failing(count, report.result, report.message, report.commit, since, self.now + pause)
        news = _news(report)
        tell = not waits and (news != state.told or report.drift > 0)
        if not waits:
            state.told = news
        write_state(self.config.state, state)
        if not waits:
            document = {key: getattr(report, key) for key in ("time", "commit", "result", "message")}
            _write(self.config.state / "last.json", json.dumps(document, indent=2) + "\n", 0o600)
            _remember(self.config.state / "history.jsonl", report)
        if self.config.metrics is not None:
            try:
                _write(self.config.metrics, metrics(state, report), 0o644)
            except OSError as error:
                self.progress.console.print(f"metrics {self.config.metrics}: {error.strerror}", markup=False)
        for words in notify(self.config, report) if tell else ():
            self.progress.console.print(words, markup=False, soft_wrap=True)


def _unreachable(hosts: Mapping[str, Any]) -> list[str]:
    return [host for host, one in hosts.items() if one.unreachable]


def _by_host(heading: str, words: Mapping[str, str]) -> str:
    return "\n".join([heading, *(f"{host}: {text}" for host, text in sorted(words.items()))])


def _news(report: Report) -> list[str]:
    """What people are told once: another failure, and, where all is well, another commit, nodes down or pending."""
    if report.result in GOOD:
        return ["good", report.commit, ",".join(report.down), "pending" if report.pending else ""]
    return [report.result, report.commit, hashlib.sha256(report.message.encode()).hexdigest()[:16]]


def _prepare_environment(config: Config) -> None:
    """Let Ansible go by labrack's settings and the configured password of the vault alone."""
    os.environ["ANSIBLE_CONFIG"] = str(shell.home() / "ansible.cfg")
    if config.vault_password_file is not None:
        os.environ["ANSIBLE_VAULT_PASSWORD_FILE"] = str(config.vault_password_file)


def _load(paths: Sequence[Path]) -> Lab:
    from . import lab

    found = lab.load(lab.inventory(paths))
    if not found.members:
        raise UserError(f"{', '.join(map(str, paths))}: nobody is in lab_head or lab_workers.")
    return found


def _offline_errors(lab: Lab, log: Path, step: Step) -> list[str]:
    """What doctor finds wrong in the inventory itself, as lines."""
    from . import doctor

    findings = doctor.run(lab, log, step, offline=True)
    return [
        f"{finding.host + ': ' if finding.host else ''}{finding.what}. Mend: {finding.mend}"
        for finding in findings
        if finding.severity == ERROR
    ]


# --- what stays on disk ----------------------------------------------------------------------------------------------


def read_state(folder: Path) -> State:
    """Return what earlier runs left; UserError where it is damaged, as guessing could let a rewritten history in."""
    path = folder / "state.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        failing = Failing(**found.pop("failing"))
        return State(**found, failing=failing)
    except FileNotFoundError:
        return State()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Mend: remove it; the next run then takes the newest commit as the first, "
            "whose signature it proves"
        ) from None


def write_state(folder: Path, state: State) -> None:
    """Write it down, whole."""
    _write(folder / "state.json", json.dumps(asdict(state), indent=2) + "\n", 0o600)


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=".labrack-", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(handle)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed have begun to write."""
    for left in folder.glob(".labrack-*"):
        left.unlink(missing_ok=True)


def _remember(path: Path, report: Report) -> None:
    """Add a run to the history; its older half goes when it is long."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    lines = lines[-HISTORY_LINES:] if len(lines) >= 2 * HISTORY_LINES else lines
    _write(path, "\n".join([*lines, json.dumps({"schema": 1, **asdict(report)})]) + "\n", 0o600)


def metrics(state: State, report: Report) -> str:
    """Return the metrics, in Prometheus' text format for node_exporter's textfile collector."""
    last_rc = RESULTS[state.failing.result] if state.failing.count else shell.OK
    rows: list[tuple[str, str, float]] = [
        ("last_run_timestamp_seconds", "When a run last ended.", state.last_run),
        ("last_success_timestamp_seconds", "When a run last ended well; alert on its age.", state.last_success),
        ("last_rc", "Exit status of the last run that did something.", last_rc),
        ("failures", "Runs that failed since the last success.", state.failing.count),
        ("drift_items", "Changes on nodes that had the commit already.", report.drift),
        ("pending_changes", "Changes that wait for consent or a window.", state.pending),
        ("hosts_down", "Nodes that did not answer.", len(state.down)),
        ("hosts_behind", "Nodes that have not had the commit yet.", len(state.behind)),
        ("plan_seconds", "How long the plan took.", report.plan_seconds),
        ("apply_seconds", "How long the apply took.", report.apply_seconds),
    ]
    lines = []
    for name, words, value in rows:
        full = f"labrack_gitops_{name}"
        lines += [f"# HELP {full} {words}", f"# TYPE {full} gauge", f"{full} {value:.15g}"]
    info = "labrack_gitops_commit_info"
    lines += [f"# HELP {info} The commit in force.", f"# TYPE {info} gauge", f'{info}{{commit="{state.commit}"}} 1']
    return "\n".join(lines) + "\n"


# --- telling people ---------------------------------------------------------------------------------------------------


def notify(config: Config, report: Report) -> Iterator[str]:
    """Tell people of a run by webhook and mail; yield words about what could not be sent, without the address."""
    title = f"labrack on {socket.gethostname()}: {report.result}"
    text = f"{title}, commit {report.commit[:12] or 'none'}\n{report.message}"
    if config.webhook_file is not None:
        document = {"text": text, "host": socket.gethostname(), **asdict(report)}
        if problem := _post(config.webhook_file, document):
            yield f"The webhook of {config.webhook_file} was not told: {problem}"
    if config.mail:
        mail = EmailMessage()
        mail["To"], mail["Subject"] = config.mail, title
        mail.set_content(text)
        program = shutil.which("sendmail") or "/usr/sbin/sendmail"
        try:
            done = subprocess.run([program, "-t", "-i"], input=mail.as_bytes(), capture_output=True, timeout=60)
            if done.returncode:
                yield f"No mail to {config.mail}: sendmail ended with {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            yield f"No mail to {config.mail}: {program}: {type(error).__name__}"


def _post(file: Path, document: Mapping[str, Any]) -> str:
    """Send a document to the address that a file holds; return why not, never with the address, which may be secret."""
    try:
        address = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return f"the file can't be read ({type(error).__name__})"
    if not address.startswith(("https://", "http://")):
        return "it holds no http or https address"
    body = json.dumps(document).encode()
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310  (see above)
        with urllib.request.urlopen(request, timeout=20):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        return f"the server answered {error.code}"
    except Exception as error:
        return type(error).__name__


# --- what people see --------------------------------------------------------------------------------------------------

HEADINGS: Mapping[str, str] = {
    "failed": "Failed",
    "broken": "Refused",
    "denied": "Denied",
    "busy": "Busy",
    "waiting": "Waiting",
}


@dataclass(frozen=True)
class Status:
    """How the loop stands; times are ISO 8601 in UTC, "" for never. ``rc`` is that of ``labrack gitops status``."""

    rc: int
    result: str
    message: str
    last_run: str
    last_success: str
    commit: str
    newest: str
    hosts: Mapping[str, str]
    down: Sequence[str]
    behind: Sequence[str]
    pending: int
    failures: int
    next_try: str


def status(config: Config) -> Status:
    """Return how the loop stands, from what its runs have written down."""
    state = read_state(config.state)
    try:
        last = json.loads((config.state / "last.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = {"result": "never", "message": "No run has ended yet."}
    rc = shell.FAILED if state.failing.count else shell.CHANGES if state.pending or state.behind else shell.OK
    return Status(
        rc,
        str(last["result"]),
        str(last["message"]),
        _stamp(state.last_run),
        _stamp(state.last_success),
        state.commit,
        state.seen,
        state.hosts,
        state.down,
        state.behind,
        state.pending,
        state.failing.count,
        _stamp(state.failing.until),
    )


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") if moment else ""


def document(found: Report | Status) -> dict[str, Any]:
    """Return a report or status for ``--json``."""
    return {"schema": 1, **asdict(found)}


def render(found: Status) -> RenderableType:
    """Return the status as lines."""
    from rich.text import Text

    good = found.result in GOOD
    rows = [
        ("Last run", f"{found.result.replace('_', ' ')}{', ' + found.last_run if found.last_run else ''}"),
        ("", found.message),
        ("Last success", found.last_success or "never"),
        ("In force", found.commit or "nothing"),
    ]
    if found.newest != found.commit:
        rows.append(("Newest", f"{found.newest}, not in force"))
    if found.down:
        rows.append(("Down", ", ".join(found.down)))
    if found.behind:
        rows.append(("Behind", ", ".join(found.behind)))
    if found.pending:
        rows.append(("Pending", f"{found.pending} changes wait for consent or a window"))
    if found.failures:
        rows.append(("Failures", f"{found.failures}, next try {found.next_try} or at a new commit"))
    text = Text()
    for name, value in rows:
        for number, line in enumerate(value.splitlines() or [""]):
            style = "red" if name in ("", "Last run") and not good else ""
            text.append(f"{name if number == 0 else '':<13} ", "bold").append(f"{line}\n", style)
    text.rstrip()
    return text
