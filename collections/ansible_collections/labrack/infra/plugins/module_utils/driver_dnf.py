# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The driver's packages on RHEL and Rocky 9 and 10: repository file, module stream, version lock.

The same functions as :mod:`driver_apt`, which has been run; this has been rendered and compared with NVIDIA's guide
only. Source: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/, "Red Hat Enterprise Linux / Rocky".
Standard library only, no Ansible import.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Runner, Source, SourceError
from ansible_collections.labrack.infra.plugins.module_utils.driver_apt import Outcome
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import Choice, is_family
from ansible_collections.labrack.infra.plugins.module_utils.driver_plan import HEADER, Package
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, read_text, run

REPO_FILE = "/etc/yum.repos.d/labrack-nvidia.repo"
LOCKS = "/etc/dnf/plugins/versionlock.list"
DNF = ["dnf", "-q", "-y"]


def repo_file(source: Source) -> FileState:
    """Return the repository's file (dnf.conf(5)); dnf takes the key at first use, by its address."""
    return FileState(
        f"{HEADER}[labrack-nvidia]\nname=NVIDIA driver\nbaseurl={source.uri}\nenabled=1\ngpgcheck=1\n"
        f"repo_gpgcheck=1\ngpgkey={source.key_url}\n"
    )


def stream(choice: Choice) -> str:
    """Return the module stream of RHEL 9: "580-open", or "580-dkms" for the proprietary modules."""
    return f"{choice.branch}-open" if choice.flavour == "open" else f"{choice.branch}-dkms"


def commands(choice: Choice, names: Sequence[str], modular: bool) -> list[list[str]]:
    """Return the commands that install the driver, in order; ``modular``: the release has module streams (9)."""
    found = []
    if modular:
        found.append([*DNF, "module", "reset", "nvidia-driver"])
        found.append([*DNF, "module", "enable", f"nvidia-driver:{stream(choice)}"])
    wanted = choice.version or choice.branch
    exact = [f"{name}-3:{choice.version}" if choice.version else name for name in names]
    pick = exact if modular or choice.version else [f"{name}-3:{wanted}.*" for name in names]
    return [*found, [*DNF, "install", *pick]]


def observe(runner: Runner = run) -> dict[str, Package]:
    """Return the driver's packages with version and lock."""
    text = runner(["rpm", "-qa", "--queryformat", "%{NAME}\\t%{EVR}\\n"]).out
    rows = [line.split("\t") for line in text.splitlines() if "\t" in line]
    locked = read_locks(read_text(LOCKS) or "")
    return {name: Package(version, "installed", name in locked) for name, version in rows if is_family(name)}


def read_locks(text: str) -> set[str]:
    """Return the names in versionlock.list: "nvidia-driver-cuda-3:580.95.05-1.el9.*" locks nvidia-driver-cuda."""
    found = (re.match(r"([\w.+-]+?)-\d+:", line) for line in text.splitlines())
    return {match.group(1) for match in found if match}


def change(choice: Choice, names: Sequence[str], source: Source | None, kernel: str, runner: Runner = run) -> Outcome:
    """Install the chosen driver's packages; SourceError when dnf fails, which changes nothing then."""
    before = _all(runner)
    release = read_text("/etc/os-release") or ""
    for command in commands(choice, names, modular='VERSION_ID="9' in release):
        done = runner(command, timeout=3600.0)
        if done.rc:
            raise SourceError(f"{' '.join(command)} failed: {(done.err or done.out).strip()[-400:]}")
    return Outcome({name: version for name, version in before.items() if is_family(name)}, _all(runner))


def back(previous: Mapping[str, str], runner: Runner = run) -> Outcome:
    """Go back to the driver's packages as they were."""
    before = _all(runner)
    done = runner(
        [*DNF, "install", "--allowerasing", *(f"{name}-{evr}" for name, evr in previous.items())], timeout=3600.0
    )
    if done.rc:
        raise SourceError(f"dnf could not go back: {(done.err or done.out).strip()[-400:]}")
    return Outcome({name: version for name, version in before.items() if is_family(name)}, _all(runner))


def _all(runner: Runner) -> dict[str, str]:
    text = runner(["rpm", "-qa", "--queryformat", "%{NAME}\\t%{EVR}\\n"]).out
    return dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)


def repair(names: Iterable[str], runner: Runner = run) -> None:
    """Do nothing: rpm has no half-installed state that can be seen from outside."""


def hold(names: Iterable[str], on: bool, runner: Runner = run) -> None:
    """Lock packages at their version, or unlock them (dnf-versionlock(8))."""
    wanted = list(names)
    if wanted:
        done = runner([*DNF, "versionlock", "add" if on else "delete", *wanted])
        if done.rc:
            raise SourceError(
                f"dnf versionlock failed: {done.err.strip()}. Mend: install python3-dnf-plugin-versionlock"
            )


def purge(names: Iterable[str], runner: Runner = run) -> None:
    """Remove packages."""
    done = runner([*DNF, "remove", "--noautoremove", *names], timeout=1800.0)
    if done.rc:
        raise SourceError(f"dnf remove failed: {done.err.strip()}")
