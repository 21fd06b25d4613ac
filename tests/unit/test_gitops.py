# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack gitops run`` with real remotes and real signatures; what is applied is a world of a few files."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from labrack import gitops, gitops_config, lease, planning
from labrack.gitops import Report
from labrack.progress import Progress
from tests.unit.gitops_lab import Remote
from tests.unit.gitops_world import BROKEN, CANARY, World
from tests.unit.listener import listener

SATURDAY, MONDAY = (datetime(2026, 6, 6, 3).timestamp(), datetime(2026, 6, 1, 12).timestamp())


@dataclass
class Loop:
    """A remote, a world, and the loop that keeps the one as the other says."""

    folder: Path
    remote: Remote
    world: World
    settings: list[str] = field(default_factory=list)
    now: float = MONDAY
    shown: str = ""

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def config(self) -> Path:
        file = self.folder / "gitops.toml"
        fixed = [
            f'repository = "{self.remote.bare}"',
            f'allowed_signers = "{self.folder / "signers"}"',
            f'state = "{self.state}"',
            f'metrics = "{self.folder / "labrack.prom"}"',
        ]
        file.write_text("\n".join([*fixed, *self.settings]) + "\n")
        return file

    def push(self, setting: str = "one", signed: bool = True, **more: Any) -> str:
        return self.remote.commit(self.world.inventory(setting, **more), self.remote.ada if signed else None)

    def run(self, later: float = 900.0, accept: str = "") -> Report:
        self.now += later
        shown = io.StringIO()
        config = gitops_config.load(self.config)
        report = gitops.run(config, Progress(Console(file=shown, width=200)), accept, self.now)
        self.shown = shown.getvalue()
        return report

    def metric(self, name: str) -> float:
        lines = dict(
            line.split(" ") for line in (self.folder / "labrack.prom").read_text().splitlines() if line[0] != "#"
        )
        return float(lines[f"labrack_gitops_{name}"])

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "history.jsonl").read_text().splitlines()]

    @property
    def in_force(self) -> str:
        return (self.state / "applied/inventory/group_vars/all.yml").read_text()


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    world = World(tmp_path / "world")
    world.folder.mkdir()
    monkeypatch.setattr(planning, "make", world.make)
    monkeypatch.setattr(planning, "apply", world.apply)
    monkeypatch.setattr(lease, "held", world.held)
    remote = Remote.make(tmp_path / "remote")
    remote.signers(tmp_path / "signers")
    return Loop(tmp_path, remote, world)


def test_a_signed_commit_is_applied_and_then_kept(loop: Loop) -> None:
    commit = loop.push("one")
    report = loop.run()
    assert (report.result, report.rc, report.commit, report.signers) == ("applied", 0, commit, ["ada@example.org"])
    assert loop.world.texts() == {"head": "one", "node1": "one"}
    again = loop.run()
    assert (again.result, again.changed, again.drift) == ("in_sync", 0, 0) and loop.world.applies == 1
    (loop.world.folder / "node1").write_text("tampered with")
    mended = loop.run()
    assert (mended.result, mended.drift) == ("applied", 1) and loop.metric("drift_items") == 1
    assert loop.world.texts()["node1"] == "one"
    assert [line["result"] for line in loop.history()] == ["applied", "in_sync", "applied"]
    assert json.loads((loop.state / "last.json").read_text()) == {
        "time": mended.time,
        "commit": commit,
        "result": "applied",
        "message": mended.message,
    }


def test_metrics_are_whole_and_readable(loop: Loop) -> None:
    commit = loop.push()
    loop.run()
    file = loop.folder / "labrack.prom"
    assert file.stat().st_mode & 0o777 == 0o644
    text = file.read_text()
    assert f'labrack_gitops_commit_info{{commit="{commit}"}} 1\n' in text and text.endswith("\n")
    assert loop.metric("last_run_timestamp_seconds") == loop.metric("last_success_timestamp_seconds") == loop.now
    succeeded = loop.now
    loop.push("two", signed=False)
    loop.run()
    assert loop.metric("last_rc") == 77 and loop.metric("failures") == 1
    assert loop.metric("last_success_timestamp_seconds") == succeeded < loop.metric("last_run_timestamp_seconds")


@pytest.mark.parametrize("who", ["nobody", "stranger"])
def test_who_is_not_listed_changes_nothing(loop: Loop, who: str) -> None:
    first = loop.push("one")
    loop.run()
    author = None if who == "nobody" else loop.remote.stranger
    loop.remote.commit(loop.world.inventory("evil"), author)
    report = loop.run()
    assert (report.result, report.rc) == ("denied", 77)
    assert loop.world.texts() == {"head": "one", "node1": "one"} and '"one"' in loop.in_force
    # the next commit is signed, and the one below it still is not
    loop.push("two")
    assert loop.run().rc == 77 and loop.world.texts()["head"] == "one"
    assert gitops.read_state(loop.state).commit == first


def test_a_rewritten_history_is_denied_until_it_is_accepted(loop: Loop) -> None:
    first = loop.push("one")
    second = loop.push("two")
    loop.run()
    loop.remote.git("reset", "--quiet", "--hard", first)
    loop.remote.git("push", "--quiet", "--force", "origin", "main")
    report = loop.run()
    assert report.rc == 77 and "was rewritten" in report.message and second[:12] in report.message
    assert loop.world.texts()["head"] == "two"
    assert loop.run(accept=second).rc == 1
    assert loop.run(accept=first).result == "applied" and loop.world.texts()["head"] == "one"
    assert loop.run().result == "in_sync"


def test_an_accepted_commit_has_to_be_signed(loop: Loop) -> None:
    loop.push("one")
    loop.run()
    loop.remote.git("checkout", "--quiet", "--orphan", "other")
    new = loop.remote.commit({"x": "y"}, None, push=False)
    loop.remote.git("push", "--quiet", "--force", "origin", "HEAD:main")
    assert loop.run(accept=new).rc == 77


def test_a_history_without_a_refused_commit_is_rewritten_too(loop: Loop) -> None:
    """What was seen once can't be taken back, so nobody can choose which of the signed states is in force."""
    loop.push("one")
    loop.run()
    loop.push("two", **BROKEN)
    assert loop.run().result == "broken"
    loop.remote.git("reset", "--quiet", "--hard", "HEAD~1")
    loop.remote.git("push", "--quiet", "--force", "origin", "main")
    assert loop.run().rc == 77


@pytest.mark.parametrize("how", ["doctor", "yaml", "gone"])
def test_a_broken_commit_is_refused_and_the_old_state_stays(loop: Loop, how: str) -> None:
    first = loop.push("one")
    loop.run()
    if how == "doctor":
        loop.push("two", **BROKEN)
    elif how == "yaml":
        loop.remote.commit({"inventory/group_vars/all.yml": "setting: [two\n"}, loop.remote.ada)
    else:
        loop.remote.git("rm", "--quiet", "-r", "inventory")
        loop.remote.commit({"README": "nothing"}, loop.remote.ada)
    report = loop.run()
    assert (report.result, report.rc) == ("broken", 1)
    assert f"{first[:12]} stays in force" in report.message and str(loop.state / "candidate") not in report.message
    assert '"one"' in loop.in_force and gitops.read_state(loop.state).commit == first
    if how == "doctor":
        assert "inventory/group_vars/all.yml:3  lab_users[1].uid = 2001" in report.message
    loop.remote.commit(loop.world.inventory("three"), loop.remote.ada)
    assert loop.run().result == "applied" and loop.world.texts()["head"] == "three"


def test_a_list_of_signers_in_the_repository_has_no_effect(loop: Loop) -> None:
    loop.push("one")
    loop.run()
    listed = f"eve@example.org {loop.remote.stranger.public}\n"
    loop.remote.commit({"signers": listed, "allowed_signers": listed, "gitops.toml": ""}, loop.remote.ada)
    assert loop.run().rc == 0
    loop.remote.commit(loop.world.inventory("evil"), loop.remote.stranger)
    assert loop.run().rc == 77 and loop.world.texts()["head"] == "one"


def test_two_runs_at_once(loop: Loop) -> None:
    loop.push("one")
    loop.state.mkdir()
    with gitops._lock(loop.state / "lock"):
        report = loop.run()
    assert (report.result, report.rc) == ("busy", 75) and f"process {os.getpid()} of " in report.message
    assert loop.world.applies == 0 and not (loop.folder / "labrack.prom").exists()
    assert loop.run().rc == 0


def test_somebody_else_holds_the_lease(loop: Loop) -> None:
    loop.push("one")
    loop.world.taken = "eve@laptop holds the lease of this lab since noon"
    report = loop.run()
    assert (report.result, report.rc) == ("busy", 75) and "eve@laptop" in report.message
    assert loop.world.applies == 0
    loop.world.taken = ""
    assert loop.run().result == "applied"


def test_failures_put_the_next_try_off(loop: Loop) -> None:
    loop.settings += ["retry = 1000", "retry_most = 3000"]
    commit = loop.push("one")
    loop.world.failing = {"head": "no space left"}
    assert loop.run().result == "failed"
    tries = []
    for _ in range(16):
        before = loop.world.applies
        report = loop.run(later=500)
        tries.append("try" if loop.world.applies > before else report.result)
    w, t = "waiting", "try"
    # after 1000 s, 2000 s, and 3000 s for ever
    assert tries == [w, t, w, w, w, t, w, w, w, w, w, t, w, w, w, w]
    assert "4 runs of this commit failed, the next try is not before 2026-" in report.message
    assert "no space left" in report.message and report.rc == 75
    assert gitops.status(gitops_config.load(loop.config)).failures == 4
    # a new commit is tried at once
    loop.world.failing = {}
    loop.push("two")
    assert loop.run(later=1).result == "applied"
    state = gitops.read_state(loop.state)
    assert state.failing.count == 0 and state.commit != commit


def test_a_window_lets_disruptive_changes_in(loop: Loop) -> None:
    loop.settings += ['windows = ["Sat 02:00-06:00"]']
    loop.push("one", disruption="drain")
    report = loop.run()
    assert (report.result, report.rc, report.pending) == ("pending", 0, 2) and loop.world.texts() == {}
    assert "window opens Sat 2026-06-06 02:00" in report.message and loop.metric("pending_changes") == 2
    assert gitops.status(gitops_config.load(loop.config)).rc == 2
    loop.now = SATURDAY
    assert loop.run().result == "applied" and loop.world.texts()["head"] == "one"
    assert loop.metric("pending_changes") == 0


def test_without_a_window_disruptive_changes_stay_pending(loop: Loop) -> None:
    loop.now = SATURDAY
    loop.push("one", disruption="drain")
    assert loop.run().result == "pending" and loop.world.texts() == {}
    loop.settings += ['max_disruption = "drain"']
    assert loop.run().result == "applied"


def test_a_node_that_was_down_gets_its_change_when_it_is_back(loop: Loop) -> None:
    first = loop.push("one")
    loop.run()
    loop.world.down = {"node1"}
    second = loop.push("two")
    report = loop.run()
    assert (report.result, report.down, report.behind) == ("applied", ["node1"], ["node1"]) and report.rc == 0
    assert loop.world.texts() == {"head": "two", "node1": "one"}
    assert gitops.read_state(loop.state).hosts == {"head": second, "node1": first}
    assert loop.metric("hosts_down") == 1 and loop.metric("hosts_behind") == 1
    loop.world.down = set()
    back = loop.run()
    assert (back.result, back.drift, back.behind) == ("applied", 0, []) and loop.world.texts()["node1"] == "two"


def test_a_node_that_fails_does_not_hold_the_others(loop: Loop) -> None:
    loop.push("one")
    loop.world.failing = {"node1": "no space left"}
    report = loop.run()
    assert (report.result, report.rc) == ("failed", 1) and loop.world.texts() == {"head": "one"}
    assert "node1" in report.message and "no space left" in report.message and report.behind == ["node1"]


def test_chosen_numbers_outlive_a_commit(loop: Loop) -> None:
    loop.push("one")
    loop.run()
    numbers = loop.state / "applied/inventory/lab_uids.txt"
    numbers.write_text("ada 2001\n")
    loop.push("two")
    assert loop.run().result == "applied" and numbers.read_text() == "ada 2001\n"


def test_no_server(loop: Loop) -> None:
    loop.push("one")
    loop.run()
    loop.remote.bare.rename(loop.remote.bare.with_name("away"))
    report = loop.run()
    assert (report.result, report.rc) == ("failed", 1) and "git fetch failed" in report.message
    loop.remote.bare.with_name("away").rename(loop.remote.bare)
    # it is not the commit's fault, which is not put off
    assert loop.run(later=1).result == "in_sync"


def test_damaged_state_is_said(loop: Loop) -> None:
    loop.push("one")
    loop.run()
    (loop.state / "state.json").write_text("{")
    with pytest.raises(gitops.UserError, match=r"state\.json is damaged"):
        loop.run()


# --- telling people --------------------------------------------------------------------------------------------------


def test_people_are_told_of_failures_and_changes_of_state_once(loop: Loop) -> None:
    with listener(f"hook-{CANARY}") as (address, got):
        (loop.folder / "webhook").write_text(f"{address}\n")
        loop.settings += [f'webhook_file = "{loop.folder / "webhook"}"', "retry = 1"]
        loop.push("one")
        for _ in range(3):
            loop.run()
        assert [one["result"] for one in got] == ["applied"]
        loop.push("two", signed=False)
        for _ in range(3):
            assert loop.run().rc == 77
        assert [one["result"] for one in got] == ["applied", "denied"]
        loop.remote.git("reset", "--quiet", "--hard", "HEAD~1")
        loop.remote.git("push", "--quiet", "--force", "origin", "main")
        loop.run()
        loop.run()
        assert [one["result"] for one in got] == ["applied", "denied", "in_sync"]
        loop.world.down = {"node1"}
        loop.run()
        assert got[-1]["down"] == ["node1"] and "down: node1" in got[-1]["text"]


def test_a_webhook_that_fails_is_said_without_its_address(loop: Loop) -> None:
    loop.push("one")
    with listener(f"hook-{CANARY}", 500) as (address, _got):
        (loop.folder / "webhook").write_text(address)
        loop.settings += [f'webhook_file = "{loop.folder / "webhook"}"']
        assert loop.run().result == "applied"
    assert "was not told: the server answered 500" in loop.shown and CANARY not in loop.shown
    loop.push("two")
    assert loop.run().result == "applied"
    assert "was not told: URLError" in loop.shown and CANARY not in loop.shown
    (loop.folder / "webhook").write_text(f"ftp://host/{CANARY}")
    loop.push("three")
    loop.run()
    assert "no http or https address" in loop.shown and CANARY not in loop.shown


def test_people_are_told_by_mail(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    program = loop.folder / "bin/sendmail"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat >>{loop.folder}/mail\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    loop.settings += ['mail = "admin@example.org"']
    loop.push("one")
    loop.run()
    text = (loop.folder / "mail").read_text()
    assert "To: admin@example.org\n" in text and ": applied\n" in text


# --- killed ----------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_the_next_run_converges(loop: Loop) -> None:
    """A whole run in a process of its own is killed again and again, at moments spread over all that it does."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    loop.push("0")
    config = loop.config
    driver = [sys.executable, "-m", "tests.unit.gitops_world", str(loop.world.folder), str(config)]
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (root, root / "scripts", root / "collections"))),
    }

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            driver, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    began = time.monotonic()
    first = start()
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    whole = time.monotonic() - began
    for number in range(1, 6):
        loop.push(str(number))
        process = start()
        time.sleep(chance.uniform(0.3, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # whatever is there is whole
        for name in ("state.json", "last.json"):
            json.loads((loop.state / name).read_text())
        assert all(line["schema"] == 1 for line in loop.history())
        assert loop.metric("last_success_timestamp_seconds") > 0
        gitops.read_state(loop.state)
    last = start()
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, f"seed {seed}: {output}"
    assert loop.world.texts() == {"head": "5", "node1": "5"} and '"5"' in loop.in_force
    assert not list(loop.state.glob(".labrack-*")), "what a killed run began to write"


# --- no secret -------------------------------------------------------------------------------------------------------


def test_the_output_of_a_run_has_no_secret(loop: Loop) -> None:
    with listener(f"hook-{CANARY}") as (address, got):
        (loop.folder / "webhook").write_text(address)
        (loop.folder / "vault-password").write_text("pass")
        loop.settings += [
            f'webhook_file = "{loop.folder / "webhook"}"',
            f'vault_password_file = "{loop.folder / "vault-password"}"',
        ]
        ansible = Path(sys.executable).with_name("ansible-vault")
        command = [str(ansible), "encrypt_string", "--vault-password-file", str(loop.folder / "vault-password")]
        secret = subprocess.run([*command, CANARY, "--name", "secret"], check=True, capture_output=True, text=True)
        loop.remote.commit({"inventory/group_vars/lab_head.yml": secret.stdout}, loop.remote.ada)
        loop.push("one")
        reports = [loop.run()]
        shown = loop.shown
        loop.push("two", **BROKEN)
        reports.append(loop.run())
        shown += loop.shown
        seen = json.dumps([gitops.document(one) for one in reports]) + shown + json.dumps(got)
    files = [path for path in loop.state.rglob("*") if path.is_file() and "repository.git" not in path.parts]
    written = "".join(path.read_text(errors="replace") for path in [*files, loop.folder / "labrack.prom"])
    assert [one.result for one in reports] == ["applied", "broken"] and len(got) == 2
    assert CANARY not in seen and CANARY not in written
