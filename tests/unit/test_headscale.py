# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planner of headscale, its configuration's text, and the rules for its variables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import headscale_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from ansible_collections.labrack.infra.plugins.module_utils.headscale_plan import (
    CONFIG,
    KEYS,
    OPEN_POLICY,
    TLS_CERT,
    TLS_KEY,
    UNIT,
    HeadscaleError,
    KeyWish,
    Observed,
    StoredKey,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.rules_headscale import check_headscale
from ansible_collections.labrack.infra.plugins.modules.headscale import ARGUMENT_SPEC

SECRET = "hskey-auth-canary"
POLICY = "/etc/headscale/policy.hujson"
SOURCES = {"/etc/ssl/lab.crt": FileState("certificate"), "/etc/ssl/lab.key": FileState(SECRET, "0600")}
NAMES = st.sampled_from(["ada", "ben", "cyd"])
TAGS = st.lists(st.sampled_from(["lab-worker", "tag:lab-head"]), min_size=1, max_size=2, unique=True)


def params(**changed: Any) -> dict[str, Any]:
    """The module's parameters with its defaults, and those of a small lab."""
    made = {name: option.get("default", "") for name, option in ARGUMENT_SPEC.items()}
    lab = {
        "version": "0.29.2",
        "url": "https://control.lab.example",
        "base_domain": "tailnet.lab",
        "tls_cert": "/etc/ssl/lab.crt",
        "tls_key": "/etc/ssl/lab.key",
    }
    return {**made, **lab, **changed}


@st.composite
def wishes(draw: st.DrawFn) -> dict[str, Any]:
    """Parameters that are right."""
    users = draw(st.lists(NAMES, unique=True))
    owners = [st.fixed_dictionaries({"tags": TAGS})]
    if users:
        owners.append(st.fixed_dictionaries({"user": st.sampled_from(users)}))
    keys = draw(st.dictionaries(st.sampled_from(["workers", "head", "guests"]), st.one_of(owners)))
    return params(
        install=draw(st.sampled_from(["package", "binary"])),
        tls=draw(st.sampled_from(["certificate", "acme", "none"])),
        derp=draw(st.sampled_from(["embedded", "tailscale", "both"])),
        nameservers=draw(st.lists(st.sampled_from(["192.168.1.1", "fd00::1"]), unique=True)),
        policy=draw(st.sampled_from(["", "{}", '{"grants": []}\n'])),
        users=[{"name": name} for name in users],
        preauth_keys=[{"name": name, **owner} for name, owner in keys.items()],
        settings=draw(st.sampled_from([{}, {"log": {"level": "debug"}, "node": {"expiry": "180d"}}])),
    )


def applied(state: Observed, wanted: Wanted) -> Observed:
    """What a host is after every change of a plan was made."""
    files, versions, users = dict(state.files), dict(state.versions), dict(state.users or {})
    stored, service, has_user = dict(state.stored), state.service, state.has_user
    texts = {
        CONFIG: FileState(planner.config_text(wanted.config)),
        UNIT: FileState(planner.UNIT_TEXT),
        TLS_CERT: FileState("certificate"),
        TLS_KEY: FileState(SECRET, "0640", "root", planner.USER),
    }
    for change in planner.plan(state, wanted):
        verb, *rest = change.step
        if verb == "write" and rest[0] == wanted.policy_path:
            text = wanted.policy or OPEN_POLICY
            files[rest[0]] = FileState(text if text.endswith("\n") else f"{text}\n")
        elif verb == "write":
            files[rest[0]] = texts[rest[0]]
        elif verb == "user":
            has_user = True
        elif verb == "install":
            versions[wanted.install] = wanted.version
            service = replace(service, installed=True, enabled=True)
        elif verb == "remove" and rest[0] in versions:
            versions[rest[0]] = ""
        elif verb == "remove":
            files[rest[0]] = None
        elif verb == "enable":
            service = replace(service, installed=True, enabled=True)
        elif verb == "restart":
            service = replace(service, active=True, since=2.0)
        elif verb == "add-user":
            users[rest[0]] = str(len(users) + 1)
        elif verb == "make-key":
            wish = next(wish for wish in wanted.keys if wish.name == rest[0])
            stored[wish.name] = StoredKey(f"{len(stored) + 1}", SECRET, wish)
        elif verb == "drop-key":
            del stored[rest[0]]
    live = frozenset(key.number for key in stored.values())
    return Observed(versions, files, {}, service, has_user, True, users, live, stored)


EMPTY = Observed(versions={"package": "", "binary": ""}, files=dict(SOURCES))


@given(wishes(), wishes())
def test_plan_ends_where_it_should_from_anywhere(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other = planner.read_wanted(first), planner.read_wanted(second)
    state = applied(EMPTY, one)
    assert planner.plan(state, one) == []
    state = applied(state, other)
    assert planner.plan(state, other) == []
    gone = planner.read_wanted(params(state="absent"))
    state = applied(replace(state, files={**state.files, KEYS: FileState("{}", "0600")}), gone)
    assert planner.plan(state, gone) == []
    assert set(state.versions.values()) == {""}


@given(wishes())
def test_no_secret_is_in_a_plan(wish: dict[str, Any]) -> None:
    wanted = planner.read_wanted(wish)
    state = applied(EMPTY, wanted)
    stale = replace(state, files={**state.files, TLS_KEY: FileState(SECRET + "old"), KEYS: FileState(SECRET)})
    for one in (EMPTY, state, stale):
        for goal in (wanted, planner.read_wanted(params(state="absent"))):
            assert SECRET not in repr(planner.plan(one, goal))
    assert SECRET not in repr(StoredKey("1", SECRET, KeyWish("workers")))


@given(wishes())
def test_configuration_is_yaml_and_keeps_what_was_wanted(wish: dict[str, Any]) -> None:
    wanted = planner.read_wanted(wish)
    assert yaml.safe_load(planner.config_text(wanted.config)) == wanted.config
    trial = yaml.safe_load(planner.trial(wanted.config, "/tmp/trial"))
    assert "/var/lib/headscale" not in repr({**trial, "tls_letsencrypt_cache_dir": ""})
    assert trial["server_url"] == wish["url"]


def test_nobody_is_asked_with_the_embedded_relay() -> None:
    made = planner.config(params())
    assert made["derp"]["urls"] == []
    assert made["disable_check_updates"] is True
    assert made["logtail"] == {"enabled": False}
    assert "tailscale.com" not in repr(made)


def converged(**changed: Any) -> tuple[Observed, Wanted]:
    wanted = planner.read_wanted(params(**changed))
    return applied(EMPTY, wanted), wanted


def subjects(state: Observed, wanted: Wanted) -> list[tuple[str, str]]:
    return [(change.subject, change.disruption) for change in planner.plan(state, wanted)]


def test_new_policy_reloads_and_new_setting_restarts() -> None:
    state, _ = converged()
    wanted = planner.read_wanted(params(policy='{"grants": []}'))
    assert subjects(state, wanted) == [(f"file {POLICY}", "reload"), ("service headscale", "reload")]
    wanted = planner.read_wanted(params(settings={"log": {"level": "debug"}}))
    assert subjects(state, wanted) == [(f"file {CONFIG}", "restart"), ("service headscale", "restart")]


def test_somebody_elses_policy_stays() -> None:
    state, wanted = converged()
    theirs = replace(state, files={**state.files, POLICY: FileState('{"grants": []}')})
    assert planner.plan(theirs, wanted) == []
    gone = planner.read_wanted(params(state="absent"))
    assert f"file {POLICY}" not in dict(subjects(theirs, gone))
    assert f"file {POLICY}" in dict(subjects(state, gone))


def test_renewed_certificate_is_taken() -> None:
    state, wanted = converged()
    renewed = replace(state, files={**state.files, "/etc/ssl/lab.crt": FileState("renewed")})
    assert subjects(renewed, wanted) == [(f"file {TLS_CERT}", "restart"), ("service headscale", "restart")]


def test_missing_certificate_is_told_before_anything() -> None:
    with pytest.raises(HeadscaleError, match=r"/etc/ssl/lab\.crt, and there is no such file"):
        planner.plan(replace(EMPTY, files={}), planner.read_wanted(params()))


def test_configuration_written_after_the_start_is_taken() -> None:
    state, wanted = converged()
    assert subjects(replace(state, written={CONFIG: 3.0}), wanted) == [("service headscale", "restart")]


@pytest.mark.parametrize(
    ("found", "wanted", "said"),
    [
        ("0.29.2", "0.28.0", "does not go back"),
        ("0.27.1", "0.29.2", "set headscale_version to the newest 0.28 first"),
        ("0.29.2", "0.29.1", "does not go back"),
        ("0.29.0", "0.29.2", ""),
        ("0.28.0", "0.29.2", ""),
    ],
)
def test_steps_between_versions(found: str, wanted: str, said: str) -> None:
    state, wish = converged()
    state = replace(state, versions={"package": found, "binary": ""})
    wish = replace(wish, version=wanted)
    if said:
        with pytest.raises(HeadscaleError, match=f"(?i){said}"):
            planner.plan(state, wish)
    else:
        assert subjects(state, wish)[0] == ("headscale as package", "restart")


KEY = {"name": "workers", "tags": ["lab-worker"]}


@pytest.mark.parametrize(
    ("keys", "live", "said"),
    [
        ([KEY], True, ""),
        ([KEY], False, "made anew, it had expired"),
        ([{**KEY, "tags": ["lab-head"]}], True, "replaced for tag:lab-head"),
        ([], True, "expired, no longer in the inventory"),
    ],
)
def test_keys_over_time(keys: list[dict[str, Any]], live: bool, said: str) -> None:
    state, _ = converged(preauth_keys=[KEY])
    state = state if live else replace(state, live=frozenset())
    plan = planner.plan(state, planner.read_wanted(params(preauth_keys=keys)))
    assert [change.subject for change in plan] == (["pre-auth key workers"] if said else [])
    assert said in "".join(change.summary for change in plan)


def test_keys_are_not_judged_while_the_server_is_silent() -> None:
    state, wanted = converged(preauth_keys=[KEY], users=[{"name": "ada"}])
    assert planner.plan(replace(state, live=None), wanted) == []


def test_stopped_server_is_started_and_its_users_stay() -> None:
    state, wanted = converged(preauth_keys=[KEY], users=[{"name": "ada"}])
    stopped = replace(state, users=None, live=None, service=replace(state.service, active=False, since=0.0))
    assert subjects(stopped, wanted) == [("service headscale", "restart")]


def test_file_of_keys_is_read_as_written() -> None:
    state, _ = converged(preauth_keys=[KEY, {"name": "ada", "user": "ada"}], users=[{"name": "ada"}])
    assert planner.read_keys(planner.keys_text(state.stored)) == dict(state.stored)
    assert planner.read_keys(None) == {}
    with pytest.raises(HeadscaleError, match="remove it; new keys are made then"):
        planner.read_keys('{"workers": "text"}')


@pytest.mark.parametrize(
    ("changed", "where", "said"),
    [
        ({"headscale_url": ""}, "headscale_url", "missing"),
        ({"headscale_url": "control.lab"}, "headscale_url", "not an address"),
        ({"headscale_url": "https://control.lab:port"}, "headscale_url", "not an address"),
        ({"headscale_url": "https://headscale.example.org"}, "headscale_url", "an example's address"),
        ({"headscale_url": "http://control.lab.test"}, "headscale_url", "headscale has a certificate"),
        ({"headscale_base_domain": ""}, "headscale_base_domain", "missing"),
        ({"headscale_base_domain": "lab"}, "headscale_base_domain", "two parts"),
        ({"headscale_base_domain": "lab.test"}, "headscale_base_domain", "holds the server's own name"),
        # headscale itself misses this one where the address has a port
        (
            {"headscale_base_domain": "lab.test", "headscale_url": "https://control.lab.test:8443"},
            "headscale_base_domain",
            "holds the server's own name",
        ),
        ({"headscale_tls_key": ""}, "headscale_tls_key", "missing"),
        ({"headscale_tls_cert": "lab.crt"}, "headscale_tls_cert", "whole path"),
        ({"headscale_tls": "acme", "headscale_url": "https://a.lab.test:8443"}, "headscale_url", "acme"),
        ({"headscale_tls": "none", "headscale_url": "http://a.lab.test"}, "headscale_url", "https only"),
        ({"headscale_users": [{"name": "4da"}]}, "headscale_users[0].name", "no such name"),
        ({"headscale_preauth_keys": [{"name": "a"}]}, "headscale_preauth_keys[0]", "a user or tags"),
        (
            {"headscale_preauth_keys": [{"name": "a", "user": "ada", "tags": ["x"]}]},
            "headscale_preauth_keys[0]",
            "a user or tags",
        ),
        (
            {"headscale_preauth_keys": [{"name": "a", "user": "ada"}]},
            "headscale_preauth_keys[0].user",
            "not in headscale_users",
        ),
        (
            {"headscale_preauth_keys": [{"name": "a", "tags": ["x"]}] * 2},
            "headscale_preauth_keys[1].name",
            "twice",
        ),
        ({"headscale_version": "latest"}, "headscale_version", "not a version"),
        ({"headscale_artifact_sha256": {}}, "headscale_artifact_sha256", "no checksum of a package"),
        ({"headscale_artifact_sha256": {"deb-amd64": "1234"}}, "headscale_artifact_sha256.deb-amd64", "SHA-256"),
        ({"headscale_artifact_sha256": {"deb-x86": "0" * 64}}, "headscale_artifact_sha256.deb-x86", "no such file"),
    ],
)
def test_wrong_variables(changed: dict[str, Any], where: str, said: str) -> None:
    right = {
        "headscale_url": "https://control.lab.test",
        "headscale_base_domain": "tailnet.test",
        "headscale_tls_cert": "/etc/ssl/lab.crt",
        "headscale_tls_key": "/etc/ssl/lab.key",
        "headscale_artifact_sha256": {"deb-amd64": "0" * 64},
    }
    groups = {"headscale": ["head"]}
    assert not list(check_headscale(Inventory({"head": right, "node1": {}}, groups)))
    found = list(check_headscale(Inventory({"head": {**right, **changed}, "node1": {}}, groups)))
    assert any(one.key == where and said in one.problem for one in found), found
    assert not list(check_headscale(Inventory({"head": {**right, **changed, "headscale_state": "absent"}}, groups)))


def test_one_control_server() -> None:
    hosts = {name: {"headscale_state": "absent"} for name in ("head", "node1")}
    (found,) = check_headscale(Inventory(hosts, {"headscale": ["head", "node1"]}))
    assert "one control server" in found.problem
