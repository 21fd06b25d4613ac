# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make a lab's folder from a few answers: inventory, pinned host keys, vault, Ansible's configuration.

The folder is made beside its place, checked as a run would check it, and moved there at the end, so that nothing
half-written is ever there. Where there is no terminal, answers come from options and a file.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from ansible_collections.labrack.infra.plugins.module_utils.lab_check import BUILT

from . import asking, host_keys, inventory_edit, lab, shell, vault, yaml_edit
from .advice import NAMES, NEEDS, Advice, advise
from .host_keys import Address, HostKey
from .node_edit import show_keys
from .progress import Progress
from .run import run_playbook
from .shell import UserError
from .status import new_table
from .yaml_edit import Document

PLAYBOOK = "labrack.infra.look"
#: Stands for an address where Ansible runs on the machine itself.
LOCAL = "local"
NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
#: Keys of an answers file, with what each has to be.
ANSWERS: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "machines": dict,
    "user": str,
    "private_key": str,
    "needs": list,
    "head": str,
    "workers": list,
    "orchestrator": str,
    "share": bool,
    "fingerprints": list,
    "accept_host_keys": bool,
    "vault_password_file": str,
}
GITIGNORE = "# what Ansible and editors leave behind\n*.retry\n.ansible/\n.*.swp\n*~\n"
README = """\
# {name}

The lab as it shall be. `inventory/hosts.yml` has the machines, `inventory/group_vars/all/lab.yml` the rest.

    labrack doctor     what is wrong, before anything is changed
    labrack plan       what a run would change
    labrack apply      make it so

or without the command, in this folder: `ansible-playbook {playbook}`.

- Secrets are in `inventory/group_vars/all/vault.yml`: `ansible-vault edit inventory/group_vars/all/vault.yml`. Its
  password lies in `{password}`, not here: keep a copy of that file in a safe place.
- `inventory/known_hosts.txt` pins the machines' host keys. A machine that was installed anew gets its new line there.
- `inventory/lab_uids.txt` comes with the first run and has the numbers of people: commit it too.
"""


@dataclass(frozen=True)
class Machine:
    """A machine, with what was seen of it: RETURN of the module ``node_facts``. No address: it is this one."""

    name: str
    address: Address | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gpus(self) -> int:
        """How many cards it has."""
        return len(self.facts.get("gpus", ()))

    @property
    def words(self) -> str:
        """The machine in a few words."""
        kinds: dict[str, int] = {}
        for card in self.facts.get("gpus", ()):
            kind = card.get("slurm_type") or card.get("name") or "GPU"
            kinds[kind] = kinds.get(kind, 0) + 1
        cards = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "no GPU"
        facts = self.facts
        return f"{facts['os']['pretty']}, {facts['cpu']['cpus']} CPUs, {round(facts['memory_mib'] / 1024)} GiB, {cards}"


@dataclass(frozen=True)
class Lab:
    """All that the folder is made from."""

    name: str
    machines: Mapping[str, Machine]
    keys: Mapping[Address, Sequence[HostKey]]
    user: str
    private_key: str
    head: str
    workers: tuple[str, ...]
    orchestrator: str
    share: bool

    @property
    def tier(self) -> str:
        """The tier, as :class:`.lab.Lab` sees it."""
        return "closet" if len(self.machines) > 1 or self.orchestrator == "slurm" else "under_desk"


def answers(file: Path) -> dict[str, Any]:
    """Read an answers file; UserError for what it can't hold."""
    try:
        found = yaml_edit.load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The answers file {file} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a mapping. It may have: {', '.join(ANSWERS)}.")
    for key, value in found.items():
        if key not in ANSWERS:
            raise UserError(f"{file}: {key} is no answer. It may have: {', '.join(ANSWERS)}.")
        if not isinstance(value, ANSWERS[key]):
            kinds = {str: "a text", dict: "a mapping", list: "a list", bool: "true or false"}
            raise UserError(f"{file}: {key} is not {kinds[ANSWERS[key]]}.")  # type: ignore[index]
    return found


def make(folder: Path, given: Mapping[str, Any], force: bool, progress: Progress) -> tuple[Lab, list[Path]]:
    """Make a lab's folder, as :func:`_make` does; UserError also for a folder or file that can't be written."""
    try:
        return _make(folder, given, force, progress)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}. Nothing was changed.") from None


def _make(folder: Path, given: Mapping[str, Any], force: bool, progress: Progress) -> tuple[Lab, list[Path]]:
    """Ask what is not given, look at the machines, and make the lab's folder.

    ``given`` has keys of :data:`ANSWERS`. Returns the lab and the files that were written. Raises UserError,
    :class:`.run.RunError` and KeyboardInterrupt, after all of which nothing is changed.
    """
    folder = folder.absolute()
    _may_write(folder, force)
    found = _ask(folder, given, progress)
    password_file = Path(given.get("vault_password_file") or vault.default_file(found.name)).expanduser()
    password, new = vault.password(password_file)
    near = next(path for path in [folder, *folder.parents] if path.is_dir())
    stage = Path(tempfile.mkdtemp(prefix=".labrack-init-", dir=near))
    try:
        with progress.step("Check") as step:
            _write(stage, found, _short(password_file))
            _check(stage, found)
            (stage / "inventory/group_vars/all/vault.yml").write_text(
                vault.encrypted(vault.TEXT, password), encoding="utf-8"
            )
            _check_syntax(stage, found, password)
            step.summary = f"the inventory has nothing to mend; {lab.PLAYBOOKS[found.tier]} can be read with it"
        with _undisturbed():
            if new:
                vault.keep(password_file, password)
            try:
                written = _move(stage, folder)
            except BaseException:
                if new:
                    password_file.unlink()
                raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return found, [*written, *([password_file] if new else [])]


def parse_machines(words: Sequence[str]) -> dict[str, Address | None]:
    """Read NAME=ADDRESS words; UserError for a bad one."""
    found: dict[str, Address | None] = {}
    for word in words:
        name, sign, where = word.partition("=")
        if not sign or not where:
            raise UserError(f"{word}: write a machine as NAME=ADDRESS, such as node1=192.0.2.11, or as NAME={LOCAL}.")
        if not NAME.fullmatch(name):
            raise UserError(f"{name}: a machine's name has lower-case letters, digits and hyphens, a letter first.")
        if name in found:
            raise UserError(f"{name} is named twice.")
        found[name] = None if where == LOCAL else host_keys.address(where)
    if not found:
        raise UserError("A lab has at least one machine.")
    if len(set(found.values())) < len(found):
        raise UserError("Two of the machines have the same address.")
    return found


def _may_write(folder: Path, force: bool) -> None:
    there = [path for path in (folder / "inventory", folder / "ansible.cfg") if path.exists()]
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file.")
    if not there or force:
        return
    names = " and ".join(str(path.relative_to(folder)) for path in there)
    if not asking.yes(f"{folder} has {names} already. Write over it?", "--force"):
        raise UserError("Nothing was changed.")


def _ask(folder: Path, given: Mapping[str, Any], progress: Progress) -> Lab:
    """Ask what is not given and look at the machines; what has a default is not asked without a terminal."""
    terminal = asking.terminal()
    name = given.get("name") or _name(folder.name)
    if terminal and not given.get("name"):
        name = asking.text("What is the lab called?", "--name", name, _name_problem)
    if _name_problem(name):
        raise UserError(f"--name {name}: {_name_problem(name)}")
    addresses = _machines(given)
    user = given.get("user") or asking.text("Who logs in there, and may use sudo?", "--user", getpass.getuser())
    keys = _keys(addresses, given, progress)
    with progress.step("Look") as step:
        machines = _look(addresses, keys, user, given.get("private_key", ""), step)
        step.summary = f"{len(machines)} machines, {sum(one.gpus for one in machines.values())} GPUs"
    _show(machines)
    needs = given.get("needs")
    if needs is None:
        needs = asking.some("What matters to your team?", "--need", list(NEEDS.items())) if terminal else []
    wrong = [need for need in needs if need not in NEEDS]
    if wrong:
        raise UserError(f"--need {wrong[0]}: there is no such need. Use some of {', '.join(NEEDS)}.")
    advice = advise(len(machines), needs)
    _tell(advice)
    orchestrator = _orchestrator(given, advice, terminal)
    head, workers = _roles(given, machines, terminal)
    share = given.get("share")
    if share is None:
        several = len(machines) > 1
        question = f"Shall {head} share /data and /checkpoints with the others by NFS?"
        share = asking.yes(question, "--share or --no-share", True) if terminal and several else True
    private = _short(Path(given["private_key"]).expanduser().absolute()) if given.get("private_key") else ""
    return Lab(name, machines, keys, user, private, head, workers, orchestrator, share)


def _machines(given: Mapping[str, Any]) -> dict[str, Address | None]:
    if given.get("machines"):
        return parse_machines([f"{name}={where}" for name, where in given["machines"].items()])

    def problem(line: str) -> str:
        try:
            parse_machines(line.replace(",", " ").split())
        except UserError as error:
            return str(error)
        return ""

    line = asking.text("Which machines, as NAME=ADDRESS with blanks between?", "--machine", "", problem)
    return parse_machines(line.replace(",", " ").split())


def _keys(
    machines: Mapping[str, Address | None], given: Mapping[str, Any], progress: Progress
) -> dict[Address, list[HostKey]]:
    """Return the host keys of the machines that somebody vouches for."""
    found: dict[str, list[HostKey]] = {}
    with progress.step("Host keys") as step:
        for name, where in machines.items():
            if where is not None:
                step.doing(f"{name}: ask {where.pattern}")
                found[name] = host_keys.scan(where)
        step.summary = f"{sum(map(len, found.values()))} keys of {len(found)} machines"
    fingerprints = given.get("fingerprints") or ()
    if fingerprints:
        found = {name: host_keys.chosen(name, keys, fingerprints) for name, keys in found.items()}
    elif found:
        for name, keys in found.items():
            show_keys(name, keys)
        if not given.get("accept_host_keys"):
            option = "--fingerprint for each machine (or --accept-host-keys)"
            if asking.terminal():
                shell.console(stderr=True).print(
                    f"Each machine tells its own: {host_keys.ON_THE_MACHINE}", markup=False
                )
            if not asking.yes("Are these the machines' own host keys?", option):
                raise UserError("Nothing was changed. Find out who answers at these addresses.")
    return {where: found[name] for name, where in machines.items() if where is not None}


def _look(
    addresses: Mapping[str, Address | None],
    keys: Mapping[Address, Sequence[HostKey]],
    user: str,
    private_key: str,
    step: Any,
) -> dict[str, Machine]:
    """Look at the machines; :class:`.run.RunError` where one can't be reached."""
    machines = {name: Machine(name, where) for name, where in addresses.items()}
    with tempfile.TemporaryDirectory(prefix="labrack-") as temporary:
        root = Path(temporary)
        (root / "inventory").mkdir()
        (root / "inventory" / host_keys.FILE).write_text(host_keys.text(keys), encoding="utf-8")
        variables: dict[str, Any] = {"ansible_user": user, "ansible_ssh_common_args": host_keys.SSH_ARGUMENTS}
        if private_key:
            variables["ansible_ssh_private_key_file"] = str(Path(private_key).expanduser().absolute())
        hosts = {name: _connection(machine) for name, machine in machines.items()}
        document = {"all": {"hosts": hosts, "vars": variables}}
        (root / "inventory/hosts.json").write_text(json.dumps(document), encoding="utf-8")
        # a failure names the log, which then has to be there
        logs = shell.state_home()
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = {"look_file": str(root / "facts.json")}
        run_playbook(PLAYBOOK, [root / "inventory"], logs / "init.log", step, variables=told)
        facts = json.loads((root / "facts.json").read_text(encoding="utf-8"))
    return {name: Machine(name, where, facts[name]) for name, where in addresses.items()}


def _connection(machine: Machine) -> dict[str, Any]:
    if machine.address is None:
        # the system's Python, and not what a user's shell would find first
        return {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    port = {} if machine.address.port == 22 else {"ansible_port": machine.address.port}
    return {"ansible_host": machine.address.host, **port}


def _show(machines: Mapping[str, Machine]) -> None:
    rows = new_table("MACHINE", "WHAT IT IS", "ADDRESSES", right=())
    for machine in machines.values():
        addresses = ", ".join(machine.facts.get("addresses", {}).get("ipv4", ()))
        rows.add_row(Text(machine.name), Text(machine.words), Text(addresses))
    shell.console(stderr=True).print(rows)


def _tell(advice: Advice) -> None:
    console = shell.console(stderr=True)
    tier = {"closet": "a closet", "under_desk": "a server under the desk"}[advice.tier]
    console.print(f"\nThis is {tier}; {NAMES[advice.orchestrator]} would suit you best.", style="bold", markup=False)
    for reason in advice.reasons:
        console.print(f"- {reason}", markup=False, soft_wrap=True)


def _orchestrator(given: Mapping[str, Any], advice: Advice, terminal: bool) -> str:
    chosen = given.get("orchestrator")
    if chosen is None:
        if not terminal:
            return advice.written
        choices = [(name, NAMES[name]) for name in BUILT]
        return asking.one("Which of those that labrack builds?", "--orchestrator", choices, advice.written)
    if chosen not in BUILT:
        what = "labrack does not build it yet" if chosen in NAMES else "there is no such orchestrator"
        raise UserError(f"--orchestrator {chosen}: {what}. Use {' or '.join(BUILT)}.")
    return str(chosen)


def _roles(given: Mapping[str, Any], machines: Mapping[str, Machine], terminal: bool) -> tuple[str, tuple[str, ...]]:
    """Return the head and the workers: by default the weakest machine is the head, and who has GPUs works."""
    weakest = min(machines.values(), key=lambda one: (one.gpus, one.facts["memory_mib"], one.facts["cpu"]["cpus"]))
    head = given.get("head")
    if head is None:
        head = weakest.name
        if terminal and len(machines) > 1:
            choices = [(name, f"{name} ({machine.words})") for name, machine in machines.items()]
            head = asking.one("Which one do people log in to?", "--head", choices, head)
    workers = given.get("workers")
    if workers is None:
        others = [name for name in machines if name != head]
        workers = [name for name, machine in machines.items() if machine.gpus] or others or [head]
    for option, name in [("--head", head), *(("--worker", worker) for worker in workers)]:
        if name not in machines:
            raise UserError(f"{option} {name}: there is no such machine; there are {', '.join(machines)}.")
    idle = [name for name in machines if name != head and name not in workers]
    if idle and given.get("workers"):
        raise UserError(f"{', '.join(idle)}: neither head nor worker. Name it with --worker, or leave it out.")
    # without GPUs they still run jobs
    return head, (*dict.fromkeys(workers), *idle)


def _name(folder: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-0123456789")[:40] or "lab"


def _name_problem(name: str) -> str:
    return "" if NAME.fullmatch(name) else "Use lower-case letters, digits and hyphens, a letter first."


def _write(stage: Path, found: Lab, password_file: str) -> None:
    """Write the folder but for the vault."""
    variables = stage / "inventory/group_vars/all"
    variables.mkdir(parents=True)
    (stage / "inventory/hosts.yml").write_text(hosts_text(found), encoding="utf-8")
    (variables / "lab.yml").write_text(lab_text(found), encoding="utf-8")
    (stage / "inventory" / host_keys.FILE).write_text(host_keys.text(found.keys), encoding="utf-8")
    (stage / "ansible.cfg").write_text(configuration_text(password_file), encoding="utf-8")
    (stage / ".gitignore").write_text(GITIGNORE, encoding="utf-8")
    readme = README.format(name=found.name, playbook=lab.PLAYBOOKS[found.tier], password=password_file)
    (stage / "README.md").write_text(readme, encoding="utf-8")


def hosts_text(found: Lab) -> str:
    """Return the text of hosts.yml."""
    lines = [
        "---",
        f"# The machines of {found.name}. The names here become the names of the nodes, in /etc/hosts and in Slurm.",
        "# `labrack node join` adds one, and `labrack node leave` takes one out.",
    ]
    told: set[str] = set()
    for group, names in (("lab_head", (found.head,)), ("lab_workers", found.workers)):
        lines += [f"{group}:", "  hosts:"]
        for name in names:
            machine = found.machines[name]
            if name in told:
                lines.append(f"    {name}:")
                continue
            told.add(name)
            lines.append(f"    {name}: # {machine.words}")
            lines += [f"      {key}: {value}" for key, value in _connection(machine).items()]
            if machine.gpus and name in found.workers:
                lines.append(
                    f"      # slurm_gpu_count: {machine.gpus} # stop before any change when it has fewer"
                    if found.orchestrator == "slurm"
                    else f"      # it has {machine.gpus} GPUs"
                )
    if found.tier == "closet":
        lines += ["", "# What the machines do. One machine may be in all of them."]
        groups = {"slurm_controller": "lab_head", "slurm_database": "lab_head", "slurm_login": "lab_head"}
        groups = {**groups, "slurm_worker": "lab_workers"} if found.orchestrator == "slurm" else {}
        if found.share and len(found.machines) > 1:
            groups["nfs_server"] = "lab_head"
        for group, child in groups.items():
            lines += [f"{group}:", "  children:", f"    {child}:"]
        if not groups:
            lines.pop()
            lines.pop()
    return "\n".join(lines) + "\n"


def lab_text(found: Lab) -> str:
    """Return the text of lab.yml: the tier's own example, with this lab's values."""
    example = shell.home() / "inventories" / found.tier / "group_vars/all/lab.yml"
    document = Document(example.read_text(encoding="utf-8"), str(example))
    document.set(("ansible_user",), found.user)
    if document.get(("lab_orchestrator",)) != found.orchestrator:
        document.set(("lab_orchestrator",), found.orchestrator)
    if found.tier == "closet":
        document.set(("slurm_cluster_name",), found.name)
        if found.share and len(found.machines) > 1:
            group = document.get(("lab_groups", 0, "name"))
            shared = [
                {"path": f"/{name}", "source": f"/srv/lab/{name}", "mode": "2775", "group": group}
                for name in ("data", "checkpoints")
            ]
            document.set(("lab_directories",), shared)
    ssh = ["# The machines' host keys are pinned.", "ansible_ssh_common_args: >-"]
    ssh += [f"  -o {option}" for option in host_keys.SSH_ARGUMENTS.removeprefix("-o ").split(" -o ")]
    if found.private_key:
        ssh.append(f"ansible_ssh_private_key_file: {json.dumps(found.private_key)}")
    return document.text.replace("ansible_become: true\n", "\n".join(["ansible_become: true", *ssh]) + "\n", 1)


def configuration_text(password_file: str) -> str:
    """Return the text of ansible.cfg: the project's own, without what names its folder, with this lab's."""
    lines = (shell.home() / "ansible.cfg").read_text(encoding="utf-8").splitlines()
    own = ["inventory = ./inventory", f"vault_password_file = {password_file}"]
    kept: list[str] = []
    for line in lines:
        if line.startswith("collections_path"):
            continue
        kept.append(line)
        if line == "[defaults]":
            kept += own
    return "\n".join(kept) + "\n"


def _short(path: Path) -> str:
    """Return a path below the home as ~/…, which holds on another machine as well."""
    path = path.absolute()
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _check(stage: Path, found: Lab) -> None:
    problems = inventory_edit.problems([stage / "inventory"])[1]
    if problems:
        lines = [line.replace(f"{stage}/", "") for line in problems]
        raise UserError("\n".join(["These answers make no inventory that works; nothing was written:", *lines]))


def _check_syntax(stage: Path, found: Lab, password: str) -> None:
    """Let ansible-playbook read the playbook with the new folder, as it will."""
    handle, name = tempfile.mkstemp(prefix="labrack-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(password)
        environment = {**os.environ, "ANSIBLE_CONFIG": str(stage / "ansible.cfg"), "ANSIBLE_VAULT_PASSWORD_FILE": name}
        playbook = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [playbook, "--syntax-check", "-i", str(stage / "inventory"), lab.PLAYBOOKS[found.tier]]
        done = subprocess.run(
            command, cwd=stage, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    finally:
        Path(name).unlink()
    if done.returncode:
        raise UserError(f"ansible-playbook does not take the new inventory: {done.stderr.strip()}")


def _move(stage: Path, folder: Path) -> list[Path]:
    """Move the files to their places, each in one go; what an earlier lab has beside them stays, its secrets too."""
    written = []
    inventory, fresh = stage / "inventory", not (folder / "inventory").exists()
    for file in sorted(path for path in stage.rglob("*") if path.is_file()):
        target = folder / file.relative_to(stage)
        if fresh and file.is_relative_to(inventory):
            written.append(target)
            continue
        if target.exists() and file.name in (".gitignore", "README.md", "vault.yml"):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        written.append(target)
    if fresh:
        # the whole at once
        inventory.replace(folder / "inventory")
    return written


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold an interrupt back until the block is through."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
