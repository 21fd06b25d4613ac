# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``python -m tests.mirror up|down|fault|mend|build``: the mirror of a lab that runs, from the checkout's root."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from labrack.testnode.docker import LabError
from labrack.testnode.node import container_name
from tests.mirror import build, k3s, serve


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mirror", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="make the tree, and print where it is")
    texts = {"up": "start the mirror", "down": "take it away", "fault": "break it", "mend": "take all faults back"}
    for name, text in texts.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--lab", required=True, help="name of a running lab")
        if name == "up":
            command.add_argument("--variables", type=Path, metavar="FILE", help="write the roles' variables there")
            command.add_argument("--system", default="debian13", help="of the nodes that read them")
        if name == "fault":
            command.add_argument("fault", choices=[fault.value for fault in serve.Fault])
            command.add_argument("prefix", nargs="?", default="/", help="path, as in /compute/cuda/repos/debian13/")
            command.add_argument("--seconds", type=float, default=5.0, help="how long slow is")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    options = arguments(argv)
    try:
        if options.command == "build":
            print(build.ensure_tree(print))
            return 0
        if options.command == "up":
            mirror = serve.up(options.lab, print, None, k3s.ensure_tree(print))
            for name, key in mirror.keys.items():
                print(f"{name}: {key.url} {key.fingerprint}")
            if options.variables:
                inventory = {"all": {"vars": {**serve.variables(mirror, options.system), **k3s.variables()}}}
                options.variables.write_text(json.dumps(inventory, indent=2) + "\n", encoding="utf-8")
            return 0
        if options.command == "down":
            serve.down(options.lab)
            return 0
        mirror = serve.Mirror(options.lab, container_name(options.lab, serve.ALIAS), {})
        if options.command == "mend":
            serve.clear_faults(mirror)
        else:
            serve.set_fault(mirror, serve.Fault(options.fault), options.prefix, options.seconds)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
