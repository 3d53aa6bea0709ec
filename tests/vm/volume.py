"""Disks as guest and host see them."""

from __future__ import annotations

import mmap
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hvext.core.disk import Disk
from hvext.host.guest import Console
from hvext.operations import attachments

if TYPE_CHECKING:
    from tests.vm.conftest import Storage

SEEN_S = 60.0


def guest_disks(console: Console) -> list[str]:
    """Return the names of the guest's disks."""
    return console.run("cd /sys/block && ls -d [vs]d* 2>/dev/null")[1].split()


def wait_for_disk(console: Console, *, known: tuple[str, ...] = ()) -> str:
    """Return the device of the first disk that is not ``known``, once the guest sees one."""
    deadline = time.monotonic() + SEEN_S
    while time.monotonic() < deadline:
        new = [name for name in guest_disks(console) if name not in known]
        if new:
            return f"/dev/{new[0]}"
        time.sleep(0.1)
    raise AssertionError(f"the guest sees no disk but {known}")


def guest_bytes(console: Console, device: str) -> int:
    """Return the size of a disk in the guest, after asking a SCSI disk to look again."""
    name = device.removeprefix("/dev/")
    console.run(f"[ -e /sys/block/{name}/device/rescan ] && echo 1 >/sys/block/{name}/device/rescan")
    return int(console.run(f"cat /sys/block/{name}/size")[1]) * 512


def wait_for_bytes(console: Console, device: str, size_bytes: int) -> None:
    """Wait until the guest sees a disk with this size."""
    deadline = time.monotonic() + SEEN_S
    while (seen := guest_bytes(console, device)) != size_bytes:
        assert time.monotonic() < deadline, f"the guest sees {seen} bytes, not {size_bytes}"
        time.sleep(0.1)


def read_direct(storage: Storage, disk: Disk, size_bytes: int) -> bytes:
    """Attach a volume on the host, read its block path past the page cache, detach it."""
    path = attachments.attach(storage.host, disk).attachment.block_path
    assert path is not None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, size_bytes) as buffer:
                assert os.preadv(descriptor, [buffer], 0) == size_bytes
                return buffer[:]
        finally:
            os.close(descriptor)
    finally:
        attachments.detach(storage.host, disk)


def pids_of_servers(storage: Storage) -> list[int]:
    """Return the processes of the NBD servers of this storage's volumes."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"qemu-storage-daemon" in command and str(storage.folder).encode() in command:
            found.append(int(entry.name))
    return found


def kill_servers(storage: Storage) -> None:
    """Kill the NBD servers of this storage's volumes, and no other process."""
    pids = pids_of_servers(storage)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_servers_of(folder: Path) -> None:
    """Kill the servers of the volume in a folder, and no other process."""
    killed = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-storage-daemon" in command and f"{folder}/".encode() in command:
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
    assert killed
