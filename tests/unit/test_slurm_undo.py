"""Taking Slurm off a host: what the role made, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import slurm_database, slurm_node
from ansible_collections.labrack.infra.plugins.module_utils.munge import KEY_FILE
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, FileState
from ansible_collections.labrack.infra.plugins.module_utils.slurm_undo import (
    FILES,
    STATE_DIRECTORIES,
    UNITS,
    Leftovers,
    packages_to_purge,
    plan_undo,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError, ServiceState
from ansible_collections.labrack.infra.plugins.modules import slurm_undo as module

UP = ServiceState(installed=True, active=True, enabled=True, since=1000.0)
SESSION = FileState("session required pam_unix.so\nsession optional pam_systemd.so\n")
SSHD = FileState("@include common-account\n@include common-session\n", "0640", "root", "adm")
RESTRICTED = replace(SSHD, text=slurm_node.pam_sshd(SSHD.text, SESSION.text, restrict=True))
FULL = Leftovers(
    services=dict.fromkeys(UNITS, UP),
    present=frozenset(FILES),
    pam=RESTRICTED,
    session=SESSION,
    database=True,
    busy=False,
    made=True,
    packages=("mariadb-server", "munge", "slurmd"),
    trees=STATE_DIRECTORIES,
)
BARE = Leftovers(dict.fromkeys(UNITS, ServiceState()), frozenset(), SSHD, SESSION, False, False, False)


def steps(found: Leftovers) -> list[tuple[str, ...]]:
    return [change.step for change in plan_undo(found)]


def test_a_host_without_slurm_is_left_alone() -> None:
    assert steps(BARE) == []


def test_what_somebody_else_made_stays() -> None:
    foreign = replace(FULL, pam=SSHD, made=False, packages=())
    assert steps(foreign) == []


def test_the_order_is_logins_daemons_database_files_packages() -> None:
    found = steps(FULL)
    assert found[0] == ("write", slurm_node.PAM_SSHD)
    verbs = list(dict.fromkeys(step[0] for step in found))
    assert verbs == ["write", "stop", "database", "remove", "purge", "rmtree", "record"]
    assert {step[1] for step in found if step[0] == "stop"} == set(UNITS)
    assert {step[1] for step in found if step[0] == "remove"} == set(FILES)
    assert ("purge", "mariadb-server", "munge", "slurmd") in found


def test_logins_are_as_the_package_made_them() -> None:
    change = plan_undo(FULL)[0]
    assert change.after == SSHD.text


def test_a_host_that_had_munge_before_keeps_it_and_its_key() -> None:
    found = steps(replace(FULL, packages=("slurmd",)))
    assert ("stop", "munge") not in found
    assert ("remove", KEY_FILE) not in found


@pytest.mark.parametrize(("busy", "disruption"), [(False, "restart"), (True, "drain")])
def test_nothing_goes_while_jobs_run(busy: bool, disruption: str) -> None:
    assert {change.disruption for change in plan_undo(replace(FULL, busy=busy))} == {disruption}


def test_the_dump_script_goes_after_the_database() -> None:
    found = steps(FULL)
    assert found.index(("database",)) < found.index(("remove", slurm_database.DUMP_SCRIPT))


@pytest.mark.parametrize(
    ("recorded", "installed", "databases", "purged"),
    [
        ([], ["slurmd"], [], ()),
        (["slurmd munge", "slurmctld"], ["munge", "slurmd", "bash"], [], ("munge", "slurmd")),
        (
            ["mariadb-server slurmdbd"],
            ["mariadb-server", "slurmdbd"],
            ["mysql", "slurm_acct_db"],
            ("mariadb-server", "slurmdbd"),
        ),
        (["mariadb-server slurmdbd"], ["mariadb-server", "slurmdbd"], ["slurm_acct_db", "wiki"], ("slurmdbd",)),
    ],
)
def test_packages_of_the_record(
    recorded: list[str], installed: list[str], databases: list[str], purged: tuple[str, ...]
) -> None:
    assert packages_to_purge(recorded, installed, databases) == purged


def test_a_stopped_server_still_holds_what_is_in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run", lambda argv: Done(1, "", "Can't connect"))
    for name in ("mysql", "wiki", "#innodb_redo", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "ibdata1").write_text("")
    held = module.databases(str(tmp_path))
    assert held == {"mysql", "wiki"}
    assert packages_to_purge(["mariadb-server munge"], ["mariadb-server", "munge"], held) == ("munge",)
    assert module.databases(str(tmp_path / "none")) == set()


@pytest.mark.parametrize("dump", [Done(0, "", ""), Done(1, "", "MariaDB does not answer: start mariadb")])
def test_a_database_that_was_not_dumped_is_not_dropped(dump: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(argv: list[str], **_: object) -> Done:
        calls.append(argv)
        return dump

    monkeypatch.setattr(module, "run", run)
    with pytest.raises(ServiceError, match="was not dumped, so it stays"):
        module.drop_database()
    assert len(calls) == 1
