from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.uri import parse_filename, parse_uri
from hvext.core.uri.blkio import BlkioDriver, BlkioLocation
from hvext.core.uri.location import Companions, Needs
from hvext.core.uri.syntax import SOCKET_PATH_BYTES
from hvext.errors import InputError, LocationError, RenderError, UnsupportedLocation

EXAMPLES = {
    BlkioDriver.IO_URING: "/dev/sdb",
    BlkioDriver.NVME_IO_URING: "/dev/ng0n1",
    BlkioDriver.VFIO_PCI: "/sys/bus/pci/devices/0000:00:01.0",
    BlkioDriver.VHOST_USER: "/run/a b,c",
    BlkioDriver.VHOST_VDPA: "/dev/vhost-vdpa-0",
}


@pytest.mark.parametrize("kind", BlkioDriver)
def test_each_driver_is_told_its_path_under_its_own_name(kind: BlkioDriver) -> None:
    member = "filename" if kind is BlkioDriver.IO_URING else "path"
    location = BlkioLocation(kind=kind, path=EXAMPLES[kind])
    assert location.driver == kind.value
    assert location.blockdev() == {member: EXAMPLES[kind]}
    assert location.needs(Companions()) == Needs()
    assert parse_uri(location.uri()) == location
    assert parse_uri("json:" + json.dumps({"driver": kind.value, member: EXAMPLES[kind]})) == location


def test_only_a_vhost_user_server_reads_the_guests_memory() -> None:
    shared = [kind for kind, path in EXAMPLES.items() if BlkioLocation(kind=kind, path=path).needs_shared_memory]
    assert shared == [BlkioDriver.VHOST_USER]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ('json:{"driver":"io_uring"}', "filename is missing"),
        ('json:{"driver":"io_uring","path":"/f"}', "filename is missing"),
        ('json:{"driver":"nvme-io_uring","filename":"/f"}', "path is missing"),
        ('json:{"driver":"nvme-io_uring","path":"ng0n1"}', "'ng0n1' for nvme-io_uring is not absolute"),
        ('json:{"driver":"io_uring","filename":""}', "'' for io_uring is not absolute"),
        ('json:{"driver":"virtio-blk-vhost-user","path":"s"}', "socket path 's'"),
        ('json:{"driver":"virtio-blk-vhost-user","path":"/%s"}' % ("s" * SOCKET_PATH_BYTES), "108 bytes"),
        ('json:{"driver":"virtio-blk-vhost-user","path":"/s","fd":3}', "'fd'"),
    ],
)
def test_a_description_that_cannot_be_right_is_refused(uri: str, words: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert words in str(caught.value)


@pytest.mark.parametrize("uri", ["io_uring:/dev/sdb", "nvme-io_uring:/dev/ng0n1", "virtio-blk-vhost-user:/s"])
def test_there_are_no_uris_for_these_drivers(uri: str) -> None:
    with pytest.raises(UnsupportedLocation, match="QEMU knows no protocol"):
        parse_uri(uri)


def test_qemu_reports_the_path_of_io_uring_only() -> None:
    assert parse_filename("io_uring", "/a,b") == BlkioLocation(kind=BlkioDriver.IO_URING, path="/a,b")
    assert parse_filename("io_uring", "") is None
    assert parse_filename("virtio-blk-vhost-user", 'json:{"driver": "virtio-blk-vhost-user"}') is None
    assert parse_filename("virtio-blk-vhost-user", "/s") is None


@pytest.mark.parametrize("kind", BlkioDriver)
def test_libvirt_has_none_of_them(kind: BlkioDriver) -> None:
    with pytest.raises(RenderError, match=f"the block driver {kind}"):
        BlkioLocation(kind=kind, path=EXAMPLES[kind]).libvirt_source()


paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=25).map(lambda text: f"/{text}")


@given(kind=st.sampled_from(BlkioDriver), path=paths)
def test_a_location_survives_being_written_as_a_uri(kind: BlkioDriver, path: str) -> None:
    location = BlkioLocation(kind=kind, path=path)
    assert parse_uri(location.uri()) == location


@given(kind=st.sampled_from(BlkioDriver), name=st.sampled_from(["path", "filename", "x"]), value=st.text() | st.none())
def test_any_description_is_a_location_or_an_input_error(kind: BlkioDriver, name: str, value: str | None) -> None:
    try:
        location = parse_uri("json:" + json.dumps({"driver": kind.value, name: value}))
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri()) == location
