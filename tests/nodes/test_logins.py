# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A login on a worker needs a job there and lands inside it; admins and the head are open."""

from __future__ import annotations

import re

from tests.nodes.harness import TOUCH, Closet, opened, refused, until


def test_login_without_a_job_is_refused(closet: Closet) -> None:
    done = closet.user("ben@node1", "id -un")
    assert done.returncode != 0 and done.stdout == ""
    assert "Access denied" in done.stderr


def test_another_users_job_opens_no_door(closet: Closet) -> None:
    closet.start("ada", "--nodelist=node1")
    assert closet.user("ben@node1", "id -un").returncode != 0


def test_login_lands_in_the_job_with_its_limits(closet: Closet) -> None:
    job = closet.start("ada", "--nodelist=node2 --gres=gpu:1 --mem=200M")
    done = closet.user("ada@node2", f"cat /proc/self/cgroup; nproc; {TOUCH}")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^\d+:[a-z,]*memory[a-z,]*:.*/job_{job}/|^0::.*/job_{job}/", done.stdout, re.MULTILINE)
    assert re.search("^1$", done.stdout, re.MULTILINE)
    assert len(opened(done.stdout)) == 1 and len(refused(done.stdout)) == 3
    hog = closet.user("ada@node2", "python3 -c 'data = bytearray(600 << 20); print(len(data))'")
    assert "629145600" not in hog.stdout and hog.returncode != 0


def test_login_ends_with_its_job(closet: Closet) -> None:
    job = closet.start("ada", "--nodelist=node1")
    assert closet.user("ada@node1", "setsid sleep 801 >/dev/null 2>&1 &").returncode == 0
    assert closet.root("node1", "until pgrep --full '^sleep 801'; do sleep 0.1; done")
    closet.root("head", f"scancel {job}")
    until(
        "the login's process is gone",
        lambda: closet.root("node1", "pgrep --full '^sleep 801'", check=False),
        lambda pids: not pids,
    )
    assert closet.user("ada@node1", "id -un").returncode != 0


def test_head_is_open(closet: Closet) -> None:
    assert closet.user("ben@head", "id -un").stdout == "ben\n"


def test_admins_enter_workers(closet: Closet) -> None:
    for target in ("eva@node1", "root@node1"):
        assert closet.user(target, "id -un").stdout == target.partition("@")[0] + "\n"
    assert closet.user("eva@node1", "sudo -n id -un").stdout == "root\n"
