"""Asking a running QEMU what it has."""

from __future__ import annotations

import asyncio
import uuid as uuid_module
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from hvext.core.identity import DiskNames, owner_of_chardev
from hvext.core.options import DeviceModel
from hvext.core.running import RunningDisk, parse_chains, parse_running
from hvext.core.topology import (
    CONTROLLER_TYPES,
    PORT_TYPES,
    Controller,
    Port,
    Topology,
    free_pci_slots,
    linked_children,
    typed_children,
)
from hvext.core.value import value_object
from hvext.errors import CommandRefused
from hvext.host.qmp import Monitor

# Not typing's own, see hvext.core.value.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Asked(Protocol):
        """Whatever passes commands on to QEMU: a Monitor, or libvirt."""

        async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
            """Return QEMU's answer to one command."""


_PERIPHERAL = "/machine/peripheral"
#: The PCI bus of a pc machine.
_PC_BUS = "/machine/i440fx/pci.0"
#: The addresses of SCSI disks by bus and link, of the QEMUs that we are connected to: they never change, and a bus
#: gives the name of a link once only.
_addresses: WeakKeyDictionary[Monitor, dict[tuple[str, str], tuple[int, int]]] = WeakKeyDictionary()


def checked(answers: Sequence[Any]) -> list[Any]:
    """Return these answers; raises the first error among them."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return list(answers)


async def running_disks(monitor: Monitor) -> dict[uuid_module.UUID, RunningDisk]:
    """Return hvext's disks of the guest by uuid, whole or in pieces."""
    nodes, statistics, *listings = await monitor.execute_all(
        ("query-named-block-nodes", {"flat": True}),
        ("query-blockstats", {}),
        *(("qom-list", {"path": path}) for path in (_PERIPHERAL, "/objects", "/chardevs")),
    )
    checked((nodes, statistics))
    peripherals, objects, chardevs = map(_listed, listings)
    own = [name for name in typed_children(chardevs) if owner_of_chardev(name)]
    paths = await asyncio.gather(*(_socket_path(monitor, name) for name in own))
    sockets = dict(zip(own, paths, strict=True))
    return parse_running(nodes, typed_children(peripherals), typed_children(objects), sockets, statistics)


async def running_disk(monitor: Monitor, names: DiskNames) -> RunningDisk:
    """Return what QEMU has of one disk; all its parts are missing when it has nothing."""
    return (await running_disks(monitor)).get(names.uuid) or RunningDisk.nothing(names)


async def glance(monitor: Monitor, names: DiskNames) -> RunningDisk:
    """Return what QEMU has of one disk that nobody wrote down: looked for by its device's name, however many disks.

    Without a device, what else has the disk's names is not seen.
    """
    paths = (f"{_PERIPHERAL}/{name}" for name in (names.device, names.alias))
    answers = await monitor.execute_all(*(("qom-list", {"path": path}) for path in paths))
    if any(map(_listed, answers)):
        return await running_disk(monitor, names)
    return RunningDisk.nothing(names)


async def chain_of(monitor: Monitor, device: str) -> tuple[str, ...]:
    """Return the names of the nodes that a device uses now, from its own down; none for a device that is not there."""
    return parse_chains(await monitor.execute("query-blockstats")).get(device, ())


async def size_of(monitor: Monitor, node: str) -> int | None:
    """Return the size of a block node in bytes, or None when there is no such node."""
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    return next((found["image"]["virtual-size"] for found in nodes if found["node-name"] == node), None)


async def seen_again(monitor: Monitor, known: RunningDisk) -> RunningDisk | None:
    """Return what QEMU has of a disk now, told without a look at its storage; None when it has other nodes than before.

    What QEMU is asked for otherwise (query-named-block-nodes) it finds out from the storage itself, for RBD, NFS and
    Gluster: it hangs when that does not answer, and says nothing of any node when it is dead.
    """
    statistics, every, objects = await asyncio.gather(
        monitor.execute("query-blockstats"),
        monitor.execute("query-blockstats", {"query-nodes": True}),
        _listing(monitor, "/objects"),
    )
    nodes = [entry["node-name"] for entry in every if "node-name" in entry]
    return known.seen_again(parse_chains(statistics).get(str(known.device), ()), nodes, typed_children(objects))


async def has_device(monitor: Monitor, device: str) -> bool:
    """Return whether the guest still has a device with this id."""
    return device in typed_children(await _listing(monitor, _PERIPHERAL))


async def has_node(monitor: Monitor, name: object) -> bool:
    """Return whether there is a block node with this name."""
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    return any(node["node-name"] == name for node in nodes)


async def has_object(monitor: Monitor, name: object) -> bool:
    """Return whether there is an object with this id."""
    return name in typed_children(await _listing(monitor, "/objects"))


async def _socket_path(monitor: Monitor, chardev: str) -> str:
    """Return the path of the socket that a character device connects to (query-chardev shows this end's)."""
    try:
        address = await monitor.execute("qom-get", {"path": f"/chardevs/{chardev}", "property": "addr"})
    except CommandRefused:
        return ""
    return str(address.get("path", ""))


async def memory_is_shared(monitor: Monitor) -> bool:
    """Return whether all of the guest's memory is shared with other processes, as vhost-user needs it."""
    backends = await monitor.execute("query-memdev")
    return bool(backends) and all(backend["share"] for backend in backends)


async def _listing(monitor: Monitor, path: str) -> list[dict[str, object]]:
    """Return what is at a path of QEMU's object tree; nothing where it does not exist (QEMU makes some when needed)."""
    (answer,) = await monitor.execute_all(("qom-list", {"path": path}))
    return _listed(answer)


def _listed(answer: list[dict[str, object]] | CommandRefused) -> list[dict[str, object]]:
    if not isinstance(answer, CommandRefused):
        return answer
    if answer.error_class == "DeviceNotFound":
        return []
    raise answer


async def topology(monitor: Monitor, model: DeviceModel, *, afresh: bool = False) -> Topology:
    """Return the places where a disk of a model could go, and which are free; those of other models are left out.

    ``afresh`` trusts nothing that was heard before.
    """
    if afresh:
        _addresses.pop(monitor, None)
    peripherals = typed_children(await monitor.execute("qom-list", {"path": _PERIPHERAL}))
    if model is DeviceModel.SCSI_HD:
        names = sorted((name for name, kind in peripherals.items() if kind in CONTROLLER_TYPES), key=_natural)
        questions = [question for name in names for question in _of_controller(name)]
        answers = checked(await monitor.execute_all(*questions))
        told = zip(names, answers[::2], answers[1::2], strict=True)
        controllers = [await _controller(monitor, name, listing, iothread) for name, listing, iothread in told]
        return Topology(ports=(), controllers=tuple(controllers), pci_slots=None)
    names = sorted((name for name, kind in peripherals.items() if kind in PORT_TYPES), key=_natural)
    ports, machine = await asyncio.gather(
        asyncio.gather(*(_port(monitor, name) for name in names)), monitor.execute("qom-list", {"path": "/machine"})
    )
    pc = "i440fx" in typed_children(machine)
    return Topology(ports=tuple(ports), controllers=(), pci_slots=await _pci_slots(monitor) if pc else None)


async def iothreads(monitor: Monitor) -> set[str]:
    """Return the ids of the guest's iothreads."""
    return {entry["id"] for entry in await monitor.execute("query-iothreads")}


@value_object
class ControllerOf:
    """The controller of a SCSI disk: its own path and that of the virtio device in it, and how many disks it has."""

    device: str
    path: str
    disks: int


async def controller_of(monitor: Asked, device: str) -> ControllerOf | None:
    """Return the controller that a SCSI disk hangs on, or None for a device that has none."""
    bus = str(await monitor.execute("qom-get", {"path": f"{_PERIPHERAL}/{device}", "property": "parent_bus"}))
    backend = bus.rpartition("/")[0]
    if not backend.endswith("/virtio-backend"):
        return None
    disks = linked_children(await monitor.execute("qom-list", {"path": bus}))
    return ControllerOf(device=backend.removesuffix("/virtio-backend"), path=backend, disks=len(disks))


async def device_iothread(monitor: Monitor, device: str) -> str | None:
    """Return the id of the iothread that a disk's device, or its controller, was given; None when it has none."""
    controller = await controller_of(monitor, device)
    path = controller.device if controller else f"{_PERIPHERAL}/{device}"
    try:
        iothread = await monitor.execute("qom-get", {"path": path, "property": "iothread"})
    except CommandRefused:
        # Other controllers than virtio-scsi know no iothreads.
        return None
    return str(iothread).rpartition("/")[2] or None


async def _port(monitor: Monitor, name: str) -> Port:
    # The bus of a port has the port's id.
    path = f"{_PERIPHERAL}/{name}"
    listing, hotplug = await asyncio.gather(
        monitor.execute("qom-list", {"path": f"{path}/{name}"}),
        monitor.execute("qom-get", {"path": path, "property": "hotplug"}),
    )
    return Port(bus=name, free=not linked_children(listing), hotplug=bool(hotplug))


def _of_controller(name: str) -> tuple[tuple[str, dict[str, object]], ...]:
    """Return what QEMU is asked about a controller."""
    path = f"{_PERIPHERAL}/{name}"
    return ("qom-list", {"path": _bus(name)}), ("qom-get", {"path": path, "property": "iothread"})


def _bus(name: str) -> str:
    return f"{_PERIPHERAL}/{name}/virtio-backend/{name}.0"


async def _controller(
    monitor: Monitor, name: str, listing: Sequence[Mapping[str, object]], iothread: str
) -> Controller:
    bus = _bus(name)
    known = _addresses.setdefault(monitor, {})

    async def learn(child: str) -> None:
        scsi_id, lun = await asyncio.gather(
            *(monitor.execute("qom-get", {"path": f"{bus}/{child}", "property": word}) for word in ("scsi-id", "lun"))
        )
        known[bus, child] = (scsi_id, lun)

    children = linked_children(listing)
    for gone in [key for key in known if key[0] == bus and key[1] not in children]:
        del known[gone]
    await asyncio.gather(*(learn(child) for child in children if (bus, child) not in known))
    taken = frozenset(known[bus, child] for child in children)
    return Controller(bus=name, taken=taken, iothread=iothread.rpartition("/")[2] or None)


async def _pci_slots(monitor: Monitor) -> tuple[int, ...]:
    children = linked_children(await monitor.execute("qom-list", {"path": _PC_BUS}))
    return free_pci_slots(
        await asyncio.gather(
            *(monitor.execute("qom-get", {"path": f"{_PC_BUS}/{child}", "property": "addr"}) for child in children)
        )
    )


def _natural(name: str) -> tuple[int, str]:
    """Sort rp2 before rp10."""
    return len(name), name
