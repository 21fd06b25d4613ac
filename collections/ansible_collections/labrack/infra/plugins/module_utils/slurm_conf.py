# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Slurm's configuration as data: build it from facts and wishes, read it back, class each difference, write it.

Pure functions, no Ansible import. One model, :class:`SlurmConf`, stands for slurm.conf, gres.conf and cgroup.conf
together, so that a node's Gres in slurm.conf and its device files in gres.conf can only change as one.

Sources: slurm.conf(5), gres.conf(5), cgroup.conf(5) of 21.08 to 25.11, https://slurm.schedmd.com/archive/.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils.change import rank

HEADER = "# Written by labrack from the inventory; a change by hand is undone by the next run.\n"

#: Slurm of each distribution release, for a plan on a node that has none installed yet.
DISTRIBUTION_VERSIONS: dict[tuple[str, str], str] = {
    ("debian", "12"): "22.05",
    ("debian", "13"): "24.11",
    ("ubuntu", "22.04"): "21.08",
    ("ubuntu", "24.04"): "23.11",
    ("ubuntu", "26.04"): "25.11",
}

#: Where the packages of Debian and Ubuntu keep Slurm's state.
STATE_DIRECTORY = "/var/lib/slurm/slurmctld"
SPOOL_DIRECTORY = "/var/lib/slurm/slurmd"
SCRIPT_DIRECTORY = "/usr/local/lib/labrack/slurm"

#: Settings whose change breaks running jobs or makes slurmctld forget them (slurm.conf(5), each entry's own words).
DRAIN_SETTINGS = frozenset(
    {
        "AuthType",
        "CredType",
        "JobAcctGatherType",
        "ProctrackType",
        "SelectType",
        "SelectTypeParameters",
        "SlurmUser",
        "SlurmdPort",
        "SlurmdSpoolDir",
        "SlurmctldPort",
        "StateSaveLocation",
        "TaskPlugin",
    }
)
#: Settings that a running daemon does not take from ``scontrol reconfigure``.
RESTART_SETTINGS = frozenset(
    {
        "AccountingStorageEnforce",
        "AccountingStorageHost",
        "AccountingStorageTRES",
        "AccountingStorageType",
        "GresTypes",
        "PreemptType",
        "PriorityType",
        "PrologFlags",
        "SchedulerType",
        "SlurmctldHost",
        "SlurmctldLogFile",
        "SlurmctldParameters",
        "SlurmctldPidFile",
        "SlurmdLogFile",
        "SlurmdPidFile",
    }
)

#: From this version on ``scontrol reconfigure`` starts the daemons anew, with node lines added and removed. Before, it
#: ends a slurmd that has been running since a node came or went (tried on 22.05), so it is never used there.
RECONFIGURE_REREADS_NODES = (23, 11)

Fields = dict[str, str]


class SlurmConfError(ValueError):
    """A wish that no Slurm configuration can fulfil; the message names the key, the value and the mend."""


def version_tuple(version: str) -> tuple[int, int]:
    """Return (year, month) of a Slurm version such as "24.11.5-4"; SlurmConfError when it is not one."""
    match = re.match(r"(?:\d+:)?(\d\d)\.(\d\d)", version)
    if not match:
        raise SlurmConfError(f"Slurm version {version!r} is not of the form YY.MM")
    return int(match.group(1)), int(match.group(2))


def reconfigures(version: str) -> bool:
    """Tell whether this Slurm takes every change of class ``reload`` by ``scontrol reconfigure``."""
    return version_tuple(version) >= RECONFIGURE_REREADS_NODES


@dataclass(frozen=True)
class Gpu:
    """One GPU of a worker: its Slurm type ("a100_80gb") and its device file ("/dev/nvidia0")."""

    type: str
    device: str


@dataclass(frozen=True)
class Worker:
    """A worker as its own facts describe it; memory in MiB, before the reserve."""

    name: str
    address: str
    hostname: str
    cpus: int
    sockets: int
    cores_per_socket: int
    threads_per_core: int
    memory_mib: int
    gpus: tuple[Gpu, ...] = ()


def worker_from_facts(name: str, address: str, facts: Mapping[str, Any]) -> Worker:
    """Return a worker from its ``labrack_node`` facts; a GPU without a device file or a known name is left out."""
    cpu = facts["cpu"]
    gpus = tuple(Gpu(gpu["slurm_type"], gpu["device"]) for gpu in facts["gpus"] if gpu["device"] and gpu["slurm_type"])
    return Worker(
        name=name,
        address=address,
        hostname=facts["hostname"],
        cpus=cpu["cpus"],
        sockets=cpu["sockets"],
        cores_per_socket=cpu["cores_per_socket"],
        threads_per_core=cpu["threads_per_core"],
        memory_mib=facts["memory_mib"],
        gpus=gpus,
    )


@dataclass(frozen=True)
class CgroupPlan:
    """How jobs are held to what they asked for: the plugins, the limits, and the reasons for what is weaker."""

    plugin: str | None
    proctrack: str
    task: str
    constrain: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    jobacct: str = "jobacct_gather/linux"

    @property
    def settings(self) -> Fields:
        """The keys of cgroup.conf; empty where this Slurm must not have the file's plugin line."""
        fields = {"CgroupPlugin": self.plugin} if self.plugin else {}
        for what in ("Cores", "RAMSpace", "Devices"):
            fields[f"Constrain{what}"] = "yes" if what in self.constrain else "no"
        return fields


@dataclass(frozen=True)
class SlurmConf:
    """slurm.conf, gres.conf and cgroup.conf as data.

    ``nodes`` and ``partitions`` map a name to its line's fields, ``gres`` maps a node to its (type, device) pairs.
    """

    settings: Fields = field(default_factory=dict)
    nodes: dict[str, Fields] = field(default_factory=dict)
    partitions: dict[str, Fields] = field(default_factory=dict)
    gres: dict[str, tuple[Gpu, ...]] = field(default_factory=dict)
    cgroup: Fields = field(default_factory=dict)


@dataclass(frozen=True)
class Wish:
    """What the inventory and the facts ask for.

    Like :class:`SlurmConf`, but ``partitions`` are the elements of the variable slurm_partitions: their lines follow
    from the nodes that are really configured.
    """

    settings: Fields
    nodes: dict[str, Fields]
    gres: dict[str, tuple[Gpu, ...]]
    cgroup: Fields
    partitions: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Difference:
    """One way in which the running configuration is off: its subject, what would change, its disruption, its nodes.

    ``nodes`` are the workers whose jobs are at risk, for the classes ``drain`` and above.
    """

    subject: str
    summary: str
    disruption: str
    nodes: tuple[str, ...] = ()


def plan_cgroups(version: str, workers: Sequence[Mapping[str, Any]]) -> CgroupPlan:
    """Choose the cgroup settings that every worker can hold; the weakest decides, since Slurm has one for all.

    ``workers`` are the ``labrack_node`` facts. Cgroup v2 needs Slurm 22.05, cgroup/v1 any; "disabled" exists from
    24.05 on, before that cgroup/v1 stays named although nothing uses it (facts: tried on 22.05 and 24.11).
    """
    modes = {str(worker["cgroup"]["mode"]) for worker in workers}
    reasons: list[str] = []
    usable = {"cpuset", "memory", "devices", "freezer"}
    for worker in workers:
        cgroup = worker["cgroup"]
        has = set(cgroup["controllers"])
        needed = {"cpuset", "memory", "devices"} | ({"freezer"} if cgroup["mode"] in ("v1", "hybrid") else set())
        missing = needed - has
        if missing:
            why = cgroup.get("reason") or "cgroup controllers are not usable there"
            reasons.append(f"{worker['hostname']}: no {', '.join(sorted(missing))} limits: {why}")
            usable = usable - missing if has else set()
    if "v2" in modes and version_tuple(version) < (22, 5):
        hosts = ", ".join(sorted(worker["hostname"] for worker in workers if worker["cgroup"]["mode"] == "v2"))
        reasons.append(
            f"{hosts}: Slurm {version} knows no cgroup v2: boot with systemd.unified_cgroup_hierarchy=0, "
            "or use a distribution with Slurm 22.05 or newer"
        )
        usable = set()
    contained = "freezer" in usable
    if not contained:
        reasons.append("without cgroups a login can't be put into a job: the workers are open for logins")
        plugin = "disabled" if version_tuple(version) >= (24, 5) else "cgroup/v1"
        return CgroupPlan(
            plugin if version_tuple(version) >= (22, 5) else None,
            "proctrack/linuxproc",
            "task/none",
            (),
            tuple(reasons),
        )
    if version_tuple(version) < (22, 5):
        chosen = None
    elif modes == {"v2"}:
        chosen = "cgroup/v2"
    elif "v2" in modes:
        chosen = "autodetect"
    else:
        chosen = "cgroup/v1"
    constrain = tuple(
        what
        for what, controller in (("Cores", "cpuset"), ("RAMSpace", "memory"), ("Devices", "devices"))
        if controller in usable
    )
    task = "task/cgroup,task/affinity" if "cpuset" in usable else "task/cgroup"
    counted = all("cpuacct" in w["cgroup"]["controllers"] for w in workers if w["cgroup"]["mode"] != "v2")
    jobacct = "jobacct_gather/cgroup" if "memory" in usable and counted else "jobacct_gather/linux"
    return CgroupPlan(chosen, "proctrack/cgroup", task, constrain, tuple(reasons), jobacct)


def memory_reserve(memory_mib: int, reserve_mib: int | None) -> int:
    """Return what the operating system keeps, in MiB: as wished, else 5 %, at least 1 GiB and at most 16 GiB."""
    if reserve_mib is not None:
        return reserve_mib
    return min(max(memory_mib // 20, 1024), 16384)


def node_fields(worker: Worker, reserve_mib: int | None) -> Fields:
    """Return the fields of a worker's NodeName line; SlurmConfError when the reserve leaves no memory."""
    memory = worker.memory_mib - memory_reserve(worker.memory_mib, reserve_mib)
    if memory < 256:
        raise SlurmConfError(
            f"slurm_memory_reserve_mib = {reserve_mib}: {worker.name} has {worker.memory_mib} MiB, "
            "which leaves jobs less than 256; lower it"
        )
    fields = {"NodeAddr": worker.address} if worker.address else {}
    if worker.hostname != worker.name:
        fields["NodeHostname"] = worker.hostname
    fields["CPUs"] = str(worker.cpus)
    fields["Sockets"] = str(worker.sockets)
    fields["CoresPerSocket"] = str(worker.cores_per_socket)
    fields["ThreadsPerCore"] = str(worker.threads_per_core)
    fields["RealMemory"] = str(memory)
    if worker.gpus:
        counts: dict[str, int] = {}
        for gpu in worker.gpus:
            counts[gpu.type] = counts.get(gpu.type, 0) + 1
        fields["Gres"] = ",".join(f"gpu:{name}:{count}" for name, count in sorted(counts.items()))
    fields["State"] = "UNKNOWN"
    return fields


def gpu_count(fields: Mapping[str, str]) -> int:
    """Return the number of GPUs in a NodeName line's fields."""
    return sum(int(part.rsplit(":", 1)[1]) for part in fields.get("Gres", "").split(",") if part)


def job_defaults(nodes: Iterable[Mapping[str, str]]) -> Fields:
    """Return what a job gets per GPU and per CPU by default: an even share of the smallest node of a partition.

    One of four GPUs takes a quarter of the machine: DefCpuPerGPU cores, and as much memory through DefMemPerGPU;
    a job without a GPU gets DefMemPerCPU. In MiB.
    """
    # a line that somebody else wrote may leave both out: Slurm takes 1 then
    sizes = [(int(node.get("CPUs", 1)), int(node.get("RealMemory", 1)), gpu_count(node)) for node in nodes]
    fields: Fields = {}
    if sizes:
        fields["DefMemPerCPU"] = str(min(memory // cpus for cpus, memory, _gpus in sizes))
    with_gpus = [size for size in sizes if size[2]]
    if with_gpus:
        fields["DefCpuPerGPU"] = str(min(max(cpus // gpus, 1) for cpus, _memory, gpus in with_gpus))
        fields["DefMemPerGPU"] = str(min(memory // gpus for _cpus, memory, gpus in with_gpus))
    return fields


def partition_members(partition: Mapping[str, Any], nodes: Iterable[str]) -> list[str]:
    """Return those of the nodes that belong to ``partition``, an element of the variable slurm_partitions."""
    wanted = partition.get("nodes") or "all"
    return sorted((name for name in nodes if wanted in ("all", ["all"]) or name in wanted), key=natural)


def partition_fields(partition: Mapping[str, Any], nodes: Mapping[str, Fields]) -> Fields:
    """Return the fields of a PartitionName line; ``partition`` is an element of the variable slurm_partitions."""
    members = partition_members(partition, nodes)
    if not members:
        raise SlurmConfError(f"slurm_partitions: {partition['name']} has no node; name at least one worker in nodes")
    fields = {
        "Nodes": fold(members),
        "Default": "YES" if partition.get("default") else "NO",
        "DefaultTime": str(partition["default_time"]),
        "MaxTime": str(partition["max_time"]),
        "PriorityTier": str(partition.get("priority_tier") or 1),
        "State": "UP",
    }
    if partition.get("qos"):
        fields["QOS"] = str(partition["qos"])
    if partition.get("allow_accounts"):
        fields["AllowAccounts"] = ",".join(partition["allow_accounts"])
    fields.update(job_defaults(nodes[name] for name in members))
    return fields


def build(
    version: str,
    workers: Sequence[Worker],
    cgroups: CgroupPlan,
    *,
    cluster_name: str,
    controller: str,
    controller_address: str,
    database: str | None,
    partitions: Sequence[Mapping[str, Any]],
    memory_reserve_mib: int | None = None,
    health_interval: int = 60,
    known: Mapping[str, tuple[Fields, tuple[Gpu, ...]]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Wish:
    """Build the configuration that the inventory and the facts ask for.

    ``known`` are nodes of the inventory whose facts this run lacks (down, or outside ``--limit``), with the fields and
    GPUs that the running configuration has for them. ``extra`` overrides any setting. Pure.
    """
    nodes = {worker.name: node_fields(worker, memory_reserve_mib) for worker in workers}
    gres = {worker.name: _in_order(worker.gpus) for worker in workers if worker.gpus}
    for name, (fields, gpus) in (known or {}).items():
        nodes.setdefault(name, dict(fields))
        if gpus:
            gres.setdefault(name, gpus)
    settings: Fields = {
        "ClusterName": cluster_name,
        "SlurmctldHost": f"{controller}({controller_address})" if controller_address else controller,
        "SlurmUser": "slurm",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "StateSaveLocation": STATE_DIRECTORY,
        "SlurmdSpoolDir": SPOOL_DIRECTORY,
        "SlurmctldLogFile": "/var/log/slurm/slurmctld.log",
        "SlurmdLogFile": "/var/log/slurm/slurmd.log",
        "SlurmctldPidFile": "/run/slurmctld.pid",
        "SlurmdPidFile": "/run/slurmd.pid",
        "SlurmctldParameters": "enable_configless",
        "SlurmctldTimeout": "120",
        "SlurmdTimeout": "300",
        "ReturnToService": "2",
        "SlurmdParameters": "allow_ecores",
        "MpiDefault": "none",
        "ProctrackType": cgroups.proctrack,
        "TaskPlugin": cgroups.task,
        "PrologFlags": "Contain",
        "Prolog": f"{SCRIPT_DIRECTORY}/prolog",
        "Epilog": f"{SCRIPT_DIRECTORY}/epilog",
        "HealthCheckProgram": f"{SCRIPT_DIRECTORY}/health",
        "HealthCheckInterval": str(health_interval),
        "HealthCheckNodeState": "ANY",
        "JobAcctGatherType": cgroups.jobacct,
        "JobAcctGatherFrequency": "30",
        "JobRequeue": "0",
        "SchedulerType": "sched/backfill",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "EnforcePartLimits": "ALL",
        "GresTypes": "gpu",
        "PriorityType": "priority/multifactor",
        "PriorityDecayHalfLife": "7-0",
        "PriorityMaxAge": "7-0",
        "PriorityWeightFairshare": "100000",
        "PriorityWeightQOS": "20000",
        "PriorityWeightAge": "10000",
        "PriorityWeightJobSize": "1000",
    }
    if database:
        # without slurmdbd slurmctld does not start with it
        settings["AccountingStorageTRES"] = "gres/gpu"
        settings["AccountingStorageType"] = "accounting_storage/slurmdbd"
        settings["AccountingStorageHost"] = database
        settings["AccountingStorageEnforce"] = "associations,limits,qos"
    else:
        # both live in the accounting database; slurmctld does not start with a QOS that it can't find there
        partitions = [{key: p[key] for key in p if key not in ("qos", "allow_accounts")} for p in partitions]
    settings.update({key: str(value) for key, value in (extra or {}).items()})
    return Wish(settings, nodes, gres, cgroups.settings, tuple(partitions))


# ------------------------------------------------------------------------------------------------ text and back


def natural(name: str) -> tuple[Any, ...]:
    """Return a sort key that puts node2 before node10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def _in_order(gpus: Iterable[Gpu]) -> tuple[Gpu, ...]:
    """Return GPUs by type and device, as gres.conf groups them, so that equal nodes compare equal."""
    return tuple(sorted(gpus, key=lambda gpu: (gpu.type, natural(gpu.device))))


def fold(names: Iterable[str]) -> str:
    """Return a Slurm host list: ["node1", "node2", "node4", "big"] → "big,node[1-2,4]". Zero padding is kept."""
    groups: dict[tuple[str, int], list[int]] = {}
    plain: list[str] = []
    for name in names:
        match = re.fullmatch(r"(.*?)(0*)(\d+)", name)
        if match and (match.group(2) == "" or match.group(3) != ""):
            digits = match.group(2) + match.group(3)
            width = len(digits) if digits.startswith("0") and len(digits) > 1 else 0
            groups.setdefault((match.group(1), width), []).append(int(digits))
        else:
            plain.append(name)
    parts = sorted(set(plain))
    for (prefix, width), numbers in sorted(groups.items()):
        numbers = sorted(set(numbers))
        if len(numbers) == 1:
            parts.append(f"{prefix}{numbers[0]:0{width}d}")
            continue
        runs: list[list[int]] = []
        for number in numbers:
            if runs and number == runs[-1][1] + 1 and len(f"{number:0{width}d}") == len(f"{runs[-1][0]:0{width}d}"):
                runs[-1][1] = number
            else:
                runs.append([number, number])
        inner = ",".join(f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in runs)
        parts.append(f"{prefix}[{inner}]")
    return ",".join(parts)


def unfold(text: str) -> list[str]:
    """Return the names of a Slurm host list; the reverse of :func:`fold`."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
        if not match:
            names.append(part)
            continue
        for piece in match.group(2).split(","):
            low, _dash, high = piece.partition("-")
            for number in range(int(low), int(high or low) + 1):
                names.append(f"{match.group(1)}{number:0{len(low)}d}{match.group(3)}")
    return names


def render(conf: SlurmConf) -> dict[str, str]:
    """Return the texts of "slurm.conf", "gres.conf" and "cgroup.conf"."""
    lines = [f"{key}={value}" for key, value in conf.settings.items()]
    lines += [_line("NodeName", name, conf.nodes[name]) for name in sorted(conf.nodes, key=natural)]
    lines += [_line("PartitionName", name, fields) for name, fields in conf.partitions.items()]
    gres = ["AutoDetect=off"]
    for name in sorted(conf.gres, key=natural):
        kinds: dict[str, list[str]] = {}
        for gpu in conf.gres[name]:
            kinds.setdefault(gpu.type, []).append(gpu.device)
        for kind, devices in kinds.items():
            gres.append(f"NodeName={name} Name=gpu Type={kind} File={fold(devices)}")
    return {
        "slurm.conf": HEADER + "\n".join(lines) + "\n",
        "gres.conf": HEADER + "\n".join(gres) + "\n",
        "cgroup.conf": HEADER + "".join(f"{key}={value}\n" for key, value in conf.cgroup.items()),
    }


def _line(kind: str, name: str, fields: Mapping[str, str]) -> str:
    return " ".join([f"{kind}={name}", *(f"{key}={value}" for key, value in fields.items())])


def parse(files: Mapping[str, str]) -> SlurmConf:
    """Read the three texts back; files that are missing count as empty, lines that labrack never writes are kept."""
    conf = SlurmConf()
    for key, value, fields in _lines(files.get("slurm.conf", "")):
        if key == "NodeName":
            for name in unfold(value):
                conf.nodes[name] = fields
        elif key == "PartitionName":
            conf.partitions[value] = fields
        else:
            conf.settings[key] = value
    for key, value, fields in _lines(files.get("gres.conf", "")):
        if key == "NodeName" and fields.get("Name") == "gpu":
            for name in unfold(value):
                found = tuple(Gpu(fields.get("Type", ""), device) for device in unfold(fields.get("File", "")))
                conf.gres[name] = _in_order(conf.gres.get(name, ()) + found)
    conf.cgroup.update({key: value for key, value, _fields in _lines(files.get("cgroup.conf", ""))})
    return conf


def _lines(text: str) -> Iterable[tuple[str, str, Fields]]:
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if "=" not in line:
            continue
        key, _equals, rest = line.partition("=")
        if key in ("NodeName", "PartitionName"):
            value, _space, tail = rest.partition(" ")
            yield key, value, dict(word.split("=", 1) for word in tail.split() if "=" in word)
        else:
            yield key.strip(), rest.strip(), {}


# -------------------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class ConfPlan:
    """The configuration to write now, the differences that it settles, and those that wait for consent or a drain."""

    conf: SlurmConf
    done: tuple[Difference, ...] = ()
    pending: tuple[Difference, ...] = ()


def plan(
    running: SlurmConf, wish: Wish, version: str, max_disruption: str = "restart", drained: Iterable[str] = ()
) -> ConfPlan:
    """Plan the way from the running configuration to the wish, as far as consent and the drained nodes allow.

    A difference of class ``drain`` is settled when all its nodes are in ``drained``, which is consent as well: somebody
    has emptied them for it. What is pending keeps its running value, so the result is always whole. A first
    configuration (nothing running) is class ``restart``: there is no job that it could end.
    """
    first = not running.settings
    emptied = set(drained)
    done: list[Difference] = []
    pending: list[Difference] = []

    def settle(difference: Difference) -> bool:
        if difference.nodes:
            settled = emptied >= set(difference.nodes)
        else:
            settled = rank(difference.disruption) <= rank(max_disruption)
        (done if settled else pending).append(difference)
        return settled

    if first:
        whole = SlurmConf(wish.settings, wish.nodes, _partitions(wish, wish.nodes), wish.gres, wish.cgroup)
        return ConfPlan(whole, (Difference("slurm.conf", "first configuration", "restart"),))
    wish = replace(wish, nodes=_settle_memory(running.nodes, wish.nodes))
    light = "reload" if reconfigures(version) else "restart"
    settings, cgroup = dict(wish.settings), dict(wish.cgroup)
    nodes, gres = dict(wish.nodes), dict(wish.gres)
    for key, difference in _setting_differences(running, wish, light):
        if not settle(difference):
            _revert(settings, running.settings, key)
    for key, difference in _cgroup_differences(running, wish):
        if not settle(difference):
            _revert(cgroup, running.cgroup, key)
    for name, difference in _node_differences(running, wish, light):
        if not settle(difference):
            _revert(nodes, running.nodes, name)
            _revert(gres, running.gres, name)
    partitions = _partitions(wish, nodes)
    remaining = _without(running.partitions, running.nodes.keys() - nodes.keys())
    # what only lost nodes that leave is told with these
    for name, difference in _partition_differences(remaining, partitions, light):
        if not settle(difference):
            _revert(partitions, remaining, name)
    return ConfPlan(SlurmConf(settings, nodes, partitions, gres, cgroup), tuple(done), tuple(pending))


def _partitions(wish: Wish, nodes: Mapping[str, Fields]) -> dict[str, Fields]:
    """Return the partitions' lines; one whose nodes are all still to come waits with them."""
    return {
        str(partition["name"]): partition_fields(partition, nodes)
        for partition in wish.partitions
        if nodes and (partition_members(partition, nodes) or not partition_members(partition, wish.nodes))
    }


def _without(partitions: Mapping[str, Fields], leaving: Collection[str]) -> dict[str, Fields]:
    """Return the partitions less the nodes that leave: slurmctld does not start with one that is not configured."""
    remaining: dict[str, Fields] = {}
    for name, fields in partitions.items():
        members = unfold(fields.get("Nodes", ""))
        staying = [member for member in members if member not in leaving]
        if staying == members:
            remaining[name] = fields
        elif staying:
            remaining[name] = dict(fields, Nodes=fold(staying))
    return remaining


def _settle_memory(running: Mapping[str, Fields], wanted: Mapping[str, Fields]) -> dict[str, Fields]:
    """Keep a node's RealMemory when it is no more than wanted and within 5 %: kernels report a little less or more.

    Slurm drains a node that reports less memory than its line, so a larger figure is never kept.
    """
    nodes: dict[str, Fields] = {}
    for name, fields in wanted.items():
        old = int(running.get(name, {}).get("RealMemory") or 0)
        new = int(fields["RealMemory"])
        keep = new * 95 <= old * 100 and old <= new
        nodes[name] = dict(fields, RealMemory=str(old)) if keep else fields
    return nodes


def _setting_differences(running: SlurmConf, wish: Wish, light: str) -> Iterable[tuple[str, Difference]]:
    for key in sorted({*running.settings, *wish.settings}):
        old, new = running.settings.get(key), wish.settings.get(key)
        if old != new:
            summary = f"{_shown(old)} → {_shown(new)}"
            if key in DRAIN_SETTINGS:
                yield key, _everywhere(f"setting {key}", summary, running)
            else:
                yield key, Difference(f"setting {key}", summary, "restart" if key in RESTART_SETTINGS else light)


def _cgroup_differences(running: SlurmConf, wish: Wish) -> Iterable[tuple[str, Difference]]:
    for key in sorted({*running.cgroup, *wish.cgroup}):
        old, new = running.cgroup.get(key), wish.cgroup.get(key)
        if old != new:
            yield key, _everywhere(f"cgroup {key}", f"{_shown(old)} → {_shown(new)}", running)


def _everywhere(subject: str, summary: str, running: SlurmConf) -> Difference:
    """Return a difference that puts the jobs of all nodes at risk; without a node there is none."""
    return Difference(subject, summary, "drain" if running.nodes else "restart", tuple(running.nodes))


def _node_differences(running: SlurmConf, wish: Wish, light: str) -> Iterable[tuple[str, Difference]]:
    for name in sorted({*running.nodes, *wish.nodes}, key=natural):
        old, new = running.nodes.get(name), wish.nodes.get(name)
        old_gres, new_gres = running.gres.get(name, ()), wish.gres.get(name, ())
        if old == new and old_gres == new_gres:
            continue
        subject = f"node {name}"
        if old is None:
            yield name, Difference(subject, "added", light)
        elif new is None:
            yield name, Difference(subject, "removed; its jobs would be lost", "drain", (name,))
        else:
            summary = _fields_shown(old, new) or "device files of its GPUs"
            hard = {key for key in {*old, *new} if old.get(key) != new.get(key)} - {"NodeAddr", "State"}
            if hard or old_gres != new_gres:
                yield name, Difference(subject, summary, "drain", (name,))
            else:
                yield name, Difference(subject, summary, light)


def _partition_differences(
    old: Mapping[str, Fields], new: Mapping[str, Fields], light: str
) -> Iterable[tuple[str, Difference]]:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if after is None:
            # slurmctld ends the jobs of a partition that is no longer configured
            at_risk = tuple(unfold((before or {}).get("Nodes", "")))
            yield name, Difference(f"partition {name}", "removed; its jobs would be lost", "drain", at_risk)
        else:
            summary = "added" if before is None else _fields_shown(before, after)
            yield name, Difference(f"partition {name}", summary, light)


def _shown(value: str | None) -> str:
    return "unset" if value is None else value


def _fields_shown(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {_shown(old.get(key))} → {_shown(new.get(key))}" for key in keys)


def _revert(target: dict[str, Any], source: Mapping[str, Any], key: str) -> None:
    if key in source:
        target[key] = source[key]
    else:
        target.pop(key, None)
