# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planner of k3s, what it writes, its copies of a database, and the rules for its variables."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import generate_docs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import k3s_observe as host
from ansible_collections.labrack.infra.plugins.module_utils import k3s_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils.change import Change, consent
from ansible_collections.labrack.infra.plugins.module_utils.download import DownloadError
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from ansible_collections.labrack.infra.plugins.module_utils.k3s_plan import (
    AGENT_TOKEN,
    BINARY,
    CONFIG,
    DATA,
    DEVICE_PLUGIN,
    GPU_OPERATOR,
    JOIN,
    JOIN_TOKEN,
    KUBECONFIG,
    LINKS,
    MADE_TOKEN,
    MANIFESTS,
    PROFILE,
    STATE,
    TOKEN,
    TREES,
    Gpus,
    K3sError,
    Namespace,
    Observed,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.lab_check import check_facts, check_inventory
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.rules_k3s import check_k3s, check_k3s_facts
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState
from ansible_collections.labrack.infra.plugins.modules import k3s as module
from tests.mirror import k3s as mirror

SECRET = "canary-of-a-token"
OLD, NEW, NEWEST = mirror.VERSIONS
ADDRESSES = {"192.168.1.10": "eth0", "10.0.0.1": "eth1"}
A6000 = ("NVIDIA RTX A6000", 49140)
#: What somebody else has on the node, which nothing may touch.
OTHERS = {"/etc/rancher/rke2/config.yaml", f"{DATA}/agent/images/own.tar", "/var/lib/rancher/rke2"}


def server(**changed: Any) -> Wanted:
    made: dict[str, Any] = {
        "version": NEWEST,
        "node_name": "desk",
        "node_ip": "192.168.1.10",
        "disable": ("traefik", "servicelb"),
        "gpus": Gpus(image="nvcr.io/nvidia/k8s-device-plugin:v0.20.1"),
    }
    return Wanted(**{**made, **changed})


def agent(**changed: Any) -> Wanted:
    made = {"server": False, "node_name": "node1", "server_url": "https://192.168.1.10:6443", "join_token": SECRET}
    return server(**{**made, **changed})


names = st.sampled_from(["vision", "speech", "guests"])
namespaces = st.builds(
    Namespace,
    names,
    st.none() | st.integers(0, 8),
    st.none() | st.integers(1, 64),
    st.sampled_from(["", "64Gi"]),
)
gpus = st.builds(
    Gpus,
    st.sampled_from(["manifest", "gpu_operator", "none"]),
    st.just("image:v1"),
    st.integers(1, 4),
    st.sampled_from(["none", "single", "mixed"]),
    st.just("v26.7.0"),
    st.just("https://helm.lab"),
)
wishes = st.fixed_dictionaries(
    {
        "version": st.sampled_from(mirror.VERSIONS),
        "images": st.booleans(),
        "disable": st.sampled_from([(), ("traefik",)]),
        "settings": st.sampled_from([{}, {"kubelet-arg": ["max-pods=50"]}, {"datastore-endpoint": SECRET}]),
        "environment": st.sampled_from([{}, {"HTTPS_PROXY": f"http://me:{SECRET}@proxy"}]),
        "cards": st.sampled_from([None, (), (A6000,), (A6000, A6000)]),
        "gpus": gpus,
        "namespaces": st.lists(namespaces, unique_by=lambda one: one.name, max_size=2).map(tuple),
    }
)
servers = st.builds(
    lambda made, readers: server(**made, readers=readers), wishes, st.sampled_from([(), ("ada",), ("ada", "ben")])
)
agents = st.builds(lambda made: agent(**made), wishes)
EMPTY = Observed(addresses=ADDRESSES, toolkit="/usr/bin/nvidia-container-runtime")


def applied(state: Observed, wanted: Wanted, changes: list[Change] | None = None) -> Observed:
    """What a node is after every change of a plan was made."""
    files, links = dict(state.files), dict(state.links)
    found = {"version": state.version, "images": state.images, "running": state.running, "ran": state.ran}
    service, shims, trees, runtimes = state.service, state.shims, set(state.trees), state.runtimes
    clock = service.since
    written: dict[str, float] = dict(state.written)
    ours, database, role = state.ours, state.database, state.role
    changes = planner.plan(state, wanted) if changes is None else changes
    if changes and wanted.present:
        ours, role = True, "server" if wanted.server else "agent"
        trees.add(STATE)
    for change in changes:
        verb, *rest = change.step
        if verb == "install":
            found["version"] = wanted.version
        elif verb == "images":
            found["images"] = wanted.version
        elif verb == "link":
            links[rest[0]] = "k3s"
        elif verb == "token":
            files[rest[0]] = FileState(SECRET, "0600")
        elif verb == "write" and rest[0].startswith(planner.READERS):
            original = files[KUBECONFIG]
            assert original
            user = Path(rest[0]).stem
            files[rest[0]] = FileState(original.text, "0600", user, "root")
        elif verb == "write":
            files[rest[0]] = planner.wanted_file(rest[0], wanted, state)
            written[rest[0]] = clock + 1
            if rest[0] == planner.unit_path(wanted.unit):
                service = replace(service, installed=True)
        elif verb == "enable":
            service = replace(service, enabled=True)
        elif verb == "restart":
            assert found["version"] and files[CONFIG] and service.installed
            clock += 2
            service = replace(service, active=True, since=clock)
            found.update(running=found["version"], ran=max(found["version"], found["ran"], key=planner.numbers))
            shims = 1
            trees |= set(TREES)
            runtimes = frozenset({"runc", "nvidia"} if state.toolkit else {"runc"})
            if wanted.server:
                assert files[TOKEN] and files[AGENT_TOKEN]
                database = database or "sqlite"
                files.setdefault(KUBECONFIG, FileState("kubeconfig", "0600"))
                files.setdefault(MADE_TOKEN, FileState(f"K10::node:{SECRET}", "0600"))
        elif verb == "join":
            made = files[MADE_TOKEN]
            assert made
            files[JOIN] = FileState(planner.join_text(wanted, made.text), "0600")
        elif verb == "snapshot":
            assert state.database
        elif verb in ("remove", "unapply") and rest[0] == BINARY:
            found.update(version="")
        elif verb in ("remove", "unapply"):
            assert rest[0] not in OTHERS
            links.pop(rest[0], None)
            files.pop(rest[0], None)
            if rest[0] in (planner.unit_path("k3s"), planner.unit_path("k3s-agent")):
                service = ServiceState()
        elif verb == "disable":
            service = replace(service, active=False, enabled=False)
            found["running"] = ""
        elif verb == "pods":
            shims = 0
        elif verb == "tree":
            trees.discard(rest[0])
            files = {path: file for path, file in files.items() if not path.startswith(f"{rest[0]}/")}
            if rest[0] == STATE:
                ours, role, found["ran"], found["images"] = False, "", "", ""
            if rest[0] == DATA:
                database, runtimes = "", None
        else:
            raise AssertionError(change)
    return replace(
        state,
        ours=ours,
        role=role,
        files=files,
        written=written,
        links=links,
        service=service,
        shims=shims,
        trees=tuple(path for path in TREES if path in trees),
        database=database,
        runtimes=runtimes,
        **found,
    )


GONE = server(present=False)


@given(st.one_of(st.tuples(servers, servers), st.tuples(agents, agents)))
def test_plan_ends_where_it_should_from_anywhere_and_back(pair: tuple[Wanted, Wanted]) -> None:
    state = EMPTY
    for wanted in sorted(pair, key=lambda one: planner.numbers(one.version)):
        try:
            state = applied(state, wanted)
        except K3sError as error:
            # 1.34 to 1.36
            assert "one minor version at a time" in str(error)
            continue
        assert planner.plan(state, wanted) == []
        assert state.running == wanted.version
    state = applied(state, replace(GONE, server=pair[0].server))
    assert not state.ours and not state.version and not state.trees and not state.shims
    assert not [path for path, file in state.files.items() if file]
    assert set(state.links.values()) <= {"other"}
    assert planner.plan(state, GONE) == []


@given(
    servers,
    st.sampled_from(mirror.VERSIONS),
    st.sampled_from(["", *mirror.VERSIONS]),
    st.sampled_from(["", *mirror.VERSIONS]),
    st.booleans(),
)
def test_never_back_and_never_over_a_minor_version(
    wanted: Wanted, ran: str, running: str, file: str, active: bool
) -> None:
    """Whatever lies on the disk: what counts is what runs and what has run on these data."""
    state = applied(EMPTY, replace(wanted, version=ran))
    running = max(running, ran, key=planner.numbers) if running else ""
    service = replace(state.service, active=active)
    state = replace(state, version=file, running=running if active else "", ran=ran, service=service)
    base = planner.numbers(max(state.running, ran, key=planner.numbers))
    target = planner.numbers(wanted.version)
    if target < base or target[1] > base[1] + 1:
        with pytest.raises(K3sError):
            planner.plan(state, wanted)
        return
    changes = planner.plan(state, wanted)
    steps = [change.step[0] for change in changes]
    if target > base and state.version != wanted.version:
        # the copy comes first of all
        assert changes[0].step == ("snapshot", planner.base_version(state))
    # what was cut short is taken up, whatever the file says
    if active and state.running != wanted.version:
        assert "restart" in steps


@given(st.one_of(servers, agents))
def test_no_secret_is_in_a_plan(wanted: Wanted) -> None:
    state = applied(EMPTY, wanted)
    other = replace(wanted, settings={"datastore-endpoint": f"{SECRET}-2"}, environment={"HTTP_PROXY": SECRET})
    other = replace(other, join_token=f"{SECRET}-2" if not wanted.server else "")
    for one in (EMPTY, state):
        for goal in (wanted, other, replace(GONE, server=wanted.server)):
            changes = planner.plan(one, goal)
            assert SECRET not in repr(changes)
    assert SECRET not in repr(state) and SECRET not in repr(agent(environment={"A": SECRET}))


@given(st.one_of(servers, agents))
def test_nothing_is_put_on_a_node_without_consent(wanted: Wanted) -> None:
    now, _pending = consent(planner.plan(EMPTY, wanted), "none")
    assert now == []


@given(servers)
def test_what_is_written_is_yaml(wanted: Wanted) -> None:
    config = planner.config(wanted, EMPTY)
    assert yaml.safe_load(planner.config_text(config)) == config
    assert planner.read_config(planner.config_text(config)) == config
    for path, text in planner.manifests(wanted).items():
        documents = list(yaml.safe_load_all(text))
        assert all({"apiVersion", "kind", "metadata"} <= set(one) for one in documents)
        # what k3s takes for an AddOn's name
        assert set(Path(path).stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        for one in documents:
            inner = one.get("data", {}).get("config.yaml") or one.get("spec", {}).get("valuesContent")
            if inner:
                assert isinstance(yaml.safe_load(inner), Mapping)


def steps(state: Observed, wanted: Wanted) -> list[tuple[str, ...]]:
    return [change.step for change in planner.plan(state, wanted)]


def test_first_server() -> None:
    changes = planner.plan(EMPTY, server(readers=("ada",), cards=(A6000,)))
    verbs = [change.step[0] for change in changes]
    # all of it is there before the start, what comes of it after
    assert verbs.index("install") < verbs.index("restart") < verbs.index("join")
    assert ("write", planner.reader_path("ada")) in [change.step for change in changes[verbs.index("restart") :]]
    config = planner.config(server(cards=(A6000,)), EMPTY)
    assert config["node-label"] == ["skypilot.co/accelerator=a6000", "nvidia.com/gpu.present=true"]
    assert config["flannel-iface"] == "eth0"
    assert config["secrets-encryption"] is True
    assert config["write-kubeconfig-mode"] == "0600"
    assert "token" not in config


def test_toolkit_that_came_later_restarts_it_and_no_pod_ends() -> None:
    wanted = server(cards=(A6000,))
    bare = replace(EMPTY, toolkit="")
    state = applied(bare, wanted)
    assert planner.plan(state, wanted) == []
    assert "no pod gets one" in planner.notes(state, wanted)[0]
    state = replace(state, toolkit="/usr/bin/nvidia-container-runtime")
    (change,) = planner.plan(state, wanted)
    assert (change.subject, change.disruption) == ("service k3s", "restart")
    assert planner.plan(applied(state, wanted), wanted) == []
    assert "KillMode=process\n" in planner.unit_text(server=True)
    # a node without cards does not care
    assert planner.plan(replace(applied(bare, server()), toolkit="/usr/bin/x"), server()) == []


def test_settings_of_a_server_are_no_agents() -> None:
    settings = {"cluster-init": True, "kubelet-arg+": ["max-pods=50"], "node-taint": ["a=b:NoSchedule"]}
    assert settings.items() <= planner.config(server(settings=settings), EMPTY).items()
    assert set(planner.config(agent(settings=settings), EMPTY)) & set(settings) == {"kubelet-arg+", "node-taint"}


def test_card_that_does_not_tell_its_name_changes_nothing() -> None:
    state = applied(EMPTY, server(cards=(A6000,)))
    assert planner.plan(state, server(cards=None)) == []
    assert planner.plan(state, server(cards=())) != []


def test_operator_makes_nvidia_the_default_only_where_it_is() -> None:
    wanted = server(cards=(A6000,), gpus=Gpus("gpu_operator", operator_version="v26.7.0"))
    assert planner.config(wanted, EMPTY)["default-runtime"] == "nvidia"
    assert "default-runtime" not in planner.config(wanted, replace(EMPTY, toolkit=""))
    state = applied(EMPTY, server(cards=(A6000,)))
    found = steps(state, wanted)
    assert (
        found.index(("write", GPU_OPERATOR)) < found.index(("restart", "k3s")) < found.index(("unapply", DEVICE_PLUGIN))
    )


def test_namespace_that_leaves_keeps_its_pods() -> None:
    state = applied(EMPTY, server(namespaces=(Namespace("vision", 2), Namespace("speech", 1))))
    (change,) = planner.plan(state, server(namespaces=(Namespace("speech", 1),)))
    assert change.step == ("remove", f"{MANIFESTS}/labrack-namespace-vision.yaml")
    assert "kubectl delete namespace vision" in change.summary


def test_quota_counts_what_pods_ask_for() -> None:
    _namespace, quota, limits = planner.namespace_objects(Namespace("vision", 2, 16, "64Gi"))
    assert quota["spec"]["hard"] == {
        "requests.nvidia.com/gpu": "2",
        "requests.cpu": "16",
        "requests.memory": "64Gi",
    }
    assert limits["spec"]["limits"][0]["defaultRequest"] == {"cpu": "100m", "memory": "128Mi"}
    assert len(planner.namespace_objects(Namespace("guests", 0))) == 2


def test_shares_of_a_gpu() -> None:
    assert "sharing" not in planner.plugin_config(Gpus())
    sharing = planner.plugin_config(Gpus(replicas=4))["sharing"]["timeSlicing"]
    assert sharing["resources"] == [{"name": "nvidia.com/gpu", "replicas": 4}]
    assert sharing["failRequestsGreaterThanOne"] is True
    state = applied(EMPTY, server())
    assert steps(state, server(gpus=Gpus(image=server().gpus.image, replicas=4))) == [("write", DEVICE_PLUGIN)]


@pytest.mark.parametrize(
    ("name", "memory", "label"),
    [
        ("NVIDIA RTX A6000", 49140, "a6000"),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090"),
        ("NVIDIA GeForce RTX 3080 Ti", 12288, "rtx3080-ti"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100"),
        ("NVIDIA A100 80GB PCIe", 81920, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA H200 NVL", 143771, "h200"),
        ("Tesla V100-SXM2-32GB", 32768, "v100-32gb"),
        ("Tesla V100-SXM2-16GB", 16384, "v100"),
        ("Tesla T4", 15360, "t4"),
        ("NVIDIA A10G", 23028, "a10g"),
        ("NVIDIA L40S", 46068, "l40s"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "rtx6000-ada"),
        ("NVIDIA RTX 4000 SFF Ada Generation", 20475, "rtx4000-sff-ada-generation"),
        ("NVIDIA GH200 480GB", 97871, "gh200"),
        ("", 0, "unknown"),
    ],
)
def test_names_that_skypilot_asks_for(name: str, memory: int, label: str) -> None:
    assert planner.accelerator(name, memory) == label


@given(st.text(max_size=80), st.integers(0, 200000))
def test_any_name_makes_a_label(name: str, memory: int) -> None:
    value = planner.accelerator(name, memory)
    assert value == value.lower() and 0 < len(value) <= 63
    assert value[0].isalnum() and value[-1].isalnum() and all(char.isalnum() or char in "-_." for char in value)


@pytest.mark.parametrize(
    ("changed", "wanted", "said"),
    [
        ({"foreign": (BINARY,)}, server(), "that labrack did not install"),
        ({"ports": {6443: "kube-apiserver"}}, server(), "port 6443 is taken by kube-apiserver"),
        ({"ports": {10250: "kubelet"}}, agent(), "port 10250 is taken by kubelet"),
        ({}, server(node_ip="192.0.2.1"), "not an address of this node, which has 192.168.1.10, 10.0.0.1"),
        ({}, server(node_ip=""), "is not an address of this node"),
        ({}, server(version="latest"), "no version of k3s"),
        ({}, agent(join_token=""), "no token yet for agents"),
        ({}, agent(server_url=""), "address is not known"),
        ({}, agent(server_version=NEW), "no agent may be newer"),
        ({"ours": True, "role": "agent"}, server(), "is the agent of a cluster"),
    ],
)
def test_what_keeps_a_node_from_it_is_told_first(changed: dict[str, Any], wanted: Wanted, said: str) -> None:
    with pytest.raises(K3sError, match=said.replace("(", r"\(")) as told:
        planner.plan(replace(EMPTY, **changed), wanted)
    assert "Mend: " in str(told.value)


@pytest.mark.parametrize(("ports", "wanted"), [({6443: "haproxy"}, agent()), ({80: "nginx"}, server())])
def test_other_ports_are_others(ports: dict[int, str], wanted: Wanted) -> None:
    assert planner.plan(replace(EMPTY, ports=ports), wanted)


def test_cluster_keeps_what_it_was_made_with() -> None:
    state = applied(EMPTY, server())
    with pytest.raises(K3sError, match=r"cluster-cidr = 10\.50\.0\.0/16, and this cluster was made with None"):
        planner.plan(state, server(settings={"cluster-cidr": "10.50.0.0/16"}))
    with pytest.raises(K3sError, match="node-name = box"):
        planner.plan(state, server(node_name="box"))


def test_upgrade_that_was_cut_short() -> None:
    """The file is new, the process old: what is left to do is done, and no version in between is left out."""
    state = applied(EMPTY, server(version=NEW))
    cut = replace(state, version=NEWEST)
    assert steps(cut, server())[0] == ("restart", "k3s")
    assert "v1.35.7+k3s1 runs" in planner.plan(cut, server())[0].summary
    # given up: the newer one never ran
    assert ("install",) in steps(cut, server(version=NEW))
    stopped = replace(cut, running="", service=replace(cut.service, active=False))
    with pytest.raises(K3sError, match="does not go back"):
        planner.plan(replace(stopped, ran=NEWEST), server(version=NEW))
    # nothing tells what ran: the file beside the database is the best guess
    with pytest.raises(K3sError, match="does not go back"):
        planner.plan(replace(stopped, ran=""), server(version=NEW))


def test_server_whose_upgrade_waits_hands_nothing_over() -> None:
    state = applied(EMPTY, server(version=NEW))
    changes = planner.plan(state, server())
    now, pending = consent(changes, "none")
    assert now == []
    assert f"file {JOIN}" in {change.subject for change in pending}


def test_agent_that_can_not_ask_the_server_keeps_its_token() -> None:
    state = applied(EMPTY, agent())
    assert planner.plan(state, agent(join_token="", server_url="")) == []
    assert [change.step for change in planner.plan(state, agent(join_token="other"))] == [
        ("write", JOIN_TOKEN),
        ("restart", "k3s-agent"),
    ]


def test_going_ends_pods_by_consent_alone() -> None:
    state = applied(EMPTY, server())
    changes = planner.plan(state, GONE)
    assert {change.disruption for change in changes} == {"drain"}
    assert {change.disruption for change in planner.plan(replace(state, shims=0), GONE)} == {"restart"}
    # the record last, so that what was cut short is taken up
    assert changes[-1].step == ("tree", STATE)
    shared = planner.plan(replace(state, kubelet_of_others=True), GONE)
    assert not {("tree", path) for path in planner.SHARED} & {change.step for change in shared}


def test_links_of_others_stay() -> None:
    links = {LINKS[0]: "other", LINKS[1]: "", LINKS[2]: "k3s"}
    state = replace(applied(EMPTY, server()), links=links)
    assert steps(state, server()) == [("link", LINKS[1])]
    assert ("remove", LINKS[0]) not in steps(state, GONE)


def test_readers_come_and_go() -> None:
    state = applied(EMPTY, server(readers=("ada",)))
    renewed = replace(state, files={**state.files, KUBECONFIG: FileState("renewed", "0600")})
    assert steps(renewed, server(readers=("ada",))) == [("write", planner.reader_path("ada"))]
    assert steps(state, server()) == [("remove", planner.reader_path("ada")), ("remove", PROFILE)]


# --- observe ---------------------------------------------------------------------------------------------------------


def test_version_is_read_as_k3s_prints_it() -> None:
    assert planner.read_version("k3s version v1.36.3+k3s1 (079ffa8d)\ngo version go1.26.4\n") == NEWEST
    assert planner.read_version("Python 3.13.5\n") == ""
    assert planner.numbers("v1.34.10+k3s1") < planner.numbers("v1.34.10+k3s2") < planner.numbers("v1.35.0+k3s1")


def test_runtimes_are_read_as_containerd_has_them() -> None:
    two = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'nvidia']\n  runtime_type = \"x\"\n"
    one = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes."nvidia-cdi"]\n[a.runtimes.runc.options]\n'
    assert host.read_runtimes(two) == {"nvidia"}
    assert host.read_runtimes(one) == {"nvidia-cdi"}
    assert host.read_runtimes(None) is None


def test_addresses_are_those_of_the_machine() -> None:
    text = """[{"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
        {"ifname": "eth0", "addr_info": [{"local": "192.168.1.10", "scope": "global"}]},
        {"ifname": "cni0", "addr_info": [{"local": "10.42.0.1", "scope": "global"}]}]"""
    assert host.read_addresses(text) == {"192.168.1.10": "eth0"}
    assert host.read_addresses("") == host.read_addresses("no") == {}


@pytest.mark.parametrize(
    ("path", "others"),
    [
        ("agent/images/k3s-airgap-images-amd64.tar.zst", False),
        ("agent/images/.cache.json", False),
        ("agent/images/device-plugin.tar", True),
        ("server/manifests/coredns.yaml", False),
        ("server/manifests/metrics-server/role.yaml", False),
        ("server/manifests/labrack-device-plugin.yaml", False),
        ("server/manifests/own-dashboard.yaml", True),
        ("storage/pvc-1/weights", True),
        ("server/db/state.db", False),
    ],
)
def test_what_is_left_to_others(path: str, others: bool) -> None:
    assert host.is_others(f"{DATA}/{path}") is others


def test_trees_are_removed_with_what_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top, outside = tmp_path / "k3s", tmp_path / "outside"
    for path in (top / "server/db", top / "agent/images", outside):
        path.mkdir(parents=True)
        (path / "file").write_text("x")
    (top / "data").symlink_to(outside)
    monkeypatch.setattr(host, "is_others", lambda path: path == str(top / "agent/images/file"))
    host.remove_tree(str(top))
    assert [str(path.relative_to(top)) for path in sorted(top.rglob("*"))] == [
        "agent",
        "agent/images",
        "agent/images/file",
    ]
    assert (outside / "file").exists()


def test_rules_of_the_firewall_that_are_not_ours_stay() -> None:
    assert host.own_rules("-A FORWARD -j KUBE-FORWARD\n") and host.own_rules("-A POSTROUTING -j FLANNEL-POSTRTG\n")
    assert not host.own_rules("-A FORWARD -j DOCKER-USER\n-A INPUT -j ts-input\n")


def test_database_is_copied_in_use(tmp_path: Path) -> None:
    source, target = tmp_path / "state.db", tmp_path / "copy.db"
    base = sqlite3.connect(source, isolation_level=None)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("CREATE TABLE kine (name TEXT)")
    base.execute("INSERT INTO kine VALUES ('committed')")
    base.execute("BEGIN")
    base.execute("INSERT INTO kine VALUES ('not yet')")
    host.copy_sqlite(str(source), str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    assert sqlite3.connect(target).execute("SELECT name FROM kine").fetchall() == [("committed",)]
    base.execute("COMMIT")
    assert [path.name for path in tmp_path.glob("*.new")] == []


def test_damaged_database_stops_the_upgrade(tmp_path: Path) -> None:
    source = tmp_path / "state.db"
    source.write_bytes(b"no database" * 100)
    with pytest.raises(K3sError, match="so nothing was upgraded"):
        host.copy_sqlite(str(source), str(tmp_path / "copy.db"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.db"]


# --- releases --------------------------------------------------------------------------------------------------------


DOWNLOAD = module.download


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """The mirror's tree, with a shell script for the program."""
    script = b"#!/bin/sh\nx='" + mirror.PLACE.ljust(mirror.ROOM, b"\0") + b"'\n"
    mirror.write_releases(tmp_path / "tree", script, "amd64")
    return tmp_path / "tree"


def fetch(releases: Path, folder: Path, version: str, monkeypatch: pytest.MonkeyPatch, **params: Any) -> list[str]:
    """Fetch a release from the tree and return the addresses that were asked."""
    asked: list[str] = []

    def download(url: str, target: Path, check: str) -> str:
        asked.append(url)
        return DOWNLOAD(f"file://{releases}{url[len('https://mirror') :].replace('%2B', '+')}", target, check)

    monkeypatch.setattr(module, "download", download)
    monkeypatch.setattr(host, "program_version", lambda _path: params.pop("told", version))
    node = module.Node({"artifact_url": "https://mirror/", "artifact_sha256": params}, server(version=version))
    node.architecture = "amd64"
    folder.mkdir()
    node._fetch(folder, True, True)
    return asked


def test_release_is_held_against_its_own_sums(releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fetch(releases, tmp_path / "a", NEWEST, monkeypatch)
    # GitHub's addresses have no plus
    assert asked == [
        f"https://mirror/v1.36.3%2Bk3s1/{name}"
        for name in ("sha256sum-amd64.txt", "k3s", "k3s-airgap-images-amd64.tar.zst")
    ]
    with pytest.raises(K3sError, match="the release's own sums say"):
        fetch(releases, tmp_path / "b", mirror.WRONG_SUM, monkeypatch)
    with pytest.raises(K3sError, match=f"says that it is {NEWEST.replace('+', '.')}, not"):
        fetch(releases, tmp_path / "c", mirror.WRONG_PROGRAM, monkeypatch, told=NEWEST)
    with pytest.raises(DownloadError, match="can't be fetched"):
        fetch(releases, tmp_path / "d", mirror.MISSING, monkeypatch)
    with pytest.raises(K3sError, match=f"k3s_artifact_sha256 says {'0' * 64}"):
        fetch(releases, tmp_path / "e", NEWEST, monkeypatch, amd64="0" * 64)


# --- rules -----------------------------------------------------------------------------------------------------------

SPEC = generate_docs.read_spec(Path(__file__).resolve().parents[2] / "roles/k3s")["options"]
RIGHT = {name: option["default"] for name, option in SPEC.items() if "default" in option}


def test_defaults_are_right() -> None:
    assert list(check_k3s("desk", RIGHT)) == []


@pytest.mark.parametrize(
    ("changed", "where", "said"),
    [
        ({"k3s_version": "1.36.3"}, "k3s_version", "not a version"),
        ({"k3s_version": "v1.32.9+k3s1"}, "k3s_version", "too old"),
        ({"k3s_artifact_url": "ftp://mirror"}, "k3s_artifact_url", "not a http"),
        ({"k3s_artifact_sha256": {"amd64": "12"}}, "k3s_artifact_sha256.amd64", "not a SHA-256"),
        ({"k3s_artifact_sha256": {"x86_64": "0" * 64}}, "k3s_artifact_sha256.x86_64", "no such architecture"),
        ({"k3s_disable": ["runtimes"]}, "k3s_disable[0]", "as pods get GPUs by it"),
        ({"k3s_settings": {"token": "x"}}, "k3s_settings.token", "this role sets that key"),
        ({"k3s_settings": {"node-label+": ["x"]}}, "k3s_settings.node-label+", "this role sets that key"),
        ({"k3s_settings": {"--kubelet-arg": ["x"]}}, "k3s_settings.--kubelet-arg", "no key of config.yaml"),
        ({"k3s_environment": {"K3S_TOKEN": "x"}}, "k3s_environment.K3S_TOKEN", "this role sets that"),
        ({"k3s_environment": {"A B": "x"}}, "k3s_environment.A B", "no name"),
        ({"k3s_gpu_replicas": 0}, "k3s_gpu_replicas", "less than one"),
        ({"k3s_device_plugin": "none", "k3s_gpu_replicas": 2}, "k3s_gpu_replicas", "nobody gives out"),
        ({"k3s_device_plugin": "none", "k3s_mig_strategy": "single"}, "k3s_mig_strategy", "nobody gives out"),
        ({"k3s_device_plugin": "gpu_operator", "k3s_version": "v1.37.1+k3s1"}, "k3s_device_plugin", "supports v1.33"),
        ({"k3s_namespaces": [{"name": "a"}, {"name": "a"}]}, "k3s_namespaces[1].name", "also the name"),
        ({"k3s_namespaces": [{"name": "A_b"}]}, "k3s_namespaces[0].name", "no name for a namespace"),
        ({"k3s_namespaces": [{"name": "kube-system"}]}, "k3s_namespaces[0].name", "the cluster's own"),
        ({"k3s_namespaces": [{"name": "a", "gpus": -1}]}, "k3s_namespaces[0].gpus", "less than none"),
        ({"k3s_namespaces": [{"name": "a", "cpus": 0}]}, "k3s_namespaces[0].cpus", "too few"),
        ({"k3s_namespaces": [{"name": "a", "memory": "64 GB"}]}, "k3s_namespaces[0].memory", "not an amount"),
        ({"k3s_kubeconfig_readers": ["Ada!"]}, "k3s_kubeconfig_readers[0]", "no name of a user"),
        (
            {"k3s_kubeconfig_readers": ["ada"], "lab_users": [{"name": "ada", "state": "locked"}]},
            "k3s_kubeconfig_readers[0]",
            "ada is locked",
        ),
    ],
)
def test_wrong_variables(changed: dict[str, Any], where: str, said: str) -> None:
    found = list(check_k3s("desk", {**RIGHT, **changed}))
    assert any(one.key == where and said in one.problem and one.mend for one in found), found
    assert list(check_k3s("desk", {**RIGHT, **changed, "k3s_state": "absent"})) == []


def test_rules_are_those_of_the_orchestrator_that_needs_it() -> None:
    for orchestrator, count in (("skypilot", 1), ("none", 0)):
        variables = {**RIGHT, "lab_orchestrator": orchestrator, "k3s_version": "latest", "k3s_node_ip": "10.9.9.9"}
        inventory = Inventory(
            {"desk": variables}, {"lab_head": ["desk"]}, {"desk": {**FACTS, "groups": [], "subids": []}}
        )
        assert [one.key for one in check_inventory(inventory)].count("k3s_version") == count
        assert [one.key for one in check_facts(inventory)].count("k3s_node_ip") == count


def test_name_of_a_node() -> None:
    assert "small letters" in next(check_k3s("Node_1", RIGHT)).problem


FACTS: dict[str, Any] = {
    "users": [{"name": "ada"}],
    "addresses": {"ipv4": ["192.168.1.10"]},
    "memory_mib": 64000,
    "gpus": [{"name": "NVIDIA RTX A6000", "memory_mib": 49140, "mig": False}] * 2,
    "conflicts": [{"what": "k3s", "why": ""}],
}


def test_node_that_fits() -> None:
    assert list(check_k3s_facts("desk", {**RIGHT, "k3s_kubeconfig_readers": ["ada"]}, FACTS)) == []


@pytest.mark.parametrize(
    ("variables", "facts", "said"),
    [
        ({"k3s_kubeconfig_readers": ["eve"]}, {}, "no user of that name"),
        ({"k3s_node_ip": "10.9.9.9"}, {}, "no address of desk"),
        ({}, {"memory_mib": 900}, "900 MiB of memory"),
        ({}, {"conflicts": [{"what": "slurmd", "why": ""}]}, "slurmd gives out the same GPUs"),
        (
            {},
            {"gpus": [*FACTS["gpus"], {"name": "NVIDIA GeForce RTX 4090", "mig": False}]},
            "two kinds (a6000, rtx4090)",
        ),
        ({}, {"gpus": [{"name": "NVIDIA A100-SXM4-40GB", "mig": True}]}, "in MIG mode"),
    ],
)
def test_node_that_does_not_fit(variables: dict[str, Any], facts: dict[str, Any], said: str) -> None:
    found = list(check_k3s_facts("desk", {**RIGHT, **variables}, {**FACTS, **facts}))
    assert [said in one.problem for one in found] == [True], found
    assert list(check_k3s_facts("desk", {**RIGHT, **variables, "k3s_state": "absent"}, {**FACTS, **facts})) == []


def test_two_schedulers_for_other_things_are_nobodys_business() -> None:
    facts = {**FACTS, "conflicts": [{"what": "slurmd", "why": ""}]}
    assert list(check_k3s_facts("desk", {**RIGHT, "k3s_device_plugin": "none"}, facts)) == []
