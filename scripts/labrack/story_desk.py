# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The script of the demo under a desk: two researchers share its GPUs through SkyPilot. All that is told is checked."""

from __future__ import annotations

from typing import ClassVar

from .story import QUEUE, Story, expect, states, until

DESK = "desk"
#: What ada's task leaves.
RESULT = "/checkpoints/ada.txt"
#: Seconds that a launch may take, most of which SkyPilot needs to make its environment.
LAUNCH = 600.0


class DeskStory(Story):
    """The script, told on a console, played on a machine by ssh."""

    head: ClassVar[str] = DESK
    worker: ClassVar[str] = DESK

    def play(self) -> None:
        """Play it all; :class:`.story.StoryError` where a claim doesn't hold. Nothing runs before and after."""
        self._clear()
        until("the desk is idle", self._status, lambda seen: {node.state for node in seen.nodes} == {"idle"})
        try:
            self._launch()
            self._wait()
            self._give_back()
        finally:
            self._clear()
            self.console.print()

    def _launch(self) -> None:
        self._tell("Ada says what she needs. SkyPilot makes a cluster of one card for her, and runs her command there.")
        work = f"nvidia-smi -L; ls -d /data /checkpoints; echo loss 0.31 >{RESULT}"
        command = f"sky launch -y -c train --gpus RTX_4090:1 --cpus 1+ '{work}'"
        printed = self._do("ada", command, LAUNCH, shown=r"^\(\S+, pid=|^ INFRA|^ Slurm|Job finished|Cluster launched")
        expect(printed.count("GPU 0:") == 1 and "GPU 1:" not in printed, "ada's task sees one card", printed)
        self._tell("What she wrote stays, and is hers:")
        printed = self._do("ada", f"stat --format='%U %n' {RESULT}")
        expect(printed == f"ada {RESULT}", "the file is ada's", printed)

    def _wait(self) -> None:
        self._tell("Her card stays hers until she gives it back. Ben wants both, so he waits:")
        self._do(
            "ben",
            "sky launch -y --async -c both --gpus RTX_4090:2 --cpus 1+ nvidia-smi",
            LAUNCH,
            "Submitted",
        )
        # Slurm finds the reason some moments later
        wanted = {("ada", "running", DESK), ("ben", "pending", "Resources")}
        until("ben waits", self._status, lambda seen: wanted == {(j.user, j.state, j.where) for j in seen.jobs}, LAUNCH)
        printed = self._do("ben", QUEUE)
        expect("Resources" in printed, "ben waits for resources", printed)

    def _give_back(self) -> None:
        self._tell("Ada gives her card back, and Ben's turn comes by itself:")
        self._do("ada", "sky down -y train", LAUNCH, "Terminating|terminated")
        until("ben runs", self._status, lambda seen: states(seen) == {"ben": "running"}, LAUNCH)
        self._do("ben", QUEUE)

    def _clear(self) -> None:
        """End both researchers' clusters, wait until the queue is empty, and take ada's file away."""
        for user in ("ada", "ben"):
            told = self.ssh.run(f"{user}@{DESK}", "sky status -o json", timeout=LAUNCH).stdout
            # no list is no answer
            if told[told.find("[") :].strip() != "[]":
                self.ssh.run(f"{user}@{DESK}", "sky down -y --all", timeout=LAUNCH)
        self.ssh.output(f"root@{DESK}", f"scancel -u ada && scancel -u ben && rm -f {RESULT}")
        until("an empty queue", self._status, lambda seen: not seen.jobs, LAUNCH)
