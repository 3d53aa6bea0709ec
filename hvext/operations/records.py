"""What the journals of all VMs say, and what is true of it: which VMs run, and who has a volume."""

from __future__ import annotations

import time
import uuid as uuid_module
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from hvext.core.disk import Disk
from hvext.core.record import DiskRecord, Operation, ProcessId, Unfinished, VmRecord, parameters_there, same_volume
from hvext.errors import InputError, JournalError, PlugError
from hvext.host.files import resolved_path
from hvext.host.journal import JournalFolder
from hvext.host.proc import is_alive, scripts_of
from hvext.host.process import end_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read_records(folder: JournalFolder, *, but: str | None = None) -> dict[str, VmRecord]:
    """Return the records of all VMs of this host by name, ``but`` one; raises JournalError.

    A record that cannot be read is left out: it must not keep anybody from working on the other VMs.
    """
    return {record.name: record for record in _parsed(folder, but).values() if isinstance(record, VmRecord)}


def broken_records(folder: JournalFolder) -> list[JournalError]:
    """Return why records cannot be read, one error for each that cannot; raises JournalError."""
    return [error for error in _parsed(folder).values() if isinstance(error, JournalError)]


def _parsed(folder: JournalFolder, but: str | None = None) -> dict[str, VmRecord | JournalError]:
    found: dict[str, VmRecord | JournalError] = {}
    for where, text in folder.texts(but).items():
        try:
            found[where] = text if isinstance(text, JournalError) else _read_before(text, where)
        except JournalError as error:
            found[where] = error
    return found


def check_names(names: Sequence[str], folder: JournalFolder) -> None:
    """Raise InputError for the name of a VM that the journal does not have; a record that cannot be read may be its."""
    known = read_records(folder)
    unknown = [name for name in names if name not in known]
    if unknown and not broken_records(folder):
        have = ", ".join(known) or "none"
        raise InputError(f"the journal in {folder.path} has no VM {unknown[0]!r}", hint=f"it has: {have}")


@lru_cache(maxsize=1024)
def _read_before(text: str, where: str) -> VmRecord:
    """Return the record in a text: one process that supervises hundreds of VMs reads the same ones again and again."""
    return VmRecord.from_json(text, where)


def another_runs(record: VmRecord, process: ProcessId | None) -> bool:
    """Return whether a record is that of another QEMU than ``process``, and that one still runs."""
    return process is not None and record.process not in (None, process) and is_alive(record.process)


def name_beside(name: str, process: ProcessId) -> str:
    """Return what a VM is called when another one that runs has its name."""
    return f"{name}@{process.pid}"


def same_storage(one: Disk, other: Disk) -> bool:
    """Whether two disks are on the same volume, also where the paths among their parameters are spelt differently."""
    return same_volume(one, other, resolved_path)


def users_of(disk: Disk, records: Mapping[str, VmRecord], *, but: str) -> list[str]:
    """Return the names of the VMs that have the volume of ``disk``, other than the one called ``but``.

    A VM whose QEMU has ended uses nothing any more.
    """
    return [
        record.name
        for record in records.values()
        if record.name != but
        and (record.process is None or is_alive(record.process))
        and any(same_storage(disk, other.disk) for other in record.disks.values())
    ]


def record_with(uuid: uuid_module.UUID, records: Mapping[str, VmRecord]) -> VmRecord | None:
    """Return the record of a VM that has the disk with this uuid; one that runs goes before one that has ended."""
    having = [record for record in records.values() if uuid in record.disks]
    return next((record for record in having if runs(record)), having[0] if having else None)


def check_twin(disk: Disk, vm: str, there: Iterable[Disk]) -> None:
    """Raise PlugError when one of the disks that a VM has is on the volume of ``disk``, under other parameters."""
    for known in there:
        if known.volume.uuid != disk.volume.uuid and same_storage(known, disk):
            raise PlugError(
                f"VM {vm} has {disk.provider}/{disk.volume.name} already, under other parameters",
                hint=parameters_there(known),
            )


def disks_of(record: VmRecord) -> list[Disk]:
    """Return the disks of a VM as they are written down."""
    return [known.disk for known in record.disks.values()]


def runs(record: VmRecord) -> bool:
    """Return whether a VM's QEMU runs, as far as is known: one that was seen over TCP only may."""
    return is_alive(record.process) or (record.process is None and bool(record.monitors))


def owners_of(disks: Sequence[Disk], records: Mapping[str, VmRecord], *, name: str | None = None) -> list[str]:
    """Return the VMs whose QEMU does not run and that have one of ``disks``: all, or the one called ``name``."""
    return [
        record.name
        for record in records.values()
        if (name is None or record.name == name)
        and not runs(record)
        and any(disk.volume.uuid in record.disks for disk in disks)
    ]


def check_staying(record: VmRecord) -> None:
    """Raise PlugError once a migration of a VM has begun: its target would not be like the guest any more."""
    if any(known.leaving for known in record.disks.values()):
        raise PlugError(
            f"a migration of VM {record.name} has begun: its target was told of the disks as they are",
            hint="end it first: hvext migrate and migrate-finish, or hvext migrate-cancel; "
            "hvext recover settles one that was interrupted",
        )


def waits(operation: Operation, step: str, **details: Any) -> Unfinished:
    """Return what stands in the journal while an operation waits for somebody to go on with it."""
    return Unfinished(operation=operation, since=time.time(), step=step, details=details)


def end_scripts(record: DiskRecord) -> None:
    """End the scripts that a process which is gone had started for a disk: as Ctrl-C would have."""
    work = record.unfinished
    if work is None or is_alive(work.by):
        return
    noted = {work.script.pid} if work.script is not None and is_alive(work.script) else set()
    # One that was started a moment before its process was killed is not written down yet.
    for pid in noted | set(scripts_of(record.disk.volume.uuid)):
        end_group(pid)
