# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter proof."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.slurm_proof import Check, document, table


def proof(
    hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], name: str, slurm: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``report`` and ``table`` of what was proved on these hosts and of Slurm.

    ``name`` is the variable that holds each host's result of ``host_verify``, ``slurm`` is that of ``slurm_verify``,
    which may have been skipped. A result without checks is a failed check: no answer, or a module that failed.
    """
    checks: list[Check] = []
    for host in hosts:
        result = hostvars[host].get(name) or {}
        checks += _checks(host, result, result.get("checks"))
    if not slurm.get("skipped"):
        checks += _checks("slurm", slurm, (slurm.get("report") or {}).get("checks"))
    return {"report": document(checks), "table": table(checks)}


def _checks(node: str, result: Mapping[str, Any], found: Iterable[Mapping[str, Any]] | None) -> list[Check]:
    if found is not None:
        return [Check(**check) for check in found]
    words = (str(result.get("msg") or "").strip().splitlines() or ["no answer"])[0]
    mend = "see that the machine runs and that ssh reaches it, or what the words above say"
    return [Check("answer", node, False, "an answer", words, mend)]


class FilterModule:
    """Ansible's entry to the filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"proof": proof}
