# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Running a playbook: what its events tell the reader, and what stays on disk. The playbooks here run on localhost."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from labrack import run
from labrack.progress import Progress, Step
from labrack.run import Events, Failure, RunError, run_playbook


def event(kind: str, task: str = "Install", host: str = "node1", **data: Any) -> dict[str, Any]:
    """An event as ansible-runner hands it over."""
    return {"event": kind, "stdout": "", "event_data": {"task": task, "host": host, "task_action": "apt", **data}}


def play(*happened: dict[str, Any]) -> tuple[Events, str, str]:
    """Feed events; return what took them, what a plain console showed, and the log."""
    shown, log = io.StringIO(), io.StringIO()
    events = Events(Step("Converge", Console(file=shown, width=200), live=False), log)
    assert not any(events(one) for one in happened), "an event that ansible-runner would keep on disk"
    return events, shown.getvalue(), log.getvalue()


STATS = event("playbook_on_stats", processed={"node1": 1, "node2": 1}, changed={"node1": 1})


def test_a_finished_task_is_one_line() -> None:
    events, shown, _ = play(
        event("playbook_on_task_start"),
        event("runner_on_ok", host="node2", res={"changed": False}),
        event("runner_on_ok", host="node1", res={"changed": True}),
        event("runner_on_ok", host="head", res={"censored": "hidden"}),
        STATS,
    )
    (line,) = shown.splitlines()
    assert line.startswith("  Install: changed on node1; done on head; ok on node2 (")
    assert events.changed == {"node1": 1, "node2": 0}
    assert events.ran == {"head": 1, "node1": 1, "node2": 1}


def test_what_does_nothing_on_a_node_is_not_shown() -> None:
    _, shown, _ = play(
        event("playbook_on_task_start", task_action="ansible.builtin.include_tasks"),
        event("runner_on_ok", res={}),
        event("playbook_on_task_start", task="Only elsewhere"),
        event("runner_on_skipped", res={}),
        STATS,
    )
    assert shown == ""


def test_failures_are_remembered() -> None:
    events, _, _ = play(
        event("playbook_on_task_start"),
        event("runner_on_failed", res={"msg": "no space left"}),
        event("runner_on_failed", host="node2", res={"msg": "wanted"}, ignore_errors=True),
        event("runner_on_unreachable", host="head", res={"msg": "no route to host"}),
    )
    assert events.failures == [
        Failure("node1", "Install", "no space left"),
        Failure("head", "Install", "no route to host"),
    ]


def test_the_log_is_what_ansible_printed() -> None:
    _, _, log = play({"event": "verbose", "stdout": "PLAY [all]"}, {"event": "verbose", "stdout": ""}, {"event": "EOF"})
    assert log == "PLAY [all]\n"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"msg": "no such package"}, "no such package"),
        ({"censored": "hidden by no_log"}, "hidden by no_log"),
        ({}, "no message"),
        (
            {"msg": "MODULE FAILURE", "module_stderr": "Traceback\nKeyError: 'x'"},
            "MODULE FAILURE\nTraceback\nKeyError: 'x'",
        ),
        (
            {
                "msg": "All items completed",
                "results": [{"msg": "a", "failed": True}, {"msg": "b"}, {"msg": "c", "failed": True}],
            },
            "a\nc",
        ),
    ],
)
def test_message(result: dict[str, Any], text: str) -> None:
    assert run.message(result) == text


def test_live_rows() -> None:
    shown = io.StringIO()
    step = Step("Converge", Console(file=shown, width=100), live=True)
    events = Events(step, io.StringIO())
    events(event("playbook_on_task_start"))
    events(event("runner_on_start"))
    step.console.print(step)
    events(event("runner_on_ok", res={}))
    step.console.print(step)
    assert "node1    Install" in shown.getvalue()
    assert "0 done" in shown.getvalue() and "1 done" in shown.getvalue()


PLAYBOOK = """\
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Change something
      ansible.builtin.debug:
        msg: hello
      changed_when: true
    - name: Keep a secret
      ansible.builtin.debug:
        msg: "{{ lookup('env', 'CANARY') }}"
      no_log: true
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a playbook; what ansible-runner writes for itself goes to its folder ``private``."""
    (tmp_path / "hosts.yml").write_text("all: {hosts: {localhost: {}}}\n")
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "private").mkdir()
    monkeypatch.setattr(run.tempfile, "tempdir", str(tmp_path / "private"))
    monkeypatch.setenv("CANARY", "canary-7431")
    monkeypatch.setenv("ANSIBLE_LOCAL_TEMP", str(tmp_path / "local"))
    return tmp_path


def converge(lab: Path) -> run.Outcome:
    """Run the playbook of ``lab``."""
    with Progress(Console(file=io.StringIO())).step("Converge") as step:
        return run_playbook(str(lab / "play.yml"), [lab / "hosts.yml"], lab / "run.log", step)


def test_run_succeeds_and_leaves_only_its_log(lab: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    outcome = converge(lab)
    assert (outcome.changed, outcome.ran) == ({"localhost": 1}, {"localhost": 2})
    log = (lab / "run.log").read_text()
    assert "TASK [Change something]" in log and "\x1b" not in log
    assert list((lab / "private").iterdir()) == []
    assert "canary-7431" not in log
    assert signal.getsignal(signal.SIGINT) is handler


def test_run_fails(lab: Path) -> None:
    (lab / "play.yml").write_text(PLAYBOOK + "    - name: Break\n      ansible.builtin.fail: {msg: the mend is this}\n")
    with pytest.raises(RunError) as failed:
        converge(lab)
    assert failed.value.failures == (Failure("localhost", "Break", "the mend is this"),)
    assert failed.value.log == lab / "run.log"


def test_run_that_ends_before_any_task_shows_what_ansible_printed(lab: Path) -> None:
    (lab / "play.yml").write_text("- hosts: localhost\n  no_such_key: 1\n")
    with pytest.raises(RunError, match="no_such_key"):
        converge(lab)


def test_a_failure_that_is_tolerated_stands_in_the_outcome(lab: Path) -> None:
    (lab / "play.yml").write_text(PLAYBOOK + "    - name: Break\n      ansible.builtin.fail: {msg: the mend is this}\n")
    with Progress(Console(file=io.StringIO())).step("Converge") as step:
        outcome = run_playbook(str(lab / "play.yml"), [lab / "hosts.yml"], lab / "run.log", step, tolerate=True)
    assert outcome.failures == (Failure("localhost", "Break", "the mend is this"),)
    assert [(task.task, task.ending) for task in outcome.tasks] == [("Break", "failed")]


def test_outcome_has_what_each_task_says() -> None:
    change = {"subject": "file /etc/x", "summary": "created", "disruption": "none"}
    waits = {**change, "disruption": "drain"}
    diff = [{"before_header": "file /etc/x", "before": "", "after": "a\n"}, {"before": "same", "after": "same"}]
    result = {"changed": True, "changes": [change], "pending": [waits], "diff": diff, "drain": ["node2"]}
    loop = {"changed": True, "results": [{"diff": {"prepared": "+b"}}, {"diff": {"before": {"mode": 1}, "after": {}}}]}
    events, _, _ = play(
        event("playbook_on_task_start", role="labrack.infra.baseline"),
        event("runner_on_ok", role="labrack.infra.baseline", res=result, duration=1.5),
        event("runner_on_skipped", host="node2", res={}),
        event("playbook_on_task_start", task="Look", task_action="ansible.builtin.assert"),
        event("runner_on_ok", task="Look", task_action="ansible.builtin.assert", res={}),
        event("playbook_on_task_start", task="Items"),
        event("runner_on_ok", task="Items", res=loop),
        STATS,
    )
    first, second = events.outcome().tasks
    assert (first.role, first.host, first.ending, first.seconds) == ("baseline", "node1", "changed", 1.5)
    assert (first.changes, first.pending, first.drains) == ((change,), (waits,), ("node2",))
    assert first.diff == ({"header": "file /etc/x", "before": "", "after": "a\n"},)
    assert [one["after"] for one in second.diff] == ["+b", "{}"] and second.diff[1]["before"] == '{\n  "mode": 1\n}'
    assert {*events.outcome().roles} == {"baseline"}


@pytest.mark.parametrize(
    ("cause", "unreachable", "words"),
    [
        ("Missing sudo password", False, "--ask-become-pass"),
        ("Attempting to decrypt but no vault secrets found", False, "--ask-vault-pass"),
        ("Host key verification failed.", True, "fingerprint"),
        ("root@x: Permission denied (publickey).", True, "authorized_keys"),
        ("Connection timed out", True, "see that node1 is on"),
        ("did not converge", False, "mend the cause"),
    ],
)
def test_advice(cause: str, unreachable: bool, words: str) -> None:
    assert words in run.advice(cause, "node1", unreachable)


def test_command_is_one_that_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = run.command("labrack.infra.closet", [Path("/a b")], ["slurm"], {"x": "y z"}, check=True, limit=["n1", "n2"])
    assert argv == [
        *("ansible-playbook", "--check", "--tags", "slurm", "--limit", "n1,n2", "-e", '{"x": "y z"}'),
        *("-i", "/a b", "labrack.infra.closet"),
    ]
    monkeypatch.chdir(tmp_path)
    assert run.printed(argv).startswith("ANSIBLE_CONFIG=") and "-i '/a b'" in run.printed(argv)
