# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What tests run in SkyPilot's own environment: ``policy`` prints JSON, ``fill`` makes clusters, of the users that a
JSON document names or of others, ``status`` prints what the server tells of them."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["IS_SKYPILOT_SERVER"] = "true"

import sky
from sky import clouds, core, global_user_state, models, skypilot_config
from sky.backends import cloud_vm_ray_backend
from sky.provision.kubernetes import utils as kubernetes_utils
from sky.server import plugins
from sky.server.requests import request_names
from sky.utils import admin_policy_utils, yaml_utils

from labrack_skypilot import plugin

#: Tasks as researchers write them.
TASKS = {
    "plain": "{resources: {infra: kubernetes, accelerators: 'A100:1'}, run: nvidia-smi}",
    "slurm": "{resources: {infra: slurm/lab, autostop: false}, run: x}",
    "long": "{resources: {autostop: {idle_minutes: 100000, down: false, wait_for: none}}, run: x,"
    " config: {slurm: {sbatch_options: {time: 30-0}}}}",
    "short": "{resources: {infra: kubernetes, autostop: 5m}, run: x}",
    "cloud": "{resources: {infra: aws, autostop: {idle_minutes: 5, down: false}}, run: x}",
    "either": "{resources: {any_of: [{infra: kubernetes}, {infra: slurm}]}, run: x}",
    "ordered": "{resources: {ordered: [{infra: ssh/pool}, {infra: kubernetes}]}, run: x}",
    "own pod": "{resources: {infra: kubernetes}, run: x, config: {kubernetes: {pod_config: {spec: {containers:"
    " [{env: [{name: A, value: b}]}], volumes: [{name: mine, emptyDir: {}}]}}}}}",
    "etc": "{resources: {infra: kubernetes}, run: x, config: {kubernetes: {pod_config: {spec:"
    " {volumes: [{name: x, hostPath: {path: /etc}}]}}}}}",
    "hidden": "{resources: {infra: kubernetes, _cluster_config_overrides: {kubernetes: {pod_config: {spec:"
    " {hostPID: true}}}}}, run: x}",
    "docker": "{resources: {infra: kubernetes}, run: x, config: {kubernetes: {enable_docker: true}}}",
    "volume": "{resources: {infra: slurm/lab}, run: x, volumes: {/mnt: {host_path: /etc}}}",
}


def applied(text: str, request: str = "launch") -> Any:
    """The task after the policy, as YAML's document, or the words of its refusal."""
    task = sky.Task.from_yaml_config(yaml_utils.safe_load(text))
    try:
        dag, _config = admin_policy_utils.apply(task, request_names.AdminPolicyRequestName(request))
    except sky.exceptions.UserRequestRejectedByPolicy as error:
        return str(error)
    found = dag.tasks[0].to_yaml_config()
    found.pop("_user_specified_yaml", None)
    # SkyPilot's own schema takes it back
    sky.Task.from_yaml_config(json.loads(json.dumps(found)))
    return found


def pod(text: str) -> Any:
    """What becomes of a task's pods, the server's own pod_config and the policy's laid together by SkyPilot."""
    overrides = next(iter(sky.Task.from_yaml_config(applied(text)).resources)).cluster_config_overrides
    node = {"spec": {"containers": [{"name": "ray-node", "image": "x"}], "volumes": [{"name": "dshm", "emptyDir": {}}]}}
    whole = {"available_node_types": {"ray_head_default": {"node_config": node}}}
    laid = kubernetes_utils.combine_pod_config_fields(whole, overrides, clouds.Kubernetes(), "lab")
    return laid["available_node_types"]["ray_head_default"]["node_config"]


def overridden() -> Any:
    """What a client's configuration makes of the server's, as the server lays it over."""
    hostile = {
        "admin_policy": "http://127.0.0.1:9/",
        "kubernetes": {"pod_config": {"spec": {"hostPID": True}}, "context_configs": {"lab": {"remote_identity": "x"}}},
        "slurm": {"sbatch_options": {"time": "0"}},
    }
    with skypilot_config.override_skypilot_config(hostile):
        policy = skypilot_config.get_nested(("admin_policy",), None)
        return [policy, skypilot_config.get_nested(("kubernetes",), None), skypilot_config.get_nested(("slurm",), None)]


def policy() -> None:
    """Print what the policy and the plugin do."""
    found: dict[str, Any] = {"before": overridden()}
    plugins.load_plugins(plugins.ExtensionContext(context=plugins.PluginContext.EXECUTOR))
    found["locked"], found["after"] = plugin.locked(), overridden()
    found["tasks"] = {name: applied(text) for name, text in TASKS.items()}
    found["again"] = {
        name: applied(json.dumps(task), "jobs.launch_cluster")
        for name, task in found["tasks"].items()
        if isinstance(task, dict)
    }
    found["pod"] = pod(TASKS["own pod"])
    found["exec"] = applied(TASKS["slurm"], "exec")
    features = clouds.CloudImplementationFeatures
    found["slurm"] = [features.AUTOSTOP in clouds.Slurm._CLOUD_UNSUPPORTED_FEATURES]
    found["slurm"] += [features.AUTODOWN in clouds.Slurm._CLOUD_UNSUPPORTED_FEATURES]
    print(json.dumps(found))


def fill() -> None:
    """Put clusters into the server's database as SkyPilot itself does; for named users with how they are ended."""
    users = json.loads(sys.argv[2]) if sys.argv[2:] else {"ada": "aaaa1111", "ben": "bbbb2222"}
    for name, user, ready, managed, autostop in (
        ("train", "ada", True, False, None),
        ("debug", "ben", True, False, 60),
        ("job-7", "ada", True, True, None),
        ("stuck", "ben", False, False, None),
    ):
        os.environ["SKYPILOT_USER"], os.environ["SKYPILOT_USER_ID"] = user, users[user]
        global_user_state.add_or_update_user(models.User(id=users[user], name=user))
        resources = sky.Resources(
            cloud=clouds.Kubernetes(), region="lab", instance_type="4CPU--16GB--A100:1", accelerators={"A100": 1}
        )
        handle = cloud_vm_ray_backend.CloudVmRayResourceHandle(
            cluster_name=name,
            cluster_name_on_cloud=f"{name}-{users[user]}",
            cluster_yaml=f"~/.sky/generated/{name}.yml" if sys.argv[2:] else None,
            launched_nodes=1,
            launched_resources=resources,
        )
        global_user_state.add_or_update_cluster(
            name, handle, requested_resources={resources}, ready=ready, is_launch=True, is_managed=managed
        )
        provider = {"type": "external", "module": "sky.provision.kubernetes", "context": "lab", "namespace": "default"}
        if sys.argv[2:]:
            global_user_state.set_cluster_yaml(name, json.dumps({"cluster_name": name, "provider": provider}))
        if autostop:
            global_user_state.set_cluster_autostop_value(name, autostop, True)


def status() -> None:
    """Print the server's answer to the reaper's question, as tests/unit/fixtures/skypilot/status.json has it."""
    os.environ["SKYPILOT_DEBUG"] = "1"
    found = core.status(all_users=True, include_handle=False)
    print(json.dumps([json.loads(one.model_dump_json(exclude={"handle", "credentials"})) for one in found], indent=1))


if __name__ == "__main__":
    {"policy": policy, "fill": fill, "status": status}[sys.argv[1]]()
