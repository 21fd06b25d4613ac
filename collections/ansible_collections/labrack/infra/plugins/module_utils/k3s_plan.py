# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What k3s needs on a node, as a server or an agent, and the way there and back. Pure.

Paths, keys and behaviour were taken from k3s: ``install.sh``, ``cmd/k3s/main.go``, ``pkg/agent/containerd`` (runtimes
are looked for at the start alone), ``pkg/daemons/agent`` (its kubelet has ``failSwapOn: false``), docs.k3s.io. The
device plugin is NVIDIA/k8s-device-plugin's ``deployments/static``, with its chart's settings for CDI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import managed
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState, plan_file
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, plan_service

BINARY = "/usr/local/bin/k3s"
#: Programs that k3s is under another name.
LINKS = tuple(f"/usr/local/bin/{name}" for name in ("kubectl", "crictl", "ctr"))
ETC = "/etc/rancher/k3s"
CONFIG = f"{ETC}/config.yaml"
KUBECONFIG = f"{ETC}/k3s.yaml"
READERS = f"{ETC}/readers"
PROFILE = "/etc/profile.d/labrack-k3s.sh"
DATA = "/var/lib/rancher/k3s"
KUBELET = f"{DATA}/agent/etc/kubelet.conf.d/50-labrack.conf"
CONTAINERD = f"{DATA}/agent/etc/containerd/config.toml"
IMAGES = f"{DATA}/agent/images"
MANIFESTS = f"{DATA}/server/manifests"
#: What the server itself writes for agents, with the sum of its authority's certificate.
MADE_TOKEN = f"{DATA}/server/agent-token"
SQLITE = f"{DATA}/server/db/state.db"
STATE = "/var/lib/labrack/k3s"
TOKEN, AGENT_TOKEN, JOIN_TOKEN = f"{STATE}/token", f"{STATE}/agent-token", f"{STATE}/join-token"
#: For the agents' runs: the server's version, and what they join with.
JOIN = f"{STATE}/join.json"
RECORD = f"{STATE}/record.json"
SNAPSHOTS = f"{STATE}/snapshots"
DEVICE_PLUGIN, GPU_OPERATOR = f"{MANIFESTS}/labrack-device-plugin.yaml", f"{MANIFESTS}/labrack-gpu-operator.yaml"
NAMESPACE_FILE = re.compile(rf"{MANIFESTS}/labrack-namespace-([a-z0-9-]+)\.yaml")
HEADER = "# Written by labrack.\n"
VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)\+k3s(\d+)")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
PORTS = {True: (6443, 10250), False: (10250,)}
#: What k3s brings and can be left out; runtimes has the class by which pods get GPUs.
PACKAGED = ("coredns", "local-storage", "metrics-server", "servicelb", "traefik")
#: Keys of config.yaml that are this role's, or would break what it promises.
OWN_KEYS = frozenset(
    (
        *("agent-token", "agent-token-file", "config", "data-dir", "default-runtime", "disable"),
        *("docker", "flannel-iface", "node-ip", "node-label", "node-name", "secrets-encryption"),
        *("server", "tls-san", "token", "token-file", "write-kubeconfig", "write-kubeconfig-group"),
        *("write-kubeconfig-mode",),
    )
)
#: Keys of config.yaml that agents have too (docs.k3s.io, k3s agent); they stop at those of a server.
AGENT_KEYS = frozenset(
    (
        *("airgap-extra-registry", "alsologtostderr", "debug", "disable-apiserver-lb"),
        *("disable-default-registry-endpoint", "enable-pprof", "flannel-cni-conf", "flannel-conf"),
        *("image-credential-provider-bin-dir", "image-credential-provider-config", "kube-proxy-arg", "kubelet-arg"),
        *("lb-server-port", "log", "node-external-dns", "node-external-ip", "node-internal-dns", "node-taint"),
        *("nonroot-devices", "pause-image", "prefer-bundled-bin", "private-registry", "protect-kernel-defaults"),
        *("resolv-conf", "selinux", "snapshotter", "v", "vmodule"),
    )
)
#: Keys of config.yaml with a secret in their value.
SECRET_KEY = re.compile(r"secret|password|token|endpoint|access-key")
#: Keys that a cluster keeps from its first start on.
FIXED_KEYS = ("cluster-cidr", "service-cidr", "cluster-dns", "cluster-domain", "flannel-backend", "node-name")
#: Where k3s' own files lie outside its directories, without another kubelet on the node.
SHARED = ("/var/lib/kubelet", "/etc/rancher/node")
TREES = (DATA, "/run/k3s", "/run/flannel", "/var/lib/cni/networks/cbr0", "/var/lib/cni/flannel", *SHARED, STATE)
#: SkyPilot's own names (sky/utils/gpu_names.py), the more particular first.
SKYPILOT_NAMES = (
    *("gb300", "gb200", "b300", "b200", "b100", "gh200", "h200", "h100", "a100", "a10g", "a10", "a16", "a30", "a40"),
    *("l40s", "l40", "l4", "a6000", "a5000", "a4000", "v100", "p100", "p40", "p4000", "p4", "t4g", "t4", "k80", "m60"),
)


class K3sError(ValueError):
    """Something that keeps k3s from being as wanted, found before anything was changed; with its mend."""


@dataclass(frozen=True)
class Namespace:
    """A namespace with what its pods may ask for together; None or "" for no limit."""

    name: str
    gpus: int | None = None
    cpus: int | None = None
    memory: str = ""


@dataclass(frozen=True)
class Gpus:
    """How GPUs are given out: the way, the plugin's image, shares of a card, MIG, and the operator's chart."""

    way: str = "manifest"
    image: str = ""
    replicas: int = 1
    mig_strategy: str = "none"
    operator_version: str = ""
    operator_repo_url: str = ""


@dataclass(frozen=True)
class Wanted:
    """What the inventory wants of one node. ``cards`` are (name, MiB or 0) of its GPUs, None where they can't
    be told now, ``server_url`` is an agent's.

    ``server_version`` is the version of a server that is no part of this run, "" for one that is.
    """

    present: bool = True
    server: bool = True
    version: str = ""
    images: bool = False
    node_name: str = ""
    node_ip: str = ""
    server_url: str = ""
    server_version: str = ""
    join_token: str = field(default="", repr=False)
    disable: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    readers: tuple[str, ...] = ()
    cards: tuple[tuple[str, int], ...] | None = ()
    gpus: Gpus = Gpus()
    namespaces: tuple[Namespace, ...] = ()

    @property
    def unit(self) -> str:
        """The name of its service."""
        return unit_of(self.server)


@dataclass(frozen=True)
class Observed:
    """A node as it is. Versions are "" where there is none; ``version`` is the file's, ``running`` the process's.

    ``ours``: labrack has installed it. ``foreign`` are signs of a k3s that somebody else has. ``ran`` is the newest
    version that has run, ``images`` that of the images. ``links`` has "k3s", "other" or "" for each of :data:`LINKS`.
    ``runtimes`` are containerd's, None before a start. ``trees`` are those of :data:`TREES` that are there.
    """

    ours: bool = False
    role: str = ""
    foreign: tuple[str, ...] = ()
    files: Mapping[str, FileState | None] = field(default_factory=dict, repr=False)
    written: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    running: str = ""
    ran: str = ""
    images: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    service: ServiceState = field(default_factory=ServiceState)
    database: str = ""
    toolkit: str = ""
    runtimes: frozenset[str] | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[int, str] = field(default_factory=dict)
    shims: int = 0
    networks: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    kubelet_of_others: bool = False


def unit_of(server: bool) -> str:
    """Return the name of the service."""
    return "k3s" if server else "k3s-agent"


def unit_path(unit: str) -> str:
    """Return where a service's unit is."""
    return f"/etc/systemd/system/{unit}.service"


def env_path(unit: str) -> str:
    """Return where a service's environment is."""
    return f"{unit_path(unit)}.env"


def reader_path(user: str) -> str:
    """Return where a reader's copy of the kubeconfig is."""
    return f"{READERS}/{user}.yaml"


def read_version(text: str) -> str:
    """Return the version in what ``k3s --version`` prints, "" for none."""
    found = re.search(rf"^k3s version ({VERSION.pattern})", text, re.MULTILINE)
    return found.group(1) if found else ""


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers, () for none."""
    found = VERSION.fullmatch(version)
    return tuple(int(number) for number in found.groups()) if found else ()


def base_version(state: Observed) -> str:
    """Return the version that the data are of: the newest that has run, else that of the file beside a database."""
    return max((state.running, state.ran), key=numbers) or (state.version if state.database else "")


def accelerator(name: str, memory_mib: int) -> str:
    """Return the name that SkyPilot asks for, as a label's value: ``NVIDIA RTX A6000`` is ``a6000``."""
    text = re.sub(r"\b(nvidia|geforce|tesla|quadro|grid)\b", " ", name.lower())
    words = " ".join(re.findall(r"[a-z0-9]+", text))
    if re.search(r"\brtx 6000 ada\b", words):
        return "rtx6000-ada"
    for known in SKYPILOT_NAMES:
        if re.search(rf"\b{known}\b", words):
            # two sizes of one card are two names there
            size = {"a100": 80, "v100": 32}.get(known, 0)
            return f"{known}-{size}gb" if size and memory_mib > size * 900 else known
    return words.replace("rtx ", "rtx").replace(" ", "-")[:63].rstrip("-") or "unknown"


# --- what is written -------------------------------------------------------------------------------------------------


def server_url(state: Observed, wanted: Wanted) -> str:
    """Return the address of an agent's server; the one that it has while the server can't be asked."""
    return wanted.server_url or str(read_config(_text(state, CONFIG)).get("server", ""))


def node_labels(state: Observed, wanted: Wanted) -> list[str]:
    """Return the labels of a node with GPUs, none for another; the ones that it has while its cards can't be told."""
    if wanted.gpus.way == "none":
        return []
    if wanted.cards is None:
        return list(read_config(_text(state, CONFIG)).get("node-label", []))
    kinds = sorted({accelerator(*card) for card in wanted.cards})
    return [f"skypilot.co/accelerator={kinds[0]}", "nvidia.com/gpu.present=true"] if kinds else []


def config(wanted: Wanted, state: Observed) -> dict[str, Any]:
    """Return the keys of config.yaml, with those of the settings."""
    made: dict[str, Any] = {"node-name": wanted.node_name, "node-ip": wanted.node_ip}
    interface = state.addresses.get(wanted.node_ip)
    if interface:
        # else flannel takes the interface of the default route
        made["flannel-iface"] = interface
    if wanted.server:
        made.update(
            {
                "token-file": TOKEN,
                "agent-token-file": AGENT_TOKEN,
                "tls-san": [wanted.node_ip, wanted.node_name],
                "write-kubeconfig-mode": "0600",
                "secrets-encryption": True,
                "disable": list(wanted.disable),
            }
        )
    else:
        made.update({"server": server_url(state, wanted), "token-file": JOIN_TOKEN})
    labels = node_labels(state, wanted)
    if labels:
        made["node-label"] = labels
        # without the program k3s would not start
        if wanted.gpus.way == "gpu_operator" and state.toolkit:
            made["default-runtime"] = "nvidia"
    for key, value in wanted.settings.items():
        # "key+" adds to a list
        if wanted.server or key.rstrip("+") in AGENT_KEYS:
            made[key] = value
    return made


def config_text(keys: Mapping[str, Any]) -> str:
    """Return config.yaml: a key a line, its value as JSON, which YAML reads."""
    return HEADER + "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())


def read_config(text: str | None) -> dict[str, Any]:
    """Return the keys of a config.yaml that :func:`config_text` has written; lines that it has not are left out."""
    found = {}
    for line in (text or "").splitlines():
        key, _colon, value = line.partition(": ")
        try:
            found[key] = json.loads(value)
        except ValueError:
            continue
    return found


def unit_text(server: bool) -> str:
    """Return the unit, as k3s' own installer writes it. Pods are no part of it and outlive its restart."""
    unit = unit_of(server)
    return f"""{HEADER}[Unit]
Description=Lightweight Kubernetes
Documentation=https://k3s.io
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
EnvironmentFile=-{env_path(unit)}
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart={BINARY} {"server" if server else "agent"}

[Install]
WantedBy=multi-user.target
"""


#: The machine keeps its swap for everything else: k3s starts beside it, and no pod is moved there.
KUBELET_TEXT = f"""{HEADER}apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failSwapOn: false
memorySwap:
  swapBehavior: NoSwap
"""
PROFILE_TEXT = f"""{HEADER}# who may read the cluster has a kubeconfig of their own
if [ -z "${{KUBECONFIG-}}" ] && [ -r "{READERS}/$(id -un).yaml" ]; then
    export KUBECONFIG="{READERS}/$(id -un).yaml"
fi
"""


def yaml_text(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents as a stream of YAML, scalars as JSON."""
    return HEADER + "---\n".join("\n".join(_yaml(document, "")) + "\n" for document in documents)


def _yaml(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, (Mapping, list)) and inner:
                yield f"{indent}{key}:"
                yield from _yaml(inner, f"{indent}  ")
            else:
                yield f"{indent}{key}: {json.dumps(inner)}"
    else:
        for inner in value:
            lines = (
                list(_yaml(inner, f"{indent}  ")) if isinstance(inner, Mapping) else [f"{indent}  {json.dumps(inner)}"]
            )
            yield f"{indent}- {lines[0].lstrip()}"
            yield from lines[1:]


def plugin_config(gpus: Gpus) -> dict[str, Any]:
    """Return the device plugin's configuration file."""
    made: dict[str, Any] = {"version": "v1", "flags": {"migStrategy": gpus.mig_strategy, "failOnInitError": False}}
    if gpus.replicas > 1:
        # two shares may be of one card, so that nobody gets more than one
        slices = [{"name": "nvidia.com/gpu", "replicas": gpus.replicas}]
        made["sharing"] = {"timeSlicing": {"failRequestsGreaterThanOne": True, "resources": slices}}
    return made


def device_plugin(gpus: Gpus) -> list[dict[str, Any]]:
    """Return the device plugin's objects: a DaemonSet for nodes with GPUs, and its configuration.

    Devices are named to containerd (CDI), and not by an environment variable that any image can set.
    """
    name = "nvidia-device-plugin"
    text = "".join(f"{line}\n" for line in _yaml(plugin_config(gpus), ""))
    mounts = {"kubelet-device-plugins": "/var/lib/kubelet/device-plugins", "cdi": "/var/run/cdi", "driver-root": "/"}
    container = {
        "name": "nvidia-device-plugin-ctr",
        "image": gpus.image,
        "command": ["nvidia-device-plugin"],
        "env": [
            {"name": "CONFIG_FILE", "value": "/config/config.yaml"},
            {"name": "DEVICE_LIST_STRATEGY", "value": "cdi-cri"},
            {"name": "NVIDIA_CDI_HOOK_PATH", "value": "/usr/bin/nvidia-cdi-hook"},
            {"name": "NVIDIA_DRIVER_ROOT", "value": "/"},
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
            {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"},
        ],
        "securityContext": {"privileged": True},
        "volumeMounts": [
            {"name": "config", "mountPath": "/config"},
            {"name": "kubelet-device-plugins", "mountPath": mounts["kubelet-device-plugins"]},
            {"name": "cdi", "mountPath": mounts["cdi"]},
            {"name": "driver-root", "mountPath": "/driver-root", "readOnly": True},
        ],
    }
    labels = {"name": "nvidia-device-plugin-ds"}
    pod = {
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "runtimeClassName": "nvidia",
        "priorityClassName": "system-node-critical",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": name}},
            *(
                {
                    "name": volume,
                    "hostPath": {"path": path, "type": "DirectoryOrCreate" if path != "/" else "Directory"},
                }
                for volume, path in mounts.items()
            ),
        ],
    }
    # another configuration is another template, so that the pods are made anew
    template = {"metadata": {"labels": labels, "annotations": {"labrack/config": json.dumps(plugin_config(gpus))}}}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "kube-system"},
            "data": {"config.yaml": text},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "nvidia-device-plugin-daemonset", "namespace": "kube-system"},
            "spec": {
                "selector": {"matchLabels": labels},
                "updateStrategy": {"type": "RollingUpdate"},
                "template": {**template, "spec": pod},
            },
        },
    ]


def gpu_operator(gpus: Gpus) -> list[dict[str, Any]]:
    """Return the chart of NVIDIA's GPU operator, which leaves driver and toolkit to the host."""
    values: dict[str, Any] = {
        "driver": {"enabled": False},
        "toolkit": {"enabled": False},
        "mig": {"strategy": "none" if gpus.mig_strategy == "none" else gpus.mig_strategy},
    }
    if gpus.replicas > 1:
        text = "".join(f"{line}\n" for line in _yaml(plugin_config(gpus), ""))
        plugin = {"create": True, "name": "labrack-device-plugin", "default": "any", "data": {"any": text}}
        values["devicePlugin"] = {"config": plugin}
    return [
        {
            "apiVersion": "helm.cattle.io/v1",
            "kind": "HelmChart",
            "metadata": {"name": "gpu-operator", "namespace": "kube-system"},
            "spec": {
                "repo": gpus.operator_repo_url,
                "chart": "gpu-operator",
                "version": gpus.operator_version,
                "targetNamespace": "gpu-operator",
                "createNamespace": True,
                "failurePolicy": "abort",
                "valuesContent": "".join(f"{line}\n" for line in _yaml(values, "")),
            },
        }
    ]


def namespace_objects(wish: Namespace) -> list[dict[str, Any]]:
    """Return a namespace with its quota; pods that name no request get a small one, as the quota refuses them else."""
    place = {"name": "labrack", "namespace": wish.name}
    hard: dict[str, str] = {}
    defaults: dict[str, str] = {}
    if wish.gpus is not None:
        hard["requests.nvidia.com/gpu"] = str(wish.gpus)
    if wish.cpus is not None:
        hard["requests.cpu"] = str(wish.cpus)
        defaults["cpu"] = "100m"
    if wish.memory:
        hard["requests.memory"] = wish.memory
        defaults["memory"] = "128Mi"
    made: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": wish.name}}]
    made.append({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": place, "spec": {"hard": hard}})
    if defaults:
        limits = [{"type": "Container", "defaultRequest": defaults}]
        made.append({"apiVersion": "v1", "kind": "LimitRange", "metadata": place, "spec": {"limits": limits}})
    return made


def manifests(wanted: Wanted) -> dict[str, str]:
    """Return the files that the server applies by itself, by path. One a namespace: none is taken away with another."""
    made = {}
    if wanted.gpus.way == "manifest":
        made[DEVICE_PLUGIN] = yaml_text(device_plugin(wanted.gpus))
    elif wanted.gpus.way == "gpu_operator":
        made[GPU_OPERATOR] = yaml_text(gpu_operator(wanted.gpus))
    for wish in wanted.namespaces:
        made[f"{MANIFESTS}/labrack-namespace-{wish.name}.yaml"] = yaml_text(namespace_objects(wish))
    return made


def env_text(environment: Mapping[str, str]) -> str:
    """Return the unit's environment file (systemd.exec(5))."""
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in sorted(environment.items())}
    return HEADER + "".join(f'{name}="{value}"\n' for name, value in quoted.items())


def wanted_file(path: str, wanted: Wanted, state: Observed) -> FileState | None:
    """Return one of our files that hold no token as it shall be, None where it shall not be."""
    if path == CONFIG:
        return FileState(config_text(config(wanted, state)), "0600")
    if path == unit_path(wanted.unit):
        return FileState(unit_text(wanted.server))
    if path == env_path(wanted.unit):
        return FileState(env_text(wanted.environment), "0600") if wanted.environment else None
    if path == KUBELET:
        return FileState(KUBELET_TEXT)
    if path == PROFILE:
        return FileState(PROFILE_TEXT) if wanted.readers else None
    if path == JOIN_TOKEN:
        return FileState(wanted.join_token + "\n", "0600")
    text = manifests(wanted).get(path) if wanted.server else None
    return None if text is None else FileState(text, "0600")


# --- the plan --------------------------------------------------------------------------------------------------------


def plan(state: Observed, wanted: Wanted) -> list[Change]:
    """Plan the node's way to ``wanted``, in the order in which it can be gone; K3sError where there is none."""
    return _plan_present(state, wanted) if wanted.present else _plan_absent(state)


def check(state: Observed, wanted: Wanted) -> None:
    """Raise K3sError for what keeps this node from what is wanted."""
    if state.foreign:
        raise K3sError(
            f"there is a k3s here that labrack did not install ({', '.join(state.foreign)}). Mend: take it away with "
            "what installed it, such as k3s-uninstall.sh; that script also clears the routes that the node advertises "
            "in a tailnet, which the next run sets again"
        )
    role = "server" if wanted.server else "agent"
    if state.ours and state.role not in ("", role):
        raise K3sError(
            f"this node is the {state.role} of a cluster, and the inventory makes it the {role}. Mend: run with "
            "-e k3s_state=absent --limit this host first; on a server that takes the cluster away"
        )
    if wanted.node_ip not in state.addresses:
        have = ", ".join(state.addresses) or "none"
        raise K3sError(
            f"k3s_node_ip = {wanted.node_ip or '(none)'} is not an address of this node, which has {have}. Mend: set "
            "k3s_node_ip, or lab_address, to the one by which the other nodes reach it"
        )
    if not wanted.server and not server_url(state, wanted):
        raise K3sError(
            "the server's address is not known. Mend: set lab_address of the host in lab_head, or run without --limit"
        )
    if not state.service.active:
        for port in PORTS[wanted.server]:
            if port in state.ports:
                raise K3sError(
                    f"port {port} is taken by {state.ports[port]}, and k3s needs it. Mend: stop that, see ss -ltnp"
                )
    _check_version(state, wanted)
    before, after = read_config(_text(state, CONFIG)), config(wanted, state)
    for key in FIXED_KEYS:
        if before and before.get(key) != after.get(key):
            raise K3sError(
                f"{key} = {after.get(key)}, and this cluster was made with {before.get(key)}, which it keeps. Mend: "
                "put that back; or run with -e k3s_state=absent first, which takes the cluster away"
            )
    if not wanted.server and not wanted.join_token and state.files.get(JOIN_TOKEN) is None:
        raise K3sError(
            "the server has no token yet for agents to join with. Mend: run it on the server too, without --limit"
        )


def _check_version(state: Observed, wanted: Wanted) -> None:
    found = base_version(state)
    now, then = numbers(found), numbers(wanted.version)
    if not then:
        raise K3sError(f"k3s_version = {wanted.version} is no version of k3s. Mend: write it as v1.36.3+k3s1")
    if now and then < now:
        raise K3sError(
            f"k3s {found} has run here and k3s_version is {wanted.version}: a cluster does not go back. Mend: set "
            f"k3s_version to {found}; or take the cluster away with k3s_state absent first. The copies of its database "
            f"from before each upgrade are in {SNAPSHOTS}"
        )
    if now and then[:2] > (now[0], now[1] + 1):
        step = f"Set k3s_version to the newest v{now[0]}.{now[1] + 1} first, and run once for each"
        if not wanted.server:
            step += "; or let the node join anew: -e k3s_state=absent --limit this host, then without it"
        raise K3sError(
            f"k3s {found} is here and k3s_version is {wanted.version}: it takes one minor version at a time. "
            f"Mend: {step}"
        )
    served = numbers(wanted.server_version)
    if served and then > served:
        raise K3sError(
            f"k3s_version is {wanted.version} and the server has {wanted.server_version}: no agent may be newer. Mend: "
            "run it on the server too, without --limit"
        )


def _text(state: Observed, path: str) -> str | None:
    found = state.files.get(path)
    return found.text if found else None


def _plan_present(state: Observed, wanted: Wanted) -> list[Change]:
    check(state, wanted)
    unit = wanted.unit
    changes: list[Change] = []
    why: list[str] = []
    if state.version != wanted.version:
        base = base_version(state)
        if base and base != wanted.version and wanted.server and state.database:
            summary = f"copied to {SNAPSHOTS} before the upgrade from {base}"
            changes.append(Change("k3s database", summary, "restart", step=("snapshot", base)))
        summary = f"{state.version} → {wanted.version}" if state.version else f"{wanted.version} installed"
        # a program that does not run yet disturbs nobody
        changes.append(Change("k3s", summary, "restart", step=("install",)))
    managed.note("file", BINARY, how=managed.STAT)
    if wanted.images and state.images != wanted.version:
        changes.append(Change("k3s images", f"of {wanted.version}", "restart", step=("images",)))
        why.append("it imports images at its start")
    changes += _plan_links(state)
    secrets = (TOKEN, AGENT_TOKEN) if wanted.server else ()
    for path in secrets:
        managed.note("file", path, how=managed.STAT)
        if state.files.get(path) is None:
            changes.append(Change(f"file {path}", "made (not shown)", step=("token", path)))
    read_at_start = (CONFIG, KUBELET, unit_path(unit), env_path(unit))
    settings: list[Change] = []
    for path in read_at_start:
        secret = path == env_path(unit) or (path == CONFIG and _has_secret(state, wanted.settings))
        settings += plan_file(path, state.files.get(path), wanted_file(path, wanted, state), "restart", secret=secret)
    if not wanted.server and wanted.join_token:
        wish = wanted_file(JOIN_TOKEN, wanted, state)
        settings += plan_file(JOIN_TOKEN, state.files.get(JOIN_TOKEN), wish, "restart", secret=True)
    changes += settings
    newest = max(state.written.get(path, 0.0) for path in read_at_start)
    if settings or (state.service.since and newest > state.service.since):
        why.insert(0, "its configuration changed")
    if state.service.active and state.running != wanted.version:
        why.insert(0, f"{state.running or 'another version'} runs")
    if node_labels(state, wanted) and state.toolkit and state.runtimes is not None and "nvidia" not in state.runtimes:
        why.append("it looks for NVIDIA's runtime at its start, and that came later")
    # before the start: a server applies what it finds, and takes up what comes later
    written, removed = _plan_manifests(state, wanted)
    changes += written
    service = plan_service(unit, state.service, "; ".join(why))
    if not state.service.installed:
        service.insert(0, Change(f"service {unit}", "enabled at boot", step=("enable", unit)))
    changes += service + removed
    if wanted.server:
        starts = any(change.step[0] == "restart" for change in service)
        changes += _plan_handed_over(state, wanted, "restart" if starts else "none")
    if not state.version:
        # nothing of it is put on a node that shall not have it yet
        changes = [replace(change, disruption="restart") for change in changes]
    return changes


def _has_secret(state: Observed, settings: Mapping[str, Any]) -> bool:
    """Return whether config.yaml holds a secret, now or then."""
    # the token files' own keys hold paths
    keys = [key for key in (*settings, *read_config(_text(state, CONFIG))) if key not in OWN_KEYS]
    return any(map(SECRET_KEY.search, keys))


def _plan_links(state: Observed) -> list[Change]:
    return [
        Change(f"link {path}", "made, to k3s", step=("link", path)) for path in LINKS if state.links.get(path, "") == ""
    ]


def _plan_manifests(state: Observed, wanted: Wanted) -> tuple[list[Change], list[Change]]:
    """Plan what the server applies, and what leaves, which is taken out of the cluster, save a namespace."""
    written: list[Change] = []
    removed: list[Change] = []
    wishes = manifests(wanted) if wanted.server else {}
    there = [path for path, file in state.files.items() if file and path.startswith(f"{MANIFESTS}/labrack-")]
    for path in sorted(set(there) - set(wishes)):
        namespace = NAMESPACE_FILE.fullmatch(path)
        if namespace:
            summary = f"no longer looked after; kubectl delete namespace {namespace.group(1)} ends it with its pods"
            removed.append(Change(f"namespace {namespace.group(1)}", summary, step=("remove", path)))
        else:
            removed.append(Change(f"file {path}", "removed, with what it made", "restart", step=("unapply", path)))
    for path in wishes:
        written += plan_file(path, state.files.get(path), wanted_file(path, wanted, state))
    return written, removed


def _plan_handed_over(state: Observed, wanted: Wanted, disruption: str) -> list[Change]:
    """Plan what comes of a server that runs: what agents join with, and the readers' copies of the kubeconfig."""
    changes = []
    managed.note("file", JOIN, how=managed.STAT)
    made = _text(state, MADE_TOKEN)
    if made is None or _text(state, JOIN) != join_text(wanted, made):
        change = Change(f"file {JOIN}", "what agents join with (not shown)", disruption, step=("join",))
        changes.append(change)
    original = state.files.get(KUBECONFIG)
    for user in wanted.readers:
        path = reader_path(user)
        copy = FileState(original.text if original else "", "0600", user, "root")
        changes += plan_file(path, state.files.get(path) if original else None, copy, disruption, secret=True)
    there = [path for path, file in state.files.items() if file is not None and path.startswith(f"{READERS}/")]
    for path in sorted(set(there) - {reader_path(user) for user in wanted.readers}):
        changes += plan_file(path, state.files[path], None, secret=True)
    return changes + plan_file(PROFILE, state.files.get(PROFILE), wanted_file(PROFILE, wanted, state))


def join_text(wanted: Wanted, token: str) -> str:
    """Return the file for the agents' runs."""
    server = f"https://{wanted.node_ip}:{PORTS[True][0]}"
    return json.dumps({"version": wanted.version, "server": server, "token": token.strip()}) + "\n"


def _plan_absent(state: Observed) -> list[Change]:
    """Plan the way back, the record last: a run that was cut short is taken up again."""
    if not state.ours:
        return []
    changes = []
    unit = unit_of(state.role != "agent")
    ends = "drain" if state.shims else "restart"
    if state.service.installed and (state.service.active or state.service.enabled):
        changes.append(
            Change(f"service {unit}", "stopped, and no longer started at boot", ends, step=("disable", unit))
        )
    if state.shims or state.networks:
        count = f"{state.shims} pod{'' if state.shims == 1 else 's'} ended" if state.shims else "their network removed"
        changes.append(Change("pods of k3s", count, ends, step=("pods",)))
    paths = (unit_path(unit), env_path(unit), CONFIG, KUBECONFIG, PROFILE)
    readers = [path for path in state.files if path.startswith(f"{READERS}/")]
    for path in (*paths, *sorted(readers)):
        secret = path not in (unit_path(unit), CONFIG, PROFILE) or (path == CONFIG and _has_secret(state, {}))
        changes += plan_file(path, state.files.get(path), None, ends, secret=secret)
    for path in LINKS:
        if state.links.get(path) == "k3s":
            changes.append(Change(f"link {path}", "removed", ends, step=("remove", path)))
    if state.version:
        changes.append(Change("k3s", f"{state.version} removed", ends, step=("remove", BINARY)))
    for path in state.trees:
        if path in SHARED and state.kubelet_of_others:
            continue
        changes.append(Change(f"directory {path}", "removed", ends, step=("tree", path)))
    return changes


def notes(state: Observed, wanted: Wanted) -> list[str]:
    """Return what the admin should know of a node that is as wanted."""
    found = []
    if wanted.present and node_labels(state, wanted) and not state.toolkit:
        found.append(
            "this node has GPUs and no nvidia-container-runtime, so no pod gets one. Mend: have the role "
            "container_toolkit before this one; k3s is restarted then, and pods outlive that"
        )
    return found
