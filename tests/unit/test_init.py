# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack init``: its advice, what it writes, and its questions in a pseudo-terminal. No machine is asked here."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from typer.testing import CliRunner, Result

from labrack import cli, host_keys, init, shell, vault
from labrack.advice import NEEDS, advise
from labrack.host_keys import HostKey

ROOT = Path(__file__).parents[2]
KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIAxtDdLFhjxLPLlaNtxqHH1H52mZ2rmP8yHqLqPDihf0")
CARD = {"slurm_type": "rtx_4090", "name": "NVIDIA GeForce RTX 4090"}
#: What the machines would tell of themselves, by their number of cards.
FAKES = f"""
from labrack import host_keys, init
def facts(cards):
    return {{
        "os": {{"pretty": "Debian GNU/Linux 13 (trixie)"}}, "cpu": {{"cpus": 8}}, "memory_mib": 65536,
        "gpus": [{CARD!r}] * cards, "addresses": {{"ipv4": ["10.9.9.10"]}},
    }}
CARDS = {{"head": 0, "node1": 4, "node2": 2, "desk": 2}}
def look(addresses, keys, user, private_key, step):
    return {{name: init.Machine(name, where, facts(CARDS[name])) for name, where in addresses.items()}}
init._look = look
host_keys.scan = lambda where: [host_keys.HostKey({KEY.kind!r}, {KEY.key!r})]
"""
MACHINES = ("-m", "head=10.9.9.10", "-m", "node1=10.9.9.11", "-m", "node2=10.9.9.12:2222")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, which is the working directory too, and machines that are made up."""
    for name, folder in (("HOME", ""), ("XDG_STATE_HOME", "state"), ("XDG_CONFIG_HOME", "config")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))
    there = init._look, host_keys.scan
    exec(FAKES, {})
    faked = init._look, host_keys.scan
    (init._look, host_keys.scan) = there
    monkeypatch.setattr(init, "_look", faked[0])
    monkeypatch.setattr(host_keys, "scan", faked[1])
    return tmp_path


def labrack_command(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, prog_name="labrack", terminal_width=120)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("machines", "needs", "tier", "best", "written", "words"),
    [
        (1, [], "under_desk", "skypilot", "skypilot", "queues jobs when the GPUs are taken"),
        (1, ["fair_share"], "under_desk", "skypilot", "skypilot", "costs more to look after than it brings"),
        (1, ["no_kubernetes"], "under_desk", "skypilot", "skypilot", "k3s needs little care"),
        (3, [], "closet", "skypilot_ssh", "slurm", "one interface"),
        (3, ["cloud"], "closet", "skypilot_ssh", "slurm", "What it builds today is Slurm"),
        (3, ["fair_share"], "closet", "slurm", "slurm", "strict fair shares"),
        (3, ["fair_share", "cloud"], "closet", "slurm", "slurm", "It does not start machines in a cloud"),
        (3, ["fair_share", "services"], "closet", "slurm", "slurm", "Kubernetes would be the better ground"),
        (3, ["services"], "closet", "rke2", "slurm", "services beside the jobs"),
        (3, ["growth", "no_kubernetes"], "closet", "rke2", "slurm", "dstack would be the nearest"),
        (3, ["no_kubernetes"], "closet", "dstack", "slurm", "without Kubernetes underneath"),
        (8, [], "closet", "skypilot_ssh", "slurm", "Beyond 5 machines"),
        (8, ["fair_share"], "closet", "slurm", "slurm", "A closet is meant for 2 to 5"),
    ],
)
def test_advice(machines: int, needs: list[str], tier: str, best: str, written: str, words: str) -> None:
    advice = advise(machines, needs)
    assert (advice.tier, advice.orchestrator, advice.written) == (tier, best, written)
    assert words in " ".join(advice.reasons)


def test_every_need_of_a_team_says_something() -> None:
    plain = advise(3)
    assert [need for need in NEEDS if need != "cloud" and advise(3, [need]) == plain] == []


def test_a_closet(home: Path) -> None:
    done = labrack_command("init", "mylab", *MACHINES, "--user", "admin", "--fingerprint", KEY.fingerprint)
    assert done.exit_code == 0, done.stderr
    lab = home / "mylab"
    assert [*files(lab)] == [
        ".gitignore",
        "README.md",
        "ansible.cfg",
        "inventory/group_vars/all/lab.yml",
        "inventory/group_vars/all/vault.yml",
        "inventory/hosts.yml",
        "inventory/known_hosts.txt",
    ]
    hosts = yaml.safe_load(files(lab)["inventory/hosts.yml"])
    assert hosts["lab_head"]["hosts"] == {"head": {"ansible_host": "10.9.9.10"}}
    assert hosts["lab_workers"]["hosts"]["node2"] == {"ansible_host": "10.9.9.12", "ansible_port": 2222}
    assert hosts["nfs_server"] == hosts["slurm_controller"] == {"children": {"lab_head": None}}
    assert "node1: # Debian GNU/Linux 13 (trixie), 8 CPUs, 64 GiB, 4 x rtx_4090\n" in files(lab)["inventory/hosts.yml"]
    values = yaml.safe_load(files(lab)["inventory/group_vars/all/lab.yml"])
    assert len(values) <= 30 and (values["ansible_user"], values["slurm_cluster_name"]) == ("admin", "mylab")
    assert [one["path"] for one in values["lab_directories"]] == ["/data", "/checkpoints"]
    # the example's words are still there
    assert "# Projects share the GPUs" in files(lab)["inventory/group_vars/all/lab.yml"]
    assert f"[10.9.9.12]:2222 {KEY.kind} {KEY.key}\n" in files(lab)["inventory/known_hosts.txt"]
    # no path of this machine
    assert str(home) not in "".join(files(lab).values())
    password = home / "config/labrack/mylab.vault"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    secret = VaultSecret(password.read_text().strip().encode())
    opened = VaultLib([("default", secret)]).decrypt(files(lab)["inventory/group_vars/all/vault.yml"])
    assert opened.decode() == vault.TEXT
    assert password.read_text().strip() not in done.output + "".join(files(lab).values())


def test_plain_ansible_takes_the_folder(home: Path) -> None:
    """The syntax check is a part of init; here ansible.cfg finds inventory, vault and host keys by itself."""
    made = labrack_command("init", "a b", "--name", "mylab", *MACHINES, "--user", "admin", "--accept-host-keys")
    assert made.exit_code == 0, made.stderr
    environment = {name: value for name, value in os.environ.items() if name != "ANSIBLE_CONFIG"}
    ansible = Path(sys.executable).with_name("ansible")
    command = [str(ansible), "node1", "-m", "ansible.builtin.debug", "-a", "var=ansible_ssh_common_args"]
    done = subprocess.run(command, cwd=home / "a b", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'UserKnownHostsFile="{home}/a b/inventory/known_hosts.txt"' in " ".join(done.stdout.split())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out ansible-playbook's syntax check, which takes seconds and which other tests have."""
    monkeypatch.setattr(init, "_check_syntax", lambda *_: None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("share", [True, False])
def test_one_machine(home: Path, share: bool) -> None:
    arguments = ["init", "-m", "desk=local", "--user", "admin", "--name", "desk"]
    assert labrack_command(*arguments, "--share" if share else "--no-share").exit_code == 0
    hosts = yaml.safe_load((home / "inventory/hosts.yml").read_text())
    assert [*hosts] == ["lab_head", "lab_workers"]
    assert hosts["lab_head"]["hosts"]["desk"]["ansible_connection"] == "local"
    assert yaml.safe_load((home / "inventory/group_vars/all/lab.yml").read_text())["lab_orchestrator"] == "skypilot"


@pytest.mark.usefixtures("quick")
def test_answers_from_a_file(home: Path) -> None:
    found = {
        "name": "mylab",
        "machines": {"head": "10.9.9.10", "node1": "10.9.9.11"},
        "user": "root",
        "needs": ["fair_share"],
        "workers": ["head", "node1"],
        "share": False,
        "fingerprints": [KEY.fingerprint],
        "private_key": "~/.ssh/lab",
        "vault_password_file": "~/elsewhere/pass",
    }
    (home / "answers.yml").write_text(yaml.safe_dump(found))
    done = labrack_command("init", "lab", "--answers", "answers.yml", "--user", "admin")
    assert done.exit_code == 0, done.stderr
    values = yaml.safe_load((home / "lab/inventory/group_vars/all/lab.yml").read_text())
    assert (values["ansible_user"], values["lab_directories"]) == ("admin", [])
    assert values["ansible_ssh_private_key_file"] == "~/.ssh/lab"
    hosts = yaml.safe_load((home / "lab/inventory/hosts.yml").read_text())
    assert hosts["lab_workers"]["hosts"] == {"head": None, "node1": {"ansible_host": "10.9.9.11"}}
    assert "nfs_server" not in hosts
    assert "vault_password_file = ~/elsewhere/pass" in (home / "lab/ansible.cfg").read_text()


GIVEN = [*MACHINES, "--user", "admin", "--accept-host-keys"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --machine"),
        (["-m", "head=10.9.9.10"], "give --user"),
        (["-m", "head=10.9.9.10", "--user", "admin"], "give --fingerprint for each machine (or --accept-host-keys)"),
        (["-m", "head"], "write a machine as NAME=ADDRESS"),
        (["-m", "Head=10.9.9.10"], "lower-case letters, digits and hyphens"),
        (["-m", "a=10.9.9.10", "-m", "b=10.9.9.10"], "the same address"),
        (["-m", "a=10.9.9.10", "-m", "a=10.9.9.11"], "the same name"),
        ([*GIVEN, "--fingerprint", "SHA256:x"], "somebody stands in between"),
        ([*GIVEN, "--head", "nobody"], "--head nobody: there is no such machine"),
        ([*GIVEN, "--worker", "nobody"], "--worker nobody"),
        ([*GIVEN, "--worker", "node1"], "node2: neither head nor worker"),
        ([*GIVEN, "--need", "speed"], "--need speed: there is no such need"),
        ([*GIVEN, "--orchestrator", "rke2"], "labrack does not build it yet. Use slurm or skypilot or none"),
        ([*GIVEN, "--orchestrator", "nomad"], "there is no such orchestrator"),
        ([*GIVEN, "--name", "My Lab"], "--name My Lab"),
        ([*GIVEN, "--answers", "nowhere.yml"], "can't be read"),
        ([*GIVEN, "--vault-password-file", "open"], "Others may read"),
    ],
)
def test_refused(home: Path, arguments: list[str], words: str) -> None:
    (home / "open").write_text("x")
    (home / "open").chmod(0o644)
    done = labrack_command("init", "mylab", *arguments)
    assert done.exit_code == 1 and words in done.stderr, done.stderr
    assert not (home / "mylab").exists() and not (home / "config").exists()
    assert [path.name for path in home.iterdir() if path.name.startswith(".labrack")] == []


@pytest.mark.parametrize(
    ("text", "words"), [("- a\n", "not a mapping"), ("speed: 1\n", "speed is no answer"), ("needs: x\n", "not a list")]
)
def test_wrong_answers(home: Path, text: str, words: str) -> None:
    (home / "answers.yml").write_text(text)
    with pytest.raises(shell.UserError, match=words):
        init.answers(home / "answers.yml")


@pytest.mark.usefixtures("quick")
def test_a_second_time_only_by_force(home: Path) -> None:
    assert labrack_command("init", "mylab", *GIVEN).exit_code == 0
    lab = home / "mylab"
    (lab / "inventory/lab_uids.txt").write_text("ada: 2001\n")
    (lab / "README.md").write_text("mine\n")
    before = files(lab)
    refused = labrack_command("init", "mylab", *GIVEN, "--user", "other")
    assert refused.exit_code == 1 and "give --force" in refused.stderr and files(lab) == before
    assert labrack_command("init", "mylab", *GIVEN, "--user", "other", "--force").exit_code == 0
    after = files(lab)
    assert {name for name in before if before[name] != after[name]} == {"inventory/group_vars/all/lab.yml"}


def test_an_inventory_that_the_rules_refuse_is_not_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = labrack_command("init", "mylab", "-m", "head=192.0.2.10", "--user", "admin", "--accept-host-keys")
    assert refused.exit_code == 1 and "an example's address" in refused.stderr
    assert not (home / "mylab").exists() and not (home / "config").exists()


@pytest.mark.usefixtures("quick")
def test_what_can_not_be_moved_leaves_no_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise shell.UserError("disk full")

    monkeypatch.setattr(init, "_move", fail)
    assert labrack_command("init", "mylab", *GIVEN).exit_code == 1
    assert [path for path in home.rglob("*") if path.is_file() and "state" not in path.parts] == []


def test_a_folder_that_can_not_be_written(home: Path) -> None:
    (home / "file").write_text("")
    done = labrack_command("init", "file/lab", *GIVEN)
    assert done.exit_code == 1 and done.stderr.rstrip().endswith("Nothing was changed."), done.stderr


@pytest.fixture
def terminal(home: Path) -> Iterator[Any]:
    """Starts the command in a pseudo-terminal."""
    started: list[Any] = []
    (home / "start.py").write_text(f"{FAKES}\nfrom labrack.cli import app\napp(prog_name='labrack')\n")

    def start(*arguments: str) -> Any:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/scripts:{ROOT}/collections", "TERM": "xterm"}
        child = pexpect.spawn(
            sys.executable,
            [str(home / "start.py"), "init", *arguments],
            env=environment,
            cwd=str(home),
            encoding="utf-8",
            timeout=60,
            dimensions=(50, 160),
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def test_questions_in_a_terminal(home: Path, terminal: Any) -> None:
    child = terminal("mylab")
    child.expect("What is the lab called")
    child.send("\r")
    child.expect("Which machines")
    child.send("head=10.9.9.10 node1=10.9.9.11\r")
    child.expect("Who logs in there")
    child.send("\x15admin\r")
    child.expect(re.escape(KEY.fingerprint))
    child.expect("Are these the machines")
    child.send("y")
    child.expect("What matters to your team")
    child.send(" \r")
    child.expect("Slurm would suit you best")
    child.expect("Which of those")
    child.send("\r")
    child.expect("Which one do people log in to")
    child.send("\r")
    child.expect("by NFS")
    child.send("n")
    child.expect("wrote")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
    values = yaml.safe_load((home / "mylab/inventory/group_vars/all/lab.yml").read_text())
    assert (values["ansible_user"], values["slurm_cluster_name"], values["lab_directories"]) == ("admin", "mylab", [])

    before = files(home / "mylab")
    child = terminal("mylab")
    child.expect("Write over it")
    child.send("\r")
    child.expect("Nothing was changed")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 1 and files(home / "mylab") == before


@pytest.mark.parametrize("after", ["What is the lab called", "Which one do people log in to"])
def test_an_interrupt_leaves_nothing(home: Path, terminal: Any, after: str) -> None:
    child = terminal("mylab", *MACHINES)
    for question, answer in (
        ("What is the lab called", "\r"),
        ("Who logs in there", "\r"),
        ("Are these the machines", "y"),
        ("What matters to your team", "\r"),
        ("Which of those", "\r"),
        ("Which one do people log in to", "\r"),
    ):
        child.expect(question)
        if question == after:
            break
        child.send(answer)
    child.sendcontrol("c")
    child.expect("Interrupted. Nothing was changed.")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130
    # Ansible makes a folder of its own
    assert {path.name for path in home.iterdir()} - {".ansible"} == {"start.py"}
