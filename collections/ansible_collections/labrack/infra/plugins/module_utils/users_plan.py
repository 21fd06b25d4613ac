# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan a node's users and groups from the lab's registry: the same names and numbers everywhere.

Pure. A number never changes under a name that is there already, since files keep the old one: that is a clash, and
nothing is planned before it is mended. People who left the registry keep their account; accounts are people's data.
Somebody locked keeps account, home and files, and has no way in: password locked, account expired, no keys, no sudo,
no session left. Somebody absent is locked first, and goes when nothing of theirs runs: the home into an archive, then
account, own group and home.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside

SUDOERS = "/etc/sudoers.d/labrack"
RECORD = "/var/lib/labrack/users.json"
KEYS_HEADER = "# kept by labrack: change the inventory's lab_users instead\n"
SUDOERS_HEADER = "# kept by labrack: change the inventory's lab_users instead\n"
#: Hashes that no password has and that some sshd take for a locked account, unlike "*". What an admin
#: locked ("!" before a hash or before "*") is not among them.
NO_PASSWORD_YET = ("!", "!!")
#: The ranges of numbers that rootless containers use: subuid(5), subgid(5).
SUBUID, SUBGID = "/etc/subuid", "/etc/subgid"
SUBID_FILES = (SUBUID, SUBGID)
#: What useradd(8) gives the first account, UID 1000, and its count; ours go on from there, by UID.
SUBID_FIRST, SUBID_COUNT = 100000, 65536
#: useradd's range for people in Debian's and Ubuntu's login.defs; systemd uses the numbers above.
FIRST_NUMBER, LAST_NUMBER = 1000, 60000
#: The states of somebody who left.
LEFT = ("locked", "absent")


@dataclass(frozen=True)
class User:
    """A person of the registry; ``group`` is the primary group's name, ``comment`` None leaves it as it is.

    ``locked``: nothing opens the account. ``absent``: that, and it goes. ``expires``: the first day (YYYY-MM-DD) on
    which it opens no more.
    """

    name: str
    uid: int
    gid: int
    group: str
    groups: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    comment: str | None = None
    sudo: bool = False
    locked: bool = False
    absent: bool = False
    expires: str = ""
    #: keys that are not the registry's and stay where they are, as SkyPilot's launches put them there
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registry:
    """The lab's people and groups; ``groups`` (name → GID) holds the named ones and everybody's primary group."""

    users: tuple[User, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
    #: those of the groups that have a name of their own in the registry
    shared: frozenset[str] = frozenset()

    @classmethod
    def read(
        cls,
        users: list[dict[str, Any]],
        groups: list[dict[str, Any]],
        kept: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> Registry:
        """Return the registry in the inventory's ``lab_users`` and ``lab_groups``, already of the right types.

        ``kept`` are the keys of each user, by name, that stay where something else put them.
        """
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
                locked=user.get("state") in LEFT,
                absent=user.get("state") == "absent",
                expires=user.get("expires") or "",
                kept=tuple(kept.get(user["name"]) or ()),
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

    ``locked``: the hash is locked and the account expired. ``sessions``: how many logins it has open. ``expires``: the
    first day on which it opens no more, YYYY-MM-DD, empty for never.
    """

    uid: int
    gid: int
    home: str
    comment: str = ""
    no_password_yet: bool = False
    locked: bool = False
    sessions: int = 0
    expires: str = ""


@dataclass(frozen=True)
class Group:
    """A group as the node has it."""

    gid: int
    members: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Node:
    """What a node has: accounts and groups by name, the owner's UID of each home that exists, keys by user name.

    ``subids`` are the files of :data:`SUBID_FILES`. ``jobs``: how many of Slurm's jobs somebody who left has, by name,
    where the node is to end them. ``busy``: why somebody absent can't go yet, by name. ``elsewhere``: the shared
    directories that another host fills; homes and keys in them are not looked at.
    """

    accounts: Mapping[str, Account] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    homes: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, FileState] = field(default_factory=dict)
    sudoers: FileState | None = None
    record: FileState | None = None
    subids: Mapping[str, FileState] = field(default_factory=dict)
    jobs: Mapping[str, int] = field(default_factory=dict)
    busy: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()


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
    # who is absent gets nothing; that an account of the name has another number must be known before it goes
    users = {user.name: user.uid for user in registry.users if not user.absent or user.name in uids}
    groups = {name: gid for name, gid in registry.groups.items() if name in registry.shared or name in users}
    for kind, key, wanted, there in (("user", "uid", users, uids), ("group", "gid", groups, gids)):
        holders: dict[int, list[str]] = {}
        for name, number in there.items():
            holders.setdefault(number, []).append(name)
        for name, number in wanted.items():
            others = sorted(other for other in holders.get(number, ()) if other != name)
            own = there.get(name, number)
            if own != number:
                problem = f"{kind} {name} has {key} {own} on {node}, the inventory says {number}"
                mend = f"change the inventory's {key} to {own}"
                if name in users and own >= FIRST_NUMBER:
                    mend += f", or move user and files: {migrate_command(name, users[name])}"
                elif kind == "user":
                    problem = f"user {name} is an account of the system on {node}, with uid {own}"
                    mend = "choose another name in the inventory"
                else:
                    mend += f", or move the files and the {kind} by hand"
                found.append(Clash(name, key, number, problem, mend))
            elif others and name not in there:
                problem = f"{key} {number} of {kind} {name} belongs to {kind} {others[0]} on {node}"
                mend = f"give {name} another {key} in the inventory"
                if kind == "user" and number >= FIRST_NUMBER:
                    mend += f", or {others[0]} another one everywhere: {migrate_command(others[0], None)}"
                found.append(Clash(name, key, number, problem, mend))
    return found


def migrate_command(name: str, uid: int | None) -> str:
    """Return the command that moves a user to a number, everywhere; None leaves the number to the reader."""
    return f"ansible-playbook labrack.infra.uid_migrate -e user={name} -e uid={uid or 'NUMBER'}"


def own_gid(entry: Mapping[str, Any], named: Mapping[str, int]) -> int | None:
    """Return the GID of a user's own group, by the entry of ``lab_users``; None for somebody in a shared one."""
    group, gid = primary_group(entry, named)
    return gid if group == entry["name"] and group not in named else None


@dataclass(frozen=True)
class SubidRange:
    """A range of subuid(5) or subgid(5); ``owner`` is a name, or a UID as text."""

    owner: str
    start: int
    count: int

    def overlaps(self, other: SubidRange) -> bool:
        """Return whether two ranges have a number in common."""
        return self.start < other.start + other.count and other.start < self.start + self.count


def read_subids(text: str) -> list[SubidRange]:
    """Return the ranges of subuid(5) or subgid(5), without lines that are none."""
    found = []
    for line in text.splitlines():
        owner, _colon, numbers = line.strip().partition(":")
        start, _colon, count = numbers.partition(":")
        if owner and start.isdigit() and count.isdigit():
            found.append(SubidRange(owner, int(start), int(count)))
    return found


def wanted_range(user: User) -> SubidRange:
    """Return a user's range, which follows from the UID; every UID that people have leaves room in 32 bits."""
    return SubidRange(user.name, SUBID_FIRST + (user.uid - FIRST_NUMBER) * SUBID_COUNT, SUBID_COUNT)


def subid_clashes(registry: Registry, ranges: Mapping[str, Iterable[SubidRange]], node: str) -> list[Clash]:
    """Return what forbids the registry's ranges on a node that has ``ranges``, by file."""
    found = []
    people = {user.name: user for user in registry.users if not user.locked}
    for file, there in ranges.items():
        option = file.rpartition("/")[2]
        own: set[str] = set()
        # all that is as wanted can't be in the way of anybody
        odd = [one for one in there if one.owner not in people or one != wanted_range(people[one.owner])]
        for one in odd:
            user = people.get(one.owner)
            if user is not None and user.name not in own:
                own.add(user.name)
                wanted = wanted_range(user)
                problem = (
                    f"{user.name} has {one.count} numbers from {one.start} on in {file} on {node}, and would have "
                    f"{wanted.count} from {wanted.start} on"
                )
                mend = (
                    f"there, with no container of theirs running: usermod --del-{option}s "
                    f"{one.start}-{one.start + one.count - 1} {user.name}; files of their containers keep the old "
                    "numbers. Or set lab_users_subids to false"
                )
                found.append(Clash(user.name, "uid", user.uid, problem, mend))
        foreign = [one for one in odd if one.owner not in people]
        for user in people.values() if foreign else ():
            wanted = wanted_range(user)
            for one in foreign:
                if wanted.overlaps(one) and one.owner != str(user.uid):
                    problem = (
                        f"the numbers for {user.name}'s containers, from {wanted.start} on, overlap with those of "
                        f"{one.owner} in {file} on {node}"
                    )
                    mend = f"take {one.owner}'s line out of {file} if nothing uses it, or give {user.name} another uid"
                    found.append(Clash(user.name, "uid", user.uid, problem, mend))
    return found


def refusals(node: Node, registry: Registry, name: str, subids: bool = True) -> list[str]:
    """Return every reason not to touch the node called ``name``, each with its mend; empty when all is well."""
    uids = {user: account.uid for user, account in node.accounts.items()}
    gids = {group: state.gid for group, state in node.groups.items()}
    wrong = clashes(registry, uids, gids, name)
    if subids:
        wrong += subid_clashes(
            registry, {file: read_subids(node.subids[file].text) for file in SUBID_FILES if file in node.subids}, name
        )
    found = [f"{clash.problem}. Mend: {clash.mend}." for clash in wrong]
    for user in registry.users:
        if user.absent:
            continue
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


def makes_home(node: Node, user: User) -> bool:
    """Return whether this node has to make what is in a user's home; no other one can."""
    return not any(inside(home_of(node, user), path) for path in node.elsewhere)


def keys_path(node: Node, user: User) -> str:
    """Return the path of the user's authorized keys."""
    return f"{home_of(node, user)}/.ssh/authorized_keys"


def wanted_keys(node: Node, user: User, exclusive: bool) -> FileState | None:
    """Return the user's authorized keys, None for no file.

    ``exclusive``: the registry's alone, and of those that are kept what is there. Otherwise these are added.
    """
    there = node.keys.get(user.name)
    if user.locked:
        return None
    if exclusive or there is None:
        lines = [*user.keys, *kept_keys(there, user)]
        text = KEYS_HEADER + "".join(f"{line}\n" for line in lines) if lines else ""
    else:
        lines = there.text.splitlines()
        known = {_key_body(line) for line in lines}
        lines += [key for key in user.keys if _key_body(key) not in known]
        text = "".join(f"{line}\n" for line in lines)
    return FileState(text, "0600", user.name, user.group) if text else None


def kept_keys(there: FileState | None, user: User) -> list[str]:
    """Return the keys that something else has put into a user's file and that stay."""
    bodies = {_key_body(line) for line in (there.text if there else "").splitlines()}
    own = {_key_body(key) for key in user.keys}
    return [key for key in dict.fromkeys(user.kept) if _key_body(key) in bodies - own]


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

    ``expires`` are those whose last day it set. Raises ValueError for a damaged file.
    """
    found = json.loads(file.text) if file else {}
    return {kind: set(found.get(kind, ())) for kind in ("users", "groups", "locked", "expires")}


def wanted_record(node: Node, registry: Registry) -> FileState | None:
    """Return the record once the plan is applied: who was there, if still there, and who is in the registry."""
    before = read_record(node.record)
    gone = {user.name for user in removed(node, registry)}
    kept = [user for user in made(node, registry) if user.name not in gone]
    users = (before["users"] & set(node.accounts) - gone) | {user.name for user in kept}
    own = gone - registry.shared
    groups = (before["groups"] & set(node.groups) - own) | set(wanted_groups(node, registry))
    content = {"users": sorted(users), "groups": sorted(groups)}
    open_ = {user.name for user in registry.users if not user.locked}
    locked = (before["locked"] & users) | {user.name for user in kept if user.locked}
    if locked - open_:
        content["locked"] = sorted(locked - open_)
    known = {user.name for user in registry.users}
    expires = (before["expires"] & users - known) | {user.name for user in kept if user.expires and not user.locked}
    if expires:
        content["expires"] = sorted(expires)
    return FileState(json.dumps(content, indent=2, sort_keys=True) + "\n") if users or groups else None


def made(node: Node, registry: Registry) -> list[User]:
    """Return the users that have or get an account: nobody is made to be locked."""
    return [user for user in registry.users if not user.locked or user.name in node.accounts]


def removed(node: Node, registry: Registry) -> list[User]:
    """Return the users whose account goes now: those who shall be absent and of whom nothing runs any more."""
    return [
        user
        for user in registry.users
        if user.absent and user.name in node.accounts and not node.busy.get(user.name) and not node.jobs.get(user.name)
    ]


def waiting(node: Node, registry: Registry) -> list[str]:
    """Return a sentence for everybody who shall be absent and can't go yet, or whose home outlived the account."""
    stay = [
        f"{user.name} is locked and stays for now: {'; '.join(node.busy[user.name])}. The next run after that removes "
        "the account and puts the home into the archive."
        for user in registry.users
        if user.absent and user.name in node.accounts and node.busy.get(user.name)
    ]
    # nothing tells any more whether the archive has all of it
    left = [
        f"{home_of(node, user)} is still there, and the account of {user.name} is not: a run was broken off, or "
        "somebody removed the account by hand. Mend: see whether lab_users_archive has it, and remove it."
        for user in registry.users
        if user.absent and user.name not in node.accounts and node.homes.get(home_of(node, user)) == user.uid
    ]
    return stay + left


def wanted_groups(node: Node, registry: Registry) -> dict[str, int]:
    """Return the groups that have to be there: all but those that are a person's own who is not made."""
    gone = {user.name for user in removed(node, registry)}
    made_ = {user.group for user in made(node, registry) if user.name not in gone}
    without = {user.group for user in registry.users} - made_
    return {name: gid for name, gid in registry.groups.items() if name not in without or name in registry.shared}


def wanted_subids(node: Node, registry: Registry, file: str) -> FileState | None:
    """Return a file of ranges with those of everybody who has an account, and without those of who goes."""
    there = node.subids.get(file)
    gone = {user.name for user in removed(node, registry)}
    lines = [line for line in (there.text if there else "").splitlines() if line.partition(":")[0] not in gone]
    have = {line.partition(":")[0] for line in lines}
    for user in sorted(registry.users, key=lambda user: user.uid):
        if not user.locked and user.name not in have:
            one = wanted_range(user)
            lines.append(f"{one.owner}:{one.start}:{one.count}")
    text = "".join(f"{line}\n" for line in lines)
    if there is None:
        return FileState(text) if text else None
    return replace(there, text=text)


def unmanaged(node: Node, registry: Registry) -> list[str]:
    """Return the users that labrack once kept here, that still exist and that the registry has no more."""
    return sorted((read_record(node.record)["users"] & set(node.accounts)) - {user.name for user in registry.users})


def plan(node: Node, registry: Registry, keys_exclusive: bool = True, subids: bool = True) -> list[Change]:
    """Return what is off, in the order in which it can be applied, for a node without :func:`refusals`.

    Steps: ``("run", *argv)``, ``("home", user)``, ``("keys", user)``, ``("archive", user)``, ``("delete", user)``,
    ``("group", name)``, ``("write"|"remove", path)``; and those that are made for everybody at once, before the rest:
    ``("make", "group"|"user", name)`` by :func:`sysusers`, ``("join"|"leave", user, group)`` by :func:`members`.
    """
    changes = [
        Change(f"group {name}", f"created with gid {gid}", step=("make", "group", name))
        for name, gid in sorted(wanted_groups(node, registry).items())
        if name not in node.groups
    ]
    for name in wanted_groups(node, registry):
        managed.note("group", name)
    record = read_record(node.record)
    ours_of_groups = {*registry.groups, *record["groups"]}
    member: dict[str, set[str]] = {}
    for name, group in node.groups.items():
        for one in group.members:
            member.setdefault(one, set()).add(name)
    gone = {user.name for user in removed(node, registry)}
    for user in sorted(made(node, registry), key=lambda user: user.uid):
        if user.name not in gone:
            managed.note("user", user.name, among=sorted({*registry.shared, *user.groups}))
        if user.locked:
            changes += _plan_lock(node, user, user.name not in gone)
            continue
        ours = user.name in record["locked"] and node.accounts[user.name].locked
        if ours:
            changes.append(_unlock(node.accounts[user.name], user))
        changes += _plan_account(node, user, ours or user.name in record["expires"])
        changes += _plan_membership(user, member.get(user.name, set()), ours_of_groups)
        if makes_home(node, user):
            home = home_of(node, user)
            if home not in node.homes:
                changes.append(Change(f"directory {home}", "created from /etc/skel", step=("home", user.name)))
            wanted = wanted_keys(node, user, keys_exclusive)
            part = None if keys_exclusive else user.keys
            keys = plan_file(keys_path(node, user), node.keys.get(user.name), wanted, part=part)
            if wanted is not None and keys_exclusive:
                # what nobody but its owner may read is no secret here
                kept = kept_keys(node.keys.get(user.name), user)
                without = {"without": sorted(map(managed.digest, kept))} if kept else {}
                managed.note("file", keys_path(node, user), how=managed.TEXT, **without)
            changes += [replace(change, step=("keys", user.name)) for change in keys]
    for file in SUBID_FILES if subids else ():
        ranges = [wanted_range(user) for user in registry.users if not user.locked]
        lines = [f"{one.owner}:{one.start}:{one.count}" for one in ranges]
        changes += plan_file(file, node.subids.get(file), wanted_subids(node, registry, file), part=lines)
    # nobody who goes may become root through a rule that stays behind
    changes += plan_file(SUDOERS, node.sudoers, wanted_sudoers(registry))
    for user in removed(node, registry):
        changes += _plan_removal(node, user, registry)
    changes += plan_file(RECORD, node.record, wanted_record(node, registry))
    return changes


def sysusers(changes: Iterable[Change], registry: Registry) -> str:
    """Return what systemd-sysusers(8) reads to make these changes' groups and users, empty for none of them.

    One process for everybody: useradd(8) rewrites and flushes every file for each user. The accounts have a locked
    password, and no ranges for containers.
    """
    users = {user.name: user for user in registry.users}
    lines = []
    for verb, kind, name in (change.step[:3] for change in changes if change.step[0] == "make"):
        assert verb == "make"
        if kind == "group":
            lines.append(f"g {name} {registry.groups[name]}\n")
        else:
            user = users[name]
            comment = re.sub(r'([\\"])', r"\\\1", (user.comment or "").replace("%", "%%"))
            lines.append(f'u {name} {user.uid}:{user.gid} "{comment}" /home/{name} /bin/bash\n')
    return "".join(lines)


def members(changes: Iterable[Change], node: Node) -> dict[str, list[str]]:
    """Return the members that these changes leave in the groups that they touch, by group."""
    found: dict[str, set[str]] = {}
    for change in changes:
        if change.step[0] in ("join", "leave"):
            verb, user, group = change.step
            there = found.setdefault(group, set(node.groups[group].members if group in node.groups else ()))
            there.add(user) if verb == "join" else there.discard(user)
    return {group: sorted(names) for group, names in found.items()}


def _plan_removal(node: Node, user: User, registry: Registry) -> list[Change]:
    """Take somebody away: the home into the archive first, where this node has it, then the account, then the home."""
    home = home_of(node, user)
    changes = []
    if makes_home(node, user) and home in node.homes:
        changes.append(
            Change(f"directory {home}", "put into the archive, compared with it", step=("archive", user.name))
        )
    changes.append(_run(f"user {user.name}", "removed", "userdel", user.name))
    # userdel takes the own group along where login.defs says so; one that is somebody else's as well stays
    own = node.groups.get(user.name) if user.name not in registry.shared else None
    if own and not any(one.gid == own.gid for name, one in node.accounts.items() if name != user.name):
        changes.append(Change(f"group {user.name}", "removed", step=("group", user.name)))
    if makes_home(node, user) and home in node.homes:
        changes.append(Change(f"directory {home}", "removed", step=("delete", user.name)))
    return changes


def _plan_account(node: Node, user: User, ours: bool) -> list[Change]:
    """``ours``: the last day of the account is one that labrack set, and nobody by hand."""
    subject = f"user {user.name}"
    account = node.accounts.get(user.name)
    if account is None:
        made_ = Change(subject, f"created with uid {user.uid}", step=("make", "user", user.name))
        if not user.expires:
            return [made_]
        argv = ("usermod", "--expiredate", user.expires, user.name)
        return [made_, _run(subject, f"expires: {user.expires}", *argv)]
    changes = []
    if account.gid != user.gid:
        summary = f"primary group {account.gid} → {user.gid}"
        changes.append(_run(subject, summary, "usermod", "--gid", str(user.gid), user.name))
    if user.comment is not None and account.comment != user.comment:
        summary = f"comment {account.comment!r} → {user.comment!r}"
        changes.append(_run(subject, summary, "usermod", "--comment", user.comment, user.name))
    if account.no_password_yet:
        changes.append(_run(subject, "keys are accepted, no password", "usermod", "--password", "*", user.name))
    # _unlock has set it already; a lock by hand is left
    if not account.locked and account.expires != user.expires and (user.expires or ours):
        summary = f"expires: {account.expires or 'never'} → {user.expires or 'never'}"
        changes.append(_run(subject, summary, "usermod", "--expiredate", user.expires, user.name))
    return changes


def _plan_lock(node: Node, user: User, keys_too: bool) -> list[Change]:
    """Take every way in from somebody, and end the logins that are open; ``keys_too``: the home stays."""
    account = node.accounts[user.name]
    changes: list[Change] = []
    if not account.locked:
        argv = ("usermod", "--lock", "--expiredate", "1", user.name)
        changes.append(_run(f"user {user.name}", "locked and expired", *argv))
    if keys_too and makes_home(node, user):
        keys = plan_file(keys_path(node, user), node.keys.get(user.name), None)
        changes += [replace(change, step=("keys", user.name)) for change in keys]
    if account.sessions:
        summary = f"{account.sessions} open login{'s' if account.sessions > 1 else ''} ended"
        step = ("run", "loginctl", "terminate-user", user.name)
        changes.append(Change(f"user {user.name}", summary, "restart", step=step))
    jobs = node.jobs.get(user.name, 0)
    if jobs:
        # the inventory's lab_users_locked_jobs is the consent to it; drain would wait for these very jobs
        summary = f"{jobs} job{'s' if jobs > 1 else ''} cancelled"
        changes.append(
            Change(f"user {user.name}", summary, "restart", step=("run", "scancel", "--user", str(user.uid)))
        )
    return changes


def _unlock(account: Account, user: User) -> Change:
    """Undo a lock; usermod refuses to leave an account with no password at all, which ours have as ``*``."""
    password = ("--password", "*") if account.no_password_yet else ("--unlock",)
    return _run(f"user {user.name}", "unlocked", "usermod", *password, "--expiredate", user.expires, user.name)


def _plan_membership(user: User, has: Collection[str], managed: Collection[str]) -> list[Change]:
    wanted = set(user.groups)
    joins = [
        Change(f"user {user.name}", f"joins group {group}", step=("join", user.name, group))
        for group in sorted(wanted - set(has))
    ]
    leaves = [
        Change(f"user {user.name}", f"leaves group {group}", step=("leave", user.name, group))
        for group in sorted(set(has) & set(managed) - wanted)
    ]
    return joins + leaves


def _run(subject: str, summary: str, *argv: str) -> Change:
    return Change(subject, summary, step=("run", *argv))
