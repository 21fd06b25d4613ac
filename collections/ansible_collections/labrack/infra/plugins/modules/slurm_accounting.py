# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes Slurm's accounts, users, associations, QOS and limits match the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_accounting
short_description: Slurm accounts, users, QOS and limits from the inventory
version_added: 0.1.0
description:
  - Reads the accounting database by C(sacctmgr) and applies only the differences, all in one call.
  - Nothing is ever deleted and no running job is ended. An association that the inventory does not name is locked by
    C(GrpSubmitJobs=0), and its user's administrator level is taken away; C(root) is never touched.
  - A limit that an entry leaves out is cleared. Accounts and QOS that the inventory does not name are left alone.
  - Limits on GPUs need C(AccountingStorageTRES=gres/gpu) and a C(slurmctld) that has started once with it; locks and
    limits hold where C(AccountingStorageEnforce) has C(limits) and C(qos).
author: labrack contributors (@labrack)
extends_documentation_fragment: [labrack.infra.converge]
options:
  cluster:
    description: The C(ClusterName) of C(slurm.conf).
    type: str
    required: true
  default_qos:
    description: The QOS of a job that asks for none.
    type: str
    default: normal
  accounts:
    description: The accounts, in any order.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name, in lower case.
        type: str
        required: true
      description:
        description: What it is for; left alone when not given. Slurm keeps it in lower case.
        type: str
      organization:
        description: Whose it is; left alone when not given. Slurm keeps it in lower case.
        type: str
      parent:
        description: The account above it.
        type: str
        default: root
      fairshare:
        description: Its shares among its siblings.
        type: int
        default: 1
      max_gpus:
        description: The GPUs that all its jobs together may hold.
        type: int
      qos:
        description:
          - The QOS that its jobs may use. When not given, those of its parent; at the top V(normal) and O(default_qos).
        type: list
        elements: str
  users:
    description: The users, who must exist on every node.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The login name, in lower case.
        type: str
        required: true
      account:
        description: The user's account; needed unless O(users[].state=locked).
        type: str
      accounts:
        description: Further accounts.
        type: list
        elements: str
      default_account:
        description: The account of a job that names none; O(users[].account) when not given.
        type: str
      fairshare:
        description: The user's shares in each account.
        type: int
        default: 1
      max_gpus:
        description: The GPUs that the user may hold at a time in each account.
        type: int
      admin_level:
        description: The user's rights over Slurm.
        type: str
        choices: [None, Operator, Administrator]
        default: None
      state:
        description: V(locked) refuses new jobs, as for a user whom the inventory does not name.
        type: str
        choices: [present, locked]
        default: present
  qos:
    description: The QOS. V(normal) always exists and may be named to limit it.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name, in lower case.
        type: str
        required: true
      priority:
        description: Its priority, relative to the highest of all QOS.
        type: int
        default: 0
      max_gpus_per_user:
        description: The GPUs that one user may hold in it at a time.
        type: int
      max_jobs_per_user:
        description: The jobs of one user that may run in it at a time.
        type: int
      max_submit_per_user:
        description: The jobs of one user that may run or wait in it at a time.
        type: int
      max_wall:
        description: The longest job, as V(HH:MM:SS) or V(D-HH:MM:SS).
        type: str
      flags:
        description: V(DenyOnLimit) refuses a job over a limit instead of letting it wait for ever.
        type: list
        elements: str
        choices:
          - DenyOnLimit
          - EnforceUsageThreshold
          - NoDecay
          - NoReserve
          - OverPartQOS
          - PartitionMaxNodes
          - PartitionMinNodes
          - PartitionTimeLimit
          - RequiresReservation
          - UsageFactorSafe
      preempt:
        description: The QOS whose jobs it may preempt; works with C(PreemptType=preempt/qos).
        type: list
        elements: str
      grace_time:
        description: Seconds between the notice and the preemption of a job of this QOS.
        type: int
        default: 0
"""

EXAMPLES = r"""
- name: Slurm accounts, users and limits
  labrack.infra.slurm_accounting:
    cluster: closet
    qos:
      - {name: interactive, priority: 100, max_gpus_per_user: 1, max_wall: "04:00:00", flags: [DenyOnLimit]}
    accounts:
      - {name: lab, qos: [normal, interactive]}
      - {name: vision, parent: lab, fairshare: 2, max_gpus: 8}
    users:
      - {name: ada, account: vision, admin_level: Operator}
      - {name: ben, account: vision, accounts: [lab], max_gpus: 2}
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    subject: {description: "The cluster, account, QOS or user.", type: str, returned: always}
    summary: {description: What changes in it., type: str, returned: always}
    disruption: {description: Always V(none)., type: str, returned: always}
pending:
  description: Changes above O(max_disruption); always empty.
  returned: success
  type: list
  elements: dict
database:
  description: V(ok), or V(absent) in check mode where the database does not answer and everything is to be created.
  returned: success
  type: str
unmanaged:
  description: The names of accounts and QOS in the database that the inventory does not name.
  returned: success
  type: dict
  contains:
    accounts: {description: Accounts., type: list, elements: str, returned: always}
    qos: {description: QOS., type: list, elements: str, returned: always}
locked:
  description: Users with associations whom the inventory does not name, or names as locked.
  returned: success
  type: list
  elements: str
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import run
from ansible_collections.labrack.infra.plugins.module_utils.slurm_accounts import (
    QOS_FLAGS,
    State,
    commands,
    left_alone,
    parse_state,
    plan,
    queries,
    want,
)

#: Seconds within which a slurmdbd or slurmctld that was just started must answer.
PATIENCE = 30.0

ACCOUNT = {
    "name": {"type": "str", "required": True},
    "description": {"type": "str"},
    "organization": {"type": "str"},
    "parent": {"type": "str", "default": "root"},
    "fairshare": {"type": "int", "default": 1},
    "max_gpus": {"type": "int"},
    "qos": {"type": "list", "elements": "str"},
}
USER = {
    "name": {"type": "str", "required": True},
    "account": {"type": "str"},
    "accounts": {"type": "list", "elements": "str"},
    "default_account": {"type": "str"},
    "fairshare": {"type": "int", "default": 1},
    "max_gpus": {"type": "int"},
    "admin_level": {"type": "str", "choices": ["None", "Operator", "Administrator"], "default": "None"},
    "state": {"type": "str", "choices": ["present", "locked"], "default": "present"},
}
QOS = {
    "name": {"type": "str", "required": True},
    "priority": {"type": "int", "default": 0},
    "max_gpus_per_user": {"type": "int"},
    "max_jobs_per_user": {"type": "int"},
    "max_submit_per_user": {"type": "int"},
    "max_wall": {"type": "str"},
    "flags": {"type": "list", "elements": "str", "choices": list(QOS_FLAGS)},
    "preempt": {"type": "list", "elements": "str"},
    "grace_time": {"type": "int", "default": 0},
}
OPTIONS = {
    "cluster": {"type": "str", "required": True},
    "default_qos": {"type": "str", "default": "normal"},
    "accounts": {"type": "list", "elements": "dict", "default": [], "options": ACCOUNT},
    "users": {"type": "list", "elements": "dict", "default": [], "options": USER},
    "qos": {"type": "list", "elements": "dict", "default": [], "options": QOS},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


class SacctmgrError(RuntimeError):
    """A call of sacctmgr failed; the text names the call and what it printed."""


def sacctmgr(arguments: list[str]) -> str:
    """Run sacctmgr and return its output; :class:`SacctmgrError` when it fails."""
    done = run(["sacctmgr", *arguments])
    if done.rc:
        said = " ".join((done.err or done.out).split())
        raise SacctmgrError(f"sacctmgr {' '.join(arguments)}: {said or f'exit status {done.rc}'}")
    return done.out


def read_state(cluster: str) -> State:
    """Read what the database holds for the cluster."""
    return parse_state({key: sacctmgr(["-nP", *query]) for key, query in queries(cluster).items()}, cluster)


def database_problem(needs_gpus: bool) -> str:
    """Return why the database can't be used now, with the mend, or an empty text."""
    try:
        resources = sacctmgr(["-nP", "show", "tres", "format=type,name"])
    except SacctmgrError as error:
        return (
            f"slurmdbd does not answer: {error}. Look at 'systemctl status slurmdbd' and its log, "
            "check AccountingStorageHost in slurm.conf, then run again"
        )
    if needs_gpus and "gres|gpu" not in resources.splitlines():
        return (
            "Slurm's database does not know gres/gpu, so it can't limit GPUs: set AccountingStorageTRES=gres/gpu in "
            "slurm.conf and start slurmctld, which registers it, then run again"
        )
    return ""


def wait_for_database(needs_gpus: bool) -> str:
    """Wait up to :data:`PATIENCE` seconds for the database; return what is still wrong with it, or an empty text."""
    deadline = time.monotonic() + PATIENCE
    while True:
        problem = database_problem(needs_gpus)
        if not problem or time.monotonic() >= deadline:
            return problem
        time.sleep(1)


def apply(changes: list[Change]) -> None:
    """Make the changes, in order."""
    for arguments in commands(changes):
        sacctmgr(["-i", "-Q", *arguments])


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        wanted = want(module.params)
    except ValueError as error:
        module.fail_json(msg=str(error))
    problem = database_problem(False) if module.check_mode else wait_for_database(wanted.limits_gpus)
    if problem and not module.check_mode:
        module.fail_json(msg=problem)
    try:
        converge(
            module,
            # slurmctld registers its cluster when it starts, before this module's turn
            observe=lambda: State(cluster=True) if problem else read_state(wanted.cluster),
            plan=lambda state: plan(state, wanted),
            apply=apply,
            extra=lambda state: {"database": "absent" if problem else "ok", **left_alone(state, wanted)},
        )
    except SacctmgrError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
