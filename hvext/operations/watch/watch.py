"""One process that supervises many guests, each over a monitor of its own.

QEMU announces what goes wrong, so nothing is asked but a short sample now and then, for storage that says nothing. A
guest whose socket is gone is dropped, a new socket is a new guest. Whatever happens to the supervision of one guest,
the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import random
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hvext.core.metrics import Family, measured_at, vm_families
from hvext.core.observation import Writers
from hvext.core.supervision import Happening, Notice
from hvext.core.value import replace
from hvext.host.journal import JournalFolder
from hvext.host.provider import ProviderHost, ScriptEnd
from hvext.host.qmp import parse_address
from hvext.operations.records import read_records
from hvext.operations.watch.counts import WatchCounts
from hvext.operations.watch.dispatch import Dispatcher
from hvext.operations.watch.guest import WatchedGuest
from hvext.operations.watch.settings import WatchSettings

#: Each recovery runs one script or program at a time; looks at several disks of a guest go side by side.
_THREADS_PER_RECOVERY = 4
_MOST_THREADS = 64

Say = Callable[[Notice], None]


class Watch:
    """A supervisor of running guests; ``say`` is called with everything that happens.

    ``run`` raises JournalError when the journal cannot be written. It ends when it is cancelled or told to ``stop``,
    or, with ``once``, when everything was looked at. ``chance`` returns numbers from 0 to 1.
    """

    def __init__(
        self,
        settings: WatchSettings,
        *,
        host: ProviderHost | None = None,
        say: Say = lambda _notice: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._host = host or ProviderHost()
        self._counts: WatchCounts | None = None
        self._say = say
        self._chance = chance
        self._dispatcher = Dispatcher(settings.pace, chance, self._trouble, repeat=not settings.once)
        self._guests: dict[str, asyncio.Task[None]] = {}
        self._watched: dict[str, WatchedGuest] = {}
        self._wake = asyncio.Event()
        self._stopping = False

    def count(self) -> None:
        """Count from now on what happens and which scripts run, for ``measure``; call it before ``run``."""
        self._counts = counts = WatchCounts()
        say = self._say

        def counted(notice: Notice) -> None:
            counts.heard(notice)
            say(notice)

        self._say = counted
        told = self._host.on_end

        def ended(script: ScriptEnd) -> None:
            counts.ended(script)
            if told is not None:
                told(script)

        self._host = replace(self._host, on_end=ended)

    async def measure(self) -> list[Family]:
        """Return what is measured: of all guests now, and what the watch has done.

        A guest that does not answer within moments is one that does not.
        """
        records = await asyncio.to_thread(read_records, JournalFolder(self._settings.state))
        writers = Writers(records.values())
        seen = await asyncio.gather(*(guest.observe(records, writers) for guest in self._watched.values()))
        vms = [vm for vm in seen if vm is not None]
        counts = self._counts.families({vm.name for vm in vms}) if self._counts else []
        return [*vm_families(vms), *counts, measured_at(time.time())]

    @property
    def found(self) -> bool:
        """Whether there is, or with ``once`` was, any guest."""
        return bool(self._watched)

    def hurry(self) -> None:
        """Look for new guests, and try again what has failed, now."""
        self._tell(Happening.HURRIED, "looking for new guests, and trying again what has failed")
        self._dispatcher.hurry()
        for guest in self._watched.values():
            guest.hurry()
        self._wake.set()

    def stop(self) -> None:
        """End ``run``, after what is under way has finished or was undone."""
        self._tell(Happening.ENDING, "finishing or undoing what is under way; the guests run on, unsupervised")
        self._stopping = True
        self._wake.set()

    async def run(self) -> bool:
        """Supervise; return whether all guests were well at the end (False when there was none)."""
        # What cannot be written down is not done: better known now than in an outage.
        with JournalFolder(self._settings.state).comparing():
            pass
        at_once = int(min(_MOST_THREADS, self._settings.pace.concurrent * _THREADS_PER_RECOVERY))
        pool = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="watch")
        asyncio.get_running_loop().set_default_executor(pool)
        dispatching = asyncio.create_task(self._dispatcher.run())
        try:
            if self._settings.once:
                return await self._look_once()
            self._say_missing()
            while not self._stopping:
                self._wake.clear()
                for address in self.addresses():
                    self._begin(address)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.rescan_s):
                        await self._wake.wait()
            return self._all_well()
        finally:
            await self._end(dispatching)

    async def _look_once(self) -> bool:
        found = self.addresses()
        if found:
            # Without any guest the caller says so.
            self._say_missing()
        for address in found:
            self._begin(address)
        stopping = asyncio.create_task(self._wake.wait())
        while self._guests and not self._stopping:
            await asyncio.wait([*self._guests.values(), stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if found and not self._stopping:
            self._say_looked()
        return self._all_well()

    def _say_looked(self) -> None:
        """Say what one look has found of all guests together."""
        guests = self._watched.values()
        seen = [guest.found for guest in guests if guest.found is not None]
        disks, away = sum(each.disks for each in seen), sum(each.failed_over for each in seen)
        ill = sum(not guest.well for guest in guests)
        said = []
        if ill:
            said.append(f"{ill} of {_counted(len(guests), 'guest')} not well")
        if away:
            stand, them = ("stands", "it") if away == 1 else ("stand", "them")
            back = f"a watch without --once moves {them} back"
            said.append(f"{away} of {_counted(disks, 'disk')} {stand} failed over: {back}")
        words = "; ".join(said) or f"all is well: {_counted(len(guests), 'guest')}, {_counted(disks, 'disk')}"
        values = {"guests": len(guests), "disks": disks, "not_well": ill, "failed_over": away}
        self._say(Notice(happening=Happening.LOOKED, monitor="", words=words, values=values))

    def _all_well(self) -> bool:
        return bool(self._watched) and all(guest.well for guest in self._watched.values())

    def _begin(self, address: str) -> None:
        if address in self._guests:
            return
        guest = WatchedGuest(address, self._settings, self._host, self._dispatcher, self._say, self._chance)
        task = asyncio.create_task(guest.run(), name=address)
        self._watched[address] = guest
        self._guests[address] = task
        task.add_done_callback(lambda _task: self._ended(address))

    def _ended(self, address: str) -> None:
        del self._guests[address]
        if not self._settings.once:
            del self._watched[address]

    async def _end(self, dispatching: asyncio.Task[None]) -> None:
        """Finish or undo what is under way, then let go of all guests."""
        dispatching.cancel()
        await self._dispatcher.end(self._settings.grace_s)
        guests = list(self._guests.values())
        for task in guests:
            task.cancel()
        await asyncio.gather(dispatching, *guests, return_exceptions=True)

    def addresses(self) -> list[str]:
        """Return where monitors are now: sockets that exist, and addresses that are no paths."""
        found: dict[str, None] = {}
        for address in self._settings.qmp:
            if not isinstance(parse_address(address), str) or self._settings.once or _is_socket(address):
                found[address] = None
        for pattern in self._settings.qmp_globs:
            found |= dict.fromkeys(_sockets(pattern))
        return list(found)

    def _say_missing(self) -> None:
        """Say which sockets are not there: whoever named one by mistake has a guest that nobody supervises."""
        later = "" if self._settings.once else f"; looked for every {self._settings.rescan_s:g} s"
        for address in dict.fromkeys(self._settings.qmp):
            # One that is looked at once is connected to in any case, and says itself why that fails.
            if isinstance(parse_address(address), str) and not self._settings.once and (why := _no_socket(address)):
                words = f"there is no monitor yet: {why}{later}"
                self._say(Notice(happening=Happening.UNREACHABLE, monitor=address, words=words))
        for pattern in dict.fromkeys(self._settings.qmp_globs):
            if not _sockets(pattern):
                words = f"no socket fits this pattern{later}"
                self._say(Notice(happening=Happening.UNREACHABLE, monitor=pattern, words=words))

    def _tell(self, happening: Happening, words: str) -> None:
        """Say something of the watch itself."""
        self._say(Notice(happening=happening, monitor="", words=words))

    def _trouble(self, key: str, error: Exception) -> None:
        address, _, what = key.partition("\n")
        self._say(Notice(happening=Happening.TROUBLE, monitor=address, words=f"{what} failed: {error!r}"))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _sockets(pattern: str) -> list[str]:
    """Return the sockets that a pattern, or a folder, names now."""
    inside = f"{glob.escape(pattern)}/*" if Path(pattern).is_dir() else pattern
    # Path.glob takes no absolute pattern.
    return [path for path in sorted(glob.glob(inside)) if _is_socket(path)]  # noqa: PTH207


def _is_socket(path: str) -> bool:
    return not _no_socket(path)


def _no_socket(path: str) -> str:
    """Return why a path is not that of a socket; empty where it is."""
    try:
        return "" if stat.S_ISSOCK(Path(path).stat().st_mode) else "that is no socket"
    except OSError as error:
        return str(error.strerror)
