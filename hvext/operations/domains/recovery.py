"""``hvext audit`` and ``hvext recover`` for libvirt's domains: what the journal knows beside what libvirt has.

libvirt decides: a disk that is in either view of its domain stays, one that is in neither lets its volume go.
"""

from __future__ import annotations

import shlex
import uuid as uuid_module
from collections.abc import AsyncIterator, Iterator
from functools import partial

from hvext.core.audit import Finding, Kind, audit_stopped, audit_unseen
from hvext.core.domain import Domain
from hvext.core.record import DiskRecord, Intent, Operation, VmRecord
from hvext.errors import DomainError, HvextError
from hvext.host.domain import DomainHandle, connect
from hvext.host.journal import JournalFolder
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations.audit import under_way
from hvext.operations.domains.views import Views, look_now
from hvext.operations.domains.vm import AsyncDomain, open_domain_async
from hvext.operations.failover import IO_ERROR
from hvext.operations.journal import Journal, end_scripts, read_records, users_of
from hvext.operations.reach import LIBVIRT
from hvext.operations.recover import Outcome, Recovered
from hvext.operations.steps import Report
from hvext.operations.threads import in_thread


def place_of(record: VmRecord) -> tuple[str, str]:
    """Return the URI of libvirt and the name of the domain there."""
    uri, _blank, name = record.monitors[0].removeprefix(LIBVIRT).partition(" ")
    return uri, name


async def audit_domain(record: VmRecord, folder: JournalFolder) -> list[Finding]:
    """Return what does not fit between the record of a domain and what libvirt has."""
    busy = under_way(record, folder)
    try:
        views, stopped = await in_thread(lambda _cancel: _looked_at(record))
    except HvextError as error:
        return list(audit_unseen(record, under_way=busy, why=error.message))
    rest = [known for uuid, known in record.disks.items() if uuid not in busy]
    found = [finding for known in rest for finding in _fits(record, known, views)]
    busy_ones = [
        Finding(vm=record.name, kind=Kind.UNDER_WAY, uuid=uuid, words=record.disks[uuid].words) for uuid in sorted(busy)
    ]
    return [*busy_ones, *found, *stopped]


def _looked_at(record: VmRecord) -> tuple[Views, list[Finding]]:
    """Return the views of the domain of a record (none of one that is gone), and that an I/O error has stopped it."""
    uri, name = place_of(record)
    with connect(uri) as connection:
        try:
            domain = connection.domain(name)
            views = look_now(domain)
            if views.live is None or domain.state != IO_ERROR:
                return views, []
            return views, why_stopped(domain, views.live, record)[1]
        except DomainError:
            return Views(live=None, config=None), []


def why_stopped(
    domain: DomainHandle, live: Domain, record: VmRecord
) -> tuple[dict[uuid_module.UUID, bool], list[Finding]]:
    """Return the disks whose requests fail, each with whether its storage is full, and what is said about that.

    For a domain that an I/O error has stopped.
    """
    failed = domain.failed_disks()
    disks = {uuid: failed[disk.target] for uuid, disk in live.disks.items() if disk.target in failed}
    gone, full = ({uuid for uuid, is_full in disks.items() if is_full is each} for each in (False, True))
    uri, name = place_of(record)
    again = f"virsh -c {shlex.quote(uri)} resume {shlex.quote(name)}"
    return disks, list(audit_stopped(record, gone, full, again=again, watched=False))


def _fits(record: VmRecord, known: DiskRecord, views: Views) -> Iterator[Finding]:
    uuid, work = known.disk.volume.uuid, known.unfinished
    if work is not None:
        step = f", at step '{work.step}'" if work.step else ""
        words = f"{work.operation} of {known.words}{step}"
        yield Finding(vm=record.name, kind=Kind.UNFINISHED, uuid=uuid, words=words)
    elif known.intent is Intent.ABSENT and views.live_disk(uuid) is not None:
        words = f"the guest has not let {known.disk.names.alias} go"
        yield Finding(vm=record.name, kind=Kind.PENDING, uuid=uuid, words=words)
    elif not views.has(uuid):
        gone = "" if views.present else ", which libvirt does not have any more"
        words = f"{known.words} is attached, and not in the domain{gone}"
        yield Finding(vm=record.name, kind=Kind.UNUSED, uuid=uuid, words=words)


async def recover_domain(
    record: VmRecord, host: ProviderHost, folder: JournalFolder, report: Report
) -> list[Recovered]:
    """Finish or undo what is left of operations on a domain's disks."""
    uri, name = place_of(record)
    try:
        async with open_domain_async(
            uri, name, host=host, report=report, name=record.name, state=str(folder.path)
        ) as domain:
            return [item async for item in _recover(domain, record, folder)]
    except DomainError:
        return await _recover_gone(record, host, folder)
    except HvextError as error:
        return [Recovered(vm=record.name, outcome=Outcome.LEFT, words=error.message, hint=error.hint)]


async def _recover(domain: AsyncDomain, record: VmRecord, folder: JournalFolder) -> AsyncIterator[Recovered]:
    busy = under_way(record, folder)
    for uuid, known in record.disks.items():
        if uuid in busy:
            continue
        end_scripts(known)
        try:
            done = await _one(domain, uuid, known)
        except HvextError as error:
            words = f"{known.words}: {error.message}"
            yield Recovered(vm=record.name, uuid=uuid, outcome=Outcome.LEFT, words=words, hint=error.hint)
        else:
            if done is not None:
                yield Recovered(vm=record.name, uuid=uuid, outcome=done[0], words=f"{known.words}: {done[1]}")


async def _one(domain: AsyncDomain, uuid: uuid_module.UUID, known: DiskRecord) -> tuple[Outcome, str] | None:
    """Do what has to be done about one disk; None when that was nothing."""
    result = await domain.settle(uuid)
    if result is not None:
        outcome = Outcome.FINISHED if known.intent is Intent.ABSENT else Outcome.UNDONE
        detached = ", volume detached" if result.detached else ""
        return outcome if result.finished else Outcome.LEFT, f"{result.state}{detached}"
    disk = domain.journal.whole(uuid)
    work = known.unfinished
    if work is None or disk is None:
        return None
    if work.operation is Operation.RESIZE:
        size = int(work.details["new_size_mib"])
        grown = await domain.resize(disk, size, old_size_mib=work.details.get("old_size_mib"))
        return Outcome.FINISHED, f"the guest sees {grown.after_bytes} bytes"
    live, config = (bool(work.details.get(view)) for view in ("live", "config"))
    running = (await domain.views()).live is not None
    await domain.plug(disk, live=live and running, config=config)
    return Outcome.FINISHED, "the disk is whole"


async def _recover_gone(record: VmRecord, host: ProviderHost, folder: JournalFolder) -> list[Recovered]:
    """Let the volumes and secrets of a domain go that libvirt does not have any more."""
    done = []
    journal = Journal(folder, record.name)
    async with journal.locked():
        for uuid, known in journal.record.disks.items():
            try:
                stays = await in_thread(partial(_let_go, record, known, host, journal))
            except HvextError as error:
                words = f"{known.words}: {error.message}"
                done.append(Recovered(vm=record.name, uuid=uuid, outcome=Outcome.LEFT, words=words, hint=error.hint))
                continue
            journal.forget(uuid)
            became = "its volume stays attached, as wished or for another VM" if stays else "volume detached"
            words = f"{known.words}: the domain is gone, {became}"
            done.append(Recovered(vm=record.name, uuid=uuid, outcome=Outcome.UNDONE, words=words))
    return done


def _let_go(record: VmRecord, known: DiskRecord, host: ProviderHost, journal: Journal, cancel: Cancel) -> bool:
    """Detach the volume of a disk, unless it has to stay, and say whether it does."""
    end_scripts(known)
    with connect(place_of(record)[0]) as connection:
        connection.remove_secrets(known.disk.names.root)
    disk = known.whole(journal.kept_secrets(known))
    stays = known.stays_attached or bool(users_of(disk, read_records(journal.folder), but=journal.name))
    if not stays:
        attachments.detach(host, disk, cancel=cancel)
    return stays
