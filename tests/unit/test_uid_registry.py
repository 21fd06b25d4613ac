# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Numbers for people who have none: free everywhere, chosen once, never given twice."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.filter.lab_places import busy_elsewhere, lab_places, launch_keys
from ansible_collections.labrack.infra.plugins.module_utils import uid_registry
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from ansible_collections.labrack.infra.plugins.module_utils.rules_users import expiry_words
from ansible_collections.labrack.infra.plugins.module_utils.uid_registry import fill
from ansible_collections.labrack.infra.plugins.plugin_utils import inventory_read

NAMES = ["ada", "bob", "cy", "dee"]
HOSTS = ["head", "node1"]


def facts(users: dict[str, int] | None = None, groups: dict[str, int] | None = None) -> dict[str, Any]:
    """A node with these accounts, each with a group of its own number, and these groups."""
    people = {"root": 0, "daemon": 1, **(users or {})}
    return {
        "users": [{"name": name, "uid": uid, "gid": uid} for name, uid in people.items()],
        "groups": [{"name": name, "gid": gid} for name, gid in {**people, **(groups or {})}.items()],
        "subids": [],
        "processes": {},
    }


NUMBERS = st.integers(1998, 2006)
NODES = st.fixed_dictionaries(
    {
        host: st.builds(
            facts,
            st.dictionaries(st.sampled_from([*NAMES, "eve", "gus"]), NUMBERS, max_size=3),
            st.dictionaries(st.sampled_from(["vision", "robots"]), NUMBERS, max_size=2),
        )
        for host in HOSTS
    }
)
PEOPLE = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(NAMES)}, optional={"uid": st.integers(2000, 2004)}),
    # two with one name or number are refused before
    unique_by=(lambda user: str(user["name"]), lambda user: user.get("uid", user["name"])),
)


@given(PEOPLE, PEOPLE, NODES, NODES)
def test_no_number_changes_hands(
    first: list[dict[str, Any]], then: list[dict[str, Any]], nodes: dict[str, Any], later: dict[str, Any]
) -> None:
    given_: uid_registry.Given = {}
    owners: dict[int, str] = {}
    for users, seen in ((first, nodes), (then, later)):
        filled = fill(users, [], given_, seen, HOSTS)
        if filled.findings:
            # a run that is refused writes nothing
            continue
        assert filled.given.items() >= given_.items()
        given_ = filled.given
        for name, numbers in given_.items():
            for number in numbers:
                assert owners.setdefault(number, name) == name
        for user, named in zip(filled.users, users, strict=True):
            assert user["uid"] and user["uid"] == named.get("uid", user["uid"])
            holders = {one["name"] for node in seen.values() for one in node["users"] if one["uid"] == user["uid"]} - {
                user["name"]
            }
            assert not holders or named.get("uid") or user["name"] in uid_registry.read(given_)
        again = fill(users, [], given_, seen, HOSTS)
        assert again.given == given_ and again.users == filled.users
        assert uid_registry.read(yaml.safe_load(uid_registry.text(given_))) == given_


def test_the_lowest_number_that_is_free_on_all_nodes() -> None:
    nodes = {"head": facts({"eve": 2000}, {"vision": 2002}), "node1": facts({"gus": 2001}, {"robots": 2004})}
    users = [{"name": "dee"}, {"name": "ada", "uid": 2005}, {"name": "bob"}]
    filled = fill(users, [{"name": "audio", "gid": 2006}], {"cy": (2003, 1999)}, nodes, HOSTS)
    assert [user["uid"] for user in filled.users] == [2007, 2005, 2008] and not filled.findings
    assert filled.given == {"ada": (2005,), "bob": (2008,), "cy": (2003, 1999), "dee": (2007,)}


def test_numbers_of_containers_that_somebody_has_are_not_proposed() -> None:
    nodes = {host: facts() for host in HOSTS}
    nodes["node1"]["subids"] = [{"file": "/etc/subuid", "owner": "eve", "start": 100000, "count": 65536 * 1001}]
    assert fill([{"name": "ada"}], [], {}, nodes, HOSTS).users[0]["uid"] == 2001
    assert fill([{"name": "ada"}], [], {}, nodes, HOSTS, subids=False).users[0]["uid"] == 2000


def test_an_account_keeps_its_number() -> None:
    nodes = {"head": facts({"ada": 1003}), "node1": facts()}
    assert fill([{"name": "ada"}], [], {}, nodes, HOSTS).given == {"ada": (1003,)}


@pytest.mark.parametrize(
    ("users", "given_", "nodes", "words"),
    [
        ([{"name": "ada"}], {}, {"head": facts()}, ["node1", "--limit"]),
        (
            [{"name": "ada"}],
            {},
            {"head": facts({"ada": 2001}), "node1": facts({"ada": 2005})},
            ["2001 on head", "2005 on node1", "labrack.infra.uid_migrate -e user=ada -e uid=2001"],
        ),
        (
            [{"name": "ada"}],
            {},
            {"head": facts({"ada": 2001}), "node1": facts({"eve": 2001})},
            ["2001 on head", "eve on node1", "uid_migrate -e user=ada"],
        ),
        ([{"name": "ada"}], {}, {"head": facts({"ada": 105}), "node1": facts()}, ["head", "105", "another name"]),
        ([{"name": "ada", "uid": 2001}], {"bob": (2003, 2001)}, {}, ["2001", "bob", "leave it out"]),
        ([{"name": "ada", "uid": 2001}], {"ada": (2002,)}, {}, ["2002", "uid_migrate -e user=ada -e uid=2001"]),
    ],
)
def test_what_is_refused_has_its_mend(
    users: list[dict[str, Any]], given_: uid_registry.Given, nodes: dict[str, Any], words: list[str]
) -> None:
    (finding,) = fill(users, [], given_, nodes, HOSTS).findings
    assert finding.path == ("lab_users", 0, "uid")
    assert not [word for word in words if word not in finding.line()], finding.line()


def test_a_lab_with_all_numbers_has_no_registry() -> None:
    users = [{"name": "ada", "uid": 2001}]
    assert fill(users, [], {}, {}, HOSTS) == uid_registry.Filled(tuple(users))


@pytest.mark.parametrize("text", ["- ada", "ada: two", "ada: true", "ada: []", "ada: 2001\nbob: [2002, 2001]"])
def test_a_damaged_registry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        uid_registry.read(yaml.safe_load(text))


def test_what_was_somebodys_number_stays_theirs() -> None:
    moved = uid_registry.moved({"ada": (2001,), "bob": (2002,)}, "ada", 2005)
    assert moved == {"ada": (2005, 2001), "bob": (2002,)}
    assert uid_registry.holder(moved, 2001) == "ada" and uid_registry.holder(moved, 2003) == ""
    assert uid_registry.moved({}, "ada", 2005) == {}


def lab(users: list[dict[str, Any]], **nodes: Any) -> Inventory:
    return Inventory({host: {"lab_users": users} for host in HOSTS}, {"lab_head": HOSTS}, nodes)


def test_the_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "lab_uids.txt"
    inventory = lab([{"name": "ada"}], head=facts(), node1=facts())
    numbered, findings, told = inventory_read.number_people(inventory, path)
    assert findings == [] and told["users"] == [{"name": "ada", "uid": 2000}] and not path.exists()
    assert {one["lab_users"][0]["uid"] for one in numbered.hosts.values()} == {2000}
    path.write_text(told["text"])
    # later the number is hers even where somebody else has taken it, which is a clash of its own
    later = lab([{"name": "ada"}], head=facts(), node1=facts({"eve": 2000}))
    _numbered, findings, told = inventory_read.number_people(later, path)
    assert findings == [] and "text" not in told and told["users"] == [{"name": "ada", "uid": 2000}]
    path.write_text("nonsense: [")
    _numbered, (finding,), told = inventory_read.number_people(inventory, path)
    assert "history" in finding.mend and told == {}


def test_a_lab_without_a_directory_names_the_file() -> None:
    _numbered, (finding,), _told = inventory_read.number_people(
        lab([{"name": "ada"}], head=facts(), node1=facts()), None
    )
    assert finding.path == ("lab_users_registry",)
    assert inventory_read.registry_path(lab([]), {}) is None
    assert inventory_read.registry_path(lab([]), {"inventory_dir": "/lab"}) == Path("/lab/lab_uids.txt")


@pytest.mark.parametrize(
    ("day", "words"),
    [("2027-03-01", "has expired"), ("2027-03-02", "in 1 day,"), ("2027-03-15", "in 14 days,"), ("2027-03-16", "")],
)
def test_a_word_before_an_account_expires(day: str, words: str) -> None:
    said = " ".join(expiry_words([{"name": "ada", "expires": day}, {"name": "bob"}], date(2027, 3, 1)))
    assert words in said and bool(words) == bool(said)
    assert not expiry_words([{"name": "ada", "expires": day, "state": "locked"}], date(2027, 3, 1))


def test_homes_are_made_where_they_are() -> None:
    entries = [{"path": "/home", "source": "/srv/lab/home"}, {"path": "/data", "provided": True}]
    groups = {"lab_head": ["head"], "lab_workers": ["node1"], "nfs_server": ["node1"]}
    home, data = lab_places(entries, "head", groups)
    assert home == {"path": "/home", "source": "/srv/lab/home", "makes": False, "provided": False, "shared": True}
    assert data["source"] == "/data" and not data["makes"]
    assert all(one["makes"] for one in lab_places(entries, "node1", groups))
    alone = {"lab_head": ["head"], "lab_workers": ["node1"]}
    assert [one["makes"] for one in lab_places(entries, "head", alone)] == [True, True]
    assert [one["makes"] for one in lab_places(entries, "node1", alone)] == [True, False]
    assert [one["shared"] for one in lab_places(entries, "node1", alone)] == [False, True]


def test_who_works_elsewhere_can_not_go() -> None:
    users = [{"name": "ada", "uid": 2001, "state": "absent"}, {"name": "bob", "uid": 2002}]
    groups = {"lab_head": ["head"], "lab_workers": ["node1", "node2"]}
    seen = {"ansible_facts": {"labrack_node": {**facts(), "processes": {"2001": 2, "2002": 1}}}}
    busy = busy_elsewhere(users, "head", groups, {"head": seen, "node1": seen, "node2": {}})
    assert busy == {"ada": ["2 processes on node1", "node2 was not read in this run"]}
    assert busy_elsewhere(users[1:], "head", groups, {}) == {}


def test_keys_of_servers_are_those_of_the_hosts_that_were_read() -> None:
    def host(**keys: list[str]) -> dict[str, Any]:
        return {"ansible_facts": {"labrack_node": {"launch_keys": keys}}}

    hostvars = {"desk": host(ada=["a"]), "head": host(ada=["b"], ben=["c"]), "node1": host(eva=["d"]), "new": {}}
    assert launch_keys({"skypilot": ["desk", "head", "new"]}, hostvars) == {"ada": ["a", "b"], "ben": ["c"]}
    # the head is the server where the group is empty, and no other host is asked
    assert launch_keys({"skypilot": ["desk"], "lab_head": ["head"]}, hostvars) == {"ada": ["a"]}
    for groups in ({"lab_head": ["head"]}, {"lab_head": ["head"], "skypilot": []}):
        assert launch_keys({**groups, "lab_workers": ["node1"]}, hostvars) == {"ada": ["b"], "ben": ["c"]}
    assert launch_keys({"lab_workers": ["node1"]}, hostvars) == {}
