# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tailscale's repository and headscale's release, with their real programs, for a lab that has a tailnet.

A tree of its own, made only where the programs can be had (:mod:`tests.tailnet.binaries`). Packages as upstream makes
them: tailscale's release/dist/unixpkgs/pkgs.go, headscale's .goreleaser.yml; unit, defaults and maintainer scripts are
the modules' own. The older versions of tailscale and of headscale's binary are the same programs under lower numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

from labrack.testnode.docker import Say
from labrack.testnode.image import ensure_image
from tests.mirror.build import CACHE, HERE, SYSTEM, debian_architecture, publish
from tests.mirror.serve import URL, Mirror
from tests.tailnet import binaries

#: The suites of Tailscale's repository for Debian.
SUITES = ("bookworm", "trixie")
SYSTEM_SUITES = {"debian12": "bookworm", "debian13": "trixie"}
#: Version -> whether it is there at first; both are the same program.
TAILSCALE_VERSIONS = ("1.100.0", binaries.TAILSCALE)
#: As long as the number that it replaces in the program.
OLDER_HEADSCALE = "0.29.1"
KEYRING_VERSION = "1.35.181"
KEYRING = "/usr/share/keyrings/tailscale-archive-keyring.gpg"
RELEASES = "juanfont/headscale/releases/download"
UNITS = ("tailscaled.service", "tailscale-online.target", "tailscale-wait-online.service")


def ensure_tree(say: Say) -> Path:
    """The directory with tree/, alternates/ and fingerprints.json, made first where no build has these inputs.

    Raises :class:`tests.tailnet.binaries.NoBinariesError` and :class:`labrack.testnode.docker.LabError`.
    """
    programs = binaries.ensure(say)
    architecture = debian_architecture()
    target = CACHE / f"tailnet-{inputs_hash(architecture, programs.name)}"
    if not target.is_dir():
        started = time.monotonic()
        say("Building the test mirror of Tailscale and headscale")
        image = ensure_image(SYSTEM, say)
        publish(image, sources(architecture, programs), target, lambda out: _releases(out, architecture, programs))
        say(f"Test mirror of Tailscale and headscale built in {time.monotonic() - started:.0f} s")
    return target


def inputs_hash(architecture: str, programs: str) -> str:
    """Twelve hexadecimal digits that change whenever an input of the build does; ``programs`` is their build's name."""
    digest = hashlib.sha256(f"{architecture} {programs}".encode())
    for path in (Path(__file__), HERE / "build.py", HERE / "data/make_repositories.py"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def variables(mirror: Mirror, tree: Path, system: str) -> dict[str, Any]:
    """The roles' variables with which a node of ``system`` ("debian13") takes everything from the mirror."""
    sums = json.loads((tree / "sums.json").read_text(encoding="utf-8"))
    architecture = debian_architecture()
    key = mirror.keys[f"tailscale-{SYSTEM_SUITES[system]}"]
    return {
        "tailscale_repo_url": f"{URL}/stable",
        "tailscale_repo_key_fingerprint": [key.fingerprint],
        "tailscale_archive_url": f"{URL}/stable/tailscale_{{version}}_{{arch}}.tgz",
        "tailscale_archive_sha256": {architecture: sums["tailscale"]},
        "headscale_artifact_url": f"{URL}/{RELEASES}",
        "headscale_artifact_sha256": {f"{kind}-{architecture}": sums[kind] for kind in ("deb", "binary")},
    }


def repositories(architecture: str) -> list[dict[str, Any]]:
    """Tailscale's repositories, as :func:`tests.mirror.build.repositories` has the others."""
    made = []
    for suite in SUITES:
        base = "stable/debian"
        root = f"{base}/dists/{suite}"
        source = f"deb [signed-by={KEYRING}] https://pkgs.tailscale.com/stable/debian {suite} main\n"
        packages = [f"tailscale_{version}_{architecture}.deb" for version in TAILSCALE_VERSIONS]
        made.append(
            {
                "name": f"tailscale-{suite}",
                "root": root,
                "base": base,
                "index": f"{root}/main/binary-{architecture}",
                "pool": f"{base}/pool",
                "key": f"{base}/{suite}.noarmor.gpg",
                "signer": "tailscale",
                "files": {
                    f"{base}/{suite}.tailscale-keyring.list": f"# Tailscale packages for debian {suite}\n{source}"
                },
                "release": {
                    "Origin": "Tailscale",
                    "Label": "Tailscale",
                    "Suite": suite,
                    "Codename": suite,
                    "Architectures": architecture,
                    "Components": "main",
                },
                "algorithm": "rsa3072",
                "gpg": [],
                "missing": binaries.TAILSCALE,
                "packages": {
                    name: name for name in [*packages, f"tailscale-archive-keyring_{KEYRING_VERSION}_all.deb"]
                },
            }
        )
    return made


def sources(architecture: str, programs: Path) -> bytes:
    """A tar archive for the root of the build container: the packages' trees, the specification and the program."""
    buffer = io.BytesIO()
    packages: list[dict[str, Any]] = []
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(path: str, content: bytes | Path, mode: int = 0o644) -> None:
            data = content.read_bytes() if isinstance(content, Path) else content
            info = tarfile.TarInfo(f"work/{path}")
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))

        def package(identity: str, control: dict[str, str], **more: dict[str, Any]) -> str:
            tree = f"trees/{len(packages)}"
            packages.append({"id": identity, "tree": tree, "libraries": {}, **more})
            add(f"{tree}/DEBIAN/control", "".join(f"{name}: {value}\n" for name, value in control.items()).encode())
            return tree

        for name in binaries.PROGRAMS:
            add(f"blobs/{name}", programs / "bin" / name, 0o755)
        for version in TAILSCALE_VERSIONS:
            tree = package(
                f"tailscale_{version}_{architecture}.deb",
                {
                    **_control("tailscale", version, architecture, "Tailscale Inc <info@tailscale.com>"),
                    "Depends": "iptables",
                    "Recommends": f"tailscale-archive-keyring (>= {KEYRING_VERSION}), iproute2",
                    "Replaces": "tailscale-relay",
                    "Conflicts": "tailscale-relay",
                },
                blobs={"/usr/bin/tailscale": "tailscale", "/usr/sbin/tailscaled": "tailscaled"},
            )
            for unit in UNITS:
                add(f"{tree}/lib/systemd/system/{unit}", programs / "tailscale" / unit)
            add(f"{tree}/etc/default/tailscaled", programs / "tailscale/tailscaled.defaults")
            add(f"{tree}/DEBIAN/conffiles", b"/etc/default/tailscaled\n")
            for script in ("postinst", "prerm", "postrm"):
                add(f"{tree}/DEBIAN/{script}", programs / f"tailscale/debian.{script}.sh", 0o755)
        # its one file is the key, which the container makes
        package(
            f"tailscale-archive-keyring_{KEYRING_VERSION}_all.deb",
            _control("tailscale-archive-keyring", KEYRING_VERSION, "all", "Tailscale Inc <info@tailscale.com>"),
            keys={KEYRING: "tailscale"},
        )
        release = f"{RELEASES}/v{binaries.HEADSCALE}"
        name = f"headscale_{binaries.HEADSCALE}_linux_{architecture}.deb"
        control = _control("headscale", binaries.HEADSCALE, architecture, "Kristoffer Dalby <kristoffer@dalby.cc>")
        tree = package(name, control, blobs={"/usr/bin/headscale": "headscale"})
        own = programs / "headscale"
        add(f"{tree}/etc/headscale/config.yaml", own / "config-example.yaml")
        add(f"{tree}/usr/share/doc/headscale/examples/config-example.yaml", own / "config-example.yaml")
        add(f"{tree}/usr/share/doc/headscale/copyright", own / "LICENSE")
        add(f"{tree}/usr/lib/systemd/system/headscale.service", own / "headscale.service")
        folder = tarfile.TarInfo(f"work/{tree}/var/lib/headscale")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        add(f"{tree}/DEBIAN/conffiles", b"/etc/headscale/config.yaml\n")
        for script in ("postinst", "prerm", "postrm"):
            add(f"{tree}/DEBIAN/{script}", own / script, 0o755)
        spec = {"packages": packages, "repositories": repositories(architecture), "loose": {f"{release}/{name}": name}}
        add("spec.json", json.dumps(spec).encode())
        add("make_repositories.py", HERE / "data/make_repositories.py")
    return buffer.getvalue()


def _control(name: str, version: str, architecture: str, maintainer: str) -> dict[str, str]:
    return {
        "Package": name,
        "Version": version,
        "Architecture": architecture,
        "Maintainer": maintainer,
        "Section": "net",
        "Priority": "optional",
        "Description": f"{name}, as packed for the tests",
    }


def _releases(out: Path, architecture: str, programs: Path) -> None:
    """Add Tailscale's tarball with its index, headscale's binary with the release's checksums, and sums.json."""
    stable = out / "tree/stable"
    folder = f"tailscale_{binaries.TAILSCALE}_{architecture}"
    # what the newest stable version is: {"Version": …, "Tarballs": {"amd64": FILE}}
    tarball = stable / f"{folder}.tgz"
    with tarfile.open(tarball, "w:gz", compresslevel=1) as archive:
        for path, name in (
            (programs / "bin/tailscaled", "tailscaled"),
            (programs / "bin/tailscale", "tailscale"),
            *((programs / "tailscale" / unit, f"systemd/{unit}") for unit in (*UNITS, "tailscaled.defaults")),
        ):
            archive.add(path, f"{folder}/{name}", filter=_of_root)
    version = binaries.TAILSCALE
    index = {"Version": version, "Tarballs": {architecture: tarball.name}, "TarballsVersion": version}
    # the server's answer for /stable/, with ?mode=json or without
    (stable / "index.html").write_text(json.dumps(index), encoding="utf-8")
    release = out / f"tree/{RELEASES}/v{binaries.HEADSCALE}"
    binary = release / f"headscale_{binaries.HEADSCALE}_linux_{architecture}"
    shutil.copyfile(programs / "bin/headscale", binary)
    deb = release / f"{binary.name}.deb"
    older = out / f"tree/{RELEASES}/v{OLDER_HEADSCALE}" / binary.name.replace(binaries.HEADSCALE, OLDER_HEADSCALE)
    older.parent.mkdir()
    # where Go puts a program's own module and version
    module = "github.com/juanfont/headscale\tv{}"
    old, new = (module.format(version).encode() for version in (binaries.HEADSCALE, OLDER_HEADSCALE))
    older.write_bytes(binary.read_bytes().replace(old, new))
    sums = {"tailscale": _sum(tarball), "deb": _sum(deb), "binary": _sum(binary), "older": _sum(older)}
    (stable / f"{tarball.name}.sha256").write_text(sums["tailscale"], encoding="utf-8")
    lines = [f"{sums['binary']}  {binary.name}\n", f"{sums['deb']}  {deb.name}\n"]
    (release / "checksums.txt").write_text("".join(lines), encoding="utf-8")
    (out / "sums.json").write_text(json.dumps(sums), encoding="utf-8")


def _of_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
