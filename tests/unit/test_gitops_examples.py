# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The pipelines in docs/examples, and the commands in docs/GITOPS.md: each is one that labrack takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperCommand

from labrack import cli, gitops_config
from tests.unit.gitops_lab import Remote

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/GITOPS.md").read_text(encoding="utf-8")
#: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax, as far as it is used here.
WORKFLOW = {"name", "on", "permissions", "concurrency", "env", "jobs"}
JOB = {"name", "if", "runs-on", "timeout-minutes", "permissions", "environment", "steps"}
STEP = {"name", "uses", "with", "run", "env", "if"}
#: https://docs.gitlab.com/ci/yaml/, as far as it is used here.
GITLAB_JOB = {"stage", "timeout", "resource_group", "rules", "script", "environment"}


def load(name: str) -> Any:
    return yaml.load((ROOT / "docs/examples" / name).read_text(encoding="utf-8"), yaml.BaseLoader)


def github_scripts() -> list[str]:
    return [
        step["run"] for job in load("github-actions.yml")["jobs"].values() for step in job["steps"] if "run" in step
    ]


def gitlab_scripts() -> list[str]:
    document = load("gitlab-ci.yml")
    jobs = {name: job for name, job in document.items() if name not in ("stages", "default", "variables")}
    return ["\n".join(job["script"]) for job in jobs.values()]


def commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each labrack command in a shell script or a document, without redirections."""
    for line in script.replace("\\\n", " ").splitlines():
        for found in re.finditer(r"(?:^|[;|&{]\s*|\s{2,}|bin/)labrack (?P<rest>[^;|&>`]*)", line):
            yield shlex.split(found["rest"])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that were parsed; none of them does anything."""
    names: list[str] = []
    monkeypatch.setattr(TyperCommand, "invoke", lambda self, context: names.append(context.command_path))
    return names


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("\n".join(github_scripts()), {"doctor", "plan", "apply", "drift"}),
        ("\n".join(gitlab_scripts()), {"doctor", "plan", "apply", "drift"}),
        ("\n".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)), {"gitops install", "gitops run"}),
    ],
    ids=["github", "gitlab", "guide"],
)
def test_every_command_is_one_that_labrack_takes(script: str, wanted: set[str], taken: list[str]) -> None:
    command = typer.main.get_command(cli.app)
    for words in commands(script):
        command.main(words, prog_name="labrack", standalone_mode=False)
    assert {name.removeprefix("labrack ") for name in taken} == wanted


@pytest.mark.parametrize("script", [*github_scripts(), *gitlab_scripts()])
def test_scripts_are_shell(script: str) -> None:
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_workflow_has_known_keys_and_pinned_actions() -> None:
    document = load("github-actions.yml")
    assert {*document} == WORKFLOW and {*document["on"]} == {"pull_request", "push", "schedule"}
    assert document["permissions"] == {"contents": "read"}
    for job in document["jobs"].values():
        assert {*job} <= JOB
        for step in job["steps"]:
            assert {*step} <= STEP and ("uses" in step) != ("run" in step)
            assert "uses" not in step or re.search(r"@[0-9a-f]{40}$", step["uses"])
            # what somebody else writes never becomes a part of a script
            assert "${{" not in step.get("run", "")
    assert "head.repo.full_name == github.repository" in document["jobs"]["plan"]["if"]


def test_pipeline_has_known_keys() -> None:
    document = load("gitlab-ci.yml")
    jobs = {name: job for name, job in document.items() if name not in ("stages", "default", "variables")}
    assert {*jobs} == {*document["stages"]} == {job["stage"] for job in jobs.values()}
    assert all({*job} <= GITLAB_JOB for job in jobs.values())


def test_the_guide_has_every_key_of_the_configuration() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", GUIDE, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*gitops_config._KEYS}


def test_ansible_pull_does_as_the_guide_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    remote = Remote.make(tmp_path / "remote")
    play = (
        "- hosts: lab_head\n  gather_facts: false\n  tasks:\n    - ansible.builtin.copy:\n"
        f"        content: '{{{{ inventory_hostname }}}}'\n        dest: {tmp_path}/made\n"
    )
    interpreter = f"ansible_connection: local, ansible_python_interpreter: {sys.executable}"
    remote.commit(
        {"site.yml": play, "inventory/hosts.yml": f"lab_head: {{hosts: {{desk: {{{interpreter}}}}}}}\n"}, None
    )
    (line,) = re.findall(r"^ansible-pull .*$", GUIDE, re.MULTILINE)
    words = [str(remote.bare) if word.startswith("git@") else word for word in shlex.split(line)]
    program = Path(sys.executable).with_name("ansible-pull")
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    options = ["-d", str(tmp_path / "checkout"), "-e", f"ansible_python_interpreter={sys.executable}"]

    def pull(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words[:-1], *more, words[-1]], capture_output=True, text=True, cwd=tmp_path)

    done = pull(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "made").read_text() == "desk"
    # the trap that -l is for
    place = words.index("-l")
    del words[place : place + 2]
    (tmp_path / "made").unlink()
    pull(*options)
    assert not (tmp_path / "made").exists()


def test_requirements_of_the_head_are_those_of_the_lock() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for package in packages:
        by_name.setdefault(package["name"], []).append(package)
    wanted, todo = set(), ["labrack"]
    while todo:
        name = todo.pop()
        for package in by_name[name]:
            if name != "labrack":
                sums = (
                    one["hash"]
                    for one in [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
                )
                wanted.add((name, package["version"], frozenset(sums)))
            for needed in package.get("dependencies", ()):
                if needed["name"] not in {one[0] for one in wanted} | {*todo}:
                    todo.append(needed["name"])
    found = set()
    text = (ROOT / "roles/gitops/files/requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        words, *sums = line.split("--hash=")
        name, _, version = words.partition(";")[0].strip().partition("==")
        found.add((name, version, frozenset(one.strip() for one in sums)))
    assert found == wanted, "run `make docs`"
    assert "://" not in text
