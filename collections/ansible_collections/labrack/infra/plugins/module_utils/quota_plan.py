# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sizes and disk quotas: what the inventory says, and what is to change on a file system.

Pure. Sizes are KiB throughout, as the kernel has them; 0 is no limit. A limit that somebody set by hand for a number
that the inventory does not name is not ours, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ansible_collections.labrack.infra.plugins.module_utils.change import Change

UNITS = {"K": 1, "M": 2**10, "G": 2**20, "T": 2**30, "P": 2**40}
#: Numbers of projects that labrack gives to directories. Docker counts up from 1, Kubernetes from 1048577.
FIRST_PROJECT = 300001
#: What is reported about a file system's quotas: none, counted only, or counted and enforced.
OFF, COUNTED, ENFORCED = "off", "counted", "enforced"


@dataclass(frozen=True)
class Limit:
    """The most that one user or project may have, in KiB: ``soft`` for a week at a time, ``hard`` never more."""

    soft: int = 0
    hard: int = 0

    def __str__(self) -> str:
        """Return it as ``50G/60G``, soft and hard."""
        return f"{words(self.soft)}/{words(self.hard)}"


@dataclass(frozen=True)
class Usage:
    """What one user or project has on a file system and may have, in KiB.

    ``ends``: Unix time at which the grace of somebody over the soft limit ends, 0 for everybody else.
    """

    used: int = 0
    limit: Limit = field(default_factory=Limit)
    ends: int = 0


@dataclass(frozen=True)
class Quotas:
    """The quotas of a mounted file system: the state of each kind, and everybody's usage by number.

    ``grace``: seconds that somebody may be over the soft limit, by kind.
    """

    state: Mapping[str, str] = field(default_factory=dict)
    usage: Mapping[str, Mapping[int, Usage]] = field(default_factory=dict)
    grace: Mapping[str, int] = field(default_factory=dict)


def kib(text: str) -> int:
    """Return a size such as ``50G`` or ``1.5T`` in KiB, ``0`` for no limit; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGTP])(?:i?B)?", str(text).strip(), re.IGNORECASE)
    if found:
        return round(float(found[1]) * UNITS[found[2].upper()])
    if str(text).strip() == "0":
        return 0
    raise ValueError(f"{text!r} is not a size. Mend: write it as 50G or 1.5T, or 0 for no limit")


def words(size: int) -> str:
    """Return KiB as a person writes them: ``1.5T``, ``none`` for 0."""
    if not size:
        return "none"
    unit = max((unit for unit, value in UNITS.items() if size >= value), key=lambda unit: UNITS[unit])
    return f"{round(size / UNITS[unit], 1):g}{unit}"


def limit(soft: str, hard: str) -> Limit:
    """Return the limit of two sizes; one that is empty has none of its kind. ValueError for what is no size."""
    return Limit(kib(soft or "0"), kib(hard or "0"))


def plan_limits(
    filesystem: str,
    kind: str,
    seen: Mapping[int, Usage],
    wanted: Mapping[int, Limit],
    ours: Collection[int],
    names: Mapping[int, str],
) -> list[Change]:
    """Plan the limits of one kind (``user``, ``project``) on one mounted file system.

    ``ours`` are the numbers that labrack has limited before: those that are not wanted any more lose their limit.
    Steps: ``("limit", filesystem, kind, number, soft, hard)``. A limit below what somebody already has makes the next
    write fail, which may end a job: class ``drain``.
    """
    changes = []
    for number in sorted({*wanted, *(number for number in ours if number in seen)}):
        before, after = seen.get(number, Usage()), wanted.get(number, Limit())
        if before.limit == after:
            continue
        tighter = 0 < after.hard < (before.limit.hard or before.used + 1)
        full = tighter and before.used > after.hard
        summary = f"{before.limit} → {after}" + (f", and has {words(before.used)} already" if full else "")
        changes.append(
            Change(
                f"quota of {kind} {names.get(number, number)} on {filesystem}",
                summary,
                "drain" if full else "none",
                str(before.limit),
                str(after),
                ("limit", filesystem, kind, str(number), str(after.soft), str(after.hard)),
            )
        )
    return changes


def free_projects(taken: Iterable[int]) -> Iterable[int]:
    """Yield numbers for new projects, from :data:`FIRST_PROJECT` up, those that are taken left out."""
    used = set(taken)
    number = FIRST_PROJECT
    while True:
        if number not in used:
            yield number
        number += 1


def mend(fstype: str, device: str, mount: str, kind: str, counted: bool = False) -> str:
    """Return how a file system gets quotas of a kind, as a sentence without its full stop.

    ``counted``: it counts already what everybody has, and enforces nothing.
    """
    option = {"user": "usrquota", "project": "prjquota"}[kind]
    if fstype == "xfs" and mount == "/":
        return f"add rootflags={option} to the kernel's command line, and restart the machine"
    if fstype == "xfs":
        return f"add {option} to the options of {mount} in /etc/fstab, then umount and mount it; a remount does not do"
    if fstype == "ext4" and counted:
        return f"add {option} to the options of {mount} in /etc/fstab, and run `mount -o remount {mount}`"
    if fstype == "ext4":
        features = "-O quota" if kind == "user" else "-O quota,project"
        at = "from a rescue system" if mount == "/" else "while it is not mounted"
        tune = f"tune2fs {features} -Q {option} {device}"
        return f"run `{tune}` {at}, and add {option} to the options of {mount} in /etc/fstab"
    return f"have {mount} on XFS or ext4, or take the quota out of the inventory"
