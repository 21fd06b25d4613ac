# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a launch has to keep to on a machine that is shared: when it ends, and what of the machine it may see. Pure.

Nothing here knows SkyPilot; a launch is the plain configuration that its YAML has. Written for SkyPilot 0.14.1.

A pod's user has root in the pod: SkyPilot runs none as a number that the image does not know (its start script asks
``whoami`` and ``sudo -l``, and fails without an answer), so ``runAsUser`` can't make files belong to whoever launched.
A pod gets the launcher's group instead (``supplementalGroups``), which lets it write where that group may, and sees of
the machine's directories only what the inventory names. :mod:`.owner` gives the files to their owner.
"""

from __future__ import annotations

import json
import posixpath
import pwd
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

SETTINGS = "/etc/labrack/skypilot_policy.json"
#: Requests that start something for a researcher, and end with it.
LAUNCHES = frozenset({"validate", "optimize", "launch", "jobs.launch", "jobs.launch_cluster"})
#: Requests of SkyPilot itself, for the machines that watch jobs and services.
CONTROLLERS = frozenset({"jobs.launch_controller", "serve.launch_controller"})
#: Infrastructure that can't stop a cluster, only end it.
NO_STOP = frozenset({"", "kubernetes", "ssh", "slurm"})
#: Kinds of volumes that reach nothing of the machine and no other server.
HARMLESS_VOLUMES = frozenset(
    {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected", "downwardAPI", "ephemeral", "image"}
)
#: Capabilities that a pod may ask for: pinned memory for InfiniBand, debuggers, priorities within the pod.
HARMLESS_CAPABILITIES = frozenset({"IPC_LOCK", "SYS_PTRACE", "SYS_NICE"})
HOST_NAMESPACES = ("hostNetwork", "hostPID", "hostIPC")
#: Who a pod is, which is the lab's to say.
IDENTITY = ("runAsUser", "runAsGroup", "supplementalGroups", "fsGroup", "windowsOptions")
#: The container of a pod in which SkyPilot runs the task.
CONTAINER = "ray-node"
#: What tells the items of a list apart (sky/utils/config_utils.py, _PATCH_MERGE_KEYS).
_LIST_KEYS = {
    **dict.fromkeys(("containers", "initContainers", "ephemeralContainers", "volumes", "env"), "name"),
    "volumeMounts": "mountPath",
}
#: sbatch's times: m, m:s, h:m:s, d-h, d-h:m, d-h:m:s (https://slurm.schedmd.com/sbatch.html#OPT_time).
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_TIME_KEYS = ("time", "t")


class Refused(ValueError):
    """A launch that can't be; the message says why, and the mend."""


@dataclass(frozen=True)
class HostPath:
    """A directory of the machine that pods may see; ``{user}`` in it stands for the launcher's Unix name.

    With ``mount`` the policy has every pod see it, under the same path; otherwise the server's ``pod_config`` does.
    """

    path: str
    read_only: bool = False
    mount: bool = False


@dataclass(frozen=True)
class Limits:
    """The lab's settings. Minutes until an idle cluster ends, unless its owner says another number, and at most.

    ``most_hours`` bounds the life of a pod and of a Slurm job; 0: no bound. ``uids`` has UID and GID by the user's name
    in SkyPilot, ``unix_names`` the Unix name where that differs; a file's are those of the machine's accounts.
    """

    idle_minutes: int = 60
    most_idle_minutes: int = 480
    most_hours: int = 168
    mounts: tuple[HostPath, ...] = ()
    uids: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unix_names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Limits:
        """Return the settings of a JSON document; ValueError that names the key for a wrong one."""
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        unknown = sorted(set(document) - {one.name for one in fields(cls)})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]}")
        numbers = {}
        for key, least in (("idle_minutes", 1), ("most_idle_minutes", 1), ("most_hours", 0)):
            if key in document:
                value = document[key]
                if not isinstance(value, int) or isinstance(value, bool) or value < least:
                    raise ValueError(f"{key} is {value!r}, no number from {least} on")
                numbers[key] = value
        paths = tuple(_host_path(entry) for entry in document.get("mounts", []))
        uids = {str(name): _pair(name, pair) for name, pair in dict(document.get("uids", {})).items()}
        names = {str(name): str(unix) for name, unix in dict(document.get("unix_names", {})).items()}
        limits = cls(**numbers, mounts=paths, uids=uids, unix_names=names)
        if limits.idle_minutes > limits.most_idle_minutes:
            raise ValueError(f"idle_minutes is {limits.idle_minutes}, more than most_idle_minutes")
        return limits


def _host_path(entry: Any) -> HostPath:
    entry = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or set(entry) - {"path", "read_only", "mount"} or "path" not in entry:
        raise ValueError(f"mounts has {entry!r}, no path with read_only and mount")
    path = str(entry["path"])
    if not path.startswith("/") or posixpath.normpath(path) != path or path == "/":
        raise ValueError(f"mounts has {path!r}, no absolute path below /")
    return HostPath(path, bool(entry.get("read_only", False)), bool(entry.get("mount", False)))


def _pair(name: Any, pair: Any) -> tuple[int, int]:
    if (
        not isinstance(pair, (list, tuple))
        or len(pair) != 2
        or not all(isinstance(number, int) and not isinstance(number, bool) and number > 0 for number in pair)
    ):
        raise ValueError(f"uids has {pair!r} for {name}, no [UID, GID]")
    return int(pair[0]), int(pair[1])


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def load(path: str = SETTINGS) -> Limits:
    """Return the settings of a file; Refused where they can't be read, as no launch may go without limits."""
    try:
        found = Limits.read(Path(path).read_text(encoding="utf-8"))
        accounts = {name: _account(uid) for name, (uid, _gid) in found.uids.items()}
        return replace(found, unix_names={**accounts, **found.unix_names})
    except (OSError, ValueError, TypeError) as error:
        raise Refused(f"the lab's limits in {path} can't be read ({error}). Mend: tell whoever runs the lab") from None


@dataclass(frozen=True)
class Launch:
    """What is asked for by one of a task's alternatives.

    ``cloud`` is its name in lower case, "" where SkyPilot shall choose; ``autostop`` what its YAML has: None, False, or
    a mapping with ``idle_minutes``, ``down`` and ``wait_for``. ``overrides`` is the task's ``config:``.
    """

    request: str = "launch"
    user: str = ""
    cloud: str = ""
    autostop: Any = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What becomes of it: its autostop, and what is laid over its ``config:``; words tell what was changed."""

    autostop: Any
    overrides: Mapping[str, Any]
    words: tuple[str, ...] = ()


def decide(limits: Limits, launch: Launch, config: Mapping[str, Any], trusted: bool = False) -> Outcome:
    """Return what a launch becomes; Refused for one that asks for what nobody may have.

    ``config`` is the server's configuration with what the client has laid over it; ``trusted``: the client could lay
    nothing over it that counts. Decided once more, the outcome changes no more.
    """
    if launch.request in CONTROLLERS:
        return Outcome(launch.autostop, launch.overrides)
    named = paths_of(limits, launch.user)
    gid = limits.uids[launch.user][1] if launch.user in limits.uids else None
    for problem in config_problems(launch.overrides, named, gid, task=True):
        raise Refused(f"the task's config: {problem}")
    for problem in () if trusted else config_problems(config, named, gid, task=False):
        raise Refused(f"your configuration: {problem}")
    overrides = launch.overrides
    words: list[str] = []
    autostop = launch.autostop
    ends = launch.request in LAUNCHES
    if ends:
        autostop = autostop_of(limits, launch)
        if autostop != launch.autostop:
            words.append(f"ends after {autostop['idle_minutes']} idle minutes")
        time = slurm_time(limits.most_hours, overrides, config)
        if launch.cloud in ("", "slurm") and limits.most_hours and time:
            overrides = merged(overrides, {"slurm": {"sbatch_options": time}})
            words.append(f"as a Slurm job it ends after {limits.most_hours} hours")
    for cloud in ("kubernetes", "ssh"):
        if launch.cloud in ("", cloud):
            own = _dig(overrides, cloud, "pod_config")
            overrides = merged(overrides, {cloud: {"pod_config": pod_additions(limits, launch, own, ends)}})
    return Outcome(autostop, overrides, tuple(words))


def merged(own: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with another laid over it, lists as SkyPilot lays them: items of one name become one."""
    found = dict(own)
    for key, value in more.items():
        before = found.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            found[key] = merged(before, value)
        elif isinstance(before, (list, tuple)) and isinstance(value, (list, tuple)):
            found[key] = _merged_list(before, value, _LIST_KEYS.get(key, ""))
        else:
            found[key] = value
    return found


def _merged_list(own: Sequence[Any], more: Sequence[Any], name: str) -> list[Any]:
    found = list(own)
    for item in more:
        known = item.get(name) if isinstance(item, Mapping) and name else None
        same = [
            place
            for place, one in enumerate(found)
            if (known is not None and isinstance(one, Mapping) and one.get(name) == known) or one == item
        ]
        if not same:
            found.append(item)
        elif isinstance(item, Mapping):
            found[same[0]] = merged(found[same[0]], item)
    return found


# --- when it ends ----------------------------------------------------------------------------------------------------


def autostop_of(limits: Limits, launch: Launch) -> dict[str, Any]:
    """Return the autostop that a launch gets: its own as far as the limits go, ended rather than stopped.

    A cloud's machine may be stopped where its owner says so; nothing in the lab can be.
    """
    asked = launch.autostop if isinstance(launch.autostop, Mapping) else {}
    minutes = asked.get("idle_minutes")
    if not isinstance(minutes, int) or isinstance(minutes, bool) or minutes < 0:
        minutes = limits.idle_minutes
    found: dict[str, Any] = {"idle_minutes": min(minutes, limits.most_idle_minutes)}
    found["down"] = launch.cloud in NO_STOP or bool(asked.get("down", True))
    if asked.get("wait_for") is not None:
        found["wait_for"] = asked["wait_for"]
    return found


def seconds(time: Any) -> int | None:
    """Return a time limit of sbatch in seconds, None for one that limits nothing: none at all, 0, or no time."""
    if time in (None, False, True):
        return None
    found = _TIME.fullmatch(str(time).strip())
    if not found:
        return None
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, minutes, secs = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, secs = numbers
    else:
        hours, minutes, secs = 0, numbers[0], [*numbers, 0][1]
    total = int(days or 0) * 86400 + hours * 3600 + minutes * 60 + secs
    return total or None


def slurm_time(most_hours: int, overrides: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the ``sbatch_options`` that keep a job within the limit, empty where it keeps to it by itself.

    A limit that the server's own configuration has for a cluster or a partition is left to it.
    """
    most = most_hours * 3600
    cap = f"{most_hours // 24}-{most_hours % 24:02}:00:00"
    own = _dig(overrides, "slurm", "sbatch_options")
    given = [key for key in _TIME_KEYS if key in own]
    over = {key: cap for key in given if (seconds(own[key]) or most + 1) > most}
    if given:
        return over
    common = _dig(config, "slurm", "sbatch_options")
    for key in _TIME_KEYS:
        if common.get(key) not in (None, False):
            return {} if (seconds(common[key]) or most + 1) <= most else {key: cap}
    for cluster in _dig(config, "slurm", "cluster_configs").values():
        parts = [cluster, *_dig(cluster, "partition_configs").values()]
        if any(_dig(part, "sbatch_options").get(key) for part in parts for key in _TIME_KEYS):
            return {}
    return {"time": cap}


def _dig(value: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


# --- what it may see -------------------------------------------------------------------------------------------------


def unix_name(limits: Limits, user: str) -> str:
    """Return a user's Unix name, "" for one whom the lab does not know."""
    return limits.unix_names.get(user, user) if user in limits.uids else ""


def paths_of(limits: Limits, user: str) -> dict[str, bool]:
    """Return the directories that a user's pods may see, and whether for reading alone."""
    name = unix_name(limits, user)
    return {
        one.path.replace("{user}", name): one.read_only for one in limits.mounts if name or "{user}" not in one.path
    }


def pod_additions(limits: Limits, launch: Launch, own: Mapping[str, Any], ends: bool) -> dict[str, Any]:
    """Return what a launch's pods get beside ``own``: its launcher's group, the lab's directories, its end."""
    spec: dict[str, Any] = {}
    if launch.user in limits.uids:
        spec["securityContext"] = {"supplementalGroups": [limits.uids[launch.user][1]]}
    if ends and limits.most_hours:
        most = limits.most_hours * 3600
        asked = _dig(own, "spec").get("activeDeadlineSeconds")
        fine = isinstance(asked, int) and not isinstance(asked, bool) and 0 < asked <= most
        spec["activeDeadlineSeconds"] = asked if fine else most
    named = paths_of(limits, launch.user)
    # root in a pod could make the machine's disks appear as files in a directory that people share
    unable = {"securityContext": {"capabilities": {"drop": ["MKNOD"]}}}
    container: dict[str, Any] = {"name": CONTAINER, **unable}
    for place, one in enumerate(limits.mounts):
        path = one.path.replace("{user}", unix_name(limits, launch.user))
        if one.mount and path in named:
            name = f"labrack-{place}"
            spec.setdefault("volumes", []).append({"name": name, "hostPath": {"path": path, "type": "Directory"}})
            mount = {"name": name, "mountPath": path, "readOnly": one.read_only}
            container.setdefault("volumeMounts", []).append(mount)
    spec["containers"] = [container]
    for kind in ("containers", "initContainers"):
        others = [one["name"] for one in _list(_dig(own, "spec").get(kind)) if one.get("name") not in (None, CONTAINER)]
        if others:
            spec[kind] = [*spec.get(kind, []), *({"name": name, **unable} for name in others)]
    return {"spec": spec}


def config_problems(config: Mapping[str, Any], named: Mapping[str, bool], gid: int | None, task: bool) -> Iterator[str]:
    """Yield what is wrong in a configuration of SkyPilot, with the mend; ``task``: it is a task's, not the server's."""
    for cloud in ("kubernetes", "ssh"):
        part = _dig(config, cloud)
        contexts = _dig(part, "context_configs")
        for where, one in [
            (cloud, part),
            *((f"{cloud}.context_configs.{name}", value) for name, value in contexts.items()),
        ]:
            for problem in pod_problems(_dig(one, "pod_config"), named, gid):
                yield f"{where}.pod_config: {problem}"
            if _runs_docker(_dig(one).get("enable_docker")):
                yield (
                    f"{where}.enable_docker starts a container that owns the machine. Mend: use BUILD, which needs no "
                    "privilege, or image_id for an image that is there"
                )
            if task and "remote_identity" in _dig(one):
                yield f"{where}.remote_identity is the lab's to say. Mend: leave it out"


def _runs_docker(value: Any) -> bool:
    mode = value.get("mode") if isinstance(value, Mapping) else value
    return mode is True or str(mode).upper() == "ALL"


def pod_problems(pod: Mapping[str, Any], named: Mapping[str, bool], gid: int | None = None) -> Iterator[str]:
    """Yield what in a ``pod_config`` would reach past the pod. ``named`` is that of :func:`paths_of`.

    ``gid`` is the launcher's group, the one that a pod may ask for.

    A directory is taken by its exact path alone: below one that people write to, a link could lead anywhere.
    """
    spec = _dig(pod, "spec")
    for key in HOST_NAMESPACES:
        if spec.get(key) not in (None, False):
            yield f"{key} is not for anybody. Mend: leave it out"
    for key in ("serviceAccountName", "serviceAccount"):
        if spec.get(key):
            yield f"{key} is the lab's to say. Mend: leave it out"
    read_only: set[str] = set()
    for volume in _list(spec.get("volumes")):
        name = str(volume.get("name"))
        kinds = sorted(set(volume) - {"name"})
        for kind in kinds:
            if kind == "hostPath":
                path = str(_dig(volume, "hostPath").get("path", ""))
                if path not in named:
                    known = ", ".join(sorted(named)) or "none"
                    yield f"hostPath {path!r} is not one that the lab gives out. Mend: use one of these: {known}"
                elif named[path]:
                    read_only.add(name)
            elif kind not in HARMLESS_VOLUMES:
                yield f"volume {name} is of the kind {kind}. Mend: use a volume of `sky volumes`, or a named directory"
    context = dict(_dig(spec, "securityContext"))
    if context.get("supplementalGroups") == [gid]:
        del context["supplementalGroups"]
    yield from _identity(context, "securityContext")
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in _list(spec.get(kind)):
            yield from _container(container, kind, read_only)


def _list(value: Any) -> Sequence[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, (list, tuple)) else []


def _identity(context: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in IDENTITY:
        if context.get(key) is not None:
            yield f"{where}.{key} is the lab's to say. Mend: leave it out"


def _container(container: Mapping[str, Any], kind: str, read_only: set[str]) -> Iterator[str]:
    context = _dig(container, "securityContext")
    if context.get("privileged"):
        yield f"{kind}: privileged is not for anybody. Mend: leave it out"
    if context.get("procMount") not in (None, "Default"):
        yield f"{kind}: procMount is not for anybody. Mend: leave it out"
    yield from _identity(context, f"{kind}: securityContext")
    added = _dig(context, "capabilities").get("add") or []
    for capability in added if isinstance(added, (list, tuple)) else [added]:
        if str(capability).upper().replace("CAP_", "") not in HARMLESS_CAPABILITIES:
            few = ", ".join(sorted(HARMLESS_CAPABILITIES))
            yield f"{kind}: the capability {capability} is not for anybody. Mend: only {few} can be asked for"
    for mount in _list(container.get("volumeMounts")):
        if mount.get("name") in read_only and mount.get("readOnly") is not True:
            yield f"{kind}: {mount.get('mountPath')} is for reading alone. Mend: readOnly: true"
    for port in _list(container.get("ports")):
        if port.get("hostPort"):
            yield f"{kind}: hostPort {port['hostPort']} would be a port of the machine. Mend: use `ports:` of the task"
    for variable in _list(container.get("env")):
        if variable.get("name") == "NVIDIA_VISIBLE_DEVICES":
            yield f"{kind}: NVIDIA_VISIBLE_DEVICES would show other people's cards. Mend: ask for accelerators"


def volume_problems(
    volumes: Mapping[str, Any], host_paths: Mapping[str, str], named: Mapping[str, bool]
) -> Iterator[str]:
    """Yield what is wrong in a task's ``volumes``; ``host_paths`` has the directory behind the name of one."""
    for target, volume in volumes.items():
        mode = ""
        if isinstance(volume, Mapping) and volume.get("host_path"):
            path, mode = str(volume["host_path"]), str(volume.get("mode", "ro"))
        else:
            name = volume.get("name") if isinstance(volume, Mapping) else volume
            path = host_paths.get(str(name), "")
        if path and path not in named:
            known = ", ".join(sorted(named)) or "none"
            yield f"volumes {target}: {path!r} is not a directory that the lab gives out. Mend: use one of: {known}"
        elif path and named[path] and mode != "ro":
            yield f"volumes {target}: {path} is for reading alone. Mend: it is mounted in every pod already"
