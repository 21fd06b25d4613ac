# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Labs that nobody has, for tests of what is shown of one. `python -m tests.made_up` writes what is kept of that anew:

the screens in tests/unit/fixtures/status, and docs/status.png, with Debian's chromium.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from ansible_collections.labrack.infra.plugins.module_utils.quota_plan import ENFORCED
from labrack import page, status
from labrack.lab import Lab

NOW = datetime(2026, 3, 2, 17, 4, tzinfo=UTC)
GIB = 2**20
ROOT = Path(__file__).parents[1]
SCREENS = ROOT / "tests/unit/fixtures/status"
WIDTHS = (80, 120)

Answers = dict[str, dict[str, Any]]


def gpu(
    index: int, kind: str = "a100_80gb", use: int | None = 0, degrees: int | None = 34, **more: Any
) -> dict[str, Any]:
    """A card as the module tells of it."""
    limit = {"a100_80gb": 400.0, "rtx_4090": 450.0, "rtx_a6000": 300.0}.get(kind, 300.0)
    return {
        "index": index,
        "name": f"NVIDIA {kind}",
        "type": kind,
        "mig": False,
        "memory_mib": 81920,
        "memory_used_mib": 800 * (use or 0),
        "use_percent": use,
        "temperature_c": degrees,
        "temperature_slowdown_c": 92,
        "power_draw_w": None if use is None else 28 + (limit - 40) * use / 100,
        "power_limit_w": limit,
        "processes": [],
        **more,
    }


def answer(host: str, cards: Sequence[Mapping[str, Any]] = (), **more: Any) -> dict[str, Any]:
    """A host's answer."""
    return {
        "status": {
            "host": host,
            "os": "Debian GNU/Linux 13 (trixie)",
            "model": "",
            "kernel": "6.12.57+deb13-amd64",
            "cpu": {"sockets": 1, "cores_per_socket": 32},
            "load": 3.2,
            "cpus": 64,
            "memory_mib": 515000,
            "memory_free_mib": 341000,
            "uptime_s": 23 * 86400,
            "link": {"name": "enp1s0", "address": "10.0.0.2", "speed_mbit": 10000, "mtu": 1500},
            "gpus": list(cards),
            "nvidia": {"state": "ok" if cards else "absent", "driver": "580.95.05" if cards else None, "message": ""},
            "reboot": [],
            "disks": [{"mount": "/", "size_mib": 900000, "free_mib": 500000}],
            "storage": {"host": host, "directories": [], "users": [], "projects": []},
            "tailnet": [],
            "gitops": None,
            "slurm": None,
            **more,
        }
    }


def silent(words: str = "ssh: connect to host 10.0.0.5 port 22: No route to host") -> dict[str, Any]:
    """What Ansible has of a host that gives no answer."""
    return {"unreachable": True, "msg": words, "changed": False}


def job(number: str, user: str, name: str, state: str = "running", **more: Any) -> dict[str, Any]:
    """A job as the module tells of it."""
    waits = {"time": "0:00", "where": "Resources"} if state == "pending" else {"time": "2:10:07", "where": "node1"}
    return {"id": number, "user": user, "name": name, "state": state, "gpus": 1, "cards": {}, **waits, **more}


def slurm_node(
    name: str, state: str, kind: str, total: int, cards: Sequence[int] = (), reason: str = ""
) -> dict[str, Any]:
    """A node as Slurm has it."""
    gpus = [{"type": kind, "used": len(cards), "total": total}]
    return {"name": name, "state": state, "reason": reason, "gpus": gpus, "cards": list(cards)}


def lab_of(hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> Lab:
    """A lab without files."""
    return Lab((Path("/nowhere/lab"),), hosts, {name: tuple(members) for name, members in groups.items()})


def closet() -> tuple[Lab, Answers, dict[str, Any]]:
    """A closet on a busy afternoon: one machine is off, one drained, one waits for a restart, a circuit is short."""
    workers = ["node1", "node2", "node3", "node4"]
    circuits = [
        {"name": "wall", "volts": 230, "amps": 16, "nodes": ["head", "node1", "node2"]},
        {"name": "window", "volts": 230, "amps": 13, "nodes": ["node3", "node4"]},
    ]
    hosts = {host: {"lab_circuits": circuits, "lab_base_watts": 150} for host in ["head", *workers]}
    groups = {"lab_head": ["head"], "lab_workers": workers}
    groups |= {name: ["head"] for name in ("nfs_server", "slurm_controller", "slurm_database", "slurm_login")}
    queue = [
        job("4171", "ada", "vit-large-pretrain", gpus=4, cards={"node1": [0, 1, 2, 3]}, time="1-02:04:11"),
        job("4189", "ben", "debug", where="node2", cards={"node2": [1]}, time="0:12:40"),
        job("4190", "grace", "diffusion-sweep", where="node2", cards={"node2": [0]}, time="3:40:02"),
        job("4192_[3-8]", "grace", "diffusion-sweep", "pending"),
        job("4193", "noor", "llm-eval", "pending", gpus=4, where="Priority"),
    ]
    nodes = [
        slurm_node("node1", "allocated", "a100_80gb", 4, [0, 1, 2, 3]),
        slurm_node("node2", "mixed", "rtx_4090", 4, [0, 1]),
        slurm_node("node3", "idle+drain", "rtx_4090", 4, reason="GPU 2 fell off the bus"),
        slurm_node("node4", "down*+not_responding", "rtx_a6000", 2),
    ]
    quota = {"soft": 500 * GIB, "hard": 600 * GIB, "over_since": None, "directories": ["/home"]}
    used = {"ada": 520, "ben": 77, "grace": 301, "noor": 12}
    people = [
        {**quota, "name": name, "uid": 2001, "used": size * GIB, "over_since": 1 if size > 500 else None}
        for name, size in used.items()
    ]
    directory = {"mounted": True, "user_quotas": ENFORCED, "project_quotas": ENFORCED, "filesystem": "/srv"}
    storage = {
        "host": "head",
        "directories": [
            {**directory, "path": "/home", "size": 4000 * GIB, "free": 2890 * GIB},
            {**directory, "path": "/data", "size": 40000 * GIB, "free": 9100 * GIB},
            {**directory, "path": "/checkpoints", "size": 16000 * GIB, "free": 1100 * GIB},
        ],
        "users": people,
        "projects": [
            {
                "path": "/checkpoints/vision",
                "project": 1,
                "used": 870 * GIB,
                "soft": 0,
                "hard": 1000 * GIB,
                "over_since": None,
            }
        ],
    }
    names = [*hosts, "node9"]
    tailnet = [
        {"name": name, "dns_name": f"{name}.lab.ts.net", "address": f"100.64.0.{number}", "online": name != "node4"}
        for number, name in enumerate(names[:5], 1)
    ]
    slow = {"name": "eno1", "address": "10.0.0.1", "speed_mbit": 1000, "mtu": 1500}
    answers = {
        "head": answer(
            "head", link=slow, slurm={"nodes": nodes, "jobs": queue, "error": ""}, storage=storage, tailnet=tailnet
        ),
        "node1": answer(
            "node1", [gpu(n, use=use, degrees=c) for n, (use, c) in enumerate([(99, 71), (97, 78), (98, 74), (96, 69)])]
        ),
        "node2": answer(
            "node2",
            [gpu(n, "rtx_4090", use, c) for n, (use, c) in enumerate([(93, 66), (4, 41), (0, 33), (0, 32)])],
            reboot=["kernel 6.12.48+deb13-amd64 runs, 6.12.57+deb13-amd64 is installed"],
        ),
        "node3": answer("node3", [gpu(n, "rtx_4090", 0, 30 + n) for n in (0, 1, 3)], link=slow),
        "node4": silent(),
    }
    runs = [
        {
            "schema": 1,
            "started": "2026-03-02T15:58:10Z",
            "ended": "2026-03-02T16:00:02Z",
            "playbook": "labrack.infra.closet",
            "check": False,
            "tags": [],
            "limit": "",
            "commit": "4be1f06a9c0d1b2c3d4e5f60718293a4b5c6d7e8",
            "by": "grace",
            "rc": 0,
            "hosts": {
                "node2": {
                    "changed": 2,
                    "failed": "",
                    "unreachable": False,
                    "pending": [{"subject": "driver", "summary": "580.82.07 → 580.95.05", "disruption": "reboot"}],
                }
            },
            "roles": {},
        }
    ]
    gitops = {"time": "2026-03-02T16:55:00Z", "commit": "4be1f06", "result": "in_sync", "message": ""}
    answers["head"]["status"]["gitops"] = gitops
    drift = status.Drift(412, (("node3", "file /etc/chrony/chrony.conf: content changed"),))
    return lab_of(hosts, groups), answers, {"runs": runs, "drift": drift}


def desk() -> tuple[Lab, Answers, dict[str, Any]]:
    """One machine, shared without a scheduler."""
    process = {"pid": 4242, "name": "python3", "memory_mib": 30000, "user": "ada"}
    cards = [gpu(0, "rtx_4090", 98, 77, processes=[process]), gpu(1, "rtx_4090", None, None)]
    return lab_of({"desk": {}}, {"lab_head": ["desk"], "lab_workers": ["desk"]}), {"desk": answer("desk", cards)}, {}


def many(count: int = 50) -> tuple[Lab, Answers, dict[str, Any]]:
    """A head and many workers with eight cards each."""
    workers = [f"node{number:02d}" for number in range(1, count)]
    groups = {"lab_head": ["head"], "lab_workers": workers, "slurm_controller": ["head"], "nfs_server": ["head"]}
    queue = [
        job(str(n), "ada", f"sweep-{n}", "running" if n % 3 else "pending", cards={workers[n % (count - 1)]: [n % 8]})
        for n in range(80)
    ]
    nodes = [slurm_node(name, "mixed", "a100_80gb", 8, [0, 1, 2]) for name in workers]
    answers = {"head": answer("head", slurm={"nodes": nodes, "jobs": queue, "error": ""})}
    for place, name in enumerate(workers):
        answers[name] = answer(
            name, [gpu(n, use=(place * 13 + n * 29) % 100, degrees=30 + (place * 7 + n * 11) % 60) for n in range(8)]
        )
    answers[workers[-1]] = silent()
    return lab_of({host: {} for host in answers}, groups), answers, {}


#: What somebody may call a job, a file or a node to see what happens.
HOSTILE = (
    "<script>document.title='taken'</script>",
    '"><img src=http://192.0.2.1/x onerror=alert(1)>',
    '\'; drop table "jobs" --',
    "{{ 7 * 7 }}{% raw %}",
    "[bold red]not bold[/]",
    "\x1b[31mred\x1b[0m\x07\rover",
    "a\nb\u202eright to left\u2028",
    "x" * 300,
    "&lt;b&gt; &amp;",
)


def hostile() -> tuple[Lab, Answers, dict[str, Any]]:
    """A lab in which every text is one of :data:`HOSTILE`."""
    queue = [job(str(n), text, text, ("running", "pending")[n % 2], where=text) for n, text in enumerate(HOSTILE)]
    hosts = {f"n{number}{text}": {} for number, text in enumerate(HOSTILE)}
    names = list(hosts)
    circuits = [{"name": HOSTILE[0], "volts": 230, "amps": 16, "nodes": names}]
    answers = {
        name: answer(name, [gpu(0, text)], os=text, kernel=text, reboot=[text], link=None)
        for name, text in zip(names, HOSTILE, strict=True)
    }
    answers[names[0]]["status"]["slurm"] = {
        "nodes": [slurm_node(names[0], "idle+drain", "x", 1, reason=HOSTILE[1])],
        "jobs": queue,
        "error": "",
    }
    answers[names[-1]] = silent(HOSTILE[1])
    groups = {"lab_head": names[:1], "lab_workers": names[1:], "slurm_controller": names[:1]}
    gitops = {"time": HOSTILE[0], "commit": HOSTILE[1], "result": HOSTILE[0], "message": HOSTILE[5]}
    answers[names[0]]["status"]["gitops"] = gitops
    return lab_of({name: {"lab_circuits": circuits} for name in hosts}, groups), answers, {}


LABS = {"closet": closet, "desk": desk, "many": many, "hostile": hostile}


def seen(which: str) -> status.Status:
    """The status of one of :data:`LABS`."""
    lab, answers, known = LABS[which]()
    return status.assemble(lab, answers, which, now=NOW, **known)


def screen(which: str, width: int) -> str:
    """What is printed of one of :data:`LABS` where there is no terminal."""
    output = io.StringIO()
    Console(file=output, width=width, highlight=False).print(status.render(seen(which)))
    # a table fills its columns
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())


def main() -> None:
    """Write the screens and the picture."""
    SCREENS.mkdir(exist_ok=True)
    for which in ("closet", "desk", "hostile"):
        for width in WIDTHS:
            (SCREENS / f"{which}-{width}.txt").write_text(screen(which, width), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "status.html"
        file.write_text(page.render(seen("closet")), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,1480"]
        picture = f"--screenshot={ROOT / 'docs/status.png'}"
        subprocess.run(["chromium", *options, picture, file.as_uri()], check=True, timeout=60)


if __name__ == "__main__":
    main()
