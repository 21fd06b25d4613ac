"""Changes, consent, and the one way in which every module converges."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils.change import (
    DISRUPTIONS,
    Change,
    consent,
    converge,
    rank,
    report,
)

CHANGES = st.lists(st.builds(Change, st.text("ab"), st.just("made"), st.sampled_from(DISRUPTIONS)))


def test_the_order_of_disruptions() -> None:
    assert sorted(("reboot", "none", "drain", "restart", "reload"), key=rank) == list(DISRUPTIONS)


def test_an_unknown_disruption_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="unknown disruption class 'often'; one of none, reload"):
        Change("file /x", "made", "often")


@given(CHANGES, st.sampled_from(DISRUPTIONS))
def test_consent_splits_in_order(changes: list[Change], limit: str) -> None:
    now, pending = consent(changes, limit)
    assert now == [change for change in changes if rank(change.disruption) <= rank(limit)]
    assert pending == [change for change in changes if rank(change.disruption) > rank(limit)]


def test_a_report() -> None:
    result = report([Change("file /x", "content changed", "reload", "old", "new\n")], [Change("node", "gone", "drain")])
    assert result == {
        "changed": True,
        "changes": [{"subject": "file /x", "summary": "content changed", "disruption": "reload"}],
        "pending": [{"subject": "node", "summary": "gone", "disruption": "drain"}],
        "diff": [{"before_header": "file /x", "after_header": "file /x (reload)", "before": "old\n", "after": "new\n"}],
    }


def test_what_only_waits_changes_nothing() -> None:
    assert report([], [Change("node", "gone", "drain")])["changed"] is False


class Ended(Exception):
    """The module has ended."""


class Machine:
    """A node that has some words and shall have others, and the module that works on it."""

    def __init__(self, has: set[str], wants: set[str], consent: str = "restart", check: bool = False) -> None:
        self.has, self.wants = has, wants
        self.deaf = False
        self.applied: list[str] = []
        self.params = {"max_disruption": consent}
        self.check_mode = check
        self.result: dict[str, Any] = {}
        self.warnings: list[str] = []

    def warn(self, warning: str) -> None:
        self.warnings.append(warning)

    def exit_json(self, **kwargs: Any) -> NoReturn:
        self.result = kwargs
        raise Ended

    def fail_json(self, msg: str, **kwargs: Any) -> NoReturn:
        self.result = {**kwargs, "failed": msg}
        raise Ended

    def observe(self) -> set[str]:
        return set(self.has)

    def plan(self, state: set[str]) -> list[Change]:
        return [
            Change(word, "added", "drain" if word.startswith("heavy") else "restart")
            for word in sorted(self.wants - state)
        ]

    def apply(self, changes: list[Change]) -> None:
        for change in changes:
            self.applied.append(change.subject)
            if not self.deaf:
                self.has.add(change.subject)

    def run(self) -> dict[str, Any]:
        with pytest.raises(Ended):
            converge(self, self.observe, self.plan, self.apply, self.extra)
        return self.result

    def extra(self, state: set[str]) -> dict[str, Any]:
        waiting = {"subject": "later", "summary": "waits", "disruption": "drain"}
        return {"has": sorted(state), "pending": [waiting]}


def subjects(lines: list[dict[str, str]]) -> list[str]:
    return [line["subject"] for line in lines]


def test_converge_applies_what_consent_covers_and_looks_again() -> None:
    machine = Machine({"a"}, {"a", "b", "heavy"})
    result = machine.run()
    assert (result["changed"], subjects(result["changes"]), machine.applied) == (True, ["b"], ["b"])
    assert subjects(result["pending"]) == ["heavy", "later"]
    assert result["has"] == ["a", "b"]
    (warning,) = machine.warnings
    assert "heavy: added; later: waits" in warning
    assert "-e lab_max_disruption=drain" in warning
    again = Machine(machine.has, machine.wants)
    assert again.run()["changed"] is False
    assert again.applied == []


def test_check_mode_predicts_and_touches_nothing() -> None:
    checked, real = Machine({"a"}, {"a", "b"}, check=True), Machine({"a"}, {"a", "b"})
    predicted, made = checked.run(), real.run()
    assert checked.applied == []
    assert {key: predicted[key] for key in ("changed", "changes", "diff")} == {
        key: made[key] for key in ("changed", "changes", "diff")
    }


def test_without_a_word_everything_is_consented_to() -> None:
    machine = Machine(set(), {"heavy"})
    machine.params = {}
    assert subjects(machine.run()["changes"]) == ["heavy"]


def test_a_node_that_does_not_follow_fails_the_module() -> None:
    machine = Machine(set(), {"b", "heavy"})
    machine.deaf = True
    result = machine.run()
    assert result["failed"] == "did not converge: b: added"
    assert subjects(result["left"]) == ["b"]
    assert result["changed"] is True
