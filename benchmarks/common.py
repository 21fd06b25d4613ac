# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the benchmarks have in common: options, the machine that they ran on, and where their figures go."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.nodes.harness import ROOT


def parser(name: str, doc: str | None, lab: str = "") -> argparse.ArgumentParser:
    """Return the options of a benchmark; one that measures on nodes in containers says what its ``lab`` is called."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=ROOT / f".cache/benchmarks/{name}.json", help="for the figures")
    if lab:
        made.add_argument("--system", default="debian13", help="system of the nodes")
        made.add_argument("--lab", default=lab, help="name of the lab")
    return made


def machine(options: argparse.Namespace) -> str:
    """Return the machine in words, with the nodes' system where there are nodes."""
    parts = [f"{os.cpu_count()} cores", f"Python {platform.python_version()}", getattr(options, "system", "")]
    return ", ".join(filter(None, parts))


def record(options: argparse.Namespace, figures: Mapping[str, Any], text: str) -> None:
    """Write the figures as JSON, and print their table."""
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(text)
