# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The stand-in GPUs of a node: one JSON document, and the ways to break and mend a card.

The document is /etc/labrack-testnode/gpus.json on the node. The stand-in nvidia-smi reads it at each call::

    {"driver": {"loaded": true, "version": "580.95.05", "library_version": "580.95.05", "cuda_version": "13.0",
                "open": true, "packaged": false},
     "nouveau": null, "loaded" or "unloaded", "nvswitches": 0,
     "gpus": [{"minor": 0, "pci_bus_id": "00000000:07:00.0", "pci_device": "0x2230", "pci_class": "0x030000",
               "driven": true, "uuid": "GPU-…", "serial": "13…" or null, "name": "…",
               "memory_mib": 49140, "state": "ok" or "lost", "mig_mode": null, "Disabled" or "Enabled",
               "persistence_mode": "Disabled", "compute_mode": "Default", "temperature_c": 31, "power_draw_w": 22.5,
               "power_limit_w": 300.0, "utilization_percent": 0, "throttle": [], "xids": [],
               "ecc": null or {"mode": "Enabled", "volatile_corrected": 0, "volatile_uncorrected": 0,
                               "aggregate_corrected": 0, "aggregate_uncorrected": 0},
               "retired_pages": null or {"single_bit": 0, "double_bit": 0, "pending": false},
               "remapped_rows": null or {"corrected": 0, "uncorrected": 0, "pending": false, "failure": false},
               "processes": [{"pid": 123, "name": "python3", "memory_mib": 512}]}]}

``throttle`` names what slows a card down, such as hw_thermal_slowdown. ``xids`` are the Xid errors of a card since the
node's last boot, in order; a new one is also written to the node's stand-in for the kernel log,
/run/labrack-testnode/kmsg. A process is shown while its pid lives in the node.

Where the driver is ``packaged``, it comes from packages as on a machine: the stand-in modprobe writes ``loaded``,
``version``, ``open`` (the kernel modules' flavour), ``driven`` (the driver takes the card) and ``nouveau``, and the
library's version is that of the installed file.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: The document, as described above.
Document = dict[str, Any]

DRIVER_VERSION = "580.95.05"
CUDA_VERSION = "13.0"

#: The driver's text for the Xid errors that tests make, without the addresses that follow some.
#: https://docs.nvidia.com/deploy/xid-errors/ and the kernel logs in NVIDIA/NVSentinel#155
XID_TEXTS = {
    13: "Graphics Exception",
    31: "MMU Fault",
    48: "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer.",
    79: "GPU has fallen off the bus.",
    95: "Uncontained ECC error.",
    119: "Timeout after 6s of waiting for RPC response from GPU0 GSP!",
}


@dataclass(frozen=True)
class GpuSpec:
    """One card of a node."""

    #: The product's name, as nvidia-smi prints it.
    name: str = "NVIDIA RTX A6000"
    memory_mib: int = 49140
    power_limit_w: float = 300.0
    #: The card counts memory errors.
    ecc: bool = True
    #: The card can be split; a card that can't shows N/A for its MIG mode.
    mig: bool = False
    #: The numbers of its PCI device and class, as sysfs writes them; NVIDIA's vendor number is 0x10de.
    pci_device: str = "0x2230"
    pci_class: str = "0x030000"


def document(
    owner: str, gpus: Sequence[GpuSpec], driver: bool = True, nouveau: bool = False, nvswitches: int = 0
) -> Document:
    """The document for a node's cards, all well and idle; ``owner`` (lab and node) makes UUIDs its own.

    Without ``driver`` none is loaded, and it comes from packages; with ``nouveau`` that module has the cards.
    """
    version = DRIVER_VERSION if driver else None
    return {
        "driver": {
            "loaded": driver,
            "version": version,
            "library_version": version,
            "cuda_version": CUDA_VERSION,
            "open": True,
            "packaged": not driver,
        },
        "nouveau": "loaded" if nouveau else None,
        "nvswitches": nvswitches,
        "gpus": [_card(owner, minor, spec) for minor, spec in enumerate(gpus)],
    }


def _card(owner: str, minor: int, spec: GpuSpec) -> dict[str, Any]:
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{owner}/{minor}")
    counters = ("volatile_corrected", "volatile_uncorrected", "aggregate_corrected", "aggregate_uncorrected")
    return {
        "minor": minor,
        "pci_bus_id": f"00000000:{7 + 8 * minor:02X}:00.0",
        "pci_device": spec.pci_device,
        "pci_class": spec.pci_class,
        "driven": True,
        "uuid": f"GPU-{identity}",
        "serial": str(identity.int)[:13] if spec.ecc else None,
        "name": spec.name,
        "memory_mib": spec.memory_mib,
        "state": "ok",
        "mig_mode": "Disabled" if spec.mig else None,
        "persistence_mode": "Disabled",
        "compute_mode": "Default",
        "temperature_c": 31,
        "power_draw_w": 22.5,
        "power_limit_w": spec.power_limit_w,
        "utilization_percent": 0,
        "throttle": [],
        "xids": [],
        "ecc": {"mode": "Enabled", **dict.fromkeys(counters, 0)} if spec.ecc else None,
        "retired_pages": None,
        "remapped_rows": None,
        "processes": [],
    }


def lose(document: Document, minor: int) -> None:
    """Let a card fall off the bus, with the Xid that the driver reports then."""
    card = document["gpus"][minor]
    card["state"] = "lost"
    card["xids"].append(79)


def mend(document: Document, minor: int) -> None:
    """Bring a card back, as a reboot does, which also empties the kernel log."""
    card = document["gpus"][minor]
    card["state"] = "ok"
    card["xids"] = []


def log_starts_over(before: Document, after: Document) -> bool:
    """Whether a card has fewer Xid errors than before: it was mended by a reboot, whose kernel log is empty."""
    return any(len(new["xids"]) < len(old["xids"]) for old, new in zip(before["gpus"], after["gpus"], strict=True))


def kernel_lines(before: Document, after: Document, uptime: float) -> list[str]:
    """The kernel-log lines for the Xid errors that ``after`` has and ``before`` hasn't; ``uptime`` in seconds."""
    lines = []
    for old, new in zip(before["gpus"], after["gpus"], strict=True):
        pci = new["pci_bus_id"][4:-2].lower()
        for xid in new["xids"][len(old["xids"]) :]:
            lines.append(f"[{uptime:12.6f}] NVRM: Xid (PCI:{pci}): {xid}, {XID_TEXTS.get(xid, 'Unknown Error')}")
    return lines
