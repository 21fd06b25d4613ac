# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tailnet costs: ``python -m benchmarks.tailnet``, from the root of a checkout.

The inventory plugin on 500 machines, against the same hosts as a YAML inventory: ``ansible-inventory --list``, and the
plugins' own parsing in this process, in turns. Their figures are CPU seconds, which other work on the machine changes
least. Where ``labrack demo up --tailnet`` runs, also the role's one module call on a node that has nothing to change,
against ``ping`` and ``setup`` in the same play.

Prints Markdown, and writes the figures as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ansible_runner
import yaml
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, inventory_loader

ROOT = Path(__file__).resolve().parents[1]
# collections that are imported before it knows them are not its own
init_plugin_loader([str(ROOT / "collections")])

from ansible_collections.labrack.infra.plugins.inventory.tailnet import host_variables  # noqa: E402
from ansible_collections.labrack.infra.plugins.module_utils import tailnet_devices  # noqa: E402
from benchmarks import common  # noqa: E402
from labrack import demo, demo_tailnet  # noqa: E402

TAGS = ("tag:lab-head", "tag:lab-worker", "tag:lab-interactive")
GROUPS = {"tag:lab-head": "lab_head", "tag:lab-worker": "lab_workers", "tag:lab-interactive": "lab_interactive"}
COMPOSED = """
compose: {rack: tailnet_name, ansible_host: tailnet_name}
groups: {asleep: not tailnet_online}
keyed_groups: [{prefix: os, key: tailnet_os}]
"""
CACHED = """
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: {folder}/cache
"""


def status(machines: int) -> dict[str, Any]:
    """``tailscale status --json`` of a client with that many machines, itself among them."""
    peers = {}
    for number in range(machines):
        address = f"100.64.{number // 250}.{number % 250 + 1}"
        peers[f"nodekey:{number:064x}"] = {
            "ID": str(number + 1),
            "PublicKey": f"nodekey:{number:064x}",
            "HostName": f"node{number}",
            "DNSName": f"node{number}.tailnet.test.",
            "OS": "linux",
            "UserID": 2147455555,
            "TailscaleIPs": [address, f"fd7a:115c:a1e0::{number + 1:x}"],
            "AllowedIPs": [f"{address}/32", f"fd7a:115c:a1e0::{number + 1:x}/128"],
            "Tags": [TAGS[min(number, 1) if number % 10 else 2 * min(number, 1)]],
            "Addrs": None,
            "CurAddr": "",
            "Relay": "labrack",
            "RxBytes": 0,
            "TxBytes": 0,
            "Created": "2026-11-24T12:00:00Z",
            "LastSeen": "2026-11-24T14:00:00Z",
            "Online": number % 7 != 0,
            "ExitNode": False,
            "Active": False,
            "InNetworkMap": True,
            "InMagicSock": True,
            "InEngine": False,
        }
    own = peers.pop(next(iter(peers)))
    return {"Version": "1.102.3", "BackendState": "Running", "Self": own, "Peer": peers, "User": {}}


def sources(folder: Path, machines: int) -> dict[str, Path]:
    """Write the inventories that are compared, by name: YAML, and the plugin's plain, cached and composed."""
    document = status(machines)
    (folder / "status.json").write_text(json.dumps(document), encoding="utf-8")
    devices = tailnet_devices.of_status(document)
    groups: dict[str, Any] = defaultdict(lambda: {"hosts": {}})
    for device in devices:
        groups[GROUPS[device.tags[0]]]["hosts"][device.name] = None
        if not device.online:
            groups["tailnet_offline"]["hosts"][device.name] = None
    hosts = {device.name: host_variables(device) for device in devices}
    text = yaml.safe_dump({"all": {"hosts": hosts, "children": dict(groups)}})
    plugin = f"plugin: labrack.infra.tailnet\ncommand: [cat, {folder}/status.json]\n"
    texts = {
        "YAML": ("hosts.yml", text),
        "plugin": ("plain.tailnet.yml", plugin),
        "plugin, from its cache": ("cached.tailnet.yml", plugin + CACHED.format(folder=folder)),
        "plugin, with compose, groups, keyed_groups": ("composed.tailnet.yml", plugin + COMPOSED),
    }
    for name, content in texts.values():
        (folder / name).write_text(content, encoding="utf-8")
    return {kind: folder / name for kind, (name, _) in texts.items()}


def cpu() -> float:
    """CPU seconds that this process and the programs that it started have used so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def listing(source: Path, machines: int) -> float:
    """CPU seconds of ``ansible-inventory --list``."""
    command = [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(source), "--list"]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    started = cpu()
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    seconds = cpu() - started
    if done.returncode != 0 or len(json.loads(done.stdout)["_meta"]["hostvars"]) != machines:
        raise SystemExit(f"{source.name} is not listed:\n{done.stderr[-2000:]}")
    return seconds


def parsing(source: Path, machines: int) -> float:
    """CPU seconds in which the plugin of an inventory parses it."""
    plugin = inventory_loader.get("ansible.builtin.yaml" if source.name == "hosts.yml" else "labrack.infra.tailnet")
    inventory, loader = InventoryData(), DataLoader()
    started = cpu()
    plugin.parse(inventory, loader, str(source), cache=True)
    if hasattr(plugin, "update_cache_if_changed"):
        plugin.update_cache_if_changed()
    seconds = cpu() - started
    if len(inventory.hosts) != machines:
        raise SystemExit(f"{source.name}: {len(inventory.hosts)} hosts")
    return seconds


def in_turns(measure: Callable[[Path, int], float], of: Mapping[str, Path], machines: int, rounds: int) -> Any:
    """Median CPU seconds of each inventory; the first round, which fills the cache, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in of}
    for _ in range(rounds + 1):
        for name, source in of.items():
            seconds[name].append(measure(source, machines))
    return {name: round(statistics.median(taken[1:]), 3) for name, taken in seconds.items()}


def module_calls(rounds: int) -> dict[str, float]:
    """Median seconds on a node of the demo, by module: ping, setup, and the role's call that changes nothing."""
    turn = [
        {"name": "ping", "ansible.builtin.ping": {}},
        {"name": "setup", "ansible.builtin.setup": {}},
        {"name": "role tailscale", "ansible.builtin.import_role": {"name": "labrack.infra.tailscale"}},
    ]
    # the first ping opens the connection
    play = {"hosts": demo.WORKERS[0], "gather_facts": False, "tasks": [turn[0], *turn * rounds]}
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="labrack-bench-") as folder:
        playbook = Path(folder) / "calls.yml"
        playbook.write_text(json.dumps([play]), encoding="utf-8")
        runner = ansible_runner.run(
            private_data_dir=folder,
            project_dir=str(ROOT),
            playbook=str(playbook),
            inventory=str(ROOT / "inventories/demo"),
            envvars={
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            },
            quiet=True,
        )
        for event in runner.events:
            data = event.get("event_data", {})
            if event["event"] == "runner_on_ok" and data["task_action"] != "ansible.builtin.validate_argument_spec":
                if data["res"].get("changed"):
                    raise SystemExit(f"{data['task']} changed something")
                seconds[data["task_action"].rpartition(".")[2]].append(data["duration"])
        if runner.rc != 0:
            raise SystemExit(f"The play failed:\n{Path(runner.stdout.name).read_text()[-3000:]}")
    return {name: round(statistics.median(taken[-rounds:]), 3) for name, taken in seconds.items()}


def markdown(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    first, own = figures["listing_cpu_s"], figures["parsing_cpu_s"]
    lines = [figures["machine"], "", f"| {figures['machines']} machines | `ansible-inventory --list`, CPU s | ratio "]
    lines[-1] += "| parsing alone, CPU s | ratio |"
    lines.append("|---|---:|---:|---:|---:|")
    for name in first:
        ratios = (f"{table[name]:.2f} | {table[name] / table['YAML']:.2f}" for table in (first, own))
        lines.append(f"| {name} | {' | '.join(ratios)} |")
    if "calls_s" in figures:
        lines += ["", "| a module's call, nothing to do | seconds | to `setup` |", "|---|---:|---:|"]
        calls = figures["calls_s"]
        lines += [f"| `{name}` | {taken:.2f} | {taken / calls['setup']:.2f} |" for name, taken in calls.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = common.parser("tailnet", __doc__)
    parser.add_argument("--machines", type=int, default=500, help="machines of the tailnet")
    parser.add_argument("--rounds", type=int, default=7, help="times that each is measured")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "machine": common.machine(options),
        "machines": options.machines,
    }
    with tempfile.TemporaryDirectory(prefix="labrack-bench-") as folder:
        compared = sources(Path(folder), options.machines)
        figures["parsing_cpu_s"] = in_turns(parsing, compared, options.machines, options.rounds)
        figures["listing_cpu_s"] = in_turns(listing, compared, options.machines, options.rounds)
    if demo_tailnet.variables(demo.state_dir()) is not None:
        figures["calls_s"] = module_calls(options.rounds)
    common.record(options, figures, markdown(figures))


if __name__ == "__main__":
    main()
