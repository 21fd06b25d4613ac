# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Start the mirror in a lab's network, break it, mend it, take it away.

Nodes of the lab reach it as ``http://mirror``; nothing listens outside the lab's network. The container carries the
lab's label, so that taking the lab away takes it along.
"""

from __future__ import annotations

import enum
import io
import json
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labrack.testnode.docker import LabError, Say, docker
from labrack.testnode.image import ensure_image
from labrack.testnode.node import LABEL, container_name, network_name
from tests.mirror.build import SYSTEM, ensure_tree
from tests.mirror.catalogue import CUDA_ROOT, TOOLKIT_ROOT

#: The mirror's name in the lab's network.
ALIAS = "mirror"
URL = f"http://{ALIAS}"
#: Where its files are in its container.
ROOT = "/srv/mirror"
#: Seconds until a started mirror must answer, and until a closed port must refuse.
PATIENCE = 20.0


class Fault(enum.Enum):
    """A way to break what lies below a path."""

    EXPIRED_KEY = "expired-key"
    """The key file is an old copy of the right key, which has expired; the repository is signed with it today."""
    WRONG_KEY = "wrong-key"
    """The key file holds another key than the one that signs the repository."""
    MISSING_VERSION = "missing-version"
    """The versions of :data:`.catalogue.MISSING` are not in the index, which is signed and whole."""
    HALF_SYNCED = "half-synced"
    """Packages and Packages.gz are not those that Release and InRelease tell the sums of."""
    HTML_PAGE = "html-page"
    """Everything is a web page that says "not found", with status 200, as from a captive portal."""
    WRONG_CHECKSUM = "wrong-checksum"
    """A .deb has its size, but another sum than the index says."""
    SLOW = "slow"
    """Each answer comes after some seconds."""
    REFUSED = "refused"
    """Nothing listens; this holds for the whole mirror, whatever the path."""


@dataclass(frozen=True)
class Key:
    """The key that signs a repository."""

    fingerprint: str
    #: Its path in the mirror, with a leading slash.
    path: str

    @property
    def url(self) -> str:
        """Where nodes of the lab find it."""
        return URL + self.path


@dataclass(frozen=True)
class Mirror:
    """A running mirror."""

    lab: str
    container: str
    #: Repository (``cuda-debian12``, ``toolkit``, ``docker-trixie``, and so on) -> its key.
    keys: Mapping[str, Key]


def keys(tree: Path) -> dict[str, Key]:
    """The keys that a build's fingerprints.json names, by repository."""
    index: dict[str, Any] = json.loads((tree / "fingerprints.json").read_text(encoding="utf-8"))
    return {name: Key(entry["fingerprint"], entry["key"]) for name, entry in index.items()}


def up(lab: str, say: Say, tree: Path | None = None, *more: Path) -> Mirror:
    """Build the mirror where that wasn't done yet, start it in a running lab's network, and return when it answers.

    ``tree`` is another build than that of :func:`.build.ensure_tree`, as :mod:`.tailnet` makes it, and ``more`` are
    served beside it. Raises :class:`labrack.testnode.docker.LabError`.
    """
    if docker("network", "inspect", network_name(lab), check=False).returncode != 0:
        raise LabError(f"No lab named {lab} is up. Start one first: the mirror needs its network.")
    tree = tree or ensure_tree(say)
    mirror = Mirror(lab, container_name(lab, ALIAS), keys(tree))
    docker(
        "create",
        f"--name={mirror.container}",
        f"--hostname={ALIAS}",
        f"--label={LABEL}={lab}",
        f"--network={network_name(lab)}",
        f"--network-alias={ALIAS}",
        "--init",
        ensure_image(SYSTEM, say),
        "python3",
        f"{ROOT}/server.py",
        ROOT,
    )
    try:
        docker("cp", "-", f"{mirror.container}:/", input=_archive(tree, *more))
        docker("start", mirror.container)
        _await(mirror, answers=True)
    except BaseException:
        down(lab)
        raise
    say(f"{lab}: mirror up as {URL}")
    return mirror


def variables(mirror: Mirror, system: str) -> dict[str, Any]:
    """The roles' variables with which a node of ``system`` ("debian13") takes everything from the mirror."""
    suite = {"debian12": "docker-bookworm"}.get(system, "docker-trixie")
    cuda = mirror.keys.get(f"cuda-{system}")
    return {
        "nvidia_driver_repo_url": f"{URL}{CUDA_ROOT}",
        "nvidia_driver_repo_key_fingerprint": cuda.fingerprint if cuda else "",
        "container_toolkit_repo_url": f"{URL}{TOOLKIT_ROOT}/stable",
        "container_toolkit_repo_key_url": mirror.keys["toolkit"].url,
        "container_toolkit_repo_key_fingerprint": [mirror.keys["toolkit"].fingerprint],
        "container_toolkit_docker_repo_url": f"{URL}/linux",
        "container_toolkit_docker_repo_key_fingerprint": [mirror.keys[suite].fingerprint],
    }


def down(lab: str) -> None:
    """Take the mirror of a lab away; a missing one is no error."""
    docker("rm", "--force", container_name(lab, ALIAS), check=False)


def set_fault(mirror: Mirror, fault: Fault, prefix: str = "/", seconds: float = 5.0) -> None:
    """Break what lies below ``prefix`` (a directory or one file) in one way; other faults stay.

    ``seconds`` is how long :attr:`Fault.SLOW` lasts. Raises ValueError where ``prefix`` has no leading slash.
    """
    if not prefix.startswith("/"):
        raise ValueError(f"{prefix!r} is no path of the mirror: it begins with a slash, as in /libnvidia-container/")
    table = _faults(mirror)
    table[prefix] = {"fault": fault.value, "seconds": seconds}
    _control(mirror, table)


def clear_faults(mirror: Mirror) -> None:
    """Mend everything."""
    _control(mirror, {})


def _faults(mirror: Mirror) -> dict[str, Any]:
    done = docker("exec", mirror.container, "cat", f"{ROOT}/control.json")
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def _control(mirror: Mirror, table: Mapping[str, Any]) -> None:
    # In one step: the server must not read half a file.
    script = f"cat >{ROOT}/control.new && mv {ROOT}/control.new {ROOT}/control.json"
    docker("exec", "-i", mirror.container, "sh", "-c", script, input=json.dumps(table))
    _await(mirror, answers=all(fault["fault"] != Fault.REFUSED.value for fault in table.values()))


def _await(mirror: Mirror, answers: bool) -> None:
    """Return when the port is open, or closed."""
    script = "import socket; socket.create_connection(('127.0.0.1', 80), 5).close()"
    deadline = time.monotonic() + PATIENCE
    while (docker("exec", mirror.container, "python3", "-c", script, check=False).returncode == 0) != answers:
        if time.monotonic() > deadline:
            logs = docker("logs", "--tail", "15", mirror.container, check=False)
            state = "answer" if answers else "refuse connections"
            raise LabError(f"The mirror of {mirror.lab} does not {state}. Its log ends:\n{logs.stdout}{logs.stderr}")
        time.sleep(0.1)


def _archive(*trees: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as archive:
        archive.add(Path(__file__).parent / "data/server.py", f"{ROOT}/server.py")
        for tree in trees:
            for name in ("tree", "alternates"):
                archive.add(tree / name, f"{ROOT}/{name}")
        info = tarfile.TarInfo(f"{ROOT}/control.json".lstrip("/"))
        info.size = 2
        archive.addfile(info, io.BytesIO(b"{}"))
    return buffer.getvalue()
