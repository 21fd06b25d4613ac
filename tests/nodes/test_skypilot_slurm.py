# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Researchers launch through SkyPilot on the lab's Slurm: the real server, the real Slurm, stand-in cards.

What SkyPilot fetches from the internet for a launch is on the nodes, see :mod:`labrack.testnode.skypilot`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from labrack.testnode import node, skypilot
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import A100, KEEP, LAB, SYSTEM
from tests.nodes.harness import ROOT, Closet, bring_up, until

PINNED = (ROOT / "roles/skypilot/files/requirements.txt").read_text(encoding="utf-8")
HEAD, WORKER = "head", "node1"
VOLUMES = (("home", "/home"), ("data", "/data"), ("checkpoints", "/checkpoints"))
HOMES = (("ada", "/home/ada"), ("ben", "/home/ben"), ("skypilot", "/var/lib/skypilot"))


@pytest.fixture(scope="module")
def lab(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closet]:
    """A head and a worker with two cards, shared directories, Slurm, and SkyPilot on top."""
    name = f"{LAB}-sky-slurm"
    state = ROOT / ".cache/labs" / name
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)
    inventory = tmp_path_factory.mktemp("sky-slurm") / "inventory"
    (inventory / "group_vars").mkdir(parents=True)
    head, worker = {"hosts": {HEAD: {}}}, {"hosts": {WORKER: {}}}
    groups: dict[str, Any] = {"lab_head": head, "lab_workers": worker, "slurm_controller": head, "slurm_login": head}
    groups |= {"slurm_database": head, "slurm_worker": worker, "skypilot": head}
    (inventory / "groups.yml").write_text(yaml.safe_dump(groups))
    keys = "{{ test_keys }}"
    variables = {
        "lab_orchestrator": "slurm",
        "baseline_uv_version": "",
        "lab_users": [{"name": name, "uid": uid, "keys": keys} for name, uid in (("ada", 2001), ("ben", 2002))],
        "skypilot_index_url": "file:///srv/simple",
        "skypilot_infra": {"slurm": [{"name": "closet", "time": "0:20:00"}]},
    }
    (inventory / "group_vars/all.yml").write_text(yaml.safe_dump(variables))
    nodes = [NodeSpec(HEAD, SYSTEM, volumes=VOLUMES), NodeSpec(WORKER, SYSTEM, (A100, A100), volumes=VOLUMES)]
    closet = bring_up(name, nodes, inventory, state)
    if not (KEEP and closet.root(HEAD, "ls /opt/skypilot/current", check=False)):
        closet.root(HEAD, "chmod 1777 /checkpoints")
        for member in closet.lab.nodes:
            skypilot.equip(member, PINNED, print)
        closet.play()
        skypilot.catalog(closet.lab.node(HEAD), HOMES, ["A100"])
    yield closet
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)


def sky(lab: Closet, user: str, arguments: str, seconds: int = 420) -> subprocess.CompletedProcess[str]:
    """Run the command as a user who is logged in on the head."""
    return lab.ssh.run(f"{user}@{HEAD}", f"timeout {seconds} sky {arguments} </dev/null 2>&1", timeout=seconds + 20)


def task(lab: Closet, user: str, name: str, cards: int, run: str) -> str:
    """Write a task file into a user's home, and return its path."""
    path = f"/home/{user}/{name}.yaml"
    text = yaml.safe_dump(
        {"resources": {"infra": "slurm/closet", "cpus": "1+", "accelerators": f"A100:{cards}"}, "run": run}
    )
    lab.root(HEAD, f"cat >{path} <<'E'\n{text}E\nchown {user}: {path}")
    return path


def queue(lab: Closet) -> list[tuple[str, str]]:
    """User and state of each job in Slurm's queue."""
    lines = lab.root(HEAD, "squeue --noheader --format='%u %T'").splitlines()
    return sorted((line.split()[0], line.split()[1]) for line in lines)


def test_a_second_run_changes_nothing_and_slurm_is_found(lab: Closet) -> None:
    assert lab.play("labrack.infra.closet", "--tags", "skypilot").changed == {HEAD: 0, WORKER: 0}
    done = sky(lab, "ada", "check -o json")
    assert '"Slurm"' in done.stdout, done.stdout
    # the way by which jobs are submitted leads to researchers, and not to root
    become = "runuser -u skypilot-submit -- sudo -n -H -u {} -- /bin/bash --login -c 'id -un'"
    assert lab.root(HEAD, become.format("ada")).strip() == "ada"
    for name in ("root", "skypilot", "slurm"):
        assert lab.root(HEAD, f"{become.format(name)} 2>/dev/null", check=False) == ""


def test_a_launch_is_the_researchers_own_job(lab: Closet) -> None:
    run = (
        "id -un; nvidia-smi -L; ls -d /data /checkpoints; echo done >/checkpoints/ada-result\n"
        "echo visible: $CUDA_VISIBLE_DEVICES"
    )
    done = sky(lab, "ada", f"launch -y -c mine {task(lab, 'ada', 'mine', 1, run)}")
    assert done.returncode == 0, done.stdout[-5000:]
    assert "ada\n" in done.stdout and "GPU 0" in done.stdout and "/checkpoints" in done.stdout, done.stdout[-5000:]
    assert lab.root(HEAD, "stat --format=%U /checkpoints/ada-result").strip() == "ada"
    assert ("ada", "RUNNING") in queue(lab)
    # the key by which SkyPilot reaches the job is ada's, and nobody takes it away
    key = lab.root(HEAD, "tail -n 1 /home/ada/.ssh/authorized_keys")
    assert key.startswith("ssh-rsa ") and key.strip() in lab.root(
        HEAD, "cat /var/lib/skypilot/.sky/clients/*/ssh/*.pub"
    )
    lab.root(HEAD, f"echo '{key.strip()}' >>/home/ben/.ssh/authorized_keys")
    # homes are one folder for all nodes, and in a run of both it is a toss-up which one takes the key away
    again = lab.play("labrack.infra.closet", "--tags", "lab_users", "--limit", HEAD)
    assert again.changed == {HEAD: 1}, again.messages
    again = lab.play("labrack.infra.closet", "--tags", "lab_users")
    assert again.changed == {HEAD: 0, WORKER: 0}, again.messages
    assert lab.root(HEAD, "grep -lF 'ssh-rsa ' /home/*/.ssh/authorized_keys") == "/home/ada/.ssh/authorized_keys\n"
    assert lab.root(HEAD, "tail -n 1 /home/ada/.ssh/authorized_keys") == key


def reap(lab: Closet) -> str:
    """Let the reaper's own unit look once, and return all that it has said so far."""
    unit = "labrack-skypilot-reaper.service"
    lab.root(HEAD, f"systemctl start --no-block {unit}")
    state = f"systemctl show --property=ActiveState --value {unit}"
    until(
        "the reaper has looked", lambda: lab.root(HEAD, state).strip(), lambda seen: seen in ("inactive", "failed"), 240
    )
    return lab.journal(HEAD, unit)


def hurry(lab: Closet, **changed: Any) -> None:
    """Change the reaper's settings by hand: the inventory may not make hours moments."""
    path = "/etc/labrack/skypilot_reaper.json"
    settings = json.loads(lab.root(HEAD, f"cat {path}")) | changed
    lab.root(HEAD, f"cat >{path} <<'E'\n{json.dumps(settings)}\nE")


def test_the_second_researcher_waits_until_the_reaper_ends_what_does_nothing(lab: Closet) -> None:
    """Ada has one of two cards, and has forgotten it: who wants both waits, is not taken for stuck, and then runs."""
    path = task(lab, "ben", "both", 2, "id -un; nvidia-smi -L; echo done >/checkpoints/ben-result; sleep 1200")
    lab.ssh.run(f"ben@{HEAD}", f"sky launch -y --async -c both {path} </dev/null", timeout=120)
    until("ben waits", lambda: queue(lab), lambda seen: ("ben", "PENDING") in seen, 180)
    assert ("ada", "RUNNING") in queue(lab)
    hurry(lab, idle_hours=0.001, grace_hours=0.001)
    until("the reaper would warn ada", lambda: reap(lab), lambda said: "would warn: mine: " in said, 400)
    assert ("ada", "RUNNING") in queue(lab) and not lab.root(HEAD, "ls /run/labrack/messages")
    hurry(lab, dry_run=False)
    until("ada is warned", lambda: reap(lab), lambda _said: lab.root(HEAD, "ls /run/labrack/messages") == "ada\n", 400)
    assert "mine: " in lab.root(HEAD, "cat /run/labrack/messages/ada")
    until("ada's cluster is ended", lambda: reap(lab), lambda said: "mine was ended" in said, 400)
    # back to what the inventory says
    assert lab.play("labrack.infra.closet", "--tags", "skypilot").changed[HEAD] == 1
    until("ben runs", lambda: queue(lab), lambda seen: seen == [("ben", "RUNNING")], 180)
    assert '"both"' in (told := sky(lab, "ben", "status -u -o json").stdout) and '"mine"' not in told
    result = "stat --format=%U /checkpoints/ben-result"
    until("ben's job works", lambda: lab.root(HEAD, result, check=False).strip(), lambda seen: seen == "ben", 300)


def test_slurm_ends_what_nobody_ends(lab: Closet) -> None:
    """SkyPilot can't end a cluster on Slurm by itself: the time limit does, here a shorter one than it has."""
    number, limit = lab.root(HEAD, "squeue --noheader --user=ben --format='%i %l'").split()
    assert limit == "20:00"
    lab.root(HEAD, f"scontrol update JobId={number} TimeLimit=1")
    until("the limit is over", lambda: queue(lab), lambda seen: not seen, 240)
    assert lab.root(HEAD, f"sacct --noheader --allocations --jobs={number} --format=State%20").strip() == "TIMEOUT"
    # SkyPilot sees it as well
    done = sky(lab, "ben", "status --refresh both")
    assert "UP" not in [word for line in done.stdout.splitlines() if line.startswith("both") for word in line.split()]
