# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build the collection's tarball in ``dist/`` from the same list of files as the wheel.

``ansible-galaxy collection build`` in the checkout would leave out roles and playbooks, which are links to directories
outside the collection.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def stage(into: Path) -> Path:
    """Copy the collection's part of the wheel to ``into`` and return the collection's directory in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for source, destination in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        if not destination.startswith("ansible_collections/"):
            continue
        target = into / destination
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / source, target)
    return into / "ansible_collections" / "labrack" / "infra"


def build(output: Path) -> Path:
    """Build the tarball in the directory ``output`` and return its path; raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as scratch:
        collection = stage(Path(scratch))
        galaxy = str(Path(sys.executable).with_name("ansible-galaxy"))
        command = [galaxy, "collection", "build", "--force", "--output-path", str(output.resolve())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=collection)
    (tarball,) = output.glob("labrack-infra-*.tar.gz")
    return tarball


if __name__ == "__main__":
    print(build(ROOT / "dist"))
