# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make the mirror's signed tree, in a container of the test node's image, and keep it under .cache/mirror.

The container alone needs dpkg-deb, apt-ftparchive and gpg. The test keys live as long as the build.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labrack.testnode.docker import LabError, Say, docker
from labrack.testnode.image import ensure_image
from tests.mirror.catalogue import (
    CUDA_ARCHITECTURES,
    CUDA_KEY_FILES,
    CUDA_ROOT,
    DOCKER_ROOT,
    DOCKER_SUITES,
    MISSING,
    TOOLKIT_ROOT,
    TOOLKIT_VERSIONS,
    Package,
    cuda_packages,
    docker_packages,
    toolkit_packages,
)
from tests.mirror.payload import payload

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache/mirror"
#: The system of the containers that build and serve.
SYSTEM = "debian13"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def ensure_tree(say: Say) -> Path:
    """The directory with tree/, alternates/ and fingerprints.json, made first where no build has these inputs.

    Raises :class:`labrack.testnode.docker.LabError`.
    """
    architecture = debian_architecture()
    target = CACHE / inputs_hash(architecture)
    if target.is_dir():
        return target
    started = time.monotonic()
    say("Building the test mirror")
    publish(ensure_image(SYSTEM, say), sources(architecture), target)
    say(f"Test mirror built in {time.monotonic() - started:.0f} s")
    return target


def publish(image: str, archive: bytes, target: Path, finish: Callable[[Path], None] | None = None) -> None:
    """Build what :func:`sources` describes in a container of ``image``, and put it in place whole.

    ``finish`` may add to the build before it is there for others.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        _build(image, archive, Path(temporary))
        if finish is not None:
            finish(Path(temporary) / "out")
        try:
            (Path(temporary) / "out").rename(target)
        except OSError:
            # Another process was faster.
            if not target.is_dir():
                raise


def debian_architecture() -> str:
    """This machine's architecture in Debian's spelling."""
    try:
        return ARCHITECTURES[platform.machine()]
    except KeyError:
        raise LabError(f"The test mirror is made for {', '.join(ARCHITECTURES)}, not {platform.machine()}.") from None


def inputs_hash(architecture: str) -> str:
    """Twelve hexadecimal digits that change whenever an input of the build does."""
    digest = hashlib.sha256(architecture.encode())
    for path in (HERE / "catalogue.py", HERE / "payload.py", HERE / "build.py", *sorted((HERE / "data").glob("*.py"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def repositories(architecture: str) -> list[dict[str, Any]]:
    """The repositories, each with its paths (without a leading slash), packages, key and Release fields.

    ``root`` has the Release file, ``index`` the Packages file, ``pool`` the .debs; file names in the index are relative
    to ``base``. debian12's key is bound to its owner by SHA-1, as the real 3bf863cc is: Debian 13 refuses it.
    """
    made = []
    cuda = CUDA_ARCHITECTURES[architecture]
    for distro, key in CUDA_KEY_FILES.items():
        root = f"{CUDA_ROOT}/{distro}/{cuda}".lstrip("/")
        pin = "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"
        made.append(
            {
                **_flat(f"cuda-{distro}", root, cuda_packages()),
                "key": f"{root}/{key}",
                "files": {f"{root}/cuda-{distro}.pin": pin},
                "release": {"Origin": "NVIDIA", "Label": "NVIDIA CUDA", "Architectures": cuda},
                "missing": MISSING["cuda"],
                **({"algorithm": "rsa3072", "gpg": ["--cert-digest-algo", "SHA1"]} if distro == "debian12" else {}),
            }
        )
    root = f"{TOOLKIT_ROOT}/stable/deb".lstrip("/")
    listing = "".join(
        f"{prefix}deb https://nvidia.github.io/libnvidia-container/{channel}/deb/$(ARCH) /\n"
        for prefix, channel in (("", "stable"), ("#", "experimental"))
    )
    made.append(
        {
            **_flat("toolkit", f"{root}/{architecture}", [p for v in TOOLKIT_VERSIONS for p in toolkit_packages(v)]),
            "key": f"{TOOLKIT_ROOT}/gpgkey".lstrip("/"),
            "files": {f"{root}/nvidia-container-toolkit.list": listing},
            "release": {"Origin": "NVIDIA CORPORATION", "Label": "NVIDIA Container Toolkit"},
            "missing": MISSING["toolkit"],
        }
    )
    base = DOCKER_ROOT.lstrip("/")
    for suite in DOCKER_SUITES:
        root = f"{base}/dists/{suite}"
        release = {"Origin": "Docker", "Label": "Docker CE", "Suite": suite, "Codename": suite}
        made.append(
            {
                **_flat(f"docker-{suite}", root, docker_packages(suite)),
                "base": base,
                "index": f"{root}/stable/binary-{architecture}",
                "pool": f"{root}/pool/stable/{architecture}",
                "key": f"{base}/gpg",
                "release": {**release, "Architectures": architecture, "Components": "stable"},
                "missing": MISSING["docker"],
            }
        )
    return made


def _flat(name: str, root: str, packages: list[Package]) -> dict[str, Any]:
    paths = dict.fromkeys(("root", "base", "index", "pool"), root)
    return {"name": name, **paths, "files": {}, "algorithm": "ed25519", "gpg": [], "packages": packages}


def sources(architecture: str) -> bytes:
    """A tar archive for the root of the build container: /work with the trees, the specification and the program."""
    packages: dict[str, dict[str, Any]] = {}
    wanted = repositories(architecture)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(path: str, content: str, mode: int = 0o644) -> None:
            info = tarfile.TarInfo(f"work/{path}")
            info.size, info.mode = len(content.encode()), mode
            archive.addfile(info, io.BytesIO(content.encode()))

        for repository in wanted:
            files = {}
            for package in repository["packages"]:
                name = package.filename(architecture)
                if name not in packages:
                    packages[name] = {"id": name, "tree": f"trees/{len(packages)}"}
                    packages[name]["libraries"] = _add_tree(package, architecture, packages[name]["tree"], archive, add)
                files[name] = name
            repository["packages"] = files
        add("spec.json", json.dumps({"packages": list(packages.values()), "repositories": wanted}))
        add("make_repositories.py", (HERE / "data/make_repositories.py").read_text(encoding="utf-8"))
    return buffer.getvalue()


def _add_tree(package: Package, architecture: str, tree: str, archive: tarfile.TarFile, add: Any) -> dict[str, str]:
    """Add what dpkg-deb packs; return the shared libraries that the container has to link."""
    made = payload(package, architecture)
    fields = package.fields
    if fields["Architecture"] == "any":
        fields["Architecture"] = architecture
    add(f"{tree}/DEBIAN/control", "".join(f"{name}: {value}\n" for name, value in fields.items()))
    if made.conffiles:
        add(f"{tree}/DEBIAN/conffiles", "".join(f"{path}\n" for path in made.conffiles))
    for name, text in made.scripts.items():
        add(f"{tree}/DEBIAN/{name}", text, 0o755)
    for path, text in made.files.items():
        add(f"{tree}{path}", text, 0o755 if path in made.programs else 0o644)
    for path, target in made.links.items():
        info = tarfile.TarInfo(f"work/{tree}{path}")
        info.type, info.linkname = tarfile.SYMTYPE, target
        archive.addfile(info)
    return made.libraries


def _build(image: str, archive: bytes, target: Path) -> None:
    command = (
        "export DEBIAN_FRONTEND=noninteractive && apt-get update -qq && "
        "apt-get install -qq -y --no-install-recommends apt-utils binutils gpg gpg-agent >/dev/null && "
        "exec python3 /work/make_repositories.py"
    )
    container = f"labrack-mirror-build-{os.getpid()}"
    docker("create", f"--name={container}", image, "sh", "-c", command)
    try:
        docker("cp", "-", f"{container}:/", input=archive)
        docker("start", "--attach", container)
        docker("cp", f"{container}:/work/out", str(target))
    except LabError as error:
        raise LabError(f"The test mirror could not be built: {error}") from error
    finally:
        docker("rm", "--force", container, check=False)
        shutil.rmtree(target / "work", ignore_errors=True)
