"""Growing a disk of a running guest: the volume, then what QEMU has open, then what the guest sees.

A volume that has grown stays grown: there is no way back, so a failure later says how far it came, and repeating the
resize finishes it.

Source: qemu-qmp-ref(7), block_resize.
"""

from __future__ import annotations

from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.running import Node, RunningDisk
from hvext.core.uri import Location
from hvext.core.uri.location import Companions
from hvext.core.value import value_object
from hvext.core.volume import check_size_mib
from hvext.errors import CommandRefused, InputError, OperationFailed, QemuError, RepointRefused
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations import attachments
from hvext.operations.frozen import check_requests_end
from hvext.operations.inspect import running_disk
from hvext.operations.opening import Movable, check_can_move
from hvext.operations.repoint import exchange, movable
from hvext.operations.steps import Report, Step, carry_out, silent
from hvext.operations.threads import in_thread
from hvext.operations.volumes import Grown, grow_volume

MIB = 1 << 20
#: The names of a resize's last steps.
TELL, CHECK = "tell the guest", "check the size"


@value_object
class Resized:
    """The size of a disk before and after, in bytes; ``volume_grown`` tells whether the provider's script ran."""

    device: str
    before_bytes: int
    after_bytes: int
    volume_grown: bool

    @property
    def changed(self) -> bool:
        """Whether the guest sees another size now."""
        return self.before_bytes != self.after_bytes

    def to_json(self) -> dict[str, object]:
        """Return the result for machines."""
        return {
            "state": "resized",
            "changed": self.changed,
            "device": self.device,
            "before_bytes": self.before_bytes,
            "after_bytes": self.after_bytes,
            "volume_grown": self.volume_grown,
        }


async def resize(
    monitor: Monitor,
    host: ProviderHost,
    disk: Disk,
    new_size_mib: int,
    *,
    old_size_mib: int | None = None,
    report: Report = silent,
) -> Resized:
    """Grow a disk and the volume behind it to ``new_size_mib``.

    ``old_size_mib`` is the volume's size for the provider's ``grow``; by default what the guest sees, in whole MiB.
    The size the guest sees already is a no-op that says so; a smaller one raises InputError. Raises DiskNotFound,
    RepointRefused, OperationFailed.
    """
    check_size_mib(new_size_mib, "new size")
    await check_requests_end(monitor)
    check_has_size(await running_disk(monitor, disk.names))
    found = await movable(monitor, disk.names)
    check_can_grow(found, new_size_mib)
    before = found.top.size_bytes
    offered = await _offered(host, disk, found)
    fresh_location(found, offered)
    old_mib = before // MIB if old_size_mib is None else check_size_mib(old_size_mib, "old size")
    growing = Growing(host, disk, old_mib, new_size_mib)
    await carry_out(f"resize disk {disk.names.uuid}", [growing.step()], report=report)
    try:
        after = await show_size(monitor, disk.names, new_size_mib * MIB, offered=offered, report=report)
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
        device=disk.names.device,
        before_bytes=before,
        after_bytes=after,
        volume_grown=growing.changed,
    )


class Growing:
    """The first step of a resize: the provider grows the volume. ``changed`` is False while it has not."""

    def __init__(self, host: ProviderHost, disk: Disk, old_size_mib: int, new_size_mib: int) -> None:
        self._host = host
        self._disk = disk
        self._old_mib = old_size_mib
        self._new_mib = new_size_mib
        self.changed = False

    def step(self) -> Step:
        """Return the step; a volume that has grown stays grown."""
        name = f"grow {self._disk.provider}/{self._disk.volume.name} to {self._new_mib} MiB"
        return Step(name=name, do=self._grow, one_way=True, check=lambda: self._host.find(self._disk.provider))

    async def _grow(self) -> None:
        def work(cancel: Cancel) -> Grown:
            return grow_volume(
                self._host, self._disk, old_size_mib=self._old_mib, new_size_mib=self._new_mib, cancel=cancel
            )

        self.changed = (await in_thread(work)).changed


def check_has_size(running: RunningDisk) -> None:
    """Raise RepointRefused for a disk whose size is not QEMU's affair."""
    if running.behind_vhost_user:
        raise RepointRefused(
            f"disk {running.names.uuid} is served over vhost-user: its size is the server's affair",
            hint="grow the volume with hvext grow, then unplug the disk and plug it again",
        )


def check_can_grow(found: Movable, new_size_mib: int) -> None:
    """Raise InputError for a disk that QEMU does not resize, and for a size that is smaller than it has."""
    before = found.top.size_bytes
    if found.root.read_only:
        raise InputError(f"disk {found.running.names.uuid} is read-only: QEMU does not resize it")
    if new_size_mib * MIB < before:
        raise InputError(f"the disk has {_mib(before)}; {new_size_mib} MiB would shrink it", hint="disks can only grow")


async def _offered(host: ProviderHost, disk: Disk, found: Movable) -> Location | None:
    """Ask the provider where the storage is: QEMU reports neither credentials nor delays of an NBD connection.

    Returns None when the node need not be opened afresh, or is not at a place that the provider offers. Raises
    RepointRefused when it has credentials that are not offered any more.
    """
    node = found.protocol
    if node.grows_in_place:
        return None
    offer = await in_thread(lambda cancel: attachments.offer(host, disk, cancel=cancel))
    for candidate in offer.choice.candidates:
        needs = candidate.location.needs(Companions())
        if candidate.location.reported == node.location and bool(needs.objects) == found.has_companions:
            return candidate.location
    if not found.has_companions:
        return None
    raise RepointRefused(
        f"disk {disk.names.uuid} is at {node.where} with credentials that QEMU does not report, and the provider does "
        "not offer that place any more",
        hint="move it with hvext repoint to what the provider offers first",
    )


def fresh_location(disk: Movable, offered: Location | None) -> Location | None:
    """Return where the storage has to be opened afresh to see a new size; None where the open node sees it.

    Raises RepointRefused when that cannot be done.
    """
    node = disk.protocol
    if node.grows_in_place:
        return None
    if offered is None and node.location is None:
        raise RepointRefused(
            f"QEMU does not tell where disk {disk.running.names.uuid} is ({node.filename}), and an open {node.driver} "
            "node does not see that its storage grew",
            hint="move it with hvext repoint to its URI first",
        )
    check_can_move(disk)
    return offered or node.location


def _mib(size_bytes: int) -> str:
    mib, rest = divmod(size_bytes, MIB)
    return f"{size_bytes} bytes" if rest else f"{mib} MiB"


async def show_size(
    monitor: Monitor,
    names: DiskNames,
    size_bytes: int,
    *,
    offered: Location | None = None,
    report: Report = silent,
) -> int:
    """Make the guest see that the storage of a disk has grown to ``size_bytes``; may be repeated.

    ``offered`` is where it is, for storage whose credentials QEMU does not report.

    Returns the size that the guest sees, which is larger where the storage only has sizes of its own (a provider that
    rounds up). An NBD connection keeps the size it was opened with, so the disk is moved to a fresh one first. Raises
    RepointRefused, OperationFailed.
    """
    disk = await movable(monitor, names)
    old, top = disk.protocol, disk.top
    if top.size_bytes >= size_bytes and old.size_bytes >= size_bytes:
        return top.size_bytes
    fresh = fresh_location(disk, offered) if old.size_bytes < size_bytes else None
    if fresh is not None:
        await exchange(monitor, disk, fresh, exact_size=False, report=report)
    telling = TellingSize(monitor, names, old, top, size_bytes)
    await carry_out(f"resize disk {names.uuid}", telling.steps(), report=report)
    return telling.seen_bytes


class TellingSize:
    """The last steps of a resize: the guest is told, and the disk looked at. ``seen_bytes`` is what it sees then."""

    def __init__(self, monitor: Monitor, names: DiskNames, storage: Node, top: Node, size_bytes: int) -> None:
        self._monitor = monitor
        self._names = names
        self._storage = storage
        self._top = top
        self._size_bytes = size_bytes
        self.seen_bytes = 0

    def steps(self) -> list[Step]:
        """Return the steps."""
        return [Step(name=TELL, do=self._tell, one_way=True), Step(name=CHECK, do=self._check)]

    async def _tell(self) -> None:
        # The guest sees the size of the top node; a resize below a throttle filter does not reach it.
        try:
            await self._monitor.execute("block_resize", {"node-name": self._top.name, "size": self._size_bytes})
        except CommandRefused as error:
            if "Cannot grow" not in error.description:
                raise
            raise QemuError(
                f"{self._storage.where} has not grown to {_mib(self._size_bytes)}",
                hint="the provider's grow must make the block device larger, too (losetup -c, rbd resize, lvextend …)",
            ) from error

    async def _check(self) -> None:
        self.seen_bytes = (await movable(self._monitor, self._names)).top.size_bytes
        if self.seen_bytes < self._size_bytes:
            raise QemuError(f"the disk has {self.seen_bytes} bytes after block_resize to {self._size_bytes}")
