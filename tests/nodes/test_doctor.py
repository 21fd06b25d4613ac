from __future__ import annotations

from pathlib import Path

from tests.nodes.harness import Closet


def test_playbook(converged: Closet, tmp_path: Path) -> None:
    run = converged.play("labrack.infra.doctor", doctor_file="/tmp/docbench/doctor.json")
    print(run.output)
