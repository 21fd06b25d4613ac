# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""PCI device ids and generations: real cards, and what lies next to their blocks.

Ids and names are those of the PCI ID repository (https://pci-ids.ucw.cz) and of the driver's own list.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import gpu_generations
from ansible_collections.labrack.infra.plugins.module_utils.gpu_generations import generation

#: One card a line: datacentre, workstation, GeForce, laptop, and at last systems on a chip.
CARDS = {
    "kepler": """
        1021 Tesla K20Xm
        102d Tesla K80
        118f Tesla K10
        103c Quadro K5200
        1180 GeForce GTX 680
        1004 GeForce GTX 780
        128b GeForce GT 710
    """,
    "maxwell": """
        17fd Tesla M40
        13f2 Tesla M60
        1430 Quadro M2000
        17c2 GeForce GTX TITAN X
        13c2 GeForce GTX 970
        1401 GeForce GTX 960
        1380 GeForce GTX 750 Ti
        1617 GeForce GTX 980M
        174d GeForce MX130
        1436 Quadro M2200 Mobile
    """,
    "pascal": """
        15f7 Tesla P100 PCIe 12GB
        15f8 Tesla P100 PCIe 16GB
        15f9 Tesla P100 SXM2 16GB
        1b38 Tesla P40
        1bb3 Tesla P4
        15f0 Quadro GP100
        1b30 Quadro P6000
        1c30 Quadro P2000
        1cb1 Quadro P1000
        1b00 TITAN X Pascal
        1b06 GeForce GTX 1080 Ti
        1b80 GeForce GTX 1080
        1c02 GeForce GTX 1060 3GB
        1c82 GeForce GTX 1050 Ti
        1d01 GeForce GT 1030
        1ba1 GeForce GTX 1070 Mobile
        1c60 GeForce GTX 1060 Mobile 6GB
        1d10 GeForce MX150
        1d34 Quadro P520
    """,
    "volta": """
        1db1 Tesla V100 SXM2 16GB
        1db2 Tesla V100 DGXS 16GB
        1db3 Tesla V100 FHHL 16GB
        1db4 Tesla V100 PCIe 16GB
        1db5 Tesla V100 SXM2 32GB
        1db6 Tesla V100 PCIe 32GB
        1db8 Tesla V100 SXM3 32GB
        1df6 Tesla V100S PCIe 32GB
        1dba Quadro GV100
        1d81 TITAN V
    """,
    "turing": """
        1eb8 Tesla T4
        1e30 Quadro RTX 6000/8000
        1e78 Quadro RTX 6000/8000
        1fb0 Quadro T1000 Mobile
        1e02 TITAN RTX
        1e04 GeForce RTX 2080 Ti
        1e84 GeForce RTX 2070 SUPER
        1f02 GeForce RTX 2070
        1f82 GeForce GTX 1650
        2182 GeForce GTX 1660 Ti
        2187 GeForce GTX 1650 SUPER
        21c4 GeForce GTX 1660 SUPER
        1e90 GeForce RTX 2080 Mobile
        1eb5 Quadro RTX 5000 Mobile / Max-Q
        1f11 GeForce RTX 2060 Mobile
        1f9d GeForce GTX 1650 Mobile / Max-Q
        1ff9 Quadro T1000 Mobile
        2191 GeForce GTX 1660 Ti Mobile
        21d1 GeForce GTX 1660 Ti Mobile
    """,
    "ampere": """
        20b0 A100 SXM4 40GB
        20b2 A100 SXM4 80GB
        20b5 A100 PCIe 80GB
        20b7 A30 PCIe
        20f1 A100 PCIe 40GB
        20fd AX800 Converged Accelerator
        2235 A40
        2236 A10
        2237 A10G
        25b6 A2 / A16
        2230 RTX A6000
        24b0 RTX A4000
        2531 RTX A2000
        2204 GeForce RTX 3090
        2206 GeForce RTX 3080
        2414 GeForce RTX 3060 Ti
        2484 GeForce RTX 3070
        2503 GeForce RTX 3060
        2420 GeForce RTX 3080 Ti Mobile
        24b6 RTX A5000 Mobile
        2560 GeForce RTX 3060 Mobile / Max-Q
        25a2 GeForce RTX 3050 Mobile
        25fb RTX A500 Embedded GPU
    """,
    "ada": """
        26b5 L40
        26b9 L40S
        26ba L20
        27b8 L4
        26b1 RTX 6000 Ada Generation
        26b2 RTX 5000 Ada Generation
        27b0 RTX 4000 SFF Ada Generation
        28b0 RTX 2000 / 2000E Ada Generation
        2684 GeForce RTX 4090
        2704 GeForce RTX 4080
        2782 GeForce RTX 4070 Ti
        2803 GeForce RTX 4060 Ti
        2882 GeForce RTX 4060
        2717 GeForce RTX 4090 Laptop GPU
        2757 GeForce RTX 4090 Laptop GPU
        2820 GeForce RTX 4070 Max-Q / Mobile
        27ba RTX 4000 Ada Generation Laptop GPU
        28e0 GeForce RTX 4060 Max-Q / Mobile
        28f8 RTX 2000 Ada Generation Embedded GPU
    """,
    "hopper": """
        2321 H100L 94GB
        2322 H800 PCIe
        2324 H800
        2329 H20
        2330 H100 SXM5 80GB
        2331 H100 PCIe
        2335 H200 SXM 141GB
        2339 H100 SXM5 94GB
        233b H200 NVL
        2342 GH200 120GB / 480GB
        2348 GH200 144G HBM3e
    """,
    "blackwell": """
        2901 B200
        2941 HGX GB200
        29bc B100
        3182 B300 SXM6 AC
        31c2 GB300
        2bb5 RTX PRO 6000 Blackwell Server Edition
        2bb1 RTX PRO 6000 Blackwell Workstation Edition
        2bb4 RTX PRO 6000 Blackwell Max-Q Workstation Edition
        2c34 RTX PRO 4000 Blackwell
        2b85 GeForce RTX 5090
        2c02 GeForce RTX 5080
        2d04 GeForce RTX 5060 Ti
        2d83 GeForce RTX 5050
        2f04 GeForce RTX 5070
        2c18 GeForce RTX 5090 Max-Q / Mobile
        2c39 RTX PRO 4000 Blackwell Generation Laptop GPU
        2d19 GeForce RTX 5060 Max-Q / Mobile
        2db8 RTX PRO 1000 Blackwell Generation Laptop GPU
        2f58 GeForce RTX 5070 Ti Mobile
        2e12 GB10
        2b00 Jetson AGX Thor
    """,
}

#: Display controllers next to the blocks, and NVIDIA's other functions.
NEIGHBOURS = {
    "0e22": "GeForce GTX 460 (Fermi)",
    "1040": "GeForce GT 520 (Fermi)",
    "1140": "GeForce 610M (Fermi)",
    "1200": "GeForce GTX 560 Ti (Fermi)",
    "1251": "GeForce GTX 560M (Fermi)",
    "0fbc": "GM107 High Definition Audio Controller",
    "10f0": "GP104 High Definition Audio Controller",
    "1ad6": "TU102 USB 3.1 Host Controller",
    "1aef": "GA102 High Definition Audio Controller",
    "228b": "GA104 High Definition Audio Controller",
    "2296": "Tegra PCIe Endpoint Virtual Network",
    "22a3": "H100 NVSwitch",
    "22ba": "AD102 High Definition Audio Controller",
    "22ce": "GB10 PCIe host",
    "22e8": "GB202 High Definition Audio Controller",
    "2f80": "GB205 High Definition Audio Controller",
    "2f95": "Vera Rubin CPU",
    "3000": "GR100 (Rubin)",
    "30c0": "GR102 (Rubin)",
    "3fff": "nothing yet",
}


@pytest.mark.parametrize("name", CARDS)
def test_every_card_has_the_generation_of_its_chip(name: str) -> None:
    cards = [line.split(" ", 1) for line in map(str.strip, CARDS[name].splitlines()) if line]
    assert {card: generation(f"10de:{device}") for device, card in cards} == {card: name for _device, card in cards}


@pytest.mark.parametrize(("device", "what"), NEIGHBOURS.items())
def test_what_is_next_to_a_block_is_in_none(device: str, what: str) -> None:
    assert generation(f"10de:{device}") is None, what


@pytest.mark.parametrize("text", [None, "", "10de", "10de:22301", "10de:xyz1", "1002:2230", "2230", "0x10de:0x2230"])
def test_what_is_no_id_of_nvidias_has_none(text: str | None) -> None:
    assert generation(text) is None


def test_capital_letters_are_the_same_id() -> None:
    assert generation("10DE:2B85") == "blackwell"


@given(st.integers(0, 0xFFFF))
def test_the_blocks_do_not_overlap(device: int) -> None:
    hits = [name for first, last, name in gpu_generations._BLOCKS if first <= device <= last]
    assert hits in ([], [generation(f"10de:{device:04x}")])
    assert set(hits) <= set(gpu_generations.GENERATIONS)
