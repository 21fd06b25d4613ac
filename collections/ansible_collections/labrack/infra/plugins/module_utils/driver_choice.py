# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which NVIDIA driver fits a machine: branch, flavour, source, package names, or the reason why none does.

Pure. What is installed and works stays, unless the inventory names something else: nobody is surprised by another
driver because labrack came.

Sources: NVIDIA's driver installation guide (https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/), the
release notes of R590 and R620 for what they no longer drive, Ubuntu's and Debian's package indexes.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Source
from ansible_collections.labrack.infra.plugins.module_utils.driver_observe import MOK_KEYS
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done

#: NVIDIA's branches that are or were installable from its repositories, oldest first.
BRANCHES = ("535", "550", "570", "575", "580", "590", "595", "610", "615", "620")
#: The long-term branch: the last one with proprietary modules for Maxwell to Volta, and new enough for Blackwell.
DEFAULT_BRANCH = "580"
#: Debian's own packages have one branch per release.
DEBIAN_BRANCHES = {"12": "535", "13": "550"}

#: By generation: the first and the last branch that drives it (None: no end yet), and the flavours that do.
#: Open modules need the GSP, which came with Turing. Proprietary ones ended with R615, and never drove Blackwell.
GENERATIONS: Mapping[str, tuple[int, int | None, tuple[str, ...]]] = {
    "kepler": (304, 470, ("proprietary",)),
    "maxwell": (340, 580, ("proprietary",)),
    "pascal": (367, 580, ("proprietary",)),
    "volta": (384, 580, ("proprietary",)),
    "turing": (410, None, ("open", "proprietary")),
    "ampere": (450, None, ("open", "proprietary")),
    "ada": (520, None, ("open", "proprietary")),
    "hopper": (515, None, ("open", "proprietary")),
    "blackwell": (570, None, ("open",)),
}
#: From this branch on there are no proprietary modules.
OPEN_ONLY = 620

#: Where the driver's repository lies below ``nvidia_driver_repo_url``, by (os id, version).
REPOSITORIES: Mapping[tuple[str, str], str] = {
    ("debian", "12"): "debian12",
    ("debian", "13"): "debian13",
    ("ubuntu", "22.04"): "ubuntu2204",
    ("ubuntu", "24.04"): "ubuntu2404",
    ("ubuntu", "26.04"): "ubuntu2604",
    ("redhat", "9"): "rhel9",
    ("redhat", "10"): "rhel10",
}
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "sbsa"}
#: The signing key's file in a repository, and its fingerprint. Only Debian 13 has the new one: apt there refuses the
#: SHA-1 self-signature of the old (NVIDIA/cuda-repo-management#30, #34, #39).
KEYS: Mapping[str, tuple[str, str]] = {
    "debian13": ("8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"),
    "deb": ("3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC"),
    "rpm": ("D42D0685.pub", "610C7B14E068A878070DA4E99CD0A493D42D0685"),
}


@dataclass(frozen=True)
class Problem:
    """Why no driver fits as wished: the variable ("" for the machine itself), its value, the reason, the mend."""

    key: str
    value: str
    problem: str
    mend: str

    def __str__(self) -> str:
        """Return it as one sentence and its mend."""
        what = f"{self.key} = {self.value}: " if self.key else ""
        return f"{what}{self.problem}. Mend: {self.mend}."


@dataclass(frozen=True)
class Wish:
    """The inventory's words; empty texts leave the choice to us. ``version`` is NVIDIA's, such as 580.95.05."""

    source: str = "auto"
    branch: str = ""
    version: str = ""
    flavour: str = "auto"
    desktop: bool = False

    @property
    def open_minded(self) -> bool:
        """Whether a driver that is there and works will do."""
        return not self.branch and not self.version and self.source == "auto" and self.flavour == "auto"


@dataclass(frozen=True)
class Machine:
    """What decides: os-release's id, version and family, architecture, the cards, and the driver that is there.

    ``cards`` are pairs of product name and generation ("" where the table doesn't know it: then it is newer than the
    table). ``kernel`` is the running one's release. ``installed`` is the installed driver's version or None, ``ours``
    whether labrack brought it. ``signed_only``: Secure Boot is on and no key for own modules is enrolled.
    """

    os_id: str
    os_version: str
    family: str
    arch: str
    cards: tuple[tuple[str, str], ...]
    kernel: str = ""
    dgx_os: str = ""
    installed: str | None = None
    installed_flavour: str | None = None
    ours: bool = False
    works: bool = False
    nvswitch: bool = False
    signed_only: bool = False


@dataclass(frozen=True)
class Choice:
    """The driver to have. ``source`` is distribution, nvidia, or keep: hold and check what is there.

    ``branch`` and ``version`` may be empty with keep. ``dkms`` tells that modules are built on the machine.
    """

    source: str
    branch: str = ""
    version: str = ""
    flavour: str = "open"
    desktop: bool = False
    dkms: bool = False
    fabric_manager: bool = False


def machine_from_facts(facts: Mapping[str, Any], ours: bool = False, signed_only: bool = False) -> Machine:
    """Return the machine in the ``labrack_node`` facts."""
    system, nvidia = facts["os"], facts["nvidia"]
    version = str(system["version"])
    return Machine(
        os_id=system["id"] if system["family"] != "redhat" else "redhat",
        os_version=version.partition(".")[0] if system["family"] == "redhat" else version,
        family=system["family"],
        arch=facts["arch"],
        cards=tuple((gpu["name"], gpu.get("generation") or "") for gpu in facts["gpus"]),
        kernel=facts["kernel"],
        dgx_os=facts.get("dgx_os") or "",
        installed=nvidia.get("library") or nvidia.get("driver"),
        installed_flavour=nvidia.get("flavour_on_disk") or nvidia.get("flavour"),
        ours=ours,
        # one that only waits for a restart works as well
        works=nvidia["state"] in ("ok", "lost", "mismatch"),
        nvswitch=bool(nvidia.get("nvswitch")),
        signed_only=signed_only,
    )


def choose(machine: Machine, wish: Wish) -> tuple[Choice | None, list[Problem]]:
    """Return the driver to have, or every reason why the wish can't be met (then no choice)."""
    if machine.dgx_os and wish.source == "auto":
        return Choice("keep", branch_of(machine.installed), machine.installed or "", _flavour_there(machine)), []
    kept = machine.works and machine.installed and wish.open_minded
    if wish.source == "keep" or (kept and not machine.ours):
        if not machine.installed:
            mend = "install the driver by hand, or let nvidia_driver_source be auto"
            return None, [Problem("nvidia_driver_source", "keep", "there is no driver to keep", mend)]
        return Choice("keep", branch_of(machine.installed), machine.installed, _flavour_there(machine)), []
    source = _source(machine, wish)
    problems = list(_system_problems(machine, wish, source))
    if problems:
        return None, problems
    branch = wish.version.partition(".")[0] or wish.branch or _branch(machine, source, bool(kept))
    flavour = wish.flavour if wish.flavour != "auto" else _flavour(machine, branch)
    problems = [
        *_wish_problems(wish, source, machine, branch),
        *_card_problems(machine, wish, branch, flavour),
    ]
    dkms = not (source == "distribution" and machine.os_id == "ubuntu")
    if dkms and machine.signed_only and not problems:
        problems.append(_secure_boot(machine))
    if problems:
        return None, problems
    return Choice(source, branch, wish.version, flavour, wish.desktop, dkms, machine.nvswitch), []


def signed_only(secure_boot: Mapping[str, Any], runner: Callable[[list[str]], Done], root: str = "/") -> bool:
    """Return whether the kernel takes only modules signed by known keys, and none of this machine's own is known.

    ``secure_boot`` is the fact of that name; mokutil(1) knows which keys are enrolled.
    """
    if secure_boot["state"] != "enabled":
        return False
    keys = [os.path.join(root, path) for path in MOK_KEYS]
    there = [key for key in keys if os.path.exists(key)]
    return not any("already enrolled" in runner(["mokutil", "--test-key", key]).out for key in there)


def branch_of(version: str | None) -> str:
    """Return the branch of a version, "580" of "580.95.05-1ubuntu1"; empty for none."""
    found = re.match(r"(?:\d+:)?(\d{3})\.", version or "")
    return found.group(1) if found else ""


def nvidia_version(package_version: str) -> str:
    """Return NVIDIA's version in a package's: "1:580.95.05-1ubuntu1" is 580.95.05."""
    found = re.search(r"\d{3}\.\d+(?:\.\d+)?", package_version)
    return found.group() if found else ""


def _flavour_there(machine: Machine) -> str:
    return machine.installed_flavour or "proprietary"


def _source(machine: Machine, wish: Wish) -> str:
    if wish.source != "auto":
        return wish.source
    # Ubuntu signs the modules it ships, so Secure Boot needs nothing, and nothing is built on the machine
    return "distribution" if machine.os_id == "ubuntu" else "nvidia"


def _branch(machine: Machine, source: str, kept: bool) -> str:
    """Return the branch where the inventory names none: the one that is there and works, else the recommended one."""
    if kept and machine.installed:
        return branch_of(machine.installed)
    if source == "distribution" and machine.os_id == "debian":
        return DEBIAN_BRANCHES.get(machine.os_version, "")
    return DEFAULT_BRANCH


def _flavour(machine: Machine, branch: str) -> str:
    """Return open where every card takes it, else proprietary; an unknown card is newer than the table, so open."""
    old = any(GENERATIONS[name][2] == ("proprietary",) for _card, name in machine.cards if name in GENERATIONS)
    return "proprietary" if old and (not branch.isdigit() or int(branch) < OPEN_ONLY) else "open"


def _system_problems(machine: Machine, wish: Wish, source: str) -> Iterable[Problem]:
    key = (machine.os_id, machine.os_version)
    if key not in REPOSITORIES:
        names = sorted(" ".join(pair) for pair in REPOSITORIES)
        yield Problem(
            "",
            "",
            f"{machine.os_id} {machine.os_version}: no driver packages are known for it",
            f"use one of {', '.join(names)}, or install the driver and set nvidia_driver_source to keep",
        )
    elif machine.arch not in ARCHITECTURES:
        mend = "install the driver and set nvidia_driver_source to keep"
        yield Problem("", "", f"{machine.arch}: NVIDIA has no driver packages for it", mend)
    elif source == "distribution" and machine.family == "redhat":
        mend = "use nvidia or auto"
        yield Problem("nvidia_driver_source", "distribution", "this distribution ships no NVIDIA driver", mend)


def _wish_problems(wish: Wish, source: str, machine: Machine, branch: str) -> Iterable[Problem]:
    own = DEBIAN_BRANCHES.get(machine.os_version) if source == "distribution" and machine.os_id == "debian" else None
    key, value = ("nvidia_driver_version", wish.version) if wish.version else ("nvidia_driver_branch", branch)
    if wish.version and not re.fullmatch(r"\d{3}\.\d+(\.\d+)?", wish.version):
        yield Problem(key, wish.version, "not a driver version", "write it as 580.95.05, in quotes")
    elif wish.version and wish.branch and branch != wish.branch:
        yield Problem(key, wish.version, f"not of branch {wish.branch}", "leave nvidia_driver_branch or this out")
    elif own and branch != own:
        mend = f"leave it out, or set nvidia_driver_source to nvidia; Debian {machine.os_version} has {own}"
        yield Problem(key, value, "Debian's own packages have another branch", mend)
    elif branch not in BRANCHES:
        yield Problem(key, value, "no such branch", f"use one of {', '.join(BRANCHES)}")


def _card_problems(machine: Machine, wish: Wish, branch: str, flavour: str) -> Iterable[Problem]:
    """Yield what keeps this branch and flavour from driving every card."""
    if not branch.isdigit():
        return
    key, value = ("nvidia_driver_version", wish.version) if wish.version else ("nvidia_driver_branch", branch)
    groups: dict[str, list[str]] = {}
    for card, generation in machine.cards:
        groups.setdefault(generation, []).append(card)
    known = {name: GENERATIONS[name] for name in groups if name in GENERATIONS}
    first = max((span[0] for span in known.values()), default=0)
    last = min((span[1] for span in known.values() if span[1]), default=None)
    drives = [name for name in BRANCHES if int(name) >= first and (last is None or int(name) <= last)]
    flavours = [name for name in ("open", "proprietary") if all(name in span[2] for span in known.values())]
    if not flavours or not drives:
        names = "; ".join(f"{', '.join(sorted(set(cards)))} ({name})" for name, cards in sorted(groups.items()) if name)
        yield Problem(
            "",
            "",
            f"no one driver runs all of these cards: {names}",
            "move a card to another machine, or leave the driver to you with nvidia_driver_source: keep",
        )
        return
    if branch not in drives and branch in BRANCHES:
        stuck = sorted({card for name, cards in groups.items() if not _drives(name, branch) for card in cards})
        yield Problem(key, value, f"it does not drive {', '.join(stuck)}", f"use one of {', '.join(drives)}")
    elif flavour not in flavours or (flavour == "proprietary" and int(branch) >= OPEN_ONLY):
        stuck = sorted({card for name, cards in groups.items() if flavour not in _flavours(name) for card in cards})
        why = f"it does not drive {', '.join(stuck)}" if stuck else f"branch {branch} has open modules only"
        yield Problem("nvidia_driver_flavour", flavour, why, f"use {flavours[0]} or auto")


def _drives(generation: str, branch: str) -> bool:
    first, last, _flavours = GENERATIONS.get(generation, (0, None, ()))
    return int(branch) >= first and (last is None or int(branch) <= last)


def _flavours(generation: str) -> tuple[str, ...]:
    return GENERATIONS[generation][2] if generation in GENERATIONS else ("open", "proprietary")


def _secure_boot(machine: Machine) -> Problem:
    instead = "set nvidia_driver_source to distribution, whose modules are signed, or " * (machine.os_id == "ubuntu")
    key = "/var/lib/shim-signed/mok/MOK.der" if machine.os_id == "ubuntu" else "/var/lib/dkms/mok.pub"
    return Problem(
        "",
        "",
        "Secure Boot is on, and this driver's modules would be signed with a key that the firmware does not know",
        f"{instead}enrol the key: install dkms, run `dkms generate_mok` and `mokutil --import {key}`, restart the "
        "machine and confirm the key on its console; or switch Secure Boot off there",
    )


# ---------------------------------------------------------------------------------------------------- package names


def packages(machine: Machine, choice: Choice, kernels: Collection[str] = ()) -> list[str]:
    """Return the packages to ask for by name; the rest comes by their dependencies.

    ``kernels`` are the installed kernel metapackages (Ubuntu: "linux-image-generic-hwe-22.04"), which name the signed
    modules. Fabric Manager's name varies: see :func:`fabric_manager_names`.
    """
    if choice.source == "keep":
        return []
    is_open = choice.flavour == "open"
    branch = choice.branch
    if machine.family == "redhat":
        module = "kmod-nvidia-open-dkms" if is_open else "kmod-nvidia-latest-dkms"
        return ["nvidia-open" if is_open else "cuda-drivers"] if choice.desktop else ["nvidia-driver-cuda", module]
    if machine.os_id == "debian":
        own = choice.source == "distribution"
        module = "nvidia-kernel-dkms"
        if is_open:
            module = "nvidia-open-kernel-dkms" if own else "nvidia-kernel-open-dkms"
        # from 565 on one package of NVIDIA's brings what a computing node needs, nvidia-smi and all
        compute = (
            ["libcuda1", "nvidia-persistenced", "nvidia-smi"] if own or int(branch) < 565 else ["nvidia-driver-cuda"]
        )
        return [*compute, module, *(["nvidia-driver"] if choice.desktop else [])]
    suffix = "-open" if is_open else ""
    if choice.source == "nvidia" and int(branch) >= 590:
        if choice.desktop:
            return ["nvidia-open"]
        return ["libnvidia-compute", "nvidia-compute-utils", f"nvidia-dkms{suffix}"]
    if choice.source == "nvidia":
        if choice.desktop:
            return [f"nvidia-open-{branch}" if is_open else f"cuda-drivers-{branch}"]
        return [f"libnvidia-compute-{branch}", f"nvidia-dkms-{branch}{suffix}", f"nvidia-utils-{branch}"]
    kinds = ubuntu_kernels(machine.kernel, kernels)
    modules = [f"linux-modules-nvidia-{branch}-server{suffix}-{kind}" for kind in kinds]
    if choice.desktop:
        return [*(name.replace("-server", "") for name in modules), f"nvidia-driver-{branch}{suffix}"]
    # Ubuntu's headless packages exist without the kernel modules: those come signed, for the kernel that runs
    return [*modules, f"nvidia-headless-no-dkms-{branch}-server{suffix}", f"nvidia-utils-{branch}-server"]


def repository(machine: Machine, choice: Choice, url: str, key_url: str, fingerprint: str) -> Source | None:
    """Return NVIDIA's repository where the choice takes it; ``key_url`` and ``fingerprint`` may be empty."""
    if choice.source != "nvidia":
        return None
    name = REPOSITORIES[machine.os_id, machine.os_version]
    key = KEYS["rpm" if machine.family == "redhat" else name if name in KEYS else "deb"]
    uri = f"{url.rstrip('/')}/{name}/{ARCHITECTURES[machine.arch]}/"
    return Source("labrack-nvidia", uri, key_url or uri + key[0], (fingerprint or key[1],))


def ubuntu_kernels(release: str, installed: Iterable[str] = ()) -> list[str]:
    """Return the kernel kinds of Ubuntu's signed-module metapackages, such as "generic-hwe-22.04".

    They are named after the installed kernel metapackages; without one, after the running kernel's flavour.
    """
    kinds = sorted(
        found.group(1) for name in installed if (found := re.fullmatch(r"linux-image-([a-z][a-z0-9.-]*)", name))
    )
    return kinds or [release.rpartition("-")[2] or "generic"]


def fabric_manager_names(branch: str) -> list[str]:
    """Return the names that Fabric Manager's package may have, the likeliest first; it has the driver's version."""
    return [f"nvidia-fabricmanager-{branch}", "nvidia-fabricmanager", "nvidia-fabric-manager"]


#: The packages of a driver, as shell patterns: what is held and pinned, and what an upgrade may touch.
FAMILY = (
    "cuda-drivers*",
    "firmware-nvidia-*",
    "kmod-nvidia-*",
    "libcuda1*",
    "libcudadebugger1*",
    "libnvcuvid1*",
    "libnvidia-*",
    "libnvoptix1*",
    "linux-modules-nvidia-*",
    "linux-objects-nvidia-*",
    "linux-signatures-nvidia-*",
    "nvidia-*",
    "xserver-xorg-video-nvidia*",
)
#: Of these patterns, but of another project: the container toolkit, and tools with versions of their own.
NOT_FAMILY = re.compile(
    r"nvidia-(container|docker|ctk|cuda|gds|fs|settings|prime|detect|installer|driver-pinning|smi-)|libnvidia-container"
)


def is_family(package: str) -> bool:
    """Return whether a package is part of the driver."""
    plain = package.partition(":")[0]
    return any(fnmatch.fnmatch(plain, pattern) for pattern in FAMILY) and not NOT_FAMILY.match(plain)


def kernel_metapackages(installed: Sequence[str]) -> list[str]:
    """Return those installed packages that bring new kernels: with signed modules they move with the driver or not."""
    return sorted(name for name in installed if _KERNEL_METAPACKAGE.fullmatch(name))


_KERNEL_METAPACKAGE = re.compile(
    r"linux-((image|headers|modules-extra)-)?(generic|lowlatency|virtual|aws|azure|gcp|oem|nvidia)(-[a-z0-9.-]+)?"
)
