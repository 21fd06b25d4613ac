# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A machine that under_desk.yml has made ready: driver, container toolkit, holds, directories."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host


@pytest.fixture
def machine(nodes: Any) -> Host:
    found: Host = nodes[nodes.groups["lab_head"][0]]
    return found


def test_driver_runs_all_cards(machine: Host) -> None:
    assert machine.check_output("nvidia-smi -L").count("NVIDIA RTX A6000") == 2
    version = machine.check_output("nvidia-smi --query-gpu=driver_version --format=csv,noheader").splitlines()
    assert {one.partition(".")[0] for one in version} == {"580"}


def test_packages_of_driver_and_toolkit_are_held(machine: Host) -> None:
    held = machine.check_output("apt-mark showhold").split()
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-container-toolkit"} <= set(held)


@pytest.mark.parametrize("unit", ["nvidia-persistenced", "docker", "nvidia-cdi-refresh.path"])
def test_services(machine: Host, unit: str) -> None:
    service = machine.service(unit)
    assert service.is_running and service.is_enabled


def test_docker_knows_the_cards(machine: Host) -> None:
    info = json.loads(machine.check_output("docker info --format '{{json .}}'"))
    assert "nvidia" in info["Runtimes"]
    assert info["LiveRestoreEnabled"]
    assert "/var/run/cdi" in info.get("CDISpecDirs", ["/var/run/cdi"])
    assert machine.file("/var/run/cdi/nvidia.yaml").exists
    assert not machine.file("/etc/cdi/nvidia.yaml").exists


def test_unprivileged_containers_cannot_pick_cards(machine: Host) -> None:
    text = machine.file("/etc/nvidia-container-runtime/config.toml").content_string
    assert "\naccept-nvidia-visible-devices-envvar-when-unprivileged = false\n" in f"\n{text}"


def test_only_named_users_are_in_the_docker_group(machine: Host) -> None:
    assert machine.group("docker").members == ["ada"]


@pytest.mark.parametrize("path", ["/data", "/checkpoints"])
def test_directories_belong_to_the_team(machine: Host, path: str) -> None:
    directory = machine.file(path)
    assert (directory.is_directory, directory.group, oct(directory.mode)) == (True, "vision", "0o2775")


def test_check_mode_predicts_nothing(nodes: Any) -> None:
    done = nodes.playbook("labrack.infra.under_desk", "--check", "--diff")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "changed=0" in done.stdout
