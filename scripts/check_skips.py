# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``check_skips.py docs/TESTING.md DIRECTORY``: refuse skipped tests that the document doesn't list, and count all.

The document has a section "Skips" with a table of test and reason. A test is ``path::name`` without parameters, or the
path of a module that is skipped as a whole; its reason is the text that pytest gives. A ``*`` in either stands for any
text. An expected failure counts as a skip.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True)
class Outcome:
    """How one test ended: ``kind`` is passed, failed or skipped."""

    test: str
    kind: str
    reason: str = ""


def read_outcomes(report: str) -> list[Outcome]:
    """Return the outcomes in a JUnit report as pytest writes it with ``junit_family=xunit1``."""
    return [_outcome(case) for case in ElementTree.fromstring(report).iter("testcase")]  # noqa: S314 (pytest's own)


def _outcome(case: ElementTree.Element) -> Outcome:
    whole_module = not case.get("classname")
    name = case.get("name", "").partition("[")[0]
    test = case.get("file", name) if whole_module else f"{case.get('file')}::{name}"
    if case.find("failure") is not None or case.find("error") is not None:
        return Outcome(test, "failed")
    skipped = case.find("skipped")
    if skipped is None:
        return Outcome(test, "passed")
    if whole_module:  # pytest puts path, line and reason in the text
        return Outcome(test, "skipped", ast.literal_eval(skipped.text or "")[2].removeprefix("Skipped: "))
    return Outcome(test, "skipped", skipped.get("message", ""))


def read_table(document: str) -> list[tuple[str, str]]:
    """Return test and reason of each row in the section "Skips" of a Markdown document."""
    section = re.search(r"^#+ Skips\n(.*?)(?=^#+ |\Z)", document, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\|(.+?)\|(.+?)\|\s*$", section.group(1) if section else "", re.MULTILINE)
    return [(test.strip().strip("`"), reason.strip()) for test, reason in rows[2:]]


def unlisted(outcomes: Iterable[Outcome], table: Sequence[tuple[str, str]]) -> list[Outcome]:
    """Return the skipped outcomes for which the table has no row."""
    return [
        outcome
        for outcome in outcomes
        if outcome.kind == "skipped"
        and not any(_matches(test, outcome.test) and _matches(reason, outcome.reason) for test, reason in table)
    ]


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text, re.DOTALL) is not None


def main(document: Path, reports: Path) -> int:
    """Print unlisted skips and the count of all tests; return 1 if there is such a skip, a failure, or no test."""
    outcomes = [outcome for report in sorted(reports.glob("*.xml")) for outcome in read_outcomes(report.read_text())]
    wrong = unlisted(outcomes, read_table(document.read_text()))
    for outcome in wrong:
        print(f"{outcome.test} was skipped ({outcome.reason}): run it, or list it in {document} under Skips")
    count = {kind: sum(outcome.kind == kind for outcome in outcomes) for kind in ("passed", "failed", "skipped")}
    print(", ".join(f"{number} {kind}" for kind, number in count.items()))
    return 1 if wrong or count["failed"] or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
