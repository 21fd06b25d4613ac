# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack user``, ``node`` and ``job-impact`` on the closet, by the command itself, with a copy of its inventory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from tests.nodes.harness import INVENTORIES, Closet

HOSTS = ("head", "node1", "node2")
ARCHIVE = "/srv/edit-archive"
CANARY = "canary-2Hq6Ts0nVb3J"
#: A host key that none of the nodes has.
FOREIGN = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAxtDdLFhjxLPLlaNtxqHH1H52mZ2rmP8yHqLqPDihf0"


@dataclass(frozen=True)
class Editor:
    """The closet with an inventory that may be edited."""

    closet: Closet
    inventory: Path

    def labrack(self, *arguments: str, rest: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run the command without a terminal, ``rest`` for ansible-playbook; any exit status is fine."""
        sources = [word for path in self.closet.inventory for word in ("-i", str(path))]
        command = [str(Path(sys.executable).with_name("labrack")), *arguments, *sources]
        command += ["--", *rest] if rest else []
        environment = {**os.environ, "XDG_STATE_HOME": str(self.inventory.parent / "state")}
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)

    def ok(self, *arguments: str) -> str:
        """Run the command, which must succeed; return what it printed."""
        done = self.labrack(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def people(self) -> str:
        return (self.inventory / "group_vars/all/lab.yml").read_text()


@pytest.fixture(scope="module")
def editor(converged: Closet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    folder = tmp_path_factory.mktemp("edit")
    inventory = shutil.copytree(INVENTORIES / "closet", folder / "inventory")
    with (inventory / "group_vars/all/lab.yml").open("a") as file:
        file.write(f"lab_users_archive: {ARCHIVE}\n")
    yield Editor(replace(converged, inventory=(inventory, converged.inventory[1])), inventory)
    for host in HOSTS:
        converged.root(host, f"rm -rf {ARCHIVE}")
    converged.root("head", "sacctmgr --immediate delete user zoe", check=False)


def test_somebody_comes_and_goes(editor: Editor) -> None:
    closet, before = editor.closet, editor.people
    key = str(closet.lab.state_dir / "researcher.pub")
    editor.ok("user", "add", "zoe", "--key", key, "--groups", "vision", "--account", "lab", "--yes")
    assert before.replace("slurm_health", "", 1) != editor.people and "  - name: zoe\n" in editor.people
    numbers = {closet.root(host, "id --user zoe; id --groups --name zoe") for host in HOSTS}
    assert len(numbers) == 1 and "vision" in numbers.pop()
    assert closet.user("zoe@head", "whoami").stdout == "zoe\n"
    assert closet.srun("zoe", "--gres=gpu:1", "whoami").stdout == "zoe\n"

    editor.ok("user", "lock", "zoe", "--yes")
    assert "    state: locked\n" in editor.people
    assert closet.user("zoe@head", "whoami").returncode == 255
    assert closet.root("node1", "passwd --status zoe").split()[1] == "L"

    editor.ok("user", "remove", "zoe", "--yes")
    assert "    state: absent\n" in editor.people
    assert {closet.root(host, "id zoe || true").strip() for host in HOSTS} == {""}
    # everybody else's lines are as they were
    lines = editor.people.splitlines()
    assert [line for line in before.splitlines() if line not in lines] == []


def test_a_node_takes_no_jobs_for_a_while(editor: Editor) -> None:
    closet = editor.closet
    job = closet.start("ada", "--nodelist=node2 --gres=gpu:1 --job-name=train")
    try:
        impact = editor.labrack("job-impact", "node2", "--json")
        assert impact.returncode == 2, impact.stderr
        (found,) = json.loads(impact.stdout)["jobs"]
        wanted = {"id": job, "user": "ada", "name": "train", "nodes": ["node2"], "gpus": 1, "state": "running"}
        assert {key: found[key] for key in wanted} == wanted and found["ends"] > 10**9
        assert editor.labrack("job-impact", "node1").returncode == 0
        assert "ada" in editor.labrack("job-impact").stdout

        told = editor.ok("node", "drain", "node2", "--reason", "new fan")
        assert "node2: drained (labrack-admin: new fan)" in told and f"job {job} of ada" in told
        assert "DRAIN" in closet.node("node2")["State"] and closet.job(job)["JobState"] == "RUNNING"
        # a run does not take an admin's drain back
        closet.play("labrack.infra.closet", "--tags", "slurm")
        assert closet.node("node2")["Reason"].startswith("labrack-admin: new fan")
    finally:
        resumed = editor.labrack("node", "resume", "node2")
    assert resumed.returncode == 0 and "node2: takes jobs" in resumed.stdout, resumed.stderr
    assert "DRAIN" not in closet.node("node2")["State"]
    closet.settle()


def test_what_somebody_drained_by_hand_stays_so(editor: Editor) -> None:
    closet = editor.closet
    closet.root("head", "scontrol update nodename=node1 state=drain reason='smells burnt'")
    try:
        done = editor.labrack("node", "resume", "node1")
        assert done.returncode == 1 and "smells burnt" in done.stdout
        assert "DRAIN" in closet.node("node1")["State"]
    finally:
        closet.root("head", "scontrol update nodename=node1 state=resume")
    closet.await_node("node1", lambda state: state == "IDLE", "is idle")


def test_a_lab_is_made_of_machines_and_reached_by_pinned_keys(editor: Editor) -> None:
    lab, folder = editor.closet.lab, editor.inventory.parent / "made"
    machines = [word for member in lab.nodes for word in ("--machine", f"{member.name}=127.0.0.1:{member.port}")]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder / "config")}
    command = [str(Path(sys.executable).with_name("labrack")), "init", str(folder / "lab"), *machines]
    command += ["--user", "root", "--private-key", str(lab.key), "--no-share", "--accept-host-keys"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    assert done.returncode == 0, done.stderr
    hosts = yaml.safe_load((folder / "lab/inventory/hosts.yml").read_text())
    assert [*hosts["lab_head"]["hosts"]] == ["head"] and [*hosts["lab_workers"]["hosts"]] == ["node1", "node2"]
    assert "a100" in (folder / "lab/inventory/hosts.yml").read_text()
    # what ssh takes is what the nodes have, and no other key
    pinned = folder / "lab/inventory/known_hosts.txt"
    for member in lab.nodes:
        key = editor.closet.root(member.name, "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub").strip()
        assert f"[127.0.0.1]:{member.port} ssh-ed25519 {key}\n" in pinned.read_text()
    ping = [str(Path(sys.executable).with_name("ansible")), "all", "-m", "ansible.builtin.ping"]
    reached = subprocess.run(ping, capture_output=True, text=True, cwd=folder / "lab", env=environment)
    assert reached.returncode == 0 and reached.stdout.count("SUCCESS") == 3, reached.stdout + reached.stderr
    # another machine at these addresses is not taken, but for a connection that is still open
    pinned.write_text("".join(f"[127.0.0.1]:{member.port} {FOREIGN}\n" for member in lab.nodes))
    fresh = {**environment, "ANSIBLE_SSH_ARGS": "-o ControlMaster=no"}
    refused = subprocess.run(ping, capture_output=True, text=True, cwd=folder / "lab", env=fresh)
    assert refused.returncode != 0 and "Host key verification failed" in refused.stdout + refused.stderr


def test_no_command_tells_or_keeps_a_secret(editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command once, with a secret in the vault, and those that the nodes made for themselves."""
    closet, page = editor.closet, tmp_path / "lab.html"
    password = tmp_path / "password"
    password.write_text("pass\n")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(password))
    encrypt = [str(Path(sys.executable).with_name("ansible-vault")), "encrypt_string", CANARY]
    made = subprocess.run([*encrypt, "--name", "lab_backup_password"], check=True, capture_output=True, text=True)
    vault = editor.inventory / "group_vars/all/vault.yml"
    vault.write_text(made.stdout)
    key = str(closet.lab.state_dir / "researcher.pub")
    closet.root("node1", "chmod 0644 /etc/munge/munge.key; chmod 0644 /usr/local/lib/labrack/slurm/prolog")
    said: dict[str, str] = {}
    for words in (
        "doctor --offline",
        "doctor --all --json",
        f"plan --diff --save {tmp_path / 'plan'}",
        f"apply {tmp_path / 'plan'} --yes",
        "plan --json --tags munge,slurm",
        "status",
        f"status --html {page}",
        "status --json",
        "storage --json",
        "drift --json",
        "job-impact --json",
        f"user add kim --key {key} --no-run --yes",
        "node drain node1 --reason fan",
        "node resume node1",
        # the playbooks' own words, and the callbacks'
        "apply --yes --tags lab_users -- -vvv --diff",
        "user remove kim --no-run --yes",
    ):
        arguments, _, rest = words.partition(" -- ")
        done = editor.labrack(*arguments.split(), rest=rest.split())
        said[words] = done.stdout + done.stderr
        assert done.returncode in (0, 1, 2) and "Traceback" not in said[words], said[words]
    vault.unlink()
    places = (tmp_path, editor.inventory.parent)
    kept = {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
    assert {"lab.html", "plan", "history.jsonl", "apply.log"} <= {path.name for path in kept}
    assert "kim" in said["apply --yes --tags lab_users -- -vvv --diff"]
    munge = closet.root("head", "base64 --wrap=0 /etc/munge/munge.key").strip()
    database = closet.root("head", "sed -n 's/^StoragePass=//p' /etc/slurm/slurmdbd.conf").strip()
    assert len(database) > 16
    for secret in (CANARY, munge[:20], munge[640:660], database):
        assert [words for words, text in said.items() if secret in text] == []
        assert [path for path, data in kept.items() if secret.encode() in data] == []
    for host in HOSTS:
        seen = closet.root(
            host, f"journalctl --no-pager | grep -c -e {CANARY} -e {database} -e {munge[:20]}", check=False
        )
        assert seen.strip() == "0"


def test_only_nodes_of_the_lab_are_drained(editor: Editor) -> None:
    done = editor.labrack("node", "drain", "node9")
    assert done.returncode == 1 and "node9" in done.stderr and "node1, node2" in done.stderr
