# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module ``labrack.infra.drift``: what of a node is no longer as labrack's last run left it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drift
short_description: Find what is no longer as labrack left it
version_added: 0.1.0
description:
  - Every module of the collection that changes a node keeps a list of what it manages there, in
    C(/var/lib/labrack/managed). This one compares the lists with the node, and changes nothing.
  - It looks at what is in the lists and at nothing else. Whether the node is as the inventory has it by now is a
    question for check mode.
  - It needs root, who alone can read the lists.
attributes:
  check_mode:
    description: Only reads, in check mode as well.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  platform:
    description: The systems that the module runs on.
    support: full
    platforms: linux
author:
  - labrack contributors (@labrack)
"""

EXAMPLES = r"""
- name: Find what was changed by hand
  labrack.infra.drift:
  register: found

- name: Show it
  ansible.builtin.debug:
    msg: "{{ found.drift['items'] }}"
"""

RETURN = r"""
drift:
  description: What was looked at, and what differs. Times are ISO 8601 in UTC.
  returned: success
  type: dict
  contains:
    checked:
      description: How many things of each kind were looked at.
      returned: success
      type: dict
    not_checked:
      description: How many could not be looked at, such as preferences where tailscaled does not answer.
      returned: success
      type: dict
    applied:
      description: When each module last ran here, not in check mode; empty where none has.
      returned: success
      type: dict
    full_check:
      description: The oldest of these times, since which all was compared with the inventory.
      returned: success
      type: str
    items:
      description:
        - What differs, each with C(kind), C(name) and C(what); with C(who) and C(when) where the system knows it.
      returned: success
      type: list
      elements: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import drift_observe


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    if os.geteuid():
        module.fail_json(msg="only root can read what labrack manages here. Mend: set ansible_become: true")
    try:
        module.exit_json(changed=False, drift=drift_observe.read())
    except ValueError as error:
        module.fail_json(msg=f"{error}. Mend: remove the file; the next run of its role writes it anew")
    except OSError as error:
        module.fail_json(msg=f"what labrack manages here can't be read: {error}")


if __name__ == "__main__":
    main()
