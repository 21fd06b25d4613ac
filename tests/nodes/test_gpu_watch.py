# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A machine with two cards tells its people of them: what is free, what is hot, and what the reaper has to say.

The reaper's server is a stand-in here, a module ``sky`` that gives the recorded answer of the real one; its units,
rights and messages are real. tests/nodes/test_skypilot_policy.py has it beside a real server.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from labrack.testnode import node
from labrack.testnode.docker import docker
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import A100, KEEP, LAB, SYSTEM
from tests.nodes.harness import INVENTORIES, ROOT, Closet, Run, bring_up, until

NAME = f"{LAB}-watch"
PLAYBOOK = "labrack.infra.under_desk"
TAGS = ("--tags", "lab_users,gpu_watch")
CANARY = "canary-hook-8Zq"
#: What the role could touch, with mode and owner.
TREE = (
    "find /etc /usr/local /opt -xdev -not -path '*__pycache__*' -not -path '/etc/*-' -printf '%p %m %u:%g %l\\n'; "
    "ls /var/lib/labrack /run/labrack 2>/dev/null; true"
)
REAPER = """
- hosts: desk
  gather_facts: false
  tasks:
    - name: Run the reaper's part of the role
      ansible.builtin.include_role:
        name: labrack.infra.skypilot
        tasks_from: reaper.yml
"""
#: A SDK that knows what was recorded, and writes down what it is told.
SKY = """
import enum, json
from types import SimpleNamespace

class StatusRefreshMode(enum.Enum):
    AUTO = "AUTO"

def status(refresh, all_users):
    return [SimpleNamespace(**one) for one in json.load(open("/opt/skypilot/current/lib/status.json"))]

def get(request):
    return request

def autostop(name, minutes, down):
    open("/var/lib/skypilot/did", "a").write(f"autostop {name} {minutes} {down}\\n")

def down(name):
    open("/var/lib/skypilot/did", "a").write(f"down {name}\\n")
"""
COMMON = """
from types import SimpleNamespace

def make_authenticated_request(method, path):
    return SimpleNamespace(raise_for_status=lambda: None, json=lambda: [{"id": "aaaa1111"}])
"""


@dataclass(frozen=True)
class Story:
    """The machine before the first run, and what the first runs said."""

    desk: Closet
    tree: str
    predicted: Run
    made: Run
    again: Run
    predicted_again: Run


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    state = ROOT / ".cache/labs" / NAME
    node.down(NAME, state, print)
    shutil.rmtree(state, ignore_errors=True)
    desk = bring_up(NAME, (NodeSpec("desk", SYSTEM, (A100, A100)),), INVENTORIES / "gpu_watch", state)
    desk.root("desk", "mkdir -p /var/lib/prometheus/node-exporter; rm -f /var/lib/prometheus/node-exporter/*")
    desk.play(PLAYBOOK, "--tags", "lab_users")
    tree = desk.root("desk", TREE)
    hook = {"gpu_watch_webhook": f"http://127.0.0.1:9/{CANARY}", "gpu_watch_sustain": 2}
    # secrets go by a file, as the process list is no place for them
    (state / "variables.json").write_text(json.dumps(hook), encoding="utf-8")
    arguments = (*TAGS, "-e", f"@{state}/variables.json")
    predicted = desk.play(PLAYBOOK, *arguments, "--check", "--diff")
    made = desk.play(PLAYBOOK, *arguments, "--diff", "-vvv")
    again = desk.play(PLAYBOOK, *arguments)
    yield Story(desk, tree, predicted, made, again, desk.play(PLAYBOOK, *arguments, "--check", "--diff"))
    if not KEEP:
        node.down(NAME, state, print)
        shutil.rmtree(state, ignore_errors=True)


@pytest.fixture
def desk(story: Story) -> Closet:
    return story.desk


def cards(desk: Closet, index: int, **values: Any) -> None:
    node.set_gpus(desk.lab.node("desk"), lambda document: document["gpus"][index].update(values))


def look(desk: Closet, count: int = 1) -> None:
    """Have the timer's service look, as it does each minute; its words are in the journal."""
    # the timer itself might add a look of its own, and systemd would take so many starts, of both, for a loop
    again = "systemctl reset-failed labrack-gpu-watch.service labrack-gpu-watch.timer"
    loop = f"for i in $(seq {count}); do {again}; systemctl start labrack-gpu-watch || exit 1; done"
    desk.root("desk", f"systemctl stop labrack-gpu-watch.timer; {loop}; systemctl start labrack-gpu-watch.timer")


def login(desk: Closet, user: str) -> str:
    """What a user sees who logs in at a terminal and out again."""
    argv = ["ssh", "-F", str(desk.ssh.config), "-o", "BatchMode=yes", "-tt", f"{user}@desk"]
    return subprocess.run(argv, input="exit\n", capture_output=True, text=True, timeout=30, check=False).stdout


def subjects(run: Run) -> list[str]:
    return run.task("desk", "Converge the watch over the GPUs").subjects


def told(desk: Closet) -> int:
    """How often the log says that a card is hot."""
    log = desk.journal("desk", "labrack-gpu-watch")
    return log.count("GPU 1 (A100-SXM4-80GB) has ")


def test_check_predicts_and_the_second_run_changes_nothing(story: Story) -> None:
    assert subjects(story.predicted) == subjects(story.made)
    assert {"file /usr/local/bin/labrack-gpus", "timer labrack-gpu-watch"} <= set(subjects(story.made))
    assert story.again.changed["desk"] == story.predicted_again.changed["desk"] == 0
    texts = [path.read_text(errors="replace") for path in story.made.artifacts.rglob("*") if path.is_file()]
    assert not [text for text in [story.made.output, *texts] if CANARY in text]
    assert story.desk.root("desk", "stat -c '%a %U' /etc/labrack/gpu_watch_webhook") == "600 root\n"


def test_the_timer_looks_by_itself(desk: Closet) -> None:
    def looked() -> str:
        return desk.root("desk", "cat /run/labrack/gpus/motd", check=False)

    assert until("a look", looked, lambda seen: "GPUs: 2 of 2 free" in seen, 90.0)
    assert desk.root("desk", "systemctl is-failed labrack-gpu-watch", check=False).strip() == "inactive"


def test_everybody_sees_who_has_what(desk: Closet) -> None:
    desk.root("desk", "su ada -c 'sleep 600 >/dev/null 2>&1 & echo $!' >/tmp/pid")
    process = {"pid": int(desk.root("desk", "cat /tmp/pid")), "name": "/usr/bin/python3", "memory_mib": 4096}
    cards(desk, 0, processes=[process], utilization_percent=97)
    look(desk)
    shown = desk.user("ben@desk", "labrack-gpus").stdout
    assert "desk at " in shown and ": 1 of 2 GPUs free\n" in shown and "ada (python3)\n" in shown
    document = json.loads(desk.user("ben@desk", "labrack-gpus --json").stdout)
    assert document["free"] == 1 and document["holders"]["0"][0]["user"] == "ada"
    assert "GPUs: 1 of 2 free; ada has 1 (labrack-gpus tells more)" in login(desk, "ben")
    # who is no person sees nothing of it
    assert desk.user("ben@desk", "bash -lc true").stdout == ""
    cards(desk, 0, processes=[], utilization_percent=0)
    desk.root("desk", f"kill {process['pid']}")
    look(desk)


def test_without_the_timer_it_looks_itself(desk: Closet) -> None:
    desk.root("desk", "mv /run/labrack/gpus/view.json /tmp/view.json")
    assert ": 2 of 2 GPUs free\n" in desk.user("ben@desk", "labrack-gpus").stdout
    desk.root("desk", "mv /tmp/view.json /run/labrack/gpus/view.json")


def test_a_login_waits_for_nothing(desk: Closet) -> None:
    # no card is asked: nvidia-smi could hang
    desk.root("desk", "mv /usr/bin/nvidia-smi /usr/bin/nvidia-smi.away")
    assert "GPUs: 2 of 2 free" in login(desk, "ada")
    desk.root("desk", "mv /usr/bin/nvidia-smi.away /usr/bin/nvidia-smi; touch -d '-1 hour' /run/labrack/gpus/motd")
    assert "GPUs:" not in login(desk, "ada"), "of an hour ago"
    look(desk)


def test_a_hot_card_is_told_once(desk: Closet) -> None:
    before = told(desk)
    cards(desk, 1, temperature_c=91, throttle=["hw_thermal_slowdown"])
    look(desk)
    assert "°C" not in login(desk, "ada"), "a minute is no episode"
    look(desk, 4)
    assert told(desk) == before + 1
    seen = login(desk, "ada")
    assert "labrack: GPU 1 (A100-SXM4-80GB) has 91 °C, and slows down at 95 °C. Mend: keep a metre clear" in seen
    assert "! GPU 1" in desk.user("ada@desk", "labrack-gpus").stdout
    metrics = desk.root("desk", "cat /var/lib/prometheus/node-exporter/labrack_gpu.prom")
    assert 'labrack_gpu_temperature_celsius{gpu="1",' in metrics and "labrack_gpu_warnings 1\n" in metrics
    log = desk.journal("desk", "labrack-gpu-watch")
    assert "the webhook was not told: URLError" in log and CANARY not in log
    # another run of the playbook forgets nothing
    desk.play(PLAYBOOK, *TAGS, gpu_watch_sustain=2)
    look(desk, 3)
    assert told(desk) == before + 1
    cards(desk, 1, temperature_c=40, throttle=[])
    desk.root("desk", 'sed -i \'s/"last": [0-9.]*/"last": 1000000000/\' /var/lib/labrack/gpu-watch/episodes.json')
    look(desk)
    assert "°C" not in login(desk, "ada") and told(desk) == before + 1


def test_what_was_is_kept(desk: Closet) -> None:
    text = desk.user("ben@desk", "labrack-gpus --history 1").stdout
    assert "GPU 1: up to 91 °C and 22 W" in text and "slowed down in " in text
    assert desk.root("desk", "ls /var/lib/labrack/gpu-watch | grep -c ring").strip() == "2"


def test_no_driver_and_no_cards(desk: Closet) -> None:
    desk.root("desk", "mv /usr/bin/nvidia-smi /usr/bin/nvidia-smi.away")
    try:
        look(desk)
        assert "no NVIDIA driver here" in desk.user("ben@desk", "labrack-gpus").stdout
        assert "GPUs:" not in login(desk, "ben")
    finally:
        desk.root("desk", "mv /usr/bin/nvidia-smi.away /usr/bin/nvidia-smi")
        look(desk)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"gpu_watch_hot": 20}, "gpu_watch_hot = 20: not from 40 to 120"),
        ({"gpu_watch_mail": "a b"}, "gpu_watch_mail = a b: not an address"),
        ({"gpu_watch_webhook": "ftp://x"}, "gpu_watch_webhook = (not shown): not a http or https address"),
    ],
)
def test_wrong_wishes_change_nothing(desk: Closet, variables: dict[str, Any], words: str) -> None:
    run = desk.play(PLAYBOOK, *TAGS, ok=False, **variables)
    assert run.rc != 0 and words in run.messages


# --- the reaper ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reaper(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Plays the reaper's part of the role; the server's user and environment are there, as the role makes them."""
    desk = story.desk
    folder = tmp_path_factory.mktemp("sky")
    (folder / "sky/server").mkdir(parents=True)
    (folder / "sky/__init__.py").write_text(SKY)
    (folder / "sky/server/__init__.py").write_text("")
    (folder / "sky/server/common.py").write_text(COMMON)
    shutil.copytree(ROOT / "roles/skypilot/files/labrack_skypilot/src/labrack_skypilot", folder / "labrack_skypilot")
    shutil.copy(ROOT / "tests/unit/fixtures/skypilot/status.json", folder / "status.json")
    playbook = folder / "reaper.yml"
    playbook.write_text(REAPER)

    def play(*arguments: str, ok: bool = True, **variables: Any) -> Run:
        return desk.play(str(playbook), *arguments, ok=ok, **variables)

    refused = play(ok=False)
    assert "the user skypilot is not there. Mend: run the role skypilot whole" in refused.messages
    desk.root("desk", "useradd --system --create-home --home-dir /var/lib/skypilot --shell /usr/sbin/nologin skypilot")
    desk.root("desk", "mkdir -p /opt/skypilot/current/bin && chmod 750 /var/lib/skypilot")
    container = desk.lab.node("desk").container
    docker("cp", "--quiet", f"{folder}/.", f"{container}:/opt/skypilot/current/lib")
    python = '#!/bin/sh\\nPYTHONPATH=/opt/skypilot/current/lib exec /usr/bin/python3 "$@"\\n'
    desk.root("desk", f"printf '{python}' >/opt/skypilot/current/bin/python; chmod -R a+rX /opt/skypilot")
    desk.root("desk", "chmod 755 /opt/skypilot/current/bin/python")
    yield play
    desk.root("desk", "userdel --remove skypilot 2>&1; rm -rf /opt/skypilot")


def reap(desk: Closet) -> str:
    """Have the reaper look, and return what it says."""
    unit = "labrack-skypilot-reaper"
    desk.root("desk", f"systemctl start {unit}", check=False)
    return desk.journal("desk", unit)


def test_the_reaper_only_writes_what_it_would_do(desk: Closet, reaper: Any) -> None:
    wishes = {"skypilot_reaper_no_autostop_hours": 0.0, "skypilot_reaper_grace_hours": 0.25}
    predicted = reaper("--check", **wishes)
    name = "Converge what looks for forgotten GPUs"
    made = reaper(**wishes)
    assert predicted.task("desk", name).subjects == made.task("desk", name).subjects != []
    assert reaper(**wishes).changed["desk"] == 0
    assert "would warn: train: it has no autostop" in reap(desk)
    assert desk.root("desk", "ls /run/labrack/messages; cat /var/lib/skypilot/did 2>/dev/null", check=False) == ""


def test_the_reaper_warns_at_login_and_then_ends(desk: Closet, reaper: Any) -> None:
    wishes = {"skypilot_reaper_no_autostop_hours": 0.0, "skypilot_reaper_grace_hours": 0.25}
    reaper(skypilot_reaper_dry_run=False, **wishes)
    assert "warn ada: train: it has no autostop" in reap(desk)
    assert "labrack: train: it has no autostop" in login(desk, "ada") and "labrack:" not in login(desk, "ben")
    assert (
        desk.root("desk", "stat -c '%a %U' /run/labrack/messages /run/labrack/messages/ada")
        == "755 skypilot\n644 skypilot\n"
    )
    assert desk.root("desk", "stat -c %a /var/lib/skypilot/reaper.json") == "600\n"
    assert "autostop train" not in desk.root("desk", "cat /var/lib/skypilot/did 2>/dev/null", check=False)
    # a quarter of an hour later
    older = (
        "import json; p='/var/lib/skypilot/reaper.json'; d=json.load(open(p)); "
        "[w.update(since=9e3, warned=w['warned'] - 9e3) for w in d['watches'].values() if w['warned']]; "
        "json.dump(d, open(p, 'w'))"
    )
    desk.root("desk", f'python3 -c "{older}"')
    assert "end ada: train ends by itself after 60 idle minutes" in reap(desk)
    assert desk.root("desk", "cat /var/lib/skypilot/did") == "autostop train 60 True\n"
    assert "labrack: train was given an autostop" in login(desk, "ada")


def test_the_reaper_leaves_nothing(desk: Closet, reaper: Any) -> None:
    assert reaper(skypilot_reaper=False).changed["desk"] == 1
    left = desk.root(
        "desk",
        "ls -d /etc/labrack/skypilot* /etc/systemd/system/labrack-skypilot* /run/labrack/messages "
        "/var/lib/skypilot/reap* /etc/profile.d/labrack-messages.sh 2>/dev/null",
        check=False,
    )
    assert left == ""
    assert reaper(skypilot_reaper=False).changed["desk"] == 0


# --- and all of it away ----------------------------------------------------------------------------------------------


def test_undo_leaves_the_machine_as_it_was(story: Story) -> None:
    desk = story.desk
    gone = {"gpu_watch_state": "absent"}
    predicted = desk.play(PLAYBOOK, "--tags", "gpu_watch", "--check", **gone)
    undone = desk.play(PLAYBOOK, "--tags", "gpu_watch", **gone)
    assert subjects(predicted) == subjects(undone)
    assert desk.play(PLAYBOOK, "--tags", "gpu_watch", **gone).changed["desk"] == 0
    after = desk.root("desk", TREE)
    assert [line for line in after.splitlines() if "gpu" in line.lower() and line not in story.tree] == []
    assert (
        desk.root("desk", "ls /var/lib/prometheus/node-exporter; systemctl list-timers --all | grep gpu", check=False)
        == ""
    )
