from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from hvext.core.disk import Disk
from hvext.core.migration import Description, MovedDisk, Transfer, cache_mode, check_address
from hvext.core.options import Cache
from hvext.core.value import replace
from hvext.errors import InputError


def described(**options: Any) -> Description:
    values = {"provider": "p", "volume": "v", "uuid": str(uuid.UUID(int=7)), "bus": "rp0", **options}
    moved = MovedDisk(disk=Disk.from_mapping(values), size_bytes=1 << 30, address="02.0/00.0")
    return Description(machine="pc-q35-7.2", memory_bytes=1 << 28, cpus=1, running=True, moved=(moved,))


def through_json(description: Description) -> Description:
    return Description.from_json(json.loads(json.dumps(description.to_json())))


def test_the_target_reads_what_the_source_described() -> None:
    own = described(cache="directsync", iops_total=100, werror="stop", parameters={"pool": "x"}, iothread="auto")
    assert through_json(own) == own
    assert own.differences(through_json(own)) == ()


def test_no_secret_of_a_provider_is_told_to_the_target_and_it_says_which_are_missing() -> None:
    own = described(parameters={"pool": "x", "api_token": "s3cr3t-value"})
    assert "s3cr3t-value" not in json.dumps(own.to_json())
    told = through_json(own)
    with pytest.raises(InputError, match="api_token") as missing:
        told.completed({})
    assert "--parameter-file" in missing.value.hint
    assert told.completed({"api_token": "s3cr3t-value"}).disks == own.disks
    # What one target passes on leaves it out as well, and still says so.
    assert through_json(told) == told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": "pc-q35-8.0"}, "machine type: pc-q35-7.2 on the source, pc-q35-8.0 on the target"),
        ({"cpus": 2}, "virtual CPUs"),
        ({"memory_bytes": 1}, "memory in bytes"),
        ({"moved": ()}, "disk p/v: missing on the target"),
    ],
)
def test_a_target_that_is_not_like_the_source_is_found_out_before_anything_is_sent(
    change: dict[str, Any], words: str
) -> None:
    (found,) = described().differences(replace(described(), **change))
    assert words in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cache": "directsync"}, "write cache"),
        ({"cache": "writeback"}, "cache.direct"),
        ({"werror": "stop"}, "werror"),
        ({"rerror": "stop"}, "rerror"),
        ({"read_only": True}, "read_only"),
        ({"serial": "x"}, "serial"),
        ({"detect_zeroes": "on"}, "detect_zeroes"),
        ({"iops_total": 5}, "limits"),
        ({"queues": 2}, "queues"),
    ],
)
def test_a_disk_with_other_options_on_the_target_is_named(change: dict[str, Any], words: str) -> None:
    (found,) = described().differences(described(**change))
    assert found.startswith("disk p/v: ")
    assert words in found


def test_a_disk_whose_cache_was_left_to_hvext_on_one_side_can_be_sent_to_the_other() -> None:
    assert described().differences(described(cache="none")) == ()
    assert described(cache="none").differences(described()) == ()


def test_a_disk_at_another_place_or_of_another_size_is_named() -> None:
    own = described()
    other = replace(own, moved=(replace(own.moved[0], address="05.0/00.0", size_bytes=1),))
    assert own.differences(other) == (
        "disk p/v: place in the machine 02.0/00.0 on the source, 05.0/00.0 on the target",
        f"disk p/v: size in bytes {1 << 30} on the source, 1 on the target",
    )


@pytest.mark.parametrize("value", [None, [], {}, {"format": 2}, {"format": 1, "disks": [{"provider": "p"}]}])
def test_what_is_no_description_is_refused_in_plain_words(value: object) -> None:
    with pytest.raises(InputError):
        Description.from_json(value)


@pytest.mark.parametrize("mode", list(Cache))
def test_the_cache_mode_is_the_one_that_the_disk_was_opened_with(mode: Cache) -> None:
    assert cache_mode(direct=mode.direct, no_flush=mode.no_flush, write_cache=mode.write_cache) is mode


def test_a_migration_counts_as_under_way_until_qemu_says_how_it_ended() -> None:
    for status in ("setup", "active", "device", "pre-switchover", "cancelling", "wait-unplug"):
        assert Transfer.from_qmp({"status": status}).under_way
    for status in ("completed", "failed", "cancelled"):
        assert not Transfer.from_qmp({"status": status}).under_way
    assert not Transfer.from_qmp({}).under_way


def test_progress_is_told_in_mib() -> None:
    ram = {"transferred": 5 << 20, "remaining": 7 << 20, "total": 9 << 20}
    assert Transfer.from_qmp({"status": "active", "ram": ram}).words == "active: 5 MiB sent, 7 of 9 MiB left"


@pytest.mark.parametrize(
    "address", ["tcp:192.0.2.1:0", "tcp:[2001:db8::1]:4444", "tcp:host:1,to=9", "unix:/a b", "fd:3"]
)
def test_an_address_of_a_migration_is_qemus(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "tcp:", "tcp:4444", "tcp:host:", "tcp:host:port", "tcp:host:99999", "unix:", "http://host"],
)
def test_what_is_no_address_of_a_migration_is_said_before_anything_is_sent(address: str) -> None:
    with pytest.raises(InputError, match="no address"):
        check_address(address)
