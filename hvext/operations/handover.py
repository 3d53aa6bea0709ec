"""The volumes' side of a migration: who may use them, and how.

::

    target   attach
    source   open   shared          (from here on both hosts may use them)
    target   open   shared
             … the guest moves …
    source   close                  (from here on only the target may)
    target   open   exclusive
    source   detach

Source: ganeti-extstorage-interface(7), open and close; Ganeti, lib/cmdlib/instance_migration.py, _ExecMigration.
"""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from hvext.core.disk import Disk
from hvext.errors import HvextError, OperationFailed
from hvext.host.process import Cancel
from hvext.host.provider import ProviderHost
from hvext.operations import attachments
from hvext.operations.threads import in_thread
from hvext.operations.volumes import close_volume, open_volume

#: How many scripts run at once.
_AT_ONCE = 64
_Work = Callable[[Disk, Cancel], object]


async def open_shared(host: ProviderHost, disks: Sequence[Disk]) -> None:
    """Open volumes on the source for shared access; when one cannot be, all are exclusive again."""
    await _opened(host, disks, exclusive=False, undo=lambda: open_exclusive(host, disks))


async def open_shared_too(host: ProviderHost, disks: Sequence[Disk]) -> None:
    """Open volumes on the target for shared access; when one cannot be, all are closed again."""
    await _opened(host, disks, exclusive=False, undo=lambda: close(host, disks))


async def open_exclusive(host: ProviderHost, disks: Sequence[Disk]) -> None:
    """Open volumes for exclusive access; may be repeated."""
    await _opened(host, disks, exclusive=True)


async def close(host: ProviderHost, disks: Sequence[Disk]) -> None:
    """Close volumes; may be repeated."""
    await _on_all(disks, lambda disk, cancel: close_volume(host, disk, cancel=cancel), "close")


async def detach(host: ProviderHost, disks: Sequence[Disk]) -> None:
    """Detach volumes; may be repeated."""
    await _on_all(disks, lambda disk, cancel: attachments.detach(host, disk, cancel=cancel), "detach")


def check(host: ProviderHost, disks: Sequence[Disk], what: str) -> None:
    """Raise what opening volumes raises for providers that cannot be used; ``what`` is what was to be done."""
    failed = []
    for disk in disks:
        try:
            host.find(disk.provider)
        except HvextError as error:
            failed.append((disk, error))
    if failed:
        raise _failure(failed, what)


def close_all(host: ProviderHost, disks: Sequence[Disk]) -> list[str]:
    """Close the volumes of a target that gets no guest, before they are detached; return what went wrong."""
    failed = _side_by_side(disks, lambda disk, cancel: close_volume(host, disk, cancel=cancel), Cancel())
    return [f"close {disk.provider}/{disk.volume.name}: {error}" for disk, error in failed]


class HandOver:
    """The volumes of a guest that has moved already: whatever fails now is said, and nothing is taken back.

    A volume that one step failed for is left out of the next ones; the others go on.
    """

    def __init__(self, source: ProviderHost, target: ProviderHost, disks: Sequence[Disk]) -> None:
        self._source = source
        self._target = target
        self._disks = tuple(disks)
        self._failed: dict[uuid_module.UUID, str] = {}

    async def close_on_source(self) -> None:
        """Close the volumes on the source."""
        await self._attempt("close on the source", lambda disk, cancel: close_volume(self._source, disk, cancel=cancel))

    async def open_on_target(self) -> None:
        """Open the volumes on the target for exclusive access."""
        await self._attempt(
            "open exclusively on the target",
            lambda disk, cancel: open_volume(self._target, disk, exclusive=True, cancel=cancel),
        )

    async def detach_on_source(self) -> None:
        """Detach the volumes on the source."""
        await self._attempt(
            "detach on the source", lambda disk, cancel: attachments.detach(self._source, disk, cancel=cancel)
        )

    async def _attempt(self, what: str, work: _Work) -> None:
        going = [disk for disk in self._disks if disk.volume.uuid not in self._failed]
        for disk, error in await in_thread(lambda cancel: _side_by_side(going, work, cancel)):
            self._failed[disk.volume.uuid] = f"{what}: {disk.provider}/{disk.volume.name}: {error}"

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be done, one for each volume; what would have come after it was not tried."""
        return tuple(self._failed.values())


async def _opened(
    host: ProviderHost, disks: Sequence[Disk], *, exclusive: bool, undo: Callable[[], Awaitable[None]] | None = None
) -> None:
    what = "open exclusively" if exclusive else "open shared"
    try:
        await _on_all(disks, lambda disk, cancel: open_volume(host, disk, exclusive=exclusive, cancel=cancel), what)
    except HvextError as error:
        try:
            if undo is not None:
                await undo()
        except HvextError as second:
            words = f"{error.message}; NOT undone: {second.message}"
            raise OperationFailed(words, step=what, left=[second.message], hint=error.hint) from error
        raise


async def _on_all(disks: Sequence[Disk], work: _Work, what: str) -> None:
    """Do the same with all volumes side by side; raises OperationFailed, which names each that failed."""
    failed = await in_thread(lambda cancel: _side_by_side(disks, work, cancel))
    if failed:
        raise _failure(failed, what) from failed[0][1]


def _failure(failed: Sequence[tuple[Disk, HvextError]], what: str) -> OperationFailed:
    words = "; ".join(f"{disk.provider}/{disk.volume.name}: {error.message}" for disk, error in failed)
    return OperationFailed(f"cannot {what} {words}", step=what, hint=failed[0][1].hint)


def _side_by_side(disks: Sequence[Disk], work: _Work, cancel: Cancel) -> list[tuple[Disk, HvextError]]:
    def one(disk: Disk) -> tuple[Disk, HvextError] | None:
        try:
            work(disk, cancel)
        except HvextError as error:
            return disk, error
        return None

    if not disks:
        return []
    with ThreadPoolExecutor(max_workers=min(len(disks), _AT_ONCE), thread_name_prefix="volume") as pool:
        return [failure for failure in pool.map(one, disks) if failure]
