from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.options import DeviceModel, DiskOptions, Placement
from hvext.core.topology import (
    Controller,
    Port,
    Topology,
    free_pci_slots,
    linked_children,
    place_disk,
    typed_children,
)
from hvext.errors import PlugError

#: Answers of QEMU 7.2 to qom-list.
PERIPHERAL = [
    {"name": "type", "type": "string"},
    {"name": "scsi0", "type": "child<virtio-scsi-pci>"},
    {"name": "rp1", "type": "child<pcie-root-port>"},
    {"name": "sd0", "type": "child<scsi-hd>"},
    {"name": "disk", "type": "child<virtio-blk-pci>"},
    {"name": "rp0", "type": "child<pcie-root-port>"},
]
TAKEN_PORT = [
    {"name": "type", "type": "string"},
    {"name": "realized", "type": "bool"},
    {"name": "acpi-pcihp-bsel", "type": "uint32"},
    {"name": "child[0]", "type": "link<virtio-blk-pci>"},
    {"name": "hotplug-handler", "type": "link<hotplug-handler>"},
]
FREE_PORT = [entry for entry in TAKEN_PORT if entry["name"] != "child[0]"]


def port(bus: str, *, free: bool = True, hotplug: bool = True) -> Port:
    return Port(bus=bus, free=free, hotplug=hotplug)


def q35(*ports: Port, controllers: tuple[Controller, ...] = ()) -> Topology:
    return Topology(ports=ports, controllers=controllers, pci_slots=None)


def pc(*slots: int) -> Topology:
    return Topology(ports=(), controllers=(), pci_slots=slots)


def controller(bus: str, *taken: tuple[int, int], iothread: str | None = None) -> Controller:
    return Controller(bus=bus, taken=frozenset(taken), iothread=iothread)


def virtio(**place: str) -> DiskOptions:
    return DiskOptions(placement=Placement(**place))


def scsi(bus: str | None = None, scsi_id: int | None = None, lun: int | None = None) -> DiskOptions:
    return DiskOptions(device=DeviceModel.SCSI_HD, placement=Placement(bus=bus, scsi_id=scsi_id, lun=lun))


def test_devices_are_read_from_what_qemu_answers() -> None:
    assert typed_children(PERIPHERAL) == {
        "scsi0": "virtio-scsi-pci",
        "rp1": "pcie-root-port",
        "sd0": "scsi-hd",
        "disk": "virtio-blk-pci",
        "rp0": "pcie-root-port",
    }


def test_a_port_is_taken_when_a_device_hangs_on_it_and_not_because_it_can_be_hot_plugged() -> None:
    assert linked_children(TAKEN_PORT) == {"child[0]": "virtio-blk-pci"}
    assert linked_children(FREE_PORT) == {}


def test_slots_are_taken_whatever_function_is_in_them() -> None:
    # What a pc machine answers: host bridge, ISA, IDE and PM in functions 0, 1 and 3 of slot 1, a disk at 1e.2.
    assert free_pci_slots([9, 0, 8, 11, 0x1E * 8 + 2]) == (*range(2, 30), 31)
    assert free_pci_slots(range(0, 256, 8)) == ()


def test_a_disk_goes_to_the_first_free_port_that_takes_it() -> None:
    guest = q35(port("rp0", free=False), port("rp1", hotplug=False), port("rp2"), port("rp3"))
    assert place_disk(virtio(), guest, None) == Placement(bus="rp2")


def test_the_port_that_was_wished_for_is_used() -> None:
    assert place_disk(virtio(bus="rp1"), q35(port("rp0"), port("rp1")), None) == Placement(bus="rp1")


@pytest.mark.parametrize("addr", ["0", "00", "0x0", "00.0"])
def test_the_only_slot_of_a_port_may_be_said(addr: str) -> None:
    assert place_disk(virtio(bus="rp0", addr=addr), q35(port("rp0")), None) == Placement(bus="rp0", addr=addr)


@pytest.mark.parametrize("addr", ["5", "1.0", "0.1"])
@pytest.mark.parametrize("bus", [{}, {"bus": "rp0"}])
def test_a_slot_in_which_the_guest_would_never_find_the_disk_is_refused(addr: str, bus: dict[str, str]) -> None:
    with pytest.raises(PlugError, match="not on a root port"):
        place_disk(virtio(addr=addr, **bus), q35(port("rp0")), None)


@pytest.mark.parametrize(
    ("options", "guest", "words"),
    [
        (virtio(), q35(), "no PCIe root port with an id"),
        (virtio(), q35(port("rp0", hotplug=False)), "takes hot-plugged devices"),
        (virtio(), q35(port("rp0", free=False), port("rp1", free=False)), "all 2 hot-plug ports"),
        (virtio(), q35(port("rp0", free=False), port("rp1", hotplug=False)), "all 1 hot-plug ports"),
        (virtio(bus="rp0"), q35(port("rp0", free=False), port("rp1")), "'rp0' is taken by another device"),
        (virtio(bus="rp0"), q35(port("rp0", hotplug=False)), "hotplug=off"),
        (virtio(bus="rp7"), q35(port("rp0"), port("rp1")), "no root port 'rp7' (it has rp0, rp1; free: rp0, rp1)"),
        (virtio(bus="rp7"), q35(), "no root port 'rp7'"),
        (virtio(), pc(), "all slots of pci.0 are taken"),
        (virtio(addr="05"), pc(6, 7), "PCI slot 05 is taken or reserved"),
        (virtio(addr="0"), pc(6, 7), "PCI slot 0 is taken or reserved"),
        (virtio(bus="rp0"), pc(5), "no PCI bus 'rp0'"),
        (scsi(), q35(port("rp0")), "no virtio-scsi controller"),
        (scsi(bus="scsi7"), q35(controllers=(controller("scsi0"),)), "controller 'scsi7' (it has scsi0)"),
        (scsi(scsi_id=1, lun=2), q35(controllers=(controller("scsi0", (1, 2)),)), "SCSI id 1, LUN 2 of scsi0"),
    ],
)
def test_a_guest_without_room_is_told_what_is_in_the_way(options: DiskOptions, guest: Topology, words: str) -> None:
    with pytest.raises(PlugError) as caught:
        place_disk(options, guest, None)
    assert words in str(caught.value)


def test_a_disk_of_a_pc_machine_goes_to_the_first_free_slot() -> None:
    assert place_disk(virtio(), pc(4, 5), None) == Placement(bus="pci.0", addr="04")
    assert place_disk(virtio(bus="pci.0"), pc(31), None) == Placement(bus="pci.0", addr="1f")


@pytest.mark.parametrize("addr", ["1f", "1f.0", "0x1f"])
def test_the_slot_that_was_wished_for_is_used(addr: str) -> None:
    assert place_disk(virtio(addr=addr), pc(4, 31), None) == Placement(bus="pci.0", addr=addr)


def test_scsi_disks_fill_lun_0_of_every_id_first() -> None:
    guest = q35(controllers=(controller("scsi0", (0, 0), (1, 0), (3, 0)),))
    assert place_disk(scsi(), guest, None) == Placement(bus="scsi0", scsi_id=2, lun=0)


def test_scsi_disks_go_on_with_lun_1_when_every_id_is_taken() -> None:
    guest = q35(controllers=(controller("scsi0", *((scsi_id, 0) for scsi_id in range(256))),))
    assert place_disk(scsi(), guest, None) == Placement(bus="scsi0", scsi_id=0, lun=1)


def test_a_full_controller_is_passed_over_for_the_next() -> None:
    full = controller("scsi0", *((5, lun) for lun in range(16384)))
    guest = q35(controllers=(full, controller("scsi1")))
    assert place_disk(scsi(scsi_id=5), guest, None) == Placement(bus="scsi1", scsi_id=5, lun=0)
    with pytest.raises(PlugError, match="no free slot: SCSI id 5 of scsi0 is taken"):
        place_disk(scsi(scsi_id=5, bus="scsi0"), guest, None)


def test_a_part_of_a_scsi_address_is_completed() -> None:
    guest = q35(controllers=(controller("scsi0", (0, 7), (4, 0)),))
    assert place_disk(scsi(lun=7), guest, None) == Placement(bus="scsi0", scsi_id=1, lun=7)
    assert place_disk(scsi(scsi_id=4), guest, None) == Placement(bus="scsi0", scsi_id=4, lun=1)


def test_a_scsi_disk_goes_to_a_controller_in_the_iothread_that_was_wished_for() -> None:
    guest = q35(controllers=(controller("scsi0"), controller("scsi1", iothread="io1")))
    assert place_disk(scsi(), guest, "io1").bus == "scsi1"
    with pytest.raises(PlugError, match="runs in iothread 'io2'"):
        place_disk(scsi(), guest, "io2")
    with pytest.raises(PlugError, match="runs in iothread 'io1'"):
        place_disk(scsi(bus="scsi0"), guest, "io1")


addresses = st.tuples(st.integers(0, 255), st.integers(0, 16383))


@given(
    taken=st.sets(addresses, max_size=20) | st.sets(st.tuples(st.integers(0, 3), st.integers(0, 1))),
    scsi_id=st.none() | st.integers(0, 3),
    lun=st.none() | st.integers(0, 1),
)
def test_a_scsi_disk_never_gets_an_address_that_is_taken_or_another_than_wished(
    taken: set[tuple[int, int]], scsi_id: int | None, lun: int | None
) -> None:
    guest = q35(controllers=(controller("scsi0", *taken),))
    try:
        place = place_disk(scsi(scsi_id=scsi_id, lun=lun), guest, None)
    except PlugError:
        assert (scsi_id, lun) in taken
        return
    assert (place.scsi_id, place.lun) not in taken
    assert scsi_id in (None, place.scsi_id)
    assert lun in (None, place.lun)


@given(ports=st.lists(st.tuples(st.booleans(), st.booleans())))
def test_a_disk_never_gets_a_port_that_is_taken_or_fixed(ports: list[tuple[bool, bool]]) -> None:
    guest = q35(*(port(f"rp{number}", free=free, hotplug=hot) for number, (free, hot) in enumerate(ports)))
    try:
        place = place_disk(virtio(), guest, None)
    except PlugError:
        assert (True, True) not in ports
        return
    assert ports[int(str(place.bus)[2:])] == (True, True)
