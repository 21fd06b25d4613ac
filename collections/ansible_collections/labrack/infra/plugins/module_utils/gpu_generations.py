# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From an NVIDIA PCI device id to the generation of its chip.

NVIDIA gives each chip blocks of device ids of its own. The blocks are those of the PCI ID repository
(https://pci-ids.ucw.cz, where a device's name starts with its chip's: "AD102 [GeForce RTX 4090]") and hold every id of
the driver's own list (NVIDIA/open-gpu-kernel-modules ``README.md`` and ``src/nvidia/generated/g_nv_name_released.h``,
595.45.04). Audio and USB functions, bridges and switches have ids outside of them.
"""

from __future__ import annotations

import re

#: Oldest first.
GENERATIONS = ("kepler", "maxwell", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell")

#: First and last device id of each block. 1040-1140 and 1200-127f are Fermi's, 3000 and on but 3180-323f Rubin's.
_BLOCKS: tuple[tuple[int, int, str], ...] = (
    (0x0FC0, 0x103F, "kepler"),
    (0x1180, 0x11FF, "kepler"),
    (0x1280, 0x133F, "kepler"),
    (0x1340, 0x143F, "maxwell"),
    (0x15C0, 0x15FF, "pascal"),
    (0x1600, 0x16FF, "maxwell"),
    (0x1720, 0x173F, "pascal"),
    (0x1740, 0x17FF, "maxwell"),
    (0x1B00, 0x1D7F, "pascal"),
    (0x1D80, 0x1DFF, "volta"),
    (0x1E00, 0x1FFF, "turing"),
    (0x2080, 0x20FF, "ampere"),
    (0x2180, 0x21FF, "turing"),
    (0x2200, 0x227F, "ampere"),
    (0x2300, 0x23FF, "hopper"),
    (0x2400, 0x25FF, "ampere"),
    (0x2680, 0x28FF, "ada"),
    (0x2900, 0x2F7F, "blackwell"),
    (0x3180, 0x323F, "blackwell"),
)


def generation(pci_id: str | None) -> str | None:
    """Return the generation of "10de:2230", one of :data:`GENERATIONS`; None for any other text, maker or id."""
    found = re.fullmatch(r"10de:([0-9a-f]{4})", (pci_id or "").lower())
    if not found:
        return None
    device = int(found.group(1), 16)
    return next((name for first, last, name in _BLOCKS if first <= device <= last), None)
