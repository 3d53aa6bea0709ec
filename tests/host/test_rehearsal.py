"""A look at storage is no process that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import need

_LOOK = """
import subprocess, sys, time
from hvext.operations.rehearsal import network_of
child = subprocess.Popen([*network_of(None), "sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_what_looks_at_storage_ends_when_hvext_is_killed() -> None:
    need("setpriv", "util-linux")
    with subprocess.Popen([sys.executable, "-c", _LOOK], stdout=subprocess.PIPE, text=True) as looking:
        assert looking.stdout is not None
        pid = int(looking.stdout.readline())
        deadline = time.monotonic() + 20
        while b"sleep\x00600" not in Path(f"/proc/{pid}/cmdline").read_bytes()[:10]:
            assert time.monotonic() < deadline, "it was never started"
            time.sleep(0.01)
        looking.kill()
        looking.wait()
        while _runs(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError("it outlived hvext")
            time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
