# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every configuration that the role makes is one that a real headscale takes, and has no key that it doesn't know."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.labrack.infra.plugins.module_utils import headscale_plan as planner
from ansible_collections.labrack.infra.plugins.modules.headscale import ARGUMENT_SPEC
from tests.tailnet import binaries

CHOICES = list(
    itertools.product(("certificate", "acme", "none"), ("embedded", "tailscale", "both"), ([], ["192.168.1.1"]))
)


@pytest.fixture(scope="module")
def programs() -> Path:
    try:
        return binaries.ensure(print)
    except binaries.NoBinariesError as error:
        pytest.skip(f"headscale can't be built: {error}")


def names(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of a mapping at any depth, with dots between them."""
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from names(value, f"{prefix}{key}.")


def params(**changed: Any) -> dict[str, Any]:
    made = {name: option.get("default", "") for name, option in ARGUMENT_SPEC.items()}
    lab = {"url": "https://control.lab.test", "base_domain": "tailnet.test", "tls_cert": "/a.crt", "tls_key": "/a.key"}
    return {**made, "version": binaries.HEADSCALE, **lab, **changed}


def configtest(programs: Path, config: Mapping[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "config.yaml"
    path.write_text(planner.trial(config, str(folder)), encoding="utf-8")
    argv = [str(programs / "bin/headscale"), "--config", str(path), "configtest"]
    return subprocess.run(argv, capture_output=True, text=True)


@pytest.mark.parametrize(("tls", "derp", "nameservers"), CHOICES)
def test_headscale_takes_it(tls: str, derp: str, nameservers: list[str], programs: Path, tmp_path: Path) -> None:
    config = planner.read_wanted(params(tls=tls, derp=derp, nameservers=nameservers)).config
    example = yaml.safe_load((programs / "headscale/config-example.yaml").read_text(encoding="utf-8"))
    assert set(names(config)) <= set(names(example))
    done = configtest(programs, config, tmp_path)
    assert done.returncode == 0, done.stderr


def test_headscale_refuses_what_it_should(programs: Path, tmp_path: Path) -> None:
    config = planner.read_wanted(params(settings={"prefixes": {"v4": "", "v6": ""}})).config
    assert configtest(programs, config, tmp_path).returncode != 0
