"""``hvext recover``: finishing or undoing what a crash left, of hvext, of a script, or of QEMU.

What QEMU has decides: a disk that got into the guest stays there, one that did not is taken back, one that was on its
way out goes, and a VM whose QEMU has ended lets its volumes go. Everything may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid as uuid_module
from collections.abc import AsyncIterator, Collection, Sequence
from enum import StrEnum

from hvext.core.audit import left_files, was_sent
from hvext.core.disk import Disk
from hvext.core.record import DiskRecord, Intent, Operation, VmRecord
from hvext.core.running import RunningDisk
from hvext.core.value import replace, value_object
from hvext.errors import HvextError, OperationFailed, ProviderNotFound, ScriptFailed
from hvext.host.journal import JournalFolder
from hvext.host.private import private_files, remove_private
from hvext.host.proc import is_alive
from hvext.host.provider import ProviderHost
from hvext.host.qmp import DEFAULT_TIMEOUT_S, connect
from hvext.operations import attachments, moving
from hvext.operations.failover import IO_ERROR, fail_over, resume
from hvext.operations.inspect import running_disks
from hvext.operations.journal import Journal, broken_records, end_scripts, read_records
from hvext.operations.reach import CONNECT_S, has_ended, is_domain, reach
from hvext.operations.remains import Way, clean_steps, files_of_nobody, stays_attached, unused_of, way_of
from hvext.operations.resize import resize
from hvext.operations.steps import Report, Step, carry_out, may_have_done, silent
from hvext.operations.telling import telling
from hvext.operations.threads import in_thread
from hvext.operations.unplug import DEFAULT_TIMEOUT_S as UNPLUG_S
from hvext.operations.unplug import UnplugState, detach_step, forget_words, unplug_and_detach
from hvext.operations.vm import AsyncVm, open_vm_async


class Outcome(StrEnum):
    """What became of something that was left."""

    FINISHED = "finished"
    UNDONE = "undone"
    LEFT = "left"


@value_object
class Recovered:
    """What was done about one disk of one VM (empty: nobody's)."""

    vm: str
    outcome: Outcome
    words: str
    uuid: uuid_module.UUID | None = None
    hint: str = ""

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "vm": self.vm,
            "outcome": str(self.outcome),
            "disk": str(self.uuid) if self.uuid else None,
            "words": self.words,
            "hint": self.hint,
        }


async def recover(
    host: ProviderHost,
    *,
    folder: JournalFolder | None = None,
    monitors: Sequence[str] = (),
    names: Sequence[str] = (),
    gone: Sequence[str] = (),
    forget: Collection[uuid_module.UUID] = (),
    timeout_s: float = DEFAULT_TIMEOUT_S,
    report: Report = silent,
) -> list[Recovered]:
    """Finish or undo what is left, on this host or in the VMs called ``names`` or at ``monitors``.

    ``gone`` are names of VMs whose QEMU the caller knows to have ended, or never to have started. The volume of a disk
    to ``forget`` that no QEMU has stays as it is: its provider is gone for good. What could not be
    done is LEFT, with the reason; everything else is tried all the same. Raises JournalError, and MonitorError for one
    of ``monitors``.
    """
    folder = folder or JournalFolder()
    everything = not (names or monitors or gone)
    done: list[Recovered] = []
    seen: set[str] = set()
    in_use: set[uuid_module.UUID] = set()
    for address in monitors:
        async with open_vm_async(
            address, host=host, timeout_s=timeout_s, connect_timeout_s=CONNECT_S, report=report, state=str(folder.path)
        ) as vm:
            done += [item async for item in recover_vm(vm, in_use, forget)]
            seen.add(vm.journal.name)
    for record in read_records(folder).values():
        if record.name in seen or not (everything or record.name in (*names, *gone)):
            continue
        # libvirt's domains go on having the disks that they are configured with.
        if (has_ended(record) and not is_domain(record)) or record.name in gone:
            done += [
                item async for item in _recover_ended(record, host, folder, report, forget, gone=record.name in gone)
            ]
        else:
            done += await _recover_reachable(record, host, folder, timeout_s, report, in_use, forget)
    if everything:
        broken = broken_records(folder)
        done += [Recovered(vm="", outcome=Outcome.LEFT, words=error.message, hint=error.hint) for error in broken]
        # Whose files there are, a record that cannot be read would tell.
        done += [] if broken else await asyncio.to_thread(_recover_files, folder, in_use)
    return done


async def _recover_reachable(
    record: VmRecord,
    host: ProviderHost,
    folder: JournalFolder,
    timeout_s: float,
    report: Report,
    in_use: set[uuid_module.UUID],
    forget: Collection[uuid_module.UUID],
) -> list[Recovered]:
    if is_domain(record):
        # Only where there are such: it loads all that works with libvirt.
        from hvext.operations.domains.recovery import recover_domain

        return await recover_domain(record, host, folder, report)
    try:
        async with reach(record, folder=folder, host=host, timeout_s=timeout_s, report=report) as vm:
            return [item async for item in recover_vm(vm, in_use, forget)]
    except HvextError as error:
        if record.process is None:
            return [item async for item in _recover_start(record, host, folder, report, forget, error)]
        return [Recovered(vm=record.name, outcome=Outcome.LEFT, words=error.message, hint=error.hint)]


async def recover_vm(
    vm: AsyncVm, in_use: set[uuid_module.UUID] | None = None, forget: Collection[uuid_module.UUID] = ()
) -> AsyncIterator[Recovered]:
    """Finish or undo what is left in one VM whose QEMU runs; the disks that its guest has are added to ``in_use``.

    ``forget`` as for `recover`.
    """
    async with vm.alone():
        running = await running_disks(vm.monitor)
        if in_use is not None:
            in_use |= {uuid for uuid, disk in running.items() if disk.device}
        if vm.journal.record.disks and vm.journal.seen() != vm.journal.record:
            # Disks of a start whose QEMU is seen for the first time.
            vm.journal.write(vm.journal.seen())
        record = vm.journal.record
        moved = {known.disk.volume.uuid for known in moving.migrating(record)}
        if moved and not moving.waiting(record):
            yield await _recover_migration(vm, record)
        for uuid in dict.fromkeys([*record.disks, *running]):
            if uuid in moved:
                continue
            work = _Disk(vm, uuid, record.disks.get(uuid), running.get(uuid), forget=uuid in forget)
            try:
                with telling("operation", vm=record.name, disk=str(uuid), operation="recover"):
                    outcome = await work.recover()
            except HvextError as error:
                yield Recovered(
                    vm=record.name,
                    uuid=uuid,
                    outcome=Outcome.LEFT,
                    words=f"{work.words}: {error.message}",
                    hint=error.hint,
                )
            else:
                if outcome is not None:
                    yield Recovered(vm=record.name, uuid=uuid, outcome=outcome[0], words=outcome[1])


async def _recover_migration(vm: AsyncVm, record: VmRecord) -> Recovered:
    """Bring an interrupted migration of a whole VM in order."""
    try:
        words = await moving.recover(vm)
    except HvextError as error:
        return Recovered(vm=record.name, outcome=Outcome.LEFT, words=f"migrate: {error.message}", hint=error.hint)
    return Recovered(vm=record.name, outcome=Outcome.FINISHED, words=f"migrate: {words}")


class _Disk:
    """One disk of a running VM, of which something may be left."""

    def __init__(
        self,
        vm: AsyncVm,
        uuid: uuid_module.UUID,
        known: DiskRecord | None,
        running: RunningDisk | None,
        *,
        forget: bool = False,
    ) -> None:
        self._vm = vm
        self._forget = forget
        self._uuid = uuid
        self._known = known
        self._running = running
        self._device = running.device if running else None

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self._known is None:
            return f"disk {self._uuid}"
        work = self._known.unfinished
        return f"{work.operation} of {self._known.words}" if work else self._known.words

    async def recover(self) -> tuple[Outcome, str] | None:
        """Do what has to be done; None when that was nothing."""
        known, way = self._known, way_of(self._known, in_guest=self._device is not None)
        if known is None:
            return await self._clean("nobody wrote down which disk it is")
        end_scripts(known)
        if way is Way.UNPLUG and not (self._forget and self._device is None):
            return await self._unplug()
        if way is Way.UNPLUG:
            return await self._take_back()
        if way is Way.TAKE_BACK:
            return await self._take_back()
        cleaned = await self._clean("")
        if way is Way.CLEAN:
            return cleaned
        if way is Way.FAIL_OVER:
            return await self._fail_over()
        if way is Way.RESIZE:
            return await self._resize()
        self._ended(Intent.PRESENT)
        return Outcome.FINISHED, f"{self.words}: the disk is whole"

    async def _clean(self, why: str) -> tuple[Outcome, str] | None:
        """Remove what nothing uses."""
        running = self._running
        if running is None:
            return None
        left = unused_of(running)
        await self._carry_out(clean_steps(self._vm.monitor, running))
        if running.device is not None:
            files = [name for name in left_files(private_files(), running) if remove_private(name)]
            left += tuple(files)
        words = f"removed {', '.join(left)}"
        return (Outcome.UNDONE, f"{words} ({why})" if why else words) if left else None

    async def _carry_out(self, steps: Sequence[Step]) -> None:
        await carry_out(f"recover {self.words}", steps, report=self._vm.report)

    def _disk(self) -> Disk:
        """The disk with its secrets; raises JournalError."""
        assert self._known is not None  # noqa: S101
        whole = self._vm.journal.whole(self._uuid)
        return self._known.disk if whole is None else whole

    async def _unplug(self) -> tuple[Outcome, str]:
        disk = self._disk()
        result = await unplug_and_detach(
            self._vm.monitor,
            self._vm.host,
            disk,
            timeout_s=UNPLUG_S,
            attached=self._known is None or self._known.attached,
            shared=stays_attached(self._known, disk, read_records(self._vm.journal.folder), self._vm.journal.name),
            report=self._vm.report,
        )
        if result.finished:
            self._vm.journal.forget(self._uuid)
            return Outcome.FINISHED, f"{self.words}: unplugged" + (", volume detached" if result.detached else "")
        self._ended(Intent.ABSENT if result.state is UnplugState.PENDING else Intent.PRESENT)
        if result.state is UnplugState.REJECTED:
            return Outcome.UNDONE, f"{self.words}: the guest refuses to let {result.device} go, and keeps it"
        return Outcome.LEFT, f"{self.words}: {result.state}, the guest has not let {result.device} go"

    async def _take_back(self) -> tuple[Outcome, str]:
        """The disk did not get into the guest, or is not there any more."""
        running = self._running
        if running is not None:
            await self._carry_out(clean_steps(self._vm.monitor, running))
        became = await _let_go(
            self._known, self._disk(), self._vm.host, self._vm.journal, self._vm.report, forget=self._forget
        )
        return Outcome.UNDONE, f"{self.words}: not in the guest, {became}"

    async def _resize(self) -> tuple[Outcome, str]:
        """Resize a disk again. A provider that refuses to grow its volume leaves a disk of the size it had."""
        work = self._known.unfinished if self._known else None
        assert work is not None  # noqa: S101
        before = work.details.get("old_size_mib")
        try:
            result = await resize(
                self._vm.monitor,
                self._vm.host,
                self._disk(),
                int(work.details["new_size_mib"]),
                old_size_mib=before,
                report=self._vm.report,
            )
        except OperationFailed as error:
            if not isinstance(error.__cause__, ScriptFailed) or may_have_done(error.__cause__):
                raise
            outcome = Outcome.UNDONE, f"{self.words}: {error.message}"
        else:
            outcome = Outcome.FINISHED, f"{self.words}: the guest sees {result.after_bytes} bytes"
        self._ended(Intent.PRESENT)
        return outcome

    async def _fail_over(self) -> tuple[Outcome, str]:
        """Fail a disk over whose failover was interrupted, if the guest still waits for it."""
        monitor = self._vm.monitor
        if (await monitor.execute("query-status"))["status"] != IO_ERROR:
            self._ended(Intent.PRESENT)
            return Outcome.FINISHED, f"{self.words}: the guest does not wait for it any more"
        disk = self._disk()
        offered = await in_thread(lambda _cancel: attachments.offer(self._vm.host, disk))
        locations = [candidate.location for candidate in offered.choice.candidates]
        result = await fail_over(monitor, disk.names, locations, report=self._vm.report)
        self._ended(Intent.PRESENT)
        words = f"{self.words}: now at {result.after}"
        if not any(record.unfinished for record in self._vm.journal.record.disks.values()):
            words += ", and the guest runs" if await resume(monitor) else ""
        return Outcome.FINISHED, words

    def _ended(self, intent: Intent) -> None:
        journal = self._vm.journal
        known = journal.record.disks[self._uuid]
        work = known.unfinished
        # Whether an interrupted move was done, nobody knows any more, let alone when.
        moving = work is not None and work.operation in (Operation.REPOINT, Operation.FAIL_OVER)
        since = None if moving else known.since
        journal.write(journal.record.with_disk(replace(known, intent=intent, unfinished=None, since=since)))


async def _recover_ended(
    record: VmRecord,
    host: ProviderHost,
    folder: JournalFolder,
    report: Report,
    forget: Collection[uuid_module.UUID],
    *,
    gone: bool,
) -> AsyncIterator[Recovered]:
    """Let the volumes of a VM go whose QEMU has ended, or is ``gone`` for all that the caller knows."""
    journal = Journal(folder, record.name)
    async with journal.locked():
        found = journal.record
        if is_alive(found.process):
            if gone:
                words = f"QEMU runs (process {found.process.pid if found.process else ''}): nothing is taken from it"
                yield Recovered(vm=record.name, outcome=Outcome.LEFT, words=words)
            return
        if not gone and not has_ended(found):
            # It was started again meanwhile.
            return
        if address := await still_has_them(found):
            words = f"the QEMU at {address} has disks of it: nothing is taken from it"
            hint = f"hvext recover --qmp {address} looks at it"
            yield Recovered(vm=record.name, outcome=Outcome.LEFT, words=words, hint=hint)
            return
        for known in found.disks.values():
            # The source of a guest that lives on its target: hvext stop lets them go when the target has them.
            if gone or not was_sent(known):
                yield await _abandoned(known, host, journal, report, forget, "QEMU has ended")


async def still_has_them(record: VmRecord) -> str:
    """Return the monitor of a QEMU that has disks of a VM which is thought to have ended; empty when there is none.

    Its process is told by the socket, and behind a proxy that is the proxy's; and it may have been started again.
    """
    for address in record.monitors:
        with contextlib.suppress(HvextError):
            async with connect(address, connect_timeout_s=CONNECT_S) as monitor:
                if record.disks.keys() & (await running_disks(monitor)).keys():
                    return address
    return ""


async def _recover_start(
    record: VmRecord,
    host: ProviderHost,
    folder: JournalFolder,
    report: Report,
    forget: Collection[uuid_module.UUID],
    error: HvextError,
) -> AsyncIterator[Recovered]:
    """Let the volumes go that were attached for a QEMU whose arguments were never handed out.

    Those that were, are of a QEMU that has yet to start; what else is unfinished, only it could tell about.
    """
    journal = Journal(folder, record.name)
    async with journal.locked():
        if journal.record.process is not None:
            return
        for uuid, known in journal.record.disks.items():
            work = known.unfinished
            if work is None or work.by is None:
                continue
            if of_broken_start(known):
                yield await _abandoned(known, host, journal, report, forget, "QEMU was not started")
            else:
                words = f"{work.operation} of {known.words}: {error.message}"
                hint = f"when its QEMU was never started, or has ended: hvext recover --gone {record.name}"
                yield Recovered(vm=record.name, uuid=uuid, outcome=Outcome.LEFT, words=words, hint=hint)


def of_broken_start(known: DiskRecord) -> bool:
    """Whether a disk is of a start that was interrupted: nobody has its arguments."""
    work = known.unfinished
    return work is not None and work.by is not None and work.operation is Operation.START


async def _abandoned(
    known: DiskRecord,
    host: ProviderHost,
    journal: Journal,
    report: Report,
    forget: Collection[uuid_module.UUID],
    why: str,
) -> Recovered:
    """Let the volume of a disk go that no QEMU has."""
    uuid = known.disk.volume.uuid
    end_scripts(known)
    try:
        whole = known.whole(journal.kept_secrets(known))
        became = await _let_go(known, whole, host, journal, report, forget=uuid in forget)
    except HvextError as error:
        words = f"{known.words}: {error.message}"
        hint = error.hint
        if isinstance(error.__cause__, ProviderNotFound):
            hint = f"{hint}; if it is gone for good: {forget_words(known.disk)}".removeprefix("; ")
        return Recovered(vm=journal.name, uuid=uuid, outcome=Outcome.LEFT, words=words, hint=hint)
    words = f"{known.words}: {why}, {became}"
    return Recovered(vm=journal.name, uuid=uuid, outcome=Outcome.UNDONE, words=words)


async def _let_go(
    known: DiskRecord | None, disk: Disk, host: ProviderHost, journal: Journal, report: Report, *, forget: bool
) -> str:
    """Detach a volume that QEMU has let go of, forget the disk, and say what became of the volume."""
    if forget:
        journal.forget(disk.volume.uuid)
        remove_private(disk.names.root)
        return "forgotten: its volume is as its provider has left it"
    stays = stays_attached(known, disk, read_records(journal.folder), journal.name)
    if stays:
        remove_private(disk.names.root)
    else:
        await carry_out(f"recover {disk.provider}/{disk.volume.name}", [detach_step(host, disk)], report=report)
    journal.forget(disk.volume.uuid)
    return "its volume stays attached, as wished or for another VM" if stays else "volume detached"


def _recover_files(folder: JournalFolder, in_use: set[uuid_module.UUID]) -> list[Recovered]:
    """Remove private files of disks that no VM of this host has; those ``in_use`` are in a guest, whoever knows it."""
    done = []
    # Nobody writes a disk down meanwhile, and so makes no file for it.
    with folder.comparing():
        known = {uuid for record in read_records(folder).values() for uuid in record.disks}
        for name, uuid in files_of_nobody(known | in_use):
            removed = ", ".join(remove_private(name))
            done.append(Recovered(vm="", uuid=uuid, outcome=Outcome.UNDONE, words=f"removed {removed}"))
    return done
