# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Slurm accounting as code: what ``sacctmgr`` shows, what the inventory wants, and the commands between them.

Everything is held as *settings*, a dict from the option's name in ``sacctmgr`` to its value in one canonical spelling;
the empty text means "not set". Only an entity's own values count, not those it inherits (``WOPLimits``), and of a TRES
list only ``gres/gpu``. Nothing is ever deleted: an association that the inventory does not want is locked by
``GrpSubmitJobs=0``, which refuses new jobs, keeps queued and running ones, and keeps the history.

Spelling and behaviour were taken from sacctmgr 22.05 and 24.11 (https://slurm.schedmd.com/sacctmgr.html); the fields
and flags used here are the same in 21.08 to 25.11.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import Change

Settings = dict[str, str]
#: Account, user, partition; the partition is empty except in associations made by hand.
Row = tuple[str, str, str]

#: The flags of a QOS that every supported version knows.
QOS_FLAGS: tuple[str, ...] = (
    "DenyOnLimit",
    "EnforceUsageThreshold",
    "NoDecay",
    "NoReserve",
    "OverPartQOS",
    "PartitionMaxNodes",
    "PartitionMinNodes",
    "PartitionTimeLimit",
    "RequiresReservation",
    "UsageFactorSafe",
)
#: The QOS that every Slurm database has; jobs get it where no default is set.
NORMAL = "normal"
ROOT = "root"

NEW_QOS: Settings = {
    "Priority": "0",
    "MaxTRESPerUser": "",
    "MaxJobsPerUser": "",
    "MaxSubmitJobsPerUser": "",
    "MaxWall": "",
    "Flags": "",
    "Preempt": "",
    "GraceTime": "0",
}
_CLEAR = {"GrpTRES": "gres/gpu=-1", "MaxTRESPerUser": "gres/gpu=-1", "QOS": "", "Preempt": ""}
_LOCK = {"0": "locked: no new jobs", "": "unlocked"}
_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*")
_FREE_TEXT = re.compile(r"[^|\"'\\\n]*")
_WALL = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


@dataclass(frozen=True)
class State:
    """What the database holds for one cluster.

    ``accounts`` maps those of the cluster to Parent, FairShare, GrpTRES, QOS, Description and Organization; ``users``
    maps all users to DefaultAccount and AdminLevel; ``associations`` maps rows of users to FairShare, GrpTRES,
    GrpSubmitJobs ("0" when locked, else empty) and DefaultQOS; ``qos`` maps names to the keys of :data:`NEW_QOS`.
    """

    cluster: bool = False
    accounts: dict[str, Settings] = field(default_factory=dict)
    users: dict[str, Settings] = field(default_factory=dict)
    qos: dict[str, Settings] = field(default_factory=dict)
    associations: dict[Row, Settings] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What the inventory names, as :class:`State` spells it; ``accounts`` has parents before their children."""

    cluster: str
    accounts: dict[str, Settings]
    users: dict[str, Settings]
    qos: dict[str, Settings]
    associations: dict[Row, Settings]

    @property
    def limits_gpus(self) -> bool:
        """Whether any limit counts GPUs, so that the database must know ``gres/gpu``."""
        everything = (*self.accounts.values(), *self.associations.values(), *self.qos.values())
        return any(settings.get("GrpTRES") or settings.get("MaxTRESPerUser") for settings in everything)


def queries(cluster: str) -> dict[str, list[str]]:
    """Return the ``sacctmgr -nP`` arguments of each text that :func:`parse_state` reads."""
    return {
        "clusters": ["show", "cluster", "format=cluster"],
        "accounts": ["show", "account", "format=account,description,organization"],
        "users": ["show", "user", "format=user,defaultaccount,adminlevel"],
        "qos": [
            "show",
            "qos",
            "format=name,priority,maxtrespu,maxjobspu,maxsubmitpu,maxwall,flags,preempt,gracetime",
        ],
        "associations": [
            "show",
            "assoc",
            "where",
            f"cluster={cluster}",
            "woplimits",
            "withrawqos",
            "format=account,user,partition,parentname,fairshare,grptres,grpsubmitjobs,qos,defaultqos",
        ],
    }


def parse_state(texts: Mapping[str, str], cluster: str) -> State:
    """Read the output of :func:`queries`, by the same keys, into the state of ``cluster``."""
    described: dict[str, Settings] = {}
    for line in texts["accounts"].splitlines():
        name, rest = line.split("|", 1)
        description, organization = rest.rsplit("|", 1)
        described[name] = {"Description": description, "Organization": organization}
    accounts: dict[str, Settings] = {}
    associations: dict[Row, Settings] = {}
    for account, user, partition, parent, share, tres, submit, qos, default in _rows(texts["associations"]):
        own = {"FairShare": share, "GrpTRES": _gpu_limit(tres)}
        if user:
            own.update({"GrpSubmitJobs": "0" if submit == "0" else "", "DefaultQOS": default})
            associations[account, user, partition] = own
        else:
            accounts[account] = {"Parent": parent, "QOS": _joined(qos.split(",")), **own, **described.get(account, {})}
    return State(
        cluster in texts["clusters"].split(),
        accounts,
        {name: {"DefaultAccount": default, "AdminLevel": level} for name, default, level in _rows(texts["users"])},
        {name: _shown_qos(values) for name, *values in _rows(texts["qos"])},
        associations,
    )


def _rows(text: str) -> Iterable[list[str]]:
    return (line.split("|") for line in text.splitlines() if line)


def _shown_qos(values: list[str]) -> Settings:
    priority, tres, jobs, submit, wall, flags, preempt, grace = values
    return {
        "Priority": priority,
        "MaxTRESPerUser": _gpu_limit(tres),
        "MaxJobsPerUser": jobs,
        "MaxSubmitJobsPerUser": submit,
        "MaxWall": _wall_text(wall_seconds(wall)) if wall else "",
        "Flags": _joined(flags.split(",")),
        "Preempt": _joined(preempt.split(",")),
        "GraceTime": str(wall_seconds(grace)),
    }


def _gpu_limit(tres: str) -> str:
    return next((item for item in tres.split(",") if item.startswith("gres/gpu=")), "")


def _joined(names: Iterable[str]) -> str:
    return ",".join(sorted(name for name in names if name))


def wall_seconds(text: str) -> int:
    """Return the seconds of "HH:MM:SS" or "D-HH:MM:SS"; ValueError for another form."""
    match = _WALL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time; write it as 'HH:MM:SS' or 'D-HH:MM:SS', in quotes")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _wall_text(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def want(params: Mapping[str, Any]) -> Wanted:
    """Build the wanted model from the module's parameters; ValueError names every entry that is wrong and its mend."""
    problems: list[str] = []
    qos = _by_name(params["qos"], "qos", problems)
    accounts = _by_name(params["accounts"], "accounts", problems)
    users = _by_name(params["users"], "users", problems)
    if not _NAME.fullmatch(params["cluster"]):
        problems.append(f"cluster: {params['cluster']!r} is no name; use lower-case letters, digits, '_', '.' and '-'")
    for kind, entries in (("accounts", accounts), ("users", users)):
        if ROOT in entries:
            problems.append(f"{kind}[root]: root belongs to Slurm and is never changed; leave it out")
    known = {NORMAL, *qos}
    default = params["default_qos"]
    _refer(problems, "default_qos", [default], known, "QOS")
    wanted_qos = {name: _wanted_qos(entry, known, problems) for name, entry in qos.items()}
    allowed: dict[str, set[str]] = {ROOT: {NORMAL}}
    wanted_accounts: dict[str, Settings] = {}
    for name in _parents_first(accounts, problems):
        entry = accounts[name]
        own = set(entry.get("qos") or ([default, NORMAL] if entry["parent"] == ROOT and default != NORMAL else []))
        _refer(problems, f"accounts[{name}].qos", own, known, "QOS")
        allowed[name] = own or allowed[entry["parent"]]
        wanted_accounts[name] = {"Parent": entry["parent"], **_shares(entry), "QOS": _joined(own)}
        for key in ("description", "organization"):
            if entry.get(key) is not None:
                wanted_accounts[name][key.capitalize()] = _ascii_lower(entry[key])
                if not _FREE_TEXT.fullmatch(entry[key]):
                    problems.append(f"accounts[{name}].{key}: {entry[key]!r}: leave out quotes, '|' and '\\'")
        if default not in allowed[name] and (default != NORMAL or len(allowed[name]) > 1):
            have = _joined(allowed[name])
            problems.append(
                f"accounts[{name}].qos: {have} lacks the default QOS {default!r}; add it or change default_qos"
            )
    wanted_users: dict[str, Settings] = {}
    associations: dict[Row, Settings] = {}
    for name, entry in users.items():
        if entry["state"] == "locked":
            continue
        mine = [account for account in (entry.get("account"), *(entry.get("accounts") or ())) if account]
        first = entry.get("default_account") or entry.get("account")
        if first is None:
            problems.append(f"users[{name}].account: missing; name one of the accounts, or set state: locked")
            continue
        _refer(problems, f"users[{name}].account", mine, accounts, "account")
        _refer(problems, f"users[{name}].default_account", [first], mine, "account of this user")
        wanted_users[name] = {"DefaultAccount": first, "AdminLevel": entry["admin_level"]}
        for account in mine:
            only = {"GrpSubmitJobs": "", "DefaultQOS": "" if default == NORMAL else default}
            associations[account, name, ""] = {**_shares(entry), **only}
    if problems:
        raise ValueError("; ".join(problems))
    return Wanted(params["cluster"], wanted_accounts, wanted_users, wanted_qos, associations)


def _by_name(entries: Iterable[Mapping[str, Any]], key: str, problems: list[str]) -> dict[str, Mapping[str, Any]]:
    named: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        name = entry["name"]
        if not _NAME.fullmatch(name):
            problems.append(f"{key}: {name!r} is no name for Slurm; use lower-case letters, digits, '_', '.' and '-'")
        if name in named:
            problems.append(f"{key}[{name}]: named twice; keep one entry")
        named[name] = entry
        for option, least in (("fairshare", 0), ("max_gpus", 0), ("priority", 0), ("grace_time", 0)):
            if entry.get(option) is not None and entry[option] < least:
                problems.append(f"{key}[{name}].{option}: {entry[option]} is negative; leave it out for no limit")
    return named


def _refer(problems: list[str], key: str, names: Iterable[str], known: Iterable[str], kind: str) -> None:
    for name in sorted(set(names) - set(known)):
        problems.append(f"{key}: {name!r} is no {kind}; known: {_joined(known) or 'none'}")


def _shares(entry: Mapping[str, Any]) -> Settings:
    gpus = entry.get("max_gpus")
    return {"FairShare": str(entry["fairshare"]), "GrpTRES": "" if gpus is None else f"gres/gpu={gpus}"}


def _wanted_qos(entry: Mapping[str, Any], known: Iterable[str], problems: list[str]) -> Settings:
    key = f"qos[{entry['name']}]"
    _refer(problems, f"{key}.preempt", entry.get("preempt") or (), known, "QOS")
    wall = ""
    if entry.get("max_wall"):
        try:
            seconds = wall_seconds(entry["max_wall"])
            wall = _wall_text(seconds)
            if seconds % 60 or not seconds:
                problems.append(f"{key}.max_wall: {entry['max_wall']!r}: Slurm counts whole minutes, at least one")
        except ValueError as error:
            problems.append(f"{key}.max_wall: {error}")
    gpus = entry.get("max_gpus_per_user")
    return {
        "Priority": str(entry.get("priority") or 0),
        "MaxTRESPerUser": "" if gpus is None else f"gres/gpu={gpus}",
        "MaxJobsPerUser": _number(entry.get("max_jobs_per_user")),
        "MaxSubmitJobsPerUser": _number(entry.get("max_submit_per_user")),
        "MaxWall": wall,
        "Flags": _joined(entry.get("flags") or ()),
        "Preempt": _joined(entry.get("preempt") or ()),
        "GraceTime": str(entry.get("grace_time") or 0),
    }


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _ascii_lower(text: str) -> str:
    """Return the text as Slurm stores it: byte by byte in lower case, so that other letters keep theirs."""
    return re.sub("[A-Z]+", lambda match: match[0].lower(), text)


def _parents_first(accounts: Mapping[str, Mapping[str, Any]], problems: list[str]) -> list[str]:
    """Return the account names level by level; those whose parent is unknown or in a circle are problems instead."""
    level = {ROOT}
    order: list[str] = []
    while level:
        level = {name for name, entry in accounts.items() if entry["parent"] in level and name not in order}
        order.extend(sorted(level))
    for name in sorted(set(accounts) - set(order) - {ROOT}):
        parent = accounts[name]["parent"]
        fault = "is in a circle of parents" if parent in accounts else "is no account"
        problems.append(f"accounts[{name}].parent: {parent!r} {fault}; name an account above it, or root")
    return order


def plan(state: State, wanted: Wanted) -> list[Change]:
    """Plan the changes from ``state`` to ``wanted``, in the order in which they can be made. None ends a running job.

    A change's ``step`` is the name, the verb, the kind and the arguments of ``sacctmgr``; see :func:`commands`.
    """
    cluster = f"cluster={wanted.cluster}"
    changes: list[Change] = []
    if not state.cluster:
        changes.append(_change(f"Slurm cluster {wanted.cluster}", None, {}, (wanted.cluster, "add", "cluster")))
    new = sorted(set(wanted.qos) - set(state.qos) - {NORMAL})
    changes.extend(_change(f"Slurm QOS {name}", None, {}, (name, "add", "qos")) for name in new)
    for name, settings in wanted.qos.items():
        changes.extend(_settle(f"Slurm QOS {name}", state.qos.get(name, NEW_QOS), settings, (name, "modify", "qos")))
    defaults, associations = _plan_associations(state, wanted, cluster)
    changes.extend(defaults)
    for name, settings in wanted.accounts.items():
        have, subject = state.accounts.get(name), f"Slurm account {name}"
        if have is None:
            changes.append(_change(subject, None, settings, (name, "add", "account", cluster)))
        else:
            changes.extend(_settle(subject, have, settings, (name, "modify", "account", cluster)))
    return [*changes, *associations, *_plan_users(state, wanted, cluster)]


def _plan_associations(state: State, wanted: Wanted, cluster: str) -> tuple[list[Change], list[Change]]:
    """Return what clears a default QOS, which an account's new QOS list may exclude, and what follows the accounts."""
    early: list[Change] = []
    added: list[tuple[bool, Settings, Change]] = []
    settled: list[Change] = []
    for row, settings in wanted.associations.items():
        account, user, _partition = row
        if row not in state.associations:
            step = (user, "add", "user", cluster, f"account={account}")
            extra = wanted.users[user]["DefaultAccount"] != account
            added.append((extra, settings, _change(f"Slurm user {user} in {account}", None, settings, step)))
    for row, have in sorted(state.associations.items()):
        account, user, partition = row
        if user == ROOT:
            continue
        settings = wanted.associations.get(row) or {
            "GrpSubmitJobs": "" if (account, user, "") in wanted.associations else "0",
            "DefaultQOS": wanted.associations.get((account, user, ""), {}).get("DefaultQOS", ""),
        }
        subject = f"Slurm user {user} in {account}" + (f", partition {partition}" if partition else "")
        step = (user, "modify", "user", cluster, f"account={account}")
        if have["DefaultQOS"] not in ("", settings["DefaultQOS"]):
            early.extend(_settle(subject, have, {"DefaultQOS": ""}, step))
            have = {**have, "DefaultQOS": ""}
        settled.extend(_settle(subject, have, settings, step))
    # the first association of a user becomes the default one
    added.sort(key=lambda item: (item[0], item[2].step[4], tuple(item[1].values()), item[2].step[0]))
    return early, [change for _extra, _settings, change in added] + sorted(settled, key=lambda change: change.step[1:])


def _plan_users(state: State, wanted: Wanted, cluster: str) -> list[Change]:
    gone = {user for _account, user, _partition in state.associations} - set(wanted.users) - {ROOT}
    # an operator could lift the own lock
    levels = {**dict.fromkeys(gone, "None"), **{name: user["AdminLevel"] for name, user in wanted.users.items()}}
    changes: list[Change] = []
    for name, user in sorted(wanted.users.items()):
        have = state.users.get(name, user)
        only = {"DefaultAccount": user["DefaultAccount"]}
        changes.extend(_settle(f"Slurm user {name}", have, only, (name, "modify", "user", cluster)))
    for name, level in sorted(levels.items()):
        have = state.users.get(name, {"AdminLevel": "None"})
        changes.extend(_settle(f"Slurm user {name}", have, {"AdminLevel": level}, (name, "modify", "user")))
    return sorted(changes, key=lambda change: change.step[1:])


def _settle(subject: str, have: Settings, settings: Settings, step: tuple[str, ...]) -> list[Change]:
    off = {key: value for key, value in settings.items() if have.get(key, "") != value}
    return [_change(subject, have, off, (*step, "set"))] if off else []


def _change(subject: str, have: Settings | None, settings: Settings, step: tuple[str, ...]) -> Change:
    """Return one change; ``have`` is None for something new, whose unset options need no words."""
    if have is None:
        chosen = {key: value for key, value in settings.items() if value}
        return Change(subject, "created", after=_lines(chosen) or "created", step=(*step, *_words(chosen)))
    before = {key: have.get(key, "") for key in settings}
    said = [
        _LOCK[value] if key == "GrpSubmitJobs" else f"{key} {before[key] or 'none'} → {value or 'none'}"
        for key, value in settings.items()
    ]
    return Change(subject, ", ".join(said), "none", _lines(before), _lines(settings), (*step, *_words(settings)))


def _lines(settings: Settings) -> str:
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _words(settings: Settings) -> tuple[str, ...]:
    return tuple(f"{key}={value or _CLEAR.get(key, '-1')}" for key, value in settings.items())


def commands(changes: Iterable[Change]) -> list[list[str]]:
    """Return the ``sacctmgr -i`` arguments that make the changes, neighbours that differ by name only as one call."""
    merged: list[tuple[list[str], tuple[str, ...]]] = []
    for change in changes:
        name, rest = change.step[0], change.step[1:]
        if merged and merged[-1][1] == rest:
            merged[-1][0].append(name)
        else:
            merged.append(([name], rest))
    calls: list[list[str]] = []
    for names, (verb, kind, *arguments) in merged:
        where = ["where"] if verb == "modify" else []
        calls.append([verb, kind, *where, "name=" + ",".join(dict.fromkeys(names)), *arguments])
    return calls


def left_alone(state: State, wanted: Wanted) -> dict[str, Any]:
    """Return ``unmanaged`` (accounts and QOS of the database that the inventory does not name) and ``locked`` users."""
    users = {user for _account, user, _partition in state.associations}
    return {
        "unmanaged": {
            "accounts": sorted(set(state.accounts) - set(wanted.accounts) - {ROOT}),
            "qos": sorted(set(state.qos) - set(wanted.qos) - {NORMAL}),
        },
        "locked": sorted(users - set(wanted.users) - {ROOT}),
    }
