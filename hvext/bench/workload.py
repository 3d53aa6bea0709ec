"""What is asked of a disk: the built-in workloads, and those of a fio job file of the user's own.

Source: fio(1), "Job file parameters".
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hvext.bench.result import PERCENTILES, Workload
from hvext.errors import InputError

_KIB, _MIB = 1024, 1 << 20
_SECTOR, _LARGEST = 512, 16 * _MIB

RAND_READ_1 = Workload(name="randread-4k-qd1", rw="randread", block_bytes=4 * _KIB, depth=1)
RAND_READ_32 = Workload(name="randread-4k-qd32", rw="randread", block_bytes=4 * _KIB, depth=32)
RAND_READ_128 = Workload(name="randread-4k-qd128", rw="randread", block_bytes=4 * _KIB, depth=128)
RAND_WRITE_1 = Workload(name="randwrite-4k-qd1", rw="randwrite", block_bytes=4 * _KIB, depth=1, read_percent=0)
RAND_WRITE_32 = Workload(name="randwrite-4k-qd32", rw="randwrite", block_bytes=4 * _KIB, depth=32, read_percent=0)
RAND_WRITE_128 = Workload(name="randwrite-4k-qd128", rw="randwrite", block_bytes=4 * _KIB, depth=128, read_percent=0)
READ_64K = Workload(name="read-64k-qd8", rw="read", block_bytes=64 * _KIB, depth=8)
READ_1M = Workload(name="read-1m-qd8", rw="read", block_bytes=_MIB, depth=8)
WRITE_64K = Workload(name="write-64k-qd8", rw="write", block_bytes=64 * _KIB, depth=8, read_percent=0)
WRITE_1M = Workload(name="write-1m-qd8", rw="write", block_bytes=_MIB, depth=8, read_percent=0)
MIXED = Workload(name="mixed-70/30-4k-qd32", rw="randrw", block_bytes=4 * _KIB, depth=32, read_percent=70)
FSYNC = Workload(name="write+fsync-4k-qd1", rw="randwrite", block_bytes=4 * _KIB, depth=1, read_percent=0, fsync=1)

_QUICK = (RAND_READ_1, RAND_READ_32, READ_1M)
_QUICK_WRITES = (RAND_WRITE_1, RAND_WRITE_32)
_STANDARD = (RAND_READ_1, RAND_READ_32, READ_64K, READ_1M)
_STANDARD_WRITES = (RAND_WRITE_1, RAND_WRITE_32, WRITE_1M, MIXED, FSYNC)
_FULL = (RAND_READ_1, RAND_READ_32, RAND_READ_128, READ_64K, READ_1M)
_FULL_WRITES = (RAND_WRITE_1, RAND_WRITE_32, RAND_WRITE_128, WRITE_64K, WRITE_1M, MIXED, FSYNC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long a benchmark takes: seconds of one run, of its warm-up before, and how often all is done."""

    name: str
    run_s: float
    warm_up_s: float
    rounds: int
    reads: tuple[Workload, ...]
    writes: tuple[Workload, ...]

    def workloads(self, *, destroy_data: bool) -> tuple[Workload, ...]:
        """Return what is asked of a volume that may, or may not, be written to."""
        return self.reads + (self.writes if destroy_data else ())

    def total_s(self, n_places: int, *, destroy_data: bool) -> float:
        """Return about how long it takes for so many accesses (on each level and device)."""
        n_runs = self.rounds * len(self.workloads(destroy_data=destroy_data)) * n_places
        return n_runs * (self.run_s + self.warm_up_s + OVERHEAD_S)


#: What starts and ends with each run: the storage daemon or the hot-plug, and fio.
OVERHEAD_S = 0.35
QUICK = Length(name="quick", run_s=0.5, warm_up_s=0.1, rounds=8, reads=_QUICK, writes=_QUICK_WRITES)
STANDARD = Length(name="standard", run_s=2.0, warm_up_s=0.5, rounds=8, reads=_STANDARD, writes=_STANDARD_WRITES)
FULL = Length(name="full", run_s=10.0, warm_up_s=2.0, rounds=10, reads=_FULL, writes=_FULL_WRITES)


def job_lines(workload: Workload, *, run_s: float, warm_up_s: float, span_bytes: int, seed: int) -> list[str]:
    """Return fio's options for a workload, one ``name=value`` each, without those that say where the disk is."""
    lines = {
        "rw": workload.rw,
        "bs": str(workload.block_bytes),
        "iodepth": str(workload.depth),
        "direct": "1",
        "time_based": "1",
        "runtime": f"{run_s * 1000:.0f}ms",
        "ramp_time": f"{warm_up_s * 1000:.0f}ms",
        "size": str(span_bytes),
        "norandommap": "1",
        "randseed": str(seed),
        "unified_rw_reporting": "1",
        "percentile_list": ":".join(str(float(text)) for text in PERCENTILES.values()),
    }
    if workload.rw == "randrw":
        lines["rwmixread"] = str(workload.read_percent)
    if workload.fsync:
        lines["fsync"] = str(workload.fsync)
    return [f"{name}={value}" for name, value in lines.items()]


#: What of a job file is taken; the rest of it is hvext's to say (where the disk is, how long, how often).
_TAKEN = ("rw", "bs", "iodepth", "rwmixread", "fsync")
_SHORT = {"readwrite": "rw", "blocksize": "bs"}
_OURS = (
    *("filename", "directory", "ioengine", "runtime", "time_based", "ramp_time", "size", "direct", "numjobs"),
    *("group_reporting", "unified_rw_reporting", "norandommap", "randrepeat", "randseed", "thread", "name", "io_size"),
    *("stonewall", "loops", "uri"),
)


def parse_jobs(text: str, where: str) -> tuple[Workload, ...]:
    """Return the workloads of a fio job file, one for each of its sections but ``[global]``.

    What is taken are rw, bs, iodepth, rwmixread and fsync; where the disk is and how long it is asked, hvext says.
    Raises InputError for a file that cannot be read, and for any other option: it would not be measured as written.
    """
    parser = configparser.ConfigParser(allow_no_value=True, interpolation=None, delimiters=("=",), default_section="")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise InputError(f"{where} is not a fio job file: {' '.join(str(error).split())}") from error
    common = _named(parser["global"]) if parser.has_section("global") else {}
    names = [name for name in parser.sections() if name != "global"]
    if not names:
        raise InputError(f"{where} has no job", hint="a section in brackets, with rw=, bs= and iodepth=")
    return tuple(_workload(name, {**common, **_named(parser[name])}, where) for name in names)


def _named(section: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the options of a section by the shorter of the names that fio has for them."""
    return {_SHORT.get(key, key): value for key, value in section.items()}


def _workload(name: str, values: Mapping[str, str | None], where: str) -> Workload:
    unknown = [key for key in values if key not in _TAKEN and key not in _OURS]
    if unknown:
        raise InputError(
            f"{where}: job {name!r} has {unknown[0]}=, which hvext does not hand on to fio",
            hint=f"it takes {', '.join(_TAKEN)}",
        )
    rw = values.get("rw") or "read"
    if rw not in ("read", "write", "randread", "randwrite", "randrw"):
        raise InputError(f"{where}: job {name!r} has rw={rw}: read, write, randread, randwrite or randrw")
    block = size_bytes(str(values.get("bs") or "4k"), f"{where}: job {name!r}: bs")
    if block % _SECTOR or block > _LARGEST:
        raise InputError(f"{where}: job {name!r}: bs must be a multiple of {_SECTOR} bytes, up to 16M; got {block}")
    mix = _number(values.get("rwmixread"), 50, f"{where}: job {name!r}: rwmixread")
    share = {"read": 100, "randread": 100, "randrw": mix}.get(rw, 0)
    return Workload(
        name=name,
        rw=rw,
        block_bytes=block,
        depth=_number(values.get("iodepth"), 1, f"{where}: job {name!r}: iodepth", least=1),
        read_percent=share,
        fsync=_number(values.get("fsync"), 0, f"{where}: job {name!r}: fsync"),
    )


def _number(text: str | None, default: int, what: str, least: int = 0) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise InputError(f"{what} must be a whole number from {least}; got {text!r}")
    return int(text)


def size_bytes(text: str, what: str) -> int:
    """Return the bytes of a size with a binary suffix (``4k``, ``1M``, ``2G``); raises InputError."""
    units = {"": 1, "k": _KIB, "m": _MIB, "g": 1 << 30, "t": 1 << 40}
    number, unit = text.lower().removesuffix("ib").removesuffix("b"), ""
    if number[-1:] in ("k", "m", "g", "t"):
        number, unit = number[:-1], number[-1]
    if not number.isascii() or not number.isdigit() or int(number) == 0:
        raise InputError(f"{what} must be a size such as 4k or 1M; got {text!r}")
    return int(number) * units[unit]


def order(names: Sequence[str], turn: int) -> list[str]:
    """Return in which order accesses have their turn in a round: each comes first, second, … equally often."""
    shift = turn % len(names)
    rotated = [*names[shift:], *names[:shift]]
    return rotated if (turn // len(names)) % 2 == 0 else rotated[::-1]
