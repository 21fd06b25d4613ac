"""Slurm's configuration: rendering for every version, reading it back, and the way from one lab to another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.filter.slurm_users import slurm_users
from ansible_collections.labrack.infra.plugins.filter.slurm_workers import slurm_workers
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, rank
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import (
    DISTRIBUTION_VERSIONS,
    DRAIN_SETTINGS,
    RESTART_SETTINGS,
    CgroupPlan,
    ConfPlan,
    Gpu,
    SlurmConf,
    SlurmConfError,
    Wish,
    Worker,
    build,
    fold,
    gpu_count,
    memory_reserve,
    natural,
    node_fields,
    parse,
    plan,
    plan_cgroups,
    render,
    unfold,
    version_tuple,
    worker_from_facts,
)

VERSIONS = (
    "21.08.5-2ubuntu1",
    "22.05.8-4+deb12u3",
    "23.02.7",
    "23.11.4-1.2ubuntu5",
    "24.05.4",
    "24.11.5-4+deb13u1",
    "25.05.3",
    "25.11.2-1",
)
ALL_LIMITS = ("Cores", "RAMSpace", "Devices")
HELD = CgroupPlan("cgroup/v2", "proctrack/cgroup", "task/cgroup,task/affinity", ALL_LIMITS)
LOOSE = CgroupPlan("disabled", "proctrack/linuxproc", "task/none", ())
GPU_PARTITION = {"name": "gpu", "default": True, "default_time": "08:00:00", "max_time": "7-00:00:00"}


def worker(name: str = "node1", gpus: Iterable[Gpu] = (), **given: Any) -> Worker:
    cores, memory = given.pop("cores", 16), given.pop("memory_mib", 64000)
    return replace(Worker(name, "10.0.0.1", name, cores * 2, 1, cores, 2, memory, tuple(gpus)), **given)


def cards(count: int, kind: str = "rtx_4090") -> tuple[Gpu, ...]:
    return tuple(Gpu(kind, f"/dev/nvidia{minor}") for minor in range(count))


@dataclass(frozen=True)
class Lab:
    """What an inventory and its nodes' facts come to."""

    workers: tuple[Worker, ...]
    partitions: tuple[Mapping[str, Any], ...] = (GPU_PARTITION,)
    cgroups: CgroupPlan = HELD
    database: str | None = "head"
    extra: Mapping[str, Any] | None = None

    def wish(self, version: str = "24.11", **given: Any) -> Wish:
        return build(
            version,
            self.workers,
            self.cgroups,
            cluster_name="closet",
            controller="head",
            controller_address="10.0.0.250",
            database=self.database,
            partitions=self.partitions,
            extra=self.extra,
            **given,
        )

    def running(self) -> SlurmConf:
        """The configuration that a controller has after its first run with this lab."""
        return parse(render(plan(SlurmConf(), self.wish(), "24.11").conf))


NAMES = ("node1", "node2", "node10", "gpu01", "gpu02", "gpu10", "big", "a-b7")


@st.composite
def labs(draw: st.DrawFn) -> Lab:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    workers = []
    for name in names:
        minors = draw(st.lists(st.integers(0, 11), max_size=8, unique=True))
        workers.append(
            worker(
                name,
                [Gpu(draw(st.sampled_from(("a100_80gb", "h100", "rtx_4090"))), f"/dev/nvidia{m}") for m in minors],
                address=draw(st.sampled_from(("", "10.0.0.1", "10.0.0.2"))),
                hostname=draw(st.sampled_from((name, f"{name}-host"))),
                sockets=draw(st.integers(1, 2)),
                cores=draw(st.integers(1, 64)),
                threads_per_core=draw(st.integers(1, 2)),
                memory_mib=draw(st.integers(2000, 2_000_000)),
            )
        )
    partitions = [
        {
            "name": name,
            "default": draw(st.booleans()),
            "default_time": "01:00:00",
            "max_time": draw(st.sampled_from(("04:00:00", "7-00:00:00"))),
            "nodes": draw(
                st.one_of(st.none(), st.just("all"), st.lists(st.sampled_from(names), min_size=1, unique=True))
            ),
            "qos": draw(st.sampled_from((None, "interactive"))),
        }
        for name in draw(st.lists(st.sampled_from(("gpu", "interactive", "long")), max_size=3, unique=True))
    ]
    extra = draw(st.sampled_from((None, {"JobRequeue": 1}, {"SlurmdPort": 7000}, {"GresTypes": "gpu,mps"})))
    return Lab(
        tuple(workers),
        tuple(partitions),
        draw(st.sampled_from((HELD, LOOSE))),
        draw(st.sampled_from((None, "head"))),
        extra,
    )


LABS = labs()
ANY_NAMES = st.frozensets(st.sampled_from(NAMES))
ANY_VERSION = st.sampled_from(VERSIONS)


def members(conf: SlurmConf) -> set[str]:
    return {name for fields in conf.partitions.values() for name in unfold(fields["Nodes"])}


# ------------------------------------------------------------------------------------------ from one lab to another


@given(LABS)
def test_what_is_rendered_is_read_back(lab: Lab) -> None:
    conf = plan(SlurmConf(), lab.wish(), "24.11").conf
    assert parse(render(conf)) == conf


@given(LABS, ANY_VERSION)
def test_a_lab_that_is_as_it_should_be_needs_nothing(lab: Lab, version: str) -> None:
    running = lab.running()
    settled = plan(running, lab.wish(), version)
    assert settled == ConfPlan(running)


@given(LABS, LABS, ANY_VERSION)
def test_with_consent_and_empty_nodes_any_lab_becomes_any_other(old: Lab, new: Lab, version: str) -> None:
    running = old.running()
    settled = plan(running, new.wish(), version, "drain", drained=running.nodes)
    assert not settled.pending
    wanted = new.wish()
    assert settled.conf.settings == wanted.settings
    assert settled.conf.gres == wanted.gres
    assert settled.conf.cgroup == wanted.cgroup
    assert set(settled.conf.nodes) == set(wanted.nodes)
    assert set(settled.conf.partitions) == {str(partition["name"]) for partition in new.partitions}
    again = plan(parse(render(settled.conf)), new.wish(), version)
    assert again == ConfPlan(settled.conf)


@given(LABS, LABS, ANY_VERSION, st.sampled_from(("none", "reload", "restart")), ANY_NAMES)
def test_jobs_survive_whatever_is_done_on_nodes_that_were_not_emptied(
    old: Lab, new: Lab, version: str, consent: str, drained: frozenset[str]
) -> None:
    running = old.running()
    conf = plan(running, new.wish(), version, consent, drained).conf
    for name, before in running.nodes.items():
        if name not in drained:
            after = conf.nodes[name]
            assert {**after, "NodeAddr": ""} == {**before, "NodeAddr": ""}
            assert conf.gres.get(name) == running.gres.get(name)
    if not drained >= set(running.nodes):
        assert conf.cgroup == running.cgroup
        for key in DRAIN_SETTINGS:
            assert conf.settings.get(key) == running.settings.get(key)
    for name, fields in running.partitions.items():
        if not drained >= set(unfold(fields["Nodes"])):
            assert name in conf.partitions


@given(LABS, LABS, ANY_VERSION, st.sampled_from(DISRUPTIONS), ANY_NAMES)
def test_no_more_is_done_than_consent_and_drain_cover(
    old: Lab, new: Lab, version: str, consent: str, drained: frozenset[str]
) -> None:
    settled = plan(old.running(), new.wish(), version, consent, drained)
    for difference in settled.done:
        assert drained >= set(difference.nodes)
        assert difference.nodes or rank(difference.disruption) <= rank(consent)
    for difference in settled.pending:
        assert difference.nodes or rank(difference.disruption) > rank(consent)


@given(LABS, LABS, ANY_VERSION, st.sampled_from(DISRUPTIONS), ANY_NAMES)
def test_the_result_is_always_whole(old: Lab, new: Lab, version: str, consent: str, drained: frozenset[str]) -> None:
    conf = plan(old.running(), new.wish(), version, consent, drained).conf
    assert members(conf) <= set(conf.nodes)
    assert all(fields["Nodes"] for fields in conf.partitions.values())
    assert {name: len(gpus) for name, gpus in conf.gres.items()} == {
        name: gpu_count(fields) for name, fields in conf.nodes.items() if gpu_count(fields)
    }


@given(LABS, LABS, ANY_VERSION, st.sampled_from(DISRUPTIONS), ANY_NAMES)
def test_what_a_plan_leaves_pending_is_what_the_next_plan_finds(
    old: Lab, new: Lab, version: str, consent: str, drained: frozenset[str]
) -> None:
    first = plan(old.running(), new.wish(), version, consent, drained)
    second = plan(parse(render(first.conf)), new.wish(), version, consent, drained)
    assert second.done == ()
    assert {d.subject for d in second.pending} == {d.subject for d in first.pending}


# ------------------------------------------------------------------------------------------------ disruption classes


def only(settled: ConfPlan) -> tuple[str, str]:
    (difference,) = [*settled.done, *settled.pending]
    return difference.subject, difference.disruption


def test_a_first_configuration_ends_no_job() -> None:
    settled = plan(SlurmConf(), Lab((worker(),)).wish(), "24.11")
    assert only(settled) == ("slurm.conf", "restart")
    assert settled.pending == ()


@pytest.mark.parametrize(
    ("version", "disruption"), [("21.08", "restart"), ("23.02", "restart"), ("23.11", "reload"), ("25.11", "reload")]
)
def test_a_new_node_needs_a_restart_until_reconfigure_reads_nodes(version: str, disruption: str) -> None:
    partition = {**GPU_PARTITION, "nodes": ["node1"]}
    old, new = Lab((worker(),), (partition,)), Lab((worker(), worker("node2")), (partition,))
    assert only(plan(old.running(), new.wish(), version)) == ("node node2", disruption)
    moved = Lab((worker(address="10.0.0.9"),), (partition,))
    assert only(plan(old.running(), moved.wish(), version)) == ("node node1", disruption)


def test_a_partition_of_a_new_node_waits_with_it() -> None:
    new = Lab((worker(), worker("node2")), (GPU_PARTITION, {**GPU_PARTITION, "name": "new", "nodes": ["node2"]}))
    settled = plan(Lab((worker(),)).running(), new.wish(), "22.05", "reload")
    assert settled.conf == Lab((worker(),)).running()
    assert [difference.subject for difference in settled.pending] == ["node node2"]


def test_a_node_and_a_partition_leave_only_empty() -> None:
    short = {**GPU_PARTITION, "name": "short", "nodes": ["node2"]}
    old = Lab((worker(), worker("node2")), (GPU_PARTITION, short))
    new = Lab((worker(),))
    waiting = plan(old.running(), new.wish(), "24.11")
    assert waiting.conf == old.running()
    assert {(d.subject, d.disruption, d.nodes) for d in waiting.pending} == {
        ("node node2", "drain", ("node2",)),
        ("partition short", "drain", ("node2",)),
    }
    gone = plan(old.running(), new.wish(), "24.11", drained=["node2"])
    assert gone.pending == ()
    assert gone.conf == new.running()


def test_a_node_may_leave_while_its_partition_waits() -> None:
    old = Lab((worker(), worker("node2")), (GPU_PARTITION, {**GPU_PARTITION, "name": "short"}))
    settled = plan(old.running(), Lab((worker(),)).wish(), "24.11", drained=["node2"])
    assert settled.conf.partitions["short"]["Nodes"] == "node1"
    assert [difference.subject for difference in settled.pending] == ["partition short"]


@pytest.mark.parametrize(
    "changed",
    [
        worker(memory_mib=32000),
        worker(cores=8),
        worker(gpus=cards(2)),
        worker(gpus=cards(1, "h100")),
        worker(gpus=[Gpu("rtx_4090", "/dev/nvidia3")]),
        worker(gpus=cards(1), hostname="other"),
    ],
)
def test_a_changed_machine_waits_until_it_is_empty(changed: Worker) -> None:
    old = Lab((worker(gpus=cards(1)),))
    settled = plan(old.running(), Lab((changed,)).wish(), "24.11")
    assert settled.conf == old.running()
    assert only(settled) == ("node node1", "drain")


@pytest.mark.parametrize(
    ("key", "disruption"),
    [
        *((key, "drain") for key in sorted(DRAIN_SETTINGS)),
        *((key, "restart") for key in sorted(RESTART_SETTINGS)),
        ("HealthCheckInterval", "reload"),
        ("PriorityWeightAge", "reload"),
    ],
)
def test_settings_have_their_class(key: str, disruption: str) -> None:
    changed = Lab((worker(),), extra={key: "other"})
    settled = plan(Lab((worker(),)).running(), changed.wish(), "24.11", "drain")
    assert only(settled) == (f"setting {key}", disruption)
    assert [d.nodes for d in settled.pending] == ([("node1",)] if disruption == "drain" else [])


def test_a_limit_changes_only_on_empty_nodes() -> None:
    settled = plan(Lab((worker(),)).running(), Lab((worker(),), cgroups=LOOSE).wish(), "24.11")
    assert {difference.disruption for difference in settled.pending} == {"drain"}
    assert settled.done == ()


def test_without_nodes_there_is_no_job_to_wait_for() -> None:
    """A controller whose workers came later must not wait for a drain of nobody."""
    settled = plan(Lab((), cgroups=LOOSE).running(), Lab((worker(),)).wish(), "24.11", "restart")
    assert settled.pending == ()
    assert settled.conf == Lab((worker(),)).running()


def test_interleaved_cards_and_minors_out_of_order_need_nothing() -> None:
    gpus = [
        Gpu("h100", "/dev/nvidia2"),
        Gpu("a100_80gb", "/dev/nvidia10"),
        Gpu("h100", "/dev/nvidia0"),
        Gpu("a100_80gb", "/dev/nvidia9"),
    ]
    lab = Lab((worker(gpus=gpus),))
    assert plan(lab.running(), lab.wish(), "24.11") == ConfPlan(lab.running())


def test_a_node_whose_facts_are_missing_keeps_its_definition() -> None:
    both = Lab((worker(gpus=cards(2)), worker("node2", cards(4), cores=8)))
    running = both.running()
    known = {"node2": (running.nodes["node2"], running.gres["node2"])}
    wish = Lab((worker(gpus=cards(2)),)).wish(known=known)
    assert plan(running, wish, "24.11") == ConfPlan(running)


def test_facts_win_over_the_known_definition() -> None:
    known = {"node1": (node_fields(worker(cores=4), None), cards(8))}
    assert Lab((worker(gpus=cards(2)),)).wish(known=known) == Lab((worker(gpus=cards(2)),)).wish()


def test_lines_by_hand_are_undone() -> None:
    running = Lab((worker(),)).running()
    files = render(running)
    files["slurm.conf"] += "# a remark\nDebugFlags=Gres\n"
    settled = plan(parse(files), Lab((worker(),)).wish(), "24.11")
    assert [(d.subject, d.summary) for d in settled.done] == [("setting DebugFlags", "Gres → unset")]
    assert settled.conf == running


# --------------------------------------------------------------------------------------------------- memory and shares


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        (10000, 10000, True),
        (9500, 10000, True),
        (9499, 10000, False),
        (10001, 10000, False),
    ],
)
def test_real_memory_may_be_five_percent_low_and_never_high(old: int, new: int, kept: bool) -> None:
    running = Lab((worker(memory_mib=old + 1024),)).running()
    assert running.nodes["node1"]["RealMemory"] == str(old)
    settled = plan(running, Lab((worker(memory_mib=new + 1024),)).wish(), "24.11")
    assert (settled == ConfPlan(running)) is kept


@pytest.mark.parametrize(
    ("memory", "wished", "reserve"),
    [(4000, None, 1024), (64000, None, 3200), (2_000_000, None, 16384), (64000, 0, 0), (64000, 8000, 8000)],
)
def test_memory_reserve(memory: int, wished: int | None, reserve: int) -> None:
    assert memory_reserve(memory, wished) == reserve


def test_a_reserve_that_leaves_nothing_is_refused_by_name() -> None:
    with pytest.raises(SlurmConfError, match=r"slurm_memory_reserve_mib = 64000: node1 has 64000 MiB"):
        node_fields(worker(), 64000)


def test_one_of_four_gpus_takes_a_quarter_of_the_machine() -> None:
    fields = Lab((worker(gpus=cards(4), cores=16, memory_mib=512000),)).running().partitions["gpu"]
    assert fields["DefCpuPerGPU"] == "8"
    assert fields["DefMemPerGPU"] == str((512000 - 16384) // 4)
    assert fields["DefMemPerCPU"] == str((512000 - 16384) // 32)


@given(LABS)
def test_default_shares_fit_every_node_of_a_partition(lab: Lab) -> None:
    conf = lab.running()
    for fields in conf.partitions.values():
        nodes = [conf.nodes[name] for name in unfold(fields["Nodes"])]
        assert all(int(fields["DefMemPerCPU"]) * int(node["CPUs"]) <= int(node["RealMemory"]) for node in nodes)
        assert ("DefMemPerGPU" in fields) is any(map(gpu_count, nodes))
        for node in nodes:
            count = gpu_count(node)
            if count:
                assert int(fields["DefMemPerGPU"]) * count <= int(node["RealMemory"])
                assert int(fields["DefCpuPerGPU"]) * count <= max(int(node["CPUs"]), count)


def test_a_partition_without_a_node_is_refused_by_name() -> None:
    lab = Lab((worker(),), ({**GPU_PARTITION, "name": "long", "nodes": ["node9"]},))
    with pytest.raises(SlurmConfError, match="slurm_partitions: long has no node"):
        plan(SlurmConf(), lab.wish(), "24.11")


def test_a_card_that_slurm_cannot_give_out_is_left_out() -> None:
    facts = {
        "hostname": "node1",
        "cpu": {"cpus": 8, "boards": 1, "sockets": 1, "cores_per_socket": 4, "threads_per_core": 2},
        "memory_mib": 32000,
        "gpus": [
            {"slurm_type": "h100", "device": "/dev/nvidia0"},
            {"slurm_type": "h100", "device": None},
            {"slurm_type": "", "device": "/dev/nvidia2"},
        ],
    }
    assert worker_from_facts("node1", "", facts).gpus == (Gpu("h100", "/dev/nvidia0"),)


# ---------------------------------------------------------------------------------------------------------- host lists


@given(
    st.lists(
        st.one_of(
            st.from_regex(r"[a-z][a-z-]{0,4}[a-z][0-9]{0,4}", fullmatch=True),
            st.builds(lambda number: f"gpu{number:03}", st.integers(0, 1200)),
            st.builds(lambda number: f"node{number}", st.integers(0, 30)),
        ),
        max_size=40,
    )
)
def test_a_host_list_unfolds_to_its_names(names: list[str]) -> None:
    folded = unfold(fold(names))
    assert set(folded) == set(names)
    assert len(folded) == len(set(names))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["head"], "head"),
        (["node2", "node10", "node1"], "node[1-2,10]"),
        (["gpu01", "gpu02", "gpu03", "gpu007"], "gpu[01-03],gpu007"),
        (["/dev/nvidia1", "/dev/nvidia0"], "/dev/nvidia[0-1]"),
        (["big", "a-b7", "node1"], "big,a-b7,node1"),
    ],
)
def test_host_lists(names: list[str], text: str) -> None:
    assert fold(names) == text


def test_foreign_host_lists() -> None:
    assert unfold("n[1,3-4]x,head,gpu[008-010]") == ["n1x", "n3x", "n4x", "head", "gpu008", "gpu009", "gpu010"]


def test_nodes_are_listed_as_people_count() -> None:
    conf = Lab(tuple(worker(name) for name in ("node10", "node2", "node1"))).running()
    assert re.findall(r"^NodeName=(\S+)", render(conf)["slurm.conf"], re.MULTILINE) == ["node1", "node2", "node10"]
    assert sorted(["node10", "node2"], key=natural) == ["node2", "node10"]


# ------------------------------------------------------------------------------------------------ versions and cgroups


def node(hostname: str, mode: str, *controllers: str, reason: str = "") -> dict[str, Any]:
    return {"hostname": hostname, "cgroup": {"mode": mode, "controllers": list(controllers), "reason": reason}}


V2 = node("two", "v2", "cpu", "cpuset", "devices", "io", "memory", "pids")
V2_READ_ONLY = node("box", "v2", reason="cgroup mount is read-only: cpuset, devices, memory")
V2_NO_MEMORY = node("pi", "v2", "cpu", "cpuset", "devices", reason="boot with cgroup_enable=memory")
V1 = node("one", "v1", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory")
V1_NO_FREEZER = node("cold", "v1", "cpu", "cpuset", "devices", "memory", reason="cgroup mount is read-only: freezer")
HYBRID = node("hybrid", "hybrid", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory")
NONE = node("jail", "none", reason="no cgroup controllers are mounted")

#: name: workers, cgroup.conf's plugin from 22.05 on where jobs are held, the limits, the hosts that need a reason
CGROUP_CASES: dict[str, tuple[list[dict[str, Any]], str | None, tuple[str, ...], set[str]]] = {
    "v2": ([V2], "cgroup/v2", ALL_LIMITS, set()),
    "v1": ([V1], "cgroup/v1", ALL_LIMITS, set()),
    "hybrid": ([HYBRID], "cgroup/v1", ALL_LIMITS, set()),
    "v1 and hybrid": ([V1, HYBRID], "cgroup/v1", ALL_LIMITS, set()),
    "v1 and v2": ([V1, V2], "autodetect", ALL_LIMITS, set()),
    "no memory controller": ([V2_NO_MEMORY, V2], "cgroup/v2", ("Cores", "Devices"), {"pi"}),
    "container without controllers": ([NONE], None, (), {"jail"}),
    "container with a read-only v2": ([V2_READ_ONLY], None, (), {"box"}),
    "v1 without freezer": ([V1_NO_FREEZER], None, (), {"cold"}),
    "one of two in a container": ([V1, NONE], None, (), {"jail"}),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CGROUP_CASES)
def test_cgroups_of_every_version(version: str, case: str) -> None:
    workers, plugin, limits, weak = CGROUP_CASES[case]
    year_month = version_tuple(version)
    if year_month < (22, 5) and any(host["cgroup"]["mode"] == "v2" for host in workers):
        plugin, limits = None, ()
        weak = weak | {host["hostname"] for host in workers if host["cgroup"]["mode"] == "v2"}
    found = plan_cgroups(version, workers)
    if limits:
        assert found.proctrack == "proctrack/cgroup"
        assert found.task == "task/cgroup,task/affinity"
    else:
        assert (found.proctrack, found.task) == ("proctrack/linuxproc", "task/none")
        # "disabled" came with 24.05; cgroup/v1 starts without touching a controller that nothing asks for
        plugin = "disabled" if year_month >= (24, 5) else "cgroup/v1"
    assert found.constrain == limits
    assert found.plugin == (plugin if year_month >= (22, 5) else None)
    for host in weak:
        assert any(re.search(rf"\b{host}\b", reason.partition(": ")[0]) for reason in found.reasons), found.reasons
    assert bool(found.reasons) is bool(weak)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CGROUP_CASES)
def test_files_of_every_version(version: str, case: str) -> None:
    workers, _plugin, _limits, _weak = CGROUP_CASES[case]
    cgroups = plan_cgroups(version, workers)
    conf = plan(SlurmConf(), Lab((worker(gpus=cards(2)),), cgroups=cgroups).wish(version), version).conf
    files = render(conf)
    assert ("CgroupPlugin" in files["cgroup.conf"]) is (version_tuple(version) >= (22, 5))
    for what in ALL_LIMITS:
        assert f"Constrain{what}={'yes' if what in cgroups.constrain else 'no'}\n" in files["cgroup.conf"]
    gather = "cgroup" if "RAMSpace" in cgroups.constrain else "linux"
    assert f"\nJobAcctGatherType=jobacct_gather/{gather}\n" in files["slurm.conf"]
    assert f"\nProctrackType={cgroups.proctrack}\n" in files["slurm.conf"]
    assert f"\nTaskPlugin={cgroups.task}\n" in files["slurm.conf"]


def test_every_distribution_is_covered() -> None:
    assert {version_tuple(version) for version in DISTRIBUTION_VERSIONS.values()} <= set(map(version_tuple, VERSIONS))


@pytest.mark.parametrize("text", ["", "24", "slurm 24.11", "next"])
def test_a_version_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SlurmConfError, match="is not of the form"):
        version_tuple(text)


def test_an_epoch_is_no_part_of_the_version() -> None:
    assert version_tuple("1:23.11.4-1") == (23, 11)


def test_the_three_files() -> None:
    mixed = (*cards(2, "h100"), Gpu("a100_80gb", "/dev/nvidia2"))
    lab = Lab((worker("node2", mixed, hostname="gpubox"), worker("node1", address="")))
    files = render(plan(SlurmConf(), lab.wish(), "24.11").conf)
    lines = files["slurm.conf"].splitlines()
    assert "SlurmctldHost=head(10.0.0.250)" in lines
    assert "NodeName=node1 CPUs=32 Sockets=1 CoresPerSocket=16 ThreadsPerCore=2 RealMemory=60800 State=UNKNOWN" in lines
    assert (
        "NodeName=node2 NodeAddr=10.0.0.1 NodeHostname=gpubox CPUs=32 Sockets=1 CoresPerSocket=16 ThreadsPerCore=2 "
        "RealMemory=60800 Gres=gpu:a100_80gb:1,gpu:h100:2 State=UNKNOWN"
    ) in lines
    assert (
        "PartitionName=gpu Nodes=node[1-2] Default=YES DefaultTime=08:00:00 MaxTime=7-00:00:00 PriorityTier=1 State=UP "
        "DefMemPerCPU=1900 DefCpuPerGPU=10 DefMemPerGPU=20266"
    ) in lines
    assert files["gres.conf"].splitlines()[1:] == [
        "AutoDetect=off",
        "NodeName=node2 Name=gpu Type=a100_80gb File=/dev/nvidia2",
        "NodeName=node2 Name=gpu Type=h100 File=/dev/nvidia[0-1]",
    ]


def test_without_a_database_nothing_of_accounting_is_asked_for() -> None:
    settings = Lab((worker(),), database=None).running().settings
    assert [key for key in settings if key.startswith("AccountingStorage")] == []


def test_extra_settings_win() -> None:
    settings = Lab((worker(),), extra={"JobRequeue": 1, "TreeWidth": 16}).running().settings
    assert (settings["JobRequeue"], settings["TreeWidth"]) == ("1", "16")


# ------------------------------------------------------------------------------------------------------------- filters


def test_the_filter_takes_what_slurm_needs_of_each_host() -> None:
    facts = {
        "hostname": "node1",
        "cpu": {},
        "memory_mib": 1,
        "gpus": [],
        "cgroup": {},
        "users": ["not needed"],
        "addresses": {"default_ipv4": "10.0.0.7"},
    }
    hostvars: dict[str, dict[str, Any]] = {
        "node1": {"ansible_facts": {"labrack_node": facts}},
        "node2": {"ansible_facts": {"labrack_node": facts}, "lab_address": "10.1.0.2"},
        "down": {"ansible_facts": {}},
    }
    node1, node2, down = slurm_workers(hostvars, hostvars)
    assert node1["address"] == "10.0.0.7"
    assert set(node1["facts"]) == {"hostname", "cpu", "memory_mib", "gpus", "cgroup"}
    assert node2["address"] == "10.1.0.2"
    assert down == {"name": "down", "address": "", "facts": None}


def test_the_filter_locks_users_that_are_not_present() -> None:
    registry = [{"name": "ada", "account": "vision"}, {"name": "bob"}, {"name": "eve", "state": "absent"}]
    assert slurm_users(registry, "lab") == [
        {"name": "ada", "account": "vision", "state": "present"},
        {"name": "bob", "account": "lab", "state": "present"},
        {"name": "eve", "account": "lab", "state": "locked"},
    ]
