"""Two benchmarks of the same accesses, before and after something was changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from hvext.bench import statistics
from hvext.bench.empty import data_share, emptiness
from hvext.bench.figures import figure_text
from hvext.bench.overall import MIN_EFFECT, Finding, differs
from hvext.bench.result import Result
from hvext.bench.statistics import Estimate, Samples, Where
from hvext.bench.words import change_text, count_words
from hvext.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One access in one workload; ``speed`` is the ratio of requests per second, above 1 where it became faster.

    ``before`` and ``after`` are the figures in words; ``p_holm`` is p, corrected for the number of changes.
    """

    where: Where
    workload: str
    access: str
    before: str
    after: str
    speed: Estimate
    p_holm: float

    @property
    def finding(self) -> Finding:
        """Whether it became faster or slower."""
        return _finding(self.speed, self.p_holm)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping."""
        return {
            "level": str(self.where.level),
            "device": self.where.device,
            "workload": self.workload,
            "access": self.access,
            "before": self.before,
            "after": self.after,
            "speed": self.speed.to_json(),
            "p_holm": self.p_holm,
            "finding": str(self.finding),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """One access at one place, over all workloads."""

    where: Where
    access: str
    workloads: int
    rounds: tuple[int, int]
    speed: Estimate
    p_holm: float

    @property
    def finding(self) -> Finding:
        """Whether it became faster or slower."""
        return _finding(self.speed, self.p_holm)

    @property
    def words(self) -> str:
        """A sentence."""
        what = f"became {self.finding}" if self.finding is not Finding.UNCLEAR else "shows no difference"
        if self.speed.low is None:
            what += f" (fewer than {statistics.MIN_ROUNDS} rounds show little)"
        return (
            f"{self.access} {what} {self.where.words}: {change_text(self.speed)}, p = {self.p_holm:.2g}, "
            f"{count_words(self.workloads, 'workload')}, {self.rounds[0]} and {self.rounds[1]} rounds."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping."""
        return {
            "level": str(self.where.level),
            "device": self.where.device,
            "access": self.access,
            "workloads": self.workloads,
            "rounds": list(self.rounds),
            "speed": self.speed.to_json(),
            "p_holm": self.p_holm,
            "finding": str(self.finding),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changed. ``hosts`` says in words what else differs; ``missing`` what only one of the two measured.

    ``empty`` says of which of the two the figures are the reading of nothing.
    """

    hosts: tuple[str, ...]
    changes: tuple[Change, ...]
    overall: tuple[Total, ...]
    missing: tuple[str, ...]
    empty: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping."""
        return {
            "hosts": list(self.hosts),
            "changes": [change.to_json() for change in self.changes],
            "overall": [total.to_json() for total in self.overall],
            "missing": list(self.missing),
            "empty": list(self.empty),
        }


def compare(before: Result, after: Result) -> Comparison:
    """Return what changed between two benchmarks; raises InputError where they have nothing in common."""
    old, new = Samples(before), Samples(after)
    names = {access.name for access in before.accesses} & {access.name for access in after.accesses}
    cells = [cell for cell in old.cells if cell in new.cells and cell[2] in names and _same_workload(cell[1], old, new)]
    if not cells:
        raise InputError("the two benchmarks have nothing in common", hint="compare two of the same accesses")
    changes = [_change(old, new, *cell) for cell in cells]
    corrected = statistics.holm([change.speed.p for change in changes])
    totals = [
        _total(old, new, where, access, [cell[1] for cell in cells if (cell[0], cell[2]) == (where, access)])
        for where, access in dict.fromkeys((where, access) for where, _, access in cells)
    ]
    total_ps = statistics.holm([total.speed.p for total in totals])
    return Comparison(
        hosts=_host_differences(before.host, after.host),
        changes=tuple(replace(change, p_holm=p) for change, p in zip(changes, corrected, strict=True)),
        overall=tuple(replace(total, p_holm=p) for total, p in zip(totals, total_ps, strict=True)),
        missing=_missing(old, new, cells),
        empty=tuple(
            f"{which}: {words}"
            for which, result in (("before", before), ("after", after))
            if (words := emptiness(data_share(result)))
        ),
    )


def _finding(speed: Estimate, p: float) -> Finding:
    if not differs(replace(speed, p=p), MIN_EFFECT):
        return Finding.UNCLEAR
    return Finding.FASTER if speed.value > 1 else Finding.SLOWER


def _same_workload(name: str, old: Samples, new: Samples) -> bool:
    """Whether both asked the same under that name."""
    asked = [next((item for item in samples.result.workloads if item.name == name), None) for samples in (old, new)]
    return asked[0] is not None and asked[0] == asked[1]


def _change(old: Samples, new: Samples, where: Where, workload: str, access: str) -> Change:
    asked = next(item for item in old.result.workloads if item.name == workload)
    sides = [list(samples.series(where, workload, access).values()) for samples in (old, new)]
    logs = [[math.log(measure.iops) for measure in side] for side in sides]
    return Change(
        where=where,
        workload=workload,
        access=access,
        before=figure_text(asked, sides[0]),
        after=figure_text(asked, sides[1]),
        speed=statistics.unpaired(*logs).mapped(math.exp),
        p_holm=1.0,
    )


def _total(old: Samples, new: Samples, where: Where, access: str, workloads: Sequence[str]) -> Total:
    """Return the comparison of each round's mean over the workloads."""
    sides = []
    for samples in (old, new):
        series = [samples.series(where, workload, access) for workload in workloads]
        rounds = sorted(set.intersection(*({*one} for one in series)))
        sides.append([fmean(math.log(one[number].iops) for one in series) for number in rounds])
    return Total(
        where=where,
        access=access,
        workloads=len(workloads),
        rounds=(len(sides[0]), len(sides[1])),
        speed=statistics.unpaired(*sides).mapped(math.exp),
        p_holm=1.0,
    )


def _host_differences(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    keys = dict.fromkeys([*before, *after])
    pairs = [(key, before.get(key, "unknown"), after.get(key, "unknown")) for key in keys]
    return tuple(f"{key} was {old}, is {new}" for key, old, new in pairs if old != new)


def _missing(old: Samples, new: Samples, cells: Sequence[tuple[Where, str, str]]) -> tuple[str, ...]:
    found = []
    for which, samples in (("before", old), ("after", new)):
        left = [cell for cell in samples.cells if cell not in cells]
        for where in dict.fromkeys(cell[0] for cell in left):
            what = ", ".join(f"{workload} over {access}" for place, workload, access in left if place == where)
            found.append(f"only {which}, or asked in another way: {where.words}: {what}")
    return tuple(found)
