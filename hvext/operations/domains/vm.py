"""A libvirt domain and all that can be done to its disks: the async face, and a blocking one over it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid as uuid_module
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.observation import ObservedVm
from hvext.core.record import Intent, Operation, namesakes
from hvext.core.uri import Location
from hvext.core.value import replace
from hvext.errors import HvextError, InputError, RepointRefused
from hvext.host import interrupts
from hvext.host.domain import Connection, DomainHandle, connect
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.operations.batch import PlugOutcome
from hvext.operations.domains import plug as plugging
from hvext.operations.domains import repoint as repointing
from hvext.operations.domains import resize as resizing
from hvext.operations.domains import unplug as unplugging
from hvext.operations.domains.books import Books, Work, adopt, journal_of
from hvext.operations.domains.elsewhere import check_disk, in_the_way
from hvext.operations.domains.listing import ListedDisk, list_disks
from hvext.operations.domains.plug import DomainPlugged
from hvext.operations.domains.repoint import DomainRepointed
from hvext.operations.domains.unplug import DomainUnplugged
from hvext.operations.domains.views import Views, look, look_now
from hvext.operations.journal import Journal
from hvext.operations.resize import Resized
from hvext.operations.start import check_disks
from hvext.operations.steps import Report, silent
from hvext.operations.threads import in_thread
from hvext.operations.unplug import DEFAULT_TIMEOUT_S, UnplugState, pending

_T = TypeVar("_T")


class AsyncDomain:
    """A domain of libvirt, for callers with an event loop. Made by ``open_domain_async``.

    ``live`` and ``config`` of its operations name the view of the domain that is changed: what runs, the persistent
    configuration. Without either, both are, as far as there are both.
    """

    def __init__(self, handle: DomainHandle, host: ProviderHost, report: Report, journal: Journal) -> None:
        self._handle = handle
        self._host = host
        self._books = Books(journal, host, report)

    @property
    def handle(self) -> DomainHandle:
        """The domain itself."""
        return self._handle

    @property
    def journal(self) -> Journal:
        """What is written down about this domain."""
        return self._books.journal

    async def views(self) -> Views:
        """Return what runs of the domain, and its persistent configuration."""
        return await look(self._handle)

    async def disks(self) -> dict[uuid_module.UUID, ListedDisk]:
        """Return hvext's disks of the domain by uuid: of what runs, and of the persistent configuration."""
        return await in_thread(lambda _cancel: list_disks(self._handle))

    async def observe(self) -> tuple[ObservedVm, dict[uuid_module.UUID, ListedDisk]]:
        """Return what is seen of the domain now, and its disks as ``disks`` does; changes nothing.

        Sizes are asked for, whatever storage the disks are on. Raises QemuError, JournalError.
        """
        # Nothing else needs what this loads.
        from hvext.operations.domains.observe import look_listed

        return await in_thread(lambda _cancel: look_listed(self._handle, self.journal))

    async def plug(
        self, disk: Disk, *, live: bool = False, config: bool = False, exclusive: bool = True
    ) -> DomainPlugged:
        """Attach a disk's volume and plug it; see ``hvext.operations.domains.plug``.

        Repeating a plug that was interrupted completes it. Raises also PlugError for a volume that another VM of this
        host has, unless it is plugged with ``exclusive`` False, and DomainError for a view that there is not.
        """
        async with self._books.alone():
            views = await look(self._handle)
            scope = views.scope(live=live, config=config)
            details = {"live": scope.live, "config": scope.config}
            async with self._books.operation(Operation.PLUG, disk, exclusive=exclusive, details=details) as work:
                before = work.before
                if before is not None and before.intent is Intent.ABSENT and views.live_disk(disk.volume.uuid):
                    raise pending(disk.names)
                result = await plugging.plug(
                    self._handle,
                    work.host,
                    disk,
                    views,
                    scope,
                    exclusive=exclusive,
                    shared=work.shared,
                    report=work.report,
                )
                if not result.changed and before is not None and before.unfinished is None and work.entry:
                    work.entry.revert()
                elif result.changed:
                    work.end()
                else:
                    # It was there before this.
                    work.end(since=before.since if before else None)
                return result

    async def plug_all(
        self, disks: Sequence[Disk], *, live: bool = False, config: bool = False
    ) -> tuple[PlugOutcome, ...]:
        """Plug several disks one after the other and return what became of each; those that fail are undone.

        Raises InputError, before anything is done, when two of them are the same disk or want the same place.
        """
        check_disks(disks)
        outcomes = []
        for disk in disks:
            try:
                done = await self.plug(disk, live=live, config=config)
            except HvextError as error:
                outcomes.append(PlugOutcome(disk=disk, error=error))
            else:
                outcomes.append(PlugOutcome(disk=disk, plugged=done))
        return tuple(outcomes)

    async def unplug(
        self, disk: Disk, *, live: bool = False, config: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> DomainUnplugged:
        """Unplug a disk and, once neither view has it, detach its volume; a PENDING result is finished by a later call.

        What the guest lets go late, libvirt removes by itself; secrets and volume go with the next call.
        """
        async with self._books.alone():
            return await self._unplug(disk, live=live, config=config, timeout_s=timeout_s)

    async def _unplug(
        self, disk: Disk, *, live: bool, config: bool, timeout_s: float, keep: bool = False
    ) -> DomainUnplugged:
        views = await look(self._handle)
        scope = views.scope(live=live, config=config)
        if not keep:
            await self._check_reach(views, disk.volume.uuid)
        # A disk that nobody wrote down may be another guest's.
        before = self.journal.record.disks.get(disk.volume.uuid)
        attached = before is not None and before.attached
        details = ({} if attached else {"attached": False}) | ({"keep_attached": True} if keep else {})
        unplug = self._books.operation(Operation.UNPLUG, disk, intent=Intent.ABSENT, one_way=True, details=details)
        async with unplug as work:
            result = await unplugging.unplug_and_detach(
                self._handle,
                work.host,
                disk,
                views,
                scope,
                timeout_s=timeout_s,
                asked=before is not None and before.intent is Intent.ABSENT,
                attached=attached,
                shared=keep or self.journal.is_shared(disk),
                report=work.report,
            )
            await self._end_unplug(work, result, disk.volume.uuid, keep=keep)
        if result.state is UnplugState.ABSENT:
            return replace(result, warnings=namesakes(disk, self.journal.record))
        return result

    async def _check_reach(self, views: Views, uuid: uuid_module.UUID) -> None:
        """Raise DomainError for a disk whose volume was attached on another host, where the domain runs."""
        known = views.live_disk(uuid) or views.config_disk(uuid)
        await in_thread(lambda _cancel: check_disk(self._handle, known))

    async def _end_unplug(self, work: Work, result: DomainUnplugged, uuid: uuid_module.UUID, *, keep: bool) -> None:
        views = await look(self._handle)
        if result.state is UnplugState.PENDING and views.config_disk(uuid) is None:
            work.end(Intent.ABSENT, keep_attached=keep)
        elif views.has(uuid):
            # The view that was not meant keeps it, or the guest does.
            work.end(Intent.PRESENT)
        else:
            work.end(None)

    async def unplug_only(
        self,
        uuid: uuid_module.UUID,
        *,
        live: bool = False,
        config: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> DomainUnplugged:
        """Unplug a disk and leave its volume attached: from then on it is the caller's, and written down nowhere."""
        async with self._books.alone():
            known = self.journal.known(uuid)
            if known is not None:
                return await self._unplug(known, live=live, config=config, timeout_s=timeout_s, keep=True)
            views = await look(self._handle)
            scope = views.scope(live=live, config=config)
            async with self._books.operation(Operation.UNPLUG, None, about=uuid) as work:
                return await unplugging.unplug(
                    self._handle, DiskNames(uuid), views, scope, timeout_s=timeout_s, report=work.report
                )

    async def settle(self, uuid: uuid_module.UUID) -> DomainUnplugged | None:
        """Unplug a disk whose unplug was begun, and let the volume go of one that neither view has; None for others."""
        async with self._books.alone():
            known = self.journal.record.disks.get(uuid)
            if known is None or (known.intent is Intent.PRESENT and (await look(self._handle)).has(uuid)):
                return None
            disk = self.journal.whole(uuid)
            if disk is None:
                return None
            keep = known.stays_attached
            return await self._unplug(disk, live=False, config=False, timeout_s=DEFAULT_TIMEOUT_S, keep=keep)

    async def finish_unplugs(self) -> tuple[DomainUnplugged, ...]:
        """Finish the unplugs that were pending, of disks that the guest has let go since; may be repeated."""
        views = await look(self._handle)
        known = self.journal.read().disks
        late = [uuid for uuid, each in known.items() if each.intent is Intent.ABSENT and not views.has(uuid)]
        done = [await self.settle(uuid) for uuid in late]
        return tuple(each for each in done if each is not None)

    async def repoint(
        self, uuid: uuid_module.UUID, locations: Sequence[Location], *, through_monitor: bool = False
    ) -> DomainRepointed:
        """Move a disk to the first of several accesses to the same volume that it can be moved to, past libvirt.

        Raises RepointRefused with libvirt's reason without ``through_monitor``.
        """
        names = DiskNames(uuid)
        if not through_monitor:
            raise repointing.refusal(names)
        async with (
            self._books.alone(),
            self._books.operation(Operation.REPOINT, self.journal.known(uuid), about=uuid) as work,
        ):
            *others, last = locations
            for location in (*others, last):
                views = await look(self._handle)
                try:
                    await self._check_place(location)
                    result = await repointing.repoint(self._handle, names, location, views, report=work.report)
                except RepointRefused:
                    if location is last:
                        raise
                    continue
                moved: dict[str, Any] = {"since": time.time()} if result.changed else {}
                work.end(failed_over=False, **moved)
                return result
        raise InputError("there is no place to move the disk to")

    async def _check_place(self, location: Location) -> None:
        """Raise RepointRefused for a place that is not the same on the domain's host."""
        if why := await in_thread(lambda _cancel: in_the_way(self._handle, location)):
            raise RepointRefused(f"cannot move a disk to {location.words}: {why}")

    async def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Resized:
        """Grow a disk and its volume; the guest sees the new size afterwards."""
        details = {"new_size_mib": new_size_mib, "old_size_mib": old_size_mib}
        async with (
            self._books.alone(),
            self._books.operation(Operation.RESIZE, disk, one_way=True, details=details) as work,
        ):
            views = await look(self._handle)
            await self._check_reach(views, disk.volume.uuid)
            result = await resizing.resize(
                self._handle,
                work.host,
                disk,
                new_size_mib,
                views,
                old_size_mib=old_size_mib,
                report=work.report,
            )
            work.end()
            return result


@contextlib.asynccontextmanager
async def open_domain_async(
    uri: str,
    domain: str,
    *,
    host: ProviderHost | None = None,
    report: Report = silent,
    name: str | None = None,
    state: str | None = None,
) -> AsyncIterator[AsyncDomain]:
    """Connect to libvirt at ``uri`` and look up a domain, by its name or uuid.

    ``name`` is the VM's in the journal (default: the domain's), ``state`` the journal's folder. What other than that
    waits in ``open_vm_async`` has no time limits here: libvirt has its own. Raises MonitorError, DomainError,
    JournalError, and ProgramError without libvirt's library.
    """
    with contextlib.ExitStack() as stack:
        handle, pid, views = await in_thread(lambda _cancel: _open(stack, uri, domain))
        journal = journal_of(handle, JournalFolder(state), name=name, pid=pid)
        await adopt(journal, views)
        yield AsyncDomain(handle, host or ProviderHost(), report, journal)


def _open(stack: contextlib.ExitStack, uri: str, name: str) -> tuple[DomainHandle, int | None, Views]:
    connection: Connection = stack.enter_context(connect(uri))
    handle = connection.domain(name)
    return handle, handle.pid, look_now(handle)


class LibvirtVm:
    """A domain of libvirt, for callers without an event loop. Made by ``open_domain``; for one thread at a time."""

    def __init__(self, runner: interrupts.Runner, domain: AsyncDomain) -> None:
        self._runner = runner
        self._domain = domain

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(work)

    @property
    def handle(self) -> DomainHandle:
        """The domain itself."""
        return self._domain.handle

    def disks(self) -> dict[uuid_module.UUID, ListedDisk]:
        """See ``AsyncDomain.disks``."""
        return self._run(self._domain.disks())

    def observe(self) -> tuple[ObservedVm, dict[uuid_module.UUID, ListedDisk]]:
        """See ``AsyncDomain.observe``."""
        return self._run(self._domain.observe())

    def plug(self, disk: Disk, *, live: bool = False, config: bool = False, exclusive: bool = True) -> DomainPlugged:
        """See ``AsyncDomain.plug``."""
        return self._run(self._domain.plug(disk, live=live, config=config, exclusive=exclusive))

    def plug_all(self, disks: Sequence[Disk], *, live: bool = False, config: bool = False) -> tuple[PlugOutcome, ...]:
        """See ``AsyncDomain.plug_all``."""
        return self._run(self._domain.plug_all(disks, live=live, config=config))

    def unplug(
        self, disk: Disk, *, live: bool = False, config: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> DomainUnplugged:
        """See ``AsyncDomain.unplug``."""
        return self._run(self._domain.unplug(disk, live=live, config=config, timeout_s=timeout_s))

    def unplug_only(
        self,
        uuid: uuid_module.UUID,
        *,
        live: bool = False,
        config: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> DomainUnplugged:
        """See ``AsyncDomain.unplug_only``."""
        return self._run(self._domain.unplug_only(uuid, live=live, config=config, timeout_s=timeout_s))

    def finish_unplugs(self) -> tuple[DomainUnplugged, ...]:
        """See ``AsyncDomain.finish_unplugs``."""
        return self._run(self._domain.finish_unplugs())

    def repoint(
        self, uuid: uuid_module.UUID, locations: Sequence[Location], *, through_monitor: bool = False
    ) -> DomainRepointed:
        """See ``AsyncDomain.repoint``."""
        return self._run(self._domain.repoint(uuid, locations, through_monitor=through_monitor))

    def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Resized:
        """See ``AsyncDomain.resize``."""
        return self._run(self._domain.resize(disk, new_size_mib, old_size_mib=old_size_mib))


@contextlib.contextmanager
def open_domain(
    uri: str,
    domain: str,
    *,
    host: ProviderHost | None = None,
    report: Report = silent,
    name: str | None = None,
    state: str | None = None,
) -> Iterator[LibvirtVm]:
    """Connect as ``open_domain_async`` does, for callers without an event loop."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise HvextError("open_domain blocks, and this thread runs an event loop", hint="use open_domain_async")
    with interrupts.Runner() as runner:
        opening = open_domain_async(uri, domain, host=host, report=report, name=name, state=state)
        try:
            yield LibvirtVm(runner, runner.run(opening.__aenter__()))
        finally:
            runner.end(opening.gen.aclose())
