# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the parts of NVIDIA's driver agree: loaded module, library, module on disk, packages, kernels, Secure Boot.

Read-only, standard library only, never raises. One ``modinfo`` tells of the modules of all installed kernels;
everything else is read from files.
"""

from __future__ import annotations

import fnmatch
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text
from ansible_collections.labrack.infra.plugins.module_utils.nvidia_observe import (
    VERSION,
    Gpu,
    Nvidia,
    Runner,
    driver_cards,
    gpu_elements,
    module_text,
    nvidia_devices,
    pci_cards,
    value,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import is_active

#: The packages of the driver: Ubuntu, Debian, NVIDIA's repositories for both and, with ``kmod-``, for RHEL.
DRIVER_PACKAGES = (
    "cuda-drivers*",
    "kmod-nvidia*",
    "libnvidia-compute*",
    "linux-modules-nvidia-*",
    "nvidia-dkms-*",
    "nvidia-driver*",
    "nvidia-fabric-manager*",
    "nvidia-fabricmanager*",
    "nvidia-headless-*",
    "nvidia-kernel-*",
    "nvidia-open*",
    "nvidia-utils*",
)
FABRIC_MANAGER = ("nvidia-fabric-manager", "nvidia-fabricmanager", "nvidia-fabricmanager-[0-9]*")

#: Kernel modules in ``modules.dep``; Debian names its own nvidia-current and loads it by an alias.
_MODULE = re.compile(r"^(\S*/nvidia(?:-current|-open)*\.ko(?:\.\w+)?):", re.MULTILINE)
#: Where a module is that depmod(8) does not know yet.
_MODULE_PLACES = ("updates/dkms/nvidia.ko*", "updates/dkms/nvidia-current*.ko*", "extra/nvidia.ko*")
_LIBRARY = re.compile(r"libnvidia-ml\.so\.(\d{3,}\.[\d.]*\d)")

#: The free driver, when it is loaded: in /sys, and as a test node says it.
NOUVEAU = ("sys/module/nouveau", "run/labrack-testnode/sys/module/nouveau")

#: The variable of the UEFI specification ("Globally Defined Variables"); four bytes of attributes, then the value.
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
#: The keys that dkms makes and signs with: Debian and RHEL, Ubuntu.
MOK_KEYS = ("var/lib/dkms/mok.pub", "var/lib/shim-signed/mok/MOK.der")


class Kernel(TypedDict):
    """An installed kernel: whether its ``headers`` are there, and its ``nvidia`` module (None: none, or unreadable)."""

    release: str
    running: bool
    headers: bool
    nvidia: str | None


def observe_driver(
    root: Path,
    nvidia: Nvidia,
    cards: Sequence[Gpu],
    smi_output: str,
    installed: Mapping[str, str],
    kernels: Iterable[Kernel],
    flavour_on_disk: str | None,
    xids: Mapping[str, list[int]],
) -> dict[str, Any]:
    """Return the facts ``nvidia``: those that ``nvidia_observe`` found, and how the driver's parts fit together.

    ``installed`` are packages with versions, of which those of :data:`DRIVER_PACKAGES` count; ``kernels`` and
    ``flavour_on_disk`` are those of :func:`observe_kernels`; ``xids`` those of the kernel log by PCI address.
    """
    text = module_text(root)
    in_text = VERSION.search(text)
    module = in_text.group() if in_text else (read_text(root / "sys/module/nvidia/version") or "").strip() or None
    library = library_version(root)
    on_disk = next((kernel["nvidia"] for kernel in kernels if kernel["running"]), None)
    nouveau = any((root / folder).is_dir() for folder in NOUVEAU)
    packages = matching(installed, DRIVER_PACKAGES)
    fabric = matching(packages, FABRIC_MANAGER)
    mismatch, reboot_needed, reason = compare(module, library, on_disk, nouveau, nvidia)
    present = {card["pci"] for card in cards}
    lost = [card for card in driver_cards(root) or pci_cards(root) if card["pci"] not in present]
    return {
        **nvidia,
        "module": module,
        "flavour": None if not in_text else "open" if "Open Kernel Module" in text else "proprietary",
        "library": library,
        "module_on_disk": on_disk,
        "flavour_on_disk": flavour_on_disk if on_disk else None,
        "packages": packages,
        "mismatch": mismatch,
        "reboot_needed": reboot_needed,
        "reason": reason,
        "lost": [
            {"pci": card["pci"], "xids": xids.get(card["pci"] or "", [])} for card in lost if nvidia["state"] == "lost"
        ],
        "nvswitch": any(device["kind"].startswith("0x0680") for device in nvidia_devices(root)),
        "nvlink": nvlink(smi_output, cards),
        "fabric_manager": {
            "version": next(iter(fabric.values()), None),
            "active": is_active("nvidia-fabricmanager", root),
        },
        "nouveau": nouveau,
        "persistence": persistence(smi_output),
    }


def compare(
    module: str | None, library: str | None, on_disk: str | None, nouveau: bool, nvidia: Nvidia
) -> tuple[bool, bool, str]:
    """Return whether loaded module and library differ, whether a reboot is needed, and why in one line or "". Pure.

    A driver that is not loaded at all needs no reboot to be loaded, unless nouveau holds the cards.
    """
    reasons = []
    if nouveau and (library or on_disk):
        reasons.append("nouveau is loaded in the place of the installed driver")
    mismatch = nvidia["state"] == "mismatch" or bool(module and library and module != library)
    if mismatch:
        # nvidia-smi can know it of a library that was not found here
        loaded = f"module {module}" if module else "module"
        on_path = f"library {library}" if library and library != module else "library"
        reasons.append(f"the loaded {loaded} and the {on_path} differ")
    if module and on_disk and module != on_disk:
        reasons.append(f"module {module} is loaded, the running kernel's on disk is {on_disk}")
    return mismatch, bool(reasons), "; ".join(reasons)


def observe_kernels(root: Path, running: str, runner: Runner) -> tuple[list[Kernel], str | None]:
    """Return the installed kernels, oldest release first, and the flavour of the running one's nvidia module on disk.

    NVIDIA's open modules have the license "Dual MIT/GPL" (open-gpu-kernel-modules ``kernel-open/nvidia/nv.c``), the
    proprietary ones "NVIDIA". A module that ``modinfo`` can't read has no version.
    """
    folders = sorted(
        (
            folder
            for folder in (root / "lib/modules").glob("*")
            if (folder / "kernel").is_dir() or (folder.name == running and folder.is_dir())
        ),
        key=lambda folder: [(not part.isdigit(), part.zfill(9)) for part in re.findall(r"\d+|[^\d.-]+", folder.name)],
    )
    modules = {folder.name: found for folder in folders for found in [_nvidia_module(folder)] if found}
    about = _modinfo(runner(["modinfo", *map(str, modules.values())]).out) if modules else {}
    kernels = [
        Kernel(
            release=folder.name,
            running=folder.name == running,
            headers=(folder / "build").is_dir(),
            nvidia=about.get(str(modules.get(folder.name)), {}).get("version"),
        )
        for folder in folders
    ]
    license_ = about.get(str(modules.get(running)), {}).get("license")
    return kernels, None if not license_ else "proprietary" if license_ == "NVIDIA" else "open"


def library_version(root: Path = Path("/")) -> str | None:
    """Return the version of the NVML library that programs load, from its file name; None where there is none."""
    multiarch = f"usr/lib/{platform.machine()}-linux-gnu"
    for folder in (multiarch, f"{multiarch}/nvidia/current", f"{multiarch}/nvidia", "usr/lib64", "usr/lib"):
        # the link is what a program follows, when an old file was left behind
        names = [os.path.basename(os.path.realpath(root / folder / "libnvidia-ml.so.1"))]
        names += sorted(path.name for path in (root / folder).glob("libnvidia-ml.so.*.*"))
        found = next((match for match in map(_LIBRARY.fullmatch, names) if match), None)
        if found:
            return found.group(1)
    return None


def secure_boot(root: Path = Path("/")) -> dict[str, Any]:
    """Return ``state`` (enabled, disabled, unsupported: no UEFI; None: can't be told) and ``mok``.

    ``mok`` says that a key for signing modules lies on the disk, not that the firmware trusts it: only
    ``mokutil --test-key`` can tell whether it was enrolled.
    """
    firmware = root / "sys/firmware"
    try:
        last = (root / SECURE_BOOT).read_bytes()[-1:]
    except OSError:
        last = b""
    state = {b"\x01": "enabled", b"\x00": "disabled"}.get(last)
    # a container sees an empty /sys/firmware
    if state is None and not (firmware / "efi").is_dir() and any(firmware.glob("*")):
        state = "unsupported"
    return {"state": state, "mok": any((root / key).is_file() for key in MOK_KEYS)}


def nvlink(smi_output: str, cards: Sequence[Gpu]) -> bool | None:
    """Return whether cards are joined by NVLink, None where ``nvidia-smi -q`` does not tell.

    It tells of links through NVSwitches alone: their fabric is then set up. One card has nobody to be joined with.
    """
    states = {
        (value(element, "fabric/state"), value(element, "fabric/status")) for _, element in gpu_elements(smi_output)
    }
    if ("Completed", "Success") in states:
        return True
    return False if len(cards) < 2 else None


def persistence(smi_output: str) -> bool | None:
    """Return whether the driver stays loaded for all cards when nobody uses them, None where it isn't told."""
    modes = {value(element, "persistence_mode") for _, element in gpu_elements(smi_output)} - {None}
    return modes == {"Enabled"} if modes else None


def matching(installed: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Return the packages whose name fits a pattern, by name."""
    patterns = list(patterns)
    return {
        name: version
        for name, version in sorted(installed.items())
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def _nvidia_module(folder: Path) -> Path | None:
    """The file of a kernel's nvidia module, from depmod's list, which knows which of several wins."""
    listed = _MODULE.search("\n" + (read_text(folder / "modules.dep") or ""))
    if listed and (folder / listed.group(1)).exists():
        return folder / listed.group(1)
    return next((path for place in _MODULE_PLACES for path in sorted(folder.glob(place))), None)


def _modinfo(text: str) -> dict[str, dict[str, str]]:
    """Version and license by file name, from the output of modinfo(8) for several files."""
    about: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        key, _colon, rest = line.partition(":")
        if key == "filename":
            current = about.setdefault(rest.strip(), {})
        elif key in ("version", "license"):
            current.setdefault(key, rest.strip())
    return about
