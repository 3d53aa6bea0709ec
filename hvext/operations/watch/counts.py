"""What a watch has done since it began, in numbers: failovers, moves back, events, and the scripts that it ran."""

from __future__ import annotations

import threading
from collections.abc import Collection

from hvext.core.documentation import page
from hvext.core.metrics import Family, FamilyKind, Sample, counter
from hvext.core.supervision import Happening, Notice
from hvext.host.provider import ScriptEnd

#: Each of these is counted from 0 on for every guest: an increase from nothing is none for who asks for increases.
_FROM_THE_START = (Happening.FAILED_OVER, Happening.MOVED_BACK, Happening.STOPPED, Happening.GAVE_UP, Happening.FROZEN)


class WatchCounts:
    """Counts of one watch. ``heard`` is called with what happens, ``ended`` with each script, in any thread.

    A guest that is gone is forgotten: what is kept does not grow with the guests that there once were.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[tuple[str, Happening], int] = {}
        self._failovers: dict[str, tuple[int, float]] = {}
        self._stopped_s: dict[str, float] = {}
        self._scripts: dict[tuple[str, str, str], tuple[int, float]] = {}

    def heard(self, notice: Notice) -> None:
        """Count something that happened."""
        vm = notice.vm
        with self._lock:
            if notice.happening is Happening.WATCHING:
                for happening in _FROM_THE_START:
                    self._events.setdefault((vm, happening), 0)
                self._failovers.setdefault(vm, (0, 0.0))
                self._stopped_s.setdefault(vm, 0.0)
            self._events[vm, notice.happening] = self._events.get((vm, notice.happening), 0) + 1
            if notice.happening is Happening.FAILED_OVER:
                number, seconds = self._failovers.get(vm, (0, 0.0))
                self._failovers[vm] = number + 1, seconds + _ms(notice, "took_ms")
            elif notice.happening is Happening.RESUMED:
                self._stopped_s[vm] = self._stopped_s.get(vm, 0.0) + _ms(notice, "stopped_ms")

    def ended(self, script: ScriptEnd) -> None:
        """Count a script."""
        key = script.provider, str(script.action), script.outcome
        with self._lock:
            number, seconds = self._scripts.get(key, (0, 0.0))
            self._scripts[key] = number + 1, seconds + script.duration_s

    def families(self, names: Collection[str]) -> list[Family]:
        """Return the counts; of guests, those called ``names`` alone, and all others are forgotten."""
        with self._lock:
            # What concerns the watch itself has no name, and neither has a guest that was never reached.
            self._events = {key: number for key, number in self._events.items() if key[0] in names or not key[0]}
            self._failovers = {vm: value for vm, value in self._failovers.items() if vm in names}
            self._stopped_s = {vm: value for vm, value in self._stopped_s.items() if vm in names}
            events, failovers = dict(self._events), dict(self._failovers)
            stopped_s, scripts = dict(self._stopped_s), dict(self._scripts)

        def of(happening: Happening) -> list[Sample]:
            return [Sample(labels=(vm,), value=number) for (vm, kind), number in events.items() if kind is happening]

        return [
            Family(
                name="hvext_watch_failover_seconds",
                kind=FamilyKind.SUMMARY,
                words="Failovers of disks by this watch, and how long they took.",
                labels=("vm",),
                samples=tuple(
                    Sample(labels=(vm,), value=seconds, count=number) for vm, (number, seconds) in failovers.items()
                ),
            ),
            counter("hvext_watch_failovers", "Disks that this watch failed over.", ("vm",), of(Happening.FAILED_OVER)),
            counter(
                "hvext_watch_repoints",
                "Disks that this watch moved back to the storage they prefer.",
                ("vm",),
                of(Happening.MOVED_BACK),
            ),
            counter(
                "hvext_watch_stopped_seconds",
                "How long the guest was stopped by I/O errors before this watch resumed it.",
                ("vm",),
                [Sample(labels=(vm,), value=seconds) for vm, seconds in stopped_s.items()],
            ),
            counter(
                "hvext_watch_events",
                f"What this watch has said ({page('failover')}); without a VM, of itself.",
                ("vm", "event"),
                [Sample(labels=(vm, str(kind)), value=number) for (vm, kind), number in events.items()],
            ),
            Family(
                name="hvext_provider_script_seconds",
                kind=FamilyKind.SUMMARY,
                words="Scripts of providers that this watch ran, and how long they took.",
                labels=("provider", "action", "outcome"),
                samples=tuple(
                    Sample(labels=key, value=seconds, count=number) for key, (number, seconds) in scripts.items()
                ),
            ),
        ]


def _ms(notice: Notice, name: str) -> float:
    value = notice.values.get(name, 0)
    return float(value) / 1000 if isinstance(value, int | float) else 0.0
