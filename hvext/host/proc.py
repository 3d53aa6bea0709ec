"""Which processes there are, told apart for good: a number alone is given again. Source: proc(5)."""

from __future__ import annotations

import os
from pathlib import Path

from hvext.core.record import ProcessId


def process_id(pid: int | None) -> ProcessId | None:
    """Return which process has this number now; None when none has, or it has ended and was not reaped yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # After the name: state, parent, group, …; the start time is field 22 of all.
    return None if pid is None or fields[0] in "ZX" else ProcessId(pid=pid, ticks=int(fields[19]), boot=boot)


def this_process() -> ProcessId | None:
    """Return which process this is."""
    return process_id(os.getpid())


def is_alive(process: ProcessId | None) -> bool:
    """Return whether that very process still runs; None is no process."""
    return process is not None and process_id(process.pid) == process
