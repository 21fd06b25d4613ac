#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Put the driver's modules under /lib/modules, or take them away, as DKMS does for the real packages.

``make-module build VERSION LICENSE`` or ``make-module remove VERSION``. A module is an ELF file with nothing but the
section that modinfo reads. While /etc/labrack-testnode/dkms-fails exists, a build fails as DKMS's does, with that file
as the compiler's log.
"""

import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

#: Module -> the modules it needs, in sysfs spelling.
MODULES = {
    "nvidia": "",
    "nvidia-uvm": "nvidia",
    "nvidia-modeset": "nvidia",
    "nvidia-drm": "nvidia-modeset",
    "nvidia-peermem": "nvidia",
}
MACHINES = {"x86_64": 62, "aarch64": 183}
FAILS = Path("/etc/labrack-testnode/dkms-fails")
#: Sizes of an ELF64 header and of one section header.
HEADER, SECTION = 64, 64


def elf(fields):
    """A relocatable ELF64 file whose .modinfo holds ``fields`` (pairs of key and value)."""
    info = b"".join(f"{key}={value}\0".encode() for key, value in fields)
    names = b"\0.modinfo\0.shstrtab\0"
    table = HEADER + len(info) + len(names)
    table += -table % 8
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1",
        1,
        MACHINES[platform.machine()],
        1,
        0,
        0,
        table,
        0,
        HEADER,
        0,
        0,
        SECTION,
        3,
        2,
    )
    sections = b"".join(
        struct.pack("<IIQQQQIIQQ", *section)
        for section in (
            (0,) * 10,
            (1, 1, 2, 0, HEADER, len(info), 0, 0, 1, 0),
            (10, 3, 0, 0, HEADER + len(info), len(names), 0, 0, 1, 0),
        )
    )
    return (header + info + names).ljust(table, b"\0") + sections


def kernels():
    """The running kernel and the others that have modules."""
    return sorted({platform.release(), *(path.name for path in Path("/lib/modules").glob("*"))})


def build(version, module_license):
    """Make the modules for every kernel; exit with 10, as dkms does, where they can't be built."""
    state = Path("/var/lib/dkms/nvidia") / version
    for kernel in kernels():
        print(f"Building initial module nvidia/{version} for {kernel}", flush=True)
        if FAILS.exists():
            log = state / "build/make.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(FAILS, log)
            print(
                f"Error! Bad return status for module build on kernel: {kernel} ({platform.machine()})", file=sys.stderr
            )
            print(f"Consult {log} for more information.", file=sys.stderr)
            sys.exit(10)
        folder = Path("/lib/modules") / kernel / "updates/dkms"
        folder.mkdir(parents=True, exist_ok=True)
        for name, needed in MODULES.items():
            fields = [
                ("license", module_license),
                ("version", version),
                ("depends", needed),
                ("name", name.replace("-", "_")),
                ("vermagic", f"{kernel} SMP preempt mod_unload modversions "),
            ]
            (folder / f"{name}.ko").write_bytes(elf(fields))
        (state / kernel / platform.machine()).mkdir(parents=True, exist_ok=True)
        subprocess.run(["depmod", kernel], check=True)


def remove(version):
    """Take this version's modules away."""
    for kernel in kernels():
        folder = Path("/lib/modules") / kernel / "updates/dkms"
        for name in MODULES:
            (folder / f"{name}.ko").unlink(missing_ok=True)
        if folder.is_dir() and not os.listdir(folder):
            folder.rmdir()
        if (Path("/lib/modules") / kernel).is_dir():
            subprocess.run(["depmod", kernel], check=True)
    state = Path("/var/lib/dkms/nvidia")
    shutil.rmtree(state / version, ignore_errors=True)
    if state.is_dir() and not os.listdir(state):
        state.rmdir()


if __name__ == "__main__":
    {"build": build, "remove": remove}[sys.argv[1]](*sys.argv[2:])
