from __future__ import annotations

import base64
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.identity import (
    GENERATIONS,
    NODE_NAME_LIMIT,
    DiskNames,
    ProtocolName,
    disk_of_device,
    disk_of_node,
    owner_of_object,
    parse_protocol_name,
)
from hvext.core.options import Aio, Discard

DISK = DiskNames(uuid.UUID("0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10"))
#: QEMU, util/id.c, id_wellformed.
WELL_FORMED = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\Z")

disks = st.uuids().map(DiskNames)
opened = st.builds(
    ProtocolName,
    generation=st.integers(0, GENERATIONS - 1),
    aio=st.none() | st.sampled_from(Aio),
    discard=st.sampled_from(Discard),
)


def own(disk: DiskNames) -> tuple[str, ...]:
    return (disk.throttle_group, disk.iothread, disk.chardev)


def every_name(disk: DiskNames) -> list[str]:
    protocols = [
        disk.protocol(ProtocolName(generation=generation, aio=aio, discard=discard))
        for generation in range(GENERATIONS)
        for aio in (None, *Aio)
        for discard in Discard
    ]
    return [*disk.roots, *disk.throttle_nodes, disk.device, disk.drive, *own(disk), *protocols]


@given(disk=disks)
def test_nodes_are_named_in_the_base_32_that_everybody_knows(disk: DiskNames) -> None:
    assert disk.root == "hv" + base64.b32encode(disk.uuid.bytes).decode().rstrip("=").lower()
    assert disk_of_node(disk.root) == disk


def test_the_names_of_a_disk_are_the_documented_ones() -> None:
    assert DISK.root == "hvbunuwxtnrjgtxgsxbrps6332ca"
    assert DISK.protocol(ProtocolName()) == "hvbunuwxtnrjgtxgsxbrps6332ca-00"
    assert DISK.protocol(ProtocolName(generation=35, aio=Aio.IO_URING, discard=Discard.UNMAP)) == f"{DISK.root}-7z"
    assert DISK.roots == (DISK.root, f"{DISK.root}-r")
    assert DISK.throttle_node == "hvbunuwxtnrjgtxgsxbrps6332ca-t"
    assert DISK.throttle_nodes == (DISK.throttle_node, f"{DISK.root}-u")
    assert DISK.device == "hv-0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10"
    assert DISK.drive == "hv-0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10-drive"
    assert DISK.throttle_group == "hv-0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10-throttle"
    assert DISK.iothread == "hv-0d1b4b5e-6d8a-4d3b-9a57-0c5f2f6f7a10-iothread"
    assert DISK.chardev == f"{DISK.device}-chardev"
    node = DISK.protocol(ProtocolName(generation=3))
    assert all(DISK.owns_object(name) for name in (DISK.throttle_group, DISK.iothread, f"{node}-password"))
    assert not any(DISK.owns_object(name) for name in (node, f"{node}x", f"{DISK.root}-t-password", "iothread1"))
    assert owner_of_object(f"{node}-tls") == DISK


@given(disk=disks, how=opened)
def test_qemu_takes_every_name(disk: DiskNames, how: ProtocolName) -> None:
    nodes = [*disk.roots, *disk.throttle_nodes, disk.protocol(how)]
    for name in nodes:
        assert len(name) <= NODE_NAME_LIMIT
    for name in (*nodes, disk.device, disk.drive, *own(disk)):
        assert WELL_FORMED.match(name)


def test_one_disk_never_uses_a_name_twice() -> None:
    names = every_name(DISK)
    assert len(set(names)) == len(names) == 9 + GENERATIONS * 8


@given(one=disks, other=disks)
def test_two_disks_never_share_a_name(one: DiskNames, other: DiskNames) -> None:
    if one != other:
        assert not set(every_name(one)) & set(every_name(other))


@given(disk=disks, bit=st.integers(0, 127))
def test_disks_that_differ_in_one_bit_never_share_a_name(disk: DiskNames, bit: int) -> None:
    other = DiskNames(uuid.UUID(int=disk.uuid.int ^ 1 << bit))
    assert not set(every_name(disk)) & set(every_name(other))


@given(disk=disks, how=opened)
def test_every_node_tells_whose_it_is_and_how_it_was_opened(disk: DiskNames, how: ProtocolName) -> None:
    for name in (*disk.roots, *disk.throttle_nodes, disk.protocol(how)):
        assert disk_of_node(name) == disk
    assert parse_protocol_name(disk.protocol(how)) == how
    assert not any(parse_protocol_name(name) for name in (*disk.roots, *disk.throttle_nodes))


@given(disk=disks)
def test_every_device_tells_whose_it_is_also_when_libvirt_named_it(disk: DiskNames) -> None:
    assert disk_of_device(disk.device) == disk_of_device(f"ua-{disk.device}") == disk


@pytest.mark.parametrize(
    "name",
    [
        "",
        "hv",
        "#block123",
        "libvirt-1-storage",
        DISK.root[:-1],
        DISK.root + "a",
        DISK.root.upper(),
        DISK.root + "\n",
        f"{DISK.root}-",
        f"{DISK.root}-0",
        f"{DISK.root}-80",
        f"{DISK.root}-tt",
        f"{DISK.root}-s",
        f"{DISK.root}-000",
        f"x{DISK.root}",
        # The last digit carries two bits of the uuid alone: this one is no uuid's.
        DISK.root[:-1] + "b",
        DISK.root[:-1] + "7-00",
        "hv" + "1" * 26,
    ],
)
def test_a_node_of_somebody_else_is_left_alone(name: str) -> None:
    assert disk_of_node(name) is None


@pytest.mark.parametrize(
    "device",
    [
        "",
        "hv-",
        "virtio-disk0",
        DISK.device[:-1],
        f"{DISK.device}0",
        f"{DISK.device}\n",
        DISK.device.upper(),
        DISK.drive,
        DISK.iothread,
        f"ua-ua-{DISK.device}",
        f"hv-{DISK.uuid.hex}",
    ],
)
def test_a_device_of_somebody_else_is_left_alone(device: str) -> None:
    assert disk_of_device(device) is None


@given(name=st.text() | st.from_regex(r"hv[a-z2-7]{26}(-[0-7rtu][0-9a-z]?)?", fullmatch=True))
def test_a_name_is_taken_for_a_disks_only_when_that_disk_would_make_it(name: str) -> None:
    disk = disk_of_node(name)
    if disk is not None:
        how = parse_protocol_name(name)
        assert name in ((disk.protocol(how),) if how else (*disk.roots, *disk.throttle_nodes))


@pytest.mark.parametrize("generation", [-1, GENERATIONS])
def test_a_generation_that_no_name_can_say_is_an_error(generation: int) -> None:
    with pytest.raises(ValueError, match="generation"):
        ProtocolName(generation=generation)
