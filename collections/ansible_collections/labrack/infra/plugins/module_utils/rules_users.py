# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for the registry of people: ``lab_users`` and ``lab_groups``."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.finding import HIDDEN, Finding, duplicates, shown
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import (
    FIRST_NUMBER,
    LAST_NUMBER,
    LEFT,
    primary_group,
)

#: Days before the last one on which a word is said about it.
EXPIRY_NOTICE = 14
#: The first day that means no lock: shadow(5) has days since 1970, 0 is unclear and 1 is ours.
FIRST_EXPIRY = date(1970, 1, 3)
#: Debian's NAME_REGEX, at most 32 characters as utmp holds them.
NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
#: Names that the system or our daemons have, or that mean something else to sudo or Slurm.
SYSTEM_NAMES = frozenset(
    (
        *("root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data"),
        *("backup", "list", "irc", "nobody", "nogroup", "sshd", "adm", "sudo", "wheel", "docker", "video", "render"),
        *("messagebus", "systemd-network", "systemd-resolve", "systemd-timesync", "polkitd", "tss", "_apt", "_chrony"),
        *("chrony", "slurm", "munge", "mysql", "postgres", "postfix", "all"),
    )
)
#: sshd(8), AUTHORIZED_KEYS FILE FORMAT; certificates and DSA left out.
KEY_TYPES = frozenset(
    (
        *("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
        *("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
    )
)


def check_registry(variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in ``lab_users`` and ``lab_groups`` among these variables; missing ones are not looked at."""
    users, groups = variables.get("lab_users"), variables.get("lab_groups")
    for kind, key, entries in (("lab_users", "uid", users or ()), ("lab_groups", "gid", groups or ())):
        yield from _check_names(kind, key, entries)
    for place, user in enumerate(users or ()):
        yield from _check_user(("lab_users", place), user)
    yield from _check_archive(variables)
    if users is not None and groups is not None:
        yield from _check_groups(users, groups)


def _check_names(kind: str, key: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    what = kind.removeprefix("lab_").removesuffix("s")
    for place, entry in enumerate(entries):
        name, number = entry["name"], entry.get(key)
        if name in SYSTEM_NAMES:
            problem = f"{name} is an account or group of the system"
            yield Finding((kind, place, "name"), shown(name), problem, "choose another name")
        elif not NAME.fullmatch(name):
            mend = "use up to 32 lower-case letters, digits, _ and -, with a letter or _ first"
            yield Finding((kind, place, "name"), shown(name), f"not a {what} name that every system takes", mend)
        if number is not None and not FIRST_NUMBER <= number <= LAST_NUMBER:
            mend = f"choose one from {FIRST_NUMBER} to {LAST_NUMBER}"
            yield Finding((kind, place, key), shown(number), "in the range of the system's own accounts", mend)
    for place, first in duplicates(entry["name"] for entry in entries):
        name = entries[place]["name"]
        mend = f"keep one {what} of that name"
        yield Finding((kind, place, "name"), shown(name), f"also the name of {kind}[{first}]", mend)
    for place, first in duplicates(entry.get(key) for entry in entries):
        problem = f"also the {key} of {entries[first]['name']}"
        mend = f"give every {what} its own {key}"
        yield Finding((kind, place, key), shown(entries[place][key]), problem, mend)


def _check_archive(variables: Mapping[str, Any]) -> Iterator[Finding]:
    archive = variables.get("lab_users_archive")
    users = variables.get("lab_users") or ()
    absent = next((place for place, user in enumerate(users) if user.get("state") == "absent"), None)
    if archive and (not archive.startswith("/") or ".." in archive.split("/") or archive.strip("/") == ""):
        mend = "write an absolute path, such as /srv/archive"
        yield Finding(("lab_users_archive",), shown(archive), "not the path of a directory", mend)
    elif absent is not None and not archive:
        mend = "set lab_users_archive to a directory on the host that has the homes, such as /srv/archive"
        yield Finding(("lab_users", absent, "state"), "absent", "nothing says where the home goes", mend)


def expiry_words(users: Sequence[Mapping[str, Any]], today: date) -> list[str]:
    """Return a sentence for everybody whose account opens no more, or will not within :data:`EXPIRY_NOTICE` days."""
    words = []
    for user in users:
        day = expiry_day(user.get("expires"))
        if day is None or user.get("state", "present") != "present" or (day - today).days > EXPIRY_NOTICE:
            continue
        left = (day - today).days
        when = f"expires in {left} day{'s' if left > 1 else ''}, on" if left > 0 else "has expired on"
        words.append(f"lab_users: the account of {user['name']} {when} {day}. Mend: move expires, or set a state.")
    return words


def expiry_day(text: str | None) -> date | None:
    """Return the day that an ``expires`` names, None for anything else."""
    if not text or not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return None
    try:
        return date(*map(int, text.split("-")))
    except ValueError:
        return None


def _check_user(path: tuple[str | int, ...], user: Mapping[str, Any]) -> Iterator[Finding]:
    gid = user.get("gid")
    if gid is not None and not FIRST_NUMBER <= gid <= LAST_NUMBER:
        mend = f"choose one from {FIRST_NUMBER} to {LAST_NUMBER}, or leave it out"
        yield Finding((*path, "gid"), shown(gid), "in the range of the system's own groups", mend)
    if user.get("sudo") and user.get("state") in LEFT:
        problem = f"{user['name']} is {user['state']}, and who left may not become root"
        yield Finding((*path, "sudo"), "true", problem, "take sudo out, or the state")
    expires = user.get("expires")
    day = expiry_day(expires)
    if expires and (day is None or day < FIRST_EXPIRY):
        yield Finding((*path, "expires"), shown(expires), "not a day", 'write it as in "2027-03-31"')
    if re.search(r"[:\n]", user.get("comment") or ""):
        mend = "take the colon or line break out"
        yield Finding((*path, "comment"), shown(user["comment"]), "would break /etc/passwd", mend)
    for place, key in enumerate(user.get("keys") or ()):
        problem = key_problem(key)
        if problem:
            value = HIDDEN if "PRIVATE KEY" in key else shown(key)
            mend = "paste the line of the user's .pub file, such as ~/.ssh/id_ed25519.pub"
            yield Finding((*path, "keys", place), value, problem, mend)


def _check_groups(users: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    named = {group["name"]: group["gid"] for group in groups}
    numbers = {gid: name for name, gid in named.items()}
    private: dict[int, Mapping[str, Any]] = {}
    for place, user in enumerate(users):
        for where, group in enumerate(user.get("groups") or ()):
            if group not in named:
                mend = f"add {group} to lab_groups, with a gid"
                yield Finding(("lab_users", place, "groups", where), shown(group), "not in lab_groups", mend)
        if not (user.get("uid") or user.get("gid")):
            # the number to come is free as a group's number too
            if user["name"] in named:
                problem = f"{user['name']} is also a group of lab_groups"
                mend = f"set the user's gid to {named[user['name']]}, or rename the group"
                yield Finding(("lab_users", place, "name"), shown(user["name"]), problem, mend)
            continue
        name, gid = primary_group(user, named)
        path: tuple[str | int, ...] = ("lab_users", place, number_key(user))
        if named.get(name, gid) != gid:
            problem = f"{name} is also a group of lab_groups, with gid {named[name]}"
            yield Finding(path, shown(gid), problem, f"set the user's gid to {named[name]}, or rename the group")
        elif numbers.get(gid, name) != name:
            problem = f"also the gid of group {numbers[gid]}, and the user's own group would need it"
            mend = f"choose another number, or say gid: {gid} to join {numbers[gid]}"
            yield Finding(path, shown(gid), problem, mend)
        elif name not in named:
            other = private.setdefault(gid, user)
            if other is not user and (other.get("gid") or user.get("gid")):
                mend = "add the group to lab_groups if they share it, or choose another number"
                yield Finding(path, shown(gid), f"also the gid of {other['name']}'s own group", mend)


def number_key(user: Mapping[str, Any]) -> str:
    """Return the key that sets a user's GID: ``gid``, or ``uid`` where there is none."""
    return "gid" if user.get("gid") else "uid"


def key_problem(key: str) -> str:
    """Return what is wrong with a line of authorized_keys, empty for nothing."""
    if "PRIVATE KEY" in key:
        return "this is a private key; it must leave the inventory and its history, and be replaced"
    if "\n" in key.strip():
        return "more than one line; every key is an entry of its own"
    words = key.split()
    kind = next((place for place, word in enumerate(words) if word in KEY_TYPES), None)
    if kind is None or kind + 1 == len(words):
        return "not a public SSH key"
    try:
        blob = base64.b64decode(words[kind + 1], validate=True)
    except (binascii.Error, ValueError):
        return "not a public SSH key, or cut short"
    fields = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        fields.append(blob[4 : 4 + length])
        if len(fields[-1]) < length:
            return "a public SSH key that is cut short"
        blob = blob[4 + length :]
    return "" if len(fields) > 1 and fields[0] == words[kind].encode() else "not a public SSH key"
