# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who uses what of the lab's storage: the document of a host, and what ``labrack storage`` makes of it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from ansible_collections.labrack.infra.plugins.module_utils import disk_quota, storage_report
from ansible_collections.labrack.infra.plugins.module_utils.nfs_plan import Filesystem, Folder
from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import ENFORCED, OFF, Limit, Quotas, Usage
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import Directory
from labrack import cli, demo, storage
from labrack.run import Failure, Outcome, RunError

GIB = 2**20
WEEK = 7 * 86400
USERS = {
    0: Usage(9),
    999: Usage(9),
    2001: Usage(55 * GIB, Limit(50 * GIB, 60 * GIB), ends=1_000_000 + WEEK),
    2002: Usage(0, Limit(50 * GIB, 60 * GIB)),
    2003: Usage(60 * GIB, Limit(0, 60 * GIB)),
    2004: Usage(0),
    65534: Usage(9),
}
QUOTAS = Quotas(
    {"user": ENFORCED, "project": ENFORCED},
    {"user": USERS, "project": {300001: Usage(GIB, Limit(0, 2 * GIB))}},
    {"user": WEEK, "project": WEEK},
)
FILESYSTEMS = {
    "/": Filesystem("/", "/dev/sda1", "ext4"),
    "/srv/lab": Filesystem("/srv/lab", "/dev/sdb1", "xfs", quotas=QUOTAS),
}
DIRECTORIES = (
    Directory("/home", "/srv/lab/home", "head"),
    Directory("/checkpoints", "/srv/lab/checkpoints", "head"),
    Directory("/old", "/srv/old/data", "head"),
    Directory("/nas", "/nas", provided=True),
    Directory("/data", "/data", "node1"),
)
FSTAB = {"/": "UUID=1", "/srv/lab": "UUID=2", "/srv/old": "UUID=3"}


def report(host: str = "head", **changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "directories": DIRECTORIES,
        "projects": ["/checkpoints/vision", "/checkpoints/new", "/nas/x"],
        "filesystems": FILESYSTEMS,
        "fstab": FSTAB,
        "sizes": {"/srv/lab": (1000 * GIB, 250 * GIB)},
        "folders": {"/srv/lab/checkpoints/vision": Folder(project=300001), "/nas/x": Folder()},
        "names": {2001: "ada", 2002: "ben"},
    }
    return storage_report.report(host, **{**told, **changes})


def test_the_document_of_a_server() -> None:
    found = report()
    assert [(row["path"], row["mounted"], row["size"], row["user_quotas"]) for row in found["directories"]] == [
        ("/home", True, 1000 * GIB, ENFORCED),
        ("/checkpoints", True, 1000 * GIB, ENFORCED),
        ("/old", False, 0, OFF),
    ]
    # once for two directories of one file system; the system's accounts and who has nothing are left out
    assert [(row["name"], row["used"], row["over_since"]) for row in found["users"]] == [
        ("ada", 55 * GIB, 1_000_000),
        ("ben", 0, None),
        ("2003", 60 * GIB, None),
    ]
    assert found["users"][0]["directories"] == ["/home", "/checkpoints"]
    assert [(row["path"], row["project"], row["hard"]) for row in found["projects"]] == [
        ("/checkpoints/vision", 300001, 2 * GIB)
    ]
    json.dumps(found)


def test_a_host_that_has_nothing() -> None:
    assert report("node2") == {"host": "node2", "directories": [], "users": [], "projects": []}


def test_a_disk_without_quotas_counts_nobody() -> None:
    bare = {"/": FILESYSTEMS["/"], "/srv/lab": replace(FILESYSTEMS["/srv/lab"], quotas=Quotas())}
    found = report(filesystems=bare)
    assert found["users"] == [] and found["projects"][0]["used"] is None


def lines(reports: Sequence[Mapping[str, Any]], width: int = 120) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width).print(storage.render(reports, now=1_000_000 + 3 * 86400))
    return [" ".join(line.split()) for line in output.getvalue().splitlines()]


def test_tables() -> None:
    shown = lines([report()])
    assert "head /home 1000G 250G user, project" in shown
    assert "head /old - - - /srv/old is not mounted" in shown
    assert "head ada /home, /checkpoints 55G 50G 60G 3.0 days" in shown
    assert "head 2003 /home, /checkpoints 60G - 60G full" in shown
    assert "head ben /home, /checkpoints 0 50G 60G" in shown
    assert "head /checkpoints/vision 1G - 2G" in shown
    # who has most comes first
    assert shown.index("head 2003 /home, /checkpoints 60G - 60G full") < shown.index(
        "head ada /home, /checkpoints 55G 50G 60G 3.0 days"
    )


def test_tables_without_quotas_and_without_directories() -> None:
    bare = {"/": FILESYSTEMS["/"], "/srv/lab": replace(FILESYSTEMS["/srv/lab"], quotas=Quotas())}
    assert "Who uses what is not counted: the file systems have no quotas." in lines([report(filesystems=bare)])
    assert lines([]) == lines([report("node2")]) == ["The inventory has no lab_directories that labrack makes."]


# --- the command ---


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(demo, "state_dir", lambda: tmp_path / "state/demo")
    (tmp_path / "lab").mkdir()
    return tmp_path / "lab"


def labrack_storage(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["storage", *arguments], prog_name="labrack")


def answer(monkeypatch: pytest.MonkeyPatch, reports: list[dict[str, Any]]) -> None:
    def play(playbook: str, inventory: Sequence[Path], log: Path, step: Any, variables: Mapping[str, str]) -> Outcome:
        assert playbook == "labrack.infra.storage_report" and inventory[0].is_absolute()
        Path(variables["storage_report_file"]).write_text(json.dumps(reports), encoding="utf-8")
        return Outcome({}, {})

    monkeypatch.setattr(storage, "run_playbook", play)


def test_the_command_prints_tables_or_one_document(monkeypatch: pytest.MonkeyPatch, inventory: Path) -> None:
    answer(monkeypatch, [report()])
    done = labrack_storage("-i", str(inventory))
    assert done.exit_code == 0 and "/checkpoints/vision" in done.stdout and "Storage" in done.stderr
    done = labrack_storage("-i", str(inventory), "--json")
    assert json.loads(done.stdout) == [report()]


def test_a_lab_that_can_not_be_asked_is_one_block(monkeypatch: pytest.MonkeyPatch, inventory: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RunError([Failure("head", "Read directories and quotas", "no route to host")], Path("/state/log"))

    monkeypatch.setattr(storage, "run_playbook", fail)
    done = labrack_storage("-i", str(inventory))
    assert done.exit_code == 1 and done.stdout == ""
    assert "head: Read directories and quotas\n  no route to host\n" in done.stderr and "Traceback" not in done.stderr


def test_no_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = labrack_storage()
    assert done.exit_code == 1 and "make one with `labrack init`" in done.stderr
    assert "nowhere is not there" in labrack_storage("-i", str(tmp_path / "nowhere")).stderr


# --- the kernel's interface ---


def test_structures_have_the_kernels_size() -> None:
    assert (disk_quota.DQBLK.size, disk_quota.FSXATTR.size) == (72, 28)


def test_what_has_no_quotas_is_off() -> None:
    assert set(disk_quota.observe("overlay").state.values()) == {OFF}


def test_nobody_limits_everybody() -> None:
    with pytest.raises(ValueError, match="no limit is set for user 0"):
        disk_quota.set_limit("/dev/null", "user", 0, Limit(1, 1))
