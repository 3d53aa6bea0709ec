"""What on this host uses a block device beside whoever has it open: mounts, swap, and devices made on top of it.

Source: sysfs (``holders``), proc(5) (mountinfo, swaps).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def users_of_device(path: str) -> tuple[str, ...]:
    """Return in words what uses a block device or one of its partitions; nothing for what is no block device."""
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    if not stat.S_ISBLK(status.st_mode):
        return ()
    own = Path(f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    parts = [own, *(entry.parent for entry in own.glob("*/partition"))]
    numbers = {_text(part / "dev").strip() for part in parts}
    held = [f"{holder.name} is made of it" for part in parts for holder in sorted((part / "holders").glob("*"))]
    mounts = [line.split() for line in _text(Path("/proc/self/mountinfo")).splitlines()]
    mounted = [f"mounted at {fields[4]}" for fields in mounts if fields[2] in numbers]
    swaps = [line.split()[0] for line in _text(Path("/proc/swaps")).splitlines()[1:] if line.strip()]
    return (*held, *mounted, *("swap" for swap in swaps if _number(swap) in numbers))


def _number(path: str) -> str:
    try:
        device = Path(path).stat().st_rdev
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
