# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab's own tailnet with real tailscaled and real headscale: joining, drift, routes, people, expiry, an outage."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.nodes.harness import Run, until
from tests.nodes.tailnet_lab import DOMAIN, LAPTOPS, MACHINES, TailnetLab, tailnet_lab

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
    run = joined.closet.play("labrack.infra.closet", "--limit", "head,admin")
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
