# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""MUNGE's key and service: one key for the whole cluster, never shown. Pure planner, no Ansible import.

Source: munged(8): the key file must be owned by the daemon's user and closed to others; 32 to 1024 bytes.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import tempfile
from dataclasses import dataclass, field

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service

KEY_FILE = "/etc/munge/munge.key"
#: The key that all nodes take at once when it is rotated.
NEXT_KEY_FILE = "/etc/munge/munge.key.next"
KEY_BYTES = 1024


@dataclass(frozen=True)
class MungeState:
    """A node's key (None for none), whether mode and owner are right, when it was written, and the service."""

    key: bytes | None
    closed: bool = True
    written: float = 0.0
    service: ServiceState = field(default_factory=ServiceState)

    def __repr__(self) -> str:
        """Name the state without the key."""
        return f"MungeState(key={'set' if self.key else 'none'}, closed={self.closed}, service={self.service})"


def new_key() -> bytes:
    """Return a fresh key of :data:`KEY_BYTES` random bytes."""
    return secrets.token_bytes(KEY_BYTES)


def observe_key(path: str = KEY_FILE) -> tuple[bytes | None, bool, float]:
    """Return the key, whether it is ``0400 munge:munge``, and its modification time."""
    try:
        info = os.stat(path)
        with open(path, "rb") as stream:
            key = stream.read()
    except OSError:
        return None, False, 0.0
    try:
        owner = pwd.getpwnam("munge")
    except KeyError:
        return key, False, info.st_mtime
    closed = stat.S_IMODE(info.st_mode) == 0o400 and (info.st_uid, info.st_gid) == (owner.pw_uid, owner.pw_gid)
    return key, closed, info.st_mtime


def keep(key: bytes | None, cluster_has_state: bool) -> bool:
    """Tell whether the controller's present key stays: it is of our length, or a cluster already lives by it.

    The package makes a shorter key of its own at installation, which a new cluster replaces.
    """
    return key is not None and len(key) >= 32 and (len(key) == KEY_BYTES or cluster_has_state)


def plan(state: MungeState, wanted: bytes | None, path: str = KEY_FILE) -> list[Change]:
    """Plan that the node has the key ``wanted`` (None: a fresh one will be made), and that munged runs with it."""
    managed.note("file", path, how=managed.STAT)
    changes: list[Change] = []
    if wanted is None or state.key != wanted:
        summary = "created" if state.key is None else "replaced"
        changes.append(Change(f"file {path}", f"{summary} (content not shown)", "restart", step=("key",)))
    elif not state.closed:
        changes.append(Change(f"file {path}", "made 0400 munge:munge", step=("close",)))
    if path != KEY_FILE:
        return changes
    stale = any(change.disruption == "restart" for change in changes) or state.written > state.service.since
    return changes + plan_service("munge", state.service, "its key changed" if stale else "")


def close_key(path: str = KEY_FILE) -> None:
    """Make the key's file ``0400 munge:munge``, and nothing else, as a newer one would ask for a restart (KeyError)."""
    owner = pwd.getpwnam("munge")
    os.chown(path, owner.pw_uid, owner.pw_gid)
    os.chmod(path, 0o400)


def write_key(key: bytes, path: str = KEY_FILE) -> None:
    """Write the key by rename, ``0400 munge:munge``; KeyError when the package (so the user munge) is missing."""
    owner = pwd.getpwnam("munge")
    handle, temporary = tempfile.mkstemp(prefix=".labrack-", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), 0o400)
            os.fchown(stream.fileno(), owner.pw_uid, owner.pw_gid)
            stream.write(key)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
