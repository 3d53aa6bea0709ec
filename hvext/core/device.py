"""Guest devices: ``virtio-blk-pci``, and ``scsi-hd`` on a ``virtio-scsi-pci`` controller.

Source: qemu(1), ``-device``; ``qemu-system-x86_64 -device virtio-blk-pci,help``.
"""

from __future__ import annotations

from hvext.core.identity import DiskNames
from hvext.core.options import DeviceModel, DiskOptions

#: The controller that is made for SCSI disks that name none: libvirt's name for its first.
SHARED_CONTROLLER = "scsi0"


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
        "serial": options.serial,
        "bootindex": options.bootindex,
        "werror": None if options.werror is None else str(options.werror),
        "rerror": None if options.rerror is None else str(options.rerror),
        "write-cache": "on" if options.cache.write_cache else "off",
    }
    return device | {name: value for name, value in optional.items() if value is not None}


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
