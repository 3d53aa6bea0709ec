"""What ``hvext recover`` would do about the disks of a domain of libvirt."""

from __future__ import annotations

from collections.abc import Iterator

from hvext.core.disk import Disk
from hvext.core.record import DiskRecord, Intent, Operation, VmRecord
from hvext.errors import DomainError, HvextError
from hvext.host.domain import DomainHandle, connect
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.operations.audit import under_way
from hvext.operations.domains.recovery import place_of
from hvext.operations.domains.views import look_now
from hvext.operations.dry_run.domains import LOOKED_AT, DryDomain
from hvext.operations.dry_run.planned import Planned, in_words
from hvext.operations.journal import Journal, read_records
from hvext.operations.remains import stays_attached
from hvext.operations.unplug import detach_step

_GONE = "the domain is gone, and its secrets in libvirt are removed with the disk"


def plan_domain(record: VmRecord, host: ProviderHost, folder: JournalFolder) -> list[Planned]:
    """Return what would be done about the disks of a domain; libvirt that cannot be asked is refused. For a thread."""
    uri, name = place_of(record)
    try:
        with connect(uri, read_only=True) as connection:
            try:
                domain = connection.domain(name)
            except DomainError:
                return [_gone(record, known, host, folder) for known in record.disks.values()]
            return list(_plans(domain, record, host, folder))
    except HvextError as error:
        return [Planned(operation=f"recover {record.name}", steps=(), refused=error)]


def _plans(domain: DomainHandle, record: VmRecord, host: ProviderHost, folder: JournalFolder) -> Iterator[Planned]:
    busy = under_way(record, folder)
    for uuid, known in record.disks.items():
        if uuid in busy:
            continue
        operation = f"recover {record.name}: {known.words}"
        try:
            plan = _disk(domain, record, known, host, folder)
        except HvextError as error:
            yield Planned(operation=operation, steps=(), refused=error)
            continue
        if plan is not None:
            yield Planned(
                operation=operation, steps=plan.steps, notes=plan.notes, looked_at=plan.looked_at, xml=plan.xml
            )


def _disk(
    domain: DomainHandle, record: VmRecord, known: DiskRecord, host: ProviderHost, folder: JournalFolder
) -> Planned | None:
    """Return what would be done about one disk; None for nothing."""
    disk = _whole(record, known, folder)
    work, views = known.unfinished, look_now(domain)
    if known.intent is not Intent.PRESENT or not views.has(disk.volume.uuid):
        asked = DryDomain(domain, host, live=False, config=False, name=record.name, recovers=True)
        return asked.unplug(disk.names, None if known.stays_attached else disk)
    if work is None:
        return None
    if work.operation is Operation.RESIZE:
        asked = DryDomain(domain, host, live=False, config=False, name=record.name, recovers=True)
        size_mib, old_mib = int(work.details["new_size_mib"]), work.details.get("old_size_mib")
        return asked.resize(disk, size_mib, old_size_mib=old_mib)
    live, config = (bool(work.details.get(view)) for view in ("live", "config"))
    live = live and views.live is not None
    return DryDomain(domain, host, live=live, config=config, name=record.name, recovers=True).plug([disk])[0]


def _gone(record: VmRecord, known: DiskRecord, host: ProviderHost, folder: JournalFolder) -> Planned:
    operation = f"recover {record.name}: {known.words}"
    try:
        disk = _whole(record, known, folder)
    except HvextError as error:
        return Planned(operation=operation, steps=(), refused=error)
    stays = stays_attached(known, disk, read_records(folder), record.name)
    steps = [] if stays else [detach_step(host, disk)]
    return Planned(operation=operation, steps=in_words(steps), notes=(_GONE,), looked_at=LOOKED_AT)


def _whole(record: VmRecord, known: DiskRecord, folder: JournalFolder) -> Disk:
    return known.whole(Journal(folder, record.name).kept_secrets(known))
