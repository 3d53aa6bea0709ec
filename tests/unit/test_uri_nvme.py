from __future__ import annotations

from xml.etree.ElementTree import tostring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.uri import parse_filename, parse_uri
from hvext.core.uri.location import Companions, Needs
from hvext.core.uri.nvme import NvmeLocation
from hvext.errors import InputError, LocationError, RenderError

VALID: dict[str, NvmeLocation] = {
    "nvme://0000:44:00.0/1": NvmeLocation(device="0000:44:00.0"),
    "nvme://0000:44:00.0": NvmeLocation(device="0000:44:00.0"),
    "nvme://0000:44:00.0/": NvmeLocation(device="0000:44:00.0"),
    "nvme://abcd:ef:1f.7/0032": NvmeLocation(device="abcd:ef:1f.7", namespace=32),
    "nvme://10000:e1:00.0/2": NvmeLocation(device="10000:e1:00.0", namespace=2),
    'json:{"driver":"nvme","device":"0000:44:00.0","namespace":"3"}': NvmeLocation(device="0000:44:00.0", namespace=3),
    'json:{"driver":"nvme","device":"0000:44:00.0"}': NvmeLocation(device="0000:44:00.0"),
}


@pytest.mark.parametrize("uri", VALID)
def test_a_uri_is_read_as_qemu_reads_it(uri: str) -> None:
    location = parse_uri(uri)
    assert location == VALID[uri]
    assert parse_uri(location.uri()) == location
    assert parse_filename("nvme", location.uri()) == location


INVALID: dict[str, str] = {
    "nvme:0000:44:00.0/1": "is no NVMe URI",
    "nvme://": "is no NVMe URI",
    "nvme:///1": "is no NVMe URI",
    "nvme://44:00.0/1": "'44:00.0' is no PCI address",
    "nvme://0000:AB:00.0/1": "is no PCI address",
    "nvme://0000:44:20.0/1": "is no PCI address",
    "nvme://0000:44:00.8/1": "is no PCI address",
    "nvme://0000%3A44:00.0/1": "is no PCI address",
    "nvme://0000:44:00.0\n/1": "is no PCI address",
    "nvme://../1": "is no PCI address",
    "nvme://0000:44:00.0/0": "namespace 0",
    "nvme://0000:44:00.0/x": "namespace 'x'",
    "nvme://0000:44:00.0/-1": "namespace '-1'",
    "nvme://0000:44:00.0/1/2": "is no NVMe URI",
    "nvme://0000:44:00.0/2147483648": "namespace 2147483648",
    'json:{"driver":"nvme"}': "device is missing",
    'json:{"driver":"nvme","device":"0000:44:00.0","namespace":0}': "namespace must be",
}


@pytest.mark.parametrize("uri", INVALID)
def test_a_uri_that_cannot_be_read_is_refused_with_the_part_that_is_wrong(uri: str) -> None:
    with pytest.raises(LocationError) as caught:
        parse_uri(uri)
    assert INVALID[uri] in str(caught.value)


def test_what_the_driver_is_told_is_what_the_location_says() -> None:
    location = NvmeLocation(device="0000:44:00.0", namespace=2)
    assert location.blockdev() == {"device": "0000:44:00.0", "namespace": 2}
    assert location.needs(Companions()) == Needs()
    assert parse_filename("nvme", "") is None
    assert parse_filename("nvme", "nvme://44:00.0/1") is None


def test_libvirt_gets_a_pci_device() -> None:
    source = NvmeLocation(device="0001:a4:1f.7", namespace=2).libvirt_source()
    assert source.disk_type == "nvme"
    assert tostring(source.element, encoding="unicode") == (
        '<source type="pci" managed="yes" namespace="2">'
        '<address domain="0x0001" bus="0xa4" slot="0x1f" function="0x7" /></source>'
    )
    with pytest.raises(RenderError, match="PCI domain"):
        NvmeLocation(device="10000:e1:00.0").libvirt_source()


@given(
    device=st.from_regex(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True),
    namespace=st.integers(1, (1 << 31) - 1),
)
def test_a_location_survives_being_written_as_a_uri(device: str, namespace: int) -> None:
    location = NvmeLocation(device=device, namespace=namespace)
    assert parse_uri(location.uri()) == location


@given(uri=st.builds(str.__add__, st.sampled_from(["nvme:", "nvme://", "nvme://0000:44:00.0/"]), st.text()))
def test_any_text_is_a_location_or_an_input_error(uri: str) -> None:
    try:
        location = parse_uri(uri)
    except InputError as error:
        str(error).encode()
        return
    assert parse_uri(location.uri()) == location
