# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""labrack: turns a small lab's GPU machines into one shared cluster.

- :mod:`.cli` is the command;
- :mod:`.demo` brings the demo's lab up and down, :mod:`.story` is what its two researchers do there;
- :mod:`.run` runs a playbook, :mod:`.progress` shows what goes on, :mod:`.status` reads and shows a cluster,
  :mod:`.storage` its directories and quotas;
- :mod:`.testnode` makes the test nodes.
"""

#: Equal to the version in pyproject.toml and galaxy.yml.
__version__ = "0.1.0"
