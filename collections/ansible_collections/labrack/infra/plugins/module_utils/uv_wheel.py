# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""uv's programs from its wheel, as PyPI or a mirror of it serves it, checked before anything is written.

An index has a page per project with links to its files (PEP 503); a folder ``uv`` that a web server lists is one too.
A wheel is a zip file whose programs lie in ``uv-VERSION.data/scripts`` (binary distribution format).
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping
from html.parser import HTMLParser

from ansible_collections.labrack.infra.plugins.module_utils.node_io import run

#: Where everybody finds the programs.
FOLDER = "/usr/local/bin"
PROGRAMS = (f"{FOLDER}/uv", f"{FOLDER}/uvx")
#: Seconds without a byte, and the most bytes of a page or a wheel, after which a server is given up.
PATIENCE = 60.0
LIMIT = 200 * 2**20
EXAMPLE = "https://pypi.org/simple"


class UvError(RuntimeError):
    """uv could not be had; the message names the variable, what is wrong and the mend."""


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if tag == "a" and key == "href" and value]


def observe_programs() -> dict[str, str]:
    """Return the version that each of the programs says it has, "" for one that does not run; by path."""
    found = {}
    for path in PROGRAMS:
        if os.path.lexists(path):
            words = run([path, "--version"], timeout=20).out.split()
            found[path] = words[1] if len(words) > 1 and words[0] == os.path.basename(path) else ""
    return found


def wheel_link(page: str, address: str, version: str, arch: str) -> str | None:
    """Return the address of the wheel for a machine with glibc (``uname -m`` is ``arch``), None where there is none.

    ``page`` is the index's page for uv, ``address`` where it came from.
    """
    links = _Links()
    links.feed(page)
    name = re.compile(rf"uv-{re.escape(version)}-py3-none-\S*manylinux\S*_{re.escape(arch)}\b\S*\.whl")
    for link in links.found:
        whole = urllib.parse.urljoin(address, link)
        parts = urllib.parse.urlsplit(whole)
        if name.fullmatch(urllib.parse.unquote(parts.path).rpartition("/")[2]) and parts.scheme in ("http", "https"):
            return whole
    return None


def read_programs(wheel: bytes, version: str, digest: str) -> dict[str, bytes]:
    """Return the programs in a wheel by path, after its SHA-256 was found to be ``digest`` (UvError)."""
    found = hashlib.sha256(wheel).hexdigest()
    if found != digest:
        raise UvError(
            f"baseline_uv_sha256: the wheel of uv {version} has the sum {found}, not {digest}, so nothing was "
            "installed. Mend: give the sum that PyPI shows for this version, or mend the mirror."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            return {
                path: archive.read(f"uv-{version}.data/scripts/{os.path.basename(path)}")  # no name of the archive's
                for path in PROGRAMS
            }
    except (zipfile.BadZipFile, KeyError) as error:
        raise UvError(f"the wheel of uv {version} has not the programs where they were expected ({error})") from error


def fetch(url: str, version: str, arch: str, digests: Mapping[str, str]) -> dict[str, bytes]:
    """Return uv's programs by path, from the index at ``url`` (UvError); ``digests`` are SHA-256 by architecture."""
    if arch not in digests:
        raise UvError(f"baseline_uv_sha256 has no sum for {arch}. Mend: add that of uv {version}'s wheel from PyPI.")
    page, address = _get(f"{url.rstrip('/')}/uv/")
    link = wheel_link(page.decode("utf-8", "replace"), address, version, arch)
    if link is None:
        raise UvError(
            f"baseline_uv_url: {address} has no wheel of uv {version} for {arch}. Mend: name an index that has it, or "
            'another baseline_uv_version with its sums; "" leaves uv out.'
        )
    return read_programs(_get(link)[0], version, digests[arch])


def install(programs: Mapping[str, bytes], version: str) -> None:
    """Put the programs in place, each by rename, after every one of them has shown that it runs (UvError, OSError)."""
    # beside their place, for the rename, and side by side, as uvx runs the uv next to it
    with tempfile.TemporaryDirectory(prefix=".labrack-", dir=FOLDER) as folder:
        drafts = {path: os.path.join(folder, os.path.basename(path)) for path in programs}
        for path, draft in drafts.items():
            with open(draft, "wb") as stream:
                stream.write(programs[path])
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(draft, 0o755)  # noqa: S103
        for draft in drafts.values():
            done = run([draft, "--version"], timeout=20)
            if done.rc or version not in done.out.split():
                words = done.err.strip() or done.out.strip() or f"exit status {done.rc}"
                raise UvError(f"uv {version} does not run on this machine: {words}; nothing was installed")
        for path, draft in drafts.items():
            os.rename(draft, path)


def _get(address: str) -> tuple[bytes, str]:
    """The body of an address, and where it came from after redirects."""
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise UvError(f"baseline_uv_url: {address} is no http or https address. Mend: write it as {EXAMPLE}.")
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:  # noqa: S310  (http and https alone)
            body: bytes = answer.read(LIMIT + 1)
            came_from: str = answer.geturl()
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise UvError(
            f"baseline_uv_url: {address} gives no answer ({why}). Mend: name an index that this node reaches, as "
            'docs/AIRGAP.md has it, or leave uv out with baseline_uv_version: "".'
        ) from error
    if len(body) > LIMIT:
        raise UvError(f"baseline_uv_url: {address} is larger than {LIMIT // 2**20} MiB, which no wheel of uv is")
    return body, came_from
