"""Which plots a place gets, and their words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hvext.bench import statistics
from hvext.bench.figures import SEQUENTIAL, figure_text
from hvext.bench.plots import Bar, Point, bars_plot, differences_plot, latency_plot, pooled
from hvext.bench.result import Measure, Result, Workload
from hvext.bench.statistics import Samples, Where
from hvext.bench.verdict import Verdict
from hvext.bench.words import change_text, count_text, time_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An SVG with its words."""

    title: str
    svg: str
    caption: str


def series_numbers(result: Result, baseline: str) -> dict[str, int]:
    """Return the number of each access's colour: 0 is the baseline's."""
    others = [access.name for access in result.accesses if access.name != baseline]
    return {name: number for number, name in enumerate([baseline, *others])}


def place_pictures(samples: Samples, verdict: Verdict, where: Where, prefix: str) -> list[Picture]:
    """Return the plots of a place; ``prefix`` makes their names unlike those of other places."""
    series = series_numbers(samples.result, verdict.baseline)
    workloads = samples.workloads(where)
    found = [
        _differences(samples, verdict, where, series, f"{prefix}d"),
        _speeds(samples, where, series, f"{prefix}s"),
        _cpu(samples, where, series, f"{prefix}c"),
        *(_latency(samples, where, item, series, f"{prefix}l{number}") for number, item in enumerate(workloads)),
    ]
    return [picture for picture in found if picture is not None]


def _measures(samples: Samples, where: Where, workload: Workload, access: str) -> Sequence[Measure]:
    return tuple(samples.series(where, workload.name, access).values())


def _differences(samples: Samples, verdict: Verdict, where: Where, series: dict[str, int], name: str) -> Picture | None:
    points, words = [], []
    for workload in samples.workloads(where):
        here = [item for item in verdict.differences if (item.where, item.workload) == (where, workload.name)]
        if here:
            points.append(Point(name=workload.name))
            points += [Point(name=f"  {item.access}", series=series[item.access], ratio=item.speed) for item in here]
            words += [f"{workload.name}, {item.access}: {change_text(item.speed)}" for item in here]
    if not points:
        return None
    overall = [item for level in verdict.levels if level.level is where.level for item in level.overall]
    points.append(Point(name="all workloads"))
    points += [Point(name=f"  {item.access}", series=series[item.access], ratio=item.speed) for item in overall]
    words += [f"all workloads, {item.access}: {change_text(item.speed)}" for item in overall]
    many = len({place for place in samples.places if place.level is where.level}) > 1
    devices = " \u201cAll workloads\u201d are those of all devices of this level." if many else ""
    return Picture(
        title=f"Speed against {verdict.baseline}",
        svg=differences_plot(name, f"Speed against {verdict.baseline}. {'; '.join(words)}.", points),
        caption="Requests per second, with 95 % intervals. One that reaches \u201csame\u201d shows no difference; "
        f"one that does not may still be chance, as so many are compared: the table has the findings.{devices}",
    )


def _speeds(samples: Samples, where: Where, series: dict[str, int], name: str) -> Picture | None:
    groups, words = [], []
    for workload in samples.workloads(where):
        bars = []
        for access in samples.result.accesses:
            if measures := _measures(samples, where, workload, access.name):
                bar = _speed_bar(workload, access.name, series[access.name], measures)
                bars.append(bar)
                words.append(f"{workload.name}, {access.name}: {bar.words}")
        if bars:
            groups.append((workload.name, bars))
    if not groups:
        return None
    return Picture(
        title="Requests per second",
        svg=bars_plot(name, f"Requests per second. {'; '.join(words)}.", groups),
        caption="Medians with 95 % intervals. A slow round widens these intervals, but not those of differences.",
    )


def _speed_bar(workload: Workload, access: str, number: int, measures: Sequence[Measure]) -> Bar:
    found = statistics.paired([math.log(item.iops) for item in measures]).mapped(math.exp)
    middle = median(item.iops for item in measures)
    words = figure_text(workload, measures) if workload.rw in SEQUENTIAL else f"{count_text(middle)} IOPS"
    low = None if found.low is None else min(found.low, middle)
    high = None if found.high is None else max(found.high, middle)
    return Bar(access=access, series=number, value=middle, words=words, low=low, high=high)


def _cpu(samples: Samples, where: Where, series: dict[str, int], name: str) -> Picture | None:
    groups, words = [], []
    for workload in samples.workloads(where):
        bars = []
        for access in samples.result.accesses:
            measures = _measures(samples, where, workload, access.name)
            every = [item.cpu_us_per_io for item in measures if item.cpu_us_per_io is not None]
            qemu = [item.qemu_cpu_us_per_io for item in measures if item.qemu_cpu_us_per_io is not None]
            if not every or not median(every):
                continue
            total = median(every)
            part = min(1.0, median(qemu) / total) if qemu else None
            bars.append(
                Bar(access=access.name, series=series[access.name], value=total, words=time_text(total), part=part)
            )
            shared = "" if part is None else f", of which QEMU {time_text(total * part)}"
            words.append(f"{workload.name}, {access.name}: {time_text(total)}{shared}")
        if bars:
            groups.append((workload.name, bars))
    if not groups:
        return None
    return Picture(
        title="CPU time per request",
        svg=bars_plot(name, f"CPU time per request. {'; '.join(words)}.", groups),
        caption="Full: QEMU (or the storage daemon). Pale: the kernel and the storage\u2019s servers on this host.",
    )


def _latency(samples: Samples, where: Where, workload: Workload, series: dict[str, int], name: str) -> Picture | None:
    lines, words = [], []
    for access in samples.result.accesses:
        bins = pooled([run.latency_bins() for run in samples.runs(where, workload.name, access.name)])
        if not bins:
            continue
        lines.append((access.name, series[access.name], bins))
        measures = _measures(samples, where, workload, access.name)
        shares = [
            f"{share} {time_text(median(values))}"
            for share in ("p50", "p99", "p99.9")
            if (values := [item.latency_us[share] for item in measures if share in item.latency_us])
        ]
        words.append(f"{access.name}: {', '.join(shares)}")
    if not lines:
        return None
    return Picture(
        title=f"Latency of {workload.name}",
        svg=latency_plot(name, f"Latency of {workload.name}. {'; '.join(words)}.", lines),
        caption="All rounds together; further left is faster."
        + (" Without the fsync: fio counts it by itself." if workload.fsync else ""),
    )
