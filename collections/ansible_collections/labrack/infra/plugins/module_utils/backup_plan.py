# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What makes a host back itself up: restic, a service with its timer, a password, and a repository that is there.

Pure planner, no Ansible import. Written for restic 0.12 to 0.18 (https://restic.readthedocs.io): what is to be kept
from the process list goes by files, in RESTIC_REPOSITORY_FILE and RESTIC_PASSWORD_FILE. No repository is ever removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.finding import HIDDEN, shown
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit, quoted

#: What can be saved and restored by name, in the order in which a restore goes.
SETS = ("cluster_keys", "slurm_database", "headscale", "registry", "homes", "checkpoints")
FOLDER = "/etc/labrack/backup"
CONFIG = f"{FOLDER}/config.json"
PASSWORD = f"{FOLDER}/password"
REPOSITORY = f"{FOLDER}/repository"
SSH_KEY = f"{FOLDER}/ssh_key"
KNOWN_HOSTS = f"{FOLDER}/known_hosts"
SCRIPT = "/usr/local/lib/labrack/backup"
UNIT = "labrack-backup"
SERVICE = f"/etc/systemd/system/{UNIT}.service"
TIMER = f"/etc/systemd/system/{UNIT}.timer"
LOGIN = "/etc/profile.d/labrack-backup.sh"
#: What the role did here; what the last runs did, which the script writes; what an admin is told at login.
RECORD = "/var/lib/labrack/backup-role.json"
STATE = "/var/lib/labrack/backup.json"
NOTICE = "/var/lib/labrack/backup-failed"
CACHE = "/var/cache/labrack-backup"
SECRETS = frozenset({PASSWORD, SSH_KEY})
#: The files of the role, in the order in which they are written; a password that was made here outlives the role.
FILES = (PASSWORD, REPOSITORY, SSH_KEY, KNOWN_HOSTS, CONFIG, SCRIPT, SERVICE, TIMER, LOGIN)
#: Folders that are saved whatever the inventory says, so that no repository may be in them.
ALWAYS_SAVED = ("/etc/munge", "/etc/slurm", "/etc/ssh", "/etc/headscale", "/var/lib/headscale", "/var/lib/labrack")
HEADER = "# Written by labrack.\n"
CALENDAR = re.compile(r"[A-Za-z0-9*,.~/:_+ -]+")

#: restic's words, by which the state of a repository is told (restic 0.12 to 0.18, cmd/restic/global.go).
MISSING_WORDS = ("Is there a repository at the following location", "repository does not exist")
WRONG_PASSWORD_WORDS = ("wrong password",)


class BackupError(ValueError):
    """A wish that can't be, or a state that can't be worked on; the message says cause and mend."""


@dataclass(frozen=True)
class Target:
    """Where a repository is: a folder of this host, or one of ``user@host`` by sftp; ``port`` 0 is ssh's own."""

    path: str
    server: str = ""
    port: int = 0

    @classmethod
    def read(cls, text: str) -> Target:
        """Return the place that a repository's text names; BackupError for one that is none."""
        by_scp = re.fullmatch(r"sftp:([\w.-]+@[\w.-]+):(/.*)", text)
        by_url = re.fullmatch(r"sftp://([\w.-]+@[\w.-]+)(?::(\d+))?/(/.*)", text)
        if by_scp:
            return cls(by_scp.group(2), by_scp.group(1))
        if by_url:
            return cls(by_url.group(3), by_url.group(1), int(by_url.group(2) or 0))
        if not text.startswith("/") or "/../" in f"{text}/" or text == "/":
            raise BackupError("neither an absolute path nor sftp:user@host:/path")
        return cls(text.rstrip("/"))


def ssh_command(target: Target, key: bool, host_key: bool) -> str:
    """Return the command by which restic reaches an sftp server, empty for a folder.

    A server without a pinned key is trusted at the first contact: it sees only what is encrypted.
    """
    if not target.server:
        return ""
    words = ["ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=60"]
    words += ["-i", SSH_KEY, "-o", "IdentitiesOnly=yes"] if key else []
    if host_key:
        words += ["-o", f"UserKnownHostsFile={KNOWN_HOSTS}", "-o", "StrictHostKeyChecking=yes"]
    else:
        words += ["-o", f"UserKnownHostsFile={CACHE}/known_hosts", "-o", "StrictHostKeyChecking=accept-new"]
    words += ["-p", str(target.port)] if target.port else []
    return " ".join([*words, target.server, "-s", "sftp"])


@dataclass(frozen=True)
class Problem:
    """What is wrong in a variable of the role: its name, the value as it may be shown, and the mend."""

    key: str
    value: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.key}{' is ' + self.value if self.value else ''}: {self.what}. Mend: {self.mend}"


def problems(variables: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong in the role's variables (by their full names), as far as no host need be asked."""
    repository = str(variables.get("lab_backup_repository") or "")
    saved = [*(variables.get("lab_backup_homes") or ()), *(variables.get("lab_backup_checkpoints") or ())]
    for key in ("lab_backup_homes", "lab_backup_checkpoints"):
        for path in variables.get(key) or ():
            if not re.fullmatch(r"/[^/].*", path) or "/../" in f"{path}/":
                yield Problem(key, shown(path), "not an absolute path below /", "write it as /home")
    target: Target | None = None
    try:
        target = Target.read(repository) if repository else None
    except BackupError as error:
        mend = "write it as /backup/labrack, which is another disk, or as sftp:labrack@nas:/backup/labrack"
        yield Problem("lab_backup_repository", shown(repository), str(error), mend)
    if target and not target.server:
        for folder in sorted({*saved, *ALWAYS_SAVED}):
            if inside(target.path, folder):
                what = f"it is in {folder}, which is saved: each backup would save those before it"
                yield Problem("lab_backup_repository", shown(repository), what, "take a place outside, on another disk")
                break
    password = variables.get("lab_backup_password")
    if password is not None and (len(password) < 12 or "\n" in password):
        mend = "make one with `openssl rand -base64 24`, or leave it out: the host makes one then"
        yield Problem("lab_backup_password", HIDDEN, "shorter than 12 characters, or of several lines", mend)
    ssh_key = variables.get("lab_backup_ssh_key")
    if ssh_key is not None and "PRIVATE KEY-----" not in ssh_key:
        mend = "give the text of the private key, with its first and last line"
        yield Problem("lab_backup_ssh_key", HIDDEN, "not a private key of ssh", mend)
    schedule = str(variables.get("lab_backup_schedule") or "")
    if not CALENDAR.fullmatch(schedule):
        mend = 'write it as "*-*-* 02:30:00" or daily, see systemd.time(7)'
        yield Problem("lab_backup_schedule", shown(schedule), "not a time of systemd's calendar", mend)
    versions = variables.get("lab_backup_checkpoint_versions")
    if versions is not None and versions < 1:
        yield Problem("lab_backup_checkpoint_versions", shown(versions), "less than one", "keep at least 1")
    keep = variables.get("lab_backup_keep") or {}
    for name, count in keep.items():
        if count is not None and count < 0:
            yield Problem(f"lab_backup_keep.{name}", shown(count), "less than none", "write 0 or more")
    if keep and not any(count for count in keep.values()):
        yield Problem("lab_backup_keep", "", "it keeps nothing", "keep at least one backup")


@dataclass(frozen=True)
class Wanted:
    """What the host shall be; see the role's variables. ``password`` None: one is made and stays on the host.

    ``homes`` and ``checkpoints`` are those paths that this host has itself. ``installed``: the role has just brought
    restic here.
    """

    present: bool = True
    host: str = ""
    repository: str = ""
    password: str | None = field(default=None, repr=False)
    ssh_key: str | None = field(default=None, repr=False)
    ssh_host_key: str = ""
    schedule: str = "*-*-* 02:30:00"
    homes: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    versions: int = 3
    exclude: tuple[str, ...] = ()
    keep: Mapping[str, int] = field(default_factory=dict)
    script: str = ""
    installed: bool = False


@dataclass(frozen=True)
class Observed:
    """The host as it is. ``repository`` is what is at the repository's place, with ``words`` of restic or the system.

    ``ready``: one that the password opens. ``absent``: nothing. ``foreign``: something else. ``locked``: one with
    another password. ``unreachable``: it can't be told. ``unasked``: nothing says that it has to be asked.
    """

    files: Mapping[str, FileState | None] = field(default_factory=dict)
    timer: ServiceState = field(default_factory=ServiceState)
    repository: str = "unasked"
    words: str = ""


@dataclass(frozen=True)
class Record:
    """What the role did here: the repository of its last run, whether restic came by it.

    ``own_password``: the password is the host's alone, and no inventory has it.
    """

    repository: str = ""
    installed: bool = False
    own_password: bool = False

    @classmethod
    def read(cls, file: FileState | None) -> Record:
        """Return the record of a file, an empty one for none; BackupError for a damaged one."""
        try:
            found = json.loads(file.text) if file else {}
            return cls(*(type(default)(found.get(name, default)) for name, default in _FIELDS))
        except (ValueError, AttributeError):
            raise BackupError(f"{RECORD} is not what labrack wrote. Mend: remove it and run again") from None

    def file(self) -> FileState:
        """Return the file that holds the record."""
        document = {name: getattr(self, name) for name, _default in _FIELDS}
        return FileState(json.dumps(document, indent=2, sort_keys=True) + "\n", "0600")


_FIELDS: tuple[tuple[str, Any], ...] = (("repository", ""), ("installed", False), ("own_password", False))


def wanted_files(wanted: Wanted, password: str) -> dict[str, FileState | None]:
    """Return the role's files by path, in the order of :data:`FILES`; None for one that shall not be there."""
    target = Target.read(wanted.repository)
    pinned = wanted.ssh_host_key if target.server else ""
    key = wanted.ssh_key if target.server else None
    config = {
        "host": wanted.host,
        "sftp_command": ssh_command(target, key is not None, bool(pinned)),
        "homes": list(wanted.homes),
        "checkpoints": list(wanted.checkpoints),
        "versions": wanted.versions,
        "exclude": list(wanted.exclude),
        "keep": dict(wanted.keep),
    }
    return {
        PASSWORD: FileState(password + "\n", "0600"),
        REPOSITORY: FileState(wanted.repository + "\n", "0600"),
        SSH_KEY: FileState(_ended(key), "0600") if key is not None else None,
        KNOWN_HOSTS: FileState(_ended(pinned)) if pinned else None,
        CONFIG: FileState(json.dumps(config, indent=2, sort_keys=True) + "\n", "0600"),
        SCRIPT: FileState(wanted.script, "0755"),
        SERVICE: FileState(service_text(target)),
        TIMER: FileState(timer_text(wanted.schedule)),
        LOGIN: FileState(LOGIN_TEXT),
    }


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def service_text(target: Target) -> str:
    """Return the unit that backs the host up; it reads everything and writes to its own folders alone."""
    place = f" {quoted(target.path)}" if not target.server else ""
    return f"""{HEADER}[Unit]
Description=Backup of this host's part of the lab
Wants=network-online.target
After=network-online.target mariadb.service

[Service]
Type=oneshot
ExecStart={SCRIPT} run
ExecStopPost={SCRIPT} ended
TimeoutStartSec=infinity
Nice=15
IOSchedulingClass=idle
CacheDirectory=labrack-backup
CacheDirectoryMode=0700
UMask=0077
NoNewPrivileges=true
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_CHOWN
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=/var/lib/labrack -/var/lib/headscale{place}
PrivateTmp=true
PrivateDevices=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectControlGroups=true
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=true
RestrictSUIDSGID=true
LockPersonality=true
"""


def timer_text(schedule: str) -> str:
    """Return the timer; a backup that was missed is made at the next start."""
    return f"""{HEADER}[Unit]
Description=Backup of this host's part of the lab

[Timer]
OnCalendar={schedule}
RandomizedDelaySec=10min
Persistent=true

[Install]
WantedBy=timers.target
"""


#: Root and whoever may become root is told; others see nothing.
LOGIN_TEXT = f"""{HEADER}case $- in
*i*)
    if [ -s {NOTICE} ]; then
        case " $(id -un) $(id -nG) " in
        *" root "* | *" sudo "* | *" wheel "*) cat {NOTICE} ;;
        esac
    fi
    ;;
esac
"""


def must_ask(observed: Observed, wanted: Wanted) -> bool:
    """Return whether the repository has to be looked at: it is another one, or the password differs."""
    record = Record.read(observed.files.get(RECORD))
    password = observed.files.get(PASSWORD)
    known = password is not None and (wanted.password is None or password.text == wanted.password + "\n")
    return wanted.present and (record.repository != wanted.repository or not known)


def read_problem(observed: Observed, wanted: Wanted) -> str:
    """Return why nothing can be done with the repository as it was found, empty for no reason."""
    where = f"lab_backup_repository {wanted.repository}"
    if observed.repository == "unreachable":
        return f"{where} can't be reached: {observed.words}. Mend: correct the path, mount its disk, or let root in"
    if observed.repository == "foreign":
        return f"{where} is not empty, and no repository of restic. Mend: name an empty folder or one that is not there"
    if observed.repository == "locked":
        if wanted.password is None:
            return (
                f"{where} holds backups, and this host does not have their password. Mend: put the copy that you keep "
                f"into {PASSWORD} (mode 0600) or, in the vault, into lab_backup_password"
            )
        return f"{where} has another password than lab_backup_password. Mend: give the one that it was made with"
    gone = observed.repository == "absent" and Record.read(observed.files.get(RECORD)).repository == wanted.repository
    if gone:
        return (
            f"{where} was there and is gone; no new one is made in its place. Mend: mount its disk, or, if it is lost, "
            f"remove {RECORD}"
        )
    return ""


def password_to_use(observed: Observed, wanted: Wanted, fresh: str) -> str:
    """Return the repository's password: the inventory's, else the one that is on the host, else ``fresh``."""
    found = observed.files.get(PASSWORD)
    return wanted.password or (found.text.strip() if found else "") or fresh


def wanted_record(observed: Observed, wanted: Wanted) -> Record:
    """Return what there is to remember once the plan is applied."""
    before = Record.read(observed.files.get(RECORD))
    return Record(wanted.repository, before.installed or wanted.installed, wanted.password is None)


def plan(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied; BackupError for what can't be."""
    if not wanted.present:
        return _plan_absent(observed)
    problem = read_problem(observed, wanted)
    if problem:
        raise BackupError(problem)
    managed.note_packages(["restic"])
    note_unit(f"{UNIT}.timer", observed.timer)
    changes: list[Change] = []
    units: list[Change] = []
    for path, file in wanted_files(wanted, password_to_use(observed, wanted, "to be made")).items():
        found = plan_file(path, observed.files.get(path), file, secret=path in SECRETS)
        changes += found
        units += found if path == TIMER else []
    if observed.repository == "absent":
        changes.append(Change(f"repository {wanted.repository}", "made", step=("init",)))
    changes += plan_file(RECORD, observed.files.get(RECORD), wanted_record(observed, wanted).file())
    if not observed.timer.enabled:
        changes.append(Change(f"timer {UNIT}", "enabled at boot", step=("enable", f"{UNIT}.timer")))
    if units or not observed.timer.active:
        changes.append(Change(f"timer {UNIT}", "started", step=("restart", f"{UNIT}.timer")))
    return changes


def _plan_absent(observed: Observed) -> list[Change]:
    """Plan the way back. The repository stays, and so does a password that only this host has."""
    changes: list[Change] = []
    if observed.timer.active or observed.timer.enabled:
        changes.append(Change(f"timer {UNIT}", "stopped and disabled", step=("disable", f"{UNIT}.timer")))
    record = observed.files.get(RECORD)
    kept = {PASSWORD} if record is None or Record.read(record).own_password else set()
    for path in (*FILES, STATE, NOTICE, RECORD):
        if path in kept:
            continue
        changes += plan_file(path, observed.files.get(path), None, secret=path in SECRETS)
    return changes
