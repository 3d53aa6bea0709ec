"""What the journal has to do with libvirt's domains: whose record it is, and writing operations down."""

from __future__ import annotations

import asyncio
import contextlib
import uuid as uuid_module
from collections.abc import AsyncIterator, Mapping
from typing import Any

from hvext.core.disk import Disk
from hvext.core.record import DiskRecord, Intent, Operation, VmRecord
from hvext.errors import JournalError
from hvext.host.domain import DomainHandle
from hvext.host.journal import JournalFolder
from hvext.host.proc import is_alive, process_id
from hvext.host.provider import ProviderHost
from hvext.operations.domains.views import Views
from hvext.operations.journal import Entry, Journal, read_records
from hvext.operations.reach import LIBVIRT
from hvext.operations.steps import Report
from hvext.operations.telling import named, telling


class Books:
    """The journal of one domain: one operation at a time, each written down before it does anything."""

    def __init__(self, journal: Journal, host: ProviderHost, report: Report) -> None:
        self.journal = journal
        self._host = host
        self._report = report
        # The journal's lock keeps other processes away, this one the other tasks.
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Keep every other operation on this domain away in the block; raises PlugError while it is migrated away."""
        async with self._lock, self.journal.locked():
            if not self.journal.is_seen:
                self.journal.write(self.journal.seen())
            self.journal.check_staying()
            yield

    @contextlib.asynccontextmanager
    async def operation(
        self,
        operation: Operation,
        disk: Disk | None,
        *,
        intent: Intent = Intent.PRESENT,
        one_way: bool = False,
        exclusive: bool = False,
        details: Mapping[str, Any] | None = None,
        about: uuid_module.UUID | None = None,
    ) -> AsyncIterator[Work]:
        """Write an operation on a disk down, ``alone``, and tell whoever listens.

        None is a disk that the journal does not know, and ``about`` its uuid.
        """
        host = self.journal.host(self._host)
        names = named([disk]) if disk else {"disk": str(about)}
        with telling("operation", begins=True, vm=self.journal.name, operation=str(operation), **names):
            if disk is None:
                yield Work(None, host, self._report)
                return
            entry = self.journal.begin(operation, disk, intent=intent, exclusive=exclusive, details=details)
            with entry.written_down(one_way=one_way):
                yield Work(entry, host, entry.reporter(self._report))


class Work:
    """An operation under way."""

    def __init__(self, entry: Entry | None, host: ProviderHost, report: Report) -> None:
        self.entry = entry
        self.host = host
        self.report = report

    @property
    def before(self) -> DiskRecord | None:
        """What was written down about the disk before."""
        return self.entry.before if self.entry else None

    @property
    def shared(self) -> bool:
        """Whether other VMs of this host had the volume as well when it began."""
        return self.entry is not None and self.entry.shared

    def end(self, intent: Intent | None = Intent.PRESENT, **values: Any) -> None:
        """Write down that it ended well; see ``Entry.end``."""
        if self.entry is not None:
            self.entry.end(intent, **values)


def journal_of(domain: DomainHandle, folder: JournalFolder, *, name: str | None, pid: int | None) -> Journal:
    """Return the journal of a domain: under the name that the caller gives, or the domain's own.

    A VM of the same name that another QEMU runs, and that libvirt does not know, keeps its record. QEMU's process is
    not written down: a domain that is shut off goes on having the disks of its persistent configuration.
    """
    chosen = name or domain.name
    known = read_records(folder).get(chosen)
    address = f"{LIBVIRT}{domain.connection.uri} {domain.name}"
    if known is not None and _is_anothers(known, pid):
        chosen = f"{chosen}@libvirt"
    return Journal(folder, chosen, monitor=address)


def _is_anothers(known: VmRecord, pid: int | None) -> bool:
    return is_alive(known.process) and known.process != process_id(pid)


async def adopt(journal: Journal, views: Views) -> None:
    """Take over disks that were written down for a start, before their domain was seen."""
    for record in read_records(journal.folder).values():
        mine = [uuid for uuid in record.disks if views.has(uuid)]
        if record.process is not None or record.monitors or record.name == journal.name or not mine:
            continue
        other = Journal(journal.folder, record.name)
        # Somebody who works on it just now is asked again the next time.
        with contextlib.suppress(JournalError):
            async with journal.locked(), other.locked(limit_s=0):
                for uuid in mine:
                    if uuid in other.record.disks:
                        journal.write(journal.seen().with_disk(other.record.disks[uuid]))
                        other.write(other.record.without_disk(uuid))
