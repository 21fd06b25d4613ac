# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judging a lab before a change, by what its nodes said of themselves and of their ways to each other. Pure.

What the next run makes by itself (a driver, daemons, /etc/hosts) is a note; what keeps it from doing so, or breaks
jobs, an error; the rest, which somebody should look at, a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import host_proof, nfs_client_plan, power_plan
from ansible_collections.labrack.infra.plugins.module_utils.doctor_ways import SERVICES
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from ansible_collections.labrack.infra.plugins.module_utils.users_plan import FIRST_NUMBER, LAST_NUMBER

OK, NOTE, WARNING, ERROR = "ok", "note", "warning", "error"
#: From the mildest to the worst.
SEVERITIES = (OK, NOTE, WARNING, ERROR)

#: What the modules need on a node.
PYTHON = (3, 9)
#: Older kernels than any that a supported system has.
KERNEL = (5, 4)
#: Seconds that a clock may be off, and those from which MUNGE refuses what another node signed (its default TTL).
CLOCK_WARNING, CLOCK_ERROR = 5.0, 300.0
#: MiB that must be free, and should be, on the file systems that a run or the system writes to.
SPACE = {"/boot": (50, 150), "/tmp": (50, 200)}  # noqa: S108
SPACE_ELSEWHERE = (500, 2000)
#: Percent of a file system's inodes.
INODES = 2.0
#: Degrees below the point at which a card slows down.
HOT = 5
#: Where a card has no such point to tell.
HOT_C = 90
#: Xids after which NVIDIA's catalogue wants the GPU reset or the machine restarted; the health check has the same.
#: https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html
FATAL_XIDS = frozenset({46, 48, 62, 64, 74, 79, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158, 160, 162})
#: Newer drivers say with this one what is left to do for a card; after it the earlier ones do not count.
RECOVERY_XID = 154
#: Accounts of daemons whose number is sent to other nodes (slurm.conf(5), SlurmUser).
SHARED_ACCOUNTS = ("slurm",)
RUN = host_proof.RUN


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at on a host ("" for the lab), what it is, why it matters, and the mend.

    ``severity`` is one of :data:`SEVERITIES`; what is well has neither a reason nor a mend. Texts are sentences without
    their full stop.
    """

    host: str
    check: str
    severity: str
    what: str
    why: str = ""
    mend: str = ""


def _ok(host: str, check: str, what: str) -> Finding:
    return Finding(host, check, OK, what)


def judge(document: Mapping[str, Mapping[str, Any]], inventory: Inventory) -> list[Finding]:
    """Return the findings of a lab; ``document`` is that of the filter ``doctor_document``, by host."""
    found: list[Finding] = []
    looks = {host: one["look"] for host, one in document.items() if one.get("look")}
    for host, one in document.items():
        if host not in looks:
            found.append(_unreached(host, one, inventory.hosts.get(host, {})))
            continue
        found += _reached(host, one)
        look = looks[host]
        for part in (_system, _space, _sources, _services, _gpus):
            found += part(host, look, inventory.hosts.get(host, {}))
    found += _identities(looks)
    found += _clocks(document)
    found += _accounts(looks)
    found += _network(document, inventory)
    return found


# --- reaching a node -------------------------------------------------------------------------------------------------

#: What Ansible or ssh say, in the order in which they are looked for: check, words, why, mend.
_REFUSALS: Sequence[tuple[str, str, str]] = (
    (
        "sudo",
        r"sudo|become|privilege|not in the sudoers|a password is required|escalat",
        "let {user} use sudo there: add it to the group sudo, or give --ask-become-pass to a run by hand, and see "
        "ansible_become in the inventory",
    ),
    (
        "python",
        r"requires a minimum of Python|SyntaxError|minimum version.*Python|No python|interpreter"
        r"|python[\d.]*:? (command )?not found|python[\d.]*: No such file",
        "install Python 3.9 or newer there (apt install python3), and name it in ansible_python_interpreter where it "
        "is not /usr/bin/python3",
    ),
    (
        "ssh",
        r"IDENTIFICATION HAS CHANGED|Host key verification failed|authenticity of host|host key .*not known",
        "compare the fingerprint with what the machine itself says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), "
        "then take the old line out (ssh-keygen -R {address}) and log in once by hand",
    ),
    (
        "ssh",
        r"Permission denied|Authentication fail|Too many authentication failures|No more authentication",
        "put your public key there: ssh-copy-id {user}@{address}; ansible_user and ansible_ssh_private_key_file say "
        "who logs in, with which key",
    ),
    (
        "ssh",
        r"Could not resolve|Name or service not known|Temporary failure in name resolution",
        "mend ansible_host, or the name server of this machine",
    ),
    (
        "ssh",
        r"Connection refused",
        "start sshd there (systemctl enable --now ssh), or mend ansible_host and ansible_port; a machine that is "
        "starting needs a minute",
    ),
    (
        "ssh",
        r"timed out|No route to host|unreachable|Network is down|Connection (closed|reset)",
        "see that the machine is on and in the network (ping {address}), and that a firewall lets ssh through; mend "
        "ansible_host if it has another address",
    ),
)
_WHY_REACH = "a run changes the other nodes and leaves this one as it is"


def _unreached(host: str, one: Mapping[str, Any], variables: Mapping[str, Any]) -> Finding:
    words = str(one.get("problem") or "no answer")
    user = str(variables.get("ansible_user") or "your user")
    address = str(variables.get("ansible_host") or host)
    # a missing interpreter is told with the whole command line, in which sudo is named
    ordered = sorted(_REFUSALS, key=lambda rule: (rule[0] == "sudo") == bool(one.get("unreachable")))
    if re.search(r"requires a minimum of Python|python[\d.]*:? (command )?not found", words, re.IGNORECASE):
        ordered = sorted(ordered, key=lambda rule: rule[0] != "python")
    for check, pattern, mend in ordered:
        if re.search(pattern, words, re.IGNORECASE):
            what = f"{_REACHED[check]}: {_first(words)}"
            return Finding(host, check, ERROR, what, _WHY_REACH, mend.format(user=user, address=address))
    mend = f"try by hand: ansible -m ping -i INVENTORY {host} -vvv"
    return Finding(host, "ssh", ERROR, f"it can't be asked: {_first(words)}", _WHY_REACH, mend)


_REACHED = {"ssh": "ssh does not get in", "sudo": "sudo does not let in", "python": "no Python that will do"}


def _first(words: str) -> str:
    """The line of an answer that says most, cut to a readable length."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"denied|refused|timed out|fail|sudo|python|route|not", line, re.I)]
    text = (telling or lines or ["no answer"])[0]
    text = re.sub(r"^(Task failed: |Failed to connect to the host via ssh: )+", "", text).rstrip(".")
    return text if len(text) <= 200 else text[:197] + "..."


def _reached(host: str, one: Mapping[str, Any]) -> Iterator[Finding]:
    yield _ok(host, "ssh", "ssh gets in")
    yield _ok(host, "sudo", "modules run as root")
    version = str(one["look"]["facts"]["python"])
    if numbers(version) < PYTHON:
        mend = "install Python 3.9 or newer there, and name it in ansible_python_interpreter"
        yield Finding(host, "python", ERROR, f"Python {version}", "labrack's modules need Python 3.9", mend)
    else:
        yield _ok(host, "python", f"Python {version}")
    if not one.get("ways"):
        words = _first(str(one.get("problem") or "no answer"))
        mend = "run the doctor again"
        yield Finding(host, "ports", WARNING, f"its ways to the others could not be tried: {words}", "", mend)


def numbers(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version, (0, 0) where there are none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


# --- one node --------------------------------------------------------------------------------------------------------


def _system(host: str, look: Mapping[str, Any], variables: Mapping[str, Any]) -> Iterator[Finding]:
    facts = look["facts"]
    system = facts["os"].get("pretty") or facts["os"]["id"] or "an unknown system"
    if facts["os"]["family"] not in ("debian", "redhat"):
        why, mend = "the roles know the packages of Debian, Ubuntu and EL alone", "install one of these"
        yield Finding(host, "version", ERROR, f"it runs {system}", why, mend)
    else:
        yield _ok(host, "version", f"{system}, Linux {facts['kernel']}")
    if (0, 0) < numbers(facts["kernel"]) < KERNEL:
        why = "drivers, NFSv4.2 and control groups are tried with Linux 5.4 and newer"
        yield Finding(host, "version", WARNING, f"Linux {facts['kernel']}", why, "update the system, and restart it")
    service, state = facts["time_sync"]["service"], variables.get("baseline_time_sync") or "auto"
    if not service and not facts["container"]:
        if state == "none":
            mend = "run chrony or systemd-timesyncd there, or take baseline_time_sync: none out"
            yield Finding(host, "clock", WARNING, "nobody keeps its clock", "it will drift away from the others", mend)
        else:
            yield Finding(host, "clock", NOTE, "nobody keeps its clock yet", "", "the next run installs chrony")
    elif facts["time_sync"]["synchronized"] is False:
        mend = "see timedatectl timesync-status there, and that NTP (UDP 123) gets out"
        yield Finding(host, "clock", WARNING, f"{service} has no answer from a server", "its clock will drift", mend)
    elif service:
        yield _ok(host, "clock", f"{service} keeps its clock")


def _space(host: str, look: Mapping[str, Any], _variables: Mapping[str, Any]) -> Iterator[Finding]:
    for one in look["space"]:
        mount, free = one["mount"], one["free_mib"]
        least, good = SPACE.get(mount, SPACE_ELSEWHERE)
        mend = f"see what fills it: du -xh -d 2 {mount} | sort -h | tail; apt clean; journalctl --vacuum-size=200M"
        # a small one of its own, such as a tmpfs, is not to have more than it holds
        good = min(good, one["size_mib"] // 10)
        if free < min(least, max(one["size_mib"] // 20, 1)):
            why = "a full disk ends daemons and jobs, and leaves packages half-installed"
            yield Finding(host, "disk", ERROR, f"{mount} is full: {_size(free)} of {_size(one['size_mib'])}", why, mend)
        elif free < good:
            what = f"{mount} is nearly full: {_size(free)} of {_size(one['size_mib'])} are free"
            yield Finding(host, "disk", WARNING, what, "a run, a log or a job will fill it", mend)
        elif one["inodes"] is not None and one["inodes"] < INODES:
            what = f"{mount} has {one['inodes']} % of its inodes left"
            mend = f"see where all the small files are: du -x --inodes {mount} | sort -n | tail"
            yield Finding(host, "disk", WARNING, what, "without one no file can be made, however much is free", mend)
        else:
            yield _ok(host, "disk", f"{mount}: {_size(free)} free")


def _size(mib: int) -> str:
    return f"{mib / 1024:.0f} GiB" if mib >= 10 * 1024 else f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"


def _sources(host: str, look: Mapping[str, Any], _variables: Mapping[str, Any]) -> Iterator[Finding]:
    sources = look["sources"]
    if sources is None:
        return
    silent = [one for one in sources if one["problem"]]
    if not sources:
        why, mend = "packages come from nowhere", "put the distribution's sources into /etc/apt/sources.list.d"
        yield Finding(host, "packages", ERROR, "apt has no source", why, mend)
    for one in silent:
        why = "a run that has to install something stops there"
        if len(silent) == len(sources):
            mend = "see the network, the name server and apt's proxy there (apt-config dump Acquire), then apt update"
            severity = ERROR
        else:
            mend = "mend the source in /etc/apt/sources.list.d, or take it out"
            severity = WARNING
        what = f"{one['uri']} {one['suite']} does not answer: {one['problem']}"
        yield Finding(host, "packages", severity, what, why, mend)
    if sources and not silent:
        yield _ok(host, "packages", f"{len(sources)} package sources answer")


def _services(host: str, look: Mapping[str, Any], _variables: Mapping[str, Any]) -> Iterator[Finding]:
    for one in look["services"]:
        service, port = one["service"], one["port"]
        local = one["addresses"] and all(loopback(address) for address in one["addresses"])
        if local:
            what = f"{service} listens on {', '.join(one['addresses'])} alone, port {port}"
            mend = f"see who listens (ss -ltnp 'sport = :{port}'), end it if it isn't {service}, and {RUN}"
            yield Finding(host, "ports", ERROR, what, f"no other node gets there: {SERVICES[service].why}", mend)
        elif one["addresses"]:
            yield _ok(host, "ports", f"{service} listens on port {port}")
        elif one["stopped"]:
            unit = SERVICES[service].unit
            what = f"{service} does not listen on port {port}: its service is {one['state'] or 'not running'}"
            mend = f"systemctl start {unit}; if it does not stay: journalctl -u {unit} -n 50, or {RUN}"
            yield Finding(host, "ports", ERROR, what, SERVICES[service].why, mend)
        elif one["installed"] and service != "nfs":
            what = f"{service} is installed and was not started, port {port}"
            yield Finding(host, "ports", NOTE, what, "", "the next run configures and starts it")


def loopback(address: str) -> bool:
    """Return whether an address reaches no further than its own machine."""
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"


def _gpus(host: str, look: Mapping[str, Any], variables: Mapping[str, Any]) -> Iterator[Finding]:
    facts = look["facts"]
    nvidia = facts["nvidia"]
    if nvidia["state"] == "absent":
        return
    wanted = variables.get("nvidia_driver_state", "present") == "present"
    checks = {
        one.name: one for one in host_proof.judge_host(host, facts, str(variables.get("lab_orchestrator")), False)
    }
    if nvidia["state"] == "no_driver" and wanted and not nvidia.get("packages"):
        mend = "the next run installs one that fits the cards"
        yield Finding(host, "gpu", NOTE, f"{len(facts['gpus'])} cards and no driver yet", "", mend)
    for name in ("driver", "driver parts", "cards"):
        one = checks.get(name)
        # without a driver there is a note, and of lost ones the cards say more
        skipped = nvidia["state"] == "lost" or (nvidia["state"] == "no_driver" and not nvidia.get("packages"))
        if one is None or (name == "driver" and skipped):
            continue
        if one.ok:
            yield _ok(host, "gpu", f"{name}: {one.seen}")
        else:
            severity = WARNING if name == "driver parts" else ERROR
            yield Finding(host, "gpu", severity, f"{name}: {one.seen}", "no job there can count on its GPUs", one.mend)
    for card in facts["gpus"]:
        yield from _card(host, card)


def _card(host: str, card: Mapping[str, Any]) -> Iterator[Finding]:
    name = f"card {card['index']} ({card.get('name') or card.get('pci') or 'unknown'})"
    found: list[Finding] = []
    now, slow = card.get("temperature_c"), card.get("temperature_slowdown_c")
    limit = slow - HOT if slow else HOT_C
    throttle = set(card.get("throttle") or ())
    if now is not None and now >= limit:
        what = f"{name} has {now} °C" + (f", and slows down at {slow} °C" if slow else "")
        mend = "see its fans and filters, the air in front of it, the room's cooling; nvidia-smi -pl lowers its heat"
        found.append(Finding(host, "gpu", WARNING, what, "a hot card computes slowly and ages", mend))
    if throttle & {"hw_thermal_slowdown", "sw_thermal_slowdown"}:
        what = f"{name} is slowed down by its heat now"
        mend = "see its fans and the room's cooling, or lower its power limit: nvidia_driver_power_limits"
        found.append(Finding(host, "gpu", WARNING, what, "jobs on it take longer than elsewhere", mend))
    if "hw_power_brake_slowdown" in throttle:
        what = f"{name} is slowed down by its power supply now"
        mend = "see the machine's power supplies and their cables (ipmitool sdr type 'Power Supply')"
        found.append(Finding(host, "gpu", WARNING, what, "the supply can't give what the cards ask for", mend))
    elif throttle == {"hw_slowdown"}:
        what, mend = f"{name} is slowed down by the hardware now", "see nvidia-smi -q -d PERFORMANCE there"
        found.append(Finding(host, "gpu", WARNING, what, "heat or power: jobs on it take longer", mend))
    errors = (card.get("ecc") or {}).get("uncorrected") or 0
    if errors:
        what = f"{name} had {errors} memory errors that could not be corrected since its driver was loaded"
        mend = "reset it when it is idle (nvidia-smi --gpu-reset), and replace it if they come back"
        found.append(Finding(host, "gpu", WARNING, what, "results of jobs that ran then may be wrong", mend))
    if (card.get("retired_pages") or {}).get("pending"):
        what, mend = f"{name} waits for a reset to take bad memory out of use", "restart the machine when it has no job"
        found.append(Finding(host, "gpu", WARNING, what, "the bad memory is used until then", mend))
    xids = list(card.get("xids") or ())
    if RECOVERY_XID in xids:
        xids = xids[len(xids) - xids[::-1].index(RECOVERY_XID) :]
    fatal = sorted(FATAL_XIDS & set(xids))
    if fatal:
        what = f"{name}: Xid {', '.join(map(str, fatal))} in the kernel log since the last start"
        mend = "reset the card or restart the machine when it has no job; see docs.nvidia.com/deploy/xid-errors"
        found.append(Finding(host, "gpu", WARNING, what, "the driver wants the card reset; jobs on it may die", mend))
    yield from found or [_ok(host, "gpu", f"{name}: well" + (f", {now} °C" if now is not None else ""))]


# --- between nodes ---------------------------------------------------------------------------------------------------


def _identities(looks: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    why = {
        "hostname": "Slurm, logs and the tailnet take the two for one machine",
        "machine_id": "DHCP, the journal and systemd take the two for one machine, as a disk that was copied has it",
    }
    mends = {
        "hostname": "hostnamectl set-hostname {host} on {host}",
        "machine_id": "on {host}: rm /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup; restart it",
    }
    for key, check in (("hostname", "hostname"), ("machine_id", "machine-id")):
        owners: dict[str, list[str]] = {}
        for host, look in looks.items():
            owners.setdefault(str(look["facts"][key]), []).append(host)
        for value, hosts in owners.items():
            one = hosts[-1]
            mend = mends[key].format(host=one)
            if not value or (key == "hostname" and value.startswith("localhost")):
                for host in hosts:
                    what = f"its {check} is {value}" if value else f"it has no {check}"
                    yield Finding(host, check, WARNING, what, why[key], mends[key].format(host=host))
            elif len(hosts) > 1:
                what = f"the same {check} on {' and '.join(hosts)}" + (f": {value}" if key == "hostname" else "")
                yield Finding(one, check, ERROR, what, why[key], mend)
            else:
                yield _ok(one, check, f"{check} of its own")


@dataclass(frozen=True)
class Offset:
    """How far a node's clock is ahead of the controller's, in seconds: at least ``low``, at most ``high``."""

    low: float
    high: float

    @property
    def off(self) -> float:
        """Return how far it is off at least, 0 where it may be right."""
        return self.low if self.low > 0 else min(self.high, 0.0)


def offset(one: Mapping[str, Any]) -> Offset | None:
    """Return the offset of a node: its time at a call's start and end, against ours before this and the next one.

    None where the times are not known.
    """
    look, ways = one.get("look") or {}, one.get("ways") or {}
    if not look.get("sent"):
        return None
    high = look["started"] - look["sent"]
    low = float("-inf")
    if ways.get("sent"):
        high = min(high, ways["started"] - ways["sent"])
        low = look["ended"] - ways["sent"]
    return Offset(low, high)


def _clocks(document: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    offsets = {host: found for host, one in document.items() if (found := offset(one)) is not None}
    wrong = {host: one for host, one in offsets.items() if abs(one.off) > CLOCK_WARNING}
    why = "MUNGE, and with it Slurm, refuses what seems to come from another time; files and logs get wrong times"
    own = len(wrong) > 1 and len(wrong) == len(offsets)
    if own and max(one.low for one in wrong.values()) <= min(one.high for one in wrong.values()) + CLOCK_WARNING:
        amount = _seconds(min(abs(one.off) for one in wrong.values()))
        what = f"the clock of this machine is off by {amount} or more from those of all nodes"
        why = "certificates and what is signed for a time are judged by it"
        yield Finding("", "clock", WARNING, what, why, "timedatectl set-ntp true on this machine")
        return
    for host, one in offsets.items():
        if host in wrong:
            severity = ERROR if abs(one.off) > CLOCK_ERROR else WARNING
            direction = "ahead" if one.off > 0 else "behind"
            mend = (
                "see that a time service runs there (timedatectl; chronyc tracking), and set it once: chronyc makestep"
            )
            what = f"its clock is {_seconds(abs(one.off))} {direction}"
            yield Finding(host, "clock", severity, what, why, mend)
        else:
            yield _ok(host, "clock", "its clock is right")
    rest = {host: one for host, one in offsets.items() if host not in wrong}
    if len(rest) > 1:
        first = max(rest, key=lambda host: rest[host].low)
        last = min(rest, key=lambda host: rest[host].high)
        apart = rest[first].low - rest[last].high
        if apart > CLOCK_WARNING:
            what = f"its clock is {_seconds(apart)} ahead of that of {last}"
            mend = "see that a time service runs on both (timedatectl; chronyc tracking)"
            yield Finding(first, "clock", WARNING, what, why, mend)


def _seconds(amount: float) -> str:
    return (
        f"{amount:.0f} s" if amount < 120 else f"{amount / 60:.0f} min" if amount < 7200 else f"{amount / 3600:.0f} h"
    )


def _accounts(looks: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """One name with two numbers, or one number with two names; those of ``lab_users`` have rules of their own."""
    by_name: dict[str, dict[int, list[str]]] = {}
    by_number: dict[int, dict[str, list[str]]] = {}
    for host, look in looks.items():
        for user in look["facts"]["users"]:
            person = FIRST_NUMBER <= user["uid"] <= LAST_NUMBER
            if person or user["name"] in SHARED_ACCOUNTS:
                by_name.setdefault(user["name"], {}).setdefault(user["uid"], []).append(host)
            if person:
                by_number.setdefault(user["uid"], {}).setdefault(user["name"], []).append(host)
    found = False
    for name, uids in sorted(by_name.items()):
        if len(uids) > 1:
            found = True
            where = "; ".join(f"{uid} on {', '.join(hosts)}" for uid, hosts in sorted(uids.items()))
            daemon = name in SHARED_ACCOUNTS
            why = (
                "Slurm's daemons refuse each other" if daemon else "files on shared directories belong to somebody else"
            )
            most = max(uids, key=lambda uid: (len(uids[uid]), -uid))
            mend = (
                f"give {name} one number everywhere: usermod -u {most} {name}, and chown what it owns"
                if daemon
                else f"ansible-playbook labrack.infra.uid_migrate -e user={name} -e uid={most}"
            )
            yield Finding("", "people", ERROR if daemon else WARNING, f"{name} has several UIDs: {where}", why, mend)
    for uid, names in sorted(by_number.items()):
        if len(names) > 1:
            found = True
            where = "; ".join(f"{name} on {', '.join(hosts)}" for name, hosts in sorted(names.items()))
            why = "on shared directories they read and write each other's files"
            mend = f"give one another: ansible-playbook labrack.infra.uid_migrate -e user={min(names)} -e uid=NUMBER"
            yield Finding("", "people", WARNING, f"UID {uid} has several people: {where}", why, mend)
    if looks and not found:
        yield _ok("", "people", f"{len(by_name)} accounts, each with one UID everywhere")


def _network(document: Mapping[str, Mapping[str, Any]], inventory: Inventory) -> Iterator[Finding]:
    looks = {host: one["look"] for host, one in document.items() if one.get("look")}
    yield from _links(looks, len(document))
    tried = [
        (host, way)
        for host, one in document.items()
        if one.get("ways") and host in looks
        for way in one["ways"]["ways"]
    ]
    known = [(host, way) for host, way in tried if way["name"] in looks]
    yield from _ports(looks, known)
    yield from _packets(known)
    yield from _names(looks, known, inventory)


def _links(looks: Mapping[str, Mapping[str, Any]], hosts: int) -> Iterator[Finding]:
    if hosts < 2:
        return
    for host, look in looks.items():
        speeds = [nic["speed_mbit"] for nic in look["facts"]["nics"] if nic["up"] and nic["speed_mbit"]]
        if not speeds:
            continue
        if max(speeds) < nfs_client_plan.GUIDE_MBIT:
            what = f"its fastest link carries {max(speeds)} Mbit/s, and {nfs_client_plan.GUIDE_MBIT} are wanted"
            # what a data set takes to read is what people wait for
            minutes = nfs_client_plan.DATA_SET_MBIT / max(speeds) / 60
            why = f"to read {nfs_client_plan.DATA_SET_GB} GB from the file server takes {minutes:.0f} min at least"
            slow = max(speeds) < 1000
            mend = (
                "see cable and switch port (ethtool): it should be 1000 at least"
                if slow
                else "a 10 GbE switch and cards"
            )
            yield Finding(host, "network", WARNING if slow else NOTE, what, why, mend)
        else:
            yield _ok(host, "network", f"a link with {max(speeds)} Mbit/s")


Seen = tuple[str, Mapping[str, Any]]


def _ports(looks: Mapping[str, Mapping[str, Any]], tried: Iterable[Seen]) -> Iterator[Finding]:
    blocked: dict[tuple[str, str, int, str], list[str]] = {}
    for host, way in tried:
        target = looks[way["name"]]
        states = {one["service"]: one for one in target["services"]}
        for port in way["ports"]:
            state = states.get(port["service"])
            mine = bool(state and state["addresses"])
            waits = port["port"] in target["listener"]["ports"]
            # nobody listens there, or on loopback alone, which has a finding of its own
            if state is None or not (mine or waits) or (mine and all(map(loopback, state["addresses"]))):
                continue
            if port["problem"]:
                key = (way["name"], port["service"], port["port"], port["problem"])
                blocked.setdefault(key, []).append(host)
            else:
                yield _ok(host, "ports", f"{way['name']}:{port['port']} ({port['service']}) is open")
    for (target_name, service, number, problem), hosts in blocked.items():
        what = f"port {number} ({service}) can't be reached from {_some(hosts)}: {problem}"
        mend = f"let TCP {number} through on {target_name} from the lab's addresses (nft list ruleset; ufw status)"
        if problem not in ("refused", "no answer"):
            mend = (
                f"see the way there: ip route get ADDRESS on {hosts[0]}; lab_address of {target_name} in the inventory"
            )
        severity = WARNING if service == "ssh" else ERROR
        yield Finding(target_name, "ports", severity, what, SERVICES[service].why, mend)


def _packets(tried: Iterable[Seen]) -> Iterator[Finding]:
    lost: dict[tuple[str, str, int, int], list[str]] = {}
    silent: dict[str, list[str]] = {}
    for host, way in tried:
        if way["passes"] is None:
            continue
        if not way["passes"]:
            silent.setdefault(way["name"], []).append(host)
        elif way["passes"] < way["mtu"]:
            lost.setdefault((way["name"], way["device"], way["mtu"], way["passes"]), []).append(host)
        else:
            yield _ok(host, "packets", f"packets of {way['mtu']} bytes reach {way['name']}")
    for (target, device, mtu, passes), hosts in lost.items():
        what = (
            f"packets of {mtu} bytes from {_some(hosts)} ({device}) are lost on their way here; {passes} come through"
        )
        why = "small requests work and big ones hang: NFS, scp and git stop without a word"
        mend = f"set the MTU of {device} on {_some(hosts)} to {passes}, or that of every switch between to {mtu}"
        yield Finding(target, "packets", ERROR, what, why, mend)
    for target, hosts in silent.items():
        what = f"it answers to no ping from {_some(hosts)}, so the size of packets was not measured"
        yield Finding(target, "packets", NOTE, what, "", "let ICMP through, also for the discovery of the MTU")


def _names(looks: Mapping[str, Mapping[str, Any]], tried: Iterable[Seen], inventory: Inventory) -> Iterator[Finding]:
    none: dict[str, list[str]] = {}
    wrong: dict[tuple[str, str], list[str]] = {}
    reverse: dict[tuple[str, str, str], list[str]] = {}
    for host, way in tried:
        name, facts = way["name"], looks[way["name"]]["facts"]
        own = {way["address"], *facts["addresses"]["ipv4"]}
        # the first is the one that programs take; of IPv6 the facts know nothing
        first = [address for address in way["addresses"] if ":" not in address][:1]
        if not way["addresses"]:
            none.setdefault(name, []).append(host)
        elif not own.issuperset(first):
            wrong.setdefault((name, first[0]), []).append(host)
        else:
            yield _ok(host, "names", f"{name} is {way['addresses'][0]}")
            labels = {word.partition(".")[0] for word in way["names"]}
            if not labels & {name.partition(".")[0], str(facts["hostname"]).partition(".")[0]}:
                key = (name, way["address"], ", ".join(way["names"][:3]))
                reverse.setdefault(key, []).append(host)
            else:
                yield _ok(host, "names", f"{way['address']} is {name}")
    by_file = any(one.get("baseline_hosts_source", "file") == "file" for one in inventory.hosts.values())
    why = "daemons and jobs reach other nodes by name"
    written = "the next run writes it into /etc/hosts"
    for name, hosts in none.items():
        what = f"{_some(hosts)} find{'s' if len(hosts) == 1 else ''} no address for its name"
        if by_file:
            yield Finding(name, "names", NOTE, what, "", written)
        else:
            yield Finding(name, "names", ERROR, what, why, f"add {name} to your name server")
    for (name, addresses), hosts in wrong.items():
        what = f"its name is {addresses} on {_some(hosts)}, which is not an address of it"
        mend = (
            f"take the wrong line out of /etc/hosts there, then {RUN}"
            if by_file
            else "mend its entry in your name server"
        )
        yield Finding(name, "names", ERROR, what, why, mend)
    for (name, address, names), hosts in reverse.items():
        what = f"its address {address} is {names or 'nobody'} on {_some(hosts)}"
        mend = written if by_file and not names else f"mend the entry of {address} in /etc/hosts or the name server"
        severity = NOTE if by_file and not names else WARNING
        yield Finding(name, "names", severity, what, "logs and access rules name it wrongly", mend)


def _some(hosts: Sequence[str], most: int = 3) -> str:
    """The names of hosts, the first few where there are many."""
    more = len(hosts) - most
    return ", ".join(hosts[:most]) + (f" and {more} more" if more > 0 else "")


# --- power and cooling -----------------------------------------------------------------------------------------------


def judge_power(budget: power_plan.Budget) -> list[Finding]:
    """Return what the power and the cooling of a lab are short of."""
    return [*_power(budget), *_cooling(budget)]


def _power(budget: power_plan.Budget) -> Iterator[Finding]:
    kilowatts = power_plan.kilowatts
    each = ", ".join(f"{one.name} {kilowatts(one.watts)}" for one in budget.loads[:6])
    more = f" and {len(budget.loads) - 6} more" if len(budget.loads) > 6 else ""
    guessed = "; partly estimated" if any(one.estimated for one in budget.loads) else ""
    blind = [one.name for one in budget.loads if "cards" in one.estimated and not one.cards]
    guessed += f"; the cards of {_some(blind)} are not known, and not in it" if blind else ""
    total = f"all nodes at their limits draw {kilowatts(budget.watts)} ({each}{more}{guessed})"
    if not budget.feeds:
        if budget.loads:
            mend = "name the circuits in lab_circuits to have them checked, with volts, amps and nodes"
            yield Finding("", "power", NOTE, f"no circuits are declared; {total}", "", mend)
        return
    for feed in budget.feeds:
        circuit = feed.circuit
        rating = f"{circuit.volts:g} V × {circuit.amps:g} A"
        allowed = f"{kilowatts(circuit.usable)} for hours (80 % of {rating})"
        what = f"circuit {circuit.name} carries {kilowatts(feed.watts)}, and may carry {allowed}"
        if not feed.tight:
            yield _ok("", "power", what)
            continue
        if feed.over:
            why = "its breaker trips when all nodes on it train, and all of them go down at once"
        else:
            why = "breakers trip above 80 % after some hours, and cards draw more than their limit for moments"
        yield Finding("", "power", ERROR if feed.over else WARNING, what, why, _power_mend(feed))
    for name in budget.loose:
        what, mend = "it is on no circuit of lab_circuits", f"add {name} to the nodes of its circuit"
        yield Finding(name, "power", WARNING, what, "what it draws is counted nowhere", mend)


def _power_mend(feed: power_plan.Feed) -> str:
    ways = []
    if feed.moves:
        ways.append("plug " + " and ".join(f"{one.node} into {one.target}" for one in feed.moves))
    if feed.limits:
        lowered: dict[tuple[str, int], list[str]] = {}
        for node, limits in feed.limits.items():
            for kind, watts in limits.items():
                lowered.setdefault((kind, watts), []).append(node)
        for (kind, watts), nodes in lowered.items():
            key = f"nvidia_driver_power_limits: {{{kind or 'all'}: {watts}}}"
            cards = f"the cards {kind}" if kind else "the cards"
            ways.append(f"limit {cards} of {_some(nodes)} to {watts} W (nvidia-smi -pl {watts}; to stay: {key})")
    if not feed.moves:
        rest = f"another circuit for one of {', '.join(feed.circuit.nodes)}"
        return f"{', and '.join(ways)}; or {rest}" if ways else rest
    return ways[0] + (f"; or {', and '.join(ways[1:])}" if ways[1:] else "")


def _cooling(budget: power_plan.Budget) -> Iterator[Finding]:
    heat = power_plan.heat_words(budget.watts)
    rule = "" if not budget.by_guide else f"; by rule of thumb {power_plan.tons(budget.by_guide):.1f} tons at least"
    why = "a closed room without enough of it reaches 38 °C in minutes, and cards slow down or switch off"
    if budget.cooling is None:
        if budget.loads:
            mend = "set lab_cooling_watts to what the room's cooling takes away, to have it checked"
            yield Finding("", "cooling", NOTE, f"no cooling is declared; the nodes give {heat}{rule}", "", mend)
        return
    what = f"the nodes give {heat}{rule}; declared are {power_plan.kilowatts(budget.cooling)}"
    short = budget.cooling_wanted - budget.cooling
    if short <= 0:
        yield _ok("", "cooling", what)
        return
    mend = (
        f"add {power_plan.kilowatts(short)} of cooling ({power_plan.tons(short):.1f} tons), or lower the cards' power "
        "limits (nvidia_driver_power_limits)"
    )
    yield Finding("", "cooling", ERROR if budget.watts > budget.cooling else WARNING, what, why, mend)
