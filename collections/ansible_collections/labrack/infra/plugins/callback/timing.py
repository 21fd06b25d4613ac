# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell at the end of a run how long each role and the longest tasks took."""

from __future__ import annotations

DOCUMENTATION = r"""
name: timing
type: aggregate
short_description: How long roles and tasks took
version_added: 0.1.0
author:
  - labrack contributors (@labrack)
description:
  - Prints two tables at the end of a run, the seconds of each role and of the longest tasks. A task's time is that
    until the next one begins, on all hosts together.
requirements:
  - enabled in C(ansible.cfg) with C(callbacks_enabled), or for one run with C(ANSIBLE_CALLBACKS_ENABLED)
options:
  tasks:
    description:
      - How many tasks are shown.
    type: int
    default: 10
    env:
      - name: LABRACK_TIMING_TASKS
    ini:
      - section: callback_labrack_timing
        key: tasks
"""

import time
from typing import Any

from ansible.plugins.callback import CallbackBase

from ansible_collections.labrack.infra.plugins.plugin_utils import run_record


class CallbackModule(CallbackBase):
    """Ansible's entry to the plugin."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "labrack.infra.timing"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch = run_record.Watch()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Note that a task begins."""
        self._watch.start(run_record.role_of(task), run_record.task_name(task), time.monotonic())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Note that a handler begins."""
        self.v2_playbook_on_task_start(task, False)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the tables."""
        self._watch.stop(time.monotonic())
        self._display.banner("TIMING")
        for line in run_record.timing_lines(self._watch, int(self.get_option("tasks"))):
            self._display.display(line)
