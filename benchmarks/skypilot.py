# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What SkyPilot on one machine costs: ``python -m benchmarks.skypilot``, from the root of a checkout.

Starts a machine with two cards, makes all of it but SkyPilot from the tests' mirror, and then measures: the role's
first run beside what pip and the compiler of bytecode take for the same files; how long a started server takes to be
healthy beside the import of its code; and the whole tier with nothing to do, with SkyPilot and without, in turns.

Prints Markdown, and writes the figures as JSON.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks import common
from benchmarks.closet import costs
from labrack.testnode import node, wheels
from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import NodeSpec
from tests.mirror import k3s, serve
from tests.nodes.harness import INVENTORIES, ROOT, Closet, bring_up, powered, until

LAB = "labrack-bench-skypilot"
DESK = "desk"
TIER = "labrack.infra.under_desk"
REQUIREMENTS = (ROOT / "roles/skypilot/files/requirements.txt").read_text(encoding="utf-8")
#: What the role has pip do, without the role.
PIP = "bare/bin/pip install --quiet --no-deps --no-cache-dir --index-url file:///srv/simple"
BY_HAND = (
    f"cd /root && python3 -m venv bare && {PIP} --only-binary=:all: -r wheels.txt && "
    f"{PIP} --no-build-isolation -r sources.txt && {{ bare/bin/python -m compileall -q bare/lib || true; }}"
)
HEALTH = "curl --silent --fail --max-time 2 http://127.0.0.1:46580/api/health >/dev/null"
IMPORT = "HOME=/tmp/import /opt/skypilot/current/bin/python -c 'import sky.server.server'"


def seconds(closet: Closet, command: str) -> float:
    """Seconds that a command takes on the machine; SystemExit where it fails."""
    started = time.monotonic()
    done = node.exec(closet.lab.node(DESK), ["bash", "-c", command], check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return round(time.monotonic() - started, 2)


def by_hand(closet: Closet) -> float:
    """Seconds to install the same files without the role."""
    lines = REQUIREMENTS.replace("\\\n", " ").splitlines()
    sources = [line for line in lines if line.startswith(wheels.SOURCES)]
    texts = {"sources.txt": sources, "wheels.txt": [line for line in lines if line not in sources]}
    for name, kept in texts.items():
        node.exec(closet.lab.node(DESK), ["sh", "-c", f"cat >/root/{name}"], input="\n".join(kept) + "\n")
    taken = seconds(closet, BY_HAND)
    closet.root(DESK, "rm -r /root/bare")
    return taken


def started(closet: Closet) -> float:
    """Seconds from the start of a stopped server until it says that it is healthy."""
    closet.root(DESK, "systemctl stop skypilot")
    return seconds(closet, f"systemctl start skypilot && timeout 300 bash -c 'until {HEALTH}; do sleep 0.1; done'")


def measure(closet: Closet, rounds: int) -> dict[str, Any]:
    """Measure all of it; the tier without SkyPilot is there already."""
    figures: dict[str, Any] = {"install": costs(closet, "--tags", "skypilot", playbook=TIER)}
    figures["by_hand_s"] = by_hand(closet)
    figures["healthy_s"] = [started(closet) for _ in range(rounds)]
    figures["import_s"] = [seconds(closet, IMPORT) for _ in range(rounds)]
    runs: dict[str, list[dict[str, Any]]] = {"whole tier": [], "without SkyPilot": []}
    for _ in range(rounds):
        runs["whole tier"].append(costs(closet, playbook=TIER))
        runs["without SkyPilot"].append(costs(closet, "--skip-tags", "skypilot", playbook=TIER))
    if any(sum(cost["changed"].values()) for costs_of in runs.values() for cost in costs_of):
        raise SystemExit("a run with nothing to do changed something")
    return {**figures, "no_op": runs}


def markdown(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    install, hand = figures["install"]["wall_s"], figures["by_hand_s"]
    healthy, imported = (statistics.median(figures[key]) for key in ("healthy_s", "import_s"))
    lines = [figures["machine"], "", "| | seconds | ratio |", "|---|---:|---:|"]
    lines += [f"| pip and compileall by hand | {hand:.1f} | 1.00 |"]
    lines += [f"| the role's first run | {install:.1f} | {install / hand:.2f} |"]
    lines += [f"| import of the server's code | {imported:.1f} | 1.00 |"]
    lines += [f"| from start to healthy | {healthy:.1f} | {healthy / imported:.2f} |", ""]
    lines += [
        "| nothing to do | seconds | CPU s, controller | CPU s, node | module tasks |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, runs in figures["no_op"].items():
        keys = ("wall_s", "controller_cpu_s", "nodes_cpu_s")
        middles = " | ".join(f"{statistics.median(run[key] for run in runs):.1f}" for key in keys)
        lines.append(f"| {name} | {middles} | {runs[-1]['module_tasks'][DESK]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = common.parser("skypilot", __doc__, LAB)
    parser.add_argument("--rounds", type=int, default=3, help="starts, and runs with nothing to do")
    options = parser.parse_args()
    state = ROOT / ".cache/labs" / options.lab
    nodes = (NodeSpec(DESK, options.system, (GpuSpec(),) * 2, driver=False),)
    machine = common.machine(options)
    node.down(options.lab, state, print)
    try:
        bring_up(options.lab, nodes, INVENTORIES / "under_desk", state)
        mirror = serve.up(options.lab, print, None, k3s.ensure_tree(print))
        variables = {**serve.variables(mirror, options.system), **k3s.variables()}
        closet = bring_up(options.lab, nodes, INVENTORIES / "under_desk", state, variables)
        wheels.give(closet.lab.node(DESK), REQUIREMENTS, print)
        with powered(closet.lab):
            closet.play(TIER, "--skip-tags", "skypilot")
            ready = "k3s kubectl get --raw /readyz"
            until("k3s is up", lambda: closet.root(DESK, ready, check=False), lambda seen: "ok" in seen)
            figures = {"machine": machine, **measure(closet, options.rounds)}
    finally:
        node.down(options.lab, state, print)
    common.record(options, figures, markdown(figures))


if __name__ == "__main__":
    main()
