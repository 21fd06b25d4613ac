# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compare this node with its ledgers: one program for all packages, one for all units. No Ansible import.

Who and when is told where the system knows it: dpkg's and apt's logs, a file's times and owner, a unit's last change.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import managed, managed_observe, skypilot_keys
from ansible_collections.labrack.infra.plugins.module_utils.managed import Drift, Managed
from ansible_collections.labrack.infra.plugins.module_utils.node_io import group_name, owner_name, run

DPKG_LOGS = ("/var/log/dpkg.log.1", "/var/log/dpkg.log")
APT_LOG = "/var/log/apt/history.log"
#: Bytes at the end of a log that are read.
LOG_MOST = 4 << 20
#: How the files with people's keys end.
AUTHORIZED = "/.ssh/authorized_keys"
UNIT_PROPERTIES = "Id,LoadState,ActiveState,UnitFileState,StateChangeTimestamp"


def read(folder: str = managed_observe.FOLDER) -> dict[str, Any]:
    """Return what the module ``drift`` returns as ``drift`` (OSError; ValueError for a damaged ledger)."""
    applied, items = managed_observe.ledgers(folder)
    items = without_launches(named(items), skypilot_keys.launch_keys())
    seen, unseen, changed_at = look(items)
    looked_at = {key: value for key, value in items.items() if key[0] not in unseen}
    found = managed.compare(looked_at, seen)
    packages = {one.name for one in found if one.kind == "package"}
    told = package_history([_tail(path) for path in DPKG_LOGS], _tail(APT_LOG), packages) if packages else {}
    rows = []
    for one in found:
        who, when = told.get(one.name, ("", 0.0)) if one.kind == "package" else _who_when(one, changed_at)
        rows.append({"kind": one.kind, "name": one.name, "what": one.what, "who": who, "when": stamp(when)})
    return {
        "checked": managed.counts(looked_at),
        "not_checked": managed.counts({key: {} for key in items if key[0] in unseen}),
        "applied": {name: stamp(when) for name, when in applied.items()},
        "full_check": stamp(min(applied.values(), default=0.0)),
        "items": rows,
    }


def named(items: Managed) -> Managed:
    """Return what is managed, owners and groups by the names that their numbers have got since the run.

    Directories are made before the people are, and the number is the same.
    """
    found = dict(items)
    for key, attributes in items.items():
        for what, name in (("owner", owner_name), ("group", group_name)):
            number = str(attributes.get(what, ""))
            if key[0] in ("file", "directory") and number.isdigit():
                found[key] = {**found[key], what: name(int(number))}
    return found


def without_launches(items: Managed, keys: Mapping[str, Sequence[str]]) -> Managed:
    """Return what is managed, people's keys without those that their launches add, by user: nobody did that by hand."""
    found = dict(items)
    for (kind, name), attributes in items.items():
        own = keys.get(attributes.get("owner", ""), ())
        if own and kind == "file" and attributes.get("how") == managed.TEXT and name.endswith(AUTHORIZED):
            lines = {*attributes.get("without", ()), *map(managed.digest, own)}
            found[kind, name] = {**attributes, "without": sorted(lines)}
    return found


def stamp(when: float) -> str:
    """Return a Unix time as ISO 8601 in UTC, "" for 0."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)) if when else ""


def look(items: Managed) -> tuple[Managed, set[str], dict[str, float]]:
    """Return what the node has, the kinds that could not be looked at, and when units changed last (Unix time)."""
    by_kind: dict[str, list[str]] = {}
    for kind, name in sorted(items):
        by_kind.setdefault(kind, []).append(name)
    seen = managed_observe.look({key: value for key, value in items.items() if key[0] in managed_observe.CHEAP})
    unseen: set[str] = set()
    changed_at: dict[str, float] = {}
    packages = look_packages(by_kind.get("package", []))
    units = look_units(by_kind.get("unit", []))
    preferences = look_preferences(by_kind.get("preference", []))
    for kind, found in (("package", packages), ("unit", units), ("preference", preferences)):
        if found is None:
            unseen.add(kind)
            continue
        for name, attributes in found.items():
            changed_at[name] = attributes.pop("changed_at", 0.0)
            seen[kind, name] = attributes
    return seen, unseen & set(by_kind), changed_at


# --- packages --------------------------------------------------------------------------------------------------------


def look_packages(names: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """Return version and hold of the packages that are installed, None where no package manager answers."""
    if not names:
        return {}
    if shutil.which("dpkg-query"):
        done = run(["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Abbrev}${Version}\n", *names])
        return read_dpkg(done.out) if done.rc in (0, 1) else None
    done = run(["rpm", "--query", "--queryformat=%{NAME} %{EVR}\n", *names])
    # what is not installed is told in a sentence; holds are the matter of dnf, which is not asked
    pairs = [line.split() for line in done.out.splitlines()]
    return {pair[0]: {"version": pair[1]} for pair in pairs if len(pair) == 2} if done.rc < 120 else None


def read_dpkg(text: str) -> dict[str, dict[str, Any]]:
    """Return version and hold of the installed packages in lines of ``${Package} ${db:Status-Abbrev}${Version}``."""
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1][1:2] == "i":
            found.setdefault(words[0], {"version": words[2], "held": words[1][0] == "h"})
    return found


def package_history(dpkg: Iterable[str], apt: str, names: Iterable[str]) -> dict[str, tuple[str, float]]:
    """Return who has changed a package last, "" where it is not known, and when, by the texts of the logs.

    dpkg's say when. apt's say who, for what sudo has let somebody do.
    """
    wanted = set(names)
    found: dict[str, tuple[str, float]] = {}
    for text in dpkg:
        for line in text.splitlines():
            words = line.split()
            if len(words) > 3 and words[2] in ("install", "upgrade", "remove", "purge"):
                name = words[3].partition(":")[0]
                if name in wanted:
                    found[name] = "", _local(f"{words[0]} {words[1]}")
    for block in apt.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        start, end = (_local(" ".join(fields.get(key, "").split())) for key in ("Start-Date", "End-Date"))
        for name, (_who, when) in found.items():
            if start <= when <= (end or when) and fields.get("Requested-By"):
                found[name] = fields["Requested-By"].partition(" ")[0], when
    return found


def _local(text: str) -> float:
    """Return a log's local time as Unix time, 0 for none."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))
    except (ValueError, OverflowError):
        return 0.0


# --- units -----------------------------------------------------------------------------------------------------------


def look_units(names: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """Return the units that are installed or masked, None where systemd does not answer."""
    if not names:
        return {}
    # the time zone is that of the times that are printed
    done = run(["systemctl", "show", f"--property={UNIT_PROPERTIES}", *names], env={"TZ": "UTC"})
    return read_units(done.out, names) if done.rc == 0 else None


def read_units(text: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return units as ``systemctl show`` prints them, a block for each of ``names``."""
    found = {}
    for name, block in zip(names, text.strip().split("\n\n")):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("LoadState") not in ("loaded", "masked"):
            continue
        file = values.get("UnitFileState", "")
        found[name] = {
            "active": values.get("ActiveState") in ("active", "reloading"),
            "enabled": file in ("enabled", "enabled-runtime", "static", "generated"),
            "masked": values["LoadState"] == "masked" or file.startswith("masked"),
            "state": values.get("ActiveState", ""),
            "file": file,
            "changed_at": _utc(values.get("StateChangeTimestamp", "")),
        }
    return found


def _utc(text: str) -> float:
    """Return systemd's "Thu 2026-11-26 23:43:27 UTC" as Unix time, 0 for none."""
    found = re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text)
    return float(calendar.timegm(time.strptime(found.group(), "%Y-%m-%d %H:%M:%S"))) if found else 0.0


# --- the tailnet -----------------------------------------------------------------------------------------------------


def look_preferences(names: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """Return the preferences of the tailnet, None where tailscaled does not answer."""
    if not names:
        return {}
    # most nodes are in no tailnet
    from ansible_collections.labrack.infra.plugins.module_utils import tailscale_prefs

    raw = run(["tailscale", "debug", "prefs"], timeout=10).out
    try:
        connected = bool(re.search(r"\"WantRunning\":\s*true", raw))
        prefs = tailscale_prefs.read_all(lambda *words: run(["tailscale", "get", "--json", *words]).out, names)
        if prefs is None:
            prefs = tailscale_prefs.read_debug(raw)
            # it is known by its ID alone there
            prefs.pop("exit-node", None)
    except tailscale_prefs.PrefsError:
        return None
    found = {name: {"value": prefs[name]} for name in names if name in prefs}
    return {**found, tailscale_prefs.CONNECTED: {"value": connected}}


# --- who and when ----------------------------------------------------------------------------------------------------


def _who_when(one: Drift, changed_at: Mapping[str, float]) -> tuple[str, float]:
    if one.kind == "unit" and one.attributes[:1] == ("active",):
        return "", changed_at.get(one.name, 0.0)
    if one.kind in ("file", "directory") and one.attributes:
        with contextlib.suppress(OSError):
            info = os.stat(one.name)
            if {"sha256", "stat", "lines"} & set(one.attributes):
                return owner_name(info.st_uid), info.st_mtime
            return "", info.st_ctime
    return "", 0.0


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LOG_MOST))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
