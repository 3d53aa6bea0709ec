"""A volume that was not written to: reads of it fetch nothing, and are faster than they ever will be again."""

from __future__ import annotations

from hvext.bench.result import Result
from hvext.bench.words import percent_text

#: With less of the measured part written, what was measured is the reading of nothing.
NEARLY_EMPTY = 0.1
#: With less, a part of what was measured is: that is worth a word.
NEARLY_FULL = 0.9
CURE = "Write to it first; or, for a volume without data, let --destroy-data fill the part that is measured."


def data_share(result: Result) -> float | None:
    """Return which share of the measured part held data; None where the storage did not say, or it was filled first."""
    data, span = result.volume.get("data_bytes"), result.volume.get("span_bytes")
    if not isinstance(data, int) or not isinstance(span, int) or not span:
        return None
    return data / span


def nearly_empty(result: Result) -> bool:
    """Whether what was measured is the reading of nothing."""
    share = data_share(result)
    return share is not None and share < NEARLY_EMPTY


def emptiness(share: float | None) -> str:
    """Return what a share of data means for the figures, in one sentence; empty where it is no matter."""
    if share is None or share >= NEARLY_FULL:
        return ""
    if share >= NEARLY_EMPTY:
        return (
            f"Only {percent_text(share)} of the part that is measured holds data: reads of the rest fetch nothing from "
            "the storage, and make it look faster than it is."
        )
    what = (
        f"Only {percent_text(share)} of the part that is measured holds"
        if share
        else "The part that is measured has no"
    )
    return (
        f"{what} data (it was never written to, or has been discarded): reads of it fetch nothing from the storage, so "
        "these figures say nothing about a volume in use."
    )
