"""Asynchronous I/O: which of QEMU's ways (disk option ``aio``) work here. The default, threads, always does."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvext.core.finding import Finding, Severity
from hvext.errors import ProgramError
from hvext.host.opening import Identity
from hvext.operations.doctor.ask import Ask, Needs
from hvext.operations.doctor.trial import answers

_FILE_BYTES = 1 << 20
#: What QEMU takes for each event loop that has a disk with aio=native (MAX_EVENTS in its block/linux-aio.c).
_EVENTS = 1024
_SYSCTL = Path("/proc/sys")
_INSTEAD = "; disks with aio=threads, the default, work"


def look(ask: Ask, _needs: Needs) -> Iterator[Finding]:
    """Yield whether QEMU can open a file in each way, and how many more event loops may."""
    yield from _limit()
    with contextlib.suppress(ProgramError):
        yield from _ways(ask)


def _ways(ask: Ask) -> Iterator[Finding]:
    """Yield what QEMU says to each way; raises ProgramError where there is none, which the subject "qemu" says."""
    with tempfile.NamedTemporaryFile(prefix="hvext-", dir="/var/tmp") as file:
        file.truncate(_FILE_BYTES)
        node = {"driver": "file", "filename": file.name, "cache": {"direct": True}}
        ways = ("io_uring", "native")
        commands = [("blockdev-add", {**node, "aio": way, "node-name": way, "read-only": True}) for way in ways]
        said = answers(ask, commands)
    for way, words in zip(ways, said, strict=True):
        yield _opened(way, words, ask.identity)


def _opened(way: str, words: str, who: Identity) -> Finding:
    tried = f"had QEMU open a file with aio={way}"
    cure = "use aio=threads"
    if way == "io_uring":
        setting = _number("kernel/io_uring_disabled")
        tried += f" (kernel.io_uring_disabled is {'unknown' if setting is None else setting})"
        cure = "sysctl kernel.io_uring_disabled=0; in a container, allow the system call io_uring_setup"
        group = _number("kernel/io_uring_group")
        if not words and setting == 1 and who.uid is not None and group not in (who.gid, *who.groups):
            words = f"this user may, but user {who.name} is not in the group kernel.io_uring_group ({group})"
    if words:
        return Finding(id=f"aio.{way}", severity=Severity.WARNING, tried=tried, found=f"{words}{_INSTEAD}", cure=cure)
    return Finding(id=f"aio.{way}", severity=Severity.OK, tried=tried, found="it opens")


def _limit() -> Iterator[Finding]:
    used, most = _number("fs/aio-nr"), _number("fs/aio-max-nr")
    tried = "read fs.aio-nr and fs.aio-max-nr"
    if used is None or most is None:
        return
    room = max(0, most - used) // _EVENTS
    found = f"{used} of {most} are taken: room for {room} more event loops (QEMUs and iothreads) with aio=native"
    if room < 1:
        cure = f"sysctl fs.aio-max-nr={max(1 << 20, 2 * most)}"
        yield Finding(id="aio.limit", severity=Severity.WARNING, tried=tried, found=found, cure=cure)
    else:
        yield Finding(id="aio.limit", severity=Severity.OK, tried=tried, found=found)


def _number(name: str) -> int | None:
    """Return a setting of the kernel; None where it has none."""
    try:
        return int((_SYSCTL / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
