"""A fleet whose storage goes away and comes back: what the scheduling of recoveries does to it, in simulated time.

Every node has its own Scheduler, the one that ``hvext watch`` uses, and knows nothing of the others. All guests stop
when their storage goes. A try connects to the storage, and once that worked a second time, as QEMU does after the
storage was looked at; in between the provider's scripts take their time.

The storage takes so many connections a second; the others wait in line. A client that waited too long is gone when its
turn comes, but the server finds out only by serving it: so a storage that is asked for more than it can do gets less
done, not the same. While it is away it refuses, or says nothing at all.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hvext.core.schedule import Pace, Scheduler
from hvext.core.value import value_object
from hvext.errors import InputError

#: Makes independent sources of chance from a seed: one for every node.
ChanceOf = Callable[[int], Callable[[], float]]
_SERVER = "storage"
#: A round trip in a data centre.
_ROUND_TRIP_S = 0.001


@value_object
class Outage:
    """What happens, and to how many.

    ``capacity_s`` connections a second are served, ``queue`` may wait in line (more are refused), and a client waits
    ``timeout_s``. Guests notice within ``notice_s``, when they next write. ``scripts_s`` is what one recovery takes
    besides. ``silent`` storage does not refuse while it is away: clients run into their time limit. What has not
    recovered ``patience_s`` after the return counts as lost.
    """

    nodes: int = 200
    guests: int = 50
    outage_s: float = 60.0
    capacity_s: float = 500.0
    queue: int = 20_000
    timeout_s: float = 10.0
    notice_s: float = 2.0
    scripts_s: float = 0.1
    silent: bool = False
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        if not (self.nodes >= 1 and self.guests >= 1 and self.queue >= 1):
            raise InputError("nodes, guests and queue must be at least 1")
        for name in ("outage_s", "notice_s", "scripts_s"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be below 0")
        for name in ("capacity_s", "timeout_s", "patience_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0")


@value_object
class Outcome:
    """What came of it.

    ``per_tenth`` is the number of connections in each tenth of a second from the failure on. ``recovered_s`` are the
    times from the storage's return to each guest's recovery, sorted; ``lost`` guests had none.
    """

    per_tenth: tuple[int, ...]
    recovered_s: tuple[float, ...]
    lost: int
    back_after_s: float

    @property
    def connections(self) -> int:
        """All connections that were tried."""
        return sum(self.per_tenth)

    @property
    def per_second(self) -> tuple[int, ...]:
        """The number of connections in each second from the failure on."""
        return tuple(sum(self.per_tenth[at : at + 10]) for at in range(0, len(self.per_tenth), 10))

    def peak(self, *, after_return: bool) -> int:
        """Return the most connections within a second, before or after the storage's return."""
        return max(self._rates(after_return=after_return), default=0)

    def p99(self, *, after_return: bool) -> int:
        """Return the connections that 99 of 100 spans of a second with any do not exceed."""
        return int(quantile(sorted(filter(None, self._rates(after_return=after_return))), 0.99))

    def _rates(self, *, after_return: bool) -> list[int]:
        """Return the connections of each span of a second, one beginning in every tenth."""
        back = math.floor(self.back_after_s * 10)
        tenths = self.per_tenth[back:] if after_return else self.per_tenth[:back]
        return [sum(tenths[at : at + 10]) for at in range(max(1, len(tenths) - 9))]

    def to_json(self) -> dict[str, object]:
        """Return the figures; times in seconds after the storage's return."""
        return {
            "connections": self.connections,
            "away": {"peak_per_s": self.peak(after_return=False), "p99_per_s": self.p99(after_return=False)},
            "back": {"peak_per_s": self.peak(after_return=True), "p99_per_s": self.p99(after_return=True)},
            "recovered": len(self.recovered_s),
            "lost": self.lost,
            "recovery_s": {
                "p50": round(quantile(self.recovered_s, 0.5), 3),
                "p99": round(quantile(self.recovered_s, 0.99), 3),
                "last": round(quantile(self.recovered_s, 1.0), 3),
            },
            "per_second": list(self.per_second),
        }


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of sorted ``values`` do not exceed; NaN of none."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


@dataclass(slots=True)
class _Storage:
    """One queue with one server; ``busy_until`` is when all that wait now will have been served."""

    outage: Outage
    busy_until: float = 0.0
    per_tenth: dict[int, int] = field(default_factory=dict)

    def connect(self, now: float) -> tuple[float, bool]:
        """Return when a connection that is tried now is settled, and whether it came about."""
        tenth = int(now * 10)
        self.per_tenth[tenth] = self.per_tenth.get(tenth, 0) + 1
        outage = self.outage
        if now < outage.outage_s:
            return now + (outage.timeout_s if outage.silent else _ROUND_TRIP_S), False
        waiting_s = max(0.0, self.busy_until - now)
        if waiting_s * outage.capacity_s >= outage.queue:
            return now + _ROUND_TRIP_S, False
        self.busy_until = now + waiting_s + 1 / outage.capacity_s
        if waiting_s > outage.timeout_s:
            return now + outage.timeout_s, False
        return self.busy_until + _ROUND_TRIP_S, True


def simulate(outage: Outage, pace: Pace, chance_of: ChanceOf) -> Outcome:
    """Return what happens to a fleet whose nodes all keep this pace; the same for the same sources of chance."""
    run = _Run(outage, pace, chance_of)
    run.play()
    tenths = run.storage.per_tenth
    recovered = sorted(run.recovered)
    return Outcome(
        per_tenth=tuple(tenths.get(tenth, 0) for tenth in range(max(tenths) + 1)),
        recovered_s=tuple(recovered),
        lost=outage.nodes * outage.guests - len(recovered),
        back_after_s=outage.outage_s,
    )


class _Run:
    """One run: a line of events in time, each a function to call."""

    def __init__(self, outage: Outage, pace: Pace, chance_of: ChanceOf) -> None:
        self.outage = outage
        self.storage = _Storage(outage)
        self.recovered: list[float] = []
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._schedulers = [Scheduler(pace, chance_of(node)) for node in range(outage.nodes)]
        self._asked_at = [math.inf] * outage.nodes
        for node in range(outage.nodes):
            # Apart from those of the schedulers, so that a guest notices at the same time whatever the pace.
            chance = chance_of(outage.nodes + node)
            for guest in range(outage.guests):
                self._at(chance() * outage.notice_s, self._stops(node, str(guest)))

    def play(self) -> None:
        """Let everything happen, up to the end of the patience."""
        end = self.outage.outage_s + self.outage.patience_s
        while self._events:
            now, _order, happen = heapq.heappop(self._events)
            if now > end:
                return
            happen(now)

    def _at(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _stops(self, node: int, guest: str) -> Callable[[float], None]:
        def happen(now: float) -> None:
            # A look at the storage, and QEMU's own connection.
            self._schedulers[node].want(guest, _SERVER, now, connections=2)
            self._ask(node, now)

        return happen

    def _ask(self, node: int, now: float) -> None:
        """Begin what may begin on a node, and ask again when the scheduler says so."""
        scheduler = self._schedulers[node]
        while (guest := scheduler.begin(now)) is not None:
            self._connect(node, guest, now, then=self._looked)
        when = scheduler.next_at()
        if when < self._asked_at[node]:
            self._asked_at[node] = when
            self._at(when, lambda now: self._asked(node, now))

    def _asked(self, node: int, now: float) -> None:
        self._asked_at[node] = math.inf
        self._ask(node, now)

    def _connect(self, node: int, guest: str, now: float, *, then: Callable[[int, str, float], None]) -> None:
        settled, came_about = self.storage.connect(now)
        follow = then if came_about else self._failed
        self._at(settled, lambda now: follow(node, guest, now))

    def _looked(self, node: int, guest: str, now: float) -> None:
        ready = now + self.outage.scripts_s
        self._at(ready, lambda now: self._connect(node, guest, now, then=self._recovered))

    def _recovered(self, node: int, guest: str, now: float) -> None:
        self._schedulers[node].finished(guest, now, answered=True)
        self.recovered.append(now - self.outage.outage_s)
        self._ask(node, now)

    def _failed(self, node: int, guest: str, now: float) -> None:
        self._schedulers[node].failed(guest, now)
        self._ask(node, now)
