"""What is measured, as families of samples with names and units of Prometheus' conventions.

Labels are a VM's name, a disk's uuid, a provider's name, and words of closed sets: as many series as there are disks,
however long somebody measures. What could hold a secret (a URI, a parameter) is no label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

from hvext.core.observation import ObservedDisk, ObservedVm
from hvext.core.record import Operation
from hvext.core.statistics import Kind, Requests
from hvext.core.value import value_object

#: What QEMU calls a guest that an I/O error has stopped.
_STOPPED_BY_ERROR = "io-error"
_RUNNING = "running"


class FamilyKind(StrEnum):
    """What a family's numbers are."""

    COUNTER = "counter"
    GAUGE = "gauge"
    SUMMARY = "summary"


@value_object
class Sample:
    """One number, with the values of its family's labels; for a summary the sum of ``count`` values."""

    labels: tuple[str, ...]
    value: float
    count: int = 0


@value_object
class Family:
    """Samples of one name. A counter's name has no ``_total``: that belongs to its samples."""

    name: str
    kind: FamilyKind
    words: str
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]


def vm_families(vms: Sequence[ObservedVm]) -> list[Family]:
    """Return what was seen of VMs and their disks."""
    return [*_of_vms(vms), *_of_disks(vms), *_of_requests(vms)]


def _of_vms(vms: Sequence[ObservedVm]) -> list[Family]:
    asked = [vm for vm in vms if vm.asked]

    def unplugs(vm: ObservedVm) -> int:
        return sum(disk.pending is not None and disk.pending.operation is Operation.UNPLUG for disk in vm.disks)

    unfinished = [
        Sample(labels=(vm.name, str(operation)), value=number)
        for vm in vms
        for operation in Operation
        if (number := sum(disk.pending is not None and disk.pending.operation is operation for disk in vm.disks))
    ]
    return [
        _gauge("hvext_vm_up", "Whether the VM's QEMU answered.", ("vm",), _each(vms, lambda vm: vm.asked)),
        _gauge("hvext_vm_running", "Whether its guest runs.", ("vm",), _each(asked, lambda vm: vm.state == _RUNNING)),
        _gauge(
            "hvext_vm_stopped_by_io_error",
            "Whether an I/O error has stopped its guest.",
            ("vm",),
            _each(asked, lambda vm: vm.state == _STOPPED_BY_ERROR),
        ),
        _gauge("hvext_vm_disks", "Disks of hvext that the VM has.", ("vm",), _each(vms, lambda vm: len(vm.disks))),
        _gauge(
            "hvext_vm_pending_unplugs",
            "Unplugs that are not finished: the guest has not let the disk go, or nobody has finished it since.",
            ("vm",),
            _each(vms, unplugs),
        ),
        _gauge(
            "hvext_vm_unfinished_operations",
            "Disks with an operation that is under way, was interrupted, or waits for somebody.",
            ("vm", "operation"),
            unfinished,
        ),
    ]


def _each(vms: Iterable[ObservedVm], value: Callable[[ObservedVm], float]) -> list[Sample]:
    return [Sample(labels=(vm.name,), value=float(value(vm))) for vm in vms]


def _of_disks(vms: Sequence[ObservedVm]) -> list[Family]:
    every = [(vm.name, disk) for vm in vms for disk in vm.disks]
    asked = [(vm.name, disk) for vm in vms if vm.asked for disk in vm.disks]
    known = [(name, disk) for name, disk in every if disk.record is not None]
    own = ("vm", "disk")
    return [
        _gauge(
            "hvext_disk_info",
            "What a disk is: provider and volume, and the access in use with QEMU's driver for it.",
            (*own, "provider", "volume", "access", "driver", "device"),
            [Sample(labels=(name, str(disk.uuid), *_told(disk)), value=1) for name, disk in every],
        ),
        _gauge(
            "hvext_disk_size_bytes",
            "The size that the guest sees.",
            own,
            [
                Sample(labels=(name, str(disk.uuid)), value=disk.running.top.size_bytes)
                for name, disk in asked
                if disk.running and disk.running.top
            ],
        ),
        _gauge(
            "hvext_disk_access_since_timestamp_seconds",
            "When the disk came to the access in use.",
            own,
            [
                Sample(labels=(name, str(disk.uuid)), value=disk.record.since)
                for name, disk in known
                if disk.record and disk.record.since is not None
            ],
        ),
        _gauge(
            "hvext_disk_failed_over",
            "Whether the disk is elsewhere than it should be, because its storage had died.",
            own,
            [
                Sample(labels=(name, str(disk.uuid)), value=float(disk.record is not None and disk.record.failed_over))
                for name, disk in known
            ],
        ),
        _gauge(
            "hvext_disk_warning",
            "1 for each thing that is odd about the disk.",
            (*own, "kind"),
            [
                Sample(labels=(name, str(disk.uuid), kind), value=1)
                for name, disk in every
                for kind in dict.fromkeys(str(each.oddity) for each in disk.warnings if not each.note)
            ],
        ),
    ]


def _told(disk: ObservedDisk) -> tuple[str, str, str, str, str]:
    record, running = disk.record, disk.running
    node = running.protocol if running else None
    return (
        record.disk.provider if record else "",
        record.disk.volume.name if record else "",
        disk.access or "",
        node.driver if node else "",
        (running.model or "") if running else "",
    )


def _of_requests(vms: Sequence[ObservedVm]) -> list[Family]:
    counted = [
        ((vm.name, str(disk.uuid), str(kind)), each)
        for vm in vms
        for disk in vm.disks
        if disk.counts is not None
        for kind, each in disk.counts.kinds.items()
    ]

    def family(name: str, words: str, value: Callable[[Requests], float | None], *, but: Sequence[Kind] = ()) -> Family:
        samples = [
            Sample(labels=own, value=number)
            for own, each in counted
            if own[2] not in but and (number := value(each)) is not None
        ]
        return counter(name, words, ("vm", "disk", "operation"), samples)

    return [
        family("hvext_disk_requests", "Requests that ended well.", lambda each: each.completed),
        family("hvext_disk_failed_requests", "Requests that ended with an error.", lambda each: each.failed),
        family("hvext_disk_invalid_requests", "Requests that were refused as impossible.", lambda each: each.invalid),
        family(
            "hvext_disk_bytes", "Bytes of the requests that ended well.", lambda each: each.bytes, but=(Kind.FLUSH,)
        ),
        family("hvext_disk_request_seconds", "How long requests took, all added up.", lambda each: each.time_s),
    ]


def measured_at(seconds: float) -> Family:
    """Return when all of this was measured: what cannot be measured any more is shown as it was."""
    words = "When this watch looked at its guests last."
    return _gauge("hvext_watch_measured_timestamp_seconds", words, (), [Sample(labels=(), value=seconds)])


def counter(name: str, words: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Family:
    """Return a family of counters."""
    return Family(name=name, kind=FamilyKind.COUNTER, words=words, labels=labels, samples=tuple(samples))


def _gauge(name: str, words: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Family:
    return Family(name=name, kind=FamilyKind.GAUGE, words=words, labels=labels, samples=tuple(samples))
