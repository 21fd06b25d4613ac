# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""headscale by its command, on the machine that runs it. No Ansible import.

Commands and answers were taken from headscale 0.29.2 (``cmd/headscale/cli/{nodes,policy}.go``).
"""

from __future__ import annotations

import json
import tempfile
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, run

#: The server need not run for these, but then must not run: they open its database themselves.
DIRECTLY = ("--bypass-grpc-and-access-database-directly", "--force")
NO_SERVER = "connecting to headscale"


class HeadscaleError(RuntimeError):
    """A command of headscale that failed; the message holds what it said."""


def nodes() -> list[dict[str, Any]]:
    """Return the nodes as ``headscale nodes list`` has them; HeadscaleError when it can't be asked."""
    found: list[dict[str, Any]] = json.loads(_good(run(["headscale", "nodes", "list", "--output", "json"])).out) or []
    return found


def runs() -> bool:
    """Return whether the server answers (HeadscaleError: the command is not there)."""
    done = run(["headscale", "users", "list", "--output", "json"])
    if done.rc == 127:
        raise HeadscaleError("headscale is not installed on this machine. Mend: run this on the control server")
    return not done.rc


def policy() -> str:
    """Return the policy in the database, empty when there is none yet."""
    done = run(["headscale", "policy", "get"])
    if done.rc and "not found" in done.err:
        return ""
    return _good(done).out


def check(text: str, server_runs: bool) -> str:
    """Return what headscale finds wrong in a policy, with its users, nodes and tests; empty for nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".hujson", encoding="utf-8") as draft:
        draft.write(text)
        draft.flush()
        done = run(["headscale", "policy", "check", "--file", draft.name, *(() if server_runs else DIRECTLY)])
    return _words(done) if done.rc else ""


def set_policy(text: str) -> None:
    """Put a policy into the database and in force (HeadscaleError when headscale refuses it)."""
    with tempfile.NamedTemporaryFile("w", suffix=".hujson", encoding="utf-8") as draft:
        draft.write(text)
        draft.flush()
        _good(run(["headscale", "policy", "set", "--file", draft.name]))


def expire(node: str) -> None:
    """Let a node's key expire: it must log in again to come back."""
    _good(run(["headscale", "nodes", "expire", "--identifier", node, "--output", "json"]))


def keys() -> list[dict[str, Any]]:
    """Return the pre-auth keys as ``headscale preauthkeys list`` has them, whole keys left out (HeadscaleError)."""
    found: list[dict[str, Any]] = json.loads(_good(run(["headscale", "preauthkeys", "list", "--output", "json"])).out)
    return found or []


def expire_key(number: str) -> None:
    """Let a pre-auth key expire: nobody joins with it any more (HeadscaleError)."""
    _good(run(["headscale", "preauthkeys", "expire", "--id", number, "--output", "json"]))


def _good(done: Done) -> Done:
    if done.rc:
        raise HeadscaleError(_words(done))
    return done


def _words(done: Done) -> str:
    """Return what a command said, without gRPC's own words."""
    text = (done.err or done.out).strip()
    return text.rpartition("desc = ")[2].strip() if "desc = " in text else text.replace("Error: ", "", 1)
