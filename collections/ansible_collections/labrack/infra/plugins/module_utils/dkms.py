# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""DKMS: for which kernels a module is built, and why a build failed. Standard library only, no Ansible import.

Formats: dkms(8) of 2.8 (Debian 11, Ubuntu 22.04: "nvidia, 535.1, …") to 3.x ("nvidia/535.1, …").
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, read_text, run

TREE = Path("/var/lib/dkms")
#: Lines of a build log that tell the cause: the compiler's, make's and DKMS's own words.
_CAUSE = re.compile(r"(?:^|: )(?:fatal )?error: |^Error! |undefined!|: No such file or directory|: cannot find ")
#: Characters of one such line that are told.
_LINE = 160

Runner = Callable[[list[str]], Done]


@dataclass(frozen=True)
class Build:
    """A module of DKMS for one kernel; ``kernel`` is empty for a module that is added and not built."""

    module: str
    version: str
    kernel: str = ""
    state: str = "added"


def parse_status(text: str) -> list[Build]:
    """Read ``dkms status``; warnings and differences that follow a state are left out."""
    builds = []
    for line in text.splitlines():
        found = re.match(
            r"(?P<module>[\w.+-]+)(?:/|, )(?P<version>[\w.+~:-]+)(?:, (?P<kernel>[^,]+), [^:]+)?: *(?P<state>\w+)", line
        )
        if found:
            builds.append(Build(found["module"], found["version"], (found["kernel"] or "").strip(), found["state"]))
    return builds


def status(runner: Runner = run) -> list[Build]:
    """Return what DKMS has; nothing where it is not installed."""
    return parse_status(runner(["dkms", "status"]).out)


def unbuilt(builds: Iterable[Build], module: str, kernels: Iterable[str]) -> list[str]:
    """Return those of the kernels for which the module is not installed; none where DKMS doesn't have it at all."""
    mine = [build for build in builds if build.module == module]
    done = {build.kernel for build in mine if build.state == "installed"}
    return [kernel for kernel in kernels if kernel not in done] if mine else []


def kernels_with_headers(root: Path = Path("/")) -> list[str]:
    """Return the installed kernels for which a module can be built, by name."""
    return sorted(path.parent.name for path in (root / "lib/modules").glob("*/build") if path.exists())


def cause(module: str = "*", tree: Path = TREE, lines: int = 4) -> str:
    """Return the lines of the newest failed build's log that tell why, as one text; empty without such a log.

    DKMS keeps the log of a build that fails in ``<tree>/<module>/<version>/build/make.log``.
    """
    logs = sorted(tree.glob(f"{module}/*/build/make.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    for log in logs:
        text = read_text(log) or ""
        found = [line.strip()[:_LINE] for line in text.splitlines() if _CAUSE.search(line)]
        if found:
            return f"{log}: " + " | ".join(dict.fromkeys(found[:lines]))[:500]
        last = text.strip().splitlines()[-1:]
        if last:
            return f"{log}: {last[0].strip()[:300]}"
    return ""
