# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The golden rule: a host has driver, container runtime and orchestrator, and nothing else that colleagues can break.

Pure. What breaks it is worked out from the facts of a node (``node_facts``), for the login message, for the playbook
verify.yml and for ``baseline_strict`` alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: The daemons of each orchestrator that hand out GPUs: the lab's own is no conflict.
OWN_DAEMONS: Mapping[str, frozenset[str]] = {
    "slurm": frozenset({"slurmd"}),
    "skypilot": frozenset({"k3s", "k3s-agent", "kubelet"}),
    "skypilot_ssh": frozenset({"k3s", "k3s-agent", "kubelet"}),
    "rke2": frozenset({"rke2-server", "rke2-agent", "kubelet"}),
    "dstack": frozenset({"dstack-shim"}),
}
#: So many names are shown at most.
SHOWN = 6


def findings(facts: Mapping[str, Any], orchestrator: str = "none", guarded: bool = False) -> list[dict[str, str]]:
    """Return what breaks the golden rule on a node, each with ``name``, ``seen``, ``why`` and ``mend``.

    ``orchestrator`` is the lab's own. ``guarded``: the marker of the system's Python will be there, so that its
    absence is none. The texts have no full stop. A key that the facts lack breaks nothing.
    """
    python = facts.get("system_python") or {}
    others = python.get("others") or []
    conda = [one["path"] for one in others if one["what"] == "conda"]
    second = [one["path"] for one in others if one["what"] != "conda"]
    conflicts = [one["what"] for one in facts.get("conflicts") or [] if one["what"] != "snap docker"]
    snap = [one["what"] for one in facts.get("conflicts") or [] if one["what"] == "snap docker"]
    foreign = [name for name in conflicts if name not in OWN_DAEMONS.get(orchestrator, frozenset())]
    found = [
        (
            "packages in the system Python",
            python.get("packages") or [],
            "the host's own programs and everybody's scripts load them",
            f"put them into a virtual environment (uv venv), then as root: {_uninstall(python.get('packages') or [])}",
        ),
        (
            "CUDA on the host",
            facts.get("cuda") or [],
            "each project needs its own version, which PyTorch's packages and containers bring along",
            "remove it when no build needs it: its packages with apt or dnf, a folder with its bin/cuda-uninstaller",
        ),
        (
            "second Python",
            second,
            "it shadows the system's for everybody, and nobody upgrades it",
            "remove it; uv python install gives each user any version",
        ),
        (
            "conda for everybody",
            conda,
            "one update of its base changes every project that uses it",
            "remove it; uv venv, or a conda in one's own home, does the same for one user",
        ),
        (
            "no marker in the system Python",
            [python["interpreter"]]
            if python.get("interpreter") and not python.get("externally_managed") and not guarded
            else [],
            "pip installs into it without a word",
            "set baseline_python_guard: true and run the playbook",
        ),
        (
            "another daemon that gives out GPUs",
            foreign,
            "two of them give the same card to two jobs",
            f"as root: systemctl disable --now {' '.join(foreign)}",
        ),
        (
            "Docker from snap",
            snap,
            "it is confined, and can't use NVIDIA's container toolkit",
            "as root: snap remove docker, then run the playbook, which installs the distribution's",
        ),
    ]
    return [{"name": name, "seen": some(seen), "why": why, "mend": mend} for name, seen, why, mend in found if seen]


def some(names: Sequence[str]) -> str:
    """Return the first names of a list as text, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def notice(found: Sequence[Mapping[str, str]], path: str) -> str:
    """Return the text of the file ``path`` for admins, "" when all is well; its first line is shown at login."""
    if not found:
        return ""
    count = f"{len(found)} thing{'s' if len(found) > 1 else ''}"
    verb = "break" if len(found) > 1 else "breaks"
    names = ", ".join(one["name"] for one in found)
    lines = [f"labrack: {count} on this host {verb} the golden rule: {names}. See {path}"]
    for one in found:
        lines += ["", f"{one['name']}: {one['seen']}", f"  why: {one['why']}", f"  mend: {one['mend']}"]
    return "\n".join(lines) + "\n"


def _uninstall(names: Sequence[str]) -> str:
    command = "uv pip uninstall --system --break-system-packages"
    return f"{command} {' '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}"
