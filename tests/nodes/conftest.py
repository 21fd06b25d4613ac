# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One closet for all tests of this directory: head, node1 with two cards, node2 with four, converged once.

Two workers share the files: one has the closet's, the other those that make labs of their own. With ``-n 0`` one
process runs all. LABRACK_NODE_SYSTEM picks the nodes' system. LABRACK_TEST_LAB names the lab, so that two checkouts can
be tested at a time. With LABRACK_KEEP_LAB=1 the lab stays, for a look at it, and the next session takes it as it is.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from labrack.testnode import node
from labrack.testnode.engine import ensure_engine
from labrack.testnode.gpus import GpuSpec
from labrack.testnode.node import NodeSpec
from tests.nodes.harness import INVENTORIES, ROOT, Closet, Run, bring_up

#: Of the closet, what has to be true first comes first, and what takes the lab apart comes last. Then what takes long,
#: so that no worker is left with it at the end.
ORDER = (
    "test_wrong_inventories",
    "test_converge",
    "test_verify",
    "test_isolation",
    "test_logins",
    "test_epilog",
    "test_health",
    "test_running_jobs",
    "test_accounting",
    "test_status",
    "test_pending",
    "test_plan",
    "test_drift",
    "test_faults",
    "test_doctor",
    "test_membership",
    "test_edit",
    "test_backup",
    "test_undo",
    "test_molecule",
    "test_gpu_host",
    "test_skypilot",
    "test_skypilot_slurm",
    "test_demo_desk",
    "test_tailnet",
    "test_gitops",
    "test_getting_started",
    "test_k3s",
    "test_grow",
    "test_demo_tailnet",
    "test_driver_and_jobs",
    "test_skypilot_policy",
    "test_people",
    "test_storage_client",
    "test_dkms",
    "test_golden_rule",
    "test_gpu_watch",
    "test_mirror",
    "test_policy_check",
    "test_headscale_config",
)
A100 = GpuSpec(
    "NVIDIA A100-SXM4-80GB", memory_mib=81920, power_limit_w=400.0, mig=True, pci_device="0x20b2", pci_class="0x030200"
)
RTX_4090 = GpuSpec("NVIDIA GeForce RTX 4090", memory_mib=24564, power_limit_w=450.0, ecc=False, pci_device="0x2684")
RTX_A6000 = GpuSpec()
SYSTEM = os.environ.get("LABRACK_NODE_SYSTEM", "debian13")
LAB = os.environ.get("LABRACK_TEST_LAB", "labrack-test")
KEEP = os.environ.get("LABRACK_KEEP_LAB") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.stem))


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]
    """Gives the files that share the closet to one worker, each other file or molecule scenario to whoever is free."""

    def _split_scope(self, nodeid: str) -> str:
        stem = Path(nodeid.partition("::")[0]).stem
        if stem == "test_molecule":
            return nodeid.rpartition("-")[2]
        return "closet" if ORDER.index(stem) <= ORDER.index("test_undo") else stem


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduler:
    # by our order, and not by the number of tests
    config.option.loadscopereorder = False
    return Scheduler(config, log)


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No run leaves a history in the home of whoever tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def docker_engine() -> None:
    """A Docker engine that answers; the labs that an earlier run left can be found and taken away only through it."""
    ensure_engine(print)


@pytest.fixture(scope="session")
def bare(docker_engine: None) -> Iterator[Closet]:
    """The lab before anything was done to its nodes."""
    state = ROOT / ".cache/labs" / LAB
    if not KEEP:
        node.down(LAB, state, print)
        shutil.rmtree(state, ignore_errors=True)
    nodes = (
        NodeSpec("head", SYSTEM),
        NodeSpec("node1", SYSTEM, (A100, A100)),
        NodeSpec("node2", SYSTEM, (RTX_4090, RTX_4090, RTX_A6000, RTX_A6000)),
    )
    yield bring_up(LAB, nodes, INVENTORIES / "closet", state)
    if not KEEP:
        node.down(LAB, state, print)
        shutil.rmtree(state, ignore_errors=True)


@dataclass
class Sampler:
    """Collects the command lines of all processes of this machine, nodes included, while it is entered."""

    seen: set[bytes] = field(default_factory=set)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Sampler:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue


@dataclass(frozen=True)
class History:
    """The first runs on the bare lab."""

    predicted: Run
    made: Run
    again: Run
    predicted_again: Run
    command_lines: frozenset[bytes]
    #: Installed packages, and files of /etc with their sums, of each host before the first run.
    packages: dict[str, str]
    etc: dict[str, str]


def snapshot(closet: Closet, host: str) -> tuple[str, str]:
    """The installed packages of a host, and its files under /etc with mode, owner and sum."""
    packages = closet.root(host, "dpkg-query --show --showformat='${db:Status-Status} ${Package} ${Version}\\n' | sort")
    etc = closet.root(
        host,
        "cd /etc && find . -type d -printf '%p %m %u:%g\\n' -o -type l -printf '%p %l\\n' -o -type f "
        "-printf '%p %m %u:%g ' -exec sh -c 'sha256sum <\"$1\"' _ {} \\; | sort",
    )
    return packages, etc


@pytest.fixture(scope="session")
def history(bare: Closet) -> History:
    """What check mode on empty nodes predicted, what the first run made, and what came after."""
    before = {member.name: snapshot(bare, member.name) for member in bare.lab.nodes}
    predicted = bare.play("labrack.infra.closet", "--check", "--diff")
    with Sampler() as sampler:
        made = bare.play("labrack.infra.closet", "-vvv", "--diff")
    again = bare.play()
    return History(
        predicted,
        made,
        again,
        bare.play("labrack.infra.closet", "--check", "--diff"),
        frozenset(sampler.seen),
        {host: packages for host, (packages, _) in before.items()},
        {host: etc for host, (_, etc) in before.items()},
    )


@pytest.fixture(scope="session")
def converged(bare: Closet, request: pytest.FixtureRequest) -> Closet:
    """The lab after its first runs; one that was kept is taken as it is."""
    if not (KEEP and bare.root("head", "ls /etc/slurm/slurm.conf", check=False)):
        request.getfixturevalue("history")
    return bare


@pytest.fixture
def closet(converged: Closet) -> Iterator[Closet]:
    """The converged lab with nothing in its queue; it is settled again after the test."""
    yield converged
    converged.settle()
