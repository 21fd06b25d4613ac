# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What has a host watch its GPUs and tell people of them: ``labrack-gpus``, its timer, a word at login, metrics.

Pure planner, no Ansible import. What the command does is in the role's ``files/gpus.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.finding import HIDDEN, Finding, shown
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit, sandbox

UNIT = "labrack-gpu-watch"
PROGRAM = "/usr/local/bin/labrack-gpus"
CONFIG = "/etc/labrack/gpu_watch.json"
WEBHOOK = "/etc/labrack/gpu_watch_webhook"
SERVICE = f"/etc/systemd/system/{UNIT}.service"
TIMER = f"/etc/systemd/system/{UNIT}.timer"
LOGIN = "/etc/profile.d/labrack-gpus.sh"
#: Samples, metrics and episodes; what logins read.
FOLDER = "/var/lib/labrack/gpu-watch"
RUN = "/run/labrack/gpus"
METRICS = f"{FOLDER}/labrack_gpu.prom"
SECRETS = frozenset({WEBHOOK})
#: The files of the role, in the order in which they are written.
FILES = (PROGRAM, CONFIG, WEBHOOK, SERVICE, TIMER, LOGIN)
HEADER = "# Written by labrack.\n"
#: Least and most of the settings that are numbers.
BOUNDS = {
    "below_slowdown": (0, 50),
    "hot": (40, 120),
    "sustain": (1, 60),
    "calm": (1, 1440),
    "heat_watts": (0, 1_000_000),
    "keep_days": (1, 366),
}


class GpuWatchError(ValueError):
    """A wish that can't be; the message says cause and mend."""


@dataclass(frozen=True)
class Wanted:
    """What the host shall be; see the role's variables. ``settings`` are those of the command, ``script`` its text.

    ``textfile_directory`` is where node_exporter's collector looks.
    """

    present: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    webhook: str = field(default="", repr=False)
    script: str = ""
    textfile_directory: str = ""


@dataclass(frozen=True)
class Observed:
    """The host as it is. ``linked``: the metrics are among those of node_exporter; None where it has no folder.

    ``data``: the folder with samples, or that with what logins read, is there.
    """

    files: Mapping[str, FileState | None] = field(default_factory=dict)
    timer: ServiceState = field(default_factory=ServiceState)
    linked: bool | None = None
    data: bool = False


def problems(variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in the role's variables, by their full names."""
    for key, (least, most) in BOUNDS.items():
        value = variables.get(f"gpu_watch_{key}")
        if value is not None and not least <= value <= most:
            yield Finding(
                (f"gpu_watch_{key}",), shown(value), f"not from {least} to {most}", "write a number in between"
            )
    mail = str(variables.get("gpu_watch_mail") or "")
    if mail and not re.fullmatch(r"[^\s@<>,]+(@[^\s@<>,]+)?", mail):
        yield Finding(("gpu_watch_mail",), shown(mail), "not an address", "write admin@example.org")
    webhook = str(variables.get("gpu_watch_webhook") or "")
    if webhook and not re.fullmatch(r"https?://\S+", webhook.strip()):
        yield Finding(("gpu_watch_webhook",), HIDDEN, "not a http or https address", "write https://…")


def service_text() -> str:
    """Return the unit of one look: it reads the cards, who uses them, and the queues, and writes to its folders."""
    kept = sandbox(
        CapabilityBoundingSet=(
            "CAP_DAC_READ_SEARCH CAP_SYS_PTRACE CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER CAP_SETUID CAP_SETGID"
        ),
        ReadWritePaths="-/var/spool -/var/mail",
        PrivateDevices=None,
        RestrictAddressFamilies="AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        SystemCallArchitectures=None,
        SystemCallFilter=None,
    )
    return f"""{HEADER}[Unit]
Description=Look at this host's GPUs
Documentation=man:systemd.exec(5)

[Service]
Type=oneshot
ExecStart={PROGRAM} sample
TimeoutStartSec=3min
Nice=10
StateDirectory=labrack/gpu-watch
RuntimeDirectory=labrack/gpus
RuntimeDirectoryPreserve=yes
UMask=0022
{kept}"""


def timer_text() -> str:
    """Return the timer: once a minute, which is what a sample stands for."""
    return f"""{HEADER}[Unit]
Description=Look at this host's GPUs

[Timer]
OnBootSec=30
OnCalendar=minutely
AccuracySec=5

[Install]
WantedBy=timers.target
"""


#: A file that the timer does not write any more says nothing of now.
LOGIN_TEXT = f"""{HEADER}case $- in
*i*)
    if [ -s {RUN}/motd ] && [ -n "$(find {RUN}/motd -mmin -10 2>/dev/null)" ]; then
        cat {RUN}/motd
    fi
    ;;
esac
"""


def wanted_files(wanted: Wanted) -> dict[str, FileState | None]:
    """Return the role's files by path, in the order of :data:`FILES`; None for one that shall not be there."""
    return {
        PROGRAM: FileState(wanted.script, "0755"),
        CONFIG: FileState(json.dumps(dict(wanted.settings), indent=2, sort_keys=True) + "\n"),
        WEBHOOK: FileState(wanted.webhook.strip() + "\n", "0600") if wanted.webhook else None,
        SERVICE: FileState(service_text()),
        TIMER: FileState(timer_text()),
        LOGIN: FileState(LOGIN_TEXT) if wanted.settings.get("motd", True) else None,
    }


def plan(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied."""
    if not wanted.present:
        return _plan_absent(observed)
    note_unit(f"{UNIT}.timer", observed.timer)
    changes: list[Change] = []
    timer_changed = False
    for path, file in wanted_files(wanted).items():
        found = plan_file(path, observed.files.get(path), file, secret=path in SECRETS)
        changes += found
        timer_changed |= bool(found) and path == TIMER
    if observed.linked is False:
        changes.append(Change(f"metrics in {wanted.textfile_directory}", "linked", step=("link",)))
    if not observed.timer.enabled:
        changes.append(Change(f"timer {UNIT}", "enabled at boot", step=("enable", f"{UNIT}.timer")))
    if timer_changed or not observed.timer.active:
        changes.append(Change(f"timer {UNIT}", "started", step=("restart", f"{UNIT}.timer")))
    return changes


def _plan_absent(observed: Observed) -> list[Change]:
    changes: list[Change] = []
    if observed.timer.active or observed.timer.enabled:
        changes.append(Change(f"timer {UNIT}", "stopped and disabled", step=("disable", f"{UNIT}.timer")))
    if observed.linked:
        changes.append(Change("metrics of node_exporter", "no link any more", step=("unlink",)))
    for path in FILES:
        changes += plan_file(path, observed.files.get(path), None, secret=path in SECRETS)
    if observed.data:
        changes.append(Change(f"directory {FOLDER}", "removed with its samples", step=("rmtree",)))
    return changes
