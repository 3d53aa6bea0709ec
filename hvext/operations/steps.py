"""Operations as lists of steps with inverses.

When a step fails, the steps before it are undone in reverse order, and the error tells both. A step that QEMU or a
script clearly refused changed nothing; one whose outcome is unknown (no answer, a broken connection, an interrupt) is
undone as well. So every ``undo`` must succeed when there is nothing to undo.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

from hvext.core.disk import Disk
from hvext.core.value import value_object
from hvext.errors import CommandTimeout, HvextError, OperationFailed
from hvext.operations.outcome import Report as Report
from hvext.operations.outcome import may_have_done as may_have_done
from hvext.operations.outcome import silent as silent
from hvext.operations.telling import around, named, telling


@value_object
class Step:
    """One step: ``name`` says in words what ``do`` does; ``undo`` takes it back (None: there is nothing to undo).

    ``inverse`` says in words what ``undo`` does, for who asks before anything is done (``hvext.operations.dry_run``);
    a ``one_way`` step has none, and what it does cannot be undone. ``check`` raises what speaks against the step where
    that can be told without doing anything.
    ``carries_later`` says that later steps stand on this one: it is undone only when all of them could be.
    ``happened`` asks QEMU whether the step was done, for when its answer did not come in time. Steps of one ``phase``
    stand together in a list, and are done at the same time as those of other lists by ``carry_out_all``.
    """

    name: str
    do: Callable[[], Awaitable[object]]
    undo: Callable[[], Awaitable[object]] | None = None
    carries_later: bool = False
    happened: Callable[[], Awaitable[bool]] | None = None
    phase: str = ""
    inverse: str = ""
    one_way: bool = False
    check: Callable[[], object] | None = None


#: What is noted on the interrupt of an operation of which nothing is left.
UNDONE = "what was begun was undone"


def check_steps(operation: str, steps: Sequence[Step]) -> None:
    """Raise OperationFailed, as ``carry_out`` would, for the first step of which it is known that it would fail."""
    for step in steps:
        try:
            if step.check is not None:
                step.check()
        except HvextError as error:
            raise _failure(operation, step, error, (), ()) from error


async def carry_out(operation: str, steps: Sequence[Step], *, report: Report = silent) -> None:
    """Do the steps in order.

    Raises OperationFailed, caused by the step's own error, after everything done before was undone; an interrupt is
    passed on after the same, unless something could not be undone: that is an OperationFailed as well.
    """
    done: list[Step] = []
    for step in steps:
        try:
            report(step.name)
            await _do(step)
        except asyncio.CancelledError as reason:
            undone, left = await _undo_all([*done, step])
            if left:
                raise _failure(operation, step, HvextError("interrupted"), undone, left) from reason
            if not any(each.one_way for each in (*done, step)):
                reason.add_note(UNDONE)
            raise
        except HvextError as error:
            undone, left = await _undo_all([*done, step] if may_have_done(error) else done)
            raise _failure(operation, step, error, undone, left) from error
        except BaseException:
            await _undo_all([*done, step])
            raise
        done.append(step)


#: How many jobs are at work at the same time: some of their steps start processes.
_SIDE_BY_SIDE = 64


@value_object
class Job:
    """One of several operations that are carried out side by side; its steps have phases. ``disk`` is what is told."""

    operation: str
    steps: Sequence[Step]
    disk: Disk | None = None


#: Called when a phase begins, with the names of the steps of each job that has a part in it, by its place in the list.
ReportPhase = Callable[[str, Mapping[int, str]], None]


async def carry_out_all(
    jobs: Sequence[Job], phases: Sequence[str], *, report: ReportPhase
) -> list[OperationFailed | None]:
    """Do the steps of several jobs side by side, one phase after the other; return what each failed with.

    A job that fails is undone, and the others go on. When ``report`` fails (nothing may be done that is not written
    down), all jobs that have a part in the phase fail. An interrupt is passed on after all jobs were undone; what could
    not be undone then is in an OperationFailed instead.
    """
    room = asyncio.Semaphore(_SIDE_BY_SIDE)
    running = {number: _Running(job, room) for number, job in enumerate(jobs)}
    try:
        for phase in phases:
            there = {
                number: (each, steps)
                for number, each in running.items()
                if each.failure is None and (steps := [step for step in each.job.steps if step.phase == phase])
            }
            if not there:
                continue
            try:
                report(phase, {number: ", ".join(step.name for step in steps) for number, (_, steps) in there.items()})
            except HvextError as error:
                for each, steps in there.values():
                    await each.fail(steps[0], error)
                continue
            async with asyncio.TaskGroup() as group:
                for each, steps in there.values():
                    group.create_task(each.do(steps))
    except BaseException as reason:
        left = [words for each in await asyncio.gather(*(each.undo() for each in running.values())) for words in each]
        if left and isinstance(reason, asyncio.CancelledError):
            words = f"interrupted; NOT undone: {', '.join(left)}"
            raise OperationFailed(words, step="interrupted", left=left) from reason
        raise
    return [each.failure for each in running.values()]


class _Running:
    """A job under way: the steps that were done, or may have been."""

    def __init__(self, job: Job, room: asyncio.Semaphore) -> None:
        self.job = job
        self.failure: OperationFailed | None = None
        self._done: list[Step] = []
        self._room = room
        self._names = named([job.disk]) if job.disk else {}

    async def do(self, steps: Sequence[Step]) -> None:
        async with self._room:
            await self._do(steps)

    async def _do(self, steps: Sequence[Step]) -> None:
        for step in steps:
            # An interrupt leaves it as one that may have been done.
            self._done.append(step)
            try:
                with around(**self._names):
                    await _do(step)
            except HvextError as error:
                if not may_have_done(error):
                    self._done.pop()
                await self.fail(step, error)
                return

    async def fail(self, step: Step, error: HvextError) -> None:
        done, self._done = self._done, []
        with around(**self._names):
            undone, left = await _undo_all(done)
        self.failure = _failure(self.job.operation, step, error, undone, left)
        self.failure.__cause__ = error

    async def undo(self) -> list[str]:
        """Undo what was done; return what could not be undone."""
        if self.failure is not None:
            return list(self.failure.left)
        done, self._done = self._done, []
        return (await _undo_all(done))[1]


async def tidy_up(operation: str, step: Step, *, leaves: Sequence[str], report: Report = silent) -> None:
    """Do the last step of an operation that is done already: when it fails, nothing is taken back.

    It is done to its end also when it is interrupted. Raises OperationFailed with ``leaves``, which is what the step
    should have removed, among what is left.
    """
    try:
        await _to_the_end(carry_out(operation, [step], report=report))
    except OperationFailed as error:
        left = [*error.left, *leaves]
        raise OperationFailed(error.message, step=error.step, left=left, hint=error.hint) from error.__cause__


async def _do(step: Step) -> None:
    """Do a step; one whose answer did not come in time is done when QEMU says so, once it answers again."""
    with telling("step", step=step.name):
        try:
            await step.do()
        except CommandTimeout:
            if step.happened is None or not await step.happened():
                raise


async def _undo_all(steps: Sequence[Step]) -> tuple[list[str], list[str]]:
    """Undo in reverse order, to the end even if interrupted; return what was undone and what was not."""
    undone: list[str] = []
    left: list[str] = []

    async def work() -> None:
        for step in reversed(steps):
            if step.undo is None:
                continue
            if step.carries_later and left:
                left.append(f"{step.name} (kept, because of what else is left)")
                continue
            try:
                with telling("undo", step=step.name):
                    await step.undo()
            except Exception as error:
                # Whatever one step's undo stumbles over, the others still have to be undone.
                left.append(f"{step.name} ({error.message if isinstance(error, HvextError) else repr(error)})")
            else:
                undone.append(step.name)

    await _to_the_end(work())
    return undone, left


async def _to_the_end(work: Coroutine[object, None, None]) -> None:
    """Await something that no interrupt ends."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
        except BaseException:
            break
    task.result()


def _failure(
    operation: str, step: Step, error: HvextError, undone: Sequence[str], left: Sequence[str]
) -> OperationFailed:
    if isinstance(error, OperationFailed):
        left = [*error.left, *left]
    message = f"cannot {operation}: {step.name}: {error.message}"
    if undone:
        message += f"; undone: {', '.join(undone)}"
    if left:
        message += f"; NOT undone: {', '.join(left)}"
    return OperationFailed(message, step=step.name, undone=undone, left=left, hint=error.hint)
