# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every labrack module speaks: a change, its disruption class, and the consent to make it.

The shape of a module is observe → plan → apply → observe again; ``plan`` is a pure function that returns a list of
:class:`Change`. This file has no Ansible import, so that planners can be tested without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Protocol, TypeVar

from ansible_collections.labrack.infra.plugins.module_utils import managed

#: From harmless to harmful. ``drain`` and above can end a running job.
DISRUPTIONS: tuple[str, ...] = ("none", "reload", "restart", "drain", "reboot")

State = TypeVar("State")


@dataclass(frozen=True)
class Change:
    """One thing that is off on a node.

    ``subject`` names it ("file /etc/hosts", "user ada"), ``summary`` says in a line what would change, ``disruption``
    is one of :data:`DISRUPTIONS`, ``before`` and ``after`` are texts for the diff and never hold a secret, ``step`` is
    the verb and the arguments with which the module applies it.
    """

    subject: str
    summary: str
    disruption: str = "none"
    before: str = ""
    after: str = ""
    step: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an unknown disruption class at once (ValueError)."""
        rank(self.disruption)


def rank(disruption: str) -> int:
    """Return the place of a disruption class in :data:`DISRUPTIONS`, 0 for ``none``; ValueError for an unknown one."""
    try:
        return DISRUPTIONS.index(disruption)
    except ValueError:
        raise ValueError(f"unknown disruption class {disruption!r}; one of {', '.join(DISRUPTIONS)}") from None


def consent(changes: Iterable[Change], max_disruption: str) -> tuple[list[Change], list[Change]]:
    """Split changes into those that the consent ``max_disruption`` covers and those that stay pending, in order."""
    limit = rank(max_disruption)
    now: list[Change] = []
    pending: list[Change] = []
    for change in changes:
        (now if rank(change.disruption) <= limit else pending).append(change)
    return now, pending


def report(now: Iterable[Change], pending: Iterable[Change]) -> dict[str, Any]:
    """Return a module's result: ``changed`` (bool), ``changes`` and ``pending`` (lists of dicts), ``diff`` (list)."""
    now = list(now)
    return {
        "changed": bool(now),
        "changes": [line(change) for change in now],
        "pending": [line(change) for change in pending],
        "diff": [
            {
                "before_header": change.subject,
                "after_header": f"{change.subject} ({change.disruption})",
                "before": _ended(change.before),
                "after": _ended(change.after or (change.summary if not change.before else "")),
            }
            for change in now
        ],
    }


def line(change: Change) -> dict[str, str]:
    """Return a change as it stands in a module's result, without texts of the diff."""
    return {"subject": change.subject, "summary": change.summary, "disruption": change.disruption}


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


class _Module(Protocol):
    """The few things of AnsibleModule that :func:`converge` needs."""

    params: dict[str, Any]
    check_mode: bool

    def warn(self, warning: str) -> None:
        """Show a warning."""

    def exit_json(self, **kwargs: Any) -> NoReturn:
        """End the module with a result."""

    def fail_json(self, msg: str, **kwargs: Any) -> NoReturn:
        """End the module with a failure."""


def pending_words(pending: Iterable[dict[str, str]], drains: bool = True) -> list[str]:
    """Return a sentence per disruption class: what waits for consent, and how to give it.

    ``drains`` says whether nodes are emptied before a change of the class drain.
    """
    after = "nodes are drained first, jobs end in their own time" if drains else "nothing is waited for"
    by_class: dict[str, list[str]] = {}
    for change in pending:
        by_class.setdefault(change["disruption"], []).append(f"{change['subject']}: {change['summary']}")
    return [
        f"pending until you consent to '{disruption}': {'; '.join(by_class[disruption])}. "
        f"To make it so, run the same command with -e lab_max_disruption={disruption}"
        + (f" ({after})" if disruption == "drain" else "")
        for disruption in DISRUPTIONS
        if disruption in by_class
    ]


def converge(
    module: _Module,
    observe: Callable[[], State],
    plan: Callable[[State], list[Change]],
    apply: Callable[[list[Change]], None],
    extra: Callable[[State], dict[str, Any]] | None = None,
    drains: bool = True,
    ledger: str = "",
    forgets: Iterable[str] = (),
) -> NoReturn:
    """Run one module: observe, plan, apply what ``max_disruption`` consents to, observe again, fail if still off.

    Check mode is the same plan, not applied. ``extra`` adds keys to the result from the last observed state; what it
    gives as ``pending`` is added to what consent holds back. ``drains`` is that of :func:`pending_words`. What the last
    plan notes as managed is kept on the node under the name ``ledger``; ``forgets`` are the ledgers of what the module
    takes away, which go once nothing of it waits. Ends the module by ``exit_json`` or ``fail_json``.
    """
    allowed = str(module.params.get("max_disruption") or DISRUPTIONS[-1])
    state = observe()
    with managed.collected() as noted:
        changes = plan(state)
    now, pending = consent(changes, allowed)
    result = report(now, pending)
    if now and not module.check_mode:
        apply(now)
        state = observe()
        with managed.collected() as noted:
            changes = plan(state)
        left, _still_pending = consent(changes, allowed)
        if left:
            module.fail_json(
                msg="did not converge: " + "; ".join(f"{change.subject}: {change.summary}" for change in left),
                left=[line(change) for change in left],
                **result,
            )
    if extra is not None:
        more = extra(state)
        result["pending"] += more.pop("pending", [])
        result.update(more)
    for words in pending_words(result["pending"], drains):
        module.warn(words)
    if not module.check_mode:
        _keep(module, ledger, noted, () if result["pending"] else forgets)
    module.exit_json(**result)


def _keep(module: _Module, ledger: str, noted: managed.Managed, forgets: Iterable[str]) -> None:
    """Keep what is managed. That it can't be kept is no failure of the run, as what it shall do is done."""
    # it imports this module
    from ansible_collections.labrack.infra.plugins.module_utils import managed_observe

    try:
        if ledger:
            managed_observe.record(ledger, noted)
        for name in forgets:
            managed_observe.forget([name])
    except OSError as error:
        module.warn(f"{managed_observe.FOLDER} can't be written, so `labrack drift` does not know this run: {error}")
