# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack plan`` and ``labrack apply`` with a playbook of two roles on two hosts, which are this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml
from typer.testing import CliRunner, Result

from labrack import cli, history, lab, planning

ROOT = Path(__file__).parents[2]
CANARY = "canary-5582-vault"
#: Converges one file, whose other lines come from the option ``secret``, by what all modules of the collection share.
MODULE = """
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, observe_file, plan_file

def main():
    module = AnsibleModule({"path": {}, "text": {}, "secret": {"no_log": True}, "disruption": {}, "max_disruption": {}},
                           supports_check_mode=True)
    p = module.params
    def observe():
        found = observe_file(p["path"])
        return found and found.text
    def plan(text):
        if text == p["text"]:
            return []
        return [Change("file " + p["path"].rpartition("/")[2], "content changed" if text else "created",
                       p["disruption"], text or "", p["text"])]
    if p["text"] == "3\\n":
        module.warn("three is odd")
    def apply(changes):
        open(p["path"], "w").write(p["text"])
    converge(module, observe, plan, apply)

main()
"""
PLAY = """
- name: Converge
  hosts: lab_head:lab_workers
  gather_facts: false
  vars: {made: "{{ folder }}/{{ inventory_hostname }}"}
  roles: [first, second]
"""
FIRST = """
- name: Converge the first file
  thing:
    path: "{{ made }}.first"
    text: "{{ first_text }}\\n"
    disruption: reload
    secret: "{{ password | default('none') }}"
    max_disruption: "{{ lab_max_disruption | default('restart') }}"
"""
SECOND = """
- name: Converge the second file
  thing:
    path: "{{ made }}.second"
    text: "2\\n"
    disruption: drain
    max_disruption: "{{ lab_max_disruption | default('restart') }}"
- name: Keep a secret
  ansible.builtin.copy:
    content: "{{ password | default('none') }}"
    dest: "{{ made }}.secret"
    mode: "0600"
  no_log: true
  when: inventory_hostname == 'head'
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with playbook and inventory, in which the command runs."""
    for name, text in (("first", FIRST), ("second", SECOND)):
        (tmp_path / f"roles/{name}/tasks").mkdir(parents=True)
        (tmp_path / f"roles/{name}/tasks/main.yml").write_text(text)
    (tmp_path / "library").mkdir()
    (tmp_path / "library/thing.py").write_text(MODULE)
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "made").mkdir()
    inventory(tmp_path)
    monkeypatch.setattr(lab, "PLAYBOOKS", dict.fromkeys(lab.PLAYBOOKS, str(tmp_path / "play.yml")))
    monkeypatch.setenv("ANSIBLE_LOCAL_TEMP", str(tmp_path / "local"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inventory(home: Path, head: Mapping[str, Any] | None = None, **variables: Any) -> None:
    """Write the inventory, with variables of the head and of all."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "folder": f"{home}/made"}
    here["lease_file"] = f"{home}/lease/lease.json"
    document = {
        "all": {
            "vars": {**here, "first_text": "1", **variables},
            "children": {"lab_head": {"hosts": {"head": dict(head or {})}}, "lab_workers": {"hosts": {"node1": {}}}},
        }
    }
    (home / "inventory").mkdir(exist_ok=True)
    (home / "inventory/hosts.yml").write_text(yaml.safe_dump(document))


def labrack(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, prog_name="labrack", env={"COLUMNS": "100"})


def untimed(text: str) -> str:
    """The text without seconds, and without blanks at the ends of lines."""
    lines = (re.sub(r"\d+\.\d", "0.0", line.rstrip()) for line in text.splitlines())
    return "\n".join(lines) + "\n"


def made(home: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted((home / "made").iterdir())}


PLANNED = """\
head  2 changes
  first
    reload   file head.first: created
  second
    none     Keep a secret: not shown, as it holds a secret
  pending consent
    drain    file head.second: created

node1  1 change
  first
    reload   file node1.first: created
  pending consent
    drain    file node1.second: created

3 changes on 2 of 2 nodes.
2 more pending your consent to 'drain': labrack apply -i {home}/inventory --consent drain
"""
APPLIED = """\
head  2 tasks changed
    reload   file head.first: created
  pending consent
    drain    file head.second: created

node1  1 task changed
    reload   file node1.first: created
  pending consent
    drain    file node1.second: created

ROLE    SECONDS
first       0.0
second      0.0

To make what is pending: labrack apply -i {home}/inventory --consent drain
3 tasks changed something on 2 nodes.
"""


def test_from_plan_to_a_lab_as_the_inventory_says(home: Path) -> None:
    planned = labrack("plan")
    assert planned.exit_code == 2, planned.stderr
    assert untimed(planned.stdout) == PLANNED.format(home=home)
    assert made(home) == {}
    applied = labrack("apply", "--yes")
    assert applied.exit_code == 0, applied.stderr
    assert untimed(applied.stdout) == APPLIED.format(home=home)
    assert made(home) == {"head.first": "1\n", "head.secret": "none", "node1.first": "1\n"}
    again = labrack("plan")
    assert again.exit_code == 2 and again.stdout.startswith("head  unchanged\n  pending consent\n    drain ")
    assert "\nNothing to change without your consent.\n2 more pending" in again.stdout
    runs = history.read(lab.state_dir([home / "inventory"]))
    assert [(run.check, run.rc, sum(one["changed"] for one in run.hosts.values())) for run in runs] == [
        *((True, 0, 3), (False, 0, 3), (True, 0, 0))
    ]
    assert [one["subject"] for one in runs[0].hosts["head"]["pending"]] == ["file head.second"]
    assert {*runs[0].roles} == {"first", "second"}


def test_a_saved_plan_is_applied_as_long_as_it_holds(home: Path) -> None:
    saved = home / "lab.plan"
    shown = labrack("plan", "-o", str(saved), "--consent", "drain", "--diff")
    assert shown.exit_code == 2 and f"labrack apply {saved}" in shown.stdout and "+1" in shown.stdout
    assert saved.stat().st_mode & 0o777 == 0o600 and planning.read(saved).consent == "drain"
    assert labrack("apply", str(saved), "--yes", "--limit", "head").exit_code == 64
    (home / "made/node1.first").write_text("mine\n")
    refused = labrack("apply", str(saved), "--yes")
    assert refused.exit_code == 1 and "node1: file node1.first is off in another way now" in refused.stderr
    assert "head:" not in refused.stderr
    assert made(home) == {"node1.first": "mine\n"}
    (home / "made/node1.first").unlink()
    applied = labrack("apply", str(saved), "--yes", "--json")
    assert applied.exit_code == 0, applied.stderr
    assert json.loads(applied.stdout)["hosts"]["node1"]["items"][1]["disruption"] == "drain"
    assert made(home)["node1.second"] == "2\n"
    inventory(home, first_text="3")
    refused = labrack("apply", str(saved), "--yes")
    assert refused.exit_code == 1 and "the inventory or labrack itself has changed since" in refused.stderr


def test_a_host_that_is_away_does_not_hold_the_others(home: Path) -> None:
    gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    inventory(home, gone, first_text="3")
    planned = labrack("plan", "--json")
    assert planned.exit_code == 1
    document = json.loads(planned.stdout)
    assert document["nodes"]["head"]["unreachable"] and len(document["nodes"]["node1"]["tasks"]) == 2
    applied = labrack("apply", "--yes")
    assert applied.exit_code == 1
    assert "see that head is on and that ssh reaches it" in applied.stdout
    assert "Failed on head; the 1 other node went on." in applied.stdout
    assert made(home) == {"node1.first": "3\n"} and "\n    Note: three is odd\n" in untimed(applied.stdout)
    (run,) = [run for run in history.read(lab.state_dir([home / "inventory"])) if not run.check]
    assert run.hosts["head"]["unreachable"] and run.rc == 4


def test_no_secret_of_the_vault_shows_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "password").write_text("pass")
    tool = Path(sys.executable).with_name("ansible-vault")
    command = [str(tool), "encrypt_string", "--vault-password-file", "password", CANARY, "--name", "password"]
    vaulted = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (home / "inventory/group_vars").mkdir()
    (home / "inventory/group_vars/all.yml").write_text(vaulted)
    locked = labrack("plan")
    assert locked.exit_code == 1 and "--ask-vault-pass" in locked.stdout + locked.stderr
    rest = ("--", "--vault-password-file", "password", "-vvv", "--diff")
    results = [labrack("plan", "--diff", "-o", "lab.plan", *rest), labrack("apply", "--yes", *rest)]
    assert [result.exit_code for result in results] == [2, 0], results[1].stderr
    assert made(home)["head.secret"] == CANARY
    (home / "made/head.secret").unlink()
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert {"history.jsonl", "apply.log", "plan.log", "lab.plan"} <= {path.name for path in kept}
    assert not [path for path in kept if CANARY in path.read_text(errors="replace")]
    assert not [result for result in results if CANARY in result.output]


def test_printed_command_is_the_one_that_runs(home: Path) -> None:
    done = labrack(
        "apply", "--print-command", "--tags", "first", "-l", "node1", "--consent", "drain", "--", "-e", "a='b c'"
    )
    assert done.exit_code == 0 and made(home) == {}
    config, program, *words = shlex.split(done.stdout)
    assert config == f"ANSIBLE_CONFIG={ROOT}/ansible.cfg" and Path(program).name == "ansible-playbook"
    assert words[:2] == ["--tags", "first"] and "a='b c'" in words
    line = done.stdout.strip()
    ran = subprocess.run(f"{line} --list-hosts", shell=True, capture_output=True, text=True)
    assert ran.returncode == 0 and "node1" in ran.stdout and "head" not in ran.stdout.replace("lab_head", "")
    assert "--check --diff" in labrack("plan", "--print-command").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["apply"], 64, "give --yes"),
        (["plan", "--consent", "everything"], 64, "one of none, reload, restart, drain, reboot"),
        (["apply", "nowhere.plan", "--yes"], 1, "No such file"),
        (["apply", "play.yml", "--yes"], 1, "holds no plan"),
        (["plan", "--", "--ask-vault-pass"], 1, "--vault-password-file"),
    ],
)
def test_what_a_user_has_to_mend(home: Path, arguments: list[str], status: int, words: str) -> None:
    done = labrack(*arguments)
    assert done.exit_code == status and words in " ".join(done.stderr.split())
    assert "Traceback" not in done.output and made(home) == {}


#: The command as a process of its own, with the playbook of the test.
START = "from labrack import cli, lab; lab.PLAYBOOKS = dict.fromkeys(lab.PLAYBOOKS, 'play.yml'); cli.app()"


def environment() -> dict[str, str]:
    paths = [str(ROOT / name) for name in ("scripts", "collections")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm", "COLUMNS": "100"}


def test_it_asks_on_a_terminal(home: Path) -> None:
    (home / "play.yml").write_text(PLAY.replace("{{ folder }}", str(home / "made")))
    child = pexpect.spawn(sys.executable, ["-c", START, "apply"], env=environment(), timeout=120, encoding="utf-8")
    child.expect("3 changes on 2 of 2 nodes")
    child.expect("Apply it")
    assert made(home) == {}
    child.sendline("y")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0 and len(made(home)) == 3


def test_an_interrupt_ends_it_in_order(home: Path) -> None:
    slow = "- ansible.builtin.command: sh -c 'touch {{ made }}.begun; sleep 60'\n  check_mode: false\n"
    (home / "roles/first/tasks/main.yml").write_text(slow)
    command = [sys.executable, "-c", START, "apply", "--yes"]
    child = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (home / "made/head.begun").exists():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Interrupted. What was done stays" in err and "Traceback" not in out + err
    assert "\x1b" not in out + err


def test_two_at_a_time_are_refused(home: Path) -> None:
    with planning.lock(lab.state_dir([home / "inventory"])):
        done = labrack("apply", "--yes")
    assert done.exit_code == 75 and f"process {os.getpid()}" in done.stderr and made(home) == {}
