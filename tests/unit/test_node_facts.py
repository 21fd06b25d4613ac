"""node_facts: what is read from a fake tree and from fake commands, in the formats of the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import node_observe, nvidia_observe
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done
from ansible_collections.labrack.infra.plugins.modules import node_facts

CARDS = (
    ("0000:01:00.0", "NVIDIA GeForce RTX 4090", 0),
    ("0000:4f:00.0", "NVIDIA A100-SXM4-80GB", 1),
    ("0000:c1:00.0", "NVIDIA GeForce RTX 4090", 2),
)
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)
HANDLE = "Unable to determine the device handle for GPU"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n"


def uuid(minor: int) -> str:
    return f"GPU-{minor:08x}-ac55-60ad-f9cf-623871e7736d"


def gpu_xml(pci: str, name: str, minor: object, memory: str = "24564 MiB", mig: str = "N/A") -> str:
    return f"""\t<gpu id="0000{pci.upper()}">
\t\t<product_name>{name}</product_name>
\t\t<mig_mode>
\t\t\t<current_mig>{mig}</current_mig>
\t\t\t<pending_mig>{mig}</pending_mig>
\t\t</mig_mode>
\t\t<mig_devices>
\t\t\tNone
\t\t</mig_devices>
\t\t<uuid>{uuid(minor) if isinstance(minor, int) else "N/A"}</uuid>
\t\t<minor_number>{minor}</minor_number>
\t\t<pci>
\t\t\t<pci_bus_id>{"N/A" if pci == "N/A" else "0000" + pci.upper()}</pci_bus_id>
\t\t</pci>
\t\t<fb_memory_usage>
\t\t\t<total>{memory}</total>
\t\t\t<used>1 MiB</used>
\t\t</fb_memory_usage>
\t</gpu>
"""


def log_xml(*gpus: str) -> str:
    return f"""<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
\t<timestamp>Sun Nov 22 10:00:00 2026</timestamp>
\t<driver_version>580.95.05</driver_version>
\t<cuda_version>13.0</cuda_version>
\t<attached_gpus>{len(gpus)}</attached_gpus>
{"".join(gpus)}
</nvidia_smi_log>
"""


ALL = log_xml(*(gpu_xml(*card) for card in CARDS))


def says(out: str, rc: int = 0, err: str = "") -> nvidia_observe.Runner:
    return lambda _argv: Done(rc, out, err)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def driver_files(root: Path, base: str = "proc/driver/nvidia", cards: Sequence[tuple[str, str, int]] = CARDS) -> Path:
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\nGCC version: 12.2\n"
    files = {f"{base}/version": version}
    for pci, name, minor in cards:
        files[f"{base}/gpus/{pci}/information"] = (
            f"Model: \t\t {name}\nIRQ:   \t\t 64\nGPU UUID: \t {uuid(minor)}\nBus Location: \t {pci}\n"
            f"Device Minor: \t {minor}\nGPU Excluded:\t No\n"
        )
    return write(root, files)


def pci_files(root: Path) -> Path:
    files = {}
    for pci, vendor, kind, device in (
        ("0000:01:00.0", "0x10de", "0x030000", "0x2684"),
        ("0000:01:00.1", "0x10de", "0x040300", "0x22ba"),
        ("0000:02:00.0", "0x1002", "0x030000", "0x744c"),
        ("0000:4f:00.0", "0x10de", "0x030200", "0x20b2"),
    ):
        for name, value in (("vendor", vendor), ("class", kind), ("device", device)):
            files[f"sys/bus/pci/devices/{pci}/{name}"] = value + "\n"
    return write(root, files)


def test_cards_and_driver_of_a_working_machine(tmp_path: Path) -> None:
    a100 = gpu_xml("0000:4f:00.0", "NVIDIA A100-SXM4-80GB", 1, "81920 MiB", "Enabled")
    cards, nvidia = nvidia_observe.observe_nvidia(tmp_path, says(log_xml(gpu_xml(*CARDS[0]), a100)))
    assert nvidia == {"state": "ok", "driver": "580.95.05", "message": ""}
    assert [card["device"] for card in cards] == ["/dev/nvidia0", "/dev/nvidia1"]
    assert cards[1] == {
        "index": 1,
        "minor": 1,
        "uuid": uuid(1),
        "name": "NVIDIA A100-SXM4-80GB",
        "memory_mib": 81920,
        "pci": "0000:4f:00.0",
        "device": "/dev/nvidia1",
        "mig": True,
        "slurm_type": "a100_80gb",
    }
    assert not cards[0]["mig"]


@pytest.mark.parametrize(
    ("gpu", "device", "kind"),
    [
        (gpu_xml("000f:01:00.0", "NVIDIA GB10", 0, "N/A"), "/dev/nvidia0", "gb10"),
        (gpu_xml("N/A", "Orin (nvgpu)", "N/A", "Not Supported"), None, "orin"),
    ],
)
def test_a_card_that_shares_the_machines_memory(tmp_path: Path, gpu: str, device: str | None, kind: str) -> None:
    (card,), nvidia = nvidia_observe.observe_nvidia(tmp_path, says(log_xml(gpu)))
    assert nvidia["state"] == "ok"
    assert (card["memory_mib"], card["device"], card["slurm_type"]) == (None, device, kind)


@pytest.mark.parametrize(
    ("rc", "out", "state", "message"),
    [
        (9, NO_DRIVER, "no_driver", NO_DRIVER.strip()),
        (12, "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.", "no_driver", "couldn't find"),
        (127, "", "no_driver", "nvidia-smi is not installed"),
        (18, MISMATCH, "mismatch", "version mismatch NVML library version: 580.95"),
        (6, "No devices were found\n", "error", "No devices were found"),
        (14, ALL + "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n", "ok", "WARNING: infoROM is corrupted"),
        (0, ALL[: len(ALL) // 2], "error", "incomplete answer"),
        (1, "", "error", "ended with 1"),
        (124, "", "error", "ended with 124"),
        (15, HANDLE + " 0000:01:00.0: GPU is lost.  Reboot the system", "lost", "0000:01:00.0: GPU is lost."),
    ],
)
def test_the_state_of_a_machine_with_cards(tmp_path: Path, rc: int, out: str, state: str, message: str) -> None:
    _cards, nvidia = nvidia_observe.observe_nvidia(pci_files(tmp_path), says(out, rc))
    assert nvidia["state"] == state
    assert message in nvidia["message"]


@pytest.mark.parametrize(("rc", "out"), [(127, ""), (9, NO_DRIVER), (6, "No devices were found\n"), (0, log_xml())])
def test_a_machine_without_cards(tmp_path: Path, rc: int, out: str) -> None:
    cards, nvidia = nvidia_observe.observe_nvidia(tmp_path, says(out, rc))
    assert (cards, nvidia["state"], nvidia["message"]) == ([], "absent", "no NVIDIA GPU found")


@pytest.mark.parametrize(
    ("rc", "out"),
    [
        # the three ways in which drivers tell: nothing else, the cards before it, all the others
        (15, HANDLE + " 0000:4F:00.0: GPU is lost.  Reboot the system to recover this GPU\n"),
        (255, ALL.split("\t<gpu")[0] + gpu_xml(*CARDS[0]) + HANDLE + "0000:4F:00.0: Unknown Error\n"),
        (0, HANDLE + "1: 0000:4F:00.0: Unknown Error\n" + log_xml(gpu_xml(*CARDS[0]), gpu_xml(*CARDS[2]))),
    ],
)
def test_a_lost_card_leaves_the_others_with_their_indices(tmp_path: Path, rc: int, out: str) -> None:
    cards, nvidia = nvidia_observe.observe_nvidia(driver_files(tmp_path), says(out, rc))
    assert nvidia["state"] == "lost"
    assert nvidia["message"].startswith(HANDLE)
    assert [(card["index"], card["minor"], card["slurm_type"]) for card in cards] == [
        (0, 0, "rtx_4090"),
        (2, 2, "rtx_4090"),
    ]


def test_a_card_whose_fields_say_that_it_is_lost(tmp_path: Path) -> None:
    text = log_xml(gpu_xml(*CARDS[0]), gpu_xml("0000:4f:00.0", "GPU is lost", "N/A"))
    cards, nvidia = nvidia_observe.observe_nvidia(driver_files(tmp_path, cards=CARDS[:2]), says(text, 15))
    assert (nvidia["state"], nvidia["message"]) == ("lost", "GPU is lost")
    assert [card["pci"] for card in cards] == ["0000:01:00.0"]


def test_without_nvidia_smi_the_drivers_files_name_the_cards(tmp_path: Path) -> None:
    cards, nvidia = nvidia_observe.observe_nvidia(driver_files(tmp_path), says(MISMATCH, 18))
    assert nvidia["driver"] == "580.82.07"
    assert [(card["name"], card["uuid"], card["device"]) for card in cards] == [
        (name, uuid(minor), f"/dev/nvidia{minor}") for _pci, name, minor in CARDS
    ]


def test_without_a_driver_the_pci_bus_counts_the_cards(tmp_path: Path) -> None:
    cards, nvidia = nvidia_observe.observe_nvidia(pci_files(tmp_path), says("", 127))
    assert nvidia == {"state": "no_driver", "driver": None, "message": "nvidia-smi is not installed"}
    assert [(card["pci"], card["name"], card["slurm_type"]) for card in cards] == [
        ("0000:01:00.0", "PCI device 10de:2684", None),
        ("0000:4f:00.0", "PCI device 10de:20b2", None),
    ]


def test_a_test_nodes_driver_files_count_only_where_proc_has_none(tmp_path: Path) -> None:
    driver_files(tmp_path, nvidia_observe.TESTNODE_DRIVER_PROC, CARDS[1:])
    assert [card["minor"] for card in nvidia_observe.driver_cards(tmp_path)] == [1, 2]
    driver_files(tmp_path, cards=CARDS[:1])
    assert [card["minor"] for card in nvidia_observe.driver_cards(tmp_path)] == [0]


def test_a_card_that_the_driver_could_not_start_has_no_uuid(tmp_path: Path) -> None:
    text = "Model: \t\t Unknown\nGPU UUID: \t GPU-????????-????-????-????-????????????\nDevice Minor: \t 0\n"
    write(tmp_path, {"proc/driver/nvidia/gpus/0000:01:00.0/information": text})
    assert nvidia_observe.driver_cards(tmp_path)[0]["uuid"] is None


@given(st.integers(0, 255), st.text(), st.text(), st.integers(0, len(ALL)), st.integers(0, len(ALL)))
def test_no_answer_of_nvidia_smi_raises(rc: int, noise: str, err: str, cut: int, length: int) -> None:
    text = ALL[:cut] + noise + ALL[cut + length :]
    _cards, nvidia = nvidia_observe.observe_nvidia(Path("/nonexistent"), says(text, rc, err))
    assert nvidia["state"] in ("ok", "absent", "no_driver", "mismatch", "lost", "error")


def test_a_program_that_can_not_be_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("not a program")
    assert nvidia_observe.run_smi([str(tmp_path / "nvidia-smi")]).rc == 126


def cpus(root: Path, online: str, threads: Sequence[tuple[str, str]]) -> Path:
    """Write a topology: for each CPU the siblings of its package and of its core."""
    files = {"sys/devices/system/cpu/online": online + "\n"}
    for cpu, (package, core) in enumerate(threads):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files[f"{folder}/physical_package_id"] = "-1\n"
        files[f"{folder}/core_siblings_list"] = package + "\n"
        files[f"{folder}/thread_siblings_list"] = core + "\n"
    return write(root, files)


#: Two sockets with two cores with two threads each.
TWO_SOCKETS = [(package, f"{core},{core + 2}") for package, core in (("0-3", 0), ("0-3", 1), ("4-7", 4), ("4-7", 5))]
#: Two P cores with two threads each, four E cores.
P_AND_E = [("0-7", core) for core in ("0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7")]


@pytest.mark.parametrize(
    ("online", "threads", "wanted"),
    [
        ("0-1", [("0-1", "0"), ("0-1", "1")], (2, 1, 2, 1)),
        ("0-7", [TWO_SOCKETS[n] for n in (0, 1, 0, 1, 2, 3, 2, 3)], (8, 2, 2, 2)),
        # as slurmd prints it with allow_ecores, less the threads that fit in no grid
        ("0-7", P_AND_E, (6, 1, 6, 1)),
        # half of the threads are offline: the sibling lists name only those online
        ("0,2", [("0,2", "0"), ("", ""), ("0,2", "2")], (2, 1, 2, 1)),
        # no topology at all, as in some sandboxes and on old arm64 kernels
        ("0-3", [], (4, 1, 4, 1)),
    ],
)
def test_processors(tmp_path: Path, online: str, threads: Sequence[tuple[str, str]], wanted: tuple[int, ...]) -> None:
    cpu = node_observe.cpu_topology(cpus(tmp_path, online, threads))
    assert (cpu["cpus"], cpu["sockets"], cpu["cores_per_socket"], cpu["threads_per_core"]) == wanted
    assert cpu["boards"] == 1


def test_memory_is_rounded_down(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": "MemTotal:       24684543 kB\nMemFree:        1 kB\n"})
    assert node_observe.memory_mib(tmp_path) == 24105
    assert node_observe.memory_mib(tmp_path / "none") == 0


def v1_mounts(options: str, names: Sequence[str] = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer")) -> str:
    lines = ["30 20 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755"]
    lines += [f"40 30 0:30 / /sys/fs/cgroup/{name} {options} shared:9 - cgroup cgroup rw,{name}" for name in names]
    lines.append("41 30 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd")
    return "\n".join(lines) + "\n"


UNIFIED = "42 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
V1_ALL = ["cpu", "cpuacct", "cpuset", "devices", "freezer", "memory"]
READ_ONLY = "cgroup mount is read-only: "
DISABLED = "cgroup controllers not enabled: "
BOOT = "; boot with cgroup_enable=memory"


def control_groups(root: Path, mounts: str, controllers: str = "", kernel: str = "6.12.1") -> tuple[Any, ...]:
    """Write the mounts, observe and return the mode, the controllers, writable and the reason."""
    write(
        root,
        {
            "proc/self/mountinfo": "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts,
            "proc/sys/kernel/osrelease": kernel + "-amd64\n",
            "sys/fs/cgroup/cgroup.controllers": controllers + "\n",
        },
    )
    cgroup = node_observe.control_groups(root)
    return cgroup["mode"], cgroup["controllers"], cgroup["writable"], cgroup["reason"]


@pytest.mark.parametrize(
    ("options", "controllers", "kernel", "usable", "reason"),
    [
        ("rw,nosuid", "cpuset cpu io memory", "6.12.1", ["cpu", "cpuset", "devices", "io", "memory"], ""),
        ("ro,nosuid", "cpuset memory", "6.12.1", [], READ_ONLY + "cpuset, devices, memory"),
        ("rw", "cpuset", "6.12.1", ["cpuset", "devices"], DISABLED + "memory" + BOOT),
        ("rw", "cpuset memory", "4.14.9", ["cpuset", "memory"], DISABLED + "devices"),
    ],
)
def test_control_groups_v2(
    tmp_path: Path, options: str, controllers: str, kernel: str, usable: list[str], reason: str
) -> None:
    mounts = f"30 20 0:26 / /sys/fs/cgroup {options} shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    wanted = ("v2", usable, options.startswith("rw"), reason)
    assert control_groups(tmp_path, mounts, controllers, kernel) == wanted


@pytest.mark.parametrize(
    ("mounts", "wanted"),
    [
        (v1_mounts("rw,nosuid"), ("v1", V1_ALL, True, "")),
        (v1_mounts("rw") + UNIFIED, ("hybrid", V1_ALL, True, "")),
        (v1_mounts("ro"), ("v1", [], False, READ_ONLY + ", ".join(V1_ALL))),
        (
            v1_mounts("rw", V1_ALL[2:4] + V1_ALL[5:]),
            ("v1", ["cpuset", "devices", "memory"], True, DISABLED + "freezer"),
        ),
        (
            v1_mounts("rw", V1_ALL[:4]) + v1_mounts("ro", V1_ALL[4:]),
            ("v1", V1_ALL[:4], False, READ_ONLY + "freezer, memory"),
        ),
        ("", ("none", [], False, "no cgroup controllers are mounted")),
    ],
)
def test_control_groups_v1(tmp_path: Path, mounts: str, wanted: tuple[Any, ...]) -> None:
    assert control_groups(tmp_path, mounts) == wanted


DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
ROCKY = 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n'


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (DEBIAN, ("debian", "13", "trixie", "debian", "Debian GNU/Linux 13 (trixie)")),
        (UBUNTU, ("ubuntu", "24.04", "noble", "debian", "")),
        (ROCKY, ("rocky", "9.6", "", "redhat", "")),
        ("# nothing\n", ("", "", "", "", "")),
    ],
)
def test_operating_system(tmp_path: Path, text: str, wanted: tuple[str, ...]) -> None:
    system = node_observe.os_release(write(tmp_path, {"etc/os-release": text}))
    assert tuple(system[key] for key in ("id", "version", "codename", "family", "pretty")) == wanted


@pytest.mark.parametrize(
    ("files", "said", "wanted"),
    [
        ({"run/systemd/container": "docker\n"}, "", (True, "docker")),
        ({".dockerenv": ""}, "", (True, "docker")),
        ({}, "lxc\n", (True, "lxc")),
        ({}, "kvm\n", (False, "kvm")),
        ({}, "none\n", (False, "none")),
        ({}, "", (False, "none")),
    ],
)
def test_virtualization(tmp_path: Path, files: dict[str, str], said: str, wanted: tuple[bool, str]) -> None:
    assert node_observe.virtualization(write(tmp_path, files), says(said)) == wanted


def ip(addresses: object, routes: object) -> nvidia_observe.Runner:
    return lambda argv: Done(0, json.dumps(addresses if "address" in argv else routes), "")


IP_ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
    {"ifname": "eth0", "addr_info": [{"local": f"10.0.0.{last}", "scope": "global"} for last in (5, 6)]},
    {"ifname": "wlan0", "addr_info": [{"local": "192.168.1.7", "scope": "global"}]},
]


@pytest.mark.parametrize(
    ("routes", "default"),
    [
        ([{"dst": "default", "gateway": "10.0.0.1", "dev": "eth0"}], "10.0.0.5"),
        ([{"dev": "wlan0", "metric": 600}, {"dev": "eth0", "metric": 100}], "10.0.0.5"),
        ([{"dst": "default", "dev": "eth0", "prefsrc": "10.0.0.6"}], "10.0.0.6"),
        ([], None),
    ],
)
def test_addresses(routes: list[dict[str, Any]], default: str | None) -> None:
    found = node_observe.addresses(ip(IP_ADDRESSES, routes))
    assert found == {"default_ipv4": default, "ipv4": ["10.0.0.5", "10.0.0.6", "192.168.1.7"]}


def test_addresses_without_iproute2() -> None:
    assert node_observe.addresses(says("", 127)) == {"default_ipv4": None, "ipv4": []}


def test_installed_packages() -> None:
    dpkg = "slurmd\t24.11.5-4\tinstalled\nmunge\t0.5.16-1\tconfig-files\n"
    assert node_observe.installed_packages(["slurmd", "munge", "x"], "debian", says(dpkg, 1)) == {"slurmd": "24.11.5-4"}
    rpm = "munge\t0.5.13-13.el9\tinstalled\npackage slurmd is not installed\n"
    assert node_observe.installed_packages(["slurmd", "munge"], "redhat", says(rpm, 1)) == {"munge": "0.5.13-13.el9"}


def test_no_command_is_run_for_no_packages() -> None:
    assert node_observe.installed_packages([], "debian", lambda _argv: pytest.fail("ran a command")) == {}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"proc/7/comm": "chronyd\n"}, {"service": "chrony", "synchronized": None}),
        ({"proc/7/comm": "systemd-timesyn\n"}, {"service": "systemd-timesyncd", "synchronized": False}),
        (
            {"proc/7/comm": "systemd-timesyn\n", "run/systemd/timesync/synchronized": ""},
            {"service": "systemd-timesyncd", "synchronized": True},
        ),
        ({"proc/7/comm": "bash\n"}, {"service": None, "synchronized": None}),
    ],
)
def test_time_sync(tmp_path: Path, files: dict[str, str], wanted: dict[str, Any]) -> None:
    assert node_observe.time_sync(write(tmp_path, files)) == wanted


def test_the_connection_user_is_the_one_behind_sudo() -> None:
    assert node_observe.connection_user({"SUDO_USER": "ada"}) == "ada"
    assert node_observe.connection_user({}) != ""


def test_an_empty_tree_gives_all_facts() -> None:
    facts = node_observe.observe_node(["slurmd"], Path("/nonexistent"), says("", 127), says("", 127), {})
    assert facts["nvidia"]["state"] == "absent"
    assert not facts["nvidia"]["mismatch"] and not facts["nvidia"]["reboot_needed"]
    assert facts["disks"] == facts["nics"] == facts["kernels"] == facts["conflicts"] == []
    assert facts["cpu"]["cpus"] == os.cpu_count()
    json.dumps(facts)


def test_one_question_each_to_the_package_database_nvidia_smi_and_modinfo(tmp_path: Path) -> None:
    driver_files(pci_files(tmp_path))
    folder = "lib/modules/6.12.9/updates/dkms"
    write(
        tmp_path, {f"{folder}/nvidia.ko": "", "proc/sys/kernel/osrelease": "6.12.9\n", "etc/os-release": "ID=debian\n"}
    )
    dpkg = "".join(
        f"{name}\t{version}\tinstalled\n"
        for name, version in (("munge", "0.5"), ("docker.io", "26"), ("nvidia-open", "580"), ("bash", "5"))
    )
    modinfo = (
        f"filename:       {tmp_path}/{folder}/nvidia.ko\nversion:        580.95.05\nlicense:        Dual MIT/GPL\n"
    )
    answers = {"dpkg-query": dpkg, "modinfo": modinfo}
    asked: list[str] = []

    def runner(argv: list[str]) -> Done:
        asked.append(argv[0])
        return Done(0, ALL if argv[0] == "nvidia-smi" else answers.get(argv[0], ""), "")

    facts = node_observe.observe_node(["munge"], tmp_path, runner, runner, {})
    assert sorted(asked) == ["dpkg-query", "ip", "ip", "modinfo", "nvidia-smi", "systemd-detect-virt"]
    assert facts["packages"] == {"munge": "0.5"}
    assert facts["runtime"]["docker"]["package"] == "docker.io"
    nvidia = facts["nvidia"]
    assert nvidia["packages"] == {"nvidia-open": "580"}
    assert (nvidia["module"], nvidia["module_on_disk"], nvidia["flavour_on_disk"]) == ("580.82.07", "580.95.05", "open")
    assert nvidia["reboot_needed"] and nvidia["reason"].startswith("module 580.82.07 is loaded")
    assert [(gpu["slurm_type"], gpu["generation"]) for gpu in facts["gpus"]] == [
        ("rtx_4090", "ada"),
        ("a100_80gb", "ampere"),
        ("rtx_4090", None),
    ]


@pytest.mark.parametrize(
    ("rc", "out"),
    [(9, NO_DRIVER), (18, MISMATCH), (127, ""), (15, HANDLE + " 0000:01:00.0: GPU is lost.\n"), (124, "")],
)
def test_a_broken_driver_leaves_all_facts(tmp_path: Path, rc: int, out: str) -> None:
    write(pci_files(tmp_path), {"run/labrack-testnode/kmsg": "NVRM: Xid (PCI:0000:01:00): 79, fell off\n"})
    facts = node_observe.observe_node([], tmp_path, says("", 127), says(out, rc), {})
    (lost, ada, ampere) = (facts["nvidia"]["lost"], *facts["gpus"], *[None] * 2)[:3]
    if facts["nvidia"]["state"] == "lost":
        assert lost == [{"pci": "0000:01:00.0", "xids": [79]}, {"pci": "0000:4f:00.0", "xids": []}]
    else:
        assert (lost, ada["xids"], ada["generation"], ampere["generation"]) == ([], [79], "ada", "ampere")
    json.dumps(facts)


def test_patterns_are_asked_of_rpm_as_well() -> None:
    asked = []

    def runner(argv: list[str]) -> Done:
        asked.append(argv)
        return Done(0, "nvidia-driver-cuda\t3:580.95.05-1.el9\tinstalled\n", "")

    assert node_observe.installed_packages(["nvidia-driver*"], "redhat", runner) == {
        "nvidia-driver-cuda": "3:580.95.05-1.el9"
    }
    assert asked[0][:2] == ["rpm", "-qa"] and asked[0][-1] == "nvidia-driver*"


def test_the_module_returns_its_documented_facts_and_no_change() -> None:
    done = subprocess.run(
        [sys.executable, "-m", node_facts.__name__],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {"packages": ["nothing"], "_ansible_check_mode": True}}),
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    documented = yaml.safe_load(node_facts.RETURN)["ansible_facts"]["contains"]["labrack_node"]["contains"]
    assert result["changed"] is False
    assert set(result["ansible_facts"]["labrack_node"]) == set(documented)
