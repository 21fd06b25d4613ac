# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The configuration file of ``labrack gitops``: /etc/labrack/gitops.toml, see docs/GITOPS.md."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS
from ansible_collections.labrack.infra.plugins.module_utils.maintenance_window import Window, WindowError

from . import shell
from .shell import UserError

#: Where the configuration is, and what names another file.
FILE = Path("/etc/labrack/gitops.toml")
VARIABLE = "LABRACK_GITOPS_CONFIG"
#: Ways to a repository. The helper ``ext`` of git would run any command.
_SCHEMES = ("ssh", "https", "http", "file", "git")
_SCP = re.compile(r"[\w.-]+@[\w.-]+:[^-\s][^\s]*")
_INVENTORY = ("inventory",)
_BRANCH = re.compile(r"(?!-)(?!.*\.\.)(?!.*//)[\w./-]+(?<!/)(?<!\.lock)")


@dataclass(frozen=True)
class Config:
    """What a run needs to know; see docs/GITOPS.md for each key."""

    repository: str
    allowed_signers: Path
    state: Path
    branch: str = "main"
    inventory: tuple[str, ...] = _INVENTORY
    max_disruption: str = "restart"
    windows: tuple[Window, ...] = ()
    window_disruption: str = "reboot"
    vault_password_file: Path | None = None
    metrics: Path | None = None
    webhook_file: Path | None = None
    mail: str = ""
    #: Seconds after a first failure, and at most.
    retry: int = 300
    retry_most: int = 21600


#: Each key with its type in the file.
_KEYS: Mapping[str, type] = {
    "repository": str,
    "allowed_signers": str,
    "state": str,
    "branch": str,
    "inventory": list,
    "max_disruption": str,
    "windows": list,
    "window_disruption": str,
    "vault_password_file": str,
    "metrics": str,
    "webhook_file": str,
    "mail": str,
    "retry": int,
    "retry_most": int,
}
_WORDS = {str: "a text", list: "a list of texts", int: "a number"}
_PATHS = ("allowed_signers", "state", "vault_password_file", "metrics", "webhook_file")


def load(path: Path) -> Config:
    """Return the configuration of a file; UserError, with file, key, value and mend, where something is wrong."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"There is no {path}. Set it up with `labrack gitops install`, or name the file with --config."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no TOML: {error}") from None
    problems = list(_problems(found))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    values: dict[str, Any] = dict(found)
    for key in _PATHS:
        if values.get(key):
            values[key] = Path(values[key])
    values["inventory"] = tuple(values.get("inventory", _INVENTORY))
    values["windows"] = tuple(Window.read(text) for text in values.get("windows", ()))
    values.setdefault("state", shell.state_home() / "gitops")
    config = Config(**values)
    _check_signers(config)
    return config


def _problems(found: Mapping[str, Any]) -> list[str]:
    problems = []
    for key, value in found.items():
        kind = _KEYS.get(key)
        if kind is None:
            problems.append(f"{key} is no key. Mend: take it out; there are {', '.join(_KEYS)}")
        elif type(value) is not kind or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            problems.append(f"{key} = {_shown(key, value)} is not {_WORDS[kind]}")
    if problems:
        return problems
    for key in ("repository", "allowed_signers"):
        if not found.get(key):
            problems.append(f"{key} is missing")
    problems += _repository_problems(found.get("repository", ""))
    branch = found.get("branch", Config.branch)
    if not _BRANCH.fullmatch(branch):
        problems.append(f'branch = "{branch}" is no name of a branch')
    for key in _PATHS:
        if key in found and not Path(found[key]).is_absolute():
            problems.append(f'{key} = "{found[key]}" is no absolute path')
    if not found.get("inventory", _INVENTORY):
        problems.append('inventory = [] names none. Mend: write ["inventory"], paths in the repository')
    for path in found.get("inventory", ()):
        parts = Path(path).parts
        if not parts or Path(path).is_absolute() or ".." in parts or ".git" in parts:
            problems.append(f'inventory has "{path}", which is no path inside the repository')
    for key in ("max_disruption", "window_disruption"):
        if key in found and found[key] not in DISRUPTIONS:
            problems.append(f'{key} = "{found[key]}" is none of {", ".join(DISRUPTIONS)}')
    for text in found.get("windows", ()):
        try:
            Window.read(text)
        except WindowError as error:
            problems.append(f"windows: {error}")
    for key in ("retry", "retry_most"):
        if key in found and found[key] < 1:
            problems.append(f"{key} = {found[key]} is less than a second")
    if found.get("mail") and not re.fullmatch(r"[^@\s,<>-][^@\s,<>]*(@[\w.-]+)?", found["mail"]):
        problems.append(f'mail = "{found["mail"]}" is no address')
    return problems


def _repository_problems(url: str) -> list[str]:
    parts = urlsplit(url)
    if not url or url.startswith("/") or _SCP.fullmatch(url):
        return []
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        return [
            "repository holds a user name or a password, which would be seen by others. Mend: use a deploy key and "
            "ssh, or put them into ~/.netrc of the user that runs it"
        ]
    if parts.scheme not in _SCHEMES or "::" in url.partition("/")[0]:
        return [
            f'repository = "{url}" is no address. Mend: write it as git@git.example.org:lab/closet.git, '
            "https://git.example.org/lab/closet.git or /srv/git/closet.git"
        ]
    return []


def _shown(key: str, value: object) -> str:
    # an address may hold a password
    return "(not shown)" if key == "repository" else repr(value)


def _check_signers(config: Config) -> None:
    """Refuse a list of signers that others than root and this user can change, or that the repository brings."""
    path = config.allowed_signers
    try:
        info = path.stat()
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"allowed_signers {path} can't be read: {error}") from None
    if path.resolve().is_relative_to(config.state.resolve()):
        raise UserError(f"allowed_signers {path} lies in {config.state}, where the repository's files are. Move it.")
    if info.st_uid not in (0, os.getuid()) or stat.S_IMODE(info.st_mode) & 0o022:
        raise UserError(
            f"allowed_signers {path} can be changed by others, so it proves nothing. Mend: "
            f"chown root {path}; chmod 0644 {path}"
        )
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        raise UserError(
            f"allowed_signers {path} names nobody. Mend: add a line for each who may sign, as ssh-keygen(1) has it "
            "under ALLOWED SIGNERS: ada@example.org ssh-ed25519 AAAA…"
        )
