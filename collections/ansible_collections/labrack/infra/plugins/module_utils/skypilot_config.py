# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What SkyPilot's files say: the server's configuration and its machines, and the client's file in a home.

Pure, no Ansible import. Facts about SkyPilot are those of 0.14.1: ``sky/users/rbac.py`` (roles),
``sky/utils/schemas.py`` (configuration), ``sky/provision/slurm/utils.py`` (who submits).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import skypilot_keys
from ansible_collections.labrack.infra.plugins.module_utils.headscale_plan import config_text, merged
from ansible_collections.labrack.infra.plugins.module_utils.k3s_plan import accelerator
from ansible_collections.labrack.infra.plugins.module_utils.kubeconfig import read_block_yaml

USER = "skypilot"
HOME = skypilot_keys.HOME
#: Who runs nginx in front of the server: nobody else's web pages share it, as what it may reach trusts it.
PROXY_USER = "skypilot-proxy"
#: Whom the server logs in as on this host, to submit to Slurm; the server's own user has no shell.
SUBMIT_USER = "skypilot-submit"
SUBMIT_HOME = "/var/lib/skypilot-submit"
OPT = "/opt/skypilot"
CURRENT = f"{OPT}/current"
#: In an environment that is whole, and in one that was tried and did not come up.
COMPLETE, FAILED = ".complete", ".failed"
ETC = "/etc/labrack/skypilot"
CONFIG = f"{HOME}/.sky/config.yaml"
KUBECONFIG = f"{HOME}/.kube/config"
#: As k3s writes it on its server.
K3S_KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"
SLURM_CONFIG = f"{HOME}/.slurm/config"
POOLS = f"{HOME}/.sky/ssh_node_pools.yaml"
PLUGINS = f"{HOME}/.sky/plugins.yaml"
KEY = f"{HOME}/.ssh/id_ed25519"
AUTHORIZED = f"{SUBMIT_HOME}/.ssh/authorized_keys"
SUDOERS = "/etc/sudoers.d/labrack-skypilot"
CA, CA_KEY = f"{ETC}/ca.crt", f"{ETC}/ca.key"
CERT, CERT_KEY = f"{ETC}/server.crt", f"{ETC}/server.key"
ADMIN_PASSWORD = f"{ETC}/admin-password"
POLICY_SETTINGS = "/etc/labrack/skypilot_policy.json"
WRAPPER = "/usr/local/bin/sky"
PEOPLE = skypilot_keys.PEOPLE
RECORD = "/var/lib/labrack/skypilot-role.json"
BACKUPS = f"{HOME}/before-upgrade"
#: Where a system looks for authorities of its own, and what makes it read them.
TRUST: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "debian": (
        "/usr/local/share/ca-certificates/labrack-skypilot.crt",
        ("update-ca-certificates",),
        "/etc/ssl/certs/ca-certificates.crt",
    ),
    "redhat": (
        "/etc/pki/ca-trust/source/anchors/labrack-skypilot.crt",
        ("update-ca-trust",),
        "/etc/pki/tls/certs/ca-bundle.crt",
    ),
}
PORT, QUEUE_PORT = 46580, 50011
ADMIN = "labrack"
ROLES = ("user", "admin", "viewer")
#: The suffix of a researcher's account for the command: SkyPilot gives no two accounts the same name.
CLI = "-cli"
SERVER, PROXY, GUARD_SERVICE = "skypilot", "skypilot-proxy", "labrack-skypilot-guard"
#: Oldest and newest Python for which SkyPilot 0.14 has all its packages.
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
LEAST_MEMORY_MIB = 4096
CLOUDS = ("aws", "gcp", "azure", "lambda", "runpod", "nebius", "vast", "oci", "cudo", "paperspace", "fluidstack")
#: passlib's bcrypt, sha256_crypt, sha512_crypt and apr_md5_crypt, which the server reads.
HASH = re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}|\$[56]\$\S{40,}|\$apr1\$\S{20,}")
CONTEXT = re.compile(r"(?!ssh-)[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
#: sky/provision/slurm/utils.py, _SLURM_USER_PATTERN
UNIX_NAME = re.compile(r"[a-z_][a-z0-9_.-]*")

#: sky/users/rbac.py, _DEFAULT_USER_BLOCKLIST: a list in the configuration replaces it, and does not add to it.
DEFAULT_BLOCKLIST = (
    ("/workspaces/config", "POST"),
    ("/workspaces/update", "POST"),
    ("/workspaces/create", "POST"),
    ("/workspaces/delete", "POST"),
    ("/workspaces/batch_add_users", "POST"),
    ("/workspaces/batch_remove_users", "POST"),
    ("/users/delete", "POST"),
    ("/users/create", "POST"),
    ("/users/batch_update", "POST"),
    ("/users/import", "POST"),
    ("/users/export", "GET"),
    ("/debug/dump_create", "POST"),
    ("/debug/dump_download/:filename", "GET"),
)
#: What a researcher could do beyond it: change machines, and take another's name, by which jobs are given a Unix user.
BLOCKLIST = (
    *DEFAULT_BLOCKLIST,
    ("/workspaces/config", "GET"),
    ("/ssh_node_pools", "GET"),
    ("/ssh_node_pools", "POST"),
    ("/ssh_node_pools/keys", "GET"),
    ("/ssh_node_pools/keys", "POST"),
    ("/ssh_node_pools/deploy", "POST"),
    ("/ssh_node_pools/down", "POST"),
    ("/ssh_node_pools/:pool_name", "DELETE"),
    ("/ssh_node_pools/:pool_name/deploy", "POST"),
    ("/ssh_node_pools/:pool_name/down", "POST"),
    ("/local_up", "POST"),
    ("/local_down", "POST"),
    ("/kubernetes_label_gpus", "POST"),
    ("/users/service-account-tokens", "POST"),
    ("/users/service-account-tokens/rotate", "POST"),
    ("/users/service-account-tokens/delete", "POST"),
    ("/users/service-account-tokens/update-role", "POST"),
)


class SkypilotError(ValueError):
    """A wish that can't be, or a state that can't be worked on; the message says cause and mend."""


@dataclass(frozen=True)
class Person:
    """Somebody who uses the server: name on the server and as Unix user, role, and a hash where the inventory has one.

    ``uid`` and ``gid`` are None for who has no number in the inventory.
    """

    name: str
    role: str = "user"
    password_hash: str = field(default="", repr=False)
    uid: int | None = None
    gid: int | None = None


# --- what is wanted --------------------------------------------------------------------------------------------------


def version_of(requirements: str) -> str:
    """Return SkyPilot's version in a requirements file; SkypilotError where none is pinned."""
    found = re.search(r"^skypilot(?:\[[^\]]*\])?==(\d+\.\d+\.\d+\S*)", requirements, re.MULTILINE)
    if not found:
        raise SkypilotError(
            "skypilot_requirements pins no skypilot. Mend: leave it out, or export a file with `uv pip compile "
            "--generate-hashes` from skypilot[kubernetes,ssh,slurm,server]==VERSION"
        )
    if "--hash=sha256:" not in requirements:
        raise SkypilotError("skypilot_requirements has no hashes. Mend: export it with --generate-hashes")
    return found[1]


def people_of(users: Sequence[Mapping[str, Any]], lab_users: Sequence[Mapping[str, Any]]) -> tuple[Person, ...]:
    """Return who uses the server: everybody of the lab as ``user``, but for what ``skypilot_users`` says of them."""
    said = {str(user["name"]): user for user in users}
    numbers = {
        str(user["name"]): (user.get("uid"), user.get("gid") or user.get("uid"))
        for user in lab_users
        if user.get("state", "present") == "present"
    }
    found = []
    for name in [*numbers, *(name for name in said if name not in numbers)]:
        one = said.get(name, {})
        role = str(one.get("role") or "user")
        uid, gid = numbers.get(name, (None, None))
        if role != "none":
            found.append(Person(name, role, str(one.get("password_hash") or ""), uid, gid))
    return tuple(found)


def config_tree(
    infra: Mapping[str, Any],
    people: Sequence[Person],
    mounts: Sequence[Mapping[str, Any]],
    policy: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the server's configuration; what the inventory's ``settings`` say goes over all of it."""
    kubernetes, slurm = infra.get("kubernetes") or (), infra.get("slurm") or ()
    pools, clouds = infra.get("ssh_pools") or {}, infra.get("clouds") or ()
    allowed = [name for name, some in (("kubernetes", kubernetes), ("ssh", pools), ("slurm", slurm)) if some]
    tree: dict[str, Any] = {
        "allowed_clouds": allowed + [str(cloud["name"]) for cloud in clouds],
        "jobs": {"controller": {"consolidation_mode": False}},
        "serve": {"controller": {"consolidation_mode": False}},
        "rbac": {
            "default_role": "user",
            "restrict_config_to_admins": True,
            "roles": {
                "user": {"permissions": {"blocklist": [{"path": path, "method": how} for path, how in BLOCKLIST]}}
            },
        },
    }
    # each one's own folder is the policy's to mount, which knows who launches
    common = [mount for mount in mounts if "{user}" not in str(mount["path"])]
    pods = {"pod_config": pod_config(common)} if common else {}
    if kubernetes:
        tree["kubernetes"] = {
            "allowed_contexts": [str(one["name"]) for one in kubernetes],
            # a launch waits for its turn
            "provision_timeout": -1,
            "set_pod_resource_limits": True,
            **pods,
            "context_configs": {
                str(one["name"]): {
                    **({"namespace": one["namespace"]} if one.get("namespace") else {}),
                    **(one.get("settings") or {}),
                }
                for one in kubernetes
                if one.get("namespace") or one.get("settings")
            },
        }
        if not tree["kubernetes"]["context_configs"]:
            del tree["kubernetes"]["context_configs"]
    if pools:
        tree["ssh"] = {"allowed_node_pools": sorted(str(name) for name in pools), "provision_timeout": -1, **pods}
    if slurm:
        names = {person.name + suffix: person.name for person in people for suffix in ("", CLI)}
        tree["slurm"] = {
            "allowed_clusters": [str(one["name"]) for one in slurm],
            "provision_timeout": -1,
            "cluster_configs": {
                str(one["name"]): merged(
                    {
                        "submit_as_user": bool(one.get("submit_as_user", True)),
                        "username_map": names,
                        "sbatch_options": {"time": str(one.get("time") or "24:00:00")},
                    },
                    one.get("settings") or {},
                )
                for one in slurm
            },
        }
    if policy:
        tree["admin_policy"] = policy
    return merged(tree, settings)


def pod_config(mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the pods' part that mounts the lab's directories from the machine that runs them."""
    volumes, points = [], []
    for place, mount in enumerate(mounts):
        path = str(mount["path"])
        name = f"lab-{place}"
        volumes.append({"name": name, "hostPath": {"path": path, "type": "Directory"}})
        points.append({"name": name, "mountPath": path, "readOnly": bool(mount.get("read_only", False))})
    return {"spec": {"containers": [{"volumeMounts": points}], "volumes": volumes}}


def policy_settings(people: Sequence[Person], mounts: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> str:
    """Return the settings of the admin policy: who is which Unix user, and what may be mounted."""
    uids = {
        person.name + suffix: [person.uid, person.gid]
        for person in people
        if person.uid is not None
        for suffix in ("", CLI)
    }
    places = [
        {
            "path": str(one["path"]),
            "read_only": bool(one.get("read_only", False)),
            **({"mount": True} if "{user}" in str(one["path"]) else {}),
        }
        for one in mounts
    ]
    tree = merged({"uids": uids, "mounts": places}, more)
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"


def slurm_config(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return ``~/.slurm/config``, in OpenSSH's syntax: one host is one cluster."""
    blocks = ["# Written by labrack.\n"]
    for one in entries:
        blocks.append(
            f"Host {one['name']}\n"
            f"    HostName {one.get('host') or '127.0.0.1'}\n"
            f"    User {one.get('user') or SUBMIT_USER}\n"
            f"    Port {one.get('port') or 22}\n"
            f"    IdentityFile {KEY}\n"
            "    IdentitiesOnly yes\n"
        )
    return "".join(blocks)


def sudoers_text(people: Sequence[Person]) -> str:
    """Return the rule by which the server's submitter becomes each researcher, and nobody else."""
    names = ", ".join(sorted(person.name for person in people))
    return (
        "# Written by labrack: SkyPilot submits to Slurm as the researcher who launched.\n"
        f"Defaults:{SUBMIT_USER} !requiretty\n"
        f"{SUBMIT_USER} ALL=({names}) NOPASSWD: /bin/bash --login -c *\n"
    )


def example_tasks(folder: str, gpus: Sequence[Mapping[str, Any]], slurm: bool) -> dict[str, str]:
    """Return task files by path, one for each type of the lab's GPUs (``a100_80gb``, ``rtx_4090``) and one without.

    ``gpus`` are those of node_facts. Slurm knows a card by its GRES type, Kubernetes by the label that k3s' role gives.
    """
    if not folder:
        return {}
    body = (
        "# Start it with: sky launch -c NAME {path}\n"
        "# End it with: sky down NAME\n"
        "resources:\n"
        "{resources}"
        "run: |\n"
        "  hostname\n"
        "{command}"
        "  ls /data /checkpoints\n"
    )
    made = {}
    types = {str(gpu["slurm_type"]): gpu for gpu in gpus if gpu.get("slurm_type")}
    for kind, gpu in sorted(types.items()):
        name = (kind if slurm else accelerator(str(gpu["name"]), int(gpu.get("memory_mib") or 0))).upper()
        path = f"{folder}/{kind}.yaml"
        made[path] = body.format(path=path, resources=f"  accelerators: {name}:1\n", command="  nvidia-smi\n")
    path = f"{folder}/cpu.yaml"
    made[path] = body.format(path=path, resources="  cpus: 2+\n", command="")
    return made


def infrastructure(infra: Mapping[str, Any], kubeconfig: str) -> dict[str, str]:
    """Return the files that say which machines there are, by path; ``kubeconfig`` is the merged one."""
    files = {}
    if infra.get("kubernetes"):
        files[KUBECONFIG] = kubeconfig
    if infra.get("slurm"):
        files[SLURM_CONFIG] = slurm_config(infra["slurm"])
    if infra.get("ssh_pools"):
        files[POOLS] = config_text(infra["ssh_pools"])
    for cloud in infra.get("clouds") or ():
        for name, text in (cloud.get("files") or {}).items():
            files[f"{HOME}/{name}"] = str(text) if str(text).endswith("\n") else f"{text}\n"
    return files


# --- kubeconfig ------------------------------------------------------------------------------------------------------


def kubeconfig_of(entry: Mapping[str, Any]) -> str:
    """Return the path of an entry's kubeconfig, k3s's own unless the entry has one."""
    return str(entry.get("kubeconfig") or K3S_KUBECONFIG)


def context_of(entry: Mapping[str, Any]) -> str:
    """Return the name of an entry's context in its kubeconfig, k3s's own unless the entry has one."""
    return str(entry.get("context") or "default")


def merged_kubeconfig(entries: Sequence[Mapping[str, Any]], texts: Mapping[str, str | None]) -> str:
    """Return one kubeconfig with each entry's context under the inventory's name; SkypilotError where one is missing.

    ``texts`` are the files' by path.
    """
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [],
        "contexts": [],
        "users": [],
    }
    for place, one in enumerate(entries):
        path, wanted, name = kubeconfig_of(one), context_of(one), str(one["name"])
        where = f"skypilot_infra.kubernetes.{place}"
        text = texts.get(path)
        if text is None:
            raise SkypilotError(
                f"{where}.kubeconfig is {path}, and there is no such file on the host. Mend: bring Kubernetes up "
                "first, or correct the path"
            )
        try:
            tree = read_block_yaml(text)
            known = {str(entry["name"]): entry["context"] for entry in tree["contexts"]}
            clusters = {str(entry["name"]): entry["cluster"] for entry in tree["clusters"]}
            users = {str(entry["name"]): entry["user"] for entry in tree["users"]}
        except (ValueError, KeyError, TypeError) as error:
            raise SkypilotError(f"{where}.kubeconfig {path} can't be read: {error!r}. Mend: write it as JSON") from None
        if wanted not in known:
            raise SkypilotError(
                f"{where}.context is {wanted}, and {path} has only {', '.join(sorted(known)) or 'none'}. Mend: name "
                "one of these"
            )
        context = known[wanted]
        try:
            cluster, user = clusters[str(context["cluster"])], users[str(context["user"])]
        except (KeyError, TypeError):
            raise SkypilotError(f"{path}: the context {wanted} names a cluster or user that isn't there") from None
        made["clusters"].append({"name": name, "cluster": cluster})
        made["users"].append({"name": name, "user": user})
        made["contexts"].append({"name": name, "context": {**context, "cluster": name, "user": name}})
    if entries:
        made["current-context"] = str(entries[0]["name"])
    # JSON is YAML
    return json.dumps(made, indent=2) + "\n"


# --- the client's file -----------------------------------------------------------------------------------------------


def with_server(text: str | None, endpoint: str, token: str) -> str:
    """Return a client's configuration with the lab's server in it; all else in it is the user's and stays.

    SkypilotError for one whose ``api_server`` is written in a form that can't be replaced line by line.
    """
    lines = (text or "").splitlines()
    if any(re.match(r"[\[{]|(\"api_server\"|'api_server')\s*:|api_server\s*:\s*[^\s#]", line) for line in lines):
        raise SkypilotError(
            "~/.sky/config.yaml is not written in blocks, so the lab's server can't be put into it. Mend: write "
            "api_server as a block of lines, or remove the file"
        )
    kept, inside = [], False
    for line in lines:
        if re.match(r"api_server\s*:", line):
            inside = True
        elif inside and line.strip() and not line.startswith((" ", "\t", "#")):
            inside = False
        if not inside:
            kept.append(line)
    block = ["api_server:", f"  endpoint: {json.dumps(endpoint)}"]
    if token:
        block.append(f"  service_account_token: {json.dumps(token)}")
    while kept and not kept[-1].strip():
        kept.pop()
    return "\n".join([*kept, *block]) + "\n"


def without_server(text: str) -> str:
    """Return a client's configuration without its server."""
    cut = with_server(text, "", "").splitlines()
    return "".join(f"{line}\n" for line in cut[:-2])


def server_in(text: str | None) -> tuple[str, str]:
    """Return endpoint and token in a client's configuration, as far as they are written as :func:`with_server` does."""
    found = {"endpoint": "", "service_account_token": ""}
    inside = False
    for line in (text or "").splitlines():
        if re.match(r"api_server\s*:\s*(#.*)?$", line):
            inside = True
        elif line.strip() and not line.startswith((" ", "\t", "#")):
            inside = False
        match = re.match(r"\s+(endpoint|service_account_token):\s*[\"']?([^\"'#\s]+)", line) if inside else None
        if match:
            found[match[1]] = match[2]
    return found["endpoint"], found["service_account_token"]


def digest(token: str) -> str:
    """Return the SHA-256 by which a token is known, "" for none."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""
