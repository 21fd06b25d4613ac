# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A machine that under_desk.yml has made a server for a team: driver, Docker, SkyPilot on a k3s; and the way back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests import guides
from tests.nodes.harness import play

DESK = "desk"
#: SkyPilot's own parser reads calls of its command, without doing what they say.
PARSE = """
import json, sys
import click
from sky.client.cli import command
for words in json.loads(sys.argv[1]):
    found = command.cli
    while isinstance(found, click.Group):
        name, *words = words
        found = found.get_command(click.Context(found), name) or sys.exit(f'no command {name}')
    found.make_parser(click.Context(found)).parse_args(words)
"""
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
        *("labrack-gpu-watch.timer", "labrack-skypilot-reaper.timer"),
        *("nvidia-persistenced", "docker", "nvidia-cdi-refresh.path"),
    ],
)
def test_services(machine: Host, unit: str) -> None:
    service = machine.service(unit)
    assert service.is_running and service.is_enabled


def test_driver_runs_all_cards(machine: Host) -> None:
    assert machine.check_output("nvidia-smi -L").count("NVIDIA RTX A6000") == 2
    version = machine.check_output("nvidia-smi --query-gpu=driver_version --format=csv,noheader").splitlines()
    assert {one.partition(".")[0] for one in version} == {"580"}


def test_packages_of_driver_and_toolkit_are_held(machine: Host) -> None:
    held = machine.check_output("apt-mark showhold").split()
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-container-toolkit"} <= set(held)


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


def test_cards_are_given_out(machine: Host) -> None:
    (node,) = json.loads(machine.check_output("k3s kubectl get nodes --output=json"))["items"]
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    assert oct(machine.file("/etc/rancher/k3s/k3s.yaml").mode) == "0o600"


def test_people_are_logged_in_at_the_server(nodes: Any) -> None:
    done = nodes.login("ben", DESK, "sky status -o json")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_server_uses_its_kubernetes(nodes: Any) -> None:
    done = nodes.login("ada", DESK, "sky check kubernetes -o json")
    assert done.returncode == 0, done.stderr
    assert "kubernetes" in json.dumps(json.loads(done.stdout)).lower(), done.stdout


def test_researchers_page_tells_commands_of_this_sky(nodes: Any) -> None:
    calls = [shlex.split(call)[1:] for call in guides.calls("SKYPILOT.md") if call.startswith("sky ")]
    program = f"/opt/skypilot/current/bin/python -c {shlex.quote(PARSE)} {shlex.quote(json.dumps(calls))}"
    done = nodes.login("ada", DESK, program)
    assert len(calls) > 5 and done.returncode == 0, done.stderr


def test_people_see_what_is_free(nodes: Any) -> None:
    done = nodes.login("ben", DESK, "labrack-gpus && ls /data/examples")
    assert done.returncode == 0, done.stderr
    assert "RTX A6000" in done.stdout and "rtx_a6000.yaml" in done.stdout.split(), done.stdout


def test_check_mode_predicts_nothing_and_asks_little(nodes: Any, tmp_path: Path) -> None:
    sources = [Path(source).resolve() for source in nodes.sources]
    run = play("labrack.infra.under_desk", sources, tmp_path, "--check", "--diff")
    assert run.rc == 0, run.output[-4000:]
    assert run.changed[DESK] == 0
    assert 5 < len([task for task in run.modules(DESK) if task.ending != "skipped"]) <= 20


def as_told(page: str, part: str) -> list[str]:
    """The words of the page's one call of ansible-playbook that has this part, without its inventory."""
    (words,) = [shlex.split(call) for call in guides.calls(page) if call.startswith("ansible-") and part in call]
    place = words.index("-i")
    return words[1:place] + words[place + 2 :]


def test_admins_page_looks_first(nodes: Any) -> None:
    done = nodes.playbook(*as_told("SKYPILOT.md", "--check"))
    assert done.returncode == 0 and "changed=0" in done.stdout, done.stdout[-4000:]


# last, as it takes all of it away
def test_way_back(nodes: Any, machine: Host) -> None:
    done = nodes.playbook(*as_told("GROW.md", "k3s_state"))
    assert done.returncode == 0 and not machine.file("/etc/rancher").exists, done.stdout[-4000:]
    states = [word for role in ABSENT for word in ("-e", f"{role}_state=absent")]
    given = ["-e", "skypilot_purge=true", "-e", "lab_max_disruption=reboot"]
    done = nodes.playbook("labrack.infra.under_desk", *states, *given)
    assert done.returncode == 0, done.stdout[-4000:]
    assert machine.check_output(TRACES) == ""
    # what people have stays
    assert machine.file("/data").is_directory and machine.user("ada").exists
