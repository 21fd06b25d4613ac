# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The stand-in nvidia-smi prints and fails as the real one does (formats of the R580 driver)."""

from __future__ import annotations

import errno
import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labrack.testnode import gpus
from labrack.testnode.docker import DATA

SMI = runpy.run_path(str(DATA / "nvidia-smi"))

A6000 = gpus.GpuSpec()
GEFORCE = gpus.GpuSpec("NVIDIA GeForce RTX 4090", 24564, 450.0, ecc=False)


class Machine:
    """A root directory with the document and the device files of a node."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.capsys = capsys
        self.document = gpus.document("lab/node", [A6000, GEFORCE])
        (root / "etc/labrack-testnode").mkdir(parents=True)
        (root / "dev").mkdir()
        for minor in range(2):
            (root / f"dev/nvidia{minor}").touch()

    def run(self, *argv: str) -> tuple[int, str]:
        """Exit status and standard output of the stand-in."""
        path = self.root / "etc/labrack-testnode/gpus.json"
        path.write_text(json.dumps(self.document))
        status = SMI["main"](list(argv), self.root)
        return status, self.capsys.readouterr().out

    @property
    def uuids(self) -> list[str]:
        return [card["uuid"] for card in self.document["gpus"]]


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path, capsys)


def busy(machine: Machine, pid: int) -> None:
    machine.document["gpus"][0]["processes"] = [{"pid": pid, "name": "python3", "memory_mib": 512}]


def test_list(machine: Machine) -> None:
    status, text = machine.run("-L")
    assert status == 0
    assert text == (
        f"GPU 0: NVIDIA RTX A6000 (UUID: {machine.uuids[0]})\n"
        f"GPU 1: NVIDIA GeForce RTX 4090 (UUID: {machine.uuids[1]})\n"
    )


TABLE = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|                                         |                        |               MIG M. |
|=========================================+========================+======================|
|   0  NVIDIA RTX A6000               Off |   00000000:07:00.0 Off |                    0 |
| 30%   31C    P8             22W /  300W |       0MiB /  49140MiB |      0%      Default |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+
|   1  NVIDIA GeForce RTX 4090        Off |   00000000:0F:00.0 Off |                  N/A |
| 30%   31C    P8             22W /  450W |       0MiB /  24564MiB |      0%      Default |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+

+-----------------------------------------------------------------------------------------+
| Processes:                                                                              |
|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |
|        ID   ID                                                               Usage      |
|=========================================================================================|
|  No running processes found                                                             |
+-----------------------------------------------------------------------------------------+
"""


def test_table(machine: Machine) -> None:
    status, text = machine.run()
    date, _, table = text.partition("\n")
    assert status == 0
    assert date.endswith("       ")
    assert table == TABLE


def test_table_lists_processes(machine: Machine) -> None:
    pid = os.getpid()
    busy(machine, pid)
    _, text = machine.run()
    assert f"|    0   N/A  N/A{pid:16}      C   python3                                 512MiB |" in text
    assert "|     512MiB /  49140MiB |" in text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    name=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=60),
    memory=st.integers(1, 300_000),
    limit=st.floats(1, 2000),
    temperature=st.integers(0, 110),
    mig=st.sampled_from([None, "Disabled", "Enabled"]),
)
def test_table_stays_aligned(
    machine: Machine, name: str, memory: int, limit: float, temperature: int, mig: str | None
) -> None:
    machine.document["gpus"][0].update(
        name=name, memory_mib=memory, power_limit_w=limit, temperature_c=temperature, mig_mode=mig
    )
    _, text = machine.run()
    assert {len(line) for line in text.splitlines()[1:] if line} == {91}


REASONS = "\n".join(
    f"\t\t\t<clocks_event_reason_{name}>Not Active</clocks_event_reason_{name}>"
    for name in (
        "gpu_idle",
        "applications_clocks_setting",
        "sw_power_cap",
        "hw_slowdown",
        "hw_thermal_slowdown",
        "hw_power_brake_slowdown",
        "sync_boost",
        "sw_thermal_slowdown",
        "display_clocks_setting",
    )
)
XML = """\
<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">
<nvidia_smi_log>
	<timestamp>*</timestamp>
	<driver_version>580.95.05</driver_version>
	<cuda_version>13.0</cuda_version>
	<attached_gpus>2</attached_gpus>
	<gpu id="00000000:07:00.0">
		<product_name>NVIDIA RTX A6000</product_name>
		<persistence_mode>Disabled</persistence_mode>
		<mig_mode>
			<current_mig>N/A</current_mig>
			<pending_mig>N/A</pending_mig>
		</mig_mode>
		<mig_devices>
			None
		</mig_devices>
		<serial>{serial}</serial>
		<uuid>{uuid}</uuid>
		<minor_number>0</minor_number>
		<pci>
			<pci_bus>07</pci_bus>
			<pci_device>00</pci_device>
			<pci_domain>0000</pci_domain>
			<pci_device_id>{device}</pci_device_id>
			<pci_bus_id>00000000:07:00.0</pci_bus_id>
		</pci>
		<fan_speed>30 %</fan_speed>
		<performance_state>P8</performance_state>
		<clocks_event_reasons>
{reasons}
		</clocks_event_reasons>
		<fb_memory_usage>
			<total>49140 MiB</total>
			<reserved>491 MiB</reserved>
			<used>512 MiB</used>
			<free>48137 MiB</free>
		</fb_memory_usage>
		<compute_mode>Default</compute_mode>
		<utilization>
			<gpu_util>0 %</gpu_util>
		</utilization>
		<ecc_mode>
			<current_ecc>Enabled</current_ecc>
			<pending_ecc>Enabled</pending_ecc>
		</ecc_mode>
		<ecc_errors>
			<volatile>
				<dram_correctable>0</dram_correctable>
				<dram_uncorrectable>3</dram_uncorrectable>
			</volatile>
			<aggregate>
				<dram_correctable>0</dram_correctable>
				<dram_uncorrectable>0</dram_uncorrectable>
			</aggregate>
		</ecc_errors>
		<retired_pages>
			<multiple_single_bit_retirement>
				<retired_count>1</retired_count>
			</multiple_single_bit_retirement>
			<double_bit_retirement>
				<retired_count>2</retired_count>
			</double_bit_retirement>
			<pending_retirement>Yes</pending_retirement>
		</retired_pages>
		{rows}
		<temperature>
			<gpu_temp>31 C</gpu_temp>
			<gpu_temp_tlimit>N/A</gpu_temp_tlimit>
			<gpu_temp_max_threshold>98 C</gpu_temp_max_threshold>
			<gpu_temp_slow_threshold>95 C</gpu_temp_slow_threshold>
		</temperature>
		<gpu_power_readings>
			<average_power_draw>22.50 W</average_power_draw>
			<instant_power_draw>22.50 W</instant_power_draw>
			<current_power_limit>300.00 W</current_power_limit>
			<requested_power_limit>300.00 W</requested_power_limit>
			<default_power_limit>300.00 W</default_power_limit>
			<min_power_limit>100.00 W</min_power_limit>
			<max_power_limit>300.00 W</max_power_limit>
		</gpu_power_readings>
		<fabric>
			<state>N/A</state>
			<status>N/A</status>
		</fabric>
		<processes>
			<process_info>
				<gpu_instance_id>N/A</gpu_instance_id>
				<compute_instance_id>N/A</compute_instance_id>
				<pid>{pid}</pid>
				<type>C</type>
				<process_name>python3</process_name>
				<used_memory>512 MiB</used_memory>
			</process_info>
		</processes>
	</gpu>
</nvidia_smi_log>
"""


ROWS = """\
<remapped_rows>
			<remapped_row_corr>4</remapped_row_corr>
			<remapped_row_unc>1</remapped_row_unc>
			<remapped_row_pending>Yes</remapped_row_pending>
			<remapped_row_failure>No</remapped_row_failure>
		</remapped_rows>"""


@pytest.mark.parametrize(
    ("on_bus", "remapped", "device", "rows"),
    [
        (False, None, "N/A", "<remapped_rows>N/A</remapped_rows>"),
        (True, {"corrected": 4, "uncorrected": 1, "pending": True, "failure": False}, "223010DE", ROWS),
    ],
)
def test_xml(machine: Machine, on_bus: bool, remapped: dict[str, Any] | None, device: str, rows: str) -> None:
    if on_bus:
        folder = machine.root / "run/labrack-testnode/sys/bus/pci/devices/0000:07:00.0"
        folder.mkdir(parents=True)
        (folder / "device").write_text("0x2230\n")
        (folder / "vendor").write_text("0x10de\n")
    card = machine.document["gpus"][0]
    card["ecc"]["volatile_uncorrected"] = 3
    card["remapped_rows"] = remapped
    card["retired_pages"] = {"single_bit": 1, "double_bit": 2, "pending": True}
    busy(machine, os.getpid())
    status, text = machine.run("-q", "-x", "-i", "0")
    lines = text.splitlines()
    lines[3] = "\t<timestamp>*</timestamp>"
    assert status == 0
    assert (
        lines
        == XML.format(
            serial=card["serial"], uuid=card["uuid"], pid=os.getpid(), device=device, rows=rows, reasons=REASONS
        ).splitlines()
    )


FIELDS = (
    "index,uuid,name,memory.total,utilization.gpu,power.draw,mig.mode.current,ecc.errors.uncorrected.volatile.total"
)


def test_query(machine: Machine) -> None:
    assert machine.run(f"--query-gpu={FIELDS}", "--format=csv") == (
        0,
        "index, uuid, name, memory.total [MiB], utilization.gpu [%], power.draw [W], mig.mode.current, "
        "ecc.errors.uncorrected.volatile.total\n"
        f"0, {machine.uuids[0]}, NVIDIA RTX A6000, 49140 MiB, 0 %, 22.50 W, [N/A], 0\n"
        f"1, {machine.uuids[1]}, NVIDIA GeForce RTX 4090, 24564 MiB, 0 %, 22.50 W, [N/A], [N/A]\n",
    )


def test_query_without_header_and_units(machine: Machine) -> None:
    query = "--query-gpu=index, memory.total, power.limit, serial"
    assert machine.run(query, "--format=csv,noheader,nounits", "-i", "1") == (0, "1, 24564, 450.00, [N/A]\n")


def test_query_shows_the_first_name_of_a_field(machine: Machine) -> None:
    _, text = machine.run("--query-gpu=gpu_name,gpu_bus_id", "--format=csv")
    assert text.splitlines()[0] == "name, pci.bus_id"


@pytest.mark.parametrize("field", ["foo", "minor_number"])
def test_unknown_field(machine: Machine, field: str) -> None:
    expected = (2, f'Field "{field}" is not a valid field to query.\n\n')
    assert machine.run(f"--query-gpu=index,{field}", "--format=csv") == expected


@pytest.mark.parametrize(
    ("wanted", "minors"),
    [("1", [1]), ("0,1", [0, 1]), ("00000000:0F:00.0", [1]), ("0000:0f:00.0", [1]), ("0F:00.0", [1])],
)
def test_selection(machine: Machine, wanted: str, minors: list[int]) -> None:
    _, text = machine.run("--query-gpu=index", "--format=csv,noheader", "-i", wanted)
    assert [int(line) for line in text.split()] == minors


def test_selection_by_uuid(machine: Machine) -> None:
    assert machine.run("--query-gpu=index", "--format=csv,noheader", "-i", machine.uuids[1]) == (0, "1\n")


def test_selection_without_a_match(machine: Machine) -> None:
    assert machine.run("-L", "-i", "7") == (6, "No devices were found\n")


APPS = "--query-compute-apps=pid,gpu_uuid,process_name,used_memory"


def test_compute_apps(machine: Machine) -> None:
    busy(machine, os.getpid())
    assert machine.run(APPS, "--format=csv") == (
        0,
        f"pid, gpu_uuid, process_name, used_gpu_memory [MiB]\n{os.getpid()}, {machine.uuids[0]}, python3, 512 MiB\n",
    )


def test_compute_apps_shows_living_processes_only(machine: Machine) -> None:
    busy(machine, 2**30)
    assert machine.run(APPS, "--format=csv,noheader") == (0, "")


def test_no_driver(machine: Machine) -> None:
    machine.document["driver"]["loaded"] = False
    assert machine.run() == (
        9,
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
        "Make sure that the latest NVIDIA driver is installed and running.\n\n",
    )


def test_version_mismatch(machine: Machine) -> None:
    machine.document["driver"]["library_version"] = "580.105.08"
    assert machine.run("-L") == (
        18,
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105\n",
    )


REBOOT = "GPU is lost.  Reboot the system to recover this GPU\n"
LOST_1 = f"Unable to determine the device handle for GPU1: 0000:0F:00.0: {REBOOT}"


def test_lost_card_is_named_before_the_others(machine: Machine) -> None:
    gpus.lose(machine.document, 1)
    assert machine.run("--query-gpu=index,name", "--format=csv,noheader") == (0, f"{LOST_1}0, NVIDIA RTX A6000\n")


def test_asking_for_a_lost_card(machine: Machine) -> None:
    gpus.lose(machine.document, 1)
    assert machine.run("-q", "-x", "-i", "1") == (6, f"{LOST_1}No devices were found\n")


def test_older_driver_stops_at_a_lost_card(machine: Machine) -> None:
    machine.document["driver"].update(version="550.54.14", library_version="550.54.14")
    gpus.lose(machine.document, 1)
    assert machine.run("-L") == (15, f"Unable to determine the device handle for GPU0000:0F:00.0: {REBOOT}")


def test_mended_card_is_back(machine: Machine) -> None:
    before = machine.run("-L")
    gpus.lose(machine.document, 1)
    gpus.mend(machine.document, 1)
    assert machine.run("-L") == before


def test_no_cards(machine: Machine) -> None:
    machine.document["gpus"] = []
    assert machine.run() == (6, "No devices were found\n")


@pytest.mark.parametrize(
    ("number", "shown"), [(errno.EPERM, False), (errno.EACCES, False), (errno.ENOENT, False), (errno.ENXIO, True)]
)
def test_cards_that_cannot_be_opened_are_hidden(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, number: int, shown: bool
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).endswith("nvidia0"):
            raise OSError(number, os.strerror(number))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    _, text = machine.run("--query-gpu=index,name,count", "--format=csv,noheader")
    rows = (
        ["0, NVIDIA GeForce RTX 4090, 1"] if not shown else ["0, NVIDIA RTX A6000, 2", "1, NVIDIA GeForce RTX 4090, 2"]
    )
    assert text.splitlines() == rows


@pytest.mark.parametrize("argv", [["-q"], ["-x"], ["dmon"], ["--query-gpu=index"], ["--gpu-reset"]])
def test_what_the_stand_in_does_not_know_is_refused(machine: Machine, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        machine.run(*argv)
    assert ended.value.code == 2


def test_library_of_a_packaged_driver_is_the_installed_one(machine: Machine) -> None:
    machine.document["driver"].update(packaged=True, library_version=None)
    status, out = machine.run("-L")
    assert status == 12
    assert out.startswith("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.")
    folder = machine.root / "usr/lib/x86_64-linux-gnu"
    folder.mkdir(parents=True)
    (folder / "libnvidia-ml.so.595.91.07").touch()
    (folder / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.595.91.07")
    status, out = machine.run("-L")
    assert (status, out.splitlines()[-1]) == (18, "NVML library version: 595.91")
    machine.document["driver"]["version"] = "595.91.07"
    assert machine.run("-L")[0] == 0


def test_card_that_the_driver_does_not_take_is_not_listed(machine: Machine) -> None:
    machine.document["gpus"][1]["driven"] = False
    status, out = machine.run("-L")
    assert (status, len(out.splitlines())) == (0, 1)


def test_power_limit_is_set_and_shown(machine: Machine) -> None:
    uuid = machine.uuids[0]
    (machine.root / "run/labrack-testnode").mkdir(parents=True)
    status, said = machine.run("-i", uuid, "-pl", "250")
    assert (status, said.splitlines()) == (
        0,
        ["Power limit for GPU 00000000:07:00.0 was set to 250.00 W from 300.00 W.", "All done."],
    )
    query = ("--query-gpu=power.limit,power.default_limit", "--format=csv,noheader", "-i", uuid)
    assert machine.run(*query) == (0, "250.00 W, 300.00 W\n")
    assert "<current_power_limit>250.00 W</current_power_limit>" in machine.run("-q", "-x")[1]


def test_power_limit_out_of_range_is_refused(machine: Machine) -> None:
    status, said = machine.run("-i", machine.uuids[0], "-pl", "500")
    assert status == 2
    assert said.startswith("Provided power limit 500.00 W is not a valid power limit which should be between 100.00 W")
