"""What is seen of a VM and its disks at one moment: what QEMU has and counts, what is written down, what is odd."""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Iterable, Sequence
from enum import StrEnum

from hvext.core.health import Health
from hvext.core.identity import DiskNames
from hvext.core.moment import utc_text
from hvext.core.options import Throttle
from hvext.core.record import DiskRecord, Intent, Operation, VmRecord, volume_key
from hvext.core.running import RunningDisk
from hvext.core.statistics import DiskCounts
from hvext.core.value import field, fields, value_object

#: What block devices of the host are opened with; everything else QEMU opens by itself.
_KERNEL_DRIVER = "host_device"
USERSPACE, KERNELSPACE = "userspace", "kernelspace"


class Oddity(StrEnum):
    """What can be odd about a disk."""

    MAPPED = "mapped"
    BUFFERED = "buffered"
    SECOND_WRITER = "second-writer"
    STUCK = "stuck"
    UNKNOWN = "unknown"
    FULL = "no-space"
    FAILED = "failed"


@value_object
class DiskWarning:
    """One thing that is odd about a disk, in ``words`` for people; a ``note`` is worth knowing, and needs nobody."""

    oddity: Oddity
    words: str
    note: bool = False


@value_object
class Place:
    """A place where a disk's volume can be opened: its access, a URI or path without secrets, and how it is.

    ``health`` is None for one that cannot be looked at beside the guest (vhost-user), or that nobody here can look at.
    """

    access: str
    where: str
    health: Health | None

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {"access": self.access, "where": self.where, "health": self.health.to_json() if self.health else None}


@value_object
class Offered:
    """What a disk's provider said when it was asked: its ``places``, or the ``error`` that came instead.

    ``block_path`` is the block device that it has mapped, ``used_by`` what on this host uses that beside QEMU.
    """

    places: tuple[Place, ...] = ()
    error: str = ""
    block_path: str | None = None
    used_by: tuple[str, ...] = ()


@value_object
class Pending:
    """An operation that is not finished: ``state`` says who goes on with it; ``since`` is seconds since 1970."""

    operation: Operation
    state: str
    step: str = ""
    since: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {"operation": str(self.operation), "state": self.state, "step": self.step, "since": _time(self.since)}


@value_object
class ObservedDisk:
    """One disk of a VM.

    ``running`` is what QEMU has of it, None for one that only the journal knows; ``record`` what is written down, None
    for one that nobody wrote down. ``in_flight`` is how many requests the guest waits for, None where that cannot be
    told (those of a SCSI controller with several disks). ``offered`` is None when the provider was not asked.
    """

    uuid: uuid_module.UUID
    running: RunningDisk | None = None
    record: DiskRecord | None = None
    counts: DiskCounts | None = None
    in_flight: int | None = None
    throttle: Throttle | None = None
    pending: Pending | None = None
    offered: Offered | None = None
    warnings: tuple[DiskWarning, ...] = ()

    @property
    def access(self) -> str | None:
        """The access in use: ``userspace`` or ``kernelspace``; None where QEMU has no storage open for the disk."""
        return access_of(self.running)

    @property
    def since(self) -> float | None:
        """When the disk came to the storage it is at, in seconds since 1970; None where that is not known.

        While a move is not finished, nobody knows whether it was done.
        """
        moving = self.pending is not None and self.pending.operation in (Operation.REPOINT, Operation.FAIL_OVER)
        return None if moving or not self.record or not self.access else self.record.since

    @property
    def volume(self) -> str:
        """Provider and volume, or the uuid of a disk that nobody wrote down."""
        return self.record.words if self.record else str(self.uuid)

    def to_json(self) -> dict[str, object]:
        """Return it for machines: what ``RunningDisk.to_json`` has, and all of this."""
        running, record = self.running or RunningDisk.nothing(DiskNames(self.uuid)), self.record
        return {
            **running.to_json(),
            "provider": record.disk.provider if record else None,
            "volume": record.disk.volume.name if record else None,
            "access": self.access,
            "since": _time(self.since),
            "failed_over": record.failed_over if record else None,
            "pending": self.pending.to_json() if self.pending else None,
            "statistics": self.counts.to_json() if self.counts else None,
            "in_flight": self.in_flight,
            "throttle": _limits(self.throttle),
            "candidates": [each.to_json() for each in self.offered.places] if self.offered else None,
            "block_path": self.offered.block_path if self.offered else None,
            "warnings": [{"kind": str(each.oddity), "words": each.words, "note": each.note} for each in self.warnings],
        }


@value_object
class ObservedVm:
    """One VM at ``taken_s`` of a monotonic clock.

    ``state`` is what QEMU says of its guest (``running``, ``paused``, ``io-error``, …) or why it could not be asked:
    ``busy``, ``silent``, ``unreachable``, ``ended``, ``not started``, ``shut off``; ``words`` say more then, and of a
    guest that an I/O error has stopped which is of no disk of hvext's.
    """

    name: str
    state: str
    taken_s: float
    asked: bool = True
    words: str = ""
    disks: tuple[ObservedDisk, ...] = field(default=())


def access_of(running: RunningDisk | None) -> str | None:
    """Return the access that a disk is at, or None where QEMU has no storage open for it."""
    if running is None or running.device is None:
        return None
    if running.behind_vhost_user:
        return USERSPACE
    node = running.protocol
    return None if node is None else KERNELSPACE if node.driver == _KERNEL_DRIVER else USERSPACE


class Writers:
    """Which VMs write which volumes, as far as is written down.

    Two sides of one migration are no two writers: only one of them runs.
    """

    def __init__(self, records: Iterable[VmRecord] = ()) -> None:
        self._names: dict[object, list[str]] = {}
        for record in records:
            for known in record.disks.values():
                if not known.disk.options.read_only and not known.migrating:
                    self._names.setdefault(volume_key(known.disk), []).append(record.name)

    def beside(self, name: str, record: DiskRecord) -> tuple[str, ...]:
        """Return the other VMs that write the volume of a disk of the VM called ``name``, if that one does."""
        names = self._names.get(volume_key(record.disk), ())
        return tuple(each for each in names if each != name) if name in names else ()


def pending_of(record: DiskRecord | None, *, under_way: bool, in_guest: bool) -> Pending | None:
    """Return what is not finished of a disk; ``under_way`` tells that the process lives that works on it."""
    if record is None:
        return None
    work = record.unfinished
    if work is not None:
        waits = "waits for the next command" if work.by is None else "interrupted: hvext recover settles it"
        return Pending(
            operation=work.operation, state="under way" if under_way else waits, step=work.step, since=work.since
        )
    if record.intent is Intent.ABSENT:
        state = "waits for the guest to let it go" if in_guest else "let go: the same command, or recover, finishes it"
        return Pending(operation=Operation.UNPLUG, state=state)
    return None


def warnings_of(
    disk: ObservedDisk, writers: Sequence[str], *, stuck: bool, stopped: DiskWarning | None = None
) -> tuple[DiskWarning, ...]:
    """Return what is odd about a disk.

    ``writers`` are other VMs that write its volume, ``stopped`` is that its storage has stopped the guest.
    """
    found = [] if stopped is None else [stopped]
    if writers and _writes(disk):
        found.append(DiskWarning(oddity=Oddity.SECOND_WRITER, words=_second(writers)))
    if stuck:
        words = "requests are in flight, and none has ended while it was looked at"
        found.append(DiskWarning(oddity=Oddity.STUCK, words=words))
    if disk.record is None:
        words = "nobody wrote it down: plugging its volume again with hvext does, and changes nothing else"
        found.append(DiskWarning(oddity=Oddity.UNKNOWN, words=words))
    found += [DiskWarning(oddity=Oddity.BUFFERED, words=words) for words in _buffered(disk)]
    return (*found, *_mapped(disk))


def _writes(disk: ObservedDisk) -> bool:
    top = (disk.running.root or disk.running.protocol) if disk.running else None
    return top is None or not top.read_only


def _second(writers: Sequence[str]) -> str:
    names = ", ".join(writers)
    return f"the volume is written by VM {names} of this host as well: without a file system made for it, data is lost"


def _buffered(disk: ObservedDisk) -> list[str]:
    node = disk.running.protocol if disk.running else None
    places = len(disk.offered.places) if disk.offered and not disk.offered.error else None
    if node is None or node.direct or places == 1:
        return []
    several = f"it has {places} places" if places else "should it have several places"
    if node.cached_by_client:
        lost = f"{several}: a failover loses what its storage's client has not flushed"
        return [f"it is opened with its client's cache, and {lost}"] if places else []
    return [
        f"it is opened through the host's page cache, and {several}: it cannot be moved without reading stale data, "
        "so moves are refused; plug it with cache=none"
    ]


def _mapped(disk: ObservedDisk) -> list[DiskWarning]:
    offered = disk.offered
    if offered is None or offered.block_path is None or disk.access != USERSPACE:
        return []
    use = f", and in use: {', '.join(offered.used_by)}" if offered.used_by else ""
    needed = any(place.access == KERNELSPACE for place in offered.places)
    why = "it is the disk's other place" if needed else "no access of this disk needs it"
    words = f"{offered.block_path} is mapped on this host beside the URI{use}; {why}, and whatever else writes there "
    words += "destroys what the guest has"
    return [DiskWarning(oddity=Oddity.MAPPED, words=words, note=needed and not offered.used_by)]


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else utc_text(seconds)


def _limits(throttle: Throttle | None) -> dict[str, int] | None:
    """Return the limits that are set; None where there is no throttle."""
    if throttle is None:
        return None
    unlimited = Throttle()
    return {
        each.name: value
        for each in fields(Throttle)
        if (value := getattr(throttle, each.name)) != getattr(unlimited, each.name)
    }
