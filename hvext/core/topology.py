"""Where in a guest there is room for a disk, from what the running QEMU reports.

Nothing is remembered between two looks: a device that the guest has not let go of yet still takes its place. QEMU 7.2
lets a second device onto an occupied root port without a word, so a place is only free when nothing hangs on its bus.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from hvext.core.options import DeviceModel, DiskOptions, Placement
from hvext.core.value import replace, value_object
from hvext.errors import PlugError

#: Bridges whose bus takes exactly one hot-plugged device.
PORT_TYPES = frozenset({"pcie-root-port", "ioh3420", "xio3130-downstream"})
CONTROLLER_TYPES = frozenset({"virtio-scsi-pci", "virtio-scsi-pci-non-transitional", "virtio-scsi-pci-transitional"})
#: Slots of a conventional PCI bus; slot 0 is the host bridge.
_PCI_SLOTS = range(1, 32)
#: Function 0 of slot 0, the only place below a root port.
_SLOT_0 = r"(0x)?00?(\.0)?\Z"
_SCSI_IDS = 256
_LUNS = 16384


@value_object
class Port:
    """A PCIe root or downstream port: ``bus`` is the id to plug into."""

    bus: str
    free: bool
    hotplug: bool


@value_object
class Controller:
    """A virtio-scsi controller: ``taken`` are the (SCSI id, LUN) pairs in use, ``iothread`` its iothread's id."""

    bus: str
    taken: frozenset[tuple[int, int]]
    iothread: str | None


@value_object
class Topology:
    """The places of one guest. ``pci_slots`` are the free slots of a pc machine's ``pci.0``, None on q35."""

    ports: tuple[Port, ...]
    controllers: tuple[Controller, ...]
    pci_slots: tuple[int, ...] | None

    def without(self, place: Placement) -> Topology:
        """Return what is left when a place, as ``place_disk`` gives it, is taken."""
        if place.scsi_id is not None and place.lun is not None:
            address = (place.scsi_id, place.lun)
            return replace(
                self,
                controllers=tuple(
                    replace(each, taken=each.taken | {address}) if each.bus == place.bus else each
                    for each in self.controllers
                ),
            )
        if self.pci_slots is not None and place.addr is not None:
            slot = int(place.addr.partition(".")[0], 16)
            return replace(self, pci_slots=tuple(free for free in self.pci_slots if free != slot))
        return replace(
            self,
            ports=tuple(replace(port, free=port.free and port.bus != place.bus) for port in self.ports),
        )


def free_pci_slots(addresses: Iterable[int]) -> tuple[int, ...]:
    """Return the free slots of a PCI bus on which devices have these ``addr`` values (slot * 8 + function)."""
    taken = {address >> 3 for address in addresses}
    return tuple(slot for slot in _PCI_SLOTS if slot not in taken)


def typed_children(listing: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Return name and type of the ``child<…>`` entries of a ``qom-list`` answer."""
    return _entries(listing, "child<")


def linked_children(listing: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Return the ``child[N]`` links of a bus: the devices that hang on it, with their types."""
    return {name: kind for name, kind in _entries(listing, "link<").items() if name.startswith("child[")}


def _entries(listing: Sequence[Mapping[str, object]], kind: str) -> dict[str, str]:
    return {
        str(entry["name"]): str(entry["type"])[len(kind) : -1]
        for entry in listing
        if str(entry["type"]).startswith(kind)
    }


def place_disk(options: DiskOptions, topology: Topology, iothread: str | None) -> Placement:
    """Return where the disk goes; what the caller fixed stays, and is checked.

    ``iothread`` is the id that a scsi-hd's controller must have, None for any. Raises PlugError when there is no
    room; nothing was changed by then.
    """
    if options.device is DeviceModel.SCSI_HD:
        return _place_scsi(options.placement, topology, iothread)
    if topology.pci_slots is not None:
        return _place_pci(options.placement, topology.pci_slots)
    return _place_port(options.placement, topology.ports)


def _place_port(wish: Placement, ports: Sequence[Port]) -> Placement:
    if wish.addr is not None and not re.match(_SLOT_0, wish.addr):
        # QEMU 7.2 takes it without a word, and the guest never finds the disk.
        raise PlugError(f"addr {wish.addr} is not on a root port", hint="a root port has slot 0 alone: leave addr out")
    if wish.bus is None:
        for port in ports:
            if port.free and port.hotplug:
                return Placement(bus=port.bus, addr=wish.addr)
        usable = sum(port.hotplug for port in ports)
        raise PlugError(
            f"no free slot: all {usable} hot-plug ports of the guest are taken"
            if usable
            else "no free slot: the guest has no PCIe root port with an id that takes hot-plugged devices",
            hint="start the guest with more pcie-root-port devices, each with an id; they cannot be hot-plugged",
        )
    for port in ports:
        if port.bus == wish.bus:
            if not port.free:
                raise PlugError(f"root port {wish.bus!r} is taken by another device", hint=_free(ports))
            if not port.hotplug:
                raise PlugError(f"root port {wish.bus!r} was made with hotplug=off")
            return wish
    raise PlugError(f"the guest has no root port {wish.bus!r}", hint=_free(ports))


def _place_pci(wish: Placement, free: Sequence[int]) -> Placement:
    if wish.bus not in (None, "pci.0"):
        raise PlugError(f"the guest has no PCI bus {wish.bus!r} that takes disks", hint="it has pci.0")
    if wish.addr is not None:
        slot = int(wish.addr.partition(".")[0], 16)
        if slot not in free:
            raise PlugError(f"PCI slot {wish.addr} is taken or reserved")
        return Placement(bus="pci.0", addr=wish.addr)
    if not free:
        raise PlugError("no free slot: all slots of pci.0 are taken", hint="unplug a device, or use scsi-hd")
    return Placement(bus="pci.0", addr=f"{free[0]:02x}")


def _place_scsi(wish: Placement, topology: Topology, iothread: str | None) -> Placement:
    fitting = [
        controller
        for controller in topology.controllers
        if (wish.bus is None or controller.bus == wish.bus) and (iothread is None or controller.iothread == iothread)
    ]
    if not fitting:
        raise PlugError(_no_controller(wish, topology, iothread), hint=_have([c.bus for c in topology.controllers]))
    for controller in fitting:
        address = _free_address(wish, controller.taken)
        if address is not None:
            return Placement(bus=controller.bus, scsi_id=address[0], lun=address[1])
    wished = (("SCSI id", wish.scsi_id), ("LUN", wish.lun))
    where = ", ".join(f"{what} {number}" for what, number in wished if number is not None) or "every address"
    raise PlugError(f"no free slot: {where} of {', '.join(c.bus for c in fitting)} is taken")


def _no_controller(wish: Placement, topology: Topology, iothread: str | None) -> str:
    if wish.bus is not None and all(controller.bus != wish.bus for controller in topology.controllers):
        return f"the guest has no virtio-scsi controller {wish.bus!r}"
    if iothread is not None and topology.controllers:
        return f"no virtio-scsi controller of the guest runs in iothread {iothread!r}; a scsi-hd uses its controller's"
    return "the guest has no virtio-scsi controller"


def _free_address(wish: Placement, taken: frozenset[tuple[int, int]]) -> tuple[int, int] | None:
    """LUN 0 of every SCSI id first: guests look there first."""
    ids = range(_SCSI_IDS) if wish.scsi_id is None else (wish.scsi_id,)
    luns = range(_LUNS) if wish.lun is None else (wish.lun,)
    if wish.scsi_id is None and wish.lun is None and len(taken) >= _SCSI_IDS * _LUNS:
        return None
    return next(((scsi_id, lun) for lun in luns for scsi_id in ids if (scsi_id, lun) not in taken), None)


def _free(ports: Sequence[Port]) -> str:
    every = _have([port.bus for port in ports])
    free = [port.bus for port in ports if port.free and port.hotplug]
    return f"{every}; free: {', '.join(free) or 'none'}" if ports else every


def _have(names: Sequence[str]) -> str:
    return f"it has {', '.join(names)}" if names else "add one when the guest is started"
