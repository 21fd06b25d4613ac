"""One machine from nothing to driver and container toolkit, through upgrades, broken sources and back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labrack.testnode import node
from tests.mirror import catalogue, serve
from tests.mirror.serve import Fault
from tests.nodes.conftest import SYSTEM, snapshot
from tests.nodes.gpu_lab import DESK, GpuLab, gpu_lab
from tests.nodes.harness import ROOT, Run

PLAYBOOK = "labrack.infra.under_desk"
CUDA = f"{catalogue.CUDA_ROOT}/{SYSTEM}/"
OLD, LATER = "570.158.01", "580.178.04"

pytestmark = pytest.mark.skipif(SYSTEM.startswith("ubuntu"), reason="the mirror has no packages for Ubuntu")


@pytest.fixture(scope="module")
def lab() -> Iterator[GpuLab]:
    with gpu_lab("gpu", "gpu_host") as lab:
        yield lab


@pytest.fixture(autouse=True)
def whole_mirror(lab: GpuLab) -> Iterator[None]:
    yield
    serve.clear_faults(lab.mirror)


def run(lab: GpuLab, *arguments: str, ok: bool = True, **variables: object) -> Run:
    return lab.closet.play(PLAYBOOK, *arguments, ok=ok, **variables)


# --------------------------------------------------------------------------------------------- before anything is there


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"nvidia_driver_branch": "581"}, "nvidia_driver_branch = 581: no such branch. Mend: use one of 535"),
        ({"nvidia_driver_version": "latest"}, "nvidia_driver_version = latest: not a driver version"),
        ({"nvidia_driver_source": "keep"}, "there is no driver to keep"),
        ({"nvidia_driver_flavour": "closed"}, "nvidia_driver_flavour = closed: not one of the choices"),
        ({"nvidia_driver_repo_url": "ftp://mirror"}, "nvidia_driver_repo_url = ftp://mirror: not a http or https"),
        ({"container_toolkit_docker": "podman"}, "container_toolkit_docker = podman: not one of the choices"),
    ],
)
def test_wrong_wishes_are_refused_before_the_machine_is_touched(
    lab: GpuLab, variables: dict[str, str], words: str
) -> None:
    failed = run(lab, ok=False, **variables)
    assert failed.rc != 0
    assert words in failed.messages
    assert failed.changed.get(DESK, 0) == 0


def test_card_that_the_branch_does_not_drive_is_named(lab: GpuLab) -> None:
    machine = lab.closet.lab.node(DESK)
    before = node.exec(machine, ["cat", "/run/labrack-testnode/sys/bus/pci/devices/0000:07:00.0/device"]).stdout
    pascal = "echo 0x1b06 >/run/labrack-testnode/sys/bus/pci/devices/0000:07:00.0/device"
    lab.closet.root(DESK, pascal)
    try:
        failed = run(lab, ok=False, nvidia_driver_branch="595")
    finally:
        lab.closet.root(DESK, f"echo {before.strip()} >/run/labrack-testnode/sys/bus/pci/devices/0000:07:00.0/device")
    assert "nvidia_driver_branch = 595 (desk): it does not drive" in failed.messages.replace(
        " = 595:", " = 595 (desk):"
    )


@pytest.mark.parametrize(
    ("fault", "path", "words"),
    [
        (Fault.WRONG_KEY, CUDA, "wanted"),
        (Fault.EXPIRED_KEY, CUDA, "expired"),
        (Fault.HTML_PAGE, CUDA, "is not a signing key but a web page"),
        (Fault.MISSING_VERSION, CUDA, "nvidia_driver_version = 580.178.04: "),
        (Fault.HALF_SYNCED, CUDA, "half synced"),
        (Fault.WRONG_CHECKSUM, CUDA, "half synced"),
        (Fault.REFUSED, "/", "can't be fetched"),
    ],
)
def test_broken_source_leaves_the_machine_as_it_was(lab: GpuLab, fault: Fault, path: str, words: str) -> None:
    lab.closet.root(DESK, "rm -rf /var/lib/apt/lists/mirror* /etc/apt/keyrings/labrack-nvidia.asc")
    before = lab.versions()
    serve.set_fault(lab.mirror, fault, path)
    failed = run(lab, "--tags", "nvidia_driver", ok=False, nvidia_driver_version=LATER)
    assert failed.rc != 0
    assert words in failed.messages, failed.messages
    assert "Mend: " in failed.messages
    assert lab.versions() == before


def test_full_disk_is_told_before_anything_is_unpacked(lab: GpuLab) -> None:
    full = (
        "mkdir -p /var/cache/labrack/nvidia_driver && mount -t tmpfs -o size=4k tmpfs /var/cache/labrack/nvidia_driver"
    )
    lab.closet.root(DESK, full)
    before = lab.versions()
    try:
        failed = run(lab, "--tags", "nvidia_driver", ok=False)
    finally:
        lab.closet.root(DESK, "umount /var/cache/labrack/nvidia_driver")
    assert "the disk is full. Mend: make room" in failed.messages
    assert lab.versions() == before


def test_module_that_does_not_build_leaves_no_half_of_a_driver(lab: GpuLab) -> None:
    before = lab.versions()
    lab.closet.root(DESK, "echo 'nv-dma.c:1: error: too few arguments' >/etc/labrack-testnode/dkms-fails")
    try:
        failed = run(lab, "--tags", "nvidia_driver", ok=False)
    finally:
        lab.closet.root(DESK, "rm /etc/labrack-testnode/dkms-fails")
    assert "nv-dma.c:1: error: too few arguments" in failed.messages
    assert "The packages are as they were before." in failed.messages
    assert lab.versions() == before


# ----------------------------------------------------------------------------------------------------- the first driver


@pytest.fixture(scope="module")
def first(lab: GpuLab) -> dict[str, Run | tuple[str, str]]:
    """What check mode predicted, what the first run made, what came after; branch 570, so that there is a later one."""
    lab.closet.root(DESK, "rm -rf /etc/apt/keyrings/labrack* /etc/apt/sources.list.d/labrack* /var/lib/labrack")
    lab.closet.root(
        DESK, "rm -f /etc/apt/preferences.d/labrack* /etc/apt/apt.conf.d/60labrack* /etc/modprobe.d/labrack*"
    )
    before = snapshot(lab.closet, DESK)
    predicted = run(lab, "--check", "--diff", nvidia_driver_version=OLD)
    made = run(lab, nvidia_driver_version=OLD)
    again = run(lab, nvidia_driver_version=OLD)
    checked = run(lab, "--check", "--diff", nvidia_driver_version=OLD)
    return {"before": before, "predicted": predicted, "made": made, "again": again, "checked": checked}


ROLES = ("Converge the driver", "Converge Docker and the NVIDIA Container Toolkit")


@pytest.mark.parametrize("task", ROLES)
def test_check_mode_on_an_empty_machine_tells_what_the_run_changes(first: dict[str, Run], task: str) -> None:
    predicted, made = first["predicted"].task(DESK, task), first["made"].task(DESK, task)
    assert predicted.subjects == made.subjects != []


def test_second_run_and_its_check_change_nothing(first: dict[str, Run]) -> None:
    assert first["again"].changed[DESK] == 0
    assert first["checked"].changed[DESK] == 0


def test_no_op_costs_one_module_task_a_role(first: dict[str, Run]) -> None:
    actions = [task.action for task in first["again"].modules(DESK) if task.ending != "skipped"]
    assert actions == [
        "node_facts",
        "baseline",
        "lab_users",
        "nvidia_driver",
        "container_toolkit",
        "gpu_watch",
        "nfs_client",
    ]


def test_cards_work_and_the_driver_is_the_wanted_one(lab: GpuLab, first: dict[str, Run]) -> None:
    assert lab.driver() == lab.loaded() == OLD
    assert lab.closet.root(DESK, "nvidia-smi -L").count("NVIDIA RTX A6000") == 2
    assert lab.closet.root(DESK, "systemctl is-active nvidia-persistenced docker nvidia-cdi-refresh.path").split() == [
        "active",
        "active",
        "active",
    ]


def test_upgrade_by_a_colleague_changes_nothing_of_ours(lab: GpuLab, first: dict[str, Run]) -> None:
    before = lab.versions()
    held = lab.closet.root(DESK, "apt-mark showhold").split()
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-container-toolkit"} <= set(held)
    lab.closet.root(DESK, "DEBIAN_FRONTEND=noninteractive apt-get -q -y dist-upgrade")
    changed = set(lab.versions().splitlines()) ^ set(before.splitlines())
    assert not [line for line in changed if "nvidia" in line or "cuda" in line]
    # what the nightly job reads
    nightly = lab.closet.root(DESK, "apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert 'Unattended-Upgrade::Package-Blacklist:: "^nvidia-";' in nightly


def test_hold_that_a_colleague_lifts_is_found_and_set_again(lab: GpuLab, first: dict[str, Run]) -> None:
    lab.closet.root(DESK, "apt-mark unhold libcuda1")
    assert run(lab, "--tags", "nvidia_driver", nvidia_driver_version=OLD).changed[DESK] == 1
    assert "libcuda1" in lab.closet.root(DESK, "apt-mark showhold").split()


def test_keys_of_others_in_daemon_json_survive(lab: GpuLab, first: dict[str, Run]) -> None:
    edit = 'import json; p="/etc/docker/daemon.json"; d=json.load(open(p)); d["mtu"]=1400; json.dump(d, open(p, "w"))'
    lab.closet.root(DESK, f"python3 -c '{edit}'")
    assert run(lab, nvidia_driver_version=OLD).changed[DESK] == 0
    document = json.loads(lab.closet.root(DESK, "cat /etc/docker/daemon.json"))
    assert document["mtu"] == 1400
    assert document["runtimes"]["nvidia"]["path"] == "nvidia-container-runtime"


def test_broken_daemon_json_stops_the_role_and_stays(lab: GpuLab, first: dict[str, Run]) -> None:
    good = lab.closet.root(DESK, "cat /etc/docker/daemon.json")
    lab.closet.root(DESK, "printf '{\\n  \"mtu\": 1400,\\n}\\n' >/etc/docker/daemon.json")
    try:
        failed = run(lab, "--tags", "container_toolkit", ok=False, nvidia_driver_version=OLD)
        assert re.search(r"/etc/docker/daemon.json, line [23], column \d+: ", failed.messages)
        assert lab.closet.root(DESK, "cat /etc/docker/daemon.json") == '{\n  "mtu": 1400,\n}\n'
    finally:
        node.exec(lab.closet.lab.node(DESK), ["tee", "/etc/docker/daemon.json"], input=good)


def test_power_limit_is_set_at_once_and_at_each_boot(lab: GpuLab, first: dict[str, Run]) -> None:
    limits = "nvidia-smi --query-gpu=power.limit --format=csv,noheader"
    wish = {"nvidia_driver_version": OLD, "nvidia_driver_power_limits": {"rtx_a6000": 250}}
    assert run(lab, "--tags", "nvidia_driver", **wish).changed[DESK] == 1
    assert lab.closet.root(DESK, limits).split("\n")[:2] == ["250.00 W", "250.00 W"]
    assert run(lab, "--tags", "nvidia_driver", **wish).changed[DESK] == 0
    # the driver forgets it at a restart, which the unit makes good
    lab.closet.root(DESK, "rm -r /run/labrack-testnode/power-limits; systemctl restart labrack-gpu-power")
    assert lab.closet.root(DESK, limits).startswith("250.00 W")
    failed = run(lab, ok=False, nvidia_driver_power_limits={"all": 500})
    assert "nvidia_driver_power_limits.all = 500" in failed.messages and "takes at most 300 W" in failed.messages
    assert run(lab, "--tags", "nvidia_driver", nvidia_driver_version=OLD).changed[DESK] == 1
    assert not lab.closet.root(DESK, "ls /etc/systemd/system/labrack-gpu-power.service", check=False)


def test_demos_inventory_prepares_a_single_node(lab: GpuLab, first: dict[str, Run], tmp_path: Path) -> None:
    """The command of the README, with a demo whose one node is this machine."""
    closet = lab.closet
    document = json.loads(closet.inventory[1].read_text())
    document["all"]["children"] = {group: {"hosts": {DESK: {}}} for group in ("lab_head", "lab_workers")}
    more = {"demo_keys": document["all"]["vars"]["test_keys"], "demo_volumes": False, "lab_orchestrator": "none"}
    more["nvidia_driver_version"] = OLD
    document["all"]["vars"].update(more)
    state = tmp_path / "labrack/demo"
    state.mkdir(parents=True)
    (state / "hosts.json").write_text(json.dumps(document))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "under_desk.yml", "-i", "inventories/demo"],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert re.search(rf"^{DESK} .* failed=0 ", done.stdout, re.MULTILINE)


# --------------------------------------------------------------------------------------------- another driver, and back


def test_another_branch_waits_for_consent(lab: GpuLab, first: dict[str, Run]) -> None:
    seen = run(lab, "--tags", "nvidia_driver", nvidia_driver_branch="580")
    assert seen.changed[DESK] == 0
    assert "pending until you consent to 'reboot'" in seen.output
    assert f"{OLD} → branch 580" in seen.output
    assert lab.driver() == lab.loaded() == OLD


def test_nothing_is_changed_under_a_program_that_uses_the_cards(lab: GpuLab, first: dict[str, Run]) -> None:
    machine = lab.closet.lab.node(DESK)
    pid = int(lab.closet.root(DESK, "setsid sleep 600 >/dev/null 2>&1 & echo $!"))
    process = {"pid": pid, "name": "/usr/bin/python3", "memory_mib": 512}
    node.set_gpus(machine, lambda document: document["gpus"][0]["processes"].append(process))
    try:
        consent = {"nvidia_driver_branch": "580", "lab_max_disruption": "reboot"}
        failed = run(lab, "--tags", "nvidia_driver", ok=False, **consent)
        assert "still use the cards; nothing was changed" in failed.messages
    finally:
        lab.closet.root(DESK, f"kill {pid}")
        node.set_gpus(machine, lambda document: document["gpus"][0]["processes"].clear())
    assert lab.driver() == OLD


def test_build_that_fails_brings_the_driver_before_back(lab: GpuLab, first: dict[str, Run]) -> None:
    before = lab.versions()
    log = f"only {LATER}\\nnv-pci.c:237: error: too few arguments\\n"
    lab.closet.root(DESK, f"printf '{log}' >/etc/labrack-testnode/dkms-fails")
    try:
        consent = {"nvidia_driver_branch": "580", "lab_max_disruption": "reboot"}
        failed = run(lab, "--tags", "nvidia_driver", ok=False, **consent)
    finally:
        lab.closet.root(DESK, "rm /etc/labrack-testnode/dkms-fails")
    assert "nv-pci.c:237: error: too few arguments" in failed.messages
    assert "The packages are as they were before." in failed.messages
    assert lab.versions() == before
    assert "Pin: version /^([0-9]+:)?570" in lab.closet.root(DESK, "cat /etc/apt/preferences.d/labrack-nvidia-driver")
    assert lab.closet.root(DESK, "nvidia-smi -L").count("NVIDIA RTX A6000") == 2


def test_with_consent_the_driver_changes_with_a_restart(lab: GpuLab, first: dict[str, Run]) -> None:
    seen = run(lab, "--tags", "nvidia_driver", nvidia_driver_branch="580", lab_max_disruption="reboot")
    assert seen.task(DESK, "Restart the machine").changed
    assert lab.driver() == lab.loaded() == LATER
    assert run(lab, "--tags", "nvidia_driver", nvidia_driver_branch="580").changed[DESK] == 0


def test_way_back_needs_no_repository(lab: GpuLab, first: dict[str, Run]) -> None:
    serve.set_fault(lab.mirror, Fault.REFUSED)
    back = lab.closet.play("labrack.infra.nvidia_driver_rollback", node=DESK, lab_max_disruption="reboot")
    assert f'Write nvidia_driver_version: "{OLD}"' in back.output
    assert lab.driver() == lab.loaded() == OLD
    again = lab.closet.play("labrack.infra.nvidia_driver_rollback", node=DESK, ok=False)
    assert "there is no driver to go back to" in again.messages


def test_driver_that_a_colleague_upgraded_is_reported(lab: GpuLab, first: dict[str, Run]) -> None:
    lab.closet.root(DESK, "apt-get -q update; rm /etc/apt/preferences.d/labrack-nvidia-driver")
    lab.closet.root(DESK, "apt-mark showhold | grep -v container | xargs apt-mark unhold")
    lab.closet.root(DESK, "DEBIAN_FRONTEND=noninteractive apt-get -q -y dist-upgrade")
    seen = run(lab, "--tags", "nvidia_driver")
    assert f"{OLD} runs, {lab.driver()} is installed: drain the node and restart it" in seen.output
    assert lab.loaded() == OLD


# ------------------------------------------------------------------------------------------------------------- the undo


def test_undo_leaves_the_machine_as_it_was(lab: GpuLab, first: dict[str, Run]) -> None:
    lab.closet.root(DESK, "rm /etc/docker/daemon.json")  # a colleague's key is in it, and would stay
    absent = {
        "nvidia_driver_state": "absent",
        "container_toolkit_state": "absent",
        "baseline_state": "absent",
        "gpu_watch_state": "absent",
    }
    run(lab, **absent)
    packages, etc = snapshot(lab.closet, DESK)
    before_packages, before_etc = first["before"]  # type: ignore[misc]
    assert lines(packages, "installed .*(nvidia|cuda|docker|containerd|runc)") == lines(
        before_packages, "installed .*(nvidia|cuda|docker|containerd|runc)"
    )
    assert lines(etc, ".*(nvidia|labrack-)") == lines(before_etc, ".*(nvidia|labrack-)")
    assert run(lab, **absent).changed[DESK] == 0


def lines(text: str, pattern: str) -> list[str]:
    """The lines that begin with a pattern, but those of the test node's own."""
    return [line for line in text.splitlines() if re.match(pattern, line) and "testnode" not in line]
