# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Move a user to another number on a node: account, own group, files, ACLs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: uid_migrate
short_description: Move a user and their files to another number on a node
version_added: 0.1.0
description:
  - Gives files, ACL entries, account, own group and ranges for containers of a user other numbers.
  - Each file of the local file systems is met once, no link is followed. What a server holds is changed on the server.
  - What containers have under C(/var/lib/docker) and its like is left alone, since a number there is not the user.
  - A run that was interrupted is finished by the next one.
  - In check mode it counts, and returns what speaks against it instead of failing.
  - The playbook C(labrack.infra.uid_migrate) looks at all nodes first and changes them then.
author:
  - labrack contributors (@labrack)
options:
  user:
    description:
      - User name.
    type: str
    required: true
  uid:
    description:
      - The number that the user shall have.
    type: int
    required: true
  gid:
    description:
      - The number that the group of the user's name shall have; left out, the group is left as it is.
    type: int
  seen:
    description:
      - What is known of the user on all nodes, as the filter C(labrack.infra.uid_survey) returns it.
    type: dict
    required: true
  directories:
    description:
      - The lab's shared directories, as the filter C(labrack.infra.lab_places) returns them.
    type: list
    elements: dict
    default: []
  jobs:
    description:
      - Whether Slurm is asked for the user's jobs.
    type: bool
    default: false
  phase:
    description:
      - V(all) does everything. V(move) leaves the note that the move is under way, V(finish) takes it away and does
        nothing else. Nodes with shared files move first and finish when all others are done.
    type: str
    choices: [all, move, finish]
    default: all
attributes:
  check_mode:
    description: Counts what would change and changes nothing.
    support: full
  diff_mode:
    description: Shows every change.
    support: full
  platform:
    description: The systems that the module runs on.
    support: full
    platforms: linux
"""

EXAMPLES = r"""
- name: Move ada from 2001 to 2005
  labrack.infra.uid_migrate:
    user: ada
    uid: 2005
    gid: 2005
    seen: {uids: [2001], gids: [2001]}
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Always empty.
  returned: success
  type: list
  elements: dict
files:
  description: How many C(files) and C(bytes) got another number, or would, by directory of the root.
  returned: success
  type: dict
refusals:
  description: What speaks against it, a sentence each. Outside check mode the module fails with them.
  returned: success
  type: list
  elements: str
unclear:
  description: How many files in shared directories may be the user's or somebody else's, and stay as they are.
  returned: success
  type: int
"""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import (
    migrate_plan,
    node_io,
    owned_files,
    posix_acl,
    storage_layout,
    users_plan,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.migrate_plan import (
    Count,
    Node,
    Places,
    Span,
    Survey,
    Wanted,
    renumber,
)
from ansible_collections.labrack.infra.plugins.module_utils.people_observe import (
    CommandError,
    execute,
    jobs_of,
    processes_of,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "user": {"type": "str", "required": True},
    "uid": {"type": "int", "required": True},
    "gid": {"type": "int"},
    "seen": {"type": "dict", "required": True},
    "directories": {"type": "list", "elements": "dict", "default": []},
    "jobs": {"type": "bool", "default": False},
    "phase": {"type": "str", "choices": ["all", "move", "finish"], "default": "all"},
}
#: What the kernel says of a file without an ACL, and of a file system without any.
NO_ACL = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT)
#: By what a file is told from one that was put in its place.
SAME = ("st_dev", "st_ino", "st_mode", "st_uid", "st_gid")
#: usermod's exit status when the account has its number and the home could not be gone through: a server refused root.
HOME_NOT_READ = 12


def read_survey(seen: Mapping[str, Any]) -> Survey:
    """Return the survey in a module's argument, whose keys are text."""
    return Survey(
        tuple(int(one) for one in seen.get("uids") or ()),
        tuple(int(one) for one in seen.get("gids") or ()),
        {int(number): str(words) for number, words in (seen.get("others") or {}).items()},
        {int(number): str(words) for number, words in (seen.get("other_groups") or {}).items()},
        tuple(seen.get("done") or ()),
    )


def places_of(directories: Iterable[Mapping[str, Any]], home: str) -> Places:
    """Return where this node has shared directories; ``home`` is the path by which the user knows the home."""
    mine = [one for one in directories if one["makes"]]
    around = max(
        (one for one in mine if storage_layout.inside(home, one["path"])),
        key=lambda one: len(one["path"]),
        default=None,
    )
    # the files are walked where they lie, not where they are mounted once more
    real = os.path.realpath
    return Places(
        tuple(sorted(real(one["source"]) for one in mine if one["shared"])),
        real(around["source"]) + home[len(around["path"].rstrip("/")) :] if around and around["shared"] else "",
        tuple(one["path"] for one in directories if not one["makes"]),
        tuple(one["path"] for one in mine if one["provided"]),
    )


def observe_account(wanted: Wanted, jobs: bool) -> Node:
    """Read all that a node has of a user but the files."""
    try:
        account = pwd.getpwnam(wanted.name)
    except KeyError:
        account = None
    try:
        own = grp.getgrnam(wanted.name).gr_gid
    except KeyError:
        own = None
    waiting = jobs_of([wanted.name]) if jobs and account else {}
    if not isinstance(waiting, str):
        waiting = f"{wanted.name} has {waiting[wanted.name]} jobs in Slurm" if waiting else ""
    ranges = {}
    for file in users_plan.SUBID_FILES:
        there = users_plan.read_subids(node_io.read_text(file) or "")
        ranges[file] = tuple(one for one in there if one.owner == wanted.name)
    return Node(
        account.pw_uid if account else None,
        own,
        account.pw_dir if account else None,
        tuple(one.pw_name for one in pwd.getpwall() if one.pw_uid == wanted.uid and one.pw_name != wanted.name),
        tuple(one.gr_name for one in grp.getgrall() if one.gr_gid == wanted.gid and one.gr_name != wanted.name),
        sum(processes_of({wanted.uid, *([account.pw_uid] if account else [])}).values()) if account else 0,
        waiting,
        ranges,
        node_io.observe_file(migrate_plan.record_path(wanted.name)),
    )


class Files:
    """The files of a user on a node: counted, or given their new numbers."""

    def __init__(self, users: list[Span], groups: list[Span], places: Places, new_gid: int | None) -> None:
        """Take what becomes of which number where; ``new_gid`` is a GID that the own group is to have and has not."""
        self.users, self.groups, self.places, self.new_gid = users, groups, places, new_gid

    def go(self, wanted: Wanted, seen: Survey, record: migrate_plan.Record, change: bool) -> Node:
        """Go through all files once; return a node with what was found, or with ``change`` made."""
        counts: dict[str, tuple[int, int]] = {}
        stray = ""
        doubtful = 0
        mountinfo = node_io.read_text(owned_files.MOUNTS) or ""
        for entry in owned_files.local_files(mountinfo, self.places.skip, self.places.also):
            info = entry.info
            uid = renumber(self.users, info.st_uid, entry.path)
            gid = renumber(self.groups, info.st_gid, entry.path)
            acls = self.acls(entry)
            if not stray and (info.st_uid == wanted.uid or (self.new_gid is not None and info.st_gid == self.new_gid)):
                stray = entry.path
            doubtful += migrate_plan.unclear(info.st_uid, seen, record, uid, self.places.shared, entry.path)
            if uid is None and gid is None and not acls:
                continue
            top = migrate_plan.top_of(entry.path)
            files, size = counts.get(top, (0, 0))
            counts[top] = files + 1, size + (info.st_size if stat.S_ISREG(info.st_mode) else 0)
            if change:
                hand_over(entry, uid, gid, acls)
        return Node(files={top: Count(*count) for top, count in counts.items()}, stray=stray, unclear=doubtful)

    def acls(self, entry: owned_files.Entry) -> dict[str, bytes]:
        """Return the ACLs of a file that have to change, by attribute."""
        found: dict[str, bytes] = {}
        mode = entry.info.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return found
        for attribute in posix_acl.ATTRIBUTES if stat.S_ISDIR(mode) else posix_acl.ATTRIBUTES[:1]:
            try:
                acl = os.getxattr(beside(entry), attribute, follow_symlinks=False)
            except OSError as error:
                if error.errno in NO_ACL:
                    continue
                raise
            other = posix_acl.renumbered(
                acl,
                lambda number: renumber(self.users, number, entry.path),
                lambda number: renumber(self.groups, number, entry.path),
            )
            if other is not None:
                found[attribute] = other
        return found


def beside(entry: owned_files.Entry) -> str:
    """Return a path to a file through its open directory, in which no link can have been put meanwhile."""
    return f"/proc/self/fd/{entry.dir_fd}/{entry.name}"


def hand_over(entry: owned_files.Entry, uid: int | None, gid: int | None, acls: Mapping[str, bytes]) -> None:
    """Give a file its new numbers; what vanished, or was put in its place meanwhile, is passed over (OSError)."""
    mode = entry.info.st_mode
    try:
        handle = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.dir_fd)
    except FileNotFoundError:
        return
    try:
        there = os.fstat(handle)
        if any(getattr(there, name) != getattr(entry.info, name) for name in SAME):
            return
        path = f"/proc/self/fd/{handle}"
        for attribute, acl in acls.items():
            os.setxattr(path, attribute, acl)
        if uid is None and gid is None:
            return
        os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            # chown(2) takes these bits away
            os.chmod(path, stat.S_IMODE(mode))
    finally:
        os.close(handle)


def observe(wanted: Wanted, seen: Survey, params: Mapping[str, Any]) -> tuple[Node, Files]:
    """Read all that a node has of a user; files are looked at only where there is something to look for."""
    node = observe_account(wanted, params["jobs"])
    places = places_of(params["directories"], node.home or f"/home/{wanted.name}")
    users, groups = migrate_plan.spans(node, wanted, seen, places)
    files = Files(users, groups, places, None if node.gid == wanted.gid else wanted.gid)
    if (users or groups) and params["phase"] != "finish":
        found = files.go(wanted, seen, migrate_plan.begun(node, wanted, seen), change=False)
        node = replace(node, files=found.files, stray=found.stray, unclear=found.unclear)
    return node, files


def apply(changes: list[Change], wanted: Wanted, seen: Survey, node: Node, files: Files) -> None:
    """Make the changes (OSError or CommandError when the node refuses)."""
    record = migrate_plan.begun(node, wanted, seen)
    path = migrate_plan.record_path(wanted.name)
    gone = False
    for change in changes:
        verb, *rest = change.step
        if verb == "begin":
            node_io.write_file(path, record.file())
        elif verb == "files":
            if not gone:
                files.go(wanted, seen, record, change=True)
            gone = True
        elif verb == "end":
            node_io.remove_file(path)
        elif rest[:2] == ["usermod", "--uid"]:
            done = node_io.run(rest)
            if done.rc and not (done.rc == HOME_NOT_READ and pwd.getpwnam(wanted.name).pw_uid == wanted.uid):
                raise CommandError(f"{' '.join(rest)} failed: {(done.err or done.out).strip()}")
        else:
            execute(rest)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    wanted = Wanted(params["user"], params["uid"], params["gid"])
    seen = read_survey(params["seen"])
    state: tuple[Node, Files] | None = None
    first = Node()
    reasons: list[str] = []

    def look() -> Node:
        nonlocal state, first, reasons
        begin = state is None
        state = observe(wanted, seen, params)
        if begin:
            first = state[0]
            reasons = migrate_plan.refusals(first, wanted, seen, os.uname().nodename)
            if reasons and not module.check_mode:
                module.fail_json(msg="nothing was changed here: " + " ".join(reasons), refusals=reasons)
        return state[0]

    def make(changes: list[Change]) -> None:
        assert state is not None
        apply(changes, wanted, seen, *state)

    try:
        converge(
            module,
            look,
            # the survey is that of before: once the record is gone, what it says of this node is over
            lambda node: migrate_plan.plan(node, wanted, seen, params["phase"]),
            make,
            lambda node: {
                "files": {top: {"files": one.files, "bytes": one.bytes} for top, one in first.files.items()},
                "refusals": reasons,
                "unclear": first.unclear,
            },
        )
    except (ValueError, KeyError, TypeError) as error:
        path = migrate_plan.record_path(wanted.name)
        module.fail_json(msg=f"{path} is damaged ({error}). Mend: remove it and run again.")
    except (OSError, CommandError) as error:
        module.fail_json(msg=f"{error}. What is done stays done; run again to finish it.")


if __name__ == "__main__":
    main()
