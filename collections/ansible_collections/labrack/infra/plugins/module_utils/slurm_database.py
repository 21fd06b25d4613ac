# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What makes a host Slurm's accounting database: MariaDB, slurmdbd, and a dump before slurmdbd changes.

Pure planner, no Ansible import. A restart of either daemon ends no job: slurmctld keeps what it has to tell slurmdbd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import HEADER, SCRIPT_DIRECTORY
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service

SLURMDBD_CONF = "/etc/slurm/slurmdbd.conf"
MARIADB_CONF = "/etc/mysql/mariadb.conf.d/60-labrack-slurm.cnf"
DUMP_HOOK = "/etc/apt/apt.conf.d/60labrack-slurm"
DUMP_SCRIPT = f"{SCRIPT_DIRECTORY}/dump-accounting"
DATABASE = "slurm_acct_db"
DATABASE_USER = "slurm"

#: https://slurm.schedmd.com/accounting.html#mysql-configuration, sized for a machine that does other work as well
MARIADB_TEXT = (
    HEADER
    + """[mariadbd]
bind-address = 127.0.0.1
innodb_buffer_pool_size = 256M
innodb_log_file_size = 64M
innodb_lock_wait_timeout = 900
max_allowed_packet = 16M
"""
)

#: apt hands the hook the archives that it is about to unpack, one a line (apt.conf(5), Pre-Install-Pkgs)
DUMP_HOOK_TEXT = f"""// Written by labrack: the accounting database is dumped before another slurmdbd is unpacked.
DPkg::Pre-Install-Pkgs {{ "{DUMP_SCRIPT}"; }};
"""


@dataclass(frozen=True)
class DatabaseState:
    """What was read on the host: files, when each was last written (Unix time), services, the password in use.

    ``reachable`` tells whether slurmdbd's user gets into its database.
    """

    files: Mapping[str, FileState | None]
    written: Mapping[str, float]
    services: Mapping[str, ServiceState]
    reachable: bool = False
    password: str | None = field(default=None, repr=False)


def slurmdbd_text(password: str) -> str:
    """Return slurmdbd.conf (slurmdbd.conf(5)); jobs are kept for ever, steps and events age."""
    return (
        HEADER
        + f"""AuthType=auth/munge
DbdHost=localhost
SlurmUser=slurm
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={DATABASE_USER}
StoragePass={password}
StorageLoc={DATABASE}
PurgeStepAfter=12months
PurgeEventAfter=24months
"""
    )


def wanted_files(dump_script: str, password: str) -> dict[str, FileState]:
    """Return the files of the host by path, in the order in which they are written."""
    return {
        DUMP_SCRIPT: FileState(dump_script, "0755"),
        DUMP_HOOK: FileState(DUMP_HOOK_TEXT),
        MARIADB_CONF: FileState(MARIADB_TEXT),
        SLURMDBD_CONF: FileState(slurmdbd_text(password), "0600", "slurm", "slurm"),
    }


def plan_database(state: DatabaseState, dump_script: str, packages: Sequence[str] = ()) -> list[Change]:
    """Plan the host's way: files, MariaDB, the database with its user, slurmdbd.

    ``packages`` are those that the role installs.
    """
    managed.note_packages(packages)
    files: dict[str, list[Change]] = {}
    for path, wanted in wanted_files(dump_script, state.password or "to be made").items():
        disruption = "restart" if path in (MARIADB_CONF, SLURMDBD_CONF) else "none"
        files[path] = plan_file(path, state.files.get(path), wanted, disruption, secret=path == SLURMDBD_CONF)
    changes = files[DUMP_SCRIPT] + files[DUMP_HOOK] + files[MARIADB_CONF]
    changes += _service("mariadb", state, MARIADB_CONF, files)
    if not state.reachable:
        changes.append(Change(f"database {DATABASE}", "made, with its user", step=("database",)))
    return changes + files[SLURMDBD_CONF] + _service("slurmdbd", state, SLURMDBD_CONF, files)


def _service(unit: str, state: DatabaseState, path: str, files: Mapping[str, list[Change]]) -> list[Change]:
    service = state.services[unit]
    stale = bool(files[path]) or state.written.get(path, 0.0) > service.since
    return plan_service(unit, service, "its configuration changed" if stale else "")
