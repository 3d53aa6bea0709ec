"""``hvext watch --once --dry-run``: a guest that an I/O error has stopped is looked at, and stays as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvext.core.disk import Disk
from hvext.operations.dry_run.unknown import OPEN
from tests.vm.state import on_debug_monitor, state_of
from tests.vm.test_watch import STOP, plugged, status, unplugged
from tests.vm.volume import kill_servers
from tests.watching import wait_until

if TYPE_CHECKING:
    from tests.vm.conftest import GuestFactory, Storage

pytestmark = [pytest.mark.vm, pytest.mark.nightly]


def test_what_a_watch_would_do_is_what_it_does_and_until_then_the_guest_waits(
    share: GuestFactory, storage: Storage, create: Callable[..., Disk], tmp_path: Path
) -> None:
    guest, disk = share(), create(**STOP)
    writer = plugged(guest, storage, disk)
    words = ["watch", "--once", "--qmp", str(guest.machine.qmp_path), "--log-dir", "none"]
    words += ["--search-path", ":".join(storage.host.search_path)]

    def run(*more: str) -> str:
        argv = [sys.executable, "-m", "hvext", *words, *more]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout

    (well,) = json.loads(run("--dry-run", "--json"))
    assert well["steps"] == []
    kill_servers(storage)
    wait_until(lambda: status(guest) == "io-error", "the guest stops")
    before: Any = state_of(guest.machine, storage.folder), on_debug_monitor(guest.machine, "query-block")
    (planned,) = json.loads(run("--dry-run", "--json"))
    assert (state_of(guest.machine, storage.folder), on_debug_monitor(guest.machine, "query-block")) == before
    assert status(guest) == "io-error"
    log = tmp_path / "log"
    run("--log-file", str(log), "--no-fail-back")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    done = [OPEN if "open /dev/loop" in each["step"] else each["step"] for each in told if each["event"] == "step"]
    asked, *steps = [step["step"] for step in planned["steps"]]
    assert asked.startswith("ask where")
    assert steps == done
    assert status(guest) == "running"
    unplugged(guest, storage, disk, writer)
