"""Moving a disk of a running guest onto another access to the same volume.

::

    blockdev-add      the new protocol node
    blockdev-reopen   the raw node, with the new node as its file
    blockdev-del      the old protocol node

The guest notices nothing: its device and the raw node stay. QEMU flushes the old storage before it lets go of it, with
no request under way, so that a cache of its client (RBD) is empty then; one that is dead cannot be left this way.

Source: qemu-qmp-ref(7), blockdev-reopen; QEMU, block.c, ``bdrv_reopen_prepare``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from hvext.core.identity import DiskNames, parse_protocol_name
from hvext.core.node import raw_node_of
from hvext.core.running import RunningDisk
from hvext.core.uri import Location
from hvext.core.uri.location import Companions
from hvext.core.value import value_object
from hvext.errors import CapabilityError, CommandRefused, DiskNotFound, RepointRefused
from hvext.host.qmp import Monitor
from hvext.operations.frozen import check_requests_end
from hvext.operations.inspect import chain_of, running_disk
from hvext.operations.nodes import delete_node, remove_needs
from hvext.operations.opening import Movable, check_can_move, location_obstacle, opening
from hvext.operations.steps import Report, Step, carry_out, silent, tidy_up


@value_object
class Repointed:
    """Where a disk was and is. ``changed`` is False when it was there before."""

    changed: bool
    device: str
    before: str
    after: str
    size_bytes: int

    def to_json(self) -> dict[str, object]:
        """Return the result for machines; the size in bytes."""
        return {
            "state": "repointed",
            "changed": self.changed,
            "device": self.device,
            "before": self.before,
            "after": self.after,
            "size_bytes": self.size_bytes,
        }


async def repoint(monitor: Monitor, names: DiskNames, location: Location, *, report: Report = silent) -> Repointed:
    """Move a disk of a running guest to ``location``, which must be the same volume.

    Sizes are compared, contents are not. The storage is opened with the same options as before. Moving it to where it
    is changes nothing and says so. Raises DiskNotFound and RepointRefused before anything is changed, OperationFailed
    after everything was undone.
    """
    await check_requests_end(monitor)
    disk = await movable(monitor, names)
    if (refusal := await location_obstacle(monitor, disk, location)) is not None:
        raise refusal
    target = location.words
    changed = not is_at(disk, location)
    before = disk.protocol.where
    if changed:
        await exchange(monitor, disk, location, exact_size=True, report=report)
    return Repointed(
        changed=changed,
        device=disk.device,
        before=before,
        after=target if changed else before,
        size_bytes=disk.root.size_bytes,
    )


def is_at(disk: Movable, location: Location) -> bool:
    """Whether a disk's storage is at a location, as far as QEMU reports that."""
    # QEMU does not report TLS: whether there are credentials tells it.
    needs = location.needs(Companions())
    return disk.protocol.location == location.reported and bool(needs.objects) == disk.has_companions


async def repoint_to_first(
    monitor: Monitor, names: DiskNames, locations: Sequence[Location], *, report: Report = silent
) -> Repointed:
    """Move a disk to the first of ``locations`` that it can be moved to; what ``repoint`` refuses is passed over.

    Raises what ``repoint`` raises for the last one.
    """
    *others, last = locations
    for location in others:
        with contextlib.suppress(RepointRefused, CapabilityError):
            return await repoint(monitor, names, location, report=report)
    return await repoint(monitor, names, last, report=report)


async def movable(monitor: Monitor, names: DiskNames) -> Movable:
    """Return a disk of the guest, after removing nodes that an interrupted move or failover left.

    Raises DiskNotFound when the guest has no such disk, RepointRefused when it does not stand on hvext's nodes.
    """
    running = await disk_in_guest(monitor, names)
    if running.leftovers or len(running.protocols) > 1:
        running = await without_leftovers(monitor, running)
    return whole(running)


async def disk_in_guest(monitor: Monitor, names: DiskNames) -> RunningDisk:
    """Return what QEMU has of a disk that the guest has; raises DiskNotFound when it has not."""
    running = await running_disk(monitor, names)
    if running.device is None:
        if running.node_names:
            raise DiskNotFound(
                f"the guest has let the device of disk {names.uuid} go, only its nodes are left",
                hint="hvext unplug removes them, hvext plug brings the disk back",
            )
        raise DiskNotFound(f"the guest has no disk {names.uuid}", hint="hvext disks lists those it has")
    return running


def whole(running: RunningDisk) -> Movable:
    """Return the parts of a disk that can be moved; raises RepointRefused when it has not all of them."""
    names = running.names
    if running.behind_vhost_user:
        raise RepointRefused(
            f"disk {names.uuid} is served over vhost-user: it has no block node that could be moved",
            hint="unplug it and plug it with another access",
        )
    if running.device is None or running.root is None or running.protocol is None:
        libvirt = str(running.device).startswith("ua-")
        raise RepointRefused(
            f"disk {names.uuid} does not stand on a raw node over one protocol node of hvext's",
            hint="libvirt names nodes itself: use its own commands" if libvirt else "start or plug it with hvext",
        )
    return Movable(running=running, device=running.device, root=running.root, protocol=running.protocol)


async def without_leftovers(monitor: Monitor, running: RunningDisk) -> RunningDisk:
    """Delete nodes that an interruption left; QEMU refuses to delete one that is in use."""
    for name in running.leftovers or [node.name for node in running.protocols]:
        try:
            await delete_node(monitor, name)
        except CommandRefused:
            continue
        if parse_protocol_name(name) is not None:
            await remove_needs(monitor, name)
    return await running_disk(monitor, running.names)


async def exchange(
    monitor: Monitor, disk: Movable, location: Location, *, exact_size: bool, report: Report = silent
) -> None:
    """Put a new protocol node for ``location`` under the raw node and delete the old one.

    With ``exact_size`` the new storage must have the disk's size, else at least that. Raises RepointRefused before
    anything is changed, OperationFailed after everything was undone, or when only the old node could not be deleted.
    """
    steps, close = await exchange_steps(monitor, disk, location, exact_size=exact_size)
    names, target = disk.running.names, location.words
    await carry_out(f"move disk {names.uuid} to {target}", steps, report=report)
    # The move is done: a node that stays is no reason to go back, and the next move removes it.
    words = f"finish the move of disk {names.uuid} to {target}, where it is now"
    await tidy_up(words, close, leaves=[disk.protocol.name], report=report)


async def exchange_steps(
    monitor: Monitor, disk: Movable, location: Location, *, exact_size: bool
) -> tuple[Sequence[Step], Step]:
    """Return the steps of ``exchange``, and the one that closes the old storage when they are done; changes nothing.

    Raises RepointRefused, CapabilityError, InputError.
    """
    root, old = disk.root, disk.protocol
    check_can_move(disk)
    new = await opening(monitor, disk, location, exact_size=exact_size)

    def reopen(protocol: str, *, direct: bool) -> dict[str, object]:
        options = raw_node_of(
            root.name,
            protocol,
            read_only=root.read_only,
            direct=direct,
            no_flush=root.no_flush,
            detect_zeroes=root.detect_zeroes,
        )
        return {"options": [options]}

    async def stands_on_new() -> bool:
        return new.name in await chain_of(monitor, disk.device)

    async def go_back() -> None:
        await monitor.execute("blockdev-reopen", reopen(old.name, direct=root.direct))

    switch = Step(
        name="switch over",
        do=lambda: monitor.execute("blockdev-reopen", reopen(new.name, direct=new.direct)),
        # What the old node's client has in its cache may be older than what was written since.
        undo=None if old.cached_by_client else go_back,
        happened=stands_on_new,
        inverse="switch back",
    )

    async def close_old() -> None:
        await delete_node(monitor, old.name)
        await remove_needs(monitor, old.name)

    return [*new.steps, switch], Step(name=f"close {old.where}", do=close_old, one_way=True)
