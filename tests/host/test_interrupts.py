"""Ctrl-C at any moment of a loop: what runs is cancelled, and nothing is broken."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from hvext.host import interrupts, patience


@pytest.fixture(autouse=True)
def default_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(patience, "follows", patience._Patience().follows)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


async def interrupted(undone: list[str]) -> None:
    """An operation that takes its time to be undone, and is interrupted again meanwhile."""
    try:
        asyncio.get_running_loop().call_later(0.01, interrupt)
        await asyncio.sleep(60)
    finally:
        interrupt()
        undone.append("undone")


def test_what_runs_is_cancelled_and_the_second_interrupt_does_not_break_its_undoing() -> None:
    undone: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupts.run(interrupted(undone))
    assert undone == ["undone"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_ends_all_the_same_has_its_result_told_and_the_next_one_is_not_begun() -> None:
    begun: list[str] = []

    async def first() -> str:
        interrupt()
        return "done"

    async def second() -> None:
        begun.append("begun")

    with interrupts.Runner() as runner:
        assert runner.run(first()) == "done"
        with pytest.raises(KeyboardInterrupt):
            runner.run(second())
    assert begun == []


def test_an_interrupt_waits_for_what_closes_a_connection() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def inner() -> AsyncIterator[None]:
        try:
            yield
        finally:
            interrupt()
            await asyncio.sleep(0.01)
            steps.append("inner")

    @asynccontextmanager
    async def outer() -> AsyncIterator[None]:
        async with inner():
            try:
                yield
            finally:
                steps.append("outer")

    opening = outer()
    with interrupts.Runner() as runner:
        runner.run(opening.__aenter__())
        runner.end(opening.gen.aclose())
    assert steps == ["outer", "inner"]


def test_what_does_not_end_is_left_by_an_interrupt_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.05)

    async def stubborn() -> None:
        loop = asyncio.get_running_loop()
        for when in (0.01, 0.02, 0.2):
            loop.call_later(when, interrupt)
        while loop.time() < began + 60:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                if loop.time() > began + 0.2:
                    raise

    with interrupts.Runner() as runner:
        began = asyncio.run(_now())
        with pytest.raises(KeyboardInterrupt):
            runner.run(stubborn())


async def _now() -> float:
    return asyncio.get_running_loop().time()


def test_a_thread_that_hears_of_no_signals_runs_a_loop_as_well() -> None:
    answers: list[float] = []
    thread = threading.Thread(target=lambda: answers.append(interrupts.run(_now())))
    thread.start()
    thread.join(10)
    assert answers


def test_who_tidies_up_is_not_interrupted_again_by_one_that_follows_soon() -> None:
    signal.signal(signal.SIGINT, patience.interrupt)
    tidied: list[str] = []

    def work() -> None:
        try:
            interrupt()
        finally:
            interrupt()
            tidied.append("by hand")
            interrupts.run(_tidy(tidied))

    with pytest.raises(KeyboardInterrupt):
        work()
    assert tidied == ["by hand", "on a loop"]


async def _tidy(tidied: list[str]) -> None:
    await asyncio.sleep(0)
    tidied.append("on a loop")
