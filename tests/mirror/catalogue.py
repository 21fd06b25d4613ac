# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the mirror holds: paths, versions, package names and dependencies, as the upstreams have them.

Sources, looked up 2026-11:

- NVIDIA's Debian packages from 565 on: ``dpkg -l`` of Debian machines with 570.158.01-1, 580.105.08-1, 595.58.03-1 and
  ``apt-get install`` lines with 580.178.04 (GoogleCloudDataproc/initialization-actions#1400) and 595.91.07-1;
  of 535: NVIDIA/debian-packaging-nvidia-driver:debian/control and GoogleCloudDataproc/initialization-actions;
- the metapackages' open-ended dependencies: forums.developer.nvidia.com, topic 353805;
- the pin of nvidia-driver-pinning-*: docs.nvidia.com, driver installation guide, "Version locking";
- Fabric Manager's source package and names: NVIDIA/apt-packaging-fabric-manager:debian/templates/control.in;
- Origin and Label: NVIDIA/cuda-repo-management:repo-debian.sh;
- the toolkit's: NVIDIA/nvidia-container-toolkit:packaging/debian/control; Docker's: docker/docker-ce-packaging:deb.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Debian architecture -> the name of its directory in NVIDIA's CUDA repository.
CUDA_ARCHITECTURES = {"amd64": "x86_64", "arm64": "sbsa"}
CUDA_ROOT = "/compute/cuda/repos"
TOOLKIT_ROOT = "/libnvidia-container"
DOCKER_ROOT = "/linux/debian"

#: The distributions of the CUDA repository, and the file of the key that signs each.
CUDA_KEY_FILES = {"debian12": "3bf863cc.pub", "debian13": "8793F200.pub"}
#: The suites of Docker's repository, and the number that its versions carry.
DOCKER_SUITES = {"bookworm": "12", "trixie": "13"}

#: NVIDIA's driver branches, oldest version first. The real debian13 repository begins with 580.
DRIVER_BRANCHES: dict[str, tuple[str, ...]] = {
    "535": ("535.183.06",),
    "570": ("570.158.01", "570.195.03"),
    "580": ("580.105.08", "580.178.04"),
    "590": ("590.48.01",),
    "595": ("595.91.07",),
}
DRIVER_VERSIONS = tuple(version for versions in DRIVER_BRANCHES.values() for version in versions)
TOOLKIT_VERSIONS = ("1.19.1", "1.20.0")
#: The CUDA repository has the toolkit too: newer, so that a machine whose origins aren't pinned takes it from there.
TOOLKIT_VERSION_IN_CUDA = "1.20.1"
DOCKER_VERSIONS = ("29.7.2", "29.8.2")
CONTAINERD_VERSIONS = ("2.3.4", "2.3.6")
#: What the fault "missing version" takes out of the indices, as upstream's version without the Debian revision.
MISSING = {"cuda": "580.178.04", "toolkit": "1.20.0", "docker": "29.8.2"}

#: The toolkit's packages, all of one version.
TOOLKIT_PACKAGES = (
    "libnvidia-container1",
    "libnvidia-container-tools",
    "nvidia-container-toolkit-base",
    "nvidia-container-toolkit",
)
DOCKER_PACKAGES = ("containerd.io", "docker-ce-cli", "docker-ce")


@dataclass(frozen=True)
class Package:
    """The control fields of a package, and the names of what it does when it is installed (see :mod:`.payload`)."""

    name: str
    version: str
    source: str
    description: str
    depends: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    #: "any" becomes the machine's architecture.
    architecture: str = "any"
    section: str = "non-free/utils"
    payload: tuple[str, ...] = field(default=())

    @property
    def fields(self) -> dict[str, str]:
        """The control file's fields in dpkg's order, without the empty ones; the architecture may be ``any``."""
        relations = {
            "Depends": self.depends,
            "Recommends": self.recommends,
            "Provides": self.provides,
            "Conflicts": self.conflicts,
            "Replaces": self.replaces,
        }
        return {
            "Package": self.name,
            **({"Source": self.source} if self.source != self.name else {}),
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": "labrack test mirror <mirror@localhost>",
            "Section": self.section,
            "Priority": "optional",
            **{name: ", ".join(values) for name, values in relations.items() if values},
            "Description": self.description,
        }

    def filename(self, architecture: str) -> str:
        """The name of its .deb, without the epoch, as the upstreams' have it."""
        own = architecture if self.architecture == "any" else self.architecture
        return f"{self.name}_{self.version.partition(':')[2] or self.version}_{own}.deb"


def branch_of(version: str) -> str:
    """The branch of a driver version: ``580`` of ``580.178.04``."""
    return version.partition(".")[0]


def driver_packages(version: str) -> list[Package]:
    """NVIDIA's Debian packages of one driver version (without the Debian revision).

    Between themselves they depend on exactly their own version; the metapackages ask for at least a version, so that
    without a pin ``cuda-drivers-580`` takes the newest driver there is. In the compute-only set are
    ``nvidia-driver-cuda`` and ``nvidia-kernel-open-dkms`` or ``nvidia-kernel-dkms``; 535 has ``nvidia-smi`` with
    ``libcuda1`` where later ones have ``nvidia-driver-cuda``. ``dkms`` is no dependency of the stand-ins.
    """
    branch, full = int(branch_of(version)), f"{version}-1"
    modern = branch >= 565

    def same(*names: str) -> tuple[str, ...]:
        return tuple(f"{name} (= {full})" for name in names)

    def at_least(*names: str) -> tuple[str, ...]:
        return tuple(f"{name} (>= {version})" for name in names)

    def package(
        name: str, description: str, *payload: str, source: str = "nvidia-graphics-drivers", **rest: tuple[str, ...]
    ) -> Package:
        return Package(name, full, source, description, payload=payload, **rest)

    modules = f"nvidia-kernel-dkms (= {full}) | nvidia-kernel-open-dkms (= {full})"
    base: tuple[str, ...] = () if modern else same("nvidia-alternative")
    packages = [
        package("firmware-nvidia-gsp", "NVIDIA GSP firmware", "firmware"),
        package(
            "nvidia-modprobe", "utility to load NVIDIA kernel modules and create device nodes", source="nvidia-modprobe"
        ),
        package(
            "nvidia-persistenced",
            "daemon to maintain persistent software state in the NVIDIA driver",
            "persistenced",
            source="nvidia-persistenced",
            depends=same("libnvidia-cfg1"),
        ),
        package("libnvidia-cfg1", "NVIDIA binary OpenGL/GLX configuration library", depends=base),
        package("libnvidia-ml1", "NVIDIA Management Library (NVML) runtime library", "nvml", depends=base),
        package(
            "libcuda1",
            "NVIDIA CUDA Driver Library",
            "cuda",
            depends=base,
            recommends=(modules, *(() if modern else same("nvidia-smi"))),
        ),
        package(
            "nvidia-kernel-support",
            "NVIDIA binary kernel module support files",
            depends=(*same("nvidia-modprobe"), *base),
        ),
        package(
            "nvidia-kernel-dkms",
            "NVIDIA binary kernel module DKMS source",
            "module-proprietary",
            depends=same("nvidia-kernel-support", "firmware-nvidia-gsp"),
            provides=(f"nvidia-kernel-{version}",),
            conflicts=("nvidia-kernel-open-dkms",),
        ),
        package(
            "nvidia-kernel-open-dkms",
            "NVIDIA binary kernel module DKMS source open flavor",
            "module-open",
            depends=same("nvidia-kernel-support", "firmware-nvidia-gsp"),
            provides=(f"nvidia-kernel-{version}",),
            conflicts=("nvidia-kernel-dkms",),
        ),
        package("nvidia-driver-libs", "NVIDIA metapackage (OpenGL/GLX/EGL/GLES libraries)"),
        package("xserver-xorg-video-nvidia", "NVIDIA binary Xorg driver"),
        package("nvidia-settings", "Tool for configuring the NVIDIA graphics driver", source="nvidia-settings"),
        package("nvidia-xconfig", "X configuration tool for non-free NVIDIA drivers", source="nvidia-xconfig"),
        package(
            "nvidia-driver",
            "NVIDIA metapackage",
            depends=(*same("nvidia-driver-libs", "xserver-xorg-video-nvidia"), modules),
            recommends=same("libnvidia-cfg1", "nvidia-persistenced"),
        ),
    ]
    if modern:
        packages.append(
            package(
                "nvidia-driver-cuda",
                "NVIDIA driver CUDA integration components",
                "smi",
                depends=same("libcuda1", "libnvidia-ml1", "libnvidia-cfg1", "nvidia-persistenced"),
                conflicts=("nvidia-smi",),
                replaces=("nvidia-smi",),
            )
        )
        userland = ("nvidia-driver", "nvidia-driver-cuda")
        packages += _open_metapackages(version, at_least(*userland, "nvidia-kernel-open-dkms"))
    else:
        packages += [
            package("nvidia-alternative", "allows the selection of NVIDIA as GLX provider"),
            package(
                "nvidia-smi",
                "NVIDIA System Management Interface",
                "smi",
                depends=same("nvidia-alternative", "libnvidia-ml1"),
                recommends=(modules,),
            ),
        ]
        userland = ("nvidia-driver", "nvidia-smi", "libcuda1")
    wanted = at_least(*userland, "nvidia-kernel-dkms", "nvidia-settings", "nvidia-xconfig")
    packages.append(package("cuda-drivers", "NVIDIA Driver meta-package", source="cuda-drivers", depends=wanted))
    if branch < 590:
        description = f"NVIDIA Driver meta-package, branch {branch}"
        packages.append(package(f"cuda-drivers-{branch}", description, source="cuda-drivers", depends=wanted))
    return [*packages, _fabric_manager(version), _pinning(version, version)]


def _open_metapackages(version: str, depends: tuple[str, ...]) -> list[Package]:
    branch, full = branch_of(version), f"{version}-1"
    text = "NVIDIA Driver meta-package, Open GPU kernel modules"
    latest = Package("nvidia-open", full, "nvidia-open", f"{text}, latest version", depends=depends)
    if int(branch) >= 590:
        return [latest]
    return [latest, Package(f"nvidia-open-{branch}", full, "nvidia-open", f"{text}, branch {branch}", depends=depends)]


def _fabric_manager(version: str) -> Package:
    """From 580 on the name is the same for all branches; the old name stays as a virtual package.

    Its source package is ``fabricmanager``: the pinning packages, which name ``src:*nvidia*``, do not hold it.
    """
    branch = branch_of(version)
    name, virtual = f"nvidia-fabricmanager-{branch}", "nvidia-fabricmanager"
    if int(branch) >= 580:
        name, virtual = virtual, name
    return Package(
        name,
        f"{version}-1",
        "fabricmanager",
        "Fabric Manager for NVSwitch based systems.",
        provides=(virtual,),
        conflicts=("nvidia-fabricmanager",) if name != "nvidia-fabricmanager" else (),
        replaces=("nvidia-fabricmanager",) if name != "nvidia-fabricmanager" else (),
        payload=("fabricmanager",),
    )


def _pinning(what: str, version: str) -> Package:
    """The package that holds apt to a branch or to one version; another one takes its place."""
    return Package(
        f"nvidia-driver-pinning-{what}",
        f"{version}-1",
        "nvidia-driver-pinning",
        f"Pins the NVIDIA driver to {what}",
        provides=("nvidia-driver-pinning",),
        conflicts=("nvidia-driver-pinning",),
        replaces=("nvidia-driver-pinning",),
        architecture="all",
        payload=("pinning",),
    )


def pinning_preferences(what: str) -> str:
    """The apt preferences of ``nvidia-driver-pinning-<what>``."""
    packages = "src:*nvidia*:any src:cuda-drivers:any src:cuda-compat:any"
    return f"Package: {packages}\nPin: version {what}*\nPin-Priority: 1000\n"


def cuda_packages() -> list[Package]:
    """All packages of the CUDA repository."""
    packages = [package for version in DRIVER_VERSIONS for package in driver_packages(version)]
    packages += [_pinning(branch, branch) for branch in DRIVER_BRANCHES]
    return packages + toolkit_packages(TOOLKIT_VERSION_IN_CUDA)


def toolkit_packages(version: str) -> list[Package]:
    """The four packages of the NVIDIA Container Toolkit in one version (without the Debian revision)."""
    full = f"{version}-1"
    old = ("nvidia-container-runtime (<= 3.5.0-1)", "nvidia-container-runtime-hook")
    return [
        Package(
            "libnvidia-container1", full, "libnvidia-container", "NVIDIA container runtime library", section="libs"
        ),
        Package(
            "libnvidia-container-tools",
            full,
            "libnvidia-container",
            "NVIDIA container runtime library (command-line tools)",
            depends=(f"libnvidia-container1 (>= {full})",),
            payload=("container-cli",),
        ),
        Package(
            "nvidia-container-toolkit-base",
            full,
            "nvidia-container-toolkit",
            "NVIDIA Container Toolkit Base",
            depends=("python3:any",),
            conflicts=old,
            replaces=old,
            payload=("toolkit-base",),
        ),
        Package(
            "nvidia-container-toolkit",
            full,
            "nvidia-container-toolkit",
            "NVIDIA Container toolkit",
            depends=(
                f"nvidia-container-toolkit-base (= {full})",
                f"libnvidia-container-tools (= {full})",
                "libnvidia-container-tools (<< 2.0.0)",
            ),
            conflicts=old,
            replaces=old,
            payload=("toolkit",),
        ),
    ]


def docker_packages(suite: str) -> list[Package]:
    """All packages of a suite of Docker's repository."""
    tail = f"-1~debian.{DOCKER_SUITES[suite]}~{suite}"
    packages = [
        Package(
            "containerd.io",
            version + tail,
            "containerd.io",
            "An open and reliable container runtime",
            provides=("containerd", "runc"),
            conflicts=("containerd", "runc"),
            replaces=("containerd", "runc"),
            section="devel",
            payload=("containerd",),
        )
        for version in CONTAINERD_VERSIONS
    ]
    for version in DOCKER_VERSIONS:
        full = f"5:{version}{tail}"
        packages += [
            Package(
                "docker-ce-cli",
                full,
                "docker-ce",
                "Docker CLI: the open-source application container engine",
                depends=("python3:any",),
                conflicts=("docker.io", "docker-cli"),
                section="admin",
                payload=("docker-cli",),
            ),
            Package(
                "docker-ce",
                full,
                "docker-ce",
                "Docker: the open-source application container engine",
                depends=("containerd.io (>= 2.1.5)", "docker-ce-cli", "iptables", "nftables", "python3:any"),
                conflicts=("docker.io",),
                section="admin",
                payload=("dockerd",),
            ),
        ]
    return packages
