# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Researchers launch through SkyPilot on the lab's Slurm: the real server, the real Slurm, stand-in cards.

SkyPilot makes an environment on the worker, for which it wants uv's installer, Python 3.10 and packages. A stand-in for
the installer copies the project's own uv, the interpreter is one of this machine's that is copied to the worker, and
the packages lie there as files; so does the list of what a card may be called.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from labrack.testnode import node
from labrack.testnode.docker import docker
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import A100, KEEP, LAB, SYSTEM
from tests.nodes.harness import ROOT, Closet, bring_up, until
from tests.nodes.test_gitops import simple_index

PINNED = (ROOT / "roles/skypilot/files/requirements.txt").read_text(encoding="utf-8")
HEAD, WORKER = "head", "node1"
VOLUMES = (("home", "/home"), ("data", "/data"), ("checkpoints", "/checkpoints"))
#: Where the worker has its packages, and an interpreter that uv does not download.
UV_SETTINGS = """no-index = true
find-links = ["/srv/wheels"]
python-downloads = "never"
"""

#: In the place of uv's installer, which each launch asks for.
CURL = """#!/bin/sh
case "$*" in
*astral.sh/uv/install.sh*) echo 'mkdir -p "$UV_INSTALL_DIR" && cp /usr/local/bin/uv "$UV_INSTALL_DIR/uv"' ;;
*) exit 6 ;;
esac
"""


def python310() -> Path:
    """The folder of a Python 3.10 of this machine; skips where there is none."""
    for program in ("python3.10", *map(str, Path.home().glob(".pyenv/versions/3.10*/bin/python3.10"))):
        found = shutil.which(program)
        done = subprocess.run([found or "false", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() != "/usr":
            return Path(done.stdout.strip())
    pytest.skip("no Python 3.10 that can be copied to a node")


@pytest.fixture(scope="module")
def lab(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closet]:
    """A head and a worker with two cards, shared directories, Slurm, and SkyPilot on top."""
    interpreter = python310()
    name = f"{LAB}-sky-slurm"
    state = ROOT / ".cache/labs" / name
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)
    folder = tmp_path_factory.mktemp("sky-slurm")
    inventory = folder / "inventory"
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
        "skypilot_infra": {"slurm": [{"name": "closet", "time": "0:06:00"}]},
    }
    (inventory / "group_vars/all.yml").write_text(yaml.safe_dump(variables))
    nodes = [NodeSpec(HEAD, SYSTEM, volumes=VOLUMES), NodeSpec(WORKER, SYSTEM, (A100, A100), volumes=VOLUMES)]
    closet = bring_up(name, nodes, inventory, state)
    if KEEP and closet.root(HEAD, "ls /opt/skypilot/current", check=False):
        yield closet
        return
    python = closet.root(HEAD, "python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").strip()
    closet.root(HEAD, "rm -rf /srv/simple; chmod 1777 /checkpoints")
    docker("cp", str(simple_index(folder, python, PINNED)), f"{closet.lab.node(HEAD).container}:/srv/simple")
    # what the bootstrap on the worker wants
    (folder / "310").mkdir()
    simple_index(folder / "310", "3.10", PINNED)
    container = closet.lab.node(WORKER).container
    docker("cp", str(ROOT / ".cache/wheels-3.10"), f"{container}:/srv/wheels")
    docker("cp", str(interpreter), f"{container}:/opt/python3.10")
    closet.root(WORKER, "ln -sf /opt/python3.10/bin/python3.10 /usr/local/bin/python3.10; chmod -R go+rX /opt /srv")
    closet.root(WORKER, "echo /opt/python3.10/lib >/etc/ld.so.conf.d/python3.10.conf; ldconfig")
    (folder / "curl").write_text(CURL)
    (folder / "curl").chmod(0o755)
    docker("cp", str(folder / "curl"), f"{container}:/usr/local/bin/curl")
    (folder / "uv.toml").write_text(UV_SETTINGS)
    closet.root(WORKER, "mkdir -p /etc/uv")
    docker("cp", str(folder / "uv.toml"), f"{container}:/etc/uv/uv.toml")
    uv = next(iter(sorted(ROOT.glob(".cache/uv-*/bin/uv"), reverse=True)), Path(shutil.which("uv") or sys.executable))
    docker("cp", str(uv), f"{container}:/usr/local/bin/uv")
    closet.play()
    # the list of what a card may be called, which SkyPilot fetches where it can
    for name, home in (("ada", "/home/ada"), ("ben", "/home/ben"), ("skypilot", "/var/lib/skypilot")):
        place = f"{home}/.sky/catalogs/v8/common"
        listed = "printf 'AcceleratorName,Clouds\\nA100,\"[]\"\\n' >accelerators.csv"
        closet.root(HEAD, f"runuser -u {name} -- sh -c 'mkdir -p {place} && cd {place}' && cd {place} && {listed}")
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


def test_the_second_researcher_waits_in_the_queue(lab: Closet) -> None:
    """Ada has one of two cards: who wants both waits, and runs once she gives hers back."""
    path = task(lab, "ben", "both", 2, "id -un; nvidia-smi -L; echo done >/checkpoints/ben-result")
    lab.ssh.run(f"ben@{HEAD}", f"sky launch -y --async -c both {path} </dev/null", timeout=120)
    until("ben waits", lambda: queue(lab), lambda seen: ("ben", "PENDING") in seen, 180)
    assert ("ada", "RUNNING") in queue(lab)
    done = sky(lab, "ada", "down -y mine")
    assert done.returncode == 0, done.stdout[-3000:]
    until("ben runs", lambda: queue(lab), lambda seen: seen == [("ben", "RUNNING")], 180)
    result = "stat --format=%U /checkpoints/ben-result"
    until("ben's job is done", lambda: lab.root(HEAD, result, check=False).strip(), lambda seen: seen == "ben", 240)


def test_slurm_ends_what_nobody_ends(lab: Closet) -> None:
    """Ben has forgotten his cluster, and SkyPilot can't end it by itself: the time limit does."""
    until("the limit is over", lambda: queue(lab), lambda seen: not seen, 540)
    states = lab.root(HEAD, "sacct --noheader --allocations --user=ben --format=State%20").split()
    assert "TIMEOUT" in states
    done = sky(lab, "ben", "status --refresh")
    assert "UP" not in [word for line in done.stdout.splitlines() if line.startswith("both") for word in line.split()]
