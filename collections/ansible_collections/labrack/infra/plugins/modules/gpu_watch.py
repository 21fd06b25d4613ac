# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge what watches a host's GPUs and tells people of them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_watch
short_description: Converge what watches a host's GPUs and tells people of them
version_added: 0.1.0
description:
  - C(labrack-gpus), its timer, the word at login and the metrics, see the role P(labrack.infra.gpu_watch#role).
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) takes all of it away, the samples as well.
    type: str
    choices: [present, absent]
    default: present
  below_slowdown:
    description: Degrees below the temperature at which a card slows down, from which on it is hot.
    type: int
    default: 5
  hot:
    description: From which temperature on a card is hot that tells no such point, in °C.
    type: int
    default: 90
  sustain:
    description: For how many minutes it has to be so until people are told.
    type: int
    default: 3
  calm:
    description: Minutes after which it is over.
    type: int
    default: 10
  heat_watts:
    description: The heat that the cards may give together, in watts; 0 for no bound.
    type: int
    default: 0
  keep_days:
    description: How many days of samples are kept.
    type: int
    default: 7
  mail:
    description: Who is told by mail.
    type: str
    default: ""
  webhook:
    description: An address that is told by POST. It is a secret.
    type: str
  motd:
    description: Whether people see at login what is free.
    type: bool
    default: true
  textfile_directory:
    description: Where node_exporter's textfile collector looks; nothing is done where it is not there.
    type: path
    default: /var/lib/prometheus/node-exporter
  script:
    description: The text of the command.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Watch the cards
  labrack.infra.gpu_watch:
    mail: admin@example.org
    script: "{{ lookup('ansible.builtin.file', 'gpus.py') }}"
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
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import gpu_watch_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.gpu_watch_plan import GpuWatchError, Observed, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.node_io import observe_file, remove_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError, apply_steps, observe_services

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "below_slowdown": {"type": "int", "default": 5},
    "hot": {"type": "int", "default": 90},
    "sustain": {"type": "int", "default": 3},
    "calm": {"type": "int", "default": 10},
    "heat_watts": {"type": "int", "default": 0},
    "keep_days": {"type": "int", "default": 7},
    "mail": {"type": "str", "default": ""},
    "webhook": {"type": "str", "no_log": True},
    "motd": {"type": "bool", "default": True},
    "textfile_directory": {"type": "path", "default": "/var/lib/prometheus/node-exporter"},
    "script": {"type": "str", "default": ""},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


def read_wanted(params: dict[str, Any]) -> Wanted:
    """Return what the parameters want; GpuWatchError for a wrong one."""
    if params["state"] == "absent":
        return Wanted(present=False, textfile_directory=params["textfile_directory"])
    for problem in gpu_watch_plan.problems({f"gpu_watch_{key}": value for key, value in params.items()}):
        raise GpuWatchError(problem.line())
    settings = {key: params[key] for key in (*gpu_watch_plan.BOUNDS, "mail", "motd")}
    return Wanted(True, settings, params["webhook"] or "", params["script"], params["textfile_directory"])


def observe(textfile_directory: str) -> Observed:
    """Read files and timer."""
    timer = f"{gpu_watch_plan.UNIT}.timer"
    link = _link(textfile_directory)
    return Observed(
        {path: observe_file(path) for path in gpu_watch_plan.FILES},
        observe_services([timer])[timer],
        os.path.islink(link) if os.path.isdir(textfile_directory) else None,
        any(map(os.path.isdir, (gpu_watch_plan.FOLDER, gpu_watch_plan.RUN))),
    )


def _link(textfile_directory: str) -> str:
    return os.path.join(textfile_directory, os.path.basename(gpu_watch_plan.METRICS))


def apply(changes: list[Change], wanted: Wanted) -> None:
    """Make the changes, in order."""

    def link() -> None:
        os.symlink(gpu_watch_plan.METRICS, _link(wanted.textfile_directory))

    def unlink() -> None:
        remove_file(_link(wanted.textfile_directory))

    def rmtree() -> None:
        shutil.rmtree(gpu_watch_plan.FOLDER, ignore_errors=True)
        shutil.rmtree(gpu_watch_plan.RUN, ignore_errors=True)

    files = gpu_watch_plan.wanted_files(wanted) if wanted.present else {}
    apply_steps(changes, files, {"link": link, "unlink": unlink, "rmtree": rmtree})


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        wanted = read_wanted(module.params)
        converge(
            module,
            lambda: observe(module.params["textfile_directory"]),
            lambda state: gpu_watch_plan.plan(state, wanted),
            lambda changes: apply(changes, wanted),
            ledger="gpu_watch",
        )
    except (GpuWatchError, ServiceError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
