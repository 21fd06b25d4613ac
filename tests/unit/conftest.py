# Copyright: labrack contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""No test is timed: how long an example takes says more of the machine than of the code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")

# Ansible's loader of collections, once it is in a process, takes none that is found twice: installed, and by pytest
sys.path[:] = dict.fromkeys(sys.path)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path) -> Iterator[None]:
    """No test leaves a history in the home of whoever runs it, or settings of Ansible for the tests after it."""
    before = dict(os.environ)
    os.environ["XDG_STATE_HOME"] = str(tmp_path / "state")
    yield
    os.environ.clear()
    os.environ.update(before)
