# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What SkyPilot fetches from the internet for a launch on Slurm, on nodes that have no way there.

A launch asks for uv's installer by curl, lets uv download Python 3.10, and installs SkyPilot's packages with it
(``sky/skylet/constants.py`` of 0.14.1). Here curl answers with an installer that copies the node's own uv, that uv
takes the node's own Python, which SkyPilot's server runs with as well, and the packages are those of the server.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from . import wheels
from .docker import Say, docker
from .node import Node, exec

#: uv as the role baseline has it: version, and the sums of its wheels for x86_64 and aarch64.
UV = """uv==0.13.9 \\
    --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19 \\
    --hash=sha256:5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe
"""
#: Where the stand-ins are on a node.
FOLDER = "/usr/local/lib/labrack-testnode"
#: Comes before the distribution's in everybody's PATH.
CURL = f"""#!/bin/sh
# stands in for the internet, see docs/TESTING.md
case "$*" in
*astral.sh/uv/install.sh*) echo 'mkdir -p "$UV_INSTALL_DIR" && cp {FOLDER}/uv "$UV_INSTALL_DIR/uv"' ;;
*) exec /usr/bin/curl "$@" ;;
esac
"""
UV_WRAPPER = f"""#!/bin/sh
# the node's Python in the place of one that would be downloaded
for word; do
  shift
  if [ "$word" = 3.10 ]; then word=/usr/bin/python3; fi
  set -- "$@" "$word"
done
exec {FOLDER}/uv-real "$@"
"""
UV_SETTINGS = f"""python-downloads = "never"

[[index]]
url = "file://{wheels.INDEX}"
default = true
"""


def equip(node: Node, requirements: str, say: Say) -> str:
    """Put packages and stand-ins onto a node that runs SkyPilot's server or its launches; its index's address.

    ``requirements`` is the text of the role's requirements file. Raises :class:`.docker.LabError`.
    """
    address = wheels.give(node, requirements, say)
    with tempfile.TemporaryDirectory(prefix="labrack-uv-") as work:
        index = wheels.simple_index(Path(work), wheels.python_of(node), UV, say)
        (wheel,) = (index / "uv").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
            program = Path(archive.extract(name, work))
        program.chmod(0o755)
        exec(node, ["mkdir", "-p", FOLDER, "/etc/uv"])
        docker("cp", str(program), f"{node.container}:{FOLDER}/uv-real")
    for path, mode, text in (
        (f"{FOLDER}/uv", "755", UV_WRAPPER),
        ("/usr/local/bin/curl", "755", CURL),
        ("/etc/uv/uv.toml", "644", UV_SETTINGS),
    ):
        exec(node, ["sh", "-c", f"cat >{path} && chmod {mode} {path}"], input=text)
    return address


def catalog(node: Node, homes: Iterable[tuple[str, str]], cards: Iterable[str]) -> None:
    """Write the list of what a card may be called, which SkyPilot downloads elsewhere, into users' homes.

    ``homes`` are users with their homes, ``cards`` names as SkyPilot has them.
    """
    lines = "".join(f'{card},"[]"\\n' for card in cards)
    for user, home in homes:
        place = f"{home}/.sky/catalogs/v8/common"
        script = f"mkdir -p {place} && printf 'AcceleratorName,Clouds\\n{lines}' >{place}/accelerators.csv"
        exec(node, ["runuser", "-u", user, "--", "sh", "-c", script])
