# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Labs whose nodes are virtual machines: for what needs a kernel, a disk or a power switch of its own.

They are :class:`.node.Lab` too, so that inventory, commands past ssh and broken cards are those of :mod:`.node`. Each
node is booted once for all labs that want one like it; :func:`up` goes on from there, in seconds.

No packet leaves the machine: the first card of a node, eth0, takes ssh in and lets nothing out; the second, eth1, is on
a hub of the lab's own on the loopback interface. The default route leads there, to a gateway that isn't there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from . import node, qemu
from .disk import Disk, ensure_disk, locked
from .docker import Say
from .node import Lab, LabSpec, Node, NodeError, NodeSpec
from .qemu import BOOTED, Hardware, MachineError, Qemu, Wires

#: The lab's network, and the gateway that no node is.
NETWORK, GATEWAY = "10.77.0", 1
#: Seconds for a trial boot with KVM, which is quick where it works.
KVM_TIMEOUT = 60.0

#: Run once in a machine, with its name and address, before its state is kept.
_IDENTITY = """\
set -eu
echo "$1" >/etc/hostname
hostname "$1"
printf '127.0.0.1\\tlocalhost\\n::1\\tlocalhost ip6-localhost ip6-loopback\\n' >/etc/hosts
# the hub gives a node its own packets back, by which IPv6 takes its address for a duplicate
printf '[Match]\\nName=eth1\\n\\n[Network]\\nAddress=%s/24\\nGateway=%s\\nLinkLocalAddressing=no\\n' "$2" "$3" \
    >/etc/systemd/network/20-eth1.network
networkctl reload
until ip -4 -o address show eth1 | grep -q "$2"; do sleep 0.1; done

# the first login takes seconds of an emulated processor, and so does root's service manager at each one
loginctl enable-linger root
key=$(mktemp -d)
ssh-keygen -q -t ed25519 -N '' -f "$key/id"
cp "$key/id.pub" /root/.ssh/authorized_keys
ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i "$key/id" root@localhost python3 -c pass
rm -r "$key" /root/.ssh/authorized_keys
sync
"""
#: Run after every return to a snapshot: the clock is that of its save, and apt trusts its lists for an hour only.
_WAKE = """\
set -eu
date --set="@$1" >/dev/null
touch /var/lib/apt/lists /var/lib/apt/periodic/update-success-stamp
"""
#: Run when a lab gets the machine, with the cards' document as input.
_HAND_OVER = """
echo "$2" >/root/.ssh/authorized_keys
cat >/etc/labrack-testnode/gpus.json
/usr/lib/labrack-testnode/boot
"""


@dataclass(frozen=True)
class _Bench:
    """What machines are made with."""

    qemu: Qemu
    disk: Disk


def up(spec: LabSpec, state_dir: Path, say: Say) -> Lab:
    """Make a lab and return it when every node is up, as :func:`.node.up` does, of virtual machines.

    Builds their disk and boots each kind of node first, where that is not in the cache. A lab that does not come up is
    taken away again. Raises :class:`.docker.LabError`.
    """
    if exists(state_dir):
        raise NodeError(f"A lab of virtual machines runs in {state_dir} already. Take it away first.")
    emulator = qemu.ensure_qemu(say)
    disks = {system: ensure_disk(system, say) for system in dict.fromkeys(member.system for member in spec.nodes)}
    benches = {system: _Bench(accelerate(emulator, disk, say), disk) for system, disk in disks.items()}
    lab = node.prepare(spec.name, state_dir)
    shutil.rmtree(_machines(lab.state_dir), ignore_errors=True)
    ports = node.free_ports(len(spec.nodes))
    try:
        with ThreadPoolExecutor(max_workers=max(len(spec.nodes), 1)) as pool:
            jobs = [
                pool.submit(_start, lab, member, number, benches[member.system], port, say)
                for number, (member, port) in enumerate(zip(spec.nodes, ports, strict=True), 1)
            ]
            lab = replace(lab, nodes=tuple(job.result() for job in jobs))
    except BaseException:
        _remove(lab.state_dir)
        raise
    node.save(lab)
    return lab


def exists(state_dir: Path) -> bool:
    """Whether a machine of the lab in a state directory runs."""
    return any(qemu.running(folder) for folder in _folders(state_dir))


def down(name: str, state_dir: Path, say: Say) -> None:
    """Take a lab away: its machines with their disks, and its files in the state directory. None is no error."""
    count = len(_folders(state_dir))
    _remove(state_dir)
    node.forget(state_dir)
    say(f"Lab {name}: {count} virtual machine{'' if count == 1 else 's'} removed")


def power_off(member: Node) -> None:
    """Take a node's power away, at once; what it had not written to its disks is lost."""
    qemu.power_off(Path(member.machine))


def power_on(member: Node, wait: bool = True) -> None:
    """Start a node from its disks; return when it has booted, or at once without ``wait``."""
    qemu.power_on(Path(member.machine))
    if wait:
        qemu.await_boot(Path(member.machine))


def reboot(member: Node) -> None:
    """Let a node reboot itself, and return when it is up again."""
    folder = Path(member.machine)
    before = _boot_id(folder)
    # the agent may be gone before it has answered
    with suppress(MachineError):
        qemu.run(folder, ["systemctl", "--no-block", "reboot"])
    deadline = time.monotonic() + qemu.BOOT_TIMEOUT
    while True:
        qemu.await_agent(folder)
        with suppress(MachineError):
            if _boot_id(folder) != before:
                break
        if time.monotonic() > deadline:
            raise MachineError(f"{member.name} did not reboot. Its console ends:\n{qemu.console(folder)}")
        time.sleep(0.2)
    qemu.await_boot(folder)


def snapshot(lab: Lab, name: str) -> None:
    """Keep memory and disks of all nodes, as they are at one moment; they must be on."""
    qemu.save([Path(member.machine) for member in lab.nodes], name)


def restore(lab: Lab, name: str) -> None:
    """Bring all nodes back to a snapshot, with the time of now; they must be on."""
    folders = [Path(member.machine) for member in lab.nodes]
    qemu.load(folders, name)
    for folder in folders:
        _wake(folder)


def accelerate(emulator: Qemu, disk: Disk, say: Say, cpuinfo: Path = Path("/proc/cpuinfo")) -> Qemu:
    """The emulator with KVM, if the processor has what it takes and a trial boot passes; its result is kept."""
    if not qemu.may_have_kvm(cpuinfo.read_text()):
        return emulator
    candidate = replace(emulator, kvm=True)
    verdict = disk.folder / f"kvm-{hashlib.sha256(emulator.version.encode()).hexdigest()[:12]}"
    with locked(verdict.with_suffix(".lock")):
        if not verdict.exists():
            say("Trying whether a machine boots with KVM")
            failure = ""
            try:
                _boot(candidate, disk, Hardware("trial", 1), KVM_TIMEOUT, lambda folder: None)
            except MachineError as error:
                failure = str(error)
                say(f"It does not, so that machines are emulated: {error}")
            verdict.write_text(failure, encoding="utf-8")
    return emulator if verdict.read_text(encoding="utf-8") else candidate


def hub(lab: str) -> str:
    """The multicast group and port of a lab's hub, from its name alone, so that no two labs share one by chance.

    The group is of the block for use within a site (RFC 2365); it is joined on the loopback interface only.
    """
    number = int.from_bytes(hashlib.sha256(lab.encode()).digest()[:5], "big")
    first, second, port = number >> 32, number >> 24 & 255, number & 0xFFFF
    return f"239.255.{first}.{second}:{10000 + port % 20000}"


def _start(lab: Lab, spec: NodeSpec, number: int, bench: _Bench, port: int, say: Say) -> Node:
    started = time.monotonic()
    hardware = Hardware(spec.name, number, spec.memory_mib, spec.cpus, spec.disks)
    address = f"{NETWORK}.{10 + number}"
    source = _booted(bench, hardware, address, say)
    folder = _machines(lab.state_dir) / spec.name
    qemu.copy(source, qemu.command(bench.qemu, bench.disk, hardware, Wires(port, hub(lab.name)), folder), folder)
    qemu.power_on(folder, BOOTED)
    qemu.await_agent(folder)
    key = lab.key.with_suffix(".pub").read_text(encoding="utf-8").strip()
    hand_over = ["sh", "-c", _WAKE + _HAND_OVER, "hand-over", f"{time.time():.3f}", key]
    qemu.run(folder, hand_over, json.dumps(spec.cards(lab.name), indent=1))
    title = node.container_name(lab.name, spec.name)
    member = Node(spec.name, title, spec.system, address, port, len(spec.gpus), str(folder))
    node.check_ssh(lab, member)
    say(f"{spec.name}: up after {time.monotonic() - started:.1f} s ({spec.system}, {len(spec.gpus)} GPUs)")
    return member


def _booted(bench: _Bench, hardware: Hardware, address: str, say: Say) -> Path:
    """The folder of a machine like this that has booted and was saved, made where it is not there."""
    name = f"{hardware.name}-{qemu.state_hash(bench.qemu, bench.disk, hardware, _IDENTITY + address)}"
    folder = bench.disk.folder / name

    def keep(machine: Path) -> None:
        qemu.run(machine, ["sh", "-c", _IDENTITY, "identity", hardware.name, address, f"{NETWORK}.{GATEWAY}"])
        qemu.save([machine], BOOTED)
        qemu.leave(machine)
        machine.rename(folder)

    with locked(bench.disk.folder / f"{name}.lock"):
        if not folder.is_dir():
            started = time.monotonic()
            say(f"{hardware.name}: booting one like it for the first time")
            _boot(bench.qemu, bench.disk, hardware, qemu.BOOT_TIMEOUT, keep)
            say(f"{hardware.name}: booted and saved in {time.monotonic() - started:.1f} s")
    return folder


def _boot(emulator: Qemu, disk: Disk, hardware: Hardware, seconds: float, use: Callable[[Path], None]) -> None:
    """Boot a machine that belongs to no lab, let ``use`` have it, and take it away."""
    work = Path(tempfile.mkdtemp(prefix="booting-", dir=disk.folder))
    folder = work / hardware.name
    wires = Wires(node.free_ports(1)[0], hub(str(work)))
    try:
        qemu.create(qemu.command(emulator, disk, hardware, wires, folder), disk, hardware, folder)
        qemu.power_on(folder)
        qemu.await_boot(folder, seconds)
        use(folder)
    finally:
        qemu.power_off(folder)
        shutil.rmtree(work, ignore_errors=True)


def _wake(folder: Path) -> None:
    qemu.run(folder, ["sh", "-c", _WAKE, "wake", f"{time.time():.3f}"])


def _boot_id(folder: Path) -> str:
    return qemu.run(folder, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout


def _machines(state_dir: Path) -> Path:
    return state_dir.absolute() / "machines"


def _folders(state_dir: Path) -> list[Path]:
    machines = _machines(state_dir)
    return [path for path in machines.iterdir() if path.is_dir()] if machines.is_dir() else []


def _remove(state_dir: Path) -> None:
    for folder in _folders(state_dir):
        qemu.power_off(folder)
    shutil.rmtree(_machines(state_dir), ignore_errors=True)
