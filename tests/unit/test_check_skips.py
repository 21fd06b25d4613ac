"""Skipped tests are refused unless the document lists them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import check_skips
import pytest

TESTS = """
import pytest

def test_passes(): pass

@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.skip(reason="no KVM on this machine")
def test_skips(number): pass

@pytest.mark.xfail(reason="upstream bug 7")
def test_known_to_fail(): assert False
"""
MODULE = """
import pytest

pytest.skip("no engine here", allow_module_level=True)
"""
TABLE = """# Testing
## Skips
| test | reason |
|---|---|
| `test_it.py::test_skips` | no KVM on * |
| `test_it.py::test_known_to_fail` | upstream bug 7 |
| `test_module.py` | no engine here |
## Else
| `test_it.py::*` | * |
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the report of a run of TESTS and MODULE."""
    directory = tmp_path_factory.mktemp("reports")
    (directory / "test_it.py").write_text(TESTS)
    (directory / "test_module.py").write_text(MODULE)
    options = ["-q", "-c", "/dev/null", "--rootdir=.", "-o", "junit_family=xunit1", "--junitxml=report.xml"]
    subprocess.run([sys.executable, "-m", "pytest", *options], cwd=directory, check=True, capture_output=True)
    return directory


def test_listed_skips_pass(reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "TESTING.md").write_text(TABLE)
    assert check_skips.main(tmp_path / "TESTING.md", reports) == 0
    assert capsys.readouterr().out == "1 passed, 0 failed, 4 skipped\n"


@pytest.mark.parametrize("row", ["no KVM on *", "upstream bug 7", "no engine here"])
def test_unlisted_skip_is_refused(row: str, reports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "TESTING.md").write_text(TABLE.replace(row, "another reason"))
    assert check_skips.main(tmp_path / "TESTING.md", reports) == 1
    assert "list it in" in capsys.readouterr().out


def test_no_test_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "TESTING.md").write_text(TABLE)
    assert check_skips.main(tmp_path / "TESTING.md", tmp_path) == 1


def test_failures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "TESTING.md").write_text(TABLE)
    case = '<testcase file="test_it.py" classname="test_it" name="test_passes"><failure message="no"/></testcase>'
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
    assert check_skips.main(tmp_path / "TESTING.md", tmp_path) == 1
    assert capsys.readouterr().out == "0 passed, 1 failed, 0 skipped\n"
