# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What NFS costs: ``python -m benchmarks.storage [--mib 96] [--rounds 3]``, from the root of a checkout.

Starts two virtual machines, and writes and reads a file on the server's disk: from the server itself, and from the
other machine by NFS, with the options of ``nfs_client`` and with those of the distribution. All take turns. What is
written is on the disk at the end of its time, and nothing of what is read is in memory. The ratios say more than the
speeds: an emulated processor is slow, and the network between the machines is a socket of this one.

Then a thousand people get a quota and a file there, and the report of who uses what is timed, on the server by itself
and as the module's call, beside ``repquota`` and ``ping``.

Prints Markdown, and writes the figures as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import nfs_client_plan, nfs_plan, storage_layout
from benchmarks import common
from labrack.testnode import node, vm
from labrack.testnode.node import Lab, LabSpec, NodeSpec
from tests.nodes.harness import ROOT, closet_of

LAB = "labrack-bench-storage"
SECONDS = "600"
SERVER = """\
set -e
mkfs.xfs -q -f /dev/vdb
mkdir -p /srv/lab /etc/nfs.conf.d
mount -o uquota,pquota /dev/vdb /srv/lab
chmod 1777 /srv/lab
printf %s "$1" >/etc/nfs.conf.d/labrack.conf
echo "/srv/lab $2(rw,sync,root_squash,no_subtree_check)" >/etc/exports
systemctl restart nfs-server
"""
PEOPLE = """\
set -e
seq {first} {last} | while read -r number; do echo "limit -u bsoft=1g bhard=2g $number"; done |
    xfs_quota -x /srv/lab >/dev/null
mkdir /srv/lab/people && cd /srv/lab/people
for number in $(seq {first} {last}); do echo "$number" >"$number"; done
for number in $(seq {first} {last}); do chown "$number" "$number"; done
"""
PLAY = """
- name: Time the report
  hosts: all
  gather_facts: false
  tasks:
    - name: ping
      ansible.builtin.ping:
    - name: storage_report
      labrack.infra.storage_report:
        host: head
        servers: [head]
        directories: [{path: /srv/lab}]
      register: report
    - name: See that all are in it
      ansible.builtin.assert:
        that: report.storage.users | length >= PEOPLE
        quiet: true
"""
DROP = "sync; echo 3 >/proc/sys/vm/drop_caches"


def run(lab: Lab, host: str, command: str) -> str:
    """What a shell command says as root on a node, errors too."""
    done = node.exec(lab.node(host), ["timeout", SECONDS, "sh", "-c", f"exec 2>&1; {command}"])
    return done.stdout


def speed(said: str) -> float:
    """MiB/s, by what dd says at its end."""
    found = re.search(r"^(\d+) bytes .* copied, ([\d.e-]+) s", said, re.MULTILINE)
    assert found, said
    return int(found[1]) / 2**20 / float(found[2])


def measure(lab: Lab, host: str, folder: str, mib: int) -> dict[str, float]:
    """Write a file until it is on the disk, and read it with nothing of it in any memory: MiB/s."""
    # one for each host, as root of the other one is nobody here
    file = f"{folder}/{host}"
    written = run(lab, host, f"rm -f {file}; dd if=/dev/zero of={file} bs=1M count={mib} conv=fsync")
    for each in ("head", "node1"):
        run(lab, each, DROP)
    return {"write": speed(written), "read": speed(run(lab, host, f"dd if={file} of=/dev/null bs=1M"))}


@contextmanager
def mounted(lab: Lab, options: str) -> Iterator[str]:
    """The server's folder on the other machine; what was mounted first decides on the connections, so one at a time."""
    run(lab, "node1", f"mkdir -p /mnt/lab && mount -t nfs4 {options} {lab.node('head').address}:/srv/lab /mnt/lab")
    try:
        yield "/mnt/lab"
    finally:
        run(lab, "node1", "umount /mnt/lab")


def figures(lab: Lab, mib: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """MiB/s of each round, by way and direction."""
    text = nfs_plan.conf_text(nfs_plan.default_threads(1), 15)
    node.exec(lab.node("head"), ["sh", "-c", SERVER, "server", text, lab.node("node1").address])
    (directory,) = storage_layout.read([{"path": "/mnt/lab"}], ["head"])
    ours = nfs_client_plan.mount_options(directory, nconnect=4)
    # the word is for systemd alone
    ways = {"ours": "-o " + shlex.quote(",".join(set(ours) - {"nofail"})), "distribution's": ""}
    found: dict[str, dict[str, list[float]]] = {way: {"write": [], "read": []} for way in ("local", *ways)}
    for _ in range(rounds):
        seen = {"local": measure(lab, "head", "/srv/lab", mib)}
        for way, options in ways.items():
            with mounted(lab, options) as folder:
                seen[way] = measure(lab, "node1", folder, mib)
        for way, speeds in seen.items():
            for direction, value in speeds.items():
                found[way][direction].append(round(value, 1))
    return found


def report(lab: Lab, people: int) -> dict[str, float]:
    """Seconds of the report for that many people, by what makes it."""
    run(lab, "head", PEOPLE.format(first=2001, last=2000 + people))
    seconds = {}
    started = time.monotonic()
    run(lab, "head", "repquota --user --raw-grace /srv/lab")
    seconds["repquota"] = round(time.monotonic() - started, 2)
    with tempfile.TemporaryDirectory(prefix="labrack-bench-") as name:
        folder = Path(name, "inventory")
        folder.mkdir()
        (folder / "hosts.yml").write_text("lab_head: {hosts: {head: }}\n")
        playbook = Path(name, "report.yml")
        playbook.write_text(PLAY.replace("PEOPLE", str(people)))
        for _ in range(2):
            done = closet_of(lab, folder).play(str(playbook), "--limit", "head")
        for file in done.artifacts.glob("artifacts/*/job_events/*.json"):
            event = json.loads(file.read_text(encoding="utf-8"))
            if event["event"] == "runner_on_ok":
                seconds[event["event_data"]["task"]] = round(event["event_data"]["duration"], 2)
    return {name: seconds[name] for name in ("repquota", "ping", "storage_report")}


def markdown(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        result["machine"],
        "",
        "| | write, MiB/s | of local | read, MiB/s | of local |",
        "|---|---:|---:|---:|---:|",
    ]
    local = {way: statistics.median(values) for way, values in result["speeds"]["local"].items()}
    for way, speeds in result["speeds"].items():
        cells = []
        for direction in ("write", "read"):
            value = statistics.median(speeds[direction])
            cells += [f"{value:.1f}", f"{value / local[direction]:.2f}"]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines += ["", f"| {result['people']} people with quotas | seconds |", "|---|---:|"]
    lines += [f"| `{name}` | {seconds} |" for name, seconds in result["report"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = common.parser("storage", __doc__)
    parser.add_argument("--mib", type=int, default=96, help="how big the file is")
    parser.add_argument("--rounds", type=int, default=3, help="how many")
    parser.add_argument("--people", type=int, default=1000, help="how many have quotas")
    arguments = parser.parse_args()
    state = ROOT / ".cache/labs" / LAB
    vm.down(LAB, state, print)
    lab = vm.up(LabSpec(LAB, (NodeSpec("head", disks=(2,)), NodeSpec("node1"))), state, print)
    try:
        speeds = figures(lab, arguments.mib, arguments.rounds)
        seconds = report(lab, arguments.people)
    finally:
        vm.down(LAB, state, print)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {arguments.mib} MiB, {arguments.rounds} rounds, medians"
    result = {"machine": machine, "speeds": speeds, "people": arguments.people, "report": seconds}
    common.record(arguments, result, markdown(result))


if __name__ == "__main__":
    main()
