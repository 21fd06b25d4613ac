# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A git remote with people who sign, as the tests of ``labrack gitops`` need it. The keys are ssh-keygen's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Author:
    """Somebody who commits, and the private key to sign with."""

    mail: str
    key: Path

    @property
    def public(self) -> str:
        """The key as it stands in a list of allowed signers."""
        return " ".join(self.key.with_suffix(".pub").read_text().split()[:2])


@dataclass(frozen=True)
class Remote:
    """A bare repository and a working copy that pushes to it."""

    bare: Path
    work: Path
    ada: Author
    ben: Author
    stranger: Author

    @classmethod
    def make(cls, folder: Path) -> Remote:
        """Make it, with nothing in it."""
        folder.mkdir()
        authors = []
        for name in ("ada", "ben", "stranger"):
            key = folder / name
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(key)], check=True)
            authors.append(Author(f"{name}@example.org", key))
        remote = cls(folder / "lab.git", folder / "work", *authors)
        remote.git("init", "--quiet", "--bare", "--initial-branch=main", str(remote.bare), where=folder)
        remote.git("init", "--quiet", "--initial-branch=main", str(remote.work), where=folder)
        remote.git("remote", "add", "origin", str(remote.bare))
        return remote

    def signers(self, file: Path) -> Path:
        """Write the list of those who may sign, ada and ben."""
        file.write_text("".join(f'{one.mail} namespaces="git" {one.public}\n' for one in (self.ada, self.ben)))
        return file

    def git(self, *arguments: str, author: Author | None = None, where: Path | None = None) -> str:
        """Run git in the working copy; with an ``author`` what it commits is signed."""
        mail = author.mail if author else "nobody@example.org"
        signed = ["gpg.format=ssh", f"user.signingKey={author.key}", "commit.gpgSign=true"] if author else []
        settings = ["user.name=somebody", f"user.email={mail}", "gc.auto=0", *signed]
        options = [word for setting in settings for word in ("-c", setting)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        argv = ["git", *options, *arguments]
        done = subprocess.run(argv, cwd=where or self.work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit(self, files: Mapping[str, str], author: Author | None, push: bool = True) -> str:
        """Commit files and push; return the commit."""
        for name, text in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", f"Change {', '.join(files)}", author=author)
        if push:
            self.git("push", "--quiet", "origin", "HEAD:main")
        return self.git("rev-parse", "HEAD").strip()

    def merge(self, files: Mapping[str, str], author: Author | None, merger: Author | None) -> str:
        """Commit files on a branch and merge it; return the branch's commit."""
        self.git("checkout", "--quiet", "-B", "topic")
        branch = self.commit(files, author, push=False)
        self.git("checkout", "--quiet", "main")
        self.git("merge", "--quiet", "--no-ff", "-m", "Merge topic", "topic", author=merger)
        self.git("push", "--quiet", "origin", "main")
        return branch
