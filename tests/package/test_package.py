"""The wheel and the tarball, each built, installed in an environment of its own, and run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import build_collection
import pytest
import yaml
from ansible_test._internal.python_requirements import get_venv_packages

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "ansible_collections/labrack/infra/"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = {
    "roles": ROOT / "roles",
    "playbooks": ROOT / "playbooks",
    "plugins": ROOT / "collections" / COLLECTION / "plugins",
}

Run = Callable[..., str]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command outside the checkout and without its settings; returns what it printed."""
    directory = tmp_path_factory.mktemp("elsewhere")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON", "VIRTUAL_"))
    }

    def command(*arguments: str | Path, cwd: Path = directory, **settings: str) -> str:
        done = subprocess.run(arguments, cwd=cwd, env={**kept, **settings}, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done.stdout

    return command


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", dist], cwd=ROOT, check=True)
    (built,) = dist.iterdir()
    return built


@pytest.fixture(scope="session")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_collection.build(tmp_path_factory.mktemp("tarball"))


def environment(directory: Path, run: Run, *requirements: str | Path) -> Path:
    """Make a virtual environment with the requirements and return its directory of programs."""
    run(sys.executable, "-m", "venv", directory)
    run(directory / "bin/pip", "install", "--quiet", *requirements)
    return directory / "bin"


@pytest.fixture(scope="session")
def wheel_bin(wheel: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("with-wheel"), run, wheel)


@pytest.fixture(scope="session")
def tarball_bin(tarball: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (core,) = (requirement for requirement in PROJECT["dependencies"] if requirement.startswith("ansible-core"))
    programs = environment(tmp_path_factory.mktemp("with-tarball"), run, core)
    run(
        programs / "ansible-galaxy",
        "collection",
        "install",
        "--offline",
        "-p",
        programs.parent / "collections",
        tarball,
    )
    return programs


@pytest.fixture(params=["wheel", "tarball"])
def ansible(request: pytest.FixtureRequest, run: Run) -> Run:
    """Runs ``ansible-playbook`` of an environment in which the collection was installed in that form."""
    programs: Path = request.getfixturevalue(f"{request.param}_bin")
    settings = {"ANSIBLE_COLLECTIONS_PATH": str(programs.parent / "collections")} if request.param == "tarball" else {}
    return lambda *arguments: run(programs / "ansible-playbook", *arguments, **settings)


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tarball_files(tarball: Path) -> set[str]:
    with tarfile.open(tarball) as archive:
        return {member.name for member in archive if member.isfile()}


def test_wheel_and_tarball_hold_the_same_collection(wheel: Path, tarball: Path) -> None:
    in_wheel = {name.removeprefix(COLLECTION) for name in wheel_files(wheel) if name.startswith(COLLECTION)}
    assert in_wheel - tarball_files(tarball) == {"galaxy.yml"}
    assert tarball_files(tarball) - in_wheel == {"MANIFEST.json", "FILES.json"}


def test_collection_is_whole(tarball: Path) -> None:
    files = tarball_files(tarball)
    assert {"LICENSE", "README.md", "CHANGELOG.md", "meta/runtime.yml", "playbooks/closet.yml"} <= files
    for part, directory in SOURCES.items():
        found = (path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        assert {f"{part}/{path.relative_to(directory)}" for path in found} <= files


def test_wheel_holds_what_the_demo_needs(wheel: Path) -> None:
    folder = ROOT / "scripts/labrack/testnode/data"
    data = {f"labrack/testnode/data/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
    assert data
    assert data <= wheel_files(wheel)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_files(wheel))


def test_one_version() -> None:
    galaxy = yaml.safe_load((ROOT / "collections" / COLLECTION / "galaxy.yml").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert galaxy["version"] == PROJECT["version"] == newest.split()[1]


def test_command_line_of_the_wheel(wheel_bin: Path, run: Run) -> None:
    assert "demo" in run(wheel_bin / "labrack", "--help")


def test_closet_is_found_by_its_full_name(ansible: Run) -> None:
    printed = ansible("labrack.infra.closet", "-i", ROOT / "inventories/demo", "--syntax-check")
    assert f"{COLLECTION}playbooks/closet.yml" in printed
    assert str(ROOT) not in printed


def test_module_runs(ansible: Run, tmp_path: Path) -> None:
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
        "tasks": [
            {"labrack.infra.node_facts": {}},
            {
                "ansible.builtin.copy": {
                    "content": "{{ ansible_facts.labrack_node | to_json }}",
                    "dest": str(tmp_path / "facts.json"),
                    "mode": "0600",
                }
            },
        ],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    ansible(tmp_path / "play.yml", "-i", "localhost,")
    assert json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))["hostname"] == os.uname().nodename


def test_ansible_test_accepts_the_modules(run: Run, tmp_path: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pip = get_venv_packages(SimpleNamespace(version=version))["pip"]
    cache = tmp_path / "home/.ansible/test/cache"
    cache.mkdir(parents=True)
    # else ansible-test downloads this file, from a server that is not PyPI
    bootstrap = cache / f"get_pip_{pip.replace('.', '_')}.py"
    bootstrap.write_text("import ensurepip\n\nensurepip.bootstrap(default_pip=True)\n")
    command = [
        Path(sys.executable).with_name("ansible-test"),
        "sanity",
        "--test",
        "validate-modules",
        "--python",
        version,
    ]
    run(*command, cwd=build_collection.stage(tmp_path), HOME=str(tmp_path / "home"))
