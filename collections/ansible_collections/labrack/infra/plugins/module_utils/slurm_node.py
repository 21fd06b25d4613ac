# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What makes a host a Slurm worker or login node. Pure planner, no Ansible import.

Workers are configless (https://slurm.schedmd.com/configless_slurm.html): slurmd asks the controller. A worker that is
the controller too reads /etc/slurm. A restart of slurmd ends no job: slurmstepd holds it (slurmd(8)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import HEADER, SCRIPT_DIRECTORY
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service

SLURM_CONF = "/etc/slurm/slurm.conf"
#: The copy that a configless slurmd has fetched.
FETCHED_CONF = "/run/slurm/conf/slurm.conf"
ENVIRONMENT = "/etc/labrack/slurmd.env"
DROP_IN = "/etc/systemd/system/slurmd.service.d/labrack.conf"
PAM_SSHD = "/etc/pam.d/sshd"
PAM_SESSION = "/etc/pam.d/common-session"
ACCESS = "/etc/security/labrack-slurm.conf"
SCRIPTS = ("prolog", "epilog", "health")

_BEGIN = "# BEGIN labrack:"
_END = "# END labrack"
_INCLUDE_ACCOUNT = "@include common-account"
_INCLUDE_SESSION = "@include common-session"


@dataclass(frozen=True)
class NodeState:
    """What was read on the host: files, the services, and when each file was last written (Unix time)."""

    files: Mapping[str, FileState | None]
    services: Mapping[str, ServiceState]
    written: Mapping[str, float]


@dataclass(frozen=True)
class NodeWish:
    """What the host shall be.

    ``conf_server`` is "host:port", empty where slurmd reads /etc/slurm; ``config`` is the controller's slurm.conf where
    this run knows it: a login node gets it as a file, a worker starts slurmd anew when ``refetch`` and slurmd has
    another one; ``exempt`` are the users who may log in to a worker without a job there, ``packages`` those that
    the role installs.
    """

    worker: bool
    conf_server: str = ""
    node_name: str = ""
    devices: tuple[str, ...] = ()
    scripts: Mapping[str, str] | None = None
    restrict_ssh: bool = True
    exempt: tuple[str, ...] = ()
    config: str | None = None
    refetch: bool = False
    packages: tuple[str, ...] = ()


def environment(wish: NodeWish) -> str:
    """Return the environment file of slurmd's unit."""
    options = [f"--conf-server {wish.conf_server}"] if wish.conf_server else []
    options += [f"-N {wish.node_name}"] if wish.node_name else []
    return f'{HEADER}SLURMD_OPTIONS="{" ".join(options)}"\n'


def drop_in(wish: NodeWish) -> str:
    """Return the drop-in of slurmd's unit.

    slurmd gives up for good when a GPU's device file comes late, so it waits for them. Older packages start slurmd only
    where /etc/slurm/slurm.conf exists, which a configless worker has not: the condition is lifted.
    """
    lines = [
        "[Unit]",
        "After=munge.service network-online.target nvidia-persistenced.service",
        "ConditionPathExists=",
        "",
        "[Service]",
    ]
    if wish.devices:
        missing = " || ".join(f"! test -e {device}" for device in wish.devices)
        lines.append(f"ExecStartPre=-/usr/bin/timeout 60 /bin/sh -c 'while {missing}; do sleep 1; done'")
    lines.append(f"EnvironmentFile={ENVIRONMENT}")
    return HEADER + "\n".join(lines) + "\n"


def access(exempt: Sequence[str]) -> str:
    """Return the pam_access(8) file that lets root and the exempt users in without a job."""
    return HEADER + f"+ : {' '.join(['root', *sorted(set(exempt) - {'root'})])} : ALL\n- : ALL : ALL\n"


def pam_sshd(text: str, common_session: str, restrict: bool) -> str:
    """Return /etc/pam.d/sshd with or without the rule that a login needs a job here (pam_slurm_adopt(8)).

    pam_systemd would move a session out of its job's cgroup, so common-session is spelled out without it for all but
    the exempt. Applying it twice changes nothing; ``restrict`` False gives the file back as the package made it.
    """
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith(_BEGIN):
            inside = True
            if _INCLUDE_SESSION in line:
                lines.append(_INCLUDE_SESSION)
        elif line.startswith(_END):
            inside = False
        elif not inside:
            lines.append(line)
    if restrict:
        lines = [new for line in lines for new in _restricted(line, common_session)]
    return "\n".join(lines) + "\n"


def pam_rule(text: str) -> list[str]:
    """Return the lines of /etc/pam.d/sshd that are ours."""
    found: list[str] = []
    inside = False
    for line in text.splitlines():
        inside = inside or line.startswith(_BEGIN)
        if inside:
            found.append(line)
        inside = inside and not line.startswith(_END)
    return found


def _restricted(line: str, common_session: str) -> list[str]:
    test = f"pam_access.so accessfile={ACCESS} noaudit"
    if line.strip() == _INCLUDE_ACCOUNT:
        return [
            line,
            f"{_BEGIN} a login needs a job on this node",
            f"account sufficient {test}",
            "account required pam_slurm_adopt.so action_adopt_failure=deny action_generic_failure=deny",
            _END,
        ]
    if line.strip() == _INCLUDE_SESSION:
        kept = [part for part in common_session.splitlines() if part.strip() and not part.startswith("#")]
        return [
            f"{_BEGIN} {_INCLUDE_SESSION}, with pam_systemd for the exempt alone",
            *[part for part in kept if "pam_systemd" not in part],
            f"session [success=ignore default=1] {test}",
            "session optional pam_systemd.so",
            _END,
        ]
    return [line]


def wanted_files(state: NodeState, wish: NodeWish) -> dict[str, FileState]:
    """Return the files that the wish asks for, by path."""
    if not wish.worker:
        return {} if wish.config is None else {SLURM_CONF: FileState(wish.config)}
    files: dict[str, FileState] = {}
    for name, text in (wish.scripts or {}).items():
        files[f"{SCRIPT_DIRECTORY}/{name}"] = FileState(text, "0755")
    files[ENVIRONMENT] = FileState(environment(wish))
    files[DROP_IN] = FileState(drop_in(wish))
    files[ACCESS] = FileState(access(wish.exempt))
    sshd, session = state.files.get(PAM_SSHD), state.files.get(PAM_SESSION)
    if sshd is not None and session is not None:
        files[PAM_SSHD] = FileState(
            pam_sshd(sshd.text, session.text, wish.restrict_ssh and contained(state, wish)),
            sshd.mode,
            sshd.owner,
            sshd.group,
        )
    return files


def contained(state: NodeState, wish: NodeWish) -> bool:
    """Tell whether a login can be put into a job, which takes proctrack/cgroup (pam_slurm_adopt(8)).

    What the controller has decides, as far as this run or the host knows it.
    """
    known = state.files.get(FETCHED_CONF) or state.files.get(SLURM_CONF)
    text = wish.config if wish.config is not None else known.text if known else ""
    return "ProctrackType=proctrack/linuxproc" not in text


def _outdated(state: NodeState, wish: NodeWish, service: ServiceState) -> bool:
    if not wish.refetch or wish.config is None:
        return False
    if not wish.conf_server:
        return state.written.get(SLURM_CONF, 0.0) > service.since
    fetched = state.files.get(FETCHED_CONF)
    return fetched is not None and fetched.text != wish.config


def plan_node(state: NodeState, wish: NodeWish) -> list[Change]:
    """Plan the host's way to the wish: files first, then slurmd."""
    changes: list[Change] = []
    for path, wanted in wanted_files(state, wish).items():
        disruption = "restart" if path in (ENVIRONMENT, DROP_IN) else "none"
        part = pam_rule(wanted.text) if path == PAM_SSHD else None
        changes += plan_file(path, state.files.get(path), wanted, disruption, part=part)
    managed.note_packages(wish.packages)
    if not wish.worker:
        return changes
    service = state.services["slurmd"]
    stale = any(state.written.get(path, 0.0) > service.since for path in (ENVIRONMENT, DROP_IN))
    why = "its options changed" if stale or any(change.disruption == "restart" for change in changes) else ""
    if not why and _outdated(state, wish, service):
        why = "the controller has another configuration"
    return changes + plan_service("slurmd", service, why)
