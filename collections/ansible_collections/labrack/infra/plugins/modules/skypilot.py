# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge the lab's SkyPilot server."""

from __future__ import annotations

DOCUMENTATION = r"""
module: skypilot
short_description: Converge the lab's SkyPilot server
version_added: 0.1.0
description:
  - User, environment, configuration, guard of its ports, proxy, accounts and tokens, see the role
    P(labrack.infra.skypilot#role).
  - Passwords and tokens are made on the host, and are never returned or shown in a difference.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) takes it away; the server's home stays unless O(purge).
    type: str
    choices: [present, absent]
    default: present
  purge:
    description: With O(state=absent), also removes the server's home with its database.
    type: bool
    default: false
  requirements:
    description: What the environment has, as a requirements file with sums.
    type: str
    default: ""
  index_url:
    description: The package index.
    type: str
    default: https://pypi.org/simple
  python:
    description: The Python of the environment.
    type: str
    default: python3
  address:
    description: The name or address by which clients reach the host.
    type: str
    default: ""
  port:
    description: The proxy's port.
    type: int
    default: 46443
  tls_cert:
    description: A certificate on the host; unless given, the host makes an authority of its own.
    type: path
    default: ""
  tls_key:
    description: Its key on the host.
    type: path
    default: ""
  memory_max:
    description: The server's share of memory, at most.
    type: str
    default: 6G
  users:
    description: What differs from one account of the role user for each of O(lab_users).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The name, which is that of the Unix user.
        type: str
        required: true
      role:
        description: The role; V(none) gives no account.
        type: str
        choices: [user, admin, viewer, none]
        default: user
      password_hash:
        description: The hash of the dashboard's password; one is made on the host unless it is given.
        type: str
  lab_users:
    description: The lab's users, of which name, uid, gid and state count.
    type: list
    elements: dict
    default: []
  infra:
    description: The machines, with the keys V(kubernetes), V(slurm), V(ssh_pools) and V(clouds), see the role.
    type: dict
    default: {}
  ssh_pools_accept:
    description: Whether what SSH node pools do to their machines is accepted.
    type: bool
    default: false
  mounts:
    description: Directories that are mounted into every job, with V(path) and V(read_only).
    type: list
    elements: dict
    default: []
  settings:
    description: Keys of the server's configuration, merged over the role's.
    type: dict
    default: {}
  policy:
    description: The admin policy's class.
    type: str
    default: ""
  policy_files:
    description: The texts of the package V(labrack_skypilot), by file.
    type: dict
    default: {}
  policy_settings:
    description: Keys of the policy's settings, merged over what the inventory gives.
    type: dict
    default: {}
  examples:
    description: Where example task files go.
    type: path
    default: ""
  gpus:
    description: The lab's GPUs, C(gpus) of M(labrack.infra.node_facts) of all its hosts.
    type: list
    elements: dict
    default: []
  family:
    description: The system's family.
    type: str
    choices: [debian, redhat]
    default: debian
  installed:
    description: Packages that the role has just installed.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Take it away
  labrack.infra.skypilot:
    state: absent
"""

RETURN = r"""
changes:
  description: What was or would be changed, without secrets.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption).
  type: list
  elements: dict
  returned: always
endpoint:
  description: The address that clients use.
  type: str
  returned: always
public_key:
  description: The key by which the server logs in to Slurm's and other machines, empty where it needs none.
  type: str
  returned: always
packages:
  description: Packages that the role installed and nothing needs any more.
  type: list
  elements: str
  returned: always
"""

import contextlib
import glob
import json
import os
import pwd
import re
import secrets
import shutil
import socket
import sqlite3
import tempfile
import time
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import skypilot_config as config
from ansible_collections.labrack.infra.plugins.module_utils import skypilot_observe as observe
from ansible_collections.labrack.infra.plugins.module_utils import skypilot_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    CommandError,
    FileState,
    expect,
    observe_file,
    read_text,
    remove_empty,
    remove_file,
    run,
    said,
    write_file,
)
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_config import Person, SkypilotError
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_observe import Refused, ask
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_plan import (
    Made,
    Observed,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_units import SERVER_UNIT
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError, act, daemon_reload

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "purge": {"type": "bool", "default": False},
    "requirements": {"type": "str", "default": ""},
    "index_url": {"type": "str", "default": "https://pypi.org/simple"},
    "python": {"type": "str", "default": "python3"},
    "address": {"type": "str", "default": ""},
    "port": {"type": "int", "default": 46443},
    "tls_cert": {"type": "path", "default": ""},
    # a path
    "tls_key": {"type": "path", "default": "", "no_log": False},
    "memory_max": {"type": "str", "default": "6G"},
    "users": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "role": {"type": "str", "choices": ["user", "admin", "viewer", "none"], "default": "user"},
            "password_hash": {"type": "str", "no_log": True},
        },
    },
    "lab_users": {"type": "list", "elements": "dict", "default": []},
    # the files of its clouds are secrets
    "infra": {"type": "dict", "default": {}},
    "ssh_pools_accept": {"type": "bool", "default": False},
    "mounts": {"type": "list", "elements": "dict", "default": []},
    "settings": {"type": "dict", "default": {}},
    "policy": {"type": "str", "default": ""},
    "policy_files": {"type": "dict", "default": {}},
    "policy_settings": {"type": "dict", "default": {}},
    "examples": {"type": "path", "default": ""},
    "gpus": {"type": "list", "elements": "dict", "default": []},
    "family": {"type": "str", "choices": ["debian", "redhat"], "default": "debian"},
    "installed": {"type": "list", "elements": "str", "default": []},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}
#: Seconds for pip to fetch and install everything, and for a server to come up on a machine that has much to do.
INSTALL_TIMEOUT = 1800.0
HEALTH_TIMEOUT = 240.0
#: So often it may end meanwhile.
MOST_RESTARTS = 4
NOLOGIN = "/usr/sbin/nologin"
AS_SERVER = ("setpriv", f"--reuid={config.USER}", f"--regid={config.USER}", "--clear-groups")


def read_wanted(params: dict[str, Any], made_later: bool = False) -> Wanted:
    """Return what the parameters want; SkypilotError for what can't be.

    With ``made_later`` what the kubeconfig of this host's k3s will say is left out, as it is not there yet.
    """
    if params["state"] == "absent":
        examples = config.example_tasks(params["examples"], params["gpus"], False)
        clouds = config.infrastructure({"clouds": params["infra"].get("clouds")}, "")
        return Wanted(
            False, params["purge"], params["family"], infrastructure=clouds, examples=examples, python=params["python"]
        )
    found = list(planner.problems(params))
    if found:
        raise SkypilotError("\n".join(map(str, found)))
    infra, people = params["infra"], config.people_of(params["users"], params["lab_users"])
    name = socket.gethostname()
    address = params["address"] or name
    contexts = infra.get("kubernetes") or ()
    known = [one for one in contexts if not (made_later and config.kubeconfig_of(one) == config.K3S_KUBECONFIG)]
    texts = {path: read_text(path) for path in map(config.kubeconfig_of, known)}
    kubeconfig = config.merged_kubeconfig(known, texts) if known else ""
    slurm = infra.get("slurm") or ()
    policy = params["policy"] if params["policy_files"] else ""
    return Wanted(
        family=params["family"],
        version=config.version_of(params["requirements"]),
        requirements=params["requirements"],
        python=params["python"],
        address=address,
        port=params["port"],
        sans=tuple(dict.fromkeys((address, name, "localhost", "127.0.0.1"))),
        tls_cert=params["tls_cert"],
        tls_key=params["tls_key"],
        memory_max=params["memory_max"],
        people=people,
        config=config.config_tree(infra, people, params["mounts"], policy, params["settings"]),
        infrastructure=config.infrastructure(infra, kubeconfig),
        examples=config.example_tasks(params["examples"], params["gpus"], bool(slurm)),
        local_slurm=any(not one.get("host") for one in slurm),
        needs_key=bool(slurm),
        policy=policy,
        policy_settings=config.policy_settings(people, params["mounts"], params["policy_settings"]),
        policy_digest=json.dumps(params["policy_files"], sort_keys=True) if policy else "",
        installed=tuple(params["installed"]),
        nginx_was="nginx" not in params["installed"],
    )


class Host:
    """The host: what is read on it, and how a change is made."""

    def __init__(self, params: dict[str, Any], wanted: Wanted) -> None:
        self.params = params
        self.wanted = wanted
        self.files = planner.wanted_files(wanted) if wanted.present else {}
        self.seen = Observed()
        self.first: Observed | None = None
        self.units = False

    def look(self) -> Observed:
        """Read the host."""
        self.seen = observe.look(self.wanted)
        if self.first is None:
            self.first = self.seen
        return self.seen

    def apply(self, changes: list[Change]) -> None:
        """Make the changes in order; what SkyPilot would refuse is found before its files are touched."""
        steps = [change.step for change in changes]
        judged = {config.CONFIG, *self.wanted.infrastructure, *self.wanted.examples}
        to_judge = any(step[:1] == ("write",) and step[1] in judged for step in steps)
        if to_judge and self.wanted.environment in self.seen.environments:
            self.validate()
            to_judge = False
        silent = self.wanted.present and self.seen.accounts is None and self.seen.has_database
        for change in changes:
            self._make(change.step)
            if to_judge and change.step[0] == "venv":
                self.validate()
                to_judge = False
        if self.units:
            daemon_reload()
        if silent:
            # who could not be asked before
            self._healthy(self.wanted.version)
            for change in planner.plan_people(self.look(), self.wanted):
                self._make(change.step)
        if not self.wanted.present:
            self._tidy()

    def _make(self, step: tuple[str, ...]) -> None:
        verb, rest = step[0], step[1:]
        unit_file = verb in ("write", "remove") and rest[0].startswith("/etc/systemd/system/")
        if self.units and verb in ("enable", "disable", "restart", "reload", "upgrade", "switch"):
            daemon_reload()
            self.units = False
        if verb == "write":
            self._write(rest[0])
        elif verb == "remove":
            with observe.owning(rest[0]):
                remove_file(rest[0])
            if rest[0] == config.TRUST[self.wanted.family][0]:
                # Debian's leaves the link to what is gone, unless it makes all of them anew
                fresh = ["--fresh"] if self.wanted.family == "debian" else []
                run([*config.TRUST[self.wanted.family][1], *fresh])
        elif verb in ("enable", "disable", "restart", "reload"):
            self._act(verb, rest[0])
        else:
            getattr(self, "_" + verb.replace("-", "_"))(*rest)
        self.units |= unit_file

    def _act(self, verb: str, unit: str) -> None:
        if verb == "disable":
            act("stop", unit)
            run(["systemctl", "reset-failed", f"{unit}.service"])
        act(verb, unit)
        if verb == "restart" and unit == config.SERVER:
            self._healthy(self.wanted.version)

    def _write(self, path: str) -> None:
        file = self.files.get(path)
        if path == config.AUTHORIZED:
            public = (read_text(f"{config.KEY}.pub") or "").strip()
            line = f'restrict,port-forwarding,pty,from="127.0.0.1,::1" {public}\n'
            file = FileState(line, "0600", config.SUBMIT_USER, config.SUBMIT_USER)
        elif path == config.CERT:
            file = FileState(read_text(self.wanted.tls_cert) or "")
        elif path == config.CERT_KEY:
            file = FileState(read_text(self.wanted.tls_key) or "", "0640", "root", config.PROXY_USER)
        elif path == config.RECORD:
            file = planner.record_file(self.first or self.seen, self.wanted)
        if file is None:
            raise SkypilotError(f"nothing is known to be written to {path}")
        if path == config.SUDOERS:
            self._check_sudoers(file)
        if path.startswith("/etc/labrack"):
            os.makedirs(config.ETC, mode=0o755, exist_ok=True)
        with observe.owning(path):
            os.makedirs(os.path.dirname(path), mode=0o700 if planner.owner(path) else 0o755, exist_ok=True)
            write_file(path, file)

    @staticmethod
    def _check_sudoers(file: FileState) -> None:
        with tempfile.NamedTemporaryFile("w", prefix="labrack-", encoding="utf-8") as draft:
            draft.write(file.text)
            draft.flush()
            done = run(["visudo", "-cf", draft.name])
        if done.rc:
            raise SkypilotError(f"sudo refuses {config.SUDOERS}: {said(done)}")

    # --- users, environment, certificate ---

    def _user(self, name: str) -> None:
        home = {config.USER: config.HOME, config.SUBMIT_USER: config.SUBMIT_HOME}.get(name, "/nonexistent")
        shell = "/bin/bash" if name == config.SUBMIT_USER else NOLOGIN
        told = ["--system", "--user-group", "--no-create-home", "--home-dir", home, "--shell", shell, name]
        expect(run(["useradd", *told]), f"user {name}")
        if home != "/nonexistent":
            folders = {config.USER: [".sky", ".ssh", ".kube", ".slurm"], config.SUBMIT_USER: [".ssh"]}[name]
            for path in [home, *(os.path.join(home, folder) for folder in folders)]:
                os.makedirs(path, mode=0o700, exist_ok=True)
                os.chmod(path, 0o700)
            own_tree(home, name)

    def _key(self) -> None:
        comment = f"{config.USER}@{os.uname().nodename}"
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", config.KEY]
        with observe.owning(config.KEY):
            os.makedirs(os.path.dirname(config.KEY), mode=0o700, exist_ok=True)
            remove_file(config.KEY)
            remove_file(f"{config.KEY}.pub")
        expect(run([*AS_SERVER, *keygen]), f"key {config.KEY}")

    def _venv(self, name: str) -> None:
        """Make an environment, show that SkyPilot runs in it, and only then say that it is whole."""
        place = os.path.join(config.OPT, name)
        shutil.rmtree(place, ignore_errors=True)
        os.makedirs(config.OPT, mode=0o755, exist_ok=True)
        before = os.umask(0o022)
        try:
            with tempfile.TemporaryDirectory(prefix="labrack-") as home:
                listed, source = (os.path.join(home, name) for name in ("wheels.txt", "sources.txt"))
                for path, text in zip((listed, source), planner.split_sources(self.wanted.requirements)):
                    with open(path, "w", encoding="utf-8") as stream:
                        stream.write(text)
                pip = [f"{place}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                pip += ["--no-input", "--no-deps", "--no-cache-dir", "--no-compile", "--require-hashes"]
                pip += ["--index-url", self.params["index_url"]]
                for argv in (
                    [self.wanted.python, "-m", "venv", place],
                    [*pip, "--only-binary=:all:", "-r", listed],
                    # built with what is pinned, and nothing else is fetched for it
                    [*pip, "--no-build-isolation", "-r", source],
                    # without bytecode the server does not come up in time; pip would make it on one core
                    [f"{place}/bin/python", "-m", "compileall", "-q", "-j", "0", f"{place}/lib"],
                    [f"{place}/bin/python", "-c", "import sky.server.constants"],
                ):
                    quiet = {"HOME": home, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "PYTHONDONTWRITEBYTECODE": ""}
                    done = run(argv, timeout=INSTALL_TIMEOUT, env=quiet)
                    # some package has a file that this Python can't compile
                    if done.rc and "compileall" not in argv:
                        shutil.rmtree(place, ignore_errors=True)
                        raise SkypilotError(
                            f"SkyPilot can't be installed in {place}: {said(done)}. Mend: name an index that this "
                            "host reaches in skypilot_index_url"
                        )
            for file, text in (self.params["policy_files"] if self.wanted.policy else {}).items():
                package = os.path.join(glob.glob(f"{place}/lib/python*/site-packages")[0], "labrack_skypilot")
                os.makedirs(package, exist_ok=True)
                with open(os.path.join(package, os.path.basename(file)), "w", encoding="utf-8") as stream:
                    stream.write(text if text.endswith("\n") else text + "\n")
            with open(os.path.join(place, config.COMPLETE), "w", encoding="utf-8"):
                pass
        finally:
            os.umask(before)

    def validate(self) -> None:
        """Let SkyPilot itself read what is to be written, as its user, away from its home; SkypilotError if refused."""
        names = {config.CONFIG: "config.yaml", config.POOLS: "pools.yaml", config.SLURM_CONFIG: "slurm"}
        names[config.KUBECONFIG] = "kube"
        names.update({path: f"example-{os.path.basename(path)}" for path in self.wanted.examples})
        files = {name: self.files[path].text for path, name in names.items() if path in self.files}
        # that of a k3s that has only been looked at
        files = {name: text for name, text in files.items() if text}
        python = f"{config.OPT}/{self.wanted.environment}/bin/python"
        with tempfile.TemporaryDirectory(prefix="labrack-") as home:
            os.chmod(home, 0o700)
            shutil.chown(home, config.USER, config.USER)
            quiet = {"HOME": home, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "USER": config.USER}
            done = run([*AS_SERVER, python, "-c", planner.VALIDATE], json.dumps(files), 180.0, quiet)
        if done.rc:
            raise SkypilotError(
                f"SkyPilot refuses its configuration, which was not put in place: {said(done)}. Mend the skypilot_ "
                "variable, or the key in skypilot_settings, that it names"
            )

    def _ca(self) -> None:
        os.makedirs(config.ETC, mode=0o755, exist_ok=True)
        subject = f"/CN=labrack SkyPilot authority of {os.uname().nodename}"
        told = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]
        # Python from 3.13 on takes no authority that doesn't say what its key is for
        told += ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        with private():
            made = run(
                ["openssl", "req", "-x509", *told, "-subj", subject, "-keyout", config.CA_KEY, "-out", config.CA]
            )
        expect(made, f"authority {config.CA}")
        os.chmod(config.CA_KEY, 0o600)
        os.chmod(config.CA, 0o644)

    def _trust(self) -> None:
        path, command, _bundle = config.TRUST[self.wanted.family]
        write_file(path, FileState(read_text(config.CA) or ""))
        expect(run(list(command)), command[0])

    def _cert(self) -> None:
        """Make the server's key and certificate, in the place of the old ones at once."""
        names = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in self.wanted.sans)
        with tempfile.TemporaryDirectory(prefix="labrack-") as folder, private():
            key, request, extra, made = (os.path.join(folder, name) for name in ("key", "csr", "ext", "crt"))
            with open(extra, "w", encoding="utf-8") as stream:
                stream.write(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n")
                stream.write("keyUsage=critical,digitalSignature\n")
                stream.write("subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
            curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            subject = f"/CN={self.wanted.sans[0][:60]}"
            expect(run(["openssl", "req", *curve, "-subj", subject, "-keyout", key, "-out", request]), "certificate")
            sign = ["-CA", config.CA, "-CAkey", config.CA_KEY, "-set_serial", str(secrets.randbits(120)), "-days"]
            told = ["openssl", "x509", "-req", "-in", request, *sign, "820", "-extfile", extra, "-out", made]
            expect(run(told), "certificate")
            write_file(config.CERT_KEY, FileState(read_text(key) or "", "0640", "root", config.PROXY_USER))
            write_file(config.CERT, FileState(read_text(made) or ""))

    # --- the server ---

    def _link(self, name: str) -> None:
        draft = f"{config.CURRENT}.new"
        remove_file(draft)
        os.symlink(name, draft)
        os.rename(draft, config.CURRENT)

    def _switch(self, name: str) -> None:
        self._link(name)

    def _healthy(self, version: str) -> None:
        """Wait until the server is healthy in a version; ServiceError with its log's end when it isn't."""
        deadline = time.monotonic() + HEALTH_TIMEOUT
        while True:
            found = observe.health()
            if found.get("status") == "healthy" and found.get("version") == version == found.get("version_on_disk"):
                return
            if time.monotonic() > deadline or self._dies():
                break
            time.sleep(1)
        log = run(["journalctl", "--no-pager", "--lines=8", "--output=cat", f"--unit={config.SERVER}"])
        what = f"says that it is {found.get('version')}, {found.get('status')}" if found else "does not answer"
        raise ServiceError(f"SkyPilot {version} {what} after its start; its log ends: {log.out}")

    @staticmethod
    def _dies() -> bool:
        """Whether the server has ended for good, or again and again since somebody started it."""
        shown = run(["systemctl", "show", "--property=NRestarts,ActiveState", f"{config.SERVER}.service"]).out
        restarts = re.search(r"NRestarts=(\d+)", shown)
        return (
            "ActiveState=failed" in shown
            or "ActiveState=inactive" in shown
            or (restarts is not None and int(restarts[1]) >= MOST_RESTARTS)
        )

    def _upgrade(self, name: str) -> None:
        """Go over to another environment, with a copy of the database; back to the old one if it does not come up."""
        first = self.first or self.seen
        old = first.current
        act("stop", config.SERVER)
        save_databases()
        try:
            self._link(name)
            act("start", config.SERVER)
            self._healthy(self.wanted.version)
        except ServiceError as error:
            run(["systemctl", "stop", config.SERVER])
            restore_databases()
            self._link(old)
            # the old version may not know what the new one's configuration says
            for path in (config.CONFIG, SERVER_UNIT, *self.wanted.infrastructure):
                file = first.files.get(path)
                if file is not None:
                    with observe.owning(path):
                        write_file(path, file)
            daemon_reload()
            with open(os.path.join(config.OPT, name, config.FAILED), "w", encoding="utf-8"):
                pass
            act("start", config.SERVER)
            before = old.rpartition("-")[0]
            self._healthy(before)
            raise SkypilotError(
                f"SkyPilot {self.wanted.version} did not come up, so {before} and its database are back: {error}"
            ) from None
        for path in glob.glob(f"{config.OPT}/*/{config.COMPLETE}"):
            place = os.path.dirname(path)
            if os.path.basename(place) not in (name, old, "current"):
                shutil.rmtree(place, ignore_errors=True)

    # --- people ---

    def _person(self, name: str) -> Person:
        return next(person for person in self.wanted.people if person.name == name)

    @staticmethod
    def _password() -> str:
        return (read_text(config.ADMIN_PASSWORD) or "").strip()

    def _admin(self) -> None:
        password = self._password()
        if not password:
            password = secrets.token_urlsafe(24)
            write_file(config.ADMIN_PASSWORD, FileState(f"{password}\n", "0600"))
        account = known().get(config.ADMIN)
        if account is None:
            ask("POST", "/users/create", {"username": config.ADMIN, "password": password, "role": "admin"})
        else:
            ask("POST", "/users/update", {"user_id": account.number, "password": password, "role": "admin"})

    def _add(self, name: str) -> None:
        person = self._person(name)
        if person.password_hash:
            csv = f"username,password,role\n{name},{person.password_hash},{person.role}"
            answer = ask("POST", "/users/import", {"csv_content": csv})
            if answer.get("success_count") != 1:
                raise SkypilotError(f"account {name} was not created: {answer.get('creation_errors')}")
        else:
            password = secrets.token_urlsafe(15)
            if observe.observe_home(name).there:
                observe.write_home(name, {"dashboard-password": f"{password}\n"})
            ask("POST", "/users/create", {"username": name, "password": password, "role": person.role})
        self._note(name)

    def _role(self, name: str) -> None:
        ask("POST", "/users/update", {"user_id": known()[name].number, "role": self._person(name).role})

    def _token_role(self, name: str) -> None:
        token = (observe.tokens(self._password()) or {})[name + config.CLI].token
        body = {"token_id": token, "role": self._person(name).role}
        ask("POST", "/users/service-account-tokens/update-role", body, self._password())

    def _token(self, name: str) -> None:
        """Make a token, or another in the place of one that the home no longer has, and hand it over."""
        password, person = self._password(), self._person(name)
        found = (observe.tokens(password) or {}).get(name + config.CLI)
        place = "/users/service-account-tokens"
        if found:
            answer = ask("POST", f"{place}/rotate", {"token_id": found.token, "expires_in_days": 0}, password)
        else:
            body = {"token_name": name + config.CLI, "expires_in_days": 0, "role": person.role}
            answer = ask("POST", place, body, password)
        token = str(answer["token"])
        self._hand_over(name, token)
        self._note(name, Made(str(answer["token_id"]), config.digest(token)))
        if not found:
            # older servers give every service account the role of whoever made it
            made = (observe.tokens(password) or {})[name + config.CLI]
            if made.role != person.role:
                self._token_role(name)

    def _home(self, name: str) -> None:
        self._hand_over(name, config.server_in(observe.observe_home(name).config)[1])

    def _hand_over(self, name: str, token: str) -> None:
        try:
            text = config.with_server(observe.observe_home(name).config, self.wanted.endpoint, token)
        except SkypilotError as error:
            raise SkypilotError(f"user {name}: {error}") from None
        observe.write_home(name, {"config.yaml": text})

    def _drop(self, name: str) -> None:
        """Take an account away; one that still has machines is locked, for an admin to end them."""
        password = self._password()
        token = (observe.tokens(password) or {}).get(name + config.CLI)
        account = known().get(name)
        self._logout(name)
        made = self._made()
        try:
            if token:
                ask("POST", "/users/service-account-tokens/delete", {"token_id": token.token}, password)
            if account:
                ask("POST", "/users/delete", {"user_id": account.number})
            made.pop(name, None)
        except Refused as error:
            if error.status != 400:
                raise
            if token and name + config.CLI in (observe.tokens(password) or {}):
                # a token that nobody has
                body = {"token_id": token.token, "expires_in_days": 0}
                ask("POST", "/users/service-account-tokens/rotate", body, password)
            if account:
                ask("POST", "/users/update", {"user_id": account.number, "password": secrets.token_urlsafe(24)})
            made[name] = Made(locked=True)
        self._store(made)

    def _logout(self, name: str) -> None:
        home = observe.observe_home(name)
        if home.there and home.config is not None and home.endpoint:
            observe.write_home(name, {"config.yaml": config.without_server(home.config)})
        with contextlib.suppress(OSError, KeyError), observe.acting_as(name):
            remove_file(os.path.join(pwd.getpwnam(name).pw_dir, ".sky/dashboard-password"))

    @staticmethod
    def _made() -> dict[str, Made]:
        return planner.read_people(read_text(config.PEOPLE))

    def _note(self, name: str, made: Made | None = None) -> None:
        """Remember what was made for somebody, by default what was before, and their numbers on the server."""
        everybody = self._made()
        token = (observe.tokens(self._password()) or {}).get(name + config.CLI)
        numbers = planner.numbers_of(known().get(name), token)
        everybody[name] = replace(made or everybody.get(name, Made()), accounts=numbers)
        self._store(everybody)

    @staticmethod
    def _store(made: dict[str, Made]) -> None:
        os.makedirs(os.path.dirname(config.PEOPLE), mode=0o700, exist_ok=True)
        write_file(config.PEOPLE, FileState(planner.people_text(made), "0600"))

    # --- the way back ---

    @staticmethod
    def _rmtree(path: str) -> None:
        shutil.rmtree(path, ignore_errors=True)

    @staticmethod
    def _userdel(name: str) -> None:
        done = run(["userdel", name])
        # 6: it is not there any more (userdel(8))
        if done.rc not in (0, 6):
            raise SkypilotError(f"userdel {name} failed: {said(done)}. Mend: end its processes")
        if name == config.SUBMIT_USER:
            shutil.rmtree(config.SUBMIT_HOME, ignore_errors=True)

    def _tidy(self) -> None:
        if self.wanted.examples:
            remove_empty(os.path.dirname(next(iter(self.wanted.examples))))
        for path in (config.ETC, os.path.dirname(config.ETC), os.path.dirname(config.PEOPLE)):
            remove_empty(path)


@contextlib.contextmanager
def private() -> Any:
    """Make files that nobody else may read while the block runs."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def save_databases() -> None:
    """Copy the databases of a server that is stopped, by SQLite's own way, with what is in their journals."""
    with observe.acting_as(config.USER), private():
        shutil.rmtree(config.BACKUPS, ignore_errors=True)
        for path in databases():
            copy = os.path.join(config.BACKUPS, os.path.relpath(path, f"{config.HOME}/.sky"))
            os.makedirs(os.path.dirname(copy), mode=0o700, exist_ok=True)
            with (
                contextlib.closing(sqlite3.connect(path)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)


def restore_databases() -> None:
    """Put the copies back, and take away what came after them."""
    with observe.acting_as(config.USER), private():
        for path in databases():
            copy = os.path.join(config.BACKUPS, os.path.relpath(path, f"{config.HOME}/.sky"))
            for journal in (f"{path}-wal", f"{path}-shm"):
                remove_file(journal)
            if os.path.exists(copy):
                shutil.copyfile(copy, path)
            else:
                remove_file(path)


def databases() -> list[str]:
    """Return the server's databases."""
    found = glob.glob(f"{config.HOME}/.sky/*.db") + glob.glob(f"{config.HOME}/.sky/*/*.db")
    return sorted(path for path in found if os.path.isfile(path) and not os.path.islink(path))


def known() -> dict[str, planner.Account]:
    """Return the server's accounts; SkypilotError while it doesn't answer."""
    found = observe.accounts()
    if found is None:
        raise SkypilotError("the server does not say who has an account. Mend: see journalctl -u skypilot")
    return found


def own_tree(path: str, user: str) -> None:
    """Give a home, which may be that of an earlier installation, to its user."""
    entry = pwd.getpwnam(user)
    for folder, _folders, files in os.walk(path):
        for one in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(one, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def awaits_k3s(params: dict[str, Any]) -> bool:
    """Return whether the server is to use this host's k3s, which has no kubeconfig yet."""
    paths = map(config.kubeconfig_of, params["infra"].get("kubernetes") or ())
    return params["state"] == "present" and config.K3S_KUBECONFIG in paths and not os.path.exists(config.K3S_KUBECONFIG)


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, name)
            return True
    return False


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        made_later = module.check_mode and awaits_k3s(module.params)
        if made_later:
            module.warn(
                f"{config.K3S_KUBECONFIG} is not there yet, so it is not known what SkyPilot will find in it. A run is "
                "refused unless k3s has made it by then"
            )
        wanted = read_wanted(module.params, made_later)
        host = Host(module.params, wanted)

        def extra(state: Observed) -> dict[str, Any]:
            # what SkyPilot would refuse is said in check mode too, where it is there to ask
            if module.check_mode and wanted.present and wanted.environment in state.environments:
                found = observe_file(config.CONFIG)
                if found is None or found.text != host.files[config.CONFIG].text:
                    host.validate()
            packages = [] if wanted.present else planner.recorded(host.first or state)
            return {"endpoint": wanted.endpoint, "public_key": state.key, "packages": packages}

        converge(
            module,
            host.look,
            lambda state: planner.plan(state, wanted),
            host.apply,
            extra,
            drains=False,
            ledger="skypilot",
        )
    except (SkypilotError, CommandError, ServiceError, OSError, LookupError, sqlite3.Error) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
