"""The golden rule: what is found on a host, what it is called, and the plan that keeps its Python clean."""

from __future__ import annotations

import configparser
import hashlib
import io
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import (
    golden_rule,
    host_python_plan,
    python_observe,
    rules_host,
    uv_wheel,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.host_python_plan import (
    HEADER,
    LOGIN,
    NOTICE,
    PIP_CONF,
    Observed,
    Wanted,
    cache_folders,
    login_script,
    marker_text,
    read_admins,
    with_setting,
    without_setting,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.uv_wheel import PROGRAMS, UvError

# --- what is on a host ---

LOCAL = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


def make(root: Path, *files: str, mounts: str = LOCAL, version: str = "3.13") -> Path:
    """A host with its Python and these files; one that ends in / is a folder, ``FILE=TEXT`` has a text."""
    system = [f"usr/bin/python{version}", f"usr/lib/python{version}/os.py", f"proc/self/mountinfo={mounts}"]
    for entry in [*system, *files]:
        name, _equal, text = entry.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(text)
    (root / "usr/bin/python3").symlink_to(f"python{version}")
    return root


def test_a_clean_debian(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        "usr/lib/python3.13/EXTERNALLY-MANAGED=[externally-managed]",
        "usr/lib/python3/dist-packages/pip-25.1.1.dist-info/METADATA",
        "usr/lib/python3/dist-packages/six-1.17.0.dist-info/METADATA",
        "usr/local/lib/python3.13/dist-packages/",
        "usr/local/bin/uv",
        "opt/containerd/",
    )
    assert python_observe.observe_python(root) == {
        "interpreter": "/usr/bin/python3",
        "version": "3.13",
        "externally_managed": True,
        "pip": "25.1.1",
        "packages": [],
        "others": [],
    }
    assert python_observe.observe_cuda(root, {}) == []
    assert python_observe.marker(root) == "/usr/lib/python3.13/EXTERNALLY-MANAGED"


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("usr/local/lib/python3.13/dist-packages/Typing_Extensions-4.0.dist-info/METADATA", "typing-extensions"),
        ("usr/local/lib/python3.13/site-packages/old.pkg-1.0-py3.13.egg-info", "old-pkg"),
        ("usr/local/lib64/python3.13/site-packages/numpy-2.0.dist-info/METADATA", "numpy"),
        ("usr/lib/python3/dist-packages/torch-2.0.dist-info/INSTALLER=pip\n", "torch"),
        ("usr/lib64/python3.13/site-packages/idna-3.dist-info/INSTALLER=uv", "idna"),
        ("usr/lib/python3/dist-packages/rpmish-1.dist-info/INSTALLER=rpm\n", None),
        ("usr/local/lib/python3.13/dist-packages/notes.txt", None),
        ("usr/local/lib/python3.9/dist-packages/left-1.0.dist-info/METADATA", None),
    ],
)
def test_packages_that_the_system_did_not_bring(tmp_path: Path, entry: str, name: str | None) -> None:
    found = python_observe.observe_python(make(tmp_path, entry))["packages"]
    assert found == ([name] if name else [])


def test_packages_are_named_by_their_folders_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "usr/local/lib/python3.13/dist-packages"
    make(tmp_path, *[f"{folder}/p{number}-1.0.dist-info/METADATA" for number in range(50)])
    read: list[object] = []
    monkeypatch.setattr(python_observe, "read_text", lambda path: read.append(path))
    assert len(python_observe.observe_python(tmp_path)["packages"]) == 50
    assert not [path for path in read if "dist-info" in str(path)]


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        (["opt/miniconda3/conda-meta/"], [("/opt/miniconda3", "conda")]),
        (["usr/local/anaconda/conda-meta/"], [("/usr/local/anaconda", "conda")]),
        (["data/miniforge3/conda-meta/"], [("/data/miniforge3", "conda")]),
        (["opt/.pyenv/versions/", "opt/.pyenv/bin/pyenv"], [("/opt/.pyenv", "pyenv")]),
        (["usr/local/bin/python3.12", "usr/local/bin/python3-config"], [("/usr/local/bin/python3.12", "python")]),
        (["opt/python311/bin/python3", "opt/python311/include/"], [("/opt/python311", "python")]),
        (["opt/app/bin/python3", "opt/app/include/", "opt/app/pyvenv.cfg"], []),
        (["home/ada/miniconda3/conda-meta/"], []),
    ],
)
def test_other_pythons(tmp_path: Path, entries: list[str], found: list[tuple[str, str]]) -> None:
    others = python_observe.observe_python(make(tmp_path, *entries))["others"]
    assert [(one["path"], one["what"]) for one in others] == found


def test_a_link_to_the_systems_python_is_none(tmp_path: Path) -> None:
    root = make(tmp_path, "usr/local/bin/")
    (root / "usr/local/bin/python3").symlink_to("../../bin/python3")
    assert python_observe.observe_python(root)["others"] == []


def test_a_server_is_never_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nfs = "30 22 0:50 / {} rw - nfs4 head:/x rw\n"
    mounts = LOCAL + nfs.format("/data") + nfs.format("/opt/shared") + nfs.format("/net")
    root = make(tmp_path, "data/conda/conda-meta/", "opt/shared/conda-meta/", "net/conda/conda-meta/", mounts=mounts)
    (root / "opt/linked").symlink_to("/net/conda")
    asked: list[str] = []
    listdir, is_dir = python_observe.os.listdir, Path.is_dir
    monkeypatch.setattr(python_observe.os, "listdir", lambda path: asked.append(str(path)) or listdir(path))
    monkeypatch.setattr(Path, "is_dir", lambda path: asked.append(str(path)) or is_dir(path))
    assert python_observe.observe_python(root)["others"] == []
    assert asked and not [path for path in asked if "/data" in path or "shared" in path or "linked" in path]


def test_no_python_and_an_empty_tree(tmp_path: Path) -> None:
    found = python_observe.observe_python(tmp_path)
    assert found["interpreter"] is None and found["packages"] == found["others"] == []
    assert golden_rule.findings({"system_python": found}) == []


def test_an_interpreter_behind_alternatives(tmp_path: Path) -> None:
    root = make(tmp_path, "usr/lib64/python3.9/os.py", "etc/alternatives/", version="3.9")
    (root / "usr/bin/python3").unlink()
    (root / "usr/bin/python3").symlink_to("/etc/alternatives/python3")
    (root / "etc/alternatives/python3").symlink_to("/usr/bin/python3.9")
    assert python_observe.observe_python(root)["version"] == "3.9"


def test_cuda_toolkits(tmp_path: Path) -> None:
    root = make(tmp_path, "usr/local/cuda-12.4/bin/nvcc", "usr/local/cuda-13/compat/", "usr/local/cuda-11/version.json")
    (root / "usr/local/cuda").symlink_to("cuda-12.4")
    packages = {"cuda-toolkit-12-4": "1", "cuda-toolkit-12-4-config-common": "1", "nvidia-cuda-toolkit": "1"}
    assert python_observe.observe_cuda(root, packages) == [
        "/usr/local/cuda-11",
        "/usr/local/cuda-12.4",
        "cuda-toolkit-12-4",
        "nvidia-cuda-toolkit",
    ]


# --- what breaks the rule ---

CLEAN: dict[str, Any] = {
    "system_python": {
        "interpreter": "/usr/bin/python3",
        "version": "3.13",
        "externally_managed": True,
        "pip": None,
        "packages": [],
        "others": [],
    },
    "cuda": [],
    "conflicts": [],
}


def python(**changes: object) -> dict[str, Any]:
    return {**CLEAN, "system_python": {**CLEAN["system_python"], **changes}}


@pytest.mark.parametrize(
    ("facts", "name", "seen"),
    [
        (python(packages=["torch"]), "packages in the system Python", "torch"),
        (python(others=[{"path": "/opt/conda", "what": "conda"}]), "conda for everybody", "/opt/conda"),
        (python(others=[{"path": "/opt/pyenv", "what": "pyenv"}]), "second Python", "/opt/pyenv"),
        (python(externally_managed=False), "no marker in the system Python", "/usr/bin/python3"),
        ({**CLEAN, "cuda": ["/usr/local/cuda-12"]}, "CUDA on the host", "/usr/local/cuda-12"),
        ({**CLEAN, "conflicts": [{"what": "snap docker", "why": "x"}]}, "Docker from snap", "snap docker"),
        ({**CLEAN, "conflicts": [{"what": "nomad", "why": "x"}]}, "another daemon that gives out GPUs", "nomad"),
    ],
)
def test_each_finding(facts: Mapping[str, Any], name: str, seen: str) -> None:
    (found,) = golden_rule.findings(facts, "slurm")
    assert (found["name"], found["seen"]) == (name, seen)
    assert found["why"] and found["mend"]
    assert not any(text.endswith(".") for text in found.values())


def test_a_clean_host_and_the_labs_own_daemon() -> None:
    assert golden_rule.findings(CLEAN) == [] and golden_rule.notice([], NOTICE) == ""
    slurm = {**CLEAN, "conflicts": [{"what": "slurmd", "why": "x"}]}
    assert golden_rule.findings(slurm, "slurm") == []
    assert golden_rule.findings(slurm, "none") and golden_rule.findings(slurm, "dstack")
    assert golden_rule.findings(python(externally_managed=False), guarded=True) == []


def test_the_notice_has_one_line_for_the_login_and_the_whole_story_below() -> None:
    many = [f"p{number}" for number in range(40)]
    found = golden_rule.findings({**python(packages=many), "cuda": ["/usr/local/cuda-12"]})
    first, *rest = golden_rule.notice(found, NOTICE).splitlines()
    assert first == (
        "labrack: 2 things on this host break the golden rule: packages in the system Python, CUDA on the host. "
        f"See {NOTICE}"
    )
    assert len(first) < 200
    assert "packages in the system Python: p0, p1, p2, p3, p4, p5 and 34 more" in rest
    assert "1 thing on this host breaks the golden rule" in golden_rule.notice(found[:1], NOTICE)


STRICT = {"baseline_state": "present", "baseline_strict": True, "baseline_python_guard": True}


def test_strict_makes_findings_of_the_inventory() -> None:
    facts = {**python(packages=["torch"], externally_managed=False), "arch": "x86_64"}
    (found,) = rules_host.check_host_facts("node1", STRICT, facts)
    assert "torch" in found.problem and "uv pip uninstall" in found.mend and found.path == ("host", "node1")
    assert len(list(rules_host.check_host_facts("node1", {**STRICT, "baseline_python_guard": False}, facts))) == 2
    assert not list(rules_host.check_host_facts("node1", {**STRICT, "baseline_strict": False}, facts))
    assert not list(rules_host.check_host_facts("node1", {**STRICT, "baseline_state": "absent"}, facts))


def test_uv_needs_a_sum_for_the_nodes_architecture() -> None:
    variables = {"baseline_state": "present", "baseline_uv_version": "1.2", "baseline_uv_sha256": {"x86_64": "0" * 64}}
    (found,) = rules_host.check_host_facts("node1", variables, {**CLEAN, "arch": "riscv64"})
    assert found.key == "baseline_uv_sha256" and "riscv64" in found.problem
    assert not list(rules_host.check_host_facts("node1", variables, {**CLEAN, "arch": "x86_64"}))


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("baseline_uv_version", "0.13.9", True),
        ("baseline_uv_version", "latest", False),
        ("baseline_uv_cache", "/data/cache/uv", True),
        ("baseline_uv_cache", "", True),
        ("baseline_uv_cache", "cache/uv", False),
        ("baseline_uv_cache", "/uv", False),
        ("baseline_uv_cache", "/data/$USER/uv", False),
        ("baseline_uv_sha256", {"x86_64": "0" * 64}, True),
        ("baseline_uv_sha256", {"x86_64": "sha256:0"}, False),
    ],
)
def test_variables_of_uv(name: str, value: object, right: bool) -> None:
    findings = list(rules_host.check_host_variables({name: value}))
    assert (findings == []) is right
    assert all(finding.path[0] == name and finding.mend for finding in findings)


# --- the plan, on a simulated node ---

PATH_12, PATH_13 = (f"/usr/lib/python3.{minor}/EXTERNALLY-MANAGED" for minor in (12, 13))


def apply(
    node: Observed, wanted: Wanted, recorded: tuple[str, ...], kept: dict[str, FileState], changes: list[Change]
) -> tuple[Observed, tuple[str, ...]]:
    """Make the changes on a simulated node; ``kept`` are the markers that were set aside."""
    files = host_python_plan.wanted_files(node, wanted)
    after = node
    for change in changes:
        verb, target = change.step
        if verb == "divert":
            assert target == node.marker and target not in after.diverted
            if after.marker_file is not None:
                kept[target] = after.marker_file
            after = replace(after, diverted=(*after.diverted, target), marker_file=None)
        elif verb == "undivert":
            after = replace(after, diverted=tuple(path for path in after.diverted if path != target))
            if target == node.marker:
                after = replace(after, marker_file=kept.pop(target, None))
        elif verb == "uv":
            after = replace(after, programs=dict.fromkeys(PROGRAMS, target))
        elif target in PROGRAMS:
            assert verb == "remove"
            after = replace(after, programs={path: one for path, one in after.programs.items() if path != target})
        else:
            state = files[target] if verb == "write" else None
            field = {PIP_CONF: "pip_conf", LOGIN: "login", NOTICE: "notice", node.marker: "marker_file"}[target]
            after = replace(after, **{field: state})
    return after, host_python_plan.ours(node, wanted, recorded)


WANTED = st.one_of(
    st.just(Wanted(present=False)),
    st.builds(
        Wanted,
        guard=st.booleans(),
        uv=st.sampled_from(["", "0.13.9", "0.14.0"]),
        cache=st.sampled_from(["", "/data/cache/uv"]),
    ),
)
NODES = st.builds(
    Observed,
    marker=st.sampled_from([None, PATH_13]),
    marker_file=st.none(),
    pip=st.sampled_from([None, "22.0.2", "23.0.1", "25.1.1"]),
    pip_conf=st.sampled_from(
        [None, FileState("[global]\nindex-url = x\n"), FileState("[install]\nuser = no\n", "0600")]
    ),
    programs=st.sampled_from([{}, dict.fromkeys(PROGRAMS, "0.13.9"), {PROGRAMS[0]: ""}]),
    admins=st.sampled_from([(), ("%sudo", "ada")]),
    copies=st.booleans(),
    notice_text=st.sampled_from(["", "labrack: 1 thing\n"]),
)


@given(NODES, st.booleans(), WANTED, WANTED)
def test_any_wish_after_any_other_and_undo(start: Observed, packaged: bool, first: Wanted, then: Wanted) -> None:
    if start.marker and packaged:
        start = replace(start, marker_file=FileState("[externally-managed]\nError=apt\n"))
    node, recorded, kept = start, (), {}
    for wanted in (first, then):
        node, recorded = apply(node, wanted, recorded, kept, host_python_plan.plan(node, wanted, recorded))
        assert host_python_plan.plan(node, wanted, recorded) == []
        if wanted.present and wanted.uv:
            assert node.programs == dict.fromkeys(PROGRAMS, wanted.uv)
        guarded = bool(wanted.present and wanted.guard and node.marker)
        assert (node.marker_file is not None and node.marker_file.text.startswith(HEADER)) is guarded
    touched = bool(recorded)
    undone, recorded = apply(
        node, Wanted(present=False), recorded, kept, host_python_plan.plan(node, Wanted(present=False), recorded)
    )
    assert recorded == () and not kept
    assert (undone.marker_file, undone.diverted, undone.login, undone.notice) == (start.marker_file, (), None, None)
    assert undone.pip_conf == start.pip_conf
    if touched:
        assert undone.programs == {}, "what we put there goes"
    elif not first.uv and not then.uv:
        assert undone.programs == start.programs, "what was there before us stays"


def test_a_new_release_of_the_system_moves_the_marker() -> None:
    old = Observed(marker=PATH_13, diverted=(PATH_12,), marker_file=FileState("theirs"))
    steps = [change.step for change in host_python_plan.plan(old, Wanted(), ())]
    assert steps[:3] == [("undivert", PATH_12), ("divert", PATH_13), ("write", PATH_13)]


def test_a_right_uv_that_somebody_else_installed_is_not_ours() -> None:
    node = Observed(programs=dict.fromkeys(PROGRAMS, "0.13.9"))
    assert host_python_plan.ours(node, Wanted(uv="0.13.9"), ()) == ()
    assert host_python_plan.ours(node, Wanted(uv="0.14.0"), ()) == PROGRAMS
    assert not [
        change for change in host_python_plan.plan(node, Wanted(present=False), ()) if change.step[0] == "remove"
    ]


@pytest.mark.parametrize("uv", [True, False])
def test_the_marker_is_what_pip_reads(uv: bool) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(marker_text(uv))
    words = parser["externally-managed"]["Error"]
    assert words.startswith("Nothing was installed.") and words.endswith("use a container.")
    assert ("uv venv" in words) is uv and ("python3 -m venv" in words) is not uv
    assert all(len(line) <= 78 for line in words.splitlines())


LINES = ["index-url = http://x", "timeout = 9", "# note", ""]
SECTIONS = st.lists(
    st.sampled_from(["[global]", "[install]", "[list]"]).flatmap(
        lambda name: st.lists(
            st.sampled_from(["index-url = http://x", "timeout = 9", "# note", ""]), max_size=3, unique=True
        ).map(lambda lines: "\n".join([name, *lines]) + "\n")
    ),
    max_size=3,
    unique_by=lambda text: text.split("\n")[0],
).map("".join)


@given(SECTIONS, st.booleans())
def test_pips_settings_are_merged_and_taken_back(text: str, later: bool) -> None:
    merged = with_setting(text)
    assert with_setting(merged) == merged
    parser = configparser.RawConfigParser()
    parser.read_string(merged)
    assert parser["global"]["require-virtualenv"] == "true"
    assert without_setting(merged) == text
    if later and merged.endswith("true\n"):
        # somebody writes into the section that we began
        parser = configparser.RawConfigParser()
        parser.read_string(without_setting(merged + "timeout = 3\n"))
        assert parser["global"]["timeout"] == "3"


@pytest.mark.parametrize("line", ["require-virtualenv = false", "require_virtualenv=no"])
def test_a_decision_about_virtual_environments_is_respected(line: str) -> None:
    assert with_setting(f"[global]\n{line}\n") == f"[global]\n{line}\n"


def test_folders_of_the_cache() -> None:
    assert cache_folders("/data/cache/uv", ["/data"], []) == ["/data/cache", "/data/cache/uv"]
    assert cache_folders("/data/cache/uv", ["/data", "/data/cache", "/data/cache/uv"], []) == ["/data/cache/uv"]
    assert cache_folders("/data/cache/uv", [], ["/data"]) == ["/data/cache", "/data/cache/uv"]
    assert cache_folders("/data/cache/uv", [], []) == cache_folders("", ["/data"], []) == []


def test_admins_are_read_from_sudoers() -> None:
    text = (
        "Defaults\tenv_reset\nroot\tALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) ALL\nada ALL=(ALL) NOPASSWD: ALL\n"
        "# eve ALL=(ALL) ALL\nbob ALL=(root) /usr/bin/nvidia-smi\nUser_Alias X = y\n@includedir /etc/sudoers.d\n"
    )
    assert read_admins([text, "%wheel ALL=(ALL) ALL\n"]) == ("%sudo", "%wheel", "ada", "root")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_login_script_is_good_shell(tmp_path: Path, shell: str) -> None:
    file = tmp_path / "labrack.sh"
    file.write_text(login_script(f"{tmp_path}/cache", True, ("%sudo", "ada")))
    (tmp_path / "cache").mkdir()
    script = f"set -eu; . {file}; echo $UV_CACHE_DIR $UV_LINK_MODE"
    environment = {"PATH": "/usr/bin:/bin", "LOGNAME": "ada"}
    done = subprocess.run([shell, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path}/cache/ada copy\n", "")
    assert (tmp_path / "cache/ada").stat().st_mode & 0o777 == 0o700
    for other in ({"LOGNAME": "root"}, {"LOGNAME": ""}, {"LOGNAME": "ada", "UV_CACHE_DIR": "/mine"}):
        script = f"set -eu; . {file}; echo ${{UV_CACHE_DIR:-none}}"
        done = subprocess.run([shell, "-c", script], env={**environment, **other}, capture_output=True, text=True)
        assert (done.stdout.strip(), done.stderr) == (other.get("UV_CACHE_DIR", "none"), "")
    (tmp_path / "cache/ben").symlink_to(tmp_path / "cache/ada")
    done = subprocess.run([shell, "-c", script], env={**environment, "LOGNAME": "ben"}, capture_output=True, text=True)
    assert done.stdout == "none\n", "a link that somebody else may have made is not followed"


# --- uv's wheel ---

PAGE = """<!DOCTYPE html><html><body>
<a href="../../packages/aa/uv-0.13.9-py3-none-macosx_11_0_arm64.whl#sha256=1">x</a>
<a href="../../packages/bb/uv-0.13.9-py3-none-musllinux_1_1_x86_64.whl#sha256=2">x</a>
<a href="../../packages/cc/uv-0.13.9-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl#sha256=3">x</a>
<a href="uv-0.13.90-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl">x</a>
<a href="https://files.example/dd/uv-0.13.9-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl"
 data-yanked="">x</a><a href="file:///uv-0.1-py3-none-manylinux_x86_64.whl">x</a></body></html>"""


@pytest.mark.parametrize(
    ("version", "arch", "link"),
    [
        (
            "0.13.9",
            "x86_64",
            "https://pypi.lab/packages/cc/uv-0.13.9-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl#sha256=3",
        ),
        (
            "0.13.9",
            "aarch64",
            "https://files.example/dd/"
            "uv-0.13.9-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl",
        ),
        ("0.13.9", "riscv64", None),
        ("0.13", "x86_64", None),
        ("0.1", "x86_64", None),
    ],
)
def test_the_wheel_of_an_index(version: str, arch: str, link: str | None) -> None:
    assert uv_wheel.wheel_link(PAGE, "https://pypi.lab/simple/uv/", version, arch) == link


def wheel(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, f"I am {name}")
    return stream.getvalue()


def test_programs_come_out_only_of_the_right_wheel() -> None:
    good = wheel("uv-1.2.data/scripts/uv", "uv-1.2.data/scripts/uvx", "uv-1.2.data/scripts/../../evil")
    digest = hashlib.sha256(good).hexdigest()
    assert uv_wheel.read_programs(good, "1.2", digest) == {
        PROGRAMS[0]: b"I am uv-1.2.data/scripts/uv",
        PROGRAMS[1]: b"I am uv-1.2.data/scripts/uvx",
    }
    with pytest.raises(UvError, match=r"baseline_uv_sha256.*Mend"):
        uv_wheel.read_programs(good + b"x", "1.2", digest)
    for odd in (wheel("uv-1.2.data/scripts/uv"), b"<html>not found</html>"):
        with pytest.raises(UvError, match="not the programs"):
            uv_wheel.read_programs(odd, "1.2", hashlib.sha256(odd).hexdigest())


@pytest.mark.parametrize("url", ["ftp://x", "/srv/index", "http://127.0.0.1:9", "http://"])
def test_an_index_that_gives_no_answer(url: str) -> None:
    with pytest.raises(UvError, match=r"baseline_uv_url: .*Mend:"):
        uv_wheel.fetch(url, "0.13.9", "x86_64", {"x86_64": "0" * 64})


def test_an_architecture_without_a_sum_asks_nobody() -> None:
    with pytest.raises(UvError, match="riscv64"):
        uv_wheel.fetch("http://127.0.0.1:9", "0.13.9", "riscv64", {"x86_64": "0" * 64})


def test_a_program_that_does_not_run_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uv_wheel, "FOLDER", str(tmp_path))
    good = b'#!/bin/sh\necho "$(basename $0) 1.2 (here)"\n'
    paths = [f"{tmp_path}/uv", f"{tmp_path}/uvx"]
    uv_wheel.install(dict.fromkeys(paths, good), "1.2")
    monkeypatch.setattr(uv_wheel, "PROGRAMS", tuple(paths))
    assert uv_wheel.observe_programs() == dict.fromkeys(paths, "1.2")
    with pytest.raises(UvError, match="does not run"):
        uv_wheel.install({paths[0]: good.replace(b"1.2", b"1.3"), paths[1]: b"#!/bin/false\n"}, "1.3")
    assert uv_wheel.observe_programs() == dict.fromkeys(paths, "1.2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["uv", "uvx"]
