"""The tailnet's policy: who reaches what from any inventory, the site's own part, and the way to either server."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.filter import leaving, tailnet_nodes
from ansible_collections.labrack.infra.plugins.module_utils import hujson, tailnet_policy, tailscale_api
from ansible_collections.labrack.infra.plugins.module_utils.tailnet_policy import Lab, Node
from ansible_collections.labrack.infra.plugins.modules import tailnet_policy as module
from tests.tailnet.api import FIRST_POLICY, Fault, Tailnet, serving

ROOT = Path(__file__).resolve().parents[2]
PEOPLE = ["ada@lab.example", "ben@lab.example", "cy@", "dee@github"]
TAGS = ["tag:lab-head", "tag:lab-interactive", "tag:lab-worker", "tag:storage"]
ROLES = TAGS[:3]


@st.composite
def labs(draw: st.DrawFn) -> Lab:
    """Any lab without problems: people in several groups, machines with several tags."""
    members = st.lists(st.sampled_from(PEOPLE), unique=True)
    groups = {"admins": tuple(sorted(draw(st.lists(st.sampled_from(PEOPLE), unique=True, min_size=1))))}
    for name in draw(st.lists(st.sampled_from(["researchers", "students", "guests"]), unique=True)):
        groups[name] = tuple(sorted(draw(members)))
    nodes = draw(
        st.lists(
            st.builds(
                Node,
                st.sampled_from(["head", "node1", "node2"]),
                st.lists(st.sampled_from(TAGS), unique=True).map(tuple),
                st.lists(st.sampled_from(["10.1.0.0/24", "10.2.0.0/16", "fd00::/64"]), unique=True).map(tuple),
                st.booleans(),
            ),
            max_size=4,
        )
    )
    accounts = draw(st.dictionaries(st.sampled_from(PEOPLE), st.sampled_from(["ada", "lovelace"])))
    return Lab(groups, tuple(nodes), accounts, "lab", draw(st.booleans()))


@given(labs())
def test_everybody_reaches_what_is_theirs_and_no_more(lab: Lab) -> None:
    assert tailnet_policy.problems(lab) == []
    policy = tailnet_policy.build(lab)
    assert tailnet_policy.unknown_names(policy) == []
    assert tailnet_policy.lock_outs(policy, lab, None) == []
    for login in PEOPLE:
        reached = {tag for tag in ROLES if tailnet_policy.allows(policy, login, tag, 22)}
        wanted: set[str] = set()
        if login in lab.groups.get("students", ()):
            wanted |= {"tag:lab-interactive"}
        if login in lab.groups.get("researchers", ()):
            wanted |= {"tag:lab-head", "tag:lab-interactive"} | ({"tag:lab-worker"} if lab.direct_workers else set())
        if login in lab.admins:
            wanted = set(ROLES)
        assert reached == wanted
        assert tailnet_policy.allows(policy, login, "tag:lab-worker", 80) == (login in lab.admins)
    for source, target, port, wanted_there in (
        ("tag:lab-head", "tag:lab-worker", 22, True),
        ("tag:lab-worker", "tag:lab-head", 6817, True),
        ("tag:lab-interactive", "tag:lab-head", 22, False),
        ("tag:lab-interactive", "tag:lab-head", 6817, True),
        ("tag:lab-interactive", "tag:lab-worker", 6818, False),
        ("tag:storage", "tag:lab-head", 22, False),
    ):
        assert tailnet_policy.allows(policy, source, target, port) == wanted_there


@given(labs())
def test_by_tailscale_ssh_only_admins_choose_who_they_are(lab: Lab) -> None:
    for rule in tailnet_policy.build(lab)["ssh"]:
        if rule["src"] == ["group:admins"]:
            continue
        (login,) = rule["src"]
        assert rule["users"] == [lab.account(login)] and login not in lab.admins
        assert "tag:lab-worker" not in rule["dst"], "it would pass by pam_slurm_adopt"


@given(labs())
def test_the_own_tests_hold(lab: Lab) -> None:
    """Held against names here, and against a real server's idea of them where there is one, below."""
    assert Tailnet().verdict_on(tailnet_policy.render(tailnet_policy.build(lab))) == {}


@given(labs())
def test_the_text_reads_back_and_is_stable(lab: Lab) -> None:
    policy = tailnet_policy.build(lab)
    text = tailnet_policy.render(policy)
    assert hujson.loads(text) == policy
    assert tailnet_policy.whose(text, policy) == "labrack"
    shuffled = Lab(
        dict(reversed(lab.groups.items())), tuple(reversed(lab.nodes)), lab.accounts, "lab", lab.direct_workers
    )
    assert tailnet_policy.render(tailnet_policy.build(shuffled)) == text
    edited = hujson.loads(text)
    edited["grants"].append({"src": ["*"], "dst": ["*"], "ip": ["*"]})
    assert tailnet_policy.whose(text, edited) == "edited"
    assert tailnet_policy.whose(hujson.dumps(policy), policy) == "foreign"


FRAGMENTS = st.fixed_dictionaries(
    {},
    optional={
        "groups": st.dictionaries(
            st.sampled_from(["group:admins", "group:lab-b"]), st.lists(st.sampled_from(PEOPLE), unique=True)
        ),
        "grants": st.lists(st.just({"src": ["group:admins"], "dst": ["*"], "ip": ["*"]}), max_size=1),
        "hosts": st.just({"printer": "10.1.0.9"}),
        "nodeAttrs": st.just([{"target": ["*"], "attr": ["randomize-client-port"]}]),
    },
)


@given(labs(), FRAGMENTS)
def test_a_fragment_is_merged_and_nothing_is_lost(lab: Lab, fragment: dict[str, Any]) -> None:
    policy = tailnet_policy.build(lab)
    merged, conflicts = tailnet_policy.merge(policy, fragment)
    assert conflicts == []

    def holds(whole: Any, part: Any) -> bool:
        if isinstance(part, dict):
            return all(name in whole and holds(whole[name], value) for name, value in part.items())
        return all(item in whole for item in part) if isinstance(part, list) else bool(whole == part)

    assert holds(merged, policy) and holds(merged, fragment)
    assert tailnet_policy.merge(merged, fragment) == (merged, [])


@pytest.mark.parametrize(
    ("fragment", "words"),
    [
        ({"groups": {"group:admins": "ada@"}}, ["groups.group:admins", '"ada@"', "same form"]),
        ({"grants": {}}, ["grants", "same form"]),
        ({"Grants": []}, ["'Grants'", "write grants"]),
        ({"grants": [{"src": ["group:guets"], "dst": ["*"], "ip": ["*"]}]}, ["group:guets", "tailnet_policy_extra"]),
        ({"grants": [{"src": ["*"], "dst": ["tag:lab-workers"], "ip": ["*"]}]}, ["tag:lab-workers", "tag:lab-worker"]),
        ({"tagOwners": {"tag:nas": ["group:it"]}}, ["group:it", "groups"]),
    ],
)
def test_a_wrong_fragment_is_refused_with_its_mend(fragment: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(module.PolicyError) as caught:
        module.make(Lab({"admins": ("ada@",)}), fragment)
    assert all(word in str(caught.value) for word in [*words, "Mend"]), str(caught.value)


@pytest.mark.parametrize(
    ("lab", "words"),
    [
        (Lab({}), ["admins", "nobody"]),
        (Lab({"admins": ()}), ["admins", "nobody"]),
        (Lab({"admins": ("ada",)}), ["admins", "'ada'", "ada@example.com"]),
        (Lab({"admins": ("ada@",), "My lab": ()}), ["'My lab'"]),
        (Lab({"admins": ("ada@",)}, (Node("head", ("tag:1",)),)), ["head", "'tag:1'"]),
        (Lab({"admins": ("ada@",)}, (Node("head", routes=("10.0.0.1/24",)),)), ["head", "10.0.0.1/24", "host bits"]),
        (Lab({"admins": ("ada@",)}, prefix="1lab"), ["tailnet_policy_tag_prefix", "1lab"]),
    ],
)
def test_a_wrong_inventory_is_named_with_its_mend(lab: Lab, words: list[str]) -> None:
    message = " ".join(tailnet_policy.problems(lab))
    assert all(word in message for word in [*words, "Mend"]), message


def test_machines_with_several_roles_make_no_test_that_fails() -> None:
    """One box that is all: who may reach it as the head reaches its worker's ssh as well."""
    box = Node("box", ("tag:lab-head", "tag:lab-worker", "tag:lab-interactive"))
    policy = tailnet_policy.build(Lab({"admins": ("ada@",), "students": ("cy@",)}, (box,)))
    assert not [test for test in policy["tests"] if "deny" in test]
    apart = tailnet_policy.build(Lab({"admins": ("ada@",), "students": ("cy@",)}))
    assert [test["deny"] for test in apart["tests"] if "deny" in test]


def test_admins_are_not_locked_out() -> None:
    lab = Lab({"admins": ("ada@", "ben@")})
    policy = tailnet_policy.build(lab)
    before = {"groups": {"group:admins": ["grace@", "hedy@"]}}
    (reason,) = tailnet_policy.lock_outs(policy, lab, before)
    assert "grace@, hedy@" in reason and "add the new ones first" in reason
    assert tailnet_policy.lock_outs(policy, lab, {"groups": {"group:admins": ["grace@", "ben@"]}}) == []
    barred, _ = tailnet_policy.merge(policy, {"tests": [{"src": "ada@", "deny": ["tag:lab-head:22"]}]})
    assert "a test demands" in tailnet_policy.lock_outs(barred, lab, None)[0]
    without = {**policy, "grants": policy["grants"][1:]}
    assert len(tailnet_policy.lock_outs(without, lab, None)) == 6


@pytest.mark.parametrize(
    ("grant", "reached"),
    [
        ({"src": ["*"], "dst": ["*"], "ip": ["*"]}, True),
        ({"src": ["autogroup:member"], "dst": ["autogroup:tagged"], "ip": ["tcp:20-30"]}, True),
        ({"src": ["group:x"], "dst": ["tag:a"], "ip": ["22"]}, True),
        ({"src": ["ada@"], "dst": ["tag:a"], "ip": ["80,22"]}, True),
        ({"src": ["ada@"], "dst": ["tag:a"], "ip": ["udp:22"]}, False),
        ({"src": ["ada@"], "dst": ["tag:a"], "ip": ["tcp:23-65535"]}, False),
        ({"src": ["ada@"], "dst": ["tag:b"], "ip": ["*"]}, False),
        ({"src": ["autogroup:admin"], "dst": ["tag:a"], "ip": ["*"]}, False),
        ({"src": ["ada@"], "dst": ["tag:a"], "ip": ["*"], "srcPosture": ["posture:new"]}, False),
        ({"src": ["ada@"], "dst": ["tag:a"], "ip": ["*"], "via": ["tag:router"]}, False),
        ({"src": ["ada@"], "dst": ["tag:a"], "app": {"example.com/cap/x": [{}]}}, False),
    ],
)
def test_what_a_grant_surely_allows(grant: dict[str, Any], reached: bool) -> None:
    assert tailnet_policy.allows({"groups": {"group:x": ["ada@"]}, "grants": [grant]}, "ada@", "tag:a", 22) == reached


def test_what_an_acl_surely_allows() -> None:
    rule = {"action": "accept", "src": ["ada@"], "dst": ["tag:a:22,80"]}
    assert tailnet_policy.allows({"acls": [rule]}, "ada@", "tag:a", 22)
    assert not tailnet_policy.allows({"acls": [{**rule, "proto": "udp"}]}, "ada@", "tag:a", 22)
    assert not tailnet_policy.allows({"acls": [rule]}, "ada@", "tag:a", 443)


# Tailscale's service

GROUPS = [
    {"name": "admins", "members": ["grace@lab.example"]},
    {"name": "researchers", "members": ["ada@lab.example"]},
    {"name": "students", "members": ["cy@lab.example"]},
]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the module in this process with these parameters; its result, or its failure in ``msg``."""
    warned: list[str] = []
    monkeypatch.setattr(module.AnsibleModule, "warn", lambda _self, text: warned.append(text))

    def once(check: bool = False, **params: Any) -> dict[str, Any]:
        capsys.readouterr()
        warned.clear()
        given = {"groups": GROUPS, **params, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        out = capsys.readouterr().out
        for secret in (params.get("api_key"), params.get("oauth_client_secret")):
            assert not secret or secret not in out
        return {**json.loads(out), "warnings": list(warned)}

    return once


@pytest.fixture
def tailnet() -> Iterator[Tailnet]:
    with serving() as tailnet:
        yield tailnet


def key(tailnet: Tailnet) -> dict[str, Any]:
    return {"api_url": tailnet.url, "api_key": tailnet.api_key}


def client(tailnet: Tailnet) -> dict[str, Any]:
    return {
        "api_url": tailnet.url,
        "oauth_client_id": tailnet.client_id,
        "oauth_client_secret": tailnet.client_secret,
    }


@pytest.mark.parametrize("login", [key, client])
def test_first_run_replaces_tailscales_first_policy_and_the_second_sends_nothing(
    run: Run, tailnet: Tailnet, login: Callable[[Tailnet], dict[str, Any]]
) -> None:
    planned = run(check=True, **login(tailnet))
    assert planned["changed"] and tailnet.policy == FIRST_POLICY and not tailnet.writes()
    assert "group:students" in planned["diff"][0]["after"] and '"autogroup:member"' in planned["diff"][0]["before"]
    done = run(**login(tailnet))
    assert done["changes"] == planned["changes"]
    assert tailnet.policy == done["policy"] and tailnet_policy.HEADER in tailnet.policy
    for check in (True, False):
        assert not run(check=check, **login(tailnet))["changed"]
    assert len(tailnet.writes()) == 1


def test_another_inventory_is_sent_with_the_etag_of_what_was_read(run: Run, tailnet: Tailnet) -> None:
    run(**key(tailnet))
    etag = tailnet.etag
    groups = [*GROUPS[:2], {"name": "students", "members": ["cy@lab.example", "dee@lab.example"]}]
    done = run(**key(tailnet), groups=groups)
    assert done["changes"][0]["summary"] == "changes: groups, ssh"
    method, path, headers = tailnet.asked[-2]
    assert (method, path, headers["If-Match"]) == ("POST", "/api/v2/tailnet/-/acl", f'"{etag}"')
    assert headers["Content-Type"] == "application/hujson"


def test_a_change_between_reading_and_writing_is_not_overwritten(run: Run, tailnet: Tailnet) -> None:
    run(**key(tailnet))

    def somebody_else(held: Tailnet) -> None:
        held.policy += "// me too\n"
        held.after_read = None

    tailnet.after_read = somebody_else
    done = run(**key(tailnet), tag_prefix="other")
    assert done["failed"] and "in between" in done["msg"] and tailnet.policy.endswith("// me too\n")


def test_what_somebody_changed_since_is_not_overwritten(run: Run, tailnet: Tailnet) -> None:
    run(**key(tailnet))
    tailnet.policy = tailnet.policy.replace('"ip": ["tcp:22"]', '"ip": ["tcp:22", "tcp:8888"]')
    there = tailnet.policy
    done = run(**key(tailnet))
    assert done["failed"] and "changed since labrack wrote it" in done["msg"] and "grants" in done["msg"]
    assert run(check=True, **key(tailnet))["changed"], "the diff can be read"
    assert tailnet.policy == there
    assert run(**key(tailnet), overwrite=True)["changed"] and "8888" not in tailnet.policy


def test_a_policy_of_somebody_else_is_not_overwritten(run: Run, tailnet: Tailnet) -> None:
    tailnet.policy = '{"grants": []} // mine'
    assert run(check=True, **key(tailnet))["changed"]
    done = run(**key(tailnet))
    assert done["failed"] and "tailnet_policy_overwrite" in done["msg"] and tailnet.policy == '{"grants": []} // mine'
    assert run(**key(tailnet), overwrite=True)["changed"]


def test_comments_and_order_are_no_difference(run: Run, tailnet: Tailnet) -> None:
    run(**key(tailnet))
    content = hujson.loads(tailnet.policy)
    tailnet.policy = json.dumps(dict(reversed(content.items())))
    assert not run(**key(tailnet))["changed"]


def test_the_servers_verdict_stops_a_run_before_anything_is_sent(run: Run, tailnet: Tailnet) -> None:
    tailnet.verdict = {"message": "test(s) failed", "data": [{"user": "cy@lab.example", "errors": ["want: Drop"]}]}
    for check in (True, False):
        done = run(check=check, **key(tailnet))
        assert done["failed"] and "cy@lab.example: want: Drop" in done["msg"]
    tailnet.verdict = {"message": "warning(s) found", "data": [{"user": "group:x", "warnings": ["not syncing"]}]}
    done = run(check=True, **key(tailnet))
    assert done["changed"] and "group:x: not syncing" in str(done["warnings"])
    assert not tailnet.writes()


def test_admins_are_kept_by_the_module(run: Run, tailnet: Tailnet) -> None:
    run(**key(tailnet))
    before = tailnet.policy
    done = run(**key(tailnet), groups=[{"name": "admins", "members": ["typo@lab.example"]}])
    assert done["failed"] and "lock admins out" in done["msg"] and tailnet.policy == before


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"api_key": ""}, ["neither", "OAuth"]),
        ({"api_key": "tskey-auth-k1-x"}, ["tskey-auth-", "OAuth client"]),
        ({"api_key": "tskey-client-k1-x"}, ["tskey-client-", "id"]),
        ({"oauth_client_secret": "tskey-client-k1-x", "api_key": "tskey-api-x"}, ["keep one"]),
        ({"api_key": "tskey-api-wrong"}, ["does not accept", "make a new one"]),
        ({"api_key": None, "oauth_client_id": "a", "oauth_client_secret": "wrong-secret"}, ["OAuth client is not"]),
        ({"tailnet": "elsewhere.example"}, ["no such tailnet", "elsewhere.example"]),
        ({"api_url": "http://api.example.com"}, ["unencrypted", "https"]),
        ({"api_url": "http://127.0.0.1:9"}, ["does not answer", "127.0.0.1:9"]),
    ],
)
def test_a_wrong_login_is_named_with_its_mend(
    run: Run, tailnet: Tailnet, params: dict[str, Any], words: list[str]
) -> None:
    done = run(**{**key(tailnet), **params})
    assert done["failed"] and all(word in done["msg"] for word in words), done["msg"]


def test_a_client_without_the_scope(run: Run, tailnet: Tailnet) -> None:
    tailnet.scopes = {"devices:core"}
    done = run(**client(tailnet))
    assert done["failed"] and "scope policy_file" in done["msg"]


def test_a_token_that_expires_is_renewed_once(run: Run, tailnet: Tailnet) -> None:
    tailnet.after_read = Tailnet.forget_tokens
    assert run(**client(tailnet))["changed"]
    tailnet.faults = [Fault(401, path="/acl", times=9, message="no")]
    done = run(**client(tailnet))
    assert done["failed"] and "does not accept" in done["msg"]
    assert tailnet.faults[0].times == 7


def test_patience_and_its_end(run: Run, tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    api = tailscale_api.Api(tailnet.url, "-", tailscale_api.Login(tailnet.api_key), sleep=waits.append)
    tailnet.faults = [Fault(429, headers={"Retry-After": "7"}), Fault(500), Fault(429, headers={"Retry-After": "999"})]
    assert api.read_policy()[0] == FIRST_POLICY
    assert waits == [7.0, 2.0, tailscale_api.PATIENCE]
    tailnet.faults = [Fault(500, method="POST", path="/acl", times=9)]
    with pytest.raises(tailscale_api.ApiError, match="500"):
        api.write_policy("{}", f'"{tailnet.etag}"')
    assert tailnet.faults[0].times == 8, "what changes something is not tried twice"
    tailnet.faults = [Fault(429, times=9)]
    with pytest.raises(tailscale_api.ApiError, match="slow down"):
        api.devices()


def test_the_key_does_not_follow_a_redirect(tailnet: Tailnet) -> None:
    with serving(Tailnet(policy="{}")) as other:
        tailnet.faults = [Fault(302, headers={"Location": f"{other.url}/api/v2/tailnet/-/acl"})]
        api = tailscale_api.Api(tailnet.url, "-", tailscale_api.Login(tailnet.api_key))
        with pytest.raises(tailscale_api.ApiError):
            api.read_policy()
        assert [headers.get("Authorization") for _method, _path, headers in other.asked] == [None]


# headscale, by a stand-in for its command

HEADSCALE = """\
#!/usr/bin/python3
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
args = sys.argv[1:]
with open(folder / "asked", "a") as stream:
    stream.write(" ".join(args[:2]) + "\\n")
if args[:2] == ["policy", "check"]:
    text = pathlib.Path(args[args.index("--file") + 1]).read_text()
    (folder / "checked").write_text(text)
    if (folder / "refuse").exists():
        sys.exit("Error: rpc error: code = InvalidArgument desc = " + (folder / "refuse").read_text())
elif args[:2] == ["policy", "set"]:
    (folder / "database").write_text(pathlib.Path(args[args.index("--file") + 1]).read_text())
elif args[:2] == ["policy", "get"]:
    if not (folder / "database").exists():
        sys.exit("Error: rpc error: code = Unknown desc = loading ACL from database: acl policy not found")
    print((folder / "database").read_text())
elif (folder / "stopped").exists():
    sys.exit("Error: connecting to headscale: connection refused")
else:
    print((folder / "nodes.json").read_text() if args[0] == "nodes" else "[]")
"""


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a headscale command in it, its nodes and what it was asked."""
    (tmp_path / "nodes.json").write_text("[]")
    systemctl = '#!/bin/sh\necho "systemctl $*" >> "$(dirname "$0")/asked"\n'
    for name, text in (("headscale", HEADSCALE), ("systemctl", systemctl)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the policy file belongs to root")


def test_headscale_database(run: Run, control: Path) -> None:
    on = {"server": "headscale", "path": ""}
    assert run(check=True, **on)["changed"] and not (control / "database").exists()
    assert run(**on)["changed"]
    policy = hujson.loads((control / "database").read_text())
    assert "tests" not in policy and "sshTests" not in policy
    assert not run(**on)["changed"]
    (control / "database").write_text((control / "database").read_text().replace("tcp:22", "tcp:2222"))
    assert "changed since" in run(**on)["msg"]
    (control / "database").write_text('{"acls": []}')
    assert "was not written by labrack" in run(**on)["msg"]


@needs_root
def test_headscale_file(run: Run, control: Path) -> None:
    path = control / "policy.hujson"
    on = {"server": "headscale", "path": str(path)}
    assert run(**on)["changed"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "systemctl reload headscale" in (control / "asked").read_text()
    (control / "asked").unlink()
    assert not run(**on)["changed"]
    assert "reload" not in (control / "asked").read_text()
    path.write_text("{}\n")
    assert run(**on, max_disruption="none")["pending"][0]["disruption"] == "reload"
    assert run(**on)["changed"], "a file that says nothing is nobody's"


def test_headscale_runs_the_tests_that_it_has_nodes_for(run: Run, control: Path) -> None:
    nodes = [
        {"id": 1, "given_name": "head", "tags": ["tag:lab-head"], "user": {"name": "tagged-devices"}},
        {"id": 2, "given_name": "laptop", "user": {"name": "grace", "email": "grace@lab.example"}},
    ]
    (control / "nodes.json").write_text(json.dumps(nodes))
    (control / "refuse").write_text("test(s) failed:\ngroup:admins -> tag:lab-head:22")
    done = run(server="headscale", path="")
    assert done["failed"] and "refuses the policy: test(s) failed" in done["msg"] and "rpc" not in done["msg"]
    checked = hujson.loads((control / "checked").read_text())
    assert checked["tests"] == [{"src": "group:admins", "proto": "tcp", "accept": ["tag:lab-head:22"]}]
    assert checked["sshTests"] == [{"src": "grace@lab.example", "dst": ["tag:lab-head"], "accept": ["root"]}]


def test_headscale_that_does_not_run(run: Run, control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (control / "stopped").touch()
    assert "Mend: start it" in run(server="headscale", path="")["msg"]
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "not installed" in run(server="headscale", path="")["msg"]


# the playbook, and what offboard.yml makes of the inventory


def test_the_playbook_asks_from_this_machine(tmp_path: Path, tailnet: Tailnet) -> None:
    variables = {
        "tailnet_policy_groups": GROUPS,
        "tailnet_policy_api_url": tailnet.url,
        "tailnet_policy_oauth_client_id": tailnet.client_id,
        "tailnet_policy_oauth_client_secret": tailnet.client_secret,
        # nothing that is said of the machines is tried on this one
        "ansible_become": True,
        "ansible_become_exe": "/nonexistent/sudo",
        "ansible_user": "admin",
    }
    head = {"ansible_host": "192.0.2.1", "tailscale_tags": ["lab-head"], "tailscale_advertise_routes": ["10.9.0.0/24"]}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"vars": variables, "children": {"lab_head": {"hosts": {"head": head}}}}}))
    argv = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        str(inventory),
        "playbooks/tailnet_policy.yml",
    ]
    for again in (False, True):
        done = subprocess.run(
            [*argv, "--diff"],
            cwd=ROOT,
            env={**os.environ, "HOME": str(tmp_path), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert tailnet.client_secret not in done.stdout + done.stderr
        assert ("changed=0" in done.stdout) == again
    assert hujson.loads(tailnet.policy)["autoApprovers"] == {"routes": {"10.9.0.0/24": ["tag:lab-head"]}}


def test_who_leaves_is_found_by_the_account() -> None:
    accounts = {"lovelace@github": "ada", "bert@lab.example": "ben"}
    groups = [{"name": "admins", "members": ["ada@lab.example", "bert@lab.example"]}, {"name": "guests"}]
    assert leaving.tailnet_logins(groups, "ada", accounts) == ["ada@lab.example", "lovelace@github"]
    assert leaving.tailnet_logins(groups, "bert", accounts) == []
    left = leaving.without_members(groups, ["ada@lab.example"])
    assert left == [{"name": "admins", "members": ["bert@lab.example"]}, {"name": "guests", "members": []}]
    people = [{"name": "ada", "uid": 1}, {"name": "ben", "uid": 2}]
    assert leaving.with_locked(people, "ben") == [
        people[0],
        {"name": "ben", "uid": 2, "state": "locked", "sudo": False},
    ]


def test_machines_of_the_tailnet_are_those_with_tags() -> None:
    hosts = {"head": {"tailscale_tags": ["lab-head"], "tailscale_advertise_exit_node": True}, "nas": {}}
    node = {"name": "head", "tags": ["lab-head"], "routes": [], "exit_node": True}
    assert tailnet_nodes.tailnet_nodes(["head", "nas"], hosts) == [node]
