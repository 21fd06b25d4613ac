# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The limits of every launch; tests/nodes/test_skypilot_policy.py has them with SkyPilot itself."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrack_skypilot import limits, owner
from labrack_skypilot.limits import HostPath, Launch, Limits, Refused, decide

LIMITS = Limits(
    mounts=(
        HostPath("/data", read_only=True, mount=True),
        HostPath("/checkpoints/{user}", mount=True),
        HostPath("/scratch"),
    ),
    uids={"ada": (2001, 3001), "ben@example.org": (2002, 2002)},
    unix_names={"ben@example.org": "ben"},
)

requests = st.sampled_from(sorted(limits.LAUNCHES))
clouds = st.sampled_from(["", "kubernetes", "ssh", "slurm", "aws"])
times = st.one_of(
    st.none(),
    st.just(False),
    st.integers(0, 100000),
    st.from_regex(r"\A(\d{1,3}-)?\d{1,5}(:\d{1,2}){0,2}\Z"),
    st.text(max_size=5),
)
autostops = st.one_of(
    st.none(),
    st.just(False),
    st.fixed_dictionaries(
        {},
        optional={
            "idle_minutes": st.integers(-1, 10**6),
            "down": st.booleans(),
            "wait_for": st.sampled_from(["jobs", "none", "jobs_and_ssh"]),
        },
    ),
)
containers = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["ray-node", "sidecar"]),
            "volumeMounts": st.just([{"name": "mine", "mountPath": "/mine"}]),
            "env": st.just([{"name": "A", "value": "b"}]),
        },
    ),
    max_size=2,
    unique_by=lambda one: one.get("name"),
)
pods = st.fixed_dictionaries(
    {},
    optional={
        "activeDeadlineSeconds": st.integers(-5, 10**7),
        "containers": containers,
        "volumes": st.just([{"name": "mine", "emptyDir": {}}, {"name": "s", "hostPath": {"path": "/scratch"}}]),
    },
)
overrides = st.fixed_dictionaries(
    {},
    optional={
        "slurm": st.fixed_dictionaries(
            {}, optional={"sbatch_options": st.dictionaries(st.sampled_from(["time", "t", "qos"]), times)}
        ),
        "kubernetes": st.fixed_dictionaries({"pod_config": st.fixed_dictionaries({"spec": pods})}),
    },
)
launches = st.builds(Launch, requests, st.sampled_from(["ada", "eve", ""]), clouds, autostops, overrides)


def spec(outcome: limits.Outcome, cloud: str = "kubernetes") -> dict[str, Any]:
    found: dict[str, Any] = outcome.overrides[cloud]["pod_config"]["spec"]
    return found


@given(launches)
def test_every_launch_ends(launch: Launch) -> None:
    outcome = decide(LIMITS, launch, {})
    assert 0 <= outcome.autostop["idle_minutes"] <= LIMITS.most_idle_minutes
    assert outcome.autostop["down"] is True or launch.cloud == "aws"
    if launch.cloud in ("", "slurm"):
        options = outcome.overrides["slurm"]["sbatch_options"]
        given_times = [options[key] for key in ("time", "t") if key in options]
        assert given_times and all(0 < (limits.seconds(one) or 0) <= 168 * 3600 for one in given_times)
    for cloud in ("kubernetes", "ssh"):
        if launch.cloud in ("", cloud):
            assert 0 < spec(outcome, cloud)["activeDeadlineSeconds"] <= 168 * 3600


@given(launches)
def test_decided_once_more_it_changes_no_more(launch: Launch) -> None:
    first = decide(LIMITS, launch, {})
    again = decide(LIMITS, Launch(launch.request, launch.user, launch.cloud, first.autostop, first.overrides), {})
    assert (again.autostop, again.overrides) == (first.autostop, first.overrides)


@given(launches)
def test_what_a_launch_asks_for_stays(launch: Launch) -> None:
    outcome = decide(LIMITS, launch, {})
    asked = launch.autostop or {}
    if 0 <= asked.get("idle_minutes", -1) <= LIMITS.most_idle_minutes:
        assert outcome.autostop["idle_minutes"] == asked["idle_minutes"]
    assert outcome.autostop.get("wait_for") == asked.get("wait_for")
    for cloud, config in launch.overrides.items():
        assert set(config) <= set(outcome.overrides[cloud])


def test_a_pod_sees_what_the_inventory_names() -> None:
    found = spec(decide(LIMITS, Launch(user="ada", cloud="kubernetes"), {}))
    assert found == {
        "securityContext": {"supplementalGroups": [3001]},
        "activeDeadlineSeconds": 168 * 3600,
        "volumes": [
            {"name": "labrack-0", "hostPath": {"path": "/data", "type": "Directory"}},
            {"name": "labrack-1", "hostPath": {"path": "/checkpoints/ada", "type": "Directory"}},
        ],
        "containers": [
            {
                "name": "ray-node",
                "securityContext": {"capabilities": {"drop": ["MKNOD"]}},
                "volumeMounts": [
                    {"name": "labrack-0", "mountPath": "/data", "readOnly": True},
                    {"name": "labrack-1", "mountPath": "/checkpoints/ada", "readOnly": False},
                ],
            }
        ],
    }
    unknown = spec(decide(LIMITS, Launch(user="eve", cloud="kubernetes"), {}))
    assert [one["hostPath"]["path"] for one in unknown["volumes"]] == ["/data"] and "securityContext" not in unknown
    named = spec(decide(LIMITS, Launch(user="ben@example.org", cloud="kubernetes"), {}))
    assert named["volumes"][1]["hostPath"]["path"] == "/checkpoints/ben"


def pod(**keys: Any) -> dict[str, Any]:
    return {"kubernetes": {"pod_config": {"spec": keys}}}


def container(**keys: Any) -> dict[str, Any]:
    return pod(containers=[{"name": "x"}, {"name": "y", **keys}])


def volume(**kind: Any) -> dict[str, Any]:
    return pod(volumes=[{"name": "v", **kind}])


REFUSED = [
    (volume(hostPath={"path": "/etc"}), "hostPath '/etc'"),
    (volume(hostPath={"path": "/data/../etc"}), "hostPath '/data/../etc'"),
    # a link in it could lead anywhere
    (volume(hostPath={"path": "/data/sub"}), "hostPath '/data/sub'"),
    (volume(hostPath={"path": "/checkpoints/ben"}), "hostPath '/checkpoints/ben'"),
    (volume(hostPath={}), "hostPath ''"),
    (volume(nfs={"server": "head", "path": "/"}), "of the kind nfs"),
    (volume(csi={"driver": "x"}), "of the kind csi"),
    (
        pod(
            volumes=[{"name": "v", "hostPath": {"path": "/data"}}],
            initContainers=[{"volumeMounts": [{"name": "v", "mountPath": "/rw"}]}],
        ),
        "/rw is for reading alone",
    ),
    (pod(hostNetwork=True), "hostNetwork"),
    (pod(hostPID=True), "hostPID"),
    (pod(hostIPC=True), "hostIPC"),
    (pod(serviceAccountName="admin"), "serviceAccountName"),
    (pod(securityContext={"runAsUser": 0}), "runAsUser"),
    (pod(securityContext={"supplementalGroups": [3001, 2002]}), "supplementalGroups"),
    (pod(securityContext={"supplementalGroups": [2002]}), "supplementalGroups"),
    (container(securityContext={"privileged": True}), "privileged"),
    (container(securityContext={"runAsUser": 0}), "runAsUser"),
    (container(securityContext={"procMount": "Unmasked"}), "procMount"),
    (container(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}), "SYS_ADMIN"),
    (container(securityContext={"capabilities": {"add": ["cap_sys_admin"]}}), "cap_sys_admin"),
    (container(ports=[{"containerPort": 80, "hostPort": 80}]), "hostPort 80"),
    (container(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]), "NVIDIA_VISIBLE_DEVICES"),
    (pod(ephemeralContainers=[{"securityContext": {"privileged": True}}]), "privileged"),
    ({"ssh": {"pod_config": {"spec": {"hostPID": True}}}}, "ssh.pod_config: hostPID"),
    ({"kubernetes": {"enable_docker": True}}, "enable_docker"),
    ({"kubernetes": {"enable_docker": {"mode": "ALL"}}}, "enable_docker"),
    ({"kubernetes": {"remote_identity": "admin"}}, "remote_identity"),
]
FINE = [
    volume(emptyDir={}),
    volume(hostPath={"path": "/scratch"}),
    pod(
        volumes=[{"name": "v", "hostPath": {"path": "/data"}}],
        containers=[{"volumeMounts": [{"name": "v", "mountPath": "/ro", "readOnly": True}]}],
    ),
    container(securityContext={"capabilities": {"add": ["IPC_LOCK"]}}),
    {"kubernetes": {"enable_docker": "BUILD"}},
    {"kubernetes": {"enable_docker": False}},
]


@pytest.mark.parametrize(("config", "words"), REFUSED)
def test_what_reaches_past_the_pod_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as caught:
        decide(LIMITS, Launch(user="ada", overrides=config), {})
    assert words in str(caught.value) and "Mend:" in str(caught.value)
    # on every infrastructure, and for sky exec as well
    with pytest.raises(Refused):
        decide(LIMITS, Launch("exec", "ada", "aws", None, config), {})


@pytest.mark.parametrize("config", FINE)
def test_the_rest_is_fine(config: dict[str, Any]) -> None:
    decide(LIMITS, Launch(user="ada", overrides=config), {})


@pytest.mark.parametrize(("config", "words"), [one for one in REFUSED if "remote_identity" not in one[1]])
def test_a_configuration_that_the_client_may_have_changed_is_judged_too(config: dict[str, Any], words: str) -> None:
    deep = {"kubernetes": {"context_configs": {"lab": config.get("kubernetes", config.get("ssh"))}}}
    for one in (config, deep):
        with pytest.raises(Refused, match="your configuration"):
            decide(LIMITS, Launch(user="ada"), one)
        decide(LIMITS, Launch(user="ada"), one, trusted=True)


def test_what_is_no_launch_gets_no_end() -> None:
    for request in ("exec", "serve.up", "serve.launch_replica", "jobs.pool_apply"):
        outcome = decide(LIMITS, Launch(request, "ada", "kubernetes"), {})
        assert outcome.autostop is None and "activeDeadlineSeconds" not in spec(outcome)
    for request in limits.CONTROLLERS:
        assert decide(LIMITS, Launch(request, "ada"), {}) == limits.Outcome(None, {})


def test_the_servers_own_time_limits_stay() -> None:
    def time(config: dict[str, Any], **own: Any) -> Any:
        return limits.slurm_time(24, {"slurm": {"sbatch_options": own}}, {"slurm": config})

    assert time({}) == {"time": "1-00:00:00"}
    assert time({"sbatch_options": {"time": "8:00:00"}}) == {}
    assert time({"sbatch_options": {"time": "8-0"}}) == {"time": "1-00:00:00"}
    assert time({"cluster_configs": {"lab": {"sbatch_options": {"time": "8:00:00"}}}}) == {}
    assert time({"cluster_configs": {"lab": {"partition_configs": {"gpu": {"sbatch_options": {"t": 60}}}}}}) == {}
    assert time({"sbatch_options": {"time": "8:00:00"}}, t="0") == {"t": "1-00:00:00"}
    assert time({}, time="30") == {}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("1:00:00", 3600),
        ("2-0", 172800),
        ("1-1:30", 91800),
        ("1-1:1:1", 90061),
        *((nothing, None) for nothing in ("0", "0:0", "UNLIMITED", None, False, "")),
    ],
)
def test_times_of_sbatch(text: Any, wanted: int | None) -> None:
    assert limits.seconds(text) == wanted


def test_volumes() -> None:
    named = limits.paths_of(LIMITS, "ada")

    def problems(volumes: dict[str, Any]) -> list[str]:
        return list(limits.volume_problems(volumes, {"root": "/", "data": "/data", "own": "/checkpoints/ada"}, named))

    assert problems({"/x": "root"}) and problems({"/x": {"name": "root"}}) and problems({"/x": "data"})
    assert problems({"/x": {"host_path": "/etc"}}) and problems({"/x": {"host_path": "/data", "mode": "rw"}})
    assert not problems({"/x": "own", "/y": "a-claim", "/z": {"host_path": "/data"}, "/w": {"size": "10Gi"}})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"idle": 1}, "unknown key idle"),
        ({"idle_minutes": 0}, "idle_minutes is 0"),
        ({"idle_minutes": True}, "idle_minutes is True"),
        ({"most_hours": -1}, "most_hours is -1"),
        ({"idle_minutes": 500}, "more than most_idle_minutes"),
        ({"uids": {"ada": [0, 1]}}, "no [UID, GID]"),
        ({"uids": {"ada": 2001}}, "no [UID, GID]"),
        ({"mounts": ["data"]}, "no absolute path"),
        ({"mounts": [{"path": "data"}]}, "no absolute path"),
        ({"mounts": [{"path": "/data/"}]}, "no absolute path"),
        ({"mounts": [{"path": "/data", "ro": True}]}, "no path with"),
        ([], "not an object"),
    ],
)
def test_wrong_settings_let_nothing_through(tmp_path: Path, document: Any, words: str) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(document))
    with pytest.raises(Refused) as caught:
        limits.load(str(file))
    assert words in str(caught.value) and "Mend:" in str(caught.value)


def test_no_settings_let_nothing_through(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="can't be read"):
        limits.load(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("{}")
    assert limits.load(str(tmp_path / "empty")) == Limits()


# --- whose the files are ---------------------------------------------------------------------------------------------


def test_whose_folders_are_given() -> None:
    assert owner.folders(LIMITS) == [
        owner.Folder("/checkpoints", "ada", 2001, 3001, True),
        owner.Folder("/scratch", "ada", 2001, 3001),
        owner.Folder("/checkpoints", "ben", 2002, 2002, True),
        owner.Folder("/scratch", "ben", 2002, 2002),
    ]
    deep = replace(LIMITS, mounts=(HostPath("/a/{user}/runs"), HostPath("/b/of-{user}")), uids={"ada": (2001, 3001)})
    assert owner.folders(deep) == [
        owner.Folder("/a", "ada/runs", 2001, 3001, True),
        owner.Folder("/b", "of-ada", 2001, 3001, True),
    ]
    assert owner.folders(replace(LIMITS, unix_names={"ada": "../x", "ben@example.org": ""})) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_what_pods_wrote_belongs_to_the_user(tmp_path: Path) -> None:
    folder = owner.Folder(str(tmp_path), "ada", 2001, 3001, made=True)
    assert owner.give(folder) == 0
    info = os.stat(tmp_path / "ada")
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (2001, 3001, 0o2770)
    run = tmp_path / "ada/run"
    (run / "deep").mkdir(parents=True)
    (run / "weights").write_text("x")
    (run / "weights").chmod(0o4755)
    (run / "deep/log").write_text("x")
    os.chown(run / "deep/log", 1000, 1000)
    (run / "ben").write_text("another's, who works with her")
    os.chown(run / "ben", 2002, 2002)
    outside = tmp_path / "outside"
    outside.write_text("root's")
    (run / "link").symlink_to(outside)
    os.link(outside, run / "other-name")
    lent = tmp_path / "lent"
    lent.write_text("with root's rights, and a name elsewhere")
    lent.chmod(0o6755)
    os.link(lent, run / "lent")
    os.mkfifo(run / "pipe")
    if _may_mknod(tmp_path):
        os.mknod(run / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 0))

    assert owner.give(folder) == 4
    assert {path.name: path.lstat().st_uid for path in run.rglob("*") if path.name != "disk"} == {
        "deep": 2001,
        "weights": 2001,
        "log": 2001,
        "ben": 2002,
        "link": 0,
        "other-name": 0,
        "lent": 0,
        "pipe": 0,
    }
    assert run.stat().st_uid == 2001 and outside.stat().st_uid == 0 and not (run / "weights").stat().st_mode & 0o6000
    assert lent.stat().st_mode & 0o7777 == 0o755
    assert not (run / "disk").exists() or (run / "disk").lstat().st_uid == 0
    assert owner.give(folder) == 0


def _may_mknod(folder: Path) -> bool:
    try:
        os.mknod(folder / "probe", 0o600 | stat.S_IFBLK, os.makedev(7, 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_folder_that_is_not_theirs_stays(tmp_path: Path) -> None:
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada/file").write_text("x")
    assert owner.give(owner.Folder(str(tmp_path), "ada", 2001, 3001)) == 0
    (tmp_path / "ben").symlink_to(tmp_path / "ada")
    os.chown(tmp_path / "ada", 2002, 2002)
    (tmp_path / "ada/run").mkdir()
    os.chown(tmp_path / "ada/run", 2002, 2002)
    (tmp_path / "ada/run/file").write_text("x")
    for below in ("ben", "ben/run", "none"):
        assert owner.give(owner.Folder(str(tmp_path), below, 2002, 2002)) == 0
    # nor is anything made behind a link
    assert owner.give(owner.Folder(str(tmp_path), "ben/new", 2002, 2002, made=True)) == 0
    assert (tmp_path / "ada/file").stat().st_uid == (tmp_path / "ada/run/file").stat().st_uid == 0
    assert not (tmp_path / "ada/new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_who_swaps_names_meanwhile_gets_nothing_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "key").write_text("root's")
    (tmp_path / "ada").mkdir()
    os.chown(tmp_path / "ada", 2001, 3001)
    for name in ("file", "folder"):
        (tmp_path / "ada" / name).mkdir() if name == "folder" else (tmp_path / "ada" / name).write_text("x")
    (tmp_path / "ada/folder/key").write_text("x")
    looked, swapped = os.fstat, []

    def swap(handle: int) -> os.stat_result:
        """Between a look and what is done, the name comes to be that of something of root's."""
        info = looked(handle)
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.parent == tmp_path / "ada":
            path.rename(tmp_path / f"was-{path.name}")
            path.symlink_to(victim / "key" if path.name == "file" else victim)
            swapped.append(path.name)
        return info

    monkeypatch.setattr(os, "fstat", swap)
    assert owner.give(owner.Folder(str(tmp_path), "ada", 2001, 3001)) == 3 and sorted(swapped) == ["file", "folder"]
    monkeypatch.undo()
    assert {path.stat().st_uid for path in (victim, victim / "key")} == {0}
    assert {path.stat().st_uid for path in (tmp_path / "was-file", tmp_path / "was-folder/key")} == {2001}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_new_folder_that_was_swapped_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others/file").write_text("root's")
    made = os.mkdir

    def swap(name: str, mode: int, dir_fd: int) -> None:
        made(name, mode, dir_fd=dir_fd)
        (tmp_path / "ada").rmdir()
        (tmp_path / "others").rename(tmp_path / "ada")

    monkeypatch.setattr(os, "mkdir", swap)
    assert owner.give(owner.Folder(str(tmp_path), "ada", 2001, 3001, made=True)) == 0
    monkeypatch.undo()
    assert {path.stat().st_uid for path in (tmp_path / "ada", tmp_path / "ada/file")} == {0}


def test_without_settings_nothing_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert owner.main(["--settings", str(tmp_path / "none")]) == 1
    assert "Mend:" in capsys.readouterr().err
    (tmp_path / "links").write_text("0\n")
    assert owner.main(["--settings", str(tmp_path / "none"), "--hard-links", str(tmp_path / "links")]) == 1
    assert "fs.protected_hardlinks is 0" in capsys.readouterr().err
