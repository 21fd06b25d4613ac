# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Container runtimes and rival daemons, from fake trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import runtime_observe

CE = {"docker-ce": "5:28.5.1-1~debian.13~trixie", "containerd.io": "1.7.28-1"}
NONE = {
    "version": None,
    "package": None,
    "active": False,
    "live_restore": None,
    "runtimes": [],
    "containers": None,
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_machine_without_containers(tmp_path: Path) -> None:
    assert runtime_observe.observe_runtime(tmp_path, {}) == {
        "docker": NONE,
        "containerd": None,
        "toolkit": None,
        "podman": None,
    }
    assert runtime_observe.observe_conflicts(tmp_path) == []


def test_a_gpu_host(tmp_path: Path) -> None:
    config = {"live-restore": True, "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}, "crun": {}}}
    write(
        tmp_path,
        {
            "etc/docker/daemon.json": json.dumps(config),
            "run/docker.pid": "812",
            "proc/812/comm": "dockerd\n",
            "run/containerd/io.containerd.runtime.v2.task/moby/aaa/init.pid": "1",
            "run/containerd/io.containerd.runtime.v2.task/moby/bbb/init.pid": "2",
            "run/containerd/io.containerd.runtime.v2.task/k8s.io/ccc/init.pid": "3",
        },
    )
    packages = {**CE, "nvidia-container-toolkit": "1.20.0-1", "podman": "5.4.2"}
    assert runtime_observe.observe_runtime(tmp_path, packages) == {
        "docker": {
            "version": CE["docker-ce"],
            "package": "docker-ce",
            "active": True,
            "live_restore": True,
            "runtimes": ["crun", "nvidia"],
            "containers": 2,
        },
        "containerd": "1.7.28-1",
        "toolkit": "1.20.0-1",
        "podman": "5.4.2",
    }


@pytest.mark.parametrize(
    ("text", "live_restore", "runtimes"),
    [
        (None, False, []),
        ("", False, []),
        ("{}", False, []),
        ('{"live-restore": "yes", "runtimes": []}', False, []),
        ('{"live-restore": true', None, []),
        ("[1]", None, []),
    ],
)
def test_what_daemon_json_asks_for(
    tmp_path: Path, text: str | None, live_restore: bool | None, runtimes: list[str]
) -> None:
    if text is not None:
        write(tmp_path, {"etc/docker/daemon.json": text})
    found = runtime_observe.docker(tmp_path, CE)
    assert (found["live_restore"], found["runtimes"]) == (live_restore, runtimes)


def test_a_daemon_that_crashed_left_its_pid_file_behind(tmp_path: Path) -> None:
    write(tmp_path, {"run/docker.pid": "812\n", "proc/812/comm": "bash\n"})
    assert not runtime_observe.docker(tmp_path, CE)["active"]


def test_docker_of_a_snap(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "snap/docker/current/meta/snap.yaml": "name: docker\nversion: '28.4.0'\nsummary: Docker\n",
            "var/snap/docker/current/config/daemon.json": '{"live-restore": true}',
            "etc/docker/daemon.json": "not the one that counts",
            "run/snap.docker/docker.pid": "9",
            "proc/9/comm": "dockerd\n",
        },
    )
    found = runtime_observe.docker(tmp_path, {})
    assert found == {**NONE, "version": "28.4.0", "package": "snap", "active": True, "live_restore": True}
    assert [conflict["what"] for conflict in runtime_observe.observe_conflicts(tmp_path)] == ["snap docker"]
    # beside a package the package is Docker, and the snap is still in the way
    assert runtime_observe.docker(tmp_path, CE)["package"] == "docker-ce"


@pytest.mark.parametrize("unit", sorted(runtime_observe.SCHEDULERS))
@pytest.mark.parametrize(
    ("enabled", "running", "words"),
    [(True, False, "is enabled"), (False, True, "is running"), (True, True, "is enabled and running")],
)
def test_orchestrators_that_run_or_will(tmp_path: Path, unit: str, enabled: bool, running: bool, words: str) -> None:
    units = tmp_path / "etc/systemd/system/multi-user.target.wants"
    active = tmp_path / "run/systemd/units"
    for folder in (units, active):
        folder.mkdir(parents=True)
    # what was removed left its link behind
    (units / "k3s-agent.service").symlink_to("/nonexistent/k3s-agent.service")
    if enabled:
        write(tmp_path, {f"usr/lib/systemd/system/{unit}.service": "[Service]\n"})
        (units / f"{unit}.service").unlink(missing_ok=True)
        (units / f"{unit}.service").symlink_to(tmp_path / f"usr/lib/systemd/system/{unit}.service")
    if running:
        (active / f"invocation:{unit}.service").symlink_to("768cb597f73d48a8968b5924cefff81b")
    (conflict,) = runtime_observe.observe_conflicts(tmp_path)
    assert conflict["what"] == unit and conflict["why"].endswith(f"({unit}.service {words})")


def test_a_unit_that_is_only_installed_hands_out_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"usr/lib/systemd/system/slurmd.service": "[Service]\n"})
    assert runtime_observe.observe_conflicts(tmp_path) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["runtimes", "live-restore"]), inner),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_no_daemon_json_raises(tmp_path: Path, content: Any) -> None:
    write(tmp_path, {"etc/docker/daemon.json": json.dumps(content)})
    json.dumps(runtime_observe.docker(tmp_path, CE))
