"""A running guest and all that can be done to its disks: the async face, and a blocking one over it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid as uuid_module
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from hvext.core.disk import Disk
from hvext.core.identity import DiskNames
from hvext.core.running import RunningDisk
from hvext.core.uri import Location, parse_uri
from hvext.errors import HvextError
from hvext.host.files import opened_as
from hvext.host.provider import ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S, DEFAULT_TIMEOUT_S, Monitor, connect
from hvext.operations import plug as plugging
from hvext.operations import repoint as repointing
from hvext.operations import resize as resizing
from hvext.operations import unplug as unplugging
from hvext.operations.inspect import running_disks
from hvext.operations.plug import Plugged
from hvext.operations.repoint import Repointed
from hvext.operations.resize import Resized
from hvext.operations.steps import Report, silent
from hvext.operations.unplug import Unplugged

_T = TypeVar("_T")


class AsyncVm:
    """A running guest, for callers with an event loop. Made by ``open_vm_async``.

    Its operations may be called from several tasks; they are carried out one after the other.
    """

    def __init__(self, monitor: Monitor, host: ProviderHost, report: Report) -> None:
        self._monitor = monitor
        self._host = host
        self._report = report
        # Two operations on one guest would choose the same place, or undo each other's work.
        self._lock = asyncio.Lock()

    @property
    def monitor(self) -> Monitor:
        """The QMP connection."""
        return self._monitor

    async def disks(self) -> dict[uuid_module.UUID, RunningDisk]:
        """Return hvext's disks of the guest by uuid, whole or in pieces."""
        async with self._lock:
            return await running_disks(self._monitor)

    async def plug(self, disk: Disk, *, exclusive: bool = True) -> Plugged:
        """Attach a disk's volume and plug it; see ``hvext.operations.plug``."""
        async with self._lock:
            return await plugging.plug(self._monitor, self._host, disk, exclusive=exclusive, report=self._report)

    async def unplug(self, disk: Disk, *, timeout_s: float = unplugging.DEFAULT_TIMEOUT_S) -> Unplugged:
        """Unplug a disk and detach its volume; a PENDING result is finished by a later call."""
        async with self._lock:
            return await unplugging.unplug_and_detach(
                self._monitor, self._host, disk, timeout_s=timeout_s, report=self._report
            )

    async def unplug_only(
        self, uuid: uuid_module.UUID, *, timeout_s: float = unplugging.DEFAULT_TIMEOUT_S
    ) -> Unplugged:
        """Unplug a disk and leave its volume attached."""
        async with self._lock:
            return await unplugging.unplug(self._monitor, DiskNames(uuid), timeout_s=timeout_s, report=self._report)

    async def repoint(self, uuid: uuid_module.UUID, target: Location | str) -> Repointed:
        """Move a disk to another access to the same volume: a location, or the text of a URI or path."""
        location = parse_uri(target, look=opened_as) if isinstance(target, str) else target
        async with self._lock:
            return await repointing.repoint(self._monitor, DiskNames(uuid), location, report=self._report)

    async def repoint_to_first(self, uuid: uuid_module.UUID, locations: Sequence[Location]) -> Repointed:
        """Move a disk to the first of several accesses to the same volume that it can be moved to."""
        async with self._lock:
            return await repointing.repoint_to_first(self._monitor, DiskNames(uuid), locations, report=self._report)

    async def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Resized:
        """Grow a disk and its volume; the guest sees the new size afterwards."""
        async with self._lock:
            return await resizing.resize(
                self._monitor, self._host, disk, new_size_mib, old_size_mib=old_size_mib, report=self._report
            )


@contextlib.asynccontextmanager
async def open_vm_async(
    qmp: str,
    *,
    host: ProviderHost | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    report: Report = silent,
) -> AsyncIterator[AsyncVm]:
    """Connect to the guest whose QMP monitor is at ``qmp`` (a socket's path or HOST:PORT).

    ``timeout_s`` limits single QMP commands; ``report`` is called with the name of every step that begins. Raises
    MonitorError.
    """
    async with connect(qmp, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s) as monitor:
        yield AsyncVm(monitor, host or ProviderHost(), report)


class Vm:
    """A running guest, for callers without an event loop. Made by ``open_vm``; for one thread at a time."""

    def __init__(self, runner: asyncio.Runner, vm: AsyncVm) -> None:
        self._runner = runner
        self._vm = vm

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(work)

    def disks(self) -> dict[uuid_module.UUID, RunningDisk]:
        """See ``AsyncVm.disks``."""
        return self._run(self._vm.disks())

    def plug(self, disk: Disk, *, exclusive: bool = True) -> Plugged:
        """See ``AsyncVm.plug``."""
        return self._run(self._vm.plug(disk, exclusive=exclusive))

    def unplug(self, disk: Disk, *, timeout_s: float = unplugging.DEFAULT_TIMEOUT_S) -> Unplugged:
        """See ``AsyncVm.unplug``."""
        return self._run(self._vm.unplug(disk, timeout_s=timeout_s))

    def unplug_only(self, uuid: uuid_module.UUID, *, timeout_s: float = unplugging.DEFAULT_TIMEOUT_S) -> Unplugged:
        """See ``AsyncVm.unplug_only``."""
        return self._run(self._vm.unplug_only(uuid, timeout_s=timeout_s))

    def repoint(self, uuid: uuid_module.UUID, target: Location | str) -> Repointed:
        """See ``AsyncVm.repoint``."""
        return self._run(self._vm.repoint(uuid, target))

    def repoint_to_first(self, uuid: uuid_module.UUID, locations: Sequence[Location]) -> Repointed:
        """See ``AsyncVm.repoint_to_first``."""
        return self._run(self._vm.repoint_to_first(uuid, locations))

    def resize(self, disk: Disk, new_size_mib: int, *, old_size_mib: int | None = None) -> Resized:
        """See ``AsyncVm.resize``."""
        return self._run(self._vm.resize(disk, new_size_mib, old_size_mib=old_size_mib))


@contextlib.contextmanager
def open_vm(
    qmp: str,
    *,
    host: ProviderHost | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    report: Report = silent,
) -> Iterator[Vm]:
    """Connect as ``open_vm_async`` does, for callers without an event loop.

    Ctrl-C during an operation undoes what was begun. Raises MonitorError, and HvextError inside a running event loop.
    """
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise HvextError("open_vm blocks, and this thread runs an event loop", hint="use open_vm_async")
    with asyncio.Runner() as runner:
        opening = open_vm_async(qmp, host=host, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, report=report)
        vm = runner.run(opening.__aenter__())
        try:
            yield Vm(runner, vm)
        finally:
            runner.run(opening.__aexit__(None, None, None))
