# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Inventories as the commands read them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from labrack import lab
from labrack.shell import UserError

ROOT = Path(__file__).parents[2]
LAB = """\
all:
  vars: {prefix: node, lab_note: "{{ prefix }} and more", lab_odd: "{{ nowhere }}"}
  children:
    lab_head: {hosts: {head: }}
    lab_workers: {hosts: {node1: {ansible_port: 22}, head: }}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a state directory of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hosts_have_their_resolved_variables(home: Path) -> None:
    (home / "hosts.yml").write_text(LAB)
    found = lab.load(lab.inventory([Path("hosts.yml")]))
    assert found.members == ("head", "node1") and found.groups["lab_workers"] == ("node1", "head")
    assert found.hosts["node1"]["lab_note"] == "node and more" and found.hosts["node1"]["ansible_port"] == 22
    assert found.hosts["head"]["lab_odd"] == "{{ nowhere }}"


def test_a_vaulted_value_needs_its_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "password").write_text("pass")
    ansible = Path(sys.executable).with_name("ansible-vault")
    command = [str(ansible), "encrypt_string", "--vault-password-file", "password", "canary", "--name", "secret"]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (home / "inventory/group_vars").mkdir(parents=True)
    (home / "inventory/group_vars/all.yml").write_text(made)
    (home / "inventory/hosts.yml").write_text(LAB)
    assert lab.load(lab.inventory(None)).hosts["head"]["secret"] == lab.HIDDEN
    script = "from labrack import lab; print(lab.load(lab.inventory(None)).hosts['head']['secret'])"
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", "password")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}/scripts:{ROOT}/collections")
    assert (
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "canary\n"
    )


@pytest.mark.parametrize(("name", "tier"), [("closet", "closet"), ("under_desk", "under_desk")])
def test_the_tier_is_seen(name: str, tier: str) -> None:
    assert lab.load(lab.inventory([ROOT / "inventories" / name])).tier == tier


def test_no_inventory_is_the_users_error(home: Path) -> None:
    with pytest.raises(UserError, match="labrack init"):
        lab.inventory(None)
    with pytest.raises(UserError, match="is not there"):
        lab.inventory([Path("nowhere")])
    (home / "bad.yml").write_text("all: [")
    with pytest.raises(UserError, match="can't be read"):
        lab.load(lab.inventory([Path("bad.yml")]))


def test_labs_have_directories_of_their_own(home: Path) -> None:
    first, second = home / "a/inventory", home / "b/inventory"
    assert lab.state_dir([first]) != lab.state_dir([second])
    assert lab.state_dir([first]).name.startswith("a-") and lab.state_dir([first]).stat().st_mode & 0o777 == 0o700
