# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is managed on a node, its ledgers, how they are compared with it, and ``labrack drift``."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from ansible_collections.labrack.infra.plugins.module_utils import (
    change,
    drift_observe,
    managed,
    managed_observe,
    node_io,
    skypilot_keys,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.managed import Drift, Managed
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service
from labrack import cli, drift, lab
from labrack.progress import Progress

WORDS = st.text("abcdef", min_size=1, max_size=6)
NAMES = st.lists(WORDS, max_size=3, unique=True).map(sorted)
FILE = {"type": st.just("file"), "mode": st.sampled_from(["0644", "0600"]), "owner": WORDS, "group": WORDS}
FILES = st.one_of(
    st.fixed_dictionaries({**FILE, "sha256": WORDS}),
    st.fixed_dictionaries(
        {**FILE, "how": st.just("stat"), "stat": st.lists(st.integers(0, 9), min_size=3, max_size=3)}
    ),
    st.fixed_dictionaries({**FILE, "how": st.just("lines"), "lines": NAMES.filter(bool)}),
)
ON = st.just(True)
KINDS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "file": FILES,
    "directory": st.fixed_dictionaries({**FILE, "type": st.just("directory")}),
    "package": st.one_of(st.just({}), st.fixed_dictionaries({"held": ON, "version": WORDS})),
    "unit": st.one_of(
        st.fixed_dictionaries({"active": ON, "enabled": ON}), st.fixed_dictionaries({"masked": ON}), st.just({})
    ),
    "mount": st.fixed_dictionaries({"filesystem": WORDS, "read_only": st.booleans()}),
    "user": st.fixed_dictionaries(
        {
            **{"uid": st.integers(0, 9), "gid": st.integers(0, 9), "home": WORDS, "shell": WORDS, "comment": WORDS},
            **{"groups": NAMES, "locked": st.booleans(), "expires": WORDS, "among": NAMES},
        }
    ),
    "group": st.fixed_dictionaries({"gid": st.integers(0, 9), "members": NAMES, "among": NAMES}),
    "sysctl": st.fixed_dictionaries({"value": WORDS}),
    "preference": st.fixed_dictionaries({"value": st.one_of(WORDS, st.booleans())}),
}
MANAGED: st.SearchStrategy[Managed] = st.dictionaries(
    st.tuples(st.sampled_from(sorted(KINDS)), WORDS), st.just(None), min_size=1, max_size=8
).flatmap(lambda keys: st.fixed_dictionaries({key: KINDS[key[0]] for key in keys}))


def seen_of(items: Managed) -> Managed:
    """A node that is as it was left, with what a look at it tells besides."""
    more: dict[str, dict[str, Any]] = {"unit": {"state": "active", "file": "enabled"}, "package": {"version": "1"}}
    return {key: {**more.get(key[0], {}), **attributes} for key, attributes in items.items()}


def other(value: Any) -> Any:
    """A value that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return value[:-1] if value else ["zzz"]
    return value + 1 if isinstance(value, int) else f"{value}z"


# --- pure ------------------------------------------------------------------------------------------------------------


@given(MANAGED)
def test_a_node_that_is_as_it_was_left_has_no_drift(items: Managed) -> None:
    assert managed.compare(items, seen_of(items)) == []
    assert managed.parse(managed.render(items)) == items


@given(MANAGED, st.data())
def test_any_single_change_is_named(items: Managed, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(items)))
    seen = seen_of(items)
    attributes = sorted(set(items[key]) - {"how", "among"})
    attribute = data.draw(st.sampled_from(["", *attributes]))
    if attribute:
        seen[key][attribute] = other(seen[key][attribute])
    else:
        del seen[key]
    (found,) = managed.compare(items, seen)
    assert (found.kind, found.name) == key and found.what
    assert found.attributes == ((attribute,) if attribute else ())


@given(MANAGED, st.data())
def test_what_was_not_looked_at_is_not_judged(items: Managed, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(items)))
    seen = seen_of(items)
    assume(seen[key])
    del seen[key][data.draw(st.sampled_from(sorted(seen[key])))]
    # the words may ask for what stands beside an attribute
    assert managed.compare(items, seen) == []


@given(MANAGED)
def test_the_counts_are_of_what_there_is(items: Managed) -> None:
    assert sum(managed.counts(items).values()) == len(items)


@pytest.mark.parametrize(
    ("key", "left", "now", "what"),
    [
        ("file /x", {"mode": "0400", "owner": "munge"}, {"mode": "0644", "owner": "munge"}, "mode 0400 → 0644"),
        (
            "file /x",
            {"sha256": "a", "owner": "root"},
            {"sha256": "b", "owner": "ada"},
            "content changed; owner root → ",
        ),
        ("file /x", {"type": "file", "mode": "0644"}, {"type": "directory", "mode": "0755"}, "is no file any more but"),
        ("file /x", {"lines": ["a", "b"], "how": "lines"}, {"lines": ["a"]}, "1 of labrack's 2 lines"),
        ("unit x", {"active": True}, {"active": False, "state": "failed"}, "stopped (failed)"),
        ("unit x", {"enabled": True}, {"enabled": False, "masked": True}, "masked"),
        (
            "unit x",
            {"enabled": True},
            {"enabled": False, "file": "disabled"},
            "not started at boot any more (disabled)",
        ),
        ("unit x", {"masked": True}, {"masked": False}, "not masked any more"),
        ("package x", {"held": True}, {"held": False}, "hold lifted"),
        ("package x", {"version": "1"}, {"version": "2"}, "version 1 → 2"),
        ("user x", {"groups": ["a", "b"]}, {"groups": ["b", "c"]}, "left group a, joined group c"),
        ("user x", {"locked": False}, {"locked": True}, "locked"),
        ("mount x", {"read_only": False}, {"read_only": True}, "read only no → yes"),
        ("preference ssh", {"value": True}, {"value": False}, "value yes → no"),
        ("group x", {"members": ["ada"]}, {"members": []}, "without ada"),
    ],
)
def test_what_differs_is_said_in_words(key: str, left: dict[str, Any], now: dict[str, Any], what: str) -> None:
    kind, _space, name = key.partition(" ")
    (found,) = managed.compare({(kind, name): left}, {(kind, name): now})
    assert found.what.startswith(what)


def test_nothing_is_noted_unless_somebody_collects() -> None:
    plan_file("/x", None, FileState("a"))
    with managed.collected() as noted:
        pass
    plan_file("/x", None, FileState("a"))
    assert noted == {}


def test_planners_note_what_shall_be_there() -> None:
    with managed.collected() as noted:
        plan_file("/x", None, FileState("a"))
        plan_file("/secret", FileState("a"), FileState("a"), secret=True)
        plan_file("/shared", None, FileState("a\nb\n"), part=["a"])
        plan_file("/theirs", None, FileState("a\nb\n"), part=[])
        plan_file("/gone", FileState("a"), None)
        plan_service("runs", ServiceState(installed=True, active=True, enabled=True))
        plan_service("waits", ServiceState(installed=True, active=False, enabled=True))
        plan_service("comes", ServiceState())
    assert noted == {
        ("file", "/x"): {},
        ("file", "/secret"): {"how": "stat"},
        ("file", "/shared"): {"how": "lines", "lines": [managed.digest("a")]},
        ("unit", "runs.service"): {"active": True, "enabled": True},
        # a start that waits for consent is no drift
        ("unit", "waits.service"): {"enabled": True},
    }


def test_of_two_ledgers_the_later_one_counts() -> None:
    first: Managed = {("package", "x"): {"held": True, "version": "1"}, ("file", "/x"): {"how": "stat", "stat": [1]}}
    later: Managed = {("package", "x"): {}, ("file", "/x"): {"sha256": "a"}}
    merged = managed.merge([first, later])
    assert merged == {("package", "x"): {"held": True, "version": "1"}, ("file", "/x"): {"sha256": "a"}}


# --- on this machine -------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return str(tmp_path / "managed")


def found_in(ledger: str) -> list[tuple[str, str]]:
    return [(item["name"].rpartition("/")[2], item["what"]) for item in drift_observe.read(ledger)["items"]]


def noted_in(ledger: str, kind: str, path: Path, **attributes: Any) -> None:
    """Keep a ledger of one thing as it is now."""
    with managed.collected() as noted:
        managed.note(kind, str(path), **attributes)
    managed_observe.record("role", noted, ledger)


def kept(tmp_path: Path, ledger: str) -> None:
    """Files that are looked at in each way, and their ledger."""
    for name, mode in (("open", 0o644), ("secret", 0o600), ("keys", 0o600), ("shared", 0o644)):
        (tmp_path / name).write_text("ours\ntheirs\n")
        (tmp_path / name).chmod(mode)
    (tmp_path / "folder").mkdir(mode=0o755)
    with managed.collected() as noted:
        managed.note("file", str(tmp_path / "open"))
        managed.note("file", str(tmp_path / "secret"))
        managed.note("file", str(tmp_path / "keys"), how=managed.TEXT)
        managed.note("file", str(tmp_path / "missing"))
        managed.note("directory", str(tmp_path / "folder"))
        managed.note_lines(str(tmp_path / "shared"), ["ours"])
    managed_observe.record("role", noted, ledger)


def test_a_ledger_is_of_what_is_there_and_for_its_owner_alone(tmp_path: Path, ledger: str) -> None:
    kept(tmp_path, ledger)
    assert found_in(ledger) == []
    assert drift_observe.read(ledger)["checked"] == {"file": 4, "directory": 1}
    file = Path(ledger, "role.json")
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
    # what may be guessed has no digest
    items = {item["name"].rpartition("/")[2]: item for item in json.loads(file.read_text())["items"]}
    assert "sha256" not in items["secret"] and "sha256" in items["keys"]


def test_lines_that_something_else_writes_are_no_drift_where_they_are_known(tmp_path: Path, ledger: str) -> None:
    path = tmp_path / "keys"
    path.write_text("ours\nlaunch\n")
    noted_in(ledger, "file", path, how=managed.TEXT, without=[managed.digest("launch")])
    assert found_in(ledger) == []
    path.write_text("ours\n")
    assert found_in(ledger) == []
    for text in ("ours\nlaunch\nforeign\n", "launch\n", "ours changed\nlaunch\n"):
        path.write_text(text)
        assert found_in(ledger) == [("keys", "content changed")]


def test_a_number_that_has_got_a_name_since_is_no_drift(tmp_path: Path, ledger: str) -> None:
    (tmp_path / "data").mkdir()
    noted_in(ledger, "directory", tmp_path / "data")
    group = node_io.group_name(os.getgid())
    file = Path(ledger, "role.json")
    text = file.read_text()
    assert f'"group": "{group}"' in text
    file.write_text(text.replace(f'"group": "{group}"', f'"group": "{os.getgid()}"'))
    assert found_in(ledger) == []
    file.write_text(text.replace(f'"group": "{group}"', '"group": "59999"'))
    assert found_in(ledger) == [("data", f"group 59999 → {group}")]


def test_a_first_launch_is_no_drift(tmp_path: Path, ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = node_io.owner_name(os.getuid())
    path = tmp_path / "home/.ssh/authorized_keys"
    path.parent.mkdir(parents=True)
    path.write_text("ours\n")
    noted_in(ledger, "file", path, how=managed.TEXT)
    keys = {owner: ["launch"], "another": ["theirs"]}
    monkeypatch.setattr(skypilot_keys, "launch_keys", lambda: keys)
    path.write_text("ours\nlaunch\n")
    assert found_in(ledger) == []
    for text in ("ours\nlaunch\ntheirs\n", "ours\nforeign\n", "launch\n"):
        path.write_text(text)
        assert found_in(ledger) == [("authorized_keys", "content changed")]


def test_it_is_written_when_it_differs_and_its_time_is_the_last_runs(tmp_path: Path, ledger: str) -> None:
    kept(tmp_path, ledger)
    file = Path(ledger, "role.json")
    os.utime(file, (1000, 1000))
    assert drift_observe.read(ledger)["full_check"] == "1970-01-01T00:16:40Z"
    before = file.stat().st_ino
    noted = {key: dict(attributes) for key, attributes in managed.parse(file.read_text()).items()}
    managed_observe.record("role", noted, ledger)
    assert file.stat().st_ino == before and file.stat().st_mtime > time.time() - 60


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("echo >> open", [("open", "content changed")]),
        ("echo theirs >> shared", []),
        ("sed -i s/ours/mine/ shared", [("shared", "1 of labrack's 1 lines changed or removed")]),
        ("chmod 0666 open", [("open", "mode 0644 → 0666")]),
        ("printf 'OURS\\ntheirs\\n' > secret", [("secret", "written anew")]),
        ("chmod 0644 secret", [("secret", "mode 0600 → 0644")]),
        ("echo ssh-ed25519 >> keys", [("keys", "content changed")]),
        ("chmod 0644 keys", [("keys", "mode 0600 → 0644")]),
        ("rm open", [("open", "removed")]),
        ("rm open; mkdir open", [("open", "is no file any more but a directory")]),
        ("rm open; mkfifo open", [("open", "is no file any more but a special file")]),
        ("chmod 0777 folder", [("folder", "mode 0755 → 0777")]),
        ("rmdir folder", [("folder", "removed")]),
        ("touch open shared folder/new", []),
    ],
)
def test_what_is_changed_by_hand_is_found(
    tmp_path: Path, ledger: str, command: str, found: list[tuple[str, str]]
) -> None:
    kept(tmp_path, ledger)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert found_in(ledger) == found
    # the next run takes it as it is
    kept_again = managed.parse(Path(ledger, "role.json").read_text())
    managed_observe.record("role", kept_again, ledger)
    assert found_in(ledger) == []


def test_who_and_when_are_those_of_the_file(tmp_path: Path, ledger: str) -> None:
    kept(tmp_path, ledger)
    (tmp_path / "open").write_text("other")
    os.utime(tmp_path / "open", (86400, 86400))
    (item,) = drift_observe.read(ledger)["items"]
    owner = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert (item["who"], item["when"]) == (owner, "1970-01-02T00:00:00Z")


def test_a_ledger_goes_with_the_last_thing(tmp_path: Path, ledger: str) -> None:
    kept(tmp_path, ledger)
    managed_observe.record("other", {("package", "x"): {}}, ledger)
    assert not managed_observe.holds_only("role", ledger)
    managed_observe.record("other", {}, ledger)
    assert managed_observe.holds_only("role", ledger)
    managed_observe.forget(["role", "never"], ledger)
    assert not Path(ledger).exists()
    assert drift_observe.read(ledger) == {
        "checked": {},
        "not_checked": {},
        "applied": {},
        "full_check": "",
        "items": [],
    }


def test_a_damaged_ledger_is_named(tmp_path: Path, ledger: str) -> None:
    kept(tmp_path, ledger)
    Path(ledger, "role.json").write_text('{"schema": 1, "items": [')
    with pytest.raises(ValueError, match=r"managed/role\.json: "):
        drift_observe.read(ledger)


def test_people_are_read_without_their_passwords() -> None:
    seen = managed_observe.look({("user", "root"): {"among": ["root"]}, ("user", "no-such-user"): {"among": []}})
    ((key, root),) = seen.items()
    assert key == ("user", "root") and root["uid"] == 0 and not {"password", "hash"} & set(root)


# --- what programs print ---------------------------------------------------------------------------------------------


def test_packages_as_dpkg_tells_them() -> None:
    text = "munge ii 0.5.15\nslurmd hi 24.11\nchrony rc 4.6\nhalf iU 1\nslurm-client un \n"
    assert drift_observe.read_dpkg(text) == {
        "munge": {"version": "0.5.15", "held": False},
        "slurmd": {"version": "24.11", "held": True},
    }


def test_who_changed_a_package_and_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    older = "2026-01-01 10:00:00 install munge:amd64 <none> 0.5\n2026-01-01 10:00:01 status installed munge:amd64 0.5\n"
    log = "2026-01-02 10:00:05 remove munge:amd64 0.5 <none>\n2026-01-03 10:00:00 upgrade other:all 1 2\n"
    apt = (
        "Start-Date: 2026-01-01  09:59:59\nRequested-By: bob (2002)\nEnd-Date: 2026-01-01  10:00:09\n\n"
        "Start-Date: 2026-01-02  10:00:04\nCommandline: apt-get remove munge\nRequested-By: ada (2001)\n"
        "Remove: munge:amd64 (0.5)\nEnd-Date: 2026-01-02  10:00:06\n"
    )
    found = drift_observe.package_history([older, log], apt, ["munge", "slurmd"])
    assert {name: (who, drift_observe.stamp(when)) for name, (who, when) in found.items()} == {
        "munge": ("ada", "2026-01-02T10:00:05Z")
    }
    # dpkg by hand is in no log of apt's
    assert drift_observe.package_history([log], apt[:100], ["munge"])["munge"][0] == ""
    monkeypatch.undo()
    time.tzset()


def test_units_as_systemd_tells_them() -> None:
    text = (
        "Id=munge.service\nLoadState=loaded\nActiveState=inactive\nUnitFileState=disabled\n"
        "StateChangeTimestamp=Thu 2026-11-26 23:43:27 UTC\n\n"
        "Id=slurmd.service\nLoadState=masked\nActiveState=active\nUnitFileState=masked\nStateChangeTimestamp=\n\n"
        "Id=gone.service\nLoadState=not-found\nActiveState=inactive\n"
    )
    found = drift_observe.read_units(text, ["munge.service", "slurmd.service", "gone.service"])
    assert set(found) == {"munge.service", "slurmd.service"}
    munge, slurmd = found.values()
    assert (munge["active"], munge["enabled"], munge["masked"]) == (False, False, False)
    assert drift_observe.stamp(munge["changed_at"]) == "2026-11-26T23:43:27Z"
    assert (slurmd["active"], slurmd["enabled"], slurmd["masked"]) == (True, False, True)


def test_of_mounts_the_lowest_counts() -> None:
    text = "systemd-1 /data autofs rw 0 0\nhead:/data /data nfs4 ro,hard 0 0\n/dev/sda1 /srv/a\\040b ext4 ro 0 0\n"
    assert managed_observe.read_mounts(text) == {
        "/data": {"filesystem": "autofs", "read_only": False},
        "/srv/a b": {"filesystem": "ext4", "read_only": True},
    }


# --- converge --------------------------------------------------------------------------------------------------------


class Ended(Exception):
    """The module has ended."""


class Module:
    """A module that manages the words that its node has, one of which waits for a drain."""

    def __init__(self, check: bool = False) -> None:
        self.params = {"max_disruption": "restart"}
        self.check_mode = check
        self.words: list[str] = []
        self.warnings: list[str] = []

    def warn(self, warning: str) -> None:
        self.warnings.append(warning)

    def exit_json(self, **kwargs: Any) -> NoReturn:
        raise Ended

    def fail_json(self, msg: str, **kwargs: Any) -> NoReturn:
        raise Ended

    def run(self, heavy: bool = False, **kwargs: Any) -> None:
        def plan(words: list[str]) -> list[Change]:
            for word in words:
                managed.note("package", word)
            changes = [] if "a" in words else [Change("a", "added")]
            return [*changes, Change("heavy", "added", "drain")] if heavy else changes

        with pytest.raises(Ended):
            converge(self, lambda: list(self.words), plan, lambda _changes: self.words.append("a"), **kwargs)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    done: list[Any] = []
    monkeypatch.setattr(managed_observe, "record", lambda name, noted: done.append((name, sorted(noted))))
    monkeypatch.setattr(managed_observe, "forget", done.append)
    return done


def test_a_run_keeps_what_its_last_plan_notes(calls: list[Any]) -> None:
    module = Module()
    module.run(ledger="role")
    module.run(ledger="role")
    assert calls == [("role", [("package", "a")])] * 2


def test_check_mode_and_modules_without_a_ledger_keep_nothing(calls: list[Any]) -> None:
    Module(check=True).run(ledger="role", forgets=["old"])
    Module().run()
    assert calls == []


def test_what_is_undone_is_forgotten_once_nothing_waits(calls: list[Any]) -> None:
    Module().run(heavy=True, forgets=["old"])
    assert calls == []
    Module().run(forgets=["old"])
    assert calls == [["old"]]


def test_a_ledger_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(managed_observe, "record", full)
    module = Module()
    module.run(ledger="role")
    assert "labrack drift" in module.warnings[0] and "no space left" in module.warnings[0]
    assert change.DISRUPTIONS[0] == "none"


# --- the command -----------------------------------------------------------------------------------------------------

ITEM = {"kind": "file", "name": "/etc/slurm/slurm.conf", "what": "content changed", "who": "root", "when": ""}
CLEAN: dict[str, Any] = {
    "host": "head",
    "checked": {"file": 19, "user": 3},
    "not_checked": {},
    "applied": {"baseline": "2026-11-26T23:43:27Z"},
    "full_check": "2026-11-26T23:43:27Z",
    "items": [],
}
DIRTY = {**CLEAN, "host": "node1", "items": [ITEM], "not_checked": {"preference": 2}}
DOWN = {"host": "node2", "error": "ssh: connect to host node2 port 22: Connection refused"}


def show(monkeypatch: pytest.MonkeyPatch, home: Path, reports: list[Mapping[str, Any]], *arguments: str) -> Result:
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    (home / "hosts.yml").write_text("all: {children: {lab_head: {hosts: {head: }}}}\n")
    monkeypatch.setattr(lab, "load", lambda paths: lab.Lab(paths, {}, {}))
    monkeypatch.setattr(drift, "read", lambda found, log, step: reports)
    command = ["drift", "-i", str(home / "hosts.yml"), *arguments]
    return CliRunner().invoke(cli.app, command, prog_name="labrack", env={"COLUMNS": "140"})


@pytest.mark.parametrize(
    ("reports", "status"),
    [([CLEAN], 0), ([CLEAN, DIRTY], 2), ([CLEAN, DIRTY, DOWN], 1), ([{**CLEAN, "applied": {}}], 1)],
)
def test_the_exit_status_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reports: list[Mapping[str, Any]], status: int
) -> None:
    done = show(monkeypatch, tmp_path, reports, "--json")
    assert done.exit_code == status
    assert json.loads(done.stdout) == reports


def test_what_differs_is_shown_with_what_was_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = show(monkeypatch, tmp_path, [CLEAN, DIRTY, DOWN])
    assert "node1  file  /etc/slurm/slurm.conf  content changed  root" in done.stdout
    assert "head: nothing differs of 19 files, 3 users; last full check 2026-11-2" in done.stdout
    assert "node1: could not look at 2 preferences of the tailnet" in done.stdout
    assert "node2: not looked at: ssh: connect to host node2 port 22: Connection refused" in done.stdout


def test_a_node_without_a_record_is_no_clean_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = show(monkeypatch, tmp_path, [{**CLEAN, "applied": {}}])
    assert "head: no run has left a record" in done.stdout and "nothing differs" not in done.stdout


def test_nodes_are_asked_by_the_connections_of_the_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    python = f"ansible_python_interpreter: {sys.executable}"
    (tmp_path / "hosts.yml").write_text(
        "all: {children: {lab_head: {hosts: {"
        f"here: {{ansible_connection: local, {python}}}, "
        "away: {ansible_host: 127.0.0.1, ansible_port: 1, ansible_ssh_retries: 0}}}}}\n"
    )
    found = lab.load(lab.inventory([tmp_path / "hosts.yml"]))
    with Progress(Console(quiet=True)).step("Drift") as step:
        here, away = drift.read(found, tmp_path / "drift.log", step)
    assert (here["host"], away["host"]) == ("here", "away")
    assert "checked" in here if os.geteuid() == 0 else "only root" in here["error"]
    assert "refused" in away["error"]
    assert stat.S_IMODE((tmp_path / "drift.log").stat().st_mode) == 0o600


def test_every_kind_has_a_word() -> None:
    assert tuple(drift.KINDS) == managed.KINDS == tuple(kind for kind in managed.KINDS if kind in KINDS)


def test_the_program_holds_all_that_it_needs() -> None:
    """It runs with nothing installed, and with what the module itself would say."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-"], input=drift.program(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(drift.MARK), done.stderr
    assert Drift("file", "/x", "removed").attributes == ()
