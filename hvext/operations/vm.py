"""A running guest and all that can be done to its disks: the async face, and a blocking one over it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid as uuid_module
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.record import DiskRecord, Intent, Operation, namesakes
from hvext.core.running import RunningDisk
from hvext.core.uri import Location, parse_uri
from hvext.core.value import replace, value_object
from hvext.errors import DiskNotFound, HvextError, JournalError, PlugError
from hvext.host import interrupts
from hvext.host.files import opened_as
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S, Monitor, connect
from hvext.operations import attachments, batch, failover
from hvext.operations import fence as fencing
from hvext.operations import plug as plugging
from hvext.operations import repoint as repointing
from hvext.operations import resize as resizing
from hvext.operations import unplug as unplugging
from hvext.operations.attachments import Attached, Obstacle, nothing_in_the_way
from hvext.operations.batch import PlugOutcome
from hvext.operations.failover import FailedOver
from hvext.operations.fence import FrozenDisk
from hvext.operations.identify import journal_of
from hvext.operations.inspect import has_device, running_disk, running_disks
from hvext.operations.journal import Entry, Journal
from hvext.operations.plug import Plugged
from hvext.operations.questions import asking
from hvext.operations.repoint import Repointed
from hvext.operations.resize import Resized
from hvext.operations.start import check_disks
from hvext.operations.steps import Report, silent
from hvext.operations.telling import around, named, tell, tell_failed, telling
from hvext.operations.threads import in_thread
from hvext.operations.unplug import Unplugged, UnplugState, pending

_T = TypeVar("_T")


@value_object
class Work:
    """An operation under way: its entries in the journal (none for a disk that the journal does not know)."""

    entries: tuple[Entry, ...]
    host: ProviderHost
    report: Report

    @property
    def before(self) -> DiskRecord | None:
        """What was written down about the disk before, for an operation on one."""
        return self.entries[0].before if self.entries else None

    def end(self, intent: Intent | None = Intent.PRESENT, **values: Any) -> None:
        """Write down that it ended well; see ``Entry.end``."""
        for entry in self.entries:
            entry.end(intent, **values)


class AsyncVm:
    """A running guest, for callers with an event loop. Made by ``open_vm_async``.

    Its operations may be called from several tasks, and several processes may have the same guest: they are carried
    out one after the other, and each is written down in the VM's journal before it does anything.
    """

    def __init__(self, monitor: Monitor, host: ProviderHost, report: Report, journal: Journal) -> None:
        self._monitor = monitor
        self._host = host
        self._report = report
        self._journal = journal
        # The journal's lock keeps other processes away, this one the other tasks.
        self._lock = asyncio.Lock()

    @property
    def monitor(self) -> Monitor:
        """The QMP connection."""
        return self._monitor

    @property
    def journal(self) -> Journal:
        """What is written down about this VM."""
        return self._journal

    @property
    def host(self) -> ProviderHost:
        """Where and how providers are run."""
        return self._host

    @property
    def report(self) -> Report:
        """What is called with the name of every step."""
        return self._report

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Keep every other operation on this VM away in the block, of this process and of others.

        Raises JournalError when another process takes too long.
        """
        async with self._lock, self._journal.locked():
            if not self._journal.is_seen:
                # Disks of a start whose QEMU is seen for the first time.
                self._journal.write(self._journal.seen())
            yield

    @contextlib.asynccontextmanager
    async def staying(self) -> AsyncIterator[None]:
        """Hold what ``alone`` holds, for an operation after which a target would not be like the guest any more.

        Raises PlugError when a migration of the guest has begun.
        """
        async with self.alone():
            self._journal.check_staying()
            yield

    @contextlib.asynccontextmanager
    async def operation(
        self,
        operation: Operation,
        *disks: Disk | None,
        intent: Intent = Intent.PRESENT,
        one_way: bool = False,
        exclusive: bool = False,
        details: Mapping[str, Any] | None = None,
        about: uuid_module.UUID | None = None,
    ) -> AsyncIterator[Work]:
        """Write an operation on disks down, ``alone``, and tell whoever listens.

        None is a disk that the journal does not know, and ``about`` its uuid.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                telling(
                    "operation", begins=True, vm=self._journal.name, operation=str(operation), **_named(disks, about)
                )
            )
            entries = []
            for disk in disks:
                if disk is not None:
                    entry = self._journal.begin(operation, disk, intent=intent, exclusive=exclusive, details=details)
                    entries.append(stack.enter_context(entry.written_down(one_way=one_way)))
            notes = [entry.reporter() for entry in entries]

            def report(name: str) -> None:
                with self._journal.at_once() if len(notes) > 1 else contextlib.nullcontext():
                    for note in notes:
                        note(name)
                self._report(name)

            yield Work(entries=tuple(entries), host=self._journal.host(self._host), report=report)

    async def disks(self) -> dict[uuid_module.UUID, RunningDisk]:
        """Return hvext's disks of the guest by uuid, whole or in pieces."""
        async with self._lock:
            return await running_disks(self._monitor)

    async def known_disks(self, *, leaving: bool = False) -> dict[uuid_module.UUID, Disk]:
        """Return the disks that are meant to be in the guest, with provider, volume and parameters, as written down.

        With ``leaving`` also those whose unplug is pending: the guest has them until it lets them go. A disk whose
        secret parameters are not on this host any more is left out. Raises JournalError.
        """
        known = {}
        for uuid, record in self._journal.read().disks.items():
            with contextlib.suppress(JournalError):
                wanted = leaving or record.intent is Intent.PRESENT
                if wanted and (disk := self._journal.whole(uuid)) is not None:
                    known[uuid] = disk
        return known

    async def failed_over(self) -> set[uuid_module.UUID]:
        """Return the disks that are elsewhere than their access choice says, because their storage had died."""
        return {uuid for uuid, record in self._journal.read().disks.items() if record.failed_over}

    async def offer(self, disk: Disk, *, obstacle: Obstacle = nothing_in_the_way) -> Attached:
        """Ask the provider again what it offers for a disk of the guest: ``attach`` is idempotent.

        Raises DiskNotFound for one that is not written down (asking would attach its volume), ProviderError,
        AccessError.
        """
        async with self.alone():
            if disk.volume.uuid not in self._journal.record.disks:
                raise DiskNotFound(f"disk {disk.names.uuid} is not written down for VM {self._journal.name} any more")
            return await in_thread(lambda cancel: attachments.offer(self._host, disk, obstacle=obstacle, cancel=cancel))

    async def plug(self, disk: Disk, *, exclusive: bool = True) -> Plugged:
        """Attach a disk's volume and plug it; see ``hvext.operations.plug``.

        Repeating a plug that was interrupted completes it. Raises also PlugError for a volume that another VM of this
        host has, unless it is plugged with ``exclusive`` False.
        """
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.staying())
            known = disk.volume.uuid in self._journal.record.disks
            # They change nothing, so that QEMU may answer while the plug is written down.
            questions = await stack.enter_async_context(asking(self._monitor, self._host, disk, known=known))
            work = await stack.enter_async_context(self.operation(Operation.PLUG, disk, exclusive=exclusive))
            before = work.before
            if before is not None and before.intent is Intent.ABSENT:
                await self._check_not_pending(disk)
            result = await plugging.plug(
                self._monitor,
                work.host,
                disk,
                exclusive=exclusive,
                shared=work.entries[0].shared,
                known=known,
                questions=questions,
                report=work.report,
            )
            if not result.changed and before is not None and before.unfinished is None:
                work.entries[0].revert()
            elif result.changed:
                work.end()
            else:
                # It was there before this.
                work.end(since=before.since if before else None)
            return result

    async def _check_not_pending(self, disk: Disk) -> None:
        if (await running_disk(self._monitor, disk.names)).device is not None:
            raise pending(disk.names)

    async def plug_all(self, disks: Sequence[Disk], *, exclusive: bool = True) -> tuple[PlugOutcome, ...]:
        """Attach the volumes of several disks side by side, and plug them; return what became of each, in their order.

        Those that fail are undone, those that are plugged stay. Each is written down as an operation of its own. Raises
        InputError, before anything is done, when two of them are the same disk or want the same place; OperationFailed
        when the end could not be written down.
        """
        check_disks(disks)
        async with self.staying():
            with around(vm=self._journal.name, operation=str(Operation.PLUG)):
                outcomes = await self._plug_all(disks, exclusive=exclusive)
                _tell_outcomes(outcomes)
                return outcomes

    async def _plug_all(self, disks: Sequence[Disk], *, exclusive: bool) -> tuple[PlugOutcome, ...]:
        entries = self._journal.begin_all(Operation.PLUG, disks, intent=Intent.PRESENT, exclusive=exclusive)
        try:
            outcomes = await self._plugged(disks, entries, exclusive=exclusive)
        except (HvextError, asyncio.CancelledError, KeyboardInterrupt) as error:
            # What is left stays written down, for recover.
            if not getattr(error, "left", ()):
                self._journal.settle([], [entry for entry in entries if isinstance(entry, Entry)])
            raise
        _settle(self._journal, entries, outcomes)
        return outcomes

    async def _plugged(
        self, disks: Sequence[Disk], entries: Sequence[Entry | PlugError], *, exclusive: bool
    ) -> tuple[PlugOutcome, ...]:
        known = dict(zip((disk.volume.uuid for disk in disks), entries, strict=True))

        def refused(disk: Disk, running: RunningDisk | None) -> HvextError | None:
            entry = known[disk.volume.uuid]
            if not isinstance(entry, Entry):
                return entry
            leaving = entry.before is not None and entry.before.intent is Intent.ABSENT
            return pending(disk.names) if leaving and running is not None and running.device is not None else None

        def shared(disk: Disk) -> bool:
            entry = known[disk.volume.uuid]
            return isinstance(entry, Entry) and entry.shared

        def report(phase: str, steps: Mapping[int, str]) -> None:
            with self._journal.at_once():
                for number, words in steps.items():
                    entry = entries[number]
                    if isinstance(entry, Entry):
                        entry.note(words)
            self._report(f"{phase} ({len(steps)})")

        host = self._journal.host(self._host)
        return await batch.plug_all(
            self._monitor, host, disks, exclusive=exclusive, shared=shared, refused=refused, report=report
        )

    async def unplug(self, disk: Disk, *, timeout_s: float = unplugging.DEFAULT_TIMEOUT_S) -> Unplugged:
        """Unplug a disk and detach its volume; a PENDING result is finished by a later call, or by ``hvext watch``."""
        async with self.staying():
            return await self._unplug(disk, timeout_s)

    async def _unplug(self, disk: Disk, timeout_s: float, *, keep: bool = False) -> Unplugged:
        # A disk that nobody wrote down may be another guest's, also when this is interrupted and recovered.
        before = self._journal.record.disks.get(disk.volume.uuid)
        attached = before is not None and before.attached
        details = ({} if attached else {"attached": False}) | ({"keep_attached": True} if keep else {})
        async with self.operation(Operation.UNPLUG, disk, intent=Intent.ABSENT, one_way=True, details=details) as work:
            result = await unplugging.unplug_and_detach(
                self._monitor,
                work.host,
                disk,
                timeout_s=timeout_s,
                attached=attached,
                shared=keep or self._journal.is_shared(disk),
                report=work.report,
            )
            _end_unplug(work, result, keep=keep)
        if result.state is UnplugState.ABSENT:
            return replace(result, warnings=namesakes(disk, self._journal.record))
        return result

    async def finish_unplug(self, uuid: uuid_module.UUID) -> Unplugged | None:
        """Finish the unplug of a disk that the guest has let go late; None when there is nothing to finish.

        A disk that is meant to be there, or that nobody wrote down, is left alone. Raises OperationFailed,
        JournalError.
        """
        async with self.alone():
            known = self._journal.record.disks.get(uuid)
            if (
                known is None
                or known.intent is Intent.PRESENT
                or await has_device(self._monitor, known.disk.names.device)
            ):
                return None
            disk = self._journal.whole(uuid)
            return None if disk is None else await self._unplug(disk, timeout_s=0, keep=known.stays_attached)

    async def unplug_only(
        self, uuid: uuid_module.UUID, *, timeout_s: float = unplugging.DEFAULT_TIMEOUT_S
    ) -> Unplugged:
        """Unplug a disk and leave its volume attached: from then on it is the caller's, and written down nowhere."""
        details = {"keep_attached": True}
        async with self.staying():
            known = self._journal.known(uuid)
            unplug = self.operation(
                Operation.UNPLUG, known, intent=Intent.ABSENT, one_way=True, details=details, about=uuid
            )
            async with unplug as work:
                result = await unplugging.unplug(
                    self._monitor, DiskNames(uuid), timeout_s=timeout_s, report=work.report
                )
                _end_unplug(work, result, keep=True)
                return result

    async def repoint(self, uuid: uuid_module.UUID, target: Location | str) -> Repointed:
        """Move a disk to another access to the same volume: a location, or the text of a URI or path."""
        return await self.repoint_to_first(uuid, [_location(target)])

    async def repoint_to_first(self, uuid: uuid_module.UUID, locations: Sequence[Location]) -> Repointed:
        """Move a disk to the first of several accesses to the same volume that it can be moved to."""
        async with self.alone(), self.operation(Operation.REPOINT, self._journal.known(uuid), about=uuid) as work:
            result = await repointing.repoint_to_first(self._monitor, DiskNames(uuid), locations, report=work.report)
            moved: dict[str, Any] = {"since": time.time()} if result.changed else {}
            work.end(failed_over=False, **moved)
            return result

    async def fail_over(
        self, disk: Disk, locations: Sequence[Location | str], *, known: RunningDisk | None = None
    ) -> FailedOver:
        """Put other storage in the place of a disk's dead storage; see ``hvext.operations.failover``.

        Locations may be texts of URIs and paths. ``known`` is what ``disks`` told of the disk when its storage was
        well: dead RBD, NFS and Gluster need it.
        """
        there = [_location(each) for each in locations]
        async with self.alone(), self.operation(Operation.FAIL_OVER, disk) as work:
            result = await failover.fail_over(self._monitor, disk.names, there, known=known, report=work.report)
            work.end(failed_over=True, since=time.time())
            return result

    async def fail_over_frozen(self, frozen: Sequence[FrozenDisk]) -> tuple[FailedOver, ...]:
        """Fence silent storage, cut it off and fail its disks over; see ``hvext.operations.fence``."""
        disks = [each.disk for each in frozen]
        async with self.alone(), self.operation(Operation.FAIL_OVER, *disks) as work:
            results = await fencing.fail_over_frozen(self._monitor, frozen, report=work.report)
            work.end(failed_over=True, since=time.time())
            return results

    async def resume(self) -> bool:
        """Let the guest run again when an I/O error has stopped it, and return whether it had; never else."""
        async with self.alone():
            return await failover.resume(self._monitor)

    async def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Resized:
        """Grow a disk and its volume; the guest sees the new size afterwards."""
        details = {"new_size_mib": new_size_mib, "old_size_mib": old_size_mib}
        async with self.staying(), self.operation(Operation.RESIZE, disk, one_way=True, details=details) as work:
            result = await resizing.resize(
                self._monitor, work.host, disk, new_size_mib, old_size_mib=old_size_mib, report=work.report
            )
            work.end()
            return result


def _location(given: Location | str) -> Location:
    return parse_uri(given, look=opened_as) if isinstance(given, str) else given


def _named(disks: Sequence[Disk | None], about: uuid_module.UUID | None) -> dict[str, object]:
    """Return the names that are told of the disks of an operation."""
    return named([disk for disk in disks if disk is not None]) or ({"disk": str(about)} if about else {})


def _tell_outcomes(outcomes: Sequence[PlugOutcome]) -> None:
    """Tell what became of each of several disks."""
    for outcome in outcomes:
        if outcome.error is not None:
            tell_failed("operation", outcome.error, **named([outcome.disk]))
        else:
            tell("operation", "done", **named([outcome.disk]))


def _settle(journal: Journal, entries: Sequence[Entry | PlugError], outcomes: Sequence[PlugOutcome]) -> None:
    """Write down how a plug of several disks ended."""
    ended: list[Entry] = []
    reverted: list[Entry] = []
    for entry, outcome in zip(entries, outcomes, strict=True):
        if not isinstance(entry, Entry) or outcome.left:
            continue
        done = outcome.plugged
        stayed = done is not None and not done.changed and entry.before is not None and entry.before.unfinished is None
        (reverted if done is None or stayed else ended).append(entry)
    journal.settle(ended, reverted)


def _end_unplug(work: Work, result: Unplugged, *, keep: bool) -> None:
    if result.finished:
        work.end(None)
    elif result.state is UnplugState.PENDING:
        work.end(Intent.ABSENT, keep_attached=keep)
    else:
        # A guest that refused is not going to let it go by itself.
        work.end(Intent.PRESENT)


@contextlib.asynccontextmanager
async def open_vm_async(
    qmp: str,
    *,
    host: ProviderHost | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    report: Report = silent,
    name: str | None = None,
    state: str | None = None,
) -> AsyncIterator[AsyncVm]:
    """Connect to the guest whose QMP monitor is at ``qmp`` (a socket's path or HOST:PORT).

    ``timeout_s`` limits single QMP commands; ``report`` is called with the name of every step that begins. ``name`` is
    the VM's in the journal (default: QEMU's own), ``state`` the journal's folder. Raises MonitorError, JournalError.
    """
    folder = JournalFolder(state)
    async with connect(qmp, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s) as monitor:
        journal = await journal_of(monitor, qmp, name=name, folder=folder)
        yield AsyncVm(monitor, host or ProviderHost(), report, journal)


class Vm:
    """A running guest, for callers without an event loop. Made by ``open_vm``; for one thread at a time."""

    def __init__(self, runner: interrupts.Runner, vm: AsyncVm) -> None:
        self._runner = runner
        self._vm = vm

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(work)

    def disks(self) -> dict[uuid_module.UUID, RunningDisk]:
        """See ``AsyncVm.disks``."""
        return self._run(self._vm.disks())

    def plug(self, disk: Disk, *, exclusive: bool = True) -> Plugged:
        """See ``AsyncVm.plug``."""
        return self._run(self._vm.plug(disk, exclusive=exclusive))

    def plug_all(self, disks: Sequence[Disk], *, exclusive: bool = True) -> tuple[PlugOutcome, ...]:
        """See ``AsyncVm.plug_all``."""
        return self._run(self._vm.plug_all(disks, exclusive=exclusive))

    def unplug(self, disk: Disk, *, timeout_s: float = unplugging.DEFAULT_TIMEOUT_S) -> Unplugged:
        """See ``AsyncVm.unplug``."""
        return self._run(self._vm.unplug(disk, timeout_s=timeout_s))

    def unplug_only(self, uuid: uuid_module.UUID, *, timeout_s: float = unplugging.DEFAULT_TIMEOUT_S) -> Unplugged:
        """See ``AsyncVm.unplug_only``."""
        return self._run(self._vm.unplug_only(uuid, timeout_s=timeout_s))

    def repoint(self, uuid: uuid_module.UUID, target: Location | str) -> Repointed:
        """See ``AsyncVm.repoint``."""
        return self._run(self._vm.repoint(uuid, target))

    def repoint_to_first(self, uuid: uuid_module.UUID, locations: Sequence[Location]) -> Repointed:
        """See ``AsyncVm.repoint_to_first``."""
        return self._run(self._vm.repoint_to_first(uuid, locations))

    def known_disks(self) -> dict[uuid_module.UUID, Disk]:
        """See ``AsyncVm.known_disks``."""
        return self._run(self._vm.known_disks())

    def fail_over(
        self, disk: Disk, locations: Sequence[Location | str], *, known: RunningDisk | None = None
    ) -> FailedOver:
        """See ``AsyncVm.fail_over``."""
        return self._run(self._vm.fail_over(disk, locations, known=known))

    def resume(self) -> bool:
        """See ``AsyncVm.resume``."""
        return self._run(self._vm.resume())

    def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Resized:
        """See ``AsyncVm.resize``."""
        return self._run(self._vm.resize(disk, new_size_mib, old_size_mib=old_size_mib))


@contextlib.contextmanager
def open_vm(
    qmp: str,
    *,
    host: ProviderHost | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    report: Report = silent,
    name: str | None = None,
    state: str | None = None,
) -> Iterator[Vm]:
    """Connect as ``open_vm_async`` does, for callers without an event loop.

    Ctrl-C during an operation undoes what was begun. Raises MonitorError, and HvextError inside a running event loop.
    """
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise HvextError("open_vm blocks, and this thread runs an event loop", hint="use open_vm_async")
    with interrupts.Runner() as runner:
        opening = open_vm_async(
            qmp,
            host=host,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            report=report,
            name=name,
            state=state,
        )
        try:
            yield Vm(runner, runner.run(opening.__aenter__()))
        finally:
            runner.end(opening.gen.aclose())
