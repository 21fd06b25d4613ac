# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The molecule scenarios, on the chosen system and on Debian 12."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nodes.conftest import LAB, SYSTEM
from tests.nodes.harness import ROOT


def changed(output: str, step: str) -> list[tuple[str, str]]:
    """Host and number of changed tasks in the recap of one step."""
    part = re.search(rf"\b{step}\] Executing\n(.*?)\b{step}\] Executed", output, re.DOTALL)
    assert part, output[-3000:]
    return re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", part[1], re.MULTILINE)


#: What the other scenarios show, most files here show on the chosen system, and the virtual machines on Debian 13.
CASES = [
    *([(SYSTEM, "under_desk")] if SYSTEM != "debian12" else []),
    *(("debian12", scenario) for scenario in ("slurm", "closet", "under_desk", "storage")),
]


@pytest.mark.parametrize(("system", "scenario"), CASES)
def test_scenario(system: str, scenario: str) -> None:
    if scenario == "under_desk" and system.startswith("ubuntu"):
        pytest.skip("the mirror has no packages for Ubuntu")
    bin_directory = Path(sys.executable).parent
    env = {
        **os.environ,
        "LABRACK_NODE_SYSTEM": system,
        "LABRACK_TEST_LAB": LAB,
        "NO_COLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "PATH": os.pathsep.join([str(bin_directory), os.environ["PATH"]]),
    }
    command = [str(bin_directory / "molecule"), "test", "--scenario-name", scenario]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert changed(done.stdout, "check") == changed(done.stdout, "converge") != []
    assert {count for _, count in changed(done.stdout, "idempotence")} == {"0"}
