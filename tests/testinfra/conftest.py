# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one place where testinfra and the scenario's inventory are reached, from the environment that verify.yml sets."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Nodes:
    """The nodes of the inventory: by group, as testinfra's hosts, and as a user reaches them."""

    sources: tuple[str, ...]
    hostvars: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, tuple[str, ...]]
    hosts: Mapping[str, Host] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Host:
        """A node as testinfra's host, root on it."""
        return self.hosts[name]

    def login(self, user: str, name: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a node as a user, by ssh with the users' key; any exit status is fine."""
        variables = self.hostvars[name]
        options = shlex.split(variables["ansible_ssh_common_args"])
        key = ["-i", os.environ["LABRACK_USER_KEY"], "-p", str(variables["ansible_port"])]
        target = [*key, f"{user}@{variables['ansible_host']}", command]
        argv = ["ssh", "-F", "none", "-o", "BatchMode=yes", *options, *target]
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=150)

    def playbook(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a playbook of the collection; any exit status is fine."""
        sources = [word for source in self.sources for word in ("-i", source)]
        argv = [str(BIN / "ansible-playbook"), name, *sources, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)


@cache
def _nodes() -> Nodes:
    sources = tuple(os.environ["LABRACK_INVENTORY"].split(":"))
    argv = [str(BIN / "ansible-inventory"), "--list", *[word for source in sources for word in ("-i", source)]]
    listed = json.loads(subprocess.run(argv, capture_output=True, check=True, text=True).stdout)
    hostvars = listed["_meta"]["hostvars"]

    def members(group: str) -> tuple[str, ...]:
        children = [host for child in listed.get(group, {}).get("children", []) for host in members(child)]
        return tuple(dict.fromkeys([*listed.get(group, {}).get("hosts", []), *children]))

    hosts = {}
    for name, variables in hostvars.items():
        if "ansible_port" in variables:
            address = f"ssh://root@{variables['ansible_host']}:{variables['ansible_port']}"
            hosts[name] = testinfra.get_host(
                address,
                ssh_identity_file=variables["ansible_ssh_private_key_file"],
                ssh_extra_args=variables["ansible_ssh_common_args"],
            )
    return Nodes(sources, hostvars, {group: members(group) for group in listed}, hosts)


@pytest.fixture(scope="session")
def nodes() -> Nodes:
    return _nodes()


@pytest.fixture
def controller(nodes: Nodes) -> Host:
    return nodes[nodes.groups["slurm_controller"][0]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument ``worker`` runs once for each worker of the inventory."""
    if "worker" in metafunc.fixturenames:
        metafunc.parametrize("worker", _nodes().groups["slurm_worker"])
