# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring back what a host's backup has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_restore
short_description: Bring back what a host's backup has
version_added: 0.1.0
description:
  - Restores sets of the backup of the role P(labrack.infra.lab_backup#role), which has to be on the host, in place or
    into a folder of their own.
  - In place, files in homes and checkpoints that are newer than the backup's stay; keys, accounting and headscale of a
    lab that is in use are left alone, and nothing is restored then. O(overwrite) consents to both.
  - Links that people made are never followed. Secrets are neither returned nor shown.
author:
  - labrack contributors (@labrack)
attributes:
  check_mode:
    description: Says what would be restored, and restores nothing.
    support: full
  diff_mode:
    description: Shows what is restored of each set.
    support: full
  platform:
    description: The systems that the module runs on.
    support: full
    platforms: linux
options:
  sets:
    description: What to restore.
    type: list
    elements: str
    choices: [cluster_keys, slurm_database, headscale, registry, homes, checkpoints]
    required: true
  all_sets:
    description: Whether a set that was never saved is passed over.
    type: bool
    default: false
  snapshot:
    description: V(latest), a day as V(2026-11-20) for the last backup until its end, or a snapshot's number.
    type: str
    default: latest
  host:
    description: Whose backup, if it is not the host's own.
    type: str
    default: ""
  user:
    description: Only this user's home.
    type: str
    default: ""
  path:
    description: Only this file or folder of homes or checkpoints.
    type: str
    default: ""
  target:
    description: A folder to restore into; unless set, everything goes to where it was.
    type: str
    default: ""
  overwrite:
    description: Whether newer files, and keys, accounting and headscale that are in use, are replaced.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Bring ada's home back, into a folder of its own
  labrack.infra.lab_restore:
    sets: [homes]
    user: ada
    target: /srv/restored
"""

RETURN = r"""
changes:
  description: What was or would be restored.
  type: list
  elements: dict
  returned: always
restored:
  description: For each set its snapshot, the time of it, and how many files and bytes are asked of it.
  type: list
  elements: dict
  returned: always
kept:
  description: How many files of the host stay as they are, as they are newer or in the way, and some of their paths.
  type: dict
  returned: always
"""

import contextlib
import fcntl
import glob
import grp
import json
import os
import pwd
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import (
    backup_plan,
    headscale_plan,
    munge,
    restic,
    restore_plan,
    slurm_database,
)
from ansible_collections.labrack.infra.plugins.module_utils.backup_plan import BackupError
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, report
from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text, run
from ansible_collections.labrack.infra.plugins.module_utils.restore_plan import (
    FILE_SETS,
    Accounts,
    Compared,
    Entry,
    Observed,
    Snapshot,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    act,
    is_active,
    observe_services,
    wait_for,
)

SLURM_CONF = "/etc/slurm/slurm.conf"
CLUSTER_NAME = "/var/lib/slurm/slurmctld/clustername"
HEADSCALE_DATABASE = f"{headscale_plan.DATA}/db.sqlite"
STAGE = f"{backup_plan.CACHE}/stage"
#: How folders begin in which files are unpacked beside those of people.
STAGED = ".labrack-restore-"
#: Sets that are small enough to be unpacked before it is known whether they are restored.
SMALL = ("cluster_keys", "headscale", "registry")
#: How root asks MariaDB, by its socket; the statements go by standard input.
MARIADB = ["mariadb", "--batch", "--skip-column-names"]


class Repository:
    """The host's repository, as its configuration names it."""

    def __init__(self) -> None:
        """BackupError where the role has not been here."""
        text = read_text(backup_plan.CONFIG)
        if text is None:
            raise BackupError(
                "the role lab_backup has not been on this host, so nothing says where its backups are. Mend: set "
                "lab_backup_repository and lab_backup_password, and run closet.yml first"
            )
        self.config: dict[str, Any] = json.loads(text)

    def __call__(self, *arguments: str) -> str:
        """Run restic and return what it printed; BackupError with its words when it fails."""
        done = restic.call(*arguments, sftp_command=self.config["sftp_command"])
        if done.rc:
            raise BackupError(f"restic {arguments[0]} failed: {restic.words(done)}")
        return done.out

    def unpack(self, snapshot: Snapshot, folder: str, paths: list[str]) -> None:
        """Unpack a snapshot, or only some paths of it, into a folder that only root enters."""
        narrow = [word for path in paths for word in ("--include", restore_plan.include(path))]
        self("restore", snapshot.number, "--target", folder, *narrow)


# --- what is there ---------------------------------------------------------------------------------------------------


def look(path: str) -> Entry | None:
    """Return what is at a path, as restic names it; None for nothing."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    kind = "dir" if stat.S_ISDIR(info.st_mode) else "file" if stat.S_ISREG(info.st_mode) else "other"
    kind = "symlink" if stat.S_ISLNK(info.st_mode) else kind
    return Entry(path, kind, info.st_size, info.st_mtime_ns)


def differing(entries: list[Entry], folder: str) -> dict[str, bool]:
    """Return the files of an unpacked set that the host has in another way, each with whether it is missing there."""
    found = {}
    for entry in entries:
        if entry.kind == "file" and not entry.path.startswith(f"{STAGE}/"):
            saved = Path(folder + entry.path).read_bytes()
            try:
                if Path(entry.path).read_bytes() != saved:
                    found[entry.path] = False
            except OSError:
                found[entry.path] = True
    return found


def sql(statement: str) -> str | None:
    """Return what MariaDB answers to root by its socket, None when it doesn't."""
    done = run(MARIADB, stdin=statement)
    return done.out if done.rc == 0 else None


def job_tables() -> list[str] | None:
    """Return the accounting's tables of jobs, one a cluster; None where there is no accounting database."""
    if sql(f"USE {slurm_database.DATABASE}") is None:
        return None
    pattern = r"%\_job\_table"
    return (sql(f"SHOW TABLES FROM {slurm_database.DATABASE} LIKE '{pattern}'") or "").split()


def of_jobs(what: str) -> list[int] | None:
    """Return what an expression is in each of the accounting's tables of jobs; None where there is no accounting."""
    tables = job_tables()
    if tables is None:
        return None
    answers = [sql(" ".join(["SELECT", what, "FROM", f"{slurm_database.DATABASE}.`{table}`"])) for table in tables]
    return [int(answer) for answer in answers if answer and answer.strip().isdigit()]


def count_jobs() -> int | None:
    """Return how many jobs the accounting knows, None where there is none."""
    counts = of_jobs("COUNT(*)")
    return None if counts is None else sum(counts)


def highest_job() -> int:
    """Return the highest job number that the accounting knows, 0 for no job."""
    return max(of_jobs("MAX(id_job)") or [], default=0)


def count_nodes() -> int | None:
    """Return how many nodes headscale has but this host, None where there is no headscale.

    A new head has joined its own, empty headscale before anything is restored.
    """
    try:
        pwd.getpwnam(headscale_plan.USER)
    except KeyError:
        return None
    if not os.path.exists(HEADSCALE_DATABASE):
        return 0
    with contextlib.closing(sqlite3.connect(HEADSCALE_DATABASE)) as database:
        try:
            return int(
                database.execute("SELECT COUNT(*) FROM nodes WHERE hostname <> ?", (os.uname().nodename,)).fetchone()[0]
            )
        except sqlite3.Error:
            return 0


def read_accounts(rows: Mapping[str, list[list[str]]]) -> Accounts:
    """Return accounts from the fields of passwd(5), group(5) and shadow(5)."""
    return Accounts(
        {row[0]: int(row[2]) for row in rows["passwd"]},
        {row[0]: int(row[2]) for row in rows["group"]},
        frozenset(row[0] for row in rows["shadow"] if len(row) > 1 and row[1].startswith("$")),
    )


def own_accounts() -> Accounts:
    """Return the host's accounts."""
    names = ("passwd", "group", "shadow")
    texts = {name: (read_text(f"/etc/{name}") or "").splitlines() for name in names}
    return read_accounts({name: [line.split(":") for line in lines if ":" in line] for name, lines in texts.items()})


class Restore:
    """One restore: what it is asked, what it found, and how it is made."""

    def __init__(self, params: Mapping[str, Any], work: str) -> None:
        self.params = params
        self.work = work
        self.repository = Repository()
        host = params["host"] or self.repository.config["host"]
        listed = self.repository("snapshots", "--json", "--no-lock", "--host", host, "--tag", "labrack")
        snapshots = restore_plan.read_snapshots(listed)
        chosen = restore_plan.choose(snapshots, params["sets"], params["snapshot"], params["all_sets"])
        self.folders = restore_plan.wanted_folder(params["path"], params["user"], self.repository.config["homes"])
        self.wanted = Wanted(chosen, params["target"].rstrip("/"), params["overwrite"])
        self.entries = {name: self.listed(name, snapshot) for name, snapshot in chosen.items()}
        if self.folders and not any(self.entries.values()):
            raise BackupError(f"the backup has no {', '.join(self.folders)}")
        self.seen = self.look()
        self.refuse()

    def refuse(self) -> None:
        """Raise BackupError where files can't be unpacked: others may write in the target, or they don't fit."""
        target = self.wanted.target
        sizes = {target: sum(size for _files, size in self.sizes().values())} if target else {}
        folder = exposed(target) if target else ""
        if folder:
            raise BackupError(
                f"nothing was restored: others than root may write in {folder}, and could put links in the way. Mend: "
                "take a folder of root's with -e target=, such as /root/restored"
            )
        for name, compared in self.seen.compared.items():
            for root in self.wanted.snapshots[name].paths if compared.chosen(self.wanted.overwrite) else ():
                sizes[root] = sum(entry.size for entry in self.entries[name] if inside(entry.path, root))
        for path, size in sizes.items():
            need_room(path, size)

    def listed(self, name: str, snapshot: Snapshot) -> list[Entry]:
        """Return the entries of a snapshot that are asked for."""
        lines = self.repository("ls", "--json", "--no-lock", snapshot.number).splitlines()
        folders = self.folders if name in FILE_SETS else []
        above = {os.path.dirname(path) for path in snapshot.paths}
        tops = {top for path in above for top in (path, *map(str, Path(path).parents))}
        entries = restore_plan.narrowed(restore_plan.read_entries(lines), folders)
        return [entry for entry in entries if entry.path not in tops]

    def look(self) -> Observed:
        """Read what the plan asks of the host; the small sets are unpacked for it."""
        if self.wanted.target:
            with contextlib.suppress(OSError):
                return Observed(target=tuple(os.listdir(self.wanted.target)))
            return Observed()
        for name in SMALL:
            if name in self.wanted.snapshots:
                self.repository.unpack(self.wanted.snapshots[name], self.unpacked(name), [])
        compared = {name: self.compare(name) for name in FILE_SETS if name in self.entries}
        keys: dict[str, bool] = {}
        saved = Accounts()
        if "cluster_keys" in self.entries:
            keys = differing(self.entries["cluster_keys"], self.unpacked("cluster_keys"))
        if "registry" in self.entries:
            saved = read_accounts(self.saved_accounts())
        accounting = {"cluster_keys", "slurm_database"} & set(self.entries)
        return Observed(
            compared=compared,
            keys=keys,
            jobs=count_jobs() if accounting else None,
            nodes=count_nodes() if "headscale" in self.entries else None,
            accounts=own_accounts(),
            saved=saved,
        )

    def unpacked(self, name: str) -> str:
        """Return the folder into which a small set is unpacked."""
        return os.path.join(self.work, name)

    def saved_accounts(self) -> dict[str, list[list[str]]]:
        """Return the fields of the accounts in the backup."""
        text = Path(f"{self.unpacked('registry')}{STAGE}/registry/accounts.json").read_text(encoding="utf-8")
        rows: dict[str, list[list[str]]] = json.loads(text)
        return rows

    def compare(self, name: str) -> Compared:
        """Compare a set of files with the host's."""
        seen = [found for found in (look(entry.path) for entry in self.entries[name]) if found is not None]
        return restore_plan.compare(self.entries[name], {found.path: found for found in seen})

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return files and bytes that are asked for of each set."""
        return {
            name: (sum(entry.kind != "dir" for entry in entries), sum(entry.size for entry in entries))
            for name, entries in self.entries.items()
        }

    # --- making it ---

    def apply(self, changes: list[Change]) -> None:
        """Make the changes, in order."""
        for change in changes:
            verb, name = change.step
            if verb == "target":
                self.to_target(name)
            elif name in FILE_SETS:
                self.place_files(name)
            else:
                {
                    "cluster_keys": self.place_keys,
                    "slurm_database": self.place_database,
                    "headscale": self.place_headscale,
                    "registry": self.place_accounts,
                }[name]()

    def to_target(self, name: str) -> None:
        """Unpack a set into the target, which is root's alone unless it was there."""
        os.makedirs(self.wanted.target, mode=0o700, exist_ok=True)
        folders = self.folders if name in FILE_SETS else []
        self.repository.unpack(self.wanted.snapshots[name], self.wanted.target, folders)

    def place_files(self, name: str) -> None:
        """Put files in place, each by a rename from a folder beside them; BackupError for one that is off then."""
        snapshot = self.wanted.snapshots[name]
        chosen = self.seen.compared[name].chosen(self.wanted.overwrite)
        for root in snapshot.paths:
            folders = [folder for folder in self.folders if folder.startswith(root)] or [root]
            if self.folders and folders == [root] and root not in self.folders:
                continue
            made = not os.path.isdir(root)
            os.makedirs(root, exist_ok=True)
            with staged(root) as stage:
                self.repository.unpack(snapshot, stage, folders)
                if not os.path.isdir(stage + root):
                    continue
                if made:
                    like(stage + root, root)
                with opened(stage + root) as source, opened(root) as place:
                    merge(source, place, root, chosen)
        left = self.compare(name).chosen(self.wanted.overwrite)
        if left:
            raise BackupError(f"{name}: not restored: {', '.join(sorted(left)[:5])}")

    def owners(self, name: str) -> dict[str, list[str]]:
        """Return the names of user and group of each file of a small set."""
        text = read_text(f"{self.unpacked(name)}{STAGE}/{name}/owners.json")
        found: dict[str, list[str]] = json.loads(text or "{}")
        return found

    def place(self, name: str, path: str, source: str = "") -> None:
        """Put one file of a small set in place, with the owner's name that it had."""
        source = source or self.unpacked(name) + path
        user, group = self.owners(name).get(path, ["root", "root"])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.labrack-part"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        # the folder may be a daemon's own, and what is in the file may be a secret
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(source, "rb") as saved, open(handle, "wb") as stream:
            shutil.copyfileobj(saved, stream)
            with contextlib.suppress(KeyError):
                os.fchown(handle, pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid)
            os.fchmod(handle, stat.S_IMODE(os.fstat(saved.fileno()).st_mode))
            stream.flush()
            os.fsync(handle)
        os.rename(part, path)

    def place_keys(self) -> None:
        """Put keys in place and let the daemons read them; no job ends by that."""
        paths = restore_plan.keys_to_place(self.seen.keys)
        for path in paths:
            self.place("cluster_keys", path)
        if munge.KEY_FILE in paths and is_active("munge"):
            act("restart", "munge")
        if any(path.startswith("/etc/ssh/") for path in paths):
            # logins that are open stay
            run(["systemctl", "try-reload-or-restart", "ssh.service", "sshd.service"])

    def place_database(self) -> None:
        """Load the dump beside the accounting that is there, then put it in its place, and let Slurm go on with it.

        Until the dump is loaded Slurm runs; BackupError and the accounting as it was for a dump that can't be loaded.
        """
        snapshot = self.wanted.snapshots["slurm_database"]
        self.repository.unpack(snapshot, self.unpacked("slurm_database"), [])
        try:
            tables = load_dump(f"{self.unpacked('slurm_database')}{snapshot.paths[0]}")
            if self.seen.jobs:
                save_accounting()
            services = observe_services(["slurmctld", "slurmdbd"])
            for unit in ("slurmctld", "slurmdbd"):
                if services[unit].installed:
                    act("stop", unit)
        except BaseException:
            sql(f"DROP DATABASE IF EXISTS {slurm_database.DRAFT}")
            raise
        swapped = run(MARIADB, stdin=restore_plan.swap_statements(tables), timeout=restic.PATIENCE)
        if swapped.rc:
            why = restore_plan.refusal(swapped.err)
            raise BackupError(
                f"slurm_database: MariaDB stopped half way, and Slurm is stopped: {why}. Mend: see journalctl -u "
                "mariadb, then run closet.yml and this again; if the accounting here had jobs, a dump of it is in "
                "/var/backups/labrack"
            )
        if services["slurmdbd"].installed:
            act("start", "slurmdbd")
            wait_for(["ss", "--no-header", "--listening", "--numeric", "--tcp"], ":6819", "slurmdbd")
        if services["slurmctld"].installed:
            with contextlib.suppress(FileNotFoundError):
                # it holds the number that the cluster had in the database before, and slurmctld stops at another
                os.unlink(CLUSTER_NAME)
            start_after(highest_job())

    def place_headscale(self) -> None:
        """Put headscale's files in place while it is stopped."""
        running = is_active("headscale")
        if running:
            act("stop", "headscale")
        folder = self.unpacked("headscale")
        for entry in self.entries["headscale"]:
            if entry.kind == "file" and not entry.path.startswith(f"{STAGE}/"):
                self.place("headscale", entry.path)
        for ending in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(HEADSCALE_DATABASE + ending)
        self.place("headscale", HEADSCALE_DATABASE, f"{folder}{STAGE}/headscale/db.sqlite")
        if running:
            act("start", "headscale")

    def place_accounts(self) -> None:
        """Make the accounts that the host lacks, with their numbers, and give back passwords, which go by a pipe."""
        rows = self.saved_accounts()
        users, groups, passwords = restore_plan.accounts_to_make(self.seen.saved, self.seen.accounts)
        for row in rows["group"]:
            if row[0] in groups:
                _expect(["groupadd", "--gid", row[2], row[0]])
        for row in rows["passwd"]:
            if row[0] in users:
                details = ["--comment", row[4], "--home-dir", row[5], "--shell", row[6], "--no-create-home"]
                _expect(["useradd", "--uid", row[2], "--gid", row[3], *details, row[0]])
        for row in rows["group"]:
            for member in filter(None, row[3].split(",")):
                if row[0] in groups or member in users:
                    _expect(["gpasswd", "--add", member, row[0]])
        hashes = "".join(f"{row[0]}:{row[1]}\n" for row in rows["shadow"] if row[0] in passwords)
        if hashes:
            _expect(["chpasswd", "--encrypted"], stdin=hashes)


def _expect(argv: list[str], stdin: str | None = None) -> None:
    done = run(argv, stdin=stdin)
    if done.rc:
        raise BackupError(f"{argv[0]} {argv[-1]}: {done.err.strip()}")


def load_dump(dump: str) -> list[str]:
    """Load a dump of the accounting into a draft of the database, made anew, and return the draft's tables.

    The accounting itself is not touched; BackupError for a dump that MariaDB refuses, or that is none of one database.
    """
    draft = slurm_database.DRAFT
    with open(dump, "rb") as stream:
        if restore_plan.picks_database(stream):
            raise unloadable("it says itself into which database it goes, and would write into the one in use")
        if sql(f"DROP DATABASE IF EXISTS {draft}; CREATE DATABASE {draft}") is None:
            raise BackupError(
                f"slurm_database: MariaDB does not let root make {draft}. Mend: see journalctl -u mariadb"
            )
        stream.seek(0)
        loaded = subprocess.run(["mariadb", draft], stdin=stream, capture_output=True, check=False)
    if loaded.returncode:
        raise unloadable(restore_plan.refusal(loaded.stderr.decode(errors="replace")))
    tables = (sql(f"SHOW TABLES FROM {draft}") or "").split()
    if not tables:
        raise unloadable("it has no tables")
    return tables


def unloadable(words: str) -> BackupError:
    """Return the error for a dump that can't be loaded, with what is wrong with it."""
    return BackupError(
        f"slurm_database: the dump can't be loaded, so the accounting stays as it is: {words}. Mend: see to that, or "
        "name an earlier backup with -e snapshot="
    )


def save_accounting() -> None:
    """Dump the accounting that is there to /var/backups/labrack; BackupError when that fails."""
    done = run([slurm_database.DUMP_SCRIPT], stdin="/slurmdbd_restore.deb\n", timeout=restic.PATIENCE)
    if done.rc:
        raise BackupError(f"slurm_database: what is there could not be dumped, so it stays: {done.err.strip()}")


def start_after(job: int) -> None:
    """Start slurmctld so that its next job has a higher number than this one.

    A number that is used again would hide the older job from sacct. slurmctld keeps the number with its own state once
    it has started, so that slurm.conf is as it was afterwards, time and all.
    """
    before = os.stat(SLURM_CONF)
    text = Path(SLURM_CONF).read_text(encoding="utf-8")
    try:
        with open(SLURM_CONF, "a", encoding="utf-8") as stream:
            stream.write(f"\nFirstJobId={job + 1}\n")
        act("start", "slurmctld")
        wait_for(["scontrol", "ping"], "UP", "slurmctld")
    finally:
        with open(SLURM_CONF, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.utime(SLURM_CONF, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- files in places that people write to ----------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: str, folder: int | None = None) -> Iterator[int]:
    """Give a directory's descriptor, by its name in another one; OSError for a link in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staged(root: str) -> Iterator[str]:
    """Give a path to a new folder beside a root's own, root's alone; what broken restores left there goes first.

    The path leads to the same folder whatever others rename meanwhile, who may write in the root.
    """
    for left in glob.glob(f"{glob.escape(root)}/{STAGED}*"):
        shutil.rmtree(left, ignore_errors=True)
    name = tempfile.mkdtemp(prefix=STAGED, dir=root)
    try:
        with opened(name) as handle:
            info = os.fstat(handle)
            if info.st_uid != os.geteuid() or info.st_mode & 0o777 != 0o700:
                raise BackupError(f"{name} was taken away while files were restored. Mend: run it again")
            os.mkdir("files", 0o700, dir_fd=handle)
            # restic 0.18 takes the descriptor's own name for a file that is in its way, and not what lies in it
            yield f"/proc/{os.getpid()}/fd/{handle}/files"
    finally:
        shutil.rmtree(name, ignore_errors=True)


def merge(source: int, place: int, path: str, chosen: frozenset[str]) -> None:
    """Move what is chosen from one directory into another, on one file system; ``path`` names the second one.

    What is missing moves whole, so that owners, times, ACLs and hard links stay as restic made them.
    """
    for name in os.listdir(source):
        inner = f"{path}/{name}"
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        try:
            there = os.stat(name, dir_fd=place, follow_symlinks=False)
        except FileNotFoundError:
            if inner in chosen:
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=place)
            continue
        if stat.S_ISDIR(info.st_mode) and stat.S_ISDIR(there.st_mode):
            with opened(name, source) as below, opened(name, place) as under:
                merge(below, under, inner, chosen)
        elif inner in chosen and not stat.S_ISDIR(info.st_mode) and not stat.S_ISDIR(there.st_mode):
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=place)


def like(model: str, path: str) -> None:
    """Give a folder the owner and mode of another one."""
    info = os.stat(model)
    os.chown(path, info.st_uid, info.st_gid)
    os.chmod(path, stat.S_IMODE(info.st_mode))


def exposed(path: str) -> str:
    """Return the folder at a path or above it in which others than root could put a link in the way, "" for none."""
    place = way = os.path.realpath(path)
    while True:
        with contextlib.suppress(OSError):
            info = os.stat(way)
            # from a sticky folder nobody takes away what is root's
            open_ = info.st_mode & 0o022 and (way == place or not info.st_mode & stat.S_ISVTX)
            if open_ or info.st_uid not in (0, os.geteuid()):
                return way
        if way == "/":
            return ""
        way = os.path.dirname(way)


def need_room(path: str, size: int) -> None:
    """Raise BackupError where so many bytes don't fit into a folder, which may not be there yet."""
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    there = os.statvfs(path)
    free = there.f_bavail * there.f_frsize
    if size > free:
        raise BackupError(
            f"nothing was restored: {path} has {free >> 20} MiB left, and {size >> 20} are unpacked. Mend: make room, "
            "ask for less with -e user= or -e path=, or take a folder of another disk with -e target="
        )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep a backup from running meanwhile; BackupError when one runs."""
    with open(f"{backup_plan.CACHE}/lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BackupError("a backup is under way on this host. Mend: wait for it, and run again") from None
        yield


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "sets": {"type": "list", "elements": "str", "required": True, "choices": list(backup_plan.SETS)},
            "all_sets": {"type": "bool", "default": False},
            "snapshot": {"type": "str", "default": "latest"},
            "host": {"type": "str", "default": ""},
            "user": {"type": "str", "default": ""},
            "path": {"type": "str", "default": ""},
            "target": {"type": "str", "default": ""},
            "overwrite": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    work = ""
    try:
        os.makedirs(backup_plan.CACHE, mode=0o700, exist_ok=True)
        with alone():
            # what a run left that was broken off holds keys
            for left in glob.glob(f"{backup_plan.CACHE}/restore-*"):
                shutil.rmtree(left, ignore_errors=True)
            work = tempfile.mkdtemp(prefix="restore-", dir=backup_plan.CACHE)
            restore = Restore(module.params, work)
            sizes = restore.sizes()
            changes = restore_plan.plan(restore.seen, restore.wanted, sizes)
            if not module.check_mode:
                restore.apply(changes)
        if not module.check_mode and module.params["all_sets"] and not restore.wanted.target:
            # from now on this installation's backups follow those
            run([backup_plan.SCRIPT, "adopt"])
        restored = [
            {
                "set": name,
                "snapshot": snapshot.number[:8],
                "time": snapshot.time.isoformat(timespec="seconds"),
                "files": sizes[name][0],
                "bytes": sizes[name][1],
            }
            for name, snapshot in restore.wanted.snapshots.items()
        ]
        kept = restore_plan.shown_kept(restore.seen.compared, restore.wanted.overwrite)
    except (BackupError, ServiceError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        if work:
            shutil.rmtree(work, ignore_errors=True)
    module.exit_json(restored=restored, kept=kept, **report(changes, []))


if __name__ == "__main__":
    main()
