"""What an operation would do to a disk of a running guest, step by step, and how each step would be taken back.

QEMU is asked what it has and what it can do, and the journal is read; nothing is changed, no script of a provider is
run, and no storage opened. So what comes of those is not known here: where the storage is, whether it opens, and
whether the guest lets go.
"""

from __future__ import annotations

from collections.abc import Sequence

from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.record import DiskRecord, Intent, VmRecord
from hvext.core.running import RunningDisk
from hvext.core.uri import Location
from hvext.core.volume import check_size_mib
from hvext.errors import HvextError
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations.acts import Act
from hvext.operations.attachments import offer_act
from hvext.operations.dry_run.books import own_record
from hvext.operations.dry_run.planned import Planned, in_words
from hvext.operations.dry_run.unknown import ANYWHERE, unknown
from hvext.operations.failover import IO_ERROR, resume_step, swap_steps
from hvext.operations.frozen import check_requests_end, stuck_now
from hvext.operations.inspect import running_disk, running_disks
from hvext.operations.journal import taken
from hvext.operations.opening import Movable, location_obstacle
from hvext.operations.plug import PlugWork, already
from hvext.operations.questions import Guest, Places
from hvext.operations.records import check_staying, check_twin, disks_of, users_of
from hvext.operations.repoint import disk_in_guest, exchange_steps, is_at, whole
from hvext.operations.resize import MIB, Growing, TellingSize, check_can_grow, check_has_size, fresh_location
from hvext.operations.steps import Step, check_steps
from hvext.operations.unplug import Unplugging, detach_step, pending

#: What is asked of all these.
LOOKED_AT = ("QEMU, over its monitor", "the journal")
_LEFTOVERS = "nodes that an interruption has left are removed first"


class DryRun:
    """A guest that is asked and not changed."""

    def __init__(self, monitor: Monitor, host: ProviderHost, *, name: str | None = None) -> None:
        self._monitor = monitor
        self._host = host
        self._given = name

    async def plug(self, disks: Sequence[Disk]) -> list[Planned]:
        """Return what a plug of each disk would do; raises what would be raised before anything is done.

        Of several, each may be refused for itself.
        """
        guest = await Guest.ask(self._monitor)
        running = await running_disks(self._monitor)
        places = Places(self._monitor)
        own, records = await self._journal()
        check_staying(own)
        plans = []
        for disk in disks:
            try:
                plan = await self._plug(disk, running.get(disk.volume.uuid), guest, places, own, records)
            except HvextError as error:
                if len(disks) == 1:
                    raise
                plan = Planned(operation=f"plug {disk.provider}/{disk.volume.name}", steps=(), refused=error)
            plans.append(plan)
        return plans

    async def _plug(
        self,
        disk: Disk,
        running: RunningDisk | None,
        guest: Guest,
        places: Places,
        own: VmRecord,
        records: dict[str, VmRecord],
    ) -> Planned:
        known = own.disks.get(disk.volume.uuid)
        users = users_of(disk, records, but=own.name)
        if users:
            raise taken(f"{disk.provider}/{disk.volume.name}", users[0])
        check_twin(disk, own.name, disks_of(own))
        if running is not None and running.device is not None:
            if known is not None and known.intent is Intent.ABSENT:
                raise pending(disk.names)
            reason = already(running).reason
            operation = f"plug {disk.provider}/{disk.volume.name}"
            return Planned(operation=operation, steps=(), notes=(reason,), looked_at=LOOKED_AT)
        provider = self._host.find(disk.provider)
        remains = running or RunningDisk.nothing(disk.names)
        work = PlugWork(self._monitor, self._host, provider, disk, remains, exclusive=True, shared=False)
        work.place(guest, await places.take(disk))
        note = "which location is opened, the provider's attach is going to say (hvext explain reads what it prints)"
        return _planned(work.operation, work.steps(), note)

    async def unplug(self, names: DiskNames, disk: Disk | None) -> Planned:
        """Return what an unplug would do; without ``disk`` the volume stays attached."""
        own, records = await self._journal()
        check_staying(own)
        running = await running_disk(self._monitor, names)
        work = Unplugging(self._monitor, running)
        known = own.disks.get(names.uuid)
        steps = [*work.ask_steps(), *work.remove_steps()]
        notes = []
        if disk is not None and users_of(disk, records, but=own.name):
            notes.append("another VM of this host has the volume as well: it stays attached")
        elif disk is not None and (steps or _attached(known)):
            steps.append(detach_step(self._host, disk))
        if names.uuid in await stuck_now(self._monitor):
            notes.append("its storage answers nothing: the guest cannot let it go until it does")
        if running.device is not None:
            notes.append("when the guest does not let it go, nothing is removed, and it stays pending")
            notes.append("hvext plug brings it back")
        if not steps:
            notes.append("the guest does not have it, and it is not written down for this guest")
        return _planned(work.operation, steps, *notes)

    async def repoint(self, names: DiskNames, location: Location) -> Planned:
        """Return what a move would do; raises what would be raised before anything is done."""
        disk = await self._movable(names)
        if (refusal := await location_obstacle(self._monitor, disk, location)) is not None:
            raise refusal
        operation = f"move disk {names.uuid} to {location.words}"
        if is_at(disk, location):
            return _planned(operation, (), "it is there already")
        steps, close = await exchange_steps(self._monitor, disk, location, exact_size=True)
        return _planned(operation, [*steps, close], *_leftovers(disk))

    async def repoint_to_offered(self, disk: Disk) -> Planned:
        """Return what a move to the first place would do that the provider offers; it is not asked here."""
        found = await self._movable(disk.names)
        ask = offer_act(self._host, disk)
        steps, close = await exchange_steps(self._monitor, found, ANYWHERE, exact_size=True)
        notes = (
            "of the places that attach prints, the first is taken that the disk can be moved to; when it is there "
            "already, nothing is done",
            "where that place needs secrets, objects for them are made before it is opened, and removed with it",
        )
        operation = f"move disk {disk.names.uuid} to what {disk.provider}/{disk.volume.name} offers"
        return _planned(operation, [ask, *unknown(steps), close], *notes, *_leftovers(found))

    async def _movable(self, names: DiskNames) -> Movable:
        own, _records = await self._journal()
        check_staying(own)
        await check_requests_end(self._monitor)
        return whole(await disk_in_guest(self._monitor, names))

    async def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Planned:
        """Return what a resize would do; raises what would be raised before anything is done."""
        own, _records = await self._journal()
        check_staying(own)
        check_size_mib(new_size_mib, "new size")
        running = await disk_in_guest(self._monitor, disk.names)
        check_has_size(running)
        found = whole(running)
        check_can_grow(found, new_size_mib)
        storage, size_bytes = found.protocol, new_size_mib * MIB
        old_mib = found.top.size_bytes // MIB if old_size_mib is None else check_size_mib(old_size_mib, "old size")
        steps = [Growing(self._host, disk, old_mib, new_size_mib).step()]
        operation = f"resize disk {disk.names.uuid}"
        check_steps(operation, steps)
        notes = ["a volume that has grown stays grown; repeating the command finishes what came after"]
        fresh = fresh_location(found, None) if storage.size_bytes < size_bytes else None
        if not storage.grows_in_place:
            notes.append("the provider is asked before where the storage is: attach again, which is idempotent")
        if fresh is not None:
            again, close = await exchange_steps(self._monitor, found, fresh, exact_size=False)
            steps += [*again, close]
            if found.has_companions:
                notes.append("the storage is opened afresh with the credentials that the provider offers then")
        if min(found.top.size_bytes, storage.size_bytes) < size_bytes:
            steps += TellingSize(self._monitor, disk.names, storage, found.top, size_bytes).steps()
        return _planned(operation, steps, *notes, *_leftovers(found))

    async def fail_over(self, disk: Disk) -> Planned:
        """Return what a failover would do to the first place that the provider offers and that can be read."""
        steps = await swap_steps(self._monitor, disk.names, ANYWHERE)
        note = "places that attach prints and that cannot be opened and read are passed over"
        operation = f"fail disk {disk.names.uuid} over to what {disk.provider}/{disk.volume.name} offers"
        return _planned(operation, [offer_act(self._host, disk), *unknown(steps)], note)

    async def resume(self) -> Planned:
        """Return what would be done to have a guest run again that an I/O error has stopped."""
        status = str((await self._monitor.execute("query-status"))["status"])
        if status == IO_ERROR:
            note = "with storage that is still full, or still dead, the guest stops again at once, and loses nothing"
            return _planned("resume the guest", [resume_step(self._monitor)], note)
        return _planned("resume the guest", (), f"it is {status}: no I/O error has stopped it")

    async def _journal(self) -> tuple[VmRecord, dict[str, VmRecord]]:
        return await own_record(self._monitor, self._given)


def _planned(operation: str, steps: Sequence[Step | Act], *notes: str) -> Planned:
    check_steps(operation, [step for step in steps if isinstance(step, Step)])
    return Planned(operation=operation, steps=in_words(steps), notes=notes, looked_at=LOOKED_AT)


def _attached(known: DiskRecord | None) -> bool:
    return known is not None and known.attached


def _leftovers(disk: Movable) -> tuple[str, ...]:
    return (_LEFTOVERS,) if disk.running.leftovers or len(disk.running.protocols) > 1 else ()
