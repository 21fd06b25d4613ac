# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab's own tailnet with real tailscaled and real headscale.

Joining, drift, versions, routes, people who come and leave, expiry, an outage, and servers that can't be joined.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labrack.testnode import node
from labrack.testnode.docker import docker
from labrack.testnode.image import ensure_image
from labrack.testnode.tailnet import CERTIFICATES
from tests.mirror import tailnet
from tests.nodes.conftest import SYSTEM
from tests.nodes.harness import Run, until
from tests.nodes.tailnet_lab import DOMAIN, LAPTOPS, MACHINES, TailnetLab, tailnet_lab
from tests.tailnet import api
from tests.tailnet.binaries import HEADSCALE, TAILSCALE

CONVERGE, CONTROL = "Converge Tailscale", "Converge headscale"
POLICY = "/etc/headscale/policy.hujson"
#: A network behind node1.
ROUTE, BEHIND = "10.77.0.0/24", "10.77.0.1"


@pytest.fixture(scope="module")
def lab() -> Iterator[TailnetLab]:
    with tailnet_lab("tailnet") as lab:
        yield lab


@dataclass(frozen=True)
class History:
    """The first runs on the bare lab."""

    predicted: Run
    made: Run
    again: Run
    predicted_again: Run


@pytest.fixture(scope="module")
def history(lab: TailnetLab) -> History:
    """What check mode on empty machines predicted, what the first run made, and what came after."""
    predicted = lab.closet.play("labrack.infra.closet", "--check", "--diff")
    made = lab.closet.play("labrack.infra.closet", "-vvv", "--diff")
    again = lab.closet.play()
    return History(predicted, made, again, lab.closet.play("labrack.infra.closet", "--check"))


@pytest.fixture(scope="module")
def joined(lab: TailnetLab, history: History) -> TailnetLab:
    """The lab with all its machines in the tailnet, and the laptop, which a person joins by hand."""
    for laptop, user in LAPTOPS.items():
        lab.join(laptop, lab.key(user))
    for host in (*MACHINES, *LAPTOPS):
        lab.joined(host)
    return lab


def test_server_that_cannot_be_joined_is_told_before_anything_changes(lab: TailnetLab) -> None:
    """The right name by an authority that nobody knows, another name by the right one, and nobody there at all."""
    server, said = "other.lab.test", {}
    made = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=impostor "
        f"-addext subjectAltName=DNS:{server} -keyout /run/tls.key -out /run/tls.crt 2>/dev/null"
    )
    lab.closet.root("node1", made)
    said["node1"] = "its certificate is not one that this node trusts (self-signed certificate"
    for file in ("tls.crt", "tls.key"):
        text = lab.closet.root("head", f"cat {CERTIFICATES}/{file}")
        node.exec(lab.closet.lab.node("desk"), ["tee", f"/run/{file}"], input=text)
    said["desk"] = f"certificate is not valid for '{server}'). Mend: give the server a certificate for that name"
    said["admin"] = "it can't be reached: [Errno 111] Connection refused. Mend: check the server"
    unit = "--quiet --collect --unit=impostor"
    serve = f"systemd-run {unit} openssl s_server -accept 443 -cert /run/tls.crt -key /run/tls.key -www"
    for host in said:
        lab.closet.root(host, f"echo 127.0.0.1 {server} >>/etc/hosts")
    for host in ("node1", "desk"):
        lab.closet.root(host, f"{serve}; until ss -Hltn 'sport = :443' | grep -q .; do sleep 0.1; done")
    limit = ("--tags", "tailscale", "--limit", ",".join(said))
    keys = {"tailscale_auth_key": "hskey-auth-none-none", "tailscale_login_server": f"https://{server}"}
    with lab.untouched(*said):
        run = lab.closet.play("labrack.infra.closet", *limit, ok=False, **keys)
    for host, words in said.items():
        message = run.task(host, CONVERGE).result["msg"]
        assert message.startswith(f"tailscale_login_server = https://{server}: ") and words in message, message
        lab.closet.root(host, "systemctl stop impostor 2>/dev/null; rm -f /run/tls.*")


def test_check_predicts_and_a_second_run_changes_nothing(history: History) -> None:
    for host in MACHINES:
        assert history.predicted.task(host, CONVERGE).subjects == history.made.task(host, CONVERGE).subjects
    assert history.predicted.task("head", CONTROL).subjects == history.made.task("head", CONTROL).subjects
    assert set(history.again.changed.values()) == {0}
    assert set(history.predicted_again.changed.values()) == {0}
    # a run that changes nothing is one module call a node
    calls = [task.name for task in history.again.modules("node1") if task.ending == "ok" and "tailscale" in task.action]
    assert calls == [CONVERGE]


def test_no_key_is_ever_shown(history: History, joined: TailnetLab) -> None:
    for name in ("head", "worker", "interactive", "ada", "cyd"):
        key = joined.key(name)
        for run in (history.made, history.again):
            assert key not in run.output
            for file in run.artifacts.rglob("*"):
                assert not file.is_file() or key not in file.read_text(encoding="utf-8", errors="replace"), file
        for host in MACHINES:
            assert key not in joined.closet.root(host, "journalctl --no-pager")
    assert joined.closet.root("head", "stat -c '%a %U' /var/lib/labrack/headscale/keys.json") == "600 root\n"


def test_nothing_leaves_the_lab(joined: TailnetLab) -> None:
    for host in (*MACHINES, *LAPTOPS):
        assert "default" not in joined.closet.root(host, "ip route; ip -6 route")


def test_machines_find_each_other_by_name(joined: TailnetLab) -> None:
    key = joined.closet.root(
        "head", "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/tailnet && cat /root/.ssh/tailnet.pub"
    )
    joined.closet.root("node1", f"echo '{key.strip()}' >>/root/.ssh/authorized_keys")
    options = "-i /root/.ssh/tailnet -o StrictHostKeyChecking=accept-new -o BatchMode=yes"
    seen = joined.closet.root("head", f"ssh {options} root@node1.{DOMAIN} 'hostname; echo $SSH_CONNECTION'").split()
    assert seen[0] == "node1"
    assert seen[1] == joined.address("head")
    assert seen[3] == joined.address("node1")
    assert "1 received" in joined.closet.root("desk", f"ping -c 1 -W 5 head.{DOMAIN}")


def test_drift_made_by_hand_is_seen_and_mended(joined: TailnetLab) -> None:
    joined.closet.root("node1", "tailscale set --hostname=other")
    check = joined.closet.play("labrack.infra.closet", "--check", "--diff", "--limit", "node1")
    task = check.task("node1", CONVERGE)
    assert task.changed
    assert "hostname" in str(task.result["diff"])
    assert joined.prefs("node1")["hostname"] == "other"
    assert joined.closet.play("labrack.infra.closet", "--limit", "node1").task("node1", CONVERGE).changed
    assert joined.prefs("node1")["hostname"] == "node1"


def test_another_version_comes_and_the_session_that_carries_it_stays(joined: TailnetLab) -> None:
    older, address = tailnet.TAILSCALE_VERSIONS[0], joined.address("node1")
    limit = ("--tags", "tailscale", "--limit", "node1")
    # back to an older one is what the inventory asks for, and apt is told that it is meant
    joined.closet.play("labrack.infra.closet", *limit, tailscale_version=older)
    assert joined.package("node1") == f"{older} tailscale"
    jump = f"-o ProxyCommand='ssh -F {joined.closet.ssh.config} -W %h:%p root@head'"
    anew = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    way = {"ansible_host": address, "ansible_port": 22, "ansible_ssh_common_args": f"{anew} {jump}"}
    closet = joined.knowing({"node1": way})
    # tailscaled restarts, and this run goes through it
    waits = closet.play("labrack.infra.closet", *limit).task("node1", CONVERGE).result["pending"]
    assert [(change["subject"], change["disruption"]) for change in waits] == [("package tailscale", "drain")]
    assert joined.package("node1") == f"{older} tailscale"
    predicted = closet.play("labrack.infra.closet", *limit, "--check", tailscale_allow_disconnect=True)
    made = closet.play("labrack.infra.closet", *limit, tailscale_allow_disconnect=True)
    assert made.task("node1", CONVERGE).subjects == predicted.task("node1", CONVERGE).subjects == ["package tailscale"]
    assert joined.package("node1") == f"{TAILSCALE} tailscale"
    assert (joined.status("node1")["BackendState"], joined.address("node1")) == ("Running", address)
    assert closet.play("labrack.infra.closet", *limit).changed == {"node1": 0}


def test_route_is_advertised_approved_used_and_goes_away(joined: TailnetLab) -> None:
    closet = joined.closet
    closet.root("node1", f"ip address add {BEHIND}/24 dev lo")
    ping = f"ping -c 1 -W 3 {BEHIND} >/dev/null && echo came"
    run = closet.play("labrack.infra.closet", "--limit", "node1", tailscale_advertise_routes=[ROUTE])
    assert "approve" in " ".join(run.task("node1", CONVERGE).result["notes"])
    closet.play("labrack.infra.closet", "--limit", "desk", tailscale_accept_routes=True)
    assert "came" not in closet.root("desk", ping, check=False)
    joined.headscale(f"nodes approve-routes --identifier {joined.number('node1')} --routes {ROUTE}")
    until("the route is used", lambda: closet.root("desk", ping, check=False), lambda seen: "came" in seen)
    # headscale does not always push a node's own approval; a new connection brings it
    closet.root("node1", "systemctl restart tailscaled")
    joined.joined("node1")
    until("node1 knows", lambda: joined.status("node1")["Self"]["AllowedIPs"], lambda seen: ROUTE in seen)
    again = closet.play("labrack.infra.closet", "--limit", "node1", tailscale_advertise_routes=[ROUTE])
    assert again.changed == {"node1": 0}
    assert "approve" not in " ".join(again.task("node1", CONVERGE).result["notes"])
    # what the inventory no longer names goes back to Tailscale's default
    closet.play("labrack.infra.closet", "--limit", "node1,desk")
    assert joined.prefs("node1")["advertise-routes"] == ""
    assert joined.prefs("desk")["accept-routes"] is False
    until("the route is gone", lambda: closet.root("desk", ping, check=False), lambda seen: "came" not in seen)


@pytest.fixture(scope="module")
def policy(joined: TailnetLab) -> str:
    """The playbook that keeps the policy, which has run once."""
    playbook = "labrack.infra.tailnet_policy"
    assert sum(joined.closet.play(playbook).changed.values()) == 1
    return playbook


def test_student_reaches_the_interactive_machine_and_no_worker(joined: TailnetLab, policy: str) -> None:
    def reached(host: str) -> list[str]:
        return [name for name in ("head", "node1", "desk") if joined.reaches(host, f"{name}.{DOMAIN}")]

    until("the policy holds", lambda: reached("student"), lambda seen: seen == ["desk"])
    assert reached("admin") == ["head", "node1", "desk"]
    assert sum(joined.closet.play(policy).changed.values()) == 0
    # the policy is the module's, and a run of the roles leaves it
    assert joined.closet.play("labrack.infra.closet", "--limit", "head").changed == {"head": 0}


def test_policy_of_somebody_else_is_not_overwritten(joined: TailnetLab, policy: str) -> None:
    before = joined.closet.root("head", f"cat {POLICY}")
    joined.closet.root(
        "head", f"sed -i 's/{{/{{\"randomizeClientPort\": true,/' {POLICY} && systemctl reload headscale"
    )
    theirs = joined.closet.root("head", f"cat {POLICY}")
    assert theirs != before
    run = joined.closet.play(policy, ok=False)
    assert run.rc != 0
    assert "changed since labrack wrote it" in run.messages
    assert joined.closet.root("head", f"cat {POLICY}") == theirs
    joined.closet.root("head", f"printf %s {shlex.quote(before)} >{POLICY} && systemctl reload headscale")
    assert sum(joined.closet.play(policy).changed.values()) == 0


def test_expired_machine_is_refused_without_a_key_and_joins_with_one(joined: TailnetLab) -> None:
    number, address = joined.number("admin"), joined.address("admin")
    joined.headscale(f"nodes expire --identifier {number}")
    until("it is logged out", lambda: joined.status("admin")["BackendState"], lambda seen: seen == "NeedsLogin")
    refused = joined.closet.play("labrack.infra.closet", "--limit", "admin", ok=False)
    assert refused.rc != 0
    assert "its key has expired, and there is none. Nothing was changed" in refused.messages
    # with a key, but without the server
    joined.closet.root("head", "systemctl stop headscale")
    refused = joined.closet.play(
        "labrack.infra.closet", "--limit", "admin", ok=False, tailscale_auth_key=joined.key("ada")
    )
    assert refused.rc != 0
    assert "tailscale_login_server = https://control.lab.test: it can't be reached" in refused.messages
    assert joined.status("admin")["BackendState"] == "NeedsLogin"
    run = joined.closet.play("labrack.infra.closet", "--limit", "head,admin")
    assert run.task("head", CONTROL).subjects == ["service headscale"]
    assert run.task("admin", CONVERGE).changed
    joined.joined("admin")
    assert (joined.number("admin"), joined.address("admin")) == (number, address)


def test_silent_control_server_breaks_nothing(joined: TailnetLab) -> None:
    ping = f"ping -c 2 -W 5 {joined.address('desk')}"
    # the relay goes with the server; a direct path does not
    until(
        "a direct path",
        lambda: joined.closet.root("admin", f"tailscale ping -c 3 {joined.address('desk')}", False),
        lambda seen: "via 1" in seen,
    )
    joined.closet.root("head", "systemctl stop headscale")
    try:
        assert joined.closet.play("labrack.infra.closet", "--limit", "admin").changed == {"admin": 0}
        assert "2 received" in joined.closet.root("admin", ping)
        # a node notices by itself after minutes; the run says at once what is off, on the host that has it
        check = joined.closet.play("labrack.infra.closet", "--check", "--limit", "head")
        assert check.task("head", CONTROL).subjects == ["service headscale"]
    finally:
        joined.closet.play("labrack.infra.closet", "--limit", "head")
    assert "2 received" in joined.closet.root("admin", ping)
    assert joined.headscale("users list")


def test_wrong_policy_and_settings_are_refused_before_they_are_in_place(joined: TailnetLab) -> None:
    files = f"sha256sum {POLICY} /etc/headscale/config.yaml"
    before = joined.closet.root("head", files)
    for variables, said in (
        (
            {"headscale_policy": '{"grants": [{"src": ["group:none"], "dst": ["*"], "ip": ["*"]}]}'},
            "refuses the policy",
        ),
        ({"headscale_settings": {"node": {"ephemeral": {"inactivity_timeout": "5s"}}}}, "refuses its configuration"),
    ):
        run = joined.closet.play(
            "labrack.infra.closet", "--tags", "headscale", "--limit", "head", ok=False, **variables
        )
        assert run.rc != 0
        assert said in run.messages
        assert joined.closet.root("head", files) == before


def _give_restic(lab: TailnetLab, folder: Path) -> None:
    """Install restic on the head, which has no way out: a container of the same image gets the package."""
    name, there = f"{lab.closet.lab.name}-restic", lab.closet.lab.node("head").container
    fetch = "cd /tmp && apt-get update && apt-get download restic && mv restic_*.deb /restic.deb"
    docker("rm", "--force", name, check=False)
    try:
        docker("run", f"--name={name}", "--entrypoint=sh", ensure_image(SYSTEM, print), "-ec", fetch)
        docker("cp", f"{name}:/restic.deb", str(folder))
    finally:
        docker("rm", "--force", name, check=False)
    docker("cp", str(folder / "restic.deb"), f"{there}:/root/restic.deb")
    lab.closet.root("head", "dpkg --install /root/restic.deb && rm /root/restic.deb")


def _members(lab: TailnetLab) -> dict[str, Any]:
    """What headscale knows of its users, of its machines and of the keys by which they join."""
    nodes = lab.headscale("nodes list") or []
    return {
        "users": [(one["id"], one["name"]) for one in lab.headscale("users list") or []],
        "nodes": {
            one["given_name"]: (one["id"], one["machine_key"], sorted(one["ip_addresses"]), one.get("tags") or [])
            for one in nodes
        },
        "keys": lab.closet.root("head", "cat /var/lib/labrack/headscale/keys.json"),
    }


def test_new_head_gets_its_tailnet_back(joined: TailnetLab, tmp_path: Path) -> None:
    """headscale's data is lost, and its role has made a new tailnet, which nobody is in."""
    closet, head, headscale = joined.closet, ("--limit", "head"), ("--tags", "headscale", "--limit", "head")
    before = _members(joined)
    assert set(before["nodes"]) == {*MACHINES, *LAPTOPS} and before["users"]
    _give_restic(joined, tmp_path)
    backup = {"lab_backup_repository": "/srv/backup"}
    try:
        closet.play("labrack.infra.closet", "--tags", "lab_backup", *head, **backup)
        closet.root("head", "systemctl start labrack-backup")
        closet.root("head", "systemctl stop headscale && rm -rf /var/lib/headscale/* /var/lib/labrack/headscale*")
        closet.play("labrack.infra.closet", *headscale)
        fresh = _members(joined)
        assert fresh["nodes"] == {} and fresh["keys"] != before["keys"]
        would = closet.play("labrack.infra.restore", "--check", what="headscale")
        made = closet.play("labrack.infra.restore", what="headscale")
        done = [run.task("head", "Restore what is asked for") for run in (would, made)]
        assert [task.subjects for task in done] == [["headscale"], ["headscale"]]
        assert _members(joined) == before
        for host in (*MACHINES, *LAPTOPS):
            joined.joined(host)
        until(
            "all are online",
            lambda: {one["given_name"] for one in joined.headscale("nodes list") if one.get("online")},
            lambda seen: seen == set(before["nodes"]),
        )
        for host, (_, _, addresses, _) in before["nodes"].items():
            assert joined.address(host) in addresses
        reached = {f"{host}.{DOMAIN}" for host in ("head", "node1", "desk")}
        until("all are reached", lambda: {name for name in reached if joined.reaches("admin", name)}, reached.__eq__)
        assert set(closet.play("labrack.infra.closet").changed.values()) == {0}
    finally:
        closet.play("labrack.infra.closet", "--tags", "lab_backup", *head, **backup, lab_backup_state="absent")
        closet.root("head", "dpkg --purge restic; rm -rf /srv/backup")


def test_who_leaves_has_no_way_in(joined: TailnetLab, policy: str) -> None:
    closet, leave, lock = joined.closet, "labrack.infra.offboard", "Converge users, groups, keys and sudo"
    login = subprocess.Popen(closet.ssh.argv("cyd@node1", "sleep 600"))
    until("cyd is logged in", lambda: closet.root("node1", "loginctl list-users"), lambda seen: "cyd" in seen)
    predicted = closet.play(leave, "--check", user="cyd")
    partly = closet.play(leave, "--limit", "!desk", user="cyd")
    assert "cyd is still open on desk" in str(partly.task("head", "Report").result["msg"])
    assert closet.user("cyd@desk", "id -un").stdout == "cyd\n"
    made = closet.play(leave, user="cyd")
    report = str(made.task("head", "Report").result["msg"])
    assert "cyd is locked on head, node1, desk, admin" in report and "still open" not in report
    assert "taken out as cyd@; expired devices: student" in report
    for host in MACHINES:
        run = made if host == "desk" else partly
        assert run.task(host, lock).subjects == predicted.task(host, lock).subjects != []
        assert closet.user(f"cyd@{host}", "id -un").returncode == 255
    for task in ("Converge the tailnet's policy", "Let the devices of people who leave expire"):
        assert partly.task("head", task).subjects == predicted.task("head", task).subjects != []
    assert login.wait(timeout=30) != 0
    assert "cyd" not in closet.root("head", f"cat {POLICY}")
    until("it is out", lambda: joined.status("student")["BackendState"], lambda seen: seen == "NeedsLogin")
    # the key by which it had joined opens nothing any more
    joined.join("student", joined.key("cyd"))
    assert joined.status("student")["BackendState"] == "NeedsLogin"
    again = closet.play(leave, user="cyd")
    assert set(again.changed.values()) == {0}
    typo = closet.play(leave, "--limit", "head", ok=False, user="syd")
    assert "-e user=syd: not in lab_users; name one of cyd" in typo.messages


def test_client_secret_gets_a_key_for_the_nodes_tags(joined: TailnetLab) -> None:
    """The API is a stand-in, which hands out a key of the real headscale.

    A machine that headscale knows: of a new one it takes no tags that it asks for beside a key.
    """
    closet = joined.closet
    key = joined.headscale("preauthkeys create --tags tag:lab-worker --expiration 1h")["key"]
    joined.headscale(f"nodes expire --identifier {joined.number('admin')}")
    until("it is logged out", lambda: joined.status("admin")["BackendState"], lambda seen: seen == "NeedsLogin")
    with api.serving(api.Tailnet(auth_keys=[key])) as service:
        back = f"127.0.0.1:8088:{service.url.removeprefix('http://')}"
        options = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", back]
        argv = closet.ssh.argv("root@admin", "")[:-2]
        tunnel = subprocess.Popen([*argv, *options, "root@admin"])
        try:
            until("the API is there", lambda: closet.root("admin", "ss -Hltn 'sport = :8088'"), bool)
            run = closet.play(
                "labrack.infra.closet",
                "--tags",
                "tailscale",
                "--limit",
                "admin",
                tailscale_auth_key=f"{service.client_secret}?baseURL=http://127.0.0.1:8088",
                tailscale_tags=["lab-worker"],
                tailscale_tags_from_key=False,
            )
        finally:
            tunnel.terminate()
    (asked,) = service.key_requests
    wanted = {"reusable": False, "ephemeral": False, "preauthorized": True, "tags": ["tag:lab-worker"]}
    assert asked["capabilities"]["devices"]["create"] == wanted
    assert joined.status("admin")["BackendState"] == "Running"
    assert joined.status("admin")["Self"]["Tags"] == ["tag:lab-worker"]
    for secret in (service.client_secret, key):
        assert secret not in run.output + closet.root("admin", "journalctl --no-pager")


def test_undo_leaves_the_machines_clean(joined: TailnetLab) -> None:
    closet = joined.closet
    absent = {"tailscale_state": "absent", "headscale_state": "absent", "lab_max_disruption": "drain"}
    # the last machine's control server is gone before it
    closet.play("labrack.infra.closet", "--tags", "tailscale", "--limit", "!admin", **absent)
    assert joined.headscale("nodes list") is not None
    closet.play("labrack.infra.closet", **absent)
    ours = "/etc/headscale/config* /etc/headscale/tls* /etc/apt/*/*tailscale* /var/lib/labrack/*scale*"
    left = f"ls -d /usr/bin/*scale* /usr/sbin/*scale* {ours}"
    for host in MACHINES:
        assert closet.root(host, f"{left} 2>/dev/null; ip link show tailscale0 2>/dev/null; true") == ""
    # nodes and keys of the tailnet are not thrown away unasked
    assert "db.sqlite" in closet.root("head", "ls /var/lib/headscale")
    assert set(closet.play("labrack.infra.closet", **absent).changed.values()) == {0}


def test_headscale_as_a_bare_program(lab: TailnetLab) -> None:
    """On a head that has none: its checksum, a newer version, the package in its place, and away again."""
    closet = lab.closet
    # what is left of the package, its database with it
    closet.root("head", "dpkg --purge headscale >/dev/null 2>&1; rm -rf /etc/headscale")
    sums = json.loads((tailnet.ensure_tree(print) / "sums.json").read_text(encoding="utf-8"))
    kind = f"binary-{tailnet.debian_architecture()}"

    def play(version: str, digest: str, *arguments: str, **more: Any) -> Run:
        variables = {"headscale_install": "binary", "headscale_version": version, **more}
        variables["headscale_artifact_sha256"] = {kind: digest}
        tags = ("--tags", "headscale", "--limit", "head")
        return closet.play("labrack.infra.closet", *tags, *arguments, ok=False, **variables)

    def seen() -> tuple[str, str]:
        told = json.loads(closet.root("head", "headscale version --output json"))
        state = "systemctl is-active headscale; systemctl is-enabled headscale"
        return told["version"], closet.root("head", state)

    older, runs = tailnet.OLDER_HEADSCALE, "active\nenabled\n"
    with lab.untouched("head"):
        wrong = play(older, "0" * 64)
    assert "nothing was installed. Mend: compare it with the release's checksums.txt" in wrong.messages
    predicted, made = play(older, sums["older"], "--check"), play(older, sums["older"])
    assert made.rc == 0, made.output[-4000:]
    assert predicted.task("head", CONTROL).subjects == made.task("head", CONTROL).subjects
    assert seen() == (f"v{older}", runs)
    with lab.untouched("head"):
        wrong = play(HEADSCALE, "0" * 64)
    assert "nothing was installed" in wrong.messages
    assert seen() == (f"v{older}", runs)
    newer = play(HEADSCALE, sums["binary"])
    assert newer.task("head", CONTROL).subjects == ["headscale as binary", "service headscale"]
    assert seen() == (f"v{HEADSCALE}", runs)
    assert play(HEADSCALE, sums["binary"]).changed == {"head": 0}
    assert "its database does not go back" in play(older, sums["older"]).messages
    # the inventory's own: the package, on the same data
    closet.play("labrack.infra.closet", "--tags", "headscale", "--limit", "head")
    assert seen() == (f"v{HEADSCALE}", runs)
    assert [user["name"] for user in lab.headscale("users list")] == ["ada", "cyd"]
    assert play(HEADSCALE, "", headscale_state="absent").rc == 0
    places = "/usr/bin /usr/local/bin /etc/systemd/system /etc/systemd/system/multi-user.target.wants /etc/headscale"
    assert closet.root("head", f"ls -A {places} | grep headscale") == "/etc/headscale:\n"
