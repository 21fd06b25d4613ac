# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the test node's package decides, renders and refuses, without a Docker engine."""

from __future__ import annotations

import argparse
import json
import runpy
import shlex
import subprocess
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from labrack.testnode import engine, gpus, image, node
from labrack.testnode.__main__ import parse_group, parse_node
from labrack.testnode.docker import DATA, LabError

BARE = engine.Host(root=True, distributions=("debian",), client=False, engine=False, running=False, systemd=True)


@pytest.mark.parametrize(
    ("host", "plan"),
    [
        (BARE, engine.Plan(install=True, systemd=True)),
        (replace(BARE, distributions=("ubuntu", "debian"), systemd=False), engine.Plan(install=True, systemd=False)),
        (replace(BARE, distributions=("linuxmint", "ubuntu", "debian")), engine.Plan(install=True, systemd=True)),
        (replace(BARE, client=True), engine.Plan(install=True, systemd=True)),
        (replace(BARE, client=True, engine=True), engine.Plan(install=False, systemd=True)),
    ],
)
def test_engine_plan(host: engine.Host, plan: engine.Plan) -> None:
    assert engine.decide(host) == plan


@pytest.mark.parametrize(
    ("host", "mend"),
    [
        (replace(BARE, root=False), "sudo apt-get install docker.io && sudo usermod -aG docker $USER"),
        (replace(BARE, root=False, client=True, engine=True), "sudo systemctl enable --now docker"),
        (replace(BARE, distributions=("fedora",)), "https://docs.docker.com/engine/install/"),
        (replace(BARE, root=False, error="permission denied while connecting"), "sudo usermod -aG docker $USER"),
        (replace(BARE, client=True, engine=True, running=True, error="timeout"), "sudo systemctl restart docker"),
        (replace(BARE, docker_host="tcp://10.0.0.1:2375"), "unset DOCKER_HOST"),
    ],
)
def test_engine_refusal_names_the_mend(host: engine.Host, mend: str) -> None:
    with pytest.raises(engine.EngineError, match=r"^[^\n]*$") as refused:
        engine.decide(host)
    assert mend in str(refused.value)


def test_answering_engine_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "answers", lambda: None)
    said: list[str] = []
    engine.ensure_engine(said.append)
    assert said == []


DEB822 = """\
Types: deb
# URIs: http://old.example/debian
URIs: https://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb deb-src
URIs: https://mirror.example/debian-security
Suites: bookworm-security
"""
ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/debian bookworm main contrib
deb http://mirror.example/security bookworm-security main
deb http://other.example/tools bookworm main
"""


@pytest.mark.parametrize(
    ("texts", "mirrors"),
    [
        ([DEB822], image.Mirrors("https://mirror.example/debian", "https://mirror.example/debian-security")),
        ([ONE_LINE], image.Mirrors("http://mirror.example/debian", "http://mirror.example/security")),
        ([], image.Mirrors()),
        (
            ["deb cdrom:[Debian]/ bookworm main", "Types: deb\nURIs: file:/srv/debian\nSuites: bookworm\n"],
            image.Mirrors(),
        ),
        (["Types: deb-src\nURIs: http://source.example/debian\nSuites: bookworm\n"], image.Mirrors()),
    ],
)
def test_mirrors(texts: list[str], mirrors: image.Mirrors) -> None:
    assert image.parse_mirrors("bookworm", texts) == mirrors


def test_image_tag_follows_the_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Dockerfile").write_text("FROM one\n")
    monkeypatch.setattr(image, "DATA", tmp_path)
    mirrors = image.Mirrors()
    first = image.inputs_hash("debian13", mirrors)
    assert first == image.inputs_hash("debian13", mirrors)
    assert first != image.inputs_hash("debian12", mirrors)
    assert first != image.inputs_hash("debian13", replace(mirrors, main="http://mirror.example/debian"))
    (tmp_path / "Dockerfile").write_text("FROM two\n")
    assert first != image.inputs_hash("debian13", mirrors)


def test_unknown_system_is_refused() -> None:
    with pytest.raises(image.ImageError, match="debian12, debian13, ubuntu2204"):
        image.ensure_image("debian11", print)


def no_registry(
    *argv: str, input: object = None, check: bool = True, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    if argv[0] == "pull" and timeout is not None and timeout < 60:
        raise subprocess.TimeoutExpired("docker pull", timeout)
    return subprocess.CompletedProcess(argv, 1, "", "no such host")


def test_ubuntu_without_a_registry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "docker", no_registry)
    with pytest.raises(image.ImageError, match=r"ubuntu:24\.04.*no such host.*debian13"):
        image.ensure_image("ubuntu2404", lambda line: None)


def test_debian_without_a_registry_needs_mmdebstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "docker", no_registry)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    said: list[str] = []
    with pytest.raises(image.ImageError, match="sudo apt-get install mmdebstrap"):
        image.ensure_image("debian13", said.append)
    assert "no image within 20 s" in said[-1]


def test_every_input_of_the_image_is_there() -> None:
    words = " ".join(line for line in (DATA / "Dockerfile").read_text().splitlines() if line.startswith("COPY")).split()
    files = [word for word in words if word != "COPY" and not word.startswith("/")]
    assert sorted(files) == sorted(path.name for path in DATA.iterdir() if path.name != "Dockerfile" and path.is_file())


LAB = node.Lab(
    "lab",
    (
        node.Node("head", "lab-head", "debian13", "172.20.0.2", 40001, 0),
        node.Node("w1", "lab-w1", "debian12", "172.20.0.3", 40002, 2),
    ),
    Path("/state/my lab"),
)


def test_one_device_rule_per_card() -> None:
    flags = node.run_flags("lab", node.NodeSpec("w1", gpus=(gpus.GpuSpec(),) * 2), 40002)
    rules = [flag.partition("=")[2] for flag in flags if flag.startswith("--device-cgroup-rule")]
    assert rules == ["c 195:0 rwm", "c 195:1 rwm", "c 195:255 rwm"]
    assert "--privileged" not in flags
    assert "--publish=127.0.0.1:40002:22" in flags


def test_node_without_cards_gets_no_device_rule() -> None:
    flags = node.run_flags("lab", node.NodeSpec("head"), 40001)
    assert not [flag for flag in flags if flag.startswith("--device")]


def test_tunnels_and_isolation_are_asked_for() -> None:
    plain = node.run_flags("lab", node.NodeSpec("w1"), 40002)
    flags = node.run_flags("lab", node.NodeSpec("w1", tun=True), 40002, isolated=True)
    assert sorted(set(flags) - set(plain)) == ["--device-cgroup-rule=c 10:200 rwm", "--dns=127.0.0.1"]


def test_nodes_share_the_volumes_that_they_name() -> None:
    spec = node.NodeSpec("w1", volumes=(("home", "/home"), ("own", "/srv/w1")))
    flags = set(node.run_flags("lab", spec, 40002)) - set(node.run_flags("lab", node.NodeSpec("w1"), 40002))
    assert sorted(flags) == [
        "--mount=type=volume,source=lab-home,target=/home,volume-nocopy",
        "--mount=type=volume,source=lab-own,target=/srv/w1,volume-nocopy",
    ]


def test_inventory_checks_host_keys() -> None:
    variables = node.inventory(LAB)["w1"]
    assert variables["ansible_host"] == "127.0.0.1"
    assert variables["ansible_port"] == 40002
    options = shlex.split(variables["ansible_ssh_common_args"])
    assert 'UserKnownHostsFile="/state/my lab/known_hosts"' in options
    assert "StrictHostKeyChecking=yes" in options


def test_inventory_yaml() -> None:
    text = node.inventory_yaml(LAB, {"lab_head": ["head"], "lab_workers": ["head", "w1"]})
    data = yaml.safe_load(text)["all"]
    assert data["hosts"] == node.inventory(LAB)
    assert data["children"] == {
        "lab_head": {"hosts": {"head": {}}},
        "lab_workers": {"hosts": {"head": {}, "w1": {}}},
    }


def test_inventory_refuses_an_unknown_host_in_a_group() -> None:
    with pytest.raises(node.NodeError, match="no node 'w9'; it has: head, w1"):
        node.inventory_yaml(LAB, {"lab_workers": ["w9"]})


def test_state_is_found_again(tmp_path: Path) -> None:
    nodes = [
        {"name": "w1", "container": "lab-w1", "system": "debian12", "address": "172.20.0.3", "port": 40002, "gpus": 2}
    ]
    (tmp_path / "nodes.json").write_text(json.dumps({"name": "lab", "nodes": nodes}))
    lab = node.load(tmp_path)
    assert lab.nodes == (LAB.node("w1"),)
    assert lab.key == tmp_path / "id_ed25519"


def test_missing_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nodes\.json does not exist"):
        node.load(tmp_path)


def test_free_ports_are_different() -> None:
    assert len(set(node.free_ports(5))) == 5


def test_document_is_stable_and_its_own() -> None:
    cards = [gpus.GpuSpec(), gpus.GpuSpec(mig=True), gpus.GpuSpec(ecc=False)]
    first = gpus.document("lab/w1", cards)
    assert first == gpus.document("lab/w1", cards)
    assert [card["minor"] for card in first["gpus"]] == [0, 1, 2]
    assert [card["mig_mode"] for card in first["gpus"]] == [None, "Disabled", None]
    assert first["gpus"][2]["ecc"] is None
    both = first["gpus"] + gpus.document("lab/w2", cards)["gpus"]
    assert len({card["uuid"] for card in both}) == 6


def test_document_without_a_driver() -> None:
    document = gpus.document("lab/w1", [gpus.GpuSpec()], driver=False, nouveau=True)
    assert document["driver"]["packaged"]
    assert not document["driver"]["loaded"]
    assert document["driver"]["version"] is None
    assert document["nouveau"] == "loaded"
    assert gpus.document("lab/w1", [])["nouveau"] is None


MODULES = runpy.run_path(str(DATA / "kernel-modules"))


@pytest.mark.parametrize(
    ("device", "version", "is_open", "works"),
    [
        ("0x1b06", "580.105.08", False, True),
        ("0x1b06", "580.105.08", True, False),
        ("0x1b06", "590.48.01", False, False),
        ("0x1db6", "590.48.01", False, False),
        ("0x1e07", "590.48.01", False, True),
        ("0x2230", "595.91.07", True, True),
    ],
)
def test_which_driver_takes_which_card(
    device: str, version: str, is_open: bool, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    driven = MODULES["driven"]
    monkeypatch.setitem(driven.__globals__, "log", lambda *lines: said.extend(lines))
    card = gpus.document("lab/w1", [gpus.GpuSpec("NVIDIA card", pci_device=device)])["gpus"][0]
    assert driven(card, version, is_open) is works
    assert bool(said) is not works


def test_stand_in_modprobe_refuses_what_it_does_not_know() -> None:
    with pytest.raises(MODULES["Failure"], match="knows no --force"):
        MODULES["modprobe"](["--force", "nvidia"])


def test_lost_card_is_in_the_kernel_log_once() -> None:
    before = gpus.document("lab/w1", [gpus.GpuSpec(), gpus.GpuSpec()])
    after = gpus.document("lab/w1", [gpus.GpuSpec(), gpus.GpuSpec()])
    gpus.lose(after, 1)
    lines = gpus.kernel_lines(before, after, 12.5)
    assert lines == ["[   12.500000] NVRM: Xid (PCI:0000:0f:00): 79, GPU has fallen off the bus."]
    assert gpus.kernel_lines(after, after, 13.0) == []
    assert not gpus.log_starts_over(before, after)


def test_mending_a_card_empties_the_kernel_log() -> None:
    before = gpus.document("lab/w1", [gpus.GpuSpec(), gpus.GpuSpec()])
    gpus.lose(before, 1)
    after = deepcopy(before)
    gpus.mend(after, 1)
    assert gpus.log_starts_over(before, after)
    assert gpus.kernel_lines(before, after, 14.0) == []


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("head", node.NodeSpec("head")),
        ("w1:gpus=2:system=debian12", node.NodeSpec("w1", "debian12", (gpus.GpuSpec(),) * 2)),
        ("w1:driver=none:gpus=1", node.NodeSpec("w1", gpus=(gpus.GpuSpec(),), driver=False)),
        ("w1:driver=nouveau", node.NodeSpec("w1", driver=False, nouveau=True)),
        ("w1:driver=loaded", node.NodeSpec("w1")),
    ],
)
def test_node_argument(text: str, spec: node.NodeSpec) -> None:
    assert parse_node(text) == spec


@pytest.mark.parametrize("text", ["w1:gpus=two", "w1:cpus=2", "w1:system=", "w1:driver=nvidia"])
def test_wrong_node_argument(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected gpus=NUMBER, system=SYSTEM or driver="):
        parse_node(text)


def test_group_argument() -> None:
    assert parse_group("lab_workers=w1,w2") == ("lab_workers", ["w1", "w2"])
    with pytest.raises(argparse.ArgumentTypeError):
        parse_group("lab_workers")
