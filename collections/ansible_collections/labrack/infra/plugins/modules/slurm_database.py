# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge a host's accounting database for Slurm."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_database
short_description: Converge a host's accounting database for Slurm
version_added: 0.1.0
description:
  - Makes the database, its user, a password that never leaves the host, and keeps MariaDB and slurmdbd running.
  - Places a hook for apt that dumps the database before another version of slurmdbd is unpacked.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  dump_script:
    description: The text of the script that dumps the database.
    type: str
    required: true
  packages:
    description: Packages that the caller has seen to be there, so that C(labrack drift) misses them later.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Converge the accounting database
  labrack.infra.slurm_database:
    dump_script: "{{ lookup('ansible.builtin.file', 'dump-accounting.sh') }}"
"""

RETURN = r"""
changes:
  description: What was or would be changed.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption).
  type: list
  elements: dict
  returned: always
"""

import os
import re
import secrets
import tempfile

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import slurm_database
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import observe_file, run, write_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    act,
    observe_services,
    wait_for,
)

FILES = [
    slurm_database.DUMP_SCRIPT,
    slurm_database.DUMP_HOOK,
    slurm_database.MARIADB_CONF,
    slurm_database.SLURMDBD_CONF,
]


def observe() -> slurm_database.DatabaseState:
    """Read files, services, and whether slurmdbd's user gets into its database."""
    files = {path: observe_file(path) for path in FILES}
    written = {path: os.stat(path).st_mtime for path in FILES if os.path.exists(path)}
    daemon = files[slurm_database.SLURMDBD_CONF]
    found = re.search(r"^StoragePass=(\S+)$", daemon.text if daemon else "", re.MULTILINE)
    password = found.group(1) if found else None
    services = observe_services(["mariadb", "slurmdbd"])
    reachable = password is not None and services["mariadb"].active and sql("SELECT 1", password)
    return slurm_database.DatabaseState(files, written, services, reachable, password)


def sql(statement: str, password: str | None = None) -> bool:
    """Run a statement as root over the socket, or in slurmdbd's database as its user; tell whether that worked.

    The password goes by a file that only root reads.
    """
    with tempfile.NamedTemporaryFile("w", prefix="labrack-") as options:
        argv = ["mariadb", "--batch"]
        if password is not None:
            options.write(f"[client]\nuser={slurm_database.DATABASE_USER}\npassword={password}\nhost=localhost\n")
            options.flush()
            argv = ["mariadb", f"--defaults-extra-file={options.name}", "--batch", slurm_database.DATABASE]
        return run(argv, stdin=statement + ";\n").rc == 0


def make_database(password: str) -> None:
    """Make the accounting database and its user; ServiceError when the server refuses."""
    user = f"'{slurm_database.DATABASE_USER}'@'localhost'"
    for statement in (
        f"CREATE DATABASE IF NOT EXISTS {slurm_database.DATABASE}",
        f"CREATE USER IF NOT EXISTS {user}",
        f"ALTER USER {user} IDENTIFIED BY '{password}'",
        f"GRANT ALL ON {slurm_database.DATABASE}.* TO {user}",
    ):
        if not sql(statement):
            what = " ".join(statement.split()[:2])
            raise ServiceError(f"MariaDB refused to {what} for {slurm_database.DATABASE}; see journalctl -u mariadb")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "dump_script": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
        },
        supports_check_mode=True,
    )
    script = module.params["dump_script"]

    def apply(changes: list[Change]) -> None:
        password = observe().password or secrets.token_urlsafe(32)
        files = slurm_database.wanted_files(script, password)
        for change in changes:
            verb = change.step[0]
            if verb == "write":
                write_file(change.step[1], files[change.step[1]])
            elif verb == "database":
                make_database(password)
            else:
                act(*change.step)
                if change.step == ("restart", "slurmdbd"):
                    wait_for(["ss", "--no-header", "--listening", "--numeric", "--tcp"], ":6819", "slurmdbd")

    try:
        packages = module.params["packages"]
        converge(
            module,
            observe,
            lambda state: slurm_database.plan_database(state, script, packages),
            apply,
            ledger="slurm_database",
        )
    except ServiceError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
