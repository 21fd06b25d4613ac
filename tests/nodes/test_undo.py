# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``slurm_state: absent`` leaves each host as it was before Slurm, but for a dump of the accounting."""

from __future__ import annotations

import re

import pytest

from tests.nodes.conftest import History, snapshot
from tests.nodes.harness import Closet

#: What the roles baseline and lab_users have made or changed under /etc, and what follows from the packages there are.
OF_OTHERS = re.compile(
    r"\.(/(hosts|group-?|gshadow-?|passwd-?|shadow-?|sub[ug]id-?|labrack|profile\.d(/.*)?|sudoers\.d(/.*)?|apt/apt\.conf\.d/60labrack-nvidia|ld\.so\.cache|alternatives.*))?"
)


@pytest.fixture(scope="module")
def without(converged: Closet, history: History) -> Closet:
    converged.play("labrack.infra.closet", "--tags", "slurm", slurm_state="absent")
    return converged


@pytest.mark.parametrize("host", ["head", "node1", "node2"])
def test_host_is_as_before(without: Closet, history: History, host: str) -> None:
    packages, etc = snapshot(without, host)
    assert names(packages) == names(history.packages[host])
    different = {line.split()[0] for line in set(etc.splitlines()) ^ set(history.etc[host].splitlines())}
    assert sorted(path for path in different if not OF_OTHERS.fullmatch(path)) == []
    assert not without.root(host, "ls -d /var/lib/slurm /var/log/slurm /usr/local/lib/labrack", check=False)
    assert without.root(host, "systemctl --failed --no-legend") == ""


def names(packages: str) -> set[str]:
    """The names in a list of packages with their state."""
    return {line.split()[1] for line in packages.splitlines()}


def test_accounting_is_dumped(without: Closet) -> None:
    (dump,) = without.root("head", "ls -t /var/backups/labrack/*.sql.gz | head -1").split()
    assert "closet_job_table" in without.root("head", f"zcat {dump} | grep 'CREATE TABLE'")


def test_absent_again_changes_nothing(without: Closet) -> None:
    run = without.play("labrack.infra.closet", "--tags", "slurm", slurm_state="absent")
    assert set(run.changed.values()) == {0}
