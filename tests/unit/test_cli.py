# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command line: arguments, messages, exit statuses; and what the demo assumes about its inventory."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

import labrack
from labrack import cli, demo, demo_tailnet, shell, ssh, story
from labrack.progress import Progress
from labrack.run import Failure, RunError
from labrack.testnode import engine, node
from labrack.testnode.docker import LabError
from labrack.testnode.tailnet import CERTIFICATES
from tests import made_up
from tests.tailnet import binaries

ROOT = Path(__file__).parents[2]


def labrack_command(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, prog_name="labrack", terminal_width=120)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own, and no Docker engine."""
    monkeypatch.setattr(demo, "state_dir", lambda: tmp_path / "demo")
    monkeypatch.setattr(engine, "answers", lambda: "")
    return tmp_path / "demo"


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def up(*_: Any) -> None:
        raise error

    monkeypatch.setattr(demo, "up", up)


def test_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labrack.__version__ == project["version"]
    assert labrack_command("--version").output == f"labrack {project['version']}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["demo", "up"], ["demo", "status"], ["demo", "down"], ["doctor"]])
def test_help(command: list[str]) -> None:
    done = labrack_command(*command, "--help")
    assert done.exit_code == 0
    assert "Usage: labrack" in done.output


def test_a_shell_completes_commands() -> None:
    program = Path(sys.executable).with_name("labrack")
    asked = {"COMP_WORDS": "labrack dri", "COMP_CWORD": "1", "_LABRACK_COMPLETE": "complete_bash"}
    done = subprocess.run([program], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["drift"]


def test_help_loads_nothing_that_takes_long() -> None:
    script = "import sys; from labrack import cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=True)
    heavy = {"ansible", "ansible_runner", "rich.console", "yaml", "jinja2", "ruamel.yaml", "questionary"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(
    "arguments", [["demo", "up", "--system", "plan9"], ["demo", "up", "--no-such-option"], ["no-such-command"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert labrack_command(*arguments).exit_code == 64


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], ("debian13", True, False, "closet")),
        (["--system", "debian12", "--no-script"], ("debian12", False, False, "closet")),
        (["--tailnet"], ("debian13", True, True, "closet")),
        (["--tier", "under_desk"], ("debian13", True, False, "under_desk")),
    ],
)
def test_up_passes_its_options(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], wanted: tuple[str, bool, bool, str]
) -> None:
    called: list[tuple[str, bool, bool, str]] = []
    monkeypatch.setattr(demo, "up", lambda system, script, _progress, *rest: called.append((system, script, *rest)))
    assert labrack_command("demo", "up", *arguments).exit_code == 0
    assert called == [wanted]


def test_failed_playbook_is_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(
        monkeypatch, RunError([Failure("node1", "Install", "no space left\nfree some")], Path("/state/ansible.log"))
    )
    done = labrack_command("demo", "up")
    assert done.exit_code == 1
    assert done.stderr == "node1: Install\n  no space left\n  free some\nThe whole log\n  /state/ansible.log\n"


def test_failed_lab_is_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, LabError("No Docker engine [here]."))
    done = labrack_command("demo", "up")
    assert (done.exit_code, done.stderr) == (1, "Failed\n  No Docker engine [here].\n")


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    done = labrack_command("demo", "up")
    assert done.exit_code == 130
    assert done.stderr.startswith("Interrupted. ") and "labrack demo down" in done.stderr


def test_status_without_a_demo() -> None:
    done = labrack_command("demo", "status")
    assert (done.exit_code, done.stderr) == (1, "Failed\n  The demo is not up. Start it with `labrack demo up`.\n")


def test_status_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "read_status", lambda: made_up.seen("desk"))
    told = json.loads(labrack_command("demo", "status", "--json").stdout)
    assert told == json.loads(json.dumps(made_up.seen("desk").to_json()))
    assert "python3" in labrack_command("demo", "status").stdout


def test_down_without_a_demo(state: Path) -> None:
    state.mkdir()
    (state / "ansible.log").touch()
    done = labrack_command("demo", "down")
    assert done.exit_code == 0 and "nothing to take away" in done.stdout
    assert not state.exists()


def test_down_keeps_the_state_of_a_lab_that_it_cannot_reach(state: Path) -> None:
    state.mkdir()
    (state / "nodes.json").touch()
    done = labrack_command("demo", "down")
    assert done.exit_code == 1 and "no Docker engine answers" in done.stderr
    assert (state / "nodes.json").exists()


def test_demo_has_the_nodes_and_researchers_of_its_inventory() -> None:
    inventory = ROOT / "inventories/demo"
    assert {host for hosts in demo.GROUPS.values() for host in hosts} == set(demo.CARDS)
    assert {story.HEAD, story.WORKER, story.OTHER_WORKER} <= set(demo.CARDS)
    lab = yaml.safe_load((inventory / "group_vars/all/lab.yml").read_text())
    assert {user["name"] for user in lab["lab_users"]} == {"ada", "ben"}
    shared = {one["path"]: int(one.get("mode", "755"), 8) for one in lab["lab_directories"]}
    assert shared == demo.SHARED and story.CHECKPOINT.startswith("/checkpoints/")
    assert [group["gid"] for group in lab["lab_groups"]] == [demo.GROUP_ID]


@pytest.mark.parametrize(
    ("filesystems", "nfs"),
    [("nodev\tsysfs\n\text4\n", False), ("nodev\tnfs4\n", False), ("nodev\tnfs4\nnodev\tnfsd\n", True)],
)
def test_demo_shares_by_nfs_where_the_kernel_has_both_sides_of_it(tmp_path: Path, filesystems: str, nfs: bool) -> None:
    (tmp_path / "filesystems").write_text(filesystems)
    assert demo.kernel_has_nfs(tmp_path / "filesystems") is nfs
    spec = demo._spec("debian13", nfs, tailnet=False)
    assert {member.name for member in spec.nodes if member.volumes} == ({"head"} if nfs else set(demo.CARDS))


def test_demo_that_is_there_keeps_its_way_to_share(state: Path) -> None:
    state.mkdir()
    assert not demo._shares_by_nfs()
    for nfs in (False, True):
        lab = node.Lab(demo.LAB, tuple(node.Node(name, name, "debian13", "", 1, 0) for name in demo.CARDS), state)
        demo._write_inventory(lab, nfs)
        assert demo._shares_by_nfs() is nfs


def test_installed_package_carries_what_the_demo_reads() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in ("ansible.cfg", "inventories/demo", "inventories/closet", "inventories/under_desk"):
        assert (shell.home() / path).exists()
        assert wheel["force-include"][path] == f"labrack/{path}"


def test_state_of_an_installed_package_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert demo.state_dir() == ROOT / ".labrack/demo"
    monkeypatch.setattr(demo, "home", lambda: Path(demo.__file__).resolve().parent)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert demo.state_dir() == Path("/state/labrack/demo")


def test_ssh_configuration(tmp_path: Path) -> None:
    lab = node.Lab("lab", (node.Node("head", "lab-head", "debian13", "10.0.0.2", 2201, 0),), tmp_path / "a b")
    file = tmp_path / "ssh_config"
    file.write_text(ssh.config(lab, "ada", tmp_path / "researcher"))

    def settings(target: str) -> dict[str, str]:
        done = subprocess.run(["ssh", "-G", "-F", str(file), target], check=True, capture_output=True, text=True)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines())

    admin, researcher = settings("root@head"), settings("head")
    assert (admin["user"], admin["identityfile"]) == ("root", str(lab.key))
    assert (researcher["user"], researcher["identityfile"]) == ("ada", str(tmp_path / "researcher"))
    for seen in (admin, researcher):
        assert (seen["hostname"], seen["port"], seen["stricthostkeychecking"]) == ("127.0.0.1", "2201", "true")
        assert seen["userknownhostsfile"] == str(lab.known_hosts)


def test_ssh_goes_to_names_of_the_tailnet_through_the_head(tmp_path: Path) -> None:
    nodes = tuple(node.Node(name, f"lab-{name}", "debian13", "", port, 0) for name, port in (("head", 1), ("node1", 2)))
    file = tmp_path / "ssh_config"
    file.write_text(
        ssh.config(node.Lab("lab", nodes, tmp_path), "ada", tmp_path / "researcher", "tailnet.test", "head")
    )
    done = subprocess.run(["ssh", "-G", "-F", str(file), "root@node1.tailnet.test"], capture_output=True, text=True)
    settings = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert (settings["hostname"], settings["port"], settings["proxyjump"]) == ("node1.tailnet.test", "22", "root@head")
    assert settings["hostkeyalias"] == "[127.0.0.1]:2"
    argv = ssh.Ssh(file).argv("root@node1.tailnet.test", "true", through="root@node2")
    assert argv[argv.index("-J") + 1] == "root@node2"


@pytest.fixture
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something is made")

    monkeypatch.setattr(engine, "ensure_engine", refuse)


@pytest.mark.usefixtures("nothing_is_made")
def test_tailnet_outside_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_tailnet, "home", lambda: Path(demo.__file__).resolve().parent)
    done = labrack_command("demo", "up", "--tailnet")
    assert done.exit_code == 1
    assert done.stderr.startswith("Failed\n  --tailnet works in a checkout of labrack only")


@pytest.mark.usefixtures("nothing_is_made")
def test_tailnet_without_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "INSTALLED", "/nowhere/go")
    monkeypatch.setenv("PATH", "/nowhere")
    done = labrack_command("demo", "up", "--tailnet")
    assert done.exit_code == 1
    assert "can't: no Go 1." in done.stderr and "https://go.dev/dl/" in done.stderr


@pytest.mark.usefixtures("nothing_is_made")
def test_tailnet_under_a_desk() -> None:
    done = labrack_command("demo", "up", "--tailnet", "--tier", "under_desk")
    assert done.exit_code == 1 and "Leave one of them out" in done.stderr


@pytest.mark.usefixtures("nothing_is_made")
def test_tailnet_on_a_system_without_its_packages() -> None:
    done = labrack_command("demo", "up", "--tailnet", "--system", "ubuntu2404")
    assert done.exit_code == 1
    assert "debian12 and debian13, not for ubuntu2404" in done.stderr


def test_tailnet_in_a_lab_that_has_no_tunnels(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = {"container": "lab-head", "system": "debian13", "address": "", "port": 1, "gpus": 0}
    state.mkdir()
    nodes = [{**member, "name": name} for name in demo.CARDS]
    (state / "nodes.json").write_text(json.dumps({"name": "lab", "nodes": nodes}))

    # the mirror runs as well, and is no node
    monkeypatch.setattr(demo, "docker", lambda *_: subprocess.CompletedProcess([], 0, "lab-head\nlab-mirror\n"))
    monkeypatch.setattr(node, "exec", lambda *_, check: subprocess.CompletedProcess([], 1))
    assert demo._existing("debian13", False, demo.CLOSET).nodes
    with pytest.raises(LabError, match="head, node1, node2, is not of the tier under_desk"):
        demo._existing("debian13", False, demo.TIERS["under_desk"])
    with pytest.raises(LabError, match="`labrack demo down`, then `labrack demo up --tailnet`"):
        demo._existing("debian13", True, demo.CLOSET)


def test_tailnet_of_the_inventory_has_the_names_that_the_demo_gives() -> None:
    file = ROOT / "inventories/demo/group_vars/demo_tailnet.yml"
    variables = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert variables["headscale_url"] == f"https://{demo_tailnet.CONTROL}"
    assert variables["headscale_base_domain"] == demo_tailnet.DOMAIN
    assert {Path(variables[f"headscale_tls_{name}"]).parent for name in ("cert", "key")} == {Path(CERTIFICATES)}


def test_story_stops_at_what_does_not_hold() -> None:
    story.expect(True, "all is well", "")
    with pytest.raises(story.StoryError, match=r"Expected: a card\.\nSeen: nothing"):
        story.expect(None, "a card", " \n")


def test_steps_off_a_terminal() -> None:
    shown = io.StringIO()
    progress = Progress(Console(file=shown, width=100))
    with progress.step("Nodes") as step:
        step.say("node1: up")
        step.summary = "all up"
    with pytest.raises(LabError), progress.step("Converge"):
        raise LabError("broken")
    lines = shown.getvalue().splitlines()
    assert lines[:2] == ["Nodes ...", "  node1: up"]
    assert lines[2].startswith("✓ Nodes      all up  0.")
    assert lines[4].startswith("✗ Converge   not finished  0.")
    assert [name for name, _ in progress.seconds] == ["Nodes"]
