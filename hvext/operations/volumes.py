"""Volumes without a guest: create, remove, grow, setinfo, snapshot, verify."""

from __future__ import annotations

from hvext.core.disk import Disk
from hvext.core.provider import Action
from hvext.core.record import VmRecord, namesakes, same_volume
from hvext.core.value import value_object
from hvext.core.volume import check_size_mib
from hvext.errors import InputError, VolumeInUse
from hvext.host.journal import JournalFolder
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations.attachments import Attached
from hvext.operations.journal import forget_ended, read_records, runs, users_of


@value_object
class Grown:
    """Whether a ``grow`` had anything to do."""

    changed: bool
    size_mib: int


def create_volume(host: ProviderHost, disk: Disk, size_mib: int) -> None:
    """Create a volume of ``size_mib``."""
    host.run(host.find(disk.provider), Action.CREATE, disk.volume, access=disk.access, size_mib=size_mib)


def attach_volume(host: ProviderHost, disk: Disk, *, exclusive: bool = True) -> Attached:
    """Attach and open a volume for the caller; see ``attachments.attach``. The caller detaches it."""
    return attachments.attach(host, disk, exclusive=exclusive, shared=bool(users_of(disk, _running(), but="")))


def detach_volume(host: ProviderHost, disk: Disk) -> tuple[str, ...]:
    """Detach a volume that no running VM of this host has, and return warnings; may be repeated.

    They tell when another volume may have been meant. Raises VolumeInUse for one that a VM has, and ProviderError.
    """
    running = _running()
    if users := users_of(disk, running, but=""):
        raise VolumeInUse(
            f"{disk.provider}/{disk.volume.name} is a disk of VM {users[0]}, which runs",
            hint="hvext unplug lets it go; hvext audit shows what each VM has",
        )
    attachments.detach(host, disk)
    forget_ended([disk], JournalFolder())
    return tuple(words for record in running.values() for words in namesakes(disk, record))


def remove_volume(host: ProviderHost, disk: Disk) -> None:
    """Remove a volume with all its data; raises VolumeInUse for one that is attached for a VM of this host."""
    records = read_records(JournalFolder())
    for record in records.values():
        if any(same_volume(disk, known.disk) for known in record.disks.values()):
            raise VolumeInUse(
                f"{disk.provider}/{disk.volume.name} is attached for VM {record.name}",
                hint="hvext unplug lets it go; hvext recover does when its QEMU has ended",
            )
    host.run(host.find(disk.provider), Action.REMOVE, disk.volume, access=disk.access)


def grow_volume(
    host: ProviderHost, disk: Disk, *, old_size_mib: int, new_size_mib: int, cancel: Cancel | None = None
) -> Grown:
    """Grow a volume from ``old_size_mib`` to ``new_size_mib``; equal sizes are a no-op, a smaller one InputError."""
    check_size_mib(old_size_mib, "old size")
    check_size_mib(new_size_mib, "new size")
    if new_size_mib < old_size_mib:
        raise InputError(
            f"volume {disk.volume.name!r} has {old_size_mib} MiB; it cannot be shrunk to {new_size_mib} MiB",
            hint="volumes can only grow",
        )
    if new_size_mib == old_size_mib:
        return Grown(changed=False, size_mib=new_size_mib)
    host.run(
        host.find(disk.provider),
        Action.GROW,
        disk.volume,
        cancel=cancel,
        access=disk.access,
        size_mib=old_size_mib,
        new_size_mib=new_size_mib,
    )
    return Grown(changed=True, size_mib=new_size_mib)


def _running() -> dict[str, VmRecord]:
    """Return the records of the VMs of this host that run."""
    return {name: record for name, record in read_records(JournalFolder()).items() if runs(record)}


def set_volume_info(host: ProviderHost, disk: Disk, metadata: str) -> None:
    """Store metadata with a volume; Ganeti stores ``originstname+<instance>``."""
    host.run(host.find(disk.provider), Action.SETINFO, disk.volume, access=disk.access, metadata=metadata)


def snapshot_volume(host: ProviderHost, disk: Disk, name: str, size_mib: int) -> None:
    """Take a snapshot ``name`` of a volume; raises ProviderError when the provider cannot."""
    host.run(
        host.find(disk.provider),
        Action.SNAPSHOT,
        disk.volume,
        access=disk.access,
        snapshot_name=name,
        snapshot_size_mib=size_mib,
    )


def open_volume(host: ProviderHost, disk: Disk, *, exclusive: bool, cancel: Cancel | None = None) -> bool:
    """Open a volume for I/O; False when the provider has no ``open``, which is fine."""
    provider = host.find(disk.provider)
    run = host.run(provider, Action.OPEN, disk.volume, cancel=cancel, access=disk.access, exclusive=exclusive)
    return run is not None


def close_volume(host: ProviderHost, disk: Disk, *, cancel: Cancel | None = None) -> bool:
    """Close a volume; False when the provider has no ``close``, which is fine."""
    return host.run(host.find(disk.provider), Action.CLOSE, disk.volume, cancel=cancel, access=disk.access) is not None


def verify_parameters(host: ProviderHost, disk: Disk) -> None:
    """Have a provider check the parameters of a disk."""
    host.run(host.find(disk.provider), Action.VERIFY, disk.volume, access=disk.access)
