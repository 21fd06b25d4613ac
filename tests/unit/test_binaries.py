# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When the real programs of the tailnet can be built, and what is said where they can't."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labrack.testnode.docker import LabError
from tests.tailnet import binaries
from tests.tailnet.binaries import NoBinariesError


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("go1.26.6", True),
        ("go1.26.8 X:nocoverageredesign", True),
        ("go1.27.0", True),
        ("go1.26", False),
        ("go1.27rc1", False),
        ("go1.19.8", False),
        ("devel", False),
        ("", False),
    ],
)
def test_new_enough(version: str, enough: bool) -> None:
    assert binaries.new_enough(version) is enough


def go(folder: Path, script: str) -> None:
    """Put a ``go`` on a path of its own."""
    program = folder / "go"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that alone is searched for ``go``."""
    which = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: which(name, path=str(tmp_path)))
    monkeypatch.setattr(binaries, "INSTALLED", str(tmp_path / "none"))
    monkeypatch.setattr(binaries, "CACHE", tmp_path / "cache")
    return tmp_path


def test_no_go_is_a_reason(only: Path) -> None:
    with pytest.raises(NoBinariesError, match=r"^no Go 1\.26\.6 or newer is installed$"):
        binaries.ensure(print)


def test_old_go_is_a_reason(only: Path) -> None:
    go(only, "echo go1.19.8")
    with pytest.raises(NoBinariesError, match=r"^no Go 1\.26\.6 or newer is installed, only go1\.19\.8$"):
        binaries.ensure(print)


def test_no_module_proxy_is_a_reason(only: Path) -> None:
    go(
        only,
        '[ "$1" = env ] && echo go1.26.8 && exit\necho \'{"Error": "dial tcp: lookup proxy: no such host"}\'; exit 1',
    )
    with pytest.raises(NoBinariesError, match=r"^no Go module proxy can be reached: dial tcp"):
        binaries.ensure(print)


def test_broken_build_is_no_reason(only: Path) -> None:
    go(only, '[ "$1" = env ] && echo go1.26.8 && exit\necho \'{"Error": "checksum mismatch"}\'; exit 1')
    with pytest.raises(LabError, match="could not be built: checksum mismatch") as caught:
        binaries.ensure(print)
    assert not isinstance(caught.value, NoBinariesError)
    assert not [path for path in (only / "cache").iterdir() if path.is_dir()]
