# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The devices of a tailnet, whoever tells of them: a client's status, Tailscale's API or headscale.

Pure. Field names are those of ``tailscale/tailscale:ipn/ipnstate/ipnstate.go``, ``client/tailscale/devices.go`` and
``juanfont/headscale:proto/headscale/v1/node.proto``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import Change

#: A device that the API does not call connected counts as online when it was seen this lately.
FRESH = timedelta(minutes=5)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True)
class Device:
    """A device; ``name`` is the first label of its MagicDNS name, ``logins`` are the spellings of its owner's name.

    ``addresses``: IPv4 before IPv6. ``tags`` have their ``tag:``; a tagged device belongs to nobody.
    ``external``: of another tailnet, shared into this one.
    """

    id: str
    name: str
    dns_name: str = ""
    addresses: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    logins: tuple[str, ...] = ()
    system: str = ""
    online: bool = False
    expired: bool = False
    last_seen: str = ""
    routes: tuple[str, ...] = ()
    external: bool = False

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Device:
        """Return the device that ``dataclasses.asdict`` made these of, also when JSON held them in between."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**plain)


def read_time(text: str) -> datetime | None:
    """Return a time of RFC 3339, None for none or for Go's zero time."""
    match = _TIME.fullmatch(text or "")
    if match is None or text.startswith("0001"):
        return None
    seconds, zone = match.groups()
    return datetime.fromisoformat(seconds + ("+00:00" if zone == "Z" else zone))


def of_status(status: Mapping[str, Any]) -> list[Device]:
    """Return this machine and its peers from ``tailscale status --json``; ValueError when it is in no tailnet."""
    if status.get("BackendState") != "Running" or not status.get("Self"):
        state = status.get("BackendState") or "no state at all"
        raise ValueError(f"tailscaled says {state}, not Running. Mend: log this machine in, with `tailscale up`")
    users = status.get("User") or {}
    own = status["Self"].get("DNSName", "").partition(".")[2]
    return [_of_peer(peer, users, own) for peer in (status["Self"], *(status.get("Peer") or {}).values())]


def _of_peer(peer: Mapping[str, Any], users: Mapping[str, Any], own: str) -> Device:
    dns = str(peer.get("DNSName") or "").rstrip(".")
    login = (users.get(str(peer.get("UserID"))) or {}).get("LoginName") or ""
    tags = tuple(peer.get("Tags") or ())
    return Device(
        id=str(peer.get("ID") or ""),
        name=dns.partition(".")[0] or str(peer.get("HostName") or ""),
        dns_name=dns,
        addresses=_sorted(peer.get("TailscaleIPs") or ()),
        tags=tags,
        logins=(login,) if login and not tags else (),
        system=str(peer.get("OS") or ""),
        online=bool(peer.get("Online")),
        expired=bool(peer.get("Expired")),
        last_seen="" if str(peer.get("LastSeen") or "0001").startswith("0001") else str(peer["LastSeen"]),
        routes=tuple(peer.get("PrimaryRoutes") or ()),
        external=bool(peer.get("ShareeNode")) or bool(dns and own and dns.partition(".")[2] != own.rstrip(".")),
    )


def of_api(devices: Iterable[Mapping[str, Any]], now: datetime | None = None) -> list[Device]:
    """Return the devices that Tailscale's API lists; ``now`` is the time to hold theirs against."""
    now = now or datetime.now(timezone.utc)
    return [_of_api(device, now) for device in devices]


def _of_api(device: Mapping[str, Any], now: datetime) -> Device:
    seen, expires = read_time(device.get("lastSeen") or ""), read_time(device.get("expires") or "")
    connected = device.get("connectedToControl")
    tags = tuple(device.get("tags") or ())
    user = device.get("user")
    dns = str(device.get("name") or "")
    return Device(
        id=str(device.get("nodeId") or device.get("id") or ""),
        name=dns.partition(".")[0] or str(device.get("hostname") or ""),
        dns_name=dns,
        addresses=_sorted(device.get("addresses") or ()),
        tags=tags,
        logins=(user,) if user and not tags else (),
        system=str(device.get("os") or ""),
        online=bool(connected) if connected is not None else seen is not None and now - seen < FRESH,
        expired=bool(expires and expires <= now and not device.get("keyExpiryDisabled")),
        last_seen=str(device.get("lastSeen") or "") if seen else "",
        routes=tuple(device.get("enabledRoutes") or ()),
        external=bool(device.get("isExternal")),
    )


def of_headscale(
    nodes: Iterable[Mapping[str, Any]], base_domain: str = "", now: datetime | None = None
) -> list[Device]:
    """Return the nodes that headscale lists; their MagicDNS names need the server's ``dns.base_domain``."""
    now = now or datetime.now(timezone.utc)
    return [_of_headscale(node, base_domain, now) for node in nodes]


def _of_headscale(node: Mapping[str, Any], base_domain: str, now: datetime) -> Device:
    expires, seen = _moment(node.get("expiry")), _moment(node.get("last_seen"))
    tags = tuple(node.get("tags") or ())
    name = str(node.get("given_name") or node.get("name") or "")
    return Device(
        id=str(node["id"]),
        name=name,
        dns_name=f"{name}.{base_domain}" if base_domain else "",
        addresses=_sorted(node.get("ip_addresses") or ()),
        tags=tags,
        logins=() if tags else _spellings(node.get("user") or {}),
        online=bool(node.get("online")),
        expired=bool(expires and expires <= now),
        last_seen=seen.isoformat() if seen else "",
        routes=tuple(node.get("subnet_routes") or ()),
    )


def _spellings(user: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the spellings of the name of a user of headscale."""
    name = user.get("name") or ""
    return tuple(text for text in (f"{name}@" if name else "", user.get("email") or "", name) if text)


def _moment(stamp: Mapping[str, Any] | None) -> datetime | None:
    """Return the time in a protobuf timestamp, None for Go's zero time."""
    seconds = (stamp or {}).get("seconds") or 0
    return datetime.fromtimestamp(seconds, timezone.utc) if seconds > 0 else None


def _sorted(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted((str(address) for address in addresses), key=lambda address: ":" in address))


def of_people(devices: Iterable[Device], logins: Iterable[str]) -> list[Device]:
    """Return the devices that belong to one of these logins, those of other tailnets aside."""
    names = {login.lower() for login in logins}
    return [one for one in devices if not one.external and names & {login.lower() for login in one.logins}]


def plan_expiry(devices: Iterable[Device]) -> list[Change]:
    """Return a change for every device whose key still holds; its step is ``("expire", id)``."""
    return [
        Change(
            f"device {device.name}", "its key expires; it must log in again to come back", step=("expire", device.id)
        )
        for device in devices
        if not device.expired
    ]


def plan_keys(keys: Iterable[Mapping[str, Any]], logins: Iterable[str], now: datetime | None = None) -> list[Change]:
    """Return a change for every pre-auth key of these people by which a node could still join headscale.

    ``keys`` are those that headscale lists (``proto/headscale/v1/preauthkey.proto``); the step is ``("key", id)``.
    """
    now = now or datetime.now(timezone.utc)
    names = {login.lower() for login in logins}
    changes = []
    for key in keys:
        user, until = key.get("user") or {}, _moment(key.get("expiration"))
        over = (until is not None and until <= now) or (key.get("used") and not key.get("reusable"))
        if not over and names & {login.lower() for login in _spellings(user)}:
            words = "expires; no device joins with it any more"
            changes.append(Change(f"pre-auth key {key['id']} of {user['name']}", words, step=("key", str(key["id"]))))
    return changes
