# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The real tailscale, tailscaled and headscale, built by ``go install`` at pinned versions, once, under .cache/go.

With them comes what their packages hold besides, from the same modules: units, defaults, maintainer scripts, the
example of headscale's configuration. Module versions are verified by Go's checksum database, as for every Go program.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labrack.testnode.docker import LabError, Say, last_lines

CACHE = Path(__file__).resolve().parents[2] / ".cache/go"
TAILSCALE, HEADSCALE = "1.102.3", "0.29.2"
#: Where Go's own archive puts it, which need not be on the path.
INSTALLED = "/usr/local/go/bin/go"
#: What the newest of the two modules' go.mod asks for.
GO = (1, 26, 6)
#: Module -> its version, and the packages to install from it.
MODULES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tailscale.com": (TAILSCALE, ("cmd/tailscale", "cmd/tailscaled")),
    "github.com/juanfont/headscale": (HEADSCALE, ("cmd/headscale",)),
}
#: Directory of a module -> where it is kept below the build.
FILES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "tailscale.com": (
        ("cmd/tailscaled/tailscaled.service", "tailscale"),
        ("cmd/tailscaled/tailscale-online.target", "tailscale"),
        ("cmd/tailscaled/tailscale-wait-online.service", "tailscale"),
        ("cmd/tailscaled/tailscaled.defaults", "tailscale"),
        ("release/deb/debian.postinst.sh", "tailscale"),
        ("release/deb/debian.prerm.sh", "tailscale"),
        ("release/deb/debian.postrm.sh", "tailscale"),
    ),
    "github.com/juanfont/headscale": (
        ("config-example.yaml", "headscale"),
        ("packaging/systemd/headscale.service", "headscale"),
        ("packaging/deb/postinst", "headscale"),
        ("packaging/deb/prerm", "headscale"),
        ("packaging/deb/postrm", "headscale"),
        ("LICENSE", "headscale"),
    ),
}
#: The programs, in the directory bin of a build.
PROGRAMS = ("tailscale", "tailscaled", "headscale")
#: The linker leaves out what only a debugger reads; the stamps are those of upstream's build_dist.sh.
STAMPS = ("tailscale.com/version.shortStamp", "tailscale.com/version.longStamp")
LINK = f"-ldflags=-s -w {' '.join(f'-X {name}={TAILSCALE}' for name in STAMPS)}"


class NoBinariesError(LabError):
    """The programs can't be had on this machine, through no fault of ours; the message is the reason to skip."""


def ensure(say: Say) -> Path:
    """The directory with the programs in ``bin/``, and their modules' files in ``tailscale/`` and ``headscale/``.

    Built first where no build of these versions with this Go is there; a second run waits for the first. Raises
    :class:`NoBinariesError` where Go or the module proxy can't be had, and :class:`.docker.LabError` where a build
    fails that had both.
    """
    go, version = find_go()
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / build_hash(version)
    with _locked(CACHE / "lock"):
        if not target.is_dir():
            _build(go, version, target, say)
    return target


def find_go() -> tuple[str, str]:
    """The path of a new enough ``go`` and its version; :class:`NoBinariesError` where there is none."""
    wanted = ".".join(map(str, GO))
    seen = []
    for candidate in (shutil.which("go"), INSTALLED):
        if candidate and Path(candidate).is_file():
            # its own version: it may otherwise fetch another one to answer
            text = _run([candidate, "env", "GOVERSION"], {"GOTOOLCHAIN": "local"}).stdout.strip()
            if new_enough(text):
                return candidate, text
            seen.append(text)
    raise NoBinariesError(f"no Go {wanted} or newer is installed" + (f", only {', '.join(seen)}" if seen else ""))


def new_enough(version: str) -> bool:
    """Whether ``go1.26.8`` is at least :data:`GO`; a release candidate of it isn't."""
    found = re.fullmatch(r"go(\d+)\.(\d+)(?:\.(\d+))?(?: .*)?", version)
    return found is not None and tuple(int(part or 0) for part in found.groups()) >= GO


def build_hash(version: str) -> str:
    """Twelve hexadecimal digits that change with the programs' versions, their files, Go's version and the flags."""
    inputs = (sorted(MODULES.items()), sorted(FILES.items()), LINK, version)
    return hashlib.sha256(repr(inputs).encode()).hexdigest()[:12]


def _build(go: str, version: str, target: Path, say: Say) -> None:
    started = time.monotonic()
    modules = {name: _download(go, name, wanted) for name, (wanted, _) in MODULES.items()}
    say(f"Building Tailscale {TAILSCALE} and headscale {HEADSCALE} with {version}; this takes minutes the first time")
    cache, proxies = _run([go, "env", "GOMODCACHE", "GOPROXY"], {}).stdout.splitlines()
    # not every proxy lists a module's versions, and `go install` wants the list: what is here comes first
    environment = {"GOPROXY": f"file://{cache}/cache/download,{proxies}", "CGO_ENABLED": "0"}
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        out = Path(temporary) / "out"
        for name, (wanted, packages) in MODULES.items():
            names = [f"{name}/{package}@v{wanted}" for package in packages]
            done = _run([go, "install", LINK, *names], {**environment, "GOBIN": str(out / "bin")})
            if done.returncode != 0:
                raise _failure(f"go install {' '.join(names)}", done.stderr)
            for path, folder in FILES[name]:
                (out / folder).mkdir(exist_ok=True)
                shutil.copyfile(Path(modules[name]["Dir"]) / path, out / folder / Path(path).name)
        out.rename(target)
    say(f"Built in {time.monotonic() - started:.0f} s")


def _download(go: str, module: str, version: str) -> dict[str, Any]:
    """What ``go mod download`` says of a module that is here then."""
    done = _run([go, "mod", "download", "-json", f"{module}@v{version}"], {})
    answer: dict[str, Any] = json.loads(done.stdout or "{}")
    if done.returncode != 0:
        raise _failure(f"{module}@v{version}", answer.get("Error") or done.stderr)
    return answer


def _failure(what: str, words: str) -> LabError:
    """The error for what Go said: a network that isn't there is a reason to skip, anything else is none."""
    line = last_lines(words, 3)
    if re.search(r"dial tcp|no such host|i/o timeout|connection refused|unreachable|GOPROXY=off|proxyconnect", words):
        return NoBinariesError(f"no Go module proxy can be reached: {line}")
    return LabError(f"{what} could not be built: {line}")


def _run(argv: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", **variables}
    # go.mod files above this directory are not this build's
    return subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=tempfile.gettempdir())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
