"""Event loops in which Ctrl-C cancels what runs, and breaks nothing else.

asyncio's own answer to SIGINT is to cancel as well, which undoes an operation. But only while a coroutine runs, and
only once: at any other moment, and the second time, KeyboardInterrupt is raised wherever the program is. Half a loop
is left then, or a connection that is closed twice, and asyncio complains of it when the program ends.

Source: asyncio, ``Runner.run``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Self, TypeVar

_T = TypeVar("_T")
#: What has not ended so long after the first SIGINT is left by the next one, in whatever state it is.
_PATIENCE_S = 3.0


class _Interrupts:
    """SIGINT while a block runs: ``came`` says that there was one, ``then`` is called each time."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.came = False
        self._then = then
        self._first_s = 0.0

    def __call__(self, _number: int, _frame: object) -> None:
        now_s = time.monotonic()
        if self.came and now_s - self._first_s > _PATIENCE_S:
            raise KeyboardInterrupt
        if not self.came:
            self.came, self._first_s = True, now_s
        self._then()


@contextlib.contextmanager
def _answered(then: Callable[[], object]) -> Iterator[_Interrupts]:
    """Have SIGINT call ``then`` in the block, unless it is the caller's: another handler, or not the main thread."""
    interrupts = _Interrupts(then)
    with contextlib.ExitStack() as stack:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # ValueError: only the main thread hears of signals.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, interrupts)
                stack.callback(signal.signal, signal.SIGINT, signal.default_int_handler)
        yield interrupts


class Runner:
    """Runs coroutines one after the other on one loop, which is closed at the end of the block."""

    def __init__(self) -> None:
        self._made = asyncio.Runner()
        self._interrupted = False

    def __enter__(self) -> Self:
        with _answered(self._note):
            self._made.get_loop()
        return self

    def __exit__(self, *_error: object) -> None:
        with _answered(self._note):
            self._made.close()

    def _note(self) -> None:
        self._interrupted = True

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine and return what it returns; SIGINT cancels it, and KeyboardInterrupt is raised.

        One that ends all the same has its result returned, and the next one is not begun.
        """
        if self._interrupted:
            work.close()
            raise KeyboardInterrupt
        loop = self._made.get_loop()
        task = loop.create_task(work)
        with _answered(lambda: loop.call_soon_threadsafe(task.cancel)) as interrupts:
            try:
                return loop.run_until_complete(task)
            except asyncio.CancelledError:
                if not interrupts.came:
                    raise
            finally:
                self._interrupted |= interrupts.came
        raise KeyboardInterrupt

    def end(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine that closes something, whatever came before; SIGINT waits for it."""
        with _answered(self._note):
            self._made.get_loop().run_until_complete(work)


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on a loop of its own and return what it returns."""
    try:
        with Runner() as runner:
            return runner.run(work)
    finally:
        # One that was interrupted before it began has not run.
        work.close()
