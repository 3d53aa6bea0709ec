"""VFIO: what QEMU takes a whole NVMe controller from the host with."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from hvext.core.finding import Finding, Severity
from hvext.core.value import replace
from hvext.host.opening import Way, try_paths
from hvext.operations.doctor.ask import Ask, Needs
from hvext.operations.doctor.cures import setfacl

_DEVICE = "/dev/vfio/vfio"


def look(ask: Ask, needs: Needs) -> Iterator[Finding]:
    """Yield whether QEMU's user can open it."""
    who = replace(ask.identity, chroot="")
    tried = f"opened {_DEVICE} {who.words}"
    (opened,) = try_paths([(_DEVICE, Way.USE)], who, cancel=ask.cancel)
    if opened.code == 0:
        yield Finding(id="vfio.device", severity=Severity.OK, tried=tried, found="it opens")
        return
    closed = opened.code in (errno.EACCES, errno.EPERM)
    cure = setfacl(who, "rw", _DEVICE) if closed else "modprobe vfio-pci, and bind the controller"
    yield Finding(
        id="vfio.device",
        severity=needs.missing("nvme"),
        tried=tried,
        found=f"{_DEVICE}: {opened.words}",
        cure=cure,
        transports=("nvme",),
    )
