# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan a node of a tailnet: package, login, preferences, forwarding; and what of it could cut the run's own session.

Pure. The state is the ``BackendState`` of ``tailscale status --json``, whose exit status tells nothing. What the role
set is in a record on the node. Facts about upstream (tailscale/tailscale):

- the states: ``ipn/backend.go``; which flags ``up`` alone has: ``cmd/tailscale/cli/up.go``;
- an OAuth client secret makes an ephemeral node that waits for approval, unless it says otherwise, and needs tags:
  ``feature/oauthkey/oauthkey.go``;
- the package's postinst restarts tailscaled on every upgrade: ``release/deb/debian.postinst.sh``;
- repositories: ``scripts/installer.sh``.
"""

from __future__ import annotations

import ipaddress
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import managed, openpgp, tailscale_prefs
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import (
    Package,
    Pin,
    Source,
    SourceState,
    plan_source,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_prefs import Prefs, PrefsError, Value

RECORD = "/var/lib/labrack/tailscale.json"
SYSCTL = "/etc/sysctl.d/60-labrack-tailscale.conf"
SERVICE = "tailscaled"
PACKAGE = "tailscale"
#: Where the static binaries go, and what comes with them.
BINARIES = ("/usr/local/bin/tailscale", "/usr/local/sbin/tailscaled")
UNIT = "/etc/systemd/system/tailscaled.service"
DEFAULTS = "/etc/default/tailscaled"
STATE_DIRECTORY = "/var/lib/tailscale"

#: Addresses of a tailnet (``net/tsaddr/tsaddr.go``).
TAILNET = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))
#: Tailscale's service by its names (``ipn.IsLoginServerSynonym``).
SERVICE_URLS = ("", "https://controlplane.tailscale.com", "https://login.tailscale.com")
#: Bytes of a packet that every path through a tailnet carries.
TUNNEL_MTU = 1280

FORWARDING = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}
#: Flags that change no traffic.
HARMLESS = {"hostname", "nickname", "operator", "auto-update", "update-check", "report-posture", "webclient"}


class TailscaleError(ValueError):
    """A node or a wish with which nothing can be done; the message says the cause and the mend."""


@dataclass(frozen=True)
class Session:
    """The ssh session that carries the run: both addresses, empty where it is none.

    ``tailscale_ssh`` says that tailscaled itself is the ssh server, ``device`` is where the way back to ``peer`` goes.
    """

    peer: str = ""
    local: str = ""
    device: str = ""
    tailscale_ssh: bool = False


@dataclass(frozen=True)
class Record:
    """What the role made on this node.

    ``method`` is how it installed Tailscale: package, archive, or empty where it was there. ``prefs`` are the flags
    that it set, or is about to set.
    """

    method: str = ""
    held: bool = False
    joined: bool = False
    prefs: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str | None) -> Record:
        """Return the record in a file's text; an empty one for no file. TailscaleError for a damaged one."""
        try:
            found: dict[str, Any] = json.loads(text) if text else {}
            return cls(
                method=str(found.get("method", "")),
                held=bool(found.get("held")),
                joined=bool(found.get("joined")),
                prefs=tuple(str(name) for name in found.get("prefs", ())),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise TailscaleError(f"{RECORD} is damaged ({error}). Mend: remove it and run again") from None

    def file(self) -> FileState | None:
        """Return the file that holds the record, or None when there is nothing to remember."""
        content = {name: value for name, value in vars(self).items() if value}
        return FileState(json.dumps(content, indent=2, sort_keys=True) + "\n") if content else None


@dataclass(frozen=True)
class Observed:
    """A node as it is.

    ``program`` says that a ``tailscale`` is there at all, ``status`` is None where tailscaled does not answer.
    ``guarded`` are the preferences that the guard has set or will set at once, and puts back unless it is stopped.
    ``server_problem`` says why the wanted control server can't be logged in to; it is looked for only before a login.
    """

    program: bool = False
    package: Package | None = None
    service: ServiceState = field(default_factory=ServiceState)
    status: Mapping[str, Any] | None = None
    prefs: Mapping[str, Value] = field(default_factory=dict)
    control_url: str = ""
    advertised_tags: tuple[str, ...] = ()
    record: FileState | None = None
    source: SourceState = field(default_factory=SourceState)
    sysctl: FileState | None = None
    forwarding: Mapping[str, bool] = field(default_factory=dict)
    session: Session = field(default_factory=Session)
    guarded: Mapping[str, Value] = field(default_factory=dict)
    server_problem: str = ""


@dataclass(frozen=True)
class Wanted:
    """A node as it should be. ``present`` False: nothing of ours.

    ``method`` is package or archive; an empty ``version`` is any. ``tags`` empty leaves them alone, and
    ``tags_from_key`` leaves it to the server to give them by the key. ``address`` is the lab's for this node.
    """

    present: bool = True
    method: str = "package"
    version: str = ""
    hold: bool = True
    source: Source | None = None
    archive_url: str = ""
    archive_sha256: str = ""
    login_server: str = ""
    auth_key: str = field(default="", repr=False)
    tags: tuple[str, ...] = ()
    tags_from_key: bool = False
    prefs: Mapping[str, Value] = field(default_factory=dict)
    address: str = ""
    allow_disconnect: bool = False


# --- the wish --------------------------------------------------------------------------------------------------------


def read_wanted(params: Mapping[str, Any], system: Mapping[str, str], arch: str) -> Wanted:
    """Return what the module's parameters ask for on a system (``node_observe.os_release``) of an architecture.

    TailscaleError for what can't be meant; the message names the role's variable.
    """
    present = params["state"] != "absent"
    for fingerprint in params["repo_key_fingerprint"]:
        try:
            openpgp.normal(fingerprint)
        except openpgp.OpenpgpError as error:
            raise TailscaleError(f"tailscale_repo_key_fingerprint: {error}. Mend: write it out in full") from None
    arch = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}.get(arch, arch)
    source = _source(params, system, arch)
    method = params["install"]
    if method == "auto":
        method = "repository" if source else "archive"
    method = {"repository": "package"}.get(method, method)
    if present and method == "package" and source is None:
        raise TailscaleError(
            f"tailscale_install: repository, and Tailscale has none for {system['pretty'] or system['id']}. "
            "Mend: set it to archive"
        )
    checksum = str(params["archive_sha256"].get(arch, ""))
    if present and method == "archive" and not (params["version"] and re.fullmatch(r"[0-9a-fA-F]{64}", checksum)):
        raise TailscaleError(
            f"tailscale_archive_sha256 has no SHA-256 for {arch}, and the archive is not taken without, nor without "
            "tailscale_version. Mend: take it from the file's own .sha256 beside the archive, over a way that you trust"
        )
    try:
        prefs = tailscale_prefs.wanted_prefs(params["prefs"])
        names = tailscale_prefs.tags(params["tags"])
    except PrefsError as error:
        raise TailscaleError(f"tailscale: {error}") from None
    problem = key_problem(params["auth_key"] or "", names, params["login_server"], params["tags_from_key"])
    if present and problem:
        raise TailscaleError(f"tailscale_auth_key: {problem[0]}. Mend: {problem[1]}")
    return Wanted(
        present=present,
        method=method,
        version=params["version"],
        hold=params["hold"] and not prefs.get("auto-update"),
        source=source,
        archive_url=params["archive_url"].format(version=params["version"], arch=arch),
        archive_sha256=checksum.lower(),
        login_server=params["login_server"].rstrip("/"),
        auth_key=params["auth_key"] or "",
        tags=names,
        tags_from_key=params["tags_from_key"],
        prefs=prefs,
        address=params["address"],
        allow_disconnect=params["allow_disconnect"],
    )


def _source(params: Mapping[str, Any], system: Mapping[str, str], arch: str) -> Source | None:
    """Tailscale's repository for a system, None where there is none."""
    base, fingerprints = params["repo_url"].rstrip("/"), tuple(params["repo_key_fingerprint"])
    if system["family"] == "redhat":
        # the vendor's own installer gives the rebuilds of RHEL the packages for Fedora
        own = system["id"] in ("rhel", "centos")
        folder = f"{base}/{system['id']}/{system['version'].partition('.')[0]}" if own else f"{base}/fedora"
        key = params["repo_key_url"] or f"{folder}/repo.gpg"
        return Source("labrack-tailscale", f"{folder}/$basearch", key, fingerprints, family="redhat")
    if system["family"] != "debian" or system["id"] not in ("debian", "ubuntu") or not system["codename"]:
        return None
    folder = f"{base}/{system['id']}"
    pinned = params["version"] and not params["prefs"].get("auto-update")
    return Source(
        "labrack-tailscale",
        folder,
        params["repo_key_url"] or f"{folder}/{system['codename']}.noarmor.gpg",
        fingerprints,
        suite=system["codename"],
        components=("main",),
        architecture=arch,
        pins=(Pin((PACKAGE,), f"version {params['version']}", 1001),) if pinned else (),
    )


def key_problem(
    key: str, tags: Sequence[str], login_server: str = "", tags_from_key: bool = False
) -> tuple[str, str] | None:
    """Return what is wrong with an auth key and the mend, None for nothing; the key is not part of the texts.

    Kinds of keys: https://tailscale.com/docs/reference/key-prefixes and headscale ``hscontrol/db/preauth_keys.go``.
    """
    if not key:
        return None
    if key != key.strip() or re.search(r"\s", key):
        return "it has a blank or a line break in it", "copy the key alone"
    if key.startswith(("tskey-api-", "hskey-api-")):
        return (
            "it is a key for the API, which can't log a node in, and gives more power than a node should have",
            "make an auth key (tskey-auth-…) or an OAuth client secret (tskey-client-…), for headscale a pre-auth key",
        )
    if key.startswith(("tskey-webhook-", "tskey-scim-")):
        return "it is a key of another kind", "make an auth key (tskey-auth-…)"
    if key.startswith("tskey-") and login_server.rstrip("/") not in SERVICE_URLS and "baseURL=" not in key:
        return f"it is a key of Tailscale's service, and the login server is {login_server}", "make one there"
    if key.startswith("hskey-") and login_server.rstrip("/") in SERVICE_URLS:
        return "it is a key of headscale", "set tailscale_login_server, or use a key of Tailscale's service"
    if key.startswith("tskey-client-"):
        if not tags or tags_from_key:
            return (
                "it is an OAuth client secret, whose nodes need tags",
                "set tailscale_tags (and tailscale_tags_from_key to false)",
            )
        query = urllib.parse.parse_qs(key.partition("?")[2], keep_blank_values=True)
        unknown = sorted(set(query) - {"ephemeral", "preauthorized", "baseURL"})
        if unknown:
            return f"its query has the parameter {unknown[0]}", "use ephemeral, preauthorized and baseURL alone"
    return None


def full_key(key: str) -> str:
    """Return an auth key as it is handed over: an OAuth client secret says that the node stays, and is approved."""
    if not key.startswith("tskey-client-"):
        return key
    secret, _mark, query = key.partition("?")
    given = urllib.parse.parse_qs(query, keep_blank_values=True)
    more = [
        f"{name}={value}" for name, value in (("ephemeral", "false"), ("preauthorized", "true")) if name not in given
    ]
    return f"{secret}?{'&'.join([*([query] if query else []), *more])}"


# --- the state -------------------------------------------------------------------------------------------------------


def read_record(observed: Observed) -> Record:
    """Return the record of a node (TailscaleError)."""
    return Record.read(observed.record.text if observed.record else None)


def backend(observed: Observed) -> str:
    """Return the node's ``BackendState``; empty where tailscaled does not answer."""
    return str((observed.status or {}).get("BackendState", ""))


def running_version(observed: Observed) -> str:
    """Return the version of the tailscaled that runs, "" where none answers."""
    return str((observed.status or {}).get("Version", "")).partition("-")[0]


def _self(observed: Observed) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (observed.status or {}).get("Self") or {}
    return found


def in_tailnet(address: str) -> bool:
    """Return whether an address is one that tailnets use; false for what is no address."""
    try:
        return any(ipaddress.ip_address(address) in network for network in TAILNET)
    except ValueError:
        return False


def same_server(one: str, other: str) -> bool:
    """Return whether two addresses are of the same control server."""
    one, other = one.rstrip("/"), other.rstrip("/")
    return one == other or {one, other} <= set(SERVICE_URLS)


def unknown(observed: Observed) -> bool:
    """Return whether tailscaled has to be started before anything can be said of the login."""
    return observed.program and observed.status is None


def login_reason(observed: Observed) -> str:
    """Return why the node has to log in, "" when it is logged in, waits for approval, or can't be asked yet."""
    if unknown(observed):
        return ""
    state = backend(observed)
    if _self(observed).get("Expired"):
        return "its key has expired"
    if state == "NeedsLogin" and observed.status and observed.status.get("HaveNodeKey"):
        return "its key has expired, or the node was removed at the server"
    if state in ("", "NoState", "NeedsLogin"):
        return "it is not logged in"
    return ""


def actual_tags(observed: Observed) -> tuple[str, ...]:
    """Return the tags that the server has given the node."""
    return tuple(sorted(str(one) for one in _self(observed).get("Tags") or ()))


def relogin_reasons(observed: Observed, wanted: Wanted) -> list[str]:
    """Return why a node that is logged in has to do so again: another control server, other tags."""
    if unknown(observed) or login_reason(observed) or backend(observed) == "NeedsMachineAuth":
        return []
    reasons = []
    if not same_server(observed.control_url, wanted.login_server):
        reasons.append(
            f"control server {observed.control_url or SERVICE_URLS[1]} → {wanted.login_server or SERVICE_URLS[1]}"
        )
    known = backend(observed) == "Running"
    if known and wanted.tags and not wanted.tags_from_key and actual_tags(observed) != wanted.tags:
        reasons.append(f"tags {', '.join(actual_tags(observed)) or 'none'} → {', '.join(wanted.tags)}")
    return reasons


# --- the session -----------------------------------------------------------------------------------------------------


def over_tailnet(observed: Observed) -> bool:
    """Return whether the session that carries the run goes over the tailnet."""
    session = observed.session
    if session.tailscale_ssh:
        return True
    if not session.peer or not observed.status:
        return False
    own = [str(one) for one in observed.status.get("TailscaleIPs") or ()]
    if session.local in own or session.device.startswith("tailscale"):
        return True
    if observed.status.get("TUN") is False and _loopback(session.peer):
        # without a device of its own tailscaled hands connections on from the loopback address
        return True
    # carriers use 100.64.0.0/10 too, so the kernel's word on the way counts where there is one
    return in_tailnet(session.peer) and not session.device


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def cuts(observed: Observed, name: str, before: Value | None, after: Value) -> str:
    """Return why a change of a preference could cut the session that carries the run; "" where it can't."""
    session = observed.session
    if not session.peer:
        return ""
    if not over_tailnet(observed):
        exits = ("exit-node", "exit-node-allow-lan-access")
        return f"it may send the answers to {session.peer} another way" if name in exits else ""
    if name == "ssh":
        to = "takes over connections from the tailnet" if after is True else "is what carries this run"
        return f"Tailscale SSH {to}" if after is True or session.tailscale_ssh else ""
    if name == "shields-up" and after is True:
        return "nobody could connect to the node over the tailnet any more"
    if name in ("netfilter-mode", "accept-routes"):
        return "this run goes over the tailnet"
    if name == "advertise-routes" and _within(session.local, before) and not _within(session.local, after):
        return f"this run reaches the node over one of its routes, at {session.local}"
    return ""


def _within(address: str, text: Value | None) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    networks = [ipaddress.ip_network(one) for one in str(text or "").split(",") if one]
    return any(found in network for network in networks)


# --- preferences -----------------------------------------------------------------------------------------------------


def effective(observed: Observed) -> Prefs:
    """Return the preferences as they are, or will be in a moment; Tailscale's own defaults where it is not there."""
    if observed.status is None:
        return {name: flag.default for name, flag in tailscale_prefs.FLAGS.items()}
    return {**observed.prefs, **observed.guarded}


def wanted_prefs(observed: Observed, wanted: Wanted) -> Prefs:
    """Return the preferences as they should be: what is named, and the default of what was named by us before."""
    forgotten = [name for name in read_record(observed).prefs if name not in wanted.prefs]
    flags = tailscale_prefs.FLAGS
    return {**{name: flags[name].default for name in forgotten if name in flags}, **wanted.prefs}


def _plan_prefs(observed: Observed, wanted: Wanted) -> list[Change]:
    changes = []
    peers = (observed.status or {}).get("Peer") or {}
    asked = wanted_prefs(observed, wanted)
    if asked.get("exit-node"):
        asked["exit-node"] = tailscale_prefs.exit_node_address(str(asked["exit-node"]), peers)
    now = effective(observed)
    for name in asked:
        if name in now:
            managed.note("preference", name, value=now[name])
    if backend(observed) == "Running":
        managed.note("preference", tailscale_prefs.CONNECTED, value=True)
    for name, (before, after) in tailscale_prefs.diff(now, asked).items():
        why = cuts(observed, name, before, after)
        summary = f"{tailscale_prefs.shown(name, before)} → {tailscale_prefs.written(after)!r}"
        if name not in wanted.prefs:
            summary += ", Tailscale's default, since the inventory no longer names it"
        disruption = "none" if name in HARMLESS else "reload"
        if why:
            summary += f"; {why}"
            disruption = "restart" if wanted.allow_disconnect else "drain"
        changes.append(
            Change(
                f"preference {name}",
                summary,
                disruption,
                tailscale_prefs.shown(name, before),
                tailscale_prefs.shown(name, after),
                ("guard" if why else "set", name, tailscale_prefs.written(after)),
            )
        )
    return changes


# --- forwarding ------------------------------------------------------------------------------------------------------


def forwarded(wanted: Wanted) -> tuple[str, ...]:
    """Return the families of addresses that the node forwards for the tailnet: ipv4, ipv6.

    IPv6 only where it is needed: a machine that forwards it takes no address from a router any more.
    """
    if not wanted.present:
        return ()
    if wanted.prefs.get("advertise-exit-node"):
        return ("ipv4", "ipv6")
    networks = [ipaddress.ip_network(one) for one in str(wanted.prefs.get("advertise-routes") or "").split(",") if one]
    return tuple(sorted({f"ipv{network.version}" for network in networks}))


def sysctl_file(wanted: Wanted) -> FileState | None:
    """Return the file that lets the kernel forward, None where nothing is to be forwarded."""
    lines = [f"{FORWARDING[family]} = 1" for family in forwarded(wanted)]
    return FileState("\n".join(["# Written by labrack: routes of the tailnet.", *lines]) + "\n") if lines else None


def _plan_forwarding(observed: Observed, wanted: Wanted) -> list[Change]:
    changes = plan_file(SYSCTL, observed.sysctl, sysctl_file(wanted))
    for family in forwarded(wanted):
        if observed.forwarding.get(family):
            managed.note("sysctl", FORWARDING[family])
    off = [family for family in forwarded(wanted) if not observed.forwarding.get(family)]
    return changes + [Change(f"forwarding {family}", "on", "none", "0", "1", ("forward", family)) for family in off]


# --- the whole -------------------------------------------------------------------------------------------------------


def plan(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return what is off, in the order in which it can be applied (TailscaleError, SourceError)."""
    return _plan_present(observed, wanted) if wanted.present else _plan_absent(observed, wanted)


def check(observed: Observed, wanted: Wanted) -> None:
    """Refuse what can't work, before anything is changed (TailscaleError)."""
    reason = login_reason(observed)
    if reason and not wanted.auth_key:
        server = f" at {wanted.login_server}" if wanted.login_server else ""
        raise TailscaleError(
            f"this node needs a key for the tailnet, since {reason}, and there is none. Nothing was changed. Mend: "
            f"make an auth key{server} and run again with it in tailscale_auth_key (ansible-vault). A node that is "
            "logged in needs none"
        )
    if observed.server_problem and (reason or _relogin(observed, wanted)):
        raise TailscaleError(f"tailscale_login_server = {wanted.login_server}: {observed.server_problem}")
    if backend(observed) == "InUseOtherUser":
        raise TailscaleError("tailscaled serves another user of this node. Mend: log that user out of Tailscale")


def _relogin(observed: Observed, wanted: Wanted) -> bool:
    return bool(wanted.auth_key and relogin_reasons(observed, wanted))


def _still_ours(observed: Observed, wanted: Wanted) -> set[str]:
    """The flags that the inventory no longer names and that are not back at Tailscale's default yet."""
    flags = tailscale_prefs.FLAGS
    forgotten = {name for name in read_record(observed).prefs if name not in wanted.prefs and name in flags}
    if observed.status is None:
        return forgotten if observed.program else set()
    return {name for name in forgotten if observed.prefs.get(name, flags[name].default) != flags[name].default}


def wanted_record(observed: Observed, wanted: Wanted) -> Record:
    """Return what there is to remember, as it is written before anything else happens."""
    before = read_record(observed)
    method = before.method or ("" if observed.program else wanted.method)
    return Record(
        method=method,
        held=before.held or bool(_plan_hold(observed, wanted)),
        joined=before.joined or bool(login_reason(observed)),
        prefs=tuple(sorted({*wanted.prefs, *_still_ours(observed, wanted)})),
    )


def _lab_over_tailnet(wanted: Wanted) -> bool:
    return in_tailnet(wanted.address)


def _session_class(observed: Observed, wanted: Wanted) -> str:
    """The class of what stops the tailnet for a moment."""
    return "drain" if over_tailnet(observed) and not wanted.allow_disconnect else "restart"


def _plan_present(observed: Observed, wanted: Wanted) -> list[Change]:
    check(observed, wanted)
    record = wanted_record(observed, wanted)
    if observed.package and (record.method == "package" or record.held):
        version = {"held": True, "version": observed.package.version} if observed.package.held else {}
        managed.note("package", PACKAGE, **version)
    changes = plan_file(RECORD, observed.record, record.file())
    changes += _plan_install(observed, wanted, record)
    changes += _plan_hold(observed, wanted)
    if observed.status is None or observed.service.installed:
        changes += plan_service(SERVICE, observed.service)
    changes += _plan_forwarding(observed, wanted)
    if unknown(observed):
        # the rest is seen when tailscaled runs
        return changes
    changes += _plan_login(observed, wanted)
    return changes + _plan_prefs(observed, wanted)


def _plan_install(observed: Observed, wanted: Wanted, record: Record) -> list[Change]:
    changes: list[Change] = []
    if record.method == "archive":
        before = running_version(observed)
        if not observed.program or (before and before != wanted.version and not wanted.prefs.get("auto-update")):
            summary = f"{before} → {wanted.version}" if before else f"{wanted.version} unpacked"
            disruption = _session_class(observed, wanted) if observed.program else "none"
            changes.append(Change("archive of tailscale", summary, disruption, step=("archive",)))
        return changes
    if not record.method and observed.package is None:
        # somebody's own program; its version is theirs
        return []
    there = observed.package.version if observed.package else ""
    wrong = not there or (wanted.version and there != wanted.version and not wanted.prefs.get("auto-update"))
    if wanted.source and (record.method or wrong):
        changes += plan_source(observed.source, wanted.source)
    if wrong:
        summary = f"{there} → {wanted.version}" if there else f"{wanted.version or 'newest version'} installed"
        if there:
            summary += "; tailscaled restarts"
        disruption = _session_class(observed, wanted) if there else "none"
        changes.append(Change(f"package {PACKAGE}", summary, disruption, step=("install",)))
    return changes


def _plan_hold(observed: Observed, wanted: Wanted) -> list[Change]:
    package = observed.package
    comes = package is None and not observed.program and wanted.method == "package"
    if wanted.hold and (comes or (package and not package.held)):
        return [Change(f"hold {PACKAGE}", "held against upgrades", step=("hold", PACKAGE))]
    if package and package.held and not wanted.hold and read_record(observed).held:
        return [Change(f"hold {PACKAGE}", "let go", step=("unhold", PACKAGE))]
    return []


def _plan_login(observed: Observed, wanted: Wanted) -> list[Change]:
    server = wanted.login_server or SERVICE_URLS[1]
    reason = login_reason(observed)
    if reason:
        fresh = not (observed.status or {}).get("HaveNodeKey")
        words = "joined" if fresh else "joined again"
        tags = f", {', '.join(wanted.tags)}" if wanted.tags and not wanted.tags_from_key else ""
        return [Change("tailnet", f"{words} at {server}{tags}: {reason}", "restart", step=("login",))]
    again = relogin_reasons(observed, wanted)
    if again and wanted.auth_key:
        disruption = "drain" if _lab_over_tailnet(wanted) else _session_class(observed, wanted)
        return [Change("tailnet", f"joined again: {'; '.join(again)}", disruption, step=("relogin",))]
    if backend(observed) == "Stopped":
        return [Change("tailnet", "connected again; it was stopped by hand", "restart", step=("up",))]
    return []


def _plan_absent(observed: Observed, wanted: Wanted) -> list[Change]:
    """Return how to take away what the record says is ours; without a record nothing is."""
    record = read_record(observed)
    if observed.record is None:
        return []
    disruption = "drain" if _lab_over_tailnet(wanted) else _session_class(observed, wanted)
    changes = []
    if record.joined and observed.program and not login_reason(observed):
        changes.append(Change("tailnet", "logged out", disruption, step=("logout",)))
    if not record.method and observed.status is not None and record.prefs and not record.joined:
        changes += _plan_prefs(observed, replace(wanted, prefs={}))
    if record.held and observed.package and observed.package.held:
        changes.append(Change(f"hold {PACKAGE}", "let go", step=("unhold", PACKAGE)))
    if record.method == "package" and observed.package:
        changes.append(Change(f"package {PACKAGE}", "removed", disruption, step=("purge", PACKAGE)))
    if record.method == "archive":
        changes.append(Change("archive of tailscale", "removed", disruption, step=("unpack",)))
    if record.method:
        changes.append(Change(f"directory {STATE_DIRECTORY}", "removed", disruption, step=("state",)))
    if wanted.source:
        changes += plan_source(observed.source, wanted.source, present=False)
    changes += plan_file(SYSCTL, observed.sysctl, None)
    late = disruption if any(change.disruption == disruption for change in changes) else "none"
    return changes + [replace(change, disruption=late) for change in plan_file(RECORD, observed.record, None)]


# --- what to tell ----------------------------------------------------------------------------------------------------


def approved_routes(observed: Observed) -> set[str]:
    """Return the routes of the node that the tailnet lets it carry."""
    found = [*(_self(observed).get("AllowedIPs") or ()), *(_self(observed).get("PrimaryRoutes") or ())]
    own = set(observed.status.get("TailscaleIPs") or ()) if observed.status else set()
    return {str(one) for one in found if str(one).partition("/")[0] not in own}


def unapproved(observed: Observed, wanted: Wanted) -> list[str]:
    """Return the advertised routes that nobody has approved; none where the node is not connected."""
    if backend(observed) != "Running":
        return []
    there = [one for one in str(observed.prefs.get("advertise-routes") or "").split(",") if one]
    if observed.prefs.get("advertise-exit-node"):
        there += tailscale_prefs.EXIT_ROUTES
    return [one for one in there if one not in approved_routes(observed)]


def notes(observed: Observed, wanted: Wanted, mtu: Mapping[str, int] | None = None) -> list[str]:
    """Return what an admin should know, in sentences without full stop; nothing of it is changed.

    ``mtu`` is by peer the biggest packet in bytes that comes through, 0 for none.
    """
    if not wanted.present or observed.status is None:
        return []
    found = []
    hosted = same_server(wanted.login_server, "")
    again = relogin_reasons(observed, wanted)
    if again and not wanted.auth_key:
        found.append(
            f"not as the inventory says, and only a login changes it: {'; '.join(again)}. Mend: run again with "
            "tailscale_auth_key, or change it at the control server"
        )
    if wanted.tags and wanted.tags_from_key and backend(observed) == "Running" and actual_tags(observed) != wanted.tags:
        found.append(
            f"the server has given the tags {', '.join(actual_tags(observed)) or 'none'}, wanted "
            f"{', '.join(wanted.tags)}. Mend: headscale nodes tag, or join with a key that gives them"
        )
    if backend(observed) == "NeedsMachineAuth":
        found.append("the node waits for an admin's approval. Mend: approve it at the control server")
    if backend(observed) == "Starting":
        found.append("tailscaled has a login and is still starting. Mend: see whether the control server is reachable")
    missing = unapproved(observed, wanted)
    if missing:
        how = "in the admin console" if hosted else "with headscale nodes approve-routes"
        found.append(
            f"routes that nobody has approved, so that no traffic takes them: {', '.join(missing)}. Mend: approve them "
            f"{how}, or name them in autoApprovers of the policy"
        )
    own = [str(one) for one in observed.status.get("TailscaleIPs") or ()]
    if _lab_over_tailnet(wanted) and own and wanted.address not in own:
        found.append(f"lab_address = {wanted.address} is not an address of this node, which has {', '.join(own)}")
    for peer, size in sorted((mtu or {}).items()):
        if size < TUNNEL_MTU:
            what = f"packets of more than {size} bytes are lost on the way" if size else "no packet comes through"
            found.append(
                f"to {peer} over the tailnet {what}, and it should carry {TUNNEL_MTU}. Mend: let UDP packets of "
                f"{TUNNEL_MTU + 80} bytes and ICMP through between the machines, or use their own network (lab_address)"
            )
    expiry = _self(observed).get("KeyExpiry")
    if expiry and not actual_tags(observed):
        found.append(
            f"the node's key expires {expiry}, and then it leaves the tailnet. Mend: give it tags, or disable the "
            "expiry"
        )
    found += [f"tailscaled says: {words.rstrip('.')}" for words in _health(observed)]
    return found


def _health(observed: Observed) -> Iterable[str]:
    """What tailscaled finds wrong and the notes do not tell already, while it should be well."""
    if backend(observed) != "Running" or observed.status is None:
        return ()
    found = [" ".join(str(one).split()) for one in observed.status.get("Health") or ()]
    if _self(observed).get("Online") is False:
        found.append("the control server can't be reached; what is connected stays so, and changes there are not seen")
    # whether routes are taken is the inventory's choice
    return [one for one in found if "--accept-routes is false" not in one]


def facts(observed: Observed, mtu: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return the node as the tailnet sees it: state, name, addresses, tags, approved routes, measured MTU."""
    status, own = observed.status or {}, _self(observed)
    addresses = [str(one) for one in status.get("TailscaleIPs") or ()]
    approved = approved_routes(observed)
    return {
        "state": backend(observed) or "absent",
        "version": running_version(observed),
        "name": str(own.get("DNSName", "")).rstrip("."),
        "ipv4": next((one for one in addresses if ":" not in one), ""),
        "ipv6": next((one for one in addresses if ":" in one), ""),
        "tags": list(actual_tags(observed)),
        "routes": sorted(approved),
        "mtu": dict(sorted((mtu or {}).items())),
    }
