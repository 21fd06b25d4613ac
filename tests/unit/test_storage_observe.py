# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Directories in places that people write to: a link that somebody put there leads root nowhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import disk_quota, nfs_plan, storage_observe
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import Directory
from ansible_collections.labrack.infra.plugins.modules import nfs_server


@pytest.fixture
def wanted(tmp_path: Path) -> nfs_plan.Wanted:
    """A host with one directory, beside it a folder of the system that is nobody's to change."""
    (tmp_path / "data").mkdir()
    (tmp_path / "etc").mkdir(mode=0o755)
    return nfs_plan.Wanted("head", directories=(Directory("/data", str(tmp_path / "data")),))


def folder_step(path: Path) -> list[Change]:
    """What the plan has for a project's directory."""
    step = ("folder", str(path), "2770", str(os.getuid()), str(os.getgid()))
    return [Change(f"directory {path}", "made", step=step)]


def mode(path: Path) -> int:
    """Permissions of a directory."""
    return path.stat().st_mode & 0o7777


def test_a_projects_directory_is_made_with_what_is_above_it(tmp_path: Path, wanted: nfs_plan.Wanted) -> None:
    project = tmp_path / "data/a/vision"
    nfs_server.apply(folder_step(project), nfs_plan.Observed(), wanted)
    assert mode(project) == 0o2770
    assert mode(project.parent) == 0o755
    found = storage_observe.folder(str(project), str(tmp_path / "data"))
    assert found is not None
    assert found.mode == "2770"


@pytest.mark.parametrize("name", ["vision", "vision/inner"])
def test_a_link_in_a_projects_place_is_not_followed(tmp_path: Path, wanted: nfs_plan.Wanted, name: str) -> None:
    (tmp_path / "etc/inner").mkdir(mode=0o755)
    (tmp_path / "data/vision").symlink_to(tmp_path / "etc")
    project = tmp_path / "data" / name
    assert storage_observe.folder(str(project), str(tmp_path / "data")) is None
    acl = Change("acl", "set", step=("acl", str(project), "2770"))
    mark = Change("mark", "set", step=("mark", str(project), "300001"))
    for changes in (folder_step(project), [acl], [mark]):
        with pytest.raises(OSError, match="Not a directory"):
            nfs_server.apply(changes, nfs_plan.Observed(), wanted)
    assert {mode(tmp_path / "etc"), mode(tmp_path / "etc/inner")} == {0o755}


def test_the_labs_own_directory_may_be_a_link(tmp_path: Path, wanted: nfs_plan.Wanted) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "data")
    assert storage_observe.folder(str(link)) is not None


def test_all_of_a_project_is_marked_but_links_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["mkdir", "--parents", tmp_path / "deep" / ("d/" * 1200)], check=True)
    (tmp_path / "deep/file").touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "deep/link").symlink_to(tmp_path / "etc")
    os.mkfifo(tmp_path / "deep/pipe")
    marked: list[str] = []

    def mark(path: str, _number: int, _folder: bool) -> None:
        folder, name = os.path.split(path)
        marked.append(os.path.normpath(f"{os.readlink(folder)}/{name}"))

    monkeypatch.setattr(disk_quota, "_mark", mark)
    try:
        with storage_observe.opened(str(tmp_path / "deep"), str(tmp_path)) as place:
            disk_quota.mark(place, 300001)
        top = str(tmp_path / "deep")
        assert marked[-1] == top, "the directory itself comes last, so that half is nothing"
        assert sorted(marked) == sorted([top, f"{top}/file", *(top + "/d" * depth for depth in range(1, 1201))])
    finally:
        # pytest would not get to the end of it
        subprocess.run(["rm", "--recursive", str(tmp_path / "deep")], check=True)
