# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The test mirror's catalogue, its packages' scripts, its server's faults, and the stand-ins that it ships."""

from __future__ import annotations

import functools
import http.server
import json
import re
import runpy
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labrack.testnode.docker import LabError
from tests.mirror import build, catalogue, serve
from tests.mirror.payload import DATA, payload
from tests.mirror.serve import Fault

EVERY_PACKAGE = [
    *catalogue.cuda_packages(),
    *(package for version in catalogue.TOOLKIT_VERSIONS for package in catalogue.toolkit_packages(version)),
    *(package for suite in catalogue.DOCKER_SUITES for package in catalogue.docker_packages(suite)),
]


def exact(relations: tuple[str, ...]) -> list[tuple[str, str]]:
    """The (name, version) pairs of the relations that ask for exactly one version."""
    return re.findall(r"([a-z0-9.+-]+) \(= ([^)]+)\)", ", ".join(relations))


@pytest.mark.parametrize("version", catalogue.DRIVER_VERSIONS)
def test_exact_dependencies_are_there(version: str) -> None:
    packages = {package.name: package.version for package in catalogue.driver_packages(version)}
    for package in catalogue.driver_packages(version):
        for name, wanted in exact(package.depends):
            assert packages[name] == wanted == f"{version}-1", package.name


@pytest.mark.parametrize("version", catalogue.DRIVER_VERSIONS)
def test_metapackages_are_open_ended(version: str) -> None:
    meta = [p for p in catalogue.driver_packages(version) if p.name.startswith(("cuda-drivers", "nvidia-open"))]
    assert meta
    for package in meta:
        assert exact(package.depends) == []
        assert all(">=" in relation for relation in package.depends)


def test_branch_metapackages_end_with_590() -> None:
    names = {package.name for package in catalogue.cuda_packages()}
    assert {"cuda-drivers-535", "cuda-drivers-580", "nvidia-open-580"} <= names
    assert not {"cuda-drivers-590", "cuda-drivers-595", "nvidia-open-590"} & names
    assert {f"nvidia-driver-pinning-{branch}" for branch in catalogue.DRIVER_BRANCHES} <= names


def test_each_version_is_once_in_a_repository() -> None:
    for repository in build.repositories("amd64"):
        files = [package.filename("amd64") for package in repository["packages"]]
        assert len(files) == len(set(files)), repository["name"]
        assert any(f"{repository['missing']}-1" in package.version for package in repository["packages"])


def test_docker_files_have_no_epoch() -> None:
    names = [package.filename("arm64") for package in catalogue.docker_packages("trixie")]
    assert "docker-ce_29.8.2-1~debian.13~trixie_arm64.deb" in names


def test_pin_names_the_driver_and_not_fabric_manager() -> None:
    text = catalogue.pinning_preferences("580")
    assert "Package: src:*nvidia*:any" in text
    assert "Pin: version 580*\nPin-Priority: 1000" in text
    sources = {package.name: package.source for package in catalogue.driver_packages("580.178.04")}
    assert sources.pop("nvidia-fabricmanager") == "fabricmanager"
    assert all("nvidia" in source or source == "cuda-drivers" for source in sources.values())


def test_maintainer_scripts_are_shell() -> None:
    scripts = {text for package in EVERY_PACKAGE for text in payload(package, "amd64").scripts.values()}
    assert len(scripts) > 10
    for text in scripts:
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_apt_reads_the_preferences() -> None:
    files = [path for package in EVERY_PACKAGE for path in payload(package, "amd64").files]
    preferences = [path for path in files if path.startswith("/etc/apt/preferences.d/")]
    assert len(preferences) == len(catalogue.DRIVER_BRANCHES) + len(catalogue.DRIVER_VERSIONS)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+\.pref", path.rpartition("/")[2]) for path in preferences)


def test_userland_names_its_library_by_version() -> None:
    nvml = next(p for p in catalogue.driver_packages("580.105.08") if p.name == "libnvidia-ml1")
    made = payload(nvml, "arm64")
    folder = "/usr/lib/aarch64-linux-gnu"
    assert made.libraries == {f"{folder}/libnvidia-ml.so.580.105.08": "libnvidia-ml.so.1"}
    assert made.links == {f"{folder}/libnvidia-ml.so.1": "libnvidia-ml.so.580.105.08"}


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(LabError, match="x86_64, aarch64, not riscv64"):
        build.debian_architecture()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., tuple[int, bytes]]]:
    """Ask a server with a small tree: path, and the faults to set before."""
    for path, content in {
        "tree/repo/Packages": b"whole",
        "tree/repo/one.deb": b"deb",
        "tree/other/Packages": b"other",
        "alternates/half-synced/repo/Packages": b"half",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    handler = functools.partial(runpy.run_path(str(DATA / "server.py"))["Handler"], root=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def ask(path: str, **faults: Fault) -> tuple[int, bytes]:
            table = {prefix.replace("_", "/"): {"fault": fault.value, "seconds": 0} for prefix, fault in faults.items()}
            (tmp_path / "control.json").write_text(json.dumps(table))
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as answer:
                return answer.status, answer.read()

        yield ask
        server.shutdown()
        thread.join()


def test_fault_holds_below_its_prefix(served: Callable[..., tuple[int, bytes]]) -> None:
    assert served("/repo/Packages") == (200, b"whole")
    assert served("/repo/Packages", _repo_=Fault.HALF_SYNCED) == (200, b"half")
    assert served("/other/Packages", _repo_=Fault.HALF_SYNCED) == (200, b"other")
    assert served("/repo/one.deb", _repo_=Fault.HALF_SYNCED) == (200, b"deb")
    assert served("/repo/Packages", _=Fault.HTML_PAGE, _repo_=Fault.HALF_SYNCED) == (200, b"half")
    status, page = served("/other/Packages", _=Fault.HTML_PAGE, _repo_=Fault.HALF_SYNCED)
    assert (status, page.startswith(b"<!DOCTYPE html>")) == (200, True)


def test_wrong_checksum_keeps_the_size(served: Callable[..., tuple[int, bytes]]) -> None:
    for path in ("/repo/one.deb", "/repo/./one.deb"):
        status, content = served(path, _repo_=Fault.WRONG_CHECKSUM)
        assert (status, len(content), content != b"deb") == (200, 3, True)
    assert served("/repo/Packages", _repo_=Fault.WRONG_CHECKSUM) == (200, b"whole")


def test_fault_needs_a_path() -> None:
    with pytest.raises(ValueError, match="begins with a slash"):
        serve.set_fault(serve.Mirror("lab", "lab-mirror", {}), Fault.SLOW, "compute/")


DOCKERD = runpy.run_path(str(DATA / "dockerd.py"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"live-restore": true,}', "invalid character"),
        ("{", "unexpected end of JSON input"),
        ("[]", "cannot unmarshal"),
        ('{"liverestore": true}', "the following directives don't match any configuration option: liverestore"),
        ('{"hosts": ["unix:///x"]}', "specified both as a flag and in the configuration file: hosts"),
    ],
)
def test_docker_stand_in_refuses_a_wrong_configuration(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(text)
    with pytest.raises(
        DOCKERD["Refused"], match=f"unable to configure the Docker daemon with file {path}.*"
    ) as refused:
        DOCKERD["read"](path, {"hosts": ["fd://"]})
    assert said in str(refused.value)


def test_docker_stand_in_reloads_what_the_real_one_does(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    daemon = DOCKERD["Daemon"]({"log-driver": "json-file"}, path, {})
    runtimes = {"nvidia": {"path": "nvidia-container-runtime", "args": []}}
    path.write_text(json.dumps({"live-restore": True, "runtimes": runtimes, "log-driver": "local"}))
    daemon.reload()
    assert daemon.config == {"log-driver": "json-file", "live-restore": True, "runtimes": runtimes}
    path.write_text("{")
    daemon.reload()
    assert daemon.config["live-restore"]
    path.write_text("{}")
    daemon.reload()
    assert daemon.config == {"log-driver": "json-file"}


CTK = runpy.run_path(str(DATA / "nvidia_ctk.py"))
BOOLEANS = sorted(key for key, (_, value) in CTK["keys"](CTK["DEFAULT"]).items() if value in ("true", "false"))


@given(st.lists(st.tuples(st.sampled_from(BOOLEANS), st.booleans()), max_size=5))
def test_toolkit_stand_in_sets_keys_and_keeps_the_rest(settings: list[tuple[str, bool]]) -> None:
    text = CTK["DEFAULT"]
    for key, value in settings:
        text = CTK["assign"](text, f"{key}={str(value).lower()}")
    before, after = CTK["keys"](CTK["DEFAULT"]), CTK["keys"](text)
    wanted = {key: str(value).lower() for key, value in settings}
    assert {key: value for key, (_, value) in after.items()} == {
        key: wanted.get(key, value) for key, (_, value) in before.items()
    }


@pytest.mark.parametrize("setting", ["no-such-key=1", "disable-require=perhaps", "nvidia-container-runtime.mode"])
def test_toolkit_stand_in_refuses_wrong_settings(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        CTK["assign"](CTK["DEFAULT"], setting)
    assert f"invalid --set option {setting}" in capsys.readouterr().err
