# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What has a SkyPilot server's host look for what is forgotten on the GPUs: settings, service, timer, a word at login.

Pure planner, no Ansible import. The reaper itself is in the server's environment, see the role's
``files/labrack_skypilot``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit

USER = "skypilot"
HOME = "/var/lib/skypilot"
PYTHON = "/opt/skypilot/current/bin/python"
UNIT = "labrack-skypilot-reaper"
CONFIG = "/etc/labrack/skypilot_reaper.json"
WEBHOOK = "/etc/labrack/skypilot_reaper_webhook"
TOKEN = "/etc/labrack/skypilot_reaper_token"  # noqa: S105  (a path)
SERVICE = f"/etc/systemd/system/{UNIT}.service"
TIMER = f"/etc/systemd/system/{UNIT}.timer"
LOGIN = "/etc/profile.d/labrack-messages.sh"
#: What people read at login, a file for each; what the reaper remembers, its reports, and the home of its client.
MESSAGES = "/run/labrack/messages"
STATE = f"{HOME}/reaper.json"
REPORTS = f"{HOME}/reports"
CLIENT = f"{HOME}/reaper"
SECRETS = frozenset({WEBHOOK, TOKEN})
#: The files of the role, in the order in which they are written.
FILES = (CONFIG, WEBHOOK, TOKEN, SERVICE, TIMER, LOGIN)
#: What the reaper leaves behind.
DATA = (MESSAGES, STATE, f"{HOME}/reaper.lock", f"{HOME}/reaper.damaged", REPORTS, CLIENT)
HEADER = "# Written by labrack.\n"
HOURS = ("grace_hours", "no_autostop_hours", "stuck_hours", "unknown_hours", "idle_hours")
#: Minutes that may be between two looks; what is longer could miss that somebody worked.
EVERY = (1, 60)


class ReaperError(ValueError):
    """A wish that can't be; the message says cause and mend."""


@dataclass(frozen=True)
class Wanted:
    """What the host shall be. ``settings`` are the reaper's, as its module ``reaper`` has them, without secrets."""

    present: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    webhook: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    every: int = 10


@dataclass(frozen=True)
class Observed:
    """The host as it is. ``user``: the server's user is there; ``data``: what a reaper has left behind."""

    files: Mapping[str, FileState | None] = field(default_factory=dict)
    timer: ServiceState = field(default_factory=ServiceState)
    user: bool = True
    data: Sequence[str] = ()


def problems(variables: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong in the role's variables (without their prefix), with key, value and mend."""
    for key in HOURS:
        value = variables.get(key)
        least = 0.0 if key != "grace_hours" else 0.25
        if value is not None and not least <= value <= 8760:
            yield f"skypilot_reaper_{key} is {value}: not from {least:g} to 8760. Mend: write a number of hours"
    minutes = variables.get("idle_minutes")
    if minutes is not None and not 1 <= minutes <= 10080:
        yield f"skypilot_reaper_idle_minutes is {minutes}: not from 1 to 10080. Mend: write a number of minutes"
    percent = variables.get("busy_percent")
    if percent is not None and not 0 <= percent <= 50:
        yield f"skypilot_reaper_busy_percent is {percent}: not from 0 to 50. Mend: write 0, which is none at all"
    every = variables.get("every_minutes")
    if every is not None and not EVERY[0] <= every <= EVERY[1]:
        yield f"skypilot_reaper_every_minutes is {every}: not from {EVERY[0]} to {EVERY[1]}. Mend: write 10"
    domain = str(variables.get("mail_domain") or "")
    if domain and not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", domain):
        yield f"skypilot_reaper_mail_domain is {domain!r}: no domain. Mend: write example.org"
    mail = str(variables.get("report_mail") or "")
    if mail and not re.fullmatch(r"[^\s@<>,]+(@[^\s@<>,]+)?", mail):
        yield f"skypilot_reaper_report_mail is {mail!r}: no address. Mend: write admin@example.org"
    webhook = str(variables.get("webhook") or "")
    if webhook and not re.fullmatch(r"https?://\S+", webhook.strip()):
        yield "skypilot_reaper_webhook (value hidden) is no http or https address. Mend: write https://…"


def settings_of(variables: Mapping[str, Any], webhook: bool, token: bool) -> dict[str, Any]:
    """Return the reaper's settings of the role's variables.

    ``infra`` has the names of contexts and Slurm clusters as ``skypilot_infra`` has them, ``users`` the Unix names by
    those in SkyPilot.
    """
    infra = variables.get("infra") or {}
    keys = ("dry_run", *HOURS, "idle_minutes", "busy_percent", "spare", "every_minutes", "mail_domain", "report_mail")
    found = {key: variables[key] for key in keys if variables.get(key) is not None}
    contexts = [str(one["name"]) for one in infra.get("kubernetes") or ()]
    contexts += [f"ssh-{name}" for name in infra.get("ssh_pools") or ()]
    found["kubectl"] = list(variables.get("kubectl") or ("kubectl",))
    found["kubeconfig"] = f"{HOME}/.kube/config"
    found["contexts"] = contexts
    ssh = ["ssh", "-F", f"{HOME}/.slurm/config", "-o", "BatchMode=yes"]
    # the reaper's client has a home of its own
    ssh += ["-o", f"UserKnownHostsFile={HOME}/.ssh/known_hosts", "-o", "StrictHostKeyChecking=accept-new"]
    found["slurm"] = {str(one["name"]): [*ssh, str(one["name"])] for one in infra.get("slurm") or ()}
    found["unix_names"] = dict(variables.get("unix_names") or {})
    found["webhook_file"] = WEBHOOK if webhook else ""
    found["token_file"] = TOKEN if token else ""
    return found


def service_text() -> str:
    """Return the unit of one run: the server's user, who needs no privilege, as the server trusts it on loopback."""
    return f"""{HEADER}[Unit]
Description=Look for what is forgotten on the lab's GPUs
Documentation=man:systemd.exec(5)
After=skypilot.service
ConditionPathExists={PYTHON}

[Service]
Type=oneshot
User={USER}
Group={USER}
ExecStartPre=/bin/mkdir -p {CLIENT}
ExecStart={PYTHON} -m labrack_skypilot.reaper --settings {CONFIG}
TimeoutStartSec=30min
Environment=HOME={CLIENT} PATH=/opt/skypilot/current/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/bin
WorkingDirectory={HOME}
RuntimeDirectory=labrack/messages
RuntimeDirectoryPreserve=yes
UMask=0077
Nice=10
NoNewPrivileges=true
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={HOME} -/var/spool -/var/mail
ProtectHome=true
PrivateTmp=true
PrivateDevices=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectKernelLogs=true
ProtectControlGroups=true
ProtectClock=true
ProtectHostname=true
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
LockPersonality=true
SystemCallArchitectures=native
SystemCallFilter=@system-service
"""


def timer_text(every: int) -> str:
    """Return the timer, for a look each so many minutes."""
    return f"""{HEADER}[Unit]
Description=Look for what is forgotten on the lab's GPUs

[Timer]
OnBootSec=5min
OnUnitActiveSec={every}min
RandomizedDelaySec=30

[Install]
WantedBy=timers.target
"""


#: Only for people, and only what is theirs; the name comes from the system and not from the environment.
LOGIN_TEXT = f"""{HEADER}case $- in
*i*)
    if [ -d {MESSAGES} ] && [ -s "{MESSAGES}/$(id -un)" ]; then
        cat "{MESSAGES}/$(id -un)"
    fi
    ;;
esac
"""


def wanted_files(wanted: Wanted) -> dict[str, FileState | None]:
    """Return the role's files by path, in the order of :data:`FILES`; None for one that shall not be there."""

    def secret(text: str) -> FileState | None:
        return FileState(text.strip() + "\n", "0600", USER, USER) if text else None

    return {
        CONFIG: FileState(json.dumps(dict(wanted.settings), indent=2, sort_keys=True) + "\n"),
        WEBHOOK: secret(wanted.webhook),
        TOKEN: secret(wanted.token),
        SERVICE: FileState(service_text()),
        TIMER: FileState(timer_text(wanted.every)),
        LOGIN: FileState(LOGIN_TEXT),
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
    if not observed.timer.enabled:
        changes.append(Change(f"timer {UNIT}", "enabled at boot", step=("enable", f"{UNIT}.timer")))
    if timer_changed or not observed.timer.active:
        changes.append(Change(f"timer {UNIT}", "started", step=("restart", f"{UNIT}.timer")))
    return changes


def _plan_absent(observed: Observed) -> list[Change]:
    changes: list[Change] = []
    if observed.timer.active or observed.timer.enabled:
        changes.append(Change(f"timer {UNIT}", "stopped and disabled", step=("disable", f"{UNIT}.timer")))
    for path in FILES:
        changes += plan_file(path, observed.files.get(path), None, secret=path in SECRETS)
    for path in observed.data:
        changes.append(Change(f"data {path}", "removed", step=("rmtree", path)))
    return changes
