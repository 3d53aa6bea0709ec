"""What is told of an operation while it goes on, and what its errors mean; for those with and without an event loop."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hvext.errors import CommandTimeout, MonitorError, ScriptFailed, ScriptTimeout

#: Called with a step's name when it begins.
Report = Callable[[str], None]


def silent(_name: str) -> None:
    """Report nothing."""


def may_have_done(error: BaseException) -> bool:
    """Return whether the step that raised this may have done something."""
    killed = isinstance(error, ScriptFailed) and error.status < 0
    return killed or isinstance(error, CommandTimeout | MonitorError | ScriptTimeout)


def is_interrupt(error: BaseException) -> bool:
    """Return whether somebody ended the operation: Ctrl-C, or the cancelling of its task."""
    # Whoever is cancelled has loaded asyncio; to load it takes longer than all of a start without it.
    loaded = sys.modules.get("asyncio")
    return isinstance(error, KeyboardInterrupt) or (loaded is not None and isinstance(error, loaded.CancelledError))
