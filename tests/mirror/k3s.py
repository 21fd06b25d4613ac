# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""k3s' releases as GitHub has them, with a stand-in for the program (``data/k3s``), which tells the version it is of.

A tree of its own, to be served alone or beside the others. Layout and sums: k3s-io/k3s, release v1.36.3+k3s1.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

from labrack.testnode.docker import LabError, Say, docker
from labrack.testnode.image import ensure_image
from tests.mirror.build import CACHE, HERE, SYSTEM, debian_architecture
from tests.mirror.serve import URL

RELEASES = "k3s-io/k3s/releases/download"
SOURCES = (HERE / "data/k3s/k3s.c", HERE / "data/k3s/k3s.py")
#: One of each minor version, the newest last.
VERSIONS = ("v1.34.10+k3s1", "v1.35.7+k3s1", "v1.36.3+k3s1")
#: Its sums are not those of its files.
WRONG_SUM = "v1.36.4+k3s1"
#: Its program is that of another release.
WRONG_PROGRAM = "v1.36.5+k3s1"
#: Nobody has made it.
MISSING = "v1.36.9+k3s1"
#: Where the program has its version (k3s.c).
PLACE, ROOM = b"@K3S-VERSION@", 64


def ensure_tree(say: Say) -> Path:
    """The directory with tree/, alternates/ and fingerprints.json, made first where no build has these inputs.

    Raises :class:`labrack.testnode.docker.LabError`.
    """
    architecture = debian_architecture()
    target = CACHE / f"k3s-{inputs_hash(architecture)}"
    if target.is_dir():
        return target
    started = time.monotonic()
    say("Building the test mirror of k3s")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        out = Path(temporary) / "out"
        write_releases(out / "tree" / RELEASES, compiled(ensure_image(SYSTEM, say)), architecture)
        (out / "alternates").mkdir()
        (out / "fingerprints.json").write_text("{}\n", encoding="utf-8")
        try:
            out.rename(target)
        except OSError:
            # another process was faster
            if not target.is_dir():
                raise
    say(f"Test mirror of k3s built in {time.monotonic() - started:.0f} s")
    return target


def inputs_hash(architecture: str) -> str:
    """Twelve hexadecimal digits that change whenever an input of the build does."""
    digest = hashlib.sha256(architecture.encode())
    for path in (Path(__file__), *SOURCES):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def variables() -> dict[str, str]:
    """The role's variables with which a node takes k3s from the mirror."""
    return {"k3s_artifact_url": f"{URL}/{RELEASES}"}


def compiled(image: str) -> bytes:
    """The program, without what is appended to it, made in a container of ``image``."""
    command = (
        "export DEBIAN_FRONTEND=noninteractive && apt-get update -qq && "
        "apt-get install -qq -y --no-install-recommends gcc libc6-dev >/dev/null && "
        "gcc -O1 -static -Wall -Werror -s -o /k3s /k3s.c"
    )
    container = f"labrack-k3s-build-{os.getpid()}"
    source = io.BytesIO()
    with tarfile.open(fileobj=source, mode="w") as archive:
        archive.add(SOURCES[0], "k3s.c")
    docker("create", f"--name={container}", image, "sh", "-c", command)
    try:
        docker("cp", "-", f"{container}:/", input=source.getvalue())
        docker("start", "--attach", container)
        with tempfile.TemporaryDirectory() as folder:
            docker("cp", f"{container}:/k3s", f"{folder}/k3s")
            return (Path(folder) / "k3s").read_bytes()
    except LabError as error:
        raise LabError(f"The stand-in for k3s could not be built: {error}") from error
    finally:
        docker("rm", "--force", container, check=False)


def program(bare: bytes, version: str) -> bytes:
    """The program of a version."""
    assert bare.count(PLACE) == 1
    start = bare.index(PLACE)
    named = bare[:start] + version.encode().ljust(ROOM, b"\0") + bare[start + ROOM :]
    script = SOURCES[1].read_bytes()
    return named + script + f"{len(script):010}".encode()


def write_releases(folder: Path, bare: bytes, architecture: str) -> None:
    """Write all releases with their sums."""
    name = "k3s" if architecture == "amd64" else f"k3s-{architecture}"
    for version in (*VERSIONS, WRONG_SUM, WRONG_PROGRAM):
        release = folder / version
        release.mkdir(parents=True)
        images = f"stand-in for the images of {version}\n".encode()
        files = {
            name: program(bare, VERSIONS[-1] if version == WRONG_PROGRAM else version),
            f"k3s-airgap-images-{architecture}.tar.zst": images,
        }
        lines = []
        for file, content in files.items():
            (release / file).write_bytes(content)
            told = content + b"\0" if version == WRONG_SUM else content
            lines.append(f"{hashlib.sha256(told).hexdigest()}  {file}\n")
        (release / f"sha256sum-{architecture}.txt").write_text("".join(lines), encoding="utf-8")
