# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make or place MUNGE's key and keep its service running."""

from __future__ import annotations

DOCUMENTATION = r"""
module: munge_key
short_description: Make or place MUNGE's key and keep its service running
version_added: 0.1.0
description:
  - Without O(key), the node's own key is kept, or made when there is none that fits.
  - With O(key), the node gets that key. The service is restarted only when its key changed; no job ends by that.
  - The key is returned so that it can be given to the other nodes. Run the task with C(no_log=true).
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  key:
    description: The key, in base64.
    type: str
  rotate:
    description:
      - How a new key gets in without a moment in which nodes disagree for longer than it takes to restart MUNGE.
      - V(place) makes the next key beside the present one, or takes it over from O(key). V(take) makes it the present
        one.
    type: str
    choices: [place, take]
"""

EXAMPLES = r"""
- name: Make the key once, on the controller
  labrack.infra.munge_key:
  no_log: true
  register: munge_key_of_the_lab

- name: Give it to a worker
  labrack.infra.munge_key:
    key: "{{ munge_key_of_the_lab.key }}"
  no_log: true
"""

RETURN = r"""
key:
  description: The node's key in base64; empty in check mode when there is none yet.
  type: str
  returned: always
changes:
  description: What was or would be changed, without the key.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption).
  type: list
  elements: dict
  returned: always
"""

import base64
import binascii
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import munge
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.slurm_conf import STATE_DIRECTORY
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError, act, observe_services


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "key": {"type": "str", "no_log": True},
            "rotate": {"type": "str", "choices": ["place", "take"]},
            "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
        },
        supports_check_mode=True,
    )
    try:
        given = base64.b64decode(module.params["key"], validate=True) if module.params["key"] else None
    except binascii.Error:
        module.fail_json(msg="key: not base64; hand over what this module returned on the controller")
    if given is not None and not 32 <= len(given) <= munge.KEY_BYTES:
        module.fail_json(msg=f"key: {len(given)} bytes; MUNGE takes 32 to {munge.KEY_BYTES}")
    path = munge.NEXT_KEY_FILE if module.params["rotate"] == "place" else munge.KEY_FILE
    wanted = given
    if module.params["rotate"] == "take":
        wanted = munge.observe_key(munge.NEXT_KEY_FILE)[0]
        if wanted is None:
            module.fail_json(msg=f"{munge.NEXT_KEY_FILE} is missing; run the rotation from its beginning")
    fresh = munge.new_key() if wanted is None else wanted

    def observe() -> munge.MungeState:
        return munge.MungeState(*munge.observe_key(path), observe_services(["munge"])["munge"])

    def plan(state: munge.MungeState) -> list[Change]:
        key = wanted
        if key is None and (state.key == fresh or munge.keep(state.key, _has_state() or path != munge.KEY_FILE)):
            key = state.key
        return munge.plan(state, key, path)

    def apply(changes: list[Change]) -> None:
        for change in changes:
            if change.step[0] == "key":
                munge.write_key(fresh, path)
            elif change.step[0] == "close":
                munge.close_key(path)
            else:
                act(*change.step)
        if module.params["rotate"] == "take":
            os.unlink(munge.NEXT_KEY_FILE)

    try:
        converge(
            module,
            observe,
            plan,
            apply,
            lambda state: {"key": base64.b64encode(state.key or b"").decode()},
            # the next key is nobody's yet
            ledger="munge_key" if path == munge.KEY_FILE else "",
        )
    except (KeyError, ServiceError) as error:
        module.fail_json(msg=f"MUNGE: {error}; is the package munge installed?")


def _has_state() -> bool:
    try:
        return bool(os.listdir(STATE_DIRECTORY))
    except OSError:
        return False


if __name__ == "__main__":
    main()
