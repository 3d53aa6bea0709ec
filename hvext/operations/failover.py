"""Putting other storage in the place of a running disk's storage that is dead.

::

    (another process)        opens and reads the candidate
    blockdev-add             the new protocol node, a new raw node over it, a new throttle filter over that
    x-blockdev-set-iothread  the new nodes, where the device runs in an iothread
    qom-set drive            the device, from the old nodes to the new ones
    blockdev-del             the old nodes

A move (``repoint``) flushes the old storage before it lets go of it, and dead storage cannot be flushed. Here the
device changes its nodes instead. The guest has been stopped by its first I/O error (``werror=stop``,
``rerror=stop``): what it wrote and was not told about is in its device's queue, and goes to the new storage when it
runs again. So the guest is resumed (`resume`) when all of its failed disks have been swapped, and not before.

Three things end QEMU, or its guest's time, and are looked for right before they could happen: ``qom-set`` of the nodes
that the device has already (QEMU aborts), of nodes in another thread than the device's (QEMU aborted before commit
eef2dd03f948 of 2025, and refuses since), and anything that changes the block graph while any disk of the guest has
requests in flight that nobody answers: the main loop waits for them, and with it every monitor (7.2 for those of the
same disk, 10.0 for those of all disks).

Source: QEMU, hw/core/qdev-properties-system.c, set_drive_helper; block/block-backend.c, blk_root_change_aio_ctx.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from uuid import UUID

from hvext.core.causes import hint_for
from hvext.core.health import HealthState
from hvext.core.identity import DiskNames, parse_protocol_name
from hvext.core.node import raw_node_of, throttle_node_of
from hvext.core.running import RunningDisk
from hvext.core.uri import Location, masked
from hvext.core.value import value_object
from hvext.errors import (
    CapabilityError,
    CommandRefused,
    FailoverFailed,
    FailoverRefused,
    HvextError,
    InputError,
    OperationFailed,
    ProgramError,
    RepointRefused,
)
from hvext.host.qmp import Monitor
from hvext.operations.frozen import stuck_now
from hvext.operations.health import check_health
from hvext.operations.inspect import chain_of, device_iothread, has_node, running_disks, seen_again
from hvext.operations.nodes import add_node, delete_node, remove_needs
from hvext.operations.opening import Movable, Opening, check_can_fail_over, location_obstacle, opening
from hvext.operations.repoint import disk_in_guest, whole
from hvext.operations.steps import Report, Step, carry_out, may_have_done, silent, tidy_up
from hvext.operations.telling import telling

#: The state of a guest that an I/O error has stopped.
IO_ERROR = "io-error"
#: In these, another QEMU may be writing to the same storage, or be about to.
_MIGRATING = ("inmigrate", "postmigrate", "finish-migrate")


@value_object
class FailedOver:
    """A disk that stands on other storage now; ``passed_over`` says of each candidate before why it was not taken."""

    device: str
    before: str
    after: str
    size_bytes: int
    passed_over: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """From where to where, for people: a server that came back is opened anew at the same place."""
        return f"{self.after} opened anew" if self.before == self.after else f"from {self.before} to {self.after}"

    def to_json(self) -> dict[str, object]:
        """Return the result for machines; the size in bytes."""
        return {
            "state": "failed over",
            "device": self.device,
            "before": self.before,
            "after": self.after,
            "size_bytes": self.size_bytes,
            "passed_over": list(self.passed_over),
        }


async def fail_over(
    monitor: Monitor,
    names: DiskNames,
    candidates: Sequence[Location],
    *,
    known: RunningDisk | None = None,
    report: Report = silent,
) -> FailedOver:
    """Put the first candidate that can be opened and read in the place of a disk's storage; the guest is not resumed.

    The candidates must be the same volume: sizes are compared (at least as large), contents are not. One may be where
    the disk was: a server that came back is opened afresh, and a local device that QEMU still has is kept. The storage
    is opened with the options it had. May be repeated at any time, also when an earlier one was interrupted anywhere.

    ``known`` is the disk as QEMU told of it last (``running_disk``), when its storage was well. It is needed for RBD,
    NFS and Gluster: QEMU finds out from the storage what it tells, and dead storage tells nothing. A disk that has
    other nodes by now is asked for again.

    Raises DiskNotFound, and FailoverRefused before anything is done; FailoverFailed when no candidate could be used and
    everything was undone; OperationFailed when something could not be undone, or when the disk is on its new storage
    and only an old node is left, which a repetition removes.
    """
    running = await _found(monitor, names, known)
    disk = _that_can(running)
    if not candidates:
        raise FailoverRefused(f"there is no other storage for disk {names.uuid}")
    status = await _check_guest(monitor, running, asked=known is None)
    if running.leftovers:
        disk = await _cleaned(monitor, running, report)
    passed_over: list[str] = []
    for location in candidates:
        try:
            after = await _swap(monitor, disk, location, report)
        except _PassedOver as reason:
            passed_over.append(f"{location.words}: {reason.message}")
            continue
        return FailedOver(
            device=disk.device,
            before=disk.protocol.where,
            after=after,
            size_bytes=disk.root.size_bytes,
            passed_over=tuple(passed_over),
        )
    raise FailoverFailed(
        f"no storage could take the place of {disk.protocol.where} under disk {names.uuid}; it stays where it is, and "
        f"the guest is {_words(status)}: {'; '.join(passed_over)}",
        passed_over=passed_over,
        hint="bring one of them back, then repeat the failover: a guest that is paused loses nothing meanwhile",
    )


async def resume(monitor: Monitor) -> bool:
    """Let a guest run again that an I/O error has stopped, and return whether there was one; may be repeated.

    A guest that somebody has paused stays so. Call it when all failed disks have been swapped: before, the guest only
    stops again.
    """
    if (await monitor.execute("query-status"))["status"] != IO_ERROR:
        return False
    step = resume_step(monitor)
    with telling("step", step=step.name):
        await step.do()
    return True


def resume_step(monitor: Monitor) -> Step:
    """Return the step that lets a guest run again."""
    return Step(name="resume the guest", do=lambda: monitor.execute("cont"), one_way=True)


class _PassedOver(HvextError):
    """A candidate that cannot be used; nothing is left of the attempt."""


async def _check_guest(monitor: Monitor, disk: RunningDisk, *, asked: bool) -> str:
    """Return the guest's state; raises FailoverRefused in those in which the graph must not be touched.

    ``asked`` says that QEMU can be asked for the other disks.
    """
    names = disk.names
    status = await monitor.execute("query-status")
    state = str(status["status"])
    if state in _MIGRATING:
        raise FailoverRefused(
            f"the guest of disk {names.uuid} is being migrated ({state}): another QEMU may be writing to its storage",
            hint="end the migration first",
        )
    if status["running"]:
        # A guest that runs may send a request at any moment, so storage that is silent counts without one as well.
        every = await running_disks(monitor) if asked else {names.uuid: disk}
        silent, stuck = await asyncio.gather(_silent(monitor, every.values()), stuck_now(monitor))
        if waiting := [str(uuid) for uuid in {*silent, *stuck}]:
            raise FailoverRefused(
                f"the storage of disk {', '.join(waiting)} answers nothing: QEMU would hang until it does",
                hint="storage that is alive but silent must be fenced and cut off first",
            )
    return state


async def _silent(monitor: Monitor, disks: Iterable[RunningDisk]) -> list[UUID]:
    """Return the disks whose storage does not answer another process either."""

    async def is_silent(location: Location) -> bool:
        try:
            return (await check_health(monitor, location)).state is HealthState.SILENT
        except (ProgramError, InputError):
            # Nobody can look: what QEMU tells of an image may lack the options that it was opened with.
            return False

    places = {disk.names.uuid: disk.protocol.location for disk in disks if disk.protocol}
    told = {uuid: location for uuid, location in places.items() if location is not None}
    answers = await asyncio.gather(*(is_silent(location) for location in told.values()))
    return [uuid for uuid, silent in zip(told, answers, strict=True) if silent]


async def _found(monitor: Monitor, names: DiskNames, known: RunningDisk | None) -> RunningDisk:
    if known is not None and (seen := await seen_again(monitor, known)) is not None:
        return seen
    try:
        return await disk_in_guest(monitor, names)
    except CommandRefused as error:
        raise FailoverRefused(
            f"QEMU does not tell what disk {names.uuid} stands on: {error.description}",
            hint="QEMU looks at storage before it tells anything, and some of this guest's is dead; hvext watch, which "
            "has asked before, can fail it over",
        ) from error


async def _cleaned(monitor: Monitor, running: RunningDisk, report: Report) -> Movable:
    """Remove the nodes that an interruption left, and return the disk without them."""
    names = running.names
    await carry_out(f"fail disk {names.uuid} over", _cleaning(monitor, running), report=report)
    found = running.seen_again(running.chain, running.chain, running.objects)
    return whole(found or await disk_in_guest(monitor, names))


def _cleaning(monitor: Monitor, running: RunningDisk) -> list[Step]:
    async def clean() -> None:
        for name in running.leftovers:
            await delete_node(monitor, name)
            if parse_protocol_name(name) is not None:
                await remove_needs(monitor, name)

    name = "remove what an earlier failover left"
    return [Step(name=name, do=clean, one_way=True)] if running.leftovers else []


async def _swap(monitor: Monitor, disk: Movable, location: Location, report: Report) -> str:
    """Swap the disk to ``location`` and return where it is then; raises _PassedOver when nothing came of it."""
    names = disk.running.names
    if (obstacle := await location_obstacle(monitor, disk, location)) is not None:
        raise _PassedOver(obstacle.message)
    rehearsed = await _readable(monitor, location, disk.root.size_bytes)
    try:
        new = await opening(monitor, disk, location, exact_size=False, rehearsed=rehearsed)
    except (CapabilityError, InputError) as error:
        raise _PassedOver(error.message) from error
    steps, close = _steps(monitor, disk, new)
    try:
        await carry_out(f"fail disk {names.uuid} over to {location.words}", steps, report=report)
    except OperationFailed as error:
        cause = error.__cause__
        if error.left or not isinstance(cause, HvextError) or may_have_done(cause):
            raise
        if _has_it_open(disk, location, cause):
            return location.words
        raise _PassedOver(masked(" ".join(cause.message.split()))) from error

    # The disk is on its new storage: a node that stays is no reason to go back, and the next failover removes it.
    words = f"finish the failover of disk {names.uuid} to {location.words}, where it is now"
    await tidy_up(words, close, leaves=[disk.protocol.name], report=report)
    return location.words


def _steps(monitor: Monitor, disk: Movable, new: Opening) -> tuple[list[Step], Step]:
    """Return the steps of a swap, and the one that closes the old storage when they are done."""
    tops = _tops(disk, new.name)

    async def close_old() -> None:
        used = (disk.running.throttle, disk.root, disk.protocol)
        for node in used:
            if node is not None:
                await delete_node(monitor, node.name)
        await remove_needs(monitor, disk.protocol.name)

    nodes = (_node_step(monitor, node) for node in tops)
    steps = [*new.steps, *nodes, *_device_steps(monitor, disk, _name(tops[-1]))]
    return steps, Step(name=f"close {disk.protocol.where}", do=close_old, one_way=True)


async def swap_steps(monitor: Monitor, names: DiskNames, location: Location) -> list[Step]:
    """Return the steps of a failover to a location that can be read; changes nothing.

    Raises DiskNotFound, FailoverRefused, CapabilityError.
    """
    running = await _found(monitor, names, None)
    disk = _that_can(running)
    new = await opening(monitor, disk, location, exact_size=False, rehearsed=True)
    steps, close = _steps(monitor, disk, new)
    return [*_cleaning(monitor, running), *steps, close]


def _that_can(running: RunningDisk) -> Movable:
    """Return the parts of a disk that can be failed over; raises FailoverRefused."""
    try:
        disk = whole(running)
        check_can_fail_over(disk)
    except RepointRefused as error:
        raise FailoverRefused(error.message, hint=error.hint) from error
    return disk


async def _readable(monitor: Monitor, location: Location, size_bytes: int) -> bool:
    """Return whether another process has read from a location; False when none could try. Raises _PassedOver."""
    try:
        health = await check_health(monitor, location, size_bytes=size_bytes)
    except ProgramError:
        return False
    if not health.healthy:
        hint = hint_for(location.driver, health.words)
        raise _PassedOver(f"{health.state}: {health.words}" + (f" ({hint})" if hint else ""))
    return True


def _has_it_open(disk: Movable, location: Location, cause: HvextError) -> bool:
    """Whether the swap failed because the disk's own node holds the lock on this very file or device.

    It is open already then: an interrupted failover had come that far, or a device is back that had never gone.
    """
    refused = isinstance(cause, CommandRefused) and '" lock' in cause.description
    return refused and location.local_aio and disk.protocol.location == location


def _tops(disk: Movable, protocol: str) -> list[dict[str, object]]:
    """The nodes above a new protocol node, with the names that those in use have not."""
    names, root, throttle = disk.running.names, disk.root, disk.running.throttle
    name = _other(names.roots, root.name)
    tops = [
        raw_node_of(
            name,
            protocol,
            read_only=root.read_only,
            direct=disk.protocol.direct,
            no_flush=root.no_flush,
            detect_zeroes=root.detect_zeroes,
        )
    ]
    if throttle is not None:
        tops.append(
            throttle_node_of(
                _other(names.throttle_nodes, throttle.name),
                name,
                names.throttle_group,
                read_only=throttle.read_only,
                direct=disk.protocol.direct,
                no_flush=throttle.no_flush,
            )
        )
    return tops


def _node_step(monitor: Monitor, node: dict[str, object]) -> Step:
    name = _name(node)
    return Step(
        name=f"make {node['driver']} node {name}",
        do=lambda: add_node(monitor, node),
        undo=lambda: delete_node(monitor, name),
        happened=lambda: has_node(monitor, name),
        inverse=f"delete node {name}",
    )


def _device_steps(monitor: Monitor, disk: Movable, new: str) -> tuple[Step, ...]:
    """The steps that hand the device from its own top node to the one called ``new``."""
    old = disk.top.name

    async def has(top: str) -> bool:
        return (await chain_of(monitor, disk.device))[:1] == (top,)

    async def use(top: str) -> None:
        # QEMU aborts when a device is given the node that it has.
        if not await has(top):
            await monitor.execute(
                "qom-set", {"path": f"/machine/peripheral/{disk.device}", "property": "drive", "value": top}
            )

    return (
        Step(name="bring the nodes to the device's thread", do=lambda: _follow(monitor, disk, new)),
        Step(
            name="swap the disk's storage",
            do=lambda: use(new),
            undo=lambda: use(old),
            happened=lambda: has(new),
            inverse="swap it back",
        ),
    )


async def _follow(monitor: Monitor, disk: Movable, node: str) -> None:
    """Bring new nodes to the thread that the device's nodes are in.

    That depends on more than the device: a virtio-blk device leaves its iothread while the guest is paused. QEMU tells
    by refusing to move the nodes of a device, and by doing nothing when they are there.
    """
    iothread = await device_iothread(monitor, disk.device)
    if iothread is None:
        return
    try:
        await _set_iothread(monitor, disk.top.name, iothread, force=True)
    except CommandRefused as error:
        if "Cannot change iothread" not in error.description:
            raise
        return
    await _set_iothread(monitor, node, iothread)


async def _set_iothread(monitor: Monitor, node: str, iothread: str, *, force: bool = False) -> None:
    await monitor.execute("x-blockdev-set-iothread", {"node-name": node, "iothread": iothread, "force": force})


def _other(names: tuple[str, str], used: str) -> str:
    return names[1] if used == names[0] else names[0]


def _name(node: dict[str, object]) -> str:
    return str(node["node-name"])


def _words(state: str) -> str:
    return "paused by the I/O error" if state == IO_ERROR else state
