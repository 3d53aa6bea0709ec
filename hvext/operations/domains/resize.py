"""Growing a disk of a domain that runs: the volume, then what its QEMU has open, then what the guest sees.

A volume that has grown stays grown: there is no way back, so a failure later says how far it came, and repeating the
resize finishes it.
"""

from __future__ import annotations

from hvext.core.device import VHOST_USER_DEVICE
from hvext.core.disk import Disk
from hvext.core.domain import DomainDisk
from hvext.core.volume import check_size_mib
from hvext.errors import (
    DiskNotFound,
    DomainError,
    InputError,
    LibvirtRefused,
    OperationFailed,
    QemuError,
    RepointRefused,
)
from hvext.host.domain import DomainHandle
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations.domains.views import Views
from hvext.operations.resize import CHECK, MIB, TELL, Growing, Resized
from hvext.operations.steps import Report, Step, carry_out, silent
from hvext.operations.threads import in_thread


async def resize(
    domain: DomainHandle,
    host: ProviderHost,
    disk: Disk,
    new_size_mib: int,
    views: Views,
    *,
    old_size_mib: int | None = None,
    report: Report = silent,
) -> Resized:
    """Grow a disk and the volume behind it to ``new_size_mib``; as ``hvext.operations.resize.resize``.

    Raises DomainError for a domain that does not run, RepointRefused for storage that libvirt cannot show the new size
    of, DiskNotFound, InputError, OperationFailed.
    """
    check_size_mib(new_size_mib, "new size")
    found = growable(disk, views)
    before = await in_thread(lambda _cancel: domain.size_of(found.target))
    old_mib = before // MIB if old_size_mib is None else check_size_mib(old_size_mib, "old size")
    check_grows(before, new_size_mib)
    growing = Growing(host, disk, old_mib, new_size_mib)
    await carry_out(f"resize disk {disk.names.uuid}", [growing.step()], report=report)
    try:
        after = await _show_size(domain, found, new_size_mib * MIB, report)
    except OperationFailed as error:
        raise OperationFailed(
            f"cannot resize disk {disk.names.uuid}: the volume has {new_size_mib} MiB now, but the guest does not see "
            f"it: {error.message}",
            step=error.step,
            undone=error.undone,
            left=error.left,
            hint=error.hint or "repeating the command finishes it",
        ) from error
    return Resized(
        device=found.alias,
        before_bytes=before,
        after_bytes=after,
        volume_grown=growing.changed,
    )


def check_grows(before_bytes: int, new_size_mib: int) -> None:
    """Raise InputError for a new size that is smaller than a disk has."""
    if new_size_mib * MIB < before_bytes:
        raise InputError(
            f"the disk has {before_bytes} bytes; {new_size_mib} MiB would shrink it", hint="disks can only grow"
        )


def growable(disk: Disk, views: Views) -> DomainDisk:
    """Return the disk as it runs; raises what speaks against growing it, before anything is done."""
    if views.live is None:
        raise DomainError(
            "the domain does not run: nobody looks at the disk's size",
            hint="hvext grow grows the volume; the guest sees it when it starts",
        )
    found = views.live_disk(disk.volume.uuid)
    if found is None:
        raise DiskNotFound(
            f"domain {views.live.name} has no disk {disk.volume.uuid}", hint="hvext disks lists those it has"
        )
    if found.model == VHOST_USER_DEVICE:
        raise RepointRefused(
            f"disk {disk.volume.uuid} is served over vhost-user: its size is the server's affair",
            hint="grow the volume with hvext grow, then unplug the disk and plug it again",
        )
    if found.read_only:
        raise InputError(f"disk {disk.volume.uuid} is read-only: QEMU does not resize it")
    if found.location is None or found.location.driver == "nbd":
        raise RepointRefused(
            f"disk {disk.volume.uuid} is at {found.where}: an NBD connection keeps the size it began with, and libvirt "
            "has no call that opens a fresh one under a running disk",
            hint="hvext repoint --access kernelspace --through-monitor moves it to its block device, where the same "
            "resize works; or grow the volume with hvext grow, then unplug the disk and plug it again",
        )
    return found


async def _show_size(domain: DomainHandle, disk: DomainDisk, size_bytes: int, report: Report) -> int:
    """Have the guest see that the storage of a disk has grown; return the size that it sees."""
    seen = await in_thread(lambda _cancel: domain.size_of(disk.target))
    if seen >= size_bytes:
        return seen

    showing = ShowingSize(domain, disk, size_bytes)
    await carry_out(f"resize disk {disk.names.uuid}", showing.steps(), report=report)
    return showing.seen_bytes


class ShowingSize:
    """The last steps of a resize; ``seen_bytes`` is what the guest sees then."""

    def __init__(self, domain: DomainHandle, disk: DomainDisk, size_bytes: int) -> None:
        self._domain = domain
        self._disk = disk
        self._size_bytes = size_bytes
        self.seen_bytes = 0

    def steps(self) -> list[Step]:
        """Return the steps."""
        return [
            Step(name=TELL, do=lambda: in_thread(self._tell), one_way=True),
            Step(name=CHECK, do=lambda: in_thread(self._check)),
        ]

    def _tell(self, _cancel: Cancel) -> None:
        try:
            self._domain.resize(self._disk.target, self._size_bytes)
        except LibvirtRefused as error:
            if "Cannot grow" not in error.description:
                raise
            raise QemuError(
                f"{self._disk.where} has not grown to {self._size_bytes // MIB} MiB",
                hint="the provider's grow must make the block device larger, too (losetup -c, rbd resize, lvextend …)",
            ) from error

    def _check(self, _cancel: Cancel) -> None:
        self.seen_bytes = self._domain.size_of(self._disk.target)
        if self.seen_bytes < self._size_bytes:
            raise QemuError(f"the disk has {self.seen_bytes} bytes after a resize to {self._size_bytes}")
