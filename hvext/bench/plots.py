"""The report's plots, each an SVG that stands in a page: its colours and fonts are the page's.

matplotlib draws with stand-ins for colours, which become CSS variables: ``--c0`` to ``--c5`` for accesses, ``--text``,
``--muted`` and ``--line``. Sizes are those of a phone's width.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from hvext.bench.extra import bench_extra

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from hvext.bench.statistics import Estimate
from hvext.bench.words import percent_change, time_text

#: Colours and dashes of accesses, which repeat after so many.
SERIES = 6
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)), (0, (8, 2)), (0, (3, 3)))
_ACCESS = tuple(f"#a1b2c{number}" for number in range(SERIES))
_TEXT, _MUTED, _LINE = "#a1b2d0", "#a1b2d1", "#a1b2d2"
_VARIABLES = {
    **{colour: f"var(--c{number})" for number, colour in enumerate(_ACCESS)},
    _TEXT: "var(--text)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
}
_WIDTH_IN = 4.5
_NINES = (0.5, 0.9, 0.99, 0.999)
#: The ends of distributions that fewer requests than this make up are left out: they are chance.
_LEAST_REQUESTS = 3
_RATIOS = (0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 0.95, 0.98, 1, 1.02, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: ``part`` is the share of it that is drawn full (the rest is pale); ``words`` stand behind it."""

    access: str
    series: int
    value: float
    words: str
    low: float | None = None
    high: float | None = None
    part: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One line of a plot of differences; a heading when it has no estimate."""

    name: str
    series: int = 0
    ratio: Estimate | None = None
    words: str = ""


def latency_plot(name: str, label: str, lines: Sequence[tuple[str, int, Mapping[int, int]]]) -> str:
    """Return the distributions of latency: accesses with their number and bins (nanoseconds: requests)."""
    curves = [_curve(bins) for _, _, bins in lines]
    with _figure(name, 2.9) as (figure, result):
        axes = figure.add_subplot()
        for (access, series, _), (times, heights) in zip(lines, curves, strict=True):
            style = DASHES[series % SERIES]
            axes.plot(times, heights, color=_ACCESS[series % SERIES], linestyle=style, linewidth=1.8, label=access)
        axes.set_xscale("log")
        axes.set_xlim(left=min(_first(*curve) for curve in curves))
        _time_axis(axes)
        axes.set_ylim(0, 3.4)
        axes.set_yticks([-math.log10(1 - share) for share in _NINES], [f"{share * 100:g} %" for share in _NINES])
        axes.set_ylabel("of requests take at most")
        axes.grid(color=_LINE, linewidth=0.6)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=10, labelcolor=_TEXT,
                    handlelength=2.4, columnspacing=1.4, handletextpad=0.5, borderaxespad=0.2)  # fmt: skip
    return _svg(result, name, label)


def bars_plot(name: str, label: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Return bars with intervals, a group for each workload, each with a scale of its own."""
    heights = [0.25 * len(bars) for _, bars in groups]
    gaps = 0.34 * len(groups)
    with _figure(name, sum(heights) + gaps + 0.1) as (figure, result):
        widest = max(len(bar.access) for _, bars in groups for bar in bars)
        left = min(0.4, 0.022 + 0.0205 * widest)
        top, total = 1.0, sum(heights) + gaps + 0.1
        for (title, bars), height in zip(groups, heights, strict=True):
            top -= 0.34 / total
            axes = figure.add_axes((left, top - height / total, 0.99 - left, height / total))
            top -= height / total
            figure.text(0.0, top + (height + 0.07) / total, title, color=_TEXT, weight="bold", fontsize=10.5)
            _draw_bars(axes, bars)
    return _svg(result, name, label)


def differences_plot(name: str, label: str, points: Sequence[Point]) -> str:
    """Return ratios with their intervals beside the line of "the same"."""
    height = 0.235 * len(points)
    with _figure(name, height + 0.5) as (figure, result):
        total = height + 0.5
        widest = max(len(point.name) + (0 if point.ratio else -2) for point in points)
        left = min(0.42, 0.02 + 0.0205 * widest)
        axes = figure.add_axes((left, 0.42 / total, 0.97 - left, height / total))
        for row, point in enumerate(points):
            bold = "normal" if point.ratio else "bold"
            axes.text(-left / (0.97 - left), row, point.name, transform=_row_transform(axes), va="center",
                      color=_TEXT, weight=bold, fontsize=10.5)  # fmt: skip
            if point.ratio is not None:
                _draw_point(axes, row, point, point.ratio)
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.set_yticks([])
        _ratio_axis(axes, [point.ratio for point in points if point.ratio is not None])
        axes.axvline(1, color=_MUTED, linewidth=1.1, zorder=0)
        axes.spines["left"].set_visible(False)
    return _svg(result, name, label)


def _row_transform(axes: Axes) -> Any:
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transAxes, axes.transData)


def _draw_point(axes: Axes, row: int, point: Point, ratio: Estimate) -> None:
    colour = _ACCESS[point.series % SERIES]
    if ratio.low is not None and ratio.high is not None:
        axes.plot([ratio.low, ratio.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot([ratio.value], [row], marker="o", markersize=6.5, color=colour, markeredgecolor=colour)


def _ratio_axis(axes: Axes, ratios: Sequence[Estimate]) -> None:
    ends = [1.0] + [end for ratio in ratios for end in (ratio.value, ratio.low, ratio.high) if end is not None]
    low, high = min(0.95, *ends) / 1.02, max(1.05, *ends) * 1.02
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    apart = math.log(high / low) * 0.16  # room for a label
    kept: list[float] = []
    for tick in sorted((tick for tick in _RATIOS if low <= tick <= high), key=lambda tick: abs(math.log(tick))):
        if all(abs(math.log(tick / other)) >= apart for other in kept):
            kept.append(tick)
    kept.sort()
    axes.set_xticks(kept, ["same" if tick == 1 else percent_change(tick) for tick in kept])
    axes.minorticks_off()
    axes.grid(axis="x", color=_LINE, linewidth=0.6)
    for place, side, words in ((0, "left", "\u2190 slower"), (1, "right", "faster \u2192")):
        axes.annotate(words, (place, 0), (0, -21), xycoords="axes fraction", textcoords="offset points", ha=side,
                      va="top", fontsize=10, color=_MUTED)  # fmt: skip


def _draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    most = max(max(bar.value, bar.high or 0) for bar in bars)
    for row, bar in enumerate(bars):
        colour = _ACCESS[bar.series % SERIES]
        full = bar.value if bar.part is None else bar.value * bar.part
        axes.barh(row, full, height=0.62, color=colour)
        if bar.part is not None:
            axes.barh(row, bar.value - full, left=full, height=0.62, color=colour, alpha=0.4)
        if bar.low is not None and bar.high is not None:
            ends = [[bar.value - bar.low], [bar.high - bar.value]]
            axes.errorbar(bar.value, row, xerr=ends, color=_TEXT, elinewidth=1.1, capsize=2.6, capthick=1.1)
        end = max(bar.value, bar.high or 0) + most * 0.02
        axes.text(end, row, bar.words, va="center", color=_TEXT, fontsize=10)
    axes.set_xlim(0, most * 1.36)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_yticks(range(len(bars)), [bar.access for bar in bars])
    axes.tick_params(axis="y", length=0, labelcolor=_TEXT, pad=4)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _curve(bins: Mapping[int, int]) -> tuple[list[float], list[float]]:
    """Return microseconds, and how many nines of the requests took at most that."""
    ordered = sorted(bins.items())
    total = sum(bins.values())
    times: list[float] = []
    heights: list[float] = []
    for (ns, _), below in zip(ordered, accumulate(count for _, count in ordered), strict=True):
        if times and total - below < _LEAST_REQUESTS:
            break
        height = -math.log10(max(1e-9, 1 - below / total))
        if not heights or height - heights[-1] > 0.008:  # closer points cannot be seen
            times.append(ns / 1000)
            heights.append(height)
    return times, heights


def _first(times: Sequence[float], heights: Sequence[float]) -> float:
    """Return where a curve is to begin: the few quickest requests would take half of the width."""
    return next((time for time, height in zip(times, heights, strict=True) if height > 0.01), times[0]) * 0.9


def pooled(bins: Sequence[Mapping[int, int]]) -> Counter[int]:
    """Return the bins of several runs as one."""
    every: Counter[int] = Counter()
    for one in bins:
        every.update(one)
    return every


def _time_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 1.8 else (1.0, 3.0) if decades < 2.6 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short_time(value)))


def _short_time(microseconds: float) -> str:
    number, unit = time_text(microseconds).split(" ")
    return f"{float(number.replace(',', '')):g} {unit}"


@contextmanager
def _figure(name: str, height_in: float) -> Iterator[tuple[Figure, io.StringIO]]:
    """Give a figure to draw in; it is written at the end."""
    with bench_extra():
        import matplotlib as mpl
        from matplotlib.figure import Figure
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10.5,
        "text.color": _TEXT,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _LINE,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "xtick.labelcolor": _MUTED,
        "ytick.labelcolor": _MUTED,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "axes.labelsize": 10,
        "figure.facecolor": "none",
        "text.parse_math": False,
    }
    result = io.StringIO()
    with mpl.rc_context(settings):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout=None)
        yield figure, result
        if figure.axes and figure.axes[0].get_legend() is not None:
            figure.tight_layout(pad=0.3)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(result, format="svg", metadata=nothing)


def _svg(written: io.StringIO, name: str, label: str) -> str:
    """Return the drawing for a page: names of its own, the page's colours and fonts, words for who cannot see."""
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"(font: [^;\"]*?px |font-family: )[^;\"]*", r"\1system-ui, sans-serif", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    start = f'<svg role="img" aria-label="{html.escape(label)}"'
    return re.sub(r"\s*\n\s*", "\n", text.replace("<svg", start, 1)).strip()
