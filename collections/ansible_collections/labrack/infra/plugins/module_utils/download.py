# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fetching a release's file. Standard library only, no Ansible import."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

#: Seconds that a server may be silent.
TIMEOUT = 60.0


class DownloadError(RuntimeError):
    """A file that can't be had; the message says cause and mend."""


def download(url: str, target: Path, check: str) -> str:
    """Fetch a file, and return its SHA-256; DownloadError when it can't be had.

    ``check`` are the variables that a server's refusal is mended by.
    """
    digest = hashlib.sha256()
    # some servers turn Python's own name away
    request = urllib.request.Request(url, headers={"User-Agent": "labrack"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, target.open("wb") as file:  # noqa: S310
            while block := answer.read(1 << 20):
                digest.update(block)
                file.write(block)
    except urllib.error.HTTPError as error:
        raise DownloadError(
            f"{url}: the server answers {error.code} {error.reason}; nothing was installed. Mend: check {check}"
        ) from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(f"{url} can't be fetched: {reason}. Mend: check the node's network") from None
    return digest.hexdigest()
