# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What docs/SKYPILOT.md and docs/GROW.md tell people to type and to write, held against the programs that take it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperCommand
from typer.testing import CliRunner

from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS
from labrack import cli
from scripts import generate_docs
from tests import guides

ROOT = Path(__file__).parents[2]
PAGES = ("SKYPILOT.md", "GROW.md")
SPECS = {
    name: option
    for role in sorted((ROOT / "roles").iterdir())
    for name, option in generate_docs.read_spec(role)["options"].items()
}
#: SkyPilot 0.14.1's own words (sky/client/cli): tests/testinfra/test_under_desk.py holds the page against the real one.
SKY = {
    "check": set(),
    "gpus list": set(),
    "launch": {"-c"},
    "queue": set(),
    "logs": set(),
    "down": set(),
    "api cancel": set(),
    "local up": {"--no-gpus"},
    "local down": set(),
}


def calls(page: str, program: str) -> list[list[str]]:
    """The words of a page's calls of a program, that left out."""
    return [shlex.split(call)[1:] for call in guides.calls(page) if call.startswith(program + " ")]


def after(option: str, words: list[str]) -> list[str]:
    """What is given to an option."""
    return [word for place, word in enumerate(words) if place and words[place - 1] == option]


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """The inventory of a machine under a desk, with the machines that docs/GROW.md adds."""
    shutil.copytree(ROOT / "inventories/under_desk", tmp_path / "inventory")
    (hosts,) = guides.documents("GROW.md")
    text = yaml.safe_dump(hosts).replace("192.0.2.", "10.9.9.")
    (tmp_path / "inventory/hosts.yml").write_text(text)
    lab = tmp_path / "inventory/group_vars/all/lab.yml"
    lab.write_text(re.sub(r"(?m)^(lab_orchestrator): .*", r"\1: slurm", lab.read_text()))
    return tmp_path / "inventory"


@pytest.mark.parametrize("page", PAGES)
def test_there_is_something_to_look_at(page: str) -> None:
    assert len(guides.commands(page)) >= 5 and guides.documents(page)
    assert {"ansible-playbook", *(("sky",) if page == "SKYPILOT.md" else ("labrack",))} <= {
        call.partition(" ")[0] for call in guides.calls(page)
    }


def test_labrack_takes_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(TyperCommand, "invoke", lambda self, context: taken.append(context.command_path))
    command = typer.main.get_command(cli.app)
    for page in PAGES:
        for words in calls(page, "labrack"):
            command.main(words, prog_name="labrack", standalone_mode=False)
    assert {"labrack doctor", "labrack plan"} <= set(taken)


@pytest.mark.parametrize("page", PAGES)
def test_ansible_takes_its_playbooks_hosts_and_tags(page: str, inventory: Path) -> None:
    for words in calls(page, "ansible-playbook"):
        given = [str(inventory) if word in after("-i", words) else word for word in words]
        program = Path(sys.executable).with_name("ansible-playbook")
        run = [program, *given, "--list-tags", "--list-hosts"]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        tags = {tag for line in re.findall(r"TAGS: \[(.*?)\]", done.stdout) for tag in line.split(", ")}
        assert {tag for word in after("--tags", words) for tag in word.split(",")} <= tags, words
        assert re.search(r"hosts \([1-9]", done.stdout), done.stdout


def test_variables_are_those_of_the_roles() -> None:
    told = {name: value for document in guides.documents("SKYPILOT.md") for name, value in document.items()}
    for page in PAGES:
        for words in calls(page, "ansible-playbook"):
            told.update(word.split("=", 1) for word in after("-e", words))
    assert told.keys() <= SPECS.keys()
    for name, value in told.items():
        assert value in SPECS[name].get("choices", [value]), f"{name}={value}"
    assert told["lab_max_disruption"] in DISRUPTIONS


@pytest.mark.parametrize("page", PAGES)
def test_files_pass_the_doctor(page: str, inventory: Path) -> None:
    for document in guides.documents(page) if page == "SKYPILOT.md" else [{}]:
        lab = {**document, "lab_users": [{"name": "ada", "keys": []}]}
        (inventory / "group_vars/all/page.yml").write_text(yaml.safe_dump(lab))
        done = CliRunner().invoke(cli.app, ["doctor", "--offline", "-i", str(inventory)], prog_name="labrack")
        assert done.exit_code == 0, done.stdout + done.stderr


def test_sky_has_these_commands() -> None:
    for words in calls("SKYPILOT.md", "sky"):
        name = next(name for name in SKY if words[: len(name.split())] == name.split())
        assert {word for word in words if word.startswith("-")} <= SKY[name], words


def test_readme_leads_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page for page in PAGES if f"(docs/{page})" not in text] == []
