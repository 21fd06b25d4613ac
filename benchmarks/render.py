"""Print how long Slurm's configuration takes for 5, 50 and 1000 workers: build, plan, render, in seconds and MiB.

Run it with ``python benchmarks/render.py`` in the project's environment. "first" plans on an empty controller, "again"
reads the files back and plans the same lab once more. The ratios compare the sizes within this one run.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "collections"))

from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import (
    ConfPlan,
    SlurmConf,
    build,
    parse,
    plan,
    plan_cgroups,
    render,
    worker_from_facts,
)

SIZES = (5, 50, 1000)
VERSION = "24.11"
PARTITIONS = [
    {"name": "gpu", "default": True, "default_time": "08:00:00", "max_time": "7-00:00:00"},
    {"name": "interactive", "default_time": "01:00:00", "max_time": "04:00:00", "priority_tier": 10},
]


def facts(number: int) -> dict[str, Any]:
    """Return the facts of a worker with eight GPUs of two types."""
    return {
        "hostname": f"node{number}",
        "cpu": {"cpus": 128, "sockets": 2, "cores_per_socket": 32, "threads_per_core": 2},
        "memory_mib": 512_000 + number % 7,
        "gpus": [
            {"slurm_type": "h100" if minor < 4 else "a100_80gb", "device": f"/dev/nvidia{minor}"} for minor in range(8)
        ],
        "cgroup": {"mode": "v2", "controllers": ["cpuset", "devices", "memory"], "reason": ""},
    }


def converge(size: int, texts: dict[str, str]) -> ConfPlan:
    """Plan a lab of ``size`` workers on a controller that has ``texts``, and render it."""
    nodes = [facts(number) for number in range(1, size + 1)]
    wish = build(
        VERSION,
        [worker_from_facts(node["hostname"], "10.0.0.1", node) for node in nodes],
        plan_cgroups(VERSION, nodes),
        cluster_name="closet",
        controller="head",
        controller_address="10.1.0.1",
        database="head",
        partitions=PARTITIONS,
    )
    settled = plan(parse(texts) if texts else SlurmConf(), wish, VERSION)
    render(settled.conf)
    return settled


def measure(work: Callable[[], ConfPlan]) -> tuple[float, float, ConfPlan]:
    """Return seconds of a plain run and the peak in MiB of a traced one, with the result."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return seconds, peak, result


def main() -> None:
    """Print the table."""
    print(f"{'workers':>7}  {'first s':>8}  {'MiB':>6}  {'again s':>8}  {'MiB':>6}  {'ratio':>6}")
    smallest = None
    for size in SIZES:
        first, first_peak, settled = measure(partial(converge, size, {}))
        texts = render(settled.conf)
        again, again_peak, nothing = measure(partial(converge, size, texts))
        if nothing.done or nothing.pending:
            raise SystemExit(f"{size} workers: the second plan is not empty: {nothing.done + nothing.pending}")
        smallest = smallest or again
        print(
            f"{size:>7}  {first:>8.4f}  {first_peak:>6.1f}  {again:>8.4f}  {again_peak:>6.1f}  {again / smallest:>6.1f}"
        )


if __name__ == "__main__":
    main()
