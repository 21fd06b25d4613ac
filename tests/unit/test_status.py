# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab's status: put together from what hosts answer, shown on a screen, in JSON, on a page.

The screens in fixtures/status are written by `python -m tests.made_up`; look at what changed before it is kept.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner, Result

from labrack import cli, drift, lab, page, run, status
from labrack.lab import Lab
from labrack.run import Failure, Outcome, RunError
from labrack.status import Finding, Status
from tests import made_up
from tests.unit.test_slurm_view import JOBS, NODES_24_11

FIXTURES = Path(__file__).parent / "fixtures/tailnet"


def findings(seen: Status) -> list[tuple[str, str, str]]:
    return [(one.level, one.node, one.text) for one in seen.findings]


# --- put together ---


def test_a_closet() -> None:
    seen = made_up.seen("closet")
    by_name = {node.name: node for node in seen.nodes}
    assert list(by_name) == ["head", "node1", "node2", "node3", "node4"]
    assert by_name["head"].roles == ("head", "files", "slurm", "accounting", "login")
    assert (by_name["node3"].state, by_name["node3"].reason) == ("idle+drain", "GPU 2 fell off the bus")
    assert by_name["node4"].state == "no answer" and "No route to host" in by_name["node4"].error
    assert [(card.taken, card.users, card.jobs) for card in by_name["node2"].cards] == [
        (True, ("grace",), ("4190",)),
        (True, ("ben",), ("4189",)),
        (False, (), ()),
        (False, (), ()),
    ]
    assert seen.time == "2026-03-02T17:04:00+00:00" and len(seen.tailnet) == 5
    assert findings(seen) == [
        ("bad", "node3", "idle+drain: GPU 2 fell off the bus"),
        ("bad", "node4", "no answer: ssh: connect to host 10.0.0.5 port 22: No route to host"),
        ("warn", "node2", "waits for a restart: kernel 6.12.48+deb13-amd64 runs, 6.12.57+deb13-amd64 is installed"),
        ("warn", "head", "/checkpoints is 93 % full"),
        ("warn", "", "circuit wall may have to carry 4561 W, 2944 W are safe"),
        ("warn", "node2", "waits for consent (reboot): driver: 580.82.07 → 580.95.05"),
        ("warn", "node3", "changed since the last apply: file /etc/chrony/chrony.conf: content changed"),
        ("note", "head", "ada is over the quota of 500G"),
    ]


def test_one_machine_without_a_scheduler() -> None:
    seen = made_up.seen("desk")
    assert not seen.slurm and seen.slurm_error == "" and seen.findings == ()
    assert [(one.node, one.card, one.user) for one in seen.processes] == [("desk", 0, "ada")]
    assert [card.taken for card in seen.cards] == [True, False]


def changed(**told: Any) -> Status:
    """The desk with something else in its answer."""
    described, answers, known = made_up.desk()
    answers["desk"]["status"].update(told)
    return status.assemble(described, answers, "desk", now=made_up.NOW, **known)


@pytest.mark.parametrize(
    ("told", "finding"),
    [
        (
            {"nvidia": {"state": "mismatch", "driver": None, "message": "Driver/library version mismatch"}},
            ("bad", "desk", "the GPU driver does not work: Driver/library version mismatch"),
        ),
        ({"gpus": [made_up.gpu(3, degrees=87)]}, ("bad", "desk", "GPU 3 has 87 °C")),
        (
            {"gpus": [made_up.gpu(3, degrees=88, temperature_slowdown_c=None)]},
            ("bad", "desk", "GPU 3 has 88 °C"),
        ),
        ({"disks": [{"mount": "/", "size_mib": 1000, "free_mib": 99}]}, ("warn", "desk", "/ is 91 % full")),
        (
            {"gitops": {"time": "", "commit": "", "result": "refused", "message": "a rewritten history"}},
            ("bad", "", "GitOps: refused: a rewritten history"),
        ),
        (
            {
                "storage": {
                    "host": "desk",
                    "directories": [{"path": "/home", "filesystem": "/srv", "mounted": False}],
                    "users": [{"name": "ben", "used": 60, "soft": 0, "hard": 60, "over_since": None}],
                    "projects": [],
                }
            },
            ("bad", "desk", "/home: /srv is not mounted"),
        ),
    ],
)
def test_what_somebody_should_look_at(told: dict[str, Any], finding: tuple[str, str, str]) -> None:
    assert finding in findings(changed(**told))


@pytest.mark.parametrize(
    "declared", ["wall", [1], [{"name": "wall"}], {"wall": 1}, [{"name": "w", "volts": "x", "amps": 1}]]
)
def test_circuits_that_nobody_can_read_are_a_finding(declared: Any) -> None:
    _, answers, _ = made_up.desk()
    described = made_up.lab_of({"desk": {"lab_circuits": declared}}, {"lab_head": ["desk"]})
    (one,) = status.assemble(described, answers, "desk").findings
    assert one.text == "lab_circuits can't be read: `labrack doctor --offline` tells why"


def test_a_machine_on_two_circuits_takes_half_of_each() -> None:
    _, answers, _ = made_up.desk()
    declared = [{"name": name, "volts": 230, "amps": 16, "nodes": ["desk", "elsewhere"]} for name in ("a", "b")]
    described = made_up.lab_of({"desk": {"lab_circuits": declared}}, {"lab_head": ["desk"]})
    one, other = status.assemble(described, answers, "desk").circuits
    assert (one.usable_w, one.breaker_w) == (2944, 3680) and one.loads == other.loads
    # two cards of 450 W, a processor with 32 cores, the base: half of it all
    assert one.most_w == round((900 + 237 + 300) / 2, 1) and 0 < one.draw_w < one.most_w
    assert one.loads[1] == status.Load("elsewhere", None, None)


def test_drift_is_what_the_nodes_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    item = {"kind": "file", "name": "/etc/hosts", "what": "content\x1b", "who": "eva", "when": "2026-03-02T16:00:00Z"}
    reports = [
        {"host": "desk", "checked": {"file": 4, "unit": 2}, "applied": {"baseline": "x"}, "items": [item]},
        {"host": "off", "error": "no route to host"},
        {"host": "new", "checked": {}, "applied": {}, "items": []},
    ]
    monkeypatch.setattr(drift, "read", lambda *_: reports)
    described = made_up.desk()[0]
    found = status.read_drift(described, tmp_path / "log", Any)  # type: ignore[arg-type]
    assert found == status.Drift(6, (("desk", "file /etc/hosts: content� (eva 2026-03-02T16:00:00Z)"),))
    monkeypatch.setattr(drift, "read", lambda *_: reports[1:])
    assert status.read_drift(described, tmp_path / "log", Any) is None  # type: ignore[arg-type]


def test_a_card_that_is_warm_is_no_finding() -> None:
    assert changed(gpus=[made_up.gpu(0, degrees=86)], disks=[]).findings == ()


def test_a_controller_that_gives_no_answer() -> None:
    described, answers, known = made_up.closet()
    answers["head"] = made_up.silent()
    seen = status.assemble(described, answers, "closet", **known)
    assert seen.slurm and seen.slurm_error == "the controller gives no answer" and seen.jobs == ()
    assert findings(seen)[0] == ("bad", "", "Slurm says nothing: the controller gives no answer")
    # then the cards themselves tell, as far as they can
    assert next(node for node in seen.nodes if node.name == "node1").state == "up"
    assert "No job" not in screen(seen)


def test_a_module_that_failed_is_not_a_machine_that_is_down() -> None:
    described, answers, _ = made_up.desk()
    answers["desk"] = {"failed": True, "msg": "python3: not found\nsomething"}
    (node,) = status.assemble(described, answers, "desk").nodes
    assert (node.state, node.error) == ("not read", "python3: not found something")


def entry(**more: Any) -> dict[str, Any]:
    pending = [{"subject": "driver", "summary": "new", "disruption": "reboot"}]
    hosts = {"desk": {"changed": 1, "failed": "", "unreachable": False, "pending": pending}}
    told = {
        "ended": "2026-03-02T16:00:00Z",
        "playbook": "labrack.infra.under_desk",
        "check": False,
        "tags": [],
        "rc": 0,
    }
    return {**told, "by": "eva", "commit": "", "hosts": hosts, **more}


def with_runs(*runs: dict[str, Any]) -> Status:
    described, answers, _ = made_up.desk()
    return status.assemble(described, answers, "desk", runs=runs)


def test_the_last_run_is_one_that_could_change_something() -> None:
    looking = [entry(playbook=name, hosts={"desk": {}}) for name in ("labrack.infra.status", "/x/verify.yml")]
    seen = with_runs(entry(), entry(check=True, hosts={"desk": {"pending": []}}), *looking)
    assert seen.last_run is not None and (seen.last_run.playbook, seen.last_run.changed) == ("under_desk", 1)
    # a check tells of consent as well, and came later
    assert seen.pending == ()
    assert with_runs(entry(), entry(tags=["slurm"], hosts={"desk": {"pending": []}})).pending[0].subject == "driver"


def test_a_failed_run_is_told() -> None:
    failed = {"desk": {"changed": 0, "failed": "no space left", "unreachable": False, "pending": []}}
    seen = with_runs(entry(rc=2, hosts=failed))
    assert ("bad", "", "the last run of under_desk failed on desk") in findings(seen)


def test_a_quick_look_asks_one_host() -> None:
    def remote(host: str, command: str) -> str:
        assert host == "head"
        if command.startswith("scontrol"):
            return NODES_24_11
        if command.startswith("'squeue'"):
            return JOBS.replace("5eed", "end")
        return (FIXTURES / "status_1.102.3.json").read_text(encoding="utf-8")

    seen = status.look("head", remote)
    assert [node.name for node in seen.nodes] == ["node1", "node2", "cpu1"]
    assert [job.id for job in seen.jobs] == ["5", "3", "4_[1-8]"]
    assert "thead" in {machine.name for machine in seen.tailnet}


# --- on a screen ---


def screen(seen: Status, width: int = 120) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(status.render(seen))
    return output.getvalue()


@pytest.mark.parametrize("width", made_up.WIDTHS)
@pytest.mark.parametrize("which", ["closet", "desk", "hostile"])
def test_screens(which: str, width: int) -> None:
    shown = made_up.screen(which, width)
    assert shown == (made_up.SCREENS / f"{which}-{width}.txt").read_text(encoding="utf-8")
    assert max(map(len, shown.splitlines())) <= width
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown), "nothing steers a terminal"


def test_a_large_lab_is_short() -> None:
    lines = made_up.screen("many", 120).splitlines()
    assert len(lines) < 50 + status.MOST_JOBS + status.MOST_FINDINGS + 15
    assert "… and 60 more" in "\n".join(lines)


TEXTS = st.text(max_size=40)


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_whatever_a_job_is_called(name: str, user: str, where: str) -> None:
    described, answers, known = made_up.closet()
    answers["head"]["status"]["slurm"]["jobs"] = [made_up.job("1", user, name, where=where)]
    seen = status.assemble(described, answers, "closet", **known)
    told = json.loads(json.dumps(seen.to_json()))
    assert told["jobs"][0]["name"] == status.clean(name) == status.clean(told["jobs"][0]["name"])
    shown = screen(seen, 80)
    assert "\x1b" not in shown and max(map(cell_len, shown.split("\n"))) <= 80
    assert Elements(page.render(seen)).names() <= PLAIN


# --- on a page ---

#: Elements that may be on the page.
PLAIN = frozenset(
    (
        *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer"),
        *("h1", "h2", "h3", "div", "span", "time", "b", "i", "ul", "li", "dl", "dt", "dd", "table", "tr", "th", "td"),
        *("svg", "g", "rect", "circle", "line", "text"),
    )
)


class Elements(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def names(self) -> set[str]:
        return {tag for tag, _ in self.elements}


@pytest.mark.parametrize("which", made_up.LABS)
def test_the_page_needs_nothing_else_and_runs_nothing(which: str) -> None:
    seen = Elements(page.render(made_up.seen(which)))
    assert seen.names() <= PLAIN
    attributes = [(name, value) for _, attrs in seen.elements for name, value in attrs.items()]
    assert [value for name, value in attributes if name in ("href", "src", "xlink:href", "action")] == ["data:,"]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    policy = next(attrs["content"] for tag, attrs in seen.elements if attrs.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    style = re.search(r"<style>(.*?)</style>", page.render(made_up.seen(which)), re.DOTALL)
    assert style and not re.search(r"url\(|@import|expression", style[1])


def test_hostile_texts_are_texts() -> None:
    texts = " ".join(Elements(page.render(made_up.seen("hostile"))).texts)
    for text in made_up.HOSTILE:
        assert status.clean(text).strip() in texts


def test_the_page_of_a_closet() -> None:
    texts = " ".join(" ".join(Elements(page.render(made_up.seen("closet"))).texts).split())
    for words in ("4 / 5 nodes answer", "vit-large-pretrain", "93 % of 15.6T used", "2511 W now", "GitOps", "10G"):
        assert words in texts, words


def test_pictures_of_the_network_have_every_machine_once_and_none_on_another() -> None:
    for which in made_up.LABS:
        seen = made_up.seen(which)
        for columns in (1, 2, 6):
            net = page.topology(seen, columns)
            assert [box.node.name for box in net.boxes] == [node.name for node in seen.nodes]
            places = {(box.x, box.y) for box in net.boxes}
            assert len(places) == len(net.boxes)
            assert all(
                box.x + page.BOX_WIDTH <= net.width and box.y + page.BOX_HEIGHT <= net.height for box in net.boxes
            )
            assert all(0 <= end <= net.width for line in net.lines for end in (line.x1, line.x2))


@given(st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000)), max_size=6), st.floats(0, 8000))
def test_bars_stay_in_their_frame(loads: list[tuple[float, float]], breaker: float) -> None:
    circuit = status.Circuit(
        "c", breaker, breaker * 0.8, tuple(status.Load(str(n), min(one), max(one)) for n, one in enumerate(loads))
    )
    bar = page.circuit_bar(circuit)
    assert all(0 <= x <= 100.01 and 0 <= width <= 100 and x + width <= 100.1 for x, width, _, _ in bar.parts)
    assert bar.mark is not None and 0 <= bar.mark <= 100


def test_a_page_that_loads_itself_again() -> None:
    assert '<meta http-equiv="refresh" content="30">' in page.render(made_up.seen("desk"), 30)
    assert "refresh" not in page.render(made_up.seen("desk"))


# --- the command ---


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The closet, as an inventory that nobody reads and a playbook that nobody runs."""
    described, answers, _ = made_up.closet()
    (tmp_path / "inventory").mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(lab, "load", lambda paths: Lab(tuple(paths), described.hosts, described.groups))

    def play(playbook: str, paths: Sequence[Path], log: Path, step: Any, variables: Mapping[str, str]) -> Outcome:
        assert playbook == "labrack.infra.status" and paths[0].is_absolute()
        Path(variables["status_file"]).write_text(json.dumps(answers), encoding="utf-8")
        return Outcome({}, {})

    monkeypatch.setattr(run, "run_playbook", play)
    monkeypatch.setattr(status, "read_drift", lambda *_: None)
    return tmp_path / "inventory"


def labrack_status(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["status", *arguments], prog_name="labrack")


def test_the_command_prints_a_screen_or_one_document(inventory: Path) -> None:
    done = labrack_status("-i", str(inventory))
    assert done.exit_code == 0, done.stderr
    assert "vit-large-pretrain" in done.stdout and "node4: no answer" in done.stdout
    assert "\x1b" not in done.stdout and "Status" in done.stderr
    done = labrack_status("-i", str(inventory), "--json")
    told = json.loads(done.stdout)
    assert told["schema"] == 1 and len(told["nodes"]) == 5


def test_the_command_needs_no_arguments(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABRACK_INVENTORY", str(inventory))
    assert labrack_status().exit_code == 0


def test_the_command_writes_a_page_whole(inventory: Path, tmp_path: Path) -> None:
    file = tmp_path / "out/status.html"
    done = labrack_status("-i", str(inventory), "--html", str(file))
    assert done.exit_code == 1 and f"The page can't be written: {file}" in done.stderr
    file.parent.mkdir()
    done = labrack_status("-i", str(inventory), "--html", str(file))
    assert done.exit_code == 0 and done.stdout == ""
    assert file.read_text(encoding="utf-8").endswith("</html>\n") and [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize(("arguments", "seconds"), [(["--watch"], 10.0), (["--watch", "3"], 3.0), (["--watch=3"], 3.0)])
def test_watching_looks_until_somebody_stops_it(
    inventory: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], seconds: float
) -> None:
    slept: list[float] = []

    def sleep(length: float) -> None:
        slept.append(length)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", sleep)
    done = labrack_status(*arguments, "-i", str(inventory), "--json")
    assert slept == [seconds] * 3 and done.exit_code == 130
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 3
    assert done.stderr == "Interrupted.\n"


def test_wrong_seconds_are_wrong_usage(inventory: Path) -> None:
    for words in (["--watch", "0"], ["--watch=soon"]):
        assert labrack_status("-i", str(inventory), *words).exit_code == 64


def test_a_lab_that_can_not_be_asked_is_one_block(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RunError([Failure("this machine", "Read the playbook", "no such group")], Path("/state/log"))

    monkeypatch.setattr(run, "run_playbook", fail)
    done = labrack_status("-i", str(inventory))
    assert done.exit_code == 1 and done.stdout == "" and "no such group" in done.stderr
    assert "Traceback" not in done.stderr


def test_findings_have_three_levels() -> None:
    levels = {one.level for which in made_up.LABS for one in made_up.seen(which).findings}
    assert levels <= {"bad", "warn", "note"} and isinstance(made_up.seen("closet").findings[0], Finding)
