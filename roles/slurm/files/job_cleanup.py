#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Slurm's epilog: end what one job left running, and nothing else.

Installed on workers by the role slurm; slurmd runs it as root when a job ends
(https://slurm.schedmd.com/prolog_epilog.html).
A process belongs to the job when its cgroup or its environment names the job, or when it holds a GPU of the job and
belongs to no other job; it must be of the job's user in any case. Two jobs of one user never touch each other's
processes.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import syslog
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Process:
    """A process: its id, user id, the Slurm job that it belongs to (None for none), the GPU minors that it holds."""

    pid: int
    uid: int
    job: str | None
    gpus: frozenset[int]


def leftovers(processes: Iterable[Process], job: str, uid: int, gpus: frozenset[int]) -> list[int]:
    """Return the ids of the processes to end after ``job`` of user ``uid``, which had the GPU minors ``gpus``.

    Root's processes are never among them. Pure.
    """
    if uid == 0:
        return []
    return [
        process.pid
        for process in processes
        if process.uid == uid and (process.job == job or (process.job is None and process.gpus & gpus))
    ]


def job_of(environment: bytes, cgroup: str) -> str | None:
    """Return the job id in a process's cgroup path, else the one in its environment, which its user can change."""
    path = re.search(r"/job_(\d+)(?:/|$)", cgroup, re.MULTILINE)
    if path:
        return path.group(1)
    found = re.search(rb"(?:^|\0)SLURM_JOB_ID=(\d+)(?:\0|$)", environment)
    return found.group(1).decode() if found else None


def read_processes(proc: Path = Path("/proc")) -> list[Process]:
    """Return every process that can be read; one that ends meanwhile is left out."""
    processes = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            uid = entry.stat().st_uid
            environment = (entry / "environ").read_bytes()
            cgroup = (entry / "cgroup").read_text(errors="replace")
            held = {_gpu_minor(os.readlink(link)) for link in (entry / "fd").iterdir()}
        except OSError:
            continue
        gpus = frozenset(minor for minor in held if minor is not None)
        processes.append(Process(int(entry.name), uid, job_of(environment, cgroup), gpus))
    return processes


def _gpu_minor(target: str) -> int | None:
    match = re.fullmatch(r"/dev/nvidia(\d+)", target)
    return int(match.group(1)) if match else None


def end(job: str, uid: int, gpus: frozenset[int]) -> int:
    """End the job's leftovers, first politely, after :data:`GRACE_SECONDS` for good; return how many there were."""
    seen: set[int] = set()
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        left = leftovers(read_processes(), job, uid, gpus)
        late = time.monotonic() > deadline
        for pid in left:
            if pid not in seen or late:
                seen.add(pid)
                try:
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                except ProcessLookupError:
                    continue
        if not left or late:
            return len(seen)
        time.sleep(0.2)


def main(environment: Mapping[str, str]) -> int:
    """Run as Slurm's epilog; always succeed, since a failing epilog drains the node."""
    job, uid = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_JOB_UID", "")
    if not job.isdigit() or not uid.isdigit():
        return 0
    gpus = frozenset(int(word) for word in environment.get("SLURM_JOB_GPUS", "").split(",") if word.isdigit())
    count = end(job, int(uid), gpus)
    if count:
        syslog.openlog("labrack-epilog")
        syslog.syslog(f"job {job} of uid {uid}: ended {count} leftover process(es)")
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
