"""Moving a disk of a running guest onto another access to the same volume.

::

    blockdev-add      the new protocol node
    blockdev-reopen   the raw node, with the new node as its file
    blockdev-del      the old protocol node

The guest notices nothing: its device and the raw node stay. QEMU flushes the old storage before it lets go of it, so
one that is dead cannot be left this way.

Source: qemu-qmp-ref(7), blockdev-reopen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hvext.core.causes import hint_for
from hvext.core.identity import DiskNames, ProtocolName
from hvext.core.node import protocol_node_of, raw_node_of
from hvext.core.running import Node, RunningDisk
from hvext.core.uri import Location, masked
from hvext.core.uri.location import Companions
from hvext.errors import CapabilityError, CommandRefused, DiskNotFound, QemuError, RepointRefused
from hvext.host.private import private_folder
from hvext.host.qmp import Monitor
from hvext.operations.capabilities import query_capabilities
from hvext.operations.inspect import memory_is_shared, running_disk
from hvext.operations.nodes import add_node, delete_node, needs_steps, remove_needs
from hvext.operations.rehearsal import rehearse
from hvext.operations.steps import Report, Step, carry_out, silent


@dataclass(frozen=True, slots=True, kw_only=True)
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
    disk = await movable(monitor, names)
    if not location.block_node:
        raise RepointRefused(
            f"{location.words} is served to the guest directly: a running disk cannot be moved there",
            hint="unplug the disk and plug it with that access",
        )
    if location.read_only and not disk.root.read_only:
        raise RepointRefused(f"{location.words} can only be read, and the guest writes to disk {names.uuid}")
    if location.needs_shared_memory and not await memory_is_shared(monitor):
        raise RepointRefused(
            f"the server at {location.words} would read and write the guest's memory, which is not shared",
            hint="start QEMU with memory-backend-memfd,share=on",
        )
    if location.buffered_only:
        raise RepointRefused(f"{location.words} needs the host's page cache, and a disk is moved past it")
    target = location.words
    # QEMU does not report TLS: whether there are credentials tells it.
    needs = location.needs(Companions())
    changed = disk.protocol.location != location.reported or bool(needs.objects) != disk.has_companions
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Movable:
    """A whole disk of a running guest: its raw node and the protocol node in use."""

    running: RunningDisk
    device: str
    root: Node
    protocol: Node

    @property
    def has_companions(self) -> bool:
        """Whether the protocol node in use has objects beside it (secrets, TLS credentials)."""
        return any(name.startswith(f"{self.protocol.name}-") for name in self.running.objects)

    @property
    def top(self) -> Node:
        """The node whose size the guest sees."""
        return self.running.top or self.root


async def movable(monitor: Monitor, names: DiskNames) -> Movable:
    """Return a disk of the guest, after removing protocol nodes that an interrupted move left.

    Raises DiskNotFound when the guest has no such disk, RepointRefused when it does not stand on hvext's nodes.
    """
    running = await running_disk(monitor, names)
    if running.device is None:
        if running.node_names:
            raise DiskNotFound(
                f"the guest has let the device of disk {names.uuid} go, only its nodes are left",
                hint="hvext unplug removes them, hvext plug brings the disk back",
            )
        raise DiskNotFound(f"the guest has no disk {names.uuid}", hint="hvext disks lists those it has")
    if len(running.protocols) > 1:
        running = await _without_leftovers(monitor, running)
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


async def _without_leftovers(monitor: Monitor, running: RunningDisk) -> RunningDisk:
    """Delete protocol nodes that an interrupted move left; QEMU refuses to delete the one that is in use."""
    for node in running.protocols:
        try:
            await delete_node(monitor, node.name)
        except CommandRefused:
            continue
        await remove_needs(monitor, node.name)
    return await running_disk(monitor, running.names)


def check_direct(disk: Movable) -> None:
    """Raise RepointRefused for a disk whose storage is opened with the host's page cache in between."""
    if not disk.protocol.direct:
        raise RepointRefused(
            f"disk {disk.running.names.uuid} is not opened with cache.direct=on: after a move the guest would read "
            "stale data",
            hint="only cache=none and cache=directsync disks can be moved; unplug it and plug it with cache=none",
        )


async def exchange(
    monitor: Monitor, disk: Movable, location: Location, *, exact_size: bool, report: Report = silent
) -> None:
    """Put a new protocol node for ``location`` under the raw node and delete the old one.

    With ``exact_size`` the new storage must have the disk's size, else at least that. Raises RepointRefused before
    anything is changed, OperationFailed after everything was undone, or when only the old node could not be deleted.
    """
    root, old, names = disk.root, disk.protocol, disk.running.names
    check_direct(disk)
    opened = replace(old.by_name or ProtocolName(), generation=disk.running.free_generation)
    new = protocol_node_of(
        location,
        names,
        opened,
        read_only=root.read_only,
        direct=old.direct,
        no_flush=old.no_flush,
        folder=private_folder(),
    )
    needs = location.needs(Companions(node=names.protocol(opened), folder=private_folder()))
    capabilities = await query_capabilities(monitor)
    for item in needs.objects:
        capabilities.check_object(item)
    capabilities.check_node(new)
    new_name = str(new["node-name"])
    target = location.words

    def reopen(protocol: str) -> dict[str, object]:
        options = raw_node_of(
            names,
            protocol,
            read_only=root.read_only,
            direct=root.direct,
            no_flush=root.no_flush,
            detect_zeroes=root.detect_zeroes,
        )
        return {"options": [options]}

    async def compare() -> None:
        found = await running_disk(monitor, names)
        size = next((node.size_bytes for node in found.protocols if node.name == new_name), None)
        if size is None:
            raise QemuError(f"node {new_name} is gone again")
        if size != root.size_bytes if exact_size else size < root.size_bytes:
            raise RepointRefused(
                f"{target} has {size} bytes, the disk has {root.size_bytes}",
                hint="the new location must be the same volume; after a grow use hvext resize",
            )

    async def open_new() -> None:
        try:
            await rehearse(monitor, location, needs, new)
            await add_node(monitor, new)
        except CommandRefused as error:
            words = masked(" ".join(error.description.split()))
            raise QemuError(f"QEMU does not open it: {words}", hint=hint_for(location.driver, words)) from error

    steps = [
        *needs_steps(monitor, needs, new_name),
        Step(
            name=f"open {target}",
            do=open_new,
            undo=lambda: delete_node(monitor, new_name),
        ),
        Step(name="compare the sizes", do=compare),
        Step(
            name="switch over",
            do=lambda: monitor.execute("blockdev-reopen", reopen(new_name)),
            undo=lambda: monitor.execute("blockdev-reopen", reopen(old.name)),
        ),
    ]
    await carry_out(f"move disk {names.uuid} to {target}", steps, report=report)

    # The move is done: a node that stays is no reason to go back, and the next move removes it.
    async def close_old() -> None:
        await delete_node(monitor, old.name)
        await remove_needs(monitor, old.name)

    close = Step(name=f"close {old.where}", do=close_old)
    await carry_out(f"finish the move of disk {names.uuid} to {target}, where it is now", [close], report=report)
