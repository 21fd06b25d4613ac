# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for machines with GPUs: the driver's wish against the cards, power limits, the container runtime, the watch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import gpu_watch_plan, skypilot_reaper_plan
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import (
    BRANCHES,
    Wish,
    branch_of,
    choose,
    machine_from_facts,
)
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, shown

#: A key's fingerprint: v4 has 40 hexadecimal digits, v6 64; blanks are for the reader.
FINGERPRINT = re.compile(r"([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})")
URL = re.compile(r"https?://[^\s/]+(/\S*)?")


def check_gpu_variables(variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in the variables of driver, container toolkit and watch, without asking a node."""
    branch, version = variables.get("nvidia_driver_branch"), variables.get("nvidia_driver_version")
    if branch and branch not in BRANCHES:
        mend = f"use one of {', '.join(BRANCHES)}, or leave it out"
        yield Finding(("nvidia_driver_branch",), shown(branch), "no such branch", mend)
    if version and not re.fullmatch(r"\d{3}\.\d+(\.\d+)?", version):
        yield Finding(("nvidia_driver_version",), shown(version), "not a driver version", 'write it as "580.95.05"')
    elif version and branch and branch_of(version) != branch:
        problem = f"not of nvidia_driver_branch {branch}"
        yield Finding(("nvidia_driver_version",), shown(version), problem, "leave one of the two out")
    for kind, watts in (variables.get("nvidia_driver_power_limits") or {}).items():
        if not isinstance(watts, int) or isinstance(watts, bool) or watts <= 0:
            path = ("nvidia_driver_power_limits", str(kind))
            yield Finding(path, shown(watts), "not a power in watts", "write a whole number, such as 300")
    yield from _check_addresses(variables)
    yield from gpu_watch_plan.problems(variables)
    yield from skypilot_reaper_plan.problems(variables)


def _check_addresses(variables: Mapping[str, Any]) -> Iterator[Finding]:
    for name, value in variables.items():
        if name.startswith(
            ("nvidia_driver_", "container_toolkit_", "baseline_uv_", "tailscale_repo_", "tailscale_archive_")
        ):
            if name.endswith("_url") and value and not URL.fullmatch(value):
                yield Finding(
                    (name,), shown(value), "not a http or https address", "write it as https://mirror.lab/path"
                )
            if name.endswith("_key_fingerprint"):
                for one in [value] if isinstance(value, str) else value or []:
                    if one and not FINGERPRINT.fullmatch(one.replace(" ", "")):
                        mend = "take it from `gpg --show-keys FILE`; it has 40 or 64 hexadecimal digits"
                        yield Finding((name,), shown(one), "not the fingerprint of a key", mend)


def check_gpu_facts(host: str, variables: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what keeps the wished driver from this node's cards; nothing for a node without cards."""
    if not facts["gpus"] or variables.get("nvidia_driver_state") != "present":
        return
    keys = [f"nvidia_driver_{key}" for key in ("source", "branch", "version", "flavour", "desktop")]
    if not variables.keys() >= set(keys):
        return
    wish = Wish(*(variables[key] for key in keys))
    # a key that lies on the disk may be enrolled: the module asks the firmware
    signed_only = facts["secure_boot"]["state"] == "enabled" and not facts["secure_boot"]["mok"]
    _choice, problems = choose(machine_from_facts(facts, signed_only=signed_only), wish)
    for problem in problems:
        path: tuple[str | int, ...] = (problem.key,) if problem.key else ("host", host)
        yield Finding(path, problem.value, problem.problem, problem.mend)
    kinds = {gpu["slurm_type"]: gpu.get("power_max_w") for gpu in facts["gpus"] if gpu["slurm_type"]}
    for kind, watts in (variables.get("nvidia_driver_power_limits") or {}).items():
        most = [limit for name, limit in kinds.items() if limit and kind in ("all", name) and watts > limit]
        if most:
            limit = ("nvidia_driver_power_limits", str(kind))
            words = f"a card of {host} takes at most {min(most):g} W"
            yield Finding(limit, shown(watts), words, f"write {min(most):g} or less")
