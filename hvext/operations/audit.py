"""``hvext audit``: the journal, every QEMU it knows, and the host's private files, compared. Nothing is changed."""

from __future__ import annotations

import asyncio
import uuid as uuid_module
from collections.abc import Iterable, Mapping, Sequence

from hvext.core.audit import (
    Finding,
    Kind,
    audit_broken,
    audit_ended,
    audit_files,
    audit_stopped,
    audit_unseen,
    audit_vm,
)
from hvext.core.record import VmRecord
from hvext.core.value import replace
from hvext.errors import HvextError
from hvext.host.journal import JournalFolder
from hvext.host.private import private_files
from hvext.host.proc import is_alive
from hvext.host.qmp import DEFAULT_TIMEOUT_S, Monitor
from hvext.operations.failover import IO_ERROR
from hvext.operations.inspect import running_disks
from hvext.operations.journal import broken_records, read_records, users_of
from hvext.operations.reach import CONNECT_S, has_ended, is_domain, reach
from hvext.operations.vm import AsyncVm, open_vm_async

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.operations.watch.storage import Fault

#: How often a VM is looked at again when somebody changed it meanwhile.
_LOOKS = 5


async def audit(
    *,
    folder: JournalFolder | None = None,
    monitors: Sequence[str] = (),
    names: Sequence[str] = (),
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> list[Finding]:
    """Return what does not fit together, on this host or in the VMs called ``names`` or at ``monitors``.

    Raises JournalError, and MonitorError for one of ``monitors``; a VM that cannot be asked is a finding.
    """
    folder = folder or JournalFolder()
    everything = not (names or monitors)
    # Looked at first: whoever makes one has written its disk down before.
    files = await asyncio.to_thread(private_files)
    findings: list[Finding] = []
    seen: set[str] = set()
    disks: set[uuid_module.UUID] = set()
    for address in monitors:
        async with open_vm_async(
            address, timeout_s=timeout_s, connect_timeout_s=CONNECT_S, state=str(folder.path)
        ) as vm:
            findings += await audit_running_vm(vm, disks)
            seen.add(vm.journal.name)
    records = read_records(folder)
    for record in records.values():
        disks |= set(record.disks)
        if record.name in seen or not (everything or record.name in names):
            continue
        findings += await _audit_record(record, folder, timeout_s, disks)
    if everything:
        broken = broken_records(folder)
        findings += audit_broken(broken)
        # Whose files there are, a record that cannot be read would tell.
        findings += () if broken else audit_files(await _still_there(files), disks)
    return [_with_users(each, records) for each in findings]


def _with_users(finding: Finding, records: Mapping[str, VmRecord]) -> Finding:
    """Return a finding of a volume that nobody seems to need, with the VMs that have it all the same."""
    record = records.get(finding.vm)
    known = record.disks.get(finding.uuid) if record and finding.uuid else None
    if known is None or finding.kind not in (Kind.ENDED, Kind.UNUSED):
        return finding
    if not (users := users_of(known.disk, records, but=finding.vm)):
        return finding
    return replace(finding, words=f"{finding.words}; it stays attached: VM {', '.join(users)} has it")


async def _still_there(files: Iterable[str]) -> list[str]:
    """Return those of the private files that are there now: the others went with a disk that was unplugged."""
    now = set(await asyncio.to_thread(private_files))
    return [name for name in files if name in now]


async def audit_running_vm(vm: AsyncVm, disks: set[uuid_module.UUID] | None = None) -> list[Finding]:
    """Return what does not fit in one VM; the uuids of its disks are added to ``disks``."""
    for _look in range(_LOOKS):
        files = await asyncio.to_thread(private_files)
        record = vm.journal.read()
        running = await running_disks(vm.monitor)
        fdsets = await vm.monitor.execute("query-fdsets")
        if vm.journal.read() == record:
            break
    if disks is not None:
        disks |= {*record.disks, *(uuid for uuid, disk in running.items() if disk.device)}
    opaque = [str(fd["opaque"]) for fdset in fdsets for fd in fdset["fds"] if "opaque" in fd]
    busy = under_way(record, vm.journal.folder)
    found = audit_vm(record, running, under_way=busy, fdsets=opaque, files=await _still_there(files))
    if (await vm.monitor.execute("query-status"))["status"] != IO_ERROR:
        return list(found)
    _faults, stopped = await why_stopped(vm.monitor, reached_at(record, vm.journal.seen().monitors[0]))
    return [*found, *stopped]


def reached_at(record: VmRecord, address: str) -> VmRecord:
    """Return a record with the monitor first that was just reached: it is free, which others may not be."""
    return record.seen(address, None)


async def why_stopped(monitor: Monitor, record: VmRecord) -> tuple[dict[uuid_module.UUID, Fault], list[Finding]]:
    """Return which disks have stopped a guest that an I/O error has stopped, and what is said about that.

    The first of the record's monitors is the one that is named for the cure.
    """
    # Only where there is such a guest: it is with all that supervises one.
    from hvext.operations.watch.storage import Fault, faults

    disks = await faults(monitor)
    failed, full = ({uuid for uuid, fault in disks.items() if fault is each} for each in (Fault.FAILED, Fault.NO_SPACE))
    return disks, list(audit_stopped(record, failed, full))


def under_way(record: VmRecord, folder: JournalFolder) -> set[uuid_module.UUID]:
    """Return the disks of a VM that a living process works on.

    One that lives and has let the VM's lock go has given up, and left them.
    """
    if not folder.is_locked(record.name):
        return set()
    works = {uuid: known.unfinished for uuid, known in record.disks.items() if known.unfinished is not None}
    return {uuid for uuid, work in works.items() if is_alive(work.by)}


async def _audit_record(
    record: VmRecord, folder: JournalFolder, timeout_s: float, disks: set[uuid_module.UUID]
) -> list[Finding]:
    if is_domain(record):
        # Only where there are such: it loads all that works with libvirt.
        from hvext.operations.domains.recovery import audit_domain

        return await audit_domain(record, folder)
    if has_ended(record):
        return list(audit_ended(record))
    try:
        async with reach(record, folder=folder, timeout_s=timeout_s) as vm:
            return await audit_running_vm(vm, disks)
    except HvextError as error:
        return list(audit_unseen(record, under_way=under_way(record, folder), why=error.message))
