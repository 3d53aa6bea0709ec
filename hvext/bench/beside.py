"""What other layers give a disk of which nothing but its storage is said, to measure hvext's options beside them.

============  ==================  =========  ========  ==============  ======================================
layer         device              cache      aio       detect-zeroes   source
============  ==================  =========  ========  ==============  ======================================
Ganeti 3.1    virtio-blk-pci      none [1]_  threads   off             ``lib/hypervisor/hv_kvm``
libvirt       virtio-blk-pci      writeback  threads   off             ``src/qemu/qemu_block.c`` (no <driver>)
Proxmox VE 9  scsi-hd, its        none       io_uring  on              ``PVE/QemuServer/{Drive,Blockdev}.pm``,
              controller in an                                         the web page's wizard
              iothread
============  ==================  =========  ========  ==============  ======================================

.. [1] For every ExtStorage volume; writeback for volumes of its own ``rbd`` template.

Proxmox VE puts a throttle filter over each disk, also without limits; that is left out here.
"""

from __future__ import annotations

from enum import StrEnum

from hvext.bench.places import Place, place
from hvext.bench.tune import AS_GIVEN, OPTION
from hvext.core.options import Aio, Cache, DetectZeroes, DeviceModel, DiskOptions
from hvext.core.plan import options_obstacle
from hvext.core.uri import Location
from hvext.core.uri.rbd import RbdLocation
from hvext.core.value import replace


class Layer(StrEnum):
    """Who else gives disks to QEMU."""

    GANETI = "ganeti"
    LIBVIRT = "libvirt"
    PROXMOX = "proxmox"


def defaults(layer: Layer, location: Location) -> DiskOptions:
    """Return the disk options that a layer takes for a storage when nothing is said."""
    if layer is Layer.GANETI:
        cache = Cache.WRITEBACK if isinstance(location, RbdLocation) else Cache.NONE
        return DiskOptions(cache=cache, aio=Aio.THREADS if location.local_aio else None)
    if layer is Layer.LIBVIRT:
        return DiskOptions(cache=Cache.WRITEBACK)
    return DiskOptions(
        device=DeviceModel.SCSI_HD,
        cache=Cache.NONE,
        aio=Aio.IO_URING if location.local_aio else None,
        detect_zeroes=DetectZeroes.ON,
        iothread="auto",
    )


def beside(found: Place, layers: tuple[Layer, ...]) -> list[Place]:
    """Return an access with the options as they are given, and with the defaults of each layer.

    What a storage cannot have is left as it is given: the page cache of a storage that has none.
    """
    places = [place(AS_GIVEN, OPTION, found.access.words, found.location, found.options)]
    for layer in layers:
        options = replace(defaults(layer, found.location), read_only=found.options.read_only)
        if options_obstacle(found.location, options) is not None:
            options = replace(options, cache=found.options.cache)
        places.append(place(layer, OPTION, found.access.words, found.location, options, device=options.device))
    return places
