# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan Docker and the NVIDIA Container Toolkit of a node: packages, daemon.json, CDI, hardening, docker's group.

Pure. What was made is in a record on the node, written before anything else is, so that a run that breaks off can be
undone too. Facts about upstream:

- which keys dockerd takes by SIGHUP: moby ``daemon/reload.go``, ``reload_unix.go``: live-restore, runtimes and
  default-runtime where they are in the file; log-driver, log-opts and exec-opts not at all, and the CDI driver is
  registered when dockerd starts;
- live-restore keeps containers over a restart as long as the daemon's options stay the same:
  https://docs.docker.com/engine/daemon/live-restore/;
- GPUs and ``systemctl daemon-reload``: https://github.com/NVIDIA/cloud-native-docs
  ``container-toolkit/troubleshooting.md``;
- the units that write /var/run/cdi/nvidia.yaml: NVIDIA/nvidia-container-toolkit ``deployments/systemd``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import daemon_json, managed, openpgp
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import (
    Package,
    Pin,
    Source,
    SourceState,
    plan_source,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, rank
from ansible_collections.labrack.infra.plugins.module_utils.daemon_json import Mark, Setting
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit, plan_service

DAEMON_JSON = "/etc/docker/daemon.json"
CONFIG = "/etc/nvidia-container-runtime/config.toml"
RECORD = "/var/lib/labrack/container_toolkit.json"
#: The line of config.toml that keeps a container without privileges from picking GPUs by an environment variable.
ENVVAR_KEY = "accept-nvidia-visible-devices-envvar-when-unprivileged"

TOOLKIT = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
#: The first version with nvidia-cdi-refresh, without which CDI specs go stale.
OLDEST = (1, 18)
REFRESH = "nvidia-cdi-refresh.service"
REFRESH_PATH = "nvidia-cdi-refresh.path"
UNITS = ("docker", REFRESH, REFRESH_PATH)

#: Packages that bring dockerd, by the source that has them.
ENGINES = {"docker.io": "distribution", "moby-engine": "distribution", "docker-ce": "docker"}
FROM_DOCKER = ("docker-ce", "docker-ce-cli", "containerd.io")
KNOWN = (*TOOLKIT, *ENGINES, "docker-cli", "docker-ce-cli", "containerd.io")

#: The options of dockerd that set a key of daemon.json; a key that is set by both keeps dockerd from starting.
FLAGS = {
    "--live-restore": "live-restore",
    "--log-driver": "log-driver",
    "--log-opt": "log-opts",
    "--exec-opt": "exec-opts",
    "--add-runtime": "runtimes",
    "--default-runtime": "default-runtime",
    "--feature": "features",
}


class ToolkitError(ValueError):
    """A node or a wish with which nothing can be done; the message says the cause and the mend."""


@dataclass(frozen=True)
class Engine:
    """The running dockerd, as it tells of itself. ``identity`` is another after a restart."""

    identity: str = ""
    live_restore: bool = False
    cgroup_driver: str = ""
    runtimes: tuple[str, ...] = ()
    default_runtime: str = "runc"
    running: int = 0
    swarm: bool = False


@dataclass(frozen=True)
class Record:
    """What the role made on this node.

    ``toolkit``, ``docker`` and ``along`` are the packages that it installed and those that came along, ``held`` those
    that it held; ``marks`` and ``made`` tell of daemon.json, ``config`` of the line in config.toml: its text and the
    one before (None where there was none). ``stale`` is the dockerd that has not been restarted since a change.
    """

    toolkit: tuple[str, ...] = ()
    docker: tuple[str, ...] = ()
    along: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    made: bool = False
    config: tuple[str, str | None] | None = None
    users: tuple[str, ...] = ()
    mig: str = ""
    stale: str = ""

    @classmethod
    def read(cls, text: str | None) -> Record:
        """Return the record in a file's text; an empty one for no file. ToolkitError for a damaged one."""
        try:
            found: dict[str, Any] = json.loads(text) if text else {}
            return cls(
                **{name: tuple(found.get(name, ())) for name in ("toolkit", "docker", "along", "held", "users")},
                marks=tuple(Mark.read(mark) for mark in found.get("marks", ())),
                made=bool(found.get("made")),
                config=(found["config"][0], found["config"][1]) if found.get("config") else None,
                mig=str(found.get("mig", "")),
                stale=str(found.get("stale", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ToolkitError(f"{RECORD} is damaged ({error}). Mend: remove it and run again") from None

    def file(self) -> FileState | None:
        """Return the file that holds the record, or None when there is nothing to remember."""
        if self == Record():
            return None
        content = {name: value for name, value in vars(self).items() if value}
        if self.marks:
            content["marks"] = [mark.written() for mark in self.marks]
        return FileState(json.dumps(content, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Observed:
    """A node as it is. ``engine`` is None where dockerd does not run, ``members`` where there is no group docker.

    ``cdi`` are files in /etc/cdi that name NVIDIA's devices, ``flags`` dockerd's command line, ``sources`` is by name.
    """

    packages: Mapping[str, Package] = field(default_factory=dict)
    snap: bool = False
    daemon: FileState | None = None
    config: FileState | None = None
    record: FileState | None = None
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    engine: Engine | None = None
    flags: tuple[str, ...] = ()
    members: tuple[str, ...] | None = None
    cdi: tuple[str, ...] = ()
    sources: Mapping[str, SourceState] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """A node as it should be. ``present`` False: nothing of ours; the other fields but the sources are then ignored.

    ``docker`` is distribution, docker or none; ``engine_packages`` are those of the distribution or of Docker;
    ``toolkit`` says whether the node shall have it at all. ``mig`` describes the MIG layout, empty where unknown.
    """

    present: bool = True
    docker: str = "distribution"
    engine_packages: tuple[str, ...] = ("docker.io",)
    toolkit: bool = True
    version: str = ""
    toolkit_source: Source | None = None
    docker_source: Source | None = None
    log_size: str = "50m"
    log_files: int = 3
    cgroup_driver: str = "cgroupfs"
    default_runtime: bool = False
    unprivileged_envvar: bool = False
    users: tuple[str, ...] = ()
    mig: str = ""


def read_wanted(params: Mapping[str, Any], system: Mapping[str, str], arch: str) -> Wanted:
    """Return what the module's parameters ask for on a system (``node_observe.os_release``) of an architecture.

    ToolkitError for a fingerprint that is none.
    """
    for name in ("repo_key_fingerprint", "docker_repo_key_fingerprint"):
        for fingerprint in params[name]:
            try:
                openpgp.normal(fingerprint)
            except openpgp.OpenpgpError as error:
                raise ToolkitError(f"container_toolkit_{name}: {error}. Mend: write it out in full") from None
    family, redhat = system["family"], system["family"] == "redhat"
    deb_arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(arch, arch)
    flat = f"{params['repo_url'].rstrip('/')}/{'rpm/$basearch' if redhat else f'deb/{deb_arch}/'}"
    toolkit = Source(
        "labrack-nvidia-container-toolkit",
        flat,
        params["repo_key_url"],
        tuple(params["repo_key_fingerprint"]),
        architecture="" if redhat else deb_arch,
        pins=() if redhat else toolkit_pins(params["version"], flat),
        family=family,
    )
    base = f"{params['docker_repo_url'].rstrip('/')}/{_docker_folder(system)}"
    docker = Source(
        "labrack-docker",
        f"{base}/$releasever/$basearch/stable" if redhat else base,
        params["docker_repo_key_url"] or f"{base}/gpg",
        tuple(params["docker_repo_key_fingerprint"]),
        suite="/" if redhat else system["codename"],
        components=() if redhat else ("stable",),
        architecture="" if redhat else deb_arch,
        family=family,
        signed_packages=redhat,
    )
    return Wanted(
        present=params["state"] == "present",
        docker=params["docker"],
        engine_packages=FROM_DOCKER if params["docker"] == "docker" else _distribution(system),
        toolkit=params["toolkit"],
        version=params["version"],
        toolkit_source=toolkit,
        docker_source=docker,
        log_size=params["log_max_size"],
        log_files=params["log_max_files"],
        cgroup_driver=params["cgroup_driver"],
        default_runtime=params["default_runtime"],
        unprivileged_envvar=params["unprivileged_envvar"],
        users=tuple(params["docker_users"]),
        mig=params["mig_layout"],
    )


def _docker_folder(system: Mapping[str, str]) -> str:
    """Where Docker's repository keeps a system's packages."""
    if system["family"] == "redhat":
        return "rhel" if system["id"] == "rhel" else "centos"
    return system["id"]


def _distribution(system: Mapping[str, str]) -> tuple[str, ...]:
    """The packages with which a distribution brings Docker; none in the Red Hat family."""
    if system["family"] != "debian":
        return ()
    release = re.match(r"\d+", system["version"])
    # from Debian 13 on docker.io is the daemon alone, and only recommends its client
    apart = system["id"] == "debian" and (release is None or int(release.group()) >= 13)
    return ("docker.io", "docker-cli") if apart else ("docker.io",)


def read_record(observed: Observed) -> Record:
    """Return the record of a node (ToolkitError)."""
    return Record.read(observed.record.text if observed.record else None)


# --- packages --------------------------------------------------------------------------------------------------------


def toolkit_pins(version: str, uri: str) -> tuple[Pin, ...]:
    """Return the pins that give the toolkit one version, and its own repository before CUDA's, which has 600."""
    host = re.sub(r"^[a-z]+://(?:[^/@]*@)?(\[[^]]*\]|[^/:]*).*", r"\1", uri)
    return (Pin(TOOLKIT, f"version {version}", 1001), Pin(TOOLKIT, f'origin "{host}"', 700))


def engine_source(observed: Observed) -> str:
    """Return where the Docker that is there comes from: distribution, docker, other, or "" for none."""
    for package, source in ENGINES.items():
        if package in observed.packages:
            return source
    return "other" if observed.services.get("docker", ServiceState()).installed else ""


def wants_docker(observed: Observed, wanted: Wanted) -> bool:
    """Return whether Docker is this role's matter."""
    return wanted.present and wanted.docker != "none"


def wants_toolkit(observed: Observed, wanted: Wanted) -> bool:
    """Return whether the toolkit is wanted; one that the role installed stays when the last card is gone, too."""
    return wanted.present and (wanted.toolkit or bool(read_record(observed).toolkit))


def missing_docker(observed: Observed, wanted: Wanted) -> tuple[str, ...]:
    """Return the packages of Docker to install; none into a Docker from elsewhere."""
    if not wants_docker(observed, wanted) or engine_source(observed) not in ("", wanted.docker):
        return ()
    if "moby-engine" in observed.packages:
        return ()
    return tuple(name for name in wanted.engine_packages if name not in observed.packages)


def wrong_toolkit(observed: Observed, wanted: Wanted) -> tuple[str, ...]:
    """Return the packages of the toolkit that are missing or of another version."""
    if not wants_toolkit(observed, wanted):
        return ()
    none = Package("")
    return tuple(name for name in TOOLKIT if observed.packages.get(name, none).version != wanted.version)


def check(observed: Observed, wanted: Wanted) -> None:
    """Refuse what can't work, before anything is changed (ToolkitError)."""
    if not wanted.present:
        return
    if wants_docker(observed, wanted):
        if observed.snap:
            raise ToolkitError(
                "Docker comes from a snap on this node, which neither reads /etc/docker/daemon.json nor finds NVIDIA's "
                "runtime. Mend: save what its containers hold, snap remove docker, and run again; or set "
                "container_toolkit_docker: none"
            )
        if not wanted.engine_packages and not engine_source(observed):
            raise ToolkitError(
                "container_toolkit_docker: distribution has no Docker here, since this system's distribution has none. "
                "Mend: set it to docker, or to none"
            )
    if wants_toolkit(observed, wanted):
        numbers = re.match(r"(\d+)\.(\d+)", wanted.version)
        if not numbers or (int(numbers[1]), int(numbers[2])) < OLDEST:
            raise ToolkitError(
                f"container_toolkit_version = {wanted.version}: not a version from {'.'.join(map(str, OLDEST))} on, "
                "which brings nvidia-cdi-refresh. Mend: write the package's version, such as 1.20.0-1"
            )


# --- daemon.json -----------------------------------------------------------------------------------------------------


def flag_keys(observed: Observed) -> set[str]:
    """Return the keys of daemon.json that dockerd's command line sets already."""
    return {FLAGS[flag.partition("=")[0]] for flag in observed.flags if flag.partition("=")[0] in FLAGS}


def settings(observed: Observed, wanted: Wanted) -> list[Setting]:
    """Return what shall stand in daemon.json. ToolkitError, DaemonJsonError for a file that can't be read."""
    if not wants_docker(observed, wanted):
        return []
    record = read_record(observed)
    data = _daemon(observed)
    ours = {mark.path for mark in record.marks}
    found = []
    if not (observed.engine and observed.engine.swarm):
        found.append(Setting(("live-restore",), True))
    if data.get("log-driver", "json-file") == "json-file" and "log-driver" not in flag_keys(observed):
        # Docker's own default is json-file too; naming it lets everybody see to which driver the options belong
        if ("log-driver",) in ours or "log-driver" not in data:
            found.append(Setting(("log-driver",), "json-file"))
        found.append(Setting(("log-opts", "max-size"), wanted.log_size, force=False))
        found.append(Setting(("log-opts", "max-file"), str(wanted.log_files), force=False))
    if wants_toolkit(observed, wanted):
        found.append(Setting(("features", "cdi"), True))
        found += _runtime(data, ours)
        if wanted.cgroup_driver:
            value = f"native.cgroupdriver={wanted.cgroup_driver}"
            found.append(Setting(("exec-opts", "native.cgroupdriver"), value))
        if wanted.default_runtime:
            found.append(Setting(("default-runtime",), "nvidia"))
    return [setting for setting in found if setting.path[0] not in flag_keys(observed)]


def _runtime(data: Mapping[str, Any], ours: set[tuple[str, ...]]) -> list[Setting]:
    """The runtime ``nvidia``, unless somebody has one that leads to NVIDIA's program as well."""
    path = ("runtimes", "nvidia", "path")
    runtimes = data.get("runtimes")
    there = (runtimes.get("nvidia") if isinstance(runtimes, dict) else None) or {}
    program = str(there.get("path", "")) if isinstance(there, dict) else ""
    if path not in ours and program.rpartition("/")[2].startswith("nvidia-container-runtime"):
        return []
    return [Setting(path, "nvidia-container-runtime"), Setting((*path[:2], "args"), [], force=False)]


def _daemon(observed: Observed) -> daemon_json.Data:
    return daemon_json.parse(observed.daemon.text if observed.daemon else "", DAEMON_JSON)


def wanted_daemon(observed: Observed, wanted: Wanted) -> tuple[FileState | None, tuple[Mark, ...]]:
    """Return daemon.json as it should be, None for no file, and what to remember (DaemonJsonError)."""
    record = read_record(observed)
    data, marks = daemon_json.merge(_daemon(observed), settings(observed, wanted), record.marks)
    if not data and (observed.daemon is None or record.made):
        return None, tuple(marks)
    current = observed.daemon or FileState("")
    return replace(current, text=daemon_json.dump(data, current.text)), tuple(marks)


def _needs_restart(observed: Observed, after: FileState | None) -> bool:
    """Whether the change of daemon.json is one that dockerd does not take by reload."""
    before, data = _daemon(observed), daemon_json.parse(after.text if after else "")
    for key in {*before, *data}:
        if key in ("runtimes", "default-runtime", "live-restore") and key in data:
            continue
        if not daemon_json.same([before.get(key)], [data.get(key)]):
            return True
    return False


# --- config.toml -----------------------------------------------------------------------------------------------------

_TABLE = re.compile(r"\s*\[\[?\s*[\w.\"'-]")


def _top(lines: Sequence[str]) -> int:
    """How many lines stand before the first table."""
    return next((place for place, line in enumerate(lines) if _TABLE.match(line)), len(lines))


def set_key(text: str, key: str, value: str) -> tuple[str, str | None]:
    """Return TOML with one top-level key set, and the line that was there before, None for none.

    Nothing else of the text changes. The text is no multi-line string or array at that place, as in NVIDIA's file.
    """
    lines = text.splitlines()
    wanted = f"{key} = {value}"
    active = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=\s*(?P<value>[^#]*?)\s*(#.*)?$""")
    commented = re.compile(rf"\s*#\s*{re.escape(key)}\s*=")
    top = _top(lines)
    for place in range(top):
        found = active.match(lines[place])
        if found:
            if found["value"] == value:
                return text, lines[place]
            before, lines[place] = lines[place], wanted
            return "\n".join(lines) + "\n", before
    place = next((place + 1 for place in range(top) if commented.match(lines[place])), 0)
    lines.insert(place, wanted)
    return "\n".join(lines) + "\n", None


def unset_key(text: str, line: str, before: str | None) -> str:
    """Return TOML with our line as it was before, or without it; unchanged where our line is not there any more."""
    lines = text.splitlines()
    if line not in lines[: _top(lines)]:
        return text
    place = lines.index(line)
    lines[place : place + 1] = [] if before is None else [before]
    return "\n".join(lines) + "\n" if lines else ""


def wanted_config(observed: Observed, wanted: Wanted) -> tuple[FileState | None, tuple[str, str | None] | None]:
    """Return config.toml as it should be, None for no file, and what to remember."""
    record = read_record(observed)
    current = observed.config or FileState("")
    if wants_toolkit(observed, wanted) and not wanted.unprivileged_envvar:
        text, before = set_key(current.text, ENVVAR_KEY, "false")
        if text == current.text:
            return observed.config, record.config
        line = f"{ENVVAR_KEY} = false"
        return replace(current, text=text), (line, before)
    if record.config is None or observed.config is None:
        return observed.config, None
    text = unset_key(current.text, *record.config)
    return (replace(current, text=text) if text.strip() else None), None


# --- the whole -------------------------------------------------------------------------------------------------------


def wanted_record(observed: Observed, wanted: Wanted) -> Record:
    """Return what there is to remember, as it is written before anything else happens."""
    before = read_record(observed)
    after, marks = wanted_daemon(observed, wanted)
    there = set(observed.packages)
    toolkit = tuple(name for name in wrong_toolkit(observed, wanted) if name not in there)
    users = _users(observed, wanted)
    members = observed.members or ()
    stale = before.stale
    if observed.engine and _needs_restart(observed, after):
        stale = observed.engine.identity
    return Record(
        toolkit=tuple(sorted({*before.toolkit, *toolkit})),
        docker=tuple(sorted({*before.docker, *missing_docker(observed, wanted)})),
        along=before.along,
        held=tuple(sorted({*before.held, *_to_hold(observed, wanted)})),
        marks=marks,
        made=before.made or (observed.daemon is None and after is not None),
        config=wanted_config(observed, wanted)[1],
        users=tuple(sorted(user for user in set(users) if user in before.users or user not in members)),
        mig=wanted.mig or before.mig,
        stale=stale,
    )


def leaving_record(observed: Observed, wanted: Wanted) -> Record:
    """Return what there is to remember while the undoing waits for consent."""
    record = read_record(observed)
    if observed.engine and observed.record and _needs_restart(observed, wanted_daemon(observed, wanted)[0]):
        return replace(record, stale=observed.engine.identity)
    return record


def _to_hold(observed: Observed, wanted: Wanted) -> tuple[str, ...]:
    if not wants_toolkit(observed, wanted):
        return ()
    free = Package("")
    return tuple(name for name in TOOLKIT if not observed.packages.get(name, free).held)


def plan(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied (ToolkitError, DaemonJsonError, SourceError)."""
    check(observed, wanted)
    return _plan_present(observed, wanted) if wanted.present else _plan_absent(observed, wanted)


def _plan_present(observed: Observed, wanted: Wanted) -> list[Change]:
    record = wanted_record(observed, wanted)
    changes = _plan_refresh(observed, wanted)
    changes += plan_file(RECORD, observed.record, record.file())
    docker = missing_docker(observed, wanted)
    if wanted.toolkit_source and wants_toolkit(observed, wanted):
        changes += _plan_source(observed, wanted.toolkit_source)
    if wanted.docker_source and wanted.docker == "docker" and (docker or record.docker):
        changes += _plan_source(observed, wanted.docker_source)
    changes += _plan_toolkit(observed, wanted)
    config, _remembered = wanted_config(observed, wanted)
    changes += plan_file(CONFIG, observed.config, config)
    daemon, _marks = wanted_daemon(observed, wanted)
    changes += plan_file(DAEMON_JSON, observed.daemon, daemon)
    if docker:
        changes.append(Change(f"packages {' '.join(docker)}", "installed", step=("docker", *docker)))
    if wants_docker(observed, wanted):
        changes += _plan_engine(observed, wanted, daemon, record)
    return changes + _plan_members(observed, wanted)


def _plan_source(observed: Observed, source: Source) -> list[Change]:
    state = observed.sources.get(source.name, SourceState())
    return [replace(change, step=(*change.step, source.name)) for change in plan_source(state, source)]


def _plan_toolkit(observed: Observed, wanted: Wanted) -> list[Change]:
    wrong, changes = wrong_toolkit(observed, wanted), []
    if wrong:
        there = sorted({observed.packages[name].version for name in wrong if name in observed.packages})
        summary = f"{', '.join(there)} → {wanted.version}" if there else f"{wanted.version} installed"
        changes.append(Change(f"packages {' '.join(wrong)}", summary, step=("toolkit", *wrong)))
    if not wants_toolkit(observed, wanted):
        return changes
    loose = _to_hold(observed, wanted)
    for name in set(TOOLKIT) & set(observed.packages):
        one = observed.packages[name]
        managed.note("package", name, **({"held": True, "version": one.version} if one.held else {}))
    if loose:
        changes.append(Change(f"hold {' '.join(loose)}", "held against upgrades", step=("hold", *loose)))
    for unit in (REFRESH_PATH, REFRESH):
        state = observed.services.get(unit, ServiceState())
        note_unit(unit, state, runs=unit == REFRESH_PATH)
        # the path unit waits for changes of the driver, the service runs at boot
        if not state.enabled or (unit == REFRESH_PATH and not state.active):
            changes.append(Change(f"unit {unit}", "enabled and started", step=("enable", unit)))
    return changes


def _plan_refresh(observed: Observed, wanted: Wanted) -> list[Change]:
    reason = refresh_reason(observed, wanted)
    return [Change(f"unit {REFRESH}", f"restarted: {reason}", step=("refresh", REFRESH))] if reason else []


def refresh_reason(observed: Observed, wanted: Wanted) -> str:
    """Return why the CDI specs have to be written anew, which nothing upstream notices; "" for no reason."""
    before = read_record(observed).mig
    fresh = wrong_toolkit(observed, wanted)
    if not wants_toolkit(observed, wanted) or fresh or not wanted.mig or not before or before == wanted.mig:
        return ""
    return "the MIG layout is another than when the CDI specs were written"


def _plan_engine(observed: Observed, wanted: Wanted, daemon: FileState | None, record: Record) -> list[Change]:
    engine = observed.engine
    managed.note_packages([name for name in wanted.engine_packages if name in observed.packages])
    state = observed.services.get("docker", ServiceState())
    if engine is None or not state.active:
        return plan_service("docker", state)
    changes = plan_service("docker", state)
    data = daemon_json.parse(daemon.text if daemon else "")
    live = _live(observed, daemon)
    reloads = []
    if live and not engine.live_restore:
        reloads.append("live-restore on")
    if "nvidia" in (data.get("runtimes") or {}) and "nvidia" not in engine.runtimes:
        reloads.append("runtime nvidia")
    if data.get("default-runtime", engine.default_runtime) != engine.default_runtime:
        reloads.append(f"default runtime {data['default-runtime']}")
    if reloads:
        changes.append(Change("service docker", f"reloaded: {', '.join(reloads)}", "reload", step=("reload", "docker")))
    driver = _driver(data) if wants_toolkit(observed, wanted) and wanted.cgroup_driver else ""
    switch = bool(driver) and driver != engine.cgroup_driver and "exec-opts" not in flag_keys(observed)
    if switch or _due(record, engine):
        changes.append(_restart(engine, live, f"{engine.cgroup_driver} → {driver}" if switch else ""))
    return changes


def _due(record: Record, engine: Engine) -> bool:
    """Whether the dockerd that runs is the one that has not been restarted since a change."""
    return bool(engine.identity) and record.stale == engine.identity


def _live(observed: Observed, daemon: FileState | None) -> bool:
    """Whether dockerd keeps containers over its restart, once it has read daemon.json."""
    data = daemon_json.parse(daemon.text if daemon else "")
    return data.get("live-restore") is True or "live-restore" in flag_keys(observed)


def _driver(data: Mapping[str, Any]) -> str:
    return str(daemon_json._get(data, ("exec-opts", "native.cgroupdriver"))).partition("=")[2].strip()


def _restart(engine: Engine, live: bool, switch: str) -> Change:
    """The restart of dockerd, of the class that it is for the containers that run."""
    why, disruption = "daemon.json changed", "restart"
    if switch:
        why = f"cgroup driver {switch}"
    if engine.running and switch:
        # Docker promises to keep containers only as long as the daemon's options stay the same
        why, disruption = f"{why}, and {engine.running} containers run under the old one", "drain"
    elif engine.running and not live:
        why, disruption = f"{why}, which ends {engine.running} running containers without live-restore", "drain"
    return Change("service docker", f"restarted: {why}", disruption, step=("restart", "docker"))


def _plan_members(observed: Observed, wanted: Wanted) -> list[Change]:
    members, users = observed.members or (), _users(observed, wanted)
    if users:
        managed.note("group", "docker", among=list(users))
    changes = [Change(f"group docker, {user}", "added", step=("add", user)) for user in users if user not in members]
    ours = set(read_record(observed).users) - set(users)
    return changes + [
        Change(f"group docker, {user}", "removed", step=("drop", user)) for user in members if user in ours
    ]


def _users(observed: Observed, wanted: Wanted) -> tuple[str, ...]:
    return wanted.users if wants_docker(observed, wanted) else ()


def _plan_absent(observed: Observed, wanted: Wanted) -> list[Change]:
    record = read_record(observed)
    running = observed.engine.running if observed.engine else 0
    harm = "drain" if running else "restart"
    changes = [
        Change(f"group docker, {user}", "removed", step=("drop", user))
        for user in observed.members or ()
        if user in record.users
    ]
    config, _remembered = wanted_config(observed, wanted)
    toolkit = tuple(name for name in record.toolkit if name in observed.packages)
    docker = tuple(name for name in (*record.docker, *record.along) if name in observed.packages)
    # the packages make it when they are installed, and forget it when they are purged
    changes += plan_file(CONFIG, observed.config, None if toolkit else config)
    daemon, _marks = wanted_daemon(observed, wanted)
    changes += plan_file(DAEMON_JSON, observed.daemon, daemon)
    waiting = leaving_record(observed, wanted)
    if observed.engine and _due(waiting, observed.engine) and not docker:
        restart = _restart(observed.engine, _live(observed, daemon), "")
        if restart.disruption == "drain":
            # otherwise the next run would not know of it any more
            changes += plan_file(RECORD, observed.record, waiting.file())
        changes.append(restart)
    loose = tuple(name for name in record.held if name in observed.packages and observed.packages[name].held)
    if loose:
        changes.append(Change(f"hold {' '.join(loose)}", "let go", step=("unhold", *loose)))
    if toolkit:
        disruption = "drain" if running else "none"
        changes.append(Change(f"packages {' '.join(toolkit)}", "removed", disruption, step=("purge", *toolkit)))
    if docker:
        # its data in /var/lib/docker stays, so it is removed and not purged
        why = f"removed, with {running} containers running" if running else "removed"
        changes.append(Change(f"packages {' '.join(docker)}", why, harm, step=("remove-packages", *docker)))
    for source in (wanted.toolkit_source, wanted.docker_source):
        state = observed.sources.get(source.name, SourceState()) if source else SourceState()
        if source:
            changes += [
                replace(change, step=(*change.step, source.name)) for change in plan_source(state, source, False)
            ]
    late = [change.disruption for change in changes if change.step[0] in ("purge", "remove-packages", "restart")]
    # what waits for consent is still to be undone, and remembered
    last = max(late, key=rank, default="none")
    return changes + [replace(change, disruption=last) for change in plan_file(RECORD, observed.record, None)]


def notes(observed: Observed, wanted: Wanted) -> list[str]:
    """Return what an admin should know, in sentences without full stop; nothing of it is changed."""
    if not wanted.present:
        return []
    found = []
    source = engine_source(observed)
    if wants_docker(observed, wanted) and source not in ("", wanted.docker):
        found.append(
            f"Docker is there from another source ({source}) than container_toolkit_docker: {wanted.docker}; it was "
            "kept, since a swap would end its containers"
        )
    if wants_docker(observed, wanted):
        for key in sorted(flag_keys(observed)):
            if key in ("live-restore", "log-driver", "exec-opts", "runtimes", "default-runtime", "features"):
                found.append(
                    f"dockerd's command line sets {key}, so daemon.json was left without it. Mend: take it out of "
                    "docker.service or /etc/default/docker, and run again"
                )
        if observed.engine is None and observed.services.get("docker", ServiceState()).active:
            found.append("dockerd runs but does not answer on its socket, so it was neither reloaded nor restarted")
        if observed.engine and observed.engine.swarm:
            found.append("Docker is in swarm mode, which excludes live-restore: a restart of dockerd ends containers")
        others = [user for user in observed.members or () if user not in wanted.users]
        if others:
            found.append(
                f"group docker has members that container_toolkit_docker_users does not name: {', '.join(others)}. "
                "They are root in all but name. Mend: name them, or gpasswd -d USER docker"
            )
    if wants_toolkit(observed, wanted):
        found += [
            f"{path} is a copy of the CDI specs that nobody refreshes, beside the current one in /var/run/cdi. "
            f"Mend: rm {path}"
            for path in observed.cdi
        ]
    return found
