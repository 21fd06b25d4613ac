# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From an NVIDIA product name to the GRES type that researchers ask Slurm for (``--gres=gpu:rtx_4090:2``).

The product names are those of the driver's own table (NVIDIA/open-gpu-kernel-modules
``src/nvidia/generated/g_nv_name_released.h``), as ``nvidia-smi`` prints them. Only the one name counts, so that a new
card in the lab never renames the type of another. The types are not substrings of NVML's names: gres.conf needs
``AutoDetect=off`` or none.
"""

from __future__ import annotations

import re

#: The type of a card whose name has no letter or digit left.
UNKNOWN = "unknown"

#: Applied in this order to the lower-case name, each with its reason.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # makers' prefixes come and go with the driver: "NVIDIA" since 470, "GRID" until vGPU 13, "Tesla" until Ampere
        (r"\b(nvidia|grid|tesla)\b", " "),
        # "GeForce" stays only where a digit would come first ("GeForce 940MX"); RTX, GTX, GT and MX say enough
        (r"\bgeforce\s+(?=[a-z])", " "),
        # the driver of Jetson modules, not the card
        (r"\(nvgpu\)", " "),
        (r"\bmax-q\b", "maxq"),
        # desktop, laptop and embedded cards differ; "GPU", "Generation", "Edition", "with … Design" add nothing
        (r"\b(laptop|embedded) gpu\b", r"\1"),
        (r"\b(generation|edition|with|design)\b", " "),
        # Max-Q is a workstation card; RTX PRO began with Blackwell, its server and workstation cards differ
        (r"\bmaxq workstation\b", "maxq"),
        (r"\b(rtx pro\b.*?) blackwell\b", r"\1"),
        # one card, spelled both ways in the driver's table: "RTX 3050Ti", "RTX 3050 Ti"
        (r"\b(\d{4})ti\b", r"\1 ti"),
        # "120GB" and "480GB" are Grace's memory: the GPU has 96 GB in both; "144G" is the GPU's
        (r"\b(gh200) (120|480)gb\b", r"\1"),
        (r"\b(\d+)g\b", r"\1gb"),
        # SXM is what a data-centre card is when nothing else is said; cooling (air, liquid, fan) changes no result
        (r"\b(sxm\d*|dgxs|ac|lc|active)\b", " "),
        # bus and memory kind matter to nobody once the size is named; without it they tell H100 PCIe from H100
        (r"\b(pcie|hbm\d\w*)\b(?=.*\b\d+gb\b)|(?<=\dgb)\W+(pcie|hbm\d\w*)\b", " "),
    )
)


def slurm_type(name: str) -> str:
    """Return the GRES type of a product name: always ``[a-z][a-z0-9_]*``, for any text, ``unknown`` for an empty one.

    A type that starts with a digit would be read as a count (``--gres=gpu:3090``), and ``:``, ``,``, ``(``, ``[`` and
    blanks are separators of Slurm's GRES syntax (https://slurm.schedmd.com/gres.html); hence letters first and only
    letters, digits and ``_``. Cards of one memory size share a type whether SXM or PCIe (``a100_80gb``), cards of
    different memory do not. The rules and their reasons are in ``_RULES``.
    """
    text = name.lower()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    slug = "_".join(re.findall(r"[a-z0-9]+", text))
    if not slug:
        return UNKNOWN
    return slug if slug[0].isalpha() else f"gpu_{slug}"
