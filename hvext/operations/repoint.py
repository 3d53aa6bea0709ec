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

from dataclasses import dataclass, replace

from hvext.core.identity import DiskNames, ProtocolName
from hvext.core.node import protocol_node_of, raw_node_of
from hvext.core.running import Node, RunningDisk
from hvext.core.uri import Location
from hvext.errors import CommandRefused, DiskNotFound, QemuError, RepointRefused
from hvext.host.qmp import Monitor
from hvext.operations.inspect import running_disk
from hvext.operations.nodes import add_node, delete_node
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
    running, root, old = await movable(monitor, names)
    if old.filename == location.filename and old.driver == location.driver:
        return Repointed(
            changed=False,
            device=str(running.device),
            before=old.filename,
            after=old.filename,
            size_bytes=root.size_bytes,
        )
    await exchange(monitor, running, root, old, location, exact_size=True, report=report)
    return Repointed(
        changed=True,
        device=str(running.device),
        before=old.filename,
        after=location.filename,
        size_bytes=root.size_bytes,
    )


async def movable(monitor: Monitor, names: DiskNames) -> tuple[RunningDisk, Node, Node]:
    """Return a disk with its raw node and the protocol node in use.

    Raises DiskNotFound when the guest has no such disk, RepointRefused when it cannot be moved.
    """
    running = await running_disk(monitor, names)
    if running.device is None:
        raise DiskNotFound(f"the guest has no disk {names.uuid}", hint="hvext disks lists those it has")
    if len(running.protocols) > 1:
        running = await _without_leftovers(monitor, running)
    old = running.protocol
    if running.root is None or old is None:
        raise RepointRefused(
            f"disk {names.uuid} was not plugged with a raw node over one protocol node",
            hint="start or plug it with hvext",
        )
    if not old.direct:
        raise RepointRefused(
            f"disk {names.uuid} is not opened with cache.direct=on: a move would let the guest read stale data",
            hint="only cache=none and cache=directsync disks can be moved; unplug it and plug it with cache=none",
        )
    return running, running.root, old


async def _without_leftovers(monitor: Monitor, running: RunningDisk) -> RunningDisk:
    """Delete protocol nodes that an interrupted move left; QEMU refuses to delete the one that is in use."""
    for node in running.protocols:
        try:
            await delete_node(monitor, node.name)
        except CommandRefused:
            continue
    return await running_disk(monitor, running.names)


async def exchange(
    monitor: Monitor,
    running: RunningDisk,
    root: Node,
    old: Node,
    location: Location,
    *,
    exact_size: bool,
    report: Report = silent,
) -> None:
    """Put a new protocol node for ``location`` under the raw node and delete the old one.

    With ``exact_size`` the new storage must have the disk's size, else at least that. Raises OperationFailed.
    """
    names = running.names
    new = protocol_node_of(
        location,
        names,
        replace(old.by_name or ProtocolName(), generation=running.free_generation),
        read_only=root.read_only,
        direct=old.direct,
        no_flush=old.no_flush,
    )
    new_name = str(new["node-name"])

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
                f"{location.filename} has {size} bytes, the disk has {root.size_bytes}",
                hint="the new location must be the same volume; after a grow use hvext resize",
            )

    steps = [
        Step(
            name=f"open {location.filename}",
            do=lambda: add_node(monitor, new),
            undo=lambda: delete_node(monitor, new_name),
        ),
        Step(name="compare the sizes", do=compare),
        Step(
            name="switch over",
            do=lambda: monitor.execute("blockdev-reopen", reopen(new_name)),
            undo=lambda: monitor.execute("blockdev-reopen", reopen(old.name)),
        ),
        Step(name=f"close {old.filename}", do=lambda: delete_node(monitor, old.name)),
    ]
    await carry_out(f"move disk {names.uuid} to {location.filename}", steps, report=report)
