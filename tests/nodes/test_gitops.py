# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A head that keeps its lab as a git repository says: two nodes, the repository on the head, signed by real keys.

The head reaches no package index; it gets labrack's requirements as files, in the layout of an index.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from labrack.testnode import node, wheels
from labrack.testnode.docker import docker
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import KEEP, LAB, SYSTEM
from tests.nodes.harness import ROOT, Closet, bring_up, until
from tests.unit.gitops_lab import Author, Remote

HOSTS = ("head", "node1")
CANARY = "canary-3Wz8Rk5mYp6Q"
SERVICE = "labrack-gitops.service"
STATE = "/var/lib/labrack-gitops/state"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
#: Times that a controller is killed; each takes twenty seconds.
KILLS = int(os.environ.get("LABRACK_KILLS", "4"))
#: What is left of it on a node, by its name; the test's own remote and index are elsewhere.
TRACES = (
    "find / -xdev \\( -path /proc -o -path /sys -o -path /tmp \\) -prune -o \\( -name '*gitops*' -o -path '/opt/*' \\) "
    "-print; getent passwd labrack-gitops; getent group labrack-gitops; grep -rs gitops /root/.ssh; true"
)


@dataclass
class Kept:
    """The lab, its repository, and what the command said."""

    closet: Closet
    remote: Remote
    folder: Path
    users: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def labrack(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command here, as an admin at a laptop would."""
        inventory = [word for path in self.closet.inventory for word in ("-i", str(path))]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.folder / "xdg")}
        program = Path(sys.executable).with_name("labrack")
        done = subprocess.run(
            [program, "gitops", *arguments, *inventory], capture_output=True, text=True, env=environment, timeout=600
        )
        self.said.append(done.stdout + done.stderr)
        return done

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run ``labrack gitops install``."""
        return self.labrack(
            "install",
            "--repo=ssh://root@head/srv/remote/lab.git",
            f"--allowed-signers={self.remote.signers(self.folder / 'signers')}",
            f"--vault-password-file={self.folder / 'vault-password'}",
            f"--webhook-file={self.folder / 'webhook'}",
            "--index-url=file:///srv/simple",
            # it is started by hand here
            "--schedule=yearly",
            *options,
        )

    def push(self, *users: str, author: Author | None = None, round_: int = 0) -> str:
        """Push an inventory with these users, signed by ada unless ``author`` is somebody else.

        ``round_`` is in each user's comment and key, so that another one changes files and accounts on all nodes.
        """
        numbers = {"ada": 2001, "ben": 2002, "eva": 2003}
        lab = {
            "lab_orchestrator": "none",
            "baseline_uv_version": "",
            "lab_users": [
                {"name": name, "uid": numbers[name], "comment": f"round {round_}", "keys": [f"{KEY} round-{round_}"]}
                for name in users
            ],
            "ansible_user": "root",
        }
        secret = (self.folder / "secret.yml").read_text()
        hosts = {name: {"ansible_host": self.closet.lab.node(name).address} for name in HOSTS}
        groups = {"lab_head": {"hosts": {"head": hosts["head"]}}, "lab_workers": {"hosts": {"node1": hosts["node1"]}}}
        files = {"inventory/hosts.yml": yaml.safe_dump(groups)}
        files["inventory/group_vars/all/lab.yml"] = yaml.safe_dump(lab) + secret
        return self.remote.commit(files, author or self.remote.ada)

    def tick(self) -> int:
        """Do what the timer does: start its service, and wait for its end; return the exit status of the run."""
        start = f"systemctl reset-failed {SERVICE}; systemctl start --no-block {SERVICE}"
        self.closet.root("head", start, check=False)
        self.ended()
        shown = self.closet.root("head", f"systemctl show --property=ExecMainStatus --value {SERVICE}")
        return int(shown.strip())

    def ended(self) -> None:
        """Wait for the end of the run."""
        ask = f"systemctl show --property=ActiveState --value {SERVICE}"
        until("the run ends", lambda: self.closet.root("head", ask).strip(), lambda seen: seen != "activating", 300)

    def status(self) -> dict[str, Any]:
        """What ``labrack gitops status`` says on the head."""
        printed = self.closet.root("head", "/opt/labrack/venv/bin/labrack gitops status --json", check=False)
        found: dict[str, Any] = json.loads(printed)
        return found

    def people(self) -> dict[str, list[str]]:
        """The lab's users of each node."""
        names = "getent passwd ada ben eva | cut -d: -f1"
        return {host: self.closet.root(host, names, check=False).split() for host in HOSTS}

    def rounds(self, users: Sequence[str]) -> set[int]:
        """The rounds that comments and keys of these users are of, on all nodes; a file that is cut has none."""
        told = "getent passwd $who | cut -d: -f5; tail -n +2 /home/$who/.ssh/authorized_keys"
        show = f"for who in {' '.join(users)}; do {told}; done"
        lines = [line for host in HOSTS for line in self.closet.root(host, show).splitlines()]
        assert len(lines) == 2 * len(users) * len(HOSTS) and all(
            line.startswith((f"{KEY} round-", "round ")) for line in lines
        ), lines
        return {int(re.split("[ -]", line)[-1]) for line in lines}

    def whole(self, users: Sequence[str], newest: int, seed: int) -> None:
        """Nothing on the nodes or in the controller's memory is half-written."""
        assert self.rounds(users) <= set(range(newest + 1)), f"seed {seed}"
        files = f"{STATE}/state.json {STATE}/last.json"
        self.closet.root("head", f"for file in {files}; do python3 -m json.tool $file >/dev/null || exit 1; done")
        for host in HOSTS:
            records = "/var/lib/labrack/managed/*.json"
            self.closet.root(host, f"for file in {records}; do python3 -m json.tool $file >/dev/null || exit 1; done")
            self.closet.root(host, "pwck -rq && grpck -r")

    def log(self) -> str:
        """What the service has said."""
        return self.closet.journal("head", SERVICE)


@pytest.fixture(scope="module")
def kept(docker_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """Two nodes with nothing on them, and a repository on the head with one signed commit."""
    name = f"{LAB}-gitops"
    state = ROOT / ".cache/labs" / name
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)
    folder = tmp_path_factory.mktemp("gitops")
    inventory = folder / "inventory"
    inventory.mkdir()
    groups = {"lab_head": {"hosts": {"head": {}}}, "lab_workers": {"hosts": {"node1": {}}}}
    (inventory / "groups.yml").write_text(yaml.safe_dump(groups))
    (inventory / "group_vars").mkdir()
    (inventory / "group_vars/all.yml").write_text("lab_orchestrator: none\nbaseline_uv_version: ''\nlab_users: []\n")
    closet = bring_up(name, [NodeSpec(host, SYSTEM) for host in HOSTS], inventory, state)
    head = closet.lab.node("head").container
    closet.root("head", "rm -rf /srv/remote && mkdir -p /srv/remote")
    wheels.give(closet.lab.node("head"), (ROOT / "roles/gitops/files/requirements.txt").read_text(), print)
    remote = Remote.make(folder / "remote")
    # git comes with the installation
    docker("cp", str(remote.bare), f"{head}:/srv/remote/lab.git")
    closet.root("head", "chown -R root:root /srv/remote")
    remote.git("remote", "set-url", "origin", "ssh://root@head/srv/remote/lab.git")
    remote.git("config", "core.sshCommand", f"ssh -F {closet.ssh.config}")
    (folder / "vault-password").write_text(f"{CANARY}-vault\n")
    (folder / "webhook").write_text(f"http://127.0.0.1:1/{CANARY}-hook\n")
    vault = Path(sys.executable).with_name("ansible-vault")
    encrypt = [vault, "encrypt_string", "--vault-password-file", folder / "vault-password", CANARY]
    made = subprocess.run([*encrypt, "--name", "site_secret"], check=True, capture_output=True, text=True)
    (folder / "secret.yml").write_text(made.stdout)
    yield Kept(closet, remote, folder)
    if not KEEP:
        node.down(name, state, print)
        shutil.rmtree(state, ignore_errors=True)


def test_it_is_foretold_installed_and_found_as_it_is(kept: Kept) -> None:
    before = kept.closet.root("head", TRACES)
    told = kept.install("--dry-run")
    assert told.returncode == 0, told.stderr
    assert "environment /opt/labrack/venv" in told.stdout and "user labrack-gitops" in told.stdout
    assert kept.closet.root("head", TRACES) == before
    made = kept.install()
    assert made.returncode == 0, made.stderr
    key = kept.closet.root("head", "cat /var/lib/labrack-gitops/.ssh/id_ed25519.pub").strip()
    assert made.stdout.splitlines()[-1] == key and key.endswith(" labrack-gitops@head")
    for host in HOSTS:
        assert f"restrict {key}" in kept.closet.root(host, "cat /root/.ssh/authorized_keys")
    again = kept.install()
    assert again.returncode == 0 and "0 tasks changed something" in again.stderr, again.stderr
    assert kept.closet.root("head", "systemctl is-enabled labrack-gitops.timer").strip() == "enabled"
    assert kept.closet.root("head", "systemctl show -P NextElapseUSecRealtime labrack-gitops.timer").strip()
    secrets = "stat --format='%a %U:%G' /etc/labrack/gitops/vault-password /etc/labrack/gitops/webhook"
    assert kept.closet.root("head", secrets).splitlines() == ["640 root:labrack-gitops"] * 2
    exposure = kept.closet.root("head", f"systemd-analyze security --no-pager {SERVICE} | tail -1")
    assert float(exposure.split("level for")[1].split(":")[1].split()[0]) < 3, exposure


def test_a_push_is_applied_by_the_timers_service(kept: Kept) -> None:
    commit = kept.push("ada")
    assert kept.tick() == 0, kept.log()
    assert kept.people() == {"head": ["ada"], "node1": ["ada"]}
    seen = kept.status()
    assert (seen["result"], seen["commit"], seen["rc"]) == ("applied", commit, 0)
    metrics = "/var/lib/labrack-gitops/metrics/labrack_gitops.prom"
    assert kept.closet.root("head", f"stat --format=%a {metrics}").strip() == "644"
    assert f'commit="{commit}"' in kept.closet.root("head", f"setpriv --reuid=nobody --clear-groups cat {metrics}")
    assert kept.tick() == 0 and kept.status()["result"] == "in_sync", kept.log()
    # the lease was given back
    assert not kept.closet.root("head", "ls /run/labrack/lease.json", check=False)


def test_who_is_not_listed_changes_nothing(kept: Kept) -> None:
    good = kept.remote.git("rev-parse", "HEAD").strip()
    kept.push("ada", "eva", author=kept.remote.stranger)
    assert kept.tick() == 77
    assert kept.people() == {"head": ["ada"], "node1": ["ada"]} and kept.status()["commit"] == good
    kept.remote.git("reset", "--quiet", "--hard", good)
    kept.remote.git("push", "--quiet", "--force", "origin", "main")


def test_a_laptop_and_the_timer_do_not_meet(kept: Kept) -> None:
    now = time.time()
    lease = {"owner": "laptop", "who": "eva@laptop", "what": "labrack apply", "since": now, "until": now + 600}
    kept.closet.root("head", f"echo '{json.dumps(lease)}' >/run/labrack/lease.json")
    assert kept.tick() == 75 and "eva@laptop holds the lease of this lab" in kept.log()
    # which is no failure to systemd
    assert kept.closet.root("head", f"systemctl is-failed {SERVICE}", check=False).strip() == "inactive"
    kept.closet.root("head", "rm /run/labrack/lease.json")


def test_a_node_that_was_down_gets_its_change_when_it_is_back(kept: Kept) -> None:
    kept.closet.root("node1", "systemctl stop ssh.socket ssh.service 2>/dev/null; true")
    commit = kept.push("ada", "ben")
    assert kept.tick() == 0, kept.log()
    assert kept.people() == {"head": ["ada", "ben"], "node1": ["ada"]}
    seen = kept.status()
    assert (seen["down"], seen["behind"], seen["rc"]) == (["node1"], ["node1"], 2)
    kept.closet.root("node1", "systemctl start ssh.service")
    assert kept.tick() == 0, kept.log()
    assert kept.people() == {"head": ["ada", "ben"], "node1": ["ada", "ben"]}
    assert kept.status()["hosts"] == dict.fromkeys(HOSTS, commit)


def test_runs_that_are_killed_are_made_up_for(kept: Kept) -> None:
    """A controller is killed at random moments of its apply; every fifth time, and at last, the next run ends."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    users = ("ada", "ben", "eva")
    ended = f"! systemctl is-active --quiet {SERVICE} && systemctl is-failed --quiet {SERVICE}"
    begun = f"test {STATE}/log/apply.log -nt /run/pushed || {{ {ended}; }}"

    def applies() -> str:
        return kept.closet.root("head", f"if {begun}; then echo yes; fi", check=False)

    kept.push(*users)
    assert kept.tick() == 0, kept.log()
    killed = wanted = 0
    while killed < KILLS:
        wanted += 1
        kept.push(*users, round_=wanted)
        kept.closet.root("head", f"touch /run/pushed; systemctl reset-failed {SERVICE}; true")
        kept.closet.root("head", f"systemctl start --no-block {SERVICE}")
        until("the apply begins", applies, bool, 120)
        time.sleep(chance.uniform(0, 5))
        kept.closet.root("head", f"systemctl kill --signal=KILL {SERVICE}", check=False)
        kept.ended()
        # a run that was through before counts for nothing
        how = kept.closet.root("head", f"systemctl show --property=Result --value {SERVICE}").strip()
        killed += how == "signal"
        kept.whole(users, wanted, seed)
        if killed % 5 == 0 or killed == KILLS:
            assert kept.tick() == 0, f"seed {seed}: {kept.log()}"
            assert kept.rounds(users) == {wanted}, f"seed {seed}"
            assert kept.status()["result"] in ("applied", "in_sync")
    litter = "find /etc /home /var/lib -name '.labrack-*'"
    assert [kept.closet.root(host, litter) for host in HOSTS] == ["", ""], f"seed {seed}"
    assert kept.tick() == 0 and kept.status()["result"] == "in_sync", kept.log()


def test_no_secret_was_seen(kept: Kept) -> None:
    """By then there were failures, and a webhook that gives no answer."""
    assert "was not told: URLError" in kept.log()
    said = kept.log() + "".join(kept.said)
    kept_files = kept.closet.root("head", f"grep -rl --exclude-dir=repository.git {CANARY} /var/lib /run /opt; true")
    assert CANARY not in said and kept_files == ""
    assert CANARY not in "".join(path.read_text() for path in (kept.folder / "xdg").rglob("*") if path.is_file())


def test_uninstall_leaves_nothing(kept: Kept) -> None:
    assert "labrack-gitops" in kept.closet.root("head", TRACES)
    told = kept.labrack("uninstall", "--dry-run")
    assert told.returncode == 0 and "user labrack-gitops" in told.stdout
    gone = kept.labrack("uninstall")
    assert gone.returncode == 0, gone.stderr
    for host in HOSTS:
        assert kept.closet.root(host, TRACES) == ""
    packages = "dpkg-query --show --showformat='${db:Status-Status} ${Package}\\n' git python3-venv 2>/dev/null; true"
    assert "installed " not in kept.closet.root("head", packages).replace("not-installed", "")
    # what was applied stays
    assert kept.people() == {host: ["ada", "ben", "eva"] for host in HOSTS}
