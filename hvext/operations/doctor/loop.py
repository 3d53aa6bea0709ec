"""Loop devices: what providers make block devices of files with."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from hvext.core.finding import Finding, Severity
from hvext.errors import ProgramError
from hvext.host.loop_device import CONTROL, attach_once, open_control
from hvext.operations.doctor.ask import Ask, Needs

_CURES = {
    errno.ENOENT: f"modprobe loop; in a container, show it {CONTROL} and /dev/loop*",
    errno.EACCES: "run it as root, as providers' scripts are run",
    errno.EPERM: f"the container may not use it: allow it the devices b 7:* and c 10:237 ({CONTROL})",
}


def look(_ask: Ask, needs: Needs) -> Iterator[Finding]:
    """Yield whether a loop device can be had."""
    bad = Severity.ERROR if needs.loop else Severity.ABSENT
    unneeded = "" if needs.loop else "; the providers sample and sharedfile need it"
    tried = f"opened {CONTROL}"
    try:
        open_control()
    except OSError as error:
        cure = _CURES.get(error.errno or 0, "modprobe loop")
        found = f"{CONTROL}: {error.strerror}{unneeded}"
        yield Finding(id="loop.control", severity=bad, tried=tried, found=found, cure=cure)
        return
    yield Finding(id="loop.control", severity=Severity.OK, tried=tried, found="it opens")
    tried = "attached a file to a free loop device, read it, detached it"
    try:
        device = attach_once()
    except ProgramError as error:
        cure = error.hint or "losetup --list shows what holds them; in a container, show it /dev/loop*"
        yield Finding(id="loop.attach", severity=bad, tried=tried, found=f"{error.message}{unneeded}", cure=cure)
        return
    except OSError as error:
        found = f"{error.filename or '/var/tmp'}: {os.strerror(error.errno or 0)}"  # noqa: S108
        yield Finding(id="loop.attach", severity=bad, tried=tried, found=found, cure="make room in /var/tmp")
        return
    yield Finding(id="loop.attach", severity=Severity.OK, tried=tried, found=f"{device} read what the file has")
