# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Mount the lab's shared directories at their first use, and keep this host's scratch, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nfs_client
short_description: Mount the lab's shared directories at their first use, and keep a host's scratch
version_added: 0.1.0
description:
  - See the role P(labrack.infra.nfs_client#role).
  - Every directory of another host gets a C(.mount) and an C(.automount) unit. It is mounted when somebody first opens
    it, and by this module, which asks each server once. Nothing waits longer for a server than a few seconds.
  - A mount that is to change while somebody uses it is of the class V(drain). With that consent it is detached. Who has
    files open keeps the old mount for them, everybody else gets the new one.
  - A stale handle, and a mount from a server that has moved and does not answer where it was, are of no use to anybody.
    They are replaced with the consent V(restart).
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) takes units, rules and empty directories away that this module made.
    type: str
    choices: [present, absent]
    default: present
  name:
    description: This host's name in the inventory.
    type: str
    required: true
  directories:
    description: The lab's shared directories, as RV(ignore:lab_directories) has them.
    type: list
    elements: dict
    default: []
  servers:
    description: The hosts of the group C(nfs_server), in order.
    type: list
    elements: str
    default: []
  nodes:
    description: The hosts of the lab.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The host's name in the inventory.
        type: str
        required: true
      address:
        description: Its address in the lab.
        type: str
      link_mbit:
        description: The speed of its fastest network card.
        type: int
  nconnect:
    description: Connections to each server, where the kernel can (5.3 and later).
    type: int
    default: 4
  scratch:
    description: This host's scratch directory, none when empty.
    type: str
    default: ""
  scratch_days:
    description: After how many days without use files in scratch go; 0 for never.
    type: int
    default: 30
  packages:
    description: Packages that the caller has seen to be there, so that C(labrack drift) misses them later.
    type: list
    elements: str
    default: []
  installed:
    description: Packages that the caller has just installed, to be remembered for O(state=absent).
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Mount the homes of the head
  labrack.infra.nfs_client:
    name: node1
    directories:
      - path: /home
        source: /srv/lab/home
    servers: [head]
    nodes:
      - {name: head, address: 10.0.0.1}
      - {name: node1, address: 10.0.0.2}
    scratch: /scratch
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Changes that O(max_disruption) does not cover.
  returned: success
  type: list
  elements: dict
directories:
  description:
    - The state of each directory of another host, C(mounted), C(waiting) for its first use (in check mode), C(stale),
      C(silent) (its server does not answer) or C(failed) with the reason.
  returned: success
  type: dict
network:
  description:
    - The way to each server, with this host's C(device), its C(speed_mbit) and C(mtu), and the biggest packet in bytes
      that C(passes), 0 where no ping is answered.
  returned: success
  type: dict
notes:
  description: What an admin should know and no run can change; also shown as warnings.
  returned: success
  type: list
  elements: str
packages:
  description: Packages that were installed by the caller of this module and nobody needs any more.
  returned: success
  type: list
  elements: str
"""

import json
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import (
    mount_observe,
    nfs_client_plan,
    node_io,
    path_mtu,
    systemd,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.hardware_observe import fstab, read_mounts
from ansible_collections.labrack.infra.plugins.module_utils.mount_observe import SILENT, STALE
from ansible_collections.labrack.infra.plugins.module_utils.nfs_client_plan import (
    ClientError,
    Observed,
    Server,
    Wanted,
    Way,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "name": {"type": "str", "required": True},
    "directories": {"type": "list", "elements": "dict", "default": []},
    "servers": {"type": "list", "elements": "str", "default": []},
    "nodes": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "address": {"type": "str"},
            "link_mbit": {"type": "int"},
        },
    },
    "nconnect": {"type": "int", "default": 4},
    "scratch": {"type": "str", "default": ""},
    "scratch_days": {"type": "int", "default": 30},
    "packages": {"type": "list", "elements": "str", "default": []},
    "installed": {"type": "list", "elements": "str", "default": []},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}

ROOT = Path("/")
#: Everybody may write there, and take away only their own.
SCRATCH_MODE = 0o1777
#: Seconds for systemd to see that something was unmounted past it.
SETTLE = 5.0
#: Seconds for a directory to be mounted.
MOUNTING = 10.0


def observe(wanted: Wanted) -> Observed:
    """Read the host."""
    units = read_units(wanted)
    mounts = read_mounts(node_io.read_text("/proc/self/mountinfo") or "")
    paths = sorted({*wanted.shares, *nfs_client_plan.ours(units)})
    remote = [path for path in paths if path in mounts and mounts[path]["fstype"].startswith("nfs")]
    services = [nfs_client_plan.automount_unit(path) for path in paths]
    if wanted.shares:
        services += nfs_client_plan.PORTMAPPER
    places = [*wanted.shares, *wanted.provided, *([wanted.scratch] if wanted.scratch else [])]
    seen = Observed(
        nfs=not wanted.shares or mount_observe.kernel_has_nfs(ROOT),
        units=units,
        services=systemd.observe_services(services),
        mounts=mounts,
        answers=mount_observe.answers(remote),
        places=mount_observe.read_places(places, ROOT),
        fstab=frozenset(entry["mount"] for entry in fstab(ROOT)) & set(wanted.shares),
        scratch_mode=read_mode(wanted.scratch),
        tmpfiles=node_io.observe_file(nfs_client_plan.TMPFILES),
        record=node_io.observe_file(nfs_client_plan.RECORD),
    )
    # who uses a mount is asked only of those that may have to go
    doubtful = [path for path in remote if path not in wanted.shares or nfs_client_plan.off(seen, wanted.shares[path])]
    if not doubtful:
        return seen
    used = mount_observe.in_use({path: mounts[path]["number"] for path in doubtful}, ROOT)
    return replace(seen, busy=frozenset(used))


def read_units(wanted: Wanted) -> dict[str, FileState]:
    """Return the unit files of the wanted directories, and all that are ours, by path."""
    files = {
        name(path) for path in wanted.shares for name in (nfs_client_plan.mount_file, nfs_client_plan.automount_file)
    }
    found = {}
    for kind in ("mount", "automount"):
        for file in sorted(Path(nfs_client_plan.UNITS).glob(f"*.{kind}")):
            state = node_io.observe_file(file)
            if state and (str(file) in files or state.text.startswith(nfs_client_plan.HEADER)):
                found[str(file)] = state
    return found


def read_mode(path: str) -> str:
    """Return a directory's mode and owner as ``1777 root:root``, "" where there is none."""
    try:
        info = os.stat(path) if path else None
    except OSError:
        info = None
    if info is None:
        return ""
    return f"{info.st_mode & 0o7777:04o} {node_io.owner_name(info.st_uid)}:{node_io.group_name(info.st_gid)}"


class Host:
    """The host: what was read of it, and how a change is made."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.seen = Observed()
        self.reload = False
        self.unneeded: list[str] = []

    def look(self) -> Observed:
        """Read it again."""
        self.seen = observe(self.wanted)
        if not self.wanted.present and self.seen.record:
            self.unneeded += json.loads(self.seen.record.text).get("packages", [])
        return self.seen

    def apply(self, changes: list[Change]) -> None:
        """Make the changes in order (OSError, ServiceError)."""
        texts: dict[str, FileState | None] = {
            nfs_client_plan.RECORD: nfs_client_plan.wanted_record(self.seen, self.wanted),
            nfs_client_plan.TMPFILES: nfs_client_plan.wanted_tmpfiles(self.seen, self.wanted),
        }
        for share in self.wanted.shares.values():
            texts.update(nfs_client_plan.wanted_units(self.seen, share))
        for change in changes:
            self._make(change, texts)
        self._reload()

    def _make(self, change: Change, texts: Mapping[str, FileState | None]) -> None:
        verb, target = change.step
        if verb == "mkdir":
            os.makedirs(target, mode=0o755, exist_ok=True)
        elif verb == "scratch":
            os.makedirs(target, exist_ok=True)
            os.chown(target, 0, 0)
            os.chmod(target, SCRATCH_MODE)
        elif verb == "rmdir":
            node_io.remove_empty(target)
        elif verb == "write":
            content = texts[target]
            if content is not None:
                node_io.write_file(target, content)
            self._changed(target)
        elif verb == "remove":
            node_io.remove_file(target)
            self._changed(target)
        elif verb in ("unmount", "detach"):
            self._reload()
            self._unmount(target, lazily=verb == "detach")
        elif verb == "disable":
            run_systemctl("disable", "--now", target)
        elif verb == "enable":
            # a link for the next boot, of which systemd need not hear now; each time that it reads its files costs
            run_systemctl("enable", "--no-reload", target)
        else:
            self._reload()
            systemd.act(verb, target)

    def _changed(self, file: str) -> None:
        self.reload = self.reload or file.startswith(nfs_client_plan.UNITS)

    def _reload(self) -> None:
        if self.reload:
            systemd.daemon_reload()
            self.reload = False

    def _unmount(self, path: str, lazily: bool) -> None:
        """Unmount a directory past systemd, which would wait for its server; its old units come back if that fails."""
        done = node_io.run(
            ["umount", "--internal-only", "--no-canonicalize", *(["--lazy"] if lazily else []), path], timeout=30.0
        )
        if done.rc:
            for file in (nfs_client_plan.mount_file(path), nfs_client_plan.automount_file(path)):
                if file in self.seen.units:
                    node_io.write_file(file, self.seen.units[file])
            systemd.daemon_reload()
            raise ServiceError(
                f"{path} can't be unmounted: {done.err.strip()}. Nothing else was changed there. Mend: run again when "
                f"nobody uses it (fuser --mount {path}), or with -e lab_max_disruption=drain"
            )
        self._await(path)

    def _await(self, path: str) -> None:
        """Wait until systemd knows that nothing is mounted, or it would not start an automount unit."""
        unit = systemd.unit_of_path(path, "mount")
        deadline = time.monotonic() + SETTLE
        while systemd.observe_services([unit])[unit].active and time.monotonic() < deadline:
            time.sleep(0.1)


def run_systemctl(*words: str) -> None:
    """Run systemctl (ServiceError)."""
    done = node_io.run(["systemctl", *words])
    if done.rc:
        raise ServiceError(f"systemctl {' '.join(words)} failed: {done.err.strip()}")


def states(observed: Observed, wanted: Wanted, check_mode: bool) -> dict[str, str]:
    """Return the state of each directory; those that wait for their first use are opened, but for check mode."""
    answered = dict(observed.answers)
    waiting = [path for path in wanted.shares if nfs_client_plan.armed(observed.places[path])]
    mounts = observed.mounts
    if waiting and not check_mode:
        answered.update(mount_observe.answers(waiting, MOUNTING))
        mounts = read_mounts(node_io.read_text("/proc/self/mountinfo") or "")
    found = {}
    for path in wanted.shares:
        answer = answered.get(path, "")
        if answer in (STALE, SILENT):
            found[path] = answer
        elif answer:
            found[path] = f"failed: {reason(path) or answer}"
        else:
            found[path] = "mounted" if path in mounts and mounts[path]["fstype"].startswith("nfs") else "waiting"
    return found


def reason(path: str) -> str:
    """Return what mount(8) said last of a directory, "" for nothing."""
    unit = systemd.unit_of_path(path, "mount")
    log = node_io.run(["journalctl", "--no-pager", "--lines=20", "--output=cat", f"--unit={unit}"]).out
    words = [line for line in log.splitlines() if line.startswith("mount")]
    return words[-1] if words else ""


def measure(wanted: Wanted) -> dict[str, Way]:
    """Return the way to each server that directories are mounted from, all at the same time."""
    servers = {share.server.name: share.server for share in wanted.shares.values() if share.server.address}
    with ThreadPoolExecutor(max_workers=max(len(servers), 1)) as pool:
        return dict(zip(servers, pool.map(way, servers.values())))


def way(server: Server) -> Way:
    """Return the way to a server, as the kernel would send a packet now."""
    found = re.search(r"\bdev (\S+)", node_io.run(["ip", "route", "get", server.address]).out)
    device = found.group(1) if found else ""
    speed, mtu = _number(f"/sys/class/net/{device}/speed"), _number(f"/sys/class/net/{device}/mtu")
    passes = path_mtu.biggest(server.address, nfs_client_plan.packets(mtu)) if mtu else 0
    return Way(device, speed or None, mtu, passes)


def _number(path: str) -> int:
    text = (node_io.read_text(path) or "").strip()
    return int(text) if text.isdigit() else 0


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)

    def extra(observed: Observed) -> dict[str, Any]:
        found = states(observed, host.wanted, module.check_mode)
        ways = measure(host.wanted)
        told = nfs_client_plan.notes(observed, host.wanted, ways, found)
        for note in told:
            module.warn(note)
        return {
            "directories": found,
            "network": {name: vars(one) for name, one in ways.items()},
            "notes": told,
            "packages": host.unneeded,
        }

    try:
        host = Host(nfs_client_plan.read_wanted(module.params, mount_observe.kernel_version(ROOT)))
        plan = nfs_client_plan.plan
        converge(module, host.look, lambda seen: plan(seen, host.wanted), host.apply, extra, False, "nfs_client")
    except ValueError as error:
        module.fail_json(msg=f"{nfs_client_plan.RECORD} is damaged ({error}). Mend: remove it and run again.")
    except (OSError, ClientError, ServiceError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
