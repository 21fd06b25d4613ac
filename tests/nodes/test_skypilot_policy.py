# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The policy, the plugin and the reaper with SkyPilot itself, from PyPI: what its code makes of tasks, and a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.harness import ROOT

VERSION = "0.14.1"
ENVIRONMENT = ROOT / ".cache/skypilot" / VERSION
PACKAGE = ROOT / "roles/skypilot/files/labrack_skypilot/src"
PROGRAM = Path(__file__).with_name("skypilot_real.py")
CONFIG = """
admin_policy: labrack_skypilot.policy.Autostop
allowed_clouds: [kubernetes, slurm, ssh]
daemons: {skypilot-status-refresh-daemon: {interval_seconds: 86400}}
kubernetes:
  pod_config:
    spec:
      containers: [{name: ray-node, volumeMounts: [{name: s, mountPath: /scratch}]}]
      volumes: [{name: s, hostPath: {path: /scratch}}]
slurm: {sbatch_options: {time: "8:00:00"}}
"""
POLICY = {
    "mounts": [
        {"path": "/data", "read_only": True, "mount": True},
        {"path": "/checkpoints/{user}", "mount": True},
        "/scratch",
    ],
    "uids": {"ada": [2001, 3001]},
    "unix_names": {"ada": "ada"},
}
#: A server in a network of its own, where its fixed ports are free, and whatever it is given to do beside it.
BESIDE = """
ip link set lo up
HOME={home} {sky} api start --foreground >{folder}/server.log 2>&1 &
for second in $(seq 120); do curl --silent --fail --output /dev/null 127.0.0.1:46580/api/health && break; sleep 1; done
"""


@pytest.fixture(scope="module")
def sky() -> Path:
    """The programs of an environment with SkyPilot; compiled, as it does not start otherwise."""
    if not (ENVIRONMENT / "complete").exists():
        (uv, *_) = sorted((ROOT / ".cache").glob("uv-*/bin/uv"))
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, ENVIRONMENT], check=True)
        packages = f"skypilot[kubernetes,slurm,server]=={VERSION}"
        pip = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", ENVIRONMENT / "bin/python"]
        subprocess.run([*pip, packages], check=True)
        (ENVIRONMENT / "complete").touch()
    return ENVIRONMENT / "bin"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of a server's user, with its configuration."""
    folder = tmp_path / "home"
    (folder / ".sky").mkdir(parents=True)
    (folder / ".sky/config.yaml").write_text(CONFIG)
    (folder / ".sky/plugins.yaml").write_text("plugins: [{class: labrack_skypilot.plugin.Guard}]\n")
    (folder / "policy.json").write_text(json.dumps(POLICY))
    return folder


def environment(home: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(home),
        "PYTHONPATH": str(PACKAGE),
        "LABRACK_SKYPILOT_POLICY": str(home / "policy.json"),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "SKYPILOT_USER": "ada",
        "SKYPILOT_USER_ID": "aaaa1111",
        **more,
    }


def program(sky: Path, home: Path, *arguments: str) -> str:
    argv = [str(sky / "python"), str(PROGRAM), *arguments]
    done = subprocess.run(
        argv, env=environment(home), cwd=home, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def found(sky: Path, home: Path) -> Any:
    return json.loads(program(sky, home, "policy").splitlines()[-1])


def test_the_policy_in_skypilot_itself(found: Any) -> None:
    tasks = found["tasks"]
    stops = {name: task["resources"].get("autostop") for name, task in tasks.items() if isinstance(task, dict)}
    ends = {"idle_minutes": 60, "down": True}
    assert stops["plain"] == stops["slurm"] == stops["own pod"] == ends
    assert stops["short"] == {"idle_minutes": 5, "down": True}
    assert stops["long"] == {"idle_minutes": 480, "down": True, "wait_for": "none"}
    assert stops["cloud"] == {"idle_minutes": 5, "down": False}
    for several in (tasks["either"]["resources"]["any_of"], tasks["ordered"]["resources"]["ordered"]):
        assert [one["autostop"] for one in several] == [ends, ends]
    long = tasks["long"]["resources"]["_cluster_config_overrides"]
    assert long["slurm"] == {"sbatch_options": {"time": "7-00:00:00"}}
    # the server's own limit is lower
    assert "_cluster_config_overrides" not in tasks["slurm"]["resources"]
    for name, words in {
        "etc": "hostPath '/etc'",
        "hidden": "hostPID",
        "docker": "enable_docker",
        "volume": "'/etc'",
    }.items():
        assert "rejected by policy" in tasks[name] and words in tasks[name] and "Mend:" in tasks[name]
    assert found["exec"]["resources"]["autostop"] is False


def test_what_was_decided_is_kept_when_it_is_decided_again(found: Any) -> None:
    def ordered(task: Any) -> str:
        # alternatives are a set
        several = task["resources"].get("any_of")
        return json.dumps(sorted(several, key=json.dumps) if several else task, sort_keys=True)

    assert found["again"] and all(
        ordered(task) == ordered(found["tasks"][name]) for name, task in found["again"].items()
    )


def test_the_pod_that_skypilot_makes_of_it(found: Any) -> None:
    spec = found["pod"]["spec"]
    assert [container["name"] for container in spec["containers"]] == ["ray-node"]
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts == {"/scratch": None, "/data": True, "/checkpoints/ada": False}
    assert spec["containers"][0]["env"] == [{"name": "A", "value": "b"}]
    assert spec["containers"][0]["securityContext"] == {"capabilities": {"drop": ["MKNOD"]}}
    assert [volume["name"] for volume in spec["volumes"]] == ["dshm", "s", "mine", "labrack-0", "labrack-1"]
    assert (spec["securityContext"], spec["activeDeadlineSeconds"]) == ({"supplementalGroups": [3001]}, 604800)


def test_a_client_can_not_lay_its_configuration_over_the_policy(found: Any) -> None:
    policy, kubernetes, slurm = found["before"]
    assert policy == "http://127.0.0.1:9/" and kubernetes["pod_config"]["spec"]["hostPID"] is True, "no hole any more"
    policy, kubernetes, slurm = found["after"]
    assert (
        found["locked"]
        and policy == "labrack_skypilot.policy.Autostop"
        and slurm["sbatch_options"]["time"] == "8:00:00"
    )
    assert "hostPID" not in kubernetes["pod_config"]["spec"] and "context_configs" not in kubernetes


def test_slurm_ends_a_cluster_and_does_not_stop_it(found: Any) -> None:
    """Why a launch on Slurm gets an autostop with ``down``: SkyPilot refuses the one without."""
    assert found["slurm"] == [True, False]


def test_the_recorded_answer_is_that_of_this_version(sky: Path, home: Path) -> None:
    program(sky, home, "fill")
    text = program(sky, home, "status")
    seen = json.loads(text[text.index("[\n") :])
    kept = json.loads((ROOT / "tests/unit/fixtures/skypilot/status.json").read_text(encoding="utf-8"))
    assert [sorted(one) for one in seen] == [sorted(one) for one in kept]
    assert {one["name"] for one in seen} == {one["name"] for one in kept}


@pytest.fixture
def reaped(sky: Path, home: Path, tmp_path: Path) -> Iterator[list[str]]:
    """What two runs of the reaper said beside a real server, and no run of it without one."""
    program(sky, home, "fill")
    (tmp_path / "messages").mkdir()
    pods = [
        {
            "metadata": {
                "name": f"{name}-head",
                "namespace": "default",
                "uid": name,
                "labels": {"parent": "skypilot", "skypilot-cluster-name": name},
                "annotations": {"skypilot-user": "root"},
            },
            "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
            "status": {"phase": "Running"},
        }
        for name in ("lost-bbbb2222", "job-7-aaaa1111", "other-ffff9999")
    ]
    (tmp_path / "pods.json").write_text(json.dumps({"items": pods}))
    kubectl = tmp_path / "kubectl"
    answers = f'case "$*" in *"get pods"*) cat {tmp_path}/pods.json;; *) echo 0;; esac'
    kubectl.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n{answers}\n')
    kubectl.chmod(0o755)
    hours = dict.fromkeys(("grace_hours", "no_autostop_hours", "stuck_hours", "unknown_hours", "idle_hours"), 0)
    place = {"kubectl": [str(kubectl)], "contexts": ["lab"], "messages": str(tmp_path / "messages")}
    place |= {"state": str(tmp_path / "reaper.json"), "reports": str(tmp_path / "reports")}
    (tmp_path / "settings.json").write_text(json.dumps({"dry_run": False, **hours, **place}))
    client = tmp_path / "client"
    client.mkdir()
    run = f"HOME={client} {sky}/python -m labrack_skypilot.reaper --settings {tmp_path}/settings.json"
    script = BESIDE.format(home=home, sky=sky / "sky", folder=tmp_path) + f"{run}; echo ==; {run}; echo =="
    # all of the server's processes end with the first of them
    argv = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
        argv.insert(1, "--map-root-user")
    done = subprocess.run(
        [*argv, "bash", "-c", script],
        env=environment(home),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    log = (tmp_path / "server.log").read_text()[-2000:]
    assert done.stdout.count("==") == 2, f"{done.stdout}\n{done.stderr}\n{log}"
    yield [*done.stdout.split("==\n"), (tmp_path / "calls").read_text()]


def test_the_reaper_asks_a_real_server(reaped: list[str]) -> None:
    first, second, _end, calls = reaped
    assert "warn root: lost-bbbb2222-head: the pod lost-bbbb2222-head on lab belongs to no cluster" in first
    assert "end root: the pod lost-bbbb2222-head was deleted" in second
    assert "delete pod -n default lost-bbbb2222-head" in calls
    # a managed job's, which the server tells of only when it is asked for all, and another server's
    assert "job-7-aaaa1111-head" not in first + second and "delete pod -n default job-7" not in calls
    assert "report ada: job-7 of ada: its card does nothing" in first
    assert "report root: other-ffff9999-head" in second and "delete pod -n default other" not in calls


def test_the_reaper_starts_no_server(sky: Path, home: Path, tmp_path: Path) -> None:
    settings = {"endpoint": "http://127.0.0.1:9", "state": str(tmp_path / "reaper.json")}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    argv = [str(sky / "python"), "-m", "labrack_skypilot.reaper", "--settings", str(tmp_path / "settings.json")]
    done = subprocess.run(argv, env=environment(home), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "the server does not tell" in done.stdout
    assert not (home / ".sky/api_server").exists()
