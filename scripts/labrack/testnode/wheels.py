# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Python packages for nodes that reach no package index: a folder that is one, with what a requirements file pins."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement

from .docker import LabError, Say, docker, last_lines, one_at_a_time
from .node import Node, exec

#: Where a node has its index.
INDEX = "/srv/simple"
#: What comes as source alone.
SOURCES = ("python-hostlist",)


def cache() -> Path:
    """Where files are kept between runs, in a folder for each Python, as many have a file for each."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labrack/wheels"


def python_of(node: Node) -> str:
    """The version of a node's own Python, such as ``3.13``."""
    return exec(node, ["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).stdout.strip()


def give(node: Node, requirements: str, say: Say) -> str:
    """Put an index with what the text of a requirements file pins onto a node, and return its address.

    Raises :class:`.docker.LabError` where the packages can't be fetched.
    """
    with tempfile.TemporaryDirectory(prefix="labrack-index-") as folder:
        index = simple_index(Path(folder), python_of(node), requirements, say)
        exec(node, ["rm", "-rf", INDEX])
        docker("cp", str(index), f"{node.container}:{INDEX}")
    return f"file://{INDEX}"


def simple_index(folder: Path, python: str, requirements: str, say: Say = print) -> Path:
    """Fill a folder with the files that a Python (``3.13``) needs, as an index has them, and return the index's.

    ``requirements`` is the text of a requirements file with sums, as ``uv export`` writes it. Files that are kept from
    an earlier run are taken where their sums are right; the others are fetched by pip, as this machine is set up to.
    Raises :class:`.docker.LabError` where that fails.
    """
    wanted = needed(requirements, python)
    kept = cache() / python
    kept.mkdir(parents=True, exist_ok=True)
    with one_at_a_time("wheels"):
        there = {line: _sums(kept, line) for line in wanted}
        missing = {line: sums for line, sums in wanted.items() if not sums & there[line].keys()}
        if missing:
            say(f"Fetching {len(missing)} Python packages")
            _fetch(kept, python, missing)
            there |= {line: _sums(kept, line) for line in missing}
        index = folder / "simple"
        for line, sums in wanted.items():
            name = Requirement(line).name.lower().replace("_", "-")
            project = index / name
            project.mkdir(parents=True, exist_ok=True)
            files = [file for sum, file in there[line].items() if sum in sums]
            for file in files:
                shutil.copyfile(file, project / file.name)
            links = [f'<a href="{file.name}">{file.name}</a>\n' for file in sorted(project.iterdir())]
            (project / "index.html").write_text("".join(link for link in links if "index.html" not in link))
    return index


def needed(requirements: str, python: str) -> dict[str, set[str]]:
    """The lines of a requirements file that count for a Python, as ``name==version``, with the SHA-256 of each file."""
    where = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: dict[str, set[str]] = {}
    for line in requirements.replace("\\\n", " ").splitlines():
        words, *sums = line.split("--hash=sha256:")
        if not words.strip() or words.startswith("#"):
            continue
        wanted = Requirement(words.strip())
        if wanted.marker is None or wanted.marker.evaluate(where):
            found[f"{wanted.name}{wanted.specifier}"] = {one.strip() for one in sums}
    return found


def _sums(kept: Path, line: str) -> dict[str, Path]:
    """The files of a requirement that are kept, of whatever version, by their SHA-256."""
    name = re.escape(Requirement(line).name).replace(r"\-", "[-_.]")
    start = re.compile(rf"{name}-\d", re.IGNORECASE)
    files = [file for file in kept.iterdir() if start.match(file.name)]
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in files}


def _fetch(kept: Path, python: str, missing: Mapping[str, set[str]]) -> None:
    """Let pip download the files into the folder."""
    machine = platform.machine()
    platforms = [
        f"--platform={one}_{machine}" for one in ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux")
    ]
    abis = [f"--abi={one}" for one in (f"cp{python.replace('.', '')}", "abi3", "none")]
    with tempfile.TemporaryDirectory(prefix="labrack-pip-") as work:
        tool, listed = Path(work) / "pip", Path(work) / "requirements.txt"
        commands = [[sys.executable, "-m", "venv", str(tool)]]
        for sources in (False, True):
            lines = {line: sums for line, sums in missing.items() if line.startswith(SOURCES) == sources}
            if not lines:
                continue
            file = listed.with_stem(f"requirements-{sources}")
            file.write_text(
                "".join(f"{line} {' '.join(f'--hash=sha256:{sum}' for sum in sums)}\n" for line, sums in lines.items())
            )
            how = ["--no-binary=:all:"] if sources else ["--only-binary=:all:", f"--python-version={python}"]
            download = [str(tool / "bin/pip"), "download", "--quiet", "--no-deps", "--require-hashes", *how]
            commands.append([*download, *([] if sources else [*abis, *platforms]), "-r", str(file), "-d", str(kept)])
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise LabError(
                    f"The Python packages for the nodes can't be fetched: {last_lines(done.stderr, 3)}. "
                    "Mend this machine's way to PyPI (`pip config list` shows it), then run this again."
                )
