"""FUSE: what mounts a cluster file system without the kernel's help (GlusterFS, CephFS)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from hvext.core.finding import Finding, Severity
from hvext.operations.doctor.ask import Ask, Needs

_DEVICE = "/dev/fuse"


def look(_ask: Ask, _needs: Needs) -> Iterator[Finding]:
    """Yield whether it can be used; hvext itself does without."""
    tried = f"opened {_DEVICE}"
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        yield Finding(
            id="fuse.device",
            severity=Severity.ABSENT if missing else Severity.WARNING,
            tried=tried,
            found=f"{_DEVICE}: {error.strerror}; mounts of GlusterFS for the provider sharedfile need it",
            cure="modprobe fuse; in a container, show it /dev/fuse"
            if missing
            else f"chmod 0666 {_DEVICE}; in a container, allow it the device c 10:229",
        )
        return
    yield Finding(id="fuse.device", severity=Severity.OK, tried=tried, found="it opens")
