# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Start a lab of test nodes, hand out its inventory, and take it away.

A lab is one Docker network, one container per node, and the volumes that the nodes ask for. Its state directory holds
nodes.json, the admin's key pair and the pinned host keys, so that a later command finds the lab again.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import gpus, qemu
from .docker import LabError, Say, docker, last_lines
from .engine import apt_install, ensure_engine
from .gpus import Document, GpuSpec
from .image import ensure_image

#: Marks the containers and the network of a lab.
LABEL = "labrack.lab"
#: Seconds for a node to boot and to answer by ssh.
READY_TIMEOUT = 90.0
#: What systemd, slurmd and the device nodes need; no privileged mode.
CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_NICE", "MKNOD", "IPC_LOCK")
#: Device majors and minors of the driver's control device.
NVIDIA_MAJOR, CONTROL_MINOR = 195, 255
#: Those of /dev/net/tun.
TUN_MAJOR, TUN_MINOR = 10, 200


class NodeError(LabError):
    """A node does not come up, or a lab isn't what the command needs; the message says why."""


@dataclass(frozen=True)
class NodeSpec:
    """A node to make."""

    name: str
    #: A key of :data:`.image.SYSTEMS`.
    system: str = "debian13"
    gpus: tuple[GpuSpec, ...] = ()
    #: NVIDIA's driver is there and loaded; without it the cards are on the bus, and packages bring the driver.
    driver: bool = True
    #: The kernel's own module has the cards until it is blacklisted; only without ``driver``.
    nouveau: bool = False
    #: How many NVSwitches are on the bus.
    nvswitches: int = 0
    #: It may make tunnels: /dev/net/tun is there.
    tun: bool = False
    #: Volumes by name, and where they are mounted; empty when they are made. Nodes that name the same one share it.
    volumes: tuple[tuple[str, str], ...] = ()
    #: Of a virtual machine alone: its memory, its processors, and the sizes of further disks in GiB, see :mod:`.vm`.
    memory_mib: int = 1024
    cpus: int = 1
    disks: tuple[int, ...] = ()

    def cards(self, lab: str) -> Document:
        """What its cards are at first, in a lab of that name."""
        return gpus.document(f"{lab}/{self.name}", self.gpus, self.driver, self.nouveau, self.nvswitches)


@dataclass(frozen=True)
class LabSpec:
    """A lab to make; its name prefixes the containers' names."""

    name: str
    nodes: tuple[NodeSpec, ...]
    #: No node has a way out of the lab's network: no default route, and no name server beyond Docker's own.
    isolated: bool = False


@dataclass(frozen=True)
class Node:
    """A running node."""

    name: str
    #: Its container's name; that of a virtual machine is for messages alone.
    container: str
    system: str
    #: Its IPv4 address in the lab's network.
    address: str
    #: Its ssh port on 127.0.0.1.
    port: int
    #: How many cards it has.
    gpus: int
    #: The folder of its virtual machine; "" where it is a container.
    machine: str = ""


@dataclass(frozen=True)
class Lab:
    """A running lab."""

    name: str
    nodes: tuple[Node, ...]
    state_dir: Path

    @property
    def key(self) -> Path:
        """The admin's private ssh key, root's on every node."""
        return self.state_dir / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The pinned host keys of the nodes."""
        return self.state_dir / "known_hosts"

    def node(self, name: str) -> Node:
        """The node of that name; :class:`NodeError` where there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise NodeError(f"Lab {self.name} has no node {name!r}; it has: {', '.join(node.name for node in self.nodes)}.")


def up(spec: LabSpec, state_dir: Path, say: Say) -> Lab:
    """Make a lab and return it when every node is up: systemd runs without a failed unit, and ssh lets root in.

    Finds or starts a Docker engine and builds the images first. ``say`` gets plain lines of progress. A lab that does
    not come up is taken away again. Raises :class:`.docker.LabError`.
    """
    ensure_engine(say)
    if exists(spec.name):
        raise NodeError(f"A lab named {spec.name} is there already. Take it away first, or use another name.")
    images = {system: ensure_image(system, say) for system in dict.fromkeys(node.system for node in spec.nodes)}
    lab = prepare(spec.name, state_dir)
    # What an interrupted run has left must not be taken for this lab's.
    _remove(spec.name)
    try:
        docker("network", "create", "--label", f"{LABEL}={spec.name}", network_name(spec.name))
        for name in sorted({name for member in spec.nodes for name, _path in member.volumes}):
            docker("volume", "create", "--label", f"{LABEL}={spec.name}", volume_name(spec.name, name))
        ports = free_ports(len(spec.nodes))
        with ThreadPoolExecutor(max_workers=max(len(spec.nodes), 1)) as pool:
            jobs = [
                pool.submit(_start, lab, node, images[node.system], port, spec.isolated, say)
                for node, port in zip(spec.nodes, ports, strict=True)
            ]
            lab = replace(lab, nodes=tuple(job.result() for job in jobs))
    except BaseException:
        _remove(spec.name)
        raise
    save(lab)
    return lab


def exists(name: str) -> bool:
    """Whether a lab of that name has containers, running or not."""
    return bool(_containers(name))


def prepare(name: str, state_dir: Path) -> Lab:
    """A lab without nodes yet, whose state directory has the admin's key and nothing of an earlier lab."""
    lab = Lab(name, (), state_dir.absolute())
    lab.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_key(lab.key)
    (lab.state_dir / "nodes.json").unlink(missing_ok=True)
    lab.known_hosts.write_text("", encoding="utf-8")
    return lab


def save(lab: Lab) -> None:
    """Write what :func:`load` reads."""
    nodes = {"name": lab.name, "nodes": [asdict(node) for node in lab.nodes]}
    (lab.state_dir / "nodes.json").write_text(json.dumps(nodes, indent=2) + "\n", encoding="utf-8")


def load(state_dir: Path) -> Lab:
    """The lab whose state is in a directory; :class:`NodeError` where none is."""
    path = state_dir.absolute() / "nodes.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NodeError(f"No lab here: {path} does not exist. Start one first.") from None
    return Lab(data["name"], tuple(Node(**node) for node in data["nodes"]), path.parent)


def down(name: str, state_dir: Path, say: Say) -> None:
    """Take a lab away: containers, network, volumes, and files in the state directory. A missing lab is no error."""
    count = len(_containers(name))
    _remove(name)
    forget(state_dir)
    say(f"Lab {name}: {count} node{'' if count == 1 else 's'} removed")


def forget(state_dir: Path) -> None:
    """Remove a lab's own files from its state directory, and the directory if nothing else is there."""
    for file in ("nodes.json", "id_ed25519", "id_ed25519.pub", "known_hosts"):
        (state_dir / file).unlink(missing_ok=True)
    if state_dir.is_dir() and not any(state_dir.iterdir()):
        state_dir.rmdir()


def exec(
    node: Node, argv: Sequence[str], input: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command as root on a node, past ssh; :class:`.docker.LabError` when ``check`` is set and it fails."""
    if node.machine:
        return qemu.run(Path(node.machine), argv, input or "", check)
    return docker("exec", "-i", node.container, *argv, input=input or "", check=check)


def set_gpus(node: Node, change: Callable[[Document], None]) -> None:
    """Change a node's cards: ``change`` edits the document of :mod:`.gpus` in place.

    New Xid errors in it are written to the node's stand-in for the kernel log. Breaking a card::

        set_gpus(node, lambda document: gpus.lose(document, 0))
    """
    before = json.loads(exec(node, ["cat", "/etc/labrack-testnode/gpus.json"]).stdout)
    after = deepcopy(before)
    change(after)
    uptime = float(exec(node, ["cat", "/proc/uptime"]).stdout.split()[0])
    exec(node, ["tee", "/etc/labrack-testnode/gpus.json"], input=json.dumps(after, indent=1))
    exec(node, ["/usr/lib/labrack-testnode/setup-gpus"])
    append = [] if gpus.log_starts_over(before, after) else ["-a"]
    lines = gpus.kernel_lines(before, after, uptime)
    exec(node, ["tee", *append, "/run/labrack-testnode/kmsg"], input="".join(f"{line}\n" for line in lines))


def inventory(lab: Lab) -> dict[str, dict[str, Any]]:
    """The connection variables of each node, by host name; host keys are checked against the pinned ones."""
    options = [
        f'UserKnownHostsFile="{lab.known_hosts}"',
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
    ]
    arguments = " ".join(f"-o {shlex.quote(option)}" for option in options)
    return {
        node.name: {
            "ansible_host": "127.0.0.1",
            "ansible_port": node.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(lab.key),
            "ansible_ssh_common_args": arguments,
        }
        for node in lab.nodes
    }


def inventory_yaml(lab: Lab, groups: Mapping[str, Iterable[str]]) -> str:
    """The lab as the text of an Ansible YAML inventory, with ``groups`` of host names."""
    lines = ["all:", "  hosts:"]
    for host, variables in inventory(lab).items():
        lines.append(f"    {host}:")
        lines += [f"      {name}: {json.dumps(value)}" for name, value in variables.items()]
    if groups:
        lines.append("  children:")
    for group, hosts in groups.items():
        lines += [f"    {group}:", "      hosts:"]
        lines += [f"        {lab.node(host).name}: {{}}" for host in hosts]
    return "\n".join(lines) + "\n"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now. Docker would choose other ones at every restart of a container."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def run_flags(lab: str, node: NodeSpec, port: int, isolated: bool = False) -> list[str]:
    """The options of ``docker create`` for a node whose ssh is published on ``port``.

    One rule per card: with a wildcard for the minor, Slurm could take no single card away from a job. In an isolated
    lab Docker's name server knows the lab's names, and has none to ask for others.
    """
    minors = [*range(len(node.gpus)), CONTROL_MINOR] if node.gpus else []
    return [
        f"--name={container_name(lab, node.name)}",
        f"--hostname={node.name}",
        f"--label={LABEL}={lab}",
        f"--network={network_name(lab)}",
        f"--network-alias={node.name}",
        f"--publish=127.0.0.1:{port}:22",
        *(f"--cap-add={capability}" for capability in CAPABILITIES),
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--cgroupns=private",
        *(f"--device-cgroup-rule=c {NVIDIA_MAJOR}:{minor} rwm" for minor in minors),
        *([f"--device-cgroup-rule=c {TUN_MAJOR}:{TUN_MINOR} rwm"] if node.tun else []),
        *(["--dns=127.0.0.1"] if isolated else []),
        *(
            f"--mount=type=volume,source={volume_name(lab, name)},target={path},volume-nocopy"
            for name, path in node.volumes
        ),
        "--tmpfs=/run",
        "--tmpfs=/run/lock",
    ]


def network_name(lab: str) -> str:
    """The name of a lab's Docker network."""
    return f"{lab}-net"


def volume_name(lab: str, name: str) -> str:
    """The name of a volume of a lab's nodes."""
    return f"{lab}-{name}"


def container_name(lab: str, node: str) -> str:
    """The name of a node's container, or of what else runs in the lab's network."""
    return f"{lab}-{node}"


def _containers(lab: str) -> list[str]:
    return docker("ps", "-aq", "--filter", f"label={LABEL}={lab}").stdout.split()


def _remove(lab: str) -> None:
    containers = _containers(lab)
    if containers:
        docker("rm", "-f", "-v", *containers)
    if docker("network", "ls", "-q", "--filter", f"label={LABEL}={lab}").stdout:
        docker("network", "rm", network_name(lab))
    volumes = docker("volume", "ls", "-q", "--filter", f"label={LABEL}={lab}").stdout.split()
    if volumes:
        docker("volume", "rm", *volumes)


def _make_key(path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise NodeError("The ssh client is not installed. Run `sudo apt-get install openssh-client`.")
        apt_install("openssh-client")
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "labrack", "-f", str(path)], check=True)


def _copy(container: str, files: Mapping[str, str]) -> None:
    """Put files of root, readable by all, into a container, started or not."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name.lstrip("/"))
            info.size, info.mode = len(text.encode()), 0o644
            archive.addfile(info, io.BytesIO(text.encode()))
    docker("cp", "-", f"{container}:/", input=buffer.getvalue())


def _start(lab: Lab, spec: NodeSpec, image: str, port: int, isolated: bool, say: Say) -> Node:
    started = time.monotonic()
    container = container_name(lab.name, spec.name)
    docker("create", *run_flags(lab.name, spec, port, isolated), image)
    _copy(
        container,
        {
            "/etc/labrack-testnode/gpus.json": json.dumps(spec.cards(lab.name), indent=1),
            # containers of one image would share its own
            "/etc/machine-id": f"{uuid.uuid5(uuid.NAMESPACE_DNS, container).hex}\n",
            "/root/.ssh/authorized_keys": lab.key.with_suffix(".pub").read_text(encoding="utf-8"),
            **({"/etc/labrack-testnode/tun": ""} if spec.tun else {}),
            **({"/etc/labrack-testnode/isolated": ""} if isolated else {}),
        },
    )
    docker("start", container)
    _await_systemd(container)
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = docker("inspect", "--format", template, container).stdout.strip()
    node = Node(spec.name, container, spec.system, address, port, len(spec.gpus))
    check_ssh(lab, node)
    say(f"{spec.name}: up after {time.monotonic() - started:.1f} s ({spec.system}, {len(spec.gpus)} GPUs)")
    return node


def _await_systemd(container: str) -> None:
    """Return when systemd is up in a container; else raise with the node's last log lines."""
    deadline = time.monotonic() + READY_TIMEOUT
    state = ""
    while time.monotonic() < deadline:
        if docker("inspect", "--format", "{{.State.Running}}", container).stdout.strip() != "true":
            raise NodeError(f"Node {container} stopped while it booted. Its log ends:\n{_log(container)}")
        done = docker("exec", container, "systemctl", "is-system-running", "--wait", check=False, timeout=READY_TIMEOUT)
        state = done.stdout.strip()
        if state == "running":
            return
        if state == "degraded":
            failed = docker("exec", container, "systemctl", "--failed", "--no-legend", "--plain").stdout
            raise NodeError(f"Node {container} booted with failed units:\n{failed}{_log(container)}")
        time.sleep(0.1)
    raise NodeError(
        f"Node {container} did not boot within {READY_TIMEOUT:.0f} s (systemd: {state or 'no answer'}). "
        f"Its log ends:\n{_log(container)}"
    )


def _log(container: str) -> str:
    logs = docker("logs", "--tail", "15", container, check=False)
    journal = docker("exec", container, "journalctl", "-n", "15", "--no-pager", "-o", "cat", check=False)
    return last_lines(logs.stdout + logs.stderr + journal.stdout, 30)


def check_ssh(lab: Lab, node: Node) -> None:
    """Pin a new node's host key, and let root in with it; :class:`NodeError` when the node does not."""
    host_key = exec(node, ["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout.split()
    with lab.known_hosts.open("a", encoding="utf-8") as file:
        file.write(f"[127.0.0.1]:{node.port} {host_key[0]} {host_key[1]}\n")
    variables = inventory(Lab(lab.name, (node,), lab.state_dir))[node.name]
    options = shlex.split(variables["ansible_ssh_common_args"])
    target = ["-p", str(node.port), "-i", str(lab.key), "root@127.0.0.1", "true"]
    command = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", *options, *target]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise NodeError(f"Node {node.container} runs but does not answer by ssh: {last_lines(done.stderr)}")
