# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""apt on a node takes the test mirror as it takes the upstreams, and refuses each fault in its own words."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from labrack.testnode import node
from labrack.testnode.docker import docker
from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import LabSpec, Node, NodeSpec
from tests.mirror import build, catalogue, serve
from tests.mirror.serve import Fault, Mirror
from tests.nodes.conftest import LAB, SYSTEM
from tests.nodes.harness import ROOT, until

NAME = f"{LAB}-mirror"
CUDA = f"{catalogue.CUDA_ROOT}/{SYSTEM}/{catalogue.CUDA_ARCHITECTURES[build.debian_architecture()]}/"
KEY = CUDA + catalogue.CUDA_KEY_FILES.get(SYSTEM, "")
#: What apt's checker of signatures says: sqv on Debian 13, gpgv before.
MODERN = SYSTEM != "debian12"


def sh(machine: Node, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script as root on the node; standard error is in the output."""
    return node.exec(machine, ["sh", "-c", f"exec 2>&1; {script}", "sh", *arguments], check=False)


@pytest.fixture(scope="module")
def mirrored() -> Iterator[tuple[Node, Mirror]]:
    """A node with two cards and no driver, and the mirror in its lab."""
    state = ROOT / ".cache/labs" / NAME
    node.down(NAME, state, print)
    lab = node.up(LabSpec(NAME, (NodeSpec("gpu", SYSTEM, (GpuSpec(),) * 2, driver=False),)), state, print)
    try:
        machine = lab.node("gpu")
        # The distribution's own repositories have nothing to do with these tests.
        sh(machine, "mkdir -p /root/off /etc/apt/keyrings && mv /etc/apt/sources.list.d/* /root/off/")
        yield machine, serve.up(NAME, print)
    finally:
        node.down(NAME, state, print)
        shutil.rmtree(state, ignore_errors=True)


@pytest.fixture
def machine(mirrored: tuple[Node, Mirror]) -> Node:
    return mirrored[0]


@pytest.fixture
def mirror(mirrored: tuple[Node, Mirror]) -> Iterator[Mirror]:
    """The mirror without a fault, before and after a test."""
    serve.clear_faults(mirrored[1])
    yield mirrored[1]
    serve.clear_faults(mirrored[1])


def update(machine: Node, root: str = CUDA, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Make one repository of the mirror the only source, with its key, and read its index anew."""
    script = """
rm -rf /var/lib/apt/lists/mirror* /var/cache/apt/archives/*.deb
python3 -c "import urllib.request as web; print(web.urlopen('$1').read().decode())" >/etc/apt/keyrings/mirror.asc
printf 'Types: deb\\nURIs: %s\\nSuites: /\\nSigned-By: /etc/apt/keyrings/mirror.asc\\n' "$2" \\
    >/etc/apt/sources.list.d/mirror.sources
apt-get update -q
"""
    return sh(machine, script, serve.URL + key, serve.URL + root)


def install(machine: Node, *packages: str) -> subprocess.CompletedProcess[str]:
    """Install packages without a question."""
    script = 'DEBIAN_FRONTEND=noninteractive apt-get install -q -y -o Dpkg::Use-Pty=0 "$@"'
    return sh(machine, script, *packages)


def test_driver_comes_from_the_mirror(machine: Node, mirror: Mirror) -> None:
    assert update(machine).returncode == 0
    assert sh(machine, "modprobe nvidia").stdout.startswith("modprobe: FATAL: Module nvidia not found in directory")
    # Without a pin the metapackage of a branch takes the newest driver there is.
    assert "Inst nvidia-driver-cuda (595.91.07-1" in sh(machine, "apt-get install -s cuda-drivers-580").stdout
    assert install(machine, "nvidia-driver-pinning-580").returncode == 0
    assert "Inst nvidia-driver-cuda (580.178.04-1" in sh(machine, "apt-get install -s cuda-drivers-580").stdout
    done = install(machine, "nvidia-driver-cuda", "nvidia-kernel-open-dkms")
    assert done.returncode == 0, done.stdout
    assert sh(machine, "modinfo -F version nvidia").stdout == "580.178.04\n"
    assert sh(machine, "ldconfig -p | grep -c libnvidia-ml.so.1").stdout == "1\n"
    assert sh(machine, "nvidia-smi").returncode == 9
    assert sh(machine, "modprobe nvidia && nvidia-smi -L | wc -l").stdout == "2\n"


def test_loaded_module_outlives_an_upgrade_but_no_reboot(machine: Node, mirror: Mirror) -> None:
    assert sh(machine, "apt-get purge -y nvidia-driver-pinning-580").returncode == 0
    assert install(machine, "nvidia-driver-cuda", "nvidia-kernel-open-dkms").returncode == 0
    done = sh(machine, "nvidia-smi")
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        18,
        "Failed to initialize NVML: Driver/library version mismatch",
    )
    docker("restart", machine.container)
    # at first there is no systemd yet that could be asked to wait
    until("the node is up", lambda: sh(machine, "systemctl is-system-running").stdout, lambda said: said == "running\n")
    assert "595.91.07" in sh(machine, "nvidia-smi --query-gpu=driver_version --format=csv").stdout
    assert sh(machine, "rmmod nvidia && nvidia-smi").returncode == 9
    assert sh(machine, "cat /run/labrack-testnode/sys/bus/pci/devices/0000:07:00.0/device").stdout == "0x2230\n"


def test_older_driver_is_installed_over_a_newer_one(machine: Node, mirror: Mirror) -> None:
    assert install(machine, "nvidia-driver-pinning-570").returncode == 0
    done = sh(machine, "DEBIAN_FRONTEND=noninteractive apt-get dist-upgrade -q -y --allow-downgrades")
    assert done.returncode == 0, done.stdout
    assert sh(machine, "modinfo -F version nvidia").stdout == "570.195.03\n"


def test_failed_build_leaves_its_log(machine: Node, mirror: Mirror) -> None:
    sh(machine, "echo 'nv-dma.c:1: error' >/etc/labrack-testnode/dkms-fails")
    done = install(machine, "nvidia-kernel-dkms")
    assert done.returncode == 100
    assert "Consult /var/lib/dkms/nvidia/570.195.03/build/make.log" in done.stdout
    sh(machine, "rm /etc/labrack-testnode/dkms-fails && dpkg --configure -a")
    assert sh(machine, "modinfo -F license nvidia").stdout == "NVIDIA\n"


@pytest.mark.parametrize(
    ("fault", "path", "said"),
    [
        (
            Fault.EXPIRED_KEY,
            CUDA,
            "The primary key is not live" if MODERN else "The following signatures were invalid: EXPKEYSIG",
        ),
        (Fault.WRONG_KEY, CUDA, "Missing key" if MODERN else "NO_PUBKEY"),
        (Fault.HTML_PAGE, KEY, "Failed to parse keyring" if MODERN else "NO_PUBKEY"),
        (Fault.HTML_PAGE, CUDA, "Clearsigned file isn't valid, got 'NOSPLIT'"),
        (Fault.HTML_PAGE, f"{CUDA}Packages", "Mirror sync in progress?"),
        (Fault.HALF_SYNCED, CUDA, "Mirror sync in progress?"),
    ],
)
def test_faulty_index_is_refused(fault: Fault, path: str, said: str, machine: Node, mirror: Mirror) -> None:
    serve.set_fault(mirror, fault, path)
    done = update(machine)
    assert done.returncode == 100
    assert said in done.stdout


@pytest.mark.parametrize(
    ("fault", "path", "said"),
    [
        (Fault.MISSING_VERSION, CUDA, "E: Version '580.178.04-1' for 'nvidia-xconfig' was not found"),
        (Fault.WRONG_CHECKSUM, CUDA, "Hash Sum mismatch"),
        (Fault.HTML_PAGE, f"{CUDA}nvidia-xconfig", "File has unexpected size"),
    ],
)
def test_faulty_package_is_refused(fault: Fault, path: str, said: str, machine: Node, mirror: Mirror) -> None:
    serve.set_fault(mirror, fault, path)
    assert update(machine).returncode == 0
    done = install(machine, "nvidia-xconfig=580.178.04-1")
    assert done.returncode == 100
    assert said in done.stdout
    assert sh(machine, "dpkg-query --show nvidia-xconfig").returncode == 1


def test_unreachable_mirror_is_only_warned_of(machine: Node, mirror: Mirror) -> None:
    assert update(machine).returncode == 0
    serve.set_fault(mirror, Fault.REFUSED)
    done = sh(machine, "apt-get update -q")
    assert done.returncode == 0
    assert "connect (111: Connection refused)" in done.stdout


def test_key_bound_by_sha1_is_refused_from_debian_13_on(machine: Node, mirror: Mirror) -> None:
    key = mirror.keys["cuda-debian12"].path
    done = update(machine, key.rpartition("/")[0] + "/", key)
    assert done.returncode == (100 if MODERN else 0)
    assert ("SHA1 is not considered secure since 2026-02-01" in done.stdout) is MODERN
