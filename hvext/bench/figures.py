"""Figures as words, and the rows that the terminal's table and the report's have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hvext.bench.overall import Finding, finding
from hvext.bench.result import Measure, Workload
from hvext.bench.statistics import Difference, Samples, Where
from hvext.bench.verdict import Verdict
from hvext.bench.words import MINUS, PLUS, change_text, count_text, three_digits, time_text

SEQUENTIAL = ("read", "write", "rw", "readwrite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One access in one workload, in words; ``finding`` is None for the baseline. Absent figures are empty."""

    workload: str
    access: str
    figure: str
    p99: str
    cpu: str
    change: str
    interval: str
    difference: str
    finding: Finding | None


#: The columns after workload and access: title for a page, for a terminal, and the row's field.
COLUMNS = (
    ("Figure", "figure", "figure"),
    ("p99", "p99", "p99"),
    ("CPU per I/O", "CPU/IO", "cpu"),
    ("Speed", "speed", "change"),
    ("95 % interval", "95 %", "interval"),
    ("Time", "", "difference"),
)


def columns(shown: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return those of `COLUMNS` in which any of the rows has something."""
    return [column for column in COLUMNS if any(getattr(row, column[2]) for row in shown)]


def rows(samples: Samples, verdict: Verdict, where: Where) -> list[Row]:
    """Return the table of a place: each workload with every access, in their order."""
    return [
        _row(samples, verdict, where, workload, access.name)
        for workload in samples.workloads(where)
        for access in samples.result.accesses
        if samples.series(where, workload.name, access.name)
    ]


def _row(samples: Samples, verdict: Verdict, where: Where, workload: Workload, access: str) -> Row:
    measures = list(samples.series(where, workload.name, access).values())
    cpu = [item.cpu_us_per_io for item in measures if item.cpu_us_per_io is not None]
    p99 = [item.latency_us["p99"] for item in measures if "p99" in item.latency_us]
    found = verdict.difference(where, workload.name, access)
    return Row(
        workload=workload.name,
        access=access,
        figure=figure_text(workload, measures),
        p99=time_text(median(p99)) if p99 else "",
        cpu=time_text(median(cpu)) if cpu else "",
        change=change_text(found.speed, interval=False) if found else "",
        interval=change_text(found.speed, value=False).removesuffix(" %") if found else "",
        difference=_absolute(found),
        finding=finding(found) if found else None,
    )


def _absolute(found: Difference | None) -> str:
    if found is None or found.difference_us is None:
        return ""
    value = found.difference_us.value
    return f"{PLUS if value > 0 else MINUS}{time_text(abs(value))}"


def figure_text(workload: Workload, measures: Sequence[Measure]) -> str:
    """Return the figure that a workload is about: bytes a second when it is sequential, a request's time at depth 1."""
    if workload.rw in SEQUENTIAL:
        return f"{three_digits(median(item.bytes_per_s for item in measures) / 1e6)} MB/s"
    if not workload.by_latency:
        return f"{count_text(median(item.iops for item in measures))} IOPS"
    # fio's latency of a write leaves out the fsync after it
    p50 = [] if workload.fsync else [item.latency_us["p50"] for item in measures if "p50" in item.latency_us]
    return time_text(median(p50 or [item.us_per_io for item in measures]))
