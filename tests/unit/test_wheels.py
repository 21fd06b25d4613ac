# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Packages for nodes that reach no index: what is wanted of a requirements file, and what an index then has."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from labrack.testnode import skypilot, wheels

PINS = """# a comment
six==1.17.0 \\
    --hash=sha256:{sum} \\
    --hash=sha256:{other}
tomli==2.2.1 ; python_full_version < '3.11' \\
    --hash=sha256:{other}
"""


def test_only_what_counts_for_the_python_is_wanted() -> None:
    text = PINS.format(sum="a" * 64, other="b" * 64)
    assert wheels.needed(text, "3.13") == {"six==1.17.0": {"a" * 64, "b" * 64}}
    assert list(wheels.needed(text, "3.10")) == ["six==1.17.0", "tomli==2.2.1"]


def test_the_demos_uv_is_that_of_the_role() -> None:
    role = yaml.safe_load((Path(__file__).parents[2] / "roles/baseline/defaults/main.yml").read_text())
    pinned = {f"uv=={role['baseline_uv_version']}": set(role["baseline_uv_sha256"].values())}
    assert wheels.needed(skypilot.UV, "3.13") == pinned


def test_a_kept_file_with_the_right_sum_is_taken_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheels, "_fetch", lambda kept, python, missing: fetched.extend(missing))
    fetched: list[str] = []
    kept = wheels.cache() / "3.13"
    kept.mkdir(parents=True)
    (kept / "six-1.17.0-py2.py3-none-any.whl").write_bytes(b"right")
    (kept / "six-1.16.0-py2.py3-none-any.whl").write_bytes(b"another version")
    (kept / "sixth-1.17.0-py3-none-any.whl").write_bytes(b"another project")
    right = PINS.format(sum=hashlib.sha256(b"right").hexdigest(), other="b" * 64)
    index = wheels.simple_index(tmp_path / "index", "3.13", right)
    assert sorted(file.name for file in (index / "six").iterdir()) == ["index.html", "six-1.17.0-py2.py3-none-any.whl"]
    assert (index / "six/index.html").read_text().count("href") == 1
    assert not fetched
    wheels.simple_index(tmp_path / "other", "3.13", PINS.format(sum="c" * 64, other="b" * 64))
    assert fetched == ["six==1.17.0"]
