# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which keys SkyPilot's server puts into people's ``authorized_keys``, by the files on its host.

Standard library only, no Ansible import. A launch on Slurm adds its user's public key for ``ssh CLUSTER``. The server
makes a pair for each of its accounts when it first launches (``sky/utils/auth_utils.py`` and
``sky/templates/slurm-ray.yml.j2`` of 0.14.1).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ansible_collections.labrack.infra.plugins.module_utils.node_io import read_text

HOME = "/var/lib/skypilot"
#: What the role has made on the server, so that it takes back that alone; no token is in it.
PEOPLE = "/var/lib/labrack/skypilot/people.json"
#: Numbers of accounts: eight digits of a hash, or those of a token (``sky/users/server.py``); no way out of a path.
_ACCOUNT = re.compile(r"[0-9a-z]+(-[0-9a-z]+)*")
#: What the server writes has no options and no comment.
_KEY = re.compile(r"(ssh-(?:rsa|ed25519) AAAA[A-Za-z0-9+/]+={0,3})\s*")


def launch_keys(root: Path = Path("/")) -> dict[str, list[str]]:
    """Return by user name the public keys with which the server here reaches that user's jobs; {} without a server.

    Read by root, and written by the server: nothing but a key comes out of its files.
    """
    try:
        people = json.loads(read_text(root / PEOPLE.lstrip("/")) or "{}")
        accounts = {str(name): [str(one) for one in entry.get("accounts", ())] for name, entry in people.items()}
    except (ValueError, AttributeError, TypeError):
        return {}
    found = {}
    for name, numbers in sorted(accounts.items()):
        texts = [
            read_text(root / HOME.lstrip("/") / ".sky/clients" / number / "ssh/sky-key.pub") or ""
            for number in numbers
            if _ACCOUNT.fullmatch(number)
        ]
        keys = [match[1] for match in map(_KEY.fullmatch, texts) if match]
        if keys:
            found[name] = keys
    return found
