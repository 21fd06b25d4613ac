"""Which driver fits: every generation, mixed machines, wishes that can't be met, package names of every system."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import driver_choice
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import Choice, Machine, Wish, choose
from ansible_collections.labrack.infra.plugins.module_utils.node_io import Done

CARDS = {
    "maxwell": "Tesla M40 24GB",
    "pascal": "NVIDIA GeForce GTX 1080 Ti",
    "volta": "Tesla V100-SXM2-32GB",
    "turing": "Quadro RTX 6000",
    "ampere": "NVIDIA RTX A6000",
    "ada": "NVIDIA GeForce RTX 4090",
    "hopper": "NVIDIA H100 80GB HBM3",
    "blackwell": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    "": "NVIDIA Something Newer",
}
ANY = Wish()
SYSTEMS = [
    ("debian", "12", "debian"),
    ("debian", "13", "debian"),
    ("ubuntu", "22.04", "debian"),
    ("ubuntu", "24.04", "debian"),
    ("ubuntu", "26.04", "debian"),
    ("redhat", "9", "redhat"),
    ("redhat", "10", "redhat"),
]


def machine(*generations: str, system: tuple[str, str, str] = ("debian", "13", "debian"), **more: object) -> Machine:
    cards = tuple((CARDS[name], name) for name in generations)
    base = Machine(*system, arch="x86_64", cards=cards, kernel="6.12.0-1-amd64")
    return replace(base, **more)  # type: ignore[arg-type]


def chosen(machine: Machine, wish: Wish = ANY) -> Choice:
    choice, problems = choose(machine, wish)
    assert choice, problems
    return choice


def refused(machine: Machine, wish: Wish = ANY) -> str:
    choice, problems = choose(machine, wish)
    assert choice is None
    return " ".join(map(str, problems))


@pytest.mark.parametrize("generation", [name for name in CARDS if name not in ("maxwell", "pascal", "volta")])
def test_turing_and_later_get_open_modules_of_the_long_term_branch(generation: str) -> None:
    choice = chosen(machine(generation))
    assert (choice.branch, choice.flavour, choice.source) == ("580", "open", "nvidia")


@pytest.mark.parametrize("generation", ["maxwell", "pascal", "volta"])
def test_older_cards_get_proprietary_modules(generation: str) -> None:
    assert chosen(machine(generation)).flavour == "proprietary"


def test_mixed_machine_gets_the_driver_that_runs_all_cards() -> None:
    choice = chosen(machine("pascal", "ampere", "hopper"))
    assert (choice.branch, choice.flavour) == ("580", "proprietary")


def test_no_driver_runs_pascal_and_blackwell() -> None:
    message = refused(machine("pascal", "blackwell"))
    assert "NVIDIA GeForce GTX 1080 Ti (pascal)" in message
    assert CARDS["blackwell"] in message


@pytest.mark.parametrize(
    ("generations", "wish", "words"),
    [
        (("ampere",), Wish(branch="581"), "nvidia_driver_branch = 581: no such branch. Mend: use one of 535, "),
        (("pascal",), Wish(branch="590"), "does not drive NVIDIA GeForce GTX 1080 Ti. Mend: use one of 535, 550, 570"),
        (("blackwell",), Wish(branch="550"), f"does not drive {CARDS['blackwell']}. Mend: use one of 570, 575, 580"),
        (("pascal", "ada"), Wish(flavour="open"), "nvidia_driver_flavour = open: it does not drive NVIDIA GeForce GTX"),
        (("blackwell",), Wish(flavour="proprietary"), "nvidia_driver_flavour = proprietary: it does not drive"),
        (("ada",), Wish(branch="620", flavour="proprietary"), "branch 620 has open modules only"),
        (("ada",), Wish(version="580"), "nvidia_driver_version = 580: not a driver version"),
        (("ada",), Wish(version="580.95.05", branch="570"), "nvidia_driver_version = 580.95.05: not of branch 570"),
        (("ada",), Wish(source="distribution", branch="580"), "Debian 13 has 550"),
        (("blackwell",), Wish(source="distribution"), f"it does not drive {CARDS['blackwell']}"),
        (("ada",), Wish(source="keep"), "there is no driver to keep"),
    ],
)
def test_wish_that_cannot_be_met(generations: tuple[str, ...], wish: Wish, words: str) -> None:
    assert words in refused(machine(*generations), wish)


def test_unknown_system_is_named() -> None:
    assert "debian 11: no driver packages are known for it" in refused(
        machine("ada", system=("debian", "11", "debian"))
    )


def test_working_driver_stays_unless_another_is_named() -> None:
    there = machine("ada", installed="550.163.01", installed_flavour="open", works=True)
    assert chosen(there) == Choice("keep", "550", "550.163.01", "open")
    assert chosen(there, Wish(branch="580")).branch == "580"


def test_broken_driver_of_somebody_else_is_replaced() -> None:
    assert chosen(machine("ada", installed="550.163.01", works=False)).source == "nvidia"


def test_own_driver_stays_in_its_branch() -> None:
    there = machine("ada", installed="570.158.01", works=True, ours=True)
    assert (chosen(there).source, chosen(there).branch) == ("nvidia", "570")


def test_dgx_os_is_left_to_its_own_stack() -> None:
    assert chosen(machine("hopper", dgx_os="7.2.1", installed="580.95.05", works=True)).source == "keep"


def test_secure_boot_stops_what_would_be_built_here_and_takes_what_is_signed() -> None:
    assert "Secure Boot is on" in refused(machine("ada", signed_only=True))
    ubuntu = machine("ada", system=("ubuntu", "24.04", "debian"), signed_only=True)
    assert chosen(ubuntu).dkms is False
    assert "modules are signed" in refused(ubuntu, Wish(source="nvidia"))


@pytest.mark.parametrize(("said", "only"), [("/x is already enrolled\n", False), ("/x is not enrolled\n", True)])
def test_enrolled_key_makes_own_modules_welcome(tmp_path, said: str, only: bool) -> None:  # type: ignore[no-untyped-def]
    key = tmp_path / "var/lib/dkms/mok.pub"
    key.parent.mkdir(parents=True)
    key.touch()
    runner = lambda _argv: Done(0, said, "")  # noqa: E731
    assert driver_choice.signed_only({"state": "enabled"}, runner, str(tmp_path)) is only
    assert driver_choice.signed_only({"state": "disabled"}, runner, str(tmp_path)) is False


#: From NVIDIA's and the distributions' package indexes (facts of November 2026).
PACKAGES = [
    (("debian", "13"), Choice("nvidia", "580"), ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]),
    (("debian", "12"), Choice("nvidia", "595"), ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]),
    (("debian", "12"), Choice("nvidia", "580", flavour="proprietary"), ["nvidia-driver-cuda", "nvidia-kernel-dkms"]),
    (
        ("debian", "12"),
        Choice("nvidia", "535"),
        ["libcuda1", "nvidia-persistenced", "nvidia-smi", "nvidia-kernel-open-dkms"],
    ),
    (
        ("debian", "13"),
        Choice("distribution", "550"),
        ["libcuda1", "nvidia-persistenced", "nvidia-smi", "nvidia-open-kernel-dkms"],
    ),
    (
        ("debian", "13"),
        Choice("nvidia", "580", desktop=True),
        ["nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-driver"],
    ),
    (
        ("ubuntu", "24.04"),
        Choice("distribution", "580"),
        [
            "linux-modules-nvidia-580-server-open-generic-hwe-24.04",
            "nvidia-headless-no-dkms-580-server-open",
            "nvidia-utils-580-server",
        ],
    ),
    (
        ("ubuntu", "24.04"),
        Choice("distribution", "580", flavour="proprietary"),
        [
            "linux-modules-nvidia-580-server-generic-hwe-24.04",
            "nvidia-headless-no-dkms-580-server",
            "nvidia-utils-580-server",
        ],
    ),
    (
        ("ubuntu", "24.04"),
        Choice("distribution", "580", desktop=True),
        ["linux-modules-nvidia-580-open-generic-hwe-24.04", "nvidia-driver-580-open"],
    ),
    (
        ("ubuntu", "22.04"),
        Choice("nvidia", "580"),
        ["libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580"],
    ),
    (
        ("ubuntu", "26.04"),
        Choice("nvidia", "595"),
        ["libnvidia-compute", "nvidia-compute-utils", "nvidia-dkms-open"],
    ),
    (("redhat", "9"), Choice("nvidia", "580"), ["nvidia-driver-cuda", "kmod-nvidia-open-dkms"]),
    (
        ("redhat", "10"),
        Choice("nvidia", "580", flavour="proprietary"),
        ["nvidia-driver-cuda", "kmod-nvidia-latest-dkms"],
    ),
]


@pytest.mark.parametrize(("system", "choice", "names"), PACKAGES)
def test_packages(system: tuple[str, str], choice: Choice, names: list[str]) -> None:
    family = "redhat" if system[0] == "redhat" else "debian"
    kernels = ["linux-image-generic-hwe-24.04", "linux-image-6.8.0-45-generic"]
    assert driver_choice.packages(machine("ada", system=(*system, family)), choice, kernels) == names


def test_signed_modules_without_a_kernel_metapackage_follow_the_running_kernel() -> None:
    assert driver_choice.ubuntu_kernels("6.8.0-1012-nvidia", ["linux-image-6.8.0-1012-nvidia"]) == ["nvidia"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nvidia-driver-cuda", True),
        ("libnvidia-ml1", True),
        ("libcuda1:amd64", True),
        ("linux-modules-nvidia-580-server-open-generic", True),
        ("nvidia-fabricmanager", True),
        ("nvidia-container-toolkit", False),
        ("libnvidia-container1", False),
        ("nvidia-driver-pinning-580", False),
        ("nvidia-cuda-toolkit", False),
        ("libc6", False),
    ],
)
def test_family(name: str, part: bool) -> None:
    assert driver_choice.is_family(name) is part


def test_kernel_metapackages_are_no_kernels() -> None:
    names = ["linux-generic-hwe-24.04", "linux-image-generic", "linux-headers-generic", "linux-image-6.8.0-45-generic"]
    assert driver_choice.kernel_metapackages([*names, "linux-base", "linux-libc-dev"]) == sorted(names[:3])


@pytest.mark.parametrize(
    ("system", "uri", "key"),
    [
        (("debian", "13", "debian"), "debian13/x86_64/", "8793F200.pub"),
        (("debian", "12", "debian"), "debian12/x86_64/", "3bf863cc.pub"),
        (("ubuntu", "24.04", "debian"), "ubuntu2404/x86_64/", "3bf863cc.pub"),
        (("redhat", "10", "redhat"), "rhel10/x86_64/", "D42D0685.pub"),
    ],
)
def test_repository(system: tuple[str, str, str], uri: str, key: str) -> None:
    source = driver_choice.repository(
        machine("ada", system=system), Choice("nvidia", "580"), "http://mirror/r/", "", ""
    )
    assert source
    assert (source.uri, source.key_url) == (f"http://mirror/r/{uri}", f"http://mirror/r/{uri}{key}")
    assert source.fingerprints[0].endswith(key[:8].upper())


def test_arm_has_its_own_folder() -> None:
    source = driver_choice.repository(machine("hopper", arch="aarch64"), Choice("nvidia", "580"), "http://m", "", "AA")
    assert source
    assert source.uri == "http://m/debian13/sbsa/"
    assert source.fingerprints == ("AA",)


machines = st.builds(
    lambda names, system, signed, works: machine(
        *names, system=system, signed_only=signed, works=works, installed="570.1.2" if works else None, ours=works
    ),
    st.lists(st.sampled_from(list(CARDS)), min_size=1, max_size=4),
    st.sampled_from(SYSTEMS),
    st.booleans(),
    st.booleans(),
)
wishes = st.builds(
    Wish,
    st.sampled_from(["auto", "distribution", "nvidia"]),
    st.sampled_from(["", *driver_choice.BRANCHES, "999"]),
    st.just(""),
    st.sampled_from(["auto", "open", "proprietary"]),
    st.booleans(),
)


@given(machines, wishes)
def test_a_choice_drives_every_card_and_a_refusal_says_why(machine: Machine, wish: Wish) -> None:
    choice, problems = choose(machine, wish)
    assert (choice is None) == bool(problems)
    if choice is None:
        assert all(str(problem).endswith(".") and ". Mend: " in str(problem) for problem in problems)
        return
    for _card, generation in machine.cards:
        first, last, flavours = driver_choice.GENERATIONS.get(generation, (0, None, ("open", "proprietary")))
        assert first <= int(choice.branch) <= (last or 999)
        assert choice.flavour in flavours
    assert not (choice.dkms and machine.signed_only)
    assert driver_choice.packages(machine, choice)
