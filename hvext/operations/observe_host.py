"""Looking at all VMs of this host that the journals know, again and again, for moments each.

A monitor serves one client at a time: it is let go after each look, and a VM whose monitor another program has, or that
does not answer, is shown with what the journal knows of it.
"""

from __future__ import annotations

import asyncio
import uuid as uuid_module
from collections.abc import Collection, Mapping

from hvext.core.observation import ObservedVm, Writers
from hvext.core.record import ProcessId, VmRecord
from hvext.core.running import RunningDisk
from hvext.core.value import replace
from hvext.errors import CommandTimeout, HvextError, MonitorError
from hvext.host.journal import JournalFolder
from hvext.host.qmp import Monitor, connect
from hvext.operations.audit import reached_at
from hvext.operations.identify import process_of
from hvext.operations.observe import Beside, beside, from_journal, look
from hvext.operations.reach import has_ended, is_domain
from hvext.operations.records import read_records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.operations.domains.observe import DomainLooks

#: How long a monitor that is free takes to greet is milliseconds.
WAIT_S = 1.0
#: So many VMs are looked at side by side.
_SIDE_BY_SIDE = 32
#: Commands that only count take milliseconds; this long takes a QEMU that waits for storage.
_COMMAND_S = 3.0


class HostObserver:
    """Looks at the VMs of a host; ``names`` are those to look at, all when empty.

    What QEMU was asked about disks once is not asked again as long as they use the same nodes.
    """

    def __init__(
        self, *, names: Collection[str] = (), folder: JournalFolder | None = None, wait_s: float = WAIT_S
    ) -> None:
        self._folder = folder or JournalFolder()
        self._names = names
        self._wait_s = wait_s
        self._domains: DomainLooks | None = None
        self._known: dict[str, tuple[ProcessId | None, dict[uuid_module.UUID, RunningDisk]]] = {}

    async def observe(self, *, in_flight: bool = False) -> list[ObservedVm]:
        """Return what is seen of each VM now, by name; raises JournalError when there is no journal to read."""
        records = await asyncio.to_thread(read_records, self._folder)
        writers = Writers(records.values())
        names = [name for name in sorted(records) if not self._names or name in self._names]
        self._known = {name: kept for name, kept in self._known.items() if name in records}
        room = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def one(name: str) -> ObservedVm:
            async with room:
                return await self._observe(beside(self._folder, name, records, writers), in_flight=in_flight)

        return list(await asyncio.gather(*map(one, names)))

    async def _observe(self, said: Beside, *, in_flight: bool) -> ObservedVm:
        record = said.record
        if is_domain(record):
            # Not loaded where nobody uses libvirt.
            from hvext.operations.domains.observe import DomainLooks

            self._domains = self._domains or DomainLooks()
            return await self._domains.look(said, limit_s=_COMMAND_S + self._wait_s)
        if has_ended(record):
            return from_journal(said, "ended")
        if not record.monitors:
            return from_journal(said, "not started")
        state, words = "unreachable", []
        for address in record.monitors:
            try:
                async with connect(address, timeout_s=_COMMAND_S, connect_timeout_s=self._wait_s) as monitor:
                    if _is_its(record, monitor):
                        there = replace(said, record=reached_at(record, address))
                        return await self._look(there, monitor, in_flight=in_flight)
                    words.append(f"{address} belongs to another QEMU now")
            except CommandTimeout as error:
                return from_journal(said, "silent", error.message)
            except MonitorError as error:
                # A monitor that is busy accepts a connection, and greets when the other client has left.
                state = "busy" if isinstance(error.__cause__, TimeoutError) else state
                words.append(error.message)
            except HvextError as error:
                words.append(error.message)
        return from_journal(said, state, "; ".join(words))

    async def _look(self, said: Beside, monitor: Monitor, *, in_flight: bool) -> ObservedVm:
        process = process_of(monitor)
        before, known = self._known.get(said.record.name, (None, {}))
        same: Mapping[uuid_module.UUID, RunningDisk] | None = known if known and before == process else None
        seen = await look(monitor, said, known=same, in_flight=in_flight)
        running = {disk.uuid: disk.running for disk in seen.disks if disk.running is not None}
        self._known[said.record.name] = process, running
        return seen


def _is_its(record: VmRecord, monitor: Monitor) -> bool:
    process = process_of(monitor)
    return record.process is None or process is None or process == record.process
