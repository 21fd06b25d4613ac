# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Labs of virtual machines, each made from snapshots for the tests of one file.

LABRACK_TEST_LAB names them, so that two checkouts can be tested at a time. With LABRACK_KEEP_LAB=1 a lab stays, for a
look at it, and the next session takes it as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labrack.testnode import node, vm
from labrack.testnode.node import LabSpec, NodeSpec
from tests.nodes.harness import ROOT, Closet, closet_of

INVENTORIES = Path(__file__).parent / "inventories"
LAB = os.environ.get("LABRACK_TEST_LAB", "labrack-test")
KEEP = os.environ.get("LABRACK_KEEP_LAB") == "1"

#: Makes a lab of these nodes with an inventory of this directory.
Maker = Callable[[str, tuple[NodeSpec, ...]], Closet]


@pytest.fixture(scope="module")
def make_lab() -> Iterator[Maker]:
    """Makes labs of virtual machines, which are taken away after the file's last test."""
    made: list[tuple[str, Path]] = []

    def make(inventory: str, nodes: tuple[NodeSpec, ...]) -> Closet:
        name = f"{LAB}-vm-{inventory}"
        state = ROOT / ".cache/labs" / name
        if not KEEP:
            vm.down(name, state, print)
            shutil.rmtree(state, ignore_errors=True)
        made.append((name, state))
        lab = node.load(state) if vm.exists(state) else vm.up(LabSpec(name, nodes), state, print)
        return closet_of(lab, INVENTORIES / inventory)

    yield make
    if not KEEP:
        for name, state in made:
            vm.down(name, state, print)
            shutil.rmtree(state, ignore_errors=True)
