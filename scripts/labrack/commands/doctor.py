# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``labrack doctor``: what can be known before a change."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
