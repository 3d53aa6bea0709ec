"""Describing a guest for the target of its migration: its disks as QEMU has them, and where in the machine they are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hvext.core.device import SHARED_CONTROLLER
from hvext.core.disk import Disk
from hvext.core.migration import Description, MovedDisk, cache_mode
from hvext.core.options import Cache, DeviceModel, DiskOptions, ErrorPolicy, Placement, Throttle
from hvext.core.plan import controller_iothread
from hvext.core.running import Node, RunningDisk
from hvext.core.value import replace
from hvext.errors import CommandRefused, MigrationRefused
from hvext.host.qmp import Monitor
from hvext.operations.inspect import running_disks

_PERIPHERAL = "/machine/peripheral"
#: What virtio-blk and scsi-hd do on an error when they were told nothing.
_DEFAULT_WERROR = ErrorPolicy.ENOSPC
_DEFAULT_RERROR = ErrorPolicy.REPORT


async def describe(monitor: Monitor, disks: Sequence[Disk], *, own_controller: bool = False) -> Description:
    """Return the description of a guest; nothing is changed.

    ``disks`` say for each of hvext's disks of the guest which volume it is; everything else is asked of QEMU.
    ``own_controller`` says that ``hvext args`` made the SCSI controller at the source's start, and is to make it on the
    target as well. Raises MigrationRefused when the guest has other disks than these, or one that cannot be migrated.
    """
    running = await running_disks(monitor)
    _check_named(disks, running)
    machine, memory, cpus, status = await asyncio.gather(
        monitor.execute("qom-get", {"path": "/machine", "property": "type"}),
        monitor.execute("query-memory-size-summary"),
        monitor.execute("query-cpus-fast"),
        monitor.execute("query-status"),
    )
    moved = [
        await _moved(monitor, disk, running[disk.volume.uuid], n_cpus=len(cpus), own_controller=own_controller)
        for disk in disks
    ]
    return Description(
        machine=str(machine).removesuffix("-machine"),
        memory_bytes=memory["base-memory"] + memory.get("plugged-memory", 0),
        cpus=len(cpus),
        running=bool(status["running"]),
        moved=tuple(moved),
    )


async def device_address(monitor: Monitor, path: str) -> str:
    """Return the place of a device in the machine, from the root of all buses: ``02.0/00.0`` or ``09.0/0:3:1``.

    ``path`` is the device's path in the object tree. QEMU sends a device's state under this place.
    """
    parts: list[str] = []
    while True:
        slot = await _property(monitor, path, "addr")
        if slot is not None:
            parts.append(f"{int(slot) >> 3:02x}.{int(slot) & 7}")
        elif (lun := await _property(monitor, path, "lun")) is not None:
            scsi_id = await _property(monitor, path, "scsi-id")
            parts.append(f"{await _property(monitor, path, 'channel')}:{scsi_id}:{lun}")
        bus = await _property(monitor, path, "parent_bus")
        if not bus:
            return "/".join(reversed(parts))
        # A bus is a child of the device that has it.
        path = str(bus).rpartition("/")[0]


def _check_named(disks: Sequence[Disk], running: dict[Any, RunningDisk]) -> None:
    named = {disk.volume.uuid for disk in disks}
    if len(named) != len(disks):
        raise MigrationRefused("a disk is named twice")
    others = [str(uuid) for uuid, disk in running.items() if uuid not in named and disk.device is not None]
    if others:
        raise MigrationRefused(
            f"the guest has disks of hvext that were not named: {', '.join(others)}",
            hint="a guest is migrated with all its disks: name them all, or unplug those; hvext disks lists them",
        )
    for disk in disks:
        found = running.get(disk.volume.uuid)
        words = f"disk {disk.provider}/{disk.volume.name} ({disk.volume.uuid})"
        if found is None or found.device is None:
            raise MigrationRefused(f"the guest has no {words}", hint="hvext disks lists those it has")
        if found.behind_vhost_user:
            raise MigrationRefused(
                f"{words} is behind vhost-user: what its server has under way would be lost",
                hint="unplug it, migrate, and plug it again on the target",
            )
        if found.root is None or found.protocol is None:
            raise MigrationRefused(
                f"{words} does not stand on hvext's nodes: {found.device!r}",
                hint="libvirt migrates what libvirt started; otherwise unplug it and plug it with hvext",
            )
        if not found.root.read_only:
            _check_cache(found.protocol, words)


def _check_cache(protocol: Node, words: str) -> None:
    # QEMU flushes all disks when the guest has stopped, and the target's invalidates the cache of such a client.
    if protocol.cached_by_client and protocol.no_flush:
        raise MigrationRefused(
            f"{words} is opened with cache=unsafe: what the cache of its storage's client holds is never flushed, and "
            "would be missing on the target",
            hint="unplug it and plug it with cache=none or cache=writeback",
        )
    if not protocol.direct and not protocol.cached_by_client:
        raise MigrationRefused(
            f"{words} is not opened with cache.direct=on: the target would read what its host had in the page "
            "cache, and not what the source wrote",
            hint="unplug it and plug it with cache=none",
        )


async def _moved(monitor: Monitor, disk: Disk, running: RunningDisk, *, n_cpus: int, own_controller: bool) -> MovedDisk:
    assert running.root is not None  # noqa: S101
    path = f"{_PERIPHERAL}/{running.device}"
    address, options = await asyncio.gather(device_address(monitor, path), _options(monitor, running, path, n_cpus))
    placement = options.placement
    if own_controller and options.device is DeviceModel.SCSI_HD and placement.bus == SHARED_CONTROLLER:
        link = await _property(monitor, f"{_PERIPHERAL}/{SHARED_CONTROLLER}", "iothread")
        thread = str(link or "").rpartition("/")[2] or None
        made_with_it = thread == controller_iothread(SHARED_CONTROLLER)
        options = replace(options, placement=replace(placement, bus=None), iothread="auto" if made_with_it else thread)
    top = running.top or running.root
    return MovedDisk(disk=replace(disk, options=options), size_bytes=top.size_bytes, address=address)


async def _options(monitor: Monitor, running: RunningDisk, path: str, n_cpus: int) -> DiskOptions:
    """Return the options with which this disk could have been plugged.

    As many queues as virtual processors are what it has without being told, on the target as well.
    """
    root, protocol = running.root, running.protocol
    assert root is not None and protocol is not None  # noqa: S101, PT018
    names = ("serial", "bootindex", "werror", "rerror", "write-cache", "iothread", "num-queues")
    serial, bootindex, werror, rerror, write_cache, iothread, queues = await asyncio.gather(
        *(_property(monitor, path, name) for name in names)
    )
    opened = protocol.by_name
    own_iothread = str(iothread or "").rpartition("/")[2]
    return DiskOptions(
        device=DeviceModel(str(running.model)),
        cache=_cache(protocol, write_cache=write_cache != "off"),
        aio=opened.aio if opened else None,
        discard=opened.discard if opened else DiskOptions().discard,
        detect_zeroes=root.detect_zeroes,
        werror=_DEFAULT_WERROR if werror in (None, "auto") else ErrorPolicy(werror),
        rerror=_DEFAULT_RERROR if rerror in (None, "auto") else ErrorPolicy(rerror),
        read_only=True if root.read_only else None,
        serial=serial or None,
        bootindex=None if bootindex in (None, -1) else int(bootindex),
        iothread="auto" if own_iothread == running.names.iothread else own_iothread or None,
        queues=None if queues in (None, n_cpus) else int(queues),
        throttle=await _throttle(monitor, running),
        placement=await _placement(monitor, path),
    )


def _cache(protocol: Node, *, write_cache: bool) -> Cache | None:
    """Return the cache mode; None for what hvext chooses where a client has a cache: the target may have another."""
    mode = cache_mode(direct=protocol.direct, no_flush=protocol.no_flush, write_cache=write_cache)
    return None if protocol.cached_by_client and mode is Cache.WRITEBACK else mode


async def _throttle(monitor: Monitor, running: RunningDisk) -> Throttle:
    if running.throttle is None:
        return Throttle()
    path = f"/objects/{running.names.throttle_group}"
    limits = await monitor.execute("qom-get", {"path": path, "property": "limits"})
    return Throttle(**{name.replace("-", "_"): value for name, value in limits.items()})


async def _placement(monitor: Monitor, path: str) -> Placement:
    bus = str(await _property(monitor, path, "parent_bus")).rpartition("/")[2]
    scsi_id = await _property(monitor, path, "scsi-id")
    if scsi_id is not None:
        lun = await _property(monitor, path, "lun")
        # The bus of a controller is called scsi0.0, and disks name the controller.
        return Placement(bus=bus.rpartition(".")[0], scsi_id=int(scsi_id), lun=int(lun))
    slot = int(await _property(monitor, path, "addr"))
    function = f".{slot & 7}" if slot & 7 else ""
    return Placement(bus=bus, addr=f"{slot >> 3:02x}{function}" if slot else None)


async def _property(monitor: Monitor, path: str, name: str) -> Any:
    """Return a property of an object, or None where it has no such property or does not exist."""
    try:
        return await monitor.execute("qom-get", {"path": path, "property": name})
    except CommandRefused:
        return None
