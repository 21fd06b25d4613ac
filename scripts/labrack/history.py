# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The runs that were, as the callback ``labrack.infra.record`` has kept them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.plugin_utils import run_record


@dataclass(frozen=True)
class Run:
    """One run; the fields are the keys of a line of the history.

    ``started`` and ``ended`` are ISO 8601 in UTC, ``commit`` is the inventory's ("" without one, ``-dirty`` at its end
    where files differ from it), ``rc`` is ansible-playbook's. ``hosts`` has for each ``changed`` (int), ``pending``
    (subject, summary, disruption), ``failed`` (words, or "") and ``unreachable``; ``roles`` has seconds.
    """

    started: str
    ended: str
    playbook: str
    check: bool
    tags: tuple[str, ...]
    limit: str
    commit: str
    by: str
    rc: int
    hosts: Mapping[str, Mapping[str, Any]]
    roles: Mapping[str, float]


def read(state: Path) -> list[Run]:
    """Return the runs of the lab with this state directory, the newest last; what is damaged is left out."""
    names = {field.name for field in fields(Run)}
    return [
        Run(**{**{name: run[name] for name in names}, "tags": tuple(run["tags"])})
        for run in run_record.read(state / run_record.FILE)
        if names <= {*run}
    ]
