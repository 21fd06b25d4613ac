# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge what looks for forgotten GPUs on a SkyPilot server's host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: skypilot_reaper
short_description: Converge what looks for forgotten GPUs on a SkyPilot server's host
version_added: 0.1.0
description:
  - Settings, service and timer of the reaper, and what people read at login, see the role
    P(labrack.infra.skypilot#role). The server's user has to be there.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) takes all of it away, what it remembers and its reports as well.
    type: str
    choices: [present, absent]
    default: present
  reaper:
    description: Whether there is a reaper; V(false) takes it away, and what it remembers and its reports as well.
    type: bool
    default: true
  dry_run:
    description: Whether it only writes its report, warns nobody and ends nothing.
    type: bool
    default: true
  grace_hours:
    description: Hours between a warning and the end.
    type: float
    default: 4
  no_autostop_hours:
    description: Hours for which a cluster may be without an autostop.
    type: float
    default: 1
  stuck_hours:
    description: Hours for which one may not come up, or not be well.
    type: float
    default: 2
  unknown_hours:
    description: Hours for which a pod or a job may be there that SkyPilot does not know.
    type: float
    default: 1
  idle_hours:
    description: Hours for which cards may do nothing.
    type: float
    default: 8
  idle_minutes:
    description: The autostop that a cluster without one gets.
    type: int
    default: 60
  busy_percent:
    description: A card that does no more than that is idle.
    type: int
    default: 0
  spare:
    description: Patterns of users and clusters that are only reported.
    type: list
    elements: str
    default: []
  every_minutes:
    description: Minutes between two looks.
    type: int
    default: 10
  mail_domain:
    description: What follows a user's name in their address; empty sends them no mail.
    type: str
    default: ""
  report_mail:
    description: Who gets the weekly report.
    type: str
    default: ""
  webhook:
    description: An address that is told of all of it by POST. It is a secret.
    type: str
  token:
    description: A token of a service account, where the server does not trust its own user. It is a secret.
    type: str
  kubectl:
    description: The words by which kubectl is called.
    type: list
    elements: str
    default: [kubectl]
  infra:
    description: The inventory's C(skypilot_infra).
    type: dict
    default: {}
  mounts:
    description: The inventory's C(skypilot_mounts). What pods write there into people's folders is given to them, and
      the folders are mounted with C(nosuid) and C(nodev).
    type: list
    elements: dict
    default: []
  unix_names:
    description: Unix names by those in SkyPilot, where they differ.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Look for what is forgotten
  labrack.infra.skypilot_reaper:
    dry_run: false
    mail_domain: example.org
    infra: {kubernetes: [{name: lab}]}
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
"""

import os
import pwd
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import skypilot_reaper_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.hardware_observe import read_mounts
from ansible_collections.labrack.infra.plugins.module_utils.mount_observe import read_places
from ansible_collections.labrack.infra.plugins.module_utils.node_io import observe_file, read_text, remove_file
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_reaper_plan import Observed, ReaperError, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError, apply_steps, observe_services

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "reaper": {"type": "bool", "default": True},
    "dry_run": {"type": "bool", "default": True},
    "grace_hours": {"type": "float", "default": 4},
    "no_autostop_hours": {"type": "float", "default": 1},
    "stuck_hours": {"type": "float", "default": 2},
    "unknown_hours": {"type": "float", "default": 1},
    "idle_hours": {"type": "float", "default": 8},
    "idle_minutes": {"type": "int", "default": 60},
    "busy_percent": {"type": "int", "default": 0},
    "spare": {"type": "list", "elements": "str", "default": []},
    "every_minutes": {"type": "int", "default": 10},
    "mail_domain": {"type": "str", "default": ""},
    "report_mail": {"type": "str", "default": ""},
    "webhook": {"type": "str", "no_log": True},
    "token": {"type": "str", "no_log": True},
    "kubectl": {"type": "list", "elements": "str", "default": ["kubectl"]},
    "infra": {"type": "dict", "default": {}},
    "mounts": {"type": "list", "elements": "dict", "default": []},
    "unix_names": {"type": "dict", "default": {}},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


def read_wanted(params: dict[str, Any]) -> Wanted:
    """Return what the parameters want; ReaperError for a wrong one."""
    if params["state"] == "absent":
        return Wanted(present=False)
    for problem in planner.problems({f"skypilot_reaper_{key}": value for key, value in params.items()}):
        raise ReaperError(problem.line())
    webhook, token = params["webhook"] or "", params["token"] or ""
    settings = planner.settings_of(params, bool(webhook), bool(token))
    written = planner.written_by_pods(params["infra"], params["mounts"])
    return Wanted(True, params["reaper"], settings, webhook, token, params["every_minutes"], written)


def observe(wanted: Wanted) -> Observed:
    """Read files, timers and mounts, and what a reaper has left."""
    reaper, owner, nosuid = f"{planner.UNIT}.timer", f"{planner.OWNER}.timer", f"{planner.NOSUID}.service"
    states = observe_services([reaper, owner, nosuid])
    mounts = read_mounts(read_text("/proc/self/mountinfo") or "")
    try:
        user = bool(pwd.getpwnam(planner.USER))
    except KeyError:
        user = False
    return Observed(
        {path: observe_file(path) for path in planner.FILES},
        states[reaper],
        states[owner],
        user,
        [path for path in planner.DATA if os.path.lexists(path)],
        states[nosuid],
        planner.exposed(wanted.written, read_places(wanted.written), mounts),
    )


def apply(changes: list[Change], wanted: Wanted, seen: Observed) -> None:
    """Make the changes, in order; ReaperError where the server's user is missing."""
    if wanted.present and not seen.user:
        raise ReaperError(f"the user {planner.USER} is not there. Mend: run the role skypilot whole")
    files = planner.wanted_files(wanted) if wanted.present else {}
    apply_steps(changes, files, {"rmtree": remove_data})


def remove_data(path: str) -> None:
    """Remove a folder of the reaper, or a file."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove_file(path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    seen: list[Observed] = []

    def look() -> Observed:
        seen.append(observe(wanted))
        return seen[-1]

    try:
        wanted = read_wanted(module.params)
        converge(
            module,
            look,
            lambda state: planner.plan(state, wanted),
            lambda changes: apply(changes, wanted, seen[0]),
            ledger="skypilot_reaper",
        )
    except (ReaperError, ServiceError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
