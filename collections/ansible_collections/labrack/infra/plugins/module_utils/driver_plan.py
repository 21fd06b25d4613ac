# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan a node's way to the chosen NVIDIA driver: source, pins, packages, holds, module, services, power limits.

Pure. A change of a driver that is loaded is of class ``reboot``: new processes would meet a library that the loaded
module does not fit, so it is made on an empty node and followed by a restart of the machine, or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Source, SourceState, plan_source
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import (
    FAMILY,
    Choice,
    branch_of,
    is_family,
    kernel_metapackages,
    nvidia_version,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit, plan_service

RECORD = "/var/lib/labrack/nvidia_driver.json"
KEEP_DEBS = "/var/cache/labrack/nvidia_driver"
PREFERENCES = "/etc/apt/preferences.d/labrack-nvidia-driver"
UNATTENDED = "/etc/apt/apt.conf.d/60labrack-nvidia"
MODPROBE = "/etc/modprobe.d/labrack-nvidia.conf"
POWER_UNIT = "/etc/systemd/system/labrack-gpu-power.service"
HEADER = "# Written by labrack from the inventory; a change by hand is undone by the next run.\n"

#: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/, "Disable the nouveau driver"
MODPROBE_TEXT = HEADER + "blacklist nouveau\noptions nouveau modeset=0\n"
#: dpkg's states of a package that was not installed to its end
BROKEN = ("unpacked", "half-configured", "half-installed", "triggers-awaited", "triggers-pending")

#: NVIDIA's repository by its files alone, for the way back.
SOURCE = Source("labrack-nvidia", "", "", ())
PERSISTENCE, FABRIC, POWER = "nvidia-persistenced", "nvidia-fabricmanager", "labrack-gpu-power"
SUBJECT, MODULE = "NVIDIA driver", "kernel module nvidia"


@dataclass(frozen=True)
class Package:
    """An installed package: its version, dpkg's state ("installed", "half-configured"), and whether it is held."""

    version: str
    state: str = "installed"
    held: bool = False


@dataclass(frozen=True)
class Record:
    """What labrack did on this node: ``brought`` packages, those it ``held``, the driver before the present one."""

    brought: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    #: Packages of the driver with their versions, now and before the last change.
    current: Mapping[str, str] = field(default_factory=dict)
    previous: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None) -> Record:
        """Return the record in a file's text; an empty one for no file. ValueError for a damaged one."""
        found = json.loads(text) if text else {}
        return cls(
            tuple(found.get("brought", ())),
            tuple(found.get("held", ())),
            dict(found.get("current", {})),
            dict(found.get("previous", {})),
        )

    def file(self) -> FileState:
        """Return the file that holds the record."""
        content = {
            "brought": sorted(self.brought),
            "held": sorted(self.held),
            "current": dict(self.current),
            "previous": dict(self.previous),
        }
        return FileState(json.dumps(content, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Card:
    """A card's power limit in watts, as it is; None where the card has none to set."""

    uuid: str
    kind: str
    limit_w: float | None


@dataclass(frozen=True)
class Observed:
    """A node as it is.

    ``packages`` are those of the driver's family and the kernel metapackages. ``files`` are ours by path. ``on_disk``
    is the module's version for the running kernel, ``loaded`` the running module's, ``library`` the userland's.
    """

    packages: Mapping[str, Package] = field(default_factory=dict)
    files: Mapping[str, FileState | None] = field(default_factory=dict)
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    source: SourceState = field(default_factory=SourceState)
    loaded: str | None = None
    on_disk: str | None = None
    library: str | None = None
    nouveau: bool = False
    in_use: bool = False
    cards: tuple[Card, ...] = ()
    record: Record = field(default_factory=Record)

    @property
    def version(self) -> str:
        """NVIDIA's version of the installed driver, empty for none."""
        return version_in({name: one.version for name, one in self.packages.items() if is_family(name)})


@dataclass(frozen=True)
class Wanted:
    """A node as it should be. ``present`` False: nothing of ours, so the other fields are empty.

    ``choice`` is the driver, ``names`` its packages, ``source`` NVIDIA's repository where it is taken, ``files``
    what else the package manager reads. ``power`` maps "all" or a card's Slurm type to watts; ``back`` are the packages
    and versions of an earlier driver to go back to.
    """

    present: bool = True
    choice: Choice = field(default_factory=lambda: Choice("keep"))
    names: tuple[str, ...] = ()
    source: Source | None = None
    files: Mapping[str, FileState] = field(default_factory=dict)
    hold: bool = True
    persistence: bool = True
    power: Mapping[str, int] = field(default_factory=dict)
    back: Mapping[str, str] = field(default_factory=dict)
    has_gpus: bool = True


def preferences(choice: Choice) -> FileState | None:
    """Return the apt preferences that keep every package of the driver in its branch (apt_preferences(5)).

    NVIDIA's metapackages have open-ended dependencies: without a pin cuda-drivers-580 brings a 590.
    """
    if choice.source == "keep" or not (choice.version or choice.branch):
        return None
    # the epoch of some packages is part of what the pin is compared with
    wanted = choice.version or choice.branch
    pattern = rf"/^([0-9]+:)?{re.escape(wanted)}[.+~-]/"
    names = " ".join(FAMILY)
    return FileState(f"{HEADER}Package: {names}\nPin: version {pattern}\nPin-Priority: 1001\n")


def unattended_upgrades() -> FileState:
    """Return apt's configuration that keeps the nightly upgrades away from the driver (unattended-upgrades(8))."""
    patterns = "".join(f'    "^{pattern.rstrip("*")}";\n' for pattern in FAMILY)
    header = HEADER.replace("# ", "// ", 1)
    return FileState(f"{header}Unattended-Upgrade::Package-Blacklist {{\n{patterns}}};\n")


def power_unit(limits: Iterable[tuple[str, int]], smi: str = "/usr/bin/nvidia-smi") -> FileState:
    """Return the unit that sets power limits (UUID, watts) at each boot, as the driver forgets them."""
    commands = "".join(f"ExecStart={smi} -i {uuid} -pl {watts}\n" for uuid, watts in limits)
    return FileState(
        f"{HEADER}[Unit]\nDescription=Power limits of the GPUs\nAfter=nvidia-persistenced.service\n\n"
        f"[Service]\nType=oneshot\nRemainAfterExit=yes\n{commands}\n[Install]\nWantedBy=multi-user.target\n"
    )


def limits_of(cards: Sequence[Card], power: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return (UUID, watts) of the cards that get a limit; a card's own type goes before "all"."""
    wanted = [(card, power.get(card.kind, power.get("all"))) for card in cards if card.limit_w is not None]
    return [(card.uuid, watts) for card, watts in wanted if watts is not None]


def fits(observed: Observed, wanted: Wanted) -> bool:
    """Return whether the driver that is installed is the wanted one."""
    choice = wanted.choice
    there = observed.packages
    if any(name not in there or there[name].state != "installed" for name in wanted.names):
        return False
    fabric = [name for name in there if name.startswith(("nvidia-fabricmanager", "nvidia-fabric-manager"))]
    if choice.fabric_manager and not any(nvidia_version(there[name].version) == observed.version for name in fabric):
        return False
    main = [nvidia_version(there[name].version) for name in wanted.names if nvidia_version(there[name].version)]
    if choice.version:
        return all(version == choice.version for version in main)
    return all(branch_of(version) == choice.branch for version in main)


def plan(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied.

    Steps: those of :func:`apt_source.plan_source`, ``("write"|"remove", path)``, ``("repair", *packages)``,
    ``("driver",)``, ``("rollback",)``, ``("hold"|"unhold", *packages)``, ``("initramfs",)``, ``("load",)``,
    ``("enable"|"restart"|"disable", unit)``, ``("purge", *packages)``, ``("reboot",)``.
    """
    if not wanted.present:
        return _undo(observed)
    changes: list[Change] = []
    if wanted.source:
        changes += plan_source(observed.source, wanted.source)
    for name in {*wanted.names, *(to_hold(observed, wanted) if wanted.hold else ())} & set(observed.packages):
        one = observed.packages[name]
        # a version that nobody holds is nobody's promise
        managed.note("package", name, **({"held": True, "version": one.version} if one.held else {}))
    packages = _packages(observed, wanted)
    exchange = [change for change in packages if change.step[0] in ("driver", "rollback")]
    for path, file in wanted.files.items():
        # the pins go with the driver that they pin
        disruption = exchange[0].disruption if exchange and path == PREFERENCES else "none"
        changes += plan_file(path, observed.files.get(path), file, disruption)
    changes += packages
    touched = bool(exchange)
    changes += _boot(observed, wanted)
    if wanted.hold and not touched:
        changes += _holds(observed, wanted)
    changes += _module(observed, wanted, touched)
    changes += _services(observed, wanted, touched)
    return changes


def _packages(observed: Observed, wanted: Wanted) -> list[Change]:
    broken = sorted(name for name, one in observed.packages.items() if is_family(name) and one.state in BROKEN)
    changes = []
    if broken:
        states = ", ".join(f"{name} is {observed.packages[name].state}" for name in broken)
        changes.append(Change("packages", f"repaired: {states}", "restart", step=("repair", *broken)))
    running = bool(observed.loaded)
    disruption = "reboot" if running else "restart"
    if wanted.back:
        if any(observed.packages.get(name, Package("")).version != version for name, version in wanted.back.items()):
            before = version_in(wanted.back)
            summary = f"{observed.version} → {before}, the one before"
            changes.append(Change(SUBJECT, summary, disruption, observed.version, before, ("rollback",)))
        return changes
    choice = wanted.choice
    if choice.source == "keep" or not wanted.names or fits(observed, wanted):
        return changes
    target = choice.version or f"branch {choice.branch}"
    what = f"{target}, {choice.flavour} modules, from {_source_words(choice)}"
    summary = f"{observed.version} → {what}" if observed.version else f"installed: {what}"
    after = what + "\n" + "".join(f"{name}\n" for name in wanted.names)
    changes.append(Change(SUBJECT, summary, disruption, observed.version, after, ("driver",)))
    return changes


def _source_words(choice: Choice) -> str:
    return "NVIDIA's repository" if choice.source == "nvidia" else "the distribution"


def version_in(packages: Mapping[str, str]) -> str:
    """Return NVIDIA's version that most of these packages carry, empty for none."""
    versions = [nvidia_version(version) for version in packages.values()]
    counted = sorted(filter(None, versions), key=versions.count)
    return counted[-1] if counted else ""


def to_hold(observed: Observed, wanted: Wanted) -> list[str]:
    """Return the packages to hold: the driver's, and with signed modules the kernel's metapackages as well."""
    names = [name for name, one in observed.packages.items() if is_family(name) and one.state == "installed"]
    if names and any(name.startswith("linux-modules-nvidia-") for name in names):
        names += kernel_metapackages([name for name, one in observed.packages.items() if one.state == "installed"])
    return sorted(names)


def _holds(observed: Observed, wanted: Wanted) -> list[Change]:
    loose = [name for name in to_hold(observed, wanted) if not observed.packages[name].held]
    return [Change("package holds", f"held: {' '.join(loose)}", step=("hold", *loose))] if loose else []


def _boot(observed: Observed, wanted: Wanted) -> list[Change]:
    """Keep nouveau off; the image that the kernel starts from holds a copy of the file."""
    if not wanted.has_gpus or wanted.choice.source == "keep":
        return []
    changes = plan_file(MODPROBE, observed.files.get(MODPROBE), FileState(MODPROBE_TEXT))
    if changes:
        changes.append(Change("initramfs", "rebuilt without nouveau", step=("initramfs",)))
    return changes


def _module(observed: Observed, wanted: Wanted, touched: bool) -> list[Change]:
    if not wanted.has_gpus:
        return []
    if observed.nouveau:
        if touched or observed.on_disk:
            return [_reboot("nouveau runs and gives way only to a restart")]
        return []
    if observed.loaded is None:
        comes = touched or observed.on_disk is not None
        return [Change(MODULE, "loaded", "restart", step=("load",))] if comes else []
    if touched:
        return [_reboot(f"{observed.loaded} runs, another is installed")]
    others = {observed.on_disk, observed.library} - {None, observed.loaded}
    return [_reboot(f"{observed.loaded} runs, {', '.join(sorted(map(str, others)))} is installed")] if others else []


def _reboot(why: str) -> Change:
    return Change(MODULE, f"{why}: drain the node and restart it", "reboot", step=("reboot",))


def _services(observed: Observed, wanted: Wanted, touched: bool) -> list[Change]:
    changes: list[Change] = []
    none = ServiceState()
    for unit, asked in ((PERSISTENCE, wanted.persistence), (FABRIC, wanted.choice.fabric_manager)):
        state = observed.services.get(unit, none)
        if asked and (touched or state.installed):
            # not every package enables its unit
            changes += plan_service(unit, replace(state, installed=True))
    limits = limits_of(observed.cards, wanted.power)
    if limits:
        written = plan_file(POWER_UNIT, observed.files.get(POWER_UNIT), power_unit(limits))
        have = {card.uuid: card.limit_w for card in observed.cards}
        off = [f"{have[uuid]:g} → {watts} W" for uuid, watts in limits if have[uuid] != watts]
        changes += written
        service = observed.services.get(POWER, none)
        note_unit(POWER, service)
        if not service.enabled:
            changes.append(Change(f"service {POWER}", "enabled at boot", step=("enable", POWER)))
        if off or written or not service.active:
            summary = ", ".join(off) or "set at boot"
            changes.append(Change("GPU power limits", summary, step=("restart", POWER)))
    elif observed.files.get(POWER_UNIT) is not None and not wanted.power:
        changes.append(Change(f"service {POWER}", "stopped and disabled", step=("disable", POWER)))
        changes += plan_file(POWER_UNIT, observed.files.get(POWER_UNIT), None)
    return changes


def _undo(observed: Observed) -> list[Change]:
    """Plan the way back: what labrack brought, held and wrote. A driver in use goes with the jobs that use it."""
    changes: list[Change] = []
    record = observed.record
    held = [name for name in record.held if name in observed.packages and observed.packages[name].held]
    if held:
        changes.append(Change("package holds", f"lifted: {' '.join(held)}", step=("unhold", *held)))
    brought = [name for name in record.brought if name in observed.packages]
    if observed.files.get(POWER_UNIT) is not None:
        changes.append(Change(f"service {POWER}", "stopped and disabled", step=("disable", POWER)))
    if PERSISTENCE in brought and observed.services.get(PERSISTENCE, ServiceState()).enabled:
        changes.append(Change(f"service {PERSISTENCE}", "stopped and disabled", step=("disable", PERSISTENCE)))
    if brought:
        disruption = "drain" if observed.in_use else "restart"
        changes.append(Change("packages", f"purged: {' '.join(brought)}", disruption, step=("purge", *brought)))
    for path in sorted(path for path, file in observed.files.items() if file is not None):
        changes += plan_file(path, observed.files[path], None)
    changes += plan_source(observed.source, SOURCE, present=False)
    if observed.files.get(MODPROBE) is not None:
        changes.append(Change("initramfs", "rebuilt with nouveau", step=("initramfs",)))
    return changes
