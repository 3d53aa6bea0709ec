"""What a watch that looks once would do to a guest."""

from __future__ import annotations

import contextlib
from uuid import UUID

from hvext.core.disk import Disk
from hvext.core.record import Intent, VmRecord
from hvext.errors import HvextError, JournalError
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S, Monitor, connect
from hvext.operations.dry_run.books import own_record
from hvext.operations.dry_run.guest import LOOKED_AT, DryRun
from hvext.operations.dry_run.planned import Planned, PlannedStep, in_words
from hvext.operations.failover import IO_ERROR, resume_step
from hvext.operations.inspect import running_disk
from hvext.operations.journal import Journal
from hvext.operations.remains import stays_attached
from hvext.operations.steps import Step
from hvext.operations.unplug import Unplugging, detach_step
from hvext.operations.watch.settings import WatchSettings
from hvext.operations.watch.storage import Fault, faults

_ALSO_DEAD = "disks whose storage is found dead meanwhile, and that have not failed yet, are failed over with them"
_SILENT = "storage that is silent is only found by looking for some time: that, and its fence, is not said here"


async def plan_guest(address: str, settings: WatchSettings, host: ProviderHost) -> Planned:
    """Return what would be done for the guest whose monitor is at ``address``; one that is not reached is refused."""
    limit_s = settings.qmp_timeout_s
    try:
        async with connect(address, timeout_s=limit_s, connect_timeout_s=min(limit_s, CONNECT_TIMEOUT_S)) as monitor:
            return await _plan(monitor, address, settings, host)
    except HvextError as error:
        return Planned(operation=f"watch {address}", steps=(), refused=error)


async def _plan(monitor: Monitor, address: str, settings: WatchSettings, host: ProviderHost) -> Planned:
    folder = JournalFolder(settings.state)
    own, records = await own_record(monitor, None, folder)
    known = known_disks(folder, own)
    status = str((await monitor.execute("query-status"))["status"])
    failed = set() if status == "running" else await _failed(monitor)
    steps: list[PlannedStep] = []
    notes = [f"the guest is {status}"]
    for uuid in sorted(failed, key=str):
        if (disk := known.get(uuid)) is None:
            notes.append(f"disk {uuid} has failed, and nobody wrote down whose volume it is: it is left as it is")
            continue
        plan = await DryRun(monitor, host).fail_over(disk)
        steps += plan.steps
        notes += plan.notes
    if failed and status == IO_ERROR and failed <= known.keys():
        steps += in_words([resume_step(monitor)])
    for uuid, record in own.disks.items():
        if record.intent is Intent.ABSENT and (disk := known.get(uuid)) is not None:
            stays = stays_attached(record, disk, records, own.name)
            steps += in_words(await _late(monitor, host, disk, stays=stays))
    notes = list(dict.fromkeys([*notes, *([_ALSO_DEAD] if failed else []), _SILENT]))
    return Planned(operation=f"watch {address}", steps=tuple(steps), notes=tuple(notes), looked_at=LOOKED_AT)


async def _failed(monitor: Monitor) -> set[UUID]:
    return {uuid for uuid, fault in (await faults(monitor)).items() if fault is Fault.FAILED}


async def _late(monitor: Monitor, host: ProviderHost, disk: Disk, *, stays: bool) -> list[Step]:
    """Return what finishes the unplug of a disk that the guest has let go; nothing while it has not."""
    running = await running_disk(monitor, disk.names)
    if running.device is not None:
        return []
    remove = Unplugging(monitor, running).remove_steps()
    return remove if stays else [*remove, detach_step(host, disk)]


def known_disks(folder: JournalFolder, record: VmRecord) -> dict[UUID, Disk]:
    """Return the disks of a record with their parameters; one whose secrets are gone from this host is left out."""
    journal = Journal(folder, record.name)
    found = {}
    for uuid, known in record.disks.items():
        with contextlib.suppress(JournalError):
            found[uuid] = known.whole(journal.kept_secrets(known))
    return found
