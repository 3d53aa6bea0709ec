"""What a supervised guest can be in, how it gets from one into another, and what is said about it.

::

              ┌────────────── runs again ───────────────┐
              ▼                                         │
    RUNNING ──── I/O error stop ───▶ BROKEN ── tries used up ──▶ GAVE_UP
        │  ▲ └── no space stop ────▶ FULL
     stop  cont
        ▼  │
      PAUSED        by somebody else: never resumed, whatever its disks went through

A guest that was given up is tried all the same, quietly and seldom: its storage may be back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

from hvext.core.value import field, value_object
from hvext.errors import InputError

#: What QEMU calls a guest that an I/O error has stopped.
_STOPPED_BY_ERROR = "io-error"
#: In these a guest runs, or will by itself.
_RUNNING = frozenset({"running", "inmigrate", "restore-vm", "finish-migrate", "save-vm"})


class GuestState(StrEnum):
    """What a guest is in."""

    RUNNING = "running"
    PAUSED = "paused"
    BROKEN = "broken"
    FULL = "full"
    GAVE_UP = "gave up"


class Happening(StrEnum):
    """What the watch says; the word in ``event`` of its JSON."""

    WATCHING = "watching"
    GONE = "gone"
    UNREACHABLE = "unreachable"
    STOPPED = "stopped"
    FAILED_OVER = "failed-over"
    RESUMED = "resumed"
    LEFT_PAUSED = "left-paused"
    TRY_FAILED = "try-failed"
    GAVE_UP = "gave-up"
    NO_SPACE = "no-space"
    ERRORS = "errors"
    STUCK = "stuck"
    FROZEN = "frozen"
    THAWED = "thawed"
    FENCED = "fenced"
    FENCE_FAILED = "fence-failed"
    MOVED_BACK = "moved-back"
    MOVE_BACK_FAILED = "move-back-failed"
    UNPLUGGED = "unplugged"
    TROUBLE = "trouble"
    HURRIED = "hurried"
    LOOKED = "looked"
    ENDING = "ending"


@value_object
class Notice:
    """One thing that happened: ``words`` for people, ``values`` (numbers, texts) for machines.

    ``vm`` is the VM's name in the journal, empty as long as nobody has told it; ``monitor`` is its monitor's address,
    empty for what concerns the watch itself; ``disk`` a uuid or empty, ``volume`` that disk's provider and volume,
    empty where nobody wrote them down. Nothing in it is secret.
    """

    happening: Happening
    monitor: str
    words: str
    vm: str = ""
    disk: str = ""
    volume: str = ""
    values: Mapping[str, object] = field(default_factory=dict)

    def line(self, when: str) -> str:
        """Return it as one line, ``when`` being the time in words."""
        disk = f" disk {self.volume} ({self.disk})" if self.volume else f" disk {self.disk}" if self.disk else ""
        words = " ".join(self.words.split())
        return f"{when} {self.vm or self.monitor or 'watch'}{disk}: {self.happening}: {words}"

    def to_json(self, when: str) -> dict[str, object]:
        """Return it for machines."""
        known: dict[str, object] = {"time": when, "vm": self.vm, "monitor": self.monitor, "event": str(self.happening)}
        disk = {"disk": self.disk, "volume": self.volume or None} if self.disk else {}
        return known | disk | {"words": self.words, **self.values}


@value_object
class GiveUpRule:
    """When a guest is given up: after so many tries that failed, or when it has been stopped for so long."""

    tries: float = 30
    after_s: float = 600.0

    def __post_init__(self) -> None:
        if not (self.tries >= 1 and self.after_s > 0):
            raise InputError("giving up takes at least one try and more than no time")


class Guest:
    """One supervised guest. Times are seconds of a clock that does not go back."""

    def __init__(self, rule: GiveUpRule) -> None:
        self._rule = rule
        self._state = GuestState.RUNNING
        self._tries = 0
        self._stopped_at = math.nan

    @property
    def state(self) -> GuestState:
        """What it is in."""
        return self._state

    @property
    def well(self) -> bool:
        """Whether nothing has to be done for it."""
        return self._state in (GuestState.RUNNING, GuestState.PAUSED)

    def stopped_s(self, now: float) -> float:
        """Return for how long an I/O error has stopped it; 0 when none has."""
        return 0.0 if math.isnan(self._stopped_at) else now - self._stopped_at

    def seen(self, status: str, now: float, *, full: bool = False) -> bool:
        """Take in what QEMU says of the guest (``query-status``); return whether its state is another one now.

        ``full`` tells that nothing but storage without space has stopped it.
        """
        before = self._state
        if status == _STOPPED_BY_ERROR:
            if full:
                self._state = GuestState.FULL
            elif before is not GuestState.GAVE_UP:
                self._state = GuestState.BROKEN
            if math.isnan(self._stopped_at):
                self._stopped_at = now
        else:
            self._state = GuestState.RUNNING if status in _RUNNING else GuestState.PAUSED
            self._stopped_at = math.nan
            self._tries = 0
        return self._state is not before

    def try_failed(self, now: float) -> bool:
        """Count a try that failed; return whether the guest is given up with it."""
        self._tries += 1
        if self._state is not GuestState.BROKEN:
            return False
        if self._tries >= self._rule.tries or self.stopped_s(now) >= self._rule.after_s:
            self._state = GuestState.GAVE_UP
            return True
        return False
