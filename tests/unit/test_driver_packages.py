"""The driver's packages: versions in the indexes, one transaction or the way back, DKMS's words, RHEL's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import dkms, driver_apt, driver_dnf
from ansible_collections.labrack.infra.plugins.module_utils.apt_source import Source, SourceError
from ansible_collections.labrack.infra.plugins.module_utils.dkms import Build
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import Choice
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done

MADISON = {
    "nvidia-driver-cuda": ["595.91.07-1", "580.178.04-1", "580.95.05-1"],
    "nvidia-kernel-open-dkms": ["595.91.07-1", "580.178.04-1", "580.95.05-1"],
    "linux-modules-nvidia-580-server-open-generic": ["6.8.0-45.45"],
    "nvidia-fabricmanager": ["580.178.04-1", "580.95.05-1"],
}


class Apt:
    """dpkg and apt of a small machine: packages with versions, and what goes wrong."""

    def __init__(self, packages: dict[str, str], fails_after: dict[str, str] | None = None) -> None:
        self.packages = dict(packages)
        self.states: dict[str, str] = {}
        self.fails_after = fails_after
        self.calls: list[list[str]] = []

    def __call__(self, argv: list[str], **_rest: Any) -> Done:
        self.calls.append(argv)
        if argv[0] == "dpkg-query":
            rows = [
                f"{name}\t{version}\tinstall\t{self.states.get(name, 'installed')}"
                for name, version in self.packages.items()
            ]
            return Done(0, "\n".join(rows) + "\n", "")
        if argv[:2] == ["apt-cache", "madison"]:
            rows = [f" {argv[2]} | {version} | http://mirror/ Packages" for version in MADISON.get(argv[2], [])]
            return Done(0, "\n".join(rows), "")
        if argv[:2] == ["dpkg", "--purge"]:
            for name in argv[2:]:
                self.packages.pop(name, None)
                self.states.pop(name, None)
        if argv[0] == "dpkg" and "--install" in argv:
            for path in argv[argv.index("--install") + 1 :]:
                name, version, _arch = Path(path).name.split("_")
                self.packages[name] = version
                self.states.pop(name, None)
        if argv[0] == "apt-get" and "install" in argv and "-s" not in argv and "--download-only" not in argv:
            wanted = dict(spec.split("=") for spec in argv if "=" in spec and "::" not in spec)
            self.packages.update(wanted)
            if self.fails_after is not None:
                self.states.update(self.fails_after)
                return Done(100, "", "E: Sub-process /usr/bin/dpkg returned an error code (1)")
        if argv[0] == "apt-get" and "-s" in argv:
            return Done(0, "", "")
        return Done(0, "", "")


@pytest.fixture(autouse=True)
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(driver_apt, "KEEP_DEBS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "version"),
    [("580", "580.178.04-1"), ("580.95.05", "580.95.05-1"), ("595", "595.91.07-1"), ("58", ""), ("570", "")],
)
def test_newest_of_the_branch_or_the_version(wanted: str, version: str) -> None:
    assert driver_apt.best(MADISON["nvidia-driver-cuda"], wanted) == version


def test_two_digit_numbers_are_compared_as_numbers() -> None:
    assert driver_apt.best(["1:580.9.1-1", "1:580.10.1-1", "1:580.10.1-10"], "580") == "1:580.10.1-10"


def test_packages_without_the_drivers_version_come_as_the_index_has_them() -> None:
    names = ["nvidia-driver-cuda", "linux-modules-nvidia-580-server-open-generic"]
    found = driver_apt.specs(Choice("nvidia", "580"), names, "http://mirror/", Apt({}))
    assert found == ["nvidia-driver-cuda=580.178.04-1", "linux-modules-nvidia-580-server-open-generic"]


def test_branch_that_the_repository_lacks_is_told_with_those_that_it_has() -> None:
    with pytest.raises(SourceError) as caught:
        driver_apt.specs(Choice("nvidia", "570"), ["nvidia-driver-cuda"], "http://mirror/", Apt({}))
    assert (
        "nvidia_driver_branch = 570: http://mirror/ has no nvidia-driver-cuda of it, but 580.178.04, 580.95.05"
        in str(caught.value)
    )


def test_fabric_manager_comes_in_the_drivers_version_under_the_name_that_there_is() -> None:
    apt = Apt({"libc6": "2.41"})
    choice = Choice("nvidia", "580", fabric_manager=True)
    driver_apt.change(choice, ["nvidia-driver-cuda"], Source("n", "http://mirror/", "", ()), "6.12", apt)
    assert apt.packages["nvidia-fabricmanager"] == apt.packages["nvidia-driver-cuda"] == "580.178.04-1"


def test_transaction_tells_what_came() -> None:
    outcome = driver_apt.transact(["nvidia-driver-cuda=580.178.04-1"], Apt({"libc6": "2.41"}), list)
    assert outcome.brought == ["nvidia-driver-cuda"]
    assert outcome.before == {}


def test_transaction_that_fails_leaves_nothing_new(archives: Path) -> None:
    apt = Apt({"libc6": "2.41"}, {"nvidia-driver-cuda": "half-configured"})
    with pytest.raises(SourceError, match=r"The packages are as they were before\."):
        driver_apt.transact(["nvidia-driver-cuda=580.178.04-1"], apt, list)
    assert (apt.packages, apt.states) == ({"libc6": "2.41"}, {})


def test_transaction_that_fails_brings_the_versions_before_back(archives: Path) -> None:
    (archives / "present").mkdir()
    (archives / "present/nvidia-driver-cuda_580.95.05-1_amd64.deb").touch()
    before = {"nvidia-driver-cuda": "580.95.05-1", "libc6": "2.41"}
    apt = Apt(before, {"nvidia-driver-cuda": "half-configured"})
    with pytest.raises(SourceError, match="as they were before"):
        driver_apt.transact(["nvidia-driver-cuda=580.178.04-1"], apt, list)
    assert (apt.packages, apt.states) == (before, {})


def test_what_cannot_be_brought_back_is_named() -> None:
    apt = Apt({"nvidia-driver-cuda": "580.95.05-1"}, {"nvidia-driver-cuda": "half-configured"})
    with pytest.raises(SourceError, match=r"nvidia-driver-cuda could not be brought back\. Mend: apt-get -f install"):
        driver_apt.transact(["nvidia-driver-cuda=580.178.04-1"], apt, list)


def test_module_that_was_not_built_counts_as_a_failure() -> None:
    apt = Apt({"libc6": "2.41"})
    with pytest.raises(SourceError, match=r"the kernel module was not built for 6\.12\.1"):
        driver_apt.transact(["nvidia-driver-cuda=580.178.04-1"], apt, lambda: ["6.12.1"])
    assert apt.packages == {"libc6": "2.41"}


STATUS = """\
dkms_test/1.0, 6.12.107+deb13-amd64, x86_64: installed
nvidia/550.163.01: added
nvidia/580.178.04, 6.12.107+deb13-amd64, x86_64: installed (WARNING! Diff between built and installed module!)
nvidia, 535.129.03, 5.15.0-91-generic, x86_64: built
Deprecated feature: REMAKE_INITRD (/var/lib/dkms/x/dkms.conf)
"""


def test_dkms_status_of_every_age() -> None:
    assert dkms.parse_status(STATUS) == [
        Build("dkms_test", "1.0", "6.12.107+deb13-amd64", "installed"),
        Build("nvidia", "550.163.01"),
        Build("nvidia", "580.178.04", "6.12.107+deb13-amd64", "installed"),
        Build("nvidia", "535.129.03", "5.15.0-91-generic", "built"),
    ]


def test_kernels_for_which_nothing_is_installed() -> None:
    builds = dkms.parse_status(STATUS)
    kernels = ["6.12.107+deb13-amd64", "5.15.0-91-generic"]
    assert dkms.unbuilt(builds, "nvidia", kernels) == ["5.15.0-91-generic"]
    assert dkms.unbuilt([], "nvidia", kernels) == []


def test_cause_is_in_the_newest_log(tmp_path: Path) -> None:
    log = tmp_path / "nvidia/550.163.01/build/make.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "make: Entering\n  CC nv.o\nnv-pci.c:237:9: error: too few arguments to function\nmake: *** [all] Error 2\n"
    )
    told = dkms.cause("nvidia*", tmp_path)
    assert told.startswith(f"{log}: nv-pci.c:237:9: error: too few arguments to function")
    assert dkms.cause("other", tmp_path) == ""


# RHEL and Rocky: rendered from NVIDIA's guide, not run


def test_repository_file() -> None:
    source = Source("labrack-nvidia", "http://mirror/rhel9/x86_64/", "http://mirror/rhel9/x86_64/D42D0685.pub", ())
    text = driver_dnf.repo_file(source).text
    assert "baseurl=http://mirror/rhel9/x86_64/\n" in text
    assert "gpgcheck=1\n" in text and "gpgkey=http://mirror/rhel9/x86_64/D42D0685.pub\n" in text


@pytest.mark.parametrize(
    ("choice", "modular", "commands"),
    [
        (
            Choice("nvidia", "580"),
            True,
            [
                "dnf -q -y module reset nvidia-driver",
                "dnf -q -y module enable nvidia-driver:580-open",
                "dnf -q -y install nvidia-driver-cuda kmod-nvidia-open-dkms",
            ],
        ),
        (
            Choice("nvidia", "580", flavour="proprietary"),
            True,
            [
                "dnf -q -y module reset nvidia-driver",
                "dnf -q -y module enable nvidia-driver:580-dkms",
                "dnf -q -y install nvidia-driver-cuda kmod-nvidia-open-dkms",
            ],
        ),
        (
            Choice("nvidia", "580", "580.95.05"),
            False,
            ["dnf -q -y install nvidia-driver-cuda-3:580.95.05 kmod-nvidia-open-dkms-3:580.95.05"],
        ),
        (
            Choice("nvidia", "595"),
            False,
            ["dnf -q -y install nvidia-driver-cuda-3:595.* kmod-nvidia-open-dkms-3:595.*"],
        ),
    ],
)
def test_commands_of_dnf(choice: Choice, modular: bool, commands: list[str]) -> None:
    names = ["nvidia-driver-cuda", "kmod-nvidia-open-dkms"]
    assert [" ".join(command) for command in driver_dnf.commands(choice, names, modular)] == commands


def test_packages_of_rpm_with_their_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_dnf, "read_text", lambda _path: "nvidia-driver-cuda-3:580.95.05-1.el9.*\n")
    rows = "nvidia-driver-cuda\t3:580.95.05-1.el9\nkmod-nvidia-open-dkms\t3:580.95.05-1.el9\nbash\t5.1.8-9.el9\n"
    seen = driver_dnf.observe(lambda _argv, **_rest: Done(0, rows, ""))
    assert {name: one.held for name, one in seen.items()} == {
        "nvidia-driver-cuda": True,
        "kmod-nvidia-open-dkms": False,
    }
