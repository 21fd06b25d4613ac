# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The Docker engine, spoken to through its command line."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Takes one plain line of progress.
Say = Callable[[str], None]

#: What is copied into the image: the Dockerfile and its inputs.
DATA = Path(__file__).parent / "data"


class LabError(RuntimeError):
    """A lab can't be made or reached; the message says what is wrong and what mends it."""


def docker(
    *argv: str, input: str | bytes | None = None, check: bool = True, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``docker ARGV``; both streams come back as text.

    Raises :class:`LabError` with the command's own last lines when ``check`` is set and it fails, and
    :class:`subprocess.TimeoutExpired` after ``timeout`` seconds.
    """
    data = input.encode() if isinstance(input, str) else input
    done = subprocess.run(["docker", *argv], input=data, capture_output=True, check=False, timeout=timeout)
    result = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
    if check and result.returncode != 0:
        raise LabError(f"docker {argv[0]} failed ({result.returncode}): {last_lines(result.stderr or result.stdout)}")
    return result


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Wait until no other process of this user is in a block of that name."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labrack"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def last_lines(text: str, count: int = 15) -> str:
    """The last ``count`` lines of a command's output, stripped."""
    return "\n".join(text.strip().splitlines()[-count:])
