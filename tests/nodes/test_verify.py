# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The playbook verify.yml tells the truth, to a reader and to a program."""

from __future__ import annotations

import json
from pathlib import Path

from tests.nodes.harness import Closet


def test_sound_lab_is_ok(closet: Closet, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    run = closet.play("labrack.infra.verify", verify_file=str(file))
    document = json.loads(file.read_text())
    assert json.loads(run.task("head", "Show the document").result["msg"]) == document
    assert document["ok"] is True and document["failures"] == []
    ran = {check["node"] for check in document["checks"] if check["name"] == "job" and check["ok"]}
    assert ran == {"node1", "node2", "any"}
    looked = {check["name"] for check in document["checks"] if check["node"] == "node2"}
    assert {"state", "GPU device files", "CPUs", "memory", "CUDA_VISIBLE_DEVICES"} <= looked
    table = run.task("head", "Show the table").result["msg"]
    assert any(line.startswith("node2") and " ok " in line for line in table)


def test_drained_node_is_a_failure_with_its_mend(closet: Closet, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    closet.root("head", "scontrol update nodename=node1 state=drain reason='new fan'")
    try:
        run = closet.play("labrack.infra.verify", ok=False, verify_file=str(file))
    finally:
        closet.root("head", "scontrol update nodename=node1 state=resume")
    assert run.rc != 0
    document = json.loads(file.read_text())
    assert document["ok"] is False
    (failure,) = document["failures"]
    assert failure["node"] == "node1" and "new fan" in failure["seen"]
    assert "scontrol update nodename=node1 state=resume" in failure["mend"]


def test_busy_node_is_no_failure(closet: Closet, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    closet.start("ada", "--nodelist=node1 --exclusive")
    closet.play("labrack.infra.verify", verify_file=str(file))
    document = json.loads(file.read_text())
    (job,) = [check for check in document["checks"] if check["node"] == "node1" and check["name"] == "job"]
    assert job["ok"] is None and document["ok"] is True
