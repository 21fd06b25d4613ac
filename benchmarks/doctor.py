# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ``labrack doctor --offline`` costs: ``python -m benchmarks.doctor``, from the root of a checkout.

Makes inventories of 5 and of 500 hosts with the closet's variables and a few people, and runs the command on each in
turns with ``ansible-inventory --list``, which reads the same files and judges nothing. No node is needed.

Prints Markdown, and writes the figures as JSON.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import common

ROOT = Path(__file__).resolve().parents[1]
SIZES = (5, 500)
COMMANDS = ("ansible-inventory --list", "labrack doctor --offline")


def write(folder: Path, hosts: int) -> Path:
    """Write an inventory of that many hosts, in which nothing is to mend."""
    shutil.copytree(ROOT / "inventories/closet/group_vars", folder / "group_vars")
    names = [f"node{number}" for number in range(1, hosts)]
    addresses = {name: f"10.0.{number // 250}.{number % 250 + 2}" for number, name in enumerate(names)}
    workers = {name: {"ansible_host": address, "slurm_gpu_count": 4} for name, address in addresses.items()}
    head: dict[str, Any] = {"children": {"lab_head": None}}
    document: dict[str, Any] = {
        "lab_head": {"hosts": {"head": {"ansible_host": "10.1.0.1"}}},
        "lab_workers": {"hosts": workers},
        **dict.fromkeys(("slurm_controller", "slurm_database", "slurm_login"), head),
        "slurm_worker": {"children": {"lab_workers": None}},
    }
    people = [{"name": f"p{number}", "uid": 2000 + number, "groups": ["vision"]} for number in range(1, 21)]
    circuits = [
        {"name": f"c{place}", "volts": 230, "amps": 125, "nodes": names[place : place + 10]}
        for place in range(0, len(names), 10)
    ]
    (folder / "hosts.yml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    lab = {"lab_users": people, "lab_circuits": [*circuits, {"name": "h", "volts": 230, "amps": 16, "nodes": ["head"]}]}
    (folder / "group_vars/all/people.yml").write_text(yaml.safe_dump(lab), encoding="utf-8")
    return folder


def run(name: str, inventory: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Run a command on an inventory; return its wall and CPU seconds. SystemExit where it does not succeed."""
    if name.startswith("labrack"):
        argv: Sequence[str] = [sys.executable, "-c", "from labrack.cli import app; app()", "doctor", "--offline"]
    else:
        argv = [str(Path(sys.executable).with_name("ansible-inventory")), "--list"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([*argv, "-i", str(inventory)], env=dict(environment), capture_output=True, text=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return {"wall_s": wall, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def markdown(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [figures["machine"], "", "| hosts | command | seconds | CPU s | ratio |", "|---:|---|---:|---:|---:|"]
    for size, found in figures["hosts"].items():
        base = found[COMMANDS[0]]["cpu_s"]
        for name, cost in found.items():
            lines.append(
                f"| {size} | `{name}` | {cost['wall_s']:.2f} | {cost['cpu_s']:.2f} | {cost['cpu_s'] / base:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = common.parser("doctor", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command; the median counts")
    options = parser.parse_args()
    machine = common.machine(options)
    figures: dict[str, Any] = {"machine": machine, "hosts": {}}
    with tempfile.TemporaryDirectory(prefix="labrack-bench-") as folder:
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "PYTHONPATH": f"{ROOT}/scripts:{ROOT}/collections",
            "XDG_STATE_HOME": f"{folder}/state",
            # what is installed has its byte code
            "PYTHONPYCACHEPREFIX": f"{folder}/cache",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for size in SIZES:
            inventory = write(Path(folder) / f"lab{size}", size)
            for name in COMMANDS:
                run(name, inventory, environment)
            # in turns, as other work on the machine costs both the same then
            runs = [{name: run(name, inventory, environment) for name in COMMANDS} for _ in range(options.rounds)]
            figures["hosts"][str(size)] = {
                name: {key: statistics.median(one[name][key] for one in runs) for key in ("wall_s", "cpu_s")}
                for name in COMMANDS
            }
    common.record(options, figures, markdown(figures))


if __name__ == "__main__":
    main()
