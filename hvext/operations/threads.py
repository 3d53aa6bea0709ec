"""Blocking work (provider scripts) inside an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from hvext.errors import HvextError
from hvext.host.process import Cancel

_T = TypeVar("_T")


async def in_thread(work: Callable[[Cancel], _T]) -> _T:
    """Run ``work`` in a thread and return what it returns.

    When this is cancelled, the switch handed to ``work`` is thrown and the thread awaited, so that no script outlives
    the operation.
    """
    cancel = Cancel()
    task = asyncio.ensure_future(asyncio.to_thread(work, cancel))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancel.set()
        while not task.done():
            # Cancelled once more: the thread cannot be left alone all the same.
            with contextlib.suppress(HvextError, asyncio.CancelledError):
                await asyncio.shield(task)
        raise
