"""What rounds of measuring say of two accesses: how far apart they are, how sure that is, what more would tell.

All accesses are run one after the other in each round, so what slows a whole round slows them alike: samples are
paired by round, as logarithms of ratios. Noise of storage has heavy tails (one stalled round in ten is usual), so all
here is by ranks: the estimate is the median of the means of all pairs of rounds (Hodges and Lehmann), the test is the
permutation test that flips the signs of the paired samples (Wilcoxon's: exact), and the interval has what that test
does not reject. One stalled round moves none of them much, and they never disagree: the interval excludes "the same"
exactly when p is below 0.05.

Source: Hollander, Wolfe, Chicken: Nonparametric Statistical Methods, 3rd edition, 3.1-3.3 and 4.1-4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations_with_replacement, product
from statistics import median, stdev
from typing import Any

from hvext.bench.extra import bench_extra
from hvext.bench.result import Level, Measure, Result, Run, Workload
from hvext.errors import InputError

#: What counts as significant; intervals are of 1 minus this.
ALPHA = 0.05
#: With fewer rounds no permutation test reaches `ALPHA`: 2 of the 2^n ways to flip signs are as extreme as the sample.
MIN_ROUNDS = 6
#: The difference that advice is about, and the chance to see it.
ADVISED_EFFECT = 0.05
POWER = 0.8
#: How many samples Wilcoxon's test takes for what Student's needs, where noise is normal: 3 / pi.
EFFICIENCY = 3 / math.pi

#: What one access did in one workload, by round.
Series = Mapping[int, Measure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval (None with fewer than `MIN_ROUNDS`), and p of "there is no difference"."""

    value: float
    low: float | None
    high: float | None
    p: float

    def excludes(self, value: float) -> bool:
        """Whether the interval is there and lies on one side of a value."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    def within(self, low: float, high: float) -> bool:
        """Whether the whole interval lies between two values."""
        return self.low is not None and self.high is not None and low < self.low and self.high < high

    def mapped(self, function: Callable[[float], float]) -> Estimate:
        """Return it through a function that keeps or turns the order, such as exp."""
        if self.low is None or self.high is None:
            return replace(self, value=function(self.value))
        low, high = sorted((function(self.low), function(self.high)))
        return replace(self, value=function(self.value), low=low, high=high)

    def to_json(self) -> dict[str, float | None]:
        """Return it as a JSON-able mapping."""
        return {"value": self.value, "low": self.low, "high": self.high, "p": self.p}


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A level, and the device there."""

    level: Level
    device: str

    @property
    def words(self) -> str:
        """For people: "in a guest, virtio-blk-pci"."""
        where = "in a guest" if self.level is Level.GUEST else "on the host"
        return f"{where}, {self.device}" if self.level is Level.GUEST and self.device else where


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How an access differs from the baseline in one workload at one place.

    ``speed`` is the ratio of requests per second, above 1 where the access is faster; ``p50`` the ratio of the middle
    latency, below 1 where it is faster, and ``difference_us`` the time of a request less the baseline's, in
    microseconds: both only at depth 1. ``cpu`` is the ratio of processor time for a request. ``p_holm`` is p of the
    speed, corrected for the number of comparisons it stands among. ``rounds_needed`` would show a difference of 5 %.
    """

    where: Where
    workload: str
    baseline: str
    access: str
    rounds: int
    baseline_us: float
    access_us: float
    speed: Estimate
    p50: Estimate | None = None
    difference_us: Estimate | None = None
    cpu: Estimate | None = None
    rounds_needed: int | None = None
    p_holm: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping."""
        estimates = {name: getattr(self, name) for name in ("speed", "p50", "difference_us", "cpu")}
        return {
            "level": str(self.where.level),
            "device": self.where.device,
            "workload": self.workload,
            "baseline": self.baseline,
            "access": self.access,
            "rounds": self.rounds,
            "baseline_us_per_io": self.baseline_us,
            "access_us_per_io": self.access_us,
            **{name: estimate and estimate.to_json() for name, estimate in estimates.items()},
            "rounds_needed": self.rounds_needed,
            "p_holm": self.p_holm,
        }


class Samples:
    """A result's measures, by place, workload, access and round."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self._cells: dict[tuple[Where, str, str], dict[int, Run]] = {}
        for run in result.runs:
            cell = (Where(level=run.level, device=run.device), run.workload, run.access)
            self._cells.setdefault(cell, {})[run.round] = run
        self._measures = {
            cell: {number: run.measure() for number, run in runs.items()} for cell, runs in self._cells.items()
        }

    @property
    def places(self) -> tuple[Where, ...]:
        """Where was measured, in the order of the runs."""
        return tuple(dict.fromkeys(place for place, _, _ in self._cells))

    @property
    def cells(self) -> tuple[tuple[Where, str, str], ...]:
        """What was measured: place, workload and access, in the order of the runs."""
        return tuple(self._cells)

    def series(self, where: Where, workload: str, access: str) -> Series:
        """Return what an access did; empty where it was not measured."""
        return self._measures.get((where, workload, access), {})

    def runs(self, where: Where, workload: str, access: str) -> tuple[Run, ...]:
        """Return the runs of that, by round."""
        return tuple(run for _, run in sorted(self._cells.get((where, workload, access), {}).items()))

    def workloads(self, where: Where) -> tuple[Workload, ...]:
        """Return the workloads that were run at a place."""
        there = {workload for place, workload, _ in self._cells if place == where}
        return tuple(workload for workload in self.result.workloads if workload.name in there)


def paired(samples: Sequence[float]) -> Estimate:
    """Return how far paired differences are from 0; raises InputError without any."""
    if not samples:
        raise InputError("there is no round in which both accesses were measured")
    pairs = sorted((a + b) / 2 for a, b in combinations_with_replacement(samples, 2))
    low, high = _cut(pairs, _signed_rank_cut(len(samples)))
    return Estimate(value=median(pairs), low=low, high=high, p=_signed_rank_p(samples))


def unpaired(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Return how far ``after`` is above ``before``, whose samples belong to nothing in common; raises InputError.

    The same by ranks: the median of all differences, and the permutation test of Mann and Whitney.
    """
    if not before or not after:
        raise InputError("one of the two was not measured")
    with bench_extra():
        from scipy import stats
    differences = sorted(b - a for a, b in product(before, after))
    low, high = _cut(differences, _rank_sum_cut(len(before), len(after)))
    p = stats.mannwhitneyu(before, after, method="exact" if len(differences) < 2500 else "auto").pvalue
    return Estimate(value=median(differences), low=low, high=high, p=float(p))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number: the chance that any of them is wrong stays at `ALPHA` (Holm 1979)."""
    corrected, highest = [1.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, values[index] * (len(values) - rank)))
        corrected[index] = highest
    return corrected


def rounds_needed(samples: Sequence[float], *, alpha: float = ALPHA) -> int | None:
    """Return how many rounds of such noise show a difference of 5 % with a chance of 80 %; None from a single one."""
    count = len(samples)
    if count < 2:
        return None
    with bench_extra():
        from scipy.special import stdtrit
    found = paired(samples)
    if found.low is None or found.high is None:
        spread = stdev(samples)
    else:  # from the interval, which one stalled round does not widen as it widens the standard deviation
        spread = (found.high - found.low) / 2 * math.sqrt(count) / stdtrit(count - 1, 1 - ALPHA / 2)
    rounds = float(MIN_ROUNDS)
    for _ in range(20):  # the quantiles depend on the number that is sought: this settles within a few steps
        quantiles = stdtrit(rounds - 1, 1 - alpha / 2) + stdtrit(rounds - 1, POWER)
        rounds = max(float(MIN_ROUNDS), (quantiles * spread / math.log1p(ADVISED_EFFECT)) ** 2 / EFFICIENCY)
    return math.ceil(rounds)


def difference(samples: Samples, where: Where, workload: Workload, baseline: str, access: str) -> Difference | None:
    """Return how an access differs from the baseline in a workload; None without a round that has both."""
    base, other = samples.series(where, workload.name, baseline), samples.series(where, workload.name, access)
    rounds = sorted(base.keys() & other.keys())
    if not rounds:
        return None
    pairs = [(base[number], other[number]) for number in rounds]
    speeds = [math.log(a.us_per_io / b.us_per_io) for a, b in pairs]
    p50s = [(a.latency_us.get("p50"), b.latency_us.get("p50")) for a, b in pairs] if workload.by_latency else []
    return Difference(
        where=where,
        workload=workload.name,
        baseline=baseline,
        access=access,
        rounds=len(rounds),
        baseline_us=median(a.us_per_io for a, _ in pairs),
        access_us=median(b.us_per_io for _, b in pairs),
        speed=paired(speeds).mapped(math.exp),
        p50=ratio([(b, a) for a, b in p50s]),
        difference_us=paired([b.us_per_io - a.us_per_io for a, b in pairs]) if workload.by_latency else None,
        cpu=ratio([(b.cpu_us_per_io, a.cpu_us_per_io) for a, b in pairs]),
        rounds_needed=rounds_needed(speeds),
    )


def ratio(pairs: Sequence[tuple[float | None, float | None]]) -> Estimate | None:
    """Return by which factor the first of each pair is above the second; None where one is missing or 0."""
    known = [math.log(a / b) for a, b in pairs if a and b]
    return paired(known).mapped(math.exp) if known and len(known) == len(pairs) else None


def _cut(ordered: Sequence[float], cut: int) -> tuple[float | None, float | None]:
    """Return what is left of sorted values when so many are cut off at both ends, less one: a rank interval's ends."""
    return (None, None) if cut == 0 else (ordered[cut - 1], ordered[-cut])


@cache
def _signed_rank_cut(count: int) -> int:
    """Return how many of the sums of signed ranks are in a tail of 2.5 %: each rank is in or out with chance 1/2."""
    chances = [1.0]
    for rank in range(1, count + 1):
        longer = [*chances, *[0.0] * rank]
        for total, chance in enumerate(chances):
            longer[total + rank] += chance
        chances = [chance / 2 for chance in longer]
    return _tail(chances)


@cache
def _rank_sum_cut(before: int, after: int) -> int:
    """Return how many sums of ranks are in a tail of 2.5 %: the Gaussian binomial counts the orders for each sum."""
    ways = [1] + [0] * (before * after)
    for part in range(1, before + 1):
        for total in range(len(ways) - 1, after + part - 1, -1):
            ways[total] -= ways[total - after - part]
        for total in range(part, len(ways)):
            ways[total] += ways[total - part]
    every = sum(ways)
    return _tail([way / every for way in ways])


def _tail(chances: Sequence[float]) -> int:
    below = 0.0
    for count, chance in enumerate(chances):
        below += chance
        if below > ALPHA / 2 + 1e-12:
            return count
    return 0


def _signed_rank_p(samples: Sequence[float]) -> float:
    if not any(samples):
        return 1.0
    with bench_extra():
        from scipy import stats
    return float(stats.wilcoxon(samples).pvalue)
