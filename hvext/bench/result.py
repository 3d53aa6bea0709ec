"""What a benchmark measured, as it is kept in a file: every run's raw fio output, with the host it ran on.

::

    Result
     ├── host, volume, settings      facts, in words
     ├── accesses                    what was compared: the block path, each URI, what was made from them
     ├── workloads                   what was asked of each
     └── runs                        one for each round, level, device, access and workload
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self, cast

from hvext.errors import InputError

FORMAT = 1
#: Under this name is what `qemu-img bench` found, in the output of a run.
QEMU_IMG = "qemu-img bench"
#: The percentiles of latency that are asked of fio, as its output names them.
PERCENTILES = {"p50": "50.000000", "p99": "99.000000", "p99.9": "99.900000"}


class Level(StrEnum):
    """Where the load comes from: a program on the host, through QEMU's block layer; or one in a guest."""

    HOST = "host"
    GUEST = "guest"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredAccess:
    """One way to the volume. ``kind`` is userspace, kernelspace or made (from the block path, for comparison);
    or option, where disk options were measured.

    ``words`` say where it is, without secrets; ``options`` are the disk options it was opened with.
    """

    name: str
    kind: str
    words: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked of a disk, in fio's terms; ``fsync`` after so many writes, 0 for never."""

    name: str
    rw: str
    block_bytes: int
    depth: int
    read_percent: int = 100
    fsync: int = 0
    job: str = ""

    @property
    def writes(self) -> bool:
        """Whether it changes the volume."""
        return self.rw not in ("read", "randread")

    @property
    def by_latency(self) -> bool:
        """Whether its figure is the time of one request: nothing else is under way meanwhile."""
        return self.depth == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What one run says. Latencies are of whole requests in microseconds, by name of the percentile and ``mean``.

    ``cpu_us_per_io`` is the processor time that QEMU (or the storage daemon), the storage's servers on this host and
    the kernel took for one request, without the program that makes the load; None where it was not measured.
    ``qemu_cpu_us_per_io`` is QEMU's part of it.
    """

    iops: float
    bytes_per_s: float
    latency_us: Mapping[str, float]
    ios: int
    cpu_us_per_io: float | None = None
    qemu_cpu_us_per_io: float | None = None

    @property
    def us_per_io(self) -> float:
        """The time that one request takes of a run, in microseconds: what accesses are compared by."""
        return 1e6 / self.iops


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. ``raw`` is the program's own output, ``cpu_s`` processor seconds by ``qemu``, ``machine`` and ``load``.

    In a guest that program is fio; on the host it is qemu-img bench, which tells count and seconds and no percentiles.

    ``round`` and ``order`` tell when it was: all accesses of a workload are run one after the other in each round.
    """

    round: int
    order: int
    level: Level
    device: str
    access: str
    workload: str
    raw: Mapping[str, Any]
    cpu_s: Mapping[str, float] = field(default_factory=dict)

    def measure(self) -> Measure:
        """Return what it says; raises InputError when the output says nothing."""
        found = _section(self.raw)
        ios = int(found["total_ios"])
        if not ios or not found["iops"]:
            raise InputError(f"nothing was done in the run of {self.workload} over {self.access}")
        cpu = self.cpu_s.get("machine")
        rest_s = None if cpu is None else max(0.0, cpu - self.cpu_s.get("load", 0.0))
        qemu_s = self.cpu_s.get("qemu")
        return Measure(
            iops=float(found["iops"]),
            bytes_per_s=float(found["bw_bytes"]),
            latency_us=_latencies(found),
            ios=ios,
            cpu_us_per_io=None if rest_s is None else rest_s * 1e6 / ios,
            qemu_cpu_us_per_io=None if qemu_s is None else qemu_s * 1e6 / ios,
        )

    def latency_bins(self) -> dict[int, int]:
        """Return how many requests took how long, by nanoseconds."""
        bins = _section(self.raw).get("clat_ns", {}).get("bins", {})
        return {int(ns): int(count) for ns, count in bins.items() if count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A whole benchmark. ``created`` is ISO 8601; ``volume`` has provider, name, ``size_bytes`` and ``span_bytes``."""

    created: str
    hvext: str
    host: Mapping[str, str]
    volume: Mapping[str, Any]
    settings: Mapping[str, Any]
    accesses: tuple[MeasuredAccess, ...]
    workloads: tuple[Workload, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it for a file; `from_json` reads it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what `to_json` wrote; raises InputError when this is something else."""
        try:
            fields = dict(cast("Mapping[str, Any]", value))
            if fields.pop("format") != FORMAT:
                raise InputError(f"this benchmark has another format than {FORMAT}", hint="use the hvext that wrote it")
            fields["accesses"] = tuple(MeasuredAccess(**item) for item in fields["accesses"])
            fields["workloads"] = tuple(Workload(**item) for item in fields["workloads"])
            fields["runs"] = tuple(Run(**{**item, "level": Level(item["level"])}) for item in fields["runs"])
            fields["notes"] = tuple(fields.get("notes", ()))
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"this is not the result of a benchmark: {why}", hint="hvext bench --out writes one"
            ) from error

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a file's text; raises InputError."""
        try:
            return cls.from_json(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise InputError("this is not the result of a benchmark: it is no JSON of hvext bench") from error


def _section(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is told of all requests together, in fio's words; its jobs run with ``unified_rw_reporting``."""
    if QEMU_IMG in raw:
        return _of_qemu_img(raw[QEMU_IMG])
    jobs: Sequence[Mapping[str, Any]] = raw.get("jobs", ())
    if not jobs:
        raise InputError("the output of a run has no job")
    job = jobs[0]
    for name in ("mixed", "read", "write"):
        if job.get(name, {}).get("total_ios"):
            return cast("Mapping[str, Any]", job[name])
    raise InputError(f"fio did nothing: error {job.get('error')}")


def _of_qemu_img(found: Mapping[str, Any]) -> Mapping[str, Any]:
    iops = found["count"] / found["seconds"] if found["seconds"] else 0.0
    # So many are under way all the time: one takes as long as that many come after it.
    mean_ns = found["depth"] / iops * 1e9 if iops else 0.0
    return {
        "total_ios": found["count"],
        "iops": iops,
        "bw_bytes": iops * found["block_bytes"],
        "clat_ns": {"mean": mean_ns},
    }


def _latencies(found: Mapping[str, Any]) -> dict[str, float]:
    clat = found.get("clat_ns", {})
    percentiles = clat.get("percentile", {})
    values = {name: percentiles.get(key) for name, key in PERCENTILES.items()}
    return {"mean": clat.get("mean", 0.0) / 1000} | {
        name: value / 1000 for name, value in values.items() if value is not None
    }
