# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The biggest packet that comes unbroken from this node to another, measured. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.labrack.infra.plugins.module_utils import node_io

#: Bytes of the headers that ping(8) adds: ICMP, and IPv4 or IPv6.
HEADERS, HEADERS_IPV6 = 28, 48


def passes(size: int, peer: str) -> bool:
    """Return whether a packet of ``size`` bytes, headers included, comes to an address unbroken."""
    payload = size - (HEADERS_IPV6 if ":" in peer else HEADERS)
    options = ["-n", "-q", "-c", "2", "-i", "0.2", "-W", "2", "-M", "do", "-s", str(payload)]
    return node_io.run(["ping", *options, peer], timeout=20.0).rc == 0


def biggest(peer: str, sizes: Iterable[int]) -> int:
    """Return the biggest of these sizes in bytes that comes through, 0 for none.

    The smallest is tried second, so that a peer that answers to no ping costs two tries and not all.
    """
    ordered = sorted(sizes, reverse=True)
    if passes(ordered[0], peer):
        return ordered[0]
    if len(ordered) < 2 or not passes(ordered[-1], peer):
        return 0
    return next((size for size in ordered[1:-1] if passes(size, peer)), ordered[-1])
