# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lab that an inventory describes, as the commands need it: paths, tier, hosts with their variables.

Only :func:`load` imports Ansible, which takes a while.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ansible_collections.labrack.infra.plugins.plugin_utils.run_record import lab_folder

from . import shell
from .shell import UserError

#: The playbook of each tier.
PLAYBOOKS: Mapping[str, str] = {"closet": "labrack.infra.closet", "under_desk": "labrack.infra.under_desk"}

#: In place of a vaulted value whose password is not there.
HIDDEN = "(vaulted)"
#: What Ansible adds to the variables of every host, and which names all of them.
_MAGIC = frozenset(("groups", "hostvars", "omit", "ansible_play_hosts", "playbook_dir", "vars", "environment"))


@dataclass(frozen=True)
class Lab:
    """An inventory, read.

    ``hosts``: the variables of each host of the lab, templates resolved; values that are vaulted stay hidden unless a
    password is there. ``groups``: the hosts of each group, in order. ``unresolved``: by host, Ansible's words on the
    variables whose template can't be resolved.
    """

    inventory: tuple[Path, ...]
    hosts: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, tuple[str, ...]]
    unresolved: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def members(self) -> tuple[str, ...]:
        """The hosts of the lab: the head, then workers."""
        return tuple(dict.fromkeys([*self.groups.get("lab_head", ()), *self.groups.get("lab_workers", ())]))

    @property
    def tier(self) -> str:
        """``under_desk`` for one machine without a scheduler that spans hosts, else ``closet``."""
        return "closet" if len(self.members) > 1 or self.groups.get("slurm_controller") else "under_desk"

    @property
    def playbook(self) -> str:
        """The FQCN of the tier's playbook."""
        return PLAYBOOKS[self.tier]

    @property
    def state(self) -> Path:
        """Where labrack keeps what it knows of this lab."""
        return state_dir(self.inventory)


def inventory(given: Sequence[Path] | None) -> tuple[Path, ...]:
    """Return the inventory's absolute paths; ``inventory`` in the working directory where none is given.

    UserError where there is none, or where one is not there.
    """
    paths = [Path(path) for path in given or ()]
    if not paths:
        paths = [Path("inventory")]
        if not paths[0].exists():
            raise UserError(
                f"No inventory: there is no folder {paths[0].resolve()}. Name one with -i or in "
                f"${shell.INVENTORY_VARIABLE}, or make one with `labrack init`."
            )
    for path in paths:
        if not path.exists():
            raise UserError(f"The inventory {path} is not there.")
    return tuple(path.resolve() for path in paths)


def state_dir(inventory: Sequence[Path]) -> Path:
    """Return where labrack keeps what it knows of the lab with this inventory: logs, history. It is made, 0700."""
    folder = lab_folder(inventory)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def load(inventory: Sequence[Path]) -> Lab:
    """Read an inventory in this process; UserError with Ansible's words where it can't be read.

    A vaulted value is read with the passwords that Ansible's own configuration and environment name, and is
    :data:`HIDDEN` without them; a template that can't be resolved stays as it is written.
    """
    os.environ.setdefault("ANSIBLE_CONFIG", str(shell.home() / "ansible.cfg"))
    from ansible.constants import config
    from ansible.errors import AnsibleError
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.parsing.vault import VaultSecretsContext
    from ansible.plugins.loader import init_plugin_loader
    from ansible.utils.collection_loader._collection_config import AnsibleCollectionConfig
    from ansible.vars.manager import VariableManager

    try:
        # both are of the process, which reads several inventories in tests alone
        if AnsibleCollectionConfig.collection_finder is None:
            _install_loader(init_plugin_loader)
        loader = DataLoader()
        if VaultSecretsContext.current(optional=True) is None:
            file = config.get_config_value("DEFAULT_VAULT_PASSWORD_FILE")
            identities = config.get_config_value("DEFAULT_VAULT_IDENTITY_LIST")
            if file or identities:
                from ansible.cli import CLI

                CLI.setup_vault_secrets(loader, identities, [file] if file else [], auto_prompt=False)
            else:
                # what that would do, without what it takes to load it
                VaultSecretsContext.initialize(VaultSecretsContext([]))
        loader.set_vault_secrets(VaultSecretsContext.current().secrets)  # type: ignore[arg-type]
        manager: Any = InventoryManager(loader, [str(path) for path in inventory])
        variables = VariableManager(loader=loader, inventory=manager)
        groups = {name: tuple(host.name for host in group.get_hosts()) for name, group in manager.groups.items()}
        hosts: dict[str, dict[str, Any]] = {}
        unresolved: dict[str, dict[str, str]] = {}
        for host in manager.get_hosts():
            hosts[host.name], wrong = _resolved(loader, variables.get_vars(host=host))
            if wrong:
                unresolved[host.name] = wrong
    except AnsibleError as error:
        raise UserError(f"The inventory can't be read: {error}") from None
    return Lab(tuple(inventory), hosts, groups, unresolved)


def _install_loader(install: Callable[[], None]) -> None:
    """Let Ansible load collections in this process, where Python may have loaded some of them by itself.

    Ansible's loader wants to have made the packages. The modules in them stay the ones that they are.
    """
    names = sorted(name for name in sys.modules if name.partition(".")[0] == "ansible_collections")
    modules = {name: sys.modules[name] for name in names if getattr(sys.modules[name], "__file__", None)}
    for name in {*names} - {*modules}:
        del sys.modules[name]
    install()
    for name in names:
        module = importlib.import_module(name)
        parent, _dot, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)


def _resolved(loader: Any, variables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a host's own variables, each with its templates resolved as far as that goes, and what went no further."""
    from ansible.errors import AnsibleError
    from ansible.template import Templar

    templar = Templar(loader=loader, variables=variables)
    found: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name, value in variables.items():
        if name in _MAGIC:
            continue
        if _plain(value):
            found[name] = value
            continue
        try:
            found[name] = templar.template(value)
            repr(found[name])
        except AnsibleError as error:
            words = str(error)
            if "vault" in words.lower() or "decrypt" in words.lower():
                found[name] = HIDDEN
            else:
                found[name] = value
                wrong[name] = words
    return found, wrong


def _plain(value: object) -> bool:
    """Return whether there is nothing to resolve in a value: no template, and nothing that is vaulted."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value and "{#" not in value
    if isinstance(value, Mapping):
        return all(_plain(key) and _plain(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, date))
