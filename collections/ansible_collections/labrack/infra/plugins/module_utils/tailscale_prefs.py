# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The preferences of a Tailscale node: read, brought into one form, and compared with what is wanted.

Pure. Preferences go by the names of the flags of ``tailscale set``. They are read from ``tailscale get --json`` (from
1.100 on, tailscale/tailscale ``cmd/tailscale/cli/get.go``), before that from ``tailscale debug prefs``
(``ipn/prefs.go``). Flags and defaults: ``cmd/tailscale/cli/set.go``.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Union

Value = Union[bool, str]
Prefs = dict[str, Value]

#: ``preftype/netfiltermode.go``: the numbers in the file.
NETFILTER = ("off", "nodivert", "on")
EXIT_ROUTES = ("0.0.0.0/0", "::/0")
AUTO = "auto:"
#: Stands among the preferences for what `tailscale up` and `tailscale down` say.
CONNECTED = "connected"
#: ``util/dnsname/dnsname.go``: the longest label, and what becomes a hyphen within one.
LABEL_LENGTH = 63
SEPARATORS = " .@_"

Peers = Mapping[str, Mapping[str, Any]]


class PrefsError(ValueError):
    """A flag or value that Tailscale does not know; the message says flag, value and mend."""


@dataclass(frozen=True)
class Flag:
    """A flag of ``tailscale set``: Tailscale's default, which also tells its type, and how its value is written.

    ``normal`` brings a text into its one form (PrefsError); ``hidden`` flags are left out by ``get`` without a name.
    ``up`` says that ``tailscale up`` has it too, and wants it named when it is not the default.
    """

    default: Value = False
    normal: Callable[[str], str] = str.strip
    up: bool = True
    hidden: bool = False


# --- one form --------------------------------------------------------------------------------------------------------


def sanitize(name: str) -> str:
    """Return the host name that Tailscale makes of a name: one DNS label in lower case (``util/dnsname``)."""
    for suffix in (".local", ".localdomain", ".lan"):
        name = name[: -len(suffix)] if name.endswith(suffix) else name
    name = re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9]+$", "", name[:LABEL_LENGTH])
    name = "".join("-" if letter in SEPARATORS else letter for letter in name)
    return re.sub(r"[^A-Za-z0-9-]", "", name).lower()


def route(text: str) -> str:
    """Return a route as Tailscale writes it; PrefsError for one that it refuses."""
    try:
        return str(ipaddress.ip_network(text.strip()))
    except ValueError:
        try:
            mend = f"write {ipaddress.ip_network(text.strip(), strict=False)}"
        except ValueError:
            mend = "write it as 10.0.0.0/24"
        raise PrefsError(f"{text} is not the address of a network. Mend: {mend}") from None


def routes(text: str) -> str:
    """Return routes, joined by commas, each once and in one order; those of an exit node are left out."""
    found = {ipaddress.ip_network(route(one)) for one in text.split(",") if one.strip()}
    inner = [one for one in found if str(one) not in EXIT_ROUTES]
    return ",".join(str(one) for one in sorted(inner, key=lambda one: (one.version, one)))


def tag(text: str) -> str:
    """Return a tag with its prefix; PrefsError for one that Tailscale refuses (``tailcfg.CheckTag``)."""
    name = text.strip()
    name = name[4:] if name.startswith("tag:") else name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
        raise PrefsError(f"{text} is not a tag. Mend: begin with a letter, then letters, digits and hyphens")
    return f"tag:{name}"


def tags(names: Sequence[str]) -> tuple[str, ...]:
    """Return tags in one order, each once (PrefsError)."""
    return tuple(sorted({tag(name) for name in names}))


def _netfilter(text: str) -> str:
    if text not in NETFILTER:
        raise PrefsError(f"{text} is not a netfilter mode. Mend: use one of {', '.join(NETFILTER)}")
    return text


def _port(text: str) -> str:
    if text and not (text.isdigit() and int(text) < 1 << 16):
        raise PrefsError(f"{text} is not a port. Mend: write a number from 0 to 65535, or leave it empty")
    return str(int(text)) if text else ""


def _endpoints(text: str) -> str:
    return ",".join(sorted({one.strip() for one in text.split(",") if one.strip()}))


def _exit_node(text: str) -> str:
    text = text.strip().lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


#: Every flag of ``tailscale set`` on Linux but ``accept-risk``, which is no preference.
FLAGS: dict[str, Flag] = {
    "accept-dns": Flag(True),
    "accept-routes": Flag(),
    "advertise-connector": Flag(),
    "advertise-exit-node": Flag(),
    "advertise-routes": Flag("", routes),
    "auto-update": Flag(up=False),
    "exit-node": Flag("", _exit_node),
    "exit-node-allow-lan-access": Flag(),
    "hostname": Flag("", sanitize),
    "netfilter-mode": Flag("on", _netfilter),
    "nickname": Flag("", up=False),
    "operator": Flag(""),
    "relay-server-port": Flag("", _port, up=False),
    "relay-server-static-endpoints": Flag("", _endpoints, up=False),
    "remote-config": Flag(up=False, hidden=True),
    "report-posture": Flag(),
    "shields-up": Flag(),
    "snat-subnet-routes": Flag(True),
    "ssh": Flag(),
    "stateful-filtering": Flag(),
    "sync": Flag(up=False, hidden=True),
    "update-check": Flag(True, up=False),
    "webclient": Flag(up=False),
}


def normal(name: str, value: Any) -> Value:
    """Return a flag's value in its one form: a bool, or a text; lists are joined by commas. PrefsError otherwise."""
    if name not in FLAGS:
        close = difflib.get_close_matches(name.replace("_", "-"), FLAGS, 1)
        mend = f"write {close[0]}" if close else "see `tailscale set --help`"
        raise PrefsError(f"{name} is not a preference of `tailscale set`. Mend: {mend}")
    flag = FLAGS[name]
    if isinstance(flag.default, bool):
        if not isinstance(value, bool):
            words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
            if str(value).lower() not in words:
                raise PrefsError(f"{name} = {value} is neither true nor false. Mend: write one of them")
            return words[str(value).lower()]
        return value
    if isinstance(value, bool):
        if name != "netfilter-mode":
            raise PrefsError(f"{name} = {value} is not a text. Mend: put it in quotes")
        # YAML reads on and off as true and false
        value = "on" if value else "off"
    text = ",".join(str(one) for one in value) if isinstance(value, (list, tuple)) else str(value)
    try:
        return flag.normal(text)
    except PrefsError as error:
        raise PrefsError(f"{name}: {error}") from None


def wanted_prefs(named: Mapping[str, Any]) -> Prefs:
    """Return the wanted preferences in their one form, without those that are None (PrefsError)."""
    if any(route(one) in EXIT_ROUTES for one in _split(named.get("advertise-routes") or "")):
        raise PrefsError(
            f"advertise-routes: {' and '.join(EXIT_ROUTES)} are those of an exit node. Mend: take them out, and set "
            "advertise-exit-node"
        )
    return {name: normal(name, value) for name, value in named.items() if value is not None}


def _split(value: Any) -> list[str]:
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return [str(part) for part in parts if str(part).strip()]


# --- reading ---------------------------------------------------------------------------------------------------------


def read_get(text: str) -> Prefs:
    """Return the preferences of ``tailscale get --json``; flags that are not known here are left out (PrefsError)."""
    return {name: normal(name, value) for name, value in _object(text).items() if name in FLAGS and value is not None}


def read_all(get: Callable[..., str], named: Sequence[str]) -> Prefs | None:
    """Return all preferences, with those of the ``named`` ones that hide, as ``get`` prints them (PrefsError).

    ``get`` runs ``tailscale get --json`` with further words. None where there is no `get`, as before 1.100.
    """
    text = get()
    if not text.lstrip().startswith("{"):
        return None
    found = read_get(text)
    for name in named:
        if name in FLAGS and FLAGS[name].hidden:
            found.update(read_get(get(name)))
    return found


def read_debug(text: str, peers: Peers | None = None) -> Prefs:
    """Return the preferences of ``tailscale debug prefs``, as ``get`` would show them (PrefsError).

    ``peers`` are those of ``tailscale status --json``; an exit node is known by its ID alone, which leads to its
    address there, and stays as it is where it does not. Flags that this version does not know are left out.
    """
    raw = _object(text)
    advertised = [str(one) for one in raw.get("AdvertiseRoutes") or ()]
    update = raw.get("AutoUpdate") or {}
    found: dict[str, Any] = {
        "accept-dns": raw.get("CorpDNS"),
        "accept-routes": raw.get("RouteAll"),
        "advertise-connector": (raw.get("AppConnector") or {}).get("Advertise"),
        "advertise-exit-node": set(EXIT_ROUTES) <= set(advertised),
        "advertise-routes": advertised,
        "auto-update": update.get("Apply") is True,
        "exit-node": _exit_node_of(raw, peers or {}),
        "exit-node-allow-lan-access": raw.get("ExitNodeAllowLANAccess"),
        "hostname": raw.get("Hostname", ""),
        "netfilter-mode": _mode(raw.get("NetfilterMode")),
        "nickname": raw.get("ProfileName", ""),
        "operator": raw.get("OperatorUser", ""),
        "relay-server-port": "" if raw.get("RelayServerPort") is None else str(raw["RelayServerPort"]),
        "relay-server-static-endpoints": raw.get("RelayServerStaticEndpoints") or "",
        "remote-config": raw.get("RemoteConfig"),
        "report-posture": raw.get("PostureChecking"),
        "shields-up": raw.get("ShieldsUp"),
        "snat-subnet-routes": not raw.get("NoSNAT", False),
        "ssh": raw.get("RunSSH"),
        "stateful-filtering": raw.get("NoStatefulFiltering") is not True,
        "sync": raw.get("Sync") is True if "Sync" in raw else None,
        "update-check": update.get("Check"),
        "webclient": raw.get("RunWebClient"),
    }
    return {name: normal(name, value) for name, value in found.items() if value is not None}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PrefsError(f"tailscale printed no preferences but {text.strip()[:200]!r}")
    return found


def _mode(number: Any) -> str | None:
    return NETFILTER[number] if isinstance(number, int) and 0 <= number < len(NETFILTER) else None


def _exit_node_of(raw: Mapping[str, Any], peers: Peers) -> str:
    if raw.get("AutoExitNode"):
        return AUTO + str(raw["AutoExitNode"])
    if raw.get("ExitNodeIP"):
        return str(raw["ExitNodeIP"])
    identity = str(raw.get("ExitNodeID") or "")
    for peer in peers.values():
        if identity and peer.get("ID") == identity and peer.get("TailscaleIPs"):
            return str(peer["TailscaleIPs"][0])
    return identity


def exit_node_address(name: str, peers: Peers) -> str:
    """Return the address of an exit node that is named by address, base name or MagicDNS name; the name if unknown."""
    for peer in peers.values():
        full = str(peer.get("DNSName", "")).rstrip(".").lower()
        addresses = [str(one) for one in peer.get("TailscaleIPs") or ()]
        if addresses and name in (full, full.partition(".")[0], *addresses):
            return addresses[0]
    return name


# --- comparing -------------------------------------------------------------------------------------------------------


def diff(observed: Mapping[str, Value], wanted: Mapping[str, Value]) -> dict[str, tuple[Value | None, Value]]:
    """Return what differs, by flag: as it is (None where the version does not tell) and as it should be."""
    return {name: (observed.get(name), value) for name, value in sorted(wanted.items()) if observed.get(name) != value}


def shown(name: str, value: Value | None) -> str:
    """Return a preference as its flag, for a message or a diff."""
    return f"--{name}={'?' if value is None else written(value)}"


def written(value: Value) -> str:
    """Return a value as ``tailscale set`` takes it."""
    return str(value).lower() if isinstance(value, bool) else value


def set_args(changes: Mapping[str, Value]) -> list[str]:
    """Return the flags for one ``tailscale set``."""
    return [f"--{name}={written(value)}" for name, value in sorted(changes.items())]


def up_args(observed: Mapping[str, Value], wanted: Mapping[str, Value]) -> list[str]:
    """Return the flags of ``tailscale up`` that keep what is set, and set what is wanted as far as it has flags for it.

    It refuses to run when one that is not the default is left out. An exit node is kept but not newly chosen here: its
    name is not known before the node has joined.
    """
    found: Prefs = {}
    for name, flag in FLAGS.items():
        there = observed.get(name, flag.default)
        value = there if name.startswith("exit-node") else wanted.get(name, there)
        if flag.up and (value != flag.default or there != flag.default):
            found[name] = value
    if not found.get("exit-node"):
        # tailscale refuses it without an exit node
        found.pop("exit-node-allow-lan-access", None)
    return set_args(found)
