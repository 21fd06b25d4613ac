# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading and writing a node: files with owner and mode, and commands. Standard library only, no Ansible import."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change


@dataclass(frozen=True)
class FileState:
    """A file as it is or as it should be: its text, mode ("0644"), owner and group names."""

    text: str
    mode: str = "0644"
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True)
class Done:
    """A finished command: its exit status and what it printed."""

    rc: int
    out: str
    err: str


class CommandError(RuntimeError):
    """A command that failed; the message holds its last words."""


def run(argv: list[str], stdin: str | None = None, timeout: float = 120.0, env: dict[str, str] | None = None) -> Done:
    """Run a command without a shell, in the C locale; rc 127: not installed, 126: can't run, 124: out of time."""
    environment = dict(os.environ, LC_ALL="C", LANG="C", **(env or {}))
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
            check=False,
        )
    except FileNotFoundError:
        return Done(127, "", f"{argv[0]}: not found")
    except OSError as error:
        return Done(126, "", f"{argv[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Done(124, "", f"{argv[0]}: no answer within {timeout:g} s")
    return Done(done.returncode, done.stdout, done.stderr)


def said(done: Done) -> str:
    """Return the last lines of what a command said."""
    return " ".join((done.err.strip() or done.out.strip()).splitlines()[-4:])


def expect(done: Done, what: str) -> None:
    """Raise CommandError with a command's words unless it succeeded; ``what`` it was about comes first."""
    if done.rc:
        raise CommandError(f"{what}: {said(done)}")


def read_text(path: str | Path) -> str | None:
    """Return a file's text, or None when it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def observe_file(path: str | Path, most: int | None = None) -> FileState | None:
    """Return a regular file's text, mode, owner and group, or None when there is none.

    A file of more than ``most`` bytes has an empty text here. Nothing else than a file is opened, or waited for.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        # what was put in its place meanwhile may be a pipe that nobody writes to
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            return None
        text = ""
        if most is None or info.st_size <= most:
            with open(handle, encoding="utf-8", errors="replace", closefd=False) as stream:
                text = stream.read()
    except OSError:
        return None
    finally:
        os.close(handle)
    return FileState(text, f"{stat.S_IMODE(info.st_mode):04o}", owner_name(info.st_uid), group_name(info.st_gid))


def owner_name(uid: int) -> str:
    """Return the user name of a UID, or the number as text when it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the group name of a GID, or the number as text when it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def plan_file(
    path: str,
    observed: FileState | None,
    wanted: FileState | None,
    disruption: str = "none",
    secret: bool = False,
    part: Sequence[str] | None = None,
) -> list[Change]:
    """Plan one file: at most one change, whose step is ``("write", path)`` or ``("remove", path)``.

    ``wanted`` None means that the file shall not be there. The text of a ``secret`` file never enters the change.
    ``part`` are the lines that are ours in a file to which others write as well, None for all of it.
    """
    if wanted is not None and part is None:
        managed.note("file", path, **({"how": managed.STAT} if secret else {}))
    elif wanted is not None and part:
        managed.note_lines(path, part)
    if observed == wanted:
        return []
    if wanted is None:
        before = "" if secret or observed is None else observed.text
        return [Change(f"file {path}", "removed", disruption, before, "", ("remove", path))]
    if observed is None:
        summary = "created"
    elif observed.text != wanted.text:
        summary = "content changed"
    else:
        summary = f"{observed.mode} {observed.owner}:{observed.group} → {wanted.mode} {wanted.owner}:{wanted.group}"
    if secret:
        return [Change(f"file {path}", f"{summary} (content not shown)", disruption, step=("write", path))]
    if observed is not None and observed.text == wanted.text:
        before = f"{observed.mode} {observed.owner}:{observed.group}"
        after = f"{wanted.mode} {wanted.owner}:{wanted.group}"
        return [Change(f"file {path}", summary, disruption, before, after, ("write", path))]
    return [
        Change(f"file {path}", summary, disruption, observed.text if observed else "", wanted.text, ("write", path))
    ]


def write_file(path: str | Path, wanted: FileState, flush: bool = True) -> None:
    """Write a file whole, with owner and mode, by rename; in place where it is a mount point (OSError otherwise).

    Without ``flush`` it is not waited for the disk: for many files of which one more run makes up for a lost one.
    """
    path = os.path.realpath(path)
    uid = int(wanted.owner) if wanted.owner.isdigit() else pwd.getpwnam(wanted.owner).pw_uid
    gid = int(wanted.group) if wanted.group.isdigit() else grp.getgrnam(wanted.group).gr_gid
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".labrack-", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(wanted.text)
            stream.flush()
            if flush:
                os.fsync(stream.fileno())
        os.chown(temporary, uid, gid)
        os.chmod(temporary, int(wanted.mode, 8))
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            # a bind-mounted file (a container's /etc/hosts) can't be replaced, only rewritten
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(wanted.text)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def remove_file(path: str | Path) -> None:
    """Remove a file; nothing when there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_empty(path: str | Path) -> None:
    """Remove a directory in which nothing is; nothing when there is none, or something in it."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
