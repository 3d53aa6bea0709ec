"""What a guest, and the journal of its host, have to say about a disk that is to be plugged into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hvext.core.disk import Disk
from hvext.core.documentation import page
from hvext.core.fit import Finding, Subject, ok, problem, unknown
from hvext.core.options import DeviceModel, DiskOptions
from hvext.core.record import Intent, VmRecord
from hvext.core.running import RunningDisk
from hvext.errors import CommandRefused, HvextError, InputError, PlugError
from hvext.host.journal import JournalFolder
from hvext.host.proc import is_alive
from hvext.host.qmp import Monitor
from hvext.operations.journal import taken
from hvext.operations.plug import already
from hvext.operations.questions import Places
from hvext.operations.records import broken_records, check_staying, check_twin, disks_of, users_of
from hvext.operations.unplug import pending

#: What ``query-migrate`` says before, between and after migrations.
_NO_MIGRATION = frozenset(("none", "completed", "failed", "cancelled"))
_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")
_RECOVER = "hvext recover finishes or undoes what was interrupted"


def _twin(disk: Disk, own: VmRecord) -> PlugError | None:
    try:
        check_twin(disk, own.name, disks_of(own))
    except PlugError as error:
        return error
    return None


def of_journal(disk: Disk, own: VmRecord, records: Mapping[str, VmRecord], folder: JournalFolder) -> Iterator[Finding]:
    """Yield whether anybody else has the volume, or is at work on the disk, as far as is written down."""
    words = f"{disk.provider}/{disk.volume.name}"
    users = users_of(disk, records, but=own.name)
    if users:
        yield _of_error(Subject.VOLUME, taken(words, users[0]))
    elif twin := _twin(disk, own):
        yield _of_error(Subject.VOLUME, twin)
    elif broken := broken_records(folder):
        yield unknown(Subject.VOLUME, f"who else has {words}: {broken[0].message}", broken[0].hint or _RECOVER)
    else:
        yield ok(Subject.VOLUME, f"no other VM of this host's journal has {words}")
    known = own.disks.get(disk.volume.uuid)
    if known is None or known.unfinished is None:
        return
    work = known.unfinished
    if is_alive(work.by):
        yield unknown(
            Subject.DISK, f"another hvext is at work on it ({work.operation}: {work.step})", "wait until it has ended"
        )
    elif not known.migrating:
        yield ok(Subject.DISK, f"a {work.operation} of it was interrupted; a plug goes on from there")


def of_disk(running: RunningDisk, own: VmRecord) -> tuple[Finding, bool]:
    """Return what the guest has of the disk, and whether it has it whole: then a plug changes nothing."""
    if running.device is None:
        if running.has_remains:
            return ok(Subject.DISK, "the guest has pieces of it, which a plug removes first"), False
        return ok(Subject.DISK, "the guest does not have it"), False
    known = own.disks.get(running.names.uuid)
    if known is not None and known.intent is Intent.ABSENT:
        return _of_error(Subject.DISK, pending(running.names)), False
    try:
        found = already(running)
    except PlugError as error:
        return _of_error(Subject.DISK, error), False
    return ok(Subject.DISK, f"the guest has it as device {found.device}, at {found.location}"), True


async def of_migration(monitor: Monitor, own: VmRecord) -> Finding:
    """Return whether a migration of the guest is in the way."""
    try:
        check_staying(own)
    except PlugError as error:
        return _of_error(Subject.MIGRATION, error)
    migration = str((await monitor.execute("query-migrate")).get("status", "none"))
    state = str((await monitor.execute("query-status"))["status"])
    if state == "inmigrate":
        return unknown(
            Subject.MIGRATION,
            "the guest has not arrived here yet: its source must have this disk, too, and in the same place",
            "plug it at the source, and migrate then",
        )
    if migration not in _NO_MIGRATION:
        return problem(
            Subject.MIGRATION,
            f"a migration of the guest is under way ({migration}): QEMU takes no device meanwhile",
            "wait until it has ended, or hvext migrate-cancel",
        )
    if state in ("postmigrate", "finish-migrate"):
        return problem(Subject.MIGRATION, "the guest has migrated to another QEMU", "name the monitor of that one")
    return ok(Subject.MIGRATION, "no migration of the guest is under way")


async def of_place(monitor: Monitor, disk: Disk) -> tuple[list[Finding], Disk | None]:
    """Return whether there is room for the disk as it is wished, and the disk in its place."""
    try:
        placed = await Places(monitor).take(disk)
    except (PlugError, InputError) as error:
        return [_of_error(Subject.PLACE, error)], None
    found = [ok(Subject.PLACE, f"{place_words(placed.options)} is free")]
    if disk.options.bootindex is not None and (other := await _with_bootindex(monitor, disk.options.bootindex)):
        found.append(
            problem(
                Subject.OPTIONS,
                f"bootindex {disk.options.bootindex} is that of device {other} already",
                "use another, or leave it out: -o bootindex=N",
            )
        )
    return found, placed


def place_words(options: DiskOptions) -> str:
    """Return where in the guest a disk with its place chosen goes, for people."""
    place = options.placement
    if options.device is DeviceModel.SCSI_HD:
        return f"SCSI id {place.scsi_id}, LUN {place.lun} of {place.bus}"
    return f"slot {place.addr} of pci.0" if place.bus == "pci.0" else f"port {place.bus}"


async def _with_bootindex(monitor: Monitor, bootindex: int) -> str:
    """Return the device that has this bootindex; empty where none has."""
    for path in _CONTAINERS:
        for child in await monitor.execute("qom-list", {"path": path}):
            try:
                value = await monitor.execute("qom-get", {"path": f"{path}/{child['name']}", "property": "bootindex"})
            except CommandRefused:
                # It cannot be booted from.
                continue
            if value == bootindex:
                return str(child["name"])
    return ""


def _of_error(subject: Subject, error: HvextError) -> Finding:
    return problem(subject, error.message, error.hint or f"see {page('troubleshooting')}")
