"""The event loop's side of the scheduling: begins work when the scheduler says so, and tells it what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Collection

from hvext.core.schedule import Pace, Scheduler
from hvext.core.value import value_object


@value_object
class Outcome:
    """What came of a try: whether it is ``done`` (else it is repeated), and whether its server ``answered``.

    None: that is not known.
    """

    done: bool
    answered: bool | None = None


#: One try; it catches its own errors: what it raises counts as a try that failed, and is handed to ``on_error``.
Work = Callable[[], Awaitable[Outcome]]


class Dispatcher:
    """Runs work at the scheduler's pace; work has a key, and there is one of a key at a time.

    Without ``repeat`` each has one try.
    """

    def __init__(
        self,
        pace: Pace,
        chance: Callable[[], float],
        on_error: Callable[[str, Exception], None],
        *,
        repeat: bool = True,
    ) -> None:
        self._repeat = repeat
        self._scheduler = Scheduler(pace, chance)
        self._on_error = on_error
        self._work: dict[str, Work] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    def has(self, key: str) -> bool:
        """Whether work of this key is under way or waits."""
        return key in self._work

    async def settled(self, keys: Collection[str]) -> None:
        """Return when no work of these keys is under way or waits."""
        while any(key in self._work for key in keys):
            await self._ended.wait()

    def want(self, key: str, server: str, work: Work, *, connections: int = 1, urgent: bool = True) -> None:
        """Enter work that connects to ``server``; work of this key that is there already stays."""
        if key not in self._work:
            self._work[key] = work
            self._scheduler.want(key, server, self._now, connections=connections, urgent=urgent)
            self._changed.set()

    def forget(self, key: str) -> None:
        """Take out work that only waits; what is under way goes on."""
        if key in self._work and key not in self._tasks:
            del self._work[key]
            self._scheduler.drop(key)
            self._changed.set()

    def hurry(self) -> None:
        """Let all that waits for a next try be due now."""
        self._scheduler.hurry(self._now)
        self._changed.set()

    async def run(self) -> None:
        """Begin work when its time has come, until cancelled."""
        while True:
            self._changed.clear()
            while (key := self._scheduler.begin(self._now)) is not None:
                self._tasks[key] = asyncio.create_task(self._try(key), name=key)
            wait_s = self._scheduler.next_at() - self._now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(wait_s) else max(wait_s, 0)):
                    await self._changed.wait()

    async def end(self, grace_s: float) -> None:
        """Let what is under way finish within ``grace_s``, and have it undone after that; nothing else begins."""
        for key in [key for key in self._work if key not in self._tasks]:
            self.forget(key)
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _try(self, key: str) -> None:
        outcome = Outcome(done=True)
        try:
            outcome = await self._work[key]()
        except Exception as error:
            # The work of one guest must not end that of the others.
            outcome = Outcome(done=False)
            self._on_error(key, error)
        finally:
            del self._tasks[key]
            if outcome.done or not self._repeat:
                del self._work[key]
                self._scheduler.finished(key, self._now, answered=outcome.answered)
            else:
                self._scheduler.failed(key, self._now, answered=outcome.answered)
            self._changed.set()
            # Wakes all who wait just now, and nobody who comes later.
            self._ended.set()
            self._ended.clear()
