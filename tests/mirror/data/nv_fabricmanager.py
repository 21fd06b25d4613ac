#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for Fabric Manager: runs where the driver has its version and there is an NVSwitch, else it fails."""

import os
import re
import signal
import sys
from pathlib import Path

OWN = "@VERSION@"
NODE = Path("/run/labrack-testnode")


def has_switch():
    """Whether an NVSwitch is on the PCI bus."""
    for device in (NODE / "sys/bus/pci/devices").glob("*"):
        if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x0680"):
            return True
    return False


def main():
    """Check the machine, go into the background, and wait for the end."""
    if sys.argv[1:] == ["--version"]:
        print(f"Fabric Manager version is : {OWN}")
        return
    if sys.argv[1:2] != ["-c"] or len(sys.argv) != 3:
        sys.exit(f"nv-fabricmanager: the stand-in knows -c FILE and --version, not {sys.argv[1:]}")
    version = NODE / "proc/driver/nvidia/version"
    loaded = re.search(r"\d{3,}\.\d+(\.\d+)?", version.read_text()) if version.exists() else None
    if loaded is None:
        sys.exit("request to query NVSwitch device information from NVSwitch driver failed")
    if loaded[0] != OWN:
        sys.exit(
            f"fabric manager NVIDIA GPU driver interface version {OWN} don't match with driver version {loaded[0]}. "
            "Please update with matching NVIDIA driver package."
        )
    if not has_switch():
        sys.exit("request to query NVSwitch device information from NVSwitch driver failed")
    if os.fork():
        return
    os.setsid()
    signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    main()
