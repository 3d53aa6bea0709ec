"""When a recovery may begin: at most so many at once, so fast at each server, later and later for what fails.

One node's share of an outage that hits a whole fleet. A lone failure waits for nothing; of many at once each begins a
little after the one before. A server at which tries fail in a row is taken for down: it gets a single try at a time,
in growing distances, whichever guest's turn it is, and the first that succeeds calls in all who wait for that server.
So a dead server sees few connections however many guests wait for it, and one that is back gets them at once, but
faster only step by step.

Time comes in as numbers (seconds of any clock that does not go back), chance as a function: the watch drives this with
an event loop, ``scripts/simulate-outage`` with a simulated clock.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from hvext.core.value import value_object
from hvext.errors import InputError

#: The first distance of tries at a server that is taken for down, where its normal distance is shorter.
_FIRST_DISTANCE_S = 0.05
#: By how much tries come closer to each other with each success after that.
_FASTER = 4


@value_object
class Pace:
    """How fast recoveries begin.

    ``concurrent`` is how many are under way at once; ``per_server_s`` how many connections they may make to one server
    in a second (infinite: no limit). A try that fails is repeated after ``retry_first_s``, and each time after twice
    as long, up to ``retry_most_s``. ``jitter`` is the share by which each distance is lengthened at random, at most.
    After more than ``tolerated`` failures in a row a server is taken for down, and the distance of tries at it doubles
    up to ``probe_most_s``; infinite ``tolerated`` switches that off.
    """

    concurrent: float = 8
    per_server_s: float = 20.0
    retry_first_s: float = 1.0
    retry_most_s: float = 30.0
    jitter: float = 0.5
    tolerated: float = 2
    probe_most_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.concurrent >= 1:
            raise InputError(f"at least one recovery at a time must be allowed, not {self.concurrent:g}")
        for name in ("per_server_s", "retry_first_s", "retry_most_s", "probe_most_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0; got {getattr(self, name):g}")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"jitter is a share from 0 to 1; got {self.jitter:g}")

    @property
    def distance_s(self) -> float:
        """The shortest time between two connections to one server."""
        return 1 / self.per_server_s

    def retry_s(self, tries: int, chance: float) -> float:
        """Return how long to wait after ``tries`` failures of one guest; ``chance`` is from 0 to 1."""
        # 2.0 ** 1024 is an overflow, and nobody waits for it.
        plain_s = min(self.retry_most_s, self.retry_first_s * 2.0 ** min(tries - 1, 64))
        return plain_s * (1 + self.jitter * chance)


@dataclass(slots=True, kw_only=True)
class _Work:
    key: str
    server: str
    connections: int
    urgent: bool
    tries: int = 0
    running: bool = False


@dataclass(slots=True)
class _Server:
    """What is known of one server: how fast it may be tried, who runs, and who waits (due time, turn, key)."""

    distance_s: float
    free_at: float = -math.inf
    failures: int = 0
    running: int = 0
    down: bool = False
    urgent: list[tuple[float, int, str]] = field(default_factory=list)
    others: list[tuple[float, int, str]] = field(default_factory=list)

    def ready(self, now: float) -> list[tuple[float, int, str]] | None:
        """Return the queue whose first entry's turn it is at ``now``; those that are not urgent come last."""
        for queue in (self.urgent, self.others):
            if queue and queue[0][0] <= now:
                return queue
        return None

    @property
    def idle(self) -> bool:
        """Whether nobody runs or waits."""
        return not (self.running or self.urgent or self.others)

    @property
    def next_due(self) -> float:
        """When the first entry is due that waits."""
        urgent = self.urgent[0][0] if self.urgent else math.inf
        return min(urgent, self.others[0][0]) if self.others else urgent


class Scheduler:
    """Says which work begins next. Work has a key (a guest, or a disk of it) and a server that it connects to.

    ``chance`` returns numbers from 0 to 1. Nothing here waits: ``begin`` is asked when ``next_at`` says so, and after
    each ``want``, ``finished`` and ``failed``.
    """

    def __init__(self, pace: Pace, chance: Callable[[], float]) -> None:
        self._pace = pace
        self._chance = chance
        self._work: dict[str, _Work] = {}
        self._servers: dict[str, _Server] = {}
        self._turns = itertools.count()
        self._running = 0

    @property
    def running(self) -> int:
        """How much work is under way."""
        return self._running

    @property
    def waiting(self) -> int:
        """How much work waits for its turn, or for its next try."""
        return len(self._work) - self._running

    def is_down(self, server: str) -> bool:
        """Whether a server is taken for down."""
        found = self._servers.get(server)
        return found is not None and found.down

    def want(self, key: str, server: str, now: float, *, connections: int = 1, urgent: bool = True) -> None:
        """Enter work that is to begin as soon as it may; it makes up to ``connections`` connections to ``server``.

        Work that is there already stays as it is: waiting for a next try, or under way. What is not ``urgent`` comes
        after all that is, at the same server.
        """
        if key in self._work:
            return
        if server not in self._servers:
            self._forget_idle(now)
            self._servers[server] = _Server(self._pace.distance_s)
        work = _Work(key=key, server=server, connections=connections, urgent=urgent)
        self._work[key] = work
        self._wait(work, now)

    def hurry(self, now: float) -> None:
        """Let everything that waits for a next try be due now, at the pace of each server."""
        for server in self._servers.values():
            _wake(server, now)

    def begin(self, now: float) -> str | None:
        """Return the key of the work that begins now, or None; call it again until it returns None.

        Among servers, the one with the least work under way comes first; within one, who has waited longest.
        """
        if self._running >= self._pace.concurrent:
            return None
        best: tuple[int, float, int] | None = None
        chosen: tuple[_Server, list[tuple[float, int, str]]] | None = None
        for server in self._servers.values():
            if now < server.free_at or (server.down and server.running):
                continue
            queue = server.ready(now)
            if queue is not None and (best is None or (server.running, *queue[0][:2]) < best):
                best = (server.running, *queue[0][:2])
                chosen = (server, queue)
        if chosen is None:
            return None
        server, queue = chosen
        work = self._work[heapq.heappop(queue)[2]]
        work.running = True
        server.running += 1
        self._running += 1
        longer = 1 + self._pace.jitter * self._chance()
        # A server that is down is asked for one connection, whatever the work would make of them.
        server.free_at = now + server.distance_s * (1 if server.down else work.connections) * longer
        return work.key

    def finished(self, key: str, now: float, *, answered: bool | None = None) -> None:
        """Take out work that is done.

        ``answered`` says whether its server served it; None where that is not known, as when another one did.
        """
        work = self._ended(key)
        del self._work[key]
        self._learn(self._servers[work.server], now, answered)

    def failed(self, key: str, now: float, *, answered: bool | None = False) -> float:
        """Return when work whose try failed is due again; ``answered`` is as for ``finished``."""
        work = self._ended(key)
        self._learn(self._servers[work.server], now, answered)
        work.tries += 1
        due = now + self._pace.retry_s(work.tries, self._chance())
        self._wait(work, due)
        return due

    def drop(self, key: str) -> None:
        """Take out work that has lost its reason; under way or not, known or not."""
        work = self._work.pop(key, None)
        if work is None:
            return
        server = self._servers[work.server]
        if work.running:
            server.running -= 1
            self._running -= 1
        for queue in (server.urgent, server.others):
            kept = [entry for entry in queue if entry[2] != key]
            if len(kept) != len(queue):
                queue[:] = kept
                heapq.heapify(queue)

    def next_at(self) -> float:
        """Return when ``begin`` may have something, if nothing else happens before; infinite when it will not."""
        if self._running >= self._pace.concurrent:
            return math.inf
        soonest = math.inf
        for server in self._servers.values():
            if not (server.down and server.running):
                soonest = min(soonest, max(server.next_due, server.free_at))
        return soonest

    def _wait(self, work: _Work, due: float) -> None:
        server = self._servers[work.server]
        queue = server.urgent if work.urgent else server.others
        heapq.heappush(queue, (due, next(self._turns), work.key))

    def _forget_idle(self, now: float) -> None:
        """Forget servers that nobody wants and that could be connected to now: names must not pile up."""
        for name in [name for name, server in self._servers.items() if server.idle and server.free_at <= now]:
            del self._servers[name]

    def _ended(self, key: str) -> _Work:
        work = self._work[key]
        work.running = False
        self._servers[work.server].running -= 1
        self._running -= 1
        return work

    def _learn(self, server: _Server, now: float, answered: bool | None) -> None:
        if answered is None:
            return
        usual_s = self._pace.distance_s
        if not answered:
            server.failures += 1
            if server.failures > self._pace.tolerated:
                server.down = True
                longer_s = max(server.distance_s, _FIRST_DISTANCE_S) * 2
                server.distance_s = min(longer_s, max(self._pace.probe_most_s, usual_s))
            return
        server.failures = 0
        server.distance_s = max(usual_s, server.distance_s / _FASTER)
        if server.down:
            # Whoever waits for a next try waits for a server that is back.
            _wake(server, now)
            server.free_at = min(server.free_at, now + server.distance_s)
        server.down = False


def _wake(server: _Server, now: float) -> None:
    for queue in (server.urgent, server.others):
        if queue:
            queue[:] = [(min(due, now), turn, key) for due, turn, key in queue]
            heapq.heapify(queue)
