# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What several roles make of files and units."""

from __future__ import annotations

import pytest

from ansible_collections.labrack.infra.plugins.module_utils import systemd
from ansible_collections.labrack.infra.plugins.module_utils.change import Change
from ansible_collections.labrack.infra.plugins.module_utils.node_io import FileState
from ansible_collections.labrack.infra.plugins.module_utils.systemd import ServiceState, apply_steps, quoted, sandbox

UNIT = f"{systemd.UNITS}look.service"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the host was told, in order."""
    said: list[str] = []
    monkeypatch.setattr(systemd, "write_file", lambda path, file: said.append(f"write {path} {file.text}"))
    monkeypatch.setattr(systemd, "remove_file", lambda path: said.append(f"remove {path}"))
    monkeypatch.setattr(systemd, "daemon_reload", lambda: said.append("reload"))
    monkeypatch.setattr(systemd, "act", lambda verb, unit: said.append(f"{verb} {unit}"))
    installed = {"look.service": ServiceState(installed=True), "gone.service": ServiceState()}
    monkeypatch.setattr(systemd, "observe_services", lambda units: {unit: installed[unit] for unit in units})
    return said


def steps(*words: str) -> list[Change]:
    return [Change(word, "", step=tuple(word.split(" "))) for word in words]


def test_units_are_read_before_systemd_is_told_of_them(told: list[str]) -> None:
    files = {"/etc/a": FileState("1"), UNIT: FileState("2")}
    apply_steps(steps("write /etc/a", f"write {UNIT}", "enable look.timer", "restart look.timer"), files, {})
    assert told == ["write /etc/a 1", f"write {UNIT} 2", "reload", "enable look.timer", "restart look.timer"]


def test_units_that_went_are_read_at_the_end(told: list[str]) -> None:
    places: list[str] = []
    changes = steps("disable look.timer", f"remove {UNIT}", "rmtree /var/lib/look")
    apply_steps(changes, {}, {"rmtree": places.append})
    # a look that goes on would write its folder once more
    assert told == ["stop look.timer", "stop look.service", "disable look.timer", f"remove {UNIT}", "reload"]
    assert places == ["/var/lib/look"]


def test_a_timer_whose_service_is_gone_is_disabled(told: list[str]) -> None:
    apply_steps(steps("disable gone.timer", "remove /etc/a"), {}, {})
    assert told == ["stop gone.timer", "disable gone.timer", "remove /etc/a"]


def test_a_service_is_kept_in() -> None:
    lines = sandbox(ReadWritePaths="/srv", PrivateDevices=None).splitlines()
    assert {"ReadWritePaths=/srv", "CapabilityBoundingSet=", "ProtectSystem=strict"} <= set(lines)
    assert len(lines) == len(sandbox().splitlines()) - 1


def test_paths_in_unit_files() -> None:
    assert [quoted(path) for path in ("/a", "/a b", "/100%", '/a"')] == ["/a", '"/a b"', "/100%%", '/a\\"']
