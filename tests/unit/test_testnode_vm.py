# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What virtual machines are made with, and how they are spoken to, without QEMU."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from labrack.testnode import disk, image, qemu, vm
from labrack.testnode.disk import RECIPE, Disk
from labrack.testnode.qemu import Hardware, MachineError, Qemu, Wires

INTEL = "processor\t: 0\nflags\t\t: fpu vme vmx sse4_2\nvmx flags\t: vnmi\n"
BARE = "processor\t: 0\nflags\t\t: fpu vme sse4_2 hypervisor\n"
NODE = Hardware("node1", 2, disks=(2, 5))
EMULATOR = Qemu("7.2")


def options(argv: list[str], name: str) -> list[str]:
    return [value for key, value in pairwise(argv) if key == name]


def command(hardware: Hardware = NODE, kvm: bool = False) -> list[str]:
    return qemu.command(
        Qemu("7.2", kvm), Disk(Path("/disk")), hardware, Wires(40001, vm.hub("lab")), Path("/state/node1")
    )


def test_every_input_of_the_disk_is_there() -> None:
    words = " ".join(
        line for line in (RECIPE / "Dockerfile").read_text().splitlines() if line.startswith("COPY")
    ).split()
    files = [word for word in words if word != "COPY" and not word.startswith("/")]
    assert sorted(files) == sorted(path.name for path in RECIPE.iterdir() if path.name != "Dockerfile")


def test_disk_follows_its_inputs_and_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Dockerfile").write_text("FROM one\n")
    monkeypatch.setattr(disk, "RECIPE", tmp_path)
    monkeypatch.setattr(disk, "host_mirrors", image.Mirrors)
    first = disk.inputs_hash("debian13")
    assert first == disk.inputs_hash("debian13") != disk.inputs_hash("debian12")
    (tmp_path / "Dockerfile").write_text("FROM two\n")
    second = disk.inputs_hash("debian13")
    assert second != first
    monkeypatch.setattr(disk, "image_hash", lambda system, mirrors: "another image")
    assert disk.inputs_hash("debian13") != second


def test_system_without_a_kernel_recipe_is_refused() -> None:
    with pytest.raises(image.ImageError, match="debian12 or debian13, not 'ubuntu2404'"):
        disk.ensure_disk("ubuntu2404", print)


def test_nothing_leaves_and_ssh_comes_from_this_machine_alone() -> None:
    way_in, hub = options(command(), "-netdev")
    assert {"restrict=on", "hostfwd=tcp:127.0.0.1:40001-:22"} <= set(way_in.split(","))
    assert "localaddr=127.0.0.1" in hub.split(",")


def test_disks_are_found_by_their_serial_numbers() -> None:
    drives = options(command(), "-drive")
    assert [f"file=/state/node1/disk{index}.qcow2" in drive for index, drive in enumerate(drives)] == [True] * 3
    serials = [device.rpartition("=")[2] for device in options(command(), "-device") if device.startswith("virtio-blk")]
    assert serials == ["disk0", "disk1", "disk2"]


def test_hubs_of_two_labs_differ() -> None:
    hubs = [vm.hub(f"lab{number}") for number in range(1000)]
    assert len(set(hubs)) == 1000
    for text in hubs:
        group, _, port = text.partition(":")
        octets = [int(octet) for octet in group.split(".")]
        assert octets[:2] == [239, 255] and len(octets) == 4 and max(octets) < 256
        assert 1024 < int(port) < 32768


def test_saved_state_fits_what_it_was_made_with() -> None:
    def key(emulator: Qemu = EMULATOR, hardware: Hardware = NODE, setup: str = "x", folder: str = "/disk-a") -> str:
        return qemu.state_hash(emulator, Disk(Path(folder)), hardware, setup)

    others = [
        key(Qemu("10.0")),
        key(Qemu("7.2", kvm=True)),
        key(hardware=replace(NODE, memory_mib=2048)),
        key(hardware=replace(NODE, disks=(2,))),
        key(hardware=replace(NODE, disks=(2, 6))),
        key(hardware=replace(NODE, number=3)),
        key(setup="y"),
        key(folder="/disk-b"),
    ]
    assert len({key(), *others}) == 9
    assert key() == key()


@pytest.mark.parametrize(
    ("cpuinfo", "there", "expected"), [(INTEL, True, True), (INTEL, False, False), (BARE, True, False)]
)
def test_kvm_is_tried_where_the_processor_has_it(cpuinfo: str, there: bool, expected: bool, tmp_path: Path) -> None:
    if there:
        (tmp_path / "kvm").touch()
    assert qemu.may_have_kvm(cpuinfo, tmp_path / "kvm") is expected


@pytest.mark.parametrize("boots", [True, False])
def test_kvm_is_used_after_a_trial_boot(boots: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = []

    def boot(emulator: Qemu, *_: object) -> None:
        trials.append(emulator)
        if not boots:
            raise MachineError("it stops in the decompressor")

    monkeypatch.setattr(vm, "_boot", boot)
    monkeypatch.setattr(qemu, "may_have_kvm", lambda cpuinfo: True)
    said: list[str] = []
    for _ in range(2):
        assert vm.accelerate(Qemu("7.2"), Disk(tmp_path), said.append).kvm is boots
    assert trials == [Qemu("7.2", kvm=True)]
    assert ("it stops in the decompressor" in said[-1]) is not boots


def test_missing_qemu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(MachineError, match="sudo apt-get install qemu-system-x86 qemu-utils"):
        qemu.ensure_qemu(print)


def test_another_process_with_the_number_is_not_the_machine(tmp_path: Path) -> None:
    assert qemu.running(tmp_path) is None
    (tmp_path / qemu.PID).write_text(f"{os.getpid()}\n")
    assert qemu.running(tmp_path) is None
    qemu.power_off(tmp_path)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder whose path is longer than a socket's address may be."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    return folder


@pytest.fixture
def guest(deep: Path) -> Iterator[Path]:
    """An agent that still sends half an old answer; it says that each command printed its own argument."""
    directory = os.open(deep, os.O_PATH)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"/proc/self/fd/{directory}/{qemu.AGENT}")
    server.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                connection.sendall(b'ited": true}}\n{"return": {}}\n{"ret')
                for line in lines:
                    request = json.loads(line.lstrip(b"\xff"))
                    arguments = request.get("arguments", {})
                    answers = {
                        "guest-sync-delimited": lambda arguments=arguments: arguments["id"],
                        "guest-exec": lambda: {"pid": 7},
                        "guest-exec-status": lambda: {
                            "exited": True,
                            "exitcode": 3,
                            "out-data": "b3V0",
                            "err-data": "ZXJy",
                        },
                    }
                    answer = answers.get(request["execute"])
                    data = {"return": answer()} if answer else {"error": {"desc": "no such command"}}
                    marker = b"\xff" if request["execute"] == "guest-sync-delimited" else b""
                    connection.sendall(marker + json.dumps(data).encode() + b"\n")

    thread = threading.Thread(target=serve)
    thread.start()
    yield deep
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    os.close(directory)
    thread.join()


def test_command_in_a_guest(guest: Path) -> None:
    done = qemu.run(guest, ["false"], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out", "err")
    with pytest.raises(MachineError, match=r"false failed \(3\): err"):
        qemu.run(guest, ["false"])
    with pytest.raises(MachineError, match="refused guest-fly: no such command"):
        qemu.agent(guest, "guest-fly")


def test_machine_that_is_off_does_not_answer(deep: Path) -> None:
    with pytest.raises(MachineError, match="no answer on agent"):
        qemu.agent(deep, "guest-ping")
    (deep / qemu.CONSOLE).write_text("Kernel panic\n")
    with pytest.raises(MachineError, match=r"ended\. Its console ends:\nKernel panic"):
        qemu.await_agent(deep)
