# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a lab of test nodes needs for a tailnet of its own: a control server with name and certificate, no way out."""

from __future__ import annotations

from collections.abc import Mapping

from . import node
from .node import Lab, Node

#: Where the control server's certificate and key are on its node.
CERTIFICATES = "/etc/labrack-test"


def equip(lab: Lab, head: str, control: str) -> None:
    """Give every node the name ``control`` of the server on ``head`` and its authority; the head its certificate.

    The certificate is made anew, and its authority's key dropped. Raises :class:`.docker.LabError`.
    """
    authority = _certify(lab.node(head), control)
    for member in lab.nodes:
        node.exec(member, ["tee", "/usr/local/share/ca-certificates/lab.crt"], input=authority)
        # a tailscaled that may not tell its maker of itself, though nothing leaves the lab anyway
        script = (
            f"update-ca-certificates >/dev/null 2>&1 && {_known(control, lab.node(head).address)} && "
            "mkdir -p /etc/systemd/system/tailscaled.service.d && printf '[Service]\\n"
            "Environment=TS_NO_LOGS_NO_SUPPORT=true\\n' >/etc/systemd/system/tailscaled.service.d/test.conf && "
            # apt would wait ten seconds for a name service that has no way out either
            "echo 'Acquire::EnableSrvRecords \"false\";' >/etc/apt/apt.conf.d/90test"
        )
        node.exec(member, ["sh", "-c", script])


def _certify(head: Node, name: str) -> str:
    """Make the certificate of a name on a node, and return that of the authority which signed it.

    The authority does not say what its key is for, which Tailscale takes and Python from 3.13 on would not.
    """
    script = f"""
umask 077; mkdir -p {CERTIFICATES}; cd {CERTIFICATES}
{{
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj '/CN=test authority' \\
    -keyout ca.key -out ca.crt
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout tls.key -out tls.csr
printf 'subjectAltName=DNS:{name}\\nauthorityKeyIdentifier=keyid\\n' >tls.ext
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile tls.ext -out tls.crt
}} >/dev/null
rm ca.key
cat ca.crt
"""
    return node.exec(head, ["sh", "-ec", script]).stdout


def cut_off(lab: Lab, names: Mapping[str, str]) -> None:
    """Take a running lab's ways out away, as :attr:`.node.LabSpec.isolated` does from the start; now and after a boot.

    No default route, and no name server: ``names`` are addresses of what the nodes still have to find by name.
    """
    script = " && ".join(
        [
            "touch /etc/labrack-testnode/isolated",
            "{ ip route del default 2>/dev/null; ip -6 route del default 2>/dev/null; true; }",
            # one that doesn't answer would let everybody wait for it
            "echo '# no name server' >/etc/resolv.conf",
            *(_known(name, address) for name, address in names.items()),
        ]
    )
    for member in lab.nodes:
        node.exec(member, ["sh", "-c", script])


def _known(name: str, address: str) -> str:
    """The shell command after which a name is in the hosts file, with this address alone."""
    return f"sed -i '/ {name}$/d' /etc/hosts && echo '{address} {name}' >>/etc/hosts"
