"""What a plug has to know before it begins: what the guest has of the disk, what QEMU can do, where there is room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

from hvext.core.capability import Capabilities
from hvext.core.disk import Disk
from hvext.core.options import DeviceModel
from hvext.core.plan import DiskPlan
from hvext.core.provider import Provider
from hvext.core.running import RunningDisk
from hvext.core.topology import Topology, place_disk
from hvext.core.value import replace, value_object
from hvext.errors import InputError, PlugError
from hvext.host.provider import ProviderHost
from hvext.host.qmp import Monitor
from hvext.operations.attachments import Obstacle
from hvext.operations.capabilities import query_capabilities
from hvext.operations.inspect import (
    glance,
    iothreads,
    memory_is_shared,
    running_disk,
    topology,
)
from hvext.operations.openable import openable


@value_object
class Guest:
    """What every plug has to know of a guest."""

    monitor: Monitor
    capabilities: Capabilities
    shared_memory: bool

    @classmethod
    async def ask(cls, monitor: Monitor) -> Guest:
        """Ask QEMU."""
        # One after the other: what QEMU can do is known already but for the first time.
        capabilities = await query_capabilities(monitor)
        shared_memory = await memory_is_shared(monitor)
        return cls(monitor=monitor, capabilities=capabilities, shared_memory=shared_memory)

    def obstacle(self, disk: Disk, *, keep: Callable[[DiskPlan], None]) -> Obstacle:
        """Return what finds out why a disk cannot be opened at a location; ``keep`` is given the plans where it can."""
        return openable(self.capabilities, disk.names, disk.options, shared_memory=self.shared_memory, keep=keep)


class Places:
    """The places in a guest, as QEMU told them once; each is given to one disk."""

    def __init__(self, monitor: Monitor, *, afresh: bool = False) -> None:
        self._monitor = monitor
        self._afresh = afresh
        self._topologies: dict[DeviceModel, Topology] = {}
        self._iothreads: set[str] | None = None

    async def look(self, disks: Iterable[Disk]) -> None:
        """Ask QEMU for the places that these disks could have."""
        for model in {disk.options.device for disk in disks} - self._topologies.keys():
            self._topologies[model] = await topology(self._monitor, model, afresh=self._afresh)

    async def take(self, disk: Disk) -> Disk:
        """Return the disk with its place in the guest chosen; raises PlugError, InputError."""
        options = disk.options
        scsi = options.device is DeviceModel.SCSI_HD
        if scsi and options.iothread == "auto":
            raise InputError(
                "a scsi-hd runs in the iothread of its controller: iothread=auto is not possible for hot-plug",
                hint="name the iothread that a controller of the guest has, or leave it out",
            )
        if options.iothread not in (None, "auto"):
            await self._check_iothread(str(options.iothread))
        await self.look([disk])
        model = options.device
        place = place_disk(options, self._topologies[model], options.iothread if scsi else None)
        self._topologies[model] = self._topologies[model].without(place)
        return replace(disk, options=replace(options, placement=place))

    async def _check_iothread(self, name: str) -> None:
        if self._iothreads is None:
            self._iothreads = await iothreads(self._monitor)
        if name not in self._iothreads:
            raise PlugError(f"the guest has no iothread {name!r}", hint="iothread=auto makes one for the disk")


class Questions:
    """What a plug has to know first, asked at once: QEMU answers while its caller goes on with something else."""

    def __init__(self, monitor: Monitor, host: ProviderHost, disk: Disk, *, known: bool) -> None:
        self.places = Places(monitor)

        async def find() -> Provider:
            return host.find(disk.provider)

        self._places = asyncio.ensure_future(self.places.look([disk]))
        self._running = asyncio.ensure_future((running_disk if known else glance)(monitor, disk.names))
        self._guest = asyncio.ensure_future(Guest.ask(monitor))
        self._provider = asyncio.ensure_future(find())

    async def running(self) -> RunningDisk:
        """Return what the guest has of the disk: that needs none of the other answers."""
        return await asyncio.shield(self._running)

    async def provider(self) -> Provider:
        """Return the disk's provider; raises ProviderNotFound, ProviderInvalid."""
        return await asyncio.shield(self._provider)

    async def guest(self) -> Guest:
        """Return what else there is to know, when ``places`` knows all; raises what was raised when it was asked."""
        await asyncio.shield(self._places)
        return await asyncio.shield(self._guest)

    async def end(self, *, now: bool) -> None:
        """Return when everything is answered, or forgotten when it has to be ``now``."""
        asked = (self._places, self._running, self._guest, self._provider)
        if now:
            for each in asked:
                each.cancel()
        # An answer that is still to come would be the first thing that the next client is told.
        await asyncio.gather(*asked, return_exceptions=True)


@contextlib.asynccontextmanager
async def asking(monitor: Monitor, host: ProviderHost, disk: Disk, *, known: bool) -> AsyncIterator[Questions]:
    """Have QEMU think about the questions of a plug in the block; what is not answered at its end is awaited."""
    questions = Questions(monitor, host, disk, known=known)
    interrupted = False
    try:
        # Each is a task, and has others; then they are on their way.
        with monitor.together():
            for _turn in range(3):
                await asyncio.sleep(0)
        yield questions
    except (asyncio.CancelledError, KeyboardInterrupt):
        interrupted = True
        raise
    finally:
        await questions.end(now=interrupted)
