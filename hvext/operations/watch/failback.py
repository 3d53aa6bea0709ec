"""Moving a disk back to the storage it prefers, once that has been well for long enough."""

from __future__ import annotations

import uuid as uuid_module

from hvext.core.supervision import Happening
from hvext.errors import HvextError, MonitorError
from hvext.operations.frozen import stuck_now
from hvext.operations.watch.care import Care
from hvext.operations.watch.dispatch import Outcome
from hvext.operations.watch.storage import health_of


async def look_back(care: Care, uuid: uuid_module.UUID) -> Outcome:
    """Look at the preferred storage of a disk that was failed over, and move it back when it is time.

    The provider is asked afresh: its ``attach`` may be what brings a dead server back.
    """
    async with care.busy:
        try:
            return Outcome(done=True, answered=await _look(care, uuid))
        except MonitorError:
            return Outcome(done=True)
        except HvextError as error:
            if uuid in care.away:
                care.away[uuid].looked(care.now, well=False)
            care.last_words = str(error)
            return Outcome(done=True)


async def _look(care: Care, uuid: uuid_module.UUID) -> bool | None:
    """Return whether the preferred storage answered; None when nobody asked it."""
    disk = (await care.vm.known_disks()).get(uuid)
    running = (await care.vm.disks()).get(uuid)
    rule = care.away.get(uuid)
    if disk is None or running is None or running.device is None or rule is None:
        care.away.pop(uuid, None)
        return None
    preferred = (await care.offers.ask(care.vm, disk))[0]
    health = await health_of(care.vm.monitor, preferred)
    if not rule.looked(care.now, well=health.healthy):
        return health.healthy
    if not care.guest.well or running.protocol is None or await stuck_now(care.vm.monitor):
        # It is not whole, or something waits for storage: a move would wait with it.
        return health.healthy
    try:
        result = await care.vm.repoint(uuid, preferred)
    except MonitorError:
        raise
    except HvextError as error:
        rule.failed(care.now)
        care.tell(Happening.MOVE_BACK_FAILED, str(error), uuid, next_s=round(rule.look_every_s(care.now), 1))
        return health.healthy
    await care.look()
    hold_s = rule.hold_s(care.now)
    # What it remembers of failures stays: storage that comes and goes is left alone for longer each time.
    care.home(uuid)
    if result.changed:
        words = f"from {result.before} to {result.after}, which was well for {hold_s:g} s"
        care.tell(Happening.MOVED_BACK, words, uuid, before=result.before, after=result.after, well_s=hold_s)
    return health.healthy
