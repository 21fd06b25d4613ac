# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a node is right now, read from files and commands that are made up here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import status_observe
from ansible_collections.labrack.infra.plugins.module_utils.driver_observe import Kernel
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done
from ansible_collections.labrack.infra.plugins.module_utils.status_observe import reboot_reasons

FIXTURES = Path(__file__).parent / "fixtures"
ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}]},
    {"ifname": "br0", "addr_info": [{"local": "10.0.0.2"}]},
    {"ifname": "wlan0", "addr_info": [{"local": "192.168.1.5"}]},
]
ROUTES = [{"dev": "wlan0", "metric": 600}, {"dev": "br0", "metric": 100}]


def commands(argv: list[str]) -> Done:
    if argv[0] == "ip":
        return Done(0, json.dumps(ROUTES if "route" in argv else ADDRESSES), "")
    return Done(127, "", "not found")


def smi(name: str) -> Done:
    return Done(0, (FIXTURES / f"nvidia_smi/{name}.xml").read_text(encoding="utf-8"), "")


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def kernel(release: str, running: bool = False) -> Kernel:
    return Kernel(release=release, running=running, headers=False, nvidia=None)


def test_a_machine(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        {
            "proc/loadavg": "3.20 2.00 1.00 1/900 77\n",
            "proc/uptime": "86400.50 1000.00\n",
            "proc/meminfo": "MemTotal: 1048576 kB\nMemFree: 1 kB\nMemAvailable: 524288 kB\n",
            "proc/cpuinfo": "processor : 0\n\nprocessor : 1\n",
            "proc/sys/kernel/osrelease": "6.12.57+deb13-amd64\n",
            "sys/class/net/br0/mtu": "9000\n",
            "sys/class/net/br0/lower_eth0/speed": "10000\n",
            "run/reboot-required": "",
            "run/reboot-required.pkgs": "linux-image-amd64\nlibc6\nlibc6\n",
            status_observe.GITOPS_FILE: '{"time": "2026-03-02T16:55:00Z", "result": "ok", "commit": null, "x": 1}',
        },
    )
    seen = status_observe.observe("10.0.0.2", True, root, commands, lambda _argv: smi("rtx_3060_r570"))
    assert (seen["load"], seen["cpus"], seen["uptime_s"]) == (3.2, 2, 86400)
    assert (seen["memory_mib"], seen["memory_free_mib"]) == (1024, 512)
    assert seen["link"] == {"name": "br0", "address": "10.0.0.2", "speed_mbit": 10000, "mtu": 9000}
    assert seen["reboot"] == ["packages ask for it: libc6, linux-image-amd64"]
    assert seen["gitops"] == {"time": "2026-03-02T16:55:00Z", "result": "ok", "commit": "", "message": ""}
    assert seen["tailnet"] == []
    (card,) = seen["gpus"]
    assert card["type"] == "rtx_3060" and card["use_percent"] is not None and card["memory_used_mib"] > 0
    json.dumps(seen)


@pytest.mark.parametrize("name", ["a100_mig_r535", "rtx_4000_sff_ada_r595", "tesla_t4_r515"])
def test_every_card_has_its_figures(name: str, tmp_path: Path) -> None:
    seen = status_observe.observe("", False, tmp_path, commands, lambda _argv: smi(name))
    assert seen["gpus"] and all(card["temperature_c"] and card["power_limit_w"] for card in seen["gpus"])
    # of MIG instances the whole card's use is not told
    assert all((card["use_percent"] is None) == card["mig"] for card in seen["gpus"])


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    seen = status_observe.observe("", True, tmp_path, lambda _argv: Done(127, "", ""), lambda _argv: Done(127, "", ""))
    assert seen["load"] is None and seen["link"] is None and seen["gpus"] == [] and seen["gitops"] is None
    json.dumps(seen)


def test_without_an_address_the_default_route_tells_the_link(tmp_path: Path) -> None:
    put(tmp_path, {"sys/class/net/br0/speed": "-1\n"})
    link = status_observe.link("", tmp_path, commands)
    assert link == {"name": "br0", "address": "10.0.0.2", "speed_mbit": None, "mtu": None}
    assert status_observe.link("10.9.9.9", tmp_path, commands) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "x" * 70000])
def test_what_gitops_left_may_be_anything(text: str, tmp_path: Path) -> None:
    put(tmp_path, {status_observe.GITOPS_FILE: text})
    assert status_observe.gitops(tmp_path) is None


def test_why_a_machine_waits_for_a_restart() -> None:
    debian = [kernel("6.12.48+deb13-amd64", running=True), kernel("6.12.57+deb13-amd64"), kernel("6.13.1-cloud-amd64")]
    newer = "kernel 6.12.48+deb13-amd64 runs, 6.12.57+deb13-amd64 is installed"
    assert reboot_reasons(None, None, debian, False, "") == [newer]
    assert reboot_reasons(None, None, debian, True, "") == [], "a container has its host's kernel"
    assert reboot_reasons(None, None, debian[:1], False, "") == []
    assert reboot_reasons("", None, [], False, "the driver") == ["the driver", "packages ask for it"]
    rhel = [kernel("5.14.0-427.13.1.el9_4.x86_64", running=True), kernel("5.14.0-503.11.1.el9_5.x86_64")]
    assert len(reboot_reasons(None, None, rhel, False, "")) == 1
    ubuntu = [kernel("6.8.0-45-generic", running=True), kernel("6.8.0-50-lowlatency")]
    assert reboot_reasons(None, None, ubuntu, False, "") == []


def test_the_owner_of_a_process(tmp_path: Path) -> None:
    put(tmp_path, {"proc/7/status": "Name:\tx\nUid:\t0\t0\t0\t0\n", "proc/8/status": "Uid:\t3999999\t1\t1\t1\n"})
    assert [status_observe.owner(pid, tmp_path) for pid in (7, 8, 9)] == ["root", "3999999", ""]


def test_machines_of_the_tailnet() -> None:
    text = (FIXTURES / "tailnet/status_1.102.3.json").read_text(encoding="utf-8")
    machines = status_observe.machines(text)
    assert {"name": "thead", "dns_name": "thead.tailnet.test", "address": "100.64.0.9", "online": True} in machines
    assert not [one for one in machines if one["name"] == "adalap"], "people's own devices are none of the lab's"


@pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"BackendState": "NeedsLogin"}'])
def test_head_without_a_tailnet(text: str) -> None:
    assert status_observe.machines(text) == []
