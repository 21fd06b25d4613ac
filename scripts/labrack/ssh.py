# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Commands on a lab's nodes over ssh, as the admin or as a researcher, through an ssh configuration file."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from .testnode.docker import LabError, last_lines
from .testnode.node import Lab


class SshError(LabError):
    """A command on a node failed or did not end in time; the message has what it printed last."""


@dataclass(frozen=True)
class Ssh:
    """The way to the nodes that an ssh configuration file describes."""

    config: Path

    def argv(self, target: str, command: str, through: str = "") -> list[str]:
        """The argument list that runs a shell command on ``user@host``, ``through`` another one if that is given."""
        jump = ["-J", through] if through else []
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=20", *jump]
        return ["ssh", "-F", str(self.config), *options, target, command]

    def run(
        self, target: str, command: str, timeout: float = 30.0, through: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on ``user@host``; any exit status is fine. :class:`SshError` after ``timeout`` s."""
        argv = self.argv(target, command, through)
        try:
            return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise SshError(f"{target}: `{command}` did not end within {timeout:.0f} s.") from None

    def output(self, target: str, command: str) -> str:
        """Run a shell command on ``user@host`` and return its standard output; :class:`SshError` when it fails."""
        done = self.run(target, command)
        if done.returncode != 0:
            raise SshError(f"{target}: `{command}` failed: {last_lines(done.stderr or done.stdout)}")
        return done.stdout


def config(lab: Lab, user: str, user_key: Path, domain: str = "", entry: str = "") -> str:
    """The text of an ssh configuration for a lab: root with the admin's key, others with ``user_key``.

    With a ``domain`` also for the nodes' names in the lab's tailnet, into which the node ``entry`` leads.
    """
    lines = ["# Written by `labrack demo up`."]
    for node in lab.nodes if domain else ():
        # what stands first holds
        lines += [
            f"Host {node.name}.{domain}",
            f"    HostName {node.name}.{domain}",
            f"    HostKeyAlias [127.0.0.1]:{node.port}",
            f"    ProxyJump root@{entry}",
        ]
    lines += [
        "Host *",
        "    HostName 127.0.0.1",
        f"    User {user}",
        f'    UserKnownHostsFile "{lab.known_hosts}"',
        "    GlobalKnownHostsFile /dev/null",
        "    StrictHostKeyChecking yes",
        "    IdentitiesOnly yes",
        # a user is matched by what stands above, or on the command line
        "Match user root",
        f'    IdentityFile "{lab.key}"',
        "Match user *,!root",
        f'    IdentityFile "{user_key}"',
    ]
    for node in lab.nodes:
        lines += [f"Host {node.name}", f"    Port {node.port}"]
    return "\n".join(lines) + "\n"
