"""The backup of a host: its plan, its rules, and what its script picks."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import backup_plan, restic
from ansible_collections.labrack.infra.plugins.module_utils.backup_plan import BackupError, Observed, Target, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, FileState
from ansible_collections.labrack.infra.plugins.module_utils.rules_backup import check_backup
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState
from ansible_collections.labrack.infra.plugins.modules import lab_backup

SCRIPT = Path(__file__).parents[2] / "roles/lab_backup/files/backup.py"
PASSWORD, KEY = "correct horse battery", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("labrack_backup", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


backup = load()


# --- where it goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("/backup/labrack/", Target("/backup/labrack")),
        ("sftp:lab@nas:/backup", Target("/backup", "lab@nas")),
        ("sftp://lab@nas:2222//backup", Target("/backup", "lab@nas", 2222)),
    ],
)
def test_targets_are_read(text: str, target: Target) -> None:
    assert Target.read(text) == target


@pytest.mark.parametrize(
    "text", ["backup", "/", "/backup/../home", "sftp:nas:/backup", "sftp:lab@nas:backup", "s3:b/x"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(BackupError):
        Target.read(text)


def test_a_server_is_reached_with_the_role_s_key_and_no_question() -> None:
    target = Target("/backup", "lab@nas", 2222)
    pinned = backup_plan.ssh_command(target, key=True, host_key=True)
    assert f"-i {backup_plan.SSH_KEY} " in pinned and "StrictHostKeyChecking=yes" in pinned and "-p 2222" in pinned
    assert pinned.endswith("lab@nas -s sftp")
    first = backup_plan.ssh_command(target, key=False, host_key=False)
    assert "accept-new" in first and "-i " not in first
    assert backup_plan.ssh_command(Target("/backup"), key=True, host_key=True) == ""


# --- the plan, on a simulated host -----------------------------------------------------------------------------------

UP = ServiceState(installed=True, active=True, enabled=True)
WISHES = st.builds(
    Wanted,
    present=st.just(True),
    host=st.just("head"),
    repository=st.sampled_from(["/backup/a", "/backup/b", "sftp:lab@nas:/backup"]),
    password=st.sampled_from([None, PASSWORD]),
    ssh_key=st.sampled_from([None, KEY]),
    ssh_host_key=st.sampled_from(["", "nas ssh-ed25519 AAAA"]),
    schedule=st.sampled_from(["daily", "*-*-* 02:30:00"]),
    homes=st.sampled_from([(), ("/home",)]),
    checkpoints=st.sampled_from([(), ("/checkpoints",)]),
    versions=st.integers(1, 5),
    keep=st.just({"daily": 7}),
    script=st.just("#!/usr/bin/python3\n"),
    installed=st.booleans(),
)
WANTED = st.one_of(WISHES, st.just(Wanted(present=False)))


class Host:
    """A host whose disk has repositories by their place, each with its password."""

    def __init__(self, repositories: dict[str, str]) -> None:
        self.files: dict[str, FileState | None] = {}
        self.timer = ServiceState(installed=True)
        self.repositories = repositories
        self.made = 0

    def observe(self, wanted: Wanted) -> Observed:
        seen = Observed(dict(self.files), self.timer)
        if not wanted.present:
            return seen
        if wanted.repository not in self.repositories:
            return replace(seen, repository="absent")
        if not backup_plan.must_ask(seen, wanted):
            return seen
        password = backup_plan.password_to_use(seen, wanted, "none yet")
        right = password == self.repositories[wanted.repository]
        return replace(seen, repository="ready" if right else "locked")

    def converge(self, wanted: Wanted) -> list[Change]:
        seen = self.observe(wanted)
        changes = backup_plan.plan(seen, wanted)
        self.made += 1
        password = backup_plan.password_to_use(seen, wanted, f"made here {self.made}")
        files = backup_plan.wanted_files(wanted, password) if wanted.present else {}
        files[backup_plan.RECORD] = backup_plan.wanted_record(seen, wanted).file()
        for change in changes:
            verb, *words = change.step
            if verb == "init":
                assert wanted.repository not in self.repositories, "a repository is never made twice"
                self.repositories[wanted.repository] = password
            elif verb == "write":
                self.files[words[0]] = files[words[0]]
            elif verb == "remove":
                self.files.pop(words[0])
            else:
                self.timer = ServiceState(installed=True) if verb == "disable" else UP
        return changes


@given(st.lists(WANTED, min_size=1, max_size=4))
def test_any_backup_after_any_other(wishes: list[Wanted]) -> None:
    host = Host({"/backup/b": "an older one"})
    for wanted in wishes:
        before = dict(host.repositories)
        try:
            changes = host.converge(wanted)
        except BackupError as error:
            assert "password" in str(error)
            assert host.repositories == before
            continue
        assert host.converge(wanted) == []
        assert before.items() <= host.repositories.items(), "no repository is removed, and none gets another password"
        assert not any(secret in repr(changes) for secret in (PASSWORD, "made here", "b3Bl"))
        if not wanted.present:
            assert {path for path, file in host.files.items() if file} <= {backup_plan.PASSWORD}
            continue
        password = host.files[backup_plan.PASSWORD]
        assert password is not None and password.mode == "0600"
        assert host.repositories[wanted.repository] + "\n" == password.text
        others = [file.text for path, file in host.files.items() if file and path not in backup_plan.SECRETS]
        assert not any(secret in text for text in others for secret in (PASSWORD, "made here", "b3Bl"))


def test_a_password_that_only_this_host_has_outlives_the_role() -> None:
    host = Host({})
    host.converge(Wanted(repository="/backup/a", script="x"))
    host.converge(Wanted(present=False))
    assert list(host.files) == [backup_plan.PASSWORD]
    host.converge(Wanted(repository="/backup/a", script="x"))
    host.converge(Wanted(repository="/backup/a", script="x", password=host.repositories["/backup/a"]))
    host.converge(Wanted(present=False))
    assert list(host.files) == []


@pytest.mark.parametrize(
    ("repository", "password", "words"),
    [
        ("locked", None, "does not have their password"),
        ("locked", PASSWORD, "another password"),
        ("foreign", None, "no repository of restic"),
        ("unreachable", None, "there is no /backup"),
    ],
)
def test_what_is_wrong_with_a_repository_is_said(repository: str, password: str | None, words: str) -> None:
    seen = Observed(repository=repository, words="there is no /backup")
    with pytest.raises(BackupError, match=words):
        backup_plan.plan(seen, Wanted(repository="/backup/a", password=password))


def test_a_repository_that_has_gone_is_not_made_anew() -> None:
    host = Host({})
    wanted = Wanted(repository="/backup/a", script="x")
    host.converge(wanted)
    host.repositories.clear()
    with pytest.raises(BackupError, match="was there and is gone"):
        host.converge(wanted)


def test_a_folder_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    place = tmp_path / "repository"
    assert restic.folder_state(str(place)) == ("absent", "")
    assert restic.folder_state(str(place / "deeper")) == ("unreachable", f"there is no {place}")
    (place / "lost+found").mkdir(parents=True)
    assert restic.folder_state(str(place))[0] == "absent"
    (place / "thesis.tex").touch()
    assert restic.folder_state(str(place))[0] == "foreign"
    (place / "config").touch()
    assert restic.folder_state(str(place))[0] == "unasked"


@pytest.mark.parametrize(
    ("rc", "err", "state"),
    [
        (0, "", "ready"),
        (1, "Fatal: wrong password or no key found\n", "locked"),
        (12, "Fatal: wrong password or no key found\n", "locked"),
        (1, "Fatal: unable to open config file: stat /x/config: no such file\nIs there a repository at the following "
            "location?\n/x\n", "absent"),
        (10, "Fatal: repository does not exist: unable to open config file", "absent"),
        (1, "ssh: connect to host nas port 22: Connection refused\nFatal: unable to open repository", "unreachable"),
    ],
)  # fmt: skip
def test_restics_words_are_understood(rc: int, err: str, state: str) -> None:
    assert restic.repository_state(Done(rc, "", err))[0] == state


# --- the rules -------------------------------------------------------------------------------------------------------

GOOD: Mapping[str, Any] = {
    "lab_backup_repository": "/backup/labrack",
    "lab_backup_schedule": "daily",
    "lab_backup_homes": ["/home"],
    "lab_backup_checkpoints": ["/checkpoints"],
    "lab_backup_checkpoint_versions": 3,
    "lab_backup_keep": {"daily": 7, "weekly": None},
}


def findings(groups: Mapping[str, list[str]] | None = None, **changed: Any) -> list[str]:
    members = groups or {"lab_head": ["head"]}
    hosts = {host: {**GOOD, **changed} for names in members.values() for host in names}
    return [one.line() for one in check_backup(Inventory(hosts, members))]


def test_a_good_backup_has_no_finding() -> None:
    assert findings() == []
    assert findings(lab_backup_password=PASSWORD, lab_backup_ssh_key=KEY) == []
    assert findings(lab_backup_repository="") == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lab_backup_repository": "backup"}, "neither an absolute path nor sftp"),
        ({"lab_backup_repository": "/home/backup"}, "it is in /home, which is saved"),
        ({"lab_backup_repository": "/etc/slurm/backup"}, "it is in /etc/slurm, which is saved"),
        ({"lab_backup_repository": "/checkpoints"}, "it is in /checkpoints"),
        ({"lab_backup_homes": ["home"]}, "not an absolute path"),
        ({"lab_backup_password": "short"}, "shorter than 12"),
        ({"lab_backup_ssh_key": "ssh-ed25519 AAAA"}, "not a private key"),
        ({"lab_backup_schedule": "every night!"}, "not a time of systemd's calendar"),
        ({"lab_backup_checkpoint_versions": 0}, "less than one"),
        ({"lab_backup_keep": {"daily": 0}}, "keeps nothing"),
        ({"lab_backup_keep": {"daily": -1}}, "less than none"),
    ],
)
def test_what_is_wrong_is_found(changed: dict[str, Any], words: str) -> None:
    found = findings(**changed)
    assert any(words in line for line in found), found
    assert not any("short" in line.split("Mend")[0].replace("shorter", "") for line in found)
    assert findings(**changed, lab_backup_state="absent") == []


def test_hosts_that_share_a_server_need_one_password() -> None:
    groups = {"lab_head": ["head"], "lab_workers": ["files"], "lab_backup": ["head", "files"]}
    (found,) = findings(groups, lab_backup_repository="sftp:lab@nas:/backup")
    assert "a password of its own" in found
    assert findings(groups, lab_backup_repository="sftp:lab@nas:/backup", lab_backup_password=PASSWORD) == []
    assert "lab_workers" in findings({"lab_head": ["head"], "lab_backup": ["stranger"]})[0]


# --- versions of checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["checkpoint-1000", "checkpoint-2000", "checkpoint-500"], {"checkpoint-1000", "checkpoint-2000"}),
        (["epoch=1-step=10.ckpt", "epoch=2-step=20.ckpt", "epoch=10-step=100.ckpt"], None),
        (["1000", "2000", "900"], {"1000", "2000"}),
        (["global_step10", "global_step9", "global_step8"], {"global_step10", "global_step9"}),
        # shards, ranks and names without a version all stay
        ([f"model-0000{shard}-of-00004.safetensors" for shard in range(1, 5)], "all"),
        ([f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(4)], "all"),
        (["best.pt", "last.pt", "config.json", "rank_3"], "all"),
        (["run1", "run2", "run3"], "all"),
    ],
)
def test_versions_are_told_by_their_names(names: list[str], kept: Any) -> None:
    old = set(backup.outdated([(name, 0.0) for name in names], 2))
    expected = set(names) if kept == "all" else kept or {"epoch=2-step=20.ckpt", "epoch=10-step=100.ckpt"}
    assert set(names) - old == expected


ENTRIES = st.lists(
    st.tuples(
        st.from_regex(r"(model|step|checkpoint-|v|shard_)\d{0,3}(\.pt)?", fullmatch=True), st.floats(0, 9, width=16)
    ),
    max_size=12,
    unique_by=lambda entry: entry[0],
)


@given(ENTRIES, st.integers(1, 4))
def test_of_each_thing_the_newest_stay(entries: list[tuple[str, float]], versions: int) -> None:
    old = set(backup.outdated(entries, versions))
    times = dict(entries)
    for name in times:
        alike = [other for other in times if backup.version_key(other) == backup.version_key(name)]
        stay = [other for other in alike if other not in old]
        if backup.version_key(name) == name:
            assert name not in old
        else:
            assert len(stay) == min(len(alike), versions)
            assert all(times[gone] <= times[here] for gone in set(alike) - set(stay) for here in stay)


def test_versions_are_found_at_any_depth_and_links_are_not_followed(tmp_path: Path) -> None:
    for number in range(1, 5):
        folder = tmp_path / f"vision/run/step-{number}"
        folder.mkdir(parents=True)
        (folder / "step-1").touch()
        os.utime(folder, (number, number))
    (tmp_path / "elsewhere").symlink_to(tmp_path / "vision/run")
    old = sorted(backup.old_versions(str(tmp_path), 3))
    assert old == [str(tmp_path / "vision/run/step-1")]


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/"), min_size=1, max_size=8))
def test_a_pattern_means_its_path_alone(name: str) -> None:
    pattern = backup.literal("/checkpoints/" + name)
    if "\n" in name or "\r" in name:
        assert pattern is None
        return
    # what restic makes of a line: blanks around it go, $$ is $
    line = pattern.strip().replace("$$", "$")
    assert line.startswith("/checkpoints/")
    plain = re.sub(r"\[(\s)\]$", r"\1", line)
    assert re.sub(r"\\(.)", r"\1", plain) == "/checkpoints/" + name
    bare = re.sub(r"\\.", "", plain)
    assert not set("*?[]\\") & set(bare)


# --- other things that the script reads ------------------------------------------------------------------------------


def test_only_the_lab_s_accounts_are_saved() -> None:
    passwd = "root:x:0:0::/root:/bin/sh\nada:x:2001:2001:Ada:/home/ada:/bin/bash\nbob:x:1000:1000::/home/bob:/bin/sh\n"
    group = "root:x:0:\nada:x:2001:\nvision:x:3001:ada\nbob:x:1000:\n"
    shadow = "root:$y$r:1:::::\nada:$y$a:1:::::\nbob:$y$b:1:::::\n"
    found = backup.accounts({"users": ["ada"], "groups": ["vision"]}, passwd, group, shadow)
    assert [row[0] for row in found["passwd"]] == ["ada"] == [row[0] for row in found["shadow"]]
    assert [row[0] for row in found["group"]] == ["ada", "vision"]
    assert "$y$b" not in json.dumps(found)


def test_files_of_a_file_server_are_its_own_to_save() -> None:
    mounts = "/dev/sda1 / ext4 rw 0 0\nhead:/home /home nfs4 rw 0 0\n/dev/sdb /home/local\\040disk xfs rw 0 0\n"
    assert backup.filesystem("/home/ada", mounts) in backup.ELSEWHERE
    assert backup.filesystem("/homes", mounts) == "ext4"
    assert backup.filesystem("/home/local disk", mounts) == "xfs"


def test_files_that_have_gone_are_no_failure() -> None:
    gone_014 = {"message_type": "error", "error": {"Op": "lstat", "Path": "/home/a", "Err": 2}, "item": "/home/a"}
    gone_018 = {"message_type": "error", "error": {"message": "lstat /home/a: no such file or directory"}, "item": "/h"}
    denied = {"message_type": "error", "error": {"Op": "open", "Path": "/home/b", "Err": 13}, "item": "/home/b"}
    text = "\n".join(["not json", *map(json.dumps, (gone_014, gone_018, denied))])
    assert backup.unread(text) == ["/home/b"]


def test_an_installation_that_is_new_does_not_follow_the_one_before() -> None:
    old = [{"tags": ["labrack", "homes", "installation-aaa"]}]
    assert backup.strange(old, "installation-bbb")
    assert not backup.strange([*old, {"tags": ["installation-bbb"]}], "installation-bbb")
    assert not backup.strange([], "installation-bbb")


def test_the_sets_of_the_script_are_those_of_the_plan() -> None:
    assert tuple(backup.SETS) == backup_plan.SETS
    places = [(backup.FOLDER, backup_plan.FOLDER), (backup.STATE, backup_plan.STATE), (backup.CACHE, backup_plan.CACHE)]
    assert all(str(path) == other for path, other in places)
    assert fnmatch.fnmatch(str(backup.NOTICE), backup_plan.NOTICE)


def test_a_folder_of_any_depth_is_gone_through(tmp_path: Path) -> None:
    """Somebody's thousand folders in each other must not end everybody's backup."""
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    for number in (1, 2):
        os.mkdir(f"step-{number}", dir_fd=handle)
        os.utime(f"step-{number}", (number, number), dir_fd=handle)
    os.close(handle)
    try:
        assert list(backup.old_versions(str(tmp_path), 1)) == [str(tmp_path) + "/d" * 1500 + "/step-1"]
    finally:
        # pytest would not get to the end of it
        subprocess.run(["rm", "--recursive", str(tmp_path / "d")], check=True)


def test_names_in_no_encoding_are_left_out_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "STAGE", tmp_path)
    asked = []

    class Restic:
        def run(self, *arguments: str, fine: object = ()) -> subprocess.CompletedProcess[str]:
            asked.append(Path(arguments[arguments.index("--exclude-file") + 1]).read_bytes())
            told = {"message_type": "summary", "snapshot_id": "0" * 8}
            told.update(total_files_processed=1, total_bytes_processed=1)
            return subprocess.CompletedProcess(arguments, 0, json.dumps(told), "")

    name = os.fsdecode(b"/checkpoints/caf\xe9-step-1")
    backup.back_up(Restic(), "head", "checkpoints", backup.Source(["/checkpoints"], [name]), "tag")
    assert asked == [b"/checkpoints/caf\xe9-step-1\n"]


@pytest.mark.parametrize(("before", "fails"), [({"files": 12}, True), ({"files": 0}, False), ({}, False)])
def test_a_disk_that_is_not_mounted_is_not_saved_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Mapping[str, Any], fails: bool
) -> None:
    class Restic:
        def __init__(self, *_arguments: str) -> None:
            pass

        def run(self, *arguments: str, fine: object = ()) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(arguments, 0, "[]", "")

    saved: list[str] = []
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(backup, "STAGE", tmp_path / "stage")
    monkeypatch.setattr(backup, "STATE", tmp_path / "backup.json")
    monkeypatch.setattr(backup, "Restic", Restic)
    monkeypatch.setattr(backup, "SETS", {"homes": lambda _config: backup.Source([str(tmp_path / "home")])})
    monkeypatch.setattr(backup, "back_up", lambda _restic, _host, name, _source, _tag: saved.append(name) or {})
    config = {"sftp_command": "", "host": "head", "keep": {"daily": 7}}
    state = {"sets": {"homes": dict(before)}}
    if fails:
        with pytest.raises(backup.BackupError, match=r"home is empty and had 12 files.*Mend: "):
            backup.make(config, state)
    else:
        backup.make(config, state)
    assert saved == ([] if fails else ["homes"])
    assert not fails or state["sets"]["homes"] == before


def test_a_host_that_refuses_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        def __init__(self, **_arguments: object) -> None:
            self.params = {"state": "absent", "max_disruption": "restart"}
            self.check_mode = False

        def fail_json(self, msg: str) -> None:
            raise RuntimeError(msg)

    def full(_wanted: Wanted) -> Observed:
        raise OSError(28, "No space left on device", "/etc/labrack/backup")

    monkeypatch.setattr(lab_backup, "AnsibleModule", Module)
    monkeypatch.setattr(lab_backup, "observe", full)
    with pytest.raises(RuntimeError, match="No space left on device: '/etc/labrack/backup'"):
        lab_backup.main()
