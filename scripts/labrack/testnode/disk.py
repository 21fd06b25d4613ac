# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build the disk of a test node that is a virtual machine: the container's image with a kernel and more packages."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .docker import DATA, LabError, Say, docker, last_lines
from .engine import ensure_engine
from .image import ImageError, ensure_image, host_mirrors
from .image import inputs_hash as image_hash

#: The recipe: a Dockerfile on top of the node's image, and its inputs.
RECIPE = DATA / "vm"
#: The systems whose packages the recipe knows.
KERNELS = ("debian12", "debian13")


@dataclass(frozen=True)
class Disk:
    """A built disk with what boots it; read-only for its machines, which write to overlays of their own."""

    folder: Path

    @property
    def root(self) -> Path:
        """The raw disk, with one ext4 file system and no partitions."""
        return self.folder / "root.raw"

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Its initial file system."""
        return self.folder / "initrd"


def cache() -> Path:
    """Where disks and booted machines are kept, for all checkouts of a user; nothing but time is lost with it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labrack/vm"


def ensure_disk(system: str, say: Say) -> Disk:
    """Return the disk for ``system`` (a key of :data:`.image.SYSTEMS`, Debian's alone), building it if it isn't there.

    Its folder names the build's inputs, those of the container's image too. The build needs a Docker engine, whose
    containers see the cache. Raises :class:`.docker.LabError`.
    """
    if system not in KERNELS:
        raise ImageError(f"A virtual machine has {' or '.join(KERNELS)}, not {system!r}.")
    name = f"{system}-{inputs_hash(system)}"
    folder = cache() / name
    with locked(cache() / f"{name}.lock"):
        if not folder.is_dir():
            ensure_engine(say)
            base = ensure_image(system, say)
            started = time.monotonic()
            say(f"{system}: building the disk with its kernel")
            _build(base, f"labrack-vm:{name}", folder)
            say(f"{system}: disk built in {time.monotonic() - started:.0f} s")
    return Disk(folder)


def inputs_hash(system: str) -> str:
    """Twelve hexadecimal digits that change whenever an input of the disk, or of the image below it, does."""
    digest = hashlib.sha256(image_hash(system, host_mirrors()).encode())
    for path in sorted(RECIPE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two runs don't make the same thing at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(base: str, tag: str, folder: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="building-", dir=cache()))
    work.chmod(0o755)
    try:
        docker("build", "-q", "-t", tag, f"--build-arg=BASE={base}", str(RECIPE))
        _write(tag, work)
        work.rename(folder)
    except LabError as error:
        raise ImageError(f"The disk {folder.name} could not be built: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        docker("image", "rm", tag, check=False)


def _write(tag: str, work: Path) -> None:
    """Write an image's files as a disk, with the tools that it has itself, as their versions differ from the host's."""
    container = docker("create", tag).stdout.strip()
    make = ["docker", "run", "--rm", "-i", f"--volume={work}:/out", tag, "/usr/lib/labrack-testnode/make-disk"]
    try:
        export = subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE)
        made = subprocess.run(make, stdin=export.stdout, capture_output=True, text=True)
        if export.wait() != 0 or made.returncode != 0:
            raise ImageError(f"make-disk failed ({made.returncode}): {last_lines(made.stderr)}")
    finally:
        docker("rm", container)
