# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The callbacks, in ansible-playbook itself, and the file that they keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.labrack.infra.plugins.plugin_utils import run_record
from labrack import history, lab

ROOT = Path(__file__).parents[2]
INVENTORY = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: %s}
  hosts: {alpha: {}, beta: {}, gone: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1}}
"""
ROLE = """
- name: Change something
  ansible.builtin.command: "true"
- name: Keep a secret
  ansible.builtin.command: echo canary-4410
  no_log: true
- name: Break without a word
  ansible.builtin.command: cat /nowhere/canary-4410
  no_log: true
  when: inventory_hostname == 'beta'
"""
PLAY = "- name: Converge\n  hosts: all\n  gather_facts: false\n  roles: [thing]\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "roles/thing/tasks").mkdir(parents=True)
    (tmp_path / "roles/thing/tasks/main.yml").write_text(ROLE)
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "hosts.yml").write_text(INVENTORY % sys.executable)
    return tmp_path


def play(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_LOCAL_TEMP": str(home / "local"),
        **variables,
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "hosts.yml", "play.yml", *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)


def test_progress_timing_and_record(home: Path) -> None:
    done = play(
        home,
        "--tags=all",
        ANSIBLE_STDOUT_CALLBACK="labrack.infra.progress",
        ANSIBLE_CALLBACKS_ENABLED="labrack.infra.timing,labrack.infra.record",
        LABRACK_BY="the timer",
    )
    assert done.returncode == 4
    lines = done.stdout.splitlines()
    assert lines[0] == "Converge"
    assert lines[1].startswith("  Change something: changed on alpha, beta; unreachable on gone (")
    assert lines[2].startswith("  Keep a secret: changed on alpha, beta (")
    assert lines[3].startswith("  Break without a word: failed on beta (")
    assert {"alpha: 2 tasks changed", "beta: failed", "gone: does not answer", "Roles", "Longest tasks"} <= {*lines}
    assert "\x1b" not in done.stdout and "WARNING" not in done.stderr
    (run,) = history.read(lab.state_dir([home / "hosts.yml"]))
    assert (run.playbook, run.check, run.by, run.rc, run.tags) == ("play.yml", False, "the timer", 4, ())
    assert {host: (one["changed"], bool(one["failed"]), one["unreachable"]) for host, one in run.hosts.items()} == {
        "alpha": (2, False, False),
        "beta": (2, True, False),
        "gone": (0, True, True),
    }
    assert "no_log" in run.hosts["beta"]["failed"] and {*run.roles} == {"thing"}
    file = lab.state_dir([home / "hosts.yml"]) / run_record.FILE
    assert file.stat().st_mode & 0o777 == 0o600
    assert "canary-4410" not in done.stdout + done.stderr + file.read_text()


def test_a_history_that_cannot_be_written_is_a_warning(home: Path) -> None:
    done = play(home, "--limit=alpha", LABRACK_HISTORY="/proc/nowhere/history.jsonl")
    assert done.returncode == 0
    assert "labrack.infra.record: this run is not in /proc/nowhere/history.jsonl" in done.stderr


RUN = {
    **{"schema": 1, "started": "", "ended": "", "playbook": "", "check": False, "tags": [], "limit": "", "commit": ""},
    **{"by": "", "rc": 0, "hosts": {}, "roles": {}},
}


def run(number: int) -> dict[str, Any]:
    return {**RUN, "rc": number}


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / run_record.FILE
    assert history.read(tmp_path) == []
    run_record.append(file, run(1))
    with file.open("a") as stream:
        stream.write('[]\n{"schema": 1}\n{"schema": 9}\n{"schema": 1, "sta')
    run_record.append(file, run(2))
    assert [one.rc for one in history.read(tmp_path)] == [1, 2]


def test_a_long_history_loses_its_older_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / run_record.FILE
    monkeypatch.setattr(run_record, "MOST_BYTES", 10 * len(json.dumps(RUN)))
    for number in range(100):
        run_record.append(file, run(number))
    kept = [one.rc for one in history.read(tmp_path)]
    assert kept == [*range(kept[0], 100)] and 5 <= len(kept) <= 12


def test_watch_adds_up() -> None:
    watch = run_record.Watch()
    for role, task, now in (("labrack.infra.slurm", "a", 0.0), ("", "b", 2.0), ("slurm", "a", 3.0)):
        watch.start(role, task, now)
    watch.stop(7.0)
    watch.stop(9.0)
    assert watch.roles == {"slurm": 6.0} and watch.tasks == {("slurm", "a"): 6.0, ("", "b"): 1.0}
    assert run_record.timing_lines(watch, 1)[-1].endswith("6.0 s  slurm: a")
