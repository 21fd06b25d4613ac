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
        type: str
        choices: [present, locked]
        default: present
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
"""

import grp
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import node_io, users_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
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
            "state": {"type": "str", "choices": ["present", "locked"], "default": "present"},
        },
    },
    "groups": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"name": {"type": "str", "required": True}, "gid": {"type": "int", "required": True}},
    },
    "keys_exclusive": {"type": "bool", "default": True, "no_log": False},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}
SKELETON = "/etc/skel"
SHADOW = "/etc/shadow"
#: Seconds until a login that is ended must be gone.
PATIENCE = 15.0

Key = TypeVar("Key")
Entry = TypeVar("Entry")


class CommandError(RuntimeError):
    """A command that failed; the message holds it and what it said."""


def observe(registry: Registry) -> Node:
    """Read the node's accounts, local ones and those that a directory service answers for, and what belongs to them."""
    people, named = registry.users, registry.groups
    by_name = _found(pwd.getpwnam, (user.name for user in people))
    by_uid = _found(pwd.getpwuid, (user.uid for user in people))
    users = {entry.pw_name: entry for entry in (*pwd.getpwall(), *by_name, *by_uid)}
    teams = (*grp.getgrall(), *_found(grp.getgrnam, named), *_found(grp.getgrgid, named.values()))
    groups = {entry.gr_name: Group(entry.gr_gid, frozenset(entry.gr_mem)) for entry in teams}
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
        )
    node = Node(accounts, groups)
    homes = {home: os.stat(home).st_uid for user in people if os.path.isdir(home := users_plan.home_of(node, user))}
    keys = {}
    for person in people:
        account = accounts.get(person.name)
        if account is not None:
            with acting_as(account.uid, account.gid):
                state = node_io.observe_file(users_plan.keys_path(node, person))
            if state is not None:
                keys[person.name] = state
    sudoers = node_io.observe_file(users_plan.SUDOERS)
    return Node(accounts, groups, homes, keys, sudoers, node_io.observe_file(users_plan.RECORD))


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
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_keys(path: str, user: User, wanted: node_io.FileState | None) -> None:
    """Write or remove a user's authorized keys, with that user's rights (OSError)."""
    with acting_as(user.uid, user.gid):
        if wanted is None:
            node_io.remove_file(path)
            return
        with suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o700)
        node_io.write_file(path, wanted)


def write_sudoers(wanted: node_io.FileState) -> None:
    """Put the sudoers file in place if visudo finds no fault in it (CommandError)."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as draft:
        draft.write(wanted.text)
        draft.flush()
        execute(["visudo", "-cf", draft.name])
    node_io.write_file(users_plan.SUDOERS, wanted)


def execute(argv: list[str]) -> None:
    """Run a command (CommandError when it fails)."""
    done = node_io.run(argv)
    if done.rc:
        raise CommandError(f"{' '.join(argv)} failed: {(done.err or done.out).strip()}")


def apply(changes: list[Change], node: Node, registry: Registry, exclusive: bool) -> None:
    """Make the changes (OSError or CommandError when the node refuses)."""
    users = {user.name: user for user in registry.users}
    sudoers = users_plan.wanted_sudoers(registry)
    record = users_plan.wanted_record(node, registry)
    for change in changes:
        verb, *rest = change.step
        if verb == "run":
            execute(rest)
            if rest[0] == "loginctl":
                await_logout(rest[-1])
        elif verb == "home":
            make_home(users_plan.home_of(node, users[rest[0]]), users[rest[0]])
        elif verb == "keys":
            user = users[rest[0]]
            write_keys(users_plan.keys_path(node, user), user, users_plan.wanted_keys(node, user, exclusive))
        elif verb == "remove":
            node_io.remove_file(rest[0])
        elif rest[0] == users_plan.SUDOERS and sudoers is not None:
            write_sudoers(sudoers)
        elif record is not None:
            node_io.write_file(users_plan.RECORD, record)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    registry = Registry.read(module.params["users"], module.params["groups"])
    exclusive = module.params["keys_exclusive"]
    seen = Node()

    def look() -> Node:
        nonlocal seen
        seen = observe(registry)
        reasons = users_plan.refusals(seen, registry, os.uname().nodename)
        if reasons:
            module.fail_json(msg="nothing was changed here: " + " ".join(reasons))
        return seen

    try:
        converge(
            module,
            look,
            lambda node: users_plan.plan(node, registry, exclusive),
            lambda changes: apply(changes, seen, registry, exclusive),
            lambda node: {"unmanaged": users_plan.unmanaged(node, registry)},
        )
    except ValueError as error:
        module.fail_json(msg=f"{users_plan.RECORD} is damaged ({error}). Mend: remove it and run again.")
    except (OSError, CommandError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
