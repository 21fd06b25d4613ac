"""The inventory plugin of inventories/demo: what the demo wrote is what Ansible sees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "ansible.cfg")
DOCUMENT = {
    "all": {
        "hosts": {"head": {"ansible_host": "127.0.0.1", "ansible_port": 2201}, "node1": {"ansible_port": 2202}},
        "vars": {"demo_keys": ["ssh-ed25519 AAAA ada"]},
        "children": {"lab_head": {"hosts": {"head": {}}}, "lab_workers": {"hosts": {"node1": {}}}},
    }
}


def listed(state: Path, inventory: Path = ROOT / "inventories/demo") -> tuple[dict[str, Any], str]:
    """What ansible-inventory lists of the demo's inventory, its state in a directory, and what it warns of."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(inventory), "--list"],
        cwd=ROOT,
        env={
            **os.environ,
            "XDG_STATE_HOME": str(state),
            "HOME": str(state),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document, done.stderr


def test_hosts_groups_and_variables_are_those_of_the_demo(tmp_path: Path) -> None:
    state = tmp_path / "labrack/demo"
    state.mkdir(parents=True)
    (state / "hosts.json").write_text(json.dumps(DOCUMENT))
    seen, _warnings = listed(tmp_path)
    assert seen["lab_head"]["hosts"] == ["head"] and seen["lab_workers"]["hosts"] == ["node1"]
    variables = seen["_meta"]["hostvars"]["head"]
    assert variables["ansible_port"] == 2201
    # what a plugin says is no template, and marked so
    assert "ssh-ed25519 AAAA ada" in json.dumps(variables["demo_keys"])
    # the people come from the inventory's own file
    assert {user["name"] for user in variables["lab_users"]} == {"ada", "ben"}


def test_without_a_demo_there_are_no_hosts_and_a_word_about_it(tmp_path: Path) -> None:
    lonely = tmp_path / "inventories/demo"
    shutil.copytree(ROOT / "inventories/demo", lonely)
    seen, warnings = listed(tmp_path, lonely)
    assert not seen["_meta"]["hostvars"]
    assert "The demo is not up" in warnings
