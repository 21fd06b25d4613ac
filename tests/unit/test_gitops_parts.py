# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run of ``labrack gitops`` is made of: windows, the configuration file, the lease, and who signed what."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils.lease import Lease, holder
from ansible_collections.labrack.infra.plugins.module_utils.maintenance_window import (
    DAYS,
    Window,
    WindowError,
    is_open,
    opens,
)
from labrack import gitops_config
from labrack.gitops_repository import KEPT, Denied, GitError, Repository
from labrack.shell import UserError
from tests.unit.gitops_lab import Author, Remote

MONDAY = datetime(2026, 6, 1)
moments = st.integers(0, 4 * 7 * 24 * 60 - 1).map(lambda minutes: MONDAY + timedelta(minutes=minutes))
clocks = st.integers(0, 1439)


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment", "open_then"),
    [
        ("Sat 02:00-06:00", "2026-06-06 02:00", True),
        ("Sat 02:00-06:00", "2026-06-06 05:59", True),
        ("Sat 02:00-06:00", "2026-06-06 06:00", False),
        ("Sat 02:00-06:00", "2026-06-06 01:59", False),
        ("Sat 02:00-06:00", "2026-06-07 03:00", False),
        # across midnight: it belongs to the day on which it opens
        ("Fri 22:00-04:00", "2026-06-06 03:59", True),
        ("Fri 22:00-04:00", "2026-06-05 03:59", False),
        # across the end of the week
        ("Sun 22:00-04:00", "2026-06-08 03:00", True),
        ("Sun 22:00-04:00", "2026-06-07 03:00", False),
        ("Sat-Mon 10:00-11:00", "2026-06-08 10:30", True),
        ("sat,MON 10:00-11:00", "2026-06-07 10:30", False),
        ("daily 03:00-05:00", "2026-06-03 04:00", True),
        ("03:00-05:00", "2026-06-03 04:00", True),
        ("Sun 00:00-24:00", "2026-06-07 23:59", True),
        ("Sun 00:00-24:00", "2026-06-08 00:00", False),
    ],
)
def test_windows(text: str, moment: str, open_then: bool) -> None:
    assert is_open([Window.read(text)], datetime.fromisoformat(moment)) is open_then


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sat",
        "Sat 2:00-6:00",
        "Sam 02:00-06:00",
        "Sat 02:00-02:00",
        "Sat 25:00-26:00",
        "24:00-03:00",
        "Sat-Sun-Mon 1",
    ],
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(WindowError, match=r"Mend: "):
        Window.read(text)


@given(st.sets(st.sampled_from(DAYS), min_size=1), clocks, clocks, moments)
def test_a_window_is_the_minutes_that_one_counts_by_hand(days: set[str], start: int, end: int, now: datetime) -> None:
    if start == end:
        return
    window = Window.read(f"{','.join(sorted(days))} {clock(start)}-{clock(end)}")
    length = (end - start) % 1440
    by_hand = 0
    for back in range(2):
        day = (now - timedelta(days=back)).replace(hour=0, minute=0)
        opened = day + timedelta(minutes=start)
        if DAYS[day.weekday()] in days and opened <= now < opened + timedelta(minutes=length):
            by_hand = max(by_hand, round((opened + timedelta(minutes=length) - now).total_seconds() / 60))
    assert window.left(now) == by_hand


@given(st.sets(st.sampled_from(DAYS), min_size=1), clocks, clocks, moments)
def test_the_next_opening_is_open_and_nothing_is_before(days: set[str], start: int, end: int, now: datetime) -> None:
    if start == end:
        return
    windows = [Window.read(f"{','.join(sorted(days))} {clock(start)}-{clock(end)}")]
    when = opens(windows, now)
    assert when is not None and now <= when <= now + timedelta(days=7) and is_open(windows, when)
    for step in range(1, 8):
        between = now + (when - now) * step / 8
        assert between >= when or when == now or not is_open(windows, between)


def test_without_windows_none_opens() -> None:
    assert opens([], MONDAY) is None and not is_open([], MONDAY)


# --- the lease -------------------------------------------------------------------------------------------------------


def test_a_lease_keeps_others_out_until_it_ends() -> None:
    lease = Lease("a", "ada@laptop", "labrack apply", 100.0, 200.0)
    assert Lease.read(lease.text()) == lease
    assert holder(lease, "b", 150.0) == lease
    assert holder(lease, "a", 150.0) is None and holder(lease, "b", 200.0) is None and holder(None, "b", 0.0) is None
    assert lease.words(150.0).startswith("ada@laptop holds the lease of this lab since 1970-01-01 00:01 UTC")


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"owner": "a"}', '{"owner":1,"who":1,"what":1,"since":"x"}'])
def test_what_is_no_lease_keeps_nobody_out(text: str | None) -> None:
    assert Lease.read(text) is None


# --- configuration ---------------------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    signers = folder / "signers"
    signers.write_text("ada@example.org ssh-ed25519 AAAA\n")
    file = folder / "gitops.toml"
    file.write_text(f'allowed_signers = "{signers}"\nstate = "{folder}/state"\n{text}')
    return file


def test_configuration(tmp_path: Path) -> None:
    config = gitops_config.load(
        written(tmp_path, 'repository = "git@git.example.org:lab/closet.git"\nwindows = ["Sat 02:00-06:00"]\n')
    )
    assert config.windows[0].days == (5,) and config.branch == "main" and config.inventory == ("inventory",)
    assert config.max_disruption == "restart" and config.state == tmp_path / "state"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "repository is missing"),
        ('repository = "/srv/a.git"\nbranches = "main"', "branches is no key"),
        ('repository = "/srv/a.git"\nbranch = 7', "branch = 7 is not a text"),
        ('repository = "/srv/a.git"\nbranch = "--upload-pack=x"', "no name of a branch"),
        ('repository = "/srv/a.git"\nbranch = "a..b"', "no name of a branch"),
        ('repository = "ext::sh -c touch%20/tmp/x"', "is no address"),
        ('repository = "--upload-pack=touch /tmp/x"', "is no address"),
        ('repository = "git@host:--upload-pack=x"', "is no address"),
        ('repository = "/srv/a.git"\nmax_disruption = "all"', "none of none, reload"),
        ('repository = "/srv/a.git"\nwindows = ["Sat"]', "'Sat' is no window"),
        ('repository = "/srv/a.git"\ninventory = ["../other"]', "no path inside the repository"),
        ('repository = "/srv/a.git"\ninventory = []', "names none"),
        ('repository = "/srv/a.git"\nmetrics = "labrack.prom"', "no absolute path"),
        ('repository = "/srv/a.git"\nretry = 0', "less than a second"),
        ('repository = "/srv/a.git"\nmail = "-oQ/tmp x"', "is no address"),
        ("repository = [", "is no TOML"),
    ],
)
def test_wrong_configuration(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        gitops_config.load(written(tmp_path, text))
    assert words in str(caught.value) and str(tmp_path / "gitops.toml") in str(caught.value)


@pytest.mark.parametrize("text", ["https://ada:canary@host/lab.git", "https://canary@host/lab.git"])
def test_a_secret_in_the_address_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as caught:
        gitops_config.load(written(tmp_path, f'repository = "{text}"'))
    assert "holds a user name or a password" in str(caught.value) and "canary" not in str(caught.value)


def test_signers_that_others_could_change_prove_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, 'repository = "/srv/a.git"')
    (tmp_path / "signers").chmod(0o666)
    with pytest.raises(UserError, match="can be changed by others"):
        gitops_config.load(file)


def test_signers_from_the_repository_prove_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, 'repository = "/srv/a.git"')
    inside = tmp_path / "state/applied/signers"
    inside.parent.mkdir(parents=True)
    inside.write_text("ada@example.org ssh-ed25519 AAAA\n")
    file.write_text(file.read_text().replace(str(tmp_path / "signers"), str(inside)))
    with pytest.raises(UserError, match="where the repository's files are"):
        gitops_config.load(file)


def test_no_signers(tmp_path: Path) -> None:
    file = written(tmp_path, 'repository = "/srv/a.git"')
    (tmp_path / "signers").write_text("# nobody yet\n")
    with pytest.raises(UserError, match="names nobody"):
        gitops_config.load(file)


# --- the repository --------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote.make(tmp_path / "remote")


@pytest.fixture
def repository(tmp_path: Path, remote: Remote) -> Repository:
    (tmp_path / "state").mkdir()
    return Repository(str(remote.bare), "main", tmp_path / "state/repository.git", remote.signers(tmp_path / "signers"))


def test_signed_commits_are_taken(remote: Remote, repository: Repository, tmp_path: Path) -> None:
    first = remote.commit({"inventory/hosts.yml": "one"}, remote.ada)
    assert repository.fetch() == first and repository.verify(first, None) == ["ada@example.org"]
    remote.commit({"inventory/hosts.yml": "two"}, remote.ben)
    last = remote.commit({"inventory/hosts.yml": "three"}, remote.ada)
    assert repository.fetch() == last
    assert repository.verify(last, first) == ["ben@example.org", "ada@example.org"]
    repository.lay_out(last, tmp_path / "state/applied")
    assert (tmp_path / "state/applied/inventory/hosts.yml").read_text() == "three"


def test_an_unsigned_commit_between_signed_ones_is_denied(remote: Remote, repository: Repository) -> None:
    first = remote.commit({"a": "1"}, remote.ada)
    unsigned = remote.commit({"a": "2"}, None)
    remote.commit({"a": "3"}, remote.ada)
    with pytest.raises(Denied) as caught:
        repository.verify(repository.fetch(), first)
    assert unsigned[:12] in str(caught.value) and "has no signature that counts" in str(caught.value)


def test_a_strangers_signature_is_denied(remote: Remote, repository: Repository) -> None:
    first = remote.commit({"a": "1"}, remote.ada)
    remote.commit({"a": "2"}, remote.stranger)
    with pytest.raises(Denied, match="which is none of theirs"):
        repository.verify(repository.fetch(), first)
    with pytest.raises(Denied):
        repository.verify(repository.fetch(), None)


def test_a_stranger_who_names_himself_a_signer_is_denied(remote: Remote, repository: Repository) -> None:
    """The name of the author, and a list of signers in the repository or its settings, prove nothing."""
    first = remote.commit({"a": "1"}, remote.ada)
    liar = Author("ada@example.org", remote.stranger.key)
    listed = f"ada@example.org {remote.stranger.public}\n"
    remote.commit({"allowed_signers": listed, "signers": listed, ".gitattributes": "* filter=evil\n"}, liar)
    (repository.folder.parent / "allowed_signers").write_text(listed)
    new = repository.fetch()
    remote.git("config", "gpg.ssh.allowedSignersFile", "allowed_signers", where=remote.bare)
    with pytest.raises(Denied):
        repository.verify(new, first)


def test_a_merge_counts_by_itself_and_what_it_brings_by_the_merge(remote: Remote, repository: Repository) -> None:
    first = remote.commit({"a": "1"}, remote.ada)
    merged = remote.merge({"b": "of a branch"}, None, remote.ada)
    assert repository.verify(repository.fetch(), first) == ["ada@example.org"]
    assert repository.has(merged)
    remote.merge({"c": "of a branch"}, remote.ada, None)
    with pytest.raises(Denied):
        repository.verify(repository.fetch(), first)


def test_a_rewritten_history_is_denied_though_it_is_signed(remote: Remote, repository: Repository) -> None:
    first = remote.commit({"a": "1"}, remote.ada)
    second = remote.commit({"a": "2"}, remote.ada)
    repository.fetch()
    remote.git("reset", "--quiet", "--hard", first)
    remote.git("push", "--quiet", "--force", "origin", "main")
    with pytest.raises(Denied, match="was rewritten") as caught:
        repository.verify(repository.fetch(), second)
    assert f"--accept {first}" in str(caught.value)
    other = remote.commit({"a": "3"}, remote.ada)
    with pytest.raises(Denied, match="was rewritten"):
        repository.verify(repository.fetch(), second)
    assert repository.verify(other, None) == ["ada@example.org"]


def test_hooks_and_settings_of_the_repository_run_nothing(
    remote: Remote, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    first = remote.commit({"a": "1", ".gitattributes": "* filter=evil\n"}, remote.ada)
    repository.fetch()
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        script = repository.folder / "hooks" / hook
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ntouch {ran}\n")
        script.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[filter "evil"]\nsmudge = touch {ran}; cat\n[core]\nfsmonitor = touch {ran}\n[gpg]\nprogram = true\n'
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {ran}")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    remote.commit({"a": "2"}, remote.ada)
    new = repository.fetch()
    repository.verify(new, first)
    repository.lay_out(new, tmp_path / "state/applied")
    assert (tmp_path / "state/applied/a").read_text() == "2" and not ran.exists()


def test_files_are_those_of_the_commit_and_chosen_numbers_stay(
    remote: Remote, repository: Repository, tmp_path: Path
) -> None:
    tree = tmp_path / "state/applied"
    remote.commit({"inventory/hosts.yml": "one", "gone": "soon", "thing": "a file"}, remote.ada)
    repository.lay_out(repository.fetch(), tree)
    (tree / "inventory" / KEPT).write_text("ada 2001\n")
    (tree / "inventory/hosts.yml").write_text("tampered with")
    (tree / "inventory/group_vars").mkdir()
    (tree / "inventory/group_vars/all.yml").write_text("added by hand")
    # a killed git leaves its locks
    (repository.folder / "refs/labrack").mkdir(parents=True, exist_ok=True)
    (repository.folder / "refs/labrack/remote.lock").touch()
    (tree.parent / "applied.index.lock").touch()
    remote.git("rm", "--quiet", "gone", "thing")
    new = remote.commit({"thing/inside": "a folder now"}, remote.ada)
    assert repository.fetch() == new
    repository.lay_out(new, tree)
    files = {str(path.relative_to(tree)): path.read_text() for path in tree.rglob("*") if path.is_file()}
    assert files == {
        "inventory/hosts.yml": "one",
        f"inventory/{KEPT}": "ada 2001\n",
        "thing/inside": "a folder now",
    }


def test_no_server_is_a_users_error(repository: Repository, remote: Remote) -> None:
    remote.bare.rename(remote.bare.with_name("moved"))
    with pytest.raises(GitError, match="git fetch failed: "):
        repository.fetch()


def test_git_takes_the_signature_of_no_other_kind(remote: Remote, repository: Repository, tmp_path: Path) -> None:
    """An OpenPGP signature is not asked about, so no keyring can vouch for a commit."""
    first = remote.commit({"a": "1"}, remote.ada)
    content = remote.git("cat-file", "commit", first)
    armor = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ==\n -----END PGP SIGNATURE-----\n"
    head, _, body = content.partition("gpgsig ")
    unsigned = body.partition("-----END SSH SIGNATURE-----\n")[2]
    forged = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--stdin"],
        input=f"{head.replace('author', f'parent {first}{chr(10)}author')}{armor}{unsigned}",
        cwd=remote.work,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    believer = tmp_path / "bin/gpg"
    believer.parent.mkdir()
    believer.write_text("#!/bin/sh\necho '[GNUPG:] NEWSIG'; echo '[GNUPG:] GOODSIG 0123456789ABCDEF ada'\n")
    believer.chmod(0o755)
    remote.git("push", "--quiet", "--force", "origin", f"{forged}:main")
    os.environ["PATH"], before = f"{believer.parent}:{os.environ['PATH']}", os.environ["PATH"]
    try:
        with pytest.raises(Denied):
            repository.verify(repository.fetch(), first)
    finally:
        os.environ["PATH"] = before
