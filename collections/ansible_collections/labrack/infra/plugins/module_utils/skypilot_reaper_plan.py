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
from ansible_collections.labrack.infra.plugins.module_utils.finding import HIDDEN, Finding, shown
from ansible_collections.labrack.infra.plugins.module_utils.hardware_observe import Mount
from ansible_collections.labrack.infra.plugins.module_utils.mount_observe import Place
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.storage_layout import inside
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit, quoted, sandbox

USER = "skypilot"
HOME = "/var/lib/skypilot"
PYTHON = "/opt/skypilot/current/bin/python"
UNIT = "labrack-skypilot-reaper"
CONFIG = "/etc/labrack/skypilot_reaper.json"
WEBHOOK = "/etc/labrack/skypilot_reaper_webhook"
TOKEN = "/etc/labrack/skypilot_reaper_token"  # noqa: S105  (a path)
SERVICE = f"/etc/systemd/system/{UNIT}.service"
TIMER = f"/etc/systemd/system/{UNIT}.timer"
#: The other service: it gives what pods wrote to whom it belongs.
OWNER = "labrack-skypilot-owner"
OWNER_SERVICE = f"/etc/systemd/system/{OWNER}.service"
OWNER_TIMER = f"/etc/systemd/system/{OWNER}.timer"
#: And the one by which no file there lends rights to who runs it.
NOSUID = "labrack-skypilot-nosuid"
NOSUID_SERVICE = f"/etc/systemd/system/{NOSUID}.service"
LOGIN = "/etc/profile.d/labrack-messages.sh"
#: What people read at login, a file for each; what the reaper remembers, its reports, and the home of its client.
MESSAGES = "/run/labrack/messages"
STATE = f"{HOME}/reaper.json"
REPORTS = f"{HOME}/reports"
CLIENT = f"{HOME}/reaper"
SECRETS = frozenset({WEBHOOK, TOKEN})
#: The files of the role, in the order in which they are written.
FILES = (CONFIG, WEBHOOK, TOKEN, SERVICE, TIMER, LOGIN, OWNER_SERVICE, OWNER_TIMER, NOSUID_SERVICE)
#: What the reaper leaves behind.
DATA = (MESSAGES, STATE, f"{HOME}/reaper.lock", f"{HOME}/reaper.damaged", REPORTS, CLIENT)
HEADER = "# Written by labrack.\n"
HOURS = ("grace_hours", "no_autostop_hours", "stuck_hours", "unknown_hours", "idle_hours")


class ReaperError(ValueError):
    """A wish that can't be; the message says cause and mend."""


@dataclass(frozen=True)
class Wanted:
    """What the host shall be. ``settings`` are the reaper's, as its module ``reaper`` has them, without secrets.

    ``written``: folders of this host in which pods write; what is in people's folders there is given to them, and no
    set-user-ID file or device counts there.
    """

    present: bool = True
    reaper: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    webhook: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    every: int = 10
    written: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observed:
    """The host as it is; both timers. ``user``: the server's user is there; ``data``: what a reaper has left behind.

    ``exposed``: folders of this host's in which pods write and set-user-ID files count.
    """

    files: Mapping[str, FileState | None] = field(default_factory=dict)
    timer: ServiceState = field(default_factory=ServiceState)
    owner: ServiceState = field(default_factory=ServiceState)
    user: bool = True
    data: Sequence[str] = ()
    nosuid: ServiceState = field(default_factory=ServiceState)
    exposed: Sequence[str] = ()


#: Least and most of the variables that are numbers. What is longer between two looks could miss that somebody worked.
BOUNDS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(HOURS, (0, 8760)),
    "grace_hours": (0.25, 8760),
    "idle_minutes": (1, 10080),
    "busy_percent": (0, 50),
    "every_minutes": (1, 60),
}


def problems(variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in the role's variables, by their full names."""
    for name, (least, most) in BOUNDS.items():
        key = f"skypilot_reaper_{name}"
        value = variables.get(key)
        if value is not None and not least <= value <= most:
            yield Finding((key,), shown(value), f"not from {least:g} to {most:g}", "write a number in between")
    domain = str(variables.get("skypilot_reaper_mail_domain") or "")
    if domain and not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", domain):
        yield Finding(("skypilot_reaper_mail_domain",), shown(domain), "not a domain", "write example.org")
    mail = str(variables.get("skypilot_reaper_report_mail") or "")
    if mail and not re.fullmatch(r"[^\s@<>,]+(@[^\s@<>,]+)?", mail):
        yield Finding(("skypilot_reaper_report_mail",), shown(mail), "not an address", "write admin@example.org")
    webhook = str(variables.get("skypilot_reaper_webhook") or "")
    if webhook and not re.fullmatch(r"https?://\S+", webhook.strip()):
        yield Finding(("skypilot_reaper_webhook",), HIDDEN, "not a http or https address", "write https://…")


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


def written_by_pods(infra: Mapping[str, Any], mounts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the folders in which pods of this lab write, of ``skypilot_infra`` and ``skypilot_mounts``.

    A path with ``{user}`` in it stands for the folder that has people's folders.
    """
    if not (infra.get("kubernetes") or infra.get("ssh_pools")):
        return ()
    paths = [str(mount["path"]).partition("/{user}")[0] for mount in mounts if not mount.get("read_only")]
    return tuple(dict.fromkeys(paths))


def service_text() -> str:
    """Return the unit of one run: the server's user, who needs no privilege, as the server trusts it on loopback."""
    kept = sandbox(ReadWritePaths=f"{HOME} -/var/spool -/var/mail")
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
{kept}"""


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


def owner_service_text(written: Sequence[str]) -> str:
    """Return the unit that gives files away: it may do that, and sees nothing but these folders to write to."""
    places = " ".join(quoted(f"-{path}") for path in written)
    return f"""{HEADER}[Unit]
Description=Give what pods wrote in people's folders to them
Documentation=man:systemd.exec(5)
ConditionPathExists={PYTHON}

[Service]
Type=oneshot
ExecStart={PYTHON} -m labrack_skypilot.owner
TimeoutStartSec=1h
Nice=15
IOSchedulingClass=idle
UMask=0077
NoNewPrivileges=true
CapabilityBoundingSet=CAP_CHOWN CAP_FOWNER CAP_FSETID CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH
ProtectSystem=strict
ReadWritePaths={places}
PrivateTmp=true
PrivateDevices=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectKernelLogs=true
ProtectControlGroups=true
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=true
LockPersonality=true
"""


def nosuid_service_text(written: Sequence[str]) -> str:
    """Return the unit that has these folders mounted with nosuid and nodev, on themselves where they are no mounts."""
    places = " ".join(quoted(path) for path in written)
    return f"""{HEADER}[Unit]
Description=No set-user-ID files and no devices where pods write
After=local-fs.target
Before=k3s.service k3s-agent.service
ConditionPathExists={PYTHON}

[Service]
Type=oneshot
RemainAfterExit=yes
RuntimeDirectory=labrack/nosuid
ExecStart={PYTHON} -m labrack_skypilot.nosuid {places}
ExecStop={PYTHON} -m labrack_skypilot.nosuid --stop

[Install]
WantedBy=multi-user.target
"""


def exposed(written: Sequence[str], places: Mapping[str, Place], mounts: Mapping[str, Mount]) -> list[str]:
    """Return the folders of this host's own disks on which set-user-ID files or devices count."""

    def is_open(path: str) -> bool:
        place = places[path]
        if place["kind"] != "directory" or place["remote"] or place["fstype"] == "autofs":
            return False
        if path not in mounts:
            return not any(other != path and inside(path, other) for other in written)
        return not {"nosuid", "nodev"} <= set(mounts[path]["options"])

    return [path for path in written if is_open(path)]


OWNER_TIMER_TEXT = f"""{HEADER}[Unit]
Description=Give what pods wrote in people's folders to them

[Timer]
OnBootSec=2min
OnUnitInactiveSec=5min

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

    reaper = {
        CONFIG: FileState(json.dumps(dict(wanted.settings), indent=2, sort_keys=True) + "\n"),
        WEBHOOK: secret(wanted.webhook),
        TOKEN: secret(wanted.token),
        SERVICE: FileState(service_text()),
        TIMER: FileState(timer_text(wanted.every)),
        LOGIN: FileState(LOGIN_TEXT),
    }
    written = {
        OWNER_SERVICE: FileState(owner_service_text(wanted.written)),
        OWNER_TIMER: FileState(OWNER_TIMER_TEXT),
        NOSUID_SERVICE: FileState(nosuid_service_text(wanted.written)),
    }
    return {
        **(reaper if wanted.reaper else dict.fromkeys(reaper)),
        **(written if wanted.written else dict.fromkeys(written)),
    }


def plan(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied."""
    if not wanted.present:
        return _plan_absent(observed)
    changes: list[Change] = []
    changed: set[str] = set()
    if not wanted.reaper:
        changes += _stop(f"{UNIT}.timer", observed.timer)
    if not wanted.written:
        changes += [*_stop(f"{OWNER}.timer", observed.owner), *_stop(f"{NOSUID}.service", observed.nosuid)]
    for path, file in wanted_files(wanted).items():
        found = plan_file(path, observed.files.get(path), file, secret=path in SECRETS)
        changes += found
        changed |= {path} if found else set()
    if wanted.reaper:
        changes += _start(f"{UNIT}.timer", observed.timer, TIMER in changed)
    else:
        changes += _plan_data(observed)
    if wanted.written:
        changes += _start(f"{OWNER}.timer", observed.owner, OWNER_TIMER in changed)
        changes += _start(f"{NOSUID}.service", observed.nosuid, NOSUID_SERVICE in changed or bool(observed.exposed))
    return changes


def _start(unit: str, state: ServiceState, changed: bool) -> list[Change]:
    note_unit(unit, state)
    changes = []
    if not state.enabled:
        changes.append(Change(_subject(unit), "enabled at boot", step=("enable", unit)))
    if changed or not state.active:
        changes.append(Change(_subject(unit), "started", step=("restart", unit)))
    return changes


def _stop(unit: str, state: ServiceState) -> list[Change]:
    if state.active or state.enabled:
        return [Change(_subject(unit), "stopped and disabled", step=("disable", unit))]
    return []


def _subject(unit: str) -> str:
    name, _dot, kind = unit.rpartition(".")
    return f"{kind} {name}"


def _plan_absent(observed: Observed) -> list[Change]:
    changes = [*_stop(f"{UNIT}.timer", observed.timer), *_stop(f"{OWNER}.timer", observed.owner)]
    changes += _stop(f"{NOSUID}.service", observed.nosuid)
    for path in FILES:
        changes += plan_file(path, observed.files.get(path), None, secret=path in SECRETS)
    return [*changes, *_plan_data(observed)]


def _plan_data(observed: Observed) -> list[Change]:
    return [Change(f"data {path}", "removed", step=("rmtree", path)) for path in observed.data]
