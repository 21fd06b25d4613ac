# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""People join, get a number, another one, leave: on two nodes without Slurm, each with homes of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from labrack.testnode import node
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import KEEP, LAB, SYSTEM
from tests.nodes.harness import ROOT, Closet, Run, bring_up, until

HOSTS = ("head", "node1")
TASK = "Converge users, groups, keys and sudo"
PLAY = """
- import_playbook: labrack.infra.preflight
- name: People
  hosts: lab_head:lab_workers
  gather_facts: false
  roles: [labrack.infra.lab_users]
"""


FILES = """
install -d -o ben -g ben "/srv/deep/a b" && ln -s /etc/passwd /srv/deep/link && touch /srv/other
chown --no-dereference ben /srv/deep/link && install -o ben -m 4755 /bin/true /srv/tool
"""
#: An ACL that lets ben, 2002, write to somebody else's file; the node has no setfacl.
SET_ACL = """python3 -c '
import os, struct
entries = [(1, 6, 2**32 - 1), (2, 6, 2002), (4, 4, 2**32 - 1), (16, 6, 2**32 - 1), (32, 4, 2**32 - 1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
os.setxattr("/srv/other", "system.posix_acl_access", acl)
'"""
GET_ACL = """python3 -c '
import os, struct
print(struct.unpack_from("<I", os.getxattr("/srv/other", "system.posix_acl_access"), 16)[0])
'"""


@dataclass
class Lab:
    """The nodes, with an inventory that the tests rewrite."""

    closet: Closet
    folder: Path
    playbook: Path

    def people(self, *users: dict[str, Any], **variables: Any) -> None:
        lab = {"lab_orchestrator": "none", "lab_users": list(users), "lab_users_archive": "/srv/archive", **variables}
        (self.folder / "group_vars/all/lab.yml").write_text(yaml.safe_dump(lab))

    def play(self, *arguments: str, ok: bool = True) -> Run:
        return self.closet.play(str(self.playbook), *arguments, ok=ok)

    def uid(self, host: str, name: str) -> str:
        return self.closet.root(host, f"id --user {name}", check=False).strip()

    def work(self, host: str, uid: int) -> None:
        """A process of a user that runs until it is ended."""
        self.closet.root(host, f"setsid setpriv --reuid={uid} --clear-groups sleep 4321 >/dev/null 2>&1 &")
        until("it runs", lambda: self.closet.root(host, f"pgrep --uid {uid}", check=False), bool)

    def rest(self, host: str, uid: int) -> None:
        self.closet.root(host, f"pkill --uid {uid}")
        until("it is gone", lambda: self.closet.root(host, f"pgrep --uid {uid}", check=False), lambda pids: not pids)

    @property
    def numbers(self) -> Path:
        return self.folder / "lab_uids.txt"


@pytest.fixture(scope="module")
def lab(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    name, state = f"{LAB}-people", ROOT / ".cache/labs" / f"{LAB}-people"
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)
    folder = tmp_path_factory.mktemp("inventory")
    (folder / "group_vars/all").mkdir(parents=True)
    (folder / "hosts.yml").write_text("lab_head: {hosts: {head: }}\nlab_workers: {hosts: {node1: }}\n")
    playbook = tmp_path_factory.mktemp("play") / "people.yml"
    playbook.write_text(PLAY)
    yield Lab(bring_up(name, [NodeSpec(host, SYSTEM) for host in HOSTS], folder, state), folder, playbook)
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)


ADA: dict[str, Any] = {"name": "ada", "expires": "2099-12-31", "comment": 'Ada "100 %" L\\'}
BEN: dict[str, Any] = {"name": "ben"}


def test_a_number_is_chosen_once_and_free_everywhere(lab: Lab) -> None:
    lab.closet.root("node1", "useradd --uid 2000 --no-create-home gus")
    lab.people(ADA, BEN)
    predicted = lab.play("--check", "--diff")
    assert not lab.numbers.exists() and "+ada: 2001" in predicted.output
    made = lab.play()
    assert yaml.safe_load(lab.numbers.read_text()) == {"ada": 2001, "ben": 2002}
    for host in HOSTS:
        assert predicted.task(host, TASK).subjects == made.task(host, TASK).subjects != []
        assert (lab.uid(host, "ada"), lab.uid(host, "ben")) == ("2001", "2002")
        passwd = lab.closet.root(host, "getent passwd ada").strip().split(":")
        assert passwd[4:] == [ADA["comment"], "/home/ada", "/bin/bash"]
        assert lab.closet.root(host, "getent shadow ada").split(":")[1:2] == ["*"]
        assert "Dec 31, 2099" in lab.closet.root(host, "chage --list ada")
        assert "ada:65701536:65536" in lab.closet.root(host, "cat /etc/subuid")
    assert "+ada" not in lab.play("--diff").output
    again = lab.play()
    assert set(again.changed.values()) == {0}
    for host in HOSTS:
        actions = [task.action for task in again.modules(host) if task.ending != "skipped"]
        assert actions == ["node_facts", "lab_users"], "no more than three module tasks"


def test_a_conflict_is_found_before_anything_changes(lab: Lab) -> None:
    lab.people(ADA, BEN, {"name": "eve", "uid": 2000})
    run = lab.play(ok=False)
    assert run.rc != 0 and "lab_users[2].uid = 2000 (node1)" in run.messages
    assert "labrack.infra.uid_migrate -e user=gus" in run.messages
    assert {task.action for task in run.tasks if task.ending != "skipped"} <= {"lab_check", "node_facts", "assert"}
    assert lab.uid("head", "eve") == ""


def test_without_all_nodes_no_number_is_chosen(lab: Lab) -> None:
    lab.people(ADA, BEN, {"name": "cy"})
    run = lab.play("--limit", "head", ok=False)
    assert run.rc != 0 and "one can't be chosen without node1" in run.messages
    assert "cy" not in lab.numbers.read_text()


def migrate(lab: Lab, uid: int, *arguments: str, ok: bool = True) -> Run:
    return lab.closet.play("labrack.infra.uid_migrate", *arguments, ok=ok, user="ben", uid=uid)


def files_of(lab: Lab, host: str, uid: int) -> set[str]:
    return set(lab.closet.root(host, f"find / -xdev -uid {uid} -o -xdev -gid {uid} 2>/dev/null || :").split())


def test_a_move_refuses_while_somebody_works(lab: Lab) -> None:
    lab.people(ADA, BEN)
    lab.work("node1", 2002)
    run = migrate(lab, 2050, ok=False)
    lab.rest("node1", 2002)
    assert run.rc != 0 and "ben has 1 processes on node1" in run.messages
    taken = migrate(lab, 2000, ok=False)
    assert taken.rc != 0 and "gus on node1" in taken.messages
    assert [lab.uid(host, "ben") for host in HOSTS] == ["2002", "2002"]


def test_a_move_does_what_its_dry_run_counts(lab: Lab) -> None:
    lab.people(ADA, BEN)
    lab.closet.root("node1", FILES)
    lab.closet.root("node1", SET_ACL)
    before = {host: files_of(lab, host, 2002) for host in HOSTS}
    counted = migrate(lab, 2050, "--check")
    assert {host: files_of(lab, host, 2002) for host in HOSTS} == before
    found = {host: counted.task(host, "Look for the user's files").result["files"] for host in HOSTS}
    made = migrate(lab, 2050)
    moved = {host: made.task(host, "Move the user on the other nodes").result["files"] for host in HOSTS}
    assert found == moved
    for host in HOSTS:
        assert lab.uid(host, "ben") == "2050" and files_of(lab, host, 2002) == set()
        assert files_of(lab, host, 2050) >= before[host]
    # /srv has the directory, the link, the tool, and the file with the ACL
    assert found["node1"]["/srv"]["files"] == 4
    assert lab.closet.root("node1", "stat -c %a /srv/tool") == "4755\n"
    assert lab.closet.root("node1", GET_ACL) == "2050\n"
    assert yaml.safe_load(lab.numbers.read_text())["ben"] == [2050, 2002]
    assert set(migrate(lab, 2050).changed.values()) == {0}
    assert set(lab.play().changed.values()) == {0}


def test_who_left_goes_when_nothing_runs_and_the_home_is_kept(lab: Lab) -> None:
    gone = {**BEN, "state": "absent"}
    lab.people(ADA, gone)
    lab.closet.root(
        "head", "echo kept > /home/ben/notes && chown ben /home/ben/notes && install -o ben /dev/null /srv/left"
    )
    lab.work("node1", 2050)
    held = lab.play()
    for host in HOSTS:
        (sentence,) = held.task(host, TASK).result["waiting"]
        assert "1 process on node1" in sentence and lab.uid(host, "ben") == "2050"
        assert lab.closet.root(host, "passwd --status ben").split()[1] == "L"
    lab.rest("node1", 2050)
    predicted, made = lab.play("--check"), lab.play()
    for host in HOSTS:
        assert predicted.task(host, TASK).subjects == made.task(host, TASK).subjects != []
        assert lab.uid(host, "ben") == "" and lab.closet.root(host, "getent group ben", check=False) == ""
        assert lab.closet.root(host, "grep ben: /etc/subuid", check=False) == ""
        assert lab.closet.root(host, "ls -d /home/ben", check=False) == ""
    left = made.task("head", TASK).result["left_files"]["ben"]
    assert left["paths"] == ["/srv/left"] and left["complete"]
    (archive,) = made.task("head", TASK).result["archives"]
    assert lab.closet.root("head", f"stat -c '%a %U' {archive}") == "600 root\n"
    assert lab.closet.root("head", f"tar --extract --to-stdout --file {archive} ben/notes") == "kept\n"
    assert set(lab.play().changed.values()) == {0}
