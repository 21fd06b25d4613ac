"""Merging into daemon.json: our keys set, everybody else's kept, and all of it taken back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import daemon_json
from ansible_collections.labrack.infra.plugins.module_utils.daemon_json import (
    DaemonJsonError,
    Mark,
    Setting,
    dump,
    merge,
    parse,
    same,
    take_back,
)

CGROUPFS = Setting(("exec-opts", "native.cgroupdriver"), "native.cgroupdriver=cgroupfs")
OURS = [
    Setting(("live-restore",), True),
    Setting(("log-opts", "max-size"), "50m", force=False),
    Setting(("features", "cdi"), True),
    CGROUPFS,
    Setting(("runtimes", "nvidia", "path"), "nvidia-container-runtime"),
    Setting(("runtimes", "nvidia", "args"), [], force=False),
]
FEWER = [OURS[0], OURS[2], Setting(("default-runtime",), "nvidia")]

#: What a file can't hold stands for bytes that are no UTF-8.
TEXTS = st.text(max_size=6).filter(lambda text: "\ufffd" not in text)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
)
#: Values where we set ours, of the types that dockerd takes, so that they often meet.
NEAR = st.fixed_dictionaries(
    {},
    optional={
        "live-restore": st.one_of(st.booleans(), VALUES),
        "features": st.one_of(
            st.none(), st.dictionaries(st.sampled_from(["cdi", "buildkit"]), st.one_of(st.booleans(), VALUES))
        ),
        "exec-opts": st.one_of(
            st.none(),
            st.lists(
                st.sampled_from(["native.cgroupdriver=systemd", "native.cgroupdriver=cgroupfs", "x=y", "", None, 3])
            ),
        ),
        "log-opts": st.dictionaries(st.sampled_from(["max-size", "max-file", "tag"]), TEXTS),
        "runtimes": st.dictionaries(
            st.sampled_from(["nvidia", "crun"]), st.one_of(st.none(), st.fixed_dictionaries({"path": VALUES}))
        ),
        "default-runtime": st.sampled_from(["nvidia", "runc"]),
    },
)
FILES = st.builds(lambda other, near: {**other, **near}, st.dictionaries(TEXTS, VALUES, max_size=4), NEAR)
SETTINGS = st.sampled_from([OURS, FEWER, [], OURS[:3], [Setting(("live-restore",), False)]])


def leaf(data: Any, path: tuple[str, ...]) -> Any:
    return daemon_json._get(data, path)


def without(data: Any, paths: set[tuple[str, ...]], here: tuple[str, ...] = ()) -> Any:
    """What is left of data when our leaves, and what then is empty, are cut out."""
    if isinstance(data, dict):
        found = {key: without(value, paths, (*here, key)) for key, value in data.items() if (*here, key) not in paths}
        return {key: value for key, value in found.items() if value not in ({}, [], None)}
    if isinstance(data, list) and here and here[-1] in daemon_json.LISTS:
        ours = [isinstance(entry, str) and entry.startswith("native.cgroupdriver=") for entry in data]
        place = ours.index(True) if True in ours else len(data)
        return data[:place] + data[place + 1 :]
    return data


@given(FILES, SETTINGS, SETTINGS)
def test_any_file_under_any_settings_after_any_other(
    start: dict[str, Any], first: list[Setting], then: list[Setting]
) -> None:
    after, marks = merge(start, first)
    after, marks = merge(after, then, marks)
    for setting in then:
        found = leaf(after, setting.path)
        assert found is not daemon_json.MISSING
        assert same(found, setting.value) or not setting.force
    paths = {setting.path for setting in [*first, *then]}
    assert same(without(after, paths), without(start, paths))
    again, same_marks = merge(after, then, marks)
    assert dump(again, dump(after)) == dump(after) and same_marks == marks
    assert same(take_back(after, marks), start, ordered=True)
    assert [Mark.read(json.loads(json.dumps(mark.written()))) for mark in marks] == marks


@given(FILES, st.sampled_from([None, 2, 4, "\t"]), st.booleans())
def test_text_keeps_its_style_and_comes_back(start: dict[str, Any], indent: Any, newline: bool) -> None:
    text = json.dumps(start, indent=indent, ensure_ascii=False) + ("\n" if newline else "")
    try:
        text.encode()
    except UnicodeEncodeError:
        assume(False)
    after, marks = merge(parse(text), OURS)
    written = dump(after, text)
    assert same(parse(written), after, ordered=True)
    assert dump(parse(text), text) == text
    if start:
        assert dump(take_back(parse(written), marks), written) == text


def test_literals_that_others_look_for() -> None:
    data, _marks = merge({"a": 1}, [Setting(("default-runtime",), "nvidia")])
    assert '"default-runtime": "nvidia"' in dump(data, '{"a":1}')
    assert '\n  "default-runtime": "nvidia"' in dump(data, '{\n  "a":1\n}\n')
    assert dump({"a": 1}) == '{\n    "a": 1\n}\n'


def test_what_somebody_changed_since_is_theirs() -> None:
    after, marks = merge({"log-opts": {"max-size": "1g"}}, OURS)
    assert after["log-opts"] == {"max-size": "1g"}
    after["features"]["buildkit"] = False
    after["exec-opts"] = ["native.cgroupdriver=systemd"]
    del after["live-restore"]
    assert take_back(after, marks) == {
        "log-opts": {"max-size": "1g"},
        "features": {"buildkit": False},
        "exec-opts": ["native.cgroupdriver=systemd"],
    }


def test_a_value_that_was_there_comes_back_and_one_that_was_ours_already_stays() -> None:
    start = {"live-restore": True, "exec-opts": ["a=b", "native.cgroupdriver=systemd"]}
    after, marks = merge(start, [OURS[0], CGROUPFS])
    assert after["exec-opts"] == ["a=b", "native.cgroupdriver=cgroupfs"]
    assert [mark.path for mark in marks] == [CGROUPFS.path]
    assert take_back(after, marks) == start
    later, marks = merge(after, [OURS[0]], marks)
    assert later == start and marks == []


def test_true_is_not_one() -> None:
    after, marks = merge({"live-restore": 1}, [OURS[0]])
    assert after["live-restore"] is True and marks[0].before == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n  "a": 1,\n}\n', "line 3, column 1"),
        ('{"a": 1', "line 1"),
        ("[1]", "a list"),
        ('"x"', "a text"),
        ("null", "null"),
        ('{"a": {"b": 1, "b": 2}}', '"b"'),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "JSON"),
        ("{" + '"a":{' * 100000, "daemon.json"),
        ('{"a": "\ufffd"}', "UTF-8"),
        ('\ufeff{"a": 1}', "BOM"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str, words: str) -> None:
    with pytest.raises(DaemonJsonError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_an_empty_file_is_an_empty_object() -> None:
    assert parse("") == parse(" \n") == {}


def test_a_setting_needs_an_object() -> None:
    with pytest.raises(DaemonJsonError) as caught:
        merge({"features": "cdi"}, OURS)
    assert "features is a text" in str(caught.value) and "an object" in str(caught.value)
