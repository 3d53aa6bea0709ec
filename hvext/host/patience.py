"""Ctrl-C that interrupts once: whoever tidies up after it is not interrupted again by one that follows soon.

Every command loads this: it imports nothing that takes time.
"""

from __future__ import annotations

import time

#: What has not ended so long after a SIGINT is interrupted by the next one, in whatever state it is.
PATIENCE_S = 3.0


class _Patience:
    def __init__(self) -> None:
        self._last_s = float("-inf")

    def follows(self) -> bool:
        """Take note of a SIGINT; return whether it follows another so soon that it says nothing new."""
        now_s = time.monotonic()
        if now_s - self._last_s <= PATIENCE_S:
            return True
        self._last_s = now_s
        return False


_patience = _Patience()
follows = _patience.follows


def interrupt(_number: int, _frame: object) -> None:
    """Raise KeyboardInterrupt, but not twice within ``PATIENCE_S``: a handler of SIGINT."""
    if not follows():
        raise KeyboardInterrupt
