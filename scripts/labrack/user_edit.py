# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Entries of ``lab_users``, as ``labrack user`` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.rules_users import key_problem

from . import inventory_edit
from .shell import UserError


def keys(given: Sequence[str]) -> list[str]:
    """Return the lines of public keys, each given as a file or as the line itself; UserError for anything else."""
    lines: list[str] = []
    for one in given:
        file = Path(one).expanduser()
        if any(map(str.isspace, one.strip())):
            found = [one.strip()]
        elif file.is_file():
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                raise UserError(f"--key {one}: this is no file with a public key.") from None
            found = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        else:
            raise UserError(f"--key {one}: there is no such file, and it is no line of a public key.")
        for line in found or [""]:
            problem = key_problem(line) if "PRIVATE KEY" not in line else "this is a private key; give the .pub file"
            if problem:
                # what is in the file may be a secret
                raise UserError(f"--key {one if not any(map(str.isspace, one)) else '(the line)'}: {problem}.")
        lines += found
    return list(dict.fromkeys(lines))


def entry(
    name: str, uid: int | None, groups: Sequence[str], account: str, comment: str, sudo: bool, keys: Sequence[str]
) -> dict[str, Any]:
    """Return an entry, with those keys that say something."""
    values: dict[str, Any] = {
        "name": name,
        "uid": uid,
        "comment": comment,
        "groups": list(groups),
        "account": account,
        "sudo": sudo,
        "keys": list(keys),
    }
    return {key: value for key, value in values.items() if value}


def left(inventory: Sequence[Path], name: str, state: str) -> dict[str, Any]:
    """Return the keys to set for somebody who left; who left may not become root."""
    user = inventory_edit.user(inventory, name)
    if user.get("state") == "absent" != state:
        raise UserError(f"{name} is removed already; locking would bring the account back.")
    sudo = user.get("sudo")
    return {"state": state, **({"sudo": False} if sudo else {})}
