# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give a node its hosts entries, directories, time service and a clean Python of the system's, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: baseline
short_description: Hosts entries, directories, time service and golden rule of a node
version_added: 0.1.0
author:
  - labrack contributors (@labrack)
description:
  - Keeps one block in C(/etc/hosts) with an entry for every node, and moves node names off loopback addresses,
    where Debian's installer puts them.
  - Makes directories and remembers, in C(/var/lib/labrack/baseline.json), which of them it made.
  - Enables and starts the time service it is given.
  - Puts an own marker (PEP 668) in the place of the one of the system's Python, so that C(pip) and C(uv) say what to
    do instead of installing into it. Where C(pip) is older than 23.0 and does not know the marker, a setting in
    C(/root/.config/pip/pip.conf) keeps C(sudo pip install) out.
  - Installs C(uv) and C(uvx) into C(/usr/local/bin) from uv's wheel, whose checksum is checked before anything is
    written, and gives each user a cache of their own below one folder.
  - Tells admins at login what breaks the golden rule (driver, container runtime, orchestrator, nothing else), with the
    whole story in C(/var/lib/labrack/golden-rule).
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description:
      - V(absent) removes what the module made and nothing else; the other options are then ignored.
    type: str
    choices: [present, absent]
    default: present
  hosts:
    description:
      - Every node of the lab.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - The node's name.
        type: str
        required: true
      address:
        description:
          - Its address. Left out where it is not known in this run, an entry that is already there is kept.
        type: str
      aliases:
        description:
          - Further names of the node.
        type: list
        elements: str
        default: []
  hosts_source:
    description:
      - V(file) keeps the block, V(dns) leaves names to DNS and warns where the file says something else.
    type: str
    choices: [file, dns]
    default: file
  directories:
    description:
      - Directories that shall exist.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Absolute path; the directory above it must be there or be in the list too.
        type: path
        required: true
      mode:
        description:
          - Mode in octal digits.
        type: str
        default: "0755"
      owner:
        description:
          - User name.
        type: str
        default: root
      group:
        description:
          - Group name.
        type: str
        default: root
  uids:
    description:
      - Numbers of users who may own directories and are made on this node later, by name.
    type: dict
    default: {}
  gids:
    description:
      - The same of groups.
    type: dict
    default: {}
  time_service:
    description:
      - Systemd unit that shall run and start at boot; nothing when empty.
    type: str
    default: ""
  packages:
    description: Packages that the caller has seen to be there, so that C(labrack drift) misses them later.
    type: list
    elements: str
    default: []
  installed:
    description:
      - Packages that the caller has just installed, to be remembered for O(state=absent).
    type: list
    elements: str
    default: []
  python_guard:
    description:
      - Whether the system's Python gets the marker.
    type: bool
    default: true
  uv_version:
    description:
      - The version of uv; none when empty. One of this version that is there is left alone.
    type: str
    default: ""
  uv_url:
    description:
      - The index that has the wheel, with a page C(uv/) below it.
    type: str
    default: https://pypi.org/simple
  uv_sha256:
    description:
      - The wheel's SHA-256 by architecture, as C(uname -m) names it.
    type: dict
    default: {}
  uv_cache:
    description:
      - Folder above the users' caches; none when empty, and where the first folder of the path is missing or lies on a
        server.
    type: str
    default: ""
  facts:
    description:
      - The parts C(system_python), C(cuda) and C(conflicts) of the facts of M(labrack.infra.node_facts).
    type: dict
    default: {}
  orchestrator:
    description:
      - The lab's own orchestrator, whose daemons break nothing.
    type: str
    default: none
  admins:
    description:
      - Users who are told at login what breaks the golden rule, besides those whom sudoers name.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Converge a node of two
  labrack.infra.baseline:
    hosts:
      - {name: head, address: 10.0.0.1}
      - {name: worker1, address: 10.0.0.2, aliases: [w1]}
    directories:
      - {path: /var/lib/labrack}
    time_service: chrony
    uv_version: 0.13.9
    uv_sha256:
      x86_64: d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
    uv_cache: /data/cache/uv
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Changes that O(max_disruption) does not cover.
  returned: success
  type: list
  elements: dict
conflicts:
  description: Nodes whose name C(/etc/hosts) gives another address outside the block; also shown as warnings.
  returned: success
  type: list
  elements: str
golden_rule:
  description: What breaks the golden rule, each with C(name), C(seen), C(why) and C(mend).
  returned: success
  type: list
  elements: dict
packages:
  description: Packages that were installed by the caller of this module and nobody needs any more.
  returned: success
  type: list
  elements: str
"""

import contextlib
import grp
import os
import platform
import pwd
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import (
    baseline_plan,
    golden_rule,
    host_python_plan,
    hosts_file,
    managed_observe,
    node_io,
    python_observe,
    users_plan,
    uv_wheel,
)
from ansible_collections.labrack.infra.plugins.module_utils.baseline_plan import (
    Directory,
    Observed,
    Record,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    ServiceState,
    act,
    observe_services,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "hosts": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "address": {"type": "str"},
            "aliases": {"type": "list", "elements": "str", "default": []},
        },
    },
    "hosts_source": {"type": "str", "choices": ["file", "dns"], "default": "file"},
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "mode": {"type": "str", "default": "0755"},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
        },
    },
    "uids": {"type": "dict", "default": {}},
    "gids": {"type": "dict", "default": {}},
    "time_service": {"type": "str", "default": ""},
    "packages": {"type": "list", "elements": "str", "default": []},
    "installed": {"type": "list", "elements": "str", "default": []},
    "python_guard": {"type": "bool", "default": True},
    "uv_version": {"type": "str", "default": ""},
    "uv_url": {"type": "str", "default": "https://pypi.org/simple"},
    "uv_sha256": {"type": "dict", "default": {}},
    "uv_cache": {"type": "str", "default": ""},
    "facts": {"type": "dict", "default": {}},
    "orchestrator": {"type": "str", "default": "none"},
    "admins": {"type": "list", "elements": "str", "default": []},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}

ROOT = Path("/")
#: Where dpkg keeps its diversions: three lines each, the last one the package (dpkg lib/dpkg/divertdb.c).
DIVERSIONS = Path("/var/lib/dpkg/diversions")


def read_nodes(params: dict[str, Any]) -> tuple[hosts_file.Host, ...]:
    """Return the nodes named in the module's parameters."""
    return tuple(hosts_file.Host(host["name"], host["address"], tuple(host["aliases"])) for host in params["hosts"])


def read_wanted(params: dict[str, Any]) -> Wanted:
    """Return the state that the module's parameters ask for."""
    if params["state"] == "absent":
        return Wanted(present=False)
    return Wanted(
        hosts=read_nodes(params) if params["hosts_source"] == "file" else (),
        directories={
            one["path"]: Directory(
                one["mode"].zfill(4),
                _named(one["owner"], params["uids"], pwd.getpwnam),
                _named(one["group"], params["gids"], grp.getgrnam),
            )
            for one in params["directories"]
        },
        time_service=params["time_service"],
        packages=tuple(params["packages"]),
        installed=tuple(params["installed"]),
    )


def read_wanted_python(params: dict[str, Any]) -> host_python_plan.Wanted:
    """Return the state of the host's Python that the module's parameters ask for; no cache where it can't be."""
    cache, mounts = params["uv_cache"], python_observe.read_mounts(ROOT)
    if not params["uv_version"] or any(python_observe.remote(mounts, path) for path in _ancestors(cache)):
        cache = ""
    return host_python_plan.Wanted(params["state"] == "present", params["python_guard"], params["uv_version"], cache)


def with_cache(wanted: Wanted, python: host_python_plan.Wanted) -> tuple[Wanted, host_python_plan.Wanted]:
    """Return both wishes with the folders of uv's cache, or without the cache where its first folder is missing."""
    there = [path for path in _ancestors(python.cache) if os.path.isdir(path)]
    folders = host_python_plan.cache_folders(python.cache, there, wanted.directories) if wanted.present else []
    if not folders:
        return wanted, replace(python, cache="")
    # sticky: each user's cache is safe from the others, but anybody may begin one
    modes = {path: Directory() for path in folders[:-1]}
    return replace(wanted, directories={**modes, folders[-1]: Directory("1777"), **wanted.directories}), python


def _ancestors(path: str) -> list[str]:
    """A path and the folders above it, but for /."""
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)] if path else []


@dataclass(frozen=True)
class Node:
    """A node as it is: the base, and its Python."""

    base: Observed
    python: host_python_plan.Observed

    @property
    def recorded(self) -> tuple[str, ...]:
        """The files that the record names (ValueError for a damaged one)."""
        return Record.read(self.base.record.text if self.base.record else None).files


def observe(wanted: Wanted) -> Observed:
    """Read the node (ValueError for a damaged record)."""
    record = node_io.observe_file(baseline_plan.RECORD)
    paths = {*wanted.directories, *Record.read(record.text if record else None).directories}
    there = sorted(path for path in paths if os.path.isdir(path))
    unit = wanted.time_service
    return Observed(
        hosts=node_io.observe_file(baseline_plan.HOSTS),
        directories={path: _directory(path) for path in there},
        entries={path: frozenset(_entries(path)) for path in there if path not in wanted.directories},
        time_service=observe_services([unit])[unit] if unit else ServiceState(),
        record=record,
    )


def _entries(path: str) -> set[str]:
    """The names in a directory, but for the ledgers' where there is none but this module's, which goes with it."""
    folder, name = os.path.split(managed_observe.FOLDER)
    return set(os.listdir(path)) - ({name} if path == folder and managed_observe.holds_only("baseline") else set())


def observe_python(
    python: host_python_plan.Wanted, facts: dict[str, Any], notice: str, admins: list[str]
) -> host_python_plan.Observed:
    """Read what concerns the host's Python; ``facts`` are those of the module ``node_facts``.

    ``admins`` are the inventory's, whose own file among sudoers' may be of the run before.
    """
    marker = python_observe.marker(ROOT)
    others = (path for path in sorted(Path("/etc/sudoers.d").glob("*")) if str(path) != users_plan.SUDOERS)
    found = host_python_plan.read_admins([node_io.read_text(path) or "" for path in (Path("/etc/sudoers"), *others)])
    mounts = python_observe.read_mounts(ROOT)
    return host_python_plan.Observed(
        marker=marker,
        marker_file=node_io.observe_file(marker) if marker else None,
        diverted=diverted_markers(),
        pip=(facts.get("system_python") or {}).get("pip"),
        pip_conf=node_io.observe_file(host_python_plan.PIP_CONF),
        programs=uv_wheel.observe_programs(),
        login=node_io.observe_file(host_python_plan.LOGIN),
        notice=node_io.observe_file(host_python_plan.NOTICE),
        admins=tuple(sorted({*found, *admins})),
        copies=python_observe.mount_of(mounts, python.cache or "/") != python_observe.mount_of(mounts, "/home"),
        notice_text=notice,
    )


def diverted_markers() -> tuple[str, ...]:
    """Return the markers in whose place ours is: as dpkg knows them, elsewhere by our text or by what was set aside."""
    if DIVERSIONS.exists():
        lines = (node_io.read_text(DIVERSIONS) or "").splitlines()
        pairs = zip(lines[::3], lines[1::3])
        return tuple(sorted(path for path, kept in pairs if kept == path + host_python_plan.KEPT))
    found = set()
    for path in Path("/usr").glob(f"lib*/python3*/{python_observe.MARKER}*"):
        if path.name.endswith(host_python_plan.KEPT):
            found.add(str(path)[: -len(host_python_plan.KEPT)])
        elif (node_io.read_text(path) or "").startswith(host_python_plan.HEADER):
            found.add(str(path))
    return tuple(sorted(found))


def _named(name: str, numbers: Mapping[str, int], ask: Callable[[str], object]) -> str:
    """Return how a name shows on this node: as itself, or as its number while nobody has it yet."""
    try:
        ask(name)
    except KeyError:
        return str(numbers.get(name, name))
    return name


def _number(name: str) -> str | int:
    return int(name) if name.isdigit() else name


def _directory(path: str) -> Directory:
    info = os.stat(path)
    mode = f"{info.st_mode & 0o7777:04o}"
    return Directory(mode, node_io.owner_name(info.st_uid), node_io.group_name(info.st_gid))


def divert(path: str, on: bool) -> None:
    """Set the package's own file at ``path`` aside, or give it back its place (OSError)."""
    kept = path + host_python_plan.KEPT
    if not on:
        node_io.remove_file(path)
    if DIVERSIONS.exists():
        # --no-rename would leave the package's file to be overwritten by ours
        argv = ["dpkg-divert", "--local", "--rename", "--quiet", "--divert", kept, "--add" if on else "--remove", path]
        done = node_io.run(argv)
        if done.rc:
            raise OSError(f"{' '.join(argv)}: {done.err.strip()}")
    else:
        source, target = (path, kept) if on else (kept, path)
        with contextlib.suppress(FileNotFoundError):
            os.rename(source, target)


def apply(
    changes: list[Change],
    node: Node,
    wanted: Wanted,
    python: host_python_plan.Wanted,
    programs: dict[str, bytes],
) -> None:
    """Make the changes (OSError, LookupError for an unknown owner, or ServiceError when the node refuses).

    ``programs`` are uv's, where a change asks for them.
    """
    files = {
        **host_python_plan.wanted_files(node.python, python),
        baseline_plan.HOSTS: baseline_plan.wanted_hosts_file(node.base, wanted),
        baseline_plan.RECORD: baseline_plan.wanted_record(node.base, wanted).file(),
    }
    for change in changes:
        verb, target = change.step
        if verb == "mkdir":
            os.mkdir(target)
        if verb in ("mkdir", "chmod"):
            directory = wanted.directories[target]
            shutil.chown(target, _number(directory.owner), _number(directory.group))
            os.chmod(target, int(directory.mode, 8))
        elif verb == "rmdir":
            if target == os.path.dirname(managed_observe.FOLDER):
                managed_observe.forget(["baseline"])
            os.rmdir(target)
        elif verb == "remove":
            node_io.remove_file(target)
        elif verb == "write":
            content = files[target]
            if content is not None:
                node_io.write_file(target, content)
        elif verb in ("divert", "undivert"):
            divert(target, verb == "divert")
        elif verb == "uv":
            uv_wheel.install(programs, target)
        else:
            act(verb, target)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    base, python = with_cache(read_wanted(params), read_wanted_python(params))
    found = golden_rule.findings(params["facts"], params["orchestrator"], params["python_guard"])
    notice = golden_rule.notice(found, host_python_plan.NOTICE) if base.present else ""
    seen = Node(Observed(), host_python_plan.Observed())
    wanted = base
    unneeded: list[str] = []

    def look() -> Node:
        nonlocal seen, wanted
        seen = Node(observe(base), observe_python(python, params["facts"], notice, params["admins"]))
        wanted = replace(base, files=host_python_plan.ours(seen.python, python, seen.recorded))
        if not wanted.present and seen.base.record:
            unneeded.extend(Record.read(seen.base.record.text).packages)
        return seen

    def plan(node: Node) -> list[Change]:
        of_base = baseline_plan.plan(node.base, wanted)
        of_python = host_python_plan.plan(node.python, python, node.recorded)
        # directories come before what lies in them, and go after it
        return of_base + of_python if wanted.present else of_python + of_base

    def make(changes: list[Change]) -> None:
        programs: dict[str, bytes] = {}
        if any(change.step[0] == "uv" for change in changes):
            # what can fail outside of this node comes first
            programs = uv_wheel.fetch(params["uv_url"], params["uv_version"], platform.machine(), params["uv_sha256"])
        apply(changes, seen, wanted, python, programs)

    def extra(node: Node) -> dict[str, Any]:
        text = node.base.hosts.text if node.base.hosts else ""
        block = params["hosts_source"] == "file"
        conflicts = hosts_file.conflicts(text, read_nodes(params), block) if wanted.present else []
        for line in conflicts:
            module.warn(line)
        return {"conflicts": conflicts, "golden_rule": found, "packages": unneeded}

    try:
        converge(module, look, plan, make, extra, ledger="baseline")
    except ValueError as error:
        module.fail_json(msg=f"{baseline_plan.RECORD} is damaged ({error}). Mend: remove it and run again.")
    except (OSError, LookupError, ServiceError, uv_wheel.UvError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
