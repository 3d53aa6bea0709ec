"""Storage that is alive and says nothing: finding it, and leaving it behind a fence.

A frozen server that wakes up later carries out what it was given, over newer data. So its disks are left only once a
fence has made sure that it cannot; all frozen disks of a guest together, since QEMU waits for every one of them as soon
as the guest stops. Until then nothing is sent that waits for a disk.
"""

from __future__ import annotations

import time

from hvext.core.frozen import judge
from hvext.core.health import Health, HealthState
from hvext.core.running import RunningDisk
from hvext.core.supervision import Happening
from hvext.errors import FenceFailed, HvextError, MonitorError
from hvext.operations.fence import FrozenDisk
from hvext.operations.frozen import sample
from hvext.operations.watch.care import Care
from hvext.operations.watch.dispatch import Outcome
from hvext.operations.watch.rescue import rescue_held, told_swap
from hvext.operations.watch.storage import dead_last, health_of

_UNTOUCHED = "a server that wakes up would write old data over new: without a fence the disk is left as it is"


async def look_for_silence(care: Care) -> bool:
    """Take a sample; return whether there are disks now whose storage is frozen."""
    taken = await sample(care.vm.monitor, care.sample)
    care.stuck = judge(care.sample, taken, care.stuck) if care.sample else {}
    care.sample = taken
    # Somebody who leaves the storage at this moment ends its requests: that is no thaw.
    thawed = set() if care.busy.locked() else care.frozen - care.stuck.keys()
    for uuid in thawed:
        care.tell(Happening.THAWED, "its requests go on again", uuid)
    care.frozen -= thawed
    care.odd &= care.stuck.keys()
    overdue = {uuid for uuid, stuck in care.stuck.items() if taken.taken_s - stuck.since_s >= care.settings.stuck_s}
    if overdue - care.frozen - care.odd:
        await _ask_servers(care)
    return bool(care.frozen)


async def _ask_servers(care: Care) -> None:
    """Ask the servers of all disks that are stuck, also of those that have not been for long: they go together."""
    running = await care.disks(care.stuck)
    for uuid, stuck in care.stuck.items():
        if uuid in care.frozen or uuid not in running:
            continue
        health = await _health(care, running[uuid])
        since_s = round(time.monotonic() - stuck.since_s, 1)
        if not health.healthy:
            care.frozen.add(uuid)
            what = "does not answer" if health.state is HealthState.SILENT else f"refuses: {health.words}"
            advice = "" if care.settings.fence else f"; {_UNTOUCHED}"
            words = f"requests wait for {since_s:g} s, and its storage {what}{advice}"
            care.tell(Happening.FROZEN, words, uuid, stuck_s=since_s)
        elif uuid not in care.odd and stuck.certain and since_s >= care.settings.stuck_s:
            care.odd.add(uuid)
            words = f"requests wait for {since_s:g} s, though its storage answers others"
            care.tell(Happening.STUCK, words, uuid, stuck_s=since_s)


async def _health(care: Care, running: RunningDisk) -> Health:
    location = care.offers.current(running)
    if location is None:
        return Health(state=HealthState.HEALTHY, words="not looked at: where it is cannot be told")
    return await health_of(care.vm.monitor, location)


async def unfreeze(care: Care) -> Outcome:
    """Fence the storage of all frozen disks, cut it off, swap them, and resume the guest."""
    async with care.busy:
        if not care.frozen:
            return Outcome(done=True)
        try:
            await _leave(care)
        except MonitorError:
            return Outcome(done=True)
        except HvextError as error:
            if str(error) != care.last_words:
                care.last_words = str(error)
                failed = Happening.FENCE_FAILED if isinstance(error, FenceFailed) else Happening.TRY_FAILED
                care.tell(failed, str(error))
            return Outcome(done=False)
        return await rescue_held(care)


async def _leave(care: Care) -> None:
    running = await care.disks(care.frozen)
    known = await care.vm.known_disks(leaving=True)
    frozen = []
    for uuid in care.frozen & known.keys() & running.keys():
        candidates = dead_last(await care.offers.ask(care.vm, known[uuid]), running[uuid])
        fence = care.settings.fence
        frozen.append(FrozenDisk(disk=known[uuid], candidates=candidates, fence=fence, known=running[uuid]))
    began = time.monotonic()
    results = await care.vm.fail_over_frozen(frozen)
    for item, result in zip(frozen, results, strict=True):
        own = item.disk.volume.uuid
        care.tell(Happening.FENCED, f"{result.before} can write no more", own)
        told_swap(care, own, result, began)
        care.left(own)
    await care.look()
