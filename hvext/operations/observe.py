"""Looking at one VM's disks: what QEMU has and counts, what is written down, what is odd.

Nothing is stopped, and nothing is sent that waits for a disk. Which nodes there are (query-named-block-nodes), QEMU
finds out from some storage itself, and hangs when that does not answer (RBD, NFS, Gluster): it is asked only when no
disk has requests that do not end, or when those that have are on storage which is not asked for it.

Source: qemu-qmp-ref(7): query-status, query-blockstats, query-yank.
"""

from __future__ import annotations

import asyncio
import time
import uuid as uuid_module
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hvext.core.audit import Finding
from hvext.core.frozen import Stuck
from hvext.core.health import Health
from hvext.core.identity import disk_of_device
from hvext.core.observation import (
    DiskWarning,
    ObservedDisk,
    ObservedVm,
    Oddity,
    Offered,
    Place,
    Writers,
    pending_of,
    warnings_of,
)
from hvext.core.options import Throttle
from hvext.core.record import VmRecord
from hvext.core.running import RunningDisk, device_in_statistics, parse_chains
from hvext.core.statistics import DiskCounts, parse_counts
from hvext.core.uri import Location
from hvext.core.value import replace, value_object
from hvext.errors import CommandRefused, HvextError, ProgramError
from hvext.host.block_users import users_of_device
from hvext.host.journal import JournalFolder
from hvext.host.qmp import Monitor
from hvext.operations.audit import reached_at, under_way, why_stopped
from hvext.operations.failover import IO_ERROR
from hvext.operations.frozen import cuttable, sample, stuck_now
from hvext.operations.health import check_health
from hvext.operations.inspect import running_disks
from hvext.operations.records import read_records
from hvext.operations.vm import AsyncVm

#: Their nodes tell a size without asking anybody; QEMU names them among the statistics.
_TOLD_BY_KERNEL = ("host_device",)
#: What QEMU says of a disk whose storage has no space left; else it has failed.
_FULL = ("nospace",)


@value_object
class Beside:
    """What the journals say: the VM's own ``record``, who writes which volume, the disks somebody is at work on."""

    record: VmRecord
    writers: Writers
    working: Collection[uuid_module.UUID] = ()


async def observe(vm: AsyncVm, *, places: bool = False) -> ObservedVm:
    """Return what is seen of a VM now; changes nothing.

    With ``places`` each disk's provider is asked what it offers (``attach`` again, which is idempotent), and each place
    is opened and read in a process of its own. Raises QemuError, JournalError.
    """
    records = read_records(vm.journal.folder)
    said = beside(vm.journal.folder, vm.journal.name, records, Writers(records.values()))
    said = replace(said, record=reached_at(said.record, vm.journal.seen().monitors[0]))
    offered = await _ask_providers(vm) if places else {}
    return await look(vm.monitor, said, offered=offered, in_flight=True)


def beside(folder: JournalFolder, name: str, records: Mapping[str, VmRecord], writers: Writers) -> Beside:
    """Return what the journals say of the VM called ``name``; ``records`` and ``writers`` are of all VMs."""
    record = records.get(name) or VmRecord(name=name)
    return Beside(record=record, writers=writers, working=under_way(record, folder))


async def look(
    monitor: Monitor,
    said: Beside,
    *,
    known: Mapping[uuid_module.UUID, RunningDisk] | None = None,
    offered: Mapping[uuid_module.UUID, Offered] | None = None,
    in_flight: bool = False,
    ask: bool = True,
) -> ObservedVm:
    """Return what is seen of a VM over its monitor now.

    ``known`` are the disks as they were seen before: one that uses the same nodes is not asked about again. With
    ``ask`` False neither is one that does not, of which little is told then. Raises QemuError.
    """
    status, statistics = await asyncio.gather(monitor.execute("query-status"), monitor.execute("query-blockstats"))
    taken_s = time.monotonic()
    running, stuck = await _running(monitor, statistics, said.record, known, ask=ask)
    counts = parse_counts(statistics)
    flying = await _in_flight(monitor) if in_flight else {}
    uuids = dict.fromkeys([*said.record.disks, *running])
    stops, words = await _stops(monitor, statistics, said.record) if ask and status["status"] == IO_ERROR else ({}, "")
    limits = dict(
        zip(uuids, await asyncio.gather(*(_limits(monitor, running.get(uuid)) for uuid in uuids)), strict=True)
    )
    disks = [
        seen(
            uuid,
            said,
            running=running.get(uuid),
            counts=counts,
            in_flight=flying.get(uuid),
            throttle=limits[uuid],
            offered=(offered or {}).get(uuid),
            stuck=uuid in stuck,
            stopped=stops.get(uuid),
        )
        for uuid in uuids
    ]
    return ObservedVm(
        name=said.record.name, state=str(status["status"]), taken_s=taken_s, words=words, disks=tuple(disks)
    )


def from_journal(said: Beside, state: str, words: str = "") -> ObservedVm:
    """Return what the journal alone knows of a VM that cannot be asked."""
    disks = [seen(uuid, said) for uuid in said.record.disks]
    name = said.record.name
    return ObservedVm(name=name, state=state, taken_s=time.monotonic(), asked=False, words=words, disks=tuple(disks))


def seen(
    uuid: uuid_module.UUID,
    said: Beside,
    *,
    running: RunningDisk | None = None,
    counts: Mapping[str, DiskCounts] | None = None,
    stuck: bool = False,
    stopped: DiskWarning | None = None,
    **values: Any,
) -> ObservedDisk:
    """Return a disk of a VM as ``said`` and seen; ``counts`` are None of a VM that could not be asked."""
    record = said.record.disks.get(uuid)
    device = running.device if running else None
    pending = pending_of(record, under_way=uuid in said.working, in_guest=device is not None or counts is None)
    found = (counts or {}).get(device) if device else None
    disk = ObservedDisk(uuid=uuid, running=running, record=record, counts=found, pending=pending, **values)
    writers = said.writers.beside(said.record.name, record) if record else ()
    return replace(disk, warnings=warnings_of(disk, writers, stuck=stuck, stopped=stopped))


async def _running(
    monitor: Monitor,
    statistics: Sequence[Mapping[str, Any]],
    record: VmRecord,
    known: Mapping[uuid_module.UUID, RunningDisk] | None,
    *,
    ask: bool,
) -> tuple[Mapping[uuid_module.UUID, RunningDisk], Mapping[uuid_module.UUID, Stuck]]:
    """Return the disks that QEMU has, and those of them that are stuck, as far as that was looked for."""
    chains = {}
    for device, chain in parse_chains(statistics).items():
        if (names := disk_of_device(device)) is not None:
            chains[names.uuid] = device, chain
    if known is not None:
        same = {uuid: disk for uuid, disk in known.items() if _is_same(disk, chains.get(disk.names.uuid))}
        if same.keys() == known.keys() and same.keys() >= {*chains, *record.disks}:
            return same, {}
    stuck = await stuck_now(monitor) if ask else {}
    if ask and (not stuck or await _tell_without_storage(monitor, statistics, stuck)):
        return await running_disks(monitor), stuck
    # Of a disk that is new to us, no more can be told than that it is there.
    made = {
        uuid: replace(RunningDisk.nothing(names), device=device, chain=chain)
        for uuid, (device, chain) in chains.items()
        if (names := disk_of_device(device)) is not None
    }
    return made | {uuid: disk for uuid, disk in (known or {}).items() if _is_same(disk, chains.get(uuid))}, stuck


def _is_same(disk: RunningDisk, now: tuple[str, tuple[str, ...]] | None) -> bool:
    """Whether a disk still is what it was; one behind vhost-user has no nodes that could tell."""
    return (disk.device, disk.chain) == now if now is not None else disk.behind_vhost_user


async def _tell_without_storage(
    monitor: Monitor, statistics: Sequence[Mapping[str, Any]], stuck: Collection[uuid_module.UUID]
) -> bool:
    """Whether QEMU can tell about the nodes of the stuck disks without asking their storage."""
    nbd = await cuttable(monitor)
    for entry in statistics:
        names = disk_of_device(device_in_statistics(entry))
        if names is None or names.uuid not in stuck:
            continue
        node = entry
        while "parent" in node:
            node = node["parent"]
        driver = node.get("driver-specific", {}).get("driver")
        if node.get("node-name") not in nbd and driver not in _TOLD_BY_KERNEL:
            return False
    return True


async def _stops(
    monitor: Monitor, statistics: Sequence[Mapping[str, Any]], record: VmRecord
) -> tuple[dict[uuid_module.UUID, DiskWarning], str]:
    """Return which disks' storage has stopped the guest, with the cure; in words where it is none of hvext's.

    QEMU may ask storage for that (query-block): it is left alone where requests do not end.
    """
    stuck = await stuck_now(monitor)
    if stuck and not await _tell_without_storage(monitor, statistics, stuck):
        return {}, ""
    faults, findings = await why_stopped(monitor, record)
    return stops_of({uuid: fault in _FULL for uuid, fault in faults.items()}, findings)


def stops_of(
    full: Mapping[uuid_module.UUID, bool], findings: Sequence[Finding]
) -> tuple[dict[uuid_module.UUID, DiskWarning], str]:
    """Return which disks' storage has stopped a guest, and whether it is ``full``; in words where it is no disk's."""
    warnings = {
        each.uuid: DiskWarning(oddity=Oddity.FULL if full[each.uuid] else Oddity.FAILED, words=each.words)
        for each in findings
        if each.uuid is not None
    }
    return warnings, "; ".join(each.words for each in findings if each.uuid is None)


async def _in_flight(monitor: Monitor) -> dict[uuid_module.UUID, int]:
    """Return how many requests each disk has in flight, of those for which that can be told."""
    taken = await sample(monitor)
    return {
        uuid: activity.in_flight
        for uuid, activity in taken.disks.items()
        if activity.in_flight is not None and activity.exact
    }


async def _limits(monitor: Monitor, running: RunningDisk | None) -> Throttle | None:
    if running is None or running.throttle is None:
        return None
    path = f"/objects/{running.names.throttle_group}"
    try:
        limits = await monitor.execute("qom-get", {"path": path, "property": "limits"})
    except CommandRefused:
        # It was unplugged meanwhile.
        return None
    return Throttle(**{name.replace("-", "_"): value for name, value in limits.items()})


async def _ask_providers(vm: AsyncVm) -> dict[uuid_module.UUID, Offered]:
    """Return what the provider of each disk offers now, and how each place is."""
    known = await vm.known_disks()
    found = {}
    for uuid, disk in known.items():
        try:
            attached = await vm.offer(disk)
        except HvextError as error:
            found[uuid] = Offered(error=error.message)
            continue
        path = attached.attachment.block_path
        candidates = attached.choice.candidates
        healths = await asyncio.gather(*(_health(vm.monitor, each.location) for each in candidates))
        places = [
            Place(access=str(each.access), where=each.text, health=health)
            for each, health in zip(candidates, healths, strict=True)
        ]
        used_by = await asyncio.to_thread(users_of_device, path) if path else ()
        found[uuid] = Offered(places=tuple(places), block_path=path, used_by=used_by)
    return found


async def _health(monitor: Monitor, location: Location) -> Health | None:
    if not location.block_node:
        return None
    try:
        return await check_health(monitor, location)
    except ProgramError:
        return None
