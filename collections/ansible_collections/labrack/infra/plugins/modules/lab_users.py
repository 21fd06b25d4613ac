# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give a node the lab's users and groups, with their numbers, keys and sudo, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_users
short_description: The lab's users and groups on a node
version_added: 0.1.0
description:
  - Makes users and groups with the numbers of the lab's registry, their homes, authorized keys, membership and sudo.
  - Changes nothing, and fails with every reason, when a number belongs to another name on the node or a name has
    another number there.
  - Passwords are not set. Shell, home and password of an account that exists are left as they are.
  - A home in a shared directory that another host fills is neither made nor looked at, keys included.
  - Users who left the registry keep their account and are returned in RV(unmanaged).
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  users:
    description:
      - Everybody who shall have an account.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - User name.
        type: str
        required: true
      uid:
        description:
          - User number, the same on every node.
        type: int
        required: true
      gid:
        description:
          - Number of the primary group. One of O(groups) when it has this number, else a group named like the user.
          - By default the O(users[].uid).
        type: int
      groups:
        description:
          - Further groups. Membership in a group that is not in O(groups) is never taken away.
        type: list
        elements: str
        default: []
      keys:
        description:
          - Public SSH keys, one line each.
        type: list
        elements: str
        default: []
      comment:
        description:
          - Full name or other comment; left as it is when not given.
        type: str
      sudo:
        description:
          - Whether the user may become root without a password.
        type: bool
        default: false
      account:
        description:
          - The user's Slurm account, part of the registry; this module makes nothing of it.
        type: str
      state:
        description:
          - V(present), an account to work with; V(locked), for somebody who left. Locked means that the password is
            locked, the account expired, its authorized keys and sudo are gone and its open logins are ended. Account,
            home and files stay, and V(present) opens it again. An account that is not there is not made.
          - V(absent) locks as well, and when nothing of the user runs any more, puts the home into O(archive), compares
            the two, and removes account, own group and home. Other files stay and are returned in RV(left_files).
        type: str
        choices: [present, locked, absent]
        default: present
      expires:
        description:
          - The first day on which the account opens no more, such as C(2027-03-31). Without it an expiry that was set
            by hand stays.
        type: str
  groups:
    description:
      - Groups beside everybody's own.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Group name.
        type: str
        required: true
      gid:
        description:
          - Group number, the same on every node.
        type: int
        required: true
  keys_exclusive:
    description:
      - Whether the users' authorized keys are these and no others. Otherwise missing ones are added, none is removed.
    type: bool
    default: true
  kept_keys:
    description:
      - Public keys that stay in a user's authorized keys when something else has put them there, as lists by user name.
        None is added.
    type: dict
    default: {}
  subids:
    description:
      - Whether everybody gets a range of 65536 numbers for rootless containers in C(/etc/subuid) and C(/etc/subgid),
        from 100000 + (uid - 1000) * 65536 on. Ranges that are there and differ are refused.
    type: bool
    default: true
  archive:
    description:
      - Directory for the homes of users who are V(absent), on the host that has the homes. It is made, for root alone.
    type: str
  busy:
    description:
      - Why users who are V(absent) can't go yet for reasons that lie on other hosts, by name.
    type: dict
    default: {}
  jobs:
    description:
      - V(none) where there is no Slurm. V(look) keeps users who are V(absent) as long as they have jobs. V(cancel)
        also ends the jobs of those who left.
    type: str
    choices: [none, look, cancel]
    default: none
  directories:
    description:
      - The lab's shared directories as this host sees them.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - Where people find it.
        type: str
        required: true
      source:
        description:
          - The folder that holds it on its server.
        type: str
        required: true
      makes:
        description:
          - Whether this host makes what is in it.
        type: bool
        required: true
      provided:
        description:
          - Whether something else than labrack mounts it.
        type: bool
        default: false
      shared:
        description:
          - Whether other hosts see the same files; this module asks C(makes) alone.
        type: bool
        default: false
"""

EXAMPLES = r"""
- name: Two people of one team
  labrack.infra.lab_users:
    groups:
      - {name: vision, gid: 3000}
    users:
      - name: ada
        uid: 2001
        groups: [vision]
        keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKg3v7x0Zl9d4cXkFtJ0k1cYp3mUqQH2N5oB8rWwT6eS ada"]
        sudo: true
      - {name: bob, uid: 2002, groups: [vision]}

- name: Somebody who left, and whose home goes into the archive
  labrack.infra.lab_users:
    users:
      - {name: cy, uid: 2003, state: absent}
    archive: /srv/archive
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Changes that O(max_disruption) does not cover.
  returned: success
  type: list
  elements: dict
unmanaged:
  description: Users that this module once kept on the node and that are in O(users) no more.
  returned: success
  type: list
  elements: str
waiting:
  description:
    - A sentence for everybody who shall be absent and of whom something still runs, or whose home outlived the account.
  returned: success
  type: list
  elements: str
archives:
  description: The archives that this call has made.
  returned: success
  type: list
  elements: str
left_files:
  description:
    - Files on local file systems of users whose account this call removed, or would in check mode, by user name.
    - Each has C(paths), at most 50 (a directory stands for what is in it), C(more), how many more there are, and
      C(complete), false when the search was given up after 20 seconds.
  returned: when an account is removed
  type: dict
"""

import errno
import grp
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, TypeVar

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import home_archive, node_io, owned_files, users_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.people_observe import (
    CommandError,
    execute,
    jobs_of,
    processes_of,
)
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import (
    Account,
    Group,
    Node,
    Registry,
    User,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "users": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "uid": {"type": "int", "required": True},
            "gid": {"type": "int"},
            "groups": {"type": "list", "elements": "str", "default": []},
            "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "comment": {"type": "str"},
            "sudo": {"type": "bool", "default": False},
            "account": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "locked", "absent"], "default": "present"},
            "expires": {"type": "str"},
        },
    },
    "groups": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"name": {"type": "str", "required": True}, "gid": {"type": "int", "required": True}},
    },
    "keys_exclusive": {"type": "bool", "default": True, "no_log": False},
    "kept_keys": {"type": "dict", "default": {}, "no_log": False},
    "subids": {"type": "bool", "default": True},
    "archive": {"type": "str"},
    "busy": {"type": "dict", "default": {}},
    "jobs": {"type": "str", "choices": ["none", "look", "cancel"], "default": "none"},
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "str", "required": True},
            "source": {"type": "str", "required": True},
            "makes": {"type": "bool", "required": True},
            "provided": {"type": "bool", "default": False},
            "shared": {"type": "bool", "default": False},
        },
    },
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}
SKELETON = "/etc/skel"
SHADOW = "/etc/shadow"
#: Bytes of authorized keys beyond which they are nobody's keys, and not read.
KEYS_MOST = 1 << 20
#: Seconds until a login that is ended must be gone.
PATIENCE = 15.0
#: Seconds for Slurm to end jobs, and between two looks.
CANCEL_PATIENCE = 15.0
CANCEL_PAUSE = 0.5

Key = TypeVar("Key")
Entry = TypeVar("Entry")


def observe(registry: Registry, elsewhere: tuple[str, ...] = ()) -> Node:
    """Read the node's accounts, local ones and those that a directory service answers for, and what belongs to them.

    ``elsewhere`` are the shared directories that another host fills.
    """
    people, named = registry.users, registry.groups
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    uids = {entry.pw_uid for entry in users.values()}
    # a directory service that lists nobody still answers for a name
    asked = _found(pwd.getpwnam, (user.name for user in people if user.name not in users))
    owners = _found(pwd.getpwuid, (user.uid for user in people if user.uid not in uids))
    users.update({entry.pw_name: entry for entry in (*asked, *owners)})
    teams = {entry.gr_name: entry for entry in grp.getgrall()}
    gids = {entry.gr_gid for entry in teams.values()}
    listed = _found(grp.getgrnam, (name for name in named if name not in teams))
    numbered = _found(grp.getgrgid, (gid for gid in named.values() if gid not in gids))
    teams.update({entry.gr_name: entry for entry in (*listed, *numbered)})
    groups = {name: Group(entry.gr_gid, frozenset(entry.gr_mem)) for name, entry in teams.items()}
    lines = (line.split(":") for line in (node_io.read_text(SHADOW) or "").splitlines())
    shadow = {fields[0]: fields for fields in lines if len(fields) > 7}
    leaving = {person.name for person in people if person.locked}
    sessions = open_sessions() if leaving else {}
    accounts = {}
    for name, user in users.items():
        _name, password, *_ages, expires, _rest = shadow.get(name) or ["", "", "", "", "", "", "", "", ""]
        accounts[name] = Account(
            user.pw_uid,
            user.pw_gid,
            user.pw_dir,
            user.pw_gecos,
            password in users_plan.NO_PASSWORD_YET,
            password.startswith("!") and expires == "1",
            sessions.get(name, 0) if name in leaving else 0,
            (date(1970, 1, 1) + timedelta(days=int(expires))).isoformat() if expires.isdigit() else "",
        )
    node = Node(accounts, groups, elsewhere=elsewhere)
    here = [person for person in people if users_plan.makes_home(node, person)]
    homes = {home: os.stat(home).st_uid for user in here if os.path.isdir(home := users_plan.home_of(node, user))}
    keys = {}
    for person in here:
        account = accounts.get(person.name)
        if account is not None:
            with acting_as(account.uid, account.gid):
                state = node_io.observe_file(users_plan.keys_path(node, person), KEYS_MOST)
            if state is not None:
                keys[person.name] = state
    files = {
        path: node_io.observe_file(path) for path in (users_plan.SUDOERS, users_plan.RECORD, *users_plan.SUBID_FILES)
    }
    subids = {path: state for path in users_plan.SUBID_FILES if (state := files[path]) is not None}
    return Node(
        accounts, groups, homes, keys, files[users_plan.SUDOERS], files[users_plan.RECORD], subids, elsewhere=elsewhere
    )


def reasons_to_wait(
    node: Node, registry: Registry, archive: str, elsewhere: Mapping[str, Iterable[str]], jobs: Mapping[str, int] | str
) -> dict[str, tuple[str, ...]]:
    """Return why those who shall be absent can't go now, by name; ``jobs`` is a text where Slurm gave no answer."""
    absent = [user for user in registry.users if user.absent and user.name in node.accounts]
    processes = processes_of({node.accounts[user.name].uid for user in absent}) if absent else {}
    found = {}
    for user in absent:
        account = node.accounts[user.name]
        why = list(elsewhere.get(user.name, ()))
        count = processes.get(account.uid, 0)
        if count:
            why.append(f"{count} process{'es' if count > 1 else ''} on {os.uname().nodename}")
        if isinstance(jobs, str):
            why.append(jobs)
        elif jobs.get(user.name):
            why.append(f"{jobs[user.name]} jobs in Slurm")
        if users_plan.makes_home(node, user) and account.home in node.homes:
            why += reasons_to_keep(node, account, user.name, archive)
        if why:
            found[user.name] = tuple(why)
    return found


def reasons_to_keep(node: Node, account: Account, name: str, archive: str) -> list[str]:
    """Return why a home can't be archived and removed as it is."""
    home = account.home
    why = []
    if not archive:
        why.append("lab_users_archive does not say where the home shall go")
    elif inside(os.path.realpath(archive), os.path.realpath(home)):
        why.append(f"the archive {archive} lies in the home")
    if os.path.islink(home) or home.count("/") < 2 or node.homes[home] != account.uid:
        why.append(f"{home} is not a home of their own")
    others = sorted(other for other, one in node.accounts.items() if other != name and inside(one.home, home))
    if others:
        why.append(f"{home} is also the home of {others[0]}")
    points = owned_files.mounts_below(os.path.realpath(home), node_io.read_text(owned_files.MOUNTS) or "")
    if points:
        why.append(f"something is mounted at {points[0]}")
    return why


def open_sessions() -> dict[str, int]:
    """Return how many logins each user has open, as ``loginctl`` counts them; none where there is no logind."""
    listed = node_io.run(["loginctl", "list-sessions", "--no-legend", "--no-pager"])
    owners = [line.split()[2] for line in listed.out.splitlines() if len(line.split()) > 2]
    return {owner: owners.count(owner) for owner in owners}


def await_logout(name: str) -> None:
    """Wait for the end of logins that are being ended: logind lists them until their last process is gone."""
    deadline = time.monotonic() + PATIENCE
    while name in open_sessions() and time.monotonic() < deadline:
        time.sleep(0.2)


def _found(ask: Callable[[Key], Entry], keys: Iterable[Key]) -> Iterator[Entry]:
    for key in keys:
        with suppress(KeyError):
            yield ask(key)


@contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Do what follows with a user's rights: a link in a user's home leads nowhere that the user can't go."""
    before = os.getgroups()
    os.setgroups([gid])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def make_home(home: str, user: User) -> None:
    """Make a home from the skeleton, complete or not at all (OSError)."""
    draft = tempfile.mkdtemp(prefix=".labrack-", dir=os.path.dirname(home))
    try:
        if os.path.isdir(SKELETON):
            shutil.copytree(SKELETON, draft, symlinks=True, dirs_exist_ok=True)
        for folder, folders, files in os.walk(draft):
            for name in (*folders, *files):
                os.lchown(os.path.join(folder, name), user.uid, user.gid)
        os.chown(draft, user.uid, user.gid)
        os.chmod(draft, 0o750)  # noqa: S103
        os.rename(draft, home)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        # where /home is a file server's, another node makes it at the same moment
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or os.lstat(home).st_uid != user.uid:
            raise


def cancel_jobs(argv: list[str], name: str) -> None:
    """End somebody's jobs, and wait until Slurm counts none any more (CommandError)."""
    execute(argv)
    deadline = time.monotonic() + CANCEL_PATIENCE
    while jobs_of([name]) and time.monotonic() < deadline:
        time.sleep(CANCEL_PAUSE)


def write_keys(path: str, user: User, wanted: node_io.FileState | None) -> None:
    """Write or remove a user's authorized keys, with that user's rights (OSError)."""
    with acting_as(user.uid, user.gid):
        if wanted is None:
            node_io.remove_file(path)
            return
        with suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o700)
        node_io.write_file(path, wanted, flush=False)


def write_sudoers(wanted: node_io.FileState) -> None:
    """Put the sudoers file in place if visudo finds no fault in it (CommandError)."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as draft:
        draft.write(wanted.text)
        draft.flush()
        execute(["visudo", "-cf", draft.name])
    node_io.write_file(users_plan.SUDOERS, wanted)


def apply(changes: list[Change], node: Node, registry: Registry, params: Mapping[str, Any]) -> list[str]:
    """Make the changes (OSError, CommandError or ArchiveError when the node refuses); return the archives made."""
    users = {user.name: user for user in registry.users}
    exclusive = params["keys_exclusive"]
    sudoers = users_plan.wanted_sudoers(registry)
    files = {file: users_plan.wanted_subids(node, registry, file) for file in users_plan.SUBID_FILES}
    files[users_plan.RECORD] = users_plan.wanted_record(node, registry)
    archives = []
    barred = []
    make_accounts(changes, node, registry)
    for change in changes:
        verb, *rest = change.step
        if verb in ("make", "join", "leave"):
            continue
        if verb == "run" and rest[0] == "scancel":
            cancel_jobs(rest, change.subject.partition(" ")[2])
        elif verb == "run":
            execute(rest)
            if rest[0] == "loginctl":
                await_logout(rest[-1])
        elif verb == "home":
            make_home(users_plan.home_of(node, users[rest[0]]), users[rest[0]])
        elif verb == "keys":
            user = users[rest[0]]
            path = users_plan.keys_path(node, user)
            try:
                write_keys(path, user, users_plan.wanted_keys(node, user, exclusive))
            except OSError as error:
                # a home is its owner's: who bars the way there must not keep the rest from being done
                mend = f"see to it that {user.name} may write there (owner, mode, quota)"
                barred.append(f"the authorized_keys of {user.name} could not be changed: {error}. Mend: {mend}")
        elif verb == "archive":
            home = users_plan.home_of(node, users[rest[0]])
            archives.append(home_archive.archive(home, params["archive"], rest[0], users[rest[0]].uid))
        elif verb == "delete":
            home_archive.remove(users_plan.home_of(node, users[rest[0]]))
        elif verb == "group":
            remove_group(rest[0])
        elif verb == "remove":
            node_io.remove_file(rest[0])
        elif rest[0] == users_plan.SUDOERS and sudoers is not None:
            write_sudoers(sudoers)
        else:
            wanted = files[rest[0]]
            if wanted is not None:
                node_io.write_file(rest[0], wanted)
    if barred:
        raise CommandError("; ".join(barred))
    return archives


def make_accounts(changes: list[Change], node: Node, registry: Registry) -> None:
    """Make the groups and accounts and the membership in these changes, each for all at once (CommandError)."""
    text = users_plan.sysusers(changes, registry)
    if text:
        execute(["systemd-sysusers", "-"], text)
    made = [change.step[2] for change in changes if change.step[:2] == ("make", "user")]
    if made:
        # sysusers locks the password, and some sshd take that for a locked account
        execute(["chpasswd", "--encrypted"], "".join(f"{name}:*\n" for name in made))
    for group, names in users_plan.members(changes, node).items():
        execute(["gpasswd", "--members", ",".join(names), group])


def remove_group(name: str) -> None:
    """Remove a group that userdel may have removed already (CommandError)."""
    with suppress(KeyError):
        grp.getgrnam(name)
        execute(["groupdel", name])


def not_mounted(directories: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """Return a reason for each shared directory of this host that does not yet lead to the folder that holds it."""
    found = []
    for one in directories:
        path, source = one["path"], one["source"]
        if one["makes"] and not one["provided"] and path != source:
            with suppress(OSError):
                if os.path.samefile(path, source):
                    continue
            mend = "let the role nfs_server run first"
            found.append(f"{path} does not lead to {source} on {name}, so homes would be hidden. Mend: {mend}.")
    return found


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    registry = Registry.read(params["users"], params["groups"], params["kept_keys"])
    elsewhere = tuple(one["path"] for one in params["directories"] if not one["makes"])
    seen = Node()
    held: dict[str, tuple[str, ...]] = {}
    archives: list[str] = []
    #: who goes now: the UID, and the home that goes along
    going: dict[str, tuple[int, list[str]]] = {}
    first = True

    def look() -> Node:
        nonlocal seen, first
        node = observe(registry, elsewhere)
        if any(user.locked for user in registry.users):
            node = waits(node, first)
        reasons = users_plan.refusals(node, registry, os.uname().nodename, params["subids"])
        if not module.check_mode and any(users_plan.makes_home(node, user) for user in registry.users):
            reasons += not_mounted(params["directories"], os.uname().nodename)
        if reasons:
            module.fail_json(msg="nothing was changed here: " + " ".join(reasons))
        if first:
            for user in users_plan.removed(node, registry):
                home = users_plan.home_of(node, user)
                going[user.name] = user.uid, [home] if home in node.homes else []
        seen, first = node, False
        return node

    def waits(node: Node, first: bool) -> Node:
        left = {user.name for user in registry.users if user.locked and user.name in node.accounts}
        absent = {user.name for user in registry.users if user.absent} & left
        cancel = params["jobs"] == "cancel"
        asked = (left if cancel else absent) if params["jobs"] != "none" else set()
        jobs = jobs_of(asked)
        # what kept somebody at the first look does so until the next run, or the two looks would not agree
        if first:
            held.update(reasons_to_wait(node, registry, params["archive"] or "", params["busy"], jobs))
        mine = jobs if cancel and not isinstance(jobs, str) else {}
        if first and cancel and isinstance(jobs, str):
            module.warn(f"no job of those who left was cancelled: {jobs}")
        return replace(node, jobs=mine, busy={name: why for name, why in held.items() if name in node.accounts})

    def extra(node: Node) -> dict[str, Any]:
        waiting = users_plan.waiting(node, registry)
        for words in waiting:
            module.warn(words)
        mountinfo = node_io.read_text(owned_files.MOUNTS) or ""
        left = {
            name: dict(zip(("paths", "more", "complete"), owned_files.left_files(uid, mountinfo, homes)))
            for name, (uid, homes) in going.items()
        }
        more = {"left_files": left} if left else {}
        return {"unmanaged": users_plan.unmanaged(node, registry), "waiting": waiting, "archives": archives, **more}

    try:
        converge(
            module,
            look,
            lambda node: users_plan.plan(node, registry, params["keys_exclusive"], params["subids"]),
            lambda changes: archives.extend(apply(changes, seen, registry, params)),
            extra,
            ledger="lab_users",
        )
    except ValueError as error:
        module.fail_json(msg=f"{users_plan.RECORD} is damaged ({error}). Mend: remove it and run again.")
    except (OSError, CommandError, home_archive.ArchiveError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
