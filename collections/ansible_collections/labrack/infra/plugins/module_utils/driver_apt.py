# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Change the driver's packages in one transaction of apt, or leave the driver that was there.

Looked at first, downloaded as a whole, installed, seen to be built; when that fails, the node gets back the packages
that it had. The archives of the present and the previous driver stay on the node, so that the way back needs no
repository. Standard library only, no Ansible import.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

from ansible_collections.labrack.infra.plugins.module_utils import apt_source, dkms
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Runner, Source, SourceError
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import (
    Choice,
    fabric_manager_names,
    is_family,
    kernel_metapackages,
    nvidia_version,
)
from ansible_collections.labrack.infra.plugins.module_utils.driver_plan import BROKEN, KEEP_DEBS, Package
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, run

#: The source of Debian's own contrib and non-free parts.
COMPONENTS_NAME = "labrack-nvidia-components"
_LAYOUT = "${Package}\t${Version}\t${db:Status-Want}\t${db:Status-Status}\n"


@dataclass(frozen=True)
class Outcome:
    """What a transaction did: the driver's packages before and after, and those that came new."""

    before: Mapping[str, str]
    after: Mapping[str, str]

    @property
    def brought(self) -> list[str]:
        """Packages that were not there before."""
        return sorted(set(self.after) - set(self.before))


def observe(runner: Runner = run) -> dict[str, Package]:
    """Return the driver's packages and the kernel metapackages, by one call of dpkg-query."""
    return {name: package for name, package in _present(runner).items() if _counts(name)}


def _counts(name: str) -> bool:
    return is_family(name) or bool(kernel_metapackages([name]))


def installed(runner: Runner = run) -> dict[str, str]:
    """Return every installed package with its version, broken ones included."""
    return {name: package.version for name, package in _present(runner).items()}


def _present(runner: Runner) -> dict[str, Package]:
    rows = [line.split("\t") for line in runner(["dpkg-query", "-W", "-f", _LAYOUT]).out.splitlines()]
    wanted = ("installed", *BROKEN)
    return {row[0]: Package(row[1], row[3], row[2] == "hold") for row in rows if len(row) == 4 and row[3] in wanted}


def available(package: str, runner: Runner = run) -> list[str]:
    """Return the versions of a package that the sources have (``apt-cache madison``); empty for an unknown one."""
    rows = [line.split("|") for line in runner(["apt-cache", "madison", package]).out.splitlines()]
    found = [row[1].strip() for row in rows if len(row) == 3 and row[0].strip() == package and "Sources" not in row[2]]
    return list(dict.fromkeys(found))


def best(versions: Sequence[str], wanted: str) -> str:
    """Return the version with the newest driver of a branch ("580") or version ("580.95.05"), empty for none."""
    fitting = [one for one in versions if (nvidia_version(one) + ".").startswith(wanted + ".")]
    return max(fitting, key=_order, default="")


def _order(package_version: str) -> tuple[list[int], list[int]]:
    """Return what orders package versions of one driver branch: NVIDIA's numbers, then the packager's."""
    driver = nvidia_version(package_version)
    rest = package_version.partition(driver)[2]
    return [int(part) for part in driver.split(".")], [int(part) for part in re.findall(r"\d+", rest)]


def specs(choice: Choice, names: Sequence[str], source_words: str, runner: Runner = run) -> list[str]:
    """Return "name=version" of each package; SourceError when the sources lack the branch or version.

    Packages that don't carry the driver's version, such as Ubuntu's signed modules, come as their metapackage says.
    """
    wanted = choice.version or choice.branch
    found = []
    for name in names:
        offered = available(name, runner)
        version = best(offered, wanted)
        if not offered or (not version and any(map(nvidia_version, offered))):
            have = ", ".join(sorted({nvidia_version(one) or one for one in offered})) or "nothing of that name"
            key = "nvidia_driver_version" if choice.version else "nvidia_driver_branch"
            raise SourceError(
                f"{key} = {wanted}: {source_words} has no {name} of it, but {have}; nothing was changed. "
                "Mend: choose one of these, or another nvidia_driver_source"
            )
        found.append(f"{name}={version}" if version else name)
    return found


def change(choice: Choice, names: Sequence[str], source: Source | None, kernel: str, runner: Runner = run) -> Outcome:
    """Install the chosen driver's packages; SourceError, with the driver that was there back in place, when it fails.

    ``kernel`` is the running kernel's release, for which the modules must be there afterwards.
    """
    words = source.uri if source else "the distribution's sources"
    if source:
        apt_source.update(source, runner)
    else:
        apt_source.update_all(runner)
    fabric = [next((name for name in fabric_manager_names(choice.branch) if available(name, runner)), "")]
    wanted = specs(choice, [*names, *(filter(None, fabric) if choice.fabric_manager else ())], words, runner)
    keep_present_archives(runner)
    return transact(wanted, runner, lambda: missing_builds(kernel))


def back(previous: Mapping[str, str], runner: Runner = run) -> Outcome:
    """Install the driver's packages as they were, from the archives that were kept, else from the sources."""
    present = {name for name, one in observe(runner).items() if is_family(name)}
    wanted = [_archive(name, version) or f"{name}={version}" for name, version in sorted(previous.items())]
    # what the later driver brought goes: apt reads "name-" as a removal
    gone = [f"{name}-" for name in sorted(present - set(previous))]
    return transact([*wanted, *gone], runner, lambda: [])


def transact(wanted: Sequence[str], runner: Runner, unbuilt: Callable[[], list[str]]) -> Outcome:
    """Run one transaction; afterwards no package is half done, whatever came of it."""
    before = installed(runner)
    archives = os.path.join(KEEP_DEBS, "new")
    shutil.rmtree(archives, ignore_errors=True)
    os.makedirs(os.path.join(archives, "partial"), exist_ok=True)
    keep = ["-o", f"Dir::Cache::archives={archives}", "-o", "APT::Keep-Downloaded-Packages=true"]

    def keeping(argv: list[str], **rest: object) -> object:
        return runner([argv[0], *keep, *argv[1:]] if argv[0] == "apt-get" else argv, **rest)

    try:
        apt_source.install(wanted, runner=keeping, may_remove=is_family)  # type: ignore[arg-type]
        failed = unbuilt()
        if failed:
            raise SourceError(f"the kernel module was not built for {', '.join(failed)}")
    except SourceError as error:
        now = installed(runner)
        if now == before:
            raise
        why = dkms.cause("nvidia*")
        state = restore(before, runner)
        raise SourceError(f"{error}.{f' The build failed: {why}.' if why else ''} {state}") from None
    after = installed(runner)
    _settle_archives(archives, before, after)
    old = {name: version for name, version in before.items() if is_family(name)}
    return Outcome(old, {name: version for name, version in after.items() if is_family(name) or name not in before})


def missing_builds(kernel: str) -> list[str]:
    """Return the kernels for which DKMS has the driver and has not built it: the running one and the newest."""
    there = dkms.kernels_with_headers()
    newest = there[-1:]
    wanted = [name for name in dict.fromkeys([kernel, *newest]) if name in there]
    return dkms.unbuilt(dkms.status(), "nvidia", wanted)


def restore(before: Mapping[str, str], runner: Runner = run) -> str:
    """Bring the packages back to what they were, and say in a sentence what came of it."""
    now = installed(runner)
    new = sorted(set(now) - set(before))
    changed = {name: version for name, version in before.items() if now.get(name) != version}
    if new:
        runner(["dpkg", "--purge", "--force-depends", "--force-remove-reinstreq", *new], timeout=600.0)
    archives = [path for path in (_archive(name, version) for name, version in changed.items()) if path]
    if archives:
        force = ["--force-downgrade", "--force-depends", "--force-conflicts", "--force-confold"]
        runner(["dpkg", *force, "--install", *archives], timeout=1800.0)
    left = {name for name, version in installed(runner).items() if before.get(name) != version}
    left |= {name for name in before if name not in installed(runner)}
    if left:
        return (
            f"The packages {', '.join(sorted(left))} could not be brought back. Mend: apt-get -f install on the node."
        )
    return "The packages are as they were before."


def keep_present_archives(runner: Runner = run) -> None:
    """Fetch the archives of the driver that is there, for the way back, as far as the sources still have them."""
    present = {name: one.version for name, one in observe(runner).items() if is_family(name)}
    missing = [f"{name}={version}" for name, version in present.items() if not _archive(name, version)]
    if missing:
        folder = os.path.join(KEEP_DEBS, "present")
        os.makedirs(folder, exist_ok=True)
        for spec in missing:
            # one by one: a version that is gone from the sources must not keep the others away
            runner(["env", "-C", folder, "apt-get", "-q", "download", spec], timeout=600.0)


def _archive(name: str, version: str) -> str | None:
    escaped = glob.escape(version.replace(":", "%3a"))
    plain = glob.escape(version.partition(":")[2] or version)
    for pattern in (f"{glob.escape(name)}_{escaped}_*.deb", f"{glob.escape(name)}_{plain}_*.deb"):
        found = sorted(glob.glob(os.path.join(KEEP_DEBS, "*", pattern)))
        if found:
            return found[0]
    return None


def _settle_archives(new: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Keep the archives of the driver that came and of the one before it, and no others."""
    present = os.path.join(KEEP_DEBS, "present")
    os.makedirs(present, exist_ok=True)
    shutil.rmtree(os.path.join(new, "partial"), ignore_errors=True)
    for path in glob.glob(os.path.join(new, "*.deb")):
        os.replace(path, os.path.join(present, os.path.basename(path)))
    shutil.rmtree(new, ignore_errors=True)
    wanted = {_archive(name, version) for state in (before, after) for name, version in state.items()}
    for path in glob.glob(os.path.join(present, "*.deb")):
        if path not in wanted:
            os.unlink(path)


def hold(names: Sequence[str], on: bool, runner: Runner = run) -> None:
    """Hold packages, or let them go; nothing for none."""
    if names:
        apt_source.hold(names, runner, on)


def purge(names: Sequence[str], runner: Runner = run) -> None:
    """Remove packages with their configuration; SourceError when others would go along."""
    apt_source.remove(names, runner, purge=True)


def repair(names: Sequence[str], runner: Runner = run) -> None:
    """Bring half-installed packages to their end; SourceError with the cause when they won't come."""
    runner(["dpkg", "--configure", *names], timeout=1800.0)
    left = sorted(name for name, one in observe(runner).items() if one.state in BROKEN)
    if left:
        done = runner(["apt-get", "-q", "-y", "-s", "-f", "install"], timeout=300.0)
        gone = [name for name in apt_source.read_simulation(done.out).removes if not is_family(name)]
        if done.rc == 0 and not gone:
            runner(["apt-get", "-q", "-y", "-f", "install"], timeout=3600.0)
            left = sorted(name for name, one in observe(runner).items() if one.state in BROKEN)
    if left:
        why = dkms.cause("nvidia*")
        raise SourceError(
            f"{', '.join(left)} can't be brought to a working state{f': {why}' if why else ''}. "
            f"Mend: `dpkg --configure {left[0]}` on the node tells more; `dpkg --purge {left[0]}` gives up on it"
        )


def components_file(codename: str) -> FileState | None:
    """Return a source with Debian's contrib and non-free parts, like the main one that is there; None if they are."""
    state = apt_source.observe_source(Source(COMPONENTS_NAME, "", "", ()))
    for path, text in sorted(state.others.items()):
        for entry in apt_source.read_entries(path, text):
            if entry.suite == codename:
                if re.search(r"(^|\s)non-free(\s|$)", text, re.MULTILINE):
                    return None
                parts = "Components: contrib non-free non-free-firmware"
                lines = ["Types: deb", f"URIs: {entry.uri}", f"Suites: {codename}", parts]
                signed = [f"Signed-By: {entry.signed_by}"] if entry.signed_by else []
                return FileState("\n".join(["# Written by labrack.", *lines, *signed]) + "\n")
    return None
