"""What a restore picks, compares, refuses, and how files get into places that people write to."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import restore_plan
from ansible_collections.labrack.infra.plugins.module_utils.backup_plan import SETS, BackupError
from ansible_collections.labrack.infra.plugins.module_utils.restore_plan import (
    Accounts,
    Compared,
    Entry,
    Observed,
    Snapshot,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.modules import lab_restore


def snapshot(name: str, number: str, day: int = 20) -> Snapshot:
    return Snapshot(name, number * 8, datetime(2026, 11, day, 2, 30, tzinfo=UTC))


KNOWN = [snapshot("homes", "a", 18), snapshot("cluster_keys", "b", 18), snapshot("homes", "c", 20)]


# --- which one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "number"), [("latest", "c"), ("2026-11-19", "a"), ("2026-11-20", "c"), ("aaaaaaaa", "a")]
)
def test_a_snapshot_is_chosen(which: str, number: str) -> None:
    chosen = restore_plan.choose(KNOWN, ["homes"], which, all_sets=False)
    assert [one.number for one in chosen.values()] == [number * 8]


@pytest.mark.parametrize(
    ("names", "which", "words"),
    [
        (["homes"], "2026-11-17", "no backup of homes"),
        (["headscale"], "latest", "the repository has cluster_keys, homes"),
        (["homes"], "yesterday", "write latest, a day"),
        (["homes"], "abc", "write latest, a day"),
    ],
)
def test_what_is_not_there_is_said(names: list[str], which: str, words: str) -> None:
    with pytest.raises(BackupError, match=words):
        restore_plan.choose(KNOWN, names, which, all_sets=False)


def test_all_means_all_that_was_saved_in_the_order_of_a_restore() -> None:
    assert list(restore_plan.choose(KNOWN, SETS, "latest", all_sets=True)) == ["cluster_keys", "homes"]
    with pytest.raises(BackupError, match="has nothing"):
        restore_plan.choose([], SETS, "latest", all_sets=True)


def test_restics_answers_are_read() -> None:
    listed = [
        {"time": "2026-11-24T16:54:39.8638Z", "id": "f" * 64, "tags": ["labrack", "homes"], "paths": ["/home"]},
        {"time": "2026-11-23T16:54:39+01:00", "id": "e" * 64, "tags": ["labrack", "homes"], "paths": ["/home"]},
        {"time": "2026-11-23T16:54:39Z", "id": "d" * 64, "tags": None, "paths": ["/root"]},
    ]
    assert [one.number[0] for one in restore_plan.read_snapshots(json.dumps(listed))] == ["e", "f"]
    assert restore_plan.read_snapshots("null") == []
    node = {"name": "a", "type": "file", "path": "/home/a", "size": 3, "mtime": "1970-01-01T01:00:02.5+01:00"}
    # struct_type until 0.16, message_type beside it since 0.17
    for kind in ("struct_type", "message_type"):
        lines = [json.dumps({"id": "f", kind: "snapshot"}), json.dumps({**node, kind: "node"}), ""]
        assert list(restore_plan.read_entries(lines)) == [Entry("/home/a", "file", 3, 2_500_000_000)]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 999_999_999))
def test_times_keep_their_nanoseconds(seconds: int, rest: int) -> None:
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:09d}".rstrip("0")
    assert restore_plan.nanoseconds(text.rstrip(".") + "Z") == seconds * 10**9 + rest


# --- which files -----------------------------------------------------------------------------------------------------

PATHS = ["/home", "/home/ada", "/home/ada/a", "/home/ada/b", "/home/ada/b/c", "/home/ben"]
TREES = st.dictionaries(
    st.sampled_from(PATHS),
    st.tuples(st.sampled_from(["file", "dir", "symlink"]), st.integers(0, 2), st.integers(0, 2)),
).map(lambda found: {path: Entry(path, *found[path]) for path in sorted(found) if whole(path, found)})


def whole(path: str, found: Mapping[str, tuple[str, int, int]]) -> bool:
    """Whether all folders above a path are folders of the tree."""
    above = os.path.dirname(path)
    return above == "/" or (above in found and found[above][0] == "dir" and whole(above, found))


@given(TREES, TREES, st.booleans())
def test_every_entry_is_accounted_for(saved: dict[str, Entry], there: dict[str, Entry], overwrite: bool) -> None:
    one = restore_plan.compare(saved.values(), there)
    told = [*one.missing, *one.older, *one.newer, *one.blocked]
    assert len(told) == len(set(told)) and set(told) <= set(saved)
    chosen = one.chosen(overwrite)
    assert not chosen & set(one.blocked)
    for path, entry in saved.items():
        found = there.get(path)
        if path not in told:
            assert found is not None and found.kind == entry.kind
            assert entry.kind != "file" or (found.size, found.changed) == (entry.size, entry.changed)
        elif found is not None and path in chosen and not overwrite:
            assert found.changed < entry.changed, "nothing newer is replaced unasked"
    # once they are in place, nothing is left to do
    after = {**there, **{path: saved[path] for path in chosen}}
    assert not restore_plan.compare(saved.values(), after).chosen(overwrite)


def test_a_restore_is_narrowed() -> None:
    homes = ["/home", "/srv/people/"]
    assert restore_plan.wanted_folder("", "ada", homes) == ["/home/ada", "/srv/people/ada"]
    assert restore_plan.wanted_folder("/home/ada/thesis/", "", homes) == ["/home/ada/thesis"]
    assert restore_plan.wanted_folder("", "", homes) == []
    for path, user in (("thesis", ""), ("/home/../etc", ""), ("", "../root"), ("/home/ada", "ada")):
        with pytest.raises(BackupError):
            restore_plan.wanted_folder(path, user, homes)
    entries = [Entry(path, "file") for path in ("/home/ada/x", "/home/adam", "/home/ada")]
    assert [one.path for one in restore_plan.narrowed(entries, ["/home/ada"])] == ["/home/ada/x", "/home/ada"]


# --- what is refused -------------------------------------------------------------------------------------------------

MUNGE, GRES = "/etc/munge/munge.key", "/etc/slurm/gres.conf"
BEFORE = Accounts({"ada": 2001}, {"ada": 2001, "vision": 3001}, frozenset({"ada"}))


def wanted(*names: str, target: str = "", overwrite: bool = False) -> Wanted:
    return Wanted({name: snapshot(name, "a") for name in names}, target, overwrite)


@pytest.mark.parametrize(
    ("name", "seen", "words"),
    [
        ("cluster_keys", Observed(keys={MUNGE: False}, jobs=3), "the cluster is in use and /etc/munge/munge.key"),
        ("cluster_keys", Observed(keys={MUNGE: False}, jobs=None), "the cluster is in use"),
        ("slurm_database", Observed(jobs=3), "has 3 jobs"),
        ("headscale", Observed(nodes=2), "2 nodes are in the one that runs here"),
    ],
)
def test_what_is_in_use_stays_unless_asked(name: str, seen: Observed, words: str) -> None:
    with pytest.raises(BackupError, match=words):
        restore_plan.plan(seen, wanted(name), {name: (1, 1)})
    assert restore_plan.plan(seen, wanted(name, overwrite=True), {name: (1, 1)})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["slurm_database", "headscale"])
def test_what_is_not_there_can_t_take_a_restore(name: str, overwrite: bool) -> None:
    with pytest.raises(BackupError, match=r"run closet\.yml first"):
        restore_plan.plan(Observed(), wanted(name, overwrite=overwrite), {name: (1, 1)})


def test_a_fresh_host_takes_everything_without_a_question() -> None:
    seen = Observed(
        compared={"homes": Compared(missing=("/home/ada/x",), newer=("/home/ada/.ssh/authorized_keys",), files=2)},
        keys={MUNGE: False, GRES: False, "/etc/slurm/plugstack.conf": True},
        jobs=0,
        nodes=0,
        saved=BEFORE,
    )
    sets = ("cluster_keys", "slurm_database", "headscale", "registry", "homes")
    changes = {one.subject: one for one in restore_plan.plan(seen, wanted(*sets), dict.fromkeys(sets, (2, 10)))}
    assert list(changes) == list(sets)
    assert MUNGE in changes["cluster_keys"].summary and GRES not in changes["cluster_keys"].summary
    assert "plugstack.conf" in changes["cluster_keys"].summary
    assert "users ada" in changes["registry"].summary and "passwords of ada" in changes["registry"].summary
    assert "1 missing" in changes["homes"].summary and "1 that are newer" in changes["homes"].summary
    assert "aaaaaaaa of 2026-11-20 02:30 UTC" in changes["homes"].summary


def test_numbers_that_others_have_by_now_are_refused() -> None:
    for there in (Accounts({"ada": 2009}), Accounts({"bob": 2001}), Accounts(groups={"vision": 3009})):
        with pytest.raises(BackupError, match="registry"):
            restore_plan.plan(
                Observed(accounts=there, saved=BEFORE), wanted("registry", overwrite=True), {"registry": (1, 1)}
            )
    assert restore_plan.plan(Observed(accounts=BEFORE, saved=BEFORE), wanted("registry"), {"registry": (1, 1)}) == []


def test_a_folder_of_its_own_takes_everything_if_it_is_empty() -> None:
    request = wanted("slurm_database", "homes", target="/srv/restored")
    sizes = {"slurm_database": (1, 5), "homes": (2, 10)}
    changes = restore_plan.plan(Observed(), request, sizes)
    assert [one.step for one in changes] == [("target", "slurm_database"), ("target", "homes")]
    assert {one.disruption for one in changes} == {"none"}
    with pytest.raises(BackupError, match="not empty"):
        restore_plan.plan(Observed(target=("x",)), request, sizes)


# --- putting files in place ------------------------------------------------------------------------------------------


def tree(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def merge(source: Path, place: Path, *chosen: str) -> None:
    with lab_restore.opened(str(source)) as below, lab_restore.opened(str(place)) as under:
        lab_restore.merge(below, under, "/home", frozenset(chosen))


def test_only_what_is_chosen_moves(tmp_path: Path) -> None:
    source = tree(tmp_path / "source", {"ada/old": "saved", "ada/new": "saved", "ada/gone/deep": "saved"})
    place = tree(tmp_path / "place", {"ada/old": "here", "ada/new": "here"})
    (source / "ada/gone").chmod(0o750)
    merge(source, place, "/home/ada/old", "/home/ada/gone", "/home/ada/gone/deep")
    assert (place / "ada/old").read_text() == "saved"
    assert (place / "ada/new").read_text() == "here"
    assert (place / "ada/gone/deep").read_text() == "saved"
    assert (place / "ada/gone").stat().st_mode & 0o777 == 0o750


def test_links_of_people_are_not_followed(tmp_path: Path) -> None:
    secret = tree(tmp_path / "etc", {"shadow": "root", "d/shadow": "root"})
    source = tree(tmp_path / "source", {"ada/notes": "saved", "ada/d/shadow": "saved"})
    place = tree(tmp_path / "place", {"ada/other": "here"})
    (place / "ada/notes").symlink_to(secret / "shadow")
    (place / "ada/d").symlink_to(secret / "d")
    merge(source, place, "/home/ada/notes", "/home/ada/d", "/home/ada/d/shadow")
    assert (place / "ada/notes").read_text() == "saved" and not (place / "ada/notes").is_symlink()
    assert (secret / "shadow").read_text() == "root" == (secret / "d/shadow").read_text()


def test_a_key_is_never_open_to_others_nor_written_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a key may be a daemon's own: what it put in the way of the new file must not lead elsewhere."""
    work = tree(tmp_path / "work/cluster_keys", {f"{tmp_path}/etc/munge.key".lstrip("/"): "secret"})
    other = tree(tmp_path / "other", {"passwd": "root"})
    key = tmp_path / "etc/munge.key"
    key.parent.mkdir()
    Path(f"{key}.labrack-part").symlink_to(other / "passwd")
    saved = work / str(key).lstrip("/")
    saved.chmod(0o440)
    modes = []
    real = lab_restore.shutil.copyfileobj

    def watched(source: Any, target: Any) -> None:
        modes.append(os.stat(target.name).st_mode)
        real(source, target)

    monkeypatch.setattr(lab_restore.shutil, "copyfileobj", watched)
    restore = object.__new__(lab_restore.Restore)
    restore.work = str(tmp_path / "work")
    restore.place("cluster_keys", str(key))
    assert key.read_text() == "secret" and not key.is_symlink()
    assert [stat.S_IMODE(mode) for mode in (*modes, key.stat().st_mode)] == [0o600, 0o440]
    assert (other / "passwd").read_text() == "root"


@pytest.mark.parametrize(("folder", "mode"), [("", 0o777), ("", 0o1777), ("inner/new", 0o2775)])
def test_a_place_in_which_others_write_is_told(tmp_path: Path, folder: str, mode: int) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "inner").mkdir()
    assert lab_restore.exposed(str(place / folder)) == ""
    place.chmod(mode)
    assert lab_restore.exposed(str(place / folder)) == str(place)


def test_below_a_sticky_folder_nobody_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "tmp/mine").mkdir(parents=True)
    (tmp_path / "tmp").chmod(0o1777)
    assert lab_restore.exposed(str(tmp_path / "tmp/mine")) == ""


def test_a_restore_without_room_does_not_begin(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    with pytest.raises(BackupError, match=r"MiB left.*Mend: .*-e user"):
        lab_restore.need_room(str(tmp_path / "new/folder"), free.f_bavail * free.f_frsize + (64 << 30))
    lab_restore.need_room(str(tmp_path / "new/folder"), 1)


def test_files_are_unpacked_where_nobody_renames_the_folder_away(tmp_path: Path) -> None:
    """A project's people may write in the root: the folder's name is theirs to change, and the folder is not."""
    outside = tree(tmp_path / "outside", {"files/kept": "root"})
    root = tree(tmp_path / "checkpoints", {".labrack-restore-broken/files/old": "left"})
    root.chmod(0o2775)
    with lab_restore.staged(str(root)) as stage:
        (name,) = os.listdir(root)
        assert (root / name).stat().st_mode & 0o777 == 0o700
        (root / name).rename(root / "away")
        (root / name).symlink_to(outside)
        Path(stage, "new").write_text("saved")
        assert stat.S_ISDIR(Path(stage).lstat().st_mode), "restic removes what is no folder"
    assert sorted(os.listdir(outside / "files")) == ["kept"]
    assert (root / "away/files/new").read_text() == "saved"


# --- the accounting --------------------------------------------------------------------------------------------------

#: As mariadb-dump 11.8 writes it, shortened; a job's name begins as a statement that picks a database.
DUMP = b"""/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19-11.8.3-MariaDB, for debian-linux-gnu (x86_64)
-- Host: localhost    Database: slurm_acct_db
/*!40101 SET NAMES utf8mb4 */;
DROP TABLE IF EXISTS `closet_job_table`;
CREATE TABLE `closet_job_table` (
  `used` int(11) NOT NULL
);
INSERT INTO `closet_job_table` VALUES
(1,'USE `slurm_acct_db`;\\nUSE'),
(2,'create database');
-- Dump completed on 2026-11-20  2:30:00
"""


#: What mariadb 11.8 says of a dump in which a statement is wrong, shortened in the row.
REFUSED = """--------------
INSERT INTO `no_such_table` VALUES
(1,1795736661,0,'lab','sbatch --parsable --time=30 --output=/tmp/job-%j.out --wrap true')
--------------

ERROR 1100 (HY000) at line 448: Table 'no_such_table' was not locked with LOCK TABLES
"""


def mariadb(folder: Path, monkeypatch: pytest.MonkeyPatch, ending: str, tables: str = "closet_job_table") -> Path:
    """Put a mariadb into the path that notes what it is told; with a database it ends as these words of shell."""
    program, log = folder / "mariadb", folder / "log"
    (folder / "refused").write_text(REFUSED, encoding="utf-8")
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{log}\ncat >>{log}; echo >>{log}\ncd {folder}\n'
        f"case $1 in --batch) echo {tables};; *) {ending};; esac\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return log


@pytest.mark.parametrize(
    "line",
    [b"USE `slurm_acct_db`;", b"CREATE DATABASE /*!32312 IF NOT EXISTS*/ `slurm_acct_db`;", b"/*!40000 DROP DATABASE"],
)
def test_a_dump_that_picks_its_database_is_not_loaded(
    line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = mariadb(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "dump.sql").write_bytes(DUMP + line + b"\n")
    with pytest.raises(BackupError, match="says itself into which database it goes"):
        lab_restore.load_dump(str(tmp_path / "dump.sql"))
    assert not log.exists()


def test_a_dump_goes_into_the_draft_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = mariadb(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "dump.sql").write_bytes(DUMP)
    assert lab_restore.load_dump(str(tmp_path / "dump.sql")) == ["closet_job_table"]
    said = log.read_bytes()
    assert b"\nslurm_acct_db_restored\n" + DUMP in said
    statements = said.replace(DUMP, b"").decode()
    assert "DATABASE slurm_acct_db;" not in statements and "FROM slurm_acct_db\n" not in statements


@pytest.mark.parametrize(
    ("ending", "tables", "words"),
    [
        ("cat refused >&2; exit 1", "a", "ERROR 1100 (HY000) at line 448: Table 'no_such_table' was not locked with"),
        ("kill -9 $$", "a", "mariadb was ended"),
        ("exit 0", "", "it has no tables"),
    ],
)
def test_a_dump_that_can_t_be_loaded_names_a_mend_and_nobody_s_data(
    ending: str, tables: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mariadb(tmp_path, monkeypatch, ending, tables)
    (tmp_path / "dump.sql").write_bytes(DUMP)
    with pytest.raises(BackupError) as caught:
        lab_restore.load_dump(str(tmp_path / "dump.sql"))
    assert f"so the accounting stays as it is: {words}" in str(caught.value) and ". Mend: " in str(caught.value)
    assert "sbatch" not in str(caught.value)


def test_the_draft_s_tables_take_the_accounting_s_place() -> None:
    assert restore_plan.swap_statements(["a_job_table", "user_table"]) == (
        "DROP DATABASE slurm_acct_db; CREATE DATABASE slurm_acct_db; RENAME TABLE "
        "slurm_acct_db_restored.`a_job_table` TO slurm_acct_db.`a_job_table`, "
        "slurm_acct_db_restored.`user_table` TO slurm_acct_db.`user_table`; DROP DATABASE slurm_acct_db_restored;"
    )


def test_the_new_head_itself_is_no_node_that_would_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "db.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE nodes (id INTEGER, hostname TEXT)")
        database.execute("INSERT INTO nodes VALUES (1, ?)", (os.uname().nodename,))
        database.commit()
        monkeypatch.setattr(lab_restore, "HEADSCALE_DATABASE", str(file))
        monkeypatch.setattr(lab_restore.pwd, "getpwnam", lambda _name: None)
        assert lab_restore.count_nodes() == 0
        database.execute("INSERT INTO nodes VALUES (2, 'node1')")
        database.commit()
    assert lab_restore.count_nodes() == 1
