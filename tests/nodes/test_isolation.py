# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A job gets what it asked for, can't touch the rest, and doesn't hurt its neighbour."""

from __future__ import annotations

import re

from tests.nodes.harness import TOUCH, Closet, opened, refused


def test_job_without_a_gpu_opens_none(closet: Closet) -> None:
    done = closet.srun("ada", "--nodelist=node2", TOUCH)
    assert opened(done.stdout) == []
    assert refused(done.stdout) == [f"/dev/nvidia{minor}" for minor in range(4)]


def test_job_opens_just_the_gpu_that_it_got(closet: Closet) -> None:
    done = closet.srun("ada", "--nodelist=node2 --gres=gpu:1", f"{TOUCH}; echo visible=$CUDA_VISIBLE_DEVICES")
    assert len(opened(done.stdout)) == 1
    assert len(refused(done.stdout)) == 3
    assert re.search(r"visible=\d$", done.stdout, re.MULTILINE)


def test_type_names_the_card(closet: Closet) -> None:
    done = closet.srun("ada", "--gres=gpu:rtx_a6000:2 --cpus-per-gpu=1", f"hostname; {TOUCH}")
    assert done.stdout.startswith("node2\n")
    assert opened(done.stdout) == ["/dev/nvidia2", "/dev/nvidia3"]


def test_two_users_on_one_node_have_different_cards(closet: Closet) -> None:
    script = f"{TOUCH}; echo touched; sleep 900"
    jobs = {user: closet.start(user, "--nodelist=node1 --gres=gpu:1", script) for user in ("ada", "ben")}
    wait = "until grep -q touched {0}; do sleep 0.1; done; cat {0}"
    printed = {user: closet.root("node1", wait.format(f"/tmp/job-{job}.out")) for user, job in jobs.items()}
    assert opened(printed["ada"]) == refused(printed["ben"]) != []
    assert opened(printed["ben"]) == refused(printed["ada"]) != []


def test_job_sees_the_cores_that_it_asked_for(closet: Closet) -> None:
    for cores in (1, 2):
        assert closet.srun("ada", f"--nodelist=node1 --cpus-per-task={cores}", "nproc").stdout == f"{cores}\n"


def test_one_of_four_gpus_takes_a_quarter_of_the_memory(closet: Closet) -> None:
    memory = int(closet.node("node2")["RealMemory"])
    show = "scontrol --oneliner show job $SLURM_JOB_ID"
    done = closet.srun("ada", "--nodelist=node2 --gres=gpu:1", show)
    allocated = re.search(r" (?:Alloc)?TRES=cpu=(\d+),mem=(\d+)M", done.stdout)
    assert allocated, done.stdout + done.stderr
    assert int(allocated[2]) == memory // 4
    # two cores for four cards: no job can have less than one
    assert allocated[1] == "1"


def test_memory_hog_is_killed_and_its_neighbour_lives(closet: Closet) -> None:
    neighbour = closet.start("ben", "--nodelist=node1 --mem=64M", "sleep 900 & echo $!; wait")
    pid = closet.root("node1", f"until grep . /tmp/job-{neighbour}.out; do sleep 0.1; done").strip()
    hog = "python3 -c 'data = bytearray(600 << 20); print(len(data))'"
    done = closet.srun("ada", "--nodelist=node1 --mem=100M", hog)
    assert done.returncode != 0 and "629145600" not in done.stdout
    assert re.search("oom|out of memory", done.stderr, re.IGNORECASE), done.stderr
    assert closet.srun("ada", "--nodelist=node1 --mem=800M", hog).stdout == "629145600\n"
    assert closet.job(neighbour)["JobState"] == "RUNNING"
    assert closet.root("node1", f"cat /proc/{pid}/comm") == "sleep\n"
