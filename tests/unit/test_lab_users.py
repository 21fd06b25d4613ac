"""The lab's users and groups: any registry after any other, on a simulated node."""

from __future__ import annotations

import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import users_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, observe_file
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import Account, Group, Node, Registry, User
from ansible_collections.labrack.infra.plugins.modules import lab_users

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKg3v7x0Zl9d4cXkFtJ0k1cYp3mUqQH2N5oB8rWwT6eS"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHr0Zl9d4cXkFtJ0k1cYp3mUqQH2N5oB8rWwT6eSKg3v laptop"
LAUNCH_KEY = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDlaunch"
#: A fresh machine: an admin, and a system group into which the admin put people by hand.
FRESH = Node(
    accounts={"root": Account(0, 0, "/root"), "admin": Account(1000, 1000, "/home/admin")},
    groups={"root": Group(0), "admin": Group(1000), "docker": Group(998, frozenset({"ada", "admin"}))},
    homes={"/home/admin": 1000},
)


def registry(users: list[dict[str, Any]], groups: list[dict[str, Any]] | None = None) -> Registry:
    return Registry.read(users, groups or [])


def apply(node: Node, wanted: Registry, changes: list[Change], exclusive: bool = True) -> Node:
    """Make the changes on a simulated node, which understands the commands as a real one does."""
    users = {user.name: user for user in wanted.users}
    accounts, groups, homes, keys = dict(node.accounts), dict(node.groups), dict(node.homes), dict(node.keys)
    sudoers, record, subids, archived = node.sudoers, node.record, dict(node.subids), set[str]()
    for line in users_plan.sysusers(changes, wanted).splitlines():
        kind, name, numbers, *_more = line.split()
        if kind == "g":
            assert name not in groups and int(numbers) not in {group.gid for group in groups.values()}
            groups[name] = Group(int(numbers))
        else:
            uid, gid = map(int, numbers.split(":"))
            assert uid not in {one.uid for one in accounts.values()} and gid in {one.gid for one in groups.values()}
            comment = line.split('"')[1]
            accounts[name] = Account(uid, gid, f"/home/{name}", comment)
    for group, names in users_plan.members(changes, node).items():
        assert set(names) <= set(accounts)
        groups[group] = replace(groups[group], members=frozenset(names))
    for change in changes:
        verb, *rest = change.step
        if verb in ("make", "join", "leave"):
            continue
        if verb == "home":
            homes[users_plan.home_of(node, users[rest[0]])] = accounts[rest[0]].uid
        elif verb == "keys":
            state = users_plan.wanted_keys(node, users[rest[0]], exclusive)
            keys.pop(rest[0], None)
            if state:
                assert users_plan.home_of(node, users[rest[0]]) in homes
                keys[rest[0]] = state
        elif verb == "archive":
            archived.add(rest[0])
        elif verb == "delete":
            assert rest[0] in archived and rest[0] not in accounts, "first the archive, then the account, then the home"
            assert homes.pop(users_plan.home_of(node, users[rest[0]])) == users[rest[0]].uid
            keys.pop(rest[0], None)
        elif verb == "group":
            groups.pop(rest[0], None)
        elif verb in ("write", "remove"):
            if rest[0] in users_plan.SUBID_FILES:
                state = users_plan.wanted_subids(node, wanted, rest[0])
                assert state is not None
                subids[rest[0]] = state
            elif rest[0] == users_plan.SUDOERS:
                sudoers = users_plan.wanted_sudoers(wanted)
            else:
                record = users_plan.wanted_record(node, wanted)
        else:
            run(rest, accounts, groups)
    return replace(
        node, accounts=accounts, groups=groups, homes=homes, keys=keys, sudoers=sudoers, record=record, subids=subids
    )


def run(argv: list[str], accounts: dict[str, Account], groups: dict[str, Group]) -> None:
    command, *rest = argv
    name = rest[-1]
    options = dict(itertools.pairwise(rest))
    if command == "userdel":
        accounts.pop(name)
        for group, state in groups.items():
            groups[group] = replace(state, members=state.members - {name})
        if groups[name].members == frozenset() if name in groups else False:
            del groups[name]
    elif command == "usermod" and "--gid" in options:
        accounts[name] = replace(accounts[name], gid=int(options["--gid"]))
    elif command == "usermod" and "--comment" in options:
        accounts[name] = replace(accounts[name], comment=options["--comment"])
    elif command == "usermod" and "--lock" in options:
        assert options["--expiredate"] == "1"
        accounts[name] = replace(accounts[name], locked=True, expires="1970-01-02")
    elif command == "usermod" and "--expiredate" in options and ("--unlock" in rest or "--password" in options):
        assert "--unlock" in rest or options["--password"] == "*"
        accounts[name] = replace(accounts[name], locked=False, no_password_yet=False, expires=options["--expiredate"])
    elif command == "usermod" and "--expiredate" in options:
        assert not accounts[name].locked, "a lock by hand would be opened"
        accounts[name] = replace(accounts[name], expires=options["--expiredate"])
    elif command == "loginctl":
        accounts[name] = replace(accounts[name], sessions=0)
    elif command == "usermod":
        accounts[name] = replace(accounts[name], no_password_yet=False)
    else:
        raise AssertionError(f"unknown: {argv}")


NAMED = [{"name": "vision", "gid": 3000}, {"name": "robots", "gid": 3001}]
GROUPS = st.lists(st.sampled_from(NAMED), unique_by=lambda group: str(group["name"]))


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    """Any registry of three people whose numbers never change, since nothing renumbers."""
    groups = draw(GROUPS)
    names = [str(group["name"]) for group in groups]
    users = []
    for name in draw(st.lists(st.sampled_from(["ada", "bob", "cy"]), unique=True)):
        user: dict[str, Any] = {"name": name, "uid": {"ada": 2001, "bob": 2002, "cy": 2003}[name]}
        user["groups"] = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
        user["keys"] = draw(st.lists(st.sampled_from([KEY, OTHER_KEY]), unique=True))
        user["gid"] = draw(st.sampled_from([None, *(group["gid"] for group in groups)]))
        user["comment"] = draw(st.sampled_from([None, "", "Ada L"]))
        user["sudo"] = draw(st.booleans())
        user["state"] = draw(st.sampled_from(["present", "present", "present", "locked", "absent"]))
        user["expires"] = draw(st.sampled_from([None, None, "2027-03-31", "2028-01-01"]))
        users.append(user)
    return Registry.read(users, groups, {name: [LAUNCH_KEY] for name in draw(st.sets(st.sampled_from(["ada", "bob"])))})


#: What may be in the way of those who shall go, and which shared directories another host fills.
HELD = st.sets(st.sampled_from(["ada", "bob", "cy"]))
ELSEWHERE = st.sampled_from([(), ("/home",)])


@given(registries(), registries(), st.booleans(), st.booleans(), HELD, ELSEWHERE)
def test_any_registry_after_any_other(
    first: Registry, then: Registry, exclusive: bool, subids: bool, held: set[str], elsewhere: tuple[str, ...]
) -> None:
    node = replace(FRESH, elsewhere=elsewhere, busy=dict.fromkeys(held, ("a process",)))
    numbers = {name: account.uid for name, account in node.accounts.items()}
    for wanted in (first, then):
        assert users_plan.refusals(node, wanted, "node1", subids) == []
        changes = users_plan.plan(node, wanted, exclusive, subids)
        assert {change.disruption for change in changes} <= {"none"}
        before = node
        node = apply(node, wanted, changes, exclusive)
        assert users_plan.plan(node, wanted, exclusive, subids) == []
        for name, account in node.accounts.items():
            assert numbers.setdefault(name, account.uid) == account.uid, "no number changes hands"
        lost = set(before.homes) - set(node.homes)
        assert lost <= {f"/home/{user.name}" for user in wanted.users if user.absent and user.name not in held}
    for user in then.users:
        if user.absent and user.name not in held:
            assert user.name not in node.accounts and user.name not in node.keys
            assert user.group not in node.groups or user.group in then.shared
            assert f"/home/{user.name}" not in node.homes
            continue
        if user.locked:
            assert user.name not in node.keys and (user.name in node.accounts) == (user.name in before.accounts)
            assert user.name not in node.accounts or node.accounts[user.name].locked
            continue
        account = node.accounts[user.name]
        assert not account.locked and account.expires == user.expires
        assert (account.uid, account.gid) == (user.uid, user.gid)
        assert node.groups[user.group].gid == user.gid
        assert node.homes.get(f"/home/{user.name}") == (None if elsewhere else user.uid)
        member = {name for name, group in node.groups.items() if user.name in group.members}
        assert member - {"docker"} == set(user.groups)
        held_keys = node.keys[user.name].text.splitlines()[1:] if user.name in node.keys else []
        if elsewhere:
            assert held_keys == []
        else:
            assert set(user.keys) <= set(held_keys) and (not exclusive or held_keys == list(user.keys))
            # a launch adds its key at the end, whatever is there
            there = node.keys.get(user.name, FileState("", "0600", user.name, user.group))
            launched = replace(node, keys={**node.keys, user.name: replace(there, text=f"{there.text}{LAUNCH_KEY}\n")})
            changes = users_plan.plan(launched, then, exclusive, subids)
            if there.text and user.kept:
                assert changes == []
            elif exclusive:
                assert [change.step for change in changes] == [("keys", user.name)]
        for file in users_plan.SUBID_FILES if subids else ():
            assert users_plan.wanted_range(user) in users_plan.read_subids(node.subids[file].text)
    text = node.sudoers.text if node.sudoers else ""
    assert {user.name for user in then.users if user.sudo and not user.locked} == {
        line.split()[0] for line in text.splitlines() if not line.startswith("#")
    }
    ranges = [one for file in node.subids.values() for one in users_plan.read_subids(file.text)]
    assert bool(ranges) <= subids
    # who is in no registry was in the first: what an admin gave by hand stays
    gone = {user.name for wanted in (first, then) for user in wanted.users if user.absent}
    assert node.groups["docker"].members | gone == FRESH.groups["docker"].members | gone
    left = {user.name for user in first.users if not user.locked} - {user.name for user in then.users}
    assert set(users_plan.unmanaged(node, then)) == left and left <= set(node.accounts)


@pytest.mark.parametrize(
    ("users", "groups", "words"),
    [
        ([{"name": "admin", "uid": 2001}], [], ["user admin", "uid 1000", "node1", "2001", "inventory's uid to 1000"]),
        ([{"name": "ada", "uid": 1000}], [], ["uid 1000", "ada", "admin", "node1", "another uid"]),
        ([], [{"name": "vision", "gid": 998}], ["gid 998", "vision", "docker", "node1", "another gid"]),
        ([], [{"name": "docker", "gid": 3000}], ["docker", "998", "node1", "3000"]),
        ([{"name": "ada", "uid": 2001, "gid": 1000}], [], ["gid 1000", "group ada", "group admin"]),
        ([{"name": "ada", "uid": 2001, "groups": ["nope"]}], [], ["ada", "nope", "node1", "lab_groups"]),
    ],
)
def test_a_clash_is_refused_with_its_mend(
    users: list[dict[str, Any]], groups: list[dict[str, Any]], words: list[str]
) -> None:
    message = " ".join(users_plan.refusals(FRESH, registry(users, groups), "node1"))
    assert all(word in message for word in words), message


def test_a_home_of_somebody_else_is_refused() -> None:
    node = replace(FRESH, homes={"/home/ada": 1500})
    (reason,) = users_plan.refusals(node, registry([{"name": "ada", "uid": 2001}]), "node1")
    assert "/home/ada" in reason and "1500" in reason and "Mend" in reason


def test_the_first_plan_of_a_person() -> None:
    ada = {"name": "ada", "uid": 2001, "groups": ["vision"], "keys": [KEY], "sudo": True, "comment": "Ada"}
    changes = users_plan.plan(FRESH, registry([ada], [{"name": "vision", "gid": 3000}]))
    assert [change.subject for change in changes] == [
        "group ada",
        "group vision",
        "user ada",
        "user ada",
        "directory /home/ada",
        "file /home/ada/.ssh/authorized_keys",
        "file /etc/subuid",
        "file /etc/subgid",
        "file /etc/sudoers.d/labrack",
        "file /var/lib/labrack/users.json",
    ]


def test_the_primary_group() -> None:
    named = {"vision": 3000, "ada": 2001}
    assert users_plan.primary_group({"name": "bob", "uid": 2002, "gid": 3000}, named) == ("vision", 3000)
    assert users_plan.primary_group({"name": "bob", "uid": 2002, "gid": 2500}, named) == ("bob", 2500)
    assert users_plan.primary_group({"name": "ada", "uid": 2001}, named) == ("ada", 2001)


def test_a_fresh_lock_is_mended_and_an_admins_lock_is_not() -> None:
    wanted = registry([{"name": "admin", "uid": 1000}])
    node = apply(FRESH, wanted, users_plan.plan(FRESH, wanted))
    assert users_plan.plan(node, wanted) == []
    node = replace(node, accounts={**node.accounts, "admin": replace(node.accounts["admin"], no_password_yet=True)})
    (change,) = users_plan.plan(node, wanted)
    assert change.step == ("run", "usermod", "--password", "*", "admin")
    assert "!*" not in users_plan.NO_PASSWORD_YET


def test_somebody_who_leaves_has_no_way_in_and_keeps_their_files() -> None:
    ada = {"name": "ada", "uid": 2001, "keys": [KEY], "sudo": True}
    node = apply(FRESH, registry([ada]), users_plan.plan(FRESH, registry([ada])))
    node = replace(node, accounts={**node.accounts, "ada": replace(node.accounts["ada"], sessions=2)})
    gone = registry([{**ada, "state": "locked"}])
    changes = users_plan.plan(node, gone)
    assert [(change.subject, change.summary, change.disruption) for change in changes] == [
        ("user ada", "locked and expired", "none"),
        ("file /home/ada/.ssh/authorized_keys", "removed", "none"),
        ("user ada", "2 open logins ended", "restart"),
        ("file /etc/sudoers.d/labrack", "removed", "none"),
        ("file /var/lib/labrack/users.json", "content changed", "none"),
    ]
    node = apply(node, gone, changes)
    assert users_plan.plan(node, gone) == [] and node.homes["/home/ada"] == 2001
    back = users_plan.plan(node, registry([ada]))
    assert back[0].step == ("run", "usermod", "--unlock", "--expiredate", "", "ada")


def test_a_lock_that_is_not_ours_is_left() -> None:
    locked = replace(FRESH.accounts["admin"], locked=True)
    node = replace(FRESH, accounts={**FRESH.accounts, "admin": locked})
    changes = users_plan.plan(node, registry([{"name": "admin", "uid": 1000}]))
    assert not [change for change in changes if change.subject == "user admin"]


def test_keys_that_are_there_stay_unless_exclusive() -> None:
    wanted = registry([{"name": "admin", "uid": 1000, "keys": [KEY, OTHER_KEY]}])
    there = FileState(f'from="10.0.0.0/8" {OTHER_KEY} renamed\n', "0600", "admin", "admin")
    node = replace(FRESH, keys={"admin": there})
    (admin,) = wanted.users
    added = users_plan.wanted_keys(node, admin, exclusive=False)
    assert added is not None and added.text == there.text + KEY + "\n"
    alone = users_plan.wanted_keys(node, admin, exclusive=True)
    assert alone is not None and alone.text == users_plan.KEYS_HEADER + KEY + "\n" + OTHER_KEY + "\n"
    assert users_plan.wanted_keys(node, replace(admin, keys=()), exclusive=True) is None


def test_a_launchs_key_stays_where_it_is_and_for_whom_it_is() -> None:
    (ada,) = registry([{"name": "ada", "uid": 2001, "keys": [KEY]}]).users
    ada = replace(ada, kept=(LAUNCH_KEY,))
    own = users_plan.KEYS_HEADER + KEY + "\n"

    def wanted(text: str | None, user: User = ada) -> str | None:
        keys = {} if text is None else {"ada": FileState(text, "0600", "ada", "ada")}
        file = users_plan.wanted_keys(replace(FRESH, keys=keys), user, exclusive=True)
        return file.text if file else None

    assert wanted(None) == own, "none is added"
    assert wanted(own) == own
    assert wanted(f"{own}{OTHER_KEY}\n{LAUNCH_KEY}\n") == f"{own}{LAUNCH_KEY}\n"
    assert wanted(f'{own}command="x" {LAUNCH_KEY} of mine\n{LAUNCH_KEY}\n') == f"{own}{LAUNCH_KEY}\n"
    assert wanted(f"{own}{LAUNCH_KEY}\n", replace(ada, kept=())) == own
    assert wanted(f"{own}{LAUNCH_KEY}\n", replace(ada, locked=True)) is None
    assert wanted(own, replace(ada, kept=(KEY,))) == own, "a key that is the registry's as well is there once"


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_keys_are_read_and_written_with_the_users_own_rights() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home, vault = Path(folder) / "home", Path(folder) / "vault"
        (home / ".ssh").mkdir(parents=True)
        vault.mkdir()
        secret = vault / "secret"
        secret.write_text("root's own\n")
        secret.chmod(0o600)
        link = home / ".ssh" / "authorized_keys"
        link.symlink_to(secret)
        Path(folder).chmod(0o755)
        user = users_plan.User("nobody", 65534, 65534, "nogroup")
        for path in (home, home / ".ssh"):
            os.chown(path, user.uid, user.gid)
        with lab_users.acting_as(user.uid, user.gid):
            assert observe_file(link) is None
        with pytest.raises(PermissionError):
            lab_users.write_keys(str(link), user, FileState("x\n", "0600", "65534", "65534"))
        assert secret.read_text() == "root's own\n" and os.geteuid() == 0
        link.unlink()
        lab_users.write_keys(str(link), user, FileState("x\n", "0600", "65534", "65534"))
        assert (link.stat().st_uid, link.stat().st_mode & 0o777) == (user.uid, 0o600)


def test_a_home_that_another_node_has_just_made_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "ada"
    user = users_plan.User("ada", os.geteuid(), os.getegid(), "ada")
    home.mkdir()
    (home / ".profile").write_text("theirs\n")
    lab_users.make_home(str(home), user)
    assert [*tmp_path.iterdir()] == [home] and (home / ".profile").read_text() == "theirs\n"
    # one of somebody else's is not
    monkeypatch.setattr(lab_users.os, "lstat", lambda _path: os.stat_result((0o40755, 0, 0, 1, 99999, 0, 0, 0, 0, 0)))
    with pytest.raises(OSError, match="not empty"):
        lab_users.make_home(str(home), user)


def test_who_bars_their_own_keys_keeps_no_one_elses_lock_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def barred(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/ada/.ssh/authorized_keys")

    monkeypatch.setattr(lab_users, "write_keys", barred)
    rule = tmp_path / "sudoers"
    rule.touch()
    wanted = registry([{"name": "ada", "uid": 2001, "state": "locked"}])
    node = Node({"ada": Account(2001, 2001, "/home/ada")})
    changes = [Change("keys", "removed", step=("keys", "ada")), Change("rule", "removed", step=("remove", str(rule)))]
    with pytest.raises(lab_users.CommandError, match=r"authorized_keys of ada.*Permission denied.*Mend: "):
        lab_users.apply(changes, node, wanted, {"keys_exclusive": True, "archive": None})
    assert not rule.exists()


def test_a_home_whose_account_went_in_a_run_that_was_broken_off_is_told() -> None:
    left = registry([{"name": "ada", "uid": 2001, "state": "absent"}])
    (words,) = users_plan.waiting(Node(homes={"/home/ada": 2001}), left)
    assert words.startswith("/home/ada is still there") and "lab_users_archive" in words
    assert users_plan.waiting(Node(), left) == []
    # somebody else's by now
    assert users_plan.waiting(Node(homes={"/home/ada": 2002}), left) == []
