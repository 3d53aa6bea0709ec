"""The stamped blocks that the guest's disk writer leaves on a disk, made and checked on the host.

A stamped block, all numbers little-endian::

    0         8    HVXSTAMP
    8         8    number of the block on its device, in blocks
    16        8    sequence number: how often this run has tried to write this block, from 1
    24        8    seed of the run
    32        …    64-bit words of an xorshift generator that starts from the three numbers
    size - 8  4    zero
    size - 4  4    CRC-32 (as in zlib) of everything before

``vm-images/writer.c`` writes them.
"""

from __future__ import annotations

import struct
import zlib
from enum import StrEnum

from hvext.core.value import value_object
from hvext.errors import InputError

MAGIC = b"HVXSTAMP"
_HEADER = struct.Struct("<8sQQQ")
_TRAILER = struct.Struct("<II")
_MASK = (1 << 64) - 1


class StampFault(StrEnum):
    """What can be wrong with a block that is not empty."""

    MAGIC = "magic"  # not a stamp
    CHECKSUM = "checksum"  # a torn write, or changed bytes
    BLOCK_NUMBER = "block-number"  # a good stamp, in the wrong place


@value_object
class Stamp:
    """The numbers in a stamp."""

    block: int
    sequence: int
    seed: int


@value_object
class BadBlock:
    """A block that is neither empty nor validly stamped; ``found`` is its stamp where it has one."""

    block: int
    fault: StampFault
    found: Stamp | None

    def __str__(self) -> str:
        words = f"block {self.block}: {self.fault}"
        if self.fault is StampFault.BLOCK_NUMBER and self.found is not None:
            words += f" (stamped for block {self.found.block})"
        return words


@value_object
class StampReport:
    """What `check_blocks` found: counts of blocks, the seeds of the runs that wrote them, and the bad ones."""

    blocks: int
    valid: int
    empty: int
    seeds: frozenset[int]
    bad: tuple[BadBlock, ...]

    @property
    def ok(self) -> bool:
        """Whether no block is bad."""
        return not self.bad


def stamp_block(stamp: Stamp, *, block_size: int = 4096) -> bytes:
    """Return the block of ``block_size`` bytes that the writer writes for these numbers.

    Raises InputError when the size is not a power of two of at least 512, or a number does not fit into 64 bits.
    """
    _check_size(block_size)
    numbers = (stamp.block, stamp.sequence, stamp.seed)
    if any(not 0 <= number <= _MASK for number in numbers):
        raise InputError(f"a stamp's numbers are from 0 to 2**64-1: {stamp}")
    x = (stamp.seed + stamp.block * 0x9E3779B97F4A7C15 + stamp.sequence * 0xBF58476D1CE4E5B9) & _MASK or 1
    words = []
    for _ in range((block_size - _HEADER.size - _TRAILER.size) // 8):
        x ^= (x << 13) & _MASK
        x ^= x >> 7
        x ^= (x << 17) & _MASK
        words.append(x)
    body = _HEADER.pack(MAGIC, *numbers) + struct.pack(f"<{len(words)}Q", *words) + bytes(4)
    return body + struct.pack("<I", zlib.crc32(body))


def read_stamp(block: bytes) -> Stamp | None:
    """Return the numbers in a block's stamp, valid or not; None where there is no stamp."""
    if len(block) < _HEADER.size or not block.startswith(MAGIC):
        return None
    _magic, number, sequence, seed = _HEADER.unpack_from(block)
    return Stamp(block=number, sequence=sequence, seed=seed)


def check_blocks(data: bytes, first_block: int, *, block_size: int = 4096) -> StampReport:
    """Check that every block of ``data`` is empty or carries a valid stamp for its own number.

    ``first_block`` is the number of the first block on its device. Which sequence number a block should hold only the
    writer knows that wrote it: a lost write is not seen here.

    Raises InputError when ``data`` is not a whole number of blocks.
    """
    _check_size(block_size)
    if len(data) % block_size:
        raise InputError(f"{len(data)} bytes are not a whole number of blocks of {block_size}")
    nothing = bytes(block_size)
    empty = 0
    seeds: dict[int, int] = {}
    bad: list[BadBlock] = []
    for at in range(0, len(data), block_size):
        block = data[at : at + block_size]
        number = first_block + at // block_size
        if block == nothing:
            empty += 1
            continue
        found = read_stamp(block)
        fault = _fault(block, found, number)
        if fault is not None:
            bad.append(BadBlock(block=number, fault=fault, found=found))
        elif found is not None:
            seeds[found.seed] = seeds.get(found.seed, 0) + 1
    return StampReport(
        blocks=len(data) // block_size,
        valid=sum(seeds.values()),
        empty=empty,
        seeds=frozenset(seeds),
        bad=tuple(bad),
    )


def _fault(block: bytes, found: Stamp | None, number: int) -> StampFault | None:
    if found is None:
        return StampFault.MAGIC
    if _TRAILER.unpack_from(block, len(block) - _TRAILER.size)[1] != zlib.crc32(block[:-4]):
        return StampFault.CHECKSUM
    return None if found.block == number else StampFault.BLOCK_NUMBER


def _check_size(block_size: int) -> None:
    if block_size < 512 or block_size & (block_size - 1):
        raise InputError(f"block size {block_size} is not a power of two of at least 512")
