"""The tailnet as an inventory: recorded answers of real clients and servers, the API, groups, variables, the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import tailnet_devices
from ansible_collections.labrack.infra.plugins.module_utils.tailnet_devices import Device
from tests.tailnet.api import Tailnet, serving

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(__file__).parent / "fixtures/tailnet"
STATUS = FIXTURES / "status_1.102.3.json"
NODES = FIXTURES / "headscale_nodes_0.29.2.json"
NOW = datetime(2026, 11, 24, 14, 40, tzinfo=UTC)


def listed(folder: Path, text: str, fails: bool = False, **environment: str) -> tuple[dict[str, Any], str]:
    """What ansible-inventory lists of ``lab.tailnet.yml`` with this text, and what it says beside that."""
    (folder / "lab.tailnet.yml").write_text(f"plugin: labrack.infra.tailnet\n{text}")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(folder / "lab.tailnet.yml"), "--list"],
        cwd=ROOT,
        env={
            **os.environ,
            **environment,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_INVENTORY_UNPARSED_FAILED": "true",
            "HOME": str(folder),
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return {} if fails else json.loads(done.stdout, object_hook=plain), done.stderr


def plain(value: dict[str, Any]) -> Any:
    """What a plugin says is no template, and marked so; here it is taken as it is."""
    return value["__ansible_unsafe"] if list(value) == ["__ansible_unsafe"] else value


def test_a_clients_status(tmp_path: Path) -> None:
    seen, _said = listed(tmp_path, f"command: [cat, {STATUS}]\nkeyed_groups: [{{prefix: os, key: tailnet_os}}]\n")
    assert seen["lab_head"]["hosts"] == ["thead"]
    assert seen["lab_workers"]["hosts"] == ["tnode1", "node1"]
    assert seen["lab_interactive"]["hosts"] == ["play"]
    assert seen["tailnet_offline"]["hosts"] == ["tnode1", "node1", "play"]
    assert "thead" in seen["os_linux"]["hosts"]
    hosts = seen["_meta"]["hostvars"]
    assert set(hosts) == {"thead", "tnode1", "node1", "play"}, "people's laptops are no hosts"
    head = hosts["thead"]
    assert head["tailnet_tags"] == ["tag:lab-head"] and head["tailnet_online"] is True
    assert head["ansible_host"] == head["tailnet_ipv4"] == head["tailnet_addresses"][0]
    assert head["tailnet_name"] == "thead.tailnet.test"
    assert ":" in head["tailnet_ipv6"]


def test_groups_and_variables_as_other_plugins_have_them(tmp_path: Path) -> None:
    text = f"""
command: [cat, {STATUS}]
untagged: true
tag_groups: {{lab-worker: [lab_workers, slurm_worker]}}
offline_group: asleep
compose: {{ansible_host: tailnet_name, rack: "'one'"}}
groups: {{needs_login: tailnet_expired}}
"""
    seen, _said = listed(tmp_path, text)
    assert seen["slurm_worker"]["hosts"] == seen["lab_workers"]["hosts"] == ["tnode1", "node1"]
    assert seen["tag_lab_head"]["hosts"] == ["thead"]
    assert set(seen["tailnet_untagged"]["hosts"]) == {"adalap", "gracelap", "benlap"}
    assert seen["needs_login"]["hosts"] == ["benlap"] and "benlap" in seen["asleep"]["hosts"]
    hosts = seen["_meta"]["hostvars"]
    assert hosts["thead"]["ansible_host"] == "thead.tailnet.test" and hosts["thead"]["rack"] == "one"
    assert hosts["adalap"]["tailnet_user"] == "ada"


def test_headscale(tmp_path: Path) -> None:
    text = f"source: headscale\ncommand: [cat, {NODES}]\nbase_domain: tailnet.test\n"
    seen, _said = listed(tmp_path, text)
    assert seen["lab_head"]["hosts"] == ["head", "thead"]
    assert "thead" not in seen["tailnet_offline"]["hosts"] and "head" in seen["tailnet_offline"]["hosts"]
    assert seen["_meta"]["hostvars"]["thead"]["tailnet_name"] == "thead.tailnet.test"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"command: [cat, {FIXTURES}/status_needs_login_1.102.3.json]\n", ["NeedsLogin", "tailscale up"]),
        ("command: [sh, -c, 'echo no daemon >&2; exit 1']\n", ["no daemon"]),
        ("command: [labrack-no-such-command]\n", ["not found"]),
        ("command: [echo, hello]\n", ["gave no JSON"]),
        ("source: api\napi_url: http://127.0.0.1:9\napi_key: tskey-api-secret\n", ["does not answer"]),
        ("source: api\n", ["neither an API key"]),
    ],
)
def test_nobody_who_tells(tmp_path: Path, text: str, words: list[str]) -> None:
    _seen, said = listed(tmp_path, text, fails=True)
    joined = " ".join(said.split())
    assert all(word in joined for word in words), said
    assert "tskey-api-secret" not in said


def device(number: int, **fields: Any) -> dict[str, Any]:
    """A device as the API has it."""
    return {
        "id": str(number),
        "nodeId": f"n{number}CNTRL",
        "name": f"node{number}.tail1234.ts.net",
        "hostname": f"node{number}",
        "addresses": [f"fd7a:115c:a1e0::{number}", f"100.64.{number // 250}.{number % 250}"],
        "tags": ["tag:lab-worker"],
        "user": "grace@lab.example",
        "os": "linux",
        "lastSeen": "2020-01-01T00:00:00Z",
        "expires": "0001-01-01T00:00:00Z",
        "keyExpiryDisabled": True,
        "connectedToControl": True,
        **fields,
    }


def test_five_hundred_devices_are_one_request_and_then_none(tmp_path: Path) -> None:
    with serving(Tailnet(devices=[device(number) for number in range(500)])) as tailnet:
        text = f"""
source: api
api_url: {tailnet.url}
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: {tmp_path}/cache
keyed_groups: [{{prefix: os, key: tailnet_os}}]
"""
        for _again in range(2):
            seen, _said = listed(tmp_path, text, TS_OAUTH_ID=tailnet.client_id, TS_OAUTH_SECRET=tailnet.client_secret)
            assert len(seen["lab_workers"]["hosts"]) == len(seen["os_linux"]["hosts"]) == 500
        assert [path for _method, path, _headers in tailnet.asked] == [
            "/api/v2/oauth/token",
            "/api/v2/tailnet/-/devices",
        ]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {"online": True, "expired": False, "logins": (), "addresses": ("100.64.0.7", "fd7a:115c:a1e0::7")}),
        ({"connectedToControl": False}, {"online": False}),
        ({"connectedToControl": None, "lastSeen": "2026-11-24T14:38:00Z"}, {"online": True}),
        ({"connectedToControl": None, "lastSeen": "2026-11-24T09:30:00-05:00"}, {"online": False}),
        ({"connectedToControl": None, "lastSeen": "2026-11-24T09:38:00.123-05:00"}, {"online": True}),
        ({"connectedToControl": None, "lastSeen": ""}, {"online": False, "last_seen": ""}),
        ({"tags": None}, {"logins": ("grace@lab.example",), "tags": ()}),
        ({"expires": "2026-11-24T14:00:00Z", "keyExpiryDisabled": False}, {"expired": True}),
        ({"expires": "2026-11-24T14:00:00Z"}, {"expired": False}),
        ({"expires": "2026-11-25T14:00:00Z", "keyExpiryDisabled": False}, {"expired": False}),
        ({"isExternal": True, "addresses": None}, {"external": True, "addresses": ()}),
    ],
)
def test_a_device_of_the_api(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    (found,) = tailnet_devices.of_api([device(7, **fields)], NOW)
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert (found.id, found.name, found.dns_name) == ("n7CNTRL", "node7", "node7.tail1234.ts.net")


def test_whose_devices_expire() -> None:
    devices = tailnet_devices.of_headscale(json.loads(NODES.read_text()), now=NOW)
    for login, names in (("ada@", ["adalap"]), ("ADA", ["adalap"]), ("tagged-devices@", []), ("nobody@", [])):
        assert [one.name for one in tailnet_devices.of_people(devices, [login])] == names
    (change,) = tailnet_devices.plan_expiry(tailnet_devices.of_people(devices, ["ada@", "ben@"]))
    assert change.step == ("expire", "2"), "ben's has expired"
    now = int(NOW.timestamp())
    key = {"id": 4, "user": {"name": "ada"}, "reusable": True, "expiration": {"seconds": now + 60}}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["pre-auth key 4 of ada"]),
        ({"expiration": None}, ["pre-auth key 4 of ada"]),
        ({"used": True}, ["pre-auth key 4 of ada"]),
        ({"used": True, "reusable": False}, []),
        ({"expiration": {"seconds": now - 60}}, []),
        ({"user": {"name": "ben"}}, []),
        ({"user": None, "acl_tags": ["tag:lab-worker"]}, []),
    ]
    for more, subjects in cases:
        assert [one.subject for one in tailnet_devices.plan_keys([{**key, **more}], ["ada@"], NOW)] == subjects
    shared = Device("x", "x", logins=("ada@",), external=True)
    assert tailnet_devices.of_people([shared], ["ada@"]) == []
