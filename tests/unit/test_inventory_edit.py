# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack user`` and ``labrack node`` as far as they edit the inventory, and the playbooks that they would run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from labrack import asking, cli, front_end, host_keys, inventory_edit, node_edit, shell
from labrack.run import Outcome

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the closet's inventory, addresses that are no example's, and a public key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "inventories/closet", tmp_path / "inventory")
    hosts = tmp_path / "inventory/hosts.yml"
    hosts.write_text(hosts.read_text().replace("192.0.2", "10.9.9"))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "x", "-f", str(tmp_path / "key")], check=True)
    return tmp_path


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...], Mapping[str, str]]]:
    """The playbooks that were run, with tags and variables; none runs really."""
    found: list[tuple[str, tuple[str, ...], Mapping[str, str]]] = []

    def run(playbook: str, inventory: Any, log: Any, step: Any, tags: Any = (), variables: Any = None) -> Outcome:
        found.append((playbook, tuple(tags), dict(variables or {})))
        return Outcome({}, {})

    monkeypatch.setattr(front_end, "run_playbook", run)
    return found


def labrack_command(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(cli.app, arguments, prog_name="labrack", terminal_width=120, input=text)


def users() -> Any:
    return yaml.safe_load(Path("inventory/group_vars/all/lab.yml").read_text())["lab_users"]


def test_somebody_is_added(played: list[Any]) -> None:
    done = labrack_command("user", "add", "zoe", "--key", "key.pub", "--groups", "vision", "--sudo", "--yes")
    assert done.exit_code == 0, done.stderr
    key = Path("key.pub").read_text().strip()
    assert users() == [{"name": "zoe", "groups": ["vision"], "sudo": True, "keys": [key]}]
    assert "+  - name: zoe" in done.stderr
    assert played == [("labrack.infra.closet", ("lab_users", "slurm"), {})]


def test_an_account_is_locked_then_removed(played: list[Any]) -> None:
    lab = Path("inventory/group_vars/all/lab.yml")
    lab.write_text(lab.read_text() + "lab_users_archive: /srv/archive\n")
    assert labrack_command("user", "add", "zoe", "--uid", "2009", "--sudo", "--yes", "--no-run").exit_code == 0
    assert labrack_command("user", "lock", "zoe", "--yes").exit_code == 0
    assert users() == [{"name": "zoe", "uid": 2009, "sudo": False, "state": "locked"}]
    assert labrack_command("user", "remove", "zoe", "--yes").exit_code == 0
    assert users()[0]["state"] == "absent"
    assert [play[0] for play in played] == ["labrack.infra.offboard", "labrack.infra.closet"]
    again = labrack_command("user", "lock", "zoe", "--yes")
    assert again.exit_code == 1 and "removed already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["user", "add", "zoe", "--groups", "nix"], "nix: not in lab_groups"),
        (["user", "add", "zoe", "--uid", "12"], "in the range of the system's own accounts"),
        (["user", "add", "root"], "root is an account or group of the system"),
        (["user", "add", "zoe", "--key", "nowhere.pub"], "there is no such file"),
        (["user", "add", "zoe", "--key", "key"], "this is a private key"),
        (["user", "add", "zoe", "--key", "ssh-ed25519 AAAA x"], "not a public SSH key"),
        (["user", "lock", "zoe"], "zoe is not in lab_users; it has nobody"),
        (["user", "remove", "zoe"], "zoe is not in lab_users"),
        (["node", "join", "node3"], "Say where ssh reaches it, with --address"),
        (["node", "join", "node3", "--address", "10.9.9.11"], "also the address of node1"),
        (["node", "join", "Node_3", "--address", "a b"], "not an address"),
        (["node", "join", "node3", "--address", "10.9.9.13", "--group", "nix"], "No group nix"),
        (["node", "join", "node1", "--address", "10.9.9.99"], "in the inventory already, with the address 10.9.9.11"),
        (["node", "leave", "node9"], "node9 is not in the inventory"),
        (["node", "leave", "head"], "no host is in it"),
        (["node", "drain", "node1", "node9"], "node9: not in the group slurm_worker. Name some of node1, node2"),
    ],
)
def test_refused(played: list[Any], home: Path, arguments: list[str], words: str) -> None:
    before = {file: file.read_bytes() for file in (home / "inventory").rglob("*") if file.is_file()}
    done = labrack_command(*arguments, *([] if "drain" in arguments else ["--yes"]))
    assert done.exit_code == 1
    assert words in done.stderr and str(home / "state") not in done.stderr and "labrack-" not in done.stderr
    assert {file: file.read_bytes() for file in (home / "inventory").rglob("*") if file.is_file()} == before
    assert played == []


def test_what_was_wrong_before_is_no_reason_to_refuse() -> None:
    hosts = Path("inventory/hosts.yml")
    hosts.write_text(hosts.read_text().replace("10.9.9.12", "192.0.2.12"))
    assert labrack_command("user", "add", "zoe", "--yes", "--no-run").exit_code == 0


def test_without_a_terminal_somebody_says_yes(played: list[Any]) -> None:
    done = labrack_command("user", "add", "zoe")
    assert done.exit_code == 1 and "give --yes" in done.stderr
    assert users() == [] and played == []


def test_a_no_changes_nothing(played: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "yes", lambda *_, **__: False)
    assert labrack_command("user", "add", "zoe").exit_code == 1
    assert users() == [] and played == []


def test_a_node_joins_and_leaves(played: list[Any]) -> None:
    before = Path("inventory/hosts.yml").read_text()
    assert labrack_command("node", "join", "node3", "--address", "10.9.9.13:2222", "--yes").exit_code == 0
    found = yaml.safe_load(Path("inventory/hosts.yml").read_text())
    assert found["lab_workers"]["hosts"]["node3"] == {"ansible_host": "10.9.9.13", "ansible_port": 2222}
    # what was cut off goes on
    assert labrack_command("node", "join", "node3", "--yes").exit_code == 0
    assert labrack_command("node", "leave", "node3", "--yes").exit_code == 0
    assert Path("inventory/hosts.yml").read_text() == before
    joined = ("labrack.infra.node_join", (), {"node": "node3"})
    assert played == [joined, joined, ("labrack.infra.node_leave", (), {"node": "node3"})]


def test_a_node_that_does_not_leave_stays_in_the_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path("inventory/hosts.yml").read_text()

    def fail(*_: Any, **__: Any) -> None:
        raise shell.UserError("it has jobs")

    monkeypatch.setattr(front_end, "run", fail)
    assert labrack_command("node", "leave", "node2", "--yes").exit_code == 1
    assert Path("inventory/hosts.yml").read_text() == before


KEY = host_keys.HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIAxtDdLFhjxLPLlaNtxqHH1H52mZ2rmP8yHqLqPDihf0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --fingerprint"),
        (["--fingerprint", "SHA256:other"], "somebody stands in between"),
        (["--fingerprint", KEY.fingerprint], ""),
        (["--accept-host-key"], ""),
    ],
)
def test_the_host_key_of_a_new_node_is_pinned(
    played: list[Any], monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    pinned = Path("inventory") / host_keys.FILE
    pinned.write_text("10.9.9.11 ssh-ed25519 AAAA\n")
    monkeypatch.setattr(host_keys, "scan", lambda _: [KEY])
    done = labrack_command("node", "join", "node3", "--address", "10.9.9.13:2222", "--yes", *arguments)
    if words:
        assert done.exit_code == 1 and words in done.stderr and played == []
        return
    assert pinned.read_text() == f"10.9.9.11 ssh-ed25519 AAAA\n[10.9.9.13]:2222 ssh-ed25519 {KEY.key}\n"
    assert labrack_command("node", "leave", "node3", "--yes").exit_code == 0
    assert pinned.read_text() == "10.9.9.11 ssh-ed25519 AAAA\n"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["user", "add", "zoe", "--uid", "2009"],
            ["ansible-playbook labrack.infra.closet -i inventory --tags lab_users,slurm"],
        ),
        (["node", "join", "node2"], ["ansible-playbook labrack.infra.node_join -i inventory -e node=node2"]),
        (["node", "leave", "node2"], ["ansible-playbook labrack.infra.node_leave -i inventory -e node=node2"]),
        (
            ["node", "drain", "node1", "node2", "--reason", "new fan", "--wait", "60"],
            [
                "ansible-playbook labrack.infra.node_drain -i inventory -e node=node1,node2 "
                '-e \'{"node_reason": "new fan"}\' -e node_timeout=60'
            ],
        ),
        (
            ["node", "resume", "node1"],
            ["ansible-playbook labrack.infra.node_drain -i inventory -e node=node1 -e node_state=resumed"],
        ),
    ],
)
def test_the_command_line_is_printed_and_nothing_done(
    played: list[Any], arguments: list[str], lines: list[str]
) -> None:
    done = labrack_command(*arguments, "--print-command")
    assert (done.exit_code, done.stdout.splitlines()) == (0, lines)
    assert users() == [] and played == []


def test_a_file_that_changed_meanwhile_is_left_alone(home: Path) -> None:
    edit = inventory_edit.add_user([home / "inventory"], {"name": "zoe"})
    edit.file.write_text(edit.before + "# by somebody else\n")
    with pytest.raises(shell.UserError, match="has changed meanwhile"):
        inventory_edit.write([edit])
    assert edit.file.read_text() == edit.before + "# by somebody else\n"


def test_people_at_two_places_are_nobodys_to_edit(home: Path) -> None:
    (home / "inventory/group_vars/lab_head.yml").write_text("lab_users: []\n")
    with pytest.raises(shell.UserError, match="more than one place"):
        inventory_edit.add_user([home / "inventory"], {"name": "zoe"})


def test_people_get_a_file_where_there_is_none(home: Path) -> None:
    (home / "inventory/group_vars/all/lab.yml").unlink()
    edit = inventory_edit.add_user([home / "inventory"], {"name": "zoe"})
    assert edit.after == "---\nlab_users:\n  - name: zoe\n"


def test_a_file_keeps_its_mode_and_its_link(home: Path) -> None:
    real, link = home / "real.yml", home / "link.yml"
    real.write_text("a")
    real.chmod(0o600)
    link.symlink_to(real)
    inventory_edit.replace(link, "b")
    assert link.is_symlink() and real.read_text() == "b" and real.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in home.iterdir() if path.name.startswith(".")) == []


def test_addresses() -> None:
    assert host_keys.address("[fe80::1]:2222").pattern == "[fe80::1]:2222"
    assert host_keys.address("fe80::1") == host_keys.Address("fe80::1")
    assert host_keys.address("node1:22").pattern == "node1"
    for wrong in ("", "-oProxyCommand=x", "a@b", "a:0", "a:b", "a'b"):
        with pytest.raises(shell.UserError):
            host_keys.address(wrong)


def test_hosts_of_a_program_are_left_alone(home: Path) -> None:
    (home / "extra.json").write_text('{"lab_workers": {"hosts": {"node7": {"ansible_host": "10.9.9.17"}}}}')
    with pytest.raises(shell.UserError, match=r"extra\.json, which labrack does not edit"):
        node_edit.leave([home / "inventory", home / "extra.json"], "node7")
