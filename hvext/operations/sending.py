"""A guest on its way to another QEMU: the steps that send it and let it run there, and the end of the one it leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from hvext.core.migration import Description, Transfer
from hvext.core.value import value_object
from hvext.errors import (
    CommandRefused,
    CommandTimeout,
    HvextError,
    MigrationRefused,
    MonitorError,
    OperationFailed,
    QemuError,
)
from hvext.host.qmp import Monitor
from hvext.operations.describe import describe
from hvext.operations.steps import Step
from hvext.operations.transfer import (
    SOURCE_CAPABILITIES,
    Limits,
    Progress,
    end_machine,
    give_up,
    let_run,
    make_sure_it_stays,
    restore_capabilities,
    run_state,
    runs,
    set_capabilities,
    set_parameters,
    to_the_end,
    transfer,
    transfer_state,
    wait_loaded,
)

_NOBODY_THERE = "does the target listen there, and is the way to it open?"

#: How long a target may take to have its guest, after the source said that it was sent.
ARRIVAL_S = 30.0
_LOOK_THERE = "what the target's QEMU printed says why: its machine and all its devices must be like the source's"


@value_object
class Migrated:
    """A guest that has moved.

    ``paused_ms`` is how long it stood still as hvext saw it: from the source's word that it stopped to the target's
    that it runs; None where hvext did not see the target. ``transfer`` has QEMU's own figures.
    """

    transfer: Transfer
    was_running: bool
    paused_ms: float | None
    source_ended: bool
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the result for machines."""
        return {
            "state": "migrated",
            "was_running": self.was_running,
            "total_ms": self.transfer.elapsed_ms,
            "downtime_ms": self.transfer.downtime_ms,
            "paused_ms": self.paused_ms,
            "transferred_bytes": self.transfer.transferred_bytes,
            "source_ended": self.source_ended,
            "warnings": list(self.warnings),
        }


async def check_alike(target: Monitor, description: Description) -> None:
    """Raise MigrationRefused, with everything about a target that is not like the source."""
    try:
        there = await describe(target, description.disks)
    except MigrationRefused as error:
        raise MigrationRefused(f"the target: {error.message}", hint=_NOT_ALIKE) from error
    if differences := description.differences(there):
        raise MigrationRefused(
            f"the target is not like the source: {'; '.join(differences)}",
            hint=_NOT_ALIKE,
        )


_NOT_ALIKE = "start the target's QEMU with the source's machine arguments, and with those of hvext args for its disks"


def say_what_is_left(problems: Sequence[str]) -> None:
    """Raise OperationFailed when something is left to be done for a guest that has moved."""
    if problems:
        raise OperationFailed(
            f"the guest has moved and lives on the target, but this could not be done: {'; '.join(problems)}",
            step="hand the volumes over",
            left=problems,
            hint="never let the source's QEMU go on; hvext close and detach on the source, hvext open on the target",
        )


class Sending:
    """A guest on its way: what the steps hand to each other."""

    def __init__(self, source: Monitor, uri: str, description: Description, limits: Limits, progress: Progress) -> None:
        self.source = source
        self.uri = uri
        self.description = description
        self.target: Monitor | None = None
        self._limits = limits
        self._progress = progress
        self._capabilities: dict[str, bool] = {}
        self._parameters: dict[str, int] = {}
        self._ended: Transfer | None = None
        self._stopped_at = 0.0
        self._paused_ms: float | None = None

    def steps(self) -> list[Step]:
        """Return what sends the guest; with the target's monitor at hand, also what lets it run there."""
        resume = [] if self.target is None else [self.resume_step()]
        return [self.prepare_step(), self.send_step(), *resume]

    def move_steps(self) -> list[Step]:
        """Return what sends the guest and lets it run, for a target whose monitor is known by then."""
        return [self.send_step(), self.resume_step()]

    def prepare_step(self) -> Step:
        """Switch on what the source needs."""
        return Step(name="prepare the source", do=self._prepare, undo=self._restore, inverse="switch it back")

    async def _prepare(self) -> None:
        self._capabilities = await set_capabilities(self.source, SOURCE_CAPABILITIES)
        self._parameters = await set_parameters(self.source, self._limits.parameters)

    async def _restore(self) -> None:
        await restore_capabilities(self.source, self._capabilities)
        await set_parameters(self.source, self._parameters)

    def send_step(self) -> Step:
        """Send the guest; afterwards the source's must never run again."""
        return Step(
            name="send the guest to the target",
            do=self._send,
            undo=self._stay,
            carries_later=True,
            inverse="cancel: it runs on here",
        )

    def resume_step(self) -> Step:
        """Let the guest run on the target."""
        return Step(name="let the guest run on the target", do=self._arrive, happened=self._arrived, one_way=True)

    async def _send(self) -> None:
        try:
            self._ended, self._stopped_at = await transfer(self.source, self.uri, self._limits, self._progress)
        except asyncio.CancelledError:
            if not await self._sent_anyway():
                raise
        except (CommandRefused, CommandTimeout, MonitorError):
            raise
        except QemuError:
            await self._stay()
            raise
        if self._ended is not None and self._ended.status != "completed":
            await self._stay()
            why = self._ended.problem or f"QEMU says {self._ended.status}"
            hint = _NOBODY_THERE if "connect" in why else _LOOK_THERE
            raise QemuError(f"the guest could not be sent to {self.uri}: {why}", hint=hint)

    async def _sent_anyway(self) -> bool:
        """Cancel for somebody who does not want to wait; True when the guest was sent completely by then."""

        async def ask() -> None:
            self._ended = await give_up(self.source)

        await to_the_end(ask())
        assert self._ended is not None  # noqa: S101
        if self._ended.status != "completed":
            return False
        own = asyncio.current_task()
        assert own is not None  # noqa: S101
        own.uncancel()
        self._stopped_at = asyncio.get_running_loop().time()
        return True

    async def _stay(self) -> None:
        await make_sure_it_stays(self.source, running=self.description.running)

    async def _arrive(self) -> None:
        await to_the_end(self._let_run())

    async def _let_run(self) -> None:
        assert self.target is not None  # noqa: S101
        await wait_loaded(self.target, ARRIVAL_S)
        if not self.description.running:
            return
        try:
            now = await let_run(self.target)
        except CommandRefused:
            if await run_state(self.target) != "paused":
                raise
            # It has not run there, and does not any more: it can be taken back.
            await end_machine(self.target)
            await self.source.execute("cont")
            raise
        self._paused_ms = round((now - self._stopped_at) * 1000, 1)

    async def _arrived(self) -> bool:
        return self.target is not None and await runs(self.target)

    async def look_again(self) -> None:
        """Read the figures once more: QEMU says that it is complete before it has added them up."""
        with contextlib.suppress(HvextError):
            self._ended = await transfer_state(self.source)

    def result(self, *, source_ended: bool, warnings: tuple[str, ...] = ()) -> Migrated:
        """What was done."""
        assert self._ended is not None  # noqa: S101
        return Migrated(
            transfer=self._ended,
            was_running=self.description.running,
            paused_ms=self._paused_ms,
            source_ended=source_ended,
            warnings=warnings,
        )


class SourceEnd:
    """The end of the source's QEMU, once the guest is gone."""

    def __init__(self, *, keep_source: bool, source: Monitor) -> None:
        self._keep = keep_source
        self._source = source
        self.problems: list[str] = []

    def end_steps(self) -> list[Step]:
        """The step that ends it, if it is to be ended."""
        return [] if self._keep else [Step(name="end the source's QEMU", do=self._end, one_way=True)]

    async def _end(self) -> None:
        try:
            await end_machine(self._source)
        except HvextError as error:
            self.problems.append(f"end the source's QEMU: {error.message}")
