# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge headscale, the lab's own control server of its tailnet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: headscale
short_description: Converge headscale, the lab's own control server of its tailnet
version_added: 0.1.0
description:
  - Program, configuration, users and pre-auth keys of headscale, see the role P(labrack.infra.headscale#role).
  - A configuration is tried by C(headscale configtest), a policy by C(headscale policy check), before it is put in
    place. The server is restarted only for another configuration or version, and reloaded for another policy. Nodes
    keep their connections while it restarts.
  - Keys are made once and kept in C(/var/lib/labrack/headscale/keys.json), for root alone. They are never returned.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) takes program, configuration and keys away. The database stays.
    type: str
    choices: [present, absent]
    default: present
  version:
    description: The version to have.
    type: str
    required: true
  install:
    description: Whether it comes as the release's package or as its bare binary.
    type: str
    choices: [package, binary]
    default: package
  artifact_url:
    description: Where the releases are, with a directory for each version.
    type: str
    default: https://github.com/juanfont/headscale/releases/download
  artifact_sha256:
    description: SHA-256 of the release's files, by C(deb-amd64), C(binary-amd64) and so on.
    type: dict
    default: {}
  url:
    description: The address by which nodes reach the server.
    type: str
    default: ""
  listen:
    description: Address and port to listen on.
    type: str
    default: 0.0.0.0:443
  base_domain:
    description: The domain of the nodes' names.
    type: str
    default: ""
  tls:
    description: Where the certificate comes from.
    type: str
    choices: [certificate, acme, none]
    default: certificate
  tls_cert:
    description: The certificate with its chain, a file on the host.
    type: str
    default: ""
  tls_key:
    description: Its key, a file on the host.
    type: str
    default: ""
  acme_url:
    description: The certificate authority.
    type: str
    default: https://acme-v02.api.letsencrypt.org/directory
  acme_email:
    description: Whom it writes to.
    type: str
    default: ""
  acme_challenge:
    description: How it asks; C(HTTP-01) needs port 80.
    type: str
    choices: [HTTP-01, TLS-ALPN-01]
    default: HTTP-01
  derp:
    description: The relays of nodes that can't reach each other directly.
    type: str
    choices: [embedded, tailscale, both]
    default: embedded
  stun_listen:
    description: Address and UDP port of the embedded relay's STUN.
    type: str
    default: 0.0.0.0:3478
  nameservers:
    description: Name servers that every node is to use; none leaves each its own.
    type: list
    elements: str
    default: []
  settings:
    description: Further keys of config.yaml, merged over the others.
    type: dict
    default: {}
  policy:
    description: The text of the policy file; empty leaves the one that is there.
    type: str
    default: ""
  policy_path:
    description: Where the policy file is.
    type: str
    default: /etc/headscale/policy.hujson
  users:
    description: Users to have.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The user's name.
        type: str
        required: true
      email:
        description: The user's address.
        type: str
  preauth_keys:
    description: Reusable keys by which nodes join.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the key is called here.
        type: str
        required: true
      user:
        description: Who owns the nodes.
        type: str
      tags:
        description: Tags that own the nodes, in place of a user.
        type: list
        elements: str
        default: []
      ephemeral:
        description: Whether nodes are forgotten once they are offline.
        type: bool
        default: false
      days:
        description: How long it lets nodes in.
        type: int
        default: 90
"""

EXAMPLES = r"""
- name: Run the control server on the head
  labrack.infra.headscale:
    version: 0.29.2
    artifact_sha256:
      deb-amd64: "{{ headscale_sha256 }}"
    url: https://headscale.example.org
    base_domain: tailnet.lab
    tls: acme
    preauth_keys:
      - name: workers
        tags: [lab-worker]
"""

RETURN = r"""
changes:
  description: What was or would be changed, without keys.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption).
  type: list
  elements: dict
  returned: always
"""

import json
import os
import platform
import pwd
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import headscale_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.download import DownloadError, download
from ansible_collections.labrack.infra.plugins.module_utils.headscale_plan import (
    HeadscaleError,
    KeyWish,
    Observed,
    StoredKey,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    CommandError,
    FileState,
    expect,
    observe_file,
    read_text,
    remove_file,
    run,
    said,
    write_file,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    act,
    daemon_reload,
    observe_services,
    wait_for,
)

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
NOLOGIN = "/usr/sbin/nologin"
ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "version": {"type": "str", "required": True},
    "install": {"type": "str", "choices": ["package", "binary"], "default": "package"},
    "artifact_url": {"type": "str", "default": "https://github.com/juanfont/headscale/releases/download"},
    "artifact_sha256": {"type": "dict", "default": {}},
    "url": {"type": "str", "default": ""},
    "listen": {"type": "str", "default": "0.0.0.0:443"},
    "base_domain": {"type": "str", "default": ""},
    "tls": {"type": "str", "choices": ["certificate", "acme", "none"], "default": "certificate"},
    "tls_cert": {"type": "str", "default": ""},
    # a path
    "tls_key": {"type": "str", "default": "", "no_log": False},
    "acme_url": {"type": "str", "default": "https://acme-v02.api.letsencrypt.org/directory"},
    "acme_email": {"type": "str", "default": ""},
    "acme_challenge": {"type": "str", "choices": ["HTTP-01", "TLS-ALPN-01"], "default": "HTTP-01"},
    "derp": {"type": "str", "choices": ["embedded", "tailscale", "both"], "default": "embedded"},
    "stun_listen": {"type": "str", "default": "0.0.0.0:3478"},
    "nameservers": {"type": "list", "elements": "str", "default": []},
    "settings": {"type": "dict", "default": {}},
    "policy": {"type": "str", "default": ""},
    "policy_path": {"type": "str", "default": "/etc/headscale/policy.hujson"},
    "users": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"name": {"type": "str", "required": True}, "email": {"type": "str"}},
    },
    "preauth_keys": {
        "type": "list",
        "elements": "dict",
        "default": [],
        # wishes for keys, no keys
        "no_log": False,
        "options": {
            "name": {"type": "str", "required": True},
            "user": {"type": "str"},
            "tags": {"type": "list", "elements": "str", "default": []},
            "ephemeral": {"type": "bool", "default": False},
            "days": {"type": "int", "default": 90},
        },
    },
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


class Host:
    """The host: what is read on it, and how a change is made."""

    def __init__(self, params: Mapping[str, Any], wanted: Wanted) -> None:
        self.params = params
        self.wanted = wanted
        self.seen = Observed()

    def look(self) -> Observed:
        """Read program, files, service, and what the server knows while it runs."""
        own = [planner.CONFIG, planner.UNIT, planner.TLS_CERT, planner.TLS_KEY, planner.KEYS, planner.RECORD]
        sources = [path for path in (self.wanted.tls_cert, self.wanted.tls_key) if path]
        paths = [*own, self.wanted.policy_path, *sources]
        files = {path: observe_file(path) for path in paths}
        written = {path: os.stat(path).st_mtime for path in paths if os.path.exists(path)}
        service = observe_services(["headscale"])["headscale"]
        versions = {kind: self._version(kind) for kind in planner.PROGRAMS}
        users = live = None
        program = planner.PROGRAMS[next((kind for kind, version in versions.items() if version), self.wanted.install)]
        if service.active and self.wanted.present:
            users, live = read_users(program), read_live_keys(program)
        keys = files[planner.KEYS]
        stored = planner.read_keys(keys.text if keys else None)
        database = os.path.exists(f"{planner.DATA}/db.sqlite")
        self.seen = Observed(versions, files, written, service, has_user(), database, users, live, stored)
        return self.seen

    def _version(self, kind: str) -> str:
        """The version of a program, empty for none; a package that was removed has left none."""
        if not os.path.exists(planner.PROGRAMS[kind]):
            return ""
        if kind == "package":
            done = run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", "headscale"])
            status, _blank, version = done.out.partition(" ")
            return version if done.rc == 0 and status == "installed" else ""
        return program_version(planner.PROGRAMS[kind])

    def apply(self, changes: list[Change]) -> None:
        """Make the changes in order; what can be found wrong is found before the first."""
        steps = [change.step for change in changes]
        silent = self.seen.users is None and self.seen.has_database and self.wanted.present
        with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
            artifact = self._fetch(Path(folder)) if ("install",) in steps else None
            program = self._unpack(artifact, Path(folder)) if artifact else self.wanted.program
            if ("write", planner.CONFIG) in steps:
                self.check_config(program, Path(folder))
            if ("write", self.wanted.policy_path) in steps and self.wanted.policy:
                check_policy(program, self.wanted, Path(folder))
            for change in changes:
                self._make(change.step, artifact)
        if silent:
            # what could not be asked before
            self._await()
            for change in planner.plan_people(self.look(), self.wanted):
                self._make(change.step, None)

    def _make(self, step: tuple[str, ...], artifact: Path | None) -> None:
        verb, rest = step[0], step[1:]
        if verb == "write":
            write_file(rest[0], self._text(rest[0]))
            if rest[0] == planner.UNIT:
                daemon_reload()
        elif verb == "user":
            told = ["--system", "--user-group", "--home-dir", planner.DATA, "--shell", NOLOGIN, planner.USER]
            expect(run(["useradd", *told]), f"user {planner.USER}")
        elif verb == "install" and artifact is not None:
            self._install(artifact)
        elif verb == "remove" and rest[0] in planner.PROGRAMS:
            self._remove(rest[0])
        elif verb == "remove":
            remove_file(rest[0])
            if rest[0] == planner.KEYS:
                os.rmdir(os.path.dirname(planner.KEYS))
            if rest[0] == planner.UNIT:
                daemon_reload()
        elif verb in ("add-user", "make-key", "drop-key"):
            self._await()
            getattr(self, "_" + verb.replace("-", "_"))(*rest)
        else:
            act(verb, rest[0])

    def _text(self, path: str) -> FileState:
        if path == planner.CONFIG:
            return FileState(planner.config_text(self.wanted.config))
        if path == planner.UNIT:
            return FileState(planner.UNIT_TEXT)
        if path == planner.TLS_CERT:
            return FileState(read_text(self.wanted.tls_cert) or "")
        if path == planner.TLS_KEY:
            return FileState(read_text(self.wanted.tls_key) or "", "0640", "root", planner.USER)
        text = self.wanted.policy or planner.OPEN_POLICY
        return FileState(text if text.endswith("\n") else text + "\n")

    # --- program ---

    def _fetch(self, folder: Path) -> Path:
        """Download the release's file and hold it against its checksum."""
        machine = platform.machine()
        architecture = ARCHITECTURES.get(machine, machine)
        kind = "deb" if self.wanted.install == "package" else "binary"
        digest = str(self.params["artifact_sha256"].get(f"{kind}-{architecture}", ""))
        if not digest:
            raise HeadscaleError(
                f"headscale_artifact_sha256 has no {kind}-{architecture}: take the sum from the checksums.txt of the "
                f"release v{self.wanted.version}, and add it"
            )
        name = f"headscale_{self.wanted.version}_linux_{architecture}" + (".deb" if kind == "deb" else "")
        url = f"{self.params['artifact_url'].rstrip('/')}/v{self.wanted.version}/{name}"
        target = folder / name
        found = download(url, target, "headscale_version and headscale_artifact_url")
        if found != digest.lower():
            raise HeadscaleError(
                f"{url} has the SHA-256 {found}, and headscale_artifact_sha256 says {digest}; nothing was installed. "
                "Mend: compare it with the release's checksums.txt; a proxy may answer in its place"
            )
        return target

    def _unpack(self, artifact: Path, folder: Path) -> str:
        """The program in a release's file, without installing it."""
        if self.wanted.install == "binary":
            artifact.chmod(0o755)
            return str(artifact)
        expect(run(["dpkg-deb", "--extract", str(artifact), str(folder / "deb")]), artifact.name)
        return str(folder / "deb/usr/bin/headscale")

    def _install(self, artifact: Path) -> None:
        if self.wanted.install == "package":
            # our configuration is there already, and stays
            told = ["--force-confold", "--install", str(artifact)]
            expect(run(["dpkg", *told], env={"DEBIAN_FRONTEND": "noninteractive"}), artifact.name)
            remove_file(f"{planner.CONFIG}.dpkg-dist")
        else:
            os.makedirs(planner.DATA, mode=0o750, exist_ok=True)
            shutil.chown(planner.DATA, planner.USER, planner.USER)
            temporary = f"{self.wanted.program}.new"
            # with its mode, by which it could be tried
            shutil.copy(artifact, temporary)
            os.rename(temporary, self.wanted.program)
        # a package enables its service at its first installation alone
        act("enable", "headscale")
        write_file(planner.RECORD, FileState(json.dumps({"install": self.wanted.install}) + "\n"))

    def _remove(self, kind: str) -> None:
        # neither program takes its link along by which it starts at boot
        run(["systemctl", "disable", "--now", "headscale"])
        if kind == "package":
            # no purge: that would take the database with it
            expect(run(["dpkg", "--remove", "headscale"]), "dpkg --remove headscale")
        else:
            remove_file(planner.PROGRAMS[kind])

    def check_config(self, program: str, folder: Path) -> None:
        """Let headscale read the configuration that is to come; HeadscaleError with what it says."""
        trial = folder / "trial"
        trial.mkdir(exist_ok=True)
        path = trial / "config.yaml"
        path.write_text(planner.trial(self.wanted.config, str(trial)), encoding="utf-8")
        done = run([program, "--config", str(path), "configtest"])
        if done.rc:
            raise HeadscaleError(
                f"headscale refuses its configuration, which was not put in place: {said(done)}. "
                "Mend the headscale_ variable, or the key in headscale_settings, that it names"
            )

    # --- people ---

    def _await(self) -> None:
        wait_for([self.wanted.program, "users", "list", "--output", "json"], "", "headscale", 30.0)

    def _add_user(self, name: str, email: str) -> None:
        told = ["--email", email] if email else []
        expect(run([self.wanted.program, "users", "create", name, *told]), f"user {name}")

    def _make_key(self, name: str) -> None:
        wish = next(wish for wish in self.wanted.keys if wish.name == name)
        keys = dict(self._stored())
        old = keys.get(name)
        keys[name] = self._create(wish)
        self._store(keys)
        if old is not None:
            self._expire(old)

    def _create(self, wish: KeyWish) -> StoredKey:
        told = ["--reusable", "--expiration", f"{wish.days * 24}h", "--output", "json"]
        if wish.user:
            told += ["--user", (read_users(self.wanted.program) or {})[wish.user]]
        if wish.tags:
            told += ["--tags", ",".join(wish.tags)]
        if wish.ephemeral:
            told.append("--ephemeral")
        done = run([self.wanted.program, "preauthkeys", "create", *told])
        if done.rc:
            raise HeadscaleError(f"pre-auth key {wish.name}: {said(done)}")
        made = json.loads(done.out)
        return StoredKey(str(made["id"]), str(made["key"]), wish)

    def _drop_key(self, name: str) -> None:
        keys = dict(self._stored())
        self._expire(keys.pop(name))
        self._store(keys)

    def _expire(self, key: StoredKey) -> None:
        if key.number in (read_live_keys(self.wanted.program) or frozenset()):
            told = ["preauthkeys", "expire", "--id", key.number]
            expect(run([self.wanted.program, *told]), f"pre-auth key {key.wish.name}")

    def _stored(self) -> Mapping[str, StoredKey]:
        return planner.read_keys(read_text(planner.KEYS))

    def _store(self, keys: Mapping[str, StoredKey]) -> None:
        os.makedirs(os.path.dirname(planner.KEYS), mode=0o700, exist_ok=True)
        write_file(planner.KEYS, FileState(planner.keys_text(keys), "0600"))


def check_policy(program: str, wanted: Wanted, folder: Path) -> None:
    """Let headscale read the policy that is to come; HeadscaleError with what it says."""
    trial = folder / "trial"
    trial.mkdir(exist_ok=True)
    (trial / "policy.hujson").write_text(wanted.policy, encoding="utf-8")
    (trial / "config.yaml").write_text(planner.trial(wanted.config, str(trial)), encoding="utf-8")
    told = ["--config", str(trial / "config.yaml"), "policy", "check", "--file", str(trial / "policy.hujson")]
    done = run([program, *told])
    if done.rc:
        raise HeadscaleError(
            f"headscale refuses the policy, which was not put in place: {said(done)}. Mend headscale_policy"
        )


def program_version(program: str) -> str:
    """Return the version that a program tells, or "unknown"."""
    done = run([program, "version", "--output", "json"])
    try:
        return str(json.loads(done.out)["version"]).lstrip("v")
    except (ValueError, KeyError, TypeError):
        return "unknown"


def has_user() -> bool:
    """Return whether the server's user is there."""
    try:
        pwd.getpwnam(planner.USER)
    except KeyError:
        return False
    return True


def read_users(program: str) -> dict[str, str] | None:
    """Return the numbers of headscale's users by name; None while it doesn't answer."""
    done = run([program, "users", "list", "--output", "json"], timeout=20)
    try:
        return {str(user["name"]): str(user["id"]) for user in json.loads(done.out) or ()} if done.rc == 0 else None
    except (ValueError, KeyError, TypeError):
        return None


def read_live_keys(program: str) -> frozenset[str] | None:
    """Return the numbers of the keys that let nodes in; None while headscale doesn't answer."""
    done = run([program, "preauthkeys", "list", "--output", "json"], timeout=20)
    now = time.time()
    try:
        keys = json.loads(done.out) or () if done.rc == 0 else None
        return None if keys is None else frozenset(str(key["id"]) for key in keys if _until(key) > now)
    except (ValueError, KeyError, TypeError):
        return None


def _until(key: Mapping[str, Any]) -> float:
    """When a key expires, in Unix time; headscale prints protobuf's seconds."""
    found = key.get("expiration") or {}
    return float(found["seconds"]) if "seconds" in found else float("inf")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        wanted = planner.read_wanted(module.params)
        host = Host(module.params, wanted)

        def extra(state: Observed) -> dict[str, Any]:
            # what headscale would refuse is said in check mode too, where the program is there to ask
            if module.check_mode and wanted.present and state.versions.get(wanted.install) == wanted.version:
                with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
                    found = state.files.get(planner.CONFIG)
                    if found is None or found.text != planner.config_text(wanted.config):
                        host.check_config(wanted.program, Path(folder))
            return {}

        converge(
            module,
            host.look,
            lambda state: planner.plan(state, wanted),
            host.apply,
            extra,
            drains=False,
            ledger="headscale",
        )
    except (HeadscaleError, CommandError, DownloadError, ServiceError, OSError, LookupError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
