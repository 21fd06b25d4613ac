# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lab's SkyPilot server, the real one of PyPI, on one node; and a second Unix user who tries each hole.

The node reaches no package index; it gets SkyPilot's wheels as files, in the layout of an index.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from labrack.testnode import node, wheels
from labrack.testnode.docker import docker
from labrack.testnode.node import NodeSpec
from tests.mirror import k3s as releases
from tests.nodes.conftest import KEEP, LAB, SYSTEM, Sampler
from tests.nodes.harness import ROOT, Closet, Run, bring_up, until

DESK, OTHER = "desk", "node1"
CANARY = "canary-6Hn4Vt8Kd"
PINNED = (ROOT / "roles/skypilot/files/requirements.txt").read_text(encoding="utf-8")
#: The version before, and what it can't take newer: FastAPI and Starlette as they were then.
BEFORE = {
    "fastapi": "0.119.1 --hash=sha256:0b8c2a2cce853216e150e9bd4faaed88227f8eb37de21cb200771f491586a27f",
    "skypilot": "0.13.0 --hash=sha256:0bd0c59a649d59fa21f1093534318e6c2f50b30e10fb3f54f4d702acf2615fb7 "
    "--hash=sha256:30411fb3622140e61d386494dfaaeefaee737f76565a3838d72a31157571d96c",
    "starlette": "0.48.0 --hash=sha256:0764ca97b097582558ecb498132ed0c7d942f233f365b86ba37770e026510659",
}


def repinned(pins: dict[str, str]) -> str:
    """The role's requirements with other versions of some."""
    entries = re.split(r"^(?=[\w.-]+==)", PINNED, flags=re.MULTILINE)
    kept = [entry for entry in entries if entry.partition("==")[0] not in pins]
    return "".join(kept) + "".join(f"{name}=={pin}\n" for name, pin in pins.items())


#: What is left of it on a node, by its name; the test's own index is elsewhere.
TRACES = (
    "find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /srv -o -path '/var/log/*' \\) -prune -o "
    "-iname '*skypilot*' -print; ls -d /opt/* /etc/labrack /usr/local/bin/sky 2>/dev/null; "
    "getent passwd skypilot skypilot-proxy skypilot-submit; nft list tables | grep sky; true"
)
#: MiB of all processes of the server.
MEMORY = (
    "for file in $(grep -ls /skypilot.service /proc/[0-9]*/cgroup); do "
    "awk '/^Pss:/ {print $2}' ${file%cgroup}smaps_rollup; done 2>/dev/null "
    "| awk '{sum += $1} END {print int(sum / 1024)}'"
)
#: A machine with 256 GiB and 64 cores, as Python and psutil are told.
BIG = r"""
sed 's/^Mem\(Total\|Available\):.*/Mem\1: 268435456 kB/' /proc/meminfo >/run/meminfo
mkdir -p /run/many /run/systemd/system/skypilot.service.d
cat >/run/many/sitecustomize.py <<'E'
import os

sysconf = os.sysconf
os.sysconf = lambda name: 64 if str(name).startswith("SC_NPROCESSORS") else sysconf(name)
os.sched_getaffinity = lambda pid: set(range(64))
os.cpu_count = lambda: 64
E
cat >/run/systemd/system/skypilot.service.d/big.conf <<'E'
[Service]
BindReadOnlyPaths=/run/meminfo:/proc/meminfo
Environment=PYTHONPATH=/run/many
E
systemctl daemon-reload
"""
ASK = """
import base64, http.client, json, ssl, sys
host, port, method, path, auth, body, headers = json.load(sys.stdin)
made = {"Content-Type": "application/json", **headers}
if auth.startswith("sky_"):
    made["Authorization"] = "Bearer " + auth
elif auth:
    made["Authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
try:
    if port == 46443:
        link = http.client.HTTPSConnection(host, port, timeout=20, context=ssl.create_default_context())
    else:
        link = http.client.HTTPConnection(host, port, timeout=5)
    link.request(method, path, None if body is None else json.dumps(body), made)
    answer = link.getresponse()
    print(json.dumps([answer.status, answer.read().decode("utf-8", "replace")]))
except OSError as error:
    print(json.dumps([0, repr(error)]))
"""


@dataclass
class Desk:
    """The lab, its index and requirement files, and what its runs said."""

    closet: Closet
    folder: Path
    said: list[str] = field(default_factory=list)

    def root(self, command: str, check: bool = True) -> str:
        """Run a command as root on the server."""
        return self.closet.root(DESK, command, check)

    def play(self, *arguments: str, ok: bool = True, **variables: Any) -> Run:
        """Run the role's part of the playbook."""
        run = self.closet.play("labrack.infra.closet", "--tags", "skypilot", "--diff", *arguments, ok=ok, **variables)
        self.said.append(run.output)
        return run

    def changes(self, run: Run) -> list[str]:
        """What the role's module changed, or would change."""
        return run.task(DESK, "Converge the SkyPilot server").subjects

    def ask(
        self,
        who: str,
        method: str,
        path: str,
        auth: str = "",
        body: Any = None,
        host: str = "",
        port: int = 46443,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Ask the server as a Unix user; 0 for no answer at all."""
        wanted = json.dumps([host or self.address, port, method, path, auth, body, headers or {}])
        target, _at, where = who.partition("@")
        command = f"runuser -u {target} -- python3 -c {shlex.quote(ASK)} <<<{shlex.quote(wanted)}"
        status, text = json.loads(self.closet.root(where or DESK, command))
        return int(status), str(text)

    @property
    def address(self) -> str:
        """The server's address."""
        return self.closet.lab.node(DESK).address

    def accounts(self) -> dict[str, str]:
        """People's accounts on the server by name, with their roles."""
        found = json.loads(self.ask("root", "GET", "/users", host="127.0.0.1", port=46580)[1])
        return {one["name"]: one["role"] for one in found if one["user_type"] == "basic"}

    def secret(self, user: str, what: str) -> str:
        """A user's dashboard password as ``name:password``, or the token."""
        if what == "password":
            return f"{user}:" + self.root(f"cat ~{user}/.sky/dashboard-password").strip()
        found = re.search(r"sky_[\w.-]+", self.root(f"cat ~{user}/.sky/config.yaml"))
        assert found
        return found[0]

    def health(self) -> dict[str, Any]:
        """What the server says of itself."""
        found: dict[str, Any] = json.loads(self.ask("ada", "GET", "/api/health")[1])
        return found

    def sky(self, user: str, arguments: str) -> Any:
        """Run the command as a user who has logged in, and return what it prints as JSON."""
        done = self.closet.ssh.run(f"{user}@{DESK}", f"timeout 100 sky {arguments}", timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


def repacked(wheel: Path, folder: Path, version: str) -> tuple[Path, str]:
    """A wheel of another version whose server writes to its database and then ends, and its sum."""
    made = folder / wheel.name.replace("0.14.1", version)
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            text = source.read(name)
            if name.endswith(".dist-info/METADATA"):
                text = text.replace(b"\nVersion: 0.14.1", f"\nVersion: {version}".encode())
            if name == "sky/server/server.py":
                text = (
                    b"import os, sqlite3, sys\n"
                    b"link = sqlite3.connect(os.path.expanduser('~/.sky/state.db'))\n"
                    b"link.execute('delete from users')\nlink.commit()\nsys.exit('this version is broken')\n"
                )
            target.writestr(name.replace("skypilot-0.14.1.dist-info", f"skypilot-{version}.dist-info"), text)
    return made, hashlib.sha256(made.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def desk(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A node with people, and the wheels of three versions."""
    name = f"{LAB}-sky"
    state = ROOT / ".cache/labs" / name
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)
    folder = tmp_path_factory.mktemp("skypilot")
    inventory = folder / "inventory"
    (inventory / "group_vars").mkdir(parents=True)
    hosts: dict[str, Any] = {DESK: {}}
    groups = {"lab_head": {"hosts": hosts}, "skypilot": {"hosts": hosts}, "lab_workers": {"hosts": {OTHER: {}}}}
    (inventory / "groups.yml").write_text(yaml.safe_dump(groups))
    keys = "{{ test_keys }}"
    lab = {
        "lab_orchestrator": "none",
        "baseline_uv_version": "",
        "lab_users": [{"name": name, "uid": uid, "keys": keys} for name, uid in (("ada", 2001), ("ben", 2002))],
        "skypilot_users": [{"name": "ben", "role": "viewer"}],
        "skypilot_index_url": "file:///srv/simple",
        "skypilot_examples": "/srv/examples",
    }
    (inventory / "group_vars/all.yml").write_text(yaml.safe_dump(lab))
    closet = bring_up(name, [NodeSpec(DESK, SYSTEM), NodeSpec(OTHER, SYSTEM)], inventory, state)
    python = wheels.python_of(closet.lab.node(DESK))
    (folder / "old.txt").write_text(repinned(BEFORE))
    wheels.simple_index(folder, python, repinned(BEFORE))
    index = wheels.simple_index(folder, python, PINNED)
    broken, digest = repacked(index / "skypilot/skypilot-0.14.1-py3-none-any.whl", index / "skypilot", "0.14.2")
    with (index / "skypilot/index.html").open("a") as page:
        page.write(f'<a href="{broken.name}">{broken.name}</a>\n')
    (folder / "broken.txt").write_text(repinned({"skypilot": f"0.14.2 --hash=sha256:{digest}"}))
    closet.root(DESK, "rm -rf /srv/simple")
    docker("cp", str(index), f"{closet.lab.node(DESK).container}:/srv/simple")
    if not (KEEP and closet.root(DESK, "getent passwd ada", check=False)):
        closet.play("labrack.infra.closet", "--skip-tags", "skypilot")
    # a Unix user who is none of the lab's
    closet.root(DESK, "id mallory 2>/dev/null || useradd --create-home mallory")
    yield Desk(closet, folder)
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)


# --- before ---


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"skypilot_infra": {"kubernetes": [{"name": "lab", "kubeconfig": "/etc/kube.yaml", "context": "prod"}]}},
            "[0].context = prod (desk): /etc/kube.yaml has only default",
        ),
        (
            {"skypilot_infra": {"kubernetes": [{"name": "lab"}]}},
            "[0].kubeconfig = /etc/rancher/k3s/k3s.yaml (desk): there is no such file",
        ),
        ({"skypilot_users": [{"name": "ada", "password_hash": CANARY}]}, "not the hash of a password"),
        ({"skypilot_users": [{"name": "ada", "role": "boss"}]}, "boss"),
        ({"skypilot_infra": {"clouds": [{"name": "aws"}]}}, "a cloud without credentials"),
        ({"skypilot_infra": {"ssh_pools": {"pool": {"hosts": ["node1"]}}}}, "unpinned k3s"),
        ({"skypilot_port": 46999}, "skypilot_port = 46999 (desk): port 46999 is taken by a program of mallory"),
        ({"skypilot_python": "/bin/false"}, "/bin/false does not run"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_changes(desk: Desk, variables: dict[str, Any], words: str) -> None:
    context = {"name": "default", "context": {"cluster": "c", "user": "u"}}
    kube = {"contexts": [context], "clusters": [{"name": "c", "cluster": {}}], "users": [{"name": "u", "user": {}}]}
    desk.root(f"cat >/etc/kube.yaml <<'E'\n{yaml.safe_dump(kube, default_flow_style=False)}E")
    desk.root("ss -ltn | grep -q :46999 || systemd-run --uid=mallory python3 -m http.server 46999")
    until("mallory listens", lambda: desk.root("ss -ltn"), lambda seen: ":46999" in seen)
    before = desk.root(TRACES)
    run = desk.play(ok=False, **variables)
    assert run.rc != 0 and words in run.output, run.output[-3000:]
    # whatever the inventory is wrong about is known before the first role runs
    started = "Converge the SkyPilot server" in [task.name for task in run.tasks]
    assert started == ("skypilot_python" in variables)
    assert CANARY not in run.output
    assert desk.root(TRACES) == before


# --- the older version is installed, found as it is, and upgraded ---


def test_it_is_foretold_installed_and_found_as_it_is(desk: Desk) -> None:
    desk.root("apt-get -qq remove -y nginx nginx-common >/dev/null 2>&1; true")
    old = {"skypilot_requirements": str(desk.folder / "old.txt")}
    before = desk.root(TRACES)
    told = desk.play("--check", **old)
    assert desk.root(TRACES) == before
    with Sampler() as sampler:
        made = desk.play("-vvv", **old)
    # a node that is only looked at has no nginx yet, so that its unit is not known
    assert set(desk.changes(told)) <= set(desk.changes(made))
    assert set(desk.changes(made)) - set(desk.changes(told)) <= {"service nginx"}
    assert desk.play(**old).changed == {DESK: 0, OTHER: 0}
    assert desk.changes(desk.play("--check", **old)) == []
    assert desk.health()["version"] == "0.13.0"
    secrets = [desk.secret("ada", "token"), desk.secret("ada", "password")[4:]]
    secrets.append(desk.root("cat /etc/labrack/skypilot/admin-password").strip())
    for secret in secrets:
        assert secret not in made.output
        assert not [line for line in sampler.seen if secret.encode() in line]
    # what nobody asked for is not there
    assert ":80 " not in desk.root("ss -ltn") and "disabled" in desk.root("systemctl is-enabled nginx", check=False)


def test_an_upgrade_keeps_accounts_and_tokens(desk: Desk) -> None:
    token = desk.secret("ada", "token")
    told = desk.play("--check")
    made = desk.play()
    assert desk.changes(made) == desk.changes(told)
    assert "service skypilot" in desk.changes(made)
    seen = desk.health()
    assert (seen["version"], seen["version_on_disk"], seen["telemetry_enabled"]) == ("0.14.1", "0.14.1", False)
    assert desk.secret("ada", "token") == token
    assert desk.ask("ada", "GET", "/users/role", token)[0] == 200
    assert desk.play().changed == {DESK: 0, OTHER: 0}
    copies = desk.root("find /var/lib/skypilot/before-upgrade -name '*.db' -printf '%m %u %f\\n'").splitlines()
    assert "600 skypilot state.db" in copies


def test_a_version_that_does_not_come_up_is_switched_back_with_its_database(desk: Desk) -> None:
    broken = {"skypilot_requirements": str(desk.folder / "broken.txt")}
    users = desk.accounts()
    run = desk.play(ok=False, **broken)
    assert run.rc != 0 and "0.14.2 did not come up, so 0.14.1 and its database are back" in run.output
    assert desk.health()["version"] == "0.14.1"
    assert users and desk.accounts() == users
    # the timer of GitOps does not try it every quarter of an hour
    since = desk.closet.invocation(DESK, "skypilot")
    again = desk.play(ok=False, **broken)
    assert "was tried before" in again.output and desk.closet.invocation(DESK, "skypilot") == since
    desk.root("rm -rf /opt/skypilot/0.14.2-*")
    assert desk.play().changed == {DESK: 0, OTHER: 0}


# --- people ---


def test_everybody_is_logged_in_with_a_role(desk: Desk) -> None:
    assert desk.sky("ada", "status --all-users -o json") == []
    assert desk.sky("ada", "check -o json") == {"default": {}}
    roles = {
        user: json.loads(desk.ask(user, "GET", "/users/role", desk.secret(user, "token"))[1])["role"]
        for user in ("ada", "ben")
    }
    assert roles == {"ada": "user", "ben": "viewer"}
    assert desk.ask("ada", "GET", "/users/role", desk.secret("ada", "password"))[0] == 200
    modes = "stat --format='%a %U' ~ada/.sky/config.yaml ~ada/.sky/dashboard-password"
    assert desk.root(modes).splitlines() == ["600 ada"] * 2
    assert desk.root("ls /srv/examples").split() == ["cpu.yaml"]


def test_what_a_user_wrote_stays_and_a_lost_token_is_replaced(desk: Desk) -> None:
    desk.root("runuser -u ada -- sh -c 'echo \"jobs: {}\" >~/.sky/config.yaml'")
    run = desk.play()
    assert desk.changes(run) == ["login of ada"]
    text = desk.root("cat ~ada/.sky/config.yaml")
    assert yaml.safe_load(text)["jobs"] == {} and desk.sky("ada", "status -o json") == []
    # a link that somebody lays leads root nowhere
    desk.root("mv ~ada/.sky ~ada/kept && runuser -u ada -- ln -s /etc/labrack/skypilot ~ada/.sky")
    run = desk.play(ok=False)
    assert run.rc != 0 and not desk.root("ls /etc/labrack/skypilot/config.yaml", check=False)
    desk.root("rm ~ada/.sky && mv ~ada/kept ~ada/.sky && rm ~ada/.sky/config.yaml")
    desk.play()
    assert desk.sky("ada", "status -o json") == []


def test_who_leaves_loses_account_and_token(desk: Desk) -> None:
    token = desk.secret("ben", "token")
    with_guest = [{"name": "ben", "role": "none"}, {"name": "guest", "role": "admin"}]
    run = desk.play(skypilot_users=with_guest)
    # it has everybody's number
    policy = "file /etc/labrack/skypilot_policy.json"
    assert desk.changes(run) == ["account ben", "account guest", policy]
    assert desk.ask("ada", "GET", "/users/role", token)[0] == 401
    assert "endpoint" not in desk.root("cat ~ben/.sky/config.yaml")
    back = desk.play()
    assert set(desk.changes(back)) == {"account ben", "account guest", "login of ben", policy}
    assert desk.play().changed == {DESK: 0, OTHER: 0}


# --- the holes ---


def test_no_other_user_reaches_what_is_behind_the_proxy(desk: Desk) -> None:
    forged = {"X-Auth-Request-Email": "labrack", "X-Forwarded-For": "127.0.0.1"}
    for who in ("ada", "mallory", "www-data", f"root@{OTHER}"):
        for host in [desk.address] if "@" in who else ["127.0.0.1", "::1", "localhost", desk.address]:
            for port in (46580, 50011):
                for headers in ({}, forged):
                    assert desk.ask(who, "GET", "/users", host=host, port=port, headers=headers)[0] == 0, (
                        who,
                        host,
                        port,
                    )
    # the proxy's own user reaches the server, and not its queue; root does
    assert desk.ask("skypilot-proxy", "GET", "/api/health", host="127.0.0.1", port=46580)[0] == 200
    assert desk.ask("root", "GET", "/users", host="127.0.0.1", port=46580)[0] == 200
    # a server of one process has no queue there; who would start one is guarded all the same
    assert ":50011 " not in desk.root("ss -ltn")
    desk.root("systemd-run --unit=queue --uid=skypilot python3 -m http.server --bind 127.0.0.1 50011")
    until(
        "it is there", lambda: desk.ask("root", "GET", "/", host="127.0.0.1", port=50011)[0], lambda seen: seen == 200
    )
    for who in ("skypilot-proxy", "ada"):
        assert desk.ask(who, "GET", "/", host="127.0.0.1", port=50011)[0] == 0
    desk.root("systemctl stop queue")


def test_nobody_answers_in_the_servers_place(desk: Desk) -> None:
    """Mallory waits for the server to be down, listens on its port, and hopes for what the proxy sends there."""
    desk.root("systemctl stop skypilot")
    trap = (
        "import socket; s = socket.create_server(('127.0.0.1', 46580)); s.settimeout(15)\n"
        "c, _ = s.accept(); open('/tmp/caught', 'wb').write(c.recv(9999))"
    )
    desk.root(f"systemd-run --unit=trap --uid=mallory python3 -c {shlex.quote(trap)}")
    until("the trap is laid", lambda: desk.root("ss -ltn"), lambda seen: "127.0.0.1:46580" in seen)
    status, _text = desk.ask("ada", "GET", "/users/role", desk.secret("ada", "token"))
    assert status != 200 and not desk.root("cat /tmp/caught", check=False)
    desk.root("systemctl stop trap; systemctl start skypilot")
    until("it is back", lambda: desk.ask("ada", "GET", "/api/health")[0], lambda seen: seen == 200, 90)


def test_the_guard_comes_back(desk: Desk) -> None:
    # Docker's own rules, by which a node finds names
    desk.root("DEBIAN_FRONTEND=noninteractive apt-get install -qq -y iptables >/dev/null 2>&1")
    desk.root("iptables-save -t nat >/tmp/nat && nft flush ruleset")
    shown = "nft list table inet labrack_skypilot"
    until("the rules are back", lambda: desk.root(shown, check=False), lambda seen: "skuid" in seen, 10)
    desk.root("nft list ruleset | grep -q labrack_skypilot && systemctl reload-or-restart nftables")
    desk.root("iptables-restore /tmp/nat")
    until("the rules are back", lambda: desk.root(shown, check=False), lambda seen: "skuid" in seen, 10)
    assert desk.ask("mallory", "GET", "/users", host="127.0.0.1", port=46580)[0] == 0
    # no guard, no server
    desk.root("systemctl stop labrack-skypilot-guard")
    assert desk.root("systemctl is-active skypilot", check=False).strip() in ("inactive", "deactivating", "failed")
    assert desk.play().rc == 0 and desk.health()["status"] == "healthy"


@pytest.mark.parametrize("headers", [{}, {"X-Auth-Request-Email": "labrack", "X-Forwarded-For": "127.0.0.1"}])
def test_the_proxy_lets_nobody_name_himself(desk: Desk, headers: dict[str, str]) -> None:
    for path in ("/users", "/users/role", "/users/export", "/workspaces/config", "/ssh_node_pools"):
        assert desk.ask("mallory", "GET", path, headers=headers)[0] == 401, path
    wrong = desk.ask("mallory", "GET", "/users/role", "labrack:guess", headers=headers)
    assert wrong[0] == 401


@pytest.mark.parametrize("how", ["token", "password"])
def test_a_researcher_changes_no_machines_accounts_or_configuration(desk: Desk, how: str) -> None:
    ada = desk.secret("ada", how)
    user = {"username": "eve", "password": "x", "role": "admin"}
    pool = {"pool": {"hosts": ["10.9.9.9"]}}
    tries: list[tuple[str, str, Any]] = [
        ("POST", "/users/create", user),
        ("POST", "/users/import", {"csv_content": "username,password,role\neve,x,admin"}),
        ("GET", "/users/export", None),
        ("POST", "/users/delete", {"user_id": "x"}),
        ("POST", "/users/batch_update", {"user_ids": [], "role": "admin"}),
        ("POST", "/users/service-account-tokens", {"token_name": "ben", "expires_in_days": 1}),
        ("GET", "/workspaces/config", None),
        ("POST", "/workspaces/config", {"config": {}}),
        ("POST", "/workspaces/create", {"workspace_name": "w", "config": {}}),
        ("GET", "/ssh_node_pools", None),
        ("POST", "/ssh_node_pools", pool),
        ("POST", "/ssh_node_pools/keys", {}),
        ("POST", "/ssh_node_pools/pool/deploy", None),
        ("POST", "/ssh_node_pools/pool/down", None),
        ("DELETE", "/ssh_node_pools/pool", None),
        ("POST", "/debug/dump_create", {}),
        ("POST", "/local_up", {}),
    ]
    for method, path, body in tries:
        status, text = desk.ask("ada", method, path, ada, body)
        assert status == 403, (method, path, status, text)
    mine = json.loads(desk.ask("ada", "GET", "/users/role", ada)[1])["id"]
    promote = {"user_id": mine, "role": "admin"}
    assert desk.ask("ada", "POST", "/users/update", ada, promote)[0] == 403
    password = desk.root("cat /etc/labrack/skypilot/admin-password").strip()
    admin = f"labrack:{password}"
    names = {one["name"] for one in json.loads(desk.ask("ada", "GET", "/users", admin)[1])}
    assert "eve" not in names and {"ada", "ben", "labrack"} <= names
    assert json.loads(desk.ask("ada", "GET", "/ssh_node_pools", admin)[1]) == {}
    # not even an admin's dashboard is a second owner of the configuration
    before = desk.root("sha256sum /var/lib/skypilot/.sky/config.yaml")
    desk.ask("ada", "POST", "/workspaces/create", admin, {"workspace_name": "w", "config": {}})
    assert desk.root("sha256sum /var/lib/skypilot/.sky/config.yaml") == before


def test_files_and_processes_tell_nobody(desk: Desk) -> None:
    closed = [
        *("/var/lib/skypilot/.sky/config.yaml", "/var/lib/skypilot/.sky/state.db", "/etc/labrack/skypilot/server.key"),
        *(
            "/etc/labrack/skypilot/admin-password",
            "/etc/labrack/skypilot/ca.key",
            "/var/lib/labrack/skypilot/people.json",
        ),
        *("/home/ada/.sky/config.yaml", "/home/ada/.sky/dashboard-password"),
    ]
    for path in closed:
        assert desk.root(f"ls {path}") and desk.root(
            f"runuser -u mallory -- cat {path} 2>&1 | head -c 200", check=False
        ).endswith("Permission denied\n")
    environ = "for pid in $(pgrep -u skypilot); do runuser -u mallory -- cat /proc/$pid/environ; done 2>/dev/null; true"
    assert desk.root(environ) == ""
    shown = desk.root("ps -eo args; cat /proc/*/cmdline 2>/dev/null | tr '\\0' ' '; journalctl --no-pager -o cat; true")
    for secret in (desk.secret("ada", "token"), desk.secret("ada", "password")[4:]):
        assert secret not in shown and secret not in "".join(desk.said)
    password = desk.root("cat /etc/labrack/skypilot/admin-password").strip()
    assert password not in shown and password not in "".join(desk.said)
    # what the server keeps is a hash
    kept = f"grep -cFe {shlex.quote(desk.secret('ada', 'password')[4:])} /var/lib/skypilot/.sky/state.db*; true"
    assert {line.rpartition(":")[2] for line in desk.root(kept).split()} == {"0"}
    exposure = desk.root("systemd-analyze security --no-pager skypilot.service | tail -1")
    assert float(exposure.split("level for")[1].split(":")[1].split()[0]) < 3, exposure


# --- as a service ---


def test_a_configuration_that_skypilot_refuses_is_not_put_in_place(desk: Desk) -> None:
    before = desk.root("sha256sum /var/lib/skypilot/.sky/config.yaml"), desk.closet.invocation(DESK, "skypilot")
    for arguments in ((), ("--check",)):
        run = desk.play(*arguments, ok=False, skypilot_settings={"kubernetes": {"alowed_contexts": ["x"]}})
        assert run.rc != 0 and "did you mean 'allowed_contexts'" in run.output
    assert (
        desk.root("sha256sum /var/lib/skypilot/.sky/config.yaml"),
        desk.closet.invocation(DESK, "skypilot"),
    ) == before


def test_it_is_restarted_for_its_configuration_alone(desk: Desk) -> None:
    before = desk.closet.invocation(DESK, "skypilot")
    run = desk.play(skypilot_settings={"dashboard": {}})
    assert desk.changes(run) == ["file /var/lib/skypilot/.sky/config.yaml", "service skypilot"]
    assert desk.closet.invocation(DESK, "skypilot") != before
    held = desk.play(lab_max_disruption="reload")
    assert [change["subject"] for change in held.task(DESK, "Converge the SkyPilot server").result["pending"]]
    desk.play()
    again = desk.closet.invocation(DESK, "skypilot")
    assert desk.play().changed == {DESK: 0, OTHER: 0} and desk.closet.invocation(DESK, "skypilot") == again


def test_it_survives_its_death(desk: Desk) -> None:
    desk.root("systemctl kill --signal=KILL skypilot")
    until("it is back", lambda: desk.ask("ada", "GET", "/api/health")[0], lambda seen: seen == 200, 120)
    assert desk.sky("ada", "status -o json") == []
    assert desk.play().changed == {DESK: 0, OTHER: 0}


def many_at_once(desk: Desk) -> None:
    """More requests and launches than the server keeps processes for; wait until all of them are through."""
    token = desk.secret("ada", "token")
    asked: list[tuple[str, dict[str, Any]]] = [("/status", {"all_users": True, "refresh": "NONE"})] * 6
    task = {"task": "run: echo", "dryrun": True}
    asked += [("/launch", {**task, "cluster_name": f"c{number}"}) for number in range(3)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: desk.ask("ada", "POST", one[0], token, one[1])[0], asked))
    assert answers == [200] * len(asked)
    # the answers come before the work is done
    database = "file:/var/lib/skypilot/.sky/api_server/requests.db?mode=ro"
    select = "select count(*) from requests where status in ('PENDING', 'RUNNING') and request_id not like '%-daemon'"
    count = f'import sqlite3; print(sqlite3.connect("{database}", uri=True).execute("{select}").fetchone()[0])'
    until("nothing runs", lambda: desk.root(f"python3 -c {shlex.quote(count)}").strip(), lambda seen: seen == "0", 240)


@pytest.mark.parametrize("big", [False, True], ids=["as it is", "256 GB"])
def test_idle_it_stays_under_its_bar(desk: Desk, big: bool) -> None:
    """It keeps few processes of those that many requests at once take, however big the machine is."""
    healthy = (lambda: desk.ask("ada", "GET", "/api/health")[0]), (lambda seen: seen == 200), 120
    if big:
        desk.root(f"{BIG} systemctl restart skypilot")
        until("it is back", *healthy)
        told = "nsenter --mount --target $(systemctl show -P MainPID skypilot) head -1 /proc/meminfo"
        assert "268435456" in desk.root(told)
    try:
        many_at_once(desk)
        assert until("the rest has ended", lambda: int(desk.root(MEMORY)), lambda seen: seen < 1300, 60) > 500
    finally:
        if big:
            desk.root(
                "rm -r /run/systemd/system/skypilot.service.d; systemctl daemon-reload; systemctl restart skypilot"
            )
    until("it is back", *healthy)


# --- with Kubernetes, whose API is a stand-in ---

INFRA: dict[str, Any] = {
    "skypilot_infra": {"kubernetes": [{"name": "lab"}]},
    # the server does not look by itself for the clusters that are put into its database
    "skypilot_settings": {"daemons": {"skypilot-status-refresh-daemon": {"interval_seconds": 86400}}},
    "skypilot_mounts": [{"path": "/data", "read_only": True}, {"path": "/checkpoints/{user}"}, {"path": "/scratch"}],
}
K3S_UNIT = "[Service]\\nType=notify\\nExecStart=/usr/local/bin/k3s server\\n"
FOUND = {"default": {"Kubernetes": ["compute"]}}
#: As k3s takes it from its server's directory.
POD = """---
apiVersion: "v1"
kind: "Pod"
metadata:
  name: "{name}-head"
  namespace: "default"
  labels:
    parent: "skypilot"
    skypilot-cluster-name: "{name}"
    ray-cluster-name: "{name}"
    ray-node-type: "head"
  annotations:
    skypilot-user: "ada-cli"
    standin/prints: "{percent}"
spec:
  containers:
    - name: "ray-node"
      resources:
        limits:
          nvidia.com/gpu: "1"
status:
  phase: "Running"
"""


@pytest.fixture(scope="module")
def k3s(desk: Desk) -> Desk:
    """The server, with k3s on its host."""
    release = releases.ensure_tree(print) / "tree" / releases.RELEASES / releases.VERSIONS[-1]
    (program,) = (path for path in release.iterdir() if re.fullmatch(r"k3s(-arm64)?", path.name))
    docker("cp", "--quiet", str(program), f"{desk.closet.lab.node(DESK).container}:/usr/local/bin/k3s")
    desk.root("chmod 755 /usr/local/bin/k3s; ln -sf k3s /usr/local/bin/kubectl; mkdir -p /etc/rancher/k3s")
    desk.root("cd /etc/rancher/k3s; echo lab >token; echo 'token-file: /etc/rancher/k3s/token' >config.yaml")
    desk.root(f"printf '{K3S_UNIT}' >/run/systemd/system/k3s.service; systemctl daemon-reload; systemctl start k3s")
    desk.root("mkdir -p /checkpoints && install -d -m 777 /scratch")
    assert desk.play(**INFRA).rc == 0
    return desk


def checked(desk: Desk) -> str:
    """What the server's check of Kubernetes says to a researcher."""
    return desk.closet.ssh.run(f"ada@{DESK}", "timeout 100 sky check kubernetes 2>&1", timeout=120).stdout


def test_kubernetes_is_found_by_the_server(k3s: Desk) -> None:
    assert k3s.play(**INFRA).changed == {DESK: 0, OTHER: 0}
    assert k3s.sky("ada", "check -o json") == FOUND
    assert "lab" in checked(k3s)
    # SkyPilot's own cluster in Docker is not for a server that others have
    toy = k3s.closet.ssh.run(f"ada@{DESK}", "timeout 60 sky local up 2>&1", timeout=90)
    assert toy.returncode and "only supported when running SkyPilot locally" in toy.stdout


def test_what_is_wrong_with_kubernetes_is_said(k3s: Desk) -> None:
    k3s.root("systemctl stop k3s")
    assert "Failed to communicate with the cluster" in checked(k3s) and k3s.sky("ada", "check -o json") == {
        "default": {}
    }
    k3s.root("systemctl start k3s")
    assert k3s.sky("ada", "check -o json") == FOUND
    k3s.root('sed -i \'s/"lab"/"gone"/\' /var/lib/skypilot/.kube/config')
    assert "No available context found in kubeconfig" in checked(k3s)
    assert "file /var/lib/skypilot/.kube/config" in k3s.changes(k3s.play(**INFRA))
    assert k3s.sky("ada", "check -o json") == FOUND


def test_the_reaper_ends_what_the_server_has_forgotten(k3s: Desk) -> None:
    """By its own unit, against the server and its own database; clusters and pods are put there."""
    accounts = json.loads(k3s.ask("root", "GET", "/users", host="127.0.0.1", port=46580)[1])
    ids = {one["name"]: one["id"] for one in accounts}
    users = {name: ids[name] for name in ("ada", "ben")}
    docker("cp", "--quiet", str(ROOT / "tests/nodes/skypilot_real.py"), f"{k3s.closet.lab.node(DESK).container}:/srv")
    fill = f"/opt/skypilot/current/bin/python /srv/skypilot_real.py fill {shlex.quote(json.dumps(users))}"
    k3s.root(f"cd / && runuser -u skypilot -- env HOME=/var/lib/skypilot {fill}")
    pods = {f"lost-{users['ada']}": 0, f"stuck-{users['ben']}": 0, f"train-{users['ada']}": 97, "alien-ffff9999": 0}
    manifests = "".join(POD.format(name=name, percent=percent) for name, percent in pods.items())
    k3s.root(f"cat >/var/lib/rancher/k3s/server/manifests/pods.yaml <<'E'\n{manifests}E")

    def there() -> set[str]:
        found = json.loads(k3s.root("kubectl get pods -l parent=skypilot -o json"))["items"]
        return {one["metadata"]["name"].removesuffix("-head") for one in found}

    def said() -> str:
        return k3s.closet.journal(DESK, "labrack-skypilot-reaper")

    def reap() -> str:
        before = len(said())
        # systemd takes many starts at once for a loop
        k3s.root("systemctl reset-failed labrack-skypilot-reaper; systemctl start labrack-skypilot-reaper")
        return said()[before:]

    until("pods are there", there, lambda seen: seen == set(pods))
    hours = {f"skypilot_reaper_{what}_hours": 0.0 for what in ("no_autostop", "stuck", "unknown", "idle")}
    wishes = {**INFRA, **hours, "skypilot_reaper_grace_hours": 0.25}
    k3s.play(**wishes)
    dry = reap() + reap()
    # what was in the making has its pod, so the server may say by now that it is up
    wrong = "it does not come up|its card does nothing"
    assert re.search(f"would warn: stuck: ({wrong})", dry) and "would warn: train: it has no autostop" in dry
    assert f"would warn: lost-{users['ada']}-head" in dry and there() == set(pods)
    assert not k3s.root("ls /run/labrack/messages")
    k3s.play(**wishes, skypilot_reaper_dry_run=False, skypilot_reaper_spare=["train"])
    assert f"warn ada-cli: lost-{users['ada']}-head" in reap() and there() == set(pods)
    assert re.search(wrong, k3s.root("cat /run/labrack/messages/ben"))
    later = (
        "import json; p='/var/lib/skypilot/reaper.json'; d=json.load(open(p)); "
        "[w.update(since=9e3, warned=w['warned'] - 9e3) for w in d['watches'].values() if w['warned']]; "
        "json.dump(d, open(p, 'w'))"
    )

    def reap_later() -> str:
        k3s.root(f'python3 -c "{later}"')
        reap()
        return said()

    ends = "end ben: stuck was ended", f"the pod lost-{users['ada']}-head was deleted"
    # once more where the server has changed its mind
    until("both are ended", reap_later, lambda told: all(end in told for end in ends), 240)
    # another server's pod, and one whose card computes
    assert there() == {f"train-{users['ada']}", "alien-ffff9999"}
    assert "stuck" not in {one["name"] for one in k3s.sky("ada", "status --all-users -o json")}


#: What pods of ada and ben leave, and what somebody plants among it to be given others' files.
LEFT = """
set -e
cd /checkpoints/ada
mkdir -p run/deep
echo x >run/weights
echo x >run/deep/log && chown 1000:1000 run/deep/log
cp /usr/bin/id run/tool && chmod 6755 run/tool
value="bytes.fromhex('0000000200240000' + '0' * 24)"
python3 -c "import os; os.setxattr('run/weights', 'security.capability', $value)"
ln -s /etc/shadow run/shadow
ln -s /scratch/ben run/bens
mkfifo run/pipe
cd /scratch
runuser -u ada -- mkdir ada
runuser -u ben -- mkdir ben
echo "root's" >secret && chmod 600 secret
ln secret ada/secret
echo x >ada/mine
echo x >ben/mine
runuser -u ben -- sh -c 'echo x >ben/own'
ln ben/own ada/bens
mkdir guest && echo x >guest/mine
cp /usr/bin/id rootly && chmod 4755 rootly && ln rootly ada/rootly
cp -p rootly /srv/rootly
# ben leads root elsewhere
mv /checkpoints/ben /checkpoints/was-ben && ln -s /scratch/guest /checkpoints/ben
"""


def test_what_pods_write_belongs_to_who_launched(k3s: Desk) -> None:
    # systemd would take so many starts for a loop
    give = "systemctl reset-failed labrack-skypilot-owner; systemctl start labrack-skypilot-owner"
    k3s.root(give)
    assert k3s.root("stat -c '%a %U' /checkpoints/ada /checkpoints/ben") == "2770 ada\n2770 ben\n"
    shadow = k3s.root("stat -c '%a %u %g %s' /etc/shadow")
    k3s.root(LEFT)
    k3s.root(give)
    owners = k3s.root("cd / && stat -c '%U %n' $(find checkpoints/ada/run scratch -mindepth 1)").splitlines()
    assert {path: owner for owner, path in (line.split(" ") for line in owners)} == {
        **{f"checkpoints/ada/run/{name}": "ada" for name in ("deep", "deep/log", "weights", "tool")},
        # links stay, and what has another name may be another's
        **{f"checkpoints/ada/run/{name}": "root" for name in ("shadow", "bens", "pipe")},
        **{
            f"scratch/{name}": "root"
            for name in ("secret", "ada/secret", "rootly", "ada/rootly", "guest", "guest/mine")
        },
        **{"scratch/ada": "ada", "scratch/ada/mine": "ada"},
        **{f"scratch/{name}": "ben" for name in ("ben", "ben/mine", "ben/own", "ada/bens")},
    }
    assert k3s.root("stat -c '%a %u %g %s' /etc/shadow") == shadow
    assert "/checkpoints/ben: " in k3s.closet.journal(DESK, "labrack-skypilot-owner")
    # no rights of others are left with it, under whichever name
    kept = "import os; print(os.listxattr('/checkpoints/ada/run/weights'))"
    assert k3s.root("stat -c %a /checkpoints/ada/run/tool /scratch/ada/rootly") == "755\n755\n"
    assert k3s.root(f'python3 -c "{kept}"') == "[]\n"
    k3s.root("runuser -u ada -- rm -r /checkpoints/ada/run/deep")
    k3s.root("cd /checkpoints && rm ben && mv was-ben ben")
    # names that change all the time
    swap = (
        "import os, time; end = time.time() + 20; os.chdir('/checkpoints/ada/run'); os.symlink('/etc/shadow', 'b')\n"
        "while time.time() < end: open('a', 'a').close(); os.rename('b', 'c'); os.rename('a', 'b'); os.rename('c', 'a')"
    )
    k3s.root(
        f"systemd-run --collect --unit=swap python3 -c {shlex.quote(swap)} 2>&1; for i in 1 2 3 4 5; do {give}; done"
    )
    k3s.root("systemctl stop swap; rm -f /checkpoints/ada/run/[abc]")
    assert k3s.root("stat -c '%a %u %g %s' /etc/shadow") == shadow


def test_no_file_of_a_pod_makes_anybody_root(k3s: Desk) -> None:
    # the reaper's settings of the test before go
    k3s.play(**INFRA)
    k3s.root("cp /usr/bin/id /scratch/rootly && chmod 4755 /scratch/rootly && cp -p /scratch/rootly /srv/rootly")

    def runs_as(path: str) -> str:
        return k3s.root(f"runuser -u mallory -- {path} -un").strip()

    assert (runs_as("/srv/rootly"), runs_as("/scratch/rootly")) == ("root", "mallory")
    for place in ("/checkpoints", "/scratch"):
        assert {"nosuid", "nodev"} <= set(k3s.root(f"findmnt -no OPTIONS --mountpoint {place}").strip().split(","))
    # somebody who takes it away
    k3s.root("mount -o remount,bind,suid /scratch")
    assert runs_as("/scratch/rootly") == "root"
    told = k3s.play("--check", **INFRA).task(DESK, "Converge what looks for forgotten GPUs")
    made = k3s.play(**INFRA).task(DESK, "Converge what looks for forgotten GPUs")
    assert told.subjects == made.subjects == ["service labrack-skypilot-nosuid"]
    assert runs_as("/scratch/rootly") == "mallory" and k3s.play(**INFRA).changed == {DESK: 0, OTHER: 0}
    k3s.root("systemctl stop labrack-skypilot-nosuid")
    assert k3s.root("ls /scratch/rootly; findmnt --mountpoint /scratch", check=False) == "/scratch/rootly\n"
    k3s.root("systemctl start labrack-skypilot-nosuid")


# --- the way back ---


def test_undo_leaves_the_data_and_purge_nothing(desk: Desk) -> None:
    told = desk.play("--check", skypilot_state="absent")
    gone = desk.play(skypilot_state="absent")
    assert desk.changes(gone) == desk.changes(told)
    left = desk.root(TRACES).split("\n")
    assert [line for line in left if line and not line.startswith(("/var/lib/skypilot", "skypilot:x:"))] == []
    assert desk.root("ls /var/lib/skypilot/.sky/state.db").strip()
    assert "api_server" not in desk.root("cat ~ada/.sky/config.yaml")
    assert desk.play(skypilot_state="absent").changed == {DESK: 0, OTHER: 0}
    # it comes back with its accounts
    desk.play()
    assert desk.sky("ada", "status -o json") == []
    desk.play(skypilot_state="absent", skypilot_purge=True)
    assert desk.root(TRACES) == ""
    assert desk.play(skypilot_state="absent", skypilot_purge=True).changed == {DESK: 0, OTHER: 0}
