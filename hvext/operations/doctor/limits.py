"""How much a process may have: QEMU inherits what who starts it has."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from hvext.core.finding import Finding, Severity
from hvext.operations.doctor.ask import Ask, Needs

#: What a QEMU has open without disks, and a plug with its scripts.
_BARE = 128
#: What Linux gives by default: room for some two hundred disks.
_USUAL = 1024


def look(_ask: Ask, _needs: Needs) -> Iterator[Finding]:
    """Yield how many files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = {resource.RLIM_INFINITY: "any number of"}
    found = f"{words.get(soft, soft)} open files, and {words.get(hard, hard)} for a process that asks for more"
    few = soft != resource.RLIM_INFINITY and soft < _USUAL
    if not few:
        yield Finding(id="limits.nofile", severity=Severity.OK, tried="asked getrlimit(2)", found=found)
        return
    yield Finding(
        id="limits.nofile",
        severity=Severity.ERROR if soft < _BARE else Severity.WARNING,
        tried="asked getrlimit(2)",
        found=f"{found}: a QEMU with many disks will not get what it opens",
        cure="ulimit -n 65536, in a unit: LimitNOFILE=65536",
    )
