# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A machine that under_desk.yml has made a server for a team: SkyPilot on a k3s of its own; and the way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testinfra.host import Host

DESK = "desk"
#: What is left of it all on a machine, but for what people own and what the tests put there.
TRACES = (
    "ls -d /etc/rancher /var/lib/rancher /usr/local/bin/k3s /usr/local/bin/kubectl /opt/skypilot /usr/local/bin/sky "
    "/usr/local/bin/labrack-gpus /var/lib/skypilot /var/lib/labrack/gpu-watch /etc/labrack/skypilot 2>/dev/null; "
    "systemctl list-unit-files --no-legend 'k3s*' 'skypilot*' 'labrack-*' docker.service nvidia-persistenced.service; "
    "getent passwd skypilot skypilot-proxy; nft list tables | grep labrack; apt-mark showhold; true"
)
ABSENT = ("skypilot", "k3s", "gpu_watch", "container_toolkit", "nvidia_driver")


@pytest.fixture
def machine(nodes: Any) -> Host:
    found: Host = nodes[DESK]
    return found


@pytest.mark.parametrize(
    "unit",
    [
        *("k3s", "skypilot", "skypilot-proxy", "labrack-skypilot-guard"),
        *("labrack-gpu-watch.timer", "labrack-skypilot-reaper.timer", "nvidia-persistenced"),
    ],
)
def test_services(machine: Host, unit: str) -> None:
    service = machine.service(unit)
    assert service.is_running and service.is_enabled


def test_cards_are_given_out(machine: Host) -> None:
    node = json.loads(machine.check_output(f"k3s kubectl get node {DESK} -o json"))
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    assert oct(machine.file("/etc/rancher/k3s/k3s.yaml").mode) == "0o600"


@pytest.mark.parametrize("user", ["ada", "ben"])
def test_everybody_is_logged_in_at_the_server(nodes: Any, user: str) -> None:
    done = nodes.login(user, DESK, "sky status -o json")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_server_finds_its_kubernetes(nodes: Any) -> None:
    done = nodes.login("ada", DESK, "sky check kubernetes -o json")
    assert done.returncode == 0, done.stderr
    assert "kubernetes" in json.dumps(json.loads(done.stdout)).lower(), done.stdout


def test_people_see_what_is_free(nodes: Any) -> None:
    done = nodes.login("ben", DESK, "labrack-gpus && ls /data/examples")
    assert done.returncode == 0, done.stderr
    assert "RTX A6000" in done.stdout and "rtx_a6000.yaml" in done.stdout.split(), done.stdout


def test_check_mode_predicts_nothing(nodes: Any) -> None:
    done = nodes.playbook("labrack.infra.under_desk", "--check", "--diff")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "changed=0" in done.stdout


# last, as it takes all of it away
def test_way_back(nodes: Any, machine: Host) -> None:
    states = [word for role in ABSENT for word in ("-e", f"{role}_state=absent")]
    given = ["-e", "skypilot_purge=true", "-e", "lab_max_disruption=reboot"]
    done = nodes.playbook("labrack.infra.under_desk", *states, *given)
    assert done.returncode == 0, done.stdout[-4000:]
    assert machine.check_output(TRACES) == ""
    # what people have stays
    assert machine.file("/data").is_directory and machine.user("ada").exists
