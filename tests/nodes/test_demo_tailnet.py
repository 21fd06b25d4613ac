# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack demo up --tailnet`` from its command line, in a lab and a state directory of the test's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from labrack import demo, demo_tailnet
from labrack.testnode import node
from labrack.testnode.docker import docker
from tests.nodes.conftest import LAB, SYSTEM
from tests.nodes.harness import containers, labrack_demo, own_demo
from tests.tailnet import binaries

DEMO = f"{LAB}-demo"
NAMES = [f"{host}.{demo_tailnet.DOMAIN}" for host in demo.CARDS]
UP = ("up", "--no-script", "--system", SYSTEM)


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """The demo's state, where it is no other demo's; inventories/demo finds it by the environment."""
    try:
        binaries.ensure(print)
    except binaries.NoBinariesError as error:
        pytest.skip(f"no tailscaled and headscale: {error}")
    with own_demo(DEMO) as folder:
        yield folder


@pytest.fixture(scope="module")
def first(state: Path) -> str:
    """What the first run said."""
    done = labrack_demo(*UP, "--tailnet")
    assert done.exit_code == 0, done.output + done.stderr
    return done.stdout


def test_nodes_find_each_other_by_name(first: str) -> None:
    ways = re.findall(r"root@(\S+)\$ ssh (\S+)\n +(100\.\S+) → (100\.\S+)", first)
    assert {(source, target) for source, target, _, _ in ways} == {
        (source, f"{target}.{demo_tailnet.DOMAIN}")
        for source in demo.CARDS
        for target in demo.CARDS
        if source != target
    }
    assert "by its name in the tailnet" in first


def test_nothing_leaves_the_lab(first: str, state: Path) -> None:
    for member in node.load(state).nodes:
        assert "default" not in node.exec(member, ["sh", "-c", "ip route; ip -6 route"]).stdout
        # not found, and at once
        assert node.exec(member, ["timeout", "20", "getent", "hosts", "example.com"], check=False).returncode == 2


def test_status_tells_the_addresses(first: str) -> None:
    seen = json.loads(labrack_demo("status", "--json").stdout)["tailnet"]
    assert [machine["dns_name"] for machine in seen] == NAMES
    assert all(machine["online"] and machine["address"] in first for machine in seen)
    shown = labrack_demo("status").stdout
    assert all(name in shown for name in NAMES)


@pytest.mark.parametrize("options", [["--tailnet"], []])
def test_another_run_changes_nothing(first: str, options: list[str]) -> None:
    done = labrack_demo(*UP, *options)
    assert done.exit_code == 0, done.output + done.stderr
    assert re.search(r"Converge +\d+ tasks on 3 nodes, 0 changed", done.stdout), done.stdout
    assert len(json.loads(labrack_demo("status", "--json").stdout)["tailnet"]) == len(NAMES)


def test_down_takes_all_away(first: str, state: Path) -> None:
    assert len(containers(DEMO)) == len(NAMES) + 1
    assert labrack_demo("down").exit_code == 0
    assert containers(DEMO) == []
    assert docker("network", "ls", "-q", "--filter", f"label={node.LABEL}={DEMO}").stdout == ""
    assert not state.exists()
