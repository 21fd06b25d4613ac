# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation that the modules of this collection share."""

from __future__ import annotations


class ModuleDocFragment:
    """The option and the attributes of a module that plans before it changes."""

    DOCUMENTATION = r"""
options:
  max_disruption:
    description:
      - The most that this call may disrupt. Changes of a higher class are returned in RV(ignore:pending) and not made.
      - V(drain) and V(reboot) can end a running job.
    type: str
    choices: [none, reload, restart, drain, reboot]
    default: restart
attributes:
  check_mode:
    description: Plans the same changes and makes none.
    support: full
  diff_mode:
    description: Shows every change; secrets are never part of it.
    support: full
  platform:
    description: The systems that the module runs on.
    support: full
    platforms: linux
"""
