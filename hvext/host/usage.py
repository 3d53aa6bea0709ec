"""How much processor time was used, and by whom; and what machine this is.

Source: proc(5), /proc/stat, /proc/[pid]/stat, /proc/cpuinfo; getrusage(2).
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
from pathlib import Path

from hvext.core.value import value_object

_TICKS = os.sysconf("SC_CLK_TCK")


@value_object
class CpuTimes:
    """Processor seconds since some beginning: of the whole machine, of our children that have ended, of a process.

    ``threads`` are those of some threads of the process.
    """

    machine_s: float
    children_s: float
    process_s: float
    threads_s: float = 0.0

    def since(self, before: CpuTimes) -> CpuTimes:
        """Return what was used since ``before``."""
        return CpuTimes(
            machine_s=self.machine_s - before.machine_s,
            children_s=self.children_s - before.children_s,
            process_s=self.process_s - before.process_s,
            threads_s=self.threads_s - before.threads_s,
        )


def cpu_times(pid: int, threads: tuple[int, ...] = ()) -> CpuTimes:
    """Return the processor times now; a process or thread that is gone has used none."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return CpuTimes(
        machine_s=_machine_s(),
        children_s=own.ru_utime + own.ru_stime,
        process_s=_used_s(f"/proc/{pid}/stat"),
        threads_s=sum(_used_s(f"/proc/{pid}/task/{thread}/stat") for thread in threads),
    )


def _machine_s() -> float:
    """Return the time that all processors were busy: not idle, not waiting for I/O, and not somebody else's."""
    user, nice, system, _idle, _iowait, irq, softirq = (
        int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / _TICKS


def _used_s(path: str) -> float:
    with contextlib.suppress(OSError):
        fields = Path(path).read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def host_facts() -> dict[str, str]:
    """Return what this machine is, in words: processor, how many, memory, kernel, distribution."""
    return {
        "cpu": _cpu_model(),
        "cpus": str(os.cpu_count() or 0),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "distribution": _distribution(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu"):
            return value.strip()
    return platform.machine()


def _distribution() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return ""
