"""Sending a running guest from one QEMU to another: the part of a migration that QEMU does.

The target waits with ``-S``, and is told to let the guest run only after the source has said that all of it is there.
So a connection that breaks at the last moment cannot leave the guest running on both sides: without that, the target
starts it first and confirms then. With ``late-block-activate`` the target does not open its disks for writing before.
The ``return-path`` makes the source wait for the target's word: without it, a target that could not load the guest is
found out when the source has given it up.

Source: qemu-qmp-ref(7): migrate, migrate-set-capabilities, MigrationStatus, RunState; QEMU, docs/devel/migration.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from hvext.core.migration import Transfer
from hvext.core.value import value_object
from hvext.errors import CapabilityError, CommandRefused, CommandTimeout, HvextError, MigrationRefused, QemuError
from hvext.host.qmp import Events, Monitor
from hvext.operations.frozen import check_requests_end

#: Called with how the migration stands, when that changes and now and then.
Progress = Callable[[Transfer], None]
SOURCE_CAPABILITIES = ("events", "return-path")
TARGET_CAPABILITIES = ("events", "return-path")
#: With it the target opens its disks for writing only when it is told to run.
_LATE = "late-block-activate"
#: What QEMU has to have: what is not here it may lack.
_NEEDED = ("events", "return-path")
#: How often QEMU is asked beside what it announces.
_LOOK_S = 0.25
#: How many questions in a row QEMU may leave unanswered.
_MAX_SILENT = 3
#: How long QEMU may take to give a migration up, and to let the guest run again.
_SETTLE_S = 30.0
_POLL_S = 0.02
_SENT = "postmigrate"
_WAITING = "inmigrate"


@value_object
class Limits:
    """When a migration is given up, and how fast it may be.

    ``timeout_s`` is for all of it, None for no limit: a guest that writes its memory faster than it can be sent never
    gets there. ``stall_s`` is how long nothing may be sent: a network that is cut says nothing. ``bandwidth_bytes`` is
    a second's, ``downtime_ms`` the pause that QEMU aims at; None leaves QEMU's settings.
    """

    timeout_s: float | None = None
    stall_s: float = 30.0
    bandwidth_bytes: int | None = None
    downtime_ms: int | None = None

    @property
    def parameters(self) -> dict[str, int]:
        """The arguments of ``migrate-set-parameters``."""
        wished = {"max-bandwidth": self.bandwidth_bytes, "downtime-limit": self.downtime_ms}
        return {name: value for name, value in wished.items() if value is not None}


def nothing_to_show(_transfer: Transfer) -> None:
    """Show no progress."""


async def transfer_state(monitor: Monitor) -> Transfer:
    """Return how the migration of a guest stands."""
    return Transfer.from_qmp(await monitor.execute("query-migrate"))


async def run_state(monitor: Monitor) -> str:
    """Return the guest's run state, in QEMU's word."""
    return str((await monitor.execute("query-status"))["status"])


async def set_capabilities(monitor: Monitor, names: tuple[str, ...]) -> dict[str, bool]:
    """Switch capabilities on, and return what those were that were changed. Raises CapabilityError."""
    known = {item["capability"]: item["state"] for item in await monitor.execute("query-migrate-capabilities")}
    for name in names:
        if name in _NEEDED and name not in known:
            raise CapabilityError(f"this QEMU cannot migrate with {name}", hint="QEMU 7.2 and later can")
    before = {name: bool(known[name]) for name in names if name in known and not known[name]}
    await _switch(monitor, dict.fromkeys(before, True))
    return before


async def restore_capabilities(monitor: Monitor, before: Mapping[str, bool]) -> None:
    """Set capabilities as `set_capabilities` found them; may be repeated."""
    await _switch(monitor, before)


async def prepare_target(monitor: Monitor, *, running: bool) -> None:
    """Switch on what a target needs; ``running`` says whether the guest runs that comes.

    One that is paused takes its disks over when it arrives: QEMU 7.2 aborts in ``bdrv_inactivate_recurse`` when it
    is sent on without having done so.
    """
    await set_capabilities(monitor, (*TARGET_CAPABILITIES, _LATE) if running else TARGET_CAPABILITIES)


async def _is_on(monitor: Monitor, capability: str) -> bool:
    known = await monitor.execute("query-migrate-capabilities")
    return any(item["capability"] == capability and item["state"] for item in known)


async def set_parameters(monitor: Monitor, wished: Mapping[str, int]) -> dict[str, int]:
    """Set parameters of migrations, and return what those were; may be repeated with what it returned."""
    if not wished:
        return {}
    known = await monitor.execute("query-migrate-parameters")
    await monitor.execute("migrate-set-parameters", wished)
    return {name: int(known[name]) for name in wished}


async def _switch(monitor: Monitor, states: Mapping[str, bool]) -> None:
    if states:
        items = [{"capability": name, "state": state} for name, state in states.items()]
        await monitor.execute("migrate-set-capabilities", {"capabilities": items})


async def check_can_leave(monitor: Monitor) -> None:
    """Raise MigrationRefused when this guest cannot be sent away now."""
    state = await run_state(monitor)
    if state in (_SENT, "finish-migrate"):
        raise MigrationRefused(
            f"the guest was sent away already: QEMU says {state}",
            hint="it lives on the target; if the target is gone for sure: hvext migrate-cancel --target-ended",
        )
    if state == _WAITING:
        raise MigrationRefused("this QEMU waits for a guest itself", hint="--qmp names the source's monitor")
    if state == "paused" and await _is_on(monitor, _LATE):
        raise MigrationRefused(
            "the guest has arrived here, and was never let go on: QEMU has not taken over its disks, and would abort",
            hint="hvext migrate-finish lets it run",
        )
    answer = await monitor.execute("query-migrate")
    if Transfer.from_qmp(answer).under_way:
        raise MigrationRefused("the guest is being migrated already", hint="hvext migrate-cancel ends that")
    if reasons := answer.get("blocked-reasons"):
        raise MigrationRefused(f"QEMU cannot migrate this guest: {'; '.join(reasons)}", hint="unplug that device first")
    await check_requests_end(monitor, MigrationRefused)


async def check_waits(monitor: Monitor) -> None:
    """Raise MigrationRefused when a target is not waiting for its guest."""
    state = await run_state(monitor)
    if state != _WAITING:
        raise MigrationRefused(
            f"the target does not wait for a guest: QEMU says {state}",
            hint="start it with -S -incoming defer, and migrate to it once",
        )


async def listen_on(monitor: Monitor, uri: str) -> str:
    """Have a target listen, and return the address at which it does: the port is known now, where it was 0."""
    await monitor.execute("migrate-incoming", {"uri": uri})
    return await listening_at(monitor) or uri


async def listening_at(monitor: Monitor) -> str | None:
    """Return the address at which a target listens for its guest; None where it does not, or QEMU does not say."""
    addresses = (await monitor.execute("query-migrate")).get("socket-address", [])
    return next((_address(address) for address in addresses), None)


def _address(address: Mapping[str, Any]) -> str:
    if address["type"] == "inet":
        host = f"[{address['host']}]" if ":" in address["host"] else address["host"]
        return f"tcp:{host}:{address['port']}"
    return f"{address['type']}:{address.get('path', address.get('str', ''))}"


async def transfer(monitor: Monitor, uri: str, limits: Limits, progress: Progress) -> tuple[Transfer, float]:
    """Send the guest, and return how that ended: completed, failed or cancelled; and when the guest stopped.

    The time is the event loop's. A migration that gets over a limit is cancelled, and QemuError raised; one that was
    complete by then is complete. Raises CommandRefused when it did not begin.
    """
    loop = asyncio.get_running_loop()
    stops = [loop.time()]

    def wanted(message: Mapping[str, Any]) -> bool:
        # Noted when it comes, not when somebody gets round to it.
        if message["event"] == "STOP":
            stops.append(loop.time())
        return bool(message["event"] == "MIGRATION")

    with monitor.events("MIGRATION", "STOP", matching=wanted) as events:
        try:
            await monitor.execute("migrate", {"uri": uri})
        except CommandTimeout:
            # It may have begun: QEMU is asked below.
            progress(await transfer_state(monitor))
        return await _followed(monitor, events, limits, progress), stops[-1]


async def _followed(monitor: Monitor, events: Events, limits: Limits, progress: Progress) -> Transfer:
    loop = asyncio.get_running_loop()
    began = moved = loop.time()
    sent = -1
    shown = ""
    while True:
        await events.get(_LOOK_S)
        now = await _asked(monitor)
        if not now.under_way:
            return now
        if now.transferred_bytes != sent:
            sent, moved = now.transferred_bytes, loop.time()
        if now.words != shown:
            shown = now.words
            progress(now)
        if why := _over(limits, loop.time() - began, loop.time() - moved):
            ended = await give_up(monitor)
            if ended.status == "completed":
                return ended
            raise QemuError(f"the migration was cancelled: {why}; it stood at {now.words}", hint=_hint_for(why))


async def _asked(monitor: Monitor) -> Transfer:
    for _try in range(_MAX_SILENT - 1):
        try:
            return await transfer_state(monitor)
        except CommandTimeout:
            # A disk that is being flushed can hold QEMU up.
            continue
    return await transfer_state(monitor)


def _over(limits: Limits, total_s: float, silent_s: float) -> str:
    if limits.timeout_s is not None and total_s > limits.timeout_s:
        return f"it was not complete after {limits.timeout_s:g} s"
    return f"nothing was sent for {limits.stall_s:g} s" if silent_s > limits.stall_s else ""


def _hint_for(why: str) -> str:
    if "nothing" in why:
        return "is the network between the two hosts up, and does the target's QEMU run?"
    return "the guest writes its memory faster than it is sent: allow more bandwidth, a longer pause or more time"


async def give_up(monitor: Monitor) -> Transfer:
    """Cancel a migration that may be under way, and return how it ended; it may have been complete. May be repeated."""
    now = await transfer_state(monitor)
    if now.under_way:
        await monitor.execute("migrate_cancel")
    deadline = asyncio.get_running_loop().time() + _SETTLE_S
    while (now := await transfer_state(monitor)).under_way:
        if asyncio.get_running_loop().time() > deadline:
            raise QemuError(f"QEMU does not give the migration up: {now.words}", hint="ask query-migrate later")
        await asyncio.sleep(_POLL_S)
    return now


async def make_sure_it_stays(monitor: Monitor, *, running: bool) -> None:
    """Give a migration up, and return when the guest is on the source as before; ``running`` says how that was.

    Raises HvextError when the guest was sent completely: then it must not run here again.
    """
    ended = await give_up(monitor)
    deadline = asyncio.get_running_loop().time() + _SETTLE_S
    while (state := await run_state(monitor)) != "running" and running:
        if ended.status == "completed" and state == _SENT:
            raise HvextError("the guest was sent completely, and is on the target")
        if asyncio.get_running_loop().time() > deadline:
            raise QemuError(f"the guest does not run on the source again: QEMU says {state}")
        await asyncio.sleep(_POLL_S)
    if not running and ended.status == "completed" and state == _SENT:
        raise HvextError("the guest was sent completely, and is on the target")


async def wait_loaded(monitor: Monitor, timeout_s: float) -> str:
    """Return the run state of a target once it has its guest; raises QemuError when that takes longer."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while (state := await run_state(monitor)) == _WAITING:
        if asyncio.get_running_loop().time() > deadline:
            raise QemuError(
                f"the target has no guest after {timeout_s:g} s",
                hint="did hvext migrate end well on the source? If not, end this QEMU",
            )
        await asyncio.sleep(_POLL_S)
    return state


async def let_run(monitor: Monitor) -> float:
    """Let a guest that has arrived run, and return when that was, in the event loop's time.

    One that runs already, or is stopped for another reason, is left as it is. Raises CommandRefused when QEMU cannot
    take over its disks: the guest has not run then.
    """
    if await run_state(monitor) == "paused":
        await monitor.execute("cont")
    now = asyncio.get_running_loop().time()
    # Whoever looks for it knows now that the disks were taken over.
    if await late(monitor):
        # The guest runs, whatever becomes of this.
        with contextlib.suppress(CommandRefused):
            await _switch(monitor, {_LATE: False})
    return now


async def late(monitor: Monitor) -> bool:
    """Return whether a target takes over its disks when it is let run: it has not run then, and is meant to."""
    return await _is_on(monitor, _LATE)


async def runs(monitor: Monitor) -> bool:
    """Return whether the guest runs."""
    return await run_state(monitor) == "running"


async def end_machine(monitor: Monitor) -> None:
    """End a QEMU, and return when it has let go of everything: its monitor is closed then. May be repeated."""
    deadline = asyncio.get_running_loop().time() + _SETTLE_S
    try:
        await monitor.execute("quit")
        while asyncio.get_running_loop().time() < deadline:
            await run_state(monitor)
            await asyncio.sleep(_POLL_S)
    except (CommandRefused, CommandTimeout):
        raise
    except QemuError:
        # The connection broke: that is how it ends.
        return
    raise QemuError("QEMU was asked to quit and still answers")


async def to_the_end(work: Coroutine[Any, Any, None]) -> bool:
    """Carry something out that must not be left half-done, and return whether somebody wanted to interrupt it."""
    task = asyncio.ensure_future(work)
    interrupted = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            interrupted = True
            own = asyncio.current_task()
            assert own is not None  # noqa: S101
            own.uncancel()
    task.result()
    return interrupted
