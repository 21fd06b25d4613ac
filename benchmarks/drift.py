# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What `labrack drift` costs beside check mode: ``python -m benchmarks.drift``, from the root of a checkout.

Starts a head and two workers, converges them, and asks in turns: `ansible-playbook --check` of the closet, the playbook
`labrack.infra.drift`, and `labrack drift`, each finding nothing. CPU is that of this machine's programs and of the
nodes, less what the nodes use in the same time while nobody asks. A lab of that name that is there is taken, and stays.

Prints Markdown, and writes the figures as JSON.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.closet import A100, RTX_4090, RTX_A6000, measured, node_cpu, quiet
from labrack.testnode import node
from labrack.testnode.node import NodeSpec
from tests.nodes.harness import INVENTORIES, ROOT, Closet, bring_up

LAB = "labrack-bench-drift"
#: Seconds over which the idle nodes are watched.
IDLE = 20.0


def ask(closet: Closet) -> dict[str, float]:
    """Run `labrack drift`, which must find nothing; return its seconds."""
    sources = [word for source in closet.inventory for word in ("-i", str(source))]
    command = [str(Path(sys.executable).parent / "labrack"), "drift", *sources]
    with tempfile.TemporaryDirectory(prefix="labrack-bench-") as state:
        env = {**os.environ, "XDG_STATE_HOME": state}
        used = node_cpu(closet)
        done, seconds = measured(lambda: subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True))
    if done.returncode != 0:
        raise SystemExit(f"labrack drift failed or found something:\n{done.stdout}{done.stderr}")
    return {**seconds, "nodes_cpu_s": round(node_cpu(closet) - used, 2)}


def idle(closet: Closet) -> float:
    """CPU seconds that the nodes use in a second while nobody asks them."""
    used, started = node_cpu(closet), time.monotonic()
    time.sleep(IDLE)
    return (node_cpu(closet) - used) / (time.monotonic() - started)


def measure(closet: Closet, rounds: int) -> dict[str, Any]:
    """Ask in turns; return the medians of each way, and how many times cheaper than check mode it is."""
    rest = idle(closet)
    runs: dict[str, list[dict[str, float]]] = {"check mode": [], "playbook drift": [], "labrack drift": []}
    for _ in range(rounds):
        runs["check mode"].append(quiet(closet, "labrack.infra.closet", "--check"))
        runs["playbook drift"].append(quiet(closet, "labrack.infra.drift"))
        runs["labrack drift"].append(ask(closet))
    ways: dict[str, dict[str, float]] = {}
    for name, costs in runs.items():
        for cost in costs:
            cost["cpu_s"] = cost["controller_cpu_s"] + max(0.0, cost["nodes_cpu_s"] - rest * cost["wall_s"])
        ways[name] = {key: round(statistics.median(cost[key] for cost in costs), 2) for key in costs[0]}
    for cost in ways.values():
        cost["times_cheaper"] = round(ways["check mode"]["cpu_s"] / cost["cpu_s"], 1)
    return {"idle_cpu_s_per_s": round(rest, 3), "rounds": rounds, "ways": ways}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [figures["machine"], ""]
    lines += ["| | seconds | CPU s, controller | CPU s, nodes | CPU s without idling | times cheaper |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    keys = ("wall_s", "controller_cpu_s", "nodes_cpu_s", "cpu_s", "times_cheaper")
    lines += [f"| {name} | {' | '.join(str(cost[key]) for key in keys)} |" for name, cost in figures["ways"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = common.parser("drift", __doc__, LAB)
    parser.add_argument("--rounds", type=int, default=4, help="runs of each")
    options = parser.parse_args()
    state = ROOT / ".cache/labs" / options.lab
    nodes = (
        NodeSpec("head", options.system),
        NodeSpec("node1", options.system, (A100, A100)),
        NodeSpec("node2", options.system, (RTX_4090, RTX_4090, RTX_A6000, RTX_A6000)),
    )
    there = node.exists(options.lab)
    try:
        closet = bring_up(options.lab, nodes, INVENTORIES / "closet", state)
        closet.play()
        machine = common.machine(options)
        figures = {"machine": machine, **measure(closet, options.rounds)}
    finally:
        if not there:
            node.down(options.lab, state, print)
    common.record(options, figures, markdown(figures))


if __name__ == "__main__":
    main()
