"""Slurm accounting: parsing of recorded output, the wanted model, and plans run through a small model of sacctmgr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils.slurm_accounts import (
    NEW_QOS,
    State,
    commands,
    left_alone,
    parse_state,
    plan,
    queries,
    wall_seconds,
    want,
)
from ansible_collections.labrack.infra.plugins.modules.slurm_accounting import OPTIONS

FIXTURES = Path(__file__).parent / "fixtures" / "slurm_accounts"
CLEARED = {"-1", "gres/gpu=-1", ""}


def filled(options: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as the module gets them: every option, with its default."""
    result = {}
    for name, spec in options.items():
        value = given.get(name, spec.get("default"))
        result[name] = [filled(spec["options"], item) for item in value] if "options" in spec else value
    return result


def inventory(**given: Any) -> dict[str, Any]:
    return filled(OPTIONS, {"cluster": "closet", **given})


class Sacctmgr:
    """A model of sacctmgr and slurmdbd, with the refusals of 24.11 that matter for the order of commands."""

    def __init__(self) -> None:
        self.clusters: set[str] = set()
        self.accounts: dict[str, dict[str, str]] = {}
        self.users: dict[str, dict[str, str]] = {"root": {"DefaultAccount": "root", "AdminLevel": "Administrator"}}
        self.qos = {"normal": dict(NEW_QOS)}
        self.rows: dict[tuple[str, str, str], dict[str, str]] = {}

    def state(self) -> State:
        copied = ({key: dict(value) for key, value in table.items()} for table in (self.accounts, self.users, self.qos))
        return State("closet" in self.clusters, *copied, {key: dict(value) for key, value in self.rows.items()})

    def call(self, argv: list[str]) -> None:
        verb, kind, *words = argv
        assert verb in ("add", "modify"), "nothing is ever deleted"
        if verb == "modify":
            assert words.pop(0) == "where"
            split = words.index("set")
            words, settings = words[:split], self.settings(words[split + 1 :])
            assert settings, "a modification sets something"
        pairs = dict(word.split("=", 1) for word in words)
        names = pairs.pop("name").split(",")
        assert len(set(names)) == len(names)
        if pairs.pop("cluster", None):
            assert "closet" in self.clusters
        if verb == "add":
            account = pairs.pop("account", "")
            settings = self.settings(f"{key}={value}" for key, value in pairs.items())
        else:
            account = pairs.pop("account", "")
        for name in names:
            getattr(self, f"{verb}_{kind}")(name, account, settings)
        self.check()

    @staticmethod
    def settings(words: Any) -> dict[str, str]:
        pairs = (word.split("=", 1) for word in words)
        return {key: "" if value in CLEARED else value for key, value in pairs}

    def add_cluster(self, name: str, _account: str, _settings: dict[str, str]) -> None:
        assert name not in self.clusters
        self.clusters.add(name)
        self.accounts["root"] = {"Parent": "", "FairShare": "1", "GrpTRES": "", "QOS": "normal"}
        self.rows["root", "root", ""] = {"FairShare": "1", "GrpTRES": "", "GrpSubmitJobs": "", "DefaultQOS": ""}

    def add_qos(self, name: str, _account: str, settings: dict[str, str]) -> None:
        assert name not in self.qos
        self.qos[name] = {**NEW_QOS, **settings}

    def modify_qos(self, name: str, _account: str, settings: dict[str, str]) -> None:
        self.qos[name].update(settings)

    def add_account(self, name: str, _account: str, settings: dict[str, str]) -> None:
        assert name not in self.accounts
        blank = {"GrpTRES": "", "QOS": "", "Description": name, "Organization": name}
        self.accounts[name] = {**blank, **settings}

    def modify_account(self, name: str, _account: str, settings: dict[str, str]) -> None:
        assert name != "root"
        self.accounts[name].update(settings)

    def add_user(self, name: str, account: str, settings: dict[str, str]) -> None:
        assert (account, name, "") not in self.rows and account in self.accounts
        blank = {"FairShare": "1", "GrpTRES": "", "GrpSubmitJobs": "", "DefaultQOS": ""}
        self.rows[account, name, ""] = {**blank, **settings}
        self.users.setdefault(name, {"DefaultAccount": account, "AdminLevel": "None"})

    def modify_user(self, name: str, account: str, settings: dict[str, str]) -> None:
        assert name != "root"
        if not account:
            self.users[name].update(settings)
            assert any(row[:2] == (self.users[name]["DefaultAccount"], name) for row in self.rows)
            return
        found = [row for row in self.rows if row[:2] == (account, name)]
        assert found
        for row in found:
            self.rows[row].update(settings)

    def allowed(self, account: str) -> set[str]:
        own = self.accounts[account]["QOS"]
        return set(own.split(",")) if own else self.allowed(self.accounts[account]["Parent"])

    def check(self) -> None:
        for name in self.accounts:
            seen = set()
            while name != "root":
                assert name not in seen, "an account below itself"
                seen.add(name)
                name = self.accounts[name]["Parent"]
        for (account, user, _partition), row in self.rows.items():
            assert not row["DefaultQOS"] or row["DefaultQOS"] in self.allowed(account), (user, "lost the default QOS")
        for qos in self.qos.values():
            assert {name for name in qos["Preempt"].split(",") if name} <= set(self.qos)

    def converge(self, params: dict[str, Any]) -> None:
        for argv in commands(plan(self.state(), want(params))):
            self.call(argv)


limits = st.none() | st.integers(0, 8)


@st.composite
def inventories(draw: st.DrawFn) -> dict[str, Any]:
    qos_names = draw(st.lists(st.sampled_from(["normal", "short", "long", "low"]), unique=True))
    known = sorted({"normal", *qos_names})
    default = draw(st.sampled_from(known))
    lists = st.none() | st.lists(st.sampled_from(known), unique=True).map(lambda names: sorted({default, *names}))
    qos = [
        {
            "name": name,
            "priority": draw(st.integers(0, 2)),
            "max_gpus_per_user": draw(limits),
            "max_wall": draw(st.sampled_from([None, "00:30:00", "36:00:00"])),
            "flags": draw(st.lists(st.sampled_from(["NoDecay", "DenyOnLimit"]), unique=True)),
            "preempt": draw(st.lists(st.sampled_from([other for other in known if other != name]), unique=True))
            if len(known) > 1
            else [],
            "grace_time": draw(st.integers(0, 90)),
        }
        for name in qos_names
    ]
    accounts: list[dict[str, Any]] = []
    for name in draw(st.permutations(["a", "b", "c", "d"]))[: draw(st.integers(1, 4))]:
        parent = draw(st.sampled_from(["root", *(account["name"] for account in accounts)]))
        accounts.append({"name": name, "parent": parent, "fairshare": draw(st.integers(1, 2)), "qos": draw(lists)})
        accounts[-1]["max_gpus"] = draw(limits)
        accounts[-1]["description"] = draw(st.sampled_from([None, "Two words", "x=y"]))
    names = [account["name"] for account in accounts]
    users = []
    for name in draw(st.lists(st.sampled_from(["ada", "ben", "cyd", "dee"]), unique=True)):
        mine = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
        user = {"name": name, "account": mine[0], "accounts": mine[1:], "default_account": draw(st.sampled_from(mine))}
        user["admin_level"] = draw(st.sampled_from(["None", "Operator"]))
        user["state"] = draw(st.sampled_from(["present", "present", "locked"]))
        user["fairshare"], user["max_gpus"] = draw(st.integers(1, 2)), draw(limits)
        users.append(user)
    return inventory(qos=qos, accounts=draw(st.permutations(accounts)), users=users, default_qos=default)


@given(inventories(), inventories())
def test_any_inventory_to_any_other(a: dict[str, Any], b: dict[str, Any]) -> None:
    database = Sacctmgr()
    database.converge(a)
    assert plan(database.state(), want(a)) == []
    before = database.state()
    database.rows["a", "gus", "gpu"] = {"FairShare": "7", "GrpTRES": "", "GrpSubmitJobs": "", "DefaultQOS": ""}
    database.users["gus"] = {"DefaultAccount": "a", "AdminLevel": "Administrator"}
    database.accounts.setdefault("a", {"Parent": "root", "FairShare": "9", "GrpTRES": "", "QOS": "normal"})
    database.converge(b)
    after, wanted = database.state(), want(b)

    assert plan(after, wanted) == []
    assert set(before.associations) <= set(after.associations)
    assert set(before.accounts) <= set(after.accounts) and set(before.qos) <= set(after.qos)
    for (account, user, _partition), row in after.associations.items():
        expected = user == "root" or (account, user, "") in wanted.associations
        assert row["GrpSubmitJobs"] == ("" if expected else "0")
        assert user in wanted.users or user == "root" or after.users[user]["AdminLevel"] == "None"
    for row, settings in wanted.associations.items():
        assert after.associations[row] == settings
    for name, settings in wanted.accounts.items():
        assert settings.items() <= after.accounts[name].items()
    assert {name: after.qos[name] for name in wanted.qos} == wanted.qos
    for row in set(before.associations) - set(wanted.associations):
        kept = {key: before.associations[row][key] for key in ("FairShare", "GrpTRES")}
        assert kept.items() <= after.associations[row].items(), "a lock keeps the rest"


LAB: dict[str, Any] = {
    "qos": [
        {
            "name": "interactive",
            "priority": 100,
            "max_gpus_per_user": 1,
            "max_jobs_per_user": 2,
            "max_submit_per_user": 4,
            "max_wall": "04:00:00",
            "flags": ["NoReserve", "DenyOnLimit"],
            "preempt": ["scavenger"],
        },
        {"name": "scavenger", "grace_time": 300},
        {"name": "long", "max_wall": "168:00:00"},
    ],
    "accounts": [
        {"name": "nlp", "parent": "vision", "fairshare": 3},
        {
            "name": "vision",
            "fairshare": 2,
            "max_gpus": 8,
            "qos": ["normal", "interactive", "long"],
            "description": "Computer Vision, Gruppe Ä & more = ok",
            "organization": "The Lab",
        },
        {"name": "speech"},
    ],
    "users": [
        {"name": "ada", "account": "vision", "admin_level": "Operator"},
        {"name": "ben", "account": "vision", "fairshare": 5, "max_gpus": 2},
        {"name": "cyd", "account": "nlp", "accounts": ["speech"], "default_account": "speech"},
        {"name": "dee", "account": "speech"},
        {"name": "eve", "account": "speech"},
    ],
}


def recorded(version: str, moment: str) -> State:
    folder = FIXTURES / version / moment
    return parse_state({key: (folder / f"{key}.txt").read_text() for key in queries("closet")}, "closet")


@pytest.mark.parametrize("version", ["22.05", "24.11"])
def test_recorded_converged_database_needs_nothing(version: str) -> None:
    state, wanted = recorded(version, "converged"), want(inventory(**LAB))
    assert plan(state, wanted) == []
    assert left_alone(state, wanted) == {"unmanaged": {"accounts": [], "qos": []}, "locked": []}


@pytest.mark.parametrize("version", ["22.05", "24.11"])
def test_recorded_changes_by_hand_are_undone_and_reported(version: str) -> None:
    state, wanted = recorded(version, "drifted"), want(inventory(**LAB))
    assert commands(plan(state, wanted)) == [
        [
            "modify",
            "account",
            "where",
            "name=vision",
            "cluster=closet",
            "set",
            "FairShare=2",
            "GrpTRES=gres/gpu=8",
            "QOS=interactive,long,normal",
        ],
        ["modify", "account", "where", "name=nlp", "cluster=closet", "set", "QOS="],
        ["modify", "user", "where", "name=ada", "cluster=closet", "account=handmade", "set", "GrpSubmitJobs=0"],
        ["modify", "user", "where", "name=gus", "cluster=closet", "account=vision", "set", "GrpSubmitJobs=0"],
        ["modify", "user", "where", "name=gus", "set", "AdminLevel=None"],
    ]
    assert left_alone(state, wanted) == {"unmanaged": {"accounts": ["handmade"], "qos": ["handq"]}, "locked": ["gus"]}


def test_first_converge_takes_few_calls() -> None:
    users = [{"name": f"user{number}", "account": "lab"} for number in range(200)]
    calls = commands(plan(State(), want(inventory(accounts=[{"name": "lab"}], users=users))))
    assert [call[:2] for call in calls] == [["add", "cluster"], ["add", "account"], ["add", "user"]]


def test_one_who_leaves_is_locked_and_comes_back_as_before() -> None:
    database = Sacctmgr()
    database.converge(inventory(**LAB))
    before = database.state()
    database.converge(inventory(**{**LAB, "users": LAB["users"][1:]}))
    assert database.rows["vision", "ada", ""]["GrpSubmitJobs"] == "0"
    assert database.users["ada"]["AdminLevel"] == "None"
    database.converge(inventory(**LAB))
    assert database.state() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cluster": "My Closet"}, "cluster: 'My Closet' is no name"),
        ({"default_qos": "fast"}, "default_qos: 'fast' is no QOS; known: normal"),
        ({"accounts": [{"name": "root"}]}, "accounts[root]: root belongs to Slurm"),
        ({"accounts": [{"name": "Vision"}]}, "accounts: 'Vision' is no name for Slurm"),
        ({"accounts": [{"name": "x"}, {"name": "x"}]}, "accounts[x]: named twice"),
        ({"accounts": [{"name": "x", "parent": "y"}]}, "accounts[x].parent: 'y' is no account"),
        ({"accounts": [{"name": "x", "parent": "x"}]}, "accounts[x].parent: 'x' is in a circle"),
        ({"accounts": [{"name": "x", "qos": ["fast"]}]}, "accounts[x].qos: 'fast' is no QOS"),
        ({"accounts": [{"name": "x", "description": "a|b"}]}, "accounts[x].description: 'a|b'"),
        ({"accounts": [{"name": "x", "max_gpus": -1}]}, "accounts[x].max_gpus: -1 is negative"),
        (
            {"accounts": [{"name": "x", "qos": ["a", "b"]}], "qos": [{"name": "a"}, {"name": "b"}]},
            "accounts[x].qos: a,b lacks the default QOS 'normal'",
        ),
        ({"users": [{"name": "root", "account": "x"}]}, "users[root]: root belongs to Slurm"),
        ({"users": [{"name": "ada"}]}, "users[ada].account: missing"),
        ({"users": [{"name": "ada", "account": "x"}]}, "users[ada].account: 'x' is no account; known: none"),
        (
            {"users": [{"name": "ada", "account": "x", "default_account": "y"}], "accounts": [{"name": "x"}]},
            "users[ada].default_account: 'y' is no account of this user; known: x",
        ),
        ({"qos": [{"name": "a", "max_wall": "43200"}]}, "qos[a].max_wall: '43200' is no time; write it as 'HH:MM:SS'"),
        ({"qos": [{"name": "a", "max_wall": "00:00:30"}]}, "qos[a].max_wall: '00:00:30': Slurm counts whole minutes"),
        ({"qos": [{"name": "a", "preempt": ["b"]}]}, "qos[a].preempt: 'b' is no QOS"),
    ],
)
def test_wrong_inventories_are_refused_by_key_and_value(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        want(inventory(**given))
    assert message in str(refused.value)


def test_a_single_qos_may_replace_normal() -> None:
    wanted = want(inventory(accounts=[{"name": "students", "qos": ["low"]}], qos=[{"name": "low"}]))
    assert wanted.accounts["students"]["QOS"] == "low"


def test_times() -> None:
    assert wall_seconds("1-02:03:04") == wall_seconds("26:03:04") == 93784
