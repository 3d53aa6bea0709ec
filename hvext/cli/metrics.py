"""What is measured, for Prometheus: printed or written once, and served by a watch."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from threading import Lock

from hvext.core.metrics import Family, vm_families
from hvext.errors import HvextError
from hvext.host import interrupts
from hvext.host.journal import JournalFolder
from hvext.host.metrics_page import page, serving, write_page
from hvext.operations.observe_host import HostObserver
from hvext.operations.records import check_names
from hvext.operations.watch import Watch

#: How long a page may take; Prometheus itself waits for ten seconds.
_PAGE_S = 8.0
#: Whoever asks within this time after another gets the same.
_FRESH_S = 1.0


def metrics(arguments: argparse.Namespace) -> int:
    """Print or write what is measured of all VMs of this host."""
    check_names(arguments.vm, JournalFolder())
    observer = HostObserver(names=arguments.vm, wait_s=arguments.wait)
    families = vm_families(interrupts.run(observer.observe()))
    if arguments.output:
        write_page(arguments.output, families)
    else:
        print(page(families), end="")
    return 0


@contextlib.contextmanager
def serve(watching: Watch, address: str, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Serve what a watch measures in the block; raises InputError, HvextError."""
    watching.count()
    source = _Source(watching, loop)
    with serving(address, source.families) as where:
        print(f"metrics are served at {where}", file=sys.stderr, flush=True)
        yield


class _Source:
    """What is asked by the threads of requests, and answered by the watch's event loop."""

    def __init__(self, watching: Watch, loop: asyncio.AbstractEventLoop) -> None:
        self._watching = watching
        self._loop = loop
        self._lock = Lock()
        self._last: Sequence[Family] = ()
        self._at = float("-inf")

    def families(self) -> Sequence[Family]:
        """Return what is measured now; what was measured last when the watch has too much to do, or ends."""
        with self._lock:
            if time.monotonic() - self._at > _FRESH_S:
                asked = asyncio.run_coroutine_threadsafe(self._watching.measure(), self._loop)
                with contextlib.suppress(TimeoutError, CancelledError, HvextError):
                    self._last = asked.result(_PAGE_S)
                    self._at = time.monotonic()
                asked.cancel()
            return self._last
