# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack status`` on a lab that works, waits and is in part not there; its page in a browser."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labrack import page
from labrack.shell import home
from labrack.testnode import node
from labrack.testnode.docker import docker
from labrack.testnode.engine import apt_install, os_release
from tests import made_up
from tests.nodes.harness import Closet

#: A job's name that would be markup, were it let.
NAME = "<b>[red]x</b> & 'y'"


@dataclass(frozen=True)
class Looks:
    """What the command gave of a lab in which one job runs, one waits and one node is off."""

    document: dict[str, Any]
    screen: str
    said: str
    page: str
    running: str
    waiting: str


def labrack(closet: Closet, state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``labrack status`` of this lab, as one would: any exit status is fine."""
    inventories = [word for path in closet.inventory for word in ("-i", str(path))]
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "COLUMNS": "110"}
    command = [str(home() / ".venv/bin/labrack"), "status", *inventories, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)


@pytest.fixture(scope="module")
def looks(converged: Closet, tmp_path_factory: pytest.TempPathFactory) -> Looks:
    state = tmp_path_factory.mktemp("state")
    file = state / "status.html"
    container = converged.lab.node("node2").container
    comment = "JOB_GRES=gpu:9 Nodes=node1 CPU_IDs=0 Mem=0 GRES=gpu:9(IDX:0-8)"
    running = converged.start(
        "ada", f"--job-name={shlex.quote(NAME)} --nodelist=node1 --gres=gpu:1 --comment='{comment}'"
    )
    waiting = converged.submit("ben", "--job-name=big --nodelist=node1 --gres=gpu:2", "sleep 900")
    converged.root("node1", "touch /run/reboot-required; echo linux-image-amd64 > /run/reboot-required.pkgs")
    docker("stop", "--time=2", container)
    try:
        shown = labrack(converged, state)
        told = labrack(converged, state, "--json", "--html", str(file))
    finally:
        docker("start", container)
        converged.root("node1", "rm -f /run/reboot-required /run/reboot-required.pkgs")
        # it boots into service by itself
        converged.await_node("node2", lambda words: words == "IDLE", "is back")
        converged.settle()
    assert shown.returncode == told.returncode == 0, shown.stderr + told.stderr
    page = file.read_text(encoding="utf-8")
    return Looks(json.loads(told.stdout), shown.stdout, shown.stderr, page, running, waiting)


def by_name(looks: Looks) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in looks.document["nodes"]}


def test_nodes_and_their_cards(looks: Looks) -> None:
    nodes = by_name(looks)
    assert nodes["head"]["roles"] == ["head", "slurm", "accounting", "login"]
    assert nodes["node1"]["state"].startswith("mixed") and nodes["node1"]["driver"]
    assert nodes["node1"]["link"]["speed_mbit"] and nodes["node1"]["load"] is not None
    cards = nodes["node1"]["cards"]
    assert [card["type"] for card in cards] == ["a100_80gb"] * 2
    assert all(card["temperature_c"] == 31 and card["power_limit_w"] == 400 for card in cards)
    (taken,) = [card for card in cards if card["taken"]]
    assert (taken["users"], taken["jobs"]) == (["ada"], [looks.running])


def test_a_node_that_is_off_is_shown_and_no_error(looks: Looks) -> None:
    off = by_name(looks)["node2"]
    assert off["state"] == "no answer" and off["error"] and off["cards"] == []
    assert re.search(r"^node2 +worker +no answer", looks.screen, re.MULTILINE)
    assert [one["level"] for one in looks.document["findings"] if one["node"] == "node2"] == ["bad"]


def test_the_queue(looks: Looks) -> None:
    jobs = {job["id"]: job for job in looks.document["jobs"]}
    assert set(jobs) == {looks.running, looks.waiting}
    ran, waits = jobs[looks.running], jobs[looks.waiting]
    assert (ran["name"], ran["user"], ran["state"], ran["where"]) == (NAME, "ada", "running", "node1")
    assert [*ran["cards"]] == ["node1"] and len(ran["cards"]["node1"]) == 1
    assert (waits["user"], waits["state"], waits["gpus"], waits["cards"]) == ("ben", "pending", 2, {})
    assert NAME in looks.screen and "\x1b" not in looks.screen + looks.said


def test_a_restart_that_is_waited_for(looks: Looks) -> None:
    assert by_name(looks)["node1"]["reboot"] == ["packages ask for it: linux-image-amd64"]
    assert "node1: waits for a restart: packages ask for it: linux-image-amd64" in looks.screen


def test_looking_changes_nothing(closet: Closet, tmp_path: Path) -> None:
    run = closet.play("labrack.infra.status", status_file=str(tmp_path / "status.json"))
    assert {host: run.changed[host] for host in ("node1", "node2")} == {"node1": 0, "node2": 0}
    # one call for each node
    assert [task.action for task in run.modules("node2")] == ["lab_status"]
    told = json.loads((tmp_path / "status.json").read_text())
    assert set(told) == {"head", "node1", "node2"} and told["head"]["status"]["slurm"]["error"] == ""


def test_a_controller_that_is_down_is_part_of_the_answer(closet: Closet, tmp_path: Path) -> None:
    closet.root("head", "systemctl stop slurmctld")
    try:
        done = labrack(closet, tmp_path)
    finally:
        closet.root("head", "systemctl start slurmctld && until scontrol ping | grep -q UP; do sleep 0.2; done")
    assert done.returncode == 0, done.stderr
    assert "Slurm says nothing: " in done.stdout and "a100_80gb" in done.stdout


# --- in a browser ---


@pytest.fixture(scope="module")
def chromium() -> str:
    """Debian's chromium, installed where it isn't there."""
    if shutil.which("chromium") is None:
        if os.geteuid() or os_release().get("ID") != "debian":
            pytest.skip("no chromium, and it is installed for you as root on Debian only")
        apt_install("chromium")
    return "chromium"


def browse(chromium: str, file: Path, profile: Path, *options: str) -> tuple[str, str, list[str]]:
    """Load a page; return its elements afterwards, what it logged, and the addresses that were asked for."""
    net = profile.with_suffix(".net.json")
    done = subprocess.run(
        [
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}", f"--log-net-log={net}"),
            *(*options, "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked = re.findall(r'"url":"([^"]+)"', net.read_text(errors="replace"))
    return done.stdout, "\n".join(console), asked


@pytest.mark.parametrize("which", ["real", "closet", "hostile", "many"])
def test_a_browser_shows_it(which: str, looks: Looks, chromium: str, tmp_path: Path) -> None:
    seen = None if which == "real" else made_up.seen(which)
    file = tmp_path / "status.html"
    file.write_text(looks.page if seen is None else page.render(seen), encoding="utf-8")
    dom, console, asked = browse(chromium, file, tmp_path / "profile")
    assert console == ""
    # the browser itself asks its maker; the page asks nobody
    assert not [url for url in asked if "192.0.2.1" in url or "127.0.0.1" in url]
    names = list(by_name(looks)) if seen is None else [node.name for node in seen.nodes]
    texts = html.unescape(re.sub(r"<[^>]*>", " ", dom))
    assert all(name in texts for name in names)
    assert "<title>taken" not in dom and dom.count("<script") == 0
    # twice, for wide screens and for phones
    assert dom.count('class="dot ') == 2 * len(names)


def test_the_browser_would_tell(chromium: str, tmp_path: Path) -> None:
    """A page with a script and a picture from elsewhere is found out by what the test above looks at."""
    file = tmp_path / "bad.html"
    file.write_text("<title>x</title><script>console.error('told')</script><img src=http://127.0.0.1:9/x>")
    _, console, asked = browse(chromium, file, tmp_path / "profile")
    assert "told" in console and any("127.0.0.1:9" in url for url in asked)


def test_nothing_is_wider_than_a_phone(chromium: str, tmp_path: Path) -> None:
    """The page itself never scrolls sideways, as a frame as wide as a phone tells of it."""
    too_wide = "<div style='width:500px'>x</div>"
    pages = {which: page.render(made_up.seen(which)) for which in ("closet", "hostile")}
    for name, text, wanted in [*((name, text, 0) for name, text in pages.items()), ("wide", too_wide, 110)]:
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        frame = tmp_path / "frame.html"
        frame.write_text(
            f"<iframe id=f src={name}.html style='width:398px;height:9000px;border:0'></iframe>"
            f"<script>onload = () => {{"
            "const seen = f.contentDocument.documentElement;"
            "document.title = 'over by ' + Math.max(0, seen.scrollWidth - seen.clientWidth)}</script>"
        )
        dom, _, _ = browse(chromium, frame, tmp_path / f"profile-{name}", "--allow-file-access-from-files")
        over = re.search(r"<title>over by (\d+)", dom)
        assert over and int(over[1]) == wanted, name


def test_the_lab_is_as_it_was(closet: Closet) -> None:
    assert node.exec(closet.lab.node("node1"), ["ls", "/run/reboot-required"], check=False).returncode
    assert {closet.node(name)["State"] for name in ("node1", "node2")} == {"IDLE"}
