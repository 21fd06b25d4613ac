# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give a node Docker and the NVIDIA Container Toolkit, merged into what is there, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_toolkit
short_description: Docker and the NVIDIA Container Toolkit of a node
version_added: 0.1.0
author:
  - labrack contributors (@labrack)
description:
  - Installs Docker where there is none, and the toolkit in one version, which is pinned and held. A Docker from
    another source than O(docker) is kept and reported.
  - Merges settings into C(/etc/docker/daemon.json). Every other key stays, and a file that is no JSON object stops
    the module before it changes anything.
  - Reloads Docker where that is enough. A restart that could end containers is of the class V(drain). With that
    consent it is made at once; the module empties no node.
  - Lets the toolkit's own unit write the CDI specs, and runs it again after a change of the MIG layout.
  - What it made is remembered in C(/var/lib/labrack/container_toolkit.json).
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description:
      - V(absent) takes back what the module made, as far as nobody has changed it since. Docker's data stays.
    type: str
    choices: [present, absent]
    default: present
  docker:
    description:
      - Where Docker comes from if it has to be installed. V(none) leaves Docker and its configuration alone.
    type: str
    choices: [distribution, docker, none]
    default: distribution
  toolkit:
    description:
      - Whether the node shall have the toolkit. One that the module has installed is not removed for it.
    type: bool
    default: true
  version:
    description:
      - The toolkit's package version, for all four packages.
    type: str
    required: true
  repo_url:
    description:
      - The toolkit's repository, with C(deb) and C(rpm) below it.
    type: str
    required: true
  repo_key_url:
    description:
      - Where its signing key is.
    type: str
    required: true
  repo_key_fingerprint:
    description:
      - Fingerprints of the keys that may sign it.
    type: list
    elements: str
    required: true
  docker_repo_url:
    description:
      - Docker's repository, with a directory for each distribution below it.
    type: str
    required: true
  docker_repo_key_url:
    description:
      - Where its signing key is; C(gpg) in the distribution's directory when empty.
    type: str
    default: ""
  docker_repo_key_fingerprint:
    description:
      - Fingerprints of the keys that may sign it.
    type: list
    elements: str
    required: true
  log_max_size:
    description:
      - Size at which a container's log is rotated, unless C(daemon.json) says something else.
    type: str
    default: 50m
  log_max_files:
    description:
      - How many of its logs are kept.
    type: int
    default: 3
  cgroup_driver:
    description:
      - Docker's cgroup driver on a node with the toolkit; empty leaves it alone.
    type: str
    choices: [cgroupfs, systemd, ""]
    default: cgroupfs
  default_runtime:
    description:
      - Whether every container runs with NVIDIA's runtime.
    type: bool
    default: false
  unprivileged_envvar:
    description:
      - Whether a container without privileges may pick GPUs by C(NVIDIA_VISIBLE_DEVICES).
    type: bool
    default: false
  docker_users:
    description:
      - Members of the group C(docker), who are root in all but name.
    type: list
    elements: str
    default: []
  mig_layout:
    description:
      - A text that is another when the MIG layout is; empty where it is unknown.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Converge a GPU node
  labrack.infra.container_toolkit:
    version: 1.20.0-1
    repo_url: https://nvidia.github.io/libnvidia-container/stable
    repo_key_url: https://nvidia.github.io/libnvidia-container/gpgkey
    repo_key_fingerprint: C95B321B61E88C1809C4F759DDCAE044F796ECB0
    docker_repo_url: https://download.docker.com/linux
    docker_repo_key_fingerprint: 9DC858229FC7DD38854AE2D88D81803C0EBFCD88
    docker_users: [ada]
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
notes:
  description: What an admin should know and the module does not change; also shown as warnings.
  returned: success
  type: list
  elements: str
cdi_refresh:
  description: Why the CDI specs were written anew; empty where they were not.
  returned: success
  type: str
"""

import contextlib
import glob
import grp
import http.client
import json
import os
import platform
import pwd
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import apt_source, node_io, toolkit_plan
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Package, Source, SourceError
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.daemon_json import DaemonJsonError
from ansible_collections.labrack.infra.plugins.module_utils.node_observe import os_release
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError, act, observe_services
from ansible_collections.labrack.infra.plugins.module_utils.toolkit_plan import (
    CONFIG,
    DAEMON_JSON,
    RECORD,
    REFRESH,
    Engine,
    Observed,
    Record,
    ToolkitError,
    Wanted,
)

SOCKET = "/run/docker.sock"
PID_FILE = "/run/docker.pid"
VERSIONLOCK = "/etc/dnf/plugins/versionlock.list"
#: Seconds for dockerd to answer after it was started or reloaded.
PATIENCE = 60.0

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "docker": {"type": "str", "choices": ["distribution", "docker", "none"], "default": "distribution"},
    "toolkit": {"type": "bool", "default": True},
    "version": {"type": "str", "required": True},
    "repo_url": {"type": "str", "required": True},
    "repo_key_url": {"type": "str", "required": True, "no_log": False},
    "repo_key_fingerprint": {"type": "list", "elements": "str", "required": True, "no_log": False},
    "docker_repo_url": {"type": "str", "required": True},
    "docker_repo_key_url": {"type": "str", "default": "", "no_log": False},
    "docker_repo_key_fingerprint": {"type": "list", "elements": "str", "required": True, "no_log": False},
    "log_max_size": {"type": "str", "default": "50m"},
    "log_max_files": {"type": "int", "default": 3},
    "cgroup_driver": {"type": "str", "choices": ["cgroupfs", "systemd", ""], "default": "cgroupfs"},
    "default_runtime": {"type": "bool", "default": False},
    "unprivileged_envvar": {"type": "bool", "default": False},
    "docker_users": {"type": "list", "elements": "str", "default": []},
    "mig_layout": {"type": "str", "default": ""},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


# --- reading the node ------------------------------------------------------------------------------------------------


class _Connection(http.client.HTTPConnection):
    """Docker's API on its socket (https://docs.docker.com/reference/api/engine/)."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def observe_engine() -> Engine | None:
    """Return what the running dockerd tells of itself, None when it does not answer.

    Only for a dockerd that runs: with socket activation asking is starting.
    """
    connection = _Connection("localhost", timeout=20)
    try:
        connection.request("GET", "/info")
        info = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if "ContainersRunning" not in info:
        return None
    return Engine(
        identity=_identity(),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        cgroup_driver=str(info.get("CgroupDriver", "")),
        runtimes=tuple(sorted(info.get("Runtimes") or {})),
        default_runtime=str(info.get("DefaultRuntime") or "runc"),
        running=int(info["ContainersRunning"]) + int(info.get("ContainersPaused") or 0),
        swarm=(info.get("Swarm") or {}).get("LocalNodeState", "inactive") not in ("", "inactive"),
    )


def _pid() -> str:
    found = node_io.read_text(PID_FILE)
    if found is None:
        # daemon.json may put the file elsewhere
        found = node_io.run(["systemctl", "show", "--property=MainPID", "--value", "docker.service"]).out
    return found.strip()


def _identity() -> str:
    """The dockerd that runs: its process, and when it began in the kernel's ticks (proc_pid_stat(5))."""
    fields = (node_io.read_text(f"/proc/{_pid()}/stat") or "").rpartition(")")[2].split()
    return f"{_pid()}:{fields[19]}" if len(fields) > 19 else ""


def observe_flags() -> tuple[str, ...]:
    """Return the options on the running dockerd's command line."""
    words = (node_io.read_text(f"/proc/{_pid()}/cmdline") or "").split("\0")
    return tuple(word for word in words[1:] if word.startswith("--"))


def observe_packages(family: str, names: Sequence[str]) -> dict[str, Package]:
    """Return those of the packages that are installed."""
    if family != "redhat":
        return apt_source.observe_packages(names)
    query = ["rpm", "-q", "--queryformat", "%{NAME}\\t%{VERSION}-%{RELEASE}\\n", *names]
    locked = node_io.read_text(VERSIONLOCK) or ""
    lines = [line.split("\t") for line in node_io.run(query).out.splitlines() if "\t" in line]
    return {name: Package(version, f"{name}-" in locked and version in locked) for name, version in lines}


def observe(wanted: Wanted, family: str) -> Observed:
    """Read the node."""
    services = observe_services(list(toolkit_plan.UNITS))
    active = services["docker"].active
    try:
        members: tuple[str, ...] | None = tuple(grp.getgrnam("docker").gr_mem)
    except KeyError:
        members = None
    sources = [source for source in (wanted.toolkit_source, wanted.docker_source) if source]
    record = node_io.observe_file(RECORD)
    names = (*toolkit_plan.KNOWN, *(Record.read(record.text).along if record else ()))
    cdi = [*glob.glob("/etc/cdi/*.yaml"), *glob.glob("/etc/cdi/*.json")]
    return Observed(
        packages=observe_packages(family, names),
        snap=bool(os.path.exists("/snap/bin/docker") or glob.glob("/var/lib/snapd/snaps/docker_*.snap")),
        daemon=node_io.observe_file(DAEMON_JSON),
        config=node_io.observe_file(CONFIG),
        record=record,
        services=services,
        engine=observe_engine() if active else None,
        flags=observe_flags() if active else (),
        members=members,
        cdi=tuple(sorted(path for path in cdi if "nvidia.com/" in (node_io.read_text(path) or ""))),
        sources={source.name: apt_source.observe_source(source) for source in sources},
    )


# --- changing it -----------------------------------------------------------------------------------------------------


class Node:
    """Makes changes on the node."""

    def __init__(self, module: AnsibleModule, wanted: Wanted, family: str) -> None:
        """Take what is wanted; nothing is done yet."""
        self.module = module
        self.wanted = wanted
        self.redhat = family == "redhat"
        self.family = family
        self.seen = Observed()

    def look(self) -> Observed:
        """Read the node and remember what was seen."""
        self.seen = observe(self.wanted, self.family)
        return self.seen

    def apply(self, changes: list[Change]) -> None:
        """Make the changes (OSError, SourceError, ServiceError, ToolkitError when the node refuses)."""
        self._check_users([change.step[1] for change in changes if change.step[0] == "add"])
        if ("write", DAEMON_JSON) in [change.step for change in changes]:
            self._validate()
        for change in changes:
            verb, *rest = change.step
            if verb in ("write", "remove", "key"):
                self._file(change)
            elif verb in ("toolkit", "docker"):
                self._install(rest, verb)
            elif verb in ("purge", "remove-packages"):
                self._uninstall(rest, verb == "purge")
            elif verb in ("hold", "unhold"):
                self._hold(rest, verb == "hold")
            elif verb in ("add", "drop"):
                self._member(rest[0], verb == "add")
            else:
                self._unit(verb, rest[0], change)

    def _source(self, name: str) -> Source:
        known = (self.wanted.toolkit_source, self.wanted.docker_source)
        return next(source for source in known if source and source.name == name)

    def _file(self, change: Change) -> None:
        verb, path, *name = change.step
        if name:
            apt_source.apply_source(self._source(name[0]), replace(change, step=(verb, path)))
        elif verb == "remove":
            node_io.remove_file(path)
            if path == CONFIG:
                # no package has this directory
                node_io.remove_empty(CONFIG.rpartition("/")[0])
        elif path == RECORD:
            plan = toolkit_plan.wanted_record if self.wanted.present else toolkit_plan.leaving_record
            self._remember(plan(self.seen, self.wanted))
        elif path == DAEMON_JSON:
            content, _marks = toolkit_plan.wanted_daemon(self.seen, self.wanted)
            if content:
                node_io.write_file(path, content)
        else:
            # the package has brought the file by now
            now = replace(self.seen, config=node_io.observe_file(CONFIG), record=node_io.observe_file(RECORD))
            content, line = toolkit_plan.wanted_config(now, self.wanted)
            if self.wanted.present:
                self._remember(replace(toolkit_plan.read_record(now), config=line))
            if content:
                node_io.write_file(path, content)

    def _remember(self, record: Record) -> None:
        content = record.file()
        if content:
            node_io.write_file(RECORD, content)

    def _validate(self) -> None:
        """Let dockerd, where it is there and knows how (from 23.0 on), look at daemon.json before it is written."""
        content, _marks = toolkit_plan.wanted_daemon(self.seen, self.wanted)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as stream:
            stream.write(content.text if content else "{}")
            stream.flush()
            done = node_io.run(["dockerd", "--validate", "--config-file", stream.name])
        if done.rc not in (0, 126, 127) and "unknown flag" not in done.err:
            words = done.err.strip().replace(stream.name, DAEMON_JSON)[-300:]
            raise ToolkitError(
                f"dockerd refuses {DAEMON_JSON} as it would be: {words}. It was left as it is. "
                f"Mend: correct what is wrong in {DAEMON_JSON}, and run again"
            )

    def _check_users(self, users: list[str]) -> None:
        for user in users:
            try:
                pwd.getpwnam(user)
            except KeyError:
                raise ToolkitError(
                    f"container_toolkit_docker_users: {user}: no such user on this node. Mend: add it to lab_users, "
                    "or take it out"
                ) from None
        if users:
            self.module.warn(
                f"group docker gets {', '.join(users)}: whoever may talk to Docker is root on this node in all but name"
            )

    def _install(self, names: list[str], verb: str) -> None:
        sources: list[Source | None]
        if verb == "toolkit":
            sources, mark = [self.wanted.toolkit_source], "-" if self.redhat else "="
            packages = [f"{name}{mark}{self.wanted.version}" for name in names]
        else:
            sources, packages = [self.wanted.docker_source if self.wanted.docker == "docker" else None], names
        if self.redhat:
            self._dnf("install", *packages)
            return
        held = [name for name in names if name in self.seen.packages and self.seen.packages[name].held]
        with apt_source.unheld(held):
            came = apt_source.install(packages, [one for one in sources if one], held=apt_source.held_packages())
        along = set(came.installs) - set(came.replaces) - set(names)
        record = Record.read(node_io.read_text(RECORD))
        if along - set(record.along):
            self._remember(replace(record, along=tuple(sorted({*record.along, *along}))))

    def _uninstall(self, names: list[str], purge: bool) -> None:
        if self.redhat:
            self._dnf("remove", *names)
            return
        try:
            apt_source.remove(names, purge=purge)
        except SourceError:
            # what came along may be needed by others by now
            along = Record.read(node_io.read_text(RECORD)).along
            own = [name for name in names if name not in along]
            if own == names:
                raise
            apt_source.remove(own, purge=purge)

    def _hold(self, names: list[str], on: bool) -> None:
        if self.redhat:
            words = [f"{name}-{self.wanted.version}" for name in names] if on else names
            self._dnf("versionlock", "add" if on else "delete", *words)
        else:
            apt_source.hold(names, on=on)

    def _dnf(self, *words: str) -> None:
        done = node_io.run(["dnf", "-y", *words], timeout=apt_source.APT_TIMEOUT)
        if done.rc:
            raise SourceError(f"dnf {' '.join(words)} failed: {(done.err or done.out).strip()[-600:]}")

    def _member(self, user: str, add: bool) -> None:
        done = node_io.run(["gpasswd", "-a" if add else "-d", user, "docker"])
        if done.rc:
            raise ToolkitError(f"group docker, {user}: {done.err.strip()}")

    def _unit(self, verb: str, unit: str, change: Change) -> None:
        if unit != "docker":
            if verb == "enable":
                act("enable", unit)
                # without a driver there is nothing to write yet; the path unit sees it come
                with contextlib.suppress(ServiceError):
                    act("start", unit)
            else:
                act("restart", REFRESH)
            return
        if verb == "restart" and change.disruption == "restart":
            engine = observe_engine() if observe_services(["docker"])["docker"].active else None
            if engine and engine.running and not engine.live_restore:
                raise ServiceError(
                    f"dockerd has not taken live-restore, so docker was not restarted: {engine.running} containers "
                    "would end. Mend: see journalctl -u docker, stop the containers, and run again"
                )
        act(verb, unit)
        if verb in ("restart", "reload"):
            self._await_engine(verb)

    def _await_engine(self, verb: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while observe_engine() is None:
            if time.monotonic() > deadline:
                raise ServiceError(f"docker does not answer {PATIENCE:g} s after its {verb}; see journalctl -u docker")
            time.sleep(0.5)
        if verb == "reload":
            # dockerd takes a signal, and has no word for being done
            time.sleep(0.5)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    system = os_release()
    try:
        wanted = toolkit_plan.read_wanted(module.params, system, platform.machine())
    except ToolkitError as error:
        module.fail_json(msg=str(error))
    node = Node(module, wanted, system["family"])
    refreshed: list[str] = []

    def plan(state: Observed) -> list[Change]:
        refreshed.append(toolkit_plan.refresh_reason(state, wanted) if wanted.present else "")
        return toolkit_plan.plan(state, wanted)

    def extra(state: Observed) -> dict[str, Any]:
        found = toolkit_plan.notes(state, wanted)
        for note in found:
            module.warn(note)
        return {"notes": found, "cdi_refresh": refreshed[0]}

    try:
        converge(module, node.look, plan, node.apply, extra, drains=False, ledger="container_toolkit")
    except DaemonJsonError as error:
        module.fail_json(
            msg=f"{error}. Nothing was changed. Mend: correct it, by hand or with `python3 -m json.tool "
            f"{DAEMON_JSON}` to see the place, and run again"
        )
    except (ToolkitError, SourceError, ServiceError, OSError, LookupError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
