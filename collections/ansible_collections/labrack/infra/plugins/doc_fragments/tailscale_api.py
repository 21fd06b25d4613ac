# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation that the modules share that ask Tailscale's API."""

from __future__ import annotations


class ModuleDocFragment:
    """How to reach one tailnet behind Tailscale's API."""

    DOCUMENTATION = r"""
options:
  tailnet:
    description:
      - The tailnet's name in the API; V(-) is that of the key.
    type: str
    default: "-"
  api_url:
    description:
      - Where the API is.
    type: str
    default: https://api.tailscale.com
  api_key:
    description:
      - An API access token, which lives 90 days at most. An OAuth client does not expire.
    type: str
  oauth_client_id:
    description:
      - The id of an OAuth client.
    type: str
  oauth_client_secret:
    description:
      - Its secret, C(tskey-client-…).
    type: str
"""
