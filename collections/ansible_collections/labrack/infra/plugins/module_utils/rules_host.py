# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for the host itself: the golden rule where it is strict, and the pinned uv."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import golden_rule
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, shown


def check_host_variables(variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in the baseline's variables for uv, without asking a node."""
    version, cache = variables.get("baseline_uv_version"), variables.get("baseline_uv_cache")
    if version and not re.fullmatch(r"\d+(\.\d+)+", version):
        mend = 'write it as "0.13.9", or "" for no uv'
        yield Finding(("baseline_uv_version",), shown(version), "not a version of uv", mend)
    if cache and not re.fullmatch(r"/[\w.-]+(/[\w.-]+)+", cache):
        problem, mend = "not a folder below an absolute one", 'write it as /data/cache/uv, or "" for none'
        yield Finding(("baseline_uv_cache",), shown(cache), problem, mend)
    for arch, digest in (variables.get("baseline_uv_sha256") or {}).items():
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            mend = "take it from the wheel's line on PyPI; it has 64 hexadecimal digits"
            yield Finding(("baseline_uv_sha256", str(arch)), shown(digest), "not a SHA-256", mend)


def check_host_facts(host: str, variables: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what keeps uv from a node, and under ``baseline_strict`` what breaks the golden rule on it."""
    if variables.get("baseline_state") != "present":
        return
    arch = facts.get("arch", "")
    if variables.get("baseline_uv_version") and arch not in (variables.get("baseline_uv_sha256") or {}):
        problem = f"it has no checksum for {arch}, which {host} is"
        mend = 'add that of uv\'s wheel, or set baseline_uv_version to ""'
        yield Finding(("baseline_uv_sha256",), "", problem, mend)
    if variables.get("baseline_strict"):
        orchestrator = variables.get("lab_orchestrator") or "slurm"
        guarded = bool(variables.get("baseline_python_guard"))
        for one in golden_rule.findings(facts, orchestrator, guarded):
            problem = f"{one['name']} ({one['seen']}), which baseline_strict refuses, as {one['why']}"
            yield Finding(("host", host), "", problem, one["mend"])
