# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Calling restic on a host, and telling a repository's state. Standard library only, no Ansible import."""

from __future__ import annotations

import os

from ansible_collections.labrack.infra.plugins.module_utils import backup_plan
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, run

#: Seconds for one command; a restore may take long.
PATIENCE = 86400.0


def call(
    *arguments: str,
    sftp_command: str = "",
    repository: str = backup_plan.REPOSITORY,
    password: str = backup_plan.PASSWORD,
    timeout: float = PATIENCE,
) -> Done:
    """Run restic; ``repository`` and ``password`` are files, so that neither is in the process list."""
    options = ["-o", f"sftp.command={sftp_command}"] if sftp_command else []
    environment = {
        "RESTIC_REPOSITORY_FILE": repository,
        "RESTIC_PASSWORD_FILE": password,
        "RESTIC_CACHE_DIR": f"{backup_plan.CACHE}/restic",
    }
    return run(["restic", *options, *arguments], timeout=timeout, env=environment)


def words(done: Done) -> str:
    """Return the last words of a command that failed, on one line."""
    lines = [line.strip() for line in (done.err or done.out).splitlines() if line.strip()]
    return " ".join(lines[-2:]) or f"restic ended with {done.rc}"


def folder_state(path: str) -> tuple[str, str]:
    """Return what is at a repository's folder, in the words of ``backup_plan.Observed``, ``unasked`` for a repository.

    Only the last folder of the path may be missing: a missing one above it is a disk that isn't mounted, or a typo.
    """
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        above = os.path.dirname(path)
        return ("absent", "") if os.path.isdir(above) else ("unreachable", f"there is no {above}")
    except OSError as error:
        return "unreachable", str(error.strerror)
    if not set(names) - {"lost+found"}:
        return "absent", ""
    return ("unasked", "") if "config" in names else ("foreign", "")


def repository_state(done: Done) -> tuple[str, str]:
    """Return the state of a repository from what ``restic cat config`` said; see ``backup_plan.Observed``."""
    if done.rc == 0:
        return "ready", ""
    # restic 0.17 and later end with 10 and 12 in these cases
    if done.rc == 12 or any(said in done.err for said in backup_plan.WRONG_PASSWORD_WORDS):
        return "locked", ""
    if done.rc == 10 or any(said in done.err for said in backup_plan.MISSING_WORDS):
        return "absent", ""
    return "unreachable", words(done)
