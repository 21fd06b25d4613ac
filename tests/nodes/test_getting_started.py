# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Each command of docs/GETTING_STARTED.md, in its order, by somebody who has nothing but an ssh key.

The head has no way to a package index; it gets the packages of labrack's environment as files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from labrack.testnode import node, wheels
from tests import guides
from tests.nodes.conftest import KEEP, LAB
from tests.nodes.harness import ROOT, until

DEMO = f"{LAB}-start"
HOSTS = ("head", "node1", "node2")


@dataclass
class Newcomer:
    """A home with a key, a working directory, and what the guide's commands have said."""

    home: Path
    folder: Path
    said: dict[str, str] = field(default_factory=dict)

    def run(self, command: str, seconds: float = 900) -> str:
        """Run a command of the guide as its reader does; AssertionError with its words when it fails."""
        binaries = Path(sys.executable).parent
        environment = {
            "HOME": str(self.home),
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "SSH_AUTH_SOCK": str(self.home / "agent"),
            "LABRACK_DEMO_LAB": DEMO,
            "LANG": "C.UTF-8",
        }
        # the shell's working directory outlives its commands, as in a terminal
        script = f"set -e\n{command}\npwd >{self.home}/where\n"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        self.folder = Path((self.home / "where").read_text().strip())
        self.said[command] = done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def newcomer(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    home = tmp_path_factory.mktemp("newcomer")
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / ".ssh/id_ed25519")]
    (home / ".ssh").mkdir(mode=0o700)
    subprocess.run(key, check=True)
    # ssh looks for keys where the user database says that home is, and at an agent
    agent = home / "agent"
    daemon = subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.DEVNULL)
    until("the agent answers", agent.exists, bool)
    subprocess.run(["ssh-add", "-q", home / ".ssh/id_ed25519"], env={"SSH_AUTH_SOCK": str(agent)}, check=True)
    (home / ".gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.org\n")
    (home / "work").mkdir()
    someone = Newcomer(home, home / "work")
    someone.run("labrack demo down")
    yield someone
    if not KEEP:
        someone.run("labrack demo down")
    daemon.terminate()
    daemon.wait()


def give_packages() -> None:
    """Give the head the packages that pip is about to ask for, as an index."""
    lab = node.load(ROOT / ".labrack" / DEMO.removeprefix("labrack-"))
    wheels.give(lab.node("head"), (ROOT / "roles/gitops/files/requirements.txt").read_text(), print)


def test_every_command_of_the_guide_does_what_it_says(newcomer: Newcomer) -> None:
    listed = guides.commands("GETTING_STARTED.md")
    assert len(listed) > 25
    for command in listed:
        if command.startswith("labrack gitops install"):
            give_packages()
            newcomer.run(f"{command} --index-url=file:///srv/simple")
        else:
            newcomer.run(command)
        if command == "cd mylab":
            with open(newcomer.folder / "inventory/group_vars/all/lab.yml", "a", encoding="utf-8") as file:
                file.write('baseline_uv_version: "" # the machines have no way to PyPI\n')
    said = newcomer.said
    assert "SLURM" in said["labrack status"].upper() or "idle" in said["labrack status"]
    assert "nothing differs" in said["labrack drift"]
    ben = said['ansible all -m ansible.builtin.command -a "id ben"']
    assert ben.count("(ben)") >= len(HOSTS)
    status = said['ansible head -m ansible.builtin.command -a "/opt/labrack/venv/bin/labrack gitops status"']
    assert "Traceback" not in status
    # who looks leaves no line
    (history,) = newcomer.home.glob(".local/state/labrack/mylab-*/history.jsonl")
    runs = [json.loads(line)["playbook"] for line in history.read_text().splitlines()]
    assert "labrack.infra.closet" in runs and not {"labrack.infra.status", "labrack.infra.doctor"} & set(runs)


def test_drift_is_found_and_mended_and_only_signed_commits_count(newcomer: Newcomer) -> None:
    """What follows the guide in a lab's life, with its commands: by hand, by plan and apply, by the head alone."""
    ssh = "ansible {} -m ansible.builtin.shell -a '{}'"
    newcomer.run(ssh.format("head", "echo stranger >>/etc/slurm/slurm.conf"))
    newcomer.run(ssh.format("node1", "chmod 0644 /etc/munge/munge.key"))
    newcomer.run(ssh.format("node2", "systemctl disable --now munge"))
    drift = json.loads(newcomer.run("labrack drift --json || test $? -eq 2"))
    found = {(one["host"], item["name"]) for one in drift for item in one["items"]}
    assert found == {("head", "/etc/slurm/slurm.conf"), ("node1", "/etc/munge/munge.key"), ("node2", "munge.service")}
    plan = json.loads(newcomer.run("labrack plan --json || test $? -eq 2"))
    assert {host for host, node in plan["nodes"].items() if node["tasks"]} == set(HOSTS)
    newcomer.run("labrack apply --yes")
    newcomer.run("labrack plan")
    assert "nothing differs" in newcomer.run("labrack drift")

    # the head mends by itself
    newcomer.run(ssh.format("node2", "userdel ben"))
    tick = 'ansible head -m ansible.builtin.command -a "systemctl start labrack-gitops"'
    newcomer.run(tick)
    assert "(ben)" in newcomer.run(ssh.format("node2", "id ben"))

    # and takes nobody's word but that of who is listed
    newcomer.run("echo 'lab_users_archive: /srv/archive' >>inventory/group_vars/all/lab.yml")
    newcomer.run("labrack user remove ben --yes --no-run")
    newcomer.run("git -c commit.gpgSign=false commit --quiet --all --message 'ben leaves'; git push --quiet")
    newcomer.run(f"! {tick}")
    assert "(ben)" in newcomer.run(ssh.format("node2", "id ben"))
    newcomer.run("git commit --quiet --amend --no-edit --gpg-sign; git push --quiet --force")
    newcomer.run(tick)
    gone = newcomer.run(ssh.format("all", "getent passwd ben || echo nobody"))
    assert gone.count("nobody") == len(HOSTS)
