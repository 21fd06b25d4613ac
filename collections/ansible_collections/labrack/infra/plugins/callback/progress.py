# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show a run by a line for each task, with what is pending and what failed at the end."""

from __future__ import annotations

DOCUMENTATION = r"""
name: progress
type: stdout
short_description: A line for each task, and a summary
version_added: 0.1.0
author:
  - labrack contributors (@labrack)
description:
  - Prints a line for each finished task that ran anywhere, with the hosts on which it changed something or failed, and
    at the end what each host has changed, what is pending and what failed. Warnings are shown as they come.
  - On a terminal the last line says which task runs now, and which hosts it waits for.
  - For C(ansible-playbook) alone; C(labrack apply) has a display of its own.
requirements:
  - chosen in C(ansible.cfg) with C(stdout_callback = labrack.infra.progress), or with C(ANSIBLE_STDOUT_CALLBACK)
"""

import sys
import time
from typing import Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

from ansible_collections.labrack.infra.plugins.plugin_utils import run_record


class CallbackModule(CallbackBase):
    """Ansible's entry to the plugin."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "labrack.infra.progress"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hosts = run_record.Hosts()
        self._task = ""
        self._started = 0.0
        self._waiting: dict[str, None] = {}
        self._ended: dict[str, str] = {}
        self._live = sys.stdout.isatty()

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Name the play."""
        self._finish()
        self._display.display(play.get_name().strip(), color=_colour("HIGHLIGHT"))

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Tell how the task before ended."""
        self._finish()
        self._task, self._started = run_record.task_name(task), time.monotonic()

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Tell how the task before ended."""
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Note that a host begins."""
        self._waiting[host.get_name()] = None
        self._show_now()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note that a host has done it."""
        self._hosts.took(result.host.get_name(), result.result)
        steering = result.task.action.rpartition(".")[2] in run_record.STEERING
        self._end(result, "skipped" if steering else "changed" if result.result.get("changed") else "ok")

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Note that it is not for a host."""
        self._end(result, "skipped")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Note that a host has failed."""
        if not ignore_errors:
            self._hosts.failed_result(result)
        self._end(result, "ok" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Note that a host does not answer."""
        self._hosts.failed_result(result, unreachable=True)
        self._end(result, "unreachable")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the summary."""
        self._finish()
        for host in sorted(stats.processed):
            entry = self._hosts.of(host)
            entry["changed"] = stats.changed.get(host, 0)
            color = _colour("ERROR" if entry["failed"] else "CHANGED" if entry["changed"] else "OK")
            for line in run_record.host_lines(host, entry):
                self._display.display(line, color=color)

    def _end(self, result: Any, ending: str) -> None:
        host = result.host.get_name()
        self._clear()
        self._handle_warnings(result.result)
        self._waiting.pop(host, None)
        self._ended[host] = ending
        self._show_now()

    def _show_now(self) -> None:
        if self._live:
            words = f"  {self._task}: {', '.join(self._waiting)}"[: (self._display.columns or 80) - 1]
            sys.stdout.write(f"\r\x1b[K{words}")
            sys.stdout.flush()

    def _clear(self) -> None:
        if self._live:
            sys.stdout.write("\r\x1b[K")

    def _finish(self) -> None:
        """Print how the task that ran until now ended."""
        self._clear()
        endings = {*self._ended.values()}
        if line := run_record.task_line(self._task, self._ended):
            color = _colour(
                "ERROR" if {"failed", "unreachable"} & endings else "CHANGED" if "changed" in endings else "OK"
            )
            self._display.display(f"  {line} ({time.monotonic() - self._started:.1f} s)", color=color)
        self._ended, self._waiting = {}, {}


def _colour(name: str) -> str:
    """Return a colour that the user may have set."""
    return str(constants.config.get_config_value(f"COLOR_{name}"))
