"""Looking at a domain's disks: what runs, what libvirt passes on of QEMU's counts, what is written down, what is odd.

Nothing is changed, and nothing is asked for which QEMU would ask storage: it hangs, with its guest, when that does not
answer. So the size of a disk is asked only of a domain whose storage is none that a server has to be asked about.

libvirt's calls have no time limit: each look has a thread of its own, which is left behind when it takes too long, and
a domain is not looked at again before that ends.

Source: libvirt, virDomainBlockStatsFlags; src/qemu/qemu_driver.c, ``qemuDomainGetBlockInfo`` (query-named-block-nodes).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid as uuid_module
from collections.abc import Mapping
from concurrent.futures import Future

from hvext.core.domain import Domain, running_disk
from hvext.core.mounts import is_on_network
from hvext.core.observation import ObservedVm, Writers
from hvext.core.statistics import parse_libvirt_counts
from hvext.errors import DomainError, HvextError, InputError, QemuError
from hvext.host.domain import DomainHandle, connect
from hvext.operations.domains.listing import ListedDisk, list_disks
from hvext.operations.domains.recovery import place_of, why_stopped
from hvext.operations.domains.views import look_now
from hvext.operations.failover import IO_ERROR
from hvext.operations.journal import Journal
from hvext.operations.observe import Beside, beside, from_journal, seen, stops_of
from hvext.operations.records import read_records


def look_at(
    handle: DomainHandle, said: Beside, *, sizes: Mapping[uuid_module.UUID, int | None] | None = None
) -> ObservedVm:
    """Return what is seen of a domain now, for callers in a thread.

    ``sizes`` are those that the caller knows; without, they are asked for where that asks no storage.
    """
    views = look_now(handle)
    state = handle.state
    uuids = dict.fromkeys([*said.record.disks, *(uuid for view in views.present for uuid in view.disks)])
    if views.live is None:
        disks = tuple(seen(uuid, said, counts={}) for uuid in uuids)
        words = "the domain does not run; its disks are those of the persistent configuration"
        return ObservedVm(
            name=said.record.name, state=state, taken_s=time.monotonic(), asked=False, words=words, disks=disks
        )
    known = _sizes(handle, views.live) if sizes is None else sizes
    running, counts = {}, {}
    for uuid, disk in views.live.disks.items():
        # One that goes meanwhile has none, nor has one behind vhost-user.
        with contextlib.suppress(QemuError):
            counts[disk.alias] = parse_libvirt_counts(handle.counts_of(disk.target))
        running[uuid] = running_disk(disk, known.get(uuid))
    taken_s = time.monotonic()
    # QEMU asks nobody then: what it had asked for has failed.
    stops, words = stops_of(*why_stopped(handle, views.live, said.record)) if state == IO_ERROR else ({}, "")
    disks = tuple(seen(uuid, said, running=running.get(uuid), counts=counts, stopped=stops.get(uuid)) for uuid in uuids)
    return ObservedVm(name=said.record.name, state=state, taken_s=taken_s, words=words, disks=disks)


def _sizes(handle: DomainHandle, live: Domain) -> dict[uuid_module.UUID, int | None]:
    """Return the sizes that the guest sees, of all disks or, where a server would be asked, of none."""
    if live.asks_storage:
        return {}
    if live.files:
        mounts = handle.mounts
        if mounts is None or any(is_on_network(path, mounts) for path in live.files):
            return {}
    found: dict[uuid_module.UUID, int | None] = {}
    for uuid, disk in live.disks.items():
        with contextlib.suppress(QemuError):
            found[uuid] = handle.size_of(disk.target)
    return found


def look_listed(handle: DomainHandle, journal: Journal) -> tuple[ObservedVm, dict[uuid_module.UUID, ListedDisk]]:
    """Return what is seen of a domain now, and its disks with their sizes, whatever storage they are on."""
    records = read_records(journal.folder)
    said = beside(journal.folder, journal.name, records, Writers(records.values()))
    listed = list_disks(handle)
    return look_at(handle, said, sizes={uuid: each.size_bytes for uuid, each in listed.items()}), listed


class DomainLooks:
    """Looks at domains again and again, over connections that can change nothing."""

    def __init__(self) -> None:
        self._under_way: dict[str, Future[ObservedVm]] = {}

    async def look(self, said: Beside, *, limit_s: float) -> ObservedVm:
        """Return what is seen of a domain within a time, or what the journal knows of one that cannot be looked at."""
        name = said.record.name
        before = self._under_way.get(name)
        if before is not None and not before.done():
            return from_journal(said, "silent", "libvirt has not answered since an earlier look")
        future = self._under_way[name] = _in_own_thread(said)
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            return from_journal(said, "silent", f"libvirt has not answered within {limit_s:g} s")
        except InputError as error:
            # libvirt's library is not there.
            return from_journal(said, "libvirt", f"{error.message}: {error.hint}" if error.hint else error.message)
        except DomainError as error:
            return from_journal(said, "ended", error.message)
        except HvextError as error:
            return from_journal(said, "unreachable", error.message)


def _in_own_thread(said: Beside) -> Future[ObservedVm]:
    """Start a look in a thread that nobody has to wait for, not even the end of this process."""
    future: Future[ObservedVm] = Future()
    # So that nobody who stops waiting cancels it: it is done when the look has ended.
    future.set_running_or_notify_cancel()

    def run() -> None:
        uri, name = place_of(said.record)
        try:
            with connect(uri, read_only=True) as connection:
                future.set_result(look_at(connection.domain(name), said))
        except BaseException as error:
            if not future.done():
                future.set_exception(error)

    threading.Thread(target=run, name=f"hvext-look-{said.record.name}", daemon=True).start()
    return future
