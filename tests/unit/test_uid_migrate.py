# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A user gets another number: no file loses its owner, whatever the nodes have and wherever a run is interrupted."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.filter import uid_survey as filters
from ansible_collections.labrack.infra.plugins.module_utils import (
    home_archive,
    migrate_plan,
    owned_files,
    posix_acl,
    users_plan,
)
from ansible_collections.labrack.infra.plugins.module_utils.migrate_plan import Count, Node, Places, Survey, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import SUBID_FILES, SubidRange
from ansible_collections.labrack.infra.plugins.modules import uid_migrate

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
NEW = 2009
ADA = Wanted("ada", NEW, NEW)
#: The server's folder of shared files, and ada's home in it.
SHARED = "/srv/home"
PLACES = {
    "head": Places((SHARED,), f"{SHARED}/ada"),
    "node1": Places(skip=("/home",)),
}


@dataclass
class Host:
    """A simulated node: accounts by name, files with UID and who really made them, and what is under way."""

    accounts: dict[str, int]
    files: dict[str, tuple[int, str]]
    ranges: dict[str, tuple[SubidRange, ...]] = field(default_factory=dict)
    record: Any = None

    def facts(self) -> dict[str, Any]:
        return {
            "users": [{"name": name, "uid": uid, "gid": uid} for name, uid in self.accounts.items()],
            "groups": [{"name": name, "gid": uid} for name, uid in self.accounts.items()],
        }

    def observe(self, host: str, seen: Survey) -> Node:
        uid = self.accounts.get("ada")
        holders = tuple(name for name, number in self.accounts.items() if number == NEW and name != "ada")
        node = Node(uid, uid, "/home/ada", holders, holders, ranges=dict(self.ranges), record=self.record)
        users, _groups = migrate_plan.spans(node, ADA, seen, PLACES[host])
        moved = [path for path, (number, _) in self.files.items() if migrate_plan.renumber(users, number, path)]
        stray = next((path for path, (number, _) in self.files.items() if number == NEW), "") if users else ""
        return replace(node, files={"/": Count(len(moved))} if moved else {}, stray=stray)

    def apply(self, host: str, seen: Survey, budget: Iterator[int], phase: str) -> None:
        """Make what is planned; StopIteration when the budget of steps is spent, in the midst of the files too."""
        node = self.observe(host, seen)
        assert migrate_plan.refusals(node, ADA, seen, host) == []
        users, _groups = migrate_plan.spans(node, ADA, seen, PLACES[host])
        record = migrate_plan.begun(node, ADA, seen)
        for change in migrate_plan.plan(node, ADA, seen, phase):
            verb, *rest = change.step
            if verb == "files":
                for path, (number, maker) in self.files.items():
                    other = migrate_plan.renumber(users, number, path)
                    if other:
                        next(budget)
                        self.files[path] = other, maker
                continue
            next(budget)
            if verb == "begin":
                self.record = record.file()
            elif verb == "end":
                self.record = None
            elif rest[0] == "usermod" and rest[1] == "--uid":
                self.accounts["ada"] = int(rest[2])
            elif rest[0] == "usermod":
                file = f"/etc/{rest[1].partition('-')[2].partition('-')[2].partition('-')[2].rstrip('s')}"
                first, last = map(int, rest[2].split("-"))
                one = SubidRange("ada", first, last - first + 1)
                kept = tuple(other for other in self.ranges[file] if other != one)
                self.ranges[file] = (*kept, one) if "--add" in rest[1] else kept


@st.composite
def labs(draw: st.DrawFn) -> dict[str, Host]:
    lab = {}
    for host in ("head", "node1"):
        numbers = draw(st.lists(st.sampled_from([2001, 2002, 2005]), min_size=2, max_size=2, unique=True))
        accounts = {"root": 0, "bob": numbers[1]}
        if draw(st.integers(0, 4)):
            accounts["ada"] = draw(st.sampled_from([numbers[0], numbers[0], NEW]))
        lab[host] = Host(accounts, {})
        own = users_plan.wanted_range(users_plan.User("ada", accounts.get("ada", 2001), 0, "ada"))
        there = (
            draw(st.sampled_from([(), (own,), (SubidRange("ada", 10_000_000, 65536),)])) if "ada" in accounts else ()
        )
        lab[host].ranges = dict.fromkeys(SUBID_FILES, there)
    for place in range(draw(st.integers(0, 8))):
        maker_host = draw(st.sampled_from(["head", "node1"]))
        maker = draw(st.sampled_from(sorted(set(lab[maker_host].accounts) - {"root"})))
        shared = draw(st.sampled_from([maker, "vision", ""]))
        path = f"{SHARED}/{shared}/{place}" if shared else f"/var/tmp/{place}"
        lab["head" if shared else maker_host].files[path] = lab[maker_host].accounts[maker], maker
    return lab


def run(lab: dict[str, Host], budget: Iterator[int]) -> None:
    seen = migrate_plan.survey({host: one.facts() for host, one in lab.items()}, ADA)
    # the playbook's order: those with shared files first
    for host, phase in (("head", "move"), ("node1", "all"), ("head", "finish")):
        lab[host].apply(host, seen, budget, phase)


@given(labs(), st.integers(0, 20))
def test_no_file_loses_its_owner(lab: dict[str, Host], cut: int) -> None:
    seen = migrate_plan.survey({host: one.facts() for host, one in lab.items()}, ADA)
    # refused: nobody by that name, or a file of somebody who left, neither of which is this test's
    if not seen.uids and not seen.done:
        return
    before = {host: dict(one.files) for host, one in lab.items()}
    contested = set(seen.others)
    with contextlib.suppress(StopIteration):
        run(lab, iter(range(cut)))
    run(lab, iter(range(10_000)))
    for host, one in lab.items():
        assert one.accounts.get("ada") in (NEW, None) and one.record is None
        for path, (number, maker) in one.files.items():
            old = before[host][path][0]
            if maker == "bob":
                assert number == old, "nobody else's file is taken"
            elif old in contested and inside(path, SHARED) and not inside(path, f"{SHARED}/ada"):
                assert number in (old, NEW)
            else:
                assert number == NEW, "all of the user's files come along"
        for file, there in one.ranges.items():
            assert len(there) <= 1, file
    again = migrate_plan.survey({host: one.facts() for host, one in lab.items()}, ADA)
    for host, one in lab.items():
        assert migrate_plan.plan(one.observe(host, again), ADA, again) == [], "a further run changes nothing"


@pytest.mark.parametrize(
    ("node", "wanted", "words"),
    [
        (Node(2001, 2001, holders=("eve",)), ADA, ["2009", "eve", "node1"]),
        (Node(2001, 2001, group_holders=("vision",)), ADA, ["gid 2009", "vision", "another gid"]),
        (Node(2001, 2001, processes=3), ADA, ["3 processes on node1"]),
        (Node(2001, 2001, jobs="ada has 2 jobs in Slurm"), ADA, ["2 jobs", "scancel --user ada"]),
        (Node(2001, 2001, stray="/srv/x"), ADA, ["/srv/x", "somebody who left"]),
        (Node(105, 105), ADA, ["account of the system"]),
        (Node(2001, 2001), Wanted("ada", 999), ["999", "1000 to 60000"]),
        (Node(2001, 2001, record=migrate_plan.Record(2007, None).file()), ADA, ["-e uid=2007 first"]),
    ],
)
def test_what_speaks_against_it(node: Node, wanted: Wanted, words: list[str]) -> None:
    (reason,) = migrate_plan.refusals(node, wanted, Survey((2001,), (2001,)), "node1")
    assert not [word for word in (*words, "Mend: ") if word not in reason], reason


def test_a_move_that_is_under_way_goes_on_over_its_own_files() -> None:
    record = migrate_plan.Record(NEW, NEW, (2001,)).file()
    node = Node(2001, 2001, stray="/home/ada", record=record)
    assert migrate_plan.refusals(node, ADA, Survey((2001,)), "node1") == []


def test_the_own_group_and_the_ranges_come_along() -> None:
    old = users_plan.wanted_range(users_plan.User("ada", 2001, 2001, "ada"))
    node = Node(2001, 2001, "/home/ada", ranges={SUBID_FILES[0]: (old,), SUBID_FILES[1]: (old, old)})
    changes = migrate_plan.plan(node, ADA, Survey((2001,), (2001,)))
    assert [change.subject for change in changes] == [
        "file /var/lib/labrack/uid_migrate/ada.json",
        "group ada",
        "user ada",
        "file /etc/subuid",
        "file /etc/subuid",
        "file /var/lib/labrack/uid_migrate/ada.json",
    ]
    users, groups = migrate_plan.spans(node, ADA, Survey((2001,), (2001,)), Places())
    target = users_plan.wanted_range(users_plan.User("ada", NEW, NEW, "ada"))
    assert migrate_plan.renumber(users, old.start + 7, "/x") == target.start + 7
    assert migrate_plan.renumber(groups, 2001, "/x") == NEW and migrate_plan.renumber(groups, old.start, "/x") is None


# --- what the playbook asks of the lab ---


def vars_of(**nodes: Any) -> dict[str, Any]:
    return {host: {"ansible_facts": {"labrack_node": node} if node else {}} for host, node in nodes.items()}


def test_the_survey_names_what_forbids_the_number() -> None:
    node = Host({"ada": 2001}, {}).facts()
    people = [{"name": "bob", "uid": NEW}]
    groups = [{"name": "vision", "gid": NEW}]
    found = filters.uid_survey(
        ["head", "node1"], vars_of(head=node, node1=None), "ada", NEW, people, groups, None, f"cy: [1999, {NEW}]"
    )
    text = " ".join(found["refusals"])
    for word in ("node1 was not read", "bob in lab_users", "vision in lab_groups", "cy"):
        assert word in text
    assert found["uids"] == [2001] and found["gid"] == NEW
    nobody = filters.uid_survey(["head"], vars_of(head=node), "dee", NEW)
    assert "no node has a user dee" in nobody["refusals"][0]


@pytest.mark.parametrize(
    ("entry", "gid"),
    [({}, NEW), ({"gid": 2500}, 2500), ({"gid": 3000}, None)],
)
def test_the_own_group_gets_what_the_inventory_says(entry: dict[str, Any], gid: int | None) -> None:
    people = [{"name": "ada", "uid": 2001, **entry}]
    node = Host({"ada": 2001}, {}).facts()
    found = filters.uid_survey(["head"], vars_of(head=node), "ada", NEW, people, [{"name": "vision", "gid": 3000}])
    assert found["gid"] == gid and found["refusals"] == []


def test_the_file_of_numbers_keeps_the_old_one() -> None:
    text = filters.moved_number("ada: 2001\nbob: 2002\n", "ada", NEW)
    assert yaml.safe_load(text) == {"ada": [NEW, 2001], "bob": 2002}
    assert filters.moved_number("bob: 2002\n", "ada", NEW) == "bob: 2002\n"
    assert filters.moved_number(text, "ada", NEW) == text


def test_where_the_files_of_the_lab_are() -> None:
    home = {"path": "/home", "source": "/srv/lab/home", "makes": True, "provided": False, "shared": True}
    data = {"path": "/data", "source": "/data", "makes": True, "provided": True, "shared": True}
    own = {"path": "/scratch", "source": "/scratch", "makes": True, "provided": False, "shared": False}
    assert uid_migrate.places_of([home, data, own], "/home/ada") == Places(
        ("/data", "/srv/lab/home"), "/srv/lab/home/ada", (), ("/data",)
    )
    there = [{**one, "makes": False} for one in (home, data)]
    assert uid_migrate.places_of(there, "/home/ada") == Places((), "", ("/home", "/data"), ())


# --- files ---


def mountinfo(*mounts: tuple[str, str, str, str]) -> str:
    return "".join(
        f"{place} 1 {device} {subtree} {point} rw - {fstype} none rw\n"
        for place, (point, device, subtree, fstype) in enumerate(mounts)
    )


def test_each_file_system_is_walked_once_and_no_server_is_asked() -> None:
    text = mountinfo(
        ("/", "0:1", "/", "overlay"),
        ("/proc", "0:2", "/", "proc"),
        ("/srv/lab", "8:1", "/", "xfs"),
        ("/home", "8:1", "/home", "xfs"),
        ("/srv/lab/home", "8:2", "/", "tmpfs"),
        ("/data", "0:9", "/", "nfs4"),
        ("/mnt/a", "0:7", "/@a", "btrfs"),
        ("/mnt/b", "0:7", "/@b", "btrfs"),
        ("/mnt/a2", "0:7", "/@a/inner", "btrfs"),
        ("/var/lib/docker/overlay2/x/merged", "0:33", "/", "overlay"),
        ("/var/lib/docker/volumes", "8:4", "/", "ext4"),
    )
    mounts = owned_files.read_mounts(text)
    # /home is walked by itself, since where /srv/lab has it another file system lies on top
    assert owned_files.roots(mounts) == ["/", "/home", "/mnt/a", "/mnt/b", "/srv/lab", "/srv/lab/home"]
    bare = {point: one for point, one in mounts.items() if point != "/srv/lab/home"}
    assert "/home" not in owned_files.roots(bare)
    assert owned_files.roots(bare, skip=["/srv/lab"], also=["/data"]) == ["/", "/data", "/home", "/mnt/a", "/mnt/b"]


def test_a_walk_follows_no_link_and_stays_out(tmp_path: Path) -> None:
    (tmp_path / "top/in/deep").mkdir(parents=True)
    (tmp_path / "top/out").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("top/in/deep/a", "top/out/b", "other/c"):
        (tmp_path / name).touch()
    (tmp_path / "top/link").symlink_to(tmp_path / "other")
    top = str(tmp_path / "top")
    found = {entry.path.removeprefix(top) for entry in owned_files.walk(top, {f"{top}/out"})}
    assert found == {"", "/in", "/in/deep", "/in/deep/a", "/link"}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for all local file systems."""
    monkeypatch.setattr(owned_files, "roots", lambda mounts, skip, also: [str(tmp_path)])
    return tmp_path


def test_deep_folders_do_not_end_the_walk(tree: Path) -> None:
    (tree / ("d/" * 300)).mkdir(parents=True)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        assert sum(1 for _ in owned_files.local_files("")) == 301
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@needs_root
def test_files_links_acls_and_bits_come_along(tree: Path) -> None:
    for name in ("file", "tool", "others"):
        (tree / name).write_text(name)
    (tree / "dir").mkdir()
    (tree / "link").symlink_to("others")
    os.link(tree / "file", tree / "dir/again")
    for name in ("file", "tool", "dir", "link"):
        os.lchown(tree / name, 2001, 2001)
    (tree / "tool").chmod(0o4755)
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *one)
        for one in [
            (1, 6, 0xFFFFFFFF),
            (2, 4, 2001),
            (2, 6, 3001),
            (4, 4, 0xFFFFFFFF),
            (16, 6, 0xFFFFFFFF),
            (32, 0, 0xFFFFFFFF),
        ]
    )
    try:
        os.setxattr(tree / "others", posix_acl.ATTRIBUTES[0], acl)
        os.setxattr(tree / "dir", posix_acl.ATTRIBUTES[1], acl)
    except OSError:
        pytest.skip("the file system of the temporary directory has no ACLs")
    seen = Survey((2001,), (2001,))
    users, groups = migrate_plan.spans(Node(2001, 2001), ADA, seen, Places())
    files = uid_migrate.Files(users, groups, Places(), None)
    record = migrate_plan.Record(NEW, NEW, (2001,), (2001,))
    counted = files.go(ADA, seen, record, change=False)
    assert sum(one.files for one in counted.files.values()) == 5 and not counted.stray
    assert os.lstat(tree / "file").st_uid == 2001, "counting changes nothing"
    made = files.go(ADA, seen, record, change=True)
    assert made.files == counted.files
    for name in ("file", "tool", "dir", "link", "dir/again"):
        info = os.lstat(tree / name)
        assert (info.st_uid, info.st_gid) == (NEW, NEW), name
    assert os.lstat(tree / "others").st_uid == os.geteuid(), "no link is followed"
    assert stat.S_IMODE((tree / "tool").stat().st_mode) == 0o4755
    for name, attribute in (("others", posix_acl.ATTRIBUTES[0]), ("dir", posix_acl.ATTRIBUTES[1])):
        there = os.getxattr(tree / name, attribute)
        assert struct.pack("<HHI", 2, 4, NEW) in there and struct.pack("<HHI", 2, 4, 2001) not in there
        assert struct.pack("<HHI", 2, 6, 3001) in there
    assert files.go(ADA, seen, record, change=False).files == {}


@needs_root
def test_a_file_that_was_put_in_its_place_is_left(tree: Path) -> None:
    """In a shared directory others may rename: what came there after the look is not handed over."""
    for name in ("file", "link"):
        (tree / name).write_text("hers")
    others = tree / "others"
    others.write_text("his")
    users = [migrate_plan.Span(os.geteuid(), os.geteuid() + 1)]
    entries = {entry.name: entry for entry in owned_files.walk(str(tree), ())}
    (tree / "link").unlink()
    (tree / "link").symlink_to("others")
    os.replace(others, tree / "file")
    for name in ("file", "link"):
        handle = os.open(tree, os.O_RDONLY)
        entry = replace(entries[name], dir_fd=handle)
        uid_migrate.hand_over(
            entry, migrate_plan.renumber(users, entry.info.st_uid, entry.path), None, {"user.x": b"1"}
        )
        os.close(handle)
    assert {os.lstat(tree / name).st_uid for name in ("file", "link")} == {os.geteuid()}
    assert os.listxattr(tree / "file") == []


@needs_root
def test_what_somebody_leaves_is_listed_up_to_a_bound(tree: Path) -> None:
    (tree / "theirs/deep").mkdir(parents=True)
    (tree / "home").mkdir()
    for name in ("theirs/deep/a", "b", "c", "home/d", "e"):
        (tree / name).touch()
    for name in ("theirs", "theirs/deep", "theirs/deep/a", "b", "c", "home/d"):
        os.chown(tree / name, 2001, 2001)
    found, more, complete = owned_files.left_files(2001, "", skip=[str(tree / "home")], most=2)
    assert len(found) == 2 and more == 1 and complete
    everything, more, _complete = owned_files.left_files(2001, "", most=50)
    assert set(everything) == {str(tree / name) for name in ("theirs", "b", "c", "home/d")} and more == 0
    assert owned_files.left_files(2001, "", seconds=-1.0) == ([], 0, False)


def test_an_acl_of_which_nothing_changes_is_left() -> None:
    acl = struct.pack("<I", 2) + struct.pack("<HHI", 2, 4, 3001)
    assert posix_acl.renumbered(acl, lambda number: None, lambda number: None) is None
    assert posix_acl.renumbered(b"", lambda number: 1, lambda number: 1) is None
    both = struct.pack("<I", 2) + struct.pack("<HHI", 2, 4, 2001) + struct.pack("<HHI", 2, 2, NEW)
    one = posix_acl.renumbered(both, lambda number: NEW if number == 2001 else None, lambda number: None)
    assert one == struct.pack("<I", 2) + struct.pack("<HHI", 2, 6, NEW)


# --- the archive of a home ---


def home_in(folder: Path) -> Path:
    home = folder / "homes/ada"
    (home / ".ssh").mkdir(parents=True)
    (home / "notes").write_text("kept\n")
    os.link(home / "notes", home / "again")
    (home / "sparse").touch()
    os.truncate(home / "sparse", 1 << 20)
    (home / "name with\nbreak").touch()
    (home / "link").symlink_to("/etc/passwd")
    (home / ("long" * 50)).touch()
    os.mkfifo(home / "pipe")
    return home


def test_an_archive_holds_all_of_a_home(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    path = home_archive.archive(str(home), str(tmp_path / "archive"), "ada", 2001)
    assert Path(path).name.startswith("ada-2001-") and stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert sorted(os.listdir(tmp_path / "archive")) == [Path(path).name], "no draft is left"
    wanted, size = home_archive.listing(str(home))
    assert sorted(home_archive.members(path)) == sorted(wanted) and 0 < size < 1 << 20
    home_archive.remove(str(home))
    subprocess.run(["tar", "--extract", "--file", path, "--directory", home.parent], check=True)
    assert (home / "notes").read_text() == "kept\n" and (home / "link").is_symlink()
    assert Path("/etc/passwd").exists()


def test_a_home_of_any_depth_is_archived_and_removed(tmp_path: Path) -> None:
    home = tmp_path / "homes/ada"
    home.mkdir(parents=True)
    handle = os.open(home, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    try:
        home_archive.archive(str(home), str(tmp_path / "archive"), "ada", 2001)
        home_archive.remove(str(home))
        assert not home.exists()
    finally:
        # pytest would not get to the end of it
        subprocess.run(["rm", "--recursive", "--force", str(home)], check=True)


def test_an_archive_that_lacks_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_in(tmp_path)
    real = home_archive._tar

    def forgetful(*arguments: str) -> None:
        real(*(arguments if arguments[0] != "--create" else (arguments[0], "--exclude=notes", *arguments[1:])))

    monkeypatch.setattr(home_archive, "_tar", forgetful)
    with pytest.raises(home_archive.ArchiveError, match="notes"):
        home_archive.archive(str(home), str(tmp_path / "archive"), "ada", 2001)
    assert (home / "notes").exists() and not list((tmp_path / "archive").glob("*.tar"))


def test_an_archive_in_which_others_write_is_refused(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive").chmod(0o1777)
    with pytest.raises(home_archive.ArchiveError, match=r"others than root.*Mend: .*lab_users_archive"):
        home_archive.archive(str(home), str(tmp_path / "archive"), "ada", 2001)
    assert home.exists() and not os.listdir(tmp_path / "archive")


def test_a_home_that_has_no_room_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_in(tmp_path)
    full = type("Full", (), {"f_bavail": 10, "f_frsize": 4096})
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(home_archive.ArchiveError, match=r"make room.*lab_users_archive"):
        home_archive.archive(str(home), str(tmp_path / "archive"), "ada", 2001)
    assert shutil.which("tar") and home.exists()
