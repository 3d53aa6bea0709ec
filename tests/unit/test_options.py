from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.options import (
    Aio,
    Cache,
    DetectZeroes,
    DeviceModel,
    Discard,
    DiskOptions,
    ErrorPolicy,
    Placement,
    Throttle,
    option_names,
)
from hvext.core.value import fields as fields_of
from hvext.errors import InputError

#: Source: qemu(1), the table of cache modes: writeback (write-cache of the device), direct, no-flush.
CACHE_MODES = {
    "writeback": (True, False, False),
    "none": (True, True, False),
    "writethrough": (False, False, False),
    "directsync": (False, True, False),
    "unsafe": (True, False, True),
}


@pytest.mark.parametrize("cache", Cache)
def test_a_cache_mode_means_what_qemus_table_says(cache: Cache) -> None:
    assert (cache.write_cache, cache.direct, cache.no_flush) == CACHE_MODES[cache]


def test_a_disk_that_was_asked_nothing_of_is_safe_to_re_point() -> None:
    options = DiskOptions()
    assert options == DiskOptions.from_mapping({})
    assert options.device is DeviceModel.VIRTIO_BLK
    assert options.cache_mode is Cache.NONE
    assert not options.read_only
    assert options.throttle.limits == {}


@pytest.mark.parametrize("cache", Cache)
def test_a_cache_mode_that_was_chosen_is_kept_and_written_down_also_the_usual_one(cache: Cache) -> None:
    options = DiskOptions.from_mapping({"cache": str(cache)})
    assert options.cache_mode is options.caching().cache_mode is cache
    assert options.to_mapping() == {"cache": str(cache)}
    # What an older hvext wrote down: nothing, for cache=none.
    assert DiskOptions().to_mapping() == {}


ACCEPTED: dict[str, tuple[dict[str, object], DiskOptions]] = {
    "words": (
        {"device": "scsi-hd", "cache": "directsync", "aio": "native", "discard": "unmap", "detect_zeroes": "unmap"},
        DiskOptions(
            device=DeviceModel.SCSI_HD,
            cache=Cache.DIRECTSYNC,
            aio=Aio.NATIVE,
            discard=Discard.UNMAP,
            detect_zeroes=DetectZeroes.UNMAP,
        ),
    ),
    "policies": (
        {"werror": "enospc", "rerror": "ignore"},
        DiskOptions(werror=ErrorPolicy.ENOSPC, rerror=ErrorPolicy.IGNORE),
    ),
    "dashes": (
        {"read-only": "on", "detect-zeroes": "on", "bps-total": "5"},
        DiskOptions(read_only=True, detect_zeroes=DetectZeroes.ON, throttle=Throttle(bps_total=5)),
    ),
    "json-types": ({"read_only": True, "bootindex": 2}, DiskOptions(read_only=True, bootindex=2)),
    "strings": ({"read_only": "false", "bootindex": "2"}, DiskOptions(read_only=False, bootindex=2)),
    "virtio-place": ({"bus": "rp0", "addr": "1f.0"}, DiskOptions(placement=Placement(bus="rp0", addr="1f.0"))),
    "scsi-place": (
        {"device": "scsi-hd", "bus": "scsi0", "scsi_id": "255", "lun": 16383},
        DiskOptions(device=DeviceModel.SCSI_HD, placement=Placement(bus="scsi0", scsi_id=255, lun=16383)),
    ),
    "queues": ({"queues": "4"}, DiskOptions(queues=4)),
    "own-iothread": ({"iothread": "auto"}, DiskOptions(iothread="auto")),
    "longest-virtio-serial": ({"serial": "x" * 20}, DiskOptions(serial="x" * 20)),
    "longest-scsi-serial": (
        {"device": "scsi-hd", "serial": "x" * 36},
        DiskOptions(device=DeviceModel.SCSI_HD, serial="x" * 36),
    ),
    "largest-bootindex": ({"bootindex": 2**31 - 1}, DiskOptions(bootindex=2**31 - 1)),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_options_from_json_or_the_command_line_are_the_typed_ones(what: str) -> None:
    values, options = ACCEPTED[what]
    assert DiskOptions.from_mapping(values) == options


#: Options that cannot be right, and the words that the error must have: the option and what is wrong with it.
REFUSED: list[tuple[dict[str, object], tuple[str, ...]]] = [
    ({"bogus": "x"}, ("'bogus'", "bps_total", "cache")),
    ({"": "x"}, ("''",)),
    ({"throttle": {}}, ("'throttle'",)),
    ({"placement": {}}, ("'placement'",)),
    ({"device": "ide-hd"}, ("device", "virtio-blk-pci", "'ide-hd'")),
    ({"device": None}, ("device", "None")),
    ({"cache": "fast"}, ("cache", "writeback")),
    ({"cache": ["none"]}, ("cache",)),
    ({"aio": "posix"}, ("aio", "io_uring")),
    ({"aio": "native", "cache": "writeback"}, ("aio=native", "cache=none", "writeback")),
    ({"discard": "on"}, ("discard", "unmap")),
    ({"detect_zeroes": "maybe"}, ("detect_zeroes",)),
    ({"detect_zeroes": "unmap"}, ("detect_zeroes=unmap", "discard=unmap")),
    ({"werror": "panic"}, ("werror",)),
    ({"rerror": "enospc"}, ("rerror=enospc",)),
    ({"read_only": "1"}, ("read_only", "on or off")),
    ({"read_only": 1}, ("read_only", "on or off")),
    ({"serial": ""}, ("serial", "1 to 20 bytes")),
    ({"serial": "x" * 21}, ("serial", "1 to 20 bytes", "virtio-blk-pci")),
    ({"serial": "x" * 37, "device": "scsi-hd"}, ("serial", "1 to 36 bytes", "scsi-hd")),
    ({"serial": "é"}, ("serial", "ASCII")),
    ({"serial": "a\tb"}, ("serial", "printable")),
    ({"serial": "a\0"}, ("serial", "NUL")),
    ({"serial": 5}, ("serial", "text")),
    ({"bootindex": 0}, ("bootindex", "from 1")),
    ({"bootindex": -1}, ("bootindex",)),
    ({"bootindex": "-1"}, ("bootindex counts from 1 to", "got -1")),
    ({"queues": "-1"}, ("queues must be between 1 and", "got -1")),
    ({"lun": "-1", "device": "scsi-hd"}, ("lun must be between 0 and", "got -1")),
    ({"bootindex": 2**31}, ("bootindex", "2147483647")),
    ({"bootindex": "one"}, ("bootindex", "whole number")),
    ({"bootindex": True}, ("bootindex", "whole number")),
    ({"bootindex": 1.0}, ("bootindex", "whole number")),
    ({"bootindex": "٣"}, ("bootindex", "whole number")),
    ({"iothread": ""}, ("iothread",)),
    ({"iothread": "1io"}, ("iothread",)),
    ({"iothread": "a,b"}, ("iothread", "'a,b'")),
    ({"queues": 0}, ("queues", "between 1 and 1024")),
    ({"queues": 1025}, ("queues", "between 1 and 1024")),
    ({"queues": 2, "device": "scsi-hd"}, ("queues", "virtio-blk-pci", "controller")),
    ({"bus": "a,b"}, ("bus", "'a,b'")),
    ({"bus": "0"}, ("bus",)),
    ({"bus": "rp0\n"}, ("bus",)),
    ({"addr": "20"}, ("addr", "'20'")),
    ({"addr": "5.8"}, ("addr", "'5.8'")),
    ({"addr": "5,x"}, ("addr",)),
    ({"addr": 5}, ("addr", "text")),
    ({"addr": "5", "device": "scsi-hd"}, ("addr", "scsi-hd")),
    ({"scsi_id": 1}, ("scsi_id", "scsi-hd")),
    ({"lun": 0}, ("lun", "scsi-hd")),
    ({"scsi_id": 256, "device": "scsi-hd"}, ("scsi_id", "255")),
    ({"scsi_id": -1, "device": "scsi-hd"}, ("scsi_id",)),
    ({"lun": 16384, "device": "scsi-hd"}, ("lun", "16383")),
    ({"bps_total": -1}, ("bps_total", "between 0 and")),
    ({"bps_total": 10**15 + 1}, ("bps_total", "between 0 and 1000000000000000")),
    ({"bps_total": "1M"}, ("bps_total must be a whole number of bytes a second, without a unit; got '1M'",)),
    ({"iops_read_max": "1k"}, ("whole number of operations a second, without a unit; got '1k'",)),
    ({"bps_read_max_length": "5s"}, ("whole number of seconds, without a unit; got '5s'",)),
    ({"iops_total": "-1"}, ("iops_total must be a whole number between 0 and", "got -1")),
    ({"bps_total": True}, ("bps_total", "whole number")),
    ({"bps_total": 1, "bps_write": 1}, ("bps_total", "bps_write")),
    ({"iops_total": 1, "iops_read": 1}, ("iops_total", "iops_read")),
    ({"bps_read_max": 1}, ("bps_read_max", "needs bps_read")),
    ({"iops_write": 5, "iops_write_max": 4}, ("iops_write_max", "below iops_write")),
    ({"bps_read": 5, "bps_read_max_length": 2}, ("bps_read_max_length", "needs bps_read_max")),
    ({"bps_read": 5, "bps_read_max": 5, "bps_read_max_length": 0}, ("bps_read_max_length", "at least 1")),
    ({"bps_read": 5, "bps_read_max": 5, "bps_read_max_length": 2**32}, ("bps_read_max_length", "4294967295")),
    ({"bps_read": 5, "bps_read_max": 10**15, "bps_read_max_length": 2}, ("bps_read_max_length", "together")),
    ({"iops_size": 4096}, ("iops_size", "needs an iops limit")),
    ({"iops_size": 4096, "bps_total": 1}, ("iops_size",)),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=[str(values)[:60] for values, _ in REFUSED])
def test_an_option_that_cannot_be_right_is_refused_by_its_name(
    values: dict[str, object], words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        DiskOptions.from_mapping(values)
    for word in words:
        assert word in str(caught.value)


def test_every_option_can_be_said_in_one_flat_mapping() -> None:
    fields = {field.name for field in fields_of(DiskOptions)} - {"throttle", "placement"}
    places = {field.name for field in fields_of(Placement)}
    assert sorted(option_names()) == sorted([*fields, *places, *Throttle.names()])


def test_only_limits_that_are_set_reach_qemu_under_qemus_names() -> None:
    throttle = Throttle(bps_total=5, bps_total_max=7, bps_total_max_length=9, iops_read=3, iops_size=4096)
    assert throttle.limits == {
        "bps-total": 5,
        "bps-total-max": 7,
        "bps-total-max-length": 9,
        "iops-read": 3,
        "iops-size": 4096,
    }
    assert Throttle(bps_total=0, bps_total_max_length=1).limits == {}


@pytest.mark.parametrize("addr", ["0", "00", "05", "5", "1f", "1f.7", "0x1f.0", "5.0"])
def test_a_pci_slot_is_taken_as_qemu_writes_it(addr: str) -> None:
    assert Placement(addr=addr).addr == addr


words = st.sampled_from(
    [word for kind in (DeviceModel, Cache, Aio, Discard, DetectZeroes, ErrorPolicy) for word in kind]
    + ["on", "off", "auto", "rp0", "0", "1", "05", "4096", "-1"]
)
values = (
    words.map(str)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 300)
    | st.floats()
    | st.text()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.integers())
)
keys = st.sampled_from(option_names()) | st.sampled_from(option_names()).map(lambda name: name.replace("_", "-"))


@given(
    mapping=st.dictionaries(keys | st.text(), values, max_size=6) | st.dictionaries(keys, words.map(str), max_size=4)
)
def test_any_mapping_is_options_or_an_input_error(mapping: dict[str, Any]) -> None:
    try:
        options = DiskOptions.from_mapping(mapping)
    except InputError as error:
        str(error).encode()
        return
    for key, value in mapping.items():
        name = key.replace("-", "_")
        holder = next(part for part in (options, options.throttle, options.placement) if hasattr(part, name))
        assert str(getattr(holder, name)) in (str(value), str(value).lstrip("0") or "0", "True", "False")


WRONG_KINDS: list[tuple[type, dict[str, Any], str]] = [
    (DiskOptions, {"cache": "foo"}, "cache must be one of none, writeback"),
    (DiskOptions, {"aio": "x"}, "aio must be one of threads, native, io_uring; got 'x'"),
    (DiskOptions, {"device": "ide"}, "device must be one of virtio-blk-pci, scsi-hd; got 'ide'"),
    (DiskOptions, {"device": None}, "device must be one of"),
    (DiskOptions, {"discard": True}, "discard must be one of"),
    (DiskOptions, {"detect_zeroes": 1}, "detect_zeroes must be one of"),
    (DiskOptions, {"werror": "panic"}, "werror must be one of"),
    (DiskOptions, {"rerror": 0}, "rerror must be one of"),
    (DiskOptions, {"read_only": "yes"}, "read_only must be True or False; got 'yes'"),
    (DiskOptions, {"serial": b"x"}, "serial must be text; got b'x'"),
    (DiskOptions, {"bootindex": True}, "bootindex must be a whole number; got True"),
    (DiskOptions, {"iothread": 5}, "iothread must be text; got 5"),
    (DiskOptions, {"queues": "2"}, "queues must be a whole number; got '2'"),
    (DiskOptions, {"throttle": {"iops_total": 5}}, "throttle must be a value of hvext.Throttle"),
    (DiskOptions, {"placement": None}, "placement must be a value of hvext.Placement"),
    (Placement, {"bus": 1}, "bus must be text; got 1"),
    (Placement, {"addr": 5}, "addr must be text; got 5"),
    (Placement, {"scsi_id": "1"}, "scsi_id must be a whole number; got '1'"),
    (Placement, {"lun": 1.0}, "lun must be a whole number; got 1.0"),
]


@pytest.mark.parametrize(("kind", "values", "words"), WRONG_KINDS, ids=[str(values) for _, values, _ in WRONG_KINDS])
def test_a_value_of_a_wrong_kind_is_refused_by_its_fields_name(kind: type, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        kind(**values)
    assert words in caught.value.message


def test_an_option_may_be_given_by_its_word_and_is_the_member_then() -> None:
    words: dict[str, Any] = {"device": "scsi-hd", "cache": "directsync", "aio": "native", "werror": "stop"}
    options = DiskOptions(**words)
    assert options == DiskOptions.from_mapping(words)
    assert (options.cache, options.aio) == (Cache.DIRECTSYNC, Aio.NATIVE)
    assert options.cache is Cache.DIRECTSYNC
