from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvext.core.stamp import BadBlock, Stamp, StampFault, check_blocks, read_stamp, stamp_block
from hvext.errors import InputError

numbers = st.integers(min_value=0, max_value=2**64 - 1)
stamps = st.builds(Stamp, block=numbers, sequence=numbers, seed=numbers)


def block_of(number: int, *, sequence: int = 1, seed: int = 7, block_size: int = 4096) -> bytes:
    return stamp_block(Stamp(block=number, sequence=sequence, seed=seed), block_size=block_size)


@given(stamp=stamps, block_size=st.sampled_from([512, 1024, 4096]))
def test_a_written_block_is_accepted_in_its_place_and_its_numbers_are_read(stamp: Stamp, block_size: int) -> None:
    block = stamp_block(stamp, block_size=block_size)
    report = check_blocks(block, stamp.block, block_size=block_size)
    assert len(block) == block_size
    assert (report.ok, report.valid, report.seeds) == (True, 1, frozenset({stamp.seed}))
    assert read_stamp(block) == stamp


def test_the_layout_is_the_documented_one() -> None:
    block = block_of(3, sequence=5, seed=9)
    assert block[:32] == b"HVXSTAMP" + struct.pack("<QQQ", 3, 5, 9)
    assert block[-8:-4] == bytes(4)
    assert struct.unpack("<I", block[-4:]) == (zlib.crc32(block[:-4]),)


def test_an_empty_disk_is_good() -> None:
    report = check_blocks(bytes(4 * 4096), 0)
    assert (report.ok, report.blocks, report.empty, report.valid) == (True, 4, 4, 0)


def test_blocks_of_two_runs_are_good_and_both_runs_are_named() -> None:
    report = check_blocks(block_of(10, seed=1) + bytes(4096) + block_of(12, seed=2), 10)
    assert (report.ok, report.blocks, report.valid, report.empty) == (True, 3, 2, 1)
    assert report.seeds == {1, 2}


@given(at=st.integers(min_value=8, max_value=4095), flip=st.integers(min_value=1, max_value=255))
def test_any_changed_byte_is_found(at: int, flip: int) -> None:
    block = bytearray(block_of(0))
    block[at] ^= flip
    assert [bad.fault for bad in check_blocks(bytes(block), 0).bad] == [StampFault.CHECKSUM]


@given(sectors=st.integers(min_value=1, max_value=7))
def test_a_torn_write_is_found(sectors: int) -> None:
    old, new = block_of(0, sequence=4), block_of(0, sequence=5)
    torn = new[: sectors * 512] + old[sectors * 512 :]
    assert [bad.fault for bad in check_blocks(torn, 0).bad] == [StampFault.CHECKSUM]


def test_a_block_in_another_ones_place_is_found_and_described() -> None:
    report = check_blocks(block_of(0) + block_of(5), 0)
    stamp = Stamp(block=5, sequence=1, seed=7)
    assert report.bad == (BadBlock(block=1, fault=StampFault.BLOCK_NUMBER, found=stamp),)
    assert str(report.bad[0]) == "block 1: block-number (stamped for block 5)"


def test_foreign_data_is_found_with_its_block_number_on_the_device() -> None:
    report = check_blocks(b"\x01" * 4096, 100)
    assert report.bad == (BadBlock(block=100, fault=StampFault.MAGIC, found=None),)
    assert not report.ok


@pytest.mark.parametrize(
    ("size", "block_size"), [(4095, 4096), (4096, 0), (4096, 256), (3000, 1000)], ids=["part", "zero", "small", "odd"]
)
def test_sizes_that_cannot_be_blocks_are_refused(size: int, block_size: int) -> None:
    with pytest.raises(InputError):
        check_blocks(bytes(size), 0, block_size=block_size)


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError):
        block_of(-1)
