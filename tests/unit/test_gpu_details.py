# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How each GPU is, from recorded answers of ``nvidia-smi -q -x`` and from kernel logs.

The documents under fixtures/nvidia_smi were printed by real drivers and published with
influxdata/telegraf (plugins/inputs/nvidia_smi/testdata); serial numbers and UUIDs are made up, the lists of supported
clocks are cut, the indentation is the program's own.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import gpu_details, nvidia_observe
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done

FIXTURES = Path(__file__).parent / "fixtures/nvidia_smi"
NOWHERE = Path("/nonexistent")

#: Whole answers, and what they say: R515 to R595, pages and rows, thresholds and margins.
RECORDED: dict[str, dict[str, Any]] = {
    "tesla_t4_r515": {
        "pci_id": "10de:1eb8",
        "generation": "turing",
        "power_limit_w": 70.0,
        "power_default_w": 70.0,
        "power_max_w": 70.0,
        "power_draw_w": 26.78,
        "temperature_c": 40,
        "temperature_slowdown_c": 93,
        "throttle": [],
        "ecc": {"enabled": True, "corrected": 0, "uncorrected": 0},
        "retired_pages": {"count": 0, "pending": False, "failure": None},
        "mig_instances": [],
        "xids": [],
        "processes": [
            {"pid": 675, "name": "/usr/lib/xorg/Xorg", "memory_mib": 22},
            {"pid": 5762, "name": "python", "memory_mib": 1005},
        ],
    },
    "a100_mig_r535": {
        "pci_id": "10de:20b2",
        "generation": "ampere",
        "power_limit_w": 500.0,
        "power_default_w": 500.0,
        "power_max_w": 500.0,
        "power_draw_w": 67.03,
        "temperature_c": 27,
        "temperature_slowdown_c": 89,
        "throttle": [],
        "ecc": {"enabled": True, "corrected": 0, "uncorrected": 0},
        "retired_pages": None,
        "mig_instances": [{"name": None, "uuid": None, "memory_mib": 19968}] * 4,
        "xids": [],
        "processes": [],
    },
    "rtx_3060_r570": {
        "pci_id": "10de:2487",
        "generation": "ampere",
        "power_limit_w": 170.0,
        "power_default_w": 170.0,
        "power_max_w": 190.0,
        "power_draw_w": 11.6,
        "temperature_c": 42,
        "temperature_slowdown_c": 95,
        "throttle": [],
        "ecc": None,
        "retired_pages": None,
        "mig_instances": [],
        "xids": [],
        "processes": [],
    },
    "rtx_4000_sff_ada_r595": {
        "pci_id": "10de:27b0",
        "generation": "ada",
        "power_limit_w": 70.0,
        "power_default_w": 70.0,
        "power_max_w": 70.0,
        "power_draw_w": 8.81,
        "temperature_c": 38,
        "temperature_slowdown_c": 38 + 49 + 2,
        "throttle": [],
        "ecc": {"enabled": False, "corrected": None, "uncorrected": None},
        "retired_pages": {"count": 0, "pending": False, "failure": False},
        "mig_instances": [],
        "xids": [],
        "processes": [
            {"pid": 1842, "name": "cosmic-comp", "memory_mib": 410},
            {"pid": 3190, "name": "/usr/bin/code", "memory_mib": 451},
            {"pid": 4937, "name": "python", "memory_mib": 160},
            {"pid": 34626, "name": "/usr/lib/chromium/chromium", "memory_mib": 183},
        ],
    },
}

LISTING = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: {card})
  MIG 1g.20gb     Device  0: (UUID: MIG-00000000-0000-4000-8000-000000000000)
  MIG 1g.20gb     Device  1: (UUID: MIG-00000000-0000-4000-8000-000000000001)
  MIG 1g.20gb     Device  2: (UUID: MIG-00000000-0000-4000-8000-000000000002)
  MIG 1g.20gb     Device  3: (UUID: MIG-00000000-0000-4000-8000-000000000003)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-another)
  MIG 3g.40gb     Device  0: (UUID: MIG-another)
"""


def no_command(argv: list[str]) -> Done:
    pytest.fail(f"ran {argv}")


def details(
    text: str, root: Path = NOWHERE, runner: nvidia_observe.Runner = no_command, **xids: list[int]
) -> list[dict[str, Any]]:
    """The details of the cards of an answer; ``runner`` is asked for what the answer leaves out."""
    found = gpu_details.gpu_details(nvidia_observe.parse_smi(text), text, xids, root, runner)
    return [dict(card) for card in found]


def recorded(name: str) -> str:
    return (FIXTURES / f"{name}.xml").read_text(encoding="utf-8")


def one(inside: str) -> dict[str, Any]:
    """The details of a card of which the answer has only these elements."""
    (card,) = details(f'<gpu id="00000000:07:00.0">\n<product_name>X</product_name>\n{inside}\n</gpu>')
    return card


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_answer(name: str) -> None:
    assert details(recorded(name), runner=lambda _argv: Done(1, "", "")) == [RECORDED[name]]


def test_the_names_of_mig_instances_come_from_the_list() -> None:
    text = recorded("a100_mig_r535")
    uuid = nvidia_observe.parse_smi(text)[0]["uuid"]
    asked = []

    def runner(argv: list[str]) -> Done:
        asked.append(argv)
        return Done(0, LISTING.format(card=uuid), "")

    (card,) = details(text, runner=runner)
    assert card["mig_instances"] == [
        {"name": "1g.20gb", "uuid": f"MIG-00000000-0000-4000-8000-00000000000{index}", "memory_mib": 19968}
        for index in range(4)
    ]
    assert asked == [["nvidia-smi", "-L"]]


@pytest.mark.parametrize(
    ("readings", "draw", "limit"),
    [
        (
            "<power_readings><power_draw>4.61 W</power_draw><power_limit>75.00 W</power_limit></power_readings>",
            4.61,
            75.0,
        ),
        (
            "<gpu_power_readings><power_draw>17.89 W</power_draw><current_power_limit>220.00 W</current_power_limit>"
            "</gpu_power_readings><module_power_readings><power_draw>900.00 W</power_draw></module_power_readings>",
            17.89,
            220.0,
        ),
        # RTX PRO 6000 with R580: netdata/netdata, rtx-pro-6000-driver-580.xml
        (
            "<gpu_power_readings><power_draw> N/A </power_draw><average_power_draw> N/A </average_power_draw>"
            "<instant_power_draw> 66.84 W </instant_power_draw></gpu_power_readings>",
            66.84,
            None,
        ),
        ("<gpu_power_readings><power_draw>[Unknown Error]</power_draw></gpu_power_readings>", None, None),
    ],
)
def test_power_by_every_name(readings: str, draw: float | None, limit: float | None) -> None:
    card = one(readings)
    assert (card["power_draw_w"], card["power_limit_w"]) == (draw, limit)


@pytest.mark.parametrize(
    ("temperature", "slowdown"),
    [
        ("<gpu_temp>38 C</gpu_temp><gpu_temp_slow_threshold>82 C</gpu_temp_slow_threshold>", 82),
        # L4: a margin of 39 degrees, slowing down 2 below none
        (
            "<gpu_temp>45 C</gpu_temp><gpu_temp_tlimit>39 C</gpu_temp_tlimit>"
            "<gpu_temp_slow_tlimit_threshold>-2 C</gpu_temp_slow_tlimit_threshold>",
            86,
        ),
        ("<gpu_temp>45 C</gpu_temp><gpu_temp_tlimit>N/A</gpu_temp_tlimit>", None),
        ("<gpu_temp>N/A</gpu_temp>", None),
    ],
)
def test_where_a_card_slows_down(temperature: str, slowdown: int | None) -> None:
    assert one(f"<temperature>{temperature}</temperature>")["temperature_slowdown_c"] == slowdown


@pytest.mark.parametrize(
    ("mode", "volatile", "ecc"),
    [
        (
            "Enabled",
            "<single_bit><device_memory>3</device_memory><total>4</total></single_bit>"
            "<double_bit><device_memory>N/A</device_memory><total>1</total></double_bit>",
            {"enabled": True, "corrected": 4, "uncorrected": 1},
        ),
        (
            "Enabled",
            "<sram_correctable>1</sram_correctable><sram_uncorrectable>2</sram_uncorrectable>"
            "<dram_correctable>10</dram_correctable><dram_uncorrectable>20</dram_uncorrectable>",
            {"enabled": True, "corrected": 11, "uncorrected": 22},
        ),
        (
            "Enabled",
            "<sram_correctable>0</sram_correctable><sram_uncorrectable_parity>1</sram_uncorrectable_parity>"
            "<sram_uncorrectable_secded>2</sram_uncorrectable_secded><dram_uncorrectable>4</dram_uncorrectable>",
            {"enabled": True, "corrected": 0, "uncorrected": 7},
        ),
        (
            "Disabled",
            "<dram_correctable>N/A</dram_correctable>",
            {"enabled": False, "corrected": None, "uncorrected": None},
        ),
        ("N/A", "<dram_correctable>N/A</dram_correctable>", None),
    ],
)
def test_memory_errors_of_every_generation(mode: str, volatile: str, ecc: dict[str, Any] | None) -> None:
    text = (
        f"<ecc_mode><current_ecc>{mode}</current_ecc></ecc_mode><ecc_errors><volatile>{volatile}</volatile>"
        "<aggregate><dram_uncorrectable>99</dram_uncorrectable></aggregate></ecc_errors>"
    )
    assert one(text)["ecc"] == ecc


PAGES = (
    "<retired_pages><multiple_single_bit_retirement><retired_count>{0}</retired_count></multiple_single_bit_retirement>"
    "<double_bit_retirement><retired_count>{1}</retired_count></double_bit_retirement>{2}</retired_pages>"
)
ROWS = (
    "<remapped_rows><remapped_row_corr>2</remapped_row_corr><remapped_row_unc>1</remapped_row_unc>"
    "<remapped_row_pending>{0}</remapped_row_pending><remapped_row_failure>{1}</remapped_row_failure></remapped_rows>"
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            PAGES.format(1, 2, "<pending_retirement>Yes</pending_retirement>"),
            {"count": 3, "pending": True, "failure": None},
        ),
        (
            PAGES.format(0, 0, "<pending_blacklist>No</pending_blacklist>"),
            {"count": 0, "pending": False, "failure": None},
        ),
        (PAGES.format("N/A", "N/A", "") + ROWS.format("Yes", "No"), {"count": 3, "pending": True, "failure": False}),
        (ROWS.format("No", "Yes"), {"count": 3, "pending": False, "failure": True}),
        (PAGES.format("N/A", "N/A", "") + "<remapped_rows>N/A</remapped_rows>", None),
    ],
)
def test_retired_memory(text: str, wanted: dict[str, Any] | None) -> None:
    assert one(text)["retired_pages"] == wanted


def process(name: str) -> str:
    return (
        f"<process_info><pid>7</pid><process_name>{name}</process_name><used_memory>52 MiB</used_memory></process_info>"
    )


def test_the_arguments_of_a_process_are_not_shown() -> None:
    text = process("/opt/chrome --type=gpu-process --token=hunter2")
    (shown,) = one(f"<processes>{text}</processes>")["processes"]
    assert shown == {"pid": 7, "name": "/opt/chrome", "memory_mib": 52}


def test_a_process_listed_for_computing_and_drawing_is_one() -> None:
    assert len(one(f"<processes>{process('python') * 2}</processes>")["processes"]) == 1


def test_without_nvidia_smi_the_bus_tells_the_generation(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    folder.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("class", "0x030000"), ("device", "0x2684")):
        (folder / name).write_text(text + "\n")
    cards = nvidia_observe.pci_cards(tmp_path)
    (card,) = gpu_details.gpu_details(cards, "", {"0000:01:00.0": [79]}, tmp_path, no_command)
    assert (card["pci_id"], card["generation"], card["xids"]) == ("10de:2684", "ada", [79])
    assert card["power_limit_w"] is None and card["ecc"] is None and card["processes"] == []


LOG = """\
6,1,0,-;Linux version 6.1.0
4,812,5,-;NVRM: Xid (PCI:0000:07:00): 31, pid=77, name=python3, Ch 00000008, intr 00000000. MMU Fault
4,813,6,-;NVRM: Xid (PCI:0000:07:00 GPU-I:05): 13, pid=77, Graphics Exception
4,814,7,-;NVRM: Xid (PCI:000F:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
4,815,8,-;NVRM: Xid (PCI:0000:07:00): 31, pid=78, name=python3
"""


def test_the_xids_of_the_kernel_log() -> None:
    assert gpu_details.kernel_xids(LOG) == {"0000:07:00.0": [31, 13, 31], "000f:01:00.0": [79]}


def test_only_the_last_xids_are_kept() -> None:
    lines = [f"NVRM: Xid (PCI:0000:07:00): {number}, x" for number in range(250)]
    assert gpu_details.kernel_xids("\n".join(lines)) == {"0000:07:00.0": list(range(150, 250))}


def test_a_test_nodes_kernel_log_is_read_before_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text("real")
    assert gpu_details.kernel_log(tmp_path) == "real"
    (tmp_path / "run/labrack-testnode").mkdir(parents=True)
    (tmp_path / "run/labrack-testnode/kmsg").write_text("stand-in")
    assert gpu_details.kernel_log(tmp_path) == "stand-in"
    assert gpu_details.kernel_log(tmp_path / "nowhere") == ""


def test_the_kernel_log_is_read_record_by_record_until_there_is_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text("")
    # a record, one that was overwritten before it was read, the next, and no more for now
    answers: list[bytes | OSError] = [b"6,1,0,-;one\n", BrokenPipeError(), b"6,9,0,-;two\n", BlockingIOError()]

    def read(_descriptor: int, size: int) -> bytes:
        assert size >= 8192
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "read", read)
    assert gpu_details.kernel_log(tmp_path) == "6,1,0,-;one\n6,9,0,-;two\n"
    assert answers == []


@settings(max_examples=60)
@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_nothing_that_a_driver_writes_into_a_value_raises(name: str, data: st.DataObject) -> None:
    text = recorded(name)
    at = [match.span(1) for match in re.finditer(r">([^<>\n]+)</", text)]
    junk = st.text(st.characters(exclude_characters="<&>", exclude_categories=["Cc", "Cs"]), max_size=12)
    words = st.one_of(junk, st.sampled_from(["N/A", "[Unknown Error]", "-1", "1e99 W", "ERR!", "GPU requires reset"]))
    for start, end in sorted(data.draw(st.sets(st.sampled_from(at), max_size=20)), reverse=True):
        text = text[:start] + data.draw(words) + text[end:]
    (card,) = details(text, runner=lambda _argv: Done(0, data.draw(junk), ""))
    assert set(card) == set(RECORDED[name])
    json.dumps(card)
