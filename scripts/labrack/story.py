# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The demo's script: two researchers share a worker's GPUs through Slurm. Everything that is told is checked."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from . import status
from .ssh import Ssh
from .testnode.docker import LabError

#: Where the script plays, and where ben has no job. The researchers are those of inventories/demo.
HEAD, WORKER, OTHER_WORKER = "head", "node1", "node2"
#: What ada's training leaves for everybody.
CHECKPOINT = "/checkpoints/step-1000.txt"
#: Seconds for Slurm to do what it is waited for.
PATIENCE = 60.0
QUEUE = "squeue -o '%.5i %.6u %.6j %.8T %.6M %R'"


class StoryError(LabError):
    """Something did not go as the script tells it; the message says what was expected and what was seen."""


def expect(condition: object, what: str, seen: str) -> None:
    """Raise :class:`StoryError` unless the condition holds."""
    if not condition:
        raise StoryError(f"Expected: {what}.\nSeen: {seen.strip() or 'nothing'}")


def until(
    what: str,
    probe: Callable[[], status.Cluster],
    holds: Callable[[status.Cluster], bool],
    seconds: float = PATIENCE,
) -> None:
    """Wait until the cluster is as wanted; :class:`StoryError` with its state after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not holds(seen := probe()):
        lines = [f"{node.name} is {node.state} {node.reason}".rstrip() for node in seen.nodes]
        lines += [f"{machine.name} is in the tailnet" for machine in seen.tailnet]
        lines += [f"job {job.id} of {job.user} is {job.state} ({job.where})" for job in seen.jobs]
        expect(time.monotonic() < deadline, f"{what}, within {seconds:.0f} s", ", ".join(lines))
        time.sleep(0.3)


@dataclass(frozen=True)
class Story:
    """The script, told on a console, played on a lab by ssh."""

    console: Console
    ssh: Ssh
    #: What ``labrack demo status`` shows.
    whole: Callable[[], status.Status]
    #: Where people log in.
    head: ClassVar[str] = HEAD
    worker: ClassVar[str] = WORKER

    def play(self) -> None:
        """Play it all; :class:`StoryError` where a claim doesn't hold. The queue is empty before and after."""
        self._clear()
        until("both workers idle", self._status, lambda seen: {node.state for node in seen.nodes} == {"idle"})
        (cards,) = next(node.gpus for node in self._status().nodes if node.name == WORKER)
        try:
            self._train(f"gpu:{cards.type}:{cards.total}")
            self._share()
            ben = self._queue_up(f"gpu:{cards.type}:1")
            self._take_turns(ben)
            self._knock()
        finally:
            self._clear()
            self.console.print()

    def names(self, hosts: Collection[str]) -> None:
        """Let each host find every other by its name in the tailnet; :class:`StoryError` where one doesn't."""

        def there(seen: status.Cluster) -> list[status.Machine]:
            return [machine for machine in seen.tailnet if machine.name in hosts]

        until(f"{', '.join(hosts)} in the tailnet", self._status, lambda seen: len(there(seen)) == len(hosts))
        self._tell("Every node reaches every other by name, both ends inside the tailnet:")
        pairs = list(itertools.permutations(there(self._status()), 2))
        with ThreadPoolExecutor(max_workers=len(pairs)) as pool:
            ways = pool.map(self._way, pairs)
            for (one, other), way in zip(pairs, ways, strict=True):
                self._prompt(f"root@{one.name}", f"ssh {other.dns_name}")
                expect(way == f"{one.address} → {other.address}", f"{one.name} reaches {other.dns_name}", way)
                self._print(Text(way))
        self.console.print()

    def _way(self, pair: tuple[status.Machine, status.Machine]) -> str:
        """From which address to which a connection goes by name; what ssh said where none comes about in time."""
        one, other = pair
        deadline = time.monotonic() + PATIENCE
        # the peers hear of a node some time after it has joined
        while (done := self._through(one.name, other.dns_name)).returncode and time.monotonic() < deadline:
            time.sleep(0.5)
        ends = done.stdout.split()
        return f"{ends[0]} → {ends[2]}" if len(ends) == 4 else done.stderr

    def _through(self, name: str, target: str) -> subprocess.CompletedProcess[str]:
        return self.ssh.run(f"root@{target}", "echo $SSH_CONNECTION", through=f"root@{name}")

    def _train(self, gres: str) -> None:
        self._tell(f"Ada trains a model on both cards of {WORKER}.")
        work = f"echo loss 0.31, by $USER on $(hostname) > {CHECKPOINT}; sleep 600"
        printed = self._do("ada", f"sbatch --job-name=train --gres={gres} --wrap '{work}'")
        expect(re.search(r"Submitted batch job \d+", printed), "ada's job is accepted", printed)
        until("ada's job runs", self._status, lambda seen: states(seen) == {"ada": "running"})

    def _share(self) -> None:
        self._tell(
            f"What she writes on {WORKER}, Ben reads on {OTHER_WORKER}: every node has the same files and people."
        )
        command = f"srun --nodelist={OTHER_WORKER} sh -c 'hostname; cat {CHECKPOINT}; stat -c \"%U %n\" {CHECKPOINT}'"
        printed = self._do("ben", command)
        wanted = [OTHER_WORKER, f"loss 0.31, by ada on {WORKER}", f"ada {CHECKPOINT}"]
        expect(printed.splitlines() == wanted, f"ben reads ada's file on {OTHER_WORKER}", printed)

    def _queue_up(self, gres: str) -> subprocess.Popen[str]:
        self._tell("Ben wants to debug on one such card. None is free, so Slurm gives him a place in the queue.")
        command = f"srun --job-name=debug --gres={gres} sh -c 'nvidia-smi -L; cat /dev/nvidia? 2>&1; true'"
        self._show("ben", command)
        ben = subprocess.Popen(
            self.ssh.argv(f"ben@{HEAD}", f"timeout {PATIENCE:.0f} {command}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        until(
            "ben's job waits for resources", self._status, lambda seen: any(j.where == "Resources" for j in seen.jobs)
        )
        printed = self._do("ben", QUEUE)
        expect(re.search(r"ben +debug +PENDING .*\(Resources\)", printed), "ben PENDING for Resources", printed)
        expect(re.search(r"ada +train +RUNNING ", printed), "ada RUNNING", printed)
        self._tell("The same as labrack shows it:")
        self._prompt("you", "labrack demo status")
        self.console.print(Padding(status.render(self.whole()), (0, 0, 0, 2), expand=False))
        return ben

    def _take_turns(self, ben: subprocess.Popen[str]) -> None:
        self._tell(
            "Ada has seen enough and ends her training. Ben's job starts by itself, and srun shows what it sees:"
        )
        self._do("ada", "scancel --name=train")
        printed, _ = ben.communicate(timeout=PATIENCE)
        self._print(Text(printed.rstrip()))
        expect(ben.returncode == 0, "ben's job succeeds", printed)
        expect(re.findall(r"^GPU \d+:", printed, re.MULTILINE) == ["GPU 0:"], "ben's job sees one card", printed)
        refused = re.findall(r"(/dev/nvidia\d): Operation not permitted", printed)
        # there is no driver behind a stand-in's device file: one that may be opened says just that
        allowed = re.findall(r"(/dev/nvidia\d): No such device or address", printed)
        expect(len(refused) == 1 and len(allowed) == 1, "ben's job may open one card and not the other", printed)
        self._tell(
            f"He got one card, {allowed[0]}; it opens, but a stand-in has no device behind it. "
            f"The other one, {refused[0]}, is refused."
        )

    def _knock(self) -> None:
        self._tell(f"No job on {OTHER_WORKER}, no way around the queue:")
        command = "nvidia-smi -L"
        self._prompt("you", f"ssh ben@{OTHER_WORKER} {command}")
        done = self.ssh.run(f"ben@{OTHER_WORKER}", command)
        denied = re.findall(r"^Access denied .*", done.stderr, re.MULTILINE)
        expect(done.returncode != 0 and denied, "ben may not log in", done.stdout + done.stderr)
        self._print(Text(denied[0]))

    def _clear(self) -> None:
        """End whatever the two have left in the queue, wait until it is gone, and take their file away."""
        self.ssh.output(f"root@{self.head}", f"scancel -u ada && scancel -u ben && rm -f {CHECKPOINT}")
        until("an empty queue", self._status, lambda seen: not seen.jobs)

    def _status(self) -> status.Cluster:
        return status.look(self.head, lambda host, command: self.ssh.output(f"root@{host}", command))

    def _do(self, user: str, command: str, seconds: float = 30.0, shown: str = "") -> str:
        """Run a command as a researcher on the head, show both it and its output, and return the output.

        Of the output only the lines that match ``shown`` are printed, if that is given.
        """
        self._show(user, command)
        done = self.ssh.run(f"{user}@{self.head}", command, timeout=seconds)
        # without colours
        printed = Text.from_ansi(done.stdout + done.stderr).plain.rstrip()
        expect(done.returncode == 0, f"`{command}` succeeds for {user}", printed)
        lines = [line for line in printed.splitlines() if re.search(shown, line)]
        if lines:
            self._print(Text("\n".join(lines)))
        return printed

    def _show(self, user: str, command: str) -> None:
        self._prompt(f"{user}@{self.head}", command)

    def _prompt(self, who: str, command: str) -> None:
        self._print(Text.assemble((who, "bold cyan"), "$ ", (command, "bold")))

    def _tell(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text))

    def _print(self, text: Text) -> None:
        for line in text.split("\n"):
            self.console.print(Text("  ").append_text(line), soft_wrap=True)


def states(seen: status.Cluster) -> dict[str, str]:
    """The state of each user's job, of who has several the last one's."""
    return {job.user: job.state for job in seen.jobs}
