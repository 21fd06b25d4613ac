"""HuJSON: what is written reads back, what others write is understood, faults are placed."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import hujson

TEXT = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs", "Cc"]), max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXT, st.sampled_from(["// no", "/* no */", 'a "b",]', ",}"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_what_is_written_reads_back(value: dict[str, Any]) -> None:
    text = hujson.dumps(value, dict.fromkeys(value, "said\nin two lines"))
    assert hujson.loads(text) == value
    assert hujson.dumps(hujson.loads(text), dict.fromkeys(value, "said\nin two lines")) == text


@given(VALUES, st.randoms(use_true_random=False))
def test_comments_and_commas_change_nothing(value: Any, chance: random.Random) -> None:
    noise = [" ", "\n", "// it's /* a \"comment\n", "/* one,\n// two */", "/**/"]
    parts = []
    for line in json.dumps(value, indent=1).splitlines():
        stripped = line.strip()
        if stripped[0] in "]}":
            parts.append(",")
        parts += [stripped, chance.choice(noise)]
    assert hujson.loads("".join(parts)) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n  // one\n  "a": [1, 2\n}', ["line 4, column 1"]),
        ('{"a": 1,, }', ["line 1, column 11"]),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', ["'c'", "twice"]),
        ("", ["line 1"]),
        ('{"a": "//', ["line 1"]),
    ],
)
def test_a_fault_has_its_place(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        hujson.loads(text)
    assert all(word in str(caught.value) for word in words), str(caught.value)
