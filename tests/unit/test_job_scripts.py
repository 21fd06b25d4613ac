"""What slurmd and apt run on a node: the epilog, health check and prolog, and the dump of the database."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

FILES = Path(__file__).parents[2] / "roles" / "slurm" / "files"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"labrack_{name}", FILES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cleanup = load("job_cleanup")
health = load("health")

ADA, BOB = 2001, 2002


# ---------------------------------------------------------------------------------------------------------- the epilog


def process(pid: int, uid: int, job: str | None, *gpus: int) -> object:
    return cleanup.Process(pid, uid, job, frozenset(gpus))


#: Ada has the jobs 5 (GPU 0) and 6 (GPU 1) on one node, Bob has job 7 (GPU 2).
CROWD = [
    process(10, ADA, "5", 0),
    process(11, ADA, "5"),
    process(12, ADA, "6", 1),
    process(13, ADA, "6", 0, 1),
    process(14, ADA, None, 0),
    process(15, ADA, None, 1),
    process(16, ADA, None),
    process(17, ADA, "55", 0),
    process(20, BOB, "7", 2),
    process(21, BOB, None, 0),
    process(22, BOB, "5", 0),
    process(30, 0, "5", 0),
    process(31, 0, None, 0),
]


@pytest.mark.parametrize(
    ("job", "uid", "gpus", "ended"),
    [
        ("5", ADA, {0}, [10, 11, 14]),
        ("6", ADA, {1}, [12, 13, 15]),
        ("5", ADA, set(), [10, 11]),
        ("7", BOB, {2}, [20]),
        ("8", ADA, set(), []),
        ("5", 0, {0}, []),
    ],
)
def test_one_job_ends_alone(job: str, uid: int, gpus: set[int], ended: list[int]) -> None:
    assert cleanup.leftovers(CROWD, job, uid, frozenset(gpus)) == ended


@given(
    st.lists(
        st.builds(
            cleanup.Process,
            st.integers(1, 99),
            st.sampled_from((0, ADA, BOB)),
            st.sampled_from((None, "5", "6", "55")),
            st.frozensets(st.integers(0, 3)),
        )
    ),
    st.sampled_from((0, ADA, BOB)),
    st.frozensets(st.integers(0, 3)),
)
def test_nothing_of_root_of_others_or_of_another_job_is_ended(
    processes: list[object], uid: int, gpus: frozenset[int]
) -> None:
    spared = [p for p in processes if p.uid in ({0, ADA, BOB} - {uid}) | {0} or p.job in ("6", "55")]
    assert cleanup.leftovers(spared, "5", uid, gpus) == []


@pytest.mark.parametrize(
    ("environment", "cgroup", "job"),
    [
        (b"HOME=/home/ada\0SLURM_JOB_ID=5\0", "0::/user.slice/user-2001.slice\n", "5"),
        (b"SLURM_JOB_ID=5", "", "5"),
        (b"", "0::/system.slice/slurmstepd.scope/job_6/step_0/user/task_0\n", "6"),
        (b"", "9:name=systemd:/\n4:memory:/slurm_node1/uid_2001/job_6/step_extern/task_0\n3:cpu:/\n", "6"),
        (b"SLURM_JOB_ID=5\0", "0::/system.slice/slurmstepd.scope/job_6/step_0\n", "6"),
        (b"SLURM_JOB_ID=\0SLURM_JOB_ID2=7\0MY_SLURM_JOB_ID=8\0", "0::/system.slice/ssh.service\n", None),
        (b"", "0::/job_6x/job_\n", None),
        (b"", "", None),
    ],
)
def test_the_job_of_a_process(environment: bytes, cgroup: str, job: str | None) -> None:
    assert cleanup.job_of(environment, cgroup) == job


def test_processes_are_read_and_unreadable_ones_are_left_out(tmp_path: Path) -> None:
    def add(pid: str, environment: bytes, *held: str) -> Path:
        entry = tmp_path / pid
        (entry / "fd").mkdir(parents=True)
        (entry / "environ").write_bytes(environment)
        (entry / "cgroup").write_text("0::/\n")
        for number, target in enumerate(held):
            (entry / "fd" / str(number)).symlink_to(target)
        return entry

    add("100", b"SLURM_JOB_ID=5\0", "/dev/null", "/dev/nvidia1", "/dev/nvidia10", "/dev/nvidiactl", "/dev/nvidia-uvm")
    add("101", b"\xff\xfeSLURM\0", "socket:[1234]")
    (add("102", b"") / "environ").unlink()
    shutil.rmtree(add("103", b"") / "fd")
    (tmp_path / "self").mkdir()
    found = {process.pid: process for process in cleanup.read_processes(tmp_path)}
    uid = os.getuid()
    assert found == {100: cleanup.Process(100, uid, "5", frozenset({1, 10})), 101: process(101, uid, None)}


class World:
    """Processes that answer to signals; the stubborn ones to SIGKILL alone."""

    def __init__(self, stubborn: set[int]) -> None:
        self.alive = {10: process(10, ADA, "5"), 11: process(11, ADA, "5"), 12: process(12, ADA, "6")}
        self.stubborn = stubborn
        self.sent: list[tuple[int, int]] = []

    def kill(self, pid: int, number: int) -> None:
        if pid not in self.alive:
            raise ProcessLookupError
        self.sent.append((pid, number))
        if number == signal.SIGKILL or pid not in self.stubborn:
            del self.alive[pid]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World({11})
    clock = iter(range(1000))
    monkeypatch.setattr(cleanup, "read_processes", lambda: list(made.alive.values()))
    monkeypatch.setattr(cleanup.os, "kill", made.kill)
    monkeypatch.setattr(cleanup.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(cleanup.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(cleanup.syslog, "syslog", lambda _text: None)
    return made


def test_leftovers_are_asked_first_and_ended_then(world: World) -> None:
    environment = {"SLURM_JOB_ID": "5", "SLURM_JOB_UID": str(ADA), "SLURM_JOB_GPUS": "0,1"}
    assert cleanup.main(environment) == 0
    assert world.sent == [(10, signal.SIGTERM), (11, signal.SIGTERM), (11, signal.SIGKILL)]
    assert set(world.alive) == {12}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "5"},
        {"SLURM_JOB_UID": str(ADA)},
        {"SLURM_JOB_ID": "5; rm", "SLURM_JOB_UID": str(ADA)},
        {"SLURM_JOB_ID": "5", "SLURM_JOB_UID": "0"},
    ],
)
def test_an_epilog_that_knows_no_job_does_nothing(world: World, environment: dict[str, str]) -> None:
    assert cleanup.main(environment) == 0
    assert world.sent == []


# ---------------------------------------------------------------------------------------------------- the health check

GRES = """# Written by labrack
AutoDetect=off
NodeName=node1 Name=gpu Type=h100 File=/dev/nvidia[0-1,4]
NodeName=node1 Name=gpu Type=a100_80gb File=/dev/nvidia2
NodeName=node10 Name=gpu Type=a100_80gb File=/dev/nvidia[0-7]
NodeName=node2 Name=shard Count=4
"""
LISTED = "".join(
    f"GPU {index}: NVIDIA H100 PCIe (UUID: GPU-{index:08x}-ac55-60ad-f9cf-623871e7736d)\n" for index in (0, 1)
)
TWO = ["/dev/nvidia0", "/dev/nvidia1"]
LOST = "Unable to determine the device handle for GPU0000:07:00.0: Unknown Error\n"
LOST_FIRST = (
    "Unable to determine the device handle for GPU1: 0000:07:00.0: "
    "GPU is lost.  Reboot the system to recover this GPU\n"
)
RESET = "NVRM: Xid (PCI:{}): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)\n"
XID_79 = "[ 1234.567890] NVRM: Xid (PCI:0000:07:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"


@pytest.mark.parametrize(
    ("node", "devices"),
    [
        ("node1", ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia4", "/dev/nvidia2"]),
        ("node10", [f"/dev/nvidia{minor}" for minor in range(8)]),
        ("node2", []),
        ("node", []),
    ],
)
def test_the_devices_that_slurm_gives_out(node: str, devices: list[str]) -> None:
    assert health.expected_devices(GRES, node) == devices


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (XID_79, ["0000:07:00 Xid 79"]),
        ("NVRM: Xid (PCI:0000:3b:00): 48, pid=3411, name=python3, DBE (Double Bit Error)\n", ["0000:3b:00 Xid 48"]),
        (
            "NVRM: Xid (PCI:0000:41:00 GPU-I:05): 95, pid=12, name=python3, Uncontained ECC error\n",
            ["0000:41:00 Xid 95"],
        ),
        ("NVRM: Xid (PCI:0001:01:00 GPU-I:05 GPU-CI:00): 64, Row Remapper: Error\n", ["0001:01:00 Xid 64"]),
        (XID_79 * 3, ["0000:07:00 Xid 79"]),
        ("NVRM: Xid (PCI:0000:07:00): 13, pid=99, name=python3, Graphics Exception\n", []),
        ("NVRM: Xid (PCI:0000:07:00): 31, pid=99, name=python3, Ch 00000008, MMU Fault\n", []),
        ("NVRM: Xid (PCI:0000:07:00): 43, pid=79, name=python3, Ch 00000079\n", []),
        ("NVRM: Xid (PCI:0000:07:00): 94, pid=99, Contained: SM (0x1)\n", []),
        ("NVRM: GPU at PCI:0000:07:00: GPU-b850f46d\nusb 1-1: Xid 79\n", []),
        (XID_79 + RESET.format("0000:07:00"), []),
        (XID_79 + RESET.format("0000:08:00"), ["0000:07:00 Xid 79"]),
        (RESET.format("0000:07:00") + XID_79, ["0000:07:00 Xid 79"]),
    ],
)
def test_fatal_xids_of_the_kernel_log(line: str, found: list[str]) -> None:
    assert health.fatal_xids(line) == found


@pytest.mark.parametrize(
    ("present", "rc", "output", "log", "found"),
    [
        (TWO, 0, LISTED, "", []),
        (TWO, 127, "", "", []),
        (TWO[:1], 0, LISTED, "", ["/dev/nvidia1 is missing"]),
        (TWO, 0, LOST_FIRST + LISTED[: len(LISTED) // 2], "", [f"nvidia-smi lists 1 of 2 GPUs: {LOST_FIRST.strip()}"]),
        (TWO, 15, LOST, "", [f"nvidia-smi fails with 15: {LOST.strip()}"]),
        (TWO, 6, "No devices were found\n", "", ["nvidia-smi fails with 6: No devices were found"]),
        (
            TWO,
            9,
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
            "NVIDIA driver is installed and running.\n\n",
            "",
            [
                "nvidia-smi fails with 9: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA "
                "driver. Make sure that the latest NVIDIA driver is installed and running."
            ],
        ),
        (
            TWO,
            18,
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n",
            "",
            ["nvidia-smi fails with 18: Failed to initialize NVML: Driver/library version mismatch"],
        ),
        (TWO, 124, "nvidia-smi does not answer", "", ["nvidia-smi fails with 124: nvidia-smi does not answer"]),
        (TWO, 255, "", "", ["nvidia-smi fails with 255: no output"]),
        (TWO, 0, LISTED, XID_79, ["GPU 0000:07:00 Xid 79"]),
        (
            [],
            15,
            LOST,
            XID_79,
            [
                "/dev/nvidia0 is missing",
                "/dev/nvidia1 is missing",
                f"nvidia-smi fails with 15: {LOST.strip()}",
                "GPU 0000:07:00 Xid 79",
            ],
        ),
    ],
)
def test_problems(present: list[str], rc: int, output: str, log: str, found: list[str]) -> None:
    assert health.problems(TWO, present, rc, output, log) == found


def test_a_node_without_gpus_is_never_ill() -> None:
    assert health.problems([], [], 9, "no driver", XID_79) == []


OURS = "labrack-health: /dev/nvidia1 is missing"


@pytest.mark.parametrize(
    ("found", "state", "reason", "words"),
    [
        ([], "IDLE", "", None),
        (["/dev/nvidia1 is missing"], "IDLE", "", ["state=drain", f"reason={OURS}"]),
        (["/dev/nvidia1 is missing"], "MIXED+DRAIN", OURS, None),
        (["a", "b"], "IDLE+DRAIN", OURS, ["state=drain", "reason=labrack-health: a; b"]),
        ([], "IDLE+DRAIN", OURS, ["state=resume"]),
        ([], "IDLE*+DRAIN", OURS, ["state=resume"]),
        ([], "IDLE+DRAIN", "new fan", None),
        (["a"], "IDLE+DRAIN", "new fan", None),
        ([], "IDLE+DRAIN", "labrack: configuration change", None),
        (["a"], "DOWN*", "Not responding", ["state=drain", "reason=labrack-health: a"]),
        ([], "DOWN*", OURS, None),
    ],
)
def test_only_an_own_drain_is_taken_back(found: list[str], state: str, reason: str, words: list[str] | None) -> None:
    assert health.decide(found, state, reason) == words


class Scontrol:
    """A model of slurmctld for one node, with scontrol's own way to print and to read."""

    def __init__(self, state: str = "IDLE", reason: str = "", tail: str = "") -> None:
        self.state, self.reason, self.tail = state, reason, tail
        self.updates: list[list[str]] = []
        self.smi = (0, LISTED)

    def run(self, argv: list[str]) -> tuple[int, str]:
        if argv[0] == "nvidia-smi":
            return self.smi
        if argv[1] == "--oneliner":
            return 0, self.line()
        assert argv[1:3] == ["update", "nodename=node1"]
        self.updates.append(argv[3:])
        for key, value in (word.split("=", 1) for word in argv[3:]):
            if key == "state":
                self.state = "IDLE+DRAIN" if value == "drain" else "IDLE"
                self.reason = self.reason if value == "drain" else ""
            elif key == "reason":
                self.reason = value
        return 0, ""

    def line(self) -> str:
        stamp = f" Reason={self.reason} [root@2026-11-22T01:31:30]" if self.reason else ""
        return (
            "NodeName=node1 Arch=x86_64 CPUAlloc=0 CPUTot=16 Gres=gpu:h100:2 OS=Linux 6.12.43 #1 SMP (2026) "
            f"RealMemory=9 State={self.state} ThreadsPerCore=2 Partitions=gpu CfgTRES=cpu=16,gres/gpu=2 AllocTRES="
            f"{stamp}{self.tail}\n"
        )


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scontrol:
    made = Scontrol()
    for minor in (0, 1):
        (tmp_path / f"nvidia{minor}").touch()
    (tmp_path / "gres.conf").write_text(f"NodeName=node1 Name=gpu Type=h100 File={tmp_path}/nvidia[0-1]\n")
    (tmp_path / "kmsg").touch()
    monkeypatch.setattr(health, "GRES_FILES", (tmp_path / "none", tmp_path / "gres.conf"))
    monkeypatch.setattr(health, "TEST_KERNEL_LOG", tmp_path / "kmsg")
    monkeypatch.setattr(health, "_run", made.run)
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    return made


def test_a_healthy_node_is_left_in_peace(cluster: Scontrol) -> None:
    assert (health.main(prolog=False), health.main(prolog=True)) == (0, 0)
    assert cluster.updates == []


LONG = f"Unable to determine the device handle for GPU0000:07:00.0: {'words ' * 60}\n"


@pytest.mark.parametrize("tail", ["", " Comment=lent until May ", " Extra=x ReservationName=maintenance "])
@pytest.mark.parametrize("message", [LOST, LONG, *(LONG.replace("words", "w" * width) for width in range(1, 9))])
def test_a_broken_gpu_drains_once_and_comes_back(cluster: Scontrol, message: str, tail: str) -> None:
    cluster.tail = tail
    cluster.smi = (15, message)
    assert health.main(prolog=True) == 1
    assert cluster.state == "IDLE+DRAIN"
    assert cluster.reason.startswith("labrack-health: nvidia-smi fails with 15: Unable to determine")
    for _minute in range(3):
        assert health.main(prolog=False) == 0
    assert len(cluster.updates) == 1
    cluster.smi = (0, LISTED)
    health.main(prolog=False)
    health.main(prolog=False)
    assert cluster.state == "IDLE"
    assert len(cluster.updates) == 2


@pytest.mark.parametrize("reason", ["new fan [slot 3]", "see [ticket@desk] 7", "labrack: leaving the lab"])
def test_the_drain_of_somebody_else_stays(cluster: Scontrol, reason: str) -> None:
    cluster.state, cluster.reason = "IDLE+DRAIN", reason
    health.main(prolog=False)
    cluster.smi = (15, LOST)
    health.main(prolog=False)
    assert cluster.updates == []


def test_a_reason_is_written_with_what_has_become_worse(cluster: Scontrol, tmp_path: Path) -> None:
    (tmp_path / "nvidia1").unlink()
    health.main(prolog=False)
    (tmp_path / "kmsg").write_text(XID_79)
    health.main(prolog=False)
    assert cluster.reason == f"labrack-health: {tmp_path}/nvidia1 is missing; GPU 0000:07:00 Xid 79"


@pytest.mark.parametrize(
    ("variable", "file", "name"),
    [
        ("node3", 'SLURMD_OPTIONS="-N node2"\n', "node3"),
        ("", 'SLURMD_OPTIONS="--conf-server head:6817 -N node2"\n', "node2"),
        ("", 'SLURMD_OPTIONS="-N node2 --conf-server head:6817"\n', "node2"),
        ("", 'SLURMD_OPTIONS="--conf-server head:6817"\n', "box"),
        ("", None, "box"),
    ],
)
def test_the_name_of_the_node(
    variable: str, file: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file is not None:
        (tmp_path / "env").write_text(file)
    monkeypatch.setattr(health, "ENVIRONMENT", tmp_path / "env")
    monkeypatch.setattr(health.socket, "gethostname", lambda: "box.lab.example")
    monkeypatch.setenv("SLURMD_NODENAME", variable)
    assert health.node_name() == name


# ------------------------------------------------------------------------------------------------------------ the dump

ARCHIVES = "/var/cache/apt/archives/munge_0.5.16_amd64.deb\n/var/cache/apt/archives/slurmdbd_24.11.5-4_amd64.deb\n"


class Host:
    """A directory of programs that are the whole PATH, and another for the dumps."""

    def __init__(self, root: Path) -> None:
        self.programs, self.backups = root / "bin", root / "backups"
        self.programs.mkdir()
        for name in ("date", "grep", "gzip", "mkdir", "rm", "sh"):
            found = shutil.which(name)
            assert found is not None
            (self.programs / name).symlink_to(found)
        self.program("dpkg-query", "printf 24.11.4-1")
        self.program("mariadb", "printf 'Database\\nslurm_acct_db\\n'")
        self.program("mariadb-dump", 'echo "-- $*"')

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def dump(self, archives: str) -> subprocess.CompletedProcess[str]:
        script = (FILES / "dump-accounting.sh").read_text().replace("/var/backups/labrack", str(self.backups))
        argv = [str(self.programs / "sh"), "-c", script]
        return subprocess.run(
            argv, input=archives, env={"PATH": str(self.programs)}, capture_output=True, text=True, check=False
        )

    def files(self) -> list[Path]:
        return sorted(self.backups.iterdir()) if self.backups.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_database_is_dumped_before_another_slurmdbd(host: Host) -> None:
    done = host.dump(ARCHIVES)
    assert done.returncode == 0, done.stderr
    (file,) = host.files()
    assert file.name.startswith("slurm_acct_db-24.11.4-1-")
    assert gzip.decompress(file.read_bytes()) == b"-- --single-transaction slurm_acct_db\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(host.backups.stat().st_mode) == 0o700
    assert str(file) in done.stdout


@pytest.mark.parametrize("archives", ["", "/a/slurmd_24.11_amd64.deb\n", "/a/slurmdbd-doc_24.11.deb\n/a/munge_1.deb\n"])
def test_other_packages_need_no_dump(host: Host, archives: str) -> None:
    assert host.dump(archives).returncode == 0
    assert host.files() == []


@pytest.mark.parametrize(("program", "script"), [("mariadb", "exit 0"), ("dpkg-query", "exit 1")])
def test_a_host_without_the_database_needs_no_dump(host: Host, program: str, script: str) -> None:
    host.program(program, script)
    assert host.dump(ARCHIVES).returncode == 0
    assert host.files() == []


def test_a_database_that_does_not_answer_stops_apt(host: Host) -> None:
    host.program("mariadb", "exit 1")
    done = host.dump(ARCHIVES)
    assert done.returncode == 1
    assert "start mariadb" in done.stderr
    assert host.files() == []


def test_a_dump_that_fails_stops_apt(host: Host) -> None:
    host.program("mariadb-dump", "echo half; exit 3")
    assert host.dump(ARCHIVES).returncode == 3
    assert [file.suffix for file in host.files()] == [".part"]
