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
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Self, TypeVar

from hvext.host import patience

_T = TypeVar("_T")


class _Interrupts:
    """SIGINT while a block runs: ``came`` says that there was one, ``then`` is called each time."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.came = False
        self._then = then

    def __call__(self, _number: int, _frame: object) -> None:
        if self.came and not patience.follows():
            raise KeyboardInterrupt
        if not self.came:
            patience.follows()
        self.came = True
        self._then()


@contextlib.contextmanager
def _answered(then: Callable[[], object]) -> Iterator[_Interrupts]:
    """Have SIGINT call ``then`` in the block, unless it is the caller's: another handler, or not the main thread."""
    interrupts = _Interrupts(then)
    before = signal.getsignal(signal.SIGINT)
    with contextlib.ExitStack() as stack:
        if before in (signal.default_int_handler, patience.interrupt):
            # ValueError: only the main thread hears of signals.
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, interrupts)
                stack.callback(signal.signal, signal.SIGINT, before)
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

        That has the notes of what was cancelled as its arguments. A coroutine that ends all the same has its result
        returned, and the next one is not begun.
        """
        if self._interrupted:
            work.close()
            raise KeyboardInterrupt
        loop = self._made.get_loop()
        task = loop.create_task(work)
        with _answered(lambda: loop.call_soon_threadsafe(task.cancel)) as interrupts:
            try:
                return loop.run_until_complete(task)
            except asyncio.CancelledError as reason:
                if not interrupts.came:
                    raise
                notes = getattr(reason, "__notes__", ())
            finally:
                self._interrupted |= interrupts.came
        raise KeyboardInterrupt(*notes)

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
