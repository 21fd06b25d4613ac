# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge a host's backup by restic."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_backup
short_description: Converge a host's backup by restic
version_added: 0.1.0
description:
  - Service, timer and configuration of the backup, and the repository, see the role P(labrack.infra.lab_backup#role).
  - A repository is made only where there is nothing, and never removed. Neither its password nor an ssh key is
    returned, shown in a difference, or in the process list.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) takes service, timer and configuration away.
    type: str
    choices: [present, absent]
    default: present
  host:
    description: The name under which the host's backups are kept.
    type: str
    required: true
  repository:
    description: Where the backups go, a path or an sftp target.
    type: str
    default: ""
  password:
    description: The repository's password; unless set, one is made and kept on the host.
    type: str
  ssh_key:
    description: The private key for an sftp server.
    type: str
  ssh_host_key:
    description: The server's line for C(known_hosts).
    type: str
    default: ""
  schedule:
    description: When, in systemd's words for the calendar.
    type: str
    default: "*-*-* 02:30:00"
  homes:
    description: Folders with people's homes.
    type: list
    elements: str
    default: []
  checkpoints:
    description: Folders with checkpoints.
    type: list
    elements: str
    default: []
  checkpoint_versions:
    description: How many versions of a checkpoint are saved.
    type: int
    default: 3
  exclude:
    description: What homes and checkpoints are saved without, as patterns of restic.
    type: list
    elements: str
    default: []
  keep:
    description: How many backups stay, by C(daily), C(weekly) and C(monthly).
    type: dict
    default: {}
  directories:
    description: The inventory's C(lab_directories); folders that another host has are not saved here.
    type: list
    elements: dict
    default: []
  servers:
    description: The hosts of the group C(nfs_server).
    type: list
    elements: str
    default: []
  script:
    description: The text of the script that makes a backup.
    type: str
    default: ""
  installed:
    description: Whether the role has just installed restic.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Back the head up to another disk
  labrack.infra.lab_backup:
    host: head
    repository: /backup/labrack
    homes: [/home]
    keep: {daily: 7}
    script: "{{ lookup('ansible.builtin.file', 'backup.py') }}"
"""

RETURN = r"""
changes:
  description: What was or would be changed, without secrets.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption).
  type: list
  elements: dict
  returned: always
password_made:
  description: Whether this run has made the repository's password, which has to be copied away.
  type: bool
  returned: always
packages:
  description: Packages that the role installed and nothing needs any more.
  type: list
  elements: str
  returned: always
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import backup_plan, restic, storage_layout
from ansible_collections.labrack.infra.plugins.module_utils.backup_plan import BackupError, Observed, Record, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    observe_file,
    remove_empty,
    run,
    write_file,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    apply_steps,
    observe_services,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "host": {"type": "str", "required": True},
    "repository": {"type": "str", "default": ""},
    "password": {"type": "str", "no_log": True},
    "ssh_key": {"type": "str", "no_log": True},
    # a server's public key
    "ssh_host_key": {"type": "str", "default": "", "no_log": False},
    "schedule": {"type": "str", "default": "*-*-* 02:30:00"},
    "homes": {"type": "list", "elements": "str", "default": []},
    "checkpoints": {"type": "list", "elements": "str", "default": []},
    "checkpoint_versions": {"type": "int", "default": 3},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "keep": {"type": "dict", "default": {}},
    "directories": {"type": "list", "elements": "dict", "default": []},
    "servers": {"type": "list", "elements": "str", "default": []},
    "script": {"type": "str", "default": ""},
    "installed": {"type": "bool", "default": False},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}
#: Seconds for an answer of the repository.
ANSWER_TIMEOUT = 60.0


def read_wanted(params: dict[str, Any]) -> Wanted:
    """Return what the parameters want; BackupError for a schedule that systemd doesn't know, or a bad variable."""
    if params["state"] == "absent":
        return Wanted(present=False)
    for problem in backup_plan.problems({f"lab_backup_{name}": value for name, value in params.items()}):
        raise BackupError(str(problem))
    if not params["repository"]:
        raise BackupError("lab_backup_repository is not set. Mend: set it, or set lab_backup_state to absent")
    schedule = run(["systemd-analyze", "calendar", params["schedule"]])
    if schedule.rc:
        raise BackupError(
            f"lab_backup_schedule is {params['schedule']}: {schedule.err.strip().splitlines()[0]}. "
            'Mend: write it as "*-*-* 02:30:00" or daily, see systemd.time(7)'
        )
    directories = storage_layout.read(params["directories"], params["servers"])

    def own(paths: list[str]) -> tuple[str, ...]:
        return tuple(path for path in paths if storage_layout.makes(directories, path, params["host"]))

    return Wanted(
        host=params["host"],
        repository=params["repository"],
        password=params["password"],
        ssh_key=params["ssh_key"],
        ssh_host_key=params["ssh_host_key"].strip(),
        schedule=params["schedule"],
        homes=own(params["homes"]),
        checkpoints=own(params["checkpoints"]),
        versions=params["checkpoint_versions"],
        exclude=tuple(params["exclude"]),
        keep={name: int(count) for name, count in params["keep"].items() if count is not None},
        script=params["script"],
        installed=params["installed"],
    )


def observe(wanted: Wanted) -> Observed:
    """Read files and timer, and the repository where something about it is new."""
    paths = (*backup_plan.FILES, backup_plan.RECORD, backup_plan.STATE, backup_plan.NOTICE)
    files = {path: observe_file(path) for path in paths}
    timer = observe_services([f"{backup_plan.UNIT}.timer"])[f"{backup_plan.UNIT}.timer"]
    seen = Observed(files, timer)
    if not wanted.present:
        return seen
    target = backup_plan.Target.read(wanted.repository)
    state, words = ("unasked", "") if target.server else restic.folder_state(target.path)
    if state == "unasked" and backup_plan.must_ask(seen, wanted):
        state, words = ask(wanted, seen)
    return Observed(files, timer, state, words)


def ask(wanted: Wanted, seen: Observed) -> tuple[str, str]:
    """Return what the repository says to the wanted password, by files that only root reads."""
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        files = backup_plan.wanted_files(wanted, backup_plan.password_to_use(seen, wanted, "none yet"))
        places = {}
        for path in (backup_plan.PASSWORD, backup_plan.REPOSITORY, backup_plan.SSH_KEY, backup_plan.KNOWN_HOSTS):
            file = files[path]
            places[path] = os.path.join(folder, os.path.basename(path))
            if file is not None:
                write_file(places[path], file)
        target = backup_plan.Target.read(wanted.repository)
        command = backup_plan.ssh_command(target, wanted.ssh_key is not None, bool(wanted.ssh_host_key))
        for path, place in places.items():
            command = command.replace(path, place)
        # the host key of a first contact is kept by the first backup
        command = command.replace(f"{backup_plan.CACHE}/known_hosts", f"{folder}/accepted")
        done = restic.call(
            "cat",
            "config",
            "--no-lock",
            sftp_command=command,
            repository=places[backup_plan.REPOSITORY],
            password=places[backup_plan.PASSWORD],
            timeout=ANSWER_TIMEOUT,
        )
    if done.rc == 127:
        # restic would be installed by the same run, which check mode doesn't do
        return ("ready" if not target.server else "absent"), ""
    return restic.repository_state(done)


def apply(changes: list[Change], wanted: Wanted, seen: Observed) -> None:
    """Make the changes, in order."""
    password = backup_plan.password_to_use(seen, wanted, secrets.token_urlsafe(32))
    files = backup_plan.wanted_files(wanted, password) if wanted.present else {}
    files[backup_plan.RECORD] = backup_plan.wanted_record(seen, wanted).file()
    apply_steps(changes, files, {"init": lambda: init(wanted)})
    if not wanted.present:
        shutil.rmtree(backup_plan.CACHE, ignore_errors=True)
        remove_empty(backup_plan.FOLDER)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(backup_plan.SCRIPT))


def init(wanted: Wanted) -> None:
    """Make the repository; BackupError with restic's words where that fails."""
    target = backup_plan.Target.read(wanted.repository)
    command = backup_plan.ssh_command(target, wanted.ssh_key is not None, bool(wanted.ssh_host_key))
    os.makedirs(backup_plan.CACHE, mode=0o700, exist_ok=True)
    done = restic.call("init", sftp_command=command, timeout=ANSWER_TIMEOUT)
    if done.rc:
        raise BackupError(
            f"lab_backup_repository {wanted.repository} can't be made: {restic.words(done)}. "
            "Mend: let root write there, or name another place"
        )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    first: list[Observed] = []

    def look() -> Observed:
        seen = observe(wanted)
        first.append(seen)
        return seen

    def extra(_state: Observed) -> dict[str, Any]:
        before = first[0]
        record = Record.read(before.files.get(backup_plan.RECORD))
        made = wanted.present and wanted.password is None and before.files.get(backup_plan.PASSWORD) is None
        packages = ["restic"] if not wanted.present and record.installed else []
        return {"password_made": made and not module.check_mode, "packages": packages}

    try:
        wanted = read_wanted(module.params)
        converge(
            module,
            look,
            lambda state: backup_plan.plan(state, wanted),
            lambda changes: apply(changes, wanted, first[0]),
            extra,
            ledger="lab_backup",
        )
    except (BackupError, ServiceError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
