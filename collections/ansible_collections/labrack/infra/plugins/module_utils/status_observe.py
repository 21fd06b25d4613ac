# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a node is right now: cards, load, link, what waits for a restart. What it *is* tells :mod:`.node_observe`.

Read-only, standard library only, never raises. What can't be read is None, "" or [].
"""

from __future__ import annotations

import json
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ansible_collections.labrack.infra.plugins.module_utils import hardware_observe, tailnet_devices
from ansible_collections.labrack.infra.plugins.module_utils.driver_observe import (
    Kernel,
    observe_driver,
    observe_kernels,
)
from ansible_collections.labrack.infra.plugins.module_utils.gpu_details import gpu_details
from ansible_collections.labrack.infra.plugins.module_utils.node_io import observe_file, read_text, run
from ansible_collections.labrack.infra.plugins.module_utils.node_observe import cpu_topology, os_release, virtualization
from ansible_collections.labrack.infra.plugins.module_utils.nvidia_observe import (
    SMI,
    Runner,
    element_address,
    gpu_elements,
    number,
    observe_nvidia,
    run_smi,
    value,
)

#: What packages leave behind that want a restart (Debian and Ubuntu), and which they were.
REBOOT_FILE = "run/reboot-required"
#: Where GitOps on this machine tells how its last run ended.
GITOPS_FILE = "var/lib/labrack-gitops/state/last.json"
GITOPS_KEYS = ("time", "commit", "result", "message")
_MOST_BYTES = 65536


def observe(
    address: str = "",
    tailnet: bool = False,
    root: Path = Path("/"),
    runner: Runner = run,
    smi_runner: Runner = run_smi,
) -> dict[str, Any]:
    """Return how this machine is; RETURN of the module ``lab_status`` has the schema.

    ``address`` is the one it has in the lab's network, "" for that of the default route. ``tailnet``: also tell of the
    machines in the tailnet.
    """
    kernel = (read_text(root / "proc/sys/kernel/osrelease") or "").strip()
    container, _kind = virtualization(root, runner)
    smi = smi_runner(SMI)
    cards, nvidia = observe_nvidia(root, lambda _argv: smi)
    details = gpu_details(cards, smi.out, {}, root, smi_runner)
    kernels, flavour = observe_kernels(root, kernel, runner)
    driver = observe_driver(root, nvidia, cards, smi.out, {}, kernels, flavour, {})
    use = gpu_use(smi.out)
    topology: Mapping[str, Any] = cpu_topology(root)
    return {
        "os": os_release(root)["pretty"],
        "model": hardware_observe.model(root),
        "kernel": kernel,
        "cpu": {key: topology[key] for key in ("sockets", "cores_per_socket")},
        **load(root),
        "link": link(address, root, runner),
        "gpus": [
            {
                "index": card["index"],
                "name": card["name"],
                "type": card["slurm_type"],
                "memory_mib": card["memory_mib"],
                "mig": card["mig"],
                **use.get(card["pci"] or card["index"], {"memory_used_mib": None, "use_percent": None}),
                **{key: more[key] for key in ("temperature_c", "temperature_slowdown_c")},
                **{key: more[key] for key in ("power_draw_w", "power_limit_w")},
                "processes": [{**process, "user": owner(process["pid"], root)} for process in more["processes"]],
            }
            for card, more in zip(cards, details)
        ],
        "nvidia": {key: driver[key] for key in ("state", "driver", "message")},
        "reboot": reboot_reasons(
            read_text(root / REBOOT_FILE), read_text(root / f"{REBOOT_FILE}.pkgs"), kernels, container, driver["reason"]
        ),
        "disks": [
            {key: disk[key] for key in ("mount", "size_mib", "free_mib")} for disk in hardware_observe.disks(root)
        ],
        "tailnet": machines(runner(["tailscale", "status", "--json"]).out) if tailnet else [],
        "gitops": gitops(root),
    }


def gpu_use(smi_output: str) -> dict[Any, dict[str, int | None]]:
    """Return use and used memory of the cards in ``nvidia-smi -q -x``, by PCI address, by index without one."""

    def figures(element: ElementTree.Element) -> dict[str, int | None]:
        return {
            "memory_used_mib": number(value(element, "fb_memory_usage/used")),
            "use_percent": number(value(element, "utilization/gpu_util")),
        }

    return {element_address(element) or index: figures(element) for index, element in gpu_elements(smi_output)}


def owner(pid: int, root: Path = Path("/")) -> str:
    """Return the user of a process, "" for one that has ended."""
    uid = re.search(r"^Uid:\s*(\d+)", read_text(root / f"proc/{pid}/status") or "", re.MULTILINE)
    if not uid:
        return ""
    try:
        return pwd.getpwuid(int(uid[1])).pw_name
    except KeyError:
        return uid[1]


def load(root: Path = Path("/")) -> dict[str, Any]:
    """Return ``load`` (of one minute), ``cpus``, ``memory_mib``, ``memory_free_mib`` and ``uptime_s``."""
    average = re.match(r"([\d.]+) ", read_text(root / "proc/loadavg") or "")
    since = re.match(r"([\d.]+) ", read_text(root / "proc/uptime") or "")
    memory = dict(re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", read_text(root / "proc/meminfo") or "", re.M))
    return {
        "load": float(average[1]) if average else None,
        "cpus": len(re.findall(r"^processor\s*:", read_text(root / "proc/cpuinfo") or "", re.M)) or None,
        "memory_mib": int(memory["MemTotal"]) // 1024 if "MemTotal" in memory else None,
        "memory_free_mib": int(memory["MemAvailable"]) // 1024 if "MemAvailable" in memory else None,
        "uptime_s": int(float(since[1])) if since else None,
    }


def link(address: str, root: Path, runner: Runner) -> dict[str, Any] | None:
    """Return ``name``, ``address``, ``speed_mbit`` and ``mtu`` of the interface with an address; None for no such.

    Without an address it is the one of the default route. A bridge has no speed of its own, but its card has.
    """
    devices = _json(runner(["ip", "-j", "-4", "address", "show"]).out)
    own = {
        str(info.get("local")): str(device.get("ifname")) for device in devices for info in device.get("addr_info", [])
    }
    if not address:
        routes = _json(runner(["ip", "-j", "-4", "route", "show", "default"]).out)
        names = [str(route.get("dev")) for route in sorted(routes, key=lambda route: int(route.get("metric", 0)))]
        address = next((one for name in names[:1] for one, device in own.items() if device == name), "")
    if address not in own:
        return None
    folder = root / "sys/class/net" / own[address]
    ports = [folder, *folder.glob("lower_*")]
    speeds = [
        int(text) for port in ports if re.fullmatch(r"\d{1,8}", text := (read_text(port / "speed") or "").strip())
    ]
    mtu = (read_text(folder / "mtu") or "").strip()
    return {
        "name": own[address],
        "address": address,
        "speed_mbit": max(speeds, default=0) or None,
        "mtu": int(mtu) if mtu.isdigit() else None,
    }


def reboot_reasons(
    required: str | None, packages: str | None, kernels: Sequence[Kernel], container: bool, driver: str
) -> list[str]:
    """Return why a machine waits for a restart, one reason each; pure.

    ``required`` and ``packages`` are the texts of the system's marker and of its list, None without them; ``driver`` is
    why the driver wants one, or "". A container has its host's kernel, so what it has installed says nothing.
    """
    reasons = [driver] if driver else []
    if required is not None:
        names = sorted(set((packages or "").split()))
        reasons.append(
            f"packages ask for it: {', '.join(names[:4])}{' …' if names[4:] else ''}"
            if names
            else "packages ask for it"
        )
    running = next((kernel["release"] for kernel in kernels if kernel["running"]), "")
    alike = [kernel["release"] for kernel in kernels if _flavour(kernel["release"]) == _flavour(running)]
    if running and not container and alike[-1] != running:
        reasons.append(f"kernel {running} runs, {alike[-1]} is installed")
    return reasons


def machines(text: str) -> list[dict[str, Any]]:
    """Return the machines with a tag in ``tailscale status --json``, by name; none where it isn't logged in."""
    try:
        devices = tailnet_devices.of_status(json.loads(text or "{}"))
    except ValueError:
        return []
    found = (one for one in devices if one.tags and one.addresses and not one.external)
    return [
        {"name": one.name, "dns_name": one.dns_name, "address": one.addresses[0], "online": one.online}
        for one in sorted(found, key=lambda one: one.name)
    ]


def gitops(root: Path = Path("/")) -> dict[str, str] | None:
    """Return ``time``, ``commit``, ``result`` and ``message`` of GitOps' last run on this machine, None for none."""
    file = observe_file(root / GITOPS_FILE, _MOST_BYTES)
    try:
        found = json.loads(file.text) if file else None
    except ValueError:
        return None
    return {key: str(found.get(key) or "") for key in GITOPS_KEYS} if isinstance(found, Mapping) else None


def _flavour(release: str) -> str:
    """What kind of kernel a release is: ``generic`` of 6.8.0-45-generic, ``el9.x86_64`` of 5.14.0-427.el9_4.x86_64."""
    return re.sub(r"^[\d.+~-]*(el\d+(?=_))?(?:_\d+)?", r"\1", release)


def _json(text: str) -> Iterable[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
