"""Looking at paths of this host, and where hvext keeps private files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hvext.core.file_kind import FileKind
from hvext.core.uri.file import Opened
from hvext.core.uri.location import PRIVATE_FOLDER

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


def private_folder() -> str:
    """Return the folder of private files; it need not exist."""
    if chosen := os.environ.get("HVEXT_RUNTIME_DIR"):
        return str(Path(chosen).absolute())
    if os.geteuid() == 0:
        return PRIVATE_FOLDER
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return f"{runtime}/hvext"
    return str(Path.home() / ".local/state/hvext/run")
