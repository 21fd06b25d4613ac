# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The doctor on real nodes: nothing wrong in a closet that is well, and what is broken is found and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from labrack.testnode.docker import docker
from tests.nodes.harness import ROOT, Closet, until

Answer = tuple[int, dict[str, Any]]
#: What must be the same after the doctor as before.
STATE = (
    "find /etc /usr/local /var/lib/labrack -xdev ! -name '*~' -newer /run/doctor-began 2>/dev/null | sort; "
    "ls -A /tmp; ss -Hltn | awk '{print $4}' | sort"
)
FILL = "dd if=/dev/zero of=/var/tmp/full bs=1M count=16 status=none || true"
OTHER_HOSTS = r"sed 's/^[0-9.]*\(\s.*\bhead\b\)/10.99.99.99\1/' /etc/hosts"


@pytest.fixture
def doctor(converged: Closet, tmp_path: Path) -> Iterator[Any]:
    """Calls the command with the closet's inventory, and more of it."""

    def call(*arguments: str) -> Answer:
        sources = [word for source in converged.inventory for word in ("-i", str(source))]
        done = subprocess.run(
            [sys.executable, "-c", "from labrack.cli import app; app()", "doctor", "--json", *sources, *arguments],
            env={
                **os.environ,
                "XDG_STATE_HOME": str(tmp_path),
                "PYTHONPATH": f"{ROOT}/scripts:{ROOT}/collections",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=400,
            cwd=ROOT,
        )
        assert "Traceback" not in done.stderr and done.stdout.startswith("{"), done.stdout[-2000:] + done.stderr[-4000:]
        return done.returncode, json.loads(done.stdout)

    yield call


def found(document: dict[str, Any], *severities: str) -> dict[tuple[str, str], dict[str, str]]:
    """The findings of these severities by host and check; the last of several alike."""
    return {(one["host"], one["check"]): one for one in document["findings"] if one["severity"] in severities}


def test_closet_that_is_well(converged: Closet, doctor: Any) -> None:
    hosts = [member.name for member in converged.lab.nodes]
    for host in hosts:
        converged.root(host, "touch /run/doctor-began")
    before = {host: converged.root(host, STATE) for host in hosts}
    status, document = doctor("--all")
    # whether the distribution's servers answer is not the closet's affair
    rest = {key: one for key, one in found(document, "error", "warning").items() if key[1] != "packages"}
    assert rest == {}, rest
    assert status == (2 if document["counts"]["warning"] else 1 if document["counts"]["error"] else 0)
    well = {(one["host"], one["what"]) for one in document["findings"] if one["severity"] == "ok"}
    assert {("node1", "head:6817 (slurmctld) is open"), ("head", "node2:6818 (slurmd) is open")} <= well
    assert {("node1", "packets of 1500 bytes reach head"), ("node2", "cards: 4 of 4 usable")} <= well
    power = found(document, "note")["", "power"]["what"]
    # 2 × 400 W, and 2 × 450 W with 2 × 300 W, beside processors and base
    assert "node1 1.2 kW" in power and "node2 1.9 kW" in power
    assert {host: converged.root(host, STATE) for host in hosts} == before


@contextmanager
def broken(closet: Closet, host: str, break_it: str, mend: str) -> Iterator[None]:
    closet.root(host, break_it)
    try:
        yield
    finally:
        closet.root(host, mend)


def test_what_is_broken_is_found_with_its_mend(closet: Closet, doctor: Any, tmp_path: Path) -> None:
    circuits = [
        {"name": "window", "volts": 230, "amps": 12, "nodes": ["node1", "node2"]},
        {"name": "door", "volts": 230, "amps": 10, "nodes": ["head"]},
    ]
    power = tmp_path / "power.yml"
    power.write_text(json.dumps({"all": {"vars": {"lab_circuits": circuits, "lab_cooling_watts": 2000}}}))
    target = closet.lab.node("node2").address
    own, others = (closet.root(host, "cat /etc/machine-id").strip() for host in ("node2", "node1"))
    with ExitStack() as stack:
        for host, break_it, mend in (
            ("node2", f"echo {others} >/etc/machine-id", f"echo {own} >/etc/machine-id"),
            ("node2", "hostname node1", "hostname node2"),
            ("node1", f"mount -t tmpfs -o size=16m none /var/tmp; {FILL}", "umount /var/tmp"),
            ("node1", f"ip route add prohibit {target}/32", f"ip route del prohibit {target}/32"),
            ("node1", f"{OTHER_HOSTS} >/run/hosts; mount --bind /run/hosts /etc/hosts", "umount /etc/hosts"),
            ("head", "systemctl stop slurmctld", "systemctl start slurmctld"),
        ):
            stack.enter_context(broken(closet, host, break_it, mend))
        status, document = doctor("-i", str(power))
        listening = closet.root("head", "ss -Hltn 'sport = :6817'")
    until("slurmctld answers", lambda: closet.root("head", "scontrol ping", check=False), lambda seen: "is UP" in seen)
    assert status == 1
    errors = found(document, "error")
    assert "head" not in {one["host"] for one in document["findings"] if "6817 (slurmctld) can't" in one["what"]}
    for host, check, what, mend in (
        ("node2", "machine-id", "node1 and node2", "systemd-machine-id-setup"),
        ("node2", "hostname", "node1 and node2", "hostnamectl set-hostname node2"),
        ("node1", "disk", "/var/tmp is full", "du -xh"),
        ("node2", "ports", "6818 (slurmd) can't be reached from node1", "ip route get"),
        ("head", "names", "10.99.99.99 on node1", "/etc/hosts"),
        ("head", "ports", "slurmctld does not listen on port 6817", "systemctl start slurmctld"),
        ("", "power", "circuit window carries 3.0 kW", "plug node1 into door"),
        ("", "cooling", "declared are 2.0 kW", "nvidia_driver_power_limits"),
    ):
        assert what in errors[host, check]["what"] and mend in errors[host, check]["mend"], errors
    # somebody listened in its place, so that the way was tried, and has gone
    assert listening == ""


def test_node_that_is_down_and_one_without_sudo(closet: Closet, doctor: Any, tmp_path: Path) -> None:
    key = closet.lab.state_dir / "researcher"
    own = tmp_path / "own.yml"
    variables = {"ansible_user": "ada", "ansible_become": True, "ansible_ssh_private_key_file": str(key)}
    own.write_text(json.dumps({"all": {"hosts": {"head": variables}}}))
    container = closet.lab.node("node2").container
    docker("stop", "--time=5", container)
    try:
        status, document = doctor("-i", str(own))
    finally:
        docker("start", container)
        closet.await_node("node2", lambda state: state == "IDLE", "is back")
    assert status == 1
    errors = found(document, "error")
    assert "sudo" in errors["head", "sudo"]["what"] and "let ada use sudo" in errors["head", "sudo"]["mend"]
    assert "ssh does not get in" in errors["node2", "ssh"]["what"]
    # the one that answers is looked at all the same, and nothing is said of ways to the others
    assert document["counts"]["ok"] > 10 and not {key for key in errors if key[0] == "node1"}
