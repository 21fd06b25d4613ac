# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Take Slurm off a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_undo
short_description: Take Slurm off a host
version_added: 0.1.0
description:
  - Removes what the role slurm made on the host, and nothing else. Packages that were there before the role stay.
  - The accounting database is dumped to /var/backups/labrack before it goes.
  - While jobs run, every change is of class V(drain).
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
"""

EXAMPLES = r"""
- name: Take Slurm off the host
  labrack.infra.slurm_undo:
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

import contextlib
import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import slurm_database, slurm_node, slurm_undo
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    FileState,
    observe_file,
    read_text,
    remove_file,
    run,
    write_file,
)
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import HEADER
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    act,
    daemon_reload,
    observe_services,
)


def observe() -> slurm_undo.Leftovers:
    """Read what of Slurm is on the host."""
    record = read_text(slurm_undo.RECORD)
    listed = run(["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n"]).out.splitlines()
    status = [line.split(" ", 1) for line in listed]
    here = [name for state, name in status if state in ("installed", "config-files", "half-configured", "unpacked")]
    held = databases()
    packages = without_needed(slurm_undo.packages_to_purge((record or "").splitlines(), here, held))
    trees = slurm_undo.STATE_DIRECTORIES + ((slurm_undo.MARIADB_DATA,) if "mariadb-server" in packages else ())
    return slurm_undo.Leftovers(
        services=observe_services(list(slurm_undo.UNITS)),
        present=frozenset(path for path in slurm_undo.FILES if os.path.exists(path)),
        pam=observe_file(slurm_node.PAM_SSHD),
        session=observe_file(slurm_node.PAM_SESSION),
        database=slurm_database.DATABASE in held,
        busy=busy(),
        made=record is not None or any(HEADER in (read_text(path) or "") for path in slurm_undo.FILES),
        packages=packages,
        trees=tuple(path for path in trees if os.path.isdir(path)),
    )


def databases(data: str = slurm_undo.MARIADB_DATA) -> set[str]:
    """Return the databases that MariaDB holds: those it names and, since it may be stopped, those in its directory."""
    named = run(["mariadb", "--batch", "--skip-column-names", "--execute=SHOW DATABASES"]).out.split()
    found = [entry.name for entry in os.scandir(data) if entry.is_dir()] if os.path.isdir(data) else []
    return {name for name in (*named, *found) if not name.startswith(("#", ".")) and name != "lost+found"}


def busy() -> bool:
    """Tell whether a job runs on this host, or anywhere when this is the controller."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if (read_text(f"/proc/{pid}/comm") or "").startswith("slurmstepd"):
            return True
    if not os.path.exists("/etc/slurm/slurm.conf"):
        return False
    return bool(run(["squeue", "--noheader", "--states=running,suspended,completing"], timeout=15).out.strip())


def without_needed(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the packages less those that another package has come to need since."""
    left = packages
    while left:
        done = run(["apt-get", "--simulate", "--quiet", "purge", *left])
        gone = {words[1] for words in map(str.split, done.out.splitlines()) if words and words[0] in ("Remv", "Purg")}
        strangers = sorted(gone - set(left))
        if not strangers:
            break
        depends = ["apt-cache", "depends", "--installed", "--recurse", "--important", *strangers]
        needed = {line.split()[-1] for line in run(depends).out.splitlines() if line.split()}
        kept = tuple(name for name in left if name not in needed)
        if kept == left:
            return ()
        left = kept
    return left


def apply(changes: list[Change]) -> None:
    """Make the changes, in order."""
    for change in changes:
        verb, *words = change.step
        if verb == "write":
            found, session = observe_file(words[0]), read_text(slurm_node.PAM_SESSION) or ""
            if found is not None:
                text = slurm_node.pam_sshd(found.text, session, restrict=False)
                write_file(words[0], FileState(text, found.mode, found.owner, found.group))
        elif verb == "stop":
            act(verb, words[0])
        elif verb == "database":
            drop_database()
        elif verb == "remove":
            remove_file(words[0])
        elif verb == "purge":
            done = run(
                ["apt-get", "--quiet", "--yes", "purge", *words],
                timeout=600,
                env={"DEBIAN_FRONTEND": "noninteractive"},
            )
            if done.rc:
                raise ServiceError(f"apt-get purge failed: {done.err.strip()}")
        elif verb == "rmtree":
            shutil.rmtree(words[0], ignore_errors=True)
        else:
            for path in slurm_undo.EMPTY_DIRECTORIES:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            daemon_reload()
            remove_file(slurm_undo.RECORD)


def drop_database() -> None:
    """Dump the accounting database by the dump script, then drop it with its user; ServiceError when that fails."""
    done = run([slurm_database.DUMP_SCRIPT], stdin="/slurmdbd_undo.deb\n", timeout=1800)
    if done.rc or "is dumped to" not in done.out:
        why = done.err.strip() or "slurmdbd is not installed; install it, or drop the database by hand"
        raise ServiceError(f"{slurm_database.DATABASE} was not dumped, so it stays: {why}")
    statement = (
        f"DROP DATABASE {slurm_database.DATABASE}; DROP USER IF EXISTS '{slurm_database.DATABASE_USER}'@'localhost';"
    )
    done = run(["mariadb", "--batch"], stdin=statement)
    if done.rc:
        raise ServiceError(f"MariaDB: {done.err.strip()}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"}},
        supports_check_mode=True,
    )
    try:
        converge(module, observe, slurm_undo.plan_undo, apply, forgets=slurm_undo.LEDGERS)
    except ServiceError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
