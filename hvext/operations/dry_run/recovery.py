"""What ``hvext recover`` would do, VM by VM and disk by disk."""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import AsyncIterator, Collection, Iterator, Sequence

from hvext.core.audit import left_files, was_sent
from hvext.core.disk import Disk
from hvext.core.record import DiskRecord, VmRecord
from hvext.core.running import RunningDisk
from hvext.errors import HvextError, JournalError, MonitorError
from hvext.host.journal import JournalFolder
from hvext.host.private import private_files
from hvext.host.proc import is_alive
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor, connect
from hvext.operations.dry_run.books import own_record
from hvext.operations.dry_run.guest import LOOKED_AT, DryRun
from hvext.operations.dry_run.planned import Planned, PlannedStep, in_words
from hvext.operations.failover import IO_ERROR, resume_step
from hvext.operations.identify import process_of
from hvext.operations.inspect import running_disks
from hvext.operations.journal import Journal, broken_records, read_records
from hvext.operations.moving import leave_steps, migrating, stay_steps, waiting
from hvext.operations.reach import CONNECT_S, has_ended, is_domain
from hvext.operations.recover import of_broken_start, still_has_them
from hvext.operations.remains import Way, clean_steps, files_of_nobody, stays_attached, way_of
from hvext.operations.steps import Step
from hvext.operations.threads import in_thread
from hvext.operations.transfer import run_state, transfer_state
from hvext.operations.unplug import Unplugging, detach_step

_SCRIPTS = "a script that the interrupted process had started is ended first"
_KEPT = "its volume stays attached, as wished or for another VM"
_FORGOTTEN = "it is struck out; its volume stays as its provider has left it"
_RUNS = "QEMU runs: nothing is taken from it"


class DryRecovery:
    """What is left of crashes, looked at and left as it is."""

    def __init__(self, host: ProviderHost, *, timeout_s: float, folder: JournalFolder | None = None) -> None:
        self._host = host
        self._timeout_s = timeout_s
        self._folder = folder or JournalFolder()
        self._records = read_records(self._folder)
        self._in_use: set[uuid_module.UUID] = set()
        self._forget: Collection[uuid_module.UUID] = ()

    async def plans(
        self,
        *,
        monitors: Sequence[str] = (),
        names: Sequence[str] = (),
        gone: Sequence[str] = (),
        forget: Collection[uuid_module.UUID] = (),
    ) -> list[Planned]:
        """Return what would be done about each disk; as ``recover`` takes them."""
        self._forget = forget
        everything = not (names or monitors or gone)
        found: list[Planned] = []
        seen: set[str] = set()
        for address in monitors:
            async with connect(address, timeout_s=self._timeout_s, connect_timeout_s=CONNECT_S) as monitor:
                own, _records = await own_record(monitor, None, self._folder)
                found += [plan async for plan in self._running(monitor, own)]
                seen.add(own.name)
        for record in self._records.values():
            if record.name in seen or not (everything or record.name in (*names, *gone)):
                continue
            if (has_ended(record) and not is_domain(record)) or record.name in gone:
                found += [plan async for plan in self._ended(record, gone=record.name in gone)]
            else:
                found += await self._reached(record)
        if everything:
            broken = broken_records(self._folder)
            found += [Planned(operation="recover", steps=(), refused=error) for error in broken]
            found += [] if broken else self._files()
        return found

    async def _reached(self, record: VmRecord) -> list[Planned]:
        if is_domain(record):
            # Only where there are such: it loads all that works with libvirt.
            from hvext.operations.dry_run.domain_recovery import plan_domain

            return await in_thread(lambda _cancel: plan_domain(record, self._host, self._folder))
        said = []
        for address in record.monitors:
            try:
                async with connect(address, timeout_s=self._timeout_s, connect_timeout_s=CONNECT_S) as monitor:
                    process = process_of(monitor)
                    if None in (record.process, process) or process == record.process:
                        return [plan async for plan in self._running(monitor, record)]
                    said.append(f"{address} belongs to another QEMU now")
            except HvextError as error:
                said.append(error.message)
        reason = MonitorError("; ".join(said) or f"no monitor of VM {record.name} is known")
        if record.process is None:
            return [self._unseen(record, known, reason) for known in record.disks.values() if _begun(known)]
        return [Planned(operation=f"recover {record.name}", steps=(), refused=reason)]

    def _unseen(self, record: VmRecord, known: DiskRecord, reason: HvextError) -> Planned:
        """Return what would be done about a disk of a VM whose QEMU was never seen."""
        if of_broken_start(known):
            return self._abandoned(record, known, "QEMU was not started")
        return Planned(operation=f"recover {record.name}: {known.words}", steps=(), refused=reason)

    async def _running(self, monitor: Monitor, record: VmRecord) -> AsyncIterator[Planned]:
        running = await running_disks(monitor)
        self._in_use |= {uuid for uuid, disk in running.items() if disk.device}
        moved = {known.disk.volume.uuid for known in migrating(record)}
        if moved and not waiting(record):
            yield await self._migration(monitor, record)
        for uuid in dict.fromkeys([*record.disks, *running]):
            if uuid in moved:
                continue
            try:
                plan = await self._disk(monitor, record, record.disks.get(uuid), running.get(uuid))
            except HvextError as error:
                plan = Planned(operation=f"recover {record.name}: disk {uuid}", steps=(), refused=error)
            if plan is not None:
                yield plan

    async def _disk(
        self, monitor: Monitor, record: VmRecord, known: DiskRecord | None, running: RunningDisk | None
    ) -> Planned | None:
        """Return what would be done about one disk of a running VM; None for nothing."""
        way = way_of(known, in_guest=running is not None and running.device is not None)
        clean = in_words(clean_steps(monitor, running)) if running is not None else ()
        if running is not None and running.device is not None:
            clean += tuple(_removal(name) for name in left_files(private_files(), running))
        if known is None or way is Way.CLEAN:
            what = "a disk that nobody wrote down" if known is None else known.words
            return _planned(record, what, clean) if clean else None
        disk = self._whole(record, known)
        if way is Way.UNPLUG:
            unplug = Unplugging(monitor, running or RunningDisk.nothing(disk.names))
            steps = [*unplug.ask_steps(), *unplug.remove_steps()]
            return self._detached(record, known, disk, in_words(steps), wanted=bool(steps) or known.attached)
        if way is Way.TAKE_BACK:
            return self._detached(record, known, disk, clean)
        more: tuple[PlannedStep, ...] = ()
        if way is Way.FAIL_OVER and (await monitor.execute("query-status"))["status"] == IO_ERROR:
            more = (await DryRun(monitor, self._host).fail_over(disk)).steps + in_words([resume_step(monitor)])
        elif way is Way.RESIZE and known.unfinished is not None:
            details = known.unfinished.details
            size_mib, old_mib = int(details["new_size_mib"]), details.get("old_size_mib")
            more = (await DryRun(monitor, self._host).resize(disk, size_mib, old_size_mib=old_mib)).steps
        return _planned(record, known.words, (*clean, *more), "it is written down as whole then", _SCRIPTS)

    async def _migration(self, monitor: Monitor, record: VmRecord) -> Planned:
        moved = migrating(record)
        disks = [self._whole(record, known) for known in moved]
        details = {key: value for known in moved if known.unfinished for key, value in known.unfinished.details.items()}
        sent = (await transfer_state(monitor)).status == "completed" and await run_state(monitor) == "postmigrate"
        if sent and not details.get("incoming"):
            steps = leave_steps(monitor, self._host, disks)
            note = "the target is asked first: the guest must be there"
            return _planned(record, "its migration", in_words(steps), note)
        note = "one that is under way is cancelled, and a QEMU that waits for it at the target is ended"
        return _planned(record, "its migration", in_words(stay_steps(self._host, disks)), note)

    async def _ended(self, record: VmRecord, *, gone: bool) -> AsyncIterator[Planned]:
        if is_alive(record.process):
            if gone:
                yield _planned(record, "all its disks", (), _RUNS)
            return
        if address := await still_has_them(record):
            yield _planned(record, "all its disks", (), f"the QEMU at {address} has disks of it")
            return
        for known in record.disks.values():
            if gone or not was_sent(known):
                yield self._abandoned(record, known, "QEMU has ended")

    def _abandoned(self, record: VmRecord, known: DiskRecord, why: str) -> Planned:
        try:
            return self._detached(record, known, self._whole(record, known), (), why)
        except JournalError as error:
            return Planned(operation=f"recover {record.name}: {known.words}", steps=(), refused=error)

    def _detached(
        self,
        record: VmRecord,
        known: DiskRecord,
        disk: Disk,
        steps: Sequence[PlannedStep],
        *notes: str,
        wanted: bool = True,
    ) -> Planned:
        """Return these steps, and that the volume is detached unless it stays."""
        if disk.volume.uuid in self._forget:
            return _planned(record, known.words, steps, *notes, _FORGOTTEN)
        if stays_attached(known, disk, self._records, record.name):
            return _planned(record, known.words, steps, *notes, _KEPT)
        last: list[Step] = [detach_step(self._host, disk)] if wanted else []
        interrupted = known.unfinished is not None and known.unfinished.script is not None
        return _planned(record, known.words, (*steps, *in_words(last)), *notes, *([_SCRIPTS] if interrupted else []))

    def _whole(self, record: VmRecord, known: DiskRecord) -> Disk:
        return known.whole(Journal(self._folder, record.name).kept_secrets(known))

    def _files(self) -> list[Planned]:
        known = {uuid for record in self._records.values() for uuid in record.disks}
        return list(_file_plans(known | self._in_use))


def _begun(known: DiskRecord) -> bool:
    """Whether an operation on a disk was begun, and not ended."""
    return known.unfinished is not None and known.unfinished.by is not None


def _file_plans(known: set[uuid_module.UUID]) -> Iterator[Planned]:
    for name, uuid in files_of_nobody(known):
        what = f"recover disk {uuid}, which no VM has"
        yield Planned(operation=what, steps=(_removal(name),), looked_at=LOOKED_AT)


def _removal(file: str) -> PlannedStep:
    return PlannedStep(name=f"remove {file}", one_way=True)


def _planned(record: VmRecord, what: str, steps: Sequence[PlannedStep], *notes: str) -> Planned:
    operation = f"recover {record.name}: {what}"
    return Planned(operation=operation, steps=tuple(steps), notes=notes, looked_at=LOOKED_AT)
