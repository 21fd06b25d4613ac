# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where the lab's files are: which host has each shared directory, and what every other host sees of it.

Pure. The inventory's ``lab_directories`` and the group ``nfs_server`` say it all; the roles for servers, clients and
people ask here, so that they can't disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUP = "nfs_server"


@dataclass(frozen=True)
class Directory:
    """A directory that people find under the same ``path`` on every node.

    ``source`` is the folder that holds it on ``server``; ``server`` empty: every host has a directory of its own.
    ``provided``: something else than labrack mounts it on every host (another file server, a volume); it is only
    looked at, and filled from ``server``. ``filesystem``: the mount point that must be mounted before anything is
    served, empty for whichever ``/etc/fstab`` names. ``over``: mounting may hide what lies in the directory.
    """

    path: str
    source: str
    server: str = ""
    mode: str = "0755"
    owner: str = "root"
    group: str = "root"
    read_only: bool = False
    provided: bool = False
    filesystem: str = ""
    over: bool = False
    options: tuple[str, ...] = ()

    def local_to(self, host: str) -> bool:
        """Return whether a host makes what is in the directory, and not only uses it."""
        return self.server in ("", host)


def read(entries: Iterable[Mapping[str, Any]], servers: Sequence[str]) -> tuple[Directory, ...]:
    """Return the directories of ``lab_directories``; ``servers`` are the hosts of the group ``nfs_server``, in order.

    An entry without a server is the first one's; without any server it is every host's own.
    """
    return tuple(
        Directory(
            path=entry["path"],
            source=entry.get("source") or entry["path"],
            server=entry.get("server") or (servers[0] if servers else ""),
            mode=entry.get("mode") or "0755",
            owner=entry.get("owner") or "root",
            group=entry.get("group") or "root",
            read_only=bool(entry.get("read_only")),
            provided=bool(entry.get("provided")),
            filesystem=entry.get("filesystem") or "",
            over=bool(entry.get("over")),
            options=tuple(entry.get("options") or ()),
        )
        for entry in entries
    )


def inside(path: str, folder: str) -> bool:
    """Return whether a path is a folder or lies in it; both absolute and without ``..``."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def covering(directories: Iterable[Directory], path: str) -> Directory | None:
    """Return the directory in which a path lies, the deepest if several do; None for a path that none shares."""
    around = [directory for directory in directories if inside(path, directory.path)]
    return max(around, key=lambda directory: len(directory.path), default=None)


def makes(directories: Iterable[Directory], path: str, host: str) -> bool:
    """Return whether a host has to make what is at a path: it is local to it, or no shared directory has it."""
    directory = covering(directories, path)
    return directory is None or directory.local_to(host)


def on_server(directories: Iterable[Directory], path: str) -> str:
    """Return where a path that people use lies on its server, the path itself if nothing shares it."""
    directory = covering(directories, path)
    if directory is None:
        return path
    return directory.source.rstrip("/") + path[len(directory.path.rstrip("/")) :]
