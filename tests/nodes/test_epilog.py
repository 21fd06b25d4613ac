# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a job leaves behind ends with it, and nothing of another job of the same user does."""

from __future__ import annotations

from functools import partial

import pytest

from tests.nodes.harness import Closet, until

#: Starts a process that leaves the job's session and process tree.
ESCAPE = "setsid bash -c '(sleep {seconds} &)' >/dev/null 2>&1; sleep 900"
#: Takes a process out of every control group of its job.
LEAVE = (
    'for group in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do [ ! -e "$group" ] || '
    'echo {pid} >"$group" || true; done; ! grep /job_ /proc/{pid}/cgroup'
)


def pid_of(closet: Closet, seconds: int) -> str:
    return closet.root("node1", f"pgrep --full '^sleep {seconds}'", check=False).strip()


@pytest.mark.parametrize("beyond_its_cgroup", [False, True])
def test_two_jobs_of_one_user(closet: Closet, beyond_its_cgroup: bool) -> None:
    jobs = {s: closet.start("ada", "--nodelist=node1 --gres=gpu:1", ESCAPE.format(seconds=s)) for s in (811, 812)}
    for seconds in jobs:
        pid = until(f"sleep {seconds} runs", partial(pid_of, closet, seconds), bool)
        if beyond_its_cgroup:
            closet.root("node1", LEAVE.format(pid=pid))
    closet.root("head", f"scancel {jobs[811]}")
    until("the first job's process is gone", lambda: pid_of(closet, 811), lambda pid: not pid)
    closet.await_state(jobs[811], "CANCELLED")
    assert pid_of(closet, 812)
    assert closet.job(jobs[812])["JobState"] == "RUNNING"
    closet.root("head", f"scancel {jobs[812]}")
    until("the second job's process is gone", lambda: pid_of(closet, 812), lambda pid: not pid)
