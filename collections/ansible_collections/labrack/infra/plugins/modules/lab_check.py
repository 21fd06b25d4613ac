# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action ``labrack.infra.lab_check``."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_check
short_description: Find what is wrong in an inventory before any node is touched
version_added: 0.1.0
description:
  - Holds the variables of every host of the inventory, also of those outside C(--limit), to the roles' argument
    specifications, and the inventory as a whole to the rules that span hosts.
  - Fails with all findings at once, each with the file and line, the key, the value, what is wrong, and the mend.
  - Runs on the controller alone. Run it once per play, with C(run_once).
author:
  - labrack contributors (@labrack)
options:
  stage:
    description:
      - V(inventory) looks at the inventory alone, V(facts) holds it against the facts of M(labrack.infra.node_facts),
        such as a UID that belongs to somebody else on one node.
      - V(facts) also chooses numbers for those in C(lab_users) who have no C(uid), free on all nodes, and refuses to
        where a node has no facts.
    type: str
    choices: [inventory, facts]
    default: inventory
attributes:
  action:
    description: This is an action that has no module on the node.
    support: full
  check_mode:
    description: Changes nothing in any mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  platform:
    description: The systems that the action runs on.
    support: full
    platforms: posix
"""

EXAMPLES = r"""
- name: Check the inventory
  labrack.infra.lab_check:
    stage: inventory
  run_once: true
"""

RETURN = r"""
people:
  description:
    - C(users) is C(lab_users) with all numbers, where an entry came without one. C(registry) and C(text) are the file
      that keeps those numbers and its new content, where it has to be written.
  returned: O(stage=facts)
  type: dict
msg:
  description: What is wrong, a line for each finding, or how many hosts are well.
  returned: always
  type: str
"""
