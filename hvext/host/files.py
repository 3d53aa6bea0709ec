"""Looking at paths of this host."""

from __future__ import annotations

import stat
from pathlib import Path

from hvext.core.provider import FileKind
from hvext.core.uri.file import Opened

_KINDS = (
    (stat.S_ISREG, FileKind.REGULAR),
    (stat.S_ISBLK, FileKind.BLOCK_DEVICE),
    (stat.S_ISDIR, FileKind.DIRECTORY),
    (stat.S_ISCHR, FileKind.CHARACTER_DEVICE),
    (stat.S_ISFIFO, FileKind.FIFO),
    (stat.S_ISSOCK, FileKind.SOCKET),
)


def file_kind(path: str) -> FileKind:
    """Return what is at a path; symlinks are followed."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return FileKind.MISSING
    except OSError:
        return FileKind.UNREADABLE
    return next(kind for test, kind in _KINDS if test(mode))


def opened_as(path: str) -> Opened:
    """Return the block driver for a path: block devices are ``host_device``, everything else ``file``."""
    return Opened.HOST_DEVICE if file_kind(path) is FileKind.BLOCK_DEVICE else Opened.FILE
