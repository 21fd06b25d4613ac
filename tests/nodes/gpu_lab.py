"""A lab whose machine ``desk`` has two cards and no driver yet, with the mirror in its network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from labrack.testnode import node
from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import NodeSpec
from tests.mirror import serve
from tests.mirror.serve import Mirror
from tests.nodes.conftest import KEEP, LAB, SYSTEM
from tests.nodes.harness import INVENTORIES, ROOT, Closet, bring_up, powered

DESK = "desk"


@dataclass(frozen=True)
class GpuLab:
    """The lab: its machines as :class:`Closet`, and its mirror."""

    closet: Closet
    mirror: Mirror

    def versions(self) -> str:
        """Every package of the machine with its version and state."""
        return self.closet.root(DESK, "dpkg-query -W -f '${Package} ${Version} ${Status}\\n'")

    def driver(self) -> str:
        """The version of the driver's userland, empty for none."""
        command = "dpkg-query -W -f '${Version}' nvidia-driver-cuda"
        return self.closet.root(DESK, command, check=False).partition("-")[0]

    def loaded(self) -> str:
        """The version of the loaded module, empty for none."""
        path = "/run/labrack-testnode/proc/driver/nvidia/version"
        words = self.closet.root(DESK, f"cat {path}", check=False).split()
        return next((word for word in words if word[0].isdigit() and word.count(".") > 1), "")

    def under(self, inventory: str) -> Closet:
        """The same machines as another inventory has them."""
        return replace(self.closet, inventory=(INVENTORIES / inventory, self.closet.inventory[1]))


@contextmanager
def gpu_lab(suffix: str, inventory: str, *others: NodeSpec) -> Iterator[GpuLab]:
    """Make the lab, and take it away afterwards."""
    name = f"{LAB}-{suffix}"
    state = ROOT / ".cache/labs" / name
    if not KEEP:
        _remove(name, state)
    nodes = (NodeSpec(DESK, SYSTEM, (GpuSpec(),) * 2, driver=False), *others)
    try:
        closet = bring_up(name, nodes, INVENTORIES / inventory, state)
        serve.down(name)
        mirror = serve.up(name, print)
        # once more, with what only the mirror knows
        closet = bring_up(name, nodes, INVENTORIES / inventory, state, serve.variables(mirror, SYSTEM))
        with powered(closet.lab):
            yield GpuLab(closet, mirror)
    finally:
        if not KEEP:
            _remove(name, state)


def _remove(name: str, state: Path) -> None:
    node.down(name, state, print)
    shutil.rmtree(state, ignore_errors=True)
