# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The numbers that the lab has given to people: chosen once, kept in a file, never given to anybody else.

Pure. A user of ``lab_users`` without a ``uid`` gets the lowest number from 2000 upwards that nobody and nothing has on
any node; an account that the nodes have already keeps its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, shown
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import (
    FIRST_NUMBER,
    LAST_NUMBER,
    Registry,
    SubidRange,
    migrate_command,
    wanted_range,
)

FIRST_PROPOSED = 2000
HEADER = """\
# Whom labrack gave which user number: NAME: UID, and after it numbers that were theirs before. Keep this file with the
# inventory. labrack adds to it and never gives a number to somebody else, so leave those in who left.
"""

#: Name → numbers, the present one first.
Given = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Filled:
    """``lab_users`` with everybody's number where one could be told, the registry with them, and what is wrong."""

    users: tuple[Mapping[str, Any], ...] = ()
    given: Given = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def read(document: object) -> dict[str, tuple[int, ...]]:
    """Return the registry from its parsed YAML (ValueError for anything else)."""
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise ValueError("not lines of NAME: UID")
    found = {}
    owners: dict[int, str] = {}
    for name, value in document.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if not numbers or not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
            raise ValueError(f"{name}: {shown(value)} is no user number")
        for number in numbers:
            if owners.setdefault(number, str(name)) != str(name):
                raise ValueError(f"{number} belongs to both {owners[number]} and {name}")
        found[str(name)] = tuple(numbers)
    return found


def text(given: Given) -> str:
    """Return the registry as a file, sorted by name; :func:`read` reads it back."""
    lines = [
        f"{name}: {numbers[0] if len(numbers) == 1 else list(numbers)}\n" for name, numbers in sorted(given.items())
    ]
    return HEADER + "".join(lines)


def moved(given: Given, name: str, uid: int) -> dict[str, tuple[int, ...]]:
    """Return the registry after a user got another number; what was theirs stays theirs. Only who is in it changes."""
    if name not in given:
        return dict(given)
    return {**given, name: (uid, *(number for number in given[name] if number != uid))}


def holder(given: Given, number: int) -> str:
    """Return who has or had a number, empty for nobody."""
    return next((name for name, numbers in given.items() if number in numbers), "")


def fill(
    users: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    given: Given,
    facts: Mapping[str, Mapping[str, Any]],
    hosts: Iterable[str],
    subids: bool = True,
) -> Filled:
    """Return ``lab_users`` with all numbers, from the registry ``given`` and the ``labrack_node`` facts by host.

    ``hosts`` are all that people have accounts on: a number is proposed only when each has facts. Numbers that the
    inventory names are held against the registry, and enter it where somebody of the lab has a number from it.
    """
    findings: list[Finding] = []
    result = dict(given)
    for place, user in enumerate(users):
        if user.get("uid"):
            findings += _check_named(place, user, given)
    new = [place for place, user in enumerate(users) if not user.get("uid") and user["name"] not in given]
    unread = [host for host in hosts if host not in facts]
    if new and unread:
        for place in new:
            problem = f"no number yet, and one can't be chosen without {', '.join(unread)}: it may be taken there"
            mend = "run on all nodes, without --limit, when each of them answers, or write a uid"
            findings.append(Finding(("lab_users", place, "uid"), "", problem, mend))
    elif new:
        taken = _taken(users, groups, given, facts)
        owners = {number: name for name, numbers in given.items() for number in numbers}
        owners.update({user["uid"]: user["name"] for user in users if user.get("uid")})
        foreign = _foreign(users, given, facts) if subids else []
        for place in new:
            name = users[place]["name"]
            number, wrong = _choose(place, name, taken, foreign, facts, owners)
            findings += wrong
            if number:
                result[name] = (number,)
                taken.setdefault(number, name)
                owners[number] = name
    filled = tuple({**user, "uid": user.get("uid") or result.get(user["name"], (None,))[0]} for user in users)
    if result:
        # who left keeps the number, also when it was the inventory that named it
        result = {**{user["name"]: (user["uid"],) for user in users if user.get("uid")}, **result}
    return Filled(filled, result, tuple(findings))


def _check_named(place: int, user: Mapping[str, Any], given: Given) -> Iterable[Finding]:
    name, uid = user["name"], user["uid"]
    path = ("lab_users", place, "uid")
    other = holder(given, uid)
    if other not in ("", name):
        yield Finding(path, shown(uid), f"the lab gave this number to {other}", "choose another, or leave it out")
    elif name in given and given[name][0] != uid:
        mend = f"write {given[name][0]} or leave it out, or move user and files: {migrate_command(name, uid)}"
        yield Finding(path, shown(uid), f"the lab gave {name} the number {given[name][0]}", mend)


def _taken(
    users: Iterable[Mapping[str, Any]],
    groups: Iterable[Mapping[str, Any]],
    given: Given,
    facts: Mapping[str, Mapping[str, Any]],
) -> dict[int, str]:
    """Return every number that is in use as UID or GID, with the name that has it."""
    taken: dict[int, str] = {number: name for name, numbers in given.items() for number in numbers}
    for user in users:
        for number in (user.get("uid"), user.get("gid")):
            if number:
                taken.setdefault(number, user["name"])
    taken.update({group["gid"]: f"group {group['name']}" for group in groups})
    for node in facts.values():
        for user in node["users"]:
            taken.setdefault(user["uid"], user["name"])
            taken.setdefault(user["gid"], user["name"])
        for group in node["groups"]:
            taken.setdefault(group["gid"], group["name"])
    return taken


def _foreign(
    users: Iterable[Mapping[str, Any]], given: Given, facts: Mapping[str, Mapping[str, Any]]
) -> list[SubidRange]:
    """Return the ranges on any node that are not those which the owner's number in the lab brings."""
    numbers = {name: one[0] for name, one in given.items()}
    numbers.update({user["name"]: user["uid"] for user in users if user.get("uid")})
    found = set()
    for node in facts.values():
        for one in node["subids"]:
            there = SubidRange(one["owner"], one["start"], one["count"])
            if there.owner not in numbers or there != _range(there.owner, numbers[there.owner]):
                found.add(there)
    return list(found)


def _range(name: str, uid: int) -> SubidRange:
    return wanted_range(Registry.read([{"name": name, "uid": uid}], []).users[0])


def _choose(
    place: int,
    name: str,
    taken: Mapping[int, str],
    foreign: Iterable[SubidRange],
    facts: Mapping[str, Mapping[str, Any]],
    owners: Mapping[int, str],
) -> tuple[int, list[Finding]]:
    """Return a number for somebody who has none, 0 and why where there is none to be had.

    ``owners`` has those who got a number from the inventory or the registry, ``taken`` also what the nodes have.
    """
    path = ("lab_users", place, "uid")
    there = {host: user["uid"] for host, node in facts.items() for user in node["users"] if user["name"] == name}
    if len(set(there.values())) > 1:
        seen = ", ".join(f"{uid} on {host}" for host, uid in there.items())
        number = next(iter(there.values()))
        mend = f"write one into the inventory and move the others to it: {migrate_command(name, number)}"
        return 0, [Finding(path, "", f"{name} has not the same number everywhere: {seen}", mend)]
    if there:
        (number,) = set(there.values())
        host = next(iter(there))
        if not FIRST_NUMBER <= number <= LAST_NUMBER:
            problem = f"{name} is an account of the system on {host}, with uid {number}"
            return 0, [Finding(path, "", problem, "choose another name")]
        others = sorted(
            f"{user['name']} on {other}"
            for other, node in facts.items()
            for user in node["users"]
            if user["uid"] == number and user["name"] != name
        )
        if others or owners.get(number, name) != name:
            owner = others[0] if others else owners[number]
            mend = f"move {name} to a free number: {migrate_command(name, None)}"
            return 0, [Finding(path, "", f"{name} has the number {number} on {host}, which is also {owner}'s", mend)]
        return number, []
    for number in range(FIRST_PROPOSED, LAST_NUMBER + 1):
        if number not in taken and not any(_range(name, number).overlaps(one) for one in foreign):
            return number, []
    return 0, [Finding(path, "", f"no number from {FIRST_PROPOSED} to {LAST_NUMBER} is free", "write a uid")]
