# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The screens of ``labrack plan`` and ``labrack apply``."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ansible_collections.labrack.infra.plugins.module_utils.change import rank

from .planning import Applied, HostResult, Item, Job, NodePlan, Plan, TaskPlan
from .run import advice
from .status import new_table

_STYLES = {"restart": "yellow", "drain": "red", "reboot": "red"}
#: Lines of one difference that are shown.
MOST_LINES = 40


def plan_screen(plan: Plan, diffs: bool = False) -> RenderableType:
    """Return the plan as text: nodes with what would change by role, what is pending, whose jobs that affects."""
    parts: list[RenderableType] = []
    for hosts, node in _alike(plan.nodes):
        parts += [*_node(hosts, node, diffs), Text()]
    if plan.jobs:
        parts += [Text("Jobs on nodes that changes of the class drain or reboot empty first", "bold"), _jobs(plan.jobs)]
        parts += [Text()]
    if plan.jobs_unknown:
        parts += [Text(f"Whose jobs are affected is not known. {plan.jobs_unknown}", "yellow"), Text()]
    return Group(*parts, *plan_words(plan))


def plan_words(plan: Plan) -> list[Text]:
    """Return the last lines: how much would change, and how to say yes to what waits for consent."""
    failed = [host for host, node in plan.nodes.items() if node.failed]
    lines = []
    if not plan.nodes:
        lines.append(Text("No host of the inventory is in the plan.", "red"))
    elif plan.changes:
        on = sum(bool(node.items) for node in plan.nodes.values())
        lines.append(Text(f"{_count(plan.changes, 'change')} on {on} of {_count(len(plan.nodes), 'node')}."))
    elif not failed:
        as_said = Text("Nothing to change: the lab is as the inventory says.", "green")
        lines.append(Text("Nothing to change without your consent.") if plan.pending else as_said)
    if plan.pending:
        highest = _highest(item for node in plan.nodes.values() for item in node.pending)
        command = apply_command(plan.inventory, consent=highest, tags=plan.tags, limit=plan.limit)
        lines.append(Text(f"{_count(plan.pending, 'more')} pending your consent to '{highest}': {command}"))
    if failed:
        lines.append(Text(f"Not known of {', '.join(failed)}; see above.", "red"))
    return lines


def applied_screen(applied: Applied, tags: Sequence[str] = (), limit: Sequence[str] = ()) -> RenderableType:
    """Return what a run did: changes, what is pending, what failed and what to do next, seconds of each role.

    ``tags`` and ``limit`` are those of the run, for the command that goes on with it.
    """
    parts: list[RenderableType] = []
    for hosts, result in _alike(applied.hosts):
        parts += [*_result(hosts, result), Text()]
    roles = [(role, seconds) for role, seconds in applied.roles.items() if seconds >= 0.05]
    if roles:
        table = new_table("ROLE", "SECONDS", right=("SECONDS",))
        for role, seconds in roles:
            table.add_row(Text(role), f"{seconds:.1f}")
        parts += [table, Text()]
    pending = [item for result in applied.hosts.values() for item in result.pending]
    if pending:
        command = apply_command(applied.inventory, consent=_highest(pending), tags=tags, limit=limit)
        parts.append(Text(f"To make what is pending: {command}"))
    failed = [host for host, result in applied.hosts.items() if result.failed]
    changed = sum(result.changed for result in applied.hosts.values())
    words = f"{_count(changed, 'task')} changed something" if changed else "Nothing had to be changed"
    if failed:
        others = len(applied.hosts) - len(failed)
        went_on = f"; the {_count(others, 'other node')} went on" if others else ""
        parts.append(Text(f"{words}. Failed on {', '.join(failed)}{went_on}. The whole log: {applied.log}", "red"))
    else:
        parts.append(Text(f"{words} on {_count(len(applied.hosts), 'node')}.", "green"))
    return Group(*parts)


def apply_command(
    inventory: Sequence[str], consent: str = "", tags: Sequence[str] = (), limit: Sequence[str] = ()
) -> str:
    """Return the line that applies an inventory (paths) up to a consent."""
    words = ["labrack", "apply"]
    for source in inventory:
        words += ["-i", source]
    words += [word for tag in tags for word in ("--tags", tag)] + [word for one in limit for word in ("--limit", one)]
    return shlex.join([*words, *(["--consent", consent] if consent else [])])


_One = TypeVar("_One", NodePlan, HostResult)


def _alike(nodes: Mapping[str, _One]) -> list[tuple[list[str], _One]]:
    """Put hosts together of which the same is to be said."""
    found: list[tuple[list[str], _One]] = []
    for host, node in nodes.items():
        for hosts, other in found:
            if other == node:
                hosts.append(host)
                break
        else:
            found.append(([host], node))
    return found


def _node(hosts: Sequence[str], node: NodePlan, diffs: bool) -> Iterator[RenderableType]:
    if node.failed:
        yield Text.assemble(
            (", ".join(hosts), "bold red"), ": " + ("does not answer" if node.unreachable else "failed")
        )
        yield _indented(node.failed)
        yield from _advice(node.failed, hosts, node.unreachable)
    else:
        yield Text.assemble(
            (", ".join(hosts), "bold"), f"  {_count(len(node.items), 'change')}" if node.items else "  unchanged"
        )
    roles: dict[str, list[TaskPlan]] = {}
    for task in node.tasks:
        if task.items:
            roles.setdefault(task.role or "playbook", []).append(task)
    for role, tasks in roles.items():
        yield Text(f"  {role}", "cyan")
        yield _items([item for task in tasks for item in task.items])
        for task in tasks if diffs else ():
            yield from (_diff(one) for one in task.diff)
    if node.pending:
        yield Text("  pending consent", "cyan")
        yield _items(node.pending)
    yield from (_indented(f"Note: {words}") for words in node.warnings)


def _result(hosts: Sequence[str], result: HostResult) -> Iterator[RenderableType]:
    name = ", ".join(hosts)
    if result.failed:
        yield Text.assemble((name, "bold red"), ": ", (result.failed, "bold"))
        yield _indented(result.cause)
        yield from _advice(result.cause, hosts, result.unreachable)
    else:
        yield Text.assemble(
            (name, "bold"), f"  {_count(result.changed, 'task')} changed" if result.changed else "  unchanged"
        )
    if result.items:
        yield _items(result.items)
    if result.pending:
        yield Text("  pending consent", "cyan")
        yield _items(result.pending)
    yield from (_indented(f"Note: {words}") for words in result.warnings)


def _advice(cause: str, hosts: Sequence[str], unreachable: bool) -> Iterator[RenderableType]:
    for host in hosts[:1]:
        yield _indented(f"Next: {advice(cause, host, unreachable)}")


def _items(items: Iterable[Item]) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=7, no_wrap=True)
    table.add_column()
    for item in items:
        table.add_row(
            Text(item.disruption, _STYLES.get(item.disruption, "dim")), Text(f"{item.subject}: {item.summary}")
        )
    return Padding(table, (0, 0, 0, 4), expand=False)


def _diff(one: Mapping[str, str]) -> RenderableType:
    before, after = (one.get(side, "").splitlines() for side in ("before", "after"))
    # the name stands above already
    lines = [*difflib.unified_diff(before, after, n=2, lineterm="")][2:]
    left = len(lines) - MOST_LINES
    shown = lines[:MOST_LINES] + ([f"({_count(left, 'more line')}; --json has all)"] if left > 0 else [])
    colours = {"+": "green", "-": "red", "@": "dim"}
    texts = [Text(one.get("header", ""), "dim"), *(Text(line, colours.get(line[:1], "")) for line in shown)]
    return Padding(Group(*texts), (0, 0, 0, 6), expand=False)


def _jobs(jobs: Sequence[Job]) -> RenderableType:
    table = new_table("NODE", "JOB", "USER", "NAME", "STATE", right=("JOB",))
    for job in jobs:
        table.add_row(*(Text(word) for word in (job.node, job.id, job.user, job.name, job.state)))
    return Padding(table, (0, 0, 0, 2), expand=False)


def _indented(text: str) -> RenderableType:
    return Padding(Text(text), (0, 0, 0, 4), expand=False)


def _highest(items: Iterable[Item]) -> str:
    return max((item.disruption for item in items), key=rank)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 or what == "more" else f"{number} {what}s"
