"""The baseline of a node: hosts file, directories, time service, and their undoing."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.filter.node_entries import node_entries
from ansible_collections.labrack.infra.plugins.module_utils import baseline_plan, hosts_file
from ansible_collections.labrack.infra.plugins.module_utils.baseline_plan import Directory, Observed, Record, Wanted
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.hosts_file import Host, conflicts, render
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState
from ansible_collections.labrack.infra.plugins.modules import baseline as baseline_module

HEAD = Host("head", "10.0.0.1")
WORKER = Host("worker1", "10.0.0.2", ("w1",))
DEBIAN = "127.0.0.1\tlocalhost\n127.0.1.1\thead.lab.example\thead\n\n# IPv6\n::1 localhost ip6-localhost\n"


def resolve(text: str) -> dict[str, str]:
    """Return what a resolver reads from a hosts file: the first address of each name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            found.setdefault(name, address)
    return found


def test_block_is_sorted_and_at_the_end() -> None:
    text = render("127.0.0.1 localhost\n", [WORKER, HEAD])
    assert text == (
        "127.0.0.1 localhost\n# BEGIN labrack nodes\n10.0.0.1\thead\n10.0.0.2\tworker1 w1\n# END labrack nodes\n"
    )


def test_a_name_on_loopback_moves_to_the_real_address_and_back() -> None:
    text = render(DEBIAN, [HEAD, WORKER])
    assert resolve(text)["head"] == resolve(text)["head.lab.example"] == "10.0.0.1"
    assert resolve(text)["localhost"] == "127.0.0.1"
    assert "10.0.0.1\thead.lab.example head\n" in text  # the long name stays the canonical one
    assert render(text, []) == DEBIAN


def test_other_names_of_a_loopback_line_stay() -> None:
    text = render("127.0.0.1 localhost head\n", [HEAD])
    assert resolve(text) == {"localhost": "127.0.0.1", "head": "10.0.0.1"}
    assert render(text, []) == "127.0.0.1 localhost head\n"


def test_entry_of_a_silent_node_is_kept_and_that_of_a_gone_one_is_not() -> None:
    text = render("", [HEAD, WORKER])
    assert render(text, [HEAD, Host("worker1", None)]) == text
    assert "worker1" not in render(text, [HEAD])
    assert "worker2" not in render(text, [HEAD, Host("worker2", None)])


def test_block_stays_where_it_is_and_a_damaged_one_is_mended() -> None:
    text = render("a 1\n", [HEAD]) + "# by hand\n"
    assert render(text, [HEAD]) == text
    unfinished = "10.9.9.9 printer\n# BEGIN labrack nodes\n10.0.0.1\thead\n10.9.9.8 scanner\n"
    mended = render(unfinished, [HEAD])
    assert resolve(mended) == {"printer": "10.9.9.9", "head": "10.0.0.1", "scanner": "10.9.9.8"}
    assert render(mended, [HEAD]) == mended


def test_another_address_outside_the_block_is_named() -> None:
    text = "10.0.0.77 worker1\nfd00::2 worker1\n10.0.0.1 head\n127.0.1.1 head2\n"
    (found,) = conflicts(text, [HEAD, WORKER])
    assert "worker1" in found and "10.0.0.77" in found and "10.0.0.2" in found
    assert conflicts("127.0.1.1 head\n", [HEAD]) == []
    assert "127.0.1.1" in conflicts("127.0.1.1 head\n", [HEAD], block=False)[0]


NAMES = st.sampled_from(["head", "worker1", "worker2", "gpu-3"])
HOSTS = st.lists(
    st.builds(Host, NAMES, st.one_of(st.none(), st.sampled_from(["10.0.0.1", "10.0.0.2"]))),
    max_size=4,
    unique_by=lambda host: host.name,
)
LINES = st.lists(
    st.sampled_from(
        [
            "127.0.0.1 localhost",
            "127.0.1.1 head.lab head # installer",
            "127.0.0.1 localhost worker1 worker2.lab",
            "::1 gpu-3 ip6-localhost",
            "10.0.0.9 printer",
            "# a comment",
            "",
        ]
    ),
    max_size=6,
).map(lambda lines: "".join(line + "\n" for line in lines))


@given(LINES, HOSTS, HOSTS)
def test_any_list_of_hosts_after_any_other(text: str, first: list[Host], then: list[Host]) -> None:
    after_first = render(text, first)
    after = render(after_first, then)
    assert render(after, then) == after
    assert render(after, []) == text
    addresses = resolve(after)
    for host in then:
        old = resolve(after_first).get(host.name) if host.name in {one.name for one in first if one.address} else None
        expected = host.address or old
        if expected:
            assert addresses[host.name] == expected


# --- the whole plan, on a simulated node ---

UP = ServiceState(installed=True, active=True, enabled=True)


def apply(node: Observed, wanted: Wanted, changes: list[Change]) -> Observed:
    """Make the changes on a simulated node."""
    directories = dict(node.directories)
    after = node
    for change in changes:
        verb, target = change.step
        if verb in ("mkdir", "chmod"):
            directories[target] = wanted.directories[target]
        elif verb == "rmdir":
            assert not node.entries.get(target, frozenset()) - {"baseline.json", "inner"}
            del directories[target]
        elif target == baseline_plan.HOSTS:
            after = replace(after, hosts=baseline_plan.wanted_hosts_file(node, wanted))
        elif target == baseline_plan.RECORD:
            after = replace(after, record=baseline_plan.wanted_record(node, wanted).file())
        else:
            assert verb in ("enable", "restart")
            after = replace(after, time_service=UP)
    return replace(after, directories=directories, entries=entries(directories, after.record is not None, node))


def entries(directories: dict[str, Directory], record: bool, node: Observed) -> dict[str, frozenset[str]]:
    """Return what is in each directory of the simulated node: other roles' files, the record, directories."""
    found = {}
    for path in directories:
        names = set(node.entries.get(path, frozenset())) - {"baseline.json", "inner", "golden-rule"}
        names |= {"baseline.json"} if record and path == "/var/lib/labrack" else set()
        names |= {"inner"} if f"{path}/inner" in directories else set()
        found[path] = frozenset(names)
    return found


PATHS = ["/var/lib/labrack", "/etc/labrack", "/srv/x", "/srv/x/inner"]
DIRECTORIES = st.dictionaries(st.sampled_from(PATHS), st.builds(Directory, st.sampled_from(["0755", "0750"]))).map(
    lambda found: {"/srv/x": Directory(), **found} if "/srv/x/inner" in found else found
)
WANTED = st.one_of(
    st.just(Wanted(present=False)),
    st.builds(
        Wanted,
        hosts=HOSTS.map(tuple),
        directories=DIRECTORIES,
        time_service=st.sampled_from(["", "chrony"]),
        installed=st.sampled_from([(), ("chrony",)]),
        files=st.sampled_from([(), ("/usr/local/bin/uv",)]),
    ),
)


@given(LINES, DIRECTORIES, st.booleans(), WANTED, WANTED)
def test_any_baseline_after_any_other(
    text: str, there: dict[str, Directory], used: bool, first: Wanted, then: Wanted
) -> None:
    start = Observed(hosts=FileState(text, "0644"), directories=there)
    start = replace(start, entries={path: frozenset({"foreign"} if used else set()) for path in there})
    node = start
    for wanted in (first, then):
        changes = baseline_plan.plan(node, wanted)
        node = apply(node, wanted, changes)
        assert baseline_plan.plan(node, wanted) == []
        assert wanted.directories.items() <= node.directories.items()
        assert set(there) <= set(node.directories), "a directory that was there before us is never removed"
    undone = apply(node, Wanted(present=False), baseline_plan.plan(node, Wanted(present=False)))
    assert undone.hosts == start.hosts and undone.record is None
    assert set(undone.directories) == set(there)


def test_undo_leaves_a_directory_that_is_in_use_and_names_the_packages() -> None:
    wanted = Wanted(directories={"/etc/labrack": Directory()}, installed=("chrony",))
    node = apply(Observed(), wanted, baseline_plan.plan(Observed(), wanted))
    assert node.record and Record.read(node.record.text) == Record(("/etc/labrack",), ("chrony",))
    node = replace(node, entries={"/etc/labrack": frozenset({"slurm.key"})})
    changes = baseline_plan.plan(node, Wanted(present=False))
    assert [change.step for change in changes] == [("remove", baseline_plan.RECORD)]


def test_a_stopped_time_service_is_started_and_a_running_one_left_alone() -> None:
    wanted = Wanted(time_service="chrony")
    stopped = Observed(time_service=ServiceState(installed=True))
    assert [change.step for change in baseline_plan.plan(stopped, wanted)] == [
        ("enable", "chrony"),
        ("restart", "chrony"),
    ]
    assert baseline_plan.plan(Observed(time_service=UP), wanted) == []


def test_nothing_wanted_touches_nothing() -> None:
    node = Observed(hosts=FileState(DEBIAN), directories={"/etc/labrack": Directory("0700")})
    assert baseline_plan.plan(node, Wanted(present=False)) == []
    assert hosts_file.render(DEBIAN, []) == DEBIAN


def test_entries_come_from_the_inventory_then_from_facts() -> None:
    facts = {"hostname": "box7", "addresses": {"default_ipv4": "10.0.0.2"}}
    hostvars = {
        "head": {"lab_address": "10.0.0.1", "ansible_facts": {"labrack_node": {**facts, "hostname": "head"}}},
        "worker1": {"ansible_facts": {"labrack_node": facts}},
        "worker2": {},
        "localhost": {},
    }
    groups = {"all": list(hostvars), "lab_head": ["head"], "lab_workers": ["worker2", "worker1", "head"]}
    assert node_entries(hostvars, groups) == [
        {"name": "head", "aliases": [], "address": "10.0.0.1"},
        {"name": "worker1", "aliases": ["box7"], "address": "10.0.0.2"},
        {"name": "worker2", "aliases": []},
    ]


def test_undo_removes_a_directory_that_only_has_files_of_ours() -> None:
    home = "/var/lib/labrack"
    wanted = Wanted(directories={home: Directory()})
    node = apply(Observed(), wanted, baseline_plan.plan(Observed(), wanted))
    for names, gone in ((["baseline.json", "golden-rule"], True), (["baseline.json", "slurm.key"], False)):
        node = replace(node, entries={home: frozenset(names)})
        steps = [change.step for change in baseline_plan.plan(node, Wanted(present=False))]
        assert (("rmdir", home) in steps) is gone


def test_directory_of_a_group_that_is_still_to_come_shows_its_number() -> None:
    params = {
        "state": "present",
        "hosts": [],
        "hosts_source": "file",
        "directories": [{"path": "/data", "mode": "2775", "owner": "root", "group": "no-such-group"}],
        "time_service": "",
        "packages": [],
        "installed": [],
        "uids": {},
        "gids": {"no-such-group": 3001},
    }
    assert baseline_module.read_wanted(params).directories == {"/data": Directory("2775", "root", "3001")}
    params["gids"] = {}
    assert baseline_module.read_wanted(params).directories["/data"].group == "no-such-group"
