# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the parts of NVIDIA's driver agree, from fake trees and from what modinfo and dpkg print."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import driver_observe, nvidia_observe, systemd
from ansible_collections.labrack.infra.plugins.module_utils.driver_observe import Kernel
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
ARM = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (dvs-builder@U22)\n"
GCC = "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
OK = nvidia_observe.Nvidia(state="ok", driver="580.95.05", message="")
MULTIARCH = f"usr/lib/{platform.machine()}-linux-gnu"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def link(root: Path, name: str, target: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


def facts(root: Path, nvidia: nvidia_observe.Nvidia = OK, on_disk: str | None = None, **rest: Any) -> dict[str, Any]:
    """The facts of a machine whose running kernel has this module."""
    kernels = [
        Kernel(release="6.1", running=False, headers=True, nvidia="1.0.0"),
        Kernel(release="6.12", running=True, headers=True, nvidia=on_disk),
    ]
    given_facts = {"cards": [], "smi_output": "", "installed": {}, "flavour_on_disk": "open", "xids": {}, **rest}
    return driver_observe.observe_driver(root, nvidia=nvidia, kernels=kernels, **given_facts)


@pytest.mark.parametrize(
    ("text", "module", "flavour"),
    [
        (OPEN, "580.95.05", "open"),
        (ARM, "580.95.05", "open"),
        (CLOSED, "535.183.01", "proprietary"),
        ("", None, None),
    ],
)
def test_the_loaded_module(tmp_path: Path, text: str, module: str | None, flavour: str | None) -> None:
    if text:
        write(tmp_path, {"proc/driver/nvidia/version": text + GCC})
    found = facts(tmp_path)
    assert (found["module"], found["flavour"]) == (module, flavour)


def test_sysfs_names_the_loaded_module_where_proc_does_not(tmp_path: Path) -> None:
    found = facts(write(tmp_path, {"sys/module/nvidia/version": "580.95.05\n"}))
    assert (found["module"], found["flavour"]) == ("580.95.05", None)


@pytest.mark.parametrize("folder", [MULTIARCH, f"{MULTIARCH}/nvidia/current", "usr/lib64", "usr/lib"])
def test_the_library_of_every_distribution(tmp_path: Path, folder: str) -> None:
    write(tmp_path, {f"{folder}/libnvidia-ml.so.580.95.05": "", f"{folder}/libnvidia-ml.so": ""})
    assert driver_observe.library_version(tmp_path) == "580.95.05"


def test_the_library_that_programs_load_counts_where_an_old_one_was_left(tmp_path: Path) -> None:
    write(tmp_path, {f"{MULTIARCH}/libnvidia-ml.so.{version}": "" for version in ("570.1.2", "580.95.05", "595.1.2")})
    link(tmp_path, f"{MULTIARCH}/libnvidia-ml.so.1", "libnvidia-ml.so.580.95.05")
    assert driver_observe.library_version(tmp_path) == "580.95.05"


def test_no_library(tmp_path: Path) -> None:
    write(tmp_path, {f"{MULTIARCH}/libnvidia-ml.so.1": "", "usr/lib/i386-linux-gnu/libnvidia-ml.so.580.95.05": ""})
    assert driver_observe.library_version(tmp_path) is None


NOUVEAU = "nouveau is loaded in the place of the installed driver"


@pytest.mark.parametrize(
    ("module", "library", "on_disk", "nouveau", "state", "wanted"),
    [
        ("580.1.1", "580.1.1", "580.1.1", False, "ok", (False, False, "")),
        (None, None, None, False, "absent", (False, False, "")),
        # installed and not loaded yet: modprobe is enough
        (None, "580.1.1", "580.1.1", False, "no_driver", (False, False, "")),
        (None, "580.1.1", "580.1.1", True, "no_driver", (False, True, NOUVEAU)),
        # the machine's own driver
        (None, None, None, True, "no_driver", (False, False, "")),
        (
            "570.1.1",
            "580.1.1",
            "580.1.1",
            False,
            "mismatch",
            (
                True,
                True,
                "the loaded module 570.1.1 and the library 580.1.1 differ; "
                "module 570.1.1 is loaded, the running kernel's on disk is 580.1.1",
            ),
        ),
        (
            "580.1.1",
            None,
            None,
            False,
            "mismatch",
            (True, True, "the loaded module 580.1.1 and the library differ"),
        ),
        # nvidia-smi loads another library than the one in the usual place
        (
            "580.1.1",
            "580.1.1",
            None,
            False,
            "mismatch",
            (True, True, "the loaded module 580.1.1 and the library differ"),
        ),
        (
            "570.1.1",
            "570.1.1",
            "580.1.1",
            False,
            "ok",
            (False, True, "module 570.1.1 is loaded, the running kernel's on disk is 580.1.1"),
        ),
    ],
)
def test_whether_the_parts_agree(
    module: str | None, library: str | None, on_disk: str | None, nouveau: bool, state: str, wanted: tuple[Any, ...]
) -> None:
    nvidia = nvidia_observe.Nvidia(state=state, driver=None, message="")
    assert driver_observe.compare(module, library, on_disk, nouveau, nvidia) == wanted


versions = st.sampled_from([None, "570.1.1", "580.1.1"])


@given(versions, versions, versions, st.booleans(), st.sampled_from(["ok", "mismatch", "no_driver", "error"]))
def test_a_reason_is_there_exactly_when_a_reboot_is_needed(
    module: str | None, library: str | None, on_disk: str | None, nouveau: bool, state: str
) -> None:
    nvidia = nvidia_observe.Nvidia(state=state, driver=None, message="")
    mismatch, reboot, reason = driver_observe.compare(module, library, on_disk, nouveau, nvidia)
    assert reboot == bool(reason) and (reboot or not mismatch) and "\n" not in reason
    if module == library == on_disk and not nouveau and state == "ok":
        assert not reboot


@pytest.mark.parametrize("folder", ["sys/module/nouveau", "run/labrack-testnode/sys/module/nouveau"])
def test_nouveau_in_the_place_of_the_driver(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    found = facts(tmp_path, on_disk="580.95.05")
    assert (found["nouveau"], found["reboot_needed"], found["reason"]) == (True, True, NOUVEAU)


#: Two modules as modinfo(8) of kmod 30 prints them when asked for both and for one that it can't read.
MODINFO = """\
filename:       {root}/lib/modules/6.1.0-41-amd64/updates/dkms/nvidia-current.ko.xz
alias:          char-major-195-*
version:        535.183.01
supported:      external
license:        NVIDIA
signature:      34:4C:F8:F6:B7:44:34:2D:5C:DE:3E:82:4C:C4:8A:82:34:39:98:E8:
\t\t35:F0:0B:FA:28:10:C5:41:00:6A:80:E7:34:6D:B1:1A:ED:19:F2:39
parm:           NVreg_version:made up (int)
filename:       {root}/lib/modules/6.12.9-amd64/updates/dkms/nvidia.ko
version:        580.95.05
license:        Dual MIT/GPL
filename:       {root}/lib/modules/6.12.30-amd64/updates/dkms/nvidia.ko
"""


def kernel_tree(root: Path) -> Path:
    write(
        root,
        {
            "lib/modules/6.1.0-41-amd64/kernel/fs/ext4/ext4.ko.xz": "",
            "lib/modules/6.1.0-41-amd64/updates/dkms/nvidia-current.ko.xz": "",
            "lib/modules/6.1.0-41-amd64/updates/dkms/nvidia-current-modeset.ko.xz": "",
            "lib/modules/6.1.0-41-amd64/modules.dep": "updates/dkms/nvidia-current-modeset.ko.xz: x\n"
            "updates/dkms/nvidia-current.ko.xz: kernel/drivers/video/fbdev/core/fb.ko.xz\n",
            "lib/modules/6.12.9-amd64/kernel/fs/ext4/ext4.ko.xz": "",
            # depmod has not run yet
            "lib/modules/6.12.9-amd64/updates/dkms/nvidia.ko": "",
            "lib/modules/6.12.30-amd64/kernel/fs/ext4/ext4.ko.xz": "",
            "lib/modules/6.12.30-amd64/updates/dkms/nvidia.ko": "broken",
            # what a removed kernel leaves behind
            "lib/modules/5.10.0-9-amd64/updates/dkms/nvidia.ko": "",
            "lib/modules/6.13.0-amd64/kernel/fs/ext4/ext4.ko.xz": "",
            "lib/modules/6.13.0-amd64/modules.dep": "kernel/nvidia/nvidia.ko:\n",
            "usr/src/linux-headers-6.12.9-amd64/Makefile": "",
        },
    )
    link(root, "lib/modules/6.12.9-amd64/build", "../../../usr/src/linux-headers-6.12.9-amd64")
    link(root, "lib/modules/6.1.0-41-amd64/build", "/nonexistent")
    return root


def test_kernels_and_their_modules(tmp_path: Path) -> None:
    asked = []

    def runner(argv: list[str]) -> Done:
        asked.append(argv)
        return Done(1, MODINFO.format(root=tmp_path), "modinfo: ERROR: could not get modinfo from 'nvidia'")

    kernels, flavour = driver_observe.observe_kernels(kernel_tree(tmp_path), "6.12.9-amd64", runner)
    assert [(kernel["release"], kernel["running"], kernel["headers"], kernel["nvidia"]) for kernel in kernels] == [
        ("6.1.0-41-amd64", False, False, "535.183.01"),
        ("6.12.9-amd64", True, True, "580.95.05"),
        ("6.12.30-amd64", False, False, None),
        ("6.13.0-amd64", False, False, None),
    ]
    assert flavour == "open"
    assert len(asked) == 1 and asked[0][0] == "modinfo" and len(asked[0]) == 4
    assert driver_observe.observe_kernels(tmp_path, "6.1.0-41-amd64", runner)[1] == "proprietary"


def test_without_a_module_no_modinfo_is_run(tmp_path: Path) -> None:
    write(tmp_path, {"lib/modules/6.12/kernel/x.ko": ""})
    kernels, flavour = driver_observe.observe_kernels(tmp_path, "6.12", lambda argv: pytest.fail(f"ran {argv}"))
    assert [kernel["nvidia"] for kernel in kernels] == [None] and flavour is None


@pytest.mark.parametrize(
    ("variable", "others", "wanted"),
    [
        (b"\x16\x00\x00\x00\x01", ["sys/firmware/efi/config_table"], "enabled"),
        (b"\x16\x00\x00\x00\x00", ["sys/firmware/efi/config_table"], "disabled"),
        (None, ["sys/firmware/acpi/pm_profile"], "unsupported"),
        # efivarfs is not mounted
        (None, ["sys/firmware/efi/config_table"], None),
        # a container
        (None, [], None),
    ],
)
def test_secure_boot(tmp_path: Path, variable: bytes | None, others: list[str], wanted: str | None) -> None:
    write(tmp_path, dict.fromkeys(others, ""))
    if variable is not None:
        (tmp_path / driver_observe.SECURE_BOOT).parent.mkdir(parents=True)
        (tmp_path / driver_observe.SECURE_BOOT).write_bytes(variable)
    assert driver_observe.secure_boot(tmp_path) == {"state": wanted, "mok": False}


@pytest.mark.parametrize("key", ["var/lib/dkms/mok.pub", "var/lib/shim-signed/mok/MOK.der"])
def test_a_key_to_sign_modules_with(tmp_path: Path, key: str) -> None:
    assert driver_observe.secure_boot(write(tmp_path, {key: ""}))["mok"]


def test_the_packages_of_the_driver(tmp_path: Path) -> None:
    names = [
        "cuda-drivers-580",
        "kmod-nvidia-open-dkms",
        "libnvidia-compute-580-server",
        "linux-modules-nvidia-580-open-generic",
        "nvidia-dkms-open",
        "nvidia-driver-pinning-580",
        "nvidia-fabricmanager-580",
        "nvidia-headless-580-server-open",
        "nvidia-kernel-open-dkms",
        "nvidia-open",
        "nvidia-utils-580",
    ]
    installed = dict.fromkeys(
        [*names, "nvidia-container-toolkit", "nvidia-fabricmanager-dev-580", "docker-ce"], "580-1"
    )
    found = facts(tmp_path, installed=installed)
    assert set(found["packages"]) == {*names, "nvidia-fabricmanager-dev-580"}
    assert found["fabric_manager"] == {"version": "580-1", "active": False}
    only_headers = facts(tmp_path, installed={"nvidia-fabricmanager-dev-580": "580-1"})
    assert only_headers["fabric_manager"]["version"] is None


def test_a_running_service_is_known_by_systemds_link(tmp_path: Path) -> None:
    # the link's target is an id, not a file
    link(tmp_path, "run/systemd/units/invocation:nvidia-fabricmanager.service", "768cb597f73d48a8968b5924cefff81b")
    assert facts(tmp_path)["fabric_manager"]["active"]
    assert not systemd.is_active("nvidia-persistenced", tmp_path)


def bus(root: Path, **devices: str) -> Path:
    """Write PCI devices: address → vendor, class and device."""
    for address, words in devices.items():
        vendor, kind, device = words.split()
        base = f"{nvidia_observe.PCI_BUS}/0000:{address[1:]}:00.0"
        write(root, {f"{base}/vendor": vendor, f"{base}/class": kind, f"{base}/device": device})
    return root


def test_an_nvswitch_is_a_bridge_of_nvidias(tmp_path: Path) -> None:
    assert not facts(bus(tmp_path, b01="0x10de 0x030200 0x2330", b02="0x15b3 0x068000 0x1021"))["nvswitch"]
    assert facts(bus(tmp_path, b03="0x10de 0x068000 0x22a3"))["nvswitch"]


def test_a_test_nodes_bus_counts_only_where_sys_has_no_card(tmp_path: Path) -> None:
    base = nvidia_observe.TESTNODE_PCI_BUS
    stand_in = {"vendor": "0x10de\n", "class": "0x030200\n", "device": "0x2230\n"}
    write(tmp_path, {f"{base}/0000:07:00.0/{name}": text for name, text in stand_in.items()})
    bus(tmp_path, b01="0x8086 0x030000 0x9a49", b02="0x10de 0x040300 0x22ba")
    assert [card["pci"] for card in nvidia_observe.pci_cards(tmp_path)] == ["0000:07:00.0"]
    bus(tmp_path, b03="0x10de 0x030000 0x2684")
    assert [card["pci"] for card in nvidia_observe.pci_cards(tmp_path)] == ["0000:03:00.0"]


def answer(*cards: str) -> str:
    return "".join(f'<gpu id="0000000{at}:01:00.0">{inside}</gpu>' for at, inside in enumerate(cards))


FABRIC = "<fabric><state>{}</state><status>{}</status></fabric>"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (answer(*[FABRIC.format("Completed", "Success")] * 8), True),
        (answer(FABRIC.format("Completed", "Success")), True),
        (answer(*[FABRIC.format("In Progress", "N/A")] * 8), None),
        (answer(*[FABRIC.format("N/A", "N/A")] * 2), None),
        (answer(FABRIC.format("N/A", "N/A")), False),
        ("", False),
    ],
)
def test_nvlink(text: str, wanted: bool | None) -> None:
    assert driver_observe.nvlink(text, nvidia_observe.parse_smi(text)) is wanted


@pytest.mark.parametrize(
    ("modes", "wanted"), [(["Enabled"] * 2, True), (["Enabled", "Disabled"], False), (["N/A"], None), ([], None)]
)
def test_persistence(modes: list[str], wanted: bool | None) -> None:
    text = answer(*[f"<persistence_mode>{mode}</persistence_mode>" for mode in modes])
    assert driver_observe.persistence(text) is wanted


def test_a_lost_card_is_named_with_its_errors(tmp_path: Path) -> None:
    bus(tmp_path, b01="0x10de 0x030200 0x2330", b02="0x10de 0x030200 0x2330")
    cards = nvidia_observe.pci_cards(tmp_path)
    lost = nvidia_observe.Nvidia(state="lost", driver=None, message="GPU is lost")
    found = facts(tmp_path, lost, cards=cards[:1], xids={"0000:02:00.0": [63, 79], "0000:01:00.0": [31]})
    assert found["lost"] == [{"pci": "0000:02:00.0", "xids": [63, 79]}]
    assert facts(tmp_path, cards=cards[:1])["lost"] == []
