# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A converged lab, whatever its shape and its system: services, closed files, a job's limits, and the way in by ssh."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from testinfra.host import Host

#: There is no driver behind a card: ENXIO says that it may be opened, EPERM that it may not.
TOUCH = "for card in /dev/nvidia[0-9]*; do (exec 3<>$card) 2>&1; done; true"
OPENED, REFUSED = "No such device or address", "Operation not permitted"


def srun(nodes: Any, controller: Host, user: str, options: str, command: str) -> str:
    line = f"cd / && timeout 60 srun --time=5 {options} bash -c '{command}'"
    done = controller.run(f"su {user} -s /bin/bash -c %s", line)
    assert done.rc == 0, done.stderr
    return str(done.stdout)


def test_services_of_the_head(controller: Host) -> None:
    for name in ("munge", "mariadb", "slurmdbd", "slurmctld"):
        service = controller.service(name)
        assert service.is_running and service.is_enabled, name
    assert not controller.socket("tcp://0.0.0.0:3306").is_listening


def test_services_of_a_worker(nodes: Any, worker: str) -> None:
    for name in ("munge", "slurmd"):
        service = nodes[worker].service(name)
        assert service.is_running and service.is_enabled, name


def test_secrets_are_closed(nodes: Any, controller: Host, worker: str) -> None:
    for host in (controller, nodes[worker]):
        key = host.file("/etc/munge/munge.key")
        assert (key.user, key.group, key.mode, key.size) == ("munge", "munge", 0o400, 1024)
    conf = controller.file("/etc/slurm/slurmdbd.conf")
    assert (conf.user, conf.group, conf.mode) == ("slurm", "slurm", 0o600)
    assert controller.file("/etc/munge/munge.key").sha256sum == nodes[worker].file("/etc/munge/munge.key").sha256sum


def test_users_are_the_same_everywhere(nodes: Any, controller: Host, worker: str) -> None:
    for name, uid in (("ada", 2001), ("ben", 2002)):
        for host in (controller, nodes[worker]):
            assert (host.user(name).uid, host.user(name).gid) == (uid, uid)


def test_job_opens_the_gpu_that_it_asked_for_alone(nodes: Any, controller: Host, worker: str) -> None:
    total = len(nodes[worker].run("ls /dev/nvidia[0-9]*").stdout.split())
    one = srun(nodes, controller, "ada", f"--nodelist={worker} --gres=gpu:1", TOUCH)
    assert (one.count(OPENED), one.count(REFUSED)) == (1, total - 1)
    none = srun(nodes, controller, "ada", f"--nodelist={worker}", TOUCH)
    assert (none.count(OPENED), none.count(REFUSED)) == (0, total)


def test_job_has_the_cores_and_the_memory_that_it_asked_for(nodes: Any, controller: Host, worker: str) -> None:
    assert srun(nodes, controller, "ben", f"--nodelist={worker} --cpus-per-task=1", "nproc") == "1\n"
    hog = 'python3 -c "data = bytearray(600 << 20)" && echo survived || echo killed'
    assert srun(nodes, controller, "ben", f"--nodelist={worker} --mem=800M", hog) == "survived\n"
    line = f"cd / && timeout 60 srun --time=5 --nodelist={worker} --mem=100M bash -c '{hog}'"
    assert "survived" not in controller.run("su ben -s /bin/bash -c %s", line).stdout


def test_login_needs_a_job_except_on_the_head(nodes: Any, controller: Host, worker: str) -> None:
    done = nodes.login("ben", worker, "id -un")
    if worker in nodes.groups["slurm_login"]:
        assert done.stdout == "ben\n"
        return
    assert done.returncode != 0 and "Access denied" in done.stderr
    assert nodes.login("eva", worker, "id -un").stdout == "eva\n"
    # the job's standard output exists once its script runs, after the prolog
    sbatch = f"sbatch --parsable --nodelist={worker} --gres=gpu:1 --output=/tmp/job-%j.out --wrap 'sleep 600'"
    job = nodes.login("ben", nodes.groups["slurm_controller"][0], sbatch).stdout.strip()
    try:
        nodes[worker].run_expect([0], f"timeout 30 sh -c 'until [ -e /tmp/job-{job}.out ]; do sleep 0.2; done'")
        inside = nodes.login("ben", worker, f"cat /proc/self/cgroup; {TOUCH}").stdout
        assert re.search(rf"/job_{job}/", inside) and inside.count(OPENED) == 1
    finally:
        controller.run(f"scancel {job}")


def test_job_is_in_the_accounting(nodes: Any, controller: Host) -> None:
    job = nodes.login(
        "ada", nodes.groups["slurm_controller"][0], "sbatch --parsable --wait --output=/dev/null --wrap true"
    )
    sacct = f"sacct --noheader --parsable2 --allocations --jobs={job.stdout.strip()} --format=User,Account,State"
    wait = f"timeout 30 sh -c 'until {sacct} | grep COMPLETED; do sleep 0.5; done'"
    assert controller.run(wait).stdout.strip() == "ada|lab|COMPLETED"


def test_verify_says_ok(nodes: Any, tmp_path: Path) -> None:
    done = nodes.playbook("labrack.infra.verify")
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_mode_predicts_nothing(nodes: Any) -> None:
    done = nodes.playbook("labrack.infra.closet", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"changed=(\d+)", done.stdout)
    assert counts and set(counts) == {"0"}, done.stdout
