# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking Slurm off a host: what the role made there, and nothing else. Pure planner, no Ansible import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ansible_collections.labrack.infra.plugins.module_utils import slurm_database, slurm_head, slurm_node
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.munge import KEY_FILE
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import SCRIPT_DIRECTORY
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState

#: The packages that the role brought to this host, a line per installation with the names between blanks.
RECORD = "/var/lib/labrack/slurm.packages"
#: What MariaDB leaves behind when its packages are purged; /etc/mysql goes when nothing else is in it.
MARIADB_DATA = "/var/lib/mysql"
MARIADB_FILE = "/etc/mysql/debian.cnf"
#: Of the modules whose work is undone.
LEDGERS = ("munge_key", "slurm_controller", "slurm_database", "slurm_node")
UNITS = ("slurmd", "slurmctld", "slurmdbd", "munge")
FILES = (
    slurm_node.ENVIRONMENT,
    slurm_node.DROP_IN,
    slurm_node.ACCESS,
    *[f"{SCRIPT_DIRECTORY}/{name}" for name in slurm_node.SCRIPTS],
    *slurm_head.CONFIG_FILES,
    slurm_head.JOURNAL,
    slurm_database.SLURMDBD_CONF,
    slurm_database.MARIADB_CONF,
    slurm_database.DUMP_HOOK,
    slurm_database.DUMP_SCRIPT,
    MARIADB_FILE,
    KEY_FILE,
)
#: Directories that go when nothing is left in them, and those that go whole, since Slurm alone writes there.
EMPTY_DIRECTORIES = (
    SCRIPT_DIRECTORY,
    "/usr/local/lib/labrack",
    "/etc/systemd/system/slurmd.service.d",
    "/etc/slurm",
    "/etc/mysql",
)
STATE_DIRECTORIES = ("/var/lib/slurm", "/var/log/slurm", "/var/spool/slurmd")


@dataclass(frozen=True)
class Leftovers:
    """What of Slurm is on the host.

    ``busy`` tells whether jobs run here (on the controller: anywhere), ``made`` whether the role was here at all.
    ``packages`` are those of the record that are still installed and that nothing else needs by now, ``trees`` the
    state directories that exist.
    """

    services: Mapping[str, ServiceState]
    present: frozenset[str]
    pam: FileState | None
    session: FileState | None
    database: bool
    busy: bool
    made: bool
    packages: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()


def packages_to_purge(recorded: Iterable[str], installed: Iterable[str], databases: Iterable[str]) -> tuple[str, ...]:
    """Return the packages of the record's lines that are installed, sorted.

    MariaDB stays when it has come to hold another database than Slurm's (``databases`` are all that it holds).
    """
    own = {"information_schema", "mysql", "performance_schema", "sys", "test", slurm_database.DATABASE}
    names = {name for line in recorded for name in line.split()} & set(installed)
    return tuple(sorted(names - ({"mariadb-server"} if set(databases) - own else set())))


def plan_undo(found: Leftovers) -> list[Change]:
    """Plan the way back: logins open first, then daemons, a dump and the database, files, packages.

    Everything is class ``drain`` while jobs run.
    """
    disruption = "drain" if found.busy else "restart"
    changes: list[Change] = []
    if found.pam is not None:
        session = found.session.text if found.session else ""
        text = slurm_node.pam_sshd(found.pam.text, session, restrict=False)
        wanted = FileState(text, found.pam.mode, found.pam.owner, found.pam.group)
        changes += plan_file(slurm_node.PAM_SSHD, found.pam, wanted, disruption)
    if not found.made:
        return changes
    kept = {"munge", KEY_FILE} if "munge" not in found.packages else set()
    kept |= {MARIADB_FILE} if "mariadb-server" not in found.packages else set()
    for unit in UNITS:
        if found.services[unit].active and unit not in kept:
            changes.append(Change(f"service {unit}", "stopped", disruption, step=("stop", unit)))
    if found.database:
        summary = "dumped to /var/backups/labrack, then dropped with its user"
        changes.append(Change(f"database {slurm_database.DATABASE}", summary, disruption, step=("database",)))
    for path in FILES:
        if path in found.present and path not in kept:
            changes.append(Change(f"file {path}", "removed", disruption, step=("remove", path)))
    if found.packages:
        purged = f"purged: {' '.join(found.packages)}"
        changes.append(Change("packages", purged, disruption, step=("purge", *found.packages)))
        for path in found.trees:
            changes.append(Change(f"directory {path}", "removed", disruption, step=("rmtree", path)))
    changes.append(Change(f"file {RECORD}", "removed", disruption, step=("record",)))
    return changes
