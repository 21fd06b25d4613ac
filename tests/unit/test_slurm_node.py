"""A worker's or login host's files, PAM rules and slurmd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.slurm_node import (
    ACCESS,
    DROP_IN,
    ENVIRONMENT,
    FETCHED_CONF,
    PAM_SESSION,
    PAM_SSHD,
    SLURM_CONF,
    NodeState,
    NodeWish,
    access,
    drop_in,
    environment,
    pam_sshd,
    plan_node,
    wanted_files,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState

UP = ServiceState(installed=True, active=True, enabled=True, since=1000.0)
SESSION = """# here are the per-package modules
session\t[default=1]\t\t\tpam_permit.so
session\trequisite\t\t\tpam_deny.so
session\trequired\t\t\tpam_permit.so
session\trequired\tpam_unix.so
session\toptional\tpam_systemd.so
"""
SSHD = """# PAM configuration for the Secure Shell service
@include common-auth
account    required     pam_nologin.so
@include common-account
session [success=ok ignore=ignore module_unknown=ignore default=bad]        pam_selinux.so close
@include common-session
session    optional     pam_motd.so  motd=/run/motd.dynamic
@include common-password
"""
WORKER = NodeWish(
    worker=True,
    conf_server="head:6817",
    devices=("/dev/nvidia0", "/dev/nvidia1"),
    scripts={"prolog": "#!/bin/sh\n", "epilog": "#!/bin/sh\n", "health": "#!/bin/sh\n"},
    exempt=("ada",),
)
BARE: dict[str, FileState | None] = {PAM_SSHD: FileState(SSHD), PAM_SESSION: FileState(SESSION)}


def state(
    files: Mapping[str, FileState | None] = BARE, service: ServiceState = UP, written: Mapping[str, float] | None = None
) -> NodeState:
    return NodeState(files, {"slurmd": service}, written or {})


def after(found: NodeState, wish: NodeWish) -> NodeState:
    """The host once the plan is made."""
    files = {**found.files, **wanted_files(found, wish)}
    return NodeState(files, {"slurmd": UP}, dict.fromkeys(files, UP.since - 1))


def steps(changes: list[Change]) -> list[tuple[str, ...]]:
    return [change.step for change in changes]


@pytest.mark.parametrize(
    "wish",
    [
        WORKER,
        replace(WORKER, restrict_ssh=False, devices=(), exempt=()),
        replace(WORKER, conf_server="", node_name="node1"),
        NodeWish(worker=False, config="ClusterName=closet\n"),
        NodeWish(worker=False),
    ],
)
def test_a_converged_host_needs_nothing(wish: NodeWish) -> None:
    assert plan_node(after(state(), wish), wish) == []


def test_a_bare_worker_gets_its_files_then_slurmd() -> None:
    changes = plan_node(state(service=ServiceState()), WORKER)
    assert steps(changes)[-1] == ("restart", "slurmd")
    assert {step[0] for step in steps(changes)[:-1]} == {"write"}
    assert {ENVIRONMENT, DROP_IN, ACCESS, PAM_SSHD} < {step[1] for step in steps(changes)}


@pytest.mark.parametrize(
    "changed",
    [
        replace(WORKER, restrict_ssh=False),
        replace(WORKER, exempt=("ada", "bob")),
        replace(WORKER, scripts={"prolog": "new"}),
    ],
)
def test_what_slurmd_does_not_read_leaves_it_alone(changed: NodeWish) -> None:
    changes = plan_node(after(state(), WORKER), changed)
    assert changes
    assert {(change.step[0], change.disruption) for change in changes} == {("write", "none")}


@pytest.mark.parametrize(
    "changed",
    [replace(WORKER, conf_server="other:6817"), replace(WORKER, node_name="x"), replace(WORKER, devices=("/dev/dri",))],
)
def test_other_options_restart_slurmd(changed: NodeWish) -> None:
    changes = plan_node(after(state(), WORKER), changed)
    assert steps(changes)[-1] == ("restart", "slurmd")
    assert {change.disruption for change in changes} == {"restart"}


@pytest.mark.parametrize("path", [ENVIRONMENT, DROP_IN])
def test_an_interrupted_run_is_taken_up(path: str) -> None:
    """The file is right, but slurmd has run since before it was written."""
    done = after(state(), WORKER)
    late = NodeState(done.files, done.services, {**done.written, path: UP.since + 1})
    assert steps(plan_node(late, WORKER)) == [("restart", "slurmd")]


def test_a_login_host_has_slurm_conf_alone() -> None:
    (change,) = plan_node(state(), NodeWish(worker=False, config="ClusterName=closet\n"))
    assert (change.step, change.disruption) == (("write", SLURM_CONF), "none")


def test_a_host_without_sshd_needs_no_rule_for_it() -> None:
    assert PAM_SSHD not in wanted_files(state({}), WORKER)


@pytest.mark.parametrize(
    ("wish", "options"),
    [
        (WORKER, "--conf-server head:6817"),
        (replace(WORKER, node_name="gpubox"), "--conf-server head:6817 -N gpubox"),
        (replace(WORKER, conf_server="", node_name="gpubox"), "-N gpubox"),
        (NodeWish(worker=True), ""),
    ],
)
def test_options_of_slurmd(wish: NodeWish, options: str) -> None:
    assert environment(wish).splitlines()[-1] == f'SLURMD_OPTIONS="{options}"'


def test_slurmd_waits_for_each_device() -> None:
    text = drop_in(WORKER)
    assert "while ! test -e /dev/nvidia0 || ! test -e /dev/nvidia1; do sleep 1; done" in text
    assert "ExecStartPre" not in drop_in(replace(WORKER, devices=()))
    assert "\nConditionPathExists=\n" in text


def test_the_exempt_and_root_get_in() -> None:
    assert access(["bob", "ada", "root", "ada"]).splitlines()[-2:] == ["+ : root ada bob : ALL", "- : ALL : ALL"]


# ----------------------------------------------------------------------------------------------------------------- PAM


def test_a_login_needs_a_job_and_lands_in_it() -> None:
    lines = pam_sshd(SSHD, SESSION, True).splitlines()
    account = lines.index("@include common-account")
    exempt = f"pam_access.so accessfile={ACCESS} noaudit"
    assert lines[account + 2] == f"account sufficient {exempt}"
    assert lines[account + 3].startswith("account required pam_slurm_adopt.so ")
    assert "action_adopt_failure=deny" in lines[account + 3]
    assert "@include common-session" not in lines
    # everybody has the rest of common-session, the exempt alone pam_systemd, by a jump over one line
    systemd = [number for number, line in enumerate(lines) if "pam_systemd.so" in line]
    assert [lines[number - 1] for number in systemd] == [f"session [success=ignore default=1] {exempt}"]
    for line in SESSION.splitlines()[1:-1]:
        assert line in lines


def test_the_rules_come_once_and_go_without_a_trace() -> None:
    once = pam_sshd(SSHD, SESSION, True)
    assert pam_sshd(once, SESSION, True) == once
    assert pam_sshd(once, SESSION, False) == SSHD
    assert pam_sshd(SSHD, SESSION, False) == SSHD


def test_a_changed_common_session_is_followed() -> None:
    changed = SESSION + "session\toptional\tpam_mkhomedir.so\n"
    assert pam_sshd(pam_sshd(SSHD, SESSION, True), changed, True) == pam_sshd(SSHD, changed, True)


def test_owner_and_mode_of_sshd_stay() -> None:
    files = {**BARE, PAM_SSHD: FileState(SSHD, "0640", "root", "adm")}
    wanted = wanted_files(state(files), WORKER)[PAM_SSHD]
    assert (wanted.mode, wanted.owner, wanted.group) == ("0640", "root", "adm")


OTHER_CONF = FileState("ClusterName=closet\n")
NEW_CONF = "ClusterName=closet\nSlurmdTimeout=100\n"


@pytest.mark.parametrize(("refetch", "fetched", "restarts"), [(True, OTHER_CONF, True), (False, OTHER_CONF, False)])
def test_old_versions_fetch_a_new_configuration_by_a_restart(refetch: bool, fetched: FileState, restarts: bool) -> None:
    wish = replace(WORKER, config=NEW_CONF, refetch=refetch)
    found = after(state({**BARE, FETCHED_CONF: fetched}), wish)
    assert steps(plan_node(found, wish)) == ([("restart", "slurmd")] if restarts else [])


def test_a_fetched_configuration_that_is_the_controllers_restarts_nothing() -> None:
    wish = replace(WORKER, config=NEW_CONF, refetch=True)
    assert plan_node(after(state({**BARE, FETCHED_CONF: FileState(NEW_CONF)}), wish), wish) == []


def test_a_worker_beside_the_controller_restarts_when_its_file_is_newer() -> None:
    wish = replace(WORKER, conf_server="", config=NEW_CONF, refetch=True)
    found = after(state({**BARE, SLURM_CONF: FileState(NEW_CONF)}), wish)
    assert plan_node(found, wish) == []
    newer = replace(found, written={**found.written, SLURM_CONF: UP.since + 1})
    assert steps(plan_node(newer, wish)) == [("restart", "slurmd")]


@pytest.mark.parametrize("known", [{}, {FETCHED_CONF: FileState("ProctrackType=proctrack/linuxproc\n")}])
def test_where_no_login_can_be_put_into_a_job_all_are_open(known: Mapping[str, FileState]) -> None:
    wish = WORKER if known else replace(WORKER, config="ProctrackType=proctrack/linuxproc\n")
    assert "pam_slurm_adopt" not in wanted_files(state({**BARE, **known}), wish)[PAM_SSHD].text
    assert "pam_slurm_adopt" in wanted_files(state(), WORKER)[PAM_SSHD].text
