# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make a node a member of a tailnet, with its preferences, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tailscale_node
short_description: A node's Tailscale, its login and its preferences
version_added: 0.1.0
author:
  - labrack contributors (@labrack)
description:
  - Installs Tailscale, logs the node in to Tailscale's service or to headscale, and sets the preferences that are named
    and differ. The state is read from the node; a node that is logged in needs no key.
  - A key goes to C(tailscale up) by a file that root alone can read, and is in no output.
  - What could cut the ssh session that carries the run is of the class V(drain) unless O(allow_disconnect). With
    consent such a preference is put back by a timer, unless O(state=confirmed) follows from a new connection.
  - What it made is remembered in C(/var/lib/labrack/tailscale.json).
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description:
      - V(absent) logs out and takes back what the module made. V(confirmed) keeps the preferences that would be put
        back, and does nothing else.
    type: str
    choices: [present, absent, confirmed]
    default: present
  install:
    description:
      - Where Tailscale comes from. V(auto) is the repository where there is one for the system. One that is installed
        already stays.
    type: str
    choices: [auto, repository, archive]
    default: auto
  version:
    description:
      - Its version; when empty the newest at the first installation.
    type: str
    default: ""
  hold:
    description:
      - Whether the package is held against upgrades.
    type: bool
    default: true
  repo_url:
    description:
      - Tailscale's repository, with a directory for each distribution below it.
    type: str
    default: https://pkgs.tailscale.com/stable
  repo_key_url:
    description:
      - Where its signing key is; in the distribution's directory when empty.
    type: str
    default: ""
  repo_key_fingerprint:
    description:
      - Fingerprints of the keys that may sign it.
    type: list
    elements: str
    default: []
  archive_url:
    description:
      - Where the static binaries are; C({version}) and C({arch}) are filled in.
    type: str
    default: https://pkgs.tailscale.com/stable/tailscale_{version}_{arch}.tgz
  archive_sha256:
    description:
      - The archive's SHA-256 by architecture, C(amd64) or C(arm64).
    type: dict
    default: {}
  login_server:
    description:
      - The control server; Tailscale's service when empty.
    type: str
    default: ""
  auth_key:
    description:
      - An auth key, a pre-auth key of headscale, or an OAuth client secret.
    type: str
    default: ""
  tags:
    description:
      - The node's tags, with or without C(tag:). None leaves them alone.
    type: list
    elements: str
    default: []
  tags_from_key:
    description:
      - Whether the key gives the tags, so that the node does not ask for them.
    type: bool
    default: false
  prefs:
    description:
      - Preferences by the flags of C(tailscale set). One that is no longer named goes back to Tailscale's default if
        the module has set it.
    type: dict
    default: {}
  address:
    description:
      - The address under which the lab knows this node. If it is one of the tailnet, a new login is of the class
        V(drain).
    type: str
    default: ""
  mtu_peers:
    description:
      - Addresses in the tailnet to which the biggest packet is measured that comes through.
    type: list
    elements: str
    default: []
  allow_disconnect:
    description:
      - Whether a change may cut the ssh session that carries the run.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Join the tailnet
  labrack.infra.tailscale_node:
    version: 1.102.3
    repo_key_fingerprint: 2596A99EAAB33821893C0A79458CA832957F5868
    auth_key: "{{ tailscale_auth_key | default('') }}"
    tags: [lab-worker]
    prefs:
      hostname: "{{ inventory_hostname }}"
      ssh: true
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Changes that O(max_disruption) does not cover.
  returned: success
  type: list
  elements: dict
notes:
  description: What an admin should know and the module does not change; also shown as warnings.
  returned: success
  type: list
  elements: str
guarded:
  description: Preferences that are put back unless they are confirmed from a new connection, by flag.
  returned: success
  type: dict
tailnet:
  description: The node as the tailnet sees it, C(state), C(version), C(name) in MagicDNS, C(ipv4), C(ipv6), C(tags),
    approved C(routes), and C(mtu) in bytes by peer.
  returned: success
  type: dict
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import ssl
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import (
    apt_source,
    node_io,
    path_mtu,
    systemd,
    tailscale_plan,
    tailscale_prefs,
)
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Package, SourceError, SourceState
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, consent, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done, FileState
from ansible_collections.labrack.infra.plugins.module_utils.node_observe import os_release
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_plan import (
    BINARIES,
    DEFAULTS,
    PACKAGE,
    RECORD,
    SERVICE,
    SERVICE_URLS,
    STATE_DIRECTORY,
    SYSCTL,
    TUNNEL_MTU,
    UNIT,
    Observed,
    Session,
    TailscaleError,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_prefs import PrefsError, Value

GUARD = "labrack-tailscale-guard"
GUARD_FILE = "/run/labrack-tailscale-guard.json"
#: Seconds until guarded preferences are set, so that the module can answer before; and until they are put back.
GUARD_DELAY = 3
GUARD_WINDOW = 120
#: Seconds for tailscaled to leave a passing state, for a login, for an answer of the control server.
PATIENCE = 15.0
SETTLE = 5.0
LOGIN_TIMEOUT = 90
SERVER_TIMEOUT = 10.0
SIZES = (TUNNEL_MTU, 1200, 1000, 576)
VERSIONLOCK = "/etc/dnf/plugins/versionlock.list"
SECRET = re.compile(r"\b[th]skey-[A-Za-z]+-[^\s\"']+")

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent", "confirmed"], "default": "present"},
    "install": {"type": "str", "choices": ["auto", "repository", "archive"], "default": "auto"},
    "version": {"type": "str", "default": ""},
    "hold": {"type": "bool", "default": True},
    "repo_url": {"type": "str", "default": "https://pkgs.tailscale.com/stable"},
    "repo_key_url": {"type": "str", "default": "", "no_log": False},
    "repo_key_fingerprint": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "archive_url": {
        "type": "str",
        "default": "https://pkgs.tailscale.com/stable/tailscale_{version}_{arch}.tgz",
    },
    "archive_sha256": {"type": "dict", "default": {}},
    "login_server": {"type": "str", "default": ""},
    "auth_key": {"type": "str", "default": "", "no_log": True},
    "tags": {"type": "list", "elements": "str", "default": []},
    "tags_from_key": {"type": "bool", "default": False, "no_log": False},
    "prefs": {"type": "dict", "default": {}},
    "address": {"type": "str", "default": ""},
    "mtu_peers": {"type": "list", "elements": "str", "default": []},
    "allow_disconnect": {"type": "bool", "default": False},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


# --- reading the node ------------------------------------------------------------------------------------------------


def program() -> str:
    """Return where ``tailscale`` is, "" where it is not."""
    return shutil.which("tailscale", path=f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin") or ""


def tailscale(*words: str, timeout: float = 30.0) -> Done:
    """Run ``tailscale``."""
    return node_io.run([program() or "tailscale", *words], timeout=timeout)


def read_status(peers: bool) -> dict[str, Any] | None:
    """Return ``tailscale status --json``, None where tailscaled does not answer; passing states are waited for."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = tailscale("status", "--json", *([] if peers else ["--peers=false"]))
        try:
            found = json.loads(done.out)
        except ValueError:
            return None
        if found.get("BackendState") not in ("NoState", "Starting") or time.monotonic() > deadline:
            return dict(found)
        time.sleep(0.5)


def settle() -> None:
    """Give a node that has just connected a moment to hear from the control server."""
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        if ((read_status(peers=False) or {}).get("Self") or {}).get("Online"):
            return
        time.sleep(0.2)


def read_prefs(raw: str, peers: Mapping[str, Any], named: Sequence[str]) -> dict[str, Value]:
    """Return the preferences by flag; ``raw`` is what ``debug prefs`` printed, ``named`` those that are asked for."""
    found = tailscale_prefs.read_all(lambda *words: tailscale("get", "--json", *words).out, named)
    return tailscale_prefs.read_debug(raw, peers) if found is None else found


def read_session() -> Session:
    """Return the ssh session that this process belongs to.

    sudo leaves nothing of it in the environment, so that of the processes above is looked at (proc_pid_environ(5)).
    """
    pid, line, by_tailscaled = os.getpid(), "", False
    while pid > 1:
        if (node_io.read_text(f"/proc/{pid}/comm") or "").strip() == "tailscaled":
            by_tailscaled = True
        if not line:
            for entry in (node_io.read_text(f"/proc/{pid}/environ") or "").split("\0"):
                name, _equal, value = entry.partition("=")
                line = value if name == "SSH_CONNECTION" else line
        fields = (node_io.read_text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    parts = line.split()
    if len(parts) != 4:
        return Session(tailscale_ssh=by_tailscaled)
    peer, local = parts[0].partition("%")[0], parts[2].partition("%")[0]
    found = re.search(r"\bdev (\S+)", node_io.run(["ip", "route", "get", peer]).out)
    return Session(peer, local, found.group(1) if found else "", by_tailscaled)


def read_guard() -> dict[str, Any]:
    """Return what the guard will put back and what it sets instead, empty where none runs."""
    if not systemd.is_active(GUARD):
        return {}
    try:
        found = json.loads(node_io.read_text(GUARD_FILE) or "{}")
    except ValueError:
        return {}
    return dict(found) if isinstance(found, dict) else {}


def read_package(family: str) -> Package | None:
    """Return the installed package, None for none."""
    if family == "debian":
        return apt_source.observe_packages([PACKAGE]).get(PACKAGE)
    if family != "redhat":
        return None
    done = node_io.run(["rpm", "-q", "--queryformat", "%{VERSION}", PACKAGE])
    locked = node_io.read_text(VERSIONLOCK) or ""
    return None if done.rc else Package(done.out.strip(), f"{PACKAGE}-" in locked)


#: What is told of a server that does not answer at all.
UNREACHABLE = "it can't be reached"


def tls_context() -> ssl.SSLContext:
    """Return the node's trust in authorities, no stricter than Go's crypto/x509, by which tailscaled verifies.

    From Python 3.13 on an authority is refused that does not say what its key is for, as small ones often don't.
    """
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def server_problem(url: str) -> str:
    """Return why a control server can't be logged in to, with the mend; "" where it can.

    Asks for its public key, as every client does (tailscale ``control/controlclient/direct.go``).
    """
    address = f"{url.rstrip('/')}/key?v=142"
    try:
        with urllib.request.urlopen(address, timeout=SERVER_TIMEOUT, context=tls_context()) as answer:  # noqa: S310
            found = json.loads(answer.read(1 << 16))
    except urllib.error.HTTPError as error:
        return f"the server answers {error.code} {error.reason}, so it is no control server. Mend: check the address"
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            said = reason.verify_message.rstrip(".")
            return (
                f"its certificate is not one that this node trusts ({said}). Mend: give the server a certificate for "
                "that name by an authority that the node knows, or correct the address"
            )
        if isinstance(reason, ssl.SSLError):
            return f"it does not speak TLS ({reason}). Mend: check port and scheme of the address"
        return f"{UNREACHABLE}: {reason}. Mend: check the server, and the node's network, name service and proxy"
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.get("publicKey"):
        return "what answers there is no control server. Mend: check the address; a proxy may answer in its place"
    return ""


def measure(peers: Sequence[str]) -> dict[str, int]:
    """Return by peer the biggest packet in bytes that comes through unbroken, 0 for none; all peers at the same time.

    Sizes are those of :data:`SIZES`.
    """
    asked = [peer for peer in peers if peer]
    with ThreadPoolExecutor(max_workers=max(len(asked), 1)) as pool:
        return dict(zip(asked, pool.map(partial(path_mtu.biggest, sizes=SIZES), asked)))


def observe(wanted: Wanted, family: str) -> Observed:
    """Read the node."""
    record = node_io.observe_file(RECORD)
    there = bool(program())
    named = {*wanted.prefs, *tailscale_plan.Record.read(record.text if record else None).prefs}
    exit_node = str(wanted.prefs.get("exit-node", ""))
    status = read_status(peers=bool(exit_node)) if there else None
    raw: dict[str, Any] = {}
    prefs: dict[str, Value] = {}
    if status is not None:
        text = tailscale("debug", "prefs").out
        with contextlib.suppress(ValueError):
            raw = json.loads(text)
        if raw.get("ExitNodeID") and not exit_node:
            # an exit node that was chosen by hand is known by its ID alone
            status = read_status(peers=True) or status
        prefs = read_prefs(text, status.get("Peer") or {}, sorted(named))
    found = Observed(
        program=there,
        package=read_package(family),
        service=systemd.observe_services([SERVICE])[SERVICE],
        status=status,
        prefs=prefs,
        control_url=str(raw.get("ControlURL", "")),
        advertised_tags=tuple(raw.get("AdvertiseTags") or ()),
        record=record,
        source=apt_source.observe_source(wanted.source) if wanted.source else SourceState(),
        sysctl=node_io.observe_file(SYSCTL),
        forwarding={family: _is_on(name) for family, name in tailscale_plan.FORWARDING.items()},
        session=read_session(),
        guarded=read_guard().get("after", {}),
    )
    logs_in = tailscale_plan.login_reason(found) or tailscale_plan.relogin_reasons(found, wanted)
    if wanted.present and wanted.login_server and wanted.auth_key and logs_in:
        found = replace(found, server_problem=server_problem(wanted.login_server))
    return found


def _is_on(sysctl: str) -> bool:
    return (node_io.read_text(f"/proc/sys/{sysctl.replace('.', '/')}") or "").strip() == "1"


# --- changing it -----------------------------------------------------------------------------------------------------


class Node:
    """Makes changes on the node."""

    def __init__(self, module: AnsibleModule, wanted: Wanted, family: str) -> None:
        """Take what is wanted; nothing is done yet."""
        self.module = module
        self.wanted = wanted
        self.family = family
        self.seen = Observed()
        self.accepted: dict[str, Value] = {}

    def look(self) -> Observed:
        """Read the node and remember what was seen."""
        self.seen = observe(self.wanted, self.family)
        if self.module.check_mode and self.seen.server_problem.startswith(UNREACHABLE):
            # the same run may be about to start it
            self.module.warn(f"{self.wanted.login_server}: {self.seen.server_problem}")
            self.seen = replace(self.seen, server_problem="")
        return self.seen

    def apply(self, changes: list[Change]) -> None:
        """Make the changes (OSError, SourceError, ServiceError, TailscaleError when the node refuses)."""
        by_verb: dict[str, dict[str, Value]] = {"set": {}, "guard": {}}
        for verb, *rest in [change.step for change in changes]:
            if verb in by_verb:
                by_verb[verb][rest[0]] = tailscale_prefs.normal(*rest)
        self.accepted = by_verb["set"]
        for change in changes:
            if change.step[0] not in by_verb:
                self._step(change)
        hidden = self.seen.program and self.seen.status is None
        if self.wanted.present and (hidden or ("up",) in [change.step for change in changes]):
            # now that tailscaled runs the rest can be seen
            allowed = str(self.module.params["max_disruption"])
            rest_of_it, _pending = consent(tailscale_plan.plan(self.look(), self.wanted), allowed)
            if tailscale_plan.backend(self.seen) not in ("", "Stopped"):
                self.apply(rest_of_it)
            return
        self._set(by_verb["set"])
        if self.wanted.present:
            forget({*by_verb["set"]} - {*self.wanted.prefs})
        self._guard(by_verb["guard"])

    def _step(self, change: Change) -> None:
        verb, *rest = change.step
        if verb in ("key", "write", "remove"):
            self._file(change)
        elif verb == "install":
            self._install()
        elif verb in ("hold", "unhold"):
            self._hold(verb == "hold")
        elif verb == "archive":
            self._unpack()
        elif verb == "forward":
            self._run(["sysctl", "-q", "-w", f"{tailscale_plan.FORWARDING[rest[0]]}=1"], "forwarding")
        elif verb in ("login", "relogin"):
            self._login(verb == "relogin")
        elif verb == "up":
            # without any flag it changes nothing but that
            self._run([program(), "up"], "tailscale up")
            settle()
        elif verb == "logout":
            done = node_io.run([program(), "logout"])
            if done.rc:
                # a control server that is gone for good must not keep the node from being cleaned
                words = (done.err or done.out).strip()
                self.module.warn(f"the control server was not told that this node leaves; delete it there: {words}")
        elif verb == "purge":
            self._purge()
        elif verb == "unpack":
            self._remove_archive()
        elif verb == "state":
            shutil.rmtree(STATE_DIRECTORY, ignore_errors=True)
        else:
            systemd.act(verb, rest[0])

    def _run(self, argv: list[str], what: str) -> Done:
        done = node_io.run(argv)
        if done.rc:
            raise TailscaleError(f"{what} failed: {hide(done.err.strip() or done.out.strip(), self.wanted.auth_key)}")
        return done

    def _apart(self, argv: list[str], stdin: str | None = None, timeout: float = 120.0, env: Any = None) -> Done:
        """Run a command so that it goes on when the session that carries the run breaks, and with it this process."""
        if not tailscale_plan.over_tailnet(self.seen):
            return node_io.run(argv, stdin, timeout, env)
        with tempfile.NamedTemporaryFile(prefix="labrack-") as out:
            unit = ["systemd-run", "--wait", "--collect", "--quiet"]
            unit += [f"--property=Standard{name}=append:{out.name}" for name in ("Output", "Error")]
            unit += [f"--setenv={name}={value}" for name, value in {"LC_ALL": "C", **(env or {})}.items()]
            done = node_io.run([*unit, "--", *argv], timeout=timeout)
            words = node_io.read_text(out.name) or ""
        return Done(done.rc, words, words + done.err)

    def _file(self, change: Change) -> None:
        _verb, path = change.step
        wanted = self.wanted
        if path == RECORD and wanted.present:
            content = tailscale_plan.wanted_record(self.seen, wanted).file()
            if content:
                node_io.write_file(path, content)
            return
        if path == SYSCTL and wanted.present:
            content = tailscale_plan.sysctl_file(wanted)
            if content:
                node_io.write_file(path, content)
                return
        if path in (RECORD, SYSCTL):
            node_io.remove_file(path)
        elif wanted.source:
            apt_source.apply_source(wanted.source, change)

    # -- installing

    def _install(self) -> None:
        version = self.wanted.version
        if self.family == "redhat":
            self._dnf("install", f"{PACKAGE}-{version}" if version else PACKAGE)
            return
        held = [PACKAGE] if self.seen.package and self.seen.package.held else []
        sources = [self.wanted.source] if self.wanted.source else []
        with apt_source.unheld(held):
            apt_source.install(
                [f"{PACKAGE}={version}" if version else PACKAGE],
                sources,
                self._apart,
                held=apt_source.held_packages(),
            )

    def _hold(self, on: bool) -> None:
        if self.family == "redhat":
            self._dnf("versionlock", "add" if on else "delete", PACKAGE)
        else:
            apt_source.hold([PACKAGE], on=on)

    def _purge(self) -> None:
        if self.family == "redhat":
            self._dnf("remove", PACKAGE)
        else:
            apt_source.remove([PACKAGE], self._apart, purge=True)

    def _dnf(self, *words: str) -> None:
        done = self._apart(["dnf", "-y", *words], timeout=apt_source.APT_TIMEOUT)
        if done.rc:
            raise SourceError(f"dnf {' '.join(words)} failed: {(done.err or done.out).strip()[-600:]}")

    def _unpack(self) -> None:
        """Put the static binaries and their unit where no package has its own."""
        data = fetch(self.wanted.archive_url)
        found = hashlib.sha256(data).hexdigest()
        if found != self.wanted.archive_sha256:
            raise TailscaleError(
                f"{self.wanted.archive_url} has the SHA-256 {found}, wanted {self.wanted.archive_sha256}; nothing was "
                "unpacked. Mend: compare it with what the vendor publishes, and correct tailscale_archive_sha256 only "
                "if it is theirs"
            )
        files = read_archive(data)
        try:
            unit = files["tailscaled.service"].decode().replace("/usr/sbin/tailscaled", BINARIES[1])
            contents = {
                BINARIES[0]: (files["tailscale"], 0o755),
                BINARIES[1]: (files["tailscaled"], 0o755),
                UNIT: (unit.encode(), 0o644),
            }
            if not os.path.exists(DEFAULTS):
                contents[DEFAULTS] = (files["tailscaled.defaults"], 0o644)
        except KeyError as error:
            raise TailscaleError(f"{self.wanted.archive_url} has no {error} in it. Mend: check the address") from None
        for path, (content, mode) in contents.items():
            _write_bytes(path, content, mode)
        systemd.daemon_reload()
        systemd.act("enable", SERVICE)
        if self.seen.service.active:
            self._run(["systemctl", "restart", SERVICE], "tailscaled")

    def _remove_archive(self) -> None:
        node_io.run(["systemctl", "disable", "--now", SERVICE])
        for path in (*BINARIES, UNIT, DEFAULTS):
            node_io.remove_file(path)
        systemd.daemon_reload()

    # -- logging in

    def _login(self, again: bool) -> None:
        wanted, before = self.wanted, self.seen
        handle, path = tempfile.mkstemp(prefix="labrack-tailscale-", dir="/run")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(tailscale_plan.full_key(wanted.auth_key) + "\n")
            tags = () if wanted.tags_from_key else (wanted.tags or before.advertised_tags)
            words = [
                f"--timeout={LOGIN_TIMEOUT}s",
                f"--login-server={wanted.login_server or SERVICE_URLS[1]}",
                f"--auth-key=file:{path}",
                *([f"--advertise-tags={','.join(tags)}"] if tags or before.advertised_tags else []),
                *tailscale_prefs.up_args(before.prefs, self.accepted),
                *(["--force-reauth", "--accept-risk=lose-ssh"] if again else []),
            ]
            done = self._apart([program(), "up", *words], timeout=LOGIN_TIMEOUT + 30)
        finally:
            node_io.remove_file(path)
        status = read_status(peers=False) or {}
        if done.rc:
            raise TailscaleError(explain_login(done, status, wanted))
        given = tuple(sorted((status.get("Self") or {}).get("Tags") or ()))
        if (
            status.get("BackendState") == "Running"
            and wanted.tags
            and not wanted.tags_from_key
            and given != wanted.tags
        ):
            raise TailscaleError(
                f"the node has joined, and the control server has given it the tags {', '.join(given) or 'none'}, "
                f"wanted {', '.join(wanted.tags)}. Mend: name the tags in tagOwners of the policy; with headscale use "
                "a key that gives them and tailscale_tags_from_key: true, or headscale nodes tag"
            )
        # `up` sets to their defaults what it has no flags for
        now = read_prefs(tailscale("debug", "prefs").out, {}, sorted(before.prefs))
        lost = tailscale_prefs.diff(now, {name: before.prefs[name] for name in set(before.prefs) - set(self.accepted)})
        self._set({name: value for name, (_now, value) in lost.items()})
        settle()

    # -- preferences

    def _set(self, prefs: Mapping[str, Value]) -> None:
        if prefs:
            words = [*tailscale_prefs.set_args(prefs), "--accept-risk=lose-ssh"]
            self._run([program(), "set", *words], "tailscale set")

    def _guard(self, prefs: Mapping[str, Value]) -> None:
        """Set preferences in a moment, and put the former ones back unless the guard is stopped before."""
        if not prefs:
            return
        before = {name: tailscale_plan.effective(self.seen).get(name, "") for name in prefs}
        after = {name: tailscale_prefs.normal(name, value) for name, value in prefs.items()}
        guard = {"before": before, "after": after, "forget": sorted({*prefs} - {*self.wanted.prefs})}
        node_io.write_file(GUARD_FILE, FileState(json.dumps(guard), "0600"))
        setting = [
            shlex.join([program(), "set", *tailscale_prefs.set_args(one), "--accept-risk=lose-ssh"])
            for one in (after, before)
        ]
        script = f"sleep {GUARD_DELAY}; {setting[0]}; sleep {GUARD_WINDOW}; {setting[1]}; rm -f {GUARD_FILE}"
        unit = ["systemd-run", "--collect", "--quiet", f"--unit={GUARD}", "/bin/sh", "-c", script]
        self._run(unit, "the guard")
        deadline = time.monotonic() + PATIENCE
        while not systemd.is_active(GUARD) and time.monotonic() < deadline:
            time.sleep(0.1)


def confirm(module: AnsibleModule) -> None:
    """Keep what the guard would put back; ends the module."""
    guard = read_guard()
    if not guard:
        module.fail_json(
            msg="the preferences that could cut this connection have been put back, since nobody confirmed them within "
            f"{GUARD_WINDOW} s. Mend: make sure that the node can be reached without them, and run again"
        )
    if not module.check_mode:
        now = read_prefs(tailscale("debug", "prefs").out, {}, sorted(guard["after"]))
        left = {name: value for name, value in guard["after"].items() if now.get(name) != value}
        if left:
            module.fail_json(msg=f"tailscaled has not taken {' '.join(tailscale_prefs.set_args(left))}")
        systemd.act("stop", GUARD)
        node_io.remove_file(GUARD_FILE)
        forget(guard.get("forget", ()))
    module.exit_json(changed=True, changes=[], pending=[], notes=[], guarded={}, tailnet={})


def forget(names: Iterable[str]) -> None:
    """Take preferences out of the record, which are back at Tailscale's defaults."""
    found = node_io.observe_file(RECORD)
    if found and names:
        record = tailscale_plan.Record.read(found.text)
        left = replace(record, prefs=tuple(name for name in record.prefs if name not in set(names))).file()
        if left:
            node_io.write_file(RECORD, left)
        else:
            node_io.remove_file(RECORD)


# --- small things ----------------------------------------------------------------------------------------------------


def hide(text: str, key: str) -> str:
    """Return a text without the key, nor anything that looks like one."""
    secret = key.partition("?")[0]
    return SECRET.sub("(not shown)", text.replace(secret, "(not shown)") if secret else text)


def explain_login(done: Done, status: Mapping[str, Any], wanted: Wanted) -> str:
    """Return why a login failed: tailscale's words, what the server last said, and the mend; without the key."""
    said = [str(one) for one in status.get("Health") or () if "login error" in str(one)]
    words = hide(" ".join(dict.fromkeys([(done.err.strip() or done.out.strip())[-400:], *said])), wanted.auth_key)
    low = words.lower()
    if "server says nodekeyexpired" in low:
        # headscale 0.29 leaves a tagged node expired, whatever key it comes back with
        mend = "delete the node at the control server (headscale nodes delete), and run again"
    elif re.search(r"auth.?key|invalid key|key .*not valid|expired", low):
        mend = "make a new key; one that is not reusable is used up by its first node"
    elif "tag" in low:
        mend = "name the tags in tagOwners of the policy, with the owner of the key among the owners"
    elif "x509" in low or "certificate" in low:
        mend = "check the control server's certificate"
    else:
        mend = "see tailscale status on the node, and the control server's log"
    return f"the node could not join at {wanted.login_server or SERVICE_URLS[1]}: {words}. Mend: {mend}"


def fetch(url: str) -> bytes:
    """Return what an address holds (TailscaleError)."""
    if not url.startswith(("http://", "https://")):
        raise TailscaleError(f"tailscale_archive_url: {url} is not a http or https address")
    try:
        with urllib.request.urlopen(url, timeout=120) as answer:  # noqa: S310
            data: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise TailscaleError(
            f"{url} can't be fetched: {getattr(error, 'reason', error)}. Mend: check tailscale_archive_url, and the "
            "node's network and proxy"
        ) from None
    return data


def read_archive(data: bytes) -> dict[str, bytes]:
    """Return the files of an archive by their names without directories (TailscaleError)."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() else None
                if stream:
                    found[os.path.basename(member.name)] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise TailscaleError(f"the archive is damaged: {error}") from None
    return found


def _write_bytes(path: str, content: bytes, mode: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".labrack-", dir=os.path.dirname(path))
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    os.chmod(temporary, mode)
    os.rename(temporary, path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    if module.params["state"] == "confirmed":
        confirm(module)
    system = os_release()
    try:
        wanted = tailscale_plan.read_wanted(module.params, system, platform.machine())
    except (TailscaleError, KeyError, IndexError) as error:
        module.fail_json(msg=str(error))
    node = Node(module, wanted, system["family"])

    def extra(state: Observed) -> dict[str, Any]:
        connected = wanted.present and tailscale_plan.backend(state) == "Running"
        mtu = measure(module.params["mtu_peers"]) if connected else {}
        found = tailscale_plan.notes(state, wanted, mtu)
        for note in found:
            module.warn(note)
        return {"notes": found, "guarded": dict(state.guarded), "tailnet": tailscale_plan.facts(state, mtu)}

    try:
        converge(
            module,
            node.look,
            lambda state: tailscale_plan.plan(state, wanted),
            node.apply,
            extra,
            False,
            "tailscale_node",
        )
    except (TailscaleError, PrefsError, SourceError, ServiceError, OSError) as error:
        module.fail_json(msg=hide(str(error), wanted.auth_key))


if __name__ == "__main__":
    main()
