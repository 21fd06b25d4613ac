"""Docker and the toolkit of a node: the plan, and the module on a simulated node with a dockerd that can lose jobs."""

from __future__ import annotations

import fnmatch
import http.server
import json
import os
import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import daemon_json, toolkit_plan
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Package, Simulation, SourceError
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, FileState
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState
from ansible_collections.labrack.infra.plugins.module_utils.toolkit_plan import (
    CONFIG,
    DAEMON_JSON,
    ENVVAR_KEY,
    RECORD,
    TOOLKIT,
    Engine,
    Observed,
    Record,
    ToolkitError,
    Wanted,
    read_wanted,
    set_key,
    unset_key,
)
from ansible_collections.labrack.infra.plugins.modules import container_toolkit as module

DEBIAN = {"id": "debian", "version": "13", "codename": "trixie", "family": "debian", "pretty": "Debian 13"}
ROCKY = {"id": "rocky", "version": "9.6", "codename": "", "family": "redhat", "pretty": "Rocky Linux 9.6"}
NVIDIA_KEY = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
DOCKER_KEY = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
PARAMS: dict[str, Any] = {
    "state": "present",
    "docker": "distribution",
    "toolkit": True,
    "version": "1.20.0-1",
    "repo_url": "https://nvidia.github.io/libnvidia-container/stable",
    "repo_key_url": "https://nvidia.github.io/libnvidia-container/gpgkey",
    "repo_key_fingerprint": [NVIDIA_KEY],
    "docker_repo_url": "https://download.docker.com/linux",
    "docker_repo_key_url": "",
    "docker_repo_key_fingerprint": [DOCKER_KEY],
    "log_max_size": "50m",
    "log_max_files": 3,
    "cgroup_driver": "cgroupfs",
    "default_runtime": False,
    "unprivileged_envvar": False,
    "docker_users": [],
    "mig_layout": "",
}
#: As NVIDIA's package brings it.
CONFIG_TOML = f"""#accept-nvidia-visible-devices-as-volume-mounts = false
#{ENVVAR_KEY} = true
disable-require = false

[nvidia-container-cli]
#debug = "/var/log/nvidia-container-toolkit.log"
load-kmods = true

[nvidia-container-runtime]
runtimes = ["runc", "crun"]
"""
DEPENDENCIES = {"docker.io": ("containerd", "runc"), "nvidia-container-toolkit-base": ("libcap2",)}


@dataclass
class Machine:
    """A node: files, packages, services, and a dockerd that takes its configuration as the real one does."""

    files: dict[str, FileState] = field(default_factory=dict)
    packages: dict[str, Package] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    enabled: set[str] = field(default_factory=set)
    loaded: Engine | None = None
    starts: int = 0
    flags: tuple[str, ...] = ()
    swarm: bool = False
    #: Containers that ended because of us.
    ended: int = 0
    calls: list[tuple[str, ...]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    deaf: bool = False
    mute: bool = False
    broken: str = ""

    # dockerd ---------------------------------------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        return daemon_json.parse(self.files[DAEMON_JSON].text) if DAEMON_JSON in self.files else {}

    def has_docker(self) -> bool:
        return bool({"docker.io", "docker-ce"} & set(self.packages))

    def start(self, containers: int = 0) -> None:
        data = self.data()
        option = daemon_json._get(data, ("exec-opts", "native.cgroupdriver"))
        self.starts += 1
        self.loaded = Engine(
            identity=f"7:{self.starts}",
            live_restore=data.get("live-restore") is True,
            cgroup_driver=option.partition("=")[2] if isinstance(option, str) else "systemd",
            runtimes=tuple(sorted({"runc", *(data.get("runtimes") or {})})),
            default_runtime=data.get("default-runtime", "runc"),
            running=containers,
            swarm=self.swarm,
        )

    def restart(self) -> None:
        old = self.loaded
        self.start(old.running if old else 0)
        assert self.loaded
        if old and old.running and not (old.live_restore and self.loaded.live_restore):
            self.ended += old.running
            self.loaded = replace(self.loaded, running=0)
        elif old and old.running and old.cgroup_driver != self.loaded.cgroup_driver:
            self.ended += old.running

    def reload(self) -> None:
        data = self.data()
        assert self.loaded
        changes: dict[str, Any] = {}
        if "live-restore" in data and not self.deaf:
            changes["live_restore"] = data["live-restore"] is True
        if "runtimes" in data:
            changes["runtimes"] = tuple(sorted({"runc", *(data["runtimes"] or {})}))
        if "default-runtime" in data:
            changes["default_runtime"] = data["default-runtime"]
        self.loaded = replace(self.loaded, **changes)

    # what the module calls -------------------------------------------------------------------------------------------

    def observe_services(self, units: Sequence[str]) -> dict[str, ServiceState]:
        there = {"docker": self.has_docker()}
        return {
            unit: ServiceState(
                installed=there.get(unit, "nvidia-container-toolkit-base" in self.packages),
                active=self.loaded is not None if unit == "docker" else unit in self.enabled,
                enabled=unit in self.enabled,
            )
            for unit in units
        }

    def act(self, verb: str, unit: str) -> None:
        self.calls.append((verb, unit))
        if verb == "enable":
            self.enabled.add(unit)
        elif unit == "docker":
            {"restart": self.restart, "reload": self.reload}[verb]()

    def install(self, packages: Sequence[str], sources: Sequence[Any], held: Sequence[str] = ()) -> Simulation:
        if self.broken:
            raise SourceError(self.broken)
        self.calls.append(("install", *packages))
        came, old = {}, {}
        for package in packages:
            name, _equals, version = package.partition("=")
            assert not (name in self.packages and self.packages[name].held)
            if name in self.packages:
                old[name] = self.packages[name].version
            for one in (name, *DEPENDENCIES.get(name, ())):
                if one == name or one not in self.packages:
                    came[one] = version or "26.1"
                    self.packages[one] = Package(came[one])
            if name == "nvidia-container-toolkit-base" and CONFIG not in self.files:
                self.files[CONFIG] = FileState(CONFIG_TOML)
            if name in ("docker.io", "docker-ce"):
                self.enabled.add("docker")
                self.start()
        return Simulation(came, old)

    def remove(self, names: Sequence[str], purge: bool = False) -> None:
        self.calls.append(("remove", *names))
        for name in names:
            del self.packages[name]
        if "nvidia-container-toolkit-base" in names:
            self.files.pop(CONFIG, None)
            self.enabled -= {toolkit_plan.REFRESH, toolkit_plan.REFRESH_PATH}
        if not self.has_docker() and self.loaded:
            self.ended += self.loaded.running
            self.loaded = None
            self.enabled -= {"docker"}

    def hold(self, names: Sequence[str], on: bool = True) -> None:
        self.packages.update({name: replace(self.packages[name], held=on) for name in names})

    @contextmanager
    def unheld(self, names: Sequence[str]) -> Iterator[None]:
        self.hold(names, False)
        yield
        self.hold(names)

    def run(self, argv: list[str], **_options: Any) -> Done:
        if argv[0] == "gpasswd":
            self.members.append(argv[2]) if argv[1] == "-a" else self.members.remove(argv[2])
        elif argv[0] == "dockerd":
            return Done(0 if self.has_docker() else 127, "", "")
        return Done(0, "", "")

    def getgrnam(self, _name: str) -> Any:
        if not (self.has_docker() or self.members):
            raise KeyError("docker")
        return SimpleNamespace(gr_mem=list(self.members))

    def getpwnam(self, name: str) -> Any:
        if name.startswith("no"):
            raise KeyError(name)

    def apply_source(self, source: Any, change: Any) -> None:
        verb, path = change.step
        if verb == "remove":
            del self.files[path]
        else:
            self.files[path] = FileState({"key": "the key", "write": f"{source.name} {path}"}[verb])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the module run on this machine."""
        with pytest.MonkeyPatch.context() as patch:
            files = self.files
            read = {"read_text": lambda path: files[str(path)].text if str(path) in files else None}
            io = SimpleNamespace(
                run=self.run,
                observe_file=files.get,
                write_file=files.__setitem__,
                remove_file=lambda path: files.pop(path, None),
                remove_empty=lambda _path: None,
                **read,
            )
            apt = SimpleNamespace(
                observe_packages=lambda names: {n: p for n, p in self.packages.items() if n in names},
                held_packages=lambda: [name for name, package in self.packages.items() if package.held],
                observe_source=self.observe_source,
                apply_source=self.apply_source,
                install=self.install,
                remove=self.remove,
                unheld=self.unheld,
                hold=self.hold,
                APT_TIMEOUT=1,
            )
            for name, value in {
                "node_io": io,
                "apt_source": apt,
                "observe_services": self.observe_services,
                "act": self.act,
                "observe_engine": lambda: None if self.mute else self.loaded,
                "observe_flags": lambda: self.flags,
                "grp": SimpleNamespace(getgrnam=self.getgrnam),
                "pwd": SimpleNamespace(getpwnam=self.getpwnam),
                "os_release": lambda: DEBIAN,
                "platform": SimpleNamespace(machine=lambda: "x86_64"),
                "os": SimpleNamespace(path=SimpleNamespace(exists=lambda path: path in files)),
                "glob": SimpleNamespace(glob=lambda pattern: fnmatch.filter(files, pattern)),
                "time": SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _seconds: None),
            }.items():
                patch.setattr(module, name, value)
            patch.setattr(toolkit_plan, "plan_source", self.plan_source)
            yield

    def observe_source(self, source: Any) -> Any:
        return {path: self.files.get(path) for path in (source.keyring, source.path, source.preferences)}

    @staticmethod
    def plan_source(state: Any, source: Any, present: bool = True) -> list[toolkit_plan.Change]:
        state = state if isinstance(state, dict) else {}
        steps = {source.keyring: "key", source.path: "write", source.preferences: "write"}
        return [
            toolkit_plan.Change(f"file {path}", "x", step=(verb if present else "remove", path))
            for path, verb in steps.items()
            if (state.get(path) is None) == present
        ]

    def converge(self, check: bool = False, **params: Any) -> dict[str, Any]:
        """Run the module; its result, or its failure."""
        result: dict[str, Any] = {}

        def finish(_module: Any, **found: Any) -> None:
            result.update(found)
            raise SystemExit

        arguments = {**PARAMS, **params, "_ansible_check_mode": check}
        with self.installed(), patch_module_args(arguments), pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.AnsibleModule, "exit_json", finish)
            patch.setattr(module.AnsibleModule, "fail_json", lambda it, msg, **more: finish(it, failed=msg, **more))
            patch.setattr(module.AnsibleModule, "warn", lambda _it, words: self.warnings.append(words))
            with pytest.raises(SystemExit):
                module.main()
        return result

    def state(self) -> Any:
        return dict(self.files), dict(self.packages), sorted(self.members)


def docker_there(daemon: dict[str, Any] | None = None, containers: int = 0, **more: Any) -> Machine:
    """A machine on which somebody has installed Docker."""
    files = {} if daemon is None else {DAEMON_JSON: FileState(json.dumps(daemon, indent=2) + "\n")}
    packages = {name: Package("26.1") for name in ("docker.io", "docker-cli", "containerd", "runc")}
    machine = Machine(files=files, packages=packages, enabled={"docker"}, **more)
    machine.start(containers)
    return machine


def subjects(result: dict[str, Any], key: str = "changes") -> list[str]:
    assert "failed" not in result, result["failed"]
    return [change["subject"] for change in result[key]]


# --- on the machine --------------------------------------------------------------------------------------------------


def test_an_empty_machine_gets_all_and_then_nothing() -> None:
    machine = Machine()
    predicted = machine.converge(check=True)
    assert machine.state() == Machine().state()
    made = machine.converge()
    assert subjects(made) == subjects(predicted) and made["pending"] == []
    assert machine.converge()["changed"] is False
    data = machine.data()
    assert data == {
        "live-restore": True,
        "log-driver": "json-file",
        "log-opts": {"max-size": "50m", "max-file": "3"},
        "features": {"cdi": True},
        "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}},
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
    }
    assert f"\n{ENVVAR_KEY} = false\n" in machine.files[CONFIG].text
    assert all(machine.packages[name] == Package("1.20.0-1", True) for name in TOOLKIT)
    assert {"docker.io", "docker-cli"} <= set(machine.packages)
    assert machine.enabled == {"docker", toolkit_plan.REFRESH, toolkit_plan.REFRESH_PATH}
    assert subjects(made)[0] == f"file {RECORD}", "what a broken run has made can be undone as well"
    assert machine.converge(state="absent")["pending"] == []
    assert machine.state() == Machine().state()
    assert machine.converge(state="absent")["changed"] is False


def test_a_machine_without_cards_gets_docker_alone_and_one_that_lost_them_keeps_the_toolkit() -> None:
    machine = Machine()
    machine.converge(toolkit=False)
    assert set(machine.data()) == {"live-restore", "log-driver", "log-opts"} and not set(TOOLKIT) & set(
        machine.packages
    )
    machine.converge()
    assert set(TOOLKIT) <= set(machine.packages)
    assert machine.converge(toolkit=False)["changed"] is False


def test_live_restore_comes_by_reload_and_makes_the_restart_harmless() -> None:
    machine = docker_there({"registry-mirrors": ["https://mirror.lab"]}, containers=3)
    made = machine.converge(cgroup_driver="")
    assert machine.ended == 0 and made["pending"] == []
    assert [call for call in machine.calls if call[1] == "docker"] == [("reload", "docker"), ("restart", "docker")]
    assert machine.loaded and machine.loaded.running == 3 and machine.loaded.live_restore
    assert machine.converge(cgroup_driver="")["changed"] is False


def test_another_cgroup_driver_waits_for_the_containers_that_run() -> None:
    machine = docker_there(containers=2)
    made = machine.converge()
    assert subjects(made, "pending") == ["service docker"] and made["pending"][0]["disruption"] == "drain"
    assert "systemd → cgroupfs" in made["pending"][0]["summary"] and machine.ended == 0
    assert [words for words in machine.warnings if "lab_max_disruption=drain (nothing is waited for)" in words]
    assert machine.loaded and machine.loaded.cgroup_driver == "systemd"
    again = machine.converge()
    assert again["changed"] is False and subjects(again, "pending") == ["service docker"]
    machine.loaded = replace(machine.loaded, running=0)
    assert subjects(machine.converge()) == ["service docker"]
    assert machine.loaded.cgroup_driver == "cgroupfs"
    assert machine.converge()["changed"] is False


def test_no_restart_where_dockerd_did_not_take_live_restore() -> None:
    machine = docker_there(containers=1, deaf=True)
    failed = machine.converge(cgroup_driver="")["failed"]
    assert "has not taken live-restore" in failed and "1 containers" in failed and machine.ended == 0


def test_swarm_excludes_live_restore() -> None:
    machine = docker_there(containers=1, swarm=True)
    made = machine.converge(cgroup_driver="")
    assert "live-restore" not in machine.data() and machine.ended == 0
    assert [change["disruption"] for change in made["pending"]] == ["drain"]
    assert any("swarm" in note for note in made["notes"])


def test_keys_on_the_command_line_stay_out_of_the_file() -> None:
    machine = docker_there(flags=("--exec-opt", "--log-driver=journald", "--host=fd://"))
    made = machine.converge()
    assert not {"exec-opts", "log-driver", "log-opts"} & set(machine.data())
    assert sorted(note.split(",")[0] for note in made["notes"]) == [
        "dockerd's command line sets exec-opts",
        "dockerd's command line sets log-driver",
    ]
    assert machine.converge()["changed"] is False


@pytest.mark.parametrize("text", ['{"a": 1,}', "[]", '{"features": 3}'])
def test_a_broken_daemon_json_stops_it_all(text: str) -> None:
    machine = docker_there()
    machine.files[DAEMON_JSON] = FileState(text)
    before = machine.state()
    failed = machine.converge()["failed"]
    assert DAEMON_JSON in failed and "Nothing was changed" in failed and "Mend" in failed
    assert machine.state() == before


def test_a_daemon_json_that_dockerd_refuses_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = docker_there({"hosts": ["fd://"]})
    before = machine.state()
    monkeypatch.setattr(Machine, "run", lambda self, argv, **more: Done(1, "", "the following directives: hosts"))
    failed = machine.converge()["failed"]
    assert "dockerd refuses" in failed and "hosts" in failed and machine.state() == before
    monkeypatch.setattr(Machine, "run", lambda self, argv, **more: Done(125, "", "unknown flag: --validate"))
    assert "failed" not in machine.converge(), "Docker 20.10 can't validate"


def test_another_source_of_docker_is_kept_and_reported() -> None:
    machine = docker_there()
    made = machine.converge(docker="docker")
    assert "docker-ce" not in machine.packages
    assert any("another source (distribution)" in note for note in made["notes"])
    assert "/etc/apt/sources.list.d/labrack-docker.sources" not in machine.files


def test_dockers_own_repository() -> None:
    machine = Machine()
    machine.converge(docker="docker")
    assert {"docker-ce", "docker-ce-cli", "containerd.io"} <= set(machine.packages)
    assert "/etc/apt/sources.list.d/labrack-docker.sources" in machine.files
    assert machine.converge(docker="docker")["changed"] is False


def test_docker_left_alone() -> None:
    machine = docker_there({"x": 1}, members=["eve"])
    machine.converge(docker="none", docker_users=["ada"])
    assert machine.data() == {"x": 1} and machine.members == ["eve"] and set(TOOLKIT) <= set(machine.packages)


def test_members_of_the_group() -> None:
    machine = docker_there(members=["eve"])
    made = machine.converge(docker_users=["ada", "bob"])
    assert machine.members == ["eve", "ada", "bob"]
    assert any("root on this node" in words for words in machine.warnings)
    assert any("eve" in note for note in made["notes"])
    assert machine.converge(docker_users=["ada", "bob"])["changed"] is False
    machine.converge(docker_users=["bob"])
    assert machine.members == ["eve", "bob"]
    machine.converge(state="absent")
    assert machine.members == ["eve"]


def test_a_member_that_does_not_exist_stops_it_before_anything() -> None:
    machine = docker_there()
    before = machine.state()
    assert "container_toolkit_docker_users: nobody1" in machine.converge(docker_users=["nobody1"])["failed"]
    assert machine.state() == before
    assert "group docker, nobody1" in subjects(machine.converge(check=True, docker_users=["nobody1"]))


def test_a_change_of_the_mig_layout_refreshes_the_specs() -> None:
    machine = Machine()
    assert machine.converge(mig_layout="a")["cdi_refresh"] == ""
    assert machine.converge(mig_layout="")["changed"] is False
    machine.calls.clear()
    made = machine.converge(mig_layout="b")
    assert "MIG" in made["cdi_refresh"] and machine.calls == [("restart", toolkit_plan.REFRESH)]
    assert machine.converge(mig_layout="b")["changed"] is False


def test_a_stale_copy_of_the_specs_is_reported() -> None:
    machine = docker_there()
    machine.files["/etc/cdi/nvidia.yaml"] = FileState("kind: nvidia.com/gpu\n")
    machine.files["/etc/cdi/other.yaml"] = FileState("kind: vendor.com/net\n")
    made = machine.converge()
    assert [note for note in made["notes"] if "/etc/cdi" in note] == [
        "/etc/cdi/nvidia.yaml is a copy of the CDI specs that nobody refreshes, beside the current one in "
        "/var/run/cdi. Mend: rm /etc/cdi/nvidia.yaml"
    ]


def test_another_version_of_the_toolkit_comes_whole_and_is_held_again() -> None:
    machine = Machine()
    machine.converge(version="1.19.0-1")
    made = machine.converge(version="1.20.0-1")
    assert all(machine.packages[name] == Package("1.20.0-1", True) for name in TOOLKIT)
    assert any("1.19.0-1 → 1.20.0-1" in change["summary"] for change in made["changes"])


def test_a_toolkit_that_was_there_is_given_back_without_our_hold() -> None:
    machine = docker_there()
    machine.packages.update({name: Package("1.20.0-1") for name in TOOLKIT})
    machine.files[CONFIG] = FileState(CONFIG_TOML)
    machine.enabled |= {toolkit_plan.REFRESH, toolkit_plan.REFRESH_PATH}
    before = machine.state()
    machine.converge()
    machine.converge(state="absent")
    assert machine.state() == before


def test_packages_stay_while_containers_run() -> None:
    machine = Machine()
    machine.converge()
    assert machine.loaded
    machine.loaded = replace(machine.loaded, running=1)
    first = machine.converge(state="absent")
    assert machine.ended == 0 and "docker.io" in machine.packages and set(TOOLKIT) <= set(machine.packages)
    assert {change["disruption"] for change in first["pending"]} == {"drain"}
    again = machine.converge(state="absent")
    assert again["changed"] is False and len(again["pending"]) == len(first["pending"])
    machine.loaded = replace(machine.loaded, running=0)
    machine.converge(state="absent")
    assert machine.state() == Machine().state()


def test_a_run_that_breaks_off_can_be_undone() -> None:
    machine = docker_there({"x": 1})
    before = machine.state()
    machine.broken = "no network"
    assert machine.converge()["failed"] == "no network"
    machine.converge(state="absent")
    assert machine.state() == before
    machine.converge()
    machine.broken = ""
    machine.converge()
    assert machine.converge()["changed"] is False
    machine.converge(state="absent")
    assert machine.data() == {"x": 1} and not set(TOOLKIT) & set(machine.packages)


def test_a_damaged_record_is_named() -> None:
    machine = docker_there()
    machine.files[RECORD] = FileState('{"marks": [3]}')
    assert f"{RECORD} is damaged" in machine.converge()["failed"]


CHOICES = st.fixed_dictionaries(
    {
        "state": st.sampled_from(["present", "present", "absent"]),
        "docker": st.sampled_from(["distribution", "docker", "none"]),
        "toolkit": st.booleans(),
        "version": st.sampled_from(["1.19.0-1", "1.20.0-1"]),
        "cgroup_driver": st.sampled_from(["cgroupfs", "systemd", ""]),
        "default_runtime": st.booleans(),
        "unprivileged_envvar": st.booleans(),
        "docker_users": st.sampled_from([[], ["ada"], ["ada", "eve"]]),
        "mig_layout": st.sampled_from(["", "a", "b"]),
    }
)
DAEMONS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "data-root": st.just("/data/docker"),
            "live-restore": st.booleans(),
            "log-driver": st.sampled_from(["json-file", "journald"]),
            "log-opts": st.just({"max-size": "1g", "labels": "x"}),
            "runtimes": st.sampled_from(
                [{}, {"nvidia": {"path": "/usr/bin/nvidia-container-runtime"}}, {"nvidia": {"path": "/opt/x"}, "y": {}}]
            ),
            "default-runtime": st.sampled_from(["nvidia", "runc"]),
            "features": st.sampled_from([{}, {"cdi": False}, {"buildkit": True}]),
            "exec-opts": st.sampled_from([[], ["native.cgroupdriver=systemd"], ["a=b"]]),
        },
    ),
)


@settings(deadline=None, max_examples=150)
@given(DAEMONS, st.integers(0, 2), st.booleans(), st.lists(CHOICES, min_size=1, max_size=3))
def test_any_wish_after_any_other_ends_no_container_and_leaves_nothing(
    daemon: dict[str, Any] | None, containers: int, there: bool, wishes: list[dict[str, Any]]
) -> None:
    machine = docker_there(daemon, containers, members=["eve"]) if there else Machine()
    before = machine.state()
    for wish in wishes:
        predicted = machine.converge(check=True, **wish)
        made = machine.converge(**wish)
        assert "failed" not in made, made["failed"]
        assert subjects(predicted) == subjects(made)
        again = machine.converge(**wish)
        assert again["changed"] is False, again["changes"]
        assert again["pending"] == made["pending"]
        assert machine.ended == 0
        if there:
            assert machine.data().get("data-root") == (daemon or {}).get("data-root")
    if machine.loaded:
        machine.loaded = replace(machine.loaded, running=0)
    undone = machine.converge(state="absent")
    assert undone["pending"] == []
    assert machine.state() == before


# --- reading dockerd -------------------------------------------------------------------------------------------------

INFO = {
    "ContainersRunning": 2,
    "ContainersPaused": 1,
    "LiveRestoreEnabled": True,
    "CgroupDriver": "systemd",
    "Runtimes": {"runc": {}, "nvidia": {}},
    "DefaultRuntime": "nvidia",
    "Swarm": {"LocalNodeState": "inactive"},
}


@pytest.mark.parametrize("answer", [INFO, {"message": "starting"}, None])
def test_dockerd_is_asked_on_its_socket(
    answer: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/info"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode() if answer else b"<html>")

        def log_message(self, *_arguments: Any) -> None:
            pass

    monkeypatch.setattr(module, "SOCKET", str(tmp_path / "docker.sock"))
    monkeypatch.setattr(module, "PID_FILE", str(tmp_path / "docker.pid"))
    (tmp_path / "docker.pid").write_text(f"{os.getpid()}\n")
    assert module.observe_engine() is None, "nobody listens"
    with socketserver.ThreadingUnixStreamServer(module.SOCKET, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        engine = module.observe_engine()
        server.shutdown()
    if answer is not INFO:
        assert engine is None
        return
    assert engine and engine.identity.startswith(f"{os.getpid()}:")
    wanted = Engine("", True, "systemd", ("nvidia", "runc"), "nvidia", 3, False)
    assert replace(engine, identity="") == wanted


def test_a_dockerd_that_does_not_answer_is_left_alone_and_told() -> None:
    machine = docker_there()
    machine.mute = True
    made = machine.converge()
    assert not [call for call in machine.calls if call[1] == "docker"]
    assert any("does not answer" in note for note in made["notes"])


# --- parts -----------------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.sampled_from(
        [
            "# a comment",
            "",
            "disable-require = false",
            f"#{ENVVAR_KEY} = true",
            f"  {ENVVAR_KEY} = true # by hand",
            f"{ENVVAR_KEY}=false",
            "[nvidia-container-cli]",
            "[[x]]",
            'path = "[x]"',
        ]
    ),
    max_size=6,
)


def top_value(text: str) -> list[str]:
    """What the top-level key is, by a reader of its own."""
    values = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            break
        if line.replace(" ", "").startswith(f"{ENVVAR_KEY}="):
            values.append(line.partition("=")[2].partition("#")[0].strip())
    return values


@given(LINES)
def test_one_key_of_any_toml(lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    after, before = set_key(text, ENVVAR_KEY, "false")
    assert top_value(after)[0] == "false"
    assert set_key(after, ENVVAR_KEY, "false")[0] == after
    rest = [line for line in after.splitlines() if line != f"{ENVVAR_KEY} = false"]
    assert [line for line in rest if line in lines] == rest
    if after != text:
        assert unset_key(after, f"{ENVVAR_KEY} = false", before) == text


def test_the_key_comes_beside_its_comment_and_before_the_tables() -> None:
    after, before = set_key(CONFIG_TOML, ENVVAR_KEY, "false")
    assert before is None
    assert f"#{ENVVAR_KEY} = true\n{ENVVAR_KEY} = false\ndisable-require" in after
    assert set_key("[a]\nb = 1\n", "k", "false") == ("k = false\n[a]\nb = 1\n", None)
    assert unset_key("k = true\n[a]\nk = false\n", "k = false", None) == "k = true\n[a]\nk = false\n"


@pytest.mark.parametrize(
    ("observed", "params", "words"),
    [
        (Observed(snap=True), {}, "snap remove docker"),
        (Observed(), {"version": "1.17.8-1"}, "container_toolkit_version = 1.17.8-1"),
        (Observed(), {"version": "latest"}, "container_toolkit_version = latest"),
    ],
)
def test_refusals(observed: Observed, params: dict[str, Any], words: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        toolkit_plan.plan(observed, read_wanted({**PARAMS, **params}, DEBIAN, "x86_64"))
    assert words in str(caught.value) and "Mend: " in str(caught.value)


def test_a_snap_is_no_matter_where_docker_is_none() -> None:
    assert toolkit_plan.plan(Observed(snap=True), replace(Wanted(docker="none", toolkit=False))) == []


def test_a_short_fingerprint_names_its_key() -> None:
    with pytest.raises(ToolkitError, match="container_toolkit_repo_key_fingerprint"):
        read_wanted({**PARAMS, "repo_key_fingerprint": ["F796ECB0"]}, DEBIAN, "x86_64")


@pytest.mark.parametrize(
    ("system", "arch", "toolkit", "docker", "packages"),
    [
        (
            DEBIAN,
            "x86_64",
            "https://nvidia.github.io/libnvidia-container/stable/deb/amd64/",
            "https://download.docker.com/linux/debian",
            ("docker.io", "docker-cli"),
        ),
        (
            {**DEBIAN, "id": "ubuntu", "version": "24.04", "codename": "noble"},
            "aarch64",
            "https://nvidia.github.io/libnvidia-container/stable/deb/arm64/",
            "https://download.docker.com/linux/ubuntu",
            ("docker.io",),
        ),
        (
            {**DEBIAN, "version": "12", "codename": "bookworm"},
            "x86_64",
            "https://nvidia.github.io/libnvidia-container/stable/deb/amd64/",
            "https://download.docker.com/linux/debian",
            ("docker.io",),
        ),
        (
            ROCKY,
            "x86_64",
            "https://nvidia.github.io/libnvidia-container/stable/rpm/$basearch",
            "https://download.docker.com/linux/centos/$releasever/$basearch/stable",
            (),
        ),
    ],
)
def test_sources_of_each_system(
    system: dict[str, str], arch: str, toolkit: str, docker: str, packages: tuple[str, ...]
) -> None:
    wanted = read_wanted(PARAMS, system, arch)
    assert wanted.toolkit_source and wanted.docker_source
    assert (wanted.toolkit_source.uri, wanted.docker_source.uri) == (toolkit, docker)
    assert wanted.engine_packages == packages
    assert wanted.docker_source.key_url.startswith("https://download.docker.com/linux/")
    assert read_wanted({**PARAMS, "docker": "docker"}, system, arch).engine_packages == toolkit_plan.FROM_DOCKER


def test_pins_give_one_version_and_one_origin() -> None:
    wanted = read_wanted(PARAMS, DEBIAN, "x86_64")
    assert wanted.toolkit_source
    assert [(pin.pin, pin.priority) for pin in wanted.toolkit_source.pins] == [
        ("version 1.20.0-1", 1001),
        ('origin "nvidia.github.io"', 700),
    ]
    assert toolkit_plan.toolkit_pins("1", "http://user@mirror.lab:8080/x/")[1].pin == 'origin "mirror.lab"'


def test_rocky_is_planned() -> None:
    refused = read_wanted(PARAMS, ROCKY, "x86_64")
    with pytest.raises(ToolkitError, match="container_toolkit_docker"):
        toolkit_plan.plan(Observed(), refused)
    changes = toolkit_plan.plan(Observed(), read_wanted({**PARAMS, "docker": "docker"}, ROCKY, "x86_64"))
    found = [change.subject for change in changes]
    assert "file /etc/yum.repos.d/labrack-nvidia-container-toolkit.repo" in found
    assert "file /etc/yum.repos.d/labrack-docker.repo" in found
    assert "packages docker-ce docker-ce-cli containerd.io" in found
    assert not [subject for subject in found if "/etc/apt" in subject]


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record(("a",), ("b",), ("c",), ("d",), (daemon_json.Mark(("x",), 1),), True, ("k", None), ("u",), "m", "s")
    written = record.file()
    assert written and Record.read(written.text) == record
    assert Record().file() is None and Record.read(None) == Record()
