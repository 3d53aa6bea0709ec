"""What a watch is told: which guests, how patient, how fast, and with which fence."""

from __future__ import annotations

from collections.abc import Sequence

from hvext.core.hysteresis import FailBackRule
from hvext.core.schedule import Pace
from hvext.core.supervision import GiveUpRule
from hvext.core.value import field, value_object
from hvext.errors import InputError
from hvext.host.qmp import DEFAULT_TIMEOUT_S
from hvext.operations.fence import Fence


@value_object
class WatchSettings:
    """How ``Watch`` works.

    ``qmp`` are addresses of monitors; ``qmp_globs`` patterns (or folders) of sockets' paths, looked through again every
    ``rescan_s`` seconds. Every ``sample_s`` seconds each guest is asked how its requests are getting on: storage that
    lets one wait for ``stuck_s`` seconds, and does not answer, counts as frozen. ``fence`` cuts frozen storage off;
    None: a frozen disk is only reported. ``once`` brings in order what is broken now, and ends.
    ``grace_s`` is how long work under way may take to finish when the watch ends.
    """

    qmp: Sequence[str] = ()
    qmp_globs: Sequence[str] = ()
    rescan_s: float = 5.0
    pace: Pace = field(default_factory=Pace)
    give_up: GiveUpRule = field(default_factory=GiveUpRule)
    fail_back: FailBackRule | None = field(default_factory=FailBackRule)
    sample_s: float = 5.0
    stuck_s: float = 10.0
    fence: Fence | None = None
    once: bool = False
    qmp_timeout_s: float = DEFAULT_TIMEOUT_S
    reconnect_most_s: float = 30.0
    grace_s: float = 10.0
    state: str | None = None

    def __post_init__(self) -> None:
        if not (self.qmp or self.qmp_globs):
            raise InputError("a watch needs a guest", hint="give --qmp SOCKET or --qmp-glob PATTERN")
        for name in ("rescan_s", "sample_s", "stuck_s", "qmp_timeout_s", "reconnect_most_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0; got {getattr(self, name):g}")
