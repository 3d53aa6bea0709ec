"""Blocking work (provider scripts) inside an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from hvext.errors import HvextError
from hvext.host.process import Cancel

_T = TypeVar("_T")
#: The threads wait for scripts. asyncio's own pool has a few for each processor: sixteen slow scripts would take turns.
_pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="hvext")


async def in_thread(work: Callable[[Cancel], _T]) -> _T:
    """Run ``work`` in a thread and return what it returns.

    When this is cancelled, the switch handed to ``work`` is thrown and the thread awaited, so that no script outlives
    the operation.
    """
    cancel = Cancel()
    # With its context: what is told in the thread is part of the operation.
    task = asyncio.get_running_loop().run_in_executor(_pool, copy_context().run, work, cancel)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancel.set()
        while not task.done():
            # Cancelled once more: the thread cannot be left alone all the same.
            with contextlib.suppress(HvextError, asyncio.CancelledError):
                await asyncio.shield(task)
        raise
