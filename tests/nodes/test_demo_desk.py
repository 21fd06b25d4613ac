# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack demo up --tier under_desk`` from its command line: from nothing to two researchers' launches."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.nodes.conftest import LAB, SYSTEM
from tests.nodes.harness import containers, labrack_demo, own_demo

DEMO = f"{LAB}-desk"
UP = ("up", "--system", SYSTEM, "--tier", "under_desk")


@pytest.fixture(scope="module")
def first() -> Iterator[str]:
    """What the first run said."""
    with own_demo(DEMO):
        done = labrack_demo(*UP)
        assert done.exit_code == 0, done.output + done.stderr
        yield done.stdout


def test_ada_launches_and_ben_waits_for_his_turn(first: str) -> None:
    assert len(re.findall(r"GPU 0: NVIDIA GeForce RTX 4090", first)) == 1
    assert re.search(r"ben +both\S* +PENDING .*\(Resources\)", first) and re.search(r"ben +both\S* +RUNNING", first)
    assert "ada /checkpoints/ada.txt" in first


def test_status_and_next_steps_are_those_of_the_desk(first: str) -> None:
    seen = json.loads(labrack_demo("status", "--json").stdout)
    assert [node["name"] for node in seen["nodes"]] == ["desk"] and not seen["jobs"]
    # a launch adds a key to its user's file, which is no change by hand
    assert seen["drift"]["checked"] and not seen["drift"]["items"], seen["drift"]
    assert "ada@desk" in first and "sky launch --gpus RTX_4090:1" in first


def test_another_run_changes_nothing(first: str) -> None:
    done = labrack_demo(*UP, "--no-script")
    assert done.exit_code == 0, done.output + done.stderr
    assert re.search(r"Converge +\d+ tasks on 1 nodes, 0 changed", done.stdout), done.stdout


def test_another_tier_is_not_mixed_with_it(first: str) -> None:
    done = labrack_demo("up", "--system", SYSTEM)
    assert done.exit_code == 1 and "labrack demo down" in done.stderr
    assert labrack_demo("down").exit_code == 0 and not containers(DEMO)
