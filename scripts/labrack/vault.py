# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The password of a lab's vault, and the file with its secrets."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from .shell import UserError

#: What is in the file at first.
TEXT = """\
---
# The lab's secrets, such as tailscale_auth_key. Edit them with: ansible-vault edit inventory/group_vars/all/vault.yml
"""


def default_file(lab: str) -> Path:
    """Return where the password of a lab's vault lies: outside any repository."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "labrack" / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', lab)}.vault"


def password(file: Path) -> tuple[str, bool]:
    """Return the password that a file has, or a new one for it, and whether it is new; nothing is written.

    UserError where the file can't be read, is empty, or everybody may read it.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return secrets.token_urlsafe(32), True
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The vault's password file {file} can't be read: {error}") from None
    if not text:
        raise UserError(f"The vault's password file {file} is empty. Write a password into it, or delete it.")
    if file.stat().st_mode & 0o077:
        raise UserError(f"Others may read the vault's password file {file}. Run: chmod 600 {file}")
    return text, False


def keep(file: Path, password: str) -> None:
    """Write a new password, for the user's eyes alone; UserError where a file is there by now."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"{file} is there by now. Run this again.") from None
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(f"{password}\n")


def encrypted(text: str, password: str) -> str:
    """Return a text as ansible-vault encrypts it."""
    from ansible.parsing.vault import VaultLib, VaultSecret

    secret = VaultSecret(password.encode())
    encrypted: bytes = VaultLib([("default", secret)]).encrypt(text)
    return encrypted.decode()
