# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""k3s on a server and an agent, with a stand-in for its program: joining, GPUs, upgrades, refusals, and away again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from labrack.testnode import node
from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import NodeSpec
from tests.mirror import k3s as releases
from tests.mirror import serve
from tests.nodes.conftest import KEEP, LAB, SYSTEM, Sampler, snapshot
from tests.nodes.harness import INVENTORIES, ROOT, Closet, Run, bring_up, until

PLAYBOOK = "tests/nodes/k3s.yml"
CONVERGE = "Converge k3s"
DESK, AGENT = "desk", "node1"
HOSTS = (DESK, AGENT)
OLD, NEW, NEWEST = releases.VERSIONS
STATE, DATA = "/var/lib/labrack/k3s", "/var/lib/rancher/k3s"
#: What somebody else has on the server.
OTHERS = {
    "/etc/rancher/rke2/config.yaml": "token: theirs",
    f"{DATA}/agent/images/own.tar": "theirs",
    f"{DATA}/storage/pvc-1/weights": "theirs",
    "/var/lib/rancher/other/file": "theirs",
}
#: Stands for a tailnet's command: whoever calls it is written down.
TAILSCALE = (
    "printf '#!/bin/sh\\necho \"$@\" >>/root/tailscale-was-called\\n' >/usr/bin/tailscale; chmod +x /usr/bin/tailscale"
)


@dataclass(frozen=True)
class K3sLab:
    """The lab, and its machines as they were."""

    closet: Closet
    before: dict[str, tuple[str, str]]

    def play(self, *arguments: str, ok: bool = True, **variables: Any) -> Run:
        """Run the role."""
        return self.closet.play(PLAYBOOK, *arguments, ok=ok, **variables)

    def root(self, command: str, host: str = DESK) -> str:
        """Run a command as root."""
        return self.closet.root(host, command)

    def get(self, path: str) -> Any:
        """What the API answers."""
        return json.loads(self.root(f"k3s kubectl get --raw '{path}'"))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The cluster's nodes by name."""
        return {one["metadata"]["name"]: one for one in self.get("/api/v1/nodes")["items"]}

    def gpus(self) -> str:
        """How many GPUs the server's node has to give."""
        return str(self.nodes()[DESK]["status"]["capacity"].get("nvidia.com/gpu", "0"))

    def running(self, host: str) -> str:
        """The version that runs on a host."""
        unit = "k3s" if host == DESK else "k3s-agent"
        told = self.root(f"/proc/$(systemctl show --property=MainPID --value {unit})/exe --version", host)
        return told.split()[2]

    def pods(self, host: str) -> str:
        """The processes that stand for pods."""
        return self.root("pgrep -f '[c]ontainerd-shim' | sort", host)

    def changed_since_mark(self, host: str) -> str:
        """The files that changed on a host since /run/mark was touched, but for labrack's ledgers and the database."""
        places = "/etc /usr /opt /var/lib/rancher /var/lib/labrack /var/lib/kubelet"
        own = "grep -v -e /var/lib/labrack/managed -e /server/db/"
        return self.root(f"find {places} -type f -newer /run/mark 2>/dev/null | {own} || true", host)


@pytest.fixture(scope="module")
def lab() -> Iterator[K3sLab]:
    name = f"{LAB}-k3s"
    state = ROOT / ".cache/labs" / name
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)
    nodes = (NodeSpec(DESK, SYSTEM, (GpuSpec(),) * 2), NodeSpec(AGENT, SYSTEM))
    try:
        closet = bring_up(name, nodes, INVENTORIES / "k3s", state)
        serve.down(name)
        serve.up(name, print, releases.ensure_tree(print))
        closet = bring_up(name, nodes, INVENTORIES / "k3s", state, releases.variables())
        for host in HOSTS:
            closet.root(host, TAILSCALE)
            for path, text in OTHERS.items():
                closet.root(host, f"mkdir -p $(dirname {path}); echo '{text}' >{path}")
        # people come first, so that what is compared at the end is k3s' alone
        closet.play(PLAYBOOK, k3s_state="absent")
        yield K3sLab(closet, {host: snapshot(closet, host) for host in HOSTS})
    finally:
        if not KEEP:
            node.down(name, state, print)
            shutil.rmtree(state, ignore_errors=True)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (releases.WRONG_SUM, "the release's own sums say"),
        (releases.WRONG_PROGRAM, f"says that it is {NEWEST}, not {releases.WRONG_PROGRAM}"),
        (releases.MISSING, "the server answers 404"),
    ],
)
def test_release_that_is_not_right_changes_nothing(lab: K3sLab, version: str, said: str) -> None:
    lab.root("touch /run/mark")
    run = lab.play("--limit", DESK, ok=False, k3s_version=version)
    message = run.task(DESK, CONVERGE).result["msg"]
    assert said in message and "Mend: " in message
    assert lab.changed_since_mark(DESK) == ""


def test_agent_without_its_server_is_told_so(lab: K3sLab) -> None:
    run = lab.play("--limit", AGENT, ok=False, lab_address="")
    assert "Mend: set lab_address" in run.messages or "Mend: run it on the server too" in run.messages, run.messages


@dataclass(frozen=True)
class History:
    """The first runs."""

    predicted: Run
    made: Run
    again: Run
    predicted_again: Run
    command_lines: frozenset[bytes]


@pytest.fixture(scope="module")
def history(lab: K3sLab) -> History:
    predicted = lab.play("--check", "--diff")
    with Sampler() as sampler:
        made = lab.play("-vvv", "--diff")
    again = lab.play("--diff")
    return History(predicted, made, again, lab.play("--check", "--diff"), frozenset(sampler.seen))


@pytest.fixture(scope="module")
def cluster(lab: K3sLab, history: History) -> K3sLab:
    """The lab with its cluster."""
    return lab


def test_check_predicts_and_a_second_run_changes_nothing(history: History) -> None:
    for host in HOSTS:
        assert history.predicted.task(host, CONVERGE).subjects == history.made.task(host, CONVERGE).subjects
    assert set(history.again.changed.values()) == {0}
    assert set(history.predicted_again.changed.values()) == {0}
    # a server runs one module, an agent two
    names = ("k3s", "slurp", "command")
    calls = {
        host: [task.action for task in history.again.modules(host) if task.ending == "ok" and task.action in names]
        for host in HOSTS
    }
    assert calls == {DESK: ["k3s"], AGENT: ["slurp", "k3s"]}


def test_no_secret_is_ever_shown(cluster: K3sLab, history: History) -> None:
    token = cluster.root(f"cat {STATE}/token").strip()
    agents = cluster.root(f"cat {STATE}/agent-token").strip()
    key = cluster.root("grep client-key-data /etc/rancher/k3s/k3s.yaml").split()[-1]
    assert len(token) == len(agents) == 64 and token != agents
    for secret in (token, agents, key, "canary-of-a-proxy"):
        for run in (history.predicted, history.made, history.again):
            assert secret not in run.output
            for file in run.artifacts.rglob("*"):
                assert not file.is_file() or secret not in file.read_text(encoding="utf-8", errors="replace"), file
        for host in HOSTS:
            assert secret not in cluster.root("journalctl --no-pager", host)
        assert not any(secret.encode() in line for line in history.command_lines)
    for host, files in {DESK: ("token", "agent-token", "join.json", "record.json"), AGENT: ("join-token",)}.items():
        for file in files:
            assert cluster.root(f"stat -c '%a %U' {STATE}/{file}", host) == "600 root\n"
    # with what an agent has, nobody becomes a server
    assert token not in cluster.root(f"cat {STATE}/join-token", AGENT)
    assert cluster.root("stat -c %a /etc/systemd/system/k3s.service.env") == "600\n"


def test_server_and_agent_are_one_cluster(cluster: K3sLab) -> None:
    assert cluster.get("/version")["gitVersion"] == OLD
    found = cluster.nodes()
    assert set(found) == {DESK, AGENT}
    labels = {name: one["metadata"]["labels"] for name, one in found.items()}
    assert labels[DESK]["skypilot.co/accelerator"] == "a6000"
    assert "skypilot.co/accelerator" not in labels[AGENT]
    assert [cluster.running(host) for host in HOSTS] == [OLD, OLD]
    assert "Importing images" in cluster.root("journalctl --no-pager -u k3s")
    assert cluster.root("kubectl get --raw /readyz") == "ok\n"


def test_kubeconfig_is_for_root_and_readers_alone(cluster: K3sLab) -> None:
    assert cluster.root("stat -c '%a %U' /etc/rancher/k3s/k3s.yaml") == "600 root\n"
    assert cluster.root("stat -c '%a %U' /etc/rancher/k3s/readers/ada.yaml") == "600 ada\n"
    assert "current-context: default" in cluster.root("cat /etc/rancher/k3s/k3s.yaml")
    seen = {
        user: cluster.closet.user(f"{user}@{DESK}", "bash -lc 'kubectl get --raw /readyz'") for user in ("ada", "ben")
    }
    assert (seen["ada"].returncode, seen["ada"].stdout.strip()) == (0, "ok")
    assert seen["ben"].returncode != 0
    assert cluster.closet.user(f"ben@{DESK}", "cat /etc/rancher/k3s/readers/ada.yaml").returncode != 0


def test_namespaces_have_their_quotas(cluster: K3sLab) -> None:
    (quota,) = cluster.get("/api/v1/namespaces/vision/resourcequotas")["items"]
    assert quota["spec"]["hard"]["requests.nvidia.com/gpu"] == "1"
    cluster.play("--limit", DESK, k3s_namespaces=[{"name": "speech", "gpus": 2}])
    until("speech", lambda: cluster.root("ls /var/lib/rancher/k3s/server/manifests"), lambda seen: "speech" in seen)
    until("it is there", lambda: cluster.get("/api/v1/namespaces"), lambda seen: "speech" in json.dumps(seen))
    # one that left is there with all that is in it
    assert cluster.get("/api/v1/namespaces/vision")["metadata"]["name"] == "vision"
    assert cluster.play("--limit", DESK, k3s_namespaces=[{"name": "speech", "gpus": 2}]).changed == {DESK: 0}
    cluster.play("--limit", DESK)


def test_toolkit_that_came_later_is_found_and_no_pod_ends(cluster: K3sLab) -> None:
    assert cluster.gpus() == "0"
    pods = cluster.pods(DESK)
    assert pods
    cluster.root("printf '#!/bin/sh\\n' >/usr/bin/nvidia-container-runtime; chmod +x /usr/bin/nvidia-container-runtime")
    waits = cluster.play("--limit", DESK, lab_max_disruption="reload").task(DESK, CONVERGE).result["pending"]
    assert [(change["subject"], change["disruption"]) for change in waits] == [("service k3s", "restart")]
    predicted = cluster.play("--limit", DESK, "--check").task(DESK, CONVERGE)
    made = cluster.play("--limit", DESK).task(DESK, CONVERGE)
    assert made.subjects == predicted.subjects == ["service k3s"]
    until("GPUs are given out", cluster.gpus, lambda seen: seen == "2")
    assert cluster.pods(DESK) == pods
    assert cluster.play().changed == {DESK: 0, AGENT: 0}


def test_shares_of_a_gpu(cluster: K3sLab) -> None:
    pods = cluster.pods(DESK)
    cluster.play("--limit", DESK, k3s_gpu_replicas=3)
    until("shares are given out", cluster.gpus, lambda seen: seen == "6")
    assert cluster.pods(DESK) == pods
    cluster.play("--limit", DESK)
    until("whole GPUs again", cluster.gpus, lambda seen: seen == "2")


def test_drift_by_hand_is_mended(cluster: K3sLab) -> None:
    cluster.root("echo 'disable: []' >>/etc/rancher/k3s/config.yaml; rm /usr/local/bin/kubectl")
    run = cluster.play("--limit", DESK).task(DESK, CONVERGE)
    assert run.subjects == ["file /etc/rancher/k3s/config.yaml", "link /usr/local/bin/kubectl", "service k3s"]
    assert cluster.play("--limit", DESK).changed == {DESK: 0}


def test_steps_that_no_cluster_takes_change_nothing(cluster: K3sLab) -> None:
    for host in HOSTS:
        cluster.root("touch /run/mark", host)
    said = {
        DESK: "it takes one minor version at a time. Mend: Set k3s_version to the newest v1.35 first",
        AGENT: "it takes one minor version at a time",
    }
    run = cluster.play(ok=False, k3s_version=NEWEST)
    assert said[DESK] in run.task(DESK, CONVERGE).result["msg"]
    alone = cluster.play("--limit", AGENT, ok=False, k3s_version=NEW)
    assert f"the server has {OLD}: no agent may be newer" in alone.messages
    refused = cluster.play("--limit", DESK, ok=False, k3s_version=NEW, k3s_settings={"cluster-cidr": "10.50.0.0/16"})
    assert "which it keeps" in refused.messages
    wrong = cluster.play("--limit", DESK, ok=False, k3s_version=NEW, k3s_artifact_sha256={"amd64": "0" * 64})
    assert "k3s_artifact_sha256 says" in wrong.messages
    for host in HOSTS:
        assert cluster.changed_since_mark(host) == ""
        assert cluster.running(host) == OLD


def test_upgrade_that_was_cut_short_is_taken_up(cluster: K3sLab) -> None:
    """The run ends after the new program is in its place: a restart that systemd refuses."""
    pods = {host: cluster.pods(host) for host in HOSTS}
    real = "/usr/bin/systemctl"
    script = f'#!/bin/sh\ncase "$*" in restart*) exit 5;; esac\nexec {real}.real "$@"\n'
    cluster.root(f"mv {real} {real}.real")
    node.exec(cluster.closet.lab.node(DESK), ["sh", "-c", f"cat >{real}; chmod +x {real}"], input=script)
    try:
        failed = cluster.play("--limit", DESK, ok=False, k3s_version=NEW)
    finally:
        cluster.root(f"mv {real}.real {real}")
    assert "systemctl restart k3s failed" in failed.messages
    assert (cluster.root("k3s --version").split()[2], cluster.running(DESK)) == (NEW, OLD)
    # nobody may go on from where it never was
    skipped = cluster.play("--limit", DESK, ok=False, k3s_version=NEWEST)
    assert "one minor version at a time" in skipped.messages
    predicted = cluster.play("--check", k3s_version=NEW)
    made = cluster.play(k3s_version=NEW)
    for host in HOSTS:
        assert predicted.task(host, CONVERGE).subjects == made.task(host, CONVERGE).subjects
        assert cluster.running(host) == NEW
        assert cluster.pods(host) == pods[host]
    assert cluster.play(k3s_version=NEW).changed == {DESK: 0, AGENT: 0}
    copy = f"{STATE}/snapshots/state-{OLD}.db"
    select = f"print(len(sqlite3.connect('{copy}').execute('SELECT name FROM kine').fetchall()))"
    assert int(cluster.root(f'python3 -c "import sqlite3; {select}"')) > 5
    assert cluster.root(f"stat -c '%a %U' {copy}") == "600 root\n"


def test_no_cluster_goes_back(cluster: K3sLab) -> None:
    cluster.root("touch /run/mark")
    run = cluster.play(ok=False, k3s_version=OLD)
    assert f"k3s {NEW} has run here and k3s_version is {OLD}: a cluster does not go back" in run.messages
    cluster.root("systemctl stop k3s")
    run = cluster.play("--limit", DESK, ok=False, k3s_version=OLD)
    assert "a cluster does not go back" in run.messages
    cluster.root("systemctl start k3s")
    assert "/usr/local/bin" not in cluster.changed_since_mark(DESK)


def test_etcd_is_copied_by_its_own_command(cluster: K3sLab) -> None:
    etcd: dict[str, Any] = {"k3s_settings": {"cluster-init": True}}
    cluster.play("--limit", DESK, k3s_version=NEW, **etcd)
    cluster.play(k3s_version=NEWEST, **etcd)
    assert [cluster.running(host) for host in HOSTS] == [NEWEST, NEWEST]
    assert f"labrack-{NEW.replace('+', '-')}-desk-" in cluster.root(f"ls {STATE}/snapshots")
    assert cluster.play(k3s_version=NEWEST, **etcd).changed == {DESK: 0, AGENT: 0}


ETCD: dict[str, Any] = {"k3s_version": NEWEST, "k3s_settings": {"cluster-init": True}}


def test_agent_leaves_by_consent_and_joins_again(cluster: K3sLab) -> None:
    waits = cluster.play("--limit", AGENT, k3s_state="absent").task(AGENT, CONVERGE).result
    assert {change["disruption"] for change in waits["pending"]} == {"drain"} and not waits["changed"]
    assert AGENT in cluster.nodes()
    gone = {"k3s_state": "absent", "lab_max_disruption": "drain"}
    predicted = cluster.play("--limit", AGENT, "--check", **gone).task(AGENT, CONVERGE)
    assert cluster.play("--limit", AGENT, **gone).task(AGENT, CONVERGE).subjects == predicted.subjects
    assert AGENT not in cluster.nodes()
    assert cluster.play("--limit", AGENT, **gone).changed == {AGENT: 0}
    # a k3s of somebody else's is left alone
    cluster.root("printf '#!/bin/sh\\n' >/usr/local/bin/k3s; touch /run/mark", AGENT)
    refused = cluster.play(ok=False, **ETCD)
    assert "there is a k3s here that labrack did not install (/usr/local/bin/k3s)" in refused.messages
    assert cluster.play("--limit", AGENT, **gone).changed == {AGENT: 0}
    assert cluster.changed_since_mark(AGENT) == ""
    cluster.root("rm /usr/local/bin/k3s", AGENT)
    cluster.play(**ETCD)
    until("the agent is back", cluster.nodes, lambda seen: AGENT in seen)


def test_way_back_leaves_what_others_have(cluster: K3sLab) -> None:
    cluster.root("ip link add cni0 type bridge")
    gone = {"k3s_state": "absent", "lab_max_disruption": "drain"}
    predicted = cluster.play("--check", **gone)
    made = cluster.play(**gone)
    for host in HOSTS:
        assert predicted.task(host, CONVERGE).subjects == made.task(host, CONVERGE).subjects
        assert snapshot(cluster.closet, host) == cluster.before[host]
        assert cluster.root("pgrep -fa '[k]3s|[c]ontainerd-shim' || true", host) == ""
        places = "/var/lib/rancher /etc/rancher /var/lib/labrack/k3s /run/k3s /var/lib/kubelet /usr/local/bin"
        left = cluster.root(f"find {places} -type f -o -type l 2>/dev/null || true", host)
        assert set(left.split()) == set(OTHERS)
        assert cluster.root("ls /root/tailscale-was-called 2>/dev/null || true", host) == ""
        assert "cni0" not in cluster.root("ip link", host)
    assert cluster.play(**gone).changed == {DESK: 0, AGENT: 0}
