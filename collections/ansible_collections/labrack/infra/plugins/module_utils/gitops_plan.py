# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What makes a head keep its lab as a git repository says: a user with a deploy key, labrack itself, service and timer.

Pure planner, no Ansible import. labrack is a virtual environment whose name tells its inputs, behind a link: a run that
goes on keeps the one that it began with.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change
from ansible_collections.labrack.infra.plugins.module_utils.maintenance_window import Window, WindowError
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit, sandbox

USER = "labrack-gitops"
HOME = f"/var/lib/{USER}"
STATE = f"{HOME}/state"
METRICS = f"{HOME}/metrics/labrack_gitops.prom"
SSH = f"{HOME}/.ssh"
KEY = f"{SSH}/id_ed25519"
KNOWN_HOSTS = f"{SSH}/known_hosts"
CONFIG = "/etc/labrack/gitops.toml"
FOLDER = "/etc/labrack/gitops"
SIGNERS = f"{FOLDER}/allowed_signers"
VAULT = f"{FOLDER}/vault-password"
WEBHOOK = f"{FOLDER}/webhook"
OPT = "/opt/labrack"
REQUIREMENTS = f"{OPT}/requirements.txt"
#: The link to the environment in use.
VENV = f"{OPT}/venv"
#: In an environment that is whole.
COMPLETE = ".complete"
SERVICE = f"/etc/systemd/system/{USER}.service"
TIMER = f"/etc/systemd/system/{USER}.timer"
RECORD = "/var/lib/labrack/gitops-role.json"
SECRETS = frozenset({VAULT, WEBHOOK})
#: The role's files, in the order in which they are written.
FILES = (CONFIG, SIGNERS, VAULT, WEBHOOK, KNOWN_HOSTS, REQUIREMENTS, SERVICE, TIMER)
HEADER = "# Written by labrack.\n"
OLDEST_PYTHON = (3, 11)
_CALENDAR = re.compile(r"[A-Za-z0-9*,.~/:_+ -]+")
#: What an address must not begin with, so that git takes it for no option and runs no helper.
_ADDRESS = re.compile(r"(/|ssh://|https://|http://|file:///|git://|[\w.-]+@[\w.-]+:(?!-))\S+")


class GitopsError(ValueError):
    """A wish that can't be; the message says cause and mend."""


@dataclass(frozen=True)
class Wanted:
    """What the head shall be; see the role's variables. Texts of files are whole, ``config`` has the keys of the TOML.

    ``wheel`` is labrack's, on the host, and ``wheel_sha256`` its sum. ``installed``: packages that the role has just
    brought here.
    """

    present: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    allowed_signers: str = ""
    vault_password: str = field(default="", repr=False)
    webhook: str = field(default="", repr=False)
    known_hosts: str = ""
    schedule: str = "*:0/15"
    wheel: str = ""
    wheel_sha256: str = ""
    requirements: str = ""
    textfile_directory: str = ""
    installed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observed:
    """The head as it is. ``python`` is the version of the interpreter that labrack is to run with, () for none.

    ``public_key`` is the deploy key's, ``venv`` the name of the environment in use where it is whole. ``linked``: the
    metrics are among those of node_exporter; None where it has no folder for them.
    """

    files: Mapping[str, FileState | None] = field(default_factory=dict)
    user: bool = False
    public_key: str = ""
    venv: str = ""
    opt: bool = False
    linked: bool | None = None
    timer: ServiceState = field(default_factory=ServiceState)
    python: tuple[int, ...] = ()


def problems(wanted: Wanted) -> Iterator[str]:
    """Yield what is wrong in what is wanted, with key, value and mend; none of it needs the host."""
    config = wanted.config
    address = str(config.get("repository") or "")
    if not address:
        yield "gitops_repository is not set. Mend: write git@git.example.org:lab/closet.git"
    elif re.match(r"https?://[^/@]*@", address) or re.match(r"\w+://[^/@:]*:[^/@]*@", address):
        yield (
            "gitops_repository holds a user name or a password, which would be seen. Mend: use ssh and the deploy key "
            "that the role makes"
        )
    elif not _ADDRESS.fullmatch(address):
        yield f"gitops_repository is {address!r}: no address. Mend: write git@git.example.org:lab/closet.git"
    lines = [line for line in wanted.allowed_signers.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        yield (
            "gitops_allowed_signers names nobody. Mend: add a line for each who may sign: "
            "ada@example.org ssh-ed25519 AAAA…"
        )
    for line in lines:
        if not re.search(r"\s(sk-)?(ssh|ecdsa)-\S+\s+[A-Za-z0-9+/=]{20,}", line):
            yield (
                f"gitops_allowed_signers has {line[:60]!r}: no name and public key. Mend: write "
                "ada@example.org ssh-ed25519 AAAA…, see ssh-keygen(1)"
            )
        elif "PRIVATE KEY" in line:
            yield "gitops_allowed_signers has a private key. Mend: give the public half, and make a new key"
    for key in ("max_disruption", "window_disruption"):
        if config.get(key) not in DISRUPTIONS:
            yield f"gitops_{key} is {config.get(key)!r}: none of {', '.join(DISRUPTIONS)}"
    for text in config.get("windows") or ():
        try:
            Window.read(str(text))
        except WindowError as error:
            yield f"gitops_windows: {error}"
    if not _CALENDAR.fullmatch(wanted.schedule):
        yield f"gitops_schedule is {wanted.schedule!r}: no time of systemd's calendar. Mend: write *:0/15 or hourly"
    if wanted.webhook and not re.fullmatch(r"https?://\S+", wanted.webhook.strip()):
        yield "gitops_webhook (value hidden) is no http or https address"
    if not re.fullmatch(r"[0-9a-f]{64}", wanted.wheel_sha256):
        yield "gitops_wheel names no wheel of labrack. Mend: install with `labrack gitops install`, or name one"
    for path in config.get("inventory") or ("",):
        if not path or str(path).startswith("/") or ".." in str(path).split("/"):
            yield f"gitops_inventory has {path!r}: no path inside the repository. Mend: write inventory"


def python_problem(python: tuple[int, ...], program: str) -> str:
    """Return why labrack can't run with a Python, empty for no reason."""
    if python >= OLDEST_PYTHON:
        return ""
    what = f"is {'.'.join(map(str, python))}" if python else "does not run"
    return (
        f"gitops_python {program} {what}, and labrack needs Python 3.11 or newer with venv. Mend: install one, and "
        "name it in gitops_python"
    )


def venv_name(wanted: Wanted, python: tuple[int, ...]) -> str:
    """Return the name of the environment for these inputs; another wheel, requirement or Python gives another one."""
    text = "\0".join((wanted.wheel_sha256, wanted.requirements, ".".join(map(str, python[:2]))))
    return f"venv-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def toml(config: Mapping[str, Any]) -> str:
    """Return a flat TOML document of texts, numbers and lists of texts; what is empty is left out."""
    lines = [f"{key} = {_value(value)}\n" for key, value in config.items() if value not in ("", None, [], ())]
    return HEADER + "".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(one) for one in value)}]"
    if isinstance(value, int):
        return str(value)
    # a JSON text is a basic string of TOML, but for DEL
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def config_text(wanted: Wanted) -> str:
    """Return the configuration file."""
    fixed = {
        "allowed_signers": SIGNERS,
        "state": STATE,
        "metrics": METRICS,
        "vault_password_file": VAULT if wanted.vault_password else "",
        "webhook_file": WEBHOOK if wanted.webhook else "",
    }
    return toml({**wanted.config, **fixed})


def service_text() -> str:
    """Return the unit of one run: it writes to its own folder alone and needs no privilege, as it works by ssh."""
    return f"""{HEADER}[Unit]
Description=Keep the lab as its repository says
Documentation=man:systemd.exec(5)
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User={USER}
Group={USER}
ExecStart={VENV}/bin/labrack gitops run
SuccessExitStatus=75
TimeoutStartSec=6h
TimeoutStopSec=2min
Environment=HOME={HOME} XDG_STATE_HOME={STATE} SHELL=/bin/sh PYTHONUNBUFFERED=1
WorkingDirectory={HOME}
UMask=0077
Nice=5
{sandbox(ReadWritePaths=HOME)}"""


def timer_text(schedule: str) -> str:
    """Return the timer; a run that was missed is made at the next start."""
    return f"""{HEADER}[Unit]
Description=Keep the lab as its repository says

[Timer]
OnCalendar={schedule}
RandomizedDelaySec=60
Persistent=true

[Install]
WantedBy=timers.target
"""


def wanted_files(wanted: Wanted) -> dict[str, FileState | None]:
    """Return the role's files by path, in the order of :data:`FILES`; None for one that shall not be there."""
    return {
        CONFIG: FileState(config_text(wanted), "0640", "root", USER),
        SIGNERS: FileState(_ended(wanted.allowed_signers)),
        VAULT: FileState(_ended(wanted.vault_password), "0640", "root", USER) if wanted.vault_password else None,
        WEBHOOK: FileState(_ended(wanted.webhook), "0640", "root", USER) if wanted.webhook else None,
        KNOWN_HOSTS: FileState(_ended(wanted.known_hosts), "0644") if wanted.known_hosts else None,
        REQUIREMENTS: FileState(_ended(wanted.requirements)),
        SERVICE: FileState(service_text()),
        TIMER: FileState(timer_text(wanted.schedule)),
    }


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def installed(observed: Observed, wanted: Wanted) -> list[str]:
    """Return the packages that the role has brought here, now or before; GitopsError for a damaged record."""
    record = observed.files.get(RECORD)
    try:
        before = [str(name) for name in json.loads(record.text)["packages"]] if record else []
    except (ValueError, KeyError, TypeError):
        raise GitopsError(f"{RECORD} is not what labrack wrote. Mend: remove it and run again") from None
    return sorted({*before, *wanted.installed})


def record_file(observed: Observed, wanted: Wanted) -> FileState:
    """Return the file that holds what there is to remember."""
    return FileState(json.dumps({"packages": installed(observed, wanted)}) + "\n", "0600")


def plan(observed: Observed, wanted: Wanted, program: str = "python3") -> list[Change]:
    """Return what is off, in the order in which it can be applied; GitopsError for what can't be."""
    if not wanted.present:
        return _plan_absent(observed)
    found = [*problems(wanted), python_problem(observed.python, program)]
    if any(found):
        raise GitopsError("\n".join(text for text in found if text))
    changes: list[Change] = []
    if not observed.user:
        changes.append(Change(f"user {USER}", "created", step=("user",)))
    if not observed.public_key:
        changes.append(Change(f"deploy key {KEY}", "made", step=("key",)))
    units = False
    for path, file in wanted_files(wanted).items():
        off = plan_file(path, observed.files.get(path), file, secret=path in SECRETS)
        changes += off
        units |= bool(off) and path == TIMER
    name = venv_name(wanted, observed.python)
    if observed.venv != name:
        what = f"made anew from {wanted.wheel.rpartition('/')[2]}" if observed.venv else "made"
        changes.append(Change(f"environment {VENV}", what, step=("venv", name)))
    if observed.linked is False:
        changes.append(Change(f"metrics in {wanted.textfile_directory}", "linked", step=("link",)))
    changes += plan_file(RECORD, observed.files.get(RECORD), record_file(observed, wanted))
    note_unit(f"{USER}.timer", observed.timer)
    if not observed.timer.enabled:
        changes.append(Change(f"timer {USER}", "enabled at boot", step=("enable", f"{USER}.timer")))
    if units or not observed.timer.active:
        changes.append(Change(f"timer {USER}", "started", step=("restart", f"{USER}.timer")))
    return changes


def _plan_absent(observed: Observed) -> list[Change]:
    """Plan the way back: nothing stays, the deploy key neither."""
    changes: list[Change] = []
    if observed.timer.active or observed.timer.enabled:
        changes.append(Change(f"timer {USER}", "stopped and disabled", step=("disable", f"{USER}.timer")))
    if observed.linked:
        changes.append(Change("metrics of node_exporter", "link removed", step=("unlink",)))
    for path in FILES:
        if not path.startswith((HOME, OPT)):
            changes += plan_file(path, observed.files.get(path), None, secret=path in SECRETS)
    if observed.opt:
        changes.append(Change(f"environment {OPT}", "removed", step=("rmtree", OPT)))
    if observed.user:
        changes.append(Change(f"user {USER}", f"removed with {HOME} and the deploy key", step=("userdel",)))
    changes += plan_file(RECORD, observed.files.get(RECORD), None)
    return changes
