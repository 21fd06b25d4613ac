# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give a machine one NVIDIA driver that fits its cards, and keep it from changing by itself."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Give a machine one NVIDIA driver that fits its cards, held
version_added: 0.1.0
description:
  - Chooses branch and flavour from the cards, adds the source, installs in one transaction of apt or dnf, holds the
    packages, keeps nouveau off, loads the module, and keeps persistence daemon, Fabric Manager and power limits.
  - A driver that is there and works is held and left as it is, unless an option names another one.
  - A change of a loaded driver is of class V(reboot). It is made only with O(prepared=true), which says that the node
    has been emptied; RV(reboot) tells why it is wanted.
  - When an installation fails, the packages that were there before come back, and the message tells the cause.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description:
      - V(absent) removes what the module brought, wrote and held, and nothing else.
    type: str
    choices: [present, absent]
    default: present
  source:
    description:
      - Where the driver comes from. V(auto) takes Ubuntu's own packages, whose modules are signed, on Ubuntu and
        NVIDIA's repository elsewhere. V(keep) holds and checks what is there. DGX OS is always kept.
    type: str
    choices: [auto, distribution, nvidia, keep]
    default: auto
  branch:
    description:
      - NVIDIA's branch, such as V(580); empty for the one that is there, else the long-term one.
    type: str
    default: ""
  version:
    description:
      - The exact version, such as V(580.95.05); empty for the newest of the branch at the first installation.
    type: str
    default: ""
  flavour:
    description:
      - Which kernel modules; V(auto) takes the open ones where every card can use them.
    type: str
    choices: [auto, open, proprietary]
    default: auto
  desktop:
    description:
      - Whether the parts for a screen come too.
    type: bool
    default: false
  repo_url:
    description:
      - The folder above NVIDIA's repositories, or that of a mirror.
    type: str
    default: https://developer.download.nvidia.com/compute/cuda/repos
  repo_key_url:
    description:
      - Where the repository's signing key is; empty for its own place in the repository.
    type: str
    default: ""
  repo_key_fingerprint:
    description:
      - The key's fingerprint; empty for NVIDIA's.
    type: str
    default: ""
  hold:
    description:
      - Whether the packages are held, so that no upgrade by hand or at night changes them.
    type: bool
    default: true
  persistence:
    description:
      - Whether nvidia-persistenced runs.
    type: bool
    default: true
  power_limits:
    description:
      - Watts by Slurm type of the card, or for V(all); set at once and at each boot.
    type: dict
    default: {}
  rollback:
    description:
      - Go back to the driver before the present one instead.
    type: bool
    default: false
  prepared:
    description:
      - The node has been emptied, so that changes of class V(reboot) may be made now.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Converge the driver
  labrack.infra.nvidia_driver:
    branch: "580"
  register: driver

- name: Tell whether the node must be emptied and restarted
  ansible.builtin.debug:
    msg: "{{ driver.reboot }}"
"""

RETURN = r"""
changes:
  description: What changed, or would in check mode; each with C(subject), C(summary) and C(disruption).
  returned: success
  type: list
  elements: dict
pending:
  description: Changes that O(max_disruption) does not cover.
  returned: success
  type: list
  elements: dict
reboot:
  description: Why the node is to be emptied and restarted, as O(max_disruption) consents to; empty for no reason.
  returned: success
  type: list
  elements: str
removed:
  description: Packages of the driver that was there before which the present one has no more.
  returned: success
  type: list
  elements: str
driver:
  description:
    - C(version), C(branch), C(flavour) and C(source) of the driver, the C(previous) version, the number of C(cards).
  returned: success
  type: dict
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import (
    apt_source,
    driver_apt,
    driver_choice,
    driver_dnf,
    driver_plan,
    node_io,
    node_observe,
)
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, consent, converge
from ansible_collections.labrack.infra.plugins.module_utils.driver_choice import Choice, Machine, Wish
from ansible_collections.labrack.infra.plugins.module_utils.driver_plan import Card, Observed, Record, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.systemd import (
    ServiceError,
    act,
    daemon_reload,
    observe_services,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "source": {"type": "str", "choices": ["auto", "distribution", "nvidia", "keep"], "default": "auto"},
    "branch": {"type": "str", "default": ""},
    "version": {"type": "str", "default": ""},
    "flavour": {"type": "str", "choices": ["auto", "open", "proprietary"], "default": "auto"},
    "desktop": {"type": "bool", "default": False},
    "repo_url": {"type": "str", "default": "https://developer.download.nvidia.com/compute/cuda/repos"},
    "repo_key_url": {"type": "str", "default": "", "no_log": False},
    "repo_key_fingerprint": {"type": "str", "default": "", "no_log": False},
    "hold": {"type": "bool", "default": True},
    "persistence": {"type": "bool", "default": True},
    "power_limits": {"type": "dict", "default": {}},
    "rollback": {"type": "bool", "default": False},
    "prepared": {"type": "bool", "default": False},
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}

UNITS = (driver_plan.PERSISTENCE, driver_plan.FABRIC, driver_plan.POWER)
#: Debian's own archive, for its contrib and non-free parts.
COMPONENTS = f"{apt_source.SOURCES}/{driver_apt.COMPONENTS_NAME}.sources"


class Refused(RuntimeError):
    """The wish can't be met, or a step failed; the message says why and the mend."""


class Driver:
    """The machine: reads it and changes it; what to change is :func:`driver_plan.plan`'s to say."""

    def __init__(self, params: dict[str, Any], check_mode: bool = False) -> None:
        self.params = params
        self.check_mode = check_mode
        self.back: Mapping[str, str] = {}
        self.removed: list[str] = []
        self.system = node_observe.os_release()
        self.rpm = self.system["family"] == "redhat"
        self.tools: Any = driver_dnf if self.rpm else driver_apt
        self.kernel = os.uname().release

    def observe(self) -> Observed:
        """Read packages, files, services, module and cards (ValueError for a damaged record)."""
        self.facts = node_observe.observe_node()
        nvidia = self.facts["nvidia"]
        record = node_io.observe_file(driver_plan.RECORD)
        names = (driver_plan.PREFERENCES, driver_plan.UNATTENDED, driver_plan.MODPROBE, driver_plan.POWER_UNIT)
        files = {path: node_io.observe_file(path) for path in (*names, COMPONENTS, driver_dnf.REPO_FILE)}
        seen = Observed(
            packages=self.tools.observe(),
            files=files,
            services=observe_services(list(UNITS)),
            loaded=nvidia["module"],
            on_disk=nvidia["module_on_disk"],
            library=nvidia["library"],
            nouveau=nvidia["nouveau"],
            in_use=any(gpu["processes"] for gpu in self.facts["gpus"]),
            cards=tuple(
                Card(gpu["uuid"], gpu["slurm_type"] or "", gpu["power_limit_w"])
                for gpu in self.facts["gpus"]
                if gpu["uuid"]
            ),
            record=Record.read(record.text if record else None),
        )
        self.wanted = self.want(seen)
        source = driver_plan.SOURCE if not self.wanted.present else self.wanted.source
        return replace(seen, source=apt_source.observe_source(source)) if source and not self.rpm else seen

    def machine(self, seen: Observed) -> Machine:
        """Return the machine as :func:`driver_choice.choose` wants it."""
        signed_only = driver_choice.signed_only(self.facts["secure_boot"], node_io.run)
        return driver_choice.machine_from_facts(self.facts, bool(seen.record.brought), signed_only)

    def want(self, seen: Observed) -> Wanted:
        """Return the wanted state; :class:`Refused` when no driver fits."""
        params = self.params
        if params["state"] == "absent":
            return Wanted(present=False)
        machine = self.machine(seen)
        power = {str(kind): int(watts) for kind, watts in params["power_limits"].items()}
        if params["rollback"]:
            # once it is back, the record names no driver before it
            self.back = self.back or seen.record.previous
            if not self.back:
                raise Refused("there is no driver to go back to: none was changed here, or it is back already")
            version = driver_plan.version_in(self.back)
            choice = Choice("nvidia", driver_choice.branch_of(version), version)
            return Wanted(back=self.back, choice=choice, files=self.files(choice), hold=params["hold"], power=power)
        if not self.facts["gpus"]:
            return Wanted(has_gpus=False, hold=params["hold"], persistence=False)
        wish = Wish(params["source"], params["branch"], params["version"], params["flavour"], params["desktop"])
        chosen, problems = driver_choice.choose(machine, wish)
        if chosen is None:
            raise Refused(" ".join(map(str, problems)))
        repository = driver_choice.repository(
            machine, chosen, params["repo_url"], params["repo_key_url"], params["repo_key_fingerprint"]
        )
        return Wanted(
            choice=chosen,
            names=tuple(driver_choice.packages(machine, chosen, list(seen.packages))),
            source=None if self.rpm else repository,
            files=self.files(chosen, repository),
            hold=params["hold"],
            persistence=params["persistence"],
            power=power,
        )

    def files(self, choice: Choice, repository: apt_source.Source | None = None) -> dict[str, node_io.FileState]:
        """Return what the package manager reads, by path."""
        if self.rpm:
            return {driver_dnf.REPO_FILE: driver_dnf.repo_file(repository)} if repository else {}
        files = {}
        pins = driver_plan.preferences(choice)
        if pins:
            files[driver_plan.PREFERENCES] = pins
        if self.params["hold"]:
            files[driver_plan.UNATTENDED] = driver_plan.unattended_upgrades()
        if choice.source == "distribution" and self.system["id"] == "debian":
            components = driver_apt.components_file(self.system["codename"])
            if components:
                files[COMPONENTS] = components
        return files

    def plan(self, seen: Observed) -> list[Change]:
        """Return what is off and may be made now; the rest that consent covers is :meth:`reboots`'."""
        return [change for change in driver_plan.plan(seen, self.wanted) if not self._waits(change)]

    def _waits(self, change: Change) -> bool:
        """Whether the role has to empty or restart the node for it, so that it is not this call's to make."""
        # what the role would do after this call is part of a prediction
        if self.check_mode or change.disruption != "reboot" or not self._consented(change):
            return False
        return change.step == ("reboot",) or not self.params["prepared"]

    def _consented(self, change: Change) -> bool:
        now, _pending = consent([change], self.params["max_disruption"])
        return bool(now)

    def extra(self, seen: Observed) -> dict[str, Any]:
        """Return what the role and the reader want to know beside the changes."""
        waiting = [change for change in driver_plan.plan(seen, self.wanted) if self._waits(change)]
        choice = self.wanted.choice
        return {
            "removed": self.removed,
            "reboot": [f"{change.subject}: {change.summary}" for change in waiting],
            "driver": {
                "version": seen.version,
                "branch": driver_choice.branch_of(seen.version),
                "flavour": choice.flavour,
                "source": choice.source,
                "previous": driver_plan.version_in(seen.record.previous),
                "cards": len(self.facts["gpus"]),
            },
        }

    def apply(self, changes: list[Change], seen: Observed) -> None:
        """Make the changes (SourceError, ServiceError, Refused or OSError when the node refuses)."""
        if any(change.step[0] in ("driver", "rollback") for change in changes):
            self._refuse_busy()
        for change in changes:
            verb, *words = change.step
            source = self.wanted.source
            if source and words and words[0] in (source.path, source.keyring, source.preferences):
                apt_source.apply_source(source, change)
            elif verb == "write":
                content = {**self.wanted.files, driver_plan.MODPROBE: node_io.FileState(driver_plan.MODPROBE_TEXT)}
                limits = driver_plan.limits_of(seen.cards, self.wanted.power)
                content[driver_plan.POWER_UNIT] = driver_plan.power_unit(limits)
                node_io.write_file(words[0], content[words[0]])
                if words[0] == driver_plan.POWER_UNIT:
                    daemon_reload()
            elif verb == "remove":
                node_io.remove_file(words[0])
            elif verb in ("driver", "rollback"):
                self._change_driver(verb, seen)
            elif verb == "repair":
                self.tools.repair(words)
            elif verb in ("hold", "unhold"):
                self.tools.hold(words, verb == "hold")
                self._remember(seen, held=words if verb == "hold" else ())
            elif verb == "initramfs":
                rebuild_initramfs()
            elif verb == "load":
                load_module()
            elif verb == "purge":
                self.tools.purge(words)
                # a unit that systemd still knows would be enabled before its package is back
                daemon_reload()
            elif verb == "disable":
                node_io.run(["systemctl", "disable", "--now", f"{words[0]}.service"])
            else:
                act(verb, words[0])
        if not self.wanted.present:
            node_io.remove_file(driver_plan.RECORD)

    def _refuse_busy(self) -> None:
        busy = [f"{one['name']} ({one['pid']})" for gpu in self.facts["gpus"] for one in gpu["processes"]]
        if busy:
            raise Refused(
                f"{', '.join(busy)} still use the cards; nothing was changed. Mend: wait for them to end, or end them"
            )

    def _change_driver(self, verb: str, seen: Observed) -> None:
        held = sorted(name for name, one in seen.packages.items() if one.held)
        self.tools.hold(held, False)
        try:
            if verb == "rollback":
                outcome = self.tools.back(self.back)
            else:
                outcome = self.tools.change(self.wanted.choice, self.wanted.names, self.wanted.source, self.kernel)
        except apt_source.SourceError:
            self.tools.hold(held, True)
            pins = seen.files.get(driver_plan.PREFERENCES)
            if pins:
                node_io.write_file(driver_plan.PREFERENCES, pins)
            else:
                node_io.remove_file(driver_plan.PREFERENCES)
            raise
        now = Observed(packages=self.tools.observe())
        to_hold = driver_plan.to_hold(now, self.wanted) if self.wanted.hold else []
        self.tools.hold(to_hold, True)
        family = {name: version for name, version in outcome.after.items() if driver_choice.is_family(name)}
        brought = {*seen.record.brought, *outcome.brought} & set(outcome.after)
        self.removed = sorted(set(outcome.before) - set(outcome.after))
        before = {} if verb == "rollback" else outcome.before
        record = Record(tuple(brought), tuple(to_hold), family, before)
        node_io.write_file(driver_plan.RECORD, record.file())

    def _remember(self, seen: Observed, held: Any) -> None:
        record = Record.read(node_io.read_text(driver_plan.RECORD))
        names = tuple(sorted({*record.held, *held}))
        node_io.write_file(driver_plan.RECORD, Record(record.brought, names, record.current, record.previous).file())


def rebuild_initramfs() -> None:
    """Rebuild the image that the kernel starts from; nothing where there is none (:class:`Refused` when it fails)."""
    for command in (["update-initramfs", "-u"], ["dracut", "--force"]):
        done = node_io.run(command, timeout=900.0)
        if done.rc != 127:
            if done.rc:
                raise Refused(f"{' '.join(command)} failed: {done.err.strip()[-300:]}")
            return


def load_module() -> None:
    """Load the kernel module and the one that CUDA needs (:class:`Refused` with the kernel's words)."""
    done = node_io.run(["modprobe", "nvidia"])
    if done.rc:
        log = node_io.run(["dmesg"]).out.strip().splitlines()[-3:]
        raise Refused(
            f"modprobe nvidia failed: {done.err.strip()}; the kernel says: {' | '.join(log) or 'nothing'}. "
            "Mend: with Secure Boot enrol the modules' key; otherwise restart the machine"
        )
    node_io.run(["modprobe", "nvidia-uvm"])


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    driver = Driver(module.params, module.check_mode)
    seen = Observed()

    def look() -> Observed:
        nonlocal seen
        seen = driver.observe()
        return seen

    try:
        converge(
            module, look, driver.plan, lambda changes: driver.apply(changes, seen), driver.extra, True, "nvidia_driver"
        )
    except ValueError as error:
        module.fail_json(msg=f"{driver_plan.RECORD} is damaged ({error}). Mend: remove it and run again.")
    except (OSError, apt_source.SourceError, ServiceError, Refused) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
