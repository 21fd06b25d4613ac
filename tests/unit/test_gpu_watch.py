# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""labrack-gpus: what it reads and shows, heat over any days, and the planner that puts it on a host."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import gpu_watch_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.gpu_watch_plan import Observed, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.rules_gpu import check_gpu_variables
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "roles/gpu_watch/files/gpus.py"
SMI = Path(__file__).parent / "fixtures/nvidia_smi"
NOW = 1_800_000_000.0


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("labrack_gpus", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


gpus = load()
Card, Holder, View, Settings = gpus.Card, gpus.Holder, gpus.View, gpus.Settings


def card(index: int = 0, **values: Any) -> Any:
    found = Card(index, f"GPU-{index}", "NVIDIA RTX A6000", 40, 95, 120.0, 300.0, 50, 1024, 49140)
    return dataclasses.replace(found, **values)


# --- what it reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "temperature", "slowdown", "limit"),
    [
        ("a100_mig_r535.xml", 27, 89, 500.0),
        ("rtx_3060_r570.xml", 42, 95, 170.0),
        # a card that tells margins: 38 + 49 + 2
        ("rtx_4000_sff_ada_r595.xml", 38, 89, 70.0),
        ("tesla_t4_r515.xml", 40, 93, 70.0),
    ],
)
def test_real_answers_of_every_driver(file: str, temperature: int, slowdown: int, limit: float) -> None:
    found = gpus.parse_cards((SMI / file).read_text(encoding="utf-8"))
    assert found and (found[0].temperature, found[0].slowdown, found[0].limit) == (temperature, slowdown, limit)
    assert found[0].draw is not None and found[0].uuid.startswith("GPU-") and found[0].throttle == ()


def test_a_card_that_is_slowed_down() -> None:
    text = (SMI / "rtx_3060_r570.xml").read_text(encoding="utf-8")
    text = text.replace("hw_thermal_slowdown>Not Active", "hw_thermal_slowdown>Active")
    assert gpus.parse_cards(text)[0].throttle == ("hw_thermal_slowdown",)
    old = text.replace("clocks_event_reason", "clocks_throttle_reason")
    assert gpus.parse_cards(old)[0].throttle == ("hw_thermal_slowdown",)
    assert gpus.parse_cards("Unable to determine the device handle for GPU0: GPU is lost\n" + text)
    assert gpus.parse_cards("") == gpus.parse_cards("<gpu id=1><broken></gpu>") == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("gres/gpu:a100:2", 2),
        ("gres/gpu:1", 1),
        ("gres:gpu:3", 3),
        ("gpu:a100:2(S:0-1)", 2),
        ("gpu:a100:2(IDX:0-1),gpu:rtx_4090:1(IDX:2)", 3),
        ("gpu:a100:0(IDX:N/A)", 0),
        ("gres/gpu", 1),
        ("N/A", 0),
        ("(null)", 0),
        ("gres/license:2", 0),
        ("", 0),
    ],
)
def test_slurms_words_for_cards(text: str, count: int) -> None:
    assert gpus.gpus_of(text) == count


def test_who_waits_in_slurm() -> None:
    text = (
        "17|RUNNING|ada|gres/gpu:a100:1|1|2026-11-01T10:00:00|None|desk\n"
        "18|PENDING|ben|gres/gpu:2|2|2026-11-01T10:00:00|Resources|\n"
        "19|PENDING|eve|N/A|1|2026-11-01T10:00:00|Priority|\n"
    )
    (one,) = gpus.parse_queue(text)
    assert (one.user, one.gpus, one.where, one.why) == ("ben", 4, "Slurm job 18", "Resources") and one.since > 0


def test_who_has_what_in_slurm() -> None:
    nodes = (
        "NodeName=desk Arch=x86_64 Gres=gpu:a100:4(S:0) GresDrain=N/A GresUsed=gpu:a100:2(IDX:0,2) State=MIXED\n"
        "NodeName=head Gres=(null) GresUsed=(null) State=IDLE\n"
    )
    assert gpus.parse_nodes(nodes) == [gpus.Place("Slurm", "desk", 4, 2)]
    jobs = (
        "JobId=17 JobName=x UserId=ada(2001) JobState=RUNNING NodeList=desk "
        "Nodes=desk CPU_IDs=0-1 Mem=100 GRES=gpu:a100:2(IDX:0,2-3) TresPerNode=gres/gpu:2\n"
        "JobId=18 UserId=ben(2002) JobState=PENDING\n"
    )
    assert gpus.slurm_holders(jobs, "desk") == {index: Holder("ada", "", "Slurm job 17") for index in (0, 2, 3)}
    assert gpus.slurm_holders(jobs, "other") == {}


POD = "0f1e2d3c-1111-2222-3333-444455556666"


@pytest.mark.parametrize(
    ("cgroup", "work"),
    [
        ("0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0", "Slurm job 17"),
        ("4:devices:/slurm/uid_2001/job_17/step_batch", "Slurm job 17"),
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD.replace('-', '_')}.slice/x",
            "pod train",
        ),
        (f"0::/kubepods/besteffort/pod{POD}/abc", "pod train"),
        ("0::/kubepods/besteffort/pod99999999-1111-2222-3333-444455556666/abc", "pod of Kubernetes"),
        ("0::/system.slice/docker-0123456789abcdef.scope", "container"),
        ("0::/user.slice/user-2001.slice/session-3.scope", ""),
    ],
)
def test_what_a_process_is_part_of(cgroup: str, work: str) -> None:
    assert gpus.work_of(cgroup, {POD: "train"}) == work


def test_who_computes_on_a_card(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(f"0::/kubepods/pod{POD}/x\n")
    found = gpus.holders_of(
        card(processes=((7, "/usr/bin/python3", 100), (8, "gone", 1))), {POD: "train"}, {"train": "ada"}, tmp_path
    )
    assert found == (Holder("ada", "python3", "pod train"),)
    (tmp_path / "7/cgroup").write_text("0::/user.slice\n")
    (one,) = gpus.holders_of(card(processes=((7, "python3", 100),)), {}, {}, tmp_path)
    assert (one.user, one.work) == (gpus._user(os.getuid()), "")


def test_pods_and_nodes_of_kubernetes() -> None:
    def pod(name: str, phase: str, node: str = "", gpus_: str = "1") -> dict[str, Any]:
        return {
            "metadata": {
                "name": name,
                "uid": f"uid-{name}",
                "namespace": "lab",
                "creationTimestamp": "2026-11-01T10:00:00Z",
                "annotations": {"skypilot-user": "ada"},
            },
            "spec": {"nodeName": node, "containers": [{"resources": {"limits": {"nvidia.com/gpu": gpus_}}}]},
            "status": {"phase": phase},
        }

    document = {"items": [pod("a", "Running", "desk"), pod("b", "Pending"), pod("c", "Succeeded", "desk", "4")]}
    names, users, waiting, used = gpus.parse_pods(document)
    assert names["uid-a"] == "a" and users["a"] == "ada" and used == {"desk": 1}
    assert [(one.user, one.where, one.gpus) for one in waiting] == [("ada", "pod b", 1)] and waiting[0].since > 0
    nodes = {"items": [{"metadata": {"name": "desk"}, "status": {"allocatable": {"nvidia.com/gpu": "4", "cpu": "8"}}}]}
    assert gpus.parse_kube_nodes(nodes, used) == [gpus.Place("Kubernetes", "desk", 4, 1)]


# --- what it shows ---------------------------------------------------------------------------------------------------


def view(**values: Any) -> Any:
    cards = (card(0, temperature=71, draw=280.0, use=98, memory=40960), card(1), card(2))
    found = View(NOW, "desk", cards, {0: (Holder("ada", "python3", "Slurm job 17"),)})
    return dataclasses.replace(found, **values)


def test_the_table() -> None:
    waiting = (gpus.Waiting("ben", 2, "Slurm job 19", NOW - 60, "Resources"),)
    text = gpus.table(view(waiting=waiting, hot=("GPU 0 is hot",), places=(gpus.Place("Slurm", "node1", 2, 1),)))
    assert text.startswith("desk at ") and ": 2 of 3 GPUs free\n" in text
    assert "0    RTX A6000  71 °C  280 of 300 W  98 %  40 of 48 GiB  ada (Slurm job 17, python3)\n" in text
    assert "\n1    RTX A6000  40 °C  120 of 300 W  50 %  1 of 48 GiB   free\n" in text
    assert "! GPU 0 is hot\nSlurm: node1 1 of 2 free\nwaiting: ben for 2 GPUs since " in text
    assert text.endswith("(Slurm job 19, Resources)\n")
    assert "no NVIDIA driver here" in gpus.table(View(NOW, "desk", problem="no NVIDIA driver here"))
    bare = dataclasses.replace(Card(0, "", "GPU"))
    assert "-     -      -    -       free" in gpus.table(View(NOW, "desk", (bare,)))


def test_the_line_at_login() -> None:
    text = gpus.motd(view(waiting=(gpus.Waiting("ben", 1, "x"),), hot=("GPU 0 has 93 °C",)))
    assert text == "GPUs: 2 of 3 free; ada has 1; 1 waits (labrack-gpus tells more)\nlabrack: GPU 0 has 93 °C\n"
    assert gpus.motd(View(NOW, "head")) == ""


def test_a_card_that_a_pod_has_and_does_not_use_is_not_free() -> None:
    assert gpus.free(view()) == 2
    assert gpus.free(view(places=(gpus.Place("Kubernetes", "desk", 3, 3),))) == 0
    assert gpus.free(view(places=(gpus.Place("Kubernetes", "other", 3, 3),))) == 2


def test_the_document_is_read_back() -> None:
    seen = view(waiting=(gpus.Waiting("ben", 1, "x"),), places=(gpus.Place("Slurm", "desk", 3, 1),))
    assert gpus.from_document(json.loads(json.dumps(gpus.document(seen)))) == seen
    for damaged in ({}, {"cards": [{}]}, []):
        with pytest.raises(ValueError, match="no view"):
            gpus.from_document(damaged)


# --- heat ------------------------------------------------------------------------------------------------------------


def test_what_is_wrong() -> None:
    assert gpus.wrongs([card()], Settings()) == {}
    assert (
        "GPU 0 (RTX A6000) has 90 °C, and slows down at 95 °C. Mend: keep a metre clear"
        in (gpus.wrongs([card(temperature=90)], Settings())["hot GPU-0"])
    )
    assert gpus.wrongs([card(temperature=89)], Settings()) == {}
    assert "hot GPU-0" in gpus.wrongs([card(temperature=90, slowdown=None)], Settings())
    assert gpus.wrongs([card(temperature=None)], Settings()) == {}
    for reason, key in (
        ("hw_thermal_slowdown", "hot"),
        ("sw_thermal_slowdown", "hot"),
        ("hw_power_brake_slowdown", "power"),
    ):
        assert f"{key} GPU-0" in gpus.wrongs([card(throttle=(reason,))], Settings())
    # what a power limit is for
    assert gpus.wrongs([card(throttle=("sw_power_cap",))], Settings()) == {}
    hot = gpus.wrongs([card(0, draw=900.0), card(1, draw=800.0)], Settings(heat_watts=1500))
    assert "the cards give 1.7 kW of heat (5,801 BTU/h)" in hot["room"] and "takes 1.5 kW" in hot["room"]


temperatures = st.lists(st.tuples(st.sampled_from([40, 86, 89, 90, 97]), st.integers(1, 20)), min_size=1, max_size=12)


@settings(max_examples=200)
@given(temperatures)
def test_a_hot_card_is_told_once_until_it_was_over(story: list[tuple[int, int]]) -> None:
    """Minutes at temperatures: told after three hot ones in a row, and again only after ten cool ones."""
    config, found, now = Settings(), {}, NOW
    in_a_row = cool = 0
    told: list[float] = []
    open_ = False
    for temperature, minutes in story:
        for _minute in range(minutes):
            now += 60
            cards = [card(temperature=temperature)]
            found = gpus.episodes(found, gpus.wrongs(cards, config), cards, config, now)
            hot = temperature >= 90
            in_a_row = in_a_row + 1 if hot else in_a_row
            cool = cool + 1 if temperature <= 85 else 0
            if cool:
                in_a_row = 0
            if open_ and cool >= 10:
                open_ = False
            new = [key for key, one in found.items() if gpus.due(one, config)]
            if new:
                assert not open_ and in_a_row >= 3
                told.append(now)
                open_ = True
                found = {key: dataclasses.replace(one, told=True) for key, one in found.items()}
            assert open_ == any(one.told for one in found.values())


def test_a_clock_that_jumps_back_ends_an_episode_and_no_more() -> None:
    found = {"hot GPU-0": gpus.Episode(NOW, NOW, 9, True, "x")}
    assert gpus.episodes(found, {}, [card()], Settings(), NOW + 300) == found
    assert gpus.episodes(found, {}, [card()], Settings(), NOW - 300) == {}


def test_the_ring_never_grows(tmp_path: Path) -> None:
    config = Settings(keep_days=1)
    for minute in range(0, 3 * 1440, 7):
        gpus.note_sample(tmp_path, card(temperature=minute % 100), config, NOW + minute * 60)
    path = gpus.ring_path(tmp_path, card())
    assert path.stat().st_size == 1440 * gpus.SAMPLE.size
    end = NOW + 3 * 1440 * 60
    kept = gpus.samples(path, end - 86400, end)
    assert [one[0] for one in kept] == sorted(one[0] for one in kept) and 200 < len(kept) <= 206
    assert gpus.samples(path, 0.0, NOW - 1) == []
    # fewer days: it shrinks
    gpus.note_sample(tmp_path, card(), Settings(keep_days=1), end)
    text = gpus.history(tmp_path, [card(), card(1)], 24, end)
    assert "GPU 0: up to 99 °C and 120 W, 50 % used, slowed down in 0 of " in text and "GPU 1: no samples" in text


def test_a_minute_keeps_the_most_of_its_looks(tmp_path: Path) -> None:
    start = NOW // 60 * 60
    for second, one in enumerate(
        (card(temperature=91, throttle=("hw_thermal_slowdown",)), card(temperature=40), Card(0, "GPU-0", "GPU"))
    ):
        gpus.note_sample(tmp_path, one, Settings(), start + second)
    gpus.note_sample(tmp_path, card(temperature=50), Settings(), start + 60)
    text = gpus.history(tmp_path, [card()], 1, start + 60)
    assert "GPU 0: up to 91 °C and 120 W" in text and "slowed down in 1 of 2 minutes" in text
    # a week later its place in the ring is another minute's
    gpus.note_sample(tmp_path, card(temperature=30), Settings(), start + 7 * 86400)
    (last,) = gpus.samples(gpus.ring_path(tmp_path, card()), start + 86400, start + 8 * 86400)
    assert last[1] == 30


def test_cards_that_tell_nothing_and_too_much(tmp_path: Path) -> None:
    gpus.note_sample(tmp_path, Card(0, "", "GPU"), Settings(), NOW)
    gpus.note_sample(tmp_path, card(1, memory=2**40, use=400, throttle=gpus.THROTTLE), Settings(), NOW)
    assert gpus.samples(gpus.ring_path(tmp_path, card(1)), 0, NOW)[0][7] == 31


def test_metrics() -> None:
    text = gpus.metrics(view(), {"x": gpus.Episode(NOW, NOW, 3, True)})
    assert 'labrack_gpu_temperature_celsius{gpu="0",uuid="GPU-0"} 71\n' in text
    assert 'labrack_gpu_throttled{gpu="0",uuid="GPU-0",reason="hw_slowdown"} 0\n' in text
    assert "labrack_gpu_warnings 1\n" in text and f"last_run_timestamp_seconds {NOW:.15g}\n" in text
    assert "None" not in gpus.metrics(View(NOW, "x", (Card(0, "", "GPU"),)), {})
    names = [line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


class Machine:
    """A machine with nvidia-smi alone, whose cards a test sets."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cards: Sequence[Any] = [card()]
        self.folder, self.shown = folder / "data", folder / "run"
        self.told: list[str] = []
        monkeypatch.setattr(gpus, "look", lambda now: View(now, "desk", tuple(self.cards)))
        monkeypatch.setattr(gpus, "tell", lambda _host, words, _settings, _hook: self.told.append(words))

    def minute(self, now: float) -> None:
        gpus.sample(now, self.folder, self.shown, Settings())


def test_a_sample_writes_what_everybody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    for minute in range(5):
        machine.cards = [card(temperature=93)]
        machine.minute(NOW + 60 * minute)
    assert len(machine.told) == 1 and "has 93 °C" in machine.told[0]
    assert "labrack: GPU 0 (RTX A6000) has 93 °C" in (machine.shown / "motd").read_text()
    assert "labrack_gpu_warnings 1\n" in (machine.folder / "labrack_gpu.prom").read_text()
    assert gpus.last(NOW + 300, machine.shown).hot and gpus.last(NOW + 3000, machine.shown) is None
    assert (machine.shown / "view.json").stat().st_mode & 0o777 == 0o644
    machine.cards = [card()]
    for minute in range(5, 17):
        machine.minute(NOW + 60 * minute)
    assert "labrack:" not in (machine.shown / "motd").read_text() and len(machine.told) == 1
    (machine.folder / "episodes.json").write_text("damaged")
    machine.minute(NOW + 1200)


def test_telling_keeps_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = tmp_path / "hook"
    hook.write_text("http://127.0.0.1:9/canary\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus.tell("desk", "GPU 0 is hot. Mend: cool it", Settings(mail="boss@example.org"), hook)
    said = capsys.readouterr()
    assert "labrack: GPU 0 is hot" in said.out and "no mail to boss@example.org" in said.err
    assert "the webhook was not told" in said.err and "canary" not in said.out + said.err
    mails = tmp_path / "mails"
    (tmp_path / "sendmail").write_text(f"#!/bin/sh\n/bin/cat >>{mails}\n")
    (tmp_path / "sendmail").chmod(0o755)
    gpus.tell("desk", "GPU 0 is hot. Mend: cool it", Settings(mail="boss@example.org"), tmp_path / "none")
    assert "Subject: labrack on desk: GPU 0 is hot\n" in mails.read_text()


def test_wrong_settings_are_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    assert Settings.load(file) == Settings()
    for text in ("", "[]", '{"unknown": 1}'):
        file.write_text(text)
        assert Settings.load(file) == Settings()
    file.write_text('{"hot": 80}')
    assert Settings.load(file).hot == 80


# --- the planner -----------------------------------------------------------------------------------------------------

NUMBERS = {"below_slowdown": 5, "hot": 90, "sustain": 3, "calm": 10, "heat_watts": 0, "keep_days": 7}
wishes = st.builds(
    Wanted,
    settings=st.fixed_dictionaries({"hot": st.integers(40, 120), "motd": st.booleans()}),
    webhook=st.sampled_from(["", "https://host/canary"]),
    script=st.sampled_from(["one", "two"]),
    textfile_directory=st.just("/metrics"),
)


def applied(observed: Observed, wanted: Wanted, changes: list[Change]) -> Observed:
    """The host after the changes of a plan; a timer that runs makes its folders."""
    files = dict(observed.files)
    written = gpu_watch_plan.wanted_files(wanted)
    found: dict[str, Any] = {}
    for change in changes:
        verb, *words = change.step
        if verb == "write":
            files[words[0]] = written[words[0]]
        elif verb == "remove":
            files[words[0]] = None
        elif verb in ("link", "unlink"):
            found["linked"] = verb == "link"
        elif verb == "rmtree":
            assert not found.get("timer", observed.timer).active
            found["data"] = False
        elif verb in ("enable", "restart"):
            assert files[gpu_watch_plan.TIMER] and files[gpu_watch_plan.PROGRAM]
            found |= {"timer": ServiceState(True, True, True), "data": True}
        else:
            assert verb == "disable"
            found["timer"] = ServiceState()
    return dataclasses.replace(observed, files=files, **found)


@given(wishes, wishes, st.sampled_from([None, False]))
def test_what_is_planned_is_all_there_is_to_do(first: Wanted, second: Wanted, linked: bool | None) -> None:
    bare = Observed(linked=linked)
    seen = bare
    for wanted in (first, second):
        changes = gpu_watch_plan.plan(seen, wanted)
        assert all("canary" not in change.before + change.after + change.summary for change in changes)
        assert {change.disruption for change in changes} <= {"none"}
        seen = applied(seen, wanted, changes)
        assert gpu_watch_plan.plan(seen, wanted) == []
    gone = Wanted(present=False)
    seen = applied(seen, second, gpu_watch_plan.plan(seen, gone))
    assert gpu_watch_plan.plan(seen, gone) == []
    assert not any(seen.files.values()) and dataclasses.replace(seen, files={}) == bare


def test_only_a_changed_timer_is_started_anew() -> None:
    wanted = Wanted(settings=NUMBERS, script="one")
    seen = applied(Observed(), wanted, gpu_watch_plan.plan(Observed(), wanted))
    changes = gpu_watch_plan.plan(seen, dataclasses.replace(wanted, script="two"))
    assert [change.subject for change in changes] == ["file /usr/local/bin/labrack-gpus"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"hot": 20}, "gpu_watch_hot = 20: not from 40 to 120"),
        ({"keep_days": 0}, "gpu_watch_keep_days = 0"),
        ({"sustain": 100}, "gpu_watch_sustain = 100"),
        ({"heat_watts": -1}, "gpu_watch_heat_watts = -1"),
        ({"mail": "a b"}, "gpu_watch_mail = a b: not an address"),
        ({"webhook": "ftp://canary"}, "gpu_watch_webhook = (not shown): not a http or https address"),
    ],
)
def test_wrong_wishes_are_said(variables: dict[str, Any], words: str) -> None:
    full = {f"gpu_watch_{key}": value for key, value in {**NUMBERS, **variables}.items()}
    (problem,) = gpu_watch_plan.problems(full)
    assert words in problem.line() and "Mend:" in problem.line() and "canary" not in problem.line()
    assert list(check_gpu_variables(full)) == [problem], "before any node is touched"
    assert not list(gpu_watch_plan.problems({f"gpu_watch_{key}": value for key, value in NUMBERS.items()}))


def test_the_settings_are_those_of_the_command() -> None:
    """What the role writes is what the command takes, with the same defaults."""
    assert {*gpu_watch_plan.BOUNDS, "mail", "motd"} == set(Settings.__dataclass_fields__)
    assert dataclasses.asdict(Settings()) == {**NUMBERS, "mail": "", "motd": True}
    assert str(gpus.SETTINGS) == gpu_watch_plan.CONFIG and str(gpus.WEBHOOK) == gpu_watch_plan.WEBHOOK
    assert str(gpus.FOLDER) == gpu_watch_plan.FOLDER and str(gpus.RUN) == gpu_watch_plan.RUN
