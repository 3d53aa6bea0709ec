"""Which processes there are, told apart for good: a number alone is given again. Source: proc(5)."""

from __future__ import annotations

import os
import uuid as uuid_module
from pathlib import Path

from hvext.core.provider import Action
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


def scripts_of(uuid: uuid_module.UUID) -> list[int]:
    """Return the processes that are providers' scripts at work on a disk, started by whomever.

    A script leads a session of its own and has the disk's uuid in its environment; the servers that it leaves behind
    were started with other words. One that replaced itself by another program is not found.
    """
    wanted = f"VOL_UUID={uuid}".encode()
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_script(entry) and wanted in _words(entry / "environ")
    ]


def _is_script(entry: Path) -> bool:
    program = [Path(os.fsdecode(word)) for word in _words(entry / "cmdline")[:2]]
    return any(path.is_absolute() and path.name in tuple(Action) for path in program) and _leads(int(entry.name))


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _words(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


def is_qemu(pid: int) -> bool:
    """Return whether a process is a QEMU or a storage daemon, by the program and the first words that it was run with.

    A QEMU that is run by a loader or a wrapper has its name among these words.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:8]
        program = str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return False
    names = [Path(word).name for word in (program, *words)]
    return any(name.startswith(("qemu-system-", "qemu-kvm", "qemu-storage-daemon")) or name == "kvm" for name in names)
