# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keep a line of every run: when, by whom, what it changed on which host, what is pending, what failed."""

from __future__ import annotations

DOCUMENTATION = r"""
name: record
type: aggregate
short_description: A history of the lab's runs
version_added: 0.1.0
author:
  - labrack contributors (@labrack)
description:
  - Adds one JSON object for each run to a file, one in a line, with the keys C(schema), C(started), C(ended) (UTC),
    C(playbook), C(check), C(tags), C(limit), C(commit) of the inventory, C(by), C(rc), C(hosts) (C(changed),
    C(pending), C(failed), C(unreachable)) and C(roles) (seconds). C(labrack status) and C(labrack gitops) read it.
  - Holds no results of tasks, so no secrets. The message of a task that failed is kept unless it has C(no_log).
  - A run of a playbook without roles is kept only where it changed something, so that looking leaves no line.
  - A file that can't be written is a warning; the run goes on.
requirements:
  - enabled in C(ansible.cfg) with C(callbacks_enabled)
options:
  history:
    description:
      - The file. By default it lies in the directory of the lab below C(~/.local/state/labrack); there is none for
        an inventory that is no file.
    type: path
    env:
      - name: LABRACK_HISTORY
    ini:
      - section: callback_labrack_record
        key: history
  by:
    description:
      - Who or what runs it. By default the user who is logged in.
    type: str
    env:
      - name: LABRACK_BY
    ini:
      - section: callback_labrack_record
        key: by
"""

import getpass
import os
import time
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

from ansible_collections.labrack.infra.plugins.plugin_utils import run_record


class CallbackModule(CallbackBase):
    """Ansible's entry to the plugin."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "labrack.infra.record"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch = run_record.Watch()
        self._hosts = run_record.Hosts()
        self._started = time.time()
        self._playbook = ""
        self._has_roles = False

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Note which playbook it is."""
        self._started = time.time()
        self._playbook = playbook_name(playbook)
        self._has_roles = any(play.get_roles() for play in playbook.get_plays())

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Note that a task begins."""
        self._watch.start(run_record.role_of(task), run_record.task_name(task), time.monotonic())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Note that a handler begins."""
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note what is pending."""
        self._hosts.took(result.host.get_name(), result.result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Note why a host is out."""
        if not ignore_errors:
            self._hosts.failed_result(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Note that a host does not answer."""
        if not result.task.ignore_unreachable:
            self._hosts.failed_result(result, unreachable=True)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the line."""
        self._watch.stop(time.monotonic())
        for host in sorted(stats.processed):
            entry = self._hosts.of(host)
            entry["changed"] = stats.changed.get(host, 0)
            if not stats.failures.get(host) and not stats.dark.get(host):
                # a block has made up for it
                entry["failed"], entry["unreachable"] = "", False
        changed = any(entry["changed"] for entry in self._hosts.hosts.values())
        file = self._file()
        if file is None or not (self._has_roles or changed):
            return
        try:
            run_record.append(file, self._run(4 if stats.dark else 2 if stats.failures else 0))
        except OSError as error:
            self._display.warning(f"labrack.infra.record: this run is not in {file}: {error.strerror}")

    def _run(self, rc: int) -> dict[str, Any]:
        cli = context.CLIARGS
        sources = [Path(one) for one in cli.get("inventory") or ()]
        folder = sources[0] if sources and sources[0].is_dir() else sources[0].parent if sources else Path()
        return {
            "schema": run_record.SCHEMA,
            "started": run_record.timestamp(self._started),
            "ended": run_record.timestamp(time.time()),
            "playbook": self._playbook,
            "check": bool(cli.get("check")),
            "tags": [one for one in cli.get("tags") or () if one != "all"],
            "limit": cli.get("subset") or "",
            "commit": run_record.commit_of(folder),
            "by": self.get_option("by") or os.environ.get("SUDO_USER") or _user(),
            "rc": rc,
            "hosts": self._hosts.hosts,
            "roles": {role: round(seconds, 1) for role, seconds in self._watch.roles.items()},
        }

    def _file(self) -> Path | None:
        if named := self.get_option("history"):
            return Path(named)
        sources = [Path(one) for one in context.CLIARGS.get("inventory") or ()]
        if not sources or not all(one.exists() for one in sources):
            return None
        return run_record.lab_folder([one.resolve() for one in sources]) / run_record.FILE


def playbook_name(playbook: Any) -> str:
    """Return a playbook's FQCN where it is one of a collection's, else its path as it was given."""
    names = context.CLIARGS.get("args") or ()
    file = Path(playbook._file_name)
    return next((one for one in names if Path(one).name == file.name or one.endswith(f".{file.stem}")), str(file))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
