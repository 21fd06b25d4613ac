# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judging a Slurm cluster by what a job sees on each worker against what it asked for. Pure, no Ansible import."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.slurm_nodes import SlurmNode

#: Runs inside the job and prints one JSON object: what the job can use. ENXIO means "allowed, no driver behind it".
PROBE = """
import errno, glob, json, os, re, socket
def opens(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return error.errno not in (errno.EPERM, errno.EACCES)
    return True
def limit():
    here = open("/proc/self/cgroup").read()
    v1 = re.search(r"^[0-9]+:memory:(.*)$", here, re.M)
    v2 = re.search(r"^0::(.*)$", here, re.M)
    tries = []
    if v1:
        tries.append(("/sys/fs/cgroup/memory", v1.group(1), "memory.limit_in_bytes"))
    elif v2:
        tries.append(("/sys/fs/cgroup", v2.group(1), "memory.max"))
    found = []
    for root, path, name in tries:
        while path.strip("/"):
            try:
                text = open(root + path + "/" + name).read().strip()
            except OSError:
                text = "max"
            if text.isdigit():
                found.append(int(text) // 1048576)
            path = path.rsplit("/", 1)[0]
    return min(found, default=None)
devices = sorted(glob.glob("/dev/nvidia[0-9]*"))
print(json.dumps({
    "node": socket.gethostname(), "uid": os.getuid(), "cpus": len(os.sched_getaffinity(0)), "memory_mib": limit(),
    "devices": [d for d in devices if opens(d)], "denied": [d for d in devices if not opens(d)],
    "visible": [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v],
}))
"""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is well, what was wanted and seen, and how to mend it.

    ``ok`` None is no failure: with a mend it is a warning, without one it could not be looked at now, as on a busy
    node.
    """

    name: str
    node: str
    ok: bool | None
    wanted: str
    seen: str
    mend: str = ""


@dataclass(frozen=True)
class Asked:
    """What the proving job asked for: CPUs, memory in MiB, GPUs."""

    cpus: int
    memory_mib: int
    gpus: int


def judge_job(node: str, asked: Asked, seen: Mapping[str, Any], constrained: Sequence[str]) -> list[Check]:
    """Return the checks of one job's view; ``constrained`` are the limits that cgroup.conf promises."""
    checks = [
        _check(
            "CUDA_VISIBLE_DEVICES",
            node,
            str(asked.gpus),
            str(len(seen["visible"])),
            "compare the node's Gres in slurm.conf with gres.conf",
        )
    ]
    if "Devices" in constrained:
        checks.append(
            _check(
                "GPU device files",
                node,
                f"{asked.gpus} usable",
                f"{len(seen['devices'])} usable",
                "see that cgroup.conf has ConstrainDevices=yes and restart slurmd",
            )
        )
    if "Cores" in constrained:
        cpus = str(seen["cpus"])
        checks.append(_check("CPUs", node, str(asked.cpus), cpus, "see ConstrainCores in cgroup.conf"))
    if "RAMSpace" in constrained:
        limit = "no limit" if seen["memory_mib"] is None else f"{seen['memory_mib']} MiB"
        mend = "see ConstrainRAMSpace in cgroup.conf"
        checks.append(_check("memory", node, f"{asked.memory_mib} MiB", limit, mend))
    return checks


def _check(name: str, node: str, wanted: str, seen: str, mend: str) -> Check:
    return Check(name, node, wanted == seen, wanted, seen, "" if wanted == seen else mend)


def judge_start(node: str, rc: int, output: str, error: str) -> tuple[Check, dict[str, Any] | None]:
    """Return the check whether the job ran, and what it saw (None when it did not run).

    A node that is busy is not a failure of the cluster.
    """
    last = (error.strip().splitlines() or ["no answer"])[-1]
    if rc == 0:
        try:
            seen = json.loads(output.strip().splitlines()[-1])
        except (IndexError, ValueError):
            return Check("job", node, False, "ran", "printed nothing", "look at /var/log/slurm/slurmd.log there"), None
        return Check("job", node, True, "ran", "ran"), seen
    if ("Unable to allocate resources" in error and "busy" in error) or rc == 124:
        return Check("job", node, None, "ran", f"busy: {last}"), None
    return Check("job", node, False, "ran", last, f"scontrol show node {node}; /var/log/slurm/slurmd.log there"), None


def judge_node(name: str, node: SlurmNode | None) -> Check:
    """Return the check of a node's state; None stands for one that Slurm doesn't know."""
    if node is None:
        return Check("state", name, False, "in service", "unknown to Slurm", "run closet.yml without --limit")
    if not node.state & {"DOWN", "DRAIN", "FAIL", "INVAL", "INVALID_REG", "NOT_RESPONDING"}:
        return Check("state", name, True, "in service", "in service")
    seen = f"{'+'.join(sorted(node.state)).lower()}: {node.reason or 'no reason given'}"
    return Check(
        "state",
        name,
        False,
        "in service",
        seen,
        f"when the cause is mended: scontrol update nodename={name} state=resume",
    )


def document(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the one JSON document: ``ok``, ``checks``, ``failures``, ``warnings``."""
    failures = [asdict(check) for check in checks if check.ok is False]
    warnings = [asdict(check) for check in checks if check.ok is None and check.mend]
    every = [asdict(check) for check in checks]
    return {"ok": not failures, "checks": every, "failures": failures, "warnings": warnings}


def table(checks: Sequence[Check]) -> list[str]:
    """Return the checks as lines of a table for a reader."""
    words = {True: "ok", False: "FAILED", None: "skipped"}
    rows = [("node", "check", "result", "wanted", "seen")]
    for check in checks:
        word = "warning" if check.ok is None and check.mend else words[check.ok]
        rows.append((check.node, check.name, word, check.wanted, check.seen))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]) for row in rows]
    return lines + [f"mend {check.node}: {check.mend}" for check in checks if check.mend]
