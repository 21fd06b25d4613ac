# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plans: what they hold, when two are the same, whose jobs they affect."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.labrack.infra.plugins.module_utils.change import DISRUPTIONS
from labrack import planning
from labrack.lab import Lab
from labrack.planning import Item, Job, NodePlan, Plan, TaskPlan
from labrack.run import Failure, Outcome, TaskResult
from labrack.shell import UserError

text = st.text(max_size=12)
names = st.sampled_from(["head", "node1", "node2"])
items = st.builds(Item, text, text, st.sampled_from(DISRUPTIONS))
diffs = st.fixed_dictionaries({"header": text, "before": text, "after": text})
tasks = st.builds(
    TaskPlan,
    text,
    text,
    st.lists(items, max_size=3).map(tuple),
    st.lists(items, max_size=2).map(tuple),
    st.lists(diffs, max_size=2).map(tuple),
    st.booleans(),
)
nodes = st.builds(
    NodePlan, st.lists(tasks, max_size=3).map(tuple), st.sampled_from(["", "it broke"]), st.booleans(), st.just(("w",))
)
texts = st.lists(text, max_size=2).map(tuple)
plans = st.builds(
    Plan,
    made=text,
    inventory=texts,
    playbook=text,
    tags=texts,
    limit=texts,
    arguments=texts,
    consent=text,
    commit=text,
    digest=text,
    nodes=st.dictionaries(names, nodes),
    jobs=st.lists(st.builds(Job, names, text, text, text, text), max_size=2).map(tuple),
    jobs_unknown=text,
)


@given(plans)
def test_a_plan_comes_back_as_it_was_saved(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        planning.write(plan, Path(folder, "plan"))
        assert planning.read(Path(folder, "plan")) == plan


@given(plans)
def test_a_plan_is_like_itself_whenever_it_is_made(plan: Plan) -> None:
    assert planning.differences(plan, replace(plan, made="later", commit="other")) == []


@given(plans, names, tasks, items)
def test_one_more_change_makes_another_plan(plan: Plan, host: str, task: TaskPlan, item: Item) -> None:
    node = replace(plan.nodes.get(host, NodePlan()), failed="")
    before = replace(plan, nodes={**plan.nodes, host: node})
    item = replace(item, subject=f"file /new{item.subject}")
    more = replace(node, tasks=(*node.tasks, replace(task, items=(item,), pending=())))
    after = replace(plan, nodes={**plan.nodes, host: more})
    assert planning.differences(before, after) == [f"  {host}: {item.subject} is off now"]
    assert planning.differences(after, before) == [f"  {host}: {item.subject} is no longer off"]


def test_another_text_makes_another_plan() -> None:
    def plan(before: str) -> Plan:
        diff = {"header": "file /etc/hosts", "before": before, "after": "ours"}
        task = TaskPlan("baseline", "Converge", (Item("file /etc/hosts", "content changed", "none"),), diff=(diff,))
        return Plan("", (), "", (), (), (), "", "", "", {"node1": NodePlan((task,))})

    assert planning.differences(plan("mine"), plan("mine")) == []
    assert planning.differences(plan("mine"), plan("hers")) == ["  node1: file /etc/hosts is off in another way now"]


@given(plans)
def test_exit_status(plan: Plan) -> None:
    failed = any(node.failed for node in plan.nodes.values())
    anything = any(task.items or task.pending for node in plan.nodes.values() for task in node.tasks)
    assert plan.status() == (1 if failed else 2 if anything else 0)


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', '{"schema": 7}', '{"schema": 1, "nodes": 3}'])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan").write_text(content)
    with pytest.raises(UserError, match="labrack plan -o"):
        planning.read(tmp_path / "plan")


def result(host: str, role: str, action: str, *disruptions: str, subject: str = "x", **more: Any) -> TaskResult:
    changes = tuple({"subject": subject, "summary": "y", "disruption": one} for one in disruptions)
    return TaskResult(host, role, "Converge", f"labrack.infra.{action}", "changed", changes, **more)


LAB = Lab((), {}, {"lab_head": ("head",), "slurm_worker": ("node1", "node2")})


@pytest.mark.parametrize(
    ("task", "affected"),
    [
        (result("node1", "nvidia_driver", "nvidia_driver", "restart"), []),
        (result("node1", "nvidia_driver", "nvidia_driver", "reboot"), ["node1"]),
        (result("head", "nvidia_driver", "nvidia_driver", "reboot"), []),
        (result("head", "slurm", "slurm_controller", "drain", subject="node node2"), ["node2"]),
        (result("head", "slurm", "slurm_controller", "drain", subject="SelectType"), ["node1", "node2"]),
        (result("head", "slurm", "slurm_controller", drains=("node1",)), ["node1"]),
        (result("head", "nfs_server", "nfs_server", "drain"), ["node1", "node2"]),
    ],
)
def test_whose_jobs_are_affected(task: TaskResult, affected: list[str]) -> None:
    assert planning.affected(LAB, Outcome({}, {}, (task,))) == affected


def test_hidden_changes_are_counted_where_no_other_task_explains_them() -> None:
    hidden = TaskResult("head", "slurm", "Make the key", "labrack.infra.munge_key", "done")
    seen = result("head", "baseline", "baseline", "none")
    for changed, count in ((1, 1), (2, 2)):
        found = planning._nodes(Outcome({"head": changed}, {"head": 2}, (seen, hidden)))
        assert len(found["head"].items) == count
    assert planning._nodes(Outcome({}, {}, (), (Failure("node1", "Read", "gone"),), ("node1",)))["node1"].unreachable


def test_digest_covers_what_a_run_reads(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "hosts.yml").write_text("all:")
    (tmp_path / "extra.yml").write_text("a: 1")
    for inventory in ([tmp_path], [tmp_path / "hosts.yml"]):
        before = planning.digest(inventory, [f"@{tmp_path}/extra.yml"])
        (tmp_path / "group_vars/.git").mkdir(exist_ok=True)
        (tmp_path / "group_vars/.git/index").write_text("1")
        assert planning.digest(inventory, [f"@{tmp_path}/extra.yml"]) == before
        for name in ("group_vars/all.yml", "extra.yml"):
            (tmp_path / name).write_text(f"b: {len(before)}{inventory}")
            after = planning.digest(inventory, [f"@{tmp_path}/extra.yml"])
            assert after != before
            before = after


def test_only_what_reaches_the_machines_goes_to_another_playbook() -> None:
    words = ["-e", "a=1", "--start-at-task", "x", "-vvv", "--vault-password-file=pw", "-K", "--user", "me", "--step"]
    assert planning.connection_arguments(words) == ["-e", "a=1", "--vault-password-file=pw", "-K", "--user", "me"]
