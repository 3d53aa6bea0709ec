"""Making and removing the parts of a disk in a running QEMU."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from hvext.core.running import RunningDisk
from hvext.core.topology import typed_children
from hvext.core.uri.location import Needs
from hvext.errors import CommandRefused, CommandTimeout, HvextError, MonitorError, QemuError
from hvext.host.private import remove_private, write_private
from hvext.host.qmp import Monitor
from hvext.host.vhost import check_vhost_user
from hvext.operations.steps import Step
from hvext.operations.threads import in_thread

#: How long a device that has left the object tree may still hold its node: QEMU frees it in an RCU callback, later.
SETTLE_S = 3.0
#: How long a vhost-user server may take to answer.
ANSWER_S = 3.0
_POLL_S = 0.02
#: What QEMU says when there is nothing to remove.
_IN_USE = ("in use", "is busy", "not owned by the monitor")
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


async def delete_chardev(monitor: Monitor, name: object) -> None:
    """Remove a character device; one that is gone is no error. Raises CommandRefused when it is in use."""
    try:
        await monitor.execute("chardev-remove", {"id": name})
    except CommandRefused as error:
        if not any(words in error.description for words in _GONE):
            raise


async def add_chardev(monitor: Monitor, chardev: Mapping[str, Any]) -> None:
    """Make the character device of a disk behind vhost-user, once its server answers, and wait for its connection.

    QEMU connects in the background, and a device that is plugged over a connection that is not there, or to a server
    that does not answer, stops all of QEMU until it does. Raises QemuError.
    """
    path = chardev["backend"]["data"]["addr"]["data"]["path"]
    await in_thread(lambda _cancel: check_vhost_user(path, timeout_s=ANSWER_S))
    await monitor.execute("chardev-add", chardev)
    deadline = asyncio.get_running_loop().time() + ANSWER_S
    while True:
        found = {item["label"]: item["filename"] for item in await monitor.execute("query-chardev")}
        shown = str(found.get(str(chardev["id"]), "disconnected:"))
        if not shown.startswith("disconnected:"):
            return
        if asyncio.get_running_loop().time() >= deadline:
            raise QemuError(
                f"nothing answers at {shown.removeprefix('disconnected:')}",
                hint="is the server running? One that serves another guest does not answer a second",
            )
        await asyncio.sleep(_POLL_S)


async def add_needs(monitor: Monitor, needs: Needs) -> None:
    """Make what a protocol node needs beside it: private files, readable by QEMU's user, and objects."""
    if needs.files:
        owner = monitor.owner
        await in_thread(lambda _cancel: write_private(needs.files, owner=owner))
    for item in needs.objects:
        await monitor.execute("object-add", item)


def needs_steps(monitor: Monitor, needs: Needs, node: str) -> tuple[Step, ...]:
    """Return the step that makes what the protocol node called ``node`` needs; none where it needs nothing."""
    if not needs.objects and not needs.files:
        return ()
    name = "make what it needs: " + ", ".join(
        [str(item["qom-type"]) for item in needs.objects] + ["a private file" for _file in needs.files]
    )

    async def add() -> None:
        try:
            await add_needs(monitor, needs)
        except (CommandTimeout, MonitorError):
            raise
        except HvextError:
            # Some of it may be there already.
            await remove_needs(monitor, node)
            raise

    return (Step(name=name, do=add, undo=lambda: remove_needs(monitor, node), inverse="remove that"),)


async def remove_needs(monitor: Monitor, node: str) -> None:
    """Remove the objects and private files that are there for the protocol node called ``node``; may be repeated."""
    for name in typed_children(await monitor.execute("qom-list", {"path": "/objects"})):
        if name.startswith(f"{node}-"):
            await delete_object(monitor, name)
    await in_thread(lambda _cancel: remove_private(f"{node}-"))


async def remove_remains(monitor: Monitor, disk: RunningDisk) -> tuple[str, ...]:
    """Remove nodes, objects, character device and private files of a disk whose device is gone; return their names.

    QEMU itself refuses to delete a node that anything uses. A device leaves the object tree a moment before it lets
    its node go, so a refusal counts only when it lasts. Raises CommandRefused.
    """
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    for name in disk.node_names:
        await _once_free(partial(delete_node, monitor, name), deadline)
    for name in disk.objects:
        await delete_object(monitor, name)
    chardevs = () if disk.chardev is None else (disk.chardev,)
    for name in chardevs:
        await _once_free(partial(delete_chardev, monitor, name), deadline)
    await in_thread(lambda _cancel: remove_private(disk.names.root))
    return (*disk.node_names, *disk.objects, *chardevs)


async def _once_free(delete: Callable[[], Awaitable[None]], deadline: float) -> None:
    """Delete something that may be in use until ``deadline``."""
    # Most often it is free a moment later.
    pause_s = _POLL_S / 16
    while True:
        try:
            return await delete()
        except CommandRefused as error:
            in_use = any(words in error.description for words in _IN_USE)
            if not in_use or asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _POLL_S)
