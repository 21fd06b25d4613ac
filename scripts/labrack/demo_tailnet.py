# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The demo's own tailnet: real tailscaled on every node, real headscale on the head, and no way out of the lab.

Both are built from source, and come to the nodes from the mirror of the tests. Neither is in an installed package, so
this works in a checkout only.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from .shell import home
from .story import HEAD
from .testnode import tailnet
from .testnode.docker import LabError, Say, docker
from .testnode.node import Lab

#: The control server's name, and the domain of the nodes' names, as inventories/demo/group_vars/demo_tailnet.yml has.
CONTROL, DOMAIN = "control.demo.test", "tailnet.test"
#: Kept in the demo's state directory: the variables by which the roles find the mirror. The tailnet is there with it.
VARIABLES = "tailnet.json"
#: The roles that make the tailnet, by their tags.
TAGS = ("headscale", "tailscale")
INSTEAD = "or run `labrack demo up` without --tailnet"


def ensure_programs(system: str, say: Say) -> str:
    """Build the programs where that wasn't done yet; what is there then, in words.

    Raises :class:`.testnode.docker.LabError` where they can't be built, or not for nodes of ``system``.
    """
    suites = _tests("mirror.tailnet").SYSTEM_SUITES
    if system not in suites:
        raise LabError(f"--tailnet has packages for {' and '.join(suites)}, not for {system}: take one, {INSTEAD}.")
    binaries = _tests("tailnet.binaries")
    try:
        binaries.ensure(say)
    except binaries.NoBinariesError as error:
        mend = f"Mend that (Go is at https://go.dev/dl/), {INSTEAD}."
        raise LabError(f"--tailnet builds Tailscale and headscale from source, and can't: {error}. {mend}") from None
    return f"Tailscale {binaries.TAILSCALE}, headscale {binaries.HEADSCALE}"


def prepare(lab: Lab, system: str, state_dir: Path, say: Say) -> None:
    """Start the mirror, cut the nodes off from everything else, and equip them for the roles of :data:`TAGS`."""
    serve, packages = _tests("mirror.serve"), _tests("mirror.tailnet")
    serve.down(lab.name)
    tree = packages.ensure_tree(say)
    mirror = serve.up(lab.name, say, tree)
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = docker("inspect", "--format", template, mirror.container).stdout.strip()
    say("Cutting the nodes off from all other networks")
    tailnet.cut_off(lab, {serve.ALIAS: address})
    tailnet.equip(lab, HEAD, CONTROL)
    text = json.dumps(packages.variables(mirror, tree, system), indent=2)
    (state_dir / VARIABLES).write_text(text + "\n", encoding="utf-8")


def variables(state_dir: Path) -> dict[str, Any] | None:
    """The roles' variables of the tailnet that the demo has; None where it has none."""
    try:
        found: dict[str, Any] = json.loads((state_dir / VARIABLES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _tests(name: str) -> Any:
    """A module below the checkout's tests/; :class:`.testnode.docker.LabError` where there is no checkout."""
    if not (home() / "tests/mirror").is_dir():
        raise LabError(
            "--tailnet works in a checkout of labrack only, where it builds Tailscale and headscale from source. "
            f"Run `make demo` there once, then `.venv/bin/labrack demo up --tailnet`; {INSTEAD}."
        )
    if str(home()) not in sys.path:
        sys.path.insert(0, str(home()))
    return importlib.import_module(f"tests.{name}")
