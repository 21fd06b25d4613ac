# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rules for the lab's own control server: one host, an address outside its nodes' domain, certificates, keys, sums."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import headscale_plan
from ansible_collections.labrack.infra.plugins.module_utils.finding import Finding, Inventory, shown

GROUP = "headscale"
SUM = re.compile(r"[0-9a-fA-F]{64}")


def check_headscale(inventory: Inventory) -> Iterator[Finding]:
    """Yield what is wrong in the variables of the hosts in the group ``headscale``."""
    hosts = inventory.members(GROUP)
    if len(hosts) > 1:
        problem, mend = "more than one host is in it, and a tailnet has one control server", "keep one"
        yield Finding(("group", GROUP), ", ".join(hosts), problem, mend)
    for host in hosts:
        variables = inventory.hosts[host]
        if variables.get("headscale_state", "present") == "present":
            for one in _check_host(variables):
                yield Finding(one.path, one.value, one.problem, one.mend, (host,))


def _check_host(variables: Mapping[str, Any]) -> Iterator[Finding]:
    for one in headscale_plan.problems(parameters(variables)):
        yield Finding((one.key, *one.path), one.value, one.what, one.mend)
    version = str(variables.get("headscale_version", ""))
    if version and not re.fullmatch(r"\d+\.\d+\.\d+([-.]\w+)*", version):
        yield Finding(("headscale_version",), shown(version), "not a version of headscale", 'write it as "0.29.2"')
    sums = variables.get("headscale_artifact_sha256") or {}
    for name, digest in sums.items():
        if not re.fullmatch(r"(deb|binary)-(amd64|arm64)", str(name)):
            mend = "use deb-amd64, deb-arm64, binary-amd64 or binary-arm64"
            yield Finding(("headscale_artifact_sha256", str(name)), "", "no such file in a release", mend)
        elif not isinstance(digest, str) or not SUM.fullmatch(digest):
            mend = "take it from the release's checksums.txt; it has 64 hexadecimal digits"
            yield Finding(("headscale_artifact_sha256", str(name)), shown(digest), "not a SHA-256", mend)
    kind = {"package": "deb", "binary": "binary"}.get(str(variables.get("headscale_install")), "deb")
    if not any(str(name).startswith(kind) for name in sums):
        problem = f"it has no checksum of a {'package' if kind == 'deb' else 'binary'}, so nothing could be installed"
        mend = f"add {kind}-amd64 or {kind}-arm64 from the release's checksums.txt"
        yield Finding(("headscale_artifact_sha256",), "", problem, mend)


def parameters(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the role's variables as the module's parameters, those that the problems are about."""
    names = ("url", "base_domain", "tls", "tls_cert", "tls_key", "derp", "users", "preauth_keys")
    empty: dict[str, Any] = {"tls": "certificate", "derp": "embedded", "users": [], "preauth_keys": []}
    return {name: variables.get(f"headscale_{name}", empty.get(name, "")) for name in names}
