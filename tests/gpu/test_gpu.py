# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""node_facts and the health check against this machine's own cards and driver (``make test-gpu``).

What ``nvidia-smi -q -x`` was read to mean is compared with what ``nvidia-smi --query-gpu`` says, and with /sys.
"""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import gpu_details, nvidia_observe
from ansible_collections.labrack.infra.plugins.module_utils.gpu_generations import GENERATIONS
from ansible_collections.labrack.infra.plugins.module_utils.node_observe import observe_node

HEALTH = runpy.run_path(str(Path(__file__).parents[2] / "roles/slurm/files/health.py"))
FIELDS = (
    "index,uuid,name,driver_version,power.limit,power.default_limit,power.max_limit,ecc.mode.current,mig.mode.current"
)


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    """The facts of this machine; without a GPU there is nothing to test, which is an error here."""
    found = observe_node()
    if found["nvidia"]["state"] in ("absent", "no_driver"):
        pytest.exit(f"make test-gpu needs a GPU and its driver: {found['nvidia']['message']}", returncode=1)
    return found


def smi(*argv: str) -> str:
    return subprocess.run(["nvidia-smi", *argv], capture_output=True, text=True, check=True).stdout


def test_the_driver_is_whole(facts: dict[str, Any]) -> None:
    nvidia = facts["nvidia"]
    json.dumps(facts)
    assert nvidia["state"] == "ok", nvidia["message"]
    assert not nvidia["mismatch"], nvidia["reason"]
    assert nvidia["module"] == nvidia["driver"]
    assert nvidia["flavour"] in ("open", "proprietary")
    # a container may have the library in a place of its own
    assert nvidia["library"] in (nvidia["driver"], None)


def test_the_cards_are_those_that_nvidia_smi_queries(facts: dict[str, Any]) -> None:
    rows = list(csv.reader(smi(f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits").splitlines()))
    assert len(facts["gpus"]) == len(rows)
    for gpu, row in zip(facts["gpus"], rows, strict=True):
        index, uuid, name, driver, limit, default, maximum, ecc, mig = (cell.strip() for cell in row)
        assert (gpu["index"], gpu["uuid"], gpu["name"]) == (int(index), uuid, name)
        assert facts["nvidia"]["driver"] == driver
        for key, told in (("power_limit_w", limit), ("power_default_w", default), ("power_max_w", maximum)):
            assert gpu[key] == (float(told) if told[:1].isdigit() else None), key
        assert (gpu["ecc"] or {}).get("enabled") == {"Enabled": True, "Disabled": False}.get(ecc)
        assert gpu["mig"] == (mig == "Enabled")
        assert all(instance["name"] and instance["uuid"] for instance in gpu["mig_instances"])


def test_the_cards_are_plausible(facts: dict[str, Any]) -> None:
    on_bus = {device["address"]: f"10de:{device['device']}" for device in nvidia_observe.nvidia_devices()}
    for gpu in facts["gpus"]:
        assert gpu["pci"] is None or gpu["pci_id"] == on_bus[gpu["pci"]]
        assert gpu["pci"] is None or gpu["generation"] in GENERATIONS, gpu["pci_id"]
        assert gpu["memory_mib"] is None or gpu["memory_mib"] > 1000
        assert gpu["temperature_c"] is None or 0 < gpu["temperature_c"] < 110
        assert gpu["temperature_slowdown_c"] is None or 60 < gpu["temperature_slowdown_c"] < 120
        assert gpu["power_draw_w"] is None or 0 < gpu["power_draw_w"] < 3000
        assert all(process["pid"] > 0 for process in gpu["processes"])


def test_the_health_check_finds_nothing_but_old_errors(facts: dict[str, Any]) -> None:
    devices = [gpu["device"] for gpu in facts["gpus"] if gpu["device"]]
    present = [device for device in devices if os.path.exists(device)]
    found = HEALTH["problems"](devices, present, 0, smi("-L"), gpu_details.kernel_log())
    assert [problem for problem in found if " Xid " not in problem] == []
