# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the stand-in packages put on a machine, and what their maintainer scripts do there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.mirror.catalogue import Package, pinning_preferences

DATA = Path(__file__).parent / "data"
#: Debian architecture -> the directory of its libraries.
TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
UNITS = "/usr/lib/systemd/system"


@dataclass
class Payload:
    """Files and maintainer scripts; everything below /etc is a conffile."""

    #: Path -> content; a path in ``programs`` is executable.
    files: dict[str, str] = field(default_factory=dict)
    programs: set[str] = field(default_factory=set)
    #: Path -> target.
    links: dict[str, str] = field(default_factory=dict)
    #: Path of an empty shared library -> its SONAME.
    libraries: dict[str, str] = field(default_factory=dict)
    #: Lines of the postinst's ``configure``, of the prerm's ``remove`` and ``upgrade``, and of the postrm's ``purge``.
    configure: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    purge: list[str] = field(default_factory=list)

    def program(self, path: str, text: str) -> None:
        """Add an executable file."""
        self.files[path] = text
        self.programs.add(path)

    def script(self, path: str, name: str, version: str) -> None:
        """Add a program from the data directory that knows its version."""
        self.program(path, (DATA / name).read_text(encoding="utf-8").replace("@VERSION@", version))

    def library(self, stem: str, version: str, triplet: str) -> None:
        """Add ``lib<stem>.so.<version>`` with the link that a loader looks for."""
        name = f"lib{stem}.so"
        self.libraries[f"/usr/lib/{triplet}/{name}.{version}"] = f"{name}.1"
        self.links[f"/usr/lib/{triplet}/{name}.1"] = f"{name}.{version}"

    def unit(self, name: str, text: str, start: bool) -> None:
        """Add a systemd unit; ``start`` enables and starts it as Debian's maintainer scripts do."""
        self.files[f"{UNITS}/{name}"] = text
        reload = "if [ -d /run/systemd/system ]; then systemctl --system daemon-reload || true; fi"
        if reload not in self.configure:
            self.configure.append(reload)
        if start:
            self.configure.append(f"deb-systemd-helper enable {name} >/dev/null || true")
            self.configure.append(
                f"if [ -d /run/systemd/system ]; then deb-systemd-invoke restart {name} >/dev/null || true; fi"
            )
        self.remove.append(
            f'if [ "$1" = remove ] && [ -d /run/systemd/system ]; then deb-systemd-invoke stop {name} || true; fi'
        )
        self.purge.append(f"deb-systemd-helper purge {name} >/dev/null || true")

    @property
    def conffiles(self) -> list[str]:
        """The files that dpkg keeps when the admin changed them."""
        return sorted(path for path in self.files if path.startswith("/etc/"))

    @property
    def scripts(self) -> dict[str, str]:
        """The maintainer scripts that have something to do."""
        made = {}
        if self.configure:
            made["postinst"] = _script('[ "$1" = configure ] || exit 0', self.configure)
        if self.remove:
            made["prerm"] = _script('case "$1" in remove | upgrade) ;; *) exit 0 ;; esac', self.remove)
        if self.purge:
            made["postrm"] = _script('[ "$1" = purge ] || exit 0', self.purge)
        return made


def _script(guard: str, lines: list[str]) -> str:
    return "\n".join(["#!/bin/sh", "set -e", guard, *lines, ""])


def upstream_version(package: Package) -> str:
    """A package's version without epoch and Debian revision."""
    return package.version.partition(":")[2].partition("-")[0] or package.version.partition("-")[0]


def payload(package: Package, architecture: str) -> Payload:
    """What a package of the catalogue holds on an architecture (``amd64`` or ``arm64``)."""
    made = Payload()
    made.files[f"/usr/share/doc/{package.name}/copyright"] = "A stand-in for the tests. GPL-3.0-or-later\n"
    for name in package.payload:
        _BUILDERS[name](made, upstream_version(package), TRIPLETS[architecture], package)
    return made


def _firmware(made: Payload, version: str, triplet: str, package: Package) -> None:
    for chip in ("ga10x", "tu10x"):
        made.files[f"/usr/lib/firmware/nvidia/{version}/gsp_{chip}.bin"] = "stand-in\n"


def _nvml(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.library("nvidia-ml", version, triplet)
    made.configure.append("ldconfig")


def _cuda(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.library("cuda", version, triplet)
    made.configure.append("ldconfig")


def _smi(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.program("/usr/bin/nvidia-smi", '#!/bin/sh\nexec /usr/lib/labrack-testnode/nvidia-smi "$@"\n')


def _module(made: Payload, version: str, license: str) -> None:
    source = f"/usr/src/nvidia-{version}"
    made.script(f"{source}/make-module", "make_module.py", version)
    made.files[f"{source}/dkms.conf"] = f'PACKAGE_NAME="nvidia"\nPACKAGE_VERSION="{version}"\nAUTOINSTALL="yes"\n'
    made.configure.append(f"{source}/make-module build {version} '{license}'")
    made.remove.append(f"{source}/make-module remove {version}")


def _module_open(made: Payload, version: str, triplet: str, package: Package) -> None:
    _module(made, version, "Dual MIT/GPL")


def _module_proprietary(made: Payload, version: str, triplet: str, package: Package) -> None:
    _module(made, version, "NVIDIA")


def _persistenced(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.script("/usr/bin/nvidia-persistenced", "nvidia_persistenced.py", version)
    made.configure.append(
        "getent passwd nvpd >/dev/null || useradd --system --no-create-home --home-dir /var/run/nvpd/ "
        "--shell /usr/sbin/nologin --comment 'NVIDIA Persistence Daemon' nvpd"
    )
    made.unit(
        "nvidia-persistenced.service",
        "[Unit]\nDescription=NVIDIA Persistence Daemon\n\n"
        "[Service]\nType=forking\nPIDFile=/run/nvidia-persistenced/nvidia-persistenced.pid\n"
        "ExecStart=/usr/bin/nvidia-persistenced --user nvpd --verbose\n"
        "ExecStopPost=/bin/rm -rf /var/run/nvidia-persistenced\n\n"
        "[Install]\nWantedBy=multi-user.target\n",
        start=False,
    )


def _fabricmanager(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.script("/usr/bin/nv-fabricmanager", "nv_fabricmanager.py", version)
    made.files["/usr/share/nvidia/nvswitch/fabricmanager.cfg"] = "LOG_LEVEL=4\nFABRIC_MODE=0\n"
    made.unit(
        "nvidia-fabricmanager.service",
        "[Unit]\nDescription=NVIDIA fabric manager service\n"
        "After=network-online.target\nRequires=network-online.target\n\n"
        "[Service]\nType=forking\n"
        "ExecStart=/usr/bin/nv-fabricmanager -c /usr/share/nvidia/nvswitch/fabricmanager.cfg\n\n"
        "[Install]\nWantedBy=multi-user.target\n",
        start=False,
    )


def _pinning(made: Payload, version: str, triplet: str, package: Package) -> None:
    what = package.name.removeprefix("nvidia-driver-pinning-")
    # apt reads no file whose name ends in another extension, and a version looks like one.
    made.files[f"/etc/apt/preferences.d/{package.name}.pref"] = pinning_preferences(what)


def _container_cli(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.program(
        "/usr/bin/nvidia-container-cli",
        f"""#!/bin/sh
case $* in
    -V | --version) echo "cli-version: {version}" ;;
    *) echo "nvidia-container-cli: the stand-in knows --version, not: $*" >&2; exit 2 ;;
esac
""",
    )


def _toolkit_base(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.script("/usr/bin/nvidia-ctk", "nvidia_ctk.py", version)
    # The real one puts the GPU's files into the container's specification and becomes runc.
    made.program(
        "/usr/bin/nvidia-container-runtime",
        f"""#!/bin/sh
[ "$*" != --version ] || echo "NVIDIA Container Runtime version {version}"
exec runc "$@"
""",
    )
    made.program(
        "/usr/bin/nvidia-cdi-hook",
        '#!/bin/sh\necho "nvidia-cdi-hook: the stand-in changes no container: $*" >&2\nexit 2\n',
    )
    made.files["/usr/lib/systemd/system-preset/90-nvidia-container-toolkit.preset"] = (
        "enable nvidia-cdi-refresh.path\nenable nvidia-cdi-refresh.service\n"
    )
    made.files["/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"] = (
        "# Environment of nvidia-cdi-refresh.service, for example\n"
        "# NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml\n"
    )
    # The package has no conffile for this one: an upgrade runs it through nvidia-ctk, which keeps other values.
    made.configure.append(
        "nvidia-ctk --quiet config --config-file=/etc/nvidia-container-runtime/config.toml --in-place"
    )
    made.unit("nvidia-cdi-refresh.service", CDI_SERVICE, start=True)
    made.unit("nvidia-cdi-refresh.path", CDI_PATH, start=True)


#: Conditions and steps of NVIDIA/nvidia-container-toolkit:deployments/systemd/nvidia-cdi-refresh.service (v1.20.0),
#: without those for WSL and Tegra.
CDI_SERVICE = """\
[Unit]
Description=Refresh NVIDIA CDI specification file
ConditionPathExists=|/usr/bin/nvidia-smi
ConditionPathExists=|/usr/sbin/nvidia-smi
ConditionPathExists=/usr/bin/nvidia-ctk
StartLimitBurst=5
StartLimitIntervalSec=10s

[Service]
Type=oneshot
Environment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml
EnvironmentFile=-/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env
ExecCondition=/usr/bin/grep -qE "/(nvidia|nvidia-current)[.]ko" /lib/modules/%v/modules.dep
ExecStart=/usr/bin/nvidia-smi -L
ExecStart=-/usr/bin/nvidia-ctk system create-device-nodes --control-devices --load-kernel-modules
ExecStart=/usr/bin/nvidia-ctk cdi generate
Restart=on-failure
RestartSec=1s

[Install]
WantedBy=multi-user.target
"""
CDI_PATH = """\
[Unit]
Description=Trigger CDI refresh on NVIDIA driver or toolkit install / upgrade events

[Path]
PathChanged=/lib/modules/%v/modules.dep
PathChanged=/lib/modules/%v/modules.dep.bin
PathChanged=/usr/bin/nvidia-ctk

[Install]
WantedBy=multi-user.target
"""


def _toolkit(made: Payload, version: str, triplet: str, package: Package) -> None:
    hook = "/usr/bin/nvidia-container-runtime-hook"
    made.program(hook, '#!/bin/sh\necho "nvidia-container-runtime-hook: a stand-in: $*" >&2\nexit 2\n')
    made.configure.append(f"[ -e /usr/bin/nvidia-container-toolkit ] || ln -s {hook} /usr/bin/nvidia-container-toolkit")
    made.purge.append("rm -f /usr/bin/nvidia-container-toolkit")


def _containerd(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.program("/usr/bin/containerd", "#!/bin/sh\nexec sleep infinity\n")
    made.program("/usr/bin/runc", '#!/bin/sh\n[ "$*" = --version ] || exit 2\necho "runc version 1.3.3"\n')
    made.files["/etc/containerd/config.toml"] = 'disabled_plugins = ["cri"]\n'
    made.unit(
        "containerd.service",
        "[Unit]\nDescription=containerd container runtime\n\n"
        "[Service]\nExecStart=/usr/bin/containerd\nDelegate=yes\nKillMode=process\nRestart=always\nRestartSec=5\n\n"
        "[Install]\nWantedBy=multi-user.target\n",
        start=True,
    )


def _docker_cli(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.script("/usr/bin/docker", "docker_cli.py", version)


def _dockerd(made: Payload, version: str, triplet: str, package: Package) -> None:
    made.script("/usr/bin/dockerd", "dockerd.py", version)
    made.configure.append('if [ -z "$2" ] && ! getent group docker >/dev/null; then groupadd --system docker; fi')
    made.unit("docker.socket", DOCKER_SOCKET, start=True)
    made.unit("docker.service", DOCKER_SERVICE, start=True)


#: After moby/moby:contrib/init/systemd.
DOCKER_SOCKET = """\
[Unit]
Description=Docker Socket for the API

[Socket]
ListenStream=/run/docker.sock
SocketMode=0660
SocketUser=root
SocketGroup=docker

[Install]
WantedBy=sockets.target
"""
DOCKER_SERVICE = """\
[Unit]
Description=Docker Application Container Engine
Documentation=https://docs.docker.com
After=network-online.target containerd.service docker.socket
Wants=network-online.target containerd.service
Requires=docker.socket
StartLimitBurst=3
StartLimitIntervalSec=60

[Service]
Type=notify
ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock
ExecReload=/bin/kill -s HUP $MAINPID
TimeoutStartSec=0
RestartSec=2
Restart=always
Delegate=yes
KillMode=process
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
"""

_BUILDERS = {
    "container-cli": _container_cli,
    "containerd": _containerd,
    "cuda": _cuda,
    "docker-cli": _docker_cli,
    "dockerd": _dockerd,
    "fabricmanager": _fabricmanager,
    "firmware": _firmware,
    "module-open": _module_open,
    "module-proprietary": _module_proprietary,
    "nvml": _nvml,
    "persistenced": _persistenced,
    "pinning": _pinning,
    "smi": _smi,
    "toolkit": _toolkit,
    "toolkit-base": _toolkit_base,
}
