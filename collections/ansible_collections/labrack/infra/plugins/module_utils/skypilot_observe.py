# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a SkyPilot server: its environments, ports, accounts, and what is in its users' homes.

Standard library only, no Ansible import. The server is asked by loopback, as root: the guard lets nobody else do so.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import http.client
import json
import os
import pwd
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import skypilot_config as config
from ansible_collections.labrack.infra.plugins.module_utils import skypilot_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils import sockets_observe
from ansible_collections.labrack.infra.plugins.module_utils.node_io import observe_file, read_text, run
from ansible_collections.labrack.infra.plugins.module_utils.node_observe import memory_mib
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_config import SkypilotError
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_plan import (
    Account,
    Home,
    Observed,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import observe_services

#: Seconds for one answer of the server.
TIMEOUT = 30.0
#: So often a server that has too much to do is asked again.
TRIES = 5
CLIENT = ".sky/config.yaml"
#: A client's configuration is small; more than this is not read.
MOST = 1 << 20


class Refused(SkypilotError):
    """What the server answers to what it does not do; ``status`` is HTTP's, 0 for no answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def ask(method: str, path: str, body: Any = None, password: str = "", timeout: float = TIMEOUT) -> Any:
    """Ask the server, as its admin with ``password``, or as this host itself without; Refused for no good answer."""
    headers = {"Content-Type": "application/json"}
    if password:
        pair = base64.b64encode(f"{config.ADMIN}:{password}".encode()).decode()
        # without the second, loopback needs no password, and then has no name either
        headers.update({"Authorization": f"Basic {pair}", "X-Forwarded-For": "127.0.0.1"})
    for attempt in range(TRIES):
        connection = http.client.HTTPConnection("127.0.0.1", config.PORT, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise Refused(0, f"the server does not answer {method} {path}: {error}") from None
        finally:
            connection.close()
        if answer.status != 503 or attempt == TRIES - 1:
            break
        time.sleep(1 + attempt)
    if answer.status >= 300:
        # what was sent may hold a password, what comes back does not
        raise Refused(answer.status, f"the server answers {answer.status} to {method} {path}: {text[:200]}")
    try:
        return json.loads(text) if text else None
    except ValueError:
        raise Refused(0, f"the server's answer to {method} {path} is no JSON") from None


@contextlib.contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Do file operations as a user: a link that the user has laid leads nowhere that the user may not go."""
    entry = pwd.getpwnam(name)
    groups, gid, uid = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups(os.getgrouplist(name, entry.pw_gid))
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


@contextlib.contextmanager
def owning(path: str) -> Iterator[None]:
    """Do file operations on a path as whom its folder belongs to: root follows no link that a service has laid."""
    name = planner.owner(path)
    if name and user_exists(name):
        with acting_as(name):
            yield
    else:
        yield


def observe_home(name: str) -> Home:
    """Return what a user has in the home; nothing for one without."""
    try:
        entry = pwd.getpwnam(name)
        with acting_as(name):
            if not os.path.isdir(entry.pw_dir) or not os.access(entry.pw_dir, os.W_OK):
                return Home()
            file = observe_file(os.path.join(entry.pw_dir, CLIENT), MOST)
    except (KeyError, OSError):
        return Home()
    endpoint, token = config.server_in(file.text if file else None)
    closed = file is not None and file.mode == "0600" and file.owner == name
    return Home(True, file.text if file else None, closed, config.digest(token), endpoint)


def write_home(name: str, files: Mapping[str, str]) -> None:
    """Write files into a user's home, by name below ``.sky``, as that user and for that user alone."""
    entry = pwd.getpwnam(name)
    folder = os.path.join(entry.pw_dir, ".sky")
    with acting_as(name):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for file, text in files.items():
            path = os.path.join(folder, file)
            draft = f"{path}.labrack"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.rename(draft, path)


def health() -> dict[str, Any]:
    """Return what the server says of its health, {} while it doesn't answer."""
    try:
        found = ask("GET", "/api/health", timeout=10)
    except Refused:
        return {}
    return found if isinstance(found, dict) else {}


def accounts() -> dict[str, Account] | None:
    """Return the server's accounts by name, without those of its own and of services; None while it doesn't answer."""
    try:
        return {
            str(user["name"]): Account(str(user["id"]), str(user["role"]))
            for user in ask("GET", "/users")
            if user.get("user_type") != "system"
        }
    except (Refused, KeyError, TypeError):
        return None


def tokens(password: str) -> dict[str, Account] | None:
    """Return the service accounts by name; None where the admin's password does not work."""
    try:
        return {
            str(one["token_name"]): Account(
                str(one["service_account_user_id"]),
                str((one.get("service_account_roles") or [""])[0]),
                str(one["token_id"]),
            )
            for one in ask("GET", "/users/service-account-tokens", password=password)
        }
    except Refused as error:
        if error.status in (401, 403):
            return None
        raise


def environments() -> tuple[frozenset[str], frozenset[str], str]:
    """Return the names of whole environments, of those that were tried in vain, and of the one in use."""
    whole = {os.path.basename(os.path.dirname(path)) for path in glob.glob(f"{config.OPT}/*/{config.COMPLETE}")}
    tried = {os.path.basename(os.path.dirname(path)) for path in glob.glob(f"{config.OPT}/*/{config.FAILED}")}
    current = os.path.basename(os.path.realpath(config.CURRENT)) if os.path.islink(config.CURRENT) else ""
    return frozenset(whole - {"current"}), frozenset(tried - {"current"}), current if current in whole else ""


def certificate_holds(wanted: Wanted) -> bool:
    """Return whether the server's certificate is the host's own, for the wanted names, for a month to come."""
    if wanted.tls_cert:
        return True
    checked = run(["openssl", "verify", "-x509_strict", "-CAfile", config.CA, config.CERT])
    ends = run(["openssl", "x509", "-in", config.CERT, "-noout", "-checkend", str(30 * 86400)])
    shown = run(["openssl", "x509", "-in", config.CERT, "-noout", "-ext", "subjectAltName"])
    names = {part.strip().partition(":")[2] for part in shown.out.replace("\n", ",").split(",") if ":" in part}
    trust = config.TRUST[wanted.family][0]
    authority = read_text(config.CA)
    whole = authority is not None and read_text(trust) == authority and os.path.exists(config.CA_KEY)
    key = os.path.exists(config.CERT_KEY) and stat.S_IMODE(os.stat(config.CERT_KEY).st_mode) == 0o640
    return not (checked.rc or ends.rc) and whole and key and {_plain(one) for one in wanted.sans} <= names


def _plain(name: str) -> str:
    """A name as openssl prints it: an IPv6 address in full, in capitals."""
    if ":" not in name:
        return name
    import ipaddress

    return ":".join(format(int(part, 16), "X") for part in ipaddress.ip_address(name).exploded.split(":"))


def python_version(program: str) -> tuple[int, ...]:
    """Return an interpreter's version, () for one that does not run."""
    done = run([program, "-c", "import sys; print(*sys.version_info[:3])"], timeout=20)
    return tuple(int(part) for part in done.out.split()) if done.rc == 0 else ()


def user_exists(name: str) -> bool:
    """Return whether this host has a user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def look(wanted: Wanted, sources: Iterable[str] = ()) -> Observed:
    """Read the host; ``sources`` are further files that the plan needs."""
    own = [
        *planner.wanted_files(wanted),
        *(config.CA, config.CA_KEY, config.CERT, config.CERT_KEY, config.ADMIN_PASSWORD, config.AUTHORIZED),
        *(config.PEOPLE, config.RECORD, config.TRUST[wanted.family][0], config.KUBECONFIG, config.SLURM_CONFIG),
        *(
            config.POOLS,
            config.PLUGINS,
            config.POLICY_SETTINGS,
            config.SUDOERS,
            wanted.tls_cert,
            wanted.tls_key,
            *sources,
        ),
    ]
    paths = [path for path in dict.fromkeys(own) if path]
    files, written = {}, {}
    for path in paths:
        with owning(path):
            files[path] = observe_file(path)
            if files[path] is not None:
                written[path] = os.stat(path).st_mtime
    units = [config.SERVER, config.PROXY, config.GUARD_SERVICE, "nginx"]
    services = observe_services(units)
    whole, tried, current = environments()
    people = files[config.PEOPLE]
    made = planner.read_people(people.text if people else None)
    found_health: dict[str, Any] = {}
    found_accounts = found_tokens = None
    works: bool | None = None
    password = files[config.ADMIN_PASSWORD]
    if services[config.SERVER].active and wanted.present:
        found_health = health()
        found_accounts = accounts() if found_health else None
        if found_accounts is not None:
            found_tokens = tokens(password.text.strip()) if password and config.ADMIN in found_accounts else None
            works = found_tokens is not None
    users = (config.USER, config.PROXY_USER, config.SUBMIT_USER)
    names = {*made, *(person.name for person in wanted.people)}
    key = (read_text(f"{config.KEY}.pub") or "").strip() if os.path.exists(config.KEY) else ""
    table = run(["nft", "list", "table", "inet", "labrack_skypilot"])
    return Observed(
        files=files,
        written=written,
        users=frozenset(name for name in users if user_exists(name)),
        python=python_version(wanted.python) if wanted.present else (),
        memory_mib=memory_mib(),
        environments=whole,
        failed=tried,
        current=current,
        services=services,
        health=found_health,
        has_database=os.path.exists(f"{config.HOME}/.sky/state.db"),
        accounts=found_accounts,
        tokens=found_tokens,
        made=made,
        homes={name: observe_home(name) for name in sorted(names)},
        listening=sockets_observe.owners(),
        certificate=certificate_holds(wanted) if wanted.present else False,
        key=key,
        admin_works=works,
        opt=os.path.isdir(config.OPT),
        home=os.path.isdir(config.HOME),
        guarded=table.rc == 0,
    )
