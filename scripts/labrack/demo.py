# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The demo: a closet of three test nodes, or one under a desk, made by the same playbooks as real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ansible_collections.labrack.infra.plugins.module_utils import skypilot_plan

from . import demo_tailnet, ssh, status
from .host_keys import HostKey
from .lab import load
from .progress import Progress, Step
from .run import Outcome, run_playbook
from .shell import home
from .ssh import Ssh
from .story import HEAD, Story
from .story_desk import DESK, DeskStory
from .testnode import engine, node, skypilot
from .testnode.docker import LabError, docker
from .testnode.gpus import GpuSpec
from .testnode.image import ensure_image
from .testnode.wheels import INDEX

#: Prefixes the names of the demo's containers and network. Tests, which may run beside it, have one of their own.
LAB = os.environ.get("LABRACK_DEMO_LAB", "labrack-demo")

A100 = GpuSpec(
    "NVIDIA A100-SXM4-80GB", memory_mib=81920, power_limit_w=400.0, mig=True, pci_device="0x20b2", pci_class="0x030200"
)
RTX_4090 = GpuSpec("NVIDIA GeForce RTX 4090", memory_mib=24564, power_limit_w=450.0, ecc=False, pci_device="0x2684")
RTX_A6000 = GpuSpec("NVIDIA RTX A6000", memory_mib=49140, power_limit_w=300.0)
#: The nodes, with their cards, and the groups that inventories/demo has of them.
CARDS: Mapping[str, tuple[GpuSpec, ...]] = {"head": (), "node1": (A100, A100), "node2": (RTX_4090, RTX_A6000)}
WORKERS = ("node1", "node2")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "lab_head": (HEAD,),
    "lab_workers": WORKERS,
    "slurm_controller": (HEAD,),
    "slurm_database": (HEAD,),
    "slurm_login": (HEAD,),
    "slurm_worker": WORKERS,
    "nfs_server": (HEAD,),
}
#: What the nodes share, with the mode that inventories/demo gives it, and the researchers' group there.
SHARED: Mapping[str, int] = {"/home": 0o755, "/data": 0o2775, "/checkpoints": 0o2775}
GROUP_ID = 3001


@dataclass(frozen=True)
class Tier:
    """What the demo makes: by which playbook, of which nodes with which cards, in which groups."""

    name: str
    playbook: str
    cards: Mapping[str, tuple[GpuSpec, ...]]
    groups: Mapping[str, tuple[str, ...]]
    #: Variables of all hosts.
    variables: Mapping[str, Any]
    story: type[Story]
    #: How one takes a card there, once logged in.
    take: str
    #: What the nodes share, with the modes; one machine has its directories to itself.
    shared: Mapping[str, int] = field(default_factory=dict)
    #: The cards as SkyPilot's list calls them, where SkyPilot gives them out.
    catalog: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        """The node where people log in."""
        return self.groups["lab_head"][0]


#: No Kubernetes starts in a container, and NVIDIA's packages may be out of reach: SkyPilot runs its jobs on Slurm.
DESK_VARIABLES: Mapping[str, Any] = {
    "lab_orchestrator": "slurm",
    "container_toolkit_state": "absent",
    "skypilot_infra": {"slurm": [{"name": DESK, "time": "1:00:00"}]},
    "skypilot_index_url": f"file://{INDEX}",
}
DESK_GROUPS = [group for group in GROUPS if group != "nfs_server"] + ["skypilot"]
TIERS: Mapping[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier(
            name="closet",
            playbook="labrack.infra.closet",
            cards=CARDS,
            groups=GROUPS,
            variables={},
            story=Story,
            take="srun --gres=gpu:1 nvidia-smi -L",
            shared=SHARED,
        ),
        Tier(
            name="under_desk",
            playbook="labrack.infra.under_desk",
            cards={DESK: (RTX_4090, RTX_4090)},
            groups=dict.fromkeys(DESK_GROUPS, (DESK,)),
            variables=DESK_VARIABLES,
            story=DeskStory,
            take="sky launch --gpus RTX_4090:1 --cpus 1+ nvidia-smi",
            catalog=("RTX4090",),
        ),
    )
}
CLOSET = TIERS["closet"]
#: Whose homes have SkyPilot's list of cards.
HOMES = (("ada", "/home/ada"), ("ben", "/home/ben"), ("skypilot", "/var/lib/skypilot"))


def state_dir() -> Path:
    """Where the demo keeps its keys, inventory and log: in the checkout, or in the user's state directory."""
    if home() != Path(__file__).resolve().parent:
        return home() / ".labrack" / LAB.removeprefix("labrack-")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "labrack/demo"


def up(system: str, script: bool, progress: Progress, tailnet: bool = False, tier: str = "closet") -> None:
    """Make the lab, or take the one that is there; converge it; play the script; tell what to do next.

    ``system`` is a key of :data:`.testnode.image.SYSTEMS`, ``tier`` one of :data:`TIERS`. With ``tailnet`` the closet
    gets one of its own, and keeps it.
    Raises :class:`.testnode.docker.LabError` and :class:`.run.RunError`; the lab stays then, for a look at it.
    """
    console = progress.console
    made = TIERS[tier]
    if tailnet and len(made.cards) == 1:
        raise LabError(
            f"--tailnet connects the machines of a closet, and --tier {tier} has one. Leave one of them out."
        )
    if tailnet:
        with progress.step("Programs") as step:
            step.summary = demo_tailnet.ensure_programs(system, step.say)
    with progress.step("Image") as step:
        engine.ensure_engine(step.say)
        step.summary = ensure_image(system, step.say)
    again = node.exists(LAB)
    with progress.step("Nodes") as step:
        nfs = not made.shared or (_shares_by_nfs() if again else kernel_has_nfs())
        if again:
            lab = _existing(system, tailnet, made)
        else:
            (state_dir() / demo_tailnet.VARIABLES).unlink(missing_ok=True)
            lab = node.up(_spec(system, nfs, tailnet, made), state_dir(), step.say)
        if not nfs:
            _fill_volumes(lab)
        _write_inventory(lab, nfs, made)
        names = ", ".join(f"{name} ({len(cards)} GPUs)" if cards else name for name, cards in made.cards.items())
        how = "" if nfs else f"; this kernel has no NFS, so volumes share {', '.join(made.shared)}"
        step.summary = f"{'there already: ' if again else ''}{names}{how}"
    if made.catalog:
        with progress.step("Packages") as step:
            skypilot.equip(lab.node(made.head), _requirements(), step.say)
            step.summary = "SkyPilot's packages and uv lie on the node, which asks nobody else for them"
    _converge(progress, made.playbook, "Converge", "ansible.log")
    if made.catalog:
        skypilot.catalog(lab.node(made.head), HOMES, list(made.catalog))
    if tailnet and demo_tailnet.variables(state_dir()) is None:
        with progress.step("Cut off") as step:
            demo_tailnet.prepare(lab, system, state_dir(), step.say)
            _write_inventory(lab, nfs, made)
            step.summary = "the nodes reach each other and a mirror, nothing else"
        _converge(progress, made.playbook, "Tailnet", "tailnet.log", demo_tailnet.TAGS)
    if script:
        with progress.step("Script") as step:
            step.say(f"Two researchers share the cards of {made.story.worker}")
            made.story(console, _ssh(), read_status).play()
            step.summary = "every line above was checked"
    if tailnet:
        with progress.step("Names") as step:
            Story(console, _ssh(), read_status).names(CARDS)
            step.summary = "every line above was checked"
    console.print()
    console.print(_times(progress.seconds))
    console.print(_next_steps(made), soft_wrap=True, highlight=False)


def bare(system: str, progress: Progress, answers: Path) -> None:
    """Start the lab's machines and configure nothing; write what ``labrack init`` asks of them to a file.

    Root logs in there with the keys of whoever runs this. Raises :class:`.testnode.docker.LabError`.
    """
    own = sorted(Path.home().glob(".ssh/id_*.pub"))
    if not own:
        raise LabError("You have no ssh key to log in with. Run `ssh-keygen -t ed25519`, then this again.")
    if node.exists(LAB):
        raise LabError("The demo's machines are there already. Run `labrack demo down` to start with bare ones.")
    with progress.step("Image") as step:
        engine.ensure_engine(step.say)
        step.summary = ensure_image(system, step.say)
    with progress.step("Nodes") as step:
        machines = tuple(node.NodeSpec(name, system, cards) for name, cards in CARDS.items())
        lab = node.up(node.LabSpec(LAB, machines), state_dir(), step.say)
        keys = "".join(file.read_text(encoding="utf-8") for file in own)
        for member in lab.nodes:
            node.exec(member, ["sh", "-c", "cat >>/root/.ssh/authorized_keys"], input=keys)
        step.summary = ", ".join(f"{member.name} {member.address}" for member in lab.nodes)
    pinned = (line.split() for line in lab.known_hosts.read_text(encoding="utf-8").splitlines())
    document = {
        "machines": {member.name: member.address for member in lab.nodes},
        "user": "root",
        "fingerprints": sorted({HostKey(kind, key).fingerprint for _host, kind, key in pinned}),
        "needs": ["fair_share"],
        # their kernel may have no NFS
        "share": False,
    }
    answers.write_text(
        f"# For `labrack init --answers`.\n{yaml.safe_dump(document, sort_keys=False)}", encoding="utf-8"
    )
    progress.console.print(f"\nGo on with: labrack init mylab --answers {answers}", soft_wrap=True)


def down(progress: Progress) -> None:
    """Take the lab and its state away; a missing lab is no error. Raises :class:`.testnode.docker.LabError`."""
    error = engine.answers()
    if error is not None and (state_dir() / "nodes.json").exists():
        raise LabError(f"The demo's lab can't be taken away, as no Docker engine answers: {error}")
    there = error is None and node.exists(LAB)
    with progress.step("Down") as step:
        if error is None:
            node.down(LAB, state_dir(), step.doing)
        shutil.rmtree(state_dir(), ignore_errors=True)
        step.summary = (
            "containers, network, volumes and state are gone" if there else "the demo was not up: nothing to take away"
        )


def read_status() -> status.Status:
    """The demo as ``labrack status`` has it. Raises :class:`.testnode.docker.LabError` where no demo is up."""
    try:
        node.load(state_dir())
    except node.NodeError:
        raise LabError("The demo is not up. Start it with `labrack demo up`.") from None
    # nobody sees this step: an answer takes some seconds
    silent = Step("Status", Console(stderr=True), live=True)
    return status.read(load([home() / "inventories/demo"]), state_dir() / "status.log", silent)


def _converge(progress: Progress, playbook: str, name: str, log: str, tags: Sequence[str] = ()) -> None:
    with progress.step(name) as step:
        outcome = run_playbook(playbook, [home() / "inventories/demo"], state_dir() / log, step, tags)
        step.summary = _summary(outcome)


def kernel_has_nfs(filesystems: Path = Path("/proc/filesystems")) -> bool:
    """Whether this machine's kernel serves and mounts NFS by now. A demo loads no modules."""
    return {"nfs4", "nfsd"} <= {line.split()[-1] for line in filesystems.read_text(encoding="utf-8").splitlines()}


def _shares_by_nfs() -> bool:
    """How the lab that is there shares its directories."""
    try:
        document = json.loads((state_dir() / "hosts.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return not document["all"]["vars"].get("demo_volumes", True)


def _requirements() -> str:
    """What the role skypilot pins."""
    return (Path(skypilot_plan.__file__).parents[2] / "roles/skypilot/files/requirements.txt").read_text("utf-8")


def _spec(system: str, nfs: bool, tailnet: bool, tier: Tier = CLOSET) -> node.LabSpec:
    """The lab. By NFS the head alone has the volumes: what a container has itself can't be exported."""
    volumes = tuple((path.strip("/"), path) for path in tier.shared)
    nodes = (
        node.NodeSpec(name, system, cards, tun=tailnet, volumes=volumes if name == tier.head or not nfs else ())
        for name, cards in tier.cards.items()
    )
    return node.LabSpec(LAB, tuple(nodes))


def _fill_volumes(lab: node.Lab) -> None:
    """Be the file server whose directories the inventory calls provided: give them their modes."""
    groups = {path: GROUP_ID if mode & 0o020 else 0 for path, mode in SHARED.items()}
    script = " && ".join(f"chown 0:{groups[path]} {path} && chmod {mode:o} {path}" for path, mode in SHARED.items())
    node.exec(lab.node(HEAD), ["sh", "-c", script])


def _existing(system: str, tailnet: bool, tier: Tier) -> node.Lab:
    """The lab that is there, if it can be used; :class:`LabError` with the mend otherwise."""
    mend = "Run `labrack demo down`, then this again."
    try:
        lab = node.load(state_dir())
    except node.NodeError:
        raise LabError(f"A lab {LAB} is there that was not made from {home()}. {mend}") from None
    if {member.name for member in lab.nodes} != set(tier.cards):
        names = ", ".join(member.name for member in lab.nodes)
        raise LabError(f"The lab that is there, with {names}, is not of the tier {tier.name}. {mend}")
    running = docker("ps", "--filter", f"label={node.LABEL}={LAB}", "--format", "{{.Names}}").stdout.split()
    there = [member for member in lab.nodes if member.container in running]
    if len(there) != len(lab.nodes):
        raise LabError(f"{len(there)} of the lab's {len(lab.nodes)} nodes run. {mend}")
    if {member.system for member in lab.nodes} != {system}:
        raise LabError(f"The lab that is there runs {lab.nodes[0].system}, not {system}. {mend}")
    if tailnet and any(node.exec(member, ["test", "-c", "/dev/net/tun"], check=False).returncode for member in there):
        raise LabError(
            "The lab that is there was made without a tailnet, and its nodes can't make tunnels. "
            "Run `labrack demo down`, then `labrack demo up --tailnet`."
        )
    return lab


def _write_inventory(lab: node.Lab, nfs: bool, tier: Tier = CLOSET) -> None:
    """Write what the inventory plugin of inventories/demo reads: nodes, groups, and what the inventory asks of us."""
    key = state_dir() / "researcher"
    if not key.exists():
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "researcher", "-f", str(key)]
        subprocess.run(keygen, check=True)
    tailnet = demo_tailnet.variables(state_dir())
    domain = "" if tailnet is None else demo_tailnet.DOMAIN
    (state_dir() / "ssh_config").write_text(ssh.config(lab, "ada", key, domain, tier.head), encoding="utf-8")
    public = key.with_suffix(".pub").read_text(encoding="utf-8").strip()
    children: dict[str, dict[str, dict[str, Any]]] = {
        group: {"hosts": {host: {} for host in hosts}} for group, hosts in tier.groups.items()
    }
    if tailnet is not None:
        children |= {"headscale": {"hosts": {HEAD: {}}}, "demo_tailnet": {"hosts": {host: {} for host in CARDS}}}
    hosts = node.inventory(lab)
    for member in lab.nodes:
        # a node that is cut off has no default route to tell it by
        hosts[member.name]["lab_address"] = member.address
    common = {"demo_keys": [public], "demo_volumes": not nfs, **tier.variables, **(tailnet or {})}
    document = {"all": {"hosts": hosts, "vars": common, "children": children}}
    (state_dir() / "hosts.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _ssh() -> Ssh:
    return Ssh(state_dir() / "ssh_config")


def _summary(outcome: Outcome) -> str:
    changed = sum(outcome.changed.values())
    return f"{sum(outcome.ran.values())} tasks on {len(outcome.ran)} nodes, {changed} changed"


def _times(seconds: list[tuple[str, float]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("STEP")
    table.add_column("SECONDS", justify="right")
    for name, taken in seconds:
        table.add_row(name, f"{taken:.1f}")
    table.add_row("Total", f"{sum(taken for _, taken in seconds):.1f}", style="bold")
    return table


def _next_steps(tier: Tier) -> str:
    installed = Path(sys.executable).with_name("labrack")
    command = "labrack" if shutil.which("labrack") else str(_from_here(installed))
    names = ""
    if demo_tailnet.variables(state_dir()) is not None:
        names = f"""
  ssh -F {_from_here(_ssh().config)} root@node1.{demo_tailnet.DOMAIN}
  {" " * len(command)}                by its name in the tailnet, through the head"""
    again = f"{command} demo up      "
    if tier is not CLOSET:
        again = f"{command} demo up --tier {tier.name}\n  {' ' * len(command)}              "
    return f"""
[bold]Try next[/bold]
  {command} demo status    nodes, GPUs and the queue
  {again}  converge again: nothing changes
  {command} demo down      end it
  ssh -F {_from_here(_ssh().config)} ada@{tier.head}
  {" " * len(command)}                log in as ada, then take a card: {tier.take}{names}"""


def _from_here(path: Path) -> Path:
    """The path as one would type it in the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
