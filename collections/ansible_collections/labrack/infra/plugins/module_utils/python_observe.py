# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is in the host's own Python that its packages did not bring, which other Pythons and which CUDA there are.

Read-only, standard library only, runs no command, never raises. Only names of files and folders are looked at, in a
few folders of local file systems: one listing each, whatever the number of packages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.hardware_observe import NETWORK_FILESYSTEMS
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text

INTERPRETER = "/usr/bin/python3"
#: The file with which a Python tells installers to keep out (PEP 668).
MARKER = "EXTERNALLY-MANAGED"
#: Packages that bring CUDA's compiler and libraries: NVIDIA's repositories, Debian's and Ubuntu's.
CUDA_PACKAGES = ("cuda-toolkit*", "nvidia-cuda-toolkit")
_CUDA_PACKAGE = re.compile(r"cuda-toolkit(-\d+(-\d+)?)?|nvidia-cuda-toolkit")
#: Where people put a Python for everybody.
_SHARED = ("opt", "usr/local", "data", "srv", "scratch")
Mounts = Mapping[str, tuple[str, str]]
_DISTRIBUTION = re.compile(r"([A-Za-z0-9][A-Za-z0-9._]*?)(-[^-]+)?(-py\d.*)?\.(dist-info|egg-info|egg)")


def observe_python(root: Path = Path("/")) -> dict[str, Any]:
    """Return the facts ``system_python``: interpreter, version, marker, pip, foreign packages, and other Pythons.

    ``packages`` are names of distributions as PyPI spells them (PEP 503) that no dpkg or rpm package brought.
    """
    version = _version(root)
    mark = marker(root)
    return {
        "interpreter": INTERPRETER if version else None,
        "version": version,
        "externally_managed": mark is not None and (root / mark.lstrip("/")).is_file(),
        "pip": _pip_version(root, version),
        "packages": _packages(root, version) if version else [],
        "others": sorted(_others(root), key=lambda one: str(one["path"])),
    }


def observe_cuda(root: Path, installed: Mapping[str, str]) -> list[str]:
    """Return CUDA toolkits: folders under /usr/local, and those of the packages with versions that bring one.

    A folder with neither compiler nor ``version.json`` is the compatibility library of a container image, not a
    toolkit.
    """
    folders = [
        f"/{path.relative_to(root)}"
        for path in sorted((root / "usr/local").glob("cuda*"))
        if not path.is_symlink() and ((path / "bin/nvcc").exists() or (path / "version.json").exists())
    ]
    return folders + sorted(name for name in installed if _CUDA_PACKAGE.fullmatch(name))


def marker(root: Path = Path("/")) -> str | None:
    """Return where the marker of the system's Python belongs, its folder of standard modules; None without Python."""
    version = _version(root)
    for folder in ("usr/lib", "usr/lib64"):
        if version and (root / folder / f"python{version}" / "os.py").is_file():
            return f"/{folder}/python{version}/{MARKER}"
    return None


def read_mounts(root: Path = Path("/")) -> Mounts:
    """Return what is mounted, by mount point: device number ("8:1") and type; the last one on a point is seen."""
    mounts = {}
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _dash, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) >= 5 and tail:
            mounts[fields[4]] = (fields[2], tail[0])
    return mounts


def mount_of(mounts: Mounts, path: str) -> tuple[str, str]:
    """Return device number and type of the file system that a path lies on, ("", "") if unknown. Asks none."""
    while path not in mounts and path != "/":
        path = os.path.dirname(path)
    return mounts.get(path, ("", ""))


def remote(mounts: Mounts, path: str) -> bool:
    """Return whether a path lies on a file system of a server, the way to which could hang."""
    return bool(NETWORK_FILESYSTEMS.fullmatch(mount_of(mounts, path)[1]))


def _version(root: Path) -> str | None:
    """The version in the name that the interpreter's links lead to."""
    name = INTERPRETER
    for _hop in range(5):
        found = re.search(r"/python(3\.\d+)$", name)
        if found:
            return found.group(1)
        try:
            target = os.readlink(root / name.lstrip("/"))
        except OSError:
            return None
        name = os.path.normpath(os.path.join(os.path.dirname(name), target))
    return None


def _pip_version(root: Path, version: str | None) -> str | None:
    """The version of the pip that came as a package, from the name of its folder."""
    if version is None:
        return None
    for folder in (f"usr/lib/python{version[0]}/dist-packages", f"usr/lib/python{version}/site-packages"):
        for name in _names(root / folder):
            found = re.fullmatch(r"pip-([\d.]+)\.(dist|egg)-info", name)
            if found:
                return found.group(1)
    return None


def _packages(root: Path, version: str) -> list[str]:
    """Names of what pip, uv or setup.py put where the interpreter looks."""
    found: set[str] = set()
    for lib in ("lib", "lib64"):
        for kind in ("dist-packages", "site-packages"):
            # Debian's pip installs here, and so does Fedora's and RHEL's as root
            found.update(_distributions(root / f"usr/local/{lib}/python{version}/{kind}"))
            for name in (f"python{version}", "python3"):
                folder = root / "usr" / lib / name / kind
                found.update(_installed_by_hand(folder))
    return sorted(found)


def _distributions(folder: Path) -> Iterator[str]:
    for name in _names(folder):
        match = _DISTRIBUTION.fullmatch(name)
        if match:
            yield _pypi_name(match.group(1))


def _installed_by_hand(folder: Path) -> Iterator[str]:
    """Distributions whose INSTALLER says pip or uv: Debian's packages have no such file, rpm's say rpm."""
    for name in _names(folder):
        match = _DISTRIBUTION.fullmatch(name)
        if match and (read_text(folder / name / "INSTALLER") or "").strip() in ("pip", "uv"):
            yield _pypi_name(match.group(1))


def _pypi_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _others(root: Path) -> Iterator[dict[str, str]]:
    """Pythons beside the system's in places that all users share."""
    mounts = read_mounts(root)
    for top in _SHARED:
        if remote(mounts, f"/{top}"):
            continue
        folder = root / top
        for name in _names(folder):
            path = f"/{top}/{name}"
            # the mount table is asked first: a share may be mounted right here, or be where a link leads
            if not remote(mounts, path) and not remote(mounts, _link_target(root, path)):
                what = _what(folder / name)
                if what:
                    yield {"path": path, "what": what}
    for name in _names(root / "usr/local/bin"):
        if re.fullmatch(r"python3(\.\d+)?t?", name):
            target = os.path.realpath(root / "usr/local/bin" / name)
            if not target.startswith(str(root / "usr/bin")):
                yield {"path": f"/usr/local/bin/{name}", "what": "python"}


def _link_target(root: Path, path: str) -> str:
    try:
        return os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(root / path.lstrip("/"))))
    except OSError:
        return path


def _what(folder: Path) -> str:
    try:
        if (folder / "conda-meta").is_dir():
            return "conda"
        if (folder / "versions").is_dir() and (folder / "bin/pyenv").exists():
            return "pyenv"
        if any((folder / "bin" / name).exists() for name in ("python3", "python")) and (folder / "include").is_dir():
            return "python" if not (folder / "pyvenv.cfg").exists() else ""
    except OSError:
        pass
    return ""


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
