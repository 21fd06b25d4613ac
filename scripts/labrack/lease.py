# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One controller at a time changes a lab: its lease, held on the head for as long as a run goes on."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .lab import Lab
from .progress import Progress
from .run import RunError, run_playbook
from .shell import BusyError

PLAYBOOK = "labrack.infra.lease"
#: The task of the playbook that takes the lease, and the words by which it tells of another holder.
_TASK, _WORDS = "Hold the lease", "holds the lease"


class Taken(BusyError):
    """Somebody else holds the lease; the message says who, since when and for what."""


@dataclass(frozen=True)
class Reached:
    """The nodes that answered while the lease was taken, and those that did not with what was said."""

    up: tuple[str, ...]
    down: Mapping[str, str]


@contextmanager
def held(
    lab: Lab,
    log: Path,
    progress: Progress,
    what: str,
    *,
    arguments: Sequence[str] = (),
    answers: Mapping[str, str] | None = None,
) -> Iterator[Reached]:
    """Hold the lab's lease while the block runs; :class:`Taken` where somebody else does.

    ``arguments`` and ``answers`` are those of :func:`.run.run_playbook`. The lease of a controller that was killed ends
    by itself, and does not keep out the same user of the same machine. Where the head is ``down`` there is no lease.
    """
    # one user of one machine is one controller; two runs of theirs meet at the machine's own lock
    owner = hashlib.sha256(f"{socket.gethostname()}\0{os.getuid()}\0{lab.state}".encode()).hexdigest()[:16]
    variables = {"lease_owner": owner, "lease_who": f"{getpass.getuser()}@{socket.gethostname()}", "lease_what": what}
    with progress.step("Reach") as step:
        outcome = run_playbook(
            PLAYBOOK, lab.inventory, log, step, variables=variables, tolerate=True, arguments=arguments, answers=answers
        )
        down = {failure.node: failure.message for failure in reversed(outcome.failures)}
        for head in lab.groups.get("lab_head", ()):
            if _WORDS in down.get(head, ""):
                raise Taken(down[head])
        up = tuple(host for host in lab.members if host not in down)
        step.summary = f"{len(up)} of {len(lab.members)} nodes" + (f", down: {', '.join(down)}" if down else "")
    try:
        yield Reached(up, down)
    finally:
        # it ends by itself where it can't be given back
        with suppress(RunError), progress.step("Release") as step:
            run_playbook(
                PLAYBOOK,
                lab.inventory,
                log.with_name("lease.log"),
                step,
                variables={**variables, "lease_state": "released"},
                limit=("lab_head",),
                arguments=arguments,
                answers=answers,
            )
