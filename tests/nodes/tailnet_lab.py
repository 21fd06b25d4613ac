# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lab with its own tailnet, and no way out: real tailscaled on every machine, real headscale on the head.

``admin`` is a machine of ada's, which the lab looks after; ``student`` is cyd's laptop, which joins by hand.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from labrack.testnode import node
from labrack.testnode.node import LabSpec, NodeSpec
from labrack.testnode.tailnet import equip
from tests.mirror import serve, tailnet
from tests.nodes.conftest import KEEP, LAB, SYSTEM
from tests.nodes.harness import INVENTORIES, ROOT, Closet, bring_up, until
from tests.tailnet.binaries import TAILSCALE, NoBinariesError

#: Machines of the lab, and laptops with the user of the tailnet that each is of.
MACHINES = ("head", "node1", "desk", "admin")
LAPTOPS = {"student": "cyd"}
CONTROL, DOMAIN = "control.lab.test", "tailnet.test"


@dataclass(frozen=True)
class TailnetLab:
    """The lab: its machines and the laptop as :class:`Closet`."""

    closet: Closet

    def status(self, host: str) -> dict[str, Any]:
        """What ``tailscale status --json`` says on a host."""
        answer: dict[str, Any] = json.loads(self.closet.root(host, "tailscale status --json"))
        return answer

    def prefs(self, host: str) -> dict[str, Any]:
        """What ``tailscale get --json`` says on a host."""
        answer: dict[str, Any] = json.loads(self.closet.root(host, "tailscale get --json"))
        return answer

    def headscale(self, words: str) -> Any:
        """What a command of headscale answers on the head."""
        return json.loads(self.closet.root("head", f"headscale {words} --output json") or "null")

    def number(self, host: str) -> str:
        """A node's number on the control server."""
        nodes = self.headscale("nodes list") or []
        return next(str(one["id"]) for one in nodes if one["given_name"] == host)

    def key(self, name: str) -> str:
        """A pre-auth key of the inventory."""
        made = json.loads(self.closet.root("head", "cat /var/lib/labrack/headscale/keys.json"))
        return str(made[name]["key"])

    def address(self, host: str) -> str:
        """A host's IPv4 address in the tailnet."""
        return str(self.status(host)["Self"]["TailscaleIPs"][0])

    def reaches(self, host: str, target: str, port: int = 22) -> bool:
        """Whether a TCP connection from a host to another's MagicDNS name or address comes about."""
        command = f"timeout 5 bash -c {shlex.quote(f'exec 3<>/dev/tcp/{target}/{port}')}"
        return "open" in self.closet.root(host, f"{command} 2>/dev/null && echo open", check=False)

    def join(self, host: str, key: str) -> None:
        """Join a host as its owner would, the key by a file."""
        script = (
            "umask 077; cat >/run/key; "
            f"tailscale up --login-server https://{CONTROL} --auth-key file:/run/key --timeout 30s; rm /run/key"
        )
        node.exec(self.closet.lab.node(host), ["sh", "-c", script], input=key)

    def knowing(self, hosts: Mapping[str, Mapping[str, Any]]) -> Closet:
        """The machines with further variables of single hosts."""
        more = self.closet.lab.state_dir / "more.json"
        more.write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")
        return replace(self.closet, inventory=(*self.closet.inventory, more))

    def package(self, host: str) -> str:
        """The version of a host's package, and its name again if it is held."""
        return " ".join(
            self.closet.root(host, "dpkg-query -W -f '${Version}\n' tailscale; apt-mark showhold tailscale").split()
        )

    @contextmanager
    def untouched(self, *hosts: str) -> Iterator[None]:
        """See to it that no program, package, setting or record changes on these hosts meanwhile."""
        for host in hosts:
            self.closet.root(host, "touch /run/mark")
        yield
        places = "/etc /usr /var/lib/dpkg /var/lib/labrack"
        for host in hosts:
            found = self.closet.root(host, f"find {places} -newer /run/mark 2>/dev/null", check=False)
            assert found == "", f"{host}: {found}"

    def joined(self, host: str) -> None:
        """Wait until a host runs in the tailnet."""
        until(f"{host} is in the tailnet", lambda: self.status(host)["BackendState"], lambda seen: seen == "Running")


@contextmanager
def tailnet_lab(suffix: str) -> Iterator[TailnetLab]:
    """Make the lab, its machines bare, and take it away afterwards. Skips where the programs can't be had."""
    try:
        tree = tailnet.ensure_tree(print)
    except NoBinariesError as error:
        pytest.skip(f"no tailscaled and headscale: {error}")
    name = f"{LAB}-{suffix}"
    state = ROOT / ".cache/labs" / name
    there = KEEP and node.exists(name)
    if not there:
        _remove(name, state)
    nodes = tuple(NodeSpec(host, SYSTEM, tun=True) for host in (*MACHINES, *LAPTOPS))
    try:
        if not there:
            node.up(LabSpec(name, nodes, isolated=True), state, print)
        lab = node.load(state)
        serve.down(name)
        mirror = serve.up(name, print, tree)
        closet = bring_up(name, nodes, INVENTORIES / "tailnet", state, tailnet.variables(mirror, tree, SYSTEM))
        _leave_out_laptops(state / "hosts.json")
        if not there:
            equip(lab, "head", CONTROL)
            _give_laptops_tailscale(closet)
        yield TailnetLab(closet)
    finally:
        if not KEEP:
            _remove(name, state)


def _leave_out_laptops(inventory: Path) -> None:
    """Take the people's laptops out of an inventory, to which they don't belong."""
    document = json.loads(inventory.read_text(encoding="utf-8"))
    for laptop in LAPTOPS:
        del document["all"]["hosts"][laptop]
    inventory.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _give_laptops_tailscale(closet: Closet) -> None:
    fetch = (
        "cd /root && python3 -c \"import urllib.request as w; w.urlretrieve('{url}', 'tailscale.deb')\" && "
        "apt-get install -q -y --no-install-recommends ./tailscale.deb"
    )
    architecture = tailnet.debian_architecture()
    url = f"{serve.URL}/stable/debian/pool/tailscale_{TAILSCALE}_{architecture}.deb"
    for laptop in LAPTOPS:
        closet.root(laptop, fetch.format(url=url))


def _remove(name: str, state: Path) -> None:
    node.down(name, state, print)
    shutil.rmtree(state, ignore_errors=True)
