# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge a head that keeps its lab as a git repository says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gitops
short_description: Converge a head that keeps its lab as a git repository says
version_added: 0.1.0
description:
  - A user with a deploy key, labrack in a virtual environment, its configuration, and a service with its timer, see the
    role P(labrack.infra.gitops#role).
  - The deploy key is made on the host, and its private half never leaves it. No secret is returned or shown in a
    difference.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) takes all of it away, the deploy key and what the runs have written down as well.
    type: str
    choices: [present, absent]
    default: present
  config:
    description: Keys of C(/etc/labrack/gitops.toml), without those that name files.
    type: dict
    default: {}
  allowed_signers:
    description: Who may sign, in the format of ssh-keygen(1).
    type: str
    default: ""
  vault_password:
    description: The password of the repository's vaulted values.
    type: str
  webhook:
    description: Where runs are told of; such an address is a secret.
    type: str
  known_hosts:
    description: The lines of C(known_hosts) for the nodes.
    type: str
    default: ""
  schedule:
    description: When, in systemd's words for the calendar.
    type: str
    default: "*:0/15"
  wheel:
    description: The wheel of labrack on the host.
    type: path
    default: ""
  wheel_sha256:
    description: Its sum.
    type: str
    default: ""
  requirements:
    description: What labrack needs, as a requirements file with sums.
    type: str
    default: ""
  index_url:
    description: The package index.
    type: str
    default: https://pypi.org/simple
  python:
    description: The Python that labrack runs with.
    type: str
    default: python3
  textfile_directory:
    description: Where node_exporter's textfile collector looks; nothing is done where it is not there.
    type: path
    default: /var/lib/prometheus/node-exporter
  installed:
    description: Packages that the role has just installed.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Take it away
  labrack.infra.gitops:
    state: absent
"""

RETURN = r"""
changes:
  description: What was or would be changed, without secrets.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption).
  type: list
  elements: dict
  returned: always
public_key:
  description: The public half of the deploy key, empty where there is none yet.
  type: str
  returned: always
packages:
  description: Packages that the role installed and nothing needs any more.
  type: list
  elements: str
  returned: always
"""

import contextlib
import glob
import grp
import os
import pwd
import shutil
import tempfile
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import gitops_plan
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.gitops_plan import GitopsError, Observed, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    observe_file,
    read_text,
    remove_empty,
    remove_file,
    run,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    apply_steps,
    observe_services,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "config": {"type": "dict", "default": {}},
    "allowed_signers": {"type": "str", "default": ""},
    "vault_password": {"type": "str", "no_log": True},
    "webhook": {"type": "str", "no_log": True},
    # public keys
    "known_hosts": {"type": "str", "default": "", "no_log": False},
    "schedule": {"type": "str", "default": "*:0/15"},
    "wheel": {"type": "path", "default": ""},
    "wheel_sha256": {"type": "str", "default": ""},
    "requirements": {"type": "str", "default": ""},
    "index_url": {"type": "str", "default": "https://pypi.org/simple"},
    "python": {"type": "str", "default": "python3"},
    "textfile_directory": {"type": "path", "default": "/var/lib/prometheus/node-exporter"},
    "installed": {"type": "list", "elements": "str", "default": []},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}
#: Seconds for pip to fetch and install everything.
INSTALL_TIMEOUT = 900.0


def read_wanted(params: dict[str, Any]) -> Wanted:
    """Return what the parameters want; GitopsError for a schedule that systemd does not know."""
    if params["state"] == "absent":
        return Wanted(present=False, textfile_directory=params["textfile_directory"])
    schedule = run(["systemd-analyze", "calendar", params["schedule"]])
    if schedule.rc:
        raise GitopsError(
            f"gitops_schedule is {params['schedule']}: {schedule.err.strip().splitlines()[0]}. "
            'Mend: write it as "*:0/15" or hourly, see systemd.time(7)'
        )
    return Wanted(
        config=params["config"],
        allowed_signers=params["allowed_signers"],
        vault_password=params["vault_password"] or "",
        webhook=params["webhook"] or "",
        known_hosts=params["known_hosts"],
        schedule=params["schedule"],
        wheel=params["wheel"],
        wheel_sha256=params["wheel_sha256"],
        requirements=params["requirements"],
        textfile_directory=params["textfile_directory"],
        installed=tuple(params["installed"]),
    )


def observe(python: str, textfile_directory: str) -> Observed:
    """Read files, user, key, environment, timer and the version of Python."""
    paths = (*gitops_plan.FILES, gitops_plan.RECORD)
    timer = f"{gitops_plan.USER}.timer"
    return Observed(
        {path: observe_file(path) for path in paths},
        _user() is not None,
        (read_text(f"{gitops_plan.KEY}.pub") or "").strip() if os.path.exists(gitops_plan.KEY) else "",
        _venv(),
        os.path.isdir(gitops_plan.OPT),
        os.path.islink(_link(textfile_directory)) if os.path.isdir(textfile_directory) else None,
        observe_services([timer])[timer],
        _version(python),
    )


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(gitops_plan.USER)
    except KeyError:
        return None


def _venv() -> str:
    """The name of the environment in use, empty where it is not whole."""
    if not os.path.exists(os.path.join(gitops_plan.VENV, gitops_plan.COMPLETE)):
        return ""
    return os.path.basename(os.path.realpath(gitops_plan.VENV))


def _version(python: str) -> tuple[int, ...]:
    done = run([python, "-c", "import sys; print(*sys.version_info[:3])"], timeout=20)
    return tuple(int(part) for part in done.out.split()) if done.rc == 0 else ()


def _link(textfile_directory: str) -> str:
    return os.path.join(textfile_directory, os.path.basename(gitops_plan.METRICS))


def apply(changes: list[Change], wanted: Wanted, seen: Observed, params: dict[str, Any]) -> None:
    """Make the changes, in order."""
    files = gitops_plan.wanted_files(wanted) if wanted.present else {}
    files[gitops_plan.RECORD] = gitops_plan.record_file(seen, wanted)
    others: dict[str, Callable[..., None]] = {
        "user": make_user,
        "key": make_key,
        "venv": lambda name: make_venv(name, wanted, params),
        "link": lambda: os.symlink(gitops_plan.METRICS, _link(wanted.textfile_directory)),
        "unlink": lambda: remove_file(_link(wanted.textfile_directory)),
        "rmtree": shutil.rmtree,
        "userdel": remove_user,
    }
    apply_steps(changes, files, others)
    if not wanted.present:
        run(["systemctl", "reset-failed", f"{gitops_plan.USER}.service"])
        remove_file(f"/var/lib/systemd/timers/stamp-{gitops_plan.USER}.timer")
        remove_empty(gitops_plan.FOLDER)
        remove_empty(os.path.dirname(gitops_plan.FOLDER))


def make_user() -> None:
    """Make the user with its folders; GitopsError where the system refuses."""
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", gitops_plan.HOME]
    done = run(["useradd", *options, "--shell", "/usr/sbin/nologin", gitops_plan.USER])
    if done.rc:
        raise GitopsError(f"useradd {gitops_plan.USER} failed: {done.err.strip()}")
    _folders()


def _folders() -> None:
    user, group = pwd.getpwnam(gitops_plan.USER).pw_uid, grp.getgrnam(gitops_plan.USER).gr_gid
    # metrics are read by others, on the way to which is nothing but the folder's name
    modes = {gitops_plan.HOME: 0o711, gitops_plan.SSH: 0o700, gitops_plan.STATE: 0o700}
    for path, mode in {**modes, os.path.dirname(gitops_plan.METRICS): 0o755}.items():
        os.makedirs(path, exist_ok=True)
        os.chown(path, user, group)
        os.chmod(path, mode)
    os.makedirs(gitops_plan.FOLDER, mode=0o755, exist_ok=True)


def make_key() -> None:
    """Make the deploy key, as its user; GitopsError where that fails."""
    _folders()
    remove_file(gitops_plan.KEY)
    remove_file(f"{gitops_plan.KEY}.pub")
    comment = f"{gitops_plan.USER}@{os.uname().nodename}"
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", gitops_plan.KEY]
    done = run(keygen)
    if done.rc:
        raise GitopsError(f"ssh-keygen failed: {done.err.strip()}")
    for path in (gitops_plan.KEY, f"{gitops_plan.KEY}.pub"):
        shutil.chown(path, gitops_plan.USER, gitops_plan.USER)


def make_venv(name: str, wanted: Wanted, params: dict[str, Any]) -> None:
    """Make an environment, show that labrack runs in it, and only then put it in use; GitopsError with pip's words."""
    place = os.path.join(gitops_plan.OPT, name)
    shutil.rmtree(place, ignore_errors=True)
    pip = [f"{place}/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    index = ["--index-url", params["index_url"], "--only-binary=:all:", "--require-hashes"]
    with tempfile.TemporaryDirectory(prefix="labrack-") as home:
        for argv in (
            [params["python"], "-m", "venv", place],
            [*pip, "--no-cache-dir", *index, "-r", gitops_plan.REQUIREMENTS],
            [*pip, "--no-index", wanted.wheel],
            [f"{place}/bin/labrack", "--version"],
        ):
            done = run(argv, timeout=INSTALL_TIMEOUT, env={"HOME": home})
            if done.rc:
                words = "\n".join((done.err.strip() or done.out.strip()).splitlines()[-4:])
                shutil.rmtree(place, ignore_errors=True)
                raise GitopsError(
                    f"labrack can't be installed in {place}: {words}. Mend: name an index that this host reaches in "
                    "gitops_index_url"
                )
    with open(os.path.join(place, gitops_plan.COMPLETE), "w", encoding="utf-8"):
        pass
    draft = f"{gitops_plan.VENV}.new"
    remove_file(draft)
    os.symlink(name, draft)
    os.rename(draft, gitops_plan.VENV)
    state = run(["systemctl", "show", "--property=ActiveState", "--value", f"{gitops_plan.USER}.service"])
    if state.out.strip() not in ("inactive", "failed"):
        # a run that goes on still reads the old one; the next change takes it away
        return
    for old in glob.glob(f"{gitops_plan.OPT}/venv-*"):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def remove_user() -> None:
    """Remove the user with all it has; GitopsError where the system refuses."""
    done = run(["userdel", gitops_plan.USER])
    # 6: it is not there any more (userdel(8))
    if done.rc not in (0, 6):
        raise GitopsError(f"userdel {gitops_plan.USER} failed: {done.err.strip()}. Mend: end its processes")
    with contextlib.suppress(KeyError):
        grp.getgrnam(gitops_plan.USER)
        run(["groupdel", gitops_plan.USER])
    shutil.rmtree(gitops_plan.HOME, ignore_errors=True)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    first: list[Observed] = []
    python = module.params["python"]

    def look() -> Observed:
        seen = observe(python, module.params["textfile_directory"])
        first.append(seen)
        return seen

    def extra(state: Observed) -> dict[str, Any]:
        packages = [] if wanted.present else gitops_plan.installed(first[0], wanted)
        return {"public_key": state.public_key, "packages": packages}

    try:
        wanted = read_wanted(module.params)
        converge(
            module,
            look,
            lambda state: gitops_plan.plan(state, wanted, python),
            lambda changes: apply(changes, wanted, first[0], module.params),
            extra,
            ledger="gitops",
        )
    except (GitopsError, ServiceError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
