# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""YAML texts that are edited in place: comments stay, other lines keep every byte, and no more changes than is said."""

from __future__ import annotations

import difflib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labrack.shell import UserError
from labrack.yaml_edit import Document, load

ROOT = Path(__file__).parents[2]
#: Words that YAML takes for something else, and others.
WORDS = st.sampled_from(["ada", "yes", "no", "0123", "1:20", "~", "a: b", "# x", "2027-03-31", "ünï", "x y", "'", "{"])
COMMENTS = st.sampled_from(["", "  # said by hand", " #"])
BETWEEN = st.sampled_from(["", "\n", "# a comment of its own\n", "\n# and one after a blank line\n\n"])


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that went, and those that came."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    return [line[2:] for line in lines if line[0] == "-"], [line[2:] for line in lines if line[0] == "+"]


@st.composite
def people(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    """A list of people in some style, with comments anywhere, between other keys."""
    offset = draw(st.sampled_from(["", "  ", "    "]))
    entries: list[dict[str, Any]] = []
    text = "---\n" + draw(BETWEEN) + "first: 1" + draw(COMMENTS) + "\nlab_users:" + draw(COMMENTS) + "\n"
    for number in range(draw(st.integers(1, 4))):
        name = f"user{number}"
        entry: dict[str, Any] = {"name": name, "comment": draw(WORDS)}
        quoted = yaml.safe_dump(entry["comment"], default_style='"', allow_unicode=True).strip()
        if draw(st.booleans()):
            text += f"{offset}- {{name: {name}, comment: {quoted}}}{draw(COMMENTS)}\n"
        else:
            text += f"{offset}- name: {name}{draw(COMMENTS)}\n{offset}  comment:  {quoted}{draw(COMMENTS)}\n"
            if draw(st.booleans()):
                entry["keys"] = ["ssh-ed25519 AAAA x"]
                text += f"{offset}  keys:\n{offset}    - ssh-ed25519 AAAA x\n{offset}    # - an old key\n"
        entries.append(entry)
    text += draw(BETWEEN) + "last: 'x'" + draw(COMMENTS) + draw(st.sampled_from(["", "\n"]))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return text, entries


@given(people(), WORDS)
def test_an_entry_is_added_and_nothing_else(made: tuple[str, list[dict[str, Any]]], word: str) -> None:
    text, entries = made
    document = Document(text)
    entry = {"name": word, "uid": 2005, "groups": ["vision"], "keys": ["ssh-ed25519 AAAA b c", "ssh-rsa AAAA"]}
    document.append(("lab_users",), entry)
    assert load(document.text) == {"first": 1, "lab_users": [*entries, entry], "last": "x"}
    assert changed(text, document.text)[0] == []


@given(people(), st.data())
def test_a_key_is_set_in_one_entry(made: tuple[str, list[dict[str, Any]]], data: st.DataObject) -> None:
    text, entries = made
    place = data.draw(st.integers(0, len(entries) - 1))
    key, value = data.draw(st.sampled_from(["state", "comment"])), data.draw(st.one_of(WORDS, st.booleans()))
    document = Document(text)
    document.set(("lab_users", place, key), value)
    wanted = deepcopy(entries)
    wanted[place][key] = value
    assert load(document.text)["lab_users"] == wanted
    went, came = changed(text, document.text)
    # at most the line itself is another one, with its comment
    assert len(went) <= 1 and len(came) <= 1
    assert document.text.count("#") - text.count("#") == sum(str(value).count("#") for _ in [0]) - (
        entries[place]["comment"].count("#") if key == "comment" else 0
    )


HOSTS = """\
lab_workers:
  hosts:
    # the loud one
    node1: {gap}
      ansible_host: 10.0.0.1 # here
      # slurm_gpu_count: 4
    node2:
    node3:
      ansible_host: 10.0.0.3


# What they do.
slurm_worker: {{children: {{lab_workers: }}}}
"""


@pytest.mark.parametrize("gap", ["", "# at the window"])
@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("node1", ["    node1: {gap}", "      ansible_host: 10.0.0.1 # here", "      # slurm_gpu_count: 4"]),
        ("node2", ["    node2:"]),
        ("node3", ["    node3:", "      ansible_host: 10.0.0.3"]),
    ],
)
def test_a_host_is_taken_out(gap: str, name: str, gone: list[str]) -> None:
    text = HOSTS.format(gap=gap)
    document = Document(text)
    document.remove(("lab_workers", "hosts", name))
    assert changed(text, document.text) == ([line.format(gap=gap) for line in gone], [])


def test_a_host_is_put_behind_the_last_one() -> None:
    text = HOSTS.format(gap="")
    document = Document(text)
    document.set(("lab_workers", "hosts", "node4"), {"ansible_host": "10.0.0.4"})
    assert document.text == text.replace("10.0.0.3\n", "10.0.0.3\n    node4:\n      ansible_host: 10.0.0.4\n")


def test_the_last_host_goes_and_another_comes() -> None:
    text = "all:\n  hosts:\n    a:\n      x: 1\n  # about vars\n  vars: {}\n"
    document = Document(text)
    document.remove(("all", "hosts", "a"))
    assert document.text == "all:\n  hosts:\n  # about vars\n  vars: {}\n"
    document.set(("all", "hosts", "b"), None)
    assert document.text == "all:\n  hosts:\n    b:\n  # about vars\n  vars: {}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("lab_users: []  # nobody\nx: 1\n", "lab_users:  # nobody\n  - name: ada\nx: 1\n"),
        ("lab_users:\n#  - name: eve\nx: 1\n", "lab_users:\n  - name: ada\n#  - name: eve\nx: 1\n"),
        ("x: 1", "x: 1\nlab_users:\n  - name: ada\n"),
        ("lab_users: [{name: b}]  # two\n", "lab_users: [{name: b}, {name: ada}]  # two\n"),
        ("lab_users:\n- name: b\nx: 1\n", "lab_users:\n- name: b\n- name: ada\nx: 1\n"),
    ],
)
def test_styles_of_lists(before: str, after: str) -> None:
    document = Document(before)
    document.append(("lab_users",), {"name": "ada"})
    assert document.text == after


def test_vaulted_values_stay_as_they_are() -> None:
    secret = "token: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3634\n\n"
    document = Document(f"{secret}lab_users: []\n")
    document.append(("lab_users",), {"name": "ada"})
    assert document.text.startswith(secret)


@pytest.mark.parametrize(
    "text",
    [
        "lab_users: '{{ others }}'\n",
        "lab_users: &all\n  - name: b\nothers: *all\n",
        "lab_users: {a: 1}\n",
        "- 1\n",
    ],
)
def test_what_is_not_understood_is_left_alone(text: str) -> None:
    document = Document(text, "lab.yml")
    with pytest.raises(UserError, match=r"lab\.yml .*by hand"):
        document.append(("lab_users",), {"name": "ada"})
    assert document.text == text


@pytest.mark.parametrize("name", ["closet", "under_desk"])
def test_the_shipped_inventories_can_be_edited(name: str) -> None:
    text = (ROOT / "inventories" / name / "group_vars/all/lab.yml").read_text()
    document = Document(text)
    document.append(("lab_users",), {"name": "ada", "uid": 2001})
    document.set(("lab_users", 0, "state"), "locked")
    went, came = changed(text, document.text)
    assert (went, came[0]) == (["lab_users: []"], "lab_users:") and len(came) == 4


def test_what_comes_behind_a_long_text_stands_right_below_it() -> None:
    document = Document("a:\n  x: |\n    text\n\n# next\nb: 1\n")
    document.set(("a", "y"), 2)
    assert document.text == "a:\n  x: |\n    text\n  y: 2\n\n# next\nb: 1\n"
