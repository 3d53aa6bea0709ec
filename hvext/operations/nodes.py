"""Making and removing the parts of a disk in a running QEMU."""

from __future__ import annotations

import asyncio

from hvext.core.running import RunningDisk
from hvext.errors import CommandRefused
from hvext.host.qmp import Monitor

#: How long a device that has left the object tree may still hold its node: QEMU frees it in an RCU callback, later.
SETTLE_S = 3.0
_POLL_S = 0.02
#: What QEMU says when there is nothing to remove.
_GONE = ("Failed to find node with node-name", "not found", "Cannot find device")


async def add_node(monitor: Monitor, node: dict[str, object]) -> None:
    """Make a block node."""
    await monitor.execute("blockdev-add", node)


async def delete_node(monitor: Monitor, name: object) -> None:
    """Delete a block node; one that is gone is no error. Raises CommandRefused when it is in use."""
    try:
        await monitor.execute("blockdev-del", {"node-name": name})
    except CommandRefused as error:
        if not any(words in error.description for words in _GONE):
            raise


async def delete_object(monitor: Monitor, name: object) -> None:
    """Delete an object; one that is gone is no error."""
    try:
        await monitor.execute("object-del", {"id": name})
    except CommandRefused as error:
        if not any(words in error.description for words in _GONE):
            raise


async def remove_remains(monitor: Monitor, disk: RunningDisk) -> tuple[str, ...]:
    """Remove the nodes and objects of a disk whose device is gone; return their names.

    QEMU itself refuses to delete a node that anything uses. A device leaves the object tree a moment before it lets
    its node go, so a refusal counts only when it lasts. Raises CommandRefused.
    """
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    for name in disk.node_names:
        while True:
            try:
                await delete_node(monitor, name)
                break
            except CommandRefused as error:
                if "in use" not in error.description or asyncio.get_running_loop().time() >= deadline:
                    raise
            await asyncio.sleep(_POLL_S)
    for name in disk.objects:
        await delete_object(monitor, name)
    return (*disk.node_names, *disk.objects)
