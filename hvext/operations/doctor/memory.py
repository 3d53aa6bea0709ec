"""Memory that QEMU shares with others: what a vhost-user server reads and writes the guest's requests in."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from hvext.core.finding import Finding, Severity
from hvext.errors import ProgramError
from hvext.operations.doctor.ask import Ask, Needs
from hvext.operations.doctor.trial import answers

_FOLDER = "/dev/shm"  # noqa: S108
#: What a container gets by default is 64 MiB, with which no guest starts.
_FEW_BYTES = 256 << 20


def look(ask: Ask, needs: Needs) -> Iterator[Finding]:
    """Yield whether there is memory to share."""
    with contextlib.suppress(ProgramError):
        # The subject "qemu" says that there is none.
        yield _memfd(ask, needs)
    yield _shm()


def _memfd(ask: Ask, needs: Needs) -> Finding:
    backend = {"qom-type": "memory-backend-memfd", "id": "shared", "size": 1 << 20, "share": True}
    (words,) = answers(ask, [("object-add", backend)])
    tried = "had QEMU make a memory-backend-memfd with share=on"
    if words:
        return Finding(
            id="memory.memfd",
            severity=needs.missing("vhost-user"),
            tried=tried,
            found=words,
            cure="in a container, allow the system call memfd_create; or use memory-backend-file in /dev/shm",
            transports=("vhost-user",),
        )
    return Finding(id="memory.memfd", severity=Severity.OK, tried=tried, found="it is made")


def _shm() -> Finding:
    tried = f"made a file without a name in {_FOLDER}"
    try:
        with tempfile.TemporaryFile(dir=_FOLDER):
            pass
        state = os.statvfs(_FOLDER)
    except OSError as error:
        return Finding(
            id="memory.shm",
            severity=Severity.WARNING,
            tried=tried,
            found=f"{_FOLDER}: {error.strerror}; memory-backend-file and Ceph's tools use it",
            cure=f"mkdir -p {_FOLDER} && mount -t tmpfs -o mode=1777 tmpfs {_FOLDER}",
        )
    free = state.f_bavail * state.f_frsize
    found = f"{free >> 20} MiB are free in {_FOLDER}"
    if free < _FEW_BYTES:
        return Finding(
            id="memory.shm",
            severity=Severity.WARNING,
            tried=tried,
            found=f"{found}: less than the memory of a guest with memory-backend-file needs",
            cure=f"mount -o remount,size=50% {_FOLDER}; for a container: --shm-size",
        )
    return Finding(id="memory.shm", severity=Severity.OK, tried=tried, found=found)
