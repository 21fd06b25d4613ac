# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which jobs an interruption of nodes would hit, and what waits for consent there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labrack import cli, job_impact, lab
from labrack.run import Outcome

ROOT = Path(__file__).parents[2]
NOW = 1_795_700_000


def line(number: str, ends: str, name: str = "train", tres: str = "cpu=2,mem=8G,node=1,gres/gpu=2") -> str:
    fields = (number, "ada", "vision", "RUNNING", tres, ends, name)
    return "".join(f"{field:<20}|" for field in fields)


SEEN = {
    "node1": [line("7", str(NOW + 3600)), line("8_1", "N/A", "a | b"), "slurm_load_jobs error"],
    "node2": [line("8_1", "N/A", "a | b"), line("9", str(NOW + 90000), tres="cpu=1"), ""],
}


def test_jobs_are_read() -> None:
    jobs = job_impact.parse(SEEN)
    assert [job.id for job in jobs] == ["8_1", "9", "7"]
    assert jobs[0] == job_impact.Job("8_1", "ada", "vision", "running", 2, None, ("node1", "node2"), "a | b")
    assert [job.gpus for job in jobs] == [2, 0, 2]
    assert job_impact.parse({"node1": []}) == []


def run(ended: str, **hosts: Any) -> str:
    rest = {"started": ended, "playbook": "labrack.infra.closet", "check": False, "tags": [], "limit": "", "commit": ""}
    return json.dumps({"schema": 1, "ended": ended, "hosts": hosts, "by": "ada", "rc": 0, "roles": {}, **rest})


REBOOT = {"subject": "driver", "summary": "580 to 590", "disruption": "reboot"}
RELOAD = {"subject": "file /etc/x", "summary": "rewritten", "disruption": "reload"}


def test_what_waits_is_that_of_each_nodes_last_run(tmp_path: Path) -> None:
    lines = [
        run("2026-11-26T10:00:00Z", node1={"pending": [REBOOT]}, node2={"pending": [REBOOT, RELOAD]}),
        run("2026-11-26T11:00:00Z", node1={"pending": []}, node2={"unreachable": True, "pending": []}),
        '{"cut',
    ]
    (tmp_path / "history.jsonl").write_text("\n".join(lines))
    (one,) = job_impact.waiting(tmp_path, ())
    assert (one.node, one.subject, one.since) == ("node2", "driver", "2026-11-26T10:00:00Z")
    assert job_impact.waiting(tmp_path, ["node1"]) == []
    assert job_impact.waiting(tmp_path / "nowhere", ()) == []


@pytest.mark.parametrize(
    ("seen", "arguments", "status", "words"),
    [
        (SEEN, [], 2, ["ada", "no limit", "a reboot would end them", "driver: 580 to 590"]),
        ({"node1": []}, ["node1"], 0, ["No job runs there."]),
        (SEEN, ["node9"], 1, ["node9: not in the group slurm_worker"]),
    ],
)
def test_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen: dict[str, list[str]],
    arguments: list[str],
    status: int,
    words: list[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))
    inventory = shutil.copytree(ROOT / "inventories/closet", tmp_path / "inventory")
    (lab.state_dir([inventory]) / "history.jsonl").write_text(run("2026-11-26T10:00:00Z", node2={"pending": [REBOOT]}))

    def play(playbook: str, inventory: Any, log: Any, step: Any, variables: dict[str, str], **_: Any) -> Outcome:
        assert variables.get("node", "") == ",".join(arguments)
        Path(variables["job_impact_file"]).write_text(json.dumps(seen))
        return Outcome({}, {})

    monkeypatch.setattr(job_impact, "run_playbook", play)
    command = ["job-impact", *arguments, "-i", str(inventory)]
    done = CliRunner().invoke(cli.app, command, prog_name="labrack", env={"COLUMNS": "160"})
    assert done.exit_code == status, done.stderr
    assert [word for word in words if word not in done.output] == []
    if status != 1:
        document = json.loads(CliRunner().invoke(cli.app, [*command, "--json"]).stdout)
        assert len(document["jobs"]) == (3 if status == 2 else 0)
