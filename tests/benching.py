"""Benchmarks made up from real fio output: the same requests, slower or faster, with the noise that storage has."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hvext.bench.result import Level, MeasuredAccess, Result, Run, Workload

WORKLOADS = (
    Workload(name="randread-4k-1", rw="randread", block_bytes=4096, depth=1),
    Workload(name="randread-4k-32", rw="randread", block_bytes=4096, depth=32),
    Workload(name="mixed-4k-32", rw="randrw", block_bytes=4096, depth=32, read_percent=70),
    Workload(name="read-1m-8", rw="read", block_bytes=1 << 20, depth=8),
    Workload(name="fsync-4k-1", rw="randwrite", block_bytes=4096, depth=1, fsync=1),
)
BLOCK = MeasuredAccess(name="block", kind="kernelspace", words="/dev/loop0", options={"aio": "native"})
NBD = MeasuredAccess(name="nbd", kind="userspace", words="nbd+unix:///data?socket=/run/nbd.sock")
VHOST = MeasuredAccess(name="vhost-user", kind="made", words="vhost-user-blk of qemu-storage-daemon")
HOST = {
    "cpu": "Example CPU 3000",
    "cores": "2",
    "kernel": "Linux 6.12.1",
    "qemu": "10.0.2",
    "acceleration": "tcg",
    "fio": "fio-3.33",
}

#: By which factor a request of (access, workload) takes longer than in the real output, and by how many microseconds.
Change = Callable[[str, str], tuple[float, float]]


@cache
def real_outputs() -> Mapping[str, Mapping[str, Any]]:
    """Return real fio outputs by server and workload (fio 3.33; QEMU's storage daemon and nbdkit)."""
    found: Mapping[str, Mapping[str, Any]] = json.loads(
        Path(__file__).with_name("unit").joinpath("data/fio.json").read_text()
    )
    return found


def chances(seed: int) -> random.Random:
    """Return random numbers that are the same every time."""
    return random.Random(seed)  # noqa: S311


def fio_output(workload: Workload, factor: float, *, more_us: float = 0, bins: bool = False) -> dict[str, Any]:
    """Return fio's output as if each request had taken longer."""
    real = real_outputs()["qsd"][workload.name]
    section = real["jobs"][0]["mixed"]
    us_per_io = 1e6 / section["iops"] * factor + more_us / workload.depth
    slower = us_per_io * section["iops"] / 1e6
    clat = section["clat_ns"]
    changed = {
        "mean": clat["mean"] * slower,
        "percentile": {key: int(value * factor + more_us * 1000) for key, value in clat["percentile"].items()},
    }
    if bins:
        changed["bins"] = {str(int(int(ns) * factor + more_us * 1000)): count for ns, count in clat["bins"].items()}
    mixed = {
        **section,
        "iops": section["iops"] / slower,
        "bw_bytes": section["bw_bytes"] / slower,
        "total_ios": max(1, int(section["total_ios"] / slower)),
        "clat_ns": changed,
    }
    return {**real, "jobs": [{**real["jobs"][0], "mixed": mixed}]}


def storage_noise(chance: random.Random, scale: float = 0.03) -> float:
    """Return the factor of one run: heavy tails, and one run in twelve stalls."""
    factor = math.exp(scale * chance.gauss() / math.sqrt(chance.gammavariate(1.5, 1 / 1.5)))
    return factor * chance.uniform(1.3, 3) if chance.random() < 1 / 12 else factor


def benchmark(
    chance: random.Random,
    *,
    change: Change = lambda _access, _workload: (1, 0),
    cpu: Mapping[str, float] | None = None,
    rounds: int = 8,
    accesses: Sequence[MeasuredAccess] = (BLOCK, NBD),
    workloads: Sequence[Workload] = WORKLOADS,
    places: Sequence[tuple[Level, str]] = ((Level.HOST, ""),),
    noise: Callable[[random.Random], float] = storage_noise,
    bins: bool = False,
) -> Result:
    """Return a benchmark: each round and each run has its noise; ``cpu`` has each access's microseconds per request."""
    runs = []
    for number in range(rounds):
        drift = math.exp(chance.gauss(0, 0.1))
        for level, device in places:
            for workload in workloads:
                for turn, access in enumerate(accesses):
                    factor, more_us = change(access.name, workload.name)
                    slower = factor * drift * noise(chance)
                    fio = fio_output(workload, slower, more_us=more_us, bins=bins)
                    cpu_s = {}
                    if cpu is not None:
                        each = cpu[access.name] * noise(chance) * fio["jobs"][0]["mixed"]["total_ios"] / 1e6
                        cpu_s = {"machine": each + 0.5, "load": 0.5, "qemu": each * 0.7}
                    runs.append(
                        Run(
                            round=number,
                            order=(turn + number) % len(accesses),
                            level=level,
                            device=device,
                            access=access.name,
                            workload=workload.name,
                            raw=fio,
                            cpu_s=cpu_s,
                        )
                    )
    return Result(
        created="2026-01-02T03:04:05+00:00",
        hvext="0.1.0",
        host=HOST,
        volume={"provider": "sample", "name": "data", "size_bytes": 1 << 30, "span_bytes": 1 << 28},
        settings={"rounds": rounds, "run_s": 2, "warm_up_s": 1},
        accesses=tuple(accesses),
        workloads=tuple(workloads),
        runs=tuple(runs),
    )
