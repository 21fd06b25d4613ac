# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keep a tailnet's policy as the inventory has it, on Tailscale's service or on headscale."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tailnet_policy
short_description: Who may reach what in a tailnet, from the inventory
version_added: 0.1.0
description:
  - Makes groups, tag owners, grants, SSH rules, auto-approvers and tests from the lab's groups and nodes, joins them
    with the site's own O(extra), lets the control server check the whole, and puts it in force.
  - Admins reach everything. Researchers reach the head and interactive nodes, and workers from the head, where the
    worker's sshd asks Slurm for a job of theirs. Students reach interactive nodes.
  - A policy that somebody changed since labrack wrote it is not overwritten unless O(overwrite) says so; nor one that
    changes between reading and writing.
  - A policy that would cut the admins off the lab's ssh is refused.
  - Run it on the controller for Tailscale's service, and on the control server for headscale.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
  - labrack.infra.tailscale_api
options:
  server:
    description:
      - The control server.
    type: str
    choices: [tailscale, headscale]
    default: tailscale
  groups:
    description:
      - People by group. C(admins) must have a member; C(researchers) and C(students) get their rules; others are
        defined for rules in O(extra).
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The group's name, without C(group:).
        type: str
        required: true
      members:
        description: Logins at the identity provider, C(ada@example.com); C(ada@) for a user of headscale.
        type: list
        elements: str
        default: []
  nodes:
    description:
      - The machines of the lab.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      tags:
        description: Its tags, with or without C(tag:).
        type: list
        elements: str
        default: []
      routes:
        description: Networks to which it is the way. Its tags may take them without approval.
        type: list
        elements: str
        default: []
      exit_node:
        description: Whether it is a way to the internet for others.
        type: bool
        default: false
  accounts:
    description:
      - The account on the machines of a login, where it is not what stands before the C(@).
    type: dict
    default: {}
  tag_prefix:
    description:
      - What the tags of head, workers and interactive nodes begin with.
    type: str
    default: lab
  direct_workers:
    description:
      - Whether researchers reach a worker's ssh from their own devices, not only from the head.
    type: bool
    default: false
  extra:
    description:
      - The site's own part of the policy, in the policy file's form. Its lists are added to the lab's, its mappings
        joined with them; a value that says otherwise than the lab's is refused.
    type: dict
    default: {}
  overwrite:
    description:
      - Whether to replace a policy that labrack did not write, or that was changed since.
    type: bool
    default: false
  path:
    description:
      - headscale's policy file. Empty for a policy in headscale's database.
    type: str
    default: /etc/headscale/policy.hujson
"""

EXAMPLES = r"""
- name: Keep the policy on Tailscale's service
  labrack.infra.tailnet_policy:
    groups:
      - {name: admins, members: [grace@lab.example]}
      - {name: students, members: [cy@lab.example]}
    oauth_client_id: "{{ tailnet_policy_oauth_client_id }}"
    oauth_client_secret: "{{ tailnet_policy_oauth_client_secret }}"
  delegate_to: localhost
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
policy:
  description: The policy, as HuJSON.
  returned: success
  type: str
"""

from dataclasses import dataclass
from typing import Any, Union

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import (
    headscale,
    hujson,
    node_io,
    tailnet_devices,
    tailnet_policy,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.headscale import HeadscaleError
from ansible_collections.labrack.infra.plugins.module_utils.tailnet_policy import Lab
from ansible_collections.labrack.infra.plugins.module_utils.tailscale_api import OPTIONS, Api, ApiError

ARGUMENT_SPEC: dict[str, Any] = {
    "server": {"type": "str", "choices": ["tailscale", "headscale"], "default": "tailscale"},
    "groups": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "members": {"type": "list", "elements": "str", "default": []},
        },
    },
    "nodes": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "tags": {"type": "list", "elements": "str", "default": []},
            "routes": {"type": "list", "elements": "str", "default": []},
            "exit_node": {"type": "bool", "default": False},
        },
    },
    "accounts": {"type": "dict", "default": {}},
    "tag_prefix": {"type": "str", "default": "lab"},
    "direct_workers": {"type": "bool", "default": False},
    "extra": {"type": "dict", "default": {}},
    "overwrite": {"type": "bool", "default": False},
    "path": {"type": "str", "default": "/etc/headscale/policy.hujson"},
    **OPTIONS,
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}
#: With this in the place of an ETag, Tailscale replaces its own untouched first policy and no other.
UNTOUCHED = '"ts-default"'


class PolicyError(RuntimeError):
    """A policy that is not put in force; the message says why, with the mend."""


@dataclass(frozen=True)
class Present:
    """The policy in force: its text, what it says (None for none), and the mark by which a change is noticed."""

    text: str
    policy: dict[str, Any] | None
    mark: str = ""


class Tailscale:
    """Tailscale's service."""

    disruption = "none"
    tests_are_here = False

    def __init__(self, module: AnsibleModule) -> None:
        """Raise ApiError for a login that can't be one."""
        self._module = module
        self._api = Api.of(module.params, "policy_file")

    def read(self) -> Present:
        """Return the policy in force."""
        text, etag = self._api.read_policy()
        return Present(text, parsed(text, "the policy on Tailscale's service"), etag)

    def wanted(self, policy: dict[str, Any]) -> dict[str, Any]:
        """Return what of a policy is kept on the server: all of it."""
        return policy

    def check(self, policy: dict[str, Any]) -> None:
        """Let the server check the policy (PolicyError); it warns of what it finds odd."""
        errors, warnings = self._api.validate_policy(tailnet_policy.render(policy))
        for warning in warnings:
            self._module.warn(f"Tailscale on the policy: {warning}")
        if errors:
            raise PolicyError(f"Tailscale refuses the policy: {'; '.join(errors)}")

    def mark(self, present: Present, taken_over: bool) -> str:
        """Return what the policy in force must be marked with to be replaced."""
        ours = present.policy is not None and tailnet_policy.whose(present.text, present.policy) == "labrack"
        return present.mark if ours or taken_over else UNTOUCHED

    def foreign(self, present: Present) -> str:
        """Return why a policy without our stamp is not replaced: never, since the server itself knows its first."""
        return ""

    def write(self, text: str, present: Present, taken_over: bool) -> None:
        """Replace the policy, unless somebody else just did (PolicyError)."""
        mark = self.mark(present, taken_over)
        try:
            self._api.write_policy(text, mark)
        except ApiError as error:
            if error.status == 412 and mark == UNTOUCHED:
                raise PolicyError(foreign("the policy on Tailscale's service")) from None
            raise


class Headscale:
    """headscale, whose policy is a file beside it or in its database."""

    disruption = "reload"
    #: the server holds no tests, so they are run each time
    tests_are_here = True

    def __init__(self, module: AnsibleModule) -> None:
        """Raise HeadscaleError where headscale is not installed, or does not run and has no policy file."""
        self._path = module.params["path"]
        self._where = f"the policy file {self._path}" if self._path else "the policy in headscale's database"
        self._runs = headscale.runs()
        if not self._runs and not self._path:
            raise HeadscaleError("headscale does not run, so its database has no policy to read. Mend: start it")

    def read(self) -> Present:
        """Return the policy in force; a file that says nothing is none."""
        text = (node_io.read_text(self._path) or "") if self._path else headscale.policy()
        policy = parsed(text, self._where) if text.strip() else None
        return Present(text, policy or None)

    def wanted(self, policy: dict[str, Any]) -> dict[str, Any]:
        """Return the policy without tests: with them, one node that leaves would keep the next policy from loading."""
        return {name: value for name, value in policy.items() if name not in tailnet_policy.TESTS}

    def check(self, policy: dict[str, Any]) -> None:
        """Let headscale check the policy and run those tests that there are nodes for (PolicyError)."""
        devices = tailnet_devices.of_headscale(headscale.nodes()) if self._runs else []
        there = {name for device in devices for name in (*device.tags, *device.logins)}
        found = headscale.check(tailnet_policy.render(tailnet_policy.testable(policy, there)), self._runs)
        if found:
            raise PolicyError(f"headscale refuses the policy: {found}")

    def foreign(self, present: Present) -> str:
        """Return why a policy without our stamp is not replaced."""
        return foreign(self._where)

    def write(self, text: str, present: Present, taken_over: bool) -> None:
        """Replace the policy and put it in force, unless somebody else just did (PolicyError)."""
        if self.read().text != present.text:
            raise PolicyError(f"somebody changed {self._where} in between; nothing was overwritten. Mend: run again")
        if not self._path:
            headscale.set_policy(text)
            return
        there = node_io.observe_file(self._path)
        group = "headscale" if node_io.run(["getent", "group", "headscale"]).rc == 0 else "root"
        mode, owner, group = (there.mode, there.owner, there.group) if there else ("0640", "root", group)
        node_io.write_file(self._path, node_io.FileState(text, mode, owner, group))
        if self._runs:
            done = node_io.run(["systemctl", "reload", "headscale"])
            if done.rc:
                raise PolicyError(f"headscale did not read its policy again: {(done.err or done.out).strip()}")


Server = Union[Tailscale, Headscale]


def parsed(text: str, where: str) -> dict[str, Any]:
    """Return what a policy in force says (PolicyError)."""
    try:
        policy = hujson.loads(text)
    except ValueError as error:
        raise PolicyError(f"{where} can't be read ({error}). Mend: mend it there, or move it away") from None
    if not isinstance(policy, dict):
        raise PolicyError(f"{where} is no mapping. Mend: mend it there, or move it away")
    return policy


def foreign(where: str) -> str:
    """Return that a policy is not ours, and the mend."""
    return (
        f"{where} was not written by labrack, so it stays. Mend: look at the difference with --check --diff, take what "
        f"you want to keep into tailnet_policy_extra, and run once with -e tailnet_policy_overwrite=true"
    )


def make(lab: Lab, extra: dict[str, Any]) -> dict[str, Any]:
    """Return the policy of a lab with the site's fragment (PolicyError names everything that is wrong)."""
    wrong = tailnet_policy.problems(lab)
    if wrong:
        raise PolicyError("; ".join(wrong))
    policy, conflicts = tailnet_policy.merge(tailnet_policy.build(lab), extra)
    wrong = conflicts or tailnet_policy.unknown_names(policy)
    if wrong:
        raise PolicyError("; ".join(wrong))
    return policy


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        run(module)
    except (PolicyError, ApiError, HeadscaleError, OSError) as error:
        module.fail_json(msg=str(error))


def run(module: AnsibleModule) -> None:
    """Observe, plan, apply; raises what main tells the reader."""
    overwrite = module.params["overwrite"]
    lab = Lab.read(module.params)
    whole = make(lab, module.params["extra"])
    server: Server = Headscale(module) if module.params["server"] == "headscale" else Tailscale(module)
    wanted = server.wanted(whole)
    seen = Present("", None)
    checked = False

    def look() -> Present:
        nonlocal seen, checked
        seen = server.read()
        if seen.policy != wanted:
            judge(seen)
        if not checked and (seen.policy != wanted or server.tests_are_here):
            server.check(whole)
            checked = True
        return seen

    def judge(present: Present) -> None:
        cut_off = tailnet_policy.lock_outs(whole, lab, present.policy)
        if cut_off:
            raise PolicyError(f"this policy would lock admins out, so it is not put in force: {'; '.join(cut_off)}")
        if present.policy is not None and not overwrite:
            refuse_changed(module, server, present, wanted)

    def plan(present: Present) -> list[Change]:
        if present.policy == wanted:
            return []
        sections = tailnet_policy.differing(present.policy or {}, wanted)
        before, after = tailnet_policy.shown(present.policy), tailnet_policy.shown(wanted)
        return [Change("tailnet policy", f"changes: {', '.join(sections)}", server.disruption, before, after)]

    converge(
        module,
        look,
        plan,
        lambda _changes: server.write(tailnet_policy.render(wanted), seen, overwrite),
        lambda _present: {"policy": tailnet_policy.render(wanted)},
    )


def refuse_changed(module: AnsibleModule, server: Server, present: Present, wanted: dict[str, Any]) -> None:
    """Raise PolicyError for a policy that somebody else made; in check mode warn, so that the diff can be read."""
    whose = tailnet_policy.whose(present.text, present.policy or {})
    sections = ", ".join(tailnet_policy.differing(present.policy or {}, wanted))
    said = ""
    if whose == "edited":
        said = (
            f"the policy was changed since labrack wrote it, and differs from the inventory in {sections}; nothing was "
            f"overwritten. Mend: look at the difference with --check --diff, take what shall stay into the inventory "
            f"or tailnet_policy_extra, and run once with -e tailnet_policy_overwrite=true"
        )
    elif whose == "foreign":
        said = server.foreign(present)
        if module.check_mode and not said:
            module.warn(
                "the policy was not written by labrack. A run replaces it only if it is the one that Tailscale gave "
                "the tailnet at first and nobody changed since"
            )
    if said and module.check_mode:
        module.warn(f"a run would stop here: {said}")
    elif said:
        raise PolicyError(said)


if __name__ == "__main__":
    main()
