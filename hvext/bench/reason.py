"""The sentence that says why an access is recommended, with its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvext.bench import statistics
from hvext.bench.overall import DECISIVE_ROUNDS, MIN_EFFECT, Finding, Overall, differs, finding
from hvext.bench.statistics import Difference, Estimate
from hvext.bench.words import change_text, count_words, factor_text, percent_text

#: How many workloads are called by name where some are faster and some slower.
NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """What is to be said of one level: ``where`` is its name; ``winner`` by speed and ``saver`` by CPU may be empty."""

    where: str
    baseline: str
    compared: Sequence[Overall]
    differences: Sequence[Difference]
    winner: str
    saver: str

    @property
    def depends(self) -> bool:
        """Whether an access is faster in one workload and slower in another, and none is ahead in all together."""
        return not self.winner and bool(self._opposed())

    def sentence(self) -> str:
        """Return it."""
        if self.winner:
            return f"{self._faster()}{self._mixed()}."
        if self.saver:
            return f"{self._saves()}{self._mixed()}."
        if self.depends:
            return f"No access is the faster one {self.where}: {'; '.join(self._opposed())} ({self._furthest()})."
        return f"{self._same()}{self._single()}."

    def _faster(self) -> str:
        item = self._rival(self.winner, {item.access: item.speed.value for item in self.compared})
        gain, loser = self._turned(item.speed, item)
        others = ", the fastest of the others," if self.winner == self.baseline and len(self.compared) > 1 else ""
        return (
            f"{self.winner} is {factor_text(gain.value)} {self._than(gain.value)} {loser}{others} "
            f"{self.where} ({_evidence(gain, item)})"
        )

    def _saves(self) -> str:
        savings = {item.access: 1 / item.cpu.value for item in self.compared if item.cpu is not None}
        item = self._rival(self.saver, savings)
        assert item.cpu is not None  # noqa: S101 - who has no figure of CPU has not won by it
        share, loser = (item.cpu, self.baseline)
        if self.saver == self.baseline:
            share, loser = item.cpu.mapped(lambda ratio: 1 / ratio), item.access
        return (
            f"Over all workloads, speed shows no difference {self.where} ({item.access} {change_text(item.speed)}), "
            f"but {self.saver} takes {percent_text(1 - share.value)} less processor time for a request than {loser} "
            f"({_evidence(share, item)})"
        )

    def _same(self) -> str:
        item, change = self._far(), self._furthest()
        if item.rounds < DECISIVE_ROUNDS:
            few = "is too few" if item.rounds == 1 else "are too few"
            return f"{count_words(item.rounds, 'round')} {few} for any conclusion {self.where}: {change}"
        if item.speed.p < statistics.ALPHA and not differs(item.speed, MIN_EFFECT):
            return f"The accesses differ by less than counts ({percent_text(MIN_EFFECT - 1)}) {self.where}: {change}"
        if item.speed.p < statistics.ALPHA and not item.differs:
            return f"There may be a difference {self.where}, but these figures do not prove it: {change}"
        return f"The accesses show no difference in speed {self.where}, over all workloads: {change}"

    def _far(self) -> Overall:
        """Return the comparison that is the furthest from "the same"."""
        return max(self.compared, key=lambda item: max(item.speed.value, 1 / item.speed.value))

    def _furthest(self) -> str:
        """Return its figures."""
        item = self._far()
        return f"{item.access} against {self.baseline}: {_evidence(item.speed, item, value=True)}"

    def _mixed(self) -> str:
        """Return what is to be said when an access is better in one workload and worse in another."""
        parts = self._opposed()
        return f"; results are mixed: {'; '.join(parts)}" if parts else ""

    def _opposed(self) -> list[str]:
        """Return the accesses that are faster in one workload and slower in another, each with these."""
        return [
            f"{name} is faster in {_some(faster)} and slower in {_some(slower)}"
            for name, faster, slower in self._findings()
            if faster and slower
        ]

    def _single(self) -> str:
        """Return what is to be said when single workloads show what all of them together do not."""
        parts = [
            f"{name} is {'faster' if faster else 'slower'} in {_some(faster or slower)}"
            for name, faster, slower in self._findings()
            if faster or slower
        ]
        return f"; by itself, {'; '.join(parts)}" if parts else ""

    def _findings(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield each access that can be chosen, with the workloads that it is faster and slower in."""
        for item in self.compared:
            mine = [each for each in self.differences if each.access == item.access]
            faster = [each.workload for each in mine if finding(each) is Finding.FASTER]
            slower = [each.workload for each in mine if finding(each) is Finding.SLOWER]
            yield item.access, faster, slower

    def _rival(self, chosen: str, scores: dict[str, float]) -> Overall:
        """Return the comparison that tells: the chosen one's, or the baseline's with the best of the others."""
        name = chosen if chosen != self.baseline else max(scores, key=lambda name: scores[name])
        return next(item for item in self.compared if item.access == name)

    def _turned(self, ratio: Estimate, item: Overall) -> tuple[Estimate, str]:
        """Return a ratio as the winner's over the loser's, and the loser."""
        if self.winner == self.baseline:
            return ratio.mapped(lambda value: 1 / value), item.access
        return ratio, self.baseline

    @staticmethod
    def _than(factor: float) -> str:
        return "as fast as" if factor >= 2 else "faster than"


def _evidence(ratio: Estimate, item: Overall, *, value: bool = False) -> str:
    """Return the interval (or all of the estimate), p, and from how much they come."""
    interval = "no interval" if ratio.low is None else f"95 % interval {change_text(ratio, value=False)}"
    p = "p < 0.001" if ratio.p < 0.001 else f"p = {ratio.p:.2g}"
    start = f"{change_text(ratio, interval=False)}, " if value else ""
    return f"{start}{interval}, {p}, {count_words(item.workloads, 'workload')}, {count_words(item.rounds, 'round')}"


def _some(names: Sequence[str]) -> str:
    """Return names in words; not more than a few."""
    unique = list(dict.fromkeys(names))
    more = len(unique) - NAMED
    return ", ".join(unique[:NAMED]) + (f" and {more} more" if more > 0 else "")
