# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people cost: ``python -m benchmarks.users [--people 1000]``, from the root of a checkout.

Starts three nodes, and measures the one call of the module ``lab_users`` on each: the first, which makes everybody,
the second, which finds nothing to do, and one in which a tenth of the people are new. Beside it what a plain reading
of the same accounts, homes and keys costs on a node: ``getent``, ``stat`` and ``cat``, one process each.

Prints Markdown, and writes the figures as JSON.
"""

from __future__ import annotations

import base64
import json
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from labrack.testnode import node
from labrack.testnode.node import NodeSpec
from tests.nodes.harness import ROOT, Closet, Run, bring_up

LAB = "labrack-bench-users"
HOSTS = ("head", "node1", "node2")
TASK = "Converge users, groups, keys and sudo"
PLAY = """
- name: Read the nodes
  hosts: all
  gather_facts: false
  tasks:
    - name: Read the node
      labrack.infra.node_facts:
- name: People
  hosts: all
  gather_facts: false
  roles: [labrack.infra.lab_users]
"""
BASELINE = """
names=$(seq -f 'p%g' 1 {count}); homes=$(seq -f '/home/p%g' 1 {count})
getent passwd $names > /dev/null; getent group $names > /dev/null; stat -c %u $homes > /dev/null
cat $(seq -f '/home/p%g/.ssh/authorized_keys' 1 {count}) > /dev/null
"""


def person(number: int) -> dict[str, Any]:
    """An entry of lab_users with a key of its own."""
    blob = b"".join(struct.pack(">I", len(part)) + part for part in (b"ssh-ed25519", number.to_bytes(32, "big")))
    key = f"ssh-ed25519 {base64.b64encode(blob).decode()} p{number}"
    return {"name": f"p{number}", "uid": 2000 + number, "groups": ["team"], "keys": [key]}


def call(closet: Closet, folder: Path, people: int) -> dict[str, Any]:
    """Run the role for that many people; return the seconds of the module's call on each host."""
    (folder / "group_vars").mkdir(exist_ok=True)
    variables = {
        "lab_users": [person(number) for number in range(1, people + 1)],
        "lab_groups": [{"name": "team", "gid": 1900}],
        "lab_orchestrator": "none",
    }
    (folder / "group_vars/all.json").write_text(json.dumps(variables))
    run: Run = closet.play(str(folder.parent / "people.yml"))
    seconds = {}
    for file in run.artifacts.glob("artifacts/*/job_events/*.json"):
        event = json.loads(file.read_text(encoding="utf-8"))
        data = event.get("event_data", {})
        if event["event"] == "runner_on_ok" and data.get("task") == TASK:
            seconds[data["host"]] = round(data["duration"], 2)
    return {"seconds": seconds, "changed": any(run.changed.values())}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [figures["machine"], "", f"| {figures['people']} people, three nodes at a time | s, each node | changed |"]
    lines += ["|---|---|---|"]
    for name, cost in figures["calls"].items():
        seconds = ", ".join(str(cost["seconds"][host]) for host in HOSTS)
        lines.append(f"| {name} | {seconds} | {'yes' if cost['changed'] else 'no'} |")
    lines.append(f"| getent, stat and cat, one node alone | {figures['baseline_s']} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = common.parser("users", __doc__, LAB)
    parser.add_argument("--people", type=int, default=1000, help="how many")
    options = parser.parse_args()
    state = ROOT / ".cache/labs" / options.lab
    machine = common.machine(options)
    figures: dict[str, Any] = {"machine": machine, "people": options.people, "calls": {}}
    node.down(options.lab, state, print)
    try:
        with tempfile.TemporaryDirectory(prefix="labrack-bench-") as name:
            folder = Path(name, "inventory")
            folder.mkdir()
            Path(name, "people.yml").write_text(PLAY)
            (folder / "hosts.yml").write_text("lab_head: {hosts: {head: }}\nlab_workers: {hosts: {node1: , node2: }}\n")
            closet = bring_up(options.lab, [NodeSpec(host, options.system) for host in HOSTS], folder, state)
            most = options.people
            figures["calls"]["nine tenths are new"] = call(closet, folder, most * 9 // 10)
            figures["calls"]["a tenth is new"] = call(closet, folder, most)
            figures["calls"]["nothing to do"] = call(closet, folder, most)
            started = time.monotonic()
            closet.root("head", BASELINE.format(count=most))
            figures["baseline_s"] = round(time.monotonic() - started, 2)
    finally:
        node.down(options.lab, state, print)
    common.record(options, figures, markdown(figures))


if __name__ == "__main__":
    main()
