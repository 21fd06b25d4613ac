# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build the image of a test node.

The base is the registry's image where a registry is reachable. Where none is, a Debian base comes from the
distribution's mirror through mmdebstrap; Ubuntu needs a registry. One Dockerfile on top makes both the same node.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .docker import DATA, LabError, Say, docker, last_lines, one_at_a_time
from .engine import apt_install, os_release

#: Seconds that a registry gets for a Debian base, before the mirror is used instead.
PULL_TIMEOUT = 20.0
#: Seconds that a registry gets for an Ubuntu base, which nothing replaces.
UBUNTU_PULL_TIMEOUT = 300.0
DEBIAN_MIRROR = "http://deb.debian.org/debian"
DEBIAN_SECURITY_MIRROR = "http://deb.debian.org/debian-security"


class ImageError(LabError):
    """The image of a node can't be built; the message says why and what mends it."""


@dataclass(frozen=True)
class System:
    """An operating system that a node can have."""

    #: Its image in the registry.
    base: str
    #: The suite to make the base from where no registry is reachable; None where only a registry has it.
    suite: str | None = None


SYSTEMS = {
    "debian12": System("debian:12", "bookworm"),
    "debian13": System("debian:13", "trixie"),
    "ubuntu2204": System("ubuntu:22.04"),
    "ubuntu2404": System("ubuntu:24.04"),
    "ubuntu2604": System("ubuntu:26.04"),
}


@dataclass(frozen=True)
class Mirrors:
    """Where a Debian node gets its packages from."""

    main: str = DEBIAN_MIRROR
    security: str = DEBIAN_SECURITY_MIRROR


def ensure_image(system: str, say: Say) -> str:
    """Return the tag of the image for ``system`` (a key of :data:`SYSTEMS`), building the image if it isn't there.

    The tag names the build's inputs, so a changed recipe gives a new image. Raises :class:`ImageError`.
    """
    if system not in SYSTEMS:
        raise ImageError(f"Unknown system {system!r} for a test node. Use one of: {', '.join(SYSTEMS)}.")
    mirrors = host_mirrors()
    tag = f"labrack-node:{system}-{inputs_hash(system, mirrors)}"
    if _have(tag):
        return tag
    with one_at_a_time("image"):
        if not _have(tag):
            _build(system, tag, mirrors, say)
    return tag


def _build(system: str, tag: str, mirrors: Mirrors, say: Say) -> None:
    started = time.monotonic()
    base = _base(system, mirrors, say)
    say(f"{system}: building the node image on {base}")
    arguments = {"BASE": base, "MIRROR": mirrors.main, "SECURITY_MIRROR": mirrors.security}
    options = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    try:
        docker("build", "-q", "-t", tag, *options, str(DATA))
    except LabError as error:
        raise ImageError(f"The image for {system} could not be built: {error}") from error
    say(f"{system}: node image built in {time.monotonic() - started:.0f} s")


def inputs_hash(system: str, mirrors: Mirrors) -> str:
    """Twelve hexadecimal digits that change whenever an input of the image's build does."""
    digest = hashlib.sha256(repr((SYSTEMS[system], mirrors)).encode())
    for path in sorted(path for path in DATA.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def parse_mirrors(codename: str, texts: Iterable[str]) -> Mirrors:
    """Find the mirrors in a Debian host's apt sources, one-line or deb822 style.

    ``codename`` is the host's own suite; ``texts`` are the contents of its source files. Debian's own addresses
    stand in for whatever isn't there, or isn't an http(s) address.
    """
    found: dict[str, str] = {}
    for text in texts:
        lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        for match in re.finditer(r"^deb\s+(?:\[[^]]*\]\s+)?(https?://\S+)\s+(\S+)", lines, re.MULTILINE):
            found.setdefault(match[2], match[1])
        for stanza in re.split(r"\n\s*\n", lines):
            fields = dict(re.findall(r"^(Types|URIs|Suites):\s*(.*?)\s*$", stanza, re.MULTILINE))
            uris = re.findall(r"https?://\S+", fields.get("URIs", ""))
            if uris and "deb" in fields.get("Types", "").split():
                for suite in fields.get("Suites", "").split():
                    found.setdefault(suite, uris[0])
    return Mirrors(
        found.get(codename, DEBIAN_MIRROR).rstrip("/"),
        found.get(f"{codename}-security", DEBIAN_SECURITY_MIRROR).rstrip("/"),
    )


def host_mirrors() -> Mirrors:
    """The mirrors that this machine uses, where it runs Debian; Debian's own addresses elsewhere."""
    release = os_release()
    if release.get("ID") != "debian":
        return Mirrors()
    apt = Path("/etc/apt")
    files = [
        apt / "sources.list",
        *sorted(apt.glob("sources.list.d/*.list")),
        *sorted(apt.glob("sources.list.d/*.sources")),
    ]
    return parse_mirrors(
        release.get("VERSION_CODENAME", ""), [path.read_text(errors="replace") for path in files if path.is_file()]
    )


def _have(image: str) -> bool:
    return docker("image", "inspect", "--format", "{{.Id}}", image, check=False).returncode == 0


def _base(system: str, mirrors: Mirrors, say: Say) -> str:
    """The base image, by name: here already, pulled, or made from the mirror."""
    wanted = SYSTEMS[system]
    if _have(wanted.base):
        return wanted.base
    say(f"{system}: asking the registry for {wanted.base}")
    reason = _pull(wanted.base, PULL_TIMEOUT if wanted.suite else UBUNTU_PULL_TIMEOUT)
    if reason is None:
        return wanted.base
    if wanted.suite is None:
        raise ImageError(
            f"A node with {system} needs the image {wanted.base} from a container registry, and none is reachable "
            f"({reason}). Use debian12 or debian13, or make `docker pull {wanted.base}` work."
        )
    made = f"labrack-base:{system}"
    if not _have(made):
        say(f"{system}: no registry ({reason}); making the base from {mirrors.main} with mmdebstrap")
        _bootstrap(wanted.suite, mirrors, made)
    return made


def _pull(image: str, timeout: float) -> str | None:
    """None when the image is here, else why not, in one line."""
    try:
        done = docker("pull", "-q", image, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"no image within {timeout:.0f} s"
    return None if done.returncode == 0 else last_lines(done.stderr, 1)


def _bootstrap(suite: str, mirrors: Mirrors, image: str) -> None:
    """Make a minimal Debian from the mirror and import it as ``image``."""
    if shutil.which("mmdebstrap") is None:
        if os.geteuid() != 0:
            raise ImageError(
                "No container registry is reachable, and mmdebstrap, which makes the base image without one, is not "
                "installed. Run `sudo apt-get install mmdebstrap debian-archive-keyring uidmap`."
            )
        apt_install("mmdebstrap", "debian-archive-keyring")
    bootstrap = subprocess.Popen(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=force-unsafe-io",
            suite,
            "-",
            mirrors.main,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    imported = subprocess.run(["docker", "import", "-", image], stdin=bootstrap.stdout, capture_output=True, text=True)
    _, errors = bootstrap.communicate()
    if bootstrap.returncode != 0:
        docker("image", "rm", image, check=False)
        raise ImageError(f"mmdebstrap could not make a {suite} base from {mirrors.main}: {last_lines(errors.decode())}")
    if imported.returncode != 0:
        raise ImageError(f"docker import of the {suite} base failed: {last_lines(imported.stderr)}")
