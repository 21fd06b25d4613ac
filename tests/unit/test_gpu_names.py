"""gpu_names: the GRES type of every product name, held to a table of real ones."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils.gpu_names import slurm_type

# The names are those of the driver's table (NVIDIA/open-gpu-kernel-modules, g_nv_name_released.h) and, for Pascal and
# Volta, which it no longer has, of nvidia-smi logs in public issues. The last column is the type.
TABLE = """
GeForce 940MX                                            geforce_940mx
GeForce GT 1030                                          gt_1030
GeForce GTX 1050 Ti                                      gtx_1050_ti
GeForce GTX 1060 3GB                                     gtx_1060_3gb
GeForce GTX 1060 6GB                                     gtx_1060_6gb
GeForce GTX 1070                                         gtx_1070
GeForce GTX 1070 Ti                                      gtx_1070_ti
GeForce GTX 1080                                         gtx_1080
GeForce GTX 1080 Ti                                      gtx_1080_ti
GeForce RTX 2080 Ti                                      rtx_2080_ti
Graphics Device                                          graphics_device
GRID A100-40C                                            a100_40c
GRID A100D-1-10C                                         a100d_1_10c
GRID A100D-1-10CME                                       a100d_1_10cme
NVIDIA A10                                               a10
NVIDIA A10-24                                            a10_24
NVIDIA A10-24Q                                           a10_24q
NVIDIA A100 80GB PCIe                                    a100_80gb
NVIDIA A100-PCIE-40GB                                    a100_40gb
NVIDIA A100-SXM-64GB                                     a100_64gb
NVIDIA A100-SXM4-40GB                                    a100_40gb
NVIDIA A100-SXM4-80GB                                    a100_80gb
NVIDIA A10G                                              a10g
NVIDIA A16                                               a16
NVIDIA A2                                                a2
NVIDIA A30                                               a30
NVIDIA A30X                                              a30x
NVIDIA A40                                               a40
NVIDIA A800 40GB Active                                  a800_40gb
NVIDIA A800 80GB PCIe                                    a800_80gb
NVIDIA A800 80GB PCIe LC                                 a800_80gb
NVIDIA A800-SXM4-40GB                                    a800_40gb
NVIDIA A800-SXM4-80GB                                    a800_80gb
NVIDIA B200                                              b200
NVIDIA B300 SXM6 AC                                      b300
NVIDIA CMP 90HX                                          cmp_90hx
NVIDIA GB10                                              gb10
NVIDIA GB200                                             gb200
NVIDIA GB300                                             gb300
NVIDIA GeForce GTX 1060                                  gtx_1060
NVIDIA GeForce GTX 1080 Ti                               gtx_1080_ti
NVIDIA GeForce GTX 1650                                  gtx_1650
NVIDIA GeForce GTX 1650 Ti with Max-Q Design             gtx_1650_ti_maxq
NVIDIA GeForce GTX 1660                                  gtx_1660
NVIDIA GeForce GTX 1660 SUPER                            gtx_1660_super
NVIDIA GeForce GTX 1660 Ti                               gtx_1660_ti
NVIDIA GeForce GTX 1660 Ti with Max-Q Design             gtx_1660_ti_maxq
NVIDIA GeForce MX570                                     mx570
NVIDIA GeForce RTX 2060                                  rtx_2060
NVIDIA GeForce RTX 2060 SUPER                            rtx_2060_super
NVIDIA GeForce RTX 2060 with Max-Q Design                rtx_2060_maxq
NVIDIA GeForce RTX 2070                                  rtx_2070
NVIDIA GeForce RTX 2070 SUPER                            rtx_2070_super
NVIDIA GeForce RTX 2070 Super                            rtx_2070_super
NVIDIA GeForce RTX 2070 Super with Max-Q Design          rtx_2070_super_maxq
NVIDIA GeForce RTX 2070 with Max-Q Design                rtx_2070_maxq
NVIDIA GeForce RTX 2080                                  rtx_2080
NVIDIA GeForce RTX 2080 Super                            rtx_2080_super
NVIDIA GeForce RTX 2080 SUPER                            rtx_2080_super
NVIDIA GeForce RTX 2080 Super with Max-Q Design          rtx_2080_super_maxq
NVIDIA GeForce RTX 2080 Ti                               rtx_2080_ti
NVIDIA GeForce RTX 2080 with Max-Q Design                rtx_2080_maxq
NVIDIA GeForce RTX 3050                                  rtx_3050
NVIDIA GeForce RTX 3050 4GB Laptop GPU                   rtx_3050_4gb_laptop
NVIDIA GeForce RTX 3050 6GB Laptop GPU                   rtx_3050_6gb_laptop
NVIDIA GeForce RTX 3050 A Laptop GPU                     rtx_3050_a_laptop
NVIDIA GeForce RTX 3050 Laptop GPU                       rtx_3050_laptop
NVIDIA GeForce RTX 3050 OEM                              rtx_3050_oem
NVIDIA GeForce RTX 3050 Ti Laptop GPU                    rtx_3050_ti_laptop
NVIDIA GeForce RTX 3050Ti Laptop GPU                     rtx_3050_ti_laptop
NVIDIA GeForce RTX 3060                                  rtx_3060
NVIDIA GeForce RTX 3060 Laptop GPU                       rtx_3060_laptop
NVIDIA GeForce RTX 3060 Ti                               rtx_3060_ti
NVIDIA GeForce RTX 3070                                  rtx_3070
NVIDIA GeForce RTX 3070 Laptop GPU                       rtx_3070_laptop
NVIDIA GeForce RTX 3070 Ti                               rtx_3070_ti
NVIDIA GeForce RTX 3070 Ti Laptop GPU                    rtx_3070_ti_laptop
NVIDIA GeForce RTX 3080                                  rtx_3080
NVIDIA GeForce RTX 3080 Laptop GPU                       rtx_3080_laptop
NVIDIA GeForce RTX 3080 Ti                               rtx_3080_ti
NVIDIA GeForce RTX 3080 Ti Laptop GPU                    rtx_3080_ti_laptop
NVIDIA GeForce RTX 3090                                  rtx_3090
NVIDIA GeForce RTX 3090 Ti                               rtx_3090_ti
NVIDIA GeForce RTX 4050 Laptop GPU                       rtx_4050_laptop
NVIDIA GeForce RTX 4060                                  rtx_4060
NVIDIA GeForce RTX 4060 Laptop GPU                       rtx_4060_laptop
NVIDIA GeForce RTX 4060 Ti                               rtx_4060_ti
NVIDIA GeForce RTX 4070                                  rtx_4070
NVIDIA GeForce RTX 4070 Laptop GPU                       rtx_4070_laptop
NVIDIA GeForce RTX 4070 SUPER                            rtx_4070_super
NVIDIA GeForce RTX 4070 Ti                               rtx_4070_ti
NVIDIA GeForce RTX 4070 Ti SUPER                         rtx_4070_ti_super
NVIDIA GeForce RTX 4080                                  rtx_4080
NVIDIA GeForce RTX 4080 Laptop GPU                       rtx_4080_laptop
NVIDIA GeForce RTX 4080 SUPER                            rtx_4080_super
NVIDIA GeForce RTX 4090                                  rtx_4090
NVIDIA GeForce RTX 4090 D                                rtx_4090_d
NVIDIA GeForce RTX 4090 Laptop GPU                       rtx_4090_laptop
NVIDIA GeForce RTX 5050                                  rtx_5050
NVIDIA GeForce RTX 5050 Laptop GPU                       rtx_5050_laptop
NVIDIA GeForce RTX 5060                                  rtx_5060
NVIDIA GeForce RTX 5060 Laptop GPU                       rtx_5060_laptop
NVIDIA GeForce RTX 5060 Ti                               rtx_5060_ti
NVIDIA GeForce RTX 5070                                  rtx_5070
NVIDIA GeForce RTX 5070 Laptop GPU                       rtx_5070_laptop
NVIDIA GeForce RTX 5070 Ti                               rtx_5070_ti
NVIDIA GeForce RTX 5070 Ti Laptop GPU                    rtx_5070_ti_laptop
NVIDIA GeForce RTX 5080                                  rtx_5080
NVIDIA GeForce RTX 5080 Laptop GPU                       rtx_5080_laptop
NVIDIA GeForce RTX 5090                                  rtx_5090
NVIDIA GeForce RTX 5090 D                                rtx_5090_d
NVIDIA GeForce RTX 5090 D v2                             rtx_5090_d_v2
NVIDIA GeForce RTX 5090 Laptop GPU                       rtx_5090_laptop
NVIDIA GH200 120GB                                       gh200
NVIDIA GH200 144G HBM3e                                  gh200_144gb
NVIDIA GH200 480GB                                       gh200
NVIDIA Graphics Device                                   graphics_device
NVIDIA H100                                              h100
NVIDIA H100 80GB HBM3                                    h100_80gb
NVIDIA H100 NVL                                          h100_nvl
NVIDIA H100 PCIe                                         h100_pcie
NVIDIA H20                                               h20
NVIDIA H20-3e                                            h20_3e
NVIDIA H200                                              h200
NVIDIA H200 NVL                                          h200_nvl
NVIDIA H800                                              h800
NVIDIA H800 NVL                                          h800_nvl
NVIDIA H800 PCIe                                         h800_pcie
NVIDIA L2                                                l2
NVIDIA L20                                               l20
NVIDIA L4                                                l4
NVIDIA L40                                               l40
NVIDIA L40S                                              l40s
NVIDIA L40S-48Q                                          l40s_48q
NVIDIA RTX 1000 Ada Generation Laptop GPU                rtx_1000_ada_laptop
NVIDIA RTX 2000 Ada Generation                           rtx_2000_ada
NVIDIA RTX 2000 Ada Generation Laptop GPU                rtx_2000_ada_laptop
NVIDIA RTX 2000E Ada Generation                          rtx_2000e_ada
NVIDIA RTX 3000 Ada Generation Laptop GPU                rtx_3000_ada_laptop
NVIDIA RTX 3500 Ada Generation Laptop GPU                rtx_3500_ada_laptop
NVIDIA RTX 4000 Ada Generation                           rtx_4000_ada
NVIDIA RTX 4000 Ada Generation Laptop GPU                rtx_4000_ada_laptop
NVIDIA RTX 4000 SFF Ada Generation                       rtx_4000_sff_ada
NVIDIA RTX 4500 Ada Generation                           rtx_4500_ada
NVIDIA RTX 500 Ada Generation Laptop GPU                 rtx_500_ada_laptop
NVIDIA RTX 5000 Ada Generation                           rtx_5000_ada
NVIDIA RTX 5000 Ada Generation Laptop GPU                rtx_5000_ada_laptop
NVIDIA RTX 5880 Ada Generation                           rtx_5880_ada
NVIDIA RTX 6000 Ada Generation                           rtx_6000_ada
NVIDIA RTX 6000D                                         rtx_6000d
NVIDIA RTX A1000                                         rtx_a1000
NVIDIA RTX A1000 6GB Laptop GPU                          rtx_a1000_6gb_laptop
NVIDIA RTX A1000 Laptop GPU                              rtx_a1000_laptop
NVIDIA RTX A2000                                         rtx_a2000
NVIDIA RTX A2000 12GB                                    rtx_a2000_12gb
NVIDIA RTX A2000 8GB Laptop GPU                          rtx_a2000_8gb_laptop
NVIDIA RTX A2000 Embedded GPU                            rtx_a2000_embedded
NVIDIA RTX A2000 Laptop GPU                              rtx_a2000_laptop
NVIDIA RTX A3000 12GB Laptop GPU                         rtx_a3000_12gb_laptop
NVIDIA RTX A3000 Laptop GPU                              rtx_a3000_laptop
NVIDIA RTX A4000                                         rtx_a4000
NVIDIA RTX A4000 Laptop GPU                              rtx_a4000_laptop
NVIDIA RTX A4500                                         rtx_a4500
NVIDIA RTX A4500 Laptop GPU                              rtx_a4500_laptop
NVIDIA RTX A500 Laptop GPU                               rtx_a500_laptop
NVIDIA RTX A5000                                         rtx_a5000
NVIDIA RTX A5000 Laptop GPU                              rtx_a5000_laptop
NVIDIA RTX A5500                                         rtx_a5500
NVIDIA RTX A5500 Laptop GPU                              rtx_a5500_laptop
NVIDIA RTX A6000                                         rtx_a6000
NVIDIA RTX PRO 1000 Blackwell Generation Laptop GPU      rtx_pro_1000_laptop
NVIDIA RTX PRO 2000 Blackwell                            rtx_pro_2000
NVIDIA RTX PRO 2000 Blackwell Generation Laptop GPU      rtx_pro_2000_laptop
NVIDIA RTX PRO 3000 Blackwell Generation Laptop GPU      rtx_pro_3000_laptop
NVIDIA RTX PRO 4000 Blackwell                            rtx_pro_4000
NVIDIA RTX PRO 4000 Blackwell Generation Laptop GPU      rtx_pro_4000_laptop
NVIDIA RTX PRO 4000 Blackwell SFF Edition                rtx_pro_4000_sff
NVIDIA RTX PRO 4500 Blackwell                            rtx_pro_4500
NVIDIA RTX PRO 500 Blackwell Generation Laptop GPU       rtx_pro_500_laptop
NVIDIA RTX PRO 5000 72GB Blackwell                       rtx_pro_5000_72gb
NVIDIA RTX PRO 5000 Blackwell                            rtx_pro_5000
NVIDIA RTX PRO 5000 Blackwell Generation Laptop GPU      rtx_pro_5000_laptop
NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition  rtx_pro_6000_maxq
NVIDIA RTX PRO 6000 Blackwell Server Edition             rtx_pro_6000_server
NVIDIA RTX PRO 6000 Blackwell Workstation Edition        rtx_pro_6000_workstation
NVIDIA RTX6000-Ada-48Q                                   rtx6000_ada_48q
NVIDIA RTXA6000-8Q                                       rtxa6000_8q
NVIDIA T1000 8GB                                         t1000_8gb
NVIDIA T400                                              t400
NVIDIA T400 4GB                                          t400_4gb
NVIDIA T600                                              t600
NVIDIA T600 Laptop GPU                                   t600_laptop
NVIDIA Thor                                              thor
NVIDIA TITAN RTX                                         titan_rtx
NVIDIA TITAN V                                           titan_v
NVIDIA TITAN Xp                                          titan_xp
Orin (nvgpu)                                             orin
Quadro GP100                                             quadro_gp100
Quadro GV100                                             quadro_gv100
Quadro P2000                                             quadro_p2000
Quadro P4000                                             quadro_p4000
Quadro P5000                                             quadro_p5000
Quadro P6000                                             quadro_p6000
Quadro RTX 3000                                          quadro_rtx_3000
Quadro RTX 4000                                          quadro_rtx_4000
Quadro RTX 4000 with Max-Q Design                        quadro_rtx_4000_maxq
Quadro RTX 5000                                          quadro_rtx_5000
Quadro RTX 5000 with Max-Q Design                        quadro_rtx_5000_maxq
Quadro RTX 6000                                          quadro_rtx_6000
Quadro RTX 8000                                          quadro_rtx_8000
Quadro T1000                                             quadro_t1000
Tesla P100-PCIE-12GB                                     p100_12gb
Tesla P100-PCIE-16GB                                     p100_16gb
Tesla P100-SXM2-16GB                                     p100_16gb
Tesla P4                                                 p4
Tesla P40                                                p40
Tesla T4                                                 t4
Tesla V100-DGXS-32GB                                     v100_32gb
Tesla V100-FHHL-16GB                                     v100_fhhl_16gb
Tesla V100-PCIE-16GB                                     v100_16gb
Tesla V100-PCIE-32GB                                     v100_32gb
Tesla V100-SXM2-16GB                                     v100_16gb
Tesla V100-SXM2-32GB                                     v100_32gb
Tesla V100-SXM3-32GB                                     v100_32gb
Tesla V100S-PCIE-32GB                                    v100s_32gb
TITAN V                                                  titan_v
TITAN X (Pascal)                                         titan_x_pascal
TITAN Xp                                                 titan_xp
"""
TYPES = dict(line.rsplit(maxsplit=1) for line in TABLE.strip().splitlines())

# Names that share a type on purpose, each group with its reason.
ALIASES = (
    # SXM and PCIe (DGX Station, air or liquid cooled) of one memory size
    {"NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB"},
    {"NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"},
    {"NVIDIA A800 40GB Active", "NVIDIA A800-SXM4-40GB"},
    {"NVIDIA A800 80GB PCIe", "NVIDIA A800 80GB PCIe LC", "NVIDIA A800-SXM4-80GB"},
    {"Tesla P100-PCIE-16GB", "Tesla P100-SXM2-16GB"},
    {"Tesla V100-PCIE-16GB", "Tesla V100-SXM2-16GB"},
    {"Tesla V100-DGXS-32GB", "Tesla V100-PCIE-32GB", "Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB"},
    # one GPU beside a Grace with less or more memory
    {"NVIDIA GH200 120GB", "NVIDIA GH200 480GB"},
    # one card under an older and a newer driver
    {"GeForce GTX 1080 Ti", "NVIDIA GeForce GTX 1080 Ti"},
    {"GeForce RTX 2080 Ti", "NVIDIA GeForce RTX 2080 Ti"},
    {"Graphics Device", "NVIDIA Graphics Device"},
    {"NVIDIA TITAN V", "TITAN V"},
    {"NVIDIA TITAN Xp", "TITAN Xp"},
    # one card, spelled in two ways
    {"NVIDIA GeForce RTX 2070 SUPER", "NVIDIA GeForce RTX 2070 Super"},
    {"NVIDIA GeForce RTX 2080 SUPER", "NVIDIA GeForce RTX 2080 Super"},
    {"NVIDIA GeForce RTX 3050 Ti Laptop GPU", "NVIDIA GeForce RTX 3050Ti Laptop GPU"},
)

VALID = re.compile(r"[a-z][a-z0-9_]*")


def test_the_table_is_long_enough() -> None:
    assert len(TYPES) >= 100


@pytest.mark.parametrize(("name", "wanted"), TYPES.items())
def test_a_product_has_its_type(name: str, wanted: str) -> None:
    assert slurm_type(name) == wanted


def test_different_products_have_different_types() -> None:
    same = {frozenset(pair) for group in ALIASES for pair in combinations(sorted(group), 2)}
    found = {frozenset(pair) for pair in combinations(TYPES, 2) if slurm_type(pair[0]) == slurm_type(pair[1])}
    assert found == same


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", "unknown"), ("NVIDIA", "unknown"), ("…", "unknown"), ("3090", "gpu_3090"), (" NVIDIA  L4 ", "l4")],
)
def test_odd_texts(text: str, wanted: str) -> None:
    assert slurm_type(text) == wanted


@given(st.text())
def test_any_text_gives_a_type_that_slurm_takes(text: str) -> None:
    assert VALID.fullmatch(slurm_type(text))


@given(st.lists(st.sampled_from([*" -():,=[]", "NVIDIA", "RTX", "PRO", "80GB", "PCIe", "Max-Q", "4090", "Ti"])))
def test_any_mix_of_the_words_of_names_gives_a_type_that_slurm_takes(words: list[str]) -> None:
    assert VALID.fullmatch(slurm_type(" ".join(words)))


@given(st.sampled_from(sorted(TYPES)))
def test_a_type_is_its_own_type(name: str) -> None:
    assert slurm_type(slurm_type(name)) == slurm_type(name)
