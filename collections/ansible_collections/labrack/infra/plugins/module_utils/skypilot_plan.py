# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What makes a host the lab's SkyPilot server: user, environment, configuration, guard, proxy, people.

Pure planner, no Ansible import. Facts about SkyPilot are those of 0.14.1: ``sky/users/rbac.py`` (roles),
``sky/server/auth/loopback.py`` (who is trusted without a password), ``sky/utils/schemas.py`` (configuration).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.headscale_plan import config_text
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_config import (
    ADMIN,
    ADMIN_PASSWORD,
    AUTHORIZED,
    BACKUPS,
    CA,
    CA_KEY,
    CERT,
    CERT_KEY,
    CLI,
    CLOUDS,
    CONFIG,
    CONTEXT,
    CURRENT,
    GUARD_SERVICE,
    HASH,
    HOME,
    KEY,
    KUBECONFIG,
    LEAST_MEMORY_MIB,
    NEWEST_PYTHON,
    OLDEST_PYTHON,
    OPT,
    PEOPLE,
    PLUGINS,
    POLICY_SETTINGS,
    POOLS,
    PORT,
    PROXY,
    PROXY_USER,
    QUEUE_PORT,
    RECORD,
    ROLES,
    SERVER,
    SLURM_CONFIG,
    SUBMIT_HOME,
    SUBMIT_USER,
    SUDOERS,
    TRUST,
    UNIX_NAME,
    USER,
    WRAPPER,
    Person,
    SkypilotError,
    people_of,
    sudoers_text,
)
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_units import (
    GUARD,
    GUARD_UNIT,
    NGINX,
    PROXY_UNIT,
    SERVER_UNIT,
    guard_text,
    guard_unit,
    nginx_text,
    proxy_unit,
    server_unit,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, note_unit

#: Of the package that has the policy.
PLUGIN = "labrack_skypilot.plugin.Guard"
#: What is on no index as a wheel.
SOURCES = ("python-hostlist==",)

#: Run in the server's own environment, as its user, with a scratch HOME: what the server would refuse is refused here.
VALIDATE = """
import json, os, sys
os.environ['IS_SKYPILOT_SERVER'] = 'true'
from sky.server import plugins
plugins.load_plugins(plugins.ExtensionContext(context=plugins.PluginContext.UVICORN))
from sky import skypilot_config
import sky
files = json.load(sys.stdin)
home = os.path.expanduser('~')
def put(name):
    path = os.path.join(home, name)
    with open(path, 'w') as stream:
        stream.write(files[name])
    return path
try:
    what = 'config.yaml'
    skypilot_config.parse_and_validate_config_file(put('config.yaml'))
    if 'pools.yaml' in files:
        what = 'ssh_node_pools.yaml'
        from sky.ssh_node_pools import utils
        utils.load_ssh_targets(put('pools.yaml'))
    if 'slurm' in files:
        what = '.slurm/config'
        from paramiko.config import SSHConfig
        SSHConfig.from_path(put('slurm'))
    if 'kube' in files:
        what = '.kube/config'
        from kubernetes import config
        config.list_kube_config_contexts(put('kube'))
    for name in files:
        if name.startswith('example-'):
            what = name
            sky.Task.from_yaml(put(name))
except Exception as error:
    sys.exit(f'{what}: {str(error).strip() or type(error).__name__}')
"""


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
class Wanted:
    """What the host shall be; see the role's variables. ``family`` is the system's, ``sans`` the certificate's names.

    ``kubeconfig``, ``slurm``, ``pools``, ``clouds`` are whole files by path, texts with secrets; ``examples`` are task
    files by path. ``local_slurm`` says that the server submits to Slurm from this very host, as whom it wants.
    """

    present: bool = True
    purge: bool = False
    family: str = "debian"
    version: str = ""
    requirements: str = ""
    python: str = "python3"
    address: str = ""
    port: int = 46443
    sans: tuple[str, ...] = ()
    tls_cert: str = ""
    tls_key: str = ""
    memory_max: str = "6G"
    people: tuple[Person, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    infrastructure: Mapping[str, str] = field(default_factory=dict, repr=False)
    examples: Mapping[str, str] = field(default_factory=dict)
    local_slurm: bool = False
    needs_key: bool = False
    policy: str = ""
    policy_settings: str = ""
    policy_digest: str = ""
    installed: tuple[str, ...] = ()
    nginx_was: bool = True

    @property
    def environment(self) -> str:
        """Return the name of the environment for these inputs; another pin or policy gives another one."""
        digest = hashlib.sha256("\0".join((self.requirements, self.policy_digest)).encode()).hexdigest()[:12]
        return f"{self.version}-{digest}"

    @property
    def endpoint(self) -> str:
        """Return the address that clients use."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"https://{host}:{self.port}"


@dataclass(frozen=True)
class Home:
    """A user's home as seen by that user: is it there, the client's configuration, and whether it is closed to others.

    ``token`` is the SHA-256 of the token in the configuration, "" for none.
    """

    there: bool = False
    config: str | None = field(default=None, repr=False)
    closed: bool = False
    token: str = ""
    endpoint: str = ""


@dataclass(frozen=True)
class Made:
    """What the role made for somebody: the token's number on the server, its SHA-256, and whether it was locked.

    ``accounts`` are the numbers by which the server knows who launches: that of the account, and of the token.
    """

    token: str = ""
    digest: str = ""
    locked: bool = False
    accounts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Account:
    """An account on the server: its number, its role, and for a service account its token's number."""

    number: str
    role: str
    token: str = ""


@dataclass(frozen=True)
class Observed:
    """The host as it is.

    ``accounts`` and ``tokens`` are the server's, None while it doesn't answer. ``environments`` are whole ones,
    ``current`` the one in use; ``failed`` were tried. ``health`` is what ``/api/health`` says. ``listening`` are ports
    with a user who has them. ``certificate`` says that the server's certificate is ours, for the wanted names, and has
    time left; ``admin_works`` whether the admin's password does, None while nobody could be asked; ``guarded`` that
    the guard's rules are in place.
    """

    files: Mapping[str, FileState | None] = field(default_factory=dict)
    written: Mapping[str, float] = field(default_factory=dict)
    users: frozenset[str] = frozenset()
    python: tuple[int, ...] = ()
    memory_mib: int = 0
    environments: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    current: str = ""
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    has_database: bool = False
    accounts: Mapping[str, Account] | None = None
    tokens: Mapping[str, Account] | None = None
    made: Mapping[str, Made] = field(default_factory=dict)
    homes: Mapping[str, Home] = field(default_factory=dict)
    listening: Mapping[int, str] = field(default_factory=dict)
    certificate: bool = False
    key: str = ""
    admin_works: bool | None = None
    opt: bool = False
    home: bool = False
    guarded: bool = False


# --- the plan --------------------------------------------------------------------------------------------------------


def split_sources(requirements: str) -> tuple[str, str]:
    """Return the requirements that come as wheels, and those of :data:`SOURCES`, which come as source alone."""
    entries = re.split(r"^(?=[\w.-]+(?:\[[^\]]*\])?==)", requirements, flags=re.MULTILINE)
    source = [entry for entry in entries if entry.startswith(SOURCES)]
    return "".join(entry for entry in entries if entry not in source), "".join(source)


def problems(params: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong in the role's variables (without prefix), as far as it can be told without the host."""
    names: dict[str, int] = {}
    for place, user in enumerate(params.get("users") or ()):
        name, role = str(user.get("name", "")), str(user.get("role") or "user")
        where: tuple[str | int, ...] = (place,)
        if role not in (*ROLES, "none"):
            mend = f"use {', '.join(ROLES)}, or none for somebody who shall not use it"
            yield Problem("skypilot_users", role, "no such role", mend, (*where, "role"))
        if not UNIX_NAME.fullmatch(name) or name in (ADMIN, "root", USER):
            yield Problem("skypilot_users", name, "no name of a researcher", "use a Unix user's", (*where, "name"))
        if names.setdefault(name, place) != place:
            yield Problem("skypilot_users", name, "named twice", "keep one of them", (*where, "name"))
        given = str(user.get("password_hash") or "")
        if given and not HASH.fullmatch(given):
            what = "not the hash of a password; SkyPilot could not check it, and a password must not stand here"
            mend = "make one with `htpasswd -nbB NAME PASSWORD`, or leave it out and one is made on the host"
            yield Problem("skypilot_users", "(not shown)", what, mend, (*where, "password_hash"))
    for person in people_of(params.get("users") or (), params.get("lab_users") or ()):
        if person.name.endswith(CLI) and person.name[: -len(CLI)] in {
            other.name for other in people_of(params.get("users") or (), params.get("lab_users") or ())
        }:
            what = f"{CLI} is the ending of the accounts that the command uses"
            yield Problem("skypilot_users", person.name, what, "give this user the role none")
    yield from _infra_problems(params)
    port = params.get("port")
    if not isinstance(port, int) or not 1024 <= port <= 65535 or port in (PORT, QUEUE_PORT):
        mend = "use 46443, or another from 1024 to 65535"
        yield Problem("skypilot_port", str(port), f"not a port that the proxy can have ({PORT} is the server's)", mend)
    if bool(params.get("tls_cert")) != bool(params.get("tls_key")):
        mend = "give certificate and key, or neither, and the host makes its own"
        yield Problem("skypilot_tls_cert", "", "certificate and key belong together", mend)
    memory = re.fullmatch(r"(\d+)([MG])", str(params.get("memory_max") or ""))
    if not memory or int(memory[1]) * (1024 if memory[2] == "G" else 1) < 2048:
        mend = "write at least 2G, as in 6G"
        yield Problem("skypilot_memory_max", str(params.get("memory_max")), "too little memory for the server", mend)
    for place, mount in enumerate(params.get("mounts") or ()):
        path = str(mount.get("path", ""))
        if not re.fullmatch(r"/[^\s:]+", path) or path in ("/etc", "/root", "/var", "/usr", "/boot", "/proc", "/sys"):
            mend = "name a directory of data, such as /data"
            yield Problem("skypilot_mounts", path, "not to be mounted into jobs", mend, (place, "path"))
        if "{user}" in path and params.get("policy") == "":
            mend = "leave skypilot_admin_policy as it is, or name the folder that has people's"
            yield Problem("skypilot_mounts", path, "nobody says whose it is without a policy", mend, (place, "path"))


def _infra_problems(params: Mapping[str, Any]) -> Iterator[Problem]:
    infra = params.get("infra") or {}
    key = "skypilot_infra"
    for kind, check in (("kubernetes", CONTEXT), ("slurm", UNIX_NAME)):
        seen: set[str] = set()
        for place, one in enumerate(infra.get(kind) or ()):
            name = str(one.get("name", ""))
            where = (kind, place, "name")
            if not check.fullmatch(name):
                mend = "use lower-case letters, digits and hyphens; ssh- is what SkyPilot calls its own pools"
                yield Problem(key, name, "no name for it", mend, where)
            if name in seen:
                yield Problem(key, name, "named twice", "keep one of them", where)
            seen.add(name)
    for place, one in enumerate(infra.get("slurm") or ()):
        time = str(one.get("time") or "24:00:00")
        if not re.fullmatch(r"(\d+-)?\d{1,3}(:\d{2}){0,2}", time):
            yield Problem(key, time, "no time limit of Slurm", 'write it as "8:00:00"', ("slurm", place, "time"))
    if infra.get("ssh_pools") and not params.get("ssh_pools_accept"):
        what = (
            "SkyPilot would install an unpinned k3s with a token that everybody knows on these machines, change "
            "their sshd, and on the way back remove /etc/rancher, /var/lib/kubelet and ~/.kube there"
        )
        mend = "use a kubernetes entry, or set skypilot_ssh_pools_accept: true"
        yield Problem(key, "", what, mend, ("ssh_pools",))
    for name, pool in (infra.get("ssh_pools") or {}).items():
        if not isinstance(pool, Mapping) or not pool.get("hosts"):
            yield Problem(key, "", "a pool without hosts", "list its hosts", ("ssh_pools", str(name)))
        elif unknown := sorted(set(pool) - {"hosts", "user", "identity_file", "password"}):
            what = "no such key of a pool; SkyPilot would pass over it"
            yield Problem(key, unknown[0], what, "use hosts, user, identity_file", ("ssh_pools", str(name)))
        elif pool.get("password"):
            mend = "let the user run sudo without one on the nodes, which SkyPilot needs anyway"
            yield Problem(key, "(not shown)", "a password in plain text", mend, ("ssh_pools", str(name), "password"))
    for place, cloud in enumerate(infra.get("clouds") or ()):
        name = str(cloud.get("name", ""))
        if name not in CLOUDS:
            yield Problem(key, name, "no such cloud", f"use one of {', '.join(CLOUDS)}", ("clouds", place, "name"))
        if not any(str(text).strip() for text in (cloud.get("files") or {}).values()):
            mend = "add files, such as {.aws/credentials: TEXT}, with the text in a vault"
            yield Problem(key, name, "a cloud without credentials", mend, ("clouds", place, "files"))
        for path in cloud.get("files") or {}:
            if not re.fullmatch(r"\.[\w-]+(/[\w.-]+)*", str(path)) or str(path).startswith((".sky", ".ssh", ".kube")):
                mend = "write it as .aws/credentials, below the server's home"
                yield Problem(key, str(path), "no path of credentials", mend, ("clouds", place, "files"))


def wanted_files(wanted: Wanted) -> dict[str, FileState]:
    """Return the role's files that are known beforehand, by path, in the order in which they are written."""
    trust = TRUST[wanted.family]
    files = {
        GUARD: FileState(guard_text(PORT, QUEUE_PORT, USER, PROXY_USER)),
        GUARD_UNIT: FileState(guard_unit()),
        SERVER_UNIT: FileState(server_unit(wanted.memory_max)),
        NGINX: FileState(nginx_text(wanted.port, PORT)),
        PROXY_UNIT: FileState(proxy_unit()),
        # the server can't write to it, so that its dashboard is no second owner
        CONFIG: FileState(config_text(wanted.config), "0440", USER, USER),
        WRAPPER: FileState(wrapper_text(trust[2]), "0755"),
    }
    for path, text in wanted.infrastructure.items():
        files[path] = FileState(text, "0600", USER, USER)
    if wanted.policy:
        files[POLICY_SETTINGS] = FileState(wanted.policy_settings, "0640", "root", USER)
        # without it, what a client's own configuration says goes over the server's, the policy's name included
        files[PLUGINS] = FileState(config_text({"plugins": [{"class": PLUGIN}]}), "0440", USER, USER)
    for path, text in wanted.examples.items():
        files[path] = FileState(text)
    if wanted.local_slurm:
        files[SUDOERS] = FileState(sudoers_text(wanted.people), "0440")
    return files


def wrapper_text(bundle: str) -> str:
    """Return the command for everybody: the server's own version, which trusts the lab's certificate."""
    return f"""#!/bin/sh
# Written by labrack: SkyPilot's command, of the same version as the lab's server.
export SKYPILOT_DISABLE_USAGE_COLLECTION=1
export REQUESTS_CA_BUNDLE="${{REQUESTS_CA_BUNDLE:-{bundle}}}" SSL_CERT_FILE="${{SSL_CERT_FILE:-{bundle}}}"
exec {CURRENT}/bin/sky "$@"
"""


def owner(path: str) -> str:
    """Return the user whose own folder a path is in, "" for root's."""
    homes = {HOME: USER, SUBMIT_HOME: SUBMIT_USER}
    return next((name for home, name in homes.items() if path.startswith(f"{home}/")), "")


def is_secret(path: str) -> bool:
    """Return whether a file of the role holds a secret."""
    return path in (KUBECONFIG, POOLS, CA_KEY, CERT_KEY, ADMIN_PASSWORD, KEY, PEOPLE) or (
        path.startswith(f"{HOME}/.") and path not in (CONFIG, SLURM_CONFIG, PLUGINS)
    )


def check_host(state: Observed, wanted: Wanted) -> None:
    """Raise SkypilotError for what keeps this host from being the server, before anything is changed."""
    if not state.python:
        raise SkypilotError(f"skypilot_python {wanted.python} does not run. Mend: install it, with venv")
    if not OLDEST_PYTHON <= state.python[:2] <= NEWEST_PYTHON:
        found = ".".join(map(str, state.python))
        raise SkypilotError(
            f"skypilot_python {wanted.python} is {found}, and SkyPilot {wanted.version} runs with 3.10 to 3.13. Mend: "
            "install one of these with venv, and name it in skypilot_python"
        )
    if state.memory_mib and state.memory_mib < LEAST_MEMORY_MIB:
        raise SkypilotError(
            f"this host has {state.memory_mib} MiB of memory: too little for the server, which wants "
            f"{LEAST_MEMORY_MIB} MiB. Mend: put it on another host"
        )
    ours = {"root", USER, PROXY_USER}
    for port in (PORT, QUEUE_PORT, wanted.port):
        who = state.listening.get(port, "")
        own = state.services.get(PROXY if port == wanted.port else SERVER, ServiceState())
        if who and (who not in ours or (who == "root" and not own.active)):
            mend = (
                "set skypilot_port to another" if port == wanted.port else f"end {who}'s program, SkyPilot's is fixed"
            )
            raise SkypilotError(f"port {port} is taken by a program of {who}. Mend: {mend}; see ss -ltnp")
    if wanted.environment in state.failed and state.current != wanted.environment:
        raise SkypilotError(
            f"SkyPilot {wanted.version} was tried before ({OPT}/{wanted.environment}) and did not come up, so "
            f"{state.current or 'none'} went on. See journalctl -u skypilot. To try it again, remove that directory"
        )
    if state.current and _numbers(wanted.version) < _numbers(state.current.rpartition("-")[0]):
        raise SkypilotError(
            f"SkyPilot {state.current.rpartition('-')[0]} is installed and {wanted.version} is wanted: its database "
            f"does not go back. Mend: pin the newer one, or restore {BACKUPS} by hand"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def plan(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan the host's way to ``wanted``, in the order in which it can be gone; SkypilotError where there is none."""
    if not wanted.present:
        return _plan_absent(state, wanted)
    check_host(state, wanted)
    changes: list[Change] = []
    users = [USER, PROXY_USER] + ([SUBMIT_USER] if wanted.local_slurm else [])
    for name in users:
        managed.note("user", name, among=[])
        if name not in state.users:
            changes.append(Change(f"user {name}", "created, without a password", step=("user", name)))
    name = wanted.environment
    if name not in state.environments:
        what = f"SkyPilot {wanted.version} installed, its bytecode compiled"
        changes.append(Change(f"environment {OPT}/{name}", what, step=("venv", name)))
    if wanted.needs_key and not state.key:
        changes.append(Change(f"key {KEY}", "made", step=("key",)))
    if wanted.local_slurm:
        line = f'restrict,port-forwarding,pty,from="127.0.0.1,::1" {state.key or "(the key that is made)"}\n'
        file = FileState(line, "0600", SUBMIT_USER, SUBMIT_USER)
        changes += plan_file(AUTHORIZED, state.files.get(AUTHORIZED), file)
    # the guard is up before the server is
    files = wanted_files(wanted)
    off: dict[str, list[Change]] = {}
    restarting = (CONFIG, SERVER_UNIT, *wanted.infrastructure, *((PLUGINS,) if wanted.policy else ()))
    for path, file in files.items():
        hard = "restart" if path in (*restarting, NGINX, PROXY_UNIT) else "none"
        off[path] = plan_file(path, state.files.get(path), file, hard, secret=is_secret(path))
        changes += off[path]
    tls = _plan_tls(state, wanted)
    changes += tls
    changes += _plan_guard(state, bool(off[GUARD]), bool(off[GUARD_UNIT]))
    changes += _plan_server(state, wanted, any(off[path] for path in restarting))
    changes += _plan_proxy(state, wanted, bool(off[NGINX] or off[PROXY_UNIT] or tls))
    changes += plan_people(state, wanted)
    return changes + plan_file(RECORD, state.files.get(RECORD), record_file(state, wanted))


def _unit(unit: str, state: ServiceState, why: str = "") -> list[Change]:
    """Plan that a unit of this role is enabled and runs, also one whose file is not there yet."""
    note_unit(unit, state)
    changes = []
    if not state.enabled:
        changes.append(Change(f"service {unit}", "enabled at boot", step=("enable", unit)))
    if not state.active:
        changes.append(Change(f"service {unit}", "started", "restart", step=("restart", unit)))
    elif why:
        changes.append(Change(f"service {unit}", f"restarted: {why}", "restart", step=("restart", unit)))
    return changes


def _plan_guard(state: Observed, rules: bool, unit: bool) -> list[Change]:
    guard = state.services.get(GUARD_SERVICE, ServiceState())
    changes = _unit(GUARD_SERVICE, guard, "its unit changed" if unit else "")
    if guard.active and not unit and (rules or not state.guarded):
        # new rules take the place of the old at once; a restart would leave a moment without
        what = "its rules changed" if rules else "its rules were gone"
        changes.append(Change(f"service {GUARD_SERVICE}", f"reloaded: {what}", step=("reload", GUARD_SERVICE)))
    return changes


def _plan_tls(state: Observed, wanted: Wanted) -> list[Change]:
    trust = TRUST[wanted.family][0]
    if wanted.tls_cert:
        changes = []
        for source, path, mode in ((wanted.tls_cert, CERT, "0644"), (wanted.tls_key, CERT_KEY, "0640")):
            original = state.files.get(source)
            if original is None:
                raise SkypilotError(
                    f"skypilot_tls_cert or skypilot_tls_key is {source}, and there is no such file on the host. Mend: "
                    "put it there, or correct the path"
                )
            group = PROXY_USER if path == CERT_KEY else "root"
            copy = FileState(original.text, mode, "root", group)
            changes += plan_file(path, state.files.get(path), copy, "restart", secret=path == CERT_KEY)
        return changes
    if state.certificate:
        return []
    changes = []
    if state.files.get(CA) is None or state.files.get(CA_KEY) is None:
        changes.append(Change(f"authority {CA}", "made on this host (key not shown)", step=("ca",)))
    if changes or (state.files.get(trust) or FileState("")).text != (state.files.get(CA) or FileState("-")).text:
        changes.append(Change(f"file {trust}", "the authority is trusted on this host", step=("trust",)))
    what = f"made for {', '.join(wanted.sans)} (key not shown)"
    return [*changes, Change(f"certificate {CERT}", what, "restart", step=("cert",))]


def _plan_server(state: Observed, wanted: Wanted, configured: bool) -> list[Change]:
    service = state.services.get(SERVER, ServiceState())
    if state.current != wanted.environment:
        before = state.current.rpartition("-")[0]
        if before:
            what = f"{before} → {wanted.version}, its database copied first, back again if it does not come up"
            if before == wanted.version:
                what = "another environment of the same version, back again if it does not come up"
            return [
                *([] if service.enabled else [Change(f"service {SERVER}", "enabled at boot", step=("enable", SERVER))]),
                Change(f"service {SERVER}", what, "restart", step=("upgrade", wanted.environment)),
            ]
        return [
            Change(f"link {CURRENT}", f"→ {wanted.environment}", step=("switch", wanted.environment)),
            *_unit(SERVER, service, "another environment"),
        ]
    newest = max((state.written.get(path, 0.0) for path in (CONFIG, SERVER_UNIT, *wanted.infrastructure)), default=0.0)
    health = state.health
    why = "its configuration changed" if configured or newest > service.since > 0 else ""
    if not why and health and health.get("version") != health.get("version_on_disk"):
        why = f"it is {health.get('version')}, and {health.get('version_on_disk')} lies on the disk"
    if not why and service.active and health.get("status") != "healthy":
        why = "it does not answer"
    return _unit(SERVER, service, why)


def _plan_proxy(state: Observed, wanted: Wanted, configured: bool) -> list[Change]:
    service = state.services.get(PROXY, ServiceState())
    newest = max(state.written.get(path, 0.0) for path in (NGINX, PROXY_UNIT, CERT, CERT_KEY))
    why = "its configuration changed" if configured or newest > service.since > 0 else ""
    changes = _unit(PROXY, service, why)
    if not wanted.nginx_was and state.services.get("nginx", ServiceState()).enabled:
        # the package's own server, which this role brought along
        changes.append(Change("service nginx", "not started at boot: nobody asked for it", step=("disable", "nginx")))
    return changes


def plan_people(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan accounts, tokens, and what lies in homes; those that others made on the server are left alone."""
    fresh = state.accounts is None and not state.has_database
    if state.accounts is None and not fresh:
        # a server that is silent is asked once it runs
        return []
    accounts, tokens = state.accounts or {}, state.tokens or {}
    changes = []
    if state.files.get(ADMIN_PASSWORD) is None or state.admin_works is False:
        changes.append(Change(f"account {ADMIN}", f"its password is in {ADMIN_PASSWORD} (not shown)", step=("admin",)))
    names = {person.name for person in wanted.people}
    for person in wanted.people:
        account = accounts.get(person.name)
        if account is None:
            changes.append(Change(f"account {person.name}", f"created as {person.role}", step=("add", person.name)))
        elif account.role != person.role:
            what = f"{account.role or 'no role'} → {person.role}"
            changes.append(Change(f"account {person.name}", what, step=("role", person.name)))
        cli = person.name + CLI
        token, made, home = tokens.get(cli), state.made.get(person.name, Made()), state.homes.get(person.name, Home())
        if token is not None and token.role != person.role:
            what = f"{token.role or 'no role'} → {person.role}"
            changes.append(Change(f"account {cli}", what, step=("token-role", person.name)))
        stale = token is None or made.token != token.token or not made.digest or home.token != made.digest
        numbered = person.name not in state.made or made.accounts == numbers_of(account, token)
        if account and not numbered and not (home.there and stale):
            changes.append(Change(f"account {person.name}", "its number is remembered", step=("note", person.name)))
        if not home.there:
            continue
        if stale:
            what = "a token in the home (not shown)"
            changes.append(Change(f"login of {person.name}", what, step=("token", person.name)))
        elif home.endpoint != wanted.endpoint or not home.closed:
            changes.append(Change(f"login of {person.name}", "at the lab's server", step=("home", person.name)))
    for name, made in sorted(state.made.items()):
        there = name in accounts or name + CLI in tokens
        if name not in names and there and not made.locked:
            changes.append(Change(f"account {name}", "removed, no longer in the inventory", step=("drop", name)))
    return changes


def numbers_of(*accounts: Account | None) -> tuple[str, ...]:
    """Return the numbers of those of the accounts that there are."""
    return tuple(account.number for account in accounts if account)


def record_file(state: Observed, wanted: Wanted) -> FileState:
    """Return the file that remembers which packages the role brought, and whether nginx was here before."""
    found = state.files.get(RECORD)
    try:
        before = json.loads(found.text) if found else {}
        packages = sorted({*(str(name) for name in before.get("packages", ())), *wanted.installed})
    except (ValueError, AttributeError, TypeError):
        raise SkypilotError(f"{RECORD} is not what labrack wrote. Mend: remove it and run again") from None
    return FileState(json.dumps({"packages": packages}) + "\n", "0600")


def recorded(state: Observed) -> list[str]:
    """Return the packages that the role brought, of those nobody else needs."""
    file = record_file(state, Wanted())
    return [str(name) for name in json.loads(file.text)["packages"]]


def read_people(text: str | None) -> dict[str, Made]:
    """Return what was made for whom; SkypilotError for a damaged file."""
    try:
        return {
            str(name): Made(
                str(entry["token"]),
                str(entry["digest"]),
                bool(entry["locked"]),
                tuple(str(number) for number in entry.get("accounts", ())),
            )
            for name, entry in json.loads(text or "{}").items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise SkypilotError(f"{PEOPLE} is not what labrack wrote. Mend: remove it; new tokens are made then") from None


def people_text(made: Mapping[str, Made]) -> str:
    """Return the text of the file of what was made for whom."""
    document = {
        name: {"token": one.token, "digest": one.digest, "locked": one.locked, "accounts": list(one.accounts)}
        for name, one in sorted(made.items())
    }
    return json.dumps(document, indent=2) + "\n"


def _plan_absent(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan the way back. The server's home with its database stays, unless ``purge`` says otherwise."""
    changes: list[Change] = []
    for name in sorted(state.made):
        if state.homes.get(name, Home()).endpoint:
            changes.append(Change(f"login of {name}", "taken out of the home", step=("logout", name)))
    for unit in (PROXY, SERVER, GUARD_SERVICE):
        service = state.services.get(unit, ServiceState())
        if service.active or service.enabled:
            changes.append(Change(f"service {unit}", "stopped and disabled", "restart", step=("disable", unit)))
    fixed = (GUARD, GUARD_UNIT, SERVER_UNIT, NGINX, PROXY_UNIT, CONFIG, WRAPPER, POLICY_SETTINGS, SUDOERS)
    trust = TRUST[wanted.family][0]
    own = (trust, CA, CA_KEY, CERT, CERT_KEY, ADMIN_PASSWORD, PEOPLE)
    paths = [*fixed, *own, KUBECONFIG, SLURM_CONFIG, POOLS, PLUGINS, *wanted.infrastructure, *wanted.examples]
    for path in dict.fromkeys(paths):
        changes += plan_file(path, state.files.get(path), None, secret=is_secret(path))
    if state.opt:
        changes.append(Change(f"environments {OPT}", "removed", step=("rmtree", OPT)))
    if wanted.purge and state.home:
        changes.append(Change(f"directory {HOME}", "removed, with the database", step=("rmtree", HOME)))
    for name in (PROXY_USER, SUBMIT_USER, *((USER,) if wanted.purge else ())):
        if name in state.users:
            changes.append(Change(f"user {name}", "removed", step=("userdel", name)))
    return changes + plan_file(RECORD, state.files.get(RECORD), None)
