"""What a watch knows of a disk's storage: which disks have failed, what the provider offers, whether it answers."""

from __future__ import annotations

import re
import uuid as uuid_module
from collections.abc import Mapping, Sequence
from enum import StrEnum

from hvext.core.disk import Disk
from hvext.core.health import Health, HealthState
from hvext.core.identity import disk_of_device
from hvext.core.running import RunningDisk
from hvext.core.uri import Location
from hvext.errors import HvextError, ProgramError
from hvext.host.qmp import Monitor
from hvext.operations.health import check_health
from hvext.operations.vm import AsyncVm

_DEVICE = re.compile(r"(?:ua-)?hv-[0-9a-f-]{36}")


class Fault(StrEnum):
    """Why QEMU has stopped a guest, by disk."""

    FAILED = "failed"
    NO_SPACE = "nospace"


async def faults(monitor: Monitor) -> dict[uuid_module.UUID, Fault]:
    """Return hvext's disks that have stopped the guest since it last ran.

    Source: qemu-qmp-ref(7), BlockDeviceIoStatus; it is reset when the guest is resumed.
    """
    found = {}
    for entry in await monitor.execute("query-block"):
        if entry.get("io-status") in tuple(Fault) and (match := _DEVICE.search(entry.get("qdev", ""))):
            names = disk_of_device(match[0])
            if names is not None:
                found[names.uuid] = Fault(entry["io-status"])
    return found


class Offers:
    """What providers offer for the disks of one guest, kept for when a provider fails."""

    def __init__(self) -> None:
        self._kept: dict[uuid_module.UUID, tuple[Location, ...]] = {}

    async def ask(self, vm: AsyncVm, disk: Disk) -> tuple[Location, ...]:
        """Return the candidates of a disk, the preferred one first, as the provider says now.

        When it fails, what it said before; raises its error when that is nothing.
        """
        try:
            attached = await vm.offer(disk)
        except HvextError:
            if disk.volume.uuid in self._kept:
                return self._kept[disk.volume.uuid]
            raise
        self._kept[disk.volume.uuid] = tuple(candidate.location for candidate in attached.choice.candidates)
        return self._kept[disk.volume.uuid]

    def kept(self, uuid: uuid_module.UUID) -> tuple[Location, ...]:
        """Return what the provider said last; nothing when it was never asked."""
        return self._kept.get(uuid, ())

    def current(self, running: RunningDisk) -> Location | None:
        """Return where a disk is, with the credentials that QEMU does not report; None when that cannot be told."""
        node = running.protocol
        if node is None:
            return None
        for location in self.kept(running.names.uuid):
            if location.reported == node.location:
                return location
        has_companions = any(name.startswith(f"{node.name}-") for name in running.objects)
        return None if has_companions else node.location


def dead_last(candidates: Sequence[Location], running: RunningDisk) -> list[Location]:
    """Return the candidates in their order, but where the disk is now at the end: what just died is not trusted."""
    now = running.protocol.location if running.protocol else None
    return sorted(candidates, key=lambda location: location.reported == now)


async def health_of(monitor: Monitor, location: Location) -> Health:
    """Return whether storage can be opened and read; it counts as healthy when nobody here can look."""
    try:
        return await check_health(monitor, location)
    except ProgramError as error:
        return Health(state=HealthState.HEALTHY, words=f"not looked at: {error.message}")


async def unhealthy(
    monitor: Monitor, offers: Offers, disks: Mapping[uuid_module.UUID, RunningDisk]
) -> dict[uuid_module.UUID, Health]:
    """Return those of the disks whose storage cannot be opened and read now."""
    found = {}
    for uuid, running in disks.items():
        location = offers.current(running)
        if location is not None and not (health := await health_of(monitor, location)).healthy:
            found[uuid] = health
    return found
