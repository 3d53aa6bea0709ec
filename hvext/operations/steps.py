"""Operations as lists of steps with inverses.

When a step fails, the steps before it are undone in reverse order, and the error tells both. A step that QEMU or a
script clearly refused changed nothing; one whose outcome is unknown (no answer, a broken connection, an interrupt) is
undone as well. So every ``undo`` must succeed when there is nothing to undo.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from hvext.errors import CommandTimeout, HvextError, MonitorError, OperationFailed, ScriptFailed, ScriptTimeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step: ``name`` says in words what ``do`` does; ``undo`` takes it back (None: there is nothing to undo).

    ``carries_later`` says that later steps stand on this one: it is undone only when all of them could be.
    ``happened`` asks QEMU whether the step was done, for when its answer did not come in time.
    """

    name: str
    do: Callable[[], Awaitable[object]]
    undo: Callable[[], Awaitable[object]] | None = None
    carries_later: bool = False
    happened: Callable[[], Awaitable[bool]] | None = None


#: Called with a step's name when it begins.
Report = Callable[[str], None]


def silent(_name: str) -> None:
    """Report nothing."""


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
            raise
        except HvextError as error:
            undone, left = await _undo_all([*done, step] if may_have_done(error) else done)
            raise _failure(operation, step, error, undone, left) from error
        except BaseException:
            await _undo_all([*done, step])
            raise
        done.append(step)


async def tidy_up(operation: str, step: Step, *, leaves: Sequence[str], report: Report = silent) -> None:
    """Do the last step of an operation that is done already: when it fails, nothing is taken back.

    Raises OperationFailed with ``leaves``, which is what the step should have removed, among what is left.
    """
    try:
        await carry_out(operation, [step], report=report)
    except OperationFailed as error:
        left = [*error.left, *leaves]
        raise OperationFailed(error.message, step=error.step, left=left, hint=error.hint) from error.__cause__


async def _do(step: Step) -> None:
    """Do a step; one whose answer did not come in time is done when QEMU says so, once it answers again."""
    try:
        await step.do()
    except CommandTimeout:
        if step.happened is None or not await step.happened():
            raise


def may_have_done(error: BaseException) -> bool:
    """Return whether the step that raised this may have done something."""
    killed = isinstance(error, ScriptFailed) and error.status < 0
    return killed or isinstance(error, CommandTimeout | MonitorError | ScriptTimeout)


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
                await step.undo()
            except Exception as error:
                # Whatever one step's undo stumbles over, the others still have to be undone.
                left.append(f"{step.name} ({error.message if isinstance(error, HvextError) else repr(error)})")
            else:
                undone.append(step.name)

    task = asyncio.ensure_future(work())
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    task.result()
    return undone, left


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
