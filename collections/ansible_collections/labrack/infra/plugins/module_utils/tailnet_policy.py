# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tailnet's policy from the lab's groups and nodes: who may reach what, and who may log in as whom.

Pure. What follows from the three groups:

- ``admins`` reach everything, and own the tags.
- ``researchers`` reach ssh of the head and of interactive nodes. They reach a worker's ssh from the head alone, or from
  anywhere with ``direct_workers``; either way the worker's own sshd lets in only whom ``pam_slurm_adopt`` finds a job
  of. So no rule gives them Tailscale SSH on a worker: it answers in the place of sshd and asks no PAM module of sshd.
- ``students`` reach ssh of interactive nodes. Such a node reaches all of the head but its ssh, and no worker.
- Tailscale SSH opens to everybody but admins only the account that is theirs: there are no keys that could tell them
  apart.

The format is that of https://tailscale.com/kb/1337/policy-syntax and of headscale 0.29 (``hscontrol/policy/v2``).
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import hujson

ADMINS, RESEARCHERS, STUDENTS = "admins", "researchers", "students"
KNOWN_GROUPS = (ADMINS, RESEARCHERS, STUDENTS)
#: Sections in the order in which they are written; others come before the tests.
SECTIONS = ("groups", "tagOwners", "grants", "acls", "ssh", "autoApprovers")
TESTS = ("tests", "sshTests")
SPELLINGS = (
    *SECTIONS,
    *TESTS,
    "hosts",
    "ipsets",
    "nodeAttrs",
    "postures",
    "defaultSrcPosture",
    "derpMap",
    "disableIPv4",
    "randomizeClientPort",
)
SSH = "tcp:22"
#: What an interactive node may reach on the head: all but ssh, or it would be a student's way to it.
ALL_BUT_SSH = ("tcp:1-21", "tcp:23-65535", "udp:*", "icmp:*")
HEADER = """\
// Kept by labrack, from the inventory's tailnet_policy_* variables. Make changes there: what is
// changed here is found and not overwritten.
"""
STAMP = re.compile(r"^// labrack sha256: ([0-9a-f]{64})\s*$", re.MULTILINE)
COMMENTS = {
    "groups": "People, by what they may do.",
    "tagOwners": "Who may give a machine its tag.",
    "grants": "Who reaches what. What is not granted is refused.",
    "ssh": "Who may log in by Tailscale SSH, and as whom.",
    "autoApprovers": "Whose routes need no approval.",
    "tests": "What must hold, or the server refuses the policy.",
}
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_ALL_PORTS = (0, 65535)


@dataclass(frozen=True)
class Node:
    """A machine of the inventory: its tags, with ``tag:``, the routes it offers, and whether it is an exit node."""

    name: str
    tags: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    exit_node: bool = False


@dataclass(frozen=True)
class Lab:
    """What the policy is made from.

    ``groups``: logins by group name. ``accounts``: the account of a login on the machines, where it is not what stands
    before its ``@``. ``prefix``: that of the tags of head, workers and interactive nodes.
    """

    groups: Mapping[str, tuple[str, ...]]
    nodes: tuple[Node, ...] = ()
    accounts: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "lab"
    direct_workers: bool = False

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> Lab:
        """Return the lab in a module's ``groups``, ``nodes``, ``accounts``, ``tag_prefix`` and ``direct_workers``."""
        nodes = tuple(
            Node(
                node["name"],
                tuple(full_tag(tag) for tag in node.get("tags") or ()),
                tuple(node.get("routes") or ()),
                bool(node.get("exit_node")),
            )
            for node in params.get("nodes") or ()
        )
        groups: dict[str, tuple[str, ...]] = {}
        for group in params["groups"]:
            members = {*groups.get(group["name"], ()), *(group.get("members") or ())}
            groups[group["name"]] = tuple(sorted(members))
        return cls(
            groups,
            nodes,
            params.get("accounts") or {},
            params.get("tag_prefix") or "lab",
            bool(params.get("direct_workers")),
        )

    @property
    def head(self) -> str:
        """Return the tag of the head."""
        return f"tag:{self.prefix}-head"

    @property
    def worker(self) -> str:
        """Return the tag of workers."""
        return f"tag:{self.prefix}-worker"

    @property
    def interactive(self) -> str:
        """Return the tag of interactive nodes."""
        return f"tag:{self.prefix}-interactive"

    @property
    def tags(self) -> tuple[str, ...]:
        """Return every tag of the lab: those of the three roles and what nodes have beside them, in order."""
        return tuple(sorted({self.head, self.interactive, self.worker, *(tag for n in self.nodes for tag in n.tags)}))

    @property
    def admins(self) -> tuple[str, ...]:
        """Return the logins of the admins."""
        return self.groups.get(ADMINS, ())

    def beside(self, tags: Iterable[str]) -> set[str]:
        """Return these tags and those that a node has beside one of them: who reaches it by one reaches it by all."""
        return {*tags, *(tag for node in self.nodes if {*node.tags} & {*tags} for tag in node.tags)}

    def account(self, login: str) -> str:
        """Return the account of a login on the machines."""
        return self.accounts.get(login) or login.partition("@")[0]

    def reach(self, login: str) -> tuple[str, ...]:
        """Return the tags of the three roles whose ssh a login reaches from its own devices, in order."""
        reached: set[str] = set()
        if login in self.groups.get(STUDENTS, ()):
            reached.add(self.interactive)
        if login in self.groups.get(RESEARCHERS, ()):
            reached |= {self.head, self.interactive, *([self.worker] if self.direct_workers else [])}
        if login in self.admins:
            reached |= {self.head, self.interactive, self.worker}
        return tuple(sorted(reached))


def full_tag(tag: str) -> str:
    """Return a tag with its ``tag:``."""
    return tag if tag.startswith("tag:") else f"tag:{tag}"


def problems(lab: Lab) -> list[str]:
    """Return what is wrong in the inventory's groups and nodes, each with its mend."""
    found = []
    if not lab.admins:
        found.append(
            f"tailnet_policy_groups: the group {ADMINS} has no member, so nobody could reach or mend the lab. "
            f"Mend: list the admins' logins"
        )
    for name, members in lab.groups.items():
        if not _NAME.fullmatch(name):
            found.append(f"tailnet_policy_groups: {name!r} is no group name. Mend: use lower-case letters, digits, '-'")
        found += [
            f"tailnet_policy_groups: {name}: {member!r} is no login. Mend: write it as the identity provider does, "
            f"{member}@example.com, or {member}@ for a user of headscale"
            for member in members
            if "@" not in member or member.startswith(("@", "group:", "tag:", "autogroup:"))
        ]
    if not _NAME.fullmatch(lab.prefix):
        found.append(f"tailnet_policy_tag_prefix: {lab.prefix!r} begins no tag. Mend: use lower-case letters, digits")
    for node in lab.nodes:
        for tag in node.tags:
            if not re.fullmatch(r"tag:[a-zA-Z][a-zA-Z0-9-]*", tag):
                found.append(f"{node.name}: {tag!r} is no tag. Mend: use letters, digits and '-', a letter first")
        for route in node.routes:
            try:
                ipaddress.ip_network(route)
            except ValueError as error:
                found.append(f"{node.name}: route {route!r}: {error}. Mend: write a network, such as 10.0.0.0/24")
    return found


def build(lab: Lab) -> dict[str, Any]:
    """Return the policy of a lab without :func:`problems`, its lists in a stable order."""
    known = [name for name in KNOWN_GROUPS if name in lab.groups]
    others = sorted(name for name in lab.groups if name not in KNOWN_GROUPS)
    owner = f"group:{ADMINS}"
    policy: dict[str, Any] = {
        "groups": {f"group:{name}": list(lab.groups[name]) for name in (*known, *others)},
        "tagOwners": {tag: [owner] for tag in lab.tags},
        "grants": [
            {"src": [owner], "dst": ["*"], "ip": ["*"]},
            {"src": [lab.head], "dst": [lab.interactive, lab.worker], "ip": ["*"]},
            {"src": [lab.worker], "dst": [lab.head, lab.worker], "ip": ["*"]},
            {"src": [lab.interactive], "dst": [lab.head], "ip": list(ALL_BUT_SSH)},
        ],
        "ssh": [
            {"action": "accept", "src": [owner], "dst": list(lab.tags), "users": ["autogroup:nonroot", "root"]},
        ],
    }
    if RESEARCHERS in lab.groups:
        reached = [lab.head, lab.interactive, *([lab.worker] if lab.direct_workers else [])]
        policy["grants"].append({"src": [f"group:{RESEARCHERS}"], "dst": reached, "ip": [SSH]})
    if STUDENTS in lab.groups:
        policy["grants"].append({"src": [f"group:{STUDENTS}"], "dst": [lab.interactive], "ip": [SSH]})
    for login in _people(lab):
        places = [tag for tag in lab.reach(login) if tag != lab.worker]
        policy["ssh"].append({"action": "accept", "src": [login], "dst": places, "users": [lab.account(login)]})
    approvers = _approvers(lab)
    if approvers:
        policy["autoApprovers"] = approvers
    return {**policy, **_tests(lab)}


def _people(lab: Lab) -> list[str]:
    """Return the logins of researchers and students who are no admins, in order."""
    people = {*lab.groups.get(RESEARCHERS, ()), *lab.groups.get(STUDENTS, ())}
    return sorted(people - set(lab.admins))


def _approvers(lab: Lab) -> dict[str, Any]:
    routes: dict[str, set[str]] = {}
    for node in lab.nodes:
        for route in node.routes:
            routes.setdefault(str(ipaddress.ip_network(route)), set()).update(node.tags)
    exits = sorted({tag for node in lab.nodes if node.exit_node for tag in node.tags})
    found: dict[str, Any] = {}
    if any(routes.values()):
        found["routes"] = {route: sorted(routes[route]) for route in sorted(routes) if routes[route]}
    if exits:
        found["exitNode"] = exits
    return found


def _tests(lab: Lab) -> dict[str, Any]:
    """Return the tests: of all admins, and of one person for each other way of reaching the lab."""
    tests: list[dict[str, Any]]
    roles = (lab.head, lab.interactive, lab.worker)
    # without a protocol, headscale takes UDP and ICMP into account as well
    tests = [{"src": f"group:{ADMINS}", "proto": "tcp", "accept": [f"{tag}:22" for tag in lab.tags]}]
    ssh_tests = [{"src": lab.admins[0], "dst": list(lab.tags), "accept": ["root"]}] if lab.admins else []
    seen: set[tuple[str, ...]] = set()
    for login in _people(lab):
        reached = lab.reach(login)
        if reached in seen:
            continue
        seen.add(reached)
        refused = [tag for tag in roles if tag not in lab.beside(reached)]
        test = {"accept": [f"{tag}:22" for tag in reached], "deny": [f"{tag}:22" for tag in refused]}
        tests.append({"src": login, "proto": "tcp", **{key: value for key, value in test.items() if value}})
        places = [tag for tag in reached if tag != lab.worker]
        ssh_tests.append({"src": login, "dst": places, "accept": [lab.account(login)], "deny": ["root"]})
        closed = [tag for tag in roles if tag not in lab.beside(places)]
        if closed:
            ssh_tests.append({"src": login, "dst": closed, "deny": sorted({lab.account(login), "root"})})
    if not {lab.head, lab.worker} & lab.beside([lab.interactive]):
        tests.append({"src": lab.interactive, "proto": "tcp", "deny": [f"{lab.head}:22", f"{lab.worker}:22"]})
    return {"tests": tests, "sshTests": ssh_tests}


def merge(policy: Mapping[str, Any], fragment: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the policy with a site's fragment, and the conflicts: lists grow, mappings are joined, values must agree.

    A conflict names the key, both values and the mend.
    """
    conflicts: list[str] = []
    for name in fragment:
        close = next((known for known in SPELLINGS if known.lower() == name.lower() and known != name), None)
        if close:
            conflicts.append(f"tailnet_policy_extra: no section {name!r}. Mend: write {close}")
    return _merge(policy, fragment, "", conflicts), conflicts


def _merge(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str, conflicts: list[str]) -> dict[str, Any]:
    merged = dict(ours)
    for name, value in theirs.items():
        place = f"{path}.{name}" if path else name
        if name not in merged:
            merged[name] = value
        elif isinstance(merged[name], list) and isinstance(value, list):
            merged[name] = merged[name] + [item for item in value if item not in merged[name]]
        elif isinstance(merged[name], Mapping) and isinstance(value, Mapping):
            merged[name] = _merge(merged[name], value, place, conflicts)
        elif merged[name] != value:
            conflicts.append(
                f"tailnet_policy_extra: {place} is {json.dumps(value)}, the lab's own policy has "
                f"{json.dumps(merged[name])}. Mend: take it out of the fragment, or write it in the same form"
            )
    return merged


def unknown_names(policy: Mapping[str, Any]) -> list[str]:
    """Return a line for every group and tag that the policy uses and does not define, with the mend."""
    used: dict[str, str] = {}
    for section in ("tagOwners", "grants", "acls", "ssh", "autoApprovers", *TESTS):
        for text in _texts(policy.get(section, ()), section == "tagOwners"):
            # a port may follow, and a tag has no other colon
            name = ":".join(text.split(":")[:2])
            if name.startswith("tag:") or (name.startswith("group:") and "@" not in name):
                used.setdefault(name, section)
    defined = {*policy.get("groups", ()), *policy.get("tagOwners", ())}
    found = []
    for name, section in sorted(used.items()):
        if name not in defined:
            where = "tagOwners" if name.startswith("tag:") else "groups"
            close = difflib.get_close_matches(name, defined, 1, cutoff=0.8)
            mend = f"write {close[0]}" if close else f"define it in tailnet_policy_extra.{where}"
            found.append(f"{section}: {name} is in no {where}. Mend: {mend}")
    return found


def _texts(value: Any, values_only: bool = False) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not values_only and key.startswith(("tag:", "group:")):
                yield key
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def allows(policy: Mapping[str, Any], source: str, target: str, port: int, protocol: str = "tcp") -> bool:
    """Return whether a login or tag surely reaches a tag's port by the policy's grants and ACLs.

    What depends on more than names (a posture, ``via``, an address, a role of Tailscale's) counts as not granted.
    """
    groups = policy.get("groups") or {}
    for grant in policy.get("grants") or ():
        if grant.get("srcPosture") or grant.get("via"):
            continue
        if not _is_source(grant.get("src") or (), source, groups) or not _is_target(grant.get("dst") or (), target):
            continue
        if any(_covers(str(entry), port, protocol) for entry in grant.get("ip") or ()):
            return True
    for rule in policy.get("acls") or ():
        if rule.get("srcPosture") or rule.get("proto", protocol) != protocol:
            continue
        if not _is_source(rule.get("src") or rule.get("users") or (), source, groups):
            continue
        for entry in rule.get("dst") or rule.get("ports") or ():
            host, _colon, ports = str(entry).rpartition(":")
            if _is_target([host], target) and _covers(ports, port, protocol):
                return True
    return False


def _is_source(names: Iterable[str], source: str, groups: Mapping[str, Iterable[str]]) -> bool:
    everybody = "autogroup:tagged" if source.startswith("tag:") else "autogroup:member"
    return any(name in ("*", source, everybody) or source in (groups.get(name) or ()) for name in names)


def _is_target(names: Iterable[str], target: str) -> bool:
    return any(name in ("*", target, "autogroup:tagged") for name in names)


def _covers(entry: str, port: int, protocol: str) -> bool:
    kind, _colon, ports = entry.rpartition(":")
    if kind and kind not in (protocol, "*"):
        return False
    for part in ports.split(","):
        first, _dash, last = part.partition("-")
        try:
            low, high = _ALL_PORTS if part == "*" else (int(first), int(last or first))
        except ValueError:
            continue
        if low <= port <= high:
            return True
    return False


def lock_outs(policy: Mapping[str, Any], lab: Lab, present: Mapping[str, Any] | None) -> list[str]:
    """Return how this policy would cut admins off the lab; empty when it would not.

    ``present`` is the policy in force, None for none: one of its admins must stay, or a slip of the pen in the list
    of admins would lock out everybody who could mend it.
    """
    found = [
        f"{login} would not reach {tag}:22"
        for login in lab.admins
        for tag in lab.tags
        if not allows(policy, login, tag, 22)
    ]
    names = {f"group:{ADMINS}", *lab.admins}
    for test in policy.get("tests") or ():
        for entry in test.get("deny") or ():
            if test.get("src") in names and entry in {f"{tag}:22" for tag in lab.tags}:
                found.append(f"a test demands that {test['src']} does not reach {entry}")
    before = set(((present or {}).get("groups") or {}).get(f"group:{ADMINS}") or ())
    after = set((policy.get("groups") or {}).get(f"group:{ADMINS}") or ())
    if before and not before & after:
        found.append(f"none of the present admins ({', '.join(sorted(before))}) would stay; add the new ones first")
    return found


def ordered(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy with its sections in the order in which they are written."""
    rest = sorted(name for name in policy if name not in (*SECTIONS, *TESTS))
    return {name: policy[name] for name in (*SECTIONS, *rest, *TESTS) if name in policy}


def digest(policy: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a policy says, whatever its comments and the order of its keys."""
    text = json.dumps(policy, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def render(policy: Mapping[str, Any]) -> str:
    """Return the policy as it is sent: HuJSON under a header that holds the digest of what it says."""
    return f"{HEADER}// labrack sha256: {digest(policy)}\n{hujson.dumps(ordered(policy), COMMENTS)}"


def shown(policy: Mapping[str, Any] | None) -> str:
    """Return a policy for a diff, without comments; empty for none."""
    return hujson.dumps(ordered(policy)) if policy is not None else ""


def whose(text: str, policy: Mapping[str, Any]) -> str:
    """Return whose a text is: ``labrack`` as it was written, ``edited`` since then, ``foreign`` without our stamp."""
    stamp = STAMP.search(text)
    if stamp is None:
        return "foreign"
    return "labrack" if stamp.group(1) == digest(policy) else "edited"


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the sections in which two policies differ, in the order in which they are written."""
    both = ordered({**before, **after})
    return [name for name in both if before.get(name) != after.get(name)]


def testable(policy: Mapping[str, Any], with_nodes: Iterable[str]) -> dict[str, Any]:
    """Return the policy with those tests alone that headscale can run: of names that a node has.

    headscale fails a test whose source or destination no node answers to (``hscontrol/policy/v2/test.go``).
    ``with_nodes``: the tags and logins that have one.
    """
    there = set(with_nodes)
    groups = policy.get("groups") or {}
    there |= {name for name, members in groups.items() if there & set(members)}
    kept: dict[str, list[dict[str, Any]]] = {"tests": [], "sshTests": []}
    for test in policy.get("tests") or ():
        lists = {
            key: [entry for entry in test.get(key) or () if _host(entry) in there or not _is_name(entry)]
            for key in ("accept", "deny")
        }
        if _answered(test, there) and any(lists.values()):
            rest = {key: value for key, value in test.items() if key not in lists}
            kept["tests"].append({**rest, **{key: value for key, value in lists.items() if value}})
    for test in policy.get("sshTests") or ():
        places = [entry for entry in test.get("dst") or () if entry in there or not _is_name(entry)]
        if _answered(test, there) and places:
            kept["sshTests"].append({**test, "dst": places})
    rest = {name: value for name, value in policy.items() if name not in TESTS}
    return {**rest, **{name: tests for name, tests in kept.items() if tests}}


def _answered(test: Mapping[str, Any], there: set[str]) -> bool:
    return test.get("src") in there or not _is_name(str(test.get("src")))


def _host(entry: str) -> str:
    return entry.rpartition(":")[0]


def _is_name(text: str) -> bool:
    return text.startswith(("tag:", "group:")) or "@" in text
