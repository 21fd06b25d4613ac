# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for a lab with a tailnet: keys, tags, routes, names, the control server, and preferences."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any, Union

from ansible_collections.labrack.infra.plugins.module_utils import tailscale_prefs
from ansible_collections.labrack.infra.plugins.module_utils.finding import HIDDEN, Finding, Inventory, shown
from ansible_collections.labrack.infra.plugins.module_utils.rules_gpu import URL
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_plan import (
    TAILNET,
    key_problem,
    same_server,
)
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_prefs import EXIT_ROUTES, PrefsError

#: Variables of the policy, which tell what tags there are.
POLICY = ("tailnet_policy_groups", "tailnet_policy_extra", "tailnet_policy_tag_prefix")
FUNCTIONS = ("head", "worker", "interactive")
#: Flags that have a variable of their own.
OWN = {
    "hostname",
    "auto-update",
    "advertise-routes",
    "ssh",
    "accept-routes",
    "accept-dns",
    "advertise-exit-node",
    "exit-node",
    "shields-up",
    "operator",
}
#: What a default begins with that is an expression.
DEFAULT = "{{"
#: What stands in documents in place of a key.
EXAMPLE_KEY = re.compile(r"[th]skey-[a-z]+-(x+|\.{3}|…|<.*|your.*|example.*|123.*|abc.*|change.*)(-.*)?", re.IGNORECASE)

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


def has_tailnet(variables: Mapping[str, Any]) -> bool:
    """Return whether a host of these variables is to be in a tailnet."""
    return isinstance(variables.get("lab_tailnet"), str) and variables.get("tailscale_state", "present") == "present"


def check_tailnet(variables: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong in one host's variables, without asking the node."""
    if not has_tailnet(variables):
        return
    server = str(variables.get("tailscale_login_server") or "")
    yield from _check_server(variables["lab_tailnet"], server)
    yield from _check_tags(variables)
    yield from _check_key(variables, server)
    yield from _check_routes(variables)
    name = str(variables.get("tailscale_hostname") or "")
    if name and not name.startswith(DEFAULT) and tailscale_prefs.sanitize(name) != name:
        yield Finding(
            ("tailscale_hostname",),
            shown(name),
            "Tailscale would change it",
            f"write {tailscale_prefs.sanitize(name) or 'a name of letters, digits and hyphens'}",
        )
    yield from _check_prefs(variables)
    if variables.get("tailscale_install") == "archive" and not variables.get("tailscale_archive_sha256"):
        mend = "take it from the file's own .sha256 beside the archive"
        yield Finding(("tailscale_archive_sha256",), "", "the archive is not taken without its checksum", mend)


def _check_server(tailnet: str, server: str) -> Iterator[Finding]:
    path = ("tailscale_login_server",)
    if server and not URL.fullmatch(server):
        mend = "write it as https://headscale.lab.example"
        yield Finding(path, shown(server), "not a http or https address", mend)
    elif tailnet == "headscale" and same_server(server, ""):
        problem, mend = "lab_tailnet is headscale, and this is Tailscale's service", "write your headscale's address"
        yield Finding(path, shown(server), problem, mend)
    elif tailnet == "tailscale" and not same_server(server, ""):
        problem, mend = "lab_tailnet is tailscale, whose server is another", "set lab_tailnet to headscale, or empty it"
        yield Finding(path, shown(server), problem, mend)


def _check_tags(variables: Mapping[str, Any]) -> Iterator[Finding]:
    known = _known_tags(variables)
    for place, name in enumerate(variables.get("tailscale_tags") or ()):
        path = ("tailscale_tags", place)
        try:
            full = tailscale_prefs.tag(name)
        except PrefsError:
            mend = "begin with a letter, then letters, digits and hyphens"
            yield Finding(path, shown(name), "not a tag", mend)
            continue
        if known and full not in known:
            mend = f"use one of {', '.join(sorted(known))}, or add it to tailnet_policy_extra.tagOwners"
            yield Finding(path, shown(name), "the policy names no owner of it, so no node can have it", mend)


def _known_tags(variables: Mapping[str, Any]) -> set[str]:
    """The tags that the policy knows, none where the inventory has no policy."""
    if not variables.get("tailnet_policy_groups"):
        return set()
    prefix = variables.get("tailnet_policy_tag_prefix") or "lab"
    extra = variables.get("tailnet_policy_extra")
    owners = extra.get("tagOwners") if isinstance(extra, Mapping) else None
    return {f"tag:{prefix}-{function}" for function in FUNCTIONS} | set(owners or ())


def _check_key(variables: Mapping[str, Any], server: str) -> Iterator[Finding]:
    key = str(variables.get("tailscale_auth_key") or "")
    path = ("tailscale_auth_key",)
    if EXAMPLE_KEY.fullmatch(key):
        mend = "make an auth key, and keep it with ansible-vault"
        yield Finding(path, HIDDEN, "a placeholder, which everybody knows", mend)
        return
    from_key = variables.get("tailscale_tags_from_key")
    from_key = variables["lab_tailnet"] == "headscale" if from_key is None else from_key
    problem = key_problem(key, variables.get("tailscale_tags") or (), server, from_key)
    if problem:
        yield Finding(path, HIDDEN, *problem)


def _check_routes(variables: Mapping[str, Any]) -> Iterator[Finding]:
    found: list[tuple[int, Network]] = []
    for place, text in enumerate(variables.get("tailscale_advertise_routes") or ()):
        path = ("tailscale_advertise_routes", place)
        try:
            network = ipaddress.ip_network(tailscale_prefs.route(text))
        except PrefsError as error:
            problem, _mark, mend = str(error).partition(" Mend: ")
            yield Finding(path, shown(text), problem.rstrip(".").partition(" is ")[2] or problem, mend)
            continue
        if str(network) in EXIT_ROUTES:
            problem, mend = "this is every address", "take it out, and set tailscale_advertise_exit_node"
            yield Finding(path, shown(text), problem, mend)
            continue
        if any(_overlap(network, own) for own in TAILNET):
            problem, mend = "it covers addresses of the tailnet itself", "take it out, or advertise less"
            yield Finding(path, shown(text), problem, mend)
        for before, other in found:
            if _overlap(network, other):
                problem, mend = f"it overlaps with {other}, number {before}", "keep the bigger of the two"
                yield Finding(path, shown(text), problem, mend)
        found.append((place, network))


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _check_prefs(variables: Mapping[str, Any]) -> Iterator[Finding]:
    for name, value in (variables.get("tailscale_prefs") or {}).items():
        path = ("tailscale_prefs", str(name))
        if name in OWN:
            mend = f"set tailscale_{str(name).replace('-', '_')}"
            yield Finding(path, shown(value), "this preference has a variable of its own", mend)
            continue
        try:
            tailscale_prefs.normal(str(name), value)
        except PrefsError as error:
            problem, _mark, mend = str(error).partition(". Mend: ")
            yield Finding(path, "", problem, mend)
    if variables.get("tailscale_exit_node") and variables.get("tailscale_advertise_exit_node"):
        problem, mend = "a node that is an exit node can't use one", "keep one of the two"
        yield Finding(("tailscale_exit_node",), shown(variables["tailscale_exit_node"]), problem, mend)


def check_tailnet_hosts(inventory: Inventory) -> Iterator[Finding]:
    """Yield what is wrong between hosts: one name for two, routes that overlap and are not the same."""
    members = {host: variables for host, variables in inventory.hosts.items() if has_tailnet(variables)}
    names: dict[str, str] = {}
    routes: list[tuple[str, Network]] = []
    for host, variables in members.items():
        name = str(variables.get("tailscale_hostname") or "")
        # the role's default is the node's name in the inventory, and reaches this place as its expression
        name = tailscale_prefs.sanitize(host if name.startswith(DEFAULT) else name)
        other = names.setdefault(name, host) if name else host
        if other != host:
            problem, mend = f"also the name of {other}, so Tailscale would add a number", "give each its own"
            yield Finding(("tailscale_hostname",), shown(name), problem, mend, (host,))
        for place, network in _networks(variables):
            for neighbour, theirs in routes:
                # the same network from two nodes is how one stands in for the other
                if neighbour != host and _overlap(network, theirs) and network != theirs:
                    path = ("tailscale_advertise_routes", place)
                    problem = f"it overlaps with {theirs} of {neighbour}"
                    yield Finding(path, str(network), problem, "advertise each address by one network", (host,))
        routes += [(host, network) for _place, network in _networks(variables)]


def _networks(variables: Mapping[str, Any]) -> Iterator[tuple[int, Network]]:
    for place, text in enumerate(variables.get("tailscale_advertise_routes") or ()):
        try:
            network = ipaddress.ip_network(tailscale_prefs.route(text))
        except PrefsError:
            continue
        if str(network) not in EXIT_ROUTES:
            yield place, network


def check_tailnet_facts(host: str, inventory: Inventory) -> Iterator[Finding]:
    """Yield what would send this node's own network over the tailnet: a route to it that another node advertises."""
    variables, facts = inventory.hosts[host], inventory.facts[host]
    if not has_tailnet(variables) or not variables.get("tailscale_accept_routes"):
        return
    address = (facts.get("addresses") or {}).get("default_ipv4")
    for other, theirs in inventory.hosts.items():
        if other == host or not has_tailnet(theirs) or not address:
            continue
        for _place, network in _networks(theirs):
            if ipaddress.ip_address(address) in network:
                yield Finding(
                    ("tailscale_accept_routes",),
                    "true",
                    f"{other} advertises {network}, in which {host} stands itself ({address}), so its own network "
                    "would go through the tailnet",
                    f"set it to false on {host}",
                )
