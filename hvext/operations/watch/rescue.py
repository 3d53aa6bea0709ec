"""Bringing a guest back that an I/O error has stopped: swap every disk whose storage is dead, then resume once.

A disk whose storage does not answer at all is none of these: nothing is sent that would wait for it. One that is dead,
but has not failed yet because the guest has not used it meanwhile, is swapped with the others: the guest would stop
again at once.
"""

from __future__ import annotations

import time
import uuid as uuid_module
from collections.abc import Mapping

from hvext.core.disk import Disk
from hvext.core.health import HealthState
from hvext.core.running import RunningDisk
from hvext.core.servers import server_key
from hvext.core.supervision import Happening
from hvext.errors import HvextError, JournalError, MonitorError
from hvext.operations.failover import FailedOver
from hvext.operations.watch.care import Care
from hvext.operations.watch.dispatch import Outcome
from hvext.operations.watch.storage import Fault, dead_last, faults, unhealthy

_STOPPED_BY_ERROR = "io-error"
_GIVE_UP = "the guest stays paused; it is tried again quietly, at once on SIGHUP"


async def rescue(care: Care, server: str) -> Outcome:
    """Try once to bring the guest back; a try that fails is repeated later. ``server`` is whom it is counted with."""
    async with care.busy:
        return await rescue_held(care, server)


async def rescue_held(care: Care, server: str = "") -> Outcome:
    """Do what ``rescue`` does, for who holds ``care.busy``."""
    try:
        served = await _swap_and_resume(care)
    except MonitorError:
        # The connection is made anew, and the guest looked at again.
        return Outcome(done=True)
    except HvextError as error:
        _failed(care, error)
        return Outcome(done=False, answered=_blame(error))
    care.last_words = ""
    return Outcome(done=True, answered=True if server in served else None)


def _blame(error: HvextError) -> bool | None:
    """Whether a failure says that the storage's server did not answer; a journal that is locked says nothing."""
    return None if isinstance(error, JournalError) else False


def _failed(care: Care, error: HvextError) -> None:
    if str(error) != care.last_words:
        care.last_words = str(error)
        care.tell(Happening.TRY_FAILED, str(error), stopped_ms=care.stopped_ms)
    if care.guest.try_failed(care.now):
        care.tell(Happening.GAVE_UP, f"no storage of its disks can be used: {_GIVE_UP}", stopped_ms=care.stopped_ms)


async def _swap_and_resume(care: Care) -> set[str]:
    """Do it; return the servers that the disks are at now."""
    monitor = care.vm.monitor
    status = (await monitor.execute("query-status"))["status"]
    if status == "running":
        # Whoever had it before has brought it back: its disks are on living storage.
        return set()
    stopped = status == _STOPPED_BY_ERROR
    found = await faults(monitor)
    failed = {uuid for uuid, fault in found.items() if fault is Fault.FAILED} - care.saved
    if not failed and not (stopped and care.saved):
        return set()
    running = await care.disks(failed)
    known = await care.vm.known_disks(leaving=True)
    served = await _swap_all(care, failed, running, known)
    # A server that died has taken others with it: they would stop the guest again.
    others = {uuid: disk for uuid, disk in running.items() if uuid in known and uuid not in failed | care.saved}
    suspects = await unhealthy(monitor, care.offers, others)
    dead = {uuid for uuid, health in suspects.items() if health.state is HealthState.REFUSED}
    served |= await _swap_all(care, dead, running, known)
    if not stopped:
        care.tell(Happening.LEFT_PAUSED, "its disks are in order again; somebody else has paused it")
    elif await care.vm.resume():
        care.tell(Happening.RESUMED, f"runs again after {care.stopped_ms:g} ms", stopped_ms=care.stopped_ms)
        await care.look()
    return served


async def _swap_all(
    care: Care,
    uuids: set[uuid_module.UUID],
    running: Mapping[uuid_module.UUID, RunningDisk],
    known: Mapping[uuid_module.UUID, Disk],
) -> set[str]:
    """Swap disks one after the other, all of them even when one fails; raises the first error."""
    errors = []
    served = set()
    for uuid in sorted(uuids, key=str):
        try:
            served.add(await _swap(care, running[uuid], known.get(uuid)))
        except MonitorError:
            raise
        except HvextError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return served


async def _swap(care: Care, running: RunningDisk, disk: Disk | None) -> str:
    """Swap one disk and return the server that it is at now."""
    uuid = running.names.uuid
    if disk is None:
        raise HvextError(
            f"disk {uuid} has failed, and nobody wrote down whose volume it is",
            hint="plug and start disks with hvext, and let it find the same journal (--state-dir)",
        )
    began = time.monotonic()
    candidates = await care.offers.ask(care.vm, disk)
    result = await care.vm.fail_over(disk, dead_last(candidates, running), known=running)
    told_swap(care, uuid, result, began)
    if result.after != candidates[0].words or uuid in care.away:
        # One that is back already where it prefers to be has been away for a moment all the same.
        care.left(uuid)
    return next((server_key(location) for location in candidates if location.words == result.after), "")


def told_swap(care: Care, uuid: uuid_module.UUID, result: FailedOver, began: float) -> None:
    """Say that a disk was swapped, and remember it."""
    care.saved.add(uuid)
    care.frozen.discard(uuid)
    took_ms = round((time.monotonic() - began) * 1000, 1)
    care.tell(
        Happening.FAILED_OVER,
        f"{result.words} in {took_ms:g} ms",
        uuid,
        before=result.before,
        after=result.after,
        took_ms=took_ms,
    )
