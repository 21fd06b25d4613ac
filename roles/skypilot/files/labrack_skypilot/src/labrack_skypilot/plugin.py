# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A plugin of SkyPilot's server: what a client's configuration may not be laid over the server's, and its queue.

A request carries its client's config.yaml, which the server (0.14.1, sky/skypilot_config.py, override_skypilot_config)
lays over its own, ``admin_policy`` included: whoever writes requests by hand is rid of the policy, or has the server
ask an address of their choice for one.

A server that is one process needs no queue between processes, and SkyPilot means to have none then
(sky/server/config.py, ``QueueBackend.LOCAL``), but starts one all the same (sky/server/requests/executor.py,
``start``): another 130 MB, and a port of loopback that unpickles what it is sent. In the server's plugins.yaml::

    plugins:
      - class: labrack_skypilot.plugin.Guard
"""

from __future__ import annotations

import sys
from typing import Any

from sky.skylet import constants

#: Beside SkyPilot's own list. What a task's ``config:`` asks for is judged by the policy.
LOCKED: tuple[tuple[str, ...], ...] = (
    ("admin_policy",),
    ("rbac",),
    ("auth",),
    *(
        (cloud, key)
        for cloud in ("kubernetes", "ssh")
        for key in (
            "allowed_contexts",
            "allowed_node_pools",
            "auto_mounts",
            "context_configs",
            "custom_metadata",
            "enable_docker",
            "namespace",
            "networking",
            "pod_config",
            "ports",
            "post_provision_runcmd",
            "remote_identity",
        )
    ),
    ("slurm", "allowed_clusters"),
    ("slurm", "container_mounts"),
    ("slurm", "prometheus"),
    ("slurm", "sbatch_options"),
    ("jobs", "controller"),
    ("serve", "controller"),
)


def lock() -> None:
    """Have this process pass over the keys in clients' configurations; once more changes nothing."""
    known = constants.SKIPPED_CLIENT_OVERRIDE_KEYS
    known.extend(key for key in LOCKED if key not in known)


def locked() -> bool:
    """Return whether this process passes over them."""
    return all(key in constants.SKIPPED_CLIENT_OVERRIDE_KEYS for key in LOCKED)


try:
    from sky.server import plugins
except ImportError:
    # a machine that only runs jobs has no server's packages; it takes no requests either
    plugins = None

if plugins is not None:

    class Guard(plugins.BasePlugin):  # type: ignore[misc]
        """Locks the keys in every process of the server, and keeps its queue within it."""

        def install(self, extension_context: Any) -> None:
            """Do so; SkyPilot calls it once in each process, or twice in one that serves as well."""
            lock()
            # with --deploy several processes serve, and share one queue
            if "--deploy" not in sys.argv:
                from sky.server.requests.queues import base

                extension_context.register_queue_backend_factory(base.LocalQueueFactory())
