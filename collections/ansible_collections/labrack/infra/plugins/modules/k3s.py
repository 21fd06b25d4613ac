# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Converge k3s on a node, as a server or an agent."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s
short_description: Converge k3s, a small Kubernetes, on a node
version_added: 0.1.0
description:
  - Program, unit, configuration, tokens, and what the server applies by itself, see the role
    P(labrack.infra.k3s#role).
  - All of a release is fetched and held against its own checksums before anything is changed. A server's database is
    copied before an upgrade.
  - The version that runs counts, not the one on disk, so that an upgrade that was cut short is taken up again.
  - No token is ever returned or shown.
author:
  - labrack contributors (@labrack)
extends_documentation_fragment:
  - labrack.infra.converge
options:
  state:
    description: V(absent) ends its pods and takes all of it away, the cluster's database as well.
    type: str
    choices: [present, absent]
    default: present
  role:
    description: What the node is in its cluster.
    type: str
    choices: [server, agent]
    required: true
  version:
    description: The version to have.
    type: str
    required: true
  artifact_url:
    description: Where the releases are, with a directory for each version.
    type: str
    default: https://github.com/k3s-io/k3s/releases/download
  artifact_sha256:
    description: SHA-256 of the program by architecture, to hold it against besides the release's own sums.
    type: dict
    default: {}
  airgap_images:
    description: Whether the release's images are put beside the program.
    type: bool
    default: false
  node_name:
    description: The node's name in the cluster.
    type: str
    required: true
  node_ip:
    description: Its address there.
    type: str
    default: ""
  server_url:
    description: The address of an agent's server.
    type: str
    default: ""
  server_version:
    description: The version of a server that is no part of the run.
    type: str
    default: ""
  join_token:
    description: What an agent joins with; unless given, the one that it has.
    type: str
  disable:
    description: Packaged components to leave out.
    type: list
    elements: str
    default: []
  settings:
    description: Further keys of config.yaml.
    type: dict
    default: {}
  environment:
    description: Environment of the service, such as a proxy.
    type: dict
  kubeconfig_readers:
    description: Users who get a copy of the cluster's kubeconfig.
    type: list
    elements: str
    default: []
  cards:
    description:
      - The node's GPUs as M(labrack.infra.node_facts) has them, of which C(name) and C(memory_mib) count. Unless given,
        the node keeps the labels that it has.
    type: list
    elements: dict
  device_plugin:
    description: What gives GPUs to pods.
    type: str
    choices: [manifest, gpu_operator, none]
    default: manifest
  device_plugin_image:
    description: The device plugin's image.
    type: str
    default: ""
  gpu_replicas:
    description: Into how many shares of time a GPU is cut.
    type: int
    default: 1
  mig_strategy:
    description: How MIG instances are given out.
    type: str
    choices: [none, single, mixed]
    default: none
  gpu_operator_version:
    description: The version of the GPU operator's chart.
    type: str
    default: ""
  gpu_operator_repo_url:
    description: Where the chart is.
    type: str
    default: ""
  namespaces:
    description: Namespaces to have, with their quotas.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The namespace's name.
        type: str
        required: true
      gpus:
        description: GPUs that its pods may have together.
        type: int
      cpus:
        description: Processors that its pods may ask for together.
        type: int
      memory:
        description: Memory that its pods may ask for together.
        type: str
"""

EXAMPLES = r"""
- name: Run a cluster of one machine
  labrack.infra.k3s:
    role: server
    version: v1.36.3+k3s1
    node_name: desk
    node_ip: 192.168.1.10
    disable: [traefik, servicelb]
"""

RETURN = r"""
changes:
  description: What was or would be changed, without tokens.
  type: list
  elements: dict
  returned: always
pending:
  description: What waits for a higher O(max_disruption).
  type: list
  elements: dict
  returned: always
running:
  description: The version that runs, empty for none.
  type: str
  returned: always
"""

import contextlib
import json
import os
import platform
import pwd
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.labrack.infra.plugins.module_utils import k3s_observe as host
from ansible_collections.labrack.infra.plugins.module_utils import k3s_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS, Change, converge
from ansible_collections.labrack.infra.plugins.module_utils.download import DownloadError, download
from ansible_collections.labrack.infra.plugins.module_utils.k3s_plan import (
    Gpus,
    K3sError,
    Namespace,
    Observed,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import (
    FileState,
    observe_file,
    read_text,
    remove_empty,
    remove_file,
    run,
    said,
    write_file,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceError, act, daemon_reload

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
#: Seconds until a started k3s must run and answer, and restarts by systemd that say that it won't.
PATIENCE = 300.0
RESTARTS = 4
#: What a release that can't be had hangs on.
CHECK = "k3s_version and k3s_artifact_url"
ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "role": {"type": "str", "choices": ["server", "agent"], "required": True},
    "version": {"type": "str", "required": True},
    "artifact_url": {"type": "str", "default": "https://github.com/k3s-io/k3s/releases/download"},
    "artifact_sha256": {"type": "dict", "default": {}},
    "airgap_images": {"type": "bool", "default": False},
    "node_name": {"type": "str", "required": True},
    "node_ip": {"type": "str", "default": ""},
    "server_url": {"type": "str", "default": ""},
    "server_version": {"type": "str", "default": ""},
    "join_token": {"type": "str", "no_log": True},
    "disable": {"type": "list", "elements": "str", "default": []},
    "settings": {"type": "dict", "default": {}},
    # a proxy's address may hold a password
    "environment": {"type": "dict", "no_log": True},
    "kubeconfig_readers": {"type": "list", "elements": "str", "default": []},
    "cards": {"type": "list", "elements": "dict"},
    "device_plugin": {"type": "str", "choices": ["manifest", "gpu_operator", "none"], "default": "manifest"},
    "device_plugin_image": {"type": "str", "default": ""},
    "gpu_replicas": {"type": "int", "default": 1},
    "mig_strategy": {"type": "str", "choices": ["none", "single", "mixed"], "default": "none"},
    "gpu_operator_version": {"type": "str", "default": ""},
    "gpu_operator_repo_url": {"type": "str", "default": ""},
    "namespaces": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "gpus": {"type": "int"},
            "cpus": {"type": "int"},
            "memory": {"type": "str"},
        },
    },
    "max_disruption": {"type": "str", "choices": list(DISRUPTIONS), "default": "restart"},
}


def read_wanted(params: Mapping[str, Any]) -> Wanted:
    """Return what the parameters want."""
    return Wanted(
        present=params["state"] == "present",
        server=params["role"] == "server",
        version=params["version"],
        images=params["airgap_images"],
        node_name=params["node_name"],
        node_ip=params["node_ip"],
        server_url=params["server_url"],
        server_version=params["server_version"],
        join_token=params["join_token"] or "",
        disable=tuple(params["disable"]),
        settings=params["settings"],
        environment={str(name): str(value) for name, value in (params["environment"] or {}).items()},
        readers=tuple(params["kubeconfig_readers"]),
        cards=None
        if params["cards"] is None
        else tuple((str(one["name"]), int(one.get("memory_mib") or 0)) for one in params["cards"]),
        gpus=Gpus(
            params["device_plugin"],
            params["device_plugin_image"],
            params["gpu_replicas"],
            params["mig_strategy"],
            params["gpu_operator_version"],
            params["gpu_operator_repo_url"],
        ),
        namespaces=tuple(
            Namespace(one["name"], one["gpus"], one["cpus"], one["memory"] or "") for one in params["namespaces"]
        ),
    )


class Node:
    """The node: how a change is made."""

    def __init__(self, params: Mapping[str, Any], wanted: Wanted) -> None:
        self.params = params
        self.wanted = wanted
        self.seen = Observed()
        machine = platform.machine()
        self.architecture = ARCHITECTURES.get(machine, machine)

    def look(self) -> Observed:
        """Read the node."""
        self.seen = host.observe(self.wanted.server)
        return self.seen

    def apply(self, changes: list[Change]) -> None:
        """Make the changes in order; what can be found wrong is found before the first."""
        steps = [change.step for change in changes]
        for user in self.wanted.readers if self.wanted.present else ():
            try:
                pwd.getpwnam(user)
            except KeyError:
                raise K3sError(
                    f"k3s_kubeconfig_readers names {user}, whom this node does not know. Mend: add {user} to lab_users"
                ) from None
        fetches = {("install",), ("images",)} & set(steps)
        if fetches:
            os.makedirs(planner.STATE, mode=0o700, exist_ok=True)
        # beside what it becomes: /tmp may be small, and in memory
        folder = tempfile.mkdtemp(prefix="download-", dir=planner.STATE) if fetches else ""
        try:
            got = self._fetch(Path(folder), ("install",) in fetches, ("images",) in fetches) if fetches else {}
            if self.wanted.present:
                self._record(role="server" if self.wanted.server else "agent")
            for change in changes:
                self._make(change.step, got)
        except BaseException:
            if folder and not os.path.exists(planner.RECORD):
                # nothing has been made yet
                shutil.rmtree(planner.STATE, ignore_errors=True)
            raise
        finally:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
        if not self.wanted.present:
            for path in (planner.READERS, planner.ETC, "/etc/rancher", "/var/lib/rancher", "/var/lib/cni/networks"):
                remove_empty(path)
            remove_empty("/var/lib/cni")
            daemon_reload()

    def _make(self, step: tuple[str, ...], got: Mapping[str, Path]) -> None:
        verb, rest = step[0], step[1:]
        if verb == "install":
            put(got["k3s"], planner.BINARY, 0o755)
        elif verb == "images":
            old = host.image_file()
            os.makedirs(planner.IMAGES, exist_ok=True)
            put(got["images"], f"{planner.IMAGES}/{got['images'].name}", 0o644)
            if old and os.path.basename(old) != got["images"].name:
                remove_file(old)
            self._record(images=self.wanted.version)
        elif verb == "snapshot":
            host.snapshot(rest[0])
        elif verb == "link":
            os.symlink("k3s", rest[0])
        elif verb == "token":
            os.makedirs(planner.STATE, mode=0o700, exist_ok=True)
            write_file(rest[0], FileState(secrets.token_hex(32) + "\n", "0600"))
        elif verb == "write":
            self._write(rest[0])
        elif verb == "remove":
            remove_file(rest[0])
        elif verb == "restart":
            self._restart(rest[0])
        elif verb == "join":
            self._write_join()
        elif verb == "unapply":
            self._unapply(rest[0])
        elif verb == "disable":
            for told in ("disable", "stop"):
                act(told, rest[0])
            run(["systemctl", "reset-failed", f"{rest[0]}.service"])
        elif verb == "pods":
            host.end_pods()
        elif verb == "tree":
            host.remove_tree(rest[0])
        else:
            act(verb, rest[0])

    def _write(self, path: str) -> None:
        if path.startswith(f"{planner.READERS}/"):
            self._copy_kubeconfig(os.path.basename(path)[: -len(".yaml")])
            return
        wish = planner.wanted_file(path, self.wanted, self.seen)
        if wish is None:
            return
        if path.startswith(planner.DATA):
            # as k3s makes it, which keeps its keys there
            os.makedirs(f"{planner.DATA}/{'server' if self.wanted.server else 'agent'}", mode=0o700, exist_ok=True)
        write_file(path, wish)
        if path == planner.unit_path(self.wanted.unit):
            daemon_reload()

    def _copy_kubeconfig(self, user: str) -> None:
        os.makedirs(planner.READERS, mode=0o755, exist_ok=True)
        text = read_text(planner.KUBECONFIG)
        if text is None:
            raise K3sError(f"{planner.KUBECONFIG} is not there. Mend: see journalctl -u k3s")
        write_file(planner.reader_path(user), FileState(text, "0600", user, "root"))

    def _write_join(self) -> None:
        token = read_text(planner.MADE_TOKEN)
        if token is None:
            raise K3sError(f"{planner.MADE_TOKEN} is not there. Mend: see journalctl -u k3s")
        write_file(planner.JOIN, FileState(planner.join_text(self.wanted, token), "0600"))

    def _unapply(self, path: str) -> None:
        """Take what a file made out of the cluster; k3s keeps that when the file alone goes."""
        done = run([planner.BINARY, "kubectl", "delete", "--ignore-not-found", "--wait=false", "--filename", path])
        if done.rc:
            raise K3sError(f"what {path} made can't be removed: {said(done)}. Mend: see journalctl -u k3s")
        remove_file(path)

    def _record(self, **values: str) -> None:
        before = host.read_record() or {}
        after = {**before, **values}
        if after != before or not os.path.exists(planner.RECORD):
            os.makedirs(planner.STATE, mode=0o700, exist_ok=True)
            write_file(planner.RECORD, FileState(json.dumps(after, sort_keys=True) + "\n", "0600"))

    # --- program ---

    def _fetch(self, folder: Path, program: bool, images: bool) -> dict[str, Path]:
        """Download what is wanted of the release, and hold each file against the release's sums."""
        if self.architecture not in ARCHITECTURES.values():
            raise K3sError(f"there is no k3s for {self.architecture} machines")
        base = f"{self.params['artifact_url'].rstrip('/')}/{self.wanted.version.replace('+', '%2B')}"
        sums_url = f"{base}/sha256sum-{self.architecture}.txt"
        sums = read_sums(fetch_text(sums_url))
        names = {}
        if program:
            names["k3s"] = "k3s" if self.architecture == "amd64" else f"k3s-{self.architecture}"
        if images:
            names["images"] = f"k3s-airgap-images-{self.architecture}.tar.zst"
        got = {}
        for what, name in names.items():
            if name not in sums:
                raise K3sError(
                    f"{sums_url} has no line for {name}; nothing was installed. Mend: see what answers there: a proxy "
                    "may, or a mirror that is not whole"
                )
            got[what] = folder / name
            found = download(f"{base}/{name}", got[what], CHECK)
            pinned = str(self.params["artifact_sha256"].get(self.architecture, "")).lower() if what == "k3s" else ""
            if found != sums[name] or (pinned and found != pinned):
                own = found != sums[name]
                says = f"the release's own sums say {sums[name]}" if own else f"k3s_artifact_sha256 says {pinned}"
                raise K3sError(
                    f"{base}/{name} has the SHA-256 {found}, and {says}; nothing was installed. "
                    "Mend: look at the mirror; a proxy may answer in its place"
                )
        if program:
            os.chmod(got["k3s"], 0o755)  # noqa: S103
            told = host.program_version(str(got["k3s"]))
            if told != self.wanted.version:
                raise K3sError(
                    f"{base}/{names['k3s']} says that it is {told}, not {self.wanted.version}; nothing was installed. "
                    "Mend: look at the mirror"
                )
        return got

    def _restart(self, unit: str) -> None:
        """Start or restart k3s, and wait until it runs and a server answers (ServiceError with its log)."""
        before = planner.base_version(self.seen)
        daemon_reload()
        run(["systemctl", "reset-failed", f"{unit}.service"])
        done = run(["systemctl", "restart", "--no-block", f"{unit}.service"])
        if done.rc:
            raise ServiceError(f"systemctl restart {unit} failed: {done.err.strip()}")
        deadline = time.monotonic() + PATIENCE
        properties = "--property=ActiveState,NRestarts,Job"
        while True:
            time.sleep(0.5)
            shown = run(["systemctl", "show", properties, f"{unit}.service"]).out
            values = dict(line.partition("=")[::2] for line in shown.splitlines())
            settled = values.get("ActiveState") == "active" and values.get("Job", "0") in ("", "0")
            if settled and self._answers():
                break
            if time.monotonic() > deadline or int(values.get("NRestarts") or 0) >= RESTARTS:
                asked = ["--no-pager", "--lines=8", "--output=cat", "--identifier=k3s", f"--unit={unit}.service"]
                log = run(["journalctl", *asked]).out
                copied = before and before != self.wanted.version and self.wanted.server
                back = f"; the copy of the database from before is in {planner.SNAPSHOTS}" if copied else ""
                raise ServiceError(f"{unit} does not come up{back}; its log ends: {log.strip()}")
        running = host.program_version(f"/proc/{host.main_pid(unit)}/exe")
        self._record(ran=max((running, self.seen.ran), key=planner.numbers))
        if self.wanted.server:
            # the certificate in it may have been renewed at the start
            for user in self.wanted.readers:
                if observe_file(planner.reader_path(user)) is not None:
                    self._copy_kubeconfig(user)

    def _answers(self) -> bool:
        if not self.wanted.server:
            return True
        done = run([planner.BINARY, "kubectl", "get", "--raw", "/readyz"], timeout=20)
        return done.rc == 0 and done.out.strip() == "ok" and os.path.exists(planner.MADE_TOKEN)


def put(source: Path, target: str, mode: int) -> None:
    """Put a file in its place whole, from another file system too; what runs of the old one goes on."""
    draft = f"{target}.labrack-new"
    try:
        shutil.copyfile(source, draft)
        os.chmod(draft, mode)
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.rename(draft, target)
    finally:
        remove_file(draft)


def read_sums(text: str) -> dict[str, str]:
    """Return the sums in a release's sha256sum-ARCH.txt, by file."""
    lines = (line.split() for line in text.splitlines())
    return {fields[1].lstrip("*"): fields[0].lower() for fields in lines if len(fields) == 2 and len(fields[0]) == 64}


def fetch_text(url: str) -> str:
    """Fetch a small file (DownloadError)."""
    with tempfile.TemporaryDirectory(prefix="labrack-") as folder:
        target = Path(folder) / "text"
        download(url, target, CHECK)
        return target.read_text(encoding="utf-8", errors="replace")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    wanted = read_wanted(module.params)
    if module.check_mode and not wanted.server and not wanted.join_token and not os.path.exists(planner.JOIN_TOKEN):
        # made by the server, which has only been looked at
        wanted = replace(wanted, join_token="not-made-yet")  # noqa: S106
    node = Node(module.params, wanted)

    def extra(state: Observed) -> dict[str, Any]:
        for words in planner.notes(state, wanted):
            module.warn(words)
        return {"running": state.running}

    try:
        converge(
            module,
            node.look,
            lambda state: planner.plan(state, wanted),
            node.apply,
            extra,
            drains=False,
            ledger="k3s" if wanted.present else "",
            forgets=() if wanted.present else ("k3s",),
        )
    except (K3sError, DownloadError, ServiceError, OSError) as error:
        with contextlib.suppress(OSError):
            remove_empty(planner.STATE)
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
