"""Which VM a monitor belongs to, as the journal names it.

A VM's name is the one that the caller gives, else QEMU's own (``-name``), else its process number (``qemu-1234``), or
the monitor's address where that is not known (TCP). Two running QEMUs with one name are two VMs: the one that came
later gets its process number behind its name. Where that is not known, their disks tell them apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from hvext.core.record import ProcessId, VmRecord
from hvext.errors import JournalError
from hvext.host.journal import JournalFolder
from hvext.host.proc import is_qemu, process_id
from hvext.host.qmp import Monitor
from hvext.operations.inspect import running_disks
from hvext.operations.journal import Journal, another_runs, name_beside, read_records


async def journal_of(monitor: Monitor, address: str, *, name: str | None = None, folder: JournalFolder) -> Journal:
    """Return the journal of the VM behind a monitor; disks that were written down for its start go into it.

    ``address`` is the monitor's. Raises JournalError, QemuError.
    """
    process = process_of(monitor)
    given = name or str((await monitor.execute("query-name")).get("name", ""))
    where = _absolute(address)
    records = read_records(folder)
    chosen = _name(given, where, process, records)
    if process is None and await _is_another(monitor, where, records.get(chosen)):
        chosen = f"{chosen}@{where}"
    journal = Journal(folder, chosen, monitor=where, process=process)
    await _adopt(monitor, journal, records)
    known = records.get(journal.name)
    if known is not None and known.disks and (known.process != process or where not in known.monitors):
        # Somebody who works on it just now writes it down as well.
        with contextlib.suppress(JournalError):
            async with journal.locked(limit_s=0):
                if not journal.is_seen:
                    journal.write(journal.seen())
    return journal


def process_of(monitor: Monitor) -> ProcessId | None:
    """Return QEMU's process; None where the socket does not tell it: over TCP, and through a proxy (ssh, socat)."""
    process = process_id(monitor.pid)
    return process if process is not None and is_qemu(process.pid) else None


def _name(given: str, address: str, process: ProcessId | None, records: Mapping[str, VmRecord]) -> str:
    if process is not None:
        known = [record.name for record in records.values() if record.process == process]
        if given in known or (known and not given):
            return given or known[0]
        # Whoever comes over another monitor at the same moment has to find the same name.
        given = given or f"qemu-{process.pid}"
        other = records.get(given)
        beside = name_beside(given, process)
        if beside in known or (other is not None and another_runs(other, process)):
            return beside
    return given or address


async def _is_another(monitor: Monitor, address: str, record: VmRecord | None) -> bool:
    """Return whether a QEMU whose process nothing tells is not the one of a record: it has none of its disks."""
    if record is None or not record.disks or not record.monitors or address in record.monitors:
        return False
    return not record.disks.keys() & (await running_disks(monitor)).keys()


async def _adopt(monitor: Monitor, journal: Journal, records: Mapping[str, VmRecord]) -> None:
    """Take over disks that were written down under a name of their own, before their QEMU was seen."""
    unseen = [record for record in records.values() if record.process is None and record.name != journal.name]
    if not unseen:
        return
    running = await running_disks(monitor)
    for record in unseen:
        if running.keys() & record.disks.keys():
            other = Journal(journal.folder, record.name)
            # Somebody who works on it just now is asked again the next time.
            with contextlib.suppress(JournalError):
                async with journal.locked(), other.locked(limit_s=0):
                    for uuid, disk in other.record.disks.items():
                        if uuid in running:
                            journal.write(journal.seen().with_disk(disk))
                            other.write(other.record.without_disk(uuid))


def _absolute(address: str) -> str:
    return str(Path(address).absolute()) if "/" in address or ":" not in address else address
