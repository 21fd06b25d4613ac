# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An own clone of the repository that ``labrack gitops`` applies: fetch, prove who signed it, lay out its files.

Nothing that the repository or the user's settings hold steers git: every setting that matters is given on the command
line, hooks, filters and submodules are not run, and signatures count by the list of signers alone, which lies outside.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .shell import UserError

#: What has to outlive a change of the files: the numbers that labrack chose for people, beside the inventory.
KEPT = "lab_uids.txt"
#: Seconds without an end, after which git is given up.
PATIENCE = 300.0
#: The commit as it was fetched.
_REMOTE = "refs/labrack/remote"
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.autocrlf=false",
    "core.protectNTFS=false",
    "protocol.allow=never",
    "protocol.file.allow=always",
    "protocol.git.allow=always",
    "protocol.http.allow=always",
    "protocol.https.allow=always",
    "protocol.ssh.allow=always",
    "protocol.ext.allow=never",
    "transfer.fsckObjects=true",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "gpg.format=ssh",
    "gpg.ssh.program=ssh-keygen",
    # a signature of another kind counts as none
    "gpg.openpgp.program=/bin/false",
    "gpg.x509.program=/bin/false",
)


class Denied(RuntimeError):
    """A commit that may not be applied; the message says which, why, and the mend."""


class GitError(UserError):
    """git failed, such as by a server that does not answer; the message has its words."""


@dataclass(frozen=True)
class Repository:
    """The clone in ``folder``, of the branch at ``url``; who may sign is in ``signers``.

    ``lock`` is a file descriptor that git's processes keep open: a lock on it holds until the last of them has ended.
    """

    url: str
    branch: str
    folder: Path
    signers: Path
    lock: int = -1

    def fetch(self) -> str:
        """Fetch the branch and return its newest commit; :class:`GitError` where that fails."""
        if not (self.folder / "HEAD").exists():
            # a folder that a killed run left is made whole
            self._git("init", "--quiet", "--bare", "--template=", str(self.folder), inside=False)
        # nobody else works here: what a killed git has locked is free
        for left in self.folder.rglob("*.lock"):
            left.unlink()
        source = f"+refs/heads/{self.branch}:{_REMOTE}"
        self._git("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", self.url, source)
        return self._git("rev-parse", "--verify", "--end-of-options", f"{_REMOTE}^{{commit}}").strip()

    def verify(self, new: str, last: str | None) -> list[str]:
        """Prove that ``new`` follows ``last`` and that every commit between is signed by one of the signers.

        The path is that of first parents. Without ``last`` the newest commit alone is proved, and vouches for those
        before it. Returns the signers, :class:`Denied` where one is missing.
        """
        if last is None:
            commits = [new]
        elif last == new:
            return []
        else:
            if not self.has(last) or self._run("merge-base", "--is-ancestor", last, new).returncode != 0:
                raise Denied(
                    f"The branch {self.branch} was rewritten: its commit {new[:12]} does not follow {last[:12]}, which "
                    "was there before. Mend: push the old line again and undo by `git revert`; if it was meant, run "
                    f"once `labrack gitops run --accept {new}`"
                )
            commits = self._git("rev-list", "--first-parent", "--reverse", new, f"^{last}").split()
        return list(dict.fromkeys(self._signer(commit) for commit in commits))

    def has(self, commit: str) -> bool:
        """Return whether the clone has a commit."""
        return self._run("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0

    def _signer(self, commit: str) -> str:
        done = self._run("verify-commit", "--raw", commit)
        signer = re.search(r'^Good "git" signature for (.+) with ', done.stderr, re.MULTILINE)
        if done.returncode == 0 and signer:
            return signer[1]
        who, _, subject = self._git("log", "-1", "--format=%ae%x00%s", commit).strip().partition("\0")
        key = re.search(r"with (\S+ key \S+)", done.stderr)
        why = f"it is signed with the {key[1]}, which is none of theirs" if key else "it has no signature that counts"
        raise Denied(
            f'Commit {commit[:12]} ("{_plain(subject)}", by {_plain(who)}) is not signed by one of those in '
            f"{self.signers}: {why}. Mend: sign it with ssh (git config gpg.format ssh, commit.gpgsign true) by "
            "somebody who is listed there, and push that on top"
        )

    def subject(self, commit: str) -> str:
        """Return the first line of a commit's message, without control characters."""
        return _plain(self._git("log", "-1", "--format=%s", commit).strip())

    def lay_out(self, commit: str, tree: Path) -> None:
        """Make the files of ``tree`` those of a commit, and no others but :data:`KEPT`.

        A run that was killed meanwhile is made up for by the next call.
        """
        tree.mkdir(mode=0o700, parents=True, exist_ok=True)
        index = tree.with_name(f"{tree.name}.index")
        for left in (index, index.with_name(f"{index.name}.lock")):
            left.unlink(missing_ok=True)
        place = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(tree)}
        self._git("read-tree", commit, place=place, cwd=tree)
        # first away with what may be in the way: files of the last commit, and of a killed run
        self._git("clean", "--quiet", "-ffdx", "-e", KEPT, place=place, cwd=tree)
        self._git("checkout-index", "--all", "--force", "--quiet", place=place, cwd=tree)

    def _ssh_options(self) -> list[str]:
        """A server that is not known yet is trusted at the first contact, as signatures prove what it sends."""
        own = self.folder.with_name("known_hosts")
        files = f'UserKnownHostsFile="{own}" ~/.ssh/known_hosts'
        options = ("BatchMode=yes", "ConnectTimeout=20", files, "StrictHostKeyChecking=accept-new")
        return [word for option in options for word in ("-o", option)]

    def _git(
        self, *arguments: str, inside: bool = True, place: dict[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        done = self._run(*arguments, inside=inside, place=place, cwd=cwd)
        if done.returncode != 0:
            words = [line for line in done.stderr.strip().splitlines() if line.strip()][-4:]
            raise GitError(f"git {arguments[0]} failed: " + "\n".join(words or [f"exit status {done.returncode}"]))
        return done.stdout

    def _run(
        self,
        *arguments: str,
        inside: bool = True,
        place: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        settings = [word for one in (*_SETTINGS, f"gpg.ssh.allowedSignersFile={self.signers}") for word in ("-c", one)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment |= {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_SSH_COMMAND": shlex.join(["ssh", *self._ssh_options()]),
            "LC_ALL": "C",
            **({"GIT_DIR": str(self.folder)} if inside else {}),
            **(place or {}),
        }
        argv: Sequence[str] = ["git", *settings, *arguments]
        try:
            return subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=cwd or self.folder.parent,
                timeout=PATIENCE,
                pass_fds=(self.lock,) if self.lock >= 0 else (),
            )
        except FileNotFoundError:
            raise GitError("There is no git here. As root: apt-get install git") from None
        except subprocess.TimeoutExpired:
            raise GitError(f"git {arguments[0]} did not end within {PATIENCE:.0f} s.") from None


def _plain(text: str) -> str:
    return "".join(character for character in text if character.isprintable())[:100]
