# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Accounting: what ran is known, who left may not submit, limits hold, and no upgrade goes without a dump."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.nodes.harness import INVENTORIES, Closet, until

BACKUPS = "/var/backups/labrack"


def sacct(closet: Closet, job: str) -> str:
    command = f"sacct --noheader --parsable2 --allocations --jobs={job} --format=User,Account,State,AllocTRES"
    return closet.root("head", command).strip()


def test_finished_job_is_known(closet: Closet) -> None:
    job = closet.submit("ada", "--gres=gpu:1", "true")
    closet.await_state(job, "COMPLETED")
    seen = until("the job is in the accounting", lambda: sacct(closet, job), lambda seen: "COMPLETED" in seen)
    assert seen.startswith("ada|lab|COMPLETED|") and "gres/gpu=1" in seen


def test_who_leaves_gets_no_new_job_and_keeps_the_one_that_runs(closet: Closet) -> None:
    leave, job = "labrack.infra.offboard", closet.start("ben", "--nodelist=node1")
    # past ssh and PAM, which let nobody in either
    submit = "setpriv --reuid=ben --regid=ben --init-groups sbatch --chdir=/tmp --output=/dev/null --wrap true 2>&1"
    lock, block = "Converge users, groups, keys and sudo", "Converge accounts, users, QOS and limits"
    try:
        predicted = closet.play(leave, "--check", user="ben")
        assert "Submitted" in closet.root("head", submit)
        made = closet.play(leave, user="ben")
        for task in (lock, block):
            assert made.task("head", task).subjects == predicted.task("head", task).subjects != []
        report = str(made.task("head", "Report").result["msg"])
        assert f"left in the queue: {job}" in report and "scancel --user ben" in report
        assert "error" in closet.root("head", submit, check=False)
        for host in ("head", "node1", "node2"):
            assert closet.user(f"ben@{host}", "id -un").returncode == 255
        assert closet.job(job)["JobState"] == "RUNNING"
        assert set(closet.play(leave, user="ben").changed.values()) == {0}
    finally:
        closet.play()
    assert closet.user("ben@head", "sbatch --output=/dev/null --wrap true").returncode == 0


def everybody() -> list[dict[str, Any]]:
    """The lab's people, as its inventory has them."""
    lab: dict[str, Any] = yaml.safe_load((INVENTORIES / "closet/group_vars/all/lab.yml").read_text())
    return list(lab["lab_users"])


def test_jobs_of_who_left_are_waited_for_or_cancelled_as_the_lab_says(closet: Closet) -> None:
    running, waiting = closet.start("ben", "--nodelist=node1"), closet.submit("ben", "--begin=now+1hour", "true")
    other = closet.start("ada", "--nodelist=node1")
    people, task = ("labrack.infra.closet", "--tags", "lab_users"), "Converge users, groups, keys and sudo"

    def asked(state: str, **more: Any) -> dict[str, Any]:
        return {
            "lab_users": [{**one, "state": state} if one["name"] == "ben" else one for one in everybody()],
            **more,
        }

    try:
        held = closet.play(*people, **asked("absent", lab_users_archive="/srv/archive"))
        for host in ("head", "node1", "node2"):
            (sentence,) = held.task(host, task).result["waiting"]
            assert "2 jobs in Slurm" in sentence and closet.root(host, "id -u ben") == "2002\n"
        assert closet.job(running)["JobState"] == "RUNNING"
        cancel = asked("locked", lab_users_locked_jobs="cancel")
        predicted = closet.play(*people, "--check", **cancel)
        assert closet.job(running)["JobState"] == "RUNNING"
        made = closet.play(*people, **cancel)
        assert made.task("head", task).subjects == predicted.task("head", task).subjects == ["user ben"]
        for job in (running, waiting):
            # its epilog may still be at work
            closet.await_state(job, "CANCELLED")
        assert closet.job(other)["JobState"] == "RUNNING"
        assert set(closet.play(*people, **cancel).changed.values()) == {0}
    finally:
        closet.play()
        closet.settle()


@pytest.fixture(scope="module")
def strict(converged: Closet) -> Iterator[Closet]:
    """The lab without ben, with one GPU for each user."""
    converged.play(
        lab_users=[user for user in everybody() if user["name"] != "ben"],
        slurm_qos=[{"name": "normal", "flags": ["DenyOnLimit"], "max_gpus_per_user": 1}, {"name": "interactive"}],
    )
    yield converged
    converged.play()
    assert converged.user("ben@head", "sbatch --output=/dev/null --wrap true").returncode == 0
    assert converged.user("ada@head", "sbatch --output=/dev/null --gres=gpu:2 --wrap true").returncode == 0
    converged.settle()


def test_removed_user_is_locked_and_their_history_stays(strict: Closet) -> None:
    done = strict.user("ben@head", "sbatch --output=/dev/null --wrap true")
    assert done.returncode != 0 and "sbatch: error" in done.stderr, done
    assert strict.root("head", "sacctmgr --noheader --parsable2 show user ben format=user").strip() == "ben"


def test_user_gets_no_more_gpus_than_allowed(strict: Closet) -> None:
    done = strict.user("ada@head", "sbatch --output=/dev/null --gres=gpu:2 --wrap true")
    assert done.returncode != 0 and "sbatch: error" in done.stderr, done
    first = strict.start("ada", "--gres=gpu:1")
    second = strict.submit("ada", "--gres=gpu:1", "true")
    until(
        "the second job waits",
        lambda: strict.job(second),
        lambda seen: "QOSMaxGRESPerUser" in seen["Reason"],
        seconds=90,
    )
    strict.root("head", f"scancel {first}")
    strict.await_state(second, "COMPLETED")


def test_another_slurmdbd_goes_in_after_a_dump(closet: Closet) -> None:
    before = set(closet.root("head", f"ls {BACKUPS}", check=False).split())
    install = "apt-get -q update && apt-get -q -y install --reinstall slurmdbd"
    printed = closet.root("head", f"export DEBIAN_FRONTEND=noninteractive; {install}")
    (dump,) = set(closet.root("head", f"ls {BACKUPS}").split()) - before
    assert f"dumped to {BACKUPS}/{dump}" in printed
    assert closet.root("head", f"stat --format='%a %U' {BACKUPS}/{dump}") == "600 root\n"
    assert "closet_job_table" in closet.root("head", f"zcat {BACKUPS}/{dump} | grep 'CREATE TABLE'")
    until("slurmdbd answers", lambda: closet.root("head", "sacctmgr --noheader show cluster", check=False), bool)
