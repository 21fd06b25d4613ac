# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Nodes that join, leave, or take no jobs for a while, as ``labrack node`` does it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ansible_collections.labrack.infra.plugins.module_utils.slurm_nodes import ADMIN_TAG, TAG

from . import asking, front_end, host_keys, inventory_edit, lab, shell
from .inventory_edit import Edit
from .shell import UserError


def join(
    inventory: Sequence[Path],
    name: str,
    address: str,
    groups: Sequence[str],
    fingerprints: Collection[str],
    accept: bool,
) -> list[Edit]:
    """Return the edits that add a node, its host key with them where the inventory pins those.

    None where it is listed already. UserError where it has no address, or nobody vouches for its key.
    """
    there = lab.load(inventory).hosts.get(name)
    if there is None and not address:
        raise UserError(f"{name} is not in the inventory. Say where ssh reaches it, with --address.")
    if there is not None:
        if address and host_keys.address(address).host != str(there.get("ansible_host", name)):
            raise UserError(f"{name} is in the inventory already, with the address {there.get('ansible_host', name)}.")
        return inventory_edit.add_node(inventory, name, {}, groups)
    where = host_keys.address(address)
    variables = {"ansible_host": where.host, **({"ansible_port": where.port} if where.port != 22 else {})}
    edits = inventory_edit.add_node(inventory, name, variables, groups)
    pinned = next((path / host_keys.FILE for path in inventory if (path / host_keys.FILE).is_file()), None)
    if pinned is None:
        return edits
    before = pinned.read_text(encoding="utf-8")
    if any(line.split()[:1] == [where.pattern] for line in before.splitlines()):
        return edits
    keys = host_keys.scan(where)
    if fingerprints:
        keys = host_keys.chosen(name, keys, fingerprints)
    elif not accept:
        show_keys(name, keys)
        if not asking.yes("Are these its own?", "--fingerprint (or --accept-host-key)"):
            raise UserError("Nothing was changed.")
    after = before + ("" if not before or before.endswith("\n") else "\n") + host_keys.text({where: keys})
    return [*edits, Edit(pinned, before, after)]


def show_keys(name: str, keys: Sequence[host_keys.HostKey]) -> None:
    """Print the fingerprints of a machine's host keys beside the answer."""
    console = shell.console(stderr=True)
    for key in keys:
        console.print(f"  {name:<12} {key.kind:<20} {key.fingerprint}", markup=False, soft_wrap=True)


def leave(inventory: Sequence[Path], name: str) -> list[Edit]:
    """Return the edits that take a node out; UserError where it is no node."""
    found = lab.load(inventory)
    if name not in found.hosts:
        raise UserError(f"{name} is not in the inventory; it has {', '.join(found.hosts)}.")
    variables = found.hosts[name]
    edits = inventory_edit.remove_node(inventory, name)
    pinned = next((path / host_keys.FILE for path in inventory if (path / host_keys.FILE).is_file()), None)
    if pinned is not None:
        pattern = host_keys.Address(
            str(variables.get("ansible_host", name)), int(variables.get("ansible_port") or 22)
        ).pattern
        before = pinned.read_text(encoding="utf-8")
        lines = [line for line in before.splitlines(keepends=True) if line.split()[:1] != [pattern]]
        edits.append(Edit(pinned, before, "".join(lines)))
    return edits


def left(inventory: Sequence[Path], name: str) -> list[str]:
    """Return words on what still speaks of a node that left."""
    folders = [path if path.is_dir() else path.parent for path in inventory]
    files = [file for folder in folders for file in (folder / "host_vars").glob(f"{name}*") if file.stem == name]
    return [f"{front_end.lab_path(file)} is not read any more; delete it when you don't need it." for file in files]


def see_worker(found: lab.Lab, name: str) -> None:
    """UserError where a host is no worker of Slurm, which the playbook would refuse."""
    see_workers(found, [name], "Name its groups with --group, such as --group slurm_worker")


def see_workers(found: lab.Lab, names: Collection[str], mend: str = "") -> None:
    """UserError where one of these is no worker of Slurm."""
    workers = found.groups.get("slurm_worker", ())
    wrong = [name for name in names if name not in workers]
    if wrong:
        mend = mend or f"Name some of {', '.join(workers) or 'none'}"
        raise UserError(f"{', '.join(wrong)}: not in the group slurm_worker. {mend}.")


def drain(inventory: Sequence[Path], play: front_end.Play) -> tuple[list[str], bool]:
    """Drain or resume nodes. Return words for each, and whether all are as wanted."""
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        file = Path(folder) / "drain.json"
        variables = {**play.variables, "node_drain_file": str(file)}
        front_end.run(inventory, [replace(play, variables=variables)])
        found = json.loads(file.read_text(encoding="utf-8"))
    lines, done = [], True
    resumed = play.variables.get("node_state") == "resumed"
    for name in play.variables["node"].split(","):
        node = found["nodes"].get(name)
        if node is None:
            lines.append(f"{name}: Slurm does not know it yet. Run `labrack node join {name}`.")
            done = False
        elif not resumed:
            hand = "" if node["reason"].startswith((TAG, ADMIN_TAG)) else " already"
            lines.append(f"{name}: drained{hand} ({node['reason']}); `labrack node resume {name}` gives it back")
        elif node["drained"]:
            lines.append(
                f"{name}: stays drained, as labrack did not drain it: {node['reason']}. When that is mended: "
                f"scontrol update nodename={name} state=resume"
            )
            done = False
        else:
            lines.append(f"{name}: takes jobs")
    lines += [f"still runs: job {job}" for job in found["jobs"]]
    return lines, done
