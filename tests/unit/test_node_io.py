"""Reading and writing files with owner and mode, and running commands."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    Done,
    FileState,
    group_name,
    observe_file,
    owner_name,
    plan_file,
    read_text,
    remove_file,
    run,
    write_file,
)

ME, MINE = owner_name(os.getuid()), group_name(os.getgid())


def mine(text: str, mode: str = "0644") -> FileState:
    return FileState(text, mode, ME, MINE)


@pytest.mark.parametrize("mode", ["0644", "0600", "0755", "0440"])
def test_what_is_written_is_observed(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_file(path, mine("größe\n", mode))
    assert observe_file(path) == mine("größe\n", mode)
    write_file(path, mine("other\n", mode))
    assert observe_file(path) == mine("other\n", mode)
    assert os.listdir(path.parent) == ["file"]


def test_owner_and_group_may_be_numbers(tmp_path: Path) -> None:
    write_file(tmp_path / "file", FileState("", "0644", str(os.getuid()), str(os.getgid())))
    assert observe_file(tmp_path / "file") == mine("")


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", mine("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_a_mounted_file_is_rewritten_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hosts"
    path.write_text("old")
    inode = path.stat().st_ino

    def busy(_source: str, _target: str) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "rename", busy)
    write_file(path, mine("new"))
    assert (path.read_text(), path.stat().st_ino) == ("new", inode)
    assert os.listdir(tmp_path) == ["hosts"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(_source: str, _target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, mine("new"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_secret_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    rename = os.rename

    def look(source: str, target: str) -> None:
        seen.append(stat.S_IMODE(os.stat(source).st_mode))
        rename(source, target)

    monkeypatch.setattr(os, "rename", look)
    write_file(tmp_path / "secret", mine("canary", "0600"))
    assert seen == [0o600]


def test_what_is_not_there(tmp_path: Path) -> None:
    assert observe_file(tmp_path / "none") is None
    assert read_text(tmp_path / "none") is None
    assert observe_file(tmp_path) is None
    remove_file(tmp_path / "none")
    (tmp_path / "file").touch()
    remove_file(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "link", "endless"):
        # a process, as a test that hangs would tell nothing
        code = (
            f"import resource, sys; from {observe_file.__module__} import observe_file; "
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); "
            "sys.exit(observe_file(sys.argv[1]) is not None)"
        )
        environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = run([sys.executable, "-c", code, str(tmp_path / name)], timeout=20.0, env=environment)
        assert done.rc == 0, done


def test_of_a_file_that_is_too_large_the_text_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("12345")
    small, large = observe_file(path, most=5), observe_file(path, most=4)
    assert small is not None and small.text == "12345"
    assert large is not None and large.text == "" and large.mode == small.mode


def test_names_of_numbers_without_a_name() -> None:
    assert (owner_name(0), group_name(0)) == ("root", "root")
    assert (owner_name(3999999999), group_name(3999999999)) == ("3999999999", "3999999999")


OLD, NEW = FileState("old\n"), FileState("new\n")


@pytest.mark.parametrize(
    ("observed", "wanted", "step", "summary"),
    [
        (None, NEW, "write", "created"),
        (OLD, NEW, "write", "content changed"),
        (FileState("new\n", "0600"), NEW, "write", "0600 root:root → 0644 root:root"),
        (OLD, None, "remove", "removed"),
    ],
)
def test_the_plan_of_a_file(observed: FileState | None, wanted: FileState | None, step: str, summary: str) -> None:
    (change,) = plan_file("/etc/x", observed, wanted, "reload")
    assert (change.step, change.summary, change.disruption) == ((step, "/etc/x"), summary, "reload")
    (hidden,) = plan_file("/etc/x", observed, wanted, "reload", secret=True)
    assert (hidden.before, hidden.after) == ("", "")
    assert hidden.step == change.step


def test_a_file_as_it_should_be_has_no_plan() -> None:
    assert plan_file("/etc/x", NEW, NEW) == []
    assert plan_file("/etc/x", None, None) == []


def test_the_diff_shows_both_texts() -> None:
    (change,) = plan_file("/etc/x", OLD, NEW)
    assert (change.before, change.after) == ("old\n", "new\n")


@pytest.mark.parametrize(
    ("argv", "stdin", "done"),
    [
        (["sh", "-c", "echo out; echo err >&2; exit 3"], None, Done(3, "out\n", "err\n")),
        (["cat"], "text", Done(0, "text", "")),
        (["cat"], None, Done(0, "", "")),
        (["sh", "-c", "echo $LC_ALL-$LANG"], None, Done(0, "C-C\n", "")),
        (["labrack-no-such-program"], None, Done(127, "", "labrack-no-such-program: not found")),
        (["/etc"], None, Done(126, "", "/etc: Permission denied")),
        ([sys.executable, "-c", r"import sys; sys.stdout.buffer.write(b'\xff')"], None, Done(0, "�", "")),
    ],
)
def test_commands(argv: list[str], stdin: str | None, done: Done) -> None:
    assert run(argv, stdin) == done


def test_a_command_without_an_end() -> None:
    assert run(["sleep", "60"], timeout=0.1) == Done(124, "", "sleep: no answer within 0.1 s")
