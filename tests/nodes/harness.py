# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab for the tests: playbooks with what each task did on each host, users who log in by ssh, and their jobs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ansible_runner
import pytest
from typer.testing import CliRunner, Result

from labrack import cli, demo, ssh
from labrack.ssh import Ssh
from labrack.testnode import node
from labrack.testnode.docker import docker
from labrack.testnode.node import Lab, LabSpec, NodeSpec

ROOT = Path(__file__).resolve().parents[2]
INVENTORIES = Path(__file__).parent / "inventories"
#: Seconds for Slurm to do what a test waits for.
PATIENCE = 60.0
#: What steers a play on the controller and runs no module on a host.
STEERING = frozenset(["assert", "debug", "include_tasks", "lab_check", "set_fact", "validate_argument_spec"])
#: Tries to open each card. There is no driver: ENXIO says that the card may be opened, EPERM that it may not.
TOUCH = "for card in /dev/nvidia[0-9]*; do (exec 3<>$card) 2>&1; done; true"

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Task:
    """How one task ended on one host; ``changed`` is None where no_log hides it."""

    host: str
    name: str
    action: str
    ending: str
    changed: bool | None
    result: Mapping[str, Any]

    @property
    def subjects(self) -> list[str]:
        """What a labrack module changed, or would change; a thing that takes two steps counts once."""
        return sorted({change["subject"] for change in self.result.get("changes", [])})


@dataclass(frozen=True)
class Run:
    """How a playbook ended."""

    rc: int
    #: What ansible-playbook printed.
    output: str
    tasks: tuple[Task, ...]
    #: Changed tasks of each host.
    changed: Mapping[str, int]
    unreachable: tuple[str, ...]
    #: The directory with ansible-runner's artifacts.
    artifacts: Path

    def modules(self, host: str) -> list[Task]:
        """The tasks that ran a module on a host, in order."""
        return [task for task in self.tasks if task.host == host and task.action not in STEERING]

    def task(self, host: str, name: str) -> Task:
        """The last task of that name on a host; AssertionError when it did not run."""
        found = [task for task in self.tasks if task.host == host and task.name == name and task.ending != "skipped"]
        assert found, f"{name} did not run on {host}:\n{self.output[-4000:]}"
        return found[-1]

    @property
    def messages(self) -> str:
        """The messages of the tasks that failed."""
        return "\n".join(str(task.result.get("msg", "")) for task in self.tasks if task.ending == "failed")


def opened(printed: str) -> list[str]:
    """The cards that :data:`TOUCH` could open."""
    return sorted(re.findall(r"(/dev/nvidia\d): No such device or address", printed))


def refused(printed: str) -> list[str]:
    """The cards that :data:`TOUCH` could not open."""
    return sorted(re.findall(r"(/dev/nvidia\d): Operation not permitted", printed))


def play(playbook: str, inventory: Sequence[Path], artifacts: Path, *arguments: str) -> Run:
    """Run a playbook, by FQCN or path, with further arguments of ansible-playbook; any exit status is fine.

    What ansible-runner records goes to the empty directory ``artifacts``.
    """
    runner = ansible_runner.run(
        private_data_dir=str(artifacts),
        project_dir=str(ROOT),
        playbook=playbook,
        inventory=[str(path) for path in inventory],
        cmdline=shlex.join(arguments) or None,
        envvars={
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_HOST_KEY_CHECKING": "True",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        quiet=True,
        timeout=600,
    )
    endings = {"runner_on_ok": "ok", "runner_on_skipped": "skipped", "runner_on_failed": "failed"}
    tasks, unreachable = [], []
    for event in runner.events:
        data = event.get("event_data", {})
        if event["event"] == "runner_on_unreachable":
            unreachable.append(data["host"])
        if event["event"] in endings:
            result = data.get("res", {})
            changed = None if "censored" in result else bool(result.get("changed"))
            action = data["task_action"].rpartition(".")[2]
            tasks.append(Task(data["host"], data["task"], action, endings[event["event"]], changed, result))
    stats = runner.stats or {}
    counts = {host: stats.get("changed", {}).get(host, 0) for host in stats.get("processed", {})}
    output = Path(runner.stdout.name).read_text(encoding="utf-8")
    return Run(runner.rc, output, tuple(tasks), counts, tuple(unreachable), artifacts)


def until(what: str, probe: Callable[[], Seen], holds: Callable[[Seen], object], seconds: float = PATIENCE) -> Seen:
    """Wait until what is probed is as wanted, and return it; AssertionError with the last of it after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not holds(seen := probe()):
        assert time.monotonic() < deadline, f"Expected within {seconds:.0f} s: {what}. Seen: {seen}"
        time.sleep(0.3)
    return seen


@dataclass(frozen=True)
class Closet:
    """A running lab with its inventory."""

    lab: Lab
    inventory: tuple[Path, ...]
    ssh: Ssh

    def play(self, playbook: str = "labrack.infra.closet", *arguments: str, ok: bool = True, **variables: Any) -> Run:
        """Run a playbook with extra variables; AssertionError when it fails, unless ``ok`` is False."""
        extra = ["-e", json.dumps(variables)] if variables else []
        artifacts = tempfile.mkdtemp(prefix="run-", dir=self.lab.state_dir)
        run = play(playbook, self.inventory, Path(artifacts), *arguments, *extra)
        assert not ok or run.rc == 0, run.output[-6000:]
        return run

    def journal(self, host: str, unit: str) -> str:
        """All that a unit has said so far, its last words too, as journald may be a moment behind."""
        return self.root(host, f"journalctl --sync && journalctl --no-pager --output=cat --unit={unit}")

    def root(self, host: str, command: str, check: bool = True) -> str:
        """Run a shell command as root on a host, past ssh, and return what it printed."""
        return node.exec(self.lab.node(host), ["timeout", "60", "bash", "-c", command], check=check).stdout

    def user(self, target: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command on ``user@host`` by ssh; any exit status is fine."""
        return self.ssh.run(target, command)

    def srun(self, user: str, options: str, command: str, seconds: int = 40) -> subprocess.CompletedProcess[str]:
        """Run a shell command as a job of a user and wait for it."""
        inner = f"timeout {seconds} srun --time=5 {options} bash -c {shlex.quote(command)}"
        return self.ssh.run(f"{user}@head", inner, timeout=seconds + 10)

    def submit(self, user: str, options: str, script: str) -> str:
        """Submit a job that prints to /tmp/job-ID.out on its node; return its id."""
        command = f"sbatch --parsable --time=30 --output=/tmp/job-%j.out {options} --wrap {shlex.quote(script)}"
        return self.ssh.output(f"{user}@head", command).strip()

    def start(self, user: str, options: str, script: str = "sleep 900") -> str:
        """Submit a job and wait until its script runs, which is after the prolog; return its id."""
        job = self.submit(user, options, script)
        self.await_state(job, "RUNNING")
        self.root(self.job(job)["BatchHost"], f"until [ -e /tmp/job-{job}.out ]; do sleep 0.1; done")
        return job

    def job(self, job: str) -> dict[str, str]:
        """A job's fields, as scontrol shows them."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.root("head", f"scontrol --oneliner show job {job}")))

    def await_state(self, job: str, state: str) -> None:
        """Wait until a job is in a state."""
        until(f"job {job} {state}", lambda: self.job(job), lambda seen: seen["JobState"] == state)

    def node(self, name: str) -> dict[str, str]:
        """A node's fields, as scontrol shows them, its Reason whole."""
        text = self.root("head", f"scontrol --oneliner show node {name}", check=False)
        reason = re.search(r"Reason=(.*)", text)
        return {**dict(re.findall(r"(\S+?)=(\S*)", text)), "Reason": reason[1] if reason else ""}

    def await_node(self, name: str, holds: Callable[[str], object], what: str) -> dict[str, str]:
        """Wait until a node's state is as wanted."""
        return until(f"{name} {what}", lambda: self.node(name), lambda seen: holds(seen.get("State", "")))

    def invocation(self, host: str, unit: str) -> str:
        """What changes at every start of a unit by systemd."""
        return self.root(host, f"systemctl show --property=InvocationID,ActiveEnterTimestamp {unit}")

    def settle(self) -> None:
        """End all jobs and wait until every worker is idle."""
        workers = [member.name for member in self.lab.nodes if member.name != "head"]
        self.root("head", "squeue --noheader --format=%i | xargs --no-run-if-empty scancel")
        until("no job is left", lambda: self.root("head", "squeue --noheader"), lambda seen: not seen.strip())
        for name in workers:
            self.await_node(name, lambda state: state == "IDLE", "is idle")


@contextmanager
def powered(lab: Lab) -> Iterator[None]:
    """Start a node again when it ends itself: a container that restarts only stops."""
    ended = threading.Event()

    def watch() -> None:
        filters = ["--filter", f"label={node.LABEL}={lab.name}", "--filter", "status=exited"]
        while not ended.wait(0.5):
            stopped = docker("ps", "--all", "--quiet", *filters, check=False).stdout.split()
            if stopped:
                docker("start", *stopped, check=False)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def labrack_demo(*arguments: str) -> Result:
    """Run a command of the demo's; any exit status is fine."""
    return CliRunner().invoke(cli.app, ["demo", *arguments], prog_name="labrack", terminal_width=120)


def containers(lab: str) -> list[str]:
    """The ids of a lab's containers, running or not."""
    return docker("ps", "-aq", "--filter", f"label={node.LABEL}={lab}").stdout.split()


@contextmanager
def own_demo(name: str) -> Iterator[Path]:
    """A demo that is no other demo's, and the directory of its state; inventories/demo finds it by the environment."""
    base = ROOT / ".cache/labs" / name
    folder = base / "labrack/demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(base))
        patch.setattr(demo, "LAB", name)
        patch.setattr(demo, "state_dir", lambda: folder)
        node.down(name, folder, print)
        shutil.rmtree(base, ignore_errors=True)
        yield folder
        node.down(name, folder, print)
        shutil.rmtree(base, ignore_errors=True)


def bring_up(
    name: str, nodes: Sequence[NodeSpec], groups: Path, state: Path, variables: Mapping[str, Any] | None = None
) -> Closet:
    """Make a lab of these nodes, or take the one of that name that is there, for the inventory ``groups``.

    ``variables`` are those of all hosts.
    """
    lab = node.load(state) if node.exists(name) else node.up(LabSpec(name, tuple(nodes)), state, print)
    return closet_of(lab, groups, variables)


def closet_of(lab: Lab, groups: Path, variables: Mapping[str, Any] | None = None) -> Closet:
    """A running lab with the inventory ``groups``; ``variables`` are those of all hosts."""
    state = lab.state_dir
    key = state / "researcher"
    if not key.exists():
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "researcher", "-f", str(key)]
        subprocess.run(keygen, check=True)
    config = state / "ssh_config"
    config.write_text(ssh.config(lab, "ada", key), encoding="utf-8")
    public = key.with_suffix(".pub").read_text(encoding="utf-8").strip()
    hosts = state / "hosts.json"
    document = {"all": {"hosts": node.inventory(lab), "vars": {"test_keys": [public], **(variables or {})}}}
    hosts.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return Closet(lab, (groups, hosts), Ssh(config))
