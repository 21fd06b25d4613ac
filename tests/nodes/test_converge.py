# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The closet's first runs: check mode tells what a run does, a second run does nothing, nobody sees a secret."""

from __future__ import annotations

import base64
import re
import subprocess

import pytest

from tests.nodes.conftest import History
from tests.nodes.harness import Closet, Run

HOSTS = ("head", "node1", "node2")


def changes(run: Run, host: str) -> list[tuple[str, list[str]]]:
    """The tasks that changed a host, with what labrack's modules changed; no_log tasks count in the totals only."""
    return [(task.name, task.subjects) for task in run.modules(host) if task.changed]


@pytest.mark.parametrize("host", HOSTS)
def test_check_mode_on_an_empty_node_tells_what_the_run_changes(history: History, host: str) -> None:
    assert changes(history.predicted, host) == changes(history.made, host)
    assert history.predicted.changed[host] == history.made.changed[host] > 0


def test_second_run_changes_nothing(history: History) -> None:
    assert dict(history.again.changed) == dict.fromkeys([*HOSTS], 0)


def test_check_mode_on_a_converged_node_predicts_nothing(history: History) -> None:
    assert dict(history.predicted_again.changed) == dict.fromkeys([*HOSTS], 0)


@pytest.mark.parametrize(("host", "most"), [("head", 15), ("node1", 10), ("node2", 10)])
def test_run_that_changes_nothing_is_short(history: History, host: str, most: int) -> None:
    names = [task.name for task in history.again.modules(host) if task.ending != "skipped"]
    assert 0 < len(names) <= most, names


def pieces(secret: str) -> list[bytes]:
    """Parts of a secret that can't turn up by chance, even where a line is folded."""
    return [secret[start : start + 20].encode() for start in range(0, len(secret) - 20, 64)] or [secret.encode()]


@pytest.fixture(scope="module")
def secrets(history: History, converged: Closet) -> list[bytes]:
    key = converged.root("head", "base64 --wrap=0 /etc/munge/munge.key").strip()
    assert len(base64.b64decode(key)) == 1024
    found = re.search(r"^StoragePass=(\S{20,})$", converged.root("head", "cat /etc/slurm/slurmdbd.conf"), re.MULTILINE)
    assert found
    raw = [base64.b64decode(key)[start : start + 16] for start in (0, 500, 1000)]
    return [*pieces(key), *raw, found[1].encode()]


def test_no_secret_in_output_and_artifacts(history: History, secrets: list[bytes]) -> None:
    assert "Make the cluster's MUNGE key" in history.made.output
    for run in (history.predicted, history.made, history.again, history.predicted_again):
        texts = [path.read_bytes() for path in run.artifacts.rglob("*") if path.is_file()]
        assert len(texts) > 50
        assert not [secret for secret in secrets if any(secret in text for text in [run.output.encode(), *texts])]


def test_no_secret_in_a_process_list(history: History, secrets: list[bytes]) -> None:
    assert any(b"slurmdbd" in line for line in history.command_lines)
    assert not [line for line in history.command_lines if any(secret in line for secret in secrets)]


@pytest.mark.parametrize("host", HOSTS)
def test_no_secret_in_a_log(converged: Closet, secrets: list[bytes], host: str) -> None:
    command = "journalctl --output=export; cat $(find /var/log/slurm /var/log/munge -type f)"
    container = converged.lab.node(host).container
    logs = subprocess.run(["docker", "exec", container, "sh", "-c", command], capture_output=True, check=True).stdout
    assert b"Invoked with" in logs
    assert not [secret for secret in secrets if secret in logs]


def test_secret_files_are_closed(converged: Closet) -> None:
    for host in HOSTS:
        assert converged.root(host, "stat --format='%a %U:%G' /etc/munge/munge.key").strip() == "400 munge:munge"
    assert converged.root("head", "stat --format='%a %U:%G' /etc/slurm/slurmdbd.conf").strip() == "600 slurm:slurm"
    assert len({converged.root(host, "sha256sum </etc/munge/munge.key") for host in HOSTS}) == 1
