"""Reading a libvirt domain's XML: what hvext wrote is read back, and there is room only where there is."""

from __future__ import annotations

import uuid

import pytest

from hvext.core.domain import (
    free_target_index,
    moved_xml,
    parse_domain,
    room_in_all,
    running_disk,
    target_of,
    with_source,
)
from hvext.core.domain_xml import disk_element, disk_xml
from hvext.core.identity import DiskNames
from hvext.core.observation import access_of
from hvext.core.options import DeviceModel, DiskOptions, Placement
from hvext.core.plan import DiskPlan, plan_disk
from hvext.core.topology import Port
from hvext.core.uri import FileLocation, Opened, parse_uri
from hvext.errors import InputError, RenderError
from tests.corpus.uris import CORPUS

#: What libvirt's XML does not tell apart: a port that is the default one, and a path that is missing.
SAME = {"http-no-path", "http-port-empty", "http-port-leading-zeros", "http-query-only"}


def domain(*devices: str, metadata: str = "") -> str:
    return (
        f"<domain><name>d</name>{metadata}<devices><emulator>/usr/bin/qemu</emulator>{''.join(devices)}"
        "</devices></domain>"
    )


def plan(number: int, uri: str = "/dev/vol", **options: object) -> DiskPlan:
    return plan_disk(DiskNames(uuid.UUID(int=number)), parse_uri(uri), DiskOptions(**options))  # type: ignore[arg-type]


def test_where_a_disk_is_can_be_read_back_from_its_xml() -> None:
    wrong, n_rows = set(), 0
    for row in CORPUS:
        try:
            location = parse_uri(row.uri, look=lambda _path: Opened.FILE)
            options = DiskOptions(device=DeviceModel.SCSI_HD if location.block_node else DeviceModel.VIRTIO_BLK)
            written = plan_disk(DiskNames(uuid.UUID(int=1)), location, options)
            xml = disk_xml(written)
        except (InputError, RenderError):
            continue
        n_rows += 1
        (disk,) = parse_domain(domain(xml)).disks.values()
        if disk.location is None or disk.location.reported != location.reported:
            wrong.add(row.id)
    assert wrong == SAME
    assert n_rows > 250


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/dev/loop4", "/dev/loop4"),
        ("nbd+unix:///d1?socket=/run/nbd.sock", "nbd+unix:///d1?socket=/run/nbd.sock"),
        ("rbd:p/i", "rbd:p/i"),
    ],
)
def test_where_a_disk_is_said_as_a_path_or_a_uri(place: str, words: str) -> None:
    (disk,) = parse_domain(domain(disk_xml(plan(1, place)))).disks.values()
    assert (disk.where, disk.words, disk.to_json()["filename"]) == (words, words, words)
    protocol = running_disk(disk, 1 << 20).protocol
    assert protocol is not None
    assert protocol.where == words
    # The same in a disk that was moved past libvirt.
    places = moved_xml({uuid.UUID(int=1): "host_device:/dev/loop5"})
    metadata = f"<metadata>{places.replace('<moved', '<moved xmlns=' + chr(39) + 'urn:hvext:libvirt' + chr(39))}"
    (disk,) = parse_domain(domain(disk_xml(plan(1, place)), metadata=f"{metadata}</metadata>")).disks.values()
    assert (disk.where, disk.words) == ("/dev/loop5", "/dev/loop5")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("type='network'><source protocol='sheepdog' name='v'><host name='h' port='7000'/>", "sheepdog v on h:7000"),
        ("type='network'><source protocol='vxhs'>", "vxhs"),
        ("type='volume'><source pool='p' volume='v'>", "volume v of pool p"),
        ("type='dir'><source dir='/d'>", "/d"),
        ("type='file'><source file='relative'>", "relative"),
    ],
)
def test_where_a_disk_is_that_hvext_would_not_have_written_is_said_in_words(source: str, words: str) -> None:
    alias = DiskNames(uuid.UUID(int=1)).device
    element = f"<disk {source}</source><target dev='vda' bus='virtio'/><alias name='ua-{alias}'/></disk>"
    (disk,) = parse_domain(domain(element)).disks.values()
    assert (disk.location, disk.where) == (None, words)


def test_a_disk_is_told_by_its_alias_and_others_are_left_alone() -> None:
    others = (
        "<disk type='file'><source file='/a'/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>"
        "<disk type='file'><source file='/b'/><target dev='vdb' bus='virtio'/></disk>"
    )
    read = parse_domain(domain(others, disk_xml(plan(7, read_only=True), 2)))
    (disk,) = read.disks.values()
    assert (disk.names.uuid, disk.target, disk.read_only, disk.direct) == (uuid.UUID(int=7), "vdc", True, True)
    assert read.targets == {"vda", "vdb", "vdc"}
    assert target_of(DeviceModel.VIRTIO_BLK, free_target_index(DeviceModel.VIRTIO_BLK, read)) == "vdd"
    assert target_of(DeviceModel.VIRTIO_BLK, free_target_index(DeviceModel.VIRTIO_BLK, read, wish="vdc")) == "vdc"
    assert free_target_index(DeviceModel.SCSI_HD, read) == 0
    both = parse_domain(domain(others.replace("vda", "vdc")))
    assert target_of(DeviceModel.VIRTIO_BLK, free_target_index(DeviceModel.VIRTIO_BLK, read, both, wish="vdc")) == "vdd"


def test_a_scsi_address_that_any_view_uses_is_not_free() -> None:
    place = Placement(bus="scsi0", scsi_id=3, lun=1)
    disk = disk_xml(plan(1, device=DeviceModel.SCSI_HD, placement=place))
    sata = (
        "<disk><target dev='sdb' bus='sata'/><address type='drive' controller='0' bus='0' target='0' unit='5'/></disk>"
    )
    controllers = "<controller type='scsi' index='0' model='virtio-scsi'><driver iothread='2'/></controller>"
    live = parse_domain(domain(controllers, disk, sata, "<controller type='scsi' index='1' model='lsilogic'/>"))
    config = parse_domain(domain(controllers, "<controller type='scsi' index='2' model='virtio-scsi'/>"))
    (room,) = room_in_all(config, live)
    assert (room.bus, room.taken, room.iothread) == ("scsi0", {(3, 1)}, "iothread2")


def test_a_root_port_is_free_when_no_device_is_behind_it() -> None:
    ports = "".join(
        f"<controller type='pci' index='{index}' model='pcie-root-port'>{more}</controller>"
        for index, more in ((1, ""), (2, ""), (3, "<target hotplug='off'/>"))
    )
    behind = "<interface><address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></interface>"
    read = parse_domain(domain("<controller type='pci' index='0' model='pcie-root'/>", ports, behind)).topology
    assert read.pci_slots is None
    assert read.ports == (
        Port(bus="pci.1", free=True, hotplug=True),
        Port(bus="pci.2", free=False, hotplug=True),
        Port(bus="pci.3", free=True, hotplug=False),
    )


def test_the_slots_of_a_pc_are_those_that_nothing_has() -> None:
    behind = "<interface><address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/></interface>"
    slots = parse_domain(domain("<controller type='pci' index='0' model='pci-root'/>", behind)).topology.pci_slots
    assert slots is not None
    assert {1, 5}.isdisjoint(slots)
    assert {2, 31} <= set(slots)


def test_a_disk_that_was_moved_past_libvirt_is_where_it_was_moved_to() -> None:
    here, there = plan(1, "/dev/vol"), plan(1, "nbd://h/e")
    places = moved_xml({uuid.UUID(int=1): "nbd://h:10809/e"})
    metadata = (
        f"<metadata>{places.replace('<moved', '<moved xmlns=' + chr(39) + 'urn:hvext:libvirt' + chr(39))}</metadata>"
    )
    read = parse_domain(domain(disk_xml(here), metadata=metadata))
    assert read.disks[uuid.UUID(int=1)].location == there.location
    assert read.moved == {uuid.UUID(int=1): "nbd://h:10809/e"}
    config = parse_domain(domain(with_source(disk_xml(here), disk_element(there))))
    assert config.disks[uuid.UUID(int=1)].location == there.location


@pytest.mark.parametrize("controller", [None, "scsi0"])
def test_a_scsi_disk_comes_with_the_controller_that_it_needs(controller: str | None) -> None:
    names = DiskNames(uuid.UUID(int=1))
    options = DiskOptions(device=DeviceModel.SCSI_HD)
    xml = disk_xml(plan_disk(names, parse_uri("/dev/vol"), options, controller=controller))
    assert len(parse_domain(domain(xml)).topology.controllers) == (controller is not None)


@pytest.mark.parametrize(
    ("place", "asks"),
    [("/dev/vol", False), ("nbd://h/e", False), ("iscsi://h/iqn.2026-01.org.example:v/1", False), ("rbd:p/i", True)],
)
def test_storage_that_is_asked_for_its_size_is_told_from_storage_that_is_not(place: str, *, asks: bool) -> None:
    location = FileLocation(path=place, opened=Opened.HOST_DEVICE) if place.startswith("/") else parse_uri(place)
    own = disk_xml(plan_disk(DiskNames(uuid.UUID(int=1)), location, DiskOptions()))
    assert parse_domain(domain(own)).asks_storage == asks
    # Somebody else's disk counts as well, with the image below it.
    below = "<backingStore type='{}'><format type='raw'/><source {}/><backingStore/></backingStore>"
    system = "<disk type='file'><source file='/system.qcow2'/><target dev='vdz' bus='virtio'/>{}</disk>"
    both = parse_domain(domain(own, system.format(below.format("file", "file='/below.raw'"))))
    assert (both.asks_storage, both.files) == (asks, ("/system.qcow2", "/below.raw"))
    assert parse_domain(domain(own, system.format(below.format("network", "protocol='rbd' name='p/i'")))).asks_storage
    empty = "<disk type='file' device='cdrom'><target dev='sdz' bus='sata'/></disk>"
    assert parse_domain(domain(own, empty)).asks_storage == asks


def test_a_running_disk_is_told_as_over_qmp_whatever_is_known_of_its_size() -> None:
    location = FileLocation(path="/dev/vol", opened=Opened.HOST_DEVICE)
    xml = disk_xml(plan_disk(DiskNames(uuid.UUID(int=1)), location, DiskOptions(read_only=True)))
    disk = parse_domain(domain(xml)).disks[uuid.UUID(int=1)]
    for size in (None, 1 << 20):
        told = running_disk(disk, size).to_json()
        assert told["size_bytes"] == size
        assert (told["driver"], told["read_only"], told["cache_direct"]) == ("host_device", True, True)
        assert told["device"] == disk.alias
    assert access_of(running_disk(disk, None)) == "kernelspace"
