"""Storage that is alive and silent: finding it out without waiting for it, and cutting it off.

Nothing here drains a disk. What QEMU is asked for is only counted, not waited for; ``yank`` goes out-of-band, past a
main loop that may be waiting already.

Source: qemu-qmp-ref(7): query-blockstats, x-query-virtio-queue-status, yank.
"""

from __future__ import annotations

import asyncio
import time
import uuid as uuid_module
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hvext.core.documentation import page
from hvext.core.frozen import Activity, Sample, Stuck, completed_requests, judge
from hvext.core.identity import DiskNames, disk_of_device
from hvext.core.running import device_in_statistics
from hvext.errors import CannotCut, CommandRefused, HvextError, RepointRefused
from hvext.host.qmp import Monitor
from hvext.operations.inspect import chain_of, controller_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hvext.operations.inspect import Asked

#: Between two looks, where a guest's disks must not be stuck: a healthy disk finishes something meanwhile.
_LOOK_S = 0.05
#: Between the first two, where somebody waits for the answer; each next pause is twice as long, up to that one.
_SHORT_LOOK_S = 0.005
#: So many looks in a row have to find every disk going on.
_CALM = 2
#: A disk that now and then finishes something is looked at for so many times the limit, and is not stuck then.
_PATIENCE = 3
#: How long a disk may finish nothing before it counts as stuck, where that is looked for once.
WATCH_S = 1.0
#: The same before a command that waits for the requests of all disks: a slow disk is no reason to refuse it.
_WAIT_S = 3.0
#: The first of a SCSI controller's queues is for control, the second for events; the others carry requests.
_SCSI_QUEUES = 2
_YANK_S = 5.0


async def sample(monitor: Asked, before: Sample | None = None) -> Sample:
    """Return what the guest's disks have done so far, for ``hvext.core.frozen.judge``.

    Two commands, and one or a few more for each disk that has finished nothing since ``before``. Raises CommandTimeout
    when QEMU's main loop hangs.
    """
    status, statistics = await asyncio.gather(monitor.execute("query-status"), monitor.execute("query-blockstats"))
    taken_s = time.monotonic()
    counts: dict[str, tuple[DiskNames, int]] = {}
    for entry in statistics:
        device = device_in_statistics(entry)
        owner = disk_of_device(device)
        if owner is not None:
            counts[device] = owner, completed_requests(entry["stats"])
    running = bool(status["running"])
    known = before.disks if before else {}
    still = [
        device
        for device, (owner, count) in counts.items()
        if running and (owner.uuid not in known or known[owner.uuid].completed == count)
    ]
    in_flight = await _in_flight(monitor, still)
    return Sample(
        taken_s=taken_s,
        running=running,
        disks={
            owner.uuid: Activity(completed=count, in_flight=number, exact=exact)
            for device, (owner, count) in counts.items()
            for number, exact in [in_flight.get(device, (None, True))]
        },
    )


async def stuck_now(monitor: Monitor, *, watch_s: float = WATCH_S) -> dict[uuid_module.UUID, Stuck]:
    """Return the disks that have requests in flight and finish none of them for ``watch_s`` seconds.

    Returns at once when nothing is in flight, and as soon as every disk has gone on for a while: answers that a server
    gave right before it fell silent may still be coming in.
    """
    stuck, _looks = await _watched(monitor, watch_s=watch_s, look_s=_LOOK_S)
    return stuck


async def check_requests_end(monitor: Asked, refused: type[HvextError] = RepointRefused) -> None:
    """Raise ``refused`` when a disk of the guest has requests that do not end.

    Commands that change what a disk stands on or its size, or stop the guest, wait for the requests of all disks, and
    QEMU hangs until they end. A SCSI disk whose controller has another disk that goes on is not seen: they count
    together.
    """
    stuck, looks = await _watched(monitor, watch_s=_WAIT_S, look_s=_SHORT_LOOK_S)
    first, last = looks
    shared = {uuid for uuid, activity in first.disks.items() if not activity.exact}
    one_goes_on = any(last.disks[uuid].completed != first.disks[uuid].completed for uuid in shared & last.disks.keys())
    waiting = [
        str(uuid)
        for uuid, each in stuck.items()
        if last.taken_s - each.since_s >= _WAIT_S and (each.certain or not one_goes_on)
    ]
    if waiting:
        raise refused(
            f"the storage of disk {', '.join(waiting)} answers nothing: QEMU would hang until it does",
            hint="hvext watch --fence fences storage that is alive and silent, and puts the next access in its place; "
            f"where its server is ended, or goes on, requests end as well ({page('failover')})",
        )


async def _watched(
    monitor: Asked, *, watch_s: float, look_s: float
) -> tuple[dict[uuid_module.UUID, Stuck], tuple[Sample, Sample]]:
    """Return what is stuck, and the first and the last look."""
    first = before = await sample(monitor)
    if not first.running or not any(activity.in_flight for activity in first.disks.values()):
        return {}, (first, first)
    calm = 0
    stuck: dict[uuid_module.UUID, Stuck] = {}
    while calm < _CALM and before.taken_s - first.taken_s < _PATIENCE * watch_s:
        await asyncio.sleep(look_s)
        look_s = min(2 * look_s, _LOOK_S)
        now = await sample(monitor, before)
        stuck = judge(before, now, stuck)
        before = now
        if any(now.taken_s - each.since_s >= watch_s for each in stuck.values()):
            break
        waiting = any(activity.in_flight for activity in now.disks.values())
        calm = 0 if waiting else calm + 1
    return stuck, (first, before)


async def cut(monitor: Monitor, *disks: DiskNames) -> None:
    """Break the connections that disks have to their storage: their requests fail at once. May be repeated.

    Cut all stuck disks of a guest in one call: the first error stops the guest, and QEMU then waits for the requests of
    all of its disks. Cutting says nothing about what the storage still does with requests that it has received: fence
    it first. Raises CannotCut before anything is cut.
    """
    nodes = []
    for names in disks:
        chain = await chain_of(monitor, names.device)
        if not chain:
            raise CannotCut(f"disk {names.uuid} has no storage in this guest that could be cut off")
        if chain[-1] not in await cuttable(monitor):
            raise CannotCut(
                f"disk {names.uuid} cannot be cut off from its storage: QEMU can do that for NBD only",
                hint="end its server, or its network connection: when that fails, the requests fail as well",
            )
        nodes.append(chain[-1])
    await yank(monitor, nodes)


async def cuttable(monitor: Monitor) -> set[str]:
    """Return the names of the block nodes whose connections QEMU can break."""
    return {entry["node-name"] for entry in await monitor.execute("query-yank") if entry["type"] == "block-node"}


async def yank(monitor: Monitor, nodes: list[str]) -> None:
    """Break the connections of NBD nodes, past a main loop that may hang; nodes that are gone are no error."""
    for node in nodes:
        instances = [{"type": "block-node", "node-name": node}]
        try:
            await monitor.execute("yank", {"instances": instances}, oob=True, timeout_s=_YANK_S)
        except CommandRefused as error:
            if error.error_class != "DeviceNotFound":
                raise


async def _in_flight(monitor: Asked, devices: list[str]) -> dict[str, tuple[int | None, bool]]:
    """Return how many requests each device has in flight, and whether they are all its own."""
    places = dict(zip(devices, await asyncio.gather(*(_queues_of(monitor, each) for each in devices)), strict=True))
    paths = Counter(path for path, _first, _disks in places.values())
    numbers = dict(
        zip(paths, await asyncio.gather(*(_handed_out(monitor, path, places) for path in paths)), strict=True)
    )
    return {device: (numbers[path], disks == 1) for device, (path, _first, disks) in places.items()}


async def _queues_of(monitor: Asked, device: str) -> tuple[str, int, int]:
    """Return the virtio device whose queues carry a disk's requests: its path, the first such queue, its disks."""
    controller = await controller_of(monitor, device)
    if controller is None:
        return f"/machine/peripheral/{device}/virtio-backend", 0, 1
    return controller.path, _SCSI_QUEUES, controller.disks


async def _handed_out(monitor: Asked, path: str, places: Mapping[str, tuple[str, int, int]]) -> int | None:
    """Return how many requests the queues of a virtio device have handed out and not got back; None: not told."""
    number = next(first for place, first, _disks in places.values() if place == path)
    total: int | None = None
    while True:
        try:
            queue: Mapping[str, Any] = await monitor.execute(
                "x-query-virtio-queue-status", {"path": path, "queue": number}
            )
        except CommandRefused:
            # There are no more.
            return total
        total = (total or 0) + queue["inuse"]
        number += 1
