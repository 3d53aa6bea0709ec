"""What the commands of a migration would do, each on one of the two sides."""

from __future__ import annotations

from collections.abc import Sequence

from hvext.core.disk import Disk
from hvext.core.migration import Description, check_address
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations import migrate as migration
from hvext.operations.describe import describe
from hvext.operations.dry_run.books import own_record
from hvext.operations.dry_run.planned import Planned, in_words
from hvext.operations.handover import HandOver
from hvext.operations.migrate import Arrival, Cancelling, Listening
from hvext.operations.moving import check_elsewhere
from hvext.operations.sending import Sending, SourceEnd, check_alike
from hvext.operations.steps import Step, check_steps
from hvext.operations.transfer import (
    Limits,
    check_can_leave,
    check_waits,
    listening_at,
    nothing_to_show,
    run_state,
    transfer_state,
)

_LOOKED_AT = ("QEMU, over its monitor", "the journal")
_RUNS_ON = "until the guest has been sent it runs on here, whatever fails"
_TO_COME = "inmigrate"


class DryMigration:
    """A guest, or the QEMU that waits for one, that is asked and not changed."""

    def __init__(self, monitor: Monitor, host: ProviderHost, *, name: str | None = None) -> None:
        self._monitor = monitor
        self._host = host
        self._given = name

    async def begin(self, disks: Sequence[Disk], *, own_controller: bool = False) -> Planned:
        """Return what ``begin`` would do; raises what it raises before anything is done."""
        await check_can_leave(self._monitor)
        await describe(self._monitor, disks, own_controller=own_controller)
        note = "the description of the guest is printed then, for the target; hvext migrate-cancel takes this back"
        return _planned(migration.BEGIN, migration.begin_steps(self._host, disks), note)

    async def listen(self, description: Description, uri: str) -> Planned:
        """Return what ``listen`` would do."""
        own, records = await own_record(self._monitor, self._given)
        check_elsewhere(description, records, own.name)
        check_address(uri)
        await check_waits(self._monitor)
        await check_alike(self._monitor, description)
        if (before := await listening_at(self._monitor)) is not None:
            return _planned(migration.LISTEN, (), f"it listens already, at {before}")
        steps = Listening(self._monitor, uri, running=description.running).steps()
        return _planned(migration.LISTEN, steps, "ending this QEMU ends it; hvext stop --close lets its volumes go")

    async def send(
        self, disks: Sequence[Disk], uri: str, *, target: Monitor | None = None, keep_source: bool = False
    ) -> Planned:
        """Return what ``send`` would do; ``target`` is the target's monitor."""
        check_address(uri)
        await check_can_leave(self._monitor)
        found = await describe(self._monitor, disks)
        if target is not None:
            await check_waits(target)
            await check_alike(target, found)
        sending = Sending(self._monitor, uri, found, Limits(), nothing_to_show)
        sending.target = target
        steps = sending.steps()
        if not keep_source:
            last = SourceEnd(keep_source=False, source=self._monitor)
            steps += migration.leaving_steps(last, HandOver(self._host, self._host, disks))
        notes = [_RUNS_ON]
        if target is None:
            notes.append("it runs on the target when hvext migrate-finish is called there")
        plan = _planned(f"{migration.SEND} to {uri}", steps, *notes)
        return plan if target is None else _also(plan, "the target's QEMU, over its monitor")

    async def finish(self, description: Description, *, timeout_s: float) -> Planned:
        """Return what ``finish`` would do; a guest that is still to come is not waited for."""
        arrival = Arrival(self._monitor, self._host, description, timeout_s=timeout_s)
        notes = []
        if await run_state(self._monitor) == _TO_COME:
            notes.append(f"the guest is not here yet: it is waited for, up to {timeout_s:g} s")
        else:
            await arrival.check()
        if not description.running:
            notes.append("it was paused on the source, and stays so")
        return _planned(migration.FINISH, arrival.steps(), *notes)

    async def cancel(self, disks: Sequence[Disk], *, target_ended: bool = False) -> Planned:
        """Return what ``cancel`` would do."""
        cancelling = Cancelling(self._monitor, self._host, disks, target_ended=target_ended)
        await cancelling.check((await transfer_state(self._monitor)).status)
        return _planned(migration.CANCEL, cancelling.steps())


def _planned(operation: str, steps: Sequence[Step], *notes: str) -> Planned:
    check_steps(operation, steps)
    return Planned(operation=operation, steps=in_words(steps), notes=notes, looked_at=_LOOKED_AT)


def _also(plan: Planned, looked_at: str) -> Planned:
    return Planned(operation=plan.operation, steps=plan.steps, notes=plan.notes, looked_at=(*plan.looked_at, looked_at))
