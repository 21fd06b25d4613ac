# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which NVIDIA GPUs a node has and whether their driver works. Read-only, standard library only, never raises.

One ``nvidia-smi -q -x`` tells nearly all. Where it fails, the driver's ``/proc`` files and the PCI bus still name the
cards. Exit codes of nvidia-smi are NVML's (nvmlReturn_t): 6 no device, 9 driver not loaded, 12 library missing,
15 GPU lost, 18 driver and library differ; texts win over codes, because a lost card also exits with 255 or 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Callable, TypedDict
from xml.etree import ElementTree

from ansible_collections.labrack.infra.plugins.module_utils.gpu_names import slurm_type
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, read_text, run

#: How a command is run; tests pass their own.
Runner = Callable[[list[str]], Done]

SMI = ["nvidia-smi", "-q", "-x"]
#: Seconds; a card that fell off the bus can hang nvidia-smi.
SMI_TIMEOUT = 20.0

DRIVER_PROC = "proc/driver/nvidia"
#: A container can't have files in /proc: the test node keeps the driver's files here, read only where /proc has none.
TESTNODE_DRIVER_PROC = "run/labrack-testnode/proc/driver/nvidia"

PCI_BUS = "sys/bus/pci/devices"
#: Nor in /sys: the same for the PCI bus, read only where /sys shows no NVIDIA display controller.
TESTNODE_PCI_BUS = "run/labrack-testnode/sys/bus/pci/devices"
#: VGA and 3D controllers.
DISPLAY_CLASSES = ("0x0300", "0x0302")

_LOST = re.compile(
    r"GPU is lost|Unable to determine the device handle|fallen off the bus|GPU requires reset", re.IGNORECASE
)
_MISMATCH = re.compile(r"driver/library version mismatch", re.IGNORECASE)
_NO_DRIVER = re.compile(r"couldn't communicate with the NVIDIA driver|driver is not loaded", re.IGNORECASE)
_GPU_BLOCK = re.compile(r"<gpu id=.*?</gpu>", re.DOTALL)
_PCI = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", re.IGNORECASE)
VERSION = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")


class Gpu(TypedDict):
    """One card: ``index`` as nvidia-smi counts, ``minor`` and ``device`` as in ``/dev``, ``pci`` as in ``/sys``.

    ``memory_mib`` is None where the GPU shares the machine's (GB10, Jetson) and where only the driver's files or the
    PCI bus could be read; ``slurm_type`` is None for a card known by its PCI numbers alone.
    """

    index: int
    minor: int | None
    uuid: str | None
    name: str
    memory_mib: int | None
    pci: str | None
    device: str | None
    mig: bool
    slurm_type: str | None


class PciDevice(TypedDict):
    """A device of NVIDIA's on the bus: ``address`` (0000:07:00.0), ``device`` (2230) and ``kind`` (0x030000)."""

    address: str
    device: str
    kind: str


class Nvidia(TypedDict):
    """The driver: ``state`` (ok, absent, no_driver, mismatch, lost or error), its version, and what nvidia-smi said."""

    state: str
    driver: str | None
    message: str


def run_smi(argv: list[str]) -> Done:
    """Run nvidia-smi for at most :data:`SMI_TIMEOUT` seconds."""
    return run(argv, timeout=SMI_TIMEOUT)


def observe_nvidia(root: Path = Path("/"), runner: Runner = run_smi) -> tuple[list[Gpu], Nvidia]:
    """Return the usable cards and the driver's state.

    With a lost card the others are listed, those that nvidia-smi kept silent about from the driver's files; the indices
    stay as they were. Without a working driver the cards are those of the driver's files, else of the PCI bus.
    """
    done = runner(SMI)
    text = f"{done.out}\n{done.err}"
    listed = parse_smi(done.out)
    driven = driver_cards(root)
    known = driven or pci_cards(root)
    state, message = classify(done, bool(listed), bool(known) or has_device_files(root))
    cards = listed
    if state == "lost":
        lost = {_pci(line) for line in text.splitlines() if _LOST.search(line)} - {None}
        cards = [card for card in merge(listed, driven) if card["pci"] not in lost and not _LOST.search(card["name"])]
    elif state != "ok":
        cards = known
    return cards, Nvidia(state=state, driver=driver_version(root, done.out), message=message)


def classify(done: Done, listed: bool, known: bool) -> tuple[str, str]:
    """Return the state and one line of explanation for a finished nvidia-smi.

    ``listed`` says that its XML held a card, ``known`` that the machine shows signs of an NVIDIA card without it.
    A warning beside a complete list (rc 14, corrupted infoROM) is still ``ok``.
    """
    text = f"{done.out}\n{done.err}"
    message = _message(text)
    if _LOST.search(text):
        return "lost", message
    if done.rc == 18 or _MISMATCH.search(text):
        return "mismatch", message
    if listed and "</nvidia_smi_log>" in done.out:
        return "ok", message
    if done.rc in (9, 12, 127) or _NO_DRIVER.search(text):
        missing = "nvidia-smi is not installed" if done.rc == 127 else message
        return ("no_driver", missing) if known else ("absent", "no NVIDIA GPU found")
    if not known and (done.rc in (0, 6) or "No devices were found" in text):
        return "absent", "no NVIDIA GPU found"
    return "error", message or f"nvidia-smi ended with {done.rc} and an incomplete answer"


def parse_smi(text: str) -> list[Gpu]:
    """Return the cards of ``nvidia-smi -q -x``, in its order.

    Each ``<gpu>`` element is read by itself: messages between them and a truncated end cost only the card they hit.
    """
    return [
        _gpu(
            index,
            value(element, "product_name") or "",
            minor=number(value(element, "minor_number")),
            uuid=value(element, "uuid"),
            memory_mib=number(value(element, "fb_memory_usage/total")),
            pci=element_address(element),
            mig=value(element, "mig_mode/current_mig") == "Enabled",
        )
        for index, element in gpu_elements(text)
    ]


def gpu_elements(text: str) -> list[tuple[int, ElementTree.Element]]:
    """Return the readable ``<gpu>`` elements of ``nvidia-smi -q -x`` with their index."""
    elements = []
    for index, block in enumerate(_GPU_BLOCK.findall(text)):
        try:
            elements.append((index, ElementTree.fromstring(block)))  # noqa: S314  (the node's own nvidia-smi)
        except (ElementTree.ParseError, ValueError):
            continue
    return elements


def element_address(element: ElementTree.Element) -> str | None:
    """Return the PCI address of a ``<gpu>`` element as /sys writes it, None for a GPU that is on no bus (Orin)."""
    return _pci(value(element, "pci/pci_bus_id") or element.get("id") or "")


def driver_cards(root: Path = Path("/")) -> list[Gpu]:
    """Return the cards of ``/proc/driver/nvidia/gpus/*/information``, sorted by PCI address; [] without the driver."""
    cards: list[Gpu] = []
    for path in sorted(_driver_proc(root).glob("gpus/*/information")):
        fields = {}
        for line in (read_text(path) or "").splitlines():
            key, _colon, value = line.partition(":")
            fields[key.strip()] = value.strip()
        uuid = fields.get("GPU UUID", "")
        cards.append(
            _gpu(
                len(cards),
                fields.get("Model", ""),
                minor=number(fields.get("Device Minor")),
                uuid=uuid if uuid and "?" not in uuid else None,
                pci=_pci(path.parent.name),
            )
        )
    return cards


def pci_cards(root: Path = Path("/")) -> list[Gpu]:
    """Return NVIDIA's display controllers (PCI class 0x0300 and 0x0302) by bus address; they have no product name."""
    cards: list[Gpu] = []
    for device in nvidia_devices(root):
        if device["kind"].startswith(DISPLAY_CLASSES):
            card = _gpu(len(cards), f"PCI device 10de:{device['device']}", pci=device["address"])
            card["slurm_type"] = None
            cards.append(card)
    return cards


def nvidia_devices(root: Path = Path("/")) -> list[PciDevice]:
    """Return NVIDIA's devices on the PCI bus by address; those of the test node where /sys has no NVIDIA card."""
    devices = _bus(root / PCI_BUS)
    if any(device["kind"].startswith(DISPLAY_CLASSES) for device in devices):
        return devices
    return _bus(root / TESTNODE_PCI_BUS) or devices


def has_device_files(root: Path = Path("/")) -> bool:
    """Return whether a card's device file (``/dev/nvidia0`` …) is there."""
    return any((root / "dev").glob("nvidia[0-9]*"))


def merge(listed: Iterable[Gpu], known: Iterable[Gpu]) -> list[Gpu]:
    """Return the cards of both, as ``listed`` describes them where it can, in nvidia-smi's order (PCI address)."""
    cards = {card["pci"] or f"#{card['index']}": card for card in known}
    cards.update({card["pci"] or f"#{card['index']}": card for card in listed})
    merged = [cards[key] for key in sorted(cards)]
    for index, card in enumerate(merged):
        card["index"] = index
    return merged


def driver_version(root: Path = Path("/"), smi_output: str = "") -> str | None:
    """Return the driver's version: nvidia-smi's own word, else that of the loaded kernel module, else None."""
    said = re.search(r"<driver_version>([^<]*)</driver_version>", smi_output)
    for text in (said.group(1) if said else "", module_text(root)):
        found = VERSION.search(text)
        if found:
            return found.group()
    return None


def module_text(root: Path = Path("/")) -> str:
    """Return what the loaded kernel module says of itself (/proc/driver/nvidia/version), "" when none is loaded."""
    return read_text(_driver_proc(root) / "version") or ""


def _driver_proc(root: Path) -> Path:
    real = root / DRIVER_PROC
    return real if real.is_dir() else root / TESTNODE_DRIVER_PROC


def _gpu(
    index: int,
    name: str,
    minor: int | None = None,
    uuid: str | None = None,
    memory_mib: int | None = None,
    pci: str | None = None,
    mig: bool = False,
) -> Gpu:
    return Gpu(
        index=index,
        minor=minor,
        uuid=uuid,
        name=name,
        memory_mib=memory_mib,
        pci=pci,
        device=None if minor is None else f"/dev/nvidia{minor}",
        mig=mig,
        slurm_type=slurm_type(name),
    )


def value(element: ElementTree.Element, path: str) -> str | None:
    """Return the text of a child, or None where it is missing or nvidia-smi has nothing to say."""
    text = (element.findtext(path) or "").strip()
    return None if text in ("", "N/A", "[N/A]", "Not Supported") else text


def number(text: str | None) -> int | None:
    """Return the leading number of "81559 MiB", None without one."""
    found = re.match(r"[0-9]{1,12}", text or "")
    return int(found.group()) if found else None


def _pci(text: str) -> str | None:
    """The first PCI address in a text as /sys writes it: "00000000:4F:00.0" is 0000:4f:00.0."""
    found = _PCI.search(text)
    if not found:
        return None
    return f"{int(found.group(1), 16):04x}:{found.group(2).lower()}"


def _bus(folder: Path) -> list[PciDevice]:
    return [
        PciDevice(address=path.name, device=_hex(path / "device")[2:], kind=_hex(path / "class"))
        for path in sorted(folder.glob("*"))
        if _hex(path / "vendor") == "0x10de"
    ]


def _hex(path: Path) -> str:
    return (read_text(path) or "").strip().lower()


def _message(text: str) -> str:
    """What nvidia-smi said besides its XML, in one line; where cards are lost, only what it said of them."""
    lines = text.splitlines()
    said = [re.sub(r"<[^>]*>", " ", line).strip() for line in lines if _LOST.search(line)]
    # inside the XML every line is a tag or indented
    said = said or [line.strip() for line in lines if line[:1].strip() and not line.startswith("<")]
    return " ".join(dict.fromkeys(said))[:300]
