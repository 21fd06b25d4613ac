"""Policies before a real headscale: it takes every one that is made from an inventory, and runs their tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import hujson, tailnet_policy
from ansible_collections.labrack.infra.plugins.module_utils.tailnet_policy import Lab, Node
from ansible_collections.labrack.infra.plugins.modules import tailnet_devices
from ansible_collections.labrack.infra.plugins.modules import tailnet_policy as module
from tests.tailnet import binaries
from tests.tailnet.control import MACHINES, PEOPLE, Control

LOGINS = [f"{name}@" for name in PEOPLE]
GROUPS = [{"name": "admins", "members": ["ada@"]}, {"name": "students", "members": ["cy@"]}]


@pytest.fixture(scope="module")
def control() -> Iterator[Control]:
    try:
        programs = binaries.ensure(print)
    except binaries.NoBinariesError as error:
        pytest.skip(f"headscale can't be built: {error}")
    with Control(programs / "bin/headscale") as control:
        yield control


@st.composite
def labs(draw: st.DrawFn) -> Lab:
    """Any lab of these people and machines, in whichever groups; the machines have the tags that they have there."""
    members = st.lists(st.sampled_from(LOGINS), unique=True)
    groups = {"admins": tuple(sorted(draw(members.filter(bool))))}
    for name in draw(st.lists(st.sampled_from(["researchers", "students", "guests"]), unique=True)):
        groups[name] = tuple(sorted(draw(members)))
    routes = st.lists(st.sampled_from(["10.1.0.0/24", "10.2.0.0/16", "fd00::/64"]), unique=True).map(tuple)
    nodes = tuple(Node(name, (tag,), draw(routes), draw(st.booleans())) for name, tag in MACHINES.items())
    accounts = draw(st.dictionaries(st.sampled_from(LOGINS), st.sampled_from(["ada", "lovelace"])))
    return Lab(groups, nodes, accounts, "lab", draw(st.booleans()))


def test_headscale_takes_every_policy_and_its_tests_hold(control: Control) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(labs())
    def every(lab: Lab) -> None:
        assert control.check(tailnet_policy.render(tailnet_policy.build(lab))) == ""

    every()


def test_headscale_finds_what_is_wrong(control: Control) -> None:
    policy = tailnet_policy.build(Lab({"admins": ("ada@",), "students": ("cy@",)}))
    policy["grants"].append({"src": ["group:students"], "dst": ["*"], "ip": ["*"]})
    assert "cy@ -> tag:lab-worker:22 (tcp): expected DENIED" in control.check(tailnet_policy.render(policy))


def run(code: Any, capsys: pytest.CaptureFixture[str], **params: Any) -> dict[str, Any]:
    capsys.readouterr()
    with patch_module_args(params), pytest.raises(SystemExit):
        code.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_modules_against_it(
    control: Control, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEADSCALE_CONFIG", "PATH"):
        monkeypatch.setenv(name, control.environment[name])
    # this server is no service of systemd's
    (control.folder / "systemctl").write_text(f"#!/bin/sh\nkill -HUP {control.process}\n")
    (control.folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{control.folder}:{control.environment['PATH']}")
    on = {"server": "headscale", "path": str(control.policy), "groups": GROUPS}
    first = run(module, capsys, **on)
    assert "was not written by labrack" in first["msg"]
    assert run(module, capsys, **on, overwrite=True)["changed"]
    assert not run(module, capsys, **on)["changed"]
    assert hujson.loads(control.run("policy", "get").stdout)["groups"]["group:students"] == ["cy@"]
    barred = {"tests": [{"src": "cy@", "accept": ["tag:lab-worker:22"]}]}
    assert "expected ALLOWED, got DENIED" in run(module, capsys, **on, extra=barred)["msg"]

    leaving = {"server": "headscale", "logins": ["cy@"]}
    assert run(tailnet_devices, capsys, **leaving)["devices"] == ["cy-laptop"]
    assert not run(tailnet_devices, capsys, **leaving)["changed"]
