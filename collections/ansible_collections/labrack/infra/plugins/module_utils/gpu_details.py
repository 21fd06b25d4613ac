# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How each NVIDIA GPU is: power, temperature, memory errors, MIG instances, processes, and the Xids of this boot.

Read-only, standard library only, never raises. All but the Xids comes from the one ``nvidia-smi -q -x`` that
``nvidia_observe`` ran; element names changed between driver branches (R535 ``gpu_power_readings``, R550
``average_power_draw``, T.Limit margins since Hopper and Ada), and all of them are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict
from xml.etree import ElementTree

from ansible_collections.labrack.infra.plugins.module_utils.gpu_generations import generation
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text
from ansible_collections.labrack.infra.plugins.module_utils.nvidia_observe import (
    Gpu,
    Runner,
    element_address,
    gpu_elements,
    number,
    nvidia_devices,
    value,
)

#: A test node's kernel log; on a machine the kernel's own is read.
TESTNODE_KERNEL_LOG = "run/labrack-testnode/kmsg"
KERNEL_LOG = "dev/kmsg"
#: One read gives one record, which is never longer (Linux Documentation/ABI/testing/dev-kmsg, CONSOLE_EXT_LOG_MAX).
_RECORD_BYTES = 8192
#: More records than the largest usual log buffer holds; ends the reading of a log that grows as fast as it is read.
_MAX_RECORDS = 200_000
#: What can slow a card down.
THROTTLE = ("sw_power_cap", "hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
#: The last Xids of a card that are kept.
MAX_XIDS = 100

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}:[0-9A-Fa-f]{2})[^)]*\): (\d+)")
_MIG_LINE = re.compile(r"^\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: ([^)\s]+)\)")
_GPU_LINE = re.compile(r"^GPU \d+: .*\(UUID: ([^)\s]+)\)")


class Ecc(TypedDict):
    """Error correction: whether it is ``enabled``, and the errors since the driver was loaded, None where not told."""

    enabled: bool
    corrected: int | None
    uncorrected: int | None


class RetiredPages(TypedDict):
    """Memory that was taken out of use: pages until Turing, rows remapped to spare ones since Ampere.

    ``pending`` waits for a reset of the card; ``failure`` says that a row found no spare one (the card is due for
    replacement) and is None where pages are retired, which knows no such thing.
    """

    count: int
    pending: bool
    failure: bool | None


class GpuDetails(TypedDict):
    """What :class:`Gpu` does not say of a card; None and [] where it can't be told, as without a working driver."""

    pci_id: str | None
    generation: str | None
    power_limit_w: float | None
    power_default_w: float | None
    power_max_w: float | None
    power_draw_w: float | None
    temperature_c: int | None
    temperature_slowdown_c: int | None
    throttle: list[str]
    ecc: Ecc | None
    retired_pages: RetiredPages | None
    mig_instances: list[dict[str, Any]]
    xids: list[int]
    processes: list[dict[str, Any]]


def gpu_details(
    cards: Iterable[Gpu], smi_output: str, xids: dict[str, list[int]], root: Path, smi_runner: Runner
) -> list[GpuDetails]:
    """Return the details of each card, in order, from what ``nvidia-smi -q -x`` printed and from the PCI bus.

    ``smi_runner`` runs a second ``nvidia-smi -L`` only where a card is split: the XML leaves out the names and, with
    most drivers, the UUIDs of MIG instances.
    """
    elements = {element_address(element) or index: element for index, element in gpu_elements(smi_output)}
    instances = parse_mig(smi_runner(["nvidia-smi", "-L"]).out) if "<mig_device>" in smi_output else {}
    on_bus = {device["address"]: f"10de:{device['device']}" for device in nvidia_devices(root)}
    found = []
    for card in cards:
        element = elements.get(card["pci"] or card["index"])
        details = parse_details(ElementTree.Element("gpu") if element is None else element, instances)
        details["pci_id"] = details["pci_id"] or on_bus.get(card["pci"] or "")
        details["generation"] = generation(details["pci_id"])
        details["xids"] = xids.get(card["pci"] or "", [])
        found.append(details)
    return found


def parse_details(
    gpu: ElementTree.Element, instances: dict[tuple[str, int], tuple[str, str]] | None = None
) -> GpuDetails:
    """Return the details that a ``<gpu>`` element of ``nvidia-smi -q -x`` holds (any branch since R450)."""
    pci_id = re.fullmatch(r"(?:0x)?([0-9A-Fa-f]{4})10DE", value(gpu, "pci/pci_device_id") or "")
    # until R530; later branches have the module's power beside the GPU's
    power = "gpu_power_readings" if gpu.find("gpu_power_readings") is not None else "power_readings"
    return GpuDetails(
        pci_id=f"10de:{pci_id.group(1).lower()}" if pci_id else None,
        generation=None,
        power_limit_w=_watts(gpu, power, "current_power_limit", "power_limit"),
        power_default_w=_watts(gpu, power, "default_power_limit"),
        power_max_w=_watts(gpu, power, "max_power_limit"),
        power_draw_w=_watts(gpu, power, "power_draw", "average_power_draw", "instant_power_draw"),
        temperature_c=_degrees(gpu, "gpu_temp"),
        temperature_slowdown_c=_slowdown(gpu),
        throttle=_throttle(gpu),
        ecc=_ecc(gpu),
        retired_pages=_retired_pages(gpu),
        mig_instances=_mig_instances(gpu, instances or {}),
        xids=[],
        processes=_processes(gpu),
    )


def parse_mig(listing: str) -> dict[tuple[str, int], tuple[str, str]]:
    """Return (profile, UUID) of each MIG instance that ``nvidia-smi -L`` lists, by the card's UUID and its index.

    A line is ``  MIG 3g.20gb     Device  0: (UUID: MIG-…)`` under that of its card
    (https://docs.nvidia.com/datacenter/tesla/mig-user-guide/).
    """
    found = {}
    card = ""
    for line in listing.splitlines():
        gpu, mig = _GPU_LINE.match(line), _MIG_LINE.match(line)
        if gpu:
            card = gpu.group(1)
        elif mig:
            found[card, int(mig.group(2))] = (mig.group(1), mig.group(3))
    return found


def kernel_xids(log: str) -> dict[str, list[int]]:
    """Return the Xids of a kernel log by PCI address (0000:07:00.0), in order, the last :data:`MAX_XIDS` of each.

    The line is ``NVRM: Xid (PCI:0000:07:00): 79, pid=…`` (https://docs.nvidia.com/deploy/xid-errors/); with MIG the
    instance follows the address.
    """
    found: dict[str, list[int]] = {}
    for domain, device, xid in _XID.findall(log):
        found.setdefault(f"{int(domain, 16):04x}:{device.lower()}.0", []).append(int(xid))
    return {address: xids[-MAX_XIDS:] for address, xids in found.items()}


def kernel_log(root: Path = Path("/")) -> str:
    """Return the kernel's log since boot, as far as its buffer goes back; "" where it can't be read."""
    test = read_text(root / TESTNODE_KERNEL_LOG)
    if test is not None:
        return test
    lines = []
    try:
        log = os.open(root / KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        for _record in range(_MAX_RECORDS):
            try:
                record = os.read(log, _RECORD_BYTES)
            except BrokenPipeError:
                # the record was overwritten meanwhile; the next read goes on with the oldest one left
                continue
            if not record:
                break
            lines.append(record)
    except OSError:
        # EAGAIN: there is no more
        pass
    finally:
        os.close(log)
    return b"".join(lines).decode("utf-8", "replace")


def _watts(gpu: ElementTree.Element, readings: str, *names: str) -> float | None:
    for name in names:
        found = re.match(r"\d+(?:\.\d+)?", value(gpu, f"{readings}/{name}") or "")
        if found:
            return float(found.group())
    return None


def _degrees(gpu: ElementTree.Element, name: str) -> int | None:
    found = re.match(r"-?\d{1,4}", value(gpu, f"temperature/{name}") or "")
    return int(found.group()) if found else None


def _slowdown(gpu: ElementTree.Element) -> int | None:
    """Where the hardware slows down; of a card that only tells margins (T.Limit), the margin on top of what it has."""
    absolute = _degrees(gpu, "gpu_temp_slow_threshold")
    now, margin, slow = (_degrees(gpu, f"gpu_temp{end}") for end in ("", "_tlimit", "_slow_tlimit_threshold"))
    if absolute is not None or now is None or margin is None or slow is None:
        return absolute
    return now + margin - slow


def _throttle(gpu: ElementTree.Element) -> list[str]:
    """What slows the card down now, such as ``hw_thermal_slowdown``; that it has nothing to do is no such thing."""
    # until R530, and since
    groups = (("clocks_throttle_reasons", "clocks_throttle_reason"), ("clocks_event_reasons", "clocks_event_reason"))
    return [
        name for name in THROTTLE if any(value(gpu, f"{group}/{prefix}_{name}") == "Active" for group, prefix in groups)
    ]


def _ecc(gpu: ElementTree.Element) -> Ecc | None:
    mode = value(gpu, "ecc_mode/current_ecc")
    if mode not in ("Enabled", "Disabled"):
        return None
    counters = gpu.find("ecc_errors/volatile")
    corrected: list[int] = []
    uncorrected: list[int] = []
    for counter in [] if counters is None else counters:
        # until Volta single_bit/total and double_bit/total; then by memory, with R550 also by kind
        until_volta = counter.tag in ("single_bit", "double_bit")
        errors = number(value(counter, "total") if until_volta else (counter.text or "").strip())
        if errors is not None:
            (uncorrected if counter.tag == "double_bit" or "_uncorr" in counter.tag else corrected).append(errors)
    return Ecc(
        enabled=mode == "Enabled",
        corrected=sum(corrected) if corrected else None,
        uncorrected=sum(uncorrected) if uncorrected else None,
    )


def _retired_pages(gpu: ElementTree.Element) -> RetiredPages | None:
    rows = [number(value(gpu, f"remapped_rows/remapped_row_{kind}")) for kind in ("corr", "unc")]
    if None not in rows:
        return RetiredPages(
            count=sum(filter(None, rows)),
            pending=value(gpu, "remapped_rows/remapped_row_pending") == "Yes",
            failure=value(gpu, "remapped_rows/remapped_row_failure") == "Yes",
        )
    kinds = ("multiple_single_bit_retirement", "double_bit_retirement")
    pages = [number(value(gpu, f"retired_pages/{kind}/retired_count")) for kind in kinds]
    if None not in pages:
        # pending_blacklist is its older name
        pending = [value(gpu, f"retired_pages/pending_{name}") for name in ("retirement", "blacklist")]
        return RetiredPages(count=sum(filter(None, pages)), pending="Yes" in pending, failure=None)
    return None


def _processes(gpu: ElementTree.Element) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for process in gpu.findall("processes/process_info"):
        entry = {
            "pid": number(value(process, "pid")),
            # a program can write anything over its own arguments, secrets too: only the program's name is kept
            "name": (value(process, "process_name") or "").split(" ")[0][:120],
            "memory_mib": number(value(process, "used_memory")),
        }
        # one that computes and draws may be listed as both
        if entry not in found:
            found.append(entry)
    return found


def _mig_instances(gpu: ElementTree.Element, instances: dict[tuple[str, int], tuple[str, str]]) -> list[dict[str, Any]]:
    found = []
    for device in gpu.findall("mig_devices/mig_device"):
        name, uuid = instances.get(
            (value(gpu, "uuid") or "", number(value(device, "index")) or 0), (None, value(device, "uuid"))
        )
        memory = number(value(device, "fb_memory_usage/total"))
        found.append({"name": name, "uuid": uuid, "memory_mib": memory})
    return found
