# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Put ``labrack gitops`` on a lab's head by the playbook ``labrack.infra.gitops``, with the labrack that runs now."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.module_utils import gitops_plan

from . import lease, shell
from .lab import Lab
from .planning import connection_arguments
from .progress import Progress, Step
from .run import run_playbook
from .shell import UserError

PLAYBOOK = "labrack.infra.gitops"
#: Files of an installation that are of this one alone.
_OWN = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")


def install(
    lab: Lab,
    variables: Mapping[str, Any],
    progress: Progress,
    *,
    check: bool = False,
    arguments: Sequence[str] = (),
    answers: Mapping[str, str] | None = None,
) -> str:
    """Install, or with ``gitops_state`` absent in ``variables`` take away; return the deploy key's public half.

    It is "" in check mode. The variables are those of the role, whose secrets stay in a file that is gone afterwards.
    Without ``gitops_wheel`` the running labrack is packed. :class:`.run.RunError` where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        given = dict(variables)
        if given.get("gitops_state") != "absent" and not given.get("gitops_wheel"):
            with progress.step("Pack") as step:
                wheel = pack(Path(folder))
                step.summary = wheel.name
            given["gitops_wheel"] = str(wheel)
        key = Path(folder) / "key.pub"
        given["gitops_key_file"] = str(key)
        # the command line is no place for secrets
        file = Path(folder) / "variables.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(given), encoding="utf-8")

        def play(step: Step) -> None:
            outcome = run_playbook(
                PLAYBOOK,
                lab.inventory,
                lab.state / "gitops.log",
                step,
                check=check,
                diff=check,
                arguments=["-e", f"@{file}", *arguments],
                answers=answers,
            )
            changed = sum(outcome.changed.values())
            step.summary = f"{changed} tasks {'would change' if check else 'changed'} something"

        if check:
            with progress.step("Check") as step:
                play(step)
            return ""
        reach = connection_arguments(arguments)
        holding = lease.held(lab, lab.state / "lease.log", progress, "gitops install", arguments=reach, answers=answers)
        with holding, progress.step("Head") as step:
            play(step)
        return key.read_text(encoding="utf-8").strip() if key.exists() else ""


def pack(folder: Path) -> Path:
    """Make a wheel of the labrack that runs; UserError where that can't be."""
    if (shell.home() / "pyproject.toml").is_file():
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        done = subprocess.run(command, cwd=shell.home(), capture_output=True, text=True)
        if done.returncode:
            words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise UserError(
                f"This checkout can't be packed: {''.join(words)}. Mend: run `make lint` once, which installs "
                "hatchling, or name a wheel with --wheel."
            )
        return next(folder.glob("*.whl"))
    distribution = importlib.metadata.distribution("labrack")
    wheel = folder / f"labrack-{distribution.version}-py3-none-any.whl"
    rows = []
    record = f"labrack-{distribution.version}.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(distribution.files or (), key=str):
            # programs and compiled files are made anew where it is installed
            if file.parts[0] == ".." or "__pycache__" in file.parts or file.name in _OWN:
                continue
            content = file.read_binary()
            _add(archive, str(file), content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{file},sha256={digest},{len(content)}\n")
        if not any(row.startswith("labrack/") for row in rows):
            raise UserError("The labrack that runs was not installed from a wheel. Name one with --wheel.")
        _add(archive, record, "".join([*rows, f"{record},,\n"]).encode())
    return wheel


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file with a fixed time, so that the same labrack always gives the same wheel."""
    entry = zipfile.ZipInfo(name, (2020, 2, 2, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def read_secret(file: Path | None, option: str) -> str | None:
    """Return the text of a file with a secret; UserError where it can't be read, or is empty."""
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {file} can't be read: {type(error).__name__}.") from None
    if not text:
        raise UserError(f"{option} {file} is empty.")
    if os.access(file, os.X_OK):
        raise UserError(f"{option} {file} is a program; the head needs the secret itself, in a file.")
    return text


def read_text(file: Path, option: str) -> str:
    """Return the text of a file; UserError where it can't be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {file} can't be read: {error}") from None


def check(variables: Mapping[str, Any]) -> None:
    """Refuse variables of the role that can't be, before any node is asked; UserError."""
    if variables.get("gitops_state") == "absent":
        return
    given = {key.removeprefix("gitops_"): value for key, value in variables.items()}
    config = {key: given[key] for key in ("repository", "inventory", "max_disruption", "windows", "window_disruption")}
    wanted = gitops_plan.Wanted(
        config=config,
        allowed_signers=given["allowed_signers"],
        webhook=given.get("webhook", ""),
        schedule=given["schedule"],
        wheel_sha256="0" * 64,
    )
    if found := list(gitops_plan.problems(wanted)):
        raise UserError("\n".join(found))
    if given["wheel"] and not Path(given["wheel"]).is_file():
        raise UserError(f"--wheel {given['wheel']} is not there.")
