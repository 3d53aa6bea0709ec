"""What the journal knows of a guest, for who only reads it."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from hvext.core.record import VmRecord
from hvext.core.value import replace
from hvext.host.journal import JournalFolder
from hvext.host.qmp import Monitor
from hvext.operations.identify import process_of
from hvext.operations.inspect import running_disks
from hvext.operations.records import read_records


async def own_record(
    monitor: Monitor, given: str | None, folder: JournalFolder | None = None
) -> tuple[VmRecord, dict[str, VmRecord]]:
    """Return what is written down for the guest behind a monitor, and for all VMs of this host.

    ``given`` is the name that the caller gives it. Raises JournalError.
    """
    records = read_records(folder or JournalFolder())
    process = process_of(monitor)
    name = given or str((await monitor.execute("query-name")).get("name", ""))
    own = VmRecord(name=name)
    for record in records.values():
        if record.process == process if process is not None else record.name == name:
            own = record
            break
    unseen = [record for record in records.values() if record.process is None and record.name != own.name]
    return adopted(own, records, (await running_disks(monitor)).keys() if unseen else ())


def adopted(
    own: VmRecord, records: dict[str, VmRecord], running: Collection[UUID]
) -> tuple[VmRecord, dict[str, VmRecord]]:
    """Return the record of a guest and all others, as they are once the disks of its start are written down as its own.

    Whatever works on the guest does that first. ``running`` are the disks that the guest has.
    """
    left = {}
    for name, record in records.items():
        mine = {uuid: known for uuid, known in record.disks.items() if uuid in running}
        if record.process is None and name != own.name and mine:
            own = replace(own, disks={**own.disks, **mine})
            record = replace(record, disks={uuid: each for uuid, each in record.disks.items() if uuid not in mine})
        left[name] = record
    return own, {**left, own.name: own}
