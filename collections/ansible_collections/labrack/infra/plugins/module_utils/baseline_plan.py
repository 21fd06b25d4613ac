# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan what every node needs before anything else: hosts file, directories, a running time service.

Pure. What the role made is in a record on the node, so that undoing removes that and nothing else.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.host_python_plan import NOTICE
from ansible_collections.labrack.infra.plugins.module_utils.hosts_file import Host, block, render
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service

HOSTS = "/etc/hosts"
RECORD = "/var/lib/labrack/baseline.json"
#: What undoing takes out of the directories before them.
OWN_FILES = frozenset({RECORD, NOTICE})


@dataclass(frozen=True)
class Directory:
    """A directory: its mode ("0755"), owner and group names."""

    mode: str = "0755"
    owner: str = "root"
    group: str = "root"

    def __str__(self) -> str:
        """Return it as ``0755 root:root``."""
        return f"{self.mode} {self.owner}:{self.group}"


@dataclass(frozen=True)
class Record:
    """What the role made on this node: directories, packages and files that can't be told by their text, sorted."""

    directories: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str | None) -> Record:
        """Return the record in a file's text; an empty one for no file. ValueError for a damaged one."""
        found = json.loads(text) if text else {}
        return cls(*(tuple(found.get(key, ())) for key in ("directories", "packages", "files")))

    def file(self) -> FileState | None:
        """Return the file that holds the record, or None when there is nothing to remember."""
        if not (self.directories or self.packages or self.files):
            return None
        content = {"directories": list(self.directories), "packages": list(self.packages), "files": list(self.files)}
        return FileState(json.dumps(content, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Observed:
    """A node as it is; ``directories`` covers the wanted and the recorded ones, ``entries`` the names in them."""

    hosts: FileState | None = None
    directories: Mapping[str, Directory] = field(default_factory=dict)
    entries: Mapping[str, frozenset[str]] = field(default_factory=dict)
    time_service: ServiceState = field(default_factory=ServiceState)
    record: FileState | None = None


@dataclass(frozen=True)
class Wanted:
    """A node as it should be. ``present`` False: nothing of ours, so the other fields are empty.

    ``time_service`` is a systemd unit that shall run, or empty, and ``packages`` are its; ``installed`` are packages
    that the role just added, ``files`` what ``host_python_plan.ours`` says.
    """

    present: bool = True
    hosts: tuple[Host, ...] = ()
    directories: Mapping[str, Directory] = field(default_factory=dict)
    time_service: str = ""
    packages: tuple[str, ...] = ()
    installed: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def wanted_hosts_file(observed: Observed, wanted: Wanted) -> FileState:
    """Return the hosts file with our block as wanted, else as it is."""
    current = observed.hosts or FileState("")
    return replace(current, text=render(current.text, wanted.hosts))


def removable(observed: Observed, wanted: Wanted) -> list[str]:
    """Return the directories that we made, nobody wants any more and nothing is in, the deepest first."""
    gone = set() if wanted.present else set(OWN_FILES)
    for path in sorted(Record.read(observed.record.text if observed.record else None).directories, reverse=True):
        inside = {posixpath.join(path, name) for name in observed.entries.get(path, ())}
        if path in observed.directories and path not in wanted.directories and inside <= gone:
            gone.add(path)
    return sorted(gone - OWN_FILES, reverse=True)


def wanted_record(observed: Observed, wanted: Wanted) -> Record:
    """Return what there is to remember once the plan is applied."""
    if not wanted.present:
        return Record()
    before = Record.read(observed.record.text if observed.record else None)
    made = {path for path in wanted.directories if path not in observed.directories}
    kept = {path for path in before.directories if path in observed.directories or path in wanted.directories}
    return Record(
        tuple(sorted((made | kept) - set(removable(observed, wanted)))),
        tuple(sorted({*before.packages, *wanted.installed})),
        wanted.files,
    )


def plan(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied."""
    changes: list[Change] = []
    if observed.hosts is not None or wanted.hosts:
        file = wanted_hosts_file(observed, wanted)
        changes += plan_file(HOSTS, observed.hosts, file, part=block(file.text))
    for path, directory in sorted(wanted.directories.items()):
        found = observed.directories.get(path)
        managed.note("directory", path)
        if found is None:
            step = ("mkdir", path)
            changes.append(Change(f"directory {path}", f"created {directory}", after=str(directory), step=step))
        elif found != directory:
            summary = f"{found} → {directory}"
            step = ("chmod", path)
            changes.append(Change(f"directory {path}", summary, before=str(found), after=str(directory), step=step))
    if wanted.time_service:
        managed.note_packages(wanted.packages)
        changes += plan_service(wanted.time_service, observed.time_service)
    changes += plan_file(RECORD, observed.record, wanted_record(observed, wanted).file())
    for path in removable(observed, wanted):
        before = str(observed.directories[path])
        changes.append(Change(f"directory {path}", "removed", before=before, step=("rmdir", path)))
    return changes
