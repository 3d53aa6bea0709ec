"""Opening storage for a running disk: the steps that a move and a failover have in common.

A new protocol node, opened as the one in use was, with the private files and objects that it needs; nothing uses it
yet.
"""

from __future__ import annotations

from hvext.core.causes import hint_for
from hvext.core.identity import ProtocolName
from hvext.core.node import protocol_node_of
from hvext.core.running import Node, RunningDisk
from hvext.core.uri import Location, masked
from hvext.core.uri.location import Companions, Needs
from hvext.core.value import replace, value_object
from hvext.errors import CommandRefused, QemuError, RepointRefused
from hvext.host.private import private_folder
from hvext.host.qmp import Monitor
from hvext.operations.capabilities import query_capabilities
from hvext.operations.inspect import has_node, memory_is_shared, size_of
from hvext.operations.nodes import add_node, delete_node, needs_steps
from hvext.operations.rehearsal import rehearse
from hvext.operations.steps import Step


@value_object
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


async def location_obstacle(monitor: Monitor, disk: Movable, location: Location) -> RepointRefused | None:
    """Return why the storage of a disk cannot be at ``location``, or None when it can."""
    names = disk.running.names
    if not location.block_node:
        return RepointRefused(
            f"{location.words} is served to the guest directly: a running disk cannot be moved there",
            hint="unplug the disk and plug it with that access",
        )
    if location.read_only and not disk.root.read_only:
        return RepointRefused(f"{location.words} can only be read, and the guest writes to disk {names.uuid}")
    if location.needs_shared_memory and not await memory_is_shared(monitor):
        return RepointRefused(
            f"the server at {location.words} would read and write the guest's memory, which is not shared",
            hint="start QEMU with memory-backend-memfd,share=on",
        )
    if location.buffered_only:
        return RepointRefused(f"{location.words} needs the host's page cache, and a disk is moved past it")
    return None


def check_can_move(disk: Movable) -> None:
    """Raise RepointRefused for a disk whose storage is opened with a cache in between that a move does not empty.

    A client's cache is emptied by the flush before the switch, and goes with its node. The page cache stays.
    """
    if disk.protocol.cached_by_client and disk.protocol.no_flush:
        raise RepointRefused(
            f"disk {disk.running.names.uuid} is opened with cache=unsafe: the cache of its storage's client is never "
            "flushed, and a move would lose what is in it",
            hint="unplug it and plug it with cache=none or cache=writeback",
        )
    if not disk.protocol.direct and not disk.protocol.cached_by_client:
        raise RepointRefused(
            f"disk {disk.running.names.uuid} is not opened with cache.direct=on: after a move the guest would read "
            "stale data",
            hint="only cache=none and cache=directsync disks can be moved; unplug it and plug it with cache=none",
        )


def check_can_fail_over(disk: Movable) -> None:
    """Raise RepointRefused for a disk whose storage cannot be left without a flush: one with any cache in between."""
    if disk.protocol.cached_by_client:
        raise RepointRefused(
            f"acknowledged writes of disk {disk.running.names.uuid} may be in the cache of its storage's client "
            f"({disk.protocol.driver}): a failover would lose them, and the guest would not know",
            hint="use cache=none for a disk that is to be failed over; storage that is alive can be left with hvext "
            "repoint, which flushes",
        )
    check_can_move(disk)


@value_object
class Opening:
    """The protocol node called ``name`` for a new location, the steps that make it, and its ``cache.direct``."""

    name: str
    steps: tuple[Step, ...]
    direct: bool


async def opening(
    monitor: Monitor, disk: Movable, location: Location, *, exact_size: bool, rehearsed: bool = False
) -> Opening:
    """Return what opens ``location`` with the options that the disk's storage has now; but for a client's cache.

    One that is in use now is used at the new location as well if its client has one, and nothing else takes its place.

    With ``exact_size`` the new storage must have the disk's size, else at least that. ``rehearsed`` says that another
    process has opened it just now, and has read its last block. Raises CapabilityError and InputError before anything
    is done.
    """
    names, old = disk.running.names, disk.protocol
    # Nothing is moved into the page cache.
    direct = old.direct or not location.own_cache
    opened = replace(old.by_name or ProtocolName(), generation=disk.running.free_generation)
    node = protocol_node_of(
        location,
        names,
        opened,
        read_only=disk.root.read_only,
        direct=direct,
        no_flush=old.no_flush,
        folder=private_folder(),
    )
    name = str(node["node-name"])
    needs = location.needs(Companions(node=name, folder=private_folder()))
    capabilities = await query_capabilities(monitor)
    for item in needs.objects:
        capabilities.check_object(item)
    capabilities.check_node(node)

    async def compare() -> None:
        await _compare(monitor, name, location, size_bytes=disk.root.size_bytes, exact=exact_size)

    return Opening(
        name=name,
        direct=direct,
        steps=(
            *needs_steps(monitor, needs, name),
            Step(
                name=f"open {location.words}",
                do=lambda: _open(monitor, location, needs, node, rehearsed=rehearsed),
                undo=lambda: delete_node(monitor, name),
                happened=lambda: has_node(monitor, name),
                inverse=f"delete node {name}",
            ),
            *([] if rehearsed and not exact_size else [Step(name="compare the sizes", do=compare)]),
        ),
    )


async def _open(
    monitor: Monitor, location: Location, needs: Needs, node: dict[str, object], *, rehearsed: bool
) -> None:
    try:
        if not rehearsed:
            await rehearse(monitor, location, needs, node)
        await add_node(monitor, node)
    except CommandRefused as error:
        words = masked(" ".join(error.description.split()))
        raise QemuError(f"QEMU does not open it: {words}", hint=hint_for(location.driver, words)) from error


async def _compare(monitor: Monitor, name: str, location: Location, *, size_bytes: int, exact: bool) -> None:
    size = await size_of(monitor, name)
    if size is None:
        raise QemuError(f"node {name} is gone again")
    if size != size_bytes if exact else size < size_bytes:
        raise RepointRefused(
            f"{location.words} has {size} bytes, the disk has {size_bytes}",
            hint="the new location must be the same volume; after a grow use hvext resize",
        )
