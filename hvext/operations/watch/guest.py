"""One guest under supervision: its connection, what QEMU announces, and what is done about it.

Events only mark what has to be looked at; one task per guest looks, asks QEMU how things really are, and enters work.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid as uuid_module
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hvext.core.identity import disk_of_device, disk_of_node
from hvext.core.observation import ObservedVm, Writers
from hvext.core.record import Intent, VmRecord
from hvext.core.servers import server_key
from hvext.core.supervision import GiveUpRule, Guest, GuestState, Happening, Notice
from hvext.core.value import value_object
from hvext.errors import CommandTimeout, HvextError, MonitorError
from hvext.host.provider import ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S, parse_address
from hvext.operations.capabilities import query_capabilities
from hvext.operations.frozen import stuck_now
from hvext.operations.observe import beside, from_journal, look
from hvext.operations.vm import AsyncVm, open_vm_async
from hvext.operations.watch.care import Care
from hvext.operations.watch.dispatch import Dispatcher, Outcome
from hvext.operations.watch.failback import look_back
from hvext.operations.watch.rescue import rescue
from hvext.operations.watch.settings import WatchSettings
from hvext.operations.watch.silence import look_for_silence, unfreeze
from hvext.operations.watch.storage import Fault, dead_last, faults

_EVENTS = ("BLOCK_IO_ERROR", "STOP", "RESUME", "DEVICE_DELETED", "RESET", "SHUTDOWN")
_STOPPED_BY_ERROR = "io-error"
#: Errors that the guest is told of are said once in this time for each disk.
_ERRORS_EVERY_S = 60.0
#: How often the journal is looked into for disks that have come.
_JOURNAL_EVERY_S = 60.0
_RECONNECT_FIRST_S = 1.0
#: A connection that lasted for so long was a good one: the next pause is short again.
_LASTING_S = 60.0
#: Whoever asks for numbers asks again soon.
_OBSERVE_S = 2.0
#: A look at the storage, and QEMU's own connection.
_CONNECTIONS = 2


@value_object
class Found:
    """What one look has found of a guest: how many disks it has, and how many of them stand failed over."""

    disks: int
    failed_over: int


class WatchedGuest:
    """Supervises the guest whose monitor is at ``address``, for as long as there is one."""

    def __init__(
        self,
        address: str,
        settings: WatchSettings,
        host: ProviderHost,
        dispatcher: Dispatcher,
        say: Callable[[Notice], None],
        chance: Callable[[], float],
    ) -> None:
        self._address = address
        self._settings = settings
        self._host = host
        self._dispatcher = dispatcher
        self._say = say
        self._chance = chance
        self._care: Care | None = None
        self._connected = False
        self._unreachable = ""
        self._mark = asyncio.Event()
        self._look = False
        self._released: set[uuid_module.UUID] = set()
        self._errors: dict[uuid_module.UUID, int] = {}
        self._errors_said: dict[uuid_module.UUID, float] = {}
        self._jobs: set[str] = set()
        self._found: Found | None = None

    @property
    def well(self) -> bool:
        """Whether the guest was reached, and nothing has to be done for it."""
        return self._care is not None and self._care.guest.well and not self._care.frozen

    @property
    def found(self) -> Found | None:
        """What one look has found, with ``once``; None for a guest that could not be looked at to its end."""
        return self._found

    def hurry(self) -> None:
        """Look at the guest now."""
        self._look = True
        self._mark.set()

    async def observe(self, records: Mapping[str, VmRecord], writers: Writers) -> ObservedVm | None:
        """Return what is seen of the guest now, over its own connection; None for one that was never reached.

        Nothing is asked that storage could keep from being answered. ``records`` and ``writers`` are of all VMs.
        """
        care = self._care
        if care is None:
            return None
        said = beside(care.vm.journal.folder, care.vm.journal.name, records, writers)
        if not self._connected:
            return from_journal(said, "unreachable", self._unreachable)
        try:
            async with asyncio.timeout(_OBSERVE_S):
                return await look(care.vm.monitor, said, known=care.seen, ask=False)
        except (TimeoutError, HvextError) as error:
            return from_journal(said, "silent", str(error) or "QEMU does not answer")

    async def run(self) -> None:
        """Connect, supervise, and connect again when the connection breaks; return when the socket is gone."""
        tries = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._connect()
            except Exception as error:
                # Whatever this is, it must not end the supervision of the others, nor of this guest for good.
                self._tell(Happening.TROUBLE, f"supervising it failed: {error!r}")
            self._connected = False
            self._forget_jobs()
            if self._settings.once:
                return
            if self._is_gone():
                self._tell(Happening.GONE, "its monitor is gone")
                return
            lasted_s = asyncio.get_running_loop().time() - began
            tries = 1 if lasted_s > _LASTING_S else tries + 1
            pause_s = min(self._settings.reconnect_most_s, _RECONNECT_FIRST_S * 2 ** min(tries - 1, 16))
            await asyncio.sleep(pause_s * (1 + self._chance() / 2))

    async def _connect(self) -> None:
        """Supervise the guest until the connection breaks; say once why there is none."""
        reached = False
        try:
            limit_s = self._settings.qmp_timeout_s
            async with open_vm_async(
                self._address,
                host=self._host,
                timeout_s=limit_s,
                connect_timeout_s=min(limit_s, CONNECT_TIMEOUT_S),
                state=self._settings.state,
            ) as vm:
                reached, self._unreachable = True, ""
                await self._supervise(vm)
        except HvextError as error:
            # A connection that breaks is a QEMU that ends, as a rule.
            if str(error) != self._unreachable and not (reached and isinstance(error, MonitorError)):
                self._unreachable = str(error)
                self._tell(Happening.UNREACHABLE, str(error))

    async def _supervise(self, vm: AsyncVm) -> None:
        if self._care is None:
            # Whoever looks once tries once.
            rule = GiveUpRule(tries=1) if self._settings.once else self._settings.give_up
            guest = Guest(rule)
            self._care = Care(
                address=self._address, settings=self._settings, host=self._host, say=self._say, guest=guest, vm=vm
            )
        care = self._care
        care.vm, care.sample, care.stuck = vm, None, {}
        with vm.monitor.events(*_EVENTS, matching=self._heard):
            breaking = asyncio.create_task(self._until_broken(vm))
            try:
                self._connected = True
                self._tell(Happening.WATCHING, f"QEMU {vm.monitor.version} at {self._address}")
                await self._start(care)
                if self._settings.once:
                    await self._settle(care)
                    return
                await self._attend(care)
            finally:
                breaking.cancel()

    async def _until_broken(self, vm: AsyncVm) -> None:
        await vm.monitor.broken()
        self._connected = False
        self._mark.set()

    async def _start(self, care: Care) -> None:
        """Look at the guest as if everything had just happened."""
        await care.look()
        with contextlib.suppress(HvextError):
            # Its answer is kept: the guest would wait for it in its first failover.
            await query_capabilities(care.vm.monitor)
        for uuid in await care.vm.failed_over() - care.away.keys():
            care.left(uuid)
        for uuid, record in care.vm.journal.read().disks.items():
            if record.intent is Intent.ABSENT:
                self._released.add(uuid)
        self._look = True
        await self._handle(care)

    async def _attend(self, care: Care) -> None:
        """Handle what was marked, and take samples; until the connection breaks."""
        # Samples of many guests are spread evenly over time.
        sample_at = care.now + self._settings.sample_s * self._chance()
        journal_at = care.now + _JOURNAL_EVERY_S * self._chance()
        while True:
            due = min(sample_at, journal_at, *(rule.next_look for rule in care.away.values()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - care.now)):
                    await self._mark.wait()
            if not self._connected:
                return
            try:
                await self._handle(care)
            except CommandTimeout as error:
                # The connection stays: with a frozen disk it may be the only way to QEMU that is left.
                self._tell(Happening.TROUBLE, f"QEMU does not answer: {error}")
                self._look = True
            if care.now >= sample_at:
                sample_at = care.now + self._settings.sample_s
                await self._sample(care)
            if care.now >= journal_at:
                journal_at = care.now + _JOURNAL_EVERY_S
                await self._prime(care)
            self._look_back(care)

    async def _settle(self, care: Care) -> None:
        """Wait until all that was found broken is in order or was tried; for a watch that only looks once."""
        while await stuck_now(care.vm.monitor) and not care.frozen and not care.odd:
            await self._sample(care)
            await asyncio.sleep(min(1.0, self._settings.stuck_s / 2))
        await self._dispatcher.settled(self._jobs)
        await self._see(care, act=False)
        away = await care.vm.failed_over()
        there = {uuid for uuid, running in care.seen.items() if running.device is not None}
        self._found = Found(disks=len(there), failed_over=len(away & there))

    # --- What QEMU announces ------------------------------------------------------------------------------------------

    def _heard(self, event: Mapping[str, Any]) -> bool:
        """Mark what an event is about. Nothing is kept of it, so that a flood of errors costs no memory."""
        name, data = event["event"], event.get("data", {})
        if name == "BLOCK_IO_ERROR":
            names = disk_of_node(data.get("node-name", ""))
            if names is not None and self._care is not None:
                self._care.saved.discard(names.uuid)
                if data["action"] != "stop":
                    self._errors[names.uuid] = self._errors.get(names.uuid, 0) + 1
            self._look = self._look or data["action"] == "stop"
        elif name == "DEVICE_DELETED":
            names = disk_of_device(data.get("device", ""))
            if names is None:
                return False
            self._released.add(names.uuid)
        else:
            if name == "STOP" and self._care is not None:
                self._care.stopped_at = self._care.now
            self._look = True
        self._mark.set()
        return False

    async def _handle(self, care: Care) -> None:
        """Do something about all that is marked."""
        self._mark.clear()
        self._say_errors(care)
        for uuid in self._released:
            self._want(f"unplug {uuid}", f"unplug:{self._address}", partial(self._finish_unplug, care, uuid))
        self._released.clear()
        if self._look:
            self._look = False
            await self._see(care)

    async def _see(self, care: Care, *, act: bool = True) -> None:
        """Ask QEMU what the guest is in, and have done what that calls for, unless it is only to be known."""
        status = (await care.vm.monitor.execute("query-status"))["status"]
        found = {} if status == "running" else await faults(care.vm.monitor)
        failed = {uuid for uuid, fault in found.items() if fault is Fault.FAILED}
        stopped = status == _STOPPED_BY_ERROR
        full = stopped and bool(found) and not failed
        was_full = care.guest.state is GuestState.FULL
        changed = care.guest.seen(status, care.now, full=full)
        if care.guest.state is GuestState.RUNNING:
            if was_full:
                care.tell(Happening.RESUMED, "runs again: somebody has let it, after its storage was full")
            care.saved.clear()
            care.stopped_at = math.nan
            self._forget("rescue")
            return
        if stopped and math.isnan(care.stopped_at):
            care.stopped_at = care.now
        if changed and full:
            words = "storage has no space left: make room, then let the guest run again with hvext resume"
            care.tell(Happening.NO_SPACE, words, next(iter(found)))
        if changed and stopped and not full:
            ours = ", ".join(care.disk_words(uuid) for uuid in sorted(failed, key=str))
            words = f"disks {ours}" if ours else "of a disk that is not hvext's: it is left alone"
            # Who cuts frozen storage off tells of that when it is done.
            why = "as frozen storage was cut off" if failed and failed <= care.frozen else "by an I/O error"
            care.tell(Happening.STOPPED, f"{why}; {words}", disks=sorted(map(str, failed)))
        if act and (failed - care.saved or (stopped and care.saved)):
            server = await self._server_of(care, failed)
            self._want("rescue", server, partial(rescue, care, server), connections=_CONNECTIONS)

    async def _server_of(self, care: Care, failed: set[uuid_module.UUID]) -> str:
        """Return the server that a recovery is counted with: the one that it tries first, as far as is known."""
        running = await care.disks(failed)
        for uuid in sorted(failed & running.keys(), key=str):
            current = care.offers.current(running[uuid])
            for location in (*dead_last(care.offers.kept(uuid), running[uuid]), current):
                if location is not None:
                    return server_key(location)
        return self._address

    def _say_errors(self, care: Care) -> None:
        for uuid, number in list(self._errors.items()):
            if care.now - self._errors_said.get(uuid, -math.inf) >= _ERRORS_EVERY_S:
                self._errors_said[uuid] = care.now
                del self._errors[uuid]
                words = f"the guest was told of {number} I/O errors; a disk with werror=report is not failed over"
                care.tell(Happening.ERRORS, words, uuid, errors=number)

    # --- What is looked at from time to time --------------------------------------------------------------------------

    async def _sample(self, care: Care) -> None:
        try:
            frozen = await look_for_silence(care)
        except CommandTimeout as error:
            self._tell(Happening.TROUBLE, f"QEMU does not answer: {error}")
            frozen = bool(care.frozen)
        if frozen and self._settings.fence is not None:
            server = next(iter(sorted(map(str, care.frozen))))
            self._want("unfreeze", f"frozen:{server}", partial(unfreeze, care), connections=_CONNECTIONS)

    async def _prime(self, care: Care) -> None:
        """Ask QEMU about its disks, and the provider about those it was not asked about: both may fail with storage."""
        if care.guest.well and not care.stuck:
            await care.look()
        for uuid, disk in (await care.vm.known_disks()).items():
            if not care.offers.kept(uuid):

                async def ask(disk: Any = disk) -> Outcome:
                    with contextlib.suppress(HvextError):
                        await care.offers.ask(care.vm, disk)
                    return Outcome(done=True)

                self._want(f"ask {uuid}", f"provider:{disk.provider}", ask, urgent=False)

    def _look_back(self, care: Care) -> None:
        for uuid, rule in care.away.items():
            if care.now >= rule.next_look and care.guest.well:
                rule.put_off(care.now)
                kept = care.offers.kept(uuid)
                # Not counted with recoveries: looks that fail must not keep a guest waiting that has just stopped.
                server = f"look {server_key(kept[0]) if kept else self._address}"
                self._want(f"back {uuid}", server, partial(look_back, care, uuid), urgent=False)

    async def _finish_unplug(self, care: Care, uuid: uuid_module.UUID) -> Outcome:
        # Once it is finished, the journal knows the disk no more.
        care.volume(uuid)
        try:
            result = await care.vm.finish_unplug(uuid)
        except MonitorError:
            return Outcome(done=True)
        except HvextError as error:
            care.tell(Happening.TRY_FAILED, f"the unplug could not be finished: {error}", uuid)
            return Outcome(done=False)
        if result is not None and result.finished:
            detached = ", its volume is detached" if result.detached else ""
            care.tell(Happening.UNPLUGGED, f"the guest has let it go{detached}", uuid)
            care.away.pop(uuid, None)
        return Outcome(done=True)

    # --- Work ---------------------------------------------------------------------------------------------------------

    def _want(self, what: str, server: str, work: Callable[[], Awaitable[Outcome]], **values: Any) -> None:
        key = f"{self._address}\n{what}"
        self._jobs = {known for known in self._jobs if self._dispatcher.has(known)} | {key}
        self._dispatcher.want(key, server, work, **values)

    def _forget(self, what: str) -> None:
        self._dispatcher.forget(f"{self._address}\n{what}")

    def _forget_jobs(self) -> None:
        for key in self._jobs:
            self._dispatcher.forget(key)
        self._jobs.clear()

    def _is_gone(self) -> bool:
        address = parse_address(self._address)
        return isinstance(address, str) and not Path(address).exists()

    def _tell(self, happening: Happening, words: str) -> None:
        name = "" if self._care is None else self._care.vm.journal.name
        self._say(Notice(happening=happening, monitor=self._address, words=words, vm=name))
