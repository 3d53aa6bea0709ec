"""What can be at a path of the host."""

from __future__ import annotations

from enum import StrEnum


class FileKind(StrEnum):
    """What is found at a path; symlinks are followed."""

    MISSING = "missing"
    REGULAR = "a regular file"
    DIRECTORY = "a directory"
    BLOCK_DEVICE = "a block device"
    CHARACTER_DEVICE = "a character device"
    FIFO = "a FIFO"
    SOCKET = "a socket"
    UNREADABLE = "not accessible"
