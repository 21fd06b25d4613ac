# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The closet's head is saved to another node by sftp, and a fresh head gets all of it back."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labrack.testnode import node
from labrack.testnode.node import NodeSpec
from tests.nodes.conftest import KEEP, LAB, SYSTEM, Sampler
from tests.nodes.harness import INVENTORIES, ROOT, Closet, Run, bring_up, until

PASSWORD = "canary-Kq7vN2xW8rT4"
REPOSITORY, DISK = "/srv/backup", "/backup/labrack"
STATE = "/var/lib/labrack/backup.json"
#: What ada has, in the words of one command: content, mode, owner, time to the nanosecond, links.
SIGHT = (
    "cd /home/ada && find thesis .hidden -printf '%p %y %m %u:%g %n %l ' "
    "\\( -type f -printf '%T@ ' -exec sha256sum {} \\; -o -printf '\\n' \\) | sort"
)
MAKE = """
install -d -o ada -g ada /home/ada/thesis /home/ada/.cache && cd /home/ada
printf 'chapter 1\\n' >thesis/text.tex; ln thesis/text.tex thesis/same.tex; ln -s ../.hidden thesis/link
printf 'two words\\n' >'thesis/a [b]* $HOME.txt'; printf 'hidden\\n' >.hidden; printf 'again\\n' >.cache/again
chown -hR ada:ada thesis .hidden .cache; chmod 640 thesis/text.tex; chmod 750 thesis
mkdir -p /checkpoints/vision/run1; chgrp -R vision /checkpoints/vision; chmod 2770 /checkpoints/vision
for step in 100 200 300 400 500; do
    mkdir -p /checkpoints/vision/run1/step-$step; echo $step >/checkpoints/vision/run1/step-$step/weights
    touch -d "2026-01-01 00:00:$((step / 100))" /checkpoints/vision/run1/step-$step
done
echo best >/checkpoints/vision/run1/best.pt
echo 'ada:a password of her own' | chpasswd
"""
#: Stands before the real mariadb in the path, and spoils one statement in the midst of a dump.
WRAPPER, SLURM = "/usr/local/sbin/mariadb", ("slurmctld", "slurmdbd")
BREAKS = r"""#!/bin/sh
sed 's/^INSERT INTO `closet_job_table`/INSERT INTO `no_such_table`/' | /usr/bin/mariadb "$@"
"""


@dataclass(frozen=True)
class Saved:
    """The closet with a backup of its head, and how that came about."""

    closet: Closet
    variables: tuple[str, ...]
    predicted: Run
    made: Run
    again: Run
    job: str
    command_lines: frozenset[bytes]


def variables(folder: Path, **values: Any) -> tuple[str, ...]:
    """Arguments that give a playbook these variables by a file, as the process list is no place for secrets."""
    file = folder / "backup-variables.json"
    file.write_text(json.dumps({"lab_backup_password": PASSWORD, **values}), encoding="utf-8")
    file.chmod(0o600)
    return "-e", f"@{file}"


def state(closet: Closet) -> dict[str, Any]:
    """What the last runs of the backup have noted."""
    found: dict[str, Any] = json.loads(closet.root("head", f"cat {STATE}"))
    return found


def back_up(closet: Closet) -> str:
    """Make a backup, and return what systemd says of it, nothing for success."""
    log = "journalctl --sync; journalctl -u labrack-backup -n 5 -o cat"
    return closet.root("head", f"systemctl start labrack-backup 2>&1 || {{ {log}; }}", False)


@pytest.fixture(scope="module")
def saved(converged: Closet) -> Iterator[Saved]:
    """A backup of the head; the role is gone and the head as before when the module's tests are over."""
    closet = converged
    closet.settle()
    closet.root("head", MAKE)
    job = closet.submit("ada", "", "true")
    closet.await_state(job, "COMPLETED")
    until("the job is in the accounting", lambda: sacct(closet, job), lambda seen: "COMPLETED" in seen)
    told = variables(
        closet.lab.state_dir,
        lab_backup_repository=f"sftp:root@node1:{REPOSITORY}",
        lab_backup_ssh_key=closet.lab.key.read_text(encoding="utf-8"),
        lab_backup_ssh_host_key="node1 " + closet.root("node1", "cat /etc/ssh/ssh_host_ed25519_key.pub"),
    )
    arguments = ("--tags", "lab_backup", *told)
    predicted = closet.play("labrack.infra.closet", "--check", "--diff", *arguments)
    with Sampler() as sampler:
        made = closet.play("labrack.infra.closet", "-vvv", "--diff", *arguments)
        assert back_up(closet) == ""
    again = closet.play("labrack.infra.closet", *arguments)
    yield Saved(closet, told, predicted, made, again, job, frozenset(sampler.seen))
    closet.play("labrack.infra.closet", *arguments, "-e", "lab_backup_state=absent")
    closet.root("head", "usermod --password '*' ada; rm -rf /checkpoints/vision /home/ada/thesis /home/ada/.hidden")
    closet.root("node1", f"rm -rf {REPOSITORY}")
    left = closet.root("head", "ls -d /etc/labrack/backup* /etc/systemd/system/labrack* /var/cache/labrack*", False)
    assert left == "" and "restic" not in closet.root("head", "dpkg-query -W -f '${Package}\\n'")


def sacct(closet: Closet, job: str) -> str:
    return closet.root("head", f"sacct --noheader --parsable2 --allocations --jobs={job} --format=User,State").strip()


def subjects(run: Run) -> list[str]:
    return [subject for task in run.modules("head") if task.action == "lab_backup" for subject in task.subjects]


def test_check_predicts_what_is_made_and_again_changes_nothing(saved: Saved) -> None:
    assert subjects(saved.predicted) == subjects(saved.made) != []
    assert set(saved.again.changed.values()) == {0}
    assert [task.action for task in saved.again.modules("head") if task.ending != "skipped"][1:] == ["lab_backup"]


def test_secrets_are_nowhere(saved: Saved) -> None:
    key = saved.closet.lab.key.read_text(encoding="utf-8").splitlines()[2]
    assert not [line for line in saved.command_lines if PASSWORD.encode() in line or key.encode() in line]
    for run in (saved.predicted, saved.made, saved.again):
        texts = [path.read_text(errors="replace") for path in run.artifacts.rglob("*") if path.is_file()]
        assert not [text for text in [run.output, *texts] if PASSWORD in text or key in text]
    logs = saved.closet.root("head", "journalctl --no-pager")
    assert PASSWORD not in logs and PASSWORD not in json.dumps(state(saved.closet))
    assert (
        saved.closet.root("head", "stat -c %a /etc/labrack/backup/password /etc/labrack/backup/ssh_key") == "600\n600\n"
    )


def test_every_set_is_saved_and_noted(saved: Saved) -> None:
    noted = state(saved.closet)
    assert set(noted["sets"]) == {"cluster_keys", "slurm_database", "registry", "homes", "checkpoints"}
    assert noted["failure"] is None and noted["last_success"] and noted["last_check"]
    assert all(made["files"] > 0 and made["bytes"] > 0 for made in noted["sets"].values())
    assert saved.closet.root("head", "systemctl is-active labrack-backup.timer") == "active\n"


def test_a_failure_is_seen_and_goes_with_the_next_success(saved: Saved) -> None:
    closet = saved.closet
    closet.root("node1", f"mv {REPOSITORY} {REPOSITORY}.away")
    assert "labrack: restic" in back_up(closet)
    assert "labrack-backup" in closet.root("head", "systemctl --failed --no-legend")
    assert state(closet)["last_failure"] and "restic" in state(closet)["failure"]
    assert "the backup failed" in closet.root("head", "bash --login -i -c true 2>/dev/null")
    gone = closet.play("labrack.infra.closet", "--tags", "lab_backup", *saved.variables, ok=True)
    assert set(gone.changed.values()) == {0}
    closet.root("node1", f"mv {REPOSITORY}.away {REPOSITORY}")
    assert back_up(closet) == ""
    assert "the backup failed" not in closet.root("head", "bash --login -i -c true 2>/dev/null")
    assert closet.root("head", "systemctl --failed --no-legend") == ""


def test_one_file_comes_back_and_a_newer_one_stays(saved: Saved) -> None:
    closet = saved.closet
    before = closet.root("head", SIGHT)
    ask = ("-e", "what=homes", "-e", "path=/home/ada/thesis")
    closet.root("head", "rm '/home/ada/thesis/a [b]* $HOME.txt'; echo newer >/home/ada/.hidden")
    asked = closet.play("labrack.infra.restore", "--check", *ask)
    (would,) = asked.task("head", "Restore what is asked for").result["restored"]
    assert (would["set"], would["files"]) == ("homes", 4) and would["snapshot"]
    assert not closet.root("head", "ls /home/ada/thesis | grep HOME", check=False)
    closet.play("labrack.infra.restore", *ask)
    kept = closet.play("labrack.infra.restore", "-e", "what=homes", "-e", "user=ada")
    assert kept.changed == {"head": 0, "localhost": 0}
    assert "/home/ada/.hidden" in kept.output
    assert closet.root("head", "cat /home/ada/.hidden") == "newer\n"
    closet.play("labrack.infra.restore", "-e", "what=homes", "-e", "user=ada", "-e", "overwrite=true")
    assert closet.root("head", SIGHT) == before
    assert not closet.root("head", "ls -d /home/.labrack*", check=False)


def test_what_is_in_use_is_not_replaced(saved: Saved) -> None:
    refused = saved.closet.play("labrack.infra.restore", "-e", "what=slurm_database", ok=False)
    assert refused.rc != 0 and "the accounting here has" in refused.messages
    assert sacct(saved.closet, saved.job)
    apart = saved.closet.play("labrack.infra.restore", "-e", "what=slurm_database", "-e", "target=/root/apart")
    assert apart.changed["head"] == 1
    assert saved.closet.root("head", "grep -rl closet_job_table /root/apart; stat -c %a /root/apart").endswith("700\n")
    saved.closet.root("head", "rm -r /root/apart")


def test_dump_that_does_not_load_changes_nothing(saved: Saved) -> None:
    """The real server refuses it half way; Slurm runs meanwhile, and nothing of the draft is left."""
    closet = saved.closet
    began = [closet.invocation("head", unit) for unit in SLURM]
    closet.root("head", f"cat >{WRAPPER} <<'END'\n{BREAKS}END\nchmod 755 {WRAPPER}")
    try:
        run = closet.play("labrack.infra.restore", "-e", "what=slurm_database", "-e", "overwrite=true", ok=False)
    finally:
        closet.root("head", f"rm {WRAPPER}")
    assert run.rc != 0
    assert "the dump can't be loaded, so the accounting stays as it is: ERROR 1100 (HY000) at line " in run.messages
    assert "Table 'no_such_table' was not locked with LOCK TABLES. Mend: " in run.messages
    # mariadb shows the statement before that, with a job in it
    assert "sbatch" not in run.output
    assert [closet.invocation("head", unit) for unit in SLURM] == began
    assert closet.root("head", "systemctl is-active slurmctld slurmdbd") == "active\nactive\n"
    assert sacct(closet, saved.job) == "ada|COMPLETED"
    assert "restored" not in closet.root("head", "mariadb --batch --execute='SHOW DATABASES'")
    # the same dump, when nothing is in its way
    made = closet.play("labrack.infra.restore", "-e", "what=slurm_database", "-e", "overwrite=true")
    assert made.task("head", "Restore what is asked for").subjects == ["slurm_database"]
    assert sacct(closet, saved.job) == "ada|COMPLETED"
    assert "restored" not in closet.root("head", "mariadb --batch --execute='SHOW DATABASES'")
    closet.settle()


# --- the head has burnt down -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fresh:
    """A new head after the commands of docs/BACKUP.md, and what came of them."""

    closet: Closet
    refused: str
    asked: Run
    restored: Run
    last: Run


@pytest.fixture(scope="module")
def fresh(saved: Saved) -> Iterator[Fresh]:
    name = f"{LAB}-fresh"
    folder = ROOT / ".cache/labs" / name
    node.down(name, folder, print)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        closet = bring_up(name, (NodeSpec("head", SYSTEM),), INVENTORIES / "fresh_head", folder)
        # the disk with the backups
        closet.root("head", "mkdir -p /backup")
        take = ["docker", "exec", saved.closet.lab.node("node1").container, "tar", "-C", REPOSITORY, "-c", "."]
        put = ["docker", "exec", "-i", closet.lab.node("head").container, "sh", "-c"]
        put.append(f"mkdir {DISK} && tar -C {DISK} -x")
        with subprocess.Popen(take, stdout=subprocess.PIPE) as disk:
            subprocess.run(put, stdin=disk.stdout, check=True)
        # nobody's numbers are quite the same on the new machine
        closet.root("head", "useradd --system --uid 850 munge && useradd --system --uid 851 slurm")
        told = variables(folder, lab_backup_repository=DISK)
        closet.play("labrack.infra.closet", *told)
        refused = back_up(closet)
        asked = closet.play("labrack.infra.restore", *told, "-e", "what=all", "--check")
        restored = closet.play("labrack.infra.restore", *told, "-e", "what=all")
        _know_by(closet, saved.closet)
        yield Fresh(closet, refused, asked, restored, closet.play("labrack.infra.closet", *told))
    finally:
        if not KEEP:
            node.down(name, folder, print)
            shutil.rmtree(folder, ignore_errors=True)


def _know_by(closet: Closet, other: Closet) -> None:
    """Expect a lab's head to have the host key of another lab's."""
    file = closet.lab.known_hosts
    keys = other.root("head", "cat /etc/ssh/ssh_host_ed25519_key.pub")
    hosts = {line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()}
    file.write_text("".join(f"{host} {keys}" for host in sorted(hosts)), encoding="utf-8")


def test_a_new_head_does_not_pass_for_the_old_one(fresh: Fresh) -> None:
    assert "backups of an earlier installation of head" in fresh.refused


def test_all_of_it_is_announced(fresh: Fresh) -> None:
    asked = fresh.asked.task("head", "Restore what is asked for").result
    done = fresh.restored.task("head", "Restore what is asked for").result
    names = ["cluster_keys", "slurm_database", "registry", "homes", "checkpoints"]
    assert [one["set"] for one in asked["restored"]] == names
    assert asked["changes"] == done["changes"] and [one["subject"] for one in done["changes"]] == names


def test_files_are_as_they_were(fresh: Fresh, saved: Saved) -> None:
    assert fresh.closet.root("head", SIGHT) == saved.closet.root("head", SIGHT)
    assert "thesis/text.tex f 640 ada:ada 2" in fresh.closet.root("head", SIGHT)
    assert not fresh.closet.root("head", "ls -d /home/ada/.cache/again", check=False)
    found = fresh.closet.root("head", "cd /checkpoints/vision && ls run1 && stat -c '%a %G' .")
    assert found.split() == ["best.pt", "step-300", "step-400", "step-500", "2770", "vision"]


def test_keys_are_the_old_ones(fresh: Fresh, saved: Saved) -> None:
    for path in ("/etc/munge/munge.key", "/etc/ssh/ssh_host_ed25519_key"):
        sums = [closet.root("head", f"sha256sum {path}") for closet in (fresh.closet, saved.closet)]
        assert sums[0] == sums[1]
    assert fresh.closet.root("head", "stat -c '%U:%G %a' /etc/munge/munge.key") == "munge:munge 400\n"
    assert fresh.closet.root("head", "munge -n | unmunge | grep STATUS").split()[1] == "Success"


def test_accounting_goes_on(fresh: Fresh, saved: Saved) -> None:
    closet = fresh.closet
    assert sacct(closet, saved.job) == "ada|COMPLETED"
    closet.root("head", "systemctl restart slurmctld")
    closet.await_node("head", lambda seen: seen == "IDLE", "is idle")
    job = closet.submit("ada", "", "true")
    assert int(job) > int(saved.job)
    closet.await_state(job, "COMPLETED")
    until("the new job is in the accounting", lambda: sacct(closet, job), lambda seen: seen == "ada|COMPLETED")
    assert sacct(closet, saved.job) == "ada|COMPLETED"


def test_accounts_have_their_passwords(fresh: Fresh, saved: Saved) -> None:
    rows = [closet.root("head", "getent shadow ada | cut -d: -f2") for closet in (fresh.closet, saved.closet)]
    assert rows[0] == rows[1] and rows[0].startswith("$")


def test_the_last_run_restarts_nothing_and_backups_go_on(fresh: Fresh) -> None:
    assert fresh.last.changed["head"] == 0, [task.subjects for task in fresh.last.modules("head") if task.changed]
    assert back_up(fresh.closet) == ""
    assert state(fresh.closet)["sets"]["homes"]["files"] > 0
