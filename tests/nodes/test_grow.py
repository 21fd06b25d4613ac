# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A machine under a desk with Slurm becomes the head of a closet, by docs/GROW.md: people, files and history stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from labrack.testnode import node
from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import NodeSpec
from tests import guides
from tests.nodes.conftest import KEEP, LAB, SYSTEM
from tests.nodes.harness import INVENTORIES, ROOT, Closet, Run, bring_up

#: Docker and NVIDIA's toolkit come from the mirror, which test_gpu_host.py has.
LEFT_OUT = ("--skip-tags", "container_toolkit")


@dataclass
class Growing:
    """The machines, with the inventory that they have at the time, and what the first of them knew alone."""

    closet: Closet
    #: Where the page's commands run, with ``inventory`` in it.
    folder: Path
    numbers: str = ""
    job: str = ""

    def told(self, *commands: str) -> None:
        """Run commands, which have to stand on the page."""
        assert {*commands} <= {*guides.calls("GROW.md")}
        binaries = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "XDG_STATE_HOME": str(self.folder / "state"),
        }
        for command in commands:
            done = subprocess.run(
                command.split(), cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600
            )
            # doctor and plan say by 2 that they have found something
            right = (0, 2) if command.startswith("labrack ") else (0,)
            assert done.returncode in right, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def growing(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Growing]:
    name = f"{LAB}-grow"
    state = ROOT / ".cache/labs" / name

    def down() -> None:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)

    if not KEEP:
        down()
    # numbers that are chosen are written beside the inventory
    folder = tmp_path_factory.mktemp("grow")
    shutil.copytree(INVENTORIES / "grow_desk", folder / "inventory", symlinks=True)
    for playbook in ("closet.yml", "under_desk.yml"):
        (folder / playbook).symlink_to(ROOT / playbook)
    machines = (NodeSpec("desk", SYSTEM, (GpuSpec(),) * 2), NodeSpec("node1", SYSTEM, (GpuSpec(),)))
    closet = bring_up(name, machines, folder / "inventory", state)
    (folder / "inventory/reached.json").symlink_to(state / "hosts.json")
    yield Growing(closet, folder)
    if not KEEP:
        down()


def as_user(growing: Growing, target: str, command: str) -> str:
    done = growing.closet.user(target, command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def under_desk(growing: Growing) -> Run:
    return growing.closet.play("labrack.infra.under_desk", *LEFT_OUT)


def test_one_machine_is_head_and_worker(growing: Growing) -> None:
    under_desk(growing)
    growing.numbers = growing.closet.root("desk", "id ada; id ben")
    as_user(growing, "ada@desk", "echo 17 >answer; echo weights >/checkpoints/step-1")
    ran = as_user(growing, "ada@desk", "srun --time=5 --gres=gpu:2 bash -c 'echo $SLURM_JOB_ID'")
    growing.job = ran.strip()
    again = under_desk(growing)
    assert again.changed["desk"] == 0, again.output[-3000:]
    assert len([task for task in again.modules("desk") if task.ending != "skipped"]) <= 20


def test_with_another_machine_it_is_the_head_of_a_closet(growing: Growing) -> None:
    # the inventory gets the new machine; the numbers stay beside it
    shutil.copy(INVENTORIES / "grow_closet/groups.yml", growing.folder / "inventory")
    growing.told("labrack doctor", "labrack plan", "ansible-playbook closet.yml -i inventory")
    for host in ("desk", "node1"):
        assert growing.closet.root(host, "id ada; id ben") == growing.numbers
    assert as_user(growing, "ada@desk", "cat answer /checkpoints/step-1; stat -c %U answer") == "17\nweights\nada\n"
    history = as_user(growing, "ada@desk", f"sacct --jobs={growing.job} --noheader --parsable2 --allocations -o state")
    assert history == "COMPLETED\n"
    assert as_user(growing, "ben@desk", "srun --time=5 --nodelist=node1 --gres=gpu:1 hostname") == "node1\n"
    assert int(as_user(growing, "ben@desk", "srun --time=5 --nodelist=desk bash -c 'echo $SLURM_JOB_ID'")) > int(
        growing.job
    )
    again = growing.closet.play("labrack.infra.closet")
    assert set(again.changed.values()) == {0}, again.output[-3000:]


def test_slurm_is_taken_off_the_machine_that_is_to_be_a_worker(growing: Growing) -> None:
    way = "--tags slurm --limit desk -e slurm_state=absent -e lab_max_disruption=drain"
    growing.told(f"ansible-playbook closet.yml -i inventory {way}")
    left = "systemctl list-unit-files --no-legend 'slurm*'; ls -d /etc/slurm /var/lib/slurm 2>/dev/null; true"
    assert growing.closet.root("desk", left) == ""
    assert growing.closet.root("desk", "id ada; id ben") == growing.numbers
