"""Guest devices: ``virtio-blk-pci``, ``scsi-hd`` on a ``virtio-scsi-pci`` controller, and ``vhost-user-blk-pci``.

Source: qemu(1), ``-device``; ``qemu-system-x86_64 -device virtio-blk-pci,help``.
"""

from __future__ import annotations

from hvext.core.identity import DiskNames
from hvext.core.options import Cache, DeviceModel, DiskOptions
from hvext.core.value import fields

#: The controller that is made for SCSI disks that name none: libvirt's name for its first.
SHARED_CONTROLLER = "scsi0"
#: The device of a disk behind vhost-user.
VHOST_USER_DEVICE = "vhost-user-blk-pci"


def guest_device(options: DiskOptions, names: DiskNames, drive: str) -> dict[str, object]:
    """Return the ``device_add`` arguments of a disk over the node called ``drive``.

    The iothread of a scsi-hd is that of its controller and does not stand here.
    """
    scsi = options.device is DeviceModel.SCSI_HD
    place = options.placement
    device: dict[str, object] = {"driver": str(options.device), "id": names.device, "drive": drive}
    optional: dict[str, object | None] = {
        "bus": f"{place.bus}.0" if scsi and place.bus is not None else place.bus,
        "addr": place.addr,
        "channel": 0 if scsi and place.scsi_id is not None else None,
        "scsi-id": place.scsi_id,
        "lun": place.lun,
        "iothread": None if scsi else iothread_id(options, names),
        "num-queues": options.queues,
        "serial": options.serial,
        "bootindex": options.bootindex,
        "werror": None if options.werror is None else str(options.werror),
        "rerror": None if options.rerror is None else str(options.rerror),
        "write-cache": "on" if options.cache_mode.write_cache else "off",
    }
    return device | {name: value for name, value in optional.items() if value is not None}


def vhost_user_device(options: DiskOptions, names: DiskNames) -> dict[str, object]:
    """Return the ``device_add`` arguments of a disk behind vhost-user."""
    place = options.placement
    device: dict[str, object] = {"driver": VHOST_USER_DEVICE, "id": names.device, "chardev": names.chardev}
    optional = {"bus": place.bus, "addr": place.addr, "bootindex": options.bootindex}
    return device | {name: value for name, value in optional.items() if value is not None}


def vhost_user_obstacle(options: DiskOptions) -> str | None:
    """Return why a disk with these options cannot be served over vhost-user, or None when it can.

    The server serves the guest without QEMU in between, so that QEMU cannot enforce anything.
    """
    if options.device is not DeviceModel.VIRTIO_BLK:
        return f"it is a virtio-blk disk: it cannot be a {options.device}"
    cache = options.cache if options.cache_mode is Cache.NONE else None
    plain = DiskOptions(cache=cache, bootindex=options.bootindex, placement=options.placement)
    wished = [field.name for field in fields(DiskOptions) if getattr(options, field.name) != getattr(plain, field.name)]
    if wished:
        return f"it is served past QEMU, which cannot see to {', '.join(wished)}: leave that out"
    return None


def iothread_id(options: DiskOptions, names: DiskNames) -> str | None:
    """Return the id of the disk's iothread: a given one, the disk's own for ``auto``, or None."""
    return names.iothread if options.iothread == "auto" else options.iothread


def scsi_controller(controller: str, *, iothread: str | None = None, bus: str | None = None) -> dict[str, object]:
    """Return the ``device_add`` arguments of a virtio-scsi controller with the id ``controller``."""
    device: dict[str, object] = {"driver": "virtio-scsi-pci", "id": controller}
    if bus is not None:
        device["bus"] = bus
    if iothread is not None:
        device["iothread"] = iothread
    return device
