"""Figures in words, for people."""

from __future__ import annotations

import math

from hvext.bench.statistics import Estimate

PLUS, MINUS = "+", "\u2212"


def change_text(ratio: Estimate, *, value: bool = True, interval: bool = True) -> str:
    """Return a ratio as a change with its interval: "+12 % (+9 to +15)", or one of the two."""
    there = [f"{percent_change(ratio.value)}"] if value else []
    if interval and ratio.low is not None and ratio.high is not None:
        ends = f"{_signed(ratio.low)} to {_signed(ratio.high)}"
        there.append(f"({ends})" if value else f"{ends} %")
    return " ".join(there)


def factor_text(ratio: float) -> str:
    """Return how much more a ratio above 1 is: "12 %", "2.4 times"."""
    return f"{ratio:.1f} times" if ratio >= 2 else percent_text(ratio - 1)


def percent_text(share: float) -> str:
    """Return a share in per cent: "12 %", "3.4 %"."""
    text = f"{share * 100:.{0 if share >= 0.0995 else 1}f}"
    return f"{text.removesuffix('.0')} %"


def count_words(number: int, noun: str) -> str:
    """Return "1 round", "2 rounds"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def count_text(value: float) -> str:
    """Return a number of requests: "983", "12.3k"."""
    if value < 9999.5:
        return f"{value:,.0f}"
    return f"{three_digits(value / 1e3)}k" if value < 999_500 else f"{three_digits(value / 1e6)}M"


def time_text(microseconds: float) -> str:
    """Return a time: "85.2 µs", "1.24 ms", "2.10 s"."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= 0.9995 * size:
            return f"{three_digits(microseconds / size)} {unit}"
    return f"{three_digits(microseconds)} \u00b5s"


def three_digits(value: float) -> str:
    """Return three digits, at most two of them behind the point."""
    if value <= 0:
        return "0"
    return f"{value:,.{max(0, min(2, 2 - math.floor(math.log10(value) + 1e-9)))}f}"


def percent_change(ratio: float) -> str:
    """Return a ratio as a change: "+12 %", "\u22123.4 %"."""
    return f"{_signed(ratio)} %"


def _signed(ratio: float) -> str:
    percent = (ratio - 1) * 100
    digits = f"{abs(percent):,.{0 if abs(percent) >= 9.95 else 1}f}"
    if float(digits.replace(",", "")) == 0:
        return "0"
    return f"{PLUS if percent > 0 else MINUS}{digits}"
