#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Slurm's health check and prolog: drain the node when a GPU is lost or broken, take back only an own drain.

Installed on workers by the role slurm. slurmd runs it as root every HealthCheckInterval seconds, and before a job as
prolog; as prolog it fails when the node is ill, so that the job goes back into the queue.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TAG = "labrack-health:"
#: Where configless slurmd keeps gres.conf, and where the controller does.
GRES_FILES = (Path("/run/slurm/conf/gres.conf"), Path("/etc/slurm/gres.conf"))
ENVIRONMENT = Path("/etc/labrack/slurmd.env")
#: A test node's kernel log; on a machine the kernel's own is read.
TEST_KERNEL_LOG = Path("/run/labrack-testnode/kmsg")
#: Xids after which NVIDIA's catalogue wants the GPU reset or the machine restarted: a stopped engine, ECC, NVLink,
#: fallen off the bus, GSP. https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html
FATAL_XIDS = frozenset({46, 48, 62, 64, 74, 79, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158, 160, 162})
#: Newer drivers say with this one that nothing is left to do for a GPU: it has been reset.
RECOVERED = re.compile(r"^154, .* to 0x0 \(None\)")


def expected_devices(gres: str, node: str) -> list[str]:
    """Return the device files that gres.conf gives to a node, in order."""
    devices: list[str] = []
    for line in gres.splitlines():
        fields = dict(word.split("=", 1) for word in line.split("#", 1)[0].split() if "=" in word)
        if fields.get("NodeName") == node and fields.get("Name") == "gpu":
            devices += _unfold(fields.get("File", ""))
    return devices


def _unfold(text: str) -> list[str]:
    match = re.fullmatch(r"(.*)\[([\d,-]+)\]", text)
    if not match:
        return [text] if text else []
    names: list[str] = []
    for piece in match.group(2).split(","):
        low, _dash, high = piece.partition("-")
        names += [f"{match.group(1)}{number}" for number in range(int(low), int(high or low) + 1)]
    return names


def fatal_xids(log: str) -> list[str]:
    """Return "PCI address Xid N" for each fatal Xid of a kernel log that no reset followed, without repeats.

    The kernel's line is ``NVRM: Xid (PCI:0000:07:00): 79, pid=…`` (https://docs.nvidia.com/deploy/xid-errors/); with
    MIG the instance follows the address, as in ``(PCI:0000:07:00 GPU-I:05)``.
    """
    found: dict[str, str] = {}
    for address, words in re.findall(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)[^)]*\): (\d+.*)", log):
        number = int(re.split(r"\D", words, maxsplit=1)[0])
        if RECOVERED.match(words):
            found = {text: at for text, at in found.items() if at != address}
        elif number in FATAL_XIDS:
            found[f"{address} Xid {number}"] = address
    return list(found)


def problems(devices: Sequence[str], present: Sequence[str], smi_rc: int, smi_output: str, log: str) -> list[str]:
    """Return what is wrong with the node's GPUs, empty when nothing is.

    ``devices`` are those that Slurm gives out, ``present`` those whose file exists; ``smi_rc`` and ``smi_output`` are
    of ``nvidia-smi -L`` (rc 127: not installed, which is no problem by itself). Pure.
    """
    if not devices:
        return []
    found = [f"{device} is missing" for device in devices if device not in present]
    listed = re.findall(r"^GPU \d+: ", smi_output, re.MULTILINE)
    first = next((line.strip() for line in smi_output.splitlines() if line.strip()), "no output")
    if smi_rc not in (0, 127):
        found.append(f"nvidia-smi fails with {smi_rc}: {first}")
    elif smi_rc == 0 and len(listed) < len(devices):
        lost = next((line.strip() for line in smi_output.splitlines() if not line.startswith("GPU ")), "")
        found.append(f"nvidia-smi lists {len(listed)} of {len(devices)} GPUs" + (f": {lost}" if lost else ""))
    return found + [f"GPU {text}" for text in fatal_xids(log)]


def decide(found: Sequence[str], state: str, reason: str) -> list[str] | None:
    """Return the ``key=value`` words for ``scontrol update``, None when the node is as it should be.

    A node that somebody else has drained is left alone, ill or not. Pure.
    """
    drained = "DRAIN" in state
    ours = reason.startswith(TAG)
    if found and (not drained or ours):
        wanted = f"{TAG} {'; '.join(found)}"[:200]
        return None if drained and reason == wanted else ["state=drain", f"reason={wanted}"]
    if not found and drained and ours:
        return ["state=resume"]
    return None


def _run(argv: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except FileNotFoundError:
        return 127, ""
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} does not answer"
    return done.returncode, done.stdout + done.stderr


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def node_name() -> str:
    """Return the node's name in Slurm."""
    option = re.search(r"-N (\S+?)[\"\s]", _read(ENVIRONMENT) or "")
    return os.environ.get("SLURMD_NODENAME") or (option.group(1) if option else socket.gethostname().split(".")[0])


def main(prolog: bool) -> int:
    """Check the node, drain or resume it; as prolog, fail when it is ill."""
    name = node_name()
    gres = next((text for text in map(_read, GRES_FILES) if text is not None), "")
    devices = expected_devices(gres, name)
    log = _read(TEST_KERNEL_LOG)
    if log is None:
        log = _run(["dmesg"])[1] if devices else ""
    smi_rc, smi_output = _run(["nvidia-smi", "-L"]) if devices else (0, "")
    found = problems(devices, [device for device in devices if os.path.exists(device)], smi_rc, smi_output, log)
    rc, shown = _run(["scontrol", "--oneliner", "show", "node", name])
    if rc == 0:
        state = re.search(r"\bState=(\S+)", shown)
        # the reason ends before its "[user@time]"; a comment, a reservation and more may follow
        reason = re.search(r"\bReason=(.*?)(?: \[[^\[\]\s]+@[^\[\]]+\].*)?$", shown.strip())
        words = decide(found, state.group(1) if state else "", reason.group(1) if reason else "")
        if words:
            _run(["scontrol", "update", f"nodename={name}", *words])
    return 1 if prolog and found else 0


if __name__ == "__main__":
    sys.exit(main(prolog=os.path.basename(sys.argv[0]) == "prolog"))
