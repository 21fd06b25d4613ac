"""MUNGE's key: one for the cluster, closed to others, never shown."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.labrack.infra.plugins.module_utils.munge import (
    KEY_BYTES,
    NEXT_KEY_FILE,
    MungeState,
    keep,
    new_key,
    observe_key,
    plan,
    write_key,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState

KEY, OTHER = b"k" * KEY_BYTES, b"o" * KEY_BYTES
UP = ServiceState(installed=True, active=True, enabled=True, since=1000.0)
GOOD = MungeState(KEY, True, 900.0, UP)


@pytest.fixture
def me(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the user of the test for munge's."""
    mine = SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid())
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: mine)


@pytest.mark.parametrize(
    ("state", "wanted", "steps"),
    [
        (GOOD, KEY, []),
        (GOOD, OTHER, [("key",), ("restart", "munge")]),
        (GOOD, None, [("key",), ("restart", "munge")]),
        (MungeState(None), KEY, [("key",), ("restart", "munge")]),
        (MungeState(KEY, False, 900.0, UP), KEY, [("close",)]),
        (MungeState(KEY, True, 1001.0, UP), KEY, [("restart", "munge")]),
        (MungeState(KEY, True, 900.0, ServiceState(installed=True, enabled=True)), KEY, [("restart", "munge")]),
    ],
)
def test_the_way_to_a_key(state: MungeState, wanted: bytes | None, steps: list[tuple[str, ...]]) -> None:
    assert [change.step for change in plan(state, wanted)] == steps


def test_the_next_key_is_placed_without_touching_munged() -> None:
    assert [change.step for change in plan(MungeState(None), KEY, NEXT_KEY_FILE)] == [("key",)]
    assert plan(MungeState(KEY, True, 2000.0, UP), KEY, NEXT_KEY_FILE) == []


@pytest.mark.parametrize(
    ("key", "cluster", "kept"),
    [
        (None, True, False),
        (b"", True, False),
        (b"x" * 31, True, False),
        (b"x" * 128, False, False),
        (b"x" * 128, True, True),
        (KEY, False, True),
    ],
)
def test_whether_a_key_stays(key: bytes | None, cluster: bool, kept: bool) -> None:
    assert keep(key, cluster) is kept


def test_a_key_is_fresh_and_long() -> None:
    assert len(new_key()) == KEY_BYTES == 1024
    assert new_key() != new_key()


def test_the_key_is_in_no_change_and_no_repr() -> None:
    canary = b"canary" * 100
    state = MungeState(canary, False, 900.0, UP)
    shown = repr(state) + repr(plan(state, OTHER)) + repr(plan(state, canary)) + str(state)
    assert "canary" not in shown


@pytest.mark.usefixtures("me")
def test_a_key_is_written_closed_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "munge.key"
    write_key(KEY, str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert observe_key(str(path)) == (KEY, True, path.stat().st_mtime)
    path.chmod(0o440)
    assert observe_key(str(path))[:2] == (KEY, False)
    write_key(OTHER, str(path))
    assert observe_key(str(path))[:2] == (OTHER, True)
    assert os.listdir(tmp_path) == ["munge.key"]


def test_no_key_and_no_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert observe_key(str(tmp_path / "none")) == (None, False, 0.0)
    path = tmp_path / "munge.key"
    path.write_bytes(KEY)

    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    assert observe_key(str(path))[:2] == (KEY, False)
    with pytest.raises(KeyError):
        write_key(KEY, str(path))
