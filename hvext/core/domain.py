"""A libvirt domain as its XML tells of it: hvext's disks, and where there is room for another.

Disks are told by their alias, which libvirt calls the guest device by and keeps in both views of a domain: the running
one and the persistent configuration. Source: libvirt, "Domain XML format".
"""

from __future__ import annotations

import contextlib
import re
import uuid as uuid_module
from collections.abc import Iterable, Iterator, Mapping
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from hvext.core.device import VHOST_USER_DEVICE
from hvext.core.domain_source import source_location, source_words
from hvext.core.domain_xml import target_name
from hvext.core.identity import DiskNames, disk_of_device
from hvext.core.options import Cache, DetectZeroes, DeviceModel
from hvext.core.running import Node, RunningDisk
from hvext.core.topology import Controller, Port, Topology, free_pci_slots
from hvext.core.uri import Location, parse_uri
from hvext.core.value import replace, value_object
from hvext.errors import InputError

#: The namespace of what hvext writes into a domain's metadata.
METADATA = "urn:hvext:libvirt"
_PORTS = ("pcie-root-port", "pcie-switch-downstream-port")
#: How many names are looked through for one that a disk has already.
_TARGETS = 1024
#: Of a pc machine: the bridge to ISA, whose functions libvirt does not list.
_ISA_SLOT = 1


@value_object
class DomainDisk:
    """One disk of hvext in one view of a domain; ``location`` is None where ``words`` alone say where it is.

    ``target`` is libvirt's name of the disk (``vda``), ``driver`` what it says of how the storage is opened, ``xml``
    its element.
    """

    names: DiskNames
    alias: str
    target: str
    model: str
    location: Location | None
    words: str
    read_only: bool
    direct: bool | None
    driver: Mapping[str, str]
    xml: str

    @property
    def where(self) -> str:
        """Where it is, for people."""
        return self.location.uri() if self.location is not None and not self.location.local_aio else self.words

    def to_json(self) -> dict[str, object]:
        """Return the disk under the names that ``RunningDisk.to_json`` has."""
        location = self.location
        return {
            "uuid": str(self.names.uuid),
            "device": self.alias,
            "model": self.model,
            "target": self.target,
            "driver": location.driver if location is not None and location.block_node else None,
            "uri": location.reported.uri() if location is not None else None,
            "filename": self.words or None,
            "read_only": self.read_only,
            "cache_direct": self.direct,
        }


@value_object
class Domain:
    """One view of a domain. ``targets`` are the names of all its disks, also of those that are not hvext's.

    ``moved`` are the places of the disks that were moved past libvirt. ``asks_storage`` tells whether QEMU asks a
    server when it is asked for sizes: it tells those of block devices, NBD and iSCSI without. ``files`` may be on one.
    """

    name: str
    emulator: str
    shared_memory: bool
    disks: Mapping[uuid_module.UUID, DomainDisk]
    targets: frozenset[str]
    topology: Topology
    moved: Mapping[uuid_module.UUID, str]
    asks_storage: bool = True
    files: tuple[str, ...] = ()


@value_object
class ToldNode(Node):
    """A block node of libvirt's, as a domain's XML tells of it: ``told`` is where its storage is."""

    told: Location | None

    @property
    def location(self) -> Location | None:
        """Where the storage is; None when libvirt's XML does not say it as hvext would."""
        return self.told


def running_disk(disk: DomainDisk, size_bytes: int | None) -> RunningDisk:
    """Return a disk that runs in a domain as one of a QEMU, as far as its XML tells.

    ``size_bytes`` is what the guest sees; without it, nothing is told of the node that the guest's device uses.
    """
    own = replace(RunningDisk.nothing(disk.names), device=disk.alias, model=disk.model)
    source = fromstring(disk.xml).find("source")  # noqa: S314 - libvirt wrote it
    told = source.attrib if source is not None else {}
    if disk.model == VHOST_USER_DEVICE:
        return replace(own, socket=told.get("path", ""))
    location = disk.location.reported if disk.location is not None else None

    def node(kind: str, driver: str, size: int) -> ToldNode:
        return ToldNode(
            name=f"libvirt-{told.get('index', '')}-{kind}",
            driver=driver,
            filename=disk.words,
            size_bytes=size,
            read_only=disk.read_only,
            direct=bool(disk.direct),
            no_flush=disk.driver.get("cache") == Cache.UNSAFE,
            detect_zeroes=DetectZeroes(disk.driver.get("detect_zeroes", DetectZeroes.OFF)),
            told=location,
        )

    # Of a node below another, nobody asks the size.
    storage = node("storage", location.driver if location is not None else "", size_bytes or 0)
    return replace(own, root=None if size_bytes is None else node("format", "raw", size_bytes), protocols=(storage,))


def parse_domain(xml: str) -> Domain:
    """Return what the XML of a domain tells."""
    root = fromstring(xml)  # noqa: S314 - libvirt wrote it
    moved = dict(_moved(root))
    devices = root.find("devices")
    devices = Element("devices") if devices is None else devices
    found = {}
    for element in devices.findall("disk"):
        disk = _disk(element)
        if disk is not None:
            found[disk.names.uuid] = _where_it_is(disk, moved.get(disk.names.uuid))
    access = root.find("memoryBacking/access")
    return Domain(
        name=root.findtext("name", ""),
        emulator=devices.findtext("emulator", ""),
        shared_memory=access is not None and access.get("mode") == "shared",
        disks=found,
        targets=frozenset(target.attrib["dev"] for target in devices.iterfind("disk/target")),
        topology=Topology(
            ports=tuple(_ports(devices)),
            controllers=tuple(_controllers(devices)),
            pci_slots=_pci_slots(devices),
        ),
        moved=moved,
        asks_storage=any(_asks_storage(kind, source) for kind, source in _sources(devices)),
        files=tuple(source.get("file", "") for kind, source in _sources(devices) if kind == "file"),
    )


def moved_xml(places: Mapping[uuid_module.UUID, str]) -> str:
    """Return the metadata element that tells where disks are that were moved past libvirt."""
    element = Element("moved")
    for uuid, uri in places.items():
        SubElement(element, "disk", {"uuid": str(uuid), "uri": uri})
    return tostring(element, encoding="unicode")


def with_source(xml: str, other: Element) -> str:
    """Return a ``<disk>`` with the place of another one."""
    element = fromstring(xml)  # noqa: S314 - libvirt wrote it
    old, new = element.find("source"), other.find("source")
    if old is None or new is None:
        raise ValueError("a disk has no source")
    element.set("type", other.attrib["type"])
    element.insert(list(element).index(old), new)
    element.remove(old)
    return tostring(element, encoding="unicode")


def target_of(device: DeviceModel, index: int) -> str:
    """Return libvirt's name of the disk with this index among those of its bus."""
    return target_name("sd" if device is DeviceModel.SCSI_HD else "vd", index)


def free_target_index(device: DeviceModel, *domains: Domain, wish: str = "") -> int:
    """Return the smallest index whose name no disk has in any of these views of a domain.

    ``wish`` is the name that the disk has in one of them already: another keeps it, unless a disk there has it, too.
    """
    names = [name for domain in domains for name in domain.targets]
    taken = {name for name in names if name != wish or names.count(name) > 1}
    every = range(len(names) + _TARGETS)
    for index in every:
        if target_of(device, index) == wish and wish not in taken:
            return index
    return next(index for index in every if target_of(device, index) not in taken)


def room_in_all(*domains: Domain) -> tuple[Controller, ...]:
    """Return the SCSI controllers that all these views of a domain have, with what is taken in any of them."""
    views = [{each.bus: each for each in domain.topology.controllers} for domain in domains]
    return tuple(
        Controller(
            bus=bus,
            taken=frozenset().union(*(view[bus].taken for view in views)),
            iothread=first.iothread,
        )
        for bus, first in views[0].items()
        if all(bus in view for view in views)
    )


def _moved(root: Element) -> Iterator[tuple[uuid_module.UUID, str]]:
    for disk in root.iterfind(f"metadata/{{{METADATA}}}moved/{{{METADATA}}}disk"):
        with contextlib.suppress(KeyError, ValueError):
            yield uuid_module.UUID(disk.attrib["uuid"]), disk.attrib["uri"]


def _where_it_is(disk: DomainDisk, uri: str | None) -> DomainDisk:
    if uri is None:
        return disk
    with contextlib.suppress(InputError):
        location = parse_uri(uri)
        return replace(disk, location=location, words=location.words)
    return disk


def _sources(devices: Element) -> Iterator[tuple[str, Element]]:
    """Yield what all disks stand on, with what is below that: its type and its source. An empty drive has none."""
    for disk in devices.iterfind("disk"):
        for element in (disk, *disk.iter("backingStore")):
            source = element.find("source")
            if source is not None:
                yield element.get("type", ""), source


def _asks_storage(kind: str, source: Element) -> bool:
    """Whether QEMU asks a server when it is asked for the size of what is there."""
    if kind == "network":
        return source.get("protocol") not in ("nbd", "iscsi")
    # A disk behind vhost-user has no block node.
    return kind not in ("block", "file", "vhostuser")


def _disk(element: Element) -> DomainDisk | None:
    alias, target = element.find("alias"), element.find("target")
    names = disk_of_device(alias.get("name", "")) if alias is not None else None
    if names is None or alias is None or target is None:
        return None
    driver = element.find("driver")
    cache = driver.get("cache") if driver is not None else None
    vhost_user = element.get("type") == "vhostuser"
    plain = {"scsi": str(DeviceModel.SCSI_HD), "virtio": str(DeviceModel.VIRTIO_BLK)}
    bus = target.get("bus", "")
    return DomainDisk(
        names=names,
        alias=alias.attrib["name"],
        target=target.attrib["dev"],
        model=VHOST_USER_DEVICE if vhost_user else plain.get(bus, bus),
        location=source_location(element),
        words=source_words(element),
        read_only=element.find("readonly") is not None,
        direct=Cache(cache).direct if cache in tuple(Cache) else None,
        driver=dict(driver.attrib) if driver is not None else {},
        xml=tostring(element, encoding="unicode"),
    )


def _addresses(devices: Iterable[Element], kind: str) -> Iterator[dict[str, int]]:
    """Yield the numbers in the addresses of this kind that devices have."""
    for device in devices:
        address = device.find("address")
        if address is not None and address.get("type") == kind:
            yield {name: int(value, 0) for name, value in address.attrib.items() if re.match("0x|[0-9]", value)}


def _on_scsi(device: Element) -> bool:
    target = device.find("target")
    return device.tag == "hostdev" or (device.tag == "disk" and target is not None and target.get("bus") == "scsi")


def _ports(devices: Element) -> Iterator[Port]:
    taken = {address.get("bus") for address in _addresses(devices, "pci")}
    for controller in devices.findall("controller"):
        if controller.get("type") == "pci" and controller.get("model") in _PORTS:
            index, target = int(controller.attrib["index"]), controller.find("target")
            hotplug = target is None or target.get("hotplug") != "off"
            yield Port(bus=f"pci.{index}", free=index not in taken, hotplug=hotplug)


def _pci_slots(devices: Element) -> tuple[int, ...] | None:
    kinds = {each.get("model") for each in devices.findall("controller") if each.get("type") == "pci"}
    if "pci-root" not in kinds:
        return None
    slots = [address.get("slot", 0) for address in _addresses(devices, "pci") if not address.get("bus")]
    return free_pci_slots(slot << 3 for slot in (*slots, _ISA_SLOT))


def _controllers(devices: Element) -> Iterator[Controller]:
    addresses = list(_addresses(filter(_on_scsi, devices), "drive"))
    for controller in devices.findall("controller"):
        if controller.get("type") == "scsi" and controller.get("model", "").startswith("virtio-"):
            index, driver = int(controller.attrib["index"]), controller.find("driver")
            number = driver.get("iothread") if driver is not None else None
            taken = [each for each in addresses if each.get("controller") == index]
            yield Controller(
                bus=f"scsi{index}",
                taken=frozenset((each.get("target", 0), each.get("unit", 0)) for each in taken),
                iothread=f"iothread{number}" if number else None,
            )
