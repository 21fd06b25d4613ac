"""DKMS for real: a module that builds is found built, one that does not leaves nothing behind but its cause.

Debian 13's own open driver, 550.163.01, does not build for Debian 13's own kernel; a small module of Debian's does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import dkms
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done
from labrack.testnode import node
from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import LAB, SYSTEM
from tests.nodes.harness import INVENTORIES, ROOT, Closet, bring_up

DESK = "desk"
NAME = f"{LAB}-dkms"

pytestmark = pytest.mark.skipif(SYSTEM != "debian13", reason="the driver that does not build is Debian 13's")


@pytest.fixture(scope="module")
def closet() -> Iterator[Closet]:
    """A machine with a card, and what it takes to build a module for the distribution's kernel."""
    state = ROOT / ".cache/labs" / NAME
    node.down(NAME, state, print)
    try:
        closet = bring_up(NAME, (NodeSpec(DESK, SYSTEM, (GpuSpec(),), driver=False),), INVENTORIES / "gpu_host", state)
        packages = "dkms dkms-test-dkms linux-headers-amd64"
        install = f"apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install {packages}"
        node.exec(closet.lab.node(DESK), ["sh", "-c", install])
        yield closet
    finally:
        node.down(NAME, state, print)
        shutil.rmtree(state, ignore_errors=True)


def test_module_that_builds_is_found_built_for_the_kernel_that_has_headers(closet: Closet) -> None:
    (kernel,) = closet.root(DESK, "cd /lib/modules && ls -d */build").split()
    kernel = kernel.partition("/")[0]
    builds = dkms.parse_status(closet.root(DESK, "dkms status"))
    assert dkms.unbuilt(builds, "dkms_test", [kernel]) == []
    assert dkms.unbuilt(builds, "dkms_test", ["0.0.0-none"]) == ["0.0.0-none"]
    closet.root(DESK, "dkms uninstall dkms_test/1.0 -k " + kernel)
    assert dkms.unbuilt(dkms.parse_status(closet.root(DESK, "dkms status")), "dkms_test", [kernel]) == [kernel]


def test_driver_that_does_not_build_is_taken_off_again_and_its_cause_told(closet: Closet) -> None:
    listing = "dpkg-query -W -f '${Package} ${Version} ${Status}\\n'"
    before = closet.root(DESK, listing)
    failed = closet.play(
        "labrack.infra.under_desk", "--tags", "nvidia_driver", ok=False, nvidia_driver_source="distribution"
    )
    assert failed.rc != 0
    assert "make.log: " in failed.messages and "error: too few arguments to function" in failed.messages
    assert "The packages are as they were before." in failed.messages
    assert closet.root(DESK, listing) == before
    assert closet.root(DESK, "dkms status").strip().startswith("dkms_test/")
    assert closet.root(DESK, "apt-get check && dpkg --audit") is not None
    assert Done(0, closet.root(DESK, "dpkg --audit"), "").out == ""
