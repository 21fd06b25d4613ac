# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What makes a host the lab's own control server: headscale, its configuration, users and pre-auth keys.

Pure planner, no Ansible import. Keys of config.yaml and their rules: juanfont/headscale:config-example.yaml and
hscontrol/types/config.go of 0.29. A restart of the server cuts no connection between nodes, which go on with what
they know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.finding import shown
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service

USER = "headscale"
CONFIG = "/etc/headscale/config.yaml"
DATA = "/var/lib/headscale"
SOCKET = "/run/headscale/headscale.sock"
#: The release's package and its bare binary, and where each has the program.
PROGRAMS: Mapping[str, str] = {"package": "/usr/bin/headscale", "binary": "/usr/local/bin/headscale"}
UNIT = "/etc/systemd/system/headscale.service"
#: Copies of the certificate's files, which headscale's user may read; it reads them at its start alone.
TLS_CERT, TLS_KEY = "/etc/headscale/tls.crt", "/etc/headscale/tls.key"
#: Keys that were made, one file for root alone, and what this role has installed.
KEYS = "/var/lib/labrack/headscale/keys.json"
RECORD = "/var/lib/labrack/headscale.json"
#: headscale wants a file. One that says nothing lets everybody reach everything, as Tailscale's own first policy does.
OPEN_POLICY = """// Made by labrack: a policy that says nothing, so everybody reaches everything.
{}
"""
#: Names that RFC 2606 sets aside for documentation.
EXAMPLES = ("example.com", "example.org", "example.net")
#: hscontrol/util/dns.go, ValidateUsername.
USER_NAME = re.compile(r"[a-zA-Z][\w.-]+(@[\w.-]*)?")
TAILSCALE_DERP_MAP = "https://controlplane.tailscale.com/derpmap/default"

UNIT_TEXT = f"""# Written by labrack.
[Unit]
Description=headscale, the tailnet's control server
Wants=network-online.target
After=network-online.target

[Service]
User={USER}
Group={USER}
ExecStart={PROGRAMS["binary"]} serve
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=5
StateDirectory=headscale
StateDirectoryMode=0750
RuntimeDirectory=headscale
RuntimeDirectoryMode=0750
WorkingDirectory={DATA}
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=true
PrivateTmp=true
PrivateDevices=true
ProtectSystem=strict
ProtectHome=true
ProtectKernelTunables=true
ProtectControlGroups=true
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
UMask=0077

[Install]
WantedBy=multi-user.target
"""


class HeadscaleError(ValueError):
    """A wish that can't be, or a state that can't be worked on; the message says cause and mend."""


@dataclass(frozen=True)
class Problem:
    """What is wrong in a variable: its name, the value as it may be shown, and the mend; ``path`` leads into it."""

    key: str
    value: str
    what: str
    mend: str
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        where = ".".join([self.key, *map(str, self.path)])
        return f"{where}{' is ' + self.value if self.value else ''}: {self.what}. Mend: {self.mend}"


@dataclass(frozen=True)
class KeyWish:
    """A reusable pre-auth key: ``user`` owns the nodes, or ``tags`` do; ``days`` is how long it lets nodes in."""

    name: str
    user: str = ""
    tags: tuple[str, ...] = ()
    ephemeral: bool = False
    days: int = 90


@dataclass(frozen=True)
class Wanted:
    """What the host shall be; see the role's variables. ``program`` is the path of headscale."""

    present: bool
    version: str
    install: str
    config: Mapping[str, Any]
    tls_cert: str
    tls_key: str
    policy: str
    policy_path: str
    users: tuple[tuple[str, str], ...]
    keys: tuple[KeyWish, ...]

    @property
    def program(self) -> str:
        """Return where the program is."""
        return PROGRAMS[self.install]


@dataclass(frozen=True)
class StoredKey:
    """A key that was made: its number on the server, its text, and the wish that it was made for."""

    number: str
    text: str = field(repr=False)
    wish: KeyWish = field(default_factory=lambda: KeyWish(""))


@dataclass(frozen=True)
class Observed:
    """What was read on the host.

    ``versions`` has the version of the package and of the binary, where they are there. ``users`` (name to number) and
    ``live`` (numbers of keys that let nodes in) are None while the server does not answer. ``written`` is when a file
    was last written, in Unix time.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileState | None] = field(default_factory=dict)
    written: Mapping[str, float] = field(default_factory=dict)
    service: ServiceState = field(default_factory=ServiceState)
    has_user: bool = False
    has_database: bool = False
    users: Mapping[str, str] | None = None
    live: frozenset[str] | None = None
    stored: Mapping[str, StoredKey] = field(default_factory=dict)


# --- what is wanted --------------------------------------------------------------------------------------------------


def read_wanted(params: Mapping[str, Any]) -> Wanted:
    """Return the module's parameters as a wish; HeadscaleError for what headscale would refuse, or would do wrongly."""
    version = str(params["version"])
    if params["state"] != "present":
        return Wanted(False, version, params["install"], {}, "", "", "", params["policy_path"], (), ())
    for problem in problems(params):
        raise HeadscaleError(str(problem))
    own = params["tls"] == "certificate"
    return Wanted(
        True,
        version,
        params["install"],
        config(params),
        params["tls_cert"] if own else "",
        params["tls_key"] if own else "",
        params["policy"],
        params["policy_path"],
        tuple((user["name"], user.get("email") or "") for user in params["users"]),
        tuple(
            KeyWish(
                key["name"],
                key.get("user") or "",
                tuple(sorted(full_tag(tag) for tag in key.get("tags") or ())),
                bool(key.get("ephemeral")),
                int(key.get("days") or 90),
            )
            for key in params["preauth_keys"]
        ),
    )


def full_tag(tag: str) -> str:
    """Return a tag with its prefix."""
    return tag if tag.startswith("tag:") else f"tag:{tag}"


def problems(params: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong in the parameters, by the names of the role's variables."""
    url, domain = str(params["url"]), str(params["base_domain"]).strip(".").lower()
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if parts.scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query:
        what = "not an address by which nodes reach the server" if url else "missing: nodes need the server's address"
        yield Problem("headscale_url", shown(url) if url else "", what, "write it as https://NAME or https://NAME:PORT")
        return
    if host in EXAMPLES or host.endswith(tuple(f".{name}" for name in EXAMPLES)):
        yield Problem("headscale_url", shown(url), "an example's address", "put the server's own there")
    if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", domain):
        what = "not a domain of two parts or more" if domain else "missing: nodes need a domain for their names"
        yield Problem("headscale_base_domain", shown(domain) if domain else "", what, "write one such as tailnet.lab")
    elif host == domain or host.endswith(f".{domain}"):
        what = f"holds the server's own name {host}: nodes would ask the tailnet for it, and no longer reach the server"
        mend = "take a domain that the server's name does not end in, such as nodes.internal"
        yield Problem("headscale_base_domain", shown(domain), what, mend)
    yield from _tls_problems(params, url, parts.scheme, port)
    yield from _people_problems(params)


def _tls_problems(params: Mapping[str, Any], url: str, scheme: str, port: int | None) -> Iterator[Problem]:
    tls = params["tls"]
    if tls == "certificate":
        for key in ("headscale_tls_cert", "headscale_tls_key"):
            path = str(params[key.replace("headscale_", "")])
            if not path.startswith("/"):
                what = "not the whole path of a file on the host" if path else "missing: headscale_tls is certificate"
                mend = "name the file on the host, or set headscale_tls to acme, or to none behind a proxy that has one"
                yield Problem(key, shown(path) if path else "", what, mend)
    if tls == "acme" and (scheme != "https" or port not in (None, 443)):
        yield Problem("headscale_url", shown(url), "headscale_tls is acme", "write it as https://NAME, without a port")
    elif tls == "certificate" and scheme != "https":
        yield Problem("headscale_url", shown(url), "headscale has a certificate", "begin it with https")
    elif params["derp"] != "tailscale" and scheme != "https":
        mend = "begin it with https, or set headscale_derp to tailscale"
        yield Problem("headscale_url", shown(url), "headscale's own relay speaks https only", mend)


def _people_problems(params: Mapping[str, Any]) -> Iterator[Problem]:
    names = {user["name"] for user in params["users"]}
    for place, user in enumerate(params["users"]):
        if not USER_NAME.fullmatch(user["name"]):
            mend = "begin with a letter, go on with letters, digits, dots, dashes and underscores"
            yield Problem("headscale_users", shown(user["name"]), "headscale takes no such name", mend, (place, "name"))
    seen: set[str] = set()
    for place, key in enumerate(params["preauth_keys"]):
        name = key["name"]
        if name in seen:
            yield Problem("headscale_preauth_keys", shown(name), "twice", "keep one", (place, "name"))
        seen.add(name)
        if bool(key.get("user")) == bool(key.get("tags")):
            what = "it needs a user or tags, and not both: a tagged node has no user"
            yield Problem("headscale_preauth_keys", shown(name), what, "give it one of the two", (place,))
        elif key.get("user") and key["user"] not in names:
            mend = f"add {key['user']} there"
            yield Problem("headscale_preauth_keys", shown(key["user"]), "not in headscale_users", mend, (place, "user"))


def config(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.yaml as a mapping; ``settings`` of the parameters are merged over it."""
    parts = urlsplit(params["url"])
    own, acme = params["tls"] == "certificate", params["tls"] == "acme"
    embedded = params["derp"] in ("embedded", "both")
    nameservers = list(params["nameservers"])
    made: dict[str, Any] = {
        "server_url": params["url"],
        "listen_addr": params["listen"],
        "metrics_listen_addr": "127.0.0.1:9090",
        "grpc_listen_addr": "127.0.0.1:50443",
        "noise": {"private_key_path": f"{DATA}/noise_private.key"},
        "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
        "derp": {
            "server": {
                "enabled": embedded,
                "region_id": 999,
                "region_code": "lab",
                "region_name": "The lab's own relay",
                "verify_clients": True,
                "stun_listen_addr": params["stun_listen"],
                "private_key_path": f"{DATA}/derp_server_private.key",
                "automatically_add_embedded_derp_region": True,
            },
            "urls": [TAILSCALE_DERP_MAP] if params["derp"] in ("tailscale", "both") else [],
            "paths": [],
            "auto_update_enabled": params["derp"] != "embedded",
            "update_frequency": "3h",
        },
        "disable_check_updates": True,
        "database": {"type": "sqlite", "sqlite": {"path": f"{DATA}/db.sqlite", "write_ahead_log": True}},
        "tls_cert_path": TLS_CERT if own else "",
        "tls_key_path": TLS_KEY if own else "",
        "log": {"level": "info", "format": "text"},
        "policy": {"mode": "file", "path": params["policy_path"]},
        "dns": {
            "magic_dns": True,
            "base_domain": str(params["base_domain"]).strip(".").lower(),
            "override_local_dns": bool(nameservers),
            "nameservers": {"global": nameservers},
        },
        "unix_socket": SOCKET,
        "unix_socket_permission": "0770",
        "logtail": {"enabled": False},
    }
    if acme:
        made.update(
            acme_url=params["acme_url"],
            acme_email=params["acme_email"],
            tls_letsencrypt_hostname=parts.hostname,
            tls_letsencrypt_cache_dir=f"{DATA}/cache",
            tls_letsencrypt_challenge_type=params["acme_challenge"],
            tls_letsencrypt_listen=":http",
        )
    return merged(made, params["settings"])


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with another over it: mappings are merged at any depth, everything else is replaced."""
    made = dict(base)
    for key, value in over.items():
        inner = made.get(key)
        made[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return made


def config_text(tree: Mapping[str, Any]) -> str:
    """Return config.yaml's text."""
    return "# Written by labrack.\n" + _yaml(tree, "")


def _yaml(tree: Mapping[str, Any], indent: str) -> str:
    """Return a mapping as YAML; scalars and lists in JSON's notation, which YAML reads."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            lines.append(f"{indent}{key}:\n{_yaml(value, indent + '  ')}")
        else:
            lines.append(f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(lines)


def trial(tree: Mapping[str, Any], folder: str) -> str:
    """Return a configuration's text with its state in another folder: ``configtest`` makes what isn't there."""
    own = {
        "noise": {"private_key_path": f"{folder}/noise.key"},
        "derp": {"server": {"private_key_path": f"{folder}/derp.key"}},
        "database": {"sqlite": {"path": f"{folder}/db.sqlite"}},
        "unix_socket": f"{folder}/headscale.sock",
        # a policy is checked by itself
        "policy": {"path": ""},
    }
    return config_text(merged(tree, own))


# --- the plan --------------------------------------------------------------------------------------------------------


def check_version(found: str, wanted: str) -> None:
    """Raise HeadscaleError for a step that its database can't take: back, or over a minor version."""
    now, then = _numbers(found), _numbers(wanted)
    if then < now:
        raise HeadscaleError(
            f"headscale {found} is installed and headscale_version is {wanted}: its database does not go back. Mend: "
            f"set headscale_version to {found}; or restore a backup from before it, with headscale_state absent first"
        )
    if then[0] == now[0] and then[1] > now[1] + 1:
        raise HeadscaleError(
            f"headscale {found} is installed and headscale_version is {wanted}: it takes one minor version at a time. "
            f"Set headscale_version to the newest {now[0]}.{now[1] + 1} first, and run once for each"
        )


def _numbers(version: str) -> tuple[int, ...]:
    found = tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0])[:3])
    return found + (0,) * (3 - len(found))


def plan(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan the host's way to ``wanted``, in the order in which it can be gone; HeadscaleError where there is none."""
    return _plan_present(state, wanted) if wanted.present else _plan_absent(state, wanted)


def _plan_present(state: Observed, wanted: Wanted) -> list[Change]:
    found = state.versions.get(wanted.install, "")
    changes: list[Change] = []
    config_changes = plan_file(CONFIG, state.files.get(CONFIG), FileState(config_text(wanted.config)), "restart")
    managed.note("user", USER, among=[])
    if wanted.install == "package":
        managed.note_packages(["headscale"])
    if not state.has_user:
        changes.append(Change(f"user {USER}", "created, without a login", step=("user",)))
    unit = FileState(UNIT_TEXT) if wanted.install == "binary" else None
    config_changes += plan_file(UNIT, state.files.get(UNIT), unit, "restart") + _plan_tls(state, wanted)
    # before the package, which starts the server: as it comes, it would ask Tailscale for relays
    policy_changes = _plan_policy(state, wanted)
    changes += config_changes + policy_changes
    install = []
    if found != wanted.version:
        other = [kind for kind, version in state.versions.items() if kind != wanted.install and version]
        for kind in other:
            check_version(state.versions[kind], wanted.version)
            install.append(Change(f"headscale as {kind}", "removed, the data stay", "restart", step=("remove", kind)))
        if found:
            check_version(found, wanted.version)
        summary = f"{found} → {wanted.version}" if found else f"{wanted.version} installed"
        install.append(Change(f"headscale as {wanted.install}", summary, "restart", step=("install",)))
    changes += install
    newest = max(state.written.get(path, 0.0) for path in (CONFIG, UNIT, TLS_CERT, TLS_KEY))
    stale = newest > state.service.since > 0
    restart = "its configuration changed" if config_changes or stale else ""
    restart = restart or ("another version" if install else "")
    changes += plan_service("headscale", state.service, restart)
    if policy_changes and state.service.active and not restart:
        changes.append(
            Change("service headscale", "reloaded: its policy changed", "reload", step=("reload", "headscale"))
        )
    return changes + plan_people(state, wanted)


def _plan_tls(state: Observed, wanted: Wanted) -> list[Change]:
    changes = []
    pairs = ((wanted.tls_cert, TLS_CERT, "0644", "root"), (wanted.tls_key, TLS_KEY, "0640", USER))
    for source, path, mode, group in pairs:
        original = state.files.get(source) if source else None
        if source and original is None:
            raise HeadscaleError(
                f"headscale_tls_cert or headscale_tls_key is {source}, and there is no such file on the host. Put it "
                "there, or correct the path"
            )
        copy = FileState(original.text, mode, "root", group) if original else None
        changes += plan_file(path, state.files.get(path), copy, "restart", secret=path == TLS_KEY)
    return changes


def _plan_policy(state: Observed, wanted: Wanted) -> list[Change]:
    observed = state.files.get(wanted.policy_path)
    if wanted.policy:
        text = wanted.policy if wanted.policy.endswith("\n") else wanted.policy + "\n"
        return plan_file(wanted.policy_path, observed, FileState(text), "reload")
    if observed is None:
        return plan_file(wanted.policy_path, None, FileState(OPEN_POLICY), "reload")
    return []


def plan_people(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan users and keys. Users that the inventory no longer has stay: nodes are theirs."""
    changes = []
    # a server that is silent with a database of its own has its users; they are looked at once it runs
    users = state.users if state.users is not None or not state.has_database else dict(wanted.users)
    for name, email in wanted.users:
        if name not in (users or {}):
            changes.append(Change(f"headscale user {name}", "created", step=("add-user", name, email)))
    for wish in wanted.keys:
        key = state.stored.get(wish.name)
        subject = f"pre-auth key {wish.name}"
        if key is None:
            changes.append(Change(subject, f"made {_words(wish)} (not shown)", step=("make-key", wish.name)))
        elif key.wish != wish:
            changes.append(Change(subject, f"replaced {_words(wish)} (not shown)", step=("make-key", wish.name)))
        elif state.live is not None and key.number not in state.live:
            changes.append(Change(subject, "made anew, it had expired (not shown)", step=("make-key", wish.name)))
    names = {wish.name for wish in wanted.keys}
    for name in sorted(set(state.stored) - names):
        changes.append(Change(f"pre-auth key {name}", "expired, no longer in the inventory", step=("drop-key", name)))
    return changes


def _words(wish: KeyWish) -> str:
    owner = ", ".join(wish.tags) if wish.tags else f"user {wish.user}"
    return f"for {owner}, {wish.days} days"


def _plan_absent(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan the way back: program, unit, configuration, keys. The database stays, and a file that others wrote."""
    changes = []
    for kind, version in sorted(state.versions.items()):
        if version:
            changes.append(
                Change(f"headscale as {kind}", f"{version} removed, {DATA} stays", "restart", step=("remove", kind))
            )
    for path in (UNIT, CONFIG, TLS_CERT, TLS_KEY, KEYS, RECORD):
        changes += plan_file(path, state.files.get(path), None, secret=path in (KEYS, TLS_KEY))
    policy = state.files.get(wanted.policy_path)
    if policy is not None and policy.text == OPEN_POLICY:
        changes += plan_file(wanted.policy_path, policy, None)
    return changes


# --- the file of keys ------------------------------------------------------------------------------------------------


def read_keys(text: str | None) -> dict[str, StoredKey]:
    """Return the keys that were made, by name; none for a file that isn't there. HeadscaleError for a broken one."""
    try:
        document = json.loads(text or "{}")
        return {
            name: StoredKey(str(entry["number"]), str(entry["key"]), KeyWish(name, *_wish_fields(entry)))
            for name, entry in document.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise HeadscaleError(f"{KEYS} is not what labrack wrote. Mend: remove it; new keys are made then") from None


def _wish_fields(entry: Mapping[str, Any]) -> Sequence[Any]:
    return str(entry["user"]), tuple(entry["tags"]), bool(entry["ephemeral"]), int(entry["days"])


def keys_text(keys: Mapping[str, StoredKey]) -> str:
    """Return the text of the file of keys."""
    document = {
        name: {
            "number": key.number,
            "key": key.text,
            "user": key.wish.user,
            "tags": list(key.wish.tags),
            "ephemeral": key.wish.ephemeral,
            "days": key.wish.days,
        }
        for name, key in sorted(keys.items())
    }
    return json.dumps(document, indent=2) + "\n"
