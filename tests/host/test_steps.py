"""Operations as steps: what is undone, in which order, and that nothing stops it half-way."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from hvext.core.value import replace
from hvext.errors import (
    CommandRefused,
    CommandTimeout,
    HvextError,
    MonitorError,
    OperationFailed,
    ScriptFailed,
    ScriptTimeout,
)
from hvext.host import interrupts
from hvext.host.process import Cancel
from hvext.operations.steps import Step, carry_out, tidy_up
from hvext.operations.threads import in_thread

SOON_S = 60.0


@dataclass(slots=True)
class Diary:
    """Steps that write down what is done and undone; single ones can be made to fail or to wait."""

    lines: list[str] = field(default_factory=list)

    def step(
        self,
        name: str,
        *,
        fails: BaseException | None = None,
        undo_fails: BaseException | None = None,
        waits: asyncio.Event | None = None,
        undo_waits: asyncio.Event | None = None,
        undo: bool = True,
    ) -> Step:
        return Step(
            name=name,
            do=self._work(name, fails, waits),
            undo=self._work(f"undo {name}", undo_fails, undo_waits) if undo else None,
        )

    def _work(
        self, words: str, fails: BaseException | None, waits: asyncio.Event | None
    ) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            self.lines.append(words)
            if waits is not None:
                await waits.wait()
                self.lines.append(f"{words} waited")
            if fails is not None:
                raise fails

        return work

    async def wait_for(self, line: str) -> None:
        async with asyncio.timeout(SOON_S):
            while line not in self.lines:  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.fixture
def diary() -> Diary:
    return Diary()


def refused() -> CommandRefused:
    return CommandRefused("device_add", {}, "GenericError", "no slot")


async def test_steps_are_done_in_order_and_each_is_reported_before_it_begins(diary: Diary) -> None:
    await carry_out(
        "plug", [diary.step("a"), diary.step("b")], report=lambda name: diary.lines.append(f"report {name}")
    )
    assert diary.lines == ["report a", "a", "report b", "b"]


async def test_a_refused_step_has_those_before_it_undone_in_reverse_and_itself_left_alone(diary: Diary) -> None:
    steps = [diary.step("a"), diary.step("b", undo=False), diary.step("c"), diary.step("d", fails=refused())]
    with pytest.raises(OperationFailed) as caught:
        await carry_out("plug v", [*steps, diary.step("e")])
    assert diary.lines == ["a", "b", "c", "d", "undo c", "undo a"]
    error = caught.value
    assert error.message == "cannot plug v: d: QEMU refused device_add: no slot; undone: c, a"
    assert (error.step, error.undone, error.left) == ("d", ("c", "a"), ())
    assert isinstance(error.__cause__, CommandRefused)


@pytest.mark.parametrize(
    "error", [CommandTimeout("no answer"), MonitorError("broke"), ScriptTimeout("after its limit")]
)
async def test_a_step_that_may_have_been_carried_out_is_undone_too(diary: Diary, error: HvextError) -> None:
    with pytest.raises(OperationFailed) as caught:
        await carry_out("plug", [diary.step("a"), diary.step("b", fails=error)])
    assert diary.lines == ["a", "b", "undo b", "undo a"]
    assert caught.value.undone == ("b", "a")


@pytest.mark.parametrize("error", [refused(), ScriptFailed("status 1", status=1)])
async def test_a_first_step_that_is_refused_leaves_nothing_to_undo(diary: Diary, error: HvextError) -> None:
    with pytest.raises(OperationFailed) as caught:
        await carry_out("plug", [diary.step("a", fails=error)])
    assert diary.lines == ["a"]
    assert "undone" not in caught.value.message


async def test_the_hint_of_the_failed_step_reaches_the_user(diary: Diary) -> None:
    with pytest.raises(OperationFailed) as caught:
        await carry_out("plug", [diary.step("a", fails=HvextError("no", hint="try that"))])
    assert caught.value.hint == "try that"


@pytest.mark.parametrize("second", [HvextError("device is busy"), KeyError("surprise")])
async def test_what_cannot_be_undone_is_told_and_the_rest_is_undone_all_the_same(
    diary: Diary, second: Exception
) -> None:
    steps = [diary.step("a"), diary.step("b", undo_fails=second), diary.step("c"), diary.step("d", fails=refused())]
    with pytest.raises(OperationFailed) as caught:
        await carry_out("plug", steps)
    assert diary.lines[-3:] == ["undo c", "undo b", "undo a"]
    assert caught.value.undone == ("c", "a")
    words = "device is busy" if isinstance(second, HvextError) else "KeyError('surprise')"
    assert caught.value.left == (f"b ({words})",)
    assert f"NOT undone: b ({words})" in caught.value.message
    assert caught.value.to_json()["left"] == [f"b ({words})"]


async def test_a_cancelled_operation_is_undone_with_the_step_it_was_in(diary: Diary) -> None:
    steps = [diary.step("a"), diary.step("b", waits=asyncio.Event()), diary.step("c")]
    task = asyncio.ensure_future(carry_out("plug", steps))
    await diary.wait_for("b")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["a", "b", "undo b", "undo a"]


async def test_cancelling_again_and_again_does_not_stop_the_undoing(diary: Diary) -> None:
    slow = asyncio.Event()
    steps = [diary.step("a"), diary.step("b", undo_waits=slow), diary.step("c", waits=asyncio.Event())]
    task = asyncio.ensure_future(carry_out("plug", steps))
    await diary.wait_for("c")
    task.cancel()
    await diary.wait_for("undo b")
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    slow.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["a", "b", "c", "undo c", "undo b", "undo b waited", "undo a"]


async def test_cancelling_while_a_failure_is_undone_does_not_stop_the_undoing(diary: Diary) -> None:
    slow = asyncio.Event()
    steps = [diary.step("a"), diary.step("b", undo_waits=slow), diary.step("c", fails=refused())]
    task = asyncio.ensure_future(carry_out("plug", steps))
    await diary.wait_for("undo b")
    task.cancel()
    await asyncio.sleep(0)
    slow.set()
    with pytest.raises(OperationFailed):
        await task
    assert diary.lines[-1] == "undo a"


async def test_a_callers_time_limit_undoes_what_was_begun(diary: Diary) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await carry_out("plug", [diary.step("a"), diary.step("b", waits=asyncio.Event())])
    assert diary.lines == ["a", "b", "undo b", "undo a"]


async def test_a_bug_in_a_step_undoes_everything_and_is_not_hidden(diary: Diary) -> None:
    with pytest.raises(ZeroDivisionError):
        await carry_out("plug", [diary.step("a"), diary.step("b", fails=ZeroDivisionError())])
    assert diary.lines == ["a", "b", "undo b", "undo a"]


async def test_a_report_that_cannot_be_written_leaves_nothing_half_done(diary: Diary) -> None:
    def report(name: str) -> None:
        if name == "b":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await carry_out("plug", [diary.step("a"), diary.step("b")], report=report)
    assert diary.lines[-1] == "undo a"


# --- Blocking work ---------------------------------------------------------------------------------------------------


async def test_blocking_work_returns_its_result_and_raises_its_error() -> None:
    assert await in_thread(lambda cancel: cancel.is_set) is False

    def fail(_cancel: Cancel) -> None:
        raise HvextError("no")

    with pytest.raises(HvextError, match="no"):
        await in_thread(fail)


async def test_the_event_loop_goes_on_while_a_script_runs() -> None:
    gate = threading.Event()
    task = asyncio.ensure_future(in_thread(lambda _cancel: gate.wait(SOON_S)))
    await asyncio.sleep(0.01)
    gate.set()
    assert await task is True


async def test_a_cancelled_operation_waits_for_its_script_however_often_it_is_cancelled() -> None:
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()
    seen: list[Cancel] = []

    def work(cancel: Cancel) -> None:
        seen.append(cancel)
        begun.set()
        gate.wait(SOON_S)
        ended.set()
        raise HvextError("the script was ended")

    task = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(begun.wait, SOON_S)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    assert seen[0].is_set
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works, even where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_a_script_ends_it_and_undoes_the_steps_before(diary: Diary) -> None:
    """As ``open_vm`` runs operations."""

    def work(cancel: Cancel) -> None:
        deadline = time.monotonic() + SOON_S
        while not cancel.is_set:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise ScriptTimeout("was ended because the operation was cancelled")

    async def operation() -> None:
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
        await carry_out("plug", [diary.step("a"), Step(name="script", do=lambda: in_thread(work))])

    with interrupts.Runner() as runner, pytest.raises(KeyboardInterrupt, match="what was begun was undone"):
        runner.run(operation())
    assert diary.lines == ["a", "undo a"]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("one_way", [False, True])
def test_an_interrupt_says_that_all_was_undone_only_when_it_was(diary: Diary, one_way: bool) -> None:
    async def operation() -> None:
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
        await carry_out("unplug", [replace(diary.step("ask"), one_way=one_way), Step(name="wait", do=forever)])

    with pytest.raises(KeyboardInterrupt) as interrupted:
        interrupts.run(operation())
    assert interrupted.value.args == (() if one_way else ("what was begun was undone",))


@pytest.mark.usefixtures("interruptible")
def test_the_last_step_of_what_is_done_is_done_to_its_end_and_the_result_told(diary: Diary) -> None:
    async def close() -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.05)
        diary.lines.append("closed")

    async def operation() -> str:
        await carry_out("move", [diary.step("switch")])
        await tidy_up("finish the move", Step(name="close", do=close, one_way=True), leaves=[])
        return "moved"

    assert interrupts.run(operation()) == "moved"
    assert diary.lines == ["switch", "closed"]


async def forever() -> None:
    await asyncio.Event().wait()
