#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Back this host up: each set that it has as one restic snapshot, then what is no longer kept goes.

Installed by the role lab_backup as /usr/local/lib/labrack/backup; labrack-backup.service runs it as root. ``run`` makes
the backup, ``ended`` notes a run that was ended from outside, ``adopt`` lets an installation that is new go on with the
backups of the one before, which a restore does by itself. Standard library only.

restic's flags and words are those of 0.12 to 0.18 (https://restic.readthedocs.io/en/stable/075_scripting.html).
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import grp
import json
import os
import pwd
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FOLDER = Path("/etc/labrack/backup")
STATE = Path("/var/lib/labrack/backup.json")
NOTICE = Path("/var/lib/labrack/backup-failed")
CACHE = Path("/var/cache/labrack-backup")
STAGE = CACHE / "stage"
LOCK = CACHE / "lock"
USERS = Path("/var/lib/labrack/users.json")
HEADSCALE = Path("/var/lib/headscale/db.sqlite")
DATABASE = "slurm_acct_db"
#: File systems of other machines: who has the files saves them.
ELSEWHERE = ("nfs", "nfs4", "cifs", "fuse.sshfs")
KEY_PATHS = ("/etc/munge/munge.key", "/etc/slurm", "/var/lib/slurm/slurmctld/jwt_hs256.key", "/etc/ssh/ssh_host_*")
HEADSCALE_PATHS = ("/etc/headscale", "/var/lib/headscale", "/var/lib/labrack/headscale")
#: Seconds to wait for another host that has the repository, and days between two looks at all of it.
LOCK_PATIENCE = 3600.0
CHECK_DAYS = 7
#: The words of a name after which its number says which version this is: checkpoint-1000, epoch=3-step=400.ckpt.
VERSION = re.compile(
    r"(?i)(?<![a-z])((?:global[_-]?)?(?:steps?|epochs?|iter(?:ation)?s?|checkpoints?|ckpt|version|v))([-_=.]?)\d+"
)


class BackupError(RuntimeError):
    """A backup that was not made; the message says why."""


@dataclass
class Source:
    """What a set saves: paths, and patterns of restic for what it leaves out."""

    paths: list[str]
    exclude: list[str] = field(default_factory=list)


# --- what is saved ---------------------------------------------------------------------------------------------------


def version_key(name: str) -> str:
    """Return a name without the number of its version; names with the same key are versions of one thing.

    A name without such a number is its own key. Shards and ranks (``-00001-of-00004``, ``rank_3``) are no versions.
    """
    return "#" if name.isdigit() else VERSION.sub(r"\1\2#", name)


def outdated(entries: Iterable[tuple[str, float]], versions: int) -> list[str]:
    """Return the names of one directory's entries (name, modification time) that are older than the newest ones kept.

    Of the entries with one key the ``versions`` newest stay; equally old ones by their number, the highest first.
    """
    groups: dict[str, list[tuple[float, list[int], str]]] = {}
    for name, changed in entries:
        key = version_key(name)
        if key != name:
            numbers = [int(number) for number in re.findall(r"\d+", name)]
            groups.setdefault(key, []).append((changed, numbers, name))
    return [name for members in groups.values() for _time, _numbers, name in sorted(members, reverse=True)[versions:]]


def old_versions(top: str, versions: int) -> Iterator[str]:
    """Yield the paths of outdated versions at any depth of a folder; links are not followed."""
    folders = [top]
    while folders:
        folder = folders.pop()
        entries = []
        with contextlib.suppress(OSError), os.scandir(folder) as found:
            for entry in found:
                with contextlib.suppress(OSError):
                    entries.append(
                        (entry.name, entry.stat(follow_symlinks=False).st_mtime, entry.is_dir(follow_symlinks=False))
                    )
        old = set(outdated([(name, changed) for name, changed, _ in entries], versions))
        for name, _changed, is_folder in entries:
            path = os.path.join(folder, name)
            if name in old:
                yield path
            elif is_folder:
                folders.append(path)


def literal(path: str) -> str | None:
    """Return a pattern that matches this path alone, None where no line of an exclude file can say it.

    Patterns are those of Go's filepath.Match; $NAME is replaced, and blanks around a line are dropped
    (restic/restic:cmd/restic/exclude.go).
    """
    if "\n" in path or "\r" in path:
        return None
    text = re.sub(r"([\\*?\[\]])", r"\\\1", path).replace("$", "$$")
    return re.sub(r"\s$", lambda blank: f"[{blank.group()}]", text)


def homes(config: dict[str, Any]) -> Source | None:
    """Return what is saved of people's homes."""
    paths = [path for path in config["homes"] if here(path)]
    return Source(paths, list(config["exclude"])) if paths else None


def checkpoints(config: dict[str, Any]) -> Source | None:
    """Return what is saved of the checkpoints: all but the versions that newer ones have replaced."""
    paths = [path for path in config["checkpoints"] if here(path)]
    patterns = [literal(old) for path in paths for old in old_versions(path, config["versions"])]
    exclude = [*config["exclude"], *(pattern for pattern in patterns if pattern)]
    return Source(paths, exclude) if paths else None


def here(path: str) -> bool:
    """Return whether a folder is there and its files are on this host."""
    return (
        os.path.isdir(path) and filesystem(path, Path("/proc/self/mounts").read_text(encoding="utf-8")) not in ELSEWHERE
    )


def filesystem(path: str, mounts: str) -> str:
    """Return the type of the file system that a path is on, from the text of /proc/self/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        _device, point, found, *_rest = line.split(" ")
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code.group(1), 8)), point)
        if len(point) >= len(best) and (path == point or path.startswith(point.rstrip("/") + "/")):
            best, kind = point, found
    return kind


def registry(_config: dict[str, Any]) -> Source | None:
    """Return what is saved of the registry: the accounts of the lab's people and groups, and the roles' records."""
    folder = stage("registry")
    known = json.loads(USERS.read_text(encoding="utf-8")) if USERS.exists() else {}
    document = accounts(known, *(Path(f"/etc/{name}").read_text() for name in ("passwd", "group", "shadow")))
    (folder / "accounts.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    inner = [str(path) for path in (STATE, NOTICE, STATE.parent / "headscale")]
    return Source([str(folder), str(STATE.parent)], inner)


def accounts(known: dict[str, Any], passwd: str, group: str, shadow: str) -> dict[str, list[list[str]]]:
    """Return the lines of the lab's people and groups in passwd(5), group(5) and shadow(5), as fields."""
    users, groups = set(known.get("users", ())), set(known.get("groups", ()))
    rows = {
        name: [line.split(":") for line in text.splitlines()]
        for name, text in (("passwd", passwd), ("group", group), ("shadow", shadow))
    }
    people = [row for row in rows["passwd"] if row[0] in users]
    numbers = {row[3] for row in people}
    return {
        "passwd": people,
        "group": [row for row in rows["group"] if row[0] in groups or (len(row) > 2 and row[2] in numbers)],
        "shadow": [row for row in rows["shadow"] if row[0] in users],
    }


def slurm_database(_config: dict[str, Any]) -> Source | None:
    """Return the dump of the accounting database, made as root by the socket, so that no password is needed."""
    if not os.path.exists("/etc/slurm/slurmdbd.conf"):
        return None
    file = stage("slurm_database") / f"{DATABASE}.sql"
    with file.open("wb") as stream:
        command = ["mariadb-dump", "--single-transaction", DATABASE]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise BackupError(f"mariadb-dump: {done.stderr.decode(errors='replace').strip()}")
    return Source([str(file)])


def cluster_keys(_config: dict[str, Any]) -> Source | None:
    """Return the keys by which the cluster and its people know this host, and Slurm's configuration."""
    paths = sorted(path for pattern in KEY_PATHS for path in glob.glob(pattern))
    return Source([*paths, str(note_owners("cluster_keys", paths))]) if paths else None


def headscale(_config: dict[str, Any]) -> Source | None:
    """Return headscale's files, with a copy of its database that is whole."""
    if not HEADSCALE.exists():
        return None
    copy = stage("headscale") / HEADSCALE.name
    copy.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(HEADSCALE)) as live, contextlib.closing(sqlite3.connect(copy)) as saved:
        live.backup(saved)
    paths = [path for path in HEADSCALE_PATHS if os.path.exists(path)]
    owners = note_owners("headscale", paths)
    return Source([*paths, str(copy), str(owners)], [f"{HEADSCALE}{ending}" for ending in ("", "-wal", "-shm")])


SETS = {
    "cluster_keys": cluster_keys,
    "slurm_database": slurm_database,
    "headscale": headscale,
    "registry": registry,
    "homes": homes,
    "checkpoints": checkpoints,
}


def stage(name: str) -> Path:
    """Return the folder for what a set makes itself, for root alone; the paths in a snapshot are always the same."""
    folder = STAGE / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def note_owners(name: str, paths: Iterable[str]) -> Path:
    """Write the names of the owners of all files, as the numbers of system users differ between installations."""
    found: dict[str, list[str]] = {}
    for top in paths:
        inner = [os.path.join(folder, one) for folder, dirs, files in os.walk(top) for one in (*dirs, *files)]
        for path in (top, *inner):
            info = os.lstat(path)
            with contextlib.suppress(KeyError):
                found[path] = [pwd.getpwuid(info.st_uid).pw_name, grp.getgrgid(info.st_gid).gr_name]
    file = stage(name) / "owners.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return file


# --- restic ----------------------------------------------------------------------------------------------------------


@dataclass
class Restic:
    """restic with this host's repository; no secret is on its command line or in its environment."""

    sftp_command: str = ""

    def run(self, *arguments: str, fine: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run it, and again while another has the repository; BackupError with its words when it fails."""
        options = ["-o", f"sftp.command={self.sftp_command}"] if self.sftp_command else []
        environment = {
            **os.environ,
            "RESTIC_REPOSITORY_FILE": str(FOLDER / "repository"),
            "RESTIC_PASSWORD_FILE": str(FOLDER / "password"),
            "RESTIC_CACHE_DIR": str(CACHE / "restic"),
        }
        end = time.monotonic() + LOCK_PATIENCE
        while True:
            command = ["restic", *options, *arguments]
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                raise BackupError("restic is not installed") from None
            if done.returncode in fine:
                return done
            if "already locked" not in done.stderr or time.monotonic() > end:
                words = [line for line in done.stderr.splitlines() if line.strip()]
                raise BackupError(
                    f"restic {arguments[0]}: {' '.join(words[-3:]) or f'it ended with {done.returncode}'}"
                )
            time.sleep(30)


def summary(text: str) -> dict[str, Any]:
    """Return the summary in what ``restic backup --json`` prints, a message a line; BackupError where there is none."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if message.get("message_type") == "summary":
                return dict(message)
    raise BackupError("restic backup: it has told nothing of its end")


def unread(text: str) -> list[str]:
    """Return the files that ``restic backup --json`` could not read, from its errors; those that have gone are fine."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            message = json.loads(line)
            error = message.get("error") or {}
            gone = error.get("Err") == 2 or "no such file" in str(error.get("message", ""))
            if message.get("message_type") == "error" and not gone:
                found.append(str(message.get("item") or error))
    return found


def back_up(restic: Restic, host: str, name: str, source: Source, tag: str) -> dict[str, Any]:
    """Save a set as a snapshot; return its number, time, files, bytes. BackupError for what could not be read."""
    patterns = stage("excluded") / name
    # names of files may be in no encoding at all
    patterns.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in source.exclude))
    tags = [word for one in ("labrack", name, tag) for word in ("--tag", one)]
    arguments = ["--json", "--host", host, *tags, "--exclude-caches", "--exclude-file", str(patterns)]
    # 3: a snapshot was made, and some files could not be read (restic 0.12 and later)
    done = restic.run("backup", *arguments, "--", *source.paths, fine=(0, 3))
    if done.returncode == 3 and (left := unread(done.stderr)):
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise BackupError(f"{name}: not read: {', '.join(left[:3])}{more}")
    told = summary(done.stdout)
    return {
        "snapshot": told["snapshot_id"][:8],
        "time": now(),
        "files": told["total_files_processed"],
        "bytes": told["total_bytes_processed"],
    }


def installation(state: dict[str, Any]) -> str:
    """Return the tag of this installation of the host, made once; machine-id is the same on clones of a disk."""
    if "installation" not in state:
        state["installation"] = secrets.token_hex(6)
        write_state(state)
    return f"installation-{state['installation']}"


def strange(snapshots: Iterable[dict[str, Any]], tag: str) -> bool:
    """Return whether a host's snapshots are all of another installation of it."""
    tags = [snapshot.get("tags") or () for snapshot in snapshots]
    return bool(tags) and not any(tag in found for found in tags)


# --- a run -----------------------------------------------------------------------------------------------------------


def now() -> str:
    """Return the time, as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_state() -> dict[str, Any]:
    """Return what the last runs have noted."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(STATE.read_text(encoding="utf-8")))
    return {}


def write_state(state: dict[str, Any]) -> None:
    """Write the state; everybody may read it."""
    STATE.parent.mkdir(parents=True, exist_ok=True)
    part = STATE.with_suffix(".part")
    part.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    part.chmod(0o644)
    part.rename(STATE)


def note_failure(state: dict[str, Any], words: str) -> None:
    """Note a failure where ``labrack status`` and logins see it."""
    write_state({**state, "last_failure": now(), "failure": words})
    since = state.get("last_success") or "never"
    NOTICE.write_text(f"labrack: the backup failed; the last one that did not: {since}. {words}\n", encoding="utf-8")
    NOTICE.chmod(0o644)


def days_since(text: str | None) -> float:
    """Return how many days ago a noted time was; endless for none."""
    then = datetime.fromisoformat(text) if text else None
    return (datetime.now(timezone.utc) - then).total_seconds() / 86400 if then else float("inf")


def refuse_emptied(name: str, source: Source, before: dict[str, Any]) -> None:
    """Raise BackupError for files of people that are all gone: in time, backups of nothing would replace the others."""
    if name in ("homes", "checkpoints") and before.get("files") and not any(os.listdir(path) for path in source.paths):
        raise BackupError(
            f"{name}: {', '.join(source.paths)} is empty and had {before['files']} files. Mend: mount its disk, or, if "
            "that is meant, put a file there"
        )


def make(config: dict[str, Any], state: dict[str, Any]) -> None:
    """Make a backup, and note in ``state`` what was saved; BackupError once everything that can be saved is."""
    restic, host = Restic(config["sftp_command"]), config["host"]
    # of processes that are no more, as after a power cut
    restic.run("unlock")
    of_host = ["--host", host, "--tag", "labrack"]
    found = json.loads(restic.run("snapshots", "--json", "--no-lock", *of_host).stdout or "null") or []
    if strange(found, installation(state)) and not state.get("adopted"):
        raise BackupError(
            f"the repository has backups of an earlier installation of {host}, and this one would pass for the newest. "
            "Restore them first (labrack.infra.restore), or go on without: /usr/local/lib/labrack/backup adopt"
        )
    failures = []
    sets = state.setdefault("sets", {})
    for name, read in SETS.items():
        try:
            source = read(config)
            if source is None:
                sets.pop(name, None)
            else:
                refuse_emptied(name, source, sets.get(name) or {})
                sets[name] = back_up(restic, host, name, source, installation(state))
        except (BackupError, OSError, ValueError, sqlite3.Error) as error:
            failures.append(f"{name}: {error}" if not str(error).startswith(name) else str(error))
        finally:
            shutil.rmtree(STAGE / name, ignore_errors=True)
    keep = [word for span, count in sorted(config["keep"].items()) if count for word in (f"--keep-{span}", str(count))]
    weekly = days_since(state.get("last_check")) >= CHECK_DAYS
    if not failures:
        restic.run("forget", "--quiet", *of_host, "--group-by", "host,tags", *keep, *(["--prune"] if weekly else []))
    if weekly:
        restic.run("check", "--quiet")
        state["last_check"] = now()
    if failures:
        raise BackupError("; ".join(failures))


def main(verb: str) -> int:
    """Do one of ``run``, ``ended``, ``adopt``; return the exit status."""
    os.umask(0o077)
    state = read_state()
    if verb == "adopt":
        write_state({**state, "adopted": True})
        return 0
    if verb == "ended":
        # systemd.exec(5), $SERVICE_RESULT; a run that failed by itself has noted why
        result = os.environ.get("SERVICE_RESULT", "success")
        if result not in ("success", "exit-code"):
            note_failure(state, f"It was ended: {result}; see journalctl -u labrack-backup.")
        return 0
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("labrack: a backup is under way already", file=sys.stderr)
            return 1
        try:
            make(json.loads((FOLDER / "config.json").read_text(encoding="utf-8")), state)
        except (BackupError, OSError, ValueError) as error:
            note_failure(state, str(error))
            print(f"labrack: {error}", file=sys.stderr)
            return 1
        write_state({**state, "last_success": now(), "failure": None})
        NOTICE.unlink(missing_ok=True)
        for name, made in state["sets"].items():
            print(f"{name}: {made['files']} files, {made['bytes']} bytes, snapshot {made['snapshot']}")
        return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("run", "ended", "adopt"):
        sys.exit("usage: backup run|ended|adopt")
    sys.exit(main(sys.argv[1]))
