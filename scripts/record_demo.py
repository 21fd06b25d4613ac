# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Record ``labrack demo up`` as the README's picture, docs/demo.svg. No demo may be up before; none is after."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from labrack import demo
from labrack.progress import Progress
from labrack.shell import home


def main() -> None:
    """Bring the demo up as ``make demo`` does, save what it printed, and take it down."""
    console = Console(record=True, width=140, highlight=False)
    console.print(Text.assemble(("$ ", "dim"), ("make demo", "bold")))
    try:
        demo.up("debian13", True, Progress(console))
        console.save_svg(str(home() / "docs/demo.svg"), title="labrack", unique_id="demo")
    finally:
        demo.down(Progress(Console(file=sys.stderr)))


if __name__ == "__main__":
    main()
