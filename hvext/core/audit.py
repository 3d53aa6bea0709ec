"""What does not fit together: the journal's record of a VM against what its QEMU has.

A finding is something that is left over, unfinished or unknown, or a guest that its storage has stopped. What is as it
should be is none.
"""

from __future__ import annotations

import shlex
import uuid as uuid_module
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum

from hvext.core.identity import (
    NODE_NAME_LIMIT,
    DiskNames,
    disk_of_device,
    disk_of_node,
    owner_of_object,
)
from hvext.core.record import DiskRecord, Intent, Unfinished, VmRecord
from hvext.core.running import RunningDisk
from hvext.core.shell import volume_arguments
from hvext.core.value import value_object
from hvext.errors import JournalError


class Kind(StrEnum):
    """What is wrong, or on its way."""

    UNDER_WAY = "under way"
    UNFINISHED = "unfinished"
    PENDING = "pending unplug"
    MIGRATING = "migrating"
    UNUSED = "unused volume"
    STARTING = "not started yet"
    ENDED = "QEMU has ended"
    STOPPED = "stopped by an I/O error"
    UNREACHABLE = "cannot be looked at"
    UNKNOWN = "not written down"
    NODE = "left node"
    OBJECT = "left object"
    CHARDEV = "left character device"
    FDSET = "left fdset"
    FILE = "left private file"
    BROKEN = "record that cannot be read"


#: What goes on by itself or is about to, and what leaves nothing over: the journal and QEMU agree.
_HARMLESS = (Kind.UNDER_WAY, Kind.STARTING, Kind.MIGRATING)


@value_object
class Finding:
    """One thing that does not fit: in which VM (empty: nobody's), of which disk, and in words."""

    vm: str
    kind: Kind
    words: str
    uuid: uuid_module.UUID | None = None

    @property
    def harmless(self) -> bool:
        """Whether there is nothing to do: somebody works on it, or has yet to start."""
        return self.kind in _HARMLESS

    @property
    def recovers(self) -> bool:
        """Whether ``recover`` does something about it: storage that has failed is somebody else's to bring back."""
        return not self.harmless and self.kind is not Kind.STOPPED

    def to_json(self) -> dict[str, object]:
        """Return the finding for machines."""
        return {
            "vm": self.vm,
            "kind": str(self.kind),
            "disk": str(self.uuid) if self.uuid else None,
            "words": self.words,
            "harmless": self.harmless,
        }


def audit_vm(
    record: VmRecord,
    running: Mapping[uuid_module.UUID, RunningDisk],
    *,
    under_way: Iterable[uuid_module.UUID] = (),
    fdsets: Iterable[str] = (),
    files: Iterable[str] = (),
) -> Iterator[Finding]:
    """Yield what does not fit between a VM's record and the disks that its QEMU has.

    ``under_way`` are the disks that a living process works on; ``fdsets`` the names of file descriptors in QEMU,
    ``files`` those of the host's private files.
    """
    names = tuple(files)
    busy = set(under_way)
    for uuid, known in record.disks.items():
        if uuid in busy:
            yield Finding(vm=record.name, kind=Kind.UNDER_WAY, uuid=uuid, words=_work(known))
        else:
            yield from _audit_known(record.name, known, running.get(uuid))
    for uuid, disk in running.items():
        if uuid not in busy:
            yield from _audit_running(record.name, disk, known=uuid in record.disks)
            for name in left_files(names, disk) if uuid in record.disks else ():
                yield Finding(vm=record.name, kind=Kind.FILE, uuid=uuid, words=name)
    for name in fdsets:
        owner = owner_of_file(name)
        if owner is not None and owner.uuid not in busy:
            yield Finding(vm=record.name, kind=Kind.FDSET, uuid=owner.uuid, words=f"file descriptors named {name}")


def audit_stopped(
    record: VmRecord,
    failed: Collection[uuid_module.UUID],
    full: Collection[uuid_module.UUID],
    *,
    again: str = "",
    watched: bool = True,
) -> Iterator[Finding]:
    """Yield that an I/O error has stopped a guest: for the disks that have ``failed``, and those that are ``full``.

    One finding for each disk; one without a disk where it was none of hvext's. ``again`` is the command that lets the
    guest run again, hvext's by default, at the first monitor of ``record``; ``watched`` says whether `hvext watch` is
    for such guests.
    """
    monitor = [f"--qmp {shlex.quote(address)}" for address in record.monitors[:1]]
    again = again or " ".join(("hvext resume", *monitor))
    # Of an NBD server that is back, QEMU makes the new connection in the background: the first requests fail all the
    # same, and the guest stops once more. The watch puts the disk on a connection that stands.
    watch = " ".join(("hvext watch --once", *monitor, "has its provider serve it again, and fails it over"))
    for uuid in sorted(full, key=str):
        words = f"the guest is stopped: the storage of {_volume(record, uuid)} is full; make room, then {again}"
        yield Finding(vm=record.name, kind=Kind.STOPPED, uuid=uuid, words=words)
    for uuid in sorted(failed, key=str):
        known = record.disks.get(uuid)
        back = f"bring it back{_by_provider(known) if known else ''}, then (twice, should it stop again) {again}"
        cure = watch if watched and known else back
        words = f"the guest is stopped: the storage of {_volume(record, uuid)} has failed; {cure}"
        yield Finding(vm=record.name, kind=Kind.STOPPED, uuid=uuid, words=words)
    if not (failed or full):
        words = f"the guest is stopped, and no disk of hvext's stands out as failed; once its storage is well, {again}"
        yield Finding(vm=record.name, kind=Kind.STOPPED, words=words)


def _volume(record: VmRecord, uuid: uuid_module.UUID) -> str:
    known = record.disks.get(uuid)
    return known.words if known is not None else f"disk {uuid}"


def _by_provider(known: DiskRecord) -> str:
    """Return the command with which a disk's provider is asked to serve it again."""
    command = f"hvext attach {volume_arguments(known.disk, known.withheld)}"
    return f" ({command} asks its provider to)"


def audit_ended(record: VmRecord) -> Iterator[Finding]:
    """Yield what is left of a VM whose QEMU has ended: the volumes of all its disks."""
    for uuid, known in record.disks.items():
        if was_sent(known):
            words = f"{known.words} is attached for a guest that lives on another host; hvext stop lets it go"
            yield Finding(vm=record.name, kind=Kind.MIGRATING, uuid=uuid, words=words)
            continue
        words = f"{known.words} is attached for a QEMU that has ended (process {_pid(record)})"
        yield Finding(vm=record.name, kind=Kind.ENDED, uuid=uuid, words=words)


def was_sent(known: DiskRecord) -> bool:
    """Return whether a disk is that of a guest that was sent to another host, where its volume has yet to be opened."""
    work = known.unfinished
    return work is not None and work.by is None and bool(work.details.get("sent"))


def audit_unseen(record: VmRecord, *, under_way: Iterable[uuid_module.UUID], why: str) -> Iterator[Finding]:
    """Yield what a record alone tells of a VM whose QEMU cannot be asked, for the reason ``why``."""
    busy = set(under_way)
    for uuid, known in record.disks.items():
        if uuid in busy:
            yield Finding(vm=record.name, kind=Kind.UNDER_WAY, uuid=uuid, words=_work(known))
        elif known.unfinished is not None:
            yield Finding(vm=record.name, kind=_unfinished(known.unfinished), uuid=uuid, words=_work(known))
        elif record.process is None and not record.monitors:
            words = f"{known.words} is attached for a QEMU that was not seen yet"
            yield Finding(vm=record.name, kind=Kind.STARTING, uuid=uuid, words=words)
        else:
            yield Finding(vm=record.name, kind=Kind.UNREACHABLE, uuid=uuid, words=f"{known.words}: {why}")


def audit_broken(errors: Iterable[JournalError]) -> Iterator[Finding]:
    """Yield the records that cannot be read."""
    for error in errors:
        yield Finding(vm="", kind=Kind.BROKEN, words=str(error))


def audit_files(files: Iterable[str], known: Iterable[uuid_module.UUID]) -> Iterator[Finding]:
    """Yield the private files (their names) that belong to no disk of ``known``."""
    disks = set(known)
    for name in files:
        owner = owner_of_file(name)
        if owner is not None and owner.uuid not in disks:
            yield Finding(vm="", kind=Kind.FILE, uuid=owner.uuid, words=name)


def owner_of_file(name: str) -> DiskNames | None:
    """Return for which disk a private file, or a file descriptor in QEMU, is there by its name; None for any other."""
    device = name[: len("hv-") + 36]
    return disk_of_device(device) or disk_of_node(name[: len("hv") + 26])


def left_files(files: Iterable[str], disk: RunningDisk) -> tuple[str, ...]:
    """Return the private files (their names) that were made for nodes of a disk that it has not."""
    nodes = set(disk.node_names)
    return tuple(
        name
        for name in files
        if (owner := owner_of_object(name)) == disk.names and owner and name[:NODE_NAME_LIMIT] not in nodes
    )


def _audit_known(vm: str, known: DiskRecord, running: RunningDisk | None) -> Iterator[Finding]:
    uuid = known.disk.volume.uuid
    device = running.device if running else None
    if known.unfinished is not None:
        yield Finding(vm=vm, kind=_unfinished(known.unfinished), uuid=uuid, words=_work(known))
    elif known.intent is Intent.ABSENT and device is not None:
        yield Finding(vm=vm, kind=Kind.PENDING, uuid=uuid, words=f"the guest has not let {device} go")
    elif device is None:
        yield Finding(vm=vm, kind=Kind.UNUSED, uuid=uuid, words=f"{known.words} is attached, and not in the guest")


def _audit_running(vm: str, disk: RunningDisk, *, known: bool) -> Iterator[Finding]:
    uuid = disk.names.uuid
    if disk.device is not None and not known:
        words = f"{disk.device}: nobody wrote down which volume it is; hvext plug with its volume does"
        yield Finding(vm=vm, kind=Kind.UNKNOWN, uuid=uuid, words=words)
    nodes = disk.leftovers if disk.device is not None else disk.node_names
    for name in nodes:
        yield Finding(vm=vm, kind=Kind.NODE, uuid=uuid, words=name)
    for name in left_objects(disk):
        yield Finding(vm=vm, kind=Kind.OBJECT, uuid=uuid, words=name)
    if disk.device is None and disk.chardev is not None:
        yield Finding(vm=vm, kind=Kind.CHARDEV, uuid=uuid, words=disk.chardev)


def left_objects(disk: RunningDisk) -> tuple[str, ...]:
    """Return the objects of a disk that nothing of it uses; none where it is not known what it uses."""
    if disk.device is None:
        return disk.objects
    protocol = disk.protocol
    if protocol is None:
        return ()
    used = {disk.names.iothread}
    if disk.throttle is not None:
        used.add(disk.names.throttle_group)
    return tuple(name for name in disk.objects if name not in used and not name.startswith(f"{protocol.name}-"))


def _unfinished(work: Unfinished) -> Kind:
    """What is unfinished was left by a process, or waits for somebody's next command."""
    return Kind.MIGRATING if work.by is None else Kind.UNFINISHED


def _work(known: DiskRecord) -> str:
    work: Unfinished | None = known.unfinished
    if work is None:
        return known.words
    step = f", at step '{work.step}'" if work.step else ", before its first step"
    process = f" by process {work.by.pid}" if work.by else ""
    return f"{work.operation} of {known.words}{process}{step}"


def _pid(record: VmRecord) -> str:
    return str(record.process.pid) if record.process else "unknown"
