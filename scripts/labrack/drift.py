# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is no longer as the last run left it, on every node of a lab at once.

The module ``labrack.infra.drift`` answers that in a playbook, which costs more than a tenth of a whole check. Here its
code is sent by Ansible's own connections, to a Python that has nothing else to load.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import shell
from .lab import Lab
from .progress import Step

#: ``host``, and either what the module returns or an ``error``.
Report = Mapping[str, Any]

#: The word for several of each kind of thing that is managed.
KINDS: Mapping[str, str] = {
    "file": "files",
    "directory": "directories",
    "package": "packages",
    "unit": "units",
    "mount": "mounts",
    "user": "users",
    "group": "groups",
    "sysctl": "kernel settings",
    "preference": "preferences of the tailnet",
}
PACKAGE = "ansible_collections.labrack.infra.plugins.module_utils"
#: What the node needs, each after what it imports.
PARTS = ("managed", "change", "node_io", "managed_observe", "tailscale_prefs", "skypilot_keys", "drift_observe")
#: Whose hosts the tiers' playbooks make something of.
GROUPS = ("lab_head", "lab_workers", "slurm_controller", "slurm_database", "slurm_worker", "slurm_login", "lab_backup")
#: Nodes that are asked at the same time.
MOST = 50
#: Stands before the answer, as a login may print anything.
MARK = "labrack-drift:"
#: Runs the parts as if they were installed; the answer is one line.
_RUN = """
import json, os, sys, types
package = ""
for word in {package!r}.split("."):
    package = f"{{package}}.{{word}}" if package else word
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = []
for name, text in {parts!r}:
    module = sys.modules[f"{{package}}.{{name}}"] = types.ModuleType(f"{{package}}.{{name}}")
    setattr(sys.modules[package], name, module)
    exec(compile(text, name, "exec"), module.__dict__)
try:
    if os.geteuid():
        raise OSError("only root can read what labrack manages here. Mend: set ansible_become: true")
    answer = sys.modules[f"{{package}}.drift_observe"].read()
except (OSError, ValueError) as error:
    answer = {{"error": str(error)}}
print({mark!r} + json.dumps(answer))
"""


def read(lab: Lab, log: Path, step: Step) -> list[Report]:
    """Ask every node of the lab; ``log`` is written anew with what the nodes said. In the order of the hosts.

    A node that can't be reached, or can't tell, has an ``error`` in place of an answer.
    """
    hosts = tuple(dict.fromkeys(host for group in GROUPS for host in lab.groups.get(group, ())))
    if not hosts:
        raise shell.UserError("The inventory has no hosts in lab_head and lab_workers.")
    text = program()
    connections = {host: _connection(host, lab.hosts[host]) for host in hosts}
    step.doing(f"asks {len(hosts)} nodes")
    with ThreadPoolExecutor(min(MOST, len(hosts))) as pool:
        answers = list(pool.map(lambda host: _ask(*connections[host], text), hosts))
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as output:
        for host, (_report, said) in zip(hosts, answers, strict=True):
            output.write(f"{host}:\n{said}\n")
    return [{"host": host, **report} for host, (report, _said) in zip(hosts, answers, strict=True)]


def program() -> str:
    """Return the Python program that answers on a node."""
    # in a checkout, or beside this package where it is installed
    folders = (shell.home() / "collections", Path(__file__).resolve().parents[1])
    folder = next(one for one in folders if (one / "ansible_collections").is_dir()) / PACKAGE.replace(".", "/")
    parts = [(name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in PARTS]
    return _RUN.format(package=PACKAGE, parts=parts, mark=MARK)


def _connection(host: str, variables: Mapping[str, Any]) -> tuple[Any, str]:
    """Return Ansible's connection to a host, and the command that runs a program there as root."""
    from ansible.constants import config
    from ansible.errors import AnsibleError
    from ansible.playbook.play_context import PlayContext
    from ansible.plugins.loader import become_loader, connection_loader

    values = {"inventory_hostname": host, **variables}
    context: Any = PlayContext()
    context.remote_addr = str(values.get("ansible_host", host))
    name = str(values.get("ansible_connection") or config.get_config_value("DEFAULT_TRANSPORT"))
    python = str(values.get("ansible_python_interpreter") or "auto")
    command = f"{shlex.quote('/usr/bin/python3' if python.startswith('auto') else python)} -"
    try:
        connection: Any = connection_loader.get("ssh" if name == "smart" else name, context)
        if connection is None:
            raise shell.UserError(f"{host}: there is no connection plugin {name} (ansible_connection).")
        connection.set_options(var_options=values)
        connection._shell.set_options(var_options=values)
        if _true(values.get("ansible_become", config.get_config_value("DEFAULT_BECOME"))):
            method = str(values.get("ansible_become_method") or config.get_config_value("DEFAULT_BECOME_METHOD"))
            become: Any = become_loader.get(method)
            if become is None:
                raise shell.UserError(f"{host}: there is no become plugin {method} (ansible_become_method).")
            become.set_options(var_options=values)
            connection.set_become_plugin(become)
            command = become.build_become_command(command, connection._shell)
    except AnsibleError as error:
        raise shell.UserError(f"{host}: {error}") from None
    return connection, command


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "on", "1", "y", "t")


def _ask(connection: Any, command: str, text: str) -> tuple[dict[str, Any], str]:
    """Run the program on a node; return its answer, and all that was said."""
    from ansible.errors import AnsibleError

    try:
        status, out, err = connection.exec_command(command, in_data=text.encode(), sudoable=True)
    except (AnsibleError, OSError) as error:
        return {"error": _reason(str(error))}, str(error)
    finally:
        connection.close()
    said, errors = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
    found = re.search(rf"^{MARK}(.*)$", said, re.MULTILINE)
    if found:
        answer: dict[str, Any] = json.loads(found[1])
        return answer, said
    return {"error": _reason(errors or said) or f"the program ended with {status}"}, f"{said}{errors}"


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def status(reports: Sequence[Report]) -> int:
    """Return the command's exit status: 1 where a node could not tell, 2 where something differs, else 0."""
    if any("error" in report or not report["applied"] for report in reports):
        return shell.FAILED
    return shell.CHANGES if any(report["items"] for report in reports) else shell.OK


def render(reports: Sequence[Report]) -> Any:
    """Return what differs as a table, and below what was looked at."""
    from rich.console import Group
    from rich.text import Text

    from .status import new_table

    parts: list[Any] = []
    rows = [(report["host"], item) for report in reports for item in report.get("items", ())]
    if rows:
        table = new_table("HOST", "KIND", "NAME", "WHAT", "WHO", "WHEN", right=())
        # a name that is cut off can't be looked for
        table.columns[2].overflow = "fold"
        for host, item in rows:
            cells = (host, item["kind"], item["name"], item["what"], item["who"] or "-", _local(item["when"]) or "-")
            table.add_row(*map(Text, cells))
        parts += [table, Text()]
    for report in reports:
        host = report["host"]
        if "error" in report:
            parts.append(Text(f"{host}: not looked at: {report['error']}", "red"))
        elif not report["applied"]:
            parts.append(Text(f"{host}: no run has left a record of what it manages here. Mend: labrack apply", "red"))
        else:
            count = len(report["items"])
            found = f"{count} {'differs' if count == 1 else 'differ'}" if count else "nothing differs"
            since = _local(report["full_check"])
            parts.append(Text(f"{host}: {found} of {_counted(report['checked'])}; last full check {since}"))
            if report["not_checked"]:
                parts.append(Text(f"{host}: could not look at {_counted(report['not_checked'])}", "yellow"))
    return Group(*parts)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {KINDS[kind] if count > 1 else kind}" for kind, count in counts.items())


def _local(text: str) -> str:
    """Return a time in UTC as this machine's, to the minute."""
    if not text:
        return ""
    then = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return then.astimezone().strftime("%Y-%m-%d %H:%M")
