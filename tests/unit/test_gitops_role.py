# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What puts ``labrack gitops`` on a head: the planner, the wheel, and the lease by its playbook."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from ansible_collections.labrack.infra.plugins.module_utils import gitops_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.gitops_plan import GitopsError, Observed, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState
from labrack import cli, gitops_config, gitops_install, lab, lease
from labrack.progress import Progress

SIGNER = "ada@example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ"
CONFIG = {
    "repository": "git@git.example.org:lab/closet.git",
    "inventory": ["inventory"],
    "max_disruption": "restart",
    "windows": ["Sat 02:00-06:00"],
    "window_disruption": "reboot",
}
WANTED = Wanted(
    config=CONFIG,
    allowed_signers=SIGNER,
    wheel="/opt/labrack/labrack-0.1.0-py3-none-any.whl",
    wheel_sha256="0" * 64,
    requirements="rich==15.0.0",
)
PYTHON = (3, 13, 5)

wishes = st.builds(
    dataclasses.replace,
    st.just(WANTED),
    vault_password=st.sampled_from(["", "canary-vault"]),
    webhook=st.sampled_from(["", "https://host/canary-hook"]),
    known_hosts=st.sampled_from(["", "head ssh-ed25519 AAAA"]),
    schedule=st.sampled_from(["*:0/15", "hourly"]),
    wheel_sha256=st.sampled_from(["0" * 64, "1" * 64]),
    installed=st.sampled_from([(), ("git",)]),
)


def applied(observed: Observed, wanted: Wanted, changes: list[Change]) -> Observed:
    """The head after the changes of a plan."""
    files = dict(observed.files)
    written = {**gitops_plan.wanted_files(wanted), gitops_plan.RECORD: gitops_plan.record_file(observed, wanted)}
    found: dict[str, Any] = {}
    for change in changes:
        verb, *words = change.step
        if verb == "user":
            found["user"] = True
        elif verb == "key":
            assert found.get("user", observed.user)
            found["public_key"] = "ssh-ed25519 AAAA"
        elif verb == "write":
            files[words[0]] = written[words[0]]
        elif verb == "remove":
            files[words[0]] = None
        elif verb == "venv":
            assert files[gitops_plan.REQUIREMENTS]
            found |= {"venv": words[0], "opt": True}
        elif verb in ("link", "unlink"):
            found["linked"] = verb == "link"
        elif verb == "rmtree":
            files[gitops_plan.REQUIREMENTS] = None
            found |= {"opt": False, "venv": ""}
        elif verb == "userdel":
            files[gitops_plan.KNOWN_HOSTS] = None
            found |= {"user": False, "public_key": ""}
        elif verb in ("enable", "restart"):
            found["timer"] = ServiceState(True, True, True)
        else:
            assert verb == "disable"
            found["timer"] = ServiceState()
    return dataclasses.replace(observed, files=files, **found)


@given(wishes, wishes, st.sampled_from([None, False]))
def test_what_is_planned_is_all_there_is_to_do(first: Wanted, second: Wanted, linked: bool | None) -> None:
    bare = Observed(linked=linked, python=PYTHON)
    seen = bare
    for wanted in (first, second):
        seen = applied(seen, wanted, gitops_plan.plan(seen, wanted))
        assert gitops_plan.plan(seen, wanted) == []
        assert all("canary" not in change.before + change.after for change in gitops_plan.plan(bare, wanted))
    gone = Wanted(present=False)
    assert {*gitops_plan.installed(seen, gone)} == {*first.installed, *second.installed}
    seen = applied(seen, second, gitops_plan.plan(seen, gone))
    assert gitops_plan.plan(seen, gone) == []
    assert not any(seen.files.values()) and dataclasses.replace(seen, files={}) == bare


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"allowed_signers": ""}, "gitops_allowed_signers names nobody"),
        ({"allowed_signers": "ada"}, "no name and public key"),
        ({"allowed_signers": f"{SIGNER}\n-----BEGIN OPENSSH PRIVATE KEY-----"}, "no name and public key"),
        ({"schedule": "now; reboot"}, "gitops_schedule"),
        ({"wheel_sha256": ""}, "labrack gitops install"),
        ({"webhook": "ftp://canary"}, "gitops_webhook (value hidden)"),
        ({"config": {**CONFIG, "repository": ""}}, "gitops_repository is not set"),
        ({"config": {**CONFIG, "repository": "https://canary@host/lab.git"}}, "user name or a password"),
        ({"config": {**CONFIG, "repository": "ext::sh -c id"}}, "no address"),
        ({"config": {**CONFIG, "windows": ["Sat"]}}, "gitops_windows: 'Sat' is no window"),
        ({"config": {**CONFIG, "max_disruption": "all"}}, "gitops_max_disruption is 'all'"),
        ({"config": {**CONFIG, "inventory": ["/etc"]}}, "gitops_inventory has '/etc'"),
    ],
)
def test_wrong_wishes_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(GitopsError) as caught:
        gitops_plan.plan(Observed(python=PYTHON), dataclasses.replace(WANTED, **change))
    assert words in str(caught.value) and "canary" not in str(caught.value)


@pytest.mark.parametrize(("python", "words"), [((3, 10, 12), "is 3.10.12"), ((), "does not run")])
def test_an_old_python_is_refused(python: tuple[int, ...], words: str) -> None:
    with pytest.raises(GitopsError, match=words):
        gitops_plan.plan(Observed(python=python), WANTED)


def test_another_wheel_or_python_is_another_environment() -> None:
    names = {
        gitops_plan.venv_name(WANTED, (3, 13, 5)),
        gitops_plan.venv_name(WANTED, (3, 14, 0)),
        gitops_plan.venv_name(dataclasses.replace(WANTED, wheel_sha256="1" * 64), (3, 13, 5)),
        gitops_plan.venv_name(dataclasses.replace(WANTED, requirements="rich==16"), (3, 13, 5)),
    }
    assert len(names) == 4
    assert gitops_plan.venv_name(WANTED, (3, 13, 6)) in names


@given(st.text(), st.lists(st.text(min_size=1)))
def test_what_is_written_is_what_is_read(text: str, texts: list[str]) -> None:
    wanted = {key: value for key, value in {"mail": text, "windows": texts}.items() if value}
    assert tomllib.loads(gitops_plan.toml({"mail": text, "windows": texts})) == wanted


def test_the_roles_configuration_is_one_that_a_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signers = tmp_path / "signers"
    signers.write_text(SIGNER)
    wanted = dataclasses.replace(WANTED, vault_password="x", webhook="https://host")
    file = tmp_path / "gitops.toml"
    file.write_text(gitops_plan.config_text(wanted).replace(gitops_plan.SIGNERS, str(signers)))
    config = gitops_config.load(file)
    assert (str(config.state), config.repository) == (gitops_plan.STATE, CONFIG["repository"])


def test_a_checkout_is_packed_the_same_each_time(tmp_path: Path) -> None:
    wheels = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        wheels.append(gitops_install.pack(tmp_path / name))
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with zipfile.ZipFile(wheels[0]) as archive:
        names = set(archive.namelist())
    infra = "ansible_collections/labrack/infra"
    assert {
        "labrack/gitops.py",
        f"{infra}/playbooks/lease.yml",
        f"{infra}/roles/gitops/files/requirements.txt",
    } <= names


def test_wrong_options_of_install_are_found_before_any_node_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(gitops_install, "run_playbook", lambda *_, **__: pytest.fail("a node was asked"))
    (tmp_path / "hosts.yml").write_text("lab_head: {hosts: {head: {}}}\n")
    (tmp_path / "signers").write_text("nobody\n")
    options = ["-i", str(tmp_path / "hosts.yml"), "--repo", "/srv/lab.git", "--window", "Sat"]
    signers = ["--allowed-signers", str(tmp_path / "signers")]
    done = CliRunner().invoke(cli.app, ["gitops", "install", *options, *signers])
    assert done.exit_code == 1
    assert "gitops_allowed_signers has 'nobody'" in done.stderr and "'Sat' is no window" in done.stderr
    (tmp_path / "empty").touch()
    secret = ["--vault-password-file", str(tmp_path / "empty")]
    done = CliRunner().invoke(cli.app, ["gitops", "install", *options, *signers, *secret])
    assert done.exit_code == 1 and "is empty" in done.stderr


def test_the_lease_is_held_by_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The playbook itself, on this machine; one node does not answer."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    file = tmp_path / "run/lease.json"
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "lease_file": str(file)}
    gone = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
    hosts = {"lab_head": {"hosts": {"head": here}}, "lab_workers": {"hosts": {"node1": gone}}}
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    found = lab.load([tmp_path / "hosts.json"])
    log, progress = tmp_path / "lease.log", Progress(Console(file=io.StringIO()))
    with lease.held(found, log, progress, "a test") as reached:
        assert reached.up == ("head",) and list(reached.down) == ["node1"]
        held = json.loads(file.read_text())
        assert held["what"] == "a test" and 0 < held["until"] - time.time() <= 3600
    assert not file.exists()
    held |= {"owner": "laptop", "who": "eva@laptop"}
    file.write_text(json.dumps(held))
    with pytest.raises(lease.Taken, match="eva@laptop holds the lease"), lease.held(found, log, progress, "a test"):
        pass
    assert json.loads(file.read_text()) == held
