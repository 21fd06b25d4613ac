# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real tailnet for the tests: Tailscale's and headscale's own programs, and the servers that they talk to."""
