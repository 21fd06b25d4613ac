# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What can be known of a lab before a change: its inventory against all rules, its nodes, its power and cooling."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.labrack.infra.plugins.module_utils import doctor_judge, finding, lab_check, power_plan
from ansible_collections.labrack.infra.plugins.module_utils.doctor_judge import ERROR, NOTE, OK, WARNING, Finding
from ansible_collections.labrack.infra.plugins.module_utils.rules_users import expiry_words
from ansible_collections.labrack.infra.plugins.plugin_utils import inventory_read, inventory_source

from . import shell
from .lab import HIDDEN, Lab

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from .progress import Step

PLAYBOOK = "labrack.infra.doctor"
#: What the nodes said, by host: RETURN of the filter ``doctor_document``.
Document = Mapping[str, Mapping[str, Any]]


def run(lab: Lab, log: Path, step: Step | None = None, offline: bool = False) -> list[Finding]:
    """Return the findings of a lab, also those of what is well; ``offline`` asks no node.

    :class:`.run.RunError` where the nodes can't be asked at all; one that can't is a finding. ``log`` gets what
    ansible-playbook prints. Nothing is changed.
    """
    inventory, wrong, known = read(lab)
    wrong += lab_check.check_inventory(inventory)
    found = _of_inventory(wrong, inventory, known, lab)
    found += [_expiry(words) for words in expiry_words(inventory_read.people(inventory), date.today())]
    document: Document = {}
    if not offline and lab.members:
        assert step is not None
        document = ask(lab, log, step)
        found += of_nodes(lab, inventory, known, document)
    return found + doctor_judge.judge_power(budget(inventory, document))


def status(findings: Iterable[Finding]) -> int:
    """Return the exit status: 1 with errors, 2 with warnings alone, else 0."""
    worst = {one.severity for one in findings}
    return shell.FAILED if ERROR in worst else shell.CHANGES if WARNING in worst else shell.OK


def read(lab: Lab) -> tuple[finding.Inventory, list[finding.Finding], list[inventory_source.Definition]]:
    """Return the inventory as the rules see it, what is wrong with single variables, and where each is set."""
    known = inventory_source.definitions(str(path) for path in lab.inventory)
    hosts: dict[str, dict[str, Any]] = {}
    wrong: list[finding.Finding] = []
    for host, variables in lab.hosts.items():
        unresolved = lab.unresolved.get(host, {})
        hosts[host] = {
            name: value
            for name, value in variables.items()
            # what is vaulted can't be judged without its password
            if name not in unresolved and not hidden(value)
        }
    options = inventory_read.role_options(inventory_read.ROLES)
    names = {name for options_of_role in options.values() for name in options_of_role}
    groups = {name: list(members) for name, members in lab.groups.items()}
    inventory, findings = inventory_read.read_inventory(hosts, groups, known, options)
    for host, unresolved in lab.unresolved.items():
        for name, words in unresolved.items():
            if name in names:
                problem = f"can't be worked out: {words.splitlines()[0].rstrip('.')}"
                wrong.append(finding.Finding((name,), "", problem, "mend the expression", (host,)))
    return inventory, findings + finding.merged(wrong), known


def hidden(value: object) -> bool:
    """Return whether a value, or anything in it, is vaulted and stays so."""
    if isinstance(value, Mapping):
        return any(hidden(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return any(map(hidden, value))
    return isinstance(value, str) and value == HIDDEN


def ask(lab: Lab, log: Path, step: Step) -> Document:
    """Ask the nodes, by the playbook; :class:`.run.RunError` where that fails as a whole."""
    from .run import RunError, run_playbook

    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        file = Path(folder) / "doctor.json"
        try:
            run_playbook(PLAYBOOK, lab.inventory, log, step, variables={"doctor_file": str(file)})
        except RunError:
            # what failed on a node stands in the document
            if not file.exists():
                raise
        document: Document = json.loads(file.read_text(encoding="utf-8"))
    return document


def of_nodes(
    lab: Lab, inventory: finding.Inventory, known: Sequence[inventory_source.Definition], document: Document
) -> list[Finding]:
    """Return the findings of what the nodes said: on their own, and against the inventory."""
    facts = {host: one["look"]["facts"] for host, one in document.items() if one.get("look")}
    with_facts = finding.Inventory(inventory.hosts, inventory.groups, facts)
    variables = lab.hosts.get(next(iter(lab.members), ""), {})
    numbered, wrong, _told = inventory_read.number_people(
        with_facts, inventory_read.registry_path(with_facts, variables)
    )
    wrong += lab_check.check_facts(numbered)
    return [*_of_inventory(wrong, numbered, known, lab, "nodes"), *doctor_judge.judge(document, inventory)]


def budget(inventory: finding.Inventory, document: Document | None = None) -> power_plan.Budget:
    """Return power and cooling of a lab, by what its nodes said where they did, else by the inventory alone."""
    members = dict.fromkeys([*inventory.members("lab_head"), *inventory.members("lab_workers")])
    loads = []
    for host in members:
        look = ((document or {}).get(host) or {}).get("look")
        loads.append(power_plan.load(host, inventory.hosts.get(host, {}), look["facts"] if look else None))
    first = inventory.hosts.get(next(iter(members), ""), {})
    entries = [one for one in first.get("lab_circuits") or () if one["volts"] > 0 and one["amps"] > 0]
    cooling = first.get("lab_cooling_watts")
    return power_plan.budget(loads, power_plan.circuits(entries), None if cooling is None else float(cooling))


def _of_inventory(
    wrong: Sequence[finding.Finding],
    inventory: finding.Inventory,
    known: Sequence[inventory_source.Definition],
    lab: Lab,
    against: str = "",
) -> list[Finding]:
    """The findings of the rules, as errors: a run stops at each before it changes anything."""
    found = []
    check = "inventory"
    for one in wrong:
        host = one.hosts[0] if one.hosts else ""
        member = [group for group, hosts in inventory.groups.items() if host in hosts]
        place = inventory_source.place(known, one.path, host, member)
        value = f" = {one.value}" if one.value else ""
        where = f" ({', '.join(one.hosts)})" if 1 < len(one.hosts) < len(inventory.hosts) else ""
        what = f"{place + '  ' if place else ''}{one.key}{value}{where}: {one.problem}"
        owner = one.hosts[0] if len(one.hosts) == 1 and len(inventory.hosts) > 1 else ""
        found.append(Finding(owner, check, ERROR, what, "a run stops here, before it changes anything", one.mend))
    if not found:
        what = f"{len(inventory.hosts)} hosts keep to all rules" + (" that need the nodes" if against else "")
        found.append(Finding("", check, OK, what))
    secrets = {name for variables in lab.hosts.values() for name, value in variables.items() if hidden(value)}
    if secrets and not against:
        what = f"{', '.join(sorted(secrets))}: vaulted, and not looked at without the password"
        mend = "set ANSIBLE_VAULT_PASSWORD_FILE to have it checked too"
        found.append(Finding("", check, NOTE, what, "", mend))
    return found


def _expiry(words: str) -> Finding:
    what, _mark, mend = words.rstrip(".").partition(". Mend: ")
    return Finding("", "people", WARNING, what, "then nobody logs in by it", mend)


# --- the screen ------------------------------------------------------------------------------------------------------

_MARKS = {OK: ("✓", "green"), NOTE: ("·", "cyan"), WARNING: ("!", "yellow"), ERROR: ("✗", "red")}


def as_json(findings: Sequence[Finding], everything: bool = False) -> dict[str, Any]:
    """Return the document: ``counts`` by severity and ``findings``; those of what is well with ``everything`` alone."""
    counts = Counter(one.severity for one in findings)
    shown = [one for one in findings if everything or one.severity != OK]
    return {
        "counts": {severity: counts.get(severity, 0) for severity in doctor_judge.SEVERITIES},
        "findings": [vars(one) for one in shown],
    }


def show(console: Console, findings: Sequence[Finding], everything: bool = False) -> None:
    """Print the screen: what is wrong by node, the worst first, and how much is well."""
    from rich.padding import Padding
    from rich.text import Text

    def line(text: Text, indent: int) -> None:
        # what is read by a program is not folded
        if console.is_terminal:
            console.print(Padding(text, (0, 0, 0, indent)))
        else:
            console.print(Text(" " * indent) + text, soft_wrap=True)

    shown = [one for one in findings if everything or one.severity != OK]
    order = {severity: -place for place, severity in enumerate(doctor_judge.SEVERITIES)}
    for host in dict.fromkeys(one.host for one in sorted(shown, key=lambda one: one.host != "")):
        console.print(Text(host or "The lab", "bold"), soft_wrap=True)
        mine = [one for one in shown if one.host == host]
        for one in sorted(mine, key=lambda one: (order[one.severity], one.check)):
            mark, style = _MARKS[one.severity]
            line(
                Text.assemble((mark, style), " ", (one.check, "bold" if one.severity != OK else ""), "  ", one.what), 2
            )
            if one.why:
                line(Text(f"Why: {one.why}", "dim"), 4)
            if one.mend:
                line(Text(f"Mend: {one.mend}"), 4)
        console.print()
    console.print(_summary(Counter(one.severity for one in findings)), soft_wrap=True)


def _summary(counts: Mapping[str, int]) -> Text:
    from rich.text import Text

    words = {OK: "well", NOTE: "note", WARNING: "warning", ERROR: "error"}
    line = Text()
    for severity in reversed(doctor_judge.SEVERITIES):
        number = counts.get(severity, 0)
        plural = "s" if number != 1 and severity != OK else ""
        style = _MARKS[severity][1] if number else "dim"
        line.append(", " if line else "").append(f"{number} {words[severity]}{plural}", style)
    return line
