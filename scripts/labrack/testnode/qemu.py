# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One virtual machine in QEMU: its command line, its power, its snapshots, and commands in it past its network.

QEMU is told what to do over QMP (https://qemu.readthedocs.io/en/v7.2.15/interop/qemu-qmp-ref.html), the guest over its
agent (https://qemu.readthedocs.io/en/v7.2.15/interop/qemu-ga-ref.html): both are JSON lines on a Unix socket.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import Disk
from .docker import LabError, Say, last_lines
from .engine import apt_install, os_release

QEMU = "qemu-system-x86_64"
MACHINE = "q35"
#: An old model: what it lacks costs an emulated processor time. QEMU 7.2 panics Debian 13's kernel at cmpxchg16b.
EMULATED_CPU = "Nehalem,-cx16"
#: Seconds until a machine that boots, or comes back from a snapshot, answers; three at a time on two busy cores.
BOOT_TIMEOUT = 480.0
#: Seconds for the agent's answer to one request.
AGENT_TIMEOUT = 30.0
#: The files in a machine's folder, beside its disks.
COMMAND, PID, AGENT, QMP, CONSOLE = "command.json", "pid", "agent", "qmp", "console.log"
#: The snapshot with which a machine is handed out.
BOOTED = "booted"
_GIB = 1024**3


class MachineError(LabError):
    """A virtual machine does not start, answer or obey; the message says why."""


@dataclass(frozen=True)
class Qemu:
    """The emulator of this machine."""

    version: str
    #: It runs guests on the processor itself.
    kvm: bool = False

    @property
    def flags(self) -> list[str]:
        """What picks accelerator, machine and processor."""
        accelerated = ["-accel", "kvm", "-cpu", "host"]
        emulated = ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", EMULATED_CPU]
        return ["-machine", MACHINE, *(accelerated if self.kvm else emulated)]


@dataclass(frozen=True)
class Hardware:
    """What a machine is made of."""

    name: str
    #: Its number in the lab, from 1: it gives the network cards' addresses.
    number: int
    memory_mib: int = 1024
    cpus: int = 1
    #: Sizes of further disks in GiB: /dev/vdb and on, with the serial numbers disk1 and on.
    disks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wires:
    """Where a machine's two network cards lead, which is no part of its state."""

    #: The port of 127.0.0.1 that leads to its ssh.
    port: int
    #: Group and port of the lab's hub, ``ADDRESS:PORT``, on the loopback interface.
    hub: str


def ensure_qemu(say: Say) -> Qemu:
    """Return the emulator, installing the distribution's where that is possible; it is taken not to have KVM yet.

    Raises :class:`MachineError` with the mend.
    """
    if platform.machine() != "x86_64":
        raise MachineError(f"Virtual machines are made on x86_64 only, not on {platform.machine()}.")
    if shutil.which(QEMU) is None or shutil.which("qemu-img") is None:
        release = os_release()
        if os.geteuid() != 0 or not {"debian", "ubuntu"} & {release.get("ID"), *release.get("ID_LIKE", "").split()}:
            raise MachineError(
                "QEMU is not installed. Run `sudo apt-get install qemu-system-x86 qemu-utils`, or your system's like."
            )
        say("No QEMU here: installing the distribution's (qemu-system-x86)")
        apt_install("qemu-system-x86", "qemu-utils")
    done = subprocess.run([QEMU, "--version"], capture_output=True, text=True)
    found = re.search(r"version (\S+)(?: \((.*)\))?", done.stdout)
    if found is None:
        raise MachineError(f"{QEMU} --version says nothing that is known: {last_lines(done.stdout + done.stderr)}")
    return Qemu(found[2] or found[1])


def may_have_kvm(cpuinfo: str, device: Path = Path("/dev/kvm")) -> bool:
    """Whether a trial of KVM makes sense; the device alone can be there without a processor that boots Debian in it."""
    return bool(re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo, re.MULTILINE)) and os.access(device, os.R_OK | os.W_OK)


def command(qemu: Qemu, disk: Disk, hardware: Hardware, wires: Wires, folder: Path) -> list[str]:
    """The command line of a machine, whose files are in ``folder``; it is run there.

    The first card is for ssh into the guest: ``restrict=on`` lets nothing out. The second is on a hub of all machines
    of the lab, by multicast on the loopback interface.
    """
    files = [folder / f"disk{index}.qcow2" for index in range(len(hardware.disks) + 1)]
    mac = f"52:54:00:00:{{card:02x}}:{hardware.number:02x}"
    drives: list[str] = []
    for index, file in enumerate(files):
        # the host survives: what the guest has flushed is safe with the host's cache
        drives += ["-drive", f"if=none,id=disk{index},file={file},format=qcow2,cache=unsafe,discard=unmap"]
        drives += ["-device", f"virtio-blk-pci,drive=disk{index},serial=disk{index}"]
    return [
        QEMU,
        *("-name", hardware.name),
        *qemu.flags,
        *("-smp", str(hardware.cpus), "-m", str(hardware.memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-daemonize", "-pidfile", str(folder / PID)),
        *("-kernel", str(disk.kernel), "-initrd", str(disk.initrd)),
        *("-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off panic=5"),
        *("-chardev", f"file,id=console,path={CONSOLE},append=on", "-serial", "chardev:console"),
        *("-qmp", f"unix:{QMP},server=on,wait=off"),
        *drives,
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={AGENT},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-netdev", f"user,id=way-in,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{wires.port}-:22"),
        *("-device", f"virtio-net-pci,netdev=way-in,mac={mac.format(card=0)}"),
        *("-netdev", f"socket,id=hub,mcast={wires.hub},localaddr=127.0.0.1"),
        *("-device", f"virtio-net-pci,netdev=hub,mac={mac.format(card=1)}"),
    ]


def state_hash(qemu: Qemu, disk: Disk, hardware: Hardware, setup: str) -> str:
    """Twelve hexadecimal digits that change whenever a booted machine's saved state would not fit any more.

    ``setup`` is what was run in it before it was saved.
    """
    argv = command(qemu, disk, hardware, Wires(0, ""), Path())
    return hashlib.sha256(json.dumps([qemu.version, argv, hardware.disks, setup]).encode()).hexdigest()[:12]


def create(argv: Sequence[str], disk: Disk, hardware: Hardware, folder: Path) -> None:
    """Make a machine's folder, with empty disks over the built one, and its command line."""
    folder.mkdir(parents=True)
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(disk.root)]
    _image([*overlay, str(folder / "disk0.qcow2")])
    for index, size in enumerate(hardware.disks, 1):
        _image(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / f"disk{index}.qcow2"), str(size * _GIB)])
    (folder / COMMAND).write_text(json.dumps(argv), encoding="utf-8")


def copy(source: Path, argv: Sequence[str], folder: Path) -> None:
    """Make a machine's folder with the disks of another one, and the snapshots in them."""
    folder.mkdir(parents=True)
    for file in source.glob("disk*.qcow2"):
        shutil.copyfile(file, folder / file.name)
    (folder / COMMAND).write_text(json.dumps(argv), encoding="utf-8")


def running(folder: Path) -> int | None:
    """The process of a machine, by its own pid file and command line; None when it is off."""
    try:
        pid = int((folder / PID).read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if str(folder / PID).encode() in argv else None


def power_on(folder: Path, snapshot: str = "") -> None:
    """Start a machine from its disks, or as a snapshot in them has it; return when QEMU runs, not the guest."""
    if running(folder):
        raise MachineError(f"The machine {folder.name} runs already.")
    argv = json.loads((folder / COMMAND).read_text(encoding="utf-8"))
    if snapshot:
        argv += ["-loadvm", snapshot]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise MachineError(f"QEMU did not start {folder.name}: {last_lines(done.stderr or done.stdout)}")


def power_off(folder: Path) -> None:
    """End a machine as a lost power supply does: what was not on its disks is gone. One that is off stays so."""
    pid = running(folder)
    if pid is None:
        return
    os.kill(pid, signal.SIGKILL)
    # it is no child of this process
    while running(folder):
        time.sleep(0.02)


def leave(folder: Path) -> None:
    """End QEMU in good order, its files whole; the guest is not asked."""
    qmp(folder, "quit")
    while running(folder):
        time.sleep(0.02)


def save(folders: Sequence[Path], snapshot: str) -> None:
    """Keep memory and disks of running machines, all of the same moment, under a name; they go on then."""
    for folder in folders:
        qmp(folder, "stop")
    for folder in folders:
        _monitor(folder, f"savevm {snapshot}")
    for folder in folders:
        qmp(folder, "cont")


def load(folders: Sequence[Path], snapshot: str) -> None:
    """Bring running machines back to where they were at :func:`save`; their clocks are there, too."""
    for folder in folders:
        qmp(folder, "stop")
    for folder in folders:
        _monitor(folder, f"loadvm {snapshot}")
    for folder in folders:
        qmp(folder, "cont")


def qmp(folder: Path, name: str, **arguments: Any) -> Any:
    """Give QEMU one command and return what it returns; :class:`MachineError` when it refuses or is not there."""
    with _connection(folder, QMP, AGENT_TIMEOUT) as (connection, lines):
        next(lines)
        for request in ({"execute": "qmp_capabilities"}, {"execute": name, "arguments": arguments}):
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = next(answer for answer in lines if "event" not in answer)
            if "error" in answer:
                raise MachineError(f"{folder.name}: QEMU refused {name}: {answer['error'].get('desc')}")
    return answer["return"]


def agent(folder: Path, name: str, timeout: float = AGENT_TIMEOUT, **arguments: Any) -> Any:
    """Give the guest's agent one command and return what it returns; :class:`MachineError` without an answer."""
    token = secrets.randbelow(2**31)
    # the byte makes the agent forget an unfinished request, and marks where its answer begins
    sync = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
    with _connection(folder, AGENT, timeout) as (connection, lines):
        connection.sendall(b"\xff" + json.dumps(sync).encode() + b"\n")
        while next(lines).get("return") != token:
            pass
        connection.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        answer = next(lines)
    if "error" in answer:
        raise MachineError(f"{folder.name}: the guest's agent refused {name}: {answer['error'].get('desc')}")
    return answer["return"]


def run(folder: Path, argv: Sequence[str], input: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command as root in the guest, past its network; :class:`MachineError` when ``check`` and it fails."""
    environment = ["LANG=C.UTF-8", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    request: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "env": environment, "capture-output": True}
    if input:
        request["input-data"] = base64.b64encode(input.encode()).decode()
    pid = agent(folder, "guest-exec", **request)["pid"]
    pause = 0.02
    while not (status := agent(folder, "guest-exec-status", pid=pid))["exited"]:
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
    code = status["exitcode"] if "exitcode" in status else 128 + status["signal"]
    streams = [base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data")]
    output, errors = (stream.decode(errors="replace") for stream in streams)
    if check and code != 0:
        raise MachineError(f"{folder.name}: {argv[0]} failed ({code}): {last_lines(errors or output)}")
    return subprocess.CompletedProcess(list(argv), code, output, errors)


def await_agent(folder: Path, seconds: float = BOOT_TIMEOUT) -> None:
    """Return when the guest's agent answers; else raise with the last lines of the console."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            agent(folder, "guest-ping", timeout=2)
            return
        except MachineError as error:
            what = "ended" if not running(folder) else f"did not boot within {seconds:.0f} s"
            if what == "ended" or time.monotonic() > deadline:
                text = f"The machine {folder.name} {what}. Its console ends:\n{console(folder)}"
                raise MachineError(text) from error
        time.sleep(0.1)


def await_boot(folder: Path, seconds: float = BOOT_TIMEOUT) -> None:
    """Return when the guest's agent answers and systemd is up; else raise, with the units that failed."""
    await_agent(folder, seconds)
    state = run(folder, ["timeout", str(seconds), "systemctl", "is-system-running", "--wait"], check=False)
    if state.stdout.strip() != "running":
        failed = run(folder, ["systemctl", "--failed", "--no-legend", "--plain"], check=False).stdout
        raise MachineError(f"The machine {folder.name} is {state.stdout.strip() or 'not up'}, not running:\n{failed}")


def console(folder: Path) -> str:
    """The last lines of a machine's serial console."""
    try:
        return last_lines((folder / CONSOLE).read_text(errors="replace"), 15)
    except FileNotFoundError:
        return "(nothing)"


def _image(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(f"qemu-img failed: {last_lines(done.stderr)}")


def _monitor(folder: Path, line: str) -> None:
    """Give QEMU a command of its own monitor; what it answers is an error."""
    answer = qmp(folder, "human-monitor-command", **{"command-line": line}).strip()
    if answer:
        raise MachineError(f"{folder.name}: QEMU could not `{line}`: {answer}")


@contextmanager
def _connection(folder: Path, name: str, timeout: float) -> Iterator[tuple[socket.socket, Iterator[dict[str, Any]]]]:
    """A connection to one of a machine's sockets, and the JSON lines that come from it."""
    directory = None
    try:
        directory = os.open(folder, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            # a socket's address has room for 107 bytes, fewer than a path may have
            connection.connect(f"/proc/self/fd/{directory}/{name}")
            yield connection, _lines(connection)
    except OSError as error:
        raise MachineError(f"{folder.name}: no answer on {name}: {error}") from error
    finally:
        if directory is not None:
            os.close(directory)


def _lines(connection: socket.socket) -> Iterator[dict[str, Any]]:
    buffer = b""
    while True:
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            # half an answer to an earlier, interrupted request stands before the marker
            with suppress(ValueError):
                yield json.loads(line.rpartition(b"\xff")[2])
        data = connection.recv(65536)
        if not data:
            raise ConnectionError("it was closed")
        buffer += data
