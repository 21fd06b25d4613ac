#!/usr/bin/python3
# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for nvidia-persistenced: switches persistence mode on, and keeps the device files in use while it runs.

It knows --user, --persistence-mode, --no-persistence-mode, --uvm-persistence-mode and --verbose, and refuses the rest.
"""

import argparse
import json
import os
import pwd
import shutil
import signal
import sys
from pathlib import Path

CARDS = Path("/etc/labrack-testnode/gpus.json")
RUN = Path("/run/nvidia-persistenced")


def set_mode(mode):
    """Write the persistence mode of all cards; the file is replaced in one step."""
    document = json.loads(CARDS.read_text(encoding="utf-8"))
    for card in document["gpus"]:
        card["persistence_mode"] = mode
    new = CARDS.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1), encoding="utf-8")
    new.replace(CARDS)


def main():
    """Check the machine, go into the background, and wait for the end."""
    parser = argparse.ArgumentParser(prog="nvidia-persistenced")
    parser.add_argument("--user", default="root")
    parser.add_argument("--persistence-mode", action="store_true", default=True)
    parser.add_argument("--no-persistence-mode", dest="persistence_mode", action="store_false")
    parser.add_argument("--uvm-persistence-mode", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    uid = pwd.getpwnam(options.user).pw_uid
    devices = sorted(Path("/dev").glob("nvidia*"))
    if not Path("/run/labrack-testnode/proc/driver/nvidia/version").exists() or not devices:
        print(
            "Failed to query NVIDIA devices. Please ensure that the NVIDIA device files (/dev/nvidia*) exist, and that "
            f"user {uid} has read and write permissions for those files.",
            file=sys.stderr,
        )
        sys.exit("nvidia-persistenced failed to initialize. Check syslog for more details.")
    # A device without a driver behind it can't be opened, but it can be held.
    held = [os.open(device, os.O_PATH) for device in devices]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    RUN.mkdir(exist_ok=True)
    if options.persistence_mode:
        set_mode("Enabled")
    child = os.fork()
    if child:
        (RUN / "nvidia-persistenced.pid").write_text(f"{child}\n", encoding="utf-8")
        return
    os.setsid()
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    if options.persistence_mode:
        set_mode("Disabled")
    for descriptor in held:
        os.close(descriptor)
    shutil.rmtree(RUN, ignore_errors=True)


if __name__ == "__main__":
    main()
