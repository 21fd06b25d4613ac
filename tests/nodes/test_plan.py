# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack plan`` and ``labrack apply`` on the closet: tampering, saved plans, jobs, nodes that are away, secrets."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labrack import history, lab
from tests.nodes.harness import Closet, until

CANARY = "canary-8817-vault"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run, with what they write; it has a file of variables with a secret in the vault."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "password").write_text("pass")
    tool = Path(sys.executable).with_name("ansible-vault")
    command = [
        str(tool),
        "encrypt_string",
        "--vault-password-file",
        "password",
        CANARY,
        "--name",
        "lab_backup_password",
    ]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    (folder / "secrets.yml").write_text(done.stdout)
    return folder


@pytest.fixture
def labrack(closet: Closet, folder: Path) -> Iterator[Labrack]:
    """The command on the closet, whose hosts files are afterwards as they were."""
    command = Labrack(closet, folder)
    hosts = {name: closet.root(name, "cat /etc/hosts") for name in ("head", "node1", "node2")}
    yield command
    for name, text in hosts.items():
        assert closet.root(name, "cat /etc/hosts") == text


class Labrack:
    """Runs the command, and keeps all that it says."""

    def __init__(self, closet: Closet, folder: Path) -> None:
        self.closet, self.folder = closet, folder

    def __call__(self, *arguments: str, status: int, rest: tuple[str, ...] = ()) -> str:
        program = str(Path(sys.executable).with_name("labrack"))
        sources = [word for path in self.closet.inventory for word in ("-i", str(path))]
        words = [program, *arguments, *sources, *(["--", *rest] if rest else [])]
        done = subprocess.run(
            words, cwd=self.folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "160"}, timeout=500
        )
        with (self.folder / "said").open("a") as stream:
            stream.write(done.stdout + done.stderr)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + ("" if done.returncode in (0, 2) else done.stderr)


@contextmanager
def away(closet: Closet, name: str) -> Iterator[None]:
    """Let no ssh reach a node while the block runs."""
    closet.root(name, "systemctl stop ssh.socket ssh.service; pkill sshd", check=False)
    try:
        yield
    finally:
        closet.root(name, "systemctl start ssh.service")
        until(f"{name} answers", lambda: closet.user(f"root@{name}", "true").returncode, lambda seen: seen == 0)


def tamper(closet: Closet, name: str, word: str) -> None:
    """Take the node's lines out of /etc/hosts, in which an editor can't replace the file of a container."""
    text = closet.root(name, "cat /etc/hosts")
    changed = "\n".join(line for line in text.splitlines() if not re.search(rf"\s{word}\b", line)) + "\n"
    assert changed != text
    closet.root(name, f"echo {base64.b64encode(changed.encode()).decode()} | base64 -d >/etc/hosts")


def test_an_untouched_closet_needs_nothing(labrack: Labrack) -> None:
    rest = ("-e", "@secrets.yml", "--vault-password-file", "password")
    said = labrack("plan", "--diff", status=0, rest=rest)
    assert "head, node1, node2  unchanged" in said and "the lab is as the inventory says" in said


def test_a_saved_plan_holds_until_somebody_tampers_again(closet: Closet, labrack: Labrack) -> None:
    before = closet.root("node1", "cat /etc/hosts"), closet.root("node2", "cat /etc/hosts")
    tamper(closet, "node1", "node2")
    said = labrack("plan", "-o", "saved", "--tags", "baseline", status=2)
    assert re.search(
        r"^node1  1 change\n  baseline\n    none     file /etc/hosts: content changed *$", said, re.MULTILINE
    )
    assert "head, node2  unchanged" in said and "1 change on 1 of 3 nodes." in said
    tamper(closet, "node2", "head")
    said = labrack("apply", "saved", "--yes", status=1)
    assert "node2: file /etc/hosts is off now" in said and "node1:" not in said
    assert closet.root("node1", "cat /etc/hosts") != before[0]
    closet.root("node2", f"echo {base64.b64encode(before[1].encode()).decode()} | base64 -d >/etc/hosts")
    said = labrack("apply", "saved", "--yes", status=0)
    assert "1 task changed something on 3 nodes." in said
    assert closet.root("node1", "cat /etc/hosts") == before[0]
    run = history.read(lab.state_dir(closet.inventory))[-1]
    assert (run.check, run.rc, run.hosts["node1"]["changed"], run.playbook) == (False, 0, 1, "labrack.infra.closet")


def test_jobs_that_a_drain_would_wait_for_are_named(closet: Closet, labrack: Labrack) -> None:
    job = closet.start("ada", "--nodelist=node1 --job-name=thesis")
    rest = ("-e", "slurm_memory_reserve_mib=4000")
    held = json.loads(labrack("plan", "--tags", "slurm", "--json", status=2, rest=rest))
    assert {item["subject"] for task in held["nodes"]["head"]["tasks"] for item in task["pending"]} >= {"node node1"}
    wanted = {"node": "node1", "id": job, "user": "ada", "name": "thesis", "state": "running"}
    assert held["jobs"] == [wanted] and held["jobs_unknown"] == ""
    consented = labrack("plan", "--tags", "slurm", "--consent", "drain", status=2, rest=rest)
    assert re.search(rf"node1 +{job} +ada +thesis +running", consented)
    assert closet.job(job)["JobState"] == "RUNNING"


def test_a_worker_that_is_away_does_not_hold_the_others(closet: Closet, labrack: Labrack) -> None:
    tamper(closet, "head", "node2")
    tamper(closet, "node2", "head")
    with away(closet, "node1"):
        said = labrack("apply", "--yes", "--tags", "baseline", status=1)
    assert "node1: Read the nodes" in said and "see that node1 is on" in said
    assert "Failed on node1; the 2 other nodes went on." in said
    assert closet.node("node1")["State"] == "IDLE"


def test_a_head_that_is_away_stops_it(closet: Closet, labrack: Labrack) -> None:
    before = closet.root("node2", "cat /etc/hosts")
    tamper(closet, "node2", "head")
    with away(closet, "head"):
        said = labrack("apply", "--yes", "--tags", "baseline", status=1)
    assert "head could not be read, see above, and the other nodes need it" in said
    assert closet.root("node2", "cat /etc/hosts") != before
    closet.root("node2", f"echo {base64.b64encode(before.encode()).decode()} | base64 -d >/etc/hosts")


def test_no_secret_is_told_or_kept(closet: Closet, folder: Path) -> None:
    key = closet.root("head", "base64 --wrap=0 /etc/munge/munge.key").strip()
    found = re.search(r"^StoragePass=(\S{20,})$", closet.root("head", "cat /etc/slurm/slurmdbd.conf"), re.MULTILINE)
    assert found
    state = lab.state_dir(closet.inventory)
    texts = {path: path.read_text() for place in (folder, state) for path in place.iterdir()}
    assert {"said", "saved", "history.jsonl", "plan.log", "apply.log"} <= {path.name for path in texts}
    secrets = (CANARY, key[:20], key[640:660], found[1])
    assert not [path for path, text in texts.items() if any(secret in text for secret in secrets)]
    assert not [path for path in state.iterdir() if path.stat().st_mode & 0o077]
