# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real headscale on the loopback interface that checks policies, with people and machines that never connect."""

from __future__ import annotations

import json
import os
import secrets
import string
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

PEOPLE = ("ada", "ben", "cy", "dee")
#: A machine that is each thing alone.
MACHINES = {"head": "tag:lab-head", "node1": "tag:lab-worker", "play": "tag:lab-interactive", "nas": "tag:storage"}
OWNERS = '{"groups": {}, "tagOwners": {%s}}' % ", ".join(f'"{tag}": ["ada@"]' for tag in MACHINES.values())  # noqa: UP031


class Control:
    """The server while it is entered; ``environment`` lets the command ``headscale`` find it."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="labrack-headscale-")
        self.folder = Path(self._folder.name)
        self.policy = self.folder / "policy.hujson"
        self.environment = {
            **os.environ,
            "HEADSCALE_CONFIG": str(self.folder / "config.yaml"),
            "PATH": f"{program.parent}:{os.environ['PATH']}",
        }

    def __enter__(self) -> Control:
        config = {
            "server_url": "http://127.0.0.1:8080",
            "listen_addr": "127.0.0.1:0",
            "metrics_listen_addr": "127.0.0.1:0",
            "grpc_listen_addr": "127.0.0.1:0",
            "noise": {"private_key_path": str(self.folder / "noise.key")},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48"},
            # nothing outside is asked for a map, for updates or to keep logs
            "derp": {"server": {"enabled": False}, "urls": [], "paths": [str(self.folder / "derp.yaml")]},
            "disable_check_updates": True,
            "logtail": {"enabled": False},
            "database": {"type": "sqlite", "sqlite": {"path": str(self.folder / "db.sqlite")}},
            "policy": {"mode": "file", "path": str(self.policy)},
            "dns": {"magic_dns": True, "base_domain": "tailnet.test", "override_local_dns": False},
            "unix_socket": str(self.folder / "headscale.sock"),
        }
        relay = {"regionid": 900, "regioncode": "none", "regionname": "none"}
        node = {"name": "900a", "regionid": 900, "hostname": "127.0.0.1", "ipv4": "127.0.0.1"}
        # its keys are numbers, which JSON has not
        relays = f"regions: {{900: {json.dumps({**relay, 'nodes': [node]})}}}\n"
        (self.folder / "derp.yaml").write_text(relays)
        (self.folder / "config.yaml").write_text(json.dumps(config))
        self.policy.write_text(OWNERS)
        self._log = (self.folder / "log").open("w")
        argv = [str(self._program), "serve"]
        self._server = subprocess.Popen(argv, env=self.environment, stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 30
        while self.run("users", "list", check=False).returncode:
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise RuntimeError(f"headscale did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        for name in PEOPLE:
            self.run("users", "create", name)
            self.join(f"{name}-laptop", name)
        for name, tag in MACHINES.items():
            self.run("nodes", "tag", "--identifier", str(self.join(name, "ada")), "--tags", tag)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.terminate()
        self._server.wait(30)
        self._log.close()
        self._folder.cleanup()

    @property
    def process(self) -> int:
        """The number of the server's process."""
        return self._server.pid

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of headscale's."""
        argv = [str(self._program), *args]
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=check)

    def join(self, name: str, user: str) -> int:
        """Let a machine join that never connects, as somebody's; its id."""
        pending = "hskey-authreq-" + "".join(secrets.choice(string.ascii_letters) for _ in range(24))
        self.run("debug", "create-node", "--key", pending, "--name", name, "--user", user)
        self.run("auth", "register", "--auth-id", pending, "--user", user)
        nodes = json.loads(self.run("nodes", "list", "--output", "json").stdout)
        return int(max(node["id"] for node in nodes))

    def check(self, text: str) -> str:
        """What headscale says of a policy, with its tests; empty for a good one."""
        draft = self.folder / "draft.hujson"
        draft.write_text(text)
        done = self.run("policy", "check", "--file", str(draft), check=False)
        return done.stderr if done.returncode else ""
