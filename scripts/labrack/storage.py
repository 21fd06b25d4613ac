# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who uses what of a lab's storage, read by the playbook ``labrack.infra.storage_report``, as tables."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ansible_collections.labrack.infra.plugins.module_utils import quota_plan

from .progress import Step
from .run import run_playbook
from .status import new_table

PLAYBOOK = "labrack.infra.storage_report"
#: One host's part of the document; RETURN of the module ``storage_report`` and ``module_utils/storage_report.py``.
Report = Mapping[str, Any]


def read(inventory: Sequence[Path], log: Path, step: Step) -> list[Report]:
    """Return the reports of the hosts that have directories; :class:`.run.RunError` where one can't be asked."""
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        file = Path(folder) / "storage.json"
        run_playbook(PLAYBOOK, inventory, log, step, variables={"storage_report_file": str(file)})
        reports: list[Report] = json.loads(file.read_text(encoding="utf-8"))
    return reports


def render(reports: Sequence[Report], now: float | None = None) -> RenderableType:
    """Return the tables: directories, then people and projects with what they use and may use."""
    if not any(report["directories"] for report in reports):
        return Text("The inventory has no lab_directories that labrack makes.")
    now = time.time() if now is None else now
    parts: list[RenderableType] = [_directories(reports)]
    users = [(report["host"], row) for report in reports for row in report["users"]]
    projects = [(report["host"], row) for report in reports for row in report["projects"]]
    if users:
        rows = new_table("HOST", "USER", "ON", "USED", "SOFT", "HARD", "OVER SINCE", right=("USED", "SOFT", "HARD"))
        # who has most comes first
        for host, row in sorted(users, key=lambda one: -(one[1]["used"] or 0)):
            rows.add_row(Text(host), Text(row["name"]), Text(", ".join(row["directories"])), *_figures(row, now))
        parts += [Text(), rows]
    elif any(row["user_quotas"] == quota_plan.OFF for report in reports for row in report["directories"]):
        parts += [Text("\nWho uses what is not counted: the file systems have no quotas.")]
    if projects:
        rows = new_table("HOST", "PROJECT", "USED", "SOFT", "HARD", "OVER SINCE", right=("USED", "SOFT", "HARD"))
        for host, row in projects:
            rows.add_row(Text(host), Text(row["path"]), *_figures(row, now))
        parts += [Text(), rows]
    return Group(*parts)


def _directories(reports: Sequence[Report]) -> RenderableType:
    rows = new_table("HOST", "DIRECTORY", "SIZE", "FREE", "QUOTAS", "", right=("SIZE", "FREE"))
    for report in reports:
        for row in report["directories"]:
            where = (Text(report["host"]), Text(row["path"]))
            if not row["mounted"]:
                rows.add_row(*where, "-", "-", "-", Text(f"{row['filesystem']} is not mounted", "red"))
                continue
            kinds = [kind for kind in ("user", "project") if row[f"{kind}_quotas"] == quota_plan.ENFORCED]
            sizes = quota_plan.words(row["size"]), quota_plan.words(row["free"])
            rows.add_row(*where, *sizes, ", ".join(kinds) or "-", "")
    return rows


def _figures(row: Mapping[str, Any], now: float) -> tuple[Text, ...]:
    if row["used"] is None:
        return (Text("-"),) * 4
    full = bool(row["hard"]) and row["used"] >= row["hard"]
    over = row["over_since"] is not None
    used = Text("0" if not row["used"] else quota_plan.words(row["used"]), "red" if full else "yellow" if over else "")
    limits = (Text("-" if not row[key] else quota_plan.words(row[key])) for key in ("soft", "hard"))
    since = Text(f"{(now - row['over_since']) / 86400:.1f} days" if over else "")
    return used, *limits, Text("full", "red") if full and not over else since
