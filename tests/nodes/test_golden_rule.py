# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The golden rule on one machine: pip's words, uv for everybody, caches, word to admins, verify.yml, undo.

uv and a small package come from PyPI, and the node serves them to itself as an air-gapped site would.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from labrack.testnode import node
from labrack.testnode.docker import docker
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import KEEP, LAB, SYSTEM, snapshot
from tests.nodes.harness import INVENTORIES, ROOT, Closet, Run, bring_up

NAME = f"{LAB}-golden"
PLAYBOOK = "labrack.infra.under_desk"
TAGS = ("--tags", "lab_users,baseline")
INDEX = "http://127.0.0.1:8000"
OURS = "This Python belongs to the machine, and everybody"
MARKER = "/usr/lib/python3.*/EXTERNALLY-MANAGED"
DEFAULTS = yaml.safe_load((ROOT / "roles/baseline/defaults/main.yml").read_text(encoding="utf-8"))
#: Everything of the system that the role could touch, with mode and owner; caches and root's shell history left out.
TREE = (
    "find /etc /usr/lib/python3* /usr/local /root -xdev -not -name '*.pyc' -not -path '*__pycache__*' "
    "-not -path '/root/.[abc]*' -not -path '/etc/*-' -printf '%p %m %u:%g %l\\n' | sort"
)


def fetch(folder: Path, project: str, *options: str) -> None:
    """Have a project's wheel from PyPI in the folder of that name."""
    target = folder / project.partition("=")[0]
    if not list(target.glob("*.whl")):
        (python, *_) = (ROOT / ".cache").glob("uv-*/bin/python")
        pip = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *options]
        subprocess.run([*pip, "--dest", str(target), project], check=True)


@dataclass(frozen=True)
class Story:
    """The machine before the first run, and what the first runs said."""

    desk: Closet
    tree: str
    packages: str
    predicted: Run
    made: Run
    again: Run
    predicted_again: Run


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    wheels = ROOT / ".cache/wheels" / DEFAULTS["baseline_uv_version"]
    fetch(wheels, f"uv=={DEFAULTS['baseline_uv_version']}")
    fetch(wheels, "six==1.17.0")
    state = ROOT / ".cache/labs" / NAME
    node.down(NAME, state, print)
    shutil.rmtree(state, ignore_errors=True)
    desk = bring_up(NAME, (NodeSpec("desk", SYSTEM),), INVENTORIES / "golden", state)
    container = desk.lab.node("desk").container
    docker("cp", "--quiet", f"{wheels}/.", f"{container}:/srv/index")
    docker("exec", "--detach", container, "python3", "-m", "http.server", "--directory=/srv/index", "--bind=127.0.0.1")
    desk.root("desk", "apt-get -qq update && apt-get -qq install --no-install-recommends python3-pip 2>&1")
    desk.play(PLAYBOOK, "--tags", "lab_users")
    packages, _etc = snapshot(desk, "desk")
    tree = desk.root("desk", TREE)
    predicted = desk.play(PLAYBOOK, *TAGS, "--check", "--diff")
    made = desk.play(PLAYBOOK, *TAGS, "--diff")
    again = desk.play(PLAYBOOK, *TAGS)
    yield Story(desk, tree, packages, predicted, made, again, desk.play(PLAYBOOK, *TAGS, "--check", "--diff"))
    if not KEEP:
        node.down(NAME, state, print)
        shutil.rmtree(state, ignore_errors=True)


@pytest.fixture
def desk(story: Story) -> Closet:
    return story.desk


def login(desk: Closet, user: str) -> str:
    """What a user sees who logs in at a terminal and out again."""
    argv = ["ssh", "-F", str(desk.ssh.config), "-o", "BatchMode=yes", "-tt", f"{user}@desk"]
    return subprocess.run(argv, input="exit\n", capture_output=True, text=True, timeout=30, check=False).stdout


def shell(desk: Closet, user: str, command: str) -> tuple[int, str]:
    """Run a command in a user's login shell, and return its exit status and all it printed."""
    done = desk.user(f"{user}@desk", f"bash -lc '{command}' 2>&1")
    return done.returncode, done.stdout


def converge_task(run: Run) -> list[str]:
    return run.task("desk", "Converge hosts entries, directories, time service and the system's Python").subjects


def test_check_predicts_and_the_second_run_changes_nothing(story: Story) -> None:
    assert converge_task(story.predicted) == converge_task(story.made)
    assert {"uv", "file /etc/profile.d/labrack.sh", "directory /data/cache/uv"} <= set(converge_task(story.made))
    assert story.made.changed["desk"] == 1
    assert story.again.changed["desk"] == story.predicted_again.changed["desk"] == 0


@pytest.mark.parametrize(
    "command",
    ["pip install six", "python3 -m pip install --user six", "uv pip install --system six"],
)
def test_who_installs_into_the_systems_python_is_told_what_to_do(desk: Closet, command: str) -> None:
    for user in ("ada", "root"):
        rc, said = shell(desk, user, f"{command} --index-url {INDEX}")
        assert rc != 0
        assert OURS in said and "uv pip install PACKAGE" in said
    assert not desk.root("desk", "find /usr /home /root -name 'six-*'")


def test_an_upgrade_of_python_leaves_our_words(desk: Closet) -> None:
    before = desk.root("desk", f"cat {MARKER}")
    assert OURS in before
    package = desk.root("desk", f"dpkg-query --search {MARKER} | grep -v diversion").partition(":")[0]
    desk.root("desk", f"apt-get -qq install --reinstall {package} 2>&1")
    assert desk.root("desk", f"cat {MARKER}") == before
    assert "apt install" in desk.root("desk", f"cat {MARKER}.labrack-kept")
    assert desk.play(PLAYBOOK, *TAGS).changed["desk"] == 0


def test_two_users_have_a_cache_each_that_the_other_can_not_touch(desk: Closet) -> None:
    project = f'cd && uv venv -q p && uv pip install -p p --index-url {INDEX} six && p/bin/python -c "import six"'
    for user, umask in (("ada", "022"), ("ben", "077"), ("ada", "077"), ("ben", "022")):
        rc, said = shell(desk, user, f"umask {umask}; rm -rf ~/p; {project}; echo in $UV_CACHE_DIR")
        assert rc == 0 and "+ six==1.17.0" in said and f"in /data/cache/uv/{user}\n" in said
        assert "arning" not in said
    assert shell(desk, "ben", "echo x >>$(find /data/cache/uv/ada -name six.py)")[0] != 0
    assert shell(desk, "ben", "mv /data/cache/uv/ada /data/cache/uv/x")[0] != 0
    assert shell(desk, "ben", "mkdir -m 777 /data/cache/uv/eva")[0] == 0
    rc, said = shell(desk, "eva", "env; uv cache dir")
    assert rc == 0 and "UV_CACHE_DIR" not in said and "/home/eva/.cache/uv\n" in said
    shell(desk, "ben", "rmdir /data/cache/uv/eva")


def test_homes_on_another_disk_are_copied_to_without_a_warning(desk: Closet) -> None:
    desk.root("desk", "mkdir -p /data && mount -t tmpfs -o mode=2775 tmpfs /data && chgrp team /data")
    try:
        desk.play(PLAYBOOK, *TAGS)
        project = f"cd && rm -rf p && uv venv -q p && uv pip install -p p --index-url {INDEX} six"
        rc, said = shell(desk, "ada", project)
        assert rc == 0 and "+ six" in said and "arning" not in said
        assert "arning" in shell(desk, "ada", f"unset UV_LINK_MODE; {project}")[1]
    finally:
        desk.root("desk", "umount /data")
        desk.play(PLAYBOOK, *TAGS)


def test_wheel_with_another_sum_is_not_installed(desk: Closet) -> None:
    before = desk.root("desk", "mv /usr/local/bin/uvx /root/uvx; ls -la /usr/local/bin")
    sums = {"x86_64": "0" * 64, "aarch64": "0" * 64}
    try:
        run = desk.play(PLAYBOOK, *TAGS, ok=False, baseline_uv_sha256=sums)
        assert run.rc != 0 and "baseline_uv_sha256" in run.messages and "Mend:" in run.messages
        run = desk.play(PLAYBOOK, *TAGS, ok=False, baseline_uv_url="http://127.0.0.1:9")
        assert run.rc != 0 and "baseline_uv_url: http://127.0.0.1:9/uv/" in run.messages
        assert desk.root("desk", "ls -la /usr/local/bin") == before
    finally:
        desk.root("desk", "mv /root/uvx /usr/local/bin/uvx")


def verify(desk: Closet, file: Path, ok: bool = True, **variables: object) -> dict[str, list[dict[str, str]]]:
    desk.play("labrack.infra.verify", ok=ok, verify_file=str(file), **variables)
    return json.loads(file.read_text())


def test_what_breaks_the_rule_is_told_to_admins(desk: Closet, tmp_path: Path) -> None:
    assert "labrack:" not in login(desk, "eva")
    pip = f"pip install --quiet --break-system-packages --root-user-action=ignore --index-url {INDEX} six"
    desk.root("desk", f"mkdir -p /opt/miniconda3/conda-meta; PIP_ROOT_USER_ACTION=ignore {pip}")
    run = desk.play(PLAYBOOK, *TAGS)
    assert converge_task(run) == ["file /var/lib/labrack/golden-rule"]
    words = "labrack: 2 things on this host break the golden rule: packages in the system Python, conda for everybody."
    assert words in login(desk, "eva") and words in login(desk, "root")
    assert "labrack:" not in login(desk, "ada")
    assert "labrack:" not in shell(desk, "eva", "true")[1]

    document = verify(desk, tmp_path / "verify.json")
    assert document["ok"] is True and document["failures"] == []
    assert [warning["seen"] for warning in document["warnings"]] == ["six", "/opt/miniconda3"]
    strict = verify(desk, tmp_path / "strict.json", ok=False, baseline_strict=True)
    assert strict["ok"] is False and strict["failures"][0]["seen"] == "six"
    refused = desk.play(PLAYBOOK, *TAGS, ok=False, baseline_strict=True, baseline_uv_version="")
    assert refused.rc != 0 and "baseline_strict" in refused.messages and "/opt/miniconda3" in refused.messages
    assert "uvx" in desk.root("desk", "ls /usr/local/bin"), "it fails before anything is changed"

    (mend,) = [warning["mend"] for warning in document["warnings"] if warning["seen"] == "six"]
    desk.root("desk", f"{mend.rpartition(': ')[2]} 2>&1; rm -r /opt/miniconda3")
    assert converge_task(desk.play(PLAYBOOK, *TAGS)) == ["file /var/lib/labrack/golden-rule"]
    assert "labrack:" not in login(desk, "eva")
    assert [check["name"] for check in verify(desk, tmp_path / "well.json")["checks"]] == ["golden rule"]


def test_verify_needs_no_slurm_and_warns_of_no_group(desk: Closet, tmp_path: Path) -> None:
    run = desk.play("labrack.infra.verify")
    assert "WARNING" not in run.output
    document = json.loads(run.task("desk", "Show the document").result["msg"])
    assert document["ok"] is True and document["checks"][0]["seen"] == "kept"


def test_a_host_that_does_not_answer_is_a_failure_in_the_document(desk: Closet, tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    run = desk.play("labrack.infra.verify", ok=False, verify_file=str(file), ansible_port=9)
    assert run.rc != 0
    (failure,) = json.loads(file.read_text())["failures"]
    assert (failure["node"], failure["name"]) == ("desk", "answer") and failure["mend"]


def test_undo_leaves_the_machine_as_it_was(story: Story) -> None:
    desk = story.desk
    predicted = desk.play(PLAYBOOK, "--tags", "baseline", "--check", baseline_state="absent")
    undone = desk.play(PLAYBOOK, "--tags", "baseline", baseline_state="absent")
    assert converge_task(predicted) == converge_task(undone)
    assert desk.root("desk", TREE) == story.tree
    assert snapshot(desk, "desk")[0] == story.packages
    assert "apt install" in desk.root("desk", f"cat {MARKER}")
    assert "EXTERNALLY-MANAGED" not in desk.root("desk", "dpkg-divert --list")
    assert desk.root("desk", "ls /data/cache/uv").split() == ["ada", "ben", "eva"], "what users have is theirs"
    assert desk.play(PLAYBOOK, "--tags", "baseline", baseline_state="absent").changed["desk"] == 0
