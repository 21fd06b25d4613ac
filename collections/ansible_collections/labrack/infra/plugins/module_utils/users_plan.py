# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan a node's users and groups from the lab's registry: the same names and numbers everywhere.

Pure. A number never changes under a name that is there already, since files keep the old one: that is a clash, and
nothing is planned before it is mended. People who left the registry keep their account; accounts are people's data.
Somebody locked keeps account, home and files, and has no way in: password locked, account expired, no keys, no sudo,
no session left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file

SUDOERS = "/etc/sudoers.d/labrack"
RECORD = "/var/lib/labrack/users.json"
KEYS_HEADER = "# kept by labrack: change the inventory's lab_users instead\n"
SUDOERS_HEADER = "# kept by labrack: change the inventory's lab_users instead\n"
#: Hashes that no password has and that some sshd take for a locked account, unlike "*". What an admin
#: locked ("!" before a hash or before "*") is not among them.
NO_PASSWORD_YET = ("!", "!!")


@dataclass(frozen=True)
class User:
    """A person of the registry; ``group`` is the primary group's name, ``comment`` None leaves it as it is."""

    name: str
    uid: int
    gid: int
    group: str
    groups: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    comment: str | None = None
    sudo: bool = False
    locked: bool = False


@dataclass(frozen=True)
class Registry:
    """The lab's people and groups; ``groups`` (name → GID) holds the named ones and everybody's primary group."""

    users: tuple[User, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
    #: those of the groups that have a name of their own in the registry
    shared: frozenset[str] = frozenset()

    @classmethod
    def read(cls, users: list[dict[str, Any]], groups: list[dict[str, Any]]) -> Registry:
        """Return the registry in the inventory's ``lab_users`` and ``lab_groups``, already of the right types."""
        named = {group["name"]: group["gid"] for group in groups}
        people = tuple(
            User(
                name=user["name"],
                uid=user["uid"],
                gid=primary_group(user, named)[1],
                group=primary_group(user, named)[0],
                groups=tuple(user.get("groups") or ()),
                keys=tuple(key.strip() for key in user.get("keys") or ()),
                comment=user.get("comment"),
                sudo=bool(user.get("sudo")),
                locked=user.get("state") == "locked",
            )
            for user in users
        )
        return cls(people, {**{user.group: user.gid for user in people}, **named}, frozenset(named))


def primary_group(user: Mapping[str, Any], named: Mapping[str, int]) -> tuple[str, int]:
    """Return name and GID of a user's primary group: the named one that ``gid`` says, else a private one."""
    gid = user.get("gid") or user["uid"]
    owners = [name for name, number in named.items() if number == gid]
    return (owners[0] if owners and user.get("gid") else user["name"]), gid


@dataclass(frozen=True)
class Account:
    """A user as the node has it; ``no_password_yet``: its hash is one of :data:`NO_PASSWORD_YET`.

    ``locked``: the hash is locked and the account expired. ``sessions``: how many logins it has open.
    """

    uid: int
    gid: int
    home: str
    comment: str = ""
    no_password_yet: bool = False
    locked: bool = False
    sessions: int = 0


@dataclass(frozen=True)
class Group:
    """A group as the node has it."""

    gid: int
    members: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Node:
    """What a node has: accounts and groups by name, the owner's UID of each home that exists, keys by user name."""

    accounts: Mapping[str, Account] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    homes: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, FileState] = field(default_factory=dict)
    sudoers: FileState | None = None
    record: FileState | None = None


@dataclass(frozen=True)
class Clash:
    """A number or name of the registry that the node has in another way; ``key`` is ``uid`` or ``gid``."""

    name: str
    key: str
    value: int
    problem: str
    mend: str


def clashes(registry: Registry, uids: Mapping[str, int], gids: Mapping[str, int], node: str) -> list[Clash]:
    """Return what forbids this registry on a node that has these users (name → UID) and groups (name → GID)."""
    found = []
    users = {user.name: user.uid for user in registry.users}
    for kind, key, wanted, there in (("user", "uid", users, uids), ("group", "gid", registry.groups, gids)):
        for name, number in wanted.items():
            holders = sorted(other for other, value in there.items() if value == number and other != name)
            if there.get(name, number) != number:
                problem = f"{kind} {name} has {key} {there[name]} on {node}, the inventory says {number}"
                mend = f"change the inventory's {key} to {there[name]}, or move the files and the {kind} by hand"
                found.append(Clash(name, key, number, problem, mend))
            elif holders and name not in there:
                problem = f"{key} {number} of {kind} {name} belongs to {kind} {holders[0]} on {node}"
                found.append(Clash(name, key, number, problem, f"give {name} another {key} in the inventory"))
    return found


def refusals(node: Node, registry: Registry, name: str) -> list[str]:
    """Return every reason not to touch the node called ``name``, each with its mend; empty when all is well."""
    uids = {user: account.uid for user, account in node.accounts.items()}
    gids = {group: state.gid for group, state in node.groups.items()}
    found = [f"{clash.problem}. Mend: {clash.mend}." for clash in clashes(registry, uids, gids, name)]
    for user in registry.users:
        home = home_of(node, user)
        owner = node.homes.get(home, user.uid)
        if user.name not in node.accounts and owner != user.uid:
            found.append(
                f"{home} belongs to uid {owner} on {name}, not to {user.uid} ({user.name}). Mend: move it away."
            )
        found += [
            f"user {user.name}: there is no group {group} on {name}. Mend: add it to lab_groups, with a gid."
            for group in user.groups
            if group not in registry.groups and group not in node.groups
        ]
    return found


def home_of(node: Node, user: User) -> str:
    """Return the user's home: where the account has it, else ``/home/<name>``."""
    account = node.accounts.get(user.name)
    return account.home if account else f"/home/{user.name}"


def keys_path(node: Node, user: User) -> str:
    """Return the path of the user's authorized keys."""
    return f"{home_of(node, user)}/.ssh/authorized_keys"


def wanted_keys(node: Node, user: User, exclusive: bool) -> FileState | None:
    """Return the user's authorized keys: only the registry's, or these added to what is there. None for no file."""
    there = node.keys.get(user.name)
    if user.locked:
        return None
    if exclusive or there is None:
        lines = list(user.keys)
        text = KEYS_HEADER + "".join(f"{line}\n" for line in lines) if lines else ""
    else:
        lines = there.text.splitlines()
        known = {_key_body(line) for line in lines}
        lines += [key for key in user.keys if _key_body(key) not in known]
        text = "".join(f"{line}\n" for line in lines)
    return FileState(text, "0600", user.name, user.group) if text else None


def _key_body(line: str) -> str:
    """Return the part of a public key that identifies it, whatever its options and comment."""
    return next((word for word in line.split() if word.startswith("AAAA")), line)


def wanted_sudoers(registry: Registry) -> FileState | None:
    """Return the sudoers file of those who may become root, None for nobody."""
    names = sorted(user.name for user in registry.users if user.sudo and not user.locked)
    lines = "".join(f"{name} ALL=(ALL:ALL) NOPASSWD: ALL\n" for name in names)
    return FileState(SUDOERS_HEADER + lines, "0440") if names else None


def read_record(file: FileState | None) -> dict[str, set[str]]:
    """Return the names of ``users`` and ``groups`` that labrack ever kept on a node, and of whom it ``locked``.

    Raises ValueError for a damaged file.
    """
    found = json.loads(file.text) if file else {}
    return {kind: set(found.get(kind, ())) for kind in ("users", "groups", "locked")}


def wanted_record(node: Node, registry: Registry) -> FileState | None:
    """Return the record once the plan is applied: who was there, if still there, and who is in the registry."""
    before = read_record(node.record)
    users = (before["users"] & set(node.accounts)) | {user.name for user in made(node, registry)}
    groups = (before["groups"] & set(node.groups)) | set(wanted_groups(node, registry))
    content = {"users": sorted(users), "groups": sorted(groups)}
    open_ = {user.name for user in registry.users if not user.locked}
    locked = (before["locked"] & users) | {user.name for user in made(node, registry) if user.locked}
    if locked - open_:
        content["locked"] = sorted(locked - open_)
    return FileState(json.dumps(content, indent=2, sort_keys=True) + "\n") if users or groups else None


def made(node: Node, registry: Registry) -> list[User]:
    """Return the users that have or get an account: nobody is made to be locked."""
    return [user for user in registry.users if not user.locked or user.name in node.accounts]


def wanted_groups(node: Node, registry: Registry) -> dict[str, int]:
    """Return the groups that have to be there: all but those that are a person's own who is not made."""
    without = {user.group for user in registry.users} - {user.group for user in made(node, registry)}
    return {name: gid for name, gid in registry.groups.items() if name not in without or name in registry.shared}


def unmanaged(node: Node, registry: Registry) -> list[str]:
    """Return the users that labrack once kept here, that still exist and that the registry has no more."""
    return sorted((read_record(node.record)["users"] & set(node.accounts)) - {user.name for user in registry.users})


def plan(node: Node, registry: Registry, keys_exclusive: bool = True) -> list[Change]:
    """Return what is off, in the order in which it can be applied, for a node without :func:`refusals`.

    Steps: ``("run", *argv)``, ``("home", user)``, ``("keys", user)``, ``("write"|"remove", path)``.
    """
    changes = [
        _run(f"group {name}", f"created with gid {gid}", "groupadd", "--gid", str(gid), name)
        for name, gid in sorted(wanted_groups(node, registry).items())
        if name not in node.groups
    ]
    record = read_record(node.record)
    managed = {*registry.groups, *record["groups"]}
    for user in sorted(made(node, registry), key=lambda user: user.uid):
        if user.locked:
            changes += _plan_lock(node, user)
            continue
        if user.name in record["locked"] and node.accounts[user.name].locked:
            changes.append(_unlock(node.accounts[user.name], user))
        changes += _plan_account(node, user)
        changes += _plan_membership(node, user, managed)
        home = home_of(node, user)
        if home not in node.homes:
            changes.append(Change(f"directory {home}", "created from /etc/skel", step=("home", user.name)))
        keys = plan_file(keys_path(node, user), node.keys.get(user.name), wanted_keys(node, user, keys_exclusive))
        changes += [replace(change, step=("keys", user.name)) for change in keys]
    changes += plan_file(SUDOERS, node.sudoers, wanted_sudoers(registry))
    changes += plan_file(RECORD, node.record, wanted_record(node, registry))
    return changes


def _plan_account(node: Node, user: User) -> list[Change]:
    subject = f"user {user.name}"
    account = node.accounts.get(user.name)
    if account is None:
        numbers = ("--uid", str(user.uid), "--gid", str(user.gid))
        rest = ("--home-dir", home_of(node, user), "--no-create-home", "--shell", "/bin/bash", "--password", "*")
        comment = ("--comment", user.comment or "")
        return [_run(subject, f"created with uid {user.uid}", "useradd", *numbers, *rest, *comment, user.name)]
    changes = []
    if account.gid != user.gid:
        summary = f"primary group {account.gid} → {user.gid}"
        changes.append(_run(subject, summary, "usermod", "--gid", str(user.gid), user.name))
    if user.comment is not None and account.comment != user.comment:
        summary = f"comment {account.comment!r} → {user.comment!r}"
        changes.append(_run(subject, summary, "usermod", "--comment", user.comment, user.name))
    if account.no_password_yet:
        changes.append(_run(subject, "keys are accepted, no password", "usermod", "--password", "*", user.name))
    return changes


def _plan_lock(node: Node, user: User) -> list[Change]:
    """Take every way in from somebody, and end the logins that are open; jobs are Slurm's affair."""
    account = node.accounts[user.name]
    keys = plan_file(keys_path(node, user), node.keys.get(user.name), None)
    changes = [replace(change, step=("keys", user.name)) for change in keys]
    if not account.locked:
        argv = ("usermod", "--lock", "--expiredate", "1", user.name)
        changes.insert(0, _run(f"user {user.name}", "locked and expired", *argv))
    if account.sessions:
        summary = f"{account.sessions} open login{'s' if account.sessions > 1 else ''} ended"
        step = ("run", "loginctl", "terminate-user", user.name)
        changes.append(Change(f"user {user.name}", summary, "restart", step=step))
    return changes


def _unlock(account: Account, user: User) -> Change:
    """Undo a lock; usermod refuses to leave an account with no password at all, which ours have as ``*``."""
    password = ("--password", "*") if account.no_password_yet else ("--unlock",)
    return _run(f"user {user.name}", "unlocked", "usermod", *password, "--expiredate", "", user.name)


def _plan_membership(node: Node, user: User, managed: set[str]) -> list[Change]:
    has = {name for name, group in node.groups.items() if user.name in group.members}
    wanted = set(user.groups)
    joins = [
        _run(f"user {user.name}", f"joins group {group}", "gpasswd", "--add", user.name, group)
        for group in sorted(wanted - has)
    ]
    leaves = [
        _run(f"user {user.name}", f"leaves group {group}", "gpasswd", "--delete", user.name, group)
        for group in sorted((has & managed) - wanted)
    ]
    return joins + leaves


def _run(subject: str, summary: str, *argv: str) -> Change:
    return Change(subject, summary, step=("run", *argv))
