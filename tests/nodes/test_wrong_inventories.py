# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Wrong inventories are refused before any node is touched. tests/unit/test_lab_check.py has all the rules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.nodes.harness import INVENTORIES, Closet

Edit = Callable[[dict[str, Any], dict[str, Any]], None]


def no_head(groups: dict[str, Any], lab: dict[str, Any]) -> None:
    groups["slurm_controller"] = {}


def same_uid(groups: dict[str, Any], lab: dict[str, Any]) -> None:
    lab["lab_users"][1]["uid"] = 2001


def unknown_node(groups: dict[str, Any], lab: dict[str, Any]) -> None:
    lab["slurm_partitions"] = [{"name": "gpu", "nodes": ["node9"], "default_time": "60", "max_time": "60"}]


def missing_gpu(groups: dict[str, Any], lab: dict[str, Any]) -> None:
    groups["lab_workers"]["hosts"]["node1"] = {"slurm_gpu_count": 3}


@pytest.mark.parametrize(
    ("edit", "reads_nodes", "words"),
    [
        (no_head, False, ["slurm_controller"]),
        (same_uid, False, ["lab.yml", "lab_users[1].uid = 2001", "ada"]),
        (unknown_node, False, ["lab.yml", "slurm_partitions", "node9"]),
        (missing_gpu, True, ["slurm_gpu_count", "3", "node1"]),
    ],
)
def test_refused(bare: Closet, tmp_path: Path, edit: Edit, reads_nodes: bool, words: list[str]) -> None:
    source = shutil.copytree(INVENTORIES / "closet", tmp_path / "inventory")
    files = [source / "groups.yml", source / "group_vars/all/lab.yml"]
    groups, lab = [yaml.safe_load(file.read_text()) for file in files]
    edit(groups, lab)
    for file, data in zip(files, (groups, lab), strict=True):
        file.write_text(yaml.safe_dump(data))
    wrong = replace(bare, inventory=(source, bare.inventory[1]))
    run = wrong.play(ok=False)
    assert run.rc != 0
    assert not [word for word in words if word not in run.messages], run.messages
    # node_facts reads and changes nothing
    allowed = {"lab_check", "node_facts", "assert"} if reads_nodes else {"lab_check"}
    assert {task.action for task in run.tasks} <= allowed
    assert set(run.changed.values()) <= {0}
