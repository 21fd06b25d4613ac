# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``python -m labrack.testnode up|index|down``: a lab for molecule's create and destroy playbooks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import node, wheels
from .docker import LabError
from .gpus import GpuSpec


def parse_node(text: str) -> node.NodeSpec:
    """A node from ``NAME[:gpus=N][:system=SYSTEM][:driver=DRIVER]``; raises :class:`argparse.ArgumentTypeError`.

    ``driver`` is ``loaded`` (the default), ``none``, or ``nouveau`` for a node where that module has the cards.
    """
    name, *settings = text.split(":")
    spec = node.NodeSpec(name)
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "gpus" and value.isdecimal():
            spec = replace(spec, gpus=(GpuSpec(),) * int(value))
        elif key == "system" and value:
            spec = replace(spec, system=value)
        elif key == "driver" and value in ("loaded", "none", "nouveau"):
            spec = replace(spec, driver=value == "loaded", nouveau=value == "nouveau")
        else:
            expected = "gpus=NUMBER, system=SYSTEM or driver=loaded|none|nouveau"
            raise argparse.ArgumentTypeError(f"{setting!r} in {text!r}: expected {expected}")
    return spec


def parse_group(text: str) -> tuple[str, list[str]]:
    """A group from ``NAME=HOST,HOST``; raises :class:`argparse.ArgumentTypeError`."""
    name, separator, hosts = text.partition("=")
    if not (name and separator and hosts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=HOST,HOST")
    return name, hosts.split(",")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m labrack.testnode", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="make a lab and write its inventory")
    down = commands.add_parser("down", help="take a lab away")
    index = commands.add_parser("index", help="put Python packages onto a node, and print the address of their index")
    for command in (up, down):
        command.add_argument("--lab", required=True, help="name of the lab")
    for command in (up, index, down):
        command.add_argument(
            "--state", required=True, type=Path, help="directory for its key, host keys and nodes.json"
        )
    form = "NAME[:gpus=N][:system=SYSTEM][:driver=DRIVER]"
    index.add_argument("--node", required=True, metavar="NAME")
    index.add_argument("--requirements", required=True, type=Path, help="what the index has, a file with sums")
    up.add_argument("--node", required=True, action="append", type=parse_node, metavar=form)
    up.add_argument("--inventory", type=Path, help="file to write (default: hosts.yml in the state directory)")
    up.add_argument("--group", action="append", default=[], type=parse_group, metavar="NAME=HOST,HOST")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status; the last line of ``up`` is the path of the inventory.

    That of ``index`` is the index's address on the node.
    """
    options = arguments(argv)
    inventory: Path = getattr(options, "inventory", None) or options.state / "hosts.yml"
    try:
        if options.command == "down":
            inventory.unlink(missing_ok=True)
            node.down(options.lab, options.state, print)
            return 0
        if options.command == "index":
            pinned = options.requirements.read_text(encoding="utf-8")
            print(wheels.give(node.load(options.state).node(options.node), pinned, print))
            return 0
        lab = node.up(node.LabSpec(options.lab, tuple(options.node)), options.state, print)
        inventory.write_text(node.inventory_yaml(lab, dict(options.group)), encoding="utf-8")
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    print(inventory)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
