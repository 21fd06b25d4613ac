"""Wrong inventories are refused with file and line, key, value and mend; right ones are not."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

from ansible_collections.labrack.infra.plugins.module_utils import lab_check, rules_slurm, rules_users
from ansible_collections.labrack.infra.plugins.module_utils.finding import HIDDEN, Finding, Inventory, merged
from ansible_collections.labrack.infra.plugins.plugin_utils import inventory_read, inventory_source

ROLES = Path(__file__).resolve().parents[2] / "roles"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKg3v7x0Zl9d4cXkFtJ0k1cYp3mUqQH2N5oB8rWwT6eS"
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"

LAB: dict[str, Any] = {
    "lab_orchestrator": "slurm",
    "lab_groups": [{"name": "vision", "gid": 3000}],
    "lab_users": [
        {"name": "ada", "uid": 2001, "groups": ["vision"], "keys": [KEY], "sudo": True},
        {"name": "bob", "uid": 2002, "gid": 3000, "keys": ["{{ site_key }}"], "account": "robots"},
    ],
    "site_key": KEY + " bob",
    "slurm_cluster_name": "closet",
    "slurm_accounts": [{"name": "lab"}, {"name": "robots", "parent": "lab", "qos": ["normal"]}],
    "slurm_qos": [{"name": "normal"}, {"name": "interactive", "preempt": ["normal"], "max_wall": "4:00:00"}],
    "slurm_partitions": [
        {"name": "gpu", "default": True, "default_time": "8:00:00", "max_time": "7-00:00:00"},
        {"name": "fast", "nodes": ["worker1"], "default_time": "60", "max_time": "4:00:00", "qos": "interactive"},
    ],
}
HOSTS: dict[str, Any] = {
    "all": {
        "children": {
            "lab_head": {"hosts": {"head": {"ansible_host": "10.0.0.1"}}},
            "lab_workers": {
                "hosts": {
                    "worker1": {"ansible_host": "10.0.0.2", "slurm_gpu_count": 2},
                    "worker2": {"ansible_host": "10.0.0.3"},
                }
            },
            "slurm_controller": {"children": {"lab_head": {}}},
            "slurm_database": {"children": {"lab_head": {}}},
            "slurm_worker": {"children": {"lab_workers": {}}},
        }
    }
}


class Edit:
    """Records ``lab["lab_users"][1]["uid"] = 2001`` as a path and a value; ``None`` takes the key away."""

    def __init__(self, what: str, value: Any) -> None:
        self.path = [int(part) if part.isdigit() else part for part in what.split("/")]
        self.value = value

    def __call__(self, hosts: dict[str, Any], lab: dict[str, Any]) -> None:
        target: Any = hosts if self.path[0] == "all" else lab
        for part in self.path[:-1]:
            target = target[part]
        if self.value is None:
            del target[self.path[-1]]
        elif self.path[-1] == "+":
            target.append(self.value)
        else:
            target[self.path[-1]] = self.value


def write(folder: Path, *edits: Edit) -> Path:
    """Write the right inventory with these edits."""
    hosts, lab = copy.deepcopy(HOSTS), copy.deepcopy(LAB)
    for edit in edits:
        edit(hosts, lab)
    (folder / "group_vars" / "all").mkdir(parents=True)
    (folder / "hosts.yml").write_text(yaml.safe_dump(hosts, sort_keys=False))
    (folder / "group_vars" / "all" / "lab.yml").write_text(yaml.safe_dump(lab, sort_keys=False, width=1000))
    return folder


def read(folder: Path) -> tuple[Inventory, list[Finding], list[inventory_source.Definition]]:
    """Read an inventory as Ansible does."""
    loader = DataLoader()
    manager = InventoryManager(loader, sources=[str(folder)])
    variables = VariableManager(loader, manager)
    hostvars = HostVars(manager, variables, loader)
    known = inventory_source.definitions([str(folder)])
    inventory, findings = inventory_read.read_inventory(
        hostvars, manager.get_groups_dict(), known, inventory_read.role_options(ROLES)
    )
    return inventory, findings, known


def check(folder: Path) -> list[str]:
    """Return the lines of the first stage."""
    inventory, findings, known = read(folder)
    return inventory_read.lines(findings + lab_check.check_inventory(inventory), inventory, known)


USERS = "lab_users"
CHILDREN = "all/children"
CASES = {
    "no head": (
        [Edit(f"{CHILDREN}/lab_head/hosts", {})],
        "group lab_head",
        "",
        "put the machine that people log in to",
    ),
    "no controller": ([Edit(f"{CHILDREN}/slurm_controller", None)], "group slurm_controller", "", "runs slurmctld"),
    "two heads": (
        [Edit(f"{CHILDREN}/lab_head/hosts/head2", {})],
        "group lab_head",
        "head, head2",
        "keep one",
    ),
    "two controllers": (
        [Edit(f"{CHILDREN}/slurm_controller/children/lab_workers", {})],
        "group slurm_controller",
        "head, worker1, worker2",
        "keep one",
    ),
    "two databases": (
        [Edit(f"{CHILDREN}/slurm_database/hosts", {"worker1": {}})],
        "group slurm_database",
        "worker1, head",
        "keep one",
    ),
    "no workers": (
        [Edit(f"{CHILDREN}/slurm_worker", None)],
        "group slurm_worker",
        "",
        "put the machines that run jobs",
    ),
    "a worker outside the lab": (
        [Edit(f"{CHILDREN}/slurm_worker/hosts", {"stray": {}})],
        "group slurm_worker",
        "stray",
        "put stray into one of them",
    ),
    "one machine twice": (
        [Edit(f"{CHILDREN}/lab_workers/hosts/worker2/ansible_host", "10.0.0.2")],
        "ansible_host",
        "10.0.0.2",
        "keep one of worker1 and worker2",
    ),
    "an example's address": (
        [Edit(f"{CHILDREN}/lab_workers/hosts/worker2/ansible_host", "192.0.2.12")],
        "ansible_host",
        "192.0.2.12",
        "put the machine's own there",
    ),
    "one address twice": (
        [
            Edit(f"{CHILDREN}/lab_workers/hosts/worker1/lab_address", "10.1.0.2"),
            Edit(f"{CHILDREN}/lab_workers/hosts/worker2/lab_address", "10.1.0.2"),
        ],
        "lab_address",
        "10.1.0.2",
        "keep one of worker1 and worker2",
    ),
    "a name Slurm can't have": (
        [Edit(f"{CHILDREN}/lab_workers/hosts/gpu_box.lab", {})],
        "host gpu_box.lab",
        "",
        "use a short host name",
    ),
    "unknown orchestrator": ([Edit("lab_orchestrator", "slrum")], "lab_orchestrator", "slrum", "use one of slurm"),
    "orchestrator to come": ([Edit("lab_orchestrator", "rke2")], "lab_orchestrator", "rke2", "use slurm"),
    "unknown disruption": ([Edit("lab_max_disruption", "all")], "lab_max_disruption", "all", "use one of none, reload"),
    "user name twice": ([Edit(f"{USERS}/1/name", "ada")], "lab_users[1].name", "ada", "keep one user of that name"),
    "UID twice": ([Edit(f"{USERS}/1/uid", 2001)], "lab_users[1].uid", "2001", "give every user its own uid"),
    "UID of the system": ([Edit(f"{USERS}/0/uid", 999)], "lab_users[0].uid", "999", "choose one from 1000 to 60000"),
    "UID too high": ([Edit(f"{USERS}/0/uid", 60001)], "lab_users[0].uid", "60001", "choose one from 1000 to 60000"),
    "GID of the system": ([Edit(f"{USERS}/1/gid", 27)], "lab_users[1].gid", "27", "choose one from 1000 to 60000"),
    "GID twice": (
        [Edit("lab_groups/+", {"name": "audio2", "gid": 3000})],
        "lab_groups[1].gid",
        "3000",
        "give every group its own gid",
    ),
    "group name twice": (
        [Edit("lab_groups/+", {"name": "vision", "gid": 3001})],
        "lab_groups[1].name",
        "vision",
        "keep one group of that name",
    ),
    "unknown group": (
        [Edit(f"{USERS}/0/groups/0", "vison")],
        "lab_users[0].groups[0]",
        "vison",
        "add vison to lab_groups",
    ),
    "UID is a group's GID": (
        [Edit(f"{USERS}/0/uid", 3000)],
        "lab_users[0].uid",
        "3000",
        "say gid: 3000 to join vision",
    ),
    "GID is another's own": ([Edit(f"{USERS}/1/gid", 2001)], "lab_users[1].gid", "2001", "add the group to lab_groups"),
    "user named as a group": (
        [Edit(f"{USERS}/0/name", "vision")],
        "lab_users[0].uid",
        "2001",
        "set the user's gid to 3000",
    ),
    "user name with capitals": ([Edit(f"{USERS}/0/name", "Ada L")], "lab_users[0].name", "Ada L", "lower-case letters"),
    "user name of the system": (
        [Edit(f"{USERS}/0/name", "munge")],
        "lab_users[0].name",
        "munge",
        "choose another name",
    ),
    "not a key": ([Edit(f"{USERS}/0/keys/0", "ada's key")], "lab_users[0].keys[0]", "ada's key", "paste the line"),
    "a key cut short": ([Edit(f"{USERS}/0/keys/0", KEY[:60])], "lab_users[0].keys[0]", "ssh-ed25519", "paste the line"),
    "a private key": ([Edit(f"{USERS}/0/keys/0", PRIVATE)], "lab_users[0].keys[0]", HIDDEN, "paste the line"),
    "an example for a key": (
        [Edit(f"{USERS}/0/keys/0", "ssh-ed25519 AAAA...")],
        "lab_users[0].keys[0]",
        "ssh-",
        "paste",
    ),
    "a comment that breaks passwd": ([Edit(f"{USERS}/0/comment", "a:b")], "lab_users[0].comment", "a:b", "colon"),
    "lock-out": (
        [Edit("ansible_user", "ada"), Edit(f"{USERS}/0/keys", [])],
        "lab_users[0].keys",
        "[]",
        "list the keys",
    ),
    "lock-out by a lock": (
        [Edit("ansible_user", "ada"), Edit(f"{USERS}/0/state", "locked"), Edit(f"{USERS}/0/sudo", False)],
        "lab_users[0].state",
        "locked",
        "somebody else",
    ),
    "placeholder password": ([Edit("vault_db_password", "CHANGEME")], "vault_db_password", HIDDEN, "make a secret"),
    "placeholder become password": (
        [Edit(f"{CHILDREN}/lab_head/vars", {"ansible_become_password": "<your password>"})],
        "ansible_become_password",
        HIDDEN,
        "make a secret",
    ),
    "placeholder token deep inside": (
        [Edit("site_tokens", {"inner": [{"api_token": "xxx"}]})],
        "site_tokens.inner[0].api_token",
        HIDDEN,
        "make a secret",
    ),
    "unknown account of a user": (
        [Edit(f"{USERS}/1/account", "robot")],
        "lab_users[1].account",
        "robot",
        "add it to slurm_accounts",
    ),
    "unknown user in a QOS": ([Edit("slurm_qos/0/users", ["eve"])], "slurm_qos[0].users", "", "use one of name"),
    "unknown default account": (
        [Edit("slurm_default_account", "x")],
        "slurm_default_account",
        "x",
        "add it to slurm_acc",
    ),
    "unknown parent": (
        [Edit("slurm_accounts/1/parent", "x")],
        "slurm_accounts[1].parent",
        "x",
        "add it to slurm_accounts",
    ),
    "accounts in a circle": (
        [Edit("slurm_accounts/0/parent", "robots")],
        "slurm_accounts[0].parent",
        "robots",
        "another parent",
    ),
    "account twice": ([Edit("slurm_accounts/1/name", "lab")], "slurm_accounts[1].name", "lab", "keep one of them"),
    "account in capitals": ([Edit("slurm_accounts/+", {"name": "ML"})], "slurm_accounts[2].name", "ML", "lower-case"),
    "unknown QOS of an account": ([Edit("slurm_accounts/1/qos/0", "x")], "slurm_accounts[1].qos[0]", "x", "add it to"),
    "QOS twice": ([Edit("slurm_qos/+", {"name": "normal"})], "slurm_qos[2].name", "normal", "keep one of them"),
    "QOS preempts an unknown one": ([Edit("slurm_qos/1/preempt/0", "x")], "slurm_qos[1].preempt[0]", "x", "add it to"),
    "QOS preempts itself": (
        [Edit("slurm_qos/1/preempt/+", "interactive")],
        "slurm_qos[1].preempt",
        "interactive",
        "take it out of its own list",
    ),
    "unknown default QOS": (
        [Edit("slurm_default_qos", "x")],
        "slurm_default_qos",
        "x",
        "name one of interactive, normal",
    ),
    "QOS with a negative limit": (
        [Edit("slurm_qos/0/max_gpus_per_user", -1)],
        "slurm_qos[0].max_gpus_per_user",
        "-1",
        "use 0 or more",
    ),
    "bad time of a QOS": ([Edit("slurm_qos/1/max_wall", "4h")], "slurm_qos[1].max_wall", "4h", "hours:minutes:seconds"),
    "unknown driver branch": ([Edit("nvidia_driver_branch", "581")], "nvidia_driver_branch", "581", "use one of 535"),
    "driver version that is none": (
        [Edit("nvidia_driver_version", "580")],
        "nvidia_driver_version",
        "580",
        'write it as "580.95.05"',
    ),
    "driver version of another branch": (
        [Edit("nvidia_driver_branch", "570"), Edit("nvidia_driver_version", "580.95.05")],
        "nvidia_driver_version",
        "580.95.05",
        "leave one of the two out",
    ),
    "power limit that is none": (
        [Edit("nvidia_driver_power_limits", {"all": "300W"})],
        "nvidia_driver_power_limits.all",
        "300W",
        "such as 300",
    ),
    "address that is none": (
        [Edit("nvidia_driver_repo_url", "mirror.lab/cuda")],
        "nvidia_driver_repo_url",
        "mirror.lab/cuda",
        "write it as https://",
    ),
    "fingerprint cut short": (
        [Edit("container_toolkit_repo_key_fingerprint", ["3BF863CC"])],
        "container_toolkit_repo_key_fingerprint",
        "3BF863CC",
        "gpg --show-keys",
    ),
    "no partitions": ([Edit("slurm_partitions", [])], "slurm_partitions", "[]", "name one"),
    "partition without nodes": (
        [Edit("slurm_partitions/1/nodes", [])],
        "slurm_partitions[1].nodes",
        "[]",
        "name workers",
    ),
    "partition with a node that is none": (
        [Edit("slurm_partitions/1/nodes/0", "head")],
        "slurm_partitions[1].nodes[0]",
        "head",
        "name a host of the group slurm_worker",
    ),
    "two default partitions": (
        [Edit("slurm_partitions/1/default", True)],
        "slurm_partitions[1].default",
        "true",
        "keep default: true on one",
    ),
    "partition twice": (
        [Edit("slurm_partitions/1/name", "gpu")],
        "slurm_partitions[1].name",
        "gpu",
        "keep one of them",
    ),
    "partition named DEFAULT": (
        [Edit("slurm_partitions/0/name", "DEFAULT")],
        "slurm_partitions[0].name",
        "DEFAULT",
        "use up to 40 letters",
    ),
    "default time over the maximum": (
        [Edit("slurm_partitions/1/default_time", "5:00:00")],
        "slurm_partitions[1].default_time",
        "5:00:00",
        "make it max_time or less",
    ),
    "bad time": (
        [Edit("slurm_partitions/0/max_time", "1 week")],
        "slurm_partitions[0].max_time",
        "1 week",
        "in quotes",
    ),
    "a time that YAML takes for a number": (
        [Edit("slurm_partitions/0/default_time", 28800)],
        "slurm_partitions[0].default_time",
        "28800",
        "put it in quotes",
    ),
    "unknown QOS of a partition": ([Edit("slurm_partitions/1/qos", "x")], "slurm_partitions[1].qos", "x", "add it to"),
    "unknown account of a partition": (
        [Edit("slurm_partitions/1/allow_accounts", ["x"])],
        "slurm_partitions[1].allow_accounts[0]",
        "x",
        "add it to slurm_accounts",
    ),
    "partition without a limit": (
        [Edit("slurm_partitions/0/max_time", None)],
        "slurm_partitions[0].max_time",
        "",
        "add it",
    ),
    "memory reserve below 0": (
        [Edit("slurm_memory_reserve_mib", -1)],
        "slurm_memory_reserve_mib",
        "-1",
        "use 0 or more",
    ),
    "GPU count below 0": (
        [Edit(f"{CHILDREN}/lab_workers/hosts/worker1/slurm_gpu_count", -1)],
        "slurm_gpu_count",
        "-1",
        "use 0 or more",
    ),
    "cluster name": ([Edit("slurm_cluster_name", "My-Lab")], "slurm_cluster_name", "My-Lab", "lower-case letters"),
    "misspelt variable": ([Edit("slurm_partition", [])], "slurm_partition", "", "write slurm_partitions"),
    "misspelt key": ([Edit(f"{USERS}/0/key", KEY)], "lab_users[0].key", "", "write keys"),
    "a word for a number": ([Edit(f"{USERS}/0/uid", "two")], "lab_users[0].uid", "two", "write a whole number"),
    "a text for a list": ([Edit("slurm_partitions", {"gpu": 1})], "slurm_partitions", "{", "write a list"),
    "a text for a truth": ([Edit("slurm_restrict_ssh", "maybe")], "slurm_restrict_ssh", "maybe", "write true or false"),
    "group without a number": ([Edit("lab_groups/0/gid", None)], "lab_groups[0].gid", "", "add it"),
    "user without a number, named as a group": (
        [Edit(f"{USERS}/0/uid", None), Edit(f"{USERS}/0/name", "vision")],
        "lab_users[0].name",
        "vision",
        "set the user's gid to 3000",
    ),
    "locked and sudo": (
        [Edit(f"{USERS}/0/state", "locked")],
        "lab_users[0].sudo",
        "true",
        "take sudo out, or the state",
    ),
    "a day that is none": (
        [Edit(f"{USERS}/0/expires", "2027-02-30")],
        "lab_users[0].expires",
        "2027-02-30",
        "2027-03-31",
    ),
    "absent, and no place for the home": (
        [Edit(f"{USERS}/1/state", "absent")],
        "lab_users[1].state",
        "absent",
        "such as /srv/archive",
    ),
    "archive without a place": (
        [Edit("lab_users_archive", "archive")],
        "lab_users_archive",
        "archive",
        "an absolute path",
    ),
    "a variable in the air": ([Edit("site_key", None)], "lab_users", "", "mend the expression"),
    "two truths": (
        [Edit(f"{CHILDREN}/lab_workers/hosts/worker1/slurm_cluster_name", "other")],
        "slurm_cluster_name",
        "",
        "set it once, in group_vars/all",
    ),
}


def test_the_right_inventory_has_no_finding(tmp_path: Path) -> None:
    assert check(write(tmp_path)) == []


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_inventory_is_refused(case: str, tmp_path: Path) -> None:
    edits, key, value, mend = CASES[case]
    found = check(write(tmp_path, *edits))
    wanted = f"{key} = {value}" if value else key
    start = re.compile(rf"(^|  ){re.escape(wanted)}")
    (line, *others) = [line for line in found if start.search(line) and mend in line] or [""]
    assert line, found
    assert not others, found
    place, _space, _rest = line.partition("  ")
    file, _colon, number = place.partition(":")
    text = (Path.cwd() / file).read_text().splitlines()
    if number:
        last = re.findall(r"[A-Za-z]\w*", key)[-1] if "host " not in key else key.split()[-1]
        assert last in text[int(number) - 1] or text[int(number) - 1].lstrip().startswith("- "), (line, text)
    else:
        assert key.startswith("group ")
    assert PRIVATE.splitlines()[1] not in "".join(found) and "CHANGEME" not in "".join(found)


def test_every_finding_is_told_at_once(tmp_path: Path) -> None:
    edits = [Edit(f"{USERS}/0/uid", 5), Edit("slurm_partition", []), Edit(f"{CHILDREN}/lab_head/hosts", {})]
    assert {line.split("  ")[1].split(" = ")[0].split(":")[0] for line in check(write(tmp_path, *edits))} >= {
        "lab_users[0].uid",
        "slurm_partition",
        "group lab_head",
    }


# --- the second stage ---

CARD = {"name": "NVIDIA RTX A6000", "generation": "ampere", "slurm_type": "rtx_a6000", "power_max_w": 300.0}
FACTS: dict[str, Any] = {
    "os": {"id": "debian", "version": "13", "family": "debian", "pretty": "Debian GNU/Linux 13 (trixie)"},
    "arch": "x86_64",
    "kernel": "6.12.0-1-amd64",
    "dgx_os": None,
    "container": False,
    "secure_boot": {"state": "disabled", "mok": False},
    "users": [{"name": "root", "uid": 0, "gid": 0}, {"name": "ada", "uid": 2001, "gid": 2001}],
    "groups": [{"name": "root", "gid": 0}, {"name": "ada", "gid": 2001}],
    "subids": [],
    "gpus": [CARD, CARD],
    "nvidia": {"state": "ok", "message": "", "driver": "580.178.04", "library": "580.178.04", "nvswitch": False},
    "memory_mib": 64000,
}
FACT_CASES = {
    "UID of somebody else": (
        [Edit("users/+", {"name": "eve", "uid": 2002, "gid": 2002})],
        "lab_users[1].uid = 2002",
        "give bob another uid",
    ),
    "another UID for the name": (
        [Edit("users/1/uid", 1001)],
        "lab_users[0].uid = 2001",
        "change the inventory's uid to 1001",
    ),
    "GID of somebody else": (
        [Edit("groups/+", {"name": "gamers", "gid": 3000})],
        "lab_groups[0].gid = 3000",
        "give vision another gid",
    ),
    "an account of the system": (
        [Edit("users/1/uid", 105), Edit("users/1/gid", 2001)],
        "lab_users[0].uid = 2001",
        "choose another name",
    ),
    "numbers of containers that differ": (
        [Edit("subids", [{"file": "/etc/subuid", "owner": "ada", "start": 100000, "count": 65536}])],
        "lab_users[0].uid = 2001",
        "usermod --del-subuids 100000-165535 ada",
    ),
    "numbers of containers that overlap": (
        [Edit("subids", [{"file": "/etc/subgid", "owner": "eve", "start": 65800000, "count": 65536}])],
        "lab_users[1].uid = 2002",
        "take eve's line out of /etc/subgid",
    ),
    "another GID for the user's own group": ([Edit("groups/1/gid", 1001)], "lab_users[0].uid = 2001", "gid to 1001"),
    "fewer GPUs": ([Edit("gpus", [CARD])], "slurm_gpu_count = 2", "set it to 1"),
    "no GPUs and why": (
        [Edit("gpus", []), Edit("nvidia/message", "Driver/library version mismatch")],
        "the node has 0 (Driver/library version mismatch)",
        "look at nvidia-smi",
    ),
    "another system": ([Edit("os/version", "11")], "host worker1", "install one of Debian 12/13"),
    "more memory kept back than there is": (
        [Edit("memory_mib", 1000)],
        "slurm_memory_reserve_mib = 4096",
        "reserve less",
    ),
    "a system without driver packages": (
        [Edit("nvidia/state", "no_driver"), Edit("os/version", "14")],
        "debian 14: no driver packages are known for it",
        "set nvidia_driver_source to keep",
    ),
    "Secure Boot without a key for own modules": (
        [Edit("nvidia/state", "no_driver"), Edit("secure_boot/state", "enabled")],
        "Secure Boot is on",
        "mokutil --import /var/lib/dkms/mok.pub",
    ),
    "cards that no one driver runs": (
        [
            Edit("nvidia/state", "no_driver"),
            Edit("gpus/1", {**CARD, "name": "GTX 1080", "generation": "pascal"}),
            Edit("gpus/0", {**CARD, "name": "B200", "generation": "blackwell"}),
        ],
        "no one driver runs all of these cards: B200 (blackwell); GTX 1080 (pascal)",
        "move a card to another machine",
    ),
    "more power than a card takes": (
        [Edit("gpus/0/power_max_w", 200.0)],
        "nvidia_driver_power_limits.all = 250",
        "write 200 or less",
    ),
}


def read_with_facts(folder: Path, *edits: Edit) -> list[str]:
    host = f"{CHILDREN}/lab_workers/hosts/worker1"
    more = [Edit(f"{host}/slurm_memory_reserve_mib", 4096), Edit(f"{host}/nvidia_driver_power_limits", {"all": 250})]
    inventory, findings, known = read(write(folder, *more))
    assert findings == [] == lab_check.check_inventory(inventory)
    facts = copy.deepcopy(FACTS)
    for edit in edits:
        edit({}, facts)
    inventory = Inventory(inventory.hosts, inventory.groups, {"worker1": facts})
    return inventory_read.lines(lab_check.check_facts(inventory), inventory, known)


def test_right_facts_have_no_finding(tmp_path: Path) -> None:
    assert read_with_facts(tmp_path) == []


@pytest.mark.parametrize("case", FACT_CASES)
def test_wrong_facts_are_refused(case: str, tmp_path: Path) -> None:
    edits, wanted, mend = FACT_CASES[case]
    found = read_with_facts(tmp_path, *edits)
    # a system without driver packages has none of Slurm's either
    assert len(found) == (2 if case == "a system without driver packages" else 1)
    (line,) = [one for one in found if wanted in one]
    assert mend in line and "worker1" in line


def test_a_user_who_is_nowhere_is_not_exempt() -> None:
    variables = {"slurm_ssh_exempt": ["ada", "admin"], "lab_users": [], "lab_groups": []}
    inventory = Inventory({"worker1": variables}, {}, {"worker1": FACTS})
    (finding,) = lab_check.check_facts(inventory)
    assert finding.key == "slurm_ssh_exempt[1]" and finding.value == "admin"


# --- the parts ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 3600),
        ("60:30", 3630),
        ("8:00:00", 28800),
        ("1-12", 129600),
        ("1-0:30", 88200),
        ("7-00:00:00", 604800),
        ("infinite", float("inf")),
        ("8h", None),
        ("1:2:3:4", None),
        ("", None),
        ("-5", None),
    ],
)
def test_times_as_slurm_reads_them(text: str, seconds: float | None) -> None:
    assert rules_slurm.seconds(text) == seconds


def test_keys_that_sshd_takes() -> None:
    assert rules_users.key_problem(KEY) == rules_users.key_problem(f'from="10.0.0.0/8",no-pty {KEY} a b') == ""
    assert rules_users.key_problem(KEY.replace("ssh-ed25519", "ssh-rsa"))
    assert rules_users.key_problem(KEY + "\n" + KEY)


@pytest.mark.parametrize(
    "text", ["changeme", "ChangeMe!", "change-me-now", "password", "secret", "xxx", "<token>", "example key"]
)
def test_placeholders(text: str) -> None:
    assert lab_check.PLACEHOLDER.fullmatch(text)
    assert not lab_check.PLACEHOLDER.fullmatch("kQ7v" + text + "9fWz")


def test_equal_findings_of_several_hosts_are_one() -> None:
    one = Finding(("a",), "1", "bad", "mend it", ("x",))
    (both,) = merged([one, Finding(("a",), "1", "bad", "mend it", ("y",))])
    assert both.hosts == ("x", "y")
    assert both.line("f.yml:3", everywhere=False) == "f.yml:3  a = 1 (x, y): bad. Mend: mend it."


def test_an_ini_inventory_is_searched_too(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("[lab_head]\nhead lab_address=10.0.0.1\n\n[all:vars]\nslurm_cluster_name = closet\n")
    known = inventory_source.definitions([str(file)])
    assert inventory_source.place(known, ("lab_address",), "head").endswith("hosts:2")
    assert inventory_source.place(known, ("slurm_cluster_name",), "head").endswith("hosts:5")
    assert inventory_source.place(known, ("group", "lab_head")).endswith("hosts:1")


def test_a_hosts_own_value_is_found_before_the_labs(tmp_path: Path) -> None:
    folder = write(tmp_path, Edit("lab_max_disruption", "none"))
    (folder / "host_vars").mkdir()
    (folder / "host_vars" / "worker1.yml").write_text("---\nlab_max_disruption: reload\n")
    known = inventory_source.definitions([str(folder)])
    assert inventory_source.place(known, ("lab_max_disruption",), "worker1").endswith("host_vars/worker1.yml:2")
    assert "group_vars/all/lab.yml" in inventory_source.place(known, ("lab_max_disruption",), "head")
