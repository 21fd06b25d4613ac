# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reaper: what it decides, on made-up labs over made-up days, and what it does with doubles of all around it."""

from __future__ import annotations

import json
import os
import pwd
import socket
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import skypilot_reaper_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.hardware_observe import read_mounts
from ansible_collections.labrack.infra.plugins.module_utils.rules_gpu import check_gpu_variables
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_reaper_plan import Observed as Host
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_reaper_plan import Wanted
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState
from labrack_skypilot import nosuid, reaper, reaping
from labrack_skypilot.reaper import Field, Place
from labrack_skypilot.reaping import Action, Cluster, Memory, Observed, Part, Settings
from tests.unit.listener import listener

HOUR, RUN = 3600.0, 600.0
NOW = 1_800_000_000.0
LIVE = Settings(dry_run=False)
FIXTURES = Path(__file__).parent / "fixtures/skypilot"


def cluster(name: str = "train", **keys: Any) -> Cluster:
    found = Cluster(name, f"number-{name}", f"{name}-aaaa1111", "ada", "aaaa1111", "UP", 60)
    return replace(found, **keys)


def part(of: str = "train", **keys: Any) -> Part:
    found = Part("pod", "lab", f"{of}-aaaa1111-head", f"uid-{of}", f"{of}-aaaa1111", "ada", "running", 1, "default")
    return replace(found, **keys)


def seen(now: float = NOW, percent: float | None = 0.0, parts: Sequence[Part] = (part(),), **keys: Any) -> Observed:
    found = Observed(now, (cluster(),), tuple(parts), {one.key: percent for one in parts}, frozenset({"aaaa1111"}))
    return replace(found, **keys)


@dataclass
class Story:
    """Runs of the reaper one after another, with what its actions came to."""

    config: Settings = LIVE
    memory: Memory = field(default_factory=Memory)
    done: list[tuple[float, Action]] = field(default_factory=list)
    takes: bool = True

    def run(self, observed: Observed) -> list[Action]:
        actions, self.memory = reaping.plan(observed, self.memory, self.config)
        for action in actions:
            self.done.append((observed.now, action))
            if action.kind == "warn" and self.takes:
                self.memory = reaping.delivered(self.memory, action, observed.now)
            if action.kind == "end":
                self.memory = reaping.ended(self.memory, action, observed.now)
        # the state file holds all of it
        self.memory = Memory.read(json.loads(json.dumps(self.memory.document())))
        return actions

    def hours(self, count: float, start: float = NOW, **keys: Any) -> list[str]:
        """Run for some hours, and return the kinds of actions with their verbs, reports and repeats left out."""
        before = len(self.done)
        for number in range(int(count * HOUR / RUN) + 1):
            self.run(seen(start + number * RUN, **keys))
        return [
            f"{action.kind} {action.finding.verb}" for _now, action in self.done[before:] if action.kind != "report"
        ]


# --- what it decides -------------------------------------------------------------------------------------------------


def test_who_does_nothing_is_warned_and_then_ended() -> None:
    story = Story()
    assert story.hours(7.9) == []
    assert story.hours(0.2, NOW + 8 * HOUR) == ["warn down"]
    assert story.hours(3.5, NOW + 8.4 * HOUR) == []
    assert story.hours(0.5, NOW + 12.2 * HOUR) == ["end down"]
    (warned, warning), (over, end) = story.done
    assert over - warned >= 4 * HOUR and end.finding.target == ("train",)
    assert "In 4 hours it is ended. Mend: use its cards, or end it: sky down train" in warning.text


def test_who_works_again_begins_anew() -> None:
    story = Story()
    assert story.hours(8.2) == ["warn down"]
    assert story.hours(1, NOW + 8.4 * HOUR, percent=1.0) == []
    assert story.memory.watches == {}
    assert story.hours(7.9, NOW + 9.6 * HOUR) == []


def test_what_can_not_be_told_adds_nothing_and_ends_nothing() -> None:
    story = Story()
    assert story.hours(8.2) == ["warn down"]
    assert story.hours(48, NOW + 8.4 * HOUR, percent=None) == []
    # the count goes on where it was
    assert story.hours(4.2, NOW + 56.6 * HOUR) == ["end down"]
    assert Story().hours(48, percent=None) == []


def test_a_place_that_does_not_answer_ends_nothing() -> None:
    story = Story()
    assert story.hours(8.2) == ["warn down"]
    assert story.hours(24, NOW + 9 * HOUR, complete=False) == []
    assert Story().hours(48, complete=False, clusters=(cluster(status="INIT"),), parts=()) == []


def test_a_server_that_does_not_answer_ends_nothing() -> None:
    story = Story()
    assert story.hours(72, clusters=None) == [] and story.memory.watches == {}


def test_time_that_was_not_seen_does_not_count() -> None:
    """The reaper was off for a week-end, or the clock has jumped."""
    story = Story()
    story.hours(1)
    assert story.run(seen(NOW + 72 * HOUR)) == []
    assert story.hours(8, NOW + 72.2 * HOUR) == ["warn down"]
    story.run(seen(NOW + 200 * HOUR))
    assert [action.kind for _now, action in story.done] == ["warn"]
    # back, and on again
    story.run(seen(NOW))
    assert story.hours(3.5, NOW + RUN) == []


def test_a_cluster_without_autostop_gets_one() -> None:
    story = Story()
    clusters = (cluster(autostop=-1),)
    assert story.hours(1.2, percent=90.0, clusters=clusters) == ["warn autostop"]
    assert story.hours(4.2, NOW + 1.4 * HOUR, percent=90.0, clusters=clusters) == ["end autostop"]
    assert "sky autostop train -i 60 --down" in story.done[0][1].text


def test_a_cluster_that_does_not_come_up() -> None:
    init = (cluster(status="INIT", init_kind="unhealthy"),)
    assert Story().hours(6.4, clusters=init, parts=()) == ["warn down", "end down"]
    # who waits for a card has none
    assert Story().hours(24, clusters=init, parts=(part(state="waiting"),)) == []
    # one that is not well and still computes
    assert Story().hours(24, clusters=init, percent=5.0) == []


def test_pods_and_jobs_that_nobody_knows() -> None:
    lost = part("lost")
    assert Story().hours(5.4, parts=(lost,)) == ["warn delete_pod", "end delete_pod"]
    job = part("lost", kind="job", name="17", namespace="")
    story = Story()
    assert story.hours(5.4, parts=(job,)) == ["warn scancel", "end scancel"]
    assert story.done[-1][1].finding.target == ("lab", "ada", "17")
    # of another server, at work, or done
    assert Story().hours(24, parts=(part("lost", cluster="lost-ffff9999"),)) == []
    assert Story().hours(24, parts=(lost,), percent=1.0) == []
    assert Story().hours(24, parts=(replace(lost, state="ended"),)) == []
    assert (
        Story().hours(24, parts=(part("sky-jobs-controller-aaaa1111", cluster="sky-jobs-controller-aaaa1111"),)) == []
    )


def test_what_skypilot_would_start_anew_is_only_reported() -> None:
    story = Story()
    assert story.hours(24, clusters=(cluster(managed=True),)) == []
    assert {action.kind for _now, action in story.done} == {"report"}


def test_the_inventory_spares() -> None:
    for spare in ("ada", "tr*"):
        story = Story(replace(LIVE, spare=(spare,)))
        assert story.hours(24) == [] and {action.kind for _now, action in story.done} == {"report"}


def test_another_cluster_of_the_name_begins_anew() -> None:
    story = Story()
    assert story.hours(8.2) == ["warn down"]
    assert story.hours(7.9, NOW + 8.4 * HOUR, clusters=(cluster(number="another"),)) == []


def test_who_is_ended_gets_no_autostop() -> None:
    story = Story(replace(LIVE, no_autostop_hours=8.0))
    assert story.hours(12, clusters=(cluster(autostop=-1),)) == ["warn autostop", "warn down", "end down"]


def test_what_fails_is_tried_again_and_noted_once() -> None:
    story = Story()
    story.hours(12.2)
    (action,) = [action for _now, action in story.done if action.kind == "end"]
    memory = replace(story.memory, watches={action.watch: reaping.Watch("ada", "train", "idle", "down", 1, 1, 1)})
    for number in range(3):
        memory = reaping.ended(memory, action, NOW + number, "no answer")
    assert action.watch in memory.watches
    assert [entry["problem"] for entry in memory.history if entry["did"] == "failed"] == ["no answer"]


# --- over any days ---------------------------------------------------------------------------------------------------

NAMES = ("train", "debug", "lost", "job")
steps = st.sampled_from([-86400.0, -60.0, 0.0, 60.0, RUN, RUN, RUN, RUN, 2 * HOUR, 5 * HOUR, 86400.0])


@st.composite
def worlds(draw: st.DrawFn) -> Observed:
    """A lab at some moment; some of its clusters are not in SkyPilot's list, and some places do not answer."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    known = draw(st.one_of(st.none(), st.lists(st.sampled_from(NAMES), unique=True)))
    parts = [
        part(
            name,
            kind=draw(st.sampled_from(["pod", "pod", "job"])),
            state=draw(st.sampled_from(["running", "running", "waiting"])),
            gpus=draw(st.integers(0, 2)),
        )
        for name in names
    ]
    clusters = None
    if known is not None:
        clusters = tuple(
            cluster(
                name,
                status=draw(st.sampled_from(["UP", "UP", "INIT", "STOPPED"])),
                autostop=draw(st.sampled_from([-1, 60])),
                managed=name == "job",
            )
            for name in known
        )
    percents = st.sampled_from([0.0, 0.0, 0.0, None, 50.0])
    busy = {one.key: draw(percents) for one in parts}
    return Observed(
        0.0, clusters, tuple(parts), busy, frozenset({"aaaa1111"}), draw(st.sampled_from([True, True, False]))
    )


days = st.lists(st.tuples(worlds(), st.lists(steps, min_size=1, max_size=25)), min_size=1, max_size=5)
SHORT = Settings(
    dry_run=False, grace_hours=1.0, no_autostop_hours=0.5, stuck_hours=0.5, unknown_hours=0.5, idle_hours=1.0
)


def lived(story: Story, history: list[tuple[Observed, list[float]]]) -> Iterator[tuple[Observed, list[Action]]]:
    now = NOW
    for world, pauses in history:
        for pause in pauses:
            now += pause
            observed = replace(world, now=now)
            yield observed, story.run(observed)


@settings(max_examples=200)
@given(days)
def test_nothing_ends_without_a_warning_older_than_the_grace(history: list[tuple[Observed, list[float]]]) -> None:
    story = Story(SHORT)
    warned: dict[str, float] = {}
    for observed, actions in lived(story, history):
        for action in actions:
            if action.kind == "warn":
                warned[action.watch] = observed.now
            if action.kind == "end":
                assert observed.now - warned.pop(action.watch) >= HOUR


@settings(max_examples=200)
@given(days)
def test_who_works_is_never_ended(history: list[tuple[Observed, list[float]]]) -> None:
    for observed, actions in lived(Story(SHORT), history):
        for action in actions:
            if action.kind == "end" and action.finding.verb != "autostop":
                parts = reaping.parts_of(action.finding, observed)
                assert all(observed.busy[one.key] == 0.0 for one in parts if one.gpus and one.state == "running")
                assert observed.complete or action.finding.reason == reaping.UNKNOWN
                assert action.finding.name != "job" or action.finding.reason == reaping.UNKNOWN


@settings(max_examples=100)
@given(days)
def test_a_dry_run_only_reports_and_remembers_no_warning(history: list[tuple[Observed, list[float]]]) -> None:
    story = Story(replace(SHORT, dry_run=True))
    for _observed, actions in lived(story, history):
        assert {action.kind for action in actions} <= {"report"}
        assert not any(watch.warned for watch in story.memory.watches.values())


@settings(max_examples=100)
@given(days)
def test_nobody_is_warned_twice_of_one_thing(history: list[tuple[Observed, list[float]]]) -> None:
    story = Story(SHORT)
    open_: set[str] = set()
    for _observed, actions in lived(story, history):
        # what is over, or was ended, may be warned of again
        open_ &= set(story.memory.watches)
        for action in actions:
            if action.kind == "warn":
                assert action.watch not in open_
                open_.add(action.watch)


@settings(max_examples=100)
@given(days)
def test_a_warning_that_nobody_took_ends_nothing(history: list[tuple[Observed, list[float]]]) -> None:
    story = Story(SHORT, takes=False)
    for _observed, actions in lived(story, history):
        assert not [action for action in actions if action.kind == "end"]


# --- what it does ----------------------------------------------------------------------------------------------------


class Enum:
    """As SkyPilot's ClusterStatus is."""

    def __init__(self, value: str) -> None:
        self.value = value


def recorded() -> list[SimpleNamespace]:
    """What a real server of SkyPilot 0.14.1 answered, as objects with attributes, as the SDK gives them."""
    document = json.loads((FIXTURES / "status.json").read_text(encoding="utf-8"))
    return [SimpleNamespace(**{**one, "status": Enum(one["status"])}) for one in document]


class Busy(Exception):
    """SkyPilot's, by its name."""


Busy.__name__ = "ServerTemporarilyUnavailableError"


@dataclass
class Sky:
    """The server: ``tell`` is what it answers, ``fails`` how often it is too busy to."""

    tell: list[Any] = field(default_factory=recorded)
    fails: int = 0
    did: list[tuple[Any, ...]] = field(default_factory=list)
    refuses: str = ""

    def clusters(self) -> list[Any]:
        def ask() -> list[Any]:
            if self.fails:
                self.fails -= 1
                raise Busy("503")
            return self.tell

        return reaper.retried(ask, lambda _seconds: None)

    def hashes(self) -> list[str]:
        return ["aaaa1111", "bbbb2222"]

    def autostop(self, name: str, minutes: int) -> None:
        self.did.append(("autostop", name, minutes))

    def down(self, name: str) -> None:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.did.append(("down", name))


def kubernetes_pod(cluster_name: str, user: str, gpus: int = 1, phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"{cluster_name}-head",
            "namespace": "default",
            "uid": f"uid-{cluster_name}",
            "labels": {"parent": "skypilot", "skypilot-cluster-name": cluster_name, "skypilot-user": user},
            "annotations": {"skypilot-user": f"{user}"},
        },
        "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": str(gpus), "cpu": "4"}}}]},
        "status": {"phase": phase},
    }


@dataclass
class Commands:
    """kubectl, ssh and what is behind it."""

    pods: list[dict[str, Any]] = field(default_factory=list)
    queue: str = ""
    percent: dict[str, str] = field(default_factory=dict)
    rc: int = 0
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, argv: Sequence[str]) -> tuple[int, str]:
        self.calls.append(list(argv))
        if self.rc:
            return self.rc, "no route to host"
        if "pods" in argv:
            return 0, json.dumps({"items": self.pods})
        if "exec" in argv:
            return 0, self.percent.get(argv[argv.index("-n") + 2], "0\n0\n0\n")
        if argv[0] == "ssh" and "squeue" in argv[-1]:
            return 0, self.queue
        return 0, "0\n"


@dataclass
class Lab:
    """A reaper with doubles of all around it."""

    folder: Path
    sky: Sky = field(default_factory=Sky)
    commands: Commands = field(default_factory=Commands)
    config: Settings = field(
        default_factory=lambda: Settings(
            dry_run=False, grace_hours=1, no_autostop_hours=0, stuck_hours=0.5, unknown_hours=0.5, idle_hours=1
        )
    )
    more: dict[str, Any] = field(default_factory=dict)
    now: float = NOW

    @property
    def place(self) -> Place:
        me = pwd.getpwuid(os.getuid()).pw_name
        return Place(
            contexts=["lab"],
            kubeconfig="/config",
            slurm={"closet": ["ssh", "-F", "/slurm", "closet"]},
            messages=str(self.folder / "messages"),
            state=str(self.folder / "reaper.json"),
            reports=str(self.folder / "reports"),
            unix_names={"ada": me, "ben": "nobody"},
            **self.more,
        )

    def run(self, hours: float = 0.0) -> tuple[list[str], int]:
        """Make a run now, and then one every ten minutes for some hours; return the last one's words and status."""
        for _number in range(int(hours * 6) + 1):
            words, rc = reaper.once(self.config, self.place, self.sky, Field(self.place, self.commands), self.now)
            self.now += RUN
        return words, rc

    def messages(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.folder / "messages").iterdir()}

    def state(self) -> Any:
        return json.loads((self.folder / "reaper.json").read_text())


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    # hundreds of runs need not wait for the disk
    monkeypatch.setattr(os, "fsync", lambda _handle: None)
    (tmp_path / "messages").mkdir()
    return Lab(tmp_path)


def test_the_recorded_answer_is_read() -> None:
    found = {one.name: one for one in map(reaper.cluster_of, recorded())}
    assert found["train"] == Cluster("train", found["train"].number, "train-aaaa1111", "ada", "aaaa1111", "UP", -1)
    assert found["debug"].autostop == 60 and found["debug"].user == "ben"
    assert found["job-7"].managed and not found["train"].managed
    assert found["stuck"].status == "INIT" and found["stuck"].number != found["train"].number


def test_a_run_warns_and_the_next_ones_end(lab: Lab) -> None:
    lab.commands.pods = [kubernetes_pod("debug-bbbb2222", "ben"), kubernetes_pod("lost-aaaa1111", "ada", gpus=2)]
    lab.run()
    assert lab.sky.did == [] and lab.messages().keys() == {pwd.getpwuid(os.getuid()).pw_name}
    lab.run(1.2)
    assert set(lab.messages()) == {pwd.getpwuid(os.getuid()).pw_name, "nobody"}
    assert "labrack: debug: its card does nothing; it is ended in" in lab.messages()["nobody"]
    lab.run(1.5)
    assert ("autostop", "train", 60) in lab.sky.did and ("down", "debug") in lab.sky.did
    assert ("down", "stuck") in lab.sky.did and not [one for one in lab.sky.did if one[1] == "job-7"]
    assert any("delete" in call and "lost-aaaa1111-head" in call for call in lab.commands.calls)
    assert "debug was ended" in lab.messages()["nobody"]
    assert stat.S_IMODE((lab.folder / "reaper.json").stat().st_mode) == 0o600


def test_a_dry_run_does_nothing_but_count(lab: Lab) -> None:
    lab.config = replace(lab.config, dry_run=True)
    lab.commands.pods = [kubernetes_pod("debug-bbbb2222", "ben"), kubernetes_pod("lost-aaaa1111", "ada")]
    words, rc = lab.run(24)
    assert rc == 0 and any("would warn: train: it has no autostop" in line for line in words)
    assert lab.sky.did == [] and lab.messages() == {} and lab.state()["history"] == []
    assert {call[call.index("lab") + 1] for call in lab.commands.calls if "lab" in call} == {"get", "exec"}


def test_a_dry_run_does_not_even_what_it_is_told(lab: Lab) -> None:
    finding = reaping.Finding("k", reaping.STUCK, "train", "ada", "x", "down", ("train",))
    actions = [Action(kind, finding, "x") for kind in ("warn", "end")]
    dry = replace(lab.config, dry_run=True)
    voice = reaper.Voice(lab.place)
    memory = reaper.apply(actions, Memory(), seen(), lab.sky, Field(lab.place, lab.commands), voice, dry)
    assert memory == Memory() and lab.sky.did == [] and lab.messages() == {}


def test_who_comes_back_in_the_last_minute_stays(lab: Lab) -> None:
    lab.commands.pods = [kubernetes_pod("debug-bbbb2222", "ben")]
    lab.run(1.9)
    field_ = Field(lab.place, lab.commands)
    answers = iter(["0\n", "97\n"])

    class Late(Field):
        def _sample(self, part: Part) -> tuple[int, str]:
            return 0, next(answers)

    reaper.once(lab.config, lab.place, lab.sky, Late(lab.place, lab.commands), lab.now)
    assert ("down", "debug") not in lab.sky.did
    reaper.once(lab.config, lab.place, lab.sky, field_, lab.now + RUN)
    assert ("down", "debug") in lab.sky.did


def test_jobs_of_slurm(lab: Lab) -> None:
    lab.commands.queue = (
        "17|ada|RUNNING|2026-11-01T10:00:00|gres/gpu:a100:2|1|lost-aaaa1111\n"
        "18|ada|RUNNING|2026-11-01T10:00:00|gres/gpu:1|2|train-aaaa1111\n"
        "19|ben|RUNNING|2026-11-01T10:00:00|gres/gpu:1|1|my own|job\n"
        # of a client that is logged in with a token
        "20|ben|PENDING|2026-11-01T10:00:00|gres/gpu:rtx_4090:1|1|next-sa-1b15051a0e79b60c\n"
    )
    found = reaper.jobs("closet", lab.commands.queue)
    assert [(one.name, one.gpus, one.cluster) for one in found] == [
        ("17", 2, "lost-aaaa1111"),
        ("18", 2, "train-aaaa1111"),
        ("20", 1, "next-sa-1b15051a0e79b60c"),
    ]
    lab.run(2)
    assert [
        "ssh",
        "-F",
        "/slurm",
        "closet",
        "sudo -n -u ada -H -- /bin/bash --login -c 'scancel 17'",
    ] in lab.commands.calls
    assert not [call for call in lab.commands.calls if "scancel 18" in call[-1] or "scancel 19" in call[-1]]


@pytest.mark.parametrize(
    ("rc", "out", "wanted"),
    [
        (0, "0\n0\n3\n", 3.0),
        (0, "0\n", 0.0),
        (0, "", None),
        (0, "[N/A]\n0\n", None),
        (1, "0\n", None),
        (0, "error\n", None),
    ],
)
def test_what_the_cards_do(rc: int, out: str, wanted: float | None) -> None:
    assert reaper.most_of(rc, out) == wanted


def test_a_place_that_is_down_is_said_and_ends_nothing(lab: Lab) -> None:
    lab.commands.pods = [kubernetes_pod("debug-bbbb2222", "ben")]
    lab.run(1.5)
    lab.commands.rc = 1
    words, rc = lab.run(5)
    assert rc == 1 and "Kubernetes lab: no route to host" in words and ("down", "debug") not in lab.sky.did


def test_a_busy_server_is_asked_again(lab: Lab) -> None:
    lab.sky.fails = 4
    assert lab.run()[1] == 0
    lab.sky.fails = 5
    words, rc = lab.run()
    assert rc == 1 and "the server does not tell: ServerTemporarilyUnavailableError: 503" in words[0]


def test_what_passes_and_what_does_not() -> None:
    class Answer(Exception):
        def __init__(self, code: int) -> None:
            self.response = SimpleNamespace(status_code=code)

    assert reaper.passing(Busy("x")) and reaper.passing(ConnectionRefusedError()) and reaper.passing(Answer(503))
    assert reaper.passing(RuntimeError("Failed to get request x: 503 Authentication lookup timed out"))
    assert (
        not reaper.passing(Answer(401)) and not reaper.passing(ValueError("5033")) and not reaper.passing(Answer(404))
    )


def test_an_end_that_fails_is_noted_and_tried_again(lab: Lab) -> None:
    lab.commands.pods = [kubernetes_pod("debug-bbbb2222", "ben")]
    lab.sky.refuses = "no way"
    lab.run(4)
    assert [one["problem"] for one in lab.state()["history"] if one["did"] == "failed" and one["name"] == "debug"] == [
        "RuntimeError: no way"
    ]
    lab.sky.refuses = ""
    lab.run()
    assert ("down", "debug") in lab.sky.did


def test_a_warning_that_nobody_takes_is_none(lab: Lab) -> None:
    lab.commands.pods = [kubernetes_pod("debug-bbbb2222", "ben")]
    (lab.folder / "messages").rmdir()
    lab.run(6)
    assert lab.sky.did == [] and not any(one["did"] == "warned" for one in lab.state()["history"])


def test_a_damaged_state_is_put_aside(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    (lab.folder / "reaper.json").write_text('{"time": 1}')
    assert lab.run()[1] == 0 and (lab.folder / "reaper.damaged").exists()
    assert "is put aside" in capsys.readouterr().err


def test_two_runs_at_once(lab: Lab) -> None:
    with reaper.alone(lab.folder / "reaper.json"), pytest.raises(reaper.ReaperError, match="another run"):
        lab.run()


def test_mail_and_webhook(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program = lab.folder / "bin/sendmail"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat >>{lab.folder / 'mails'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    # no account, so no message at login: mail and webhook alone
    lab.commands.pods = [kubernetes_pod("debug-bbbb2222", "ben")]
    with listener("canary") as (address, got):
        (lab.folder / "hook").write_text(address + "\n")
        lab.more = {
            "webhook_file": str(lab.folder / "hook"),
            "mail_domain": "example.org",
            "report_mail": "boss@example.org",
        }
        lab.run(2.5)
        assert [one["owner"] for one in got if "debug is idle" in one["subject"]] == ["ben"]
        assert any("debug was ended" in one["subject"] for one in got)
        mails = (lab.folder / "mails").read_text()
        assert "To: nobody@example.org" in mails and "In 1 hours it is ended. Mend: use its cards" in mails.replace(
            "=\n", ""
        )
        lab.now += 7 * 86400
        lab.run()
        (report,) = [one["report"] for one in got if "report" in one]
        assert "To: boss@example.org" in (lab.folder / "mails").read_text()
    assert {(one["did"], one["name"]) for one in report["done"]} >= {("warned", "debug"), ("ended", "debug")}
    (text,) = (lab.folder / "reports").glob("*.md")
    assert "- ended: debug of ben (idle): its card does nothing" in text.read_text()
    assert "canary" not in capsys.readouterr().err + json.dumps(lab.state())


def test_a_webhook_that_refuses_is_no_warning(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.commands.pods = [kubernetes_pod("debug-bbbb2222", "ben")]
    (lab.folder / "messages").rmdir()
    with listener("canary", 500) as (address, got):
        (lab.folder / "hook").write_text(address)
        lab.more = {"webhook_file": str(lab.folder / "hook")}
        lab.run(5)
    assert got and lab.sky.did == [] and "it answers 500" in (err := capsys.readouterr().err) and "canary" not in err


def test_messages_of_nobody_else_and_no_paths(lab: Lab) -> None:
    voice = reaper.Voice(lab.place)
    for name in ("../etc/passwd", "ada smith", "", "-x", "no-such-user-here"):
        assert voice.unix_name(name) == ""
    (lab.folder / "messages/stale").write_text("old")
    assert voice.show({"ben": "x\n", "../evil": "y\n"}) == {"ben"}
    assert lab.messages() == {"nobody": "x\n"}
    assert stat.S_IMODE((lab.folder / "messages/nobody").stat().st_mode) == 0o644


@pytest.mark.parametrize("text", ["", "[]", '{"dryrun": true}', '{"dry_run": true, "grace": 1}'])
def test_wrong_settings_are_said(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    assert reaper.main(["--settings", str(file)]) == 1
    assert "Mend: run the playbook again" in capsys.readouterr().err


def test_the_default_is_a_dry_run(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text("{}")
    assert reaper.load(str(file)) == (Settings(), Place()) and Settings().dry_run


def test_mail_by_the_port_where_sendmail_may_not(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit without privileges: sendmail is there and fails, and something listens that takes mail."""
    program = lab.folder / "bin/sendmail"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 75\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        got: list[str] = []

        def serve() -> None:
            connection, _address = server.accept()
            with connection, connection.makefile("rw", newline="\r\n") as stream:
                body = False
                print("220 mail", file=stream, flush=True)
                for line in stream:
                    got.append(line.rstrip("\n"))
                    if body and line.strip() != ".":
                        continue
                    word = line.split()[0].upper()
                    body = word == "DATA"
                    answer = {"DATA": "354 go on", "QUIT": "221 bye"}.get(word, "250 fine")
                    print(answer, file=stream, flush=True)
                    if word == "QUIT":
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        assert reaper.Voice(lab.place, port).mail("ben@example.org", "debug is idle", "Mend: use it")
        thread.join()
    assert "Subject: debug is idle" in "\n".join(got) and any("ben@example.org" in line for line in got)
    assert not reaper.Voice(lab.place, port).mail("ben@example.org", "x", "y")


# --- the planner of the role -----------------------------------------------------------------------------------------

wishes = st.builds(
    Wanted,
    reaper=st.booleans(),
    settings=st.fixed_dictionaries({"dry_run": st.booleans()}),
    webhook=st.sampled_from(["", "https://host/canary"]),
    token=st.sampled_from(["", "sky_canary"]),
    every=st.integers(1, 60),
    written=st.sampled_from([(), ("/checkpoints",), ("/checkpoints", "/with space")]),
)


def applied(host: Host, wanted: Wanted, changes: list[Change]) -> Host:
    """The host after the changes of a plan; a reaper that runs leaves its state behind."""
    files = dict(host.files)
    written = skypilot_reaper_plan.wanted_files(wanted)
    found: dict[str, Any] = {}
    for change in changes:
        verb, *words = change.step
        if verb == "write":
            files[words[0]] = written[words[0]]
        elif verb == "remove":
            files[words[0]] = None
        elif verb == "rmtree":
            assert not found.get("timer", host.timer).active
            found["data"] = [path for path in found.get("data", host.data) if path != words[0]]
        else:
            unit = words[0].partition(".")[0].removeprefix("labrack-skypilot-")
            which = "timer" if unit == "reaper" else unit
            assert verb in ("enable", "restart", "disable")
            starts = verb != "disable"
            if starts:
                assert files[f"/etc/systemd/system/{words[0]}"]
            if which == "timer" and starts:
                assert files[skypilot_reaper_plan.CONFIG]
                found["data"] = list(skypilot_reaper_plan.DATA)
            if which == "nosuid":
                found["exposed"] = []
            found[which] = ServiceState(starts, starts, starts)
    return replace(host, files=files, **found)


@given(wishes, wishes)
def test_what_is_planned_is_all_there_is_to_do(first: Wanted, second: Wanted) -> None:
    host = Host()
    for wanted in (first, second):
        changes = skypilot_reaper_plan.plan(host, wanted)
        assert all("canary" not in change.before + change.after + change.summary for change in changes)
        host = applied(host, wanted, changes)
        assert skypilot_reaper_plan.plan(host, wanted) == []
        # a folder that somebody mounted anew
        (opened,) = (
            skypilot_reaper_plan.plan(replace(host, exposed=["/checkpoints"]), wanted) if wanted.written else [None]
        )
        assert opened is None or opened.step == ("restart", "labrack-skypilot-nosuid.service")
    gone = Wanted(present=False)
    host = applied(host, second, skypilot_reaper_plan.plan(host, gone))
    assert skypilot_reaper_plan.plan(host, gone) == [] and not any(host.files.values()) and not host.data


def test_where_pods_write() -> None:
    mounts = [{"path": "/data", "read_only": True}, {"path": "/checkpoints/{user}"}, {"path": "/checkpoints/shared"}]
    read = skypilot_reaper_plan.written_by_pods
    assert read({"kubernetes": [{"name": "lab"}]}, mounts) == ("/checkpoints", "/checkpoints/shared")
    assert read({"slurm": [{"name": "closet"}]}, mounts) == ()
    assert 'ReadWritePaths=-/a "-/b c" -/100%%\n' in skypilot_reaper_plan.owner_service_text(["/a", "/b c", "/100%"])


MOUNTINFO = """\
30 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
31 30 8:3 / /disk rw,noatime shared:2 - xfs /dev/sdb1 rw
32 30 0:50 / /nfs rw,relatime shared:3 - nfs4 desk:/srv rw
33 30 8:4 / /safe rw,nosuid,nodev - ext4 /dev/sdc1 rw
34 31 8:5 / /disk/with\\040space rw - xfs /dev/sdd1 rw
35 31 0:51 / /disk/far rw - autofs systemd-1 rw
"""


def test_no_rights_are_lent_where_pods_write() -> None:
    def did(*paths: str) -> list[str]:
        return [" ".join(argv) for argv in nosuid.commands(paths, MOUNTINFO, lambda path: path != "/none")]

    close = "mount -o remount,bind,nosuid,nodev"
    assert did("/checkpoints") == [
        "mount --rbind /checkpoints /checkpoints",
        "mount --make-private /checkpoints",
        f"{close} /checkpoints",
    ]
    assert did("/disk") == [f"{close} /disk", f"{close} /disk/with space"]
    # with another's name in front, and what lies in another
    assert len(did("/checkpoints", "/checkpoints-2", "/checkpoints/shared")) == 6
    assert did("/safe") == did("/nfs") == did("/nfs/checkpoints") == did("/none") == did("/disk/far/x") == []
    paths = ("/checkpoints", "/checkpoints/shared", "/disk", "/nfs/x", "/safe", "/none")
    kinds = dict.fromkeys(paths, "directory") | {"/none": "missing", "/nfs/x": "unknown"}
    places: Any = {
        path: {"kind": kind, "remote": path.startswith("/nfs"), "fstype": ""} for path, kind in kinds.items()
    }
    mounts: Any = read_mounts(MOUNTINFO)
    assert skypilot_reaper_plan.exposed(paths, places, mounts) == ["/checkpoints", "/disk"]


def test_the_settings_are_those_of_the_reaper(tmp_path: Path) -> None:
    variables = {
        "dry_run": False,
        **dict.fromkeys(skypilot_reaper_plan.HOURS, 2.5),
        "idle_minutes": 30,
        "busy_percent": 1,
        "spare": ["ada"],
        "every_minutes": 5,
        "mail_domain": "example.org",
        "report_mail": "boss",
        "kubectl": ["k3s", "kubectl"],
        "unix_names": {"ada-cli": "ada"},
        "infra": {"kubernetes": [{"name": "lab"}], "slurm": [{"name": "closet"}], "ssh_pools": {"pool": {}}},
    }
    named = {f"skypilot_reaper_{key}": value for key, value in variables.items()}
    assert not list(skypilot_reaper_plan.problems(named))
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(skypilot_reaper_plan.settings_of(variables, webhook=True, token=False)))
    config, place = reaper.load(str(file))
    assert (config.dry_run, config.idle_hours, config.spare, config.every_minutes) == (False, 2.5, ("ada",), 5)
    assert place.contexts == ["lab", "ssh-pool"] and place.slurm["closet"][:1] == ["ssh"] and place.token_file == ""
    assert place.slurm["closet"][-1] == "closet" and place.webhook_file == skypilot_reaper_plan.WEBHOOK
    assert (place.messages, place.state, place.reports) == (
        skypilot_reaper_plan.MESSAGES,
        skypilot_reaper_plan.STATE,
        skypilot_reaper_plan.REPORTS,
    )
    assert reaper.SETTINGS == skypilot_reaper_plan.CONFIG


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"grace_hours": 0.0}, "skypilot_reaper_grace_hours = 0.0: not from 0.25 to 8760"),
        ({"idle_hours": -1.0}, "skypilot_reaper_idle_hours = -1.0"),
        ({"idle_minutes": 0}, "skypilot_reaper_idle_minutes = 0"),
        ({"busy_percent": 90}, "skypilot_reaper_busy_percent = 90"),
        ({"every_minutes": 0}, "skypilot_reaper_every_minutes = 0"),
        ({"mail_domain": "a b"}, "skypilot_reaper_mail_domain = a b"),
        ({"report_mail": "a, b"}, "skypilot_reaper_report_mail = a, b"),
        ({"webhook": "ftp://canary"}, "skypilot_reaper_webhook = (not shown)"),
    ],
)
def test_wrong_wishes_are_said(variables: dict[str, Any], words: str) -> None:
    full = {f"skypilot_reaper_{key}": value for key, value in variables.items()}
    (problem,) = skypilot_reaper_plan.problems(full)
    assert words in problem.line() and "Mend:" in problem.line() and "canary" not in problem.line()
    assert list(check_gpu_variables(full)) == [problem], "before any node is touched"
