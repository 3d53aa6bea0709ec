from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm.state import state_of

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, Storage

pytestmark = pytest.mark.vm
PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_example_for_hypervisor_layers_runs_as_printed(share: GuestFactory, storage: Storage) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    assert 25 <= len(example.splitlines()) <= 40
    guest = share()
    before = state_of(guest.machine, storage.folder)
    ran = subprocess.run(
        [sys.executable, "-c", example, str(guest.machine.qmp_path), str(storage.folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    plugged, moved, resized, sizes, *_waiting = ran.stdout.splitlines()
    assert "by userspace, because" in plugged
    assert moved.startswith("/dev/loop")
    assert resized == str(96 << 20)
    assert sizes == f"[{96 << 20}]"
    assert state_of(guest.machine, storage.folder) == before
