"""Which access to use, and why, in one sentence: or that what was measured does not say.

An access counts as faster when, over all workloads of a level, the 95 % interval of the ratio excludes "the same", p is
below `DECISION_ALPHA`, and the ratio is at least `MIN_EFFECT`. Speed decides; where it shows no difference, processor
time does, by stricter rules. What was measured in a guest decides before what was measured on the host: it is what
users get.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from hvext.bench import statistics
from hvext.bench.empty import CURE, data_share, emptiness, nearly_empty
from hvext.bench.overall import (
    DECISION_ALPHA,
    DECISIVE_ROUNDS,
    SAME,
    Overall,
    corrected,
    finding,
    overall,
    workload_differences,
)
from hvext.bench.reason import Reason
from hvext.bench.result import Level, MeasuredAccess, Result
from hvext.bench.statistics import Difference, Samples, Where
from hvext.bench.words import count_words
from hvext.bench.workload import OVERHEAD_S


class Recommendation(StrEnum):
    """What to give as ``access``; or, where disk options were measured, that others are better.

    ``DEPENDS``: none is the faster one over all workloads, and one of them is faster in some and slower in others.
    ``ONLY``: there was nothing to compare. ``EMPTY``: what was compared is the reading of nothing.
    """

    USERSPACE = "userspace"
    KERNELSPACE = "kernelspace"
    OPTION = "option"
    DEPENDS = "it depends on the workload"
    NONE = "no measurable difference"
    ONLY = "none, as there was only one access to measure"
    EMPTY = "none, as the part that was measured holds no data"

    def to_json(self) -> str | None:
        """Return it for machines: null where no accesses were compared, or none that read anything."""
        return None if self in (Recommendation.ONLY, Recommendation.EMPTY) else str(self)


#: What to do where no access is the faster one.
_BY_WORKLOAD = "Choose by what your guests do; --job measures a workload like theirs."


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelVerdict:
    """What the measurements of one level say. ``access`` is the recommended one's name, or empty.

    ``certain`` is whether the noise carries the conclusion; where it does not, ``advice`` says what would.
    """

    level: Level
    recommendation: Recommendation
    access: str
    reason: str
    certain: bool
    advice: str
    by_cpu: bool
    overall: tuple[Overall, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping."""
        return {
            "level": str(self.level),
            "recommendation": self.recommendation.to_json(),
            "access": self.access,
            "reason": self.reason,
            "certain": self.certain,
            "advice": self.advice,
            "by_cpu": self.by_cpu,
            "overall": [overall.to_json() for overall in self.overall],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a benchmark says. The first of ``levels`` decides; ``baseline`` is what all is compared with."""

    baseline: str
    levels: tuple[LevelVerdict, ...]
    differences: tuple[Difference, ...]

    @property
    def recommendation(self) -> Recommendation:
        """What to give as ``access``."""
        return self.levels[0].recommendation if self.levels else Recommendation.NONE

    @property
    def access(self) -> str:
        """The recommended access's name, or empty."""
        return self.levels[0].access if self.levels else ""

    @property
    def reason(self) -> str:
        """Why, in one sentence with figures."""
        return self.levels[0].reason if self.levels else "Nothing was measured."

    @property
    def certain(self) -> bool:
        """Whether the noise carries the conclusion."""
        return bool(self.levels) and self.levels[0].certain

    @property
    def advice(self) -> str:
        """What would tell more, or empty."""
        return self.levels[0].advice if self.levels else ""

    def difference(self, where: Where, workload: str, access: str) -> Difference | None:
        """Return one comparison, or None."""
        wanted = (where, workload, access)
        found = (item for item in self.differences if (item.where, item.workload, item.access) == wanted)
        return next(found, None)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON-able mapping: the recommendation, each level's, and each comparison."""
        return {
            "recommendation": self.recommendation.to_json(),
            "access": self.access,
            "reason": self.reason,
            "certain": self.certain,
            "advice": self.advice,
            "baseline": self.baseline,
            "levels": [level.to_json() for level in self.levels],
            "differences": [
                {**difference.to_json(), "finding": str(finding(difference))} for difference in self.differences
            ],
        }


def recommended(level: LevelVerdict) -> str:
    """Return the recommendation in a few words: "Recommendation: access=userspace (nbd)"."""
    if not level.access:
        return f"Recommendation: {level.recommendation}"
    if level.recommendation is Recommendation.OPTION:
        return f"Recommendation: disk options {level.access}"
    return f"Recommendation: access={level.recommendation} ({level.access})"


def judge(result: Result) -> Verdict:
    """Return what a benchmark says; raises InputError when scipy is missing or a run says nothing."""
    samples = Samples(result)
    base = baseline(result.accesses)
    if base is None:
        return Verdict(baseline="", levels=(), differences=())
    others = [access.name for access in result.accesses if access.name != base.name]
    differences: list[Difference] = []
    levels = []
    for level in (Level.GUEST, Level.HOST):
        places = [place for place in samples.places if place.level is level]
        if places:
            found = [item for name in others for item in workload_differences(samples, places, base.name, name)]
            differences += found
            levels.append(_judge_level(samples, places, base, found))
    if levels and nearly_empty(result):
        levels = [_of_nothing(level) for level in levels]
        levels[0] = replace(levels[0], reason=f"{emptiness(data_share(result))} {levels[0].reason}")
    return Verdict(baseline=base.name, levels=tuple(levels), differences=tuple(differences))


def _of_nothing(level: LevelVerdict) -> LevelVerdict:
    """Return a level whose figures are of reads that fetched nothing: nothing is recommended by them."""
    only = level.recommendation is Recommendation.ONLY
    recommendation = Recommendation.ONLY if only else Recommendation.EMPTY
    return replace(level, recommendation=recommendation, access="", certain=False, by_cpu=False, advice=CURE)


def baseline(accesses: Sequence[MeasuredAccess]) -> MeasuredAccess | None:
    """Return what the others are compared with: the block path where there is one, else the first that was not made.

    Where disk options were measured, the first of them are those that were given.
    """
    order = ("option", "kernelspace", "userspace", "made")
    return min(accesses, key=lambda access: order.index(access.kind), default=None)


def _judge_level(
    samples: Samples, places: Sequence[Where], base: MeasuredAccess, differences: Sequence[Difference]
) -> LevelVerdict:
    others = [access for access in samples.result.accesses if access.name != base.name]
    every = [(access, overall(samples, places, base.name, access.name)) for access in others]
    compared = corrected([item for access, item in every if item is not None and access.kind != "made"])
    shown = corrected([item for access, item in every if item is not None and access.kind == "made"])
    kinds = {access.name: Recommendation(access.kind) for access in samples.result.accesses if access.kind != "made"}
    level = places[0].level
    where = "in a guest" if level is Level.GUEST else "on the host"
    if not compared:
        runs = {run.access for run in samples.result.runs if run.level is level}
        measured = [name for name in kinds if name in runs]
        return LevelVerdict(
            level=level,
            recommendation=Recommendation.NONE if len(measured) > 1 else Recommendation.ONLY,
            access="",
            reason=_uncompared(measured, where, made=bool(shown)),
            certain=False,
            advice="",
            by_cpu=False,
            overall=tuple(shown),
        )
    winner = _winner(base.name, [(item.access, item.speed.value, item.differs) for item in compared])
    savings = [(item.access, 1 / item.cpu.value, item.cpu_differs) for item in compared if item.cpu is not None]
    saver = "" if winner or len(savings) < len(compared) else _winner(base.name, savings)
    same = all(item.speed.within(1 / SAME, SAME) for item in compared)
    chosen = winner or saver
    reason = Reason(
        where=where,
        baseline=base.name,
        compared=compared,
        differences=differences,
        winner=winner,
        saver=saver,
    )
    depends = not chosen and reason.depends
    certain = bool(winner) or same or depends
    none = Recommendation.DEPENDS if depends else Recommendation.NONE
    return LevelVerdict(
        level=level,
        recommendation=kinds[chosen] if chosen else none,
        access=chosen,
        reason=reason.sentence(),
        certain=certain,
        advice=_BY_WORKLOAD if depends else "" if certain else _advice(samples, places, compared),
        by_cpu=bool(saver),
        overall=(*compared, *shown),
    )


def _uncompared(measured: Sequence[str], where: str, *, made: bool) -> str:
    """Return why none of the accesses that can be chosen was compared with another."""
    if len(measured) > 1:
        return f"No round has a figure of each access {where}, so there is nothing to compare."
    names = measured[0] if measured else "what was made from the block path"
    more = "; what was made from the block path cannot be chosen" if made and measured else ""
    return f"There was only one access to measure {where} ({names}), so there is nothing to compare{more}."


def _winner(base: str, scores: Sequence[tuple[str, float, bool]]) -> str:
    """Return the best of those better than the baseline; the baseline if all are worse; else nothing.

    ``scores`` are accesses with their ratio to the baseline, and whether it counts.
    """
    counting = [(ratio, access) for access, ratio, counts in scores if counts]
    best = max(counting, default=(0.0, ""))
    if best[0] > 1:
        return best[1]
    return base if len(counting) == len(scores) else ""


def _advice(samples: Samples, places: Sequence[Where], compared: Sequence[Overall]) -> str:
    """Return how much longer it takes to tell a difference of 5 %."""
    done = max(item.rounds for item in compared)
    needed = [statistics.rounds_needed(item.samples, alpha=DECISION_ALPHA) for item in compared]
    rounds = max(number or DECISIVE_ROUNDS for number in needed)
    if done == 1:
        return f"At least {DECISIVE_ROUNDS} rounds are needed."
    rounds = max(rounds, DECISIVE_ROUNDS)
    if rounds <= done:  # this noise showed one so large, had it been there; a smaller one takes more
        rounds = 2 * done
    settings = samples.result.settings
    run_s = float(settings.get("run_s", 0)) + float(settings.get("warm_up_s", 0))
    runs = [run for run in samples.result.runs if any(run.level is where.level for where in places)]
    each_s = len(runs) / len({run.round for run in runs}) * (run_s + OVERHEAD_S)
    takes = f", about {count_words(math.ceil(rounds * each_s / 60), 'minute')}," if run_s else ""
    return f"{count_words(rounds, 'round')}{takes} would tell a difference of 5 %."
