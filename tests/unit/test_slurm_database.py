"""The accounting database: files, MariaDB, slurmdbd, and a password that never shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.labrack.infra.plugins.module_utils.slurm_database import (
    DUMP_HOOK,
    DUMP_SCRIPT,
    MARIADB_CONF,
    SLURMDBD_CONF,
    DatabaseState,
    plan_database,
    slurmdbd_text,
    wanted_files,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState

SECRET = "canary-0d1f2e"
SCRIPT = "#!/bin/sh\n"
UP = ServiceState(installed=True, active=True, enabled=True, since=1000.0)
CONVERGED = DatabaseState(
    files=wanted_files(SCRIPT, SECRET),
    written=dict.fromkeys(wanted_files(SCRIPT, SECRET), 900.0),
    services={"mariadb": UP, "slurmdbd": UP},
    reachable=True,
    password=SECRET,
)
BARE = DatabaseState({}, {}, {"mariadb": ServiceState(), "slurmdbd": ServiceState()})


def steps(state: DatabaseState, script: str = SCRIPT) -> list[tuple[str, ...]]:
    return [change.step for change in plan_database(state, script)]


def test_a_converged_host_needs_nothing() -> None:
    assert steps(CONVERGED) == []


def test_the_database_is_made_before_slurmdbd_starts() -> None:
    assert steps(BARE) == [
        ("write", DUMP_SCRIPT),
        ("write", DUMP_HOOK),
        ("write", MARIADB_CONF),
        ("restart", "mariadb"),
        ("database",),
        ("write", SLURMDBD_CONF),
        ("restart", "slurmdbd"),
    ]


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (replace(CONVERGED, reachable=False), [("database",)]),
        (replace(CONVERGED, written={**CONVERGED.written, MARIADB_CONF: 1001.0}), [("restart", "mariadb")]),
        (replace(CONVERGED, written={**CONVERGED.written, SLURMDBD_CONF: 1001.0}), [("restart", "slurmdbd")]),
        (
            replace(CONVERGED, services={"mariadb": UP, "slurmdbd": replace(UP, active=False)}),
            [("restart", "slurmdbd")],
        ),
        (
            replace(CONVERGED, services={"mariadb": UP, "slurmdbd": replace(UP, enabled=False)}),
            [("enable", "slurmdbd")],
        ),
        (
            replace(CONVERGED, files={**CONVERGED.files, SLURMDBD_CONF: None}),
            [("write", SLURMDBD_CONF), ("restart", "slurmdbd")],
        ),
        (replace(CONVERGED, files={**CONVERGED.files, DUMP_HOOK: None}), [("write", DUMP_HOOK)]),
    ],
)
def test_each_drift_is_mended_alone(state: DatabaseState, wanted: list[tuple[str, ...]]) -> None:
    assert steps(state) == wanted


def test_another_dump_script_restarts_nothing() -> None:
    assert steps(CONVERGED, "#!/bin/sh\nexit 0\n") == [("write", DUMP_SCRIPT)]


def test_slurmdbd_conf_is_for_slurm_alone() -> None:
    wanted = wanted_files(SCRIPT, SECRET)[SLURMDBD_CONF]
    assert (wanted.mode, wanted.owner, wanted.group) == ("0600", "slurm", "slurm")
    assert f"\nStoragePass={SECRET}\n" in slurmdbd_text(SECRET)


def test_the_password_is_in_no_change_and_no_repr() -> None:
    drifted = {**CONVERGED.files, SLURMDBD_CONF: replace(wanted_files(SCRIPT, "older-canary")[SLURMDBD_CONF])}
    changes = plan_database(replace(CONVERGED, files=drifted), SCRIPT)
    assert changes
    assert "canary" not in repr(changes)
    assert SECRET not in repr(replace(CONVERGED, files={}))
