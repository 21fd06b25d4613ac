# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planner of the SkyPilot server, the texts of its files, and the rules for its variables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils import kubeconfig, skypilot_keys
from ansible_collections.labrack.infra.plugins.module_utils import skypilot_config as files
from ansible_collections.labrack.infra.plugins.module_utils import skypilot_plan as planner
from ansible_collections.labrack.infra.plugins.module_utils import skypilot_units as units
from ansible_collections.labrack.infra.plugins.module_utils.finding import Inventory
from ansible_collections.labrack.infra.plugins.module_utils.headscale_plan import config_text
from ansible_collections.labrack.infra.plugins.module_utils.k3s_plan import accelerator
from ansible_collections.labrack.infra.plugins.module_utils.lab_check import check_facts, check_inventory
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_config import Person, SkypilotError
from ansible_collections.labrack.infra.plugins.module_utils.skypilot_plan import (
    Account,
    Home,
    Made,
    Observed,
    Wanted,
)
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState
from ansible_collections.labrack.infra.plugins.modules.skypilot import ARGUMENT_SPEC, read_wanted

ROLE = Path(__file__).resolve().parents[2] / "roles/skypilot"
PINNED = (ROLE / "files/requirements.txt").read_text(encoding="utf-8")
LAB_USERS = [{"name": "ada", "uid": 2001}, {"name": "ben", "uid": 2002}, {"name": "eva", "state": "absent"}]
HASH = "$2b$12$C9cCqjKqgA1XqVnL9tZ5BeN4Kq0sQhVQY8mTtq9gqz6lK1y2w7y9G"
CANARY = "canary-7Qm2Xw9Tz"
UP = ServiceState(installed=True, active=True, enabled=True, since=1000.0)
KUBECONFIG = """apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: QUJD
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {}
users:
- name: default
  user:
    client-certificate-data: QUJD
    client-key-data: "canary-7Qm2Xw9Tz"
"""


def params(**changed: Any) -> dict[str, Any]:
    """The module's parameters with its defaults, and those of a small lab."""
    made = {name: option.get("default", "") for name, option in ARGUMENT_SPEC.items()}
    return {**made, "requirements": PINNED, "address": "desk.lab", "lab_users": LAB_USERS, **changed}


def healthy(version: str = "0.14.1", on_disk: str = "") -> dict[str, str]:
    """What ``/api/health`` says."""
    return {"status": "healthy", "version": version, "version_on_disk": on_disk or version}


def converged(wanted: Wanted) -> Observed:
    """A host that is as wanted."""
    found: dict[str, FileState | None] = dict(planner.wanted_files(wanted))
    found[files.CA] = found[files.TRUST["debian"][0]] = FileState("authority")
    found[files.CA_KEY] = FileState(CANARY, "0600")
    found[files.ADMIN_PASSWORD] = FileState(CANARY, "0600")
    found[files.RECORD] = FileState(json.dumps({"packages": []}) + "\n", "0600")
    digest = files.digest("sky_token")
    made = {person.name: Made(f"t-{person.name}", digest, accounts=(person.name, "sa")) for person in wanted.people}
    accounts = {person.name: Account(person.name, person.role) for person in wanted.people}
    return Observed(
        files=found,
        users=frozenset({files.USER, files.PROXY_USER}),
        python=(3, 13, 1),
        memory_mib=24000,
        environments=frozenset({wanted.environment}),
        current=wanted.environment,
        services={files.SERVER: UP, files.PROXY: UP, files.GUARD_SERVICE: UP},
        health=healthy(),
        has_database=True,
        accounts={**accounts, files.ADMIN: Account("1", "admin")},
        tokens={person.name + files.CLI: Account("sa", person.role, f"t-{person.name}") for person in wanted.people},
        made=made,
        homes={person.name: Home(True, "", True, digest, wanted.endpoint) for person in wanted.people},
        listening={files.PORT: files.USER, wanted.port: files.PROXY_USER},
        certificate=True,
        admin_works=True,
        opt=True,
        home=True,
        guarded=True,
    )


def subjects(state: Observed, wanted: Wanted) -> list[str]:
    return [change.subject for change in planner.plan(state, wanted)]


# --- the plan ---


def test_a_host_that_is_as_wanted_is_left_alone() -> None:
    wanted = read_wanted(params())
    assert planner.plan(converged(wanted), wanted) == []


def test_an_empty_host_gets_all_and_the_guard_is_up_before_the_server() -> None:
    wanted = read_wanted(params())
    changes = planner.plan(Observed(python=(3, 13, 1), memory_mib=24000, homes={"ada": Home(True)}), wanted)
    steps = [change.step for change in changes]
    assert steps.index(("restart", files.GUARD_SERVICE)) < steps.index(("restart", files.SERVER))
    assert steps.index(("switch", wanted.environment)) < steps.index(("restart", files.SERVER))
    assert steps.index(("restart", files.SERVER)) < steps.index(("admin",)) < steps.index(("token", "ada"))
    # ben has no home yet, and gets a login when there is one
    assert ("token", "ben") not in steps and ("add", "ben") in steps
    assert not [change for change in changes if change.disruption in ("drain", "reboot")]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"health": healthy(on_disk="0.14.2")}, "lies on the disk"),
        ({"health": {"status": "unhealthy", "version": "0.14.1", "version_on_disk": "0.14.1"}}, "does not answer"),
        ({"written": {files.CONFIG: 2000.0}}, "its configuration changed"),
    ],
)
def test_the_server_is_restarted_for_a_reason(changed: dict[str, Any], why: str) -> None:
    wanted = read_wanted(params())
    (change,) = planner.plan(replace(converged(wanted), **changed), wanted)
    assert change.step == ("restart", files.SERVER) and why in change.summary and change.disruption == "restart"


def test_a_certificate_that_was_renewed_is_served() -> None:
    wanted = read_wanted(params(tls_cert="/etc/lab.crt", tls_key="/etc/lab.key"))
    sources: dict[str, FileState | None] = {"/etc/lab.crt": FileState("new"), "/etc/lab.key": FileState(CANARY)}
    seen = converged(wanted)
    seen = replace(seen, files={**seen.files, **sources, files.CERT: FileState("old"), files.CERT_KEY: None})
    changes = planner.plan(seen, wanted)
    steps = [("write", files.CERT), ("write", files.CERT_KEY), ("restart", files.PROXY)]
    assert [change.step for change in changes] == steps and CANARY not in repr(changes)
    with pytest.raises(SkypilotError, match="no such file on the host"):
        planner.plan(converged(wanted), wanted)
    # the host's own, near its end
    own = read_wanted(params())
    steps = [change.step for change in planner.plan(replace(converged(own), certificate=False), own)]
    assert steps == [("cert",), ("restart", files.PROXY)]


def test_another_version_is_an_upgrade_and_one_that_failed_is_not_tried_again() -> None:
    wanted = read_wanted(params())
    old = replace(converged(wanted), environments=frozenset({"0.13.0-abc"}), current="0.13.0-abc")
    steps = [change.step for change in planner.plan(old, wanted)]
    assert steps == [("venv", wanted.environment), ("upgrade", wanted.environment)]
    with pytest.raises(SkypilotError, match="was tried before"):
        planner.plan(replace(old, failed=frozenset({wanted.environment})), wanted)
    with pytest.raises(SkypilotError, match="does not go back"):
        planner.plan(replace(old, current="0.15.0-abc"), wanted)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"python": ()}, "does not run"),
        ({"python": (3, 9, 2)}, "runs with 3.10 to 3.13"),
        ({"python": (3, 14, 0)}, "runs with 3.10 to 3.13"),
        ({"memory_mib": 2000}, "too little for the server"),
        ({"listening": {46443: "ada"}}, "port 46443 is taken by a program of ada"),
        ({"listening": {46580: "mallory"}}, "port 46580 is taken"),
        ({"listening": {46443: "root"}, "services": {}}, "port 46443 is taken by a program of root"),
    ],
)
def test_a_host_that_cannot_be_the_server_is_refused(changed: dict[str, Any], words: str) -> None:
    wanted = read_wanted(params())
    with pytest.raises(SkypilotError, match=words):
        planner.plan(replace(converged(wanted), **changed), wanted)


def test_rules_that_somebody_flushed_are_put_back_without_a_moment_without() -> None:
    wanted = read_wanted(params())
    (change,) = planner.plan(replace(converged(wanted), guarded=False), wanted)
    assert change.step == ("reload", files.GUARD_SERVICE) and change.disruption == "none"


def test_a_silent_server_loses_nobody() -> None:
    wanted = read_wanted(params())
    silent = replace(converged(wanted), accounts=None, tokens=None, health={}, admin_works=None)
    assert not [change for change in planner.plan(silent, wanted) if change.step[0] in ("add", "drop", "token")]


def test_people_come_go_and_change() -> None:
    wanted = read_wanted(params(users=[{"name": "ben", "role": "viewer"}]))
    seen = converged(read_wanted(params()))
    extra = Account("9", "user")
    seen = replace(
        seen,
        accounts={**(seen.accounts or {}), "old": extra, "guest": extra},
        made={**seen.made, "old": Made("t-old", "x")},
        homes={**seen.homes, "ada": Home(True, "", True, "another", wanted.endpoint)},
    )
    steps = [change.step for change in planner.plan(seen, wanted)]
    # guest is an account that somebody made on the dashboard
    assert steps == [("token", "ada"), ("role", "ben"), ("token-role", "ben"), ("drop", "old")]
    locked = replace(seen, made={**seen.made, "old": Made(locked=True)})
    assert ("drop", "old") not in [change.step for change in planner.plan(locked, wanted)]


def test_numbers_by_which_people_launch_are_remembered() -> None:
    wanted = read_wanted(params())
    seen = converged(wanted)
    older = replace(seen, made={**seen.made, "ada": replace(seen.made["ada"], accounts=())})
    assert [change.step for change in planner.plan(older, wanted)] == [("note", "ada")]
    # another token brings its own
    other = replace(older, homes={**seen.homes, "ada": Home(True, "", True, "another", wanted.endpoint)})
    assert [change.step for change in planner.plan(other, wanted)] == [("token", "ada")]
    assert planner.read_people(planner.people_text(seen.made)) == seen.made


def test_keys_of_launches_are_read_as_keys_alone(tmp_path: Path) -> None:
    people = tmp_path / skypilot_keys.PEOPLE.lstrip("/")
    clients = tmp_path / skypilot_keys.HOME.lstrip("/") / ".sky/clients"
    assert skypilot_keys.launch_keys(tmp_path) == {}
    made = {
        "ada": Made("t", "d", accounts=("1a2b3c4d", "sa-0123456789abcdef")),
        "ben": Made("t", "d", accounts=("5e6f7a8b",)),
        "cy": Made("t", "d", accounts=("../../../etc", "")),
        "eva": Made("t", "d"),
    }
    people.parent.mkdir(parents=True)
    people.write_text(planner.people_text(made))
    key = "ssh-rsa AAAAB3NzaC1yc2E+/launch="
    for number, text in (
        ("1a2b3c4d", f"{key}\n"),
        ("sa-0123456789abcdef", key.replace("launch", "token")),
        ("5e6f7a8b", f'command="x" {key}\n'),
        ("../../../etc", key),
    ):
        (clients / number / "ssh").mkdir(parents=True, exist_ok=True)
        (clients / number / "ssh/sky-key.pub").write_text(text)
    assert skypilot_keys.launch_keys(tmp_path) == {"ada": [key, key.replace("launch", "token")]}
    (clients / "5e6f7a8b/ssh/sky-key.pub").write_text(f"{key}\n{key}\n")
    assert "ben" not in skypilot_keys.launch_keys(tmp_path)
    for damaged in ("{", "[]", '{"ada": 1}', '{"ada": {"accounts": 1}}', '{"ada": {}}'):
        people.write_text(damaged)
        assert skypilot_keys.launch_keys(tmp_path) == {}


def test_a_home_that_is_open_or_names_another_server_is_mended() -> None:
    wanted = read_wanted(params())
    seen = converged(wanted)
    opened = replace(seen.homes["ada"], closed=False)
    assert subjects(replace(seen, homes={**seen.homes, "ada": opened}), wanted) == ["login of ada"]


def test_a_policy_comes_with_what_keeps_clients_from_getting_rid_of_it() -> None:
    package = {"__init__.py": "", "policy.py": "class Autostop: ..."}
    wanted = read_wanted(params(policy="labrack_skypilot.policy.Autostop", policy_files=package))
    made = planner.wanted_files(wanted)
    assert "labrack_skypilot.plugin.Guard" in made[files.PLUGINS].text
    assert wanted.config["admin_policy"] == "labrack_skypilot.policy.Autostop"
    assert json.loads(made[files.POLICY_SETTINGS].text)["uids"]["ada-cli"] == [2001, 2001]
    assert wanted.environment != read_wanted(params()).environment
    without = read_wanted(params(policy="labrack_skypilot.policy.Autostop"))
    assert "admin_policy" not in without.config and files.PLUGINS not in planner.wanted_files(without)


def test_undo_keeps_the_database_unless_told() -> None:
    seen = converged(read_wanted(params()))
    steps = [change.step for change in planner.plan(seen, read_wanted(params(state="absent")))]
    assert ("rmtree", files.HOME) not in steps and ("userdel", files.USER) not in steps
    assert ("userdel", files.PROXY_USER) in steps and ("logout", "ada") in steps
    assert steps.index(("disable", files.PROXY)) < steps.index(("disable", files.SERVER))
    assert steps.index(("disable", files.SERVER)) < steps.index(("disable", files.GUARD_SERVICE))
    purged = [change.step for change in planner.plan(seen, read_wanted(params(state="absent", purge=True)))]
    assert ("rmtree", files.HOME) in purged and ("userdel", files.USER) in purged


def test_no_secret_enters_a_change() -> None:
    infra = {
        "kubernetes": [{"name": "lab", "kubeconfig": "/k", "context": "default"}],
        "clouds": [{"name": "aws", "files": {".aws/credentials": CANARY}}],
    }
    wanted = replace(
        read_wanted(params()),
        infrastructure=files.infrastructure(infra, files.merged_kubeconfig(infra["kubernetes"], {"/k": KUBECONFIG})),
    )
    changes = planner.plan(Observed(python=(3, 13, 1), homes={"ada": Home(True)}), wanted)
    changes += planner.plan(converged(read_wanted(params())), read_wanted(params(state="absent", purge=True)))
    assert CANARY not in repr(changes) and CANARY not in repr(wanted)


# --- the server's configuration ---


def test_the_roles_own_list_has_all_of_skypilots() -> None:
    """A list in the configuration takes the place of SkyPilot's own: without its entries users could make admins."""
    roles = files.config_tree({}, (), (), "", {})["rbac"]["roles"]
    blocked = {(entry["path"], entry["method"]) for entry in roles["user"]["permissions"]["blocklist"]}
    assert set(files.DEFAULT_BLOCKLIST) < blocked
    assert {("/users/create", "POST"), ("/users/export", "GET"), ("/ssh_node_pools", "POST")} <= blocked
    # who takes another's name launches as that Unix user
    assert ("/users/service-account-tokens", "POST") in blocked


def test_only_what_the_inventory_names_is_used() -> None:
    assert files.config_tree({}, (), (), "", {})["allowed_clouds"] == []
    infra = {"kubernetes": [{"name": "lab"}], "slurm": [{"name": "closet", "time": "2:00:00"}]}
    people = (Person("ada", uid=2001, gid=2001),)
    tree = files.config_tree(infra, people, [{"path": "/data", "read_only": True}], "", {})
    assert tree["allowed_clouds"] == ["kubernetes", "slurm"]
    assert tree["kubernetes"]["allowed_contexts"] == ["lab"]
    closet = tree["slurm"]["cluster_configs"]["closet"]
    assert closet["submit_as_user"] and closet["sbatch_options"] == {"time": "2:00:00"}
    assert closet["username_map"] == {"ada": "ada", "ada-cli": "ada"}
    pod = tree["kubernetes"]["pod_config"]["spec"]
    assert pod["volumes"] == [{"name": "lab-0", "hostPath": {"path": "/data", "type": "Directory"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "lab-0", "mountPath": "/data", "readOnly": True}]
    assert yaml.safe_load(config_text(tree)) == tree
    assert json.loads(files.policy_settings(people, [{"path": "/data"}], {})) == {
        "mounts": [{"path": "/data", "read_only": False}],
        "uids": {"ada": [2001, 2001], "ada-cli": [2001, 2001]},
    }
    # each one's own is the policy's to mount
    own = [{"path": "/data", "read_only": True}, {"path": "/checkpoints/{user}"}]
    assert files.config_tree(infra, people, own, "", {})["kubernetes"]["pod_config"]["spec"] == pod
    assert json.loads(files.policy_settings(people, own, {}))["mounts"] == [
        {"path": "/data", "read_only": True},
        {"path": "/checkpoints/{user}", "read_only": False, "mount": True},
    ]


def test_who_uses_it() -> None:
    users = [{"name": "ben", "role": "none"}, {"name": "guest", "role": "viewer", "password_hash": HASH}]
    assert files.people_of(users, LAB_USERS) == (
        Person("ada", "user", "", 2001, 2001),
        Person("guest", "viewer", HASH),
    )


def test_the_submitter_becomes_researchers_and_nobody_else() -> None:
    text = files.sudoers_text((Person("ada"), Person("ben")))
    assert "skypilot-submit ALL=(ada, ben) NOPASSWD: /bin/bash --login -c *" in text and "ALL)" not in text


def test_examples_for_the_labs_cards() -> None:
    gpus = [
        {"slurm_type": "rtx_4090", "name": "NVIDIA GeForce RTX 4090", "memory_mib": 24564},
        {"slurm_type": "rtx_a6000", "name": "NVIDIA RTX A6000", "memory_mib": 49140},
        {"slurm_type": "a100_80gb", "name": "NVIDIA A100-SXM4-80GB", "memory_mib": 81920},
        {"slurm_type": None, "name": "PCI device 10de:2684", "memory_mib": None},
    ]
    for slurm, wanted in (
        (False, {"rtx_4090": "RTX4090", "rtx_a6000": "A6000", "a100_80gb": "A100-80GB"}),
        (True, {"rtx_4090": "RTX_4090", "rtx_a6000": "RTX_A6000", "a100_80gb": "A100_80GB"}),
    ):
        made = files.example_tasks("/data/examples", gpus, slurm)
        assert sorted(made) == [f"/data/examples/{name}.yaml" for name in sorted([*wanted, "cpu"])]
        for kind, name in wanted.items():
            assert yaml.safe_load(made[f"/data/examples/{kind}.yaml"])["resources"] == {"accelerators": f"{name}:1"}
            # as k3s' role labels the node
            assert slurm or name.lower() in [accelerator(str(gpu["name"]), gpu["memory_mib"] or 0) for gpu in gpus]
    assert files.example_tasks("", gpus, slurm=True) == {}


def test_the_pin_is_read_and_has_sums() -> None:
    assert files.version_of(PINNED) == "0.14.1"
    assert "--index-url" not in PINNED and "://" not in PINNED
    with pytest.raises(SkypilotError, match="no hashes"):
        files.version_of("skypilot==0.14.1\n")
    with pytest.raises(SkypilotError, match="pins no skypilot"):
        files.version_of("sky==1.0\n")


def test_what_comes_as_source_is_built_last() -> None:
    wheels, source = planner.split_sources(PINNED)
    assert source.startswith("python-hostlist==") and source.count("==") == 1 and "--hash=sha256:" in source
    assert "python-hostlist" not in wheels and len(wheels) + len(source) == len(PINNED)


# --- kubeconfig ---

SCALARS = st.one_of(st.booleans(), st.none(), st.from_regex(r"[A-Za-z][A-Za-z0-9+/=.-]{0,20}", fullmatch=True))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,9}", fullmatch=True), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.from_regex(r"[a-z]{3,9}", fullmatch=True), TREES, min_size=1, max_size=4))
def test_block_yaml_is_read_as_yaml_reads_it(tree: dict[str, Any]) -> None:
    text = yaml.safe_dump(tree, default_flow_style=False)
    words = {"yes", "no", "on", "off", "y", "n", "true", "false", "null"}
    if any(word.lower() in words for word in re.findall(r"[A-Za-z]+", text)):
        # words that YAML 1.1 takes for truth are quoted by whoever writes them
        text = text.replace("'", '"')
    try:
        read = kubeconfig.read_block_yaml(text)
    except ValueError:
        # lists in lists are in no kubeconfig
        assert re.search(r"- -|- \?|\? ", text), text
        return
    assert read == yaml.safe_load(text)


def test_a_context_gets_the_labs_name() -> None:
    entries = [{"name": "lab", "kubeconfig": "/k", "context": "default"}]
    made = json.loads(files.merged_kubeconfig(entries, {"/k": KUBECONFIG}))
    assert made["current-context"] == "lab" and [one["name"] for one in made["contexts"]] == ["lab"]
    assert made["contexts"][0]["context"] == {"cluster": "lab", "user": "lab"}
    assert made["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:6443"
    assert json.loads(files.merged_kubeconfig(entries, {"/k": json.dumps(yaml.safe_load(KUBECONFIG))})) == made


@pytest.mark.parametrize(
    ("text", "context", "words"),
    [
        (None, "default", "/k, and there is no such file on the host"),
        (KUBECONFIG, "prod", r"context is prod, and /k has only default"),
        ("a: |\n  b\n", "default", "can't be read"),
    ],
)
def test_a_context_that_is_not_there_is_refused(text: str | None, context: str, words: str) -> None:
    with pytest.raises(SkypilotError, match=words):
        files.merged_kubeconfig([{"name": "lab", "kubeconfig": "/k", "context": context}], {"/k": text})


# --- the client's file ---

KEYS = st.from_regex(r"[a-z_]{3,8}", fullmatch=True).filter(lambda key: key != "api_server")
TOKENS = st.from_regex(r"sky_[A-Za-z0-9._-]{5,20}", fullmatch=True)


@given(st.dictionaries(KEYS, TREES, max_size=3), st.booleans(), TOKENS)
def test_a_users_own_keys_stay(tree: dict[str, Any], had_server: bool, token: str) -> None:
    own = {**tree, **({"api_server": {"endpoint": "http://old", "extra": [1]}} if had_server else {})}
    before = yaml.safe_dump(own, default_flow_style=False) if own else ""
    after = files.with_server(before, "https://desk.lab:46443", token)
    server = {"endpoint": "https://desk.lab:46443", "service_account_token": token}
    assert yaml.safe_load(after) == {**tree, "api_server": server}
    assert files.server_in(after) == (server["endpoint"], token)
    assert files.with_server(after, server["endpoint"], token) == after
    assert (yaml.safe_load(files.without_server(after)) or {}) == tree


def test_a_file_that_cannot_be_edited_is_refused() -> None:
    for text in ("{api_server: {endpoint: x}}\n", "api_server: {endpoint: x}\n", "'api_server': x\n"):
        with pytest.raises(SkypilotError, match="not written in blocks"):
            files.with_server(text, "https://desk", "sky_x")


# --- guard, units, proxy ---


def test_the_guards_rules_stand_or_fall_as_one() -> None:
    text = units.guard_text(46580, 50011, "skypilot", "skypilot-proxy")
    # one transaction: the table is there, is deleted, and is made anew
    assert text.splitlines()[1:4] == [
        "table inet labrack_skypilot",
        "delete table inet labrack_skypilot",
        "table inet labrack_skypilot {",
    ]
    assert "tcp dport 50011 meta skuid { root, skypilot } accept" in text
    # what no rule lets through is refused, over IPv4 and IPv6 alike
    assert 'oifname "lo" tcp dport { 46580, 50011 } reject' in text and 'iifname != "lo"' in text


def test_the_server_runs_behind_its_guard_and_holds_no_secret() -> None:
    text = units.server_unit("6G")
    assert "Requires=labrack-skypilot-guard.service" in text and "MemoryMax=6G" in text
    assert "--deploy" not in text and "--host 127.0.0.1" in text and "--enable-basic-auth" in text
    assert "SKYPILOT_INITIAL_BASIC_AUTH" not in text and "SKYPILOT_DISABLE_USAGE_COLLECTION=1" in text
    # what would be more on a machine with more cores
    for setting in ("SKYPILOT_POD_CPU_CORE_LIMIT=1", "OPENBLAS_NUM_THREADS=1", "MALLOC_ARENA_MAX=2"):
        assert f"Environment={setting}\n" in text


def test_the_proxy_drops_what_a_client_says_of_itself() -> None:
    text = units.nginx_text(46443, 46580)
    assert 'X-Auth-Request-Email ""' in text and "X-Forwarded-For $remote_addr" in text
    assert "$proxy_add_x_forwarded_for" not in text and "listen [::]:46443 ssl" in text


# --- the rules ---


def inventory(**variables: Any) -> Inventory:
    """One host, the lab's server."""
    lab = {"lab_orchestrator": "none", "lab_users": LAB_USERS, "skypilot_state": "present", **variables}
    return Inventory({"desk": lab}, {"lab_head": ["desk"], "lab_workers": [], "skypilot": ["desk"]})


@pytest.mark.parametrize(
    ("variables", "key", "words"),
    [
        ({"skypilot_users": [{"name": "ada", "role": "boss"}]}, "skypilot_users[0].role", "no such role"),
        (
            {"skypilot_users": [{"name": "ada", "password_hash": CANARY}]},
            "skypilot_users[0].password_hash",
            "not the hash",
        ),
        ({"skypilot_users": [{"name": "labrack"}]}, "skypilot_users[0].name", "no name of a researcher"),
        ({"skypilot_users": [{"name": "ada"}, {"name": "ada"}]}, "skypilot_users[1].name", "named twice"),
        ({"lab_users": [{"name": "x"}, {"name": "x-cli"}]}, "skypilot_users", "the ending of the accounts"),
        ({"skypilot_port": 46580}, "skypilot_port", "not a port"),
        ({"skypilot_port": 443}, "skypilot_port", "not a port"),
        ({"skypilot_tls_cert": "/c"}, "skypilot_tls_cert", "belong together"),
        ({"skypilot_memory_max": "1G"}, "skypilot_memory_max", "too little memory"),
        ({"skypilot_mounts": [{"path": "/etc"}]}, "skypilot_mounts[0].path", "not to be mounted"),
        (
            {"skypilot_mounts": [{"path": "/c/{user}"}], "skypilot_admin_policy": ""},
            "skypilot_mounts[0].path",
            "whose it is",
        ),
        ({"skypilot_infra": {"kubernetes": [{"name": "ssh-lab"}]}}, "skypilot_infra.kubernetes[0].name", "no name"),
        ({"skypilot_infra": {"slurm": [{"name": "a", "time": "long"}]}}, "skypilot_infra.slurm[0].time", "no time"),
        ({"skypilot_infra": {"ssh_pools": {"p": {"hosts": ["x"]}}}}, "skypilot_infra.ssh_pools", "unpinned k3s"),
        ({"skypilot_infra": {"clouds": [{"name": "aws"}]}}, "skypilot_infra.clouds[0].files", "without credentials"),
        (
            {"skypilot_infra": {"clouds": [{"name": "moon", "files": {".a/b": "x"}}]}},
            "skypilot_infra.clouds[0].name",
            "no such",
        ),
        (
            {
                "skypilot_infra": {"ssh_pools": {"p": {"hosts": ["x"], "password": CANARY}}},
                "skypilot_ssh_pools_accept": True,
            },
            "skypilot_infra.ssh_pools.p.password",
            "plain text",
        ),
    ],
)
def test_wrong_variables_are_found_before_any_node_is_touched(variables: dict[str, Any], key: str, words: str) -> None:
    found = [one for one in check_inventory(inventory(**variables)) if one.key == key]
    assert found and words in found[0].problem and found[0].hosts == ("desk",), check_inventory(inventory(**variables))
    assert CANARY not in found[0].line()


@pytest.mark.parametrize("given", [HASH, "$apr1$abcdefgh$0123456789012345678901", "$6$salt$" + "x" * 86])
def test_a_right_inventory_has_no_finding(given: str) -> None:
    right = inventory(skypilot_users=[{"name": "ada", "role": "admin", "password_hash": given}])
    assert [one for one in check_inventory(right) if one.key.startswith("skypilot")] == []


def test_one_host_is_the_server_and_has_memory() -> None:
    lab = inventory()
    two = replace(lab, hosts={**lab.hosts, "b": lab.hosts["desk"]}, groups={**lab.groups, "skypilot": ["desk", "b"]})
    assert [one for one in check_inventory(two) if "one server" in one.problem]
    facts = {"users": [], "groups": [], "subids": [], "gpus": [], "memory_mib": 2000, "os": {}, "packages": []}
    small = replace(lab, facts={"desk": facts})
    assert [one for one in check_facts(small) if "too little for the server" in one.problem]


@pytest.mark.parametrize(
    ("entry", "seen", "key", "words"),
    [
        ({}, {"/k": ["default", "old"]}, "skypilot_infra.kubernetes[0].context", "/k has only default, old"),
        ({}, {"/k": []}, "skypilot_infra.kubernetes[0].context", "/k has only none"),
        ({}, {"/k": None}, "skypilot_infra.kubernetes[0].kubeconfig", "there is no such file"),
        ({}, {"/k": ["prod"]}, "", ""),
        # a file that can't be read is told by the role
        ({}, {}, "", ""),
        ({"context": None}, {"/k": ["default"]}, "", ""),
        ({"kubeconfig": None}, {files.K3S_KUBECONFIG: None}, "skypilot_infra.kubernetes[0].kubeconfig", "no such file"),
    ],
)
def test_contexts_are_looked_for_before_any_node_is_touched(
    entry: dict[str, Any], seen: dict[str, Any], key: str, words: str
) -> None:
    infra = {"kubernetes": [{"name": "lab", "kubeconfig": "/k", "context": "prod", **entry}]}
    lab = inventory(lab_orchestrator="none", skypilot_infra=infra)
    lab = replace(lab, facts={"desk": {**DESK_FACTS, "kubeconfigs": seen}})
    found = [one for one in check_facts(lab) if one.path[0] == "skypilot_infra"]
    assert [one.key for one in found] == [key][: bool(key)]
    assert all(words in one.problem for one in found)


def test_a_k3s_that_this_run_brings_up_need_not_be_there() -> None:
    infra = {"kubernetes": [{"name": "lab"}]}
    for variables, told in (({}, 0), ({"k3s_state": "absent"}, 1)):
        lab = inventory(lab_orchestrator="skypilot", skypilot_infra=infra, **variables)
        lab = replace(lab, facts={"desk": {**DESK_FACTS, "kubeconfigs": {files.K3S_KUBECONFIG: None}}})
        assert len([one for one in check_facts(lab) if "no such file" in one.problem]) == told


@pytest.mark.parametrize(
    ("who", "told"), [("mallory", True), (files.USER, False), (files.PROXY_USER, False), ("root", False), ("", False)]
)
def test_a_port_of_somebody_elses_is_seen_before_any_node_is_touched(who: str, told: bool) -> None:
    for port, variables in (("46443", {}), ("46999", {"skypilot_port": 46999})):
        lab = inventory(lab_orchestrator="none", **variables)
        listeners = {port: who} if who else {}
        lab = replace(lab, facts={"desk": {**DESK_FACTS, "listeners": {"22": "mallory", **listeners}}})
        found = [one.problem for one in check_facts(lab) if one.key == "skypilot_port"]
        assert found == [f"port {port} is taken by a program of {who}"][:told]


def test_contexts_of_a_kubeconfig_are_names_alone(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(KUBECONFIG)
    (tmp_path / "bad.yaml").write_text("contexts: [a, b]\n")
    seen = kubeconfig.contexts(["/k.yaml", "/bad.yaml", "/gone.yaml"], tmp_path)
    assert seen == {"/k.yaml": ["default"], "/gone.yaml": None}


#: A node with cards, as far as rules look at it.
DESK_FACTS: dict[str, Any] = {
    "users": [],
    "groups": [],
    "subids": [],
    "addresses": {"ipv4": ["192.168.1.10"]},
    "gpus": [{"name": "NVIDIA RTX A6000", "memory_mib": 49140, "mig": False}] * 2,
    "memory_mib": 64000,
    "os": {"id": "debian", "version": "13"},
    "packages": [],
    "conflicts": [],
}


@pytest.mark.parametrize(
    ("variables", "facts", "mends"),
    [
        ({}, {}, 1),
        # an empty slot takes no card from anybody
        ({}, {"gpus": []}, 0),
        ({"k3s_device_plugin": "none"}, {}, 0),
        ({"k3s_state": "absent"}, {}, 0),
        ({"lab_orchestrator": "slurm"}, {}, 0),
    ],
)
def test_the_inventory_gives_a_card_to_one_scheduler(variables: dict[str, Any], facts: Any, mends: int) -> None:
    lab = inventory(**{"lab_orchestrator": "skypilot", **variables})
    lab = replace(lab, groups={**lab.groups, "slurm_worker": ["desk"]}, facts={"desk": {**DESK_FACTS, **facts}})
    found = [one for one in check_facts(lab) if one.key == "group slurm_worker"]
    assert len(found) == mends, found
    for one in found:
        assert "two jobs get one card" in one.problem and "take desk out of slurm_worker" in one.mend
        assert one.value == "desk" and one.hosts == ("desk",)
    alone = replace(lab, groups={**lab.groups, "slurm_worker": []})
    assert [one for one in check_facts(alone) if one.key == "group slurm_worker"] == []


BOTH = {"kubernetes": [{"name": "k"}], "slurm": [{"name": "s"}]}


@pytest.mark.parametrize(
    ("infra", "runs", "found"),
    [
        (BOTH, ["k3s", "slurmd"], True),
        (BOTH, ["k3s-agent"], True),
        (BOTH, ["slurmd"], False),
        ({**BOTH, "slurm": [{"name": "s", "host": "elsewhere", "user": "u"}]}, ["k3s", "slurmd"], False),
        ({**BOTH, "kubernetes": [{"name": "k", "kubeconfig": "/root/.kube/config"}]}, ["k3s", "slurmd"], False),
        ({"slurm": BOTH["slurm"]}, ["k3s", "slurmd"], False),
    ],
)
def test_skypilot_is_not_given_the_same_cards_by_two_ways(infra: dict[str, Any], runs: list[str], found: bool) -> None:
    lab = inventory(lab_orchestrator="slurm", skypilot_infra=infra)
    facts = {**DESK_FACTS, "conflicts": [{"what": name, "why": ""} for name in runs]}
    lab = replace(lab, groups={**lab.groups, "slurm_worker": ["desk"]}, facts={"desk": facts})
    told = [one for one in check_facts(lab) if one.key == "skypilot_infra.kubernetes[0]"]
    assert bool(told) == found, told
    if found:
        assert "GPUs of desk" in told[0].problem and f"systemctl disable --now {runs[0]}" in told[0].mend
        assert told[0].value == "k" and told[0].hosts == ("desk",)
