# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""`labrack drift` names what was changed by hand, and nothing else; one run mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.harness import ROOT, Closet

Drift = Callable[..., tuple[int, list[dict[str, Any]]]]
#: Where, what is done by hand, and how it is named: kind, name, words.
TAMPERING = (
    ("head", "echo '# mine' >> /etc/slurm/slurm.conf", "file", "/etc/slurm/slurm.conf", "content changed"),
    ("head", "chmod 0640 /etc/slurm/slurmdbd.conf", "file", "/etc/slurm/slurmdbd.conf", "mode 0600 → 0640"),
    ("head", "rm /etc/apt/apt.conf.d/60labrack-slurm", "file", "/etc/apt/apt.conf.d/60labrack-slurm", "removed"),
    ("head", "echo ssh-ed25519 AAAAC3 mallory >> {keys}", "file", "{keys}", "content changed"),
    ("head", "sed -i '/node2/d' /etc/hosts 2>/dev/null || {hosts}", "file", "/etc/hosts", "1 of labrack's 5 lines"),
    ("head", "sed -i /^ben:/d /etc/subuid", "file", "/etc/subuid", "1 of labrack's 3 lines"),
    ("head", "gpasswd --delete ada vision", "user", "ada", "left group vision"),
    ("head", "systemctl mask slurmctld", "unit", "slurmctld.service", "masked"),
    ("node1", "usermod --shell /bin/sh ada", "user", "ada", "shell /bin/bash → /bin/sh"),
    ("node1", "usermod --gid vision ben", "user", "ben", "gid 2002 → 3001"),
    ("node1", "echo 'ada ALL=(ALL) ALL' >> {sudoers}", "file", "{sudoers}", "content changed"),
    ("node1", "chmod 0644 /etc/munge/munge.key", "file", "/etc/munge/munge.key", "mode 0400 → 0644"),
    ("node1", "rm {drop_in}", "file", "{drop_in}", "removed"),
    ("node1", "chown ada /etc/labrack/slurmd.env", "file", "/etc/labrack/slurmd.env", "owner root → ada"),
    ("node1", "chgrp vision {prolog}", "file", "{prolog}", "group root → vision"),
    ("node1", "systemctl stop slurmd", "unit", "slurmd.service", "stopped (inactive)"),
    ("node2", "userdel eva", "user", "eva", "removed"),
    ("node2", "usermod --lock ben", "user", "ben", "locked"),
    ("node2", "chmod 0777 /etc/labrack", "directory", "/etc/labrack", "mode 0755 → 0777"),
    (
        "node2",
        "sed -i '/BEGIN labrack: a login/,/END/d' /etc/pam.d/sshd",
        "file",
        "/etc/pam.d/sshd",
        "3 of labrack's 12",
    ),
    ("node2", ": > {prolog}", "file", "{prolog}", "content changed"),
    ("node2", "head -c 1024 /dev/urandom > /etc/munge/munge.key", "file", "/etc/munge/munge.key", "written anew"),
    ("node2", "systemctl disable munge", "unit", "munge.service", "not started at boot any more (disabled)"),
    ("node2", "dpkg --remove libpam-slurm-adopt", "package", "libpam-slurm-adopt", "removed"),
)
#: What follows by itself: who is gone has no group, no ranges, and no name on their files; files follow their owner.
ALONG = {
    ("node1", "file", "/home/ben/.ssh/authorized_keys"),
    ("node2", "group", "eva"),
    ("node2", "file", "/home/eva/.ssh/authorized_keys"),
    ("node2", "file", "/etc/subuid"),
    ("node2", "file", "/etc/subgid"),
}
PLACES = {
    "keys": "/home/ada/.ssh/authorized_keys",
    "sudoers": "/etc/sudoers.d/labrack",
    "drop_in": "/etc/systemd/system/slurmd.service.d/labrack.conf",
    "prolog": "/usr/local/lib/labrack/slurm/prolog",
    # a container's is a mount, which can't be replaced
    "hosts": "{ sed /node2/d /etc/hosts > /tmp/hosts; cat /tmp/hosts > /etc/hosts; rm /tmp/hosts; }",
}


@pytest.fixture
def drift(closet: Closet, tmp_path: Path) -> Drift:
    """Run `labrack drift` on the closet; return its exit status and its document."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    sources = [word for source in closet.inventory for word in ("-i", str(source))]

    def run(*more: str) -> tuple[int, list[dict[str, Any]]]:
        command = [str(Path(sys.executable).with_name("labrack")), "drift", "--json", *sources, *more]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run


def items(reports: list[dict[str, Any]]) -> dict[tuple[str, str, str], str]:
    """What differs in words, by host, kind and name."""
    return {(one["host"], item["kind"], item["name"]): item["what"] for one in reports for item in one.get("items", ())}


def test_nothing_is_found_on_untouched_nodes(closet: Closet, drift: Drift) -> None:
    status, reports = drift()
    assert items(reports) == {} and status == 0
    assert [one["host"] for one in reports] == ["head", "node1", "node2"]
    for one in reports:
        assert one["checked"]["file"] > 15 and one["checked"]["unit"] >= 2 and one["checked"]["package"] >= 4
        assert {"baseline", "lab_users", "munge_key"} <= set(one["applied"]) and one["full_check"]


def test_nothing_is_found_while_jobs_run_and_changes_wait(closet: Closet, drift: Drift) -> None:
    closet.start("ada", "--nodelist=node1")
    closet.root("head", "scontrol update nodename=node2 state=drain reason='new fan'")
    closet.root("head", "journalctl --rotate; logrotate --force /etc/logrotate.conf || true")
    try:
        run = closet.play(slurm_memory_reserve_mib=4000)
        assert run.task("head", "Converge the controller").result["pending"]
        assert items(drift()[1]) == {}
        closet.user("ben@head", "touch ~/.ssh/authorized_keys ~/file")
        assert items(drift()[1]) == {}
    finally:
        closet.root("head", "scontrol update nodename=node2 state=resume")
    closet.play()
    assert items(drift()[1]) == {}


def test_what_is_changed_by_hand_is_named_and_one_run_mends_it(closet: Closet, drift: Drift) -> None:
    wanted = {}
    try:
        for host, command, kind, name, words in TAMPERING:
            closet.root(host, command.format(**PLACES))
            wanted[host, kind, name.format(**PLACES)] = words
        status, reports = drift()
        found = items(reports)
        assert status == 2
        assert set(found) - ALONG == set(wanted)
        assert [key for key, words in wanted.items() if not found[key].startswith(words)] == [], found
        rows = {(one["host"], item["name"]): item for one in reports for item in one.get("items", ())}
        assert rows["head", "/etc/slurm/slurm.conf"]["who"] == "root"
        assert rows["node2", "libpam-slurm-adopt"]["when"] and rows["node1", "slurmd.service"]["when"]
        assert "AAAAC3" not in json.dumps(reports)
        closet.play()
        assert items(drift()[1]) == {}
        assert "mallory" not in closet.root("head", f"cat {PLACES['keys']}")
    finally:
        closet.root("node1", "usermod --shell /bin/bash ada")
        closet.root("node2", "usermod --password '*' ben")
        closet.play()
    assert items(drift()[1]) == {}


def test_a_node_that_cannot_be_reached_is_said(closet: Closet, drift: Drift, tmp_path: Path) -> None:
    more = tmp_path / "more.json"
    gone = {"hosts": {"gone": {"ansible_host": "127.0.0.1", "ansible_port": 1}}}
    more.write_text(json.dumps({"all": {"children": {"lab_workers": gone}}}))
    status, reports = drift("-i", str(more))
    assert status == 1 and items(reports) == {}
    assert [one["host"] for one in reports if "error" in one] == ["gone"]


def test_the_playbook_says_the_same(closet: Closet, drift: Drift) -> None:
    run = closet.play("labrack.infra.drift", "--check")
    _status, reports = drift()
    shown = {host: json.loads(run.task(host, "Show the document").result["msg"]) for host in ("head", "node1", "node2")}
    assert shown == {one.pop("host"): one for one in reports}
    assert set(run.changed.values()) == {0}
