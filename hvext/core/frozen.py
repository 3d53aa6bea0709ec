"""Which disks have requests stuck in flight, from two looks at what QEMU counts.

Storage that is alive but answers nothing causes no event and no error: its requests are under way for ever. QEMU
counts what it has finished for each disk, and shows how many requests each virtio queue has handed out. A disk that has
some in flight at both looks, and has finished none in between, is stuck for at least that long.

Source: QEMU, qapi/block-core.json, BlockDeviceStats; qapi/virtio.json, VirtQueueStatus.
"""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Mapping
from typing import Any

from hvext.core.value import field, value_object


@value_object
class Activity:
    """What one disk has done: ``completed`` requests, and how many are ``in_flight`` (None: nobody asked).

    Without ``exact`` the requests in flight are those of its SCSI controller, which has other disks, too.
    """

    completed: int
    in_flight: int | None = None
    exact: bool = True


@value_object
class Sample:
    """One look at a guest's disks, at ``taken_s`` of a monotonic clock.

    A guest that is not ``running`` has nothing in flight: QEMU waits for that before it stops, and keeps what failed.
    """

    taken_s: float
    running: bool
    disks: Mapping[uuid_module.UUID, Activity] = field(default_factory=dict)


@value_object
class Stuck:
    """A disk with requests stuck since ``since_s`` of the samples' clock, at the latest.

    It is not ``certain`` when its requests could be those of another disk on the same SCSI controller: then only
    storage that does not answer (``check_health``) tells.
    """

    since_s: float
    certain: bool


def judge(
    before: Sample, now: Sample, known: Mapping[uuid_module.UUID, Stuck] | None = None
) -> dict[uuid_module.UUID, Stuck]:
    """Return the disks that were stuck from one sample to the next.

    ``known`` is what the last judgement said: a disk that still is stuck keeps its time.
    """
    if not (before.running and now.running):
        return {}
    stuck = {}
    for uuid, activity in now.disks.items():
        earlier = before.disks.get(uuid)
        if earlier is None or earlier.completed != activity.completed:
            continue
        # Whoever was not asked before has not been in flight for sure: it is asked from now on.
        if not activity.in_flight or not earlier.in_flight:
            continue
        last = (known or {}).get(uuid)
        stuck[uuid] = Stuck(since_s=last.since_s if last else before.taken_s, certain=activity.exact)
    return stuck


def completed_requests(statistics: Mapping[str, Any]) -> int:
    """Return how many requests an entry's ``stats`` of ``query-blockstats`` count as ended, well or not."""
    return sum(value for name, value in statistics.items() if name.endswith("_operations") and isinstance(value, int))
