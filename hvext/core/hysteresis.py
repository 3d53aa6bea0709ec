"""When a disk that was failed over goes back to the storage it prefers: once that has been well for long enough.

Each failover from it within ``memory_s`` doubles how long that is: storage that comes and goes is left alone for longer
and longer, and a guest does not move with it.
"""

from __future__ import annotations

from collections import deque

from hvext.core.value import value_object
from hvext.errors import InputError

#: A hold that doubles passes any limit long before.
_MAX_DOUBLINGS = 32


@value_object
class FailBackRule:
    """How long storage has to be well: ``checks`` looks in a row find it so, over ``hold_s`` seconds at least.

    The hold-off grows to ``hold_most_s`` at most. Looks are at most ``look_most_s`` apart.
    """

    checks: int = 3
    hold_s: float = 30.0
    hold_most_s: float = 3600.0
    memory_s: float = 21600.0
    look_most_s: float = 60.0

    def __post_init__(self) -> None:
        if self.checks < 1:
            raise InputError(f"storage must be looked at once at least before a disk moves back, not {self.checks}")
        for name in ("hold_s", "hold_most_s", "memory_s", "look_most_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0; got {getattr(self, name):g}")


class FailBack:
    """What one disk remembers of its preferred storage. Times are seconds of a clock that does not go back."""

    def __init__(self, rule: FailBackRule) -> None:
        self._rule = rule
        self._failures: deque[float] = deque()
        self._well = 0
        self._well_since = 0.0
        self._next_look = 0.0

    def failed(self, now: float) -> None:
        """Remember that the disk had to leave its preferred storage, or that a move back there failed."""
        self._failures.append(now)
        self._well = 0
        self._next_look = now + self.look_every_s(now)

    def hold_s(self, now: float) -> float:
        """Return how long the preferred storage has to be well by now."""
        while self._failures and self._failures[0] < now - self._rule.memory_s:
            self._failures.popleft()
        doublings = min(max(0, len(self._failures) - 1), _MAX_DOUBLINGS)
        return float(min(self._rule.hold_most_s, self._rule.hold_s * 2**doublings))

    def look_every_s(self, now: float) -> float:
        """Return how far looks at the preferred storage are apart."""
        return min(self._rule.look_most_s, self.hold_s(now) / max(1, self._rule.checks - 1))

    @property
    def next_look(self) -> float:
        """When to look next."""
        return self._next_look

    def put_off(self, now: float) -> None:
        """Have the next look later: one is about to be made."""
        self._next_look = now + self.look_every_s(now)

    def looked(self, now: float, *, well: bool) -> bool:
        """Take in what a look found; return whether the disk may go back now."""
        self._next_look = now + self.look_every_s(now)
        if not well:
            self._well = 0
            return False
        if self._well == 0:
            self._well_since = now
        self._well += 1
        return self._well >= self._rule.checks and now - self._well_since >= self.hold_s(now)
