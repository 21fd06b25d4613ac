# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for the backup: a repository that is not in what it saves, a schedule, and one password for all its hosts."""

from __future__ import annotations

from collections.abc import Iterator

from ansible_collections.labrack.infra.plugins.module_utils import backup_plan
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, shown

GROUP = "lab_backup"


def backup_hosts(inventory: Inventory) -> list[str]:
    """Return the hosts that back themselves up: those of the group ``lab_backup``, else the head."""
    return inventory.members(GROUP) or inventory.members("lab_head")


def check_backup(inventory: Inventory) -> Iterator[Finding]:
    """Yield what is wrong in the variables of the hosts that are backed up."""
    lab = {*inventory.members("lab_head"), *inventory.members("lab_workers")}
    shared: dict[str, list[str]] = {}
    for host in backup_hosts(inventory):
        variables = inventory.hosts[host]
        if host not in lab:
            problem, mend = "it is in neither lab_head nor lab_workers", f"put {host} into one of them"
            yield Finding(("group", GROUP), host, problem, mend, (host,))
        if not variables.get("lab_backup_repository") or variables.get("lab_backup_state") == "absent":
            continue
        for one in backup_plan.problems(variables):
            yield Finding(tuple(one.key.split(".")), one.value, one.what, one.mend, (host,))
        if variables.get("lab_backup_password") is None:
            shared.setdefault(str(variables["lab_backup_repository"]), []).append(host)
    for repository, hosts in shared.items():
        if len(hosts) > 1 and repository.startswith("sftp:"):
            problem = "several hosts share it, and each would make a password of its own"
            mend = "set lab_backup_password, with ansible-vault, or give each host its own repository"
            yield Finding(("lab_backup_repository",), shown(repository), problem, mend, tuple(hosts))
