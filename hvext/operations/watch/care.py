"""What is known of one guest under supervision, shared by those who look after it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid as uuid_module
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from hvext.core.frozen import Sample, Stuck
from hvext.core.hysteresis import FailBack
from hvext.core.running import RunningDisk
from hvext.core.supervision import Guest, Happening, Notice
from hvext.errors import HvextError
from hvext.host.provider import ProviderHost
from hvext.operations.vm import AsyncVm
from hvext.operations.watch.settings import WatchSettings
from hvext.operations.watch.storage import Offers


@dataclass(slots=True, kw_only=True)
class Care:
    """One guest's case: its connection, its state, and what was done for it.

    ``saved`` are the disks that were swapped since it last ran; ``away`` those that are not where they prefer to be;
    ``memory`` is what each disk remembers of that storage. ``stuck`` are those with requests that do not end,
    ``frozen`` those of them whose storage does not answer either, ``odd`` those whose storage does. ``busy`` is held by
    who changes anything. ``stopped_at`` is when QEMU said that it had stopped the guest. ``seen`` is what QEMU told of
    the disks last: some storage that is dead or silent keeps it from telling (RBD, NFS, Gluster). ``volumes`` are the
    disks' volumes in words, also of those that have gone.
    """

    address: str
    settings: WatchSettings
    host: ProviderHost
    say: Callable[[Notice], None]
    guest: Guest
    vm: AsyncVm
    offers: Offers = field(default_factory=Offers)
    saved: set[uuid_module.UUID] = field(default_factory=set)
    away: dict[uuid_module.UUID, FailBack] = field(default_factory=dict)
    memory: dict[uuid_module.UUID, FailBack] = field(default_factory=dict)
    seen: dict[uuid_module.UUID, RunningDisk] = field(default_factory=dict)
    sample: Sample | None = None
    stuck: dict[uuid_module.UUID, Stuck] = field(default_factory=dict)
    frozen: set[uuid_module.UUID] = field(default_factory=set)
    odd: set[uuid_module.UUID] = field(default_factory=set)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    stopped_at: float = math.nan
    volumes: dict[uuid_module.UUID, str] = field(default_factory=dict)
    last_words: str = ""

    @property
    def now(self) -> float:
        """The time, in seconds of the event loop's clock."""
        return asyncio.get_running_loop().time()

    @property
    def stopped_ms(self) -> float:
        """For how long the guest has been stopped, in milliseconds."""
        return 0.0 if math.isnan(self.stopped_at) else round((self.now - self.stopped_at) * 1000, 1)

    async def look(self) -> None:
        """Ask QEMU what it has of the guest's disks; what it told before stays when it does not say."""
        with contextlib.suppress(HvextError):
            self.seen = await self.vm.disks()

    async def disks(self, needed: Collection[uuid_module.UUID]) -> Mapping[uuid_module.UUID, RunningDisk]:
        """Return what QEMU told of the disks; it is asked again only when one that is ``needed`` is not among them."""
        if not self.seen.keys() >= set(needed):
            self.seen = await self.vm.disks()
        return self.seen

    def tell(self, happening: Happening, words: str, disk: uuid_module.UUID | None = None, **values: object) -> None:
        """Say that something happened."""
        self.say(
            Notice(
                happening=happening,
                monitor=self.address,
                words=words,
                vm=self.vm.journal.name,
                disk=str(disk or ""),
                volume=self.volume(disk) if disk else "",
                values=values,
            )
        )

    def volume(self, disk: uuid_module.UUID) -> str:
        """Return provider and volume of a disk; empty where nobody wrote them down."""
        if disk not in self.volumes:
            with contextlib.suppress(HvextError):
                known = self.vm.journal.read().disks
                self.volumes.update({uuid: record.words for uuid, record in known.items()})
        return self.volumes.get(disk, "")

    def disk_words(self, disk: uuid_module.UUID) -> str:
        """Return a disk for people: its volume, and its uuid."""
        volume = self.volume(disk)
        return f"{volume} ({disk})" if volume else str(disk)

    def left(self, uuid: uuid_module.UUID) -> None:
        """Remember that a disk had to leave the storage it prefers."""
        if self.settings.fail_back is not None:
            self.away[uuid] = self.memory.setdefault(uuid, FailBack(self.settings.fail_back))
            self.away[uuid].failed(self.now)

    def home(self, uuid: uuid_module.UUID) -> None:
        """Remember that a disk is where it prefers to be."""
        self.away.pop(uuid, None)
