"""A real ``hvext watch`` for tests, and what it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvext.host import process

#: Far more than anything takes that goes well.
SAID_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watcher:
    """A watch that runs; what it says is in ``log``, a JSON object a line."""

    running: process.Running
    log: Path

    def notices(self) -> list[dict[str, Any]]:
        """Return all that it has said."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        # The last one may be half-written.
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def events(self, monitor: object = None) -> list[str]:
        """Return the events that it has said, of the guest with a monitor or of all."""
        return [notice["event"] for notice in self.notices() if monitor is None or notice["monitor"] == str(monitor)]

    def wait_for(
        self, event: str, *, monitor: object = None, times: int = 1, limit_s: float = SAID_S
    ) -> dict[str, Any]:
        """Return the notice with which an event was said so many times."""
        deadline = time.monotonic() + limit_s
        while True:
            found = [
                notice
                for notice in self.notices()
                if notice["event"] == event and (monitor is None or notice["monitor"] == str(monitor))
            ]
            if len(found) >= times:
                return found[times - 1]
            assert self.running.alive, f"the watch has ended; it said:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"it has not said {event!r}:\n{self.log.read_text()}"
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.running.pid, number)

    def end(self) -> int:
        """End it as a service manager does, and return its exit status."""
        self.signal(signal.SIGTERM)
        status = self.running.wait(SAID_S)
        assert status is not None, f"it does not end on SIGTERM:\n{self.log.read_text()}"
        assert "Traceback" not in self.log.read_text()
        return status


def watch_argv(words: Sequence[object]) -> list[str]:
    """Return the command line of a watch that says JSON."""
    return [sys.executable, "-m", "hvext", "watch", "--json", "--log-dir", "none", *map(str, words)]


def environment() -> dict[str, str]:
    """Return what the command needs of this process's environment: its path, and the tests' folders."""
    names = [name for name in os.environ if name.startswith("HVEXT_") or name in ("PATH", "HOME", "PYTHONPATH")]
    return {name: os.environ[name] for name in names}


@contextlib.contextmanager
def watching(tmp_path: Path, *words: object) -> Iterator[Watcher]:
    """Run ``hvext watch`` with these arguments in the block."""
    number = len(list(tmp_path.glob("watch*.log")))
    log = tmp_path / f"watch{number}.log"
    running = process.start(watch_argv(words), env=environment(), log_path=log)
    try:
        yield Watcher(running=running, log=log)
    finally:
        running.stop(grace_s=20)


def once(tmp_path: Path, *words: object) -> tuple[int, list[dict[str, Any]]]:
    """Run ``hvext watch --once`` and return its exit status and what it said."""
    done = process.run(watch_argv(["--once", *words]), env=environment(), timeout_s=120)
    assert not done.timed_out, done.stdout
    assert b"Traceback" not in done.stderr, done.stderr
    return done.status, [json.loads(line) for line in done.stdout.splitlines()]


def wait_until(what: Callable[[], bool], words: str, limit_s: float = SAID_S) -> None:
    """Wait until ``what`` holds; ``words`` say what that would be."""
    deadline = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline, words
        time.sleep(0.05)
