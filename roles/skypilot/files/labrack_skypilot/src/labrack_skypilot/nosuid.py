# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Have no set-user-ID file and no device count where pods write: ``python -m labrack_skypilot.nosuid PATH…``.

Root in a pod is root of the folders that it sees, so it can leave a file there that makes who runs it root outside.
Each folder, on itself where nothing is mounted on it, is mounted with ``nosuid`` and ``nodev``, and so is what is
mounted below. A file server's mounts are left alone: who mounts them gives the options. ``--stop`` takes away what was
mounted on itself; options of other mounts stay until they are mounted anew.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

#: Noted here: what was mounted on itself.
MADE = "/run/labrack/nosuid/made"
MOUNTINFO = "/proc/self/mountinfo"
WANTED = frozenset({"nosuid", "nodev"})
#: File systems that another host has, or that wait for one.
ELSEWHERE = re.compile(r"autofs|nfs4?|cifs|smb3?|ceph|lustre|beegfs|glusterfs|fuse\..*|9p")


def read(mountinfo: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return type and options of what is mounted, by its place; of several on one place the last."""
    found = {}
    for line in mountinfo.splitlines():
        words, _dash, rest = (part.split() for part in line.partition(" - "))
        if len(words) >= 6 and rest:
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), words[4])
            found[place] = rest[0], frozenset(words[5].split(","))
    return found


def commands(
    paths: Sequence[str], mountinfo: str, is_directory: Callable[[str], bool] = os.path.isdir
) -> Iterator[tuple[str, ...]]:
    """Yield the commands that close these folders, none for what is closed."""
    mounts = read(mountinfo)
    closed: list[str] = []
    for path in sorted(set(paths)):
        point = max((place for place in mounts if inside(path, place)), key=len, default="/")
        if point in mounts and ELSEWHERE.fullmatch(mounts[point][0]):
            continue
        if not is_directory(path):
            continue
        if path not in mounts and not any(inside(path, one) for one in closed):
            # with what is mounted below; private, or to take it away would take that away as well
            yield ("mount", "--rbind", path, path)
            yield ("mount", "--make-private", path)
            mounts[path] = "", frozenset()
        closed.append(path)
        for place, (kind, options) in mounts.items():
            if inside(place, path) and not options >= WANTED and not ELSEWHERE.fullmatch(kind):
                mounts[place] = kind, options | WANTED
                yield ("mount", "-o", "remount,bind,nosuid,nodev", place)


def inside(path: str, folder: str) -> bool:
    """Return whether a path is a folder, or in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def main(arguments: Sequence[str]) -> int:
    """Close folders, or undo that; return the exit status."""
    parser = argparse.ArgumentParser(prog="labrack-skypilot-nosuid", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--stop", action="store_true")
    options = parser.parse_args(arguments)
    made = Path(MADE)
    try:
        if options.stop:
            for path in reversed(made.read_text(encoding="utf-8").splitlines() if made.exists() else []):
                subprocess.run(["umount", "--lazy", path], check=True)
            return 0
        for argv in commands(options.paths, Path(MOUNTINFO).read_text(encoding="utf-8")):
            subprocess.run(argv, check=True)
            if argv[1] == "--rbind":
                with made.open("a", encoding="utf-8") as note:
                    note.write(f"{argv[2]}\n")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"labrack: {error}. Mend: mount it with nosuid,nodev by /etc/fstab", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
