"""Which processes there are, told apart for good: a number alone is given again. Source: proc(5)."""

from __future__ import annotations

import os
import uuid as uuid_module
from functools import lru_cache

from hvext.core.provider import Action
from hvext.core.record import ProcessId


def process_id(pid: int | None) -> ProcessId | None:
    """Return which process has this number now; None when none has, or it has ended and was not reaped yet."""
    try:
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        boot = _boot()
    except OSError:
        return None
    # After the name: state, parent, group, …; the start time is field 22 of all.
    return None if pid is None or fields[0] in "ZX" else ProcessId(pid=pid, ticks=int(fields[19]), boot=boot)


@lru_cache(maxsize=1)
def _boot() -> str:
    return _text("/proc/sys/kernel/random/boot_id").strip()


def _text(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def this_process() -> ProcessId | None:
    """Return which process this is."""
    return _kept_id(os.getpid())


@lru_cache(maxsize=1)
def _kept_id(pid: int) -> ProcessId | None:
    return process_id(pid)


def is_alive(process: ProcessId | None) -> bool:
    """Return whether that very process still runs; None is no process."""
    return process is not None and process_id(process.pid) == process


def scripts_of(uuid: uuid_module.UUID) -> list[int]:
    """Return the processes that are providers' scripts at work on a disk, started by whomever.

    A script leads a session of its own and has the disk's uuid in its environment; the servers that it leaves behind
    were started with other words. One that replaced itself by another program is not found.
    """
    wanted = f"VOL_UUID={uuid}".encode()
    return [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and _is_script(entry) and wanted in _words(f"/proc/{entry}/environ")
    ]


def _is_script(pid: str) -> bool:
    program = [os.fsdecode(word) for word in _words(f"/proc/{pid}/cmdline")[:2]]
    names = [os.path.basename(path) for path in program if path.startswith("/")]
    return any(name in tuple(Action) for name in names) and _leads(int(pid))


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _words(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def qemus_with(path: str) -> list[int]:
    """Return the QEMUs and storage daemons that have a file or device open; those of other users only for root."""
    try:
        wanted = os.stat(path)
    except OSError:
        return []
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if is_qemu(pid) and any(_same(wanted, file) for file in _open_files(pid))]


def _open_files(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


def _same(wanted: os.stat_result, file: str) -> bool:
    try:
        return os.path.samestat(wanted, os.stat(file))
    except OSError:
        return False


def is_qemu(pid: int) -> bool:
    """Return whether a process is a QEMU or a storage daemon, by the program and the first words that it was run with.

    A QEMU that is run by a loader or a wrapper has its name among these words.
    """
    try:
        words = _text(f"/proc/{pid}/cmdline").split("\0")[:8]
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    names = [os.path.basename(word) for word in (program, *words)]
    return any(name.startswith(("qemu-system-", "qemu-kvm", "qemu-storage-daemon")) or name == "kvm" for name in names)
