"""All workloads of a level taken together, and when a difference counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean
from typing import Any

from hvext.bench import statistics
from hvext.bench.statistics import Difference, Estimate, Samples, Where

#: A smaller difference counts for nothing: the same server, started twice, differs by one or two per cent for as long
#: as both run (where its memory lies, on which core it settled), which no number of rounds averages out.
MIN_EFFECT = 1.03
#: What p has to be below for a recommendation. With 0.05, one benchmark in twenty of two identical backends would
#: recommend one of them, and CPU adds its own mistakes. `DECISIVE_ROUNDS` is the least that reaches it.
DECISION_ALPHA = 0.02
DECISIVE_ROUNDS = 7
#: Processor time decides only where it differs clearly: it does not make a guest wait.
MIN_CPU_EFFECT = 1.15
CPU_ALPHA = 0.01
#: "No measurable difference" is certain when the interval lies within this: a difference of 5 % would have shown.
SAME = 1.05


class Finding(StrEnum):
    """What one comparison says of an access against the baseline."""

    FASTER = "faster"
    SLOWER = "slower"
    UNCLEAR = "no difference shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall:
    """An access against the baseline over all workloads of a level; ``samples`` are one log ratio for each round.

    ``speed`` is the ratio of requests per second, ``cpu`` that of processor time per request (None where it was not
    measured); ``speed_holm`` and ``cpu_holm`` are their p, corrected for the number of candidates.
    """

    access: str
    workloads: int
    rounds: int
    speed: Estimate
    cpu: Estimate | None
    samples: tuple[float, ...]
    speed_holm: float = 1.0
    cpu_holm: float = 1.0

    @property
    def differs(self) -> bool:
        """Whether the difference in speed carries a recommendation."""
        return self.speed_holm < statistics.ALPHA and differs(self.speed, MIN_EFFECT, DECISION_ALPHA)

    @property
    def cpu_differs(self) -> bool:
        """Whether the difference in processor time carries one."""
        return (
            self.cpu is not None and self.cpu_holm < statistics.ALPHA and differs(self.cpu, MIN_CPU_EFFECT, CPU_ALPHA)
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping."""
        return {
            "access": self.access,
            "workloads": self.workloads,
            "rounds": self.rounds,
            "speed": self.speed.to_json(),
            "cpu": self.cpu and self.cpu.to_json(),
            "speed_p_holm": self.speed_holm,
            "cpu_p_holm": self.cpu_holm,
        }


def finding(difference: Difference) -> Finding:
    """Return what a comparison says by itself, corrected for the others beside it."""
    if difference.p_holm >= statistics.ALPHA or not differs(difference.speed, MIN_EFFECT):
        return Finding.UNCLEAR
    return Finding.FASTER if difference.speed.value > 1 else Finding.SLOWER


def differs(ratio: Estimate, effect: float, alpha: float = statistics.ALPHA) -> bool:
    """Whether a ratio counts: significant, and large enough."""
    return ratio.p < alpha and ratio.excludes(1) and not 1 / effect < ratio.value < effect


def workload_differences(samples: Samples, places: Sequence[Where], base: str, access: str) -> list[Difference]:
    """Return an access's comparisons of one level, corrected for their number."""
    every = (
        statistics.difference(samples, where, workload, base, access)
        for where in places
        for workload in samples.workloads(where)
    )
    found = [item for item in every if item is not None]
    values = statistics.holm([item.speed.p for item in found])
    return [replace(item, p_holm=p) for item, p in zip(found, values, strict=True)]


def overall(samples: Samples, places: Sequence[Where], base: str, access: str) -> Overall | None:
    """Return the comparison over every workload that both were measured in; None without a round that has them all."""
    pairs = [
        (samples.series(where, workload.name, base), samples.series(where, workload.name, access))
        for where in places
        for workload in samples.workloads(where)
    ]
    cells = [(a, b) for a, b in pairs if a and b]
    rounds = sorted(set.intersection(*({*a} & {*b} for a, b in cells))) if cells else []
    if not rounds:
        return None

    def log_ratios(of: str) -> list[float] | None:
        """Return each round's mean over the workloads; None where one was not measured."""
        means = []
        for number in rounds:
            values = [(getattr(a[number], of), getattr(b[number], of)) for a, b in cells]
            if not all(x and y for x, y in values):
                return None
            means.append(fmean(math.log(y / x) for x, y in values))
        return means

    times, cpu = log_ratios("us_per_io"), log_ratios("cpu_us_per_io")
    speeds = [-time for time in times or ()]
    return Overall(
        access=access,
        workloads=len(cells),
        rounds=len(rounds),
        speed=statistics.paired(speeds).mapped(math.exp),
        cpu=None if cpu is None else statistics.paired(cpu).mapped(math.exp),
        samples=tuple(speeds),
    )


def corrected(compared: Sequence[Overall]) -> list[Overall]:
    """Return them with their p corrected for their number."""
    speeds = statistics.holm([item.speed.p for item in compared])
    cpus = statistics.holm([1.0 if item.cpu is None else item.cpu.p for item in compared])
    return [replace(item, speed_holm=p, cpu_holm=q) for item, p, q in zip(compared, speeds, cpus, strict=True)]
