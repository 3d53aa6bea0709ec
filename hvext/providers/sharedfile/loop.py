"""Loop devices of one file: what the kernel says is bound to it is the only record.

A device is bound and marked as ours in one step (LOOP_CONFIGURE, Linux 5.8), so there is none that is half made, and
devices that others have put on the file are not touched.
Source: Linux, include/uapi/linux/loop.h and drivers/block/loop.c.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

from extstorage import RELEASE_TIMEOUT_S, device_bytes, refuse, users_of, within

_CONFIGURE, _CLR_FD, _GET_STATUS64, _SET_CAPACITY, _GET_FREE = 0x4C0A, 0x4C01, 0x4C05, 0x4C07, 0x4C82
_DIRECT_IO = 16
#: struct loop_info64, and around it the file, the block size and what is reserved: struct loop_config.
_INFO = "=5Q4I64s64s32s2Q"
_CONFIG = f"=2I{struct.calcsize(_INFO)}s64x"
_MARK = b"hvext sharedfile"
_TRIES = 100


def find(file: str) -> str:
    """Return our device on the file, empty when there is none."""
    real = os.path.realpath(file)
    for backing in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        device = f"/dev/{backing.parts[3]}"
        with contextlib.suppress(OSError):
            if backing.read_text().rstrip("\n") in (real, f"{real} (deleted)") and _is_ours(device):
                return device
    return ""


def _is_ours(device: str) -> bool:
    info = bytearray(struct.calcsize(_INFO))
    with open(device, "rb", buffering=0) as opened:  # noqa: PTH123
        fcntl.ioctl(opened, _GET_STATUS64, info)
    name: bytes = struct.unpack(_INFO, info)[9]
    return name.rstrip(b"\0") == _MARK


def _attribute(device: str, name: str) -> str:
    return Path(f"/sys/block/{device[5:]}/{name}").read_text().strip()


def make(file: str) -> str:
    """Bind a device to the file and return it. It writes past the page cache, as QEMU does with the file itself."""
    info = struct.pack(_INFO, *[0] * 8, _DIRECT_IO, _MARK, b"", b"", 0, 0)
    for _try in range(_TRIES):
        with open("/dev/loop-control", "rb", buffering=0) as control:  # noqa: PTH123
            device = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
        with open(file, "r+b", buffering=0) as data, open(device, "r+b", buffering=0) as opened:  # noqa: PTH123
            try:
                fcntl.ioctl(opened, _CONFIGURE, struct.pack(_CONFIG, data.fileno(), 0, info))
            except OSError as error:
                if error.errno == errno.EBUSY:
                    continue  # another process was faster to take this device
                refuse(f"cannot set up a loop device for {file}: {error.strerror}; Linux 5.8 is needed, or path=no")
        if _attribute(device, "loop/dio") == "1":
            return device
        drop(device)
        refuse(
            f"the kernel does not use O_DIRECT for {file}, so the loop device and the file would not show the same",
            "bytes; dir must be on a file system that knows O_DIRECT, or set path=no",
        )
    return refuse(f"other processes took {_TRIES} loop devices away that were for {file}; repeat")


def refresh(device: str, size_bytes: int) -> None:
    """Have a device show the file's size."""
    if _attribute(device, "loop/autoclear") == "1":
        refuse(f"{device} is going away but still open ({users_of(device)}); end its users, then attach again")
    with open(device, "rb", buffering=0) as opened:  # noqa: PTH123
        if device_bytes(device) != size_bytes:
            fcntl.ioctl(opened, _SET_CAPACITY)


def drop(device: str) -> None:
    """Free a device, and see it gone: the kernel waits for its last user."""
    with open(device, "rb", buffering=0) as opened:  # noqa: PTH123
        fcntl.ioctl(opened, _CLR_FD)
    if not within(RELEASE_TIMEOUT_S, lambda: not Path(f"/sys/block/{device[5:]}/loop").exists()):
        refuse(f"{device} is still in use ({users_of(device)}) and goes away with its last user; detach again then")
